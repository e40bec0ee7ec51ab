//! A provider's side of rings: counters, slots and the bytes of WQEs and CQEs, written from the description of the
//! format and not from the device's code.

use super::driver::{Block, PAGE, Region};
use crate::device::Device;
use crate::doorbell::Doorbell;
use crate::handle::{CqHandle, CtxHandle, QpHandle, Qpn};
use pvrdma_ffi::uapi::vmw_pvrdma as abi;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const TX_TAIL: u64 = 0;
const TX_HEAD: u64 = 4;
const RX_TAIL: u64 = 8;
const RX_HEAD: u64 = 12;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Entries between two counters that run modulo twice the number of slots.
fn count(tail: u32, head: u32, slots: u32) -> u32 {
    assert!(tail < 2 * slots && head < 2 * slots, "counters {tail} {head} do not belong to a ring of {slots}");
    (2 * slots + tail - head) % (2 * slots)
}

// ---- completion queue --------------------------------------------------------------------------

/// A completion as it stands in the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "fields carry the names of vmw_pvrdma-abi.h")]
pub struct Wc {
    pub wr_id: u64,
    pub qp: u64,
    pub opcode: u32,
    pub status: u32,
    pub byte_len: u32,
    pub imm_data: u32,
    pub wc_flags: u32,
}

/// A CQ, read by its owner.
pub struct CqRing {
    /// Its handle.
    pub handle: CqHandle,
    /// Its owner.
    pub ctx: CtxHandle,
    /// Number of entries.
    pub cqe: u32,
    /// Its memory: counters, then entries.
    pub block: Block,
    device: Arc<Device>,
    head: Mutex<u32>,
}

impl CqRing {
    pub(super) fn new(device: Arc<Device>, ctx: CtxHandle, handle: CqHandle, cqe: u32, block: Block) -> CqRing {
        CqRing { handle, ctx, cqe, block, device, head: Mutex::new(0) }
    }

    /// Number of entries that wait.
    pub fn waiting(&self) -> u32 {
        count(self.block.word(RX_TAIL), *lock(&self.head), self.cqe)
    }

    /// Takes one entry.
    pub fn poll(&self) -> Option<Wc> {
        let mut head = lock(&self.head);
        let waiting = count(self.block.word(RX_TAIL), *head, self.cqe);
        assert!(waiting <= self.cqe, "the device wrote over entries that were not taken");
        if waiting == 0 {
            return None;
        }
        let bytes = self.block.get(PAGE + u64::from(*head % self.cqe) * 64, 64);
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let long = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        *head = (*head + 1) % (2 * self.cqe);
        self.block.set_word(RX_HEAD, *head);
        Some(Wc {
            wr_id: long(0),
            qp: long(8),
            opcode: word(16),
            status: word(20),
            byte_len: word(24),
            imm_data: word(28),
            wc_flags: word(36),
        })
    }

    /// Takes all entries.
    pub fn drain(&self) -> Vec<Wc> {
        std::iter::from_fn(|| self.poll()).collect()
    }

    /// Takes all entries and keeps `(wr_id, status)`.
    pub fn ends(&self) -> Vec<(u64, u32)> {
        self.drain().into_iter().map(|wc| (wc.wr_id, wc.status)).collect()
    }

    /// Rings ARM, POLL or both (`PVRDMA_UAR_CQ_*`).
    pub fn ring(&self, action: u32) {
        ring(&self.device, self.ctx, 4, self.handle.0 | action);
    }

    /// Writes a consumer counter of the test's choice.
    pub fn force_head(&self, value: u32) {
        self.block.set_word(RX_HEAD, value);
    }
}

/// A store to a doorbell page.
fn ring(device: &Device, ctx: CtxHandle, offset: usize, value: u32) {
    if let Some(doorbell) = Doorbell::decode(offset, value) {
        device.doorbell(ctx, doorbell);
    }
}

