//! Requests and answers as frames: what a RoCE adapter would send for them.
//!
//! A message is cut into packets of the path MTU, which its length and number of packets give (`mtu_of`). Payload is
//! read from the requester's memory packet by packet, so that nothing is made for a long one.

use pvrdma_device::guest::mac_of;
use pvrdma_device::handle::{Gid, Psn, Qpn};
use pvrdma_device::memory::{Fault, Memory, Span};
use pvrdma_device::rings::wqe::Grh;
use pvrdma_device::transport::segment::mtu_of;
use pvrdma_device::transport::{Answer, Endpoint, Nak, Op, Request};
use pvrdma_roce::frame::{Frame, Mac};
use pvrdma_roce::headers::{ETHERTYPE_IPV4, Envelope};
use pvrdma_roce::message;
use pvrdma_roce::packet::{Aeth, BITS_24, Bth, MTU_MAX, NO_CREDITS, Opcode, Packet, Syndrome};

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

    /// The payload of a packet, by way of `room`.
    fn next<'r>(&mut self, piece: &Piece, room: &'r mut [u8]) -> Result<&'r [u8], Fault> {
        // No packet is longer, but what says so is a guest's.
        let payload = usize::try_from(piece.len).ok().and_then(|len| room.get_mut(..len)).ok_or(Fault)?;
        self.read(payload)?;
        Ok(payload)
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

    /// The packets of it.
    fn packets(self, request: &Request) -> impl Iterator<Item = Piece> + use<> {
        let len = request.len;
        let mtu = mtu_of(request);
        // What has no sensible number of packets is shown as one.
        let request = Request { packets: mtu.map_or(1, |_| request.packets), ..*request };
        // One is as long as it is.
        let mtu = mtu.unwrap_or(len.max(1));
        let first = u32::try_from(self.offset / mtu).unwrap_or(u32::MAX);
        let pieces = (first..request.packets).map(move |n| {
            let at = u64::from(n) * mtu;
            Piece { request, n, at, len: mtu.min(len - at) }
        });
        let (begin, end) = (self.offset, self.offset + self.len);
        pieces.take_while(move |piece| piece.at < end || piece.at == begin)
    }
}

/// A packet of a message.
struct Piece {
    request: Request,
    n: u32,
    /// Where in the message its payload begins.
    at: u64,
    /// How long that is.
    len: u64,
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

/// A packet that passes, between two addresses.
pub fn passing<'a>(source: &Gid, dest: &Gid, packet: &Packet<'a>) -> Frame<'a> {
    let end = |gid: &Gid, qpn| Endpoint { gid: *gid, qpn: Qpn(qpn) };
    let (source, dest) = (end(source, 0), end(dest, packet.bth.dest_qpn));
    Flow { style: Style { v1: false, grh: None }, source, dest }.frame(*packet)
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
            envelope.flow_label = if envelope.ethertype() == ETHERTYPE_IPV4 { 0 } else { grh.flow_label };
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
        put(&flow.frame(message::packet(request, 0, &[])));
        return Ok(());
    }
    // Not on the stack, which is the program's.
    let mut room = vec![0; MTU_MAX];
    for piece in part.packets(request) {
        let payload = source.next(&piece, &mut room)?;
        if !put(&flow.frame(message::packet(&piece.request, piece.n, payload))) {
            break;
        }
    }
    Ok(())
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
        (Answer::RnrNak(_) | Answer::Nak(_), _) => {
            let psn = if answer == Answer::Nak(Nak::SequenceError) { progress.expected } else { request.psn };
            if let Some(syndrome) = message::refusal(answer) {
                says(psn, syndrome);
            }
        }
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
    for piece in part.packets(request) {
        let payload = source.next(&piece, &mut room)?;
        let place = (piece.at == 0, piece.at + piece.len == request.len);
        let packet = message::read_data(flow.dest.qpn, request.psn.advance(piece.n), place, msn, payload);
        if !put(&flow.frame(packet)) {
            break;
        }
    }
    Ok(())
}
