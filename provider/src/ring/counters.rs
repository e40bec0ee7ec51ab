//! Ring counters and slots, seen from the host's side: [`Producer`] of send and receive queues,
//! [`Consumer`] of completion queues. Callers hold the queue's lock.
//!
//! A ring has a power-of-two number of slots S. Its two counters, `prod_tail` and `cons_head`, run
//! modulo 2S, so that "full" (they differ by S) is not "empty" (they are equal). Each word has one
//! writer. We keep our own counter in private memory and only ever store it to the shared page; the
//! other side's counter is judged every time it is read.

use crate::support::error::Errno;
use crate::support::sync::{AtomicU32, Ordering, own_slot};
use core::ptr::NonNull;
use pvrdma_ffi::uapi::vmw_pvrdma::{pvrdma_cqe, pvrdma_ring, pvrdma_rq_wqe_hdr, pvrdma_sge, pvrdma_sq_wqe_hdr};

/// The shared counter of the other side cannot be right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadCounter;

/// A place in a ring. Only this module makes one, always below the number of slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot(u32);

/// Number of slots: a power of two between 1 and 2^30. Kept as the mask of its counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// 2S - 1.
    counter_mask: u32,
}

impl Size {
    /// Largest size whose counters fit.
    pub const MAX: u32 = 1 << 30;
    /// One slot.
    pub const ONE: Self = Self { counter_mask: 1 };

    /// `None` unless `slots` is a power of two in range.
    pub fn new(slots: u32) -> Option<Self> {
        (slots.is_power_of_two() && slots <= Self::MAX).then(|| Self { counter_mask: 2 * slots - 1 })
    }

    /// The smallest size that holds `slots` entries.
    pub fn at_least(slots: u32) -> Option<Self> {
        Self::new(slots.max(1).checked_next_power_of_two()?)
    }

    /// As a number.
    #[inline(always)]
    pub fn get(self) -> u32 {
        self.slot_mask() + 1
    }

    #[inline(always)]
    fn slot_mask(self) -> u32 {
        self.counter_mask >> 1
    }

    #[inline(always)]
    fn wrap(self, counter: u32) -> u32 {
        counter & self.counter_mask
    }

    #[inline(always)]
    fn slot(self, counter: u32) -> Slot {
        Slot(counter & self.slot_mask())
    }

    /// Entries between `tail` and `head`, of which `theirs` came from the other side and must be
    /// judged: a valid counter, and no more entries than fit.
    #[inline(always)]
    fn used(self, tail: u32, head: u32, theirs: u32) -> Result<u32, BadCounter> {
        let used = self.wrap(tail.wrapping_sub(head));
        // One comparison finds that there is something, and no more than fits: 1..=S.
        if theirs <= self.counter_mask && used.wrapping_sub(1) <= self.slot_mask() {
            return Ok(used);
        }
        if theirs <= self.counter_mask && used == 0 {
            return Ok(0);
        }
        Err(BadCounter)
    }
}

/// Bytes of one send WQE with room for `max_sge` entries: a power of two.
pub fn send_stride(max_sge: u32) -> Option<usize> {
    stride(size_of::<pvrdma_sq_wqe_hdr>(), max_sge)
}

/// Bytes of one receive WQE with room for `max_sge` entries: a power of two.
pub fn recv_stride(max_sge: u32) -> Option<usize> {
    stride(size_of::<pvrdma_rq_wqe_hdr>(), max_sge)
}

fn stride(header: usize, max_sge: u32) -> Option<usize> {
    let sges = (max_sge as usize).checked_mul(size_of::<pvrdma_sge>())?;
    header.checked_add(sges)?.checked_next_power_of_two()
}

/// Shape of one ring of work requests.
#[derive(Clone, Copy, Debug)]
pub struct QueueShape {
    /// Slots.
    pub size: Size,
    /// Longest SGL.
    pub max_sge: u8,
    /// Bytes of a slot.
    pub stride: usize,
}

