//! Messages in pieces, piece by piece: what a responder keeps between them, what it refuses, and what becomes of a
//! message whose rest does not come. And the requester's side of a transport that carries payload by value.
//!
//! That whole messages are the same in pieces is shown by all other tests, with `PVRDMA_CUT`.

use pvrdma_device::handle::{Psn, Rkey};
use pvrdma_device::interrupt::AsyncEvent;
use pvrdma_device::rings::wqe::Ext;
use pvrdma_device::testing::cut::{ByValue, Cut};
use pvrdma_device::testing::driver::{Driver, Layout, Region};
use pvrdma_device::testing::end::{End, Path, connect, pump, pump_until};
use pvrdma_device::testing::queue::{QpSize, RecvWr, SendWr, sge};
use pvrdma_device::testing::rng::Rng;
use pvrdma_device::testing::wire::{Net, Wire};
use pvrdma_device::transport::segment::{Carried, Cutter, Part, Segment};
use pvrdma_device::transport::{Answer, Nak, Op, Request, Requester, Responder};
use pvrdma_ffi::dev_api::*;
use pvrdma_ffi::uapi::vmw_pvrdma::*;
use std::sync::Arc;
use std::time::{Duration, Instant};

const FLUSH: u32 = PVRDMA_WC_WR_FLUSH_ERR;
const LIMIT: Duration = Duration::from_secs(20);
/// Bytes of a full packet.
const MTU: u64 = 256;
const INVALID: Answer = Answer::Nak(Nak::InvalidRequest);
const ACCESS: Answer = Answer::Nak(Nak::RemoteAccess);

/// `a` is the requester, played by the test; `b` the responder.
struct Bench {
    a: End,
    b: End,
    wire: Arc<Wire>,
    /// Of `b`.
    remote: Region,
}

const PATH: Path = Path {
    access: pvrdma_device::testing::driver::ALL_ACCESS,
    mtu: PVRDMA_MTU_256,
    // A few packets before the numbers begin again.
    psn: 0x00ff_fffd,
    timeout: 0,
    retry_cnt: 1,
    rnr_retry: 7,
    min_rnr_timer: 3,
    max_rd_atomic: 4,
};

fn bench() -> Bench {
    let net = Net::cutting(Cut::Whole);
    let [(da, wire), (db, _)] = [0, 1].map(|index| Wire::guest(&net, index, Layout::Pdir));
    let [a, b] = [da, db].map(|driver| End::new(&driver, QpSize::default()));
    connect(&a, &b, &PATH);
    let remote = b.region(16 * MTU);
    Bench { a, b, wire, remote }
}

/// The PSN of packet `n`.
fn psn(n: u32) -> Psn {
    Psn::new(PATH.psn).advance(n)
}

/// Bytes that tell where they are from.
fn pattern(from: u64, len: u64) -> Vec<u8> {
    (from..from + len).map(|at| (at % 251) as u8 + 1).collect()
}

impl Bench {
    fn segment(&self, at: u32, packets: u32, len: u64, part: Part) -> Segment {
        Segment { source: self.a.endpoint(), dest: self.b.endpoint(), psn: psn(at), packets, len, part }
    }

    /// Has a piece arrive that begins with packet `at`, with these bytes.
    fn give(&self, at: u32, packets: u32, bytes: &[u8], part: Part) -> Answer {
        let far = ByValue { bytes: bytes.to_vec(), back: Default::default() };
        self.b.driver.device.receive_segment(&self.segment(at, packets, bytes.len() as u64, part), &far)
    }

    /// The same, full packets of the pattern.
    fn full(&self, at: u32, packets: u32, part: Part) -> Answer {
        self.give(at, packets, &pattern(u64::from(at) * MTU, u64::from(packets) * MTU), part)
    }

    fn write_first(&self, total: u64) -> Part {
        Part::WriteFirst { remote_addr: self.remote.start, rkey: Rkey(self.remote.key), total }
    }

    fn request(&self, at: u32, op: Op, len: u64, packets: u32) -> Request {
        Request {
            token: Default::default(),
            source: self.a.endpoint(),
            dest: self.b.endpoint(),
            psn: psn(at),
            packets,
            op,
            len,
            solicited: false,
            alone: false,
        }
    }

    fn drivers(&self) -> [&Driver; 2] {
        [&self.a.driver, &self.b.driver]
    }

    /// The responder has failed, told why, and flushed what was posted.
    fn assert_failed(&self, event: AsyncEvent, receives: &[(u64, u32)]) {
        pump(&self.drivers());
        assert_eq!(self.b.query().qp_state, PVRDMA_QPS_ERR);
        assert_eq!(self.b.driver.bell.events(), [event]);
        assert_eq!(self.b.recv_cq.ends(), receives);
        assert_eq!(self.b.qp.recvs_out(), 0);
    }
}

const SEND_LAST: Part = Part::SendLast { ext: Ext::None, solicited: false };
const WRITE_LAST: Part = Part::WriteLast { imm: None, solicited: false };

