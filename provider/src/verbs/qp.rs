//! Queue pairs: create, modify, query, destroy. Posting is in [`crate::fast::post_send`] and
//! [`crate::fast::post_recv`].

use crate::ring::counters::{QueueShape, Size, Words, recv_stride, send_stride};
use crate::ring::cqe::CqeHandle;
use crate::ring::uar::{Uar, recv_bell, send_bell};
use crate::ring::work_queue::{Kind, WorkQueue};
use crate::support::buf::{Buf, Resource};
use crate::support::error::Errno;
use crate::support::loaded::libibverbs;
use crate::support::lock::SpinLock;
use crate::support::log::refuse;
use crate::support::qp_nums::{LEAVING, LOGGED, QpNums};
use crate::support::send_log::Position;
use crate::support::switches::Switches;
use crate::support::threads::Threads;
use crate::verbs::context::{Context, Limits};
use crate::verbs::cq::Cq;
use crate::verbs::inline::{self, Inline, MAX_INLINE};
use crate::verbs::pd::{DomainRef, Pd};
use core::cell::UnsafeCell;
use core::ffi::c_int;
use core::mem::offset_of;
use core::ptr::{self, NonNull};
use pvrdma_ffi::pabi::{Cmd, Functions, Resp, VERBS_QP_ROOM};
use pvrdma_ffi::pvrdmadv::{PVRDMADV_QP_OWN_WR_ID, PVRDMADV_QP_SIG_ALL, pvrdmadv_qp, pvrdmadv_wq};
use pvrdma_ffi::uapi::ib_user_verbs::*;
use pvrdma_ffi::uapi::vmw_pvrdma::*;
use pvrdma_ffi::verbs::*;
use std::sync::Arc;

/// A queue pair. The room in front is libibverbs's `verbs_qp`, whose length differs between
/// releases; its `ibv_qp` is what applications hold.
#[repr(C)]
#[derive(Debug)]
pub struct Qp {
    verbs: UnsafeCell<[u64; VERBS_QP_ROOM / 8]>,
    /// Send queue.
    pub sq: SpinLock<WorkQueue>,
    /// Receive queue. One that never opens where the QP takes its receives from an SRQ.
    pub rq: SpinLock<WorkQueue>,
    /// What completions carry of it.
    handle: CqeHandle,
    /// For [`Kind::Inline`], [`Kind::Extras`] and `ibv_wr_*`.
    pub extras: Extras,
    /// What `ibv_wr_start` began. Under the lock of the send queue.
    pub building: UnsafeCell<Building>,
    has_srq: bool,
    cap: ibv_qp_cap,
    sq_sig_all: bool,
    send_cq: *mut ibv_cq,
    recv_cq: *mut ibv_cq,
    qp_nums: Arc<QpNums>,
    _sq_buf: Buf,
    _rq_buf: Option<Buf>,
    _domain_ref: DomainRef,
}

/// What a send queue may have besides the plain things.
#[derive(Debug)]
pub struct Extras {
    /// Datagrams?
    pub ud: bool,
    /// Which opcodes are on.
    pub switches: Switches,
    /// Inline data.
    pub inline: Option<Inline>,
}

/// What a QP is made from.
pub struct Parts<'a> {
    /// Its rings.
    pub shape: &'a Shape,
    /// The send buffer, as long as [`Shape::buf_lens`] says.
    pub sq_buf: Buf,
    /// The receive buffer, unless there is an SRQ.
    pub rq_buf: Option<Buf>,
    /// Doorbells.
    pub uar: Uar,
    /// What was asked for. The CQs must live as long as the QP, which the kernel sees to.
    pub init: &'a ibv_qp_init_attr,
    /// Which opcodes are on.
    pub switches: Switches,
    /// Inline data.
    pub inline: Option<Inline>,
    /// Where completions are translated.
    pub qp_nums: Arc<QpNums>,
    /// Used by one thread at a time?
    pub single_threaded: bool,
    /// In the domain it was made in.
    pub domain_ref: DomainRef,
}

/// QP numbers have 24 bits.
const MAX_QPN: u32 = 0xff_ffff;

