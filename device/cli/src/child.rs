//! Starts the program and stays with it: passes signals on, waits, reports how it ended.
//!
//! Tested by the command line only (`tests/tests/bad_input.rs`): a unit test that forks would hold, until its exec, the
//! locks of those beside it, which then find them taken after they let go.

use crate::CannotRun;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpid, getppid};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// What the program gets in our place. SIGKILL cannot be passed on; the parent-death signal covers it.
const PASSED_ON: [Signal; 6] =
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2];

/// Runs `command` to its end. `holds` are locks that it, and whatever it leaves behind, keep.
///
/// Returns the exit status as a shell would: the program's own, or 128 plus the signal that ended it.
pub fn run(mut command: Command, holds: Vec<File>) -> anyhow::Result<u8> {
    let passed_on = SigSet::from_iter(PASSED_ON);
    let mut before = SigSet::empty();
    // Before the fork, so that no signal falls between it and the wait. They stay blocked for good: whoever calls
    // cleans up undisturbed and exits.
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&passed_on), Some(&mut before))?;
    let signals = SignalFd::with_flags(&passed_on, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;

    let parent = getpid();
    let hold_fds: Vec<i32> = holds.iter().map(AsRawFd::as_raw_fd).collect();
    // SAFETY: the closure runs between fork and exec; prctl, getppid, sigprocmask and fcntl are plain system calls,
    // and it neither allocates nor takes locks.
    unsafe {
        command.pre_exec(move || {
            prctl::set_pdeathsig(Signal::SIGKILL)?;
            if getppid() != parent {
                // Our end came before the line above could tell.
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
            for fd in &hold_fds {
                if libc::fcntl(*fd, libc::F_SETFD, 0) < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        })
    };
    let child = command.spawn().map_err(|error| CannotRun {
        missing: error.kind() == io::ErrorKind::NotFound,
        why: format!("{}: {error}", command.get_program().display()),
    })?;
    drop(holds);
    wait(Pid::from_raw(child.id() as i32), &signals)
}

/// The same file under a high number: scripts use the low ones as they like.
pub fn out_of_the_way(file: File) -> io::Result<File> {
    const HIGH: i32 = 700;
    // SAFETY: no pointers; `file` is open.
    let fd = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_DUPFD_CLOEXEC, HIGH) };
    if fd < 0 {
        // The limit on descriptors is below that.
        return Ok(file);
    }
    // SAFETY: the call above made it, and nobody else knows it.
    Ok(unsafe { File::from_raw_fd(fd) })
}

fn wait(child: Pid, signals: &SignalFd) -> anyhow::Result<u8> {
    let end = pidfd(child)?;
    loop {
        let mut fds = [PollFd::new(end.as_fd(), PollFlags::POLLIN), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            other => other?,
        };
        while let Some(info) = signals.read_signal()? {
            // What the terminal sends goes to the whole foreground group; the program has it already.
            if info.ssi_code != libc::SI_KERNEL {
                // It cannot have been reaped: only the waitpid below does that.
                kill(child, Signal::try_from(info.ssi_signo as i32)?)?;
            }
        }
        match waitpid(child, Some(WaitPidFlag::WNOHANG))? {
            WaitStatus::Exited(_, code) => return Ok(code as u8),
            WaitStatus::Signaled(_, signal, _) => return Ok(128 + signal as u8),
            _ => {}
        }
    }
}

/// A descriptor that becomes readable when `child` ends.
fn pidfd(child: Pid) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two numbers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, child.as_raw(), 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call above opened it, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
