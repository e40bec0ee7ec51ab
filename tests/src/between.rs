//! What has to work between a program of host 1 and one of host 2, whatever is between them.

use crate::{Chance, Hosts, Job, Provider, c_program, figures, pair, pair_by_address, try_pair};

/// A server on host 1 and a client on host 2 with the same line, both well.
pub fn ping(hosts: &Hosts, provider: &Provider, line: &str) {
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

/// Each error at both ends (tests/c/apart.c), and all opcodes with many sizes against a model (tests/c/data.c). Both
/// programs go by the GID with this index, or by that which they take without being told.
pub fn every_byte_and_every_error(hosts: &Hosts, provider: &Provider, gid: Option<&str>, chance: &mut Chance) {
    const CASES: usize = 14;
    let gid: Vec<&str> = gid.map_or(Vec::new(), |index| vec!["-g", index]);
    let apart = hosts.copy(&c_program("tests/c/apart.c", &[]));
    let data = hosts.copy(&c_program("tests/c/data.c", &[]));
    let cases = hosts.host(1).job(&apart).ok();
    assert_eq!(cases.lines().count(), CASES, "{cases}");
    let all: String = cases.lines().map(|case| format!("ok {case}\n")).collect();
    let [server, client] = hosts.both(provider, &[&[apart.as_str()], &gid[..], &["all"]].concat());
    let (server, client) = pair(server, client);
    assert_eq!((server.ok(), client.ok()), (all.clone(), all));
    let seed = chance.any().to_string();
    let [server, client] = hosts.both(provider, &[&[data.as_str()], &gid[..], &["-k", "few", "-s", &seed]].concat());
    let (server, client) = pair(server, client);
    let said = server.ok();
    assert_eq!(said, client.ok(), "both sides make the same plan");
    assert!(said.contains("MiB exact"), "{said}");
}

/// Programs of librdmacm: servers on host 1, and clients on host 2 that connect to `address`.
pub fn by_address(hosts: &Hosts, provider: &Provider, address: &str) {
    let job = |number: usize, line: &[&str]| -> Job<'_> {
        hosts.host(number).job(line[0]).provider(provider).args(&line[1..])
    };
    let lines: [(&[&str], &[&str]); 3] = [
        (&["rping", "-s", "-v", "-C", "10"], &["rping", "-c", "-v", "-C", "10", "-a", address]),
        (&["ucmatose", "-c", "8"], &["ucmatose", "-c", "8", "-s", address]),
        (&["udaddy"], &["udaddy", "-s", address]),
    ];
    for (server, client) in lines {
        pair_by_address(job(1, server), job(2, client));
    }
}
