//! Keeps the doorbell trap working whatever the program does with SIGSEGV.
//!
//! Its action is stored by `segv.rs` instead of the kernel. And no mask that the program sets may contain SIGSEGV: a
//! synchronous fault while it is blocked kills the process.
//!
//! By name here, by number through `system_call.rs`. Programs that make system calls without the C library are not seen
//! here; `trap::install` looks again at every open.

use crate::interpose::next::{call_next, next};
use crate::kernel::segv::{is_trapped, previous, set_previous};
use crate::support::config;
use crate::support::raw::{KernelSigaction, copy_in, copy_out, fail, signal_bit, syscall};
use std::ffi::{c_int, c_long};
use zerocopy::{FromZeros, IntoBytes};

type Handler = libc::sighandler_t;

next! {
    SIGACTION = c"sigaction";
    SIGNAL = c"signal";
    SYSV_SIGNAL = c"sysv_signal";
    SIGSET = c"sigset";
    SIGIGNORE = c"sigignore";
    SIGHOLD = c"sighold";
    SIGPROCMASK = c"sigprocmask";
    PTHREAD_SIGMASK = c"pthread_sigmask";
    SIGBLOCK = c"sigblock";
    SIGSETMASK = c"sigsetmask";
    PTHREAD_ATTR_SETSIGMASK_NP = c"pthread_attr_setsigmask_np";
}

/// A copy of `set` that leaves SIGSEGV open, if the library is switched on.
///
/// # Safety
/// `set` is null or points to a signal set.
unsafe fn open_set(set: *const libc::sigset_t) -> Option<libc::sigset_t> {
    if set.is_null() || config::get().is_none() {
        return None;
    }
    // SAFETY: by the contract above.
    let mut copy = unsafe { *set };
    // SAFETY: `copy` is an initialised set.
    unsafe { libc::sigdelset(&mut copy, libc::SIGSEGV) };
    Some(copy)
}

fn action_from(action: &libc::sigaction) -> KernelSigaction {
    // SAFETY: the first word of a signal set holds signals 1 to 64, as the kernel's does.
    let mask = unsafe { (&raw const action.sa_mask).cast::<u64>().read() };
    KernelSigaction {
        handler: action.sa_sigaction,
        flags: action.sa_flags as u32 as u64,
        restorer: 0,
        mask: mask & !signal_bit(libc::SIGSEGV),
    }
}

fn action_to(action: &KernelSigaction) -> libc::sigaction {
    // SAFETY: integers and an optional function pointer, for which all bits zero is a value.
    let mut out: libc::sigaction = unsafe { std::mem::zeroed() };
    out.sa_sigaction = action.handler;
    // SA_RESTORER is between the C library and the kernel.
    out.sa_flags = (action.flags & !0x0400_0000) as c_int;
    // SAFETY: as in `action_from`.
    unsafe { (&raw mut out.sa_mask).cast::<u64>().write(action.mask) };
    out
}

/// sigaction(3).
///
/// # Safety
/// As in the C library.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn sigaction(signal: c_int, new: *const libc::sigaction, old: *mut libc::sigaction) -> c_int {
    if signal == libc::SIGSEGV && is_trapped() {
        let before = previous();
        // SAFETY: null or a struct, by the contract.
        if let Some(new) = unsafe { new.as_ref() } {
            set_previous(action_from(new));
        }
        if !old.is_null() {
            // SAFETY: room for a struct, by the contract.
            unsafe { old.write(action_to(&before)) };
        }
        return 0;
    }
    let mut copy;
    let mut new = new;
    // SAFETY: null or a struct, by the contract.
    if let Some(given) = unsafe { new.as_ref() }
        // SAFETY: part of the struct.
        && let Some(mask) = unsafe { open_set(&given.sa_mask) }
    {
        copy = *given;
        copy.sa_mask = mask;
        new = &raw const copy;
    }
    call_next!(SIGACTION, fn(c_int, *const libc::sigaction, *mut libc::sigaction) -> c_int, -1, signal, new, old)
}

/// Stores a handler for SIGSEGV and returns the former one.
fn replace(handler: Handler, flags: c_int) -> Handler {
    let before = previous().handler;
    let mask = if flags & libc::SA_NODEFER == 0 { signal_bit(libc::SIGSEGV) } else { 0 };
    set_previous(KernelSigaction { handler, flags: flags as u32 as u64, restorer: 0, mask });
    before
}

