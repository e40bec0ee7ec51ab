//! The device's words for requests and answers, and those of the links.

use pvrdma_device::handle::{Psn, Qpn, Rkey};
use pvrdma_device::rings::wqe::{self, AtomicOp, Grh};
use pvrdma_device::transport::segment::{Carried, Part, Segment as Piece};
use pvrdma_device::transport::{self as device, Endpoint, MAX_MSG_SZ, Nak, Request, Token};
use pvrdma_net::frame::{self, Answer, Datagram, Ends, Ext, Message, Op, Segment};

/// Both ends of a request.
pub fn ends(request: &Request) -> Ends {
    Ends {
        source_gid: request.source.gid,
        source_qpn: request.source.qpn.0,
        dest_gid: request.dest.gid,
        dest_qpn: request.dest.qpn.0,
    }
}

/// The same as the device has them.
pub fn endpoints(ends: &Ends) -> (Endpoint, Endpoint) {
    let source = Endpoint { gid: ends.source_gid, qpn: Qpn(ends.source_qpn) };
    (source, Endpoint { gid: ends.dest_gid, qpn: Qpn(ends.dest_qpn) })
}

fn to_ext(ext: wqe::Ext) -> Ext {
    match ext {
        wqe::Ext::None => Ext::None,
        wqe::Ext::Imm(imm) => Ext::Imm(imm),
        wqe::Ext::Invalidate(rkey) => Ext::Invalidate(rkey.0),
    }
}

fn from_ext(ext: Ext) -> wqe::Ext {
    match ext {
        Ext::None => wqe::Ext::None,
        Ext::Imm(imm) => wqe::Ext::Imm(imm),
        Ext::Invalidate(rkey) => wqe::Ext::Invalidate(Rkey(rkey)),
    }
}

/// A request of a connected QP, as it is said to another host; `None` for a datagram.
pub fn message(request: &Request) -> Option<Message> {
    let op = match request.op {
        device::Op::Send { ext } => Op::Send { ext: to_ext(ext) },
        device::Op::Write { remote_addr, rkey, imm } => Op::Write { remote_addr, rkey: rkey.0, imm },
        device::Op::Read { remote_addr, rkey } => Op::Read { remote_addr, rkey: rkey.0 },
        device::Op::Atomic { remote_addr, rkey, op: AtomicOp::CompareSwap { compare, swap } } => {
            Op::CompareSwap { remote_addr, rkey: rkey.0, compare, swap }
        }
        device::Op::Atomic { remote_addr, rkey, op: AtomicOp::FetchAdd { add } } => {
            Op::FetchAdd { remote_addr, rkey: rkey.0, add }
        }
        device::Op::Datagram { .. } => return None,
    };
    let Request { psn, packets, len, solicited, .. } = *request;
    Some(Message { op, psn: psn.get(), packets, len, solicited })
}

fn from_op(op: &Op) -> device::Op {
    match *op {
        Op::Send { ext } => device::Op::Send { ext: from_ext(ext) },
        Op::Write { remote_addr, rkey, imm } => device::Op::Write { remote_addr, rkey: Rkey(rkey), imm },
        Op::Read { remote_addr, rkey } => device::Op::Read { remote_addr, rkey: Rkey(rkey) },
        Op::CompareSwap { remote_addr, rkey, compare, swap } => {
            device::Op::Atomic { remote_addr, rkey: Rkey(rkey), op: AtomicOp::CompareSwap { compare, swap } }
        }
        Op::FetchAdd { remote_addr, rkey, add } => {
            device::Op::Atomic { remote_addr, rkey: Rkey(rkey), op: AtomicOp::FetchAdd { add } }
        }
    }
}

