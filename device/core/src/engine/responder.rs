//! The responder half of a QP: checks a request, moves its bytes, answers.

use crate::engine::{Engine, give_back_scratch};
use crate::handle::{Psn, Rkey};
use crate::interrupt::AsyncEvent;
use crate::memory::Span;
use crate::objects::qp::Qp;
use crate::objects::recv_queue::RecvQueue;
use crate::rings::cqe::{Completion, Sender};
use crate::rings::grh::{self, GRH_LEN};
use crate::rings::ring::BrokenRing;
use crate::rings::wqe::{AtomicOp, Ext, QpKind, Receive, SgList};
use crate::transport::{Answer, CopyFault, DATAGRAM_MAX, Far, Nak, Op, Request, Use};
use pvrdma_ffi::dev_api::*;
use pvrdma_ffi::uapi::vmw_pvrdma as abi;
use std::sync::MutexGuard;
use std::sync::atomic::Ordering;

/// What the receive WQE of a message says.
struct Received {
    wr_id: u64,
    opcode: u32,
    ext: Ext,
}

/// How a request ended that does not end well for the responder's QP.
struct Failure {
    /// What the requester hears.
    nak: Nak,
    /// Status for the receive WQE that was taken, if one was.
    receive: Option<(u64, u32)>,
    /// What the QP's owner hears.
    event: Option<AsyncEvent>,
}

impl Failure {
    fn access(qp: &Qp) -> Failure {
        Failure { nak: Nak::RemoteAccess, receive: None, event: Some(AsyncEvent::QpAccessErr(qp.handle)) }
    }

    /// A request that no sane requester sends.
    fn invalid(qp: &Qp) -> Failure {
        Failure { nak: Nak::InvalidRequest, receive: None, event: Some(AsyncEvent::QpReqErr(qp.handle)) }
    }

    /// The receive ring cannot be used any more.
    fn broken_ring(qp: &Qp) -> Failure {
        Failure { nak: Nak::RemoteOperational, receive: None, event: Some(AsyncEvent::QpFatal(qp.handle)) }
    }
}

enum Stop {
    Answer(Answer),
    Fail(Failure),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Stop {
        Stop::Fail(failure)
    }
}

impl Engine {
    /// Carries out `request` on a QP of this device. Called by transports, from any thread.
    pub fn receive(&self, request: &Request, far: &dyn Far) -> Answer {
        let Some(qp) = self.qp_by_number(request.dest.qpn) else { return Answer::Silence };
        if !self.port_is_up() {
            return Answer::Silence;
        }
        if let Op::Datagram { .. } = request.op {
            if qp.kind != QpKind::Rc {
                self.receive_datagram(&qp, request, far);
            }
            return Answer::Ack;
        }
        if qp.kind != QpKind::Rc {
            return Answer::Silence;
        }
        let mut rq = qp.lock_rq();
        // Held over check and copy: DESTROY_MR takes it to wait for them.
        let copying = self.responding();
        let state = qp.state();
        if !matches!(state, PVRDMA_QPS_RTR | PVRDMA_QPS_RTS | PVRDMA_QPS_SQD) {
            return Answer::Silence;
        }
        let attrs = qp.attrs();
        if request.source != attrs.peer() || request.dest != attrs.local {
            return Answer::Silence;
        }
        let expected = Psn::new(qp.expected_psn().load(Ordering::Acquire));
        let duplicate = expected.ahead_of(request.psn);
        if !duplicate && request.psn != expected {
            return Answer::Nak(Nak::SequenceError);
        }
        match request.op {
            // Done before; the answer was lost (IBA vol. 1, 9.7.5.1.2). What was read is read anew, what an atomic
            // found is remembered.
            Op::Atomic { .. } if duplicate => return repeat_reply(&rq, request.psn, far),
            Op::Read { .. } => {}
            _ if duplicate => return Answer::Ack,
            _ => {}
        }
        if state == PVRDMA_QPS_RTR && qp.establish() {
            self.transport().qp_changed(&qp.view());
            self.interrupts().async_event(AsyncEvent::CommEst(qp.handle));
        }
        let executed = if request.op.reads() && attrs.raw.max_dest_rd_atomic == 0 {
            Err(Failure::invalid(&qp).into())
        } else {
            self.execute(&qp, &mut rq, request, far)
        };
        give_back_scratch(&mut rq.spans);
        drop(copying);
        let executed = executed.and_then(|received| match received {
            Some(received) => self.finish_receive(&qp, &mut rq, request, received, far),
            None => Ok(()),
        });
        match executed {
            Ok(()) => {
                if !duplicate {
                    // Not a store: if this thread was off its core for long, the requester may have taken this back,
                    // sent it again by the transport's shorter way, and be past it.
                    let (from, to) = (expected.get(), expected.advance(request.packets).get());
                    let _ = qp.expected_psn().compare_exchange(from, to, Ordering::Release, Ordering::Relaxed);
                }
                Answer::Ack
            }
            Err(Stop::Answer(answer)) => answer,
            Err(Stop::Fail(failure)) => self.fail_responder(&qp, rq, failure),
        }
    }