impl QueueShape {
    /// What to build for `max_wr` requests of `max_sge` entries, where `limits` are the most of
    /// both.
    pub fn new(
        (max_wr, max_sge): (u32, u32),
        limits: (u32, u32),
        stride: fn(u32) -> Option<usize>,
    ) -> Result<Self, Errno> {
        if max_wr > limits.0 || max_sge > limits.1 {
            return Err(Errno::EINVAL);
        }
        let max_sge = max_sge.max(1);
        Ok(Self {
            size: Size::at_least(max_wr).ok_or(Errno::EINVAL)?,
            max_sge: u8::try_from(max_sge).map_err(|_| Errno::EINVAL)?,
            stride: stride(max_sge).ok_or(Errno::EINVAL)?,
        })
    }

    /// Bytes of all slots.
    pub fn bytes(self) -> Result<usize, Errno> {
        (self.size.get() as usize).checked_mul(self.stride).ok_or(Errno::EINVAL)
    }
}

/// The two shared words of one ring.
#[derive(Clone, Copy, Debug)]
struct Words(NonNull<pvrdma_ring>);

impl Words {
    #[inline(always)]
    fn prod_tail(&self) -> &AtomicU32 {
        // SAFETY: the words are aligned, inside a ring buffer that outlives its queue, and only
        // ever accessed as atomics (here) or as aligned words (by the device).
        unsafe { AtomicU32::from_ptr(&raw mut (*self.0.as_ptr()).prod_tail) }
    }

    #[inline(always)]
    fn cons_head(&self) -> &AtomicU32 {
        // SAFETY: as above.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.0.as_ptr()).cons_head) }
    }
}

/// Where the slots of a work queue are: `1 << shift` bytes each.
#[derive(Clone, Copy, Debug)]
pub struct Slots {
    base: NonNull<u8>,
    shift: u32,
}

impl Slots {
    /// Slots of `stride` bytes, a power of two, from `base` on.
    ///
    /// # Safety
    /// From `base` on there must be as many strides as the ring has slots, valid for reads and
    /// writes as long as the ring is used, and aligned for what is stored in them.
    pub unsafe fn new(base: NonNull<u8>, stride: usize) -> Self {
        debug_assert!(stride.is_power_of_two());
        Self { base, shift: stride.trailing_zeros() }
    }

    /// Address of a slot.
    #[inline(always)]
    pub fn at(self, slot: Slot) -> NonNull<u8> {
        // SAFETY: a Slot is below the number of slots, so this stays inside (promise of `new`).
        let at = unsafe { self.base.add((slot.0 as usize) << self.shift) };
        own_slot(at.as_ptr());
        at
    }
}

/// Where the entries of a completion queue are.
#[derive(Clone, Copy, Debug)]
pub struct Entries(NonNull<pvrdma_cqe>);

impl Entries {
    /// # Safety
    /// As [`Slots::new`].
    pub unsafe fn new(base: NonNull<u8>) -> Self {
        Self(base.cast())
    }

    /// Address of an entry.
    #[inline(always)]
    pub fn at(self, slot: Slot) -> NonNull<pvrdma_cqe> {
        // SAFETY: as for Slots.
        let at = unsafe { self.0.add(slot.0 as usize) };
        own_slot(at.as_ptr());
        at
    }
}

/// Our end of a send or receive queue.
#[derive(Debug)]
pub struct Producer {
    words: Words,
    size: Size,
    tail: u32,
    /// Slots known to be free without looking at `cons_head` again.
    free: u32,
}

// SAFETY: the pointer leads to ring memory that any thread may use; the queue's lock serialises.
unsafe impl Send for Producer {}

impl Producer {
    /// An empty ring whose counters are both 0.
    ///
    /// # Safety
    /// `words` must be aligned and stay valid as long as the producer is used.
    pub unsafe fn new(words: NonNull<pvrdma_ring>, size: Size) -> Self {
        Self { words: Words(words), size, tail: 0, free: size.get() }
    }

    /// Number of slots.
    pub fn size(&self) -> Size {
        self.size
    }

