//! Completion queues: put, arm, fire.

use crate::command::CommandError;
use crate::doorbell::Arm;
use crate::handle::{CqHandle, CtxHandle};
use crate::interrupt::{AsyncEvent, Interrupts};
use crate::memory::{Memory, PageTable};
use crate::rings::cqe::Completion;
use crate::rings::ring::{Geometry, Producer, state};
use pvrdma_ffi::uapi::vmw_pvrdma::{PVRDMA_PAGE_SIZE, pvrdma_cqe};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A completion queue.
#[derive(Debug)]
pub struct Cq {
    /// Number in doorbells.
    pub handle: CqHandle,
    /// Owner.
    pub ctx: CtxHandle,
    pages: PageTable,
    /// Completions ever put into any CQ of the device; wraps.
    puts: Arc<AtomicU32>,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    ring: Producer,
    armed: Option<Arm>,
    /// `Cq::puts` at the last POLL.
    puts_at_poll: u32,
    /// Overrun or broken: takes no more (IBA vol. 1, 11.6.3.2: CQ error is final).
    dead: bool,
}

/// The CQ cannot take completions any more; its QPs must go to ERR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeadCq;

impl Cq {
    /// Checks that `pages` hold the state page and `cqe` entries. `puts` is the count that all CQs of a device share.
    pub fn new(
        handle: CqHandle,
        ctx: CtxHandle,
        cqe: u32,
        pages: PageTable,
        puts: Arc<AtomicU32>,
    ) -> Result<Cq, CommandError> {
        let geometry = Geometry {
            slots: cqe,
            stride: size_of::<pvrdma_cqe>() as u32,
            base: PVRDMA_PAGE_SIZE as u64,
            tail_at: state::RX_PROD_TAIL,
            head_at: state::RX_CONS_HEAD,
        };
        if pages.len() < geometry.base + geometry.bytes() {
            return Err(CommandError::Invalid("CQ buffer shorter than its entries"));
        }
        let puts_at_poll = puts.load(Ordering::Relaxed);
        let inner = Inner { ring: Producer::new(geometry), armed: None, puts_at_poll, dead: false };
        Ok(Cq { handle, ctx, pages, puts, inner: Mutex::new(inner) })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes a completion and fires if armed for it.
    ///
    /// The arm word is looked at after the entry is published, under the lock that ARM takes: a consumer that
    /// arms and then polls once more either sees the entry or is notified.
    pub fn put(&self, completion: &Completion, memory: &dyn Memory, interrupts: &dyn Interrupts) -> Result<(), DeadCq> {
        let mut inner = self.lock();
        if inner.dead {
            return Err(DeadCq);
        }
        interrupts.completed(self.handle, completion);
        if inner.ring.put(&self.pages, memory, &completion.to_cqe()).is_err() {
            inner.dead = true;
            drop(inner);
            interrupts.async_event(AsyncEvent::CqErr(self.handle));
            return Err(DeadCq);
        }
        // Relaxed: it tells that there is news, and orders nothing.
        self.puts.fetch_add(1, Ordering::Relaxed);
        let fire = match inner.armed {
            Some(Arm::Any) => true,
            Some(Arm::Solicited) => completion.wakes_solicited(),
            None => false,
        };
        if fire {
            inner.armed = None;
        }
        drop(inner);
        if fire {
            interrupts.completion(self.handle);
        }
        Ok(())
    }

    /// Arms for one notification. ARM widens an earlier ARM_SOL; ARM_SOL does not narrow an earlier ARM.
    /// Entries already in the ring do not fire: the consumer polls again after arming.
    pub fn arm(&self, arm: Arm) {
        let mut inner = self.lock();
        if inner.armed != Some(Arm::Any) {
            inner.armed = Some(arm);
        }
    }

    /// The consumer polled. Whether it spins: nothing came since its last POLL, and it waits for no event either.
    /// A POLL also ends a poll that found less than it had room for; its caller has work to do and must not be held.
    /// Nor must one whose news lies in another CQ, which it polls next.
    pub fn polled(&self) -> bool {
        let mut inner = self.lock();
        let puts = self.puts.load(Ordering::Relaxed);
        let spins = inner.armed.is_none() && puts == inner.puts_at_poll;
        inner.puts_at_poll = puts;
        spins
    }

    /// Whether the consumer has taken every completion.
    pub fn is_empty(&self, memory: &dyn Memory) -> bool {
        self.lock().ring.is_empty(&self.pages, memory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handle::QpHandle;
    use crate::memory::{DmaAddr, Span};
    use crate::testing::{Bell, Ram};

    fn completion(solicited: bool, status: u32) -> Completion {
        Completion { wr_id: 7, qp: QpHandle(3), opcode: 128, status, solicited, ..Default::default() }
    }

    fn cq(ram: &Ram, cqe: u32) -> Cq {
        let pages = PageTable::Flat(Span { addr: DmaAddr(0), len: ram.len() });
        Cq::new(CqHandle(9), CtxHandle(1), cqe, pages, Arc::default()).unwrap()
    }

    #[test]
    fn fires_once_per_arm_and_only_for_what_was_asked() {
        let (ram, bell) = (Ram::new(8192), Bell::default());
        let cq = cq(&ram, 64);
        let put = |solicited, status| cq.put(&completion(solicited, status), &ram, &bell).unwrap();
        put(true, 0);
        assert_eq!(bell.completions(), 0, "not armed");
        cq.arm(Arm::Any);
        assert_eq!(bell.completions(), 0, "what is in the ring already does not fire");
        put(false, 0);
        put(false, 0);
        assert_eq!(bell.completions(), 1);
        cq.arm(Arm::Solicited);
        put(false, 0);
        assert_eq!(bell.completions(), 1, "not solicited");
        put(true, 0);
        assert_eq!(bell.completions(), 2);
        cq.arm(Arm::Solicited);
        put(false, 5);
        assert_eq!(bell.completions(), 3, "an error counts as solicited");
        cq.arm(Arm::Solicited);
        cq.arm(Arm::Any);
        cq.arm(Arm::Solicited);
        put(false, 0);
        assert_eq!(bell.completions(), 4, "ARM_SOL does not narrow ARM");
    }

    #[test]
    fn spins_only_who_has_no_news_in_any_cq() {
        let (ram, other_ram, bell) = (Ram::new(8192), Ram::new(8192), Bell::default());
        let polled = cq(&ram, 64);
        let other = Cq { puts: polled.puts.clone(), ..cq(&other_ram, 64) };
        assert!(polled.polled(), "nothing ever came");
        for (cq, ram) in [(&polled, &ram), (&other, &other_ram)] {
            cq.put(&completion(false, 0), ram, &bell).unwrap();
            assert!(!polled.polled());
            assert!(polled.polled(), "told once");
        }
        polled.arm(Arm::Any);
        assert!(!polled.polled(), "waits for an event");
    }

    #[test]
    fn overrun_is_one_event_and_final() {
        let (ram, bell) = (Ram::new(8192), Bell::default());
        let cq = cq(&ram, 2);
        cq.put(&completion(false, 0), &ram, &bell).unwrap();
        cq.put(&completion(false, 0), &ram, &bell).unwrap();
        assert_eq!(cq.put(&completion(false, 0), &ram, &bell), Err(DeadCq));
        assert_eq!(cq.put(&completion(false, 0), &ram, &bell), Err(DeadCq));
        assert_eq!(bell.events(), [AsyncEvent::CqErr(CqHandle(9))]);
    }

    #[test]
    fn short_buffer_is_refused() {
        let pages = PageTable::Flat(Span { addr: DmaAddr(0), len: 4096 + 64 });
        assert!(Cq::new(CqHandle(1), CtxHandle(1), 2, pages, Arc::default()).is_err());
    }
}
