//! A hostile device. Bytes say what it and an application do: the application creates,
//! posts, polls and destroys as it may; the device answers creates with what was not asked for, moves
//! counters anywhere, puts completions for QPs that never were, with opcodes and statuses that are
//! none, and overwrites what it has put.
//!
//! Called by the tests below with random bytes and by the fuzz target (`provider/fuzz`) with bytes
//! that a fuzzer grew. Whatever the bytes: no panic, no access outside the queues (there is a page on
//! either side that nobody may touch, and what lies behind the last slot stays zero), no completion
//! for a QP that is not there, and when the device is itself again, a witness on each CQ gets its
//! completion, once.

use super::kernel::{DeviceRing, Lie, World};
use crate::fast::cq_ex;
use crate::fast::qp_ex;
use crate::support::error::Errno;
use crate::testing::mock::poll_cq;
use crate::testing::mock::post_send;
use crate::testing::mock::{post_recv, post_srq_recv};
use crate::verbs::ah::{self, Ah};
use crate::verbs::cq::{self, Cq};
use crate::verbs::pd::DomainRef;
use crate::verbs::qp::{self, Qp};
use crate::verbs::srq::{self, Srq};
use core::ffi::c_int;
use core::ptr;
use pvrdma_ffi::rng::Input;
use pvrdma_ffi::uapi::vmw_pvrdma::*;
use pvrdma_ffi::verbs::*;

/// Steps of one run; bytes behind them are not looked at.
const STEPS: u32 = 300;
/// Most objects of a kind at a time.
const MOST: usize = 6;
/// Most completions asked for at once.
const WANTED: usize = 8;

/// What came of a run, so that a test can tell whether its bytes reach anything.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    /// Objects created.
    pub created: u32,
    /// Verbs refused.
    pub refused: u32,
    /// Requests posted.
    pub posted: u32,
    /// Completions that the application got.
    pub completions: u32,
    /// Polls that found a ring broken.
    pub broken: u32,
}

#[derive(Clone, Copy)]
struct LiveQp {
    qp: *mut ibv_qp,
    handle: u32,
    extended: bool,
}

/// A CQ, and a QP that the device does nothing bad to but what it does to the CQ.
#[derive(Clone, Copy)]
struct LiveCq {
    cq: *mut ibv_cq_ex,
    number: u32,
    witness: LiveQp,
}

struct Run<'a> {
    input: Input<'a>,
    world: Box<World>,
    cqs: Vec<LiveCq>,
    qps: Vec<LiveQp>,
    srqs: Vec<(*mut ibv_srq, u32)>,
    ah: *mut ibv_ah,
    /// What the device was given as `wr_id`.
    cookies: Vec<u64>,
    summary: Summary,
}

/// One run.
pub fn run(bytes: &[u8]) -> Summary {
    let av = pvrdma_av { port_pd: 0x0100_0000, ..Default::default() };
    let mut run = Run {
        input: Input(bytes),
        world: World::new(),
        cqs: Vec::new(),
        qps: Vec::new(),
        srqs: Vec::new(),
        ah: Ah::new(av, DomainRef::NONE).into_verbs(),
        cookies: Vec::new(),
        summary: Summary::default(),
    };
    for _ in 0..STEPS {
        if run.input.is_empty() {
            break;
        }
        run.step();
    }
    run.end()
}

