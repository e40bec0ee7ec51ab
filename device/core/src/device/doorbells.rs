//! Doorbells, and what else drives the device between commands. Nobody who rings is answered.

use super::Device;
use crate::doorbell::Doorbell;
use crate::handle::{CqHandle, CtxHandle, KERNEL};
use pvrdma_ffi::dev_api::PVRDMA_QPS_ERR;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

/// How long a doorbell runs work that others left, besides its own: its caller waits.
const DOORBELL_TURN: Duration = Duration::from_micros(100);
/// The same for `poll`, whose caller has nothing better to do.
const POLL_TURN: Duration = Duration::from_millis(2);

impl Device {
    /// A store to the doorbell page of `ctx`. A handle that names nothing of that context is ignored, as the
    /// real device has no way to answer; the kernel's page may name everything.
    pub fn doorbell(&self, ctx: CtxHandle, doorbell: Doorbell) {
        let owns = |owner: CtxHandle| ctx == KERNEL || owner == ctx;
        match doorbell {
            Doorbell::Qp { qp, send, .. } => {
                if let Some(qp) = self.engine.qp(qp).filter(|qp| owns(qp.ctx)) {
                    qp.renew_credit();
                    // The receive was posted before we look at the state; `Qp::set_state` has the other fence.
                    fence(Ordering::SeqCst);
                    // A receive is taken when a message needs it, so its doorbell matters only to a QP that flushes.
                    // Linux may publish sends and not ring for them: its doorbells have both rings looked at.
                    let looked_at = send || ctx == KERNEL || qp.state() == PVRDMA_QPS_ERR;
                    if looked_at && !self.engine.try_run_qp(&qp) {
                        // That was a whole turn, or would have been.
                        return;
                    }
                }
            }
            Doorbell::Cq { cq, arm, .. } => {
                if let Some(arm) = arm
                    && let Some(cq) = self.cqs.get(cq.0).filter(|cq| owns(cq.ctx))
                {
                    cq.arm(arm);
                }
            }
            // A receive is taken when a message needs it.
            Doorbell::Srq { .. } => {}
        }
        self.engine.run_some(DOORBELL_TURN);
    }

    /// CQ `cq` of `ctx` was polled; whether its consumer spins (`Cq::polled`).
    pub fn cq_polled(&self, ctx: CtxHandle, cq: CqHandle) -> bool {
        let owned = self.cqs.get(cq.0).filter(|cq| ctx == KERNEL || cq.ctx == ctx);
        owned.is_some_and(|cq| cq.polled())
    }

    /// Completions that were put into any CQ until now; wraps.
    pub fn completions(&self) -> u32 {
        self.puts.load(Ordering::Relaxed)
    }

    /// Whether CQ `cq` of `ctx` holds nothing for its consumer.
    pub fn cq_is_empty(&self, ctx: CtxHandle, cq: CqHandle) -> bool {
        let owned = self.cqs.get(cq.0).filter(|cq| ctx == KERNEL || cq.ctx == ctx);
        owned.is_none_or(|cq| cq.is_empty(&*self.engine.memory))
    }

    /// Runs what is due. Returns when to call again at the latest; `Interrupts::wake` may ask for it sooner.
    pub fn poll(&self) -> Option<Instant> {
        self.engine.run_ready(POLL_TURN);
        self.engine.deadline()
    }
}
