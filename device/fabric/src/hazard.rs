//! Hazards: "I am copying into or out of that process". The other process waits for their end before it says that
//! memory is its own again, and takes them away from a copier that is stopped.
//!
//! A hazard is a word in the seat of whoever copies: the incarnation of the other process and the copying thread. The
//! copy is made only while the word is as it was (`section.rs`), and the other process may set a bit in it. From then
//! on a thread that is seen not to run will not copy, however long it stays as it is and wherever it was stopped.

use crate::bell::now;
use crate::say::say;
use crate::segment::{HAZARDS, Process, Segment};
use crate::sync::{AtomicU64, Ordering, fence, impatient, pause, section, yield_core};
use std::fs::read_to_string;
use std::sync::atomic::{AtomicBool, AtomicU32};

/// A hazard's word: incarnation of the other process (bits 0..24), copying thread (24..46), and this.
const REVOKED: u64 = 1 << 63;
const INCARNATION: u64 = (1 << 24) - 1;

/// How long a copier is waited for before its hazard is taken away: most copies are over by then.
const PATIENCE: u64 = 50_000;
/// How long a copier is waited for that runs, or cannot be told not to: a piece of a copy and a while without a core.
const LIMIT: u64 = 1_000_000_000;

/// Says to another process that a copy is running, until dropped.
pub struct Hazard {
    word: &'static AtomicU64,
    value: u64,
}

impl Hazard {
    /// For a copy of the initiator. `None`: all are taken.
    pub fn new(segment: &Segment, target: Process) -> Option<Hazard> {
        let (words, value) = (segment.hazards(segment.index()), value(segment, target));
        let free = words[..HAZARDS]
            .iter()
            .find(|word| word.compare_exchange(0, value, Ordering::SeqCst, Ordering::Relaxed).is_ok())?;
        fence(Ordering::SeqCst);
        Some(Hazard { word: free, value })
    }

    /// For a copy of whoever empties the inbox, which is one thread at a time, on behalf of `requester`.
    pub fn of_inbox(segment: &Segment, requester: Process) -> Hazard {
        let (word, value) = (&segment.hazards(segment.index())[HAZARDS], value(segment, requester));
        word.store(value, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        Hazard { word, value }
    }

    /// Makes system call `number`, which touches what `touched` says, unless the hazard was taken away. Below 0: an
    /// errno.
    pub fn call(&self, number: libc::c_long, arguments: [usize; 6], touched: impl FnOnce()) -> Option<isize> {
        crate::section::call_while(self.word, self.value, number, arguments, touched)
    }

    /// Stores `new` in `place` unless the hazard was taken away.
    pub fn store(&self, place: &AtomicU32, new: u32) -> bool {
        crate::section::store_while(self.word, self.value, place, new)
    }
}

impl Drop for Hazard {
    fn drop(&mut self) {
        // Release: the copy is over before the other process sees the hazard gone.
        self.word.store(0, Ordering::Release);
    }
}

fn value(segment: &Segment, other: Process) -> u64 {
    u64::from(other.incarnation) | u64::from(segment.thread()) << 24
}

/// Waits until no other process copies directly to or from this one's memory on the grounds of what it saw before this
/// call. What must no longer be used has to be unpublished before.
pub fn wait_for_all(segment: &Segment) {
    // SeqCst, against `Hazard::new`: either the copier sees what was unpublished, or we see its hazard.
    fence(Ordering::SeqCst);
    // A copier that is not among the used ones yet comes after what was unpublished.
    for index in segment.used() {
        let Some(copier) = segment.process(index).filter(|_| index != segment.index()) else { continue };
        for word in &segment.hazards(index)[..HAZARDS] {
            wait_for(segment, word, copier);
        }
    }
}

/// Waits until `copier` does not copy for a request that was taken back from it before this call.
pub fn wait_for_inbox(segment: &Segment, copier: Process) {
    // As above, against `Hazard::of_inbox`.
    fence(Ordering::SeqCst);
    wait_for(segment, &segment.hazards(copier.index)[HAZARDS], copier);
}

fn wait_for(segment: &Segment, word: &AtomicU64, copier: Process) {
    let seen = word.load(Ordering::SeqCst);
    if seen & INCARNATION != u64::from(segment.incarnation()) {
        return;
    }
    let (begin, revoked) = (now(), seen | REVOKED);
    if seen != revoked {
        while word.load(Ordering::SeqCst) == seen {
            if now() - begin > PATIENCE || impatient() {
                // If that is too late the hazard is another one, of somebody who has seen what was unpublished.
                let _ = word.compare_exchange(seen, revoked, Ordering::SeqCst, Ordering::SeqCst);
                break;
            }
            yield_core();
        }
    }
    let thread = (seen >> 24 & 0x3f_ffff) as libc::pid_t;
    while word.load(Ordering::SeqCst) == revoked && may_copy(segment, copier, thread) {
        let waited = now() - begin;
        if waited > LIMIT {
            say_once(copier.pid);
            return;
        }
        pause(waited);
    }
}

/// Whether `thread` of `copier` may be in the middle of a copy. If not, it will compare first.
fn may_copy(segment: &Segment, copier: Process, thread: libc::pid_t) -> bool {
    let _ = section();
    // A killed copier does not copy.
    if cfg!(all(loom, test)) || !segment.alive(copier) {
        return false;
    }
    let place = format!("/proc/{}/task/{thread}", copier.pid);
    match read_to_string(format!("{place}/stat")) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
        stat => is_busy(&stat.unwrap_or_default(), || read_to_string(format!("{place}/syscall")).unwrap_or_default()),
    }
}

