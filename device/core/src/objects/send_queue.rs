//! What the requester half of a QP keeps: the WQEs it has taken and not ended, and what it waits for.
//!
//! `engine/requester.rs` moves it. A WQE that was taken is `Owed`: it leaves the list only through `Engine::settle`, as
//! a completion, a silent success or a flush.

use crate::handle::{Psn, QpHandle};
use crate::memory::Span;
use crate::rings::ring::Consumer;
use crate::rings::wqe::WorkRequest;
use crate::transport::{Endpoint, Path, Token};
use pvrdma_ffi::dev_api::pvrdma_qp_attr;
use pvrdma_ffi::uapi::vmw_pvrdma as abi;
use std::collections::VecDeque;
use std::time::Instant;

/// State of the requester half.
#[derive(Debug)]
pub struct SendQueue {
    pub(crate) ring: Consumer,
    /// Taken WQEs, oldest first.
    pub(crate) owed: VecDeque<Owed>,
    /// PSN of the next WQE taken.
    pub(crate) psn: Psn,
    /// Nothing is submitted before this: RNR wait, or a transport without room.
    pub(crate) hold: Option<Instant>,
    /// The transport had no room and says when it has: how often it had said so before.
    pub(crate) full_since: Option<u64>,
    /// Since when the transport has had no room.
    pub(crate) busy_since: Option<Instant>,
    /// When the oldest request counts as unanswered.
    pub(crate) deadline: Option<Instant>,
    pub(crate) retries: u8,
    pub(crate) rnr_retries: u8,
    /// Numbers submissions, through all lives of the QP.
    pub(crate) submissions: u32,
    /// SQ_DRAINED is owed (RTS -> SQD with `en_sqd_async_notify`).
    pub(crate) drain_event: bool,
    /// The transport knows that the QP is in ERR.
    pub(crate) transport_knows_err: bool,
    /// The way to the peer when it was looked at last, and the last one that there was in this life.
    pub(crate) path: Path,
    pub(crate) had_path: Path,
    /// Whom a trace has been told the way to, by a datagram QP.
    pub(crate) told: Vec<(Endpoint, Path)>,
    pub(crate) spans: Vec<Span>,
}

/// A taken WQE. It must end by `Engine::settle`.
#[derive(Debug)]
pub struct Owed {
    pub(crate) wr: WorkRequest,
    pub(crate) psn: Psn,
    pub(crate) packets: u32,
    /// Number of its last submission.
    pub(crate) submission: u32,
    /// What the responder's last refusal was: an AETH syndrome.
    pub(crate) syndrome: u8,
    pub(crate) stage: Stage,
}

/// How far a taken WQE has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
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
            full_since: None,
            busy_since: None,
            deadline: None,
            retries: 0,
            rnr_retries: 0,
            submissions: 0,
            drain_event: false,
            transport_knows_err: false,
            path: Path::None,
            had_path: Path::None,
            told: Vec::new(),
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
        self.full_since = None;
        self.busy_since = None;
        self.deadline = None;
        self.drain_event = false;
        self.path = Path::None;
        self.had_path = Path::None;
        self.told = Vec::new();
    }

    /// Fresh retry budgets: when the QP reaches RTS, and on every acknowledged request.
    pub(crate) fn renew_retries(&mut self, attrs: &pvrdma_qp_attr) {
        self.retries = attrs.retry_cnt;
        self.rnr_retries = attrs.rnr_retry;
    }

    /// Whatever became of them, the WQEs from `first` on end as flushed: nothing succeeds behind a failure.
    pub(crate) fn flush_from(&mut self, first: usize) {
        for owed in self.owed.iter_mut().skip(first) {
            owed.stage = Stage::Done(abi::PVRDMA_WC_WR_FLUSH_ERR);
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.owed.is_empty()
    }

    /// Names the last submission of WQE `index` of `qp`.
    pub(crate) fn token(&self, index: usize, qp: QpHandle) -> Token {
        let owed = &self.owed[index];
        Token { qp, epoch: owed.submission, psn: owed.psn }
    }
}

impl Drop for SendQueue {
    fn drop(&mut self) {
        // A device that is dropped as a whole owes nothing to anybody.
        self.reset();
    }
}
