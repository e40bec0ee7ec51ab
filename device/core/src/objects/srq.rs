//! Shared receive queues: one ring that many QPs take from, and the limit below which its owner wants to hear.

use crate::command::CommandError;
use crate::handle::{CtxHandle, PdHandle, SrqHandle};
use crate::interrupt::{AsyncEvent, Interrupts};
use crate::memory::{Memory, PageTable};
use crate::rings::ring::{BrokenRing, Consumer, Geometry, state};
use crate::rings::wqe::{Receive, rq_stride};
use pvrdma_ffi::uapi::vmw_pvrdma::PVRDMA_PAGE_SIZE;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Most WQEs that wait to be given out a second time.
const RETURNED: usize = 64;
/// Bytes that hang on an SRQ beside its page list.
pub(crate) const SRQ_EXTRA: u64 = (RETURNED * size_of::<Receive>()) as u64;

/// A shared receive queue.
#[derive(Debug)]
pub struct Srq {
    /// Number in doorbells.
    pub handle: SrqHandle,
    /// Owner.
    pub ctx: CtxHandle,
    /// Protection domain.
    pub pd: PdHandle,
    /// WQEs it has room for.
    pub max_wr: u32,
    /// SGEs of a WQE.
    pub max_sge: u32,
    pages: PageTable,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    ring: Consumer,
    /// Taken by QPs that were reset or destroyed before a message came: next in turn. Each of them had one.
    returned: VecDeque<Receive>,
    /// 0: not armed.
    limit: u32,
    /// SRQ_ERR was raised.
    broken: bool,
}

impl Srq {
    /// Checks that `pages` hold the state page and `max_wr` WQEs. Counts have been judged by the caller.
    pub fn new(
        handle: SrqHandle,
        ctx: CtxHandle,
        pd: PdHandle,
        (max_wr, max_sge, limit): (u32, u32, u32),
        pages: PageTable,
    ) -> Result<Srq, CommandError> {
        let geometry = Geometry {
            slots: max_wr,
            stride: rq_stride(max_sge),
            base: PVRDMA_PAGE_SIZE as u64,
            tail_at: state::RX_PROD_TAIL,
            head_at: state::RX_CONS_HEAD,
        };
        if pages.len() < geometry.base + geometry.bytes() {
            return Err(CommandError::Invalid("SRQ buffer shorter than its WQEs"));
        }
        let inner = Inner { ring: Consumer::new(geometry), returned: VecDeque::new(), limit, broken: false };
        Ok(Srq { handle, ctx, pd, max_wr, max_sge, pages, inner: Mutex::new(inner) })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the oldest WQE out: it is the caller's to end. Its slot is free again at once, because QPs end their
    /// receives in no order that the ring could follow.
    pub fn take(&self, memory: &dyn Memory, interrupts: &dyn Interrupts) -> Result<Option<Receive>, BrokenRing> {
        let mut inner = self.lock();
        let taken = self.take_from(&mut inner, memory);
        let event = match taken {
            Err(BrokenRing) if !inner.broken => {
                inner.broken = true;
                Some(AsyncEvent::SrqErr(self.handle))
            }
            Ok(Some((_, left))) if left < inner.limit => {
                // One event for each time it is armed (IBA vol. 1, 10.2.9.5).
                inner.limit = 0;
                Some(AsyncEvent::SrqLimitReached(self.handle))
            }
            _ => None,
        };
        drop(inner);
        if let Some(event) = event {
            interrupts.async_event(event);
        }
        taken.map(|taken| taken.map(|(receive, _)| receive))
    }

    /// A WQE that was taken and not used. More than `RETURNED` of them are lost: a guest that brings that about is up
    /// to something.
    pub fn put_back(&self, receive: Receive) {
        let mut inner = self.lock();
        if inner.returned.len() < RETURNED {
            inner.returned.push_back(receive);
        }
    }

    /// The oldest WQE and how many are left.
    fn take_from(&self, inner: &mut Inner, memory: &dyn Memory) -> Result<Option<(Receive, u32)>, BrokenRing> {
        if let Some(receive) = inner.returned.pop_front() {
            let left = inner.ring.posted(&self.pages, memory)? + inner.returned.len() as u32;
            return Ok(Some((receive, left)));
        }
        let Some(at) = inner.ring.peek(&self.pages, memory)? else { return Ok(None) };
        let receive = Receive::read(at, self.max_sge, &self.pages, memory)?;
        inner.ring.take();
        inner.ring.release(&self.pages, memory)?;
        let left = inner.ring.posted(&self.pages, memory)?;
        Ok(Some((receive, left)))
    }

    /// Arms the limit event; 0 disarms.
    pub fn set_limit(&self, limit: u32) -> Result<(), CommandError> {
        if limit > self.max_wr {
            return Err(CommandError::Invalid("srq_limit above max_wr"));
        }
        self.lock().limit = limit;
        Ok(())
    }

    /// The armed limit, or 0.
    pub fn limit(&self) -> u32 {
        self.lock().limit
    }
}
