//! What the responder half of a QP keeps: its ring, the receive it holds, how far a message in pieces has come, and
//! what it answered to atomics.
//!
//! `engine/responder.rs` moves it.

use crate::handle::{Psn, Rkey};
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
    /// A receive WQE in use: that of a SEND of which some is still to come, or one that was taken out of the SRQ for a
    /// message which then did not come. The next one gets it. (One of the QP's own ring stays there all the while.)
    pub(crate) held: Option<Receive>,
    /// The message of which some has come.
    pub(crate) partial: Option<Partial>,
    /// What the last atomic operations answered, oldest first: one whose answer was lost must not be done twice
    /// (IBA vol. 1, 9.4.5).
    replies: VecDeque<(Psn, u64)>,
    /// QP_LAST_WQE_REACHED was raised in this life.
    pub(crate) last_wqe_reported: bool,
    /// Scratch list, kept to save the allocation.
    pub(crate) spans: Vec<Span>,
}

/// A message of which the first packets have come. Those to come continue it if they begin at `next`.
#[derive(Clone, Copy, Debug)]
pub struct Partial {
    pub(crate) what: What,
    /// Its first packet.
    pub(crate) first: Psn,
    /// The first packet that has not come.
    pub(crate) next: Psn,
    /// Bytes of a full packet.
    pub(crate) mtu: u64,
    /// Bytes that have come.
    pub(crate) done: u64,
}

/// What a message in pieces is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// How long it is nobody knows before its last packet.
    Send,
    /// Its first packet says where it goes.
    Write(Reth),
}

/// Where a WRITE goes (IBA vol. 1, 9.3.3: RETH).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reth {
    pub(crate) remote_addr: u64,
    pub(crate) rkey: Rkey,
    /// Bytes of the whole message.
    pub(crate) total: u64,
}

impl RecvQueue {
    pub(crate) fn new(ring: Consumer) -> RecvQueue {
        RecvQueue {
            ring,
            held: None,
            partial: None,
            replies: VecDeque::new(),
            last_wqe_reported: false,
            spans: Vec::new(),
        }
    }

    pub(crate) fn reset(&mut self, srq: Option<&Srq>) {
        self.ring.reset();
        self.partial = None;
        if let (Some(held), Some(srq)) = (self.held.take(), srq) {
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
