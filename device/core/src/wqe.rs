//! Work queue entries: copied out of the ring once, judged once. Above this file there are only checked
//! [`WorkRequest`]s and [`Receive`]s; nobody reads a slot twice (its owner may rewrite it at any time).

use crate::handle::{Lkey, Rkey};
use crate::memory::{Fault, Memory, PageTable};
use pvrdma_ffi::uapi::vmw_pvrdma as abi;
use zerocopy::FromBytes;

/// Most SGEs of a WQE, send or receive (`caps.max_sge`).
pub const MAX_SGE: usize = 16;

/// A scatter/gather element.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sge {
    /// Address within the MR.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// Key of the MR.
    pub lkey: Lkey,
}

/// A short list of SGEs, by value.
#[derive(Clone, Copy, Debug)]
pub struct SgList {
    sges: [Sge; MAX_SGE],
    count: usize,
}

impl SgList {
    /// The elements.
    pub fn as_slice(&self) -> &[Sge] {
        &self.sges[..self.count]
    }

    /// Sum of lengths; at most 16 * 4 GiB, so it cannot overflow.
    pub fn total(&self) -> u64 {
        self.as_slice().iter().map(|sge| u64::from(sge.len)).sum()
    }
}

/// What a send WQE asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "fields carry the names of vmw_pvrdma-abi.h")]
pub enum Operation {
    Send { imm: Option<u32> },
    Write { remote_addr: u64, rkey: Rkey, imm: Option<u32> },
    Read { remote_addr: u64, rkey: Rkey },
}

impl Operation {
    /// Opcode of its completion (`enum pvrdma_wc_opcode`).
    pub fn wc_opcode(self) -> u32 {
        match self {
            Operation::Send { .. } => abi::PVRDMA_WC_SEND,
            Operation::Write { .. } => abi::PVRDMA_WC_RDMA_WRITE,
            Operation::Read { .. } => abi::PVRDMA_WC_RDMA_READ,
        }
    }
}

/// A send WQE that was judged. `operation` is `Err(status)` if the WQE must fail.
#[derive(Clone, Copy, Debug)]
pub struct WorkRequest {
    /// The caller's cookie.
    pub wr_id: u64,
    /// What to do, or the completion status (`PVRDMA_WC_*`) it ends with.
    pub operation: Result<Operation, u32>,
    /// Make a CQE on success too.
    pub signaled: bool,
    /// Ask for a solicited event at the other end.
    pub solicited: bool,
    /// Wait for earlier READs and atomics.
    pub fence: bool,
    /// Local memory.
    pub sg_list: SgList,
}

/// A receive WQE that was judged; `sg_list` is `Err` if it names too many SGEs.
#[derive(Clone, Copy, Debug)]
pub struct Receive {
    /// The caller's cookie.
    pub wr_id: u64,
    /// Where the message goes, or the status it ends with.
    pub sg_list: Result<SgList, u32>,
}

/// Bytes of the header of a send WQE (vmw_pvrdma-abi.h: `pvrdma_sq_wqe_hdr`).
pub const SQ_WQE_HDR_LEN: usize = size_of::<abi::pvrdma_sq_wqe_hdr>();
/// Bytes of the header of a receive WQE (vmw_pvrdma-abi.h: `pvrdma_rq_wqe_hdr`).
pub const RQ_WQE_HDR_LEN: usize = size_of::<abi::pvrdma_rq_wqe_hdr>();
/// Bytes of an SGE in a WQE.
pub const SGE_LEN: usize = size_of::<abi::pvrdma_sge>();

/// Stride of send WQEs, as driver and provider compute it too.
pub fn sq_stride(max_sge: u32) -> u32 {
    (SQ_WQE_HDR_LEN as u32 + SGE_LEN as u32 * max_sge).next_power_of_two()
}

/// Stride of receive WQEs.
pub fn rq_stride(max_sge: u32) -> u32 {
    (RQ_WQE_HDR_LEN as u32 + SGE_LEN as u32 * max_sge).next_power_of_two()
}

