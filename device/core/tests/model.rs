//! Random work, legal and illegal, on several QPs, against a model that knows what may come of each request: how it
//! ends, that it ends once and in order, and which bytes it moves. On the fabric that answers at once, and on a wire
//! that reorders, delays and loses.
//!
//! `PVRDMA_SEED` repeats a run, `PVRDMA_STEPS` makes it longer.

use pvrdma_device::mock::driver::{Driver, Layout, Region};
use pvrdma_device::mock::end::{End, Path, connect, pump, pump_until};
use pvrdma_device::mock::queue::{CqRing, QpSize, RawSge, RecvWr, SendWr, Wc, sge};
use pvrdma_device::mock::rng::Rng;
use pvrdma_device::mock::wire::{Net, Wire};
use pvrdma_device::transport::fabric::Fabric;
use pvrdma_ffi::dev_api::*;
use pvrdma_ffi::uapi::vmw_pvrdma::*;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

const FLUSH: u32 = PVRDMA_WC_WR_FLUSH_ERR;
/// Bytes of a receive buffer, and of a place that WRITE and READ use.
const PLACE: u64 = 600;
const PLACES: u64 = 64;
const PAIRS: usize = 4;

/// What the model expects of one request.
#[derive(Debug)]
struct Expect {
    wr_id: u64,
    signaled: bool,
    may_succeed: bool,
    /// How it may end otherwise. A flush and an unreachable peer are possible for all.
    errors: Vec<u32>,
    moved: Moved,
}

/// What a request has moved when it succeeded.
#[derive(Debug, Clone)]
enum Moved {
    Nothing,
    /// These bytes, to this place of the peer.
    Write(u64, Vec<u8>),
    /// These bytes, to this place of its own region.
    Read(u64, Vec<u8>),
}

/// A message that takes a receive.
struct Message {
    bytes: Vec<u8>,
    imm: Option<u32>,
    write: bool,
    too_long: bool,
}

/// One end and what the model knows of it.
struct Side {
    end: End,
    local: Region,
    /// Where the peer writes and reads.
    remote: Region,
    inbox: Region,
    sends: VecDeque<Expect>,
    receives: VecDeque<u64>,
    /// Messages sent in this life that should arrive at the peer, oldest first.
    messages: VecDeque<Message>,
    next_id: u64,
    /// An error completion was seen: from here on only flushes.
    failed: bool,
    recv_failed: bool,
    completions: u64,
}

struct World {
    rng: Rng,
    drivers: [Arc<Driver>; 2],
    wires: Option<[Arc<Wire>; 2]>,
    pairs: Vec<[Side; 2]>,
    cqs: [Arc<CqRing>; 2],
    lives: u64,
}

impl Side {
    fn new(driver: &Arc<Driver>, pd: pvrdma_device::handle::PdHandle, cq: &Arc<CqRing>, size: QpSize) -> Side {
        let end = End::with(driver, pd, cq.clone(), cq.clone(), size);
        let region = || end.driver.try_region(pd, PLACE * PLACES, 4000, 7).unwrap();
        Side {
            local: region(),
            remote: region(),
            inbox: region(),
            end,
            sends: VecDeque::new(),
            receives: VecDeque::new(),
            messages: VecDeque::new(),
            next_id: 0,
            failed: false,
            recv_failed: false,
            completions: 0,
        }
    }

    fn in_error(&self) -> bool {
        self.end.query().qp_state == PVRDMA_QPS_ERR
    }
}

impl World {
    fn new(seed: u64, lossy: bool) -> World {
        let mut rng = Rng::from_env(seed);
        let layouts = [*rng.pick(&[Layout::Ranges, Layout::Pdir]), *rng.pick(&[Layout::Ranges, Layout::Pdir])];
        let (drivers, wires) = if lossy {
            let net = Net::default();
            let [(da, wa), (db, wb)] = [0, 1].map(|index| Wire::guest(&net, index, layouts[usize::from(index)]));
            ([da, db], Some([wa, wb]))
        } else {
            let fabric = Fabric::new();
            let drivers = [0, 1].map(|index| Arc::new(Driver::new(&fabric, index, layouts[usize::from(index)])));
            (drivers, None)
        };
        let pds = [0, 1].map(|n| drivers[n].pd(drivers[n].context()));
        // `context` gave handle 1 on both devices; one CQ a guest, for all its queues.
        let cqs = [0, 1].map(|n| drivers[n].cq(pvrdma_device::handle::CtxHandle(1), 4096));
        let pairs = (0..PAIRS)
            .map(|_| {
                let size = QpSize {
                    send_wr: 1 << rng.below(7),
                    recv_wr: 1 << rng.below(7),
                    send_sge: 1 + rng.below(16) as u32,
                    recv_sge: 1 + rng.below(16) as u32,
                    sig_all: rng.one_in(4),
                };
                [0, 1].map(|n| Side::new(&drivers[n], pds[n], &cqs[n], size))
            })
            .collect();
        let mut world = World { rng, drivers, wires, pairs, cqs, lives: 0 };
        for pair in 0..PAIRS {
            world.connect(pair);
        }
        world
    }

