//! `cargo xtask test`: every check there is, from formatting to a guest with the real kernel driver.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::ahead::{self, Ahead};
use crate::shell::{cargo, run};
use crate::{checks, debs, fuzz, headers, loom, matrix, package, packages, races, shell, vm};

/// A check: its name on the command line, what it shows, what it runs.
struct Check {
    name: &'static str,
    shows: &'static str,
    run: fn() -> Result<()>,
}

/// What a check builds, in a target folder of its own, so that it can be built while others run (`ahead.rs`); or all of
/// the check.
struct Build {
    check: &'static str,
    run: fn() -> Result<()>,
}

/// The check that is done ahead as a whole: it unpacks and compiles for minutes, and little else.
const WHOLE: &str = "package";

/// The check that looks at what runs leave anywhere on the machine; before its end the other one does not begin.
const LOOKS_AROUND: &str = "system";

const AHEAD: &[Build] = &[
    Build { check: "rust", run: checks::rust_version },
    Build { check: "loom", run: loom::build },
    Build { check: "races", run: races::build },
    Build { check: "deny", run: || checks::cargo_deny().map(drop) },
    Build { check: "fuzz", run: fuzz::build_all },
    Build { check: WHOLE, run: package::check },
];

/// In this order: quick ones first, so that a slip is seen early.
const CHECKS: &[Check] = &[
    Check { name: "fmt", shows: "formatting", run: fmt },
    Check {
        name: "clippy",
        shows: "lints, warnings are errors",
        run: || run(&mut cargo(&["clippy", "--workspace", "--all-targets", "--all-features", "--", "-D", "warnings"])),
    },
    Check {
        name: "doc",
        shows: "documentation builds without a warning",
        run: || {
            run(cargo(&["doc", "--workspace", "--no-deps", "--document-private-items"])
                .env("RUSTDOCFLAGS", "-D warnings"))
        },
    },
    Check { name: "headers", shows: "include/ is what ffi/ says", run: headers::check },
    Check { name: "unit", shows: "unit tests, and layouts against the C headers", run: unit },
    Check { name: "exports", shows: "names the libraries export", run: checks::exports },
    Check { name: "system", shows: "stock programs on the stand-in, tests/", run: system },
    Check { name: "debug", shows: "the core of that with Rust's own checks on", run: system_debug },
    Check { name: "matrix", shows: "stock programs in every pair of circumstances", run: || matrix::main(&[]) },
    Check { name: "rust", shows: "compiles with the oldest Rust that is promised", run: checks::rust_version },
    Check { name: "loom", shows: "threads in the orders they can meet, by loom", run: loom::check },
    Check { name: "races", shows: "ThreadSanitizer on the provider", run: races::check },
    Check { name: "deny", shows: "licences and origin of dependencies", run: checks::deny },
    Check {
        name: "fuzz",
        shows: "a minute of hostile guests, clients, devices, programs, peers and hosts",
        run: || fuzz::main(&[]),
    },
    Check {
        name: "package",
        shows: "packages: built twice alike, for an old glibc, installed and removed in Debian 11 and forky",
        run: package::check,
    },
    Check {
        name: "vm",
        shows: "the kernel's driver in a QEMU guest; Linux's software RoCE as peer and as adapter",
        run: vm_short,
    },
];

