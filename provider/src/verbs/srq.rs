//! Shared receive queues: create, modify, query, destroy. Posting is in [`crate::fast::post_recv`].

use crate::ring::counters::{QueueShape, Words, recv_stride};
use crate::ring::uar::{Uar, srq_bell};
use crate::ring::work_queue::WorkQueue;
use crate::support::buf::{Buf, Resource};
use crate::support::error::Errno;
use crate::support::loaded::libibverbs;
use crate::support::lock::SpinLock;
use crate::support::log::refuse;
use crate::support::threads::Threads;
use crate::verbs::context::{Context, Limits};
use crate::verbs::pd::{DomainRef, Pd};
use core::cell::UnsafeCell;
use core::ffi::c_int;
use core::ptr::NonNull;
use pvrdma_ffi::pabi::{Cmd, Resp, VERBS_SRQ_ROOM};
use pvrdma_ffi::pvrdmadv::pvrdmadv_srq;
use pvrdma_ffi::uapi::ib_user_verbs::*;
use pvrdma_ffi::uapi::vmw_pvrdma::*;
use pvrdma_ffi::verbs::*;

/// A shared receive queue. The room in front is libibverbs's `verbs_srq`; its `ibv_srq` is what
/// applications hold.
#[repr(C)]
#[derive(Debug)]
pub struct Srq {
    verbs: UnsafeCell<[u64; VERBS_SRQ_ROOM / 8]>,
    /// The queue.
    pub queue: SpinLock<WorkQueue>,
    max_wr: u32,
    max_sge: u32,
    _buf: Buf,
    _domain_ref: DomainRef,
}

impl Srq {
    /// An SRQ that the kernel does not know yet. `buf` must be [`buf_len`] long.
    ///
    /// # Safety
    /// With `single_threaded` no two threads may use the SRQ at the same time.
    pub unsafe fn new(
        shape: QueueShape,
        buf: Buf,
        uar: Uar,
        (single_threaded, domain_ref): (bool, DomainRef),
    ) -> Box<Self> {
        // SAFETY: the buffer begins with a state page, whose words it keeps mapped as long as the
        // SRQ lives, and holds `size` strides after it.
        let mut queue = unsafe {
            let state = buf.start().cast::<pvrdma_ring_state>().as_ptr();
            let words = Words::new(NonNull::from(&mut (*state).rx));
            WorkQueue::new(words, buf.at(PVRDMA_PAGE_SIZE), shape, uar.srq())
        };
        queue.set_open(true);
        Box::new(Self {
            verbs: UnsafeCell::new([0; VERBS_SRQ_ROOM / 8]),
            // SAFETY: promise of the caller.
            queue: unsafe { SpinLock::new(queue, Threads::promised(single_threaded)) },
            max_wr: shape.size.get(),
            max_sge: shape.max_sge,
            _buf: buf,
            _domain_ref: domain_ref,
        })
    }

    /// # Safety
    /// `srq` must be a live SRQ of ours. The reference must not outlive it.
    #[inline(always)]
    pub unsafe fn of<'a>(srq: *mut ibv_srq) -> &'a Self {
        // SAFETY: the ibv_srq is at the front of the Srq.
        unsafe { &*srq.cast() }
    }

    /// What a program that posts by itself has to know. From here on the provider goes on behind what was posted so.
    /// EIO: the counters of the ring cannot be.
    pub fn show(&self) -> Result<pvrdmadv_srq, Errno> {
        let mut queue = self.queue.lock();
        queue.catch_up()?;
        let wq = queue.describe();
        let srq_handle = wq.doorbell_value & PVRDMA_UAR_HANDLE_MASK;
        Ok(pvrdmadv_srq { comp_mask: 0, wq, srq_handle, reserved: 0 })
    }
}

/// What to build for `attr`. Queue lengths are rounded up to powers of two.
pub fn shape(attr: &ibv_srq_attr, limits: &Limits) -> Result<QueueShape, Errno> {
    let most = (limits.max_srq_wr, limits.max_srq_sge);
    QueueShape::new((attr.max_wr, attr.max_sge), most, recv_stride)
}

