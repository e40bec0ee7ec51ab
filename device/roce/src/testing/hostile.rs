//! A hostile peer, and a device that answers as it likes. Bytes say which half of a QP they are against, which packets
//! come, when, how much is done at a time, and what the device does about it.
//!
//! Called by `tests/hostile.rs` with random bytes and by the fuzz target (`device/roce/fuzz`) with bytes that a fuzzer
//! grew. Whatever the bytes: nothing panics, each request ends once, what goes out is what was asked for, what is kept
//! is bounded, and so is what is sent for what has come.

use super::pattern;
use crate::packet::{Aeth, AtomicEth, BITS_24, Bth, MTU_MAX, Opcode, Packet, Reth, Syndrome, nak};
use crate::rc::Connection;
use crate::rc::requester::{Local, Requester};
use crate::rc::responder::{Piece, Responder};
use pvrdma_device::handle::{Psn, QpHandle, Qpn, Rkey};
use pvrdma_device::rings::wqe::{AtomicOp, Ext};
use pvrdma_device::transport::segment::{Carried, Part};
use pvrdma_device::transport::{Answer, Endpoint, Nak, Op, Request, Token};
use pvrdma_ffi::rng::Input;
use std::collections::VecDeque;
use std::time::Duration;

/// Steps of one run; bytes behind them are not looked at.
const STEPS: u32 = 3000;
/// Bytes that a packet counts for at least: its headers are not for nothing.
const LEAST: u64 = 64;
/// No window is wider.
const WINDOW: u64 = 256 << 10;
/// What one turn sends, but for its last packet.
const TURN: u64 = 64 << 10;
/// Requests of a QP at a time, at most.
const REQUESTS: usize = 600;

/// What came of a run, so that a test can tell whether its bytes reach anything.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    /// Packets that the peer sent.
    pub came: u64,
    /// Packets that were sent.
    pub sent: u64,
    /// Of them, those that had been sent before.
    pub again: u64,
    /// Requests that ended, by whatever answer.
    pub ended: u64,
    /// Pieces that the device was given.
    pub pieces: u64,
}

/// Does what `bytes` say, and checks that it harmed nobody.
pub fn run(bytes: &[u8]) -> Summary {
    let mut input = Input(bytes);
    let (how, near) = (input.byte(), input.byte());
    let connection = Connection {
        local: Endpoint { gid: [1; 16], qpn: Qpn(0x11) },
        peer: Endpoint { gid: [2; 16], qpn: Qpn(0x22) },
        mtu: 256 << (how >> 1 & 3),
    };
    // Often the numbers begin again soon.
    let first = Psn::new(u32::from(near).wrapping_sub(128));
    if how & 1 == 0 {
        Asking::new(connection, first).run(&mut input)
    } else {
        Answering::new(connection, first).run(&mut input)
    }
}

/// The bytes of packet `psn`, of which a message may have fewer.
fn payload(psn: Psn, len: usize) -> Vec<u8> {
    pattern(u64::from(psn.get()) * 7, len)
}

/// Has `take` look at a packet that came as these bytes, if it is one.
fn with_bytes(input: &mut Input<'_>, take: &mut dyn FnMut(&Packet<'_>)) {
    let len = usize::from(input.byte());
    let bytes: Vec<u8> = (0..len).map(|_| input.byte()).collect();
    if let Ok(packet) = Packet::parse(&bytes) {
        take(&packet);
    }
}

/// A packet number around `psn`.
fn around(input: &mut Input<'_>, psn: Psn) -> Psn {
    match input.byte() {
        n @ 0..160 => psn.advance(u32::from(n & 31)),
        n @ 160..192 => psn.advance(u32::from(n & 31).wrapping_neg() & BITS_24),
        192..240 => psn.advance(input.number() & BITS_24),
        _ => Psn::new(input.number() & BITS_24),
    }
}

fn reth(input: &mut Input<'_>, len: u32) -> Reth {
    let len = match input.byte() {
        0..192 => len,
        192..224 => input.number(),
        _ => u32::from(input.byte()) << 8,
    };
    Reth { addr: u64::from(input.number()), rkey: input.number(), len }
}

// ---- against a requester -----------------------------------------------------------------------

/// A request that was submitted, and what has arrived of what it reads.
struct Owed {
    request: Request,
    arrived: u64,
}

