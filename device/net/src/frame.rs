//! Frames: what two hosts say to each other, as bytes.
//!
//! A frame is a head of 16 bytes, a body whose length its kind gives, and for three kinds a payload; numbers are little
//! endian. [`decode`] believes nothing: a length is judged as soon as the head is there, before anybody makes room for
//! the rest, and a frame that comes out of it has no field out of its range. What depends on frames before it (streams,
//! tokens, windows) is judged in `connection`.
//!
//! | head | |
//! |---|---|
//! | 0 | u32: bytes behind the head |
//! | 4 | u8: kind |
//! | 5 | u8: flags |
//! | 6 | u16: stream |
//! | 8 | u32: token of a request, or incarnation of a stream |
//! | 12 | u32: first PSN (24 bits) and operation (8 bits) of a segment |

use thiserror::Error;

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

/// What must be known of a host's RDMA adapter to write into its ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Card {
    /// Kind of network: 1 InfiniBand, 2 RoCE v1, 3 RoCE v2.
    pub link: u8,
    /// Largest packet, as verbs count it: 1 to 5.
    pub mtu: u8,
    /// Local identifier, of InfiniBand.
    pub lid: u16,
    /// Address.
    pub gid: Gid,
    /// Number of the QP.
    pub qpn: u32,
    /// Of the first packet that it sends.
    pub psn: u32,
    /// Key of the ring.
    pub rkey: u32,
    /// Bytes of the ring, a power of two.
    pub len: u32,
    /// Address of the ring.
    pub addr: u64,
}

impl Card {
    /// Rings that may be named.
    const RINGS: std::ops::RangeInclusive<u32> = 64 << 10..=1 << 30;

    fn is_sound(&self) -> bool {
        let ring = Card::RINGS.contains(&self.len) && self.len.is_power_of_two();
        let numbers = self.qpn < 1 << 24 && self.psn < 1 << 24;
        (1..=3).contains(&self.link) && (1..=5).contains(&self.mtu) && ring && numbers
    }
}

/// Why a host's adapter is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Refusal {
    #[error("was not told to use one (--hca)")]
    Unwanted,
    #[error("has none")]
    Missing,
    #[error("has none whose port is active")]
    Inactive,
    #[error("cannot open its adapter")]
    Failed,
    #[error("has one on another kind of network")]
    Kind,
    #[error("has one that does not reach the other")]
    Unreachable,
    #[error("does not try again so soon")]
    Soon,
}

impl Refusal {
    const ALL: [Refusal; 7] = [
        Refusal::Unwanted,
        Refusal::Missing,
        Refusal::Inactive,
        Refusal::Failed,
        Refusal::Kind,
        Refusal::Unreachable,
        Refusal::Soon,
    ];
}

/// What hosts say about the way of their frames: over the connection, or over their adapters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Here is mine.
    Offer(Card),
    /// None, or no longer.
    Refuse(Refusal),
    /// All that the sender sends from now on goes over its adapter.
    Switch,
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

// ---- writing -----------------------------------------------------------------------------------------------------

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

// ---- reading -----------------------------------------------------------------------------------------------------

/// Bytes that are read from the front. They were counted before: `decode` has judged the length.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (now, rest) = self.0.split_first_chunk().expect("a body has the length that its kind gives");
        self.0 = rest;
        *now
    }

    fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.take())
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    fn ends(&mut self) -> Result<Ends, Bad> {
        let (source_gid, dest_gid) = (self.take(), self.take());
        let ends = Ends { source_gid, dest_gid, source_qpn: self.u32(), dest_qpn: self.u32() };
        fits(ends.source_qpn < 1 << 24 && ends.dest_qpn < 1 << 24, "qpn")?;
        Ok(ends)
    }
}

fn fits(holds: bool, field: &'static str) -> Result<(), Bad> {
    if holds { Ok(()) } else { Err(Bad::Field(field)) }
}

