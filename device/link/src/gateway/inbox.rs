//! What guests of this host have sent and answered.

use crate::outbound::Requested;
use pvrdma_capture::recorder::Recorder;
use pvrdma_device::transport::segment::Segment as Piece;
use pvrdma_device::transport::{Answer, Far, Request, Token};
use pvrdma_fabric::gateway::NotCopied;
use pvrdma_fabric::taken::Taken;
use pvrdma_fabric::transport::{Deferred, HostTransport, Inbound};
use std::cell::RefCell;
use std::sync::Arc;

/// What was found in the inbox of the gateway's region.
#[derive(Default)]
pub struct Inbox {
    /// Answers to what other hosts have asked.
    pub answers: RefCell<Vec<(Token, Answer)>>,
    /// Requests that were taken over.
    pub requests: RefCell<Vec<Taken>>,
    /// Datagrams that were taken over, with their payload.
    pub datagrams: RefCell<Vec<(Taken, Vec<u8>)>>,
}

impl Inbound for Inbox {
    /// All that is one is taken over.
    fn receive(&self, _request: &Request, _far: &dyn Far) -> Answer {
        Answer::Silence
    }

    /// No guest sends pieces.
    fn receive_segment(&self, _segment: &Piece, _far: &dyn Far) -> Answer {
        Answer::Silence
    }

    fn answered(&self, token: Token, answer: Answer) {
        self.answers.borrow_mut().push((token, answer));
    }

    fn deferred(&self) -> Option<&dyn Deferred> {
        Some(self)
    }
}

impl Deferred for Inbox {
    fn take(&self, taken: Taken) {
        self.requests.borrow_mut().push(taken);
    }

    fn take_datagram(&self, taken: Taken, payload: &[u8]) {
        self.datagrams.borrow_mut().push((taken, payload.to_vec()));
    }
}

/// A request of a guest's process, in the slot that it was taken over in.
pub struct FromGuest {
    pub transport: Arc<HostTransport>,
    pub taken: Taken,
    /// Is told of it.
    pub recorder: Option<Arc<Recorder>>,
}

impl Requested for FromGuest {
    fn request(&self) -> &Request {
        &self.taken.request
    }

    fn is_forgotten(&self) -> bool {
        !self.transport.is_wanted(&self.taken)
    }

    fn payload(&self, offset: u64, into: &mut [u8]) -> bool {
        let fetched = self.transport.fetch(&self.taken, offset, into);
        if fetched == Err(NotCopied::Fault) {
            self.answer(Answer::RequesterFault);
        }
        if let Some(recorder) = self.recorder.as_ref().filter(|_| fetched.is_ok()) {
            recorder.payload(self.request(), offset, into);
        }
        fetched.is_ok()
    }

    fn arrived(&self, offset: u64, bytes: &[u8]) -> bool {
        let stored = self.transport.store(&self.taken, offset, bytes);
        if stored == Err(NotCopied::Fault) {
            self.answer(Answer::RequesterFault);
        }
        if let Some(recorder) = self.recorder.as_ref().filter(|_| stored.is_ok()) {
            recorder.arrived(self.request(), offset, bytes);
        }
        stored.is_ok()
    }

    fn answer(&self, answer: Answer) {
        if let Some(recorder) = &self.recorder {
            recorder.answered(self.request(), answer);
        }
        self.transport.give(&self.taken, answer);
    }
}
