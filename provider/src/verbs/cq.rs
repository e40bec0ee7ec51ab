//! Completion queues: create, destroy, arm. Polling is in [`crate::fast::poll_cq`].

use crate::ring::barrier::{from_device, to_device};
use crate::ring::counters::{Size, Words};
use crate::ring::cq_ring::CqRing;
use crate::ring::cqe::{Cqe, CqeHandle};
use crate::ring::uar::{Arm, Register, Uar, arm_bell, poll_bell};
use crate::support::buf::{Buf, Resource, Source};
use crate::support::error::Errno;
use crate::support::loaded::libibverbs;
use crate::support::lock::SpinLock;
use crate::support::log::refuse;
use crate::support::qp_nums::{self, LOGGED, QpNums};
use crate::support::send_log::{Logged, SendLog};
use crate::support::sync::{AtomicBool, Ordering};
use crate::support::threads::Threads;
use crate::verbs::context::Context;
use crate::verbs::pd::DomainRef;
use core::cell::UnsafeCell;
use core::ffi::c_int;
use core::ptr::NonNull;
use pvrdma_ffi::pabi::{Cmd, Resp, VERBS_CQ_ROOM};
use pvrdma_ffi::pvrdmadv::pvrdmadv_cq;
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
    pub register: Register,
    /// Rung to have the device put what it holds back.
    pub poll_bell: u32,
    /// Was POLL not rung since the CQ was armed? Then it is time to.
    armed: AtomicBool,
    /// Was the application told where the ring is? Then it may poll past us. Read and written under the ring's lock,
    /// and yet not in the ring: a word more in there made an empty poll 3.0 ns of 2.1 (`cargo xtask bench frozen`).
    is_shown: AtomicBool,
    /// Of the send queues with inline data that complete here, in the order of their handles. Apart from the
    /// ring, so that making a QP needs no lock that a poller takes each time.
    logs: SpinLock<Vec<(CqeHandle, Arc<SendLog>)>>,
    /// Translates completions.
    pub qp_nums: Arc<QpNums>,
    _buf: Buf,
    _domain_ref: DomainRef,
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
        // CQ lives, and holds `size` entries after it. The CQ keeps the table too.
        let ring = unsafe {
            let state = buf.start().cast::<pvrdma_ring_state>().as_ptr();
            let words = Words::new(NonNull::from(&mut (*state).rx));
            CqRing::new(words, buf.at(PVRDMA_PAGE_SIZE), size, qp_nums.table())
        };
        // SAFETY: promise of the caller.
        let ring = unsafe { SpinLock::new(ring, Threads::promised(single_threaded)) };
        // SAFETY: many threads may use it.
        let logs = unsafe { SpinLock::new(Vec::new(), Threads::of_process()) };
        Box::new(Self {
            verbs: UnsafeCell::new([0; VERBS_CQ_ROOM / 8]),
            ring,
            register: uar.cq(),
            poll_bell: 0,
            armed: AtomicBool::new(false),
            is_shown: AtomicBool::new(false),
            logs,
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

    /// The kernel has made the CQ.
    pub fn set_cqn(&mut self, cqn: u32) {
        self.poll_bell = poll_bell(cqn);
    }

    /// Was the CQ armed since POLL was last rung?
    #[inline(always)]
    pub fn is_armed(&self) -> bool {
        // Relaxed: this thread's own arming is what it must not miss.
        self.armed.load(Ordering::Relaxed)
    }

    /// Have the device put completions that it holds back. Not under the lock: the device may take its time.
    #[inline(always)]
    pub fn ring_poll(&self) {
        // The mark goes before the doorbell. An ARM that comes after this POLL sets it again; were it
        // cleared later, that would be lost, and the last look of whoever armed would not ask.
        self.armed.store(false, Ordering::Relaxed);
        to_device();
        self.register.ring(self.poll_bell);
        from_device();
    }

    /// A send queue with inline data completes here from now on.
    pub fn add_log(&self, handle: CqeHandle, log: Arc<SendLog>) {
        let mut logs = self.logs.lock();
        let at = logs.partition_point(|(of, _)| *of < handle);
        logs.insert(at, (handle, log));
    }

    /// It does so no more. Nobody uses its log when this returns.
    pub fn remove_log(&self, handle: CqeHandle) {
        self.logs.lock().retain(|(of, _)| *of != handle);
    }

    /// Number of the QP and `wr_id` of an entry, `qp_num` being what the table has for it. `None`: it is
    /// not for the application. An entry without a QP is that of one being destroyed, or the device
    /// erred: skipping it costs nobody anything, stopping at it would block every QP of this CQ for
    /// ever.
    ///
    /// The caller holds the lock of the ring.
    pub fn whose(&self, cqe: Cqe, qp_num: u32) -> Option<(u32, u64)> {
        // Not in use, or LEAVING.
        if qp_num & !LOGGED == 0 {
            return None;
        }
        let wr_id = cqe.wr_id();
        if qp_num & LOGGED == 0 || cqe.is_receive() {
            return Some((qp_num & !LOGGED, wr_id));
        }
        // No log: a receive that failed, whose opcode need not be set, in a CQ other than that of the
        // sends. No such request on its way: the same in one CQ.
        let logs = self.logs.lock();
        let log = logs.binary_search_by_key(&cqe.handle(), |(of, _)| *of).ok().and_then(|at| logs.get(at));
        // The log may have gone since the table was looked at: then the QP is leaving, and the table says so
        // to whoever has seen the log gone.
        if log.is_none() && qp_nums::qp_num(self.qp_nums.table(), cqe.handle()) != qp_num {
            return None;
        }
        match log.and_then(|(_, log)| log.completed(wr_id)) {
            None => Some((qp_num & !LOGGED, wr_id)),
            // Some devices complete what nobody asked to hear of.
            Some(Logged { signaled: false, .. }) if cqe.is_success() => None,
            Some(Logged { wr_id, .. }) => Some((qp_num & !LOGGED, wr_id)),
        }
    }

    /// Remove all completions of a QP, keeping the order of the others: the QP is gone or starts
    /// over, and its handle may soon name another one.
    pub fn remove_completions_of(&self, handle: CqeHandle) {
        let mut ring = self.ring.lock();
        if self.is_shown.load(Ordering::Relaxed) && ring.catch_up().is_err() {
            return;
        }
        // A broken ring has nothing to remove; the next poll reports it.
        let _ = ring.remove(|entry| entry.handle() == handle);
    }

    /// What a program that polls by itself has to know. What it has polled so is done with from here on. EIO: the
    /// counters of the ring cannot be.
    pub fn show(&self) -> Result<pvrdmadv_cq, Errno> {
        let mut ring = self.ring.lock();
        self.is_shown.store(true, Ordering::Relaxed);
        ring.catch_up().map_err(|_| Errno::EIO)?;
        let (prod_tail, cons_head) = ring.words().at();
        let cqn = self.poll_bell & PVRDMA_UAR_HANDLE_MASK;
        Ok(pvrdmadv_cq {
            comp_mask: 0,
            buf: ring.base().as_ptr().cast(),
            prod_tail,
            cons_head,
            doorbell: self.register.at(),
            poll_value: self.poll_bell,
            arm_value: arm_bell(cqn, Arm::Any),
            arm_solicited_value: arm_bell(cqn, Arm::Solicited),
            num_entries: ring.size().get(),
            entry_size: size_of::<pvrdma_cqe>() as u32,
            cq_handle: cqn,
        })
    }
}

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
    unsafe { (*cq).set_cqn(resp.driver.cqn) };
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
    cq.register.ring(arm_bell(cq.poll_bell & PVRDMA_UAR_HANDLE_MASK, arm));
    // Who arms polls once more before going to sleep: that poll asks, unless another one does so
    // between this and then. After the doorbell, or that other one could come too early.
    to_device();
    cq.armed.store(true, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::mock::poll_cq;
    use crate::testing::mock::{Mock, Ring, send_cqe};

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

    /// Takes `count` entries past the provider, as a program does that knows the ring.
    fn take(mock: &Mock, count: u32) {
        let head = mock.cq_ring.cons_head;
        let before = Ring::load(head);
        Ring::store(head, (before + count) % (2 * mock.cq_ring.entries));
    }

    #[test]
    fn a_cq_that_was_shown_goes_on_where_the_application_is() {
        const OTHER: u16 = 7;
        let mock = Mock::new(4, 1, 8);
        mock.cq.qp_nums.set(OTHER, 70);
        assert_eq!(mock.cq.show().map(|shown| (shown.num_entries, shown.cq_handle)), Ok((8, Mock::CQN)));
        for round in 0..9 {
            (0..5).for_each(|i| mock.put(send_cqe(i)));
            take(&mock, 5);
            for (handle, wr_id) in [(7, 0), (0x203, 1), (7, 2), (0x203, 3)] {
                mock.put(pvrdma_cqe { qp: handle, ..send_cqe(wr_id) });
            }
            mock.cq.remove_completions_of(Mock::HANDLE);
            let left = Ring::load(mock.cq_ring.prod_tail).wrapping_sub(Ring::load(mock.cq_ring.cons_head)) % 16;
            assert_eq!(left, 2, "round {round}");
            // By verbs, once it was shown again.
            assert!(mock.cq.show().is_ok());
            assert_eq!(poll_all(&mock), [(70, 0), (70, 2)]);
        }
    }

    #[test]
    fn counters_that_the_application_spoils_are_told() {
        let mock = Mock::new(4, 1, 8);
        for head in [1, 7, 16, u32::MAX] {
            Ring::store(mock.cq_ring.cons_head, head);
            assert_eq!(mock.cq.show().err(), Some(Errno::EIO), "{head}");
            mock.cq.remove_completions_of(Mock::HANDLE);
            assert_eq!(Ring::load(mock.cq_ring.cons_head), head);
        }
    }
}
