//! RoCE on the wire: guests of this host and whoever speaks RoCE, over one socket: v2 by UDP, or v1 on Ethernet.
//!
//! All guests are known there by one address, this host's; the QP number tells whose a packet is. What of a QP has to
//! be known for that lies in the fabric, published by its process, and is looked up for each packet and each request:
//! nothing is kept of a QP but what the two halves of its connection remember (`pvrdma_roce::rc`), and they may forget.
//!
//! | file | |
//! |---|---|
//! | `wire/asking.rs` | requests of guests, until they are answered |
//! | `wire/serving.rs` | what peers ask of guests |

mod asking;
mod serving;

use super::inbox::FromGuest;
use crate::ethernet::{self, Ethernet};
use crate::outbound::Requested;
use crate::socket::{Socket, WireReport};
use crate::udp::{self, Udp};
use anyhow::{Context, bail};
use asking::Asking;
use mio::unix::SourceFd;
use mio::{Interest, Registry};
use pvrdma_capture::recorder::Recorder;
use pvrdma_device::guest::{self, Guest, Roce};
use pvrdma_device::handle::{Gid, Psn, QpHandle, Qpn};
use pvrdma_device::rings::wqe::{Grh, QpKind};
use pvrdma_device::transport::{Answer, Endpoint, Op, Request, Token};
use pvrdma_fabric::segment::{GSI, Route};
use pvrdma_fabric::transport::HostTransport;
use pvrdma_roce::message;
use pvrdma_roce::packet::{DEFAULT_PKEY, Packet};
use serving::Serving;
use std::collections::{HashSet, VecDeque};
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

/// What a packet has beside its payload at most: GRH, UDP, BTH and the longest headers behind it, checksum. As Linux
/// counts, so that both ends come to the same path MTU.
const HEADERS: u32 = 96;
/// How often one turn reads the socket before other things are done. Each time brings 64 KiB at most.
const READS: usize = 16;
/// Turns of QPs to send, each of some 64 KiB, before other things are done.
const SENDS: usize = 16;
/// Bytes that a responder sends in its turn.
const TURN: usize = 64 << 10;
/// A partition key without the bit that says who is a full member.
const PARTITION: u16 = 0x7fff;
/// What a datagram's header says of its way where nobody told: as a host sends by itself.
const HOPS: u8 = 64;

/// Who wants to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Side {
    Asks(Qpn),
    Serves(Qpn),
}

/// QPs that want to send, in turns.
#[derive(Default)]
struct Turns {
    queue: VecDeque<Side>,
    queued: HashSet<Side>,
}

impl Turns {
    fn add(&mut self, side: Side) {
        if self.queued.insert(side) {
            self.queue.push_back(side);
        }
    }

    fn next(&mut self) -> Option<Side> {
        let side = self.queue.pop_front()?;
        self.queued.remove(&side);
        Some(side)
    }
}

/// See the module text.
pub struct Wire {
    transport: Arc<HostTransport>,
    recorder: Option<Arc<Recorder>>,
    socket: Socket,
    roce: Roce,
    gid: Gid,
    mtu: u32,
    /// The socket may have something.
    readable: bool,
    asking: Asking,
    serving: Serving,
    managers: Managers,
    turns: Turns,
}

/// Where a host speaks RoCE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Port {
    /// v2, at an address of this host.
    Address(IpAddr),
    /// v1, at a network device.
    Device(String),
}

/// A port that is open, and the path MTU that its network carries.
pub struct Opened {
    socket: Socket,
    mtu: u32,
}

/// Opens a port of RoCE.
pub fn open(port: &Port, registry: &Registry, token: mio::Token) -> anyhow::Result<Opened> {
    let socket = match port {
        Port::Address(address) => Socket::V2(open_v2(*address)?),
        Port::Device(name) => Socket::V1(open_v1(name)?),
    };
    let interface = interface_of(socket.local())?;
    let mtu = path_mtu(interface.mtu);
    if mtu < 256 {
        bail!("{} carries {} bytes at a time, which is too little for RoCE", interface.name, interface.mtu);
    }
    registry.register(&mut SourceFd(&socket.as_raw_fd()), token, Interest::READABLE)?;
    Ok(Opened { socket, mtu })
}

fn open_v2(address: IpAddr) -> anyhow::Result<Udp> {
    Udp::bind(address).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => anyhow::anyhow!(
            "somebody has UDP port 4791 of {address} already: another pvrdma link, or Linux's rdma_rxe (`rdma link`)"
        ),
        io::ErrorKind::AddrNotAvailable => anyhow::anyhow!("{address} is no address of this machine"),
        _ => anyhow::Error::new(error).context(format!("cannot have UDP port 4791 of {address}")),
    })
}

