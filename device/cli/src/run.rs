//! `pvrdma run`: a program as a process of a guest that has a PVRDMA device.
//!
//! The kernel's part is played by a preload library inside the program. This command prepares what the library
//! and libibverbs look for (run directory, guest, sysfs tree, provider), starts the program, and when it ends
//! removes what nobody else uses.

use crate::guests::{OnWire, Seat, check_name};
use crate::provider::{Provider, installed_library};
use crate::rundir::RunDir;
use crate::{Usage, child, link, options, program};
use anyhow::Context;
use pvrdma_device::guest::Roce;
use pvrdma_fabric::segment::view;
use pvrdma_link::gateway::interface_of;
use std::ffi::{OsStr, OsString};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// Help text of the subcommand.
pub const HELP: &str = "\
Runs a program in a guest that has a PVRDMA device. Needs no privileges.

Usage: pvrdma run [OPTIONS] -- PROGRAM [ARGS...]

Options:
  --guest NAME                  the guest to run in; programs of one guest share its device,
                                different guests reach each other [default: default]
  --provider ours|system|PATH   the libibverbs provider to use [default: ours]
  --roce v1|v2                  RoCE version of a new guest [default: v2]
  --trap                        every doorbell traps, also those of a provider that says where it rings
  --trace FILE                  append a line to FILE for every command the device gets
  --pcap FILE                   append what the program sends, and the answers to it, to FILE as the RoCE
                                frames it would be, for Wireshark
  --fault LIST                  have the network lose, delay or refuse what the program sends; LIST is
                                NAME=VALUE[,...] of drop, drop-ack, reorder, duplicate, rnr (probability),
                                delay (time, 50us), dead (after so many requests), seed (number)
  --paths LIST                  the ways to other guests that the program may use: memory (those of this host),
                                tcp (those of other hosts), roce (whoever else speaks RoCE, see pvrdma link);
                                behind another nobody answers [default: memory,tcp,roce]
  -h, --help                    this text

The device is vmw_pvrdma0, port 1; GID 0 is link-local, GID 1 maps 127.H.82.N, N 1 for the first guest. H is the
number of this host: the line in the file number of $PVRDMA_LINK, or else of ~/.config/pvrdma/link; 0 without one.
Where pvrdma link run has --roce-wire, GID 2 of a new guest maps that address of this host.
RDMA devices of the machine stay usable beside it; if one has that name, ours takes the next number.
Exit status: the program's; 128 + N if signal N ended it; 127 if it was not found, 126 if it cannot
be run, 2 for a mistake on the command line, 1 for anything else that keeps it from starting.
";

#[derive(Debug, PartialEq, Eq)]
struct Options {
    guest: String,
    provider: Provider,
    roce: Option<Roce>,
    trap: bool,
    trace: Option<PathBuf>,
    capture: Option<PathBuf>,
    fault: Option<String>,
    paths: Option<String>,
    program: OsString,
    args: Vec<OsString>,
}

/// `None`: only the help text was wanted.
fn parse(args: Vec<OsString>) -> anyhow::Result<Option<Options>> {
    use lexopt::prelude::*;
    let mut parser = lexopt::Parser::from_args(args);
    let (mut guest, mut provider, mut roce, mut trace) = ("default".to_owned(), Provider::default(), None, None);
    let (mut trap, mut capture, mut fault, mut paths) = (false, None, None, None);
    while let Some(arg) = parser.next()? {
        match arg {
            Long("guest") => {
                guest = parser.value()?.string()?;
                check_name(&guest)?;
            }
            Long("provider") => provider = parser.value()?.into(),
            Long("roce") => roce = Some(options::roce(&mut parser)?),
            Long("trap") => trap = true,
            Long("trace") => trace = Some(options::file(&mut parser, "--trace")?),
            Long("pcap") => capture = Some(options::file(&mut parser, "--pcap")?),
            Long("fault") => fault = Some(options::faults(&mut parser)?.0),
            Long("paths") => paths = Some(options::paths(&mut parser)?.0),
            Short('h') | Long("help") => return Ok(None),
            Value(program) => {
                // The first word that is no option; all that follows is its own.
                let args = parser.raw_args()?.collect();
                return Ok(Some(Options { guest, provider, roce, trap, trace, capture, fault, paths, program, args }));
            }
            other => return Err(other.unexpected().into()),
        }
    }
    Err(Usage("no program to run; try pvrdma run --help".into()).into())
}

