//! The port that RoCE is spoken at: its socket, and what its network carries.

use crate::ethernet::{self, Ethernet};
use crate::socket::Socket;
use crate::udp::Udp;
use anyhow::{Context, bail};
use mio::unix::SourceFd;
use mio::{Interest, Registry};
use pvrdma_device::guest::Guest;
use pvrdma_device::handle::gid_of;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;

/// What a packet has beside its payload at most: GRH, UDP, BTH and the longest headers behind it, checksum. As Linux
/// counts, so that both ends come to the same path MTU.
const HEADERS: u32 = 96;

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
    pub socket: Socket,
    pub mtu: u32,
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
    let is_usable = |address: &IpAddr| Guest::of(&gid_of(*address)).is_none();
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
}
