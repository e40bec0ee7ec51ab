//! The requester.

use crate::{CONNECTION, LEN, MTU, Sent, number, pattern, psn, read, shape, write};
use pvrdma_device::handle::{QpHandle, Rkey};
use pvrdma_device::rings::wqe::{AtomicOp, Ext};
use pvrdma_device::transport::{Answer, Nak, Op, Request, Token};
use pvrdma_roce::packet::{Aeth, Bth, NO_CREDITS, Opcode, Packet, Reth, Syndrome, nak};
use pvrdma_roce::rc::Connection;
use pvrdma_roce::rc::requester::{Local, Requester};
use std::time::Duration;

fn token(n: u32) -> Token {
    Token { qp: QpHandle(1), epoch: 7, psn: psn(n) }
}

/// The device of a requester, whose memory begins with bytes that tell where they are from.
struct Device {
    gone: bool,
    arrived: Vec<(Token, u64, Vec<u8>)>,
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

/// 9.7.7.2: credits are a hint that a requester may do without. What it counts are packets, not messages.
#[test]
fn credits_and_numbers_of_messages_are_not_heeded() {
    let mut asking = asking();
    for n in 0..8 {
        asking.submit(n, send(), 1);
    }
    assert_eq!(asking.sent().len(), 8);
    for (n, credits, next) in [(2, 0, 8), (7, 30, 9)] {
        let mut packet = Packet::new(Bth::new(Opcode::Acknowledge, 0x11, psn(n).get()), &[]);
        packet.aeth = Some(Aeth { syndrome: Syndrome::Ack(credits), msn: 0x00ff_0000 });
        asking.half.receive(asking.now, &packet, &mut asking.device);
        assert_eq!(asking.answers().last(), Some(&(n, Answer::Ack)));
        asking.submit(next, send(), 1);
        assert_eq!(asking.shape(), [(Opcode::SendOnly, next)]);
    }
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

/// Without payload they are packets all the same. A peer that misses each of them in turn has no window sent each time.
#[test]
fn messages_without_payload_count_for_the_window() {
    let mut asking = asking();
    for n in 0..1000 {
        asking.submit(n, send(), 0);
    }
    assert_eq!(asking.sent().len(), (32 << 10) / 64);
    let mut again = 0;
    for n in 0..200 {
        asking.ack(n);
        asking.nak(n + 1, nak::SEQUENCE_ERROR);
        again += asking.sent().len();
    }
    assert!(again <= 512 + 200 * 8, "{again} packets for 200 that were missed");
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

/// C9-88: no key is looked at. A responder that takes none down knows the READ again for it.
#[test]
fn a_read_without_length_names_no_key() {
    let mut asking = asking();
    asking.submit(0, read(), 0);
    for _ in 0..2 {
        assert_eq!(asking.sent()[0].reth, Some(Reth { addr: 0x1000, rkey: 0, len: 0 }));
        asking.expire();
    }
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

/// Half of a QP's requests went with a half that is gone, and come again.
#[test]
fn what_another_half_had_is_not_taken_for_done() {
    let mut asking = asking();
    let late = asking.submit(4, send(), LEN);
    assert_eq!(shape(&asking.sent()), [(Opcode::SendOnly, 4)]);
    asking.half.cancel(late);
    let early = [asking.submit(2, send(), LEN), asking.submit(3, send(), LEN), asking.submit(4, send(), LEN)];
    assert_eq!(asking.half.answer(), None, "nobody has acknowledged them");
    assert_eq!(shape(&asking.sent()), [2, 3, 4].map(|n| (Opcode::SendOnly, n)));
    // The same before and behind a hole.
    early.iter().rev().for_each(|token| asking.half.cancel(*token));
    while asking.half.answer().is_some() {}
    asking.submit(9, send(), LEN);
    asking.half.cancel(token(9));
    asking.submit(3, send(), LEN);
    assert_eq!(asking.half.answer(), None);
}

/// The responder tells the latest that it has done, and that may be more than this half has sent.
#[test]
fn what_another_half_has_sent_is_acknowledged_to_this_one() {
    let mut asking = asking();
    asking.submit(0, write(), 9000 * LEN);
    assert!(asking.sent().len() < 300);
    asking.ack(300);
    assert_eq!(asking.sent(), [], "it may be late, and of a connection that was here before");
    asking.expire();
    asking.sent();
    asking.ack(300);
    assert_eq!(asking.sent().first().map(|sent| sent.n), Some(301));
    // From here on it knows what it has sent.
    asking.ack(301);
    asking.expire();
    asking.sent();
    asking.ack(8999);
    assert_eq!(asking.answers(), []);
}

#[test]
fn what_was_never_sent_is_not_acknowledged() {
    let mut asking = asking();
    asking.submit(0, write(), 400 * LEN);
    asking.sent();
    asking.ack(0);
    for n in [399, 400, 5000, 0x00ff_ffff] {
        asking.ack(n);
    }
    asking.expire();
    asking.ack(399);
    assert_eq!(asking.answers(), []);
    // No data comes that was not asked for.
    asking.data(300, Opcode::ReadOnly, 1);
    assert!(asking.device.arrived.is_empty());
}