/// Runs all checks, or those named; goes on after a failure and lists what failed.
pub fn main(arguments: &[String]) -> Result<()> {
    if arguments.iter().any(|argument| argument == "--list") {
        for check in CHECKS {
            println!("{:<10}{}", check.name, check.shows);
        }
        return Ok(());
    }
    if let [option, name] = arguments
        && option == "--ahead"
        && let Some(build) = AHEAD.iter().find(|build| build.check == name)
    {
        return (build.run)();
    }
    if let Some(unknown) = arguments.iter().find(|name| CHECKS.iter().all(|check| check.name != *name)) {
        bail!("no such check: {unknown} (`cargo xtask test --list`)");
    }
    let chosen: Vec<_> =
        CHECKS.iter().filter(|check| arguments.is_empty() || arguments.iter().any(|name| check.name == name)).collect();

    packages::install(packages::TEST)?;
    let is_chosen = |name: &str| chosen.iter().any(|check| check.name == name);
    // Now: nothing else may install while builds go on ahead.
    for (name, list) in [("fuzz", packages::FUZZ), ("package", packages::PACKAGE), ("vm", packages::VM)] {
        if is_chosen(name) {
            packages::install(list)?;
        }
    }
    // One alone is watched.
    let is_ahead = |name: &str| chosen.len() > 1 && is_chosen(name);
    let ahead =
        Ahead::start(AHEAD.iter().map(|build| build.check).filter(|name| is_ahead(name) && *name != WHOLE).collect());
    let mut results = Vec::new();
    let mut whole = None;
    for (index, check) in chosen.iter().enumerate() {
        let nobody_looks = chosen[index..].iter().all(|check| check.name != LOOKS_AROUND);
        if whole.is_none() && is_ahead(WHOLE) && nobody_looks {
            whole = Some(Ahead::start(vec![WHOLE]));
        }
        println!("\n=== {}: {}", check.name, check.shows);
        let start = Instant::now();
        ahead.wait(check.name);
        let is_done = check.name == WHOLE && whole.as_ref().is_some_and(|whole| whole.wait(WHOLE));
        let result = if is_done {
            print!("{}", fs::read_to_string(ahead::log(check.name)).unwrap_or_default());
            Ok(())
        } else {
            (check.run)()
        };
        if let Err(error) = &result {
            println!("=== {} FAILED: {error:#}", check.name);
        }
        results.push((*check, result.is_ok(), start.elapsed()));
    }
    report(&results)
}

fn report(results: &[(&Check, bool, Duration)]) -> Result<()> {
    println!();
    for (check, passed, time) in results {
        let verdict = if *passed { "ok" } else { "FAILED" };
        println!("{verdict:<8}{:<10}{:>5} s  {}", check.name, time.as_secs(), check.shows);
    }
    let failed = results.iter().filter(|(_, passed, _)| !passed).count();
    if failed > 0 {
        bail!("{failed} of {} checks failed", results.len());
    }
    Ok(())
}

fn fmt() -> Result<()> {
    run(&mut cargo(&["fmt", "--all", "--check"]))?;
    for folder in fuzz::crates() {
        run(cargo(&["fmt", "--check"]).current_dir(folder))?;
    }
    Ok(())
}

fn unit() -> Result<()> {
    let all = ["--workspace", "--all-features", "--exclude", "pvrdma-tests", "--exclude", "pvrdma-perftest"];
    run(cargo(&["test"]).args(all))?;
    // Messages in pieces, as a network has them; the length of one is drawn anew for each.
    run(cargo(&["test", "-q", "-p", "pvrdma-device", "--all-features", "--tests"]).env("PVRDMA_CUT", "mixed"))
}

fn system() -> Result<()> {
    let built = shell::build_release()?;
    debs::forky()?;
    debs::bullseye()?;
    debs::trixie()?;
    debs::pyverbs()?;
    let not_run = shell::target().join("not-run.txt");
    if not_run.exists() {
        fs::remove_file(&not_run)?;
    }
    let result = run(cargo(&["test", "-p", "pvrdma-tests", "-p", "pvrdma-perftest", "--no-fail-fast"])
        .env("PVRDMA_BUILT", built)
        .env("PVRDMA_NOT_RUN", &not_run));
    if let Ok(list) = fs::read_to_string(&not_run) {
        println!("\nNOT RUN on this machine:\n{list}");
    }
    result
}

/// Overflow checks and assertions are in the debug build only, and so is the sight of a work request that never ended.
fn system_debug() -> Result<()> {
    run(&mut cargo(&["build", "-p", "pvrdma-cli", "-p", "pvrdma-standin", "-p", "vmw_pvrdma"]))?;
    run(cargo(&["test", "-p", "pvrdma-tests", "--test", "rc_loop", "--test", "pingpong", "--test", "killed_peer"])
        .env("PVRDMA_BUILT", shell::target().join("debug")))
}

/// Runs a test that prints a table, for the table.
pub fn table(story: &str, test: &str) -> Result<()> {
    packages::install(packages::TEST)?;
    let built = shell::build_release()?;
    run(cargo(&["test", "-q", "-p", "pvrdma-tests", "--test", story, "--", "--exact", test, "--nocapture"])
        .env("PVRDMA_BUILT", built))
}

fn vm_short() -> Result<()> {
    packages::install(packages::VM)?;
    let parts: [&[&str]; 3] = [&[], &["--wire", "--short"], &["--hca", "--short"]];
    parts.iter().try_for_each(|part| vm::main(part.iter().map(|word| (*word).to_owned()).collect()))
}
