//! The kernel's own management QP (GSI, number 1), as its MAD layer has one for each port: rings in memory of this
//! library, datagrams in and out.
//!
//! Its user (`ucma`) holds it behind a lock. What arrives wakes the side thread (`process.rs`), which asks for it.

use pvrdma_device::command::{Command, CommandError, CreateQp, MrKind, Response};
use pvrdma_device::device::Device;
use pvrdma_device::doorbell::{Arm, Doorbell};
use pvrdma_device::handle::{CqHandle, Gid, KERNEL, PdHandle, QpHandle};
use pvrdma_device::memory::{Buffer, DmaAddr, Memory, Span};
use pvrdma_device::rings::ring::state;
use pvrdma_fabric::memory::ProcessMemory;
use pvrdma_ffi::dev_api::*;
use pvrdma_ffi::uapi::vmw_pvrdma::*;
use std::sync::Arc;
use zerocopy::{FromBytes, IntoBytes};

const PAGE: u64 = 4096;
/// Longest datagram: a MAD.
pub const MAD_LEN: usize = 256;
const GRH_LEN: u64 = 40;
/// IBA vol. 1, 3.5.3: the Q_Key of management QPs.
const QKEY: u32 = 0x8001_0000;
const QPN: u32 = 1;

const SENDS: u32 = 256;
const RECEIVES: u32 = 512;
/// Datagrams that can have come and not been looked at.
pub const ENTRIES: u32 = 1024;
/// Bytes of a WQE with one SGE.
const SEND_STRIDE: u64 = 128;
const RECEIVE_STRIDE: u64 = 32;
const CQE_STRIDE: u64 = 64;
/// Bytes of a buffer.
const SEND_ROOM: u64 = MAD_LEN as u64;
const RECEIVE_ROOM: u64 = 320;

/// Where everything lies in the one mapping, as offsets of pages.
const QP_AT: u64 = 0;
const SQ_AT: u64 = QP_AT + PAGE;
const RQ_AT: u64 = SQ_AT + SENDS as u64 * SEND_STRIDE;
const CQ_AT: u64 = RQ_AT + RECEIVES as u64 * RECEIVE_STRIDE;
const CQES_AT: u64 = CQ_AT + PAGE;
const SEND_BUFFERS_AT: u64 = CQES_AT + ENTRIES as u64 * CQE_STRIDE;
const RECEIVE_BUFFERS_AT: u64 = SEND_BUFFERS_AT + SENDS as u64 * SEND_ROOM;
const LEN: u64 = RECEIVE_BUFFERS_AT + RECEIVES as u64 * RECEIVE_ROOM;

/// A datagram that came.
pub struct Datagram {
    /// Sender.
    pub from: Gid,
    /// Which of our addresses it was sent to.
    pub to: Gid,
    /// Payload.
    pub bytes: Vec<u8>,
}

/// See the module text.
pub struct Gsi {
    device: Arc<Device>,
    pd: PdHandle,
    cq: CqHandle,
    qp: QpHandle,
    lkey: u32,
    base: u64,
    send_tail: u32,
    receive_tail: u32,
    cq_head: u32,
}

/// The counter after `counter` in a ring of `slots`.
fn next(counter: u32, slots: u32) -> u32 {
    (counter + 1) & (2 * slots - 1)
}

fn errno(error: CommandError) -> i32 {
    error.errno()
}

