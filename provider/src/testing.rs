//! The other side, played by hand: a device without libibverbs or kernel ([`mock`]), a kernel and a device
//! behind the verbs ([`kernel`]), and one that is hostile ([`wild`], driven by the fuzz target).
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test fails by panicking")]

pub mod kernel;
pub mod mock;
pub mod wild;
