//! An old libibverbs, Debian bullseye's 33.2, in the place of the machine's own; provider, programs and libc are the
//! machine's. What such a release makes of what it is given is not in its headers: it copies structs with the bytes
//! behind their last field.

use std::path::PathBuf;
use std::process::Command;

use pvrdma_tests::{Job, Provider, Stand, User, Uverbs, c_program, machine, pair, pair_by_address, workspace};

/// Where `cargo xtask debs bullseye` unpacked the library; fetched the first time.
fn bullseye() -> PathBuf {
    let output = Command::new(env!("CARGO"))
        .args(["xtask", "debs", "bullseye"])
        .current_dir(workspace())
        .stderr(std::process::Stdio::inherit())
        .output()
        .expect("cargo starts");
    assert!(output.status.success(), "`cargo xtask debs bullseye` failed");
    PathBuf::from(String::from_utf8(output.stdout).expect("a path").trim_end())
}

/// A stand, and the folder in it that has the old library.
fn old(stand: &Stand) -> PathBuf {
    let root = bullseye();
    let name = root.file_name().expect("a folder has a name").to_owned();
    stand.copy_tree(&root);
    let folder = stand.path(name).join("usr/lib/x86_64-linux-gnu");
    let file = std::fs::read_link(folder.join("libibverbs.so.1")).expect("a link to the file with the version");
    assert!(file.to_string_lossy().ends_with(".33.2"), "{}", file.display());
    folder
}

fn with<'a>(job: Job<'a>, folder: &PathBuf) -> Job<'a> {
    job.provider(&Provider::Ours).env("LD_LIBRARY_PATH", folder)
}

#[test]
fn what_stands_behind_a_struct_counts_for_nothing() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let folder = old(&stand);
    let program = stand.copy(&c_program("tests/c/padding.c", &[]));
    for uverbs in Uverbs::ALL {
        // Under a release that does not look there it must hold as well.
        assert_eq!(stand.job(&program).provider(&Provider::Ours).uverbs(uverbs).ok(), "40\n");
        assert_eq!(with(stand.job(&program), &folder).uverbs(uverbs).ok(), "40\n");
    }
}

/// What such a release copies when it makes a QP, and where it reads the extended operations, is its own.
#[test]
fn the_extended_verbs() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let folder = old(&stand);
    let program = stand.copy(&c_program("tests/c/ex_loop.c", &["-DAS_OF_33"]));
    let names = stand.job(&program).ok();
    assert!(names.lines().count() >= 18, "the program lists its cases: {names}");
    let expected: String = names.lines().map(|name| format!("ok {name}\n")).collect();
    let loaded = with(stand.job(&program), &folder);
    assert_eq!(loaded.args(names.lines()).ok(), expected);
}

#[test]
fn programs_of_today_run_on_it() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let folder = old(&stand);
    for arguments in [&["-c", "-g", "1"][..], &["-c", "-g", "1", "-e"], &["-c", "-g", "1", "-N"]] {
        let job = |guest| with(stand.job("ibv_rc_pingpong").guest(guest), &folder).args(arguments);
        let (server, client) = pair(job("a"), job("b"));
        server.ok();
        client.ok();
    }
}

/// Its librdmacm asks sysfs for what later ones ask by netlink.
#[test]
fn programs_of_today_connect_by_its_librdmacm() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let folder = old(&stand);
    assert!(folder.join("librdmacm.so.1").exists());
    let job = |guest| with(stand.job("rping").guest(guest), &folder).args(["-v", "-C", "10"]);
    pair_by_address(job("a").args(["-s"]), job("b").args(["-c", "-a", "127.0.0.1"]));
}
