//! Memory that is shared with the device: whole zeroed pages, given back when dropped. Mapped here,
//! or by the application, if a parent domain says so.

use crate::domain::{Allocator, Resource};
use crate::error::Errno;
use crate::sync::gone;
use core::ptr::{self, NonNull};
use pvrdma_ffi::pabi::Functions;
use pvrdma_ffi::uapi::vmw_pvrdma::PVRDMA_PAGE_SIZE;

/// Pages. The kernel pins them at object creation; once the application has called `ibv_fork_init`
/// they are kept out of forked children, so that a copy-on-write fault cannot move them away from
/// under the device.
#[derive(Debug)]
pub struct Buf {
    start: NonNull<u8>,
    len: usize,
    fork: Option<&'static Functions>,
    owner: Owner,
}

/// Who gets the pages back.
#[derive(Debug)]
enum Owner {
    /// The kernel: they are mapped.
    Kernel,
    /// The application.
    Application(Allocator, Resource),
}

// SAFETY: a Buf owns plain memory; access goes through raw pointers whose users synchronise.
unsafe impl Send for Buf {}
// SAFETY: as above.
unsafe impl Sync for Buf {}

/// Where buffers come from.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// For the fork bookkeeping.
    pub libibverbs: &'static Functions,
    /// The application's, if it has one.
    pub allocator: Option<Allocator>,
}

impl Buf {
    /// At least `len` zeroed bytes, rounded up to whole pages. `len` must not be 0.
    pub fn new(len: usize, source: Source, resource: Resource) -> Result<Self, Errno> {
        let mut buf = match source.allocator {
            None => Self::map(len)?,
            Some(allocator) => Self::ask(len, allocator, resource)?,
        };
        // SAFETY: the range is the memory just got.
        Errno::check(unsafe { (source.libibverbs.dontfork_range)(buf.start.as_ptr().cast(), buf.len) })?;
        buf.fork = Some(source.libibverbs);
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
        Ok(Self { start, len, fork: None, owner: Owner::Kernel })
    }

    /// From the application, unless it leaves it to us.
    fn ask(len: usize, allocator: Allocator, resource: Resource) -> Result<Self, Errno> {
        let len = len.checked_next_multiple_of(PVRDMA_PAGE_SIZE).ok_or(Errno::ENOMEM)?;
        let Some(start) = allocator.alloc(len, PVRDMA_PAGE_SIZE, resource)? else {
            return Self::map(len);
        };
        let buf = Self { start, len, fork: None, owner: Owner::Application(allocator, resource) };
        if start.addr().get() % PVRDMA_PAGE_SIZE != 0 {
            // Dropping gives it back.
            return Err(Errno::EINVAL);
        }
        // SAFETY: `len` bytes that the application has just given us.
        unsafe { start.write_bytes(0, len) };
        Ok(buf)
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
        // SAFETY: inside the memory.
        unsafe { self.start.add(offset) }
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        gone(self.start.as_ptr(), self.len);
        let start = self.start.as_ptr().cast();
        if let Some(libibverbs) = self.fork {
            // SAFETY: the range this Buf announced. A failure leaves a stale note in libibverbs
            // and cannot be acted on.
            unsafe { (libibverbs.dofork_range)(start, self.len) };
        }
        match self.owner {
            Owner::Kernel => {
                // SAFETY: exactly the mapping `map` made, which nobody else owns.
                unsafe { libc::munmap(start, self.len) };
            }
            Owner::Application(allocator, resource) => allocator.free(self.start, resource),
        }
    }
}
