//! The command functions of the mock kernel. libibverbs calls nobody else; the provider calls these.

use super::{DeviceCq, DeviceQp, DeviceRing, DeviceSrq, Lie, Region, State, World};
use crate::testing::mock::{Ring, stride};
use core::ffi::{c_int, c_void};
use core::ptr::NonNull;
use pvrdma_ffi::pabi::{Functions, Resp, verbs_mr};
use pvrdma_ffi::uapi::ib_user_verbs::*;
use pvrdma_ffi::uapi::vmw_pvrdma::*;
use pvrdma_ffi::verbs::*;
use std::collections::BTreeMap;

/// All of them.
pub fn functions() -> Functions {
    let mut all = Functions::by_hand();
    all.alloc_pd = alloc_pd;
    all.dealloc_pd = dealloc_pd;
    all.reg_mr = reg_mr;
    all.dereg_mr = dereg_mr;
    all.create_cq = create_cq;
    all.destroy_cq = destroy_cq;
    all.create_qp = create_qp;
    all.modify_qp = modify_qp;
    all.query_qp = query_qp;
    all.destroy_qp = destroy_qp;
    all.create_srq = create_srq;
    all.modify_srq = modify_srq;
    all.query_srq = query_srq;
    all.destroy_srq = destroy_srq;
    all.dontfork_range = fork_range;
    all.dofork_range = fork_range;
    all.set_query_device(query_device);
    all
}

/// # Safety
/// `context` must be that of a World.
unsafe fn world<'a>(context: *mut ibv_context) -> &'a World {
    // SAFETY: `World::new` has set it.
    unsafe { &*(*context).abi_compat.cast() }
}

/// The driver's part of a request.
///
/// # Safety
/// `cmd` must be a request of `len` bytes that ends with a `D`.
unsafe fn driver<D>(cmd: *mut c_void, len: usize) -> D {
    // SAFETY: promise of the caller.
    unsafe { cmd.byte_add(len - size_of::<D>()).cast::<D>().read_unaligned() }
}

/// A ring of a provider's buffer: counters, slots, how many, how long.
fn ring(words: *mut pvrdma_ring, slots: u64, entries: u32, stride: usize) -> DeviceRing {
    DeviceRing(Ring::of(words, NonNull::new(slots as *mut u8).unwrap(), entries, stride))
}

/// The ring of a buffer that is a state page and the slots: that of a CQ or an SRQ.
///
/// # Safety
/// `start` must be a mapped buffer of `len` bytes.
unsafe fn whole_ring(state: &mut State, (start, len): (u64, u32), entries: u32, stride: usize) -> DeviceRing {
    // SAFETY: promise of the caller.
    let words = unsafe { &raw mut (*(start as *mut pvrdma_ring_state)).rx };
    let slots = start + PVRDMA_PAGE_SIZE as u64;
    state.expect(slots + u64::from(entries) * stride as u64 <= start + u64::from(len), "a buffer that is too short");
    ring(words, slots, entries, stride)
}

fn smallest_free<T>(map: &BTreeMap<u32, T>) -> u32 {
    (1..).find(|handle| !map.contains_key(handle)).unwrap()
}

impl State {
    fn refusal(&mut self) -> Option<c_int> {
        match self.lie {
            Some(Lie::Refuse(errno)) => {
                self.lie = None;
                Some(errno)
            }
            _ => None,
        }
    }

    fn expect(&mut self, fine: bool, complaint: &'static str) {
        if !fine {
            self.complaints.push(complaint);
        }
    }

    /// A QP comes (`change` is 1) or goes.
    fn count(&mut self, pd: u32, cqs: [u32; 2], srq: Option<u32>, change: i32) {
        let change = |users: &mut u32| *users = users.checked_add_signed(change).unwrap();
        change(self.pds.get_mut(&pd).unwrap());
        cqs.iter().for_each(|cq| change(&mut self.cqs.get_mut(cq).unwrap().users));
        srq.iter().for_each(|srq| change(&mut self.srqs.get_mut(srq).unwrap().users));
    }
}

/// Answer `$errno` if that is the lie.
macro_rules! unless_refused {
    ($state:ident) => {
        if let Some(errno) = $state.refusal() {
            return errno;
        }
    };
}

unsafe extern "C" fn fork_range(_: *mut c_void, _: usize) -> c_int {
    0
}

