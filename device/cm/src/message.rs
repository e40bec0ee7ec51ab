//! The messages of the communication manager: where each field lies in the 256 bytes of a management datagram.
//!
//! Numbers of tables are those of IBA vol. 1, chapter 12.6. What is no such message is `None`; a message that was taken
//! apart has no field out of range. Path fields that only LIDs and failover need are written as 0 and not read.

/// A GID: 16 bytes in network order.
pub type Gid = [u8; 16];

/// Bytes of a management datagram (IBA vol. 1, 13.4.2).
pub const MAD_LEN: usize = 256;
/// A management datagram.
pub type Mad = [u8; MAD_LEN];

/// Q_Key of every management QP but the first (IBA vol. 1, 13.5.1 and 3.5.3).
pub const GSI_QKEY: u32 = 0x8001_0000;

/// Common header, 13.4.2: base version 1, class, class version, method.
const HEADER: usize = 24;
const MGMT_CLASS_CM: u8 = 0x07;
const CLASS_VERSION: u8 = 2;
const METHOD_SEND: u8 = 0x03;

/// Attribute ids, table 104.
mod attribute {
    pub const REQ: u16 = 0x10;
    pub const MRA: u16 = 0x11;
    pub const REJ: u16 = 0x12;
    pub const REP: u16 = 0x13;
    pub const RTU: u16 = 0x14;
    pub const DREQ: u16 = 0x15;
    pub const DREP: u16 = 0x16;
    pub const SIDR_REQ: u16 = 0x17;
    pub const SIDR_REP: u16 = 0x18;
}

/// Reasons of a REJ, table 109.
pub mod reason {
    /// The one who asked has gone away.
    pub const TIMEOUT: u16 = 4;
    /// Nobody listens.
    pub const INVALID_SERVICE_ID: u16 = 8;
    /// The service is there, with QPs of another kind.
    pub const INVALID_TRANSPORT: u16 = 9;
    /// The connection is from before.
    pub const STALE_CONNECTION: u16 = 10;
    /// The program said no.
    pub const CONSUMER: u16 = 28;
}

/// Status of a SIDR_REP, table 121.
pub mod sidr_status {
    /// The QP is told.
    pub const VALID: u8 = 0;
    /// Nobody listens.
    pub const UNSUPPORTED: u8 = 1;
    /// The program said no.
    pub const REJECTED: u8 = 2;
}

/// Private data of each message, in bytes.
pub mod private_len {
    /// Table 106.
    pub const REQ: usize = 92;
    /// Table 108.
    pub const REJ: usize = 148;
    /// Table 110.
    pub const REP: usize = 196;
    /// Table 111.
    pub const RTU: usize = 224;
    /// Table 119.
    pub const SIDR_REQ: usize = 216;
    /// Table 120.
    pub const SIDR_REP: usize = 136;
}

/// A field: byte behind the header, bits from the top of that byte, width in bits.
#[derive(Clone, Copy)]
struct Field(usize, u32, u32);

impl Field {
    fn bytes(self) -> std::ops::Range<usize> {
        let start = HEADER + self.0;
        start..start + (self.1 + self.2).div_ceil(8) as usize
    }

    /// Bits to the right of the field in its bytes.
    fn shift(self) -> u32 {
        self.bytes().len() as u32 * 8 - self.1 - self.2
    }

    fn mask(self) -> u64 {
        if self.2 == 64 { u64::MAX } else { (1 << self.2) - 1 }
    }

    fn get(self, mad: &Mad) -> u64 {
        let word = mad[self.bytes()].iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
        word >> self.shift() & self.mask()
    }

    fn put(self, mad: &mut Mad, value: u64) {
        let (shift, mask) = (self.shift(), self.mask());
        let mut word = mad[self.bytes()].iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
        word = word & !(mask << shift) | (value & mask) << shift;
        for byte in mad[self.bytes()].iter_mut().rev() {
            *byte = word as u8;
            word >>= 8;
        }
    }
}

