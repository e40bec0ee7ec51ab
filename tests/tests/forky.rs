//! One provider file for two private ABIs: the file that the other stories load into the machine's libibverbs runs
//! here under Debian forky's libibverbs 65, with forky's own tools, libc and dynamic loader. And what connects by
//! address does so by trixie's librdmacm 56 as well.

use std::path::{Path, PathBuf};
use std::process::Command;

use pvrdma_tests::{Newer, Provider, Stand, User, Uverbs, c_program, machine, pair, pair_by_address, workspace};

/// Where `cargo xtask debs` unpacked a release's packages; fetched the first time.
fn debs(release: &str) -> PathBuf {
    let cargo = env!("CARGO");
    let output = Command::new(cargo)
        .args(["xtask", "debs", release])
        .current_dir(workspace())
        .stderr(std::process::Stdio::inherit())
        .output()
        .expect("cargo starts");
    assert!(output.status.success(), "`cargo xtask debs {release}` failed");
    PathBuf::from(String::from_utf8(output.stdout).expect("a path").trim_end())
}

#[test]
fn the_same_file_runs_under_libibverbs_65() {
    let _machine = machine();
    let root = debs("forky");
    let library = root.join("usr/lib/x86_64-linux-gnu/libibverbs.so.1");
    let version = std::fs::read_link(&library).expect("libibverbs.so.1 is a link to the file with the version");
    assert!(version.to_string_lossy().contains(".65."), "{}", version.display());

    for user in User::both() {
        let stand = Stand::new(user);
        let forky = Newer::new(&stand, &root);
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
    let forky = Newer::new(&stand, &debs("forky"));
    let text = forky.job("ibv_devinfo").args(["-v"]).ok();
    assert!(text.contains("vmw_pvrdma0") && text.contains("PORT_ACTIVE"), "{text}");
    let arguments = ["-c", "-g", "1"];
    let new = forky.job("ibv_rc_pingpong").guest("a").args(arguments);
    let old = stand.job("ibv_rc_pingpong").guest("b").provider(&Provider::System).args(arguments);
    let (server, client) = pair(new, old);
    server.ok();
    client.ok();
}

/// By address too, in both directions: the machine's programs, on the librdmacm of forky (65) and trixie (56) and on
/// its own. rstream looks at what rsockets carry.
#[test]
fn old_and_new_connect() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let programs: [(&str, &[&str], &[&str]); 2] = [
        ("rping", &["-s", "-v", "-C", "10"], &["-c", "-v", "-C", "10", "-a", "127.0.0.1"]),
        ("rstream", &["-T", "v", "-S", "4096", "-C", "10"], &["-T", "v", "-S", "4096", "-C", "10", "-s", "127.0.0.1"]),
    ];
    for (release, version) in [("forky", ".65."), ("trixie", ".56.")] {
        let root = debs(release);
        let library = std::fs::read_link(root.join("usr/lib/x86_64-linux-gnu/librdmacm.so.1")).expect("a link");
        assert!(library.to_string_lossy().contains(version), "{}", library.display());
        let newer = Newer::new(&stand, &root);
        for (program, server, client) in programs {
            let new = |guest| newer.job(Path::new("/usr/bin").join(program)).guest(guest).provider(&Provider::Ours);
            let old = |guest| stand.job(program).guest(guest);
            pair_by_address(new("a").args(server), old("b").args(client));
            pair_by_address(old("a").args(server), new("b").args(client));
        }
    }
}

/// A verb that the machine's own libibverbs does not have.
#[test]
fn a_port_has_a_speed() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let forky = Newer::new(&stand, &debs("forky"));
    let program = stand.copy(&c_program("tests/c/port_speed.c", &[]));
    // 4X EDR, in 100 Mb/s.
    assert_eq!(forky.job(program).provider(&Provider::Ours).ok(), "1000\n");
}

fn checksum(file: &Path) -> String {
    let output = Command::new("sha256sum").arg(file).output().expect("sha256sum is part of every Debian");
    assert!(output.status.success());
    String::from_utf8(output.stdout).expect("text").split_whitespace().next().expect("a checksum").to_owned()
}
