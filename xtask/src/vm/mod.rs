//! `cargo xtask vm`: the unmodified Linux driver on our device, in a real guest.
//!
//! Called by `main.rs`. Fetches and builds what the guest needs into `target/vm` (once; no root, nothing
//! installed), builds the device and the provider, boots a guest for each provider, and prints a table.
//! Runs without hardware virtualisation. Everything it starts ends with it.

mod adapters;
pub(crate) mod apt;
mod case;
mod child;
mod cpio;
mod guest;
mod kernel;
mod pairs;
mod qemu;
mod steps;
mod suite;
mod wire;

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use crate::shell;
use case::{Outcome, Servers};
use pairs::Choice;

const USAGE: &str = "\
usage: cargo xtask vm [--provider system|ours]... [PART] [--fetch-only] [--refresh]
       PART is one of --full, --hosts, --wire, --hca, --pyverbs and --run SCRIPT

Boots Linux 6.12 with its own vmw_pvrdma driver on `pvrdma serve` and runs stock RDMA programs in it.

  --provider WHICH  system: the C provider of the host's rdma-core; ours: the one built here (default: both)
  --full            also the longer steps (perftest, driver unbind and bind), two guests on one server, and --hosts
  --hosts           only two guests on two servers, which are two hosts of a fabric: over TCP, and then by adapters
  --wire            only RoCE between two guests on one Ethernet: Linux's software RoCE on both sides, as base line,
                    and then guests of `pvrdma run` on one of them; the stand-in's provider is ours if none is named
  --hca             only guests of `pvrdma run` on two hosts whose adapters are Linux's software RoCE; the provider is
                    ours if none is named
  --short           a few rows of --wire, without the base line, or of --hca
  --rows TEXT       only rows of them with this in their names; what passed a gateway of --wire is in guest1/wire.pcap
  --pyverbs         only rdma-core's own test suite, as one table of both providers
  --run SCRIPT      run this shell text in the guest instead and print what it prints
  --two             run the script in two guests of one server at once; $number says which is which
  --fetch-only      only fetch and build what a guest needs, below target/vm
  --refresh         fetch and build it again (newer kernel or QEMU)
";

/// Paths that everything here shares.
pub struct House {
    /// The checkout.
    root: PathBuf,
    /// `target/vm`.
    dir: PathBuf,
    /// The `pvrdma` program.
    server: PathBuf,
}

/// Which libibverbs provider the guest uses.
pub enum Provider {
    /// The C provider, from the host's rdma-core.
    System,
    /// Ours, from this file.
    Ours(PathBuf),
}

impl Provider {
    fn name(&self) -> &'static str {
        match self {
            Provider::System => "system",
            Provider::Ours(_) => "ours",
        }
    }
}

#[derive(Default)]
struct Options {
    system: bool,
    ours: bool,
    full: bool,
    hosts: bool,
    wire: bool,
    hca: bool,
    short: bool,
    rows: Option<String>,
    pyverbs: bool,
    run: Option<String>,
    two: bool,
    fetch_only: bool,
    refresh: bool,
}

