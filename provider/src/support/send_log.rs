//! What is on its way in a send queue with inline data: which request each completion is for, and so
//! which places in the inline memory are free again.
//!
//! The device may move its counter when it has merely fetched a request, and reads the payload
//! again when it must send it twice. So a place is free only when the *completion* of its request,
//! or of a later one of the same queue, was seen (a queue completes in order). A completion names
//! no slot, only the `wr_id`; so in these queues the device is given a cookie as `wr_id`, and the
//! application's is kept here.
//!
//! One side is the poster, under the lock of the send queue; the other is the poller, under the
//! lock of the CQ.

use crate::support::sync::{AtomicU32, AtomicU64, Ordering, UnsafeCell};
use pvrdma_ffi::verbs::IBV_SEND_SIGNALED;
use std::hash::{BuildHasher, Hasher, RandomState};

/// The log of one send queue.
#[derive(Debug)]
pub struct SendLog {
    /// Upper half of the cookies: one chance in four thousand million that a `wr_id` of a receive
    /// looks like one of these. (Only asked where nothing better tells them apart.)
    tag: u64,
    mask: u32,
    entries: Box<[Entry]>,
    /// Requests posted so far, modulo 2^32. Written by the poster.
    posted: AtomicU32,
    /// What [`SendLog::posted`] may be at most, as far as the poster knows. The poster's alone.
    limit: UnsafeCell<u32>,
    /// Of these, how many have completed. Written by the poller.
    done: AtomicU32,
}

// SAFETY: posters, who alone use the limit, hold the lock of the send queue.
unsafe impl Sync for SendLog {}

/// What is noted of one request.
#[derive(Debug, Default)]
pub struct Entry {
    wr_id: AtomicU64,
    /// `IBV_SEND_*`.
    flags: AtomicU32,
}

impl Entry {
    /// The second third of [`SendLog::note`].
    #[inline(always)]
    pub fn note_wr_id(&self, wr_id: u64) {
        self.wr_id.store(wr_id, Ordering::Relaxed);
    }
}

/// A request's number in its queue, from the first one on, modulo 2^32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position(u32);

/// What the application asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Logged {
    /// Its `wr_id`.
    pub wr_id: u64,
    /// Did it want a completion?
    pub signaled: bool,
}

impl SendLog {
    /// For a queue of `slots` requests, a power of two.
    pub fn new(slots: u32) -> Self {
        debug_assert!(slots.is_power_of_two());
        Self {
            tag: RandomState::new().build_hasher().finish() & !u64::from(u32::MAX),
            mask: slots - 1,
            entries: (0..slots).map(|_| Entry::default()).collect(),
            posted: AtomicU32::new(0),
            limit: UnsafeCell::new(slots),
            done: AtomicU32::new(0),
        }
    }

    #[inline(always)]
    fn entry(&self, Position(position): Position) -> &Entry {
        // SAFETY: there are `mask` + 1 entries.
        unsafe { self.entries.get_unchecked((position & self.mask) as usize) }
    }

    /// Which of the places a request has.
    #[inline(always)]
    pub fn place(&self, Position(position): Position) -> usize {
        (position & self.mask) as usize
    }

    /// Poster: where the next request goes; `None`: as many are on their way as there are places.
    pub fn next(&self) -> Option<Position> {
        self.known_next().or_else(|| {
            // Acquire: the poller saw the completion before it moved `done`, so the device is finished
            // with the place we are about to fill.
            let limit = self.done.load(Ordering::Acquire).wrapping_add(self.mask + 1);
            // SAFETY: the poster's alone, and there is one at a time.
            unsafe { *self.limit.get() = limit };
            self.known_next()
        })
    }

    /// As [`SendLog::next`], without a look at what has completed. `None`: that may show more.
    #[inline(always)]
    pub fn known_next(&self) -> Option<Position> {
        let posted = self.posted.load(Ordering::Relaxed);
        // SAFETY: the poster's alone, and there is one at a time.
        (posted != unsafe { *self.limit.get() }).then_some(Position(posted))
    }

    /// Poster: note the request at [`SendLog::next`], which the device has not seen yet. Returns
    /// the `wr_id` to give to the device.
    pub fn note(&self, position: Position, wr_id: u64, flags: u32) -> u64 {
        self.note_flags(position, flags).note_wr_id(wr_id);
        self.count(position)
    }

    /// The first third of [`SendLog::note`], for whoever wants little in registers at a time.
    #[inline(always)]
    pub fn note_flags(&self, position: Position, flags: u32) -> &Entry {
        let entry = self.entry(position);
        entry.flags.store(flags, Ordering::Relaxed);
        entry
    }

    /// The last third.
    #[inline(always)]
    pub fn count(&self, position: Position) -> u64 {
        // Release: a poller that counts the request in sees what was noted.
        self.posted.store(position.0.wrapping_add(1), Ordering::Release);
        self.tag | u64::from(position.0)
    }

