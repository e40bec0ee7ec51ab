//! A transport that answers late, out of order, twice or never: the window goes back to what is missing, nothing is
//! done twice, nothing ends twice, and memory that was taken back is left alone.

use pvrdma_device::command::{Command, MrKind, Response};
use pvrdma_device::handle::KERNEL;
use pvrdma_device::interrupt::AsyncEvent;
use pvrdma_device::testing::driver::{Driver, Layout};
use pvrdma_device::testing::end::{End, Path, connect, pump, pump_until};
use pvrdma_device::testing::queue::{QpSize, RecvWr, SendWr, sge};
use pvrdma_device::testing::wire::{Net, Wire};
use pvrdma_device::transport::{Answer, Nak};
use pvrdma_ffi::dev_api::*;
use pvrdma_ffi::uapi::vmw_pvrdma::*;
use std::sync::Arc;
use std::time::{Duration, Instant};

const FLUSH: u32 = PVRDMA_WC_WR_FLUSH_ERR;
const LIMIT: Duration = Duration::from_secs(20);

/// Two guests; `wire` carries what `a` asks of `b`, `back` the other way.
struct Bench {
    a: End,
    b: End,
    wire: Arc<Wire>,
    back: Arc<Wire>,
}

fn bench_with(path: &Path) -> Bench {
    let net = Net::default();
    let [(da, wire), (db, back)] = [0, 1].map(|index| Wire::guest(&net, index, Layout::Pdir));
    let [a, b] = [da, db].map(|driver| End::new(&driver, QpSize::default()));
    connect(&a, &b, path);
    Bench { a, b, wire, back }
}

fn bench() -> Bench {
    bench_with(&Path { timeout: 0, ..Path::default() })
}

impl Bench {
    fn drivers(&self) -> [&Driver; 2] {
        [&self.a.driver, &self.b.driver]
    }

    fn psns(&self) -> Vec<u32> {
        self.wire.submitted().iter().map(|request| request.psn.get()).collect()
    }
}

fn ids(range: std::ops::Range<u64>, status: u32) -> Vec<(u64, u32)> {
    range.map(|n| (n, status)).collect()
}

#[test]
fn a_window_is_on_its_way_and_ends_in_order() {
    let bench = bench();
    let target = bench.b.region(64);
    for n in 0..50 {
        bench.a.qp.post_send(&SendWr::write(n, &[], &target, 0));
    }
    bench.a.qp.ring_send();
    let window = bench.wire.flights();
    assert!((2..50).contains(&window), "a window of {window}");
    assert_eq!(bench.a.qp.sends_out(), 50, "a slot belongs to the device until its work has ended");
    // All are carried out; the answers come in the wrong order.
    for n in 0..window {
        assert_eq!(bench.wire.deliver(n), Answer::Ack);
    }
    for left in (1..window).rev() {
        bench.wire.answer(left);
        assert_eq!(bench.a.send_cq.ends(), [], "the first is still owed");
    }
    bench.wire.answer(0);
    assert_eq!(bench.a.send_cq.ends(), ids(0..window as u64, 0));
    bench.wire.run();
    assert_eq!(bench.a.send_cq.ends(), ids(window as u64..50, 0));
    assert_eq!(bench.wire.submitted().len(), 50, "each once");
}

#[test]
fn only_the_first_of_a_window_is_alone() {
    let bench = bench();
    let target = bench.b.region(64);
    for n in 0..3 {
        bench.a.send(&SendWr::write(n, &[], &target, 0));
    }
    let alone: Vec<_> = bench.wire.submitted().iter().map(|request| request.alone).collect();
    assert_eq!(alone, [true, false, false]);
}

