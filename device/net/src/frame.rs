//! Frames: what two hosts say to each other, as bytes.
//!
//! A frame is a head of 16 bytes, a body whose length its kind gives, and for three kinds a payload; numbers are little
//! endian. [`decode`] believes nothing: a length is judged as soon as the head is there, before anybody makes room for
//! the rest, and a frame that comes out of it has no field out of its range. What depends on frames before it (streams,
//! tokens, windows) is judged in `connection`.
//!
//! | file | |
//! |---|---|
//! | here | what frames say |
//! | `frame/adapter.rs` | the same about the hosts' adapters |
//! | `frame/write.rs`, `frame/read.rs` | frames as bytes, and back |
//!
//! | head | |
//! |---|---|
//! | 0 | u32: bytes behind the head |
//! | 4 | u8: kind |
//! | 5 | u8: flags |
//! | 6 | u16: stream |
//! | 8 | u32: token of a request, or incarnation of a stream |
//! | 12 | u32: first PSN (24 bits) and operation (8 bits) of a segment |

mod adapter;
mod read;
mod write;

pub use adapter::{Card, Refusal, Way};
pub use read::{decode, length};
use thiserror::Error;
pub use write::{begin_data, begin_segment};

/// Port address, 16 bytes in network order.
pub type Gid = [u8; 16];

/// Bytes of a head.
pub const HEAD: usize = 16;
/// Most payload bytes of one frame. A small message waits behind at most one of these of each other QP.
pub const SEGMENT: usize = 256 * 1024;
/// Longest message (IBA vol. 1, 9.7.4: 2^31 bytes).
pub const MESSAGE: u64 = 1 << 31;
/// Most payload of a datagram: one packet of the largest MTU.
pub const DATAGRAM: usize = 4096;
/// Longest body in front of a payload.
const BODY: usize = SEGMENT_BODY;
/// Longest frame.
pub const FRAME: usize = HEAD + BODY + SEGMENT;

/// The version spoken here.
pub const VERSION: u16 = 1;
const MAGIC: [u8; 8] = *b"pvrdma-n";

const HELLO_BODY: usize = 8 + 2 + 2 + 2 + 2 + 16 + 8 + 8 + 4 + 2 + 2;
const ENDS_BODY: usize = 16 + 16 + 4 + 4;
const SEGMENT_BODY: usize = 8 + 4 + 4 + 8 + 8 + 4 + 4 + 8 + 8;
const DATAGRAM_BODY: usize = ENDS_BODY + 4 + 4 + 40;
/// What is in front of a datagram's payload.
pub const DATAGRAM_HEAD: usize = HEAD + DATAGRAM_BODY;
const ANSWER_BODY: usize = 2;
const DATA_BODY: usize = 8;
const COUNT_BODY: usize = 8;
const GID_BODY: usize = 17;
const BYE_BODY: usize = 1;
const ADAPTER_BODY: usize = 1 + 1 + 1 + 1 + 2 + 2 + 16 + 4 + 4 + 4 + 4 + 8;

mod kind {
    pub const HELLO: u8 = 1;
    pub const STREAM: u8 = 2;
    pub const SEGMENT: u8 = 3;
    pub const DATAGRAM: u8 = 4;
    pub const ANSWER: u8 = 5;
    pub const DATA: u8 = 6;
    pub const CANCEL: u8 = 7;
    pub const TAKEN: u8 = 8;
    pub const CREDIT: u8 = 9;
    pub const PING: u8 = 10;
    pub const PONG: u8 = 11;
    pub const GID: u8 = 12;
    pub const BYE: u8 = 13;
    pub const ADAPTER: u8 = 14;
}

mod flag {
    pub const FIRST: u8 = 1;
    pub const LAST: u8 = 2;
    pub const SOLICITED: u8 = 4;
    pub const IMM: u8 = 8;
    pub const INV: u8 = 16;
    /// Of the data that comes back, not of requests.
    pub const BACK: u8 = 32;
}

/// What an end says of itself in its greeting.
mod can {
    /// It knows frames about adapters.
    pub const ADAPTERS: u16 = 1;
}

mod op {
    pub const SEND: u8 = 1;
    pub const WRITE: u8 = 2;
    pub const READ: u8 = 3;
    pub const COMPARE_SWAP: u8 = 4;
    pub const FETCH_ADD: u8 = 5;
}

