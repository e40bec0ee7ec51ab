//! Random verbs, legal and illegal, on small rings, against a model that knows what each must answer:
//! which request of a list is refused and why, and which completions a poll gives, in which order.
//! The device behind them is honest; one kind of QP has a device that completes what was not
//! signaled, as some do.
//!
//! `PVRDMA_SEED` repeats a run, `PVRDMA_STEPS` makes it longer.

use super::kernel::World;
use super::rng::Rng;
use crate::cq::{self, Cq};
use crate::cq_ex;
use crate::error::Errno;
use crate::poll_cq::poll_cq;
use crate::post_recv::post_recv;
use crate::post_send::{post_send, post_send_special};
use crate::qp::{self, Kind, Qp};
use crate::qp_ex;
use core::ffi::c_int;
use core::ptr;
use pvrdma_ffi::uapi::vmw_pvrdma::*;
use pvrdma_ffi::verbs::*;
use std::collections::VecDeque;

const CQS: usize = 3;
const QPS: usize = 8;
/// An opcode that is none.
const NO_OPCODE: u32 = 99;

/// A request that was posted.
#[derive(Clone, Copy, Debug)]
struct Posted {
    wr_id: u64,
    signaled: bool,
    /// How many sends of the QP came before it.
    position: u64,
}

/// A completion in a CQ.
#[derive(Clone, Copy, Debug)]
struct Entry {
    qpn: u32,
    wr_id: u64,
    /// Is it for the application?
    visible: bool,
    /// Of a send: its position.
    position: Option<u64>,
}

#[derive(Debug)]
struct QpModel {
    qp: *mut ibv_qp,
    handle: u32,
    qpn: u32,
    extended: bool,
    inline: bool,
    all: bool,
    chatty: bool,
    state: u32,
    slots: u64,
    recv_slots: usize,
    /// Posted and not taken.
    sends: VecDeque<Posted>,
    recvs: VecDeque<u64>,
    posted: u64,
    /// Sends whose inline places are free again.
    done: u64,
    cqs: [usize; 2],
}

struct Model {
    rng: Rng,
    world: Box<World>,
    cqs: Vec<(*mut ibv_cq_ex, u32, VecDeque<Entry>)>,
    qps: Vec<QpModel>,
    next_wr_id: u64,
    /// Requests posted, refused; completions.
    seen: [u64; 3],
}

impl Model {
    fn new(rng: Rng) -> Self {
        let world = World::new();
        let cqs = (0..CQS)
            .map(|n| {
                // SAFETY: integers and pointers only; a live context and domain.
                let cq = unsafe {
                    let mut attr: ibv_cq_init_attr_ex = core::mem::zeroed();
                    attr.cqe = 2 << n;
                    attr.wc_flags = IBV_WC_STANDARD_FLAGS.into();
                    attr.comp_mask = IBV_CQ_INIT_ATTR_MASK_PD;
                    attr.parent_domain = world.pd;
                    cq_ex::create_cq_ex(world.context, &mut attr).unwrap()
                };
                // SAFETY: just made.
                (cq, unsafe { (*cq.cast::<ibv_cq>()).handle }, VecDeque::new())
            })
            .collect();
        Self { rng, world, cqs, qps: Vec::new(), next_wr_id: 0, seen: [0; 3] }
    }

    fn chance(&mut self, n: u64) -> bool {
        self.rng.below(n) == 0
    }

    fn step(&mut self) {
        let what = self.rng.below(100);
        if self.qps.is_empty() || (what < 4 && self.qps.len() < QPS) {
            return self.create();
        }
        let index = self.rng.below(self.qps.len() as u64) as usize;
        match what {
            0..4 => self.destroy(index),
            4..12 => self.modify(index),
            12..35 => self.send(index),
            35..50 => self.recv(index),
            50..75 => self.work(index),
            _ => self.poll(),
        }
    }

