//! Guests of several hosts, joined by `pvrdma link run`: what works within a host works between hosts, with every byte
//! checked, and each error is seen as both ends see it on one host.
//!
//! What happens when something between them breaks is in `broken_links.rs`.

use pvrdma_tests::{
    Chance, Hosts, Job, Provider, Running, Trust, between, free_port, machine, pair, wait_for_listener,
};
use serde_json::Value;
use std::time::{Duration, Instant};

/// `pvrdma link status --json` of host 1 about host 2.
fn link(hosts: &Hosts) -> Value {
    let status: Value = serde_json::from_str(&hosts.host(1).status()).expect("JSON");
    status["hosts"][0]["link"].clone()
}

fn programs_of_both(trust: Trust, lines: &[&str]) {
    let _machine = machine();
    let hosts = Hosts::linked(2, trust);
    for provider in Provider::BOTH {
        for line in lines {
            between::ping(&hosts, &provider, line);
        }
    }
    let link = link(&hosts);
    for figure in ["bytes_out", "bytes_in", "requests"] {
        assert!(link[figure].as_u64().is_some_and(|number| number > 0), "{figure}: {link}");
    }
    hosts.end();
}

#[test]
fn pingpongs_and_perftest() {
    programs_of_both(
        Trust::Plain,
        &[
            "ibv_rc_pingpong -c -g 1 -n 100",
            "ibv_rc_pingpong -c -g 0 -n 100 -e",
            "ibv_rc_pingpong -c -g 1 -n 10 -s 1048577",
            "ibv_ud_pingpong -c -g 1 -n 100",
            "ibv_ud_pingpong -c -g 1 -n 100 -e",
            "ibv_srq_pingpong -c -g 1 -n 100",
            "ibv_srq_pingpong -c -g 1 -n 100 -e",
            "ib_write_bw -F -x 1 -n 200 -s 65536 -q 4",
            "ib_read_bw -F -x 1 -n 200 -s 65536",
            "ib_send_bw -F -x 1 -n 200 -s 65536 -b",
            "ib_send_lat -F -x 1 -n 200 -c UD",
            "ib_send_bw -F -x 1 -n 400 -s 4096 -c UD -r 400",
            "ib_atomic_bw -F -x 1 -n 200",
        ],
    );
}

#[test]
fn the_same_by_certificates() {
    programs_of_both(
        Trust::Certificates,
        &[
            "ibv_rc_pingpong -c -g 1 -n 100 -e",
            "ibv_rc_pingpong -c -g 1 -n 10 -s 1048577",
            "ibv_ud_pingpong -c -g 1 -n 100",
            "ib_write_lat -F -x 1 -n 200",
            "ib_read_bw -F -x 1 -n 100 -s 65536",
        ],
    );
}

#[test]
fn every_byte_and_every_error() {
    let _machine = machine();
    let mut chance = Chance::from_environment();
    for trust in [Trust::Plain, Trust::Certificates] {
        let hosts = Hosts::linked(2, trust);
        for provider in Provider::BOTH {
            between::every_byte_and_every_error(&hosts, &provider, None, &mut chance);
        }
        hosts.end();
    }
}

#[test]
fn connections_by_address() {
    let _machine = machine();
    let hosts = Hosts::linked(2, Trust::Plain);
    let address = hosts.host(1).first_guest();
    for provider in Provider::BOTH {
        between::by_address(&hosts, &provider, &address);
    }
    hosts.end();
}

/// `pvrdma status --json` of a host: the QPs of its guests.
fn qps(hosts: &Hosts, number: usize) -> Vec<Value> {
    let status = hosts.host(number).stand().pvrdma(&["status", "--json"]).ok();
    let status: Value = serde_json::from_str(&status).expect("JSON");
    assert_eq!(status["host"].as_u64(), Some(number as u64), "{status:#}");
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let processes = list(&status["guests"]).iter().flat_map(|guest| list(&guest["processes"])).collect::<Vec<_>>();
    processes.iter().flat_map(|process| list(&process["qps"])).collect()
}

/// A server on one host and a client on another, or on the same one, while they run.
fn running<'a>(server: Job<'a>, client: Job<'a>) -> [Running; 2] {
    let port = free_port();
    let line = ["-g", "1", "-n", "100000000", "-p", &port.to_string()].map(str::to_owned);
    let mut server = server.args(&line).spawn();
    wait_for_listener(&mut server, port);
    [server, client.args(&line).args(["127.0.0.1"]).spawn()]
}