/// What `wr_start` began: see `crate::fast::wr`.
#[derive(Debug)]
#[repr(C)]
pub struct Building {
    /// The slot to fill next.
    pub next: *mut u8,
    /// The slot that setters are for. NULL: there is none.
    pub slot: *mut u8,
    /// The queue's counter behind what is filled; after an error the one before.
    pub tail: u32,
    /// What to say at `wr_complete`; 0: all is well.
    pub error: c_int,
    /// The request at `slot` is a datagram that was not told yet where to go.
    pub lacks_address: bool,
    /// Its inline memory.
    pub position: Option<Position>,
    /// Where the log of inline memory was at `wr_start`.
    pub log_start: Option<Position>,
}

impl Building {
    /// A batch begins at the slot `next`, whose counter is `tail`.
    ///
    /// # Safety
    /// `this` must be valid for writes.
    #[inline(always)]
    pub unsafe fn begin(this: *mut Self, next: *mut u8, tail: u32) {
        const { assert!(offset_of!(Self, error) == offset_of!(Self, tail) + 4 && offset_of!(Self, tail) % 8 == 0) };
        // SAFETY: promise of the caller. The upper half of the last is `error`.
        unsafe {
            (*this).next = next;
            (*this).slot = ptr::null_mut();
            (&raw mut (*this).tail).cast::<u64>().write(tail.into());
        }
    }
}

impl Default for Building {
    fn default() -> Self {
        Self {
            next: ptr::null_mut(),
            slot: ptr::null_mut(),
            tail: 0,
            error: 0,
            lacks_address: false,
            position: None,
            log_start: None,
        }
    }
}

/// Shape of the rings of a QP, judged against the limits.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    sq: QueueShape,
    /// `None`: an SRQ takes its place.
    rq: Option<QueueShape>,
    /// Bytes of a place for inline data.
    max_inline: u32,
}

impl Shape {
    /// What to build for `cap`. Queue lengths are rounded up to powers of two. What `cap` says of
    /// the receive queue counts for nothing where an SRQ takes its place.
    pub fn new(cap: &ibv_qp_cap, limits: &Limits, has_srq: bool) -> Result<Self, Errno> {
        let most = (limits.max_qp_wr, limits.max_sge);
        let shape = Self {
            sq: QueueShape::new((cap.max_send_wr, cap.max_send_sge), most, send_stride)?,
            rq: match has_srq {
                true => None,
                false => Some(QueueShape::new((cap.max_recv_wr, cap.max_recv_sge), most, recv_stride)?),
            },
            max_inline: inline::place_len(cap.max_inline_data)?,
        };
        // The device counts the pages of a QP in 16 bits.
        let (sq_len, rq_len) = shape.buf_lens()?;
        if sq_len.div_ceil(PVRDMA_PAGE_SIZE) + rq_len.unwrap_or(0).div_ceil(PVRDMA_PAGE_SIZE) > u16::MAX.into() {
            return Err(Errno::EINVAL);
        }
        Ok(shape)
    }

    /// What the application gets.
    pub fn cap(&self) -> ibv_qp_cap {
        ibv_qp_cap {
            max_send_wr: self.sq.size.get(),
            max_recv_wr: self.rq.map_or(0, |rq| rq.size.get()),
            max_send_sge: self.sq.max_sge,
            max_recv_sge: self.rq.map_or(0, |rq| rq.max_sge),
            max_inline_data: self.max_inline,
        }
    }

    /// Bytes of the send buffer (one page of ring state, then WQEs) and of the receive buffer.
    pub fn buf_lens(&self) -> Result<(usize, Option<usize>), Errno> {
        let rq = self.rq.map(QueueShape::bytes).transpose()?;
        Ok((PVRDMA_PAGE_SIZE.checked_add(self.sq.bytes()?).ok_or(Errno::EINVAL)?, rq))
    }
}

