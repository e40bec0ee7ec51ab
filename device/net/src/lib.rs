//! Requests between hosts: what two hosts say to each other, and what each makes of it.
//!
//! | file | |
//! |---|---|
//! | `frame.rs` | frames, as bytes |
//!
//! Nothing here sends, waits or reads a clock: the caller hands in bytes and the time, and takes out bytes and events.
//! It knows no device and no guest; what a request does is the caller's.

#![forbid(unsafe_code)]

pub mod frame;
#[cfg(any(test, feature = "test-utils"))]
pub mod testing;
