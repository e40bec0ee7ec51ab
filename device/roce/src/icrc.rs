//! The invariant CRC: the checksum of a packet and of what is in front of it, but for the fields that change on the way
//! (IBA vol. 1, 7.8.1; annex A16 for what a GRH is in it, A17.3.3 for IP and UDP).
//!
//! It is the CRC of Ethernet, over 64 ones in the place of a local route header that RoCE does not have, the envelope
//! and the packet, and is sent with its lowest byte first.
//!
//! IPv4's identification counts, and a program that receives with a UDP socket is not told it. But a CRC is linear: two
//! packets that differ in their identification alone differ in their CRCs by something that depends only on the two
//! identifications and on how much follows. [`check_any_id`] turns that around, so a check of 16 bits is left.

use crate::headers::{ENVELOPE_MAX, Envelope, Network};
use crc32fast::Hasher;

/// Bytes of an ICRC.
pub const ICRC: usize = 4;

/// The CRC's polynomial, lowest power in the highest bit.
const POLYNOMIAL: u32 = 0xedb8_8320;
/// 1, in that order of bits.
const ONE: u32 = 1 << 31;
/// Where the identification stands in an IPv4 header, and how long it is.
const ID: std::ops::Range<usize> = 4..6;

/// `a` times x, modulo the polynomial.
const fn times_x(a: u32) -> u32 {
    a >> 1 ^ if a & 1 != 0 { POLYNOMIAL } else { 0 }
}

/// `a` divided by x: undoes `times_x`. The polynomial's constant term is 1, so it is possible.
const fn by_x(a: u32) -> u32 {
    if a & ONE != 0 { (a ^ POLYNOMIAL) << 1 | 1 } else { a << 1 }
}

/// `a` times `b`, modulo the polynomial.
const fn times(a: u32, b: u32) -> u32 {
    let (mut product, mut power, mut bit) = (0, b, 32);
    while bit > 0 {
        bit -= 1;
        if a >> bit & 1 != 0 {
            product ^= power;
        }
        power = times_x(power);
    }
    product
}

/// x to the power of -8 x 2^n: takes back what 2^n zero bytes do to a CRC.
static TAKE_BACK: [u32; 16] = {
    let mut powers = [0; 16];
    let (mut power, mut bit) = (ONE, 0);
    while bit < 8 {
        power = by_x(power);
        bit += 1;
    }
    let mut n = 0;
    while n < powers.len() {
        powers[n] = power;
        power = times(power, power);
        n += 1;
    }
    powers
};

/// The ICRC of `packet` (from its BTH to its padding) in `envelope`, as the number whose lowest byte is sent first.
pub fn icrc(envelope: &Envelope, packet: &[u8]) -> u32 {
    let mut headers = [0; ENVELOPE_MAX];
    let mut crc = Hasher::new();
    crc.update(&[0xff; 8]);
    crc.update(envelope.masked(packet.len() + ICRC, &mut headers));
    // The byte with FECN, BECN and reserved bits.
    let (before, rest) = packet.split_at(packet.len().min(4));
    crc.update(before);
    crc.update(&[0xff][..rest.len().min(1)]);
    crc.update(rest.get(1..).unwrap_or_default());
    crc.finalize()
}

/// Writes the ICRC of the packet that is in `out` from `start` on behind it.
pub fn append(envelope: &Envelope, out: &mut Vec<u8>, start: usize) {
    let icrc = icrc(envelope, out.get(start..).unwrap_or_default());
    out.extend(icrc.to_le_bytes());
}

/// A packet without its ICRC, and the ICRC.
fn split(bytes: &[u8]) -> Option<(&[u8], u32)> {
    let (packet, icrc) = bytes.split_last_chunk()?;
    Some((packet, u32::from_le_bytes(*icrc)))
}

/// The packet of `bytes`, which end in its ICRC, if that is right.
pub fn check<'a>(envelope: &Envelope, bytes: &'a [u8]) -> Option<&'a [u8]> {
    let (packet, sent) = split(bytes)?;
    (icrc(envelope, packet) == sent).then_some(packet)
}

