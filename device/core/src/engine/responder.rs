//! The responder half of a QP: checks what arrives, moves its bytes, answers.
//!
//! A message comes as a whole or in pieces. Both are judged by the same code: a whole one is the case ONLY.

use crate::engine::{Engine, give_back_scratch};
use crate::handle::{Psn, Qpn, Rkey};
use crate::interrupt::AsyncEvent;
use crate::memory::{Memory, Span};
use crate::objects::qp::Qp;
use crate::objects::recv_queue::{Partial, RecvQueue, Reth, What};
use crate::rings::cqe::{Completion, Sender};
use crate::rings::grh::{self, GRH_LEN};
use crate::rings::ring::BrokenRing;
use crate::rings::wqe::{AtomicOp, Ext, QpKind, Receive};
use crate::transport::segment::{Part, Segment, ends_in, full_packets, last_packets};
use crate::transport::{Answer, CopyFault, DATAGRAM_MAX, Endpoint, Far, MAX_MSG_SZ, Nak, Op, Request, Use};
use pvrdma_ffi::dev_api::*;
use pvrdma_ffi::uapi::vmw_pvrdma as abi;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};

/// What the receive WQE of a message says.
struct Received {
    wr_id: u64,
    opcode: u32,
    ext: Ext,
    byte_len: u64,
}

/// A message or a piece of one, as it meets its QP.
struct Arrival {
    psn: Psn,
    packets: u32,
    /// Bytes that come with it, or go back.
    len: u64,
    asked: Asked,
    solicited: bool,
}

/// What an [`Arrival`] asks for.
#[derive(Clone, Copy)]
enum Asked {
    Send {
        place: Place,
        ext: Ext,
    },
    Write {
        place: Place,
        /// Known at its beginning.
        reth: Option<Reth>,
        imm: Option<u32>,
    },
    Read {
        remote_addr: u64,
        rkey: Rkey,
        /// Bytes to the end of the whole READ.
        rest: u64,
    },
    Atomic {
        remote_addr: u64,
        rkey: Rkey,
        op: AtomicOp,
    },
}

/// Which part of a message it is (IBA vol. 1, 9.2.1: the last word of an opcode).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    First,
    Middle,
    Last,
    Only,
}

impl Place {
    fn begins(self) -> bool {
        matches!(self, Place::First | Place::Only)
    }

    fn ends(self) -> bool {
        matches!(self, Place::Last | Place::Only)
    }
}

impl Arrival {
    /// `None`: a datagram, which has no PSN.
    #[inline]
    fn of_request(request: &Request) -> Option<Arrival> {
        let asked = match request.op {
            Op::Send { ext } => Asked::Send { place: Place::Only, ext },
            Op::Write { remote_addr, rkey, imm } => {
                let reth = Reth { remote_addr, rkey, total: request.len };
                Asked::Write { place: Place::Only, reth: Some(reth), imm }
            }
            Op::Read { remote_addr, rkey } => Asked::Read { remote_addr, rkey, rest: request.len },
            Op::Atomic { remote_addr, rkey, op } => Asked::Atomic { remote_addr, rkey, op },
            Op::Datagram { .. } => return None,
        };
        let Request { psn, packets, len, solicited, .. } = *request;
        Some(Arrival { psn, packets, len, asked, solicited })
    }

    fn of_segment(segment: &Segment) -> Arrival {
        let send = |place, ext| Asked::Send { place, ext };
        let (asked, solicited) = match segment.part {
            Part::SendFirst => (send(Place::First, Ext::None), false),
            Part::SendMiddle => (send(Place::Middle, Ext::None), false),
            Part::SendLast { ext, solicited } => (send(Place::Last, ext), solicited),
            Part::WriteFirst { remote_addr, rkey, total } => {
                let reth = Some(Reth { remote_addr, rkey, total });
                (Asked::Write { place: Place::First, reth, imm: None }, false)
            }
            Part::WriteMiddle => (Asked::Write { place: Place::Middle, reth: None, imm: None }, false),
            Part::WriteLast { imm, solicited } => (Asked::Write { place: Place::Last, reth: None, imm }, solicited),
            Part::Read { remote_addr, rkey, rest } => (Asked::Read { remote_addr, rkey, rest }, false),
        };
        Arrival { psn: segment.psn, packets: segment.packets, len: segment.len, asked, solicited }
    }

