//! The halves of a QP, packet by packet: what each must say to what, in the words of IBA vol. 1, chapter 9.7. The other
//! end is the test.

use pvrdma_device::handle::{Psn, QpHandle, Qpn, Rkey};
use pvrdma_device::rings::wqe::{AtomicOp, Ext};
use pvrdma_device::transport::segment::{Carried, Part};
use pvrdma_device::transport::{Answer, Endpoint, Nak, Op, Request, Token};
use pvrdma_roce::packet::{Aeth, AtomicEth, Bth, NO_CREDITS, Opcode, Packet, Reth, Syndrome, nak};
use pvrdma_roce::rc::Connection;
use pvrdma_roce::rc::requester::{Local, Requester};
use pvrdma_roce::rc::responder::{Piece, Responder};
use std::time::Duration;

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

fn token(n: u32) -> Token {
    Token { qp: QpHandle(1), epoch: 7, psn: psn(n) }
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
        let Bth { opcode, ack_req, solicited, .. } = packet.bth;
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

// ---- the requester -----------------------------------------------------------------------------

/// The device of a requester, whose memory begins with bytes that tell where they are from.
struct Device {
    gone: bool,
    arrived: Vec<(Token, u64, Vec<u8>)>,
}

fn pattern(from: u64, len: u64) -> Vec<u8> {
    (from..from + len).map(|at| (at % 251) as u8).collect()
}

impl Local for Device {
    fn payload(&mut self, _token: Token, offset: u64, into: &mut [u8]) -> bool {
        into.copy_from_slice(&pattern(offset, into.len() as u64));
        !self.gone
    }

    fn arrived(&mut self, token: Token, offset: u64, bytes: &[u8]) -> bool {
        self.arrived.push((token, offset, bytes.to_vec()));
        !self.gone
    }
}

struct Asking {
    half: Requester,
    device: Device,
    now: Duration,
}

fn asking() -> Asking {
    let device = Device { gone: false, arrived: Vec::new() };
    Asking { half: Requester::new(CONNECTION), device, now: Duration::ZERO }
}

fn send() -> Op {
    Op::Send { ext: Ext::None }
}

fn write() -> Op {
    Op::Write { remote_addr: 0x1000, rkey: Rkey(5), imm: None }
}

fn read() -> Op {
    Op::Read { remote_addr: 0x1000, rkey: Rkey(5) }
}

const ADD: Op = Op::Atomic { remote_addr: 0x1000, rkey: Rkey(5), op: AtomicOp::FetchAdd { add: 3 } };

impl Asking {
    /// A request of `len` bytes from packet `n` on. Returns its token.
    fn submit(&mut self, n: u32, op: Op, len: u64) -> Token {
        let packets = len.div_ceil(LEN).max(1) as u32;
        let Connection { local, peer, .. } = CONNECTION;
        let request = Request {
            token: token(n),
            source: local,
            dest: peer,
            psn: psn(n),
            packets,
            op,
            len,
            solicited: true,
            alone: false,
        };
        self.half.submit(&request);
        request.token
    }

    /// All that it sends now.
    fn sent(&mut self) -> Vec<Sent> {
        let mut sent = Vec::new();
        while self.half.transmit(self.now, &mut self.device, &mut |packet| sent.push(Sent::of(packet))) {}
        sent
    }

    /// The same, what they are and which.
    fn shape(&mut self) -> Vec<(Opcode, u32)> {
        shape(&self.sent())
    }

    fn receive(&mut self, n: u32, opcode: Opcode, syndrome: Syndrome, payload: &[u8]) {
        let mut packet = Packet::new(Bth::new(opcode, 0x11, psn(n).get()), payload);
        packet.aeth = opcode.has_aeth().then_some(Aeth { syndrome, msn: 1 });
        packet.atomic_ack = opcode.has_atomic_ack().then_some(0x0102_0304_0506_0708);
        self.half.receive(self.now, &packet, &mut self.device);
    }

    fn ack(&mut self, n: u32) {
        self.receive(n, Opcode::Acknowledge, Syndrome::Ack(NO_CREDITS), &[]);
    }

    fn nak(&mut self, n: u32, code: u8) {
        self.receive(n, Opcode::Acknowledge, Syndrome::Nak(code), &[]);
    }

    fn data(&mut self, n: u32, opcode: Opcode, len: u64) {
        let bytes = pattern(u64::from(n) * LEN, len);
        self.receive(n, opcode, Syndrome::Ack(NO_CREDITS), &bytes);
    }

    fn answers(&mut self) -> Vec<(u32, Answer)> {
        std::iter::from_fn(|| self.half.answer()).map(|(token, answer)| (number(token.psn.get()), answer)).collect()
    }

    /// Lets its timer run out.
    fn expire(&mut self) {
        self.now = self.half.deadline().expect("it waits for something");
        self.half.expire(self.now);
    }
}

#[test]
fn a_message_is_cut_at_the_path_mtu() {
    let mut asking = asking();
    asking.submit(0, Op::Write { remote_addr: 0x1000, rkey: Rkey(5), imm: Some(0x0403_0201) }, 2 * LEN + 3);
    let sent = asking.sent();
    let expected = [(Opcode::WriteFirst, 0), (Opcode::WriteMiddle, 1), (Opcode::WriteLastImm, 2)];
    assert_eq!(shape(&sent), expected);
    assert_eq!(sent.iter().map(|sent| sent.ack_req).collect::<Vec<_>>(), [false, false, true]);
    assert_eq!(sent.iter().map(|sent| sent.solicited).collect::<Vec<_>>(), [false, false, true]);
    assert_eq!(sent[0].reth, Some(Reth { addr: 0x1000, rkey: 5, len: 515 }));
    // As its bytes lay in the program's memory.
    assert_eq!(sent[2].imm, Some(u32::from_be_bytes(0x0403_0201_u32.to_ne_bytes())));
    let bytes: Vec<u8> = sent.into_iter().flat_map(|sent| sent.payload).collect();
    assert_eq!(bytes, pattern(0, 515));
}

#[test]
fn each_operation_has_its_opcodes() {
    let op = |op, len| {
        let mut asking = asking();
        asking.submit(0, op, len);
        shape(&asking.sent()).into_iter().map(|(opcode, _)| opcode).collect::<Vec<_>>()
    };
    let (imm, inv) = (Op::Send { ext: Ext::Imm(1) }, Op::Send { ext: Ext::Invalidate(Rkey(9)) });
    let write_imm = Op::Write { remote_addr: 0, rkey: Rkey(5), imm: Some(1) };
    let swap = AtomicOp::CompareSwap { compare: 1, swap: 2 };
    let swap = Op::Atomic { remote_addr: 0, rkey: Rkey(5), op: swap };
    assert_eq!(op(send(), 0), [Opcode::SendOnly]);
    assert_eq!(op(send(), LEN), [Opcode::SendOnly]);
    assert_eq!(op(send(), LEN + 1), [Opcode::SendFirst, Opcode::SendLast]);
    assert_eq!(op(imm, 1), [Opcode::SendOnlyImm]);
    assert_eq!(op(imm, LEN + 1), [Opcode::SendFirst, Opcode::SendLastImm]);
    assert_eq!(op(inv, 1), [Opcode::SendOnlyInvalidate]);
    assert_eq!(op(inv, LEN + 1), [Opcode::SendFirst, Opcode::SendLastInvalidate]);
    assert_eq!(op(write(), 1), [Opcode::WriteOnly]);
    assert_eq!(op(write(), LEN + 1), [Opcode::WriteFirst, Opcode::WriteLast]);
    assert_eq!(op(write_imm, 1), [Opcode::WriteOnlyImm]);
    assert_eq!(op(read(), 10 * LEN), [Opcode::ReadRequest]);
    assert_eq!(op(ADD, 8), [Opcode::FetchAdd]);
    assert_eq!(op(swap, 8), [Opcode::CompareSwap]);
}

/// 9.7.5.1.1: an ACK acknowledges everything before it.
#[test]
fn one_ack_acknowledges_all_before_it() {
    let mut asking = asking();
    asking.submit(0, send(), 10);
    asking.submit(1, write(), 2 * LEN);
    asking.submit(3, send(), 3 * LEN);
    asking.sent();
    asking.ack(3);
    assert_eq!(asking.answers(), [(0, Answer::Ack), (1, Answer::Ack)]);
    asking.ack(3);
    assert_eq!(asking.answers(), []);
    asking.ack(5);
    assert_eq!(asking.answers(), [(3, Answer::Ack)]);
    assert_eq!(asking.half.deadline(), None);
}

/// 9.7.5.1.1: so does the response to a READ or an atomic operation.
#[test]
fn data_acknowledges_all_before_it() {
    let mut asking = asking();
    asking.submit(0, send(), 10);
    let token = asking.submit(1, read(), LEN + 4);
    asking.submit(3, write(), 10);
    asking.submit(4, ADD, 8);
    asking.sent();
    asking.data(1, Opcode::ReadFirst, LEN);
    assert_eq!(asking.answers(), [(0, Answer::Ack)]);
    asking.data(2, Opcode::ReadLast, 4);
    assert_eq!(asking.answers(), [(1, Answer::Ack)]);
    let bytes = pattern(2 * LEN, 4);
    assert_eq!(asking.device.arrived[1], (token, LEN, bytes));
    asking.receive(4, Opcode::AtomicAcknowledge, Syndrome::Ack(NO_CREDITS), &[]);
    assert_eq!(asking.answers(), [(3, Answer::Ack), (4, Answer::Ack)]);
    assert_eq!(asking.device.arrived[2].2, 0x0102_0304_0506_0708_u64.to_ne_bytes());
}

/// 9.7.5.2.8: a NAK for a sequence error acknowledges what is before it, and is gone back to.
#[test]
fn a_missing_packet_is_sent_again_with_all_behind_it() {
    let mut asking = asking();
    asking.submit(0, write(), 4 * LEN);
    asking.submit(4, send(), 1);
    asking.sent();
    asking.nak(2, nak::SEQUENCE_ERROR);
    let again = [(Opcode::WriteMiddle, 2), (Opcode::WriteLast, 3), (Opcode::SendOnly, 4)];
    assert_eq!(asking.shape(), again);
    // Who says it twice means the same.
    asking.nak(2, nak::SEQUENCE_ERROR);
    assert_eq!(asking.shape(), []);
    asking.ack(2);
    asking.nak(3, nak::SEQUENCE_ERROR);
    assert_eq!(asking.shape(), again[1..]);
    asking.ack(4);
    assert_eq!(asking.answers(), [(0, Answer::Ack), (4, Answer::Ack)]);
}

/// 9.7.5.2.8: RNR NAK. The device waits, counts and asks again.
#[test]
fn who_has_no_receive_ends_the_request_for_now() {
    let mut asking = asking();
    asking.submit(0, write(), LEN);
    asking.submit(1, send(), 3 * LEN);
    asking.submit(4, send(), 1);
    asking.sent();
    asking.receive(1, Opcode::Acknowledge, Syndrome::Rnr(14), &[]);
    assert_eq!(asking.answers(), [(0, Answer::Ack), (1, Answer::RnrNak(14)), (4, Answer::Silence)]);
    assert_eq!((asking.shape(), asking.half.deadline()), (vec![], None));
    asking.submit(1, send(), 3 * LEN);
    assert_eq!(asking.shape(), [(Opcode::SendFirst, 1), (Opcode::SendMiddle, 2), (Opcode::SendLast, 3)]);
    asking.ack(3);
    assert_eq!(asking.answers(), [(1, Answer::Ack)]);
}

#[test]
fn a_refusal_is_the_answer_of_its_request() {
    let refusals = [
        (nak::INVALID_REQUEST, Nak::InvalidRequest),
        (nak::REMOTE_ACCESS, Nak::RemoteAccess),
        (nak::REMOTE_OPERATIONAL, Nak::RemoteOperational),
        (17, Nak::RemoteOperational),
    ];
    for (code, reason) in refusals {
        let mut asking = asking();
        asking.submit(0, send(), 1);
        asking.submit(1, write(), 3 * LEN);
        asking.submit(4, send(), 1);
        asking.sent();
        asking.nak(2, code);
        assert_eq!(asking.answers(), [(0, Answer::Ack), (1, Answer::Nak(reason)), (4, Answer::Silence)]);
        assert!(asking.half.is_empty() && asking.half.deadline().is_none());
    }
}

/// 9.7.5.2.3 and 9.7.7.2.2: data that did not come is asked for again, and only that.
#[test]
fn a_gap_in_what_is_read_is_asked_for_again() {
    let mut asking = asking();
    asking.submit(0, read(), 4 * LEN + 1);
    asking.submit(5, send(), 1);
    let sent = asking.sent();
    assert_eq!(shape(&sent), [(Opcode::ReadRequest, 0), (Opcode::SendOnly, 5)]);
    asking.data(0, Opcode::ReadFirst, LEN);
    asking.data(2, Opcode::ReadMiddle, LEN);
    asking.data(3, Opcode::ReadMiddle, LEN);
    let sent = asking.sent();
    assert_eq!(shape(&sent), [(Opcode::ReadRequest, 1), (Opcode::SendOnly, 5)]);
    assert_eq!(sent[0].reth, Some(Reth { addr: 0x1000 + LEN, rkey: 5, len: 3 * MTU + 1 }));
    for n in 1..4 {
        asking.data(n, Opcode::ReadMiddle, LEN);
    }
    // Not as long as it must be.
    asking.data(4, Opcode::ReadLast, 2);
    assert_eq!(asking.answers(), []);
    asking.data(4, Opcode::ReadLast, 1);
    assert_eq!(asking.answers(), [(0, Answer::Ack)]);
    let places: Vec<u64> = asking.device.arrived.iter().map(|(_, at, _)| *at).collect();
    assert_eq!(places, [0, LEN, 2 * LEN, 3 * LEN, 4 * LEN]);
}

/// 9.7.5.2.3: an ACK of what is behind a READ says that the data was lost.
#[test]
fn an_ack_beyond_data_that_did_not_come_brings_it_again() {
    for (op, opcode, len) in [(read(), Opcode::ReadRequest, 8), (ADD, Opcode::FetchAdd, 8)] {
        let mut asking = asking();
        asking.submit(0, send(), 1);
        asking.submit(1, op, len);
        asking.submit(2, send(), 1);
        asking.sent();
        asking.ack(2);
        assert_eq!(asking.answers(), [(0, Answer::Ack)]);
        assert_eq!(asking.shape(), [(opcode, 1), (Opcode::SendOnly, 2)]);
        asking.ack(2);
        assert_eq!(asking.shape(), [], "once");
    }
}

#[test]
fn a_long_read_is_asked_for_in_pieces_one_at_a_time() {
    let mut asking = asking();
    let packets = 1024;
    asking.submit(0, read(), u64::from(packets) * LEN);
    let (mut asked, mut come) = (0, 0);
    while asking.answers().is_empty() {
        let sent = asking.sent();
        assert_eq!(shape(&sent), [(Opcode::ReadRequest, asked)]);
        let reth = sent[0].reth.expect("a RETH");
        assert_eq!(reth.addr, 0x1000 + u64::from(asked) * LEN);
        assert!(reth.len.is_multiple_of(MTU) && reth.len <= 256 << 10);
        asked += reth.len / MTU;
        while come < asked {
            assert_eq!(asking.sent(), []);
            asking.data(come, Opcode::ReadMiddle, LEN);
            come += 1;
        }
    }
    assert_eq!((asked, come), (packets, packets));
}

#[test]
fn no_more_is_on_its_way_than_the_window_lets() {
    let mut asking = asking();
    asking.submit(0, write(), 1 << 24);
    let first = asking.sent();
    assert_eq!(first.len() as u64 * LEN, 32 << 10);
    // Whoever fills the window wants to hear of it, and of some before.
    assert!(first.iter().filter(|sent| sent.ack_req).count() >= 4 && first.last().is_some_and(|sent| sent.ack_req));
    let (mut flying, mut most, mut n) = (first.len(), 0, 0);
    for _ in 0..40 {
        for _ in 0..flying {
            asking.ack(n);
            n += 1;
        }
        flying = asking.sent().len();
        most = most.max(flying);
    }
    assert_eq!(most as u64 * LEN, 256 << 10);
    asking.nak(n, nak::SEQUENCE_ERROR);
    assert_eq!(asking.sent().len() as u64 * LEN, 128 << 10, "what was lost did not fit");
    asking.expire();
    assert_eq!(asking.sent().len(), 2);
}

#[test]
fn what_is_not_answered_is_sent_again_and_then_given_up() {
    let mut asking = asking();
    asking.submit(0, send(), 2 * LEN);
    asking.submit(2, send(), 1);
    let all = asking.shape();
    let mut waits = Vec::new();
    for _ in 0..2 {
        let before = asking.now;
        asking.expire();
        waits.push(asking.now - before);
        assert_eq!(asking.shape(), all[..2], "the window is down to two packets");
        assert_eq!(asking.answers(), []);
    }
    assert_eq!(waits[1], 2 * waits[0]);
    asking.expire();
    assert!(asking.now < Duration::from_millis(67), "the timer of a QP with timeout 14 has not run out");
    assert_eq!(asking.answers(), [(0, Answer::Silence), (2, Answer::Silence)]);
    assert_eq!((asking.shape(), asking.half.deadline()), (vec![], None));
    // An answer that comes too late for the one comes in time for the next.
    asking.ack(0);
    asking.submit(0, send(), 2 * LEN);
    assert_eq!(asking.shape(), [(Opcode::SendFirst, 0), (Opcode::SendLast, 1)]);
}

/// The device takes requests back when its timer runs out, and submits them again.
#[test]
fn what_is_taken_back_and_comes_again_goes_on_where_it_was() {
    let mut asking = asking();
    let first = asking.submit(0, send(), 3 * LEN);
    let second = asking.submit(3, read(), 2 * LEN);
    asking.sent();
    asking.ack(1);
    asking.half.cancel(first);
    asking.half.cancel(second);
    assert_eq!(asking.answers(), [(3, Answer::Silence)]);
    asking.submit(0, send(), 3 * LEN);
    asking.submit(3, read(), 2 * LEN);
    assert_eq!(asking.shape(), [(Opcode::SendLast, 2), (Opcode::ReadRequest, 3)]);
    asking.data(3, Opcode::ReadFirst, LEN);
    assert_eq!(asking.answers(), [(0, Answer::Ack)]);
    asking.half.cancel(second);
    asking.submit(3, read(), 2 * LEN);
    let sent = asking.sent();
    assert_eq!(shape(&sent), [(Opcode::ReadRequest, 4)]);
    assert_eq!(sent[0].reth, Some(Reth { addr: 0x1000 + LEN, rkey: 5, len: MTU }));
    asking.data(4, Opcode::ReadOnly, LEN);
    assert_eq!(asking.answers(), [(3, Answer::Ack)]);
    assert_eq!(asking.device.arrived.iter().map(|(_, at, _)| *at).collect::<Vec<_>>(), [0, LEN]);
}

/// It was tried in vain before: the device counts that, not the half, which begins anew.
#[test]
fn what_is_taken_back_and_comes_again_has_all_its_tries() {
    let mut asking = asking();
    let token = asking.submit(0, send(), 2 * LEN);
    let all = asking.shape();
    for _ in 0..2 {
        asking.expire();
        assert_eq!(asking.shape(), all);
    }
    asking.half.cancel(token);
    let mut waits = Vec::new();
    asking.submit(0, send(), 2 * LEN);
    assert_eq!(asking.shape(), all);
    asking.nak(0, nak::SEQUENCE_ERROR);
    assert_eq!(asking.shape(), all, "it is gone back to");
    for _ in 0..2 {
        let before = asking.now;
        asking.expire();
        waits.push(asking.now - before);
        assert_eq!((asking.shape(), asking.answers()), (all.clone(), vec![]));
    }
    assert_eq!(waits, [Duration::from_millis(8), Duration::from_millis(16)]);
    asking.expire();
    assert_eq!(asking.answers(), [(0, Answer::Silence)]);
}

/// 9.7.7.2.2: what is asked for again lies within what was asked for before, whichever of the two was heard.
#[test]
fn a_read_is_asked_for_again_to_the_same_end() {
    let mut asking = asking();
    let token = asking.submit(0, read(), 1024 * LEN);
    let asks = |sent: &[Sent]| sent.iter().map(|sent| (sent.n, sent.reth.expect("a RETH").len)).collect::<Vec<_>>();
    assert_eq!(asks(&asking.sent()), [(0, 128 * MTU)]);
    for n in 0..100 {
        asking.data(n, Opcode::ReadMiddle, LEN);
    }
    for _ in 0..2 {
        asking.expire();
        assert_eq!(asks(&asking.sent()), [(100, 28 * MTU)], "the window is down to two packets");
    }
    asking.half.cancel(token);
    asking.submit(0, read(), 1024 * LEN);
    assert_eq!(asks(&asking.sent()), [(100, 28 * MTU)]);
    for n in 100..128 {
        asking.data(n, Opcode::ReadMiddle, LEN);
    }
    assert_eq!(asks(&asking.sent())[0].0, 128);
}

#[test]
fn what_was_acknowledged_before_it_comes_again_is_answered_at_once() {
    let mut asking = asking();
    let token = asking.submit(0, send(), 1);
    asking.submit(1, write(), 2 * LEN);
    asking.sent();
    asking.ack(1);
    assert_eq!(asking.answers(), [(0, Answer::Ack)]);
    asking.half.cancel(token);
    asking.half.cancel(self::token(1));
    // Its device had not heard yet.
    asking.submit(0, send(), 1);
    asking.submit(1, write(), 2 * LEN);
    assert_eq!(asking.answers(), [(0, Answer::Ack)]);
    assert_eq!(asking.shape(), [(Opcode::WriteLast, 2)]);
}

#[test]
fn a_request_behind_one_that_was_taken_back_does_not_leave() {
    let mut asking = asking();
    let token = asking.submit(0, send(), 1);
    asking.submit(1, send(), 1);
    asking.half.cancel(token);
    assert_eq!((asking.answers(), asking.shape()), (vec![(1, Answer::Silence)], vec![]));
    asking.submit(0, send(), 1);
    asking.submit(2, send(), 1);
    assert_eq!(asking.answers(), [(2, Answer::Silence)]);
    assert_eq!(asking.shape(), [(Opcode::SendOnly, 0)]);
}

#[test]
fn payload_that_cannot_be_had_ends_the_request() {
    let mut asking = asking();
    asking.submit(0, send(), 1);
    asking.submit(1, send(), 1);
    asking.device.gone = true;
    assert_eq!(asking.shape(), []);
    // Of the first one the device knows.
    assert_eq!(asking.answers(), [(1, Answer::Silence)]);
    assert!(asking.half.is_empty() && asking.half.deadline().is_none());
    asking.device.gone = false;
    asking.submit(0, read(), 1);
    asking.sent();
    asking.device.gone = true;
    asking.data(0, Opcode::ReadOnly, 1);
    assert!(asking.half.is_empty() && asking.answers().is_empty());
}

#[test]
fn what_answers_nothing_is_not_heard() {
    let mut asking = asking();
    asking.ack(0);
    asking.submit(0, send(), 1);
    asking.ack(0);
    asking.nak(0, nak::REMOTE_ACCESS);
    assert_eq!(asking.answers(), [], "nothing has been sent");
    asking.sent();
    asking.submit(1, read(), 2 * LEN);
    asking.sent();
    for n in [3, 4, 0x0080_0000, 0x00ff_ffff] {
        asking.ack(n);
        asking.nak(n, nak::REMOTE_ACCESS);
        asking.data(n, Opcode::ReadOnly, 1);
        asking.receive(n, Opcode::AtomicAcknowledge, Syndrome::Ack(0), &[]);
    }
    // Data for what did not ask for any.
    asking.data(0, Opcode::ReadOnly, 1);
    asking.receive(1, Opcode::AtomicAcknowledge, Syndrome::Ack(0), &[]);
    assert_eq!((asking.answers(), asking.shape()), (vec![], vec![]));
    assert!(asking.device.arrived.is_empty());
}

#[test]
fn a_request_of_another_number_of_packets_than_it_has_is_refused() {
    let mut asking = asking();
    let token = asking.submit(0, send(), 1);
    asking.half.cancel(token);
    let Connection { local, peer, .. } = CONNECTION;
    let request = Request {
        token,
        source: local,
        dest: peer,
        psn: psn(0),
        packets: 5,
        op: send(),
        len: 3 * LEN,
        solicited: false,
        alone: true,
    };
    asking.half.submit(&request);
    assert_eq!(asking.answers(), [(0, Answer::Nak(Nak::InvalidRequest))]);
}

// ---- the responder -----------------------------------------------------------------------------

struct Answering {
    half: Responder,
}

fn answering() -> Answering {
    Answering { half: Responder::new(CONNECTION, psn(0)) }
}

/// A piece as the device gets it: first packet, packets, bytes.
fn cut(piece: &Piece) -> (u32, u32, u64) {
    let (psn, packets, len) = match piece.carried {
        Carried::Whole(request) => {
            assert_eq!((request.source, request.dest), (CONNECTION.peer, CONNECTION.local));
            (request.psn, request.packets, request.len)
        }
        Carried::Segment(segment) => {
            assert_eq!((segment.source, segment.dest), (CONNECTION.peer, CONNECTION.local));
            (segment.psn, segment.packets, segment.len)
        }
    };
    (number(psn.get()), packets, len)
}

fn part(piece: &Piece) -> Part {
    match piece.carried {
        Carried::Segment(segment) => segment.part,
        Carried::Whole(request) => panic!("a whole message: {request:?}"),
    }
}

fn whole(piece: &Piece) -> Request {
    match piece.carried {
        Carried::Whole(request) => request,
        Carried::Segment(segment) => panic!("a piece: {segment:?}"),
    }
}

/// ACK, or NAK, for packet `n`, with the number of messages done.
fn says(n: u32, syndrome: Syndrome, msn: u32) -> (u32, Syndrome, u32) {
    (n, syndrome, msn)
}

const ACK: Syndrome = Syndrome::Ack(NO_CREDITS);

impl Answering {
    fn packet(&mut self, n: u32, opcode: Opcode, len: u64, reth_len: u64) {
        let bytes = pattern(u64::from(n) * LEN, len);
        let mut packet = Packet::new(Bth::new(opcode, 0x11, psn(n).get()), &bytes);
        packet.reth = opcode.has_reth().then_some(Reth { addr: 0x1000, rkey: 5, len: reth_len as u32 });
        packet.atomic = opcode.has_atomic().then_some(AtomicEth { addr: 8, rkey: 5, swap_or_add: 3, compare: 4 });
        packet.imm = opcode.has_imm().then_some(0x0102_0304);
        packet.invalidate = opcode.has_invalidate().then_some(9);
        assert!(packet.is_sound());
        self.half.receive(&packet);
    }

    /// A packet of a SEND.
    fn send(&mut self, n: u32, opcode: Opcode, len: u64) {
        self.packet(n, opcode, len, 0);
    }

    fn pieces(&mut self) -> Vec<Piece> {
        std::iter::from_fn(|| self.half.piece()).collect()
    }

    fn cuts(&mut self) -> Vec<(u32, u32, u64)> {
        self.pieces().iter().map(cut).collect()
    }

    /// Has the device answer all that it is given.
    fn answer_all(&mut self, answer: Answer) -> Vec<(u32, u32, u64)> {
        let pieces = self.pieces();
        for piece in &pieces {
            self.answer(piece, answer);
        }
        pieces.iter().map(cut).collect()
    }

    fn answer(&mut self, piece: &Piece, answer: Answer) {
        let reads = match piece.carried {
            Carried::Whole(request) => request.op.reads(),
            Carried::Segment(segment) => matches!(segment.part, Part::Read { .. }),
        };
        let (n, _, len) = cut(piece);
        let back = if reads { pattern(u64::from(n) * LEN, len) } else { Vec::new() };
        self.half.answered(piece.ticket, answer, back);
    }

    fn sent(&mut self) -> Vec<Sent> {
        let mut sent = Vec::new();
        while self.half.transmit(1000, &mut |packet| sent.push(Sent::of(packet))) {}
        sent
    }

    /// All that it says now, which are ACKs and NAKs.
    fn said(&mut self) -> Vec<(u32, Syndrome, u32)> {
        let said = |sent: Sent| {
            assert_eq!(sent.opcode, Opcode::Acknowledge);
            let aeth = sent.aeth.expect("an AETH");
            (sent.n, aeth.syndrome, aeth.msn)
        };
        self.sent().into_iter().map(said).collect()
    }
}

const LAST: u32 = 0x00ff_ffff;
const SEQUENCE: Syndrome = Syndrome::Nak(nak::SEQUENCE_ERROR);

#[test]
fn packets_that_come_together_are_one_piece() {
    let mut answering = answering();
    answering.packet(0, Opcode::WriteFirst, LEN, 5 * LEN + 7);
    answering.packet(1, Opcode::WriteMiddle, LEN, 0);
    let piece = &answering.pieces()[0];
    assert_eq!((cut(piece), &piece.bytes), ((0, 2, 2 * LEN), &pattern(0, 2 * LEN)));
    assert_eq!(part(piece), Part::WriteFirst { remote_addr: 0x1000, rkey: Rkey(5), total: 5 * LEN + 7 });
    answering.packet(2, Opcode::WriteMiddle, LEN, 0);
    let piece = &answering.pieces()[0];
    assert_eq!((cut(piece), part(piece)), ((2, 1, LEN), Part::WriteMiddle));
    for n in 3..5 {
        answering.packet(n, Opcode::WriteMiddle, LEN, 0);
    }
    answering.packet(5, Opcode::WriteLastImm, 7, 0);
    let piece = &answering.pieces()[0];
    let imm = Some(u32::from_be_bytes(0x0102_0304_u32.to_ne_bytes()));
    assert_eq!((cut(piece), part(piece)), ((3, 3, 2 * LEN + 7), Part::WriteLast { imm, solicited: false }));
}

#[test]
fn a_message_that_is_there_as_a_whole_is_handed_in_as_a_whole() {
    let mut answering = answering();
    answering.send(0, Opcode::SendFirst, LEN);
    answering.send(1, Opcode::SendLastInvalidate, 3);
    answering.packet(2, Opcode::WriteOnly, 0, 0);
    answering.packet(3, Opcode::FetchAdd, 0, 0);
    answering.packet(4, Opcode::ReadRequest, 0, LEN + 1);
    let pieces = answering.pieces();
    assert_eq!(pieces.iter().map(cut).collect::<Vec<_>>(), [(0, 2, LEN + 3), (2, 1, 0), (3, 1, 8), (4, 2, LEN + 1)]);
    let ops: Vec<Op> = pieces.iter().map(|piece| whole(piece).op).collect();
    let add = Op::Atomic { remote_addr: 8, rkey: Rkey(5), op: AtomicOp::FetchAdd { add: 3 } };
    assert_eq!(ops, [Op::Send { ext: Ext::Invalidate(Rkey(9)) }, write(), add, read()]);
}

/// 9.7.5.1.1 and 9.7.7.1: ACKs may be coalesced, and say how many messages are done.
#[test]
fn an_ack_says_what_is_done_and_how_many_messages_that_are() {
    let mut answering = answering();
    answering.send(0, Opcode::SendFirst, LEN);
    answering.answer_all(Answer::Ack);
    assert_eq!(answering.said(), [says(0, ACK, 0)]);
    answering.send(1, Opcode::SendLast, 1);
    for n in 2..6 {
        answering.send(n, Opcode::SendOnly, 1);
    }
    answering.answer_all(Answer::Ack);
    assert_eq!(answering.said(), [says(5, ACK, 5)]);
    assert_eq!(answering.said(), []);
}

/// 9.7.5.2.8: a NAK for a sequence error names the packet that is missing, once.
#[test]
fn a_gap_is_told_once_and_after_all_before_it_is_answered() {
    let mut answering = answering();
    answering.send(0, Opcode::SendOnly, 1);
    answering.send(2, Opcode::SendOnly, 1);
    assert_eq!(answering.said(), []);
    assert_eq!(answering.answer_all(Answer::Ack), [(0, 1, 1)]);
    assert_eq!(answering.said(), [says(0, ACK, 1), says(1, SEQUENCE, 1)]);
    for n in [2, 3, 4] {
        answering.send(n, Opcode::SendOnly, 1);
    }
    assert_eq!(answering.said(), []);
    answering.send(1, Opcode::SendOnly, 1);
    answering.send(3, Opcode::SendOnly, 1);
    answering.answer_all(Answer::Ack);
    assert_eq!(answering.said(), [says(1, ACK, 2), says(2, SEQUENCE, 2)]);
}

#[test]
fn a_packet_that_was_overtaken_and_comes_in_time_is_not_missed() {
    let mut answering = answering();
    answering.send(1, Opcode::SendOnly, 1);
    answering.send(0, Opcode::SendOnly, 1);
    answering.answer_all(Answer::Ack);
    assert_eq!(answering.said(), [says(0, ACK, 1)]);
}

/// 9.7.5.1.2: duplicates are acknowledged and not done again.
#[test]
fn duplicates_are_acknowledged_and_the_device_does_not_see_them() {
    let mut answering = answering();
    answering.send(0, Opcode::SendOnly, 1);
    answering.packet(1, Opcode::WriteOnly, 1, 1);
    // Nothing is done yet: the ACK will come.
    answering.send(0, Opcode::SendOnly, 1);
    assert_eq!(answering.answer_all(Answer::Ack), [(0, 1, 1), (1, 1, 1)]);
    assert_eq!(answering.said(), [says(1, ACK, 2)]);
    answering.send(0, Opcode::SendOnly, 1);
    answering.packet(1, Opcode::WriteOnly, 1, 1);
    assert_eq!((answering.cuts(), answering.said()), (vec![], vec![says(1, ACK, 2)]));
}

/// 9.7.5.1.2: a duplicate READ is answered anew, from where it asks for; an atomic operation from memory.
#[test]
fn what_was_read_is_read_again() {
    let mut answering = answering();
    answering.packet(0, Opcode::ReadRequest, 0, 3 * LEN);
    answering.packet(3, Opcode::CompareSwap, 0, 0);
    // The same again, before it is answered.
    answering.packet(0, Opcode::ReadRequest, 0, 3 * LEN);
    answering.packet(3, Opcode::CompareSwap, 0, 0);
    assert_eq!(answering.answer_all(Answer::Ack), [(0, 3, 3 * LEN), (3, 1, 8)]);
    let sent = answering.sent();
    let data = [(Opcode::ReadFirst, 0), (Opcode::ReadMiddle, 1), (Opcode::ReadLast, 2)];
    assert_eq!(shape(&sent), [&data[..], &[(Opcode::AtomicAcknowledge, 3)]].concat());
    assert_eq!(
        sent.iter().map(|sent| sent.aeth.map(|aeth| aeth.msn)).collect::<Vec<_>>(),
        [Some(1), None, Some(1), Some(2)]
    );
    let old = u64::from_ne_bytes(pattern(3 * LEN, 8).try_into().expect("8 bytes"));
    assert_eq!(sent[3].old, Some(old));
    let bytes: Vec<u8> = sent.into_iter().flat_map(|sent| sent.payload).collect();
    assert_eq!(bytes, pattern(0, 3 * LEN));
    // The end of it was lost.
    answering.packet(1, Opcode::ReadRequest, 0, 2 * LEN);
    answering.packet(3, Opcode::CompareSwap, 0, 0);
    answering.packet(4, Opcode::ReadRequest, 0, 0);
    assert_eq!(answering.answer_all(Answer::Ack), [(1, 2, 2 * LEN), (3, 1, 8), (4, 1, 0)]);
    let again = [(Opcode::ReadFirst, 1), (Opcode::ReadLast, 2), (Opcode::AtomicAcknowledge, 3), (Opcode::ReadOnly, 4)];
    let sent = answering.sent();
    assert_eq!(shape(&sent), again);
    assert_eq!(sent[3].aeth, Some(Aeth { syndrome: ACK, msn: 3 }));
}

#[test]
fn reads_that_are_asked_for_again_together_are_all_answered() {
    let mut answering = answering();
    for _ in 0..2 {
        answering.packet(0, Opcode::ReadRequest, 0, 1);
        answering.packet(1, Opcode::ReadRequest, 0, 1);
        answering.packet(2, Opcode::FetchAdd, 0, 0);
        answering.packet(3, Opcode::ReadRequest, 0, 1);
        answering.answer_all(Answer::Ack);
        let all = [(Opcode::ReadOnly, 0), (Opcode::ReadOnly, 1), (Opcode::AtomicAcknowledge, 2), (Opcode::ReadOnly, 3)];
        assert_eq!(shape(&answering.sent()), all);
    }
}

#[test]
fn a_read_that_is_asked_for_again_is_not_answered_to_its_end_first() {
    let mut answering = answering();
    answering.packet(0, Opcode::ReadRequest, 0, 4096 * LEN);
    answering.packet(4096, Opcode::SendOnly, 1, 0);
    answering.answer_all(Answer::Ack);
    let mut some = Vec::new();
    assert!(answering.half.transmit(1000, &mut |packet| some.push(Sent::of(packet))));
    answering.packet(1, Opcode::ReadRequest, 0, 4095 * LEN);
    // What stood behind it has to come again too.
    answering.packet(4096, Opcode::SendOnly, 1, 0);
    let mut sent = Vec::new();
    while !answering.answer_all(Answer::Ack).is_empty() || sent.len() < 2 {
        sent.extend(answering.sent());
    }
    sent.extend(answering.sent());
    let numbers: Vec<u32> = sent.iter().map(|sent| sent.n).collect();
    assert_eq!(numbers, (1..=4096).collect::<Vec<_>>());
    assert_eq!(
        sent.last().map(|sent| (sent.opcode, sent.aeth.map(|aeth| aeth.syndrome))),
        Some((Opcode::Acknowledge, Some(ACK)))
    );
}

/// 9.7.5.2.8: after an RNR NAK nothing is accepted, and nothing said, until the packet comes again.
#[test]
fn without_a_receive_nothing_behind_it_is_done() {
    let mut answering = answering();
    answering.send(0, Opcode::SendOnly, 1);
    answering.send(1, Opcode::SendOnly, 1);
    answering.packet(2, Opcode::WriteOnly, 1, 1);
    let pieces = answering.pieces();
    answering.answer(&pieces[2], Answer::Nak(Nak::SequenceError));
    answering.answer(&pieces[0], Answer::Ack);
    answering.answer(&pieces[1], Answer::RnrNak(12));
    assert_eq!(answering.said(), [says(0, ACK, 1), says(1, Syndrome::Rnr(12), 1)]);
    answering.packet(3, Opcode::WriteOnly, 1, 1);
    answering.packet(2, Opcode::WriteOnly, 1, 1);
    assert_eq!((answering.cuts(), answering.said()), (vec![], vec![]));
    answering.send(1, Opcode::SendOnly, 1);
    answering.packet(2, Opcode::WriteOnly, 1, 1);
    assert_eq!(answering.answer_all(Answer::Ack), [(1, 1, 1), (2, 1, 1)]);
    assert_eq!(answering.said(), [says(2, ACK, 3)]);
}

#[test]
fn a_refusal_of_the_device_is_said() {
    let refusals = [
        (Nak::InvalidRequest, nak::INVALID_REQUEST),
        (Nak::RemoteAccess, nak::REMOTE_ACCESS),
        (Nak::RemoteOperational, nak::REMOTE_OPERATIONAL),
    ];
    for (reason, code) in refusals {
        let mut answering = answering();
        answering.send(0, Opcode::SendOnly, 1);
        answering.packet(1, Opcode::ReadRequest, 0, LEN);
        let pieces = answering.pieces();
        answering.answer(&pieces[0], Answer::Ack);
        answering.answer(&pieces[1], Answer::Nak(reason));
        assert_eq!(answering.said(), [says(0, ACK, 1), says(1, Syndrome::Nak(code), 1)]);
    }
}

/// A device that is silent, stopped say, has it done or not: the peer sends again, and the device knows what is new.
#[test]
fn a_device_that_is_silent_is_asked_again() {
    let mut answering = answering();
    answering.send(0, Opcode::SendOnly, 1);
    answering.send(1, Opcode::SendOnly, 1);
    assert_eq!(answering.answer_all(Answer::Silence), [(0, 1, 1), (1, 1, 1)]);
    answering.send(2, Opcode::SendOnly, 1);
    assert_eq!((answering.cuts(), answering.said()), (vec![], vec![]));
    answering.send(0, Opcode::SendOnly, 1);
    assert_eq!(answering.answer_all(Answer::Ack), [(0, 1, 1)]);
    assert_eq!(answering.said(), [says(0, ACK, 1)]);
}

#[test]
fn what_is_behind_a_read_is_answered_behind_its_data() {
    let mut answering = answering();
    answering.packet(0, Opcode::ReadRequest, 0, 2048 * LEN);
    answering.send(2048, Opcode::SendOnly, 1);
    answering.send(2050, Opcode::SendOnly, 1);
    let (mut sent, mut fetched) = (Vec::new(), 0);
    loop {
        let pieces = answering.answer_all(Answer::Ack);
        let lens: u64 = pieces.iter().filter(|(n, ..)| *n < 2048).map(|(.., len)| len).sum();
        fetched += lens;
        assert!(fetched - sent.iter().map(|sent: &Sent| sent.payload.len() as u64).sum::<u64>() < 192 << 10);
        let more = answering.sent();
        if more.is_empty() && pieces.is_empty() {
            break;
        }
        sent.extend(more);
    }
    assert_eq!(sent.iter().map(|sent| sent.n).collect::<Vec<_>>(), (0..=2049).collect::<Vec<_>>());
    let opcodes = |range: std::ops::Range<usize>| sent[range].iter().map(|sent| sent.opcode).collect::<Vec<_>>();
    assert_eq!(opcodes(0..1), [Opcode::ReadFirst]);
    assert!(opcodes(1..2047).iter().all(|opcode| *opcode == Opcode::ReadMiddle));
    assert_eq!(opcodes(2047..2048), [Opcode::ReadLast]);
    let ends: Vec<_> = sent[2048..].iter().map(|sent| sent.aeth.expect("an AETH").syndrome).collect();
    assert_eq!(ends, [ACK, SEQUENCE]);
}

#[test]
fn a_device_that_takes_nothing_holds_up_a_bounded_amount() {
    let mut answering = answering();
    answering.packet(0, Opcode::WriteFirst, LEN, 1 << 30);
    for n in 1..2000 {
        answering.packet(n, Opcode::WriteMiddle, LEN, 0);
    }
    let pieces = answering.pieces();
    assert_eq!(pieces.iter().map(|piece| piece.bytes.len()).sum::<usize>(), 256 << 10);
    assert!(pieces.iter().all(|piece| piece.bytes.len() <= 64 << 10));
    assert_eq!(answering.said(), []);
    pieces.iter().for_each(|piece| answering.answer(piece, Answer::Ack));
    assert_eq!(answering.said(), [says(1023, ACK, 0)]);
    answering.packet(1024, Opcode::WriteMiddle, LEN, 0);
    assert_eq!(answering.cuts(), [(1024, 1, LEN)]);
    // Nor any number of them.
    let mut answering = self::answering();
    (0..1000).for_each(|n| answering.packet(n, Opcode::WriteOnly, 0, 0));
    assert_eq!(answering.cuts().len(), 256);
}

#[test]
fn responses_and_datagrams_are_no_requests() {
    let mut answering = answering();
    for opcode in [Opcode::Acknowledge, Opcode::ReadOnly, Opcode::AtomicAcknowledge, Opcode::Datagram] {
        let mut packet = Packet::new(Bth::new(opcode, 0x11, psn(0).get()), &[]);
        packet.aeth = opcode.has_aeth().then_some(Aeth { syndrome: ACK, msn: LAST });
        answering.half.receive(&packet);
    }
    answering.send(0, Opcode::SendOnly, 1);
    assert_eq!(answering.cuts(), [(0, 1, 1)]);
}
