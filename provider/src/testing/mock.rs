//! The device's side of the rings, played by hand: takes WQEs, puts CQEs, looks at doorbells. For
//! unit tests here and for benches; needs neither libibverbs nor a device. Its index arithmetic is
//! its own, so that a mistake in [`crate::ring::counters`] does not cancel out.

use crate::fast;
use crate::ring::counters::Size;
use crate::ring::uar::Uar;
use crate::ring::uar::srq_bell;
use crate::support::buf::Buf;
use crate::support::error::Errno;
use crate::support::qp_nums::QpNums;
use crate::support::switches::Switches;
use crate::verbs::context::Limits;
use crate::verbs::cq::{self, Cq};
use crate::verbs::inline::Inline;
use crate::verbs::pd::DomainRef;
use crate::verbs::qp::{Parts, Qp, Shape};
use crate::verbs::srq::{self, Srq};
use core::ffi::c_int;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicU32, Ordering};
pub use pvrdma_ffi::rng;
use pvrdma_ffi::uapi::vmw_pvrdma::*;
use pvrdma_ffi::verbs::*;
use std::sync::Arc;

/// A doorbell page that is ordinary memory: it keeps the last value of each register.
#[repr(align(4096))]
pub(crate) struct UarPage(pub(crate) [AtomicU32; PVRDMA_PAGE_SIZE / 4]);

/// One CQ, one QP in RTS that uses it for both queues, and one SRQ, on a device that does nothing
/// until told to.
pub struct Mock {
    /// The completion queue.
    pub cq: Box<Cq>,
    /// The queue pair.
    pub qp: Box<Qp>,
    /// The shared receive queue, whether the QP uses it or not.
    pub srq: Box<Srq>,
    pub(crate) cq_ring: Ring,
    pub(crate) srq_ring: Ring,
    pub(crate) sq_ring: Ring,
    pub(crate) rq_ring: Ring,
    uar_page: Box<UarPage>,
}

/// The device's view of one ring.
#[derive(Clone, Copy)]
pub(crate) struct Ring {
    pub(crate) prod_tail: *mut u32,
    pub(crate) cons_head: *mut u32,
    pub(crate) slots: *mut u8,
    pub(crate) entries: u32,
    pub(crate) stride: usize,
}

/// A send WQE as the device reads it.
#[derive(Debug)]
pub struct SendWqe {
    /// The fixed part.
    pub hdr: pvrdma_sq_wqe_hdr,
    /// The SGL.
    pub sges: Vec<pvrdma_sge>,
}

/// A receive WQE as the device reads it.
#[derive(Debug)]
pub struct RecvWqe {
    /// The fixed part.
    pub hdr: pvrdma_rq_wqe_hdr,
    /// The SGL.
    pub sges: Vec<pvrdma_sge>,
}

/// What is not the same in all mocks.
#[derive(Default)]
struct Kind {
    ud: bool,
    srq: bool,
    all: bool,
    switches: Switches,
    inline: u32,
    single_threaded: bool,
}

/// Bytes of a slot.
pub(crate) fn stride(header: usize, sge: u32) -> usize {
    (header + 16 * sge as usize).next_power_of_two()
}

impl Ring {
    /// The ring whose counters are the second pair of the state page of `buf`.
    pub(crate) fn rx(buf: &Buf, slots_at: usize, entries: u32, stride: usize) -> Self {
        let state: *mut pvrdma_ring_state = buf.start().cast().as_ptr();
        // SAFETY: the state page of the buffer.
        let words = unsafe { &raw mut (*state).rx };
        Self::of(words, buf.at(slots_at), entries, stride)
    }

    /// The ring whose counters are the first pair of the state page of `buf`.
    pub(crate) fn tx(buf: &Buf, entries: u32, stride: usize) -> Self {
        let state: *mut pvrdma_ring_state = buf.start().cast().as_ptr();
        // SAFETY: as above.
        let words = unsafe { &raw mut (*state).tx };
        Self::of(words, buf.at(PVRDMA_PAGE_SIZE), entries, stride)
    }

    pub(crate) fn of(words: *mut pvrdma_ring, slots: NonNull<u8>, entries: u32, stride: usize) -> Self {
        // SAFETY: inside the state page.
        let (prod_tail, cons_head) = unsafe { (&raw mut (*words).prod_tail, &raw mut (*words).cons_head) };
        Self { prod_tail, cons_head, slots: slots.as_ptr(), entries, stride }
    }

