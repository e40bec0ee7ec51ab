//! The requester half of a QP: takes send WQEs, submits them in order, ends each exactly once.
//!
//! Called by `Engine::run_qp`, and by the transport with answers that come later. Up to `WINDOW` requests are on their
//! way at once; they end in the order they were posted, each through `settle`.

use crate::engine::by_value::pending;
use crate::engine::{Engine, ack_timeout, give_back_scratch, rnr_time};
use crate::handle::{Gid, KERNEL};
use crate::interrupt::AsyncEvent;
use crate::objects::qp::{Attrs, Qp};
use crate::objects::send_queue::{Owed, SendQueue, Stage};
use crate::rings::cqe::Completion;
use crate::rings::ring::BrokenRing;
use crate::rings::wqe::{Operation, QpKind, WorkRequest};
use crate::transport::{Answer, Endpoint, MAX_MSG_SZ, Nak, Op, Path, Request, Submitted, Token, Use};
use pvrdma_ffi::dev_api::*;
use pvrdma_ffi::uapi::vmw_pvrdma as abi;
use std::sync::MutexGuard;
use std::time::Duration;

/// Requests of one QP that may be on their way at once.
const WINDOW: usize = 32;

/// Rounds of take, submit, retire before others get their turn.
const ROUNDS: u32 = 64;

/// Bytes after which a send queue lets others have their turn: about 100 us of copying. Doorbells run on the stack of
/// whoever rang (behind vfio-user that is a vCPU which holds QEMU's lock), so a long list of long messages must go on
/// elsewhere.
const TURN: u64 = 1 << 20;

/// Less than this many packets of one QP are on their way at once: with half of all PSNs or more, a responder could
/// not tell an old request from a new one (IBA vol. 1, 9.7.2).
const PSN_WINDOW: u64 = 1 << 23;

/// How soon to look again at a transport that had no room.
const BUSY_RETRY: Duration = Duration::from_micros(50);

/// The same for one that says when it has room: in case it does not.
const FULL_RETRY: Duration = Duration::from_millis(100);

/// How long a datagram waits for room before it is dropped, as a switch would: its target may have been stopped.
const DATAGRAM_PATIENCE: Duration = Duration::from_millis(100);

/// A Q_Key with this bit in a work request stands for that of the QP (IBA vol. 1, 10.2.5).
const QKEY_OF_QP: u32 = 1 << 31;

/// AETH syndromes (IBA vol. 1, table 44), as `vendor_err` tells them.
const SYNDROME_RNR: u8 = 0x20;
const SYNDROME_NAK: u8 = 0x60;
/// No syndrome has this bit: the request had no way to go. Below it is the number of the one it had before.
const PATH_DIED: u8 = 0x80;

/// Addresses that a datagram QP remembers to have told a trace of.
const TOLD: usize = 64;

impl Engine {
    /// Does whatever the send queue of `qp` can do now. False: its turn is over and it has more to do, for which it has
    /// been scheduled.
    pub(crate) fn run_send_queue(&self, qp: &Qp, mut sq: MutexGuard<'_, SendQueue>) -> bool {
        let attrs = qp.attrs();
        let mut turn = TURN;
        for round in 0.. {
            // Nor may one who posts as fast as we work keep this stack for ever.
            if round == ROUNDS || turn == 0 {
                self.run_soon(qp.handle);
                return false;
            }
            match qp.state() {
                PVRDMA_QPS_RTS | PVRDMA_QPS_SQD => {}
                PVRDMA_QPS_ERR | PVRDMA_QPS_SQE => {
                    self.flush_sends(qp, &mut sq);
                    return true;
                }
                _ => return true,
            }
            self.check_timer(qp, &mut sq, &attrs);
            let taken = match self.take_wqes(qp, &mut sq, &attrs) {
                Ok(taken) => taken,
                Err(BrokenRing) => {
                    qp.set_state(PVRDMA_QPS_ERR);
                    self.interrupts().async_event(AsyncEvent::QpFatal(qp.handle));
                    continue;
                }
            };
            self.submit_ready(qp, &mut sq, &attrs, &mut turn);
            let retired = self.retire(qp, &mut sq, &attrs);
            // Until nothing moves any more: retiring makes room to take, taking gives something to retire.
            if taken == 0 && retired == 0 {
                break;
            }
        }
        if sq.drain_event && sq.is_idle() && qp.state() == PVRDMA_QPS_SQD {
            sq.drain_event = false;
            self.interrupts().async_event(AsyncEvent::SqDrained(qp.handle));
        }
        if let Some(when) = sq.hold.into_iter().chain(sq.deadline).min() {
            self.run_at(qp.handle, when);
        }
        true
    }

