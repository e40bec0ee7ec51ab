//! Accesses to memory that its owner may take away under them.
//!
//! `dma.rs` makes every access to guest memory through [`access`]. A file that is truncated after it was mapped, or a
//! file system that has no room for a page, answers an access by SIGBUS, which would end the server and with it all
//! other guests. Seals would only rule out the first, and a client does not have to set them. So the signal is handled:
//! fresh pages take the place of the whole mapping, the access ends, and its caller hears that what it touched was not
//! the guest's. So do other threads that are just then in that mapping: before a page is replaced, a flag says so.

use std::io;
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

/// The memory was not there, or not all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone;

/// What this thread accesses now. Its own signal handler is the only other reader and writer, hence Relaxed.
struct Now {
    start: AtomicUsize,
    len: AtomicUsize,
    /// The flag of the guest.
    lost: AtomicPtr<AtomicBool>,
    gone: AtomicBool,
}

thread_local! {
    // Without a destructor and known at compile time: a signal handler may look at it.
    static NOW: Now = const {
        Now {
            start: AtomicUsize::new(0),
            len: AtomicUsize::new(0),
            lost: AtomicPtr::new(std::ptr::null_mut()),
            gone: AtomicBool::new(false),
        }
    };
}

/// Runs `access`, which touches bytes of the mapping `[start, start + len)`: whole pages, made by mmap(2), which the
/// caller keeps mapped meanwhile. What is missing of it is all zeroes from then on, and no file's any more; `lost` is
/// set before anybody can see those.
pub fn access<T>(start: NonNull<u8>, len: usize, lost: &AtomicBool, access: impl FnOnce() -> T) -> Result<T, Gone> {
    NOW.with(|now| {
        now.start.store(start.as_ptr().expose_provenance(), Ordering::Relaxed);
        now.lost.store(std::ptr::from_ref(lost).cast_mut(), Ordering::Relaxed);
        now.len.store(len, Ordering::Relaxed);
        std::sync::atomic::compiler_fence(Ordering::SeqCst);
        let result = access();
        std::sync::atomic::compiler_fence(Ordering::SeqCst);
        now.len.store(0, Ordering::Relaxed);
        match now.gone.swap(false, Ordering::Relaxed) || lost.load(Ordering::SeqCst) {
            false => Ok(result),
            true => Err(Gone),
        }
    })
}

/// What SIGBUS did before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// Handles SIGBUS from here on. Call it before the first [`access`].
pub fn prepare() -> io::Result<()> {
    if BEFORE.get().is_some() {
        return Ok(());
    }
    // SAFETY: a sigaction is plain data, for which zeroes are a value.
    let mut before: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: reads the present action into a value of the right type.
    if unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), &mut before) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // Of two threads that come here at once both have seen the same, or the second has seen ours and loses.
    let _ = BEFORE.set(before);
    // SAFETY: as above.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_sigbus as extern "C" fn(_, _, _) as usize;
    // On the stack that std gives each thread for such signals.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: `on_sigbus` has the signature that SA_SIGINFO asks for and does only what a handler may.
    match unsafe { libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

extern "C" fn on_sigbus(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a siginfo that is valid during the call; SIGBUS has an address.
    let address = unsafe { (*info).si_addr() }.addr();
    if replace(address) {
        return;
    }
    // Not ours: as if this handler were not there.
    let action = BEFORE.get().map(|before| (before.sa_sigaction, before.sa_flags & libc::SA_SIGINFO != 0));
    match action {
        Some((handler, true)) if handler != libc::SIG_DFL && handler != libc::SIG_IGN => {
            // SAFETY: it was installed with SA_SIGINFO, so this is its signature; it gets what we got.
            let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                unsafe { std::mem::transmute(handler) };
            handler(signal, info, context);
        }
        _ => {
            // The access is repeated on return and ends the process, where and as it should.
            // SAFETY: resets an action; async-signal-safe.
            unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
        }
    }
}

/// Puts fresh pages in the place of the mapping that this thread accesses, if `address` is in it.
fn replace(address: usize) -> bool {
    NOW.try_with(|now| {
        let (start, len) = (now.start.load(Ordering::Relaxed), now.len.load(Ordering::Relaxed));
        if address.wrapping_sub(start) >= len {
            return false;
        }
        // SAFETY: errno is this thread's, and put back: the code that was interrupted may be about to look at it.
        let errno = unsafe { *libc::__errno_location() };
        // SAFETY: the caller of `access` lends it while `len` is not 0.
        unsafe { &*now.lost.load(Ordering::Relaxed) }.store(true, Ordering::SeqCst);
        // Where the kernel promises no more memory than there is (vm.overcommit_memory 2), there may be none for all of
        // it, but for the page that is missing; the rest are replaced as they are met.
        let mapped = fresh(start, len) || fresh(address & !(PAGE - 1), PAGE);
        // SAFETY: as above.
        unsafe { *libc::__errno_location() = errno };
        now.gone.store(mapped, Ordering::Relaxed);
        mapped
    })
    .unwrap_or(false)
}

const PAGE: usize = 4096;

/// Puts fresh pages there: part of what this thread accesses, see [`replace`].
fn fresh(start: usize, len: usize) -> bool {
    let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    let start = std::ptr::with_exposed_provenance_mut(start);
    // SAFETY: the caller of `access` keeps it mapped, as its own, while `len` is not 0; other threads that copy there
    // meet either pages, all by raw accesses.
    unsafe { libc::mmap(start, len, prot, flags | libc::MAP_FIXED | libc::MAP_NORESERVE, -1, 0) != libc::MAP_FAILED }
}