/// A piece of a message of another host, as the device takes it in: `len` bytes from `offset` on, with its own packets.
/// For what is read, the caller chooses the piece. `None`: no packets of the path's MTU end there.
///
/// A piece of a WRITE says itself where it goes, as if its message began with it, so that nobody has to know what came
/// before it. With immediate data it does not: its target tells of the whole message.
pub fn carried(token: Token, ends: &Ends, message: &Message, offset: u64, len: u64) -> Option<Carried> {
    let (source, dest) = endpoints(ends);
    let whole = |psn, packets, op| {
        let solicited = message.solicited;
        Some(Carried::Whole(Request { token, source, dest, psn, packets, op, len, solicited, alone: false }))
    };
    if offset == 0 && len == message.len {
        return whole(Psn::new(message.psn), message.packets, from_op(&message.op));
    }
    // There is at most one: with half of it there would be nearly twice the packets.
    let mtu = (8..=12).map(|log| 1u64 << log).find(|mtu| message.len.div_ceil(*mtu) == u64::from(message.packets))?;
    let last = offset.checked_add(len)? == message.len;
    if !offset.is_multiple_of(mtu) || !last && !len.is_multiple_of(mtu) {
        return None;
    }
    let (before, packets) = (u32::try_from(offset / mtu).ok()?, u32::try_from(len.div_ceil(mtu)).ok()?);
    let (first, solicited, rest) = (offset == 0, message.solicited, message.len - offset);
    let psn = Psn::new(message.psn).advance(before);
    let part = match message.op {
        Op::Write { remote_addr, rkey, imm: None } => {
            let (remote_addr, rkey) = (remote_addr.wrapping_add(offset), Rkey(rkey));
            if last {
                return whole(psn, packets, device::Op::Write { remote_addr, rkey, imm: None });
            }
            Part::WriteFirst { remote_addr, rkey, total: rest }
        }
        Op::Write { remote_addr, rkey, .. } if first => {
            Part::WriteFirst { remote_addr, rkey: Rkey(rkey), total: message.len }
        }
        Op::Write { imm, .. } if last => Part::WriteLast { imm, solicited },
        Op::Write { .. } => Part::WriteMiddle,
        Op::Read { remote_addr, rkey } => {
            Part::Read { remote_addr: remote_addr.wrapping_add(offset), rkey: Rkey(rkey), rest }
        }
        Op::Send { .. } if first => Part::SendFirst,
        Op::Send { ext } if last => Part::SendLast { ext: from_ext(ext), solicited },
        Op::Send { .. } => Part::SendMiddle,
        Op::CompareSwap { .. } | Op::FetchAdd { .. } => return None,
    };
    Some(Carried::Segment(Piece { source, dest, psn, packets, len, part }))
}

/// What can be carried out without its target, as a request, and the bytes from its beginning to the message's end.
/// `None`: the target is to judge it, or to tell of its message.
pub fn on_its_own(carried: &Carried, message: &Message) -> Option<(Request, u64)> {
    let Piece { source, dest, psn, packets, len, part } = match carried {
        _ if message.len > MAX_MSG_SZ.into() => return None,
        Carried::Whole(request) => return Some((*request, request.len)),
        Carried::Segment(piece) => *piece,
    };
    let (op, rest) = match part {
        Part::Read { remote_addr, rkey, rest } => (device::Op::Read { remote_addr, rkey }, rest),
        Part::WriteFirst { remote_addr, rkey, total } if matches!(message.op, Op::Write { imm: None, .. }) => {
            (device::Op::Write { remote_addr, rkey, imm: None }, total)
        }
        _ => return None,
    };
    let token = Token::default();
    Some((Request { token, source, dest, psn, packets, op, len, solicited: false, alone: true }, rest))
}

/// The piece that a segment brings.
pub fn carried_by(token: Token, ends: &Ends, segment: &Segment) -> Option<Carried> {
    carried(token, ends, &segment.message, segment.offset, segment.len.into())
}

/// What a responder says, for another host.
pub fn answer(answer: device::Answer) -> Answer {
    match answer {
        device::Answer::Ack => Answer::Ack,
        device::Answer::RnrNak(code) => Answer::Rnr(code & 31),
        device::Answer::Nak(nak) => Answer::Nak(match nak {
            Nak::SequenceError => 0,
            Nak::InvalidRequest => 1,
            Nak::RemoteAccess => 2,
            Nak::RemoteOperational => 3,
        }),
        device::Answer::RequesterFault => Answer::RequesterFault,
        device::Answer::Silence => Answer::Silence,
    }
}

