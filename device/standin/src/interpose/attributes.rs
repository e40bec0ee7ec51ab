//! What programs ask about files by name or descriptor: the stat family, access, readlink. The device node is a
//! character device, whatever its descriptor really is.

use crate::interpose::next::interpose;
use crate::interpose::paths::{Target, target};
use crate::kernel::fd::{self, Object};
use crate::support::config;
use crate::support::raw::{fail, syscall};
use std::ffi::{c_char, c_int, c_uint};

/// The device node's number, as the kernel gives the first 32; the tree's `dev` says the same, and libibverbs compares.
fn node_rdev() -> (u32, u32) {
    (231, 192 + config::get().map_or(0, |config| config.number))
}
const NODE_MODE: u32 = libc::S_IFCHR | 0o666;
const BLOCK: i64 = 4096;

/// The connection manager's: a misc device, whose minor numbers are given out as modules are loaded. The guest's sysfs
/// tree says the same.
const CM_RDEV: (u32, u32) = (10, 122);

fn as_node(stat: &mut libc::stat, (major, minor): (u32, u32)) {
    stat.st_mode = NODE_MODE;
    stat.st_rdev = libc::makedev(major, minor);
    stat.st_size = 0;
    stat.st_blocks = 0;
}

/// The number of the node that was opened.
fn opened_node(descriptor: c_int) -> Option<(u32, u32)> {
    match fd::get(descriptor) {
        Some(Object::Device(_)) => Some(node_rdev()),
        Some(Object::Ucma(_)) => Some(CM_RDEV),
        _ => None,
    }
}

/// # Safety
/// As fstatat(2).
unsafe fn stat_at(dir: c_int, path: *const c_char, into: *mut libc::stat, flags: c_int) -> c_int {
    // SAFETY: by the contract.
    match unsafe { target(path) } {
        Target::Theirs => {
            // SAFETY: by the contract; on x86-64 the kernel's struct is the C library's.
            let result = unsafe { syscall!(SYS_newfstatat, dir, path, into, flags) as c_int };
            // SAFETY: a terminated string, by the contract.
            let of_descriptor = flags & libc::AT_EMPTY_PATH != 0 && !path.is_null() && unsafe { *path } == 0;
            if result == 0
                && of_descriptor
                && let Some(rdev) = opened_node(dir)
            {
                // SAFETY: written by the successful call.
                as_node(unsafe { &mut *into }, rdev);
            }
            result
        }
        // SAFETY: a terminated path of ours; `into` by the contract.
        Target::Tree(path) => unsafe { syscall!(SYS_newfstatat, dir, path.as_ptr(), into, flags) as c_int },
        node @ (Target::Node | Target::Cm) => {
            // SAFETY: integers, for which zero is a value.
            let mut stat: libc::stat = unsafe { std::mem::zeroed() };
            stat.st_nlink = 1;
            stat.st_blksize = BLOCK;
            as_node(&mut stat, if let Target::Cm = node { CM_RDEV } else { node_rdev() });
            // SAFETY: room for one, by the contract.
            unsafe { into.write(stat) };
            0
        }
    }
}

/// # Safety
/// As fstat(2).
unsafe fn stat_of(descriptor: c_int, into: *mut libc::stat) -> c_int {
    // SAFETY: by the contract.
    let result = unsafe { syscall!(SYS_fstat, descriptor, into) as c_int };
    if result == 0
        && let Some(rdev) = opened_node(descriptor)
    {
        // SAFETY: written by the successful call.
        as_node(unsafe { &mut *into }, rdev);
    }
    result
}

const FOLLOW: c_int = 0;
const NO_FOLLOW: c_int = libc::AT_SYMLINK_NOFOLLOW;

