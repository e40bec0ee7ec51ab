//! LD_PRELOAD library that stands in for the kernel: libibverbs and its providers see the `vmw_pvrdma` driver, and
//! find behind it the PVRDMA device core running in the program's own process.
//!
//! | file | part of the kernel it plays |
//! |---|---|
//! | `load.rs` | what happens at load, in one order |
//! | `process.rs` | this process on the host's fabric (crate `pvrdma-fabric`), with its device and its side thread |
//! | **`interpose/`** | **the C library's side** |
//! | `preload.rs`, `system_call.rs` | the C library calls that would reach the driver, by name and by number |
//! | `calls.rs` | what they do; everything that is not ours falls through untouched |
//! | `attributes.rs` | the same for questions about files: stat, access, readlink |
//! | `library.rs` | functions of the C library that use files by themselves |
//! | `paths.rs` | which paths are ours |
//! | `netdev.rs` | the addresses of the guests' network interface |
//! | `signals.rs` | keeps the trap installed whatever the program does to SIGSEGV |
//! | `next.rs` | what an interposer is made of |
//! | **`kernel/`** | **the kernel's side** |
//! | `fd.rs` | which file descriptors are ours |
//! | `uverbs/` | `ib_uverbs` and `vmw_pvrdma`: commands by write(2) and by ioctl(2), one file per object |
//! | `ucma/` | `rdma_ucm` and `rdma_cm`: connections by address |
//! | `gsi.rs` | the management QP that they speak by |
//! | `events.rs` | completion channels and async event files |
//! | `uar.rs` | the doorbell page: a store to it becomes a `Doorbell` |
//! | `trap.rs`, `store.rs` | a store that faults, and its instruction |
//! | `site.rs` | a store whose place is declared, without a fault |
//! | `stack.rs` | where the device runs meanwhile |
//! | `segv.rs` | the program's SIGSEGV action, and faults that are not ours |
//! | **`support/`** | **what both use** |
//! | `config.rs` | settings from the environment |
//! | `fresh.rs` | what a child of fork does not inherit |
//! | `raw.rs` | system calls that bypass every interposer |
//! | `thread.rs` | threads of the library's own |
//! | `trace.rs` | the trace file |
//! | `hooks.rs` | what tests of providers may ask and change from inside |
//! | `memcheck.rs` | a word to valgrind |
//!
//! Imports go down this list: `load`, `interpose`, `process`, `kernel`, `support`. One circle is left, and it is the
//! kernel's own: `fd` names what stands behind a descriptor (`events`, `uverbs`), and these make descriptors.
//!
//! `pvrdma run` sets the environment that switches the library on (`config.rs`); without it nothing is changed.
//! The library exports the names in `exports.txt` and no others.

#![allow(missing_docs, reason = "nothing here is called from Rust outside this crate")]
#![cfg_attr(test, allow(dead_code, reason = "what is exported has no caller here, and tests export nothing"))]

mod interpose;
mod kernel;
mod load;
mod process;
mod support;
