//! Sizes and counters of a ring, seen from the host's side. [`crate::ring::work_queue`] is our end of send and
//! receive queues, [`crate::ring::cq_ring`] that of completion queues.
//!
//! A ring has a power-of-two number of slots S. Its two counters, `prod_tail` and `cons_head`, run
//! modulo 2S, so that "full" (they differ by S) is not "empty" (they are equal). Each word has one
//! writer. We keep our own counter in private memory and only ever store it to the shared page; the
//! other side's counter is judged every time it is read.

use crate::support::error::Errno;
use crate::support::sync::AtomicU32;
use core::ptr::NonNull;
use pvrdma_ffi::uapi::vmw_pvrdma::{pvrdma_ring, pvrdma_rq_wqe_hdr, pvrdma_sge, pvrdma_sq_wqe_hdr};

/// The shared counter of the other side cannot be right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadCounter;

/// Number of slots: a power of two between 1 and 2^30. Kept as the mask of its counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// 2S - 1.
    counter_mask: u32,
}

impl Size {
    /// Largest size whose counters fit.
    pub const MAX: u32 = 1 << 30;
    /// One slot.
    pub const ONE: Self = Self { counter_mask: 1 };

    /// `None` unless `slots` is a power of two in range.
    pub fn new(slots: u32) -> Option<Self> {
        (slots.is_power_of_two() && slots <= Self::MAX).then(|| Self { counter_mask: 2 * slots - 1 })
    }

    /// The smallest size that holds `slots` entries.
    pub fn at_least(slots: u32) -> Option<Self> {
        Self::new(slots.max(1).checked_next_power_of_two()?)
    }

    /// As a number.
    #[inline(always)]
    pub fn get(self) -> u32 {
        self.slot_mask() + 1
    }

    /// What makes a counter the number of a slot.
    #[inline(always)]
    pub fn slot_mask(self) -> u32 {
        self.counter_mask >> 1
    }

    /// What makes a counter of any number.
    #[inline(always)]
    pub fn counter_mask(self) -> u32 {
        self.counter_mask
    }

    /// `counter`, which has run over.
    #[inline(always)]
    pub fn wrap(self, counter: u32) -> u32 {
        counter & self.counter_mask
    }

    /// Entries between `tail` and `head`, of which `theirs` came from the other side and must be
    /// judged: a valid counter, and no more entries than fit.
    #[inline(always)]
    pub fn used(self, tail: u32, head: u32, theirs: u32) -> Result<u32, BadCounter> {
        let used = self.wrap(tail.wrapping_sub(head));
        // One comparison finds that there is something, and no more than fits: 1..=S.
        if theirs <= self.counter_mask && used.wrapping_sub(1) <= self.slot_mask() {
            return Ok(used);
        }
        if theirs <= self.counter_mask && used == 0 {
            return Ok(0);
        }
        Err(BadCounter)
    }

    /// As [`Size::used`], where neither counter is ours.
    pub fn used_by_others(self, tail: u32, head: u32) -> Result<u32, BadCounter> {
        if self.wrap(head) != head {
            return Err(BadCounter);
        }
        self.used(tail, head, tail)
    }
}

/// Bytes of one send WQE with room for `max_sge` entries: a power of two.
pub fn send_stride(max_sge: u32) -> Option<usize> {
    stride(size_of::<pvrdma_sq_wqe_hdr>(), max_sge)
}

/// Bytes of one receive WQE with room for `max_sge` entries: a power of two.
pub fn recv_stride(max_sge: u32) -> Option<usize> {
    stride(size_of::<pvrdma_rq_wqe_hdr>(), max_sge)
}

fn stride(header: usize, max_sge: u32) -> Option<usize> {
    let sges = (max_sge as usize).checked_mul(size_of::<pvrdma_sge>())?;
    header.checked_add(sges)?.checked_next_power_of_two()
}

/// Shape of one ring of work requests.
#[derive(Clone, Copy, Debug)]
pub struct QueueShape {
    /// Slots.
    pub size: Size,
    /// Longest SGL.
    pub max_sge: u32,
    /// Bytes of a slot.
    pub stride: usize,
}

impl QueueShape {
    /// What to build for `max_wr` requests of `max_sge` entries, where `limits` are the most of
    /// both.
    pub fn new(
        (max_wr, max_sge): (u32, u32),
        limits: (u32, u32),
        stride: fn(u32) -> Option<usize>,
    ) -> Result<Self, Errno> {
        if max_wr > limits.0 || max_sge > limits.1 {
            return Err(Errno::EINVAL);
        }
        let max_sge = max_sge.max(1);
        Ok(Self {
            size: Size::at_least(max_wr).ok_or(Errno::EINVAL)?,
            max_sge,
            stride: stride(max_sge).ok_or(Errno::EINVAL)?,
        })
    }

    /// Bytes of all slots.
    pub fn bytes(self) -> Result<usize, Errno> {
        (self.size.get() as usize).checked_mul(self.stride).ok_or(Errno::EINVAL)
    }
}

/// The two shared words of one ring.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Words(NonNull<pvrdma_ring>);

impl Words {
    /// # Safety
    /// `words` must be aligned and stay valid as long as this is used.
    pub unsafe fn new(words: NonNull<pvrdma_ring>) -> Self {
        Self(words)
    }

    /// Where they are: `prod_tail`, `cons_head`.
    pub fn at(&self) -> (*mut u32, *mut u32) {
        let words = self.0.as_ptr();
        // SAFETY: inside the words (promise of `new`).
        unsafe { (&raw mut (*words).prod_tail, &raw mut (*words).cons_head) }
    }

    /// Moved by whoever fills slots.
    #[inline(always)]
    pub fn prod_tail(&self) -> &AtomicU32 {
        // SAFETY: the words are aligned, inside a ring buffer that outlives its queue, and only
        // ever accessed as atomics (here) or as aligned words (by the device).
        unsafe { AtomicU32::from_ptr(&raw mut (*self.0.as_ptr()).prod_tail) }
    }

    /// Moved by whoever empties them.
    #[inline(always)]
    pub fn cons_head(&self) -> &AtomicU32 {
        // SAFETY: as above.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.0.as_ptr()).cons_head) }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn size(slots: u32) -> Size {
        Size::new(slots).unwrap()
    }

    #[test]
    fn only_powers_of_two_are_sizes() {
        assert_eq!(Size::new(0), None);
        assert_eq!(Size::new(3), None);
        assert_eq!(Size::new(1 << 31), None);
        assert_eq!(size(1 << 30).get(), 1 << 30);
    }

    #[test]
    fn rounding_up_never_loops_or_wraps() {
        assert_eq!(Size::at_least(0), Size::new(1));
        assert_eq!(Size::at_least(5), Size::new(8));
        assert_eq!(Size::at_least(1 << 30), Size::new(1 << 30));
        assert_eq!(Size::at_least((1 << 30) + 1), None);
        assert_eq!(Size::at_least(u32::MAX), None);
    }

    #[test]
    fn what_is_used_is_judged() {
        let size = size(4);
        for (tail, head, used) in [(0, 0, Ok(0)), (4, 0, Ok(4)), (1, 6, Ok(3)), (3, 3, Ok(0))] {
            assert_eq!(size.used(tail, head, tail), used, "{tail} after {head}");
        }
        for bad in [5, 8, u32::MAX] {
            assert_eq!(size.used(bad, 0, bad), Err(BadCounter), "tail {bad}");
            assert_eq!(size.used(4, bad, bad), if bad == 5 { Err(BadCounter) } else { size.used(4, bad, bad) });
        }
    }
}
