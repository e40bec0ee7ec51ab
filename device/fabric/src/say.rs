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
        let (mut ours, mut before, mut pending) =
            std::mem::zeroed::<(libc::sigset_t, libc::sigset_t, libc::sigset_t)>();
        let signals = [(libc::SIGPIPE, libc::EPIPE), (libc::SIGXFSZ, libc::EFBIG)];
        libc::sigemptyset(&mut ours);
        for (signal, _) in signals {
            libc::sigaddset(&mut ours, signal);
        }
        libc::sigpending(&mut pending);
        libc::pthread_sigmask(libc::SIG_BLOCK, &ours, &mut before);
        let error = std::io::stderr().write_all(line.as_bytes()).err().and_then(|error| error.raw_os_error());
        // The signal of a pipe without a reader, or of a file that may not be longer, is ours, and the program must
        // not end by it.
        for (signal, _) in signals.into_iter().filter(|(_, code)| Some(*code) == error) {
            if libc::sigismember(&pending, signal) != 1 {
                let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
                let mut this = std::mem::zeroed::<libc::sigset_t>();
                libc::sigaddset(&mut this, signal);
                libc::sigtimedwait(&this, std::ptr::null_mut(), &at_once);
            }
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut());
    }
}
