//! Who is meant: the guests of this host, those of others, strangers; and who of them listens.

use super::Machine;
use super::address::{Address, Place};
use super::id::Id;
use super::port::{self, Ports};
use pvrdma_cm::connection::{Services, Verdict, Whose};
use pvrdma_device::guest::{Guest, MAX_GUESTS};
use pvrdma_device::handle::{Gid, address_of};
use pvrdma_ffi::uapi::rdma_user_cm::*;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Bytes in front of the private data of requests by IP address (IBA vol. 1, annex A11.2: version, IP version, port,
/// source, destination).
pub const IP_HEADER: usize = 36;

/// Bits of a communication id below the process's number.
pub const ID_BITS: u32 = 23;

/// The ids that listen, by service id.
pub type Listeners = HashMap<u64, BTreeSet<u32>>;

/// The addresses in front of the private data.
pub fn ip_header(src: &Address, dst: &Address) -> [u8; IP_HEADER] {
    let mut header = [0; IP_HEADER];
    header[1] = if src.is_v4() { 4 << 4 } else { 6 << 4 };
    header[2..4].copy_from_slice(&src.port().to_be_bytes());
    for (at, address) in [(4, src), (20, dst)] {
        match *address {
            Address::V4 { addr, .. } => header[at + 12..at + 16].copy_from_slice(&addr),
            _ => header[at..at + 16].copy_from_slice(&address.to_gid()),
        }
    }
    header
}

/// Source, and destination with the port of the service; `None`: there is no such header.
pub fn parse_ip_header(bytes: &[u8], service_id: u64) -> Option<(Address, Address)> {
    let header: &[u8; IP_HEADER] = bytes.first_chunk()?;
    let sixteen = |at: usize| -> [u8; 16] { std::array::from_fn(|n| header[at + n]) };
    let four = |at: usize| -> [u8; 4] { std::array::from_fn(|n| header[at + 12 + n]) };
    let port = u16::from_be_bytes([header[2], header[3]]);
    let service = service_id as u16;
    match (header[0], header[1] >> 4) {
        (0, 4) => Some((Address::V4 { addr: four(4), port }, Address::V4 { addr: four(20), port: service })),
        (0, 6) => Some((
            Address::V6 { addr: sixteen(4), port, scope: 0 },
            Address::V6 { addr: sixteen(20), port: service, scope: 0 },
        )),
        _ => None,
    }
}

/// The port space of a service id; `None`: of no port.
pub fn port_space(service_id: u64) -> Option<u16> {
    u16::try_from(service_id >> 16)
        .ok()
        .filter(|ps| matches!(*ps, RDMA_PS_IPOIB | RDMA_PS_IB | RDMA_PS_TCP | RDMA_PS_UDP))
}

/// Whether both are one, whatever their encapsulation.
pub fn is_same(a: Guest, b: Guest) -> bool {
    a.mac() == b.mac()
}

/// Whether an address is one of a guest of our own host. Of others nothing is known here: not which of them are there,
/// and not whether a process of theirs still runs. Messages go to them, and time tells.
pub fn is_here(own: Guest, gid: &Gid) -> bool {
    Guest::of(gid).is_some_and(|guest| guest.host() == own.host())
}

/// Who is at the other end of a connection, by the address and the number that it has there.
pub fn whose(machine: &dyn Machine, gid: &Gid, remote_id: u32) -> Whose {
    match (remote_id >> ID_BITS).checked_sub(1) {
        // Nobody with that number at that address: then it is gone, for it was there.
        Some(number) if is_here(machine.guest(), gid) => {
            machine.process(gid, number).map_or(Whose::Gone, Whose::Process)
        }
        _ => Whose::Stranger,
    }
}

/// Whether an address is no guest's, of whatever host.
pub fn is_stranger(gid: &Gid) -> bool {
    Guest::of(gid).is_none()
}

/// Whether both are IPv4 addresses, or neither is.
pub fn is_alike(a: &Gid, b: &Gid) -> bool {
    address_of(a).is_ipv4() == address_of(b).is_ipv4()
}

/// Whether there may be a way from our host to another guest's: hosts without a number have none.
pub fn links(own: Guest, to: Guest) -> bool {
    own.host() != 0 && to.host() != 0
}

/// The port spaces in which a service id may have its port: all of them if it is of none.
pub fn spaces_of(service_id: u64) -> Vec<u16> {
    port_space(service_id).map_or_else(|| vec![RDMA_PS_TCP, RDMA_PS_UDP, RDMA_PS_IB, RDMA_PS_IPOIB], |ps| vec![ps])
}

/// Finds who listens.
pub struct Lookup<'a> {
    /// Who is asked, and who asks.
    pub own: Guest,
    pub from: Gid,
    pub ids: &'a BTreeMap<u32, Id>,
    pub listeners: &'a Listeners,
    pub ports: &'a Ports,
    pub directory: &'a Path,
    /// Whether this process is the one that says that nobody listens, to strangers.
    pub speaks_for_all: bool,
}

impl Lookup<'_> {
    /// Whether one of these guests has the port, for somebody who knows all guests of the host by one address.
    fn is_held_by(&self, guests: Range<u8>, ps: u16, dst: &Address) -> bool {
        let others = guests.filter(|index| *index != self.own.index());
        is_stranger(&self.from)
            && others.into_iter().any(|index| port::is_held_in(&directory_of(self.directory, index), ps, dst))
    }
}

