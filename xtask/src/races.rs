//! `cargo xtask races`: ThreadSanitizer on the built plugin, under the threads of tests/c/races.c.
//!
//! The plugin and the program are instrumented, and the program brings the runtime: the one that rustup ships with the
//! compiler. libibverbs and the stand-in are as always. Rust's standard library is too, as instrumenting it takes a
//! nightly compiler; so what our code does with std's locks when they are contended is out of sight, and
//! [`SUPPRESSIONS`] says where. The verbs themselves hold locks of our own.
//!
//! The runtime knows the order that pthread's functions and atomic operations of instrumented code make. It does not
//! see the device: what orders the rings between us and it is for the loom models and the mock.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use std::{env, fs};

use anyhow::{Context, Result, bail, ensure};
use pvrdma_tests::{Job, Output, Provider, Stand, User};

use crate::{packages, shell};

const USAGE: &str = "\
usage: cargo xtask races [--steps N] [CASE...]

  --steps N   rounds of each case (default: a few seconds' worth)
";

/// Rust's own switches for the sanitizer, which the stable compiler has but does not promise.
const FLAGS: &str = "-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer";

/// Named so that build scripts, which are for the host, are built without the flags.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

const SOURCE: &str = "tests/c/races.c";

/// What is no race of the plugin, a line for each, in the sanitizer's own form.
const SUPPRESSIONS: &str = "\
# The kernel's part is not looked at, nor is what it calls in the C library.
called_from_lib:libpvrdma_standin.so
# Its list of addresses ends in entries that all callers share and none may write.
race:getifaddrs
# The doorbell page is a device's registers: stores from all threads, in any order, are what it is for.
race:provider/src/ring/uar.rs
# OnceLock and Mutex of std, whose slow paths are not instrumented.
race:Context>::port
race:find*ah::create_ah
";

/// No time is spent at the exit. Names come from llvm-symbolizer or, where it is not installed, from addr2line.
const OPTIONS: &str = "atexit_sleep_ms=0:allow_addr2line=1";

/// The sanitizer's exit status after a report.
const FOUND: i32 = 66;

struct Options {
    steps: Option<String>,
    cases: Vec<String>,
}

/// Entry of the subcommand. Fails when a race is found, or when the one that was planted is not.
pub fn main(arguments: &[String]) -> Result<()> {
    let Some(options) = parse(arguments)? else {
        print!("{USAGE}");
        return Ok(());
    };
    packages::install(packages::TEST)?;
    run(&options)
}

/// The short form, for `cargo xtask test`.
pub fn check() -> Result<()> {
    run(&Options { steps: None, cases: Vec::new() })
}

/// Builds the plugin for it.
pub fn build() -> Result<()> {
    plugin().map(drop)
}

fn run(options: &Options) -> Result<()> {
    shell::build_release()?;
    let stand = Stand::new(User::Me);
    let provider = Provider::Path(stand.copy(&plugin()?));
    let suppressions = stand.path("suppressions");
    fs::write(&suppressions, SUPPRESSIONS)?;
    let job = |program: &Path, case: &str| -> Job<'_> {
        let job = stand.job(program).provider(&provider).time_out(Duration::from_secs(600)).args([case]);
        let job = job.env("TSAN_OPTIONS", format!("suppressions={}:{OPTIONS}", suppressions.display()));
        match &options.steps {
            Some(steps) => job.env("PVRDMA_STEPS", steps),
            None => job,
        }
    };

    // First that it finds what is there.
    let planted = job(&stand.copy(&program("planted", &["-DPLANTED"])?), "planted").output();
    ensure!(is_found_in_plugin(&planted), "ThreadSanitizer does not find the race that was planted\n{planted}");

    let program = stand.copy(&program("races", &[])?);
    let known = stand.job(&program).ok();
    let known: Vec<&str> = known.lines().collect();
    if let Some(unknown) = options.cases.iter().find(|case| !known.contains(&case.as_str())) {
        bail!("no case {unknown}, only {}", known.join(", "));
    }
    let is_chosen = |case: &str| options.cases.is_empty() || options.cases.iter().any(|chosen| chosen == case);
    let mut failed = Vec::new();
    for case in known.into_iter().filter(|case| is_chosen(case)) {
        let output = job(&program, case).output();
        println!("{:<20}{}", case, if output.status.success() { "ok" } else { "FAILED" });
        if !output.status.success() {
            println!("{output}");
            failed.push(case);
        }
    }
    ensure!(failed.is_empty(), "races, or wrong answers, in {}", failed.join(", "));
    Ok(())
}

