//! A provider's work requests and the bytes they become: send and receive WQEs of every kind, written from the
//! description of the format and not from the device's code.

use super::driver::Region;
use crate::handle::{Gid, PdHandle, Qpn};
use crate::memory::DmaAddr;
use pvrdma_ffi::uapi::vmw_pvrdma as abi;

/// Address, length, lkey.
pub type RawSge = (u64, u32, u32);

/// The piece `[offset, offset + len)` of a region as an SGE. It may lie outside: that is for the device to find out.
pub fn sge(region: &Region, offset: u64, len: u32) -> RawSge {
    (region.start.wrapping_add(offset), len, region.key)
}

/// A send WQE to be.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "fields carry the names of vmw_pvrdma-abi.h")]
pub struct SendWr {
    pub wr_id: u64,
    pub opcode: u32,
    pub send_flags: u32,
    /// Immediate data, or the key to invalidate.
    pub imm_data: u32,
    /// RDMA and atomic operations.
    pub remote_addr: u64,
    /// The same.
    pub rkey: u32,
    /// What else stands in the union, from its byte 8 on; it covers `rkey` where that is RDMA's.
    pub rest: Vec<u8>,
    pub sges: Vec<RawSge>,
    /// What the WQE says instead of the length of `sges`.
    pub num_sge: Option<u32>,
}

/// Where a datagram goes: the address vector's fields that matter.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "fields carry the names of vmw_pvrdma-abi.h")]
pub struct To {
    pub pd: PdHandle,
    pub port_num: u8,
    pub dgid: Gid,
    pub gid_index: u8,
    pub qpn: Qpn,
    pub qkey: u32,
    /// Service level, traffic class, flow label.
    pub sl_tclass_flowlabel: u32,
    pub hop_limit: u8,
}

impl SendWr {
    fn new(wr_id: u64, opcode: u32, sges: &[RawSge]) -> SendWr {
        SendWr {
            wr_id,
            opcode,
            send_flags: abi::PVRDMA_SEND_SIGNALED,
            imm_data: 0,
            remote_addr: 0,
            rkey: 0,
            rest: Vec::new(),
            sges: sges.to_vec(),
            num_sge: None,
        }
    }

    /// A signaled SEND.
    pub fn send(wr_id: u64, sges: &[RawSge]) -> SendWr {
        SendWr::new(wr_id, abi::PVRDMA_WR_SEND, sges)
    }

    /// A signaled WRITE to `target`, from `offset` on.
    pub fn write(wr_id: u64, sges: &[RawSge], target: &Region, offset: u64) -> SendWr {
        SendWr::new(wr_id, abi::PVRDMA_WR_RDMA_WRITE, sges).at(target.start.wrapping_add(offset), target.key)
    }

    /// A signaled READ of `target`, from `offset` on.
    pub fn read(wr_id: u64, sges: &[RawSge], target: &Region, offset: u64) -> SendWr {
        SendWr::new(wr_id, abi::PVRDMA_WR_RDMA_READ, sges).at(target.start.wrapping_add(offset), target.key)
    }

    /// A signaled compare and swap of the 8 bytes at `offset`.
    pub fn cas(wr_id: u64, sge: RawSge, target: &Region, offset: u64, compare: u64, swap: u64) -> SendWr {
        let wr = SendWr::new(wr_id, abi::PVRDMA_WR_ATOMIC_CMP_AND_SWP, &[sge]);
        let rest = [compare.to_le_bytes(), swap.to_le_bytes()].concat();
        SendWr { rest, ..wr }.at(target.start.wrapping_add(offset), target.key)
    }

    /// A signaled fetch and add on the 8 bytes at `offset`.
    pub fn fetch_add(wr_id: u64, sge: RawSge, target: &Region, offset: u64, add: u64) -> SendWr {
        SendWr { opcode: abi::PVRDMA_WR_ATOMIC_FETCH_AND_ADD, ..SendWr::cas(wr_id, sge, target, offset, add, 0xa5a5) }
    }

    /// A signaled datagram.
    pub fn datagram(wr_id: u64, sges: &[RawSge], to: &To) -> SendWr {
        let mut union = Vec::new();
        union.extend(to.qpn.0.to_le_bytes());
        union.extend(to.qkey.to_le_bytes());
        union.extend((to.pd.0 | u32::from(to.port_num) << 24).to_le_bytes());
        union.extend(to.sl_tclass_flowlabel.to_le_bytes());
        union.extend(to.dgid);
        union.extend([0x80, to.gid_index, 0, to.hop_limit]);
        let remote_addr = u64::from_le_bytes(union[..8].try_into().unwrap());
        SendWr { remote_addr, rest: union[8..].to_vec(), ..SendWr::new(wr_id, abi::PVRDMA_WR_SEND, sges) }
    }

