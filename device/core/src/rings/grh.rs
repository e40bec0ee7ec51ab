//! The 40 bytes in front of a received datagram: what the wire's network header looked like.

use crate::handle::Gid;
use crate::rings::wqe::Grh;
use pvrdma_ffi::dev_api::PVRDMA_GID_TYPE_FLAG_ROCE_V1;
use pvrdma_ffi::uapi::vmw_pvrdma::{PVRDMA_NETWORK_IPV4, PVRDMA_NETWORK_IPV6, PVRDMA_NETWORK_ROCE_V1};

/// Bytes of a receive buffer that belong to the header (IBA vol. 1, 11.4.1.2).
pub const GRH_LEN: usize = 40;

/// Headers between network header and payload: BTH 12, DETH 8; ICRC 4 follows. RoCE v2 has UDP, 8, in front.
const TRANSPORT_LEN: u16 = 24;
const UDP_LEN: u16 = 8;
const NEXT_HEADER_IBA: u8 = 0x1b;
const PROTOCOL_UDP: u8 = 17;

/// The header of a datagram with `len` bytes of payload, and its `PVRDMA_NETWORK_*` type.
///
/// RoCE v1 has a GRH, v2 an IPv6 header of the same shape, or for IPv4-mapped addresses an IPv4 header in the last 20
/// of the 40 bytes (RoCE v2 annex A17.4.5.2).
pub fn header(gid_type: u8, grh: &Grh, source: &Gid, dest: &Gid, len: u16) -> ([u8; GRH_LEN], u8) {
    let v1 = gid_type == PVRDMA_GID_TYPE_FLAG_ROCE_V1;
    let mut bytes = [0; GRH_LEN];
    if !v1 && is_ipv4(source) && is_ipv4(dest) {
        let total = (20 + UDP_LEN + TRANSPORT_LEN).saturating_add(len);
        let ip = &mut bytes[20..];
        ip[0] = 0x45;
        ip[1] = grh.traffic_class;
        ip[2..4].copy_from_slice(&total.to_be_bytes());
        // Don't fragment.
        ip[6] = 0x40;
        ip[8] = grh.hop_limit;
        ip[9] = PROTOCOL_UDP;
        ip[12..16].copy_from_slice(&source[12..]);
        ip[16..20].copy_from_slice(&dest[12..]);
        let sum = checksum(ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        return (bytes, PVRDMA_NETWORK_IPV4);
    }
    let (between, next) = if v1 { (0, NEXT_HEADER_IBA) } else { (UDP_LEN, PROTOCOL_UDP) };
    let word = 6 << 28 | u32::from(grh.traffic_class) << 20 | grh.flow_label & 0x000f_ffff;
    bytes[..4].copy_from_slice(&word.to_be_bytes());
    bytes[4..6].copy_from_slice(&(between + TRANSPORT_LEN).saturating_add(len).to_be_bytes());
    bytes[6] = next;
    bytes[7] = grh.hop_limit;
    bytes[8..24].copy_from_slice(source);
    bytes[24..].copy_from_slice(dest);
    (bytes, if v1 { PVRDMA_NETWORK_ROCE_V1 } else { PVRDMA_NETWORK_IPV6 })
}

fn is_ipv4(gid: &Gid) -> bool {
    gid[..12] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]
}

/// One's complement sum of 16-bit words (RFC 1071).
fn checksum(header: &[u8]) -> u16 {
    let sum: u32 = header.as_chunks::<2>().0.iter().map(|word| u32::from(u16::from_be_bytes(*word))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use pvrdma_ffi::dev_api::PVRDMA_GID_TYPE_FLAG_ROCE_V2;

    const GRH: Grh = Grh { sl: 3, traffic_class: 0xab, flow_label: 0x000c_def0, hop_limit: 64 };

    fn ipv4(last: u8) -> Gid {
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 82, last]
    }

    #[test]
    fn v2_between_ipv4_addresses_has_a_valid_ipv4_header() {
        let (bytes, kind) = header(PVRDMA_GID_TYPE_FLAG_ROCE_V2, &GRH, &ipv4(1), &ipv4(2), 100);
        assert_eq!(kind, PVRDMA_NETWORK_IPV4);
        assert_eq!(bytes[..20], [0; 20]);
        assert_eq!(bytes[20..24], [0x45, 0xab, 0, 152]);
        assert_eq!(bytes[28..30], [64, 17]);
        assert_eq!(bytes[32..], [127, 0, 82, 1, 127, 0, 82, 2]);
        // With its own checksum in it, the sum of a good header is all ones.
        assert_eq!(checksum(&bytes[20..]), 0);
    }

    #[test]
    fn v1_has_a_grh_and_v2_an_ipv6_header() {
        let (source, dest) = ([0xfe; 16], [0xfd; 16]);
        let (v1, kind) = header(PVRDMA_GID_TYPE_FLAG_ROCE_V1, &GRH, &source, &dest, 100);
        assert_eq!(kind, PVRDMA_NETWORK_ROCE_V1);
        assert_eq!(v1[..8], [0x6a, 0xbc, 0xde, 0xf0, 0, 124, 0x1b, 64]);
        assert_eq!((&v1[8..24], &v1[24..]), (&source[..], &dest[..]));
        let (v2, kind) = header(PVRDMA_GID_TYPE_FLAG_ROCE_V2, &GRH, &source, &dest, 100);
        assert_eq!(kind, PVRDMA_NETWORK_IPV6);
        assert_eq!(v2[..8], [0x6a, 0xbc, 0xde, 0xf0, 0, 132, 17, 64]);
        assert_eq!(header(PVRDMA_GID_TYPE_FLAG_ROCE_V1, &GRH, &ipv4(1), &ipv4(2), 0).1, PVRDMA_NETWORK_ROCE_V1);
    }
}
