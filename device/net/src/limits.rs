//! How much a connection holds, and how long it waits.

use crate::frame::{DATAGRAM, FRAME, SEGMENT};
use std::time::Duration;

/// What one connection may hold. Both ends state theirs in the greeting; each keeps to the smaller of the two, and
/// ends a connection whose other end does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of frames with payload in the caller's hands, or on their way here.
    pub window: u64,
    /// The same for one direction of a stream, payload alone: a slow QP takes no more of the window.
    pub lane: u64,
    /// Requests without an answer, of one stream.
    pub per_stream: u32,
    /// The same, of all streams.
    pub requests: u32,
    /// Streams in each direction.
    pub streams: u16,
    /// Addresses of the other end.
    pub gids: u16,
    /// Bytes of datagrams that wait to be sent.
    pub datagrams: usize,
}

/// Bytes of the window of a connection, if nobody says otherwise.
pub const WINDOW: u64 = 4 << 20;

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            window: WINDOW,
            lane: 1 << 20,
            per_stream: 32,
            requests: 65_536,
            streams: 16_384,
            gids: 4_096,
            datagrams: 1024 * DATAGRAM,
        }
    }
}

impl Limits {
    /// Bytes of tables and queues for a request, and for a stream.
    pub const OF_A_REQUEST: usize = 448;
    /// See `OF_A_REQUEST`.
    pub const OF_A_STREAM: usize = 640;

    /// What a connection with these limits holds at most, whatever its other end does: the window and a frame that is
    /// not all there, datagrams, and what is kept of each request, stream and address in both directions, with hash
    /// tables half full.
    pub fn budget(&self) -> u64 {
        let requests = u64::from(self.requests) * 2 * Self::OF_A_REQUEST as u64;
        let streams = u64::from(self.streams) * 2 * Self::OF_A_STREAM as u64;
        let kept = requests + streams + u64::from(self.gids) * 128;
        self.window + FRAME as u64 + self.datagrams as u64 + kept
    }

    /// What datagrams may take of a window: nobody else's frames wait for those that have no room at their targets.
    pub const fn of_datagrams(window: u64) -> u64 {
        window - window / 4
    }

    /// A lane takes at least two segments, and the window at least two frames: less would stand still.
    pub fn are_sound(&self) -> bool {
        self.window >= 2 * FRAME as u64
            && self.lane >= 2 * FRAME as u64
            && self.per_stream > 0
            && self.requests > 0
            && self.streams > 0
            && self.datagrams >= DATAGRAM
            && SEGMENT < FRAME
    }
}

/// How long a connection waits. TCP's own ways to find a dead peer take seconds, and a QP's timer ends in half of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// From one ping to the next, while an answer is awaited.
    pub ping: Duration,
    /// Without a byte, while an answer is awaited: requests are answered by silence.
    pub silence: Duration,
    /// The same: the connection ends.
    pub close: Duration,
    /// For the answer to a ping: bytes that come, and never finish a frame, are no life.
    pub pong: Duration,
    /// Without a byte, while nothing is awaited: a ping.
    pub idle: Duration,
    /// For a greeting.
    pub greeting: Duration,
    /// Until the first try to dial again; each further one takes twice as long as the one before.
    pub redial: Duration,
    /// Until any try to dial again.
    pub redial_at_most: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        let ms = Duration::from_millis;
        Patience {
            ping: ms(100),
            silence: ms(300),
            close: ms(1000),
            pong: ms(10_000),
            idle: ms(5000),
            greeting: ms(2000),
            redial: ms(100),
            redial_at_most: ms(2000),
        }
    }
}
