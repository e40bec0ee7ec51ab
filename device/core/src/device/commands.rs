//! Commands: objects are made, changed and destroyed. Who sends one waits for its end.

use super::{Context, DEFAULT_PKEY, Device, MAX_CQE, MAX_FAST_REG_PAGES, MAX_SRQ_WR, Pd};
use crate::budget::Claim;
use crate::command::{Command, CommandError, CreateQp, MrKind, Response};
use crate::engine::GID_TBL_LEN;
use crate::handle::*;
use crate::memory::{Buffer, DmaAddr, Memory, PageTable, Span};
use crate::objects::cq::Cq;
use crate::objects::mr::Mr;
use crate::objects::qp::{Attrs, Qp, check_create, check_modify, merge};
use crate::objects::srq::{SRQ_EXTRA, Srq};
use crate::rings::wqe::{MAX_SGE, QpKind};
use crate::transport::{Endpoint, Path};
use pvrdma_ffi::dev_api::*;
use pvrdma_ffi::uapi::vmw_pvrdma::{
    PVRDMA_ACCESS_LOCAL_WRITE, PVRDMA_ACCESS_REMOTE_ATOMIC, PVRDMA_ACCESS_REMOTE_WRITE, PVRDMA_PAGE_SIZE,
};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

/// Bytes that hang on a QP beside its page list: work it has taken, scratch lists it keeps.
const QP_EXTRA: u64 = 12 << 10;

/// How often each MR index was given out: the low byte of its key.
pub(super) type KeyCounts = Vec<u8>;

impl Device {
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

    fn check_ctx(&self, ctx: CtxHandle) -> Result<(), CommandError> {
        let known = ctx == KERNEL || self.contexts.get(ctx.0).is_some();
        if known { Ok(()) } else { Err(CommandError::NoSuch("context")) }
    }

    /// Ends a context and whatever it left behind, in the order the objects depend on each other.
    fn destroy_uc(&self, ctx: CtxHandle) -> Result<Response, CommandError> {
        self.contexts.remove(ctx.0).ok_or(CommandError::NoSuch("context"))?;
        for qp in self.engine.qps.all().iter().filter(|qp| qp.ctx == ctx) {
            self.destroy_qp(qp.handle)?;
        }
        self.srqs.retain(|srq| srq.ctx != ctx);
        self.cqs.retain(|cq| cq.ctx != ctx);
        for mr in self.engine.mrs.all().iter().filter(|mr| mr.ctx == ctx) {
            self.destroy_mr(mr.handle)?;
        }
        self.pds.retain(|pd| pd.ctx != ctx);
        Ok(Response::Done)
    }