    /// Start filling slots.
    #[inline(always)]
    pub fn batch(&mut self) -> Batch<'_> {
        Batch { words: self.words, size: self.size, tail: self.tail, free: self.free, producer: self }
    }

    /// Start filling slots over several calls.
    pub fn pend(&self) -> Pending {
        Pending { tail: self.tail, free: self.free }
    }

    /// The next free slot, taken at once; `None`: the ring is full.
    pub fn reserve_in(&self, pending: &mut Pending) -> Result<Option<Slot>, BadCounter> {
        if pending.free == 0 {
            pending.free = look(self.words, self.size, pending.tail)?;
            if pending.free == 0 {
                return Ok(None);
            }
        }
        let slot = self.size.slot(pending.tail);
        pending.tail = self.size.wrap(pending.tail.wrapping_add(1));
        pending.free -= 1;
        Ok(Some(slot))
    }

    /// Hand the slots taken to the device. False: there were none.
    pub fn publish_pending(&mut self, pending: Pending) -> bool {
        self.free = pending.free;
        let any = self.tail != pending.tail;
        if any {
            self.tail = pending.tail;
            // Release: as in [`Batch::publish`].
            self.words.prod_tail().store(self.tail, Ordering::Release);
        }
        any
    }

    /// Forget everything that was posted: both counters back to 0. The device must be done with
    /// the ring, that is, the QP is in RESET.
    pub fn reset(&mut self) {
        self.tail = 0;
        self.free = self.size.get();
        self.words.prod_tail().store(0, Ordering::Relaxed);
        self.words.cons_head().store(0, Ordering::Relaxed);
    }
}

/// Slots being filled over several calls: a [`Batch`] that can be kept. Dropping it unpublished
/// gives all of them back.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pending {
    tail: u32,
    free: u32,
}

/// Slots being filled: reserve, write, commit, again; then publish once.
#[derive(Debug)]
#[must_use = "nothing is posted until `publish`"]
pub struct Batch<'a> {
    // Copies, so that they stay in registers across the stores to slots.
    words: Words,
    size: Size,
    tail: u32,
    free: u32,
    producer: &'a mut Producer,
}

impl Batch<'_> {
    /// The next free slot; `None`: the ring is full.
    #[inline(always)]
    pub fn reserve(&mut self) -> Result<Option<Slot>, BadCounter> {
        if self.free == 0 {
            self.free = look(self.words, self.size, self.tail)?;
            if self.free == 0 {
                return Ok(None);
            }
        }
        Ok(Some(self.size.slot(self.tail)))
    }

    /// The reserved slot is filled.
    #[inline(always)]
    pub fn commit(&mut self) {
        self.tail = self.size.wrap(self.tail.wrapping_add(1));
        self.free -= 1;
    }

    /// Hand the committed slots to the device. False: there were none.
    #[inline(always)]
    pub fn publish(self) -> bool {
        self.producer.free = self.free;
        if self.producer.tail == self.tail {
            return false;
        }
        self.producer.tail = self.tail;
        // Release: a device that sees the new counter sees the slots. Without it the device could
        // execute what the slot held before.
        self.words.prod_tail().store(self.tail, Ordering::Release);
        true
    }
}

/// Free slots according to the device. Apart and by value, so that the common case keeps its batch
/// in registers.
#[cold]
#[inline(never)]
fn look(words: Words, size: Size, tail: u32) -> Result<u32, BadCounter> {
    // Acquire: the device read the slots it returns before it moved the counter, so our stores to
    // them must not come earlier.
    let head = words.cons_head().load(Ordering::Acquire);
    Ok(size.get() - size.used(tail, head, head)?)
}

/// Our end of a completion queue.
#[derive(Debug)]
pub struct Consumer {
    words: Words,
    size: Size,
    head: u32,
}

// SAFETY: as for Producer.
unsafe impl Send for Consumer {}

impl Consumer {
    /// An empty ring whose counters are both 0.
    ///
    /// # Safety
    /// `words` must be aligned and stay valid as long as the consumer is used.
    pub unsafe fn new(words: NonNull<pvrdma_ring>, size: Size) -> Self {
        Self { words: Words(words), size, head: 0 }
    }

    /// Number of slots.
    pub fn size(&self) -> Size {
        self.size
    }

    /// Number of entries the device has put.
    #[inline(always)]
    pub fn ready(&self) -> Result<u32, BadCounter> {
        // Acquire: entries below this tail are complete; without it we could read an entry before
        // the device wrote it.
        let tail = self.words.prod_tail().load(Ordering::Acquire);
        self.size.used(tail, self.head, tail)
    }

    /// Whether the device's counter stands where the last entry was given back: the ring is empty.
    #[inline(always)]
    pub fn is_unchanged(&self) -> bool {
        // Relaxed: who sees another value looks again by `ready`.
        self.words.prod_tail().load(Ordering::Relaxed) == self.head
    }

