//! Threads that make and destroy QPs on the same CQs, so that handles are used again at once, while
//! others post and poll there: destroy against create, destroy against poll, RESET against post,
//! several pollers on one CQ. And a device that writes while we read.
//!
//! `PVRDMA_SEED` repeats a run as far as threads allow, `PVRDMA_STEPS` makes it longer. Not for a
//! race detector: `cargo xtask races` runs ThreadSanitizer on the plugin itself. Here it would take
//! each `Mutex` of these tests for a race, since std is not instrumented; helgrind and DRD do not
//! understand locks made of atomics.

use crate::fast::cq_ex;
use crate::fast::qp_ex;
use crate::support::error::Errno;
use crate::testing::kernel::World;
use crate::testing::mock::Mock;
use crate::testing::mock::poll_cq;
use crate::testing::mock::post_send;
use crate::testing::mock::rng::{Rng, steps};
use crate::verbs::cq::{self, Cq};
use crate::verbs::qp::{self, Qp};
use core::ffi::c_int;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use pvrdma_ffi::uapi::vmw_pvrdma::*;
use pvrdma_ffi::verbs::*;
use std::collections::HashSet;
use std::sync::Mutex;
use std::time::{Duration, Instant};

const THREADS: u64 = 4;

/// What all threads share.
struct Shared {
    world: Box<World>,
    cqs: Vec<*mut ibv_cq_ex>,
    /// Completions that anybody got.
    heard: Mutex<HashSet<u64>>,
}

// SAFETY: CQs may be used from any thread.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    fn new() -> Self {
        let world = World::new();
        let cqs = (0..2)
            .map(|_| {
                // SAFETY: integers and pointers only; a live context and domain.
                unsafe {
                    let mut attr: ibv_cq_init_attr_ex = core::mem::zeroed();
                    attr.cqe = 16;
                    attr.wc_flags = IBV_WC_STANDARD_FLAGS.into();
                    attr.comp_mask = IBV_CQ_INIT_ATTR_MASK_PD;
                    attr.parent_domain = world.pd;
                    cq_ex::create_cq_ex(world.context, &mut attr).unwrap()
                }
            })
            .collect();
        Self { world, cqs, heard: Mutex::default() }
    }

    /// A request says whose it is, so a completion given to another QP is found out.
    fn heard(&self, qp_num: u32, wr_id: u64) {
        assert_eq!(wr_id >> 32, u64::from(qp_num), "a completion of another QP");
        assert!(self.heard.lock().unwrap().insert(wr_id), "request {wr_id:#x} completes twice");
    }

    fn poll(&self, rng: &mut Rng) {
        let cq = self.cqs[rng.below(2) as usize];
        if rng.below(2) == 0 {
            let mut wcs = [ibv_wc::default(); 4];
            // SAFETY: a live CQ; room for 4.
            let taken = unsafe { poll_cq(Cq::of(cq.cast()), 4, wcs.as_mut_ptr()) };
            wcs[..usize::try_from(taken).unwrap()].iter().for_each(|wc| self.heard(wc.qp_num, wc.wr_id));
            return;
        }
        let mut attr = ibv_poll_cq_attr { comp_mask: 0 };
        // SAFETY: a live CQ; ended if it was started.
        unsafe {
            if (*cq).start_poll.unwrap()(cq, &mut attr) == 0 {
                self.heard((*cq).read_qp_num.unwrap()(cq), (*cq).wr_id);
                if rng.below(2) == 0 && (*cq).next_poll.unwrap()(cq) == 0 {
                    self.heard((*cq).read_qp_num.unwrap()(cq), (*cq).wr_id);
                }
                (*cq).end_poll.unwrap()(cq);
            }
        }
    }

    /// The device takes what was posted to a QP and completes it, while there is room.
    fn work(&self, handle: u32) {
        let state = self.world.state();
        let device = &state.qps[&handle];
        let ring = state.cqs[&device.send_cq].ring;
        let room = |(tail, head): (u32, u32)| (tail + 32 - head) % 32 < 16;
        while room(ring.counters())
            && let Some((wr_id, _)) = device.sq.take()
        {
            assert!(ring.put(pvrdma_cqe { wr_id, qp: handle.into(), ..Default::default() }));
        }
    }

    fn create(&self, rng: &mut Rng) -> *mut ibv_qp {
        // SAFETY: integers and pointers only; live objects of one context.
        unsafe {
            let mut attr: ibv_qp_init_attr_ex = core::mem::zeroed();
            attr.send_cq = self.cqs[rng.below(2) as usize].cast();
            attr.recv_cq = self.cqs[rng.below(2) as usize].cast();
            attr.cap = ibv_qp_cap {
                max_send_wr: 4,
                max_recv_wr: 1,
                max_send_sge: 1,
                max_recv_sge: 1,
                max_inline_data: 64 * rng.below(2) as u32,
            };
            attr.qp_type = IBV_QPT_RC;
            attr.pd = self.world.pd;
            attr.comp_mask = IBV_QP_INIT_ATTR_PD;
            qp_ex::create_qp_ex(self.world.context, &mut attr).unwrap()
        }
    }

    /// The life of one QP. Returns how many completions it was owed, and got.
    fn life(&self, rng: &mut Rng) -> usize {
        let qp = self.create(rng);
        // SAFETY: just made.
        let (handle, qp_num) = unsafe { ((*qp).handle, (*qp).qp_num) };
        move_to(qp, IBV_QPS_RTS);
        let (mut owed, mut sequence) = (Vec::new(), 0);
        for _ in 0..rng.below(8) {
            let wr_id = u64::from(qp_num) << 32 | sequence;
            match post(qp, wr_id) {
                Ok(()) => owed.push(wr_id),
                Err(errno) => assert_eq!(errno, Errno::ENOMEM),
            }
            sequence += 1;
            self.work(handle);
            self.poll(rng);
        }
        if rng.below(4) == 0 {
            // Start over, with whatever is on its way.
            move_to(qp, IBV_QPS_RESET);
            move_to(qp, IBV_QPS_RTS);
            owed = vec![u64::from(qp_num) << 32 | 1 << 31];
            post(qp, owed[0]).unwrap();
        }
        let patient = rng.below(2) == 0;
        let begin = Instant::now();
        while patient && !owed.iter().all(|wr_id| self.heard.lock().unwrap().contains(wr_id)) {
            self.work(handle);
            self.poll(rng);
            // Whoever has it may not have said so yet, nor have a core. Only a lock-up takes that long.
            assert!(begin.elapsed() < Duration::from_secs(60), "a completion is lost");
            std::thread::yield_now();
        }
        // SAFETY: this thread's QP.
        unsafe { qp::destroy_qp(qp) }.unwrap();
        if patient { owed.len() } else { 0 }
    }
}

