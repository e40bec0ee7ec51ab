//! How the figures of perftest/README.md are measured. Called by `xtask demo` and `xtask bench`.
//!
//! Three kinds: what stock perftest tools print ([`Line`]), what a bare copy between two processes costs on the same
//! machine in the same run ([`bare_copy`]), and how many instructions a verb takes ([`instructions()`]).

mod copy;
mod instructions;
mod line;

pub use copy::bare_copy;
pub use instructions::{Counts, instructions};
pub use line::{Figure, Line};
