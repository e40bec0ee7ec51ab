//! Doorbell pages: how a store to one becomes a `Doorbell`.
//!
//! The page stays read-only for ever. A store faults; the handler decodes it, moves past it and has the device act
//! on it, in the thread that stored and before the next instruction, as a write to a trapped MMIO page does. Sampling
//! the page as memory would be cheaper and wrong: a CQ's ARM is overwritten by the POLL that follows it some
//! nanoseconds later.
//!
//! The fault comes from provider code at a known store, never from inside the C library, so the handler may do what
//! that code could do: take locks, allocate, call the kernel. It runs on the alternate stack if the program has one,
//! else on the thread's; both may be tiny, and the device therefore brings a stack of its own.

use crate::kernel::segv;
use crate::kernel::store::{self, Source};
use crate::support::fresh::{OWN, Stacks};
use crate::support::raw::{KernelSigaction, errno, rt_sigaction, set_errno};
use crate::support::trace;
use pvrdma_device::doorbell::Doorbell;
use pvrdma_device::handle::CtxHandle;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

const PAGE: usize = 4096;

/// What a doorbell is for: the device of the process that rang.
pub type Ring = fn(CtxHandle, Doorbell);

static RING: OnceLock<Ring> = OnceLock::new();

/// Makes a doorbell page for `ctx`, at `hint` if `flags` demand it, as mmap(2) of the command fd does.
///
/// # Safety
/// `hint` and `flags` are the caller's of mmap; MAP_FIXED replaces what is mapped there, by their wish.
pub unsafe fn map(ctx: CtxHandle, hint: *mut libc::c_void, flags: i32) -> Result<*mut libc::c_void, i32> {
    let placement = flags & (libc::MAP_FIXED | libc::MAP_FIXED_NOREPLACE);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | placement;
    // SAFETY: one anonymous page; where it goes is the caller's promise.
    let at = unsafe { libc::syscall(libc::SYS_mmap, hint, PAGE, libc::PROT_READ, flags, -1, 0 as libc::off_t) };
    if at == -1 {
        return Err(errno());
    }
    let at = at as usize;
    // The kernel maps the real page VM_DONTCOPY.
    // SAFETY: the page just made.
    unsafe { libc::madvise(at as *mut libc::c_void, PAGE, libc::MADV_DONTFORK) };
    let free = OWN.uars.iter().find(|page| {
        // Reserved by an odd address, which no fault compares equal to.
        page.at.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    });
    let Some(page) = free else {
        // SAFETY: the page just made; nobody knows it yet.
        unsafe { libc::syscall(libc::SYS_munmap, at, PAGE) };
        return Err(libc::ENOMEM);
    };
    page.ctx.store(ctx.0, Ordering::Relaxed);
    page.at.store(at, Ordering::Release);
    Ok(at as *mut libc::c_void)
}

/// Forgets the doorbell page at `at`; whether there was one. The caller unmaps it.
pub fn unmap(at: *const libc::c_void) -> bool {
    let at = at as usize;
    at != 0 && OWN.uars.iter().any(|page| page.at.compare_exchange(at, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok())
}

/// Context and offset of an address on a doorbell page.
fn find(at: usize) -> Option<(CtxHandle, usize)> {
    let base = at & !(PAGE - 1);
    if base == 0 {
        return None;
    }
    let page = OWN.uars.iter().find(|page| page.at.load(Ordering::Acquire) == base)?;
    Some((CtxHandle(page.ctx.load(Ordering::Relaxed)), at - base))
}

// ---- the trap ----------------------------------------------------------------------------------

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
pub fn install(ring: Ring) {
    RING.get_or_init(|| ring);
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
    if let Some((ctx, offset)) = find(at)
        && let Some(value) = emulate(frame)
    {
        let saved = errno();
        let mut call = Call { ctx, offset, value };
        on_device_stack(frame, &mut call);
        set_errno(saved);
        return;
    }
    // SAFETY: the arguments are the kernel's, unchanged.
    unsafe { segv::chain(signal, info, context) };
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
        eprintln!("pvrdma: a doorbell was written by an instruction that is no 32-bit store: {code:02x?}");
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

struct Call {
    ctx: CtxHandle,
    offset: usize,
    value: u32,
}

extern "C" fn ring(call: &mut Call) {
    let Some(doorbell) = Doorbell::decode(call.offset, call.value) else {
        if trace::enabled() {
            trace::line(format_args!("UAR +{:#x} {:#010x} ignored", call.offset, call.value));
        }
        return;
    };
    let Some(ring) = RING.get() else { return };
    // A panic must not unwind through a signal frame.
    let rung = std::panic::catch_unwind(|| ring(call.ctx, doorbell));
    if rung.is_err() {
        std::process::abort();
    }
}

/// Runs the device on a stack of its own.
fn on_device_stack(frame: &libc::ucontext_t, call: &mut Call) {
    let stack = OWN.stacks.take();
    // Without memory for one: below the red zone of the interrupted function, where it was about to call another.
    let top = stack.unwrap_or(((frame.uc_mcontext.gregs[libc::REG_RSP as usize] as usize) - 128) & !63);
    // SAFETY: `top` is the aligned end of a stack that nobody else uses until `rest`, or of the interrupted thread's free
    // part: that thread does not run until the handler returns. r12 survives the call by the C ABI.
    unsafe {
        std::arch::asm!(
            "xchg rsp, r12",
            // Not the very end: libc's `syscall` reads its last argument from the frame of its caller, whether there is
            // one or not, and a call that ends `ring` leaves no frame between.
            "sub rsp, 64",
            "call {ring}",
            "mov rsp, r12",
            ring = sym ring,
            in("rdi") std::ptr::from_mut(call),
            inout("r12") top => _,
            clobber_abi("C"),
        );
    }
    if let Some(top) = stack {
        OWN.stacks.rest(top);
    }
}

impl Stacks {
    /// Room for the deepest path through the device, several times; pages that are not touched take no memory.
    const LEN: usize = 256 << 10;

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
            let at = libc::syscall(libc::SYS_mmap, 0usize, Stacks::LEN, protection, flags, -1, 0 as libc::off_t);
            if at == -1 {
                return None;
            }
            libc::mprotect(at as *mut libc::c_void, PAGE, libc::PROT_NONE);
            libc::madvise(at as *mut libc::c_void, Stacks::LEN, libc::MADV_DONTFORK);
            Some(at as usize + Stacks::LEN)
        }
    }

    /// Puts a stack aside for the next one.
    fn rest(&self, top: usize) {
        let free = |slot: &AtomicUsize| slot.compare_exchange(0, top, Ordering::Release, Ordering::Relaxed).is_ok();
        if !self.0.iter().any(free) {
            // SAFETY: made by `take`, and no longer used by its caller.
            unsafe { libc::syscall(libc::SYS_munmap, top - Stacks::LEN, Stacks::LEN) };
        }
    }
}
