//! `cargo xtask loom`: the loom models of the provider and of the host's fabric, `src/loom` of both crates.
//!
//! loom runs the real code once for each order in which its threads can meet, within a number of preemptions.
//! `LOOM_MAX_PREEMPTIONS=3` looks further than the default of the models, and takes longer.

use std::process::Command;

use anyhow::Result;

use crate::{no_arguments, shell};

/// Entry of the subcommand.
pub fn main(arguments: &[String]) -> Result<()> {
    no_arguments(arguments)?;
    check()
}

/// Runs the models.
pub fn check() -> Result<()> {
    shell::run(&mut models(&["--lib", "loom"]))
}

/// Builds them.
pub fn build() -> Result<()> {
    shell::run(&mut models(&["--lib", "--no-run"]))
}

/// In a target folder of its own, since the flag would have everything built again.
fn models(arguments: &[&str]) -> Command {
    let mut command =
        shell::cargo(&["test", "--quiet", "--release", "--locked", "-p", "vmw_pvrdma", "-p", "pvrdma-fabric"]);
    command
        .args(arguments)
        .env("CARGO_TARGET_DIR", shell::target().join("loom"))
        .env("RUSTFLAGS", "--cfg loom")
        // What it takes to build counts, more than how long the models run.
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16")
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "false");
    command
}
