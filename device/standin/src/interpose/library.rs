//! Functions of the C library that use a path by themselves, past the interposers of `preload.rs`. Programs that read
//! /sys/class/infiniband without libibverbs come this way: streams, directories, walks, patterns.
//!
//! A path into the guest's sysfs tree is replaced; all else is the C library's business. Where a function tells paths
//! to the program (realpath, nftw), they are those of the tree, which the program can use as well.

use crate::interpose::attributes::{lstat, stat};
use crate::interpose::next::{call_next, interpose, next};
use crate::interpose::paths::{Target, TreePath, target};
use crate::support::config;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::null_mut;

/// `path`, or where it is in the tree. The second value keeps the first alive.
///
/// # Safety
/// As `target`.
unsafe fn moved(path: *const c_char, room: &mut Option<TreePath>) -> *const c_char {
    // SAFETY: by the contract.
    match unsafe { target(path) } {
        Target::Tree(moved) => room.insert(moved).as_ptr(),
        Target::Theirs | Target::Node | Target::Cm => path,
    }
}

/// The same for questions that a device node answers like any other.
///
/// # Safety
/// As `target`.
unsafe fn moved_or_node(path: *const c_char, room: &mut Option<TreePath>) -> *const c_char {
    // SAFETY: by the contract.
    match unsafe { target(path) } {
        Target::Tree(moved) => room.insert(moved).as_ptr(),
        Target::Node | Target::Cm => c"/dev/null".as_ptr(),
        Target::Theirs => path,
    }
}