/// By the device's first IPv4 address, or else by the link-local one that says its MAC.
fn open_v1(name: &str) -> anyhow::Result<Ethernet> {
    let is_usable = |address: &IpAddr| Guest::of(&udp::gid(*address)).is_none();
    let all = nix::ifaddrs::getifaddrs()?.filter(|of| of.interface_name == name);
    let mut of_ipv4 = all.filter_map(|of| of.address?.as_sockaddr_in().map(|of| IpAddr::V4(of.ip())));
    let socket = Ethernet::bind(name, of_ipv4.find(is_usable)).map_err(|error| match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            anyhow::anyhow!("RoCE v1 at {name} takes the capability CAP_NET_RAW: setcap(8), or root")
        }
        Some(libc::ENODEV) => anyhow::anyhow!("{name} is neither an address nor a network device of this machine"),
        _ => anyhow::Error::new(error).context(format!("cannot have the frames of RoCE v1 at {name}")),
    })?;
    forget_capabilities().context("cannot give up the capability that RoCE v1 took")?;
    let local = socket.local();
    if interface_of(local).is_ok_and(|of| of.name == name) {
        return Ok(socket);
    }
    bail!("{name} has no IPv4 address, and not the link-local one of its MAC ({local}) either");
}

/// What a user's program was given for its socket alone is given up when that is open: nobody may copy from or to the
/// memory of a process that may do more than himself, so guests could not. Root's guests are root's.
fn forget_capabilities() -> io::Result<()> {
    // SAFETY: no preconditions.
    if unsafe { libc::geteuid() } == 0 {
        return Ok(());
    }
    // capset(2), version 3: of this thread, the only one yet; effective, permitted and inheritable ones, twice.
    let (header, none) = ([0x2008_0522_u32, 0], [0_u32; 6]);
    // SAFETY: the kernel reads two words and six, which outlive the call.
    if unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: no pointers.
    match unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The largest path MTU that a network carries.
fn path_mtu(bytes: u32) -> u32 {
    let room = bytes.saturating_sub(HEADERS).min(4096);
    room.checked_ilog2().map_or(0, |log| 1 << log)
}

/// A network interface.
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Bytes that it carries at a time.
    pub mtu: u32,
}

/// The interface that has an address.
pub fn interface_of(address: IpAddr) -> anyhow::Result<Interface> {
    let has_it = |of: &nix::ifaddrs::InterfaceAddress| {
        let found = of.address.as_ref();
        let v4 = found.and_then(|of| of.as_sockaddr_in()).map(|of| IpAddr::V4(of.ip()));
        let v6 = || found.and_then(|of| of.as_sockaddr_in6()).map(|of| IpAddr::V6(of.ip()));
        let is_all_of_it = address.is_loopback() && v4.is_some_and(|of| of.is_loopback());
        v4.or_else(v6) == Some(address) || address.is_ipv4() && is_all_of_it
    };
    let name = nix::ifaddrs::getifaddrs()?.find(has_it).map(|of| of.interface_name);
    let name = name.with_context(|| format!("{address} is no address of this machine"))?;
    Ok(Interface { mtu: ethernet::mtu_of(&name).with_context(|| name.clone())?, name })
}

impl Wire {
    /// One that has carried nothing.
    pub fn new(opened: Opened, transport: Arc<HostTransport>, recorder: Option<Arc<Recorder>>) -> Wire {
        let Opened { socket, mtu } = opened;
        let gid = udp::gid(socket.local());
        let roce = if matches!(socket, Socket::V1(_)) { Roce::V1 } else { Roce::V2 };
        Wire {
            asking: Asking::new(transport.clone()),
            serving: Serving::new(transport.clone()),
            transport,
            recorder,
            socket,
            roce,
            gid,
            mtu,
            readable: true,
            managers: Managers::default(),
            turns: Turns::default(),
        }
    }

    /// What guests have to know of it.
    pub fn known(&self) -> guest::Wire {
        guest::Wire { roce: self.roce, gid: self.gid, mtu: self.mtu }
    }

    pub fn report(&self) -> WireReport {
        WireReport { roce: self.roce, address: self.socket.local(), mtu: self.mtu, packets: self.socket.stats() }
    }

    /// Requests of guests that have no answer.
    pub fn asked(&self) -> usize {
        self.asking.len()
    }

    /// Pieces that guests have.
    pub fn serves(&self) -> usize {
        self.serving.len()
    }

    /// The poll says that something has come.
    pub fn is_ready(&mut self) {
        self.readable = true;
    }

    // ---- from guests ---------------------------------------------------------------------------

