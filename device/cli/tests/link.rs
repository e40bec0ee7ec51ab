//! `pvrdma link`: what it refuses, and that whatever happens no half of anything is left. The way that a fabric is
//! meant to be made is in `tests/tests/link_folder.rs`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Machines, each with its settings in a folder of its own; all commands run in the folder above.
struct Hosts(tempfile::TempDir);

const PVRDMA: &str = env!("CARGO_BIN_EXE_pvrdma");

impl Hosts {
    fn new() -> Hosts {
        Hosts(tempfile::tempdir().unwrap())
    }

    /// With certificates: red is the first, blue has joined it.
    fn two() -> Hosts {
        let hosts = Hosts::new();
        hosts.ok("red", "init --name red --address 192.0.2.1");
        hosts.ok("red", "add blue --address 192.0.2.2");
        hosts.ok("blue", "join blue.join");
        hosts
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    fn write(&self, path: &str, text: &str) {
        fs::write(self.path(path), text).unwrap();
        self.mode(path, 0o600);
    }

    fn mode(&self, path: &str, mode: u32) {
        fs::set_permissions(self.path(path), fs::Permissions::from_mode(mode)).unwrap();
    }

    fn run(&self, host: &str, words: &str) -> Output {
        let mut command = Command::new(PVRDMA);
        command.arg("link").args(words.split(' ')).arg("--folder").arg(self.path(host));
        command.current_dir(self.0.path()).output().unwrap()
    }

    fn ok(&self, host: &str, words: &str) -> String {
        let output = self.run(host, words);
        assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stderr.is_empty(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Refused with one line, and nothing anywhere is other than before.
    fn refused(&self, host: &str, words: &str) -> String {
        let before = files(self.0.path());
        let output = self.run(host, words);
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(matches!(output.status.code(), Some(1 | 2)), "{words}: {error}");
        assert!(error.starts_with("pvrdma: ") && error.matches('\n').count() == 1, "{words}: {error}");
        assert_eq!(files(self.0.path()), before, "{words}: {error}");
        error
    }

    fn expect(&self, host: &str, words: &str, why: &str) {
        let error = self.refused(host, words);
        assert!(error.contains(why), "{words}: {error}");
    }
}

/// All files and folders below, with what they hold.
fn files(folder: &Path) -> Vec<(PathBuf, Option<Vec<u8>>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => {
                found.extend(files(&path));
                found.push((path, None));
            }
            false => found.push((path.clone(), fs::read(&path).ok())),
        }
    }
    found.sort();
    found
}

#[test]
fn a_host_is_in_one_fabric() {
    let hosts = Hosts::two();
    for (host, words) in [
        ("red", "init --name red --address 192.0.2.1"),
        ("blue", "init --loopback --name blue"),
        ("red", "join blue.join"),
        ("blue", "join blue.join"),
    ] {
        hosts.expect(host, words, "in a fabric already");
    }
    fs::create_dir(hosts.path("other")).unwrap();
    hosts.write("other/letter", "dear");
    hosts.expect("other", "join blue.join", "something else in it");
    hosts.write("file", "");
    hosts.expect("file", "init --name x --loopback", "no folder");
    // Nobody's yet.
    for words in ["list", "add x --address 192.0.2.9", "remove x", "join --update blue.join"] {
        hosts.expect("green", words, "`pvrdma link init` makes one");
    }
}

#[test]
fn a_file_to_join_with_is_whole_and_ones_own() {
    let hosts = Hosts::two();
    hosts.ok("red", "add green --address 192.0.2.3");
    let good = hosts.read("green.join");
    let expect = |text: &str, why: &str| {
        hosts.write("bad.join", text);
        hosts.expect("green", "join bad.join", why);
    };
    expect(&good.replace("number = 3\nca", "number = 2\nca"), "the certificate is of host 3, and this is host 2");
    expect(&good.replace("number = 3\nca", "number = 9\nca"), "host 9 is not among");
    expect(&good[..good.len() - 5], "not whole");
    expect(&good[..good.len() / 2], "not whole");
    expect("", "version is missing");
    expect(&"#".repeat(600_000), "longer than");
    expect(&good.replace("version = 1", "version = 2"), "another release");
    // Of each of the three parts of another fabric.
    let other = Hosts::new();
    other.ok("red", "init --name red --address 192.0.2.1");
    other.ok("red", "add blue --address 192.0.2.2");
    other.ok("red", "add green --address 192.0.2.3");
    let other = other.read("green.join");
    let part = |text: &str, key: &str| {
        let from = text.find(&format!("\n{key} = '''")).unwrap();
        text[from..][..text[from + 8..].find("\n'''").map(|to| to + 8).unwrap_or_default()].to_owned()
    };
    let with_other = |key: &str| good.replace(&part(&good, key), &part(&other, key));
    expect(&with_other("ca"), "not made by this fabric's authority");
    expect(&with_other("certificate"), "not made by this fabric's authority");
    expect(&with_other("key"), "the key is not that of the certificate");
    expect(&hosts.read("red/fabric.toml"), "joins with the file that `pvrdma link add` has written");
    // A key that others could read.
    hosts.write("bad.join", &good);
    for mode in [0o644, 0o640, 0o666, 0o604] {
        hosts.mode("bad.join", mode);
        hosts.expect("green", "join bad.join", "can be read by others");
    }
    hosts.expect("green", "join none.join", "none.join: No such file");
    hosts.expect("green", "join red", "Is a directory");
    hosts.ok("green", "join green.join");
}

#[test]
fn hosts_are_told_apart() {
    let hosts = Hosts::two();
    for (words, why) in [
        ("add blue --address 192.0.2.9", "blue.join is there already"),
        ("add red --address 192.0.2.9", "two hosts have name red"),
        ("add green --address 192.0.2.1", "two hosts have address 192.0.2.1:7471"),
        ("add green --address ::ffff:192.0.2.1", "two hosts have address 192.0.2.1:7471"),
        ("add green --address 192.0.2.9 --number 2", "two hosts have number 2"),
        ("add green --address 127.0.0.1", "is each machine itself"),
        ("add green --address 0.0.0.0", "no other host can dial it"),
        ("add green --address green.example", "IP:PORT"),
        ("add green", "wants --address"),
        ("remove green", "no host green"),
        ("remove red", "red is this host"),
        ("join --update blue.join", "the fabric was made here"),
    ] {
        hosts.expect("red", words, why);
    }
    // Another port is another place.
    hosts.ok("red", "add green --address 192.0.2.1:7472");
    // Where there is no authority.
    for words in ["add grey --address 192.0.2.9", "remove red"] {
        hosts.expect("blue", words, "where the fabric was made");
    }
    hosts.write("red/ca.key", &{
        let other = Hosts::two();
        other.read("red/ca.key")
    });
    hosts.expect("red", "add grey --address 192.0.2.9", "ca.key is not the key of ca.pem");
}

/// Who was removed still has a certificate, so the next host gets another number.
#[test]
fn a_number_is_given_twice_only_if_somebody_asks() {
    let hosts = Hosts::two();
    let said = hosts.ok("red", "remove blue");
    assert!(
        said.starts_with("host 2 (blue) is no host of this fabric any more; its certificate is good until 20"),
        "{said}"
    );
    assert_eq!(said.lines().count(), 1, "{said}");
    let said = hosts.ok("red", "add green --address 192.0.2.2");
    assert!(said.contains("host 3 (green)"), "{said}");
    let said = hosts.ok("red", "add grey --address 192.0.2.4 --number 2");
    assert!(said.contains("number 2 was that of blue: who has its certificate can be this host until 20"), "{said}");
    assert!(said.contains("to green and run `pvrdma link join --update fabric.toml` there"), "{said}");
    fs::remove_file(hosts.path("red/issued")).unwrap();
    hosts.expect("red", "add black --address 192.0.2.5", "issued: No such file");
}

#[test]
fn a_new_list_still_has_this_host() {
    let hosts = Hosts::two();
    hosts.ok("red", "add green --address 192.0.2.3");
    hosts.ok("green", "join green.join");
    let list = hosts.read("red/fabric.toml");
    let expect = |text: &str, why: &str| {
        hosts.write("list", text);
        hosts.expect("blue", "join --update list", why);
    };
    expect(&list.replace("\"blue\"", "\"grey\""), "host 2 is grey there and blue here");
    expect(&list.replace("number = 2", "number = 4"), "host 2 (blue), which this is, is not in it");
    expect("", "which this is, is not in it");
    expect("host = [", "list: line 1: ");
    expect(&list.replace("192.0.2.3:7471", "0.0.0.0:7471"), "no other host can dial it");
    hosts.expect("blue", "join --update green.join", "holds the key of host 3, and belongs there alone");
    hosts.expect("blue", "join --update none", "none: No such file");

    hosts.write("list", &list.replace("192.0.2.1:7471", "192.0.2.8:1"));
    assert_eq!(hosts.ok("blue", "join --update list"), "host 1 (red) is at 192.0.2.8:1, host 3 (green) is new\n");
    assert_eq!(hosts.ok("blue", "join --update red/fabric.toml"), "host 1 (red) is at 192.0.2.1:7471\n");
    assert_eq!(hosts.ok("green", "join --update green.join"), "the hosts are the same as before\n");
    assert_eq!(hosts.read("blue/fabric.toml"), list);
}

#[test]
fn without_certificates_there_is_only_loopback() {
    let hosts = Hosts::new();
    hosts.expect("a", "init --name a --loopback --address 192.0.2.1", "loopback addresses only");
    hosts.ok("a", "init --name a --loopback --number 7");
    hosts.expect("a", "add b --address 192.0.2.1", "is no such address");
    let said = hosts.ok("a", "add b");
    assert!(said.starts_with("b.join is for host 1 (b): take it there, run"), "{said}");
    let far = hosts.read("b.join").replace("127.0.0.1:7471", "192.0.2.1:7471");
    hosts.write("far.join", &far);
    hosts.expect("b", "join far.join", "b has the address 192.0.2.1:7471, and without certificates");
    hosts.ok("b", "join b.join");
    hosts.write("list", &hosts.read("a/fabric.toml").replace("127.0.0.1:7471", "192.0.2.1:7471"));
    hosts.expect("b", "join --update list", "without certificates");
    assert_eq!(files(&hosts.path("b")).len(), 2, "{:?}", files(&hosts.path("b")));
    let list = hosts.ok("b", "list");
    assert!(list.starts_with("  1  b  127.0.0.1:7471  this host\n  7  a  127.0.0.1:7477\nno certificates"), "{list}");
    // And a fabric with certificates on loopback stays there.
    hosts.ok("c", "init --name c --address 127.0.0.1");
    hosts.expect("c", "add d --address 192.0.2.1", "which a host at 192.0.2.1:7471 cannot reach");
}

#[test]
fn a_folder_that_is_not_as_it_should_be_is_not_used() {
    let hosts = Hosts::two();
    for (spoil, mend, why) in [
        ("chmod 777 blue", "chmod 700 blue", "can be changed by others"),
        ("chmod 640 blue/host.key", "chmod 600 blue/host.key", "can be read by others"),
        ("mv blue/host.key away", "mv away blue/host.key", "host.key is missing"),
        ("mv blue/ca.pem away", "mv away blue/ca.pem", "ca.pem is missing"),
        ("mv blue/host.pem away; cp red/host.pem blue", "mv away blue/host.pem", "is of host 1, and this is host 2"),
        ("mv blue/number away; echo 3 >blue/number", "mv away blue/number", "host 3 is not among"),
    ] {
        let shell = |script: &str| {
            assert!(Command::new("sh").args(["-ec", script]).current_dir(hosts.0.path()).status().unwrap().success());
        };
        shell(spoil);
        for words in ["list", "list --json", "join --update red/fabric.toml"] {
            hosts.expect("blue", words, why);
        }
        shell(mend);
        hosts.ok("blue", "list");
    }
}

/// The kernel kills at the first byte of a file that is beyond the limit: in the middle of writing, always.
#[test]
fn a_command_that_is_killed_leaves_no_half_of_anything() {
    let killed = |hosts: &Hosts, host: &str, words: &str, blocks: u32| {
        let script = format!("ulimit -c 0; ulimit -f {blocks}; exec \"$@\"");
        let mut command = Command::new("bash");
        command.args(["-c", &script, "-", PVRDMA, "link"]).args(words.split(' ')).arg("--folder").arg(hosts.path(host));
        let status = command.current_dir(hosts.0.path()).status().unwrap();
        assert_eq!(status.signal(), Some(25), "{words}: SIGXFSZ, not {status}");
    };
    // In KiB. With none the first byte kills; of all files only those to join with have more than one.
    for limit in [0, 1] {
        let hosts = Hosts::new();
        if limit == 0 {
            killed(&hosts, "red", "init --name red --address 192.0.2.1", limit);
            assert!(!hosts.path("red").exists());
        }
        hosts.ok("red", "init --name red --address 192.0.2.1");
        let before = hosts.read("red/fabric.toml");
        killed(&hosts, "red", "add blue --address 192.0.2.2", limit);
        assert!(!hosts.path("blue.join").exists());
        assert_eq!(hosts.read("red/fabric.toml"), before);
        let said = hosts.ok("red", "add blue --address 192.0.2.2");
        // Who was to have the number may have been told of it.
        assert!(said.contains(if limit == 0 { "host 2 (blue)" } else { "host 3 (blue)" }), "{said}");
        if limit == 0 {
            killed(&hosts, "blue", "join blue.join", limit);
            assert!(!hosts.path("blue").exists());
        }
        hosts.ok("blue", "join blue.join");
        let list = hosts.read("blue/fabric.toml");
        hosts.write("list", &list.replace("192.0.2.1:7471", "192.0.2.8:1"));
        if limit == 0 {
            killed(&hosts, "blue", "join --update list", limit);
            assert_eq!(hosts.read("blue/fabric.toml"), list);
        }
        hosts.ok("blue", "join --update list");
        hosts.ok("blue", "list");
        // Nothing that was begun is left.
        for (path, _) in files(hosts.0.path()) {
            assert!(!path.to_string_lossy().ends_with(".new"), "{}", path.display());
        }
    }
}
