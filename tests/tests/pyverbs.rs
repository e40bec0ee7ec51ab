//! rdma-core's own test suite (Debian's python3-pyverbs) on both providers, against the list `tests/pyverbs/tests.txt`.
//!
//! `cargo test -p pvrdma-tests --test pyverbs -- --nocapture` prints how both do.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use pvrdma_tests::{Provider, Stand, User, cannot_run, machine, workspace};

/// Where the package has the suite; some of its files are packed.
const SUITE: &str = "/usr/share/doc/rdma-core/tests";

/// Debian's own: the package's modules are for it.
const PYTHON: &str = "/usr/bin/python3";

/// The only release the list is for.
const RELEASE: &str = "44.0";

/// How each test must end with our provider and with the C provider.
fn expected() -> BTreeMap<String, [String; 2]> {
    let list = std::fs::read_to_string(workspace().join("tests/pyverbs/tests.txt")).expect("the list");
    let lines = list.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (line, reason) = line.split_once("  # ").map_or((line, ""), |(line, reason)| (line, reason));
            let [name, ours, system] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
            assert_eq!(ours == "pass", reason.is_empty(), "{name}: what is skipped has a reason, and nothing else");
            (name.to_owned(), [ours.to_owned(), system.to_owned()])
        })
        .collect()
}

/// How each test ended, and why.
fn run(stand: &Stand, folder: &Path, provider: &Provider) -> BTreeMap<String, (String, String)> {
    let text = stand
        .job(PYTHON)
        .provider(provider)
        .time_out(Duration::from_secs(300))
        .args([&workspace().join("tests/pyverbs/run.py"), folder])
        .args(["vmw_pvrdma0", "1"])
        .ok();
    text.lines()
        .map(|line| {
            let [name, how, why] = line.splitn(3, '\t').collect::<Vec<_>>()[..] else { panic!("{line}") };
            let name = name.strip_prefix("tests.").unwrap_or(name);
            (name.to_owned(), (how.to_lowercase(), why.to_owned()))
        })
        .collect()
}

#[test]
fn every_test_ends_as_the_list_says() {
    let _machine = machine();
    let version = Command::new("dpkg-query").args(["-W", "-f", "${Version}", "python3-pyverbs"]).output();
    let version = version.map_or_else(|_| String::new(), |out| String::from_utf8_lossy(&out.stdout).into_owned());
    if !version.starts_with(RELEASE) {
        return cannot_run("rdma-core's own tests", "python3-pyverbs 44.0 of Debian 12 is not installed");
    }
    let stand = Stand::new(User::Me);
    let tests = stand.copy_tree(Path::new(SUITE));
    let unpacked = Command::new("gunzip").arg("-rf").arg(&tests).status().expect("gunzip starts");
    assert!(unpacked.success(), "the suite can be unpacked");
    let folder = tests.parent().expect("the copy lies in a folder").to_owned();
    let expected = expected();
    let mut wrong = Vec::new();
    for (column, provider) in Provider::BOTH.iter().enumerate() {
        let found = run(&stand, &folder, provider);
        let count = |how: &str| found.values().filter(|(found, _)| found == how).count();
        println!("{provider:?}: {} pass, {} skip, {} fail", count("pass"), count("skip"), count("fail"));
        for (name, (how, why)) in &found {
            match expected.get(name).map(|columns| columns[column].as_str()) {
                Some("machine" | "chance") if how != "fail" => {}
                Some(wanted) if wanted == how => {}
                Some(wanted) => wrong.push(format!("{provider:?}: {name}: {how} instead of {wanted}: {why}")),
                None => wrong.push(format!("{provider:?}: {name} is not in the list: {how}: {why}")),
            }
        }
        let lost = expected.keys().filter(|name| !found.contains_key(*name));
        wrong.extend(lost.map(|name| format!("{provider:?}: {name} was not run")));
    }
    assert!(wrong.is_empty(), "{} tests:\n{}", wrong.len(), wrong.join("\n"));
}
