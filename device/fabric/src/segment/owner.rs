//! Who owns a region, and how it is told that he lives no more.

use super::layout::{Fabric, Seat};
use crate::sync::Ordering;
use std::io;
use std::os::unix::fs::MetadataExt;

/// Who owns a region, in one word, so that a region never seems to belong to a mixture of two processes, whatever
/// instruction one of them is killed in: pid (bits 0..22), whether all is set up (22), low bits of the start time, to
/// tell a reused pid (23..40), incarnation (40..64).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner(pub(super) u64);

impl Owner {
    const READY: u64 = 1 << 22;

    pub(super) fn new(incarnation: u32, pid: libc::pid_t, started: u64) -> Owner {
        Owner(u64::from(incarnation) << 40 | (started & 0x1_ffff) << 23 | pid as u64 & 0x3f_ffff)
    }

    pub(super) fn ready(self) -> Owner {
        Owner(self.0 | Owner::READY)
    }

    pub(super) fn is_ready(self) -> bool {
        self.0 & Owner::READY != 0
    }

    /// Below 2^22 (threads.h: PID_MAX_LIMIT).
    pub(super) fn pid(self) -> libc::pid_t {
        (self.0 & 0x3f_ffff) as libc::pid_t
    }

    pub(super) fn incarnation(self) -> u32 {
        (self.0 >> 40) as u32
    }

    /// Whether the process still runs. A zombie does not.
    pub(super) fn runs(self) -> bool {
        match started(self.pid()) {
            Ok(started) => started.is_some_and(|started| self.0 >> 23 & 0x1_ffff == started & 0x1_ffff),
            // A program may have no descriptor left to look it up with: that somebody has the number must do.
            Err(_) => !is_nobody(self.pid()),
        }
    }
}

pub(super) fn own_pid() -> libc::pid_t {
    // SAFETY: no preconditions.
    unsafe { libc::getpid() }
}

/// Takes a region that is free or whose owner is dead (or was this very process before an exec).
pub(super) fn claim(fabric: &Fabric, owner: Owner) -> io::Result<usize> {
    // Whether a process that has this pid is still the same one is a dearer question, and asked only when it must be.
    for thorough in [false, true] {
        for (index, seat) in fabric.seats.iter().enumerate() {
            let found = Owner(seat.owner.load(Ordering::SeqCst));
            let free = found.0 == 0
                || found.pid() == owner.pid()
                || is_nobody(found.pid())
                || thorough && is_over(seat, found);
            if !free {
                continue;
            }
            // Before the region can be seen to be ours: see `hazard::wait_for_all`.
            fabric.used.fetch_max(index as u32 + 1, Ordering::SeqCst);
            if seat.owner.compare_exchange(found.0, owner.0, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
                return Ok(index);
            }
        }
    }
    Err(io::Error::from_raw_os_error(libc::EUSERS))
}

/// Whether the owner of a seat has ended, with all its threads.
pub(super) fn is_over(seat: &Seat, found: Owner) -> bool {
    !found.runs() && seat.guard.thread().is_none()
}

/// Whether no process has this pid, not even a zombie.
pub(super) fn is_nobody(pid: libc::pid_t) -> bool {
    // SAFETY: signal 0 is none; only the existence is asked for.
    let found = unsafe { libc::kill(pid, 0) } == 0;
    !found && io::Error::last_os_error().raw_os_error() == Some(libc::ESRCH)
}

/// Names the PID namespace of this process; 0: nobody knows.
pub(super) fn pid_namespace() -> u64 {
    std::fs::metadata("/proc/self/ns/pid").map_or(0, |namespace| namespace.ino())
}

/// Start time of a process (proc(5): stat, fields 3 and 22); `None` if it is gone or a zombie.
pub(super) fn started(pid: libc::pid_t) -> io::Result<Option<u64>> {
    let stat = match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        // It went between open and read.
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
        stat => stat?,
    };
    // The second field is the program's name in parentheses and may hold anything.
    let mut fields = stat.rsplit(')').next().unwrap_or_default().trim_start().split(' ');
    if matches!(fields.next(), None | Some("" | "Z" | "X" | "x")) {
        return Ok(None);
    }
    Ok(fields.nth(18).and_then(|field| field.parse().ok()))
}