    fn connect(&mut self, pair: usize) {
        let path = Path {
            mtu: 1 + self.rng.below(5) as u32,
            psn: self.rng.word() as u32 & 0x00ff_ffff,
            timeout: if self.wires.is_some() { 8 } else { 1 },
            retry_cnt: if self.wires.is_some() { 7 } else { 0 },
            rnr_retry: 7,
            min_rnr_timer: 1,
            max_rd_atomic: 1 + self.rng.below(8) as u8,
            ..Path::default()
        };
        let [a, b] = &self.pairs[pair];
        connect(&a.end, &b.end, &path);
        self.lives += 1;
    }

    // ---- posting -------------------------------------------------------------------------------

    /// Cuts a range into SGEs.
    fn cut(&mut self, region: &Region, offset: u64, len: u64, max: u32) -> Vec<RawSge> {
        let count = 1 + self.rng.below(u64::from(max));
        let mut cuts: Vec<u64> = (1..count).map(|_| self.rng.below(len + 1)).collect();
        cuts.sort_unstable();
        cuts.push(len);
        let mut from = 0;
        cuts.into_iter()
            .map(|to| {
                let piece = sge(region, offset + from, (to - from) as u32);
                from = to;
                piece
            })
            .collect()
    }

    fn post_receive(&mut self, pair: usize, side: usize) {
        let max_sge = self.pairs[pair][side].end.qp.size.recv_sge;
        let (id, inbox) = (self.pairs[pair][side].next_id, self.pairs[pair][side].inbox.clone());
        let sges = self.cut(&inbox, id % PLACES * PLACE, PLACE, max_sge);
        let this = &mut self.pairs[pair][side];
        if this.end.qp.post_recv(&RecvWr::new(id, &sges)) {
            this.receives.push_back(id);
            this.next_id += 1;
            if self.rng.one_in(2) {
                self.pairs[pair][side].end.qp.ring_recv();
            }
        }
    }