fn is_found_in_plugin(output: &Output) -> bool {
    let in_plugin = |line: &str| line.contains(" #0 ") && line.contains("libvmw_pvrdma");
    output.status.code() == Some(FOUND)
        && output.stderr.contains("WARNING: ThreadSanitizer: data race")
        && output.stderr.lines().any(in_plugin)
}

/// The plugin with every access to memory announced to the sanitizer. Without link time optimisation, which takes
/// longer than all the rest, and under a name of its own, since the stand has the usual one.
fn plugin() -> Result<PathBuf> {
    let out = folder();
    shell::run(
        shell::cargo(&["build", "--quiet", "--release", "--locked", "--target", TRIPLE, "-p", "vmw_pvrdma"])
            .env("CARGO_TARGET_DIR", &out)
            .env("CARGO_PROFILE_RELEASE_LTO", "off")
            .env("RUSTC_BOOTSTRAP", "1")
            .env("RUSTFLAGS", FLAGS),
    )?;
    let plugin = out.join("libvmw_pvrdma_tsan.so");
    fs::copy(out.join(TRIPLE).join("release/libvmw_pvrdma.so"), &plugin)?;
    Ok(plugin)
}

/// races.c, instrumented, with the runtime inside: every call of the plugin and of itself ends in there.
fn program(name: &str, flags: &[&str]) -> Result<PathBuf> {
    let out = folder();
    let (object, program) = (out.join(format!("{name}.o")), out.join(name));
    shell::run(
        Command::new("cc")
            .args(["-std=gnu11", "-O1", "-g", "-pthread", "-fsanitize=thread", "-c", "-o"])
            .arg(&object)
            .arg(shell::workspace().join(SOURCE))
            .args(flags),
    )?;
    shell::run(
        Command::new("cc")
            .args(["-pthread", "-o"])
            .args([&program, &object])
            .args(["-Wl,--export-dynamic", "-Wl,--whole-archive"])
            .arg(runtime()?)
            .args(["-Wl,--no-whole-archive", "-libverbs", "-ldl", "-lm", "-lrt"]),
    )?;
    Ok(program)
}

/// The runtime that belongs to the compiler, and so to its instrumentation.
fn runtime() -> Result<PathBuf> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let libraries = shell::output(Command::new(rustc).args(["--print", "target-libdir"]))?;
    let libraries = Path::new(libraries.trim());
    let is_it = |path: &PathBuf| path.to_string_lossy().ends_with("_rt.tsan.a");
    let found = fs::read_dir(libraries)?.flatten().map(|entry| entry.path()).find(is_it);
    found.with_context(|| {
        format!("no runtime of ThreadSanitizer in {}: rustup's toolchains have it", libraries.display())
    })
}

fn folder() -> PathBuf {
    shell::target().join("races")
}

fn parse(arguments: &[String]) -> Result<Option<Options>> {
    let mut options = Options { steps: None, cases: Vec::new() };
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--steps" => {
                let steps = arguments.next().with_context(|| format!("{argument} needs a value\n{USAGE}"))?;
                steps.parse::<u32>().context("--steps takes a number")?;
                options.steps = Some(steps.clone());
            }
            "--help" | "-h" => return Ok(None),
            name if name.starts_with('-') => bail!("unexpected argument {name}\n{USAGE}"),
            case => options.cases.push(case.to_owned()),
        }
    }
    Ok(Some(options))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(words: &[&str]) -> Result<Option<Options>> {
        parse(&shell::owned(words))
    }

    #[test]
    fn mistakes_are_refused() {
        assert!(options(&["--steps", "many"]).is_err());
        assert!(options(&["--steps"]).is_err());
        assert!(options(&["--seconds", "1"]).is_err());
    }

    #[test]
    fn cases_and_steps_are_taken() {
        let options = options(&["reuse", "--steps", "7", "td"]).unwrap().unwrap();
        assert_eq!((options.steps.as_deref(), options.cases.len()), (Some("7"), 2));
    }
}
