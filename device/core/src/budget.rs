//! What a guest may make the device hold: bytes claimed when an object is made, given back when it is destroyed.
//!
//! Called by the create commands in `device/commands.rs` (before they allocate) and by `objects/table.rs` (when an
//! object leaves). A guest names sizes with a few words: a page directory of 2 MiB behind one MR, rings of 32768 QPs.
//! Each such word is paid for here, so one number bounds what the device holds for it, whatever it asks for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The limit of a device unless its front sets another: 512 MiB. That is the page lists of 256 GiB of registered memory
/// (8 bytes for each 4 KiB page), or every QP of the device with its work lists, 128 MiB aside for the rest. A limit,
/// not a reservation: an idle guest costs a few kilobytes.
pub const DEFAULT_MEMORY_LIMIT: u64 = 512 << 20;

/// Bytes of a page in a page list.
const PAGE_ENTRY: u64 = size_of::<crate::memory::DmaAddr>() as u64;

/// Bytes beside the object itself: the allocator's own, the counts of an `Arc`, a place in a table that grew.
const OVERHEAD: u64 = 64;

/// The bytes that are left to one device.
#[derive(Debug)]
pub struct Budget {
    left: AtomicU64,
}

/// Bytes claimed for an object that is being made. Given back when dropped, unless kept.
#[derive(Debug)]
pub struct Claim {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Budget {
    /// A budget of `bytes`.
    pub fn new(bytes: u64) -> Arc<Budget> {
        Arc::new(Budget { left: AtomicU64::new(bytes) })
    }

    /// Claims room for a `T`, for `extra` bytes that hang on it and for a list of `pages` pages; `None` if there is not
    /// so much left.
    pub fn claim<T>(self: &Arc<Budget>, extra: u64, pages: u64) -> Option<Claim> {
        let pages = pages.checked_mul(PAGE_ENTRY)?;
        let bytes = pages.checked_add(extra)?.checked_add(size_of::<T>() as u64 + OVERHEAD)?;
        // Relaxed: a count, which nothing else is read by.
        let claimed = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes));
        claimed.ok().map(|_| Claim { budget: self.clone(), bytes })
    }

    /// Takes back what `Claim::keep` said.
    pub fn give_back(&self, bytes: u64) {
        self.left.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes that can still be claimed.
    pub fn left(&self) -> u64 {
        self.left.load(Ordering::Relaxed)
    }
}

impl Claim {
    /// The object exists: whoever keeps it gives these bytes back with it.
    #[must_use]
    pub fn keep(mut self) -> u64 {
        std::mem::take(&mut self.bytes)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_claimed_is_gone_until_it_is_given_back() {
        let budget = Budget::new(10_000);
        let one = budget.claim::<u64>(100, 3).unwrap();
        let cost = 100 + 3 * 8 + 8 + OVERHEAD;
        assert_eq!(budget.left(), 10_000 - cost);
        drop(one);
        assert_eq!(budget.left(), 10_000, "not made, not paid");
        let kept = budget.claim::<u64>(100, 3).unwrap().keep();
        assert_eq!((kept, budget.left()), (cost, 10_000 - cost));
        budget.give_back(kept);
        assert_eq!(budget.left(), 10_000);
    }

    #[test]
    fn the_last_byte_can_be_had_and_not_one_more() {
        let budget = Budget::new(OVERHEAD + 8);
        assert!(budget.claim::<u64>(1, 0).is_none());
        let all = budget.claim::<u64>(0, 0).unwrap();
        assert_eq!(budget.left(), 0);
        assert!(budget.claim::<()>(0, 0).is_none());
        drop(all);
        assert!(budget.claim::<()>(u64::MAX, 0).is_none(), "a sum that overflows");
        assert!(budget.claim::<()>(0, u64::MAX).is_none());
        assert_eq!(budget.left(), OVERHEAD + 8);
    }
}