struct Asking {
    connection: Connection,
    half: Requester,
    now: Duration,
    /// Without an answer, in their order.
    owed: VecDeque<Owed>,
    /// Ended, but not done: the device submits them again.
    again: VecDeque<Owed>,
    psn: Psn,
    epoch: u32,
    /// Nothing from here on has been sent.
    fresh: Psn,
    /// What was sent, what of it for the first time, and what may be sent again for what has happened: bytes.
    sent: u64,
    first: u64,
    allowed: u64,
    summary: Summary,
}

/// The device's memory: all is there, or one request in some is over.
struct Store<'a> {
    owed: &'a mut VecDeque<Owed>,
    mtu: u32,
    /// The next use of it finds a request gone.
    fails: bool,
    gone: Option<Token>,
}

impl Store<'_> {
    fn touch(&mut self, token: Token, offset: u64, len: usize) -> Option<&mut Owed> {
        let owed = self.owed.iter_mut().find(|owed| owed.request.token == token).expect("a request that has not ended");
        assert!(self.gone.is_none_or(|gone| gone != token), "what is over is not asked for again");
        assert!(len > 0 && offset + len as u64 <= owed.request.len, "{len} bytes from {offset} on");
        if std::mem::take(&mut self.fails) {
            self.gone = Some(token);
            return None;
        }
        Some(owed)
    }
}

impl Local for Store<'_> {
    fn payload(&mut self, token: Token, offset: u64, into: &mut [u8]) -> bool {
        let mtu = u64::from(self.mtu);
        let Some(owed) = self.touch(token, offset, into.len()) else { return false };
        assert!(!owed.request.op.reads() && offset.is_multiple_of(mtu));
        for (n, bytes) in into.chunks_mut(mtu as usize).enumerate() {
            let psn = owed.request.psn.advance((offset / mtu) as u32 + n as u32);
            bytes.copy_from_slice(&payload(psn, bytes.len()));
        }
        true
    }

    fn arrived(&mut self, token: Token, offset: u64, bytes: &[u8]) -> bool {
        let Some(owed) = self.touch(token, offset, bytes.len()) else { return false };
        assert!(owed.request.op.reads());
        assert_eq!(offset, owed.arrived, "in order, and each byte once");
        owed.arrived += bytes.len() as u64;
        true
    }
}

impl Asking {
    fn new(connection: Connection, psn: Psn) -> Asking {
        Asking {
            connection,
            half: Requester::new(connection),
            now: Duration::ZERO,
            owed: VecDeque::new(),
            again: VecDeque::new(),
            psn,
            epoch: 0,
            fresh: psn,
            sent: 0,
            first: 0,
            // The window that it begins with, lost step by step.
            allowed: TURN,
            summary: Summary::default(),
        }
    }

    fn run(mut self, input: &mut Input<'_>) -> Summary {
        for _ in 0..STEPS {
            if input.0.is_empty() {
                break;
            }
            self.step(input);
        }
        // Nobody says anything any more.
        for _ in 0..8 {
            while self.transmit(false) {}
            if let Some(deadline) = self.half.deadline() {
                self.expire(deadline);
            }
        }
        assert!(self.owed.is_empty() && self.half.is_empty(), "{} wait for ever", self.owed.len());
        self.summary
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.byte() {
            0..80 => self.submit(input),
            80..160 => self.hear(input),
            160..208 => {
                let fails = input.rarely();
                let more = self.transmit(fails);
                // As long as something waits for an answer, something happens in the end.
                let rests = more || self.half.is_empty() || self.half.deadline().is_some();
                assert!(rests, "{} requests wait for nothing", self.half.len());
            }
            208..224 => {
                let later = self.now + Duration::from_micros(u64::from(input.number() & 0xffff));
                self.expire(later);
            }
            224..240 => {
                let deadline = self.half.deadline().unwrap_or(self.now);
                self.expire(deadline);
            }
            240..248 => self.take_back(input),
            _ => with_bytes(input, &mut |packet| self.receive(packet, false)),
        }
    }