impl Gsi {
    /// Makes it. There is one at most for each device. The error is an errno.
    pub fn new(device: &Arc<Device>) -> Result<Gsi, i32> {
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping, placed by the kernel; it stays for the rest of the process's life.
        let base =
            unsafe { crate::support::raw::syscall!(SYS_mmap, std::ptr::null_mut::<u8>(), LEN, prot, flags, -1, 0) };
        if base == -1 {
            return Err(libc::ENOMEM);
        }
        let base = base as u64;
        let pages = |at: u64, end: u64| Buffer::Ranges(vec![Span { addr: DmaAddr(base + at), len: end - at }]);
        let Response::CreatePd { pd } = device.command(&Command::CreatePd { ctx: KERNEL }).map_err(errno)? else {
            return Err(libc::EIO);
        };
        let all =
            Command::CreateMr { pd, start: 0, length: 0, access_flags: PVRDMA_ACCESS_LOCAL_WRITE, kind: MrKind::Dma };
        let Response::CreateMr { lkey, .. } = device.command(&all).map_err(errno)? else { return Err(libc::EIO) };
        let create = Command::CreateCq { ctx: KERNEL, cqe: ENTRIES, buffer: pages(CQ_AT, SEND_BUFFERS_AT) };
        let Response::CreateCq { cq, .. } = device.command(&create).map_err(errno)? else { return Err(libc::EIO) };
        let create = CreateQp {
            pd,
            send_cq: cq,
            recv_cq: cq,
            srq: None,
            max_send_wr: SENDS,
            max_recv_wr: RECEIVES,
            max_send_sge: 1,
            max_recv_sge: 1,
            sq_sig_all: false,
            qp_type: PVRDMA_QPT_GSI,
            buffer: pages(QP_AT, CQ_AT),
            send_chunks: ((RQ_AT - SQ_AT) / PAGE) as u32,
        };
        let Response::CreateQp { qp, .. } = device.command(&Command::CreateQp(Box::new(create))).map_err(errno)? else {
            return Err(libc::EIO);
        };
        let mut gsi =
            Gsi { device: device.clone(), pd, cq, qp, lkey: lkey.0, base, send_tail: 0, receive_tail: 0, cq_head: 0 };
        gsi.modify(PVRDMA_QPS_INIT, PVRDMA_QP_PKEY_INDEX | PVRDMA_QP_QKEY | PVRDMA_QP_PORT)?;
        for slot in 0..RECEIVES {
            gsi.post_receive(slot);
        }
        gsi.modify(PVRDMA_QPS_RTR, 0)?;
        gsi.modify(PVRDMA_QPS_RTS, PVRDMA_QP_SQ_PSN)?;
        gsi.arm();
        Ok(gsi)
    }

    fn modify(&self, state: u32, mask: u32) -> Result<(), i32> {
        let attrs = pvrdma_qp_attr { qp_state: state, qkey: QKEY, port_num: 1, ..Default::default() };
        let modify = Command::ModifyQp { qp: self.qp, attr_mask: PVRDMA_QP_STATE | mask, attrs: Box::new(attrs) };
        self.device.command(&modify).map(drop).map_err(errno)
    }

    fn at(&self, offset: u64) -> DmaAddr {
        DmaAddr(self.base + offset)
    }

    /// Writes into the mapping, which is always there.
    fn write(&self, offset: u64, bytes: &[u8]) {
        let _ = ProcessMemory.write(self.at(offset), bytes);
    }

    fn load(&self, offset: u64) -> u32 {
        ProcessMemory.load(self.at(offset)).unwrap_or_default()
    }

    fn store(&self, offset: u64, value: u32) {
        let _ = ProcessMemory.store(self.at(offset), value);
    }

    fn post_receive(&mut self, buffer: u32) {
        let slot = u64::from(self.receive_tail & (RECEIVES - 1));
        let wqe = pvrdma_rq_wqe_hdr { wr_id: u64::from(buffer), num_sge: 1, total_len: 0 };
        let addr = self.base + RECEIVE_BUFFERS_AT + u64::from(buffer) * RECEIVE_ROOM;
        let sge = pvrdma_sge { addr, length: (GRH_LEN + MAD_LEN as u64) as u32, lkey: self.lkey };
        let at = RQ_AT + slot * RECEIVE_STRIDE;
        self.write(at, wqe.as_bytes());
        self.write(at + size_of_val(&wqe) as u64, sge.as_bytes());
        self.receive_tail = next(self.receive_tail, RECEIVES);
        self.store(QP_AT + state::RX_PROD_TAIL, self.receive_tail);
    }

    /// Sends a datagram from the address at `gid_index`. If there is no room it is lost, as any datagram may be.
    pub fn send(&mut self, gid_index: u8, to: &Gid, bytes: &[u8; MAD_LEN]) {
        let head = self.load(QP_AT + state::TX_CONS_HEAD);
        if self.send_tail.wrapping_sub(head) & (2 * SENDS - 1) >= SENDS {
            return;
        }
        let slot = u64::from(self.send_tail & (SENDS - 1));
        let buffer = SEND_BUFFERS_AT + slot * SEND_ROOM;
        self.write(buffer, bytes);
        let ud = pvrdma_wr_ud {
            remote_qpn: QPN,
            remote_qkey: QKEY,
            av: pvrdma_av {
                port_pd: self.pd.0 | 1 << 24,
                sl_tclass_flowlabel: 0,
                dgid: *to,
                src_path_bits: 0,
                gid_index,
                stat_rate: 0,
                hop_limit: 64,
                dmac: [0; 6],
                reserved: [0; 6],
            },
        };
        let mut wqe = pvrdma_sq_wqe_hdr {
            wr_id: slot,
            num_sge: 1,
            total_len: bytes.len() as u32,
            opcode: PVRDMA_WR_SEND,
            send_flags: PVRDMA_SEND_SOLICITED,
            ..Default::default()
        };
        wqe.wr[..size_of_val(&ud)].copy_from_slice(ud.as_bytes());
        let sge = pvrdma_sge { addr: self.base + buffer, length: bytes.len() as u32, lkey: self.lkey };
        let at = SQ_AT + slot * SEND_STRIDE;
        self.write(at, wqe.as_bytes());
        self.write(at + size_of_val(&wqe) as u64, sge.as_bytes());
        self.send_tail = next(self.send_tail, SENDS);
        self.store(QP_AT + state::TX_PROD_TAIL, self.send_tail);
        self.device.doorbell(KERNEL, Doorbell::Qp { qp: self.qp, send: true, recv: false });
    }

