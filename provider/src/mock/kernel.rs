//! A kernel without a kernel: what libibverbs's command functions do, played by hand, so that the slow
//! verbs (create, modify, destroy) run in a test process too. It hands out the smallest free handle,
//! as devices do, so handles are soon used again; and it can be told to lie.
//!
//! Used by [`super::wild`], by the model test and by the fuzz target. Each [`World`] is one open
//! device; worlds know nothing of each other.

use super::{Mock, Ring, UarPage, stride};
use crate::context::{Context, Loaded};
use crate::uar::Uar;
use crate::{domain, pd};
use core::ffi::{c_int, c_void};
use core::ptr::{self, NonNull};
use core::sync::atomic::AtomicU32;
use pvrdma_ffi::pabi::{Functions, Layout, Libibverbs, Resp, verbs_mr};
use pvrdma_ffi::uapi::ib_user_verbs::*;
use pvrdma_ffi::uapi::vmw_pvrdma::*;
use pvrdma_ffi::verbs::*;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, Once};

/// One open device and what the kernel knows of it.
pub struct World {
    /// For verbs that want it.
    pub context: *mut ibv_context,
    /// A parent domain; its allocator puts a page that nobody may touch on either side.
    pub pd: *mut ibv_pd,
    real_pd: *mut ibv_pd,
    state: Mutex<State>,
    pages: Mutex<BTreeMap<usize, usize>>,
    _uar_page: Box<UarPage>,
}

// SAFETY: the context is made for any thread; what changes is behind locks.
unsafe impl Send for World {}
// SAFETY: as above.
unsafe impl Sync for World {}

/// What the kernel keeps.
#[derive(Default)]
pub struct State {
    /// By CQ number.
    pub cqs: BTreeMap<u32, DeviceCq>,
    /// By QP handle.
    pub qps: BTreeMap<u32, DeviceQp>,
    /// By SRQ number.
    pub srqs: BTreeMap<u32, DeviceRing>,
    /// What the next command answers instead of the truth.
    pub lie: Option<Lie>,
    /// Number of the next QP.
    next_qpn: u32,
}

/// A ring as the device has it.
#[derive(Clone, Copy)]
pub struct DeviceRing(pub(super) Ring);

// SAFETY: used under the lock of the state; the memory is shared with the provider by atomics and
// by the rules of the ring.
unsafe impl Send for DeviceRing {}

/// A CQ as the device has it.
pub struct DeviceCq {
    /// Its entries.
    pub ring: DeviceRing,
    users: u32,
}

/// A QP as the device has it.
pub struct DeviceQp {
    /// Its number.
    pub qpn: u32,
    /// Send queue.
    pub sq: DeviceRing,
    /// Receive queue, if it has one of its own.
    pub rq: Option<DeviceRing>,
    /// Where sends complete.
    pub send_cq: u32,
    /// Where receives complete.
    pub recv_cq: u32,
}

/// What a device may get wrong when asked for something.
#[derive(Clone, Copy, Debug)]
pub enum Lie {
    /// The command fails with this errno.
    Refuse(c_int),
    /// A CQ of another length.
    Cqe(c_int),
    /// Another number for a CQ or an SRQ.
    Number(u32),
    /// Another QP number.
    Qpn(u32),
    /// `qpn` and `qp_handle` of the driver's answer.
    Handle(u32, u32),
}

impl DeviceRing {
    /// Slots.
    pub fn entries(self) -> u32 {
        self.0.entries
    }

    /// `prod_tail` and `cons_head`.
    pub fn counters(self) -> (u32, u32) {
        (Ring::load(self.0.prod_tail), Ring::load(self.0.cons_head))
    }

    /// Overwrite a counter.
    pub fn set(self, producer: bool, value: u32) {
        Ring::store(if producer { self.0.prod_tail } else { self.0.cons_head }, value);
    }

    /// Take the oldest WQE, if the counters say that there is one: its `wr_id`, and what a send has for flags.
    pub fn take(self) -> Option<(u64, u32)> {
        let at = self.0.take()?;
        // SAFETY: a slot of the ring; both kinds of WQE begin with the `wr_id`, and no slot is
        // shorter than 32 bytes.
        unsafe { Some((at.cast::<u64>().read_volatile(), at.add(20).cast::<u32>().read_volatile())) }
    }

    /// Write an entry at `index`, without telling.
    pub fn write(self, index: u32, cqe: pvrdma_cqe) {
        // SAFETY: a slot of a completion ring. The provider may read it meanwhile, as it may with a
        // device that breaks the rules.
        unsafe { self.0.at(index).cast::<pvrdma_cqe>().write_volatile(cqe) };
    }

    /// Put an entry, if there is room by the device's own reckoning.
    pub fn put(self, cqe: pvrdma_cqe) -> bool {
        let (tail, head) = self.counters();
        let both = 2 * self.0.entries;
        if (tail % both + both - head % both) % both >= self.0.entries {
            return false;
        }
        self.write(tail, cqe);
        Ring::store(self.0.prod_tail, self.0.next(tail));
        true
    }