unsafe extern "C" fn query_device(
    context: *mut ibv_context,
    _: *const ibv_query_device_ex_input,
    attr: *mut ibv_device_attr_ex,
    attr_len: usize,
    _: *mut ib_uverbs_ex_query_device_resp,
    _: *mut usize,
) -> c_int {
    // SAFETY: that of a World; room for as much as is said.
    unsafe {
        let mut state = world(context).state();
        unless_refused!(state);
        state.expect(attr_len == size_of::<ibv_device_attr_ex>(), "asks for less than it reads");
        (*attr).device_cap_flags_ex = state.cap_flags_ex;
    }
    0
}

// ---- domains and regions -----------------------------------------------------------------------

unsafe extern "C" fn alloc_pd(
    context: *mut ibv_context,
    pd: *mut ibv_pd,
    _: *mut c_void,
    _: usize,
    resp: *mut ib_uverbs_alloc_pd_resp,
    _: usize,
) -> c_int {
    // SAFETY: the provider's own PD, a complete answer.
    unsafe {
        let mut state = world(context).state();
        unless_refused!(state);
        let handle = smallest_free(&state.pds);
        state.pds.insert(handle, 0);
        (*pd).context = context;
        (*pd).handle = handle;
        (*resp.cast::<Resp<ib_uverbs_alloc_pd_resp, pvrdma_alloc_pd_resp>>()).driver.pdn = handle;
    }
    0
}

unsafe extern "C" fn dealloc_pd(pd: *mut ibv_pd) -> c_int {
    // SAFETY: the provider's own PD.
    let (mut state, handle) = unsafe { (world((*pd).context).state(), (*pd).handle) };
    unless_refused!(state);
    if state.pds[&handle] > 0 {
        return libc::EBUSY;
    }
    state.pds.remove(&handle);
    0
}

unsafe extern "C" fn reg_mr(
    pd: *mut ibv_pd,
    addr: *mut c_void,
    length: usize,
    _: u64,
    _: c_int,
    mr: *mut verbs_mr,
    _: *mut c_void,
    _: usize,
    _: *mut ib_uverbs_reg_mr_resp,
    _: usize,
) -> c_int {
    // SAFETY: the provider's own PD and region.
    unsafe {
        let mut state = world((*pd).context).state();
        unless_refused!(state);
        let pd_handle = (*pd).handle;
        state.last_key += 1;
        let key = state.last_key;
        *state.pds.get_mut(&pd_handle).unwrap() += 1;
        state.regions.insert(key, Region { start: addr as u64, length: length as u64, pd: pd_handle });
        (*mr).ibv_mr.context = (*pd).context;
        (*mr).ibv_mr.lkey = key;
    }
    0
}

unsafe extern "C" fn dereg_mr(mr: *mut verbs_mr) -> c_int {
    // SAFETY: a region that `reg_mr` made.
    let (mut state, key) = unsafe { (world((*mr).ibv_mr.context).state(), (*mr).ibv_mr.lkey) };
    unless_refused!(state);
    let region = state.regions.remove(&key).unwrap();
    *state.pds.get_mut(&region.pd).unwrap() -= 1;
    0
}

// ---- completion queues -------------------------------------------------------------------------

unsafe extern "C" fn create_cq(
    context: *mut ibv_context,
    cqe: c_int,
    channel: *mut ibv_comp_channel,
    _: c_int,
    cq: *mut ibv_cq,
    cmd: *mut c_void,
    cmd_len: usize,
    resp: *mut ib_uverbs_create_cq_resp,
    _: usize,
) -> c_int {
    // SAFETY: the provider's own CQ, complete request and answer.
    unsafe {
        let mut state = world(context).state();
        unless_refused!(state);
        let request: pvrdma_create_cq = driver(cmd, cmd_len);
        let handle = smallest_free(&state.cqs);
        let ring = whole_ring(&mut state, (request.buf_addr, request.buf_size), cqe as u32, size_of::<pvrdma_cqe>());
        state.cqs.insert(handle, DeviceCq { ring, channel: channel.addr(), users: 0 });
        let answer = &mut *resp.cast::<Resp<ib_uverbs_create_cq_resp, pvrdma_create_cq_resp>>();
        (*cq).context = context;
        (*cq).handle = handle;
        (*cq).cqe = cqe;
        answer.driver.cqn = handle;
        match state.lie.take() {
            Some(Lie::Cqe(cqe)) => (*cq).cqe = cqe,
            Some(Lie::Number(cqn)) => answer.driver.cqn = cqn,
            other => state.lie = other,
        }
    }
    0
}

