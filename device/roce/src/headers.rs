//! What is in front of a packet on Ethernet: a GRH for RoCE v1 (IBA annex A16), IPv4 or IPv6 and UDP for RoCE v2 (annex
//! A17).
//!
//! An [`Envelope`] is the fields of these headers that are anybody's choice; lengths and checksums follow from the
//! packet. Headers that a RoCE adapter does not send (IP options, fragments) are refused.

use thiserror::Error;

/// Port address, 16 bytes in network order.
pub type Gid = [u8; 16];

/// UDP port of RoCE v2.
pub const PORT: u16 = 4791;
/// Ethertype of RoCE v1.
pub const ETHERTYPE_V1: u16 = 0x8915;
/// Ethertype of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// Ethertype of IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
/// Most bytes of an envelope: IPv6 and UDP.
pub const ENVELOPE_MAX: usize = IPV6 + UDP;
/// What the first bytes of a GID are whose last four are an IPv4 address.
const MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

const IPV4: usize = 20;
const IPV6: usize = 40;
const UDP: usize = 8;
/// IP's number of UDP, and a GRH's of a packet with a BTH.
const NEXT_UDP: u8 = 17;
const NEXT_BTH: u8 = 0x1b;
const DONT_FRAGMENT: u16 = 0x4000;

/// Why bytes are no envelope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum NoEnvelope {
    #[error("Ethertype {0:#06x}")]
    Ethertype(u16),
    #[error("it ends in its headers, or sooner than they say")]
    Short,
    #[error("a field of the IP header or GRH that RoCE does not send")]
    Header,
    #[error("a wrong checksum of the IP header")]
    Checksum,
    #[error("protocol {0}")]
    Protocol(u8),
    #[error("UDP port {0}")]
    Port(u16),
    #[error("lengths that contradict each other")]
    Length,
}

/// Between whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "fields carry the names of the headers")]
pub enum Network {
    /// RoCE v1: a GRH.
    V1 { source: Gid, dest: Gid },
    /// RoCE v2 over IPv4.
    V4 { source: [u8; 4], dest: [u8; 4], id: u16, dont_fragment: bool },
    /// RoCE v2 over IPv6.
    V6 { source: Gid, dest: Gid },
}

/// All that is in front of a packet, but for Ethernet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Envelope {
    /// Addresses, and what is IPv4's alone.
    pub network: Network,
    /// Traffic class, or IPv4's type of service.
    pub traffic_class: u8,
    /// Flow label, 20 bits; 0 with IPv4, which has none.
    pub flow_label: u32,
    /// Hop limit, or IPv4's time to live.
    pub hop_limit: u8,
    /// UDP port it comes from; 0 with RoCE v1.
    pub source_port: u16,
}