    /// The slots of the first `count` entries.
    #[inline(always)]
    pub fn slots(&self, count: u32) -> ReadySlots {
        ReadySlots { size: self.size, at: self.head, left: count }
    }

    /// Slot of the `nth` entry, counted from 0.
    pub fn slot(&self, nth: u32) -> Slot {
        self.size.slot(self.head.wrapping_add(nth))
    }

    /// Give the first `count` entries back to the device.
    #[inline(always)]
    pub fn release(&mut self, count: u32) {
        self.head = self.size.wrap(self.head.wrapping_add(count));
        // Release: our reads of the slots come before the device may overwrite them.
        self.words.cons_head().store(self.head, Ordering::Release);
    }
}

/// Iterator over the slots of ready entries. A copy of what it needs of the [`Consumer`], so that
/// it stays in registers while entries are read.
#[derive(Clone, Debug)]
pub struct ReadySlots {
    size: Size,
    at: u32,
    left: u32,
}

impl Iterator for ReadySlots {
    type Item = Slot;

    #[inline(always)]
    fn next(&mut self) -> Option<Slot> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        let slot = self.size.slot(self.at);
        self.at = self.at.wrapping_add(1);
        Some(slot)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn size(slots: u32) -> Size {
        Size::new(slots).unwrap()
    }

    fn producer(words: &mut pvrdma_ring, slots: u32) -> Producer {
        // SAFETY: the words outlive the producer in each test.
        unsafe { Producer::new(NonNull::from(words), size(slots)) }
    }

    /// Read a word as the device does.
    fn word(at: *mut u32) -> u32 {
        // SAFETY: a live, aligned word of the test.
        unsafe { AtomicU32::from_ptr(at) }.load(Ordering::Acquire)
    }

    fn set(at: *mut u32, value: u32) {
        // SAFETY: as above.
        unsafe { AtomicU32::from_ptr(at) }.store(value, Ordering::Release);
    }

    #[test]
    fn only_powers_of_two_are_sizes() {
        assert_eq!(Size::new(0), None);
        assert_eq!(Size::new(3), None);
        assert_eq!(Size::new(1 << 31), None);
        assert_eq!(size(1 << 30).get(), 1 << 30);
    }

    #[test]
    fn rounding_up_never_loops_or_wraps() {
        assert_eq!(Size::at_least(0), Size::new(1));
        assert_eq!(Size::at_least(5), Size::new(8));
        assert_eq!(Size::at_least(1 << 30), Size::new(1 << 30));
        assert_eq!(Size::at_least((1 << 30) + 1), None);
        assert_eq!(Size::at_least(u32::MAX), None);
    }

    #[test]
    fn a_full_ring_has_no_slot_until_the_device_consumes() {
        let mut ring = pvrdma_ring::default();
        let head = &raw mut ring.cons_head;
        let mut sq = producer(&mut ring, 4);

        let mut batch = sq.batch();
        for expected in 0..4 {
            assert_eq!(batch.reserve(), Ok(Some(Slot(expected))));
            batch.commit();
        }
        assert_eq!(batch.reserve(), Ok(None));
        assert!(batch.publish());
        assert_eq!(sq.batch().reserve(), Ok(None));

        set(head, 1);
        let mut batch = sq.batch();
        assert_eq!(batch.reserve(), Ok(Some(Slot(0))));
        batch.commit();
        assert_eq!(batch.reserve(), Ok(None));
        assert!(batch.publish());
    }

    #[test]
    fn nothing_is_visible_before_publish_and_nothing_after_an_empty_batch() {
        let mut ring = pvrdma_ring::default();
        let tail = &raw mut ring.prod_tail;
        let mut sq = producer(&mut ring, 4);

        assert!(!sq.batch().publish());
        let mut batch = sq.batch();
        batch.reserve().unwrap();
        batch.commit();
        assert_eq!(word(tail), 0);
        assert!(batch.publish());
        assert_eq!(word(tail), 1);
    }

