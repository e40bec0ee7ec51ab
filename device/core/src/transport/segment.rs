//! Messages in pieces: a transport that cannot have a whole message within reach of the responder (a network) carries
//! some of its packets at a time.
//!
//! A [`Segment`] is one packet or many, and always whole packets: PSNs are counted by packet, so what was carried in
//! one cut and lost may come again in another. A message that is carried as a whole is no segment but a [`Request`]:
//! what IBA calls ONLY. [`Cutter`] makes pieces of a request.

use super::{Endpoint, Op, Request};
use crate::handle::{Psn, Rkey};
use crate::rings::wqe::Ext;

/// Path MTUs there are: 256 to 4096, in powers of two.
const MTUS: std::ops::RangeInclusive<u64> = 256..=4096;

/// A piece of a message, as the responder gets it. Its payload comes through a `Far`, like that of a whole message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Requester.
    pub source: Endpoint,
    /// Responder.
    pub dest: Endpoint,
    /// Its first packet.
    pub psn: Psn,
    /// Its packets. All but the last of a message are full.
    pub packets: u32,
    /// Payload bytes of this piece.
    pub len: u64,
    /// What it is a piece of, and which.
    pub part: Part,
}

/// The opcodes that packets of a message in pieces have (IBA vol. 1, 9.2.1). What a header extension says is there
/// where the wire has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "fields carry the names of the IBA headers")]
pub enum Part {
    SendFirst,
    SendMiddle,
    SendLast {
        ext: Ext,
        solicited: bool,
    },
    WriteFirst {
        remote_addr: u64,
        rkey: Rkey,
        /// Bytes of the whole message.
        total: u64,
    },
    WriteMiddle,
    WriteLast {
        imm: Option<u32>,
        solicited: bool,
    },
    /// A part of what a READ asks for. On a wire the responder cuts its answer; here whoever carries the answer asks
    /// the responder for as much of it as there is room for.
    Read {
        remote_addr: u64,
        rkey: Rkey,
        /// Bytes from `remote_addr` to the end of the whole READ.
        rest: u64,
    },
}

/// The payload of a full packet, if `packets` full ones hold `len` bytes.
pub fn full_packets(len: u64, packets: u32) -> Option<u64> {
    let mtu = len.checked_div(u64::from(packets))?;
    (mtu * u64::from(packets) == len && MTUS.contains(&mtu) && mtu.is_power_of_two()).then_some(mtu)
}

/// Whether a message, or its end, of `len` bytes takes `packets` packets of `mtu` bytes; it is not empty.
pub fn ends_in(len: u64, packets: u32, mtu: u64) -> bool {
    len > 0 && len.div_ceil(mtu) == u64::from(packets)
}

/// The path MTU, if a message, or its end, of `len` bytes takes `packets` packets, more than one. There is at most one:
/// with half of it there would be nearly twice the packets.
pub fn last_packets(len: u64, packets: u32) -> Option<u64> {
    (8..=12).map(|log| 1 << log).find(|mtu| packets > 1 && ends_in(len, packets, *mtu))
}

/// The path MTU of a message that can be cut, by its length and its number of packets. `None`: it goes as a whole.
pub fn mtu_of(request: &Request) -> Option<u64> {
    let cuttable = matches!(request.op, Op::Send { .. } | Op::Write { .. } | Op::Read { .. });
    last_packets(request.len, request.packets).filter(|_| cuttable)
}

/// What is carried at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carried {
    /// All of it.
    Whole(Request),
    /// A piece.
    Segment(Segment),
}

/// Cuts a request into pieces, as long as there is room for.
#[derive(Clone, Debug)]
pub struct Cutter {
    request: Request,
    /// Bytes of a full packet; `None` for what goes as a whole.
    mtu: Option<u64>,
    /// Packets that have been handed out.
    done: u32,
}

impl Cutter {
    /// Nothing of `request` is handed out yet.
    pub fn new(request: &Request) -> Cutter {
        Cutter { request: *request, mtu: mtu_of(request), done: 0 }
    }

    /// Packets that hold at most `bytes`, one at least.
    pub fn packets_in(&self, bytes: u64) -> u32 {
        self.mtu.map_or(1, |mtu| u32::try_from(bytes / mtu).unwrap_or(u32::MAX).max(1))
    }

