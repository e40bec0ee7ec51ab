//! Completion -> the 64 bytes of a CQE (vmw_pvrdma-abi.h: `pvrdma_cqe`).

use crate::handle::{QpHandle, Qpn};
use crate::rings::wqe::Ext;
use pvrdma_ffi::uapi::vmw_pvrdma as abi;

/// The end of a work request, as the consumer will read it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Completion {
    /// Cookie of the WQE.
    pub wr_id: u64,
    /// Local QP.
    pub qp: QpHandle,
    /// `PVRDMA_WC_*` opcode.
    pub opcode: u32,
    /// `PVRDMA_WC_*` status.
    pub status: u32,
    /// Bytes received or read.
    pub byte_len: u32,
    /// Immediate data, or the key that was invalidated.
    pub ext: Ext,
    /// Who sent the datagram.
    pub sender: Option<Sender>,
    /// Why it failed: the syndrome of the peer's answer (IBA vol. 1, table 44: AETH), or 0.
    pub vendor_err: u32,
    /// The sender asked for a solicited event.
    pub solicited: bool,
}

/// The other end of a datagram. Its receive buffer begins with a GRH.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sender {
    /// Its QP number.
    pub qpn: Qpn,
    /// `PVRDMA_NETWORK_*`.
    pub network_hdr_type: u8,
}

impl Sender {
    /// What the CQE has for a service level, which no RoCE packet carries. Providers hand it on as `wc.sl`, and there
    /// applications look for the packet type (IBA annex A17.4.5.1), in the numbers that other adapters give it.
    fn sl(self) -> u8 {
        match self.network_hdr_type {
            abi::PVRDMA_NETWORK_IPV4 => 2,
            abi::PVRDMA_NETWORK_IPV6 => 1,
            _ => 0,
        }
    }
}

impl Completion {
    /// The entry for the ring.
    pub fn to_cqe(self) -> [u8; size_of::<abi::pvrdma_cqe>()] {
        let (imm_data, ext_flag) = match self.ext {
            Ext::None => (0, 0),
            Ext::Imm(imm) => (imm, abi::PVRDMA_WC_WITH_IMM),
            Ext::Invalidate(rkey) => (rkey.0, abi::PVRDMA_WC_WITH_INVALIDATE),
        };
        let (src_qp, sl, network_hdr_type, ud_flags) = match self.sender {
            None => (0, 0, 0, 0),
            Some(sender) => {
                let flags = abi::PVRDMA_WC_GRH | abi::PVRDMA_WC_WITH_NETWORK_HDR_TYPE;
                (sender.qpn.0, sender.sl(), sender.network_hdr_type, flags)
            }
        };
        let cqe = abi::pvrdma_cqe {
            wr_id: self.wr_id,
            qp: u64::from(self.qp.0),
            opcode: self.opcode,
            status: self.status,
            byte_len: self.byte_len,
            imm_data,
            src_qp,
            wc_flags: ext_flag | ud_flags,
            vendor_err: self.vendor_err,
            sl,
            port_num: 1,
            network_hdr_type,
            ..Default::default()
        };
        zerocopy::transmute!(cqe)
    }

    /// Whether it wakes a CQ that is armed for solicited completions (IBA vol. 1, 11.4.2.2).
    pub fn wakes_solicited(&self) -> bool {
        self.status != abi::PVRDMA_WC_SUCCESS || self.solicited
    }
}

const _: () = assert!(size_of::<abi::pvrdma_cqe>() == 64);