    fn submit(&mut self, input: &mut Input<'_>) {
        // The same again, or something new, a few times.
        let (kind, count) = (input.byte(), 1 + usize::from(input.byte() & 63));
        let mtu = u64::from(self.connection.mtu);
        let len = match input.byte() {
            0..64 => 0,
            n @ 64..128 => u64::from(n - 64),
            n @ 128..192 => u64::from(n - 128) * mtu / 8,
            _ => u64::from(input.number() & 0xf_ffff),
        };
        let (remote_addr, rkey) = (u64::from(input.number()), Rkey(7));
        let (op, len) = match kind % 8 {
            0 => (Op::Send { ext: Ext::None }, len),
            1 => (Op::Send { ext: Ext::Imm(1) }, len),
            2 => (Op::Send { ext: Ext::Invalidate(Rkey(2)) }, len),
            3 => (Op::Write { remote_addr, rkey, imm: None }, len),
            4 => (Op::Write { remote_addr, rkey, imm: Some(3) }, len),
            5 | 6 => (Op::Read { remote_addr, rkey }, len),
            _ => (Op::Atomic { remote_addr, rkey, op: AtomicOp::FetchAdd { add: 1 } }, 8),
        };
        let packets = len.div_ceil(mtu).max(1) as u32;
        for _ in 0..count {
            if self.owed.len() == REQUESTS {
                return;
            }
            self.epoch += 1;
            let known = self.again.pop_front();
            let fresh = known.is_none();
            let mut owed = known.unwrap_or_else(|| {
                let Connection { local: source, peer: dest, .. } = self.connection;
                let (token, psn) = (Token::default(), self.psn);
                let request = Request { token, source, dest, psn, packets, op, len, solicited: true, alone: false };
                Owed { request, arrived: 0 }
            });
            owed.request.token = Token { qp: QpHandle(1), epoch: self.epoch, psn: owed.request.psn };
            if fresh {
                self.psn = self.psn.advance(packets);
            }
            self.half.submit(&owed.request);
            self.owed.push_back(owed);
            self.end(None);
        }
    }

    /// The device takes requests back, from one of them on.
    fn take_back(&mut self, input: &mut Input<'_>) {
        let at = input.below(self.owed.len());
        let Some(token) = self.owed.get(at).map(|owed| owed.request.token) else { return };
        self.half.cancel(token);
        self.end(Some(token));
    }

    /// A packet that a responder might send.
    fn hear(&mut self, input: &mut Input<'_>) {
        let oldest = self.owed.front().map_or(self.psn, |owed| owed.request.psn);
        let mtu = self.connection.mtu as usize;
        let kind = input.byte();
        let psn = match input.byte() {
            // What is read comes next; or what was sent last is acknowledged.
            0..64 => self.owed.front().map_or(oldest, |owed| oldest.advance((owed.arrived / mtu as u64) as u32)),
            64..80 => Psn::new(self.fresh.get().wrapping_sub(1)),
            _ => around(input, oldest),
        };
        let (opcode, syndrome) = match kind {
            0..64 => (Opcode::Acknowledge, Syndrome::Ack(31)),
            64..112 => (Opcode::Acknowledge, Syndrome::Nak(nak::SEQUENCE_ERROR)),
            112..120 => (Opcode::Acknowledge, Syndrome::Rnr(input.byte() & 31)),
            120..128 => (Opcode::Acknowledge, Syndrome::Nak(input.byte() & 31)),
            128..144 => (Opcode::AtomicAcknowledge, Syndrome::Ack(0)),
            144..168 => (Opcode::ReadFirst, Syndrome::Ack(0)),
            168..200 => (Opcode::ReadMiddle, Syndrome::Ack(0)),
            200..216 => (Opcode::ReadLast, Syndrome::Nak(1)),
            216..248 => (Opcode::ReadOnly, Syndrome::Ack(0)),
            _ => (Opcode::ALL[input.below(Opcode::ALL.len())], Syndrome::Ack(0)),
        };
        let len = match input.byte() {
            _ if !opcode.has_payload() => 0,
            0..160 => self.owed.front().map_or(0, |owed| (owed.request.len - owed.arrived).min(mtu as u64) as usize),
            160..224 => mtu,
            _ => input.number() as usize % (MTU_MAX + 1),
        };
        let bytes = payload(psn, len);
        let mut packet = Packet::new(Bth::new(opcode, 0x11, psn.get()), &bytes);
        packet.aeth = opcode.has_aeth().then_some(Aeth { syndrome, msn: 1 });
        packet.atomic_ack = opcode.has_atomic_ack().then_some(5);
        packet.reth = opcode.has_reth().then(|| reth(input, len as u32));
        let fails = input.rarely();
        self.receive(&packet, fails);
    }

