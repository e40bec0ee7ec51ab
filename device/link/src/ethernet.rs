//! RoCE v1 over one network device: frames of Ethertype 0x8915, a GRH in front of each packet (IBA annex A16). It takes
//! CAP_NET_RAW, and has the face of `udp.rs`: peers are addresses, which are their GIDs. What the packets say is for
//! whoever owns the QPs.
//!
//! A frame needs the MAC of its peer. A link-local GID made of a MAC says it itself. Others are in the kernel's
//! neighbour table (`neighbours.rs`), or have been heard of: who has sent us a good frame gets the answer where it came
//! from. There are no routers: whoever is not on this network is not reached.

use crate::neighbours::Neighbours;
use crate::udp::Stats;
use pvrdma_device::guest::mac_of;
use pvrdma_device::handle::{address_of, gid_of};
use pvrdma_roce::frame::{BadFrame, Frame, Mac};
use pvrdma_roce::headers::{ETHERTYPE_V1, Envelope, Gid, Network};
use pvrdma_roce::packet::Packet;
use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

/// What the socket is to hold. It gets less where `net.core.rmem_max` says so.
const BUFFER: libc::c_int = 4 << 20;
/// No network device has longer frames.
const LONGEST: usize = 64 << 10;
/// Frames that are read before others have their turn.
const BATCH: usize = 64;
/// What the kernel has said of a peer is asked again after this time.
const FRESH: Duration = Duration::from_secs(1);
/// Peers that are kept in mind. Whoever sends good frames of many GIDs has those forgotten that are there.
const PEERS: usize = 4096;
/// Where nobody listens and nobody is harmed (RFC 863).
const DISCARD: u16 = 9;

/// See the module text.
pub struct Ethernet {
    socket: File,
    local: IpAddr,
    mac: Mac,
    /// What the kernel knows; none where there is no such socket.
    neighbours: Option<Neighbours>,
    peers: BTreeMap<Gid, Peer>,
    output: Vec<u8>,
    input: Box<[u8]>,
    stats: Stats,
}

/// Where a peer is.
#[derive(Clone, Copy)]
struct Peer {
    /// The source of his last good frame.
    heard: Option<Mac>,
    /// What the kernel has said.
    known: Option<Mac>,
    /// When.
    asked: Option<Instant>,
}

/// A socket for frames of an Ethertype on a network device, with its number and its MAC.
pub fn open(device: &str, ethertype: u16) -> io::Result<(File, i32, Mac)> {
    let name = CString::new(device)?;
    // SAFETY: `name` ends in a zero and outlives the call.
    let index = match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => return Err(io::Error::last_os_error()),
        index => i32::try_from(index).map_err(|_| io::ErrorKind::InvalidInput)?,
    };
    // Of protocol 0: it hears nothing until it is bound, and then of this device alone.
    let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers.
    let socket = match unsafe { libc::socket(libc::AF_PACKET, kind, 0) } {
        fd if fd >= 0 => {
            // SAFETY: it was made here, and nobody else has it.
            File::from(unsafe { OwnedFd::from_raw_fd(fd) })
        }
        _ => return Err(io::Error::last_os_error()),
    };
    // SAFETY: all of it may be zero.
    let mut name: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    name.sll_family = libc::AF_PACKET as libc::sa_family_t;
    name.sll_protocol = ethertype.to_be();
    name.sll_ifindex = index;
    let mut size = size_of_val(&name) as libc::socklen_t;
    // SAFETY: the kernel reads `size` bytes of `name`, which outlives the call.
    if unsafe { libc::bind(socket.as_raw_fd(), (&raw const name).cast(), size) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel writes at most `size` bytes into `name`, and to `size`; both outlive the call.
    if unsafe { libc::getsockname(socket.as_raw_fd(), (&raw mut name).cast(), &raw mut size) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let [a, b, c, d, e, f, ..] = name.sll_addr;
    if name.sll_hatype != libc::ARPHRD_ETHER || name.sll_halen != 6 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{device} is no Ethernet")));
    }
    Ok((socket, index, [a, b, c, d, e, f]))
}