/// The sum that IPv4 has of its header (RFC 1071).
pub(crate) fn internet_checksum(header: &[u8]) -> u16 {
    let words = header.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

impl Envelope {
    /// One of hop limit 64, and of RoCE v2 from the port that it goes to.
    pub fn new(network: Network) -> Envelope {
        let source_port = if matches!(network, Network::V1 { .. }) { 0 } else { PORT };
        Envelope { network, traffic_class: 0, flow_label: 0, hop_limit: 64, source_port }
    }

    /// What RoCE v2 has between two GIDs: IPv4 if both are IPv4 addresses.
    pub fn v2(source: &Gid, dest: &Gid) -> Envelope {
        Envelope::new(match (source.split_last_chunk::<4>(), dest.split_last_chunk::<4>()) {
            (Some((here, source)), Some((there, dest))) if *here == MAPPED && *there == MAPPED => {
                Network::V4 { source: *source, dest: *dest, id: 0, dont_fragment: true }
            }
            _ => Network::V6 { source: *source, dest: *dest },
        })
    }

    /// What RoCE v1 has between two GIDs.
    pub fn v1(source: &Gid, dest: &Gid) -> Envelope {
        Envelope::new(Network::V1 { source: *source, dest: *dest })
    }

    /// The GIDs of both ends.
    pub fn gids(&self) -> (Gid, Gid) {
        let mapped = |address: &[u8; 4]| {
            let mut gid = [0; 16];
            gid[..12].copy_from_slice(&MAPPED);
            gid[12..].copy_from_slice(address);
            gid
        };
        match &self.network {
            Network::V1 { source, dest } | Network::V6 { source, dest } => (*source, *dest),
            Network::V4 { source, dest, .. } => (mapped(source), mapped(dest)),
        }
    }

    /// What Ethernet calls what follows it.
    pub fn ethertype(&self) -> u16 {
        match self.network {
            Network::V1 { .. } => ETHERTYPE_V1,
            Network::V4 { .. } => ETHERTYPE_IPV4,
            Network::V6 { .. } => ETHERTYPE_IPV6,
        }
    }

    /// Bytes of its headers.
    pub fn size(&self) -> usize {
        match self.network {
            Network::V1 { .. } => IPV6,
            Network::V4 { .. } => IPV4 + UDP,
            Network::V6 { .. } => IPV6 + UDP,
        }
    }

    /// Writes the headers in front of `len` bytes: packet and ICRC.
    pub fn write(&self, len: usize, out: &mut Vec<u8>) {
        let mut headers = [0; ENVELOPE_MAX];
        out.extend(self.fill(len, &mut headers));
    }

    /// The headers, with the fields as ones that change on the way or are sums (A17.3.3: what ICRC is not over).
    pub(crate) fn masked<'a>(&self, len: usize, into: &'a mut [u8; ENVELOPE_MAX]) -> &'a [u8] {
        self.fill(len, into);
        let headers = &mut into[..self.size()];
        let udp = match self.network {
            Network::V4 { .. } => {
                headers[1] = 0xff;
                headers[8] = 0xff;
                headers[10..12].fill(0xff);
                IPV4
            }
            Network::V1 { .. } | Network::V6 { .. } => {
                headers[0] |= 0x0f;
                headers[1..4].fill(0xff);
                headers[7] = 0xff;
                IPV6
            }
        };
        if let Some(checksum) = headers.get_mut(udp + 6..udp + 8) {
            checksum.fill(0xff);
        }
        headers
    }

    fn fill<'a>(&self, len: usize, into: &'a mut [u8; ENVELOPE_MAX]) -> &'a [u8] {
        // No packet is so long that a length could not be said.
        let length = |more: usize| u16::try_from(len + more).unwrap_or(u16::MAX).to_be_bytes();
        let headers = &mut into[..self.size()];
        let udp = match &self.network {
            Network::V4 { source, dest, id, dont_fragment } => {
                let fragment = if *dont_fragment { DONT_FRAGMENT } else { 0 };
                headers[0] = 0x45;
                headers[1] = self.traffic_class;
                headers[2..4].copy_from_slice(&length(IPV4 + UDP));
                headers[4..6].copy_from_slice(&id.to_be_bytes());
                headers[6..8].copy_from_slice(&fragment.to_be_bytes());
                headers[8] = self.hop_limit;
                headers[9] = NEXT_UDP;
                headers[10..12].fill(0);
                headers[12..16].copy_from_slice(source);
                headers[16..20].copy_from_slice(dest);
                let checksum = internet_checksum(&headers[..IPV4]);
                headers[10..12].copy_from_slice(&checksum.to_be_bytes());
                IPV4
            }
            Network::V1 { source, dest } | Network::V6 { source, dest } => {
                let v1 = matches!(self.network, Network::V1 { .. });
                let word = 6 << 28 | u32::from(self.traffic_class) << 20 | self.flow_label & 0xf_ffff;
                headers[..4].copy_from_slice(&word.to_be_bytes());
                headers[4..6].copy_from_slice(&length(if v1 { 0 } else { UDP }));
                headers[6] = if v1 { NEXT_BTH } else { NEXT_UDP };
                headers[7] = self.hop_limit;
                headers[8..24].copy_from_slice(source);
                headers[24..40].copy_from_slice(dest);
                IPV6
            }
        };
        if let Some(header) = headers.get_mut(udp..udp + UDP) {
            header[..2].copy_from_slice(&self.source_port.to_be_bytes());
            header[2..4].copy_from_slice(&PORT.to_be_bytes());
            header[4..6].copy_from_slice(&length(UDP));
            // No sum: the packet has its own (A17.4.4).
            header[6..].fill(0);
        }
        headers
    }

    /// Takes an envelope off what follows an Ethernet header of this Ethertype. What remains is the packet and its
    /// ICRC; what Ethernet has filled its shortest frame with is dropped.
    pub fn parse(ethertype: u16, bytes: &[u8]) -> Result<(Envelope, &[u8]), NoEnvelope> {
        let (mut envelope, next, rest) = match ethertype {
            ETHERTYPE_IPV4 => ipv4(bytes)?,
            ETHERTYPE_IPV6 | ETHERTYPE_V1 => ipv6(bytes, ethertype == ETHERTYPE_V1)?,
            _ => return Err(NoEnvelope::Ethertype(ethertype)),
        };
        let v1 = ethertype == ETHERTYPE_V1;
        if next != if v1 { NEXT_BTH } else { NEXT_UDP } {
            return Err(NoEnvelope::Protocol(next));
        }
        if v1 {
            return Ok((envelope, rest));
        }
        let ([a, b, c, d, e, f, ..], packet) = rest.split_first_chunk::<UDP>().ok_or(NoEnvelope::Short)?;
        let port = u16::from_be_bytes([*c, *d]);
        if port != PORT {
            return Err(NoEnvelope::Port(port));
        }
        if usize::from(u16::from_be_bytes([*e, *f])) != rest.len() {
            return Err(NoEnvelope::Length);
        }
        envelope.source_port = u16::from_be_bytes([*a, *b]);
        Ok((envelope, packet))
    }
}