fn move_to(qp: *mut ibv_qp, state: u32) {
    let mut attr = ibv_qp_attr { qp_state: state, ..Default::default() };
    // SAFETY: a live QP.
    unsafe { qp::modify_qp(qp, &mut attr, IBV_QP_STATE as c_int) }.unwrap();
}

fn post(qp: *mut ibv_qp, wr_id: u64) -> Result<(), Errno> {
    let mut sge = ibv_sge { addr: 1, length: 2, lkey: 3 };
    // SAFETY: all-zero integers and pointers are valid; a live QP, a valid request.
    unsafe {
        let mut wr: ibv_send_wr = core::mem::zeroed();
        wr.wr_id = wr_id;
        wr.opcode = IBV_WR_SEND;
        wr.send_flags = IBV_SEND_SIGNALED;
        wr.sg_list = &mut sge;
        wr.num_sge = 1;
        let qp = Qp::of(qp);
        post_send(qp, &mut wr).map_err(|(errno, _)| errno)
    }
}

#[test]
fn handles_used_again_at_once_mix_up_nothing() {
    let (mut rng, lives) = (Rng::from_env(1), steps(4000) / THREADS);
    let shared = Shared::new();
    let owed: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                let mut rng = Rng::new(rng.word());
                let shared = &shared;
                scope.spawn(move || (0..lives).map(|_| shared.life(&mut rng)).sum::<usize>())
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert!(owed > lives as usize, "{owed} completions were waited for");
    let Shared { world, cqs, .. } = shared;
    // SAFETY: live CQs without QPs.
    cqs.into_iter().for_each(|cq| unsafe { cq::destroy_cq(cq.cast()) }.unwrap());
    world.close();
}

