//! A packet as an Ethernet frame, from the addresses of both adapters to the ICRC. The frame check sequence is
//! Ethernet's own, and not seen by anybody above it.

use crate::headers::{Envelope, NoEnvelope};
use crate::icrc;
use crate::packet::{Malformed, Packet};
use thiserror::Error;

/// Address of an adapter.
pub type Mac = [u8; 6];

/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;

/// Why bytes are no frame of RoCE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum BadFrame {
    #[error("{0} bytes")]
    Short(usize),
    #[error("not RoCE: {0}")]
    Envelope(#[from] NoEnvelope),
    #[error("a wrong ICRC")]
    Icrc,
    #[error("no packet: {0}")]
    Packet(#[from] Malformed),
}

/// A frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Whose it is to be.
    pub dest: Mac,
    /// Whose it is.
    pub source: Mac,
    /// What is in front of the packet.
    pub envelope: Envelope,
    /// The packet.
    pub packet: Packet<'a>,
}

impl<'a> Frame<'a> {
    /// Reads a frame. Bytes that Ethernet has filled it up with are dropped.
    pub fn parse(bytes: &'a [u8]) -> Result<Frame<'a>, BadFrame> {
        let (header, rest) = bytes.split_first_chunk::<ETHERNET>().ok_or(BadFrame::Short(bytes.len()))?;
        let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, high, low] = *header;
        let (envelope, sealed) = Envelope::parse(u16::from_be_bytes([high, low]), rest)?;
        let packet = icrc::check(&envelope, sealed).ok_or(BadFrame::Icrc)?;
        Ok(Frame {
            dest: [d0, d1, d2, d3, d4, d5],
            source: [s0, s1, s2, s3, s4, s5],
            envelope,
            packet: Packet::parse(packet)?,
        })
    }

    /// How many bytes [`Frame::write`] writes.
    pub fn size(&self) -> usize {
        ETHERNET + self.envelope.size() + self.packet.size() + icrc::ICRC
    }

    /// Writes it behind what is in `out`.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.reserve(self.size());
        out.extend(self.dest);
        out.extend(self.source);
        out.extend(self.envelope.ethertype().to_be_bytes());
        self.envelope.write(self.packet.size() + icrc::ICRC, out);
        let start = out.len();
        self.packet.write(out);
        icrc::append(&self.envelope, out, start);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{MTU_MAX, Opcode};
    use crate::testing::{Rng, random_envelope, random_packet, replay, run};

    #[test]
    fn frames_come_back_from_their_bytes() {
        let mut rng = Rng::from_env(10);
        let data = rng.bytes(MTU_MAX);
        for n in 0..2000 {
            let opcode = Opcode::ALL[n % Opcode::ALL.len()];
            let frame = Frame {
                dest: [1; 6],
                source: [2; 6],
                envelope: random_envelope(&mut rng),
                packet: random_packet(&mut rng, opcode, &data),
            };
            let mut bytes = Vec::new();
            frame.write(&mut bytes);
            assert_eq!((bytes.len(), Frame::parse(&bytes)), (frame.size(), Ok(frame)));
            bytes.extend([0; 5]);
            assert_eq!(Frame::parse(&bytes), Ok(frame));
        }
    }

    #[test]
    fn inputs_that_a_fuzzer_begins_with_are_packets() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/packets");
        replay(folder, 20, |bytes| run(bytes) == 2);
    }

    #[test]
    fn random_bytes_and_damaged_frames_harm_nobody() {
        let mut rng = Rng::from_env(11);
        let data = rng.bytes(64);
        let mut kinds = [0; 3];
        for n in 0..20_000 {
            let len = rng.below(120) as usize;
            let mut bytes = rng.bytes(len);
            if n % 2 == 0 {
                bytes = vec![n as u8];
                let opcode = *rng.pick(&Opcode::ALL);
                let envelope = random_envelope(&mut rng);
                let packet = random_packet(&mut rng, opcode, &data);
                Frame { dest: [1; 6], source: [2; 6], envelope, packet }.write(&mut bytes);
                for _ in 0..rng.below(3) {
                    let at = 1 + rng.below(bytes.len() as u64 - 1) as usize;
                    bytes[at] ^= rng.word() as u8;
                }
            }
            kinds[run(&bytes)] += 1;
        }
        println!("{kinds:?}");
        assert!(kinds.iter().all(|count| *count > 500), "{kinds:?}");
    }
}