    fn post_send(&mut self, pair: usize, side: usize, bad: bool) {
        let rng = &mut self.rng;
        let id = self.pairs[pair][side].next_id;
        let place = id % PLACES * PLACE;
        let len = match rng.below(4) {
            0 => 0,
            1 => 1 + rng.below(8),
            _ => rng.below(PLACE + 1),
        };
        let kind = rng.below(5);
        let signaled = rng.one_in(2);
        let solicited = rng.one_in(4);
        let fence = rng.one_in(8);
        let bytes = rng.bytes(len as usize);
        let imm = rng.word() as u32;
        let trouble = if bad { 1 + rng.below(8) } else { 0 };

        let (local, remote) = (self.pairs[pair][side].local.clone(), self.pairs[pair][1 - side].remote.clone());
        let size = self.pairs[pair][side].end.qp.size;
        let sges = self.cut(&local, place, len, size.send_sge);
        let mut message = None;
        let mut moved = Moved::Nothing;
        let mut wr = match kind {
            0 | 1 => {
                message = Some(Message { bytes: bytes.clone(), imm: None, write: false, too_long: false });
                let wr = SendWr::send(id, &sges);
                if kind == 1 { wr.imm(imm) } else { wr }
            }
            2 | 3 => {
                moved = Moved::Write(place, bytes.clone());
                let wr = SendWr::write(id, &sges, &remote, place);
                if kind == 3 {
                    message = Some(Message { bytes: bytes.clone(), imm: None, write: true, too_long: false });
                    wr.imm(imm)
                } else {
                    wr
                }
            }
            _ => {
                moved = Moved::Read(place, bytes.clone());
                SendWr::read(id, &sges, &remote, place)
            }
        };
        if let Some(message) = &mut message {
            message.imm = (kind == 1 || kind == 3).then_some(imm);
        }
        wr.send_flags = u32::from(fence) | u32::from(signaled) << 1 | u32::from(solicited) << 2;

        let mut errors = Vec::new();
        let one_sided = kind >= 2;
        match trouble {
            0 => {}
            1 => {
                wr.opcode = *self.rng.pick(&[7, 9, 11, 12, 13, 14, 15, 16, 24, u32::MAX]);
                errors.push(PVRDMA_WC_LOC_QP_OP_ERR);
            }
            2 => {
                wr.num_sge = Some(size.send_sge + 1 + imm % 1000);
                errors.push(PVRDMA_WC_LOC_QP_OP_ERR);
            }
            3 => {
                wr.send_flags |= PVRDMA_SEND_INLINE;
                errors.push(PVRDMA_WC_LOC_QP_OP_ERR);
            }
            4 | 5 => {
                wr.sges = vec![(local.start + PLACE * PLACES - 1, 2, local.key ^ u32::from(trouble == 5))];
                errors.push(PVRDMA_WC_LOC_PROT_ERR);
            }
            6 if one_sided => {
                wr.rkey ^= 0x40;
                wr.sges = vec![sge(&local, 0, 1)];
                errors.push(PVRDMA_WC_REM_ACCESS_ERR);
            }
            7 if one_sided => {
                wr.remote_addr = remote.start + PLACE * PLACES;
                wr.sges = vec![sge(&local, 0, 1)];
                errors.push(PVRDMA_WC_REM_ACCESS_ERR);
            }
            _ if !one_sided => {
                wr.sges = vec![sge(&local, 0, PLACE as u32 + 1)];
                errors.push(PVRDMA_WC_REM_INV_REQ_ERR);
                message.as_mut().unwrap().too_long = true;
            }
            _ => {
                wr.num_sge = Some(u32::MAX);
                errors.push(PVRDMA_WC_LOC_QP_OP_ERR);
            }
        }
        let may_succeed = errors.is_empty();
        // The bytes must be in place before the WQE is visible, but only if it will be.
        let this = &mut self.pairs[pair][side];
        if this.end.qp.sends_out() == size.send_wr {
            return;
        }
        match (&moved, may_succeed) {
            (Moved::Read(place, bytes), true) => remote.set(*place, bytes),
            (_, true) => local.set(place, &bytes),
            _ => {}
        }
        assert!(this.end.qp.post_send(&wr));
        this.next_id += 1;
        if let Some(message) = message.filter(|message| may_succeed || message.too_long) {
            this.messages.push_back(message);
        }
        let signaled = signaled || size.sig_all;
        let moved = if may_succeed { moved } else { Moved::Nothing };
        this.sends.push_back(Expect { wr_id: id, signaled, may_succeed, errors, moved });
        if self.rng.one_in(2) {
            self.pairs[pair][side].end.qp.ring_send();
        }
    }

    // ---- checking ------------------------------------------------------------------------------

    fn check_completions(&mut self) {
        // Sends first: a receive's message must have been posted, a send's receive may not have been polled yet.
        for guest in 0..2 {
            for wc in self.cqs[guest].drain() {
                let pair = self
                    .pairs
                    .iter()
                    .position(|pair| u64::from(pair[guest].end.qp.handle.0) == wc.qp)
                    .expect("a CQE names a QP of its guest");
                self.pairs[pair][guest].completions += 1;
                if wc.opcode & PVRDMA_WC_RECV != 0 {
                    self.check_receive(pair, guest, &wc);
                } else {
                    self.check_send(pair, guest, &wc);
                }
            }
        }
    }

    fn check_send(&mut self, pair: usize, side: usize, wc: &Wc) {
        let peer_in_error = self.pairs[pair][1 - side].in_error();
        let lossy = self.wires.is_some();
        loop {
            let Some(expect) = self.pairs[pair][side].sends.pop_front() else { panic!("nobody posted {wc:?}") };
            let this = &self.pairs[pair][side];
            let success = wc.wr_id != expect.wr_id || wc.status == 0;
            if success {
                assert!(expect.may_succeed && !this.failed, "{expect:?} succeeded, says {wc:?}");
                self.check_moved(pair, side, &expect.moved);
            }
            if wc.wr_id != expect.wr_id {
                assert!(!expect.signaled, "{expect:?} was passed over by {wc:?}");
                continue;
            }
            assert!(expect.signaled || wc.status != 0, "{expect:?} was to be silent: {wc:?}");
            match wc.status {
                0 => return,
                FLUSH => assert!(this.failed || this.in_error(), "{wc:?} before any error"),
                PVRDMA_WC_RETRY_EXC_ERR => assert!(!this.failed && (lossy || peer_in_error), "{wc:?}"),
                status => {
                    assert!(!this.failed, "{wc:?} after an error");
                    assert!(expect.errors.contains(&status), "{wc:?}, expected {expect:?}");
                }
            }
            self.pairs[pair][side].failed = true;
            return;
        }
    }

