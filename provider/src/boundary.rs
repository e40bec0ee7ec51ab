//! The wall between C and Rust: every function libibverbs or an application calls goes through
//! one of these, so that a panic becomes an errno. (A panic that leaves `extern "C"` would abort
//! the application.) Around a body that cannot panic the compiler removes the wall; the hot verbs
//! are written so.

use crate::support::error::Errno;
use core::ffi::c_int;
use core::ptr;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// For verbs that return 0 or an errno.
#[inline(always)]
pub fn errno(body: impl FnOnce() -> Result<(), Errno>) -> c_int {
    match catch(body) {
        Ok(()) => 0,
        Err(Errno(errno)) => errno,
    }
}

/// For verbs that return a pointer, or NULL with errno set.
#[inline(always)]
pub fn pointer<T>(body: impl FnOnce() -> Result<*mut T, Errno>) -> *mut T {
    catch(body).unwrap_or_else(|Errno(errno)| {
        // SAFETY: the errno location of the calling thread is always writable.
        unsafe { *libc::__errno_location() = errno };
        ptr::null_mut()
    })
}

/// For `poll_cq`: a count, or a negative errno.
#[inline(always)]
pub fn count(body: impl FnOnce() -> c_int) -> c_int {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or(-libc::EIO)
}

/// For functions that return nothing.
#[inline(always)]
pub fn nothing(body: impl FnOnce()) {
    // A panic has nowhere to go; what it left behind is leaked.
    let _ = catch(|| {
        body();
        Ok(())
    });
}

/// For whoever has more to do than to return the errno.
#[inline(always)]
pub fn catch<T>(body: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
    // Everything a body shares with other calls is behind a lock that opens on unwind or is an
    // atomic, hence AssertUnwindSafe.
    catch_unwind(AssertUnwindSafe(body)).unwrap_or(Err(Errno::EIO))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fail() -> Errno {
        std::panic::resume_unwind(Box::new("a bug"))
    }

    #[test]
    fn a_panic_becomes_eio() {
        assert_eq!(errno(|| Err(fail())), libc::EIO);
        assert_eq!(count(|| fail().0), -libc::EIO);
        assert_eq!(catch::<()>(|| Err(fail())), Err(Errno::EIO));
        assert!(pointer::<u8>(|| Err(fail())).is_null());
        assert_eq!(Errno::last(), Errno::EIO);
        nothing(|| {
            fail();
        });
    }

    #[test]
    fn errors_keep_their_value() {
        assert_eq!(errno(|| Err(Errno::ENOMEM)), libc::ENOMEM);
        assert_eq!(errno(|| Ok(())), 0);
        assert!(pointer::<u8>(|| Err(Errno::EOPNOTSUPP)).is_null());
        assert_eq!(Errno::last(), Errno::EOPNOTSUPP);
    }
}
