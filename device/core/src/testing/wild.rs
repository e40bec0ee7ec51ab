//! A hostile guest. Bytes say what it does: commands, doorbells, posts, writes to its own rings and page
//! directories, memory that goes away or changes while the device reads it. Beside it lives an honest guest, which it
//! may send to. And it is a hostile host, which sends pieces of messages that make no sense.
//!
//! Called by `tests/wild.rs` with random bytes and by the fuzz target (`device/core/fuzz`) with bytes that a fuzzer
//! grew. Whatever the bytes: the device does not panic, the honest guest's own traffic and memory are untouched, and
//! when the wild guest's objects are destroyed the device holds nothing of it.

use super::driver::{ALL_ACCESS, Block, Driver, GID_TYPE, Layout, PAGE, Region};
use super::end::{End, Path, connect, modify, pump};
use super::queue::{CqRing, QpSize, RecvWr, SendWr, SrqRing, To, sge};
use crate::command::{Command, CommandError, CreateQp, MrKind, Response};
use crate::doorbell::Doorbell;
use crate::handle::*;
use crate::interrupt::AsyncEvent;
use crate::memory::{Buffer, DmaAddr, Memory, Span, total};
use crate::rings::wqe::Ext;
use crate::transport::fabric::Fabric;
use crate::transport::segment::{Part, Segment};
use crate::transport::{Answer, CopyFault, Far, Nak, Responder};
use pvrdma_ffi::dev_api::*;
use pvrdma_ffi::rng::Input;
use pvrdma_ffi::uapi::vmw_pvrdma::PVRDMA_WC_GENERAL_ERR;
use std::sync::Arc;

const QKEY: u32 = 0x1234;
const RAM: usize = 2 << 20;
const LIMIT: u64 = 8 << 20;
/// Steps of one run; bytes behind them are not looked at.
const STEPS: u32 = 400;

/// What came of a run, so that a test can tell whether its bytes reach anything.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    /// Commands that were carried out.
    pub commands: u32,
    /// Commands that were refused.
    pub refused: u32,
    /// Completions that the wild guest and its peers got.
    pub completions: u32,
    /// Pieces of messages that were taken.
    pub pieces: u32,
    /// Pieces that were refused with what ends their QP.
    pub pieces_refused: u32,
}

/// The honest guest: a pair that talks to itself, and ends that the wild one may talk to.
struct Honest {
    pair: [End; 2],
    peers: [End; 2],
    datagrams: End,
    srq: Arc<SrqRing>,
    /// Where peers may write.
    open: Region,
    /// Where only the pair may.
    secret: Region,
}

/// Its own name for the bytes of `secret`.
const SECRET: [u8; 32] = *b"what is the honest guest's alone";

impl Honest {
    fn new(fabric: &Arc<Fabric>) -> Honest {
        let driver = Arc::new(Driver::limited(fabric, 1, Layout::Pdir, RAM, LIMIT));
        let size = QpSize::wr(8);
        let end = || {
            let ctx = driver.context();
            let cq = driver.cq(ctx, 64);
            (ctx, driver.pd(ctx), cq)
        };
        let pair = [0, 1].map(|_| {
            let (_, pd, cq) = end();
            End::with(&driver, pd, cq.clone(), cq, size)
        });
        connect(&pair[0], &pair[1], &Path::default());
        let (ctx, pd, _) = end();
        let cq = || driver.cq(ctx, 64);
        let srq = driver.srq(ctx, pd, (8, 4), 2);
        let (one, two, three) = (cq(), cq(), cq());
        let plain = End::with(&driver, pd, one.clone(), one, size);
        let shared = End::with_srq(&driver, pd, (two.clone(), two), &srq, size);
        let datagrams = End::ud(&driver, pd, (three.clone(), three), None, size, QKEY);
        let open = driver.region(pd, 2 * PAGE);
        let secret = pair[1].region(PAGE);
        secret.set(100, &SECRET);
        Honest { pair, peers: [plain, shared], datagrams, srq, open, secret }
    }