fn read_sg_list(
    at: u64,
    num_sge: u32,
    max_sge: u32,
    pages: &PageTable,
    memory: &dyn Memory,
) -> Result<Result<SgList, u32>, Fault> {
    let count = num_sge as usize;
    if num_sge > max_sge || count > MAX_SGE {
        return Ok(Err(abi::PVRDMA_WC_LOC_QP_OP_ERR));
    }
    let mut bytes = [0u8; MAX_SGE * SGE_LEN];
    let bytes = &mut bytes[..count * SGE_LEN];
    memory.read(pages.at(at)?, bytes)?;
    let mut list = SgList { sges: [Sge::default(); MAX_SGE], count };
    for (sge, raw) in list.sges.iter_mut().zip(bytes.chunks_exact(SGE_LEN)) {
        if let Ok(raw) = abi::pvrdma_sge::read_from_bytes(raw) {
            *sge = Sge { addr: raw.addr, len: raw.length, lkey: Lkey(raw.lkey) };
        }
    }
    Ok(Ok(list))
}

impl WorkRequest {
    /// Copies the send WQE at offset `at` out of the ring and judges it.
    pub fn read(
        at: u64,
        max_sge: u32,
        sq_sig_all: bool,
        pages: &PageTable,
        memory: &dyn Memory,
    ) -> Result<WorkRequest, Fault> {
        let mut bytes = [0u8; SQ_WQE_HDR_LEN];
        memory.read(pages.at(at)?, &mut bytes)?;
        let hdr = abi::pvrdma_sq_wqe_hdr::read_from_bytes(&bytes).map_err(|_| Fault)?;
        let rdma = abi::pvrdma_wr_rdma::read_from_prefix(&hdr.wr).map_err(|_| Fault)?.0;
        let (remote_addr, rkey) = (rdma.remote_addr, Rkey(rdma.rkey));
        let mut operation = match hdr.opcode {
            abi::PVRDMA_WR_SEND => Ok(Operation::Send { imm: None }),
            abi::PVRDMA_WR_SEND_WITH_IMM => Ok(Operation::Send { imm: Some(hdr.ex) }),
            abi::PVRDMA_WR_RDMA_WRITE => Ok(Operation::Write { remote_addr, rkey, imm: None }),
            abi::PVRDMA_WR_RDMA_WRITE_WITH_IMM => Ok(Operation::Write { remote_addr, rkey, imm: Some(hdr.ex) }),
            abi::PVRDMA_WR_RDMA_READ => Ok(Operation::Read { remote_addr, rkey }),
            _ => Err(abi::PVRDMA_WC_LOC_QP_OP_ERR),
        };
        // The device has no inline data; what stands in the SGE would be taken for an address.
        if hdr.send_flags & abi::PVRDMA_SEND_INLINE != 0 {
            operation = Err(abi::PVRDMA_WC_LOC_QP_OP_ERR);
        }
        let sg_list = match read_sg_list(at + SQ_WQE_HDR_LEN as u64, hdr.num_sge, max_sge, pages, memory)? {
            Ok(list) => list,
            Err(status) => {
                operation = Err(status);
                SgList { sges: [Sge::default(); MAX_SGE], count: 0 }
            }
        };
        Ok(WorkRequest {
            wr_id: hdr.wr_id,
            operation,
            signaled: sq_sig_all || hdr.send_flags & abi::PVRDMA_SEND_SIGNALED != 0,
            solicited: hdr.send_flags & abi::PVRDMA_SEND_SOLICITED != 0,
            fence: hdr.send_flags & abi::PVRDMA_SEND_FENCE != 0,
            sg_list,
        })
    }
}

impl Receive {
    /// Copies the receive WQE at offset `at` out of the ring and judges it.
    pub fn read(at: u64, max_sge: u32, pages: &PageTable, memory: &dyn Memory) -> Result<Receive, Fault> {
        let mut bytes = [0u8; RQ_WQE_HDR_LEN];
        memory.read(pages.at(at)?, &mut bytes)?;
        let hdr = abi::pvrdma_rq_wqe_hdr::read_from_bytes(&bytes).map_err(|_| Fault)?;
        let sg_list = read_sg_list(at + RQ_WQE_HDR_LEN as u64, hdr.num_sge, max_sge, pages, memory)?;
        Ok(Receive { wr_id: hdr.wr_id, sg_list })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strides_match_the_drivers_table() {
        let sq = [(1, 128), (3, 128), (4, 256), (11, 256), (12, 512), (16, 512), (27, 512), (28, 1024)];
        let rq = [(1, 32), (2, 64), (3, 64), (4, 128), (7, 128), (8, 256), (15, 256), (16, 512)];
        for (sge, stride) in sq {
            assert_eq!(sq_stride(sge), stride, "sq with {sge} sge");
        }
        for (sge, stride) in rq {
            assert_eq!(rq_stride(sge), stride, "rq with {sge} sge");
        }
    }
}
