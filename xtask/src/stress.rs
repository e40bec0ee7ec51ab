//! `cargo xtask stress`: the long forms of tests that have one.
//!
//! Their short forms are part of `cargo xtask test`. `PVRDMA_SEED` repeats a run.

use std::time::Instant;

use anyhow::Result;

use crate::{no_arguments, packages, shell};

/// Tests of the whole system whose amount of work grows with `PVRDMA_STRESS`.
const STORIES: &[&str] = &[
    "data",
    "crowd",
    "churn",
    "sigkill",
    "stopped",
    "storm",
    "races",
    "fair",
    "connections",
    "by_address",
    "connected_programs",
];

/// Steps of each run of the model tests of the device, which are seventeen.
const STEPS: &str = "100000";

/// Runs all of them, one after the other.
pub fn main(arguments: &[String]) -> Result<()> {
    no_arguments(arguments)?;
    packages::install(packages::TEST)?;
    let built = shell::build_release()?;
    let start = Instant::now();
    println!("# the device against models of it, two million steps in all");
    shell::run(
        shell::cargo(&["test", "--release", "-p", "pvrdma-device", "--all-features"])
            .args(["--test", "model", "--test", "commands"])
            .env("PVRDMA_STEPS", STEPS),
    )?;
    for cut in ["1", "3", "256K", "mixed"] {
        println!("# the device, messages in pieces: {cut}");
        shell::run(
            shell::cargo(&["test", "-q", "--release", "-p", "pvrdma-device", "--all-features", "--tests"])
                .env("PVRDMA_CUT", cut),
        )?;
    }
    println!("# the provider against a model of it, a million steps on one thread and a million on four");
    shell::run(
        shell::cargo(&["test", "--release", "-p", "vmw_pvrdma", "--lib", "model", "--", "--nocapture"])
            .env("PVRDMA_STEPS", "1000000"),
    )?;
    for story in STORIES {
        println!("# {story}");
        shell::run(
            shell::cargo(&["test", "-p", "pvrdma-tests", "--test", story, "--", "--nocapture"])
                .env("PVRDMA_STRESS", "1")
                .env("PVRDMA_BUILT", &built),
        )?;
    }
    println!("{} minutes", start.elapsed().as_secs() / 60);
    Ok(())
}
