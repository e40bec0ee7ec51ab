//! What goes to the log, with a limit: a guest that is wrong on purpose must not fill the host's disk.
//!
//! Called by `function.rs` and `server.rs`. One line each on standard error, named by the socket.

use std::fmt::Arguments;

/// Complaints printed for one connection.
const LIMIT: u32 = 50;

/// The log of one connection.
pub struct Complaints {
    name: String,
    left: u32,
}

impl Complaints {
    /// A log whose lines begin with `name`.
    pub fn new(name: String) -> Complaints {
        Complaints { name, left: LIMIT }
    }

    /// Prints a line, or counts it silently when there were too many.
    pub fn add(&mut self, what: Arguments<'_>) {
        match self.left {
            0 => return,
            1 => eprintln!("{}: {what} (further messages of this guest are not printed)", self.name),
            _ => eprintln!("{}: {what}", self.name),
        }
        self.left -= 1;
    }
}
