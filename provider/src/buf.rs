//! Memory that is shared with the device: whole zeroed pages, unmapped when dropped.

use crate::error::Errno;
use core::ptr::{self, NonNull};
use pvrdma_ffi::pabi::Functions;
use pvrdma_ffi::uapi::vmw_pvrdma::PVRDMA_PAGE_SIZE;

/// Anonymous pages. The kernel pins them at object creation; once the application has called
/// `ibv_fork_init` they are kept out of forked children, so that a copy-on-write fault cannot move
/// them away from under the device.
#[derive(Debug)]
pub struct Buf {
    start: NonNull<u8>,
    len: usize,
    fork: Option<&'static Functions>,
}

// SAFETY: a Buf owns plain memory; access goes through raw pointers whose users synchronise.
unsafe impl Send for Buf {}
// SAFETY: as above.
unsafe impl Sync for Buf {}

impl Buf {
    /// At least `len` zeroed bytes, rounded up to whole pages. `len` must not be 0.
    pub fn new(len: usize, libibverbs: &'static Functions) -> Result<Self, Errno> {
        let mut buf = Self::map(len)?;
        // SAFETY: the range is the mapping just made.
        Errno::check(unsafe { (libibverbs.dontfork_range)(buf.start.as_ptr().cast(), buf.len) })?;
        buf.fork = Some(libibverbs);
        Ok(buf)
    }

    /// As [`Buf::new`], without the fork bookkeeping.
    pub fn map(len: usize) -> Result<Self, Errno> {
        let len = len.checked_next_multiple_of(PVRDMA_PAGE_SIZE).ok_or(Errno::ENOMEM)?;
        // SAFETY: a fresh anonymous mapping at an address the kernel chooses.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        let start = NonNull::new(start.cast()).ok_or(Errno::ENOMEM)?;
        Ok(Self { start, len, fork: None })
    }

    /// First byte, page-aligned.
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Length in bytes, a multiple of the page size.
    pub fn len_bytes(&self) -> usize {
        self.len
    }

    /// The byte at `offset`, which must be inside.
    pub fn at(&self, offset: usize) -> NonNull<u8> {
        debug_assert!(offset < self.len);
        // SAFETY: inside the mapping.
        unsafe { self.start.add(offset) }
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        let start = self.start.as_ptr().cast();
        if let Some(libibverbs) = self.fork {
            // SAFETY: the range this Buf announced. A failure leaves a stale note in libibverbs
            // and cannot be acted on.
            unsafe { (libibverbs.dofork_range)(start, self.len) };
        }
        // SAFETY: exactly the mapping `map` made, which nobody else owns.
        unsafe { libc::munmap(start, self.len) };
    }
}
