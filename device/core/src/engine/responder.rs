//! The responder half of a QP: checks a request, moves its bytes, answers.

use crate::cqe::Completion;
use crate::device::Device;
use crate::engine::give_back_scratch;
use crate::handle::Psn;
use crate::interrupt::AsyncEvent;
use crate::memory::Span;
use crate::mr::Use;
use crate::qp::Qp;
use crate::ring::Consumer;
use crate::transport::{Answer, CopyFault, Far, Nak, Op, Request};
use crate::wqe::Receive;
use pvrdma_ffi::dev_api::*;
use pvrdma_ffi::uapi::vmw_pvrdma as abi;
use std::sync::MutexGuard;
use std::sync::atomic::Ordering;

/// State of the responder half. Its lock is held while a request is carried out, so that DESTROY and RESET wait
/// for a running copy.
#[derive(Debug)]
pub struct RecvQueue {
    pub(crate) ring: Consumer,
    /// Scratch list, kept to save the allocation.
    spans: Vec<Span>,
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

impl RecvQueue {
    pub(crate) fn new(ring: Consumer) -> RecvQueue {
        RecvQueue { ring, spans: Vec::new() }
    }

    pub(crate) fn reset(&mut self) {
        self.ring.reset();
    }
}

impl Device {
    /// Carries out `request` on a QP of this device. Called by transports, from any thread.
    pub fn receive(&self, request: &Request, far: &dyn Far) -> Answer {
        let Some(qp) = self.qp_by_number(request.dest.qpn) else { return Answer::Silence };
        let mut rq = qp.lock_rq();
        // Held over check and copy: DESTROY_MR takes it to wait for them.
        let _copying = self.responding();
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
        if duplicate && !matches!(request.op, Op::Read { .. }) {
            // Done before; its answer was lost (IBA vol. 1, 9.7.5.1.2).
            return Answer::Ack;
        }
        if state == PVRDMA_QPS_RTR && qp.establish() {
            self.transport().qp_changed(&qp.view());
            self.interrupts().async_event(AsyncEvent::CommEst(qp.handle));
        }
        let executed = self.execute(&qp, &mut rq, request, far);
        give_back_scratch(&mut rq.spans);
        match executed {
            Ok(()) => {
                if !duplicate {
                    qp.expected_psn().store(expected.advance(request.packets).get(), Ordering::Release);
                }
                Answer::Ack
            }
            Err(Stop::Answer(answer)) => answer,
            Err(Stop::Fail(failure)) => self.fail_responder(&qp, rq, failure),
        }
    }

    fn execute(&self, qp: &Qp, rq: &mut RecvQueue, request: &Request, far: &dyn Far) -> Result<(), Stop> {
        match request.op {
            Op::Send { imm } => self.execute_send(qp, rq, request, imm, far),
            Op::Write { remote_addr, rkey, imm } => {
                if request.len > 0 {
                    self.resolve_remote(qp, rq, remote_addr, request.len, rkey.0, Use::RemoteWrite)?;
                }
                // With immediate data a receive WQE must be there before any byte moves.
                let receive = match imm {
                    Some(imm) => Some((imm, self.next_receive(qp, rq)?.wr_id)),
                    None => None,
                };
                if request.len > 0 {
                    let pulled = far.pull(self.memory(), &rq.spans);
                    pulled.map_err(|fault| copy_failed(qp, fault, None))?;
                }
                match receive {
                    Some((imm, wr_id)) => {
                        let opcode = abi::PVRDMA_WC_RECV_RDMA_WITH_IMM;
                        far.acknowledge();
                        self.finish_receive(qp, rq, wr_id, request, opcode, Some(imm))
                    }
                    None => Ok(()),
                }
            }
            Op::Read { remote_addr, rkey } => {
                if request.len > 0 {
                    self.resolve_remote(qp, rq, remote_addr, request.len, rkey.0, Use::RemoteRead)?;
                    let pushed = far.push(self.memory(), &rq.spans);
                    pushed.map_err(|fault| copy_failed(qp, fault, None))?;
                }
                Ok(())
            }
        }
    }