    fn check_moved(&self, pair: usize, side: usize, moved: &Moved) {
        match moved {
            Moved::Nothing => {}
            Moved::Write(place, bytes) => {
                let there = self.pairs[pair][1 - side].remote.get(*place, bytes.len());
                assert!(there == *bytes, "WRITE to {place}: {} bytes differ", bytes.len());
            }
            Moved::Read(place, bytes) => {
                let here = self.pairs[pair][side].local.get(*place, bytes.len());
                assert!(here == *bytes, "READ to {place}: {} bytes differ", bytes.len());
            }
        }
    }

    fn check_receive(&mut self, pair: usize, side: usize, wc: &Wc) {
        let [this, peer] = self.pairs[pair].get_disjoint_mut([side, 1 - side]).unwrap();
        let id = this.receives.pop_front().unwrap_or_else(|| panic!("nobody posted {wc:?}"));
        assert_eq!(wc.wr_id, id, "receives end in order: {wc:?}");
        match wc.status {
            0 => {
                assert!(!this.recv_failed, "{wc:?} after an error");
                let message = peer.messages.pop_front().unwrap_or_else(|| panic!("nobody sent {wc:?}"));
                assert!(!message.too_long, "{wc:?} did not fit");
                assert_eq!(wc.byte_len as usize, message.bytes.len());
                assert_eq!(wc.wc_flags & PVRDMA_WC_WITH_IMM != 0, message.imm.is_some());
                assert_eq!(wc.imm_data, message.imm.unwrap_or(0));
                assert_eq!(wc.opcode == PVRDMA_WC_RECV_RDMA_WITH_IMM, message.write);
                if !message.write {
                    let place = id % PLACES * PLACE;
                    assert!(this.inbox.get(place, message.bytes.len()) == message.bytes, "message of {wc:?} differs");
                }
            }
            FLUSH => {
                assert!(this.in_error(), "{wc:?} out of nothing");
                this.recv_failed = true;
            }
            PVRDMA_WC_LOC_LEN_ERR => {
                assert!(!this.recv_failed);
                assert!(peer.messages.front().is_some_and(|message| message.too_long), "{wc:?} would have fitted");
                this.recv_failed = true;
            }
            _ => panic!("{wc:?}"),
        }
    }

    // ---- lives ---------------------------------------------------------------------------------

    /// Lets the wire do something, if there is one.
    fn turn(&mut self) {
        let Some(wires) = &self.wires else { return };
        for wire in wires {
            for _ in 0..self.rng.below(6) {
                let flights = wire.flights() as u64;
                if flights == 0 {
                    break;
                }
                // Mostly the oldest, now and then another; mostly once, now and then twice or with the answer lost.
                let index = if self.rng.one_in(6) { self.rng.below(flights) as usize } else { 0 };
                match self.rng.below(40) {
                    0 => wire.lose(index),
                    1 => {
                        wire.deliver(index);
                        wire.lose(index);
                    }
                    2 => drop(wire.deliver(index)),
                    3 => wire.set_busy(self.rng.below(4) as u32),
                    4 => wire.set_one_by_one(self.rng.one_in(3)),
                    _ => {
                        wire.deliver(index);
                        wire.answer(index);
                    }
                }
            }
        }
    }

    /// Ends the life of a pair in one of the ways there are, checks that nothing is owed, and begins the next.
    fn end_life(&mut self, pair: usize) {
        let order = if self.rng.one_in(2) { [0, 1] } else { [1, 0] };
        for side in order {
            self.pairs[pair][side].end.modify_state(PVRDMA_QPS_ERR).unwrap();
        }
        pump(&[&self.drivers[0], &self.drivers[1]]);
        self.check_completions();
        for side in 0..2 {
            let this = &mut self.pairs[pair][side];
            assert_eq!((this.end.qp.sends_out(), this.end.qp.recvs_out()), (0, 0), "slots were kept");
            assert!(this.receives.is_empty(), "receives without an end: {:?}", this.receives);
            // What is left was silent and successful, and nothing failed before it.
            let left = std::mem::take(&mut this.sends);
            let silent = left.iter().all(|expect| !expect.signaled && expect.may_succeed);
            assert!(left.is_empty() || silent && !this.failed, "sends without an end: {left:?}");
            (this.failed, this.recv_failed) = (false, false);
            this.messages.clear();
            this.end.reset();
        }
        self.connect(pair);
    }

