//! Our end of a send, receive or shared receive queue: where the next request goes, how many are known to
//! fit, what to tell the device. Callers hold the queue's lock.
//!
//! The hot verbs want one comparison for all that can be in the way. So a queue has a run of slots that
//! are known to be free, from [`WorkQueue::next`] to [`WorkQueue::limit`]; a queue that is closed, or
//! full as far as we know, or at the end of its memory, has an empty run. [`WorkQueue::refill`], which is
//! cold, tells which of these it is.
//!
//! What was filled becomes the device's by [`WorkQueue::publish`]; until then it is the caller's to count.

use crate::ring::barrier::to_device;
use crate::ring::counters::{QueueShape, Size, Words};
use crate::ring::uar::Register;
use crate::support::error::Errno;
use crate::support::sync::Ordering;
use core::ptr::NonNull;
use pvrdma_ffi::pvrdmadv::pvrdmadv_wq;

/// How requests of a send queue are filled. Known before its lock is taken, so that the other kinds
/// cost a plain RC queue one comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Of a reliable connection; also any receive queue.
    Rc,
    /// Datagrams.
    Ud,
    /// Of a reliable connection, with room for inline data.
    Inline,
    /// Any of these, and more: datagrams with inline data, switches.
    Extras,
}

/// One queue. What each request needs comes first and shares a cache line with the lock before it; what each
/// post needs once is in the next one, which processors fetch with it.
#[derive(Debug)]
#[repr(C)]
pub struct WorkQueue {
    /// The slot to fill next.
    pub next: *mut u8,
    /// Where the run of free slots ends.
    pub limit: *mut u8,
    /// Bytes of a slot. This wide, and `always` too, since so they are operands of an instruction.
    stride: usize,
    /// Set in every request: `IBV_SEND_SIGNALED` for a QP made with `sq_sig_all`. The device was
    /// told at creation; a device that forgets would leave the application waiting.
    pub always: u32,
    /// How requests are filled.
    pub kind: Kind,
    words: Words,
    register: Register,
    // ---- the next cache line
    /// `prod_tail`, as the device knows it.
    tail: u32,
    size: Size,
    bell: u32,
    /// Longest SGL.
    pub max_sge: u32,
    base: NonNull<u8>,
    /// May work requests be posted in the QP's state? Kept here, under the lock, and not read from
    /// `ibv_qp.state`, which libibverbs changes when our `modify_qp` has returned.
    open: bool,
}

// SAFETY: the pointers lead to ring memory and a doorbell page that any thread may use; the queue's lock
// serialises.
unsafe impl Send for WorkQueue {}

impl WorkQueue {
    /// Bytes of what each request needs.
    pub const EACH_REQUEST: usize = core::mem::offset_of!(Self, tail);

    /// An empty, closed queue whose counters are both 0.
    ///
    /// # Safety
    /// From `base` on there must be as many strides as `shape` has slots, aligned to 16 and valid, as
    /// `words` must be, as long as the queue is used.
    pub unsafe fn new(words: Words, base: NonNull<u8>, shape: QueueShape, register: Register) -> Self {
        Self {
            next: base.as_ptr(),
            limit: base.as_ptr(),
            stride: shape.stride,
            always: 0,
            kind: Kind::Rc,
            words,
            register,
            tail: 0,
            size: shape.size,
            bell: 0,
            max_sge: shape.max_sge,
            base,
            open: false,
        }
    }

    /// What to tell the device when there is something new: known when the kernel has made the object.
    pub fn set_bell(&mut self, bell: u32) {
        self.bell = bell;
    }

    /// May work requests be posted?
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// Let work requests in, or keep them out.
    pub fn set_open(&mut self, open: bool) {
        self.open = open;
        // Either way the next post asks `refill`.
        self.limit = self.next;
    }

    /// Address of the slot after `slot`, which may be the end of a run.
    #[inline(always)]
    pub fn after(&self, slot: *mut u8) -> *mut u8 {
        slot.wrapping_add(self.stride)
    }

    /// Make a run of free slots, where those before the counter `tail` are filled and not yet published.
    /// EINVAL: the queue is closed; ENOMEM: it is full; EIO: the device's counter is impossible.
    pub fn refill(&mut self, tail: u32) -> Result<(), Errno> {
        if !self.open {
            return Err(Errno::EINVAL);
        }
        let size = self.size;
        // Acquire: the device read the slots it returns before it moved the counter, so our stores to
        // them must not come earlier.
        let head = self.words.cons_head().load(Ordering::Acquire);
        let tail = size.wrap(tail);
        let free = size.get() - size.used(tail, head, head).map_err(|_| Errno::EIO)?;
        let slot = tail & size.slot_mask();
        let run = free.min(size.get() - slot);
        if run == 0 {
            return Err(Errno::ENOMEM);
        }
        // SAFETY: both are slots of the ring, or its end (promise of `new`).
        unsafe {
            self.next = self.base.as_ptr().add(slot as usize * self.stride);
            self.limit = self.next.add(run as usize * self.stride);
        }
        Ok(())
    }