    /// A guest wants this.
    pub fn ask(&mut self, requested: FromGuest) {
        let qpn = requested.taken.request.source.qpn;
        if requested.taken.request.source.gid != self.gid {
            // Nobody there could answer to a guest's own address.
            return requested.answer(Answer::Silence);
        }
        self.asking.ask(requested);
        self.turns.add(Side::Asks(qpn));
    }

    /// A guest sends a datagram. One that cannot leave is lost.
    pub fn send_datagram(&mut self, request: &Request, payload: &[u8]) {
        let dest = udp::address(request.dest.gid);
        if request.source.gid == self.gid && payload.len() <= self.mtu as usize && is_somebodys(dest) {
            let packet = message::packet(request, 0, payload);
            send(&mut self.socket, self.recorder.as_deref(), self.gid, dest, &packet);
        }
    }

    /// A guest has answered to what is asked of it. `false`: it was no such thing.
    pub fn answered(&mut self, token: Token, answer: Answer) -> bool {
        let Some(qpn) = self.serving.answered(token, answer) else { return serving::is_ours(token) };
        self.turns.add(Side::Serves(qpn));
        true
    }

    // ---- turns ---------------------------------------------------------------------------------

    /// Does what can be done. `true`: there is more to do at once.
    pub fn turn(&mut self, now: Duration) -> bool {
        let mut more = self.receive(now);
        for qpn in self.asking.expire(now) {
            self.turns.add(Side::Asks(qpn));
        }
        for qpn in self.serving.hand_over(now) {
            self.turns.add(Side::Serves(qpn));
        }
        more |= self.send(now);
        self.socket.flush();
        more
    }

    /// Takes packets in.
    fn receive(&mut self, now: Duration) -> bool {
        let Wire { transport, recorder, socket, gid, asking, serving, managers, turns, .. } = self;
        for _ in 0..READS {
            if !self.readable {
                return false;
            }
            let received = socket.receive(|source, packet| {
                let source = udp::gid(source);
                if let Some(recorder) = recorder {
                    recorder.packet(&source, gid, packet);
                }
                if packet.bth.pkey & PARTITION != DEFAULT_PKEY & PARTITION || source == *gid {
                    return;
                }
                // A guest's address is no stranger's, though he can forge it: guests come by memory, or by links.
                if transport.segment().route(&source) != Route::Wire {
                    return;
                }
                if packet.bth.opcode.is_datagram() {
                    return datagram(transport, managers, now, (&source, gid), packet);
                }
                let qpn = Qpn(packet.bth.dest_qpn);
                let known = transport.segment().published(qpn);
                let Some(known) = known.filter(|known| known.kind == QpKind::Rc && known.peer.gid == source) else {
                    return;
                };
                if !packet.bth.opcode.is_response() {
                    serving.receive(Endpoint { gid: *gid, qpn }, &known, packet);
                } else if asking.receive(now, qpn, packet) {
                    turns.add(Side::Asks(qpn));
                }
            });
            // What a socket has to say that is no packet, RoCE finds out by itself.
            self.readable = received.unwrap_or(false);
        }
        self.readable
    }

    /// Sends for each who has something, in turns.
    fn send(&mut self, now: Duration) -> bool {
        let Wire { recorder, socket, gid, asking, serving, turns, .. } = self;
        for _ in 0..SENDS {
            let Some(side) = turns.next() else { return false };
            let mut out = |dest: &Gid, packet: &Packet<'_>| {
                send(socket, recorder.as_deref(), *gid, udp::address(*dest), packet);
            };
            let more = match side {
                Side::Asks(qpn) => asking.transmit(now, qpn, &mut out),
                Side::Serves(qpn) => serving.transmit(qpn, TURN, &mut out),
            };
            if more {
                turns.add(side);
            }
        }
        !turns.queue.is_empty()
    }

    /// Now and then: nobody waits for good.
    pub fn look(&mut self, now: Duration) {
        self.asking.forget();
        for qpn in self.serving.look(now) {
            self.turns.add(Side::Serves(qpn));
        }
    }

    /// When `turn` has something to do, at the latest.
    pub fn deadline(&self) -> Option<Duration> {
        self.asking.deadline()
    }

    /// Somebody had no room, and is to be asked again.
    pub fn is_stuck(&self) -> bool {
        self.serving.is_stuck()
    }

    /// Nobody waits for anything.
    pub fn is_idle(&self) -> bool {
        self.asking.len() == 0 && self.serving.len() == 0
    }
}

/// Whether an address is that of one host.
fn is_somebodys(address: IpAddr) -> bool {
    let is_all = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    !address.is_unspecified() && !address.is_multicast() && !is_all
}

fn send(socket: &mut Socket, recorder: Option<&Recorder>, source: Gid, dest: IpAddr, packet: &Packet<'_>) {
    if let Some(recorder) = recorder {
        recorder.packet(&source, &udp::gid(dest), packet);
    }
    socket.send(dest, packet);
}