    /// Moves the bytes of `request`. Returns what a receive WQE is to say of it.
    fn execute(&self, qp: &Qp, rq: &mut RecvQueue, request: &Request, far: &dyn Far) -> Result<Option<Received>, Stop> {
        match request.op {
            Op::Send { ext } => self.execute_send(qp, rq, request, ext, far).map(Some),
            Op::Write { remote_addr, rkey, imm } => {
                if request.len > 0 {
                    self.resolve_remote(qp, rq, remote_addr, request.len, rkey, Use::RemoteWrite)?;
                }
                // With immediate data a receive WQE must be there before any byte moves.
                let received = match imm {
                    Some(imm) => Some(Received {
                        wr_id: self.next_receive(qp, rq)?.wr_id,
                        opcode: abi::PVRDMA_WC_RECV_RDMA_WITH_IMM,
                        ext: Ext::Imm(imm),
                    }),
                    None => None,
                };
                if request.len > 0 {
                    let pulled = far.pull(self.memory(), &rq.spans);
                    pulled.map_err(|fault| copy_failed(qp, fault, None))?;
                }
                Ok(received)
            }
            Op::Read { remote_addr, rkey } => {
                if request.len > 0 {
                    self.resolve_remote(qp, rq, remote_addr, request.len, rkey, Use::RemoteRead)?;
                    let pushed = far.push(self.memory(), &rq.spans);
                    pushed.map_err(|fault| copy_failed(qp, fault, None))?;
                }
                Ok(None)
            }
            Op::Atomic { remote_addr, rkey, op } => {
                self.execute_atomic(qp, rq, request, (remote_addr, rkey), op, far)?;
                Ok(None)
            }
            // Never of a connected QP: `receive` has turned them elsewhere.
            Op::Datagram { .. } => Err(Failure::invalid(qp).into()),
        }
    }

    fn execute_send(
        &self,
        qp: &Qp,
        rq: &mut RecvQueue,
        request: &Request,
        ext: Ext,
        far: &dyn Far,
    ) -> Result<Received, Stop> {
        let receive = self.next_receive(qp, rq)?;
        let failed = |nak, status| Failure { nak, receive: Some((receive.wr_id, status)), event: None };
        let sg_list = receive.sg_list.map_err(|status| failed(Nak::RemoteOperational, status))?;
        if request.len > sg_list.total() {
            return Err(failed(Nak::InvalidRequest, abi::PVRDMA_WC_LOC_LEN_ERR).into());
        }
        if !self.resolve_receive(qp, &sg_list, request.len, &mut rq.spans) {
            return Err(failed(Nak::RemoteOperational, abi::PVRDMA_WC_LOC_PROT_ERR).into());
        }
        if let Ext::Invalidate(rkey) = ext
            && !self.may_invalidate(qp, rkey)
        {
            return Err(Failure::access(qp).into());
        }
        if request.len > 0 {
            let pulled = far.pull(self.memory(), &rq.spans);
            pulled.map_err(|fault| copy_failed(qp, fault, Some(receive.wr_id)))?;
        }
        Ok(Received { wr_id: receive.wr_id, opcode: abi::PVRDMA_WC_RECV, ext })
    }

