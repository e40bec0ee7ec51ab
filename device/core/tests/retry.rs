//! Patience in real time: RNR waits and their end, ACK timeouts and their end, and that work which only had to wait
//! succeeds.
//!
//! That an end comes not too early is measured. A busy machine may bring it late by any time, so what counts there is
//! how often the device asks to be called again, and for when.

use pvrdma_device::clock::Clock;
use pvrdma_device::command::Command;
use pvrdma_device::testing::driver::{Driver, Layout};
use pvrdma_device::testing::end::{End, Path, connect, modify, nowhere, pump, pump_until};
use pvrdma_device::testing::queue::{QpSize, RecvWr, SendWr, sge};
use pvrdma_device::transport::Endpoint;
use pvrdma_device::transport::fabric::Fabric;
use pvrdma_ffi::dev_api::*;
use pvrdma_ffi::uapi::vmw_pvrdma::*;
use std::sync::Arc;
use std::time::{Duration, Instant};

const FLUSH: u32 = PVRDMA_WC_WR_FLUSH_ERR;
/// Longer than anything here may take.
const LIMIT: Duration = Duration::from_secs(20);

fn guests() -> [End; 2] {
    let fabric = Fabric::new();
    [0, 1].map(|index| End::new(&Arc::new(Driver::new(&fabric, index, Layout::Ranges)), QpSize::default()))
}

/// Polls both until `a` has `count` send completions, and returns them.
fn wait(a: &End, b: &End, count: u32) -> Vec<(u64, u32)> {
    let done = pump_until(&[&*a.driver, &*b.driver], LIMIT, || a.send_cq.waiting() >= count);
    assert!(done, "{} of {count} completions after {LIMIT:?}", a.send_cq.waiting());
    a.send_cq.ends()
}

/// The same where `a` has to wait no more than `waits` times, and no longer than `time` each.
fn wait_for_timers(a: &End, b: &End, count: u32, waits: u32, time: Duration) -> Vec<(u64, u32)> {
    for slept in 0.. {
        pump(&[&*a.driver, &*b.driver]);
        let next = a.driver.device.poll();
        if a.send_cq.waiting() >= count {
            break;
        }
        let (next, now) = (next.expect("a timer runs"), Instant::now());
        assert!(next <= now + time, "another {:?}, no more than {time:?} is right", next - now);
        assert!(slept < waits, "not done after {slept} times {time:?}");
        std::thread::sleep(next.saturating_duration_since(now));
    }
    a.send_cq.ends()
}

#[test]
fn no_receive_ends_in_rnr_retry_exceeded() {
    // Code 14: 1 ms. One try and `rnr_retry` more.
    for (rnr_retry, waits) in [(0, 0u32), (1, 1), (3, 3), (6, 6)] {
        for imm in [false, true] {
            let [a, b] = guests();
            connect(&a, &b, &Path { rnr_retry, min_rnr_timer: 14, ..Path::default() });
            let target = b.region(64);
            let wr = if imm { SendWr::write(1, &[], &target, 0).imm(5) } else { SendWr::send(1, &[]) };
            a.qp.post_send(&wr);
            a.qp.post_send(&SendWr::send(2, &[]));
            let start = Instant::now();
            a.qp.ring_send();
            let time = Duration::from_micros(1280);
            let ends = wait_for_timers(&a, &b, 2, waits, time);
            assert_eq!(ends, [(1, PVRDMA_WC_RNR_RETRY_EXC_ERR), (2, FLUSH)]);
            let took = start.elapsed();
            assert!(took >= time * waits, "{rnr_retry} retries took {took:?}");
            assert_eq!(b.query().qp_state, PVRDMA_QPS_RTS, "the responder did nothing wrong");
        }
    }
}

#[test]
fn a_receive_in_time_saves_the_send() {
    let [a, b] = guests();
    connect(&a, &b, &Path { rnr_retry: 7, min_rnr_timer: 10, ..Path::default() });
    let (source, target) = (a.region(64), b.region(256));
    for n in 0..3u64 {
        source.set(n * 8, &(n + 1).to_le_bytes());
        a.qp.post_send(&SendWr::send(n, &[sge(&source, n * 8, 8)]));
    }
    a.qp.ring_send();
    let drivers = [&*a.driver, &*b.driver];
    // 7 is without end: 0.32 ms a wait, more than seven of them.
    assert!(!pump_until(&drivers, Duration::from_millis(30), || a.send_cq.waiting() > 0));
    for n in 0..3 {
        b.recv(&RecvWr::new(n, &[sge(&target, n * 8, 8)]));
    }
    assert_eq!(wait(&a, &b, 3), [(0, 0), (1, 0), (2, 0)]);
    assert_eq!(b.recv_cq.ends(), [(0, 0), (1, 0), (2, 0)]);
    assert_eq!(target.get(0, 24), source.get(0, 24));
}

