//! The trap: a store to a doorbell page that faults, decoded and carried out.
//!
//! `process.rs` installs it. The fault comes from provider code at a known store, never from inside the C library, so
//! the handler may do what that code could do: take locks, allocate, call the kernel. It runs on the alternate stack if
//! the program has one, else on the thread's; both may be tiny.

use crate::kernel::segv;
use crate::kernel::stack::Spare;
use crate::kernel::store::{self, Source};
use crate::kernel::uar;
use crate::support::hooks::Way;
use crate::support::raw::{KernelSigaction, rt_sigaction};
use pvrdma_fabric::say::say;

const SA_RESTORER: u64 = 0x0400_0000;

std::arch::global_asm!(
    ".pushsection .text",
    ".balign 16",
    "pvrdma_sigreturn:",
    // rt_sigreturn, in the very bytes of the C library's: unwinders know a signal frame by them.
    ".byte 0x48, 0xc7, 0xc0, 0x0f, 0x00, 0x00, 0x00, 0x0f, 0x05",
    ".popsection",
);

unsafe extern "C" {
    fn pvrdma_sigreturn();
}

/// Installs the trap unless it is installed. Called at every open of a context: a runtime that sets its handlers by
/// raw system calls (Go) may have come before us, and its handler then becomes the one we pass foreign faults to.
pub fn install() {
    let mut now = KernelSigaction { handler: 0, flags: 0, restorer: 0, mask: 0 };
    let ours = trap as *const () as usize;
    if !rt_sigaction(libc::SIGSEGV, None, Some(&mut now)) || now.handler == ours {
        return;
    }
    segv::set_previous(now);
    let action = KernelSigaction {
        handler: ours,
        flags: libc::SA_SIGINFO as u64 | libc::SA_ONSTACK as u64 | SA_RESTORER,
        restorer: pvrdma_sigreturn as *const () as usize,
        // Everything: a handler of the program that posts from within our doorbell would wait for itself.
        mask: !0,
    };
    rt_sigaction(libc::SIGSEGV, Some(&action), None);
}

extern "C" fn trap(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes both to a handler installed with SA_SIGINFO.
    let at = unsafe { (*info).si_addr() } as usize;
    // SAFETY: as above; nobody else uses the frame while the handler runs.
    let frame = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    if let Some(register) = uar::find(at)
        && let Some(value) = emulate(frame)
    {
        uar::ring(register, value, Way::Trap, spare_stack(frame));
        return;
    }
    // SAFETY: the arguments are the kernel's, unchanged.
    unsafe { segv::chain(signal, info, context) };
}

/// The alternate stack, if we are on it, may be tiny: then what the thread has below the red zone of the function that
/// was interrupted, where that was about to call another, is the better place.
fn spare_stack(frame: &libc::ucontext_t) -> Spare {
    let alternate = frame.uc_stack.ss_sp as usize;
    let here = std::ptr::from_ref(&alternate) as usize;
    if (alternate..alternate + frame.uc_stack.ss_size).contains(&here) {
        return Spare::Below(frame.uc_mcontext.gregs[libc::REG_RSP as usize] as usize - 128);
    }
    Spare::Own
}

/// Order of general registers in an instruction, as indices into the saved ones.
const GREGS: [i32; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// Does what the faulting store would do to the registers and returns the stored value.
fn emulate(frame: &mut libc::ucontext_t) -> Option<u32> {
    let gregs = &mut frame.uc_mcontext.gregs;
    let rip = gregs[libc::REG_RIP as usize] as usize;
    let mut code = [0u8; store::MAX_LEN];
    let mut decoded = None;
    for len in 1..=store::MAX_LEN {
        // One byte at a time: the instruction is mapped, what follows it may not be.
        // SAFETY: the processor has just fetched the instruction at `rip`; `decode` has asked for one more byte of it.
        code[len - 1] = unsafe { std::ptr::read_volatile((rip + len - 1) as *const u8) };
        decoded = store::decode(&code[..len]);
        if decoded.is_some() {
            break;
        }
    }
    let Some(decoded) = decoded else {
        say(format_args!("a doorbell was written by an instruction that is no 32-bit store: {code:02x?}"));
        return None;
    };
    gregs[libc::REG_RIP as usize] += decoded.len as i64;
    Some(match decoded.source {
        Source::Immediate(value) => value,
        Source::Register(n) => gregs[GREGS[usize::from(n & 15)] as usize] as u32,
        Source::Exchange(n) => {
            let register = &mut gregs[GREGS[usize::from(n & 15)] as usize];
            std::mem::replace(register, 0) as u32
        }
        Source::Vector(n) => {
            // SAFETY: the kernel saves the vector state in every frame of a 64-bit process and points `fpregs` to it.
            unsafe { (*frame.uc_mcontext.fpregs)._xmm[usize::from(n & 15)].element[0] }
        }
    })
}
