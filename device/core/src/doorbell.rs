//! Doorbells: a 4-byte store to a UAR page, decoded once and checked.

use crate::handle::{CqHandle, QpHandle, SrqHandle};
use pvrdma_ffi::uapi::vmw_pvrdma as abi;

/// What a CQ doorbell asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arm {
    /// Notify on the next completion (`PVRDMA_UAR_CQ_ARM`).
    Any,
    /// Notify on the next solicited or failed completion (`PVRDMA_UAR_CQ_ARM_SOL`).
    Solicited,
}

/// A decoded doorbell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the variants' text says it")]
pub enum Doorbell {
    /// New entries in the SQ and/or RQ of a QP.
    Qp { qp: QpHandle, send: bool, recv: bool },
    /// Arm a CQ and/or flush what is completed into its ring now.
    Cq { cq: CqHandle, arm: Option<Arm>, poll: bool },
    /// New entries in an SRQ.
    Srq { srq: SrqHandle },
}

impl Doorbell {
    /// Decodes a store of `value` at `offset` within a UAR page (vmw_pvrdma-abi.h: `PVRDMA_UAR_*`).
    /// `None`: no register there, or no action bit set; the device ignores it.
    pub fn decode(offset: usize, value: u32) -> Option<Doorbell> {
        let handle = value & abi::PVRDMA_UAR_HANDLE_MASK;
        match offset {
            abi::PVRDMA_UAR_QP_OFFSET => {
                let (send, recv) = (value & abi::PVRDMA_UAR_QP_SEND != 0, value & abi::PVRDMA_UAR_QP_RECV != 0);
                (send || recv).then_some(Doorbell::Qp { qp: QpHandle(handle), send, recv })
            }
            abi::PVRDMA_UAR_CQ_OFFSET => {
                let arm = if value & abi::PVRDMA_UAR_CQ_ARM != 0 {
                    Some(Arm::Any)
                } else if value & abi::PVRDMA_UAR_CQ_ARM_SOL != 0 {
                    Some(Arm::Solicited)
                } else {
                    None
                };
                let poll = value & abi::PVRDMA_UAR_CQ_POLL != 0;
                (arm.is_some() || poll).then_some(Doorbell::Cq { cq: CqHandle(handle), arm, poll })
            }
            abi::PVRDMA_UAR_SRQ_OFFSET if value & abi::PVRDMA_UAR_SRQ_RECV != 0 => {
                Some(Doorbell::Srq { srq: SrqHandle(handle) })
            }
            _ => None,
        }
    }
}