/// Entry point of the subcommand.
pub fn main(args: Vec<OsString>) -> anyhow::Result<ExitCode> {
    let Some(options) = parse(args)? else {
        print!("{HELP}");
        return Ok(ExitCode::SUCCESS);
    };
    // All that can be refused without leaving a trace comes first.
    let program = program::find(&options.program)?;
    let standin = installed_library("libpvrdma_standin.so")?;
    let trace = options.trace.as_deref().map(options::trace_file).transpose()?;
    let capture = options.capture.as_deref().map(options::capture_file).transpose()?;
    let host = link::folder::host_number()?;

    let run_dir = RunDir::join(&RunDir::default_path()?)?;
    let result = in_run_dir(&options, host, &program, &standin, Files { trace, capture }, &run_dir);
    run_dir.leave().context("cannot clean up the run directory")?;
    Ok(ExitCode::from(result?))
}

/// Files that the program writes, by absolute paths.
struct Files {
    trace: Option<PathBuf>,
    capture: Option<PathBuf>,
}

fn in_run_dir(
    options: &Options,
    host: u8,
    program: &Path,
    standin: &Path,
    files: Files,
    run_dir: &RunDir,
) -> anyhow::Result<u8> {
    let seat = Seat::take(run_dir.path(), host, &options.guest, options.roce, on_wire(run_dir.path()))?;
    let result = in_guest(options, program, standin, files, run_dir, &seat);
    seat.leave().with_context(|| format!("cannot clean up guest {}", options.guest))?;
    result
}

/// What the gateway has for those who speak RoCE, if one runs.
fn on_wire(run_dir: &Path) -> Option<OnWire> {
    // What cannot be looked at is said when the program opens its device.
    let wire = view::look(run_dir).ok()??.wire?;
    let interface = interface_of(wire.address()).ok()?.name;
    Some(OnWire { wire, interface })
}

fn in_guest(
    options: &Options,
    program: &Path,
    standin: &Path,
    files: Files,
    run_dir: &RunDir,
    seat: &Seat,
) -> anyhow::Result<u8> {
    let drivers = options.provider.install(&seat.providers())?;
    let guest = seat.guest();

    let mut command = Command::new(program);
    std::os::unix::process::CommandExt::arg0(&mut command, &options.program);
    command.args(&options.args);
    command.env("PVRDMA_HOST_DIR", run_dir.path());
    command.env("PVRDMA_HOST_NUMBER", guest.host().to_string());
    command.env("PVRDMA_GUEST_INDEX", guest.index().to_string());
    command.env("PVRDMA_ROCE", guest.roce().name());
    match seat.wire() {
        Some(wire) => command.env("PVRDMA_WIRE", wire.to_string()),
        None => command.env_remove("PVRDMA_WIRE"),
    };
    match options.trap {
        true => command.env("PVRDMA_TRAP", "1"),
        false => command.env_remove("PVRDMA_TRAP"),
    };
    match files.trace {
        Some(file) => command.env("PVRDMA_TRACE", file),
        None => command.env_remove("PVRDMA_TRACE"),
    };
    match files.capture {
        Some(file) => command.env("PVRDMA_PCAP", file),
        None => command.env_remove("PVRDMA_PCAP"),
    };
    match &options.fault {
        Some(list) => command.env("PVRDMA_FAULT", list),
        None => command.env_remove("PVRDMA_FAULT"),
    };
    match &options.paths {
        Some(list) => command.env("PVRDMA_PATHS", list),
        None => command.env_remove("PVRDMA_PATHS"),
    };
    command.env("PVRDMA_NODE", format!("/dev/infiniband/{}", seat.names().uverbs()));
    command.env("SYSFS_PATH", seat.sysfs());
    // libibverbs reads RDMAV_DRIVERS first and IBV_DRIVERS only without it.
    command.env_remove("RDMAV_DRIVERS");
    match drivers {
        Some(drivers) => command.env("IBV_DRIVERS", drivers),
        None => command.env_remove("IBV_DRIVERS"),
    };
    command.env("VALGRIND_OPTS", for_valgrind(std::env::var_os("VALGRIND_OPTS").unwrap_or_default()));
    command.env("LD_PRELOAD", preload(std::env::var_os("LD_PRELOAD").as_deref(), standin)?);

    let holds = [child::out_of_the_way(run_dir.hold()?)?, child::out_of_the_way(seat.hold()?)?];
    command.env("PVRDMA_HOLDS", holds.each_ref().map(|hold| hold.as_raw_fd().to_string()).join(","));
    child::run(command, holds.into())
}

