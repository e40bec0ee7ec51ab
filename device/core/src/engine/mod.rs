//! What moves work: the requester half of a QP (`requester`), its responder half (`responder`), what work requests make
//! of memory regions (`fast_reg`) and who runs them when (`schedule`). The state of both halves is the QP's
//! (`objects/send_queue.rs`, `objects/recv_queue.rs`).
//!
//! `device` calls `run_qp` and `run_ready`, a transport `receive`, `answered` and their like, from any thread.
//!
//! Lock order: `sq` of a QP, then `rq` of a QP, then a CQ. A responder that fails its QP never takes a send
//! queue lock; it schedules the flush.

pub mod by_value;
pub mod fast_reg;
pub mod requester;
pub mod responder;
pub mod schedule;

use crate::budget::Budget;
use crate::clock::Clock;
use crate::handle::{CqHandle, Gid, PdHandle, QpHandle, Qpn};
use crate::interrupt::Interrupts;
use crate::memory::{Memory, Span};
use crate::objects::mr::Mr;
use crate::objects::qp::Qp;
use crate::objects::send_queue::SendQueue;
use crate::objects::table::Table;
use crate::rings::wqe::SgList;
use crate::transport::{DATAGRAM_MAX, Transport, Use};
use pvrdma_ffi::dev_api::{PVRDMA_QPS_ERR, PVRDMA_QPS_RESET};
use schedule::Schedule;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

/// Length of the GID table, in caps and port alike: Linux sizes its shadow table by one and indexes by the other.
pub const GID_TBL_LEN: u32 = 16;
/// Handles of user QPs start here: 0 reads as "none" for providers, 1 is the GSI QP.
const FIRST_QP: u32 = 2;
pub(crate) const MAX_QP: u32 = 32768;
pub(crate) const MAX_MR: u32 = 1 << 20;

/// What moves the work of one device: the objects that work requests and messages name, the addresses it answers to,
/// the ways to its guest and to its peers. The device above owns it and changes it by commands; nobody here knows of
/// that.
pub struct Engine {
    pub(crate) memory: Arc<dyn Memory>,
    pub(crate) interrupts: Arc<dyn Interrupts>,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) mrs: Table<Mr>,
    pub(crate) qps: Table<Qp>,
    pub(crate) gids: RwLock<[Option<Gid>; GID_TBL_LEN as usize]>,
    /// `PVRDMA_GID_TYPE_FLAG_ROCE_V1` or `_V2`.
    pub(crate) gid_type: u8,
    /// Longest payload of a datagram that leaves: one packet.
    datagram_max: u64,
    /// The link of port 1.
    pub(crate) up: AtomicBool,
    pub(crate) qkey_violations: AtomicU32,
    schedule: Schedule,
    clock: Clock,
    /// Read by whoever copies for a requester, written to wait for them (see `quiesce`).
    requesting: RwLock<()>,
    /// The same for responders.
    responding: RwLock<()>,
}

impl Engine {
    /// An engine without objects.
    pub(crate) fn new(
        memory: Arc<dyn Memory>,
        interrupts: Arc<dyn Interrupts>,
        transport: Arc<dyn Transport>,
        (gid_type, mtu): (u8, u32),
        budget: &Arc<Budget>,
        clock: Clock,
    ) -> Engine {
        Engine {
            memory,
            interrupts,
            transport,
            // Index 0 is left out: key 0 is never valid.
            mrs: Table::new(1, MAX_MR, budget),
            qps: Table::new(FIRST_QP, MAX_QP, budget),
            gids: RwLock::default(),
            gid_type,
            datagram_max: DATAGRAM_MAX.min(mtu.into()),
            up: AtomicBool::new(true),
            qkey_violations: AtomicU32::new(0),
            schedule: Schedule::default(),
            clock,
            requesting: RwLock::new(()),
            responding: RwLock::new(()),
        }
    }

    // ---- who runs when -------------------------------------------------------------------------

    /// Does whatever `qp` can do now, after whoever does it at present.
    pub(crate) fn run_qp(&self, qp: &Qp) {
        self.run_locked(qp, qp.lock_sq());
    }

