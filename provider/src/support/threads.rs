//! Does this process, or this object, have but one thread? Then a lock needs no locked instruction, which
//! is more than half of what a hot verb costs.

use core::ffi::c_void;
use core::ptr;
use std::sync::OnceLock;

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

impl Threads {
    /// One, by promise of the application: a thread domain, a single-threaded CQ.
    pub const ONE: Self = Self(&raw const ONE);
    /// Nobody knows.
    pub const MANY: Self = Self(&raw const MANY);

    /// As many as the process has: glibc's `__libc_single_threaded` (sys/single_threaded.h). Looked up by
    /// name, since it came with glibc 2.32 and this file must load with older ones, and not cached: it
    /// changes when the process makes its second thread, and may change back.
    pub fn of_process() -> Self {
        static FOUND: OnceLock<Threads> = OnceLock::new();
        if cfg!(loom) {
            // loom's threads are none to libc.
            return Self::MANY;
        }
        *FOUND.get_or_init(|| {
            // SAFETY: a NUL-terminated name; the handle is libc's own for "whoever has it".
            let found: *mut c_void = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"__libc_single_threaded".as_ptr()) };
            if ptr::eq(found, ptr::null_mut()) { Self::MANY } else { Self(found.cast()) }
        })
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
        std::thread::scope(|scope| {
            scope.spawn(|| assert!(!Threads::of_process().are_one()));
        });
        assert!(Threads::promised(true).are_one() && !Threads::MANY.are_one());
    }
}
