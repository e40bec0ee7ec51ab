//! A provider's side of rings: counters, slots and the bytes of CQEs, written from the description of the format and
//! not from the device's code.

pub use super::wr::{RawSge, RecvWr, SendWr, To, sge};

use super::driver::{Block, PAGE};
use crate::device::Device;
use crate::doorbell::Doorbell;
use crate::handle::{CqHandle, CtxHandle, QpHandle, Qpn, SrqHandle};
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
    pub src_qp: u32,
    pub wc_flags: u32,
    pub vendor_err: u32,
    pub sl: u8,
    pub network_hdr_type: u8,
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
            src_qp: word(32),
            wc_flags: word(36),
            vendor_err: word(40),
            sl: bytes[48],
            network_hdr_type: bytes[57],
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

// ---- shared receive queue ----------------------------------------------------------------------

/// An SRQ's ring, filled by its owner.
pub struct SrqRing {
    /// Its handle.
    pub handle: SrqHandle,
    /// Its owner.
    pub ctx: CtxHandle,
    /// WQEs it has room for, and SGEs of each.
    pub size: (u32, u32),
    /// Its memory: counters, then WQEs.
    pub block: Block,
    device: Arc<Device>,
    tail: Mutex<u32>,
}

impl SrqRing {
    pub(super) fn new(
        device: Arc<Device>,
        ctx: CtxHandle,
        handle: SrqHandle,
        size: (u32, u32),
        block: Block,
    ) -> SrqRing {
        SrqRing { handle, ctx, size, block, device, tail: Mutex::new(0) }
    }

    /// Bytes from one WQE to the next.
    pub fn stride((_, sge): (u32, u32)) -> u64 {
        u64::from((16 + 16 * sge).next_power_of_two())
    }

    /// WQEs that the device has not given back.
    pub fn recvs_out(&self) -> u32 {
        count(*lock(&self.tail), self.block.word(RX_HEAD), self.size.0)
    }

    /// Writes a receive WQE, publishes it and rings; `false` if the ring is full.
    pub fn post_recv(&self, wr: &RecvWr) -> bool {
        let mut tail = lock(&self.tail);
        if count(*tail, self.block.word(RX_HEAD), self.size.0) == self.size.0 {
            return false;
        }
        self.block.set(PAGE + u64::from(*tail % self.size.0) * SrqRing::stride(self.size), &wr.to_bytes());
        *tail = (*tail + 1) % (2 * self.size.0);
        self.block.set_word(RX_TAIL, *tail);
        drop(tail);
        ring(&self.device, self.ctx, 8, self.handle.0 | abi::PVRDMA_UAR_SRQ_RECV);
        true
    }

    /// Writes a producer counter of the test's choice.
    pub fn force_tail(&self, value: u32) {
        self.block.set_word(RX_TAIL, value);
    }
}
