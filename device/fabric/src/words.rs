//! Requests and answers as the words of a slot.
//!
//! `transport.rs` writes them and reads those of other processes, which may hold anything: what is no request is
//! `None`.

use pvrdma_device::handle::{Gid, Psn, QpHandle, Qpn, Rkey};
use pvrdma_device::rings::wqe::{AtomicOp, Ext, Grh, QpKind};
use pvrdma_device::transport::segment::{Carried, Part, Segment};
use pvrdma_device::transport::*;

/// A GID as two words.
pub fn to_words(gid: &Gid) -> [u64; 2] {
    let (high, low) = (gid.first_chunk::<8>(), gid.last_chunk::<8>());
    [high, low].map(|half| half.map_or(0, |half| u64::from_ne_bytes(*half)))
}

/// The GID that was made such words.
pub fn to_gid(words: [u64; 2]) -> Gid {
    let mut gid = [0; 16];
    gid[..8].copy_from_slice(&words[0].to_ne_bytes());
    gid[8..].copy_from_slice(&words[1].to_ne_bytes());
    gid
}

/// Words of an encoded request.
pub const REQUEST_WORDS: usize = 20;

/// What `Op` is made of, as words: kind, address, key, extension, two operands, GRH.
type OpWords = [u64; 7];

fn encode_op(op: &Op) -> OpWords {
    let imm_word = |imm: Option<u32>| encode_ext(Ext::imm(imm));
    match *op {
        Op::Send { ext } => [0, 0, 0, encode_ext(ext), 0, 0, 0],
        Op::Write { remote_addr, rkey, imm } => [1, remote_addr, rkey.0.into(), imm_word(imm), 0, 0, 0],
        Op::Read { remote_addr, rkey } => [2, remote_addr, rkey.0.into(), 0, 0, 0, 0],
        Op::Atomic { remote_addr, rkey, op: AtomicOp::CompareSwap { compare, swap } } => {
            [3, remote_addr, rkey.0.into(), 0, compare, swap, 0]
        }
        Op::Atomic { remote_addr, rkey, op: AtomicOp::FetchAdd { add } } => {
            [4, remote_addr, rkey.0.into(), 0, add, 0, 0]
        }
        Op::Datagram { qkey, imm, grh } => {
            let low = u32::from_le_bytes([grh.sl, grh.traffic_class, grh.hop_limit, 0]);
            [5, 0, qkey.into(), imm_word(imm), 0, 0, u64::from(grh.flow_label) << 32 | u64::from(low)]
        }
    }
}

fn decode_op(words: &OpWords) -> Option<Op> {
    let [kind, remote_addr, key, ext, first, second, grh] = *words;
    let (rkey, ext) = (Rkey(key as u32), decode_ext(ext));
    let imm = match ext {
        Ext::Imm(imm) => Some(imm),
        _ => None,
    };
    Some(match kind {
        0 => Op::Send { ext },
        1 => Op::Write { remote_addr, rkey, imm },
        2 => Op::Read { remote_addr, rkey },
        3 => Op::Atomic { remote_addr, rkey, op: AtomicOp::CompareSwap { compare: first, swap: second } },
        4 => Op::Atomic { remote_addr, rkey, op: AtomicOp::FetchAdd { add: first } },
        5 => {
            let [sl, traffic_class, hop_limit, _] = (grh as u32).to_le_bytes();
            let flow_label = (grh >> 32) as u32;
            Op::Datagram { qkey: key as u32, imm, grh: Grh { sl, traffic_class, flow_label, hop_limit } }
        }
        _ => return None,
    })
}

fn encode_ext(ext: Ext) -> u64 {
    match ext {
        Ext::None => 0,
        Ext::Imm(imm) => 1 << 32 | u64::from(imm),
        Ext::Invalidate(rkey) => 2 << 32 | u64::from(rkey.0),
    }
}

fn decode_ext(word: u64) -> Ext {
    match word >> 32 {
        1 => Ext::Imm(word as u32),
        2 => Ext::Invalidate(Rkey(word as u32)),
        _ => Ext::None,
    }
}

