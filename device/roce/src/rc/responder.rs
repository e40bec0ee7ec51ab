//! The responder half of one QP on a wire: packets of its peer become pieces of messages for the device, and what the
//! device answers goes back as packets.
//!
//! The device judges: state, keys, lengths, the order of opcodes, duplicates. What this half adds is what a packet
//! needs.
//!
//! ```text
//! acknowledged by the device      handed to it      accepted here
//!                    |                  |                 |
//! -------------------+------------------+-----------------+---------> PSN
//!      duplicates    |     its answers are awaited, in    |   next, or something is missing
//!                  done         order      handed      expected
//! ```
//!
//! Where the device refuses a piece, or says nothing to it, `expected` goes back to `done`, and what lies between is
//! forgotten: the device has refused it too, since its PSN was not the next one.

use super::Connection;
use crate::message::{self, immediate};
use crate::packet::{Aeth, BITS_24, Bth, NO_CREDITS, Opcode, Packet, Reth, Syndrome, nak};
use pvrdma_device::handle::{Psn, Rkey};
use pvrdma_device::rings::wqe::{AtomicOp, Ext};
use pvrdma_device::transport::segment::{Carried, Part, Segment};
use pvrdma_device::transport::{Answer, Nak, Op, Request};
use std::collections::VecDeque;
use std::ops::RangeInclusive;

/// Payload of a piece.
const PIECE: usize = 64 << 10;
/// Payload that waits for the device or is with it. What comes beyond that is lost, as at a switch.
const HELD: usize = 256 << 10;
/// Pieces, the same, and answers that have not been sent.
const PIECES: usize = 256;
/// Data of READs that waits to go out, or is being fetched.
const READY: usize = 128 << 10;
/// Longest message there is (IBA vol. 1, 9.4).
const MESSAGE: u32 = 1 << 31;
/// Packet sequence numbers there are. A message has less than half of them (IBA vol. 1, 9.7.2).
const PSNS: u32 = BITS_24 + 1;
/// Path MTUs there are.
const MTUS: RangeInclusive<usize> = 256..=4096;

/// Something for the device: `Responder::receive` or `receive_segment`. Its answer goes to [`Responder::answered`].
#[derive(Debug)]
pub struct Piece {
    /// Names it.
    pub ticket: u64,
    /// What it is.
    pub carried: Carried,
    /// Its payload.
    pub bytes: Vec<u8>,
}

/// A SEND or a WRITE, as far as its packets have come and the device has not got them.
#[derive(Debug)]
struct Message {
    psn: Psn,
    packets: u32,
    write: bool,
    /// Its first packet is among them; of a WRITE, where it goes.
    begins: bool,
    reth: Option<Reth>,
    /// Its last packet is.
    ends: Option<End>,
    /// Payload of its first packet here; 0 if that is no full one.
    full: usize,
    bytes: Vec<u8>,
}

/// What the last packet of a message says.
#[derive(Clone, Copy, Debug)]
struct End {
    ext: Ext,
    solicited: bool,
}

/// A READ: the device is asked for as much as there is room for.
#[derive(Clone, Copy, Debug)]
struct Read {
    psn: Psn,
    packets: u32,
    reth: Reth,
    /// Packets that the device was asked for.
    asked: u32,
}

#[derive(Debug)]
enum Work {
    Message(Message),
    Read(Read),
    Atomic(Request),
    /// What cannot be told the device as what it is, since it is nothing. As one packet that ends a message which
    /// nobody began it fails the QP, as it should.
    Nonsense(Psn),
}

impl Work {
    fn psn(&self) -> Psn {
        match self {
            Work::Message(message) => message.psn,
            Work::Read(read) => read.psn.advance(read.asked),
            Work::Atomic(request) => request.psn,
            Work::Nonsense(psn) => *psn,
        }
    }

    fn end(&self) -> Psn {
        match self {
            Work::Message(message) => message.psn.advance(message.packets),
            Work::Read(read) => read.psn.advance(read.packets),
            Work::Atomic(request) => request.psn.advance(1),
            Work::Nonsense(psn) => psn.advance(1),
        }
    }
}