/// Bytes of the buffer of an SRQ: the ring state has a page of its own, then the slots. VMware's
/// provider has always allocated twice the slots; nothing known uses the second half, but nobody
/// outside can say that no host does.
pub fn buf_len(shape: QueueShape) -> Result<usize, Errno> {
    let slots = shape.bytes()?.checked_next_multiple_of(PVRDMA_PAGE_SIZE).ok_or(Errno::EINVAL)?;
    slots.checked_mul(2).and_then(|slots| slots.checked_add(PVRDMA_PAGE_SIZE)).ok_or(Errno::EINVAL)
}

/// `create_srq`. `attr.attr` is written on success only.
///
/// # Safety
/// `pd` must be a live PD of ours, `attr` valid.
pub unsafe fn create_srq(pd: *mut ibv_pd, attr: *mut ibv_srq_init_attr) -> Result<*mut ibv_srq, Errno> {
    // A copy for libibverbs to write to.
    //
    // SAFETY: promise of the caller; libibverbs has set `pd.context`.
    let (mut init, domain, own) =
        unsafe { (ibv_srq_init_attr::copy_of(attr), Pd::of(pd), Context::of((*pd).context)?) };
    if own.limits.max_srq_wr == 0 {
        return Err(refuse(Errno::EOPNOTSUPP, format_args!("create_srq: the device has none")));
    }
    let source = domain.source()?;
    let libibverbs = source.libibverbs;
    let shape = shape(&init.attr, &own.limits).map_err(|errno| {
        let (asked, most) = (&init.attr, &own.limits);
        let (wr, sge) = (most.max_srq_wr, most.max_srq_sge);
        refuse(errno, format_args!("create_srq: {} of {} SGEs: at most {wr} of {sge}", asked.max_wr, asked.max_sge))
    })?;
    let buf = Buf::new(buf_len(shape)?, source, Resource::Srq)?;
    let mut cmd = Cmd::<ib_uverbs_create_srq, _>::new(pvrdma_create_srq {
        buf_addr: buf.start().as_ptr() as u64,
        buf_size: u32::try_from(buf.len_bytes()).map_err(|_| Errno::EINVAL)?,
        reserved: 0,
    });
    let mut resp = Resp::<ib_uverbs_create_srq_resp, pvrdma_create_srq_resp>::default();
    let (cmd_len, resp_len) = (size_of_val(&cmd), size_of_val(&resp));

    // From here on raw: libibverbs and the kernel keep the address for events.
    //
    // SAFETY: what a thread domain means.
    let srq =
        Box::into_raw(unsafe { Srq::new(shape, buf, own.uar, (domain.single_threaded(), DomainRef::of(domain))) });
    // SAFETY: the SRQ is ours alone.
    let real = unsafe { ibv_srq_attr { max_wr: (*srq).max_wr, max_sge: (*srq).max_sge, ..init.attr } };
    init.attr = real;
    // SAFETY: the SRQ has room for libibverbs's part; complete request and answer structs.
    let ret = unsafe {
        (libibverbs.create_srq)(
            pd,
            srq.cast(),
            &mut init,
            (&raw mut cmd).cast(),
            cmd_len,
            (&raw mut resp).cast(),
            resp_len,
        )
    };
    if let Err(errno) = Errno::check(ret) {
        // SAFETY: the kernel knows nothing of it.
        drop(unsafe { Box::from_raw(srq) });
        return Err(refuse(errno.device_refusal(), format_args!("create_srq: the kernel says errno {}", errno.0)));
    }
    if resp.driver.srqn > PVRDMA_UAR_HANDLE_MASK {
        // SAFETY: created above, unknown to the application. If the kernel will not let go of it
        // the memory must stay.
        unsafe {
            if (libibverbs.destroy_srq)(srq.cast()) == 0 {
                drop(Box::from_raw(srq));
            }
        }
        return Err(Errno::EIO);
    }
    // SAFETY: nobody else has the SRQ yet; `attr` as above.
    unsafe {
        (*srq).queue.lock().set_bell(srq_bell(resp.driver.srqn));
        (*attr).attr = real;
    }
    Ok(srq.cast())
}

