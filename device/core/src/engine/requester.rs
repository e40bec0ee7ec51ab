//! The requester half of a QP: takes send WQEs, submits them in order, ends each exactly once.
//!
//! A WQE that was taken is `Owed`: it leaves the list only through `settle`, as a completion, a silent success or
//! a flush. Up to `WINDOW` requests are on their way at once; they end in the order they were posted.

use crate::cqe::Completion;
use crate::device::Device;
use crate::engine::{ack_timeout, rnr_time};
use crate::handle::Psn;
use crate::interrupt::AsyncEvent;
use crate::memory::Span;
use crate::mr::Use;
use crate::qp::{Attrs, Qp, QpKind};
use crate::ring::{BrokenRing, Consumer};
use crate::transport::{Answer, Nak, Op, Request, Submitted, Token};
use crate::wqe::{Operation, WorkRequest};
use pvrdma_ffi::dev_api::*;
use pvrdma_ffi::uapi::vmw_pvrdma as abi;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Requests of one QP that may be on their way at once.
const WINDOW: usize = 32;

/// Rounds of take, submit, retire before others get their turn.
const ROUNDS: u32 = 64;

/// How soon to look again at a transport that had no room.
const BUSY_RETRY: Duration = Duration::from_micros(50);

/// State of the requester half.
#[derive(Debug)]
pub struct SendQueue {
    pub(crate) ring: Consumer,
    /// Taken WQEs, oldest first.
    owed: VecDeque<Owed>,
    /// PSN of the next WQE taken.
    pub(crate) psn: Psn,
    /// Nothing is submitted before this: RNR wait, or a transport without room.
    hold: Option<Instant>,
    /// When the oldest request counts as unanswered.
    deadline: Option<Instant>,
    retries: u8,
    rnr_retries: u8,
    spans: Vec<Span>,
}

/// A taken WQE. It must end by [`Device::settle`].
#[derive(Debug)]
struct Owed {
    wr: WorkRequest,
    psn: Psn,
    packets: u32,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Not submitted, or to be submitted again.
    Ready,
    /// Submitted; the answer is owed.
    Pending,
    /// Submitted; nobody was there. The timer decides.
    Unanswered,
    /// Ended with this status; waits for those before it.
    Done(u32),
}

impl Drop for Owed {
    fn drop(&mut self) {
        debug_assert!(
            matches!(self.stage, Stage::Done(_)) || std::thread::panicking(),
            "a WQE was dropped without an end: {self:?}"
        );
    }
}

impl SendQueue {
    pub(crate) fn new(ring: Consumer) -> SendQueue {
        SendQueue {
            ring,
            owed: VecDeque::new(),
            psn: Psn::default(),
            hold: None,
            deadline: None,
            retries: 0,
            rnr_retries: 0,
            spans: Vec::new(),
        }
    }

    /// Forgets every WQE without a completion (RESET, DESTROY). Requests must have been cancelled.
    pub(crate) fn reset(&mut self) {
        for owed in &mut self.owed {
            owed.stage = Stage::Done(abi::PVRDMA_WC_WR_FLUSH_ERR);
        }
        self.owed.clear();
        self.ring.reset();
        self.hold = None;
        self.deadline = None;
    }

    /// Fresh retry budgets: when the QP reaches RTS, and on every acknowledged request.
    pub(crate) fn renew_retries(&mut self, attrs: &pvrdma_qp_attr) {
        self.retries = attrs.retry_cnt;
        self.rnr_retries = attrs.rnr_retry;
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.owed.is_empty()
    }

    fn token(&self, index: usize, qp: &Qp, attrs: &Attrs) -> Token {
        Token { qp: qp.handle, epoch: attrs.epoch, psn: self.owed[index].psn }
    }
}