/// Whether a thread may be in the middle of a copy by its `stat` and its `syscall` (proc(5)).
fn is_busy(stat: &str, call: impl Fn() -> String) -> bool {
    // The second field is the thread's name in parentheses and may hold anything.
    match stat.rsplit(')').next().unwrap_or_default().trim_start().chars().next() {
        // Stopped on the way back to its program, where a call that it was in has ended; or no more.
        Some('T' | 'Z' | 'X' | 'x') => false,
        None | Some('R') => true,
        // It waits for something, or a debugger has it: in which call?
        Some(_) => {
            let call = call();
            let number = call.split_whitespace().next().and_then(|number| number.parse::<libc::c_long>().ok());
            number.is_none_or(|number| matches!(number, libc::SYS_process_vm_readv | libc::SYS_process_vm_writev))
        }
    }
}

fn say_once(pid: libc::pid_t) {
    static SAID: AtomicBool = AtomicBool::new(false);
    if !SAID.swap(true, Ordering::Relaxed) {
        say(format_args!("process {pid} is held up in a copy; it may still touch memory that was given back"));
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn only_who_runs_or_is_in_a_copy_is_waited_for() {
        let stat = |state: &str| format!("17 (a) T b) {state} 1 17 17 0 -1 4194304");
        let none = || unreachable!("not asked");
        assert!(!is_busy(&stat("T"), none) && !is_busy(&stat("Z"), none));
        assert!(is_busy(&stat("R"), none) && is_busy("", none), "runs, or nobody knows");
        for (call, busy) in [
            ("-1 0x7ffc 0x401000\n", false),
            ("202 0x0 0x0 0x0 0x0 0x0 0x0 0x7ffc 0x401000\n", false),
            ("310 0x1 0x2 0x3 0x4 0x5 0x0 0x7ffc 0x401000\n", true),
            ("311 0x1 0x2 0x3 0x4 0x5 0x0 0x7ffc 0x401000\n", true),
            ("running\n", true),
            ("", true),
        ] {
            for state in ["S", "D", "t"] {
                assert_eq!(is_busy(&stat(state), || call.into()), busy, "{state} {call}");
            }
        }
    }
}
