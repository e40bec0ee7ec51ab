//! RoCE v2 over one UDP socket, without privileges: packets go out with their checksum, and what comes in is checked.
//! What the packets say is for whoever owns the QPs.
//!
//! IPv4 has an identification in the part of the header that the checksum covers, and the kernel chooses it. A socket
//! that is not connected and may not fragment sends 0; of a train of packets that the kernel cuts itself
//! (`UDP_SEGMENT`), it sends 0, 1, 2 and so on. Of what comes in it is not known, see `icrc::check_any_id`.

use pvrdma_device::handle::gid_of;
use pvrdma_roce::headers::{Envelope, Network, PORT};
use pvrdma_roce::icrc;
use pvrdma_roce::packet::Packet;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};

/// Bytes of a train, and of what is read at a time: no datagram is longer.
const TRAIN: usize = 60 << 10;
/// Packets of a train: the kernel takes 64, and some kernels no more.
const CARS: usize = 64;
/// What the socket is to hold. It gets less where `net.core.rmem_max` says so.
const BUFFER: libc::c_int = 4 << 20;
/// Bytes behind a packet.
const ICRC: usize = 4;

/// See the module text.
pub struct Udp {
    socket: UdpSocket,
    local: IpAddr,
    /// Where the train goes, its packets with their checksums, one after the other, and where each begins.
    dest: Option<IpAddr>,
    train: Vec<u8>,
    starts: Vec<usize>,
    /// The kernel cuts trains.
    cuts: bool,
    input: Box<[u8]>,
    stats: Stats,
}

/// What has gone over a socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Packets that were sent.
    pub sent: u64,
    /// Packets that the socket had no room for, or no way.
    pub unsent: u64,
    /// Packets that came.
    pub received: u64,
    /// Datagrams that are none, or whose checksum is wrong.
    pub damaged: u64,
}

