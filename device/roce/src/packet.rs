//! A packet of the transport: the base header (BTH), the extension headers that its opcode has, and the payload (IBA
//! vol. 1, 9.2 and 9.3).
//!
//! [`Packet::parse`] believes nothing. What depends on packets before it (the order of FIRST, MIDDLE and LAST, PSNs)
//! and on the path (how long a full packet is) is for whoever has that state. Reserved fields are written as 0 and not
//! looked at.

use thiserror::Error;

/// Most payload of a packet: the largest path MTU.
pub const MTU_MAX: usize = 4096;
/// Bytes of a BTH.
pub const BTH: usize = 12;
/// Most bytes of all headers, BTH included.
pub const HEADERS_MAX: usize = BTH + ATOMIC;
/// The partition that every port is a full member of.
pub const DEFAULT_PKEY: u16 = 0xffff;
/// Bits of a PSN, a QP number, an MSN.
pub const BITS_24: u32 = (1 << 24) - 1;

const RETH: usize = 16;
const AETH: usize = 4;
const IMM: usize = 4;
const INVALIDATE: usize = 4;
const DETH: usize = 8;
const ATOMIC: usize = 28;
const ATOMIC_ACK: usize = 8;

/// Why bytes are no packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Malformed {
    #[error("{len} bytes, of at least {needs}")]
    Short { len: usize, needs: usize },
    #[error("opcode {0:#04x}, which is of no packet here")]
    Opcode(u8),
    #[error("transport header version {0}")]
    Version(u8),
    #[error("{pad} bytes of padding in {len} bytes of payload")]
    Padding { pad: u8, len: usize },
    #[error("{len} bytes of payload in a packet of opcode {opcode:#04x}")]
    Payload { opcode: u8, len: usize },
    #[error("syndrome {0:#04x}, which is reserved")]
    Syndrome(u8),
}

/// The packets there are: those of reliable connections, and the two of unreliable datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
#[expect(missing_docs, reason = "the names are those of IBA vol. 1, table 38")]
pub enum Opcode {
    SendFirst = 0x00,
    SendMiddle = 0x01,
    SendLast = 0x02,
    SendLastImm = 0x03,
    SendOnly = 0x04,
    SendOnlyImm = 0x05,
    WriteFirst = 0x06,
    WriteMiddle = 0x07,
    WriteLast = 0x08,
    WriteLastImm = 0x09,
    WriteOnly = 0x0a,
    WriteOnlyImm = 0x0b,
    ReadRequest = 0x0c,
    ReadFirst = 0x0d,
    ReadMiddle = 0x0e,
    ReadLast = 0x0f,
    ReadOnly = 0x10,
    Acknowledge = 0x11,
    AtomicAcknowledge = 0x12,
    CompareSwap = 0x13,
    FetchAdd = 0x14,
    SendLastInvalidate = 0x16,
    SendOnlyInvalidate = 0x17,
    Datagram = 0x64,
    DatagramImm = 0x65,
}

impl Opcode {
    /// All of them, in the order of their numbers.
    pub const ALL: [Opcode; 25] = {
        use Opcode::*;
        [
            SendFirst,
            SendMiddle,
            SendLast,
            SendLastImm,
            SendOnly,
            SendOnlyImm,
            WriteFirst,
            WriteMiddle,
            WriteLast,
            WriteLastImm,
            WriteOnly,
            WriteOnlyImm,
            ReadRequest,
            ReadFirst,
            ReadMiddle,
            ReadLast,
            ReadOnly,
            Acknowledge,
            AtomicAcknowledge,
            CompareSwap,
            FetchAdd,
            SendLastInvalidate,
            SendOnlyInvalidate,
            Datagram,
            DatagramImm,
        ]
    };

    /// The one with this number.
    pub fn of(number: u8) -> Option<Opcode> {
        Opcode::ALL.into_iter().find(|opcode| opcode.number() == number)
    }

    /// As in the BTH.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// Goes to the requester: an answer, or data that a READ asked for.
    pub fn is_response(self) -> bool {
        use Opcode::*;
        matches!(self, ReadFirst | ReadMiddle | ReadLast | ReadOnly | Acknowledge | AtomicAcknowledge)
    }

