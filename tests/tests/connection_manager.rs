//! Connections by address: stock programs of librdmacm, within a guest and between two.

use std::fs;
use std::path::Path;

use pvrdma_tests::{Job, Provider, Stand, User, ended_well, machine, pair_by_address, wait_for_trace};

/// Guest of the server, guest of the client.
const PLACES: [(&str, &str); 2] = [("a", "a"), ("a", "b")];
/// The first guest's address.
const SERVER: &str = "127.0.82.1";

fn job<'a>(stand: &'a Stand, provider: &Provider, guest: &str, line: &[&str]) -> Job<'a> {
    stand.job(line[0]).guest(guest).provider(provider).args(&line[1..])
}

fn run(stand: &Stand, provider: &Provider, (there, here): (&str, &str), server: &[&str], client: &[&str]) {
    pair_by_address(job(stand, provider, there, server), job(stand, provider, here, client));
}

#[test]
fn rping_by_address_and_by_the_machines() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    for provider in Provider::BOTH {
        for place in PLACES {
            for address in [SERVER, "127.0.0.1"] {
                let client = ["rping", "-c", "-v", "-C", "20", "-a", address];
                run(&stand, &provider, place, &["rping", "-s", "-v", "-C", "20"], &client);
            }
        }
    }
    assert_eq!(stand.leftovers(), Vec::<std::path::PathBuf>::new());
}

/// In each port space, by IPv4 and IPv6. Not datagrams to a link-local address: libibverbs, which the C provider asks
/// for address handles, finds no way to one on the loopback interface.
#[test]
fn sixteen_connections_at_once_and_datagrams() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let server_v6 = server_v6(&stand);
    let lines: [(&[&str], &str); 5] = [
        (&["ucmatose", "-c", "16"], SERVER),
        (&["ucmatose", "-c", "16", "-P", "ib"], SERVER),
        (&["ucmatose", "-c", "16", "-b", "::0"], &server_v6),
        (&["udaddy", "-c", "16"], SERVER),
        (&["udaddy", "-c", "16", "-b", "::0"], "::1"),
    ];
    for provider in Provider::BOTH {
        for place in PLACES {
            for (line, address) in lines {
                let client: Vec<&str> = line.iter().copied().filter(|word| !["-b", "::0"].contains(word)).collect();
                run(&stand, &provider, place, line, &[&client[..], &["-s", address]].concat());
            }
        }
    }
}

/// The first guest's link-local address, with the interface that all guests share.
fn server_v6(stand: &Stand) -> String {
    let text = stand.job("ibv_devinfo").guest("a").args(["-v"]).ok();
    let gid = text.lines().find_map(|line| line.split_once("GID[  0]:")).expect("a GID").1;
    let address = gid.trim().split(',').next().expect("an address");
    format!("{address}%lo")
}

/// rping takes one request at a time, and forgets the one before if another comes too early; so each client is
/// connected before the next one asks.
#[test]
fn several_clients_of_one_server() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    for provider in Provider::BOTH {
        for (there, here) in PLACES {
            let trace = tempfile::NamedTempFile::new().expect("a temporary file");
            let server = job(&stand, &provider, there, &["rping", "-s", "-P"]).option("--trace", trace.path()).spawn();
            wait_for_trace(trace.path(), "cm listen", 1);
            let clients: Vec<_> = (1..=3)
                .map(|count| {
                    let line = ["rping", "-c", "-V", "-C", "2000", "-S", "500", "-a", SERVER];
                    let client = job(&stand, &provider, here, &line).spawn();
                    // ESTABLISHED.
                    wait_for_trace(trace.path(), " 9 status=0", count);
                    client
                })
                .collect();
            for client in clients {
                let output = client.wait();
                assert!(ended_well(&output), "{output}\n{}", server.logs());
            }
            // It serves for ever.
            server.signal(server.program_pid("rping"), libc::SIGTERM);
            server.wait();
        }
    }
}

#[test]
fn endpoints_sockets_and_perftest() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let provider = &Provider::Ours;
    for place in PLACES {
        run(&stand, provider, place, &["rdma_server"], &["rdma_client", "-s", SERVER]);
        let options = ["-S", "1000", "-C", "50"];
        let server = [&["rstream"][..], &options].concat();
        run(&stand, provider, place, &server, &[&server[..], &["-s", SERVER]].concat());
        // perftest renews its listener between two connections, and the request of the second comes in that moment.
        let server = ["ib_send_lat", "-R", "-F", "-n", "100"];
        run(&stand, provider, place, &server, &[&server[..], &[SERVER]].concat());
    }
}

