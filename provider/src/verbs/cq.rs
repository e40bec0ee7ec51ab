//! Completion queues: create, destroy, arm. Polling is in [`crate::fast::poll_cq`].

use crate::ring::barrier::{from_device, to_device};
use crate::ring::counters::{Consumer, Entries, Size};
use crate::ring::cqe::{Cqe, CqeHandle};
use crate::ring::uar::{Arm, Uar};
use crate::support::buf::{Buf, Resource, Source};
use crate::support::error::Errno;
use crate::support::loaded::libibverbs;
use crate::support::lock::SpinLock;
use crate::support::log::refuse;
use crate::support::qp_nums::QpNums;
use crate::support::send_log::SendLog;
use crate::support::sync::{AtomicBool, Ordering, cycles};
use crate::verbs::context::Context;
use crate::verbs::pd::DomainRef;
use core::cell::UnsafeCell;
use core::ffi::c_int;
use core::ptr;
use pvrdma_ffi::pabi::{Cmd, Resp, VERBS_CQ_ROOM};
use pvrdma_ffi::uapi::ib_user_verbs::*;
use pvrdma_ffi::uapi::vmw_pvrdma::*;
use pvrdma_ffi::verbs::*;
use std::sync::Arc;

/// A completion queue. The room in front is libibverbs's `verbs_cq`; its `ibv_cq` is what
/// applications hold.
#[repr(C)]
#[derive(Debug)]
pub struct Cq {
    verbs: UnsafeCell<[u64; VERBS_CQ_ROOM / 8]>,
    /// Our end of the ring.
    pub ring: SpinLock<CqRing>,
    /// Doorbells.
    pub uar: Uar,
    /// The device's number, at most 24 bits.
    pub cqn: u32,
    /// Was POLL not rung since the CQ was made or armed? Then it is time to.
    armed: AtomicBool,
    /// Translates completions.
    pub qp_nums: Arc<QpNums>,
    _buf: Buf,
    _domain_ref: DomainRef,
}

/// What the lock of a CQ protects.
#[derive(Debug)]
pub struct CqRing {
    /// Counters.
    pub consumer: Consumer,
    /// Entries.
    pub entries: Entries,
    /// Of the send queues with inline data that complete here, by handle.
    pub logs: Vec<(CqeHandle, Arc<SendLog>)>,
    /// When POLL was rung last, by [`cycles`].
    asked: u32,
    /// So many empty polls may still ring POLL at once.
    eager: u32,
    /// Where `start_poll` and `next_poll` are.
    pub at: Option<Current>,
}

/// The completion that is being read by [`crate::fast::cq_ex`].
#[derive(Clone, Copy, Debug)]
pub struct Current {
    /// Its entry.
    pub cqe: Cqe,
    /// Of the QP it is for.
    pub qp_num: u32,
    /// Entries passed so far, this one included.
    pub passed: u32,
}

impl CqRing {
    /// Give `count` entries back to the device.
    #[inline(always)]
    pub fn release(&mut self, count: u32) {
        self.consumer.release(count);
        self.eager = EAGER;
    }
}

impl Cq {
    /// A CQ of `size` entries, not yet known to the kernel. `buf` must be [`buf_len`] long.
    ///
    /// # Safety
    /// With `single_threaded` no two threads may use the CQ at the same time.
    pub unsafe fn new(
        size: Size,
        buf: Buf,
        uar: Uar,
        qp_nums: Arc<QpNums>,
        (single_threaded, domain_ref): (bool, DomainRef),
    ) -> Box<Self> {
        // SAFETY: the buffer begins with a state page, whose words it keeps mapped as long as the
        // CQ lives, and holds `size` entries after it.
        let ring = unsafe {
            let state = buf.start().cast::<pvrdma_ring_state>().as_ptr();
            CqRing {
                consumer: Consumer::new(ptr::NonNull::from(&mut (*state).rx), size),
                entries: Entries::new(buf.at(PVRDMA_PAGE_SIZE)),
                logs: Vec::new(),
                asked: 0,
                eager: 0,
                at: None,
            }
        };
        Box::new(Self {
            verbs: UnsafeCell::new([0; VERBS_CQ_ROOM / 8]),
            // SAFETY: promise of the caller.
            ring: unsafe { SpinLock::single_threaded(ring, single_threaded) },
            uar,
            cqn: 0,
            armed: AtomicBool::new(true),
            qp_nums,
            _buf: buf,
            _domain_ref: domain_ref,
        })
    }