/// Entry of the subcommand. Fails when any step failed.
pub fn main(args: Vec<String>) -> Result<()> {
    let Some(options) = parse(args)? else {
        print!("{USAGE}");
        return Ok(());
    };
    let started = Instant::now();
    let root = workspace_root()?;
    let dir = root.join("target/vm");
    fs::create_dir_all(&dir)?;
    let _lock = lock(&dir)?;
    if options.refresh {
        for part in ["kernel", "qemu"] {
            let _ = fs::remove_dir_all(dir.join(part));
        }
    }
    prepare(&dir)?;
    if options.fetch_only {
        return Ok(());
    }

    let built = shell::build_release()?;
    let house = House { server: built.join("pvrdma"), root, dir };
    guest::write_initramfs(
        &house.dir.join("kernel"),
        &house.root.join("tests/qemu/init.sh"),
        &house.dir.join("initramfs"),
    )?;
    ensure!(
        Path::new("/usr/bin/ibv_rc_pingpong").exists(),
        "the guest runs the host's RDMA programs: apt-get install ibverbs-utils ibverbs-providers perftest"
    );

    let mut providers = Vec::new();
    if options.system {
        providers.push(Provider::System);
    }
    if options.ours {
        providers.push(Provider::Ours(built.join("libvmw_pvrdma.so")));
    }
    let mut failed = 0;
    for provider in providers {
        let results = house.dir.join("results").join(provider.name());
        if let Some(script) = &options.run {
            let guests: Vec<_> = (0..1 + usize::from(options.two)).map(|_| steps::own(script.clone())).collect();
            let outcomes = case::run(&house, &provider, &results, Servers::One, &guests)?;
            for index in 0..guests.len() {
                println!("--- guest {} ---", index + 1);
                print!("{}", fs::read_to_string(case::first_log(&results, index)).unwrap_or_default());
            }
            failed += print_table("your script", &provider, &outcomes);
            continue;
        }
        if options.wire || options.hca {
            let choice = Choice { short: options.short, named: options.rows.clone() };
            let table = if options.wire { wire::run } else { adapters::run };
            failed += table(&house, &provider, &choice)?;
            continue;
        }
        if options.pyverbs {
            let outcomes = case::run(&house, &provider, &results, Servers::One, &[steps::pyverbs()])?;
            failed += print_table("rdma-core's own tests", &provider, &outcomes);
            continue;
        }
        if !options.hosts {
            let outcomes = case::run(&house, &provider, &results, Servers::One, &[steps::one_guest(options.full)])?;
            failed += print_table("one guest", &provider, &outcomes);
        }
        let two = [
            ("two", "two guests", Servers::One),
            ("hosts", "two guests on two hosts", Servers::Linked),
            ("hosts-by-adapters", "two guests on two hosts with adapters", Servers::LinkedByAdapters),
        ];
        for (folder, what, servers) in two {
            if options.full || options.hosts && servers != Servers::One {
                let results = house.dir.join("results").join(format!("{}-{folder}", provider.name()));
                let outcomes = case::run(&house, &provider, &results, servers, &steps::two_guests())?;
                failed += print_table(what, &provider, &outcomes);
            }
        }
    }
    if options.pyverbs && options.ours && options.system {
        let job = |provider: &str| case::job_of(&house.dir.join("results").join(provider), 0);
        println!("\n{}", suite::table(&job("ours"), &job("system"))?);
    }
    println!("{:.0} s in all; logs below {}", started.elapsed().as_secs_f64(), house.dir.join("results").display());
    match failed {
        0 => Ok(()),
        n => bail!("{n} step(s) failed"),
    }
}

fn parse(args: Vec<String>) -> Result<Option<Options>> {
    let mut options = Options::default();
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--full" => options.full = true,
            "--hosts" => options.hosts = true,
            "--wire" => options.wire = true,
            "--hca" => options.hca = true,
            "--short" => options.short = true,
            "--rows" => options.rows = Some(args.next().context("--rows needs a part of a name")?),
            "--pyverbs" => options.pyverbs = true,
            "--two" => options.two = true,
            "--run" => options.run = Some(args.next().context("--run needs shell text")?),
            "--fetch-only" => options.fetch_only = true,
            "--refresh" => options.refresh = true,
            "--provider" => match args.next().as_deref() {
                Some("system") => options.system = true,
                Some("ours") => options.ours = true,
                other => bail!("--provider takes `system` or `ours`, not {other:?}\n{USAGE}"),
            },
            "--help" | "-h" => return Ok(None),
            other => bail!("unknown option {other}\n{USAGE}"),
        }
    }
    let pairs = options.wire || options.hca;
    let kinds = [options.full, options.hosts, options.wire, options.hca, options.pyverbs, options.run.is_some()];
    if kinds.iter().filter(|kind| **kind).count() > 1 {
        bail!("one of --full, --hosts, --wire, --hca, --pyverbs and --run\n{USAGE}");
    }
    if options.two && options.run.is_none() || (options.short || options.rows.is_some()) && !pairs {
        bail!("--two goes with --run, --short and --rows with --wire or --hca\n{USAGE}");
    }
    if !options.system && !options.ours {
        (options.system, options.ours) = (!pairs, true);
    }
    Ok(Some(options))
}

