//! Requests and answers as frames: what a RoCE adapter would send for them.
//!
//! A message is cut into packets of the path MTU, which its length and number of packets give (`Cutter`). Payload is
//! read from the requester's memory packet by packet, so that nothing is made for a long one.

use pvrdma_device::guest::mac_of;
use pvrdma_device::handle::{Gid, Psn};
use pvrdma_device::memory::{Fault, Memory, Span};
use pvrdma_device::rings::wqe::{AtomicOp, Ext, Grh};
use pvrdma_device::transport::segment::{self, Carried, Cutter, Segment, ends_in};
use pvrdma_device::transport::{Answer, Endpoint, Nak, Op, Request};
use pvrdma_roce::frame::{Frame, Mac};
use pvrdma_roce::headers::Envelope;
use pvrdma_roce::packet::{
    Aeth, AtomicEth, BITS_24, Bth, Deth, MTU_MAX, NO_CREDITS, Opcode, Packet, Reth, Syndrome, nak,
};

/// First of the UDP ports that RoCE comes from (IBA annex A17.9.2): flows are told apart by them.
const FLOWS: u16 = 0xc000;

/// Takes frames. `false`: it wants no more.
pub type Put<'a> = dyn FnMut(&Frame<'_>) -> bool + 'a;

/// Payload, from front to back.
pub enum Source<'a> {
    /// In a requester's memory.
    Spans {
        /// The memory.
        memory: &'a dyn Memory,
        /// Where it is, without what was read.
        spans: &'a [Span],
        /// Bytes of the first span that were read.
        at: u64,
    },
    /// Carried by value: what is left of it.
    Bytes(&'a [u8]),
}

impl<'a> Source<'a> {
    /// What `spans` hold.
    pub fn new(memory: &'a dyn Memory, spans: &'a [Span]) -> Source<'a> {
        Source::Spans { memory, spans, at: 0 }
    }

    fn read(&mut self, into: &mut [u8]) -> Result<(), Fault> {
        let mut rest = into;
        match self {
            Source::Bytes(bytes) => {
                let (now, later) = bytes.split_at_checked(rest.len()).ok_or(Fault)?;
                rest.copy_from_slice(now);
                *bytes = later;
            }
            Source::Spans { memory, spans, at } => {
                while !rest.is_empty() {
                    let (span, later) = spans.split_first().ok_or(Fault)?;
                    let here = (span.len - *at).min(rest.len() as u64);
                    let (now, more) = rest.split_at_mut(here as usize);
                    if here > 0 {
                        memory.gather(&[Span { addr: span.addr.offset(*at)?, len: here }], now)?;
                    }
                    rest = more;
                    *at += here;
                    if *at == span.len {
                        (*spans, *at) = (later, 0);
                    }
                }
            }
        }
        Ok(())
    }
}

/// Which bytes of a message.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// The first of them: that of a packet.
    pub offset: u64,
    /// How many: whole packets.
    pub len: u64,
}

impl Part {
    /// All of a message.
    pub fn all(request: &Request) -> Part {
        Part { offset: 0, len: request.len }
    }

    /// The packets of it, each with the offset of its payload.
    fn packets(self, request: &Request) -> impl Iterator<Item = (u64, Carried)> {
        let mut cutter = Cutter::new(request);
        let mut mtus = (8..=12).map(|log| 1 << log);
        // As the cutter finds it.
        let mtu = mtus.find(|mtu| request.packets > 1 && ends_in(request.len, request.packets, *mtu));
        let before = mtu.and_then(|mtu| u32::try_from(self.offset / mtu).ok());
        if let Some(before) = before.filter(|before| *before > 0) {
            cutter.next(before);
        }
        let end = self.offset + self.len;
        std::iter::from_fn(move || cutter.next(1)).take_while(move |(at, _)| *at < end || *at == self.offset)
    }
}

/// What frames say that no request does.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    /// They are those of RoCE v1.
    pub v1: bool,
    /// Their way, as the address vector of a connected QP has it; `None`: nobody has told. Datagrams tell their own.
    /// Answers have it too: that of the responder is known to nobody here, and is the same nearly always.
    pub grh: Option<Grh>,
}

