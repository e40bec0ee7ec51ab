//! Our end of a completion queue: which entries are there, which are given back, when the device is asked.
//! Callers hold the CQ's lock.
//!
//! **When POLL is rung.** A device may hold completions back until the CQ's POLL doorbell asks for them. The
//! store may cost an exit of the virtual machine, so a loop that finds nothing must not do it every time;
//! and the processor's clock is too slow to ask each time (`rdtsc` takes as long as the whole rest of an
//! empty poll, twice that on some processors). So it is rationed by counting: of the polls that find nothing,
//! the first [`EAGER`] after a completion ring, then every [`RATION`]th, and, after the CQ was armed, always
//! the first that gets fewer than it asked for (`Cq::armed` in `verbs/cq.rs`). So what the device holds
//! back waits for [`RATION`] - 1 further polls at most, and for none when it was armed: who arms, polls until it gets
//! fewer than it asked for and sleeps misses nothing. ("After a completion" is told by `head`, which comes back to
//! the same value after two laps: a poll that follows exactly so many counts as one of the same pause.)

use crate::ring::counters::{BadCounter, Size, Words};
use crate::ring::cqe::Cqe;
use crate::support::qp_nums::QpNumTable;
use crate::support::sync::{Ordering, own_slot};
use core::ptr::{self, NonNull};
use pvrdma_ffi::uapi::vmw_pvrdma::pvrdma_cqe;

/// Empty polls that ring POLL at once after completions came: more may follow soon, and with two
/// programs that answer each other a pause is seen in each round trip (on the stand-in with trapped doorbells
/// 0.4 us of then 9.7, gone with 16, half gone with 4).
pub const EAGER: i32 = 16;

/// Of later empty polls, one in so many rings.
pub const RATION: i32 = 16;

/// What the lock of a CQ protects. The fields that every poll needs come first and, with the lock before
/// them, are one cache line.
#[derive(Debug)]
#[repr(C)]
pub struct CqRing {
    words: Words,
    entries: NonNull<pvrdma_cqe>,
    /// By the handle that an entry carries. As long as the CQ lives.
    qp_nums: *const QpNumTable,
    /// `cons_head`, as the device knows it.
    head: u32,
    size: Size,
    slot_mask: u32,
    /// The device's counter when it was last judged: entries before it are there, so that not each poll need
    /// judge it.
    seen: u32,
    /// `head` at the last empty poll.
    mark: u32,
    /// So many empty polls may still ring POLL; below 0: so many did not.
    credit: i32,
    /// For extended CQs, under a lock that is held over several calls.
    pub walk: Walk,
}

/// A walk over entries that are there: they are given back at its end, all at once.
#[derive(Debug)]
#[repr(C)]
pub struct Walk {
    /// The entry to look at next; the one before it is the current one. NULL: nobody walks.
    pub next: *const pvrdma_cqe,
    /// Where the run of entries that are known to be there, and lie behind each other, ends.
    pub limit: *const pvrdma_cqe,
    /// Number of the QP that the current entry is for.
    pub qp_num: u32,
    /// The counter of `start`.
    at: u32,
    /// Where the run began.
    start: *const pvrdma_cqe,
}

// SAFETY: the pointers lead to ring memory and a table that any thread may use; the CQ's lock serialises.
unsafe impl Send for CqRing {}

impl CqRing {
    /// Bytes of what each poll needs.
    pub const EACH_POLL: usize = core::mem::offset_of!(Self, walk);

    /// An empty ring whose counters are both 0.
    ///
    /// # Safety
    /// From `entries` on there must be as many as `size` says, aligned to their size and valid, as `words`
    /// and `qp_nums` must be, as long as the ring is used.
    pub unsafe fn new(words: Words, entries: NonNull<u8>, size: Size, qp_nums: *const QpNumTable) -> Self {
        Self {
            words,
            entries: entries.cast(),
            qp_nums,
            head: 0,
            size,
            slot_mask: size.slot_mask(),
            seen: 0,
            mark: 0,
            credit: EAGER,
            walk: Walk { next: ptr::null(), limit: ptr::null(), qp_num: 0, at: 0, start: ptr::null() },
        }
    }

    /// Number of entries there is room for.
    pub fn size(&self) -> Size {
        self.size
    }

    /// The two shared words.
    #[inline(always)]
    pub fn words(&self) -> Words {
        self.words
    }