    /// Poster: how far it is, for [`SendLog::rewind`].
    pub fn posted(&self) -> Position {
        Position(self.posted.load(Ordering::Relaxed))
    }

    /// Poster: forget what was noted since; the device has not seen it.
    pub fn rewind(&self, to: Position) {
        self.posted.store(to.0, Ordering::Relaxed);
    }

    /// Poller: a completion with this `wr_id` has come. `None`: it is for no request of this queue.
    pub fn completed(&self, cookie: u64) -> Option<Logged> {
        let position = Position(cookie as u32);
        let done = self.done.load(Ordering::Relaxed);
        let on_the_way = self.posted.load(Ordering::Acquire).wrapping_sub(done);
        if (cookie ^ self.tag) >> 32 != 0 || position.0.wrapping_sub(done) >= on_the_way {
            return None;
        }
        let entry = self.entry(position);
        let logged = Logged {
            wr_id: entry.wr_id.load(Ordering::Relaxed),
            signaled: entry.flags.load(Ordering::Relaxed) & IBV_SEND_SIGNALED != 0,
        };
        // Release: the poster fills the places up to here only after we have read the entry.
        self.done.store(position.0.wrapping_add(1), Ordering::Release);
        Some(logged)
    }

    /// Both, under both locks: nothing is on its way any more.
    pub fn forget(&self) {
        self.done.store(self.posted.load(Ordering::Relaxed), Ordering::Release);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn post(log: &SendLog, wr_id: u64, signaled: bool) -> Option<u64> {
        Some(log.note(log.next()?, wr_id, u32::from(signaled) * IBV_SEND_SIGNALED))
    }

    #[test]
    fn a_completion_frees_its_place_and_all_before_it() {
        let log = SendLog::new(4);
        let cookies: Vec<u64> = (0..4).map(|i| post(&log, 10 + i, i % 2 == 1).unwrap()).collect();
        assert_eq!(log.next(), None);
        assert_eq!(log.completed(cookies[1]), Some(Logged { wr_id: 11, signaled: true }));
        assert!(post(&log, 20, true).is_some());
        assert!(post(&log, 21, true).is_some());
        assert_eq!(log.next(), None);
        assert_eq!(log.completed(cookies[2]), Some(Logged { wr_id: 12, signaled: false }));
    }

    #[test]
    fn what_is_not_on_its_way_does_not_complete() {
        let log = SendLog::new(4);
        let cookie = post(&log, 1, true).unwrap();
        assert_eq!(log.completed(cookie + 1), None);
        assert_eq!(log.completed(cookie ^ 1 << 32), None);
        assert_eq!(log.completed(1), None);
        assert!(log.completed(cookie).is_some());
        // Not twice.
        assert_eq!(log.completed(cookie), None);
    }

    #[test]
    fn rewinding_gives_places_back() {
        let log = SendLog::new(2);
        let start = log.posted();
        post(&log, 1, true).unwrap();
        let cookie = post(&log, 2, true).unwrap();
        log.rewind(start);
        assert_eq!(log.completed(cookie), None);
        assert_eq!(log.next(), Some(start));
    }

    #[test]
    fn forgetting_ends_all() {
        let log = SendLog::new(2);
        let cookie = post(&log, 1, true).unwrap();
        post(&log, 2, true).unwrap();
        log.forget();
        assert_eq!(log.completed(cookie), None);
        assert!(log.next().is_some());
    }

    #[test]
    fn numbers_wrap_for_ever() {
        let log = SendLog::new(2);
        let near_the_end = Position(u32::MAX - 2);
        log.posted.store(near_the_end.0, Ordering::Relaxed);
        log.forget();
        // SAFETY: one thread.
        unsafe { *log.limit.get() = near_the_end.0 };
        for i in 0..10 {
            let cookie = post(&log, i, true).unwrap();
            assert!(post(&log, 100 + i, false).is_some(), "{i}");
            assert_eq!(log.next(), None);
            assert_eq!(log.completed(cookie).map(|logged| logged.wr_id), Some(i));
            let other = log.tag | u64::from(log.posted().0.wrapping_sub(1));
            assert_eq!(log.completed(other).map(|logged| logged.wr_id), Some(100 + i));
        }
    }

    #[test]
    fn poster_and_poller_are_two_threads() {
        let log = SendLog::new(8);
        let wire = std::sync::Mutex::new(std::collections::VecDeque::new());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for i in 0..10_000 {
                    loop {
                        if let Some(cookie) = post(&log, i, true) {
                            wire.lock().unwrap().push_back(cookie);
                            break;
                        }
                        std::thread::yield_now();
                    }
                }
            });
            for i in 0..10_000 {
                loop {
                    let cookie = wire.lock().unwrap().pop_front();
                    if let Some(cookie) = cookie {
                        assert_eq!(log.completed(cookie).unwrap().wr_id, i);
                        break;
                    }
                    std::thread::yield_now();
                }
            }
        });
    }
}
