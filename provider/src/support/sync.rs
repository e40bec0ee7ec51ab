//! Where threads meet: atomics, the cell inside a lock, waiting, the doorbell. The rest of
//! the provider takes these from here and not from core.
//!
//! In the product they are core's, and the functions below are one instruction or none. In tests
//! built with `--cfg loom` they are those of `loom.rs`, and loom runs the very code that the
//! product is made of through the interleavings of its threads.

#[cfg(all(loom, test))]
pub use crate::tests::loom::shadow::{
    AtomicBool, AtomicU32, AtomicU64, UnsafeCell, gone, own_slot, spin_loop, store_doorbell, take, yield_core,
    yield_now,
};

pub use core::sync::atomic::Ordering;

#[cfg(not(all(loom, test)))]
pub use product::*;

#[cfg(not(all(loom, test)))]
mod product {
    pub use crate::support::doorbell::store_doorbell;
    pub use core::cell::UnsafeCell;
    pub use core::hint::spin_loop;
    use core::sync::atomic::Ordering;
    pub use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
    pub use std::thread::yield_now;

    /// Give the core away. Not std's `yield_now`: a call the compiler cannot see to be free of panics
    /// would give every hot verb a landing pad.
    pub fn yield_core() {
        // SAFETY: no preconditions.
        unsafe { libc::sched_yield() };
    }

    /// Set a lock's word. False: it was set.
    #[inline(always)]
    pub fn take(word: &AtomicU32) -> bool {
        // Of the forms of this the compiler makes `lock bts` of this one, two instructions less than a swap.
        word.fetch_or(1, Ordering::Acquire) & 1 == 0
    }

    /// Whoever calls is about to read or write the slot at `at`. Nothing, but for loom.
    #[inline(always)]
    pub fn own_slot<T>(_at: *const T) {}

    /// What was in these bytes is no more. Nothing, but for loom.
    #[inline(always)]
    pub fn gone(_start: *const u8, _len: usize) {}
}
