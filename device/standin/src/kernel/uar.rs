//! Doorbell pages: how a store to one becomes a `Doorbell`.
//!
//! The page stays read-only for ever. A store faults (`trap.rs`), or its declared place leads here without a fault
//! (`site.rs`); either way the device acts on it in the thread that stored and before the next instruction, as on a
//! write to a trapped MMIO page. Sampling the page as memory would be cheaper and wrong: a CQ's ARM is overwritten by
//! the POLL that follows it some nanoseconds later.

use crate::kernel::stack::{self, Spare};
use crate::support::fresh::OWN;
use crate::support::hooks::{self, Way};
use crate::support::raw::{errno, set_errno};
use crate::support::trace;
use pvrdma_device::doorbell::Doorbell;
use pvrdma_device::handle::CtxHandle;
use std::ffi::c_void;
use std::sync::OnceLock;
use std::sync::atomic::Ordering;

const PAGE: usize = 4096;

/// What a doorbell is for: the device of the process that rang.
pub type Ring = fn(CtxHandle, Doorbell);

static RING: OnceLock<Ring> = OnceLock::new();

/// From now on doorbells go to `ring`.
pub fn serve(ring: Ring) {
    RING.get_or_init(|| ring);
}

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

/// A register of a doorbell page: the context it is of, and its offset.
pub struct Register {
    ctx: CtxHandle,
    offset: usize,
}

/// The register at an address, if that is on a doorbell page of this process.
pub fn find(at: usize) -> Option<Register> {
    let base = at & !(PAGE - 1);
    if base == 0 {
        return None;
    }
    let page = OWN.uars.iter().find(|page| page.at.load(Ordering::Acquire) == base)?;
    Some(Register { ctx: CtxHandle(page.ctx.load(Ordering::Relaxed)), offset: at - base })
}

/// A doorbell on its way to the device.
struct Call {
    register: Register,
    value: u32,
}

/// Carries out a store of `value`. All signals must be blocked: a handler of the program that posts from within our
/// doorbell would wait for itself.
pub fn ring(register: Register, value: u32, way: Way, spare: Spare) {
    let saved = errno();
    hooks::came_by(way);
    let mut call = Call { register, value };
    stack::run(carry_out, (&raw mut call).cast(), spare);
    set_errno(saved);
}

extern "C" fn carry_out(call: *mut c_void) {
    // SAFETY: `ring` passes its own.
    let Call { register: Register { ctx, offset }, value } = unsafe { &*call.cast::<Call>() };
    let Some(doorbell) = Doorbell::decode(*offset, *value) else {
        if trace::enabled() {
            trace::line(format_args!("UAR +{offset:#x} {value:#010x} ignored"));
        }
        return;
    };
    let Some(ring) = RING.get() else { return };
    // A panic must not unwind into the program's code, which is in the middle of an instruction.
    let rung = std::panic::catch_unwind(|| ring(*ctx, doorbell));
    if rung.is_err() {
        std::process::abort();
    }
}
