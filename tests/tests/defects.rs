//! The defects of rdma-core's C provider (provider/DEFECTS.md), each shown by a program that runs on both providers
//! (tests/c/defects.c): it must fail there and pass here.
//!
//! `cargo xtask defects` prints the table.

use pvrdma_tests::{Job, Output, Provider, Stand, User, Uverbs, c_program, machine, workspace};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

const SOURCE: &str = "tests/c/defects.c";
/// A provider that loops is ended by a limit of processor time, which takes as long as others let it.
const PATIENCE: Duration = Duration::from_secs(300);

/// Number and case of the tests in the last column of the table.
fn rows() -> Vec<(String, String)> {
    let table = std::fs::read_to_string(workspace().join("provider/DEFECTS.md")).expect("the table is there");
    let mut rows = Vec::new();
    for line in table.lines() {
        let mut cells = line.trim_matches(['|', ' ']).split(" | ");
        if let (Some(number), Some(tests)) = (cells.next().filter(|number| number.starts_with('D')), cells.last()) {
            let names = tests.split(' ').filter_map(|test| test.strip_prefix('`')?.strip_suffix('`'));
            rows.extend(names.map(|name| (number.to_owned(), name.to_owned())));
        }
    }
    rows
}

fn program(stand: &Stand) -> PathBuf {
    stand.copy(&c_program(SOURCE, &[]))
}

fn job<'a>(stand: &'a Stand, program: &Path, provider: &Provider, case: &str) -> Job<'a> {
    stand.job(program).provider(provider).env("PVRDMA_HOOKS", "1").time_out(PATIENCE).args([case])
}

fn passed(output: &Output, case: &str) -> bool {
    output.status.success() && output.stdout == format!("ok {case}\n")
}

/// How a case failed, in a few words.
fn failure(output: &Output) -> String {
    match output.signal() {
        Some(libc::SIGXCPU | libc::SIGKILL) => "does not end".to_owned(),
        Some(libc::SIGSEGV) => "crashes".to_owned(),
        Some(signal) => format!("signal {signal}"),
        None => {
            // FILE:LINE: what was checked: what is wrong (errno N)
            let line = output.stderr.lines().last().unwrap_or_default();
            let said = line.rsplit_once(" (errno").map_or(line, |(said, _)| said).trim_end_matches([':', ' ']);
            said.rsplit_once(": ").map_or(said, |(_, wrong)| wrong).to_owned()
        }
    }
}

#[test]
fn each_fails_on_the_c_provider_and_passes_on_ours() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let program = program(&stand);
    let mut wrong = Vec::new();
    println!("{:<5} {:<21} {:<6} C provider", "", "case", "ours");
    for (number, case) in rows() {
        let there = job(&stand, &program, &Provider::System, &case).output();
        let here = job(&stand, &program, &Provider::Ours, &case).output();
        let ours = if passed(&here, &case) { "ok" } else { "FAILS" };
        let theirs = if there.status.success() { "PASSES".to_owned() } else { failure(&there) };
        println!("{number:<5} {case:<21} {ours:<6} {theirs}");
        if !passed(&here, &case) {
            wrong.push(format!("{number}: {here}"));
        }
        if there.status.success() {
            wrong.push(format!("{number}: {case} passes on the C provider: is the defect gone, or the test blind?"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// With an old kernel too, whose commands come by another way.
#[test]
fn ours_passes_by_write() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let program = program(&stand);
    for (_, case) in rows() {
        let output = job(&stand, &program, &Provider::Ours, &case).uverbs(Uverbs::Write).output();
        assert!(passed(&output, &case), "{output}");
    }
}

#[test]
fn table_and_tests_name_each_other() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let listed = stand.job(program(&stand)).ok();
    let listed: BTreeSet<&str> = listed.lines().collect();
    let rows = rows();
    let named: BTreeSet<&str> = rows.iter().map(|(_, case)| case.as_str()).collect();
    assert_eq!(named, listed);
    assert_eq!(rows.len(), named.len(), "each is named once");
    let numbers: BTreeSet<&str> = rows.iter().map(|(number, _)| number.as_str()).collect();
    assert_eq!(numbers.len(), 28, "30 defects, two without a test");
}

/// Without leave the hooks do nothing.
#[test]
fn hooks_are_refused_unless_switched_on() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let output = stand.job(program(&stand)).args(["opcodes"]).output();
    assert!(!output.status.success() && output.stderr.contains("PVRDMA_HOOKS=1 is not set"), "{output}");
}
