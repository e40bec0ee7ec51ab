//! The device at work: takes requests and looks at them, completes them, lets them fail, flushes. It
//! fetches before it completes, and QPs that share an SRQ end their receives in any order.

use super::Lane;
use super::cq::Entry;
use super::qp::QpModel;
use crate::testing::kernel::State;
use pvrdma_ffi::uapi::vmw_pvrdma::*;
use pvrdma_ffi::verbs::*;

/// Requests that the device has fetched ahead, at most.
const AHEAD: usize = 3;

/// Statuses of requests that fail by themselves.
const FAILURES: [u32; 4] =
    [PVRDMA_WC_LOC_PROT_ERR, PVRDMA_WC_REM_ACCESS_ERR, PVRDMA_WC_RETRY_EXC_ERR, PVRDMA_WC_GENERAL_ERR];

/// Opcode of the completion of a send, at the device and for the application.
fn completed_as(opcode: u32) -> (u32, u32) {
    match opcode {
        PVRDMA_WR_RDMA_WRITE | PVRDMA_WR_RDMA_WRITE_WITH_IMM => (PVRDMA_WC_RDMA_WRITE, IBV_WC_RDMA_WRITE),
        PVRDMA_WR_RDMA_READ => (PVRDMA_WC_RDMA_READ, IBV_WC_RDMA_READ),
        PVRDMA_WR_ATOMIC_CMP_AND_SWP => (PVRDMA_WC_COMP_SWAP, IBV_WC_COMP_SWAP),
        PVRDMA_WR_ATOMIC_FETCH_AND_ADD => (PVRDMA_WC_FETCH_ADD, IBV_WC_FETCH_ADD),
        _ => (PVRDMA_WC_SEND, IBV_WC_SEND),
    }
}

