//! A guest by hand: QEMU and the kernel driver in one, over the real protocol.
//!
//! Used by `protocol.rs` and by the bench. RAM is a memfd that the server maps; the driver's side of every
//! format is written here from its description and shares only the layouts of `pvrdma-ffi` with the device.

#![allow(dead_code, reason = "each user takes a part of it")]

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pvrdma_device::transport::fabric::Fabric;
use pvrdma_ffi::dev_api::*;
use pvrdma_ffi::uapi::vmw_pvrdma::*;
use pvrdma_vfio_user::Settings;
use vfio_user::Client;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use zerocopy::{FromBytes, Immutable, IntoBytes};

pub const RAM: u64 = 64 << 20;
const PAGE: u64 = 4096;
const REG: u32 = PVRDMA_PCI_RESOURCE_REG as u32;
const UAR: u32 = PVRDMA_PCI_RESOURCE_UAR as u32;
const CONFIG: u32 = 7;
const MSIX: u32 = 2;
/// VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER.
const EVENTFD_TRIGGER: u32 = 1 << 2 | 1 << 5;
const FIRST_PFN: u64 = 0xfe000;

/// Servers of a test, with their socket files.
pub struct Servers {
    pub paths: Vec<PathBuf>,
    pub server: Option<pvrdma_vfio_user::Server>,
    _folder: tempfile::TempDir,
}

/// One server process's worth of sockets.
pub fn servers(count: usize) -> Servers {
    servers_with(count, &Settings::default())
}

/// The same with settings.
pub fn servers_with(count: usize, settings: &Settings) -> Servers {
    let folder = tempfile::tempdir().unwrap();
    let paths: Vec<PathBuf> = (0..count).map(|index| folder.path().join(format!("{index}.sock"))).collect();
    let server = pvrdma_vfio_user::start(&paths, settings, &Fabric::new()).unwrap();
    Servers { paths, server: Some(server), _folder: folder }
}

/// Memory, as QEMU shares it.
pub fn memfd(len: u64) -> File {
    // SAFETY: the name is a C string; the result is checked below.
    let fd = unsafe { libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0);
    // SAFETY: `fd` is new and belongs to nobody else.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(len).unwrap();
    file
}

/// A connected guest with RAM at 0.
pub struct Guest {
    pub client: Client,
    pub ram: File,
    pub vectors: Vec<EventFd>,
    next: u64,
    slots: Slots,
}

#[derive(Clone, Copy, Default)]
struct Slots {
    dsr: u64,
    request: u64,
    response: u64,
    cqs: u64,
}

/// A QP with the CQ both of its halves use.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    pub qpn: u32,
    pub qp: u32,
    pub cq: u32,
    ctx: u32,
    pd: u32,
    page: u32,
    qp_state: u64,
    qp_data: u64,
    cq_state: u64,
    cq_data: u64,
    tail: u32,
}

/// A registered region.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    pub addr: u64,
    pub len: u64,
    pub key: u32,
}

/// Entries of every ring.
const DEPTH: u32 = 64;
const CQE_LEN: u64 = 64;
const WQE_LEN: u64 = 128;

impl Guest {
    /// Connects and does what QEMU does at start; no driver yet.
    pub fn connect(path: &Path) -> Guest {
        let mut client = Client::new(path).unwrap();
        let ram = memfd(RAM);
        client.dma_map(0, 0, RAM, ram.as_raw_fd()).unwrap();
        let vectors: Vec<EventFd> = (0..3).map(|_| EventFd::new(EFD_NONBLOCK).unwrap()).collect();
        for (index, vector) in vectors.iter().enumerate() {
            client.set_irqs(MSIX, EVENTFD_TRIGGER, index as u32, 1, &[vector.as_raw_fd()]).unwrap();
        }
        // Memory and bus master on.
        client.region_write(CONFIG, 4, &6u16.to_le_bytes()).unwrap();
        Guest { client, ram, vectors, next: PAGE, slots: Slots::default() }
    }

