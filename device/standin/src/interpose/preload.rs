//! The C library calls that would reach the driver. Each asks whether it is about our device, our descriptors or our
//! sysfs tree; if not, it is the plain system call, as if this library were not there.
//!
//! Questions about files are in `attributes.rs`, functions that make such calls inside the C library in `library.rs`,
//! those about signals in `signals.rs`. Not covered, because they never get here: static programs and system calls
//! without the C library. One difference remains: a thread blocked in one of these calls cannot be cancelled
//! (pthread_cancel) there.

use crate::interpose::next::{call_next, interpose, next};
use crate::interpose::paths::{Target, target};
use crate::kernel::fd::{self, Object};
use crate::kernel::uar;
use crate::kernel::uverbs::{Errno, File};
use crate::process;
use crate::support::raw::{self, fail, syscall};
use crate::support::{config, trace};
use std::ffi::{CStr, c_char, c_int, c_long, c_uint, c_ulong, c_void};
use std::sync::Arc;

const NETLINK_RDMA: c_int = 20;
const PAGE: usize = 4096;

// ---- open and close ----------------------------------------------------------------------------

/// # Safety
/// As openat(2).
unsafe fn open_at(dir: c_int, path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    // SAFETY: by the contract.
    match unsafe { target(path) } {
        // SAFETY: by the contract.
        Target::Theirs => unsafe { syscall!(SYS_openat, dir, path, flags, mode) as c_int },
        // SAFETY: a terminated path of ours.
        Target::Tree(path) => unsafe { syscall!(SYS_openat, dir, path.as_ptr(), flags, mode) as c_int },
        Target::Node => open_node(flags),
    }
}

next! {
    FCNTL = c"fcntl";
}

/// Opens the device. The descriptor is a real one, of an empty memory file, so that all we do not interpose works. The
/// file is sealed: what inherits the descriptor (a forked child, a program started by exec) cannot write commands into
/// it and take that for success.
fn open_node(flags: c_int) -> c_int {
    let cloexec = if flags & libc::O_CLOEXEC != 0 { libc::MFD_CLOEXEC } else { 0 };
    let flags = cloexec | libc::MFD_ALLOW_SEALING;
    // SAFETY: a terminated name.
    let mut node = unsafe { syscall!(SYS_memfd_create, c"uverbs".as_ptr(), flags | libc::MFD_NOEXEC_SEAL) };
    if node < 0 && raw::errno() == libc::EINVAL {
        // Before Linux 6.3 there is no such flag.
        // SAFETY: as above.
        node = unsafe { syscall!(SYS_memfd_create, c"uverbs".as_ptr(), flags) };
    }
    if node >= 0 {
        let seals = libc::F_SEAL_WRITE | libc::F_SEAL_GROW | libc::F_SEAL_SHRINK | libc::F_SEAL_SEAL;
        // SAFETY: no pointers.
        unsafe { syscall!(SYS_fcntl, node, libc::F_ADD_SEALS, seals) };
        trace::open(fd::hide, fd::close_hidden);
        fd::insert(node as c_int, Object::Device(File::new(process::driver)));
    }
    node as c_int
}

/// The object leaves with a descriptor of the program's.
fn forget(descriptor: c_int) {
    if let Some(Object::Events(channel, _)) = fd::remove(descriptor)
        && !fd::shows(&channel)
    {
        channel.closed();
    }
}

