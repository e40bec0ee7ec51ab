//! Who a guest is: MAC, GUID and GIDs, all derived from the number of its host and from its index there.
//!
//! Both sides of the stand-in need the same answer (`pvrdma run` writes it into the sysfs tree, the preload
//! library binds it in the device), so it is computed here and stored nowhere.

use crate::handle::{Gid, address_of, gid_of};
use std::net::IpAddr;

/// Length of a guest's GID table; entries past the third are empty.
pub const GID_TBL_LEN: u32 = 16;
/// Highest number of a host that is linked to others. A host that is not has number 0.
pub const MAX_HOST: u8 = 254;
/// Number of guests a host can have: the index plus one is the last byte of an IPv4 host address.
pub const MAX_GUESTS: u8 = 254;
/// The RDMA device's name inside every guest, without the number that the Linux driver adds.
pub const DEVICE_STEM: &str = "vmw_pvrdma";
/// The network interface that owns the GIDs. Its addresses include all of 127.0.0.0/8, and that an address is
/// local is what libibverbs asks before it builds an address handle.
pub const NETDEV: &str = "lo";

/// How packets are encapsulated; a device has one type for all its GIDs (`pvrdma_device_caps.gid_types`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Roce {
    /// RoCE v1: Ethertype 0x8915.
    V1,
    /// RoCE v2: UDP port 4791.
    #[default]
    V2,
}

impl Roce {
    /// `PVRDMA_GID_TYPE_FLAG_ROCE_*`; equal to `IB_UVERBS_GID_TYPE_ROCE_*`.
    pub fn gid_type(self) -> u8 {
        match self {
            Roce::V1 => 1,
            Roce::V2 => 2,
        }
    }

    /// What `gid_attrs/types/N` says in sysfs.
    pub fn sysfs_name(self) -> &'static str {
        match self {
            Roce::V1 => "IB/RoCE v1",
            Roce::V2 => "RoCE v2",
        }
    }

    /// `v1` or `v2`, as on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Roce::V1 => "v1",
            Roce::V2 => "v2",
        }
    }
}

impl std::str::FromStr for Roce {
    type Err = ();

    fn from_str(name: &str) -> Result<Roce, ()> {
        match name {
            "v1" => Ok(Roce::V1),
            "v2" => Ok(Roce::V2),
            _ => Err(()),
        }
    }
}

/// A guest of this host or of another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guest {
    host: u8,
    index: u8,
    roce: Roce,
}

impl Guest {
    /// The guest with this index on the host with this number, if there can be such a host and it can have so many.
    pub fn new(host: u8, index: u8, roce: Roce) -> Option<Guest> {
        (host <= MAX_HOST && index < MAX_GUESTS).then_some(Guest { host, index, roce })
    }

    /// The guest that has this address, whatever its encapsulation; the default one is put in. `None`: an address that
    /// is no guest's, on no host.
    pub fn of(gid: &Gid) -> Option<Guest> {
        let (host, last) = match *gid {
            [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0x00, 0xc9, 0, 0xff, 0xfe, 0, host, last] => (host, last),
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, host, 82, last] => (host, last),
            _ => return None,
        };
        Guest::new(host, last.checked_sub(1)?, Roce::default())
    }

    /// Number of its host.
    pub fn host(self) -> u8 {
        self.host
    }

    /// Its index on the host.
    pub fn index(self) -> u8 {
        self.index
    }

    /// Its encapsulation.
    pub fn roce(self) -> Roce {
        self.roce
    }

    /// MAC of the paired network interface: locally administered, last bytes the host and the index plus one.
    pub fn mac(self) -> [u8; 6] {
        [0x02, 0xc9, 0, 0, self.host, self.index + 1]
    }

    /// Node GUID, the EUI-64 of the MAC, in network order.
    pub fn node_guid(self) -> [u8; 8] {
        let [a, b, c, d, e, f] = self.mac();
        [a ^ 0x02, b, c, 0xff, 0xfe, d, e, f]
    }

    /// Entry `index` of the GID table: 0 the link-local address of the MAC, 1 the IPv4 address
    /// `127.(host).82.(index + 1)`; all others are empty.
    pub fn gid(self, index: u32) -> Option<Gid> {
        let mut gid = [0; 16];
        match index {
            0 => {
                gid[..2].copy_from_slice(&[0xfe, 0x80]);
                gid[8..].copy_from_slice(&self.node_guid());
            }
            1 => {
                gid[10..12].copy_from_slice(&[0xff, 0xff]);
                gid[12..].copy_from_slice(&[127, self.host, 82, self.index + 1]);
            }
            _ => return None,
        }
        Some(gid)
    }

    /// Whether it has this address.
    pub fn has(self, gid: &Gid) -> bool {
        Guest::of(gid).is_some_and(|owner| (owner.host, owner.index) == (self.host, self.index))
    }

    /// The indices of the GID table that hold an address.
    pub fn gids(self) -> impl Iterator<Item = (u32, Gid)> {
        (0..GID_TBL_LEN).filter_map(move |index| Some((index, self.gid(index)?)))
    }
}

/// The entry of the GID table for [`Wire::gid`].
pub const WIRE_GID: u32 = 2;

/// What guests of a host have for those who speak RoCE and are no guests: adapters, Linux's `rdma_rxe`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wire {
    /// What is spoken there, by guests that have that version.
    pub roce: Roce,
    /// An address of the host, by which all its guests are known there.
    pub gid: Gid,
    /// Path MTU that the network carries, in bytes.
    pub mtu: u32,
}