    /// Takes WQEs from the ring up to the window.
    fn take_wqes(&self, qp: &Qp, sq: &mut SendQueue, attrs: &Attrs) -> Result<usize, BrokenRing> {
        let mut taken = 0;
        // SQD finishes what was begun and begins nothing new.
        while sq.owed.len() < WINDOW && qp.state() == PVRDMA_QPS_RTS {
            let Some(at) = sq.ring.peek(&qp.pages, self.memory())? else { break };
            if !qp.spend_send() {
                break;
            }
            let wr = WorkRequest::read(at, qp.kind, qp.cap.max_send_sge, qp.sq_sig_all, &qp.pages, self.memory())?;
            sq.ring.take();
            taken += 1;
            let len = wr.sg_list.total();
            let packets = match wr.operation {
                // They do not leave the device: the responder would miss a number that was spent on them.
                Ok(Operation::LocalInv { .. } | Operation::FastReg(_)) => 0,
                // A datagram is one packet (IBA vol. 1, 9.8.1), and such a QP has no path MTU.
                _ if qp.kind != QpKind::Rc => 1,
                _ => u32::try_from(len.div_ceil(attrs.mtu()).max(1)).unwrap_or(u32::MAX),
            };
            let stage = match self.check_wr(qp, &wr, len, attrs) {
                Ok(()) => Stage::Ready,
                Err(status) => Stage::Done(status),
            };
            let psn = sq.psn;
            sq.psn = psn.advance(packets);
            sq.owed.push_back(Owed { wr, psn, packets, submission: 0, syndrome: 0, stage });
        }
        Ok(taken)
    }

    /// Whether a WQE can be carried out as far as its own fields tell, or the status it ends with.
    fn check_wr(&self, qp: &Qp, wr: &WorkRequest, len: u64, attrs: &Attrs) -> Result<(), u32> {
        let operation = wr.operation?;
        match operation {
            _ if len > u64::from(MAX_MSG_SZ) => Err(abi::PVRDMA_WC_LOC_LEN_ERR),
            _ if operation.reads() && attrs.raw.max_rd_atomic == 0 => Err(abi::PVRDMA_WC_LOC_QP_OP_ERR),
            Operation::Atomic { .. } if len != 8 => Err(abi::PVRDMA_WC_LOC_LEN_ERR),
            // A datagram is one packet.
            Operation::Datagram { .. } if len > self.datagram_max => Err(abi::PVRDMA_WC_LOC_LEN_ERR),
            Operation::Datagram { av, .. } if av.pd != qp.pd || av.port_num != 1 => Err(abi::PVRDMA_WC_LOC_QP_OP_ERR),
            // The page list is given by DMA addresses: a user who could name them could name any page of the guest.
            Operation::FastReg(_) if qp.ctx != KERNEL => Err(abi::PVRDMA_WC_LOC_QP_OP_ERR),
            _ => Ok(()),
        }
    }

