//! Random commands from several contexts, legal and illegal, against a model of what exists, who owns it and who uses
//! it. The model says of each command whether it is carried out or which errno refuses it, and of each QP its state.
//!
//! `PVRDMA_SEED` repeats a run, `PVRDMA_STEPS` makes it longer.

use pvrdma_device::command::{Command, CreateQp, MrKind, Response};
use pvrdma_device::handle::*;
use pvrdma_device::memory::Buffer;
use pvrdma_device::testing::driver::{Driver, GSI, Layout, RC, UD};
use pvrdma_device::testing::end::Path;
use pvrdma_device::testing::queue::QpSize;
use pvrdma_device::testing::rng::Rng;
use pvrdma_device::transport::Endpoint;
use pvrdma_device::transport::fabric::Fabric;
use pvrdma_ffi::dev_api::*;
use pvrdma_ffi::uapi::vmw_pvrdma::*;
use std::collections::BTreeMap;

const EINVAL: i32 = 22;
const EBUSY: i32 = 16;
const ENOMEM: i32 = 12;
const EOPNOTSUPP: i32 = 95;

/// Contexts that the device has room for.
const CONTEXTS: usize = 15;

#[derive(Clone, Debug)]
struct Qp {
    ctx: u32,
    pd: u32,
    cqs: [u32; 2],
    srq: Option<u32>,
    qp_type: u8,
    state: u32,
}

/// What the model knows. Objects by handle, with the context that owns them.
#[derive(Default)]
struct Model {
    contexts: Vec<u32>,
    pds: BTreeMap<u32, u32>,
    mrs: BTreeMap<u32, (u32, u32)>,
    cqs: BTreeMap<u32, u32>,
    srqs: BTreeMap<u32, (u32, u32, u32)>,
    qps: BTreeMap<u32, Qp>,
}

impl Model {
    fn pd_is_used(&self, pd: u32) -> bool {
        self.mrs.values().any(|mr| mr.1 == pd)
            || self.srqs.values().any(|srq| srq.1 == pd)
            || self.qps.values().any(|qp| qp.pd == pd)
    }

    fn destroy_context(&mut self, ctx: u32) {
        self.contexts.retain(|known| *known != ctx);
        self.pds.retain(|_, of| *of != ctx);
        self.mrs.retain(|_, (of, _)| *of != ctx);
        self.cqs.retain(|_, of| *of != ctx);
        self.srqs.retain(|_, (of, _, _)| *of != ctx);
        self.qps.retain(|_, qp| qp.ctx != ctx);
    }
}

struct World {
    rng: Rng,
    driver: Driver,
    model: Model,
    /// Memory that all rings and regions share: nothing runs on them.
    ring: Buffer,
    large: CreateQp,
    keys: BTreeMap<u32, u32>,
    done: u64,
    refused: u64,
}

/// Attributes that a change of state takes, and whether it is one: the tables of the InfiniBand specification once
/// more, in the form of lists.
fn change(qp_type: u8, from: u32, to: u32) -> (bool, u32, pvrdma_qp_attr) {
    use {PVRDMA_QPS_ERR as ERR, PVRDMA_QPS_INIT as INIT, PVRDMA_QPS_RESET as RESET};
    use {PVRDMA_QPS_RTR as RTR, PVRDMA_QPS_RTS as RTS, PVRDMA_QPS_SQD as SQD};
    let path = Path::default();
    let peer = Endpoint { gid: [9; 16], qpn: Qpn(77) };
    let plain = (PVRDMA_QP_STATE, pvrdma_qp_attr { qp_state: to, ..Default::default() });
    let (mask, attrs) = match (qp_type, from, to) {
        (RC, RESET, INIT) => path.init(),
        (RC, INIT, RTR) => path.rtr(peer),
        (RC, RTR, RTS) => path.rts(),
        (UD, RESET, INIT) => (
            PVRDMA_QP_STATE | PVRDMA_QP_PKEY_INDEX | PVRDMA_QP_PORT | PVRDMA_QP_QKEY,
            pvrdma_qp_attr { qp_state: to, port_num: 1, qkey: 5, ..Default::default() },
        ),
        (UD, RTR, RTS) => (PVRDMA_QP_STATE | PVRDMA_QP_SQ_PSN, pvrdma_qp_attr { qp_state: to, ..Default::default() }),
        _ => plain,
    };
    let legal = [(RESET, INIT), (INIT, INIT), (INIT, RTR), (RTR, RTS), (RTS, RTS), (RTS, SQD), (SQD, SQD), (SQD, RTS)];
    let legal = to == RESET || to == ERR && from != RESET || legal.contains(&(from, to));
    (legal, mask, attrs)
}

