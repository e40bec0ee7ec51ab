//! A kernel without a kernel: what libibverbs's command functions do, played by hand, so that the slow
//! verbs (create, modify, destroy) run in a test process too. It hands out the smallest free handle,
//! as devices do, so handles are soon used again; it counts who uses what; and it can be told to lie.
//!
//! Used by [`super::wild`], by the model and thread tests and by the fuzz target. Each [`World`] is one
//! open device; worlds know nothing of each other. The commands are in [`commands`].

mod commands;
pub mod states;

use super::mock::{Mock, RecvWqe, Ring, SendWqe, UarPage};
use crate::ops::OPS;
use crate::ring::uar::Uar;
use crate::support::loaded::Loaded;
use crate::verbs::context::Context;
use crate::verbs::pd;
use core::ffi::{c_int, c_void};
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicU32, Ordering};
use pvrdma_ffi::pabi::{Layout, Libibverbs};
use pvrdma_ffi::uapi::vmw_pvrdma::*;
use pvrdma_ffi::verbs::*;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

/// One open device and what the kernel knows of it.
pub struct World {
    /// For verbs that want it.
    pub context: *mut ibv_context,
    /// A parent domain; its allocator puts a page that nobody may touch on either side.
    pub pd: *mut ibv_pd,
    /// What that stands for.
    pub real_pd: *mut ibv_pd,
    state: Mutex<State>,
    pages: Mutex<BTreeMap<usize, usize>>,
    uar_page: Box<UarPage>,
}

// SAFETY: the context is made for any thread; what changes is behind locks.
unsafe impl Send for World {}
// SAFETY: as above.
unsafe impl Sync for World {}

/// What the kernel keeps.
#[derive(Default)]
pub struct State {
    /// Users of a PD, by its handle.
    pub pds: BTreeMap<u32, u32>,
    /// By key.
    pub regions: BTreeMap<u32, Region>,
    /// By CQ number.
    pub cqs: BTreeMap<u32, DeviceCq>,
    /// By QP handle.
    pub qps: BTreeMap<u32, DeviceQp>,
    /// By SRQ number.
    pub srqs: BTreeMap<u32, DeviceSrq>,
    /// What the next command answers instead of the truth.
    pub lie: Option<Lie>,
    /// `device_cap_flags_ex`.
    pub cap_flags_ex: u64,
    /// What a provider must not do and did. (A panic would have to pass through C.)
    pub complaints: Vec<&'static str>,
    /// Are changes of a QP's state judged? Without it any goes.
    pub strict: bool,
    /// Does the command that frees a handle come back at once? Otherwise there is time for others to be
    /// given the handle before its caller knows.
    pub prompt: bool,
    /// Number of the last QP, key of the last region.
    last_qpn: u32,
    last_key: u32,
}

/// A ring as the device has it.
#[derive(Clone, Copy)]
pub struct DeviceRing(pub(crate) Ring);

// SAFETY: used under the lock of the state; the memory is shared with the provider by atomics and
// by the rules of the ring.
unsafe impl Send for DeviceRing {}

/// A region of registered memory.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    /// Where it is.
    pub start: u64,
    /// How long.
    pub length: u64,
    /// Its PD.
    pub pd: u32,
}

/// A CQ as the device has it.
pub struct DeviceCq {
    /// Its entries.
    pub ring: DeviceRing,
    /// NULL, or whom to wake.
    pub channel: usize,
    users: u32,
}

/// An SRQ as the device has it.
pub struct DeviceSrq {
    /// Its requests.
    pub ring: DeviceRing,
    /// Fewer than these are an event.
    pub limit: u32,
    users: u32,
    pd: u32,
}

/// A QP as the device has it.
pub struct DeviceQp {
    /// Its number.
    pub qpn: u32,
    /// Send queue.
    pub sq: DeviceRing,
    /// Receive queue, if it has one of its own.
    pub rq: Option<DeviceRing>,
    /// The SRQ it has instead.
    pub srq: Option<u32>,
    /// Where sends complete.
    pub send_cq: u32,
    /// Where receives complete.
    pub recv_cq: u32,
    /// The device's own state.
    pub state: u32,
    /// What the kernel driver takes that for. It learns of a change that the device made when asked.
    pub known: u32,
    pd: u32,
    ud: bool,
}

impl DeviceQp {
    /// What comes of `modify_qp`: the errno, or the new state.
    ///
    /// The driver judges by the state it knows of, or by the one that the caller claims; the device,
    /// which sees only what passed, by its own. Its refusals are all EFAULT.
    pub fn judge(&self, attr: &ibv_qp_attr, mask: u32) -> Result<u32, c_int> {
        let claimed = mask & pvrdma_ffi::dev_api::PVRDMA_QP_CUR_STATE != 0;
        let from = if claimed { attr.cur_qp_state } else { self.known };
        let to = if mask & IBV_QP_STATE != 0 { attr.qp_state } else { from };
        if !states::legal(self.ud, from, to, mask) {
            return Err(libc::EINVAL);
        }
        if from != self.state && states::attributes(self.ud, self.state, to).is_none() {
            return Err(libc::EFAULT);
        }
        Ok(to)
    }
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

