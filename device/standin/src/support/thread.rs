//! Threads of the library's own, which the program neither sees nor disturbs. `process.rs` and `events.rs` start them.

use crate::support::raw::{set_mask, signal_bit, swap_mask};
use std::ffi::{CStr, c_void};
use std::io;
use std::mem::MaybeUninit;

/// What a thread of the library's own runs.
pub type Body = extern "C" fn(*mut c_void) -> *mut c_void;

/// Starts a thread of the library's own. The program's signals are not for it; SIGSEGV stays open, as everywhere.
///
/// Not by `std::thread`: what that keeps on the heap for a thread only the thread knows, and in a forked child, which
/// does not have the thread, leak checkers report it.
pub fn start(body: Body, argument: *mut c_void) -> io::Result<()> {
    const STACK: usize = 2 << 20;
    let mut attributes = MaybeUninit::<libc::pthread_attr_t>::uninit();
    let mut thread = MaybeUninit::<libc::pthread_t>::uninit();
    // A new thread inherits the mask.
    let before = swap_mask(!signal_bit(libc::SIGSEGV));
    // SAFETY: attributes are initialised before they are used. `body` is called once, with `argument`, which is the
    // caller's to give away.
    let failed = unsafe {
        let attributes = attributes.as_mut_ptr();
        libc::pthread_attr_init(attributes);
        libc::pthread_attr_setstacksize(attributes, STACK);
        libc::pthread_attr_setdetachstate(attributes, libc::PTHREAD_CREATE_DETACHED);
        let failed = libc::pthread_create(thread.as_mut_ptr(), attributes, body, argument);
        libc::pthread_attr_destroy(attributes);
        failed
    };
    set_mask(before);
    if failed != 0 {
        return Err(io::Error::from_raw_os_error(failed));
    }
    Ok(())
}

/// What the calling thread is called in `ps` and debuggers.
pub fn name(name: &CStr) {
    // SAFETY: a terminated string.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
}