/// Bytes behind the header.
fn take<const N: usize>(mad: &Mad, at: usize) -> [u8; N] {
    std::array::from_fn(|n| mad[HEADER + at + n])
}

fn give(mad: &mut Mad, at: usize, bytes: &[u8]) {
    mad[HEADER + at..][..bytes.len()].copy_from_slice(bytes);
}

/// Declares a message: its fields with their places, and its private data.
macro_rules! message {
    (
        $(#[$doc:meta])*
        $name:ident { $($(#[$field_doc:meta])* $field:ident: $kind:ty = $at:expr, $bit:expr, $width:expr;)* }
        $(bytes { $($(#[$bytes_doc:meta])* $bytes:ident: $len:expr => $bytes_at:expr;)* })?
    ) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $kind,)*
            $($($(#[$bytes_doc])* pub $bytes: [u8; $len],)*)?
        }

        impl Default for $name {
            fn default() -> $name {
                $name { $($field: 0,)* $($($bytes: [0; $len],)*)? }
            }
        }

        impl $name {
            fn read(mad: &Mad) -> $name {
                $name {
                    $($field: Field($at, $bit, $width).get(mad) as $kind,)*
                    $($($bytes: take(mad, $bytes_at),)*)?
                }
            }

            fn write(&self, mad: &mut Mad) {
                $(Field($at, $bit, $width).put(mad, u64::from(self.$field));)*
                $($(give(mad, $bytes_at, &self.$bytes);)*)?
            }
        }
    };
}

message! {
    /// Table 106: somebody wants a connection.
    Req {
        /// The sender's name for the connection.
        local_comm_id: u32 = 0, 0, 32;
        /// Whom it wants.
        service_id: u64 = 8, 0, 64;
        /// The sender's node.
        local_ca_guid: u64 = 16, 0, 64;
        /// Its Q_Key.
        local_qkey: u32 = 28, 0, 32;
        /// Its QP.
        local_qpn: u32 = 32, 0, 24;
        /// READs and atomics that it can serve at once.
        responder_resources: u8 = 35, 0, 8;
        /// READs and atomics that it wants to have running at once.
        initiator_depth: u8 = 39, 0, 8;
        /// 4.096 us * 2^this: how soon it expects an answer.
        remote_cm_response_timeout: u8 = 43, 0, 5;
        /// 0: RC, 1: UC.
        transport_service_type: u8 = 43, 5, 2;
        /// End-to-end flow control.
        flow_control: u8 = 43, 7, 1;
        /// Its first PSN.
        starting_psn: u32 = 44, 0, 24;
        /// How soon the sender will answer.
        local_cm_response_timeout: u8 = 47, 0, 5;
        /// Retries of its peer.
        retry_count: u8 = 47, 5, 3;
        /// Partition.
        partition_key: u16 = 48, 0, 16;
        /// Path MTU.
        path_mtu: u8 = 50, 0, 4;
        /// Retries after RNR NAKs.
        rnr_retry_count: u8 = 50, 5, 3;
        /// How often it sends a message again.
        max_cm_retries: u8 = 51, 0, 4;
        /// Its receives are shared.
        srq: u8 = 51, 4, 1;
        /// 0 unless XRC.
        extended_transport_type: u8 = 51, 5, 3;
        /// Path.
        flow_label: u32 = 88, 0, 20;
        /// Path.
        packet_rate: u8 = 91, 2, 6;
        /// Path.
        traffic_class: u8 = 92, 0, 8;
        /// Path.
        hop_limit: u8 = 93, 0, 8;
        /// Path.
        sl: u8 = 94, 0, 4;
        /// Path: 0 for a routed one, which all of RoCE is.
        subnet_local: u8 = 94, 4, 1;
        /// 4.096 us * 2^this: how long its peer's QP waits for an ACK.
        local_ack_timeout: u8 = 95, 0, 5;
    }
    bytes {
        /// The sender's address.
        local_gid: 16 => 56;
        /// The receiver's address.
        remote_gid: 16 => 72;
        /// What programs add.
        private_data: private_len::REQ => 140;
    }
}

message! {
    /// Table 107: the message came; the answer takes longer.
    Mra {
        /// The sender's name for the connection.
        local_comm_id: u32 = 0, 0, 32;
        /// The receiver's.
        remote_comm_id: u32 = 4, 0, 32;
        /// 0: REQ, 1: REP.
        message_mraed: u8 = 8, 0, 2;
        /// 4.096 us * 2^this: how much longer.
        service_timeout: u8 = 9, 0, 5;
    }
}

message! {
    /// Table 108: no.
    Rej {
        /// The sender's name for the connection, or 0.
        local_comm_id: u32 = 0, 0, 32;
        /// The receiver's.
        remote_comm_id: u32 = 4, 0, 32;
        /// 0: REQ, 1: REP, 2: no message.
        message_rejected: u8 = 8, 0, 2;
        /// Table 109.
        reason: u16 = 10, 0, 16;
    }
    bytes {
        /// What programs add.
        private_data: private_len::REJ => 84;
    }
}

message! {
    /// Table 110: yes, and here is my QP.
    Rep {
        /// The sender's name for the connection.
        local_comm_id: u32 = 0, 0, 32;
        /// The receiver's.
        remote_comm_id: u32 = 4, 0, 32;
        /// Its Q_Key.
        local_qkey: u32 = 8, 0, 32;
        /// Its QP.
        local_qpn: u32 = 12, 0, 24;
        /// Its first PSN.
        starting_psn: u32 = 20, 0, 24;
        /// READs and atomics that it will serve at once.
        responder_resources: u8 = 24, 0, 8;
        /// READs and atomics that it will have running at once.
        initiator_depth: u8 = 25, 0, 8;
        /// 4.096 us * 2^this: how late its ACKs may be.
        target_ack_delay: u8 = 26, 0, 5;
        /// Alternate path: 1, not supported.
        failover_accepted: u8 = 26, 5, 2;
        /// End-to-end flow control.
        flow_control: u8 = 26, 7, 1;
        /// Retries after RNR NAKs.
        rnr_retry_count: u8 = 27, 0, 3;
        /// Its receives are shared.
        srq: u8 = 27, 3, 1;
        /// The sender's node.
        local_ca_guid: u64 = 28, 0, 64;
    }
    bytes {
        /// What programs add.
        private_data: private_len::REP => 36;
    }
}

message! {
    /// Table 111: both are ready.
    Rtu {
        /// The sender's name for the connection.
        local_comm_id: u32 = 0, 0, 32;
        /// The receiver's.
        remote_comm_id: u32 = 4, 0, 32;
    }
}

message! {
    /// Table 112: the connection ends.
    Dreq {
        /// The sender's name for the connection.
        local_comm_id: u32 = 0, 0, 32;
        /// The receiver's.
        remote_comm_id: u32 = 4, 0, 32;
        /// The receiver's QP.
        remote_qpn: u32 = 8, 0, 24;
    }
}

message! {
    /// Table 113: it has ended here too.
    Drep {
        /// The sender's name for the connection.
        local_comm_id: u32 = 0, 0, 32;
        /// The receiver's.
        remote_comm_id: u32 = 4, 0, 32;
    }
}

message! {
    /// Table 119: which datagram QP serves this?
    SidrReq {
        /// The sender's name for the question.
        request_id: u32 = 0, 0, 32;
        /// Partition.
        partition_key: u16 = 4, 0, 16;
        /// Whom it wants.
        service_id: u64 = 8, 0, 64;
    }
    bytes {
        /// What programs add.
        private_data: private_len::SIDR_REQ => 16;
    }
}

message! {
    /// Table 120: this one.
    SidrRep {
        /// The question.
        request_id: u32 = 0, 0, 32;
        /// Table 121.
        status: u8 = 4, 0, 8;
        /// The QP.
        qpn: u32 = 8, 0, 24;
        /// Whom the sender wanted.
        service_id: u64 = 12, 0, 64;
        /// The QP's Q_Key.
        qkey: u32 = 20, 0, 32;
    }
    bytes {
        /// What programs add.
        private_data: private_len::SIDR_REP => 96;
    }
}

/// Any of them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the structs' text says it")]
pub enum Message {
    Req(Box<Req>),
    Mra(Mra),
    Rej(Box<Rej>),
    Rep(Box<Rep>),
    Rtu(Rtu),
    Dreq(Dreq),
    Drep(Drep),
    SidrReq(Box<SidrReq>),
    SidrRep(Box<SidrRep>),
}

impl Message {
    /// The message in a datagram; `None` if it holds none. Bytes behind the first 256 are none of ours.
    pub fn parse(bytes: &[u8]) -> Option<Message> {
        let mad: &Mad = bytes.first_chunk()?;
        if mad[..4] != [1, MGMT_CLASS_CM, CLASS_VERSION, METHOD_SEND] {
            return None;
        }
        Some(match u16::from_be_bytes([mad[16], mad[17]]) {
            attribute::REQ => Message::Req(Box::new(Req::read(mad))),
            attribute::MRA => Message::Mra(Mra::read(mad)),
            attribute::REJ => Message::Rej(Box::new(Rej::read(mad))),
            attribute::REP => Message::Rep(Box::new(Rep::read(mad))),
            attribute::RTU => Message::Rtu(Rtu::read(mad)),
            attribute::DREQ => Message::Dreq(Dreq::read(mad)),
            attribute::DREP => Message::Drep(Drep::read(mad)),
            attribute::SIDR_REQ => Message::SidrReq(Box::new(SidrReq::read(mad))),
            attribute::SIDR_REP => Message::SidrRep(Box::new(SidrRep::read(mad))),
            // LAP and APR, of alternate paths, which RoCE has not.
            _ => return None,
        })
    }

    /// The datagram that carries it, as part of transaction `tid`.
    pub fn to_mad(&self, tid: u64) -> Mad {
        let mut mad = [0; MAD_LEN];
        mad[..4].copy_from_slice(&[1, MGMT_CLASS_CM, CLASS_VERSION, METHOD_SEND]);
        mad[8..16].copy_from_slice(&tid.to_be_bytes());
        let id = match self {
            Message::Req(message) => {
                message.write(&mut mad);
                attribute::REQ
            }
            Message::Mra(message) => {
                message.write(&mut mad);
                attribute::MRA
            }
            Message::Rej(message) => {
                message.write(&mut mad);
                attribute::REJ
            }
            Message::Rep(message) => {
                message.write(&mut mad);
                attribute::REP
            }
            Message::Rtu(message) => {
                message.write(&mut mad);
                attribute::RTU
            }
            Message::Dreq(message) => {
                message.write(&mut mad);
                attribute::DREQ
            }
            Message::Drep(message) => {
                message.write(&mut mad);
                attribute::DREP
            }
            Message::SidrReq(message) => {
                message.write(&mut mad);
                attribute::SIDR_REQ
            }
            Message::SidrRep(message) => {
                message.write(&mut mad);
                attribute::SIDR_REP
            }
        };
        mad[16..18].copy_from_slice(&id.to_be_bytes());
        mad
    }

    /// What it is called.
    pub fn name(&self) -> &'static str {
        match self {
            Message::Req(_) => "REQ",
            Message::Mra(_) => "MRA",
            Message::Rej(_) => "REJ",
            Message::Rep(_) => "REP",
            Message::Rtu(_) => "RTU",
            Message::Dreq(_) => "DREQ",
            Message::Drep(_) => "DREP",
            Message::SidrReq(_) => "SIDR_REQ",
            Message::SidrRep(_) => "SIDR_REP",
        }
    }
}

/// The transaction of a datagram.
pub fn tid_of(mad: &[u8]) -> u64 {
    mad.get(8..16).and_then(|tid| tid.try_into().ok()).map_or(0, u64::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that a pseudo random generator makes (splitmix64).
    fn bytes(seed: &mut u64) -> Mad {
        std::array::from_fn(|_| {
            *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let bits = (*seed ^ *seed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            (bits >> 37) as u8
        })
    }

    #[test]
    fn what_was_read_is_written_to_the_same_places() {
        let mut seed = 1;
        for id in attribute::REQ..=attribute::SIDR_REP {
            for _ in 0..200 {
                let mut mad = bytes(&mut seed);
                mad[..4].copy_from_slice(&[1, 7, 2, 3]);
                mad[16..18].copy_from_slice(&id.to_be_bytes());
                let message = Message::parse(&mad).expect("a message");
                let written = message.to_mad(tid_of(&mad));
                assert_eq!(Message::parse(&written), Some(message));
                assert_eq!(written[8..16], mad[8..16]);
            }
        }
    }

    #[test]
    fn fields_lie_where_the_tables_say() {
        let req = Req {
            local_comm_id: 0x0102_0304,
            service_id: 0x0000_0000_0106_1234,
            local_qpn: 0x00ab_cdef,
            responder_resources: 9,
            starting_psn: 0x0012_3456,
            local_cm_response_timeout: 19,
            retry_count: 7,
            path_mtu: 5,
            rnr_retry_count: 6,
            max_cm_retries: 15,
            srq: 1,
            flow_label: 0xf_edcb,
            packet_rate: 0x10,
            local_ack_timeout: 17,
            ..Default::default()
        };
        let mad = Message::Req(Box::new(req)).to_mad(0x1122_3344_5566_7788);
        assert_eq!(mad[..4], [1, 7, 2, 3]);
        assert_eq!(mad[8..16], [0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88]);
        assert_eq!(mad[16..18], [0, 0x10]);
        let at = |byte: usize| mad[24 + byte];
        assert_eq!([at(0), at(3)], [1, 4]);
        assert_eq!(mad[32..40], 0x0106_1234u64.to_be_bytes());
        assert_eq!([at(32), at(33), at(34), at(35)], [0xab, 0xcd, 0xef, 9]);
        assert_eq!([at(44), at(45), at(46), at(47)], [0x12, 0x34, 0x56, 19 << 3 | 7]);
        assert_eq!([at(50), at(51)], [5 << 4 | 6, 15 << 4 | 1 << 3]);
        assert_eq!([at(88), at(89), at(90), at(91)], [0xfe, 0xdc, 0xb0, 0x10]);
        assert_eq!(at(95), 17 << 3);
    }

    #[test]
    fn what_is_no_message_is_none() {
        let good = Message::Rtu(Rtu::default()).to_mad(1);
        assert!(Message::parse(&good).is_some());
        assert!(Message::parse(&good[..255]).is_none());
        for (at, value) in [(0, 2), (1, 4), (2, 1), (3, 0x81), (16, 1), (17, 0x19)] {
            let mut bad = good;
            bad[at] = value;
            assert!(Message::parse(&bad).is_none(), "byte {at}");
        }
    }

    #[test]
    fn private_data_ends_where_the_datagram_does() {
        let rep = Rep { private_data: [7; private_len::REP], ..Default::default() };
        let mad = Message::Rep(Box::new(rep)).to_mad(1);
        assert_eq!((mad[255], mad[24 + 36], mad[24 + 35]), (7, 7, 0));
        let mut req = Req::default();
        req.private_data[91] = 9;
        assert_eq!(Message::Req(Box::new(req)).to_mad(1)[255], 9);
    }
}
