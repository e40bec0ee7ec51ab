//! Payload that a transport carries by value: what leaves, piece by piece, and what comes back.
//!
//! Between two pieces nobody holds a place in the requester's memory. The keys of the work request are judged anew for
//! each, under the send queue's lock, so that a request which was taken back, or a region that was destroyed, is met by
//! the next piece and waits for nobody far away.

use crate::engine::{Engine, give_back_scratch};
use crate::memory::{Fault, Span};
use crate::objects::send_queue::{Owed, SendQueue, Stage};
use crate::rings::wqe::Operation;
use crate::transport::{Answer, Token, Use};

impl Engine {
    /// Copies the payload of a pending request, from its byte `offset` on, into `into`. False: nobody waits for it any
    /// more, or there is no such payload.
    pub fn payload(&self, token: Token, offset: u64, into: &mut [u8]) -> bool {
        let range = (offset, into.len() as u64);
        self.move_piece(token, range, Use::LocalRead, |spans| self.memory().gather(spans, into))
    }

    /// Takes in data that a READ or an atomic operation asked for: `bytes` from its byte `offset` on. False: nobody
    /// waits for them any more, or did not ask for them.
    pub fn arrived(&self, token: Token, offset: u64, bytes: &[u8]) -> bool {
        let range = (offset, bytes.len() as u64);
        self.move_piece(token, range, Use::LocalWrite, |spans| self.memory().scatter(spans, bytes))
    }

    fn move_piece(
        &self,
        token: Token,
        (offset, len): (u64, u64),
        purpose: Use,
        copy: impl FnOnce(&[Span]) -> Result<(), Fault>,
    ) -> bool {
        let Some(qp) = self.qp(token.qp) else { return false };
        {
            let mut queue = qp.lock_sq();
            let sq = &mut *queue;
            // Held over key check and copy: DESTROY_MR takes it to wait for them.
            let copying = self.requesting();
            let Some(index) = pending(sq, token) else { return false };
            let wr = &sq.owed[index].wr;
            let asked = wr.operation.is_ok_and(Operation::reads) == (purpose == Use::LocalWrite);
            let within = offset.checked_add(len).is_some_and(|end| end <= wr.sg_list.total());
            if !asked || !within {
                return false;
            }
            sq.spans.clear();
            let resolved = self.resolve_sges(qp.pd, &wr.sg_list, (offset, len), purpose, &mut sq.spans);
            let moved = resolved && copy(&sq.spans).is_ok();
            give_back_scratch(&mut sq.spans);
            if moved {
                return true;
            }
            drop(copying);
            let attrs = qp.attrs();
            // The transport need not say so: it ends here.
            self.transport().cancel(token);
            self.apply(&qp, sq, &attrs, index, Answer::RequesterFault);
        }
        self.run_qp(&qp);
        false
    }
}

/// Where the request is that `token` names, if its answer is owed.
pub fn pending(sq: &SendQueue, token: Token) -> Option<usize> {
    let asked = |owed: &Owed| owed.psn == token.psn && owed.submission == token.epoch;
    sq.owed.iter().position(|owed| asked(owed) && owed.stage == Stage::Pending)
}