    /// # Safety
    /// `cq` must be a live CQ of ours. The reference must not outlive it.
    #[inline(always)]
    pub unsafe fn of<'a>(cq: *mut ibv_cq) -> &'a Self {
        // SAFETY: the ibv_cq is at the front of the Cq.
        unsafe { &*cq.cast() }
    }

    /// Have the device put completions that it holds back. Whether it was asked: after some empty
    /// polls in a row not again within a microsecond or so. The store may cost an exit of the virtual
    /// machine, and a loop that finds nothing would do little else.
    pub fn ring_poll(&self, ring: &mut CqRing) -> bool {
        // Relaxed: this thread's own arming is what it must not miss.
        if cycles().wrapping_sub(ring.asked) < PAUSE && !self.armed.load(Ordering::Relaxed) {
            if ring.eager == 0 {
                return false;
            }
            ring.eager -= 1;
        }
        // The mark goes before the doorbell. An ARM that comes after this POLL sets it again; were it
        // cleared later, that would be lost, and the last look of whoever armed would not ask.
        self.armed.store(false, Ordering::Relaxed);
        to_device();
        self.uar.ring_poll(self.cqn);
        from_device();
        ring.asked = cycles();
        true
    }

    /// A send queue with inline data completes here from now on.
    pub fn add_log(&self, handle: CqeHandle, log: Arc<SendLog>) {
        self.ring.lock().logs.push((handle, log));
    }

    /// It does so no more. Nobody uses its log when this returns.
    pub fn remove_log(&self, handle: CqeHandle) {
        self.ring.lock().logs.retain(|(of, _)| *of != handle);
    }

    /// Remove all completions of a QP, keeping the order of the others: the QP is gone or starts
    /// over, and its handle may soon name another one.
    pub fn remove_completions_of(&self, handle: CqeHandle) {
        let mut ring = self.ring.lock();
        // A broken ring has nothing to remove; the next poll reports it.
        let Ok(ready) = ring.consumer.ready() else {
            return;
        };
        // From the newest to the oldest, survivors move towards the tail. What is left free at
        // the head is given back.
        let entries = ring.entries;
        let mut removed = 0;
        for nth in (0..ready).rev() {
            let from = entries.at(ring.consumer.slot(nth));
            // SAFETY: a ready slot.
            if unsafe { Cqe::new(from) }.handle() == handle {
                removed += 1;
            } else if removed > 0 {
                let to = entries.at(ring.consumer.slot(nth + removed));
                // SAFETY: two different slots, both ours until released. Volatile: a device that
                // breaks the rules may write meanwhile.
                unsafe { to.write_volatile(from.read_volatile()) };
            }
        }
        if removed > 0 {
            ring.consumer.release(removed);
        }
    }
}

/// Between half a microsecond and one, on the processors there are.
const PAUSE: u32 = 2048;

/// Empty polls that ring POLL at once after completions came: more may follow soon, and with two
/// programs that answer each other a pause is seen in each round trip (measured on the stand-in:
/// 0.4 us of 9.7, gone with 16, half gone with 4).
const EAGER: u32 = 16;

/// Bytes of the buffer of a CQ: the ring state has a page of its own.
pub fn buf_len(size: Size) -> usize {
    PVRDMA_PAGE_SIZE + size.get() as usize * size_of::<pvrdma_cqe>()
}