impl Qp {
    /// A QP in RESET, not yet known to the kernel.
    ///
    /// # Safety
    /// With `parts.single_threaded` no two threads may use the QP at the same time.
    pub unsafe fn new(parts: Parts<'_>) -> Box<Self> {
        let Parts { shape, sq_buf, rq_buf, uar, init, switches, inline, qp_nums, single_threaded, domain_ref } = parts;
        let ud = init.qp_type == IBV_QPT_UD;
        let state = sq_buf.start().cast::<pvrdma_ring_state>().as_ptr();
        // SAFETY: the send buffer begins with a state page, whose words it keeps mapped as long as
        // the QP lives.
        let (tx, rx) = unsafe { (&raw mut (*state).tx, &raw mut (*state).rx) };
        let queue = |words: *mut pvrdma_ring, wqes, shape: QueueShape| {
            // SAFETY: words as above (never NULL, being inside a mapping); the buffer has room for
            // `size` strides from `wqes` on.
            unsafe { WorkQueue::new(Words::new(NonNull::new_unchecked(words)), wqes, shape, uar.qp()) }
        };
        let mut sq = queue(tx, sq_buf.at(PVRDMA_PAGE_SIZE), shape.sq);
        sq.always = if init.sq_sig_all != 0 { IBV_SEND_SIGNALED } else { 0 };
        sq.kind = match ud {
            true if inline.is_some() => Kind::Extras,
            true => Kind::Ud,
            false if switches.any() => Kind::Extras,
            false if inline.is_some() => Kind::Inline,
            false => Kind::Rc,
        };
        let rq = match (&rq_buf, shape.rq) {
            (Some(rq_buf), Some(rq)) => queue(rx, rq_buf.start(), rq),
            // Never opened, so its one slot, some of the send buffer's, is never filled.
            _ => queue(rx, sq_buf.at(PVRDMA_PAGE_SIZE), QueueShape { size: Size::ONE, ..shape.sq }),
        };
        let threads = Threads::promised(single_threaded);
        Box::new(Self {
            verbs: UnsafeCell::new([0; VERBS_QP_ROOM / 8]),
            // SAFETY: promise of the caller.
            sq: unsafe { SpinLock::new(sq, threads) },
            // SAFETY: as above.
            rq: unsafe { SpinLock::new(rq, threads) },
            handle: 0,
            extras: Extras { ud, switches, inline },
            building: UnsafeCell::default(),
            has_srq: shape.rq.is_none(),
            cap: shape.cap(),
            sq_sig_all: init.sq_sig_all != 0,
            send_cq: init.send_cq,
            recv_cq: init.recv_cq,
            qp_nums,
            _sq_buf: sq_buf,
            _rq_buf: rq_buf,
            _domain_ref: domain_ref,
        })
    }

    /// # Safety
    /// `qp` must be a live QP of ours. The reference must not outlive it.
    #[inline(always)]
    pub unsafe fn of<'a>(qp: *mut ibv_qp) -> &'a Self {
        // SAFETY: the ibv_qp is at the front of the Qp.
        unsafe { &*qp.cast() }
    }

    /// How requests of the send queue are filled.
    pub fn kind(&self) -> Kind {
        // SAFETY: the QP lives; this field never changes.
        unsafe { (*self.sq.unlocked()).kind }
    }

    /// The kernel has made the QP: its handle is known and its completions can be told apart. EIO:
    /// the handle or the number cannot be, or completions of another QP look the same.
    pub fn enter(&mut self, handle: u32, qp_num: u32) -> Result<(), Errno> {
        if qp_num == 0 || qp_num > MAX_QPN {
            return Err(Errno::EIO);
        }
        // Until the log is there the QP has no completions: nothing was posted.
        self.qp_nums.claim(handle as CqeHandle, qp_num)?;
        self.handle = handle as CqeHandle;
        self.sq.lock().set_bell(send_bell(handle));
        self.rq.lock().set_bell(recv_bell(handle));
        self.announce(qp_num);
        Ok(())
    }

    /// From now on completions of the QP, which has its handle, are known by its number.
    fn announce(&self, qp_num: u32) {
        match &self.extras.inline {
            None => self.qp_nums.set(self.handle, qp_num),
            Some(inline) => {
                // SAFETY: a QP's CQs outlive it, see `remove_completions`.
                unsafe { Cq::of(self.send_cq) }.add_log(self.handle, inline.log.clone());
                self.qp_nums.set(self.handle, qp_num | LOGGED);
            }
        }
    }

