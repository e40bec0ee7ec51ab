//! `pvrdma link`: what it refuses, and that whatever happens no half of anything is left. The way that a fabric is
//! meant to be made is in `tests/tests/link_folder.rs`.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime};

use pvrdma_net::identity::{date, new_host};

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
    hosts.expect("blue", "join blue.join", "its certificate, good until 20");
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

/// A certificate that was made for so long, a day ago or sooner, in the place of a host's own.
fn ends_in(hosts: &Hosts, host: &str, number: u16, made: SystemTime, good_for: Duration) {
    let pair = new_host(&hosts.read("red/ca.key"), number, made, good_for).unwrap();
    hosts.write(&format!("{host}/host.pem"), &pair.certificate);
    hosts.write(&format!("{host}/host.key"), &pair.key);
}

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn a_certificate_is_renewed() {
    let hosts = Hosts::two();
    let number = hosts.read("blue/number");
    hosts.ok("red", "add green --address 192.0.2.3");
    // Soon over, and then over: the cure is said, and works.
    for (made, good_for) in [(SystemTime::now(), 20 * 24 * HOUR), (SystemTime::now() - 3 * HOUR, HOUR)] {
        let (has_ended, end) = (good_for == HOUR, date(made + good_for));
        ends_in(&hosts, "blue", 2, made, good_for);
        let cure = "run `pvrdma link renew blue` where the fabric was made, and `pvrdma link join blue.join` here";
        match has_ended {
            false => {
                let said = hosts.ok("blue", "list");
                assert!(said.contains("\nwarning: the certificate of host 2 (blue) ends on 20"), "{said}");
                assert!(said.ends_with(&format!("; {cure}\n")), "{said}");
                assert!(hosts.ok("blue", "list --json").contains("\"warnings\": [\"the certificate of"));
            }
            true => {
                hosts.expect("blue", "list", &format!("the certificate of host 2 (blue) ended on {end}, and without"));
                hosts.expect("blue", "list", cure);
                hosts.expect("blue", "list --json", cure);
            }
        }
        fs::remove_file(hosts.path("blue.join")).unwrap();
        let said = hosts.ok("red", "renew blue");
        assert!(said.starts_with("blue.join is for host 2 (blue): take it there by a way that nobody"), "{said}");
        assert!(said.contains("its old certificate is good until 20"), "{said}");
        let before = (hosts.read("blue/fabric.toml"), hosts.read("blue/ca.pem"), files(&hosts.path("blue")).len());
        let said = hosts.ok("blue", "join blue.join");
        assert!(said.starts_with("the certificate of this host, 2 (blue), is good until 20"), "{said}");
        // Nothing else is other than before, not even the hosts.
        assert!(
            said.contains("\nthe hosts are as before; `pvrdma link join --update blue.join` takes those"),
            "{said}"
        );
        let after = (hosts.read("blue/fabric.toml"), hosts.read("blue/ca.pem"), files(&hosts.path("blue")).len());
        assert_eq!((before, &number), (after, &hosts.read("blue/number")));
        let said = hosts.ok("blue", "list");
        assert!(!said.contains("warning") && said.contains("good until 20"), "{said}");
        assert!(hosts.read("blue/host.key").contains(&hosts.read("blue/host.pem")));
        // Once is enough, and nothing older is taken.
        hosts.expect("blue", "join blue.join", "in a fabric already, and its certificate, good until 20");
    }
    assert_eq!(hosts.ok("blue", "join --update blue.join"), "host 3 (green) is new\n");
    hosts.mode("blue/host.key", 0o640);
    hosts.expect("blue", "list", "can be read by others");
}