interpose! {
    /// stat(2).
    fn stat(path: *const c_char, into: *mut libc::stat) -> c_int {
        // SAFETY: by the contract, here and in all that follow.
        unsafe { stat_at(libc::AT_FDCWD, path, into, FOLLOW) }
    }

    /// stat64(3).
    fn stat64(path: *const c_char, into: *mut libc::stat) -> c_int {
        // SAFETY: by the contract.
        unsafe { stat_at(libc::AT_FDCWD, path, into, FOLLOW) }
    }

    /// lstat(2).
    fn lstat(path: *const c_char, into: *mut libc::stat) -> c_int {
        // SAFETY: by the contract.
        unsafe { stat_at(libc::AT_FDCWD, path, into, NO_FOLLOW) }
    }

    /// lstat64(3).
    fn lstat64(path: *const c_char, into: *mut libc::stat) -> c_int {
        // SAFETY: by the contract.
        unsafe { stat_at(libc::AT_FDCWD, path, into, NO_FOLLOW) }
    }

    /// fstat(2).
    fn fstat(descriptor: c_int, into: *mut libc::stat) -> c_int {
        // SAFETY: by the contract.
        unsafe { stat_of(descriptor, into) }
    }

    /// fstat64(3).
    fn fstat64(descriptor: c_int, into: *mut libc::stat) -> c_int {
        // SAFETY: by the contract.
        unsafe { stat_of(descriptor, into) }
    }

    /// fstatat(2).
    fn fstatat(dir: c_int, path: *const c_char, into: *mut libc::stat, flags: c_int) -> c_int {
        // SAFETY: by the contract.
        unsafe { stat_at(dir, path, into, flags) }
    }

    /// fstatat64(3).
    fn fstatat64(dir: c_int, path: *const c_char, into: *mut libc::stat, flags: c_int) -> c_int {
        // SAFETY: by the contract.
        unsafe { stat_at(dir, path, into, flags) }
    }

    /// stat in programs built against glibc before 2.33. The version is that of the struct; x86-64 has one.
    fn __xstat(_version: c_int, path: *const c_char, into: *mut libc::stat) -> c_int {
        // SAFETY: by the contract.
        unsafe { stat_at(libc::AT_FDCWD, path, into, FOLLOW) }
    }

    /// See `__xstat`.
    fn __xstat64(_version: c_int, path: *const c_char, into: *mut libc::stat) -> c_int {
        // SAFETY: by the contract.
        unsafe { stat_at(libc::AT_FDCWD, path, into, FOLLOW) }
    }

    /// See `__xstat`.
    fn __lxstat(_version: c_int, path: *const c_char, into: *mut libc::stat) -> c_int {
        // SAFETY: by the contract.
        unsafe { stat_at(libc::AT_FDCWD, path, into, NO_FOLLOW) }
    }

    /// See `__xstat`.
    fn __lxstat64(_version: c_int, path: *const c_char, into: *mut libc::stat) -> c_int {
        // SAFETY: by the contract.
        unsafe { stat_at(libc::AT_FDCWD, path, into, NO_FOLLOW) }
    }

    /// See `__xstat`.
    fn __fxstat(_version: c_int, descriptor: c_int, into: *mut libc::stat) -> c_int {
        // SAFETY: by the contract.
        unsafe { stat_of(descriptor, into) }
    }

    /// See `__xstat`.
    fn __fxstat64(_version: c_int, descriptor: c_int, into: *mut libc::stat) -> c_int {
        // SAFETY: by the contract.
        unsafe { stat_of(descriptor, into) }
    }

    /// See `__xstat`.
    fn __fxstatat(_version: c_int, dir: c_int, path: *const c_char, into: *mut libc::stat, flags: c_int) -> c_int {
        // SAFETY: by the contract.
        unsafe { stat_at(dir, path, into, flags) }
    }

    /// See `__xstat`.
    fn __fxstatat64(_version: c_int, dir: c_int, path: *const c_char, into: *mut libc::stat, flags: c_int) -> c_int {
        // SAFETY: by the contract.
        unsafe { stat_at(dir, path, into, flags) }
    }

    /// statx(2).
    fn statx(dir: c_int, path: *const c_char, flags: c_int, mask: c_uint, into: *mut libc::statx) -> c_int {
        let statx = |dir: c_int, path: *const c_char, flags: c_int| {
            // SAFETY: by the contract; a path of ours is terminated.
            unsafe { syscall!(SYS_statx, dir, path, flags, mask, into) as c_int }
        };
        // SAFETY: by the contract.
        let target = unsafe { target(path) };
        let rdev = match &target {
            Target::Theirs => {
                // SAFETY: a terminated string, by the contract.
                let empty = path.is_null() || unsafe { *path } == 0;
                opened_node(dir).filter(|_| empty && flags & libc::AT_EMPTY_PATH != 0)
            }
            Target::Tree(path) => return statx(dir, path.as_ptr(), flags),
            Target::Node => Some(node_rdev()),
            Target::Cm => Some(CM_RDEV),
        };
        let result = match target {
            Target::Theirs => statx(dir, path, flags),
            // Any file that exists: what matters is overwritten below.
            _ => statx(libc::AT_FDCWD, c"/dev/null".as_ptr(), 0),
        };
        let Some(rdev) = rdev else { return result };
        if result == 0 {
            // SAFETY: written by the successful call.
            let stat = unsafe { &mut *into };
            stat.stx_mode = NODE_MODE as u16;
            (stat.stx_rdev_major, stat.stx_rdev_minor) = rdev;
            (stat.stx_size, stat.stx_blocks) = (0, 0);
        }
        result
    }

    /// access(2).
    fn access(path: *const c_char, mode: c_int) -> c_int {
        // SAFETY: by the contract.
        unsafe { access_at(libc::AT_FDCWD, path, mode, 0) }
    }

    /// faccessat(2).
    fn faccessat(dir: c_int, path: *const c_char, mode: c_int, flags: c_int) -> c_int {
        // SAFETY: by the contract.
        unsafe { access_at(dir, path, mode, flags) }
    }

    /// euidaccess(3).
    fn euidaccess(path: *const c_char, mode: c_int) -> c_int {
        // SAFETY: by the contract.
        unsafe { access_at(libc::AT_FDCWD, path, mode, libc::AT_EACCESS) }
    }

    /// eaccess(3).
    fn eaccess(path: *const c_char, mode: c_int) -> c_int {
        // SAFETY: by the contract.
        unsafe { access_at(libc::AT_FDCWD, path, mode, libc::AT_EACCESS) }
    }

    /// readlink(2).
    fn readlink(path: *const c_char, into: *mut c_char, len: usize) -> isize {
        // SAFETY: by the contract.
        unsafe { readlinkat(libc::AT_FDCWD, path, into, len) }
    }

    /// What _FORTIFY_SOURCE makes of readlink.
    fn __readlink_chk(path: *const c_char, into: *mut c_char, len: usize, _room: usize) -> isize {
        // SAFETY: by the contract. That `len` fits the room the compiler knows is the C library's check, not ours.
        unsafe { readlinkat(libc::AT_FDCWD, path, into, len) }
    }

    /// What _FORTIFY_SOURCE makes of readlinkat.
    fn __readlinkat_chk(dir: c_int, path: *const c_char, into: *mut c_char, len: usize, _room: usize) -> isize {
        // SAFETY: as above.
        unsafe { readlinkat(dir, path, into, len) }
    }

    /// readlinkat(2).
    fn readlinkat(dir: c_int, path: *const c_char, into: *mut c_char, len: usize) -> isize {
        // SAFETY: by the contract.
        match unsafe { target(path) } {
            Target::Theirs => {
                // SAFETY: by the contract.
                unsafe { syscall!(SYS_readlinkat, dir, path, into, len) as isize }
            }
            Target::Tree(path) => {
                // SAFETY: a terminated path of ours; the rest by the contract.
                unsafe { syscall!(SYS_readlinkat, dir, path.as_ptr(), into, len) as isize }
            }
            // A device node is no link.
            Target::Node | Target::Cm => fail(libc::EINVAL) as isize,
        }
    }
}

/// # Safety
/// As faccessat(2).
unsafe fn access_at(dir: c_int, path: *const c_char, mode: c_int, flags: c_int) -> c_int {
    let access = |path: *const c_char| {
        if flags == 0 {
            // SAFETY: by the contract.
            return unsafe { syscall!(SYS_faccessat, dir, path, mode) as c_int };
        }
        // SAFETY: by the contract. Since Linux 5.8; the older call has no flags.
        unsafe { syscall!(SYS_faccessat2, dir, path, mode, flags) as c_int }
    };
    // SAFETY: by the contract.
    match unsafe { target(path) } {
        Target::Theirs => access(path),
        Target::Tree(path) => access(path.as_ptr()),
        Target::Node | Target::Cm if mode & libc::X_OK != 0 => fail(libc::EACCES),
        Target::Node | Target::Cm => 0,
    }
}
