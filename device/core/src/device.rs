//! The device: owns the tables, takes commands and doorbells, runs the engine.
//!
//! Fronts call `command`, `doorbell` and `poll`; transports call `receive` and `answered`. All of them may be called
//! from any thread.

use crate::budget::{Budget, Claim};
use crate::command::{Command, CommandError, CreateQp, MrKind, Response};
use crate::cq::Cq;
use crate::doorbell::Doorbell;
use crate::engine::schedule::Schedule;
use crate::handle::*;
use crate::interrupt::{AsyncEvent, Interrupts};
use crate::memory::{Buffer, MAX_PDIR_PAGES, Memory, PageTable};
use crate::mr::Mr;
use crate::qp::{MAX_RD_ATOMIC, Qp, QpKind, check_create, judge_modify, merge};
use crate::srq::{SRQ_EXTRA, Srq};
use crate::table::Table;
use crate::transport::{Endpoint, Transport};
use crate::wqe::MAX_SGE;
use pvrdma_ffi::dev_api::*;
use pvrdma_ffi::uapi::vmw_pvrdma::{
    PVRDMA_ACCESS_LOCAL_WRITE, PVRDMA_ACCESS_REMOTE_ATOMIC, PVRDMA_ACCESS_REMOTE_WRITE, PVRDMA_PAGE_SIZE,
};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

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
}

/// Handles of user QPs start here: 0 reads as "none" for providers, 1 is the GSI QP.
const FIRST_QP: u32 = 2;
/// How long a doorbell runs work that others left, besides its own: its caller waits.
const DOORBELL_TURN: Duration = Duration::from_micros(100);
/// The same for `poll`, whose caller has nothing better to do.
const POLL_TURN: Duration = Duration::from_millis(2);

const MAX_QP: u32 = 32768;
const MAX_CQ: u32 = 65536;
const MAX_MR: u32 = 1 << 20;
const MAX_PD: u32 = 65536;
const MAX_QP_WR: u32 = 16384;
const MAX_CQE: u32 = 65536;
const MAX_SRQ: u32 = 16384;
const MAX_SRQ_WR: u32 = 16384;
/// Longest page list of a fast-register region; Linux asks for no more (pvrdma_dev_api.h: `PVRDMA_MAX_FAST_REG_PAGES`).
const MAX_FAST_REG_PAGES: u32 = 128;
/// Bytes that hang on a QP beside its page list: work it has taken, scratch lists it keeps.
const QP_EXTRA: u64 = 12 << 10;
/// Length of the GID table, in caps and port alike: Linux sizes its shadow table by one and indexes by the other.
pub const GID_TBL_LEN: u32 = 16;
/// Longest message: 1 GiB.
pub const MAX_MSG_SZ: u32 = 1 << 30;
/// The only P_Key.
pub const DEFAULT_PKEY: u16 = 0xffff;

/// A PVRDMA device.
pub struct Device {
    config: Config,
    memory: Arc<dyn Memory>,
    interrupts: Arc<dyn Interrupts>,
    transport: Arc<dyn Transport>,
    budget: Arc<Budget>,
    contexts: Table<Context>,
    pds: Table<Pd>,
    mrs: Table<Mr>,
    cqs: Table<Cq>,
    qps: Table<Qp>,
    srqs: Table<Srq>,
    /// The link of port 1.
    up: AtomicBool,
    qkey_violations: AtomicU32,
    gids: RwLock<[Option<Gid>; GID_TBL_LEN as usize]>,
    /// Serialises commands: they come from one driver each, but contexts of a process are many threads.
    commands: Mutex<KeyCounts>,
    schedule: Schedule,
    /// Read by whoever copies for a requester, written to wait for them (see `quiesce`).
    requesting: RwLock<()>,
    /// The same for responders.
    responding: RwLock<()>,
}

