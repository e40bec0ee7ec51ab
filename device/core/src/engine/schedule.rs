//! Which QPs want to run, and when.

use crate::handle::QpHandle;
use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Runnable QPs and timers of one device.
#[derive(Debug, Default)]
pub struct Schedule {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    runnable: BTreeSet<QpHandle>,
    timers: BinaryHeap<Reverse<(Instant, QpHandle)>>,
}

impl Schedule {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `qp` has work that its present stack cannot do.
    pub fn run_soon(&self, qp: QpHandle) {
        self.lock().runnable.insert(qp);
    }

    /// `qp` is to run at `when`. Returns whether that is earlier than all timers before it.
    pub fn run_at(&self, qp: QpHandle, when: Instant) -> bool {
        let mut inner = self.lock();
        let earliest = inner.timers.peek().is_none_or(|Reverse((first, _))| when < *first);
        inner.timers.push(Reverse((when, qp)));
        earliest
    }

    /// A QP that should run now.
    pub fn next(&self, now: Instant) -> Option<QpHandle> {
        let mut inner = self.lock();
        if let Some(qp) = inner.runnable.pop_first() {
            return Some(qp);
        }
        let due = inner.timers.peek().is_some_and(|Reverse((when, _))| *when <= now);
        if due { inner.timers.pop().map(|Reverse((_, qp))| qp) } else { None }
    }

    /// When `next` will have something, if no one adds to it.
    pub fn deadline(&self) -> Option<Instant> {
        self.lock().timers.peek().map(|Reverse((when, _))| *when)
    }

    /// Forgets everything.
    pub fn clear(&self) {
        let mut inner = self.lock();
        inner.runnable.clear();
        inner.timers.clear();
    }
}