/// Who sends, to whom, in which style.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    /// See there.
    pub style: Style,
    /// Who sends.
    pub source: Endpoint,
    /// To whom.
    pub dest: Endpoint,
}

/// The adapter that has an address. One that tells of none gets an address of the locally administered kind.
fn mac(gid: &Gid) -> Mac {
    let last = [gid[12], gid[13], gid[14], gid[15]];
    mac_of(gid).unwrap_or([0x02, 0x52, last[0], last[1], last[2], last[3]])
}

impl Flow {
    /// What a request travels in.
    pub fn of(request: &Request, style: Style) -> Flow {
        let grh = if let Op::Datagram { grh, .. } = request.op { Some(grh) } else { style.grh };
        Flow { style: Style { grh, ..style }, source: request.source, dest: request.dest }
    }

    fn back(self) -> Flow {
        Flow { source: self.dest, dest: self.source, ..self }
    }

    fn envelope(&self) -> Envelope {
        let (source, dest) = (&self.source.gid, &self.dest.gid);
        let mut envelope = if self.style.v1 {
            Envelope::v1(source, dest)
        } else {
            let flow = self.source.qpn.0 ^ self.dest.qpn.0 << 4;
            Envelope { source_port: FLOWS | flow as u16 & !FLOWS, ..Envelope::v2(source, dest) }
        };
        if let Some(grh) = &self.style.grh {
            envelope.traffic_class = grh.traffic_class;
            envelope.hop_limit = grh.hop_limit;
            // IPv4 has none.
            envelope.flow_label = if envelope.ethertype() == 0x0800 { 0 } else { grh.flow_label };
        }
        envelope
    }

    fn frame<'a>(&self, packet: Packet<'a>) -> Frame<'a> {
        Frame { dest: mac(&self.dest.gid), source: mac(&self.source.gid), envelope: self.envelope(), packet }
    }

    fn bth(&self, opcode: Opcode, psn: Psn) -> Bth {
        Bth::new(opcode, self.dest.qpn.0 & BITS_24, psn.get())
    }
}

/// Immediate data is kept as its bytes came.
fn immediate(raw: u32) -> u32 {
    u32::from_be(raw)
}

fn send_opcode(ext: Ext, only: bool) -> Opcode {
    match (ext, only) {
        (Ext::None, true) => Opcode::SendOnly,
        (Ext::None, false) => Opcode::SendLast,
        (Ext::Imm(_), true) => Opcode::SendOnlyImm,
        (Ext::Imm(_), false) => Opcode::SendLastImm,
        (Ext::Invalidate(_), true) => Opcode::SendOnlyInvalidate,
        (Ext::Invalidate(_), false) => Opcode::SendLastInvalidate,
    }
}

fn with_ext<'a>(mut packet: Packet<'a>, ext: Ext) -> Packet<'a> {
    match ext {
        Ext::None => {}
        Ext::Imm(imm) => packet.imm = Some(immediate(imm)),
        Ext::Invalidate(rkey) => packet.invalidate = Some(rkey.0),
    }
    packet
}

/// The frames of a request, or of a part of it: what its requester sends. `Err`: its payload cannot be read (any more).
pub fn request(
    request: &Request,
    part: Part,
    style: Style,
    source: &mut Source<'_>,
    put: &mut Put<'_>,
) -> Result<(), Fault> {
    let flow = Flow::of(request, style);
    if request.op.reads() {
        put(&flow.frame(asks(&flow, request)));
        return Ok(());
    }
    // Not on the stack, which is the program's.
    let mut room = vec![0; MTU_MAX];
    for (_, carried) in part.packets(request) {
        if !carry(&flow, &carried, source, &mut room, put)? {
            break;
        }
    }
    Ok(())
}

