//! What [`crate::support::sync`] is under loom: atomics and cells of the same layout as core's, each with one of
//! loom's beside it, found by its address. loom has none over memory that is there already, and ours
//! are in pages shared with the device and in zeroed tables.
//!
//! The memory keeps the value it began with; the shadow has what is different since. An object must
//! not move once it was used, and says so when it goes ([`gone`]), since its address may come back
//! within a run. All threads of a model are one thread of the machine and share its thread-locals.
//!
//! Models can also ask what would be if an ordering were weaker: see [`weaken`].
#![allow(missing_docs, reason = "what core's does")]

use core::cell::{Cell, RefCell};
use core::panic::Location;
use core::sync::atomic::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

/// As many threads as may wait at once.
const WAITERS: usize = 3;

thread_local! {
    static SHADOWS: RefCell<Shadows> = RefCell::default();
    static DEVICE: RefCell<Option<Bell>> = const { RefCell::new(None) };
    static IDLE: Cell<usize> = const { Cell::new(0) };
    static FOUND: RefCell<Option<String>> = const { RefCell::new(None) };
    static WEAK: Cell<Option<Place>> = const { Cell::new(None) };
    static SEEN: RefCell<BTreeSet<Place>> = const { RefCell::new(BTreeSet::new()) };
}

/// Who hears doorbells.
type Bell = Rc<dyn Fn(usize, u32)>;

/// All that have a shadow, by address, and those for the next.
#[derive(Default)]
struct Shadows {
    bools: Kind<Word<::loom::sync::atomic::AtomicBool>>,
    u32s: Kind<Word<::loom::sync::atomic::AtomicU32>>,
    u64s: Kind<Word<::loom::sync::atomic::AtomicU64>>,
    cells: Kind<::loom::cell::UnsafeCell<()>>,
}

/// An atomic, and what makes loom see that its loads matter.
struct Word<T> {
    value: T,
    /// loom remembers the last access alone: a store after a load of its own hides from it that
    /// others loaded before, and that they could have loaded after. So every load is a change of this
    /// too, one that orders nothing.
    turn: ::loom::sync::atomic::AtomicBool,
}

impl<T> Word<T> {
    fn new(value: T) -> Self {
        Self { value, turn: ::loom::sync::atomic::AtomicBool::new(false) }
    }

    fn take_turn(&self) {
        let _ = self.turn.compare_exchange(true, true, Ordering::Relaxed, Ordering::Relaxed);
    }
}

struct Kind<T> {
    at: BTreeMap<usize, Rc<T>>,
    ready: Vec<Rc<T>>,
}

impl<T> Default for Kind<T> {
    fn default() -> Self {
        Self { at: BTreeMap::new(), ready: Vec::new() }
    }
}

impl<T> Kind<T> {
    fn of(&mut self, at: usize) -> Rc<T> {
        let ready = &mut self.ready;
        Rc::clone(self.at.entry(at).or_insert_with(|| ready.pop().expect("more shadows than were made ready")))
    }

    fn begin(&mut self, ready: usize, make: impl Fn() -> T) {
        self.at.clear();
        self.ready = (0..ready).map(|_| Rc::new(make())).collect();
    }

    fn gone(&mut self, start: usize, len: usize) {
        if self.at.range(start..start + len).next().is_some() {
            self.at.retain(|at, _| !(start..start + len).contains(at));
        }
    }
}

/// A run of a model begins: nothing has a shadow. `ready` of each kind are made before threads start, so
/// that no thread seems to have made one that others already used.
pub fn begin(ready: usize) {
    SHADOWS.with_borrow_mut(|shadows| {
        shadows.bools.begin(ready, || Word::new(::loom::sync::atomic::AtomicBool::new(false)));
        shadows.u32s.begin(ready, || Word::new(::loom::sync::atomic::AtomicU32::new(0)));
        shadows.u64s.begin(ready, || Word::new(::loom::sync::atomic::AtomicU64::new(0)));
        shadows.cells.begin(ready, || ::loom::cell::UnsafeCell::new(()));
    });
    DEVICE.set(None);
    IDLE.set(0);
    FOUND.set(None);
}

/// A run of a model ends: it panics if two threads met in a cell or a slot, or a doorbell was wrong.
///
/// Not where that was: that may be in a function that C calls, through which nothing unwinds. From there on the
/// threads run to their ends without loom.
pub fn end() {
    if let Some(found) = FOUND.take() {
        panic!("{found}");
    }
}

