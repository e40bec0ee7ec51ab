//! Queue pairs: the object, its attributes and the rules by which they change.

use crate::command::{CommandError, CreateQp};
use crate::handle::{CtxHandle, PdHandle, QpHandle, Qpn};
use crate::memory::PageTable;
use crate::objects::cq::Cq;
use crate::objects::recv_queue::{MAX_RD_ATOMIC, RecvQueue};
use crate::objects::send_queue::SendQueue;
use crate::objects::srq::Srq;
use crate::rings::ring::{Consumer, Geometry, state};
use crate::rings::wqe::{Grh, MAX_SGE, QpKind, rq_stride, sq_stride};
use crate::transport::figures::{Figures, Sent, Tally};
use crate::transport::{Endpoint, QpView};
use pvrdma_ffi::dev_api::*;
use pvrdma_ffi::uapi::vmw_pvrdma::{PVRDMA_ACCESS_REMOTE_ATOMIC, PVRDMA_ACCESS_REMOTE_READ, PVRDMA_PAGE_SIZE};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

/// A queue pair.
#[derive(Debug)]
pub struct Qp {
    /// Number in doorbells and CQEs.
    pub handle: QpHandle,
    /// Number for peers.
    pub qpn: Qpn,
    /// Owner.
    pub ctx: CtxHandle,
    /// Protection domain.
    pub pd: PdHandle,
    /// Service type.
    pub kind: QpKind,
    /// CQ of send completions.
    pub send_cq: Arc<Cq>,
    /// CQ of receive completions.
    pub recv_cq: Arc<Cq>,
    /// Where receives come from, if not from its own ring.
    pub srq: Option<Arc<Srq>>,
    /// Every send WR makes a CQE.
    pub sq_sig_all: bool,
    /// Limits of its rings.
    pub cap: pvrdma_qp_cap,
    /// Ring state page, SQ, RQ.
    pub pages: PageTable,
    state: AtomicU32,
    /// COMM_EST was raised in this life.
    established: AtomicBool,
    attrs: Mutex<Attrs>,
    /// Requester half. Taken before `rq`, never after.
    pub(crate) sq: Mutex<SendQueue>,
    /// Responder half.
    pub(crate) rq: Mutex<RecvQueue>,
    /// Expected PSN, when no transport keeps it elsewhere.
    own_expected_psn: AtomicU32,
    credit: Credit,
    shared_expected_psn: Option<&'static AtomicU32>,
    /// What it has done, when no transport keeps that elsewhere.
    own_sent: Sent,
    own_received: Tally,
    figures: Option<Figures>,
}

/// WQEs that may be taken from the rings of a QP before its owner does something again. A doorbell is good for a ring
/// full: more cannot wait. A guest whose completions, say, are written over its own counters has rings that fill
/// themselves, and would keep the device busy for ever without lifting a finger.
#[derive(Debug, Default)]
struct Credit {
    send: AtomicU32,
    recv: AtomicU32,
}

/// One less, if there is any. Both ends hold the queue's lock, except who renews: it comes after the WQEs it stands
/// for.
fn spend(credit: &AtomicU32) -> bool {
    credit.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
}

/// What MODIFY_QP sets.
#[derive(Clone, Copy, Debug, Default)]
pub struct Attrs {
    /// As the driver gave them, field by field as their mask bit came.
    pub raw: pvrdma_qp_attr,
    /// Local address: the GID at `sgid_index` when the QP went to RTR.
    pub local: Endpoint,
}

impl Attrs {
    /// Remote address.
    pub fn peer(&self) -> Endpoint {
        Endpoint { gid: self.raw.ah_attr.grh.dgid, qpn: Qpn(self.raw.dest_qp_num) }
    }