    /// Submits what is ready, in order, stopping at the first that must wait.
    fn submit_ready(&self, qp: &Qp, sq: &mut SendQueue, attrs: &Attrs, turn: &mut u64) {
        let came = sq.full_since.is_some_and(|rooms| rooms != self.rooms());
        if !came && sq.hold.is_some_and(|hold| self.now() < hold) {
            return;
        }
        sq.hold = None;
        sq.full_since = None;
        // Both windows count from the oldest unacknowledged request on, with those behind it that are answered already:
        // if it has to be sent again, the responder must know its PSN for an old one and remember what it answered.
        let (mut reads, mut packets) = (0, 0);
        for index in 0..sq.owed.len() {
            let alone = sq.owed.range(..index).all(|owed| owed.stage == Stage::Done(abi::PVRDMA_WC_SUCCESS));
            if alone {
                (reads, packets) = (0, 0);
            }
            let owed = &sq.owed[index];
            let is_read = owed.wr.operation.is_ok_and(Operation::reads);
            let too_many_reads = is_read && reads >= u32::from(attrs.raw.max_rd_atomic);
            reads += u32::from(is_read);
            packets += u64::from(owed.packets);
            match owed.stage {
                Stage::Pending | Stage::Done(abi::PVRDMA_WC_SUCCESS) => continue,
                // An error ends the queue behind it; an unanswered request is what the others wait for.
                Stage::Done(_) | Stage::Unanswered => return,
                Stage::Ready => {}
            }
            if !alone && (owed.wr.fence || packets >= PSN_WINDOW) || too_many_reads || *turn == 0 {
                return;
            }
            if let Ok(operation @ (Operation::LocalInv { .. } | Operation::FastReg(_))) = owed.wr.operation {
                // In order with everything before it.
                if !alone {
                    return;
                }
                let status = self.execute_local(qp, operation);
                sq.owed[index].stage = Stage::Done(status);
                if status != abi::PVRDMA_WC_SUCCESS {
                    return;
                }
                continue;
            }
            *turn = turn.saturating_sub(owed.wr.sg_list.total());
            if alone {
                // The timer counts from here: a wait for RNR is no wait for an answer.
                sq.deadline = None;
            }
            let datagram = matches!(owed.wr.operation, Ok(Operation::Datagram { .. }));
            let rooms = self.rooms();
            let mut submitted = self.submit(qp, sq, attrs, index, alone);
            match submitted {
                Submitted::Busy | Submitted::Full => {
                    let now = self.now();
                    let since = *sq.busy_since.get_or_insert(now);
                    if datagram && now - since > DATAGRAM_PATIENCE {
                        submitted = Submitted::Answered(Answer::Silence);
                    }
                }
                _ => sq.busy_since = None,
            }
            if let (true, Submitted::Answered(answer)) = (datagram, submitted) {
                // Sent is done, whoever listens.
                sq.owed[index].stage = match answer {
                    Answer::RequesterFault => Stage::Done(abi::PVRDMA_WC_LOC_PROT_ERR),
                    _ => Stage::Done(abi::PVRDMA_WC_SUCCESS),
                };
                if answer == Answer::RequesterFault {
                    return;
                }
                continue;
            }
            match submitted {
                Submitted::Answered(answer) => self.apply(qp, sq, attrs, index, answer),
                Submitted::Pending => {
                    sq.owed[index].stage = Stage::Pending;
                    self.start_timer(sq, attrs);
                }
                // The answer to an earlier one runs this queue again.
                Submitted::WhenAlone if !alone => return,
                Submitted::Busy | Submitted::WhenAlone => {
                    sq.hold = Some(self.now() + BUSY_RETRY);
                    return;
                }
                Submitted::Full => {
                    sq.hold = Some(self.now() + FULL_RETRY);
                    sq.full_since = Some(rooms);
                    self.wait_for_room(qp.handle, rooms);
                    return;
                }
            }
            // Answered at once, and not well: nothing behind it may be carried out.
            if !matches!(sq.owed[index].stage, Stage::Pending | Stage::Done(abi::PVRDMA_WC_SUCCESS)) {
                return;
            }
        }
    }