#[test]
fn a_send_in_pieces_is_one_message() {
    let bench = bench();
    // SGEs end where no packet does.
    let sges = [sge(&bench.remote, 0, 100), sge(&bench.remote, 1000, 0), sge(&bench.remote, 2000, 1000)];
    bench.b.recv(&RecvWr::new(70, &sges));
    bench.b.recv(&RecvWr::new(71, &[]));
    assert_eq!(bench.full(0, 1, Part::SendFirst), Answer::Ack);
    assert_eq!(bench.full(1, 2, Part::SendMiddle), Answer::Ack);
    assert_eq!((bench.b.recv_cq.ends(), bench.b.qp.recvs_out()), (vec![], 2), "nothing has ended yet");
    let last = Part::SendLast { ext: Ext::Imm(0x1234), solicited: true };
    assert_eq!(bench.give(3, 1, &pattern(3 * MTU, 7), last), Answer::Ack);
    let [wc] = bench.b.recv_cq.drain().try_into().unwrap();
    assert_eq!((wc.wr_id, wc.status, u64::from(wc.byte_len), wc.imm_data), (70, 0, 3 * MTU + 7, 0x1234));
    let got = [bench.remote.get(0, 100), bench.remote.get(2000, 3 * MTU as usize + 7 - 100)].concat();
    assert_eq!(got, pattern(0, 3 * MTU + 7));
    assert_eq!(bench.b.qp.recvs_out(), 1);
    // The next one takes the next.
    assert_eq!(
        bench.b.driver.device.receive(&bench.request(4, Op::Send { ext: Ext::None }, 0, 1), &nothing()),
        Answer::Ack
    );
    assert_eq!(bench.b.recv_cq.ends(), [(71, 0)]);
}

fn nothing() -> ByValue {
    ByValue { bytes: Vec::new(), back: Default::default() }
}

#[test]
fn a_write_in_pieces_needs_its_receive_at_the_last_one() {
    let bench = bench();
    let total = 2 * MTU + 1;
    assert_eq!(bench.full(0, 1, bench.write_first(total)), Answer::Ack);
    assert_eq!(bench.full(1, 1, Part::WriteMiddle), Answer::Ack);
    let last = || bench.give(2, 1, &pattern(2 * MTU, 1), Part::WriteLast { imm: Some(9), solicited: false });
    assert_eq!(last(), Answer::RnrNak(PATH.min_rnr_timer));
    assert_eq!(bench.remote.get(2 * MTU, 1), [0], "not before there is one");
    bench.b.recv(&RecvWr::new(70, &[]));
    assert_eq!(last(), Answer::Ack);
    assert_eq!(last(), Answer::Ack, "a duplicate");
    let [wc] = bench.b.recv_cq.drain().try_into().unwrap();
    assert_eq!((wc.wr_id, u64::from(wc.byte_len), wc.imm_data), (70, total, 9));
    assert_eq!(bench.remote.get(0, total as usize), pattern(0, total));
}

#[test]
fn without_a_receive_a_send_does_not_begin() {
    let bench = bench();
    assert_eq!(bench.full(0, 1, Part::SendFirst), Answer::RnrNak(PATH.min_rnr_timer));
    assert_eq!(bench.full(1, 1, Part::SendMiddle), Answer::Nak(Nak::SequenceError));
    bench.b.recv(&RecvWr::new(70, &[sge(&bench.remote, 0, 1000)]));
    assert_eq!(bench.full(0, 1, Part::SendFirst), Answer::Ack);
    assert_eq!(bench.full(1, 1, SEND_LAST), Answer::Ack);
    assert_eq!(bench.b.recv_cq.ends(), [(70, 0)]);
}