    /// Where we are.
    #[inline(always)]
    pub fn head(&self) -> u32 {
        self.head
    }

    /// Where the device was when its counter was last judged.
    #[inline(always)]
    pub fn seen(&self) -> u32 {
        self.seen
    }

    /// As [`CqRing::ready`], of a counter that needs no judging.
    #[inline(always)]
    pub fn see(&mut self, tail: u32) {
        self.seen = tail;
    }

    /// The counter after `counter`.
    #[inline(always)]
    pub fn after(&self, counter: u32) -> u32 {
        self.size.wrap(counter.wrapping_add(1))
    }

    /// How many entries are there, by the device's counter, judged.
    pub fn ready(&mut self) -> Result<u32, BadCounter> {
        let tail = look(self.words);
        let ready = self.size.used(tail, self.head, tail)?;
        self.seen = tail;
        Ok(ready)
    }

    /// As [`CqRing::ready`], if there are any.
    #[inline(always)]
    pub fn some_ready(&mut self) -> Option<u32> {
        self.judge(look(self.words))
    }

    /// How many entries are there by `tail`, the device's counter, if there are any; in as few comparisons as may
    /// be.
    #[inline(always)]
    pub fn judge(&mut self, tail: u32) -> Option<u32> {
        let ready = self.size.wrap(tail.wrapping_sub(self.head));
        if tail > self.size.counter_mask() || ready.wrapping_sub(1) > self.slot_mask {
            return None;
        }
        self.seen = tail;
        Some(ready)
    }

    /// The entry at `counter`, whatever lap, which must be there.
    #[inline(always)]
    pub fn entry(&self, counter: u32) -> Cqe {
        let place = self.place(counter);
        own_slot(place.as_ptr());
        // SAFETY: as the caller says.
        unsafe { Cqe::new(place) }
    }

    /// The place of an entry.
    #[inline(always)]
    fn place(&self, counter: u32) -> NonNull<pvrdma_cqe> {
        let slot = counter & self.slot_mask;
        // SAFETY: a slot is below the number of entries (promise of `new`).
        unsafe { self.entries.add(slot as usize) }
    }

    /// How many entries follow the first one up to the end of the memory, it included.
    #[inline(always)]
    pub fn run(&self) -> u32 {
        self.slot_mask + 1 - (self.head & self.slot_mask)
    }

    /// The table of QP numbers.
    #[inline(always)]
    pub fn qp_nums<'a>(&self) -> &'a QpNumTable {
        // SAFETY: it lives as long as the ring is used (promise of `new`), which is longer than any verb.
        unsafe { &*self.qp_nums }
    }

    /// Give `count` entries back to the device, which must be there.
    #[inline(always)]
    pub fn release(&mut self, count: u32) {
        self.release_to(self.words, self.size.wrap(self.head.wrapping_add(count)));
    }

    /// Give the entries before `head` back to the device.
    #[inline(always)]
    pub fn release_to(&mut self, words: Words, head: u32) {
        self.head = head;
        // Release: our reads of the slots come before the device may overwrite them.
        words.cons_head().store(head, Ordering::Release);
    }

    /// A walk begins.
    pub fn walk_from_head(&mut self) {
        self.walk_from(self.head, 0);
    }

    /// A run of `count` entries from the counter `at` on, as many of them as lie behind each other.
    fn walk_from(&mut self, at: u32, count: u32) {
        let start = self.place(at).as_ptr().cast_const();
        let run = count.min(self.slot_mask + 1 - (at & self.slot_mask));
        // Inside the memory, or its end.
        self.walk = Walk { next: start, limit: start.wrapping_add(run as usize), at, start, ..self.walk };
    }

    /// The counter of the entry to look at next.
    #[inline(always)]
    fn walked_to(&self) -> u32 {
        let bytes = self.walk.next.addr() - self.walk.start.addr();
        self.size.wrap(self.walk.at.wrapping_add((bytes / size_of::<pvrdma_cqe>()) as u32))
    }

    /// Has the walk passed all that is there? True too if nobody walks.
    #[inline(always)]
    pub fn is_walked(&self) -> bool {
        self.walk.next.is_null()
            || self.walk.next == self.walk.limit && self.walked_to() == self.seen && look(self.words) == self.seen
    }

    /// The walk has just passed `entry`, which is not for the application: put the one before it in its place.
    #[cold]
    pub fn keep_last(&mut self, entry: Cqe) {
        let at = self.walked_to().wrapping_sub(1);
        if self.size.wrap(at) != self.head {
            // SAFETY: two different entries, both ours until released.
            unsafe { self.entry(at.wrapping_sub(1)).copy_to(entry) };
        }
    }

