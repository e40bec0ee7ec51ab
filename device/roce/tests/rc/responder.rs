//! The responder.

use crate::{CONNECTION, LEN, Sent, number, pattern, psn, read, shape, write};
use pvrdma_device::handle::Rkey;
use pvrdma_device::rings::wqe::{AtomicOp, Ext};
use pvrdma_device::transport::segment::{Carried, Part};
use pvrdma_device::transport::{Answer, Nak, Op, Request};
use pvrdma_roce::packet::{Aeth, AtomicEth, Bth, NO_CREDITS, Opcode, Packet, Reth, Syndrome, nak};
use pvrdma_roce::rc::responder::{Piece, Responder};

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

/// 9.11: a solicited event is asked for by the last packet of a message; in others the bit says nothing.
#[test]
fn the_last_packet_asks_for_a_solicited_event() {
    let solicited = |bits: [bool; 2]| {
        let mut answering = answering();
        for (n, opcode) in [Opcode::SendFirst, Opcode::SendLast].into_iter().enumerate() {
            let bth = Bth { solicited: bits[n], ..Bth::new(opcode, 0x11, psn(n as u32).get()) };
            answering.half.receive(&Packet::new(bth, &pattern(0, LEN)));
        }
        let together = whole(&answering.pieces()[0]).solicited;
        let mut answering = self::answering();
        answering.send(0, Opcode::SendFirst, LEN);
        answering.pieces();
        let bth = Bth { solicited: bits[1], ..Bth::new(Opcode::SendLast, 0x11, psn(1).get()) };
        answering.half.receive(&Packet::new(bth, &[1]));
        assert_eq!(part(&answering.pieces()[0]), Part::SendLast { ext: Ext::None, solicited: together });
        together
    };
    assert_eq!([[false, false], [true, false], [false, true]].map(solicited), [false, false, true]);
}

/// Whoever owns the socket looks at the partition; of congestion and of migration nothing follows here.
#[test]
fn marks_of_congestion_and_migration_change_nothing() {
    let mut answering = answering();
    for (n, bits) in (0..8u8).enumerate() {
        let [fecn, becn, migrated] = [1, 2, 4].map(|bit| bits & bit != 0);
        let bth = Bth { fecn, becn, migrated, ..Bth::new(Opcode::SendOnly, 0x11, psn(n as u32).get()) };
        answering.half.receive(&Packet::new(bth, &[1]));
    }
    assert_eq!(answering.answer_all(Answer::Ack).len(), 8);
    assert_eq!(answering.said(), [says(7, ACK, 8)]);
}

/// 9.7.2: of the numbers that are not the next one, half are to come and half have been.
#[test]
fn half_of_all_numbers_have_been_and_half_are_to_come() {
    const HALF: u32 = 1 << 23;
    for (n, expected) in [(HALF - 1, says(1, SEQUENCE, 1)), (HALF + 2, says(0, ACK, 1)), (0, says(0, ACK, 1))] {
        let mut answering = answering();
        answering.send(0, Opcode::SendOnly, 1);
        answering.answer_all(Answer::Ack);
        assert_eq!(answering.said(), [says(0, ACK, 1)]);
        answering.send(n, Opcode::SendOnly, 1);
        assert_eq!((answering.cuts(), answering.said()), (vec![], vec![expected]), "{n:#x}");
    }
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

/// Whoever does not let us speak, or asks faster than we may, is not listened to meanwhile.
#[test]
fn a_peer_that_is_not_answered_yet_holds_up_a_bounded_amount() {
    for opcode in [Opcode::FetchAdd, Opcode::ReadRequest] {
        let mut answering = answering();
        for n in 0..1000 {
            answering.packet(n, opcode, 0, 0);
            // And what was done comes again.
            answering.packet(n / 2, opcode, 0, 0);
            answering.packet(0, Opcode::WriteOnly, 0, 0);
            answering.answer_all(Answer::Ack);
        }
        assert!(answering.half.kept().0 <= 512, "{:?}", answering.half.kept());
        // It goes on as soon as it is heard.
        let before = answering.sent().len() as u32;
        assert!((100..=512).contains(&before), "{before}");
        let next = (0..1000).find(|n| {
            answering.packet(*n, Opcode::WriteOnly, 0, 0);
            !answering.cuts().is_empty()
        });
        assert!(next.is_some_and(|next| next <= 256), "{next:?}");
    }
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
