//! Completion -> the 64 bytes of a CQE (vmw_pvrdma-abi.h: `pvrdma_cqe`).

use crate::handle::QpHandle;
use pvrdma_ffi::uapi::vmw_pvrdma as abi;

/// The end of a work request, as the consumer will read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// Immediate data, big-endian as it came.
    pub imm: Option<u32>,
    /// The sender asked for a solicited event.
    pub solicited: bool,
}

impl Completion {
    /// The entry for the ring.
    pub fn to_cqe(self) -> [u8; size_of::<abi::pvrdma_cqe>()] {
        let cqe = abi::pvrdma_cqe {
            wr_id: self.wr_id,
            qp: u64::from(self.qp.0),
            opcode: self.opcode,
            status: self.status,
            byte_len: self.byte_len,
            imm_data: self.imm.unwrap_or(0),
            wc_flags: if self.imm.is_some() { abi::PVRDMA_WC_WITH_IMM } else { 0 },
            port_num: 1,
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