    /// Begins a message, or the data of a READ.
    pub fn begins(self) -> bool {
        use Opcode::*;
        !matches!(
            self,
            SendMiddle
                | SendLast
                | SendLastImm
                | SendLastInvalidate
                | WriteMiddle
                | WriteLast
                | WriteLastImm
                | ReadMiddle
                | ReadLast
        )
    }

    /// Ends a message, or the data of a READ.
    pub fn ends(self) -> bool {
        use Opcode::*;
        !matches!(self, SendFirst | SendMiddle | WriteFirst | WriteMiddle | ReadFirst | ReadMiddle)
    }

    /// Of an unreliable datagram.
    pub fn is_datagram(self) -> bool {
        self.has_deth()
    }

    /// Whether there may be a payload.
    pub fn has_payload(self) -> bool {
        use Opcode::*;
        !matches!(self, ReadRequest | Acknowledge | AtomicAcknowledge | CompareSwap | FetchAdd)
    }

    /// Whether there is a RETH.
    pub fn has_reth(self) -> bool {
        use Opcode::*;
        matches!(self, WriteFirst | WriteOnly | WriteOnlyImm | ReadRequest)
    }

    /// Whether there is an AETH.
    pub fn has_aeth(self) -> bool {
        use Opcode::*;
        matches!(self, ReadFirst | ReadLast | ReadOnly | Acknowledge | AtomicAcknowledge)
    }

    /// Whether there is an immediate value (ImmDt).
    pub fn has_imm(self) -> bool {
        use Opcode::*;
        matches!(self, SendLastImm | SendOnlyImm | WriteLastImm | WriteOnlyImm | DatagramImm)
    }

    /// Whether there is a key to invalidate (IETH).
    pub fn has_invalidate(self) -> bool {
        matches!(self, Opcode::SendLastInvalidate | Opcode::SendOnlyInvalidate)
    }

    /// Whether there is an AtomicETH.
    pub fn has_atomic(self) -> bool {
        matches!(self, Opcode::CompareSwap | Opcode::FetchAdd)
    }

    /// Whether there is an AtomicAckETH.
    pub fn has_atomic_ack(self) -> bool {
        self == Opcode::AtomicAcknowledge
    }

    /// Whether there is a DETH.
    pub fn has_deth(self) -> bool {
        matches!(self, Opcode::Datagram | Opcode::DatagramImm)
    }

    /// Bytes of its headers, BTH included.
    pub fn headers(self) -> usize {
        let of = |there: bool, bytes| if there { bytes } else { 0 };
        BTH + of(self.has_deth(), DETH)
            + of(self.has_reth(), RETH)
            + of(self.has_atomic(), ATOMIC)
            + of(self.has_aeth(), AETH)
            + of(self.has_atomic_ack(), ATOMIC_ACK)
            + of(self.has_imm(), IMM)
            + of(self.has_invalidate(), INVALIDATE)
    }
}

/// Base transport header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bth {
    /// What the packet is.
    pub opcode: Opcode,
    /// The responder's program wants an event for it.
    pub solicited: bool,
    /// State of path migration (MigReq). Adapters that do not migrate send it set.
    pub migrated: bool,
    /// Partition.
    pub pkey: u16,
    /// Congestion was met on the way here (FECN).
    pub fecn: bool,
    /// Congestion was met on the way there (BECN).
    pub becn: bool,
    /// QP it goes to: 24 bits.
    pub dest_qpn: u32,
    /// The requester wants an acknowledgement of this packet.
    pub ack_req: bool,
    /// Packet sequence number: 24 bits.
    pub psn: u32,
}

impl Bth {
    /// One without anything that is optional, in the default partition.
    pub fn new(opcode: Opcode, dest_qpn: u32, psn: u32) -> Bth {
        Bth {
            opcode,
            solicited: false,
            migrated: true,
            pkey: DEFAULT_PKEY,
            fecn: false,
            becn: false,
            dest_qpn,
            ack_req: false,
            psn,
        }
    }
}

/// RDMA extended transport header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reth {
    /// Address in the responder's region.
    pub addr: u64,
    /// Its key.
    pub rkey: u32,
    /// Bytes of the whole message.
    pub len: u32,
}

