//! RoCE v1 between two network devices: the ends of a veth pair, each in a network namespace of its own, all of it in a
//! user namespace where no privilege is needed. A machine that allows none is told of.

mod wire;

use pvrdma_device::handle::gid_of;
use pvrdma_device::testing::rng::Rng;
use pvrdma_link::ethernet::{Ethernet, link_local, open};
use pvrdma_link::socket::Socket;
use pvrdma_roce::frame::{Frame, Mac};
use pvrdma_roce::headers::{ETHERTYPE_V1, Envelope};
use pvrdma_roce::packet::{Bth, MTU_MAX, Opcode, Packet};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::IpAddr;
use std::process::Command;
use std::time::{Duration, Instant};
use wire::{LIMIT, everything};

/// Set where a test runs in its namespace.
const INSIDE: &str = "PVRDMA_TEST_INSIDE";
/// All frames (linux/if_ether.h: ETH_P_ALL).
const ALL: u16 = 3;

/// Under CI (the variable `CI` is set) it is a failure.
fn not_run(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "NOT RUN: {why}. On CI everything must run.");
    // Written past the test harness, which keeps what a passing test prints to itself.
    let _ = writeln!(std::io::stderr(), "NOT RUN: RoCE v1 between network devices: {why}");
}

/// Runs the test of this name once more, in a namespace. True: this is that run.
fn inside(name: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let unshare = |program: &std::ffi::OsStr, arguments: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--net", "--"]).arg(program).args(arguments);
        command.env(INSIDE, "1").output()
    };
    match unshare("ip".as_ref(), &["link", "add", "red", "type", "veth", "peer", "name", "blue"]) {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            not_run(String::from_utf8_lossy(&output.stderr).trim());
            return false;
        }
        Err(error) => {
            not_run(&format!("unshare: {error}"));
            return false;
        }
    }
    let program = std::env::current_exe().expect("this program");
    let output = unshare(program.as_os_str(), &["--exact", name, "--nocapture"]).expect("it was just there");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{out}{err}");
    assert!(output.status.success() && out.contains("1 passed"), "{name} failed in its namespace");
    false
}

/// What it says.
fn shell(script: &str) -> String {
    let output = Command::new("sh").args(["-euc", script]).output().expect("a shell");
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// What is at one end of the wire: here `red`, 10.82.0.1, and at the other end `blue`, 10.82.0.2, which `make` gets to
/// see in its own namespace.
fn at_both_ends<T: Send>(make: impl Fn(&'static str) -> T + Sync) -> [T; 2] {
    shell("ip link add red type veth peer name blue; ip address add 10.82.0.1/24 dev red; ip link set red up");
    let there = std::thread::scope(|scope| {
        let thread = || {
            // SAFETY: no pointers. From here on this thread has a network of its own.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "{}", std::io::Error::last_os_error());
            // SAFETY: no preconditions.
            let thread = unsafe { libc::gettid() };
            // `nsenter` brings `ip` back to where the device is.
            let home = format!("nsenter --net=/proc/{}/ns/net --", std::process::id());
            shell(&format!("{home} ip link set blue netns {thread}"));
            shell("ip address add 10.82.0.2/24 dev blue; ip link set blue up");
            make("blue")
        };
        scope.spawn(thread).join().expect("the other end")
    });
    // Both ends are up: frames pass.
    until(|| shell("ip -o link show red").contains("LOWER_UP"));
    [make("red"), there]
}

fn sockets(addresses: [Option<&str>; 2]) -> [Ethernet; 2] {
    let address = |device| addresses[usize::from(device == "blue")].map(|text| text.parse().expect("an address"));
    at_both_ends(|device| Ethernet::bind(device, address(device)).expect("a socket"))
}

fn until(mut done: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < end);
        std::thread::sleep(Duration::from_micros(100));
    }
}

fn received(socket: &mut Ethernet, count: usize) -> Vec<(IpAddr, Opcode, Vec<u8>)> {
    let mut all = Vec::new();
    until(|| {
        while socket
            .receive(|from, packet| all.push((from, packet.bth.opcode, packet.payload.to_vec())))
            .expect("works")
        {}
        all.len() >= count
    });
    all
}

#[test]
fn devices_reach_each_other_over_ethernet() {
    if inside("devices_reach_each_other_over_ethernet") {
        everything(sockets([None, None]).map(Socket::V1), 0);
    }
}

#[test]
fn what_is_lost_on_the_way_is_sent_again() {
    if inside("what_is_lost_on_the_way_is_sent_again") {
        everything(sockets([Some("10.82.0.1"), Some("10.82.0.2")]).map(Socket::V1), 200);
    }
}

