//! Frames as bytes.

use super::*;

fn head(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u16, token: u32, word: u32, len: usize) {
    out.extend_from_slice(&(len as u32).to_le_bytes());
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_le_bytes());
    out.extend_from_slice(&token.to_le_bytes());
    out.extend_from_slice(&word.to_le_bytes());
}

fn put_ends(out: &mut Vec<u8>, ends: &Ends) {
    out.extend_from_slice(&ends.source_gid);
    out.extend_from_slice(&ends.dest_gid);
    out.extend_from_slice(&ends.source_qpn.to_le_bytes());
    out.extend_from_slice(&ends.dest_qpn.to_le_bytes());
}

fn put_card(out: &mut Vec<u8>, card: &Card) {
    out.extend_from_slice(&[0, card.link, card.mtu, 0]);
    out.extend_from_slice(&card.lid.to_le_bytes());
    out.extend_from_slice(&[0; 2]);
    out.extend_from_slice(&card.gid);
    for word in [card.qpn, card.psn, card.rkey, card.len] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    out.extend_from_slice(&card.addr.to_le_bytes());
}

/// The beginning of a segment's frame, for a payload of `segment.len` bytes that the caller appends.
pub fn begin_segment(out: &mut Vec<u8>, stream: u16, token: u32, segment: &Segment) {
    let message = &segment.message;
    let (mut remote_addr, mut rkey, mut word, mut operands) = (0, 0, 0, (0, 0));
    let mut flags = if message.solicited { flag::SOLICITED } else { 0 };
    let op = match message.op {
        Op::Send { ext: Ext::None } => op::SEND,
        Op::Send { ext: Ext::Imm(imm) } => {
            (word, flags) = (imm, flags | flag::IMM);
            op::SEND
        }
        Op::Send { ext: Ext::Invalidate(key) } => {
            (word, flags) = (key, flags | flag::INV);
            op::SEND
        }
        Op::Write { remote_addr: addr, rkey: key, imm } => {
            (remote_addr, rkey) = (addr, key);
            if let Some(imm) = imm {
                (word, flags) = (imm, flags | flag::IMM);
            }
            op::WRITE
        }
        Op::Read { remote_addr: addr, rkey: key } => {
            (remote_addr, rkey) = (addr, key);
            op::READ
        }
        Op::CompareSwap { remote_addr: addr, rkey: key, compare, swap } => {
            (remote_addr, rkey, operands) = (addr, key, (compare, swap));
            op::COMPARE_SWAP
        }
        Op::FetchAdd { remote_addr: addr, rkey: key, add } => {
            (remote_addr, rkey, operands) = (addr, key, (add, 0));
            op::FETCH_ADD
        }
    };
    flags |= if segment.first() { flag::FIRST } else { 0 };
    flags |= if segment.last() { flag::LAST } else { 0 };
    let psn = message.psn & 0x00ff_ffff | u32::from(op) << 24;
    head(out, kind::SEGMENT, flags, stream, token, psn, SEGMENT_BODY + segment.len as usize);
    out.extend_from_slice(&remote_addr.to_le_bytes());
    out.extend_from_slice(&rkey.to_le_bytes());
    out.extend_from_slice(&word.to_le_bytes());
    out.extend_from_slice(&message.len.to_le_bytes());
    out.extend_from_slice(&segment.offset.to_le_bytes());
    out.extend_from_slice(&message.packets.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&operands.0.to_le_bytes());
    out.extend_from_slice(&operands.1.to_le_bytes());
}

/// The beginning of a data frame, for a payload of `len` bytes that the caller appends.
pub fn begin_data(out: &mut Vec<u8>, token: u32, offset: u64, len: usize) {
    head(out, kind::DATA, 0, 0, token, 0, DATA_BODY + len);
    out.extend_from_slice(&offset.to_le_bytes());
}