/// A piece that is with the device.
#[derive(Debug)]
struct Handed {
    psn: Psn,
    packets: u32,
    kind: Kind,
    len: usize,
    /// What the device said, and what it brought.
    answer: Option<(Answer, Vec<u8>)>,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Message { ends: bool },
    Read { begins: bool, ends: bool },
    Atomic,
}

/// What goes to the peer.
#[derive(Debug)]
enum Reply {
    /// An ACK, or a NAK of any kind.
    Aeth(Psn, Aeth),
    Atomic(Psn, Aeth, u64),
    Data {
        psn: Psn,
        bytes: Vec<u8>,
        /// Bytes that have gone out.
        gone: usize,
        begins: bool,
        ends: bool,
        msn: u32,
    },
}

/// See the module text.
#[derive(Debug)]
pub struct Responder {
    connection: Connection,
    done: Psn,
    handed: Psn,
    expected: Psn,
    /// Messages that were completed.
    msn: u32,
    /// Not handed to the device. In the order of their PSNs, but for what is answered again.
    waiting: VecDeque<Work>,
    /// With the device, in order.
    out: VecDeque<Handed>,
    /// Of the first of them.
    first_ticket: u64,
    /// Payload in both.
    held: usize,
    /// Something came before its turn, and the peer is to hear of it once all before is answered.
    missing: bool,
    /// The peer has been told what to send next. Until that comes he hears of nothing else that is out of its turn.
    told: bool,
    replies: VecDeque<Reply>,
}

impl Responder {
    /// One that has nothing, and expects this packet: the QP's `rq_psn`, or what a former one had come to.
    pub fn new(connection: Connection, expected: Psn) -> Responder {
        Responder {
            connection: connection.sound(),
            done: expected,
            handed: expected,
            expected,
            msn: 0,
            waiting: VecDeque::new(),
            out: VecDeque::new(),
            first_ticket: 0,
            held: 0,
            missing: false,
            told: false,
            replies: VecDeque::new(),
        }
    }

    // ---- packets in ----------------------------------------------------------------------------

    /// Takes in a packet of a request.
    pub fn receive(&mut self, packet: &Packet<'_>) {
        if packet.bth.opcode.is_response() || packet.bth.opcode.is_datagram() {
            return;
        }
        let psn = Psn::new(packet.bth.psn);
        if self.expected.ahead_of(psn) {
            self.come_again(psn, packet);
        } else if !self.has_room(packet.payload.len()) {
            // Lost. The peer's timer finds out; to ask for it now would bring it now.
        } else if psn == self.expected {
            (self.missing, self.told) = (false, false);
            self.accept(psn, packet);
        } else {
            self.missing |= !self.told;
        }
    }

    fn has_room(&self, len: usize) -> bool {
        self.held + len <= HELD && self.waiting.len() + self.out.len() + self.replies.len() < PIECES
    }

    /// The packet that comes next.
    fn accept(&mut self, psn: Psn, packet: &Packet<'_>) {
        let work = match packet.bth.opcode {
            Opcode::ReadRequest => self.read(psn, packet),
            Opcode::CompareSwap | Opcode::FetchAdd => self.atomic(psn, packet),
            _ => {
                self.held += packet.payload.len();
                if let Some(Work::Message(before)) = self.waiting.back_mut()
                    && before.goes_on(packet)
                {
                    before.add(packet);
                    self.expected = psn.advance(1);
                    return;
                }
                match Message::new(psn, packet) {
                    Some(message) => Work::Message(message),
                    None => {
                        self.held -= packet.payload.len();
                        Work::Nonsense(psn)
                    }
                }
            }
        };
        self.expected = work.end();
        self.waiting.push_back(work);
    }

    fn read(&self, psn: Psn, packet: &Packet<'_>) -> Work {
        let Some(reth) = packet.reth.filter(|reth| reth.len <= MESSAGE) else { return Work::Nonsense(psn) };
        let packets = reth.len.div_ceil(self.connection.mtu).max(1);
        if packets >= PSNS / 2 {
            return Work::Nonsense(psn);
        }
        Work::Read(Read { psn, packets, reth, asked: 0 })
    }

