//! Whether the memory that a process had is still there, and by which thread others reach it.
//!
//! A pid tells neither: a program that is replaced by exec keeps its pid, and one whose first thread has ended goes on
//! under the pid of a zombie without memory. So a thread that lasts as long as the process holds a robust mutex in the
//! process's seat. When that thread ends, for whatever reason, the kernel marks the mutex, at an exec before the new
//! program has its memory (get_robust_list(2)).

use std::sync::atomic::{AtomicU32, Ordering};

/// Room for the C library's mutex. Its first word is the futex: the thread's number while it is held, and a mark.
#[repr(C, align(8))]
pub struct Guard([AtomicU32; 10]);

const _: () = assert!(size_of::<libc::pthread_mutex_t>() <= size_of::<Guard>());

impl Guard {
    /// FUTEX_OWNER_DIED and FUTEX_TID_MASK (linux/futex.h).
    const DIED: u32 = 0x4000_0000;
    const THREAD: u32 = 0x3fff_ffff;

    fn word(&self) -> u32 {
        // Acquire: who sees the mark sees all that the process did.
        self.0[0].load(Ordering::Acquire)
    }

    /// The holder is gone, and its memory with it.
    pub fn has_died(&self) -> bool {
        self.word() & Guard::DIED != 0
    }

    /// The thread that holds it. `None`: nobody, or nobody any more.
    pub fn thread(&self) -> Option<libc::pid_t> {
        let word = self.word();
        (word & Guard::DIED == 0 && word & Guard::THREAD != 0).then_some((word & Guard::THREAD) as libc::pid_t)
    }

    /// For a new owner of the seat.
    pub fn clear(&self) {
        self.0.iter().for_each(|word| word.store(0, Ordering::Relaxed));
    }

    /// As the kernel does.
    #[cfg(test)]
    pub fn mark(&self) {
        self.0[0].store(Guard::DIED, Ordering::Release);
    }

    /// The calling thread holds it until it ends. Where there are no robust mutexes nothing happens, and the pid must
    /// do.
    pub fn hold(&self) {
        let place = self.0.as_ptr().cast_mut().cast::<libc::pthread_mutex_t>();
        let mut attributes = std::mem::MaybeUninit::<libc::pthread_mutexattr_t>::uninit();
        // SAFETY: attributes are initialised before they are used. The place is aligned, large enough, lasts as long as
        // the process, and is this process's to initialise; others only read its first word, as an atomic.
        unsafe {
            let attributes = attributes.as_mut_ptr();
            if libc::pthread_mutexattr_init(attributes) == 0
                && libc::pthread_mutexattr_setrobust(attributes, libc::PTHREAD_MUTEX_ROBUST) == 0
                && libc::pthread_mutexattr_setpshared(attributes, libc::PTHREAD_PROCESS_SHARED) == 0
                && libc::pthread_mutex_init(place, attributes) == 0
            {
                libc::pthread_mutex_lock(place);
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_mark_of_a_thread_that_ended() {
        let guard = Box::leak(Box::new(Guard(std::array::from_fn(|_| AtomicU32::new(0)))));
        assert!(!guard.has_died() && guard.thread().is_none());
        let (tell, hear) = std::sync::mpsc::channel();
        let (leave, left) = std::sync::mpsc::channel::<()>();
        let guard: &'static Guard = guard;
        let thread = std::thread::spawn(move || {
            guard.hold();
            // SAFETY: no preconditions.
            tell.send(unsafe { libc::gettid() }).unwrap();
            let _ = left.recv();
        });
        let holder = hear.recv().unwrap();
        assert_eq!(guard.thread(), Some(holder));
        assert!(!guard.has_died());
        drop(leave);
        thread.join().unwrap();
        while !guard.has_died() {
            std::thread::yield_now();
        }
        assert!(guard.thread().is_none());
        guard.clear();
        assert!(!guard.has_died());
    }
}