#[test]
fn rnr_in_the_middle_goes_back_to_it() {
    let bench = bench_with(&Path { timeout: 0, rnr_retry: 1, min_rnr_timer: 14, ..Path::default() });
    let (source, target) = (bench.a.region(64), bench.b.region(64));
    for n in 0..2 {
        bench.b.recv(&RecvWr::new(n, &[sge(&target, n * 8, 8)]));
    }
    for n in 0..5u64 {
        source.set(n * 8, &(n + 100).to_le_bytes());
        bench.a.send(&SendWr::send(n, &[sge(&source, n * 8, 8)]));
    }
    let answers: Vec<_> = (0..5).map(|n| bench.wire.deliver(n)).collect();
    let missed = Answer::Nak(Nak::SequenceError);
    assert_eq!(answers, [Answer::Ack, Answer::Ack, Answer::RnrNak(14), missed, missed]);
    let start = Instant::now();
    for _ in 0..3 {
        bench.wire.answer(0);
    }
    assert_eq!(bench.a.send_cq.ends(), ids(0..2, 0));
    assert_eq!(bench.wire.flights(), 0, "what is behind the RNR was taken back");
    assert_eq!(bench.wire.cancelled().len(), 2);
    // Not before its time, and not for a doorbell.
    bench.a.qp.ring_send();
    if start.elapsed() < Duration::from_millis(1) {
        assert_eq!(bench.wire.flights(), 0);
    }
    for n in 2..5 {
        bench.b.recv(&RecvWr::new(n, &[sge(&target, n * 8, 8)]));
    }
    assert!(pump_until(&bench.drivers(), LIMIT, || bench.wire.flights() == 3));
    assert!(start.elapsed() >= Duration::from_micros(1280), "the wait was {:?}", start.elapsed());
    let psns = bench.psns();
    assert_eq!(psns[2..5], psns[5..8], "the same requests again");
    bench.wire.run();
    assert_eq!(bench.a.send_cq.ends(), ids(2..5, 0));
    assert_eq!(bench.b.recv_cq.ends(), ids(0..5, 0));
    assert_eq!(target.get(0, 40), source.get(0, 40));
}

#[test]
fn an_rnr_wait_does_not_eat_into_the_ack_timeout() {
    // 134 ms for an answer, 82 ms of RNR wait in between; then the answer is lost. The timeout counts from the last
    // try.
    let path = Path { timeout: 15, retry_cnt: 0, rnr_retry: 1, min_rnr_timer: 26, ..Path::default() };
    let bench = bench_with(&path);
    bench.a.send(&SendWr::send(1, &[]));
    assert_eq!(bench.wire.deliver(0), Answer::RnrNak(26));
    let start = Instant::now();
    bench.wire.answer(0);
    assert!(pump_until(&bench.drivers(), LIMIT, || bench.wire.flights() == 1), "sent again");
    bench.wire.lose(0);
    assert!(pump_until(&bench.drivers(), LIMIT, || bench.a.send_cq.waiting() == 1));
    assert_eq!(bench.a.send_cq.ends(), [(1, PVRDMA_WC_RETRY_EXC_ERR)]);
    let least = Duration::from_micros(81_920) + path.ack_timeout();
    assert!(start.elapsed() >= least, "{:?}, due after {least:?}", start.elapsed());
}

#[test]
fn an_error_in_the_middle_ends_what_is_before_it_well() {
    let bench = bench();
    let (source, target) = (bench.a.region(64), bench.b.region(64));
    for n in 0..5 {
        let offset = if n == 2 { 60 } else { 0 };
        bench.a.send(&SendWr::write(n, &[sge(&source, 0, 8)], &target, offset));
    }
    bench.a.recv(&RecvWr::new(70, &[]));
    bench.b.recv(&RecvWr::new(80, &[]));
    let answers: Vec<_> = (0..5).map(|n| bench.wire.deliver(n)).collect();
    assert_eq!(answers[2..], [Answer::Nak(Nak::RemoteAccess), Answer::Silence, Answer::Silence]);
    // The bad news first.
    bench.wire.answer(2);
    assert_eq!(bench.a.send_cq.ends(), []);
    assert_eq!(bench.wire.flights(), 2, "what is behind it was taken back");
    bench.wire.answer(1);
    bench.wire.answer(0);
    let expected = [(0, 0), (1, 0), (2, PVRDMA_WC_REM_ACCESS_ERR), (3, FLUSH), (4, FLUSH)];
    assert_eq!(bench.a.send_cq.ends(), expected);
    assert_eq!(bench.a.recv_cq.ends(), [(70, FLUSH)], "nobody rings for a QP that failed on its own");
    pump(&bench.drivers());
    assert_eq!(bench.b.recv_cq.ends(), [(80, FLUSH)]);
}