    fn receive(&mut self, packet: &Packet<'_>, fails: bool) {
        self.summary.came += 1;
        let mtu = self.connection.mtu;
        // Each packet may have something go back, by the narrowest window at least; and what comes widens it.
        self.allowed += 3 * u64::from(mtu) + packet.payload.len() as u64;
        let mut store = Store { owed: &mut self.owed, mtu, fails, gone: None };
        self.half.receive(self.now, packet, &mut store);
        let gone = store.gone;
        self.end(gone);
    }

    fn expire(&mut self, now: Duration) {
        self.now = now;
        self.allowed += 3 * u64::from(self.connection.mtu);
        self.half.expire(now);
        self.end(None);
    }

    fn transmit(&mut self, fails: bool) -> bool {
        let mut packets: Vec<(Bth, Option<Reth>, Vec<u8>)> = Vec::new();
        let mtu = self.connection.mtu;
        let mut store = Store { owed: &mut self.owed, mtu, fails, gone: None };
        let more = self.half.transmit(self.now, &mut store, &mut |packet| {
            assert!(packet.is_sound() && !packet.bth.opcode.is_response() && packet.bth.dest_qpn == 0x22);
            packets.push((packet.bth, packet.reth, packet.payload.to_vec()));
        });
        let gone = store.gone;
        let mut turn = 0;
        for (bth, reth, bytes) in packets {
            self.went_out(&bth, reth, &bytes);
            turn += (bytes.len() as u64).max(LEAST);
        }
        assert!(turn <= TURN + u64::from(mtu), "{turn} bytes in one turn");
        self.end(gone);
        more
    }

    /// What goes out is a packet of a request that waits for its answer.
    fn went_out(&mut self, bth: &Bth, reth: Option<Reth>, bytes: &[u8]) {
        self.summary.sent += 1;
        let (psn, mtu) = (Psn::new(bth.psn), u64::from(self.connection.mtu));
        let holds = |owed: &&Owed| psn.since(owed.request.psn) < owed.request.packets;
        let owed = self.owed.iter().find(holds).expect("a packet of a request that waits");
        let request = &owed.request;
        let n = psn.since(request.psn);
        let from = u64::from(n) * mtu;
        let mut end = psn.advance(1);
        match request.op {
            Op::Read { remote_addr, rkey } => {
                let reth = reth.expect("a RETH");
                // Without length it names no key.
                let key = if request.len == 0 { 0 } else { rkey.0 };
                assert_eq!((bth.opcode, reth.rkey), (Opcode::ReadRequest, key));
                assert_eq!(from, owed.arrived.next_multiple_of(mtu), "what has not come");
                assert_eq!(reth.addr, remote_addr + from);
                assert!(from + u64::from(reth.len) <= request.len);
                end = psn.advance(reth.len.div_ceil(mtu as u32).max(1));
            }
            Op::Atomic { .. } => assert_eq!(bth.opcode, Opcode::FetchAdd),
            _ => {
                assert_eq!(bth.opcode.begins(), n == 0);
                assert_eq!(bth.opcode.ends(), n + 1 == request.packets);
                assert_eq!(bytes, payload(psn, (request.len - from).min(mtu) as usize));
                assert!(reth.is_none_or(|reth| u64::from(reth.len) == request.len));
            }
        }
        let cost = (bytes.len() as u64).max(LEAST);
        self.sent += cost;
        if end.ahead_of(self.fresh) {
            self.fresh = end;
            self.first += cost;
        } else {
            self.summary.again += 1;
        }
        // What is acknowledged widens the window, and it was sent once before.
        let again = self.sent - self.first;
        assert!(again <= self.first + self.allowed, "{again} bytes again, {} of them allowed", self.allowed);
    }

