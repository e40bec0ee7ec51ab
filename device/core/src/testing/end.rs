//! One end of a connection with everything it needs, and how two of them are brought together: what an application
//! does between `ibv_open_device` and its first message.

use super::driver::UD;
use super::driver::{Driver, Region};
use super::queue::{CqRing, QpRings, QpSize, RecvWr, SendWr, SrqRing, To};
use crate::command::{Command, CommandError, Response};
use crate::handle::{CtxHandle, Gid, PdHandle, QpHandle, Qpn};
use crate::transport::Endpoint;
use pvrdma_ffi::dev_api::*;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A QP with its own context, PD and CQs.
pub struct End {
    /// Its guest.
    pub driver: Arc<Driver>,
    /// Its context.
    pub ctx: CtxHandle,
    /// Its PD.
    pub pd: PdHandle,
    /// Completions of sends.
    pub send_cq: Arc<CqRing>,
    /// Completions of receives.
    pub recv_cq: Arc<CqRing>,
    /// The QP.
    pub qp: QpRings,
}

/// The attributes of a connection.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "fields carry the names of ibv_qp_attr")]
pub struct Path {
    pub access: u32,
    pub mtu: u32,
    /// First PSN, in both directions.
    pub psn: u32,
    pub timeout: u8,
    pub retry_cnt: u8,
    pub rnr_retry: u8,
    pub min_rnr_timer: u8,
    pub max_rd_atomic: u8,
}

impl Default for Path {
    fn default() -> Path {
        Path {
            access: super::driver::ALL_ACCESS,
            mtu: PVRDMA_MTU_1024,
            psn: 0x00ff_fffa,
            timeout: 12,
            retry_cnt: 2,
            rnr_retry: 2,
            min_rnr_timer: 1,
            max_rd_atomic: 4,
        }
    }
}

impl Path {
    /// Attributes and mask of RESET -> INIT.
    pub fn init(&self) -> (u32, pvrdma_qp_attr) {
        let mask = PVRDMA_QP_STATE | PVRDMA_QP_PKEY_INDEX | PVRDMA_QP_PORT | PVRDMA_QP_ACCESS_FLAGS;
        let attrs = pvrdma_qp_attr {
            qp_state: PVRDMA_QPS_INIT,
            port_num: 1,
            qp_access_flags: self.access,
            ..Default::default()
        };
        (mask, attrs)
    }

    /// Attributes and mask of INIT -> RTR.
    pub fn rtr(&self, peer: Endpoint) -> (u32, pvrdma_qp_attr) {
        let mask = PVRDMA_QP_STATE
            | PVRDMA_QP_AV
            | PVRDMA_QP_PATH_MTU
            | PVRDMA_QP_DEST_QPN
            | PVRDMA_QP_RQ_PSN
            | PVRDMA_QP_MAX_DEST_RD_ATOMIC
            | PVRDMA_QP_MIN_RNR_TIMER;
        let mut attrs = pvrdma_qp_attr {
            qp_state: PVRDMA_QPS_RTR,
            path_mtu: self.mtu,
            dest_qp_num: peer.qpn.0,
            rq_psn: self.psn,
            max_dest_rd_atomic: self.max_rd_atomic,
            min_rnr_timer: self.min_rnr_timer,
            ..Default::default()
        };
        attrs.ah_attr.grh.dgid = peer.gid;
        attrs.ah_attr.ah_flags = 1;
        attrs.ah_attr.port_num = 1;
        (mask, attrs)
    }

    /// Attributes and mask of RTR -> RTS.
    pub fn rts(&self) -> (u32, pvrdma_qp_attr) {
        let mask = PVRDMA_QP_STATE
            | PVRDMA_QP_TIMEOUT
            | PVRDMA_QP_RETRY_CNT
            | PVRDMA_QP_RNR_RETRY
            | PVRDMA_QP_SQ_PSN
            | PVRDMA_QP_MAX_QP_RD_ATOMIC;
        let attrs = pvrdma_qp_attr {
            qp_state: PVRDMA_QPS_RTS,
            timeout: self.timeout,
            retry_cnt: self.retry_cnt,
            rnr_retry: self.rnr_retry,
            sq_psn: self.psn,
            max_rd_atomic: self.max_rd_atomic,
            ..Default::default()
        };
        (mask, attrs)
    }