    pub(crate) fn load(word: *mut u32) -> u32 {
        // SAFETY: a word of a ring that the Mock keeps mapped.
        unsafe { AtomicU32::from_ptr(word) }.load(Ordering::Acquire)
    }

    pub(crate) fn store(word: *mut u32, value: u32) {
        // SAFETY: as above.
        unsafe { AtomicU32::from_ptr(word) }.store(value, Ordering::Release);
    }

    pub(crate) fn at(&self, index: u32) -> *mut u8 {
        // SAFETY: the remainder is below the number of slots.
        unsafe { self.slots.add((index % self.entries) as usize * self.stride) }
    }

    pub(crate) fn next(&self, index: u32) -> u32 {
        // Wrapping: a hostile device puts any number there.
        index.wrapping_add(1) % (2 * self.entries)
    }

    /// Take the oldest entry: `read` it, then give its slot back.
    pub(crate) fn take<T>(&self, read: impl FnOnce(*mut u8) -> T) -> Option<T> {
        let head = Self::load(self.cons_head);
        (head != Self::load(self.prod_tail)).then(|| {
            let entry = read(self.at(head));
            Self::store(self.cons_head, self.next(head));
            entry
        })
    }

    /// Of a ring of send requests.
    pub(crate) fn take_send(&self) -> Option<SendWqe> {
        self.take(|at| {
            // SAFETY: a published slot: header, then as many entries as it says.
            unsafe {
                let hdr: pvrdma_sq_wqe_hdr = at.cast::<pvrdma_sq_wqe_hdr>().read();
                let sges = sges(at.add(size_of_val(&hdr)), hdr.num_sge);
                SendWqe { hdr, sges }
            }
        })
    }

    /// Of a ring of receive requests.
    pub(crate) fn take_recv(&self) -> Option<RecvWqe> {
        self.take(|at| {
            // SAFETY: as above.
            unsafe {
                let hdr: pvrdma_rq_wqe_hdr = at.cast::<pvrdma_rq_wqe_hdr>().read();
                let sges = sges(at.add(size_of_val(&hdr)), hdr.num_sge);
                RecvWqe { hdr, sges }
            }
        })
    }
}

impl Mock {
    /// Handle of the QP.
    pub const HANDLE: u16 = 0x0203;
    /// Number of the QP, different from the handle.
    pub const QPN: u32 = 0x1234;
    /// Number of the CQ.
    pub const CQN: u32 = 0x77;

    /// Number of the SRQ.
    pub const SRQN: u32 = 0x55;
    /// Key of the inline memory.
    pub const INLINE_LKEY: u32 = 0x66;
    /// Length of the SRQ.
    pub const SRQ_WR: u32 = 4;

    /// Limits of the device.
    pub const LIMITS: Limits =
        Limits { max_qp_wr: 16384, max_sge: 16, max_cqe: 65536, max_srq_wr: 8192, max_srq_sge: 16 };

    /// An RC QP with `wr` requests of `sge` entries in each queue, and a CQ of `cqe` entries.
    pub fn new(wr: u32, sge: u32, cqe: u32) -> Self {
        Self::build(wr, sge, cqe, Kind::default())
    }

    /// The same with a UD QP.
    pub fn ud(wr: u32, sge: u32, cqe: u32) -> Self {
        Self::build(wr, sge, cqe, Kind { ud: true, ..Kind::default() })
    }

    /// The same with a QP that takes its receives from the SRQ.
    pub fn with_srq(wr: u32, sge: u32, cqe: u32) -> Self {
        Self::build(wr, sge, cqe, Kind { srq: true, ..Kind::default() })
    }

    /// A small RC QP of a process that has switches on.
    pub fn switched(switches: Switches) -> Self {
        Self::build(8, 1, 8, Kind { switches, ..Kind::default() })
    }

    /// A small RC QP made with `sq_sig_all`.
    pub fn signaling_all() -> Self {
        Self::build(8, 1, 8, Kind { all: true, ..Kind::default() })
    }

    /// A QP with places for `inline` bytes of inline data.
    pub fn inline(wr: u32, inline: u32) -> Self {
        Self::build(wr, 2, 2 * wr, Kind { inline, ..Kind::default() })
    }

    /// The same with a UD QP.
    pub fn inline_ud(wr: u32, inline: u32) -> Self {
        Self::build(wr, 2, 2 * wr, Kind { inline, ud: true, ..Kind::default() })
    }