/// What another host says.
pub fn answered(answer: Answer) -> device::Answer {
    match answer {
        Answer::Ack => device::Answer::Ack,
        Answer::Rnr(code) => device::Answer::RnrNak(code & 31),
        Answer::Nak(0) => device::Answer::Nak(Nak::SequenceError),
        Answer::Nak(1) => device::Answer::Nak(Nak::InvalidRequest),
        Answer::Nak(2) => device::Answer::Nak(Nak::RemoteAccess),
        Answer::Nak(_) => device::Answer::Nak(Nak::RemoteOperational),
        Answer::RequesterFault => device::Answer::RequesterFault,
        Answer::Silence => device::Answer::Silence,
    }
}

/// A datagram for another host; `None` if the request is none. Its header has the shape of a GRH (IBA vol. 1, 8.3).
pub fn datagram(request: &Request) -> Option<Datagram> {
    let device::Op::Datagram { qkey, imm, grh: from } = request.op else { return None };
    let mut grh = [0; 40];
    let word = 6 << 28 | u32::from(from.traffic_class) << 20 | from.flow_label & 0x000f_ffff;
    grh[..4].copy_from_slice(&word.to_be_bytes());
    grh[6] = 0x1b;
    grh[7] = from.hop_limit;
    grh[8..24].copy_from_slice(&request.source.gid);
    grh[24..].copy_from_slice(&request.dest.gid);
    Some(Datagram { ends: ends(request), qkey, imm, solicited: request.solicited, grh })
}

/// A datagram of another host. The service level is a matter of each link and does not travel.
pub fn from_datagram(datagram: &Datagram, len: usize) -> Request {
    let (source, dest) = endpoints(&datagram.ends);
    let grh = &datagram.grh;
    let word = u32::from_be_bytes([grh[0], grh[1], grh[2], grh[3]]);
    let grh = Grh { sl: 0, traffic_class: (word >> 20) as u8, flow_label: word & 0x000f_ffff, hop_limit: grh[7] };
    Request {
        token: Token::default(),
        source,
        dest,
        psn: Psn::default(),
        packets: 1,
        op: device::Op::Datagram { qkey: datagram.qkey, imm: datagram.imm, grh },
        len: len as u64,
        solicited: datagram.solicited,
        alone: false,
    }
}

/// How much is asked for at a time of what is read: as much as a frame of data holds.
pub const PIECE: u64 = frame::SEGMENT as u64;

#[cfg(test)]
mod tests {
    use super::*;
    use pvrdma_device::transport::segment::Cutter;

    fn request(op: device::Op, len: u64, packets: u32) -> Request {
        Request {
            token: Token::default(),
            source: Endpoint { gid: [1; 16], qpn: Qpn(7) },
            dest: Endpoint { gid: [2; 16], qpn: Qpn(9) },
            psn: Psn::new(0x00ff_fff0),
            packets,
            op,
            len,
            solicited: true,
            alone: false,
        }
    }

    /// What is cut by frames is what the device's own cutter makes of the request.
    #[test]
    fn pieces_are_those_that_the_device_would_cut() {
        let len = 2 * PIECE + 77;
        let packets = len.div_ceil(1024) as u32;
        for op in [
            device::Op::Send { ext: wqe::Ext::Imm(5) },
            device::Op::Write { remote_addr: 0x1000, rkey: Rkey(3), imm: Some(1) },
            device::Op::Read { remote_addr: 0x1000, rkey: Rkey(3) },
        ] {
            let request = request(op, len, packets);
            let message = message(&request).unwrap();
            let mut cutter = Cutter::new(&request);
            let most = cutter.packets_in(PIECE);
            let mut offset = 0;
            while let Some((at, piece)) = cutter.next(most) {
                assert_eq!(at, offset);
                let here = PIECE.min(len - at);
                assert_eq!(carried(request.token, &ends(&request), &message, at, here), Some(piece));
                offset += here;
            }
            assert_eq!(offset, len);
            assert_eq!(carried(request.token, &ends(&request), &message, 0, len), Some(Carried::Whole(request)));
            // No packet ends there, and no MTU makes so many of them.
            assert_eq!(carried(request.token, &ends(&request), &message, 1, PIECE), None);
            let odd = Message { packets: 3, ..message };
            assert_eq!(carried(request.token, &ends(&request), &odd, 0, PIECE), None);
        }
    }

