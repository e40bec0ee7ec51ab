//! Requests that leave the host, and those that come from other hosts: the fabric as the process sees it that carries
//! them, the *gateway*.
//!
//! To the processes of the host it is one more process: what they have for another host goes into its inbox, and what
//! comes from there into theirs. It differs in two things. It answers later, when the other host has: a request that it
//! takes over is a [`Taken`]. And it hands in pieces of messages, since a message as a whole is too long to be carried.
//!
//! A slot that is taken over stays `TAKEN`; there is no state for "sent". Its owner takes it back at any time and waits
//! only for a copy that runs (`hazard.rs`), never for the other host: before each copy the gateway shows a hazard and
//! then looks at the slot's word.
//!
//! What the gateway has for a process is told it by [`HostTransport::ring_all`]: a bell costs more than what it tells.

use crate::copy::{Direction, Gone, RemoteFar, span_of, span_of_mut};
use crate::hazard::Hazard;
use crate::segment::{Process, Route};
use crate::sync::Ordering;
use crate::taken::Taken;
use crate::transport::{Body, HostTransport, answer_slot, read};
use crate::words::{encode, encode_segment};
use pvrdma_device::memory::{Span, part_of, total};
use pvrdma_device::transport::segment::Carried;
use pvrdma_device::transport::{Answer, Endpoint, Request, Submitted, Token};

/// How a copy of a part of a payload ended that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotCopied {
    /// Nobody waits for the request any more.
    Gone,
    /// The requester's memory cannot be read or written.
    Fault,
}

impl HostTransport {
    /// Takes over a request whose slot was just taken. `None`: what is in the slot is none.
    pub(crate) fn take(&self, requester: Process, slot: u16, word: u64) -> Option<Taken> {
        let (carried, spans, count) = read(self.segment.region(requester.index)?.slots.get(usize::from(slot))?, word)?;
        let Carried::Whole(request) = carried else { return None };
        Some(Taken { requester, slot, word, spans: spans[..count].to_vec(), request })
    }

    /// Whether the requester still waits.
    pub fn is_wanted(&self, taken: &Taken) -> bool {
        let slot =
            self.segment.region(taken.requester.index).and_then(|region| region.slots.get(usize::from(taken.slot)));
        self.segment.has_its_pid(taken.requester)
            && slot.is_some_and(|slot| slot.word.load(Ordering::SeqCst) == taken.word)
    }

    /// Answers. The requester is told when its bell is rung.
    pub fn give(&self, taken: &Taken, answer: Answer) {
        let Some(region) = self.segment.region(taken.requester.index) else { return };
        // The words of a region that has another owner are none of its former one's.
        if self.segment.process(taken.requester.index) == Some(taken.requester)
            && let Some(slot) = region.slots.get(usize::from(taken.slot))
        {
            answer_slot(&slot.word, taken.word, answer);
            self.ring_later(taken.requester.index);
        }
    }

    fn ring_later(&self, index: usize) {
        self.to_ring[index / 64].fetch_or(1 << (index % 64), Ordering::Relaxed);
    }

    /// Rings the bell of each process that was given something.
    pub fn ring_all(&self) {
        for (at, word) in self.to_ring.iter().enumerate() {
            let mut bits = if word.load(Ordering::Relaxed) == 0 { 0 } else { word.swap(0, Ordering::Relaxed) };
            while bits != 0 {
                let index = at * 64 + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                if let Some(region) = self.segment.region(index) {
                    region.bell.ring();
                }
            }
        }
    }

    /// Copies the payload, from byte `offset` on. One thread at a time does this, the one that empties the inbox.
    pub fn fetch(&self, taken: &Taken, offset: u64, into: &mut [u8]) -> Result<(), NotCopied> {
        self.copy_piece(taken, offset, span_of_mut(into), Direction::Read)
    }

    /// Writes what was read for the request, from byte `offset` of it on. As [`HostTransport::fetch`].
    pub fn store(&self, taken: &Taken, offset: u64, bytes: &[u8]) -> Result<(), NotCopied> {
        self.copy_piece(taken, offset, span_of(bytes), Direction::Write)
    }

    fn copy_piece(&self, taken: &Taken, offset: u64, here: Span, direction: Direction) -> Result<(), NotCopied> {
        let there = part_of(&taken.spans, offset, here.len);
        if total(&there) != here.len {
            return Err(NotCopied::Fault);
        }
        let leave = || {
            let hazard = Hazard::of_inbox(&self.segment, taken.requester);
            if self.is_wanted(taken) { Ok(hazard) } else { Err(Gone) }
        };
        let memory = RemoteFar { pid: self.segment.reach(taken.requester), spans: &there, leave: Some(&leave) };
        match memory.copy(direction, &[here], &there) {
            Ok(true) => Ok(()),
            Ok(false) => Err(NotCopied::Gone),
            Err(()) => Err(NotCopied::Fault),
        }
    }

    /// Hands in a message of another host, or a piece of one; `Inbound::answered` follows if it is pending. `local` is
    /// where its payload is in this process, or is to be put.
    pub fn hand_in(&self, token: Token, carried: &Carried, local: &[Span]) -> Submitted {
        let (dest, words) = match carried {
            Carried::Whole(request) => (&request.dest, encode(request)),
            Carried::Segment(segment) => (&segment.dest, encode_segment(segment)),
        };
        let Some(target) = self.guest_target(dest) else { return Submitted::Answered(Answer::Silence) };
        self.ring_later(target.index);
        self.post(token, &words, target, Body::Spans(local))
    }

    /// Carries a one-sided request out here and now, without its target, if that may be done. Nothing of its QP is on
    /// its way. `rest`: bytes from its beginning to the end of the message that it is a piece of.
    pub fn place_alone(&self, request: &Request, local: &[Span], rest: u64) -> Option<Answer> {
        self.place(&Request { alone: true, ..*request }, self.guest_target(&request.dest)?, local, rest)
    }

    /// The process of a guest that something is for; the gateway is none.
    fn guest_target(&self, dest: &Endpoint) -> Option<Process> {
        self.target(dest).filter(|target| target.index != self.segment.index())
    }

    /// Hands in a datagram from another host. `false`: its target has no room for it now.
    pub fn submit_datagram(&self, request: &Request, payload: &[u8]) -> bool {
        self.segment.route(&request.dest.gid) != Route::Here
            || self.deliver_datagram(request, payload) != Submitted::Busy
    }
}