/// signal(3).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub extern "C" fn signal(signal: c_int, handler: Handler) -> Handler {
    if signal == libc::SIGSEGV && is_trapped() {
        return replace(handler, libc::SA_RESTART);
    }
    call_next!(SIGNAL, fn(c_int, Handler) -> Handler, libc::SIG_ERR, signal, handler)
}

/// bsd_signal(3).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub extern "C" fn bsd_signal(number: c_int, handler: Handler) -> Handler {
    signal(number, handler)
}

/// ssignal(3).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub extern "C" fn ssignal(number: c_int, handler: Handler) -> Handler {
    signal(number, handler)
}

/// sysv_signal(3).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub extern "C" fn sysv_signal(signal: c_int, handler: Handler) -> Handler {
    if signal == libc::SIGSEGV && is_trapped() {
        return replace(handler, libc::SA_RESETHAND | libc::SA_NODEFER);
    }
    call_next!(SYSV_SIGNAL, fn(c_int, Handler) -> Handler, libc::SIG_ERR, signal, handler)
}

/// What signal(3) is in programs built for System V semantics.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub extern "C" fn __sysv_signal(number: c_int, handler: Handler) -> Handler {
    sysv_signal(number, handler)
}

/// sigset(3). SIGSEGV cannot be held.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub extern "C" fn sigset(signal: c_int, handler: Handler) -> Handler {
    const SIG_HOLD: Handler = 2;
    if signal == libc::SIGSEGV && handler == SIG_HOLD && config::get().is_some() {
        return previous().handler;
    }
    if signal == libc::SIGSEGV && is_trapped() {
        return replace(handler, 0);
    }
    call_next!(SIGSET, fn(c_int, Handler) -> Handler, libc::SIG_ERR, signal, handler)
}

/// sigignore(3).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub extern "C" fn sigignore(signal: c_int) -> c_int {
    if signal == libc::SIGSEGV && is_trapped() {
        replace(libc::SIG_IGN, 0);
        return 0;
    }
    call_next!(SIGIGNORE, fn(c_int) -> c_int, -1, signal)
}

/// sighold(3). SIGSEGV cannot be held.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub extern "C" fn sighold(signal: c_int) -> c_int {
    if signal == libc::SIGSEGV && config::get().is_some() {
        return 0;
    }
    call_next!(SIGHOLD, fn(c_int) -> c_int, -1, signal)
}

/// sigprocmask(2).
///
/// # Safety
/// As in the C library.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn sigprocmask(how: c_int, new: *const libc::sigset_t, old: *mut libc::sigset_t) -> c_int {
    // SAFETY: by the contract.
    let copy = if how == libc::SIG_UNBLOCK { None } else { unsafe { open_set(new) } };
    let new = copy.as_ref().map_or(new, std::ptr::from_ref);
    call_next!(SIGPROCMASK, fn(c_int, *const libc::sigset_t, *mut libc::sigset_t) -> c_int, -1, how, new, old)
}

/// pthread_sigmask(3).
///
/// # Safety
/// As in the C library.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn pthread_sigmask(how: c_int, new: *const libc::sigset_t, old: *mut libc::sigset_t) -> c_int {
    // SAFETY: by the contract.
    let copy = if how == libc::SIG_UNBLOCK { None } else { unsafe { open_set(new) } };
    let new = copy.as_ref().map_or(new, std::ptr::from_ref);
    let failed = libc::ENOSYS;
    call_next!(PTHREAD_SIGMASK, fn(c_int, *const libc::sigset_t, *mut libc::sigset_t) -> c_int, failed, how, new, old)
}

fn open_mask(mask: c_int) -> c_int {
    if config::get().is_some() { mask & !(signal_bit(libc::SIGSEGV) as c_int) } else { mask }
}

/// sigblock(3).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub extern "C" fn sigblock(mask: c_int) -> c_int {
    call_next!(SIGBLOCK, fn(c_int) -> c_int, -1, open_mask(mask))
}

/// sigsetmask(3).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub extern "C" fn sigsetmask(mask: c_int) -> c_int {
    call_next!(SIGSETMASK, fn(c_int) -> c_int, -1, open_mask(mask))
}

