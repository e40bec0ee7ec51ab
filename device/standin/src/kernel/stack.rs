//! Where the device runs while a doorbell is carried out: a stack of its own.
//!
//! A thread may have the smallest stack there is, and its alternate one is no larger. `uar.rs` asks for every doorbell.

use crate::support::fresh::{OWN, Stacks};
use crate::support::raw::syscall;
use std::ffi::c_void;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Room for the deepest path through the device, several times; pages that are not touched take no memory.
const LEN: usize = 256 << 10;
const PAGE: usize = 4096;

std::arch::global_asm!(
    ".pushsection .text",
    ".balign 16",
    ".globl pvrdma_on_stack",
    ".hidden pvrdma_on_stack",
    // fn(argument: rdi, top: rsi, function: rdx)
    "pvrdma_on_stack:",
    ".cfi_startproc",
    "push rbp",
    ".cfi_adjust_cfa_offset 8",
    ".cfi_rel_offset rbp, 0",
    "mov rbp, rsp",
    ".cfi_def_cfa_register rbp",
    "mov rsp, rsi",
    // Not the very end: libc's `syscall` reads its last argument from the frame of its caller, whether there is one or
    // not, and a call that ends the function leaves no frame between.
    "sub rsp, 64",
    "call rdx",
    "mov rsp, rbp",
    ".cfi_def_cfa_register rsp",
    "pop rbp",
    ".cfi_adjust_cfa_offset -8",
    ".cfi_restore rbp",
    "ret",
    ".cfi_endproc",
    ".popsection",
);

unsafe extern "C" {
    fn pvrdma_on_stack(argument: *mut c_void, top: usize, function: extern "C" fn(*mut c_void));
}

/// What serves when there is no memory for a stack.
#[derive(Clone, Copy)]
pub enum Spare {
    /// The stack that the caller runs on.
    Own,
    /// What is below this address, which nobody uses.
    Below(usize),
}

/// Calls `function` on a stack of the device's.
pub fn run(function: extern "C" fn(*mut c_void), argument: *mut c_void, spare: Spare) {
    let stack = OWN.stacks.take();
    match (stack, spare) {
        (Some(top), _) | (None, Spare::Below(top)) => {
            // SAFETY: nobody else uses what is below `top`: it was taken, or the caller says so. An aligned end makes
            // the call an ordinary one.
            unsafe { pvrdma_on_stack(argument, top & !63, function) };
        }
        (None, Spare::Own) => function(argument),
    }
    if let Some(top) = stack {
        OWN.stacks.rest(top);
    }
}

impl Stacks {
    /// The upper end of a stack, taken or made.
    fn take(&self) -> Option<usize> {
        for slot in &self.0 {
            if slot.load(Ordering::Relaxed) != 0 {
                let top = slot.swap(0, Ordering::Acquire);
                if top != 0 {
                    return Some(top);
                }
            }
        }
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping, placed by the kernel; its lowest page becomes a guard.
        unsafe {
            let flags = flags | libc::MAP_NORESERVE;
            let at = syscall!(SYS_mmap, 0, LEN, protection, flags, -1, 0);
            if at == -1 {
                return None;
            }
            libc::mprotect(at as *mut c_void, PAGE, libc::PROT_NONE);
            libc::madvise(at as *mut c_void, LEN, libc::MADV_DONTFORK);
            Some(at as usize + LEN)
        }
    }

    /// Puts a stack aside for the next one.
    fn rest(&self, top: usize) {
        let free = |slot: &AtomicUsize| slot.compare_exchange(0, top, Ordering::Release, Ordering::Relaxed).is_ok();
        if !self.0.iter().any(free) {
            // SAFETY: made by `take`, and no longer used by its caller.
            unsafe { syscall!(SYS_munmap, top - LEN, LEN) };
        }
    }
}