    /// From now on completions of the QP are strays. Its handle stays taken until
    /// [`Qp::leave`].
    fn withdraw(&self) {
        self.qp_nums.set(self.handle, LEAVING);
        if self.extras.inline.is_some() {
            // SAFETY: as above.
            unsafe { Cq::of(self.send_cq) }.remove_log(self.handle);
        }
    }

    /// The kernel has destroyed the QP. Only when its completions are gone may another QP have its
    /// handle.
    fn leave(&self) {
        self.remove_completions();
        self.qp_nums.set(self.handle, 0);
    }

    /// Open and close the queues for a state: sends from RTS on, receives from INIT on. In the
    /// error states too: the device flushes what is posted there.
    pub fn set_state(&self, state: u32) {
        self.sq.lock().set_open(state >= IBV_QPS_RTS);
        self.rq.lock().set_open(state != IBV_QPS_RESET && !self.has_srq);
    }

    /// What a program that posts by itself has to know. From here on the provider goes on behind what was posted so.
    /// EIO: the counters of a ring cannot be.
    pub fn show(&self) -> Result<pvrdmadv_qp, Errno> {
        let queue = |queue: &SpinLock<WorkQueue>| {
            let mut queue = queue.lock();
            queue.catch_up()?;
            Ok(queue.describe())
        };
        let sig_all = if self.sq_sig_all { PVRDMADV_QP_SIG_ALL } else { 0 };
        let own_wr_id = if self.extras.inline.is_some() { PVRDMADV_QP_OWN_WR_ID } else { 0 };
        let sq = queue(&self.sq)?;
        Ok(pvrdmadv_qp {
            comp_mask: 0,
            sq,
            rq: if self.has_srq { pvrdmadv_wq::NONE } else { queue(&self.rq)? },
            qp_handle: sq.doorbell_value & PVRDMA_UAR_HANDLE_MASK,
            flags: sig_all | own_wr_id,
        })
    }

    /// The device has forgotten all about the QP: so do the rings and the CQs.
    fn start_over(&self) {
        // Both locks, so that no post is half done; the queues are closed, so none follows.
        let mut sq = self.sq.lock();
        let mut rq = self.rq.lock();
        self.remove_completions();
        sq.reset();
        rq.reset();
        if let Some(inline) = &self.extras.inline {
            inline.log.forget();
        }
    }

    /// Those of receives from an SRQ too. Nothing goes back to the SRQ with them: the device gave
    /// the slot back when it took the request.
    fn remove_completions(&self) {
        // SAFETY: a QP's CQs outlive it: the kernel refuses to destroy a CQ that is in use.
        let (send_cq, recv_cq) = unsafe { (Cq::of(self.send_cq), Cq::of(self.recv_cq)) };
        recv_cq.remove_completions_of(self.handle);
        if !ptr::eq(send_cq, recv_cq) {
            send_cq.remove_completions_of(self.handle);
        }
    }
}

/// `create_qp`. `attr.cap` is written on success only.
///
/// # Safety
/// `pd` must be a live PD of ours, `attr` valid, with live CQs and SRQ of the same context.
pub unsafe fn create_qp(pd: *mut ibv_pd, attr: *mut ibv_qp_init_attr) -> Result<*mut ibv_qp, Errno> {
    // SAFETY: promise of the caller; a copy for libibverbs to write to.
    unsafe {
        let mut init = ibv_qp_init_attr::copy_of(attr);
        let qp = create(pd, &mut init)?;
        (*attr).cap = init.cap;
        Ok(qp)
    }
}

