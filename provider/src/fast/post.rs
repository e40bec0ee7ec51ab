//! What posting to a send queue and posting to a receive queue have in common. [`post`] is the hot loop over
//! a list of requests: it takes what fits and is right, and leaves whatever is in its way to [`post_rest`], the
//! lock held. The verbs do that by tail calls, so that they need no frame and save no register.

use crate::boundary;
use crate::ring::work_queue::WorkQueue;
use crate::support::error::Errno;
use crate::support::lock::SpinLock;
use core::ffi::c_int;
use pvrdma_ffi::verbs::{ibv_recv_wr, ibv_send_wr};

/// A request in a list.
pub trait Listed {
    /// The one after it, or NULL.
    fn next(&self) -> *mut Self;
}

impl Listed for ibv_send_wr {
    #[inline(always)]
    fn next(&self) -> *mut Self {
        self.next
    }
}

impl Listed for ibv_recv_wr {
    #[inline(always)]
    fn next(&self) -> *mut Self {
        self.next
    }
}

/// What is in the way of [`post`].
pub enum Obstacle<W> {
    /// No list, or the lock is taken.
    AtStart,
    /// From this request on, those before it being filled up to this counter: no known free slot, or `fill`
    /// does not take it. The lock is held.
    At(*mut W, u32),
}

/// Post a list. No reference to the queue, but single fields by pointer: they become operands of instructions,
/// where the compiler would load all of a reference's fields first and save registers for them.
///
/// # Safety
/// `lock` must be that of a live queue, `wr` NULL or a list of valid requests. `fill` gets a free slot of the
/// queue.
#[inline(always)]
pub unsafe fn post<W: Listed>(
    lock: *const SpinLock<WorkQueue>,
    mut wr: *mut W,
    fill: impl Fn(*mut u8, *const WorkQueue, *const W) -> bool,
) -> Result<(), Obstacle<W>> {
    // SAFETY: promise of the caller; the queue's fields are ours while the lock is held.
    unsafe {
        if wr.is_null() || !(*lock).enter() {
            return Err(Obstacle::AtStart);
        }
        let queue = (*lock).data();
        let mut slot = (*queue).next;
        let mut tail = (*queue).tail();
        loop {
            if slot == (*queue).limit || !fill(slot, queue, wr) {
                (*queue).next = slot;
                return Err(Obstacle::At(wr, tail));
            }
            slot = (*queue).after(slot);
            tail = tail.wrapping_add(1);
            wr = (*wr).next();
            if wr.is_null() {
                break;
            }
        }
        (*queue).next = slot;
        (*queue).publish(tail);
        (*lock).leave();
    }
    Ok(())
}

/// Post the list that begins with `wr` to a queue whose lock is held, and open the lock. Requests before it
/// are filled up to the counter `tail`. On failure `*bad` is the request that failed; those
/// before it are posted.
///
/// # Safety
/// The caller must hold the lock, for good; `wr` must be a list of valid requests, `bad` valid for a write.
/// `fill` gets a free slot of the queue.
#[inline(always)]
pub unsafe fn post_rest<W: Listed>(
    lock: &SpinLock<WorkQueue>,
    mut wr: *mut W,
    bad: *mut *mut W,
    mut tail: u32,
    fill: impl Fn(*mut u8, &WorkQueue, &W) -> Result<(), Errno>,
) -> c_int {
    // SAFETY: the lock is held, and nobody else here refers to the queue.
    let queue = unsafe { &mut *lock.data() };
    let result = boundary::catch(|| {
        loop {
            if queue.next == queue.limit {
                queue.refill(tail)?;
            }
            // SAFETY: a valid request of the caller's list.
            let request = unsafe { &*wr };
            fill(queue.next, queue, request)?;
            queue.next = queue.after(queue.next);
            tail = tail.wrapping_add(1);
            if request.next().is_null() {
                return Ok(());
            }
            wr = request.next();
        }
    });
    if tail != queue.tail() {
        queue.publish(tail);
    }
    // SAFETY: as above; nothing of the queue is used after this.
    unsafe { lock.leave() };
    match result {
        Ok(()) => 0,
        // SAFETY: promise of the caller.
        Err(Errno(errno)) => unsafe { failed(bad, wr, errno) },
    }
}

/// Wait for the lock. Returns the counter to begin [`post_rest`] with.
pub fn wait_for(lock: &SpinLock<WorkQueue>) -> u32 {
    lock.wait();
    // SAFETY: it is held now.
    unsafe { (*lock.data()).tail() }
}

/// Say which request failed, and why.
///
/// # Safety
/// `bad` must be valid for a write.
#[inline(always)]
pub unsafe fn failed<W>(bad: *mut *mut W, wr: *mut W, errno: c_int) -> c_int {
    // SAFETY: promise of the caller.
    unsafe { bad.write(wr) };
    errno
}