/// pthread_attr_setsigmask_np(3), of glibc 2.32 and later.
///
/// # Safety
/// As in the C library.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn pthread_attr_setsigmask_np(
    attr: *mut libc::pthread_attr_t,
    mask: *const libc::sigset_t,
) -> c_int {
    // SAFETY: by the contract.
    let copy = unsafe { open_set(mask) };
    let mask = copy.as_ref().map_or(mask, std::ptr::from_ref);
    let failed = libc::ENOSYS;
    call_next!(
        PTHREAD_ATTR_SETSIGMASK_NP,
        fn(*mut libc::pthread_attr_t, *const libc::sigset_t) -> c_int,
        failed,
        attr,
        mask
    )
}

// ---- by number ---------------------------------------------------------------------------------

/// rt_sigprocmask(2). The addresses are the program's and may lead nowhere.
pub fn mask_by_number(how: c_int, new: usize, old: usize, size: usize) -> c_long {
    let mut mask = 0u64;
    let mut from = new;
    if new != 0 && how != libc::SIG_UNBLOCK && size == size_of::<u64>() && config::get().is_some() {
        if let Err(errno) = copy_in(new as u64, mask.as_mut_bytes()) {
            return fail(errno).into();
        }
        mask &= !signal_bit(libc::SIGSEGV);
        from = (&raw const mask) as usize;
    }
    // SAFETY: a mask of ours or an address that the kernel judges, as it does `old`: what it writes there is what the
    // program has asked for.
    unsafe { syscall!(SYS_rt_sigprocmask, how, from, old, size) }
}

/// rt_sigaction(2), as above.
pub fn action_by_number(signal: c_int, new: usize, old: usize, size: usize) -> c_long {
    let ours = size == size_of::<u64>() && config::get().is_some();
    let mut action = None;
    if ours && new != 0 {
        let mut given = KernelSigaction::new_zeroed();
        if let Err(errno) = copy_in(new as u64, given.as_mut_bytes()) {
            return fail(errno).into();
        }
        given.mask &= !signal_bit(libc::SIGSEGV);
        action = Some(given);
    }
    if ours && signal == libc::SIGSEGV && is_trapped() {
        let before = previous();
        if let Some(new) = action {
            set_previous(new);
        }
        let told = if old == 0 { Ok(()) } else { copy_out(old as u64, before.as_bytes()) };
        return told.map_or_else(|errno| fail(errno).into(), |()| 0);
    }
    let from = action.as_ref().map_or(new, |action| std::ptr::from_ref(action) as usize);
    // SAFETY: as in `mask_by_number`; what the action is, is the program's own business.
    unsafe { syscall!(SYS_rt_sigaction, signal, from, old, size) }
}

#[cfg(test)]
mod tests {
    use super::*;

    // One test: the stored action is the process's.
    #[test]
    fn the_programs_action_is_stored_and_given_back() {
        assert!(!is_trapped());
        set_previous(KernelSigaction { handler: libc::SIG_DFL, flags: 0, restorer: 0, mask: 0 });
        assert!(is_trapped());

        // SAFETY: all zero is a value.
        let mut new: libc::sigaction = unsafe { std::mem::zeroed() };
        new.sa_sigaction = 0x1234;
        new.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: a set of our own.
        unsafe { libc::sigfillset(&mut new.sa_mask) };
        // SAFETY: as above.
        let mut old: libc::sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: both structs are ours.
        assert_eq!(unsafe { sigaction(libc::SIGSEGV, &new, &mut old) }, 0);
        assert_eq!(old.sa_sigaction, libc::SIG_DFL);
        // SAFETY: null asks only.
        assert_eq!(unsafe { sigaction(libc::SIGSEGV, std::ptr::null(), &mut old) }, 0);
        assert_eq!((old.sa_sigaction, old.sa_flags), (0x1234, new.sa_flags));
        // SAFETY: an initialised set.
        let member = |number| unsafe { libc::sigismember(&old.sa_mask, number) } == 1;
        assert!(member(libc::SIGTERM) && !member(libc::SIGSEGV));

        assert_eq!(signal(libc::SIGSEGV, 0x5678), 0x1234);
        assert_eq!(previous().flags, libc::SA_RESTART as u64);
        assert_eq!(sysv_signal(libc::SIGSEGV, libc::SIG_DFL), 0x5678);
        assert_eq!(sigset(libc::SIGSEGV, 0x9abc), libc::SIG_DFL);
        assert_eq!(sigignore(libc::SIGSEGV), 0);
        assert_eq!(previous().handler, libc::SIG_IGN);
    }
}
