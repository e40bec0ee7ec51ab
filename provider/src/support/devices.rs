//! The devices of this provider: libibverbs hands out those of all providers alike, and what is of another one must not
//! be looked into.

use core::ptr::NonNull;
use pvrdma_ffi::verbs::ibv_device;
use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// By their addresses, which nobody follows from here.
static DEVICES: Mutex<BTreeSet<usize>> = Mutex::new(BTreeSet::new());

fn devices() -> MutexGuard<'static, BTreeSet<usize>> {
    // A set that a panic left is whole: each change is one call.
    DEVICES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// libibverbs has this one from us.
pub fn enter(device: *mut ibv_device) {
    devices().insert(device.addr());
}

/// It gives it back.
pub fn leave(device: *mut ibv_device) {
    devices().remove(&device.addr());
}

/// Is it one of ours?
pub fn is_ours(device: *mut ibv_device) -> bool {
    NonNull::new(device).is_some_and(|device| devices().contains(&device.addr().get()))
}