    fn arm(&self) {
        self.device.doorbell(KERNEL, Doorbell::Cq { cq: self.cq, arm: Some(Arm::Any), poll: false });
    }

    /// The next datagram that came. After `None` the side thread is woken when there is one again.
    pub fn receive(&mut self) -> Option<Datagram> {
        self.poll().or_else(|| {
            self.arm();
            // What came before it was armed wakes nobody.
            self.poll()
        })
    }

    fn poll(&mut self) -> Option<Datagram> {
        while self.load(CQ_AT + state::RX_PROD_TAIL) != self.cq_head {
            let at = CQES_AT + u64::from(self.cq_head & (ENTRIES - 1)) * CQE_STRIDE;
            let mut bytes = [0; CQE_STRIDE as usize];
            let _ = ProcessMemory.read(self.at(at), &mut bytes);
            self.cq_head = next(self.cq_head, ENTRIES);
            self.store(CQ_AT + state::RX_CONS_HEAD, self.cq_head);
            let Ok(cqe) = pvrdma_cqe::read_from_bytes(&bytes) else { continue };
            if cqe.opcode == PVRDMA_WC_RECV && cqe.wr_id < u64::from(RECEIVES) {
                let datagram = (cqe.status == PVRDMA_WC_SUCCESS).then(|| self.take(&cqe));
                self.post_receive(cqe.wr_id as u32);
                if let Some(datagram) = datagram.flatten() {
                    return Some(datagram);
                }
            }
        }
        None
    }

    fn take(&self, cqe: &pvrdma_cqe) -> Option<Datagram> {
        let mut room = [0; RECEIVE_ROOM as usize];
        let bytes = room.get_mut(..cqe.byte_len as usize)?;
        ProcessMemory.read(self.at(RECEIVE_BUFFERS_AT + cqe.wr_id * RECEIVE_ROOM), bytes).ok()?;
        let (header, payload) = bytes.split_at_checked(GRH_LEN as usize)?;
        let (from, to) = addresses(header, cqe.network_hdr_type)?;
        Some(Datagram { from, to, bytes: payload.to_vec() })
    }
}

/// Where a datagram came from and went to, by the header in front of it.
fn addresses(header: &[u8], kind: u8) -> Option<(Gid, Gid)> {
    let gid = |at: usize| {
        let mut gid = [0; 16];
        if kind == PVRDMA_NETWORK_IPV4 {
            gid[10..12].fill(0xff);
            gid[12..].copy_from_slice(header.get(at..at + 4)?);
        } else {
            gid.copy_from_slice(header.get(at..at + 16)?);
        }
        Some(gid)
    };
    if kind == PVRDMA_NETWORK_IPV4 { Some((gid(32)?, gid(36)?)) } else { Some((gid(8)?, gid(24)?)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_addresses_stand_in_the_header() {
        let header: Vec<u8> = (0..40).collect();
        let (from, to) = addresses(&header, PVRDMA_NETWORK_IPV6).unwrap();
        assert_eq!((from[0], from[15], to[0], to[15]), (8, 23, 24, 39));
        let (from, to) = addresses(&header, PVRDMA_NETWORK_IPV4).unwrap();
        assert_eq!(from, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 32, 33, 34, 35]);
        assert_eq!(to[12..], [36, 37, 38, 39]);
        assert!(addresses(&header[..39], PVRDMA_NETWORK_IPV6).is_none());
    }

    #[test]
    fn the_parts_of_the_mapping_are_whole_pages() {
        for at in [SQ_AT, RQ_AT, CQ_AT, CQES_AT, SEND_BUFFERS_AT] {
            assert_eq!(at % PAGE, 0);
        }
    }
}