/// An envelope without its port, the protocol that follows, and as much of the rest as the header says.
type Headed<'a> = (Envelope, u8, &'a [u8]);

fn ipv4(bytes: &[u8]) -> Result<Headed<'_>, NoEnvelope> {
    let (header, rest) = bytes.split_first_chunk::<IPV4>().ok_or(NoEnvelope::Short)?;
    let fragment = u16::from_be_bytes([header[6], header[7]]);
    if header[0] != 0x45 || fragment & !DONT_FRAGMENT != 0 {
        return Err(NoEnvelope::Header);
    }
    if internet_checksum(header) != 0 {
        return Err(NoEnvelope::Checksum);
    }
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let rest = total.checked_sub(IPV4).and_then(|len| rest.get(..len)).ok_or(NoEnvelope::Short)?;
    let network = Network::V4 {
        source: [header[12], header[13], header[14], header[15]],
        dest: [header[16], header[17], header[18], header[19]],
        id: u16::from_be_bytes([header[4], header[5]]),
        dont_fragment: fragment & DONT_FRAGMENT != 0,
    };
    let envelope = Envelope { traffic_class: header[1], hop_limit: header[8], ..Envelope::new(network) };
    Ok((envelope, header[9], rest))
}

fn ipv6(bytes: &[u8], v1: bool) -> Result<Headed<'_>, NoEnvelope> {
    let (header, rest) = bytes.split_first_chunk::<IPV6>().ok_or(NoEnvelope::Short)?;
    let word = u32::from_be_bytes([header[0], header[1], header[2], header[3]]);
    if word >> 28 != 6 {
        return Err(NoEnvelope::Header);
    }
    let len = usize::from(u16::from_be_bytes([header[4], header[5]]));
    let rest = rest.get(..len).ok_or(NoEnvelope::Short)?;
    let (mut source, mut dest) = ([0; 16], [0; 16]);
    source.copy_from_slice(&header[8..24]);
    dest.copy_from_slice(&header[24..40]);
    let network = if v1 { Network::V1 { source, dest } } else { Network::V6 { source, dest } };
    let envelope = Envelope {
        traffic_class: (word >> 20) as u8,
        flow_label: word & 0xf_ffff,
        hop_limit: header[7],
        ..Envelope::new(network)
    };
    Ok((envelope, header[6], rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Rng, random_envelope};

    #[test]
    fn envelopes_come_back_from_their_bytes() {
        let mut rng = Rng::from_env(4);
        for _ in 0..2000 {
            let envelope = random_envelope(&mut rng);
            let rest = rng.bytes(40);
            let mut bytes = Vec::new();
            envelope.write(rest.len(), &mut bytes);
            assert_eq!(bytes.len(), envelope.size());
            bytes.extend(&rest);
            // What Ethernet adds is not the packet's.
            bytes.extend([0; 7]);
            assert_eq!(Envelope::parse(envelope.ethertype(), &bytes), Ok((envelope, &rest[..])));
            for len in 0..envelope.size() + rest.len() {
                let error = Envelope::parse(envelope.ethertype(), &bytes[..len]);
                assert_eq!(error, Err(NoEnvelope::Short), "{len} bytes of {envelope:?}");
            }
        }
    }

    #[test]
    fn two_ipv4_gids_make_ipv4_and_others_ipv6() {
        let mapped = |last| [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 1, 2, last];
        let link_local = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0xff, 0xfe, 0, 0, 1];
        for (source, dest, size) in [(mapped(1), mapped(2), 28), (mapped(1), link_local, 48)] {
            let envelope = Envelope::v2(&source, &dest);
            assert_eq!((envelope.size(), envelope.gids()), (size, (source, dest)));
            assert_eq!(Envelope::v1(&source, &dest).gids(), (source, dest));
        }
    }

    /// A17.4.4: a sender may have left UDP's out. The ICRC is over more, and is there always.
    #[test]
    fn a_checksum_of_udp_is_sent_as_zero_and_not_looked_at() {
        for source in [[1; 16], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 1, 2, 3]] {
            let envelope = Envelope::v2(&source, &source);
            let mut bytes = Vec::new();
            envelope.write(4, &mut bytes);
            bytes.extend([0; 4]);
            let at = envelope.size() - 2;
            assert_eq!(bytes[at..at + 2], [0, 0]);
            bytes[at..at + 2].fill(0x77);
            assert_eq!(Envelope::parse(envelope.ethertype(), &bytes), Ok((envelope, &[0; 4][..])));
        }
    }

    #[test]
    fn headers_that_no_adapter_sends_are_refused() {
        let gid = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 1, 2, 3];
        let refused = |envelope: Envelope, at: usize, byte: u8, sum: bool| {
            let mut bytes = Vec::new();
            envelope.write(8, &mut bytes);
            bytes.extend([0; 8]);
            bytes[at] = byte;
            if sum {
                bytes[10..12].fill(0);
                let checksum = internet_checksum(&bytes[..IPV4]).to_be_bytes();
                bytes[10..12].copy_from_slice(&checksum);
            }
            Envelope::parse(envelope.ethertype(), &bytes).map(drop).unwrap_err()
        };
        let v4 = Envelope::v2(&gid, &gid);
        assert_eq!(refused(v4, 0, 0x46, true), NoEnvelope::Header, "options");
        assert_eq!(refused(v4, 6, 0x20, true), NoEnvelope::Header, "a fragment");
        assert_eq!(refused(v4, 7, 1, true), NoEnvelope::Header, "a later fragment");
        assert_eq!(refused(v4, 8, 1, false), NoEnvelope::Checksum);
        assert_eq!(refused(v4, 9, 6, true), NoEnvelope::Protocol(6));
        assert_eq!(refused(v4, 23, 0, false), NoEnvelope::Port(0x1200));
        assert_eq!(refused(v4, 25, 0, false), NoEnvelope::Length);
        let v6 = Envelope::v2(&[1; 16], &gid);
        assert_eq!(refused(v6, 0, 0x40, false), NoEnvelope::Header);
        assert_eq!(refused(v6, 6, 0x1b, false), NoEnvelope::Protocol(0x1b));
        let v1 = Envelope::v1(&gid, &gid);
        assert_eq!(refused(v1, 6, 17, false), NoEnvelope::Protocol(17));
        assert_eq!(Envelope::parse(0x0806, &[0; 60]), Err(NoEnvelope::Ethertype(0x0806)));
    }
}