    fn create(&mut self) {
        let cqs = [0; 2].map(|_| self.rng.below(CQS as u64) as usize);
        let (slots, recv_slots) = (1 << self.rng.below(4), 1 << self.rng.below(3));
        let [inline, all, extended, chatty] = [0; 4].map(|_| self.chance(2));
        // SAFETY: integers and pointers only; live objects of one context.
        let (qp, cap) = unsafe {
            let mut attr: ibv_qp_init_attr_ex = core::mem::zeroed();
            attr.send_cq = self.cqs[cqs[0]].0.cast();
            attr.recv_cq = self.cqs[cqs[1]].0.cast();
            attr.cap = ibv_qp_cap {
                max_send_wr: slots,
                max_recv_wr: recv_slots,
                max_send_sge: 2,
                max_recv_sge: 1,
                max_inline_data: if inline { 64 } else { 0 },
            };
            attr.qp_type = IBV_QPT_RC;
            attr.sq_sig_all = all.into();
            attr.pd = self.world.pd;
            attr.comp_mask = IBV_QP_INIT_ATTR_PD;
            if extended {
                attr.comp_mask |= IBV_QP_INIT_ATTR_SEND_OPS_FLAGS;
                attr.send_ops_flags = IBV_QP_EX_WITH_SEND.into();
            }
            (qp_ex::create_qp_ex(self.world.context, &mut attr).unwrap(), attr.cap)
        };
        assert_eq!((cap.max_send_wr, cap.max_recv_wr), (slots, recv_slots));
        // SAFETY: just made.
        let (handle, qpn) = unsafe { ((*qp).handle, (*qp).qp_num) };
        self.qps.push(QpModel {
            qp,
            handle,
            qpn,
            extended,
            inline,
            all,
            chatty: inline && chatty,
            state: IBV_QPS_RESET,
            slots: slots.into(),
            recv_slots: recv_slots as usize,
            sends: VecDeque::new(),
            recvs: VecDeque::new(),
            posted: 0,
            done: 0,
            cqs,
        });
    }

    /// Completions of a QP are gone from its CQs.
    fn purge(&mut self, index: usize) {
        let QpModel { qpn, cqs, .. } = self.qps[index];
        cqs.iter().for_each(|cq| self.cqs[*cq].2.retain(|entry| entry.qpn != qpn));
    }

    fn destroy(&mut self, index: usize) {
        // SAFETY: a live QP.
        unsafe { qp::destroy_qp(self.qps[index].qp) }.unwrap();
        self.purge(index);
        self.qps.swap_remove(index);
    }

    fn modify(&mut self, index: usize) {
        let states = [IBV_QPS_RESET, IBV_QPS_INIT, IBV_QPS_RTR, IBV_QPS_RTS, IBV_QPS_RTS, IBV_QPS_RTS, IBV_QPS_ERR];
        let state = states[self.rng.below(states.len() as u64) as usize];
        let mut attr = ibv_qp_attr { qp_state: state, ..Default::default() };
        // SAFETY: a live QP.
        unsafe { qp::modify_qp(self.qps[index].qp, &mut attr, IBV_QP_STATE as c_int) }.unwrap();
        if state == IBV_QPS_RESET {
            self.purge(index);
            self.qps[index].sends.clear();
            self.qps[index].recvs.clear();
            self.qps[index].done = self.qps[index].posted;
        }
        self.qps[index].state = state;
    }

    fn send(&mut self, index: usize) {
        let count = 1 + self.rng.below(6) as usize;
        let bad = if self.chance(8) { self.rng.below(6) as usize } else { usize::MAX };
        let requests: Vec<_> = (0..count)
            .map(|_| {
                self.next_wr_id += 1;
                (self.next_wr_id, self.chance(2))
            })
            .collect();
        let batch = self.qps[index].extended && self.chance(2);
        // What must come of it.
        let model = &self.qps[index];
        let mut accepted = 0;
        let expected = loop {
            let (on_ring, pending) = (model.sends.len() as u64 + accepted, model.posted + accepted - model.done);
            if accepted == count as u64 {
                break Ok(());
            }
            break match accepted as usize {
                _ if model.state < IBV_QPS_RTS => Err(Errno::EINVAL),
                // Before anything else the request is judged; a batch takes its inline place first.
                _ if batch && model.inline && pending == model.slots => Err(Errno::ENOMEM),
                _ if on_ring == model.slots => Err(Errno::ENOMEM),
                n if n == bad => Err(if batch { Errno::EOPNOTSUPP } else { Errno::EINVAL }),
                _ if model.inline && pending == model.slots => Err(Errno::ENOMEM),
                _ => {
                    accepted += 1;
                    continue;
                }
            };
        };
        if batch && bad < count && model.state >= IBV_QPS_RTS && accepted as usize == bad {
            // What is not offered takes no slot, so it is what is wrong first.
            let got = self.build(index, &requests, bad);
            assert_eq!(got, Err(Errno::EOPNOTSUPP));
            self.seen[1] += 1;
            return;
        }
        let (got, got_accepted) = match batch {
            true => (self.build(index, &requests, bad), if expected.is_ok() { count as u64 } else { 0 }),
            false => self.post(index, &requests, bad),
        };
        if batch && expected.is_err() {
            accepted = 0;
        }
        assert_eq!((got, got_accepted), (expected, accepted), "{:?}, batch: {batch}, bad: {bad}", self.qps[index]);
        self.seen[0] += accepted;
        self.seen[1] += u64::from(expected.is_err());
        let model = &mut self.qps[index];
        for (wr_id, signaled) in requests.into_iter().take(accepted as usize) {
            model.sends.push_back(Posted { wr_id, signaled: signaled || model.all, position: model.posted });
            model.posted += 1;
        }
    }