    /// Connects and loads the driver: shared region, ACTIVATE, one GID.
    pub fn boot(path: &Path, gid: u8) -> Guest {
        let mut guest = Guest::connect(path);
        guest.write_dsr();
        guest.set(PVRDMA_REG_IMR, 0);
        assert_eq!(guest.set_and_err(PVRDMA_REG_CTL, PVRDMA_DEVICE_CTL_ACTIVATE), 0, "ACTIVATE");
        let bind = pvrdma_cmd_create_bind {
            hdr: hdr(PVRDMA_CMD_CREATE_BIND),
            mtu: 1024,
            vlan: 0xfff,
            new_gid: gid_of(gid),
            gid_type: PVRDMA_GID_TYPE_FLAG_ROCE_V2,
            ..Default::default()
        };
        assert_eq!(guest.command(&bind), 0, "CREATE_BIND");
        guest
    }

    /// `count` zeroed pages, one after the other.
    pub fn pages(&mut self, count: u64) -> u64 {
        let at = self.next;
        self.next += count * PAGE;
        assert!(self.next <= RAM, "the guest is out of memory");
        self.ram.write_all_at(&vec![0; (count * PAGE) as usize], at).unwrap();
        at
    }

    /// A page directory over `pages`.
    pub fn directory(&mut self, pages: &[u64]) -> u64 {
        let directory = self.pages(1);
        for (table_index, pages) in pages.chunks(512).enumerate() {
            let table = self.pages(1);
            self.ram.write_all_at(&table.to_le_bytes(), directory + table_index as u64 * 8).unwrap();
            for (index, page) in pages.iter().enumerate() {
                self.ram.write_all_at(&page.to_le_bytes(), table + index as u64 * 8).unwrap();
            }
        }
        directory
    }

    /// Fills the shared region as Linux does and hands it over.
    pub fn write_dsr(&mut self) {
        let dsr = self.pages(1);
        let (request, response) = (self.pages(1), self.pages(1));
        let (events, cqs) = (self.pages(4), self.pages(4));
        let ring = |guest: &mut Guest, first: u64| pvrdma_ring_page_info {
            num_pages: 4,
            reserved: 0,
            pdir_dma: guest.directory(&[first, first + PAGE, first + 2 * PAGE, first + 3 * PAGE]),
        };
        let region = pvrdma_device_shared_region {
            driver_version: PVRDMA_VERSION,
            gos_info: pvrdma_gos_info { gos: 0x46, pad: 0 },
            cmd_slot_dma: request,
            resp_slot_dma: response,
            async_ring_pages: ring(self, events),
            cq_ring_pages: ring(self, cqs),
            uar_pfn64: FIRST_PFN,
            ..Default::default()
        };
        self.ram.write_all_at(region.as_bytes(), dsr).unwrap();
        self.slots = Slots { dsr, request, response, cqs };
        self.write_dsr_again();
    }

    /// Hands the same shared region over once more, as a driver does after kexec.
    pub fn write_dsr_again(&mut self) {
        self.set(PVRDMA_REG_DSRLOW, self.slots.dsr as u32);
        self.set(PVRDMA_REG_DSRHIGH, (self.slots.dsr >> 32) as u32);
    }

    /// What the device wrote into the shared region.
    pub fn caps(&self) -> pvrdma_device_caps {
        let mut region = [0; size_of::<pvrdma_device_shared_region>()];
        self.ram.read_exact_at(&mut region, self.slots.dsr).unwrap();
        pvrdma_device_shared_region::read_from_bytes(&region).unwrap().caps
    }

    pub fn get(&mut self, register: u32) -> u32 {
        let mut word = [0; 4];
        self.client.region_read(REG, u64::from(register), &mut word).unwrap();
        u32::from_le_bytes(word)
    }

    pub fn set(&mut self, register: u32, value: u32) {
        self.client.region_write(REG, u64::from(register), &value.to_le_bytes()).unwrap();
    }

    pub fn set_and_err(&mut self, register: u32, value: u32) -> u32 {
        self.set(register, value);
        self.get(PVRDMA_REG_ERR)
    }

    /// Posts a command and gives ERR.
    pub fn command(&mut self, command: &(impl IntoBytes + Immutable)) -> u32 {
        self.ram.write_all_at(command.as_bytes(), self.slots.request).unwrap();
        self.set_and_err(PVRDMA_REG_REQUEST, 0)
    }