    fn submit(&self, qp: &Qp, sq: &mut SendQueue, attrs: &Attrs, index: usize, alone: bool) -> Submitted {
        // Held over key check and copy: DESTROY_MR takes it to wait for them.
        let _copying = self.requesting();
        sq.submissions = sq.submissions.wrapping_add(1);
        sq.owed[index].submission = sq.submissions;
        let token = sq.token(index, qp.handle);
        let owed = &sq.owed[index];
        let Ok(operation) = owed.wr.operation else {
            return Submitted::Answered(Answer::RequesterFault);
        };
        let purpose = if operation.reads() { Use::LocalWrite } else { Use::LocalRead };
        sq.spans.clear();
        let len = owed.wr.sg_list.total();
        if !self.resolve_sges(qp.pd, &owed.wr.sg_list, (0, len), purpose, &mut sq.spans) {
            // As below: what came before the bad one may be a gigabyte in pages.
            give_back_scratch(&mut sq.spans);
            return Submitted::Answered(Answer::RequesterFault);
        }
        let (mut source, mut dest) = (attrs.local, attrs.peer());
        let op = match operation {
            Operation::Send { ext } => Op::Send { ext },
            Operation::Write { remote_addr, rkey, imm } => Op::Write { remote_addr, rkey, imm },
            Operation::Read { remote_addr, rkey } => Op::Read { remote_addr, rkey },
            Operation::Atomic { remote_addr, rkey, op } => Op::Atomic { remote_addr, rkey, op },
            Operation::Datagram { av, remote_qpn, remote_qkey, imm } => {
                // An index without a GID is a source nobody knows.
                source = Endpoint { gid: self.gid(u32::from(av.gid_index)).unwrap_or_default(), qpn: qp.qpn };
                dest = Endpoint { gid: av.dgid, qpn: remote_qpn };
                let qkey = if remote_qkey & QKEY_OF_QP != 0 { attrs.raw.qkey } else { remote_qkey };
                Op::Datagram { qkey, imm, grh: av.grh }
            }
            // Done by `execute_local`; they do not leave the device.
            Operation::LocalInv { .. } | Operation::FastReg(_) => return Submitted::Answered(Answer::RequesterFault),
        };
        let request = Request {
            token,
            source,
            dest,
            psn: owed.psn,
            packets: owed.packets,
            op,
            len,
            solicited: owed.wr.solicited,
            alone,
        };
        let submitted = if self.port_is_up() {
            self.transport().submit(&request, self.memory(), &sq.spans)
        } else {
            Submitted::Answered(Answer::Silence)
        };
        give_back_scratch(&mut sq.spans);
        if matches!(op, Op::Datagram { .. }) && self.interrupts().wants_paths() {
            self.tell_of_datagram(qp, sq, &source.gid, &dest);
        }
        submitted
    }

    /// Looks which way `qp` has to its peer, and tells if it is another one than before.
    pub(crate) fn look_for_path(&self, qp: &Qp, sq: &mut SendQueue, attrs: &Attrs) {
        let before = sq.path;
        self.find_path(qp, sq, attrs);
        if qp.kind == QpKind::Rc && sq.path != before {
            self.interrupts().path(qp.handle, &attrs.peer().gid, sq.path);
        }
    }

    /// The same in silence.
    pub(crate) fn find_path(&self, qp: &Qp, sq: &mut SendQueue, attrs: &Attrs) {
        if qp.kind == QpKind::Rc {
            sq.path = self.path_of(qp, attrs);
            if sq.path != Path::None {
                sq.had_path = sq.path;
            }
        }
    }

    /// The way to the peer of a connected QP, as things are now.
    pub(crate) fn path_of(&self, qp: &Qp, attrs: &Attrs) -> Path {
        match qp.kind {
            QpKind::Rc if self.port_is_up() => self.transport().path(&attrs.local.gid, &attrs.peer()),
            QpKind::Rc | QpKind::Ud | QpKind::Gsi => Path::None,
        }
    }

    /// Tells by which way datagrams go to an address, at the first one and when it has changed.
    fn tell_of_datagram(&self, qp: &Qp, sq: &mut SendQueue, source: &Gid, dest: &Endpoint) {
        let path = self.transport().path(source, dest);
        match sq.told.iter().position(|(told, _)| told == dest) {
            Some(at) if sq.told[at].1 == path => return,
            Some(at) => drop(sq.told.swap_remove(at)),
            None if sq.told.len() >= TOLD => drop(sq.told.swap_remove(0)),
            None => {}
        }
        sq.told.push((*dest, path));
        self.interrupts().path(qp.handle, &dest.gid, path);
    }

