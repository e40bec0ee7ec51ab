//! What all other files use and that uses none of them: settings, the process's own state, system calls, trace, hooks,
//! captures.

pub mod capture;
pub mod config;
pub mod fresh;
pub mod hooks;
pub mod memcheck;
pub mod raw;
pub mod thread;
pub mod trace;