/// What was in these bytes is no more.
pub fn gone<T>(start: *const T, len: usize) {
    SHADOWS.with_borrow_mut(|shadows| {
        let start = start.addr();
        shadows.bools.gone(start, len);
        shadows.u32s.gone(start, len);
        shadows.u64s.gone(start, len);
        shadows.cells.gone(start, len);
    });
}

// ---- waiting -----------------------------------------------------------------------------------

/// Let others run.
///
/// loom would have threads that wait pass the core to each other for ever. Once all of them have
/// looked, and nobody has changed anything, that leads to nothing that a shorter wait did not lead
/// to: other ways on from here are left out.
pub fn yield_now() {
    if over() {
        return;
    }
    IDLE.set(IDLE.get() + 1);
    if IDLE.get() > WAITERS {
        ::loom::skip_branch();
    }
    ::loom::thread::yield_now();
}

/// As [`yield_now`].
pub fn spin_loop() {
    yield_now();
}

/// As [`yield_now`].
pub fn yield_core() {
    yield_now();
}

/// Something has changed: who waits may find what it waits for.
pub fn changed() {
    IDLE.set(0);
}

// ---- doorbells ---------------------------------------------------------------------------------

/// Doorbells of this run go to `device`: offset in the page, and value.
pub fn rings(device: impl Fn(usize, u32) + 'static) {
    DEVICE.set(Some(Rc::new(device)));
}

/// One store to a register of the doorbell page.
///
/// # Safety
/// None here; the product's writes to `at`.
pub unsafe fn store_doorbell(at: *mut u32, value: u32) {
    if let Some(device) = DEVICE.with_borrow(Clone::clone) {
        note(|| device(at.addr() % 4096, value));
    }
}

/// Does `explore` find anything? A model that is at odds with loom or with this file has found nothing.
pub fn finds(explore: impl FnOnce()) -> bool {
    let Err(panic) = catch_unwind(AssertUnwindSafe(explore)) else { return false };
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    let text = text.expect("a panic says why");
    for own in ["maximum number of branches", "fully deterministic", "made ready", "outside a Loom model"] {
        assert!(!text.contains(own), "{text}");
    }
    true
}

// ---- orderings made weaker ---------------------------------------------------------------------

/// A place in the source where something atomic is done.
pub type Place = (&'static str, u32, u32);

/// From now on what is done at `place` is Relaxed.
pub fn weaken(place: Option<Place>) {
    WEAK.set(place);
}

/// The places of the provider that asked for more than Relaxed since the last call.
pub fn places() -> BTreeSet<Place> {
    SEEN.take()
}

#[track_caller]
fn ordering(wanted: Ordering) -> Ordering {
    let caller = Location::caller();
    let place = (caller.file(), caller.line(), caller.column());
    if WEAK.get() == Some(place) {
        return Ordering::Relaxed;
    }
    if wanted != Ordering::Relaxed {
        SEEN.with_borrow_mut(|seen| seen.insert(place));
    }
    wanted
}

// ---- atomics -----------------------------------------------------------------------------------

/// When a model has failed, its threads go on, or are taken down, in no order that loom knows.
fn over() -> bool {
    std::thread::panicking() || FOUND.with_borrow(Option::is_some)
}

macro_rules! atomic {
    ($name:ident, $ty:ty, $kind:ident) => {
        /// Core's, for loom.
        #[repr(transparent)]
        #[derive(Default)]
        pub struct $name(core::cell::UnsafeCell<$ty>);

        // SAFETY: the memory is never written.
        unsafe impl Sync for $name {}

        #[allow(dead_code, reason = "as much of core's as anybody needs")]
        impl $name {
            pub const fn new(value: $ty) -> Self {
                Self(core::cell::UnsafeCell::new(value))
            }

            /// # Safety
            /// As core's.
            pub const unsafe fn from_ptr<'a>(at: *mut $ty) -> &'a Self {
                // SAFETY: promise of the caller; the layout is that of the value.
                unsafe { &*at.cast() }
            }

            fn shadow(&self) -> Rc<Word<::loom::sync::atomic::$name>> {
                SHADOWS.with_borrow_mut(|shadows| shadows.$kind.of(self.0.get().addr()))
            }

            /// The value it begins with.
            fn start(&self) -> $ty {
                // SAFETY: valid as long as the reference is, and not written.
                unsafe { *self.0.get() }
            }

            #[track_caller]
            pub fn load(&self, order: Ordering) -> $ty {
                if over() {
                    return self.start();
                }
                let shadow = self.shadow();
                shadow.take_turn();
                shadow.value.load(ordering(order)) ^ self.start()
            }

            #[track_caller]
            pub fn store(&self, value: $ty, order: Ordering) {
                if !over() {
                    self.shadow().value.store(value ^ self.start(), ordering(order));
                    changed();
                }
            }

            #[track_caller]
            pub fn compare_exchange(
                &self,
                current: $ty,
                new: $ty,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$ty, $ty> {
                if over() {
                    return Ok(current);
                }
                let start = self.start();
                let (current, new) = (current ^ start, new ^ start);
                let result = self.shadow().value.compare_exchange(current, new, ordering(success), failure);
                if result.is_ok() {
                    changed();
                }
                result.map(|value| value ^ start).map_err(|value| value ^ start)
            }
        }

        impl Drop for $name {
            fn drop(&mut self) {
                gone(self, size_of::<Self>());
            }
        }

        impl core::fmt::Debug for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.debug_struct(stringify!($name)).finish_non_exhaustive()
            }
        }
    };
}