pub(crate) fn set(fd: RawFd, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let size = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the kernel reads `size` bytes of `value`, which outlives the call.
    match unsafe { libc::setsockopt(fd, level, option, (&raw const value).cast(), size) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

impl Udp {
    /// The port of RoCE v2 at an address of this host. Whoever has it already, Linux's `rdma_rxe` say, keeps it:
    /// `AddrInUse`.
    pub fn bind(local: IpAddr) -> io::Result<Udp> {
        let socket = UdpSocket::bind(SocketAddr::new(local, PORT))?;
        socket.set_nonblocking(true)?;
        let fd = socket.as_raw_fd();
        match local {
            IpAddr::V4(_) => set(fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO)?,
            IpAddr::V6(_) => set(fd, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DO)?,
        }
        for option in [libc::SO_RCVBUF, libc::SO_SNDBUF] {
            set(fd, libc::SOL_SOCKET, option, BUFFER)?;
        }
        // Where the kernel does not know it packets come one by one.
        let _ = set(fd, libc::SOL_UDP, libc::UDP_GRO, 1);
        // The same of trains: there a message that asks for it would go uncut. 0 is what every socket has.
        let cuts = set(fd, libc::SOL_UDP, libc::UDP_SEGMENT, 0).is_ok();
        Ok(Udp {
            socket,
            local,
            dest: None,
            train: Vec::new(),
            starts: Vec::new(),
            cuts,
            input: vec![0; 64 << 10].into(),
            stats: Stats::default(),
        })
    }

    /// Its address.
    pub fn local(&self) -> IpAddr {
        self.local
    }

    /// What has gone over it.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    fn envelope(&self, source: IpAddr, dest: IpAddr, source_port: u16, id: u16) -> Envelope {
        let mut envelope = Envelope { source_port, ..Envelope::v2(&gid_of(source), &gid_of(dest)) };
        if let Network::V4 { id: of, .. } = &mut envelope.network {
            *of = id;
        }
        envelope
    }

    // ---- out -----------------------------------------------------------------------------------

    /// Sends a packet, at the latest when `flush` is called. What the socket has no room for is lost, as at a switch.
    pub fn send(&mut self, dest: IpAddr, packet: &Packet<'_>) {
        let size = packet.size() + ICRC;
        // All packets of a train are as long as the first but the last, which may be shorter.
        let len = |at: usize| self.end(at) - self.starts[at];
        let joins = self.dest == Some(dest)
            && self.cuts
            && (1..CARS).contains(&self.starts.len())
            && self.train.len() + size <= TRAIN
            && len(self.starts.len() - 1) == len(0)
            && size <= len(0);
        if !joins {
            self.flush();
        }
        self.dest = Some(dest);
        // The kernel counts the packets of a train.
        let (id, begin) = (self.starts.len() as u16, self.train.len());
        self.starts.push(begin);
        packet.write(&mut self.train);
        icrc::append(&self.envelope(self.local, dest, PORT, id), &mut self.train, begin);
    }

    /// Where packet `at` of the train ends.
    fn end(&self, at: usize) -> usize {
        self.starts.get(at + 1).copied().unwrap_or(self.train.len())
    }

    /// Sends all that waits.
    pub fn flush(&mut self) {
        let Some(dest) = self.dest.take() else { return };
        let (to, count) = (SocketAddr::new(dest, PORT), self.starts.len() as u64);
        let result = match self.starts[..] {
            [_, each, ..] => send_cut(self.socket.as_raw_fd(), &self.train, each, to),
            _ => self.socket.send_to(&self.train, to),
        };
        match result {
            Ok(_) => self.stats.sent += count,
            Err(error) if count > 1 && error.kind() != io::ErrorKind::WouldBlock => {
                self.cuts &= !is_uncut(&error);
                self.send_singly(to);
            }
            Err(_) => self.stats.unsent += count,
        }
        self.train.clear();
        self.starts.clear();
    }

    /// Sends the train as packets of their own, with the checksums of such.
    fn send_singly(&mut self, to: SocketAddr) {
        let envelope = self.envelope(self.local, to.ip(), PORT, 0);
        let mut single = Vec::new();
        for (at, start) in self.starts.iter().enumerate() {
            single.clear();
            single.extend(&self.train[*start..self.end(at) - ICRC]);
            icrc::append(&envelope, &mut single, 0);
            match self.socket.send_to(&single, to) {
                Ok(_) => self.stats.sent += 1,
                Err(_) => self.stats.unsent += 1,
            }
        }
    }

    // ---- in ------------------------------------------------------------------------------------

    /// Hands all packets that have come together to `take`, with the address they come from. False: there were none.
    pub fn receive(&mut self, mut take: impl FnMut(IpAddr, &Packet<'_>)) -> io::Result<bool> {
        let mut input = std::mem::take(&mut self.input);
        let received = receive_joined(self.socket.as_raw_fd(), &mut input, self.local.is_ipv4());
        let result = match received {
            Ok((len, each, from)) => {
                self.stats.damaged += u64::from(len == 0);
                for bytes in input.get(..len).unwrap_or_default().chunks(each.max(1)) {
                    self.take(from, bytes, &mut take);
                }
                Ok(true)
            }
            // The second is what a peer's host has said of something that was sent: RC finds out by itself.
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock) => Ok(false),
            Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::Interrupted) => {
                Ok(true)
            }
            Err(error) => Err(error),
        };
        self.input = input;
        result
    }

    fn take(&mut self, from: SocketAddr, bytes: &[u8], take: &mut impl FnMut(IpAddr, &Packet<'_>)) {
        let source = from.ip();
        let envelope = self.envelope(source, self.local, from.port(), 0);
        let packet = icrc::check_any_id(&envelope, bytes).and_then(|(packet, _)| Packet::parse(packet).ok());
        match packet {
            Some(packet) => {
                self.stats.received += 1;
                take(source, &packet);
            }
            None => self.stats.damaged += 1,
        }
    }
}

impl AsRawFd for Udp {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// Room for one control message of a number.
#[repr(C, align(8))]
struct Control([u8; 64]);

/// A socket address as the kernel has it, and its length.
fn to_kernel(address: SocketAddr) -> (libc::sockaddr_storage, libc::socklen_t) {
    // SAFETY: all of it may be zero.
    let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    let len = match address {
        SocketAddr::V4(v4) => {
            let raw = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                sin_zero: [0; 8],
            };
            // SAFETY: a `sockaddr_storage` is as long and as aligned as any address.
            unsafe { (&raw mut storage).cast::<libc::sockaddr_in>().write(raw) };
            size_of::<libc::sockaddr_in>()
        }
        SocketAddr::V6(v6) => {
            let raw = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            };
            // SAFETY: as above.
            unsafe { (&raw mut storage).cast::<libc::sockaddr_in6>().write(raw) };
            size_of::<libc::sockaddr_in6>()
        }
    };
    (storage, len as libc::socklen_t)
}