#[test]
fn what_was_done_before_the_qp_failed_is_reported_as_done() {
    // `a` fails as a responder; before its work is flushed, the answer to its first request comes in.
    let bench = bench();
    let (source, target, own) = (bench.b.region(64), bench.b.region(64), bench.a.region(64));
    for n in 1..4 {
        bench.a.send(&SendWr::write(n, &[], &target, 0));
    }
    bench.b.send(&SendWr::write(9, &[sge(&source, 0, 8)], &own, 60));
    assert_eq!(bench.back.deliver(0), Answer::Nak(Nak::RemoteAccess));
    assert_eq!(bench.wire.deliver(0), Answer::Ack);
    bench.wire.answer(0);
    assert_eq!(bench.a.send_cq.ends(), [(1, 0), (2, FLUSH), (3, FLUSH)]);
    bench.back.answer(0);
    assert_eq!(bench.b.send_cq.ends(), [(9, PVRDMA_WC_REM_ACCESS_ERR)]);
}

#[test]
fn a_tail_moved_behind_what_was_taken_is_fatal() {
    let bench = bench();
    let target = bench.b.region(64);
    for n in 0..3 {
        bench.a.send(&SendWr::write(n, &[], &target, 0));
    }
    bench.a.qp.force_send_tail(1);
    bench.a.qp.ring_send();
    assert_eq!(bench.a.driver.bell.events(), [AsyncEvent::QpFatal(bench.a.qp.handle)]);
    assert_eq!(bench.a.send_cq.ends(), ids(0..3, FLUSH), "what was taken ends, each once");
    assert_eq!(bench.wire.flights(), 0);
}

#[test]
fn a_failed_qp_is_announced_to_the_transport() {
    // One that places data by itself must not go on for a QP that is in ERR.
    let bench = bench();
    let (source, target) = (bench.a.region(64), bench.b.region(64));
    bench.a.send(&SendWr::write(1, &[sge(&source, 0, 8)], &target, 60));
    bench.wire.run();
    pump(&bench.drivers());
    for (wire, end) in [(&bench.wire, &bench.a), (&bench.back, &bench.b)] {
        let views = wire.views();
        let last = views.iter().rev().find(|view| view.handle == end.qp.handle).unwrap();
        assert_eq!(last.state, PVRDMA_QPS_ERR);
        assert_eq!(end.query().qp_state, PVRDMA_QPS_ERR);
        end.qp.ring_send();
        assert_eq!(wire.views().len(), views.len(), "once");
    }
    for end in [&bench.a, &bench.b] {
        end.reset();
    }
    assert_eq!(bench.wire.views().last().unwrap().state, PVRDMA_QPS_RESET);
    connect(&bench.a, &bench.b, &Path::default());
    bench.a.send(&SendWr::send(1, &[]).opcode(99));
    assert_eq!(bench.wire.views().last().unwrap().state, PVRDMA_QPS_ERR, "in every life");
}

#[test]
fn a_lost_answer_is_asked_for_again_and_nothing_is_done_twice() {
    let path = Path { timeout: 12, retry_cnt: 3, ..Path::default() };
    let bench = bench_with(&path);
    let (source, target) = (bench.a.region(64), bench.b.region(64));
    for n in 0..3 {
        bench.b.recv(&RecvWr::new(n, &[sge(&target, 0, 64)]));
        bench.a.send(&SendWr::send(n, &[sge(&source, 0, 8)]));
    }
    for n in 0..3 {
        assert_eq!(bench.wire.deliver(n), Answer::Ack);
    }
    bench.wire.lose(0);
    assert!(pump_until(&bench.drivers(), LIMIT, || bench.wire.submitted().len() == 6), "sent again from the first");
    bench.wire.run();
    assert_eq!(bench.a.send_cq.ends(), ids(0..3, 0));
    assert_eq!(bench.b.recv_cq.ends(), ids(0..3, 0), "each message was received once");
}