    /// What the address vector has for the headers of packets.
    fn grh(&self) -> Grh {
        let (ah, grh) = (&self.raw.ah_attr, &self.raw.ah_attr.grh);
        Grh {
            sl: ah.sl & 15,
            traffic_class: grh.traffic_class,
            flow_label: grh.flow_label & 0x000f_ffff,
            hop_limit: grh.hop_limit,
        }
    }

    /// Bytes of a packet's payload.
    pub fn mtu(&self) -> u64 {
        128 << self.raw.path_mtu.clamp(PVRDMA_MTU_256, PVRDMA_MTU_4096)
    }
}

impl Qp {
    /// Checks sizes and geometry. `expected_psn` and `figures` are the transport's words, if it has some.
    #[expect(clippy::too_many_arguments, reason = "one caller; a builder would only rename them")]
    pub fn new(
        handle: QpHandle,
        qpn: Qpn,
        ctx: CtxHandle,
        kind: QpKind,
        create: &CreateQp,
        pages: PageTable,
        (send_cq, recv_cq): (Arc<Cq>, Arc<Cq>),
        srq: Option<Arc<Srq>>,
        (expected_psn, figures): (Option<&'static AtomicU32>, Option<Figures>),
    ) -> Result<Qp, CommandError> {
        let send = Geometry {
            slots: create.max_send_wr,
            stride: sq_stride(create.max_send_sge),
            base: PVRDMA_PAGE_SIZE as u64,
            tail_at: state::TX_PROD_TAIL,
            head_at: state::TX_CONS_HEAD,
        };
        // With an SRQ there is no receive ring, whatever the driver says of it.
        let (max_recv_wr, max_recv_sge) =
            if srq.is_some() { (0, 0) } else { (create.max_recv_wr, create.max_recv_sge) };
        let recv = Geometry {
            slots: max_recv_wr,
            stride: rq_stride(max_recv_sge),
            base: (1 + u64::from(create.send_chunks)) * PVRDMA_PAGE_SIZE as u64,
            tail_at: state::RX_PROD_TAIL,
            head_at: state::RX_CONS_HEAD,
        };
        if send.base + send.bytes() > recv.base {
            return Err(CommandError::Invalid("send buffer shorter than its WQEs"));
        }
        if recv.base + recv.bytes() > pages.len() {
            return Err(CommandError::Invalid("receive buffer shorter than its WQEs"));
        }
        let cap = pvrdma_qp_cap {
            max_send_wr: create.max_send_wr,
            max_recv_wr,
            max_send_sge: create.max_send_sge,
            max_recv_sge,
            max_inline_data: 0,
            reserved: 0,
        };
        Ok(Qp {
            handle,
            qpn,
            ctx,
            pd: create.pd,
            kind,
            send_cq,
            recv_cq,
            srq,
            sq_sig_all: create.sq_sig_all,
            cap,
            pages,
            state: AtomicU32::new(PVRDMA_QPS_RESET),
            established: AtomicBool::new(false),
            attrs: Mutex::default(),
            sq: Mutex::new(SendQueue::new(Consumer::new(send))),
            rq: Mutex::new(RecvQueue::new(Consumer::new(recv))),
            own_expected_psn: AtomicU32::new(0),
            credit: Credit::default(),
            shared_expected_psn: expected_psn,
            own_sent: Sent::default(),
            own_received: Tally::default(),
            figures,
        })
    }

    /// Its owner rang or changed it: its rings may be looked at, each to its full length.
    pub(crate) fn renew_credit(&self) {
        self.credit.send.store(self.cap.max_send_wr, Ordering::Relaxed);
        self.credit.recv.store(self.cap.max_recv_wr, Ordering::Relaxed);
    }

    /// A send WQE is about to be taken.
    pub(crate) fn spend_send(&self) -> bool {
        spend(&self.credit.send)
    }

    /// A receive WQE is about to be flushed.
    pub(crate) fn spend_recv(&self) -> bool {
        spend(&self.credit.recv)
    }

    /// `PVRDMA_QPS_*`.
    pub fn state(&self) -> u32 {
        self.state.load(Ordering::Acquire)
    }

    /// The first message in RTR has come: `true` the first time in a life.
    pub(crate) fn establish(&self) -> bool {
        !self.established.swap(true, Ordering::Relaxed)
    }

    pub(crate) fn set_state(&self, state: u32) {
        if state == PVRDMA_QPS_RESET {
            self.established.store(false, Ordering::Relaxed);
        }
        self.state.store(state, Ordering::Release);
        // A flush looks at the receive ring after this; a doorbell looks at the state after its caller posted. With a
        // fence on both sides one of them sees the other's store.
        fence(Ordering::SeqCst);
    }

    /// A copy of the attributes.
    pub fn attrs(&self) -> Attrs {
        *self.lock_attrs()
    }

    pub(crate) fn lock_attrs(&self) -> MutexGuard<'_, Attrs> {
        self.attrs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn lock_sq(&self) -> MutexGuard<'_, SendQueue> {
        self.sq.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same if nobody has it, or only for a moment: most who do are done within that.
    pub(crate) fn try_lock_sq(&self) -> Option<MutexGuard<'_, SendQueue>> {
        /// About as long as it takes to put another thread to sleep and wake it.
        const LOOKS: u32 = 100;
        (0..LOOKS).find_map(|_| match self.sq.try_lock() {
            Ok(sq) => Some(sq),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => {
                std::hint::spin_loop();
                None
            }
        })
    }

