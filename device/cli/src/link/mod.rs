//! What makes a host one of several.

pub mod folder;
