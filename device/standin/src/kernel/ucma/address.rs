//! Addresses of programs: what a `sockaddr` means among guests.
//!
//! A guest has two addresses of its own, 127.H.82.N and the link-local one of its MAC, both with the number of its host
//! in them. All guests of a host share the machine's network interface, so an address of the machine itself (127.0.0.1,
//! its name) is an address of each of them, just as with TCP: who connects to it reaches the guest in which somebody
//! listens on the port.

use crate::support::raw::{self, syscall};
use pvrdma_device::guest::{Guest, mac_of};
use pvrdma_device::handle::Gid;

/// `AF_IB`.
const AF_IB: u16 = 27;
const V4_LEN: usize = 16;
const V6_LEN: usize = 28;
const IB_LEN: usize = 48;

/// An address as programs give it. The port of an InfiniBand one is the end of its service id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    V4 { addr: [u8; 4], port: u16 },
    V6 { addr: [u8; 16], port: u16, scope: u32 },
    Ib { gid: Gid, sid: u64, mask: u64 },
}

/// Whose address it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nobody's in particular.
    Any,
    /// That guest's, of this host or of another one.
    Guest(Guest),
    /// The machine that all guests share.
    Machine,
    /// No guest's.
    Elsewhere,
}

/// Port and service id: the field's value of a port space.
pub fn service_id(ps: u16, port: u16) -> u64 {
    u64::from(ps) << 16 | u64::from(port)
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

impl Address {
    /// Takes a `sockaddr` apart. `Ok(None)`: family 0, none was given.
    pub fn parse(bytes: &[u8]) -> Result<Option<Address>, i32> {
        let family = u16::from_ne_bytes(array(bytes, 0).ok_or(libc::EINVAL)?);
        let port = || array(bytes, 2).map(u16::from_be_bytes);
        let parsed = match i32::from(family) {
            0 => return Ok(None),
            libc::AF_INET => port().zip(array(bytes, 4)).map(|(port, addr)| Address::V4 { addr, port }),
            libc::AF_INET6 => port().zip(array(bytes, 8)).map(|(port, addr)| {
                let scope = array(bytes, 24).map_or(0, u32::from_ne_bytes);
                Address::V6 { addr, port, scope }
            }),
            _ if family == AF_IB => array(bytes, 8).map(|gid| {
                let long = |at| array(bytes, at).map_or(0, u64::from_be_bytes);
                Address::Ib { gid, sid: long(24), mask: long(32) }
            }),
            _ => return Err(libc::EAFNOSUPPORT),
        };
        parsed.map(Some).ok_or(libc::EINVAL)
    }

    /// Bytes of the `sockaddr`.
    pub fn len(&self) -> usize {
        match self {
            Address::V4 { .. } => V4_LEN,
            Address::V6 { .. } => V6_LEN,
            Address::Ib { .. } => IB_LEN,
        }
    }

    /// As a `sockaddr`, in the first `len` bytes.
    pub fn write(&self, into: &mut [u8]) {
        let mut bytes = [0u8; IB_LEN];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        match self {
            Address::V4 { addr, port } => {
                put(0, &(libc::AF_INET as u16).to_ne_bytes());
                put(2, &port.to_be_bytes());
                put(4, addr);
            }
            Address::V6 { addr, port, scope } => {
                put(0, &(libc::AF_INET6 as u16).to_ne_bytes());
                put(2, &port.to_be_bytes());
                put(8, addr);
                put(24, &scope.to_ne_bytes());
            }
            Address::Ib { gid, sid, mask } => {
                put(0, &AF_IB.to_ne_bytes());
                put(2, &0xffffu16.to_be_bytes());
                put(8, gid);
                put(24, &sid.to_be_bytes());
                put(32, &mask.to_be_bytes());
            }
        }
        let len = self.len().min(into.len());
        into[..len].copy_from_slice(&bytes[..len]);
    }

    pub fn port(&self) -> u16 {
        match *self {
            Address::V4 { port, .. } | Address::V6 { port, .. } => port,
            Address::Ib { sid, .. } => sid as u16,
        }
    }

    pub fn with_port(self, port: u16) -> Address {
        match self {
            Address::V4 { addr, .. } => Address::V4 { addr, port },
            Address::V6 { addr, scope, .. } => Address::V6 { addr, port, scope },
            Address::Ib { gid, sid, mask } => Address::Ib { gid, sid: sid & !0xffff | u64::from(port), mask },
        }
    }

    /// The same family's address of nobody in particular.
    pub fn any(&self) -> Address {
        match self {
            Address::V4 { .. } => Address::V4 { addr: [0; 4], port: 0 },
            Address::V6 { .. } => Address::V6 { addr: [0; 16], port: 0, scope: 0 },
            Address::Ib { .. } => Address::Ib { gid: [0; 16], sid: 0, mask: 0 },
        }
    }

    pub fn is_v4(&self) -> bool {
        matches!(self, Address::V4 { .. })
    }

    pub fn is_ib(&self) -> bool {
        matches!(self, Address::Ib { .. })
    }

    /// The 16 bytes that stand for it in messages and as a GID (IPv4: mapped).
    pub fn to_gid(self) -> Gid {
        match self {
            Address::V4 { addr, .. } => {
                let mut gid = [0; 16];
                gid[10..12].fill(0xff);
                gid[12..].copy_from_slice(&addr);
                gid
            }
            Address::V6 { addr, .. } => addr,
            Address::Ib { gid, .. } => gid,
        }
    }

    /// Whose it is.
    pub fn place(&self) -> Place {
        let gid = self.to_gid();
        let [.., a, b, c, d] = gid;
        if gid == [0; 16] || self.is_v4() && [a, b, c, d] == [0; 4] {
            return Place::Any;
        }
        if let Some(guest) = Guest::of(&gid) {
            return Place::Guest(guest);
        }
        // A MAC tells of somebody else.
        if self.is_ib() || mac_of(&gid).is_some() || !is_local(self) { Place::Elsewhere } else { Place::Machine }
    }
}

/// Whether the machine has the address: the kernel lets nobody bind to others.
fn is_local(address: &Address) -> bool {
    if let Address::V4 { addr: [127, ..], .. } = address {
        return true;
    }
    let family = if address.is_v4() { libc::AF_INET } else { libc::AF_INET6 };
    let mut bytes = [0u8; V6_LEN];
    address.with_port(0).write(&mut bytes);
    // SAFETY: no pointers.
    let socket = unsafe { syscall!(SYS_socket, family, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) } as i32;
    if socket < 0 {
        return false;
    }
    // SAFETY: a sockaddr of that length.
    let bound = unsafe { syscall!(SYS_bind, socket, bytes.as_ptr(), address.len()) } == 0;
    raw::close(socket);
    bound
}

#[cfg(test)]
mod tests {
    use super::*;
    use pvrdma_device::guest::Roce;

    fn v4(addr: [u8; 4]) -> Address {
        Address::V4 { addr, port: 7 }
    }

    #[test]
    fn what_was_taken_apart_is_put_together_again() {
        let addresses = [
            v4([127, 0, 82, 1]),
            Address::V6 { addr: [0xfe; 16], port: 9, scope: 1 },
            Address::Ib { gid: [3; 16], sid: 0x0106_1234, mask: u64::MAX },
        ];
        for address in addresses {
            let mut bytes = [0u8; 128];
            address.write(&mut bytes);
            assert_eq!(Address::parse(&bytes), Ok(Some(address)));
        }
        assert_eq!(Address::parse(&[0; 28]), Ok(None));
        assert_eq!(Address::parse(&[1, 0, 0, 0]), Err(libc::EAFNOSUPPORT));
        assert_eq!(Address::parse(&[2, 0, 0, 0]), Err(libc::EINVAL));
        assert_eq!(Address::parse(&[2]), Err(libc::EINVAL));
    }

    #[test]
    fn every_address_has_its_place() {
        let guest = |host, index| Place::Guest(Guest::new(host, index, Roce::default()).unwrap());
        assert_eq!(v4([127, 0, 82, 1]).place(), guest(0, 0));
        assert_eq!(v4([127, 0, 82, 254]).place(), guest(0, 253));
        assert_eq!(v4([127, 9, 82, 1]).place(), guest(9, 0));
        assert_eq!(v4([127, 0, 0, 1]).place(), Place::Machine);
        assert_eq!(v4([127, 255, 82, 1]).place(), Place::Machine);
        assert_eq!(v4([0; 4]).place(), Place::Any);
        assert_eq!(v4([192, 0, 2, 1]).place(), Place::Elsewhere);
        for host in [0, 9] {
            for (_, addr) in Guest::new(host, 4, Roce::V1).unwrap().gids() {
                assert_eq!(Address::V6 { addr, port: 1, scope: 0 }.place(), guest(host, 4));
                assert_eq!(Address::Ib { gid: addr, sid: 1, mask: 0 }.place(), guest(host, 4));
            }
        }
        let adapter = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0x02, 0x50, 0x56, 0xff, 0xfe, 0, 0, 1];
        assert_eq!(Address::V6 { addr: adapter, port: 1, scope: 0 }.place(), Place::Elsewhere);
        let nobody = Address::V6 { addr: [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], port: 1, scope: 0 };
        assert_eq!(nobody.place(), Place::Elsewhere);
    }
}