    pub(crate) fn lock_rq(&self) -> MutexGuard<'_, RecvQueue> {
        self.rq.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The PSN its responder half expects next.
    pub fn expected_psn(&self) -> &AtomicU32 {
        self.shared_expected_psn.unwrap_or(&self.own_expected_psn)
    }

    /// What it has asked for. Counted with the send queue locked.
    pub fn sent(&self) -> &Sent {
        self.figures.map_or(&self.own_sent, |figures| figures.sent)
    }

    /// What it was asked for. Counted with the receive queue locked, or by a transport in its place.
    pub fn received(&self) -> &Tally {
        self.figures.map_or(&self.own_received, |figures| figures.received)
    }

    /// What a transport may know.
    pub fn view(&self) -> QpView {
        let attrs = self.attrs();
        let state = self.state();
        // Who is in RTR and has heard nothing yet is owed COMM_EST by the first message.
        let established = self.established.load(Ordering::Relaxed);
        let receives = matches!(state, PVRDMA_QPS_RTS | PVRDMA_QPS_SQD) || state == PVRDMA_QPS_RTR && established;
        let access = match attrs.raw.max_dest_rd_atomic {
            0 => attrs.raw.qp_access_flags & !(PVRDMA_ACCESS_REMOTE_READ | PVRDMA_ACCESS_REMOTE_ATOMIC),
            _ => attrs.raw.qp_access_flags,
        };
        QpView {
            handle: self.handle,
            kind: self.kind,
            state,
            placeable: receives && self.kind == QpKind::Rc,
            pd: self.pd,
            access,
            peer: attrs.peer(),
            grh: attrs.grh(),
            qpn: self.qpn,
            mtu: attrs.mtu() as u32,
        }
    }
}

/// Limits of CREATE_QP that do not depend on other objects.
pub fn check_create(create: &CreateQp, caps: &pvrdma_device_caps) -> Result<QpKind, CommandError> {
    let kind = match create.qp_type {
        PVRDMA_QPT_RC => QpKind::Rc,
        PVRDMA_QPT_UD => QpKind::Ud,
        PVRDMA_QPT_GSI => QpKind::Gsi,
        _ => return Err(CommandError::NotSupported("QP type")),
    };
    let wr_ok = |wr: u32| wr.is_power_of_two() && wr <= caps.max_qp_wr;
    if !wr_ok(create.max_send_wr) || create.srq.is_none() && !wr_ok(create.max_recv_wr) {
        return Err(CommandError::Invalid("max_send_wr or max_recv_wr"));
    }
    if create.max_send_sge > MAX_SGE as u32 || create.max_recv_sge > MAX_SGE as u32 {
        return Err(CommandError::Invalid("max_send_sge or max_recv_sge"));
    }
    Ok(kind)
}

