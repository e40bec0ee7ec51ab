//! `pvrdma serve`: PVRDMA devices for virtual machines, over vfio-user.
//!
//! Called by `main.rs` with the arguments after the subcommand. The work is done by the crate pvrdma-vfio-user.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use lexopt::{Arg, ValueExt};

use crate::Usage;

/// Help text of the subcommand.
const HELP: &str = "\
Usage: pvrdma serve --socket PATH [--socket PATH]...

Waits on each socket for a QEMU with
  -device '{\"driver\":\"vfio-user-pci\",\"x-no-posted-writes\":true,\"socket\":{\"type\":\"unix\",\"path\":\"PATH\"}}'
and gives its guest a PVRDMA device. Guests of one server reach each other. The guest's memory must be shared
(-object memory-backend-memfd,share=on), and a vmxnet3 must be function 0 of the device's PCI slot.
Ends on SIGTERM and SIGINT, and removes the sockets.
";

/// Runs the subcommand until a signal ends it.
pub fn main(args: Vec<OsString>) -> anyhow::Result<ExitCode> {
    match parse(args)? {
        Some(sockets) => pvrdma_vfio_user::serve(&sockets)?,
        None => print!("{HELP}"),
    }
    Ok(ExitCode::SUCCESS)
}

/// The sockets, or nothing if help was asked for.
fn parse(args: Vec<OsString>) -> anyhow::Result<Option<Vec<PathBuf>>> {
    let mut sockets: Vec<PathBuf> = Vec::new();
    let mut args = lexopt::Parser::from_args(args);
    while let Some(arg) = args.next()? {
        match arg {
            Arg::Long("socket") => {
                let path: PathBuf = args.value()?.parse_with(|path| match path {
                    "" => Err("a socket needs a name"),
                    path => Ok(path.into()),
                })?;
                if sockets.contains(&path) {
                    return Err(Usage(format!("--socket {} is given twice", path.display())).into());
                }
                sockets.push(path);
            }
            Arg::Long("help") | Arg::Short('h') => return Ok(None),
            other => return Err(other.unexpected().into()),
        }
    }
    if sockets.is_empty() {
        return Err(Usage("serve needs a --socket; try pvrdma serve --help".into()).into());
    }
    Ok(Some(sockets))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sockets(args: &[&str]) -> anyhow::Result<Option<Vec<PathBuf>>> {
        parse(args.iter().map(OsString::from).collect())
    }

    #[test]
    fn sockets_are_collected_in_order() {
        let paths = sockets(&["--socket", "a", "--socket", "b"]).unwrap().unwrap();
        assert_eq!(paths, [PathBuf::from("a"), PathBuf::from("b")]);
    }

    #[test]
    fn mistakes_are_named() {
        let mistake = |args: &[&str]| sockets(args).unwrap_err().to_string();
        assert!(mistake(&[]).contains("--socket"));
        assert!(mistake(&["--socket"]).contains("--socket"));
        assert!(mistake(&["--socket", ""]).contains("name"));
        assert!(mistake(&["--socket", "a", "--socket", "a"]).contains("twice"));
        assert!(mistake(&["--sokcet", "a"]).contains("--sokcet"));
        assert!(mistake(&["a"]).contains('a'));
    }

    #[test]
    fn help_wins() {
        assert!(sockets(&["--socket", "a", "--help"]).unwrap().is_none());
    }
}
