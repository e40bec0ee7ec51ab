//! Address handles: where a datagram goes. They live in user space alone; the device sees the
//! address vector that [`crate::fast::wqe`] copies into each request.
//!
//! The one thing an application does not know is the destination's MAC. The kernel's neighbour
//! table does; asking it takes several system calls and may take seconds, so answers are kept for
//! a while ([`crate::verbs::neighbour`]).

use crate::support::error::Errno;
use crate::support::loaded::libibverbs;
use crate::support::log::refuse;
use crate::verbs::context::{Context, Port};
use crate::verbs::neighbour::{Gid, Mac, Neighbour, gid_of};
use crate::verbs::pd::{DomainRef, Pd};
use core::ffi::c_int;
use core::ptr;
use pvrdma_ffi::uapi::vmw_pvrdma::pvrdma_av;
use pvrdma_ffi::verbs::*;
use zerocopy::transmute;

/// An address handle; the `ibv_ah` in front is what libibverbs and applications hold.
#[repr(C)]
pub struct Ah {
    verbs: ibv_ah,
    av: AvWords,
    _domain_ref: DomainRef,
}

/// A [`pvrdma_av`] as it is copied.
pub type AvWords = [u64; size_of::<pvrdma_av>() / 8];

impl Ah {
    /// # Safety
    /// `ah` must be a live AH of ours. The reference must not outlive it.
    #[inline(always)]
    pub unsafe fn of<'a>(ah: *mut ibv_ah) -> &'a Self {
        // SAFETY: the ibv_ah is at the front of the Ah.
        unsafe { &*ah.cast() }
    }

    /// An AH that libibverbs has not seen.
    pub fn new(av: pvrdma_av, domain_ref: DomainRef) -> Box<Self> {
        let verbs = ibv_ah { context: ptr::null_mut(), pd: ptr::null_mut(), handle: 0 };
        Box::new(Self { verbs, av: transmute!(av), _domain_ref: domain_ref })
    }

    /// What goes into a request.
    #[inline(always)]
    pub fn av(&self) -> &AvWords {
        &self.av
    }

    /// As C sees it.
    pub fn into_verbs(self: Box<Self>) -> *mut ibv_ah {
        Box::into_raw(self).cast()
    }
}

/// `create_ah`. `dlid` means nothing on Ethernet and is not looked at (some applications keep a
/// UDP source port in it); `static_rate` is not passed on, as the kernel's own driver does not.
///
/// # Safety
/// `pd` must be a live PD of ours, `attr` valid.
pub unsafe fn create_ah(pd: *mut ibv_pd, attr: *mut ibv_ah_attr) -> Result<*mut ibv_ah, Errno> {
    // SAFETY: promise of the caller; libibverbs has set `pd.context`.
    let (mut attr, domain, context) = unsafe { (ibv_ah_attr::copy_of(attr), Pd::of(pd), (*pd).context) };
    // SAFETY: the context of a live PD.
    let own = unsafe { Context::of(context) }?;
    // SAFETY: as above.
    let port = unsafe { own.port(context, attr.port_num) }?;
    check(&attr, &port).map_err(|errno| {
        refuse(errno, format_args!("create_ah: no GRH, no such GID index, or no such SL: {attr:?}"))
    })?;
    let gid = gid_of(&attr);
    let dmac = match mac_in(&gid) {
        Told::Mac(mac) => mac,
        Told::Nothing if !port.ip_based_gids => {
            return Err(refuse(
                Errno::EINVAL,
                format_args!("create_ah: the port has no IP based GIDs, and no MAC is in {}", show(&gid)),
            ));
        }
        Told::LinkLocal(mac) if !port.ip_based_gids => mac,
        told => {
            // SAFETY: as above; a copy of the attributes, for libibverbs to write to.
            let found = own.neighbours.find(Neighbour::of(&attr), || unsafe { resolve(context, &mut attr) });
            match (found, told) {
                (Ok(mac), _) => mac,
                // Nobody answers, but such an address usually has the MAC inside.
                (Err(_), Told::LinkLocal(mac)) => mac,
                (Err(errno), _) => {
                    return Err(refuse(
                        errno,
                        format_args!("create_ah: no neighbour at {}: errno {}", show(&gid), errno.0),
                    ));
                }
            }
        }
    };
    Ok(Ah::new(address_vector(&attr, domain.pdn, dmac), DomainRef::of(domain)).into_verbs())
}

/// `destroy_ah`.
///
/// # Safety
/// `ah` must come from [`create_ah`]; it is gone.
pub unsafe fn destroy_ah(ah: *mut ibv_ah) {
    // SAFETY: nobody else has it: the device got copies.
    drop(unsafe { Box::from_raw(ah.cast::<Ah>()) });
}

/// RoCE has no addresses but GIDs.
fn check(attr: &ibv_ah_attr, port: &Port) -> Result<(), Errno> {
    let gid_exists = c_int::from(attr.grh.sgid_index) < port.gid_tbl_len;
    if attr.is_global == 0 || !gid_exists || attr.sl > 15 {
        return Err(Errno::EINVAL);
    }
    Ok(())
}

/// As `ibv_devinfo` shows it.
fn show(gid: &Gid) -> std::net::Ipv6Addr {
    (*gid).into()
}

