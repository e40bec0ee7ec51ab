//! Guests and those who speak RoCE v2 over UDP. Here these are guests of other hosts, which know nothing of each other
//! but an address; `cargo xtask vm --wire` has Linux's `rdma_rxe` in their place.

use pvrdma_tests::{
    Chance, Hosts, Output, Provider, Spaces, between, c_program, cannot_run, free_port, machine, pair, pair_by_address,
    wait_for_listener,
};
use serde_json::Value;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

/// `pvrdma link status --json` of a host: what it says of RoCE.
fn roce(hosts: &Hosts, number: usize) -> Value {
    let status: Value = serde_json::from_str(&hosts.host(number).status()).expect("JSON");
    status["roce"].clone()
}

fn count(hosts: &Hosts, number: usize, what: &str) -> u64 {
    roce(hosts, number)[what].as_u64().unwrap_or_else(|| panic!("no {what}"))
}

#[test]
fn pingpongs_and_perftest() {
    let _machine = machine();
    let hosts = Hosts::on_wire(2, None);
    for provider in Provider::BOTH {
        for line in [
            "ibv_rc_pingpong -c -g 2 -n 100",
            "ibv_rc_pingpong -c -g 2 -n 100 -e -m 256",
            "ibv_rc_pingpong -c -g 2 -n 10 -s 1048577 -m 4096",
            "ibv_ud_pingpong -c -g 2 -n 100",
            "ibv_ud_pingpong -c -g 2 -n 100 -e",
            "ibv_srq_pingpong -c -g 2 -n 100",
            "ib_send_lat -F -x 2 -n 200",
            "ib_write_bw -F -x 2 -n 100 -s 1048576",
            "ib_write_bw -F -x 2 -n 200 -s 65536 -q 4 -b",
            "ib_read_bw -F -x 2 -n 200 -s 65536",
            "ib_send_bw -F -x 2 -n 200 -s 65536 -b",
            "ib_send_lat -F -x 2 -n 200 -c UD",
            "ib_atomic_bw -F -x 2 -n 200",
        ] {
            between::ping(&hosts, &provider, line);
        }
    }
    for number in [1, 2] {
        assert!(count(&hosts, number, "packets_in") > 1000 && count(&hosts, number, "packets_out") > 1000);
        assert_eq!(count(&hosts, number, "packets_damaged"), 0);
    }
    hosts.end();
}

#[test]
fn every_byte_and_every_error() {
    let _machine = machine();
    let mut chance = Chance::from_environment();
    let hosts = Hosts::on_wire(2, None);
    for provider in Provider::BOTH {
        between::every_byte_and_every_error(&hosts, &provider, Some("2"), &mut chance);
    }
    hosts.end();
}

/// Whoever connects by an address that is no guest's goes by RoCE. It takes addresses that no host has but one.
#[test]
fn connections_by_address() {
    let _machine = machine();
    let spaces = match Spaces::new(2) {
        Ok(spaces) => spaces,
        Err(why) => return cannot_run("hosts with addresses of their own", &why),
    };
    let hosts = Hosts::on_wire(2, Some(spaces));
    let address = hosts.host(1).wire().to_string();
    for provider in Provider::BOTH {
        between::by_address(&hosts, &provider, &address);
        let job = |number: usize| hosts.host(number).job("rping").provider(&provider).args(["-C", "3", "-a", &address]);
        // It listens at that address and no other.
        pair_by_address(job(1).args(["-s"]), job(2).args(["-c"]));
        let job =
            |number: usize| hosts.host(number).job("ib_send_bw").provider(&provider).args(["-F", "-R", "-n", "200"]);
        pair_by_address(job(1), job(2).args([&address]));
    }
    // Nobody listens, and somebody says so: a process of the host that has a device and a manager.
    let other = hosts.host(1).job("rping").guest("other").args(["-s", "-p", "9999"]).spawn();
    let port = Instant::now();
    let refused = loop {
        let refused = hosts.host(2).job("rping").args(["-c", "-C", "1", "-a", &address]).output();
        assert!(!refused.status.success(), "{refused}");
        // Until that one has its manager there is nobody at all.
        if refused.to_string().contains("RDMA_CM_EVENT_REJECTED") || port.elapsed() > Duration::from_secs(60) {
            break refused;
        }
    };
    assert!(refused.to_string().contains("RDMA_CM_EVENT_REJECTED"), "{refused}");
    // Of several guests that have the port the first one answers, and the other does not refuse.
    let first = |guest: &str| hosts.host(1).job("rping").guest(guest).args(["-s", "-C", "5", "-P", "-p", "7878"]);
    let (a, b) = (pvrdma_tests::listening(first("other")), pvrdma_tests::listening(first("third")));
    for _ in 0..2 {
        let client = hosts.host(2).job("rping").args(["-c", "-C", "5", "-a", &address, "-p", "7878"]).output();
        assert!(pvrdma_tests::ended_well(&client), "{client}");
    }
    for mut server in [other, a, b] {
        server.signal(server.program_pid("rping"), libc::SIGKILL);
        server.hurry(Duration::from_secs(60));
        server.wait();
    }
    hosts.end();
}

