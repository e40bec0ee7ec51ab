//! Hooks for tests of providers: what traffic alone cannot show is seen and brought about from inside the program.
//!
//! A program finds them by dlsym(3); they do something only with `PVRDMA_HOOKS=1` in the environment, and are refused
//! otherwise (-EPERM, NULL). With the device frozen the program is itself the device: it reads requests from the
//! rings and writes completions into them. Strings name what is meant, so no header is needed:
//!
//! | function | |
//! |---|---|
//! | `int pvrdma_hook_freeze(int on)` | doorbells are counted, but the device does not hear them |
//! | `long pvrdma_hook_doorbells(const char *kind)` | how many: `send`, `recv`, `srq`, `arm`, `poll`; by which way: `site`, `trap` |
//! | `long pvrdma_hook_commands(const char *name)` | how many, by their names in a trace: `query_port` |
//! | `long pvrdma_hook_handle(uint32_t number)` | the device's handle of the CQ, QP or SRQ that libibverbs knows by `handle` |
//! | `void *pvrdma_hook_ring(uint32_t number, unsigned nth, size_t *len)` | its memory; a QP has two, send and receive |
//! | `int pvrdma_hook_answer(const char *field, uint64_t value)` | the kernel says this from now on; 0: what is true |
//! | `int pvrdma_hook_call(const char *when, void (*f)(void *), void *arg)` | once: before the device hears a doorbell of that kind, or when a command of that name is done and its caller does not know it yet |
//!
//! Fields: `qp_tab_size`, `qp_handle`, `cqe` (answers of get_context, create_qp, create_cq), `max_cqe`, `max_srq_wr`
//! (limits, also those that the kernel checks itself).
//!
//! Numbers are those of the context opened last. Called by `uverbs/` and `process.rs`.

use crate::support::config;
use pvrdma_device::doorbell::Doorbell;
use pvrdma_ffi::dev_api::pvrdma_device_caps;
use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int, c_long, c_uint, c_void};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What can be answered otherwise; the order of [`FIELDS`].
#[derive(Clone, Copy)]
pub enum Field {
    QpTabSize,
    QpHandle,
    Cqe,
    MaxCqe,
    MaxSrqWr,
}

const FIELDS: [&CStr; 5] = [c"qp_tab_size", c"qp_handle", c"cqe", c"max_cqe", c"max_srq_wr"];
const DOORBELLS: [&CStr; 7] = [c"send", c"recv", c"srq", c"arm", c"poll", c"site", c"trap"];

/// How a doorbell came to us; the place in [`DOORBELLS`].
#[derive(Clone, Copy)]
pub enum Way {
    /// By the jump at a declared site.
    Site = 5,
    /// By a fault.
    Trap = 6,
}

static FROZEN: AtomicBool = AtomicBool::new(false);
static ANSWERS: [AtomicU64; FIELDS.len()] = [const { AtomicU64::new(0) }; FIELDS.len()];
static RUNG: [AtomicU64; DOORBELLS.len()] = [const { AtomicU64::new(0) }; DOORBELLS.len()];
static COMMANDS: Mutex<BTreeMap<&'static str, c_long>> = Mutex::new(BTreeMap::new());
/// Newest last: its number hides older ones.
static MADE: Mutex<Vec<Made>> = Mutex::new(Vec::new());
static CALL: Mutex<Option<Call>> = Mutex::new(None);

struct Made {
    number: u32,
    handle: u32,
    /// Address and length, as the program gave them.
    rings: Vec<(u64, u32)>,
}

struct Call {
    when: String,
    function: extern "C" fn(*mut c_void),
    argument: *mut c_void,
}

// SAFETY: the argument is not looked at, only passed on to the program's own function, which knows its threads.
unsafe impl Send for Call {}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn enabled() -> bool {
    config::get().is_some_and(|config| config.hooks)
}

/// Calls the program if it asked to be called now.
fn reached(when: &str) {
    let call = lock(&CALL).take_if(|call| call.when == when);
    // Not under the lock: it may ask for the next call.
    if let Some(call) = call {
        (call.function)(call.argument);
    }
}

// ---- what the stand-in reports -----------------------------------------------------------------

/// A doorbell came, whatever is in it.
pub fn came_by(way: Way) {
    if enabled() {
        RUNG[way as usize].fetch_add(1, Ordering::Relaxed);
    }
}

/// A doorbell was rung; whether that is all that shall come of it.
pub fn doorbell(doorbell: Doorbell) -> bool {
    if !enabled() {
        return false;
    }
    let kinds = match doorbell {
        Doorbell::Qp { send, recv, .. } => [send, recv, false, false, false],
        Doorbell::Srq { .. } => [false, false, true, false, false],
        Doorbell::Cq { arm, poll, .. } => [false, false, false, arm.is_some(), poll],
    };
    for (nth, name) in DOORBELLS.iter().enumerate().filter(|(nth, _)| kinds.get(*nth) == Some(&true)) {
        RUNG[nth].fetch_add(1, Ordering::Relaxed);
        reached(name.to_str().unwrap_or_default());
    }
    FROZEN.load(Ordering::Relaxed)
}

/// A command was carried out; its caller does not know it yet, and no lock is held.
pub fn command(name: &'static str) {
    if enabled() {
        *lock(&COMMANDS).entry(name).or_default() += 1;
        reached(name);
    }
}