    /// The same for a caller that must not wait: if another thread runs `qp`, or it has more to do than its turn
    /// allows, the rest is for whoever polls, and this is false. Who runs a queue of long messages takes the lock again
    /// as soon as it has let it go: to wait for the lock would be to wait for all of them.
    pub(crate) fn try_run_qp(&self, qp: &Qp) -> bool {
        match qp.try_lock_sq() {
            Some(sq) => self.run_locked(qp, sq),
            None => {
                self.run_soon(qp.handle);
                false
            }
        }
    }

    fn run_locked(&self, qp: &Qp, sq: MutexGuard<'_, SendQueue>) -> bool {
        let done = self.run_send_queue(qp, sq);
        if qp.state() == PVRDMA_QPS_ERR {
            self.flush_receives(qp);
        }
        done
    }

    /// Runs QPs that others left, for about `turn`, for a caller that must not wait: it stops at the first that is not
    /// done.
    pub(crate) fn run_some(&self, turn: Duration) {
        let begin = self.now();
        let mut now = begin;
        while now - begin <= turn {
            let Some(handle) = self.schedule.next(now) else { return };
            if self.qp(handle).is_some_and(|qp| !self.try_run_qp(&qp)) {
                return;
            }
            now = self.now();
        }
        self.interrupts.wake();
    }

    /// Runs QPs for about `turn`, so that those which keep each other busy do not keep the caller.
    pub(crate) fn run_ready(&self, turn: Duration) {
        let begin = self.now();
        let mut now = begin;
        while now - begin <= turn {
            let Some(handle) = self.schedule.next(now) else { return };
            if let Some(qp) = self.qp(handle) {
                self.run_qp(&qp);
            }
            now = self.now();
        }
        self.interrupts.wake();
    }

    pub(crate) fn now(&self) -> Instant {
        self.clock.now()
    }