/// The same for a packet over IPv4 whose identification is not known, with the one that makes the ICRC right; the one
/// in `envelope` is not looked at. One of 65,536 damaged packets passes. What has no identification is checked in full.
pub fn check_any_id<'a>(envelope: &Envelope, bytes: &'a [u8]) -> Option<(&'a [u8], u16)> {
    let Network::V4 { source, dest, dont_fragment, .. } = envelope.network else {
        return Some((check(envelope, bytes)?, 0));
    };
    let (packet, sent) = split(bytes)?;
    let network = Network::V4 { source, dest, id: 0, dont_fragment };
    let difference = sent ^ icrc(&Envelope { network, ..*envelope }, packet);
    // As if the identification were the last that the CRC has seen, and then as if it had not seen it: what remains is
    // what two bytes do to the lower half of a CRC register when they come in, and nothing above.
    let behind = envelope.size() - ID.end + packet.len();
    let (mut register, mut bytes, mut n) = (difference, behind + ID.len(), 0);
    while bytes > 0 {
        if bytes & 1 != 0 {
            register = times(register, *TAKE_BACK.get(n)?);
        }
        (bytes, n) = (bytes >> 1, n + 1);
    }
    // The first byte of the two is the lower one.
    u16::try_from(register).ok().map(|id| (packet, id.swap_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{BTH, MTU_MAX, Opcode};
    use crate::testing::{Rng, random_envelope, random_packet};

    /// Bit by bit, as the standard has it.
    fn plain(bytes: &[u8]) -> u32 {
        let step = |crc: u32, byte: &u8| (0..8).fold(crc ^ u32::from(*byte), |crc, _| times_x(crc));
        !bytes.iter().fold(!0, step)
    }

    #[test]
    fn the_crc_is_that_of_ethernet() {
        assert_eq!(plain(b"123456789"), 0xcbf4_3926);
        let mut rng = Rng::from_env(5);
        for len in 0..200 {
            let bytes = rng.bytes(len);
            assert_eq!(crc32fast::hash(&bytes), plain(&bytes));
        }
    }

    #[test]
    fn division_takes_multiplication_back() {
        let mut rng = Rng::from_env(6);
        for _ in 0..1000 {
            let a = rng.word() as u32;
            assert_eq!((by_x(times_x(a)), times(a, ONE)), (a, a));
        }
        for (n, take_back) in TAKE_BACK.iter().enumerate() {
            let forth = (0..8u32 << n).fold(ONE, |power, _| times_x(power));
            assert_eq!(times(forth, *take_back), ONE, "{n}");
        }
    }

    fn sealed(rng: &mut Rng, envelope: &Envelope, data: &[u8]) -> Vec<u8> {
        let opcode = *rng.pick(&Opcode::ALL);
        let mut bytes = Vec::new();
        random_packet(rng, opcode, data).write(&mut bytes);
        append(envelope, &mut bytes, 0);
        bytes
    }

    #[test]
    fn what_is_sealed_is_good_and_one_wrong_bit_is_found() {
        let mut rng = Rng::from_env(7);
        let data = rng.bytes(MTU_MAX);
        for _ in 0..2000 {
            let envelope = random_envelope(&mut rng);
            let mut bytes = sealed(&mut rng, &envelope, &data);
            assert_eq!(check(&envelope, &bytes), Some(&bytes[..bytes.len() - ICRC]));
            let (at, bit) = (rng.below(bytes.len() as u64) as usize, 1 << rng.below(8));
            bytes[at] ^= bit;
            // FECN, BECN and what is beside them may change on the way.
            assert_eq!(check(&envelope, &bytes).is_some(), at == 4, "byte {at}");
        }
    }

    #[test]
    fn what_changes_on_the_way_does_not_count_and_all_else_does() {
        let mut rng = Rng::from_env(8);
        for _ in 0..500 {
            let envelope = random_envelope(&mut rng);
            let bytes = sealed(&mut rng, &envelope, &[]);
            let good = |changed: Envelope| check(&changed, &bytes).is_some();
            assert!(good(Envelope { traffic_class: !envelope.traffic_class, ..envelope }));
            assert!(good(Envelope { hop_limit: envelope.hop_limit.wrapping_sub(1), ..envelope }));
            assert!(good(Envelope { flow_label: envelope.flow_label ^ 1, ..envelope }));
            let port = Envelope { source_port: envelope.source_port ^ 1, ..envelope };
            assert_eq!(good(port), matches!(envelope.network, Network::V1 { .. }));
            let network = match envelope.network {
                Network::V1 { source, dest } => Network::V1 { source: dest, dest: source },
                Network::V6 { source, dest } => Network::V6 { source: dest, dest: source },
                Network::V4 { source, dest, id, dont_fragment } => match rng.below(3) {
                    0 => Network::V4 { source: dest, dest: source, id, dont_fragment },
                    1 => Network::V4 { source, dest, id: id ^ 1, dont_fragment },
                    _ => Network::V4 { source, dest, id, dont_fragment: !dont_fragment },
                },
            };
            assert!(!good(Envelope { network, ..envelope }));
        }
    }

    #[test]
    fn the_identification_is_found_and_damage_is_seen_without_it() {
        let mut rng = Rng::from_env(9);
        let data = rng.bytes(MTU_MAX);
        let (mut damaged, mut unseen) = (0, 0);
        while damaged < 3000 {
            let envelope = random_envelope(&mut rng);
            let Network::V4 { source, dest, id, dont_fragment } = envelope.network else { continue };
            let mut bytes = sealed(&mut rng, &envelope, &data);
            let network = Network::V4 { source, dest, id: rng.word() as u16, dont_fragment };
            let unknown = Envelope { network, ..envelope };
            assert_eq!(check_any_id(&unknown, &bytes), Some((&bytes[..bytes.len() - ICRC], id)));
            let at = BTH.min(bytes.len() - 1) - 1;
            bytes[at] ^= 1 + rng.below(255) as u8;
            damaged += 1;
            unseen += u32::from(check_any_id(&unknown, &bytes).is_some());
        }
        // Of 65,536 one would pass.
        assert!(unseen <= 3, "{unseen} of {damaged}");
    }

    #[test]
    fn bytes_that_are_too_short_are_no_packet() {
        for envelope in [Envelope::v1(&[1; 16], &[2; 16]), Envelope::v2(&[1; 16], &[2; 16])] {
            for len in 0..ICRC + 5 {
                assert_eq!(check(&envelope, &vec![0; len]), None);
                assert_eq!(check_any_id(&envelope, &vec![0; len]), None);
            }
        }
    }
}
