//! The doorbell (UAR) page of a context: three write-only 32-bit registers.
//!
//! A doorbell is an edge, not a value, and each store counts: it must be one plain 32-bit MOV with
//! its value in a register or an immediate. (A device that traps stores decodes that instruction,
//! and a wider store would ring two bells.) `support/doorbell.rs` has that MOV, and declares
//! where it is.

use crate::support::error::Errno;
use crate::support::sync::store_doorbell;
use core::ffi::c_int;
use core::ptr::{self, NonNull};
use pvrdma_ffi::uapi::vmw_pvrdma::*;

/// Pointer to a mapped doorbell page. Copies are handed to the objects of the context, which by
/// the rules of verbs are gone before the context is.
#[derive(Clone, Copy, Debug)]
pub struct Uar(NonNull<u32>);

// SAFETY: the page is made for stores from any number of threads; a store is one instruction and
// needs no lock.
unsafe impl Send for Uar {}
// SAFETY: as above.
unsafe impl Sync for Uar {}

/// Which completions `req_notify_cq` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arm {
    /// The next one.
    Any,
    /// The next one of a solicited message or with an error.
    Solicited,
}

impl Uar {
    /// Map the page of the context behind `cmd_fd`. The kernel ignores the offset: each open file
    /// has one page.
    pub fn map(cmd_fd: c_int) -> Result<Self, Errno> {
        // SAFETY: a fresh mapping of a whole page, at an address the kernel chooses.
        let page =
            unsafe { libc::mmap(ptr::null_mut(), PVRDMA_PAGE_SIZE, libc::PROT_WRITE, libc::MAP_SHARED, cmd_fd, 0) };
        if page == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        NonNull::new(page.cast()).map(Self).ok_or(Errno::EIO)
    }

    /// Unmap the page.
    ///
    /// # Safety
    /// No copy of this `Uar` may be used afterwards, and it must come from [`Uar::map`].
    pub unsafe fn unmap(self) {
        // SAFETY: exactly the mapping `map` made; the caller promises that nobody uses it any more.
        unsafe { libc::munmap(self.0.as_ptr().cast(), PVRDMA_PAGE_SIZE) };
    }

    /// A page that is ordinary memory.
    ///
    /// # Safety
    /// `page` must point to three aligned words that stay valid as long as any copy is used.
    #[cfg(any(test, feature = "test-utils"))]
    pub unsafe fn from_page(page: NonNull<u32>) -> Self {
        Self(page)
    }

    /// Where it is.
    pub fn at(self) -> *mut u32 {
        self.0.as_ptr()
    }

    /// One of the registers.
    fn register(self, offset: usize) -> Register {
        // SAFETY: `offset` is one of the three register offsets, inside the mapped page.
        Register(unsafe { self.0.byte_add(offset) })
    }

    /// For send and receive queues.
    pub fn qp(self) -> Register {
        self.register(PVRDMA_UAR_QP_OFFSET)
    }

    /// For completion queues.
    pub fn cq(self) -> Register {
        self.register(PVRDMA_UAR_CQ_OFFSET)
    }

    /// For shared receive queues.
    pub fn srq(self) -> Register {
        self.register(PVRDMA_UAR_SRQ_OFFSET)
    }
}

/// One register of a doorbell page. As with [`Uar`], copies are gone before the page is.
#[derive(Clone, Copy, Debug)]
pub struct Register(NonNull<u32>);

impl Register {
    /// Where it is.
    pub fn at(self) -> *mut u32 {
        self.0.as_ptr()
    }

    /// Ring: `bell` is one of the values below.
    #[inline(always)]
    pub fn ring(self, bell: u32) {
        // SAFETY: a register of the mapped page, which outlives every object that holds a copy of `self`.
        unsafe { store_doorbell(self.0.as_ptr(), bell) }
    }
}

/// New entries in a send queue.
pub fn send_bell(qp_handle: u32) -> u32 {
    PVRDMA_UAR_QP_SEND | qp_handle
}

/// New entries in a receive queue.
pub fn recv_bell(qp_handle: u32) -> u32 {
    PVRDMA_UAR_QP_RECV | qp_handle
}

/// New entries in a shared receive queue.
pub fn srq_bell(srqn: u32) -> u32 {
    PVRDMA_UAR_SRQ_RECV | srqn
}

/// Please put pending completions into the CQ now.
pub fn poll_bell(cqn: u32) -> u32 {
    PVRDMA_UAR_CQ_POLL | cqn
}

/// Notify me once.
#[inline(always)]
pub fn arm_bell(cqn: u32, arm: Arm) -> u32 {
    let kind = match arm {
        Arm::Any => PVRDMA_UAR_CQ_ARM,
        Arm::Solicited => PVRDMA_UAR_CQ_ARM_SOL,
    };
    kind | cqn
}
