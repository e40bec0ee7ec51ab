//! Object numbers, each its own type: a CQ handle cannot be passed for a QP handle by mistake.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

macro_rules! handles {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u32);
    )*};
}

handles! {
    /// User context (`ctx_handle`); 0 is the kernel driver, which owns UAR page 0.
    CtxHandle;
    /// Protection domain (`pd_handle`).
    PdHandle;
    /// Memory region (`mr_handle`).
    MrHandle;
    /// Completion queue (`cq_handle`, the number in doorbells).
    CqHandle;
    /// Queue pair (`qp_handle`, the number in doorbells and CQEs).
    QpHandle;
    /// Shared receive queue (`srqn`).
    SrqHandle;
    /// Queue pair number: the number peers use. 24 bits, not the handle.
    Qpn;
    /// Local key of an MR.
    Lkey;
    /// Remote key of an MR.
    Rkey;
}

/// The kernel driver's own context.
pub const KERNEL: CtxHandle = CtxHandle(0);

/// Packet sequence number: 24 bits, wraps; compare with [`Psn::ahead_of`], not with `<`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Psn(u32);

impl Psn {
    /// Keeps the low 24 bits of `raw`.
    pub const fn new(raw: u32) -> Psn {
        Psn(raw & 0x00ff_ffff)
    }

    /// The number itself.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// `self + packets`, wrapping at 24 bits.
    pub const fn advance(self, packets: u32) -> Psn {
        Psn::new(self.0.wrapping_add(packets))
    }

    /// Whether `self` lies in the half of the circle after `other` (IBA vol. 1, 9.7.2: PSN comparison).
    pub const fn ahead_of(self, other: Psn) -> bool {
        let distance = self.since(other);
        distance != 0 && distance < 0x0080_0000
    }

    /// Packets from `other` on up to `self`.
    pub const fn since(self, other: Psn) -> u32 {
        self.0.wrapping_sub(other.0) & 0x00ff_ffff
    }
}

/// A GID: 16 bytes in network order.
pub type Gid = [u8; 16];

/// The GID of an IP address: an IPv4 one is mapped (RFC 4291, 2.5.5.2; IBA annex A17).
pub fn gid_of(address: IpAddr) -> Gid {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// The IP address that a GID is.
pub fn address_of(gid: &Gid) -> IpAddr {
    Ipv6Addr::from(*gid).to_canonical()
}

/// Whether an address is that of one host: not of many, nor of nobody.
pub fn is_of_one_host(address: IpAddr) -> bool {
    !address.is_unspecified() && !address.is_multicast() && address != IpAddr::V4(Ipv4Addr::BROADCAST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_gids_are_one() {
        for text in ["192.0.2.1", "2001:db8::1", "fe80::1"] {
            let address = text.parse().unwrap();
            assert_eq!(address_of(&gid_of(address)), address);
        }
        assert_eq!(gid_of("192.0.2.1".parse().unwrap())[10..], [0xff, 0xff, 192, 0, 2, 1]);
    }

    #[test]
    fn some_addresses_are_of_one_host() {
        for (address, is_one) in [("10.0.0.1", true), ("2001:db8::1", true), ("224.0.0.1", false), ("ff02::1", false)] {
            assert_eq!(is_of_one_host(address.parse().unwrap()), is_one, "{address}");
        }
        assert!(!is_of_one_host("255.255.255.255".parse().unwrap()) && !is_of_one_host("::".parse().unwrap()));
    }

    #[test]
    fn psn_order_survives_the_wrap() {
        let last = Psn::new(0x00ff_ffff);
        assert_eq!(last.advance(1), Psn::new(0));
        assert!(last.advance(3).ahead_of(last));
        assert!(!last.ahead_of(last.advance(3)));
        assert!(!last.ahead_of(last));
        assert_eq!(last.advance(3).since(last), 3);
    }
}