#[test]
fn a_lost_request_is_sent_again() {
    let path = Path { timeout: 12, retry_cnt: 3, ..Path::default() };
    let bench = bench_with(&path);
    let (source, target) = (bench.a.region(64), bench.b.region(64));
    source.set(0, &[9; 8]);
    for n in 0..4 {
        bench.a.send(&SendWr::write(n, &[sge(&source, 0, 8)], &target, n * 8));
    }
    bench.wire.lose(1);
    assert_eq!(bench.wire.deliver(0), Answer::Ack);
    assert_eq!(bench.wire.deliver(1), Answer::Nak(Nak::SequenceError));
    for _ in 0..3 {
        bench.wire.answer(0);
        if bench.wire.flights() == 0 {
            break;
        }
    }
    assert!(pump_until(&bench.drivers(), LIMIT, || {
        bench.wire.run();
        bench.a.send_cq.waiting() == 4
    }));
    assert_eq!(bench.a.send_cq.ends(), ids(0..4, 0));
    assert_eq!(target.get(0, 32), [9; 32]);
}

/// The responder says that something is missing: that comes again at once, and is a retry like any other. Here no timer
/// runs.
#[test]
fn what_the_responder_misses_is_sent_again_when_it_says_so() {
    let bench = bench_with(&Path { timeout: 0, retry_cnt: 1, ..Path::default() });
    let target = bench.b.region(64);
    for n in 0..4 {
        bench.a.send(&SendWr::write(n, &[], &target, 0));
    }
    let missed = Answer::Nak(Nak::SequenceError);
    bench.wire.lose(1);
    assert_eq!([0, 1, 2].map(|n| bench.wire.deliver(n)), [Answer::Ack, missed, missed]);
    bench.wire.answer(0);
    bench.wire.answer(0);
    pump(&bench.drivers());
    let psns = bench.psns();
    assert_eq!(psns[1..4], psns[4..], "from what is missing on, once, though two answers tell of it");
    assert_eq!(bench.wire.flights(), 3);
    bench.wire.lose(0);
    assert_eq!(bench.wire.deliver(0), missed);
    bench.wire.answer(0);
    pump(&bench.drivers());
    let expected = [(0, 0), (1, PVRDMA_WC_RETRY_EXC_ERR), (2, FLUSH), (3, FLUSH)];
    assert_eq!(bench.a.send_cq.ends(), expected, "there was one retry");
}

/// What is missing may be on its way to an answer of its own.
#[test]
fn a_gap_that_the_responder_made_itself_is_no_loss() {
    let bench = bench_with(&Path { timeout: 0, retry_cnt: 0, min_rnr_timer: 1, ..Path::default() });
    for n in 0..2 {
        bench.a.send(&SendWr::send(n, &[]));
    }
    let answers = [0, 1].map(|n| bench.wire.deliver(n));
    assert_eq!(answers, [Answer::RnrNak(1), Answer::Nak(Nak::SequenceError)]);
    bench.wire.answer(1);
    pump(&bench.drivers());
    assert_eq!((bench.wire.flights(), bench.wire.submitted().len()), (1, 2), "nothing is sent again");
    bench.wire.answer(0);
    for n in 0..2 {
        bench.b.recv(&RecvWr::new(n, &[]));
    }
    assert!(pump_until(&bench.drivers(), LIMIT, || bench.wire.flights() == 2));
    bench.wire.run();
    assert_eq!(bench.a.send_cq.ends(), ids(0..2, 0));
}

#[test]
fn requests_that_are_always_lost_end_in_retry_exceeded() {
    let path = Path { timeout: 13, retry_cnt: 2, ..Path::default() };
    let bench = bench_with(&path);
    let start = Instant::now();
    for n in 0..3 {
        bench.a.send(&SendWr::send(n, &[]));
    }
    let done = pump_until(&bench.drivers(), LIMIT, || {
        while bench.wire.flights() > 0 {
            bench.wire.lose(0);
        }
        bench.a.send_cq.waiting() == 3
    });
    assert!(done);
    assert_eq!(bench.a.send_cq.ends(), [(0, PVRDMA_WC_RETRY_EXC_ERR), (1, FLUSH), (2, FLUSH)]);
    assert_eq!(bench.wire.submitted().iter().filter(|request| request.alone).count(), 3, "one try and two retries");
    assert!(start.elapsed() >= path.ack_timeout() * 3, "{:?}", start.elapsed());
}

