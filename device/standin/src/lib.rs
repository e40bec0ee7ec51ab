//! LD_PRELOAD library that stands in for the kernel: libibverbs and its providers see the `vmw_pvrdma` driver, and
//! find behind it the PVRDMA device core running in the program's own process.
//!
//! | file | part of the kernel it plays |
//! |---|---|
//! | `preload.rs` | the C library calls that would reach the driver; everything else falls through untouched |
//! | `library.rs` | functions of the C library that use files by themselves |
//! | `paths.rs` | which paths are ours |
//! | `fd.rs` | which file descriptors are ours |
//! | `fresh.rs` | what a child of fork does not inherit |
//! | `uverbs/` | `ib_uverbs` and `vmw_pvrdma`: commands by write(2) and by ioctl(2), one file per object |
//! | `events.rs` | completion channels and async event files |
//! | `uar.rs`, `store.rs` | the doorbell page: a trapped store becomes a `Doorbell` |
//! | `signals.rs` | keeps the trap installed whatever the program does to SIGSEGV |
//! | `memory.rs`, `process.rs`, `host/` | the process on the host's fabric |
//! | `hooks.rs` | what tests of providers may ask and change from inside |
//! | `sync.rs` | atomics and locks of `host/`, which loom replaces in tests |
//! | `config.rs`, `trace.rs`, `raw.rs`, `memcheck.rs` | settings, the trace file, system calls that bypass every interposer, a word to valgrind |
//!
//! `pvrdma run` sets the environment that switches the library on (`config.rs`); without it nothing is changed.
//! The library exports the names in `exports.txt` and no others.

#![allow(missing_docs, reason = "nothing here is called from Rust outside this crate")]
#![cfg_attr(test, allow(dead_code, reason = "what is exported has no caller here, and tests export nothing"))]

mod config;
mod events;
mod fd;
mod fresh;
mod hooks;
mod host;
mod library;
#[cfg(all(loom, test))]
mod loom;
mod memcheck;
mod memory;
mod netdev;
mod paths;
mod preload;
mod process;
mod raw;
mod signals;
mod store;
mod sync;
mod trace;
mod uar;
mod uverbs;