/// What a piece of a message is, in place of `Op`: the seventh word says whether an event is solicited.
fn encode_part(part: &Part) -> OpWords {
    match *part {
        Part::SendFirst => [6, 0, 0, 0, 0, 0, 0],
        Part::SendMiddle => [7, 0, 0, 0, 0, 0, 0],
        Part::SendLast { ext, solicited } => [8, 0, 0, encode_ext(ext), 0, 0, solicited.into()],
        Part::WriteFirst { remote_addr, rkey, total } => [9, remote_addr, rkey.0.into(), 0, total, 0, 0],
        Part::WriteMiddle => [10, 0, 0, 0, 0, 0, 0],
        Part::WriteLast { imm, solicited } => [11, 0, 0, encode_ext(Ext::imm(imm)), 0, 0, solicited.into()],
        Part::Read { remote_addr, rkey, rest } => [12, remote_addr, rkey.0.into(), 0, rest, 0, 0],
    }
}

fn decode_part(words: &OpWords) -> Option<Part> {
    let [kind, remote_addr, key, ext, bytes, _, solicited] = *words;
    let (rkey, ext, solicited) = (Rkey(key as u32), decode_ext(ext), solicited != 0);
    let imm = match ext {
        Ext::Imm(imm) => Some(imm),
        _ => None,
    };
    Some(match kind {
        6 => Part::SendFirst,
        7 => Part::SendMiddle,
        8 => Part::SendLast { ext, solicited },
        9 => Part::WriteFirst { remote_addr, rkey, total: bytes },
        10 => Part::WriteMiddle,
        11 => Part::WriteLast { imm, solicited },
        12 => Part::Read { remote_addr, rkey, rest: bytes },
        _ => return None,
    })
}

/// A piece of a message as words. Its token is the sender's own affair.
pub fn encode_segment(segment: &Segment) -> [u64; REQUEST_WORDS] {
    let request = Request {
        token: Token::default(),
        source: segment.source,
        dest: segment.dest,
        psn: segment.psn,
        packets: segment.packets,
        op: Op::Send { ext: Ext::None },
        len: segment.len,
        solicited: false,
        alone: false,
    };
    let mut words = encode(&request);
    words[10..17].copy_from_slice(&encode_part(&segment.part));
    words
}

/// A request as words.
pub fn encode(request: &Request) -> [u64; REQUEST_WORDS] {
    let [kind, addr, key, ext, first, second, grh] = encode_op(&request.op);
    let [source_high, source_low] = to_words(&request.source.gid);
    let [dest_high, dest_low] = to_words(&request.dest.gid);
    [
        u64::from(request.token.qp.0) << 32 | u64::from(request.token.epoch),
        u64::from(request.token.psn.get()),
        source_high,
        source_low,
        u64::from(request.source.qpn.0),
        dest_high,
        dest_low,
        u64::from(request.dest.qpn.0),
        u64::from(request.psn.get()),
        u64::from(request.packets),
        kind,
        addr,
        key,
        ext,
        first,
        second,
        grh,
        request.len,
        u64::from(request.solicited),
        u64::from(request.alone),
    ]
}

/// The request, or the piece of one, that was encoded; `None` if nobody encodes so.
pub fn decode(words: &[u64; REQUEST_WORDS]) -> Option<Carried> {
    let [token, token_psn, source_high, source_low, source_qpn, dest_high, dest_low, dest_qpn, psn, packets, ..] =
        *words;
    let [.., len, solicited, alone] = *words;
    let what = words[10..17].try_into().ok()?;
    let source = Endpoint { gid: to_gid([source_high, source_low]), qpn: Qpn(source_qpn as u32) };
    let dest = Endpoint { gid: to_gid([dest_high, dest_low]), qpn: Qpn(dest_qpn as u32) };
    let (psn, packets) = (Psn::new(psn as u32), packets as u32);
    if let Some(part) = decode_part(what) {
        return Some(Carried::Segment(Segment { source, dest, psn, packets, len, part }));
    }
    let token = Token { qp: QpHandle((token >> 32) as u32), epoch: token as u32, psn: Psn::new(token_psn as u32) };
    let (op, solicited, alone) = (decode_op(what)?, solicited != 0, alone != 0);
    Some(Carried::Whole(Request { token, source, dest, psn, packets, op, len, solicited, alone }))
}

/// Path MTUs are whole multiples.
const MTU_UNIT: u32 = 128;

/// Service type, state and path MTU of a QP, for who watches and for who cuts its messages.
pub fn what(kind: QpKind, state: u32, mtu: u32) -> u32 {
    let kind = match kind {
        QpKind::Rc => 0,
        QpKind::Ud => 1,
        QpKind::Gsi => 2,
    };
    ((mtu / MTU_UNIT) & 0xff) << 16 | kind << 8 | state & 0xff
}