/// Defines functions whose first argument is a path, and that differ from the C library's in nothing else.
macro_rules! move_path {
    (by $moved:ident; $($(#[$doc:meta])* $next:ident fn $name:ident(path $(, $arg:ident: $type:ty)*) -> $result:ty, failed $failed:expr;)*) => {
        interpose! {$(
            $(#[$doc])*
            fn $name(path: *const c_char $(, $arg: $type)*) -> $result {
                let mut room = None;
                // SAFETY: by the contract.
                let path = unsafe { $moved(path, &mut room) };
                call_next!($next, fn(*const c_char $(, $type)*) -> $result, $failed, path $(, $arg)*)
            }
        )*}
    };
}

next! {
    FOPEN = c"fopen";
    FOPEN64 = c"fopen64";
    FREOPEN = c"freopen";
    FREOPEN64 = c"freopen64";
    OPENDIR = c"opendir";
    SCANDIR = c"scandir";
    SCANDIR64 = c"scandir64";
    REALPATH = c"realpath";
    REALPATH_CHK = c"__realpath_chk";
    CANONICALIZE = c"canonicalize_file_name";
    CHDIR = c"chdir";
    NFTW = c"nftw";
    NFTW64 = c"nftw64";
    FTW = c"ftw";
    FTW64 = c"ftw64";
    GETXATTR = c"getxattr";
    LGETXATTR = c"lgetxattr";
    LISTXATTR = c"listxattr";
    LLISTXATTR = c"llistxattr";
    GLOB = c"glob";
    GLOB64 = c"glob64";
    READDIR = c"readdir";
    CLOSEDIR = c"closedir";
}

// Pointers to functions and structs of the C library's own pass through; their types do not matter here.
type Pointer = *mut c_void;

move_path! {
    by moved;
    /// fopen(3).
    FOPEN fn fopen(path, mode: *const c_char) -> Pointer, failed null_mut();
    /// fopen64(3).
    FOPEN64 fn fopen64(path, mode: *const c_char) -> Pointer, failed null_mut();
    /// freopen(3).
    FREOPEN fn freopen(path, mode: *const c_char, stream: Pointer) -> Pointer, failed null_mut();
    /// freopen64(3).
    FREOPEN64 fn freopen64(path, mode: *const c_char, stream: Pointer) -> Pointer, failed null_mut();
    /// opendir(3).
    OPENDIR fn opendir(path) -> Pointer, failed null_mut();
    /// scandir(3).
    SCANDIR fn scandir(path, names: Pointer, filter: Pointer, compare: Pointer) -> c_int, failed -1;
    /// scandir64(3).
    SCANDIR64 fn scandir64(path, names: Pointer, filter: Pointer, compare: Pointer) -> c_int, failed -1;
    /// realpath(3).
    REALPATH fn realpath(path, into: *mut c_char) -> *mut c_char, failed null_mut();
    /// What _FORTIFY_SOURCE makes of realpath.
    REALPATH_CHK fn __realpath_chk(path, into: *mut c_char, room: usize) -> *mut c_char, failed null_mut();
    /// canonicalize_file_name(3).
    CANONICALIZE fn canonicalize_file_name(path) -> *mut c_char, failed null_mut();
    /// chdir(2).
    CHDIR fn chdir(path) -> c_int, failed -1;
    /// nftw(3).
    NFTW fn nftw(path, visit: Pointer, descriptors: c_int, flags: c_int) -> c_int, failed -1;
    /// nftw64(3).
    NFTW64 fn nftw64(path, visit: Pointer, descriptors: c_int, flags: c_int) -> c_int, failed -1;
    /// ftw(3).
    FTW fn ftw(path, visit: Pointer, descriptors: c_int) -> c_int, failed -1;
    /// ftw64(3).
    FTW64 fn ftw64(path, visit: Pointer, descriptors: c_int) -> c_int, failed -1;
}

move_path! {
    by moved_or_node;
    /// getxattr(2). `ls -l` asks for every file.
    GETXATTR fn getxattr(path, name: *const c_char, value: Pointer, len: usize) -> isize, failed -1;
    /// lgetxattr(2).
    LGETXATTR fn lgetxattr(path, name: *const c_char, value: Pointer, len: usize) -> isize, failed -1;
    /// listxattr(2).
    LISTXATTR fn listxattr(path, list: *mut c_char, len: usize) -> isize, failed -1;
    /// llistxattr(2).
    LLISTXATTR fn llistxattr(path, list: *mut c_char, len: usize) -> isize, failed -1;
}

// ---- patterns ----------------------------------------------------------------------------------

/// glob.h: `glob_t`, with the functions that it uses if asked to.
#[repr(C)]
pub struct Glob {
    paths: usize,
    path_list: *mut *mut c_char,
    reserved: usize,
    flags: c_int,
    closedir: Pointer,
    readdir: Pointer,
    opendir: unsafe extern "C" fn(*const c_char) -> Pointer,
    lstat: unsafe extern "C" fn(*const c_char, *mut libc::stat) -> c_int,
    stat: unsafe extern "C" fn(*const c_char, *mut libc::stat) -> c_int,
}

const GLOB_ALTDIRFUNC: c_int = 1 << 9;

/// Flags for a pattern: one that may lead into the tree is looked up by our functions, so that its paths are found
/// there and told as the program wrote them.
///
/// # Safety
/// As glob(3).
unsafe fn glob_flags(pattern: *const c_char, flags: c_int, into: *mut Glob) -> c_int {
    if config::get().is_none() || pattern.is_null() || into.is_null() || flags & GLOB_ALTDIRFUNC != 0 {
        return flags;
    }
    // SAFETY: a terminated string, by the contract.
    let pattern = unsafe { CStr::from_ptr(pattern) }.to_bytes();
    if !pattern.starts_with(b"/sys/class/infiniband") && !pattern.starts_with(b"/dev/infiniband/") {
        return flags;
    }
    let (Some(readdir), Some(closedir)) = (READDIR.get(), CLOSEDIR.get()) else { return flags };
    // SAFETY: room for the struct, by the contract; these members are the program's only with GLOB_ALTDIRFUNC.
    unsafe {
        (&raw mut (*into).closedir).write(closedir);
        (&raw mut (*into).readdir).write(readdir);
        (&raw mut (*into).opendir).write(opendir);
        (&raw mut (*into).lstat).write(lstat);
        (&raw mut (*into).stat).write(stat);
    }
    flags | GLOB_ALTDIRFUNC
}

interpose! {
    /// glob(3).
    fn glob(pattern: *const c_char, flags: c_int, on_error: Pointer, into: *mut Glob) -> c_int {
        // SAFETY: by the contract.
        let flags = unsafe { glob_flags(pattern, flags, into) };
        let failed = libc::GLOB_ABORTED;
        call_next!(GLOB, fn(*const c_char, c_int, Pointer, *mut Glob) -> c_int, failed, pattern, flags, on_error, into)
    }

    /// glob64(3). On x86-64 its struct is the same.
    fn glob64(pattern: *const c_char, flags: c_int, on_error: Pointer, into: *mut Glob) -> c_int {
        // SAFETY: by the contract.
        let flags = unsafe { glob_flags(pattern, flags, into) };
        let failed = libc::GLOB_ABORTED;
        call_next!(GLOB64, fn(*const c_char, c_int, Pointer, *mut Glob) -> c_int, failed, pattern, flags, on_error, into)
    }
}