    /// Is what lies behind the last slot as it was? It is zeroed memory that nobody uses.
    fn nothing_behind(self) -> bool {
        let used = self.0.entries as usize * self.0.stride;
        let end = used.next_multiple_of(PVRDMA_PAGE_SIZE);
        // SAFETY: queues have whole pages.
        (used..end).all(|at| unsafe { self.0.slots.add(at).read() } == 0)
    }
}

impl World {
    /// Open a device.
    pub fn new() -> Box<Self> {
        static LIBIBVERBS: Once = Once::new();
        LIBIBVERBS.call_once(|| {
            let names = [c"verbs_register_driver_34", c"ibv_reg_mr_iova2"];
            let layout = Layout::select(|name| names.contains(&name)).unwrap();
            Loaded::set(Libibverbs { layout, functions: functions(), qp_comp_mask: 360 });
        });
        let uar_page = Box::new(UarPage([const { AtomicU32::new(0) }; PVRDMA_PAGE_SIZE / 4]));
        // SAFETY: the page lives in the World, as long as its objects do.
        let uar = unsafe { Uar::from_page(NonNull::from(&*uar_page).cast()) };
        let context = Context::by_hand(uar, Mock::LIMITS).unwrap();
        let mut world = Box::new(Self {
            context,
            pd: ptr::null_mut(),
            real_pd: ptr::null_mut(),
            state: Mutex::new(State { next_qpn: 1, ..State::default() }),
            pages: Mutex::default(),
            _uar_page: uar_page,
        });
        let itself: *mut c_void = ptr::from_mut(&mut *world).cast();
        // SAFETY: the context was made above; the World stays where it is.
        unsafe {
            (*context).abi_compat = itself;
            world.real_pd = pd::alloc_pd(context).unwrap();
            let mut attr = ibv_parent_domain_init_attr {
                pd: world.real_pd,
                td: ptr::null_mut(),
                comp_mask: IBV_PARENT_DOMAIN_INIT_ATTR_ALLOCATORS | IBV_PARENT_DOMAIN_INIT_ATTR_PD_CONTEXT,
                alloc: Some(alloc),
                free: Some(free),
                pd_context: itself,
            };
            world.pd = domain::alloc_parent_domain(context, &mut attr).unwrap();
        }
        world
    }

    /// What the kernel keeps.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Close it. Everything must have been destroyed.
    pub fn close(self) {
        let state = self.state();
        assert!(state.cqs.is_empty() && state.qps.is_empty() && state.srqs.is_empty(), "objects are left");
        drop(state);
        assert_eq!(self.pages.lock().unwrap().len(), 0, "queue memory is left");
        // SAFETY: nothing uses them any more.
        unsafe {
            pd::dealloc_pd(self.pd).unwrap();
            pd::dealloc_pd(self.real_pd).unwrap();
            Context::free_by_hand(self.context);
        }
    }
}

impl core::fmt::Debug for World {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("World").finish_non_exhaustive()
    }
}

// ---- memory of the application -----------------------------------------------------------------

unsafe extern "C" fn alloc(_: *mut ibv_pd, world: *mut c_void, len: usize, _: usize, _: u64) -> *mut c_void {
    // SAFETY: `new` gave the World as context; the mapping is fresh.
    unsafe {
        let world = &*world.cast::<World>();
        let all = len + 2 * PVRDMA_PAGE_SIZE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let start = libc::mmap(ptr::null_mut(), all, libc::PROT_NONE, flags, -1, 0);
        assert!(start != libc::MAP_FAILED, "memory");
        let middle = start.byte_add(PVRDMA_PAGE_SIZE);
        assert_eq!(libc::mprotect(middle, len, libc::PROT_READ | libc::PROT_WRITE), 0);
        world.pages.lock().unwrap().insert(middle.addr(), len);
        middle
    }
}

unsafe extern "C" fn free(_: *mut ibv_pd, world: *mut c_void, middle: *mut c_void, _: u64) {
    // SAFETY: as above, and `alloc` mapped a page on either side.
    unsafe {
        let len = (*world.cast::<World>()).pages.lock().unwrap().remove(&middle.addr()).unwrap();
        libc::munmap(middle.byte_sub(PVRDMA_PAGE_SIZE), len + 2 * PVRDMA_PAGE_SIZE);
    }
}

// ---- libibverbs --------------------------------------------------------------------------------

