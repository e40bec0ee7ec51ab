//! A way for packets of RoCE, of whichever version: what both sockets can do, and what is told of it.

use crate::ethernet::Ethernet;
use crate::udp::{Stats, Udp};
use pvrdma_device::guest::Roce;
use pvrdma_roce::packet::Packet;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, RawFd};

/// How the wire fares.
#[derive(Clone, Copy, Debug)]
pub struct WireReport {
    /// What is spoken.
    pub roce: Roce,
    /// Address of this host.
    pub address: IpAddr,
    /// Path MTU.
    pub mtu: u32,
    /// Packets.
    pub packets: Stats,
}

/// See the module text.
#[expect(missing_docs, reason = "the names say it")]
pub enum Socket {
    V1(Ethernet),
    V2(Udp),
}

impl Socket {
    /// Its address.
    pub fn local(&self) -> IpAddr {
        match self {
            Socket::V1(socket) => socket.local(),
            Socket::V2(socket) => socket.local(),
        }
    }

    /// What has gone over it.
    pub fn stats(&self) -> Stats {
        match self {
            Socket::V1(socket) => socket.stats(),
            Socket::V2(socket) => socket.stats(),
        }
    }

    /// Sends a packet, at the latest when `flush` is called. What there is no room for is lost, as at a switch.
    pub fn send(&mut self, dest: IpAddr, packet: &Packet<'_>) {
        match self {
            Socket::V1(socket) => socket.send(dest, packet),
            Socket::V2(socket) => socket.send(dest, packet),
        }
    }

    /// Sends all that waits.
    pub fn flush(&mut self) {
        match self {
            Socket::V1(socket) => socket.flush(),
            Socket::V2(socket) => socket.flush(),
        }
    }

    /// Hands all packets that have come together to `take`, with the address they come from. False: there were none.
    pub fn receive(&mut self, take: impl FnMut(IpAddr, &Packet<'_>)) -> io::Result<bool> {
        match self {
            Socket::V1(socket) => socket.receive(take),
            Socket::V2(socket) => socket.receive(take),
        }
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Socket::V1(socket) => socket.as_raw_fd(),
            Socket::V2(socket) => socket.as_raw_fd(),
        }
    }
}