/// Create a QP of either interface. `init.cap` becomes what the QP has.
///
/// # Safety
/// As [`create_qp`].
pub unsafe fn create(pd: *mut ibv_pd, init: &mut ibv_qp_init_attr) -> Result<*mut ibv_qp, Errno> {
    // SAFETY: promise of the caller; libibverbs has set `pd.context`.
    let (domain, own) = unsafe { (Pd::of(pd), Context::of((*pd).context)?) };
    if !matches!(init.qp_type, IBV_QPT_RC | IBV_QPT_UD) {
        return Err(refuse(Errno::EOPNOTSUPP, format_args!("create_qp: type {}: only RC and UD", init.qp_type)));
    }
    if init.send_cq.is_null() || init.recv_cq.is_null() {
        return Err(refuse(Errno::EINVAL, format_args!("create_qp: needs a CQ for sends and one for receives")));
    }
    let shape = Shape::new(&init.cap, &own.limits, !init.srq.is_null()).map_err(|errno| {
        let (cap, most) = (&init.cap, &own.limits);
        refuse(
            errno,
            format_args!(
                "create_qp: {} sends of {} SGEs, {} receives of {}, {} bytes inline: \
                 at most {} of {} each way (and 256 MiB), {MAX_INLINE} bytes",
                cap.max_send_wr,
                cap.max_send_sge,
                cap.max_recv_wr,
                cap.max_recv_sge,
                cap.max_inline_data,
                most.max_qp_wr,
                most.max_sge
            ),
        )
    })?;
    let source = domain.source()?;
    let libibverbs = source.libibverbs;
    let (sq_len, rq_len) = shape.buf_lens()?;
    let sq_buf = Buf::new(sq_len, source, Resource::SendQueue)?;
    let rq_buf = rq_len.map(|len| Buf::new(len, source, Resource::RecvQueue)).transpose()?;
    let inline = match shape.max_inline {
        0 => None,
        // SAFETY: promise of the caller: the kernel keeps a PD that has a QP.
        max => Some(unsafe { Inline::new(pd, shape.sq.size.get(), max, source) }?),
    };
    let (rbuf_addr, rbuf_size) = rq_buf.as_ref().map_or((0, 0), |buf| (buf.start().as_ptr() as u64, buf.len_bytes()));
    let mut cmd = Cmd::<ib_uverbs_create_qp, _>::new(pvrdma_create_qp {
        rbuf_addr,
        sbuf_addr: sq_buf.start().as_ptr() as u64,
        rbuf_size: u32::try_from(rbuf_size).map_err(|_| Errno::EINVAL)?,
        sbuf_size: u32::try_from(sq_buf.len_bytes()).map_err(|_| Errno::EINVAL)?,
        qp_addr: 0,
    });
    let mut resp = Resp::<ib_uverbs_create_qp_resp, pvrdma_create_qp_resp>::default();
    let (cmd_len, resp_len) = (size_of_val(&cmd), size_of_val(&resp));
    // The device has no inline data and is not asked for any.
    init.cap = ibv_qp_cap { max_inline_data: 0, ..shape.cap() };
    let parts = Parts {
        shape: &shape,
        sq_buf,
        rq_buf,
        uar: own.uar,
        init,
        switches: own.switches,
        inline,
        qp_nums: own.qp_nums.clone(),
        single_threaded: domain.single_threaded(),
        domain_ref: DomainRef::of(domain),
    };

    // From here on raw: libibverbs and the kernel keep the address for events.
    //
    // SAFETY: what a thread domain means.
    let qp = Box::into_raw(unsafe { Qp::new(parts) });
    // SAFETY: the QP has room for libibverbs's part; complete request and answer structs.
    let ret = unsafe {
        (libibverbs.create_qp)(pd, qp.cast(), init, (&raw mut cmd).cast(), cmd_len, (&raw mut resp).cast(), resp_len)
    };
    if let Err(errno) = Errno::check(ret) {
        // SAFETY: the kernel knows nothing of it.
        drop(unsafe { Box::from_raw(qp) });
        return Err(refuse(errno.device_refusal(), format_args!("create_qp: the kernel says errno {}", errno.0)));
    }
    // SAFETY: libibverbs has filled the ibv_qp at the front.
    let qp_num = unsafe { (*qp.cast::<ibv_qp>()).qp_num };
    let Ok(handle) = handle_of(&resp.driver, qp_num) else {
        // SAFETY: created above, unknown to the application.
        unsafe { abandon(libibverbs, qp) };
        return Err(refuse(Errno::EIO, format_args!("create_qp: the device gave handle {:?}", resp.driver)));
    };
    // SAFETY: nobody else has the QP yet.
    if let Err(errno) = unsafe { (*qp).enter(handle, qp_num) } {
        // SAFETY: as above.
        unsafe { abandon(libibverbs, qp) };
        return Err(refuse(errno, format_args!("create_qp: the device gave number {qp_num}, handle {handle} again")));
    }
    init.cap = shape.cap();
    Ok(qp.cast())
}