/// A READ or an atomic operation, whose data comes back.
fn asks(flow: &Flow, request: &Request) -> Packet<'static> {
    let packet = |opcode| Packet::new(Bth { ack_req: true, ..flow.bth(opcode, request.psn) }, &[]);
    match request.op {
        Op::Atomic { remote_addr, rkey, op } => {
            let (opcode, swap_or_add, compare) = match op {
                AtomicOp::CompareSwap { compare, swap } => (Opcode::CompareSwap, swap, compare),
                AtomicOp::FetchAdd { add } => (Opcode::FetchAdd, add, 0),
            };
            let mut packet = packet(opcode);
            packet.atomic = Some(AtomicEth { addr: remote_addr, rkey: rkey.0, swap_or_add, compare });
            packet
        }
        Op::Read { remote_addr, rkey } => {
            let mut packet = packet(Opcode::ReadRequest);
            packet.reth = Some(Reth { addr: remote_addr, rkey: rkey.0, len: request.len as u32 });
            packet
        }
        // Not asked for: it has no data that comes back.
        Op::Send { .. } | Op::Write { .. } | Op::Datagram { .. } => packet(Opcode::SendOnly),
    }
}

/// One packet. `Ok(false)`: no more are wanted.
fn carry(
    flow: &Flow,
    carried: &Carried,
    source: &mut Source<'_>,
    room: &mut [u8],
    put: &mut Put<'_>,
) -> Result<bool, Fault> {
    let len = match carried {
        Carried::Whole(request) => request.len,
        Carried::Segment(segment) => segment.len,
    };
    // No packet is longer, but what says so is a guest's.
    let payload = room.get_mut(..len as usize).ok_or(Fault)?;
    source.read(payload)?;
    let packet = match carried {
        Carried::Segment(segment) => piece(flow, segment, payload),
        Carried::Whole(request) => whole(flow, request, payload),
    };
    Ok(put(&flow.frame(packet)))
}

/// A message of one packet.
fn whole<'a>(flow: &Flow, request: &Request, payload: &'a [u8]) -> Packet<'a> {
    let bth = |opcode| Bth { solicited: request.solicited, ack_req: true, ..flow.bth(opcode, request.psn) };
    match request.op {
        Op::Datagram { qkey, imm, .. } => {
            let opcode = if imm.is_some() { Opcode::DatagramImm } else { Opcode::Datagram };
            let mut packet = Packet::new(Bth { ack_req: false, ..bth(opcode) }, payload);
            packet.deth = Some(Deth { qkey, source_qpn: request.source.qpn.0 & BITS_24 });
            packet.imm = imm.map(immediate);
            packet
        }
        Op::Write { remote_addr, rkey, imm } => {
            let opcode = if imm.is_some() { Opcode::WriteOnlyImm } else { Opcode::WriteOnly };
            let mut packet = Packet::new(bth(opcode), payload);
            packet.reth = Some(Reth { addr: remote_addr, rkey: rkey.0, len: request.len as u32 });
            packet.imm = imm.map(immediate);
            packet
        }
        Op::Send { ext } => with_ext(Packet::new(bth(send_opcode(ext, true)), payload), ext),
        Op::Read { .. } | Op::Atomic { .. } => asks(flow, request),
    }
}

/// A packet of a message of several.
fn piece<'a>(flow: &Flow, segment: &Segment, payload: &'a [u8]) -> Packet<'a> {
    let packet = |opcode| Packet::new(flow.bth(opcode, segment.psn), payload);
    let last =
        |opcode, solicited| Packet::new(Bth { solicited, ack_req: true, ..flow.bth(opcode, segment.psn) }, payload);
    match segment.part {
        segment::Part::SendFirst => packet(Opcode::SendFirst),
        segment::Part::SendMiddle => packet(Opcode::SendMiddle),
        segment::Part::SendLast { ext, solicited } => with_ext(last(send_opcode(ext, false), solicited), ext),
        segment::Part::WriteFirst { remote_addr, rkey, total } => {
            let mut packet = packet(Opcode::WriteFirst);
            packet.reth = Some(Reth { addr: remote_addr, rkey: rkey.0, len: total as u32 });
            packet
        }
        // A READ is not cut here.
        segment::Part::WriteMiddle | segment::Part::Read { .. } => packet(Opcode::WriteMiddle),
        segment::Part::WriteLast { imm, solicited } => {
            let opcode = if imm.is_some() { Opcode::WriteLastImm } else { Opcode::WriteLast };
            let mut packet = last(opcode, solicited);
            packet.imm = imm.map(immediate);
            packet
        }
    }
}

