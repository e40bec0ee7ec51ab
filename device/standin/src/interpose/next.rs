//! What an interposer is made of: functions under the C library's names, and the definitions behind them.
//!
//! Where a call is only a system call the kernel is asked directly (`raw.rs`); where the C library does more, `next!`
//! finds its function behind ours.

use std::ffi::{CStr, c_void};
use std::sync::atomic::{AtomicPtr, Ordering};

/// The next definition of a function after ours: the C library's, or that of another preload library.
pub struct Next {
    name: &'static CStr,
    function: AtomicPtr<c_void>,
}

impl Next {
    pub const fn new(name: &'static CStr) -> Next {
        Next { name, function: AtomicPtr::new(std::ptr::null_mut()) }
    }

    /// Its address if it was looked up already: for functions that the lookup itself may call.
    pub fn found(&self) -> Option<*mut c_void> {
        let function = self.function.load(Ordering::Relaxed);
        (!function.is_null()).then_some(function)
    }

    /// Its address, looked up once.
    pub fn get(&self) -> Option<*mut c_void> {
        let mut function = self.function.load(Ordering::Relaxed);
        if function.is_null() {
            // SAFETY: a terminated name.
            function = unsafe { libc::dlsym(libc::RTLD_NEXT, self.name.as_ptr()) };
            self.function.store(function, Ordering::Relaxed);
        }
        (!function.is_null()).then_some(function)
    }
}

/// Declares next definitions, and `resolve`, which looks all of them up.
macro_rules! next {
    ($($static:ident = $name:literal;)*) => {
        $(static $static: $crate::interpose::next::Next = $crate::interpose::next::Next::new($name);)*
        /// Called at load, so that later calls are safe in signal handlers.
        pub fn resolve() {
            $($static.get();)*
        }
    };
}
pub(crate) use next;

/// Calls a next definition; without one, sets ENOSYS and has the value `$failed`.
macro_rules! call_next {
    ($static:ident, fn($($type:ty),*) -> $result:ty, $failed:expr, $($arg:expr),*) => {
        match $static.get() {
            Some(function) => {
                // SAFETY: the C library's function of that name has this type; the arguments are the caller's.
                unsafe { std::mem::transmute::<*mut ::std::ffi::c_void, unsafe extern "C" fn($($type),*) -> $result>(function)($($arg),*) }
            }
            None => {
                $crate::support::raw::fail(libc::ENOSYS);
                $failed
            }
        }
    };
}
pub(crate) use call_next;

/// Defines functions under the C library's names; some have several.
macro_rules! interpose {
    ($($(#[$doc:meta])* fn $($name:ident),+ ($($args:tt)*) -> $result:ty $body:block)*) => {$(
        $crate::interpose::next::interpose!(@each [$($name)+] [[$(#[$doc])*] ($($args)*) $result, $body]);
    )*};
    (@each [$($name:ident)+] $rest:tt) => {
        $($crate::interpose::next::interpose!(@one $name $rest);)+
    };
    (@one $name:ident [[$(#[$doc:meta])*] ($($arg:ident: $type:ty),* $(,)?) $result:ty, $body:block]) => {
        $(#[$doc])*
        /// # Safety
        /// As in the C library.
        #[cfg_attr(not(test), unsafe(no_mangle))]
        pub unsafe extern "C" fn $name($($arg: $type),*) -> $result $body
    };
}
pub(crate) use interpose;