#[test]
fn the_rnr_budget_is_renewed_by_every_success() {
    let [a, b] = guests();
    connect(&a, &b, &Path { rnr_retry: 2, min_rnr_timer: 14, ..Path::default() });
    for n in 0..5 {
        a.send(&SendWr::send(n, &[]));
        b.recv(&RecvWr::new(n, &[]));
        // One RNR each: five in all, more than two in a row would be too many.
        assert_eq!(wait(&a, &b, 1), [(n, 0)]);
    }
}

/// A send that nobody will answer ends after the time that its attributes say.
fn assert_retry_exceeded(a: &End, b: &End, path: &Path, what: &str) {
    let start = Instant::now();
    for n in 1..=3 {
        a.qp.post_send(&SendWr::send(n, &[]));
    }
    a.qp.ring_send();
    let tries = u32::from(path.retry_cnt) + 1;
    let ends = wait_for_timers(a, b, 3, tries, path.ack_timeout());
    let (took, time) = (start.elapsed(), path.ack_timeout() * tries);
    assert_eq!(ends, [(1, PVRDMA_WC_RETRY_EXC_ERR), (2, FLUSH), (3, FLUSH)], "{what}");
    assert!(took >= time, "{what}: {took:?}, due after {time:?}");
    assert_eq!(a.query().qp_state, PVRDMA_QPS_ERR, "{what}");
}

#[test]
fn nobody_there_ends_in_retry_exceeded() {
    for (timeout, retry_cnt) in [(13, 0), (12, 1), (14, 3), (10, 7)] {
        let path = Path { timeout, retry_cnt, ..Path::default() };
        let [a, b] = guests();
        a.bring_up(nowhere(), &path);
        assert_retry_exceeded(&a, &b, &path, "no such port");
    }
    let path = Path { timeout: 13, retry_cnt: 2, ..Path::default() };
    let [a, b] = guests();
    a.bring_up(Endpoint { qpn: nowhere().qpn, ..b.endpoint() }, &path);
    assert_retry_exceeded(&a, &b, &path, "no such QP");

    let [a, b] = guests();
    connect(&a, &b, &path);
    b.destroy();
    assert_retry_exceeded(&a, &b, &path, "destroyed QP");
}

#[test]
fn a_peer_that_is_not_ready_is_not_there() {
    let path = Path { timeout: 13, retry_cnt: 2, ..Path::default() };
    for state in [PVRDMA_QPS_RESET, PVRDMA_QPS_INIT, PVRDMA_QPS_ERR] {
        let [a, b] = guests();
        connect(&a, &b, &path);
        b.recv(&RecvWr::new(1, &[]));
        match state {
            PVRDMA_QPS_RESET => b.reset(),
            PVRDMA_QPS_INIT => {
                b.reset();
                b.modify(path.init()).unwrap();
            }
            state => b.modify_state(state).unwrap(),
        }
        assert_retry_exceeded(&a, &b, &path, &format!("peer in state {state}"));
    }
}

#[test]
fn a_stranger_is_not_heard() {
    let path = Path { timeout: 13, retry_cnt: 1, ..Path::default() };
    let fabric = Fabric::new();
    let [a, b, c] =
        [0, 1, 2].map(|index| End::new(&Arc::new(Driver::new(&fabric, index, Layout::Pdir)), QpSize::default()));
    connect(&a, &b, &path);
    // c speaks to b, which listens to a.
    c.bring_up(b.endpoint(), &path);
    b.recv(&RecvWr::new(1, &[]));
    assert_retry_exceeded(&c, &b, &path, "b's peer is a");
    assert_eq!(b.recv_cq.ends(), []);
    a.send(&SendWr::send(7, &[]));
    assert_eq!((a.send_cq.ends(), b.recv_cq.ends()), (vec![(7, 0)], vec![(1, 0)]));
}

