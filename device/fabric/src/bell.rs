//! Who sleeps and how to wake them: one futex for threads that wait in an empty poll, one for the side thread.
//!
//! A message rings the target's bell. Threads that poll find it by themselves, so the side thread, which costs a
//! context switch and perhaps the core of a program that spins, is woken only when nobody polled of late.

use crate::sync::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// The waking part of a region.
#[repr(C)]
pub struct Bell {
    /// Counts rings; waiting pollers sleep on it.
    rings: AtomicU32,
    /// Pollers asleep.
    pollers: AtomicU32,
    /// Counts rings meant for the side thread, which sleeps on it.
    side_rings: AtomicU32,
    /// 1 while the side thread sleeps.
    side_asleep: AtomicU32,
    /// When a thread of this process last polled, in nanoseconds of CLOCK_MONOTONIC.
    polled_at: AtomicU64,
    /// Counts what others wrote to this process's memory by themselves.
    placed: AtomicU32,
}

/// A process that polled this short a time ago will poll again before a woken thread could have run.
const POLLING: u64 = 50_000;
/// A process counts as idle after this time, and its side thread sleeps without a limit.
const IDLE: u64 = 20_000_000;
/// How long the side thread sleeps at most while the process polls: the longest a message waits that came just when
/// the program stopped polling.
const SAFETY_NET: Duration = Duration::from_millis(2);

/// CLOCK_MONOTONIC in nanoseconds, the same for all processes of a host.
pub fn now() -> u64 {
    if cfg!(all(loom, test)) {
        // A run can only be repeated if time does not pass.
        return 0;
    }
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is ours; the clock exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn futex_wait(word: &AtomicU32, value: u32, timeout: Option<Duration>) {
    let time = timeout.map(|timeout| libc::timespec {
        tv_sec: timeout.as_secs() as libc::time_t,
        tv_nsec: libc::c_long::from(timeout.subsec_nanos() as i32),
    });
    let time = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: `word` lives in the mapped fabric; `time` is null or points to our stack for the call.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, value, time) };
}

fn futex_wake(word: &AtomicU32, count: i32) {
    // SAFETY: `word` lives in the mapped fabric.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, count) };
}

impl Bell {
    /// Something for this process was published.
    pub fn ring(&self) {
        // SeqCst against `wait`: either the waiter's last look sees what was published, or we see the waiter.
        self.rings.fetch_add(1, Ordering::SeqCst);
        if self.pollers.load(Ordering::SeqCst) > 0 {
            futex_wake(&self.rings, 1);
        } else if now().saturating_sub(self.polled_at.load(Ordering::Relaxed)) > POLLING {
            self.wake_side();
        }
    }

    /// Bytes of this process's memory have changed. A program that looks at them and polls in turn is not to wait in
    /// its poll; one that only looks needs nothing.
    pub fn placed(&self) {
        self.placed.fetch_add(1, Ordering::Relaxed);
        self.ring_pollers();
    }

    /// How often that has happened.
    pub fn placed_count(&self) -> u32 {
        self.placed.load(Ordering::Relaxed)
    }

    /// Something changed for threads of this process that wait in a poll; the side thread is not needed.
    pub fn ring_pollers(&self) {
        self.rings.fetch_add(1, Ordering::SeqCst);
        if self.pollers.load(Ordering::SeqCst) > 0 {
            futex_wake(&self.rings, i32::MAX);
        }
    }

    /// Gets the side thread up.
    pub fn wake_side(&self) {
        self.side_rings.fetch_add(1, Ordering::SeqCst);
        if self.side_asleep.load(Ordering::SeqCst) != 0 {
            futex_wake(&self.side_rings, 1);
        }
    }

    /// A thread of this process polls. The side thread, if it sleeps without limit, is put on its safety net first.
    pub fn polled(&self) {
        let (then, now) = (self.polled_at.load(Ordering::Relaxed), now());
        self.polled_at.store(now, Ordering::Relaxed);
        if now.saturating_sub(then) > IDLE {
            self.wake_side();
        }
    }

    /// The count to hand to `wait`; taken before the last look.
    pub fn ticket(&self) -> u32 {
        self.rings.load(Ordering::SeqCst)
    }

    /// Whether something was published since `ticket`.
    pub fn rang_since(&self, ticket: u32) -> bool {
        self.rings.load(Ordering::Acquire) != ticket
    }

    /// Sleeps until the bell rings after `ticket`, at most `limit`.
    pub fn wait(&self, ticket: u32, limit: Duration) {
        self.pollers.fetch_add(1, Ordering::SeqCst);
        futex_wait(&self.rings, ticket, Some(limit));
        self.pollers.fetch_sub(1, Ordering::SeqCst);
    }

    /// The count to hand to `wait_side`; taken before the last look.
    pub fn side_ticket(&self) -> u32 {
        self.side_rings.load(Ordering::SeqCst)
    }

    /// The side thread's sleep: until it is woken, `limit` has passed, or the safety net asks.
    pub fn wait_side(&self, ticket: u32, limit: Option<Duration>) {
        let polling = now().saturating_sub(self.polled_at.load(Ordering::Relaxed)) <= IDLE;
        let limit = if polling { Some(limit.map_or(SAFETY_NET, |limit| limit.min(SAFETY_NET))) } else { limit };
        self.side_asleep.store(1, Ordering::SeqCst);
        futex_wait(&self.side_rings, ticket, limit);
        self.side_asleep.store(0, Ordering::SeqCst);
    }
}
