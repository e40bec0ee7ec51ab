//! System calls that go straight to the kernel: past our own interposers and everyone else's, before constructors
//! have run, from signal handlers. The C library's errno is the only state they touch.
//!
//! Where the C library does more than a system call, `next!` finds its function behind ours.

use crate::memcheck;
use std::ffi::{CStr, c_int, c_long, c_void};
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicPtr, Ordering};

/// errno of this thread.
pub fn errno() -> i32 {
    // SAFETY: the C library gives every thread an errno.
    unsafe { *libc::__errno_location() }
}

/// Sets errno and returns the -1 that goes with it.
pub fn fail(errno: i32) -> c_int {
    // SAFETY: as in `errno`.
    unsafe { *libc::__errno_location() = errno };
    -1
}

/// A system call with up to six arguments, C library convention.
///
/// # Safety
/// As the call itself: pointers must be valid for what it does with them.
macro_rules! syscall {
    ($number:ident $(, $arg:expr)* $(,)?) => {
        // The argument list is the macro's caller's, and so is its `unsafe`.
        ::libc::syscall(::libc::$number $(, $arg)*)
    };
}
pub(crate) use syscall;

/// close(2).
pub fn close(fd: c_int) -> c_int {
    // SAFETY: no pointers. That the descriptor may be closed is the caller's business.
    unsafe { syscall!(SYS_close, fd) as c_int }
}

/// Attributes of an open file; `None` if the descriptor is not open.
pub fn fstat(fd: c_int) -> Option<libc::stat> {
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: `stat` has room; on x86-64 the kernel's struct is the C library's.
    let done = unsafe { syscall!(SYS_fstat, fd, stat.as_mut_ptr()) } == 0;
    // SAFETY: written by the successful call.
    done.then(|| unsafe { stat.assume_init() })
}

/// getpid(2).
pub fn getpid() -> i32 {
    // SAFETY: no arguments.
    unsafe { syscall!(SYS_getpid) as i32 }
}

/// A new descriptor for `fd`, at least `floor`, closed on exec; `None` if there is none.
pub fn dup_above(fd: c_int, floor: c_int) -> Option<c_int> {
    // SAFETY: no pointers.
    let copy = unsafe { syscall!(SYS_fcntl, fd, libc::F_DUPFD_CLOEXEC, floor) };
    (copy >= 0).then_some(copy as c_int)
}

/// Reads `len` bytes of this process at `from`. An address that leads nowhere is `EFAULT`, not a fault.
pub fn copy_in(from: u64, into: &mut [u8]) -> Result<(), i32> {
    let local = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    // SAFETY: the kernel writes at most `into.len()` bytes to `into`, and judges `from` itself.
    transfer(into.len(), || unsafe { process_vm(libc::SYS_process_vm_readv, local, remote(from, local.iov_len)) })
}

/// Writes `from` to this process at `to`.
pub fn copy_out(to: u64, from: &[u8]) -> Result<(), i32> {
    let local = libc::iovec { iov_base: from.as_ptr().cast_mut().cast(), iov_len: from.len() };
    // SAFETY: the kernel only reads `from`, and judges `to`; what it overwrites there, the caller of the system call
    // that we stand in for has named as its buffer.
    transfer(from.len(), || unsafe { process_vm(libc::SYS_process_vm_writev, local, remote(to, local.iov_len)) })?;
    memcheck::make_defined(to, from.len());
    Ok(())
}

fn remote(at: u64, len: usize) -> libc::iovec {
    libc::iovec { iov_base: at as *mut c_void, iov_len: len }
}

/// # Safety
/// `local` must be memory of ours that the kernel may read or write, by the direction of the call.
unsafe fn process_vm(number: c_long, local: libc::iovec, remote: libc::iovec) -> c_long {
    // SAFETY: both vectors live on this stack; the memory is the caller's promise.
    unsafe { libc::syscall(number, getpid(), &local, 1usize, &remote, 1usize, 0usize) }
}

fn transfer(len: usize, call: impl FnOnce() -> c_long) -> Result<(), i32> {
    if len == 0 {
        return Ok(());
    }
    match call() {
        done if done == len as c_long => Ok(()),
        _ => Err(libc::EFAULT),
    }
}

/// Opens `path` for appending, closed on exec.
pub fn open_append(path: &CStr) -> Option<c_int> {
    let flags = libc::O_WRONLY | libc::O_APPEND | libc::O_CREAT | libc::O_CLOEXEC;
    // SAFETY: a terminated string.
    let fd = unsafe { syscall!(SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags, 0o644) };
    (fd >= 0).then_some(fd as c_int)
}

/// write(2), all or nothing of interest.
pub fn write(fd: c_int, bytes: &[u8]) {
    // SAFETY: `bytes` is readable for its length.
    unsafe { syscall!(SYS_write, fd, bytes.as_ptr(), bytes.len()) };
}

// ---- the next definition, and ours ---------------------------------------------------------------------

/// The next definition of a function after ours: the C library's, or that of another preload library.
pub struct Next {
    name: &'static CStr,
    function: AtomicPtr<c_void>,
}

impl Next {
    pub const fn new(name: &'static CStr) -> Next {
        Next { name, function: AtomicPtr::new(std::ptr::null_mut()) }
    }

    /// Its address, looked up once.
    pub fn get(&self) -> Option<*mut c_void> {
        let mut function = self.function.load(Ordering::Relaxed);
        if function.is_null() {
            // SAFETY: a terminated name.
            function = unsafe { libc::dlsym(libc::RTLD_NEXT, self.name.as_ptr()) };
            self.function.store(function, Ordering::Relaxed);
        }
        (!function.is_null()).then_some(function)
    }
}

/// Declares next definitions, and `resolve`, which looks all of them up.
macro_rules! next {
    ($($static:ident = $name:literal;)*) => {
        $(static $static: $crate::raw::Next = $crate::raw::Next::new($name);)*
        /// Called at load, so that later calls are safe in signal handlers.
        pub fn resolve() {
            $($static.get();)*
        }
    };
}
pub(crate) use next;

/// Calls a next definition; without one, sets ENOSYS and has the value `$failed`.
macro_rules! call_next {
    ($static:ident, fn($($type:ty),*) -> $result:ty, $failed:expr, $($arg:expr),*) => {
        match $static.get() {
            Some(function) => {
                // SAFETY: the C library's function of that name has this type; the arguments are the caller's.
                unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($type),*) -> $result>(function)($($arg),*) }
            }
            None => {
                $crate::raw::fail(libc::ENOSYS);
                $failed
            }
        }
    };
}
pub(crate) use call_next;

/// Defines functions under the C library's names.
macro_rules! interpose {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $type:ty),* $(,)?) -> $result:ty $body:block)*) => {$(
        $(#[$doc])*
        /// # Safety
        /// As in the C library.
        #[cfg_attr(not(test), unsafe(no_mangle))]
        pub unsafe extern "C" fn $name($($arg: $type),*) -> $result $body
    )*};
}
pub(crate) use interpose;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_report_bad_addresses() {
        let source = [1u8, 2, 3];
        let mut target = [0u8; 3];
        copy_in(source.as_ptr() as u64, &mut target).unwrap();
        assert_eq!(target, source);
        copy_out(target.as_mut_ptr() as u64, &[9]).unwrap();
        assert_eq!(target, [9, 2, 3]);
        assert_eq!(copy_in(8, &mut target), Err(libc::EFAULT));
        assert_eq!(copy_out(8, &source), Err(libc::EFAULT));
        assert_eq!(copy_out(u64::MAX - 1, &source), Err(libc::EFAULT));
        copy_in(8, &mut []).unwrap();
    }
}
