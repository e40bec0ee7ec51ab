//! Harness of the whole-system tests: build, run programs as processes of guests, collect what they say.
//!
//! Used by the stories in `tests/tests/*.rs` and by `cargo xtask demo`, `matrix` and `bench`. Everything is driven
//! through the command line a user has (`pvrdma run …`), so nothing here links any other crate of the workspace.
//!
//! - [`Stand`] holds the built files and the user they run as, in a folder of its own.
//! - [`Job`] describes one program of one guest; [`Running`] is that program while it runs.
//! - [`pair()`] runs a server and a client of the kind perftest and `ibv_rc_pingpong` are.
//! - [`Hosts`] are several hosts with a [`Stand`] each, joined by `pvrdma link`.
//! - [`between`] has what must work between two of them, by whatever way.
//! - [`Newer`] runs programs of another Debian release, with a newer libibverbs.
//! - [`pyverbs`] judges a run of rdma-core's own test suite.
//! - [`readme`] has the lines that README.md tells its readers to type.
//!
//! A test that cannot run here says so through [`cannot_run`], never by returning quietly.

pub mod between;
mod build;
mod hosts;
mod job;
mod newer;
mod pair;
mod perftest;
pub mod pyverbs;
pub mod readme;
mod spaces;
mod stress;
mod world;

pub use build::{artifacts, c_program, debug_provider, example, mpi_program, workspace};
pub use hosts::{BY_ADAPTER, Host, Hosts, Trust, free_address};
pub use job::{Job, Output, Running};
pub use newer::Newer;
pub use pair::{
    ended_well, free_port, listening, pair, pair_by_address, try_pair, try_pair_at, wait_for_listener, wait_for_trace,
};
pub use perftest::{Figures, all_figures, figures};
pub use spaces::Spaces;
pub use stress::{Chance, amount};
pub use world::{Doorbells, Provider, Stand, User, Uverbs, cannot_run, machine};