#[test]
fn another_first_psn_is_never_answered_with_success() {
    let path = Path { timeout: 13, retry_cnt: 2, ..Path::default() };
    let [a, b] = guests();
    a.bring_up(b.endpoint(), &Path { psn: path.psn.wrapping_add(3) & 0x00ff_ffff, ..path });
    b.bring_up(a.endpoint(), &path);
    b.recv(&RecvWr::new(1, &[]));
    assert_retry_exceeded(&a, &b, &path, "PSN ahead of the expected one");
    assert_eq!(b.recv_cq.ends(), []);
}

#[test]
fn a_peer_that_comes_in_time_saves_the_send() {
    let path = Path { timeout: 14, retry_cnt: 7, ..Path::default() };
    let [a, b] = guests();
    a.bring_up(b.endpoint(), &path);
    for n in 0..4 {
        a.qp.post_send(&SendWr::send(n, &[]));
    }
    a.qp.ring_send();
    let drivers = [&*a.driver, &*b.driver];
    assert!(!pump_until(&drivers, path.ack_timeout() * 2, || a.send_cq.waiting() > 0));
    for n in 0..4 {
        b.qp.post_recv(&RecvWr::new(n, &[]));
    }
    b.bring_up(a.endpoint(), &path);
    let ends = wait_for_timers(&a, &b, 4, 1, path.ack_timeout());
    assert_eq!(ends, [(0, 0), (1, 0), (2, 0), (3, 0)], "the next retry finds the peer");
    assert_eq!(b.recv_cq.ends(), [(0, 0), (1, 0), (2, 0), (3, 0)]);
}

#[test]
fn timeout_0_waits_for_ever_and_reset_ends_the_wait() {
    let path = Path { timeout: 0, retry_cnt: 0, ..Path::default() };
    let [a, b] = guests();
    a.bring_up(nowhere(), &path);
    a.send(&SendWr::send(1, &[]));
    assert!(!pump_until(&[&*a.driver, &*b.driver], Duration::from_millis(60), || a.send_cq.waiting() > 0));
    a.reset();
    assert_eq!(a.send_cq.ends(), [], "RESET forgets");
    connect(&a, &b, &Path::default());
    b.recv(&RecvWr::new(2, &[]));
    a.send(&SendWr::send(2, &[]));
    assert_eq!(a.send_cq.ends(), [(2, 0)]);
}

#[test]
fn error_state_ends_every_wait_at_once() {
    let path = Path { timeout: 31, rnr_retry: 7, min_rnr_timer: 0, ..Path::default() };
    let [a, b] = guests();
    connect(&a, &b, &path);
    for n in 0..3 {
        a.qp.post_send(&SendWr::send(n, &[]));
    }
    a.qp.ring_send();
    assert_eq!(a.send_cq.ends(), []);
    a.modify_state(PVRDMA_QPS_ERR).unwrap();
    assert_eq!(a.send_cq.ends(), [(0, FLUSH), (1, FLUSH), (2, FLUSH)]);

    let [c, _] = guests();
    c.bring_up(nowhere(), &path);
    c.send(&SendWr::send(9, &[]));
    c.modify_state(PVRDMA_QPS_ERR).unwrap();
    assert_eq!(c.send_cq.ends(), [(9, FLUSH)]);
}

#[test]
fn doorbells_during_a_wait_do_not_shorten_it() {
    let path = Path { timeout: 31, retry_cnt: 7, ..Path::default() };
    let [a, b] = guests();
    a.bring_up(nowhere(), &path);
    a.send(&SendWr::send(1, &[]));
    for _ in 0..1000 {
        a.qp.ring_send();
    }
    let first = a.driver.device.poll().expect("a deadline");
    assert!(first > Instant::now() + Duration::from_secs(60));
    assert_eq!((a.send_cq.waiting(), b.recv_cq.waiting()), (0, 0));
}

