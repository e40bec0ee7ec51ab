//! What a connection tells its caller, and asks of it.

use crate::frame::{Answer, Datagram, Ends, Gid, Hello, Reason, Segment, Way};

/// Names a request from its submission to its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token {
    /// Number of the connection.
    pub(crate) epoch: u64,
    /// Number on the wire.
    pub(crate) number: u32,
}

/// Names what is being read for the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReplyKey {
    /// Number of the connection.
    pub(crate) epoch: u64,
    /// Number of the request, never given twice.
    pub(crate) serial: u64,
    /// Its number on the wire.
    pub(crate) token: u32,
}

/// A segment that is in the caller's hands. It is given back exactly once: `Connection::answer` or `reply`. It fills
/// the window until then.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "the window stays narrower until it is given back"]
pub struct Receipt {
    pub(crate) key: ReplyKey,
    pub(crate) token: u32,
    pub(crate) stream: u16,
    /// Which opening of the stream, by this end's count: the other end may give an incarnation twice.
    pub(crate) opened: u64,
    /// Bytes of its frame, and of its payload.
    pub(crate) frame: u64,
    pub(crate) payload: u64,
    pub(crate) last: bool,
}

impl Receipt {
    /// Names the request of the segment. What it reads is asked for under this key.
    pub fn key(&self) -> ReplyKey {
        self.key
    }
}

/// Bytes that nobody answers, in the caller's hands. They are given back exactly once: `Connection::release`.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "the window stays narrower until it is given back"]
pub struct Hold {
    pub(crate) epoch: u64,
    /// Whose, if it is data that was read.
    pub(crate) stream: Option<(u16, u32)>,
    pub(crate) frame: u64,
    pub(crate) payload: u64,
}

/// What a frame brought. The bytes are those that were handed in.
#[derive(Debug, PartialEq, Eq)]
pub enum Arrival<'a> {
    /// A piece of a request. Those of a stream come in order.
    Segment {
        /// From whom and to whom.
        ends: Ends,
        /// What to do.
        segment: Segment,
        /// Its bytes.
        payload: &'a [u8],
        /// To be given back.
        receipt: Receipt,
    },
    /// A datagram.
    Datagram {
        /// All but the bytes.
        datagram: Datagram,
        /// The bytes.
        payload: &'a [u8],
        /// To be given back.
        hold: Hold,
    },
    /// What a READ or an atomic operation read, in order.
    Data {
        /// The request.
        token: Token,
        /// Where in it.
        offset: u64,
        /// The bytes.
        payload: &'a [u8],
        /// To be given back.
        hold: Hold,
    },
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The other end has greeted.
    Up(Hello),
    /// A request has ended.
    Answered(Token, Answer),
    /// A stream that was busy takes requests again.
    Room(Ends),
    /// All that were busy may try again.
    RoomForAll,
    /// Nothing more is read for it: all of it is on its way, or nobody waits.
    ReplyEnded(ReplyKey),
    /// The other end has, or has no longer, this address.
    Gid(Gid, bool),
    /// The other end goes.
    Bye(Reason),
    /// The other end has an adapter, or has none: never [`Way::Switch`]. An offer is to be replied to
    /// (`Connection::say_of_adapter`).
    Adapter(Way),
}

/// What became of a request that was submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Submitted {
    /// [`Event::Answered`] follows.
    Pending(Token),
    /// No room: [`Event::Room`] or [`Event::RoomForAll`] follows.
    Busy,
    /// Nobody is there: as if it had been answered so.
    Silence,
}

/// Where payload comes from, when its turn to be sent has come.
pub trait Source {
    /// Fills `into` with the payload of a request, from `offset` on. `false`: it cannot be read.
    fn payload(&mut self, token: Token, offset: u64, into: &mut [u8]) -> bool;

    /// Fills `into` with what a peer reads, from `offset` on. `Ok(false)`: it is not there yet, and
    /// `Connection::more` will be called when it is. An error is the answer.
    fn reply(&mut self, key: ReplyKey, offset: u64, into: &mut [u8]) -> Result<bool, Answer>;
}
