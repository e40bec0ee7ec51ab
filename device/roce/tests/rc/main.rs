//! The halves of a QP, packet by packet: what each must say to what, in the words of IBA vol. 1, chapter 9.7. The other
//! end is the test.

mod requester;
mod responder;

use pvrdma_device::handle::{Psn, Qpn, Rkey};
use pvrdma_device::transport::{Endpoint, Op};
use pvrdma_roce::packet::{Aeth, AtomicEth, Bth, DEFAULT_PKEY, Opcode, Packet, Reth};
use pvrdma_roce::rc::Connection;

const MTU: u32 = 256;
const LEN: u64 = MTU as u64;
/// The numbers begin again within the first message.
const FIRST: u32 = 0x00ff_fffe;

const CONNECTION: Connection = Connection {
    local: Endpoint { gid: [1; 16], qpn: Qpn(0x11) },
    peer: Endpoint { gid: [2; 16], qpn: Qpn(0x22) },
    mtu: MTU,
};

/// The PSN of packet `n`.
fn psn(n: u32) -> Psn {
    Psn::new(FIRST).advance(n)
}

/// The number of the packet with this PSN.
fn number(psn: u32) -> u32 {
    Psn::new(psn).since(Psn::new(FIRST))
}

/// A packet that was sent.
#[derive(Clone, Debug, PartialEq)]
struct Sent {
    opcode: Opcode,
    n: u32,
    ack_req: bool,
    solicited: bool,
    reth: Option<Reth>,
    imm: Option<u32>,
    invalidate: Option<u32>,
    atomic: Option<AtomicEth>,
    aeth: Option<Aeth>,
    old: Option<u64>,
    payload: Vec<u8>,
}

impl Sent {
    /// By way of its bytes.
    fn of(packet: &Packet<'_>) -> Sent {
        assert!(packet.is_sound(), "{packet:?}");
        let mut bytes = Vec::new();
        packet.write(&mut bytes);
        let packet = Packet::parse(&bytes).expect("one of ours");
        assert_eq!(packet.bth.dest_qpn, 0x22);
        let Bth { opcode, ack_req, solicited, migrated, pkey, fecn, becn, .. } = packet.bth;
        assert_eq!((migrated, pkey, fecn, becn), (true, DEFAULT_PKEY, false, false), "the same in every packet");
        Sent {
            opcode,
            n: number(packet.bth.psn),
            ack_req,
            solicited,
            reth: packet.reth,
            imm: packet.imm,
            invalidate: packet.invalidate,
            atomic: packet.atomic,
            aeth: packet.aeth,
            old: packet.atomic_ack,
            payload: packet.payload.to_vec(),
        }
    }
}

fn shape(sent: &[Sent]) -> Vec<(Opcode, u32)> {
    sent.iter().map(|sent| (sent.opcode, sent.n)).collect()
}

/// Bytes that tell where in a message they are from.
fn pattern(from: u64, len: u64) -> Vec<u8> {
    pvrdma_roce::testing::pattern(from, len as usize)
}

fn write() -> Op {
    Op::Write { remote_addr: 0x1000, rkey: Rkey(5), imm: None }
}

fn read() -> Op {
    Op::Read { remote_addr: 0x1000, rkey: Rkey(5) }
}