    /// The counter of [`WorkQueue::next`], if nothing is filled yet.
    #[inline(always)]
    pub fn tail(&self) -> u32 {
        self.tail
    }

    /// Hand the slots before the counter `tail`, which may have run over, to the device, and tell it. There
    /// must be some.
    #[inline(always)]
    pub fn publish(&mut self, tail: u32) {
        let tail = self.size.wrap(tail);
        self.tail = tail;
        // Release: a device that sees the new counter sees the slots. Without it the device could
        // execute what the slot held before.
        self.words.prod_tail().store(tail, Ordering::Release);
        to_device();
        self.register.ring(self.bell);
    }

    /// Go on where the shared counter is: the application may have posted past us. EIO: the counters cannot be.
    #[cold]
    pub fn catch_up(&mut self) -> Result<(), Errno> {
        // Relaxed: whoever moved it is the caller, or has told the caller so.
        let tail = self.words.prod_tail().load(Ordering::Relaxed);
        let head = self.words.cons_head().load(Ordering::Acquire);
        self.size.used_by_others(tail, head).map_err(|_| Errno::EIO)?;
        self.tail = tail;
        // The next post asks `refill`, which begins at `tail`.
        self.limit = self.next;
        Ok(())
    }

    /// What a program that posts by itself has to know.
    pub fn describe(&self) -> pvrdmadv_wq {
        let (prod_tail, cons_head) = self.words.at();
        pvrdmadv_wq {
            buf: self.base.as_ptr().cast(),
            prod_tail,
            cons_head,
            doorbell: self.register.at(),
            doorbell_value: self.bell,
            num_entries: self.size.get(),
            entry_size: self.stride as u32,
            max_sge: self.max_sge,
        }
    }

    /// What was filled and not published is forgotten: the next post begins where the device's view ends.
    pub fn rewind(&mut self) {
        self.limit = self.next;
    }

    /// Forget everything that was posted: both counters back to 0. The device must be done with
    /// the ring, that is, the QP is in RESET.
    pub fn reset(&mut self) {
        self.tail = 0;
        self.limit = self.next;
        self.words.prod_tail().store(0, Ordering::Relaxed);
        self.words.cons_head().store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::ring::uar::Uar;
    use core::sync::atomic::AtomicU32;
    use pvrdma_ffi::uapi::vmw_pvrdma::pvrdma_ring;

    const STRIDE: usize = 32;
    const BELL: u32 = 7;

    /// A queue, and what it is made of.
    struct Parts {
        queue: WorkQueue,
        words: Box<pvrdma_ring>,
        page: Box<[u32; 1024]>,
        slots: Vec<u128>,
    }

    impl Parts {
        fn new(slots: u32) -> Self {
            let (mut words, mut page) = (Box::<pvrdma_ring>::default(), Box::new([0; 1024]));
            let mut memory = vec![0u128; slots as usize * STRIDE / 16];
            let shape = QueueShape { size: Size::new(slots).unwrap(), max_sge: 1, stride: STRIDE };
            // SAFETY: all of it lives in boxes, as long as the queue does.
            let mut queue = unsafe {
                let uar = Uar::from_page(NonNull::from(&mut *page).cast());
                let base = NonNull::new(memory.as_mut_ptr()).unwrap().cast();
                WorkQueue::new(Words::new(NonNull::from(&mut *words)), base, shape, uar.qp())
            };
            queue.set_bell(BELL);
            Self { queue, words, page, slots: memory }
        }

        fn word(at: *mut u32) -> &'static AtomicU32 {
            // SAFETY: a live, aligned word of the test.
            unsafe { AtomicU32::from_ptr(at) }
        }

        fn tail(&mut self) -> u32 {
            Self::word(&mut self.words.prod_tail).load(Ordering::Acquire)
        }

        fn set_head(&mut self, head: u32) {
            Self::word(&mut self.words.cons_head).store(head, Ordering::Release);
        }

        /// Post one request. Which slot it got.
        fn post(&mut self) -> Result<usize, Errno> {
            let tail = self.queue.tail();
            if self.queue.next == self.queue.limit {
                self.queue.refill(tail)?;
            }
            let slot = (self.queue.next.addr() - self.slots.as_ptr().addr()) / STRIDE;
            self.queue.next = self.queue.after(self.queue.next);
            self.queue.publish(tail.wrapping_add(1));
            assert_eq!(core::mem::take(self.page.first_mut().unwrap()), BELL);
            Ok(slot)
        }
    }

