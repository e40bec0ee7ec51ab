//! The lock the verbs hold: a spin lock with the data inside.
//!
//! Critical sections are a few dozen instructions and at most one doorbell, so spinning beats sleeping. (Longer are
//! those the application makes: from `ibv_wr_start` to its end, and from `ibv_start_poll` to `ibv_end_poll`.) Where
//! there is one thread ([`Threads`]) taking the lock is one comparison, and an uncontended pair is one locked
//! instruction otherwise, with no call into libc.
//!
//! A thread that polls in a loop keeps nobody out: it would take a plain spin lock again before any other
//! processor sees it open. So who waits is counted, and who comes later lets those go first, for
//! a bounded while: one of them may have lost its core. A waiter too gives its core away after a time, since
//! with more threads than cores the holder may have lost its own.

use crate::support::sync::{AtomicU32, Ordering, UnsafeCell, spin_loop, take, yield_core};
use crate::support::threads::Threads;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};

/// Looks before a waiter gives its core away.
const SPINS_BEFORE_YIELD: u32 = 1000;

/// Looks, then yields, in which a newcomer lets those go first who wait already.
const COURTESY: (u32, u32) = if cfg!(all(loom, test)) { (0, 1) } else { (200, 8) };

/// A spin lock around `T`. In this order, so that the lock and what it protects share a cache line, with
/// nobody else; and at the beginning of two lines that processors fetch together.
#[derive(Debug)]
#[repr(C, align(128))]
pub struct SpinLock<T> {
    /// 0 or 1.
    held: AtomicU32,
    /// Threads in [`SpinLock::wait`].
    waiting: AtomicU32,
    threads: Threads,
    data: UnsafeCell<T>,
}

// SAFETY: the lock hands out the data to one thread at a time; where it does not, there is but one
// (promise of `new`).
unsafe impl<T: Send> Sync for SpinLock<T> {}

/// Holds the lock until dropped, also when a panic unwinds.
#[derive(Debug)]
pub struct Guard<'a, T> {
    lock: &'a SpinLock<T>,
    /// Does this thread hold it already, for long? Then it stays shut.
    is_nested: bool,
    /// Neither Send nor Sync, as the guard of a lock.
    of_one_thread: PhantomData<*const ()>,
}

impl<T> SpinLock<T> {
    /// Where in it the data are.
    pub const DATA_AT: usize = core::mem::offset_of!(Self, data);

    /// An open lock.
    ///
    /// # Safety
    /// While `threads` are one, no two threads may use the lock at the same time.
    pub const unsafe fn new(data: T, threads: Threads) -> Self {
        Self { held: AtomicU32::new(0), waiting: AtomicU32::new(0), threads, data: UnsafeCell::new(data) }
    }

    /// Take the lock if it is open and nobody waits for it, for a section in which the application does
    /// not run. False: [`SpinLock::wait`] for it. [`SpinLock::leave`] opens it.
    #[inline(always)]
    pub fn enter(&self) -> bool {
        // Acquire, in `take`: see everything the previous holder wrote before its Release.
        self.threads.are_one() || self.waiting.load(Ordering::Relaxed) == 0 && take(&self.held)
    }

    /// As [`SpinLock::enter`], for a section in which the application runs: it may make its second thread
    /// there, so the lock is really taken.
    #[inline(always)]
    pub fn enter_for_long(&self) -> bool {
        self.enter_alone_for_long() || self.waiting.load(Ordering::Relaxed) == 0 && take(&self.held)
    }

    /// The part of [`SpinLock::enter_for_long`] for one thread. False: there are more, or the lock is taken.
    #[inline(always)]
    pub fn enter_alone_for_long(&self) -> bool {
        // SAFETY: a word of ours, and nobody else is there to change it. Not as an atomic: so it is an operand.
        if !self.threads.are_one() || unsafe { *self.held.as_ptr() } != 0 {
            return false;
        }
        self.held.store(1, Ordering::Relaxed);
        true
    }