    fn driver(&self) -> &Driver {
        &self.pair[0].driver
    }

    /// Its own traffic goes on, its memory is as it was, and it hears of nothing but its peers' failures.
    fn check(&self) {
        let [a, b] = &self.pair;
        b.recv(&RecvWr::new(1, &[sge(&self.secret, 0, 8)]));
        a.send(&SendWr::send(2, &[]));
        assert_eq!((a.send_cq.ends(), b.recv_cq.ends()), (vec![(2, 0)], vec![(1, 0)]), "the honest pair goes on");
        assert_eq!(self.secret.get(100, SECRET.len()), SECRET);
        let ends = [&self.peers[0], &self.peers[1], &self.datagrams];
        for event in self.driver().bell.events() {
            let theirs = match event {
                AsyncEvent::QpAccessErr(qp)
                | AsyncEvent::QpReqErr(qp)
                | AsyncEvent::CommEst(qp)
                | AsyncEvent::QpLastWqeReached(qp) => ends.iter().any(|end| end.qp.handle == qp),
                AsyncEvent::SrqLimitReached(srq) => srq == self.srq.handle,
                _ => false,
            };
            assert!(theirs, "the honest guest hears of {event:?}");
        }
    }
}

/// The wild guest: what it was given at first, and what it made.
struct Wild {
    driver: Arc<Driver>,
    ends: Vec<End>,
    cqs: Vec<Arc<CqRing>>,
    srq: Arc<SrqRing>,
    region: Region,
    /// Directories that lead somewhere, and the pages of its objects.
    pdirs: Vec<DmaAddr>,
    pages: Vec<DmaAddr>,
    contexts: Vec<u32>,
    pds: Vec<u32>,
    mrs: Vec<u32>,
    keys: Vec<u32>,
    cq_handles: Vec<u32>,
    qps: Vec<u32>,
    srqs: Vec<u32>,
    /// Messages in pieces that a host sends for it.
    streams: [Stream; 4],
    summary: Summary,
}

/// How far such a host has come with a connection.
#[derive(Clone, Copy)]
struct Stream {
    psn: u32,
    /// What would continue the message that it is in.
    goes_on: Option<Part>,
    /// Bytes of a WRITE that have not been sent.
    rest: u64,
}

impl Default for Stream {
    fn default() -> Stream {
        Stream { psn: Path::default().psn, goes_on: None, rest: 0 }
    }
}

/// A payload of so many bytes, without a place.
struct Endless {
    len: u64,
}

impl Far for Endless {
    fn pull_from(&self, skip: u64, memory: &dyn Memory, into: &[Span]) -> Result<(), CopyFault> {
        assert_eq!(total(into), self.len - skip, "what is new of the piece");
        into.iter()
            .try_for_each(|span| memory.write(span.addr, &vec![0x77; span.len as usize]))
            .map_err(|_| CopyFault::Near)
    }

    fn push(&self, memory: &dyn Memory, from: &[Span]) -> Result<(), CopyFault> {
        assert_eq!(total(from), self.len, "as much as was asked for");
        from.iter()
            .try_for_each(|span| memory.read(span.addr, &mut vec![0; span.len as usize]))
            .map_err(|_| CopyFault::Near)
    }

    fn put(&self, _bytes: &[u8]) -> Result<(), CopyFault> {
        Ok(())
    }
}

