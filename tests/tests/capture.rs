//! `pvrdma run --pcap FILE`: what programs sent, as Wireshark reads it. tshark says what each frame is. It does not
//! look at checksums, so they are made here once more, bit by bit.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use pvrdma_tests::{
    Hosts, Job, Provider, Stand, Trust, User, free_port, machine, pair, pair_by_address, wait_for_listener,
};

/// A frame, as tshark tells it.
#[derive(Debug)]
struct Seen {
    /// Who sent it, and to which QP.
    flow: (String, u32),
    opcode: u8,
    psn: u32,
}

/// Whose answers have no PSN of their own, and whose do.
const ACKNOWLEDGE: u8 = 0x11;
const READ_REQUEST: u8 = 0x0c;
const DATAGRAM: u8 = 0x64;

fn number(text: &str) -> u32 {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.unwrap_or_else(|_| panic!("{text:?} is no number"))
}

fn tshark(file: &Path, arguments: &[&str]) -> String {
    let output = Command::new("tshark").arg("-r").arg(file).arg("-n").args(arguments).output();
    let output = output.expect("tshark is there: `cargo xtask test` installs it");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// The frames of a capture, as its records have them.
fn frames(file: &Path) -> Vec<Vec<u8>> {
    let bytes = std::fs::read(file).expect("a capture");
    let (mut rest, mut frames) = (&bytes[24..], Vec::new());
    while let Some((head, after)) = rest.split_first_chunk::<16>() {
        let len = u32::from_ne_bytes([head[8], head[9], head[10], head[11]]) as usize;
        frames.push(after[..len].to_vec());
        rest = &after[len..];
    }
    frames
}

/// The checksum that the frame should have, as Wireshark shows it (RoCE v2: IBA annex A17.3.3; v1: annex A16).
fn checksum(frame: &[u8]) -> u32 {
    let covered = &frame[14..frame.len() - 4];
    let mut bytes = [&[0xff; 8], covered].concat();
    // What changes on the way counts as ones: in IP and UDP, and the byte with the marks of congestion.
    let (changing, bth): (&[usize], usize) = match (frame[12], frame[13]) {
        (0x08, 0x00) => (&[1, 8, 10, 11, 26, 27], 28),
        (0x86, 0xdd) => (&[1, 2, 3, 7, 46, 47], 48),
        (0x89, 0x15) => (&[1, 2, 3, 7], 40),
        other => panic!("Ethertype {other:02x?}"),
    };
    for at in changing.iter().chain([&(bth + 4)]) {
        bytes[8 + at] = 0xff;
    }
    if bth != 28 {
        bytes[8] |= 0x0f;
    }
    let mut crc = !0u32;
    for byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 != 0 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
        }
    }
    (!crc).swap_bytes()
}

/// All frames of a capture: each is RoCE, whole, and has the right checksum.
fn seen(file: &Path) -> Vec<Seen> {
    let fields = ["eth.src", "infiniband.bth.destqp", "infiniband.bth.opcode", "infiniband.bth.psn"];
    let mut arguments = vec!["-T", "fields", "-E", "separator=;"];
    let marks = ["infiniband.invariant.crc", "_ws.malformed"];
    for field in fields.iter().chain(&marks) {
        arguments.extend(["-e", field]);
    }
    let text = tshark(file, &arguments);
    let frames = frames(file);
    assert_eq!(frames.len(), text.lines().count());
    let line = |(line, frame): (&str, &Vec<u8>)| {
        let words: Vec<&str> = line.split(';').collect();
        let [source, qpn, opcode, psn, crc, malformed] = words[..] else { panic!("{line:?}") };
        assert_eq!((number(crc), malformed), (checksum(frame), ""), "{line}");
        Seen { flow: (source.to_owned(), number(qpn)), opcode: number(opcode) as u8, psn: number(psn) }
    };
    text.lines().zip(&frames).map(line).collect()
}

/// How many frames there are of each opcode.
fn counts(seen: &[Seen]) -> BTreeMap<u8, usize> {
    let mut counts = BTreeMap::new();
    for frame in seen {
        *counts.entry(frame.opcode).or_default() += 1;
    }
    counts
}

/// What is sent to a QP has one PSN after the other, each once; READs have those of their answers.
fn assert_in_order(seen: &[Seen]) {
    let mut last: BTreeMap<&(String, u32), u32> = BTreeMap::new();
    for frame in seen.iter().filter(|frame| ![ACKNOWLEDGE, 0x12, READ_REQUEST].contains(&frame.opcode)) {
        if let Some(before) = last.insert(&frame.flow, frame.psn) {
            assert_eq!(frame.psn, (before + 1) & 0xff_ffff, "{frame:?}");
        }
    }
    assert!(!last.is_empty());
}