/// Packets of all lengths, which are longer than what Ethernet carries where that is so.
#[test]
fn packets_arrive_in_order_and_whole() {
    if inside("packets_arrive_in_order_and_whole") {
        let [mut red, mut blue] = sockets([None, None]);
        assert_eq!(red.local(), link_local(red.mac()));
        let data = Rng::new(2).bytes(MTU_MAX);
        let lens = [0, 1, 2, 3, 1024, 1025, 7];
        for len in lens {
            red.send(blue.local(), &Packet::new(Bth::new(Opcode::SendMiddle, 7, 1), &data[..len]));
        }
        red.flush();
        let all = received(&mut blue, lens.len());
        assert_eq!(all, lens.map(|len| (red.local(), Opcode::SendMiddle, data[..len].to_vec())));
        assert_eq!((blue.stats().received, blue.stats().damaged), (lens.len() as u64, 0));
        // Longer than the device's MTU: it is lost, and nothing else is.
        red.send(blue.local(), &Packet::new(Bth::new(Opcode::SendMiddle, 7, 1), &data));
        red.send(blue.local(), &Packet::new(Bth::new(Opcode::SendOnly, 7, 1), b"next"));
        assert_eq!(received(&mut blue, 1), [(red.local(), Opcode::SendOnly, b"next".to_vec())]);
        assert_eq!((red.stats().sent, red.stats().unsent), (lens.len() as u64 + 1, 1));
    }
}

/// A GID that says no MAC is looked for by the kernel, as it looks for neighbours; whoever was heard is known.
#[test]
fn a_peer_is_found_by_the_kernel_or_because_it_was_heard() {
    if inside("a_peer_is_found_by_the_kernel_or_because_it_was_heard") {
        let packet = Packet::new(Bth::new(Opcode::SendOnly, 7, 1), b"hello");
        // No address of anybody's: the kernel does not find it.
        let [mut red, mut blue] = sockets([Some("10.82.0.1"), Some("2001:db8::2")]);
        let there: IpAddr = [10, 82, 0, 2].into();
        let nobody: IpAddr = [10, 82, 0, 77].into();
        for dest in [nobody, blue.local()] {
            red.send(dest, &packet);
        }
        assert_eq!((red.stats().sent, red.stats().unsent), (0, 2));
        // The first one finds nobody, and has the kernel ask.
        until(|| {
            red.send(there, &packet);
            red.stats().sent == 1
        });
        // That is an address of the device, and not of the socket.
        assert!(!blue.receive(|_, _| panic!("for another GID")).expect("works") || blue.stats().received == 0);
        until(|| {
            blue.send(red.local(), &packet);
            blue.stats().sent == 1
        });
        assert_eq!(received(&mut red, 1), [(blue.local(), Opcode::SendOnly, b"hello".to_vec())]);
        red.send(blue.local(), &packet);
        assert_eq!(received(&mut blue, 1), [(red.local(), Opcode::SendOnly, b"hello".to_vec())]);
    }
}

/// What the kernel was told long ago is looked at again by it, since somebody relies on it.
#[test]
fn the_kernel_looks_again_for_a_peer_that_is_used() {
    if inside("the_kernel_looks_again_for_a_peer_that_is_used") {
        let [mut red, blue] = sockets([Some("10.82.0.1"), Some("10.82.0.2")]);
        let mac = blue.mac().map(|byte| format!("{byte:02x}")).join(":");
        shell(&format!("ip neigh replace 10.82.0.2 lladdr {mac} dev red nud stale"));
        red.send(blue.local(), &Packet::new(Bth::new(Opcode::SendOnly, 7, 1), b"hello"));
        assert_eq!(red.stats().sent, 1);
        until(|| !shell("ip neigh show 10.82.0.2").contains("STALE"));
    }
}

/// A frame, before something is done to it.
fn frame(source: (Mac, IpAddr), dest: (Mac, IpAddr), payload: &[u8]) -> Vec<u8> {
    let packet = Packet::new(Bth::new(Opcode::SendOnly, 7, 1), payload);
    let envelope = Envelope::v1(&gid_of(source.1), &gid_of(dest.1));
    let mut bytes = Vec::new();
    Frame { dest: dest.0, source: source.0, envelope, packet }.write(&mut bytes);
    bytes
}

#[test]
fn only_good_frames_for_this_address_are_taken() {
    if inside("only_good_frames_for_this_address_are_taken") {
        let [(_, mut raw, there), (blue, _, here)] = at_both_ends(|device| {
            let (raw, _, mac) = open(device, ETHERTYPE_V1).expect("a socket");
            (Some(Ethernet::bind(device, None).expect("a socket")), raw, mac)
        });
        let mut blue = blue.expect("a socket");
        let (red, to) = ((there, link_local(there)), (here, link_local(here)));
        let good = frame(red, to, b"good");
        let changed = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            bytes
        };
        // Of these nothing is heard.
        for other in [
            frame(red, ([0xff; 6], to.1), b"to all"),
            frame(red, ([2, 0, 0, 0, 0, 9], to.1), b"to another adapter"),
            frame(red, (here, [10, 82, 0, 2].into()), b"to another address"),
            changed(12, 0x08),
        ] {
            raw.write_all(&other).expect("sent");
        }
        // These are no packets.
        let mut rng = Rng::new(3);
        let random = [&good[..14], &rng.bytes(100)].concat();
        let damaged =
            [changed(20, 5), changed(54, 0x1f), changed(60, 0xff), good[..40].to_vec(), good[..14].to_vec(), random];
        for bytes in &damaged {
            raw.write_all(bytes).expect("sent");
        }
        raw.write_all(&good).expect("sent");
        assert_eq!(received(&mut blue, 1), [(red.1, Opcode::SendOnly, b"good".to_vec())]);
        assert_eq!((blue.stats().received, blue.stats().damaged), (1, damaged.len() as u64));
    }
}