/// What `create_cq` and `create_cq_ex` ask for.
pub struct Request {
    /// Least entries.
    pub cqe: u32,
    /// NULL or a channel of the context.
    pub channel: *mut ibv_comp_channel,
    /// Which completion vector.
    pub comp_vector: c_int,
    /// Used by one thread at a time?
    pub single_threaded: bool,
    /// Where its memory comes from.
    pub source: Source,
    /// In the domain it is made in.
    pub domain_ref: DomainRef,
}

/// `create_cq`.
///
/// # Safety
/// `context` must be an open context of ours, `channel` NULL or one of its channels.
pub unsafe fn create_cq(
    context: *mut ibv_context,
    cqe: c_int,
    channel: *mut ibv_comp_channel,
    comp_vector: c_int,
) -> Result<*mut ibv_cq, Errno> {
    let source = Source { libibverbs: libibverbs()?, allocator: None };
    let cqe = u32::try_from(cqe).map_err(|_| Errno::EINVAL)?;
    // SAFETY: passed on from the caller.
    unsafe {
        create(
            context,
            Request { cqe, channel, comp_vector, single_threaded: false, source, domain_ref: DomainRef::NONE },
        )
    }
}

/// Create a CQ of either interface.
///
/// # Safety
/// As [`create_cq`]; with `single_threaded` no two threads may use the CQ at the same time.
pub unsafe fn create(context: *mut ibv_context, request: Request) -> Result<*mut ibv_cq, Errno> {
    let Request { cqe, channel, comp_vector, single_threaded, source, domain_ref } = request;
    // SAFETY: promise of the caller.
    let own = unsafe { Context::of(context) }?;
    let libibverbs = source.libibverbs;
    // The limit is a power of two, so what passes here is within it after rounding up too.
    let size = Some(cqe)
        .filter(|cqe| (1..=own.limits.max_cqe).contains(cqe))
        .and_then(Size::at_least)
        .ok_or_else(|| refuse(Errno::EINVAL, format_args!("create_cq: {cqe} entries: 1 to {}", own.limits.max_cqe)))?;
    let buf = Buf::new(buf_len(size), source, Resource::Cq)?;
    let mut cmd = Cmd::<ib_uverbs_create_cq, _>::new(pvrdma_create_cq {
        buf_addr: buf.start().as_ptr() as u64,
        buf_size: u32::try_from(buf.len_bytes()).map_err(|_| Errno::EINVAL)?,
        reserved: 0,
    });
    let mut resp = Resp::<ib_uverbs_create_cq_resp, pvrdma_create_cq_resp>::default();
    let (cmd_len, resp_len) = (size_of_val(&cmd), size_of_val(&resp));

    // From here on raw: libibverbs and the kernel keep the address for events.
    //
    // SAFETY: promise of the caller.
    let cq = Box::into_raw(unsafe { Cq::new(size, buf, own.uar, own.qp_nums.clone(), (single_threaded, domain_ref)) });
    // SAFETY: the CQ has room for libibverbs's part; complete request and answer structs.
    let ret = unsafe {
        (libibverbs.create_cq)(
            context,
            size.get() as c_int,
            channel,
            comp_vector,
            cq.cast(),
            (&raw mut cmd).cast(),
            cmd_len,
            (&raw mut resp).cast(),
            resp_len,
        )
    };
    if let Err(errno) = Errno::check(ret) {
        // SAFETY: the kernel knows nothing of it.
        drop(unsafe { Box::from_raw(cq) });
        return Err(refuse(errno.device_refusal(), format_args!("create_cq: the kernel says errno {}", errno.0)));
    }
    // SAFETY: nobody else has the CQ yet.
    unsafe { (*cq).cqn = resp.driver.cqn };
    // The device runs its counters modulo the length it answers. Any other than the one we
    // allocated would have us read outside the buffer.
    //
    // SAFETY: the CQ lives; its front is an ibv_cq that libibverbs has filled.
    let answered = unsafe { (*cq.cast::<ibv_cq>()).cqe };
    if answered != size.get() as c_int || resp.driver.cqn > PVRDMA_UAR_HANDLE_MASK {
        // SAFETY: created above, unknown to the application. If the kernel will not let go of it
        // the memory must stay.
        unsafe {
            if (libibverbs.destroy_cq)(cq.cast()) == 0 {
                drop(Box::from_raw(cq));
            }
        }
        let asked = size.get();
        return Err(refuse(Errno::EIO, format_args!("create_cq: {answered} entries for {asked}, {:?}", resp.driver)));
    }
    Ok(cq.cast())
}