/// What a program asked for on the way is in its frames.
#[test]
fn a_traffic_class_is_seen() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("capture");
    let arguments = ["-x", "1", "-n", "5", "-s", "64", "--tclass", "96"];
    let job = |guest| stand.job("ib_write_bw").guest(guest).option("--pcap", &file).args(arguments);
    let (server, client) = pair(job("a"), job("b"));
    server.ok();
    client.ok();
    let text = tshark(&file, &["-T", "fields", "-e", "ip.dsfield", "-e", "infiniband.bth.opcode"]);
    assert!(text.lines().count() >= 10 && text.lines().all(|line| line.starts_with("0x60")), "{text}");
}

/// Runs both ends of a program with one capture and gives its frames.
fn captured(stand: &Stand, program: &str, options: &[(&str, &str)], arguments: &[&str]) -> Vec<Seen> {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("capture");
    let job = |guest| {
        let job = stand.job(program).guest(guest).option("--pcap", &file).args(arguments);
        options.iter().fold(job, |job: Job<'_>, (name, value)| job.option(name, value))
    };
    let (server, client) = pair(job("a"), job("b"));
    server.ok();
    client.ok();
    seen(&file)
}

#[test]
fn wireshark_reads_what_stock_programs_sent() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    for (program, arguments, expected) in [
        (
            "ibv_rc_pingpong",
            &["-g", "1", "-n", "10", "-s", "2500", "-m", "1024"][..],
            &[(0x00, 20), (0x01, 20), (0x02, 20), (ACKNOWLEDGE, 20)][..],
        ),
        (
            "ib_write_bw",
            &["-x", "1", "-n", "10", "-s", "3000", "-m", "1024"],
            &[(0x06, 10), (0x07, 10), (0x08, 10), (ACKNOWLEDGE, 10)],
        ),
        (
            "ib_read_bw",
            &["-x", "1", "-n", "10", "-s", "3000", "-m", "1024"],
            &[(READ_REQUEST, 10), (0x0d, 10), (0x0e, 10), (0x0f, 10)],
        ),
        ("ib_atomic_bw", &["-x", "1", "-n", "10"], &[(0x12, 10), (0x14, 10)]),
        ("ibv_ud_pingpong", &["-g", "1", "-n", "10", "-s", "2048"], &[(DATAGRAM, 20)]),
    ] {
        let frames = captured(&stand, program, &[], arguments);
        assert_eq!(counts(&frames).into_iter().collect::<Vec<_>>(), expected, "{program}");
        assert_in_order(&frames);
    }
}

#[test]
fn a_guest_of_roce_v1_has_frames_of_v1() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let arguments = ["-g", "1", "-n", "5", "-s", "64"];
    let frames = captured(&stand, "ibv_rc_pingpong", &[("--roce", "v1")], &arguments);
    assert_eq!(counts(&frames).into_iter().collect::<Vec<_>>(), [(0x04, 10), (ACKNOWLEDGE, 10)]);
}

/// The handshake of the connection manager is there too, and what rping does then.
#[test]
fn a_connection_by_address_is_seen_from_its_first_message_on() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("capture");
    let job = |guest| stand.job("rping").guest(guest).option("--pcap", &file).args(["-C", "2", "-a", "127.0.0.1"]);
    pair_by_address(job("a").args(["-s"]), job("b").args(["-c"]));
    let counts = counts(&seen(&file));
    for (opcode, least) in [(DATAGRAM, 3), (0x04, 4), (0x0a, 2), (READ_REQUEST, 2), (0x10, 2)] {
        assert!(counts.get(&opcode).is_some_and(|count| *count >= least), "{opcode:#04x}: {counts:?}");
    }
    // Communication management: REQ, REP, RTU. Programs write side by side: it is the times that say what came first.
    let fields = ["frame.time_epoch", "infiniband.mad.attributeid"].map(|field| ["-e", field]);
    let arguments = ["-Y", "infiniband.mad.mgmtclass == 0x07", "-T", "fields"];
    let attributes = tshark(&file, &[&arguments[..], fields.as_flattened()].concat());
    let mut lines: Vec<&str> = attributes.lines().collect();
    lines.sort_unstable();
    let words = lines.iter().filter_map(|line| line.split_whitespace().nth(1));
    let first: Vec<u32> = words.take(3).map(number).collect();
    assert_eq!(first, [0x10, 0x13, 0x14], "{attributes}");
}

/// What a bad network lost is sent again, with the same PSN.
#[test]
fn what_was_lost_is_seen_again() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let faults = [("--fault", "drop=0.1,duplicate=0.2,seed=4")];
    let frames = captured(&stand, "ibv_rc_pingpong", &faults, &["-g", "1", "-n", "50", "-s", "64"]);
    let sends: Vec<_> = frames.iter().filter(|frame| frame.opcode == 0x04).collect();
    let mut different: Vec<_> = sends.iter().map(|frame| (&frame.flow, frame.psn)).collect();
    different.sort();
    different.dedup();
    assert_eq!(different.len(), 100);
    assert!(sends.len() > 110, "{} of 100 sends", sends.len());
}