/// What is wrong with bytes, or with a frame where it stands. The connection ends with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Bad {
    #[error("a frame of kind {0}, which this version does not know")]
    Kind(u8),
    #[error("a frame of {len} bytes, which kind {kind} cannot have")]
    Length { kind: u8, len: u32 },
    #[error("flags that kind {0} does not have")]
    Flags(u8),
    #[error("field {0} is out of its range")]
    Field(&'static str),
    #[error("no greeting of this protocol")]
    Magic,
    #[error("versions {0} to {1}; this end speaks {VERSION}")]
    Version(u16, u16),
    #[error("the first frame is no greeting, or a later one is")]
    Greeting,
    #[error("it says it is host {says}, and is {is}")]
    Host { says: u16, is: u16 },
    #[error("stream {0} is not open, or still in use")]
    Stream(u16),
    #[error("token {0} is not one that may be named here")]
    Token(u32),
    #[error("segments that do not follow each other")]
    Order,
    #[error("more than the window allows")]
    Window,
    #[error("more requests, streams or addresses than agreed on")]
    TooMany,
    #[error("an address of another host")]
    NotItsGid,
    #[error("out of turn about adapters, or behind the change to them")]
    Adapter,
    #[error("no greeting in time")]
    TooSlow,
}

/// Both ends of a stream of requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Ends {
    pub source_gid: Gid,
    pub source_qpn: u32,
    pub dest_gid: Gid,
    pub dest_qpn: u32,
}

/// What the responder is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "fields carry the names of the IBA headers")]
pub enum Op {
    Send { ext: Ext },
    Write { remote_addr: u64, rkey: u32, imm: Option<u32> },
    Read { remote_addr: u64, rkey: u32 },
    CompareSwap { remote_addr: u64, rkey: u32, compare: u64, swap: u64 },
    FetchAdd { remote_addr: u64, rkey: u32, add: u64 },
}

/// What a SEND carries beside its payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Ext {
    #[default]
    None,
    Imm(u32),
    Invalidate(u32),
}

impl Op {
    /// Whether data comes back instead of going along.
    pub fn reads(&self) -> bool {
        matches!(self, Op::Read { .. } | Op::CompareSwap { .. } | Op::FetchAdd { .. })
    }

    /// Whether the answer is the former value of a word.
    pub fn atomic(&self) -> bool {
        matches!(self, Op::CompareSwap { .. } | Op::FetchAdd { .. })
    }
}

/// A request as its requester sees it: a whole message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// What to do.
    pub op: Op,
    /// First packet sequence number.
    pub psn: u32,
    /// Packets, from `psn` on.
    pub packets: u32,
    /// Bytes that go along, or come back.
    pub len: u64,
    /// Solicited event wanted.
    pub solicited: bool,
}

impl Message {
    /// Whether it can be said in frames.
    pub fn is_sound(&self) -> bool {
        self.psn < 1 << 24
            && (1..1 << 24).contains(&self.packets)
            && self.len <= MESSAGE
            && (!self.op.atomic() || self.len == 8)
    }
}

/// A piece of a message, with all of its head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The message it is of.
    pub message: Message,
    /// Where in the message.
    pub offset: u64,
    /// Payload bytes of this piece; 0 where data comes back.
    pub len: u32,
}

impl Segment {
    /// The message begins here.
    pub fn first(&self) -> bool {
        self.offset == 0
    }

    /// Nothing of the message follows.
    pub fn last(&self) -> bool {
        self.message.op.reads() || self.offset + u64::from(self.len) == self.message.len
    }
}

/// A datagram, but for its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "fields carry the names of the IBA headers")]
pub struct Datagram {
    pub ends: Ends,
    pub qkey: u32,
    pub imm: Option<u32>,
    pub solicited: bool,
    pub grh: [u8; 40],
}

/// A responder's answer to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Done.
    Ack,
    /// No receive: again after the time of this code (5 bits).
    Rnr(u8),
    /// Refused, with IBA's NAK code (5 bits).
    Nak(u8),
    /// The requester's own memory could not be read or written.
    RequesterFault,
    /// Nobody answers, or nobody knows.
    Silence,
}