/// Whether no train can be cut, by the error that one met: the network device makes no checksums (Linux says `EIO`), or
/// whatever stands for Linux has no such thing. All else, no route say, is of this train and this destination.
fn is_uncut(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EIO | libc::EOPNOTSUPP | libc::ENOPROTOOPT))
}

/// Sends `bytes` as datagrams of `each` bytes.
fn send_cut(fd: RawFd, bytes: &[u8], each: usize, to: SocketAddr) -> io::Result<usize> {
    let (mut name, name_len) = to_kernel(to);
    let mut iov = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut control = Control([0; 64]);
    let each = u16::try_from(each).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: all of it may be zero.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = (&raw mut name).cast();
    message.msg_namelen = name_len;
    message.msg_iov = &raw mut iov;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    // SAFETY: CMSG_SPACE, CMSG_FIRSTHDR and CMSG_DATA compute with the length and the pointer set here; a header and a
    // u16 have room in `control`, which is aligned for it.
    unsafe {
        message.msg_controllen = libc::CMSG_SPACE(size_of::<u16>() as u32) as _;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_UDP;
        (*header).cmsg_type = libc::UDP_SEGMENT;
        (*header).cmsg_len = libc::CMSG_LEN(size_of::<u16>() as u32) as _;
        libc::CMSG_DATA(header).cast::<u16>().write_unaligned(each);
    }
    // SAFETY: the pointers in `message` are to what lives here; the kernel only reads it.
    match unsafe { libc::sendmsg(fd, &raw const message, 0) } {
        sent if sent >= 0 => Ok(sent as usize),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Receives datagrams of one sender that the kernel has joined: how many bytes, how many in each, and from where.
fn receive_joined(fd: RawFd, into: &mut [u8], is_v4: bool) -> io::Result<(usize, usize, SocketAddr)> {
    let (mut name, _) = to_kernel(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0));
    let mut iov = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    let mut control = Control([0; 64]);
    // SAFETY: all of it may be zero.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = (&raw mut name).cast();
    message.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    message.msg_iov = &raw mut iov;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = size_of::<Control>() as _;
    // SAFETY: the pointers in `message` are to what lives here, with the lengths beside them.
    let len = match unsafe { libc::recvmsg(fd, &raw mut message, 0) } {
        len if len >= 0 => len as usize,
        _ => return Err(io::Error::last_os_error()),
    };
    let mut each = len;
    // SAFETY: the kernel has set `msg_controllen` to what it wrote into `control`; the macros stay within that.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_UDP && (*header).cmsg_type == libc::UDP_GRO {
                let size = libc::CMSG_DATA(header).cast::<libc::c_int>().read_unaligned();
                each = usize::try_from(size).unwrap_or(len);
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
    }
    let from = if is_v4 {
        // SAFETY: a socket of this family has addresses of this kind, and the storage is aligned for all.
        let v4 = unsafe { (&raw const name).cast::<libc::sockaddr_in>().read() };
        SocketAddr::new(v4.sin_addr.s_addr.to_ne_bytes().into(), u16::from_be(v4.sin_port))
    } else {
        // SAFETY: as above.
        let v6 = unsafe { (&raw const name).cast::<libc::sockaddr_in6>().read() };
        SocketAddr::new(v6.sin6_addr.s6_addr.into(), u16::from_be(v6.sin6_port))
    };
    Ok((len, each, from))
}