/// A message is carried in one cut until something is lost, and then again in another, and so on until all has come.
/// What has come is not done again: its owner may have used the place for something else.
#[test]
fn what_has_come_in_one_cut_is_not_done_again_in_another() {
    let mut rng = Rng::from_env(1);
    let mut straddled = 0;
    let bench = bench();
    let mut at = 0;
    for round in 0..2000 {
        let packets = 2 + rng.below(9) as u32;
        let len = u64::from(packets - 1) * MTU + 1 + rng.below(MTU);
        let remote = &bench.remote;
        let op = match rng.below(3) {
            0 => Op::Send { ext: Ext::Imm(round) },
            imm => Op::Write { remote_addr: remote.start, rkey: Rkey(remote.key), imm: (imm == 1).then_some(round) },
        };
        if op.takes_receive() {
            bench.b.recv(&RecvWr::new(u64::from(round), &[sge(remote, 0, len as u32)]));
        }
        let request = bench.request(at, op, len, packets);
        remote.set(0, &vec![0; len as usize]);
        // Packets that have come.
        let mut come = 0;
        while come < packets {
            let mut cutter = Cutter::new(&request);
            let (most, stand) = (*rng.pick(&[1, 2, 3, 5, 100]), rng.one_in(2));
            while let Some((offset, carried)) = cutter.next(most) {
                let carried = if stand { on_its_own(&request, offset, carried) } else { carried };
                let bytes = |len: u64| ByValue { bytes: pattern(offset, len), back: Default::default() };
                let (answer, end) = match carried {
                    Carried::Segment(piece) => {
                        let end = piece.psn.advance(piece.packets).since(request.psn);
                        straddled += u32::from(end > come && piece.psn.since(request.psn) < come);
                        (bench.b.driver.device.receive_segment(&piece, &bytes(piece.len)), end)
                    }
                    Carried::Whole(end) => {
                        straddled += u32::from(end.psn.since(request.psn) < come && packets > come);
                        (bench.b.driver.device.receive(&end, &bytes(end.len)), packets)
                    }
                };
                assert_eq!(answer, Answer::Ack, "round {round}");
                if end > come {
                    let from = u64::from(come) * MTU;
                    let to = len.min(u64::from(end) * MTU);
                    assert_eq!(remote.get(from, (to - from) as usize), pattern(from, to - from), "round {round}");
                    remote.set(from, &vec![0xee; (to - from) as usize]);
                    come = end;
                }
                let used = remote.get(0, len.min(u64::from(come) * MTU) as usize);
                assert!(used.iter().all(|byte| *byte == 0xee), "round {round}: written again");
                if rng.one_in(4) {
                    break;
                }
            }
        }
        let ends: Vec<_> =
            bench.b.recv_cq.drain().iter().map(|wc| (wc.wr_id, wc.status, u64::from(wc.byte_len))).collect();
        let expected = op.takes_receive().then_some((u64::from(round), 0, len));
        assert_eq!(ends, Vec::from_iter(expected), "round {round}: once");
        at += packets;
    }
    assert!(straddled > 500, "{straddled} pieces were new in part");
}

/// A piece of a WRITE without immediate data, as if the message began with it.
fn on_its_own(request: &Request, offset: u64, carried: Carried) -> Carried {
    let (Op::Write { remote_addr, rkey, imm: None }, Carried::Segment(piece)) = (request.op, carried) else {
        return carried;
    };
    let (remote_addr, total) = (remote_addr + offset, request.len - offset);
    if total > piece.len {
        return Carried::Segment(Segment { part: Part::WriteFirst { remote_addr, rkey, total }, ..piece });
    }
    let Segment { psn, packets, len, .. } = piece;
    Carried::Whole(Request { psn, packets, len, op: Op::Write { remote_addr, rkey, imm: None }, ..*request })
}

/// Others may put packets of a WRITE in place, and the responder finds them done. It takes the rest from whoever says
/// where that goes, and from nobody else.
#[test]
fn a_write_goes_on_behind_packets_that_the_responder_did_not_see() {
    let bench = bench();
    let (remote_addr, rkey, total) = (bench.remote.start, Rkey(bench.remote.key), 5 * MTU);
    let write = |at: u32, packets: u32| {
        let op = Op::Write { remote_addr: remote_addr + u64::from(at) * MTU, rkey, imm: None };
        let len = u64::from(packets) * MTU;
        let far = ByValue { bytes: pattern(u64::from(at) * MTU, len), back: Default::default() };
        bench.b.driver.device.receive(&bench.request(at, op, len, packets), &far)
    };
    // It keeps nothing of what comes as a whole.
    assert_eq!(write(0, 2), Answer::Ack);
    bench.remote.set(0, &[0xee; 2 * MTU as usize]);
    assert_eq!(bench.full(0, 3, bench.write_first(total)), Answer::Ack);
    assert_eq!(bench.remote.get(0, 2 * MTU as usize), [0xee; 2 * MTU as usize], "not again");
    assert_eq!(bench.remote.get(2 * MTU, MTU as usize), pattern(2 * MTU, MTU));
    // From elsewhere on, in packets behind the first ones.
    let rest = Part::WriteFirst { remote_addr: remote_addr + MTU, rkey, total: total - MTU };
    assert_eq!(bench.full(1, 3, rest), Answer::Ack);
    assert_eq!(write(2, 3), Answer::Ack);
    assert_eq!(bench.remote.get(2 * MTU, 3 * MTU as usize), pattern(2 * MTU, 3 * MTU));
    // Who does not say where to meets nobody who knows.
    assert_eq!(bench.full(4, 2, WRITE_LAST), INVALID);
    bench.assert_failed(AsyncEvent::QpReqErr(bench.b.qp.handle), &[]);
}