    /// The next piece, of at most `most` packets (one at least), and where in the message its payload begins. `None`:
    /// all has been handed out.
    pub fn next(&mut self, most: u32) -> Option<(u64, Carried)> {
        let (request, done) = (&self.request, self.done);
        let left = request.packets.checked_sub(done).filter(|left| *left > 0 || request.packets == 0)?;
        let (mtu, packets) = match self.mtu {
            Some(mtu) if left > most.max(1) || done > 0 => (mtu, left.min(most.max(1))),
            _ => {
                self.done = request.packets.max(1);
                return Some((0, Carried::Whole(*request)));
            }
        };
        self.done += packets;
        let offset = u64::from(done) * mtu;
        let rest = request.len - offset;
        let (first, last) = (done == 0, packets == left);
        let part = match request.op {
            Op::Write { remote_addr, rkey, .. } if first => Part::WriteFirst { remote_addr, rkey, total: request.len },
            Op::Write { imm, .. } if last => Part::WriteLast { imm, solicited: request.solicited },
            Op::Write { .. } => Part::WriteMiddle,
            Op::Read { remote_addr, rkey } => Part::Read { remote_addr: remote_addr.wrapping_add(offset), rkey, rest },
            _ if first => Part::SendFirst,
            Op::Send { ext } if last => Part::SendLast { ext, solicited: request.solicited },
            _ => Part::SendMiddle,
        };
        let segment = Segment {
            source: request.source,
            dest: request.dest,
            psn: request.psn.advance(done),
            packets,
            len: rest.min(u64::from(packets) * mtu),
            part,
        };
        Some((offset, Carried::Segment(segment)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rings::wqe::AtomicOp;

    fn request(op: Op, len: u64, packets: u32) -> Request {
        Request {
            token: Default::default(),
            source: Default::default(),
            dest: Default::default(),
            psn: Psn::new(0x00ff_fffe),
            packets,
            op,
            len,
            solicited: true,
            alone: true,
        }
    }

    fn pieces(request: &Request, most: u32) -> Vec<(u64, Carried)> {
        let mut cutter = Cutter::new(request);
        std::iter::from_fn(|| cutter.next(most)).collect()
    }

    /// Offset, PSN, packets and bytes of each piece.
    fn shape(pieces: &[(u64, Carried)]) -> Vec<(u64, u32, u32, u64)> {
        let shape = |(at, carried): &(u64, Carried)| match carried {
            Carried::Segment(segment) => (*at, segment.psn.get(), segment.packets, segment.len),
            Carried::Whole(request) => (*at, request.psn.get(), request.packets, request.len),
        };
        pieces.iter().map(shape).collect()
    }

    const WRITE: Op = Op::Write { remote_addr: 0x1000, rkey: Rkey(7), imm: Some(9) };

    #[test]
    fn pieces_are_whole_packets_and_make_up_the_message() {
        let request = request(WRITE, 4 * 1024 + 1, 5);
        let cut = pieces(&request, 2);
        let expected = [(0, 0x00ff_fffe, 2, 2048), (2048, 0, 2, 2048), (4096, 2, 1, 1)];
        assert_eq!(shape(&cut), expected);
        let parts: Vec<_> = cut.iter().map(|(_, carried)| carried).collect();
        let part = |n: usize| match parts[n] {
            Carried::Segment(segment) => segment.part,
            Carried::Whole(_) => panic!("a whole message"),
        };
        assert_eq!(part(0), Part::WriteFirst { remote_addr: 0x1000, rkey: Rkey(7), total: 4097 });
        assert_eq!(part(1), Part::WriteMiddle);
        assert_eq!(part(2), Part::WriteLast { imm: Some(9), solicited: true });
    }

    #[test]
    fn what_fits_goes_as_a_whole() {
        let whole = |op, len, packets, most| {
            let request = request(op, len, packets);
            assert_eq!(pieces(&request, most), [(0, Carried::Whole(request))], "{op:?} of {len} bytes");
        };
        whole(WRITE, 4097, 5, 5);
        whole(WRITE, 4097, 5, u32::MAX);
        whole(WRITE, 0, 1, 1);
        whole(WRITE, 77, 1, 0);
        whole(Op::Atomic { remote_addr: 0, rkey: Rkey(1), op: AtomicOp::FetchAdd { add: 1 } }, 8, 1, 1);
        // Nor is anything cut that has no sensible number of packets.
        whole(WRITE, 100, 7, 1);
        whole(WRITE, 100, 0, 1);
    }

    #[test]
    fn each_piece_of_a_read_stands_for_itself() {
        let cut = pieces(&request(Op::Read { remote_addr: 0x1000, rkey: Rkey(7) }, 600, 3), 1);
        assert_eq!(shape(&cut), [(0, 0x00ff_fffe, 1, 256), (256, 0x00ff_ffff, 1, 256), (512, 0, 1, 88)]);
        let rests = cut.iter().map(|(at, carried)| match carried {
            Carried::Segment(Segment { part: Part::Read { remote_addr, rest, .. }, .. }) => {
                (remote_addr - at, rest + at)
            }
            other => panic!("{other:?}"),
        });
        assert!(rests.into_iter().all(|rest| rest == (0x1000, 600)));
    }

    #[test]
    fn full_packets_have_a_path_mtu() {
        assert_eq!(full_packets(3 * 1024, 3), Some(1024));
        let none = [(0, 0), (0, 1), (255, 1), (3073, 3), (8192, 1), (768, 1), (u64::MAX, 1 << 23), (1, u32::MAX)];
        for (len, packets) in none {
            assert_eq!(full_packets(len, packets), None, "{len} bytes in {packets} packets");
        }
    }
}