/// If the program is valgrind: a doorbell's value is in a register of the thread that faulted, and without this option
/// those that a signal handler sees are out of date.
fn for_valgrind(existing: OsString) -> OsString {
    let mut options = OsString::from("--vex-iropt-register-updates=allregs-at-mem-access ");
    options.push(existing);
    options
}

/// Appends our library to what is preloaded already.
fn preload(existing: Option<&OsStr>, standin: &Path) -> anyhow::Result<OsString> {
    let path = standin.as_os_str();
    let separates = |b: &u8| matches!(b, b' ' | b':');
    if path.as_bytes().iter().any(separates) {
        anyhow::bail!("{} cannot be preloaded: its path has a space or a colon", standin.display());
    }
    let mut value = existing.unwrap_or_default().to_owned();
    if !value.as_bytes().split(|b| separates(b)).any(|entry| entry == path.as_bytes()) {
        if !value.is_empty() {
            value.push(":");
        }
        value.push(path);
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_words(words: &[&str]) -> anyhow::Result<Option<Options>> {
        parse(words.iter().map(Into::into).collect())
    }

    #[test]
    fn options_end_where_the_program_begins() {
        let words = [
            "--guest",
            "a",
            "--roce=v1",
            "--provider",
            "system",
            "--trap",
            "--trace",
            "t",
            "--",
            "ib_write_bw",
            "-d",
            "x",
        ];
        let options = parse_words(&words).unwrap().unwrap();
        assert_eq!(options.guest, "a");
        assert_eq!(options.roce, Some(Roce::V1));
        assert_eq!(options.provider, Provider::System);
        assert!(options.trap);
        assert_eq!(options.trace, Some("t".into()));
        assert_eq!(options.program, "ib_write_bw");
        assert_eq!(options.args, ["-d", "x"]);
        let options = parse_words(&["ibv_devinfo", "--guest", "b", "--"]).unwrap().unwrap();
        assert_eq!((options.guest.as_str(), options.trap, options.args.len()), ("default", false, 3));
    }

    #[test]
    fn mistakes_are_refused() {
        for words in [
            &["--gest", "a"][..],
            &["--fault", "drop=2", "x"],
            &["--paths", "hca", "x"],
            &["--guest"],
            &["--guest", "a b", "x"],
            &["--roce", "v3", "x"],
            &["--pcap", "-", "x"],
            &["--pcap", "", "x"],
            &["--trace", "", "x"],
            &[],
            &["--"],
        ] {
            assert!(parse_words(words).is_err(), "{words:?}");
        }
        assert!(parse_words(&["--help"]).unwrap().is_none());
    }

    #[test]
    fn our_library_comes_last_and_once() {
        let ours = Path::new("/lib/ours.so");
        assert_eq!(preload(None, ours).unwrap(), "/lib/ours.so");
        assert_eq!(preload(Some(OsStr::new("a.so b.so")), ours).unwrap(), "a.so b.so:/lib/ours.so");
        assert_eq!(preload(Some(OsStr::new("a.so:/lib/ours.so")), ours).unwrap(), "a.so:/lib/ours.so");
        assert!(preload(None, Path::new("/my lib/ours.so")).is_err());
    }
}