impl World {
    fn new(seed: u64) -> World {
        let rng = Rng::from_env(seed);
        let driver = Driver::new(&Fabric::new(), 0, Layout::Pdir);
        let ring = driver.block(&[8]).buffer;
        let (create, _) = driver.qp_command(PdHandle(0), CqHandle(0), CqHandle(0), QpSize::wr(4));
        let Command::CreateQp(large) = create else { unreachable!("a CREATE_QP") };
        let model = Model { contexts: vec![0], ..Model::default() };
        World { rng, driver, model, ring, large: *large, keys: BTreeMap::new(), done: 0, refused: 0 }
    }

    /// Mostly one that exists, now and then any.
    fn pick(&mut self, known: &[u32]) -> u32 {
        match known.is_empty() || self.rng.one_in(12) {
            true => self.rng.word() as u32 >> self.rng.below(32),
            false => *self.rng.pick(known),
        }
    }

    fn pick_of<T>(&mut self, objects: impl Fn(&Model) -> &BTreeMap<u32, T>) -> u32 {
        let known: Vec<u32> = objects(&self.model).keys().copied().collect();
        self.pick(&known)
    }

    /// Sends a command that the model expects to end so.
    fn send(&mut self, command: Command, expected: Result<(), i32>) -> Option<Response> {
        let left = self.driver.device.budget_left();
        let text = format!("{command:?}");
        let answer = self.driver.command(command);
        let errno = answer.as_ref().map(|_| ()).map_err(|error| error.errno());
        assert_eq!(errno, expected, "{text} was answered {answer:?}");
        if expected.is_err() {
            assert_eq!(self.driver.device.budget_left(), left, "{text}: what is refused costs nothing");
            self.refused += 1;
        } else {
            self.done += 1;
        }
        answer.ok()
    }

    fn step(&mut self) {
        match self.rng.below(100) {
            0 => self.create_context(),
            1 | 2 => self.destroy_context(),
            3..7 => self.create_pd(),
            7..12 => self.destroy_pd(),
            12..28 => self.create_mr(),
            28..31 => self.destroy_mr(),
            31..43 => self.create_cq(),
            43..47 => self.destroy_cq(),
            47..57 => self.create_srq(),
            57..63 => self.use_srq(),
            63..75 => self.create_qp(),
            75..77 => self.destroy_qp(),
            _ => self.modify_qp(),
        }
    }

    fn create_context(&mut self) {
        let room = self.model.contexts.len() <= CONTEXTS;
        let expected = if room { Ok(()) } else { Err(ENOMEM) };
        if let Some(Response::CreateUc { ctx }) = self.send(Command::CreateUc { pfn: 3 }, expected) {
            assert!(!self.model.contexts.contains(&ctx.0));
            self.model.contexts.push(ctx.0);
        }
    }

    fn destroy_context(&mut self) {
        // Seldom: it takes all with it.
        if !self.rng.one_in(16) {
            return;
        }
        let known = self.model.contexts.clone();
        let ctx = self.pick(&known);
        let there = ctx != 0 && known.contains(&ctx);
        self.send(Command::DestroyUc { ctx: CtxHandle(ctx) }, if there { Ok(()) } else { Err(EINVAL) });
        if there {
            self.model.destroy_context(ctx);
        }
    }

    fn create_pd(&mut self) {
        let known = self.model.contexts.clone();
        let ctx = self.pick(&known);
        let expected = if known.contains(&ctx) { Ok(()) } else { Err(EINVAL) };
        if let Some(Response::CreatePd { pd }) = self.send(Command::CreatePd { ctx: CtxHandle(ctx) }, expected) {
            assert_eq!(self.model.pds.insert(pd.0, ctx), None);
        }
    }

