//! Windows by bytes, and whose turn it is.

use crate::frame::Bad;
use std::collections::VecDeque;

/// The sending side of a window.
#[derive(Debug, Default)]
pub struct Lane {
    sent: u64,
    taken: u64,
}

impl Lane {
    /// Whether `bytes` more are within `window`.
    pub fn has_room(&self, bytes: u64, window: u64) -> bool {
        self.sent - self.taken + bytes <= window
    }

    /// `bytes` leave.
    pub fn send(&mut self, bytes: u64) {
        self.sent += bytes;
    }

    /// The other end says that so many, since the beginning, are out of the way.
    pub fn took(&mut self, bytes: u64) -> Result<(), Bad> {
        if !(self.taken..=self.sent).contains(&bytes) {
            return Err(Bad::Window);
        }
        self.taken = bytes;
        Ok(())
    }
}

/// The receiving side of a window.
#[derive(Debug, Default)]
pub struct Intake {
    got: u64,
    done: u64,
    reported: u64,
}

impl Intake {
    /// `bytes` have come.
    pub fn get(&mut self, bytes: u64, window: u64) -> Result<(), Bad> {
        self.got += bytes;
        if self.got - self.done > window { Err(Bad::Window) } else { Ok(()) }
    }

    /// `bytes` are out of the way. Whether the other end should hear of it: when a quarter of the window is, so that
    /// what it does not know of, and one frame more, fit into the window.
    pub fn done(&mut self, bytes: u64, window: u64) -> bool {
        self.done += bytes;
        self.done - self.reported >= window / 4
    }

    /// What to tell it.
    pub fn report(&mut self) -> u64 {
        self.reported = self.done;
        self.done
    }
}

/// Who has something to send. Each has one frame, and goes to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Requests of a stream that this end opened.
    Requests(u16),
    /// Replies on a stream that the other end opened.
    Replies(u16),
    /// Datagrams.
    Datagrams,
}

/// See [`Turn`].
pub type Ring = VecDeque<Turn>;