/// Body, most payload and flags of a kind.
fn shape(kind: u8) -> Result<(usize, usize, u8), Bad> {
    Ok(match kind {
        kind::HELLO => (HELLO_BODY, 0, 0),
        kind::STREAM => (ENDS_BODY, 0, 0),
        kind::SEGMENT => (SEGMENT_BODY, SEGMENT, flag::FIRST | flag::LAST | flag::SOLICITED | flag::IMM | flag::INV),
        kind::DATAGRAM => (DATAGRAM_BODY, DATAGRAM, flag::SOLICITED | flag::IMM),
        kind::ANSWER => (ANSWER_BODY, 0, 0),
        kind::DATA => (DATA_BODY, SEGMENT, 0),
        kind::CANCEL => (0, 0, 0),
        kind::TAKEN => (COUNT_BODY, 0, flag::BACK),
        kind::CREDIT | kind::PING | kind::PONG => (COUNT_BODY, 0, 0),
        kind::GID => (GID_BODY, 0, 0),
        kind::BYE => (BYE_BODY, 0, 0),
        kind::ADAPTER => (ADAPTER_BODY, 0, 0),
        _ => return Err(Bad::Kind(kind)),
    })
}

/// How long the frame at the front of `bytes` is; `None` while its head is not there.
pub fn length(bytes: &[u8]) -> Result<Option<usize>, Bad> {
    let Some(head) = bytes.first_chunk::<HEAD>() else { return Ok(None) };
    let mut reader = Reader(head);
    let (len, kind, flags) = (reader.u32(), reader.u8(), reader.u8());
    let (body, payload, allowed) = shape(kind)?;
    let behind = len as usize;
    if behind < body || behind > body + payload {
        return Err(Bad::Length { kind, len });
    }
    if flags & !allowed != 0 {
        return Err(Bad::Flags(kind));
    }
    Ok(Some(HEAD + behind))
}

/// The frame at the front of `bytes` and its length; `None` while it is not all there.
pub fn decode(bytes: &[u8]) -> Result<Option<(Frame<'_>, usize)>, Bad> {
    let Some(len) = length(bytes)? else { return Ok(None) };
    if bytes.len() < len {
        return Ok(None);
    }
    let mut reader = Reader(&bytes[4..len]);
    let (kind, flags, stream, token, word) = (reader.u8(), reader.u8(), reader.u16(), reader.u32(), reader.u32());
    let frame = match kind {
        kind::HELLO => Frame::Hello(hello(&mut reader)?),
        kind::STREAM => Frame::Stream { stream, incarnation: token, ends: reader.ends()? },
        kind::SEGMENT => {
            let segment = segment(&mut reader, flags, word)?;
            Frame::Segment { stream, token, segment, payload: reader.0 }
        }
        kind::DATAGRAM => {
            let ends = reader.ends()?;
            let (qkey, imm, grh) = (reader.u32(), reader.u32(), reader.take());
            let imm = (flags & flag::IMM != 0).then_some(imm);
            let datagram = Datagram { ends, qkey, imm, solicited: flags & flag::SOLICITED != 0, grh };
            Frame::Datagram { datagram, payload: reader.0 }
        }
        kind::ANSWER => {
            let answer = match (reader.u8(), reader.u8()) {
                (0, 0) => Answer::Ack,
                (1, code @ 0..32) => Answer::Rnr(code),
                (2, code @ 0..32) => Answer::Nak(code),
                (3, 0) => Answer::RequesterFault,
                (4, 0) => Answer::Silence,
                _ => return Err(Bad::Field("answer")),
            };
            Frame::Answer { token, answer }
        }
        kind::DATA => {
            let offset = reader.u64();
            fits(offset <= MESSAGE && !reader.0.is_empty(), "data")?;
            Frame::Data { token, offset, payload: reader.0 }
        }
        kind::CANCEL => Frame::Cancel { token },
        kind::TAKEN => Frame::Taken { stream, incarnation: token, back: flags & flag::BACK != 0, bytes: reader.u64() },
        kind::CREDIT => Frame::Credit { bytes: reader.u64() },
        kind::PING => Frame::Ping { stamp: reader.u64() },
        kind::PONG => Frame::Pong { stamp: reader.u64() },
        kind::GID => {
            let (gid, bound) = (reader.take(), reader.u8());
            fits(bound < 2, "bound")?;
            Frame::Gid { gid, bound: bound == 1 }
        }
        kind::BYE => Frame::Bye(match reader.u8() {
            0 => Reason::Stopping,
            1 => Reason::Protocol,
            _ => return Err(Bad::Field("reason")),
        }),
        kind::ADAPTER => Frame::Adapter(way(&mut reader)?),
        _ => return Err(Bad::Kind(kind)),
    };
    Ok(Some((frame, len)))
}