/// A client that cannot do what it wants, and what it says.
fn refused(hosts: &Hosts, options: &[(&str, &str)], line: &[&str]) -> Output {
    let port = free_port();
    let port_ = port.to_string();
    let mut server = hosts.host(1).job(line[0]).args(&line[1..]).args(["-p", &port_]).spawn();
    wait_for_listener(&mut server, port);
    let client = hosts.host(2).job(line[0]).args(&line[1..]).args(["-p", &port_, "127.0.0.1"]);
    let client = options.iter().fold(client, |client, (name, value)| client.option(name, value)).output();
    assert!(!client.status.success(), "{client}");
    drop(server);
    client
}

#[test]
fn the_way_is_seen_and_can_be_forbidden() {
    let _machine = machine();
    let hosts = Hosts::on_wire(2, None);
    let file = tempfile::NamedTempFile::new().expect("a file");
    let traced = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let [server, client] = hosts.both(&Provider::Ours, &words);
        let (_, client) = pair(server, client.option("--trace", file.path()));
        client.ok();
        std::fs::read_to_string(file.path()).expect("own file")
    };
    let trace = traced("ibv_rc_pingpong -g 2 -n 10");
    let is_it = |line: &str| line.contains(" modify_qp ") && line.ends_with(" path=roce -> ok");
    assert_eq!(trace.lines().filter(|line| is_it(line)).count(), 1, "{trace}");
    let trace = traced("ibv_ud_pingpong -g 2 -n 10");
    assert_eq!(trace.matches(&format!(" peer=::ffff:{} path=roce\n", hosts.host(1).wire())).count(), 1, "{trace}");

    // Who may not use it has no such address.
    let client = refused(&hosts, &[("--paths", "memory,tcp")], &["ibv_rc_pingpong", "-g", "2", "-n", "10"]);
    let said = client.to_string();
    assert!(said.contains("GID") || said.contains("Failed to modify QP"), "{said}");
    // Within a host such an address is as good as the guests' own: bytes are copied.
    let before = count(&hosts, 1, "packets_out");
    let job = |guest| hosts.host(1).job("ibv_rc_pingpong").guest(guest).args(["-c", "-g", "2", "-n", "100"]);
    let (server, client) = pair(job("a"), job("b"));
    assert!(server.status.success() && client.status.success());
    assert_eq!(count(&hosts, 1, "packets_out"), before);
    hosts.end();
}