    /// Carries out a work request that concerns this device only. Returns its completion status.
    fn execute_local(&self, qp: &Qp, operation: Operation) -> u32 {
        let done = match operation {
            Operation::LocalInv { rkey } => self.local_inv(qp, rkey),
            Operation::FastReg(reg) => self.fast_reg(qp, &reg),
            _ => false,
        };
        // "Memory management operation error" has the number of the older "memory window bind error".
        if done { abi::PVRDMA_WC_SUCCESS } else { abi::PVRDMA_WC_MW_BIND_ERR }
    }

    /// An answer that came later.
    pub fn answered(&self, token: Token, answer: Answer) {
        let Some(qp) = self.qp(token.qp) else { return };
        {
            let mut sq = qp.lock_sq();
            let attrs = qp.attrs();
            let Some(index) = pending(&sq, token) else { return };
            self.apply(&qp, &mut sq, &attrs, index, answer);
        }
        self.run_qp(&qp);
    }

    /// Takes an answer to request `index` into account.
    pub(crate) fn apply(&self, qp: &Qp, sq: &mut SendQueue, attrs: &Attrs, index: usize, answer: Answer) {
        sq.owed[index].syndrome = match answer {
            Answer::RnrNak(code) => SYNDROME_RNR | code & 31,
            Answer::Nak(Nak::SequenceError) => SYNDROME_NAK,
            Answer::Nak(Nak::InvalidRequest) => SYNDROME_NAK | 1,
            Answer::Nak(Nak::RemoteAccess) => SYNDROME_NAK | 2,
            Answer::Nak(Nak::RemoteOperational) => SYNDROME_NAK | 3,
            Answer::Ack | Answer::RequesterFault | Answer::Silence => 0,
        };
        let stage = match answer {
            Answer::Ack => {
                sq.renew_retries(&attrs.raw);
                Stage::Done(abi::PVRDMA_WC_SUCCESS)
            }
            Answer::RnrNak(code) if sq.rnr_retries > 0 => {
                qp.sent().not_ready();
                // 7 means without end (IBA vol. 1, 9.7.5.2.8).
                if sq.rnr_retries < 7 {
                    sq.rnr_retries -= 1;
                }
                sq.hold = Some(self.now() + rnr_time(code));
                // Room that comes is no reason to ask such a responder sooner.
                sq.full_since = None;
                Stage::Ready
            }
            Answer::RnrNak(_) => Stage::Done(abi::PVRDMA_WC_RNR_RETRY_EXC_ERR),
            Answer::Nak(Nak::InvalidRequest) => Stage::Done(abi::PVRDMA_WC_REM_INV_REQ_ERR),
            Answer::Nak(Nak::RemoteAccess) => Stage::Done(abi::PVRDMA_WC_REM_ACCESS_ERR),
            Answer::Nak(Nak::RemoteOperational) => Stage::Done(abi::PVRDMA_WC_REM_OP_ERR),
            Answer::RequesterFault => Stage::Done(abi::PVRDMA_WC_LOC_PROT_ERR),
            // Out of order at the responder: what it misses is older and is sent again first.
            Answer::Nak(Nak::SequenceError) | Answer::Silence => Stage::Unanswered,
        };
        sq.owed[index].stage = stage;
        if stage != Stage::Done(abi::PVRDMA_WC_SUCCESS) {
            self.recall(qp, sq, index + 1);
        }
        if stage == Stage::Unanswered {
            self.start_timer(sq, attrs);
        }
        // Told of the gap, nobody waits for a timer; the retry counts all the same. A responder that misses what was
        // acknowledged before says nothing (a ghost, as IBA calls it).
        if answer == Answer::Nak(Nak::SequenceError)
            && self.oldest(qp, sq).is_some_and(|(oldest, is_over)| is_over && oldest < index)
        {
            sq.deadline = Some(self.now());
        }
    }

