//! The libibverbs this process has: set once by [`crate::register`], asked by every slow verb.

use crate::support::error::Errno;
use core::ffi::c_void;
use pvrdma_ffi::pabi::{Functions, Libibverbs, verbs_context_ops};
use std::sync::OnceLock;

/// libibverbs as [`crate::register`] found it, and our verbs laid out for it.
#[derive(Debug)]
pub struct Loaded {
    /// Its layout and functions.
    pub libibverbs: Libibverbs,
    /// The table of verbs, as it wants it.
    pub ops: Box<[*const c_void]>,
}

// SAFETY: the pointers are addresses of functions; nothing is ever written.
unsafe impl Send for Loaded {}
// SAFETY: as above.
unsafe impl Sync for Loaded {}

static LOADED: OnceLock<Loaded> = OnceLock::new();

impl Loaded {
    /// Remember `libibverbs` for the life of the process, and `ops` in its order.
    pub fn set(libibverbs: Libibverbs, ops: &verbs_context_ops) -> &'static Self {
        LOADED.get_or_init(|| Self { ops: libibverbs.layout.context_ops(ops), libibverbs })
    }

    /// What was remembered. Every verb is called by the libibverbs we registered with, so `None`
    /// cannot be seen by one.
    pub fn get() -> Result<&'static Self, Errno> {
        LOADED.get().ok_or(Errno::EIO)
    }
}

/// The functions of libibverbs.
pub fn libibverbs() -> Result<&'static Functions, Errno> {
    Ok(&Loaded::get()?.libibverbs.functions)
}