/// What an end says of itself, first of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Versions it speaks, the lowest and the highest.
    pub versions: (u16, u16),
    /// Its number.
    pub host: u16,
    /// Another one after each start.
    pub boot: [u8; 16],
    /// Bytes of segments, data and datagrams that it takes before it says CREDIT.
    pub window: u64,
    /// The same for each direction of a stream, before it says TAKEN.
    pub lane: u64,
    /// Requests that it keeps.
    pub requests: u32,
    /// Streams that it keeps.
    pub streams: u16,
    /// Addresses that it keeps.
    pub gids: u16,
    /// It knows frames about adapters ([`Way`]); earlier releases do not.
    pub adapters: bool,
}

/// Why a connection ends in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The host stops.
    Stopping,
    /// The other end broke the protocol.
    Protocol,
}

/// Any frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// The first of each direction.
    Hello(Hello),
    /// From now on `stream` means these ends. `incarnation` tells who had the number before.
    Stream {
        /// Number, of the sender's choice.
        stream: u16,
        /// How often the number was given.
        incarnation: u32,
        /// Whose.
        ends: Ends,
    },
    /// A piece of a request.
    Segment {
        /// Whose.
        stream: u16,
        /// Names the request until its answer.
        token: u32,
        /// What to do.
        segment: Segment,
        /// Its bytes.
        payload: &'a [u8],
    },
    /// A datagram: nobody answers it.
    Datagram {
        /// All but the bytes.
        datagram: Datagram,
        /// The bytes.
        payload: &'a [u8],
    },
    /// The end of a request.
    Answer {
        /// Which.
        token: u32,
        /// How.
        answer: Answer,
    },
    /// What a READ or an atomic operation reads.
    Data {
        /// The request.
        token: u32,
        /// Where in it.
        offset: u64,
        /// The bytes.
        payload: &'a [u8],
    },
    /// No more segments of this request follow, and nobody waits for what it reads. It is answered all the same.
    Cancel {
        /// Which.
        token: u32,
    },
    /// So many bytes of a stream, since it was opened, are out of the way.
    Taken {
        /// Which.
        stream: u16,
        /// Which of its name.
        incarnation: u32,
        /// The sender opened it: these are bytes that came back.
        back: bool,
        /// Bytes.
        bytes: u64,
    },
    /// So many bytes of the connection are out of the way.
    Credit {
        /// Bytes.
        bytes: u64,
    },
    /// Are you there?
    Ping {
        /// Comes back.
        stamp: u64,
    },
    /// Yes.
    Pong {
        /// What came.
        stamp: u64,
    },
    /// The sender has, or has no longer, this address.
    Gid {
        /// The address.
        gid: Gid,
        /// Whether it has it.
        bound: bool,
    },
    /// The connection ends in order.
    Bye(Reason),
    /// About the hosts' adapters.
    Adapter(Way),
}

#[cfg(test)]
mod tests {
    use super::read::shape;
    use super::*;
    use crate::testing::{Rng, random_frame};

    fn bytes(frame: &Frame<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        frame.encode(&mut out);
        out
    }

    #[test]
    fn what_was_written_is_read() {
        let mut rng = Rng::new(1);
        let payload = rng.bytes(DATAGRAM);
        for _ in 0..20_000 {
            let frame = random_frame(&mut rng, &payload);
            let bytes = bytes(&frame);
            assert_eq!(decode(&bytes), Ok(Some((frame, bytes.len()))));
        }
    }

    #[test]
    fn the_longest_frame_is_as_long_as_said() {
        let payload = vec![7; SEGMENT];
        let message = Message { op: Op::Send { ext: Ext::None }, psn: 0, packets: 64, len: 1 << 20, solicited: false };
        let segment = Segment { message, offset: 0, len: SEGMENT as u32 };
        let frame = Frame::Segment { stream: 0, token: 0, segment, payload: &payload };
        let bytes = bytes(&frame);
        assert_eq!(bytes.len(), FRAME);
        assert_eq!(decode(&bytes), Ok(Some((frame, FRAME))));
    }

    /// A frame that is cut anywhere is one that is not there yet, never another one.
    #[test]
    fn a_cut_frame_is_awaited() {
        let mut rng = Rng::new(2);
        let payload = rng.bytes(100);
        for _ in 0..500 {
            let bytes = bytes(&random_frame(&mut rng, &payload));
            for cut in 0..bytes.len() {
                assert_eq!(decode(&bytes[..cut]), Ok(None), "{cut} of {bytes:?}");
            }
        }
    }