    /// The oldest request that is not done, and whether no answer to it comes any more. One whose responder lives, and
    /// has it, is waited for: a slow answer is no lost one.
    fn oldest(&self, qp: &Qp, sq: &SendQueue) -> Option<(usize, bool)> {
        let oldest = sq.owed.iter().position(|owed| !matches!(owed.stage, Stage::Done(_)))?;
        let is_over = match sq.owed[oldest].stage {
            Stage::Pending => self.transport().lost(sq.token(oldest, qp.handle)),
            stage => stage == Stage::Unanswered,
        };
        Some((oldest, is_over))
    }

    /// Makes everything from `first` on ready to be submitted again ("go back N").
    fn recall(&self, qp: &Qp, sq: &mut SendQueue, first: usize) {
        for index in first..sq.owed.len() {
            if sq.owed[index].stage == Stage::Pending {
                self.transport().cancel(sq.token(index, qp.handle));
            }
            if matches!(sq.owed[index].stage, Stage::Pending | Stage::Unanswered) {
                sq.owed[index].stage = Stage::Ready;
            }
        }
    }

    fn start_timer(&self, sq: &mut SendQueue, attrs: &Attrs) {
        if sq.deadline.is_none() {
            sq.deadline = ack_timeout(attrs.raw.timeout).map(|timeout| self.now() + timeout);
        }
    }

    /// The oldest request was not answered in time: send again from there, or give up.
    fn check_timer(&self, qp: &Qp, sq: &mut SendQueue, attrs: &Attrs) {
        if sq.deadline.is_none_or(|deadline| self.now() < deadline) {
            return;
        }
        sq.deadline = None;
        let oldest = match self.oldest(qp, sq) {
            Some((oldest, true)) => oldest,
            Some((waiting, false)) if sq.owed[waiting].stage == Stage::Pending => return self.start_timer(sq, attrs),
            _ => return,
        };
        self.recall(qp, sq, oldest);
        // Whatever it was that did not answer: the next try goes by the way that there is then.
        self.look_for_path(qp, sq, attrs);
        if sq.retries == 0 {
            let died = if sq.path == Path::None { PATH_DIED | sq.had_path.code() } else { 0 };
            let owed = &mut sq.owed[oldest];
            (owed.stage, owed.syndrome) = (Stage::Done(abi::PVRDMA_WC_RETRY_EXC_ERR), died);
        } else {
            sq.retries -= 1;
            qp.sent().again();
        }
    }

    /// Ends what is done, from the oldest on. Returns how many WQEs ended.
    fn retire(&self, qp: &Qp, sq: &mut SendQueue, attrs: &Attrs) -> usize {
        let mut retired = 0;
        while let Some(Stage::Done(status)) = sq.owed.front().map(|owed| owed.stage) {
            if status != abi::PVRDMA_WC_SUCCESS {
                // A send that failed stops the sends of a datagram QP, not its receives (IBA vol. 1, 10.3.1.6).
                qp.set_state(if qp.kind == QpKind::Rc { PVRDMA_QPS_ERR } else { PVRDMA_QPS_SQE });
                self.recall(qp, sq, 1);
                sq.flush_from(1);
            }
            self.settle(qp, sq);
            retired += 1;
            if status != abi::PVRDMA_WC_SUCCESS {
                return retired;
            }
        }
        // The timer runs for the oldest request only; a new oldest starts anew.
        if retired > 0 {
            sq.deadline = None;
            if sq.owed.iter().any(|owed| matches!(owed.stage, Stage::Pending | Stage::Unanswered)) {
                self.start_timer(sq, attrs);
            }
        }
        retired
    }