/// Whether this is a message of a connection manager (IBA vol. 1, 13.4.3 and 16.7): all programs of the host that have
/// one would look at it.
fn is_for_managers(qkey: u32, payload: &[u8]) -> bool {
    const QKEY: u32 = 0x8001_0000;
    const LEN: usize = 256;
    // Base version, class, class version.
    const CM: [u8; 3] = [1, 7, 2];
    qkey == QKEY && payload.len() == LEN && payload.starts_with(&CM)
}

/// How many messages connection managers have to look at: each costs all programs that have one. Who asks again is
/// heard later.
#[derive(Default)]
struct Managers {
    /// Messages that there is room for, and since when.
    left: f64,
    since: Duration,
}

impl Managers {
    /// In a second, and at once.
    const RATE: f64 = 4000.0;
    const BURST: f64 = 1000.0;

    fn may_hear(&mut self, now: Duration) -> bool {
        let passed = now.saturating_sub(self.since).as_secs_f64();
        // At first there is room for all.
        let before = if self.since == Duration::ZERO { Self::BURST } else { self.left };
        self.left = (before + passed * Self::RATE).min(Self::BURST);
        self.since = now.max(Duration::from_nanos(1));
        let may = self.left >= 1.0;
        self.left -= f64::from(u8::from(may));
        may
    }
}

/// A datagram has come. One that its QP has no room for is lost, as at a switch.
fn datagram(
    transport: &HostTransport,
    managers: &mut Managers,
    now: Duration,
    (source, own): (&Gid, &Gid),
    packet: &Packet<'_>,
) {
    let Some(deth) = packet.deth else { return };
    let dest = Endpoint { gid: *own, qpn: Qpn(packet.bth.dest_qpn) };
    let is_there = match dest.qpn.0 {
        GSI => is_for_managers(deth.qkey, packet.payload) && managers.may_hear(now),
        _ => transport.segment().published(dest.qpn).is_some_and(|known| known.kind == QpKind::Ud),
    };
    if !is_there {
        return;
    }
    let psn = Psn::new(packet.bth.psn);
    let grh = Grh { hop_limit: HOPS, ..Grh::default() };
    let request = Request {
        token: Token { qp: QpHandle(0), epoch: 0, psn },
        source: Endpoint { gid: *source, qpn: Qpn(deth.source_qpn) },
        dest,
        psn,
        packets: 1,
        op: Op::Datagram { qkey: deth.qkey, imm: packet.imm.map(message::immediate), grh },
        len: packet.payload.len() as u64,
        solicited: packet.bth.solicited,
        alone: false,
    };
    transport.submit_datagram(&request, packet.payload);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_carries_what_linux_says_it_does() {
        let all =
            [(1500, 1024), (9000, 4096), (65536, 4096), (2144, 2048), (2143, 1024), (352, 256), (351, 128), (0, 0)];
        for (bytes, mtu) in all {
            assert_eq!(path_mtu(bytes), mtu, "{bytes}");
        }
    }

    #[test]
    fn an_address_is_on_an_interface_of_this_machine() {
        assert_eq!(interface_of("127.0.0.1".parse().unwrap()).unwrap().name, "lo");
        assert_eq!(interface_of("127.9.8.7".parse().unwrap()).unwrap().name, "lo");
        assert!(interface_of("192.0.2.1".parse().unwrap()).is_err());
    }

    #[test]
    fn managers_hear_of_messages_for_them_and_of_so_many() {
        let mut mad = [0; 256];
        mad[..3].copy_from_slice(&[1, 7, 2]);
        assert!(is_for_managers(0x8001_0000, &mad));
        assert!(!is_for_managers(0x8001_0001, &mad) && !is_for_managers(0x8001_0000, &mad[..255]));
        // Of the subnet's manager.
        mad[1] = 0x81;
        assert!(!is_for_managers(0x8001_0000, &mad));
        let mut managers = Managers::default();
        let mut heard = |at: u64| (0..5000).filter(|_| managers.may_hear(Duration::from_millis(at))).count();
        assert_eq!([heard(0), heard(100), heard(100), heard(10_000)], [1000, 400, 0, 1000]);
    }

    #[test]
    fn datagrams_go_to_single_hosts_alone() {
        for (address, is_one) in [("10.0.0.1", true), ("2001:db8::1", true), ("224.0.0.1", false), ("ff02::1", false)] {
            assert_eq!(is_somebodys(address.parse().unwrap()), is_one, "{address}");
        }
        assert!(!is_somebodys("255.255.255.255".parse().unwrap()) && !is_somebodys("::".parse().unwrap()));
    }
}