fn functions() -> Functions {
    let mut all = Functions::by_hand();
    all.alloc_pd = alloc_pd;
    all.dealloc_pd = dealloc_pd;
    all.reg_mr = reg_mr;
    all.dereg_mr = dereg_mr;
    all.create_cq = create_cq;
    all.destroy_cq = destroy_cq;
    all.create_qp = create_qp;
    all.modify_qp = modify_qp;
    all.destroy_qp = destroy_qp;
    all.create_srq = create_srq;
    all.destroy_srq = destroy_srq;
    all.dontfork_range = fork_range;
    all.dofork_range = fork_range;
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

    fn users_of(&mut self, send_cq: u32, recv_cq: u32, change: fn(u32) -> u32) {
        for cq in [send_cq, recv_cq] {
            let users = &mut self.cqs.get_mut(&cq).unwrap().users;
            *users = change(*users);
        }
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

unsafe extern "C" fn alloc_pd(
    context: *mut ibv_context,
    pd: *mut ibv_pd,
    _: *mut c_void,
    _: usize,
    _: *mut ib_uverbs_alloc_pd_resp,
    _: usize,
) -> c_int {
    // SAFETY: the provider's own PD.
    unsafe { (*pd).context = context };
    0
}

unsafe extern "C" fn dealloc_pd(_: *mut ibv_pd) -> c_int {
    0
}

unsafe extern "C" fn fork_range(_: *mut c_void, _: usize) -> c_int {
    0
}

unsafe extern "C" fn reg_mr(
    pd: *mut ibv_pd,
    _: *mut c_void,
    _: usize,
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
        (*mr).ibv_mr.lkey = Mock::INLINE_LKEY;
    }
    0
}

unsafe extern "C" fn dereg_mr(_: *mut verbs_mr) -> c_int {
    0
}

unsafe extern "C" fn create_cq(
    context: *mut ibv_context,
    cqe: c_int,
    _: *mut ibv_comp_channel,
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
        let words = &raw mut (*(request.buf_addr as *mut pvrdma_ring_state)).rx;
        let slots = request.buf_addr + PVRDMA_PAGE_SIZE as u64;
        assert!(slots + (cqe as u64) * 64 <= request.buf_addr + u64::from(request.buf_size));
        let ring = ring(words, slots, cqe as u32, size_of::<pvrdma_cqe>());
        state.cqs.insert(handle, DeviceCq { ring, users: 0 });
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
    assert!(cq.ring.nothing_behind(), "behind a CQ");
    0
}

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
        let handle = smallest_free(&state.qps);
        let qpn = state.next_qpn;
        state.next_qpn += 1;
        let words = request.sbuf_addr as *mut pvrdma_ring_state;
        let cap = &init.cap;
        let slots = request.sbuf_addr + PVRDMA_PAGE_SIZE as u64;
        let sq = ring(&raw mut (*words).tx, slots, cap.max_send_wr, stride(80, cap.max_send_sge));
        let rq = (request.rbuf_addr != 0)
            .then(|| ring(&raw mut (*words).rx, request.rbuf_addr, cap.max_recv_wr, stride(16, cap.max_recv_sge)));
        let (send_cq, recv_cq) = ((*init.send_cq).handle, (*init.recv_cq).handle);
        state.qps.insert(handle, DeviceQp { qpn, sq, rq, send_cq, recv_cq });
        state.users_of(send_cq, recv_cq, |users| users + 1);
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

unsafe extern "C" fn modify_qp(qp: *mut ibv_qp, _: *mut ibv_qp_attr, _: c_int, _: *mut c_void, _: usize) -> c_int {
    // SAFETY: the provider's own QP.
    let mut state = unsafe { world((*qp).context).state() };
    unless_refused!(state);
    0
}

unsafe extern "C" fn destroy_qp(qp: *mut ibv_qp) -> c_int {
    // SAFETY: the provider's own QP.
    let (mut state, handle) = unsafe { (world((*qp).context).state(), (*qp).handle) };
    unless_refused!(state);
    let qp = state.qps.remove(&handle).unwrap();
    state.users_of(qp.send_cq, qp.recv_cq, |users| users - 1);
    assert!(qp.sq.nothing_behind() && qp.rq.is_none_or(DeviceRing::nothing_behind), "behind a QP");
    drop(state);
    // The handle is free, and the caller does not know yet: time for others to be given it.
    (0..20).for_each(|_| std::thread::yield_now());
    0
}

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
        let words = &raw mut (*(request.buf_addr as *mut pvrdma_ring_state)).rx;
        let attr = &(*init).attr;
        let slots = request.buf_addr + PVRDMA_PAGE_SIZE as u64;
        state.srqs.insert(handle, ring(words, slots, attr.max_wr, stride(16, attr.max_sge)));
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

unsafe extern "C" fn destroy_srq(srq: *mut ibv_srq) -> c_int {
    // SAFETY: the provider's own SRQ.
    let (mut state, handle) = unsafe { (world((*srq).context).state(), (*srq).handle) };
    unless_refused!(state);
    assert!(state.srqs.remove(&handle).unwrap().nothing_behind(), "behind an SRQ");
    0
}