/// `destroy_cq`.
///
/// # Safety
/// `cq` must come from [`create_cq`]; on success it is gone.
pub unsafe fn destroy_cq(cq: *mut ibv_cq) -> Result<(), Errno> {
    // SAFETY: a live CQ; after success neither kernel nor application has it.
    unsafe {
        Errno::check((libibverbs()?.destroy_cq)(cq))?;
        drop(Box::from_raw(cq.cast::<Cq>()));
    }
    Ok(())
}

/// `req_notify_cq`.
#[inline(always)]
pub fn req_notify_cq(cq: &Cq, solicited_only: bool) {
    let arm = if solicited_only { Arm::Solicited } else { Arm::Any };
    cq.uar.ring_arm(cq.cqn, arm);
    // Who arms polls once more before going to sleep: that poll asks, unless another one does so
    // between this and then. After the doorbell, or that other one could come too early.
    to_device();
    cq.armed.store(true, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fast::poll_cq::poll_cq;
    use crate::testing::mock::{Mock, send_cqe};

    fn poll_all(mock: &Mock) -> Vec<(u32, u64)> {
        let mut wc = [ibv_wc::default(); 16];
        // SAFETY: room for 16.
        let polled = unsafe { poll_cq(&mock.cq, 16, wc.as_mut_ptr()) };
        assert!(polled >= 0, "{polled}");
        wc.iter().take(polled as usize).map(|wc| (wc.qp_num, wc.wr_id)).collect()
    }

    #[test]
    fn arming_rings_the_bell_that_was_asked_for() {
        let mock = Mock::new(1, 1, 1);
        req_notify_cq(&mock.cq, false);
        assert_eq!(mock.rung(PVRDMA_UAR_CQ_OFFSET), PVRDMA_UAR_CQ_ARM | Mock::CQN);
        req_notify_cq(&mock.cq, true);
        assert_eq!(mock.rung(PVRDMA_UAR_CQ_OFFSET), PVRDMA_UAR_CQ_ARM_SOL | Mock::CQN);
    }

    #[test]
    fn removing_a_qp_keeps_the_others_in_order() {
        const OTHER: u16 = 7;
        let mock = Mock::new(4, 1, 8);
        mock.cq.qp_nums.set(OTHER, 70);
        // Start in the middle, so that the entries wrap.
        for round in 0..6 {
            mock.put(send_cqe(round));
            assert_eq!(poll_all(&mock).len(), 1);
        }
        for (handle, wr_id) in [(7, 0), (0x203, 1), (7, 2), (0x203, 3), (0x203, 4), (7, 5)] {
            mock.put(pvrdma_cqe { qp: handle, ..send_cqe(wr_id) });
        }
        mock.cq.remove_completions_of(Mock::HANDLE);
        assert_eq!(poll_all(&mock), [(70, 0), (70, 2), (70, 5)]);
        // All slots are back with the device.
        (0..8).for_each(|i| mock.put(send_cqe(i)));
        assert_eq!(poll_all(&mock).len(), 8);
    }

    #[test]
    fn removing_from_an_empty_or_a_broken_queue_does_nothing() {
        let mock = Mock::new(4, 1, 8);
        mock.cq.remove_completions_of(Mock::HANDLE);
        assert_eq!(poll_all(&mock), []);
        mock.set_cq_tail(100);
        mock.cq.remove_completions_of(Mock::HANDLE);
    }
}