/// What such a word says; `None` if nobody encodes so.
pub fn what_is(word: u32) -> Option<(QpKind, u32, u32)> {
    let kind = match word >> 8 & 0xff {
        0 => QpKind::Rc,
        1 => QpKind::Ud,
        2 => QpKind::Gsi,
        _ => return None,
    };
    Some((kind, word & 0xff, (word >> 16) * MTU_UNIT))
}

/// An answer in at most 12 bits.
pub fn encode_answer(answer: Answer) -> u64 {
    match answer {
        Answer::Ack => 1,
        Answer::RnrNak(code) => 0x100 | u64::from(code & 31),
        Answer::Nak(Nak::SequenceError) => 2,
        Answer::Nak(Nak::InvalidRequest) => 3,
        Answer::Nak(Nak::RemoteAccess) => 4,
        Answer::Nak(Nak::RemoteOperational) => 5,
        Answer::RequesterFault => 6,
        Answer::Silence => 0,
    }
}

/// The answer that was encoded.
pub fn decode_answer(word: u64) -> Answer {
    match word {
        1 => Answer::Ack,
        2 => Answer::Nak(Nak::SequenceError),
        3 => Answer::Nak(Nak::InvalidRequest),
        4 => Answer::Nak(Nak::RemoteAccess),
        5 => Answer::Nak(Nak::RemoteOperational),
        6 => Answer::RequesterFault,
        rnr if rnr & 0x100 != 0 => Answer::RnrNak(rnr as u8 & 31),
        _ => Answer::Silence,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_answers_survive_the_trip() {
        for op in [
            Op::Send { ext: Ext::None },
            Op::Send { ext: Ext::Imm(u32::MAX) },
            Op::Send { ext: Ext::Invalidate(Rkey(0x0102_0304)) },
            Op::Atomic {
                remote_addr: 8,
                rkey: Rkey(3),
                op: AtomicOp::CompareSwap { compare: u64::MAX, swap: 0x0102_0304_0506_0708 },
            },
            Op::Atomic { remote_addr: u64::MAX - 7, rkey: Rkey(3), op: AtomicOp::FetchAdd { add: u64::MAX } },
            Op::Datagram {
                qkey: 0x8001_0000,
                imm: Some(7),
                grh: Grh { sl: 15, traffic_class: 0xab, flow_label: 0x000f_ffff, hop_limit: 64 },
            },
            Op::Write { remote_addr: u64::MAX, rkey: Rkey(0x1234_5601), imm: Some(0) },
            Op::Read { remote_addr: 7, rkey: Rkey(u32::MAX) },
        ] {
            let request = Request {
                token: Token { qp: QpHandle(5), epoch: 9, psn: Psn::new(0x00ff_ffff) },
                source: Endpoint { gid: std::array::from_fn(|n| n as u8), qpn: Qpn(0x8002) },
                dest: Endpoint { gid: [0xfe; 16], qpn: Qpn(0x00ff_8003) },
                psn: Psn::new(77),
                packets: 3,
                op,
                len: 1 << 30,
                solicited: true,
                alone: false,
            };
            assert_eq!(decode(&encode(&request)), Some(Carried::Whole(request)));
        }
        for part in [
            Part::SendFirst,
            Part::SendMiddle,
            Part::SendLast { ext: Ext::Invalidate(Rkey(9)), solicited: true },
            Part::SendLast { ext: Ext::None, solicited: false },
            Part::WriteFirst { remote_addr: u64::MAX, rkey: Rkey(0x1234_5601), total: 1 << 31 },
            Part::WriteMiddle,
            Part::WriteLast { imm: Some(0), solicited: true },
            Part::WriteLast { imm: None, solicited: false },
            Part::Read { remote_addr: 7, rkey: Rkey(u32::MAX), rest: 1 << 31 },
        ] {
            let segment = Segment {
                source: Endpoint { gid: std::array::from_fn(|n| n as u8), qpn: Qpn(0x8002) },
                dest: Endpoint { gid: [0xfe; 16], qpn: Qpn(0x00ff_8003) },
                psn: Psn::new(77),
                packets: 64,
                len: 256 << 10,
                part,
            };
            assert_eq!(decode(&encode_segment(&segment)), Some(Carried::Segment(segment)));
        }
        for answer in [
            Answer::Ack,
            Answer::RnrNak(31),
            Answer::RnrNak(0),
            Answer::Nak(Nak::SequenceError),
            Answer::Nak(Nak::InvalidRequest),
            Answer::Nak(Nak::RemoteAccess),
            Answer::Nak(Nak::RemoteOperational),
            Answer::RequesterFault,
            Answer::Silence,
        ] {
            assert_eq!(decode_answer(encode_answer(answer)), answer);
        }
    }
}