impl Lane<'_> {
    /// A few things happen in a QP.
    pub fn device_step(&mut self) {
        let Some(qpn) = self.any_key(|lane| &lane.qps) else { return };
        for _ in 0..1 + self.rng.below(6) {
            match self.rng.below(5) {
                0 => self.fetch_send(qpn),
                1 => self.complete_send(qpn),
                2 => self.take_recv(qpn),
                3 => self.complete_recv(qpn),
                _ if self.rng.one_in(60) => self.break_down(qpn),
                _ => {}
            }
        }
        self.inline_is_intact(qpn);
    }

    /// The device loses all faith in a QP, and whatever is in it is flushed.
    pub fn break_down(&mut self, qpn: u32) {
        let shared = self.shared;
        let mut state = shared.world.state();
        let device = state.qps.get_mut(&self.qps[&qpn].handle).unwrap();
        if device.state >= IBV_QPS_RTR {
            device.state = IBV_QPS_ERR;
        }
    }

    pub fn fetch_send(&mut self, qpn: u32) {
        let shared = self.shared;
        let state = shared.world.state();
        let qp = self.qps.get_mut(&qpn).unwrap();
        let device = &state.qps[&qp.handle];
        let works = matches!(device.state, IBV_QPS_RTS | IBV_QPS_SQE | IBV_QPS_ERR);
        if !works || qp.fetched.len() >= AHEAD {
            return;
        }
        let (wqe, posted) = (device.sq.take_send(), qp.sends.pop_front());
        assert_eq!(wqe.is_some(), posted.is_some(), "what is posted is on the ring, and nothing else");
        let (Some(wqe), Some(posted)) = (wqe, posted) else { return };
        if let Some((addr, bytes)) = posted.check(&wqe, qp.cap.max_inline_data > 0) {
            let region = state.regions[&wqe.sges[0].lkey];
            let end = region.start + region.length;
            assert!((region.start..=end - bytes.len() as u64).contains(&addr), "outside the registered memory");
            qp.inline.push_back((posted.position, addr, bytes));
        }
        qp.fetched.push_back((wqe.hdr.wr_id, posted));
    }

    pub fn complete_send(&mut self, qpn: u32) {
        let shared = self.shared;
        let mut state = shared.world.state();
        let qp = self.qps.get_mut(&qpn).unwrap();
        let Some((cookie, posted)) = qp.fetched.front() else { return };
        let now = state.qps[&qp.handle].state;
        let status = match now {
            IBV_QPS_RTS | IBV_QPS_SQD if self.rng.one_in(if qp.ud { 15 } else { 40 }) => *self.rng.pick(&FAILURES),
            IBV_QPS_RTS | IBV_QPS_SQD => 0,
            _ => PVRDMA_WC_WR_FLUSH_ERR,
        };
        let visible = status != 0 || posted.signaled();
        if visible || qp.chatty {
            let (opcode, seen_as) = completed_as(posted.opcode);
            let cqe =
                pvrdma_cqe { wr_id: *cookie, opcode, status, byte_len: posted.position as u32, ..Default::default() };
            let wc = ibv_wc { wr_id: posted.wr_id, opcode: seen_as, ..Default::default() };
            let entry = Entry { wc, visible, position: Some(posted.position) };
            if !self.put(&state, qpn, qp_send_cq, cqe, entry) {
                return;
            }
            let qp = self.qps.get_mut(&qpn).unwrap();
            qp.put = qp.fetched[0].1.position + 1;
        }
        let qp = self.qps.get_mut(&qpn).unwrap();
        qp.fetched.pop_front();
        self.ledger.end(status, visible);
        if status != 0 && status != PVRDMA_WC_WR_FLUSH_ERR {
            // A datagram that fails stops the sends; a connection is at its end.
            state.qps.get_mut(&qp.handle).unwrap().state = if qp.ud { IBV_QPS_SQE } else { IBV_QPS_ERR };
        }
    }

    pub fn take_recv(&mut self, qpn: u32) {
        let shared = self.shared;
        let mut state = shared.world.state();
        let qp = self.qps.get_mut(&qpn).unwrap();
        let device = &state.qps[&qp.handle];
        if device.state < IBV_QPS_RTR || qp.held.len() >= AHEAD {
            return;
        }
        let (recv, wqe) = match qp.srq {
            None => {
                let (wqe, posted) = (device.rq.unwrap().take_recv(), qp.recvs.pop_front());
                assert_eq!(wqe.is_some(), posted.is_some(), "what is posted is on the ring, and nothing else");
                let (Some(wqe), Some(posted)) = (wqe, posted) else { return };
                (posted, wqe)
            }
            // A QP that failed takes no more.
            Some(_) if device.state == IBV_QPS_ERR => return,
            Some(number) => {
                let (srq, device) = (self.srqs.get_mut(&number).unwrap(), state.srqs.get_mut(&number).unwrap());
                let wqe = device.ring.take_recv();
                let posted = match (srq.pinned, &wqe) {
                    (true, Some(wqe)) => shared.receives.lock().unwrap().remove(&wqe.hdr.wr_id),
                    (true, None) => None,
                    (false, _) => srq.ring.pop_front(),
                };
                assert_eq!(wqe.is_some(), posted.is_some(), "what is posted is on the ring, and nothing else");
                if device.limit > 0 && device.ring.used() < device.limit {
                    // The event was raised: once.
                    (device.limit, srq.limit) = (0, 0);
                    self.tally.add("SRQ limit events", 0, 1);
                }
                let (Some(wqe), Some(posted)) = (wqe, posted) else { return };
                (posted, wqe)
            }
        };
        recv.check(&wqe);
        qp.held.push_back(recv);
    }

    pub fn complete_recv(&mut self, qpn: u32) {
        let shared = self.shared;
        let mut state = shared.world.state();
        let qp = &self.qps[&qpn];
        let Some(recv) = qp.held.front() else { return };
        let status = match state.qps[&qp.handle].state {
            IBV_QPS_ERR => PVRDMA_WC_WR_FLUSH_ERR,
            _ if !qp.ud && self.rng.one_in(40) => PVRDMA_WC_LOC_LEN_ERR,
            _ => 0,
        };
        let with_imm = self.rng.one_in(2);
        // A failed one need not say that it is a receive.
        let opcode = match status {
            0 => PVRDMA_WC_RECV + u32::from(with_imm),
            _ => PVRDMA_WC_RECV * self.rng.below(2) as u32,
        };
        let cqe =
            pvrdma_cqe { wr_id: recv.wr_id, opcode, status, byte_len: self.rng.word() as u32, ..Default::default() };
        let seen_as = if with_imm { IBV_WC_RECV_RDMA_WITH_IMM } else { IBV_WC_RECV };
        let wc = ibv_wc { wr_id: recv.wr_id, opcode: seen_as, ..Default::default() };
        if !self.put(&state, qpn, qp_recv_cq, cqe, Entry { wc, visible: true, position: None }) {
            return;
        }
        let qp = self.qps.get_mut(&qpn).unwrap();
        qp.held.pop_front();
        self.ledger.end(status, true);
        if status == PVRDMA_WC_LOC_LEN_ERR {
            state.qps.get_mut(&qp.handle).unwrap().state = IBV_QPS_ERR;
        }
    }

    /// Put a completion, if there is room. `entry` has what is not in `cqe`.
    fn put(&mut self, state: &State, qpn: u32, cq_of: fn(&QpModel) -> u32, cqe: pvrdma_cqe, entry: Entry) -> bool {
        let (word, imm) = (self.rng.word() as u32, self.rng.word() as u32);
        let qp = self.qps.get_mut(&qpn).unwrap();
        let number = cq_of(qp);
        let (cq, ring) = (self.cqs.get_mut(&number).unwrap(), state.cqs[&number].ring);
        assert!(cq.pinned || ring.used() as usize == cq.queue.len(), "what was polled was given back, and no more");
        // Both sides number the first two flags alike.
        let wc_flags = word & (IBV_WC_GRH | IBV_WC_WITH_IMM);
        let cqe = pvrdma_cqe { qp: qp.handle.into(), imm_data: imm, src_qp: word, wc_flags, ..cqe };
        if !ring.put(cqe) {
            return false;
        }
        let (status, byte_len) = (cqe.status, cqe.byte_len);
        let wc = ibv_wc { status, byte_len, imm_data: imm, src_qp: word, wc_flags, qp_num: qpn, ..entry.wc };
        let entry = Entry { wc, ..entry };
        match cq.pinned {
            false => cq.queue.push_back(entry),
            true if entry.visible => qp.owed.push(entry),
            true => {}
        }
        true
    }

    /// Inline data that the device may still read has not changed.
    pub fn inline_is_intact(&mut self, qpn: u32) {
        let qp = self.qps.get_mut(&qpn).unwrap();
        let pending = qp.surely_pending(self.cqs[&qp.send_cq].pinned);
        qp.inline.retain(|(position, ..)| *position >= pending);
        for (position, addr, bytes) in &qp.inline {
            // SAFETY: inline memory of a live QP; nobody but this thread posts to it.
            let now = unsafe { core::slice::from_raw_parts(*addr as *const u8, bytes.len()) };
            assert!(now == bytes, "inline data of send {position} was overwritten before it completed");
        }
    }

    /// All that was posted ends, in flushes at the latest, and all that ended is polled.
    pub fn drain(&mut self) {
        let qpns: Vec<u32> = self.qps.keys().copied().collect();
        let mut busy = true;
        while busy {
            for qpn in &qpns {
                self.break_down(*qpn);
                (0..AHEAD).for_each(|_| self.fetch_send(*qpn));
                (0..AHEAD).for_each(|_| self.complete_send(*qpn));
                (0..AHEAD).for_each(|_| self.take_recv(*qpn));
                (0..AHEAD).for_each(|_| self.complete_recv(*qpn));
            }
            let numbers: Vec<u32> = self.cqs.keys().copied().collect();
            busy = numbers.into_iter().filter(|number| self.poll_cq(*number, 8)).count() > 0;
            let ends = |qp: &QpModel| qp.on_the_way() > 0 && self.device_state(qp) >= IBV_QPS_RTR;
            busy |= self.qps.values().any(ends);
        }
        // Of what was not polled because it was not for the application nobody told.
        for qp in self.qps.values_mut() {
            qp.done = qp.done.max(qp.put);
        }
    }

    fn device_state(&self, qp: &QpModel) -> u32 {
        self.world().state().qps[&qp.handle].state
    }
}

fn qp_send_cq(qp: &QpModel) -> u32 {
    qp.send_cq
}

fn qp_recv_cq(qp: &QpModel) -> u32 {
    qp.recv_cq
}