/// Bytes that a network device carries at a time. It is asked by its name, in the network of whoever asks: the files of
/// sysfs may be of another one.
pub fn mtu_of(device: &str) -> io::Result<u32> {
    // SAFETY: all of it may be zero.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // A zero remains behind it.
    if device.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *to = from as libc::c_char;
    }
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    // SAFETY: the kernel reads and writes an `ifreq`, which outlives the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU as _, &raw mut request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has written this one.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    u32::try_from(mtu).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// The link-local address that is made of a MAC: the first GID of a port.
pub fn link_local([a, b, c, d, e, f]: Mac) -> IpAddr {
    address_of(&[0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 0x02, b, c, 0xff, 0xfe, d, e, f])
}

/// The MAC that a link-local GID says, which is that of one adapter.
fn said(gid: &Gid) -> Option<Mac> {
    mac_of(gid).filter(|mac| gid[..2] == [0xfe, 0x80] && mac[0] & 1 == 0)
}

impl Ethernet {
    /// RoCE v1 at a network device, by its link-local address or another one. Without CAP_NET_RAW: `PermissionDenied`.
    ///
    /// The address need not be one of the device's, but who is to find it by the kernel's means needs it to be.
    pub fn bind(device: &str, local: Option<IpAddr>) -> io::Result<Ethernet> {
        let (socket, index, mac) = open(device, ETHERTYPE_V1)?;
        for option in [libc::SO_RCVBUF, libc::SO_SNDBUF] {
            crate::udp::set(socket.as_raw_fd(), libc::SOL_SOCKET, option, BUFFER)?;
        }
        Ok(Ethernet {
            socket,
            local: local.unwrap_or(link_local(mac)),
            mac,
            neighbours: Neighbours::new(index).ok(),
            peers: BTreeMap::new(),
            output: Vec::new(),
            input: vec![0; LONGEST].into(),
            stats: Stats::default(),
        })
    }

    /// Its address.
    pub fn local(&self) -> IpAddr {
        self.local
    }

    /// The network device's own.
    pub fn mac(&self) -> Mac {
        self.mac
    }

    /// What has gone over it.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    // ---- out -----------------------------------------------------------------------------------

    /// Sends a packet. What the device has no room for is lost, as at a switch, and so is what goes to somebody whose
    /// MAC is not known (yet).
    pub fn send(&mut self, dest: IpAddr, packet: &Packet<'_>) {
        let to = gid_of(dest);
        let sent = self.mac_of(dest, to).is_some_and(|mac| {
            let envelope = Envelope::v1(&gid_of(self.local), &to);
            self.output.clear();
            Frame { dest: mac, source: self.mac, envelope, packet: *packet }.write(&mut self.output);
            self.socket.write(&self.output).is_ok()
        });
        *if sent { &mut self.stats.sent } else { &mut self.stats.unsent } += 1;
    }

    /// Nothing waits.
    pub fn flush(&mut self) {}

    /// Where frames for this peer go.
    fn mac_of(&mut self, dest: IpAddr, to: Gid) -> Option<Mac> {
        if let Some(mac) = said(&to) {
            return Some(mac);
        }
        let peer = self.peers.get(&to).copied();
        let Some(mut peer) = peer.filter(|peer| peer.asked.is_some_and(|asked| asked.elapsed() < FRESH)) else {
            return self.ask(dest, to, peer);
        };
        if peer.known.is_none() && peer.heard.is_none() {
            // The kernel may have found him since.
            peer.known = self.neighbours.as_mut().and_then(|kernel| kernel.find(dest)).map(|found| found.mac);
            self.keep(to, peer);
        }
        peer.known.or(peer.heard)
    }

    fn ask(&mut self, dest: IpAddr, to: Gid, peer: Option<Peer>) -> Option<Mac> {
        let heard = peer.and_then(|peer| peer.heard);
        let found = self.neighbours.as_mut().and_then(|kernel| kernel.find(dest));
        // Frames of ours do not tell the kernel that it is to look again: he may have another network card by now.
        if found.map_or(heard.is_none(), |found| found.is_stale) {
            look_for(dest);
        }
        let known = found.map(|found| found.mac);
        self.keep(to, Peer { heard, known, asked: Some(Instant::now()) });
        known.or(heard)
    }

