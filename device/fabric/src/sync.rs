//! Where threads and processes meet: atomics, fences, locks, waiting. As the provider's file of this name: std's in
//! the product, those of `loom.rs` in tests that are built with `--cfg loom`.

#[cfg(all(loom, test))]
pub use crate::loom::shadow::{AtomicBool, AtomicU32, AtomicU64, fence, own_slot, yield_core};
#[cfg(all(loom, test))]
pub use crate::loom::{impatient, pause, section};
#[cfg(all(loom, test))]
pub use ::loom::sync::{Mutex, MutexGuard};

pub use std::sync::atomic::Ordering;

#[cfg(not(all(loom, test)))]
pub use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, fence};
#[cfg(not(all(loom, test)))]
pub use std::sync::{Mutex, MutexGuard};

/// Gives the core away.
#[cfg(not(all(loom, test)))]
pub fn yield_core() {
    // SAFETY: no preconditions.
    unsafe { libc::sched_yield() };
}

/// The same for somebody who has waited for `waited` nanoseconds already.
#[cfg(not(all(loom, test)))]
pub fn pause(waited: u64) {
    match waited {
        0..1_000_000 => yield_core(),
        _ => std::thread::sleep(std::time::Duration::from_micros(100)),
    }
}

/// Whether nobody is to be waited for. Models choose.
#[cfg(not(all(loom, test)))]
pub fn impatient() -> bool {
    false
}

/// For models, in which nobody is stopped: held by whoever must not be stopped.
#[cfg(not(all(loom, test)))]
pub fn section() -> impl Sized {}

/// Somebody is about to read or write payload that begins at `at`. Nothing, but for loom.
#[inline(always)]
pub fn own(at: u64) {
    #[cfg(all(loom, test))]
    own_slot(at as *const u8);
    let _ = at;
}