    fn destroy_pd(&mut self) {
        let pd = self.pick_of(|model| &model.pds);
        let expected = match self.model.pds.contains_key(&pd) {
            false => Err(EINVAL),
            true if self.model.pd_is_used(pd) => Err(EBUSY),
            true => Ok(()),
        };
        self.send(Command::DestroyPd { pd: PdHandle(pd) }, expected);
        if expected.is_ok() {
            self.model.pds.remove(&pd);
        }
    }

    fn create_mr(&mut self) {
        let pd = self.pick_of(|model| &model.pds);
        let access = self.rng.below(16) as u32;
        let length = *self.rng.pick(&[0, 1, 4096, 8 * 4096 - 5, 8 * 4096, u64::MAX]);
        let owner = self.model.pds.get(&pd).copied();
        let remote = access & (PVRDMA_ACCESS_REMOTE_WRITE | PVRDMA_ACCESS_REMOTE_ATOMIC) != 0;
        let (kind, fits) = match self.rng.below(8) {
            0 => (MrKind::Dma, owner == Some(0)),
            1 => {
                let max_pages = *self.rng.pick(&[0, 1, 128, 129]);
                (MrKind::FastReg { max_pages }, max_pages <= 128)
            }
            _ => (MrKind::User(self.ring.clone()), (1..=8 * 4096 - 5).contains(&length)),
        };
        let rights = !remote || access & PVRDMA_ACCESS_LOCAL_WRITE != 0;
        let expected = if owner.is_some() && rights && fits { Ok(()) } else { Err(EINVAL) };
        let create = Command::CreateMr { pd: PdHandle(pd), start: 0x5005, length, access_flags: access, kind };
        if let Some(Response::CreateMr { mr, lkey, rkey }) = self.send(create, expected) {
            assert_eq!((lkey.0, rkey.0 >> 8), (rkey.0, mr.0));
            assert_ne!(self.keys.insert(mr.0, lkey.0), Some(lkey.0), "the key of the one before");
            assert_eq!(self.model.mrs.insert(mr.0, (owner.unwrap(), pd)), None);
        }
    }

    fn destroy_mr(&mut self) {
        let mr = self.pick_of(|model| &model.mrs);
        let there = self.model.mrs.remove(&mr).is_some();
        self.send(Command::DestroyMr { mr: MrHandle(mr) }, if there { Ok(()) } else { Err(EINVAL) });
    }

    fn create_cq(&mut self) {
        let known = self.model.contexts.clone();
        let ctx = self.pick(&known);
        let cqe = *self.rng.pick(&[0, 1, 2, 3, 64, 256, 448, 512, 1 << 31]);
        // Eight pages: one of counters, 448 entries.
        let expected = if known.contains(&ctx) && [1, 2, 64, 256].contains(&cqe) { Ok(()) } else { Err(EINVAL) };
        let create = Command::CreateCq { ctx: CtxHandle(ctx), cqe, buffer: self.ring.clone() };
        if let Some(Response::CreateCq { cq, cqe: made }) = self.send(create, expected) {
            assert_eq!(made, cqe);
            assert_eq!(self.model.cqs.insert(cq.0, ctx), None);
        }
    }

    fn destroy_cq(&mut self) {
        let cq = self.pick_of(|model| &model.cqs);
        let expected = match self.model.cqs.contains_key(&cq) {
            false => Err(EINVAL),
            true if self.model.qps.values().any(|qp| qp.cqs.contains(&cq)) => Err(EBUSY),
            true => Ok(()),
        };
        self.send(Command::DestroyCq { cq: CqHandle(cq) }, expected);
        if expected.is_ok() {
            self.model.cqs.remove(&cq);
        }
    }

    fn create_srq(&mut self) {
        let pd = self.pick_of(|model| &model.pds);
        let owner = self.model.pds.get(&pd).copied();
        let (max_wr, max_sge) = (*self.rng.pick(&[0, 1, 16, 17, 512]), *self.rng.pick(&[0, 1, 4, 16, 17]));
        let (srq_limit, srq_type) = (*self.rng.pick(&[0, 1, 16]), u8::from(self.rng.one_in(10)));
        let stride: u32 = (16u32 + 16 * max_sge).next_power_of_two();
        let fits =
            [1, 16, 512].contains(&max_wr) && max_sge <= 16 && srq_limit <= max_wr && max_wr * stride <= 7 * 4096;
        let expected = match (srq_type, owner.is_some() && fits) {
            (1, _) => Err(EOPNOTSUPP),
            (_, false) => Err(EINVAL),
            (_, true) => Ok(()),
        };
        let buffer = self.ring.clone();
        let create = Command::CreateSrq { pd: PdHandle(pd), max_wr, max_sge, srq_limit, srq_type, buffer };
        if let Some(Response::CreateSrq { srq }) = self.send(create, expected) {
            assert_eq!(self.model.srqs.insert(srq.0, (owner.unwrap(), pd, srq_limit)), None);
        }
    }

