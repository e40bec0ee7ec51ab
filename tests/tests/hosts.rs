//! Guests of several hosts, joined by `pvrdma link run`: what works within a host works between hosts, with every byte
//! checked, and each error is seen as both ends see it on one host.
//!
//! What happens when something between them breaks is in `broken_links.rs`.

use pvrdma_tests::{Chance, Hosts, Job, Provider, Trust, c_program, figures, machine, pair, pair_by_address, try_pair};
use serde_json::Value;

/// A server on host 1 and a client on host 2, both well.
fn ping(hosts: &Hosts, provider: &Provider, line: &str) {
    let words: Vec<&str> = line.split(' ').collect();
    let [server, client] = hosts.both(provider, &words);
    let (server, client) = try_pair(server, client).unwrap_or_else(|failure| panic!("{failure}\n{hosts}"));
    let (server, client) = (server.ok(), client.ok());
    if line.starts_with("ib_") {
        assert!(figures(&client).is_some(), "{client}");
    } else {
        assert!(server.contains("iters in") && client.contains("iters in"), "{server}{client}");
    }
}

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
            ping(&hosts, &provider, line);
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

/// All opcodes with many sizes against a model (tests/c/data.c); each error at both ends, and sizes around what one
/// frame holds (tests/c/apart.c).
#[test]
fn every_byte_and_every_error() {
    let _machine = machine();
    let mut chance = Chance::from_environment();
    for trust in [Trust::Plain, Trust::Certificates] {
        let hosts = Hosts::linked(2, trust);
        let data = hosts.copy(&c_program("tests/c/data.c", &[]));
        let apart = hosts.copy(&c_program("tests/c/apart.c", &[]));
        let cases = hosts.host(1).job(&apart).ok();
        assert_eq!(cases.lines().count(), 14, "{cases}");
        let all: String = cases.lines().map(|case| format!("ok {case}\n")).collect();
        for provider in Provider::BOTH {
            let [server, client] = hosts.both(&provider, &[&apart, "all"]);
            let (server, client) = pair(server, client);
            assert_eq!((server.ok(), client.ok()), (all.clone(), all.clone()));
            let seed = chance.any().to_string();
            let [server, client] = hosts.both(&provider, &[&data, "-k", "few", "-s", &seed]);
            let (server, client) = pair(server, client);
            let said = server.ok();
            assert_eq!(said, client.ok(), "both sides make the same plan");
            assert!(said.contains("MiB exact"), "{said}");
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
        let job = |number: usize, line: &[&str]| -> Job<'_> {
            hosts.host(number).job(line[0]).provider(&provider).args(&line[1..])
        };
        let lines: [(&[&str], &[&str]); 3] = [
            (&["rping", "-s", "-v", "-C", "10"], &["rping", "-c", "-v", "-C", "10", "-a", &address]),
            (&["ucmatose", "-c", "8"], &["ucmatose", "-c", "8", "-s", &address]),
            (&["udaddy"], &["udaddy", "-s", &address]),
        ];
        for (server, client) in lines {
            pair_by_address(job(1, server), job(2, client));
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