    #[test]
    fn a_length_is_refused_when_the_head_is_there() {
        for kind in 0..=255u8 {
            let mut head = [0; HEAD];
            head[..4].copy_from_slice(&u32::MAX.to_le_bytes());
            head[4] = kind;
            let (body, payload, _) = match shape(kind) {
                Ok(shape) => shape,
                Err(bad) => {
                    assert_eq!((bad, length(&head)), (Bad::Kind(kind), Err(Bad::Kind(kind))));
                    continue;
                }
            };
            assert_eq!(length(&head), Err(Bad::Length { kind, len: u32::MAX }));
            for len in [body.wrapping_sub(1), body + payload + 1] {
                head[..4].copy_from_slice(&(len as u32).to_le_bytes());
                assert!(length(&head).is_err(), "kind {kind}, {len} bytes");
            }
            head[..4].copy_from_slice(&(body as u32).to_le_bytes());
            assert_eq!(length(&head), Ok(Some(HEAD + body)));
            head[5] = 0x80;
            assert_eq!(length(&head), Err(Bad::Flags(kind)));
        }
    }

    /// Whatever a byte is changed to, there is an error or a frame that is written as it was read.
    #[test]
    fn changed_bytes_make_no_frame_that_cannot_be_said() {
        let mut rng = Rng::new(3);
        let payload = rng.bytes(64);
        let (mut good, mut refused) = (0, 0);
        for _ in 0..20_000 {
            let mut changed = bytes(&random_frame(&mut rng, &payload));
            let at = rng.below(changed.len() as u64) as usize;
            changed[at] ^= 1 << rng.below(8);
            match decode(&changed) {
                Ok(Some((frame, len))) => {
                    let again = bytes(&frame);
                    assert_eq!(decode(&again), Ok(Some((frame, again.len()))));
                    assert_eq!(again.len(), len);
                    good += 1;
                }
                Ok(None) => {}
                Err(_) => refused += 1,
            }
        }
        assert!(good > 1000 && refused > 1000, "{good} good, {refused} refused");
    }

    #[test]
    fn hostile_segments_are_refused() {
        let message = Message {
            op: Op::Write { remote_addr: 1, rkey: 2, imm: None },
            psn: 5,
            packets: 1,
            len: 8,
            solicited: false,
        };
        let segment = Segment { message, offset: 0, len: 8 };
        let good = bytes(&Frame::Segment { stream: 1, token: 2, segment, payload: &[9; 8] });
        assert!(decode(&good).is_ok());
        // Place, bytes, what is wrong.
        let changes: &[(usize, &[u8], Bad)] = &[
            (5, &[flag::FIRST], Bad::Field("first or last")),
            (5, &[flag::LAST], Bad::Field("first or last")),
            (5, &[flag::FIRST | flag::LAST | flag::INV], Bad::Flags(kind::SEGMENT)),
            (15, &[9], Bad::Field("operation")),
            (15, &[op::READ], Bad::Field("offset")),
            (HEAD + 16, &u64::MAX.to_le_bytes(), Bad::Field("message")),
            (HEAD + 24, &u64::MAX.to_le_bytes(), Bad::Field("offset")),
            (HEAD + 24, &4u64.to_le_bytes(), Bad::Field("offset")),
            (HEAD + 32, &0u32.to_le_bytes(), Bad::Field("message")),
            (HEAD + 36, &1u32.to_le_bytes(), Bad::Field("message")),
        ];
        for (at, value, bad) in changes {
            let mut bytes = good.clone();
            bytes[*at..][..value.len()].copy_from_slice(value);
            assert_eq!(decode(&bytes), Err(*bad), "byte {at}");
        }
    }

    #[test]
    fn another_version_is_refused_and_a_range_with_ours_is_not() {
        let mut rng = Rng::new(4);
        let mut hello = crate::testing::random_hello(&mut rng);
        for (versions, good) in [((1, 1), true), ((1, 9), true), ((2, 9), false), ((0, 0), false), ((3, 1), false)] {
            hello.versions = versions;
            assert_eq!(decode(&bytes(&Frame::Hello(hello))).is_ok(), good, "{versions:?}");
        }
    }
}
