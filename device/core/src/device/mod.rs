//! The device: owns the objects, takes commands (`commands`) and doorbells (`doorbells`), has the engine run.
//!
//! Fronts call `command`, `doorbell` and `poll`; transports call `receive` and `answered`, and their like for payload
//! that is carried in pieces. All of them may be called from any thread.

mod commands;
mod doorbells;

use crate::budget::Budget;
use crate::clock::Clock;
use crate::engine::{Engine, GID_TBL_LEN, MAX_MR, MAX_QP};
use crate::handle::{CtxHandle, Gid, QpHandle};
use crate::interrupt::{AsyncEvent, Interrupts};
use crate::memory::{MAX_PDIR_PAGES, Memory};
use crate::objects::cq::Cq;
use crate::objects::qp::Qp;
use crate::objects::recv_queue::MAX_RD_ATOMIC;
use crate::objects::srq::Srq;
use crate::objects::table::Table;
use crate::rings::wqe::{MAX_SGE, QpKind};
use crate::transport::figures::QpReport;
use crate::transport::segment::Segment;
use crate::transport::{Answer, Far, MAX_MSG_SZ, Path, Request, Requester, Responder, Token, Transport};
use commands::KeyCounts;
use pvrdma_ffi::dev_api::*;
use pvrdma_ffi::uapi::vmw_pvrdma::{PCI_DEVICE_ID_VMWARE_PVRDMA, PCI_VENDOR_ID_VMWARE, PVRDMA_PAGE_SIZE};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

/// What makes one device differ from another.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// EUI-64, in network order.
    pub node_guid: [u8; 8],
    /// `PVRDMA_GID_TYPE_FLAG_ROCE_V1` or `_V2`; exactly one.
    pub gid_type: u8,
    /// QP numbers are this plus the handle. The low 15 bits must be 0.
    pub qpn_base: u32,
    /// Number of doorbell pages, the kernel's included; a power of two.
    pub max_uar: u32,
    /// Bytes that the guest may make the device hold (`budget.rs` has a default); past it creates fail with ENOMEM.
    pub memory_limit: u64,
    /// Bytes of a full packet's payload that the port carries: 256 to 4096, a power of two.
    pub mtu: u32,
}

/// `PVRDMA_MTU_*` of so many bytes.
fn mtu_code(bytes: u32) -> u32 {
    bytes.checked_ilog2().unwrap_or_default().saturating_sub(7).clamp(PVRDMA_MTU_256, PVRDMA_MTU_4096)
}

const MAX_CQ: u32 = 65536;
const MAX_PD: u32 = 65536;
const MAX_QP_WR: u32 = 16384;
const MAX_CQE: u32 = 262_144;
const MAX_SRQ: u32 = 16384;
const MAX_SRQ_WR: u32 = 16384;
/// Longest page list of a fast-register region; Linux asks for no more (pvrdma_dev_api.h: `PVRDMA_MAX_FAST_REG_PAGES`).
const MAX_FAST_REG_PAGES: u32 = 128;
/// The only P_Key.
pub const DEFAULT_PKEY: u16 = 0xffff;

/// A PVRDMA device.
pub struct Device {
    config: Config,
    engine: Engine,
    budget: Arc<Budget>,
    contexts: Table<Context>,
    pds: Table<Pd>,
    cqs: Table<Cq>,
    srqs: Table<Srq>,
    /// Completions ever put into a CQ (`Cq::polled`).
    puts: Arc<AtomicU32>,
    /// Serialises commands: they come from one driver each, but contexts of a process are many threads.
    commands: Mutex<KeyCounts>,
}

/// A user context: a UAR page and what was made through it.
#[derive(Debug)]
struct Context;

/// A protection domain.
#[derive(Debug)]
struct Pd {
    ctx: CtxHandle,
}

impl Device {
    /// A device in reset state.
    pub fn new(
        config: Config,
        memory: Arc<dyn Memory>,
        interrupts: Arc<dyn Interrupts>,
        transport: Arc<dyn Transport>,
    ) -> Arc<Device> {
        Device::with_clock(config, memory, interrupts, transport, Clock::default())
    }

    /// The same, for which the time is that of `clock`.
    pub fn with_clock(
        config: Config,
        memory: Arc<dyn Memory>,
        interrupts: Arc<dyn Interrupts>,
        transport: Arc<dyn Transport>,
        clock: Clock,
    ) -> Arc<Device> {
        let budget = &Budget::new(config.memory_limit);
        Arc::new(Device {
            config,
            engine: Engine::new(memory, interrupts, transport, (config.gid_type, config.mtu), budget, clock),
            budget: budget.clone(),
            contexts: Table::new(1, config.max_uar, budget),
            pds: Table::new(1, MAX_PD, budget),
            cqs: Table::new(0, MAX_CQ, budget),
            srqs: Table::new(1, MAX_SRQ, budget),
            puts: Arc::default(),
            commands: Mutex::default(),
        })
    }

