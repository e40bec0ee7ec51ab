//! Lines on standard error, few of them however often something happens.

use std::collections::HashMap;
use std::fmt::Arguments;
use std::io::{self, Write};
use std::time::{Duration, Instant};

/// How often one kind of line is written at most.
const EVERY: Duration = Duration::from_secs(60);

/// What was said, and when.
#[derive(Default)]
pub struct Log {
    said: HashMap<&'static str, (Instant, u64)>,
}

impl Log {
    /// A line. Whoever read them may be gone.
    pub fn line(&self, text: Arguments<'_>) {
        let _ = writeln!(io::stderr(), "pvrdma link: {text}");
    }

    /// A line of a kind that anybody out there can cause: once a minute.
    pub fn once(&mut self, kind: &'static str, text: Arguments<'_>) {
        let now = Instant::now();
        match self.said.get_mut(kind) {
            Some((at, more)) if now.duration_since(*at) < EVERY => *more += 1,
            Some((at, more)) => {
                let silent = std::mem::take(more);
                *at = now;
                match silent {
                    0 => self.line(text),
                    more => self.line(format_args!("{text} (and {more} more like this)")),
                }
            }
            None => {
                self.said.insert(kind, (now, 0));
                self.line(text);
            }
        }
    }
}