    /// The local ACK timeout as time.
    pub fn ack_timeout(&self) -> Duration {
        Duration::from_nanos(4096 << self.timeout)
    }
}

/// MODIFY_QP.
pub fn modify(driver: &Driver, qp: QpHandle, (mask, attrs): (u32, pvrdma_qp_attr)) -> Result<(), CommandError> {
    driver.command(Command::ModifyQp { qp, attr_mask: mask, attrs: Box::new(attrs) }).map(|_| ())
}

/// MODIFY_QP to a state that needs nothing else.
pub fn modify_state(driver: &Driver, qp: QpHandle, state: u32) -> Result<(), CommandError> {
    modify(driver, qp, (PVRDMA_QP_STATE, pvrdma_qp_attr { qp_state: state, ..Default::default() }))
}

/// From RESET to RTS, towards `peer`.
pub fn bring_up(driver: &Driver, qp: QpHandle, peer: Endpoint, path: &Path) {
    modify(driver, qp, path.init()).expect("INIT");
    modify(driver, qp, path.rtr(peer)).expect("RTR");
    modify(driver, qp, path.rts()).expect("RTS");
}

impl End {
    /// Its own context, PD and CQs of 1024 entries; the QP is in RESET.
    pub fn new(driver: &Arc<Driver>, size: QpSize) -> End {
        let ctx = driver.context();
        let (send_cq, recv_cq) = (driver.cq(ctx, 1024), driver.cq(ctx, 1024));
        End::with(driver, driver.pd(ctx), send_cq, recv_cq, size)
    }

    /// A QP on CQs that are there.
    pub fn with(driver: &Arc<Driver>, pd: PdHandle, send_cq: Arc<CqRing>, recv_cq: Arc<CqRing>, size: QpSize) -> End {
        let qp = driver.qp(pd, &send_cq, &recv_cq, size);
        End { driver: driver.clone(), ctx: send_cq.ctx, pd, send_cq, recv_cq, qp }
    }

    /// A QP on CQs that are there, which takes receives from `srq`.
    pub fn with_srq(
        driver: &Arc<Driver>,
        pd: PdHandle,
        (send_cq, recv_cq): (Arc<CqRing>, Arc<CqRing>),
        srq: &SrqRing,
        size: QpSize,
    ) -> End {
        let qp = driver.qp_of(super::driver::RC, Some(srq), pd, (&send_cq, &recv_cq), size);
        End { driver: driver.clone(), ctx: send_cq.ctx, pd, send_cq, recv_cq, qp }
    }

    /// A datagram QP on CQs that are there, in RTS, with this key; receives come from `srq` if there is one.
    pub fn ud(
        driver: &Arc<Driver>,
        pd: PdHandle,
        (send_cq, recv_cq): (Arc<CqRing>, Arc<CqRing>),
        srq: Option<&SrqRing>,
        size: QpSize,
        qkey: u32,
    ) -> End {
        let qp = driver.qp_of(UD, srq, pd, (&send_cq, &recv_cq), size);
        let end = End { driver: driver.clone(), ctx: send_cq.ctx, pd, send_cq, recv_cq, qp };
        end.bring_up_ud(qkey);
        end
    }

    /// From RESET to RTS, for a datagram QP.
    pub fn bring_up_ud(&self, qkey: u32) {
        let mask = PVRDMA_QP_STATE | PVRDMA_QP_PKEY_INDEX | PVRDMA_QP_PORT | PVRDMA_QP_QKEY;
        let init = pvrdma_qp_attr { qp_state: PVRDMA_QPS_INIT, port_num: 1, qkey, ..Default::default() };
        self.modify((mask, init)).expect("INIT");
        self.modify_state(PVRDMA_QPS_RTR).expect("RTR");
        let rts = pvrdma_qp_attr { qp_state: PVRDMA_QPS_RTS, sq_psn: 7, ..Default::default() };
        self.modify((PVRDMA_QP_STATE | PVRDMA_QP_SQ_PSN, rts)).expect("RTS");
    }