impl Wild {
    fn new(fabric: &Arc<Fabric>, honest: &Honest) -> Wild {
        let driver = Arc::new(Driver::limited(fabric, 0, Layout::Pdir, RAM, LIMIT));
        let size = QpSize::wr(8);
        let (ctx, other) = (driver.context(), driver.context());
        let (pd, kernel_pd) = (driver.pd(ctx), driver.pd(KERNEL));
        let cqs = vec![driver.cq(ctx, 64), driver.cq(ctx, 4), driver.cq(KERNEL, 64)];
        let srq = driver.srq(ctx, pd, (4, 2), 2);
        let with = |cq: &Arc<CqRing>| End::with(&driver, pd, cq.clone(), cq.clone(), size);
        let ends = vec![
            with(&cqs[0]),
            with(&cqs[0]),
            with(&cqs[1]),
            End::with_srq(&driver, pd, (cqs[0].clone(), cqs[0].clone()), &srq, size),
            End::with(&driver, kernel_pd, cqs[2].clone(), cqs[2].clone(), size),
            End::ud(&driver, pd, (cqs[0].clone(), cqs[1].clone()), Some(&srq), size, QKEY),
        ];
        let path = Path { timeout: 1, retry_cnt: 1, rnr_retry: 1, ..Path::default() };
        connect(&ends[0], &honest.peers[0], &path);
        connect(&ends[1], &honest.peers[1], &path);
        connect(&ends[2], &ends[3], &path);
        ends[4].bring_up(ends[4].endpoint(), &path);
        let region = driver.region(pd, 4 * PAGE);
        let (frmr, frmr_key) = fast_reg(&driver, kernel_pd);
        let pages: Vec<_> = (0..16).map(|_| driver.alloc(1)).collect();
        let again = driver.alloc(1);
        driver.ram.set(again, &again.0.to_le_bytes().repeat(512));
        let pdirs = vec![driver.pdir(&pages), again, driver.alloc(1), DmaAddr(u64::MAX - 4095)];
        let blocks: Vec<&Block> =
            ends.iter().map(|end| &end.qp.block).chain(cqs.iter().map(|cq| &cq.block)).chain([&srq.block]).collect();
        let pages =
            blocks.iter().flat_map(|block| block.pages.clone()).chain(pages).chain(pdirs[..3].to_vec()).collect();
        Wild {
            contexts: vec![ctx.0, other.0, KERNEL.0],
            pds: vec![pd.0, kernel_pd.0],
            mrs: vec![region.mr.0, frmr],
            keys: vec![region.key, frmr_key, honest.open.key, honest.secret.key],
            cq_handles: cqs.iter().map(|cq| cq.handle.0).collect(),
            qps: ends.iter().map(|end| end.qp.handle.0).collect(),
            srqs: vec![srq.handle.0],
            streams: Default::default(),
            summary: Summary::default(),
            driver,
            ends,
            cqs,
            srq,
            region,
            pdirs,
            pages,
        }
    }

    fn step(&mut self, input: &mut Input<'_>, honest: &Honest) {
        let what = input.byte();
        match what % 16 {
            0..4 => self.command(input, honest),
            4 => self.scribble(input),
            5 | 6 => self.ring(input),
            7..10 => self.post(input, honest),
            10 => self.post_raw(input),
            11 => self.post_recv(input),
            12 => self.modify(input, honest),
            13 => self.honest_turn(input, honest),
            14 if what >= 128 => {
                let which = input.below(4);
                (0..4).for_each(|_| self.segment(input, honest, which));
            }
            14 => {
                self.driver.device.poll();
                honest.driver().device.poll();
            }
            _ => self.memory(input),
        }
    }

    // ---- commands ------------------------------------------------------------------------------

    fn buffer(&self, input: &mut Input<'_>) -> Buffer {
        let pdir = match input.byte() {
            n @ 0..224 => self.pdirs[usize::from(n) % self.pdirs.len()],
            _ => DmaAddr(u64::from(input.number()) << (input.byte() & 32)),
        };
        // A gigabyte of region would be a gigabyte to copy: that takes time and shows nothing.
        Buffer::Pdir { pdir, nchunks: if input.byte() < 240 { input.number() & 63 } else { input.number() & 0x8_03ff } }
    }