/// The messages of the connection manager are datagrams like any other: a bad network loses them, and they come again.
#[test]
fn a_bad_network_still_connects() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let list = |seed: u32| format!("drop=0.2,duplicate=0.2,reorder=0.1,seed={seed}");
    for seed in 1..=3 {
        // They connect and send nothing: data would meet the same network.
        let server = job(&stand, &Provider::Ours, "a", &["ucmatose", "-C", "0", "-c", "4"]);
        let client = job(&stand, &Provider::Ours, "b", &["ucmatose", "-C", "0", "-c", "4", "-s", SERVER]);
        let (server, _) =
            pair_by_address(server.option("--fault", list(seed)), client.option("--fault", list(seed + 100)));
        server.ok();
    }
}

#[test]
fn who_cannot_be_reached_is_refused_at_once() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let ask = |address: &str| {
        let trace = tempfile::NamedTempFile::new().expect("a temporary file");
        let client = job(&stand, &Provider::Ours, "b", &["rping", "-c", "-C", "1", "-a", address]);
        let output = client.option("--trace", trace.path()).output();
        assert!(!output.status.success(), "{output}");
        fs::read_to_string(trace.path()).expect("a trace")
    };
    // REJECTED, invalid service id; ADDR_ERROR.
    for nobody_listens in ["127.0.0.1", "127.0.82.1"] {
        let trace = ask(nobody_listens);
        assert!(trace.contains("CM EVENT id=0 8 status=8"), "{nobody_listens}: {trace}");
    }
    let trace = ask("192.0.2.1");
    assert!(trace.contains(&format!("CM EVENT id=0 1 status=-{}", libc::ENODEV)), "{trace}");
}

/// A port belongs to the guest, not to a process, and is free again when that is killed.
#[test]
fn a_port_is_taken_once_in_a_guest_until_its_process_ends() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let trace = tempfile::NamedTempFile::new().expect("a temporary file");
    let server = |guest: &str| job(&stand, &Provider::Ours, guest, &["rping", "-s", "-C", "1"]);
    let mut first = server("a").option("--trace", trace.path()).spawn();
    wait_for_trace(trace.path(), "cm listen", 1);
    let second = tempfile::NamedTempFile::new().expect("a temporary file");
    assert!(!server("a").option("--trace", second.path()).output().status.success());
    let text = fs::read_to_string(second.path()).expect("a trace");
    assert!(text.contains(&format!("-> errno {}", libc::EADDRINUSE)), "{text}");
    // Another guest has ports of its own.
    let mut other = server("b").option("--trace", second.path()).spawn();
    wait_for_trace(second.path(), "cm listen", 1);
    for server in [&mut first, &mut other] {
        server.signal(server.program_pid("rping"), libc::SIGKILL);
    }
    first.wait();
    other.wait();
    run(&stand, &Provider::Ours, ("a", "b"), &["rping", "-s", "-C", "1"], &["rping", "-c", "-C", "1", "-a", SERVER]);
}

/// A process that was killed is answered for: its peer hears that the connection has ended.
#[test]
fn the_peer_of_a_killed_process_is_told() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    for killed_is_server in [true, false] {
        let traces = [(); 2].map(|()| tempfile::NamedTempFile::new().expect("a temporary file"));
        let job = |guest: &str, trace: &Path| stand.job("rping").guest(guest).option("--trace", trace);
        let mut server = job("a", traces[0].path()).args(["-s", "-C", "100000000"]).spawn();
        wait_for_trace(traces[0].path(), "cm listen", 1);
        let mut client = job("b", traces[1].path()).args(["-c", "-C", "100000000", "-a", SERVER]).spawn();
        wait_for_trace(traces[0].path(), "CM EVENT id=1 9 ", 1);
        let (killed, survivor) = if killed_is_server { (&mut server, 1) } else { (&mut client, 0) };
        killed.signal(killed.program_pid("rping"), libc::SIGKILL);
        wait_for_trace(traces[survivor].path(), " 10 status=0", 1);
    }
}