#[test]
fn a_qp_that_is_always_busy_does_not_starve_another() {
    // Two QPs on one device retry without end and with hardly a wait; a third must get its timer.
    let fabric = Fabric::new();
    let driver = Arc::new(Driver::new(&fabric, 0, Layout::Ranges));
    let busy = Path { rnr_retry: 7, min_rnr_timer: 1, ..Path::default() };
    let ends: Vec<_> = (0..4).map(|_| End::new(&driver, QpSize::default())).collect();
    connect(&ends[0], &ends[1], &busy);
    connect(&ends[2], &ends[3], &busy);
    for end in &ends {
        end.send(&SendWr::send(1, &[]));
    }
    let last = End::new(&driver, QpSize::default());
    let path = Path { timeout: 12, retry_cnt: 1, ..Path::default() };
    last.bring_up(nowhere(), &path);
    last.send(&SendWr::send(2, &[]));
    for _ in 0..=path.retry_cnt {
        std::thread::sleep(path.ack_timeout());
        // Its timer has run out. A poll runs one QP at least, and each QP has its turn.
        for _ in 0..=ends.len() {
            driver.device.poll();
        }
    }
    assert_eq!(last.send_cq.ends(), [(2, PVRDMA_WC_RETRY_EXC_ERR)]);
}

#[test]
fn a_guest_that_went_away_is_a_peer_that_is_not_there() {
    let path = Path { timeout: 13, retry_cnt: 1, ..Path::default() };
    let [a, b] = guests();
    connect(&a, &b, &path);
    let Some(driver) = Arc::into_inner(b.driver) else { panic!("one owner") };
    // The last work of the guest is still waiting when its device goes.
    driver.device.reset();
    drop((driver, b.qp, b.send_cq, b.recv_cq));
    let [_, other] = guests();
    assert_retry_exceeded(&a, &other, &path, "guest gone");
}

#[test]
fn a_device_can_be_dropped_while_work_waits() {
    let [a, _] = guests();
    a.bring_up(nowhere(), &Path { timeout: 31, ..Path::default() });
    a.send(&SendWr::send(1, &[]));
    let device = Arc::downgrade(&a.driver.device);
    drop(a);
    assert!(device.upgrade().is_none());
}

#[test]
fn a_reset_device_can_be_used_again() {
    let [a, b] = guests();
    connect(&a, &b, &Path { rnr_retry: 7, min_rnr_timer: 0, ..Path::default() });
    a.send(&SendWr::send(1, &[]));
    a.driver.device.reset();
    assert_eq!(a.driver.device.poll(), None, "no timer is left");
    assert!(a.driver.command(Command::QueryQp { qp: a.qp.handle, attr_mask: 0 }).is_err());
    assert!(modify(&a.driver, a.qp.handle, Path::default().init()).is_err());
    a.driver.bind();
    let again = End::new(&a.driver, QpSize::default());
    b.reset();
    connect(&again, &b, &Path::default());
    b.recv(&RecvWr::new(2, &[]));
    again.send(&SendWr::send(2, &[]));
    assert_eq!((again.send_cq.ends(), b.recv_cq.ends()), (vec![(2, 0)], vec![(2, 0)]));
}

/// To the nanosecond, on a clock that stands still until it is set.
#[test]
fn timers_go_by_the_clock_that_the_device_was_given() {
    let (fabric, clock) = (Fabric::new(), Clock::by_hand());
    let [a, b] = [0, 1].map(|index| {
        let driver = Driver::timed(&fabric, index, Layout::Ranges, 16 << 20, &clock);
        End::new(&Arc::new(driver), QpSize::default())
    });
    let path = Path { timeout: 20, retry_cnt: 3, rnr_retry: 2, min_rnr_timer: 14, ..Path::default() };
    let mut passed = Duration::ZERO;
    for (peer, step, waits, status) in [
        (nowhere(), path.ack_timeout(), 4, PVRDMA_WC_RETRY_EXC_ERR),
        (b.endpoint(), Duration::from_micros(1280), 2, PVRDMA_WC_RNR_RETRY_EXC_ERR),
    ] {
        a.reset();
        b.reset();
        a.bring_up(peer, &path);
        b.bring_up(a.endpoint(), &path);
        a.send(&SendWr::send(1, &[]));
        for _ in 0..waits {
            let next = a.driver.device.poll();
            assert_eq!((a.send_cq.waiting(), next), (0, Some(clock.now() + step)));
            passed += step;
            clock.set(passed - Duration::from_nanos(1));
            a.driver.device.poll();
            assert_eq!(a.send_cq.waiting(), 0);
            clock.set(passed);
        }
        a.driver.device.poll();
        assert_eq!(a.send_cq.ends(), [(1, status)]);
    }
}
