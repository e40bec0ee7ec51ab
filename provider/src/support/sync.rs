//! Where threads meet: atomics, the cell inside a lock, waiting, the clock, the doorbell. The rest of
//! the provider takes these from here and not from core.
//!
//! In the product they are core's, and the functions below are one instruction or none. In tests
//! built with `--cfg loom` they are those of `loom.rs`, and loom runs the very code that the
//! product is made of through the interleavings of its threads.

#[cfg(all(loom, test))]
pub use crate::tests::loom::shadow::{
    AtomicBool, AtomicU32, AtomicU64, UnsafeCell, cycles, gone, own_slot, spin_loop, store_doorbell, yield_core,
    yield_now,
};

pub use core::sync::atomic::Ordering;

#[cfg(not(all(loom, test)))]
pub use product::*;

#[cfg(not(all(loom, test)))]
mod product {
    pub use core::cell::UnsafeCell;
    pub use core::hint::spin_loop;
    pub use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
    pub use std::thread::yield_now;

    /// Give the core away. Not std's `yield_now`: a call the compiler cannot see to be free of panics
    /// would give every hot verb a landing pad.
    pub fn yield_core() {
        // SAFETY: no preconditions.
        unsafe { libc::sched_yield() };
    }

    /// The processor's clock: its low half, which is one register and two instructions less. It
    /// wraps within seconds; a poll that takes a time long past for a recent one misses one doorbell.
    #[inline(always)]
    pub fn cycles() -> u32 {
        // SAFETY: every x86-64 processor has it.
        unsafe { core::arch::x86_64::_rdtsc() as u32 }
    }

    /// One store to a register of the doorbell page.
    ///
    /// # Safety
    /// `at` must be valid for the write.
    #[inline(always)]
    pub unsafe fn store_doorbell(at: *mut u32, value: u32) {
        // SAFETY: promise of the caller.
        unsafe { at.write_volatile(value) }
    }

    /// Whoever calls is about to read or write the slot at `at`. Nothing, but for loom.
    #[inline(always)]
    pub fn own_slot<T>(_at: *const T) {}

    /// What was in these bytes is no more. Nothing, but for loom.
    #[inline(always)]
    pub fn gone(_start: *const u8, _len: usize) {}
}