/// Checks a MODIFY_QP and returns the state it leads to (IBA vol. 1, 11.2.5.2, in the form of the kernel's
/// transition table: required and optional attributes for each pair of states).
pub fn check_modify(kind: QpKind, from: u32, mask: u32, attrs: &pvrdma_qp_attr) -> Result<u32, CommandError> {
    use CommandError::Invalid;
    let to = if mask & PVRDMA_QP_STATE != 0 { attrs.qp_state } else { from };
    if mask & PVRDMA_QP_CUR_STATE != 0 && attrs.cur_qp_state != from {
        return Err(Invalid("cur_qp_state is not the current state"));
    }
    let rc = kind == QpKind::Rc;
    let path = PVRDMA_QP_ALT_PATH | PVRDMA_QP_PATH_MIG_STATE;
    let rts_optional = if rc {
        PVRDMA_QP_CUR_STATE | PVRDMA_QP_ACCESS_FLAGS | PVRDMA_QP_MIN_RNR_TIMER | path
    } else {
        PVRDMA_QP_CUR_STATE | PVRDMA_QP_QKEY
    };
    let init = match kind {
        QpKind::Rc => PVRDMA_QP_PKEY_INDEX | PVRDMA_QP_PORT | PVRDMA_QP_ACCESS_FLAGS,
        QpKind::Ud => PVRDMA_QP_PKEY_INDEX | PVRDMA_QP_PORT | PVRDMA_QP_QKEY,
        QpKind::Gsi => PVRDMA_QP_PKEY_INDEX | PVRDMA_QP_QKEY,
    };
    // The kernel names a port for its GSI QP too.
    let port = if rc { 0 } else { PVRDMA_QP_PORT };
    let (required, optional) = match (from, to) {
        (_, PVRDMA_QPS_RESET) => (0, 0),
        (PVRDMA_QPS_RESET, PVRDMA_QPS_ERR) => return Err(Invalid("no transition from RESET to ERR")),
        (_, PVRDMA_QPS_ERR) => (0, 0),
        (PVRDMA_QPS_RESET, PVRDMA_QPS_INIT) => (init, port),
        (PVRDMA_QPS_INIT, PVRDMA_QPS_INIT) => (0, init | PVRDMA_QP_PORT),
        (PVRDMA_QPS_INIT, PVRDMA_QPS_RTR) if rc => (
            PVRDMA_QP_AV
                | PVRDMA_QP_PATH_MTU
                | PVRDMA_QP_DEST_QPN
                | PVRDMA_QP_RQ_PSN
                | PVRDMA_QP_MAX_DEST_RD_ATOMIC
                | PVRDMA_QP_MIN_RNR_TIMER,
            PVRDMA_QP_ALT_PATH | PVRDMA_QP_ACCESS_FLAGS | PVRDMA_QP_PKEY_INDEX,
        ),
        (PVRDMA_QPS_INIT, PVRDMA_QPS_RTR) => (0, PVRDMA_QP_PKEY_INDEX | PVRDMA_QP_QKEY),
        (PVRDMA_QPS_RTR, PVRDMA_QPS_RTS) if rc => (
            PVRDMA_QP_TIMEOUT
                | PVRDMA_QP_RETRY_CNT
                | PVRDMA_QP_RNR_RETRY
                | PVRDMA_QP_SQ_PSN
                | PVRDMA_QP_MAX_QP_RD_ATOMIC,
            rts_optional,
        ),
        (PVRDMA_QPS_RTR, PVRDMA_QPS_RTS) => (PVRDMA_QP_SQ_PSN, rts_optional),
        (PVRDMA_QPS_RTS | PVRDMA_QPS_SQD, PVRDMA_QPS_RTS) => (0, rts_optional),
        (PVRDMA_QPS_SQE, PVRDMA_QPS_RTS) if !rc => (0, rts_optional),
        (PVRDMA_QPS_RTS, PVRDMA_QPS_SQD) => (0, PVRDMA_QP_EN_SQD_ASYNC_NOTIFY),
        (PVRDMA_QPS_SQD, PVRDMA_QPS_SQD) if rc => (
            0,
            PVRDMA_QP_PORT
                | PVRDMA_QP_AV
                | PVRDMA_QP_PKEY_INDEX
                | PVRDMA_QP_TIMEOUT
                | PVRDMA_QP_RETRY_CNT
                | PVRDMA_QP_RNR_RETRY
                | PVRDMA_QP_MIN_RNR_TIMER
                | PVRDMA_QP_MAX_QP_RD_ATOMIC
                | PVRDMA_QP_MAX_DEST_RD_ATOMIC
                | PVRDMA_QP_ACCESS_FLAGS
                | path,
        ),
        (PVRDMA_QPS_SQD, PVRDMA_QPS_SQD) => (0, PVRDMA_QP_PKEY_INDEX | PVRDMA_QP_QKEY),
        _ => return Err(Invalid("no such state transition")),
    };
    if mask & required != required {
        return Err(Invalid("a required attribute is missing"));
    }
    if mask & !(required | optional | PVRDMA_QP_STATE) != 0 {
        return Err(Invalid("an attribute that this transition does not take"));
    }
    let given = |bit: u32| mask & bit != 0;
    if given(PVRDMA_QP_PORT) && attrs.port_num != 1
        || given(PVRDMA_QP_PKEY_INDEX) && attrs.pkey_index != 0
        || given(PVRDMA_QP_PATH_MTU) && !(PVRDMA_MTU_256..=PVRDMA_MTU_4096).contains(&attrs.path_mtu)
        || given(PVRDMA_QP_MIN_RNR_TIMER) && attrs.min_rnr_timer > 31
        || given(PVRDMA_QP_TIMEOUT) && attrs.timeout > 31
        || given(PVRDMA_QP_RETRY_CNT) && attrs.retry_cnt > 7
        || given(PVRDMA_QP_RNR_RETRY) && attrs.rnr_retry > 7
        || given(PVRDMA_QP_DEST_QPN) && attrs.dest_qp_num > 0x00ff_ffff
        || given(PVRDMA_QP_MAX_QP_RD_ATOMIC) && attrs.max_rd_atomic > MAX_RD_ATOMIC
        || given(PVRDMA_QP_MAX_DEST_RD_ATOMIC) && attrs.max_dest_rd_atomic > MAX_RD_ATOMIC
    {
        return Err(Invalid("an attribute is out of range"));
    }
    Ok(to)
}