/// What an acknowledgement says (IBA vol. 1, table 44).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syndrome {
    /// Done, with the responder's credits as they are coded (table 45): [`NO_CREDITS`] if it counts none.
    Ack(u8),
    /// No receive is there: come again after the time of this code.
    Rnr(u8),
    /// Refused, for the reason of this code: see [`nak`].
    Nak(u8),
}

/// The credits of a responder that counts none.
pub const NO_CREDITS: u8 = 31;

/// Codes of [`Syndrome::Nak`] (IBA vol. 1, table 46).
pub mod nak {
    /// A PSN is missing before this one.
    pub const SEQUENCE_ERROR: u8 = 0;
    /// Opcode or length cannot be accepted.
    pub const INVALID_REQUEST: u8 = 1;
    /// Key, range or right is wrong.
    pub const REMOTE_ACCESS: u8 = 2;
    /// The responder cannot complete it for reasons of its own.
    pub const REMOTE_OPERATIONAL: u8 = 3;
}

impl Syndrome {
    fn of(byte: u8) -> Option<Syndrome> {
        let code = byte & 31;
        match byte >> 5 {
            0 => Some(Syndrome::Ack(code)),
            1 => Some(Syndrome::Rnr(code)),
            3 => Some(Syndrome::Nak(code)),
            _ => None,
        }
    }

    /// As in the AETH.
    pub fn byte(self) -> u8 {
        match self {
            Syndrome::Ack(code) => code & 31,
            Syndrome::Rnr(code) => 1 << 5 | code & 31,
            Syndrome::Nak(code) => 3 << 5 | code & 31,
        }
    }
}

/// ACK extended transport header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aeth {
    /// What is said.
    pub syndrome: Syndrome,
    /// Messages that the responder has completed: 24 bits.
    pub msn: u32,
}

/// Atomic extended transport header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AtomicEth {
    /// Address of the word.
    pub addr: u64,
    /// Key of its region.
    pub rkey: u32,
    /// What is added, or put in.
    pub swap_or_add: u64,
    /// What a CompareSwap expects; of no meaning to a FetchAdd.
    pub compare: u64,
}

/// Datagram extended transport header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deth {
    /// Key that the destination's must be equal to.
    pub qkey: u32,
    /// QP it comes from: 24 bits.
    pub source_qpn: u32,
}

/// A packet from its BTH to its payload. The headers that are there are those of its opcode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "fields carry the names of the IBA headers")]
pub struct Packet<'a> {
    pub bth: Bth,
    pub reth: Option<Reth>,
    pub aeth: Option<Aeth>,
    pub imm: Option<u32>,
    pub invalidate: Option<u32>,
    pub atomic: Option<AtomicEth>,
    pub atomic_ack: Option<u64>,
    pub deth: Option<Deth>,
    pub payload: &'a [u8],
}

/// Takes fields off bytes, which were measured before.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        match self.0.split_first_chunk() {
            Some((head, rest)) => {
                self.0 = rest;
                *head
            }
            None => [0; N],
        }
    }

    fn word(&mut self) -> u32 {
        u32::from_be_bytes(self.take())
    }

    fn long(&mut self) -> u64 {
        u64::from_be_bytes(self.take())
    }
}

