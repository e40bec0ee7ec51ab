//! Which device, port and address.

use crate::card::Link;
use std::convert::Infallible;
use std::fs;
use std::net::Ipv6Addr;
use std::str::FromStr;

/// Which adapter is to be used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// None.
    #[default]
    None,
    /// The first one with an active port.
    Auto,
    /// The one of this name.
    Named(String),
}

/// `NAME`, `auto` or `none`.
impl FromStr for Choice {
    type Err = Infallible;

    fn from_str(name: &str) -> Result<Choice, Infallible> {
        Ok(match name {
            "none" => Choice::None,
            "auto" => Choice::Auto,
            name => Choice::Named(name.to_owned()),
        })
    }
}

/// A row of a port's table of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    pub index: u8,
    pub gid: [u8; 16],
    pub link: Link,
}

/// The best address of a port, as sysfs has them: RoCE v2 before v1, an IPv4 address before other ones, and those
/// before one that is good for this link alone.
pub fn address(device: &str, port: u8, infiniband: bool) -> Option<Address> {
    let port = format!("/sys/class/infiniband/{device}/ports/{port}");
    let read = |what: &str, index: u8| fs::read_to_string(format!("{port}/{what}/{index}")).ok();
    let rows = (0..=u8::MAX).map_while(|index| Some((index, read("gids", index)?)));
    let addresses = rows.filter_map(|(index, gid)| {
        let gid: Ipv6Addr = gid.trim().parse().ok().filter(|gid: &Ipv6Addr| !gid.is_unspecified())?;
        let link = match (infiniband, read("gid_attrs/types", index)) {
            (true, _) => Link::InfiniBand,
            (false, Some(kind)) if kind.trim() == "RoCE v2" => Link::RoceV2,
            // A row without a kind, as of one that went in this moment.
            (false, None) => return None,
            (false, Some(_)) => Link::RoceV1,
        };
        Some(Address { index, gid: gid.octets(), link })
    });
    best(addresses)
}

fn best(addresses: impl Iterator<Item = Address>) -> Option<Address> {
    addresses.min_by_key(|address| {
        let gid = Ipv6Addr::from(address.gid);
        let roce = address.link == Link::RoceV1;
        // Of an InfiniBand port the first one is what its subnet has.
        let order = if address.link == Link::InfiniBand { address.index } else { 0 };
        (roce, order, gid.to_ipv4_mapped().is_none(), gid.is_unicast_link_local(), address.index)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_address_is_one_that_goes_far() {
        let row = |index, gid: &str, link| Address { index, gid: gid.parse::<Ipv6Addr>().unwrap().octets(), link };
        let rows = [
            row(0, "fe80::1", Link::RoceV1),
            row(1, "fe80::1", Link::RoceV2),
            row(2, "::ffff:10.0.0.1", Link::RoceV1),
            row(3, "2001:db8::1", Link::RoceV2),
            row(4, "::ffff:10.0.0.1", Link::RoceV2),
            row(5, "::ffff:10.0.0.2", Link::RoceV2),
        ];
        for (count, index) in [(6, 4), (4, 3), (3, 1), (1, 0)] {
            assert_eq!(best(rows[..count].iter().copied()).map(|row| row.index), Some(index));
        }
        let rows = [row(0, "fe80::1", Link::InfiniBand), row(1, "2001:db8::1", Link::InfiniBand)];
        assert_eq!(best(rows.into_iter()).map(|row| row.index), Some(0));
        assert_eq!(best([].into_iter()), None);
    }

    #[test]
    fn a_choice_is_a_word() {
        let choices = ["none", "auto", "mlx5_0"].map(|word| word.parse::<Choice>().unwrap());
        assert_eq!(choices, [Choice::None, Choice::Auto, Choice::Named("mlx5_0".into())]);
    }
}