pub fn directory_of(host: &Path, guest: u8) -> PathBuf {
    host.join(format!("guests/{guest}"))
}

impl Services for Lookup<'_> {
    fn find(&mut self, service_id: u64, private_data: &[u8], datagrams: bool) -> Verdict {
        let by_ip = parse_ip_header(private_data, service_id);
        let dst = by_ip.map(|(_, dst)| dst);
        // The closer an address is met the better: its own, anybody's of its family, anybody's at all.
        let rank = |id: &Id| {
            let bound = id.src?;
            match (bound.place(), dst) {
                (_, None) if bound.is_ib() => Some(0),
                (_, None) => None,
                (_, Some(_)) if bound.is_ib() => Some(3),
                (Place::Any, Some(dst)) if bound.is_v4() == dst.is_v4() => Some(1),
                (Place::Any, Some(_)) => (!bound.is_v4() && !id.v6_only).then_some(2),
                (_, Some(dst)) => (bound.to_gid() == dst.to_gid()).then_some(0),
            }
        };
        let listening = self.listeners.get(&service_id).into_iter().flatten();
        let listening = listening.filter_map(|number| Some((number, self.ids.get(number)?)));
        let listening = listening.filter(|(_, id)| id.is_datagram() == datagrams);
        let best = listening.filter_map(|(number, id)| Some((rank(id)?, number, id))).min_by_key(|(rank, ..)| *rank);
        let spaces = spaces_of(service_id);
        let dst = dst.unwrap_or(Address::Ib { gid: [0; 16], sid: service_id, mask: 0 });
        if let Some((_, number, id)) = best {
            // Where several guests have the port, the first of them has it for strangers.
            if spaces.iter().any(|ps| self.is_held_by(0..self.own.index(), *ps, &dst)) {
                return Verdict::NotNow;
            }
            return if id.backlog == 0 { Verdict::NotNow } else { Verdict::Listener(u64::from(*number)) };
        }
        // Who has the port answers. If nobody has, whoever asks has seen that; only a stranger has to be told.
        let kept = |ps: &u16| {
            let here = self.ports.is_expected(*ps, &dst) || self.ports.is_held_elsewhere(*ps, &dst);
            here || self.is_held_by(0..MAX_GUESTS, *ps, &dst)
        };
        let is_told = match () {
            () if is_here(self.own, &self.from) => false,
            () if is_stranger(&self.from) => self.speaks_for_all,
            () => true,
        };
        let speaks = is_told || spaces.iter().any(|ps| self.ports.has(*ps, dst.port()));
        if !speaks || spaces.iter().any(kept) { Verdict::NotNow } else { Verdict::Nobody }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pvrdma_device::device::Device;
    use pvrdma_device::guest::Roce;
    use std::sync::Arc;

    fn guest(host: u8, index: u8) -> Guest {
        Guest::new(host, index, Roce::default()).unwrap()
    }

    /// Host 7, with process 3, of its second guest.
    struct Seven;

    impl Machine for Seven {
        fn device(&self) -> &Arc<Device> {
            unreachable!("nobody asks for it")
        }

        fn guest(&self) -> Guest {
            guest(7, 0)
        }

        fn wire(&self) -> Option<pvrdma_device::guest::Wire> {
            None
        }

        fn number(&self) -> u32 {
            2
        }

        fn seed(&self) -> u64 {
            1
        }

        fn directory(&self) -> &std::path::Path {
            std::path::Path::new("/nowhere")
        }

        fn take_in(&self) {}

        fn process(&self, gid: &Gid, number: u32) -> Option<u64> {
            (number == 3 && guest(7, 1).has(gid)).then_some(33)
        }

        fn speaks_for_all(&self, _gid: &Gid) -> bool {
            true
        }

        fn runs(&self, process: u64) -> bool {
            process == 33
        }

        fn wake(&self) {}
    }

    #[test]
    fn nobody_watches_a_process_of_another_host() {
        let of = |guest: Guest, number: u32| {
            let gids = guest.gids().map(|(_, gid)| whose(&Seven, &gid, (number + 1) << ID_BITS | 5));
            gids.collect::<Vec<_>>()
        };
        assert_eq!(of(guest(7, 1), 3), [Whose::Process(33); 2]);
        assert_eq!(of(guest(7, 1), 4), [Whose::Gone; 2]);
        assert_eq!(of(guest(7, 2), 3), [Whose::Gone; 2]);
        assert_eq!(of(guest(8, 1), 3), [Whose::Stranger; 2]);
        assert_eq!(of(guest(0, 1), 3), [Whose::Stranger; 2]);
        // A kernel's numbers are not ours.
        assert_eq!(whose(&Seven, &guest(7, 1).gid(1).unwrap(), 5), Whose::Stranger);
    }

    #[test]
    fn only_hosts_with_numbers_have_a_way_to_each_other() {
        assert!(links(guest(7, 0), guest(8, 0)));
        assert!(!links(guest(0, 0), guest(8, 0)) && !links(guest(7, 0), guest(0, 0)));
        assert!(is_here(guest(7, 0), &guest(7, 200).gid(0).unwrap()));
        assert!(!is_here(guest(7, 0), &guest(0, 0).gid(1).unwrap()) && !is_here(guest(7, 0), &[0; 16]));
    }
}