unsafe extern "C" fn destroy_cq(cq: *mut ibv_cq) -> c_int {
    // SAFETY: the provider's own CQ.
    let (mut state, handle) = unsafe { (world((*cq).context).state(), (*cq).handle) };
    unless_refused!(state);
    if state.cqs[&handle].users > 0 {
        return libc::EBUSY;
    }
    let cq = state.cqs.remove(&handle).unwrap();
    state.expect(cq.ring.nothing_behind(), "written behind a CQ");
    0
}

// ---- queue pairs -------------------------------------------------------------------------------

unsafe extern "C" fn create_qp(
    pd: *mut ibv_pd,
    qp: *mut ibv_qp,
    init: *mut ibv_qp_init_attr,
    cmd: *mut c_void,
    cmd_len: usize,
    resp: *mut ib_uverbs_create_qp_resp,
    _: usize,
) -> c_int {
    // SAFETY: the provider's own QP, complete request and answer.
    unsafe {
        let context = (*pd).context;
        let mut state = world(context).state();
        unless_refused!(state);
        let request: pvrdma_create_qp = driver(cmd, cmd_len);
        let init = &*init;
        state.expect(init.cap.max_inline_data == 0, "inline data is asked of the device");
        // Some releases of libibverbs copy the whole of it to where that is a `comp_mask`.
        state.expect(init.padding == 0, "the padding of what a QP is made from is not 0");
        let handle = smallest_free(&state.qps);
        state.last_qpn += 1;
        let qpn = state.last_qpn;
        let words = request.sbuf_addr as *mut pvrdma_ring_state;
        let cap = &init.cap;
        let slots = request.sbuf_addr + PVRDMA_PAGE_SIZE as u64;
        let sq = ring(&raw mut (*words).tx, slots, cap.max_send_wr, stride(80, cap.max_send_sge));
        let rq = (request.rbuf_addr != 0)
            .then(|| ring(&raw mut (*words).rx, request.rbuf_addr, cap.max_recv_wr, stride(16, cap.max_recv_sge)));
        let device = DeviceQp {
            qpn,
            sq,
            rq,
            srq: init.srq.as_ref().map(|srq| srq.handle),
            send_cq: (*init.send_cq).handle,
            recv_cq: (*init.recv_cq).handle,
            state: IBV_QPS_RESET,
            known: IBV_QPS_RESET,
            pd: (*pd).handle,
            ud: init.qp_type == IBV_QPT_UD,
        };
        state.count(device.pd, [device.send_cq, device.recv_cq], device.srq, 1);
        state.qps.insert(handle, device);
        (*qp).context = context;
        (*qp).pd = pd;
        (*qp).handle = handle;
        (*qp).qp_num = qpn;
        (*qp).qp_type = init.qp_type;
        let answer = &mut *resp.cast::<Resp<ib_uverbs_create_qp_resp, pvrdma_create_qp_resp>>();
        answer.driver = pvrdma_create_qp_resp { qpn, qp_handle: handle };
        match state.lie.take() {
            Some(Lie::Qpn(qpn)) => (*qp).qp_num = qpn,
            Some(Lie::Handle(qpn, qp_handle)) => answer.driver = pvrdma_create_qp_resp { qpn, qp_handle },
            other => state.lie = other,
        }
    }
    0
}

unsafe extern "C" fn modify_qp(
    qp: *mut ibv_qp,
    attr: *mut ibv_qp_attr,
    mask: c_int,
    _: *mut c_void,
    _: usize,
) -> c_int {
    // SAFETY: the provider's own QP, the caller's attributes.
    let (mut state, handle, attr) = unsafe { (world((*qp).context).state(), (*qp).handle, &*attr) };
    unless_refused!(state);
    let strict = state.strict;
    let device = state.qps.get_mut(&handle).unwrap();
    match device.judge(attr, mask as u32) {
        Err(errno) if strict => return errno,
        Err(_) => device.state = attr.qp_state,
        Ok(to) => device.state = to,
    }
    device.known = device.state;
    0
}

/// As the kernel driver: of a QP in RESET only the state is right, and `cap` and the signalling mode
/// never are.
unsafe extern "C" fn query_qp(
    qp: *mut ibv_qp,
    attr: *mut ibv_qp_attr,
    _: c_int,
    init: *mut ibv_qp_init_attr,
    _: *mut c_void,
    _: usize,
) -> c_int {
    // SAFETY: the provider's own QP, complete outputs.
    unsafe {
        let mut state = world((*qp).context).state();
        unless_refused!(state);
        let device = state.qps.get_mut(&(*qp).handle).unwrap();
        device.known = device.state;
        let rubbish = 0x5a5a_5a5a;
        (*attr).qp_state = device.state;
        (*attr).cur_qp_state = device.state;
        (*attr).cap.max_recv_wr = rubbish;
        (*attr).cap.max_inline_data = rubbish;
        (*init).cap = (*attr).cap;
        (*init).sq_sig_all = 0x5a;
        (*attr).qkey = if device.state == IBV_QPS_RESET { rubbish } else { device.qpn };
    }
    0
}

