//! The program's SIGSEGV action, which the doorbell trap has taken the place of.
//!
//! The trap (`trap.rs`) is the kernel's action. A program that sets its own is told that it has
//! (`interpose/signals.rs`): it is stored here, and the trap passes on the faults that are not doorbells.

use crate::support::fresh::OWN;
use crate::support::raw::{self, KernelSigaction, rt_sigaction, set_mask, signal_bit, swap_mask, syscall};
use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The program's SIGSEGV action. Two copies, so that the trap can read one while the other is written, even when it
/// interrupts the writer; `GENERATION & 1` says which, and 0 that the trap was never installed.
static ACTION: [[AtomicUsize; 4]; 2] = [const { [const { AtomicUsize::new(0) }; 4] }; 2];
static GENERATION: AtomicUsize = AtomicUsize::new(0);

/// Whether the trap is there, so that the program's action lives here and not in the kernel.
pub fn is_trapped() -> bool {
    GENERATION.load(Ordering::Acquire) != 0
}

/// Stores the program's action.
pub fn set_previous(action: KernelSigaction) {
    // sigaction may be called in signal handlers: none may run on this thread while it holds the lock.
    let before = swap_mask(!0);
    let writer = OWN.action.lock();
    let next = GENERATION.load(Ordering::Relaxed) + 1;
    let words = [action.handler, action.flags as usize, action.restorer, action.mask as usize];
    for (word, value) in ACTION[next & 1].iter().zip(words) {
        word.store(value, Ordering::Relaxed);
    }
    // Release: who reads the generation reads these words.
    GENERATION.store(next, Ordering::Release);
    drop(writer);
    set_mask(before);
}

/// The program's action.
pub fn previous() -> KernelSigaction {
    loop {
        let generation = GENERATION.load(Ordering::Acquire);
        let [handler, flags, restorer, mask] =
            ACTION[generation & 1].each_ref().map(|word| word.load(Ordering::Acquire));
        // Two writes have passed if it moved, and the words may be of either.
        if GENERATION.load(Ordering::Relaxed) == generation {
            return KernelSigaction { handler, flags: flags as u64, restorer, mask: mask as u64 };
        }
    }
}

/// Does with a fault that is no doorbell what the kernel would do without the trap.
///
/// # Safety
/// Called by the trap with the arguments the kernel gave it.
pub unsafe fn chain(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let action = previous();
    // SAFETY: the kernel's siginfo, by the contract above.
    let sent_by_program = unsafe { (*info).si_code } <= 0;
    match action.handler {
        libc::SIG_IGN if sent_by_program => {}
        // An ignored fault would come back for ever; the kernel ends the process, and so do we: with the default action
        // in place the instruction faults again, or the signal is sent again, and the core dump shows the right place.
        libc::SIG_DFL | libc::SIG_IGN => {
            rt_sigaction(
                signal,
                Some(&KernelSigaction { handler: libc::SIG_DFL, flags: 0, restorer: 0, mask: 0 }),
                None,
            );
            if sent_by_program {
                // SAFETY: plain system calls; the signal stays pending until the trap returns.
                unsafe { syscall!(SYS_tgkill, raw::getpid(), syscall!(SYS_gettid), signal) };
            }
        }
        handler => {
            if action.flags & libc::SA_RESETHAND as u64 != 0 {
                set_previous(KernelSigaction { handler: libc::SIG_DFL, flags: 0, restorer: 0, mask: 0 });
            }
            // SAFETY: the kernel passes a ucontext to a SA_SIGINFO handler; its signal mask is one word.
            let interrupted =
                unsafe { (&raw const (*context.cast::<libc::ucontext_t>()).uc_sigmask).cast::<u64>().read() };
            let itself = if action.flags & libc::SA_NODEFER as u64 != 0 { 0 } else { signal_bit(signal) };
            // The trap runs with everything blocked; a handler of the program expects less. sigreturn restores it.
            set_mask(interrupted | action.mask | itself);
            if action.flags & libc::SA_SIGINFO as u64 != 0 {
                // SAFETY: the program installed it with SA_SIGINFO, so it has this type.
                let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) =
                    unsafe { std::mem::transmute(handler) };
                handler(signal, info, context);
            } else {
                // SAFETY: the program installed it without SA_SIGINFO, so it has this type.
                let handler: extern "C" fn(c_int) = unsafe { std::mem::transmute(handler) };
                handler(signal);
            }
        }
    }
}