    /// Takes all answers in. `gone` is a request that its device ended by itself.
    fn end(&mut self, gone: Option<Token>) {
        let mut bad = gone.map(|token| self.position(token));
        let mut ended = bad.and_then(|at| self.owed.remove(at)).map(|owed| vec![owed]).unwrap_or_default();
        let mut fatal = false;
        while let Some((token, answer)) = self.half.answer() {
            self.summary.ended += 1;
            let at = self.position(token);
            match bad {
                // Acknowledged before that one ended.
                Some(first) if at < first => {
                    assert!(at == 0 && answer == Answer::Ack, "{answer:?}");
                    bad = Some(first - 1);
                }
                Some(first) => assert!(at == first && answer == Answer::Silence, "{answer:?} behind one that ended"),
                None => {
                    assert_eq!(at, 0, "{answer:?}, and others wait before it");
                    bad = (answer != Answer::Ack).then_some(0);
                }
            }
            let owed = self.owed.remove(at).expect("it was found there");
            fatal |= matches!(answer, Answer::Nak(_));
            if answer == Answer::Ack {
                let read = matches!(owed.request.op, Op::Read { .. });
                assert!(!read || owed.arrived == owed.request.len, "{} bytes arrived", owed.arrived);
            } else {
                ended.push(owed);
            }
        }
        let Some(first) = bad else { return };
        assert_eq!(first, self.owed.len(), "all behind one that ended ended too");
        assert_eq!(self.half.len(), self.owed.len());
        // What was on its way goes out again when it is submitted again: at most a window.
        self.allowed += WINDOW + TURN;
        if fatal {
            // The QP fails. It is made anew, and goes on somewhere else.
            self.half = Requester::new(self.connection);
            self.owed.clear();
            self.again.clear();
            self.psn = self.psn.advance(0x1234);
            self.fresh = self.psn;
            return;
        }
        ended.into_iter().rev().for_each(|owed| self.again.push_front(owed));
    }

    fn position(&self, token: Token) -> usize {
        let at = self.owed.iter().position(|owed| owed.request.token == token);
        at.expect("a request ends once, and none that was not submitted")
    }
}

// ---- against a responder -----------------------------------------------------------------------

/// A piece that is with the device.
struct Out {
    ticket: u64,
    psn: Psn,
    end: Psn,
    /// Bytes that it brings.
    len: u64,
    reads: bool,
    /// Whether the device did it, once it has answered.
    done: Option<bool>,
}

/// Packets that may be done while an answer waits for its turn; many more than a run has.
const EDGE: u32 = 1 << 16;

struct Answering {
    connection: Connection,
    half: Responder,
    /// What an honest peer would send next.
    next: Psn,
    /// Everything before it the device has done, in order.
    done: Psn,
    /// Not settled, in order.
    out: VecDeque<Out>,
    /// Bytes that READs and atomic operations have brought.
    brought: u64,
    /// Bytes of data that went out, and packets of other kinds.
    data: u64,
    others: u64,
    answered: u64,
    summary: Summary,
}

/// What a responder may keep: entries, and bytes (those of messages, those of what was read and a piece more).
const ENTRIES: usize = 2 * 256;
const BYTES: usize = (256 << 10) + (192 << 10);

impl Answering {
    fn new(connection: Connection, psn: Psn) -> Answering {
        Answering {
            connection,
            half: Responder::new(connection, psn),
            next: psn,
            done: psn,
            out: VecDeque::new(),
            brought: 0,
            data: 0,
            others: 0,
            answered: 0,
            summary: Summary::default(),
        }
    }

    fn run(mut self, input: &mut Input<'_>) -> Summary {
        for _ in 0..STEPS {
            if input.0.is_empty() {
                break;
            }
            self.step(input);
            let (entries, bytes) = self.half.kept();
            assert!(entries <= ENTRIES && bytes <= BYTES, "{entries} entries and {bytes} bytes are kept");
        }
        self.summary
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.byte() {
            0..128 => self.ask(input),
            128..176 => {
                for _ in 0..=input.byte() & 7 {
                    self.take();
                }
            }
            176..216 => {
                for _ in 0..=input.byte() & 7 {
                    self.answer(input);
                }
            }
            216..236 => self.transmit(usize::from(input.byte()) << (input.byte() & 15)),
            // Of pieces that there are none of.
            236..240 => self.half.answered(1 << 63 | u64::from(input.number()), Answer::Silence, vec![1]),
            _ => {
                let mut came = 0;
                with_bytes(input, &mut |packet| {
                    // Its payload would be of nobody's making.
                    came = 1;
                    self.half.receive(&Packet { payload: &[], ..*packet });
                });
                self.summary.came += came;
            }
        }
    }