    /// Ends the oldest WQE with the status in its stage.
    fn settle(&self, qp: &Qp, sq: &mut SendQueue) {
        let Some(owed) = sq.owed.pop_front() else { return };
        let Stage::Done(status) = owed.stage else { return };
        let _ = sq.ring.release(&qp.pages, self.memory());
        if status == abi::PVRDMA_WC_SUCCESS && owed.packets > 0 {
            qp.sent().done.count(owed.wr.sg_list.total(), true);
        }
        if status == abi::PVRDMA_WC_SUCCESS && !owed.wr.signaled {
            return;
        }
        let operation = owed.wr.operation;
        let explained = matches!(
            status,
            abi::PVRDMA_WC_REM_INV_REQ_ERR
                | abi::PVRDMA_WC_REM_ACCESS_ERR
                | abi::PVRDMA_WC_REM_OP_ERR
                | abi::PVRDMA_WC_RNR_RETRY_EXC_ERR
                | abi::PVRDMA_WC_RETRY_EXC_ERR
        );
        let completion = Completion {
            wr_id: owed.wr.wr_id,
            qp: qp.handle,
            opcode: operation.map_or(abi::PVRDMA_WC_SEND, Operation::wc_opcode),
            status,
            byte_len: match operation {
                Ok(operation) if operation.reads() => owed.wr.sg_list.total() as u32,
                _ => 0,
            },
            vendor_err: if explained { u32::from(owed.syndrome) } else { 0 },
            ..Default::default()
        };
        if qp.send_cq.put(&completion, self.memory(), self.interrupts()).is_err() {
            self.cq_died(qp.send_cq.handle);
        }
    }

    /// Ends every WQE, taken or not, with WR_FLUSH_ERR. Those that succeeded in order, and the first that failed, keep
    /// their status.
    fn flush_sends(&self, qp: &Qp, sq: &mut SendQueue) {
        if !sq.transport_knows_err {
            // It went to ERR by itself: a transport that places data on its behalf must hear of it too.
            sq.transport_knows_err = true;
            self.transport().qp_changed(&qp.view());
        }
        self.recall(qp, sq, 0);
        sq.hold = None;
        sq.full_since = None;
        sq.deadline = None;
        let succeeded = |owed: &Owed| owed.stage == Stage::Done(abi::PVRDMA_WC_SUCCESS);
        let first = sq.owed.iter().position(|owed| !succeeded(owed)).unwrap_or(sq.owed.len());
        let failed = sq.owed.get(first).is_some_and(|owed| matches!(owed.stage, Stage::Done(_)));
        sq.flush_from(first + usize::from(failed));
        loop {
            while !sq.owed.is_empty() {
                self.settle(qp, sq);
            }
            let Ok(Some(at)) = sq.ring.peek(&qp.pages, self.memory()) else { return };
            // More than a ring full was posted while this went on; its doorbell is still to come.
            if !qp.spend_send() {
                return;
            }
            let read = WorkRequest::read(at, qp.kind, qp.cap.max_send_sge, qp.sq_sig_all, &qp.pages, self.memory());
            let Ok(wr) = read else { return };
            sq.ring.take();
            let stage = Stage::Done(abi::PVRDMA_WC_WR_FLUSH_ERR);
            sq.owed.push_back(Owed { wr, psn: sq.psn, packets: 0, submission: 0, syndrome: 0, stage });
        }
    }

    /// Stops all requests of `qp` and forgets its WQEs (RESET, DESTROY).
    pub(crate) fn drop_sends(&self, qp: &Qp, sq: &mut SendQueue) {
        self.recall(qp, sq, 0);
        sq.reset();
    }

    /// Takes back the requests of `qp` from the first that is on its way and names `lkey`, and submits them anew: their
    /// keys are judged again.
    pub(crate) fn resubmit(&self, qp: &Qp, lkey: u32) {
        {
            let mut sq = qp.lock_sq();
            let names = |owed: &Owed| owed.wr.sg_list.as_slice().iter().any(|sge| sge.lkey.0 == lkey);
            let first = sq.owed.iter().position(|owed| owed.stage == Stage::Pending && names(owed));
            let Some(first) = first else { return };
            self.recall(qp, &mut sq, first);
        }
        self.run_qp(qp);
    }
}