    /// When `run_ready` will have something, if no one adds to it.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.schedule.deadline()
    }

    /// Nobody is to run any more: there are no QPs.
    pub(crate) fn forget_work(&self) {
        self.schedule.clear();
    }

    /// `qp` has work that its present stack cannot do.
    pub(crate) fn run_soon(&self, qp: QpHandle) {
        self.schedule.run_soon(qp);
        self.interrupts.wake();
    }

    /// A transport that was `Full` has room.
    pub fn room(&self) {
        if self.schedule.room() {
            self.interrupts.wake();
        }
    }

    /// How often the transport has said that it has room.
    pub(crate) fn rooms(&self) -> u64 {
        self.schedule.rooms()
    }

    /// `qp` waits for room, and had seen it come `rooms` times before it found none.
    pub(crate) fn wait_for_room(&self, qp: QpHandle, rooms: u64) {
        if self.schedule.wait_for_room(qp, rooms) {
            self.interrupts.wake();
        }
    }

    /// `qp` waits for `when`.
    pub(crate) fn run_at(&self, qp: QpHandle, when: Instant) {
        if self.schedule.run_at(qp, when) {
            self.interrupts.wake();
        }
    }

    /// A CQ takes no more: every QP that would complete there stops (IBA vol. 1, 11.6.3.2).
    pub(crate) fn cq_died(&self, cq: CqHandle) {
        let completes_there = |qp: &Qp| qp.send_cq.handle == cq || qp.recv_cq.handle == cq;
        for qp in self.qps.all().iter().filter(|qp| completes_there(qp)) {
            if qp.state() != PVRDMA_QPS_RESET {
                qp.set_state(PVRDMA_QPS_ERR);
                self.run_soon(qp.handle);
            }
        }
    }

    // ---- copies --------------------------------------------------------------------------------

    /// Held while the keys of an own request are checked and its bytes move.
    pub(crate) fn requesting(&self) -> RwLockReadGuard<'_, ()> {
        self.requesting.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same for a request of a peer.
    pub(crate) fn responding(&self) -> RwLockReadGuard<'_, ()> {
        self.responding.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until every copy that began before has ended.
    pub(crate) fn quiesce(&self) {
        drop(self.requesting.write().unwrap_or_else(PoisonError::into_inner));
        self.quiesce_responders();
    }

    /// The same for copies that peers asked for.
    pub(crate) fn quiesce_responders(&self) {
        drop(self.responding.write().unwrap_or_else(PoisonError::into_inner));
    }

    // ---- what requests and messages name -------------------------------------------------------

    pub(crate) fn qp(&self, handle: QpHandle) -> Option<Arc<Qp>> {
        self.qps.get(handle.0)
    }

    pub(crate) fn qp_by_number(&self, qpn: Qpn) -> Option<Arc<Qp>> {
        self.qps.get(qpn.0 & (MAX_QP - 1)).filter(|qp| qp.qpn == qpn)
    }

    pub(crate) fn mr(&self, handle: u32) -> Option<Arc<Mr>> {
        self.mrs.get(handle)
    }

    /// `mr` takes the place of the region with its handle. `false`: that was destroyed meanwhile.
    pub(crate) fn replace_mr(&self, mr: Mr) -> bool {
        self.mrs.replace(mr.handle.0, mr)
    }

    pub(crate) fn has_gid(&self, gid: &Gid) -> bool {
        self.gids.read().unwrap_or_else(PoisonError::into_inner).contains(&Some(*gid))
    }

    pub(crate) fn mr_by_key(&self, key: u32) -> Option<Arc<Mr>> {
        self.mrs.get(key >> 8).filter(|mr| mr.key == key)
    }

    /// Appends the places of bytes `[from, from + len)` of an SGE list to `spans`. False: a key, a range, a right or a
    /// PD is wrong, or the list is shorter. What `spans` holds then is of no use.
    pub(crate) fn resolve_sges(
        &self,
        pd: PdHandle,
        sg_list: &SgList,
        (from, len): (u64, u64),
        purpose: Use,
        spans: &mut Vec<Span>,
    ) -> bool {
        let (mut skip, mut left) = (from, len);
        for sge in sg_list.as_slice() {
            let lead = skip.min(u64::from(sge.len));
            skip -= lead;
            let here = left.min(u64::from(sge.len) - lead);
            if here == 0 {
                continue;
            }
            let resolved = sge.addr.checked_add(lead).is_some_and(|addr| {
                self.mr_by_key(sge.lkey.0).is_some_and(|mr| mr.resolve(pd, addr, here, purpose, spans))
            });
            if !resolved {
                return false;
            }
            left -= here;
        }
        left == 0
    }

    /// The GID at `index`.
    pub(crate) fn gid(&self, index: u32) -> Option<Gid> {
        self.gids.read().unwrap_or_else(PoisonError::into_inner).get(index as usize).copied().flatten()
    }

    pub(crate) fn port_is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    pub(crate) fn count_qkey_violation(&self) {
        self.qkey_violations.fetch_add(1, Ordering::Relaxed);
    }

    // ---- the way out ---------------------------------------------------------------------------

    pub(crate) fn memory(&self) -> &dyn Memory {
        &*self.memory
    }

    pub(crate) fn interrupts(&self) -> &dyn Interrupts {
        &*self.interrupts
    }

    pub(crate) fn transport(&self) -> &dyn Transport {
        &*self.transport
    }
}

/// Time of an RNR timer code in units of 10 us (IBA vol. 1, table 45).
const RNR_10US: [u32; 32] = [
    65536, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096,
    6144, 8192, 12288, 16384, 24576, 32768, 49152,
];

/// How long a requester waits after an RNR NAK with this code.
pub fn rnr_time(code: u8) -> Duration {
    Duration::from_micros(u64::from(RNR_10US[usize::from(code & 31)]) * 10)
}

/// Local ACK timeout: 4.096 us * 2^code; 0 means for ever (IBA vol. 1, 9.7.6.1.3).
pub fn ack_timeout(code: u8) -> Option<Duration> {
    (code != 0).then(|| Duration::from_nanos(4096 << (code & 31)))
}

/// Empties a scratch list that a long message made long: a guest chooses how many pieces its messages have, and there
/// are many QPs.
fn give_back_scratch(spans: &mut Vec<Span>) {
    spans.clear();
    spans.shrink_to(64);
}