#[test]
fn a_slow_answer_is_no_lost_answer() {
    let path = Path { timeout: 10, retry_cnt: 0, ..Path::default() };
    let bench = bench_with(&path);
    bench.b.recv(&RecvWr::new(1, &[]));
    bench.a.send(&SendWr::send(1, &[]));
    // 4 ms a timeout, no retry: fifteen of them pass.
    assert!(!pump_until(&bench.drivers(), Duration::from_millis(60), || bench.a.send_cq.waiting() > 0));
    assert_eq!(bench.wire.submitted().len(), 1, "it is not sent twice either");
    bench.wire.run();
    assert_eq!(bench.a.send_cq.ends(), [(1, 0)]);
}

#[test]
fn silence_that_comes_late_is_silence() {
    let path = Path { timeout: 12, retry_cnt: 1, ..Path::default() };
    let bench = bench_with(&path);
    bench.a.send(&SendWr::send(1, &[]));
    let done = pump_until(&bench.drivers(), LIMIT, || {
        if bench.wire.flights() > 0 {
            bench.wire.answer_with(0, Answer::Silence);
        }
        bench.a.send_cq.waiting() == 1
    });
    assert!(done);
    assert_eq!(bench.a.send_cq.ends(), [(1, PVRDMA_WC_RETRY_EXC_ERR)]);
    assert_eq!(bench.wire.submitted().len(), 2);
}

#[test]
fn a_wire_without_room_is_tried_again() {
    let bench = bench();
    let target = bench.b.region(64);
    bench.wire.set_busy(5);
    for n in 0..3 {
        bench.a.send(&SendWr::write(n, &[], &target, 0));
    }
    assert_eq!(bench.wire.flights(), 0);
    assert!(pump_until(&bench.drivers(), LIMIT, || bench.wire.flights() == 3));
    bench.wire.run();
    assert_eq!(bench.a.send_cq.ends(), ids(0..3, 0));
    // Without room and told to stop.
    bench.wire.set_busy(u32::MAX);
    bench.a.send(&SendWr::write(3, &[], &target, 0));
    bench.a.modify_state(PVRDMA_QPS_ERR).unwrap();
    assert_eq!(bench.a.send_cq.ends(), [(3, FLUSH)]);
}

#[test]
fn a_wire_that_takes_one_at_a_time_gets_one_at_a_time() {
    let bench = bench();
    let target = bench.b.region(64);
    bench.wire.set_one_by_one(true);
    for n in 0..40 {
        bench.a.qp.post_send(&SendWr::write(n, &[], &target, 0));
    }
    bench.a.qp.ring_send();
    for n in 0..40 {
        assert_eq!(bench.wire.flights(), 1);
        bench.wire.deliver(0);
        bench.wire.answer(0);
        assert_eq!(bench.a.send_cq.ends(), [(n, 0)]);
    }
    assert!(bench.wire.submitted().iter().all(|request| request.alone));
}

#[test]
fn an_answer_that_was_overtaken_by_a_cancel_is_not_taken_for_a_new_one() {
    // A thread of the transport holds the answer; before it can hand it over, the request is taken back and
    // submitted again. The old answer must not end the new request, which still has a claim on the memory.
    for stale in [Answer::Ack, Answer::RnrNak(1), Answer::Silence, Answer::Nak(Nak::RemoteAccess)] {
        let bench = bench();
        let (local, remote) = (bench.a.region(64), bench.b.region(64));
        let second = bench.a.region(64);
        remote.set(0, &[7; 8]);
        bench.a.send(&SendWr::read(1, &[sge(&local, 0, 8)], &remote, 0));
        bench.a.send(&SendWr::read(2, &[sge(&second, 0, 8)], &remote, 0));
        let first = bench.wire.take(0);
        let (token, _) = bench.wire.take(0);
        bench.wire.answer_late(first.0, Answer::RnrNak(1));
        assert!(pump_until(&bench.drivers(), LIMIT, || bench.wire.flights() == 2), "both again");
        bench.wire.answer_late(token, stale);
        assert_eq!(bench.wire.flights(), 2, "{stale:?}");
        assert_eq!(bench.a.send_cq.ends(), [], "{stale:?}");
        bench.wire.run();
        assert_eq!(bench.a.send_cq.ends(), [(1, 0), (2, 0)], "{stale:?}");
        assert_eq!((local.get(0, 8), second.get(0, 8)), (vec![7; 8], vec![7; 8]));
    }
}

