//! [`crate::support::lock`]: one at a time, and the next sees what the last did.

use super::{both, fails, holds};
use crate::support::lock::SpinLock;
use std::rc::Rc;

pub fn two_take_a_lock() {
    let lock = Rc::new(SpinLock::new(0));
    let other = lock.clone();
    both(move || *other.lock() += 1, || *lock.lock() += 1);
    assert_eq!(*lock.lock(), 2);
}

pub fn two_take_a_lock_and_keep_it() {
    let lock = Rc::new(SpinLock::new(0));
    let other = lock.clone();
    both(
        move || {
            // SAFETY: opened below.
            unsafe {
                other.lock_on();
                *other.held() += 1;
                *other.held() += 1;
                other.unlock();
            }
        },
        || *lock.lock() += 1,
    );
    assert_eq!(*lock.lock(), 3);
}

/// For two threads, a lock that takes their word for being one.
fn two_take_a_lock_for_one() {
    // SAFETY: a lie.
    let lock = Rc::new(unsafe { SpinLock::single_threaded(0, true) });
    let other = lock.clone();
    both(move || *other.lock() += 1, || *lock.lock() += 1);
}

#[test]
fn a_lock_is_held_by_one_thread() {
    holds(two_take_a_lock);
    holds(two_take_a_lock_and_keep_it);
}

#[test]
fn without_the_lock_it_would_be_found() {
    assert!(fails(two_take_a_lock_for_one));
}