impl Run<'_> {
    fn step(&mut self) {
        match self.input.below(16) {
            0 if self.cqs.len() < MOST => self.create_cq(),
            1 if self.srqs.len() < MOST => self.create_srq(),
            0..=2 if self.qps.len() < MOST => self.create_qp(),
            0..=3 => self.modify_qp(),
            4 | 5 => self.post_send(),
            6 => self.post_recv(),
            7 => self.build(),
            8 | 9 => self.poll(),
            10 => self.poll_extended(),
            11 => self.destroy(),
            12 => self.work(),
            13 => self.spoil_a_counter(),
            _ => self.put(),
        }
    }

    /// Count what a verb said.
    fn note<T>(&mut self, result: Result<T, Errno>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(Errno(errno)) => {
                assert!(errno > 0, "errno {errno}");
                self.summary.refused += 1;
                None
            }
        }
    }

    // ---- the application -----------------------------------------------------------------------

    fn create_cq(&mut self) {
        let entries = 1 + self.input.below(8) as u32;
        let lie = match self.input.byte() {
            0..192 => None,
            192..208 => Some(Lie::Refuse(libc::EFAULT)),
            208..240 => Some(Lie::Cqe(self.input.number() as c_int)),
            _ => Some(Lie::Number(self.input.number())),
        };
        // SAFETY: integers and pointers only.
        let mut attr: ibv_cq_init_attr_ex = unsafe { core::mem::zeroed() };
        attr.cqe = entries;
        attr.wc_flags = IBV_WC_STANDARD_FLAGS.into();
        attr.comp_mask = IBV_CQ_INIT_ATTR_MASK_PD;
        attr.parent_domain = self.world.pd;
        self.world.state().lie = lie;
        // SAFETY: a live context and domain.
        let made = unsafe { cq_ex::create_cq_ex(self.world.context, &mut attr) };
        self.world.state().lie = None;
        let Some(cq) = self.note(made) else { return };
        // SAFETY: just made.
        let (number, answered) = unsafe { ((*cq.cast::<ibv_cq>()).handle, (*cq.cast::<ibv_cq>()).cqe) };
        assert_eq!(answered as u32, entries.next_power_of_two(), "the length that was allocated");
        let made = self.make(cq, cq, ptr::null_mut(), 0, IBV_QPT_RC, None);
        let Some(witness) = self.note(made) else {
            // Its handle is the one that the device has, falsely, given to another QP.
            // SAFETY: just made.
            unsafe { cq::destroy_cq(cq.cast()) }.unwrap();
            return;
        };
        self.move_to(witness, IBV_QPS_RTS).unwrap();
        self.cqs.push(LiveCq { cq, number, witness });
        self.summary.created += 1;
    }

    fn create_srq(&mut self) {
        let mut attr = ibv_srq_init_attr {
            srq_context: ptr::null_mut(),
            attr: ibv_srq_attr { max_wr: 1 + self.input.below(8) as u32, max_sge: 2, srq_limit: 0 },
            padding: 0,
        };
        let lie = self.input.rarely().then(|| Lie::Number(self.input.number()));
        self.world.state().lie = lie;
        // SAFETY: a live domain.
        let made = unsafe { srq::create_srq(self.world.pd, &mut attr) };
        self.world.state().lie = None;
        if let Some(srq) = self.note(made) {
            // SAFETY: just made.
            self.srqs.push((srq, unsafe { (*srq).handle }));
            self.summary.created += 1;
        }
    }

    fn create_qp(&mut self) {
        let (Some(send), Some(recv)) = (self.input.pick(&self.cqs), self.input.pick(&self.cqs)) else { return };
        let srq = match self.input.rarely() {
            true => self.input.pick(&self.srqs).map_or(ptr::null_mut(), |(srq, _)| srq),
            false => ptr::null_mut(),
        };
        let inline = if self.input.byte() & 1 == 0 { 0 } else { 64 };
        let qp_type = if self.input.rarely() { IBV_QPT_UD } else { IBV_QPT_RC };
        let ops = (self.input.byte() & 1 == 0).then_some(match qp_type {
            IBV_QPT_UD => IBV_QP_EX_WITH_SEND | IBV_QP_EX_WITH_SEND_WITH_IMM,
            _ => IBV_QP_EX_WITH_SEND | IBV_QP_EX_WITH_RDMA_WRITE | IBV_QP_EX_WITH_RDMA_READ,
        });
        let lie = match self.input.byte() {
            0..192 => None,
            192..208 => Some(Lie::Refuse(libc::ENOMEM)),
            208..224 => Some(Lie::Qpn(self.input.number())),
            // Such as the handle of another.
            _ => Some(Lie::Handle(self.input.number(), self.input.number())),
        };
        self.world.state().lie = lie;
        let made = self.make(send.cq, recv.cq, srq, inline, qp_type, ops);
        self.world.state().lie = None;
        if let Some(qp) = self.note(made) {
            let same = |other: &LiveQp| number_of(other.qp) == number_of(qp.qp);
            // A number that is another's is the device's own affair: the number goes to peers, the
            // handle is what counts here. Not kept, so that the checks below stay simple.
            if self.qps.iter().any(same) || self.cqs.iter().any(|cq| same(&cq.witness)) {
                // SAFETY: just made.
                unsafe { qp::destroy_qp(qp.qp) }.unwrap();
                return;
            }
            self.qps.push(qp);
            self.summary.created += 1;
        }
    }

    fn make(
        &self,
        send: *mut ibv_cq_ex,
        recv: *mut ibv_cq_ex,
        srq: *mut ibv_srq,
        max_inline_data: u32,
        qp_type: u32,
        ops: Option<u32>,
    ) -> Result<LiveQp, Errno> {
        // SAFETY: integers and pointers only.
        let mut attr: ibv_qp_init_attr_ex = unsafe { core::mem::zeroed() };
        attr.send_cq = send.cast();
        attr.recv_cq = recv.cast();
        attr.srq = srq;
        attr.cap = ibv_qp_cap { max_send_wr: 4, max_recv_wr: 2, max_send_sge: 2, max_recv_sge: 1, max_inline_data };
        attr.qp_type = qp_type;
        attr.pd = self.world.pd;
        attr.comp_mask = IBV_QP_INIT_ATTR_PD;
        if let Some(ops) = ops {
            attr.comp_mask |= IBV_QP_INIT_ATTR_SEND_OPS_FLAGS;
            attr.send_ops_flags = ops.into();
        }
        // SAFETY: live objects of one context.
        let qp = unsafe { qp_ex::create_qp_ex(self.world.context, &mut attr) }?;
        // SAFETY: just made.
        Ok(LiveQp { qp, handle: unsafe { (*qp).handle }, extended: ops.is_some() })
    }

    fn move_to(&self, qp: LiveQp, state: u32) -> Result<(), Errno> {
        let mut attr = ibv_qp_attr { qp_state: state, ..Default::default() };
        // SAFETY: a live QP.
        unsafe { qp::modify_qp(qp.qp, &mut attr, IBV_QP_STATE as c_int) }
    }

    fn modify_qp(&mut self) {
        let Some(qp) = self.input.pick(&self.qps) else { return };
        let state = self.input.pick(&[IBV_QPS_RTS, IBV_QPS_RTS, IBV_QPS_RESET, IBV_QPS_INIT, IBV_QPS_ERR]).unwrap_or(0);
        let lie = self.input.rarely().then_some(Lie::Refuse(libc::EINVAL));
        self.world.state().lie = lie;
        let moved = self.move_to(qp, state);
        self.world.state().lie = None;
        self.note(moved);
    }

    fn post_send(&mut self) {
        let Some(live) = self.input.pick(&self.qps) else { return };
        let data = [7u8; 80];
        let mut sges = [ibv_sge { addr: data.as_ptr() as u64, length: self.input.number() & 63, lkey: 1 }; 2];
        // SAFETY: all-zero integers and pointers are valid.
        let mut wrs = vec![unsafe { core::mem::zeroed::<ibv_send_wr>() }; 1 + self.input.below(6)];
        let mut next = ptr::null_mut();
        for wr in wrs.iter_mut().rev() {
            wr.wr_id = self.input.byte().into();
            wr.opcode = self.input.pick(&[IBV_WR_SEND, IBV_WR_RDMA_WRITE, IBV_WR_RDMA_READ]).unwrap_or(0);
            if self.input.rarely() {
                wr.opcode = self.input.number();
            }
            wr.send_flags = u32::from(self.input.byte()) & 15;
            wr.sg_list = sges.as_mut_ptr();
            wr.num_sge = if self.input.rarely() { self.input.number() as c_int } else { self.input.below(3) as c_int };
            wr.next = next;
            // SAFETY: a live QP.
            if unsafe { Qp::of(live.qp) }.extras.ud {
                wr.wr.ud = ibv_send_wr_ud { ah: self.ah, remote_qpn: 1, remote_qkey: 2 };
            }
            next = ptr::from_mut(wr);
        }
        // SAFETY: a live QP, a valid list. A count above the limit is refused before the SGL is
        // looked at.
        let result = unsafe {
            let qp = Qp::of(live.qp);
            post_send(qp, next)
        };
        match result {
            Ok(()) => self.summary.posted += wrs.len() as u32,
            Err((errno, bad)) => {
                assert!(wrs.as_ptr_range().contains(&bad.cast_const()), "bad_wr is one of the list");
                self.note(Err::<(), _>(errno));
            }
        }
    }

    fn post_recv(&mut self) {
        let mut sge = ibv_sge { addr: 1, length: 2, lkey: 3 };
        let num_sge = if self.input.rarely() { self.input.number() as c_int } else { self.input.below(2) as c_int };
        let mut wr = ibv_recv_wr { wr_id: 9, next: ptr::null_mut(), sg_list: &mut sge, num_sge };
        // SAFETY: live objects; the request as above.
        let result = unsafe {
            match self.input.byte() & 1 {
                0 => self.input.pick(&self.qps).map(|live| post_recv(Qp::of(live.qp), &mut wr)),
                // A SRQ of these has room for one SGE at least.
                _ => self.input.pick(&self.srqs).map(|(srq, _)| post_srq_recv(Srq::of(srq), &mut wr)),
            }
        };
        if let Some(result) = result
            && self.note(result.map_err(|(errno, _)| errno)).is_some()
        {
            self.summary.posted += 1;
        }
    }

    /// `ibv_wr_start` to `ibv_wr_complete` or `ibv_wr_abort`.
    fn build(&mut self) {
        let Some(live) = self.input.pick(&self.qps).filter(|live| live.extended) else { return };
        let qp: *mut ibv_qp_ex = live.qp.cast();
        let mut data = [7u8; 80];
        let mut built = 0;
        // SAFETY: a live extended QP, whose functions are there. The lock is opened at the end.
        unsafe {
            (*qp).wr_start.unwrap()(qp);
            for _ in 0..self.input.below(8) {
                (*qp).wr_id = self.input.byte().into();
                (*qp).wr_flags = u32::from(self.input.byte()) & 7;
                match self.input.below(7) {
                    0 => (*qp).wr_rdma_write.unwrap()(qp, 1, 2),
                    1 => (*qp).wr_rdma_read.unwrap()(qp, 1, 2),
                    2 => (*qp).wr_set_inline_data.unwrap()(qp, data.as_mut_ptr().cast(), self.input.below(80)),
                    3 => (*qp).wr_set_ud_addr.unwrap()(qp, self.ah, 1, 2),
                    _ => {
                        (*qp).wr_send.unwrap()(qp);
                        if Qp::of(live.qp).extras.ud {
                            (*qp).wr_set_ud_addr.unwrap()(qp, self.ah, 1, 2);
                        }
                        (*qp).wr_set_sge.unwrap()(qp, 1, 2, 3);
                        built += 1;
                    }
                }
            }
            if self.input.rarely() {
                (*qp).wr_abort.unwrap()(qp);
            } else if self.note(Errno::check((*qp).wr_complete.unwrap()(qp))).is_some() {
                self.summary.posted += built;
            }
        }
    }

    fn is_live(&self, qp_num: u32) -> bool {
        let mut live = self.qps.iter().chain(self.cqs.iter().map(|cq| &cq.witness));
        live.any(|live| number_of(live.qp) == qp_num)
    }

    /// Poll once, checked.
    fn take(&mut self, cq: LiveCq, wanted: usize) -> Result<Vec<ibv_wc>, ()> {
        let untouched = ibv_wc { wr_id: 0x5a5a, qp_num: 0x5a5a_5a5a, ..Default::default() };
        let mut wcs = [untouched; WANTED + 1];
        // SAFETY: a live CQ; room for more than wanted.
        let taken = unsafe { poll_cq(Cq::of(cq.cq.cast()), wanted as c_int, wcs.as_mut_ptr()) };
        assert!(wcs[wanted..].iter().all(|wc| wc.qp_num == untouched.qp_num), "written behind what was asked for");
        let Ok(taken) = usize::try_from(taken) else {
            assert_eq!(taken, -libc::EIO);
            self.summary.broken += 1;
            return Err(());
        };
        assert!(taken <= wanted);
        let taken = wcs[..taken].to_vec();
        for wc in &taken {
            assert!(self.is_live(wc.qp_num), "a completion of QP {:#x}", wc.qp_num);
        }
        self.summary.completions += taken.len() as u32;
        Ok(taken)
    }

    fn poll(&mut self) {
        if let Some(cq) = self.input.pick(&self.cqs) {
            let wanted = self.input.below(WANTED + 1);
            let _ = self.take(cq, wanted);
        }
    }

    fn poll_extended(&mut self) {
        let Some(LiveCq { cq, number, .. }) = self.input.pick(&self.cqs) else { return };
        let mut attr = ibv_poll_cq_attr { comp_mask: 0 };
        // SAFETY: a live CQ; ended if it was started.
        unsafe {
            let mut result = (*cq).start_poll.unwrap()(cq, &mut attr);
            if result != 0 {
                assert!([libc::ENOENT, libc::EIO].contains(&result));
                return;
            }
            let mut rounds = 0;
            while result == 0 {
                assert!(self.is_live((*cq).read_qp_num.unwrap()(cq)));
                let _ = ((*cq).read_opcode.unwrap()(cq), (*cq).read_wc_flags.unwrap()(cq));
                self.summary.completions += 1;
                rounds += 1;
                assert!(rounds <= 8, "more completions than the ring has");
                if self.input.rarely() {
                    // While it is being read.
                    let index = self.input.number();
                    let cqe = self.cqe();
                    self.world.state().cqs[&number].ring.write(index, cqe);
                }
                if self.input.rarely() {
                    break;
                }
                result = (*cq).next_poll.unwrap()(cq);
            }
            (*cq).end_poll.unwrap()(cq);
        }
    }

    fn destroy(&mut self) {
        let refuse = self.input.rarely().then_some(Lie::Refuse(libc::EBUSY));
        let (which, index) = (self.input.below(8), usize::from(self.input.byte()));
        self.world.state().lie = refuse;
        match which {
            0 if !self.srqs.is_empty() && self.qps.is_empty() => {
                let index = index % self.srqs.len();
                let (srq, _) = self.srqs[index];
                // SAFETY: a live SRQ that no QP uses.
                if self.note(unsafe { srq::destroy_srq(srq) }).is_some() {
                    self.srqs.swap_remove(index);
                }
            }
            1 if !self.cqs.is_empty() => {
                let index = index % self.cqs.len();
                // SAFETY: a live CQ: its witness uses it.
                let result = unsafe { cq::destroy_cq(self.cqs[index].cq.cast()) };
                assert_eq!(result, Err(Errno::EBUSY));
            }
            _ if !self.qps.is_empty() => {
                let index = index % self.qps.len();
                let live = self.qps[index];
                // SAFETY: a live QP.
                if self.note(unsafe { qp::destroy_qp(live.qp) }).is_some() {
                    self.qps.swap_remove(index);
                }
            }
            _ => {}
        }
        self.world.state().lie = None;
    }

    // ---- the device ----------------------------------------------------------------------------

    /// Do what a device should: take requests, complete them.
    fn work(&mut self) {
        let Some(live) = self.input.pick(&self.qps) else { return };
        let state = self.world.state();
        let device = &state.qps[&live.handle];
        let rings = [(Some(device.sq), device.send_cq, 0), (device.rq, device.recv_cq, PVRDMA_WC_RECV)];
        for (ring, cq, opcode) in rings {
            let cq = state.cqs[&cq].ring;
            while let Some((wr_id, _)) = ring.and_then(DeviceRing::take) {
                if self.cookies.len() < 64 {
                    self.cookies.push(wr_id);
                }
                if !cq.put(pvrdma_cqe { wr_id, qp: live.handle.into(), opcode, ..Default::default() }) {
                    break;
                }
            }
        }
    }

    fn rings(&self) -> Vec<DeviceRing> {
        let state = self.world.state();
        let queues = state.qps.values().flat_map(|qp| [Some(qp.sq), qp.rq]).flatten();
        queues.chain(state.cqs.values().map(|cq| cq.ring)).chain(state.srqs.values().map(|srq| srq.ring)).collect()
    }

    fn spoil_a_counter(&mut self) {
        let Some(ring) = self.input.pick(&self.rings()) else { return };
        ring.set(self.input.byte() & 1 == 0, self.input.number());
    }

    /// Any completion.
    fn cqe(&mut self) -> pvrdma_cqe {
        let handles: Vec<u32> = self.world.state().qps.keys().copied().collect();
        let qp = match self.input.rarely() {
            false => self.input.pick(&handles).unwrap_or(0).into(),
            true => u64::from(self.input.number()) << self.input.below(32),
        };
        let wr_id = self.input.pick(&self.cookies).unwrap_or(0) ^ u64::from(self.input.rarely());
        let (opcode, status) = match self.input.byte() {
            0..128 => (0, 0),
            128..160 => (PVRDMA_WC_RECV, 0),
            _ => (self.input.number(), self.input.number()),
        };
        pvrdma_cqe { wr_id, qp, opcode, status, wc_flags: self.input.number(), ..Default::default() }
    }

    fn put(&mut self) {
        let Some(cq) = self.input.pick(&self.cqs) else { return };
        let cqe = self.cqe();
        let ring = self.world.state().cqs[&cq.number].ring;
        match self.input.rarely() {
            false => {
                ring.put(cqe);
            }
            true => ring.write(self.input.number(), cqe),
        }
    }

    // ---- the end -------------------------------------------------------------------------------

    /// The device is itself again: all that is left works, and goes.
    fn end(mut self) -> Summary {
        for cq in self.cqs.clone() {
            self.the_witness_is_heard(cq);
        }
        // SAFETY: live objects, QPs first.
        unsafe {
            for live in self.qps.drain(..).chain(self.cqs.iter().map(|cq| cq.witness)) {
                qp::destroy_qp(live.qp).unwrap();
            }
            self.cqs.drain(..).for_each(|cq| cq::destroy_cq(cq.cq.cast()).unwrap());
            self.srqs.drain(..).for_each(|(srq, _)| srq::destroy_srq(srq).unwrap());
            ah::destroy_ah(self.ah);
        }
        self.world.close();
        self.summary
    }

    fn the_witness_is_heard(&mut self, cq: LiveCq) {
        const NEWS: u64 = 0x1234_5678_9abc;
        let ring = self.world.state().cqs[&cq.number].ring;
        let entries = ring.entries();
        // Of these two one is a counter that can be, wherever we are; empty from there on.
        ring.set(true, 0);
        // Of one alone the counter is not judged, if it is known to be there.
        if self.take(cq, WANTED).is_err() {
            ring.set(true, entries);
        }
        while !self.take(cq, WANTED).unwrap().is_empty() {}
        let tail = ring.counters().0;
        ring.set(false, tail);
        // As many completions of nobody as fit, and one of the witness.
        // SAFETY: a live CQ.
        let table = unsafe { Cq::of(cq.cq.cast()) }.qp_nums.table();
        let free = (0..u16::MAX).rev().find(|handle| crate::support::qp_nums::qp_num(table, *handle) == 0).unwrap();
        let nobody = pvrdma_cqe { wr_id: 1, qp: free.into(), ..Default::default() };
        (1..entries).for_each(|_| assert!(ring.put(nobody)));
        assert!(ring.put(pvrdma_cqe { wr_id: NEWS, qp: cq.witness.handle.into(), ..Default::default() }));
        let heard: Vec<_> = self.take(cq, WANTED).unwrap().iter().map(|wc| (wc.qp_num, wc.wr_id)).collect();
        assert_eq!(heard, [(number_of(cq.witness.qp), NEWS)]);
        assert!(self.take(cq, WANTED).unwrap().is_empty());
    }
}

