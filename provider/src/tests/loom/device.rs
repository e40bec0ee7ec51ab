//! The other side of the models: a kernel that hands out the smallest free handle and remembers the
//! state of QPs, and rings as the device sees them. Its locks and counters are loom's.

use super::shadow;
use crate::fast::cq_ex;
use crate::ops::OPS;
use crate::ring::uar::Uar;
use crate::support::loaded::Loaded;
use crate::support::sync::{AtomicU32, Ordering};
use crate::testing::mock::Mock;
use crate::verbs::context::Context;
use crate::verbs::{pd, qp};
use ::loom::sync::{Mutex, MutexGuard};
use core::ffi::{c_int, c_void};
use core::ptr::{self, NonNull};
use pvrdma_ffi::pabi::{Functions, Layout, Libibverbs, Resp, verbs_mr};
use pvrdma_ffi::uapi::ib_user_verbs::*;
use pvrdma_ffi::uapi::vmw_pvrdma::*;
use pvrdma_ffi::verbs::*;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

thread_local! {
    static KERNEL: RefCell<Option<Rc<Mutex<State>>>> = const { RefCell::new(None) };
    // For all runs: its table of QP numbers is long, and has no value of its own between runs.
    static CONTEXT: *mut ibv_context = context();
}

/// What the kernel keeps.
#[derive(Default)]
pub struct State {
    /// By CQ number.
    pub cqs: BTreeMap<u32, Ring>,
    /// By handle.
    pub qps: BTreeMap<u32, DeviceQp>,
    last_qpn: u32,
}

/// A QP as the device has it.
#[derive(Clone, Copy)]
pub struct DeviceQp {
    /// `IBV_QPS_*`.
    pub state: u32,
    /// Send queue.
    pub sq: Ring,
}

/// The device's view of one ring.
#[derive(Clone, Copy)]
pub struct Ring {
    words: *mut pvrdma_ring,
    slots: *mut u8,
    entries: u32,
    stride: usize,
}

impl Ring {
    fn prod_tail(&self) -> &AtomicU32 {
        // SAFETY: the words of a ring that lives as long as the object it is of.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.words).prod_tail) }
    }

    fn cons_head(&self) -> &AtomicU32 {
        // SAFETY: as above.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.words).cons_head) }
    }

    /// `prod_tail` and `cons_head`.
    pub fn counters(&self) -> (u32, u32) {
        (self.prod_tail().load(Ordering::Acquire), self.cons_head().load(Ordering::Acquire))
    }

    /// Was everything given back?
    pub fn is_empty(&self) -> bool {
        let (tail, head) = self.counters();
        tail == head
    }

    fn at(&self, counter: u32) -> *mut u8 {
        // SAFETY: the remainder is below the number of slots.
        let at = unsafe { self.slots.add((counter % self.entries) as usize * self.stride) };
        shadow::own_slot(at);
        at
    }

    fn next(&self, counter: u32) -> u32 {
        (counter + 1) % (2 * self.entries)
    }

    /// Take the oldest request: its `wr_id`, and where its first piece of payload is.
    pub fn take(&self) -> Option<(u64, u64)> {
        let (tail, head) = self.counters();
        (head != tail).then(|| {
            let wqe: *const pvrdma_sq_wqe_hdr = self.at(head).cast();
            // SAFETY: a published slot: a header and one entry.
            let request = unsafe { ((*wqe).wr_id, (*wqe.add(1).cast::<pvrdma_sge>()).addr) };
            self.cons_head().store(self.next(head), Ordering::Release);
            request
        })
    }

    /// Put a completion. False: there is no room.
    pub fn put(&self, handle: u32, wr_id: u64) -> bool {
        let (tail, head) = self.counters();
        let both = 2 * self.entries;
        if (tail + both - head) % both == self.entries {
            return false;
        }
        let cqe = pvrdma_cqe { wr_id, qp: handle.into(), ..Default::default() };
        // SAFETY: a slot that was given back.
        unsafe { self.at(tail).cast::<pvrdma_cqe>().write(cqe) };
        self.prod_tail().store(self.next(tail), Ordering::Release);
        true
    }
}

/// One open device, for one run of a model.
pub struct Device {
    context: *mut ibv_context,
    pd: *mut ibv_pd,
}

fn context() -> *mut ibv_context {
    let names = [c"verbs_register_driver_34", c"ibv_reg_mr_iova2"];
    let layout = Layout::select(|name| names.contains(&name)).unwrap();
    Loaded::set(Libibverbs { layout, functions: functions(), qp_comp_mask: 360 }, &OPS);
    // SAFETY: doorbells go to `shadow::rings` and nowhere else.
    let uar = unsafe { Uar::from_page(NonNull::new(ptr::without_provenance_mut(PVRDMA_PAGE_SIZE)).unwrap()) };
    Context::by_hand(uar, Mock::LIMITS).unwrap()
}

impl Device {
    /// A device without objects.
    pub fn new() -> Rc<Self> {
        let context = CONTEXT.with(|context| *context);
        KERNEL.set(Some(Rc::new(Mutex::new(State::default()))));
        // SAFETY: a context of ours.
        let pd = unsafe { pd::alloc_pd(context) }.unwrap();
        Rc::new(Self { context, pd })
    }