impl Frame<'_> {
    /// Appends the frame to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match *self {
            Frame::Hello(ref hello) => {
                head(out, kind::HELLO, 0, 0, 0, 0, HELLO_BODY);
                out.extend_from_slice(&MAGIC);
                out.extend_from_slice(&hello.versions.0.to_le_bytes());
                out.extend_from_slice(&hello.versions.1.to_le_bytes());
                out.extend_from_slice(&hello.host.to_le_bytes());
                out.extend_from_slice(&if hello.adapters { can::ADAPTERS } else { 0 }.to_le_bytes());
                out.extend_from_slice(&hello.boot);
                out.extend_from_slice(&hello.window.to_le_bytes());
                out.extend_from_slice(&hello.lane.to_le_bytes());
                out.extend_from_slice(&hello.requests.to_le_bytes());
                out.extend_from_slice(&hello.streams.to_le_bytes());
                out.extend_from_slice(&hello.gids.to_le_bytes());
            }
            Frame::Stream { stream, incarnation, ref ends } => {
                head(out, kind::STREAM, 0, stream, incarnation, 0, ENDS_BODY);
                put_ends(out, ends);
            }
            Frame::Segment { stream, token, ref segment, payload } => {
                begin_segment(out, stream, token, segment);
                out.extend_from_slice(payload);
            }
            Frame::Datagram { ref datagram, payload } => {
                let mut flags = if datagram.solicited { flag::SOLICITED } else { 0 };
                flags |= if datagram.imm.is_some() { flag::IMM } else { 0 };
                head(out, kind::DATAGRAM, flags, 0, 0, 0, DATAGRAM_BODY + payload.len());
                put_ends(out, &datagram.ends);
                out.extend_from_slice(&datagram.qkey.to_le_bytes());
                out.extend_from_slice(&datagram.imm.unwrap_or_default().to_le_bytes());
                out.extend_from_slice(&datagram.grh);
                out.extend_from_slice(payload);
            }
            Frame::Answer { token, answer } => {
                head(out, kind::ANSWER, 0, 0, token, 0, ANSWER_BODY);
                out.extend_from_slice(&match answer {
                    Answer::Ack => [0, 0],
                    Answer::Rnr(code) => [1, code & 31],
                    Answer::Nak(code) => [2, code & 31],
                    Answer::RequesterFault => [3, 0],
                    Answer::Silence => [4, 0],
                });
            }
            Frame::Data { token, offset, payload } => {
                begin_data(out, token, offset, payload.len());
                out.extend_from_slice(payload);
            }
            Frame::Cancel { token } => head(out, kind::CANCEL, 0, 0, token, 0, 0),
            Frame::Taken { stream, incarnation, back, bytes } => {
                let flags = if back { flag::BACK } else { 0 };
                head(out, kind::TAKEN, flags, stream, incarnation, 0, COUNT_BODY);
                out.extend_from_slice(&bytes.to_le_bytes());
            }
            Frame::Credit { bytes } => {
                head(out, kind::CREDIT, 0, 0, 0, 0, COUNT_BODY);
                out.extend_from_slice(&bytes.to_le_bytes());
            }
            Frame::Ping { stamp } | Frame::Pong { stamp } => {
                let kind = if matches!(self, Frame::Ping { .. }) { kind::PING } else { kind::PONG };
                head(out, kind, 0, 0, 0, 0, COUNT_BODY);
                out.extend_from_slice(&stamp.to_le_bytes());
            }
            Frame::Gid { ref gid, bound } => {
                head(out, kind::GID, 0, 0, 0, 0, GID_BODY);
                out.extend_from_slice(gid);
                out.push(u8::from(bound));
            }
            Frame::Bye(reason) => {
                head(out, kind::BYE, 0, 0, 0, 0, BYE_BODY);
                out.push(match reason {
                    Reason::Stopping => 0,
                    Reason::Protocol => 1,
                });
            }
            Frame::Adapter(way) => {
                head(out, kind::ADAPTER, 0, 0, 0, 0, ADAPTER_BODY);
                let begin = out.len();
                match way {
                    Way::Offer(ref card) => put_card(out, card),
                    Way::Refuse(refusal) => out.extend_from_slice(&[1, refusal as u8]),
                    Way::Switch => out.push(2),
                }
                out.resize(begin + ADAPTER_BODY, 0);
            }
        }
    }
}
