//! RoCE over real sockets: two devices at two addresses of this machine.

mod wire;

use pvrdma_device::testing::rng::Rng;
use pvrdma_link::socket::Socket;
use pvrdma_link::udp::Udp;
use pvrdma_roce::packet::{Bth, Opcode, Packet};
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::time::{Duration, Instant};
use wire::{LIMIT, everything};

/// Addresses of this machine that no other test has, for this process: the port is one for all.
fn addresses(n: u8) -> [IpAddr; 2] {
    let [_, _, high, low] = std::process::id().to_be_bytes();
    [0, 1].map(|end| IpAddr::V4(Ipv4Addr::new(127, 64 + 2 * n + end, high, low.clamp(1, 254))))
}

fn sockets(n: u8) -> [Socket; 2] {
    addresses(n).map(|address| Socket::V2(Udp::bind(address).expect("a socket")))
}

#[test]
fn devices_reach_each_other_over_udp() {
    everything(sockets(0), 0);
}

#[test]
fn what_is_lost_on_the_way_is_sent_again() {
    everything(sockets(1), 200);
}

fn received(socket: &mut Udp, count: usize) -> Vec<(IpAddr, Opcode, Vec<u8>)> {
    let (mut all, end) = (Vec::new(), Instant::now() + LIMIT);
    while all.len() < count && Instant::now() < end {
        let some = socket.receive(|from, packet| all.push((from, packet.bth.opcode, packet.payload.to_vec())));
        if !some.expect("the socket works") {
            std::thread::sleep(Duration::from_micros(100));
        }
    }
    all
}

/// Packets of all lengths, one by one and in trains, over IPv4 and, where there is one, over IPv6.
fn trains([from, to]: [IpAddr; 2]) {
    let (mut from, mut to) = (Udp::bind(from).expect("a socket"), Udp::bind(to).expect("a socket"));
    let lens = [0, 1, 1024, 1024, 1024, 3, 1024, 1024, 4096, 4096, 4096, 4096, 7, 1024];
    let data = Rng::new(2).bytes(4096);
    for len in lens {
        from.send(to.local(), &Packet::new(Bth::new(Opcode::SendMiddle, 7, 1), &data[..len]));
    }
    from.flush();
    let all = received(&mut to, lens.len());
    let expected: Vec<_> = lens.map(|len| (from.local(), Opcode::SendMiddle, data[..len].to_vec())).into();
    assert!(all == expected, "{} packets", all.len());
    assert_eq!((to.stats().damaged, from.stats().sent, from.stats().unsent), (0, lens.len() as u64, 0));
}

#[test]
fn trains_arrive_in_order() {
    trains(addresses(2));
}

#[test]
fn trains_arrive_over_ipv6() {
    let here = IpAddr::V6(Ipv6Addr::LOCALHOST);
    match Udp::bind(here) {
        // There is one such address of this machine: it talks to itself.
        Ok(mut socket) => {
            let packet = Packet::new(Bth::new(Opcode::SendOnly, 7, 1), b"six");
            for _ in 0..3 {
                socket.send(here, &packet);
            }
            socket.flush();
            assert_eq!(received(&mut socket, 3), vec![(here, Opcode::SendOnly, b"six".to_vec()); 3]);
        }
        Err(error) => {
            let none = [ErrorKind::AddrNotAvailable, ErrorKind::AddrInUse, ErrorKind::Unsupported];
            assert!(none.contains(&error.kind()) || error.raw_os_error() == Some(97), "{error}");
        }
    }
}

/// Where the kernel cuts trains it also joins what comes of one: so many packets are read at a time.
fn joined(from: &mut Udp, to: &mut Udp) -> usize {
    let packet = Packet::new(Bth::new(Opcode::SendMiddle, 7, 1), &[7; 1024]);
    (0..4).for_each(|_| from.send(to.local(), &packet));
    from.flush();
    let (mut most, mut all, end) = (0, 0, Instant::now() + LIMIT);
    while all < 4 && Instant::now() < end {
        let mut some = 0;
        if !to.receive(|_, _| some += 1).expect("the socket works") {
            std::thread::sleep(Duration::from_micros(100));
        }
        (most, all) = (most.max(some), all + some);
    }
    assert_eq!((all, to.stats().damaged), (4, 0));
    most
}

/// An address that nothing may be sent to, here that of all hosts, says nothing of others.
#[test]
fn a_train_without_a_way_does_not_stop_the_others() {
    let [mut from, mut to] = addresses(5).map(|address| Udp::bind(address).expect("a socket"));
    let before = joined(&mut from, &mut to);
    let packet = Packet::new(Bth::new(Opcode::SendMiddle, 7, 1), &[7; 1024]);
    (0..4).for_each(|_| from.send(Ipv4Addr::BROADCAST.into(), &packet));
    from.flush();
    assert_eq!((from.stats().sent, from.stats().unsent), (4, 4));
    assert_eq!(joined(&mut from, &mut to), before);
}

#[test]
fn what_is_damaged_is_not_taken() {
    let [from, to] = addresses(3);
    let mut to = Udp::bind(to).expect("a socket");
    let stranger = UdpSocket::bind((from, 0)).expect("a socket");
    let mut rng = Rng::new(3);
    for len in [0, 3, 4, 12, 16, 100, 1500] {
        stranger.send_to(&rng.bytes(len), (to.local(), 4791)).expect("sent");
    }
    // A good one, from whatever port, behind them.
    let envelope = pvrdma_roce::headers::Envelope {
        source_port: stranger.local_addr().expect("an address").port(),
        ..pvrdma_roce::headers::Envelope::v2(
            &pvrdma_device::handle::gid_of(from),
            &pvrdma_device::handle::gid_of(to.local()),
        )
    };
    let mut good = Vec::new();
    Packet::new(Bth::new(Opcode::SendOnly, 7, 1), b"good").write(&mut good);
    pvrdma_roce::icrc::append(&envelope, &mut good, 0);
    stranger.send_to(&good, (to.local(), 4791)).expect("sent");
    assert_eq!(received(&mut to, 1), [(from, Opcode::SendOnly, b"good".to_vec())]);
    assert_eq!((to.stats().damaged, to.stats().received), (7, 1));
}

#[test]
fn an_address_has_one_socket() {
    let [one, _] = addresses(4);
    let _first = Udp::bind(one).expect("a socket");
    assert_eq!(Udp::bind(one).err().map(|error| error.kind()), Some(ErrorKind::AddrInUse));
}
