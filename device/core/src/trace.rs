//! What a trace says of doorbells, completions and events: the words that all fronts share, without allocation.
//!
//! A front writes them to its own file; `device/README.md` shows whole lines.

use crate::doorbell::{Arm, Doorbell};
use crate::handle::{CqHandle, Gid, QpHandle};
use crate::interrupt::AsyncEvent;
use crate::rings::cqe::Completion;
use crate::rings::wqe::Ext;
use crate::transport::Path;
use pvrdma_ffi::uapi::vmw_pvrdma as abi;
use std::fmt::{Display, Formatter, Result};
use std::net::Ipv6Addr;

/// A doorbell: `QP 2 SEND`, `CQ 0 ARM`.
pub struct DoorbellText(pub Doorbell);

impl Display for DoorbellText {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self.0 {
            Doorbell::Qp { qp, send, recv } => {
                let (send, recv) = (if send { " SEND" } else { "" }, if recv { " RECV" } else { "" });
                write!(f, "QP {}{send}{recv}", qp.0)
            }
            Doorbell::Cq { cq, arm, poll } => {
                let arm = match arm {
                    None => "",
                    Some(Arm::Any) => " ARM",
                    Some(Arm::Solicited) => " ARM_SOL",
                };
                write!(f, "CQ {}{arm}{}", cq.0, if poll { " POLL" } else { "" })
            }
            Doorbell::Srq { srq } => write!(f, "SRQ {} RECV", srq.0),
        }
    }
}

/// A completion: `CQE cq=0 qp=2 wr_id=0x1 RDMA_WRITE SUCCESS byte_len=0`.
pub struct CompletionText<'a>(pub CqHandle, pub &'a Completion);

impl Display for CompletionText<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let Completion { wr_id, qp, opcode, status, byte_len, ext, sender, vendor_err, .. } = *self.1;
        let (opcode, status, cq) = (opcode_name(opcode), status_name(status), self.0.0);
        write!(f, "CQE cq={cq} qp={} wr_id={wr_id:#x} {opcode} {status} byte_len={byte_len}", qp.0)?;
        match ext {
            Ext::None => {}
            Ext::Imm(imm) => write!(f, " imm={:#x}", u32::from_be(imm))?,
            Ext::Invalidate(rkey) => write!(f, " invalidated={:#x}", rkey.0)?,
        }
        if vendor_err != 0 {
            write!(f, " vendor_err={vendor_err:#x}")?;
        }
        match sender {
            Some(sender) => write!(f, " src_qp={:#x}", sender.qpn.0),
            None => Ok(()),
        }
    }
}

/// That an armed CQ fired: `EVENT COMPLETION cq=0`.
pub struct FiredText(pub CqHandle);

impl Display for FiredText {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "EVENT COMPLETION cq={}", self.0.0)
    }
}

/// An asynchronous event: `EVENT QP_FATAL qp=2`.
pub struct EventText(pub AsyncEvent);

impl Display for EventText {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let (name, object) = match self.0 {
            AsyncEvent::CqErr(_) => ("CQ_ERR", "cq"),
            AsyncEvent::QpFatal(_) => ("QP_FATAL", "qp"),
            AsyncEvent::QpReqErr(_) => ("QP_REQ_ERR", "qp"),
            AsyncEvent::QpAccessErr(_) => ("QP_ACCESS_ERR", "qp"),
            AsyncEvent::CommEst(_) => ("COMM_EST", "qp"),
            AsyncEvent::SqDrained(_) => ("SQ_DRAINED", "qp"),
            AsyncEvent::PortActive => ("PORT_ACTIVE", "port"),
            AsyncEvent::PortErr => ("PORT_ERR", "port"),
            AsyncEvent::DeviceFatal => ("DEVICE_FATAL", "device"),
            AsyncEvent::SrqErr(_) => ("SRQ_ERR", "srq"),
            AsyncEvent::SrqLimitReached(_) => ("SRQ_LIMIT_REACHED", "srq"),
            AsyncEvent::QpLastWqeReached(_) => ("QP_LAST_WQE_REACHED", "qp"),
        };
        write!(f, "EVENT {name} {object}={}", self.0.to_eqe().1)
    }
}

/// The way from a QP to a peer: `PATH qp=2 peer=::ffff:127.2.82.1 path=tcp host=2`.
pub struct PathText<'a>(pub QpHandle, pub &'a Gid, pub Path);

impl Display for PathText<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "PATH qp={} peer={} path={}", self.0.0, Ipv6Addr::from(*self.1), self.2)
    }
}

macro_rules! names {
    ($($(#[$doc:meta])* fn $name:ident($prefix:literal) { $($value:ident)* })*) => {$(
        $(#[$doc])*
        fn $name(value: u32) -> &'static str {
            match value {
                $(abi::$value => &stringify!($value)[$prefix.len()..],)*
                _ => "UNKNOWN",
            }
        }
    )*};
}

names! {
    /// What a completion is of, without the prefix.
    fn opcode_name("PVRDMA_WC_") {
        PVRDMA_WC_SEND PVRDMA_WC_RDMA_WRITE PVRDMA_WC_RDMA_READ PVRDMA_WC_COMP_SWAP PVRDMA_WC_FETCH_ADD
        PVRDMA_WC_BIND_MW PVRDMA_WC_LOCAL_INV PVRDMA_WC_FAST_REG_MR PVRDMA_WC_RECV PVRDMA_WC_RECV_RDMA_WITH_IMM
    }

    /// How it ended, without the prefix.
    fn status_name("PVRDMA_WC_") {
        PVRDMA_WC_SUCCESS PVRDMA_WC_LOC_LEN_ERR PVRDMA_WC_LOC_QP_OP_ERR PVRDMA_WC_LOC_EEC_OP_ERR
        PVRDMA_WC_LOC_PROT_ERR PVRDMA_WC_WR_FLUSH_ERR PVRDMA_WC_MW_BIND_ERR PVRDMA_WC_BAD_RESP_ERR
        PVRDMA_WC_LOC_ACCESS_ERR PVRDMA_WC_REM_INV_REQ_ERR PVRDMA_WC_REM_ACCESS_ERR PVRDMA_WC_REM_OP_ERR
        PVRDMA_WC_RETRY_EXC_ERR PVRDMA_WC_RNR_RETRY_EXC_ERR PVRDMA_WC_REM_ABORT_ERR PVRDMA_WC_FATAL_ERR
        PVRDMA_WC_RESP_TIMEOUT_ERR PVRDMA_WC_GENERAL_ERR
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handle::{QpHandle, SrqHandle};

    #[test]
    fn names_are_the_headers() {
        assert_eq!(opcode_name(129), "RECV_RDMA_WITH_IMM");
        assert_eq!((status_name(0), status_name(12), status_name(99)), ("SUCCESS", "RETRY_EXC_ERR", "UNKNOWN"));
    }

    #[test]
    fn doorbells_say_what_they_are_for() {
        let texts = [
            Doorbell::Qp { qp: QpHandle(2), send: true, recv: true },
            Doorbell::Cq { cq: CqHandle(0), arm: None, poll: true },
            Doorbell::Cq { cq: CqHandle(1), arm: Some(Arm::Solicited), poll: false },
            Doorbell::Srq { srq: SrqHandle(3) },
        ]
        .map(|doorbell| DoorbellText(doorbell).to_string());
        assert_eq!(texts, ["QP 2 SEND RECV", "CQ 0 POLL", "CQ 1 ARM_SOL", "SRQ 3 RECV"]);
    }
}
