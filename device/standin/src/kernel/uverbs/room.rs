//! Room for an answer, in the program's memory: both forms of commands have it.

use super::{Errno, Result};
use crate::support::raw;

/// See the module text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    pub at: u64,
    pub len: usize,
}

impl Room {
    /// Writes the answer, cut to the room.
    pub fn put(self, bytes: &[u8]) -> Result<()> {
        raw::copy_out(self.at, &bytes[..bytes.len().min(self.len)]).map_err(Errno)
    }
}
