//! The file behind the memory: mapped, given memory, and given back.

use super::layout::{Region, offset_of_region};
use crate::say::say;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

/// Region `index`, mapped if it was not yet.
pub(super) fn region(regions: &[AtomicPtr<Region>], file: RawFd, index: usize) -> Option<&'static Region> {
    let place = regions.get(index)?;
    let mut at = place.load(Ordering::Acquire);
    if at.is_null() {
        at = map(file, offset_of_region(index), size_of::<Region>()).ok()?.cast();
        if let Err(first) = place.compare_exchange(std::ptr::null_mut(), at, Ordering::AcqRel, Ordering::Acquire) {
            // SAFETY: the mapping just made, which nobody else knows.
            unsafe { libc::munmap(at.cast(), size_of::<Region>()) };
            at = first;
        }
    }
    // SAFETY: page-aligned, mapped for the rest of the process's life, and made of atomics only, as `Fabric`.
    Some(unsafe { &*at })
}

/// Maps `len` bytes of the file, for good.
pub(super) fn map(file: RawFd, offset: usize, len: usize) -> io::Result<*mut libc::c_void> {
    let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_NORESERVE);
    // SAFETY: a new mapping, placed by the kernel.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, file, offset as libc::off_t) };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the mapping just made. A child of fork has no business in the fabric.
    unsafe { libc::madvise(at, len, libc::MADV_DONTFORK) };
    Ok(at)
}

/// Gives pages of the file back; they read as zeros then, through every mapping. `false`: this file system cannot.
pub(super) fn punch(file: &File, offset: usize, len: usize) -> bool {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: no pointers; our file.
    unsafe { libc::fallocate(file.as_raw_fd(), mode, offset as libc::off_t, len as libc::off_t) == 0 }
}

/// Has memory put behind a part of the file. File systems that cannot tell beforehand are believed to have some.
pub(super) fn allocate(file: RawFd, offset: usize, len: usize) -> io::Result<()> {
    // SAFETY: no pointers; our file.
    let failed =
        unsafe { libc::fallocate(file, libc::FALLOC_FL_KEEP_SIZE, offset as libc::off_t, len as libc::off_t) != 0 };
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG | libc::ENOMEM) if failed => Err(error),
        _ => Ok(()),
    }
}

pub(super) fn say_once(error: &io::Error) {
    static SAID: AtomicBool = AtomicBool::new(false);
    if !SAID.swap(true, Ordering::Relaxed) {
        say(format_args!("the run directory's file system: {error}"));
    }
}

/// Beyond it a file may not grow: the attempt costs the program its life (SIGXFSZ).
pub(super) fn file_size_limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is ours.
    match unsafe { libc::getrlimit(libc::RLIMIT_FSIZE, &mut limit) } {
        0 => limit.rlim_cur,
        _ => u64::MAX,
    }
}
