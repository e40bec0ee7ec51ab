//! The addresses of the guests' network interface, which is the loopback interface: `getifaddrs`.
//!
//! Before libibverbs builds an address handle for an IPv4-mapped GID it asks for the interface that has the source
//! address. A guest's 127.H.82.N is reachable on every Linux box, but the kernel lists only 127.0.0.1. So this list
//! names those of all guests on the host too, once the program has opened the device. Those of other hosts' guests are
//! not this interface's: who sends to one asks the kernel for the way, which knows all of 127.0.0.0/8.

use crate::interpose::next::{call_next, next};
use crate::process;
use crate::support::fresh::{self, Chain, OWN};
use pvrdma_device::guest::MAX_GUESTS;
use pvrdma_device::handle::Gid;
use std::ffi::{c_int, c_uint};
use std::ptr::null_mut;

next! {
    GETIFADDRS = c"getifaddrs";
}

/// One address and what its node points to. Made once for each guest, never freed: glibc's `freeifaddrs` frees the one
/// block that it allocated itself, and does not follow the list.
#[repr(C)]
struct Node {
    entry: libc::ifaddrs,
    address: libc::sockaddr_in,
    netmask: libc::sockaddr_in,
}

fn ipv4(octets: [u8; 4]) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(octets) },
        sin_zero: [0; 8],
    }
}

impl Chain {
    /// Adds the address that a GID maps, unless it is there: as number `n`.
    fn add(&mut self, n: usize, gid: Gid) {
        if std::mem::replace(&mut self.made[n], true) {
            return;
        }
        let node = Box::leak(Box::new(Node {
            entry: libc::ifaddrs {
                ifa_next: null_mut(),
                ifa_name: c"lo".as_ptr().cast_mut(),
                ifa_flags: (libc::IFF_UP | libc::IFF_LOOPBACK | libc::IFF_RUNNING) as c_uint,
                ifa_addr: null_mut(),
                ifa_netmask: null_mut(),
                ifa_ifu: null_mut(),
                ifa_data: null_mut(),
            },
            address: ipv4([gid[12], gid[13], gid[14], gid[15]]),
            netmask: ipv4([255, 0, 0, 0]),
        }));
        node.entry.ifa_addr = (&raw mut node.address).cast();
        node.entry.ifa_netmask = (&raw mut node.netmask).cast();
        let node: *mut libc::ifaddrs = &raw mut node.entry;
        if self.last.is_null() {
            self.first = node;
            fresh::keep(node);
        } else {
            // SAFETY: a leaked node; readers of earlier lists see either no next node or this one, complete.
            unsafe { (&raw mut (*self.last).ifa_next).write_volatile(node) };
        }
        self.last = node;
    }
}

/// getifaddrs(3), with the addresses of the host's guests behind those of the kernel.
///
/// # Safety
///
/// As getifaddrs(3): `list` is a valid place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getifaddrs(list: *mut *mut libc::ifaddrs) -> c_int {
    let got = call_next!(GETIFADDRS, fn(*mut *mut libc::ifaddrs) -> c_int, -1, list);
    let Some(process) = process::existing().filter(|_| got == 0) else { return got };
    let _held = OWN.addresses.gate.lock();
    // SAFETY: the gate is held.
    let chain = unsafe { &mut *OWN.addresses.chain.get() };
    for guest in process.guests_on_host() {
        if let Some(gid) = guest.gid(1) {
            chain.add(guest.index().into(), gid);
        }
    }
    // The kernel lists the address for RoCE, unless it is such a one itself.
    if let Some(wire) = process.wire().filter(|wire| wire.address().is_loopback()) {
        chain.add(MAX_GUESTS.into(), wire.gid);
    }
    // SAFETY: the C library has just put a list there; it is the caller's alone, and its last node's to write.
    unsafe {
        let mut end = list;
        while !(*end).is_null() {
            end = &raw mut (**end).ifa_next;
        }
        *end = chain.first;
    }
    got
}