    /// `ibv_post_send`: what it says and how many it took.
    fn post(&mut self, index: usize, requests: &[(u64, bool)], bad: usize) -> (Result<(), Errno>, u64) {
        let mut sge = ibv_sge { addr: 1, length: 2, lkey: 3 };
        let mut next = ptr::null_mut();
        // SAFETY: all-zero integers and pointers are valid.
        let mut wrs = vec![unsafe { core::mem::zeroed::<ibv_send_wr>() }; requests.len()];
        for (n, wr) in wrs.iter_mut().enumerate().rev() {
            wr.wr_id = requests[n].0;
            wr.opcode = if n == bad { NO_OPCODE } else { IBV_WR_SEND };
            wr.send_flags = if requests[n].1 { IBV_SEND_SIGNALED } else { 0 };
            wr.sg_list = &mut sge;
            wr.num_sge = 1;
            wr.next = next;
            next = ptr::from_mut(wr);
        }
        // SAFETY: a live QP, a valid list.
        let result = unsafe {
            let qp = Qp::of(self.qps[index].qp);
            match qp.kind {
                Kind::Rc => post_send(qp, next),
                _ => post_send_special(qp, next),
            }
        };
        match result {
            Ok(()) => (Ok(()), requests.len() as u64),
            // SAFETY: a request of the list.
            Err((errno, bad)) => (Err(errno), unsafe { bad.offset_from(wrs.as_ptr()) } as u64),
        }
    }

    /// The same by `ibv_wr_start` and `ibv_wr_complete`.
    fn build(&mut self, index: usize, requests: &[(u64, bool)], bad: usize) -> Result<(), Errno> {
        let qp: *mut ibv_qp_ex = self.qps[index].qp.cast();
        // SAFETY: a live extended QP, whose functions are there.
        unsafe {
            (*qp).wr_start.unwrap()(qp);
            for (n, (wr_id, signaled)) in requests.iter().enumerate() {
                (*qp).wr_id = *wr_id;
                (*qp).wr_flags = if *signaled { IBV_SEND_SIGNALED } else { 0 };
                match n == bad {
                    true => (*qp).wr_rdma_read.unwrap()(qp, 1, 2),
                    false => (*qp).wr_send.unwrap()(qp),
                }
                (*qp).wr_set_sge.unwrap()(qp, 3, 1, 2);
            }
            Errno::check((*qp).wr_complete.unwrap()(qp))
        }
    }

    fn recv(&mut self, index: usize) {
        self.next_wr_id += 1;
        let num_sge = if self.chance(8) { 2 } else { 1 };
        let mut sges = [ibv_sge { addr: 1, length: 2, lkey: 3 }; 2];
        let mut wr = ibv_recv_wr { wr_id: self.next_wr_id, next: ptr::null_mut(), sg_list: sges.as_mut_ptr(), num_sge };
        let model = &mut self.qps[index];
        let expected = match model.state {
            IBV_QPS_RESET => Err(Errno::EINVAL),
            _ if model.recvs.len() == model.recv_slots => Err(Errno::ENOMEM),
            _ if num_sge > 1 => Err(Errno::EINVAL),
            _ => Ok(()),
        };
        // SAFETY: a live QP, a valid request.
        let got = unsafe { post_recv(Qp::of(model.qp), &mut wr) }.map_err(|(errno, _)| errno);
        assert_eq!(got, expected, "{model:?}");
        match got {
            Ok(()) => model.recvs.push_back(wr.wr_id),
            Err(_) => self.seen[1] += 1,
        }
    }