/// Newer devices tell a handle apart from the QP number; a kernel that does not know of that
/// leaves the answer zero, and the number is the handle. Then it may have all the 24 bits of a number, which doorbells
/// have room for. Of completions the kernel driver and every provider read 16, so two QPs may not differ above them.
fn handle_of(resp: &pvrdma_create_qp_resp, qp_num: u32) -> Result<u32, Errno> {
    let handle = match resp {
        pvrdma_create_qp_resp { qp_handle: 0, qpn: 0 } => qp_num,
        pvrdma_create_qp_resp { qp_handle: 0, qpn } => *qpn,
        pvrdma_create_qp_resp { qp_handle, .. } => *qp_handle,
    };
    if handle > PVRDMA_UAR_HANDLE_MASK { Err(Errno::EIO) } else { Ok(handle) }
}

/// # Safety
/// `qp` must exist in the kernel and be unknown to the application.
unsafe fn abandon(libibverbs: &Functions, qp: *mut Qp) {
    // SAFETY: as stated. If the kernel will not let go of it the memory must stay.
    unsafe {
        if (libibverbs.destroy_qp)(qp.cast()) == 0 {
            drop(Box::from_raw(qp));
        }
    }
}

/// `modify_qp`.
///
/// # Safety
/// `qp` must be a live QP of ours, `attr` valid for what `attr_mask` says.
pub unsafe fn modify_qp(qp: *mut ibv_qp, attr: *mut ibv_qp_attr, attr_mask: c_int) -> Result<(), Errno> {
    // SAFETY: promise of the caller.
    let own = unsafe { Qp::of(qp) };
    let state = (attr_mask as u32 & IBV_QP_STATE != 0).then(|| {
        // SAFETY: promise of the caller: with this bit the field is valid.
        unsafe { (*attr).qp_state }
    });
    let were_open = (own.sq.lock().is_open(), own.rq.lock().is_open());
    if state == Some(IBV_QPS_RESET) {
        // Nothing may be posted between the device's forgetting and ours.
        own.set_state(IBV_QPS_RESET);
    }
    let mut cmd = Cmd::<ib_uverbs_modify_qp>::new(());
    let cmd_len = size_of_val(&cmd);
    // SAFETY: a complete request; the rest is the caller's promise.
    let ret = unsafe { (libibverbs()?.modify_qp)(qp, attr, attr_mask, (&raw mut cmd).cast(), cmd_len) };
    let result = Errno::check(ret).map_err(Errno::device_refusal);
    match (state, result) {
        (Some(IBV_QPS_RESET), Ok(())) => own.start_over(),
        (Some(IBV_QPS_RESET), Err(_)) => {
            own.sq.lock().set_open(were_open.0);
            own.rq.lock().set_open(were_open.1);
        }
        (Some(state), Ok(())) => own.set_state(state),
        _ => {}
    }
    result
}

/// `query_qp`. The kernel driver knows neither our queue lengths nor the signalling mode, and for
/// a QP in RESET it fills in nothing but the state, so these come from our own records.
///
/// # Safety
/// `qp` must be a live QP of ours, `attr` and `init_attr` valid for writes.
pub unsafe fn query_qp(
    qp: *mut ibv_qp,
    attr: *mut ibv_qp_attr,
    attr_mask: c_int,
    init_attr: *mut ibv_qp_init_attr,
) -> Result<(), Errno> {
    // SAFETY: promise of the caller.
    let own = unsafe { Qp::of(qp) };
    let mut local = ibv_qp_attr::default();
    // SAFETY: integers and pointers only.
    let mut local_init: ibv_qp_init_attr = unsafe { core::mem::zeroed() };
    let mut cmd = Cmd::<ib_uverbs_query_qp>::new(());
    let cmd_len = size_of_val(&cmd);
    // SAFETY: a complete request, valid outputs.
    let ret =
        unsafe { (libibverbs()?.query_qp)(qp, &mut local, attr_mask, &mut local_init, (&raw mut cmd).cast(), cmd_len) };
    Errno::check(ret).map_err(Errno::device_refusal)?;
    if local.qp_state == IBV_QPS_RESET {
        local = ibv_qp_attr { qp_state: IBV_QPS_RESET, cur_qp_state: IBV_QPS_RESET, ..Default::default() };
    }
    local.cap = own.cap;
    local_init.cap = own.cap;
    local_init.sq_sig_all = own.sq_sig_all.into();
    // SAFETY: promise of the caller.
    unsafe {
        attr.write(local);
        init_attr.write(local_init);
    }
    Ok(())
}