    fn command(&mut self, input: &mut Input<'_>, honest: &Honest) {
        let ctx = CtxHandle(input.known(&self.contexts));
        let pd = PdHandle(input.known(&self.pds));
        let command = match input.below(20) {
            0 => Command::QueryPort { port_num: input.byte() },
            1 => Command::QueryPkey { port_num: input.byte(), index: input.byte() },
            2 => Command::CreatePd { ctx },
            3 => Command::DestroyPd { pd },
            4 | 5 => Command::CreateMr {
                pd,
                start: u64::from(input.number()) << (input.byte() & 32),
                length: u64::from(input.number()),
                access_flags: u32::from(input.byte()),
                kind: match input.byte() % 8 {
                    0 => MrKind::Dma,
                    1 => MrKind::FastReg { max_pages: input.number() },
                    _ => MrKind::User(self.buffer(input)),
                },
            },
            6 => Command::DestroyMr { mr: MrHandle(input.known(&self.mrs)) },
            7 => Command::CreateCq { ctx, cqe: input.number(), buffer: self.buffer(input) },
            8 => Command::DestroyCq { cq: CqHandle(input.known(&self.cq_handles)) },
            9 | 10 => Command::CreateQp(Box::new(CreateQp {
                pd,
                send_cq: CqHandle(input.known(&self.cq_handles)),
                recv_cq: CqHandle(input.known(&self.cq_handles)),
                srq: input.flag().then(|| SrqHandle(input.known(&self.srqs))),
                max_send_wr: input.number(),
                max_recv_wr: input.number(),
                max_send_sge: input.number(),
                max_recv_sge: input.number(),
                sq_sig_all: input.flag(),
                qp_type: input.byte() % 6,
                buffer: self.buffer(input),
                send_chunks: input.number(),
            })),
            11 => Command::QueryQp { qp: QpHandle(input.known(&self.qps)), attr_mask: input.number() },
            12 => Command::DestroyQp { qp: QpHandle(input.known(&self.qps)) },
            13 => Command::CreateUc { pfn: u64::from(input.number()) },
            // Seldom: what is behind it in the bytes meets an empty device.
            14 if input.byte() < 32 => Command::DestroyUc { ctx },
            14 => Command::CreateUc { pfn: 0 },
            15 => Command::CreateBind {
                index: input.number(),
                gid: if input.flag() { honest.driver().gid } else { [input.byte(); 16] },
                gid_type: if input.flag() { GID_TYPE } else { input.byte() },
                vlan: input.number(),
                mtu: input.number(),
            },
            16 => Command::DestroyBind { index: input.number(), gid: [0; 16] },
            17 => Command::CreateSrq {
                pd,
                max_wr: input.number(),
                max_sge: input.number(),
                srq_limit: input.number(),
                srq_type: input.byte() & 1,
                buffer: self.buffer(input),
            },
            18 => Command::ModifySrq {
                srq: SrqHandle(input.known(&self.srqs)),
                attr_mask: input.number(),
                srq_limit: input.number(),
            },
            _ => {
                let srq = SrqHandle(input.known(&self.srqs));
                if input.flag() { Command::DestroySrq { srq } } else { Command::QuerySrq { srq } }
            }
        };
        let left = self.driver.device.budget_left();
        let answer = self.driver.command(command);
        if answer.is_err() {
            assert_eq!(self.driver.device.budget_left(), left, "a refused command costs nothing");
        }
        self.note(answer);
    }

    fn note(&mut self, answer: Result<Response, CommandError>) {
        match answer {
            Ok(_) => self.summary.commands += 1,
            Err(_) => self.summary.refused += 1,
        }
        match answer {
            Ok(Response::CreateUc { ctx }) => self.contexts.push(ctx.0),
            Ok(Response::CreatePd { pd }) => self.pds.push(pd.0),
            Ok(Response::CreateMr { mr, lkey, .. }) => {
                self.mrs.push(mr.0);
                self.keys.push(lkey.0);
            }
            Ok(Response::CreateCq { cq, .. }) => self.cq_handles.push(cq.0),
            Ok(Response::CreateQp { qp, .. }) => self.qps.push(qp.0),
            Ok(Response::CreateSrq { srq }) => self.srqs.push(srq.0),
            _ => {}
        }
    }