/// How often each MR index was given out: the low byte of its key.
type KeyCounts = Vec<u8>;

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
        let budget = &Budget::new(config.memory_limit);
        Arc::new(Device {
            config,
            memory,
            interrupts,
            transport,
            budget: budget.clone(),
            contexts: Table::new(1, config.max_uar, budget),
            pds: Table::new(1, MAX_PD, budget),
            // Index 0 is left out: key 0 is never valid.
            mrs: Table::new(1, MAX_MR, budget),
            cqs: Table::new(0, MAX_CQ, budget),
            qps: Table::new(FIRST_QP, MAX_QP, budget),
            srqs: Table::new(1, MAX_SRQ, budget),
            up: AtomicBool::new(true),
            qkey_violations: AtomicU32::new(0),
            gids: RwLock::default(),
            commands: Mutex::default(),
            schedule: Schedule::default(),
            requesting: RwLock::new(()),
            responding: RwLock::new(()),
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
            vendor_id: u32::from(pvrdma_ffi::uapi::vmw_pvrdma::PCI_VENDOR_ID_VMWARE),
            vendor_part_id: u32::from(pvrdma_ffi::uapi::vmw_pvrdma::PCI_DEVICE_ID_VMWARE_PVRDMA),
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
        let up = self.port_is_up();
        pvrdma_port_attr {
            state: if up { PVRDMA_PORT_ACTIVE } else { PVRDMA_PORT_DOWN },
            max_mtu: PVRDMA_MTU_4096,
            active_mtu: PVRDMA_MTU_4096,
            gid_tbl_len: GID_TBL_LEN,
            max_msg_sz: MAX_MSG_SZ,
            pkey_tbl_len: 1,
            max_vl_num: 1,
            active_width: PVRDMA_WIDTH_4X,
            active_speed: PVRDMA_SPEED_EDR,
            phys_state: if up { PVRDMA_PORT_PHYS_LINK_UP } else { PVRDMA_PORT_PHYS_DISABLED },
            qkey_viol_cntr: self.qkey_violations.load(Ordering::Relaxed),
            ..Default::default()
        }
    }

    /// Plugs the cable of port 1 in or pulls it out: nothing is sent or received while it is down.
    pub fn set_port(&self, up: bool) {
        if self.up.swap(up, Ordering::Relaxed) != up {
            self.interrupts.async_event(if up { AsyncEvent::PortActive } else { AsyncEvent::PortErr });
        }
    }

    pub(crate) fn port_is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    pub(crate) fn count_qkey_violation(&self) {
        self.qkey_violations.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn gid_type(&self) -> u8 {
        self.config.gid_type
    }

    // ---- commands ------------------------------------------------------------------------------

    /// Executes a command completely: on return of a DESTROY nothing of the object is touched any more.
    pub fn command(&self, command: &Command) -> Result<Response, CommandError> {
        let mut keys = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        match command {
            Command::QueryPort { port_num: 1 } => Ok(Response::QueryPort(Box::new(self.port()))),
            Command::QueryPort { .. } => Err(CommandError::Invalid("port_num")),
            Command::QueryPkey { port_num: 1, index: 0 } => Ok(Response::QueryPkey { pkey: DEFAULT_PKEY }),
            Command::QueryPkey { .. } => Err(CommandError::Invalid("port_num or pkey index")),
            Command::CreateUc { .. } => {
                let mut ctx = CtxHandle(0);
                let claim = self.claim::<Context>("context", 0, 0)?;
                made(
                    self.contexts.insert(claim, |handle| {
                        ctx = CtxHandle(handle);
                        Ok(Context)
                    }),
                    "context",
                )?;
                Ok(Response::CreateUc { ctx })
            }
            Command::DestroyUc { ctx } => self.destroy_uc(*ctx),
            Command::CreatePd { ctx } => {
                self.check_ctx(*ctx)?;
                let mut pd = PdHandle(0);
                let claim = self.claim::<Pd>("PD", 0, 0)?;
                made(
                    self.pds.insert(claim, |handle| {
                        pd = PdHandle(handle);
                        Ok(Pd { ctx: *ctx })
                    }),
                    "PD",
                )?;
                Ok(Response::CreatePd { pd })
            }
            Command::DestroyPd { pd } => self.destroy_pd(*pd),
            Command::CreateMr { pd, start, length, access_flags, kind } => {
                self.create_mr(&mut keys, *pd, *start, *length, *access_flags, kind)
            }
            Command::DestroyMr { mr } => self.destroy_mr(*mr),
            Command::CreateCq { ctx, cqe, buffer } => self.create_cq(*ctx, *cqe, buffer),
            Command::DestroyCq { cq } => self.destroy_cq(*cq),
            Command::CreateQp(create) => self.create_qp(create),
            Command::ModifyQp { qp, attr_mask, attrs } => self.modify_qp(*qp, *attr_mask, attrs),
            Command::QueryQp { qp, .. } => self.query_qp(*qp),
            Command::DestroyQp { qp } => self.destroy_qp(*qp),
            Command::CreateBind { index, gid, gid_type, .. } => self.bind_gid(*index, Some((*gid, *gid_type))),
            Command::DestroyBind { index, .. } => self.bind_gid(*index, None),
            Command::CreateSrq { pd, max_wr, max_sge, srq_limit, srq_type, buffer } => {
                self.create_srq(*pd, (*max_wr, *max_sge, *srq_limit), *srq_type, buffer)
            }
            Command::ModifySrq { srq, attr_mask, srq_limit } => self.modify_srq(*srq, *attr_mask, *srq_limit),
            Command::QuerySrq { srq } => {
                let srq = self.srqs.get(srq.0).ok_or(CommandError::NoSuch("SRQ"))?;
                Ok(Response::QuerySrq { max_wr: srq.max_wr, max_sge: srq.max_sge, srq_limit: srq.limit() })
            }
            Command::DestroySrq { srq } => self.destroy_srq(*srq),
        }
    }

    /// Claims what a `T` and its page list cost, before any of it is allocated.
    fn claim<T>(&self, what: &'static str, extra: u64, pages: u64) -> Result<Claim, CommandError> {
        self.budget.claim::<T>(extra, pages).ok_or(CommandError::Full(what))
    }

    /// Bytes that the guest can still make the device hold.
    pub fn budget_left(&self) -> u64 {
        self.budget.left()
    }

    fn check_ctx(&self, ctx: CtxHandle) -> Result<(), CommandError> {
        let known = ctx == KERNEL || self.contexts.get(ctx.0).is_some();
        if known { Ok(()) } else { Err(CommandError::NoSuch("context")) }
    }

    /// Ends a context and whatever it left behind, in the order the objects depend on each other.
    fn destroy_uc(&self, ctx: CtxHandle) -> Result<Response, CommandError> {
        self.contexts.remove(ctx.0).ok_or(CommandError::NoSuch("context"))?;
        for qp in self.qps.all().iter().filter(|qp| qp.ctx == ctx) {
            self.destroy_qp(qp.handle)?;
        }
        self.srqs.retain(|srq| srq.ctx != ctx);
        self.cqs.retain(|cq| cq.ctx != ctx);
        for mr in self.mrs.all().iter().filter(|mr| mr.ctx == ctx) {
            self.destroy_mr(mr.handle)?;
        }
        self.pds.retain(|pd| pd.ctx != ctx);
        Ok(Response::Done)
    }

    fn destroy_pd(&self, pd: PdHandle) -> Result<Response, CommandError> {
        let used =
            self.qps.any(|qp| qp.pd == pd) || self.mrs.any(|mr| mr.pd == pd) || self.srqs.any(|srq| srq.pd == pd);
        if used {
            return Err(CommandError::Busy("PD"));
        }
        self.pds.remove(pd.0).ok_or(CommandError::NoSuch("PD"))?;
        Ok(Response::Done)
    }

    fn create_mr(
        &self,
        keys: &mut KeyCounts,
        pd: PdHandle,
        start: u64,
        length: u64,
        access: u32,
        kind: &MrKind,
    ) -> Result<Response, CommandError> {
        let ctx = self.pds.get(pd.0).ok_or(CommandError::NoSuch("PD"))?.ctx;
        // IBA vol. 1, 10.6.3.1: who lets others write must be able to write.
        if access & (PVRDMA_ACCESS_REMOTE_WRITE | PVRDMA_ACCESS_REMOTE_ATOMIC) != 0
            && access & PVRDMA_ACCESS_LOCAL_WRITE == 0
        {
            return Err(CommandError::Invalid("remote write without local write"));
        }
        let list = match kind {
            MrKind::User(buffer) => buffer.page_entries(),
            MrKind::FastReg { max_pages } if *max_pages > MAX_FAST_REG_PAGES => {
                return Err(CommandError::Invalid("pages of a fast-register region"));
            }
            MrKind::FastReg { max_pages } => u64::from(*max_pages),
            MrKind::Dma => 0,
        };
        let claim = self.claim::<Mr>("MR", 0, list)?;
        let (start, length, pages) = match kind {
            MrKind::User(buffer) => {
                if length == 0 || length > self.caps().max_mr_size || start.checked_add(length).is_none() {
                    return Err(CommandError::Invalid("length of memory region"));
                }
                let pages = PageTable::resolve(buffer, &*self.memory)?;
                let lead = if matches!(pages, PageTable::Flat(_)) { 0 } else { start % PVRDMA_PAGE_SIZE as u64 };
                if pages.len() < lead + length {
                    return Err(CommandError::Invalid("fewer pages than the region spans"));
                }
                (start, length, Some(pages))
            }
            // The kernel's own region over everything; users never reach this command.
            MrKind::Dma if ctx == KERNEL => {
                let all = crate::memory::Span { addr: crate::memory::DmaAddr(0), len: u64::MAX };
                (0, u64::MAX, Some(PageTable::Flat(all)))
            }
            MrKind::Dma => return Err(CommandError::Invalid("DMA region of a user context")),
            MrKind::FastReg { .. } => (0, 0, None),
        };
        let fast_reg = match kind {
            MrKind::FastReg { max_pages } => Some(*max_pages),
            MrKind::User(_) | MrKind::Dma => None,
        };
        let mr = made(
            self.mrs.insert(claim, |handle| {
                if keys.len() <= handle as usize {
                    keys.resize(handle as usize + 1, 0);
                }
                let count = &mut keys[handle as usize];
                *count = count.wrapping_add(1);
                let key = handle << 8 | u32::from(*count);
                Ok(Mr { handle: MrHandle(handle), ctx, pd, key, start, length, access, pages, fast_reg })
            }),
            "MR",
        )?;
        if mr.ctx != KERNEL {
            self.transport.mr_added(mr.key, &mr.bounds());
        }
        Ok(Response::CreateMr { mr: mr.handle, lkey: Lkey(mr.key), rkey: Rkey(mr.key) })
    }

    fn destroy_mr(&self, mr: MrHandle) -> Result<Response, CommandError> {
        let mr = self.mrs.remove(mr.0).ok_or(CommandError::NoSuch("MR"))?;
        self.transport.mr_removed(mr.key);
        self.quiesce();
        // What is on its way may still name it: have it judged again.
        for qp in self.qps.all() {
            self.resubmit(&qp, mr.key);
        }
        Ok(Response::Done)
    }

    fn create_cq(&self, ctx: CtxHandle, cqe: u32, buffer: &Buffer) -> Result<Response, CommandError> {
        self.check_ctx(ctx)?;
        if !cqe.is_power_of_two() || cqe > MAX_CQE {
            return Err(CommandError::Invalid("cqe"));
        }
        let claim = self.claim::<Cq>("CQ", 0, buffer.page_entries())?;
        let pages = ring_pages(buffer, &*self.memory)?;
        let cq = made(self.cqs.insert(claim, |handle| Cq::new(CqHandle(handle), ctx, cqe, pages)), "CQ")?;
        Ok(Response::CreateCq { cq: cq.handle, cqe })
    }

    fn destroy_cq(&self, cq: CqHandle) -> Result<Response, CommandError> {
        let used = self.qps.any(|qp| qp.send_cq.handle == cq || qp.recv_cq.handle == cq);
        if used {
            return Err(CommandError::Busy("CQ"));
        }
        self.cqs.remove(cq.0).ok_or(CommandError::NoSuch("CQ"))?;
        Ok(Response::Done)
    }

    fn create_qp(&self, create: &CreateQp) -> Result<Response, CommandError> {
        let kind = check_create(create, &self.caps())?;
        let ctx = self.pds.get(create.pd.0).ok_or(CommandError::NoSuch("PD"))?.ctx;
        if kind == QpKind::Gsi && ctx != KERNEL {
            return Err(CommandError::Invalid("GSI QP of a user context"));
        }
        let cq = |handle: CqHandle| self.cqs.get(handle.0).filter(|cq| cq.ctx == ctx).ok_or(CommandError::NoSuch("CQ"));
        let cqs = (cq(create.send_cq)?, cq(create.recv_cq)?);
        let srq = match create.srq {
            Some(srq) => {
                let found = self.srqs.get(srq.0).filter(|srq| srq.ctx == ctx);
                Some(found.ok_or(CommandError::NoSuch("SRQ"))?)
            }
            None => None,
        };
        let claim = self.claim::<Qp>("QP", QP_EXTRA, create.buffer.page_entries())?;
        let pages = ring_pages(&create.buffer, &*self.memory)?;
        let make = |handle: u32| {
            let handle = QpHandle(handle);
            let qpn = match kind {
                QpKind::Gsi => Qpn(1),
                QpKind::Rc | QpKind::Ud => Qpn(self.config.qpn_base | handle.0),
            };
            let psn = self.transport.expected_psn(handle);
            Qp::new(handle, qpn, ctx, kind, create, pages, cqs, srq, psn)
        };
        let qp = made(
            match kind {
                QpKind::Gsi => self.qps.insert_at(1, claim, || make(1)),
                QpKind::Rc | QpKind::Ud => self.qps.insert(claim, make),
            },
            "QP",
        )?;
        Ok(Response::CreateQp { qpn: qp.qpn, qp: qp.handle })
    }

    fn modify_qp(&self, handle: QpHandle, mask: u32, new: &pvrdma_qp_attr) -> Result<Response, CommandError> {
        let qp = self.qp(handle).ok_or(CommandError::NoSuch("QP"))?;
        let mask = mask & PVRDMA_QP_ATTR_MASK;
        // Both halves stand still while attributes change.
        let mut sq = qp.lock_sq();
        let rq = qp.lock_rq();
        let from = qp.state();
        let to = judge_modify(qp.kind, from, mask, new)?;
        let mut attrs = qp.lock_attrs();
        let mut next = *attrs;
        if to != PVRDMA_QPS_RESET && to != PVRDMA_QPS_ERR {
            merge(&mut next.raw, new, mask);
        }
        if mask & PVRDMA_QP_AV != 0 && to != PVRDMA_QPS_RESET && to != PVRDMA_QPS_ERR {
            let sgid = self.gid(u32::from(new.ah_attr.grh.sgid_index)).ok_or(CommandError::Invalid("sgid_index"))?;
            next.local = Endpoint { gid: sgid, qpn: qp.qpn };
        }
        if to == PVRDMA_QPS_RESET {
            next = crate::qp::Attrs::default();
        }
        *attrs = next;
        drop(attrs);
        if mask & PVRDMA_QP_RQ_PSN != 0 && to == PVRDMA_QPS_RTR {
            qp.expected_psn().store(Psn::new(new.rq_psn).get(), Ordering::Release);
        }
        if mask & PVRDMA_QP_SQ_PSN != 0 && to == PVRDMA_QPS_RTS {
            sq.psn = Psn::new(new.sq_psn);
        }
        if to == PVRDMA_QPS_RTS {
            sq.renew_retries(&next.raw);
        }
        if from != to {
            let asked = mask & PVRDMA_QP_EN_SQD_ASYNC_NOTIFY != 0 && new.en_sqd_async_notify != 0;
            sq.drain_event = to == PVRDMA_QPS_SQD && asked;
        }
        sq.told_err = to == PVRDMA_QPS_ERR;
        let mut rq = rq;
        if to == PVRDMA_QPS_RESET {
            qp.set_state(PVRDMA_QPS_RESET);
            rq.reset(qp.srq.as_deref());
        } else {
            qp.set_state(to);
        }
        // Others may act on the former state until the transport knows; the responder lock keeps ours still.
        drop(rq);
        self.transport.qp_changed(&qp.view());
        if to == PVRDMA_QPS_RESET {
            self.drop_sends(&qp, &mut sq);
        }
        drop(sq);
        qp.renew_credit();
        if matches!(to, PVRDMA_QPS_ERR | PVRDMA_QPS_RTS | PVRDMA_QPS_SQD) {
            self.run_qp(&qp);
        }
        Ok(Response::Done)
    }

    fn query_qp(&self, handle: QpHandle) -> Result<Response, CommandError> {
        let qp = self.qp(handle).ok_or(CommandError::NoSuch("QP"))?;
        let mut attrs = qp.attrs().raw;
        attrs.qp_state = qp.state();
        attrs.cur_qp_state = attrs.qp_state;
        attrs.cap = qp.cap;
        attrs.sq_draining = u8::from(attrs.qp_state == PVRDMA_QPS_SQD && !qp.lock_sq().is_idle());
        Ok(Response::QueryQp(Box::new(attrs)))
    }

    fn destroy_qp(&self, handle: QpHandle) -> Result<Response, CommandError> {
        let qp = self.qps.remove(handle.0).ok_or(CommandError::NoSuch("QP"))?;
        let mut sq = qp.lock_sq();
        {
            // Waits for a responder that is copying, and turns away later ones.
            let mut rq = qp.lock_rq();
            qp.set_state(PVRDMA_QPS_RESET);
            rq.reset(qp.srq.as_deref());
        }
        self.transport.qp_changed(&qp.view());
        self.drop_sends(&qp, &mut sq);
        Ok(Response::Done)
    }

    fn create_srq(
        &self,
        pd: PdHandle,
        (max_wr, max_sge, limit): (u32, u32, u32),
        srq_type: u8,
        buffer: &Buffer,
    ) -> Result<Response, CommandError> {
        if srq_type != PVRDMA_SRQT_BASIC {
            return Err(CommandError::NotSupported("SRQ type"));
        }
        let ctx = self.pds.get(pd.0).ok_or(CommandError::NoSuch("PD"))?.ctx;
        if !max_wr.is_power_of_two() || max_wr > MAX_SRQ_WR || max_sge > MAX_SGE as u32 {
            return Err(CommandError::Invalid("max_wr or max_sge of an SRQ"));
        }
        if limit > max_wr {
            return Err(CommandError::Invalid("srq_limit above max_wr"));
        }
        let claim = self.claim::<Srq>("SRQ", SRQ_EXTRA, buffer.page_entries())?;
        let pages = ring_pages(buffer, &*self.memory)?;
        let make = |handle| Srq::new(SrqHandle(handle), ctx, pd, (max_wr, max_sge, limit), pages);
        let srq = made(self.srqs.insert(claim, make), "SRQ")?;
        Ok(Response::CreateSrq { srq: srq.handle })
    }

    fn modify_srq(&self, srq: SrqHandle, mask: u32, limit: u32) -> Result<Response, CommandError> {
        let srq = self.srqs.get(srq.0).ok_or(CommandError::NoSuch("SRQ"))?;
        // MAX_WR may stand beside it; Linux lets it through and does not say to what.
        if mask & PVRDMA_SRQ_LIMIT == 0 {
            return Err(CommandError::Invalid("attr_mask of an SRQ"));
        }
        srq.set_limit(limit)?;
        Ok(Response::Done)
    }

    fn destroy_srq(&self, srq: SrqHandle) -> Result<Response, CommandError> {
        if self.qps.any(|qp| qp.srq.as_ref().is_some_and(|of| of.handle == srq)) {
            return Err(CommandError::Busy("SRQ"));
        }
        self.srqs.remove(srq.0).ok_or(CommandError::NoSuch("SRQ"))?;
        Ok(Response::Done)
    }

    fn bind_gid(&self, index: u32, gid: Option<(Gid, u8)>) -> Result<Response, CommandError> {
        let mut gids = self.gids.write().unwrap_or_else(PoisonError::into_inner);
        let slot = gids.get_mut(index as usize).ok_or(CommandError::Invalid("GID index"))?;
        if gid.is_some_and(|(_, gid_type)| gid_type != self.config.gid_type) {
            return Err(CommandError::Invalid("GID type"));
        }
        let old = std::mem::replace(slot, gid.map(|(gid, _)| gid));
        let still_bound = |gid: &Gid, gids: &[Option<Gid>]| gids.contains(&Some(*gid));
        if let Some(old) = old.filter(|old| !still_bound(old, &*gids)) {
            self.transport.gid_bound(old, false);
        }
        if let Some((gid, _)) = gid {
            self.transport.gid_bound(gid, true);
        }
        Ok(Response::Done)
    }

    // ---- doorbells and the engine --------------------------------------------------------------

    /// A store to the doorbell page of `ctx`. A handle that names nothing of that context is ignored, as the
    /// real device has no way to answer; the kernel's page may name everything.
    pub fn doorbell(&self, ctx: CtxHandle, doorbell: Doorbell) {
        let owns = |owner: CtxHandle| ctx == KERNEL || owner == ctx;
        match doorbell {
            Doorbell::Qp { qp, send, .. } => {
                if let Some(qp) = self.qp(qp).filter(|qp| owns(qp.ctx)) {
                    qp.renew_credit();
                    // The receive was posted before we look at the state; `Qp::set_state` has the other fence.
                    fence(Ordering::SeqCst);
                    // A receive is taken when a message needs it, so its doorbell matters only to a QP that flushes.
                    // Linux may publish sends and not ring for them: its doorbells have both rings looked at.
                    if send || ctx == KERNEL || qp.state() == PVRDMA_QPS_ERR {
                        self.run_qp(&qp);
                    }
                }
            }
            Doorbell::Cq { cq, arm, .. } => {
                if let Some(arm) = arm
                    && let Some(cq) = self.cqs.get(cq.0).filter(|cq| owns(cq.ctx))
                {
                    cq.arm(arm);
                }
            }
            // A receive is taken when a message needs it.
            Doorbell::Srq { .. } => {}
        }
        self.run_ready(DOORBELL_TURN);
    }

    /// CQ `cq` of `ctx` was polled; whether its consumer spins ([`Cq::polled`]).
    pub fn cq_polled(&self, ctx: CtxHandle, cq: CqHandle) -> bool {
        let owned = self.cqs.get(cq.0).filter(|cq| ctx == KERNEL || cq.ctx == ctx);
        owned.is_some_and(|cq| cq.polled())
    }

    /// Whether CQ `cq` of `ctx` holds nothing for its consumer.
    pub fn cq_is_empty(&self, ctx: CtxHandle, cq: CqHandle) -> bool {
        let owned = self.cqs.get(cq.0).filter(|cq| ctx == KERNEL || cq.ctx == ctx);
        owned.is_none_or(|cq| cq.is_empty(&*self.memory))
    }

    /// Runs what is due. Returns when to call again at the latest; `Interrupts::wake` may ask for it sooner.
    pub fn poll(&self) -> Option<Instant> {
        self.run_ready(POLL_TURN);
        self.schedule.deadline()
    }

    /// Runs QPs for about `turn`, so that those which keep each other busy do not keep the caller.
    fn run_ready(&self, turn: Duration) {
        let begin = Instant::now();
        let mut now = begin;
        while now - begin <= turn {
            let Some(handle) = self.schedule.next(now) else { return };
            if let Some(qp) = self.qp(handle) {
                self.run_qp(&qp);
            }
            now = Instant::now();
        }
        self.interrupts.wake();
    }

    pub(crate) fn run_qp(&self, qp: &Qp) {
        self.run_send_queue(qp);
        if qp.state() == PVRDMA_QPS_ERR {
            self.flush_receives(qp);
        }
    }

    /// Drops every object and every address (CTL = RESET, or a new DSR).
    pub fn reset(&self) {
        let _commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        for qp in self.qps.all() {
            let _ = self.destroy_qp(qp.handle);
        }
        for mr in self.mrs.all() {
            let _ = self.destroy_mr(mr.handle);
        }
        self.srqs.retain(|_| false);
        self.cqs.retain(|_| false);
        self.pds.retain(|_| false);
        self.contexts.retain(|_| false);
        self.schedule.clear();
        for index in 0..GID_TBL_LEN {
            let _ = self.bind_gid(index, None);
        }
        self.quiesce();
    }

    /// Waits until every copy that began before has ended.
    pub(crate) fn quiesce(&self) {
        drop(self.requesting.write().unwrap_or_else(PoisonError::into_inner));
        self.quiesce_responders();
    }

    /// The same for copies that peers asked for.
    pub(crate) fn quiesce_responders(&self) {
        drop(self.responding.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// A CQ takes no more: every QP that would complete there stops (IBA vol. 1, 11.6.3.2).
    pub(crate) fn cq_died(&self, cq: CqHandle) {
        let completes_there = |qp: &Qp| qp.send_cq.handle == cq || qp.recv_cq.handle == cq;
        for qp in self.qps.all().iter().filter(|qp| completes_there(qp)) {
            if qp.state() != PVRDMA_QPS_RESET {
                qp.set_state(PVRDMA_QPS_ERR);
                self.run_soon(qp.handle);
            }
        }
    }

    // ---- for the engine ------------------------------------------------------------------------

    pub(crate) fn memory(&self) -> &dyn Memory {
        &*self.memory
    }

    pub(crate) fn interrupts(&self) -> &dyn Interrupts {
        &*self.interrupts
    }

    pub(crate) fn transport(&self) -> &dyn Transport {
        &*self.transport
    }

    pub(crate) fn requesting(&self) -> RwLockReadGuard<'_, ()> {
        self.requesting.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn responding(&self) -> RwLockReadGuard<'_, ()> {
        self.responding.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn run_soon(&self, qp: QpHandle) {
        self.schedule.run_soon(qp);
        self.interrupts.wake();
    }

    pub(crate) fn run_at(&self, qp: QpHandle, when: Instant) {
        if self.schedule.run_at(qp, when) {
            self.interrupts.wake();
        }
    }

    pub(crate) fn qp(&self, handle: QpHandle) -> Option<Arc<Qp>> {
        self.qps.get(handle.0)
    }

    pub(crate) fn qp_by_number(&self, qpn: Qpn) -> Option<Arc<Qp>> {
        self.qps.get(qpn.0 & (MAX_QP - 1)).filter(|qp| qp.qpn == qpn)
    }

    pub(crate) fn mr(&self, handle: u32) -> Option<Arc<Mr>> {
        self.mrs.get(handle)
    }

    /// `mr` takes the place of the region with its handle. `false`: that was destroyed meanwhile.
    pub(crate) fn replace_mr(&self, mr: Mr) -> bool {
        self.mrs.replace(mr.handle.0, mr)
    }

    pub(crate) fn has_gid(&self, gid: &Gid) -> bool {
        self.gids.read().unwrap_or_else(PoisonError::into_inner).contains(&Some(*gid))
    }

    pub(crate) fn mr_by_key(&self, key: u32) -> Option<Arc<Mr>> {
        self.mrs.get(key >> 8).filter(|mr| mr.key == key)
    }

    /// The GID at `index`.
    pub fn gid(&self, index: u32) -> Option<Gid> {
        self.gids.read().unwrap_or_else(PoisonError::into_inner).get(index as usize).copied().flatten()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // Takes back what is on its way: the transport may live longer than the guest's memory.
        self.reset();
    }
}

/// The first page of a ring object holds its counters: words, so it must begin where words may begin.
fn ring_pages(buffer: &Buffer, memory: &dyn Memory) -> Result<PageTable, CommandError> {
    let pages = PageTable::resolve(buffer, memory)?;
    if pages.at(0)?.0 % PVRDMA_PAGE_SIZE as u64 != 0 {
        return Err(CommandError::Invalid("ring that does not begin on a page"));
    }
    Ok(pages)
}

fn made<T>(result: Option<Result<Arc<T>, CommandError>>, what: &'static str) -> Result<Arc<T>, CommandError> {
    result.ok_or(CommandError::Full(what))?
}
