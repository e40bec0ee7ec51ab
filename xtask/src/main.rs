//! `cargo xtask`: what README and CI call.
//!
//! Each subcommand is a file; `main` only picks one. Nothing here is part of what is installed.

mod ahead;
mod bench;
mod checks;
mod debs;
mod demo;
mod fuzz;
mod headers;
mod hosts;
mod loom;
mod man;
mod matrix;
mod package;
mod packages;
mod races;
mod shell;
mod stress;
mod test;
mod vm;

use std::process::ExitCode;

use anyhow::{Result, bail};

const USAGE: &str = "\
usage: cargo xtask COMMAND

  demo      two guests, one machine: ibv_devinfo, ib_write_bw and ib_send_lat on our provider and on the system's
  test      every check there is; `cargo xtask test --list` names them, names as arguments pick some
  matrix    stock programs over providers, places, users and more, in one table (`cargo xtask matrix --help`)
  defects   what goes wrong with the C provider, case by case, on both providers
  pyverbs   rdma-core's own test suite on both providers (`--vm`: in QEMU guests, rdma_cm too)
  vm        the unmodified kernel driver on our device in a QEMU guest (`cargo xtask vm --help`)
  fuzz      libFuzzer on hostile guests, clients, devices, programs and hosts (`cargo xtask fuzz --help`)
  loom      the orders in which threads can meet: models of the provider and of the host's fabric
  races     threads on the provider under ThreadSanitizer (`cargo xtask races --help`)
  stress    the long forms of the tests that have one; takes an hour
  hosts     guests of several hosts: stock programs, a thousand QPs, and trouble (`cargo xtask hosts --help`)
  bench     the figures of perftest/README.md
  package   source and binary tarballs, .deb and .rpm (`cargo xtask package --help`)
  headers   write include/ from ffi/ (`--check`: compare only)
  man       manual pages and shell completion of pvrdma, below target/pages/share
  debs      fetch libibverbs of other Debian releases below target/debs (`forky`, `pyverbs`, `trixie`, `bullseye`)
";

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let command = arguments.next().unwrap_or_default();
    match run(&command, arguments.collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask {command}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &str, arguments: Vec<String>) -> Result<()> {
    match command {
        "demo" => demo::main(&arguments),
        "test" => test::main(&arguments),
        "matrix" => matrix::main(&arguments),
        "package" => package::main(&arguments),
        "defects" => {
            no_arguments(&arguments)?;
            test::table("defects", "each_fails_on_the_c_provider_and_passes_on_ours")
        }
        "pyverbs" if arguments == ["--vm"] => {
            packages::install(packages::VM)?;
            vm::main(vec!["--pyverbs".to_owned()])
        }
        "pyverbs" => {
            no_arguments(&arguments)?;
            test::table("pyverbs", "every_test_ends_as_the_list_says")
        }
        "vm" => {
            packages::install(packages::VM)?;
            vm::main(arguments)
        }
        "fuzz" => fuzz::main(&arguments),
        "loom" => loom::main(&arguments),
        "races" => races::main(&arguments),
        "stress" => stress::main(&arguments),
        "hosts" => hosts::main(&arguments),
        "bench" => bench::main(&arguments),
        "headers" => headers::main(&arguments),
        "man" => {
            no_arguments(&arguments)?;
            man::main()
        }
        "debs" => debs::main(&arguments),
        "help" | "--help" | "-h" => {
            print!("{USAGE}");
            Ok(())
        }
        "" => bail!("which command?\n{USAGE}"),
        other => bail!("no such command: {other}\n{USAGE}"),
    }
}

/// Refuses arguments of a command that takes none.
fn no_arguments(arguments: &[String]) -> Result<()> {
    match arguments.first() {
        Some(argument) => bail!("unexpected argument {argument}\n{USAGE}"),
        None => Ok(()),
    }
}
