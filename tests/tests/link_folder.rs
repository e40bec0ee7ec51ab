//! Hosts become one fabric by `pvrdma link`, as its manual page says. What it refuses is in `device/cli/tests/link.rs`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use pvrdma_tests::{Stand, User, machine};

/// A command of the host whose settings are in that folder of the run folder.
fn link(stand: &Stand, host: &str, words: &str) -> String {
    let words: Vec<&str> = ["link"].into_iter().chain(words.split(' ')).collect();
    stand.pvrdma(&words).env("PVRDMA_LINK", stand.run_folder().join(host)).ok()
}

/// Files of a folder with their modes, and the folder's own.
fn modes(folder: &Path) -> BTreeMap<String, u32> {
    let mode = |path: &Path| fs::symlink_metadata(path).expect("it is there").permissions().mode() & 0o7777;
    let files = fs::read_dir(folder).expect("a folder").map(|entry| {
        let path = entry.expect("an entry").path();
        (path.file_name().expect("a name").to_string_lossy().into_owned(), mode(&path))
    });
    files.chain([(".".to_owned(), mode(folder))]).collect()
}

fn expected(files: &[(&str, u32)]) -> BTreeMap<String, u32> {
    files.iter().map(|(name, mode)| ((*name).to_owned(), *mode)).collect()
}

#[test]
fn three_hosts_become_a_fabric() {
    let _machine = machine();
    for user in User::both() {
        let stand = Stand::new(user);
        let folder = stand.run_folder();
        let said = link(&stand, "red", "init --name red --address 192.0.2.1");
        assert!(said.starts_with("a new fabric: host 1 (red) at 192.0.2.1:7471, settings in "), "{said}");
        for (host, number) in [("blue", 2), ("green", 3)] {
            let said = link(&stand, "red", &format!("add {host} --address 192.0.2.{number}:7000"));
            assert!(said.contains(&format!("run `pvrdma link join {host}.join` there")), "{said}");
            assert_eq!(modes(&folder)[&format!("{host}.join")], 0o600);
            let said = link(&stand, host, &format!("join {host}.join"));
            assert!(
                said.starts_with(&format!("this is host {number} ({host}) at 192.0.2.{number}:7000 now")),
                "{said}"
            );
            assert!(said.contains(&format!("delete {host}.join")), "{said}");
        }
        let common = [
            (".", 0o700),
            ("number", 0o644),
            ("fabric.toml", 0o644),
            ("ca.pem", 0o644),
            ("host.pem", 0o644),
            ("host.key", 0o600),
        ];
        assert_eq!(modes(&folder.join("blue")), expected(&common));
        assert_eq!(
            modes(&folder.join("red")),
            expected(&[&common[..], &[("ca.key", 0o600), ("issued", 0o600)]].concat())
        );

        // Blue joined before green was there.
        assert!(!link(&stand, "blue", "list").contains("green"));
        assert_eq!(link(&stand, "blue", "join --update red/fabric.toml"), "host 3 (green) is new\n");
        for host in ["red", "blue", "green"] {
            let list = link(&stand, host, "list");
            let lines: Vec<&str> = list.lines().collect();
            assert_eq!(lines.len(), 4, "{list}");
            assert!(lines[1].starts_with("  2  blue   192.0.2.2:7000"), "{list}");
            let this: Vec<&&str> = lines.iter().filter(|line| line.ends_with("this host")).collect();
            assert!(matches!(this[..], [line] if line.contains(host)), "{list}");
            assert!(lines[3].starts_with("certificate good until 20"), "{list}");
            assert_eq!(lines[3].contains("can be added here"), host == "red", "{list}");
        }
        let json: serde_json::Value = serde_json::from_str(&link(&stand, "green", "list --json")).expect("JSON");
        assert_eq!((&json["number"], &json["adds_hosts"], &json["problem"]), (&3.into(), &false.into(), &().into()));
        assert_eq!((&json["hosts"][0]["name"], &json["hosts"][2]["number"]), (&"red".into(), &3.into()));

        let said = link(&stand, "red", "remove green");
        assert!(said.contains("its certificate is good until 20") && said.contains("to blue and run"), "{said}");
        assert_eq!(link(&stand, "blue", "join --update red/fabric.toml"), "host 3 (green) is gone\n");
    }
}

/// The modes are those of the files, whatever the umask, and the folder is found without a word about it.
#[test]
fn settings_are_private_whatever_the_umask() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    for umask in ["0", "077", "0277"] {
        let home = stand.run_folder().join(format!("home-{umask}"));
        fs::create_dir(&home).expect("a new folder");
        let script =
            "umask $1; cd \"$HOME\"; $0 link init --name red --address 192.0.2.1 && $0 link add blue --address ::2";
        let output = stand
            .plain("sh")
            .args(["-c", script, stand.path("pvrdma").to_str().expect("a plain path"), umask])
            .env("HOME", &home)
            .env("XDG_CONFIG_HOME", "")
            .env("PVRDMA_LINK", "")
            .output();
        output.ok();
        let found = modes(&home.join(".config/pvrdma/link"));
        assert_eq!((found["."], found["ca.pem"], found["ca.key"], found["host.key"]), (0o700, 0o644, 0o600, 0o600));
        assert_eq!(modes(&home)["blue.join"], 0o600, "{umask}");
    }
}

/// For trials: two hosts of one machine.
#[test]
fn a_fabric_on_loopback_needs_no_certificates() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    link(&stand, "red", "init --loopback --name red --number 1");
    link(&stand, "red", "add blue");
    link(&stand, "blue", "join blue.join");
    for host in ["red", "blue"] {
        let found = modes(&stand.run_folder().join(host));
        assert_eq!(found, expected(&[(".", 0o700), ("fabric.toml", 0o644), ("number", 0o644)]));
    }
    assert!(
        link(&stand, "blue", "list").starts_with("  1  red   127.0.0.1:7471\n  2  blue  127.0.0.1:7472  this host\n")
    );
}

/// Wherever it is killed: there are settings, whole, or none, and the same command is the cure.
#[test]
fn init_may_be_killed_at_any_moment() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let folder = stand.run_folder().join("link");
    let mut whole = 0;
    for round in 0..24 {
        let mut child = Command::new(stand.path("pvrdma"))
            .args(["link", "init", "--name", "red", "--address", "192.0.2.1"])
            .env("PVRDMA_LINK", &folder)
            .stdout(Stdio::null())
            .spawn()
            .expect("it starts");
        std::thread::sleep(Duration::from_micros(round * 400));
        child.kill().expect("it is ours");
        child.wait().expect("it ends");
        if folder.exists() {
            whole += 1;
        } else {
            link(&stand, "link", "init --name red --address 192.0.2.1");
        }
        assert!(link(&stand, "link", "list").contains("certificate good"));
        fs::remove_dir_all(&folder).expect("it is there");
        let left =
            fs::read_dir(stand.run_folder()).expect("a folder").map(|entry| entry.expect("an entry").file_name());
        assert_eq!(left.filter(|name| name.to_string_lossy().contains("link")).count(), 0);
    }
    println!("{whole} of 24 were done before they were killed");
}