    fn atomic(&self, psn: Psn, packet: &Packet<'_>) -> Work {
        let Some(atomic) = packet.atomic else { return Work::Nonsense(psn) };
        let op = match packet.bth.opcode {
            Opcode::CompareSwap => AtomicOp::CompareSwap { compare: atomic.compare, swap: atomic.swap_or_add },
            _ => AtomicOp::FetchAdd { add: atomic.swap_or_add },
        };
        let op = Op::Atomic { remote_addr: atomic.addr, rkey: Rkey(atomic.rkey), op };
        Work::Atomic(self.request(psn, 1, op, 8, false))
    }

    fn request(&self, psn: Psn, packets: u32, op: Op, len: u64, solicited: bool) -> Request {
        Request {
            token: Default::default(),
            source: self.connection.peer,
            dest: self.connection.local,
            psn,
            packets,
            op,
            len,
            solicited,
            alone: false,
        }
    }

    /// A packet that was accepted before: its peer has not heard of it (IBA vol. 1, 9.7.5.1.2).
    fn come_again(&mut self, psn: Psn, packet: &Packet<'_>) {
        // What is with the device, or waits for it, will be answered.
        if !self.done.ahead_of(psn) {
            return;
        }
        match packet.bth.opcode {
            Opcode::ReadRequest => {
                let Work::Read(read) = self.read(psn, packet) else { return };
                // Who asks again for this asks again for all behind it, and waits for nothing of that.
                let first = self.waiting.iter().position(|work| !psn.ahead_of(work.psn()));
                self.waiting.truncate(first.unwrap_or(self.waiting.len()));
                self.held = self.held_now();
                self.replies.retain(|reply| !matches!(reply, Reply::Data { psn: next, .. } if !psn.ahead_of(*next)));
                let before = self.waiting.iter().map(Work::end).fold(self.handed, latest);
                // It may ask for more than was accepted before.
                self.expected = latest(before, read.psn.advance(read.packets));
                self.missing = false;
                if self.has_room(0) {
                    self.waiting.push_back(Work::Read(read));
                } else {
                    self.expected = before;
                }
            }
            // The device remembers what it answered.
            Opcode::CompareSwap | Opcode::FetchAdd => {
                let asked =
                    self.waiting.iter().any(|work| work.psn() == psn) || self.out.iter().any(|at| at.psn == psn);
                if !asked && self.has_room(0) {
                    let work = self.atomic(psn, packet);
                    self.waiting.push_back(work);
                }
            }
            _ => self.acknowledge(),
        }
    }

    /// What it keeps: pieces and what is to be said, how many of them and how many bytes.
    pub fn kept(&self) -> (usize, usize) {
        let said = self.replies.iter().map(|reply| match reply {
            Reply::Data { bytes, .. } => bytes.len(),
            _ => 0,
        });
        let back = self.out.iter().filter_map(|handed| handed.answer.as_ref()).map(|(_, back)| back.len());
        let entries = self.waiting.len() + self.out.len() + self.replies.len();
        (entries, self.held + said.chain(back).sum::<usize>())
    }

    fn held_now(&self) -> usize {
        let waiting = self.waiting.iter().map(|work| match work {
            Work::Message(message) => message.bytes.len(),
            _ => 0,
        });
        let out = self.out.iter().map(|handed| match handed.kind {
            Kind::Message { .. } => handed.len,
            _ => 0,
        });
        waiting.chain(out).sum()
    }

    /// Whether its device may be where it says that it expects this packet.
    pub fn is_at(&self, expected: Psn) -> bool {
        expected.since(self.done) <= self.handed.since(self.done)
    }

    // ---- the device's side ---------------------------------------------------------------------

    /// Whether there is a piece for the device now.
    pub fn has_piece(&self) -> bool {
        match self.waiting.front() {
            None => false,
            Some(Work::Read(_)) => self.ready() < READY,
            Some(_) => true,
        }
    }

    /// Whether there is something to say to the peer.
    pub fn has_reply(&self) -> bool {
        !self.replies.is_empty() || self.missing
    }

    /// Data of READs that waits to go out, or is being fetched.
    fn ready(&self) -> usize {
        let coming = self.out.iter().map(|handed| match handed.kind {
            Kind::Read { .. } => handed.len,
            _ => 0,
        });
        let ready = self.replies.iter().map(|reply| match reply {
            Reply::Data { bytes, .. } => bytes.len(),
            _ => 0,
        });
        coming.chain(ready).sum()
    }