    fn execute_atomic(
        &self,
        qp: &Qp,
        rq: &mut RecvQueue,
        request: &Request,
        (addr, rkey): (u64, Rkey),
        op: AtomicOp,
        far: &dyn Far,
    ) -> Result<(), Stop> {
        // IBA vol. 1, 9.4.5: the address is a multiple of 8.
        if !addr.is_multiple_of(8) || request.len != 8 {
            return Err(Failure::invalid(qp).into());
        }
        self.resolve_remote(qp, rq, addr, 8, rkey, Use::RemoteAtomic)?;
        // Eight aligned bytes of a region whose address and offset agree in a page are in one piece; if a region
        // was made otherwise, it is no place for atomics.
        let place = match rq.spans.as_slice() {
            [one] if one.addr.0.is_multiple_of(8) => one.addr,
            _ => return Err(Failure::invalid(qp).into()),
        };
        let old = self.memory().update(place, &mut |old| op.apply(old)).map_err(|_| Failure::access(qp))?;
        rq.remember_reply(request.psn, old);
        far.put(&old.to_ne_bytes()).map_err(|fault| copy_failed(qp, fault, None))
    }

    /// A datagram is delivered whole or not at all, and nobody is told (IBA vol. 1, 9.8.3).
    fn receive_datagram(&self, qp: &Qp, request: &Request, far: &dyn Far) {
        let mut rq = qp.lock_rq();
        let delivered = self.execute_datagram(qp, &mut rq, request, far);
        give_back_scratch(&mut rq.spans);
        if let Err(Stop::Fail(failure)) = delivered {
            self.fail_responder(qp, rq, failure);
        }
    }

    /// `Err(Stop::Answer(_))`: the datagram is dropped; a WQE it found stays.
    fn execute_datagram(&self, qp: &Qp, rq: &mut RecvQueue, request: &Request, far: &dyn Far) -> Result<(), Stop> {
        const DROPPED: Stop = Stop::Answer(Answer::Silence);
        let Op::Datagram { qkey, imm, grh } = request.op else { return Err(DROPPED) };
        // Held over check and copy, as in `receive`.
        let _copying = self.responding();
        let receives = matches!(qp.state(), PVRDMA_QPS_RTR | PVRDMA_QPS_RTS | PVRDMA_QPS_SQD | PVRDMA_QPS_SQE);
        if !receives || !self.has_gid(&request.dest.gid) {
            return Err(DROPPED);
        }
        if qp.attrs().raw.qkey != qkey {
            self.count_qkey_violation();
            return Err(DROPPED);
        }
        let receive = self.next_receive(qp, rq)?;
        let failed =
            |status| Failure { nak: Nak::RemoteOperational, receive: Some((receive.wr_id, status)), event: None };
        let sg_list = receive.sg_list.map_err(failed)?;
        let len = GRH_LEN as u64 + request.len;
        if len > sg_list.total() || request.len > DATAGRAM_MAX {
            return Err(DROPPED);
        }
        if !self.resolve_receive(qp, &sg_list, len, &mut rq.spans) {
            return Err(failed(abi::PVRDMA_WC_LOC_PROT_ERR).into());
        }
        let payload = split_off(&mut rq.spans, GRH_LEN as u64);
        let (header, network_hdr_type) =
            grh::header(self.gid_type, &grh, &request.source.gid, &request.dest.gid, request.len as u16);
        let mut moved = self.memory().scatter(&rq.spans, &header).map_err(|_| CopyFault::Near);
        if request.len > 0 {
            moved = moved.and_then(|()| far.pull(self.memory(), &payload));
        }
        moved.map_err(|fault| copy_failed(qp, fault, Some(receive.wr_id)))?;
        let completion = Completion {
            wr_id: receive.wr_id,
            qp: qp.handle,
            opcode: abi::PVRDMA_WC_RECV,
            byte_len: len as u32,
            ext: Ext::imm(imm),
            sender: Some(Sender { qpn: request.source.qpn, network_hdr_type }),
            solicited: request.solicited,
            ..Default::default()
        };
        self.complete_receive(qp, rq, &completion)
    }

