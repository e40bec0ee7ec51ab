//! Who a guest is on the host's fabric: MAC, GUID and GIDs, all derived from its index.
//!
//! Both sides of the stand-in need the same answer (`pvrdma run` writes it into the sysfs tree, the preload
//! library binds it in the device), so it is computed here and stored nowhere.

use crate::handle::Gid;

/// Length of a guest's GID table; entries past the second are empty.
pub const GID_TBL_LEN: u32 = 16;
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

/// A guest of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guest {
    index: u8,
    roce: Roce,
}

impl Guest {
    /// The guest with this index, if a host can have so many.
    pub fn new(index: u8, roce: Roce) -> Option<Guest> {
        (index < MAX_GUESTS).then_some(Guest { index, roce })
    }

    /// Its index on the host.
    pub fn index(self) -> u8 {
        self.index
    }

    /// Its encapsulation.
    pub fn roce(self) -> Roce {
        self.roce
    }

    /// MAC of the paired network interface: locally administered, last byte the index plus one.
    pub fn mac(self) -> [u8; 6] {
        [0x02, 0xc9, 0, 0, 0, self.index + 1]
    }

    /// Node GUID, the EUI-64 of the MAC, in network order.
    pub fn node_guid(self) -> [u8; 8] {
        let [a, b, c, d, e, f] = self.mac();
        [a ^ 0x02, b, c, 0xff, 0xfe, d, e, f]
    }

    /// Entry `index` of the GID table: 0 the link-local address of the MAC, 1 the IPv4 address
    /// `127.0.82.(index + 1)`; all others are empty.
    pub fn gid(self, index: u32) -> Option<Gid> {
        let mut gid = [0; 16];
        match index {
            0 => {
                gid[..2].copy_from_slice(&[0xfe, 0x80]);
                gid[8..].copy_from_slice(&self.node_guid());
            }
            1 => {
                gid[10..12].copy_from_slice(&[0xff, 0xff]);
                gid[12..].copy_from_slice(&[127, 0, 82, self.index + 1]);
            }
            _ => return None,
        }
        Some(gid)
    }

    /// The indices of the GID table that hold an address.
    pub fn gids(self) -> impl Iterator<Item = (u32, Gid)> {
        (0..GID_TBL_LEN).filter_map(move |index| Some((index, self.gid(index)?)))
    }
}

/// The MAC that owns `gid`, without asking anybody: from the EUI-64 of a link-local address, or from the guest an
/// IPv4 address belongs to. `None` for an address that is nobody's on this host.
pub fn mac_of(gid: &Gid) -> Option<[u8; 6]> {
    match *gid {
        [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a, b, c, 0xff, 0xfe, d, e, f] => Some([a ^ 0x02, b, c, d, e, f]),
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 82, last] => {
            Guest::new(last.checked_sub(1)?, Roce::default()).map(Guest::mac)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_guest_has_the_documented_addresses() {
        let guest = Guest::new(0, Roce::V2).unwrap();
        assert_eq!(guest.mac(), [0x02, 0xc9, 0, 0, 0, 1]);
        assert_eq!(guest.node_guid(), [0x00, 0xc9, 0, 0xff, 0xfe, 0, 0, 1]);
        let link_local = guest.gid(0).unwrap();
        assert_eq!(link_local, [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0x00, 0xc9, 0, 0xff, 0xfe, 0, 0, 1]);
        assert_eq!(guest.gid(1).unwrap()[10..], [0xff, 0xff, 127, 0, 82, 1]);
        assert_eq!(guest.gids().count(), 2);
    }

    #[test]
    fn every_gid_leads_back_to_its_guest() {
        for index in 0..MAX_GUESTS {
            let guest = Guest::new(index, Roce::V1).unwrap();
            for (_, gid) in guest.gids() {
                assert_eq!(mac_of(&gid), Some(guest.mac()));
            }
        }
    }

    #[test]
    fn strangers_have_no_mac() {
        assert_eq!(mac_of(&[0; 16]), None);
        let mut gid = Guest::new(0, Roce::V2).unwrap().gid(1).unwrap();
        gid[15] = 0;
        assert_eq!(mac_of(&gid), None);
        gid[15] = 255;
        assert_eq!(mac_of(&gid), None);
        gid[12..].copy_from_slice(&[10, 0, 0, 1]);
        assert_eq!(mac_of(&gid), None);
    }

    #[test]
    fn indices_past_the_last_address_are_refused() {
        assert!(Guest::new(MAX_GUESTS, Roce::V2).is_none());
    }
}