/// Copies the fields that `mask` names.
pub fn merge(into: &mut pvrdma_qp_attr, from: &pvrdma_qp_attr, mask: u32) {
    macro_rules! take {
        ($($bit:ident => $($field:ident),+;)*) => {$(
            if mask & $bit != 0 {
                $(into.$field = from.$field;)+
            }
        )*};
    }
    take! {
        PVRDMA_QP_EN_SQD_ASYNC_NOTIFY => en_sqd_async_notify;
        PVRDMA_QP_ACCESS_FLAGS => qp_access_flags;
        PVRDMA_QP_PKEY_INDEX => pkey_index;
        PVRDMA_QP_PORT => port_num;
        PVRDMA_QP_QKEY => qkey;
        PVRDMA_QP_AV => ah_attr;
        PVRDMA_QP_PATH_MTU => path_mtu;
        PVRDMA_QP_TIMEOUT => timeout;
        PVRDMA_QP_RETRY_CNT => retry_cnt;
        PVRDMA_QP_RNR_RETRY => rnr_retry;
        PVRDMA_QP_RQ_PSN => rq_psn;
        PVRDMA_QP_MAX_QP_RD_ATOMIC => max_rd_atomic;
        PVRDMA_QP_ALT_PATH => alt_ah_attr, alt_pkey_index, alt_port_num, alt_timeout;
        PVRDMA_QP_MIN_RNR_TIMER => min_rnr_timer;
        PVRDMA_QP_SQ_PSN => sq_psn;
        PVRDMA_QP_MAX_DEST_RD_ATOMIC => max_dest_rd_atomic;
        PVRDMA_QP_PATH_MIG_STATE => path_mig_state;
        PVRDMA_QP_DEST_QPN => dest_qp_num;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RTR: u32 = PVRDMA_QP_STATE
        | PVRDMA_QP_AV
        | PVRDMA_QP_PATH_MTU
        | PVRDMA_QP_DEST_QPN
        | PVRDMA_QP_RQ_PSN
        | PVRDMA_QP_MAX_DEST_RD_ATOMIC
        | PVRDMA_QP_MIN_RNR_TIMER;

    fn attrs(state: u32) -> pvrdma_qp_attr {
        pvrdma_qp_attr { qp_state: state, path_mtu: PVRDMA_MTU_1024, port_num: 1, ..Default::default() }
    }

    #[test]
    fn every_required_attribute_is_required() {
        let check = |mask| check_modify(QpKind::Rc, PVRDMA_QPS_INIT, mask, &attrs(PVRDMA_QPS_RTR));
        assert_eq!(check(RTR), Ok(PVRDMA_QPS_RTR));
        for bit in (1..21).map(|n| 1 << n).filter(|bit| RTR & bit != 0) {
            assert!(check(RTR & !bit).is_err(), "without {bit:#x}");
        }
        assert!(check(RTR | PVRDMA_QP_QKEY).is_err(), "qkey is not for RC");
    }

    #[test]
    fn illegal_transitions_are_refused() {
        let check = |from, to| check_modify(QpKind::Rc, from, PVRDMA_QP_STATE, &attrs(to));
        for (from, to) in [
            (PVRDMA_QPS_RESET, PVRDMA_QPS_ERR),
            (PVRDMA_QPS_RESET, PVRDMA_QPS_RTR),
            (PVRDMA_QPS_RTR, PVRDMA_QPS_RTR),
            (PVRDMA_QPS_RTR, PVRDMA_QPS_INIT),
            (PVRDMA_QPS_ERR, PVRDMA_QPS_RTS),
            (PVRDMA_QPS_RTS, PVRDMA_QPS_SQE),
            (PVRDMA_QPS_INIT, 7),
        ] {
            assert!(check(from, to).is_err(), "{from} -> {to}");
        }
        for from in PVRDMA_QPS_RESET..=PVRDMA_QPS_ERR {
            assert_eq!(check(from, PVRDMA_QPS_RESET), Ok(PVRDMA_QPS_RESET));
        }
    }

    #[test]
    fn a_claimed_current_state_must_be_true() {
        let mask = PVRDMA_QP_STATE | PVRDMA_QP_CUR_STATE;
        let mut claim = attrs(PVRDMA_QPS_RTS);
        claim.cur_qp_state = PVRDMA_QPS_RTS;
        assert!(check_modify(QpKind::Rc, PVRDMA_QPS_SQD, mask, &claim).is_err());
        assert_eq!(check_modify(QpKind::Rc, PVRDMA_QPS_RTS, mask, &claim), Ok(PVRDMA_QPS_RTS));
        // Nor is it an attribute of every step.
        let step = pvrdma_qp_attr { cur_qp_state: PVRDMA_QPS_RTS, ..attrs(PVRDMA_QPS_ERR) };
        assert!(check_modify(QpKind::Rc, PVRDMA_QPS_RTS, mask, &step).is_err());
    }
}