    /// Posts a command that must work and gives its response.
    pub fn ask<T: FromBytes>(&mut self, command: &(impl IntoBytes + Immutable)) -> T {
        assert_eq!(self.command(command), 0, "ERR");
        let mut response = vec![0; size_of::<T>()];
        self.ram.read_exact_at(&mut response, self.slots.response).unwrap();
        assert_eq!(self.fired(0), 1, "vector 0");
        T::read_from_bytes(&response).ok().unwrap()
    }

    /// How often a vector fired since the last look.
    pub fn fired(&self, vector: usize) -> u64 {
        self.vectors[vector].read().unwrap_or(0)
    }

    /// Stores to a UAR page.
    pub fn ring(&mut self, page: u32, offset: usize, value: u32) {
        let at = u64::from(page) * PAGE + offset as u64;
        self.client.region_write(UAR, at, &value.to_le_bytes()).unwrap();
    }

    fn word(&self, at: u64) -> u32 {
        let mut word = [0; 4];
        self.ram.read_exact_at(&mut word, at).unwrap();
        u32::from_le_bytes(word)
    }

    fn set_word(&self, at: u64, value: u32) {
        self.ram.write_all_at(&value.to_le_bytes(), at).unwrap();
    }

    /// The CQ notifications that came, by the driver's index rule.
    pub fn notified(&self) -> Vec<u32> {
        const SLOTS: u32 = 3072;
        let mut cqs = Vec::new();
        let tail = self.word(self.slots.cqs + 8);
        let mut head = self.word(self.slots.cqs + 12);
        while head != tail {
            cqs.push(self.word(self.slots.cqs + PAGE + u64::from(head & (SLOTS - 1)) * 4));
            head = (head + 1) & (2 * SLOTS - 1);
        }
        self.set_word(self.slots.cqs + 12, head);
        cqs
    }

    /// A context on UAR page `page` with a PD, a CQ and a QP in INIT.
    pub fn pair(&mut self, page: u32) -> (Pair, u32) {
        let ctx: pvrdma_cmd_create_uc_resp =
            self.ask(&pvrdma_cmd_create_uc { hdr: hdr(PVRDMA_CMD_CREATE_UC), pfn64: FIRST_PFN + u64::from(page) });
        let pd: pvrdma_cmd_create_pd_resp = self.ask(&pvrdma_cmd_create_pd {
            hdr: hdr(PVRDMA_CMD_CREATE_PD),
            ctx_handle: ctx.ctx_handle,
            ..Default::default()
        });
        (self.pair_in(page, ctx.ctx_handle, pd.pd_handle), pd.pd_handle)
    }

    /// A fresh pair in the context and PD of another.
    pub fn another(&mut self, pair: &Pair) -> Pair {
        self.pair_in(pair.page, pair.ctx, pair.pd)
    }

    fn pair_in(&mut self, page: u32, ctx: u32, pd: u32) -> Pair {
        let cq_pages = self.pages(2);
        let pdir_dma = self.directory(&[cq_pages, cq_pages + PAGE]);
        let cq: pvrdma_cmd_create_cq_resp = self.ask(&pvrdma_cmd_create_cq {
            hdr: hdr(PVRDMA_CMD_CREATE_CQ),
            pdir_dma,
            ctx_handle: ctx,
            cqe: DEPTH,
            nchunks: 2,
            ..Default::default()
        });
        assert_eq!(cq.cqe, DEPTH);
        // State page, two pages of SQ, one of RQ.
        let qp_pages = self.pages(4);
        let list: Vec<u64> = (0..4).map(|index| qp_pages + index * PAGE).collect();
        let pdir_dma = self.directory(&list);
        let qp: pvrdma_cmd_create_qp_resp_v2 = self.ask(&pvrdma_cmd_create_qp {
            hdr: hdr(PVRDMA_CMD_CREATE_QP),
            pdir_dma,
            pd_handle: pd,
            send_cq_handle: cq.cq_handle,
            recv_cq_handle: cq.cq_handle,
            max_send_wr: DEPTH,
            max_recv_wr: DEPTH,
            max_send_sge: 1,
            max_recv_sge: 1,
            total_chunks: 4,
            send_chunks: 2,
            qp_type: PVRDMA_QPT_RC,
            ..Default::default()
        });
        let pair = Pair {
            qpn: qp.qpn,
            qp: qp.qp_handle,
            cq: cq.cq_handle,
            ctx,
            pd,
            page,
            qp_state: qp_pages,
            qp_data: qp_pages + PAGE,
            cq_state: cq_pages,
            cq_data: cq_pages + PAGE,
            tail: 0,
        };
        let attrs = pvrdma_qp_attr {
            qp_state: PVRDMA_QPS_INIT,
            port_num: 1,
            qp_access_flags: PVRDMA_ACCESS_REMOTE_WRITE,
            ..Default::default()
        };
        let mask = PVRDMA_QP_STATE | PVRDMA_QP_PKEY_INDEX | PVRDMA_QP_PORT | PVRDMA_QP_ACCESS_FLAGS;
        assert_eq!(self.modify(&pair, mask, attrs), 0);
        pair
    }