    #[test]
    fn what_pends_is_all_or_nothing() {
        let mut ring = pvrdma_ring::default();
        let (tail, head) = (&raw mut ring.prod_tail, &raw mut ring.cons_head);
        let mut sq = producer(&mut ring, 2);
        let mut pending = sq.pend();
        assert_eq!(sq.reserve_in(&mut pending), Ok(Some(Slot(0))));
        assert_eq!(sq.reserve_in(&mut pending), Ok(Some(Slot(1))));
        assert_eq!(sq.reserve_in(&mut pending), Ok(None));
        assert_eq!(word(tail), 0);

        let mut pending = sq.pend();
        assert_eq!(sq.reserve_in(&mut pending), Ok(Some(Slot(0))));
        assert!(sq.publish_pending(pending));
        assert_eq!(word(tail), 1);
        let pending = sq.pend();
        assert!(!sq.publish_pending(pending));

        set(head, 1);
        let mut pending = sq.pend();
        assert_eq!(sq.reserve_in(&mut pending), Ok(Some(Slot(1))));
        assert_eq!(sq.reserve_in(&mut pending), Ok(Some(Slot(0))));
        set(head, 9);
        assert_eq!(sq.reserve_in(&mut pending), Err(BadCounter));
        // The counter is what it was when those two were taken.
        assert_eq!(word(tail), 1);
    }

    #[test]
    fn counters_run_modulo_twice_the_size() {
        let mut ring = pvrdma_ring::default();
        let (tail, head) = (&raw mut ring.prod_tail, &raw mut ring.cons_head);
        let mut sq = producer(&mut ring, 2);
        let mut seen = Vec::new();
        for _ in 0..9 {
            let mut batch = sq.batch();
            let slot = batch.reserve().unwrap().unwrap();
            batch.commit();
            assert!(batch.publish());
            seen.push((slot.0, word(tail)));
            set(head, word(tail));
        }
        let expected = [(0, 1), (1, 2), (0, 3), (1, 0), (0, 1), (1, 2), (0, 3), (1, 0), (0, 1)];
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_counter_out_of_range_is_an_error_for_the_producer() {
        for bad in [8, 5, u32::MAX] {
            let mut ring = pvrdma_ring::default();
            let head = &raw mut ring.cons_head;
            let mut sq = producer(&mut ring, 4);
            let mut batch = sq.batch();
            for _ in 0..4 {
                batch.reserve().unwrap();
                batch.commit();
            }
            assert!(batch.publish());
            set(head, bad);
            assert_eq!(sq.batch().reserve(), Err(BadCounter), "cons_head {bad}");
        }
    }

    #[test]
    fn reset_starts_over() {
        let mut ring = pvrdma_ring::default();
        let (tail, head) = (&raw mut ring.prod_tail, &raw mut ring.cons_head);
        let mut sq = producer(&mut ring, 2);
        let mut batch = sq.batch();
        for _ in 0..2 {
            batch.reserve().unwrap();
            batch.commit();
        }
        assert!(batch.publish());
        set(head, 1);
        sq.reset();
        assert_eq!((word(tail), word(head)), (0, 0));
        assert_eq!(sq.batch().reserve(), Ok(Some(Slot(0))));
    }

    #[test]
    fn the_consumer_sees_what_was_put_and_gives_slots_back() {
        let mut ring = pvrdma_ring::default();
        let (tail, head) = (&raw mut ring.prod_tail, &raw mut ring.cons_head);
        // SAFETY: the words outlive the consumer.
        let mut cq = unsafe { Consumer::new(NonNull::from(&mut ring), size(4)) };
        assert_eq!(cq.ready(), Ok(0));
        set(tail, 4);
        assert_eq!(cq.ready(), Ok(4));
        assert!(cq.slots(4).eq([Slot(0), Slot(1), Slot(2), Slot(3)]));
        cq.release(3);
        assert_eq!(word(head), 3);
        set(tail, 6);
        assert_eq!(cq.ready(), Ok(3));
        assert!(cq.slots(2).eq([Slot(3), Slot(0)]));
        assert_eq!(cq.slot(1), Slot(0));
    }

    #[test]
    fn a_tail_out_of_range_or_too_far_is_an_error_for_the_consumer() {
        for bad in [8, 5, u32::MAX] {
            let mut ring = pvrdma_ring::default();
            let tail = &raw mut ring.prod_tail;
            // SAFETY: the words outlive the consumer.
            let cq = unsafe { Consumer::new(NonNull::from(&mut ring), size(4)) };
            set(tail, bad);
            assert_eq!(cq.ready(), Err(BadCounter), "prod_tail {bad}");
        }
    }
}