interpose! {
    /// open(2). The C prototype is variadic; on x86-64 a third argument comes in the same register either way.
    fn open(path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
        // SAFETY: by the contract, here and in all that follow.
        unsafe { open_at(libc::AT_FDCWD, path, flags, mode) }
    }

    /// open64(3).
    fn open64(path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
        // SAFETY: by the contract.
        unsafe { open_at(libc::AT_FDCWD, path, flags, mode) }
    }

    /// What _FORTIFY_SOURCE makes of open.
    fn __open_2(path: *const c_char, flags: c_int) -> c_int {
        // SAFETY: by the contract.
        unsafe { open_at(libc::AT_FDCWD, path, flags, 0) }
    }

    /// What _FORTIFY_SOURCE makes of open64.
    fn __open64_2(path: *const c_char, flags: c_int) -> c_int {
        // SAFETY: by the contract.
        unsafe { open_at(libc::AT_FDCWD, path, flags, 0) }
    }

    /// openat(2).
    fn openat(dir: c_int, path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
        // SAFETY: by the contract.
        unsafe { open_at(dir, path, flags, mode) }
    }

    /// openat64(3).
    fn openat64(dir: c_int, path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
        // SAFETY: by the contract.
        unsafe { open_at(dir, path, flags, mode) }
    }

    /// What _FORTIFY_SOURCE makes of openat.
    fn __openat_2(dir: c_int, path: *const c_char, flags: c_int) -> c_int {
        // SAFETY: by the contract.
        unsafe { open_at(dir, path, flags, 0) }
    }

    /// What _FORTIFY_SOURCE makes of openat64.
    fn __openat64_2(dir: c_int, path: *const c_char, flags: c_int) -> c_int {
        // SAFETY: by the contract.
        unsafe { open_at(dir, path, flags, 0) }
    }

    /// close(2).
    fn close(descriptor: c_int) -> c_int {
        match fd::get(descriptor) {
            None => {}
            // A program that closes all it does not know means no harm.
            Some(Object::Hidden) => return fail(libc::EBADF),
            // Before the number is free for others.
            Some(_) => forget(descriptor),
        }
        raw::close(descriptor)
    }

    /// close_range(2).
    fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int {
        let whole = |first: c_uint, last: c_uint| {
            // SAFETY: no pointers.
            unsafe { syscall!(SYS_close_range, first, last, flags) as c_int }
        };
        let range = c_int::try_from(first).unwrap_or(c_int::MAX)..=c_int::try_from(last).unwrap_or(c_int::MAX);
        let ours = fd::in_range(range);
        // CLOSE_RANGE_CLOEXEC (4): nothing is closed now.
        if ours.is_empty() || first > last || flags & 4 != 0 {
            return whole(first, last);
        }
        let mut next = first;
        for (descriptor, hidden) in ours {
            if !hidden {
                forget(descriptor);
                continue;
            }
            let hidden = descriptor as c_uint;
            if next < hidden && whole(next, hidden - 1) != 0 {
                return -1;
            }
            next = hidden + 1;
        }
        if next <= last { whole(next, last) } else { 0 }
    }

    /// closefrom(3).
    fn closefrom(first: c_int) -> () {
        // SAFETY: no pointers.
        unsafe { close_range(first.max(0) as c_uint, c_uint::MAX, 0) };
    }

    /// dup(2).
    fn dup(descriptor: c_int) -> c_int {
        // SAFETY: no pointers.
        copied(descriptor, unsafe { syscall!(SYS_dup, descriptor) as c_int })
    }

    /// dup2(2).
    fn dup2(from: c_int, to: c_int) -> c_int {
        if from == to {
            // SAFETY: no pointers.
            return unsafe { syscall!(SYS_dup2, from, to) as c_int };
        }
        // SAFETY: no pointers.
        onto(from, to, || unsafe { syscall!(SYS_dup2, from, to) as c_int })
    }

    /// dup3(2).
    fn dup3(from: c_int, to: c_int, flags: c_int) -> c_int {
        // SAFETY: no pointers.
        onto(from, to, || unsafe { syscall!(SYS_dup3, from, to, flags) as c_int })
    }

    /// fcntl(2).
    fn fcntl(descriptor: c_int, command: c_int, arg: c_ulong) -> c_int {
        // Not the plain system call: the C library makes F_GETOWN of another one.
        let result = call_next!(FCNTL, fn(c_int, c_int, c_ulong) -> c_int, -1, descriptor, command, arg);
        match command {
            libc::F_DUPFD | libc::F_DUPFD_CLOEXEC => copied(descriptor, result),
            _ => result,
        }
    }

    /// fcntl64(3).
    fn fcntl64(descriptor: c_int, command: c_int, arg: c_ulong) -> c_int {
        // SAFETY: by the contract.
        unsafe { fcntl(descriptor, command, arg) }
    }
}

/// `copy` is a copy of `original`, or negative.
fn copied(original: c_int, copy: c_int) -> c_int {
    if copy >= 0
        && let Some(object @ (Object::Device(_) | Object::Events(..))) = fd::get(original)
    {
        fd::insert(copy, object);
    }
    copy
}

/// A copy that replaces `to`.
fn onto(from: c_int, to: c_int, copy: impl FnOnce() -> c_int) -> c_int {
    if let Some(Object::Hidden) = fd::get(to) {
        return fail(libc::EBUSY);
    }
    let result = copy();
    if result >= 0 {
        forget(to);
        copied(from, result);
    }
    result
}

// ---- commands and the doorbell page ------------------------------------------------------------

/// What a descriptor says about our device: the file, or that it is not ours.
fn device(descriptor: c_int) -> Option<Arc<File>> {
    match fd::get(descriptor) {
        Some(Object::Device(file)) => Some(file),
        _ => None,
    }
}

interpose! {
    /// write(2).
    fn write(descriptor: c_int, from: *const c_void, len: usize) -> isize {
        match device(descriptor) {
            None => {
                // SAFETY: by the contract.
                unsafe { syscall!(SYS_write, descriptor, from, len) as isize }
            }
            Some(file) => match file.write(from, len) {
                Ok(written) => written as isize,
                Err(Errno(errno)) => fail(errno) as isize,
            },
        }
    }

    /// ioctl(2). The C prototype is variadic, as with `open`.
    fn ioctl(descriptor: c_int, request: c_ulong, arg: *mut c_void) -> c_int {
        match device(descriptor) {
            None => {
                // SAFETY: by the contract.
                unsafe { syscall!(SYS_ioctl, descriptor, request, arg) as c_int }
            }
            Some(file) => match file.ioctl(request, arg) {
                Ok(()) => 0,
                Err(Errno(errno)) => fail(errno),
            },
        }
    }

    /// mmap(2).
    fn mmap(at: *mut c_void, len: usize, prot: c_int, flags: c_int, descriptor: c_int, offset: c_long) -> *mut c_void {
        if flags & libc::MAP_ANONYMOUS == 0
            && let Some(file) = device(descriptor)
        {
            // SAFETY: by the contract.
            return match unsafe { file.mmap(at, len, flags, offset) } {
                Ok(page) => page,
                Err(Errno(errno)) => {
                    fail(errno);
                    libc::MAP_FAILED
                }
            };
        }
        // SAFETY: by the contract.
        unsafe { syscall!(SYS_mmap, at, len, prot, flags, descriptor, offset) as *mut c_void }
    }

    /// mmap64(3).
    fn mmap64(at: *mut c_void, len: usize, prot: c_int, flags: c_int, descriptor: c_int, offset: c_long) -> *mut c_void {
        // SAFETY: by the contract.
        unsafe { mmap(at, len, prot, flags, descriptor, offset) }
    }

    /// munmap(2).
    fn munmap(at: *mut c_void, len: usize) -> c_int {
        // Before the address is free for others.
        if len <= PAGE {
            uar::unmap(at);
        }
        // SAFETY: by the contract.
        unsafe { syscall!(SYS_munmap, at, len) as c_int }
    }
}

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
