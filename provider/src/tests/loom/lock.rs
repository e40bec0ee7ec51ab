//! [`crate::support::lock`]: one at a time, and the next sees what the last did.

use super::{both, fails, holds};
use crate::support::lock::SpinLock;
use crate::support::threads::Threads;
use std::rc::Rc;

fn lock(threads: Threads) -> Rc<SpinLock<i32>> {
    // SAFETY: one thread only where that is the mistake to be found.
    Rc::new(unsafe { SpinLock::new(0, threads) })
}

pub fn two_take_a_lock() {
    let lock = lock(Threads::MANY);
    let other = lock.clone();
    both(move || *other.lock() += 1, || *lock.lock() += 1);
    assert_eq!(*lock.lock(), 2);
}

/// Take it as what begins in one call of the application and ends in another does.
fn twice_in_one_hold(lock: &SpinLock<i32>) {
    if !lock.enter_for_long() {
        lock.wait();
    }
    // SAFETY: held.
    unsafe {
        *lock.data() += 1;
        *lock.data() += 1;
        lock.leave();
    }
}

pub fn two_take_a_lock_and_keep_it() {
    let lock = lock(Threads::MANY);
    let other = lock.clone();
    both(move || twice_in_one_hold(&other), || *lock.lock() += 1);
    assert_eq!(*lock.lock(), 3);
}

/// Both have to wait, perhaps, and the one that comes later lets the other go first.
pub fn one_takes_a_lock_again_and_again() {
    let lock = lock(Threads::MANY);
    let other = lock.clone();
    both(move || *other.lock() += 1, || (0..2).for_each(|_| *lock.lock() += 1));
    assert_eq!(*lock.lock(), 3);
}

/// For two threads, a lock that takes their word for being one.
fn two_take_a_lock_for_one() {
    let lock = lock(Threads::ONE);
    let other = lock.clone();
    both(move || *other.lock() += 1, || *lock.lock() += 1);
}

/// A lock that is opened before the last use of what it protects.
fn one_opens_the_lock_too_early() {
    let lock = lock(Threads::MANY);
    let other = lock.clone();
    let early = move || {
        drop(other.lock());
        // SAFETY: a lie.
        unsafe { *other.data() += 1 };
    };
    both(early, || *lock.lock() += 1);
}

#[test]
fn a_lock_is_held_by_one_thread() {
    holds(two_take_a_lock);
    holds(two_take_a_lock_and_keep_it);
    holds(one_takes_a_lock_again_and_again);
}

#[test]
fn without_the_lock_it_would_be_found() {
    assert!(fails(two_take_a_lock_for_one));
    assert!(fails(one_opens_the_lock_too_early));
}