    /// Entries in it, if the counters can be right.
    pub fn used(self) -> u32 {
        let ((tail, head), both) = (self.counters(), 2 * self.0.entries);
        (tail % both + both - head % both) % both
    }

    /// Overwrite a counter.
    pub fn set(self, producer: bool, value: u32) {
        Ring::store(if producer { self.0.prod_tail } else { self.0.cons_head }, value);
    }

    /// Take the oldest WQE, if the counters say that there is one: its `wr_id`, and what a send has for flags.
    pub fn take(self) -> Option<(u64, u32)> {
        // SAFETY: a slot of the ring; both kinds of WQE begin with the `wr_id`, and no slot is
        // shorter than 32 bytes.
        self.0.take(|at| unsafe { (at.cast::<u64>().read_volatile(), at.add(20).cast::<u32>().read_volatile()) })
    }

    /// Take the oldest request of a send queue, all of it.
    pub fn take_send(self) -> Option<SendWqe> {
        self.0.take_send()
    }

    /// Take the oldest request of a receive queue, all of it.
    pub fn take_recv(self) -> Option<RecvWqe> {
        self.0.take_recv()
    }

    /// Write an entry at `index`, without telling.
    pub fn write(self, index: u32, cqe: pvrdma_cqe) {
        // SAFETY: a slot of a completion ring. The provider may read it meanwhile, as it may with a
        // device that breaks the rules.
        unsafe { self.0.at(index).cast::<pvrdma_cqe>().write_volatile(cqe) };
    }

    /// Put an entry, if there is room by the device's own reckoning.
    pub fn put(self, cqe: pvrdma_cqe) -> bool {
        if self.used() >= self.0.entries {
            return false;
        }
        let (tail, _) = self.counters();
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
            Loaded::set(Libibverbs { layout, functions: commands::functions(), qp_comp_mask: 360 }, &OPS);
        });
        let uar_page = Box::new(UarPage([const { AtomicU32::new(0) }; PVRDMA_PAGE_SIZE / 4]));
        // SAFETY: the page lives in the World, as long as its objects do.
        let uar = unsafe { Uar::from_page(NonNull::from(&*uar_page).cast()) };
        let context = Context::by_hand(uar, Mock::LIMITS).unwrap();
        let mut world = Box::new(Self {
            context,
            pd: ptr::null_mut(),
            real_pd: ptr::null_mut(),
            state: Mutex::default(),
            pages: Mutex::default(),
            uar_page,
        });
        let itself: *mut c_void = ptr::from_mut(&mut *world).cast();
        // SAFETY: the context was made above; the World stays where it is.
        unsafe {
            (*context).abi_compat = itself;
            world.real_pd = pd::alloc_pd(context).unwrap();
            let mut attr = world.guarded(world.real_pd, ptr::null_mut());
            world.pd = pd::alloc_parent_domain(context, &mut attr).unwrap();
        }
        world
    }

    /// What asks for a parent domain of `pd` whose queues have a page on either side that nobody may touch.
    pub fn guarded(&self, pd: *mut ibv_pd, td: *mut ibv_td) -> ibv_parent_domain_init_attr {
        ibv_parent_domain_init_attr {
            pd,
            td,
            comp_mask: IBV_PARENT_DOMAIN_INIT_ATTR_ALLOCATORS | IBV_PARENT_DOMAIN_INIT_ATTR_PD_CONTEXT,
            alloc: Some(alloc),
            free: Some(free),
            pd_context: ptr::from_ref(self).cast_mut().cast(),
        }
    }

    /// What the kernel keeps.
    pub fn state(&self) -> MutexGuard<'_, State> {
        // A thread that failed is a failure once, and not one in each of the others too.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last value stored to the doorbell at `offset` since the last look; 0: none.
    pub fn rung(&self, offset: usize) -> u32 {
        self.uar_page.0.get(offset / 4).map_or(0, |word| word.swap(0, Ordering::Relaxed))
    }

    /// Close it. Everything must have been destroyed.
    pub fn close(self: Box<Self>) {
        // SAFETY: nothing uses them any more.
        unsafe {
            pd::dealloc_pd(self.pd).unwrap();
            pd::dealloc_pd(self.real_pd).unwrap();
        }
        let state = self.state();
        assert!(state.complaints.is_empty(), "{:?}", state.complaints);
        assert!(state.cqs.is_empty() && state.qps.is_empty() && state.srqs.is_empty(), "objects are left");
        assert!(state.pds.is_empty() && state.regions.is_empty(), "left: {:?} {:?}", state.pds, state.regions);
        drop(state);
        assert_eq!(self.pages.lock().unwrap().len(), 0, "queue memory is left");
        // SAFETY: as above.
        unsafe { Context::free_by_hand(self.context) };
    }
}

impl core::fmt::Debug for World {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("World").finish_non_exhaustive()
    }
}

// ---- memory of the application -----------------------------------------------------------------

unsafe extern "C" fn alloc(_: *mut ibv_pd, world: *mut c_void, len: usize, _: usize, _: u64) -> *mut c_void {
    // SAFETY: `guarded` gave the World as context; the mapping is fresh.
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
