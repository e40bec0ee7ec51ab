//! What the calls that would reach the driver do: each asks whether it is about our device, our descriptors or our
//! sysfs tree; if not, it is the plain system call, as if this library were not there.
//!
//! `preload.rs` has the names by which the program calls them, `system_call.rs` the numbers. All are inlined into both:
//! a name's first bytes may be replaced by a memory hook that then calls by number, and must not come back to itself.

use crate::interpose::paths::{Target, target};
use crate::kernel::fd::{self, Object};
use crate::kernel::uar;
use crate::kernel::ucma;
use crate::kernel::uverbs::{Errno, File};
use crate::process;
use crate::support::raw::{self, fail, syscall};
use crate::support::trace;
use std::ffi::{c_char, c_int, c_long, c_uint, c_ulong, c_void};
use std::sync::Arc;

const PAGE: usize = 4096;

// ---- open and close ----------------------------------------------------------------------------

/// openat(2).
///
/// # Safety
/// As the system call, here and in all that follow.
#[inline(always)]
pub unsafe fn open_at(dir: c_int, path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    // SAFETY: by the contract.
    match unsafe { target(path) } {
        // SAFETY: by the contract.
        Target::Theirs => unsafe { syscall!(SYS_openat, dir, path, flags, mode) as c_int },
        // SAFETY: a terminated path of ours.
        Target::Tree(path) => unsafe { syscall!(SYS_openat, dir, path.as_ptr(), flags, mode) as c_int },
        Target::Node => open_node(flags),
        Target::Cm => ucma::open(process::machine, flags),
    }
}

/// Opens the device. The descriptor is a real one, of a memory file, so that all we do not interpose works: polling,
/// passing it on, and mapping its one page, which becomes the doorbell page. Nothing can be written to the file, so
/// what inherits the descriptor (a forked child, a program started by exec) cannot write commands into it and take
/// that for success: the position is at its end, and it is sealed against growth.
fn open_node(flags: c_int) -> c_int {
    let cloexec = if flags & libc::O_CLOEXEC != 0 { libc::MFD_CLOEXEC } else { 0 };
    let flags = cloexec | libc::MFD_ALLOW_SEALING;
    // SAFETY: a terminated name.
    let mut node = unsafe { syscall!(SYS_memfd_create, c"uverbs".as_ptr(), flags | libc::MFD_NOEXEC_SEAL) };
    if node < 0 && raw::errno() == libc::EINVAL {
        // Before Linux 6.3 there is no such flag.
        // SAFETY: as above.
        node = unsafe { syscall!(SYS_memfd_create, c"uverbs".as_ptr(), flags) };
    }
    if node >= 0 {
        let seals = libc::F_SEAL_GROW | libc::F_SEAL_SHRINK | libc::F_SEAL_SEAL;
        // SAFETY: no pointers.
        unsafe {
            syscall!(SYS_ftruncate, node, PAGE);
            syscall!(SYS_lseek, node, 0, libc::SEEK_END);
            syscall!(SYS_fcntl, node, libc::F_ADD_SEALS, seals);
        }
        trace::open(fd::hide, fd::close_hidden);
        let inode = raw::file_of(node as c_int).map(|(_, inode)| inode);
        fd::insert(node as c_int, Object::Device(File::new(process::driver, inode)));
    }
    node as c_int
}

/// The object leaves with a descriptor of the program's.
fn forget(descriptor: c_int) {
    if let Some(Object::Events(channel, _)) = fd::remove(descriptor)
        && !fd::shows(&channel)
    {
        channel.closed();
    }
}

/// close(2).
#[inline(always)]
pub fn close(descriptor: c_int) -> c_int {
    match fd::get(descriptor) {
        None => {}
        // A program that closes all it does not know means no harm.
        Some(Object::Hidden) => return fail(libc::EBADF),
        // Before the number is free for others.
        Some(_) => forget(descriptor),
    }
    raw::close(descriptor)
}

/// close_range(2).
#[inline(always)]
pub fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int {
    let whole = |first: c_uint, last: c_uint| {
        // SAFETY: no pointers.
        unsafe { syscall!(SYS_close_range, first, last, flags) as c_int }
    };
    let range = c_int::try_from(first).unwrap_or(c_int::MAX)..=c_int::try_from(last).unwrap_or(c_int::MAX);
    let ours = fd::in_range(range);
    // CLOSE_RANGE_CLOEXEC (4): nothing is closed now.
    if ours.is_empty() || first > last || flags & 4 != 0 {
        return whole(first, last);
    }
    let mut next = first;
    for (descriptor, hidden) in ours {
        if !hidden {
            forget(descriptor);
            continue;
        }
        let hidden = descriptor as c_uint;
        if next < hidden && whole(next, hidden - 1) != 0 {
            return -1;
        }
        next = hidden + 1;
    }
    if next <= last { whole(next, last) } else { 0 }
}

