//! What a QP has done, counted for whoever looks.
//!
//! Each word has one writer at a time: whoever has the queue locked, or carries a request out in its place. So nothing
//! here is a locked instruction, and nothing is ordered by it. A transport may keep the words where others see them
//! (`Transport::figures`).

use super::{Endpoint, Path};
use crate::handle::Qpn;
use crate::rings::wqe::QpKind;
use std::sync::atomic::{AtomicU64, Ordering};

/// Messages, and bytes of payload that they have moved, whichever way.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Tally {
    /// Those that were done to their end.
    pub messages: AtomicU64,
    /// See above.
    pub bytes: AtomicU64,
}

impl Tally {
    /// Bytes were moved; `ends`: and with them a message was done.
    #[inline]
    pub fn count(&self, bytes: u64, ends: bool) {
        bump(&self.messages, u64::from(ends));
        bump(&self.bytes, bytes);
    }

    /// What it is now.
    pub fn read(&self) -> Counted {
        Counted { messages: self.messages.load(Ordering::Relaxed), bytes: self.bytes.load(Ordering::Relaxed) }
    }

    /// From zero.
    pub fn clear(&self) {
        self.messages.store(0, Ordering::Relaxed);
        self.bytes.store(0, Ordering::Relaxed);
    }
}

/// The requester's half. In a cache line of its own: peers look at what stands beside the responder's.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct Sent {
    /// Requests of this QP that were done.
    pub done: Tally,
    /// How often its timer had it send again.
    pub resent: AtomicU64,
    /// How often its peer had no receive for it.
    pub rnr: AtomicU64,
}

impl Sent {
    pub(crate) fn again(&self) {
        bump(&self.resent, 1);
    }

    pub(crate) fn not_ready(&self) {
        bump(&self.rnr, 1);
    }

    /// From zero.
    pub fn clear(&self) {
        self.done.clear();
        self.resent.store(0, Ordering::Relaxed);
        self.rnr.store(0, Ordering::Relaxed);
    }
}

#[inline]
fn bump(word: &AtomicU64, by: u64) {
    word.store(word.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
}

/// Where the figures of a QP are kept.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    /// Of its own requests.
    pub sent: &'static Sent,
    /// Of its peer's.
    pub received: &'static Tally,
}

/// A [`Tally`] as it was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "as above")]
pub struct Counted {
    pub messages: u64,
    pub bytes: u64,
}

/// A QP, as somebody sees it who watches the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QpReport {
    /// Its number.
    pub qpn: Qpn,
    /// Its service type.
    pub kind: QpKind,
    /// `PVRDMA_QPS_*`.
    pub state: u32,
    /// Whom it talks to; a datagram QP talks to many.
    pub peer: Option<Endpoint>,
    /// The way there.
    pub path: Path,
    /// Requests of its own.
    pub sent: Counted,
    /// Requests of its peers.
    pub received: Counted,
    /// How often its timer had it send again.
    pub resent: u64,
    /// How often its peer had no receive for it.
    pub rnr: u64,
}