// ---- work requests -----------------------------------------------------------------------------

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
    pub imm_data: u32,
    pub remote_addr: u64,
    pub rkey: u32,
    pub sges: Vec<RawSge>,
    /// What the WQE says instead of the length of `sges`.
    pub num_sge: Option<u32>,
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
    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0xa5; 80];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &self.wr_id.to_le_bytes());
        put(8, &self.num_sge.unwrap_or(self.sges.len() as u32).to_le_bytes());
        put(16, &self.opcode.to_le_bytes());
        put(20, &self.send_flags.to_le_bytes());
        put(24, &self.imm_data.to_le_bytes());
        put(32, &self.remote_addr.to_le_bytes());
        put(40, &self.rkey.to_le_bytes());
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

    fn to_bytes(&self) -> Vec<u8> {
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

// ---- queue pair --------------------------------------------------------------------------------

/// What a QP is made with.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "fields carry the names of ibv_qp_cap")]
pub struct QpSize {
    pub send_wr: u32,
    pub recv_wr: u32,
    pub send_sge: u32,
    pub recv_sge: u32,
    pub sig_all: bool,
}

impl Default for QpSize {
    fn default() -> QpSize {
        QpSize { send_wr: 64, recv_wr: 64, send_sge: 4, recv_sge: 4, sig_all: false }
    }
}

impl QpSize {
    /// Rings of `wr` entries each.
    pub fn wr(wr: u32) -> QpSize {
        QpSize { send_wr: wr, recv_wr: wr, ..QpSize::default() }
    }

    /// Bytes from one send WQE to the next.
    pub fn send_stride(&self) -> u32 {
        (80 + 16 * self.send_sge).next_power_of_two()
    }

    /// Bytes from one receive WQE to the next.
    pub fn recv_stride(&self) -> u32 {
        (16 + 16 * self.recv_sge).next_power_of_two()
    }
}

/// A QP's rings, filled by its owner.
pub struct QpRings {
    /// Its handle.
    pub handle: QpHandle,
    /// Its number for peers.
    pub qpn: Qpn,
    /// Its owner.
    pub ctx: CtxHandle,
    /// What it was made with.
    pub size: QpSize,
    /// Its memory: counters, send ring, receive ring.
    pub block: Block,
    device: Arc<Device>,
    send_tail: Mutex<u32>,
    recv_tail: Mutex<u32>,
}

impl QpRings {
    pub(super) fn new(
        device: Arc<Device>,
        ctx: CtxHandle,
        handle: QpHandle,
        qpn: Qpn,
        size: QpSize,
        block: Block,
    ) -> QpRings {
        QpRings { handle, qpn, ctx, size, block, device, send_tail: Mutex::new(0), recv_tail: Mutex::new(0) }
    }

    /// Send WQEs that the device has not given back.
    pub fn sends_out(&self) -> u32 {
        count(*lock(&self.send_tail), self.block.word(TX_HEAD), self.size.send_wr)
    }

    /// Receive WQEs that the device has not given back.
    pub fn recvs_out(&self) -> u32 {
        count(*lock(&self.recv_tail), self.block.word(RX_HEAD), self.size.recv_wr)
    }

    /// Writes a send WQE and publishes it; `false` if the ring is full. Rings no doorbell.
    pub fn post_send(&self, wr: &SendWr) -> bool {
        let mut tail = lock(&self.send_tail);
        if count(*tail, self.block.word(TX_HEAD), self.size.send_wr) == self.size.send_wr {
            return false;
        }
        let slot = u64::from(*tail % self.size.send_wr);
        self.block.set(PAGE + slot * u64::from(self.size.send_stride()), &wr.to_bytes());
        *tail = (*tail + 1) % (2 * self.size.send_wr);
        self.block.set_word(TX_TAIL, *tail);
        true
    }

    /// Writes a receive WQE and publishes it; `false` if the ring is full. Rings no doorbell.
    pub fn post_recv(&self, wr: &RecvWr) -> bool {
        let mut tail = lock(&self.recv_tail);
        if count(*tail, self.block.word(RX_HEAD), self.size.recv_wr) == self.size.recv_wr {
            return false;
        }
        let slot = u64::from(*tail % self.size.recv_wr);
        let sq_pages = (u64::from(self.size.send_wr) * u64::from(self.size.send_stride())).div_ceil(PAGE);
        self.block.set((1 + sq_pages) * PAGE + slot * u64::from(self.size.recv_stride()), &wr.to_bytes());
        *tail = (*tail + 1) % (2 * self.size.recv_wr);
        self.block.set_word(RX_TAIL, *tail);
        true
    }

    /// Rings the send doorbell.
    pub fn ring_send(&self) {
        ring(&self.device, self.ctx, 0, self.handle.0 | abi::PVRDMA_UAR_QP_SEND);
    }

    /// Rings the receive doorbell.
    pub fn ring_recv(&self) {
        ring(&self.device, self.ctx, 0, self.handle.0 | abi::PVRDMA_UAR_QP_RECV);
    }

    /// Rings the send doorbell on the page of another context.
    pub fn ring_send_as(&self, ctx: CtxHandle) {
        ring(&self.device, ctx, 0, self.handle.0 | abi::PVRDMA_UAR_QP_SEND);
    }

    /// What the owner does after RESET: all counters back to 0.
    pub fn zero_rings(&self) {
        (*lock(&self.send_tail), *lock(&self.recv_tail)) = (0, 0);
        for at in [TX_TAIL, TX_HEAD, RX_TAIL, RX_HEAD] {
            self.block.set_word(at, 0);
        }
    }

    /// Writes a send producer counter of the test's choice.
    pub fn force_send_tail(&self, value: u32) {
        self.block.set_word(TX_TAIL, value);
    }

    /// Writes a receive producer counter of the test's choice.
    pub fn force_recv_tail(&self, value: u32) {
        self.block.set_word(RX_TAIL, value);
    }
}