    #[test]
    fn a_piece_says_itself_where_it_goes_unless_its_target_tells_of_the_message() {
        let len = 2 * PIECE + 77;
        let packets = len.div_ceil(1024) as u32;
        let cut = |op, len| {
            let request = request(op, len, packets);
            let (message, ends) = (message(&request).unwrap(), ends(&request));
            [0, PIECE, 2 * PIECE].map(|at| {
                let carried = carried(request.token, &ends, &message, at, PIECE.min(len - at)).unwrap();
                on_its_own(&carried, &message).map(|(own, rest)| {
                    let (piece, asked) = match carried {
                        Carried::Whole(request) => ((request.psn, request.packets, request.len), request.op),
                        Carried::Segment(Piece { psn, packets, len, part, .. }) => match part {
                            Part::WriteFirst { remote_addr, rkey, total } if total == rest => {
                                ((psn, packets, len), device::Op::Write { remote_addr, rkey, imm: None })
                            }
                            Part::Read { remote_addr, rkey, .. } => {
                                ((psn, packets, len), device::Op::Read { remote_addr, rkey })
                            }
                            other => panic!("{other:?}"),
                        },
                    };
                    assert_eq!((own.psn, own.packets, own.len), piece, "all that is carried");
                    assert_eq!(own.op, asked);
                    (own.psn.since(request.psn), own.len, rest)
                })
            })
        };
        let (write, read) = (
            |imm| device::Op::Write { remote_addr: 0x1000, rkey: Rkey(3), imm },
            device::Op::Read { remote_addr: 0x1000, rkey: Rkey(3) },
        );
        let pieces = [(0, PIECE, len), (256, PIECE, len - PIECE), (512, 77, 77)].map(Some);
        assert_eq!(cut(write(None), len), pieces);
        assert_eq!(cut(read, len), pieces);
        assert_eq!(cut(write(Some(1)), len), [None; 3]);
        assert_eq!(cut(device::Op::Send { ext: wqe::Ext::None }, len), [None; 3]);
        // Longer than any message may be: its target says so.
        let long = request(write(None), u64::from(MAX_MSG_SZ) + 4096, MAX_MSG_SZ / 4096 + 1);
        let (ends, message) = (ends(&long), message(&long).unwrap());
        let piece = carried(long.token, &ends, &message, 0, PIECE).unwrap();
        assert_eq!(on_its_own(&piece, &message), None);
    }

    #[test]
    fn answers_and_datagrams_survive_the_trip() {
        for given in [
            device::Answer::Ack,
            device::Answer::RnrNak(31),
            device::Answer::Nak(Nak::SequenceError),
            device::Answer::Nak(Nak::InvalidRequest),
            device::Answer::Nak(Nak::RemoteAccess),
            device::Answer::Nak(Nak::RemoteOperational),
            device::Answer::RequesterFault,
            device::Answer::Silence,
        ] {
            assert_eq!(answered(answer(given)), given);
        }
        let grh = Grh { sl: 0, traffic_class: 0xab, flow_label: 0x000f_ffff, hop_limit: 64 };
        let sent = Request {
            psn: Psn::default(),
            ..request(device::Op::Datagram { qkey: 0x8001_0000, imm: Some(7), grh }, 99, 1)
        };
        assert_eq!(from_datagram(&datagram(&sent).unwrap(), 99), sent);
        assert_eq!(message(&sent), None);
    }
}
