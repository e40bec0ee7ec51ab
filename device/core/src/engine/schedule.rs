//! Which QPs want to run, and when.

use crate::handle::QpHandle;
use std::collections::{BTreeSet, HashMap};
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Runnable QPs and timers of one device.
#[derive(Debug, Default)]
pub struct Schedule {
    inner: Mutex<Inner>,
    /// How often there was room for those who wait for it.
    rooms: AtomicU64,
}

#[derive(Debug, Default)]
struct Inner {
    runnable: BTreeSet<QpHandle>,
    /// Found no room at the transport.
    waiting: BTreeSet<QpHandle>,
    /// Ran last; the next one comes after it, so that a QP which always has work does not keep the others from theirs.
    last: QpHandle,
    /// In order of time; one for each QP in `due`.
    timers: BTreeSet<(Instant, QpHandle)>,
    /// One timer for each QP: a guest that rings during a wait must not make this grow.
    due: HashMap<QpHandle, Instant>,
}

impl Schedule {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `qp` has work that its present stack cannot do.
    pub fn run_soon(&self, qp: QpHandle) {
        self.lock().runnable.insert(qp);
    }

    /// How often `room` was called.
    pub fn rooms(&self) -> u64 {
        self.rooms.load(Ordering::Acquire)
    }

    /// `qp` found no room after there had been some `rooms` times; it is runnable when there is. Returns whether that
    /// is now, since `room` may have been called in between.
    pub fn wait_for_room(&self, qp: QpHandle, rooms: u64) -> bool {
        let mut inner = self.lock();
        let came = self.rooms() != rooms;
        if came {
            inner.runnable.insert(qp)
        } else {
            inner.waiting.insert(qp)
        };
        came
    }

    /// There is room: those who wait for it are runnable. Returns whether there is any.
    pub fn room(&self) -> bool {
        let mut inner = self.lock();
        // With the lock held, so that nobody begins to wait in between. Release: whoever sees it finds the room.
        self.rooms.fetch_add(1, Ordering::Release);
        let mut waiting = std::mem::take(&mut inner.waiting);
        let any = !waiting.is_empty();
        inner.runnable.append(&mut waiting);
        any
    }

    /// `qp` is to run at `when` or before. Returns whether that is earlier than all timers before it.
    ///
    /// A QP says anew what it waits for each time it runs, so an earlier timer may stand in for a later one.
    pub fn run_at(&self, qp: QpHandle, when: Instant) -> bool {
        let mut inner = self.lock();
        if let Some(&before) = inner.due.get(&qp) {
            if before <= when {
                return false;
            }
            inner.timers.remove(&(before, qp));
        }
        inner.due.insert(qp, when);
        inner.timers.insert((when, qp));
        inner.timers.first() == Some(&(when, qp))
    }

    /// A QP that should run now.
    pub fn next(&self, now: Instant) -> Option<QpHandle> {
        let mut inner = self.lock();
        while let Some(&(_, qp)) = inner.timers.first().filter(|(when, _)| *when <= now) {
            inner.timers.pop_first();
            inner.due.remove(&qp);
            inner.runnable.insert(qp);
        }
        let after = inner.runnable.range((Excluded(inner.last), Unbounded)).next();
        let qp = *after.or_else(|| inner.runnable.first())?;
        inner.runnable.remove(&qp);
        inner.last = qp;
        Some(qp)
    }

    /// When `next` will have something, if no one adds to it.
    pub fn deadline(&self) -> Option<Instant> {
        self.lock().timers.first().map(|(when, _)| *when)
    }

    /// Forgets everything.
    pub fn clear(&self) {
        *self.lock() = Inner::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_qp_has_one_timer_and_the_earliest_counts() {
        let schedule = Schedule::default();
        let now = Instant::now();
        let at = |ms| now + Duration::from_millis(ms);
        assert!(schedule.run_at(QpHandle(2), at(50)));
        for ms in 51..1000 {
            assert!(!schedule.run_at(QpHandle(2), at(ms)));
        }
        assert!(!schedule.run_at(QpHandle(3), at(60)));
        assert!(schedule.run_at(QpHandle(2), at(10)));
        let timers = |schedule: &Schedule| {
            let inner = schedule.lock();
            (inner.timers.len(), inner.due.len())
        };
        assert_eq!(timers(&schedule), (2, 2));
        assert_eq!(schedule.deadline(), Some(at(10)));
        assert_eq!(schedule.next(at(9)), None);
        assert_eq!(schedule.next(at(10)), Some(QpHandle(2)));
        assert_eq!(schedule.next(at(59)), None);
        assert_eq!(schedule.next(at(60)), Some(QpHandle(3)));
        assert_eq!(timers(&schedule), (0, 0));
        assert_eq!(schedule.deadline(), None);
    }

    #[test]
    fn who_waits_for_room_runs_when_it_comes_and_not_before() {
        let schedule = Schedule::default();
        let now = Instant::now();
        let before = schedule.rooms();
        assert!(!schedule.wait_for_room(QpHandle(2), before));
        assert!(!schedule.wait_for_room(QpHandle(3), before));
        assert_eq!(schedule.next(now), None);
        assert!(schedule.room());
        assert_eq!((schedule.next(now), schedule.next(now)), (Some(QpHandle(2)), Some(QpHandle(3))));
        assert!(!schedule.room(), "once");
        assert_eq!(schedule.next(now), None);
        // It came between the look that found none and the wait.
        assert!(schedule.wait_for_room(QpHandle(4), before));
        assert_eq!(schedule.next(now), Some(QpHandle(4)));
    }

    #[test]
    fn everybody_has_a_turn() {
        let schedule = Schedule::default();
        let now = Instant::now();
        for qp in [2, 3, 4] {
            schedule.run_soon(QpHandle(qp));
        }
        schedule.run_at(QpHandle(9), now);
        let mut order = Vec::new();
        for _ in 0..8 {
            let qp = schedule.next(now).unwrap();
            order.push(qp.0);
            // The first two never stop.
            if qp.0 < 4 {
                schedule.run_soon(qp);
            }
        }
        assert_eq!(order, [2, 3, 4, 9, 2, 3, 2, 3]);
    }
}