/// Whoever sends frames from a group's address, or in the name of a GID that says its MAC, gets no answers for it.
#[test]
fn an_answer_goes_to_one_adapter() {
    if inside("an_answer_goes_to_one_adapter") {
        let [(_, mut raw, there), (blue, _, here)] = at_both_ends(|device| {
            let (raw, _, mac) = open(device, ETHERTYPE_V1).expect("a socket");
            (Some(Ethernet::bind(device, None).expect("a socket")), raw, mac)
        });
        let mut blue = blue.expect("a socket");
        let to = (here, blue.local());
        let group: IpAddr = [192, 0, 2, 1].into();
        raw.write_all(&frame(([0x33; 6], group), to, b"group")).expect("sent");
        let other = [2, 0, 0, 0, 0, 9];
        raw.write_all(&frame((there, link_local(other)), to, b"false")).expect("sent");
        assert_eq!(received(&mut blue, 2).len(), 2);
        let packet = Packet::new(Bth::new(Opcode::SendOnly, 7, 1), b"answer");
        blue.send(group, &packet);
        blue.send(link_local(other), &packet);
        assert_eq!((blue.stats().sent, blue.stats().unsent), (1, 1));
        let mut input = [0; 256];
        until(|| match raw.read(&mut input) {
            Ok(len) => {
                assert_eq!(input[..6], other, "{len} bytes");
                true
            }
            Err(error) => error.kind() != ErrorKind::WouldBlock,
        });
    }
}

/// A device that goes down, and comes up again, is a wire that was cut for a while.
#[test]
fn a_device_that_was_down_carries_frames_again() {
    if inside("a_device_that_was_down_carries_frames_again") {
        let [mut red, mut blue] = sockets([None, None]);
        let packet = Packet::new(Bth::new(Opcode::SendOnly, 7, 1), b"hello");
        shell("ip link set red down");
        red.send(blue.local(), &packet);
        assert_eq!(red.stats().unsent, 1);
        while red.receive(|_, _| panic!("nobody sends")).expect("the socket lives") {}
        shell("ip link set red up");
        until(|| {
            red.send(blue.local(), &packet);
            blue.receive(|_, _| {}).expect("the socket lives");
            blue.stats().received > 0
        });
    }
}

/// What another program makes of the frames.
#[test]
fn wireshark_reads_the_frames() {
    if inside("wireshark_reads_the_frames") {
        if Command::new("tshark").arg("--version").output().is_err() {
            return not_run("no tshark");
        }
        let [(red, _), (blue, sniffer)] = at_both_ends(|device| {
            (Ethernet::bind(device, None).expect("a socket"), open(device, ALL).expect("a socket").0)
        });
        let (mut red, mut sniffer) = (red, sniffer);
        let bytes = Rng::new(4).bytes(100);
        for (n, opcode) in [Opcode::SendFirst, Opcode::SendMiddle, Opcode::SendLast].into_iter().enumerate() {
            red.send(blue.local(), &Packet::new(Bth::new(opcode, 0x1234, 5 + n as u32), &bytes[n..]));
        }
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("frames.pcap");
        capture(&mut sniffer, 3, File::create(&file).expect("a file"));
        let fields = ["eth.src", "eth.dst", "eth.type", "infiniband.grh.sgid", "infiniband.grh.dgid"];
        let more = ["infiniband.bth.destqp", "infiniband.bth.opcode", "infiniband.bth.psn", "_ws.malformed"];
        let mut tshark = Command::new("tshark");
        tshark.arg("-r").arg(&file).args(["-n", "-T", "fields", "-E", "separator=;"]);
        for field in fields.iter().chain(&more) {
            tshark.args(["-e", field]);
        }
        let output = tshark.output().expect("tshark");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = |mac: Mac| mac.map(|byte| format!("{byte:02x}")).join(":");
        let line = |n: u32| {
            let (from, to) = (text(red.mac()), text(blue.mac()));
            format!("{from};{to};0x8915;{};{};0x001234;{n};{};\n", red.local(), blue.local(), 5 + n)
        };
        assert_eq!(String::from_utf8_lossy(&output.stdout), (0..3).map(line).collect::<String>());
    }
}

/// Writes so many frames of RoCE v1 as a capture file.
fn capture(from: &mut File, count: usize, mut file: File) {
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>();
    file.write_all(&words(&[0xa1b2_c3d4, 4 << 16 | 2, 0, 0, 0x4_0000, 1])).expect("a file");
    let (mut input, mut seen) = ([0; 4096], 0);
    until(|| {
        while let Ok(len) = from.read(&mut input) {
            if input[12..14] == ETHERTYPE_V1.to_be_bytes() {
                file.write_all(&words(&[0, 0, len as u32, len as u32])).expect("a file");
                file.write_all(&input[..len]).expect("a file");
                seen += 1;
            }
        }
        seen >= count
    });
}