    /// The `err` byte of MODIFY_QP's response.
    pub fn modify(&mut self, pair: &Pair, attr_mask: u32, attrs: pvrdma_qp_attr) -> u8 {
        let response: pvrdma_cmd_resp_hdr =
            self.ask(&pvrdma_cmd_modify_qp { hdr: hdr(PVRDMA_CMD_MODIFY_QP), qp_handle: pair.qp, attr_mask, attrs });
        response.err
    }

    /// INIT to RTS, towards `qpn` at `gid`.
    pub fn join(&mut self, pair: &Pair, gid: u8, qpn: u32) {
        let mut attrs = pvrdma_qp_attr {
            qp_state: PVRDMA_QPS_RTR,
            path_mtu: PVRDMA_MTU_4096,
            dest_qp_num: qpn,
            rq_psn: 77,
            sq_psn: 77,
            max_dest_rd_atomic: 1,
            max_rd_atomic: 1,
            min_rnr_timer: 1,
            timeout: 8,
            retry_cnt: 1,
            rnr_retry: 1,
            ..Default::default()
        };
        attrs.ah_attr.grh.dgid = gid_of(gid);
        let mask = PVRDMA_QP_STATE
            | PVRDMA_QP_AV
            | PVRDMA_QP_PATH_MTU
            | PVRDMA_QP_DEST_QPN
            | PVRDMA_QP_RQ_PSN
            | PVRDMA_QP_MAX_DEST_RD_ATOMIC
            | PVRDMA_QP_MIN_RNR_TIMER;
        assert_eq!(self.modify(pair, mask, attrs), 0, "RTR");
        attrs.qp_state = PVRDMA_QPS_RTS;
        let mask = PVRDMA_QP_STATE
            | PVRDMA_QP_TIMEOUT
            | PVRDMA_QP_RETRY_CNT
            | PVRDMA_QP_RNR_RETRY
            | PVRDMA_QP_SQ_PSN
            | PVRDMA_QP_MAX_QP_RD_ATOMIC;
        assert_eq!(self.modify(pair, mask, attrs), 0, "RTS");
    }

    /// Registers fresh memory, its pages in descending order so that nothing is contiguous by accident.
    pub fn register(&mut self, pd: u32, len: u64) -> Region {
        let count = len.div_ceil(PAGE);
        let first = self.pages(count);
        let list: Vec<u64> = (0..count).rev().map(|index| first + index * PAGE).collect();
        let pdir_dma = self.directory(&list);
        let addr = 0x7f00_0000_0000 + first;
        let mr: pvrdma_cmd_create_mr_resp = self.ask(&pvrdma_cmd_create_mr {
            hdr: hdr(PVRDMA_CMD_CREATE_MR),
            start: addr,
            length: len,
            pdir_dma,
            pd_handle: pd,
            access_flags: PVRDMA_ACCESS_LOCAL_WRITE | PVRDMA_ACCESS_REMOTE_WRITE,
            flags: 0,
            nchunks: count as u32,
        });
        assert_eq!(mr.lkey, mr.rkey);
        Region { addr, len, key: mr.lkey }
    }