    fn keep(&mut self, gid: Gid, peer: Peer) {
        if self.peers.len() >= PEERS && !self.peers.contains_key(&gid) {
            self.peers.clear();
        }
        self.peers.insert(gid, peer);
    }

    // ---- in ------------------------------------------------------------------------------------

    /// Hands packets that have come to `take`, some at a time, with the address they come from. False: there were none.
    pub fn receive(&mut self, mut take: impl FnMut(IpAddr, &Packet<'_>)) -> io::Result<bool> {
        let mut input = std::mem::take(&mut self.input);
        let mut result = Ok(true);
        for n in 0..BATCH {
            match self.socket.read(&mut input) {
                Ok(len) => self.take(input.get(..len).unwrap_or_default(), &mut take),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    result = Ok(n > 0);
                    break;
                }
                // The device is down, and may come up again: RC finds out by itself.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::ENETDOWN)) => {}
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        self.input = input;
        result
    }

    fn take(&mut self, bytes: &[u8], take: &mut impl FnMut(IpAddr, &Packet<'_>)) {
        // To all, or seen because somebody else wants to see everything.
        if !bytes.starts_with(&self.mac) {
            return;
        }
        match Frame::parse(bytes) {
            Ok(Frame {
                source,
                envelope: Envelope { network: Network::V1 { source: from, dest }, .. },
                packet,
                ..
            }) => {
                if dest != gid_of(self.local) {
                    // Another socket's.
                    return;
                }
                self.stats.received += 1;
                self.hear(from, source);
                take(address_of(&from), &packet);
            }
            // Nothing else comes to a socket of this Ethertype, unless a VLAN's tag is in the way.
            Ok(_) | Err(BadFrame::Envelope(_) | BadFrame::Short(_) | BadFrame::Icrc | BadFrame::Packet(_)) => {
                self.stats.damaged += 1;
            }
        }
    }

    /// Keeps in mind where a good frame came from.
    fn hear(&mut self, from: Gid, source: Mac) {
        // To a group nobody would be answered.
        if source[0] & 1 != 0 || said(&from).is_some() {
            return;
        }
        let before = self.peers.get(&from).copied();
        if before.is_none_or(|peer| peer.heard != Some(source)) {
            let Peer { known, asked, .. } = before.unwrap_or(Peer { heard: None, known: None, asked: None });
            self.keep(from, Peer { heard: Some(source), known, asked });
        }
    }
}

impl AsRawFd for Ethernet {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// Has the kernel look for a neighbour: it does so for whoever sends him something. Whatever becomes of it, the next
/// packets find him in the table or do not.
fn look_for(dest: IpAddr) {
    let any: IpAddr = if dest.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    if dest.is_multicast() || dest.is_unspecified() {
        return;
    }
    if let Ok(socket) = UdpSocket::bind((any, 0))
        && socket.set_nonblocking(true).is_ok()
    {
        let _ = socket.send_to(&[], (dest, DISCARD));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_local_address_says_its_mac_and_others_say_none() {
        let mac = [0x02, 0x50, 0x56, 1, 2, 3];
        assert_eq!(said(&gid_of(link_local(mac))), Some(mac));
        assert_eq!(link_local(mac).to_string(), "fe80::50:56ff:fe01:203");
        let group = [0x03, 0x50, 0x56, 1, 2, 3];
        assert_eq!(said(&gid_of(link_local(group))), None, "a group is nobody's address");
        for other in ["10.0.0.1", "127.0.82.1", "fe80::1", "2001:db8::50:56ff:fe01:203"] {
            assert_eq!(said(&gid_of(other.parse().expect("an address"))), None, "{other}");
        }
    }

    #[test]
    fn the_loopback_device_carries_what_linux_says() {
        let text = std::fs::read_to_string("/proc/sys/net/ipv6/conf/lo/mtu");
        let expected = text.map_or(65_536, |text| text.trim().parse().expect("a number"));
        assert_eq!(mtu_of("lo").expect("a device"), expected);
        assert!(mtu_of("no-such-device").is_err() && mtu_of("a-name-that-is-too-long").is_err());
    }

    #[test]
    fn a_device_that_is_not_there_is_an_error() {
        let error = Ethernet::bind("no-such-device", None).err().expect("an error");
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
        assert!(Ethernet::bind("a\0b", None).is_err());
    }
}