    fn step(&mut self) {
        let pair = self.rng.below(PAIRS as u64) as usize;
        let side = self.rng.below(2) as usize;
        match self.rng.below(100) {
            0..45 => self.post_receive(pair, side),
            45..85 => self.post_send(pair, side, false),
            85..87 => self.post_send(pair, side, true),
            87..93 => self.pairs[pair][side].end.qp.ring_send(),
            93 if self.rng.one_in(4) => self.end_life(pair),
            94 => {
                // Somebody else's region goes: what is on its way is not disturbed.
                let end = &self.pairs[pair][side].end;
                let spare = end.driver.register_again(end.pd, &self.pairs[pair][side].inbox);
                end.driver.dereg(&spare);
            }
            95 if self.rng.one_in(2) => {
                let end = &self.pairs[pair][side].end;
                // What is on its way may fail in between; then there is no way back.
                if end.modify_state(PVRDMA_QPS_SQD).is_ok() && end.modify_state(PVRDMA_QPS_RTS).is_err() {
                    assert!(self.pairs[pair][side].in_error());
                }
            }
            _ => {}
        }
        self.turn();
        if self.rng.one_in(8) {
            for driver in &self.drivers {
                driver.device.poll();
            }
            self.check_completions();
            let dead = |pair: &[Side; 2]| pair.iter().any(|side| side.failed || side.recv_failed);
            if let Some(pair) = self.pairs.iter().position(dead)
                && self.rng.one_in(3)
            {
                self.end_life(pair);
            }
        }
    }

    /// Everything that can still succeed does: receives for all, time for all.
    fn finish(&mut self) {
        for _ in 0..200 {
            for pair in 0..PAIRS {
                for side in 0..2 {
                    while self.pairs[pair][side].receives.len() < self.pairs[pair][1 - side].messages.len() {
                        let before = self.pairs[pair][side].receives.len();
                        self.post_receive(pair, side);
                        if self.pairs[pair][side].receives.len() == before {
                            break;
                        }
                    }
                    self.pairs[pair][side].end.qp.ring_send();
                }
            }
            let drivers = [&*self.drivers[0], &*self.drivers[1]];
            pump_until(&drivers, Duration::from_micros(500), || false);
            if let Some(wires) = &self.wires {
                wires.iter().for_each(|wire| wire.run());
            }
            self.check_completions();
        }
        for pair in 0..PAIRS {
            let healthy = self.pairs[pair].iter().all(|side| !side.in_error());
            for side in &self.pairs[pair] {
                if healthy {
                    assert_eq!(side.end.qp.sends_out(), 0, "a healthy QP with receives at its peer finishes its work");
                    assert!(side.messages.is_empty(), "{} messages did not arrive", side.messages.len());
                }
            }
            self.end_life(pair);
        }
    }
}

fn run(seed: u64, lossy: bool, steps: u64) {
    let steps = std::env::var("PVRDMA_STEPS").map_or(steps, |steps| steps.parse().expect("PVRDMA_STEPS: a number"));
    let mut world = World::new(seed, lossy);
    for _ in 0..steps {
        world.step();
    }
    world.finish();
    let completions: u64 = world.pairs.iter().flatten().map(|side| side.completions).sum();
    println!("{steps} steps, {} lives, {completions} completions", world.lives);
    assert!(completions > steps / 4, "hardly anything happened: {completions} completions in {steps} steps");
    assert!(world.lives > PAIRS as u64 * 2, "no life ended");
    for driver in &world.drivers {
        assert!(
            driver
                .bell
                .events()
                .iter()
                .all(|event| { matches!(event, pvrdma_device::interrupt::AsyncEvent::QpAccessErr(_)) })
        );
    }
}

#[test]
fn random_work_on_the_fabric() {
    for seed in 1..=6 {
        run(seed, false, 3000);
    }
}

#[test]
fn random_work_on_a_lossy_wire() {
    for seed in 11..=14 {
        run(seed, true, 2000);
    }
}
