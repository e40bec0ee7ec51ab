//! Diagnosis without a debugger: why a create failed, which limit, why an address could not be
//! resolved. It goes to libibverbs's own log, which is silent unless the user sets both
//! `VERBS_LOG_FILE` and `VERBS_LOG_LEVEL` (1: errors, 2: warnings), and which releases before v37 do
//! not have.
//!
//! Never called on the data path.

use crate::support::error::Errno;
use crate::support::loaded::Loaded;
use core::fmt::Arguments;
use core::ptr;
use pvrdma_ffi::pabi::{VERBS_LOG_ERR, VERBS_LOG_WARN};
use std::ffi::CString;

/// `errno`, with the reason in the log.
pub fn refuse(errno: Errno, why: Arguments<'_>) -> Errno {
    write(VERBS_LOG_ERR, why);
    errno
}

/// Something a user may want to know although nothing failed.
pub fn warn(what: Arguments<'_>) {
    write(VERBS_LOG_WARN, what);
}

fn write(level: u32, text: Arguments<'_>) {
    let Ok(loaded) = Loaded::get() else { return };
    let (Some(verbs_log), Ok(line)) =
        (loaded.libibverbs.functions.verbs_log, CString::new(format!("vmw_pvrdma: {text}\n")))
    else {
        return;
    };
    // SAFETY: a format for the one string that follows. The context is not looked at: it is there
    // for callers' macros.
    unsafe { verbs_log(ptr::null_mut(), level, c"%s".as_ptr(), line.as_ptr()) };
}
