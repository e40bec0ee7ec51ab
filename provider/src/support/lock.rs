//! The lock the verbs hold: a test-and-set spin lock with the data inside.
//!
//! Critical sections are a few dozen instructions, so spinning beats sleeping, and an uncontended
//! pair costs one locked instruction with no call into libc. A waiter yields after a while: with
//! more threads than cores the holder may have lost its core.
//!
//! An object that its application keeps to one thread (a thread domain, a single-threaded CQ) has
//! a lock that nobody takes: [`SpinLock::single_threaded`].

use crate::support::sync::{AtomicBool, Ordering, UnsafeCell, spin_loop, yield_core};
use core::ops::{Deref, DerefMut};

/// Tries before a waiter gives its core away.
const SPINS_BEFORE_YIELD: u32 = 1000;

/// A spin lock around `T`.
#[derive(Debug, Default)]
pub struct SpinLock<T> {
    data: UnsafeCell<T>,
    locked: AtomicBool,
    /// Is there but one thread? Then the atomic instruction is saved.
    single_threaded: bool,
}

// SAFETY: the lock hands out the data to one thread at a time; where it does not, there is but one
// (promise of `single_threaded`).
unsafe impl<T: Send> Sync for SpinLock<T> {}

/// Holds the lock until dropped, also when a panic unwinds.
#[derive(Debug)]
pub struct Guard<'a, T>(&'a SpinLock<T>);

impl<T> SpinLock<T> {
    /// An open lock.
    pub const fn new(data: T) -> Self {
        Self { data: UnsafeCell::new(data), locked: AtomicBool::new(false), single_threaded: false }
    }

    /// A lock for one thread at a time: taking it costs a comparison.
    ///
    /// # Safety
    /// With `single_threaded`, no two threads may hold it at the same time.
    pub const unsafe fn single_threaded(data: T, single_threaded: bool) -> Self {
        Self { data: UnsafeCell::new(data), locked: AtomicBool::new(false), single_threaded }
    }

    /// Wait for the lock and take it.
    #[inline(always)]
    pub fn lock(&self) -> Guard<'_, T> {
        // Acquire: see everything the previous holder wrote before its Release.
        if !self.single_threaded && self.locked.swap(true, Ordering::Acquire) {
            self.wait();
        }
        Guard(self)
    }

    /// Take the lock and keep it when this call returns: for what begins in one call of the
    /// application and ends in another.
    ///
    /// # Safety
    /// A call of [`SpinLock::unlock`] must follow.
    #[inline(always)]
    pub unsafe fn lock_on(&self) {
        core::mem::forget(self.lock());
    }

    /// The data, for the holder of [`SpinLock::lock_on`].
    ///
    /// # Safety
    /// The caller must hold the lock and use one guard at a time.
    #[inline(always)]
    pub unsafe fn held(&self) -> Held<'_, T> {
        Held(self)
    }

    /// End what [`SpinLock::lock_on`] began.
    ///
    /// # Safety
    /// The caller must hold the lock.
    #[inline(always)]
    pub unsafe fn unlock(&self) {
        drop(Guard(self));
    }

    #[cold]
    fn wait(&self) {
        let mut spins = 0;
        loop {
            // Look before trying: a swap would take the cache line away from the holder.
            while self.locked.load(Ordering::Relaxed) {
                spins += 1;
                if spins < SPINS_BEFORE_YIELD {
                    spin_loop();
                } else {
                    yield_core();
                }
            }
            if !self.locked.swap(true, Ordering::Acquire) {
                return;
            }
        }
    }
}

/// As [`Guard`], without opening the lock when dropped.
#[derive(Debug)]
pub struct Held<'a, T>(&'a SpinLock<T>);

impl<T> Deref for Held<'_, T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: the lock is held (promise of `held`).
        unsafe { &*self.0.data.get() }
    }
}

impl<T> DerefMut for Held<'_, T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above, and there is one such guard at a time.
        unsafe { &mut *self.0.data.get() }
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
    fn a_lock_held_over_calls_keeps_others_out_until_it_is_opened() {
        let lock = SpinLock::new(0);
        // SAFETY: one thread; opened below.
        unsafe {
            lock.lock_on();
            *lock.held() += 1;
            assert!(lock.locked.load(Ordering::Relaxed));
            lock.unlock();
        }
        assert_eq!(*lock.lock(), 1);
    }

    #[test]
    fn a_lone_thread_takes_no_lock() {
        // SAFETY: one thread.
        let lock = unsafe { SpinLock::single_threaded(0, true) };
        let mut guard = lock.lock();
        *guard += 1;
        assert!(!lock.locked.load(Ordering::Relaxed));
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