/// What guests of a host ask of another host is seen by the one that carries it.
#[test]
fn what_leaves_a_host_is_seen_at_its_gateway() {
    let _machine = machine();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("capture");
    let mut hosts = Hosts::apart(2, Trust::Plain, None);
    for number in [1, 2] {
        hosts.host_mut(number).start_with(&["--pcap", file.to_str().expect("a name")]);
    }
    hosts.wait_until_linked();
    let size = ["-n", "10", "-s", "300000"];
    for line in [
        &[&["ibv_rc_pingpong", "-g", "1", "-m", "4096"], &size[..]].concat()[..],
        &[&["ib_read_bw", "-F", "-x", "1", "-m", "4096"], &size[..]].concat(),
        &["ib_atomic_bw", "-F", "-x", "1", "-n", "10"],
        &["ibv_ud_pingpong", "-g", "1", "-n", "10", "-s", "100"],
    ] {
        let [server, client] = hosts.both(&Provider::Ours, line);
        let (server, client) = pair(server, client);
        server.ok();
        client.ok();
    }
    hosts.end();
    let expected = [
        // 74 packets, twice ten times.
        (0x00, 20),
        (0x01, 1440),
        (0x02, 20),
        (READ_REQUEST, 10),
        (0x0d, 10),
        (0x0e, 720),
        (0x0f, 10),
        (ACKNOWLEDGE, 20),
        (0x12, 10),
        (0x14, 10),
        (DATAGRAM, 20),
    ];
    assert_eq!(counts(&seen(&file)).into_iter().collect::<Vec<_>>(), expected);
}

/// Packets are written as they were sent and came, answers and all.
#[test]
fn what_goes_over_a_wire_is_seen_at_its_gateway() {
    let _machine = machine();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("capture");
    let mut hosts = Hosts::on_wire(2, None);
    hosts.host_mut(1).stop();
    hosts.host_mut(1).start_on_wire(&["--pcap", file.to_str().expect("a name")]);
    for line in [
        &["ibv_rc_pingpong", "-g", "2", "-m", "1024", "-n", "10", "-s", "3000"][..],
        &["ib_atomic_bw", "-F", "-x", "2", "-n", "10"],
        &["ibv_ud_pingpong", "-g", "2", "-n", "10", "-s", "100"],
    ] {
        let [server, client] = hosts.both(&Provider::Ours, line);
        let (server, client) = pair(server, client);
        server.ok();
        client.ok();
    }
    hosts.end();
    let counts = counts(&seen(&file));
    // A busy machine may have some of them sent again, and one ACK may tell of several packets.
    for (opcode, least) in
        [(0x00, 20), (0x01, 20), (0x02, 20), (ACKNOWLEDGE, 2), (0x12, 10), (0x14, 10), (DATAGRAM, 20)]
    {
        assert!(counts.get(&opcode).is_some_and(|count| *count >= least), "{opcode:#x} of {counts:?}");
    }
}

#[test]
fn another_file_is_not_written_to() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "somebody's").expect("own file");
    let output = stand.job("true").option("--pcap", file.path()).output();
    assert!(!output.status.success() && output.to_string().contains("no capture"), "{output}");
    assert_eq!(std::fs::read(file.path()).expect("own file"), b"somebody's");
}

/// A program may lower the limit on the length of its files at any time. What is written for its user then ends, with a
/// word; a signal, by which it would end too, it does not get.
#[test]
fn a_limit_that_comes_later_ends_what_is_written_and_not_the_program() {
    const LIMIT: u64 = 4096;
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let folder = tempfile::tempdir().expect("a folder");
    let [capture, trace] = ["capture", "trace"].map(|name| folder.path().join(name));
    let port = free_port();
    let arguments = ["-g", "1", "-n", "100", "-s", "64", "-p", &port.to_string()];
    let server = stand.job("ibv_rc_pingpong").guest("a").option("--pcap", &capture).option("--trace", &trace);
    let mut server = server.args(arguments).spawn();
    wait_for_listener(&mut server, port);
    let pid = server.program_pid("ibv_rc_pingpong").to_string();
    let limited = Command::new("prlimit").args(["--pid", &pid, &format!("--fsize={LIMIT}")]).status();
    assert!(limited.expect("prlimit is there").success());
    stand.job("ibv_rc_pingpong").guest("b").args(arguments).args(["127.0.0.1"]).ok();
    let output = server.wait();
    assert!(output.status.success(), "{output}");
    for ended in ["the capture ends here", "the trace ends here"] {
        assert_eq!(output.stderr.matches(ended).count(), 1, "{output}");
    }
    assert!(std::fs::metadata(&capture).expect("a file").len() <= LIMIT);
    assert!(!seen(&capture).is_empty(), "and all of its records are whole");
}
