//! Queue pairs: create, modify, query, destroy.

use super::cq::Entry;
use super::send::Posted;
use super::srq::Recv;
use super::tally::STATES;
use super::{Answer, Lane, made, said};
use crate::ops::OPS;
use crate::testing::kernel::states;
use crate::testing::mock::Mock;
use core::ffi::c_int;
use core::ptr;
use pvrdma_ffi::dev_api::PVRDMA_QP_CUR_STATE;
use pvrdma_ffi::verbs::*;
use std::collections::VecDeque;

const MOST: usize = 6;

/// A QP, and what is on its way in it.
#[derive(Debug)]
pub struct QpModel {
    pub qp: *mut ibv_qp,
    pub qpn: u32,
    pub handle: u32,
    pub ud: bool,
    /// `ibv_wr_*` that it can, if it is an extended one.
    pub ops: Option<u64>,
    pub all: bool,
    /// Does its device complete sends that were not signaled, as some do? Only a QP with inline data can tell.
    pub chatty: bool,
    pub cap: ibv_qp_cap,
    pd: u32,
    pub send_cq: u32,
    pub recv_cq: u32,
    pub srq: Option<u32>,
    /// May sends be posted, and receives? By the last change that was let through.
    pub open: (bool, bool),
    /// Posted, and not taken by the device.
    pub sends: VecDeque<Posted>,
    pub recvs: VecDeque<Recv>,
    /// Taken, and not completed; sends with the `wr_id` that the device was given.
    pub fetched: VecDeque<(u64, Posted)>,
    pub held: VecDeque<Recv>,
    /// Sends posted; of these, those that are before the last completion that the device put, and before the
    /// last that is known to have been polled.
    pub posted: u64,
    pub put: u64,
    pub done: u64,
    /// Inline data that must stay as it is: position, address, content.
    pub inline: VecDeque<(u64, u64, Vec<u8>)>,
    /// Completions in CQs of all threads that nobody has told of yet.
    pub owed: Vec<Entry>,
}

/// `IBV_QP_EX_WITH_*` by opcode, and which a UD QP has.
pub const OPS_OF: [(u32, u32, bool); 7] = [
    (IBV_WR_SEND, IBV_QP_EX_WITH_SEND, true),
    (IBV_WR_SEND_WITH_IMM, IBV_QP_EX_WITH_SEND_WITH_IMM, true),
    (IBV_WR_RDMA_WRITE, IBV_QP_EX_WITH_RDMA_WRITE, false),
    (IBV_WR_RDMA_WRITE_WITH_IMM, IBV_QP_EX_WITH_RDMA_WRITE_WITH_IMM, false),
    (IBV_WR_RDMA_READ, IBV_QP_EX_WITH_RDMA_READ, false),
    (IBV_WR_ATOMIC_CMP_AND_SWP, IBV_QP_EX_WITH_ATOMIC_CMP_AND_SWP, false),
    (IBV_WR_ATOMIC_FETCH_AND_ADD, IBV_QP_EX_WITH_ATOMIC_FETCH_AND_ADD, false),
];

fn rounded(wr: u32) -> u32 {
    wr.max(1).next_power_of_two()
}

fn numbers(cap: &ibv_qp_cap) -> [u32; 5] {
    [cap.max_send_wr, cap.max_recv_wr, cap.max_send_sge, cap.max_recv_sge, cap.max_inline_data]
}

impl QpModel {
    /// The first send whose inline data may have been overwritten already is after this many: in a CQ of all
    /// threads some may have been polled by others.
    pub fn surely_pending(&self, shared_cq: bool) -> u64 {
        if shared_cq { self.put } else { self.done }
    }

    /// Requests that are on their way.
    pub fn on_the_way(&self) -> u64 {
        (self.sends.len() + self.recvs.len() + self.fetched.len() + self.held.len()) as u64
    }
}

