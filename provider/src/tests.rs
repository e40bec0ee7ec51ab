//! Tests of the whole provider: random verbs against a model that knows every answer, threads against each
//! other, and loom. Tests of one file stand in that file.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test fails by panicking")]

#[cfg(loom)]
pub mod loom;
mod model;
mod threads;
