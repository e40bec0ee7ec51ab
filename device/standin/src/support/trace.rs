//! The trace file: one line for every command the device gets, every doorbell and every completion, each with process
//! and thread, in the words of the core's `trace`. `device/README.md` shows them.
//!
//! A line is built on the stack and appended by one write, so lines of several programs do not mix. Callers ask
//! `enabled` first: without a trace that one branch is all it costs. Nothing here is inlined: a doorbell runs on the
//! program's stack, which may be the smallest that a thread can have.

use crate::support::fresh::{OWN, Polls};
use crate::support::{config, raw};
use pvrdma_device::doorbell::Doorbell;
use pvrdma_device::handle::{CqHandle, Gid, QpHandle};
use pvrdma_device::interrupt::AsyncEvent;
use pvrdma_device::rings::cqe::Completion;
use pvrdma_device::trace::{CompletionText, DoorbellText, EventText, FiredText, PathText};
use pvrdma_device::transport::Path;
use std::ffi::c_int;
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

    /// Ends a line, even a full one.
    fn end(&mut self) {
        self.len = self.len.min(N - 1);
        self.bytes[self.len] = b'\n';
        self.len += 1;
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

/// What the user is told when the file can grow no more.
const ENDED: &[u8] =
    b"pvrdma: the trace ends here: the disk is full, or files of this program may not be longer (ulimit -f)\n";

/// What a command wants to say about itself; empty unless there is a trace.
pub type Note = Text<192>;

/// Whether anybody listens.
pub fn enabled() -> bool {
    config::get().is_some_and(|config| config.trace.is_some())
}

/// Writes a line for a command.
#[cold]
#[inline(never)]
pub fn command(name: fmt::Arguments<'_>, note: &Note, result: Result<(), i32>) {
    let space = if note.as_bytes().is_empty() { "" } else { " " };
    match result {
        Ok(()) => line(format_args!("{name}{space}{} -> ok", note.as_str())),
        Err(errno) => line(format_args!("{name}{space}{} -> errno {errno}", note.as_str())),
    }
}

/// Writes a line for a doorbell. A program that spins polls a million times: of POLLs in a row for one CQ the first is
/// written, and how many followed when something else is.
#[cold]
#[inline(never)]
pub fn doorbell(doorbell: Doorbell) {
    match doorbell {
        Doorbell::Cq { cq, arm: None, .. } => {
            if !OWN.polls.repeats(cq.0) {
                line(format_args!("{}", DoorbellText(doorbell)));
                OWN.polls.begin(cq.0);
            }
        }
        _ => line(format_args!("{}", DoorbellText(doorbell))),
    }
}

/// Writes a line for a completion.
#[cold]
#[inline(never)]
pub fn completed(cq: CqHandle, completion: &Completion) {
    line(format_args!("{}", CompletionText(cq, completion)));
}

/// Writes a line for a CQ that fired.
#[cold]
#[inline(never)]
pub fn fired(cq: CqHandle) {
    line(format_args!("{}", FiredText(cq)));
}

/// Writes a line for an asynchronous event.
#[cold]
#[inline(never)]
pub fn async_event(event: AsyncEvent) {
    line(format_args!("{}", EventText(event)));
}

/// Writes a line for the way from a QP to a peer.
#[cold]
#[inline(never)]
pub fn path(qp: QpHandle, peer: &Gid, path: Path) {
    line(format_args!("{}", PathText(qp, peer, path)));
}

/// Writes one line, after the count of POLLs that were not written.
#[cold]
#[inline(never)]
pub fn line(text: fmt::Arguments<'_>) {
    if let Some((cq, count)) = OWN.polls.end() {
        append(format_args!("CQ {cq} POLL, {count} more"));
    }
    append(text);
}

#[inline(never)]
fn append(text: fmt::Arguments<'_>) {
    let Some(file) = file() else { return };
    let mut line = Text::<320>::new();
    // SAFETY: no arguments.
    let thread = unsafe { raw::syscall!(SYS_gettid) };
    // A full line loses its end; there is nothing better to do with the error.
    let _ = write!(line, "{}/{thread} ", raw::getpid());
    let _ = line.write_fmt(text);
    line.end();
    if raw::append(file, line.as_bytes()) < 0 && matches!(raw::errno(), libc::EFBIG | libc::ENOSPC | libc::EDQUOT) {
        // For good: a trace with holes tells what is not so.
        OWN.trace.store(-1, Ordering::Relaxed);
        raw::append(libc::STDERR_FILENO, ENDED);
    }
}

impl Polls {
    fn begin(&self, cq: u32) {
        self.cq.store(cq + 1, Ordering::Relaxed);
    }

    fn repeats(&self, cq: u32) -> bool {
        let repeats = self.cq.load(Ordering::Relaxed) == cq + 1;
        if repeats {
            self.count.fetch_add(1, Ordering::Relaxed);
        }
        repeats
    }

    fn end(&self) -> Option<(u32, u32)> {
        let cq = self.cq.swap(0, Ordering::Relaxed).checked_sub(1)?;
        let count = self.count.swap(0, Ordering::Relaxed);
        (count > 0).then_some((cq, count))
    }
}

/// Opens the trace file, if there is to be one and unless it is open. Called before anything can be worth a line, when
/// the device node is opened. `hide` keeps the descriptor out of the program's reach, `close` gives it up again.
pub fn open(hide: fn(c_int) -> c_int, close: fn(c_int)) {
    let Some(path) = config::get().and_then(|config| config.trace.as_ref()) else { return };
    if OWN.trace.load(Ordering::Relaxed) != 0 {
        return;
    }
    let Some(opened) = raw::open_append(path.as_c_str()).map(hide) else { return };
    if OWN.trace.compare_exchange(0, opened + 1, Ordering::Relaxed, Ordering::Relaxed).is_err() {
        // Another thread was first.
        close(opened);
    }
}

/// The descriptor of the trace file.
fn file() -> Option<c_int> {
    OWN.trace.load(Ordering::Relaxed).checked_sub(1).filter(|file| *file >= 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    #[test]
    fn a_full_text_keeps_whole_pieces() {
        let mut text = Text::<8>::new();
        text.write_str("12345").unwrap();
        assert!(text.write_str("6789").is_err());
        text.write_str("678").unwrap();
        assert_eq!(text.as_str(), "12345678");
        text.end();
        assert_eq!(text.as_bytes(), b"1234567\n");
    }

    #[test]
    fn only_the_first_of_polls_in_a_row_begins_a_line() {
        let polls = Polls { cq: AtomicU32::new(0), count: AtomicU32::new(0) };
        assert!(!polls.repeats(3));
        polls.begin(3);
        assert!(polls.repeats(3) && polls.repeats(3));
        assert!(!polls.repeats(4));
        assert_eq!(polls.end(), Some((3, 2)));
        assert_eq!(polls.end(), None);
        polls.begin(0);
        assert_eq!(polls.end(), None);
    }
}
