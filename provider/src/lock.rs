//! The lock the verbs hold: a test-and-set spin lock with the data inside.
//!
//! Critical sections are a few dozen instructions, so spinning beats sleeping, and an uncontended
//! pair costs one locked instruction with no call into libc. A waiter yields after a while: with
//! more threads than cores the holder may have lost its core.

use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicBool, Ordering};

/// Tries before a waiter gives its core away.
const SPINS_BEFORE_YIELD: u32 = 1000;

/// A spin lock around `T`.
#[derive(Debug, Default)]
pub struct SpinLock<T> {
    locked: AtomicBool,
    data: UnsafeCell<T>,
}

// SAFETY: the lock hands out the data to one thread at a time.
unsafe impl<T: Send> Sync for SpinLock<T> {}

/// Holds the lock until dropped, also when a panic unwinds.
#[derive(Debug)]
pub struct Guard<'a, T>(&'a SpinLock<T>);

impl<T> SpinLock<T> {
    /// An open lock.
    pub const fn new(data: T) -> Self {
        Self { locked: AtomicBool::new(false), data: UnsafeCell::new(data) }
    }

    /// Wait for the lock and take it.
    #[inline(always)]
    pub fn lock(&self) -> Guard<'_, T> {
        // Acquire: see everything the previous holder wrote before its Release.
        if self.locked.swap(true, Ordering::Acquire) {
            self.wait();
        }
        Guard(self)
    }

    #[cold]
    fn wait(&self) {
        let mut spins = 0;
        loop {
            // Look before trying: a swap would take the cache line away from the holder.
            while self.locked.load(Ordering::Relaxed) {
                spins += 1;
                if spins < SPINS_BEFORE_YIELD {
                    core::hint::spin_loop();
                } else {
                    // Not std's yield_now: a call the compiler cannot see to be free of panics
                    // would give every hot verb a landing pad.
                    //
                    // SAFETY: no preconditions.
                    unsafe { libc::sched_yield() };
                }
            }
            if !self.locked.swap(true, Ordering::Acquire) {
                return;
            }
        }
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: this guard exists, so this thread holds the lock.
        unsafe { &*self.0.data.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above, and `&mut self` makes this the only reference.
        unsafe { &mut *self.0.data.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    #[inline(always)]
    fn drop(&mut self) {
        // Release: hand everything written under the lock to the next holder.
        self.0.locked.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contended_increments_are_not_lost() {
        let lock = SpinLock::new(0u32);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10_000).for_each(|_| *lock.lock() += 1));
            }
        });
        assert_eq!(*lock.lock(), 40_000);
    }

    #[test]
    fn a_panic_under_the_lock_leaves_it_open() {
        let lock = SpinLock::new(());
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _guard = lock.lock();
            std::panic::resume_unwind(Box::new(()));
        }));
        assert!(result.is_err());
        drop(lock.lock());
    }
}
