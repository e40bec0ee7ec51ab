//! For tests: packets and envelopes at random, and what a fuzzer's bytes are put through.

pub mod hostile;

use crate::frame::Frame;
use crate::headers::{Envelope, Network, internet_checksum};
use crate::icrc;
use crate::packet::{Aeth, AtomicEth, BITS_24, Bth, Deth, Opcode, Packet, Reth, Syndrome};
pub use pvrdma_ffi::rng::{Rng, replay};

/// Bytes that tell where they are from.
pub fn pattern(from: u64, len: usize) -> Vec<u8> {
    (from..from + len as u64).map(|at| (at % 251) as u8).collect()
}

/// Any packet of `opcode`, with a part of `data`.
pub fn random_packet<'a>(rng: &mut Rng, opcode: Opcode, data: &'a [u8]) -> Packet<'a> {
    let word = |rng: &mut Rng| rng.word() as u32;
    let bth = Bth {
        opcode,
        solicited: rng.one_in(2),
        migrated: rng.one_in(2),
        pkey: rng.word() as u16,
        fecn: rng.one_in(2),
        becn: rng.one_in(2),
        dest_qpn: word(rng) & BITS_24,
        ack_req: rng.one_in(2),
        psn: word(rng) & BITS_24,
    };
    let len = if opcode.has_payload() { rng.below(data.len() as u64 + 1) as usize } else { 0 };
    let mut packet = Packet::new(bth, &data[..len]);
    packet.deth = opcode.has_deth().then(|| Deth { qkey: word(rng), source_qpn: word(rng) & BITS_24 });
    packet.reth = opcode.has_reth().then(|| Reth { addr: rng.word(), rkey: word(rng), len: word(rng) });
    packet.atomic = opcode.has_atomic().then(|| AtomicEth {
        addr: rng.word(),
        rkey: word(rng),
        swap_or_add: rng.word(),
        compare: rng.word(),
    });
    packet.aeth = opcode.has_aeth().then(|| {
        let code = rng.below(32) as u8;
        let syndrome = *rng.pick(&[Syndrome::Ack(code), Syndrome::Rnr(code), Syndrome::Nak(code)]);
        Aeth { syndrome, msn: word(rng) & BITS_24 }
    });
    packet.atomic_ack = opcode.has_atomic_ack().then(|| rng.word());
    packet.imm = opcode.has_imm().then(|| word(rng));
    packet.invalidate = opcode.has_invalidate().then(|| word(rng));
    packet
}

/// Any envelope.
pub fn random_envelope(rng: &mut Rng) -> Envelope {
    fn address<const N: usize>(rng: &mut Rng) -> [u8; N] {
        std::array::from_fn(|_| rng.word() as u8)
    }
    let network = match rng.below(3) {
        0 => Network::V1 { source: address(rng), dest: address(rng) },
        1 => Network::V6 { source: address(rng), dest: address(rng) },
        _ => Network::V4 {
            source: address(rng),
            dest: address(rng),
            id: rng.word() as u16,
            dont_fragment: rng.one_in(2),
        },
    };
    let mut envelope = Envelope::new(network);
    envelope.traffic_class = rng.word() as u8;
    envelope.hop_limit = rng.word() as u8;
    if !matches!(network, Network::V4 { .. }) {
        envelope.flow_label = rng.below(1 << 20) as u32;
    }
    if !matches!(network, Network::V1 { .. }) {
        envelope.source_port = rng.word() as u16;
    }
    envelope
}

/// Reads `bytes` as a packet, or as a frame: nothing panics, and what is taken for a packet is written again as the
/// same packet. The first byte says which, and whether checksums are put right before, so that a fuzzer gets behind
/// them. Tells how far it came: 0 no envelope, 1 no packet, 2 a packet.
pub fn run(bytes: &[u8]) -> usize {
    let Some((how, bytes)) = bytes.split_first() else { return 0 };
    if how & 1 != 0 {
        return packet(bytes);
    }
    let mut bytes = bytes.to_vec();
    if how & 2 != 0 {
        put_ip_right(&mut bytes);
    }
    let Some((ethernet, rest)) = bytes.split_first_chunk::<14>() else {
        assert!(Frame::parse(&bytes).is_err());
        return 0;
    };
    let Ok((envelope, sealed)) = Envelope::parse(u16::from_be_bytes([ethernet[12], ethernet[13]]), rest) else {
        assert!(Frame::parse(&bytes).is_err());
        return 0;
    };
    let any = icrc::check_any_id(&envelope, sealed);
    if let Some(good) = icrc::check(&envelope, sealed) {
        assert!(any.is_some_and(|(packet, _)| packet == good));
    }
    if how & 2 != 0 && sealed.len() >= icrc::ICRC {
        let (start, len) = (14 + envelope.size(), sealed.len() - icrc::ICRC);
        bytes.truncate(start + len);
        icrc::append(&envelope, &mut bytes, start);
    }
    let Ok(frame) = Frame::parse(&bytes) else { return 1 };
    let mut again = Vec::new();
    frame.write(&mut again);
    assert_eq!(Frame::parse(&again), Ok(frame));
    2
}

/// Gives an IPv4 header the checksum that it should have.
fn put_ip_right(frame: &mut [u8]) {
    if let Some([0x08, 0x00]) = frame.get(12..14)
        && let Some(header) = frame.get_mut(14..34)
    {
        header[10..12].fill(0);
        let checksum = internet_checksum(header).to_be_bytes();
        header[10..12].copy_from_slice(&checksum);
    }
}

fn packet(bytes: &[u8]) -> usize {
    let Ok(packet) = Packet::parse(bytes) else { return 1 };
    assert!(packet.is_sound(), "{packet:?}");
    let mut again = Vec::new();
    packet.write(&mut again);
    assert_eq!(Packet::parse(&again), Ok(packet));
    assert_eq!(again.len(), bytes.len());
    2
}
