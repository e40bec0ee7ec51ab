//! rdma-core's own test suite (Debian's python3-pyverbs) on both providers, against the list `tests/pyverbs/tests.txt`.
//!
//! `cargo xtask pyverbs` prints how each test ended with both. What needs a network device beside the RDMA device
//! runs in the guest of `cargo xtask vm`.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use pvrdma_tests::{Provider, Stand, User, cannot_run, machine, pyverbs, workspace};

/// Debian's own: the package's modules are for it.
const PYTHON: &str = "/usr/bin/python3";

fn run(stand: &Stand, folder: &Path, provider: &Provider) -> pyverbs::Found {
    let text = stand
        .job(PYTHON)
        .provider(provider)
        .time_out(Duration::from_secs(300))
        .args([&workspace().join("tests/pyverbs/run.py"), folder])
        .args(["vmw_pvrdma0", "1"])
        .ok();
    pyverbs::found(&text)
}

#[test]
fn every_test_ends_as_the_list_says() {
    let _machine = machine();
    if let Some(why) = pyverbs::missing() {
        return cannot_run("rdma-core's own tests", &why);
    }
    let stand = Stand::new(User::Me);
    let tests = stand.copy_tree(Path::new(pyverbs::SUITE));
    let unpacked = Command::new("gunzip").arg("-rf").arg(&tests).status().expect("gunzip starts");
    assert!(unpacked.success(), "the suite can be unpacked");
    let folder = tests.parent().expect("the copy lies in a folder").to_owned();
    let list = pyverbs::List::of_stand_in();
    let found = Provider::BOTH.map(|provider| run(&stand, &folder, &provider));
    println!("{}", list.table(&found[0], &found[1]));
    let mut wrong = Vec::new();
    for (column, provider) in Provider::BOTH.iter().enumerate() {
        wrong.extend(list.wrong(column, &found[column]).into_iter().map(|what| format!("{provider:?}: {what}")));
    }
    assert!(wrong.is_empty(), "{} tests:\n{}", wrong.len(), wrong.join("\n"));
}