    /// Where this end's datagrams go when they are meant for `to`.
    pub fn av(&self, to: &End, qkey: u32) -> To {
        To {
            pd: self.pd,
            port_num: 1,
            dgid: to.driver.gid,
            gid_index: 0,
            qpn: to.qp.qpn,
            qkey,
            sl_tclass_flowlabel: 0,
            hop_limit: 64,
        }
    }

    /// Where peers find it.
    pub fn endpoint(&self) -> Endpoint {
        Endpoint { gid: self.driver.gid, qpn: self.qp.qpn }
    }

    /// A region that allows everything.
    pub fn region(&self, len: u64) -> Region {
        self.driver.region(self.pd, len)
    }

    /// Posts a send and rings.
    pub fn send(&self, wr: &SendWr) {
        assert!(self.qp.post_send(wr), "send ring full");
        self.qp.ring_send();
    }

    /// Posts a receive and rings.
    pub fn recv(&self, wr: &RecvWr) {
        assert!(self.qp.post_recv(wr), "receive ring full");
        self.qp.ring_recv();
    }

    /// MODIFY_QP.
    pub fn modify(&self, change: (u32, pvrdma_qp_attr)) -> Result<(), CommandError> {
        modify(&self.driver, self.qp.handle, change)
    }

    /// MODIFY_QP to a state that needs nothing else.
    pub fn modify_state(&self, state: u32) -> Result<(), CommandError> {
        modify_state(&self.driver, self.qp.handle, state)
    }

    /// From RESET to RTS, towards `peer`.
    pub fn bring_up(&self, peer: Endpoint, path: &Path) {
        bring_up(&self.driver, self.qp.handle, peer, path);
    }

    /// RESET, as an owner does it: the rings are zeroed afterwards.
    pub fn reset(&self) {
        self.modify_state(PVRDMA_QPS_RESET).expect("RESET");
        self.qp.zero_rings();
    }

    /// QUERY_QP.
    pub fn query(&self) -> pvrdma_qp_attr {
        match self.driver.command(Command::QueryQp { qp: self.qp.handle, attr_mask: 0 }) {
            Ok(Response::QueryQp(attrs)) => *attrs,
            other => panic!("QUERY_QP answered {other:?}"),
        }
    }

    /// DESTROY_QP.
    pub fn destroy(&self) {
        self.driver.command(Command::DestroyQp { qp: self.qp.handle }).expect("DESTROY_QP");
    }
}

/// Brings both ends to RTS, towards each other.
pub fn connect(a: &End, b: &End, path: &Path) {
    a.bring_up(b.endpoint(), path);
    b.bring_up(a.endpoint(), path);
}

/// An address where nobody is.
pub fn nowhere() -> Endpoint {
    let gid: Gid = [0xfd; 16];
    Endpoint { gid, qpn: Qpn(0x00ab_cdef) }
}

/// Polls the devices until none of them asks for it any more, or often enough: a QP that waits for a receive with a
/// short RNR timer lets its device never rest.
pub fn pump(drivers: &[&Driver]) {
    for driver in drivers {
        driver.device.poll();
    }
    for _ in 0..1000 {
        let woken: Vec<_> = drivers.iter().filter(|driver| driver.bell.take_wake()).collect();
        if woken.is_empty() {
            return;
        }
        for driver in woken {
            driver.device.poll();
        }
    }
}

/// Polls the devices in real time, when they ask for it and when their deadlines pass, until `done` or for `limit`.
/// Returns whether `done` was reached.
pub fn pump_until(drivers: &[&Driver], limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        let deadline = drivers.iter().filter_map(|driver| driver.device.poll()).min();
        pump(drivers);
        if done() {
            return true;
        }
        let now = Instant::now();
        if now >= end {
            return false;
        }
        let next = deadline.unwrap_or(end).min(end).min(now + Duration::from_millis(1));
        std::thread::sleep(next.saturating_duration_since(now));
    }
}
