//! Messages of a device as packets: what a requester says for a `Request`, and how an `Answer` is said.
//!
//! Nothing here knows of a connection. Which packets go when, and which of them want an ACK sooner than their message
//! ends, is for whoever sends them (`rc`), or only draws what would be sent.

use crate::packet::{Aeth, AtomicEth, BITS_24, Bth, Deth, NO_CREDITS, Opcode, Packet, Reth, Syndrome, nak};
use pvrdma_device::handle::{Psn, Qpn};
use pvrdma_device::rings::wqe::{AtomicOp, Ext};
use pvrdma_device::transport::{Answer, Nak, Op, Request};

/// Immediate data, between its bytes as a program handed them in, big-endian, and the number that it is in a packet.
pub fn immediate(raw: u32) -> u32 {
    u32::from_be(raw)
}

/// A packet without what its opcode asks for.
fn plain(opcode: Opcode, dest: Qpn, psn: Psn, payload: &[u8]) -> Packet<'_> {
    Packet::new(Bth::new(opcode, dest.0 & BITS_24, psn.get()), payload)
}

/// Packet `n` of a request, which carries `payload`. The last one wants an ACK. What has its data come back, a READ or
/// an atomic operation, is one packet, whatever comes back.
pub fn packet<'a>(request: &Request, n: u32, payload: &'a [u8]) -> Packet<'a> {
    let (begins, ends) = (n == 0, n >= request.packets.saturating_sub(1));
    let plain = |opcode| plain(opcode, request.dest.qpn, request.psn.advance(n), payload);
    let len = u32::try_from(request.len).unwrap_or(u32::MAX);
    let mut packet = match request.op {
        Op::Send { ext } => {
            let mut packet = plain(send_opcode(ext, begins, ends));
            match ext {
                Ext::Imm(imm) if ends => packet.imm = Some(immediate(imm)),
                Ext::Invalidate(rkey) if ends => packet.invalidate = Some(rkey.0),
                _ => {}
            }
            packet
        }
        Op::Write { remote_addr, rkey, imm } => {
            let mut packet = plain(write_opcode(imm.is_some(), begins, ends));
            packet.reth = begins.then_some(Reth { addr: remote_addr, rkey: rkey.0, len });
            packet.imm = imm.filter(|_| ends).map(immediate);
            packet
        }
        Op::Datagram { qkey, imm, .. } => {
            let mut packet = plain(if imm.is_some() { Opcode::DatagramImm } else { Opcode::Datagram });
            packet.deth = Some(Deth { qkey, source_qpn: request.source.qpn.0 & BITS_24 });
            packet.imm = imm.map(immediate);
            packet.bth.solicited = request.solicited;
            return packet;
        }
        Op::Read { remote_addr, rkey } => {
            let mut packet = plain(Opcode::ReadRequest);
            packet.bth.ack_req = true;
            packet.reth = Some(Reth { addr: remote_addr, rkey: rkey.0, len });
            return packet;
        }
        Op::Atomic { remote_addr, rkey, op } => {
            let (opcode, swap_or_add, compare) = match op {
                AtomicOp::CompareSwap { compare, swap } => (Opcode::CompareSwap, swap, compare),
                AtomicOp::FetchAdd { add } => (Opcode::FetchAdd, add, 0),
            };
            let mut packet = plain(opcode);
            packet.bth.ack_req = true;
            packet.atomic = Some(AtomicEth { addr: remote_addr, rkey: rkey.0, swap_or_add, compare });
            return packet;
        }
    };
    packet.bth.ack_req = ends;
    packet.bth.solicited = ends && request.solicited;
    packet
}

fn send_opcode(ext: Ext, begins: bool, ends: bool) -> Opcode {
    match (ext, begins, ends) {
        (_, true, false) => Opcode::SendFirst,
        (_, false, false) => Opcode::SendMiddle,
        (Ext::None, true, true) => Opcode::SendOnly,
        (Ext::None, false, true) => Opcode::SendLast,
        (Ext::Imm(_), true, true) => Opcode::SendOnlyImm,
        (Ext::Imm(_), false, true) => Opcode::SendLastImm,
        (Ext::Invalidate(_), true, true) => Opcode::SendOnlyInvalidate,
        (Ext::Invalidate(_), false, true) => Opcode::SendLastInvalidate,
    }
}

fn write_opcode(has_imm: bool, begins: bool, ends: bool) -> Opcode {
    match (has_imm, begins, ends) {
        (_, true, false) => Opcode::WriteFirst,
        (_, false, false) => Opcode::WriteMiddle,
        (false, true, true) => Opcode::WriteOnly,
        (false, false, true) => Opcode::WriteLast,
        (true, true, true) => Opcode::WriteOnlyImm,
        (true, false, true) => Opcode::WriteLastImm,
    }
}

/// Data of a READ, whose first and last packet these are or are not. `msn` is how many messages its responder has
/// completed.
pub fn read_data(dest: Qpn, psn: Psn, (begins, ends): (bool, bool), msn: u32, payload: &[u8]) -> Packet<'_> {
    let opcode = match (begins, ends) {
        (true, true) => Opcode::ReadOnly,
        (true, false) => Opcode::ReadFirst,
        (false, false) => Opcode::ReadMiddle,
        (false, true) => Opcode::ReadLast,
    };
    let mut packet = plain(opcode, dest, psn, payload);
    let syndrome = Syndrome::Ack(NO_CREDITS);
    packet.aeth = opcode.has_aeth().then_some(Aeth { syndrome, msn: msn & BITS_24 });
    packet
}

/// How a refusal is said. `None`: it is none, or nobody says it.
pub fn refusal(answer: Answer) -> Option<Syndrome> {
    match answer {
        Answer::RnrNak(code) => Some(Syndrome::Rnr(code & 31)),
        Answer::Nak(reason) => Some(Syndrome::Nak(match reason {
            Nak::SequenceError => nak::SEQUENCE_ERROR,
            Nak::InvalidRequest => nak::INVALID_REQUEST,
            Nak::RemoteAccess => nak::REMOTE_ACCESS,
            Nak::RemoteOperational => nak::REMOTE_OPERATIONAL,
        })),
        Answer::Ack | Answer::Silence | Answer::RequesterFault => None,
    }
}