    fn modify(&mut self, input: &mut Input<'_>, honest: &Honest) {
        let qp = QpHandle(input.known(&self.qps));
        let peers = [honest.peers[0].endpoint(), self.ends[2].endpoint(), self.ends[3].endpoint()];
        let peer = peers[input.below(peers.len())];
        let path = Path {
            access: if input.flag() { ALL_ACCESS } else { input.number() },
            mtu: input.number(),
            psn: if input.flag() { Path::default().psn } else { input.number() },
            timeout: input.byte() & 3,
            retry_cnt: input.byte() & 3,
            rnr_retry: input.byte() & 3,
            min_rnr_timer: 1,
            max_rd_atomic: input.byte() % 20,
        };
        let state = |qp_state| (PVRDMA_QP_STATE, pvrdma_qp_attr { qp_state, ..Default::default() });
        let (mut mask, mut attrs) = match input.below(8) {
            0 | 1 => path.init(),
            2 | 3 => path.rtr(peer),
            4 => path.rts(),
            5 => state(PVRDMA_QPS_ERR),
            6 => state(PVRDMA_QPS_SQD),
            _ => state(u32::from(input.byte() % 9)),
        };
        if input.byte() < 64 {
            mask ^= 1 << (input.byte() & 31);
        }
        if input.byte() < 64 {
            attrs.ah_attr.grh.sgid_index = input.byte();
            attrs.qkey = if input.flag() { QKEY } else { input.number() };
            attrs.port_num = input.byte();
            attrs.min_rnr_timer = input.byte();
            attrs.dest_qp_num = input.number();
            attrs.en_sqd_async_notify = input.byte();
            attrs.cur_qp_state = u32::from(input.byte());
        }
        let answer = modify(&self.driver, qp, (mask, attrs));
        self.note(answer.map(|()| Response::Done));
    }

    // ---- rings and memory ----------------------------------------------------------------------

    /// Writes a word where the device keeps or expects something of its own.
    fn scribble(&mut self, input: &mut Input<'_>) {
        let page = self.pages[input.below(self.pages.len())];
        // Mostly the counters.
        let offset =
            if input.byte() < 160 { u64::from(input.byte() & 12) } else { (u64::from(input.number()) % PAGE) & !3 };
        let value = match input.byte() {
            n @ 0..64 => self.pages[usize::from(n) % self.pages.len()].0 as u32,
            _ => input.number(),
        };
        self.driver.ram.set(DmaAddr(page.0 + offset), &value.to_le_bytes());
    }

    fn ring(&mut self, input: &mut Input<'_>) {
        let ctx = CtxHandle(input.known(&self.contexts));
        let (offset, handle) = match input.below(4) {
            0 | 1 => (0, input.known(&self.qps)),
            2 => (4, input.known(&self.cq_handles)),
            _ => (8, input.known(&self.srqs)),
        };
        let value = handle | u32::from(input.byte()) << 24;
        if let Some(doorbell) = Doorbell::decode(offset, value) {
            self.driver.device.doorbell(ctx, doorbell);
        }
    }

    /// A work request that makes sense but for a few of its numbers.
    fn post(&mut self, input: &mut Input<'_>, honest: &Honest) {
        let end = input.below(self.ends.len());
        let count = input.below(6);
        let sges: Vec<_> = (0..count)
            .map(|_| {
                let jitter = if input.byte() < 32 { u64::from(input.number()) } else { 0 };
                let key = if input.byte() < 32 { input.known(&self.keys) } else { self.region.key };
                let len = if input.byte() < 240 { u32::from(input.byte()) * 8 } else { input.number() };
                (self.region.start.wrapping_add(jitter), len, key)
            })
            .collect();
        let target = match input.below(3) {
            0 => &honest.open,
            1 => &self.region,
            _ => &honest.secret,
        };
        let offset = if input.byte() < 200 { u64::from(input.byte() & 0x78) } else { u64::from(input.number()) };
        let one = sges.first().copied().unwrap_or_default();
        let imm = input.known(&self.keys);
        let mut wr = match input.below(12) {
            0 => SendWr::send(1, &sges),
            1 => SendWr::send(1, &sges).imm(imm),
            2 => SendWr::send(1, &sges).inv(imm),
            3 => SendWr::write(1, &sges, target, offset),
            4 => SendWr::write(1, &sges, target, offset).imm(imm),
            5 => SendWr::read(1, &sges, target, offset),
            6 => SendWr::cas(1, (one.0, 8, one.2), target, offset, 0, u64::from(imm)),
            7 => SendWr::fetch_add(1, (one.0, 8, one.2), target, offset, u64::from(imm)),
            8 => SendWr::local_inv(1, imm),
            9 => {
                let list = (self.pdirs[input.below(self.pdirs.len())], input.number());
                SendWr::fast_reg(1, imm, u64::from(input.number()), input.number(), list, u32::from(input.byte()))
            }
            n => SendWr::datagram(1, &sges, &self.to(input, honest, n == 10)),
        };
        if input.byte() < 32 {
            wr.opcode = input.number();
        }
        if input.byte() < 16 {
            wr.num_sge = Some(input.number());
        }
        if input.byte() < 32 {
            wr.rkey = input.known(&self.keys);
        }
        wr.send_flags = u32::from(input.byte());
        let end = &self.ends[end];
        append(&end.qp.block, 0, (PAGE, 8, 256), &wr.to_bytes());
        end.qp.ring_send();
    }