    /// What [`SpinLock::enter`] could not have at once.
    #[cold]
    #[inline(never)]
    pub fn wait(&self) {
        let (spins, yields) = COURTESY;
        let mut patience = spins + yields;
        while patience > 0 && self.waiting.load(Ordering::Relaxed) != 0 {
            patience -= 1;
            if patience >= yields { spin_loop() } else { yield_core() }
        }
        // Relaxed: it orders nothing, it asks a favour.
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let mut spins = 0;
        loop {
            // Look before trying: to try would take the cache line away from the holder.
            while self.held.load(Ordering::Relaxed) != 0 {
                spins += 1;
                if spins < SPINS_BEFORE_YIELD { spin_loop() } else { yield_core() }
            }
            if take(&self.held) {
                break;
            }
        }
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }

    /// Open the lock.
    ///
    /// # Safety
    /// The caller must hold it.
    #[inline(always)]
    pub unsafe fn leave(&self) {
        // Release: hand everything written under the lock to the next holder.
        self.held.store(0, Ordering::Release);
    }

    /// The data, for whoever holds the lock: the hot verbs, which want single fields and no reference.
    #[inline(always)]
    pub fn data(&self) -> *mut T {
        self.data.get()
    }

    /// The data, for a look at what never changes.
    #[inline(always)]
    pub fn unlocked(&self) -> *const T {
        // Not `get`, which loom takes for a use of all of it.
        (&raw const self.data).cast()
    }

    /// Wait for the lock and take it.
    #[inline(always)]
    pub fn lock(&self) -> Guard<'_, T> {
        // One thread that is between the begin and the end of a batch would wait for itself.
        let is_nested = self.threads.are_one() && self.held.load(Ordering::Relaxed) != 0;
        if !self.enter() {
            self.wait();
        }
        Guard { lock: self, is_nested, of_one_thread: PhantomData }
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: this guard exists, so this thread holds the lock.
        unsafe { &*self.lock.data.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above, and `&mut self` makes this the only reference.
        unsafe { &mut *self.lock.data.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    #[inline(always)]
    fn drop(&mut self) {
        if !self.is_nested {
            // SAFETY: the guard held it.
            unsafe { self.lock.leave() };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A lock that many threads may use.
    fn lock<T>(data: T) -> SpinLock<T> {
        // SAFETY: never one thread, says this.
        unsafe { SpinLock::new(data, Threads::MANY) }
    }

    #[test]
    fn contended_increments_are_not_lost() {
        let lock = lock(0u32);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10_000).for_each(|_| *lock.lock() += 1));
            }
        });
        assert_eq!(*lock.lock(), 40_000);
        assert_eq!(lock.waiting.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_lock_held_over_calls_keeps_others_out_until_it_is_opened() {
        for threads in [Threads::ONE, Threads::MANY] {
            // SAFETY: one thread.
            let lock = unsafe { SpinLock::new(0, threads) };
            assert!(lock.enter_for_long());
            // Whoever comes now, a second thread of the application for one, finds it shut.
            assert!(!take(&lock.held));
            assert!(!lock.enter_for_long());
            if threads.are_one() {
                // The one thread itself comes in, and leaves it shut.
                *lock.lock() = 0;
                assert!(!take(&lock.held));
            }
            // SAFETY: held.
            unsafe { lock.leave() };
            assert_eq!(*lock.lock(), 0);
        }
    }

    #[test]
    fn a_lone_thread_takes_no_lock() {
        // SAFETY: one thread.
        let lock = unsafe { SpinLock::new(0, Threads::ONE) };
        let mut guard = lock.lock();
        *guard += 1;
        assert_eq!(lock.held.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn who_waits_goes_before_who_comes() {
        let lock = lock(());
        lock.waiting.store(1, Ordering::Relaxed);
        assert!(!lock.enter(), "open, but somebody waits");
        // That one never comes: it has lost its core, say. So the courtesy ends.
        drop(lock.lock());
        assert_eq!(lock.waiting.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_panic_under_the_lock_leaves_it_open() {
        let lock = lock(());
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _guard = lock.lock();
            std::panic::resume_unwind(Box::new(()));
        }));
        assert!(result.is_err());
        drop(lock.lock());
    }
}