fn hello(reader: &mut Reader<'_>) -> Result<Hello, Bad> {
    if reader.take() != MAGIC {
        return Err(Bad::Magic);
    }
    let versions = (reader.u16(), reader.u16());
    if !(versions.0..=versions.1).contains(&VERSION) {
        return Err(Bad::Version(versions.0, versions.1));
    }
    let host = reader.u16();
    // With room for what a later version of this end says; one that does not know it does not ask.
    let can = reader.u16();
    let hello = Hello {
        versions,
        host,
        boot: reader.take(),
        window: reader.u64(),
        lane: reader.u64(),
        requests: reader.u32(),
        streams: reader.u16(),
        gids: reader.u16(),
        adapters: can & can::ADAPTERS != 0,
    };
    // A window that one segment does not fit into would stand still for ever.
    fits(hello.window >= 2 * FRAME as u64 && hello.lane >= 2 * FRAME as u64, "window")?;
    fits(hello.requests > 0 && hello.streams > 0, "limits")?;
    Ok(hello)
}

fn way(reader: &mut Reader<'_>) -> Result<Way, Bad> {
    let (what, link, mtu, _) = (reader.u8(), reader.u8(), reader.u8(), reader.u8());
    match what {
        0 => {
            let lid = reader.u16();
            reader.u16();
            let gid = reader.take();
            let (qpn, psn, rkey, len) = (reader.u32(), reader.u32(), reader.u32(), reader.u32());
            let card = Card { link, mtu, lid, gid, qpn, psn, rkey, len, addr: reader.u64() };
            fits(card.is_sound(), "card")?;
            Ok(Way::Offer(card))
        }
        1 => Refusal::ALL.get(usize::from(link)).copied().map(Way::Refuse).ok_or(Bad::Field("refusal")),
        2 => Ok(Way::Switch),
        _ => Err(Bad::Field("way")),
    }
}

fn segment(reader: &mut Reader<'_>, flags: u8, word: u32) -> Result<Segment, Bad> {
    let (remote_addr, rkey, extra) = (reader.u64(), reader.u32(), reader.u32());
    let (len, offset, packets, reserved) = (reader.u64(), reader.u64(), reader.u32(), reader.u32());
    let (first, second) = (reader.u64(), reader.u64());
    let (imm, inv) = (flags & flag::IMM != 0, flags & flag::INV != 0);
    let imm_value = imm.then_some(extra);
    let op = match (word >> 24) as u8 {
        op::SEND if imm && inv => return Err(Bad::Flags(kind::SEGMENT)),
        op::SEND if imm => Op::Send { ext: Ext::Imm(extra) },
        op::SEND if inv => Op::Send { ext: Ext::Invalidate(extra) },
        op::SEND => Op::Send { ext: Ext::None },
        _ if inv => return Err(Bad::Flags(kind::SEGMENT)),
        op::WRITE => Op::Write { remote_addr, rkey, imm: imm_value },
        _ if imm => return Err(Bad::Flags(kind::SEGMENT)),
        op::READ => Op::Read { remote_addr, rkey },
        op::COMPARE_SWAP => Op::CompareSwap { remote_addr, rkey, compare: first, swap: second },
        op::FETCH_ADD => Op::FetchAdd { remote_addr, rkey, add: first },
        _ => return Err(Bad::Field("operation")),
    };
    let solicited = flags & flag::SOLICITED != 0;
    let message = Message { op, psn: word & 0x00ff_ffff, packets, len, solicited };
    fits(message.is_sound() && reserved == 0, "message")?;
    let here = reader.0.len() as u64;
    let within = match op.reads() {
        true => here == 0 && offset == 0,
        // Only a message without bytes has a segment without any.
        false => offset <= len && here <= len - offset && (here > 0 || len == 0),
    };
    fits(within, "offset")?;
    let segment = Segment { message, offset, len: here as u32 };
    let said = (flags & flag::FIRST != 0, flags & flag::LAST != 0);
    fits(said == (segment.first(), segment.last()), "first or last")?;
    Ok(segment)
}

#[cfg(test)]
mod tests {
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
