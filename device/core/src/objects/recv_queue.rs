//! What the responder half of a QP keeps: its ring or what it holds from an SRQ, and what it answered to atomics.
//!
//! `engine/responder.rs` moves it.

use crate::handle::Psn;
use crate::memory::Span;
use crate::objects::srq::Srq;
use crate::rings::ring::Consumer;
use crate::rings::wqe::Receive;
use std::collections::VecDeque;

/// READs and atomics of one QP that may be on their way, in either direction (`caps.max_qp_rd_atom`).
pub const MAX_RD_ATOMIC: u8 = 16;

/// State of the responder half. Its lock is held while a request is carried out, so that DESTROY and RESET wait
/// for a running copy.
#[derive(Debug)]
pub struct RecvQueue {
    pub(crate) ring: Consumer,
    /// A WQE of the SRQ that was taken for a message which then did not come: the next one gets it.
    pub(crate) held: Option<Receive>,
    /// What the last atomic operations answered, oldest first: one whose answer was lost must not be done twice
    /// (IBA vol. 1, 9.4.5).
    replies: VecDeque<(Psn, u64)>,
    /// QP_LAST_WQE_REACHED was raised in this life.
    pub(crate) last_wqe_reported: bool,
    /// Scratch list, kept to save the allocation.
    pub(crate) spans: Vec<Span>,
}

impl RecvQueue {
    pub(crate) fn new(ring: Consumer) -> RecvQueue {
        RecvQueue { ring, held: None, replies: VecDeque::new(), last_wqe_reported: false, spans: Vec::new() }
    }

    pub(crate) fn reset(&mut self, srq: Option<&Srq>) {
        self.ring.reset();
        if let (Some(srq), Some(held)) = (srq, self.held.take()) {
            srq.put_back(held);
        }
        self.replies.clear();
        self.last_wqe_reported = false;
    }

    /// What an atomic operation found, in case its answer is lost. No more of them are remembered than a requester may
    /// have on their way.
    pub(crate) fn remember_reply(&mut self, psn: Psn, old: u64) {
        if self.replies.len() == usize::from(MAX_RD_ATOMIC) {
            self.replies.pop_front();
        }
        self.replies.push_back((psn, old));
    }

    /// What the atomic operation `psn` found. `None`: it is too old to be remembered, which breaks what was agreed on
    /// (`max_dest_rd_atomic`). The newest of a PSN counts: numbers come back after 2^24 packets.
    pub(crate) fn reply(&self, psn: Psn) -> Option<u64> {
        self.replies.iter().rfind(|(of, _)| *of == psn).map(|(_, old)| *old)
    }
}
