//! A line on standard error that harms nobody: this is a guest in somebody's program, whose standard error may be
//! closed, full, or a pipe that nobody reads.

use std::fmt;
use std::io::Write;

/// Writes `pvrdma: ` and the line in one piece, since other processes may have the same to say. What cannot be written
/// is dropped.
pub fn say(line: fmt::Arguments<'_>) {
    let line = format!("pvrdma: {line}\n");
    // SAFETY: sets and time live on this stack; signals are this thread's own business until its mask is restored.
    unsafe {
        let (mut pipe, mut before, mut pending) =
            std::mem::zeroed::<(libc::sigset_t, libc::sigset_t, libc::sigset_t)>();
        libc::sigemptyset(&mut pipe);
        libc::sigaddset(&mut pipe, libc::SIGPIPE);
        libc::sigpending(&mut pending);
        let pending = libc::sigismember(&pending, libc::SIGPIPE) == 1;
        libc::pthread_sigmask(libc::SIG_BLOCK, &pipe, &mut before);
        let written = std::io::stderr().write_all(line.as_bytes());
        // The signal of a pipe without a reader is ours, and the program must not end by it.
        if written.is_err_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe) && !pending {
            let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            libc::sigtimedwait(&pipe, std::ptr::null_mut(), &at_once);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut());
    }
}