    fn post_recv(&mut self, input: &mut Input<'_>) {
        let sges: Vec<_> = (0..input.below(5))
            .map(|_| sge(&self.region, u64::from(input.byte()) * 64, u32::from(input.byte()) * 4))
            .collect();
        let mut wr = RecvWr::new(2, &sges);
        if input.byte() < 16 {
            wr.num_sge = Some(input.number());
        }
        if let (true, Some(sge)) = (input.byte() < 16, wr.sges.first_mut()) {
            *sge = (u64::from(input.number()), input.number(), input.known(&self.keys));
        }
        if input.byte() < 64 {
            append(&self.srq.block, 8, (PAGE, 4, 64), &wr.to_bytes());
        } else {
            let end = &self.ends[input.below(self.ends.len())];
            append(&end.qp.block, 8, (PAGE * 2, 8, 128), &wr.to_bytes());
            end.qp.ring_recv();
        }
    }

    /// A piece of a message, as a host may send it that speaks for the wild guest: to the honest one, or back to it.
    fn segment(&mut self, input: &mut Input<'_>, honest: &Honest, which: usize) {
        let (source, dest, device) = match which {
            0 | 1 => (self.ends[which].endpoint(), honest.peers[which].endpoint(), &honest.driver().device),
            2 => (honest.peers[0].endpoint(), self.ends[0].endpoint(), &self.driver.device),
            _ => (self.ends[2].endpoint(), self.ends[3].endpoint(), &self.driver.device),
        };
        let Stream { psn, goes_on, rest } = self.streams[which];
        let target = if input.byte() < 192 { &honest.open } else { &honest.secret };
        let solicited = input.flag();
        let mut packets = 1 + u32::from(input.byte() & 3);
        let mut len = u64::from(packets) * 256;
        let (remote_addr, rkey) = (target.start, Rkey(target.key));
        // What fits to what came before; then something in it is changed, or all of it.
        let mut part = match goes_on {
            None => match input.below(4) {
                0 => Part::SendFirst,
                1 => Part::Read { remote_addr, rkey, rest: len },
                _ => Part::WriteFirst { remote_addr, rkey, total: len + 1 + u64::from(input.byte()) * 3 },
            },
            Some(Part::WriteMiddle) if rest > len => Part::WriteMiddle,
            Some(Part::WriteMiddle) => {
                (len, packets) = (rest, rest.div_ceil(256) as u32);
                Part::WriteLast { imm: solicited.then_some(7), solicited }
            }
            Some(_) if input.flag() => Part::SendMiddle,
            Some(_) => Part::SendLast { ext: Ext::None, solicited },
        };
        let mut psn = Psn::new(psn);
        match input.byte() {
            0..176 => {}
            176..192 => psn = psn.advance(u32::from(input.byte()).wrapping_sub(128)),
            192..200 => psn = Psn::new(input.number()),
            200..208 => packets = input.number(),
            208..216 => len = u64::from(input.number()),
            _ => {
                let remote_addr = remote_addr.wrapping_add(u64::from(input.number()));
                let rkey = Rkey(input.known(&self.keys));
                let total = u64::from(input.number()) << (input.byte() & 32);
                part = match input.below(8) {
                    0 => Part::SendFirst,
                    1 => Part::SendMiddle,
                    2 => Part::SendLast { ext: Ext::None, solicited },
                    3 => Part::SendLast { ext: Ext::Invalidate(rkey), solicited },
                    4 => Part::WriteFirst { remote_addr, rkey, total },
                    5 => Part::WriteMiddle,
                    6 => Part::WriteLast { imm: solicited.then_some(7), solicited },
                    _ => Part::Read { remote_addr, rkey, rest: total },
                };
            }
        }
        let segment = Segment { source, dest, psn, packets, len, part };
        let far = Endless { len };
        match device.receive_segment(&segment, &far) {
            Answer::Ack => {
                self.summary.pieces += 1;
                let (goes_on, rest) = match part {
                    Part::SendFirst | Part::SendMiddle => (Some(Part::SendMiddle), 0),
                    Part::WriteFirst { total, .. } => (Some(Part::WriteMiddle), total.saturating_sub(len)),
                    Part::WriteMiddle => (Some(part), rest.saturating_sub(len)),
                    _ => (None, 0),
                };
                self.streams[which] = Stream { psn: psn.advance(packets).get(), goes_on, rest };
            }
            // It may have begun anew.
            Answer::Nak(Nak::SequenceError) | Answer::Silence => self.streams[which] = Stream::default(),
            Answer::RnrNak(_) | Answer::RequesterFault => {}
            _ => self.summary.pieces_refused += 1,
        }
    }