/// `destroy_qp`.
///
/// # Safety
/// `qp` must come from [`create_qp`]; on success it is gone.
pub unsafe fn destroy_qp(qp: *mut ibv_qp) -> Result<(), Errno> {
    // SAFETY: promise of the caller.
    let (own, qp_num) = unsafe { (Qp::of(qp), (*qp).qp_num) };
    let libibverbs = libibverbs()?;
    // Before the kernel frees the handle. From then on another thread may be given it, and waits
    // until this one is done with it.
    own.withdraw();
    // SAFETY: a live QP.
    if let Err(errno) = Errno::check(unsafe { (libibverbs.destroy_qp)(qp) }) {
        own.announce(qp_num);
        return Err(errno);
    }
    own.leave();
    // SAFETY: neither kernel nor application has it any more.
    drop(unsafe { Box::from_raw(qp.cast::<Qp>()) });
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::testing::kernel::{Lie, World};
    use crate::testing::mock::{Mock, send_cqe};
    use crate::testing::mock::{poll_cq, post_send};

    fn cap(wr: u32, sge: u32) -> ibv_qp_cap {
        ibv_qp_cap { max_send_wr: wr, max_recv_wr: wr, max_send_sge: sge, max_recv_sge: sge, max_inline_data: 0 }
    }

    #[test]
    fn what_is_asked_for_is_rounded_up_and_zero_becomes_one() {
        let shape = Shape::new(&cap(5, 3), &Mock::LIMITS, false).unwrap();
        assert_eq!(shape.cap(), cap(8, 3));
        assert_eq!(shape.buf_lens(), Ok((4096 + 8 * 128, Some(8 * 64))));
        assert_eq!(Shape::new(&cap(0, 0), &Mock::LIMITS, false).unwrap().cap(), cap(1, 1));
    }

    #[test]
    fn the_limits_themselves_can_be_had_and_nothing_above() {
        let Limits { max_qp_wr, max_sge, .. } = Mock::LIMITS;
        assert!(Shape::new(&cap(max_qp_wr, max_sge), &Mock::LIMITS, false).is_ok());
        for (wr, sge) in [(max_qp_wr + 1, 1), (1, max_sge + 1), (u32::MAX, 1), (1, u32::MAX)] {
            let refused = Shape::new(&cap(wr, sge), &Mock::LIMITS, false);
            assert_eq!(refused.err(), Some(Errno::EINVAL), "{wr} requests of {sge}");
        }
    }

    #[test]
    fn a_qp_of_more_pages_than_the_device_can_count_is_refused() {
        let limits = Limits { max_qp_wr: 1 << 30, ..Mock::LIMITS };
        assert_eq!(Shape::new(&cap(1 << 30, 16), &limits, false).err(), Some(Errno::EINVAL));
        assert_eq!(Shape::new(&cap(1 << 19, 16), &limits, false).err(), Some(Errno::EINVAL));
    }

    #[test]
    fn the_handle_is_what_the_kernel_says_or_the_number() {
        let resp = |qpn, qp_handle| pvrdma_create_qp_resp { qpn, qp_handle };
        assert_eq!(handle_of(&resp(9, 5), 9), Ok(5));
        assert_eq!(handle_of(&resp(9, 0), 9), Ok(9));
        assert_eq!(handle_of(&resp(0, 0), 9), Ok(9));
        assert_eq!(handle_of(&resp(0x12_3456, 0), 0x12_3456), Ok(0x12_3456));
        assert_eq!(handle_of(&resp(9, 0x100_0000), 9), Err(Errno::EIO));
    }

    /// Devices without handles of their own, in front of an adapter whose QP numbers have 24 bits.
    #[test]
    fn a_handle_above_16_bits_is_told_by_what_completions_carry_of_it() {
        let world = World::new();
        // SAFETY: an open context.
        let cq = unsafe { crate::verbs::cq::create_cq(world.context, 4, ptr::null_mut(), 0) }.unwrap();
        world.rung(PVRDMA_UAR_QP_OFFSET);
        let create = |qp_handle| {
            world.state().lie = Some(Lie::Handle(0, qp_handle));
            let cap = cap(1, 1);
            // SAFETY: integers and pointers only; a live PD, a live CQ.
            unsafe {
                let zero: ibv_qp_init_attr = core::mem::zeroed();
                let mut init = ibv_qp_init_attr { send_cq: cq, recv_cq: cq, qp_type: IBV_QPT_RC, cap, ..zero };
                create_qp(world.pd, &mut init)
            }
        };
        let a = create(0x12_0005).unwrap();
        assert_eq!(create(0x34_0005).err(), Some(Errno::EIO), "its completions would be those of the other");
        let b = create(0x12_0006).unwrap();
        // SAFETY: live QPs and a live CQ.
        unsafe {
            let mut attr = ibv_qp_attr { qp_state: IBV_QPS_RTS, ..Default::default() };
            modify_qp(a, &mut attr, IBV_QP_STATE as c_int).unwrap();
            let mut wr: ibv_send_wr = core::mem::zeroed();
            (wr.opcode, wr.send_flags) = (IBV_WR_SEND, IBV_SEND_SIGNALED);
            post_send(Qp::of(a), &mut wr).unwrap();
            let rung = world.rung(PVRDMA_UAR_QP_OFFSET);
            assert_eq!(rung, PVRDMA_UAR_QP_SEND | 0x12_0005, "the device is told all of it");
            let ring = world.state().cqs.get(&(*cq).handle).unwrap().ring;
            for (qp, wr_id) in [(0x12_0005, 1), (0x12_0006, 2), (0x12_0005, 3)] {
                assert!(ring.put(pvrdma_cqe { qp, ..send_cqe(wr_id) }));
            }
            let mut wc = ibv_wc::default();
            assert_eq!(poll_cq(Cq::of(cq), 1, &mut wc), 1);
            assert_eq!((wc.wr_id, wc.qp_num), (1, (*a).qp_num));
            // What is left of it goes with it, and with it alone.
            destroy_qp(a).unwrap();
            assert_eq!(poll_cq(Cq::of(cq), 1, &mut wc), 1);
            assert_eq!((wc.wr_id, wc.qp_num), (2, (*b).qp_num));
            assert_eq!(poll_cq(Cq::of(cq), 1, &mut wc), 0);
            let again = create(0x34_0005).unwrap();
            destroy_qp(b).unwrap();
            destroy_qp(again).unwrap();
            crate::verbs::cq::destroy_cq(cq).unwrap();
        }
        world.close();
    }

    #[test]
    fn starting_over_empties_the_rings_and_the_cq() {
        let mock = Mock::new(4, 1, 8);
        let mut sge = ibv_sge::default();
        let mut wr = ibv_recv_wr { wr_id: 0, next: ptr::null_mut(), sg_list: &mut sge, num_sge: 1 };
        // SAFETY: a valid request.
        unsafe { crate::testing::mock::post_recv(&mock.qp, &mut wr) }.unwrap();
        mock.put(send_cqe(1));
        assert_eq!(mock.counters(), [0, 0, 1, 0]);

        mock.qp.set_state(IBV_QPS_RESET);
        mock.qp.start_over();

        assert_eq!(mock.counters(), [0; 4]);
        let mut wc = ibv_wc::default();
        // SAFETY: room for one.
        assert_eq!(unsafe { poll_cq(&mock.cq, 1, &mut wc) }, 0);
    }

    #[test]
    fn what_posting_needs_is_two_neighbouring_cache_lines() {
        // The lock itself comes before what it protects.
        assert_eq!(SpinLock::<WorkQueue>::DATA_AT + WorkQueue::EACH_REQUEST, 64);
        assert_eq!(size_of::<SpinLock<WorkQueue>>(), 128);
        assert_eq!(offset_of!(Qp, sq) % 128, 0);
        assert_eq!(offset_of!(Qp, rq) % 128, 0);
    }
}