#[test]
fn an_answer_to_a_former_life_is_ignored() {
    for destroy in [false, true] {
        let bench = bench();
        let target = bench.b.region(64);
        bench.a.send(&SendWr::write(1, &[], &target, 0));
        let (token, _) = bench.wire.take(0);
        if destroy {
            bench.a.destroy();
            bench.wire.answer_late(token, Answer::Ack);
            assert_eq!(bench.a.send_cq.ends(), []);
            continue;
        }
        bench.a.reset();
        bench.b.reset();
        connect(&bench.a, &bench.b, &Path { timeout: 0, ..Path::default() });
        bench.a.send(&SendWr::write(2, &[], &target, 0));
        assert_eq!(bench.psns()[0], bench.psns()[1], "the same PSN in both lives");
        bench.wire.answer_late(token, Answer::Nak(Nak::RemoteAccess));
        assert_eq!(bench.a.send_cq.ends(), []);
        bench.wire.run();
        assert_eq!(bench.a.send_cq.ends(), [(2, 0)]);
    }
}

#[test]
fn answers_for_nobody_are_ignored() {
    let bench = bench();
    let target = bench.b.region(64);
    bench.a.send(&SendWr::write(1, &[], &target, 0));
    let (token, _) = bench.wire.take(0);
    bench.wire.answer_late(token, Answer::Ack);
    for _ in 0..3 {
        bench.wire.answer_late(token, Answer::Ack);
    }
    let stranger = pvrdma_device::transport::Token { qp: pvrdma_device::handle::QpHandle(12345), ..token };
    bench.wire.answer_late(stranger, Answer::Ack);
    assert_eq!(bench.a.send_cq.ends(), [(1, 0)]);
}

#[test]
fn err_reset_and_destroy_take_back_what_is_on_its_way() {
    for how in 0..4 {
        let bench = bench();
        let (local, remote) = (bench.a.region(4096), bench.b.region(64));
        for n in 0..3 {
            bench.a.send(&SendWr::read(n, &[sge(&local, 0, 8)], &remote, 0));
        }
        assert_eq!(bench.wire.flights(), 3);
        let flushed = match how {
            0 => {
                bench.a.modify_state(PVRDMA_QPS_ERR).unwrap();
                ids(0..3, FLUSH)
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
                bench.a.driver.device.reset();
                vec![]
            }
        };
        bench.a.driver.ram.watch(local.page_of(0), 4096);
        assert_eq!(bench.wire.flights(), 0, "way {how}");
        assert_eq!(bench.wire.cancelled().len(), 3, "way {how}");
        assert_eq!(bench.a.send_cq.ends(), flushed, "way {how}");
        assert_eq!(bench.a.driver.ram.touched(), 0);
    }
}

#[test]
fn dereg_takes_back_what_names_the_region_and_only_that() {
    let bench = bench();
    let (other, far) = (End::new(&bench.a.driver, QpSize::default()), End::new(&bench.b.driver, QpSize::default()));
    connect(&other, &far, &Path { timeout: 0, ..Path::default() });
    let far_region = far.region(64);
    let (kept, gone, remote) = (bench.a.region(4096), bench.a.region(4096), bench.b.region(64));
    let own = other.region(64);
    other.send(&SendWr::read(50, &[sge(&own, 0, 8)], &far_region, 0));
    bench.a.send(&SendWr::read(1, &[sge(&kept, 0, 8)], &remote, 0));
    bench.a.send(&SendWr::read(2, &[sge(&kept, 8, 8), sge(&gone, 0, 8)], &remote, 0));
    bench.a.send(&SendWr::read(3, &[sge(&kept, 16, 8)], &remote, 0));
    assert_eq!(bench.wire.flights(), 4);
    bench.a.driver.dereg(&gone);
    bench.a.driver.ram.watch(gone.page_of(0), 4096);
    let cancelled = bench.wire.cancelled();
    assert!(cancelled.iter().all(|token| token.qp == bench.a.qp.handle), "another QP does not name it");
    assert_eq!(bench.wire.flights(), 2, "the first of each QP");
    bench.wire.run();
    assert_eq!(bench.a.send_cq.ends(), [(1, 0), (2, PVRDMA_WC_LOC_PROT_ERR), (3, FLUSH)]);
    assert_eq!(other.send_cq.ends(), [(50, 0)]);
    assert_eq!(bench.a.driver.ram.touched(), 0);
}

