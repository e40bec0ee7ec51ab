//! Work queue entries: copied out of the ring once, judged once. Above this file there are only checked
//! [`WorkRequest`]s and [`Receive`]s; nobody reads a slot twice (its owner may rewrite it at any time).

use crate::handle::{Gid, Lkey, PdHandle, Qpn, Rkey};
use crate::memory::{DmaAddr, Fault, Memory, PageTable};
use pvrdma_ffi::uapi::vmw_pvrdma as abi;
use zerocopy::FromBytes;

/// Service types the device has: what a send WQE may ask for, and how its union is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QpKind {
    /// Reliable connection.
    Rc,
    /// Unreliable datagrams.
    Ud,
    /// The kernel's management QP, number 1.
    Gsi,
}

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

/// What a message carries besides its payload (IBA vol. 1, 9.3.6 ImmDt, 9.3.7 IETH).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ext {
    /// Nothing.
    #[default]
    None,
    /// Immediate data, big-endian as it came.
    Imm(u32),
    /// The key that the responder is to invalidate.
    Invalidate(Rkey),
}

impl Ext {
    /// Immediate data or nothing.
    pub fn imm(imm: Option<u32>) -> Ext {
        imm.map_or(Ext::None, Ext::Imm)
    }
}

/// An atomic operation on 64 bits (IBA vol. 1, 9.4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the variants' text says it")]
pub enum AtomicOp {
    /// `swap` if the old value is `compare`.
    CompareSwap { compare: u64, swap: u64 },
    /// The old value plus `add`.
    FetchAdd { add: u64 },
}

impl AtomicOp {
    /// The new value for `old`.
    pub fn apply(self, old: u64) -> u64 {
        match self {
            AtomicOp::CompareSwap { compare, swap } if old == compare => swap,
            AtomicOp::CompareSwap { .. } => old,
            AtomicOp::FetchAdd { add } => old.wrapping_add(add),
        }
    }
}

/// Fields of a Global Route Header that the sender chooses (IBA vol. 1, 8.3), and the service level beside it, which no
/// packet carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "fields carry the names of the header")]
pub struct Grh {
    pub sl: u8,
    pub traffic_class: u8,
    pub flow_label: u32,
    pub hop_limit: u8,
}

/// Where a datagram goes (vmw_pvrdma-abi.h: `pvrdma_av`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "fields carry the names of the header")]
pub struct Av {
    pub pd: PdHandle,
    pub port_num: u8,
    pub dgid: Gid,
    pub gid_index: u8,
    pub grh: Grh,
}

impl Av {
    fn new(raw: &abi::pvrdma_av) -> Av {
        let word = raw.sl_tclass_flowlabel;
        Av {
            pd: PdHandle(raw.port_pd & 0x00ff_ffff),
            port_num: (raw.port_pd >> 24) as u8,
            dgid: raw.dgid,
            gid_index: raw.gid_index,
            grh: Grh {
                sl: (word >> 28) as u8,
                traffic_class: (word >> 20) as u8,
                flow_label: word & 0x000f_ffff,
                hop_limit: raw.hop_limit,
            },
        }
    }
}

/// What a FAST_REG_MR work request makes of a region (vmw_pvrdma-abi.h: `pvrdma_sq_wqe_hdr`, `fast_reg`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "fields carry the names of the header")]
pub struct FastReg {
    pub iova_start: u64,
    pub pl_pdir: DmaAddr,
    pub page_shift: u32,
    pub page_list_len: u32,
    pub length: u32,
    pub access_flags: u32,
    pub rkey: Rkey,
}

/// The union of a send WQE header as one of its members.
fn view<T: FromBytes>(wr: &[u8; abi::PVRDMA_SQ_WQE_WR_LEN]) -> T {
    const { assert!(size_of::<T>() <= abi::PVRDMA_SQ_WQE_WR_LEN) };
    match T::read_from_prefix(wr) {
        Ok((member, _)) => member,
        Err(_) => T::new_zeroed(),
    }
}

/// What a send WQE asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "fields carry the names of vmw_pvrdma-abi.h")]
pub enum Operation {
    Send { ext: Ext },
    Write { remote_addr: u64, rkey: Rkey, imm: Option<u32> },
    Read { remote_addr: u64, rkey: Rkey },
    Atomic { remote_addr: u64, rkey: Rkey, op: AtomicOp },
    Datagram { av: Av, remote_qpn: Qpn, remote_qkey: u32, imm: Option<u32> },
    LocalInv { rkey: Rkey },
    FastReg(FastReg),
}