    /// The next piece for the device. Ask when all packets that were there are taken in: consecutive ones make one
    /// piece.
    pub fn piece(&mut self) -> Option<Piece> {
        let (mtu, ticket) = (self.connection.mtu, self.first_ticket + self.out.len() as u64);
        let (handed, carried, bytes) = match self.waiting.pop_front()? {
            Work::Message(message) => {
                let carried = self.carry(&message);
                let kind = Kind::Message { ends: message.ends.is_some() };
                let Message { psn, packets, bytes, .. } = message;
                (Handed { psn, packets, kind, len: bytes.len(), answer: None }, carried, bytes)
            }
            Work::Nonsense(psn) => {
                let part = Part::WriteLast { imm: None, solicited: false };
                let handed = Handed { psn, packets: 1, kind: Kind::Message { ends: true }, len: 0, answer: None };
                (handed, self.segment(psn, 1, 0, part), Vec::new())
            }
            Work::Atomic(request) => {
                let handed = Handed { psn: request.psn, packets: 1, kind: Kind::Atomic, len: 8, answer: None };
                (handed, Carried::Whole(request), Vec::new())
            }
            Work::Read(mut read) => {
                if self.ready() >= READY {
                    self.waiting.push_front(Work::Read(read));
                    return None;
                }
                let packets = (read.packets - read.asked).min((PIECE as u32 / mtu).max(1));
                let from = u64::from(read.asked) * u64::from(mtu);
                let rest = u64::from(read.reth.len) - from;
                let len = rest.min(u64::from(packets) * u64::from(mtu));
                let psn = read.psn.advance(read.asked);
                let (begins, ends) = (read.asked == 0, read.asked + packets == read.packets);
                let (remote_addr, rkey) = (read.reth.addr.wrapping_add(from), Rkey(read.reth.rkey));
                let carried = if begins && ends {
                    Carried::Whole(self.request(psn, packets, Op::Read { remote_addr, rkey }, len, false))
                } else {
                    self.segment(psn, packets, len, Part::Read { remote_addr, rkey, rest })
                };
                read.asked += packets;
                if !ends {
                    self.waiting.push_front(Work::Read(read));
                }
                let kind = Kind::Read { begins, ends };
                (Handed { psn, packets, kind, len: len as usize, answer: None }, carried, Vec::new())
            }
        };
        self.handed = latest(self.handed, handed.psn.advance(handed.packets));
        self.out.push_back(handed);
        Some(Piece { ticket, carried, bytes })
    }

    fn segment(&self, psn: Psn, packets: u32, len: u64, part: Part) -> Carried {
        let Connection { local, peer, .. } = self.connection;
        Carried::Segment(Segment { source: peer, dest: local, psn, packets, len, part })
    }

    fn carry(&self, message: &Message) -> Carried {
        let Message { psn, packets, reth, .. } = *message;
        let (len, to) = (message.bytes.len() as u64, reth.unwrap_or_default());
        let (remote_addr, rkey) = (to.addr, Rkey(to.rkey));
        let part = match (message.write, message.begins, message.ends) {
            (_, true, Some(End { ext, solicited })) => {
                let imm = imm_of(ext);
                let op = if message.write { Op::Write { remote_addr, rkey, imm } } else { Op::Send { ext } };
                return Carried::Whole(self.request(psn, packets, op, len, solicited));
            }
            (true, true, None) => Part::WriteFirst { remote_addr, rkey, total: to.len.into() },
            (true, false, None) => Part::WriteMiddle,
            (true, false, Some(End { ext, solicited })) => Part::WriteLast { imm: imm_of(ext), solicited },
            (false, true, None) => Part::SendFirst,
            (false, false, None) => Part::SendMiddle,
            (false, false, Some(End { ext, solicited })) => Part::SendLast { ext, solicited },
        };
        self.segment(psn, packets, len, part)
    }