    /// A small RC QP and a CQ that were promised to be used by one thread: locks keep nobody out.
    pub fn single_threaded(wr: u32, cqe: u32) -> Self {
        Self::build(wr, 1, cqe, Kind { single_threaded: true, ..Kind::default() })
    }

    fn build(wr: u32, sge: u32, cqe: u32, kind: Kind) -> Self {
        let uar_page = Box::new(UarPage([const { AtomicU32::new(0) }; PVRDMA_PAGE_SIZE / 4]));
        // SAFETY: the page lives in this Mock, as long as the objects do.
        let uar = unsafe { Uar::from_page(NonNull::from(&*uar_page).cast()) };
        let qp_nums = Arc::new(QpNums::new().unwrap());

        let size = Size::at_least(cqe).unwrap();
        let buf = Buf::map(cq::buf_len(size)).unwrap();
        let cq_ring = Ring::rx(&buf, PVRDMA_PAGE_SIZE, size.get(), size_of::<pvrdma_cqe>());
        // SAFETY: tests that promise one thread have one.
        let mut cq = unsafe { Cq::new(size, buf, uar, qp_nums.clone(), (kind.single_threaded, DomainRef::NONE)) };
        cq.set_cqn(Self::CQN);

        let attr = ibv_srq_attr { max_wr: Self::SRQ_WR, max_sge: sge, srq_limit: 0 };
        let shape = srq::shape(&attr, &Self::LIMITS).unwrap();
        let buf = Buf::map(srq::buf_len(shape).unwrap()).unwrap();
        let srq_ring = Ring::rx(&buf, PVRDMA_PAGE_SIZE, Self::SRQ_WR, stride(16, sge));
        // SAFETY: as above.
        let srq = unsafe { Srq::new(shape, buf, uar, (false, DomainRef::NONE)) };
        srq.queue.lock().set_bell(srq_bell(Self::SRQN));

        let cap = ibv_qp_cap {
            max_send_wr: wr,
            max_recv_wr: wr,
            max_send_sge: sge,
            max_recv_sge: sge,
            max_inline_data: kind.inline,
        };
        let shape = Shape::new(&cap, &Self::LIMITS, kind.srq).unwrap();
        let (sq_len, rq_len) = shape.buf_lens().unwrap();
        let (sq_buf, rq_buf) = (Buf::map(sq_len).unwrap(), rq_len.map(|len| Buf::map(len).unwrap()));
        let cap = shape.cap();
        let sq_ring = Ring::tx(&sq_buf, cap.max_send_wr, stride(80, cap.max_send_sge));
        let rq_ring = match &rq_buf {
            Some(buf) => Ring {
                slots: buf.start().as_ptr(),
                ..Ring::rx(&sq_buf, 0, cap.max_recv_wr, stride(16, cap.max_recv_sge))
            },
            None => Ring::rx(&sq_buf, 0, 1, 0),
        };
        let cq_ptr: *mut ibv_cq = ptr::from_mut(&mut *cq).cast();
        let init = ibv_qp_init_attr {
            qp_context: ptr::null_mut(),
            send_cq: cq_ptr,
            recv_cq: cq_ptr,
            srq: ptr::null_mut(),
            cap,
            qp_type: if kind.ud { IBV_QPT_UD } else { IBV_QPT_RC },
            sq_sig_all: kind.all.into(),
            padding: 0,
        };
        let inline = (cap.max_inline_data > 0).then(|| {
            let buf = Buf::map(cap.max_send_wr as usize * cap.max_inline_data as usize).unwrap();
            Inline::of_parts(buf, cap.max_send_wr, cap.max_inline_data, Self::INLINE_LKEY)
        });
        let parts = Parts {
            shape: &shape,
            sq_buf,
            rq_buf,
            uar,
            init: &init,
            switches: kind.switches,
            inline,
            qp_nums,
            single_threaded: kind.single_threaded,
            domain_ref: DomainRef::NONE,
        };
        // SAFETY: as above.
        let mut qp = unsafe { Qp::new(parts) };
        qp.enter(Self::HANDLE.into(), Self::QPN).unwrap();
        qp.set_state(IBV_QPS_RTS);
        Self { cq, qp, srq, cq_ring, srq_ring, sq_ring, rq_ring, uar_page }
    }

    /// The last value stored to the doorbell at `offset` since the last look; 0: none.
    pub fn rung(&self, offset: usize) -> u32 {
        self.uar_page.0.get(offset / 4).map_or(0, |word| word.swap(0, Ordering::Relaxed))
    }