fn address_vector(attr: &ibv_ah_attr, pdn: u32, dmac: Mac) -> pvrdma_av {
    /// "There is a GRH", in the byte of the path bits.
    const GRH: u8 = 1 << 7;
    let grh = &attr.grh;
    pvrdma_av {
        port_pd: pdn | u32::from(attr.port_num) << 24,
        sl_tclass_flowlabel: u32::from(attr.sl) << 28
            | u32::from(grh.traffic_class) << 20
            | grh.flow_label & 0x000f_ffff,
        dgid: gid_of(attr),
        src_path_bits: attr.src_path_bits | GRH,
        gid_index: grh.sgid_index,
        stat_rate: 0,
        hop_limit: grh.hop_limit,
        dmac,
        reserved: [0; 6],
    }
}

/// What a GID says about the MAC behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// This one: the GID is of a multicast group, whose MAC follows from it.
    Mac(Mac),
    /// Probably this one: a link-local address made from a MAC.
    LinkLocal(Mac),
    Nothing,
}

fn mac_in(gid: &Gid) -> Told {
    match *gid {
        // IPv4 groups are mapped: 23 bits of the group behind a fixed prefix.
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 224..=239, b, c, d] => Told::Mac([0x01, 0x00, 0x5e, b & 0x7f, c, d]),
        [0xff, _, _, _, _, _, _, _, _, _, _, _, a, b, c, d] => Told::Mac([0x33, 0x33, a, b, c, d]),
        // EUI-64: the MAC's halves around ff:fe, its universal bit inverted.
        [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a, b, c, 0xff, 0xfe, d, e, f] => Told::LinkLocal([a ^ 2, b, c, d, e, f]),
        _ => Told::Nothing,
    }
}

/// Ask libibverbs, which asks the kernel. May take seconds.
///
/// # Safety
/// `context` must be open.
unsafe fn resolve(context: *mut ibv_context, attr: &mut ibv_ah_attr) -> Result<Mac, Errno> {
    let (mut mac, mut vlan) = (Mac::default(), 0);
    Errno::clear();
    // SAFETY: room for a MAC and a VLAN number; the rest is the caller's promise.
    let ret = unsafe { (libibverbs()?.resolve_eth_l2_from_gid)(context, attr, mac.as_mut_ptr(), &mut vlan) };
    match ret {
        0 => Ok(mac),
        1.. => Err(Errno(ret)),
        // Not every path sets errno.
        _ => Err(match Errno::last() {
            Errno(0) => Errno::EHOSTUNREACH,
            errno => errno,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORT: Port = Port { gid_tbl_len: 16, ip_based_gids: true };

    fn attr(gid: Gid) -> ibv_ah_attr {
        let mut attr = ibv_ah_attr { is_global: 1, port_num: 1, ..Default::default() };
        attr.grh.dgid = transmute!(gid);
        attr
    }

    const LINK_LOCAL: Gid = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0x02, 0x0c, 0x29, 0xff, 0xfe, 0x01, 0x02, 0x03];
    const GLOBAL: Gid = [0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    const MAPPED: Gid = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1];

    #[test]
    fn a_gid_tells_its_mac_where_it_can() {
        assert_eq!(mac_in(&LINK_LOCAL), Told::LinkLocal([0x00, 0x0c, 0x29, 0x01, 0x02, 0x03]));
        assert_eq!(mac_in(&GLOBAL), Told::Nothing);
        assert_eq!(mac_in(&MAPPED), Told::Nothing);
        // Link-local, but not made from a MAC.
        assert_eq!(mac_in(&[0xfe, 0x80, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]), Told::Nothing);
    }

    #[test]
    fn groups_have_the_macs_of_their_ip_versions() {
        let v6 = [0xff, 0x0e, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xe1, 2, 3, 4];
        assert_eq!(mac_in(&v6), Told::Mac([0x33, 0x33, 0xe1, 2, 3, 4]));
        let v4 = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 239, 0x81, 2, 3];
        assert_eq!(mac_in(&v4), Told::Mac([0x01, 0x00, 0x5e, 0x01, 2, 3]));
    }

    #[test]
    fn every_attribute_lands_in_the_devices_fields() {
        let mut attr = attr(GLOBAL);
        attr.sl = 9;
        attr.src_path_bits = 5;
        attr.static_rate = 3;
        attr.grh.flow_label = 0xfff1_2345;
        attr.grh.traffic_class = 0xab;
        attr.grh.sgid_index = 7;
        attr.grh.hop_limit = 64;
        let av = address_vector(&attr, 0x1234, [1, 2, 3, 4, 5, 6]);
        assert_eq!(av.port_pd, 0x0100_1234);
        assert_eq!(av.sl_tclass_flowlabel, 0x9ab1_2345);
        assert_eq!(av.dgid, GLOBAL);
        assert_eq!((av.src_path_bits, av.gid_index, av.stat_rate, av.hop_limit), (0x85, 7, 0, 64));
        assert_eq!((av.dmac, av.reserved), ([1, 2, 3, 4, 5, 6], [0; 6]));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        assert_eq!(check(&attr(GLOBAL), &PORT), Ok(()));
        let no_grh = ibv_ah_attr { is_global: 0, ..attr(GLOBAL) };
        assert_eq!(check(&no_grh, &PORT), Err(Errno::EINVAL));
        let mut no_such_gid = attr(GLOBAL);
        no_such_gid.grh.sgid_index = 16;
        assert_eq!(check(&no_such_gid, &PORT), Err(Errno::EINVAL));
        assert_eq!(check(&ibv_ah_attr { sl: 16, ..attr(GLOBAL) }, &PORT), Err(Errno::EINVAL));
    }
}