    /// Any bytes as a work request.
    fn post_raw(&mut self, input: &mut Input<'_>) {
        let wqe: Vec<u8> = (0..144).map(|_| input.byte()).collect();
        let end = &self.ends[input.below(self.ends.len())];
        append(&end.qp.block, 0, (PAGE, 8, 256), &wqe);
        end.qp.ring_send();
    }

    fn to(&self, input: &mut Input<'_>, honest: &Honest, sane: bool) -> To {
        let end = &self.ends[self.ends.len() - 1];
        let to = end.av(&honest.datagrams, QKEY);
        if sane {
            return to;
        }
        To {
            pd: PdHandle(input.known(&self.pds) & 0x00ff_ffff),
            port_num: input.byte(),
            gid_index: input.byte(),
            qpn: Qpn(input.number()),
            qkey: input.number(),
            sl_tclass_flowlabel: input.number(),
            hop_limit: input.byte(),
            ..to
        }
    }

    /// Takes memory away from the device, gives it back, or begins to write it while the device reads.
    fn memory(&mut self, input: &mut Input<'_>) {
        let ram = &self.driver.ram;
        match input.below(4) {
            0 => ram.unmap(self.pages[input.below(self.pages.len())], PAGE),
            1 => ram.map_again(),
            2 => ram.tamper(None),
            _ => {
                let (mut count, every) = (0u32, 1 + u32::from(input.byte() & 7));
                let (at, change) = (usize::from(input.byte()), input.byte());
                ram.tamper(Some(Box::new(move |_, bytes| {
                    count = count.wrapping_add(1);
                    if count % every == 0 && !bytes.is_empty() {
                        let len = bytes.len();
                        bytes[at % len] ^= change;
                    }
                })));
            }
        }
    }

    // ---- the others ----------------------------------------------------------------------------

