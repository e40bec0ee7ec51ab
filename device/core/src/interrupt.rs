//! What the device tells its front without being asked.

use crate::handle::{CqHandle, Gid, QpHandle, SrqHandle};
use crate::rings::cqe::Completion;
use crate::transport::Path;

/// An asynchronous event, as it stands in the event ring (`pvrdma_eqe`); numbers equal `IBV_EVENT_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AsyncEvent {
    /// The CQ overran or its ring is broken (IBV_EVENT_CQ_ERR).
    CqErr(CqHandle),
    /// The QP went to ERR by itself (IBV_EVENT_QP_FATAL).
    QpFatal(QpHandle),
    /// An invalid request reached the QP (IBV_EVENT_QP_REQ_ERR).
    QpReqErr(QpHandle),
    /// A remote access violation on the QP (IBV_EVENT_QP_ACCESS_ERR).
    QpAccessErr(QpHandle),
    /// First message on a QP in RTR (IBV_EVENT_COMM_EST).
    CommEst(QpHandle),
    /// The send queue drained after RTS -> SQD (IBV_EVENT_SQ_DRAINED).
    SqDrained(QpHandle),
    /// Port 1 came up (IBV_EVENT_PORT_ACTIVE).
    PortActive,
    /// Port 1 went down (IBV_EVENT_PORT_ERR).
    PortErr,
    /// The device cannot go on (IBV_EVENT_DEVICE_FATAL).
    DeviceFatal,
    /// The ring of the SRQ is broken (IBV_EVENT_SRQ_ERR).
    SrqErr(SrqHandle),
    /// The SRQ fell below its limit (IBV_EVENT_SRQ_LIMIT_REACHED).
    SrqLimitReached(SrqHandle),
    /// No more receives will be taken from the SRQ by this QP (IBV_EVENT_QP_LAST_WQE_REACHED).
    QpLastWqeReached(QpHandle),
}

impl AsyncEvent {
    /// `(type, info)` of the event ring entry (`pvrdma_eqe`).
    pub fn to_eqe(self) -> (u32, u32) {
        match self {
            AsyncEvent::CqErr(cq) => (0, cq.0),
            AsyncEvent::QpFatal(qp) => (1, qp.0),
            AsyncEvent::QpReqErr(qp) => (2, qp.0),
            AsyncEvent::QpAccessErr(qp) => (3, qp.0),
            AsyncEvent::CommEst(qp) => (4, qp.0),
            AsyncEvent::SqDrained(qp) => (5, qp.0),
            AsyncEvent::DeviceFatal => (8, 0),
            AsyncEvent::PortActive => (9, 1),
            AsyncEvent::PortErr => (10, 1),
            AsyncEvent::SrqErr(srq) => (14, srq.0),
            AsyncEvent::SrqLimitReached(srq) => (15, srq.0),
            AsyncEvent::QpLastWqeReached(qp) => (16, qp.0),
        }
    }
}

/// The way from the device to whoever drives it. Called with no lock of the device held except that of the
/// object's queue, so an implementation must not call back into the device.
pub trait Interrupts: Send + Sync {
    /// An armed CQ fired.
    fn completion(&self, cq: CqHandle);
    /// Something happened that no completion tells.
    fn async_event(&self, event: AsyncEvent);
    /// A completion goes into the ring of a CQ. For a trace: called under the CQ's lock, before the consumer can see
    /// it.
    fn completed(&self, _cq: CqHandle, _completion: &Completion) {}
    /// The way from a QP to a peer is another one than before, or a datagram QP has its first one for that address. For
    /// a trace: called with the send queue locked.
    fn path(&self, _qp: QpHandle, _peer: &Gid, _path: Path) {}
    /// Whether it is told of the paths of datagrams too.
    fn wants_paths(&self) -> bool {
        false
    }
    /// There is work for `Device::poll`, or its next deadline came closer: have it called soon, from another stack.
    fn wake(&self);
}
