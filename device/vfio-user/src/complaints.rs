//! What goes to the log, with a limit: a guest that is wrong on purpose must not fill the host's disk.
//!
//! Called by `function.rs` and `server.rs`. One line each on standard error, named by the socket.

use std::fmt::Arguments;
use std::io::Write;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lines in a `PERIOD` for one socket, however often its clients come and go.
const LIMIT: u32 = 50;
const PERIOD: Duration = Duration::from_secs(60);

/// The log of one socket.
pub struct Complaints {
    name: String,
    period: Mutex<Period>,
}

struct Period {
    end: Instant,
    left: u32,
}

/// What becomes of a line.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Printed,
    PrintedAsLast,
    Dropped,
}

/// A standard error that is closed, or full, is no reason to stop.
fn say(line: &str) {
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

impl Complaints {
    /// A log whose lines begin with `name`.
    pub fn new(name: String) -> Complaints {
        Complaints { name, period: Mutex::new(Period { end: Instant::now() + PERIOD, left: LIMIT }) }
    }

    /// A log that prints nothing, for a while.
    #[cfg(any(test, feature = "test-utils"))]
    pub fn mute() -> Complaints {
        Complaints { name: String::new(), period: Mutex::new(Period { end: Instant::now() + PERIOD, left: 0 }) }
    }

    /// Prints a line, or drops it when there were too many.
    pub fn add(&self, what: Arguments<'_>) {
        match self.fate(Instant::now()) {
            Fate::Printed => say(&format!("{}: {what}", self.name)),
            Fate::PrintedAsLast => say(&format!("{}: {what} (for a minute, further lines are not printed)", self.name)),
            Fate::Dropped => {}
        }
    }

    fn fate(&self, now: Instant) -> Fate {
        let mut period = self.period.lock().unwrap_or_else(PoisonError::into_inner);
        if now >= period.end {
            *period = Period { end: now + PERIOD, left: LIMIT };
        }
        let left = period.left;
        period.left = left.saturating_sub(1);
        match left {
            0 => Fate::Dropped,
            1 => Fate::PrintedAsLast,
            _ => Fate::Printed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_holds_for_a_minute() {
        let complaints = Complaints::new(String::new());
        let now = Instant::now();
        let fates: Vec<Fate> = (0..LIMIT + 2).map(|_| complaints.fate(now)).collect();
        assert!(fates[..49].iter().all(|fate| *fate == Fate::Printed));
        assert_eq!(fates[49..], [Fate::PrintedAsLast, Fate::Dropped, Fate::Dropped]);
        assert_eq!(complaints.fate(now + PERIOD), Fate::Printed);
    }
}
