//! Programs that others have built on librdmacm, within a guest and between two, each with a check of its data where it
//! has one. The programs of librdmacm itself are in `connection_manager.rs`.

use pvrdma_tests::{
    Job, Provider, Stand, User, amount, free_port, listening, machine, pair_by_address, wait_for_listener,
};

/// Guest of the server, guest of the client.
const PLACES: [(&str, &str); 2] = [("a", "a"), ("a", "b")];
/// The first guest's address.
const SERVER: &str = "127.0.82.1";

fn job<'a>(stand: &'a Stand, provider: &Provider, guest: &str, line: &[&str]) -> Job<'a> {
    stand.job(line[0]).guest(guest).provider(provider).args(&line[1..])
}

/// Where line `turn` of a list is run: everywhere in the long form, somewhere in the short one.
fn somewhere(turn: usize) -> Vec<(Provider, (&'static str, &'static str))> {
    let all: Vec<_> =
        Provider::BOTH.into_iter().flat_map(|provider| PLACES.map(|place| (provider.clone(), place))).collect();
    let one = vec![all[turn % all.len()].clone()];
    amount(one, all)
}

/// The same line with the port at the end of one of its words.
fn pingpong<'a>(words: &[&'a str], option: &'a str, port: &'a str) -> Vec<&'a str> {
    [&["fi_pingpong"], words, &["-I", "20", "-c", option, port]].concat()
}

#[test]
fn libfabric_messages_and_reliable_datagrams() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    for provider in Provider::BOTH {
        for (there, here) in PLACES {
            for words in [["-p", "verbs", "-e", "msg"], ["-p", "verbs;ofi_rxm", "-e", "rdm"]] {
                let port = free_port();
                let number = port.to_string();
                let mut server = job(&stand, &provider, there, &pingpong(&words, "-B", &number)).spawn();
                wait_for_listener(&mut server, port);
                let client = [pingpong(&words, "-P", &number), vec!["127.0.0.1"]].concat();
                job(&stand, &provider, here, &client).ok();
                server.wait().ok();
            }
        }
    }
}

/// fio takes who reads for the server, and only `send` hands it what arrives: there the server looks into every block.
#[test]
fn fio_with_its_checksums() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let all = ["fio", "--name=t", "--ioengine=rdma", "--bs=64k", "--size=1m", "--output=/dev/null"];
    for provider in Provider::BOTH {
        for (there, here) in PLACES {
            for verb in ["send", "write", "read"] {
                let port = format!("--port={}", free_port());
                let server = ["--rw=read", "--iodepth=16", "--verify=crc32c", "--verify_fatal=1", &port];
                let server = listening(job(&stand, &provider, there, &[&all[..], &server].concat()));
                let (verb, host) = (format!("--verb={verb}"), format!("--hostname={SERVER}"));
                let client = ["--rw=write", "--iodepth=4", "--verify=crc32c", "--do_verify=0", &port, &verb, &host];
                job(&stand, &provider, here, &[&all[..], &client].concat()).ok();
                server.wait().ok();
            }
        }
    }
}

/// qperf names a port to its client and then listens there; the client does not wait for that.
#[test]
fn qperf_by_address() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let tests = [
        "rc_lat",
        "rc_bw",
        "rc_bi_bw",
        "rc_rdma_read_bw",
        "rc_rdma_read_lat",
        "rc_rdma_write_bw",
        "rc_rdma_write_lat",
        "rc_rdma_write_poll_lat",
        "rc_compare_swap_mr",
        "rc_fetch_add_mr",
        "ver_rc_compare_swap",
        "ver_rc_fetch_add",
    ];
    for (turn, test) in tests.into_iter().enumerate() {
        for (provider, (there, here)) in somewhere(turn) {
            let port = free_port();
            let number = port.to_string();
            let mut server = job(&stand, &provider, there, &["qperf", "-lp", &number]).spawn();
            wait_for_listener(&mut server, port);
            // A second is the least.
            job(&stand, &provider, here, &["qperf", "127.0.0.1", "-lp", &number, "-cm", "1", "-t", "1", test]).ok();
            // It serves for ever.
            server.signal(server.program_pid("qperf"), libc::SIGTERM);
            server.wait();
        }
    }
}

#[test]
fn perftest_by_address() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let verbs = ["send", "write", "read", "atomic"];
    let programs = verbs.into_iter().flat_map(|verb| ["bw", "lat"].map(|what| format!("ib_{verb}_{what}")));
    for (turn, program) in programs.enumerate() {
        for (provider, (there, here)) in somewhere(turn) {
            let port = free_port().to_string();
            let line = [&program[..], "-R", "-F", "-n", "200", "-p", &port];
            let client = job(&stand, &provider, here, &[&line[..], &[SERVER]].concat());
            pair_by_address(job(&stand, &provider, there, &line), client);
        }
    }
}

/// Programs of TCP, which are not told. Their sockets become rsockets by librspreload, with ours behind it.
#[test]
fn sockets_that_are_none() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let library = "/usr/lib/x86_64-linux-gnu/rsocket/librspreload.so";
    // No byte like the one a page before it.
    let data: Vec<u8> = (0..1_000_000u32).map(|n| (n / 251) as u8 ^ n as u8).collect();
    let (file, copy) = (stand.path("data"), stand.path("copy"));
    std::fs::write(&file, &data).expect("own file");
    for provider in Provider::BOTH {
        for (there, here) in PLACES {
            let port = free_port().to_string();
            let netcat = |guest, line: &str| {
                let script = format!("exec nc.traditional {line}");
                job(&stand, &provider, guest, &["sh", "-c", &script]).env("LD_PRELOAD", library)
            };
            let server = listening(netcat(there, &format!("-l -s {SERVER} -p {port} >{}", copy.display())));
            netcat(here, &format!("-q 0 {SERVER} {port} <{}", file.display())).ok();
            server.wait().ok();
            assert!(std::fs::read(&copy).expect("own file") == data, "{provider:?} from {here} to {there}");
        }
    }
}

/// `-T v` looks at the data. With `-T a` rstream itself takes its peer's end for an error now and then.
#[test]
fn rsockets_in_all_their_ways() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let ways: [&[&str]; 7] = [
        &["rstream", "-T", "v"],
        &["rstream", "-T", "b", "-T", "v"],
        &["rstream", "-T", "n", "-T", "v"],
        &["rstream", "-T", "r", "-T", "v"],
        &["riostream", "-T", "v"],
        &["riostream", "-T", "a", "-T", "v"],
        &["riostream", "-T", "n", "-T", "v"],
    ];
    for provider in Provider::BOTH {
        for (there, here) in PLACES {
            for way in ways {
                let line = [way, &["-S", "4096", "-C", "20", "-I", "2"]].concat();
                let server = listening(job(&stand, &provider, there, &line));
                job(&stand, &provider, here, &[&line[..], &["-s", SERVER]].concat()).ok();
                server.wait().ok();
            }
        }
    }
}

/// No XRC: that is refused where a QP is made, as by the kernel's driver.
#[test]
fn xrc_is_refused() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    for (provider, why) in Provider::BOTH.iter().zip(["Operation not supported", "Invalid argument"]) {
        let _server = listening(job(&stand, provider, "a", &["rdma_xserver", "-c", "x"]));
        let client = job(&stand, provider, "b", &["rdma_xclient", "-c", "x", "-s", SERVER]).output();
        assert!(!client.status.success() && client.stderr.contains(&format!("rdma_create_ep: {why}")), "{client}");
    }
}