    /// The run has ended: begin the next one. False: no more entries are there, and the current one stays.
    pub fn walk_on(&mut self) -> Result<bool, BadCounter> {
        let at = self.walked_to();
        if at == self.seen {
            let passed = self.size.wrap(at.wrapping_sub(self.head));
            if self.ready()? <= passed {
                // Fewer: the device takes back what it put, against the rules. What is passed is passed.
                self.seen = at;
                return Ok(false);
            }
        }
        self.walk_from(at, self.size.wrap(self.seen.wrapping_sub(at)));
        Ok(true)
    }

    /// The walk ends: what was passed goes back to the device.
    #[inline(always)]
    pub fn end_walk(&mut self) {
        if self.walk.next.is_null() {
            return;
        }
        let at = self.walked_to();
        // Not behind the head: where there is one thread no lock keeps it from polling this CQ in the walk.
        if self.size.wrap(at.wrapping_sub(self.head)) <= self.size.wrap(self.seen.wrapping_sub(self.head)) {
            self.release_to(self.words, at);
        }
        (self.walk.next, self.walk.limit) = (ptr::null(), ptr::null());
    }

    /// Go on where the shared counter is: the application may have polled past us. Not in a walk, whose entries are
    /// not given back yet.
    #[cold]
    pub fn catch_up(&mut self) -> Result<(), BadCounter> {
        if !self.walk.next.is_null() {
            return Ok(());
        }
        // Relaxed: whoever moved it is the caller, or has told the caller so.
        let head = self.words.cons_head().load(Ordering::Relaxed);
        let tail = look(self.words);
        self.size.used_by_others(tail, head)?;
        (self.head, self.seen) = (head, head);
        Ok(())
    }

    /// The first entry's place.
    pub fn base(&self) -> NonNull<pvrdma_cqe> {
        self.entries
    }

    /// Take out the entries that are `gone`, keeping the order of the others. The device's counter must not be
    /// impossible.
    pub fn remove(&mut self, gone: impl Fn(Cqe) -> bool) -> Result<(), BadCounter> {
        let ready = self.ready()?;
        // In the middle of a walk, if it is one of the same thread: what it has passed is not ours to look at.
        let is_walk = !self.walk.next.is_null();
        let from = if is_walk { self.walked_to() } else { self.head };
        let count = ready.saturating_sub(self.size.wrap(from.wrapping_sub(self.head)));
        // From the newest to the oldest, survivors move towards the tail, and leave room at the head.
        let mut removed = 0;
        for nth in (0..count).rev() {
            let entry = self.entry(from.wrapping_add(nth));
            if gone(entry) {
                removed += 1;
            } else if removed > 0 {
                // SAFETY: two different entries, both ours until released.
                unsafe { entry.copy_to(self.entry(from.wrapping_add(nth + removed))) };
            }
        }
        if removed > 0 && is_walk {
            // The last one passed goes along: the application may still read it, at the place before the next.
            let last = self.size.wrap(from.wrapping_add(removed - 1));
            if from != self.head {
                // SAFETY: two different entries, both ours until released.
                unsafe { self.entry(from.wrapping_sub(1)).copy_to(self.entry(last)) };
            }
            self.walk_from(last, count - removed + 1);
            self.walk.next = self.walk.next.wrapping_add(1);
        } else if removed > 0 {
            self.release(removed);
        }
        Ok(())
    }

    /// A poll found nothing at `head`, which is ours. Is it one that rings POLL?
    #[inline(always)]
    pub fn is_time_to_ask(&mut self, head: u32) -> bool {
        if self.mark != head {
            self.mark = head;
            self.credit = EAGER;
        }
        self.credit -= 1;
        if self.credit >= 0 {
            return true;
        }
        // Read once more, so that the line above is one instruction.
        //
        // SAFETY: a field of ours.
        if unsafe { (&raw const self.credit).read_volatile() } == -RATION {
            self.credit = 0;
            return true;
        }
        false
    }
}

/// Where the device is: `prod_tail`.
#[inline(always)]
pub fn look(words: Words) -> u32 {
    // Acquire: entries below this tail are complete; without it we could read an entry before
    // the device wrote it.
    words.prod_tail().load(Ordering::Acquire)
}