    /// What the device has answered to a piece, with what it brings: the bytes of a READ, or the former value of an
    /// atomic operation as it lies in memory.
    pub fn answered(&mut self, ticket: u64, answer: Answer, back: Vec<u8>) {
        let at = ticket.checked_sub(self.first_ticket).and_then(|at| usize::try_from(at).ok());
        // Of one that was forgotten otherwise.
        let Some(handed) = at.and_then(|at| self.out.get_mut(at)).filter(|handed| handed.answer.is_none()) else {
            return;
        };
        handed.answer = Some((answer, back));
        while let Some(Handed { answer: Some(_), .. }) = self.out.front() {
            let Some(handed) = self.out.pop_front() else { return };
            self.first_ticket += 1;
            self.settle(handed);
        }
    }

    fn settle(&mut self, handed: Handed) {
        let Handed { psn, packets, kind, len, answer } = handed;
        if let Kind::Message { .. } = kind {
            self.held -= len.min(self.held);
        }
        let Some((answer, back)) = answer else { return };
        let end = psn.advance(packets);
        let is_new = end.ahead_of(self.done);
        match answer {
            Answer::Ack => {}
            // It is not where it was thought to be, or it is not there. The peer's timer brings everything again.
            Answer::Nak(Nak::SequenceError) | Answer::Silence | Answer::RequesterFault => {
                return self.refuse(psn, None);
            }
            Answer::RnrNak(_) | Answer::Nak(_) => return self.refuse(psn, message::refusal(answer)),
        }
        let (counts, reply) = match kind {
            Kind::Message { ends } => (ends, None),
            Kind::Read { begins, ends } => {
                if back.len() != len {
                    return self.refuse(psn, None);
                }
                // It counts from its first response on (IBA vol. 1, 9.7.7.1).
                let msn = self.msn.wrapping_add(u32::from(is_new && begins)) & BITS_24;
                (begins, Some(Reply::Data { psn, bytes: back, gone: 0, begins, ends, msn }))
            }
            Kind::Atomic => {
                let Ok(old) = <[u8; 8]>::try_from(back.as_slice()) else { return self.refuse(psn, None) };
                let msn = self.msn.wrapping_add(u32::from(is_new)) & BITS_24;
                (true, Some(Reply::Atomic(psn, aeth(Syndrome::Ack(NO_CREDITS), msn), u64::from_ne_bytes(old))))
            }
        };
        if is_new {
            self.done = end;
            self.msn = self.msn.wrapping_add(u32::from(counts)) & BITS_24;
        }
        match reply {
            Some(reply) => self.replies.push_back(reply),
            None => self.acknowledge(),
        }
    }

    /// All that the device has acknowledged is. One ACK says it of everything before, so there is one at a time.
    fn acknowledge(&mut self) {
        let last = Psn::new(self.done.get().wrapping_sub(1));
        let aeth = aeth(Syndrome::Ack(NO_CREDITS), self.msn);
        if let Some(Reply::Aeth(psn, Aeth { syndrome: Syndrome::Ack(_), .. })) = self.replies.back()
            && !psn.ahead_of(last)
        {
            self.replies.pop_back();
        }
        self.replies.push_back(Reply::Aeth(last, aeth));
    }

    /// The device did not do this, and so nothing behind it.
    fn refuse(&mut self, psn: Psn, syndrome: Option<Syndrome>) {
        self.first_ticket += self.out.len() as u64;
        self.out.clear();
        self.waiting.clear();
        self.held = 0;
        (self.handed, self.expected) = (self.done, self.done);
        self.missing = false;
        self.told = true;
        if let Some(syndrome) = syndrome {
            self.replies.push_back(Reply::Aeth(psn, aeth(syndrome, self.msn)));
        }
    }

    // ---- packets out ---------------------------------------------------------------------------