#[test]
fn who_begins_a_message_has_given_up_the_one_before() {
    for whole in [false, true] {
        let bench = bench();
        bench.b.recv(&RecvWr::new(70, &[sge(&bench.remote, 0, 1000)]));
        assert_eq!(bench.full(0, 2, Part::SendFirst), Answer::Ack);
        if whole {
            let request = bench.request(2, Op::Send { ext: Ext::None }, 3, 1);
            let far = ByValue { bytes: b"new".to_vec(), back: Default::default() };
            assert_eq!(bench.b.driver.device.receive(&request, &far), Answer::Ack);
        } else {
            assert_eq!(bench.give(2, 1, &pattern(0, MTU), Part::SendFirst), Answer::Ack);
            assert_eq!(bench.give(3, 1, b"new", SEND_LAST), Answer::Ack);
        }
        let at = if whole { 0 } else { MTU };
        assert_eq!(bench.remote.get(at, 3), b"new");
        let [wc] = bench.b.recv_cq.drain().try_into().unwrap();
        assert_eq!((wc.wr_id, wc.status, u64::from(wc.byte_len)), (70, 0, at + 3));
        assert_eq!(bench.b.qp.recvs_out(), 0);
        // Nobody goes on with the former.
        assert_eq!(bench.full(if whole { 3 } else { 4 }, 1, Part::SendMiddle), INVALID);
    }
}