    /// Resolves the first `len` bytes of a receive WQE.
    fn resolve_receive(&self, qp: &Qp, sg_list: &SgList, len: u64, spans: &mut Vec<Span>) -> bool {
        spans.clear();
        let mut left = len;
        for sge in sg_list.as_slice() {
            let len = left.min(u64::from(sge.len));
            if len == 0 {
                continue;
            }
            let mr = self.mr_by_key(sge.lkey.0);
            if !mr.is_some_and(|mr| mr.resolve(qp.pd, sge.addr, len, Use::LocalWrite, spans)) {
                return false;
            }
            left -= len;
        }
        left == 0
    }

    fn resolve_remote(
        &self,
        qp: &Qp,
        rq: &mut RecvQueue,
        addr: u64,
        len: u64,
        key: Rkey,
        purpose: Use,
    ) -> Result<(), Failure> {
        rq.spans.clear();
        let allowed = qp.attrs().raw.qp_access_flags & purpose.needs() != 0;
        let found =
            allowed && self.mr_by_key(key.0).is_some_and(|mr| mr.resolve(qp.pd, addr, len, purpose, &mut rq.spans));
        if found { Ok(()) } else { Err(Failure::access(qp)) }
    }

    /// The receive WQE that the next message takes; it is spent by `spend_receive`.
    fn next_receive(&self, qp: &Qp, rq: &mut RecvQueue) -> Result<Receive, Stop> {
        let broken = |_: BrokenRing| Failure::broken_ring(qp);
        let receive = match &qp.srq {
            Some(srq) => {
                if rq.held.is_none() {
                    rq.held = srq.take(self.memory(), self.interrupts()).map_err(broken)?;
                }
                rq.held
            }
            None => self.peek_receive(qp, rq).map_err(broken)?,
        };
        receive.ok_or_else(|| Stop::Answer(Answer::RnrNak(qp.attrs().raw.min_rnr_timer)))
    }

    /// The next WQE of the QP's own ring; it stays there.
    fn peek_receive(&self, qp: &Qp, rq: &RecvQueue) -> Result<Option<Receive>, BrokenRing> {
        let Some(at) = rq.ring.peek(&qp.pages, self.memory())? else { return Ok(None) };
        Ok(Some(Receive::read(at, qp.cap.max_recv_sge, &qp.pages, self.memory())?))
    }

    /// The WQE that was shown last has ended.
    fn spend_receive(&self, qp: &Qp, rq: &mut RecvQueue) -> Result<(), BrokenRing> {
        if qp.srq.is_some() {
            rq.held = None;
            return Ok(());
        }
        rq.ring.take();
        rq.ring.release(&qp.pages, self.memory())
    }

    /// Spends the receive WQE that `next_receive` showed: it ends here, as a completion.
    fn finish_receive(
        &self,
        qp: &Qp,
        rq: &mut RecvQueue,
        request: &Request,
        received: Received,
        far: &dyn Far,
    ) -> Result<(), Stop> {
        if let Ext::Invalidate(rkey) = received.ext {
            self.invalidate_for_peer(qp, rkey);
        }
        far.acknowledge();
        let completion = Completion {
            wr_id: received.wr_id,
            qp: qp.handle,
            opcode: received.opcode,
            byte_len: request.len as u32,
            ext: received.ext,
            solicited: request.solicited,
            ..Default::default()
        };
        self.complete_receive(qp, rq, &completion)
    }