    fn use_srq(&mut self) {
        let srq = self.pick_of(|model| &model.srqs);
        let there = self.model.srqs.get(&srq).copied();
        let known = if there.is_some() { Ok(()) } else { Err(EINVAL) };
        match self.rng.below(3) {
            0 => {
                let busy = self.model.qps.values().any(|qp| qp.srq == Some(srq));
                let expected = if there.is_some() && busy { Err(EBUSY) } else { known };
                self.send(Command::DestroySrq { srq: SrqHandle(srq) }, expected);
                if expected.is_ok() {
                    self.model.srqs.remove(&srq);
                }
            }
            1 => {
                let answer = self.send(Command::QuerySrq { srq: SrqHandle(srq) }, known);
                if let (Some(Response::QuerySrq { srq_limit, .. }), Some((_, _, limit))) = (answer, there) {
                    assert_eq!(srq_limit, limit);
                }
            }
            _ => {
                let limit = self.rng.below(2) as u32;
                let set = Command::ModifySrq { srq: SrqHandle(srq), attr_mask: PVRDMA_SRQ_LIMIT, srq_limit: limit };
                self.send(set, known);
                if let Some((_, _, of)) = self.model.srqs.get_mut(&srq) {
                    *of = limit;
                }
            }
        }
    }

    fn create_qp(&mut self) {
        let pd = self.pick_of(|model| &model.pds);
        // Mostly what belongs together.
        let owner = self.model.pds.get(&pd).copied();
        let stray = self.rng.one_in(4);
        let mine = |of: u32| stray || Some(of) == owner;
        let known: Vec<u32> = self.model.cqs.iter().filter(|(_, of)| mine(**of)).map(|(cq, _)| *cq).collect();
        let cqs = [0, 1].map(|_| self.pick(&known));
        let known: Vec<u32> = self.model.srqs.iter().filter(|(_, of)| mine(of.0)).map(|(srq, _)| *srq).collect();
        let srq = self.rng.one_in(3).then(|| self.pick(&known));
        let qp_type = *self.rng.pick(&[RC, RC, RC, UD, UD, GSI, 3, 9]);
        let same = |of: Option<u32>| of.is_some() && of == owner;
        let legal = cqs.iter().all(|cq| same(self.model.cqs.get(cq).copied()))
            && srq.is_none_or(|srq| same(self.model.srqs.get(&srq).map(|of| of.0)))
            && (qp_type != GSI || owner == Some(0));
        let gsi_taken = qp_type == GSI && self.model.qps.contains_key(&1);
        let expected = match (qp_type, legal) {
            (3 | 9, _) => Err(EOPNOTSUPP),
            (_, false) => Err(EINVAL),
            (_, true) if gsi_taken => Err(ENOMEM),
            (_, true) => Ok(()),
        };
        let [send_cq, recv_cq] = cqs.map(CqHandle);
        let create =
            CreateQp { pd: PdHandle(pd), send_cq, recv_cq, srq: srq.map(SrqHandle), qp_type, ..self.large.clone() };
        if let Some(Response::CreateQp { qp, qpn }) = self.send(Command::CreateQp(Box::new(create)), expected) {
            assert_eq!(qp_type == GSI, qp.0 == 1);
            assert_eq!(qpn.0 & 0x7fff, qp.0);
            let made = Qp { ctx: owner.unwrap(), pd, cqs, srq, qp_type, state: PVRDMA_QPS_RESET };
            assert!(self.model.qps.insert(qp.0, made).is_none());
        }
    }

    fn destroy_qp(&mut self) {
        let qp = self.pick_of(|model| &model.qps);
        let there = self.model.qps.remove(&qp).is_some();
        self.send(Command::DestroyQp { qp: QpHandle(qp) }, if there { Ok(()) } else { Err(EINVAL) });
    }

