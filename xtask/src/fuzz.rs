//! `cargo xtask fuzz`: libFuzzer on the fuzz targets, with the stable compiler and no tool to install but g++.
//!
//! A target is a binary of a crate called `fuzz`, in a workspace of its own, since it is built with other flags than
//! all else. cargo-fuzz would pass the same flags, and wants a nightly compiler for a sanitizer that nothing here
//! needs.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, bail, ensure};

use crate::{packages, shell};

const USAGE: &str = "\
usage: cargo xtask fuzz [--seconds N] [--input FILE] [TARGET...]

  --seconds N   how long each target runs (default 60)
  --input FILE  run only this input, such as one that was found, in the one TARGET
";

/// Name of a target, and the folder of its crate.
const TARGETS: &[(&str, &str)] = &[
    ("guest", "device/core/fuzz"),
    ("client", "device/vfio-user/fuzz"),
    ("adapter", "provider/fuzz"),
    ("program", "device/standin/fuzz"),
    ("manager", "device/cm/fuzz"),
    ("frames", "device/net/fuzz"),
    ("settings", "device/net/fuzz"),
    ("packets", "device/roce/fuzz"),
    ("peer", "device/roce/fuzz"),
];

/// What makes a build tell libFuzzer where it has been: libFuzzer reads counters at each edge, a table of places, and
/// the values that are compared.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1";

/// Named so that build scripts, which are for the host, are built without the flags.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

struct Options {
    seconds: u32,
    input: Option<PathBuf>,
    targets: Vec<&'static (&'static str, &'static str)>,
}

/// Entry of the subcommand. Fails when a target finds something.
pub fn main(arguments: &[String]) -> Result<()> {
    let Some(options) = parse(arguments)? else {
        print!("{USAGE}");
        return Ok(());
    };
    packages::install(packages::FUZZ)?;
    let programs = options.targets.iter().map(|(target, folder)| build(target, folder)).collect::<Result<Vec<_>>>()?;
    if let Some(input) = &options.input {
        return programs.iter().try_for_each(|program| shell::run(Command::new(program).arg(input)));
    }
    // Side by side: each is one thread.
    thread::scope(|scope| {
        let running: Vec<_> = options
            .targets
            .iter()
            .zip(&programs)
            .map(|((target, folder), program)| scope.spawn(|| fuzz(target, folder, program, options.seconds)))
            .collect();
        let ended = running.into_iter().map(|target| target.join().unwrap_or_else(|_| bail!("a thread panicked")));
        ended.collect::<Result<Vec<_>>>().map(drop)
    })
}

/// The folders of all fuzz crates, for checks that look at every file.
pub fn crates() -> impl Iterator<Item = PathBuf> {
    let folders: std::collections::BTreeSet<&str> = TARGETS.iter().map(|(_, folder)| *folder).collect();
    folders.into_iter().map(|folder| shell::workspace().join(folder))
}

/// Builds all targets.
pub fn build_all() -> Result<()> {
    packages::install(packages::FUZZ)?;
    TARGETS.iter().try_for_each(|(target, folder)| build(target, folder).map(drop))
}

fn build(target: &str, folder: &str) -> Result<PathBuf> {
    let out = shell::target().join("fuzz");
    shell::run(
        shell::cargo(&["build", "--quiet", "--release", "--locked", "--target", TRIPLE, "--bin", target])
            .current_dir(shell::workspace().join(folder))
            .env("CARGO_TARGET_DIR", &out)
            .env("RUSTFLAGS", FLAGS),
    )?;
    Ok(out.join(TRIPLE).join("release").join(target))
}

/// Inputs that led to new places are kept below the target folder, so that the next run goes on from there. The
/// checked-in seeds are only read.
fn fuzz(target: &str, folder: &str, program: &PathBuf, seconds: u32) -> Result<()> {
    let out = shell::target().join("fuzz");
    let corpus = out.join("corpus").join(target);
    fs::create_dir_all(&corpus).with_context(|| format!("cannot make {}", corpus.display()))?;
    let mut command = Command::new(program);
    command.arg(&corpus);
    let seeds = shell::workspace().join(folder).join("seeds").join(target);
    if seeds.exists() {
        command.arg(seeds);
    }
    command.arg(format!("-artifact_prefix={}/", out.display()));
    command.arg(format!("-max_total_time={seconds}"));
    // An input takes milliseconds; so long is a hang. Memory is the device's own budget and libFuzzer's.
    command.args(["-timeout=20", "-rss_limit_mb=1024", "-max_len=8192", "-len_control=0", "-print_final_stats=1"]);
    let output = command.output().with_context(|| format!("cannot start {}", program.display()))?;
    let log = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("{target} found something (`cargo xtask fuzz --input FILE {target}` runs it again)\n{}", tail(&log, 100));
    }
    let executions = log.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    let executions: u64 = executions.context("libFuzzer prints its statistics")?.trim().parse()?;
    let covered = log.lines().rev().find(|line| line.contains(" cov: ")).unwrap_or_default();
    println!("{target}: {executions} inputs, nothing found\n{covered}");
    // A target that stops at its first line would find nothing either.
    ensure!(executions > 100, "{target} ran only {executions} inputs");
    Ok(())
}

fn tail(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

fn parse(arguments: &[String]) -> Result<Option<Options>> {
    let mut options = Options { seconds: 60, input: None, targets: Vec::new() };
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} needs a value\n{USAGE}"));
        match argument.as_str() {
            "--seconds" => options.seconds = value()?.parse().context("--seconds takes a number")?,
            "--input" => options.input = Some(value()?.into()),
            "--help" | "-h" => return Ok(None),
            name => {
                let known = TARGETS.iter().find(|(target, _)| *target == name);
                let names: Vec<_> = TARGETS.iter().map(|(target, _)| *target).collect();
                options.targets.push(known.with_context(|| format!("no target {name}, only {}", names.join(", ")))?);
            }
        }
    }
    if options.targets.is_empty() {
        options.targets.extend(TARGETS);
    }
    ensure!(options.input.is_none() || options.targets.len() == 1, "--input is for one target\n{USAGE}");
    Ok(Some(options))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(words: &[&str]) -> Result<Option<Options>> {
        parse(&shell::owned(words))
    }

    #[test]
    fn all_targets_for_a_minute_by_default() {
        let options = options(&[]).unwrap().unwrap();
        assert_eq!((options.seconds, options.targets.len()), (60, TARGETS.len()));
    }

    #[test]
    fn every_target_has_its_crate() {
        for folder in crates() {
            assert!(folder.join("Cargo.toml").exists(), "{}", folder.display());
        }
    }

    #[test]
    fn mistakes_are_refused() {
        assert!(options(&["--seconds", "long"]).is_err());
        assert!(options(&["--input"]).is_err());
        assert!(options(&["visitor"]).is_err());
    }
}
