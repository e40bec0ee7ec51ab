//! `pvrdma`: runs a program in a guest that has a PVRDMA device, serves such a device to a virtual machine, makes hosts
//! one fabric, shows what goes on, or says why RDMA does not work.
//!
//! This file only picks the subcommand and turns its outcome into an exit status and one line on stderr.

mod child;
mod doctor;
mod guests;
mod json;
mod link;
mod lock;
mod manual;
mod options;
mod program;
mod provider;
mod qemu;
mod run;
mod rundir;
mod serve;
mod status;
mod sysfs;

use std::ffi::OsString;
use std::process::ExitCode;

const HELP: &str = "\
A PVRDMA device in software.

Usage:
  pvrdma run [OPTIONS] -- PROGRAM [ARGS...]   run a program in a guest with a PVRDMA device
  pvrdma serve [OPTIONS]                      serve the device to virtual machines (vfio-user)
  pvrdma link COMMAND [OPTIONS]               make several hosts one fabric
  pvrdma status [OPTIONS]                     show guests, their QPs, and which way those go
  pvrdma doctor [OPTIONS]                     say why RDMA works here or not, with the cure
  pvrdma man COMMAND                          the manual page of a command, for man -l
  pvrdma completion bash|zsh|fish             completion of this command line
  pvrdma COMMAND --help                       the options of run, serve, link, status and doctor
  pvrdma --version
";

/// A mistake on the command line; exit status 2.
#[derive(Debug)]
pub(crate) struct Usage(pub String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// A program that cannot be started: exit status 127 if it is not there, else 126, as in a shell.
#[derive(Debug)]
pub(crate) struct CannotRun {
    pub missing: bool,
    pub why: String,
}

impl std::fmt::Display for CannotRun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.why)
    }
}

impl std::error::Error for CannotRun {}

fn dispatch(mut args: impl Iterator<Item = OsString>) -> anyhow::Result<ExitCode> {
    let Some(first) = args.next() else {
        return Err(Usage("no command; try pvrdma --help".into()).into());
    };
    match first.to_str() {
        Some("run") => run::main(args.collect()),
        Some("serve") => serve::main(args.collect()),
        Some("link") => link::main(args.collect()),
        Some("status") => status::main(args.collect()),
        Some("doctor") => doctor::main(args.collect()),
        Some("man") => printed(args, manual::man),
        Some("completion") => printed(args, manual::completion),
        Some("--help" | "-h" | "help") => {
            print!("{HELP}");
            Ok(ExitCode::SUCCESS)
        }
        Some("--version" | "-V") => {
            println!("pvrdma {}", env!("CARGO_PKG_VERSION"));
            Ok(ExitCode::SUCCESS)
        }
        _ => Err(Usage(format!("unknown command {first:?}; try pvrdma --help")).into()),
    }
}

/// Prints what `text` has for the only argument.
fn printed(
    mut args: impl Iterator<Item = OsString>,
    text: fn(&str) -> Result<String, Usage>,
) -> anyhow::Result<ExitCode> {
    match (args.next().as_deref().and_then(|name| name.to_str()), args.next()) {
        (Some(name), None) => print!("{}", text(name)?),
        _ => return Err(Usage("this command takes one name; try pvrdma --help".into()).into()),
    }
    Ok(ExitCode::SUCCESS)
}

fn main() -> ExitCode {
    dispatch(std::env::args_os().skip(1)).unwrap_or_else(|error| {
        // `{:#}` puts the chain of causes on one line.
        if error.is::<lexopt::Error>() {
            eprintln!("pvrdma: {error:#}; try --help");
            return ExitCode::from(2);
        }
        eprintln!("pvrdma: {error:#}");
        if error.is::<Usage>() {
            return ExitCode::from(2);
        }
        match error.downcast_ref::<CannotRun>() {
            Some(CannotRun { missing: true, .. }) => ExitCode::from(127),
            Some(CannotRun { missing: false, .. }) => ExitCode::from(126),
            None => ExitCode::FAILURE,
        }
    })
}