atomic!(AtomicBool, bool, bools);
atomic!(AtomicU32, u32, u32s);
atomic!(AtomicU64, u64, u64s);

/// Changes that depend on what was there: for words that begin with 0.
macro_rules! change {
    ($name:ident, $ty:ty, $($change:ident),*) => {
        #[allow(dead_code, reason = "as much of core's as anybody needs")]
        impl $name {
            $(
                #[track_caller]
                pub fn $change(&self, value: $ty, order: Ordering) -> $ty {
                    assert_eq!(self.start(), 0);
                    if over() {
                        return 0;
                    }
                    changed();
                    self.shadow().value.$change(value, ordering(order))
                }
            )*

            pub fn as_ptr(&self) -> *mut $ty {
                self.0.get()
            }
        }
    };
}

change!(AtomicU32, u32, fetch_add, fetch_sub, fetch_max);
change!(AtomicU64, u64, fetch_or, swap);

/// Core's, for loom.
#[allow(dead_code, reason = "not everybody needs fences")]
#[track_caller]
pub fn fence(order: Ordering) {
    if !over() && ordering(order) != Ordering::Relaxed {
        ::loom::sync::atomic::fence(order);
    }
}

impl AtomicBool {
    /// One that takes a lock and changes nothing is no store here: loom would not know it to come
    /// before the owner's next store, and a lock that was opened could stay shut.
    #[track_caller]
    pub fn swap(&self, value: bool, order: Ordering) -> bool {
        if order != Ordering::Acquire {
            assert!(!self.start());
            changed();
            return if over() { false } else { self.shadow().value.swap(value, ordering(order)) };
        }
        match self.compare_exchange(!value, value, order, Ordering::Relaxed) {
            Ok(before) | Err(before) => before,
        }
    }
}

/// Set a lock's word, that of a provider's lock. One that changes nothing is no store: see
/// [`AtomicBool::swap`].
#[allow(dead_code, reason = "the fabric has no locks")]
#[track_caller]
pub fn take(word: &AtomicU32) -> bool {
    word.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_ok()
}

// ---- cells and slots ---------------------------------------------------------------------------

/// If `check` panics, the run ends so: see [`end`].
fn note(check: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(check)) {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or(panic.downcast_ref::<&str>().map(ToString::to_string));
        FOUND.set(Some(text.unwrap_or_else(|| "a panic says why".into())));
    }
}

/// Core's, for loom: two threads that ask for the data with nothing between them that orders them
/// fail the model.
#[derive(Default)]
#[repr(transparent)]
pub struct UnsafeCell<T>(core::cell::UnsafeCell<T>);

impl<T> UnsafeCell<T> {
    pub const fn new(value: T) -> Self {
        Self(core::cell::UnsafeCell::new(value))
    }

    #[track_caller]
    pub fn get(&self) -> *mut T {
        own(self.0.get().addr());
        self.0.get()
    }
}

impl<T> Drop for UnsafeCell<T> {
    fn drop(&mut self) {
        // Some have no bytes.
        gone(self, size_of::<Self>().max(1));
    }
}

impl<T> core::fmt::Debug for UnsafeCell<T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("UnsafeCell").finish_non_exhaustive()
    }
}

/// Whoever calls is about to read or write the slot at `at`, provider or device: it must be theirs.
#[track_caller]
pub fn own_slot<T>(at: *const T) {
    own(at.addr());
}

#[track_caller]
fn own(at: usize) {
    if !over() {
        let shadow = SHADOWS.with_borrow_mut(|shadows| shadows.cells.of(at));
        note(|| shadow.with_mut(|_| ()));
    }
}