impl Operation {
    /// Opcode of its completion (`enum pvrdma_wc_opcode`).
    pub fn wc_opcode(self) -> u32 {
        match self {
            Operation::Send { .. } | Operation::Datagram { .. } => abi::PVRDMA_WC_SEND,
            Operation::Write { .. } => abi::PVRDMA_WC_RDMA_WRITE,
            Operation::Read { .. } => abi::PVRDMA_WC_RDMA_READ,
            Operation::Atomic { op: AtomicOp::CompareSwap { .. }, .. } => abi::PVRDMA_WC_COMP_SWAP,
            Operation::Atomic { op: AtomicOp::FetchAdd { .. }, .. } => abi::PVRDMA_WC_FETCH_ADD,
            Operation::LocalInv { .. } => abi::PVRDMA_WC_LOCAL_INV,
            Operation::FastReg(_) => abi::PVRDMA_WC_FAST_REG_MR,
        }
    }

    /// Whether data comes back: it counts against `max_rd_atomic`, and the device writes local memory.
    pub fn reads(self) -> bool {
        matches!(self, Operation::Read { .. } | Operation::Atomic { .. })
    }

    /// The operation of a WQE on a QP of `kind`; `Err(status)` if that has no such operation.
    fn decode(hdr: &abi::pvrdma_sq_wqe_hdr, kind: QpKind) -> Result<Operation, u32> {
        let rdma: abi::pvrdma_wr_rdma = view(&hdr.wr);
        let cas: abi::pvrdma_wr_atomic = view(&hdr.wr);
        let ud: abi::pvrdma_wr_ud = view(&hdr.wr);
        let reg: abi::pvrdma_wr_fast_reg = view(&hdr.wr);
        let (remote_addr, rkey) = (rdma.remote_addr, Rkey(rdma.rkey));
        let datagram = |imm| Operation::Datagram {
            av: Av::new(&ud.av),
            remote_qpn: Qpn(ud.remote_qpn & 0x00ff_ffff),
            remote_qkey: ud.remote_qkey,
            imm,
        };
        let atomic = |op| Operation::Atomic { remote_addr, rkey: Rkey(cas.rkey), op };
        Ok(match (kind, hdr.opcode) {
            (QpKind::Ud | QpKind::Gsi, abi::PVRDMA_WR_SEND) => datagram(None),
            (QpKind::Ud | QpKind::Gsi, abi::PVRDMA_WR_SEND_WITH_IMM) => datagram(Some(hdr.ex)),
            (QpKind::Ud | QpKind::Gsi, _) => return Err(abi::PVRDMA_WC_LOC_QP_OP_ERR),
            (QpKind::Rc, opcode) => match opcode {
                abi::PVRDMA_WR_SEND => Operation::Send { ext: Ext::None },
                abi::PVRDMA_WR_SEND_WITH_IMM => Operation::Send { ext: Ext::Imm(hdr.ex) },
                abi::PVRDMA_WR_SEND_WITH_INV => Operation::Send { ext: Ext::Invalidate(Rkey(hdr.ex)) },
                abi::PVRDMA_WR_RDMA_WRITE => Operation::Write { remote_addr, rkey, imm: None },
                abi::PVRDMA_WR_RDMA_WRITE_WITH_IMM => Operation::Write { remote_addr, rkey, imm: Some(hdr.ex) },
                abi::PVRDMA_WR_RDMA_READ => Operation::Read { remote_addr, rkey },
                abi::PVRDMA_WR_ATOMIC_CMP_AND_SWP => {
                    atomic(AtomicOp::CompareSwap { compare: cas.compare_add, swap: cas.swap })
                }
                abi::PVRDMA_WR_ATOMIC_FETCH_AND_ADD => atomic(AtomicOp::FetchAdd { add: cas.compare_add }),
                abi::PVRDMA_WR_LOCAL_INV => Operation::LocalInv { rkey: Rkey(hdr.ex) },
                abi::PVRDMA_WR_FAST_REG_MR => Operation::FastReg(FastReg {
                    iova_start: reg.iova_start,
                    pl_pdir: DmaAddr(reg.pl_pdir_dma),
                    page_shift: reg.page_shift,
                    page_list_len: reg.page_list_len,
                    length: reg.length,
                    access_flags: reg.access_flags,
                    rkey: Rkey(reg.rkey),
                }),
                _ => return Err(abi::PVRDMA_WC_LOC_QP_OP_ERR),
            },
        })
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
        kind: QpKind,
        max_sge: u32,
        sq_sig_all: bool,
        pages: &PageTable,
        memory: &dyn Memory,
    ) -> Result<WorkRequest, Fault> {
        let mut bytes = [0u8; SQ_WQE_HDR_LEN];
        memory.read(pages.at(at)?, &mut bytes)?;
        let hdr = abi::pvrdma_sq_wqe_hdr::read_from_bytes(&bytes).map_err(|_| Fault)?;
        let mut operation = Operation::decode(&hdr, kind);
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
