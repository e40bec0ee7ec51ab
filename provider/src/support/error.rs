//! [`Errno`]: the error of every verb here. Positive, as the manual pages have it; [`crate::boundary`]
//! turns it into C's conventions.

use core::ffi::c_int;

/// A positive errno value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub c_int);

impl Errno {
    /// An argument is wrong.
    pub const EINVAL: Self = Self(libc::EINVAL);
    /// A queue is full, or memory ran out.
    pub const ENOMEM: Self = Self(libc::ENOMEM);
    /// The device or this provider does not do that.
    pub const EOPNOTSUPP: Self = Self(libc::EOPNOTSUPP);
    /// Something else still uses it.
    pub const EBUSY: Self = Self(libc::EBUSY);
    /// There is none.
    pub const ENOENT: Self = Self(libc::ENOENT);
    /// No way to an address.
    pub const EHOSTUNREACH: Self = Self(libc::EHOSTUNREACH);
    /// The device, or memory shared with it, is in a state it must not be in.
    pub const EIO: Self = Self(libc::EIO);
    /// Not now; somebody else has to finish first.
    pub const EAGAIN: Self = Self(libc::EAGAIN);

    /// The thread's errno, after a libc call failed.
    pub fn last() -> Self {
        // SAFETY: the errno location of the calling thread is always readable.
        Self(unsafe { *libc::__errno_location() })
    }

    /// Set the thread's errno to 0, before a call that may fail without setting it.
    pub fn clear() {
        // SAFETY: as above, and writable.
        unsafe { *libc::__errno_location() = 0 };
    }

    /// The result of a libibverbs helper that returns 0 or an errno.
    pub fn check(ret: c_int) -> Result<(), Self> {
        match ret {
            0 => Ok(()),
            // Some paths of older releases return it negative.
            err => Err(Self(err.saturating_abs())),
        }
    }

    /// The kernel driver reports every refusal by the device as EFAULT. After a verb that checked
    /// its arguments and passed none of the caller's memory, that means "these values are not
    /// acceptable".
    pub fn device_refusal(self) -> Self {
        if self.0 == libc::EFAULT { Self::EINVAL } else { self }
    }
}