/// What a responder is known to have said before.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Messages that it has completed.
    pub msn: u32,
    /// What it waits for: the first packet that it has not got.
    pub expected: Psn,
}

/// The frames of an answer: all that the responder sends. Data that was read is at `source`, by now.
pub fn answer(
    request: &Request,
    answer: Answer,
    progress: Progress,
    style: Style,
    source: &mut Source<'_>,
    put: &mut Put<'_>,
) -> Result<(), Fault> {
    let flow = Flow::of(request, style).back();
    let aeth = |syndrome| Some(Aeth { syndrome, msn: progress.msn & BITS_24 });
    let done = aeth(Syndrome::Ack(NO_CREDITS));
    let mut says = |psn, syndrome| {
        let mut packet = Packet::new(flow.bth(Opcode::Acknowledge, psn), &[]);
        packet.aeth = aeth(syndrome);
        put(&flow.frame(packet));
    };
    match (answer, request.op) {
        (_, Op::Datagram { .. }) | (Answer::RequesterFault | Answer::Silence, _) => {}
        (Answer::RnrNak(code), _) => says(request.psn, Syndrome::Rnr(code & 31)),
        (Answer::Nak(Nak::SequenceError), _) => says(progress.expected, Syndrome::Nak(nak::SEQUENCE_ERROR)),
        (Answer::Nak(Nak::InvalidRequest), _) => says(request.psn, Syndrome::Nak(nak::INVALID_REQUEST)),
        (Answer::Nak(Nak::RemoteAccess), _) => says(request.psn, Syndrome::Nak(nak::REMOTE_ACCESS)),
        (Answer::Nak(Nak::RemoteOperational), _) => says(request.psn, Syndrome::Nak(nak::REMOTE_OPERATIONAL)),
        (Answer::Ack, Op::Atomic { .. }) => {
            let mut word = [0; 8];
            source.read(&mut word)?;
            let mut packet = Packet::new(flow.bth(Opcode::AtomicAcknowledge, request.psn), &[]);
            packet.aeth = done;
            packet.atomic_ack = Some(u64::from_ne_bytes(word));
            put(&flow.frame(packet));
        }
        (Answer::Ack, Op::Read { .. }) => return read(request, Part::all(request), progress.msn, style, source, put),
        (Answer::Ack, Op::Send { .. } | Op::Write { .. }) => {
            says(request.psn.advance(request.packets.saturating_sub(1)), Syndrome::Ack(NO_CREDITS));
        }
    }
    Ok(())
}

/// The frames of the data of a READ, or of a part of it: what the responder sends.
pub fn read(
    request: &Request,
    part: Part,
    msn: u32,
    style: Style,
    source: &mut Source<'_>,
    put: &mut Put<'_>,
) -> Result<(), Fault> {
    let flow = Flow::of(request, style).back();
    let mut room = vec![0; MTU_MAX];
    for (at, carried) in part.packets(request) {
        let (psn, len) = match &carried {
            Carried::Whole(request) => (request.psn, request.len),
            Carried::Segment(segment) => (segment.psn, segment.len),
        };
        let payload = room.get_mut(..len as usize).ok_or(Fault)?;
        source.read(payload)?;
        let opcode = match (at == 0, at + len == request.len) {
            (true, true) => Opcode::ReadOnly,
            (true, false) => Opcode::ReadFirst,
            (false, false) => Opcode::ReadMiddle,
            (false, true) => Opcode::ReadLast,
        };
        let mut packet = Packet::new(flow.bth(opcode, psn), payload);
        let syndrome = Syndrome::Ack(NO_CREDITS);
        packet.aeth = opcode.has_aeth().then_some(Aeth { syndrome, msn: msn & BITS_24 });
        if !put(&flow.frame(packet)) {
            break;
        }
    }
    Ok(())
}
