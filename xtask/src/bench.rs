//! `cargo xtask bench`: the figures of perftest/README.md. They mean something on a machine that does nothing else.

mod applications;
mod doorbell;
mod frozen;
mod hosts;
mod instructions;
mod programs;

use anyhow::{Result, bail};
use pvrdma_tests::{Stand, User};

use crate::{no_arguments, packages, shell};

const USAGE: &str = "\
usage: cargo xtask bench [TABLE [OPTIONS]]

  programs      stock perftest between two guests, ours beside the C provider
  instructions  of each hot verb, by callgrind
  frozen        time of each hot verb, on a device that stands still (`cargo xtask bench frozen --help`)
  doorbell      what a doorbell without a trap gives the stand-in
  applications  UCX's own benchmark between two guests, beside shared memory
  hosts         stock perftest between guests of two hosts, beside a bare socket

Without a table: all of them.
";

/// Measures and prints.
pub fn main(arguments: &[String]) -> Result<()> {
    let (table, rest) = match arguments.split_first() {
        Some((table, rest)) => (table.as_str(), rest),
        None => ("", arguments),
    };
    let plan = match table {
        "--help" | "-h" => {
            print!("{USAGE}");
            return Ok(());
        }
        "frozen" | "" => match frozen::parse(rest)? {
            Some(plan) => Some(plan),
            None => return Ok(()),
        },
        "programs" | "instructions" | "doorbell" | "applications" | "hosts" => {
            no_arguments(rest)?;
            None
        }
        other => bail!("no such table: {other}\n{USAGE}"),
    };
    packages::install(packages::BENCH)?;
    shell::build_release()?;
    let stand = Stand::new(User::Me);
    println!("{}\n", pvrdma_perftest::report::machine());
    let all = table.is_empty();
    if all || table == "programs" {
        programs::print(&stand);
    }
    if all || table == "instructions" {
        instructions::print(&stand);
    }
    if let Some(plan) = plan {
        frozen::print(&stand, &plan)?;
    }
    if all || table == "doorbell" {
        doorbell::print(&stand);
    }
    if all || table == "applications" {
        applications::print(&stand);
    }
    if all || table == "hosts" {
        hosts::print();
    }
    Ok(())
}