/// Keeps other runs of this checkout out of `dir`, until the file is closed; waits for one that is going.
fn lock(dir: &Path) -> Result<File> {
    let file = File::create(dir.join("lock"))?;
    let flock = |how| {
        // SAFETY: no memory is involved; the descriptor is open for as long as `file` is.
        unsafe { libc::flock(file.as_raw_fd(), how) == 0 }
    };
    if !flock(libc::LOCK_EX | libc::LOCK_NB) {
        eprintln!("vm: another run uses {}; waiting for it", dir.display());
        ensure!(flock(libc::LOCK_EX), "cannot lock {}: {}", dir.display(), std::io::Error::last_os_error());
    }
    Ok(file)
}

/// The folder of the workspace's Cargo.toml.
fn workspace_root() -> Result<PathBuf> {
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR")
        .map(PathBuf::from)
        .unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")));
    Ok(manifest.parent().context("xtask lies below the workspace")?.to_owned())
}

/// Fetches and builds what is missing. Kernel and QEMU come side by side: one waits for the network, the other
/// for the compiler.
fn prepare(dir: &Path) -> Result<()> {
    let (kernel, qemu) = (dir.join("kernel"), dir.join("qemu"));
    if kernel.exists() && !kernel::ON_DEMAND.iter().all(|(group, _)| kernel.join(group).exists()) {
        // Of an earlier version, which knew fewer modules.
        fs::remove_dir_all(&kernel)?;
    }
    if kernel.exists() && qemu.exists() {
        return Ok(());
    }
    ensure!(std::env::consts::ARCH == "x86_64", "the guest is an x86-64 machine and so must this one be");
    let mirror = apt::Mirror::of_this_machine()?;
    let work = dir.join("work");
    std::thread::scope(|scope| {
        let qemu = (!qemu.exists()).then(|| scope.spawn(|| qemu::fetch(&mirror, &work, &qemu)));
        if !kernel.exists() {
            kernel::build(&mirror, &work, &kernel).context("cannot prepare the guest's kernel")?;
        }
        match qemu.map(|thread| thread.join()) {
            Some(Ok(result)) => result.context("cannot fetch QEMU"),
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => Ok(()),
        }
    })?;
    fs::remove_dir_all(&work)?;
    Ok(())
}

/// Prints what came of a run and gives the number of steps that failed.
fn print_table(what: &str, provider: &Provider, outcomes: &[Outcome]) -> usize {
    let width = outcomes.iter().map(|outcome| outcome.name.len()).max().unwrap_or(0);
    println!("\n{what}: Linux driver on pvrdma serve; provider: {}", provider.name());
    for outcome in outcomes {
        println!(
            "  {}  {:width$}  {:>6.1} s  {}",
            if outcome.passed { "ok  " } else { "FAIL" },
            outcome.name,
            outcome.time.as_secs_f64(),
            outcome.note
        );
    }
    outcomes.iter().filter(|outcome| !outcome.passed).count()
}

/// Runs a command that says nothing unless it fails.
fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("cannot run {}", command.get_program().to_string_lossy()))?;
    ensure!(
        output.status.success(),
        "{command:?} failed ({}):\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(args: &[&str]) -> Result<Option<Options>> {
        parse(args.iter().map(|arg| arg.to_string()).collect())
    }

    #[test]
    fn both_providers_by_default() {
        let options = options(&[]).unwrap().unwrap();
        assert!(options.system && options.ours && !options.full);
    }

    #[test]
    fn one_provider_when_asked() {
        let options = options(&["--provider", "ours"]).unwrap().unwrap();
        assert!(!options.system && options.ours);
    }

    #[test]
    fn guests_of_pvrdma_run_have_our_provider_unless_told() {
        for part in ["--wire", "--hca"] {
            let options = options(&[part]).unwrap().unwrap();
            assert!(!options.system && options.ours && (options.wire || options.hca));
        }
    }

    #[test]
    fn unknown_options_are_refused() {
        assert!(options(&["--provider", "theirs"]).is_err());
        assert!(options(&["--fast"]).is_err());
        assert!(options(&["--two"]).is_err());
        assert!(options(&["--full", "--run", "true"]).is_err());
        assert!(options(&["--full", "--pyverbs"]).is_err());
        assert!(options(&["--full", "--hosts"]).is_err());
        assert!(options(&["--full", "--wire"]).is_err());
        assert!(options(&["--wire", "--hca"]).is_err());
        assert!(options(&["--short"]).is_err());
        assert!(options(&["--run"]).is_err());
    }
}