    /// Sends what there is to say, some `turn` bytes at most. True: there is more.
    pub fn transmit(&mut self, mut turn: usize, out: &mut dyn FnMut(&Packet<'_>)) -> bool {
        if self.missing && self.done == self.expected && self.waiting.is_empty() && self.out.is_empty() {
            (self.missing, self.told) = (false, true);
            let aeth = aeth(Syndrome::Nak(nak::SEQUENCE_ERROR), self.msn);
            self.replies.push_back(Reply::Aeth(self.expected, aeth));
        }
        let qpn = self.connection.peer.qpn.0;
        let mtu = self.connection.mtu as usize;
        while let Some(reply) = self.replies.front_mut() {
            if turn == 0 {
                return true;
            }
            match reply {
                Reply::Aeth(psn, aeth) => {
                    turn = turn.saturating_sub(64);
                    let bth = Bth::new(Opcode::Acknowledge, qpn, psn.get());
                    out(&Packet { aeth: Some(*aeth), ..Packet::new(bth, &[]) });
                }
                Reply::Atomic(psn, aeth, old) => {
                    turn = turn.saturating_sub(64);
                    let bth = Bth::new(Opcode::AtomicAcknowledge, qpn, psn.get());
                    out(&Packet { aeth: Some(*aeth), atomic_ack: Some(*old), ..Packet::new(bth, &[]) });
                }
                Reply::Data { psn, bytes, gone, begins, ends, msn } => {
                    let to = (*gone + mtu).min(bytes.len());
                    let payload = bytes.get(*gone..to).unwrap_or_default();
                    let first = *begins && *gone == 0;
                    let last = *ends && to == bytes.len();
                    out(&message::read_data(self.connection.peer.qpn, *psn, (first, last), *msn, payload));
                    turn = turn.saturating_sub(payload.len() + 64);
                    *psn = psn.advance(1);
                    *gone = to;
                    if to < bytes.len() {
                        continue;
                    }
                }
            }
            self.replies.pop_front();
        }
        false
    }
}

impl Message {
    /// One that begins with this packet, or goes on with it. `None`: it is neither a SEND nor a WRITE, or not as long
    /// as it says.
    fn new(psn: Psn, packet: &Packet<'_>) -> Option<Message> {
        let opcode = packet.bth.opcode;
        let write = is_write(opcode)?;
        let (begins, ends) = (opcode.begins(), opcode.ends());
        let len = packet.payload.len();
        if begins && ends && packet.reth.is_some_and(|reth| reth.len as usize != len) {
            return None;
        }
        let full = if MTUS.contains(&len) && len.is_power_of_two() { len } else { 0 };
        let mut message =
            Message { psn, packets: 0, write, begins, reth: packet.reth, ends: None, full, bytes: Vec::new() };
        message.add(packet);
        Some(message)
    }

    /// Whether this packet, which comes next, is a part of it, and there is room for it. What is not is for the device
    /// to find out.
    fn goes_on(&self, packet: &Packet<'_>) -> bool {
        let (opcode, len) = (packet.bth.opcode, packet.payload.len());
        let total = self.bytes.len() + len;
        let fits = if opcode.ends() { len >= 1 && len <= self.full } else { len == self.full };
        let ends_as_said = !opcode.ends() || self.reth.is_none_or(|reth| reth.len as usize == total);
        is_write(opcode) == Some(self.write)
            && !opcode.begins()
            && self.ends.is_none()
            && self.full > 0
            && fits
            && total <= PIECE
            && ends_as_said
    }

    fn add(&mut self, packet: &Packet<'_>) {
        self.packets += 1;
        self.bytes.extend(packet.payload);
        if packet.bth.opcode.ends() {
            let ext = match (packet.imm, packet.invalidate) {
                (Some(imm), _) => Ext::Imm(immediate(imm)),
                (None, Some(key)) => Ext::Invalidate(Rkey(key)),
                (None, None) => Ext::None,
            };
            self.ends = Some(End { ext, solicited: packet.bth.solicited });
        }
    }
}

/// Whether it is a packet of a WRITE, or of a SEND. `None`: of neither.
fn is_write(opcode: Opcode) -> Option<bool> {
    use Opcode::*;
    match opcode {
        SendFirst | SendMiddle | SendLast | SendLastImm | SendLastInvalidate => Some(false),
        SendOnly | SendOnlyImm | SendOnlyInvalidate => Some(false),
        WriteFirst | WriteMiddle | WriteLast | WriteLastImm | WriteOnly | WriteOnlyImm => Some(true),
        _ => None,
    }
}

fn imm_of(ext: Ext) -> Option<u32> {
    match ext {
        Ext::Imm(imm) => Some(imm),
        _ => None,
    }
}

fn aeth(syndrome: Syndrome, msn: u32) -> Aeth {
    Aeth { syndrome, msn }
}

fn latest(a: Psn, b: Psn) -> Psn {
    if b.ahead_of(a) { b } else { a }
}