    #[test]
    fn a_full_ring_has_no_slot_until_the_device_consumes() {
        let mut parts = Parts::new(4);
        parts.queue.set_open(true);
        assert_eq!((0..4).map(|_| parts.post()).collect::<Vec<_>>(), (0..4).map(Ok).collect::<Vec<_>>());
        assert_eq!(parts.post(), Err(Errno::ENOMEM));
        parts.set_head(1);
        assert_eq!((parts.post(), parts.post()), (Ok(0), Err(Errno::ENOMEM)));
    }

    #[test]
    fn counters_run_modulo_twice_the_size() {
        let mut parts = Parts::new(2);
        parts.queue.set_open(true);
        let mut seen = Vec::new();
        for _ in 0..9 {
            let slot = parts.post().unwrap();
            let tail = parts.tail();
            seen.push((slot, tail));
            parts.set_head(tail);
        }
        assert_eq!(seen, [(0, 1), (1, 2), (0, 3), (1, 0), (0, 1), (1, 2), (0, 3), (1, 0), (0, 1)]);
    }

    #[test]
    fn a_run_of_free_slots_ends_where_the_memory_or_the_room_does() {
        let mut parts = Parts::new(8);
        parts.queue.set_open(true);
        let run = |parts: &Parts| (parts.queue.limit.addr() - parts.queue.next.addr()) / STRIDE;
        parts.queue.refill(0).unwrap();
        assert_eq!(run(&parts), 8);
        // Three are filled and not published: they are no longer free.
        parts.queue.refill(3).unwrap();
        assert_eq!(run(&parts), 5);
        for _ in 0..6 {
            parts.post().unwrap();
        }
        parts.set_head(4);
        parts.queue.refill(6).unwrap();
        assert_eq!(run(&parts), 2);
        parts.queue.refill(8).unwrap();
        assert_eq!((run(&parts), parts.queue.next.addr()), (4, parts.slots.as_ptr().addr()));
        assert_eq!(parts.queue.refill(12), Err(Errno::ENOMEM));
    }

    #[test]
    fn a_counter_out_of_range_is_an_error() {
        for bad in [8, 5, u32::MAX] {
            let mut parts = Parts::new(4);
            parts.queue.set_open(true);
            (0..4).for_each(|_| _ = parts.post());
            parts.set_head(bad);
            assert_eq!(parts.post(), Err(Errno::EIO), "cons_head {bad}");
        }
    }

    #[test]
    fn a_closed_queue_takes_nothing_and_forgets_nothing() {
        let mut parts = Parts::new(4);
        assert_eq!(parts.post(), Err(Errno::EINVAL));
        parts.queue.set_open(true);
        assert_eq!(parts.post(), Ok(0));
        parts.queue.set_open(false);
        assert_eq!((parts.post(), parts.tail()), (Err(Errno::EINVAL), 1));
        parts.queue.set_open(true);
        assert_eq!(parts.post(), Ok(1));
    }

    #[test]
    fn reset_and_rewind_start_over() {
        let mut parts = Parts::new(2);
        parts.queue.set_open(true);
        (0..2).for_each(|_| _ = parts.post());
        parts.set_head(1);
        parts.queue.reset();
        assert_eq!((parts.tail(), parts.words.cons_head, parts.post()), (0, 0, Ok(0)));
        // One is filled, and given up.
        parts.queue.refill(1).unwrap();
        parts.queue.next = parts.queue.after(parts.queue.next);
        parts.queue.rewind();
        assert_eq!(parts.post(), Ok(1));
    }

    #[test]
    fn the_queue_goes_on_behind_what_others_have_posted() {
        let mut parts = Parts::new(4);
        parts.queue.set_open(true);
        assert_eq!(parts.post(), Ok(0));
        // Two by somebody who knows the ring; the device takes one.
        Parts::word(&mut parts.words.prod_tail).store(3, Ordering::Release);
        parts.set_head(1);
        assert_eq!(parts.queue.catch_up(), Ok(()));
        assert_eq!((parts.post(), parts.tail()), (Ok(3), 4));
        assert_eq!((parts.post(), parts.post()), (Ok(0), Err(Errno::ENOMEM)));
        // What cannot be changes nothing.
        for (tail, head) in [(6, 1), (8, 1), (u32::MAX, 1), (5, 8), (5, u32::MAX)] {
            Parts::word(&mut parts.words.prod_tail).store(tail, Ordering::Release);
            parts.set_head(head);
            assert_eq!(parts.queue.catch_up(), Err(Errno::EIO), "{tail} after {head}");
        }
        parts.set_head(2);
        assert_eq!((parts.post(), parts.tail()), (Ok(1), 6));
    }
}