    /// Packets that a requester might send, one after the other.
    fn ask(&mut self, input: &mut Input<'_>) {
        let (kind, count) = (input.byte(), 1 + u32::from(input.byte() & 31));
        let mtu = self.connection.mtu as usize;
        let (full, len) = match input.byte() {
            0..128 => (mtu, input.number() as usize % (mtu + 1)),
            128..192 => (mtu, mtu),
            _ => (usize::from(input.byte()) << 4, input.number() as usize % (MTU_MAX + 1)),
        };
        let opcodes = match kind {
            0..32 => [Opcode::SendFirst, Opcode::SendMiddle, Opcode::SendLastImm],
            32..64 => [Opcode::WriteFirst, Opcode::WriteMiddle, Opcode::WriteLast],
            64..96 => [Opcode::SendOnlyInvalidate; 3],
            96..128 => [Opcode::WriteOnlyImm; 3],
            128..160 => [Opcode::ReadRequest; 3],
            160..192 => [Opcode::FetchAdd; 3],
            192..208 => [Opcode::ReadRequest, Opcode::CompareSwap, Opcode::ReadRequest],
            _ => [0; 3].map(|_| Opcode::ALL[input.below(Opcode::ALL.len())]),
        };
        let mut psn = match input.byte() {
            0..128 => self.next,
            128..208 => self.done,
            208..224 => self.done.advance(BITS_24),
            _ => {
                let near = *[self.next, self.done].get(input.below(2)).unwrap_or(&self.next);
                around(input, near)
            }
        };
        // What goes before its turn leaves a gap, and does not change what an honest one would send.
        let goes_on = psn == self.next || psn == self.done;
        let total = (count as usize - 1) * full + len;
        for n in 0..count {
            let opcode = opcodes[if n == 0 { 0 } else { 1 + usize::from(n + 1 == count) }];
            let opcode = if count == 1 { opcodes[2] } else { opcode };
            let len = match opcode.has_payload() {
                true if opcode.ends() => len,
                true => full.min(MTU_MAX),
                false => 0,
            };
            let bytes = payload(psn, len);
            let mut packet = Packet::new(Bth::new(opcode, 0x11, psn.get()), &bytes);
            let whole = if opcode.ends() { len } else { total };
            packet.reth = opcode.has_reth().then(|| reth(input, whole as u32));
            packet.atomic = opcode.has_atomic().then_some(AtomicEth { addr: 8, rkey: 7, swap_or_add: 3, compare: 4 });
            packet.aeth = opcode.has_aeth().then_some(Aeth { syndrome: Syndrome::Ack(31), msn: 1 });
            packet.atomic_ack = opcode.has_atomic_ack().then_some(1);
            packet.imm = opcode.has_imm().then_some(9);
            packet.invalidate = opcode.has_invalidate().then_some(9);
            packet.deth = opcode.has_deth().then(Default::default);
            assert!(packet.is_sound());
            self.half.receive(&packet);
            self.summary.came += 1;
            let read = packet.reth.filter(|_| opcode == Opcode::ReadRequest).map_or(0, |reth| reth.len);
            psn = psn.advance(read.div_ceil(mtu as u32).max(1));
        }
        if goes_on {
            self.next = psn;
        }
    }

    /// Takes a piece, and looks at it.
    fn take(&mut self) {
        let Some(Piece { ticket, carried, bytes }) = self.half.piece() else { return };
        self.summary.pieces += 1;
        let (psn, packets, len, reads) = match carried {
            Carried::Whole(request) => (request.psn, request.packets, request.len, request.op.reads()),
            Carried::Segment(of) => (of.psn, of.packets, of.len, matches!(of.part, Part::Read { .. })),
        };
        assert_eq!(bytes.len() as u64, if reads { 0 } else { len });
        if !reads {
            assert!(is_of(psn, packets, &bytes), "{packets} packets of {len} bytes from {psn:?} on");
        }
        assert!(self.out.back().is_none_or(|last| last.ticket + 1 == ticket));
        self.out.push_back(Out { ticket, psn, end: psn.advance(packets), len, reads, done: None });
        let held: u64 = self.out.iter().filter(|out| !out.reads).map(|out| out.len).sum();
        let fetched: u64 = self.out.iter().filter(|out| out.reads && out.len > 8).map(|out| out.len).sum();
        // A long READ that was accepted as the last is several pieces.
        assert!(self.out.len() <= 256 + 2, "{} pieces", self.out.len());
        assert!(held <= 256 << 10 && fetched <= 192 << 10, "{held} bytes held, {fetched} to come");
    }