#[test]
fn dereg_of_a_target_turns_away_what_comes_later() {
    let bench = bench();
    let (local, remote) = (bench.a.region(64), bench.b.region(4096));
    bench.a.send(&SendWr::write(1, &[sge(&local, 0, 8)], &remote, 0));
    bench.b.driver.dereg(&remote);
    bench.b.driver.ram.watch(remote.page_of(0), 4096);
    bench.wire.run();
    assert_eq!(bench.a.send_cq.ends(), [(1, PVRDMA_WC_REM_ACCESS_ERR)]);
    assert_eq!(bench.b.driver.ram.touched(), 0);
}

#[test]
fn reads_keep_to_their_limit_and_a_fence_waits() {
    let bench = bench_with(&Path { timeout: 0, max_rd_atomic: 2, ..Path::default() });
    let (local, remote) = (bench.a.region(64), bench.b.region(64));
    for n in 0..5 {
        bench.a.send(&SendWr::read(n, &[sge(&local, 0, 8)], &remote, 0));
    }
    assert_eq!(bench.wire.flights(), 2);
    bench.wire.deliver(0);
    bench.wire.answer(0);
    assert_eq!(bench.wire.flights(), 2);
    let flags = PVRDMA_SEND_SIGNALED | PVRDMA_SEND_FENCE;
    bench.a.send(&SendWr::write(5, &[sge(&local, 0, 8)], &remote, 0).flags(flags));
    while bench.a.send_cq.waiting() < 5 {
        let fenced = bench.wire.submitted().len() == 6;
        assert!(!fenced, "the fence was passed with {} of 5 reads done", bench.a.send_cq.waiting());
        bench.wire.deliver(0);
        bench.wire.answer(0);
    }
    bench.wire.run();
    assert_eq!(bench.a.send_cq.ends(), ids(0..6, 0));
}

#[test]
fn no_more_than_half_of_all_psns_is_on_its_way() {
    // PSNs are compared on a circle; with more than half of it in flight, old and new cannot be told apart.
    let net = Net::default();
    let [(da, wire), (db, _)] = [0, 1].map(|index| Wire::guest(&net, index, Layout::Pdir));
    let pd = da.pd(KERNEL);
    let create =
        Command::CreateMr { pd, start: 0, length: 0, access_flags: PVRDMA_ACCESS_LOCAL_WRITE, kind: MrKind::Dma };
    let Ok(Response::CreateMr { lkey, .. }) = da.command(create) else { panic!("DMA region") };
    let cq = da.cq(KERNEL, 64);
    let a = End::with(&da, pd, cq.clone(), cq, QpSize::default());
    let b = End::new(&db, QpSize::default());
    connect(&a, &b, &Path { timeout: 0, mtu: PVRDMA_MTU_256, ..Path::default() });
    for n in 0..16 {
        a.send(&SendWr::send(n, &[(0, 1 << 29, lkey.0)]));
    }
    let packets: u64 = wire.submitted().iter().map(|request| u64::from(request.packets)).sum();
    assert!(packets < 1 << 23, "{packets} packets in flight");
    assert!(wire.flights() >= 2);
    while wire.flights() > 0 {
        wire.answer_with(0, Answer::Ack);
    }
    assert_eq!(a.send_cq.ends(), ids(0..16, 0), "all had their turn");
}