    /// A CQ for both ways of polling, `single_threaded` if that is promised.
    pub fn create_cq(&self, cqe: u32, single_threaded: bool) -> *mut ibv_cq {
        // SAFETY: integers and pointers only; a context of ours.
        unsafe {
            let mut attr: ibv_cq_init_attr_ex = core::mem::zeroed();
            (attr.cqe, attr.wc_flags) = (cqe, IBV_WC_STANDARD_FLAGS.into());
            if single_threaded {
                attr.comp_mask = IBV_CQ_INIT_ATTR_MASK_FLAGS;
                attr.flags = IBV_CREATE_CQ_ATTR_SINGLE_THREADED;
            }
            cq_ex::create_cq_ex(self.context, &mut attr).unwrap().cast()
        }
    }

    /// A QP of `wr` sends with room for `inline` bytes each, in RESET. Its requests complete in `cq`.
    pub fn create_qp(&self, cq: *mut ibv_cq, wr: u32, inline: u32) -> *mut ibv_qp {
        let cap = ibv_qp_cap { max_send_wr: wr, max_send_sge: 1, max_inline_data: inline, ..Default::default() };
        // SAFETY: integers and pointers only; live objects of one context.
        unsafe {
            let mut init: ibv_qp_init_attr = core::mem::zeroed();
            (init.send_cq, init.recv_cq, init.cap, init.qp_type) = (cq, cq, cap, IBV_QPT_RC);
            qp::create_qp(self.pd, &mut init).unwrap()
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: nobody uses it any more.
            unsafe { pd::dealloc_pd(self.pd) }.unwrap();
        }
    }
}

/// What the kernel keeps in this run.
pub fn kernel<T>(look: impl FnOnce(MutexGuard<'_, State>) -> T) -> T {
    let kernel = KERNEL.with_borrow(Clone::clone).unwrap();
    let found = look(kernel.lock().unwrap());
    shadow::changed();
    found
}

/// The device takes what was posted to a QP and completes it, while there is room. It copies all it
/// needs first, and so sees what is left of a QP that goes meanwhile.
pub fn work(handle: u32) {
    kernel(|state| {
        let Some(qp) = state.qps.get(&handle) else { return };
        let cq = state.cqs[&1];
        while qp.state >= IBV_QPS_RTS
            && let Some((wr_id, payload)) = qp.sq.take()
        {
            shadow::own_slot(payload as *const u8);
            assert!(cq.put(handle, wr_id));
        }
    });
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
    all.dontfork_range = fork_range;
    all.dofork_range = fork_range;
    all
}

/// The driver's part of a request.
///
/// # Safety
/// `cmd` must be a request of `len` bytes that ends with a `D`.
unsafe fn driver<D>(cmd: *mut c_void, len: usize) -> D {
    // SAFETY: promise of the caller.
    unsafe { cmd.byte_add(len - size_of::<D>()).cast::<D>().read_unaligned() }
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
    _: *mut ibv_pd,
    _: *mut c_void,
    _: usize,
    _: u64,
    _: c_int,
    _: *mut verbs_mr,
    _: *mut c_void,
    _: usize,
    _: *mut ib_uverbs_reg_mr_resp,
    _: usize,
) -> c_int {
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
        let request: pvrdma_create_cq = driver(cmd, cmd_len);
        let words = &raw mut (*(request.buf_addr as *mut pvrdma_ring_state)).rx;
        let slots = (request.buf_addr + PVRDMA_PAGE_SIZE as u64) as *mut u8;
        let ring = Ring { words, slots, entries: cqe as u32, stride: size_of::<pvrdma_cqe>() };
        let number = kernel(|mut state| {
            let number = state.cqs.len() as u32 + 1;
            state.cqs.insert(number, ring);
            number
        });
        (*cq).context = context;
        (*cq).cqe = cqe;
        (*resp.cast::<Resp<ib_uverbs_create_cq_resp, pvrdma_create_cq_resp>>()).driver.cqn = number;
    }
    0
}

unsafe extern "C" fn destroy_cq(_: *mut ibv_cq) -> c_int {
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
        let request: pvrdma_create_qp = driver(cmd, cmd_len);
        let cap = &(*init).cap;
        let sq = Ring {
            words: &raw mut (*(request.sbuf_addr as *mut pvrdma_ring_state)).tx,
            slots: (request.sbuf_addr + PVRDMA_PAGE_SIZE as u64) as *mut u8,
            entries: cap.max_send_wr,
            stride: (80 + 16 * cap.max_send_sge as usize).next_power_of_two(),
        };
        let (handle, qpn) = kernel(|mut state| {
            let handle = (1..).find(|handle| !state.qps.contains_key(handle)).unwrap();
            state.last_qpn += 1;
            state.qps.insert(handle, DeviceQp { state: IBV_QPS_RESET, sq });
            (handle, state.last_qpn)
        });
        (*qp).context = (*pd).context;
        (*qp).pd = pd;
        (*qp).handle = handle;
        (*qp).qp_num = qpn;
        (*resp.cast::<Resp<ib_uverbs_create_qp_resp, pvrdma_create_qp_resp>>()).driver =
            pvrdma_create_qp_resp { qpn, qp_handle: handle };
    }
    0
}

unsafe extern "C" fn modify_qp(qp: *mut ibv_qp, attr: *mut ibv_qp_attr, _: c_int, _: *mut c_void, _: usize) -> c_int {
    // SAFETY: the provider's own QP, whose state models change and nothing else.
    let (handle, to) = unsafe { ((*qp).handle, (*attr).qp_state) };
    kernel(|mut state| state.qps.get_mut(&handle).unwrap().state = to);
    0
}

unsafe extern "C" fn destroy_qp(qp: *mut ibv_qp) -> c_int {
    // SAFETY: the provider's own QP.
    let handle = unsafe { (*qp).handle };
    kernel(|mut state| state.qps.remove(&handle).unwrap());
    0
}
