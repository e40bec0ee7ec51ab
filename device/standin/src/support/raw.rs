//! System calls that go straight to the kernel: past our own interposers and everyone else's, before constructors
//! have run, from signal handlers. The C library's errno is the only state they touch.

use crate::support::memcheck;
use std::ffi::{CStr, c_int, c_long, c_void};
use std::mem::MaybeUninit;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// errno of this thread.
pub fn errno() -> i32 {
    // SAFETY: the C library gives every thread an errno.
    unsafe { *libc::__errno_location() }
}

/// Sets it.
pub fn set_errno(errno: i32) {
    // SAFETY: as in `errno`.
    unsafe { *libc::__errno_location() = errno };
}

/// Sets errno and returns the -1 that goes with it.
pub fn fail(errno: i32) -> c_int {
    set_errno(errno);
    -1
}

/// A system call, C library convention. Not by way of the C library's `syscall`: under that name is one of our own
/// interposers.
///
/// # Safety
/// As the call itself: pointers must be valid for what it does with them. Not for calls that return twice on one stack
/// (vfork) or never (rt_sigreturn).
pub unsafe fn call(number: c_long, args: [usize; 6]) -> c_long {
    let [a, b, c, d, e, f] = args;
    let result: c_long;
    // SAFETY: the kernel changes no register but these; what it does to memory is the caller's promise.
    unsafe {
        std::arch::asm!(
            "syscall",
            inout("rax") number => result,
            in("rdi") a,
            in("rsi") b,
            in("rdx") c,
            in("r10") d,
            in("r8") e,
            in("r9") f,
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
    told(result)
}

/// What the kernel returned, as the C library tells it: errno and -1 for what is between -4095 and -1.
pub extern "C" fn told(result: c_long) -> c_long {
    if (-4095..0).contains(&result) {
        return c_long::from(fail(-result as i32));
    }
    result
}

/// The arguments of a call that has fewer.
pub const fn padded<const N: usize>(given: [usize; N]) -> [usize; 6] {
    let mut args = [0; 6];
    let mut n = 0;
    while n < N {
        args[n] = given[n];
        n += 1;
    }
    args
}

/// [`call`] with up to six arguments, integers or pointers.
///
/// # Safety
/// As `call`.
macro_rules! syscall {
    ($number:ident $(, $arg:expr)* $(,)?) => {
        // The argument list is the macro's caller's, and so is its `unsafe`.
        $crate::support::raw::call(::libc::$number, $crate::support::raw::padded([$({
            let arg = $arg;
            arg as usize
        }),*]))
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

/// Device and inode behind `fd`, if it is open.
pub fn file_of(fd: c_int) -> Option<(u64, u64)> {
    fstat(fd).map(|stat| (stat.st_dev, stat.st_ino))
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
    // By this thread's number, not the process's: its first thread may have ended, and with it went the memory that the
    // process's number leads to.
    unsafe {
        call(
            number,
            [syscall!(SYS_gettid) as usize, (&raw const local) as usize, 1, (&raw const remote) as usize, 1, 0],
        )
    }
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

/// write(2): how many bytes it has written, or -1. What it would be told by a signal, and be ended by as a rule (a file
/// that the program may not make longer, a pipe that nobody reads), the program does not hear of: it wrote nothing.
pub fn append(fd: c_int, bytes: &[u8]) -> c_long {
    let before = swap_mask(u64::MAX);
    // One that the program holds back is its own.
    let pending = if before & WRITE_SIGNALS != 0 { pending_signals() } else { 0 };
    // SAFETY: `bytes` is readable for its length.
    let written = unsafe { syscall!(SYS_write, fd, bytes.as_ptr(), bytes.len()) };
    if written < 0 {
        let error = errno();
        let signal = match error {
            libc::EFBIG => signal_bit(libc::SIGXFSZ),
            libc::EPIPE => signal_bit(libc::SIGPIPE),
            _ => 0,
        };
        if signal & !pending != 0 {
            let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            let nobody = std::ptr::null_mut::<c_void>();
            // SAFETY: a word and a time; null: nothing is told of the signal. None is there if it is ignored.
            unsafe { syscall!(SYS_rt_sigtimedwait, &raw const signal, nobody, &raw const at_once, size_of::<u64>()) };
        }
        set_errno(error);
    }
    set_mask(before);
    written
}

/// What a write may be answered with.
const WRITE_SIGNALS: u64 = signal_bit(libc::SIGXFSZ) | signal_bit(libc::SIGPIPE);

/// Signals that wait until they are let through.
fn pending_signals() -> u64 {
    let mut pending = 0u64;
    // SAFETY: a word for the kernel to fill.
    unsafe { syscall!(SYS_rt_sigpending, &raw mut pending, size_of::<u64>()) };
    pending
}

// ---- signals -----------------------------------------------------------------------------------

/// The kernel's `struct sigaction` for rt_sigaction(2); glibc's differs.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
pub struct KernelSigaction {
    /// Handler, SIG_DFL (0) or SIG_IGN (1).
    pub handler: usize,
    /// SA_*.
    pub flags: u64,
    /// Where the handler returns to.
    pub restorer: usize,
    /// Signals blocked meanwhile.
    pub mask: u64,
}

/// rt_sigaction(2) itself, past everyone who interposes sigaction.
pub fn rt_sigaction(signal: i32, new: Option<&KernelSigaction>, old: Option<&mut KernelSigaction>) -> bool {
    let new = new.map_or(std::ptr::null(), std::ptr::from_ref);
    let old = old.map_or(std::ptr::null_mut(), std::ptr::from_mut);
    // SAFETY: pointers are null or to structs of the kernel's layout; 8 is the size of its signal set.
    unsafe { syscall!(SYS_rt_sigaction, signal, new, old, size_of::<u64>()) == 0 }
}

/// Sets the signal mask of this thread, the kernel's single word, and returns the former one.
pub fn swap_mask(mask: u64) -> u64 {
    let mut before = 0u64;
    // SAFETY: two words, as the kernel wants them.
    unsafe { sigprocmask(&mask, &mut before) };
    before
}

/// The same where nobody asks for the former one, which is cheaper.
pub fn set_mask(mask: u64) {
    // SAFETY: a word; null: nothing is told.
    unsafe { sigprocmask(&mask, std::ptr::null_mut()) };
}

/// rt_sigprocmask(2), which cannot fail with what is passed here. Not by way of the C library: doorbells wait for it.
///
/// # Safety
/// `mask` points to a word, and `before` to another or nowhere.
unsafe fn sigprocmask(mask: *const u64, before: *mut u64) {
    // SAFETY: by the contract; the kernel changes no register but these.
    unsafe {
        std::arch::asm!(
            "syscall",
            inout("rax") libc::SYS_rt_sigprocmask => _,
            in("rdi") libc::SIG_SETMASK as i64,
            in("rsi") mask,
            in("rdx") before,
            in("r10") size_of::<u64>(),
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
}

/// The bit of a signal in a mask.
pub const fn signal_bit(signal: c_int) -> u64 {
    1 << (signal - 1)
}

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