impl Wire {
    /// The address as IP has it.
    pub fn address(&self) -> IpAddr {
        address_of(&self.gid)
    }
}

/// `VERSION ADDRESS MTU`, for the environment of programs.
impl std::fmt::Display for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {}", self.roce.name(), self.address(), self.mtu)
    }
}

impl std::str::FromStr for Wire {
    type Err = ();

    fn from_str(text: &str) -> Result<Wire, ()> {
        let (roce, rest) = text.split_once(' ').ok_or(())?;
        let (address, mtu) = rest.split_once(' ').ok_or(())?;
        let gid = gid_of(address.parse().map_err(drop)?);
        let mtu = mtu.parse().ok().filter(|mtu: &u32| (256..=4096).contains(mtu) && mtu.is_power_of_two());
        Ok(Wire { roce: roce.parse()?, gid, mtu: mtu.ok_or(())? })
    }
}

/// The MAC that owns `gid`, without asking anybody: from the EUI-64 of a link-local address, or from the guest an
/// IPv4 address belongs to. `None` for an address that tells of none.
pub fn mac_of(gid: &Gid) -> Option<[u8; 6]> {
    match *gid {
        [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a, b, c, 0xff, 0xfe, d, e, f] => Some([a ^ 0x02, b, c, d, e, f]),
        _ => Guest::of(gid).map(Guest::mac),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_guest_has_the_documented_addresses() {
        let guest = Guest::new(0, 0, Roce::V2).unwrap();
        assert_eq!(guest.mac(), [0x02, 0xc9, 0, 0, 0, 1]);
        assert_eq!(guest.node_guid(), [0x00, 0xc9, 0, 0xff, 0xfe, 0, 0, 1]);
        let link_local = guest.gid(0).unwrap();
        assert_eq!(link_local, [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0x00, 0xc9, 0, 0xff, 0xfe, 0, 0, 1]);
        assert_eq!(guest.gid(1).unwrap()[10..], [0xff, 0xff, 127, 0, 82, 1]);
        assert_eq!(guest.gids().count(), 2);
    }

    #[test]
    fn the_number_of_the_host_is_in_each_address() {
        let guest = Guest::new(7, 2, Roce::V2).unwrap();
        assert_eq!(guest.mac(), [0x02, 0xc9, 0, 0, 7, 3]);
        assert_eq!(guest.node_guid(), [0x00, 0xc9, 0, 0xff, 0xfe, 0, 7, 3]);
        assert_eq!(guest.gid(0).unwrap()[8..], guest.node_guid());
        assert_eq!(guest.gid(1).unwrap()[10..], [0xff, 0xff, 127, 7, 82, 3]);
    }

    #[test]
    fn every_gid_leads_back_to_its_guest() {
        for (host, index) in (0..=MAX_HOST).flat_map(|host| (0..MAX_GUESTS).map(move |index| (host, index))) {
            let guest = Guest::new(host, index, Roce::default()).unwrap();
            for (_, gid) in guest.gids() {
                assert_eq!((Guest::of(&gid), mac_of(&gid)), (Some(guest), Some(guest.mac())));
                assert!(guest.has(&gid));
                let others = [(host ^ 1, index), (host, index ^ 1)];
                let others = others.into_iter().filter_map(|(host, index)| Guest::new(host, index, Roce::V1));
                assert!(others.into_iter().all(|other| !other.has(&gid)));
            }
        }
    }

    #[test]
    fn strangers_are_no_guests() {
        let no_guest = |gid: &Gid| assert_eq!((Guest::of(gid), mac_of(gid)), (None, None));
        no_guest(&[0; 16]);
        let mut gid = Guest::new(0, 0, Roce::V2).unwrap().gid(1).unwrap();
        for (at, no_guests) in [(15, 0), (15, 255), (13, 255), (14, 81), (12, 10)] {
            let was = std::mem::replace(&mut gid[at], no_guests);
            no_guest(&gid);
            gid[at] = was;
        }
        // An adapter of another kind.
        let link_local = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0x02, 0x50, 0x56, 0xff, 0xfe, 1, 2, 3];
        assert_eq!((Guest::of(&link_local), mac_of(&link_local)), (None, Some([0, 0x50, 0x56, 1, 2, 3])));
    }

    #[test]
    fn what_a_host_has_for_others_comes_back_from_its_text() {
        for text in ["v2 192.0.2.1 1024", "v1 192.0.2.1 256", "v1 fe80::5054:ff:fe12:3456 512", "v2 2001:db8::1 4096"] {
            let wire: Wire = text.parse().unwrap();
            assert_eq!(wire.to_string(), text);
        }
        let wire: Wire = "v1 192.0.2.1 256".parse().unwrap();
        assert_eq!((wire.roce, &wire.gid[10..]), (Roce::V1, &[0xff, 0xff, 192, 0, 2, 1][..]));
        for text in ["", "192.0.2.1", "192.0.2.1 1000", "192.0.2.1 8192", "red 1024", "192.0.2.1 1024 lo"] {
            assert!(format!("v2 {text}").parse::<Wire>().is_err(), "{text}");
        }
        for text in ["v2", "192.0.2.1 1024", "v3 192.0.2.1 1024"] {
            assert!(text.parse::<Wire>().is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_past_the_last_address_are_refused() {
        assert!(Guest::new(0, MAX_GUESTS, Roce::V2).is_none());
        assert!(Guest::new(MAX_HOST + 1, 0, Roce::V2).is_none());
    }
}
