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

    /// How many slots are filled, if `tail` is the counter behind them.
    pub fn filled(&self, tail: u32) -> u32 {
        self.size.wrap(tail.wrapping_sub(self.tail))
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
