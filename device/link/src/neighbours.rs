//! The kernel's neighbour table: which MAC an address of this network has (rtnetlink(7), RTM_GETNEIGH). One entry is
//! asked for at a time, which Linux answers at once, since 5.0.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::fd::{FromRawFd, OwnedFd};

/// `struct nlmsghdr`, `struct ndmsg` and `struct rtattr`: bytes.
const HEADER: usize = 16;
const NDMSG: usize = 12;
const ATTRIBUTE: usize = 4;
/// Attributes of an entry: linux/neighbour.h.
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
/// States in which the kernel has no MAC, or none any more.
const NUD_INCOMPLETE: u16 = 0x01;
const NUD_FAILED: u16 = 0x20;
const NUD_NONE: u16 = 0;
/// It was right a while ago, and nobody has asked since.
const NUD_STALE: u16 = 0x04;

/// What the kernel says of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its MAC.
    pub mac: [u8; 6],
    /// The kernel would look whether that is still so before it relied on it.
    pub is_stale: bool,
}

/// A socket to ask by.
pub struct Neighbours {
    socket: File,
    /// The network device.
    index: i32,
    /// Numbers questions, so that an answer is that to the last one.
    count: u32,
}

impl Neighbours {
    /// For the network device with this number.
    pub fn new(index: i32) -> io::Result<Neighbours> {
        let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: no pointers.
        let socket = match unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE) } {
            fd if fd >= 0 => {
                // SAFETY: it was made here, and nobody else has it.
                File::from(unsafe { OwnedFd::from_raw_fd(fd) })
            }
            _ => return Err(io::Error::last_os_error()),
        };
        Ok(Neighbours { socket, index, count: 0 })
    }

    /// The MAC of an address, if the kernel knows it.
    pub fn find(&mut self, address: IpAddr) -> Option<Found> {
        self.count = self.count.wrapping_add(1);
        self.socket.write_all(&question(self.index, self.count, address)).ok()?;
        // The answer is there when the question is asked; what was left of a former one is passed over.
        let mut input = [0; 4096];
        loop {
            let len = self.socket.read(&mut input).ok().filter(|len| *len > 0)?;
            if let Some(answer) = answer(input.get(..len)?, self.count) {
                return answer;
            }
        }
    }
}

fn question(index: i32, number: u32, address: IpAddr) -> Vec<u8> {
    let (family, bytes) = match address {
        IpAddr::V4(address) => (libc::AF_INET, address.octets().to_vec()),
        IpAddr::V6(address) => (libc::AF_INET6, address.octets().to_vec()),
    };
    let len = HEADER + NDMSG + ATTRIBUTE + bytes.len();
    let mut out = Vec::with_capacity(len);
    out.extend((len as u32).to_ne_bytes());
    out.extend(libc::RTM_GETNEIGH.to_ne_bytes());
    out.extend((libc::NLM_F_REQUEST as u16).to_ne_bytes());
    out.extend(number.to_ne_bytes());
    out.extend([0; 4]);
    // Family, three bytes that are nothing, the device; state, flags and type are the answer's.
    out.extend([family as u8, 0, 0, 0]);
    out.extend(index.to_ne_bytes());
    out.extend([0; 4]);
    out.extend(((ATTRIBUTE + bytes.len()) as u16).to_ne_bytes());
    out.extend(NDA_DST.to_ne_bytes());
    out.extend(bytes);
    out
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// What is said to question `number`: `None` if it is an answer to another one, or none at all.
fn answer(bytes: &[u8], number: u32) -> Option<Option<Found>> {
    if word(bytes, 8)? != number {
        return None;
    }
    Some(entry(bytes))
}

/// What an entry says.
fn entry(bytes: &[u8]) -> Option<Found> {
    let len = usize::try_from(word(bytes, 0)?).ok()?;
    let bytes = bytes.get(..len)?;
    // All else is an error: there is no such entry, say.
    if half(bytes, 4)? != libc::RTM_NEWNEIGH {
        return None;
    }
    let state = half(bytes, HEADER + 8)?;
    if state == NUD_NONE || state & (NUD_INCOMPLETE | NUD_FAILED) != 0 {
        return None;
    }
    let mut rest = bytes.get(HEADER + NDMSG..)?;
    loop {
        let len = usize::from(half(rest, 0)?);
        let value = rest.get(ATTRIBUTE..len)?;
        if half(rest, 2)? == NDA_LLADDR {
            // One of zeros is that of a device without addresses.
            let mac = <[u8; 6]>::try_from(value).ok().filter(|mac| *mac != [0; 6] && mac[0] & 1 == 0);
            return mac.map(|mac| Found { mac, is_stale: state & NUD_STALE != 0 });
        }
        rest = rest.get(len.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 3, 4, 5, 6, 7];

    /// An entry as the kernel writes it: destination first, then the MAC.
    fn message(state: u16, mac: &[u8]) -> Vec<u8> {
        let mut out = question(3, 7, [10, 0, 0, 1].into());
        out[4..6].copy_from_slice(&libc::RTM_NEWNEIGH.to_ne_bytes());
        out[HEADER + 8..HEADER + 10].copy_from_slice(&state.to_ne_bytes());
        out.extend(((ATTRIBUTE + mac.len()) as u16).to_ne_bytes());
        out.extend(NDA_LLADDR.to_ne_bytes());
        out.extend(mac);
        out.resize(out.len().next_multiple_of(4), 0);
        let len = out.len() as u32;
        out[..4].copy_from_slice(&len.to_ne_bytes());
        out
    }

    #[test]
    fn an_entry_says_its_mac_if_it_has_one() {
        const REACHABLE: u16 = 0x02;
        const PERMANENT: u16 = 0x80;
        for state in [REACHABLE, PERMANENT, NUD_STALE, 0x08, 0x10, 0x40] {
            let found = Found { mac: MAC, is_stale: state == NUD_STALE };
            assert_eq!(answer(&message(state, &MAC), 7), Some(Some(found)), "{state:#x}");
        }
        for state in [NUD_NONE, NUD_INCOMPLETE, NUD_FAILED] {
            assert_eq!(answer(&message(state, &MAC), 7), Some(None), "{state:#x}");
        }
        assert_eq!(answer(&message(REACHABLE, &MAC), 8), None, "to another question");
        for no_mac in [&[][..], &[0; 6], &[0xff; 6], &[2; 20]] {
            assert_eq!(answer(&message(REACHABLE, no_mac), 7), Some(None));
        }
        let mut error = message(REACHABLE, &MAC);
        error[4..6].copy_from_slice(&(libc::NLMSG_ERROR as u16).to_ne_bytes());
        assert_eq!(answer(&error, 7), Some(None));
    }

    #[test]
    fn what_is_cut_off_or_damaged_says_nothing() {
        let good = message(0x02, &MAC);
        for len in 0..good.len() {
            assert!(answer(&good[..len], 7).is_none_or(|mac| mac.is_none()), "{len} bytes");
        }
        for at in 0..good.len() {
            for byte in [0, 1, 3, 0xff] {
                let mut damaged = good.clone();
                damaged[at] = byte;
                let _ = answer(&damaged, 7);
            }
        }
    }

    #[test]
    fn an_address_that_nobody_has_is_not_found() {
        // Number 1 is the loopback device, which has no neighbours.
        if let Ok(mut neighbours) = Neighbours::new(1) {
            for address in ["192.0.2.1", "2001:db8::1"] {
                assert_eq!(neighbours.find(address.parse().expect("an address")), None);
            }
        }
    }
}