/// An object with rings was made.
pub fn made(number: u32, handle: u32, rings: &[(u64, u32)]) {
    if enabled() {
        lock(&MADE).push(Made { number, handle, rings: rings.to_vec() });
    }
}

/// What to answer for `field`, where `own` is true.
pub fn answer(field: Field, own: u32) -> u32 {
    // Zero, and not worth a look at the settings, unless somebody was let in before.
    match ANSWERS[field as usize].load(Ordering::Relaxed) {
        0 => own,
        value => value as u32,
    }
}

/// The device's limits as the kernel shall see them.
pub fn limits(caps: pvrdma_device_caps) -> pvrdma_device_caps {
    pvrdma_device_caps {
        max_cqe: answer(Field::MaxCqe, caps.max_cqe),
        max_srq_wr: answer(Field::MaxSrqWr, caps.max_srq_wr),
        ..caps
    }
}

// ---- what the program calls --------------------------------------------------------------------

const EPERM: c_int = -libc::EPERM;
const EINVAL: c_int = -libc::EINVAL;
const ENOENT: c_int = -libc::ENOENT;

/// The place of `name` in `names`, or a negative errno.
///
/// # Safety
/// `name` must be a terminated string.
unsafe fn place(name: *const c_char, names: &[&CStr]) -> Result<usize, c_int> {
    if !enabled() {
        return Err(EPERM);
    }
    // SAFETY: by the contract.
    let name = unsafe { CStr::from_ptr(name) };
    names.iter().position(|known| *known == name).ok_or(EINVAL)
}

/// See the module text.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub extern "C" fn pvrdma_hook_freeze(on: c_int) -> c_int {
    if !enabled() {
        return EPERM;
    }
    FROZEN.store(on != 0, Ordering::Relaxed);
    0
}

/// See the module text.
///
/// # Safety
/// `kind` must be a terminated string.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn pvrdma_hook_doorbells(kind: *const c_char) -> c_long {
    // SAFETY: by the contract.
    match unsafe { place(kind, &DOORBELLS) } {
        Ok(nth) => RUNG[nth].load(Ordering::Relaxed) as c_long,
        Err(error) => error.into(),
    }
}

/// See the module text.
///
/// # Safety
/// `name` must be a terminated string.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn pvrdma_hook_commands(name: *const c_char) -> c_long {
    if !enabled() {
        return EPERM.into();
    }
    // SAFETY: by the contract.
    let name = unsafe { CStr::from_ptr(name) }.to_str().unwrap_or_default();
    lock(&COMMANDS).get(name).copied().unwrap_or(0)
}

fn find<T>(number: u32, read: impl FnOnce(&Made) -> Option<T>) -> Option<T> {
    lock(&MADE).iter().rfind(|made| made.number == number).and_then(read)
}

/// See the module text.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub extern "C" fn pvrdma_hook_handle(number: u32) -> c_long {
    if !enabled() {
        return EPERM.into();
    }
    find(number, |made| Some(made.handle.into())).unwrap_or(ENOENT.into())
}

/// See the module text. The memory is the provider's: it is there as long as the object is.
///
/// # Safety
/// `len` must be NULL or valid for a write.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn pvrdma_hook_ring(number: u32, nth: c_uint, len: *mut usize) -> *mut c_void {
    // Without leave nothing was noted.
    let Some((addr, bytes)) = find(number, |made| made.rings.get(nth as usize).copied()) else { return null_mut() };
    if !len.is_null() {
        // SAFETY: by the contract.
        unsafe { len.write(bytes as usize) };
    }
    addr as *mut c_void
}

/// See the module text.
///
/// # Safety
/// `field` must be a terminated string.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn pvrdma_hook_answer(field: *const c_char, value: u64) -> c_int {
    // SAFETY: by the contract.
    match unsafe { place(field, &FIELDS) } {
        Ok(nth) => ANSWERS[nth].store(value, Ordering::Relaxed),
        Err(error) => return error,
    }
    0
}

/// See the module text. A call that has not come yet is replaced.
///
/// # Safety
/// `when` must be a terminated string; the function must bear `argument`, on whatever thread it is called.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn pvrdma_hook_call(
    when: *const c_char,
    function: extern "C" fn(*mut c_void),
    argument: *mut c_void,
) -> c_int {
    if !enabled() {
        return EPERM;
    }
    // SAFETY: by the contract.
    let when = unsafe { CStr::from_ptr(when) }.to_string_lossy().into_owned();
    *lock(&CALL) = Some(Call { when, function, argument });
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_leave_all_is_refused() {
        assert_eq!(pvrdma_hook_freeze(1), EPERM);
        assert_eq!(pvrdma_hook_handle(0), EPERM.into());
        // SAFETY: terminated strings.
        unsafe {
            assert_eq!(pvrdma_hook_answer(c"cqe".as_ptr(), 1), EPERM);
            assert_eq!(pvrdma_hook_doorbells(c"send".as_ptr()), EPERM.into());
            assert_eq!(pvrdma_hook_commands(c"query_port".as_ptr()), EPERM.into());
            assert!(pvrdma_hook_ring(0, 0, null_mut()).is_null());
        }
        assert_eq!(answer(Field::Cqe, 7), 7);
        assert!(!doorbell(Doorbell::Srq { srq: pvrdma_device::handle::SrqHandle(0) }));
    }
}
