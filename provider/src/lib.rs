//! libibverbs provider for VMware's paravirtual RDMA device (PCI 15ad:0820).
//!
//! libibverbs loads this object because of a `driver` line, `IBV_DRIVERS` or `LD_PRELOAD`. Its one
//! constructor ([`register`]) looks at the libibverbs that is loaded and registers with it; from
//! then on libibverbs and applications call the functions of [`ops`]. Start reading there.
//!
//! | folder | what is there | may use |
//! |---|---|---|
//! | [`ops`], [`register`], [`boundary`] | the way in: the table of verbs, the constructor, the panic wall | all |
//! | [`direct`] | what programs link to that post and poll by themselves: `pvrdmadv.h` | [`verbs`], [`ring`], [`support`] |
//! | [`fast`] | the hot verbs: post, poll, `ibv_wr_*`, `ibv_start_poll` | [`verbs`], [`ring`], [`support`] |
//! | [`verbs`] | the objects and their slow verbs | [`ring`], [`support`] |
//! | [`ring`] | what the device sees: counters, slots, completions, doorbells | [`support`] |
//! | [`support`] | locks, atomics, memory, errors, the libibverbs that was found | |
//!
//! A test in `tests/tests/folders.rs` keeps it so. `testing` is the other side, played by hand, `tests` holds the
//! models. All modules are public for the fuzz target and the benches; no program links this crate.
//!
//! What callers may rely on (NULL, ownership, panics, output parameters, threads, fork) is the
//! "Contract" section of `provider/README.md`.
#![allow(rustdoc::private_intra_doc_links, reason = "everything is read with its private parts")]
#![warn(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

pub mod boundary;
pub mod direct;
pub mod fast;
pub mod ops;
pub mod register;
pub mod ring;
pub mod support;
#[cfg(any(test, feature = "test-utils"))]
pub mod testing;
#[cfg(test)]
mod tests;
pub mod verbs;