impl Lane<'_> {
    pub fn qp_step(&mut self) {
        match self.rng.below(40) {
            0..3 => self.create_qp(),
            3 => self.destroy_qp(),
            4..8 => self.query_qp(),
            _ => self.modify_qp(),
        }
    }

    fn create_qp(&mut self) {
        let (Some(send_cq), Some(recv_cq)) = (self.any_key(|lane| &lane.cqs), self.any_key(|lane| &lane.cqs)) else {
            return;
        };
        if self.qps.len() >= MOST {
            return;
        }
        let (pd, pd_ptr) = self.any_pd();
        let srq = if self.rng.one_in(3) { self.any_key(|lane| &lane.srqs) } else { None };
        let (ud, all, chatty, extended) =
            (self.rng.one_in(3), self.rng.one_in(4), self.rng.one_in(2), self.rng.one_in(2));
        let mut cap = ibv_qp_cap {
            max_send_wr: self.rng.below(9) as u32,
            max_recv_wr: self.rng.below(5) as u32,
            max_send_sge: self.rng.below(4) as u32,
            max_recv_sge: self.rng.below(3) as u32,
            max_inline_data: *self.rng.pick(&[0, 0, 0, 1, 64, 100, 1024]),
        };
        // SAFETY: integers and pointers only.
        let mut ex: ibv_qp_init_attr_ex = unsafe { core::mem::zeroed() };
        ex.qp_type = if ud { IBV_QPT_UD } else { IBV_QPT_RC };
        ex.send_cq = self.cqs[&send_cq].cq.cast();
        ex.recv_cq = self.cqs[&recv_cq].cq.cast();
        ex.srq = srq.map_or(ptr::null_mut(), |srq| self.srqs[&srq].srq);
        ex.sq_sig_all = all.into();
        ex.pd = pd_ptr;
        ex.comp_mask = IBV_QP_INIT_ATTR_PD;
        let possible: u64 =
            OPS_OF.iter().filter(|(_, _, on_ud)| *on_ud || !ud).map(|(_, flag, _)| u64::from(*flag)).sum();
        // SEND most often: a QP that can nothing is soon boring.
        let ops = extended.then(|| self.rng.word() & possible | u64::from(IBV_QP_EX_WITH_SEND));
        if let Some(ops) = ops {
            ex.comp_mask |= IBV_QP_INIT_ATTR_SEND_OPS_FLAGS;
            ex.send_ops_flags = ops;
        }
        let lie = self.lie();
        let mut expected = lie.map_or(Ok(()), Err);
        let limits = Mock::LIMITS;
        let fault = self.rng.below(40);
        expected = match fault {
            0 | 1 => Err(libc::EOPNOTSUPP),
            2..8 => Err(libc::EINVAL),
            8..11 if extended => Err(libc::EOPNOTSUPP),
            11 if extended => Err(libc::EINVAL),
            _ => expected,
        };
        match fault {
            0 => ex.qp_type = 8,
            1 => ex.qp_type = IBV_QPT_RC + 1,
            2 => ex.send_cq = ptr::null_mut(),
            3 => ex.recv_cq = ptr::null_mut(),
            4 => cap.max_send_wr = limits.max_qp_wr + 1,
            5 => cap.max_send_sge = limits.max_sge + 1,
            6 => cap.max_inline_data = 1025,
            // Counts for nothing where there is an SRQ.
            7 if srq.is_some() => {
                (cap.max_recv_wr, cap.max_recv_sge, expected) = (u32::MAX, u32::MAX, lie.map_or(Ok(()), Err))
            }
            7 => cap.max_recv_wr = u32::MAX,
            8 if extended => ex.comp_mask |= 1 << 11,
            9 if extended => (ex.comp_mask, ex.create_flags) = (ex.comp_mask | IBV_QP_INIT_ATTR_CREATE_FLAGS, 4),
            10 if extended => ex.send_ops_flags |= u64::from(IBV_QP_EX_WITH_LOCAL_INV),
            11 if extended => ex.pd = ptr::null_mut(),
            _ => {}
        }
        if (fault == 0 || fault == 1) && extended {
            // Fewer operations first, or what is not offered is the fault.
            ex.send_ops_flags = 0;
        }
        ex.cap = cap;
        let (got, told) = if extended { self.create_extended(ex) } else { self.create_plainly(ex) };
        self.honest();
        let had = ibv_qp_cap {
            max_send_wr: rounded(cap.max_send_wr),
            max_recv_wr: if srq.is_some() { 0 } else { rounded(cap.max_recv_wr.min(8)) },
            max_send_sge: cap.max_send_sge.max(1),
            max_recv_sge: if srq.is_some() { 0 } else { cap.max_recv_sge.max(1) },
            max_inline_data: cap.max_inline_data.next_multiple_of(64),
        };
        let Some(qp) = self.judge("create_qp", got, expected) else {
            assert_eq!(numbers(&told), numbers(&cap), "written on failure");
            return;
        };
        assert_eq!(numbers(&told), numbers(&had));
        // SAFETY: just made.
        let (handle, qpn) = unsafe { ((*qp).handle, (*qp).qp_num) };
        self.hold(pd, true, 1);
        [send_cq, recv_cq].iter().for_each(|cq| self.cqs.get_mut(cq).unwrap().users += 1);
        srq.iter().for_each(|srq| self.srqs.get_mut(srq).unwrap().users += 1);
        let chatty = chatty && had.max_inline_data > 0;
        let model = QpModel {
            qp,
            qpn,
            handle,
            ud,
            ops,
            all,
            chatty,
            cap: had,
            pd,
            send_cq,
            recv_cq,
            srq,
            open: (false, false),
            sends: VecDeque::new(),
            recvs: VecDeque::new(),
            fetched: VecDeque::new(),
            held: VecDeque::new(),
            posted: 0,
            put: 0,
            done: 0,
            inline: VecDeque::new(),
            owed: Vec::new(),
        };
        self.qps.insert(qpn, model);
        self.shared.owners.lock().unwrap().insert(qpn, self.number);
    }

    fn create_extended(&self, mut ex: ibv_qp_init_attr_ex) -> (Answer<*mut ibv_qp>, ibv_qp_cap) {
        // SAFETY: an open context, a valid attribute.
        let got = made(|| unsafe { OPS.create_qp_ex.unwrap()(self.world().context, &mut ex) });
        (got, ex.cap)
    }

    fn create_plainly(&self, ex: ibv_qp_init_attr_ex) -> (Answer<*mut ibv_qp>, ibv_qp_cap) {
        let mut attr = ibv_qp_init_attr {
            qp_context: ptr::null_mut(),
            send_cq: ex.send_cq,
            recv_cq: ex.recv_cq,
            srq: ex.srq,
            cap: ex.cap,
            qp_type: ex.qp_type,
            sq_sig_all: ex.sq_sig_all,
            // An application's own is anything.
            padding: u32::MAX,
        };
        // SAFETY: a live PD, a valid attribute.
        let got = made(|| unsafe { OPS.create_qp.unwrap()(ex.pd, &mut attr) });
        (got, attr.cap)
    }

    /// Nothing of the QP remains, neither requests nor completions.
    fn purge(&mut self, qpn: u32) {
        let qp = self.qps.get_mut(&qpn).unwrap();
        self.purged.extend(qp.owed.drain(..).map(|entry| entry.wc.wr_id));
        self.tally.add("requests purged", 0, qp.on_the_way());
        self.ledger.purged += qp.on_the_way();
        (qp.sends, qp.recvs, qp.fetched, qp.held) = Default::default();
        qp.inline.clear();
        (qp.put, qp.done) = (qp.posted, qp.posted);
        for cq in [qp.send_cq, qp.recv_cq] {
            self.cqs.get_mut(&cq).unwrap().queue.retain(|entry| entry.wc.qp_num != qpn);
        }
    }

    fn destroy_qp(&mut self) {
        let Some(qpn) = self.any_key(|lane| &lane.qps) else { return };
        let lie = self.lie();
        self.end_qp(qpn, lie.map_or(Ok(()), Err));
    }

    /// Destroy it; on failure it goes on as if nothing had been.
    pub fn end_qp(&mut self, qpn: u32, expected: Answer<()>) {
        // SAFETY: a live QP, not used any more if this succeeds.
        let got = said(unsafe { OPS.destroy_qp.unwrap()(self.qps[&qpn].qp) });
        self.honest();
        if self.judge("destroy_qp", got, expected).is_some() {
            self.purge(qpn);
            let gone = self.qps.remove(&qpn).unwrap();
            self.hold(gone.pd, true, -1);
            [gone.send_cq, gone.recv_cq].iter().for_each(|cq| self.cqs.get_mut(cq).unwrap().users -= 1);
            gone.srq.iter().for_each(|srq| self.srqs.get_mut(srq).unwrap().users -= 1);
        }
    }

    fn modify_qp(&mut self) {
        let Some(qpn) = self.any_key(|lane| &lane.qps) else { return };
        let (state, known, ud) = self.states_of(qpn);
        // Most often a step on the way to RTS.
        let next = match known {
            _ if state == IBV_QPS_ERR => IBV_QPS_RESET,
            IBV_QPS_RESET => IBV_QPS_INIT,
            IBV_QPS_RTS if self.rng.one_in(8) => IBV_QPS_SQD,
            IBV_QPS_INIT => IBV_QPS_RTR,
            IBV_QPS_RTR | IBV_QPS_RTS | IBV_QPS_SQD | IBV_QPS_SQE => IBV_QPS_RTS,
            _ => IBV_QPS_RESET,
        };
        let to = if self.rng.one_in(8) { self.rng.below(8) as u32 } else { next };
        let mut attr = ibv_qp_attr { qp_state: to, cur_qp_state: known, ..Default::default() };
        let (required, optional) = states::attributes(ud, known, to).unwrap_or((0, !0 >> 11));
        let mut mask = IBV_QP_STATE | required | optional & self.rng.word() as u32;
        match self.rng.below(16) {
            0 => mask ^= 1 << self.rng.below(21),
            1 => mask ^= IBV_QP_STATE,
            2 => (mask, attr.cur_qp_state) = (mask | PVRDMA_QP_CUR_STATE, self.rng.below(8) as u32),
            // In the hope that the caller knows better than the kernel.
            3 => (mask, attr.cur_qp_state) = (mask | PVRDMA_QP_CUR_STATE, state),
            _ => {}
        }
        self.modify_to(qpn, attr, mask);
    }

    /// The device's state of a QP, what the kernel takes it for, and whether it is UD.
    fn states_of(&self, qpn: u32) -> (u32, u32, bool) {
        let qp = &self.qps[&qpn];
        let state = self.world().state();
        let device = &state.qps[&qp.handle];
        (device.state, device.known, qp.ud)
    }

    /// Which changes are legal is the kernel's to say; what the model knows is what follows from it.
    pub fn modify_to(&mut self, qpn: u32, mut attr: ibv_qp_attr, mask: u32) {
        let (qp, handle) = (self.qps[&qpn].qp, self.qps[&qpn].handle);
        // What the device says is that it does not like the values.
        let lie = self.lie();
        let answer = self.world().state().qps[&handle].judge(&attr, mask);
        let answer = answer.map_err(|errno| if errno == libc::EFAULT { libc::EINVAL } else { errno });
        let expected = lie.map_or(answer.map(|_| ()), Err);
        // SAFETY: a live QP, valid attributes.
        let got = said(unsafe { OPS.modify_qp.unwrap()(qp, &mut attr, mask as c_int) });
        self.honest();
        if self.judge("modify_qp", got, expected).is_none() || mask & IBV_QP_STATE == 0 {
            return;
        }
        let to = attr.qp_state;
        let model = self.qps.get_mut(&qpn).unwrap();
        model.open = (to >= IBV_QPS_RTS, to != IBV_QPS_RESET && model.srq.is_none());
        if to == IBV_QPS_RESET {
            self.purge(qpn);
            let state = self.world().state();
            let device = &state.qps[&handle];
            let counters = [Some(device.sq), device.rq].map(|ring| ring.map_or((0, 0), |ring| ring.counters()));
            assert_eq!(counters, [(0, 0); 2], "the rings start over");
        }
    }

    fn query_qp(&mut self) {
        let Some(qpn) = self.any_key(|lane| &lane.qps) else { return };
        let (state, ..) = self.states_of(qpn);
        let (mut attr, lie) = (ibv_qp_attr { qkey: 1, ..Default::default() }, self.lie());
        // SAFETY: integers and pointers only.
        let mut init: ibv_qp_init_attr = unsafe { core::mem::zeroed() };
        let model = &self.qps[&qpn];
        // SAFETY: a live QP, valid outputs.
        let got = said(unsafe { OPS.query_qp.unwrap()(model.qp, &mut attr, IBV_QP_STATE as c_int, &mut init) });
        self.honest();
        let answered = self.judge("query_qp", got, lie.map_or(Ok(()), Err)).is_some();
        if !answered {
            assert_eq!((attr.qkey, init.sq_sig_all), (1, 0), "written on failure");
            return;
        }
        self.tally.add(STATES, state as c_int, 1);
        let model = &self.qps[&qpn];
        assert_eq!((attr.qp_state, attr.cur_qp_state), (state, state));
        assert_eq!((numbers(&attr.cap), numbers(&init.cap)), (numbers(&model.cap), numbers(&model.cap)));
        assert_eq!(init.sq_sig_all, c_int::from(model.all));
        assert_eq!(attr.qkey, if state == IBV_QPS_RESET { 0 } else { qpn }, "of a QP in RESET there is but the state");
    }
}