    /// Capabilities, constant for the life of the device (pvrdma_dev_api.h: `pvrdma_device_caps`).
    pub fn caps(&self) -> pvrdma_device_caps {
        pvrdma_device_caps {
            fw_ver: 1 << 32,
            node_guid: u64::from_ne_bytes(self.config.node_guid),
            sys_image_guid: u64::from_ne_bytes(self.config.node_guid),
            // One page less than a directory can hold, so that an unaligned region still fits.
            max_mr_size: u64::from(MAX_PDIR_PAGES - 1) * PVRDMA_PAGE_SIZE as u64,
            page_size_cap: PVRDMA_PAGE_SIZE as u64,
            vendor_id: u32::from(PCI_VENDOR_ID_VMWARE),
            vendor_part_id: u32::from(PCI_DEVICE_ID_VMWARE_PVRDMA),
            hw_ver: PVRDMA_REV_ID,
            max_qp: MAX_QP,
            max_qp_wr: MAX_QP_WR,
            max_sge: MAX_SGE as u32,
            max_sge_rd: MAX_SGE as u32,
            max_cq: MAX_CQ,
            max_cqe: MAX_CQE,
            max_mr: MAX_MR,
            max_pd: MAX_PD,
            max_qp_rd_atom: u32::from(MAX_RD_ATOMIC),
            max_qp_init_rd_atom: u32::from(MAX_RD_ATOMIC),
            max_ah: 1024,
            max_srq: MAX_SRQ,
            max_srq_wr: MAX_SRQ_WR,
            max_srq_sge: MAX_SGE as u32,
            atomic_ops: PVRDMA_ATOMIC_OP_COMP_SWAP | PVRDMA_ATOMIC_OP_FETCH_ADD,
            bmme_flags: PVRDMA_BMME_FLAG_LOCAL_INV | PVRDMA_BMME_FLAG_REMOTE_INV | PVRDMA_BMME_FLAG_FAST_REG_WR,
            max_fast_reg_page_list_len: MAX_FAST_REG_PAGES,
            max_uar: self.config.max_uar,
            gid_tbl_len: GID_TBL_LEN,
            max_pkeys: 1,
            phys_port_cnt: 1,
            gid_types: self.config.gid_type,
            ..Default::default()
        }
    }

    /// Attributes of port 1.
    pub fn port(&self) -> pvrdma_port_attr {
        let up = self.engine.port_is_up();
        pvrdma_port_attr {
            state: if up { PVRDMA_PORT_ACTIVE } else { PVRDMA_PORT_DOWN },
            max_mtu: PVRDMA_MTU_4096,
            active_mtu: mtu_code(self.config.mtu),
            gid_tbl_len: GID_TBL_LEN,
            max_msg_sz: MAX_MSG_SZ,
            pkey_tbl_len: 1,
            max_vl_num: 1,
            active_width: PVRDMA_WIDTH_4X,
            active_speed: PVRDMA_SPEED_EDR,
            phys_state: if up { PVRDMA_PORT_PHYS_LINK_UP } else { PVRDMA_PORT_PHYS_DISABLED },
            qkey_viol_cntr: self.engine.qkey_violations.load(Ordering::Relaxed),
            ..Default::default()
        }
    }

    /// Plugs the cable of port 1 in or pulls it out: nothing is sent or received while it is down.
    pub fn set_port(&self, up: bool) {
        if self.engine.up.swap(up, Ordering::Relaxed) != up {
            self.engine.interrupts.async_event(if up { AsyncEvent::PortActive } else { AsyncEvent::PortErr });
        }
    }

    /// The GID at `index`.
    pub fn gid(&self, index: u32) -> Option<Gid> {
        self.engine.gid(index)
    }

    /// The way from a connected QP to its peer, as things are now.
    pub fn path(&self, qp: QpHandle) -> Path {
        self.engine.qp(qp).map_or(Path::None, |qp| self.engine.path_of(&qp, &qp.attrs()))
    }

    /// What its QPs are and have done. It waits for none of their queues.
    pub fn report(&self) -> Vec<QpReport> {
        let report = |qp: &Arc<Qp>| {
            let (attrs, state, sent) = (qp.attrs(), qp.state(), qp.sent());
            let connected = qp.kind == QpKind::Rc && !matches!(state, PVRDMA_QPS_RESET | PVRDMA_QPS_INIT);
            QpReport {
                qpn: qp.qpn,
                kind: qp.kind,
                state,
                peer: connected.then(|| attrs.peer()),
                path: if connected { self.engine.path_of(qp, &attrs) } else { Path::None },
                sent: sent.done.read(),
                received: qp.received().read(),
                resent: sent.resent.load(Ordering::Relaxed),
                rnr: sent.rnr.load(Ordering::Relaxed),
            }
        };
        self.engine.qps.all().iter().map(report).collect()
    }

    /// The addresses it answers to.
    pub fn gids(&self) -> Vec<Gid> {
        (0..GID_TBL_LEN).filter_map(|index| self.engine.gid(index)).collect()
    }

    /// Bytes that the guest can still make the device hold.
    pub fn budget_left(&self) -> u64 {
        self.budget.left()
    }
}

impl Responder for Device {
    fn receive(&self, request: &Request, far: &dyn Far) -> Answer {
        self.engine.receive(request, far)
    }

    fn receive_segment(&self, piece: &Segment, far: &dyn Far) -> Answer {
        self.engine.receive_segment(piece, far)
    }
}

impl Requester for Device {
    fn payload(&self, token: Token, offset: u64, into: &mut [u8]) -> bool {
        self.engine.payload(token, offset, into)
    }

    fn arrived(&self, token: Token, offset: u64, bytes: &[u8]) -> bool {
        self.engine.arrived(token, offset, bytes)
    }

    fn answered(&self, token: Token, answer: Answer) {
        self.engine.answered(token, answer);
    }

    fn room(&self) {
        self.engine.room();
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // Takes back what is on its way: the transport may live longer than the guest's memory.
        self.reset();
    }
}
