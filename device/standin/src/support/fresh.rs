//! What belongs to one process and not to its children: memory that reads as zeros in a child of fork.
//!
//! The kernel wipes it (MADV_WIPEONFORK), so it does not matter how the child was made (fork, _Fork, clone), which
//! threads the parent had, or which locks they held at that moment: the child finds the library as it is before the
//! first open, and can open the device itself. All zero is therefore the empty state of everything in here, and it is
//! plain data: what is done with it stands in the files named.
//!
//! A child of vfork runs in its parent's memory for a moment. Whoever acts for a process compares the pid.

use std::cell::UnsafeCell;
use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};

/// The process's own state. Whole pages, so that nothing else is wiped with it.
#[repr(C, align(4096))]
pub struct Own {
    /// The process on the fabric, once it has opened the device: a `process::Process`.
    pub process: AtomicPtr<c_void>,
    /// Held while it is made.
    pub joining: Gate,
    /// Our descriptors: a `fd::Table`.
    pub fds: AtomicPtr<c_void>,
    /// A bit for each of the 1,048,576 descriptors that Linux lets a process have: whether it is ours.
    pub fd_map: [AtomicU64; 1 << 14],
    /// Held while the program's SIGSEGV action is changed.
    pub action: Gate,
    /// The trace file's descriptor plus one.
    pub trace: AtomicI32,
    /// What it does not repeat.
    pub polls: Polls,
    /// Addresses of the host's guests, as told to the program.
    pub addresses: Addresses,
    /// Where the device runs while a doorbell is carried out.
    pub stacks: Stacks,
    /// Held while declared sites are taken.
    pub taking: Gate,
    /// The connection manager, once the program has used it: a `ucma::Ucma`.
    pub ucma: AtomicPtr<c_void>,
    /// Doorbell pages.
    pub uars: [Page; MAX_PAGES],
}

/// See [`Own`].
pub static OWN: Own = Own {
    process: AtomicPtr::new(null_mut()),
    joining: Gate::new(),
    fds: AtomicPtr::new(null_mut()),
    fd_map: [const { AtomicU64::new(0) }; 1 << 14],
    action: Gate::new(),
    trace: AtomicI32::new(0),
    polls: Polls { cq: AtomicU32::new(0), count: AtomicU32::new(0) },
    addresses: Addresses {
        gate: Gate::new(),
        chain: UnsafeCell::new(Chain { made: [false; 256], first: null_mut(), last: null_mut() }),
    },
    stacks: Stacks([const { AtomicUsize::new(0) }; 32]),
    taking: Gate::new(),
    ucma: AtomicPtr::new(null_mut()),
    uars: [const { Page { at: AtomicUsize::new(0), ctx: AtomicU32::new(0) } }; MAX_PAGES],
};

/// POLLs in a row (`trace.rs`). Threads that poll side by side may each see the other's; then a line more or less is
/// written.
pub struct Polls {
    /// The CQ plus one; 0: the last line was something else.
    pub cq: AtomicU32,
    /// How many followed the first.
    pub count: AtomicU32,
}

/// Nodes of `netdev.rs` made so far, linked in the order of their making. A list handed out before may grow at its end;
/// what it had stays.
pub struct Chain {
    /// By guest.
    pub made: [bool; 256],
    pub first: *mut libc::ifaddrs,
    pub last: *mut libc::ifaddrs,
}

/// The chain of this process, behind its gate.
pub struct Addresses {
    pub gate: Gate,
    pub chain: UnsafeCell<Chain>,
}

// SAFETY: the chain is used only with the gate held; its pointers are to leaked nodes.
unsafe impl Sync for Addresses {}

/// Stacks for the device (`stack.rs`), those at rest: the upper end of each, or 0.
pub struct Stacks(pub [AtomicUsize; 32]);

/// Contexts of one process.
pub const MAX_PAGES: usize = 1024;

/// A doorbell page of this process. A slot is taken by storing the address last, and freed by storing 0.
pub struct Page {
    pub at: AtomicUsize,
    pub ctx: AtomicU32,
}

/// Remembers memory that is never freed. In a child the way to it has been wiped, and a leak checker (LeakSanitizer)
/// would report what the parent had.
pub fn keep<T>(memory: *mut T) {
    static KEPT: [AtomicPtr<c_void>; 32] = [const { AtomicPtr::new(null_mut()) }; 32];
    // Two for each generation. If there are more, only the checker misses them.
    let _ = KEPT
        .iter()
        .find(|slot| slot.compare_exchange(null_mut(), memory.cast(), Ordering::Relaxed, Ordering::Relaxed).is_ok());
}

/// A lock that is open when all zero; for moments that are short or rare.
pub struct Gate(AtomicU32);

impl Gate {
    /// Open.
    pub const fn new() -> Gate {
        Gate(AtomicU32::new(0))
    }

    /// If nobody has it, it is ours. Open again when the guard is dropped.
    pub fn try_lock(&self) -> Option<GateGuard<'_>> {
        self.0.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_ok().then(|| GateGuard(self))
    }

    /// Opens it, whoever has it: for who has let go of the guard.
    pub fn open(&self) {
        self.0.store(0, Ordering::Release);
    }

    /// Waits until it is ours. Open again when the guard is dropped.
    pub fn lock(&self) -> GateGuard<'_> {
        while self.0.compare_exchange_weak(0, 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
            // SAFETY: no preconditions.
            unsafe { libc::sched_yield() };
        }
        GateGuard(self)
    }
}

/// Holds a [`Gate`].
pub struct GateGuard<'a>(&'a Gate);

impl Drop for GateGuard<'_> {
    fn drop(&mut self) {
        self.0.open();
    }
}

/// Has the kernel wipe [`OWN`] in children. `load.rs` calls it, once.
pub fn at_load() {
    let at = (&raw const OWN).cast_mut().cast::<c_void>();
    // SAFETY: whole pages of our own zero-initialised data, which the loader maps anonymous and private.
    let wiped = unsafe { libc::madvise(at, size_of::<Own>(), libc::MADV_WIPEONFORK) } == 0;
    if !wiped {
        // Before Linux 4.14. Then at least children made by fork(3) are fresh.
        // SAFETY: a plain function.
        unsafe { libc::pthread_atfork(None, None, Some(wipe)) };
    }
}

extern "C" fn wipe() {
    // SAFETY: zero is a value for all of it, and the child has no other thread yet.
    unsafe { (&raw const OWN).cast_mut().write_bytes(0, 1) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_finds_everything_empty_and_every_gate_open() {
        let _held = OWN.joining.lock();
        OWN.trace.store(8, Ordering::Relaxed);
        // SAFETY: the child only looks at memory and exits.
        let child = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) } as i32;
        if child == 0 {
            let fresh = OWN.trace.load(Ordering::Relaxed) == 0 && OWN.joining.0.load(Ordering::Relaxed) == 0;
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(i32::from(!fresh)) };
        }
        let mut status = -1;
        // SAFETY: `status` has room.
        unsafe { libc::waitpid(child, &mut status, 0) };
        assert_eq!(status, 0);
        OWN.trace.store(0, Ordering::Relaxed);
    }
}