unsafe extern "C" fn destroy_qp(qp: *mut ibv_qp) -> c_int {
    // SAFETY: the provider's own QP.
    let (mut state, handle) = unsafe { (world((*qp).context).state(), (*qp).handle) };
    unless_refused!(state);
    let qp = state.qps.remove(&handle).unwrap();
    state.count(qp.pd, [qp.send_cq, qp.recv_cq], qp.srq, -1);
    let fine = qp.sq.nothing_behind() && qp.rq.is_none_or(DeviceRing::nothing_behind);
    state.expect(fine, "written behind a QP");
    if !state.prompt {
        drop(state);
        (0..20).for_each(|_| std::thread::yield_now());
    }
    0
}

// ---- shared receive queues ---------------------------------------------------------------------

unsafe extern "C" fn create_srq(
    pd: *mut ibv_pd,
    srq: *mut ibv_srq,
    init: *mut ibv_srq_init_attr,
    cmd: *mut c_void,
    cmd_len: usize,
    resp: *mut ib_uverbs_create_srq_resp,
    _: usize,
) -> c_int {
    // SAFETY: the provider's own SRQ, complete request and answer.
    unsafe {
        let context = (*pd).context;
        let mut state = world(context).state();
        unless_refused!(state);
        let request: pvrdma_create_srq = driver(cmd, cmd_len);
        let handle = smallest_free(&state.srqs);
        let attr = &(*init).attr;
        state.expect((*init).padding == 0, "the padding of what an SRQ is made from is not 0");
        let ring = whole_ring(&mut state, (request.buf_addr, request.buf_size), attr.max_wr, stride(16, attr.max_sge));
        let device = DeviceSrq { ring, limit: attr.srq_limit, users: 0, pd: (*pd).handle };
        *state.pds.get_mut(&device.pd).unwrap() += 1;
        state.srqs.insert(handle, device);
        (*srq).context = context;
        (*srq).handle = handle;
        let answer = &mut *resp.cast::<Resp<ib_uverbs_create_srq_resp, pvrdma_create_srq_resp>>();
        answer.driver.srqn = handle;
        match state.lie.take() {
            Some(Lie::Number(srqn)) => answer.driver.srqn = srqn,
            other => state.lie = other,
        }
    }
    0
}

unsafe extern "C" fn modify_srq(
    srq: *mut ibv_srq,
    attr: *mut ibv_srq_attr,
    mask: c_int,
    _: *mut c_void,
    _: usize,
) -> c_int {
    // SAFETY: the provider's own SRQ, the caller's attributes.
    let (mut state, handle, limit) = unsafe { (world((*srq).context).state(), (*srq).handle, (*attr).srq_limit) };
    unless_refused!(state);
    state.expect(mask as u32 == IBV_SRQ_LIMIT, "an SRQ shall change in what it cannot");
    state.srqs.get_mut(&handle).unwrap().limit = limit;
    0
}

unsafe extern "C" fn query_srq(srq: *mut ibv_srq, attr: *mut ibv_srq_attr, _: *mut c_void, _: usize) -> c_int {
    // SAFETY: the provider's own SRQ, a complete output.
    unsafe {
        let mut state = world((*srq).context).state();
        unless_refused!(state);
        let srq_limit = state.srqs[&(*srq).handle].limit;
        attr.write(ibv_srq_attr { max_wr: 0x5a5a, max_sge: 0x5a5a, srq_limit });
    }
    0
}

unsafe extern "C" fn destroy_srq(srq: *mut ibv_srq) -> c_int {
    // SAFETY: the provider's own SRQ.
    let (mut state, handle) = unsafe { (world((*srq).context).state(), (*srq).handle) };
    unless_refused!(state);
    if state.srqs[&handle].users > 0 {
        return libc::EBUSY;
    }
    let srq = state.srqs.remove(&handle).unwrap();
    *state.pds.get_mut(&srq.pd).unwrap() -= 1;
    state.expect(srq.ring.nothing_behind(), "written behind an SRQ");
    0
}