    /// Where byte `offset` of a region from `register` is in RAM.
    pub fn place(region: &Region, offset: u64) -> u64 {
        let first = region.addr - 0x7f00_0000_0000;
        let last = region.len.div_ceil(PAGE) - 1;
        first + (last - offset / PAGE) * PAGE + offset % PAGE
    }

    /// Puts an RDMA WRITE into the ring; the doorbell is the caller's.
    pub fn post_write(&mut self, pair: &mut Pair, wr_id: u64, from: &Region, to: &Region, len: u32) {
        let mut wqe = [0u8; WQE_LEN as usize];
        wqe[0..8].copy_from_slice(&wr_id.to_le_bytes());
        wqe[8..12].copy_from_slice(&1u32.to_le_bytes());
        wqe[16..20].copy_from_slice(&PVRDMA_WR_RDMA_WRITE.to_le_bytes());
        wqe[20..24].copy_from_slice(&PVRDMA_SEND_SIGNALED.to_le_bytes());
        wqe[32..40].copy_from_slice(&to.addr.to_le_bytes());
        wqe[40..44].copy_from_slice(&to.key.to_le_bytes());
        wqe[80..88].copy_from_slice(&from.addr.to_le_bytes());
        wqe[88..92].copy_from_slice(&len.to_le_bytes());
        wqe[92..96].copy_from_slice(&from.key.to_le_bytes());
        let slot = u64::from(pair.tail & (DEPTH - 1));
        self.ram.write_all_at(&wqe, pair.qp_data + slot * WQE_LEN).unwrap();
        pair.tail = (pair.tail + 1) & (2 * DEPTH - 1);
        self.set_word(pair.qp_state, pair.tail);
    }

    /// Rings for the send queue.
    pub fn ring_send(&mut self, pair: &Pair) {
        self.ring(pair.page, PVRDMA_UAR_QP_OFFSET, pair.qp | PVRDMA_UAR_QP_SEND);
    }

    /// Arms the CQ.
    pub fn arm(&mut self, pair: &Pair) {
        self.ring(pair.page, PVRDMA_UAR_CQ_OFFSET, pair.cq | PVRDMA_UAR_CQ_ARM);
    }

    /// The doorbell that asks for nothing but a look.
    pub fn ring_poll(&mut self, pair: &Pair) {
        self.ring(pair.page, PVRDMA_UAR_CQ_OFFSET, pair.cq | PVRDMA_UAR_CQ_POLL);
    }

    /// `(wr_id, status)` of the next completion, if there is one.
    pub fn poll(&self, pair: &Pair) -> Option<(u64, u32)> {
        let (tail, head) = (self.word(pair.cq_state + 8), self.word(pair.cq_state + 12));
        if tail == head {
            return None;
        }
        let at = pair.cq_data + u64::from(head & (DEPTH - 1)) * CQE_LEN;
        let mut wr_id = [0; 8];
        self.ram.read_exact_at(&mut wr_id, at).unwrap();
        let status = self.word(at + 20);
        self.set_word(pair.cq_state + 12, (head + 1) & (2 * DEPTH - 1));
        Some((u64::from_le_bytes(wr_id), status))
    }

    /// Waits for the next completion.
    pub fn wait(&self, pair: &Pair) -> (u64, u32) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(completion) = self.poll(pair) {
                return completion;
            }
            assert!(Instant::now() < deadline, "no completion");
            std::thread::yield_now();
        }
    }
}

/// A request header.
pub fn hdr(cmd: u32) -> pvrdma_cmd_hdr {
    pvrdma_cmd_hdr { response: 0xfeed, cmd, reserved: 0 }
}

/// The address of guest `number`.
pub fn gid_of(number: u8) -> [u8; 16] {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, number]
}

/// Two guests, each with a pair joined to the other's, and a region of `len` bytes in each.
pub fn joined(servers: &Servers, len: u64) -> [(Guest, Pair, Region); 2] {
    let mut made = [1u8, 2].map(|number| {
        let mut guest = Guest::boot(&servers.paths[usize::from(number) - 1], number);
        let (pair, pd) = guest.pair(1);
        let region = guest.register(pd, len);
        (guest, pair, region)
    });
    let [a, b] = &mut made;
    a.0.join(&a.1, 2, b.1.qpn);
    b.0.join(&b.1, 1, a.1.qpn);
    made
}
