//! Guests of RoCE v1 and whoever speaks it on their Ethernet: here guests of another host, by an address that no guest
//! has. Each host is a network namespace, since it takes a network device and CAP_NET_RAW.

use pvrdma_tests::{Hosts, Job, Provider, Spaces, Trust, cannot_run, machine, pair_by_address, try_pair_at};

/// What `pvrdma link run` of each host speaks RoCE at.
const DEVICE: &str = "eth0";

fn hosts() -> Option<Hosts> {
    let spaces = match Spaces::new(2) {
        Ok(spaces) => spaces,
        Err(why) => {
            cannot_run("hosts with network devices of their own", &why);
            return None;
        }
    };
    let mut hosts = Hosts::apart(2, Trust::Certificates, Some(spaces));
    for number in [1, 2] {
        hosts.host_mut(number).start_with(&["--roce-wire", DEVICE]);
    }
    Some(hosts)
}

fn job<'a>(hosts: &'a Hosts, number: usize, provider: &Provider, line: &[&str]) -> Job<'a> {
    hosts.host(number).job(line[0]).provider(provider).option("--roce", "v1").args(&line[1..])
}

#[test]
fn guests_reach_each_other_by_frames() {
    let _machine = machine();
    let Some(hosts) = hosts() else { return };
    let address = hosts.host(1).address().ip().to_string();
    for (line, provider) in [
        ("ibv_rc_pingpong -c -g 2 -n 100 -s 65536", Provider::System),
        ("ibv_rc_pingpong -c -g 2 -n 100 -s 65536", Provider::Ours),
        ("ibv_ud_pingpong -c -g 2 -n 100 -s 1024", Provider::Ours),
        ("ib_write_bw -F -x 2 -n 50 -s 1048576", Provider::Ours),
        ("ib_read_bw -F -x 2 -n 50 -s 65536", Provider::Ours),
        ("ib_atomic_bw -F -x 2 -n 50", Provider::Ours),
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        let [server, client] = [1, 2].map(|number| job(&hosts, number, &provider, &words));
        let (server, client) = try_pair_at(&address, server, client).unwrap_or_else(|why| panic!("{why}\n{hosts}"));
        server.ok();
        client.ok();
    }
    let [server, client] = [1, 2].map(|number| job(&hosts, number, &Provider::Ours, &["rping", "-C", "10"]));
    pair_by_address(server.args(["-s"]), client.args(["-c", "-a", &address]));
    for number in [1, 2] {
        let status = hosts.host(number).status();
        let is_busy = status.contains("\"version\": \"v1\"") && !status.contains("\"packets_in\": 0,");
        assert!(is_busy && status.contains("\"packets_damaged\": 0"), "{status}");
    }
    hosts.end();
}

/// A guest of the other version cannot say what is spoken there.
#[test]
fn the_address_is_for_guests_of_v1() {
    let _machine = machine();
    let Some(hosts) = hosts() else { return };
    for (guest, roce, count) in [("one", "v1", 3), ("two", "v2", 2)] {
        let devinfo = hosts.host(1).job("ibv_devinfo").guest(guest).option("--roce", roce).args(["-v"]).ok();
        assert_eq!(devinfo.matches("GID[").count(), count, "{devinfo}");
    }
    hosts.end();
}
