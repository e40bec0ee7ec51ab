//! `pvrdma doctor`: why RDMA works here or not, line by line, with the cure.
//!
//! Called by `main.rs` with the arguments after the subcommand. Each floor of what lies below an RDMA program has its
//! file: the virtual machine, the PCI function, the kernel, the port, libibverbs, providers, settings, and last a
//! self-test over the device. A floor is asked through [`machine::Machine`] and answers with [`report::Finding`]s; none
//! changes anything.

mod gateway;
mod host;
mod kernel;
mod library;
mod machine;
mod pci;
mod port;
mod providers;
mod report;
mod selftest;
mod settings;
mod standin;

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use lexopt::prelude::*;

use crate::Usage;
use library::Library;
use machine::Machine;
use report::Finding;

/// Help text of the subcommand.
pub const HELP: &str = "\
Says why RDMA works on this machine or not, line by line, with the cure.

Usage: pvrdma doctor [OPTIONS]

Options:
  --json          one JSON object instead of lines of text
  --fix           print the commands of the cures; nothing is ever run
  --no-self-test  only look; do not move data over the device
  --root FOLDER   look at the machine whose files lie below FOLDER, such as a mounted image
  -h, --help      this text

It looks at the PCI function and the vmxnet3 beside it, the kernel's modules, device nodes, limits, link, MTU and GIDs,
libibverbs and the provider that it would load, and at settings of UCX, NCCL, Open MPI and libfabric. Then two QPs of
the device send each other 1 MiB. Inside `pvrdma run` it looks at the software device.
A line begins with ok, note (a fact), warn (works, but not for all), fail or unknown.
Exit status: 0 RDMA works, 1 something is wrong, 2 that cannot be told, or a mistake on the command line.
";

#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    json: bool,
    fix: bool,
    no_self_test: bool,
    root: Option<PathBuf>,
    /// We are the process that runs the self-test: device and GID.
    self_test: Option<(String, u8)>,
}

/// `None`: only the help text was wanted.
fn parse(args: Vec<OsString>) -> anyhow::Result<Option<Options>> {
    let mut options = Options::default();
    let mut args = lexopt::Parser::from_args(args);
    while let Some(arg) = args.next()? {
        match arg {
            Long("json") => options.json = true,
            Long("fix") => options.fix = true,
            Long("no-self-test") => options.no_self_test = true,
            Long("root") => options.root = Some(args.value()?.into()),
            Long("self-test") => options.self_test = Some((args.value()?.string()?, args.value()?.parse()?)),
            Short('h') | Long("help") => return Ok(None),
            other => return Err(other.unexpected().into()),
        }
    }
    if options.json && options.fix {
        return Err(Usage("--json has the commands too; take it or --fix".into()).into());
    }
    if let Some(root) = options.root.as_ref().filter(|root| !root.is_dir()) {
        return Err(Usage(format!("--root: {} is no folder", root.display())).into());
    }
    Ok(Some(options))
}

/// Entry point of the subcommand.
pub fn main(args: Vec<OsString>) -> anyhow::Result<ExitCode> {
    let Some(options) = parse(args)? else {
        print!("{HELP}");
        return Ok(ExitCode::SUCCESS);
    };
    if let Some((device, gid)) = options.self_test {
        return Ok(selftest::main(&device, gid));
    }
    let machine = options.root.as_deref().map_or_else(Machine::this, Machine::below);
    let mut findings = look(&machine);
    if !options.no_self_test {
        findings.extend(selftest::check(&machine));
    }
    let text = match (options.json, options.fix) {
        (true, _) => report::json(&findings),
        (_, true) => report::commands(&findings),
        _ => report::text(&findings),
    };
    // Whoever started it may have read enough.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(ExitCode::from(report::status(&findings)))
}

/// All floors, from the bottom.
fn look(machine: &Machine) -> Vec<Finding> {
    let library = Library::find(machine);
    let mut findings = pci::check(machine);
    findings.extend(host::check(machine));
    findings.extend(kernel::check(machine));
    findings.extend(port::check(machine));
    findings.extend(library::check(machine, library.as_ref()));
    findings.extend(library.iter().flat_map(|library| providers::check(machine, library)));
    findings.extend(settings::check(machine));
    findings.extend(standin::check(machine));
    findings.extend(gateway::check(machine));
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> anyhow::Result<Option<Options>> {
        parse(words.iter().map(Into::into).collect())
    }

    #[test]
    fn options_are_taken_and_mistakes_named() {
        assert_eq!(parsed(&[]).unwrap().unwrap(), Options::default());
        assert!(parsed(&["--json", "--no-self-test"]).unwrap().unwrap().json);
        assert!(parsed(&["--help"]).unwrap().is_none());
        for words in [&["--jsno"][..], &["--json", "--fix"], &["--root"], &["--root", "/no/such"], &["device"]] {
            assert!(parsed(words).is_err(), "{words:?}");
        }
    }
}
