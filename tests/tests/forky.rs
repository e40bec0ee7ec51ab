//! One provider file for two private ABIs: the file that the other stories load into the machine's libibverbs runs
//! here under Debian forky's libibverbs 65, with forky's own tools, libc and dynamic loader.

use std::path::{Path, PathBuf};
use std::process::Command;

use pvrdma_tests::{Forky, Provider, Stand, User, Uverbs, c_program, machine, pair, pair_by_address, workspace};

/// Where `cargo xtask debs` unpacked forky's packages; fetched the first time.
fn forky() -> PathBuf {
    let cargo = env!("CARGO");
    let output = Command::new(cargo)
        .args(["xtask", "debs"])
        .current_dir(workspace())
        .stderr(std::process::Stdio::inherit())
        .output()
        .expect("cargo starts");
    assert!(output.status.success(), "`cargo xtask debs` failed");
    PathBuf::from(String::from_utf8(output.stdout).expect("a path").trim_end())
}

#[test]
fn the_same_file_runs_under_libibverbs_65() {
    let _machine = machine();
    let root = forky();
    let library = root.join("usr/lib/x86_64-linux-gnu/libibverbs.so.1");
    let version = std::fs::read_link(&library).expect("libibverbs.so.1 is a link to the file with the version");
    assert!(version.to_string_lossy().contains(".65."), "{}", version.display());

    for user in User::both() {
        let stand = Stand::new(user);
        let forky = Forky::new(&stand, &root);
        let file = stand.path("libvmw_pvrdma.so");
        let before = checksum(&file);
        // First the machine's own libibverbs, then forky's, from the very same file.
        let own = |guest| stand.job("ibv_rc_pingpong").guest(guest).args(["-c", "-g", "1"]);
        let (server, client) = pair(own("a"), own("b"));
        server.ok();
        client.ok();
        for uverbs in Uverbs::ALL {
            for events in [&[][..], &["-e"]] {
                let job = |guest| {
                    let job = forky.job("ibv_rc_pingpong").guest(guest).provider(&Provider::Ours);
                    job.uverbs(uverbs).args(["-c", "-g", "1"]).args(events)
                };
                let (server, client) = pair(job("a"), job("b"));
                for output in [server, client] {
                    // The machine's configuration names providers that have no file for 65, the C one of PVRDMA
                    // among them; so what ran was ours. Of ours there must be no word.
                    let words = output.stderr.lines().filter(|line| line.contains("vmw_pvrdma"));
                    let missing = "couldn't load driver 'libvmw_pvrdma-rdmav65.so'";
                    assert!(words.clone().all(|line| line.contains(missing)), "{output}");
                    output.ok();
                }
            }
        }
        assert_eq!(checksum(&file), before);
    }
}

/// The two releases see the same device, and talk to each other.
#[test]
fn old_and_new_meet() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let forky = Forky::new(&stand, &forky());
    let text = forky.job("ibv_devinfo").args(["-v"]).ok();
    assert!(text.contains("vmw_pvrdma0") && text.contains("PORT_ACTIVE"), "{text}");
    let arguments = ["-c", "-g", "1"];
    let new = forky.job("ibv_rc_pingpong").guest("a").args(arguments);
    let old = stand.job("ibv_rc_pingpong").guest("b").provider(&Provider::System).args(arguments);
    let (server, client) = pair(new, old);
    server.ok();
    client.ok();
}

/// By address too, in both directions: the machine's rping, on forky's librdmacm and on its own.
#[test]
fn old_and_new_connect() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let forky = Forky::new(&stand, &forky());
    for new_serves in [true, false] {
        let (server, client) = (["-s", "-v", "-C", "10"], ["-c", "-v", "-C", "10", "-a", "127.0.0.1"]);
        let new = |guest| forky.job("/usr/bin/rping").guest(guest).provider(&Provider::Ours);
        let old = |guest| stand.job("rping").guest(guest);
        if new_serves {
            pair_by_address(new("a").args(server), old("b").args(client));
        } else {
            pair_by_address(old("a").args(server), new("b").args(client));
        }
    }
}

/// A verb that the machine's own libibverbs does not have.
#[test]
fn a_port_has_a_speed() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let forky = Forky::new(&stand, &forky());
    let program = stand.copy(&c_program("tests/c/port_speed.c", &[]));
    // 4X EDR, in 100 Mb/s.
    assert_eq!(forky.job(program).provider(&Provider::Ours).ok(), "1000\n");
}

fn checksum(file: &Path) -> String {
    let output = Command::new("sha256sum").arg(file).output().expect("sha256sum is part of every Debian");
    assert!(output.status.success());
    String::from_utf8(output.stdout).expect("text").split_whitespace().next().expect("a checksum").to_owned()
}