    /// Gives the receive WQE back to its owner and puts its completion.
    fn complete_receive(&self, qp: &Qp, rq: &mut RecvQueue, completion: &Completion) -> Result<(), Stop> {
        self.spend_receive(qp, rq).map_err(|_| Failure::broken_ring(qp))?;
        let put = qp.recv_cq.put(completion, self.memory(), self.interrupts());
        put.map_err(|_| {
            self.cq_died(qp.recv_cq.handle);
            Failure { nak: Nak::RemoteOperational, receive: None, event: None }.into()
        })
    }

    /// The QP goes to ERR by the responder's fault or the peer's; its flush is left to another stack, because the
    /// caller may hold the send queue lock of this very QP.
    fn fail_responder(&self, qp: &Qp, mut rq: MutexGuard<'_, RecvQueue>, failure: Failure) -> Answer {
        qp.set_state(PVRDMA_QPS_ERR);
        if let Some((wr_id, status)) = failure.receive {
            self.end_receive(qp, &mut rq, wr_id, status);
        }
        drop(rq);
        if let Some(event) = failure.event {
            self.interrupts().async_event(event);
        }
        self.run_soon(qp.handle);
        Answer::Nak(failure.nak)
    }

    fn end_receive(&self, qp: &Qp, rq: &mut RecvQueue, wr_id: u64, status: u32) {
        let _ = self.spend_receive(qp, rq);
        let completion = Completion { wr_id, qp: qp.handle, opcode: abi::PVRDMA_WC_RECV, status, ..Default::default() };
        // A dead CQ has told its owner by CQ_ERR; there is nobody left to tell.
        let _ = qp.recv_cq.put(&completion, self.memory(), self.interrupts());
    }

    /// Ends every posted receive with WR_FLUSH_ERR. Those in an SRQ are not this QP's: its owner hears that it takes no
    /// more (IBA vol. 1, 11.6.3.1: last WQE reached).
    pub(crate) fn flush_receives(&self, qp: &Qp) {
        let mut rq = qp.lock_rq();
        if qp.state() != PVRDMA_QPS_ERR {
            return;
        }
        if qp.srq.is_some() {
            if let Some(held) = rq.held {
                self.end_receive(qp, &mut rq, held.wr_id, abi::PVRDMA_WC_WR_FLUSH_ERR);
            }
            if !std::mem::replace(&mut rq.last_wqe_reported, true) {
                self.interrupts().async_event(AsyncEvent::QpLastWqeReached(qp.handle));
            }
            return;
        }
        while let Ok(Some(receive)) = self.peek_receive(qp, &rq)
            && qp.spend_recv()
        {
            self.end_receive(qp, &mut rq, receive.wr_id, abi::PVRDMA_WC_WR_FLUSH_ERR);
        }
    }
}

/// Answers an atomic operation again.
fn repeat_reply(rq: &RecvQueue, psn: Psn, far: &dyn Far) -> Answer {
    let Some(old) = rq.reply(psn) else { return Answer::Silence };
    match far.put(&old.to_ne_bytes()) {
        Ok(()) => Answer::Ack,
        Err(_) => Answer::RequesterFault,
    }
}

/// A copy that stumbled. The requester's fault leaves the responder as it was; its own ends the QP.
fn copy_failed(qp: &Qp, fault: CopyFault, receive: Option<u64>) -> Stop {
    match (fault, receive) {
        (CopyFault::Far, _) => Stop::Answer(Answer::RequesterFault),
        (CopyFault::Near, Some(wr_id)) => Stop::Fail(Failure {
            nak: Nak::RemoteOperational,
            receive: Some((wr_id, abi::PVRDMA_WC_LOC_PROT_ERR)),
            event: None,
        }),
        (CopyFault::Near, None) => Stop::Fail(Failure::access(qp)),
    }
}

/// Takes all but the first `len` bytes off `spans`.
fn split_off(spans: &mut Vec<Span>, len: u64) -> Vec<Span> {
    let mut left = len;
    let mut rest = Vec::new();
    spans.retain_mut(|span| {
        let here = span.len.min(left);
        left -= here;
        if here < span.len {
            rest.push(Span { addr: crate::memory::DmaAddr(span.addr.0 + here), len: span.len - here });
        }
        span.len = here;
        here > 0
    });
    rest
}
