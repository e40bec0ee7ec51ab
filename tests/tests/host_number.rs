//! Guests of a host that has a number: their addresses, how they reach each other, and what does not mix.

use std::fs;
use std::path::PathBuf;

use pvrdma_tests::{Job, Provider, Stand, User, listening, machine, pair, pair_by_address, wait_for_trace};

/// The settings folder of a host with this number.
fn host(stand: &Stand, number: &str) -> PathBuf {
    let folder = stand.path(format!("host-{number}"));
    fs::create_dir_all(&folder).expect("a folder");
    fs::write(folder.join("number"), format!("{number}\n")).expect("a file");
    folder
}

/// A program of a guest of host 7.
fn of_seven<'a>(stand: &'a Stand, guest: &str, program: &str) -> Job<'a> {
    stand.job(program).guest(guest).env("PVRDMA_LINK", host(stand, "7"))
}

#[test]
fn the_number_is_in_each_address() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    for provider in Provider::BOTH {
        let text = of_seven(&stand, "a", "ibv_devinfo").args(["-v"]).provider(&provider).ok();
        for address in ["::ffff:127.7.82.1", "fe80::c9:ff:fe00:701", "00c9:00ff:fe00:0701"] {
            assert!(text.contains(address), "{address} with {provider:?}: {text}");
        }
    }
    assert_eq!(stand.leftovers(), Vec::<PathBuf>::new());
}

#[test]
fn guests_of_one_host_reach_each_other() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    for provider in Provider::BOTH {
        let job = |guest: &str, program: &str| of_seven(&stand, guest, program).provider(&provider);
        for program in ["ibv_rc_pingpong", "ibv_ud_pingpong"] {
            let end = |guest| job(guest, program).args(["-g", "1", "-n", "100"]);
            let (server, client) = pair(end("a"), end("b"));
            assert!(server.ok().contains("GID ::ffff:127.7.82.2") && client.ok().contains("GID ::ffff:127.7.82.1"));
        }
        for address in ["127.7.82.1", "127.0.0.1"] {
            let rping = |guest, side| job(guest, "rping").args([side, "-C", "3"]);
            pair_by_address(rping("a", "-s"), rping("b", "-c").args(["-a", address]));
        }
    }
    assert_eq!(stand.leftovers(), Vec::<PathBuf>::new());
}

#[test]
fn one_run_directory_is_for_one_host() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let server = listening(of_seven(&stand, "a", "rping").args(["-s"]));
    for guest in ["a", "b"] {
        let output = stand.job("true").guest(guest).output();
        assert_eq!(output.status.code(), Some(1), "{output}");
        assert!(output.stderr.contains("guest a has the addresses of host 7, and this is host 0 now"), "{output}");
    }
    // And if the program is told another number than `pvrdma run` was.
    let output = of_seven(&stand, "b", "env").args(["PVRDMA_HOST_NUMBER=0", "ibv_devinfo"]).output();
    assert!(!output.status.success(), "{output}");
    assert!(output.stderr.contains("processes of a host with number 7 use it"), "{output}");
    drop(server);
    // Who was killed is in nobody's way.
    stand.job("ibv_devinfo").guest("a").ok();
    assert_eq!(stand.leftovers(), Vec::<PathBuf>::new());
}

/// Nothing is known here of other hosts' guests: a request goes to them, and is not refused in their name.
#[test]
fn who_wants_to_go_to_another_host_is_let_go() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    for address in ["127.8.82.1", "fe80::c9:ff:fe00:801"] {
        let trace = tempfile::NamedTempFile::new().expect("a temporary file");
        let client = of_seven(&stand, "a", "rping").args(["-c", "-a", address]);
        let mut client = client.option("--trace", trace.path()).spawn();
        wait_for_trace(trace.path(), "CM REQ sent", 2);
        assert!(!client.has_ended(), "{}", client.logs());
        let trace = fs::read_to_string(trace.path()).expect("a trace");
        assert!(!trace.contains("CM EVENT id=0 8"), "{trace}");
    }
}

#[test]
fn a_number_that_is_none_is_refused() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    for number in ["0", "255", "seven"] {
        let output = stand.job("true").env("PVRDMA_LINK", host(&stand, number)).output();
        assert_eq!(output.status.code(), Some(1), "{output}");
        assert!(output.stderr.contains("holds no number of a host, 1 to 254"), "{output}");
    }
    assert_eq!(stand.leftovers(), Vec::<PathBuf>::new());
}