#[test]
fn pieces_that_continue_nothing_are_refused() {
    type Case = (&'static str, fn(&Bench) -> Answer);
    let cases: [Case; 17] = [
        ("MIDDLE first", |bench| bench.full(0, 1, Part::SendMiddle)),
        ("LAST first", |bench| bench.full(0, 1, SEND_LAST)),
        ("WRITE MIDDLE first", |bench| bench.full(0, 1, Part::WriteMiddle)),
        ("WRITE LAST first", |bench| bench.full(0, 1, WRITE_LAST)),
        ("a WRITE goes on as a SEND", |bench| {
            assert_eq!(bench.full(0, 1, bench.write_first(3 * MTU)), Answer::Ack);
            bench.full(1, 1, Part::SendMiddle)
        }),
        ("a SEND goes on as a WRITE", |bench| {
            assert_eq!(bench.full(0, 1, Part::SendFirst), Answer::Ack);
            bench.full(1, 1, WRITE_LAST)
        }),
        ("FIRST of no whole packets", |bench| bench.give(0, 2, &pattern(0, MTU + 1), Part::SendFirst)),
        ("FIRST without a byte", |bench| bench.give(0, 1, &[], Part::SendFirst)),
        ("FIRST of packets of no path MTU", |bench| bench.give(0, 3, &pattern(0, 3), Part::SendFirst)),
        ("MIDDLE of another path MTU", |bench| {
            assert_eq!(bench.full(0, 1, Part::SendFirst), Answer::Ack);
            bench.give(1, 1, &pattern(MTU, 2 * MTU), Part::SendMiddle)
        }),
        ("LAST of more packets than it has bytes for", |bench| {
            assert_eq!(bench.full(0, 1, Part::SendFirst), Answer::Ack);
            bench.give(1, 2, &pattern(MTU, MTU), SEND_LAST)
        }),
        ("LAST without a byte", |bench| {
            assert_eq!(bench.full(0, 1, Part::SendFirst), Answer::Ack);
            bench.give(1, 1, &[], SEND_LAST)
        }),
        ("a WRITE longer than its first piece said", |bench| {
            assert_eq!(bench.full(0, 1, bench.write_first(2 * MTU - 1)), Answer::Ack);
            bench.full(1, 1, WRITE_LAST)
        }),
        ("a WRITE shorter than its first piece said", |bench| {
            assert_eq!(bench.full(0, 1, bench.write_first(2 * MTU)), Answer::Ack);
            bench.give(1, 1, &pattern(MTU, MTU - 1), WRITE_LAST)
        }),
        ("a WRITE that goes on where it must end", |bench| {
            assert_eq!(bench.full(0, 1, bench.write_first(2 * MTU)), Answer::Ack);
            bench.full(1, 1, Part::WriteMiddle)
        }),
        ("a WRITE that was overtaken", |bench| {
            assert_eq!(bench.full(0, 1, bench.write_first(4 * MTU)), Answer::Ack);
            let (remote_addr, rkey) = (bench.remote.start, Rkey(bench.remote.key));
            let read = bench.segment(0, 3, 3 * MTU, Part::Read { remote_addr, rkey, rest: 3 * MTU });
            assert_eq!(bench.b.driver.device.receive_segment(&read, &nothing()), Answer::Ack);
            bench.full(3, 1, Part::WriteMiddle)
        }),
        ("FIRST with all of the WRITE", |bench| bench.full(0, 1, bench.write_first(MTU))),
    ];
    for (what, case) in cases {
        let bench = bench();
        bench.b.recv(&RecvWr::new(70, &[sge(&bench.remote, 0, 4000)]));
        assert_eq!(case(&bench), INVALID, "{what}");
        println!("{what}");
        bench.assert_failed(AsyncEvent::QpReqErr(bench.b.qp.handle), &[(70, FLUSH)]);
    }
}

/// A message that is sent again from its beginning must be the same one.
#[test]
fn another_message_with_the_same_packets_is_refused() {
    type Case = (&'static str, fn(&Bench) -> Answer);
    let cases: [Case; 5] = [
        ("another end", |bench| bench.full(0, 3, bench.write_first(4 * MTU + 1))),
        ("another place for its second half", |bench| {
            let (remote_addr, rkey) = (bench.remote.start, Rkey(bench.remote.key));
            bench.full(1, 2, Part::WriteFirst { remote_addr, rkey, total: 3 * MTU })
        }),
        ("another place", |bench| {
            let first =
                Part::WriteFirst { remote_addr: bench.remote.start + 1, rkey: Rkey(bench.remote.key), total: 4 * MTU };
            bench.full(0, 3, first)
        }),
        ("another operation", |bench| bench.full(0, 3, Part::SendFirst)),
        ("packets of another size", |bench| bench.give(1, 2, &pattern(0, 2 * 512), Part::WriteMiddle)),
    ];
    for (what, case) in cases {
        let bench = bench();
        println!("{what}");
        assert_eq!(bench.full(0, 2, bench.write_first(4 * MTU)), Answer::Ack);
        assert_eq!(case(&bench), INVALID, "{what}");
        bench.assert_failed(AsyncEvent::QpReqErr(bench.b.qp.handle), &[]);
    }
}

#[test]
fn a_send_that_began_before_is_another_one() {
    let bench = bench();
    bench.b.recv(&RecvWr::new(70, &[sge(&bench.remote, 0, 4000)]));
    assert_eq!(bench.full(0, 2, Part::SendFirst), Answer::Ack);
    // As many bytes, from a packet earlier on.
    let request = bench.request(0x00ff_ffff, Op::Send { ext: Ext::None }, 4 * MTU, 4);
    let far = ByValue { bytes: pattern(0, 4 * MTU), back: Default::default() };
    assert_eq!(bench.b.driver.device.receive(&request, &far), INVALID);
    bench.assert_failed(AsyncEvent::QpReqErr(bench.b.qp.handle), &[(70, FLUSH)]);
}

#[test]
fn a_piece_that_is_early_changes_nothing() {
    let bench = bench();
    bench.b.recv(&RecvWr::new(70, &[sge(&bench.remote, 0, 1000)]));
    let missed = Answer::Nak(Nak::SequenceError);
    assert_eq!(bench.full(1, 1, Part::SendMiddle), missed);
    assert_eq!(bench.full(0, 1, Part::SendFirst), Answer::Ack);
    assert_eq!(bench.full(2, 1, SEND_LAST), missed);
    assert_eq!(bench.full(2, 1, Part::SendFirst), missed, "nor does it give up what has come");
    assert_eq!(bench.full(1, 1, Part::SendMiddle), Answer::Ack);
    assert_eq!(bench.full(2, 1, SEND_LAST), Answer::Ack);
    assert_eq!(bench.b.recv_cq.ends(), [(70, 0)]);
    assert_eq!(bench.remote.get(0, 768), pattern(0, 768));
}

#[test]
fn a_send_that_is_too_long_is_refused_at_the_piece_that_does_not_fit() {
    let bench = bench();
    for n in 70..72 {
        bench.b.recv(&RecvWr::new(n, &[sge(&bench.remote, 0, 700)]));
    }
    assert_eq!(bench.full(0, 1, Part::SendFirst), Answer::Ack);
    assert_eq!(bench.full(1, 1, Part::SendMiddle), Answer::Ack);
    assert_eq!(bench.full(2, 1, Part::SendMiddle), INVALID);
    assert_eq!(bench.remote.get(512, 256), [0; 256], "none of that piece");
    pump(&bench.drivers());
    assert_eq!(bench.b.recv_cq.ends(), [(70, PVRDMA_WC_LOC_LEN_ERR), (71, FLUSH)]);
    assert_eq!(bench.b.query().qp_state, PVRDMA_QPS_ERR);
}

#[test]
fn keys_are_judged_for_each_piece() {
    // The target goes away between two of them.
    let bench = self::bench();
    assert_eq!(bench.full(0, 1, bench.write_first(3 * MTU)), Answer::Ack);
    bench.b.driver.dereg(&bench.remote);
    bench.b.driver.ram.watch(bench.remote.page_of(0), 4096);
    assert_eq!(bench.full(1, 1, Part::WriteMiddle), ACCESS);
    assert_eq!(bench.b.driver.ram.touched(), 0);
    bench.assert_failed(AsyncEvent::QpAccessErr(bench.b.qp.handle), &[]);

    // The same in the middle of a receive.
    let bench = self::bench();
    let other = bench.b.region(1000);
    bench.b.recv(&RecvWr::new(70, &[sge(&bench.remote, 0, 256), sge(&other, 0, 1000)]));
    assert_eq!(bench.full(0, 1, Part::SendFirst), Answer::Ack);
    bench.b.driver.dereg(&other);
    assert_eq!(bench.full(1, 1, Part::SendMiddle), Answer::Nak(Nak::RemoteOperational));
    assert_eq!(bench.b.recv_cq.ends(), [(70, PVRDMA_WC_LOC_PROT_ERR)]);

    // A right of the QP.
    let bench = self::bench();
    let none = pvrdma_qp_attr { qp_access_flags: 0, ..Default::default() };
    assert_eq!(bench.full(0, 1, bench.write_first(3 * MTU)), Answer::Ack);
    bench
        .b
        .modify((PVRDMA_QP_STATE | PVRDMA_QP_ACCESS_FLAGS, pvrdma_qp_attr { qp_state: PVRDMA_QPS_RTS, ..none }))
        .unwrap();
    assert_eq!(bench.full(1, 1, Part::WriteMiddle), ACCESS);
}

#[test]
fn a_write_that_ends_outside_is_refused_before_any_byte_moves() {
    for at in [bench().remote.len - 2 * MTU + 1, u64::MAX - MTU, 0] {
        let bench = bench();
        let total = if at == 0 { u64::MAX } else { 2 * MTU };
        let remote_addr = bench.remote.start.wrapping_add(at);
        bench.b.driver.ram.watch(bench.remote.page_of(0), 4096);
        let first = Part::WriteFirst { remote_addr, rkey: Rkey(bench.remote.key), total };
        assert_eq!(bench.full(0, 1, first), ACCESS, "{at:#x}");
        assert_eq!(bench.b.driver.ram.touched(), 0);
    }
}

#[test]
fn a_read_in_pieces_is_judged_to_its_end() {
    let bench = bench();
    bench.remote.set(0, &pattern(0, 16 * MTU));
    let read = |at: u32, packets: u32, from: u64, len: u64, rest: u64| {
        let part = Part::Read { remote_addr: bench.remote.start + from, rkey: Rkey(bench.remote.key), rest };
        let far = nothing();
        let answer = bench.b.driver.device.receive_segment(&bench.segment(at, packets, len, part), &far);
        (answer, far.back.into_inner())
    };
    assert_eq!(read(0, 1, 0, MTU, 3 * MTU), (Answer::Ack, pattern(0, MTU)));
    assert_eq!(read(1, 1, MTU, MTU, 2 * MTU), (Answer::Ack, pattern(MTU, MTU)));
    // All of it again in one: two packets are old, the third is new.
    assert_eq!(read(0, 3, 0, 3 * MTU, 3 * MTU), (Answer::Ack, pattern(0, 3 * MTU)));
    assert_eq!(read(2, 1, 2 * MTU, MTU, MTU), (Answer::Ack, pattern(2 * MTU, MTU)), "a duplicate");
    assert_eq!(read(3, 1, 0, MTU, MTU).0, Answer::Ack, "what comes next");
    assert_eq!(read(4, 1, 15 * MTU, MTU, MTU + 1).0, ACCESS, "the piece is inside, the READ is not");
}

#[test]
fn what_a_receive_says_is_read_once() {
    let bench = bench();
    let other = bench.b.region(4000);
    bench.b.recv(&RecvWr::new(70, &[sge(&bench.remote, 0, 1000)]));
    assert_eq!(bench.full(0, 1, Part::SendFirst), Answer::Ack);
    // Its owner writes something else into the slot that is not its own.
    let at =
        (1 + (u64::from(bench.b.qp.size.send_wr) * u64::from(bench.b.qp.size.send_stride())).div_ceil(4096)) * 4096;
    bench.b.qp.block.set(at, &RecvWr::new(99, &[sge(&other, 0, 4000)]).to_bytes());
    assert_eq!(bench.full(1, 1, Part::SendMiddle), Answer::Ack);
    assert_eq!(bench.full(2, 1, SEND_LAST), Answer::Ack);
    assert_eq!(bench.b.recv_cq.ends(), [(70, 0)]);
    assert_eq!(bench.remote.get(0, 768), pattern(0, 768));
    assert_eq!(other.get(0, 4000), [0; 4000]);
    // Nor when it is flushed in the middle; those behind it are read then.
    for id in [71, 72] {
        bench.b.recv(&RecvWr::new(id, &[sge(&bench.remote, 0, 1000)]));
    }
    assert_eq!(bench.full(3, 1, Part::SendFirst), Answer::Ack);
    let stride = u64::from(bench.b.qp.size.recv_stride());
    bench.b.qp.block.set(at + stride, &RecvWr::new(99, &[]).to_bytes());
    bench.b.modify_state(PVRDMA_QPS_ERR).unwrap();
    assert_eq!(bench.b.recv_cq.ends(), [(71, FLUSH), (72, FLUSH)]);
}

#[test]
fn reset_and_err_forget_what_has_come() {
    for shared in [false, true] {
        for err in [false, true] {
            let net = Net::cutting(Cut::Whole);
            let [(da, wire), (db, _)] = [0, 1].map(|index| Wire::guest(&net, index, Layout::Pdir));
            let a = End::new(&da, QpSize::default());
            let (ctx, cq) = (db.context(), |ctx| db.cq(ctx, 64));
            let pd = db.pd(ctx);
            let srq = db.srq(ctx, pd, (8, 2), 0);
            let b = if shared {
                End::with_srq(&db, pd, (cq(ctx), cq(ctx)), &srq, QpSize::default())
            } else {
                End::with(&db, pd, cq(ctx), cq(ctx), QpSize::default())
            };
            connect(&a, &b, &PATH);
            let remote = b.region(16 * MTU);
            let bench = Bench { a, b, wire, remote };
            let post = |id| {
                let wr = RecvWr::new(id, &[sge(&bench.remote, 0, 1000)]);
                if shared { assert!(srq.post_recv(&wr)) } else { bench.b.recv(&wr) }
            };
            post(70);
            assert_eq!(bench.full(0, 1, Part::SendFirst), Answer::Ack);
            if err {
                bench.b.modify_state(PVRDMA_QPS_ERR).unwrap();
                assert_eq!(bench.full(1, 1, Part::SendMiddle), Answer::Silence);
                assert_eq!(bench.b.recv_cq.ends(), [(70, FLUSH)], "the receive in use ends once");
            }
            bench.b.reset();
            assert_eq!(bench.full(1, 1, Part::SendMiddle), Answer::Silence);
            bench.a.reset();
            connect(&bench.a, &bench.b, &PATH);
            if err || !shared {
                post(71);
            }
            // One that was taken out of an SRQ and not used is the next one's.
            let next = if err || !shared { 71 } else { 70 };
            assert_eq!(bench.full(0, 1, Part::SendFirst), Answer::Ack);
            assert_eq!(bench.full(1, 1, SEND_LAST), Answer::Ack);
            assert_eq!(bench.b.recv_cq.ends(), [(next, 0)], "shared {shared}, err {err}");

            // Whoever goes on with what was begun in the life before is refused.
            assert_eq!(bench.full(2, 1, bench.write_first(3 * MTU)), Answer::Ack);
            bench.a.reset();
            bench.b.reset();
            connect(&bench.a, &bench.b, &Path { psn: psn(3).get(), ..PATH });
            assert_eq!(bench.full(3, 1, Part::WriteMiddle), INVALID);
        }
    }
}

#[test]
fn pieces_for_a_qp_that_does_not_listen_meet_silence() {
    let bench = bench();
    let first = bench.segment(0, 1, MTU, bench.write_first(2 * MTU));
    let far = ByValue { bytes: pattern(0, MTU), back: Default::default() };
    let device = &bench.b.driver.device;
    let stranger = Segment { source: bench.b.endpoint(), ..first };
    assert_eq!(device.receive_segment(&stranger, &far), Answer::Silence);
    let mut nowhere = first;
    nowhere.dest.qpn.0 += 1;
    assert_eq!(device.receive_segment(&nowhere, &far), Answer::Silence);
    device.set_port(false);
    assert_eq!(device.receive_segment(&first, &far), Answer::Silence);
    device.set_port(true);
    let ud = End::ud(
        &bench.b.driver,
        bench.b.pd,
        (bench.b.send_cq.clone(), bench.b.recv_cq.clone()),
        None,
        QpSize::default(),
        1,
    );
    let mut datagram = first;
    datagram.dest = ud.endpoint();
    assert_eq!(device.receive_segment(&datagram, &far), Answer::Silence);
    assert_eq!(device.receive_segment(&first, &far), Answer::Ack);
}

// ---- the requester's side ----------------------------------------------------------------------

#[test]
fn payload_and_data_go_through_the_device() {
    let bench = bench();
    let (local, second) = (bench.a.region(1000), bench.a.region(1000));
    local.set(0, &pattern(0, 1000));
    let device = &bench.a.driver.device;
    bench.a.send(&SendWr::write(1, &[sge(&local, 10, 100), sge(&local, 500, 100)], &bench.remote, 0));
    bench.a.send(&SendWr::read(2, &[sge(&second, 0, 300), sge(&second, 500, 300)], &bench.remote, 0));
    let (write, read) = (bench.wire.take(0).0, bench.wire.take(0).0);
    let mut bytes = [0; 20];
    assert!(device.payload(write, 90, &mut bytes));
    assert_eq!(bytes.to_vec(), [pattern(100, 10), pattern(500, 10)].concat());
    assert!(device.arrived(read, 290, &[7; 20]));
    assert_eq!([second.get(290, 10), second.get(500, 10)], [[7; 10], [7; 10]]);
    assert_eq!(second.get(300, 1), [0]);
    // What was not asked for is not taken.
    assert!(!device.arrived(write, 0, &[9]), "no data comes back for a WRITE");
    assert!(!device.payload(read, 0, &mut bytes), "nor has a READ a payload");
    for (at, len) in [(600, 1), (599, 2), (u64::MAX, 1), (0, 601)] {
        assert!(!device.arrived(read, at, &vec![9; len]), "{len} bytes at {at}");
    }
    assert_eq!(local.get(0, 1000), pattern(0, 1000));
    let stale = pvrdma_device::transport::Token { epoch: read.epoch.wrapping_sub(5), ..read };
    assert!(!device.arrived(stale, 0, &[9]));
    bench.wire.answer_late(write, Answer::Ack);
    bench.wire.answer_late(read, Answer::Ack);
    assert_eq!(bench.a.send_cq.ends(), [(1, 0), (2, 0)]);
    assert!(!device.arrived(read, 0, &[9]), "it has ended");
    assert_eq!(second.get(0, 1), [0]);
}

#[test]
fn data_that_comes_late_finds_no_place() {
    for how in 0..4 {
        let bench = bench();
        let local = bench.a.region(4096);
        bench.a.send(&SendWr::read(1, &[sge(&local, 0, 600)], &bench.remote, 0));
        let device = &bench.a.driver.device;
        let (token, _) = bench.wire.take(0);
        assert!(device.arrived(token, 0, &[1; 100]));
        let expected = match how {
            0 => {
                bench.a.modify_state(PVRDMA_QPS_ERR).unwrap();
                vec![(1, FLUSH)]
            }
            1 => {
                bench.a.reset();
                vec![]
            }
            2 => {
                bench.a.destroy();
                vec![]
            }
            _ => {
                bench.a.driver.dereg(&local);
                vec![(1, PVRDMA_WC_LOC_PROT_ERR)]
            }
        };
        bench.a.driver.ram.watch(local.page_of(0), 4096);
        assert!(!device.arrived(token, 100, &[2; 100]), "way {how}");
        assert_eq!(bench.a.driver.ram.touched(), 0, "way {how}");
        bench.wire.answer_late(token, Answer::Ack);
        assert_eq!(bench.a.send_cq.ends(), expected, "way {how}");
    }
}

#[test]
fn memory_that_is_gone_ends_the_request() {
    for read in [false, true] {
        let bench = bench();
        let local = bench.a.region(4096);
        let sges = [sge(&local, 0, 600)];
        let wr =
            if read { SendWr::read(1, &sges, &bench.remote, 0) } else { SendWr::write(1, &sges, &bench.remote, 0) };
        bench.a.send(&wr);
        bench.a.send(&SendWr::write(2, &[], &bench.remote, 0));
        let (token, _) = bench.wire.take(0);
        bench.a.driver.ram.unmap(local.page_of(0), 4096);
        let device = &bench.a.driver.device;
        let moved = if read { device.arrived(token, 0, &[1; 600]) } else { device.payload(token, 0, &mut [0; 600]) };
        assert!(!moved);
        assert_eq!(bench.a.send_cq.ends(), [(1, PVRDMA_WC_LOC_PROT_ERR), (2, FLUSH)]);
        assert_eq!(bench.wire.flights(), 0);
    }
}

#[test]
fn a_full_transport_is_tried_again_when_it_has_room() {
    let bench = bench();
    bench.wire.fill();
    for n in 0..3 {
        bench.a.send(&SendWr::write(n, &[], &bench.remote, 0));
    }
    // Nobody tries, whatever time has passed that would be enough for a busy one, but for the trial each 100 ms.
    let (start, before) = (Instant::now(), bench.wire.refused());
    assert!(!pump_until(&bench.drivers(), Duration::from_millis(5), || bench.wire.flights() > 0));
    let tried = u128::from(bench.wire.refused() - before);
    assert!(tried <= start.elapsed().as_millis() / 100 + 1, "{tried} times");
    bench.wire.make_room();
    assert!(bench.a.driver.bell.take_wake(), "somebody is to run it");
    bench.a.driver.device.poll();
    assert_eq!(bench.wire.flights(), 3);
    bench.wire.run();
    assert_eq!(bench.a.send_cq.ends(), [(0, 0), (1, 0), (2, 0)]);
    // Full and told to stop.
    bench.wire.fill();
    bench.a.send(&SendWr::write(3, &[], &bench.remote, 0));
    bench.a.modify_state(PVRDMA_QPS_ERR).unwrap();
    assert_eq!(bench.a.send_cq.ends(), [(3, FLUSH)]);
    bench.wire.make_room();
    bench.a.destroy();
    pump(&bench.drivers());
}

#[test]
fn a_full_transport_that_forgets_to_say_so_is_tried_again_too() {
    let bench = bench();
    bench.wire.fill();
    let start = Instant::now();
    bench.a.send(&SendWr::write(1, &[], &bench.remote, 0));
    bench.wire.empty();
    assert!(pump_until(&bench.drivers(), LIMIT, || bench.wire.flights() == 1));
    assert!(start.elapsed() >= Duration::from_millis(50));
}

#[test]
fn a_datagram_does_not_wait_for_room_for_ever() {
    let bench = bench();
    let cqs = |end: &End| (end.send_cq.clone(), end.recv_cq.clone());
    let [a, b] = [&bench.a, &bench.b].map(|end| End::ud(&end.driver, end.pd, cqs(end), None, QpSize::default(), 1));
    bench.wire.fill();
    a.send(&SendWr::datagram(1, &[], &a.av(&b, 1)));
    assert_eq!(a.send_cq.ends(), []);
    assert!(pump_until(&bench.drivers(), LIMIT, || a.send_cq.waiting() > 0));
    assert_eq!(a.send_cq.ends(), [(1, 0)], "lost, as at a switch");
}