/// dup(2).
#[inline(always)]
pub fn dup(descriptor: c_int) -> c_int {
    // SAFETY: no pointers.
    copied(descriptor, unsafe { syscall!(SYS_dup, descriptor) as c_int })
}

/// dup2(2).
#[inline(always)]
pub fn dup2(from: c_int, to: c_int) -> c_int {
    if from == to {
        // SAFETY: no pointers.
        return unsafe { syscall!(SYS_dup2, from, to) as c_int };
    }
    // SAFETY: no pointers.
    onto(from, to, || unsafe { syscall!(SYS_dup2, from, to) as c_int })
}

/// dup3(2).
#[inline(always)]
pub fn dup3(from: c_int, to: c_int, flags: c_int) -> c_int {
    // SAFETY: no pointers.
    onto(from, to, || unsafe { syscall!(SYS_dup3, from, to, flags) as c_int })
}

/// `copy` is a copy of `original`, or negative: what fcntl(2) and others return.
#[inline(always)]
pub fn copied(original: c_int, copy: c_int) -> c_int {
    if copy >= 0
        && let Some(object @ (Object::Device(_) | Object::Events(..) | Object::Ucma(_))) = fd::get(original)
    {
        fd::insert(copy, object);
    }
    copy
}

/// A copy that replaces `to`.
#[inline(always)]
fn onto(from: c_int, to: c_int, copy: impl FnOnce() -> c_int) -> c_int {
    if let Some(Object::Hidden) = fd::get(to) {
        return fail(libc::EBUSY);
    }
    let result = copy();
    if result >= 0 {
        forget(to);
        copied(from, result);
    }
    result
}

// ---- commands and the doorbell page ------------------------------------------------------------

/// What a descriptor says about our device: the file, or that it is not ours.
fn device(descriptor: c_int) -> Option<Arc<File>> {
    match fd::get(descriptor) {
        Some(Object::Device(file)) => Some(file),
        _ => None,
    }
}

/// write(2).
///
/// # Safety
/// See `open_at`.
#[inline(always)]
pub unsafe fn write(descriptor: c_int, from: *const c_void, len: usize) -> isize {
    let written = match fd::get(descriptor) {
        Some(Object::Device(file)) => file.write(from, len).map_err(|Errno(errno)| errno),
        Some(Object::Ucma(file)) => file.write(descriptor, from, len),
        _ => {
            // SAFETY: by the contract.
            return unsafe { syscall!(SYS_write, descriptor, from, len) as isize };
        }
    };
    written.map_or_else(|errno| fail(errno) as isize, |written| written as isize)
}

/// ioctl(2).
///
/// # Safety
/// See `open_at`.
#[inline(always)]
pub unsafe fn ioctl(descriptor: c_int, request: c_ulong, arg: *mut c_void) -> c_int {
    match device(descriptor) {
        None => {
            // SAFETY: by the contract.
            unsafe { syscall!(SYS_ioctl, descriptor, request, arg) as c_int }
        }
        Some(file) => match file.ioctl(request, arg) {
            Ok(()) => 0,
            Err(Errno(errno)) => fail(errno),
        },
    }
}

/// mmap(2). What is not about the doorbell page is left to `plain`.
///
/// # Safety
/// See `open_at`.
#[inline(always)]
pub unsafe fn map(
    at: *mut c_void,
    len: usize,
    flags: c_int,
    descriptor: c_int,
    offset: c_long,
    plain: impl FnOnce() -> *mut c_void,
) -> *mut c_void {
    let map = || {
        let file = (flags & libc::MAP_ANONYMOUS == 0).then(|| device(descriptor)).flatten();
        let Some(file) = file else { return plain() };
        // SAFETY: by the contract.
        unsafe { file.mmap(at, len, flags, offset) }.unwrap_or_else(|Errno(errno)| {
            fail(errno);
            libc::MAP_FAILED
        })
    };
    if flags & libc::MAP_FIXED == 0 {
        return map();
    }
    // Whatever is there goes.
    uar::replace(at, len, map, |page| *page != libc::MAP_FAILED)
}

/// munmap(2), by way of `plain`.
#[inline(always)]
pub fn unmap(at: *mut c_void, len: usize, plain: impl FnOnce() -> c_int) -> c_int {
    uar::replace(at, len, plain, |result| *result == 0)
}