#[test]
fn where_certificates_are_made_all_ends_are_known() {
    let hosts = Hosts::two();
    let until = |days: u32| date(SystemTime::now() + days * 24 * HOUR);
    hosts.write("red/issued", &format!("1 {} red\n2 {} blue\n", until(4000), until(10)));
    let said = hosts.ok("red", "list");
    assert!(
        said.contains(&format!("\nwarning: the certificate of host 2 (blue) ends on {}; run", until(10))),
        "{said}"
    );
    hosts.write("red/issued", &format!("1 {} red\n2 2001-01-01 blue\n", until(4000)));
    let said = hosts.ok("red", "list");
    assert!(said.contains("\nwarning: the certificate of host 2 (blue) ended on 2001-01-01, and"), "{said}");
    fs::remove_file(hosts.path("blue.join")).unwrap();
    hosts.ok("red", "renew blue");
    assert!(!hosts.ok("red", "list").contains("warning"));
    // Its own: no file has to go anywhere.
    ends_in(&hosts, "red", 1, SystemTime::now() - 3 * HOUR, HOUR);
    hosts.expect("red", "list", "run `pvrdma link renew red`");
    let said = hosts.ok("red", "renew red");
    assert!(said.starts_with("the certificate of this host, 1 (red), is good until 20"), "{said}");
    assert!(!hosts.path("red.join").exists());
    hosts.ok("red", "list");
    assert_eq!(hosts.read("red/issued").lines().filter(|line| line.starts_with("1 ")).count(), 2);
}

#[test]
fn what_is_no_new_certificate_of_this_host_is_refused() {
    let hosts = Hosts::two();
    hosts.expect("red", "renew blue", "blue.join is there already");
    hosts.expect("red", "renew green", "no host green");
    hosts.expect("blue", "renew blue", "where the fabric was made");
    let old = hosts.read("blue.join");
    fs::remove_file(hosts.path("blue.join")).unwrap();
    hosts.ok("red", "renew blue");
    let good = hosts.read("blue.join");
    let expect = |host: &str, text: &str, why: &str| {
        hosts.write("bad.join", text);
        hosts.expect(host, "join bad.join", why);
    };
    // Another host's, one that is older, and one of another fabric with the same names.
    expect("red", &good, "the only key that lets hosts in");
    expect("blue", &old, "in a fabric already");
    let other = Hosts::two();
    fs::remove_file(other.path("blue.join")).unwrap();
    other.ok("red", "renew blue");
    expect("blue", &other.read("blue.join"), "the certificate was not made by this fabric's authority");
    expect("blue", &good[..good.len() - 5], "not whole");
    // A fabric without any.
    let plain = Hosts::new();
    plain.ok("red", "init --loopback --name red --number 2");
    plain.expect("red", "renew red", "nothing to renew");
    plain.write("blue.join", &good.replace("192.0.2.", "127.0.0."));
    plain.expect("red", "join blue.join", "in a fabric already, which is one without certificates");
    hosts.ok("blue", "join blue.join");
}

/// A host's `pvrdma link run`.
struct Gateway(Child, PathBuf);

impl Gateway {
    /// Comes back when it says that it runs.
    fn start(hosts: &Hosts, host: &str) -> Gateway {
        let place = hosts.path(&format!("run-{host}"));
        fs::create_dir_all(&place).unwrap();
        fs::set_permissions(&place, fs::Permissions::from_mode(0o700)).unwrap();
        let log = hosts.path(&format!("log-{host}"));
        let mut command = Command::new(PVRDMA);
        command.args(["link", "run", "--folder"]).arg(hosts.path(host)).env("XDG_RUNTIME_DIR", &place);
        let mut child = command.stdout(Stdio::piped()).stderr(fs::File::create(log).unwrap()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("pvrdma link: host"), "{line}");
        Gateway(child, place)
    }

    fn status(&self, words: &str) -> String {
        let mut command = Command::new(PVRDMA);
        command.args(["link", "status"]).args(words.split_whitespace()).env("XDG_RUNTIME_DIR", &self.1);
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    }

