//! Doorbell pages: how a store to one becomes a `Doorbell`.
//!
//! The page stays read-only for ever. A store faults (`trap.rs`), or its declared place leads here without a fault
//! (`site.rs`); either way the device acts on it in the thread that stored and before the next instruction, as on a
//! write to a trapped MMIO page. Sampling the page as memory would be cheaper and wrong: a CQ's ARM is overwritten by
//! the POLL that follows it some nanoseconds later.

use crate::kernel::stack::{self, Spare};
use crate::support::fresh::OWN;
use crate::support::hooks::{self, Way};
use crate::support::raw::{errno, set_errno, syscall};
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
pub unsafe fn map(ctx: CtxHandle, hint: *mut c_void, flags: i32) -> Result<*mut c_void, i32> {
    let placement = flags & (libc::MAP_FIXED | libc::MAP_FIXED_NOREPLACE);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | placement;
    // SAFETY: one anonymous page; where it goes is the caller's promise.
    let at = unsafe { syscall!(SYS_mmap, hint, PAGE, libc::PROT_READ, flags, -1, 0) };
    if at == -1 {
        return Err(errno());
    }
    let at = at as usize;
    if !enter(ctx, at) {
        // SAFETY: the page just made; nobody knows it yet.
        unsafe { syscall!(SYS_munmap, at, PAGE) };
        return Err(libc::ENOMEM);
    }
    Ok(at as *mut c_void)
}

/// Makes a doorbell page for `ctx` of one that the program has mapped from the command fd's own file, past `map`: what
/// is stored there from now on is a doorbell. The error is an errno.
///
/// # Safety
/// The page is a mapping of that file, which is there for this alone.
pub unsafe fn adopt(ctx: CtxHandle, at: usize) -> Result<(), i32> {
    // SAFETY: by the contract; nobody reads or writes the page as memory.
    if unsafe { syscall!(SYS_mprotect, at, PAGE, libc::PROT_READ) } != 0 {
        return Err(errno());
    }
    if enter(ctx, at) { Ok(()) } else { Err(libc::ENOMEM) }
}

/// Enters a page. `false`: the table is full.
fn enter(ctx: CtxHandle, at: usize) -> bool {
    // The kernel maps the real page VM_DONTCOPY.
    // SAFETY: a page of `map` or `adopt`, which a child of fork does without.
    unsafe { libc::madvise(at as *mut c_void, PAGE, libc::MADV_DONTFORK) };
    // An entry may have outlived its page: memory hooks (Open MPI, UCX, libfabric) replace munmap in memory, and then
    // `replace` is not told. The first with an address is what counts, so there must be but one.
    // Reserved like a free one: who unmapped what was there may be about to clear it.
    let stale = OWN.uars.iter().find(|page| {
        let before = page.at.load(Ordering::Acquire);
        address(before) == at && page.at.compare_exchange(before, RESERVED, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    });
    let free = stale.or_else(|| {
        OWN.uars.iter().find(|page| {
            let before = page.at.load(Ordering::Relaxed);
            let is_free = before == 0 || before != RESERVED && page.ctx.load(Ordering::Relaxed) == ENDED;
            is_free && page.at.compare_exchange(before, RESERVED, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        })
    });
    let Some(page) = free else { return false };
    page.ctx.store(ctx.0, Ordering::Relaxed);
    page.at.store(at, Ordering::Release);
    true
}

/// No address at all, which no fault compares equal to.
const RESERVED: usize = 1;
/// Beside an address: somebody is about to unmap the page, and may yet fail.
const LEAVING: usize = 2;

/// The address in the word of a page; 0 is none.
fn address(word: usize) -> usize {
    word & !(PAGE - 1)
}

/// A context that no device has: its pages take doorbells, and nothing comes of them.
const ENDED: u32 = u32::MAX;

/// The context ends. A page that is still mapped stays one, as on hardware, where it would ring for nobody.
pub fn end(ctx: CtxHandle) {
    for page in &OWN.uars {
        if page.at.load(Ordering::Acquire) != 0 {
            let _ = page.ctx.compare_exchange(ctx.0, ENDED, Ordering::Relaxed, Ordering::Relaxed);
        }
    }
}

/// Carries out `change`, after which the range is something else if `done` says so: then the doorbell pages in it are
/// forgotten, and else they stay. Those that were made meanwhile stay too: the range was free for others before we
/// came to forget anything.
pub fn replace<T>(from: *const c_void, len: usize, change: impl FnOnce() -> T, done: impl FnOnce(&T) -> bool) -> T {
    let range = from as usize..(from as usize).saturating_add(len);
    // `pass` looks at the words of the pages within the range and says what becomes of them.
    let sweep = |pass: fn(usize) -> Option<usize>| {
        let mut any = false;
        for page in &OWN.uars {
            let word = page.at.load(Ordering::Acquire);
            if range.contains(&address(word))
                && address(word) != 0
                && let Some(new) = pass(word)
            {
                any |= page.at.compare_exchange(word, new, Ordering::AcqRel, Ordering::Relaxed).is_ok();
            }
        }
        any
    };
    let any = sweep(|word| Some(word | LEAVING));
    let result = change();
    if any {
        if done(&result) {
            sweep(|word| (word & LEAVING != 0).then_some(0));
        } else {
            sweep(|word| Some(word & !LEAVING));
        }
    }
    result
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
    let page = OWN.uars.iter().find(|page| address(page.at.load(Ordering::Acquire)) == base)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Mutex, MutexGuard, PoisonError};

    const HERE: CtxHandle = CtxHandle(7);

    /// The table is the process's, and so are addresses.
    static ALONE: Mutex<()> = Mutex::new(());

    fn alone() -> MutexGuard<'static, ()> {
        ALONE.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unmap(at: *mut c_void, result: i32) {
        // SAFETY: a page of the test's, which nobody uses any more.
        let act = || if result == 0 { unsafe { libc::munmap(at, PAGE) } } else { result };
        replace(at, PAGE, act, |result| *result == 0);
    }

    #[test]
    fn a_page_is_forgotten_once_it_is_gone_and_no_sooner() {
        let _alone = alone();
        // SAFETY: placed by the kernel.
        let at = unsafe { map(HERE, std::ptr::null_mut(), 0) }.expect("a page");
        assert!(find(at as usize + 8).is_some());
        // What failed has changed nothing.
        unmap(at, -1);
        assert!(find(at as usize).is_some());
        unmap(at.wrapping_byte_add(PAGE), -1);
        unmap(at, 0);
        assert!(find(at as usize).is_none());
    }

    #[test]
    fn a_page_that_comes_while_another_goes_stays() {
        let _alone = alone();
        // SAFETY: placed by the kernel.
        let at = unsafe { map(HERE, std::ptr::null_mut(), 0) }.expect("a page");
        let other = CtxHandle(8);
        let act = || {
            assert!(find(at as usize).is_some(), "still mapped, and it rings");
            // SAFETY: the page of this test, and then another one in its place.
            unsafe { map(other, at, libc::MAP_FIXED) }.expect("a page")
        };
        replace(at, PAGE, act, |_| true);
        assert_eq!(find(at as usize).map(|register| register.ctx), Some(other));
        unmap(at, 0);
        assert!(find(at as usize).is_none());
    }
}