#[test]
fn a_reset_against_posts_leaves_the_ring_whole() {
    let mut rng = Rng::from_env(1);
    let shared = Shared::new();
    let qp = shared.create(&mut rng);
    let (over, accepted) = (AtomicBool::new(false), AtomicBool::new(false));
    struct Sent(*mut ibv_qp);
    // SAFETY: a QP may be used from any thread.
    unsafe impl Sync for Sent {}
    let sent = &Sent(qp);
    std::thread::scope(|scope| {
        let (shared, over, accepted) = (&shared, &over, &accepted);
        let poster = scope.spawn(move || {
            let qp = { sent }.0;
            // SAFETY: a live QP.
            let number = u64::from(unsafe { (*qp).qp_num }) << 32;
            let mut next = 0;
            while !over.load(Ordering::Relaxed) {
                next += 1;
                match post(qp, number | next) {
                    Ok(()) => accepted.store(true, Ordering::Relaxed),
                    Err(errno) => assert!([Errno::EINVAL, Errno::ENOMEM].contains(&errno), "{errno:?}"),
                }
            }
        });
        let mut rounds = 0;
        // The poster may be late.
        while rounds < steps(4000) || !(accepted.load(Ordering::Relaxed) || poster.is_finished()) {
            rounds += 1;
            move_to(qp, IBV_QPS_RTS);
            // SAFETY: a live QP.
            shared.work(unsafe { (*qp).handle });
            shared.poll(&mut rng);
            move_to(qp, IBV_QPS_RESET);
            // Closed: nothing is in the rings, and nothing comes.
            let counters = shared.world.state().qps.values().next().unwrap().sq.counters();
            assert_eq!(counters, (0, 0));
        }
        over.store(true, Ordering::Relaxed);
        poster.join().unwrap();
    });
    // SAFETY: nobody uses them any more.
    unsafe {
        qp::destroy_qp(qp).unwrap();
        shared.cqs.iter().for_each(|cq| cq::destroy_cq(cq.cast()).unwrap());
    }
    shared.world.close();
}

#[test]
fn a_handle_is_not_given_to_the_next_before_the_last_is_done_with_it() {
    let nums = crate::support::qp_nums::QpNums::new().unwrap();
    nums.claim(5, 50).unwrap();
    assert_eq!(nums.claim(5, 51), Err(Errno::EIO), "a device that gives a handle twice");
    nums.set(5, crate::support::qp_nums::LEAVING);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let next = scope.spawn(|| {
            nums.claim(5, 52).unwrap();
            assert!(done.load(Ordering::Relaxed), "before the former owner left");
        });
        (0..100).for_each(|_| std::thread::yield_now());
        done.store(true, Ordering::Relaxed);
        nums.set(5, 0);
        next.join().unwrap();
    });
    assert_eq!(crate::support::qp_nums::qp_num(nums.table(), 5), 52);
    // One that never leaves: its destroy waits for this very thread to acknowledge an event.
    nums.set(5, crate::support::qp_nums::LEAVING);
    assert_eq!(nums.claim(5, 53), Err(Errno::EAGAIN));
}

#[test]
fn a_device_that_never_stops_putting_strays_does_not_hold_the_poller() {
    const SLOTS: u32 = 1024;
    let mock = Mock::new(4, 1, SLOTS);
    // Strays in every slot; from now on the ring is full whenever the device looks.
    (0..SLOTS).for_each(|_| mock.put(pvrdma_cqe { qp: 9, ..Default::default() }));
    let (over, looked_at, passed) = (AtomicBool::new(false), AtomicU32::new(0), AtomicU32::new(0));
    let ring = crate::testing::kernel::DeviceRing(mock.cq_ring);
    struct Sent(crate::testing::kernel::DeviceRing);
    // SAFETY: counters are atomics.
    unsafe impl Sync for Sent {}
    let sent = &Sent(ring);
    std::thread::scope(|scope| {
        let (over, looked_at, passed) = (&over, &looked_at, &passed);
        scope.spawn(move || {
            let (ring, mut last) = ({ sent }.0, 0);
            while !over.load(Ordering::Relaxed) {
                let head = ring.counters().1;
                // It cannot have gone round unseen: the ring would have run dry.
                passed.fetch_add((head + 2 * SLOTS - last) % (2 * SLOTS), Ordering::Relaxed);
                last = head;
                ring.set(true, (head + SLOTS) % (2 * SLOTS));
                looked_at.store(head, Ordering::Release);
            }
        });
        let mut most = 0;
        for _ in 0..steps(200) {
            passed.store(0, Ordering::Relaxed);
            let mut wc = ibv_wc::default();
            // SAFETY: room for one.
            assert_eq!(unsafe { poll_cq(&mock.cq, 1, &mut wc) }, 0);
            while looked_at.load(Ordering::Acquire) != ring.counters().1 {
                std::thread::yield_now();
            }
            most = most.max(passed.load(Ordering::Relaxed));
        }
        over.store(true, Ordering::Relaxed);
        // One ring full, and one more after the device was asked.
        assert!(most <= 2 * SLOTS + 2, "one poll passed {most} entries");
    });
}
