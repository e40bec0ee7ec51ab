//! How the figures of perftest/README.md are measured. Called by `xtask demo` and `xtask bench`.
//!
//! Six kinds: what stock perftest tools print ([`Line`]), what UCX's own benchmark says ([`ucx`]), what a bare copy
//! between two processes and a bare socket cost on the same machine in the same run ([`bare_copy`], [`socket`]), and
//! for each hot verb how many instructions it takes ([`instructions()`]) and how long, on a device that stands still
//! ([`frozen`]).

pub mod assembly;
pub mod chart;
mod copy;
pub mod frozen;
mod instructions;
mod line;
mod operations;
pub mod report;
pub mod socket;
mod spread;
pub mod ucx;

pub use copy::bare_copy;
pub use instructions::instructions;
pub use line::{Figure, Line};
pub use operations::{AtMost, Figures, OPERATIONS, Operation, Situation};
pub use spread::{Spread, median};
