//! The C library's `syscall`: the calls of `preload.rs` by number.
//!
//! Memory hooks (UCX, Open MPI, libfabric) go on that way where they have replaced mmap. What is none of ours is done
//! just as the C library does it, and in no stack frame: some system calls return twice.

use crate::interpose::{calls, signals};
use crate::support::raw;
use std::ffi::{c_char, c_int, c_long, c_uint, c_ulong, c_void};

/// Those of the calls below whose numbers are below 64, as a set of bits.
const LOW: u64 = bit(libc::SYS_write)
    | bit(libc::SYS_open)
    | bit(libc::SYS_close)
    | bit(libc::SYS_mmap)
    | bit(libc::SYS_munmap)
    | bit(libc::SYS_rt_sigaction)
    | bit(libc::SYS_rt_sigprocmask)
    | bit(libc::SYS_ioctl)
    | bit(libc::SYS_dup)
    | bit(libc::SYS_dup2);

const fn bit(number: c_long) -> u64 {
    assert!(number < 64);
    1 << number
}

/// syscall(2). The C prototype is variadic: up to six arguments follow, the last on the stack.
///
/// # Safety
/// As the system call.
#[cfg_attr(not(test), unsafe(no_mangle))]
#[unsafe(naked)]
pub unsafe extern "C" fn syscall(_number: c_long) -> c_long {
    std::arch::naked_asm!(
        "cmp rdi, 64",
        "jae 2f",
        "movabs rax, {low}",
        "bt rax, rdi",
        "jc {ours}",
        "jmp 3f",
        "2:",
        "cmp rdi, {fcntl}",
        "je {ours}",
        "cmp rdi, {openat}",
        "je {ours}",
        "cmp rdi, {dup3}",
        "je {ours}",
        "cmp rdi, {close_range}",
        "je {ours}",
        "3:",
        "mov rax, rdi",
        "mov rdi, rsi",
        "mov rsi, rdx",
        "mov rdx, rcx",
        "mov r10, r8",
        "mov r8, r9",
        "mov r9, [rsp + 8]",
        "syscall",
        "cmp rax, -4095",
        "jae 4f",
        "ret",
        "4:",
        "mov rdi, rax",
        "jmp {told}",
        low = const LOW,
        fcntl = const libc::SYS_fcntl,
        openat = const libc::SYS_openat,
        dup3 = const libc::SYS_dup3,
        close_range = const libc::SYS_close_range,
        ours = sym ours,
        told = sym raw::told,
    )
}

/// A call that may be about our device. What is not goes to the kernel and nowhere else: who calls by number stands
/// behind the functions of the C library, or has replaced them.
extern "C" fn ours(number: c_long, a: usize, b: usize, c: usize, d: usize, e: usize, f: usize) -> c_long {
    // SAFETY: the arguments are the caller's of the system call, which has this contract.
    let plain = || unsafe { raw::call(number, [a, b, c, d, e, f]) };
    // SAFETY: as above.
    unsafe {
        match number {
            libc::SYS_write => calls::write(a as c_int, b as *const c_void, c) as c_long,
            libc::SYS_open => calls::open_at(libc::AT_FDCWD, a as *const c_char, b as c_int, c as c_uint).into(),
            libc::SYS_openat => calls::open_at(a as c_int, b as *const c_char, c as c_int, d as c_uint).into(),
            libc::SYS_close => calls::close(a as c_int).into(),
            libc::SYS_close_range => calls::close_range(a as c_uint, b as c_uint, c as c_int).into(),
            libc::SYS_rt_sigaction => signals::action_by_number(a as c_int, b, c, d),
            libc::SYS_rt_sigprocmask => signals::mask_by_number(a as c_int, b, c, d),
            libc::SYS_ioctl => calls::ioctl(a as c_int, b as c_ulong, c as *mut c_void).into(),
            libc::SYS_dup => calls::dup(a as c_int).into(),
            libc::SYS_dup2 => calls::dup2(a as c_int, b as c_int).into(),
            libc::SYS_dup3 => calls::dup3(a as c_int, b as c_int, c as c_int).into(),
            libc::SYS_fcntl if matches!(b as c_int, libc::F_DUPFD | libc::F_DUPFD_CLOEXEC) => {
                calls::copied(a as c_int, plain() as c_int).into()
            }
            libc::SYS_mmap => {
                let plain = || plain() as *mut c_void;
                calls::map(a as *mut c_void, b, d as c_int, e as c_int, f as c_long, plain) as c_long
            }
            libc::SYS_munmap => calls::unmap(a as *mut c_void, b, || plain() as c_int).into(),
            _ => plain(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Variadic = unsafe extern "C" fn(c_long, ...) -> c_long;

    fn by_number() -> Variadic {
        // SAFETY: it takes its arguments where a variadic function finds them.
        unsafe { std::mem::transmute::<*const (), Variadic>(syscall as *const ()) }
    }

    #[test]
    fn results_and_errors_are_those_of_the_c_library() {
        let syscall = by_number();
        // SAFETY: no pointers, or pointers to memory of this test.
        unsafe {
            assert_eq!(syscall(libc::SYS_getpid), c_long::from(libc::getpid()));
            raw::set_errno(0);
            assert_eq!(syscall(libc::SYS_close, -1), -1);
            assert_eq!(raw::errno(), libc::EBADF);
            assert_eq!(syscall(libc::SYS_lseek, -1, 0, 0), -1);
            assert_eq!(raw::errno(), libc::EBADF);
            assert_eq!(syscall(100_000), -1);
            assert_eq!(raw::errno(), libc::ENOSYS);
            assert_eq!(syscall(-1), -1);
        }
    }

    #[test]
    fn the_sixth_argument_arrives() {
        let syscall = by_number();
        let flags = libc::MAP_PRIVATE;
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
        // SAFETY: a new mapping, placed by the kernel.
        unsafe {
            // An offset that is no multiple of a page.
            assert_eq!(syscall(libc::SYS_mmap, 0usize, 4096usize, libc::PROT_READ, flags, fd, 1usize), -1);
            assert_eq!(raw::errno(), libc::EINVAL);
            let at = syscall(libc::SYS_mmap, 0usize, 4096usize, libc::PROT_READ, flags, fd, 0usize);
            assert_eq!(std::slice::from_raw_parts(at as *const u8, 4), b"\x7fELF");
            assert_eq!(syscall(libc::SYS_munmap, at, 4096usize), 0);
        }
    }

    #[test]
    fn a_call_that_returns_twice_finds_its_stack() {
        let syscall = by_number();
        // SAFETY: the child exits at once.
        let child = unsafe { syscall(libc::SYS_clone, libc::SIGCHLD, 0usize, 0usize, 0usize, 0usize) };
        if child == 0 {
            // SAFETY: ends the child.
            unsafe { libc::_exit(7) };
        }
        let mut status = 0;
        // SAFETY: `status` has room.
        unsafe { libc::waitpid(child as c_int, &mut status, 0) };
        assert_eq!(libc::WEXITSTATUS(status), 7);
    }
}