    /// The device takes a few requests and completes those that want it.
    fn work(&mut self, index: usize) {
        let model = &mut self.qps[index];
        let state = self.world.state();
        let device = &state.qps[&model.handle];
        let failed = model.state == IBV_QPS_ERR;
        let status = if failed { PVRDMA_WC_WR_FLUSH_ERR } else { 0 };
        for _ in 0..self.rng.below(4) {
            let (number, entries) = (self.cqs[model.cqs[0]].1, &mut self.cqs[model.cqs[0]].2);
            let ring = state.cqs[&number].ring;
            if entries.len() < ring.entries() as usize
                && let Some((wr_id, flags)) = device.sq.take()
            {
                let posted = model.sends.pop_front().unwrap();
                assert_eq!(flags & IBV_SEND_SIGNALED != 0, posted.signaled);
                assert!(model.inline || wr_id == posted.wr_id);
                if posted.signaled || failed || model.chatty {
                    assert!(ring.put(pvrdma_cqe { wr_id, qp: model.handle.into(), status, ..Default::default() }));
                    let visible = posted.signaled || failed;
                    let position = Some(posted.position);
                    entries.push_back(Entry { qpn: model.qpn, wr_id: posted.wr_id, visible, position });
                }
            }
            let (number, entries) = (self.cqs[model.cqs[1]].1, &mut self.cqs[model.cqs[1]].2);
            let ring = state.cqs[&number].ring;
            if entries.len() < ring.entries() as usize
                && let Some((wr_id, _)) = device.rq.unwrap().take()
            {
                assert_eq!(Some(wr_id), model.recvs.pop_front());
                let cqe =
                    pvrdma_cqe { wr_id, qp: model.handle.into(), opcode: PVRDMA_WC_RECV, status, ..Default::default() };
                assert!(ring.put(cqe));
                entries.push_back(Entry { qpn: model.qpn, wr_id, visible: true, position: None });
            }
        }
    }

    fn poll(&mut self) {
        let cq = self.rng.below(CQS as u64) as usize;
        let wanted = 1 + self.rng.below(10) as usize;
        let mut expected = Vec::new();
        while expected.len() < wanted
            && let Some(entry) = self.cqs[cq].2.pop_front()
        {
            if entry.visible {
                expected.push((entry.qpn, entry.wr_id));
            }
            if let Some(position) = entry.position {
                self.qps.iter_mut().find(|model| model.qpn == entry.qpn).unwrap().done = position + 1;
            }
        }
        let at = self.cqs[cq].0;
        let got = if self.chance(2) { Self::poll_plainly(at, wanted) } else { Self::poll_extended(at, wanted) };
        assert_eq!(got, expected);
        self.seen[2] += got.len() as u64;
    }

    fn poll_plainly(cq: *mut ibv_cq_ex, wanted: usize) -> Vec<(u32, u64)> {
        let mut wcs = [ibv_wc::default(); 16];
        // SAFETY: a live CQ; no more than 16 are wanted.
        let taken = unsafe { poll_cq(Cq::of(cq.cast()), wanted as c_int, wcs.as_mut_ptr()) };
        wcs[..usize::try_from(taken).unwrap()].iter().map(|wc| (wc.qp_num, wc.wr_id)).collect()
    }

    fn poll_extended(cq: *mut ibv_cq_ex, wanted: usize) -> Vec<(u32, u64)> {
        let mut taken = Vec::new();
        let mut attr = ibv_poll_cq_attr { comp_mask: 0 };
        // SAFETY: a live CQ; ended if it was started.
        unsafe {
            let mut result = (*cq).start_poll.unwrap()(cq, &mut attr);
            if result == 0 {
                while result == 0 {
                    taken.push(((*cq).read_qp_num.unwrap()(cq), (*cq).wr_id));
                    if taken.len() == wanted {
                        break;
                    }
                    result = (*cq).next_poll.unwrap()(cq);
                }
                (*cq).end_poll.unwrap()(cq);
            }
        }
        taken
    }

    fn end(mut self) -> [u64; 3] {
        while !self.qps.is_empty() {
            self.destroy(0);
        }
        // SAFETY: live CQs without QPs.
        self.cqs.iter().for_each(|(cq, ..)| unsafe { cq::destroy_cq(cq.cast()) }.unwrap());
        self.world.close();
        self.seen
    }
}

#[test]
fn random_verbs_end_as_the_model_says() {
    let mut model = Model::new(Rng::from_env(1));
    let steps = std::env::var("PVRDMA_STEPS").map_or(20_000, |steps| steps.parse().unwrap());
    for step in 0..steps {
        // A failure says where it was.
        if step % 1000 == 0 {
            println!("step {step}");
        }
        model.step();
    }
    let seen = model.end();
    println!("{steps} steps: posted, refused, completed: {seen:?}");
    assert!(seen.iter().all(|count| *count > steps / 20), "{seen:?} in {steps} steps");
}
