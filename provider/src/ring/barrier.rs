//! The two orderings between this provider and the device, by purpose.
//!
//! On x86-64 neither costs an instruction: stores are not reordered with older stores, loads not
//! with older loads, and the doorbell page is mapped uncached. What both keep in place is the
//! compiler.

use core::sync::atomic::{Ordering, compiler_fence};

/// After ordinary stores the device will read, before the doorbell that tells it so.
///
/// Without it the compiler may move the doorbell above the store of `prod_tail`: the device looks,
/// finds no new entry, and nobody rings again.
#[inline(always)]
pub fn to_device() {
    compiler_fence(Ordering::Release);
}

/// After a doorbell that makes the device write to our memory, before looking at that memory.
///
/// Without it the second look of an empty poll may use the counter loaded before the doorbell.
#[inline(always)]
pub fn from_device() {
    compiler_fence(Ordering::Acquire);
}
