//! Why a command fails: what the kernel answers, and `ib_uverbs` in particular.

/// Why a command failed, as errno.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

pub const EINVAL: Errno = Errno(libc::EINVAL);
pub const EFAULT: Errno = Errno(libc::EFAULT);
pub const EBADF: Errno = Errno(libc::EBADF);
pub const EBUSY: Errno = Errno(libc::EBUSY);
pub const ENOSPC: Errno = Errno(libc::ENOSPC);
pub const ENOTTY: Errno = Errno(libc::ENOTTY);
pub const EOPNOTSUPP: Errno = Errno(libc::EOPNOTSUPP);
/// What the kernel says of ioctls, methods and mandatory attributes that it does not know; libibverbs then uses the
/// old form.
pub const EPROTONOSUPPORT: Errno = Errno(libc::EPROTONOSUPPORT);

pub type Result<T> = std::result::Result<T, Errno>;