#[test]
fn the_way_of_each_qp_is_seen() {
    let _machine = machine();
    let hosts = Hosts::linked(2, Trust::Plain);
    let job = |number: usize, guest| hosts.host(number).job("ibv_rc_pingpong").guest(guest);
    let both = [
        (running(job(1, "a"), job(2, "b")), "tcp"),
        // Beside them, within host 1.
        (running(job(1, "c"), job(1, "d")), "memory"),
    ];
    for (pair, path) in &both {
        // Who is stopped is seen like all others.
        let stopped = pair[0].program_pid("ibv_rc_pingpong");
        let mine = |number: usize| -> Vec<Value> {
            qps(&hosts, number).into_iter().filter(|qp| qp["path"].as_str() == Some(path)).collect()
        };
        let far = if *path == "tcp" { 2 } else { 1 };
        let end = Instant::now() + Duration::from_secs(60);
        let [near, there] = loop {
            let found = [mine(1).into_iter().next(), mine(far).into_iter().next_back()];
            let busy = |qp: &Value| {
                let count = |what: &str| qp[what]["messages"].as_u64().unwrap_or_default();
                qp["state"] == "RTS" && count("sent") > 10 && count("received") > 10
            };
            match found {
                [Some(near), Some(there)] if busy(&near) && busy(&there) => break [near, there],
                _ => assert!(Instant::now() < end, "{found:#?}\n{hosts}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        assert_eq!((&near["peer"]["qpn"], &there["peer"]["qpn"]), (&there["qpn"], &near["qpn"]));
        let host = if far == 2 { (Value::from(2), Value::from(1)) } else { (Value::Null, Value::Null) };
        assert_eq!((&near["path_host"], &there["path_host"]), (&host.0, &host.1));
        assert_eq!((near["type"].as_str(), near["tries"].as_u64()), (Some("RC"), Some(0)), "{near}");
        pair[0].signal(stopped, libc::SIGSTOP);
        assert_eq!(mine(1).len(), if far == 2 { 1 } else { 2 });
        let text = hosts.host(1).stand().pvrdma(&["status"]).ok();
        assert!(text.contains(&format!("  {stopped} ibv_rc_pingpong\n")), "{text}");
        pair[0].signal(stopped, libc::SIGCONT);
    }
    for (pair, _) in both {
        for mut side in pair {
            side.signal(side.program_pid("ibv_rc_pingpong"), libc::SIGKILL);
            side.hurry(Duration::from_secs(60));
            side.wait();
        }
    }
    hosts.end();
}

#[test]
fn the_way_is_in_the_trace_and_can_be_forbidden() {
    let _machine = machine();
    let hosts = Hosts::linked(2, Trust::Plain);
    let file = tempfile::NamedTempFile::new().expect("a file");
    let traced = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let [server, client] = hosts.both(&Provider::Ours, &words);
        let (_, client) = pair(server, client.option("--trace", file.path()));
        client.ok();
        std::fs::read_to_string(file.path()).expect("own file")
    };
    let trace = traced("ibv_rc_pingpong -g 1 -n 10");
    let is_it = |line: &str| line.contains(" modify_qp ") && line.ends_with(" path=tcp host=1 -> ok");
    assert_eq!(trace.lines().filter(|line| is_it(line)).count(), 1, "{trace}");
    let trace = traced("ibv_ud_pingpong -g 1 -n 10");
    assert_eq!(trace.matches(" peer=::ffff:127.1.82.1 path=tcp host=1\n").count(), 1, "{trace}");

    // From host 2 to host 1, and within host 1: what is left out is as if nobody were there.
    let cases = [(2, "memory", false), (1, "tcp", false), (2, "tcp", true), (1, "memory", true)];
    for (provider, cases) in [(Provider::Ours, &cases[..]), (Provider::System, &cases[..2])] {
        for &(from, paths, works) in cases {
            let port = free_port().to_string();
            let job = |number: usize, guest: &str| {
                let job = hosts.host(number).job("ib_write_bw").provider(&provider).guest(guest);
                job.args(["-F", "-x", "1", "-n", "20", "-p", &port])
            };
            let mut server = job(1, "there").spawn();
            wait_for_listener(&mut server, port.parse().expect("a number"));
            let client = job(from, "here").option("--paths", paths).args(["127.0.0.1"]).output();
            assert_eq!(client.status.success(), works, "{client}");
            if !works {
                let said = client.to_string();
                // The C provider shows no application what the device says of an error.
                let syndrome = if provider == Provider::Ours { "syndrom 0x80" } else { "syndrom 0x0" };
                assert!(said.contains(syndrome) && said.contains("which --paths leaves out"), "{said}");
                // Its client is gone, and what it waits for does not come.
                drop(server);
                continue;
            }
            server.hurry(Duration::from_secs(60));
            server.wait();
        }
    }
    hosts.end();
}

/// Guests of a host reach each other beside that, and each of three hosts the two others.
#[test]
fn three_hosts() {
    let _machine = machine();
    let hosts = Hosts::linked(3, Trust::Certificates);
    for [there, here] in [[1, 2], [3, 1], [2, 3], [2, 2]] {
        let job = |number, guest| {
            let job = hosts.host(number).job("ibv_rc_pingpong").guest(guest);
            job.args(["-c", "-g", "1", "-n", "100"])
        };
        let (server, client) = pair(job(there, "a"), job(here, "b"));
        let host = format!("GID ::ffff:127.{there}.82.");
        assert!(client.ok().contains(&host) && server.ok().contains(&host));
    }
    hosts.end();
}