fn number_of(qp: *mut ibv_qp) -> u32 {
    // SAFETY: callers have live QPs.
    unsafe { (*qp).qp_num }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::mock::Mock;
    use crate::testing::mock::rng::{Rng, replay, steps};

    #[test]
    fn a_send_ring_with_an_impossible_counter_takes_nothing_and_says_so() {
        let mock = Mock::new(2, 1, 2);
        let mut sge = ibv_sge::default();
        // SAFETY: all-zero integers and pointers are valid.
        let mut wr = unsafe { core::mem::zeroed::<ibv_send_wr>() };
        (wr.sg_list, wr.num_sge) = (&mut sge, 1);
        // SAFETY: a valid request.
        let mut post = || unsafe { post_send(&mock.qp, &mut wr) }.map_err(|(errno, _)| errno);
        assert_eq!((post(), post()), (Ok(()), Ok(())));
        DeviceRing(mock.sq_ring).set(false, 9);
        assert_eq!(post(), Err(Errno::EIO));
        DeviceRing(mock.sq_ring).set(false, 1);
        assert_eq!((post(), post()), (Ok(()), Err(Errno::ENOMEM)));
    }

    #[test]
    fn random_bytes_do_no_harm() {
        let mut rng = Rng::from_env(1);
        let runs = steps(200);
        let mut all = Summary::default();
        for n in 0..runs {
            let (len, seed) = (1 + rng.below(3000) as usize, rng.word());
            println!("run {n}: {len} bytes of seed {seed}");
            let one = run(&Rng::new(seed).bytes(len));
            all.created += one.created;
            all.refused += one.refused;
            all.posted += one.posted;
            all.completions += one.completions;
            all.broken += one.broken;
        }
        println!("{runs} runs: {all:?}");
        let few = [all.created, all.refused, all.posted, all.completions, all.broken].into_iter().min();
        assert!(few > Some((runs / 4) as u32), "{all:?} in {runs} runs");
    }

    #[test]
    fn inputs_that_a_fuzzer_kept_do_no_harm() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/adapter");
        replay(folder, 100, |bytes| {
            run(bytes);
            true
        });
    }
}