    /// Until it says so, or a minute is over.
    fn wait_for(&self, what: &str) {
        let begin = Instant::now();
        while !self.status("").contains(what) {
            assert!(begin.elapsed() < Duration::from_secs(60), "no {what}\n{}", self.status(""));
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A gateway begins with a certificate that has ended, says so, and links when there is a new one.
#[test]
fn a_gateway_takes_a_renewed_certificate_while_it_runs() {
    let free = [0, 1].map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let [red, blue] = free.each_ref().map(|socket| socket.local_addr().unwrap());
    drop(free);
    let hosts = Hosts::new();
    hosts.ok("red", &format!("init --name red --address {red}"));
    hosts.ok("red", &format!("add blue --address {blue}"));
    hosts.ok("blue", "join blue.join");
    fs::remove_file(hosts.path("blue.join")).unwrap();
    ends_in(&hosts, "blue", 2, SystemTime::now() - 3 * HOUR, HOUR);
    let (red, blue) = (Gateway::start(&hosts, "red"), Gateway::start(&hosts, "blue"));
    assert!(hosts.read("log-blue").starts_with("pvrdma link: error: the certificate of host 2 (blue) ended on "));
    assert!(hosts.read("log-blue").contains("; run `pvrdma link renew blue` where the fabric was made"));
    blue.wait_for("\nerror: the certificate of this host ended on ");
    assert!(blue.status("--json").contains("\"problem\": \"the certificate"));
    // Red dials, and says why it gets nowhere.
    let begin = Instant::now();
    while !hosts.read("log-red").contains("`pvrdma link renew`, where the fabric was made, makes that host a new one") {
        assert!(begin.elapsed() < Duration::from_secs(60), "{}", hosts.read("log-red"));
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(red.status("").contains("no link"));

    hosts.ok("red", "renew blue");
    hosts.ok("blue", "join blue.join");
    red.wait_for("linked");
    blue.wait_for("linked");
    let said = blue.status("--json");
    assert!(said.contains("\"problem\": null") && said.contains("\"certificate_ends\": \"20"), "{said}");
    assert!(!blue.status("").contains("error"));
    assert!(hosts.read("log-blue").contains("\npvrdma link: this host has a new certificate, good until 20"));
    // A link that is there does not mind a new one, and a bad one is not used.
    hosts.ok("red", "renew red");
    ends_in(&hosts, "blue", 2, SystemTime::now() - 5 * HOUR, HOUR);
    assert!(blue.status("--json").contains("\"problem\": null"));
    assert!(hosts.read("log-blue").contains("the new certificate is not used: the certificate ended on"));
    assert!(red.status("").contains("linked") && blue.status("").contains("linked"));
    // Nor is one of another fabric, whose authority the other hosts do not know.
    let other = Hosts::two();
    for file in ["ca.pem", "host.pem", "host.key"] {
        fs::rename(other.path(&format!("blue/{file}")), hosts.path(&format!("blue/{file}"))).unwrap();
    }
    drop(red);
    Gateway::start(&hosts, "red").wait_for("linked");
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
        // The same with a new certificate.
        fs::remove_file(hosts.path("blue.join")).unwrap();
        killed(&hosts, "red", "renew blue", limit);
        assert!(!hosts.path("blue.join").exists());
        hosts.ok("red", "renew blue");
        let (key, certificate) = (hosts.read("blue/host.key"), hosts.read("blue/host.pem"));
        if limit == 0 {
            killed(&hosts, "blue", "join blue.join", limit);
            assert_eq!((hosts.read("blue/host.key"), hosts.read("blue/host.pem")), (key, certificate));
            hosts.ok("blue", "list");
            assert!(hosts.run("blue", "join blue.join").status.success());
        }
        hosts.ok("blue", "list");
        // Nothing that was begun is left.
        for (path, _) in files(hosts.0.path()) {
            assert!(!path.to_string_lossy().ends_with(".new"), "{}", path.display());
        }
    }
}