    fn end(&self) -> Psn {
        self.psn.advance(self.packets)
    }
}

/// The bytes of a SEND or WRITE that an [`Arrival`] adds to what has come before.
struct Stretch {
    what: What,
    first: Psn,
    mtu: u64,
    /// Bytes of the message before it.
    from: u64,
    /// Bytes of the arrival that had come before: it was sent again in another cut.
    skip: u64,
    len: u64,
    /// The message ends with it.
    ends: bool,
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
        let Some(qp) = self.responder(request.dest.qpn) else { return Answer::Silence };
        match Arrival::of_request(request) {
            Some(arrival) => self.take_in(&qp, (&request.source, &request.dest), &arrival, far),
            None if qp.kind != QpKind::Rc => {
                self.receive_datagram(&qp, request, far);
                Answer::Ack
            }
            None => Answer::Ack,
        }
    }

    /// The same for a piece of a message. What is answered to the last piece, or first to one not with ACK, is what the
    /// message is answered with.
    pub fn receive_segment(&self, segment: &Segment, far: &dyn Far) -> Answer {
        let Some(qp) = self.responder(segment.dest.qpn) else { return Answer::Silence };
        self.take_in(&qp, (&segment.source, &segment.dest), &Arrival::of_segment(segment), far)
    }

    /// The QP with this number, if the port lets anything through to it.
    fn responder(&self, qpn: Qpn) -> Option<Arc<Qp>> {
        self.qp_by_number(qpn).filter(|_| self.port_is_up())
    }

    /// Judges what arrives at a connected QP, and carries it out.
    fn take_in(&self, qp: &Qp, (source, dest): (&Endpoint, &Endpoint), arrival: &Arrival, far: &dyn Far) -> Answer {
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
        if *source != attrs.peer() || *dest != attrs.local {
            return Answer::Silence;
        }
        let expected = Psn::new(qp.expected_psn().load(Ordering::Acquire));
        let resent = expected.ahead_of(arrival.psn);
        if !resent && arrival.psn != expected {
            return Answer::Nak(Nak::SequenceError);
        }
        // In another cut than before, some of it may be new.
        let done_before = resent && !arrival.end().ahead_of(expected);
        match arrival.asked {
            // Done before; the answer was lost (IBA vol. 1, 9.7.5.1.2). What was read is read anew, what an atomic
            // found is remembered.
            Asked::Atomic { .. } if resent => return repeat_reply(&rq, arrival.psn, far),
            Asked::Read { .. } => {}
            _ if done_before => return Answer::Ack,
            _ => {}
        }
        if state == PVRDMA_QPS_RTR && qp.establish() {
            self.transport().qp_changed(&qp.view());
            self.interrupts().async_event(AsyncEvent::CommEst(qp.handle));
        }
        let reads = matches!(arrival.asked, Asked::Read { .. } | Asked::Atomic { .. });
        let executed = if reads && attrs.raw.max_dest_rd_atomic == 0 {
            Err(Failure::invalid(qp).into())
        } else {
            self.execute(qp, &mut rq, arrival, expected, far)
        };
        give_back_scratch(&mut rq.spans);
        drop(copying);
        let executed = executed.and_then(|received| match received {
            Some(received) => self.finish_receive(qp, &mut rq, &received, arrival.solicited, far),
            None => Ok(()),
        });
        match executed {
            Ok(()) => {
                if !done_before {
                    // Not a store: if this thread was off its core for long, the requester may have taken this back,
                    // sent it again by the transport's shorter way, and be past it.
                    let (from, to) = (expected.get(), arrival.end().get());
                    let _ = qp.expected_psn().compare_exchange(from, to, Ordering::Release, Ordering::Relaxed);
                }
                Answer::Ack
            }
            Err(Stop::Answer(answer)) => answer,
            Err(Stop::Fail(failure)) => self.fail_responder(qp, rq, failure),
        }
    }

    /// Moves the bytes of an arrival. Returns what a receive WQE is to say of the message that ends with it.
    fn execute(
        &self,
        qp: &Qp,
        rq: &mut RecvQueue,
        arrival: &Arrival,
        expected: Psn,
        far: &dyn Far,
    ) -> Result<Option<Received>, Stop> {
        match arrival.asked {
            Asked::Send { place, ext } => {
                let stretch = stretch(qp, rq, arrival, expected, place, Some(What::Send))?;
                let received = self.execute_send(qp, rq, &stretch, ext, far)?;
                qp.received().count(stretch.len, stretch.ends);
                if stretch.ends {
                    rq.partial = None;
                    return Ok(Some(received));
                }
                rq.partial = Some(stretch.partial(arrival.end()));
                Ok(None)
            }
            Asked::Write { place, reth, imm } => {
                let stretch = stretch(qp, rq, arrival, expected, place, reth.map(What::Write))?;
                let What::Write(reth) = stretch.what else { return Err(Failure::invalid(qp).into()) };
                let received = self.execute_write(qp, rq, &stretch, &reth, imm, far)?;
                qp.received().count(stretch.len, stretch.ends);
                if stretch.ends {
                    rq.partial = None;
                } else {
                    rq.partial = Some(stretch.partial(arrival.end()));
                }
                Ok(received)
            }
            Asked::Read { remote_addr, rkey, rest } => {
                if arrival.psn == expected {
                    rq.partial = None;
                }
                if arrival.len > 0 {
                    self.resolve_remote(qp, rq, remote_addr, (arrival.len, rest), rkey, Use::RemoteRead)?;
                    let pushed = far.push(self.memory(), &rq.spans);
                    pushed.map_err(|fault| copy_failed(qp, fault, None))?;
                }
                // One that is read anew was counted.
                if arrival.psn == expected {
                    qp.received().count(arrival.len, rest <= arrival.len);
                }
                Ok(None)
            }
            Asked::Atomic { remote_addr, rkey, op } => {
                rq.partial = None;
                self.execute_atomic(qp, rq, arrival, (remote_addr, rkey), op, far)?;
                qp.received().count(arrival.len, true);
                Ok(None)
            }
        }
    }

    fn execute_send(
        &self,
        qp: &Qp,
        rq: &mut RecvQueue,
        stretch: &Stretch,
        ext: Ext,
        far: &dyn Far,
    ) -> Result<Received, Stop> {
        let receive = self.next_receive(qp, rq)?;
        let failed = |nak, status| Failure { nak, receive: Some((receive.wr_id, status)), event: None };
        let sg_list = receive.sg_list.map_err(|status| failed(Nak::RemoteOperational, status))?;
        let byte_len = stretch.from.saturating_add(stretch.len);
        if byte_len > sg_list.total().min(u64::from(MAX_MSG_SZ)) {
            return Err(failed(Nak::InvalidRequest, abi::PVRDMA_WC_LOC_LEN_ERR).into());
        }
        let range = (stretch.from, stretch.len);
        rq.spans.clear();
        if !self.resolve_sges(qp.pd, &sg_list, range, Use::LocalWrite, &mut rq.spans) {
            return Err(failed(Nak::RemoteOperational, abi::PVRDMA_WC_LOC_PROT_ERR).into());
        }
        if let Ext::Invalidate(rkey) = ext
            && !self.may_invalidate(qp, rkey)
        {
            return Err(Failure::access(qp).into());
        }
        if stretch.len > 0 {
            let pulled = stretch.pull(far, self.memory(), &rq.spans);
            pulled.map_err(|fault| copy_failed(qp, fault, Some(receive.wr_id)))?;
        }
        if !stretch.ends {
            // What it says was read once and counts to the end of the message.
            rq.held = Some(receive);
        }
        Ok(Received { wr_id: receive.wr_id, opcode: abi::PVRDMA_WC_RECV, ext, byte_len })
    }

    fn execute_write(
        &self,
        qp: &Qp,
        rq: &mut RecvQueue,
        stretch: &Stretch,
        reth: &Reth,
        imm: Option<u32>,
        far: &dyn Far,
    ) -> Result<Option<Received>, Stop> {
        // It is as long as its first packet said, and ends where it ends.
        let rest = reth.total.checked_sub(stretch.from).ok_or_else(|| Failure::invalid(qp))?;
        if stretch.len > rest || stretch.ends != (stretch.len == rest) {
            return Err(Failure::invalid(qp).into());
        }
        if stretch.len > 0 {
            // With the first piece the whole range was judged, so this does not leave the address space.
            let at = reth.remote_addr.wrapping_add(stretch.from);
            self.resolve_remote(qp, rq, at, (stretch.len, rest), reth.rkey, Use::RemoteWrite)?;
        }
        // A region may be longer than any message.
        if reth.total > u64::from(MAX_MSG_SZ) {
            return Err(Failure::invalid(qp).into());
        }
        // With immediate data a receive WQE must be there before any byte (of the last piece) moves.
        let received = match imm {
            Some(imm) => Some(Received {
                wr_id: self.next_receive(qp, rq)?.wr_id,
                opcode: abi::PVRDMA_WC_RECV_RDMA_WITH_IMM,
                ext: Ext::Imm(imm),
                byte_len: reth.total,
            }),
            None => None,
        };
        if stretch.len > 0 {
            let pulled = stretch.pull(far, self.memory(), &rq.spans);
            pulled.map_err(|fault| copy_failed(qp, fault, None))?;
        }
        Ok(received)
    }

    fn execute_atomic(
        &self,
        qp: &Qp,
        rq: &mut RecvQueue,
        arrival: &Arrival,
        (addr, rkey): (u64, Rkey),
        op: AtomicOp,
        far: &dyn Far,
    ) -> Result<(), Stop> {
        // IBA vol. 1, 9.4.5: the address is a multiple of 8.
        if !addr.is_multiple_of(8) || arrival.len != 8 {
            return Err(Failure::invalid(qp).into());
        }
        self.resolve_remote(qp, rq, addr, (8, 8), rkey, Use::RemoteAtomic)?;
        // Eight aligned bytes of a region whose address and offset agree in a page are in one piece; if a region
        // was made otherwise, it is no place for atomics.
        let place = match rq.spans.as_slice() {
            [one] if one.addr.0.is_multiple_of(8) => one.addr,
            _ => return Err(Failure::invalid(qp).into()),
        };
        let old = self.memory().update(place, &mut |old| op.apply(old)).map_err(|_| Failure::access(qp))?;
        rq.remember_reply(arrival.psn, old);
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
        // Held over check and copy, as in `take_in`.
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
        rq.spans.clear();
        if !self.resolve_sges(qp.pd, &sg_list, (0, len), Use::LocalWrite, &mut rq.spans) {
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
        qp.received().count(request.len, true);
        self.complete_receive(qp, rq, &completion)
    }

    /// The places of `len` bytes from `addr` on, if all bytes up to the message's end, `rest` of them, may be used.
    fn resolve_remote(
        &self,
        qp: &Qp,
        rq: &mut RecvQueue,
        addr: u64,
        (len, rest): (u64, u64),
        key: Rkey,
        purpose: Use,
    ) -> Result<(), Failure> {
        rq.spans.clear();
        let allowed = qp.attrs().raw.qp_access_flags & purpose.needs() != 0;
        let found = allowed
            && self.mr_by_key(key.0).is_some_and(|mr| {
                (rest <= len || mr.bounds().check(qp.pd, addr, rest, purpose).is_some())
                    && mr.resolve(qp.pd, addr, len, purpose, &mut rq.spans)
            });
        if found { Ok(()) } else { Err(Failure::access(qp)) }
    }

    /// The receive WQE that the next message takes; it is spent by `spend_receive`.
    fn next_receive(&self, qp: &Qp, rq: &mut RecvQueue) -> Result<Receive, Stop> {
        let broken = |_: BrokenRing| Failure::broken_ring(qp);
        let receive = match &qp.srq {
            _ if rq.held.is_some() => rq.held,
            Some(srq) => {
                rq.held = srq.take(self.memory(), self.interrupts()).map_err(broken)?;
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
        rq.held = None;
        if qp.srq.is_some() {
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
        received: &Received,
        solicited: bool,
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
            byte_len: received.byte_len as u32,
            ext: received.ext,
            solicited,
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
        rq.partial = None;
        if qp.srq.is_some() {
            if let Some(held) = rq.held {
                self.end_receive(qp, &mut rq, held.wr_id, abi::PVRDMA_WC_WR_FLUSH_ERR);
            }
            if !std::mem::replace(&mut rq.last_wqe_reported, true) {
                self.interrupts().async_event(AsyncEvent::QpLastWqeReached(qp.handle));
            }
            return;
        }
        // The one in use is what it was when its message began.
        while let Ok(Some(receive)) = rq.held.map_or_else(|| self.peek_receive(qp, &rq), |held| Ok(Some(held)))
            && qp.spend_recv()
        {
            self.end_receive(qp, &mut rq, receive.wr_id, abi::PVRDMA_WC_WR_FLUSH_ERR);
        }
    }
}

impl Stretch {
    /// What is to be kept of the message when this has come; `next` is the packet behind it.
    fn partial(&self, next: Psn) -> Partial {
        Partial { what: self.what, first: self.first, next, mtu: self.mtu, done: self.from + self.len }
    }

    /// Copies its bytes.
    fn pull(&self, far: &dyn Far, memory: &dyn Memory, into: &[Span]) -> Result<(), CopyFault> {
        if self.skip == 0 { far.pull(memory, into) } else { far.pull_from(self.skip, memory, into) }
    }
}

/// Which bytes an arrival adds to which message. `what`: what it says of itself; a WRITE that goes on does not say
/// where to.
///
/// Whoever begins a message has given up the one before, if that is not at its end.
#[inline]
fn stretch(
    qp: &Qp,
    rq: &mut RecvQueue,
    arrival: &Arrival,
    expected: Psn,
    place: Place,
    what: Option<What>,
) -> Result<Stretch, Failure> {
    let invalid = || Failure::invalid(qp);
    let Arrival { psn, packets, len, .. } = *arrival;
    let ends = place.ends();
    if place.begins() && psn == expected {
        rq.partial = None;
        let what = what.ok_or_else(invalid)?;
        let mtu = if ends { 0 } else { full_packets(len, packets).ok_or_else(invalid)? };
        return Ok(Stretch { what, first: psn, mtu, from: 0, skip: 0, len, ends });
    }
    let partial = rq.partial.filter(|partial| partial.next == expected);
    match what {
        Some(What::Write(reth)) if place.begins() => brought_again(partial, arrival, expected, ends, reth),
        _ => partial.and_then(|partial| continued(partial, arrival, expected, place, what)),
    }
    .ok_or_else(invalid)
}

/// The same for one that continues `partial`, or is a SEND that comes again and goes on. `None`: it does not fit.
#[inline(never)]
fn continued(partial: Partial, arrival: &Arrival, expected: Psn, place: Place, what: Option<What>) -> Option<Stretch> {
    let Arrival { psn, packets, len, .. } = *arrival;
    let ends = place.ends();
    let same = match (what, partial.what) {
        (Some(what), of) => what == of,
        (None, of) => of != What::Send,
    };
    let cut_well =
        if ends { ends_in(len, packets, partial.mtu) } else { full_packets(len, packets) == Some(partial.mtu) };
    let skip = u64::from(expected.since(psn)) * partial.mtu;
    if !same || !cut_well || place.begins() && partial.first != psn || skip >= len {
        return None;
    }
    let Partial { what, first, mtu, done, .. } = partial;
    Some(Stretch { what, first, mtu, from: done, skip, len: len - skip, ends })
}

/// The same for a WRITE that says where it goes: some of it has come before, and it goes on. Its message may have begun
/// with it or before it. What is known of that is `partial`, if its packets were not carried out in this responder's
/// place.
#[inline(never)]
fn brought_again(
    partial: Option<Partial>,
    arrival: &Arrival,
    expected: Psn,
    ends: bool,
    reth: Reth,
) -> Option<Stretch> {
    let Arrival { psn, packets, len, .. } = *arrival;
    let mtu = if ends { last_packets(len, packets)? } else { full_packets(len, packets)? };
    let same = partial.is_none_or(|partial| match partial.what {
        What::Write(begun) if partial.mtu == mtu => is_one_message(mtu, (psn, &reth), (partial.first, &begun)),
        _ => false,
    });
    let skip = u64::from(expected.since(psn)) * mtu;
    (same && skip < len).then(|| Stretch {
        what: What::Write(reth),
        first: psn,
        mtu,
        from: skip,
        skip,
        len: len - skip,
        ends,
    })
}

/// Whether two pieces that say where they go are of one message: the earlier one comes to where the later one begins,
/// and both have the same end.
fn is_one_message(mtu: u64, this: (Psn, &Reth), other: (Psn, &Reth)) -> bool {
    let ((from, early), (to, late)) = if other.0.ahead_of(this.0) { (this, other) } else { (other, this) };
    let bytes = u64::from(to.since(from)) * mtu;
    late.rkey == early.rkey
        && late.remote_addr == early.remote_addr.wrapping_add(bytes)
        && early.total.checked_sub(bytes) == Some(late.total)
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