    fn destroy_pd(&self, pd: PdHandle) -> Result<Response, CommandError> {
        let used = self.engine.qps.any(|qp| qp.pd == pd)
            || self.engine.mrs.any(|mr| mr.pd == pd)
            || self.srqs.any(|srq| srq.pd == pd);
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
                let pages = PageTable::resolve(buffer, &*self.engine.memory)?;
                let lead = if matches!(pages, PageTable::Flat(_)) { 0 } else { start % PVRDMA_PAGE_SIZE as u64 };
                if pages.len() < lead + length {
                    return Err(CommandError::Invalid("fewer pages than the region spans"));
                }
                (start, length, Some(pages))
            }
            // The kernel's own region over everything; users never reach this command.
            MrKind::Dma if ctx == KERNEL => {
                let all = Span { addr: DmaAddr(0), len: u64::MAX };
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
            self.engine.mrs.insert(claim, |handle| {
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
            self.engine.transport.mr_added(mr.key, &mr.bounds());
        }
        Ok(Response::CreateMr { mr: mr.handle, lkey: Lkey(mr.key), rkey: Rkey(mr.key) })
    }

    fn destroy_mr(&self, mr: MrHandle) -> Result<Response, CommandError> {
        let mr = self.engine.mrs.remove(mr.0).ok_or(CommandError::NoSuch("MR"))?;
        self.engine.transport.mr_removed(mr.key);
        self.engine.quiesce();
        // What is on its way may still name it: have it judged again.
        for qp in self.engine.qps.all() {
            self.engine.resubmit(&qp, mr.key);
        }
        Ok(Response::Done)
    }

    fn create_cq(&self, ctx: CtxHandle, cqe: u32, buffer: &Buffer) -> Result<Response, CommandError> {
        self.check_ctx(ctx)?;
        if !cqe.is_power_of_two() || cqe > MAX_CQE {
            return Err(CommandError::Invalid("cqe"));
        }
        let claim = self.claim::<Cq>("CQ", 0, buffer.page_entries())?;
        let pages = ring_pages(buffer, &*self.engine.memory)?;
        let puts = self.puts.clone();
        let cq = made(self.cqs.insert(claim, |handle| Cq::new(CqHandle(handle), ctx, cqe, pages, puts)), "CQ")?;
        Ok(Response::CreateCq { cq: cq.handle, cqe })
    }

    fn destroy_cq(&self, cq: CqHandle) -> Result<Response, CommandError> {
        let used = self.engine.qps.any(|qp| qp.send_cq.handle == cq || qp.recv_cq.handle == cq);
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
        let pages = ring_pages(&create.buffer, &*self.engine.memory)?;
        let make = |handle: u32| {
            let handle = QpHandle(handle);
            let qpn = match kind {
                QpKind::Gsi => Qpn(1),
                QpKind::Rc | QpKind::Ud => Qpn(self.config.qpn_base | handle.0),
            };
            let transport = &self.engine.transport;
            let shared = (transport.expected_psn(handle), transport.figures(handle));
            Qp::new(handle, qpn, ctx, kind, create, pages, cqs, srq, shared)
        };
        let qp = made(
            match kind {
                QpKind::Gsi => self.engine.qps.insert_at(1, claim, || make(1)),
                QpKind::Rc | QpKind::Ud => self.engine.qps.insert(claim, make),
            },
            "QP",
        )?;
        Ok(Response::CreateQp { qpn: qp.qpn, qp: qp.handle })
    }

    fn modify_qp(&self, handle: QpHandle, mask: u32, new: &pvrdma_qp_attr) -> Result<Response, CommandError> {
        let qp = self.engine.qp(handle).ok_or(CommandError::NoSuch("QP"))?;
        let mask = mask & PVRDMA_QP_ATTR_MASK;
        // Both halves stand still while attributes change.
        let mut sq = qp.lock_sq();
        let rq = qp.lock_rq();
        let from = qp.state();
        let to = check_modify(qp.kind, from, mask, new)?;
        if mask & PVRDMA_QP_PATH_MTU != 0 && new.path_mtu > self.port().active_mtu {
            return Err(CommandError::Invalid("path_mtu is more than the port's"));
        }
        let mut attrs = qp.lock_attrs();
        let mut next = *attrs;
        if to != PVRDMA_QPS_RESET && to != PVRDMA_QPS_ERR {
            merge(&mut next.raw, new, mask);
        }
        if mask & PVRDMA_QP_AV != 0 && to != PVRDMA_QPS_RESET && to != PVRDMA_QPS_ERR {
            let sgid =
                self.engine.gid(u32::from(new.ah_attr.grh.sgid_index)).ok_or(CommandError::Invalid("sgid_index"))?;
            next.local = Endpoint { gid: sgid, qpn: qp.qpn };
        }
        if to == PVRDMA_QPS_RESET {
            next = Attrs::default();
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
        sq.transport_knows_err = to == PVRDMA_QPS_ERR;
        let mut rq = rq;
        if to == PVRDMA_QPS_RESET {
            qp.set_state(PVRDMA_QPS_RESET);
            rq.reset(qp.srq.as_deref());
        } else {
            qp.set_state(to);
        }
        // Others may act on the former state until the transport knows; the responder lock keeps ours still.
        drop(rq);
        self.engine.transport.qp_changed(&qp.view());
        if to == PVRDMA_QPS_RESET {
            self.engine.drop_sends(&qp, &mut sq);
        }
        if mask & PVRDMA_QP_AV != 0 {
            // The way to another peer is none that this one has had.
            sq.had_path = Path::None;
        }
        match (mask & PVRDMA_QP_AV != 0, to) {
            // Whoever gave the command is told by its answer's trace line.
            (true, PVRDMA_QPS_RTR) => self.engine.find_path(&qp, &mut sq, &next),
            (true, PVRDMA_QPS_SQD) | (false, PVRDMA_QPS_RTS) => self.engine.look_for_path(&qp, &mut sq, &next),
            _ => {}
        }
        drop(sq);
        qp.renew_credit();
        if matches!(to, PVRDMA_QPS_ERR | PVRDMA_QPS_RTS | PVRDMA_QPS_SQD) {
            self.engine.run_qp(&qp);
        }
        Ok(Response::Done)
    }

    fn query_qp(&self, handle: QpHandle) -> Result<Response, CommandError> {
        let qp = self.engine.qp(handle).ok_or(CommandError::NoSuch("QP"))?;
        let mut attrs = qp.attrs().raw;
        attrs.qp_state = qp.state();
        attrs.cur_qp_state = attrs.qp_state;
        attrs.cap = qp.cap;
        attrs.sq_draining = u8::from(attrs.qp_state == PVRDMA_QPS_SQD && !qp.lock_sq().is_idle());
        Ok(Response::QueryQp(Box::new(attrs)))
    }

    fn destroy_qp(&self, handle: QpHandle) -> Result<Response, CommandError> {
        let qp = self.engine.qps.remove(handle.0).ok_or(CommandError::NoSuch("QP"))?;
        let mut sq = qp.lock_sq();
        {
            // Waits for a responder that is copying, and turns away later ones.
            let mut rq = qp.lock_rq();
            qp.set_state(PVRDMA_QPS_RESET);
            rq.reset(qp.srq.as_deref());
        }
        self.engine.transport.qp_changed(&qp.view());
        self.engine.drop_sends(&qp, &mut sq);
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
        let pages = ring_pages(buffer, &*self.engine.memory)?;
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
        if self.engine.qps.any(|qp| qp.srq.as_ref().is_some_and(|of| of.handle == srq)) {
            return Err(CommandError::Busy("SRQ"));
        }
        self.srqs.remove(srq.0).ok_or(CommandError::NoSuch("SRQ"))?;
        Ok(Response::Done)
    }

    fn bind_gid(&self, index: u32, gid: Option<(Gid, u8)>) -> Result<Response, CommandError> {
        let mut gids = self.engine.gids.write().unwrap_or_else(PoisonError::into_inner);
        let slot = gids.get_mut(index as usize).ok_or(CommandError::Invalid("GID index"))?;
        if gid.is_some_and(|(_, gid_type)| gid_type != self.config.gid_type) {
            return Err(CommandError::Invalid("GID type"));
        }
        let old = std::mem::replace(slot, gid.map(|(gid, _)| gid));
        let still_bound = |gid: &Gid, gids: &[Option<Gid>]| gids.contains(&Some(*gid));
        if let Some(old) = old.filter(|old| !still_bound(old, &*gids)) {
            self.engine.transport.gid_bound(old, false);
        }
        if let Some((gid, _)) = gid {
            self.engine.transport.gid_bound(gid, true);
        }
        Ok(Response::Done)
    }

    /// Drops every object and every address (CTL = RESET, or a new DSR).
    pub fn reset(&self) {
        let _commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        for qp in self.engine.qps.all() {
            let _ = self.destroy_qp(qp.handle);
        }
        for mr in self.engine.mrs.all() {
            let _ = self.destroy_mr(mr.handle);
        }
        self.srqs.retain(|_| false);
        self.cqs.retain(|_| false);
        self.pds.retain(|_| false);
        self.contexts.retain(|_| false);
        self.engine.forget_work();
        for index in 0..GID_TBL_LEN {
            let _ = self.bind_gid(index, None);
        }
        self.engine.quiesce();
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