    /// The honest guest does something of its own, which reaches the wild one.
    fn honest_turn(&mut self, input: &mut Input<'_>, honest: &Honest) {
        let which = input.below(2);
        let peer = &honest.peers[which];
        let piece = sge(&honest.open, 0, 64);
        match input.below(8) {
            0 | 1 => drop(peer.qp.size.recv_wr > 0 && peer.qp.post_recv(&RecvWr::new(1, &[piece]))),
            2 => drop(honest.srq.post_recv(&RecvWr::new(1, &[piece]))),
            3 => drop(honest.datagrams.qp.post_recv(&RecvWr::new(1, &[sge(&honest.open, PAGE, 300)]))),
            4 => {
                peer.qp.post_send(&SendWr::send(1, &[piece]));
                peer.qp.ring_send();
            }
            5 => {
                let wr = SendWr::write(1, &[piece], &self.region, 128);
                peer.qp.post_send(&if input.flag() { wr } else { wr.opcode(4) });
                peer.qp.ring_send();
            }
            6 => {
                let to = honest.datagrams.av(&self.ends[self.ends.len() - 1], QKEY);
                honest.datagrams.qp.post_send(&SendWr::datagram(1, &[piece], &to));
                honest.datagrams.qp.ring_send();
            }
            _ => {
                peer.reset();
                peer.bring_up(
                    self.ends[which].endpoint(),
                    &Path { timeout: 1, retry_cnt: 1, rnr_retry: 1, ..Path::default() },
                );
            }
        }
        self.drain(honest);
    }

    /// Takes all completions. The honest guest's must be well-formed; the wild one's rings may be anything.
    fn drain(&mut self, honest: &Honest) {
        for end in [&honest.peers[0], &honest.peers[1], &honest.datagrams] {
            for wc in end.send_cq.drain() {
                self.summary.completions += 1;
                assert_eq!(wc.qp, u64::from(end.qp.handle.0), "{wc:?}");
                assert!(wc.wr_id == 1 && wc.status <= PVRDMA_WC_GENERAL_ERR, "{wc:?}");
            }
        }
        for cq in &self.cqs {
            let (tail, head) = (cq.block.word(8), cq.block.word(12));
            if tail < 2 * cq.cqe && tail != head {
                self.summary.completions += 1;
                cq.block.set_word(12, tail);
            }
        }
    }
}

/// Puts an entry where a ring's own counter says, whatever that says.
fn append(block: &Block, tail_at: u64, (base, slots, stride): (u64, u32, u64), entry: &[u8]) {
    let tail = block.word(tail_at);
    let at = base + u64::from(tail & (slots - 1)) * stride;
    // An SRQ's QP has no receive ring to write to.
    if (at / PAGE) < block.pages.len() as u64 {
        block.set(at, entry);
    }
    block.set_word(tail_at, tail.wrapping_add(1) & (2 * slots - 1));
}

/// A fast-register region of the kernel: its handle and its key.
fn fast_reg(driver: &Driver, pd: PdHandle) -> (u32, u32) {
    let kind = MrKind::FastReg { max_pages: 8 };
    match driver.command(Command::CreateMr { pd, start: 0, length: 0, access_flags: 0, kind }) {
        Ok(Response::CreateMr { mr, lkey, .. }) => (mr.0, lkey.0),
        other => panic!("CREATE_MR answered {other:?}"),
    }
}

/// Lets a wild guest do what `bytes` say, and checks that it harmed nobody but itself.
pub fn run(bytes: &[u8]) -> Summary {
    let fabric = Fabric::new();
    let honest = Honest::new(&fabric);
    let mut wild = Wild::new(&fabric, &honest);
    let mut input = Input(bytes);
    for _ in 0..STEPS {
        if input.0.is_empty() {
            break;
        }
        wild.step(&mut input, &honest);
    }
    pump(&[&wild.driver, honest.driver()]);
    wild.drain(&honest);
    honest.check();
    // It goes as a guest goes: its contexts first, then the whole device.
    for ctx in std::mem::take(&mut wild.contexts) {
        let _ = wild.driver.command(Command::DestroyUc { ctx: CtxHandle(ctx) });
    }
    wild.driver.device.reset();
    assert_eq!(wild.driver.device.budget_left(), LIMIT, "nothing is held for a guest that has nothing");
    pump(&[honest.driver()]);
    wild.drain(&honest);
    honest.check();
    wild.summary
}