/// `modify_srq`: the limit only. The device cannot resize.
///
/// # Safety
/// `srq` must be a live SRQ of ours, `attr` valid for what `attr_mask` says.
pub unsafe fn modify_srq(srq: *mut ibv_srq, attr: *mut ibv_srq_attr, attr_mask: c_int) -> Result<(), Errno> {
    // SAFETY: promise of the caller.
    let (own, limit) = unsafe { (Srq::of(srq), (*attr).srq_limit) };
    match attr_mask as u32 {
        0 => return Ok(()),
        IBV_SRQ_LIMIT => {}
        mask if mask & !(IBV_SRQ_LIMIT | IBV_SRQ_MAX_WR) != 0 => return Err(Errno::EINVAL),
        _ => return Err(Errno::EOPNOTSUPP),
    }
    if limit > own.max_wr {
        return Err(Errno::EINVAL);
    }
    let mut cmd = Cmd::<ib_uverbs_modify_srq>::new(());
    let cmd_len = size_of_val(&cmd);
    // SAFETY: a complete request; the rest is the caller's promise.
    let ret = unsafe { (libibverbs()?.modify_srq)(srq, attr, attr_mask, (&raw mut cmd).cast(), cmd_len) };
    Errno::check(ret).map_err(Errno::device_refusal)
}

/// `query_srq`: the limit as the device has it (0 once the event was raised), lengths as created.
///
/// # Safety
/// `srq` must be a live SRQ of ours, `attr` valid for a write.
pub unsafe fn query_srq(srq: *mut ibv_srq, attr: *mut ibv_srq_attr) -> Result<(), Errno> {
    // SAFETY: promise of the caller.
    let own = unsafe { Srq::of(srq) };
    let mut local = ibv_srq_attr::default();
    let mut cmd = Cmd::<ib_uverbs_query_srq>::new(());
    let cmd_len = size_of_val(&cmd);
    // SAFETY: a complete request, a valid output.
    let ret = unsafe { (libibverbs()?.query_srq)(srq, &mut local, (&raw mut cmd).cast(), cmd_len) };
    Errno::check(ret).map_err(Errno::device_refusal)?;
    // SAFETY: promise of the caller.
    unsafe { attr.write(ibv_srq_attr { max_wr: own.max_wr, max_sge: own.max_sge, ..local }) };
    Ok(())
}

/// `destroy_srq`.
///
/// # Safety
/// `srq` must come from [`create_srq`]; on success it is gone.
pub unsafe fn destroy_srq(srq: *mut ibv_srq) -> Result<(), Errno> {
    // SAFETY: a live SRQ; after success neither kernel nor application has it.
    unsafe {
        Errno::check((libibverbs()?.destroy_srq)(srq))?;
        drop(Box::from_raw(srq.cast::<Srq>()));
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::testing::mock::Mock;

    fn attr(max_wr: u32, max_sge: u32) -> ibv_srq_attr {
        ibv_srq_attr { max_wr, max_sge, srq_limit: 0 }
    }

    #[test]
    fn what_is_asked_for_is_rounded_up_and_the_slots_are_there_twice() {
        let shape = shape(&attr(100, 3), &Mock::LIMITS).unwrap();
        assert_eq!((shape.size.get(), shape.max_sge, shape.stride), (128, 3, 64));
        assert_eq!(buf_len(shape), Ok(4096 + 2 * 8192));
    }

    #[test]
    fn the_limits_themselves_can_be_had_and_nothing_above() {
        let Limits { max_srq_wr, max_srq_sge, .. } = Mock::LIMITS;
        assert!(shape(&attr(max_srq_wr, max_srq_sge), &Mock::LIMITS).is_ok());
        for (wr, sge) in [(max_srq_wr + 1, 1), (1, max_srq_sge + 1), (u32::MAX, 1), (1, u32::MAX)] {
            assert_eq!(shape(&attr(wr, sge), &Mock::LIMITS).err(), Some(Errno::EINVAL), "{wr} requests of {sge}");
        }
    }
}