    /// Take the oldest send WQE.
    pub fn take_send(&self) -> Option<SendWqe> {
        self.sq_ring.take_send()
    }

    /// Take the oldest receive WQE.
    pub fn take_recv(&self) -> Option<RecvWqe> {
        self.rq_ring.take_recv()
    }

    /// Take the oldest receive WQE of the SRQ.
    pub fn take_srq_recv(&self) -> Option<RecvWqe> {
        self.srq_ring.take_recv()
    }

    /// Take all WQEs of both queues unread.
    pub fn drain(&self) {
        for ring in [self.sq_ring, self.rq_ring] {
            Ring::store(ring.cons_head, Ring::load(ring.prod_tail));
        }
    }

    /// Put a completion. The CQ must have room.
    pub fn put(&self, cqe: pvrdma_cqe) {
        let tail = Ring::load(self.cq_ring.prod_tail);
        // SAFETY: a slot the host has given back.
        unsafe { self.cq_ring.at(tail).cast::<pvrdma_cqe>().write(cqe) };
        Ring::store(self.cq_ring.prod_tail, self.cq_ring.next(tail));
    }

    /// Overwrite the producer counter of the CQ.
    pub fn set_cq_tail(&self, value: u32) {
        Ring::store(self.cq_ring.prod_tail, value);
    }

    /// The four counters of the QP: send tail and head, receive tail and head.
    pub fn counters(&self) -> [u32; 4] {
        [self.sq_ring.prod_tail, self.sq_ring.cons_head, self.rq_ring.prod_tail, self.rq_ring.cons_head].map(Ring::load)
    }
}

impl core::fmt::Debug for Mock {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Mock").finish_non_exhaustive()
    }
}

/// A verb as tests like it: 0 is `Ok`, and what is not posted comes with its errno.
fn posted<W>(post: impl FnOnce(*mut *mut W) -> c_int) -> Result<(), (Errno, *mut W)> {
    let mut bad = ptr::null_mut();
    match post(&mut bad) {
        0 => Ok(()),
        errno => Err((Errno(errno), bad)),
    }
}

/// `post_send`.
///
/// # Safety
/// As the verb.
pub unsafe fn post_send(qp: &Qp, wr: *mut ibv_send_wr) -> Result<(), (Errno, *mut ibv_send_wr)> {
    // SAFETY: promise of the caller.
    posted(|bad| unsafe { fast::post_send::post_send(ptr::from_ref(qp).cast_mut().cast(), wr, bad) })
}

/// `post_recv`.
///
/// # Safety
/// As the verb.
pub unsafe fn post_recv(qp: &Qp, wr: *mut ibv_recv_wr) -> Result<(), (Errno, *mut ibv_recv_wr)> {
    // SAFETY: promise of the caller.
    posted(|bad| unsafe { fast::post_recv::post_recv(ptr::from_ref(qp).cast_mut().cast(), wr, bad) })
}

/// `post_srq_recv`.
///
/// # Safety
/// As the verb.
pub unsafe fn post_srq_recv(srq: &Srq, wr: *mut ibv_recv_wr) -> Result<(), (Errno, *mut ibv_recv_wr)> {
    // SAFETY: promise of the caller.
    posted(|bad| unsafe { fast::post_recv::post_srq_recv(ptr::from_ref(srq).cast_mut().cast(), wr, bad) })
}

/// `poll_cq`.
///
/// # Safety
/// As the verb.
pub unsafe fn poll_cq(cq: &Cq, num_entries: c_int, wc: *mut ibv_wc) -> c_int {
    // SAFETY: promise of the caller.
    unsafe { fast::poll_cq::poll_cq(ptr::from_ref(cq).cast_mut().cast(), num_entries, wc) }
}

/// A successful completion of a send, for the QP of a [`Mock`].
pub fn send_cqe(wr_id: u64) -> pvrdma_cqe {
    pvrdma_cqe { wr_id, qp: Mock::HANDLE.into(), ..Default::default() }
}

/// # Safety
/// `at` must hold `count` entries.
unsafe fn sges(at: *mut u8, count: u32) -> Vec<pvrdma_sge> {
    (0..count as usize)
        // SAFETY: promise of the caller.
        .map(|i| unsafe { at.cast::<pvrdma_sge>().add(i).read() })
        .collect()
}