    /// A signaled invalidation of a key of one's own.
    pub fn local_inv(wr_id: u64, key: u32) -> SendWr {
        SendWr { imm_data: key, ..SendWr::new(wr_id, abi::PVRDMA_WR_LOCAL_INV, &[]) }
    }

    /// A signaled FAST_REG_MR: `length` bytes that the work requests will call `iova`, on the pages of a directory.
    pub fn fast_reg(
        wr_id: u64,
        key: u32,
        iova: u64,
        length: u32,
        (pdir, pages): (DmaAddr, u32),
        access: u32,
    ) -> SendWr {
        let mut rest = Vec::new();
        rest.extend(pdir.0.to_le_bytes());
        for word in [12, pages, length, access, key] {
            rest.extend(word.to_le_bytes());
        }
        SendWr { remote_addr: iova, rest, ..SendWr::new(wr_id, abi::PVRDMA_WR_FAST_REG_MR, &[]) }
    }

    /// With another target.
    pub fn at(self, remote_addr: u64, rkey: u32) -> SendWr {
        SendWr { remote_addr, rkey, ..self }
    }

    /// With immediate data: a SEND or WRITE becomes the kind that has it.
    pub fn imm(self, imm_data: u32) -> SendWr {
        let opcode = match self.opcode {
            abi::PVRDMA_WR_SEND => abi::PVRDMA_WR_SEND_WITH_IMM,
            _ => abi::PVRDMA_WR_RDMA_WRITE_WITH_IMM,
        };
        SendWr { imm_data, opcode, ..self }
    }

    /// A SEND that invalidates a key at the other end.
    pub fn inv(self, key: u32) -> SendWr {
        SendWr { imm_data: key, opcode: abi::PVRDMA_WR_SEND_WITH_INV, ..self }
    }

    /// With these flags instead of SIGNALED.
    pub fn flags(self, send_flags: u32) -> SendWr {
        SendWr { send_flags, ..self }
    }

    /// With another opcode.
    pub fn opcode(self, opcode: u32) -> SendWr {
        SendWr { opcode, ..self }
    }

    /// With another number of SGEs than there are.
    pub fn num_sge(self, num_sge: u32) -> SendWr {
        SendWr { num_sge: Some(num_sge), ..self }
    }

    /// The WQE. Bytes that the opcode does not define hold rubbish, as they do in a ring that is reused.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0xa5; 80];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &self.wr_id.to_le_bytes());
        put(8, &self.num_sge.unwrap_or(self.sges.len() as u32).to_le_bytes());
        put(16, &self.opcode.to_le_bytes());
        put(20, &self.send_flags.to_le_bytes());
        put(24, &self.imm_data.to_le_bytes());
        put(32, &self.remote_addr.to_le_bytes());
        // Atomics have their key behind the operands.
        let atomic = [abi::PVRDMA_WR_ATOMIC_CMP_AND_SWP, abi::PVRDMA_WR_ATOMIC_FETCH_AND_ADD].contains(&self.opcode);
        put(if atomic { 56 } else { 40 }, &self.rkey.to_le_bytes());
        put(40, &self.rest);
        sges_into(&mut bytes, &self.sges);
        bytes
    }
}

/// A receive WQE to be.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "fields carry the names of vmw_pvrdma-abi.h")]
pub struct RecvWr {
    pub wr_id: u64,
    pub sges: Vec<RawSge>,
    /// What the WQE says instead of the length of `sges`.
    pub num_sge: Option<u32>,
}

impl RecvWr {
    /// A receive.
    pub fn new(wr_id: u64, sges: &[RawSge]) -> RecvWr {
        RecvWr { wr_id, sges: sges.to_vec(), num_sge: None }
    }

    /// With another number of SGEs than there are.
    pub fn num_sge(self, num_sge: u32) -> RecvWr {
        RecvWr { num_sge: Some(num_sge), ..self }
    }

    /// The WQE.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.wr_id.to_le_bytes());
        bytes.extend(self.num_sge.unwrap_or(self.sges.len() as u32).to_le_bytes());
        bytes.extend([0xa5; 4]);
        sges_into(&mut bytes, &self.sges);
        bytes
    }
}

fn sges_into(bytes: &mut Vec<u8>, sges: &[RawSge]) {
    for (addr, len, lkey) in sges {
        bytes.extend(addr.to_le_bytes());
        bytes.extend(len.to_le_bytes());
        bytes.extend(lkey.to_le_bytes());
    }
}