impl<'a> Packet<'a> {
    /// One with a BTH and a payload. The caller fills in the headers of its opcode.
    pub fn new(bth: Bth, payload: &'a [u8]) -> Packet<'a> {
        Packet {
            bth,
            reth: None,
            aeth: None,
            imm: None,
            invalidate: None,
            atomic: None,
            atomic_ack: None,
            deth: None,
            payload,
        }
    }

    /// Whether it has the headers of its opcode and no others, numbers that fit their fields, and no payload that does
    /// not belong there. Only such a one comes back from its bytes as it was.
    pub fn is_sound(&self) -> bool {
        let (bth, opcode) = (&self.bth, self.bth.opcode);
        let fits = |number: u32| number <= BITS_24;
        let code = |syndrome| match syndrome {
            Syndrome::Ack(code) | Syndrome::Rnr(code) | Syndrome::Nak(code) => code < 32,
        };
        fits(bth.dest_qpn)
            && fits(bth.psn)
            && self.reth.is_some() == opcode.has_reth()
            && self.aeth.is_some() == opcode.has_aeth()
            && self.imm.is_some() == opcode.has_imm()
            && self.invalidate.is_some() == opcode.has_invalidate()
            && self.atomic.is_some() == opcode.has_atomic()
            && self.atomic_ack.is_some() == opcode.has_atomic_ack()
            && self.deth.is_some() == opcode.has_deth()
            && self.aeth.is_none_or(|aeth| code(aeth.syndrome) && fits(aeth.msn))
            && self.deth.is_none_or(|deth| fits(deth.source_qpn))
            && self.payload.len() <= if opcode.has_payload() { MTU_MAX } else { 0 }
    }

    /// Reads a packet from its BTH to the end of its padding; the checksum behind it is not part of it.
    pub fn parse(bytes: &'a [u8]) -> Result<Packet<'a>, Malformed> {
        let short = |needs| Malformed::Short { len: bytes.len(), needs };
        if bytes.len() < BTH {
            return Err(short(BTH));
        }
        let mut fields = Fields(bytes);
        let [number, flags] = fields.take();
        let opcode = Opcode::of(number).ok_or(Malformed::Opcode(number))?;
        if flags & 0xf != 0 {
            return Err(Malformed::Version(flags & 0xf));
        }
        let headers = opcode.headers();
        if bytes.len() < headers {
            return Err(short(headers));
        }
        let pkey = u16::from_be_bytes(fields.take());
        let (qpn, psn) = (fields.word(), fields.word());
        let bth = Bth {
            opcode,
            solicited: flags & 0x80 != 0,
            migrated: flags & 0x40 != 0,
            pkey,
            fecn: qpn >> 31 != 0,
            becn: qpn >> 30 & 1 != 0,
            dest_qpn: qpn & BITS_24,
            ack_req: psn >> 31 != 0,
            psn: psn & BITS_24,
        };
        let mut packet = Packet::new(bth, &[]);
        if opcode.has_deth() {
            packet.deth = Some(Deth { qkey: fields.word(), source_qpn: fields.word() & BITS_24 });
        }
        if opcode.has_reth() {
            packet.reth = Some(Reth { addr: fields.long(), rkey: fields.word(), len: fields.word() });
        }
        if opcode.has_atomic() {
            let (addr, rkey) = (fields.long(), fields.word());
            packet.atomic = Some(AtomicEth { addr, rkey, swap_or_add: fields.long(), compare: fields.long() });
        }
        if opcode.has_aeth() {
            let word = fields.word();
            let byte = (word >> 24) as u8;
            let syndrome = Syndrome::of(byte).ok_or(Malformed::Syndrome(byte))?;
            packet.aeth = Some(Aeth { syndrome, msn: word & BITS_24 });
        }
        if opcode.has_atomic_ack() {
            packet.atomic_ack = Some(fields.long());
        }
        if opcode.has_imm() {
            packet.imm = Some(fields.word());
        }
        if opcode.has_invalidate() {
            packet.invalidate = Some(fields.word());
        }
        let pad = flags >> 4 & 3;
        let (padded, len) = (fields.0, fields.0.len());
        // Padding fills the last word of a payload, and does nothing else.
        let payload = len.checked_sub(usize::from(pad)).filter(|_| len % 4 == 0);
        let payload = payload.ok_or(Malformed::Padding { pad, len })?;
        if payload > if opcode.has_payload() { MTU_MAX } else { 0 } {
            return Err(Malformed::Payload { opcode: number, len: payload });
        }
        packet.payload = padded.get(..payload).unwrap_or_default();
        Ok(packet)
    }

    /// Bytes of the padding: what the payload lacks to whole words.
    pub fn pad(&self) -> usize {
        self.payload.len().wrapping_neg() & 3
    }

    /// How many bytes [`Packet::write`] writes.
    pub fn size(&self) -> usize {
        self.bth.opcode.headers() + self.payload.len() + self.pad()
    }

    /// Writes it behind what is in `out`, padding included. It is sound (`is_sound`): a header that its opcode has and
    /// it has not is written as zeros, and one that its opcode has not is left out.
    pub fn write(&self, out: &mut Vec<u8>) {
        debug_assert!(self.is_sound(), "{self:?}");
        let (bth, opcode) = (&self.bth, self.bth.opcode);
        let bit = |set: bool, at: u32| u32::from(set) << at;
        let pad = self.pad();
        out.reserve(self.size());
        let flags = bit(bth.solicited, 7) | bit(bth.migrated, 6);
        out.extend([opcode.number(), flags as u8 | (pad as u8) << 4]);
        out.extend(bth.pkey.to_be_bytes());
        out.extend((bit(bth.fecn, 31) | bit(bth.becn, 30) | bth.dest_qpn & BITS_24).to_be_bytes());
        out.extend((bit(bth.ack_req, 31) | bth.psn & BITS_24).to_be_bytes());
        if opcode.has_deth() {
            let deth = self.deth.unwrap_or_default();
            out.extend(deth.qkey.to_be_bytes());
            out.extend((deth.source_qpn & BITS_24).to_be_bytes());
        }
        if opcode.has_reth() {
            let reth = self.reth.unwrap_or_default();
            out.extend(reth.addr.to_be_bytes());
            out.extend(reth.rkey.to_be_bytes());
            out.extend(reth.len.to_be_bytes());
        }
        if opcode.has_atomic() {
            let atomic = self.atomic.unwrap_or_default();
            out.extend(atomic.addr.to_be_bytes());
            out.extend(atomic.rkey.to_be_bytes());
            out.extend(atomic.swap_or_add.to_be_bytes());
            out.extend(atomic.compare.to_be_bytes());
        }
        if opcode.has_aeth() {
            let (syndrome, msn) = self.aeth.map_or((0, 0), |aeth| (aeth.syndrome.byte(), aeth.msn));
            out.extend((u32::from(syndrome) << 24 | msn & BITS_24).to_be_bytes());
        }
        if opcode.has_atomic_ack() {
            out.extend(self.atomic_ack.unwrap_or_default().to_be_bytes());
        }
        if opcode.has_imm() {
            out.extend(self.imm.unwrap_or_default().to_be_bytes());
        }
        if opcode.has_invalidate() {
            out.extend(self.invalidate.unwrap_or_default().to_be_bytes());
        }
        out.extend(self.payload);
        out.extend(&[0; 3][..pad]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Rng, random_packet};

    fn bytes_of(packet: &Packet<'_>) -> Vec<u8> {
        let mut bytes = Vec::new();
        packet.write(&mut bytes);
        bytes
    }

    #[test]
    fn every_opcode_comes_back_from_its_bytes() {
        let mut rng = Rng::from_env(1);
        let data = rng.bytes(MTU_MAX);
        for opcode in Opcode::ALL {
            assert_eq!(Opcode::of(opcode.number()), Some(opcode));
            for _ in 0..200 {
                let packet = random_packet(&mut rng, opcode, &data);
                let bytes = bytes_of(&packet);
                assert_eq!((bytes.len(), bytes.len() % 4), (packet.size(), 0));
                assert_eq!(Packet::parse(&bytes), Ok(packet));
            }
        }
    }

    #[test]
    fn opcodes_that_are_none_are_refused() {
        let known: Vec<u8> = Opcode::ALL.iter().map(|opcode| opcode.number()).collect();
        assert!(known.is_sorted());
        for number in (0..=255).filter(|number| !known.contains(number)) {
            let mut bytes = [0; 64];
            bytes[0] = number;
            assert_eq!(Packet::parse(&bytes), Err(Malformed::Opcode(number)));
        }
    }

    /// What is cut off is either missed, or was payload: then the length says so to whoever knows the message.
    #[test]
    fn truncations_are_refused() {
        let mut rng = Rng::from_env(2);
        let data = rng.bytes(64);
        for opcode in Opcode::ALL {
            let mut packet = random_packet(&mut rng, opcode, &data);
            packet.payload = if opcode.has_payload() { &data[..61] } else { &[] };
            let bytes = bytes_of(&packet);
            for len in 0..bytes.len() {
                match Packet::parse(&bytes[..len]) {
                    Err(Malformed::Short { len: has, needs }) => assert!(has == len && len < needs, "{opcode:?}"),
                    Err(Malformed::Padding { .. } | Malformed::Payload { .. }) => assert!(len >= opcode.headers()),
                    Ok(shorter) => assert!(len % 4 == 0 && shorter.payload.len() < 61, "{opcode:?} {len}"),
                    other => panic!("{opcode:?} {len}: {other:?}"),
                }
            }
        }
    }

    #[test]
    fn payload_where_none_belongs_is_refused() {
        for opcode in Opcode::ALL.into_iter().filter(|opcode| !opcode.has_payload()) {
            let mut bytes = bytes_of(&random_packet(&mut Rng::new(3), opcode, &[]));
            bytes.extend([0; 4]);
            assert_eq!(Packet::parse(&bytes), Err(Malformed::Payload { opcode: opcode.number(), len: 4 }));
        }
        let mut bytes = bytes_of(&Packet::new(Bth::new(Opcode::SendMiddle, 1, 1), &[0; MTU_MAX]));
        bytes.extend([0; 4]);
        assert_eq!(Packet::parse(&bytes), Err(Malformed::Payload { opcode: 1, len: MTU_MAX + 4 }));
    }

    #[test]
    fn padding_ends_a_payload_and_nothing_else() {
        for (len, pad, good) in
            [(0, 0, true), (0, 1, false), (4, 0, true), (4, 3, true), (5, 1, false), (3, 3, false), (8, 3, true)]
        {
            let mut bytes = bytes_of(&Packet::new(Bth::new(Opcode::SendOnly, 1, 1), &[]));
            bytes[1] |= pad << 4;
            bytes.resize(BTH + len, 0);
            assert_eq!(Packet::parse(&bytes).is_ok(), good, "{len} bytes, {pad} of them padding");
        }
    }

    #[test]
    fn versions_and_syndromes_that_are_none_are_refused() {
        let mut packet = Packet::new(Bth::new(Opcode::Acknowledge, 1, 1), &[]);
        packet.aeth = Some(Aeth { syndrome: Syndrome::Ack(NO_CREDITS), msn: 7 });
        let mut bytes = bytes_of(&packet);
        for byte in 0..=255 {
            bytes[BTH] = byte;
            match Packet::parse(&bytes) {
                Ok(packet) => assert_eq!(packet.aeth.map(|aeth| aeth.syndrome.byte()), Some(byte)),
                Err(error) => assert_eq!((error, byte >> 5 == 2 || byte >> 7 == 1), (Malformed::Syndrome(byte), true)),
            }
        }
        bytes[1] |= 1;
        assert_eq!(Packet::parse(&bytes), Err(Malformed::Version(1)));
    }

    #[test]
    fn reserved_fields_are_written_as_zeros_and_not_looked_at() {
        let mut packet = Packet::new(Bth::new(Opcode::DatagramImm, 0x11, 7), b"four");
        packet.deth = Some(Deth { qkey: 1, source_qpn: 2 });
        packet.imm = Some(3);
        let bytes = bytes_of(&packet);
        // Six bits behind FECN and BECN, seven behind AckReq, a byte before the source QP.
        for (at, reserved) in [(4, 0x3f), (8, 0x7f), (16, 0xff)] {
            assert_eq!(bytes[at] & reserved, 0);
            let mut other = bytes.clone();
            other[at] |= reserved;
            assert_eq!(Packet::parse(&other), Ok(packet));
        }
    }

    #[test]
    fn a_written_request_is_byte_for_byte_what_the_tables_say() {
        let bth = Bth { solicited: true, ack_req: true, ..Bth::new(Opcode::WriteOnlyImm, 0x11, 0x00ab_cdef) };
        let mut packet = Packet::new(bth, b"abcde");
        packet.reth = Some(Reth { addr: 0x0102_0304_0506_0708, rkey: 0x1112_1314, len: 5 });
        packet.imm = Some(0x2122_2324);
        #[rustfmt::skip]
        let expected = [
            0x0b, 0x80 | 0x40 | 3 << 4, 0xff, 0xff, 0, 0, 0, 0x11, 0x80, 0xab, 0xcd, 0xef,
            1, 2, 3, 4, 5, 6, 7, 8, 0x11, 0x12, 0x13, 0x14, 0, 0, 0, 5,
            0x21, 0x22, 0x23, 0x24,
            b'a', b'b', b'c', b'd', b'e', 0, 0, 0,
        ];
        assert_eq!(bytes_of(&packet), expected);
    }
}