    fn modify_qp(&mut self) {
        let handle = self.pick_of(|model| &model.qps);
        let Some(qp) = self.model.qps.get(&handle).cloned() else {
            let modify = Command::ModifyQp { qp: QpHandle(handle), attr_mask: PVRDMA_QP_STATE, attrs: Box::default() };
            self.send(modify, Err(EINVAL));
            self.send(Command::QueryQp { qp: QpHandle(handle), attr_mask: 0 }, Err(EINVAL));
            return;
        };
        // The usual way on, or any other.
        let next = (qp.state + 1).min(PVRDMA_QPS_SQD);
        let to = if self.rng.one_in(2) { next } else { self.rng.below(8) as u32 };
        let kind = if qp.qp_type == RC { RC } else { UD };
        let (mut legal, mut mask, attrs) = change(kind, qp.state, to);
        if qp.qp_type == GSI {
            // The port is not asked for, and may be given.
            mask &= !PVRDMA_QP_PORT | if self.rng.one_in(2) { PVRDMA_QP_PORT } else { 0 };
        }
        if legal && self.rng.one_in(6) {
            // One that is needed is missing, or one too many is given.
            let bits: Vec<u32> =
                (1..21).map(|bit| 1 << bit).filter(|bit| mask & bit != 0 && *bit != PVRDMA_QP_PORT).collect();
            if !bits.is_empty() && self.rng.one_in(2) {
                mask &= !*self.rng.pick(&bits);
                legal = to == PVRDMA_QPS_RESET || to == PVRDMA_QPS_ERR || to == PVRDMA_QPS_INIT && qp.state == to;
            } else {
                mask |= PVRDMA_QP_CAP;
                legal = false;
            }
        }
        let expected = if legal { Ok(()) } else { Err(EINVAL) };
        self.send(Command::ModifyQp { qp: QpHandle(handle), attr_mask: mask, attrs: Box::new(attrs) }, expected);
        let state = if legal { to } else { qp.state };
        self.model.qps.get_mut(&handle).unwrap().state = state;
        match self.send(Command::QueryQp { qp: QpHandle(handle), attr_mask: 0 }, Ok(())) {
            Some(Response::QueryQp(attrs)) => {
                assert_eq!((attrs.qp_state, attrs.cur_qp_state), (state, state), "{qp:?} to {to}, mask {mask:#x}");
                assert_eq!(attrs.cap.max_recv_wr == 0, qp.srq.is_some());
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn random_commands_end_as_the_model_says() {
    let steps = pvrdma_device::testing::rng::steps(40_000);
    let mut world = World::new(21);
    let whole = world.driver.device.budget_left();
    for _ in 0..steps {
        world.step();
    }
    let Model { contexts, pds, mrs, cqs, srqs, qps } = &world.model;
    println!(
        "{steps} steps: {} done, {} refused; there are {} contexts, {} PDs, {} MRs, {} CQs, {} SRQs, {} QPs",
        world.done,
        world.refused,
        contexts.len(),
        pds.len(),
        mrs.len(),
        cqs.len(),
        srqs.len(),
        qps.len()
    );
    assert!(world.done > steps / 3 && world.refused > steps / 5, "too few of either");
    // Everything goes, the kernel's own objects last.
    for ctx in world.model.contexts.clone().into_iter().filter(|ctx| *ctx != 0) {
        world.driver.command(Command::DestroyUc { ctx: CtxHandle(ctx) }).unwrap();
        world.model.destroy_context(ctx);
    }
    let Model { pds, mrs, cqs, srqs, qps, .. } = std::mem::take(&mut world.model);
    let goes = qps.keys().map(|qp| Command::DestroyQp { qp: QpHandle(*qp) });
    let goes = goes.chain(mrs.keys().map(|mr| Command::DestroyMr { mr: MrHandle(*mr) }));
    let goes = goes.chain(srqs.keys().map(|srq| Command::DestroySrq { srq: SrqHandle(*srq) }));
    let goes = goes.chain(cqs.keys().map(|cq| Command::DestroyCq { cq: CqHandle(*cq) }));
    for command in goes.chain(pds.keys().map(|pd| Command::DestroyPd { pd: PdHandle(*pd) })) {
        world.driver.command(command).unwrap();
    }
    assert_eq!(world.driver.device.budget_left(), whole, "nothing is held for a guest that has nothing");
}