impl Device {
    /// Does whatever the send queue of `qp` can do now.
    pub(crate) fn run_send_queue(&self, qp: &Qp) {
        let mut sq = qp.lock_sq();
        let attrs = qp.attrs();
        for round in 0.. {
            if round == ROUNDS {
                // Whoever posts as fast as we work must not keep this stack for ever.
                self.run_soon(qp.handle);
                return;
            }
            match qp.state() {
                PVRDMA_QPS_RTS | PVRDMA_QPS_SQD => {}
                PVRDMA_QPS_ERR | PVRDMA_QPS_SQE => {
                    self.flush_sends(qp, &mut sq, &attrs);
                    return;
                }
                _ => return,
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
            self.submit_ready(qp, &mut sq, &attrs);
            let retired = self.retire(qp, &mut sq, &attrs);
            // Until nothing moves any more: retiring makes room to take, taking gives something to retire.
            if taken == 0 && retired == 0 {
                break;
            }
        }
        if let Some(when) = sq.hold.into_iter().chain(sq.deadline).min() {
            self.run_at(qp.handle, when);
        }
    }

    /// Takes WQEs from the ring up to the window.
    fn take_wqes(&self, qp: &Qp, sq: &mut SendQueue, attrs: &Attrs) -> Result<usize, BrokenRing> {
        let mut taken = 0;
        // SQD finishes what was begun and begins nothing new.
        while sq.owed.len() < WINDOW && qp.state() == PVRDMA_QPS_RTS {
            let Some(at) = sq.ring.peek(&qp.pages, self.memory())? else { break };
            let wr = WorkRequest::read(at, qp.cap.max_send_sge, qp.sq_sig_all, &qp.pages, self.memory())?;
            sq.ring.take();
            taken += 1;
            let len = wr.sg_list.total();
            let packets = u32::try_from(len.div_ceil(attrs.mtu()).max(1)).unwrap_or(u32::MAX);
            let stage = match wr.operation {
                Err(status) => Stage::Done(status),
                Ok(_) if len > u64::from(self.port().max_msg_sz) => Stage::Done(abi::PVRDMA_WC_LOC_LEN_ERR),
                Ok(Operation::Read { .. }) if attrs.raw.max_rd_atomic == 0 => {
                    Stage::Done(abi::PVRDMA_WC_LOC_QP_OP_ERR)
                }
                // Management datagrams have nowhere to go: the wire of this device carries RC only.
                Ok(_) if qp.kind == QpKind::Gsi => Stage::Done(abi::PVRDMA_WC_SUCCESS),
                Ok(_) => Stage::Ready,
            };
            let psn = sq.psn;
            sq.psn = psn.advance(packets);
            sq.owed.push_back(Owed { wr, psn, packets, stage });
        }
        Ok(taken)
    }

    /// Submits what is ready, in order, stopping at the first that must wait.
    fn submit_ready(&self, qp: &Qp, sq: &mut SendQueue, attrs: &Attrs) {
        if sq.hold.is_some_and(|hold| Instant::now() < hold) {
            return;
        }
        sq.hold = None;
        let mut reads = 0;
        for index in 0..sq.owed.len() {
            let alone = sq.owed.range(..index).all(|owed| matches!(owed.stage, Stage::Done(0)));
            let owed = &sq.owed[index];
            let is_read = matches!(owed.wr.operation, Ok(Operation::Read { .. }));
            match owed.stage {
                Stage::Done(abi::PVRDMA_WC_SUCCESS) => continue,
                Stage::Pending => {
                    reads += u32::from(is_read);
                    continue;
                }
                // An error ends the queue behind it; an unanswered request is what the others wait for.
                Stage::Done(_) | Stage::Unanswered => return,
                Stage::Ready => {}
            }
            if owed.wr.fence && !alone || is_read && reads >= u32::from(attrs.raw.max_rd_atomic) {
                return;
            }
            reads += u32::from(is_read);
            match self.submit(qp, sq, attrs, index, alone) {
                Submitted::Answered(answer) => self.apply(qp, sq, attrs, index, answer),
                Submitted::Pending => {
                    sq.owed[index].stage = Stage::Pending;
                    self.start_timer(sq, attrs);
                }
                Submitted::Busy => {
                    sq.hold = Some(Instant::now() + BUSY_RETRY);
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
        let owed = &sq.owed[index];
        let Ok(operation) = owed.wr.operation else {
            return Submitted::Answered(Answer::RequesterFault);
        };
        let purpose = match operation {
            Operation::Read { .. } => Use::LocalWrite,
            _ => Use::LocalRead,
        };
        sq.spans.clear();
        for sge in owed.wr.sg_list.as_slice().iter().filter(|sge| sge.len > 0) {
            let resolved = self
                .mr_by_key(sge.lkey.0)
                .is_some_and(|mr| mr.resolve(qp.pd, sge.addr, u64::from(sge.len), purpose, &mut sq.spans));
            if !resolved {
                return Submitted::Answered(Answer::RequesterFault);
            }
        }
        let op = match operation {
            Operation::Send { imm } => Op::Send { imm },
            Operation::Write { remote_addr, rkey, imm } => Op::Write { remote_addr, rkey, imm },
            Operation::Read { remote_addr, rkey } => Op::Read { remote_addr, rkey },
        };
        let request = Request {
            token: Token { qp: qp.handle, epoch: attrs.epoch, psn: owed.psn },
            source: attrs.local,
            dest: attrs.peer(),
            psn: owed.psn,
            packets: owed.packets,
            op,
            len: owed.wr.sg_list.total(),
            solicited: owed.wr.solicited,
            alone,
        };
        self.transport().submit(&request, self.memory(), &sq.spans)
    }

    /// An answer that came later.
    pub fn answered(&self, token: Token, answer: Answer) {
        let Some(qp) = self.qp(token.qp) else { return };
        {
            let mut sq = qp.lock_sq();
            let attrs = qp.attrs();
            let found = sq.owed.iter().position(|owed| owed.psn == token.psn && owed.stage == Stage::Pending);
            let (Some(index), true) = (found, attrs.epoch == token.epoch) else { return };
            self.apply(&qp, &mut sq, &attrs, index, answer);
        }
        self.run_send_queue(&qp);
    }

    /// Takes an answer to request `index` into account.
    fn apply(&self, qp: &Qp, sq: &mut SendQueue, attrs: &Attrs, index: usize, answer: Answer) {
        let stage = match answer {
            Answer::Ack => {
                sq.renew_retries(&attrs.raw);
                Stage::Done(abi::PVRDMA_WC_SUCCESS)
            }
            Answer::RnrNak(code) if sq.rnr_retries > 0 => {
                // 7 means without end (IBA vol. 1, 9.7.5.2.8).
                if sq.rnr_retries < 7 {
                    sq.rnr_retries -= 1;
                }
                sq.hold = Some(Instant::now() + rnr_time(code));
                Stage::Ready
            }
            Answer::RnrNak(_) => Stage::Done(abi::PVRDMA_WC_RNR_RETRY_EXC_ERR),
            Answer::Nak(Nak::InvalidRequest) => Stage::Done(abi::PVRDMA_WC_REM_INV_REQ_ERR),
            Answer::Nak(Nak::RemoteAccess) => Stage::Done(abi::PVRDMA_WC_REM_ACCESS_ERR),
            Answer::Nak(Nak::RemoteOperational) => Stage::Done(abi::PVRDMA_WC_REM_OP_ERR),
            Answer::RequesterFault => Stage::Done(abi::PVRDMA_WC_LOC_PROT_ERR),
            // Out of order at the responder: what it misses is older and will be sent again first.
            Answer::Nak(Nak::SequenceError) | Answer::Silence => Stage::Unanswered,
        };
        sq.owed[index].stage = stage;
        if stage != Stage::Done(abi::PVRDMA_WC_SUCCESS) {
            self.recall(qp, sq, attrs, index + 1);
        }
        if stage == Stage::Unanswered {
            self.start_timer(sq, attrs);
        }
    }

    /// Makes everything from `first` on ready to be submitted again ("go back N").
    fn recall(&self, qp: &Qp, sq: &mut SendQueue, attrs: &Attrs, first: usize) {
        for index in first..sq.owed.len() {
            if sq.owed[index].stage == Stage::Pending {
                self.transport().cancel(sq.token(index, qp, attrs));
            }
            if matches!(sq.owed[index].stage, Stage::Pending | Stage::Unanswered) {
                sq.owed[index].stage = Stage::Ready;
            }
        }
    }

    fn start_timer(&self, sq: &mut SendQueue, attrs: &Attrs) {
        if sq.deadline.is_none() {
            sq.deadline = ack_timeout(attrs.raw.timeout).map(|timeout| Instant::now() + timeout);
        }
    }

    /// The oldest request was not answered in time: send again from there, or give up.
    fn check_timer(&self, qp: &Qp, sq: &mut SendQueue, attrs: &Attrs) {
        if sq.deadline.is_none_or(|deadline| Instant::now() < deadline) {
            return;
        }
        sq.deadline = None;
        let Some(oldest) = sq.owed.iter().position(|owed| !matches!(owed.stage, Stage::Done(_))) else { return };
        match sq.owed[oldest].stage {
            Stage::Ready | Stage::Done(_) => return,
            // Its responder lives and has the request: a slow answer is no lost one.
            Stage::Pending if !self.transport().lost(sq.token(oldest, qp, attrs)) => {
                self.start_timer(sq, attrs);
                return;
            }
            Stage::Pending | Stage::Unanswered => {}
        }
        self.recall(qp, sq, attrs, oldest);
        if sq.retries == 0 {
            sq.owed[oldest].stage = Stage::Done(abi::PVRDMA_WC_RETRY_EXC_ERR);
        } else {
            sq.retries -= 1;
        }
    }

    /// Ends what is done, from the oldest on. Returns how many WQEs ended.
    fn retire(&self, qp: &Qp, sq: &mut SendQueue, attrs: &Attrs) -> usize {
        let mut retired = 0;
        while let Some(Stage::Done(status)) = sq.owed.front().map(|owed| owed.stage) {
            if status != abi::PVRDMA_WC_SUCCESS {
                qp.set_state(PVRDMA_QPS_ERR);
                self.recall(qp, sq, attrs, 1);
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
        if status == abi::PVRDMA_WC_SUCCESS && !owed.wr.signaled {
            return;
        }
        let operation = owed.wr.operation;
        let completion = Completion {
            wr_id: owed.wr.wr_id,
            qp: qp.handle,
            opcode: operation.map_or(abi::PVRDMA_WC_SEND, Operation::wc_opcode),
            status,
            byte_len: match operation {
                Ok(Operation::Read { .. }) => owed.wr.sg_list.total() as u32,
                _ => 0,
            },
            imm: None,
            solicited: false,
        };
        if qp.send_cq.put(&completion, self.memory(), self.interrupts()).is_err() {
            qp.set_state(PVRDMA_QPS_ERR);
        }
    }

    /// Ends every WQE, taken or not, with WR_FLUSH_ERR; one that already has a status keeps it.
    fn flush_sends(&self, qp: &Qp, sq: &mut SendQueue, attrs: &Attrs) {
        self.recall(qp, sq, attrs, 0);
        sq.hold = None;
        sq.deadline = None;
        for _ in 0..=qp.cap.max_send_wr {
            while let Some(owed) = sq.owed.front_mut() {
                if !matches!(owed.stage, Stage::Done(_)) {
                    owed.stage = Stage::Done(abi::PVRDMA_WC_WR_FLUSH_ERR);
                }
                self.settle(qp, sq);
            }
            let Ok(Some(at)) = sq.ring.peek(&qp.pages, self.memory()) else { return };
            let read = WorkRequest::read(at, qp.cap.max_send_sge, qp.sq_sig_all, &qp.pages, self.memory());
            let Ok(wr) = read else { return };
            sq.ring.take();
            let stage = Stage::Done(abi::PVRDMA_WC_WR_FLUSH_ERR);
            sq.owed.push_back(Owed { wr, psn: sq.psn, packets: 0, stage });
        }
        // More than a ring full: its owner posts while we flush. The rest can wait for its turn.
        self.run_soon(qp.handle);
    }

    /// Stops all requests of `qp` and forgets its WQEs (RESET, DESTROY).
    pub(crate) fn drop_sends(&self, qp: &Qp, sq: &mut SendQueue, epoch: u32) {
        let attrs = Attrs { epoch, ..qp.attrs() };
        self.recall(qp, sq, &attrs, 0);
        sq.reset();
    }

    /// Takes back every request of `qp` that is on its way and submits it anew: its keys are judged again.
    pub(crate) fn resubmit(&self, qp: &Qp) {
        {
            let mut sq = qp.lock_sq();
            if sq.is_idle() {
                return;
            }
            let attrs = qp.attrs();
            self.recall(qp, &mut sq, &attrs, 0);
        }
        self.run_send_queue(qp);
    }
}
