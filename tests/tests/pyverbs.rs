//! rdma-core's own test suite (Debian's python3-pyverbs) on both providers, against the list `tests/pyverbs/tests.txt`.
//!
//! `cargo xtask pyverbs` prints how each test ended with both. Those of rdma_cm take their addresses from the network
//! device that all guests share. The suite of Debian forky's rdma-core 65 runs too, with forky's Python, but
//! has no list.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use pvrdma_tests::{Newer, Provider, Stand, User, cannot_run, machine, pyverbs, workspace};

/// The network device whose address the guests have.
const NETDEV: &str = "lo";
/// Debian's own: the package's modules are for it.
const PYTHON: &str = "/usr/bin/python3";

fn run(stand: &Stand, folder: &Path, provider: &Provider) -> pyverbs::Found {
    let text = stand
        .job(PYTHON)
        .provider(provider)
        .time_out(Duration::from_secs(300))
        .args([&workspace().join("tests/pyverbs/run.py"), folder])
        .args(["vmw_pvrdma0", "1", NETDEV])
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

/// What 65 asks for and 44 does not know. `rdma` is a word of iproute2 that the suite asks for the network device, of
/// which there is none here.
#[test]
fn nothing_of_the_suite_of_65_fails() {
    let _machine = machine();
    let output = Command::new(env!("CARGO"))
        .args(["xtask", "debs", "pyverbs"])
        .current_dir(workspace())
        .stderr(std::process::Stdio::inherit())
        .output()
        .expect("cargo starts");
    assert!(output.status.success(), "`cargo xtask debs pyverbs` failed");
    let root = Path::new(std::str::from_utf8(&output.stdout).expect("a path").trim_end()).to_owned();

    let stand = Stand::new(User::Me);
    let forky = Newer::new(&stand, &root);
    let home = stand.path(root.file_name().expect("a folder has a name")).join("usr");
    let suite = home.join("share/doc/rdma-core");
    let unpacked = Command::new("gunzip").arg("-rf").arg(suite.join("tests")).status().expect("gunzip starts");
    assert!(unpacked.success(), "the suite can be unpacked");
    let tools = stand.path("tools");
    std::fs::create_dir(&tools).expect("own folder");
    std::fs::write(tools.join("rdma"), RDMA).expect("own folder");
    std::fs::set_permissions(tools.join("rdma"), PermissionsExt::from_mode(0o755)).expect("own file");
    let path = format!("{}:{}", tools.display(), std::env::var("PATH").unwrap_or_default());

    let text = forky
        .job(home.join("bin/python3"))
        .provider(&Provider::Ours)
        .env("PYTHONHOME", &home)
        .env("PATH", path)
        .time_out(Duration::from_secs(300))
        .args([&workspace().join("tests/pyverbs/run.py"), &suite])
        .args(["vmw_pvrdma0", "1", NETDEV])
        .ok();
    let found = pyverbs::found(&text);
    println!("{}", pyverbs::totals(&found));
    let failed: Vec<&str> = text.lines().filter(|line| line.split('\t').nth(1) == Some("FAIL")).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    let passed = |part: &str| text.lines().filter(|line| line.contains(part) && line.contains("\tpass\t")).count();
    // Skipping all would be no failure either.
    assert!(
        passed("") > 90 && passed("test_parent_domain") > 3 && passed("test_buf") > 3 && passed("test_rdmacm") > 6,
        "{text}"
    );
}

const RDMA: &str = r#"#!/bin/sh
echo '[{"ifname":"vmw_pvrdma0","port":1,"state":"ACTIVE","physical_state":"LINK_UP"}]'
"#;
