//! Does this process, or this object, have but one thread? Then a lock needs no locked instruction, which
//! is more than half of what a hot verb costs.

use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};

/// A byte that is not 0 as long as there is one thread. A pointer, so that one look tells, whether the
/// application promised it for an object or libc knows it of the process.
#[derive(Clone, Copy, Debug)]
pub struct Threads(*const u8);

// SAFETY: the byte is there for the life of the process and only ever read here.
unsafe impl Send for Threads {}
// SAFETY: as above.
unsafe impl Sync for Threads {}

static ONE: u8 = 1;
static MANY: u8 = 0;

/// libc's byte; NULL: it has none.
static FOUND: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());

impl Threads {
    /// One, by promise of the application: a thread domain, a single-threaded CQ.
    pub const ONE: Self = Self(&raw const ONE);
    /// Nobody knows.
    pub const MANY: Self = Self(&raw const MANY);

    /// Look where libc says how many the process has: glibc's `__libc_single_threaded` (sys/single_threaded.h).
    /// By name: a libc without it means many threads, and no file that does not load. Once, when we are loaded.
    pub fn find() {
        // SAFETY: a NUL-terminated name; the handle is libc's own for "whoever has it".
        let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"__libc_single_threaded".as_ptr()) };
        FOUND.store(found.cast(), Ordering::Relaxed);
    }

    /// As many as the process has. The byte is not copied: it changes when the process makes its second
    /// thread, and may change back.
    pub fn of_process() -> Self {
        match FOUND.load(Ordering::Relaxed) {
            // loom's threads are none to libc.
            _ if cfg!(loom) => Self::MANY,
            found if found.is_null() => Self::MANY,
            found => Self(found),
        }
    }

    /// [`Threads::ONE`] if that is promised.
    pub fn promised(one: bool) -> Self {
        if one { Self::ONE } else { Self::of_process() }
    }

    /// Is there one?
    #[inline(always)]
    pub fn are_one(self) -> bool {
        // SAFETY: the byte lives as long as the process. Volatile: libc changes it, though never while a
        // thread that sees 1 is in here, since that thread would have to make the second one.
        unsafe { self.0.read_volatile() != 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_two_threads_is_seen_as_such() {
        Threads::find();
        std::thread::scope(|scope| {
            scope.spawn(|| assert!(!Threads::of_process().are_one()));
        });
        assert!(Threads::promised(true).are_one() && !Threads::MANY.are_one());
    }
}
