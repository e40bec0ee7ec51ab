//! The C library calls that would reach the driver, by their names. What they do stands in `calls.rs`.
//!
//! Questions about files are in `attributes.rs`, functions that make such calls inside the C library in `library.rs`,
//! those about signals in `signals.rs`, calls by number in `system_call.rs`. Not covered, because they never get here:
//! static programs and system calls without the C library. One difference remains: a thread blocked in one of these
//! calls cannot be cancelled (pthread_cancel) there.

use crate::interpose::calls;
use crate::interpose::next::{call_next, interpose, next};
use crate::support::config;
use crate::support::raw::{fail, syscall};
use std::ffi::{CStr, c_char, c_int, c_long, c_uint, c_ulong, c_void};

const NETLINK_RDMA: c_int = 20;

next! {
    FCNTL = c"fcntl";
    MMAP = c"mmap";
    MUNMAP = c"munmap";
}

interpose! {
    /// open(2). The C prototype is variadic; on x86-64 a third argument comes in the same register either way.
    fn open, open64, __open, __open64(path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
        // SAFETY: by the contract, here and in all that follow.
        unsafe { calls::open_at(libc::AT_FDCWD, path, flags, mode) }
    }

    /// What _FORTIFY_SOURCE makes of open.
    fn __open_2, __open64_2(path: *const c_char, flags: c_int) -> c_int {
        // SAFETY: by the contract.
        unsafe { calls::open_at(libc::AT_FDCWD, path, flags, 0) }
    }

    /// openat(2).
    fn openat, openat64(dir: c_int, path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
        // SAFETY: by the contract.
        unsafe { calls::open_at(dir, path, flags, mode) }
    }

    /// What _FORTIFY_SOURCE makes of openat.
    fn __openat_2, __openat64_2(dir: c_int, path: *const c_char, flags: c_int) -> c_int {
        // SAFETY: by the contract.
        unsafe { calls::open_at(dir, path, flags, 0) }
    }

    /// close(2).
    fn close, __close(descriptor: c_int) -> c_int {
        calls::close(descriptor)
    }

    /// close_range(2).
    fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int {
        calls::close_range(first, last, flags)
    }

    /// closefrom(3).
    fn closefrom(first: c_int) -> () {
        calls::close_range(first.max(0) as c_uint, c_uint::MAX, 0);
    }

    /// dup(2).
    fn dup(descriptor: c_int) -> c_int {
        calls::dup(descriptor)
    }

    /// dup2(2).
    fn dup2, __dup2(from: c_int, to: c_int) -> c_int {
        calls::dup2(from, to)
    }

    /// dup3(2).
    fn dup3(from: c_int, to: c_int, flags: c_int) -> c_int {
        calls::dup3(from, to, flags)
    }

    /// fcntl(2).
    fn fcntl, fcntl64, __fcntl(descriptor: c_int, command: c_int, arg: c_ulong) -> c_int {
        // Not the plain system call: the C library makes F_GETOWN of another one.
        let result = call_next!(FCNTL, fn(c_int, c_int, c_ulong) -> c_int, -1, descriptor, command, arg);
        match command {
            libc::F_DUPFD | libc::F_DUPFD_CLOEXEC => calls::copied(descriptor, result),
            _ => result,
        }
    }

    /// write(2).
    fn write, __write(descriptor: c_int, from: *const c_void, len: usize) -> isize {
        // SAFETY: by the contract.
        unsafe { calls::write(descriptor, from, len) }
    }

    /// ioctl(2). The C prototype is variadic, as with `open`.
    fn ioctl(descriptor: c_int, request: c_ulong, arg: *mut c_void) -> c_int {
        // SAFETY: by the contract.
        unsafe { calls::ioctl(descriptor, request, arg) }
    }

    /// mmap(2).
    fn mmap, mmap64(
        at: *mut c_void,
        len: usize,
        prot: c_int,
        flags: c_int,
        descriptor: c_int,
        offset: c_long,
    ) -> *mut c_void {
        let plain = || {
            // Not the plain system call: memory hooks that have replaced the C library's function want to see the
            // program's calls. Looked up at load, and not here: the lookup may itself map memory.
            if let Some(mmap) = MMAP.found() {
                // SAFETY: the C library's function of that name has this type; the arguments are the caller's.
                return unsafe {
                    std::mem::transmute::<*mut c_void, Mmap>(mmap)(at, len, prot, flags, descriptor, offset)
                };
            }
            // SAFETY: by the contract.
            unsafe { syscall!(SYS_mmap, at, len, prot, flags, descriptor, offset) as *mut c_void }
        };
        // SAFETY: by the contract.
        unsafe { calls::map(at, len, flags, descriptor, offset, plain) }
    }

    /// munmap(2).
    fn munmap(at: *mut c_void, len: usize) -> c_int {
        calls::unmap(at, len, || {
            // As in `mmap`.
            if let Some(munmap) = MUNMAP.found() {
                // SAFETY: as in `mmap`.
                return unsafe { std::mem::transmute::<*mut c_void, Munmap>(munmap)(at, len) };
            }
            // SAFETY: by the contract.
            unsafe { syscall!(SYS_munmap, at, len) as c_int }
        })
    }
}

type Mmap = unsafe extern "C" fn(*mut c_void, usize, c_int, c_int, c_int, c_long) -> *mut c_void;
type Munmap = unsafe extern "C" fn(*mut c_void, usize) -> c_int;

// ---- the kernel's own device list --------------------------------------------------------------

/// socket(2).
///
/// # Safety
/// As in the C library.
#[cfg_attr(not(test), unsafe(no_mangle))]
#[unsafe(naked)]
pub unsafe extern "C" fn socket(_domain: c_int, _kind: c_int, _protocol: c_int) -> c_int {
    // A fourth argument: the return address, which tells the caller.
    std::arch::naked_asm!("mov rcx, [rsp]", "jmp {}", sym socket_from)
}

/// The kernel tells libibverbs its devices by netlink, and that list would win over the sysfs tree, where ours stand
/// beside them. libibverbs falls back to the tree without netlink. Tools that administer real devices (`rdma` of
/// iproute2) keep it; they come through libmnl.
extern "C" fn socket_from(domain: c_int, kind: c_int, protocol: c_int, caller: *const c_void) -> c_int {
    if domain == libc::AF_NETLINK && protocol == NETLINK_RDMA && config::get().is_some() && !is_in_libmnl(caller) {
        return fail(libc::EPROTONOSUPPORT);
    }
    // SAFETY: no pointers.
    unsafe { syscall!(SYS_socket, domain, kind, protocol) as c_int }
}

fn is_in_libmnl(code: *const c_void) -> bool {
    let mut info = std::mem::MaybeUninit::<libc::Dl_info>::uninit();
    // SAFETY: `info` has room; any address may be asked about.
    if unsafe { libc::dladdr(code, info.as_mut_ptr()) } == 0 {
        return false;
    }
    // SAFETY: filled by the successful call. The name is that of a loaded object, which stays loaded while its code
    // waits for us to return.
    let name = unsafe { CStr::from_ptr(info.assume_init().dli_fname) };
    name.to_bytes().rsplit(|byte| *byte == b'/').next().is_some_and(|name| name.starts_with(b"libmnl."))
}