    fn execute_send(
        &self,
        qp: &Qp,
        rq: &mut RecvQueue,
        request: &Request,
        imm: Option<u32>,
        far: &dyn Far,
    ) -> Result<(), Stop> {
        let receive = self.next_receive(qp, rq)?;
        let failed = |nak, status| Failure { nak, receive: Some((receive.wr_id, status)), event: None };
        let sg_list = receive.sg_list.map_err(|status| failed(Nak::RemoteOperational, status))?;
        if request.len > sg_list.total() {
            return Err(failed(Nak::InvalidRequest, abi::PVRDMA_WC_LOC_LEN_ERR).into());
        }
        rq.spans.clear();
        let mut left = request.len;
        for sge in sg_list.as_slice() {
            let len = left.min(u64::from(sge.len));
            if len == 0 {
                continue;
            }
            let resolved = self
                .mr_by_key(sge.lkey.0)
                .is_some_and(|mr| mr.resolve(qp.pd, sge.addr, len, Use::LocalWrite, &mut rq.spans));
            if !resolved {
                return Err(failed(Nak::RemoteOperational, abi::PVRDMA_WC_LOC_PROT_ERR).into());
            }
            left -= len;
        }
        if request.len > 0 {
            let pulled = far.pull(self.memory(), &rq.spans);
            pulled.map_err(|fault| copy_failed(qp, fault, Some(receive.wr_id)))?;
        }
        far.acknowledge();
        self.finish_receive(qp, rq, receive.wr_id, request, abi::PVRDMA_WC_RECV, imm)
    }

    fn resolve_remote(
        &self,
        qp: &Qp,
        rq: &mut RecvQueue,
        addr: u64,
        len: u64,
        key: u32,
        purpose: Use,
    ) -> Result<(), Failure> {
        let right = match purpose {
            Use::RemoteWrite => abi::PVRDMA_ACCESS_REMOTE_WRITE,
            _ => abi::PVRDMA_ACCESS_REMOTE_READ,
        };
        rq.spans.clear();
        let allowed = qp.attrs().raw.qp_access_flags & right != 0;
        let found =
            allowed && self.mr_by_key(key).is_some_and(|mr| mr.resolve(qp.pd, addr, len, purpose, &mut rq.spans));
        if found { Ok(()) } else { Err(Failure::access(qp)) }
    }

    /// The receive WQE that the next message takes; it stays in the ring.
    fn next_receive(&self, qp: &Qp, rq: &RecvQueue) -> Result<Receive, Stop> {
        let at = rq.ring.peek(&qp.pages, self.memory()).map_err(|_| Failure::broken_ring(qp))?;
        let Some(at) = at else { return Err(Stop::Answer(Answer::RnrNak(qp.attrs().raw.min_rnr_timer))) };
        let receive = Receive::read(at, qp.cap.max_recv_sge, &qp.pages, self.memory());
        receive.map_err(|_| Failure::broken_ring(qp).into())
    }

    /// Spends the receive WQE that `next_receive` showed: it ends here, as a completion.
    fn finish_receive(
        &self,
        qp: &Qp,
        rq: &mut RecvQueue,
        wr_id: u64,
        request: &Request,
        opcode: u32,
        imm: Option<u32>,
    ) -> Result<(), Stop> {
        rq.ring.take();
        rq.ring.release(&qp.pages, self.memory()).map_err(|_| Failure::broken_ring(qp))?;
        let completion = Completion {
            wr_id,
            qp: qp.handle,
            opcode,
            status: abi::PVRDMA_WC_SUCCESS,
            byte_len: request.len as u32,
            imm,
            solicited: request.solicited,
        };
        let put = qp.recv_cq.put(&completion, self.memory(), self.interrupts());
        put.map_err(|_| Failure { nak: Nak::RemoteOperational, receive: None, event: None }.into())
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
        rq.ring.take();
        let _ = rq.ring.release(&qp.pages, self.memory());
        let completion = Completion {
            wr_id,
            qp: qp.handle,
            opcode: abi::PVRDMA_WC_RECV,
            status,
            byte_len: 0,
            imm: None,
            solicited: false,
        };
        // A dead CQ has told its owner by CQ_ERR; there is nobody left to tell.
        let _ = qp.recv_cq.put(&completion, self.memory(), self.interrupts());
    }

    /// Ends every posted receive with WR_FLUSH_ERR.
    pub(crate) fn flush_receives(&self, qp: &Qp) {
        let mut rq = qp.lock_rq();
        if qp.state() != PVRDMA_QPS_ERR {
            return;
        }
        for _ in 0..=qp.cap.max_recv_wr {
            let Ok(Some(at)) = rq.ring.peek(&qp.pages, self.memory()) else { return };
            let Ok(receive) = Receive::read(at, qp.cap.max_recv_sge, &qp.pages, self.memory()) else { return };
            self.end_receive(qp, &mut rq, receive.wr_id, abi::PVRDMA_WC_WR_FLUSH_ERR);
        }
        self.run_soon(qp.handle);
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