/// The gateway is killed under traffic: who has a long timer goes on when the next one runs, who has a short one ends
/// in RETRY_EXC.
#[test]
fn a_gateway_that_is_killed() {
    let _machine = machine();
    let mut hosts = Hosts::on_wire(2, None);
    let apart = hosts.copy(&c_program("tests/c/apart.c", &[]));
    let port = free_port().to_string();
    let stop = tempfile::tempdir().expect("a folder");
    let until = stop.path().join("stop");
    let side = |hosts: &Hosts, number: usize, timeout: &str| {
        let job = hosts.host(number).job(&apart).args(["-g", "2", "load", "-t", timeout, "-p", &port]);
        let job = if number == 2 { job.args(["127.0.0.1"]) } else { job };
        job.args(["-u".as_ref(), until.as_os_str()]).spawn()
    };
    let mut server = side(&hosts, 1, "20");
    wait_for_listener(&mut server, port.parse().expect("a number"));
    let mut client = side(&hosts, 2, "20");
    client.wait_for_text("running");
    for number in [1, 2] {
        hosts.host_mut(number).kill();
        hosts.host_mut(number).start_on_wire(&[]);
        let before = count(&hosts, number, "packets_in");
        let end = Instant::now() + Duration::from_secs(60);
        while count(&hosts, number, "packets_in") < before + 1000 {
            assert!(Instant::now() < end && !client.has_ended(), "nothing goes on\n{hosts}{}", client.logs());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    std::fs::write(&until, "").expect("a file");
    let ended = [server, client].map(|mut side| {
        side.hurry(Duration::from_secs(60));
        side.wait()
    });
    assert!(ended.iter().all(|side| side.status.success()), "{}{}\n{hosts}", ended[0], ended[1]);
    std::fs::remove_file(&until).expect("it is there");
    // The other end is a stranger whose gateway does not come back.
    let mut server = side(&hosts, 1, "14");
    wait_for_listener(&mut server, port.parse().expect("a number"));
    let mut client = side(&hosts, 2, "14");
    client.wait_for_text("running");
    hosts.host_mut(1).kill();
    client.hurry(Duration::from_secs(60));
    assert_eq!(client.wait().status.code(), Some(3), "nobody has answered in time");
    server.hurry(Duration::from_secs(60));
    server.wait();
    hosts.end();
}

/// Bytes from anybody do nothing to those who have a connection.
#[test]
fn strangers_are_not_listened_to() {
    let _machine = machine();
    let hosts = Hosts::on_wire(2, None);
    let mut chance = Chance::from_environment();
    let gateway = (hosts.host(1).wire(), 4791);
    let stranger = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let [server, client] = hosts.both(&Provider::Ours, &["ibv_rc_pingpong", "-c", "-g", "2", "-n", "2000"]);
    let server = server.args(["-p", "18999"]);
    let mut server = server.spawn();
    wait_for_listener(&mut server, 18999);
    let mut client = client.args(["-p", "18999", "127.0.0.1"]).spawn();
    let mut sent = 0;
    while !client.has_ended() {
        for _ in 0..100 {
            let bytes: Vec<u8> = (0..chance.below(200)).map(|_| chance.any() as u8).collect();
            sent += u64::from(stranger.send_to(&bytes, gateway).is_ok());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(sent > 0);
    client.wait().ok();
    server.hurry(Duration::from_secs(60));
    server.wait().ok();
    assert!(count(&hosts, 1, "packets_damaged") > 0);
    hosts.end();
}

#[test]
fn what_keeps_it_from_the_wire_is_said() {
    let _machine = machine();
    let hosts = Hosts::on_wire(1, None);
    let host = hosts.host(1);
    let said = |address: &str| {
        let other = tempfile::tempdir().expect("a folder");
        let job = host.stand().pvrdma(&["link", "run", "--roce-wire", address]);
        let output = job.env("XDG_RUNTIME_DIR", other.path()).output();
        assert_eq!(output.status.code(), Some(1), "{output}");
        output.stderr
    };
    let taken = said(&host.wire().to_string());
    assert!(taken.contains("UDP port 4791") && taken.contains("already") && taken.contains("rdma_rxe"), "{taken}");
    let foreign = said("192.0.2.1");
    assert!(foreign.contains("192.0.2.1 is no address of this machine"), "{foreign}");
    let status = host.link(&["status"]);
    assert!(status.contains(&format!("RoCE v2 at {}, path MTU 4096: ", host.wire())), "{status}");
    // A guest that was there before has no such address, nor has one of RoCE v1.
    let devinfo = |options: &[(&str, &str)]| {
        let job = host.job("ibv_devinfo").args(["-v"]);
        options.iter().fold(job, |job, (name, value)| job.option(name, value)).ok()
    };
    let gid = format!("::ffff:{}", host.wire());
    assert!(devinfo(&[]).contains(&gid));
    assert!(!devinfo(&[("--roce", "v1"), ("--guest", "old")]).contains(&gid));
    hosts.end();
}