    /// The device answers to one of the pieces that it has, in whatever order.
    fn answer(&mut self, input: &mut Input<'_>) {
        let waiting: Vec<usize> = (0..self.out.len()).filter(|at| self.out[*at].done.is_none()).collect();
        let Some(at) = input.pick(&waiting) else { return };
        let out = &mut self.out[at];
        let answer = match input.byte() {
            0..224 => Answer::Ack,
            224..230 => Answer::RnrNak(input.byte()),
            230..236 => Answer::Nak(Nak::SequenceError),
            236..242 => Answer::Nak(Nak::RemoteAccess),
            242..248 => Answer::RequesterFault,
            _ => Answer::Silence,
        };
        let honest = !input.rarely();
        let back = match out.reads {
            true if honest => out.len as usize,
            _ if honest => 0,
            _ => usize::from(input.byte()),
        };
        let good = answer == Answer::Ack && (!out.reads || back as u64 == out.len);
        out.done = Some(good);
        let ticket = out.ticket;
        self.answered += 1;
        self.half.answered(ticket, answer, vec![7; back]);
        // Nobody is asked twice.
        self.half.answered(ticket, Answer::Silence, Vec::new());
        while let Some(&Out { done: Some(good), psn, end, len, reads, .. }) = self.out.front() {
            self.out.pop_front();
            if !good {
                self.out.clear();
                self.next = psn;
                break;
            }
            self.brought += if reads { len } else { 0 };
            if end.ahead_of(self.done) {
                self.done = end;
            }
        }
    }

    /// Sends what there is to say.
    fn transmit(&mut self, turn: usize) {
        let (done, mtu) = (self.done, self.connection.mtu as usize);
        let (mut data, mut others, mut most, mut sent) = (0, 0, 0, 0);
        self.half.transmit(turn, &mut |packet| {
            sent += 1;
            assert!(packet.is_sound() && packet.bth.opcode.is_response() && packet.bth.dest_qpn == 0x22);
            let psn = Psn::new(packet.bth.psn);
            assert!(packet.payload.len() <= mtu);
            match (packet.bth.opcode, packet.aeth.map(|aeth| aeth.syndrome)) {
                (Opcode::Acknowledge, Some(Syndrome::Nak(nak::SEQUENCE_ERROR))) => {
                    // It may have waited here for its turn, and the packet has come meanwhile.
                    assert!(!psn.ahead_of(done), "{psn:?} is said to be missing, and what is before it is not done");
                }
                (Opcode::Acknowledge, Some(Syndrome::Nak(_) | Syndrome::Rnr(_))) => {}
                _ => {
                    // An answer to what was done half of all numbers ago may have waited here while more was done.
                    let waited = (BITS_24 / 2 + 1..BITS_24 / 2 + EDGE).contains(&done.since(psn.advance(1)));
                    assert!(waited || !psn.advance(1).ahead_of(done), "{psn:?} is said to be done");
                }
            }
            match packet.bth.opcode {
                Opcode::Acknowledge => others += 1,
                Opcode::AtomicAcknowledge => data += 8,
                _ => data += packet.payload.len() as u64,
            }
            most += packet.payload.len().max(LEAST as usize);
        });
        assert!(most <= turn + mtu + LEAST as usize, "{most} bytes in a turn of {turn}");
        self.data += data;
        self.others += others;
        self.summary.sent += sent;
        assert!(self.data <= self.brought, "{} bytes of data, {} of them brought", self.data, self.brought);
        let heard = self.summary.came + self.answered;
        assert!(self.others <= heard, "{} packets said, to {heard}", self.others);
    }
}

/// Whether `bytes` are those of `packets` packets from `psn` on: all but the last one full.
fn is_of(psn: Psn, packets: u32, bytes: &[u8]) -> bool {
    let good = |(n, bytes): (usize, &[u8])| bytes == payload(psn.advance(n as u32), bytes.len());
    let mut mtus = (8..=12).map(|log| 1usize << log);
    match packets {
        1 => good((0, bytes)),
        _ => mtus.any(|mtu| bytes.len().div_ceil(mtu) == packets as usize && bytes.chunks(mtu).enumerate().all(good)),
    }
}
