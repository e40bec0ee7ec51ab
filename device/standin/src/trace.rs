//! The trace file: one line for every command the device gets, `pid command fields -> result`.
//!
//! A line is built on the stack and appended by one write, so lines of several programs do not mix.

use crate::fresh::OWN;
use crate::{config, fd, raw};
use std::fmt::{self, Write};
use std::sync::atomic::Ordering;

/// A text that stops growing when it is full.
pub struct Text<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Text<N> {
    /// Nothing yet.
    pub const fn new() -> Text<N> {
        Text { bytes: [0; N], len: 0 }
    }

    /// What is there.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// As a string; only whole pieces are ever added.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }
}

impl<const N: usize> Write for Text<N> {
    fn write_str(&mut self, piece: &str) -> fmt::Result {
        let room = self.bytes.get_mut(self.len..self.len + piece.len()).ok_or(fmt::Error)?;
        room.copy_from_slice(piece.as_bytes());
        self.len += piece.len();
        Ok(())
    }
}

/// What a command wants to say about itself; empty unless there is a trace.
pub type Note = Text<192>;

/// Whether anybody listens.
pub fn enabled() -> bool {
    config::get().is_some_and(|config| config.trace.is_some())
}

/// Writes a line for a command.
pub fn command(name: fmt::Arguments<'_>, note: &Note, result: Result<(), i32>) {
    let Some(file) = file() else { return };
    let mut line = Text::<320>::new();
    // A full line loses its end; there is nothing better to do with the error.
    let _ = write!(line, "{} {name} ", raw::getpid());
    if !note.as_bytes().is_empty() {
        let _ = write!(line, "{} ", note.as_str());
    }
    let _ = match result {
        Ok(()) => writeln!(line, "-> ok"),
        Err(errno) => writeln!(line, "-> errno {errno}"),
    };
    raw::write(file, line.as_bytes());
}

/// The descriptor of the trace file. It is opened once and kept out of the program's reach.
fn file() -> Option<i32> {
    let path = config::get()?.trace.as_ref()?;
    let file = OWN.trace.load(Ordering::Relaxed) - 1;
    if file >= 0 {
        return Some(file);
    }
    let opened = fd::hide(raw::open_append(path.as_c_str())?);
    match OWN.trace.compare_exchange(0, opened + 1, Ordering::Relaxed, Ordering::Relaxed) {
        Ok(_) => Some(opened),
        Err(first) => {
            fd::close_hidden(opened);
            Some(first - 1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_text_keeps_whole_pieces() {
        let mut text = Text::<8>::new();
        text.write_str("12345").unwrap();
        assert!(text.write_str("6789").is_err());
        text.write_str("678").unwrap();
        assert_eq!(text.as_str(), "12345678");
    }
}
