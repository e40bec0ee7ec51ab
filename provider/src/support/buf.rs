//! Memory that is shared with the device: whole zeroed pages, given back when dropped. Mapped here,
//! or by the application, if a parent domain says so.

use crate::support::error::Errno;
use crate::support::sync::gone;
use core::ffi::c_void;
use core::ptr::{self, NonNull};
use pvrdma_ffi::pabi::Functions;
use pvrdma_ffi::uapi::ib_user_ioctl::RDMA_DRIVER_VMW_PVRDMA;
use pvrdma_ffi::uapi::vmw_pvrdma::PVRDMA_PAGE_SIZE;
use pvrdma_ffi::verbs::{ParentDomainAlloc, ParentDomainFree, ibv_pd};

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

/// The application's memory for queues.
#[derive(Clone, Copy, Debug)]
pub struct Allocator {
    /// Its functions.
    pub alloc: ParentDomainAlloc,
    /// See `alloc`.
    pub free: ParentDomainFree,
    /// For both.
    pub pd: *mut ibv_pd,
    /// For both.
    pub pd_context: *mut c_void,
}

/// What memory is for; the application's allocator is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Send queue of a QP.
    SendQueue = 1,
    /// Receive queue of a QP.
    RecvQueue = 2,
    /// Shared receive queue.
    Srq = 3,
    /// Completion queue.
    Cq = 4,
    /// Inline data of a QP.
    Inline = 5,
}

impl Resource {
    /// As `resource_type`: the driver in the upper half, as other providers have it.
    fn number(self) -> u64 {
        u64::from(RDMA_DRIVER_VMW_PVRDMA) << 32 | self as u64
    }
}

/// `IBV_ALLOCATOR_USE_DEFAULT`.
const USE_DEFAULT: *mut c_void = ptr::without_provenance_mut(usize::MAX);

impl Allocator {
    /// `None`: the application leaves it to us.
    pub fn alloc(&self, len: usize, align: usize, resource: Resource) -> Result<Option<NonNull<u8>>, Errno> {
        // SAFETY: the application's function, with what it gave for it.
        let start = unsafe { (self.alloc)(self.pd, self.pd_context, len, align, resource.number()) };
        if start == USE_DEFAULT {
            return Ok(None);
        }
        NonNull::new(start.cast()).map(Some).ok_or(Errno::ENOMEM)
    }

    /// Give back what [`Allocator::alloc`] gave.
    pub fn free(&self, start: NonNull<u8>, resource: Resource) {
        // SAFETY: as above.
        unsafe { (self.free)(self.pd, self.pd_context, start.as_ptr().cast(), resource.number()) };
    }
}
