//! Hosts whose payload goes by their RDMA adapters: whoever carries requests is a guest of one more `pvrdma run`, whose
//! device plays the adapter.

use pvrdma_tests::{BY_ADAPTER, Chance, Hosts, Provider, Stand, Trust, User, between, example, machine};
use serde_json::Value;
use std::time::{Duration, Instant};

/// What the adapters of a network have sent.
fn sent(network: &Stand) -> u64 {
    let status: Value = serde_json::from_str(&network.pvrdma(&["status", "--json"]).ok()).expect("JSON");
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let processes = list(&status["guests"]).iter().flat_map(|guest| list(&guest["processes"])).collect::<Vec<_>>();
    let qps = processes.iter().flat_map(|process| list(&process["qps"]));
    qps.filter_map(|qp| qp["sent"]["bytes"].as_u64()).sum()
}

fn run(hosts: &Hosts, line: &str) {
    between::ping(hosts, &Provider::Ours, line);
}

#[test]
fn bytes_pass_and_an_end_is_noticed() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let program = stand.copy(&example("pvrdma-hca", "pair"));
    for provider in Provider::BOTH {
        let said = stand.job(&program).provider(&provider).ok();
        assert_eq!(said.lines().filter(|line| line.starts_with("ok ")).count(), 4, "{said}");
    }
    assert_eq!(stand.leftovers(), Vec::<std::path::PathBuf>::new());
}

/// Every opcode, every error and every byte, as over TCP; and the adapters have carried it.
#[test]
fn payload_goes_by_the_adapters() {
    let _machine = machine();
    let network = Stand::new(User::Me);
    let hosts = Hosts::by_adapters(Trust::Plain, &network, &[]);
    between::every_byte_and_every_error(&hosts, &Provider::Ours, None, &mut Chance::from_environment());
    let before = sent(&network);
    for line in ["ibv_rc_pingpong -c -g 1 -n 10 -s 1048577", "ibv_ud_pingpong -c -g 1 -n 100 -e"] {
        run(&hosts, line);
    }
    assert!(sent(&network) - before >= 20 * 1_048_577, "{} bytes before, {} now", before, sent(&network));
    hosts.wait_for_status(1, BY_ADAPTER);
    hosts.end();
    assert_eq!(network.leftovers(), Vec::<std::path::PathBuf>::new());
}

/// An adapter that nobody hears any more: the QPs of guests that are patient go on over TCP, and every byte is right.
#[test]
fn when_the_adapter_goes_qps_go_on_over_tcp() {
    let _machine = machine();
    let network = Stand::new(User::Me);
    let hosts = Hosts::by_adapters(Trust::Certificates, &network, &[("--fault", "dead=300")]);
    run(&hosts, "ib_write_bw -F -x 1 -n 1500 -s 65536 -u 18");
    hosts.wait_for_status(1, "\"over\": \"tcp\"");
    run(&hosts, "ibv_rc_pingpong -c -g 1 -n 100");
    let said = hosts.to_string();
    assert!(said.contains("is reached by the adapter vmw_pvrdma0, not encrypted"), "{said}");
    assert!(said.contains("is not reached by the adapter any more"), "{said}");
    hosts.end();
}

/// Why no adapter is used is said at both ends.
#[test]
fn one_adapter_is_none() {
    let _machine = machine();
    let network = Stand::new(User::Me);
    let cases: [(&[&str], &str, &str); 2] = [
        (&[], "the other host was not told to use one (--hca)", "null"),
        (&["--hca", "of-no-name"], "the other host has none", "\"this host has none: no such device\""),
    ];
    for (options, there, here) in cases {
        let mut hosts = Hosts::apart(2, Trust::Plain, None);
        hosts.host_mut(1).start_on(&network, &[]);
        hosts.host_mut(2).start_with(options);
        hosts.wait_for_status(1, &format!("\"over\": \"tcp\", \"no_hca\": \"{there}\""));
        hosts.wait_for_status(2, &format!("\"over\": \"tcp\", \"no_hca\": {here}"));
        run(&hosts, "ibv_rc_pingpong -c -g 1 -n 10");
        hosts.end();
    }
}

/// A peer that is killed is gone at once, as over TCP; one that comes back is reached by the adapters again.
#[test]
fn a_host_that_is_killed_comes_back() {
    let _machine = machine();
    let network = Stand::new(User::Me);
    let mut hosts = Hosts::by_adapters(Trust::Plain, &network, &[]);
    for number in [2, 1] {
        hosts.host_mut(number).kill();
        hosts.wait_for_link(3 - number, false);
        hosts.host_mut(number).start_on(&network, &[]);
        for of in [1, 2] {
            hosts.wait_for_status(of, BY_ADAPTER);
        }
    }
    hosts.end();
}

/// Servers of virtual machines are linked by adapters as gateways are.
#[test]
fn servers_are_linked_by_adapters() {
    let _machine = machine();
    let network = Stand::new(User::Me);
    let hosts = Hosts::apart(2, Trust::Certificates, None);
    let servers = [1, 2].map(|number| {
        let (host, address) = (hosts.host(number), hosts.host(number).address().to_string());
        let (socket, settings) = (host.stand().path("server.sock"), host.stand().path("link"));
        let job = network.job("env").args([format!("XDG_RUNTIME_DIR={}", host.stand().run_folder().display())]);
        let job = job.args([host.stand().path("pvrdma")]).args(["serve", "--link", "--hca", "auto"]);
        let job = job.args(["--listen", &address, "--folder"]).args([&settings]).args(["--socket"]).args([&socket]);
        let mut server = job.spawn();
        server.wait_for_text("pvrdma serve: ready");
        (server, socket)
    });
    for (server, socket) in &servers {
        let end = Instant::now() + Duration::from_secs(60);
        let socket = socket.to_str().expect("a path");
        while !network.pvrdma(&["status", "--json", "--server", socket]).ok().contains(BY_ADAPTER) {
            assert!(Instant::now() < end, "{}", server.logs());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    for (mut server, _) in servers {
        server.signal(server.pid(), libc::SIGTERM);
        server.hurry(Duration::from_secs(60));
        server.wait().ok();
    }
}
