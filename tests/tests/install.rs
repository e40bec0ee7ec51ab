//! The provider installed as README.md says: one file, a link per private ABI, one `driver` line.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use pvrdma_tests::{Job, Provider, Stand, User, machine, pair};

const README: &str = include_str!("../../README.md");

/// Runs a program with `/etc/libibverbs.d` replaced by `folder`, in a mount namespace of its own, so that the
/// machine's file is not touched. The stand-in itself chooses no provider: libibverbs finds one by its configuration.
fn job<'a>(stand: &'a Stand, folder: &str, program: &[&str]) -> Job<'a> {
    let script = format!("mount --bind {folder} /etc/libibverbs.d && exec \"$@\"");
    // An ordinary user becomes root of a user namespace for the mount.
    let namespaces: &[&str] = if is_root() { &["--mount"] } else { &["--user", "--map-root-user", "--mount"] };
    stand
        .job("unshare")
        .provider(&Provider::System)
        .args(namespaces)
        .args(["sh", "-c", &script, "sh"])
        .args(program)
        .env("LD_DEBUG", "libs")
}

fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions.
    unsafe { libc::geteuid() == 0 }
}

#[test]
fn one_driver_line_makes_it_the_machines_provider() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let place = stand.run_folder().join("lib");
    let configuration = stand.run_folder().join("libibverbs.d");
    for folder in [&place, &configuration] {
        fs::create_dir(folder).expect("a new folder");
    }
    let file = stand.path("libvmw_pvrdma.so");
    for abi in abis_of_the_readme() {
        symlink(&file, place.join(format!("libvmw_pvrdma-rdmav{abi}.so"))).expect("a link");
    }
    let line = format!("driver {}\n", place.join("libvmw_pvrdma").display());
    fs::write(configuration.join("vmw_pvrdma.driver"), line).expect("a file");

    let folder = configuration.to_str().expect("a plain path");
    let output = job(&stand, folder, &["ibv_devinfo"]).output();
    let loaded: Vec<&str> = output.stderr.lines().filter(|line| line.contains("calling init:")).collect();
    let ours: Vec<_> = loaded.iter().filter(|line| line.contains("libvmw_pvrdma")).collect();
    assert_eq!(ours.len(), 1, "{ours:#?}");
    assert!(ours[0].contains(place.to_str().expect("a plain path")), "{}", ours[0]);
    assert!(output.ok().contains("PORT_ACTIVE"));

    let ping = ["ibv_rc_pingpong", "-c", "-g", "1"];
    let (server, client) = pair(job(&stand, folder, &ping), job(&stand, folder, &ping));
    server.ok();
    client.ok();
}

/// The suffixes README.md tells an administrator to link are those that exist.
#[test]
fn the_readme_names_every_private_abi() {
    let installed = Command::new("sh")
        .args(["-c", "ls /usr/lib/*/libibverbs/ | sed -n 's/.*-rdmav\\([0-9]*\\)\\.so/\\1/p' | sort -u"])
        .output()
        .expect("sh starts");
    let installed = String::from_utf8(installed.stdout).expect("text");
    let named = abis_of_the_readme();
    assert!(!installed.trim().is_empty(), "the machine has rdma-core's providers");
    for abi in installed.split_whitespace().chain(["65"]) {
        assert!(named.contains(&abi), "{abi} is not among {named:?}");
    }
}

fn abis_of_the_readme() -> Vec<&'static str> {
    let list = README.split_once("for abi in ").and_then(|(_, rest)| rest.split_once(';')).expect("README's loop").0;
    list.split_whitespace().collect()
}
