//! Answers that are lost while those behind them come. A responder remembers a bounded number of READs and atomics, so
//! no more of them may be on their way than were agreed on, counted from the oldest request that is not acknowledged:
//! otherwise it has forgotten what it is asked to say again.

use pvrdma_device::handle::{Psn, Rkey};
use pvrdma_device::memory::{Memory, Span};
use pvrdma_device::rings::wqe::AtomicOp;
use pvrdma_device::testing::driver::{Driver, Layout, Region};
use pvrdma_device::testing::end::{End, Path, connect, pump_until};
use pvrdma_device::testing::queue::{QpSize, SendWr, sge};
use pvrdma_device::testing::wire::{Net, Wire};
use pvrdma_device::transport::fabric::{Fabric, Port};
use pvrdma_device::transport::fault::{Faults, Faulty};
use pvrdma_device::transport::{Answer, CopyFault, Far, Op, Request, Responder, Token};
use pvrdma_ffi::dev_api::PVRDMA_QPS_RTS;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Longer than anything here may take.
const LIMIT: Duration = Duration::from_secs(20);

/// Requests of each test: more than a window has.
const COUNT: u64 = 40;

fn word(region: &Region, offset: u64) -> u64 {
    u64::from_le_bytes(region.get(offset, 8).try_into().unwrap())
}

/// What is asked, and what it must bring.
struct Kind {
    name: &'static str,
    request: fn(u64, &Region, &Region) -> SendWr,
    brings: fn(u64) -> u64,
}

/// Adds 1 to the first word and brings what was there to a place of its own.
fn atomic(n: u64, local: &Region, remote: &Region) -> SendWr {
    SendWr::fetch_add(n, sge(local, n * 8, 8), remote, 0, 1)
}

/// Brings a word that says `n`.
fn read(n: u64, local: &Region, remote: &Region) -> SendWr {
    SendWr::read(n, &[sge(local, n * 8, 8)], remote, 1024 + n * 8)
}

/// One after the other.
fn mixed(n: u64, local: &Region, remote: &Region) -> SendWr {
    if n.is_multiple_of(2) { read(n, local, remote) } else { atomic(n, local, remote) }
}

const KINDS: [Kind; 3] = [
    Kind { name: "READ", request: read, brings: |n| n },
    Kind { name: "atomic", request: atomic, brings: |n| n },
    Kind { name: "both", request: mixed, brings: |n| if n.is_multiple_of(2) { n } else { n / 2 } },
];

/// Two guests on a wire, connected, and a region each; the words behind the first 1024 bytes of `remote` count up.
fn bench(max_rd_atomic: u8) -> (End, End, Arc<Wire>, Region, Region) {
    let net = Net::default();
    let [(da, wire), (db, _)] = [0, 1].map(|index| Wire::guest(&net, index, Layout::Pdir));
    let [a, b] = [da, db].map(|driver| End::new(&driver, QpSize::wr(64)));
    connect(&a, &b, &Path { timeout: 8, retry_cnt: 7, max_rd_atomic, ..Path::default() });
    let (local, remote) = (a.region(4096), b.region(4096));
    for n in 0..COUNT {
        remote.set(1024 + n * 8, &n.to_le_bytes());
    }
    (a, b, wire, local, remote)
}

/// PSN of request `n`, each of one packet.
fn psn(n: u32) -> Psn {
    Psn::new(Path::default().psn).advance(n)
}

/// How many requests were submitted, however often: the timer may have one sent again at any time.
fn requests(wire: &Wire) -> usize {
    wire.submitted().iter().map(|request| request.psn.get()).collect::<BTreeSet<_>>().len()
}

/// Has everything carried out and answered, except that `losses` answers to `lost` do not arrive.
fn run(wire: &Wire, lost: Psn, losses: &mut u32) {
    while wire.flights() > 0 {
        assert_eq!(wire.deliver(0), Answer::Ack);
        if wire.psn(0) == lost && *losses > 0 {
            *losses -= 1;
            wire.lose(0);
        } else {
            wire.answer(0);
        }
    }
}

#[test]
fn no_more_than_agreed_pass_one_whose_answer_was_lost() {
    for Kind { name: what, request, brings } in KINDS {
        for max in [1, 2, 5, 16] {
            let (a, b, wire, local, remote) = bench(max);
            for n in 0..COUNT {
                assert!(a.qp.post_send(&request(n, &local, &remote)));
            }
            a.qp.ring_send();
            // Carried out, but nobody hears of it, four times over; everything behind it is answered.
            let mut losses = 4;
            let mut rounds = 0;
            let done = || {
                let owed = losses > 0;
                run(&wire, psn(0), &mut losses);
                if owed {
                    rounds += 1;
                    assert_eq!(requests(&wire), usize::from(max), "{what}, {max} at a time, {losses} losses to come");
                    assert_eq!(a.send_cq.waiting(), 0, "{what}: the first is still owed");
                }
                a.send_cq.waiting() == COUNT as u32
            };
            assert!(pump_until(&[&a.driver, &b.driver], LIMIT, done), "{what}, {max} at a time");
            assert!((1..).contains(&rounds), "{what}: the window was looked at");
            assert_eq!(losses, 0, "{what}: sent again after each");
            assert_eq!(a.send_cq.ends(), (0..COUNT).map(|n| (n, 0)).collect::<Vec<_>>(), "{what}, {max} at a time");
            for n in 0..COUNT {
                assert_eq!(word(&local, n * 8), brings(n), "{what} {n}, {max} at a time");
            }
        }
    }
}

#[test]
fn one_in_the_middle_holds_up_those_behind_it_and_not_those_before() {
    let (a, b, wire, local, remote) = bench(4);
    for n in 0..COUNT {
        assert!(a.qp.post_send(&atomic(n, &local, &remote)));
    }
    a.qp.ring_send();
    (0..4).for_each(|n| assert_eq!(wire.deliver(n), Answer::Ack));
    wire.lose(2);
    // The answers of 3 and 1 make no room; that of 0 makes two, because 1 was acknowledged before.
    wire.answer(2);
    assert_eq!(requests(&wire), 4);
    wire.answer(1);
    assert_eq!(requests(&wire), 4);
    wire.answer(0);
    assert_eq!(requests(&wire), 6);
    assert_eq!(a.send_cq.ends(), [(0, 0), (1, 0)]);
    run(&wire, psn(2), &mut 2);
    assert_eq!(requests(&wire), 6, "nor do those of 4 and 5");
    let done = || {
        wire.run();
        a.send_cq.waiting() == COUNT as u32 - 2
    };
    assert!(pump_until(&[&a.driver, &b.driver], LIMIT, done));
    assert_eq!(a.send_cq.ends(), (2..COUNT).map(|n| (n, 0)).collect::<Vec<_>>());
    assert_eq!(word(&remote, 0), COUNT, "each was done once");
}

#[test]
fn what_holds_up_the_window_may_be_of_another_kind() {
    let (a, b, wire, local, remote) = bench(4);
    assert!(a.qp.post_send(&SendWr::write(0, &[], &remote, 0)));
    for n in 1..COUNT {
        assert!(a.qp.post_send(&atomic(n, &local, &remote)));
    }
    a.qp.ring_send();
    run(&wire, psn(0), &mut 3);
    assert_eq!(requests(&wire), 5, "the WRITE and four behind it");
    let done = || {
        wire.run();
        a.send_cq.waiting() == COUNT as u32
    };
    assert!(pump_until(&[&a.driver, &b.driver], LIMIT, done));
    assert_eq!(a.send_cq.ends(), (0..COUNT).map(|n| (n, 0)).collect::<Vec<_>>());
}

#[test]
fn a_network_that_loses_answers_is_mended_by_retries() {
    const ROUNDS: u64 = 8;
    for Kind { name: what, request, brings } in KINDS {
        for (max, seed) in [(1, 1), (4, 2), (8, 3), (16, 4)] {
            let fabric = Fabric::new();
            let port = Port::new(&fabric);
            let faults = Faults { drop_ack: 0.05, seed, ..Faults::default() };
            let lossy = Driver::on(0, Layout::Pdir, 16 << 20, Faulty::new(port.clone(), faults));
            lossy.plug(&port);
            let [a, b] = [lossy, Driver::new(&fabric, 1, Layout::Pdir)]
                .map(|driver| End::new(&Arc::new(driver), QpSize::wr(64)));
            connect(&a, &b, &Path { timeout: 8, retry_cnt: 7, max_rd_atomic: max, ..Path::default() });
            let (local, remote) = (a.region(4096), b.region(4096));
            for n in 0..COUNT {
                remote.set(1024 + n * 8, &n.to_le_bytes());
            }
            for round in 0..ROUNDS {
                remote.set(0, &0u64.to_le_bytes());
                for n in 0..COUNT {
                    assert!(a.qp.post_send(&request(n, &local, &remote)));
                }
                a.qp.ring_send();
                let done = || a.send_cq.waiting() == COUNT as u32 || a.query().qp_state != PVRDMA_QPS_RTS;
                assert!(pump_until(&[&a.driver, &b.driver], LIMIT, done), "{what}, {max} at a time, round {round}");
                let good: Vec<_> = (0..COUNT).map(|n| (n, 0)).collect();
                assert_eq!(a.send_cq.ends(), good, "{what}, {max} at a time, round {round}");
                for n in 0..COUNT {
                    assert_eq!(word(&local, n * 8), brings(n), "{what} {n}, {max} at a time, round {round}");
                }
            }
        }
    }
}

/// Keeps what an atomic found.
#[derive(Default)]
struct Found(Mutex<Vec<u64>>);

impl Far for Found {
    fn pull_from(&self, _skip: u64, _memory: &dyn Memory, _into: &[Span]) -> Result<(), CopyFault> {
        Ok(())
    }

    fn push(&self, _memory: &dyn Memory, _from: &[Span]) -> Result<(), CopyFault> {
        Ok(())
    }

    fn put(&self, bytes: &[u8]) -> Result<(), CopyFault> {
        self.0.lock().unwrap().push(u64::from_ne_bytes(bytes.try_into().unwrap()));
        Ok(())
    }
}

/// A PSN comes back after 2^24 packets: four messages of 1 GiB.
#[test]
fn an_atomic_is_not_answered_with_what_one_of_the_same_psn_found_long_ago() {
    let (a, b, _wire, _, remote) = bench(4);
    let psn = psn(0);
    let message = |psn: Psn, packets, len, op| Request {
        token: Token { qp: a.qp.handle, epoch: 1, psn },
        source: a.endpoint(),
        dest: b.endpoint(),
        psn,
        packets,
        op,
        len,
        solicited: false,
        alone: true,
    };
    let fetch_add = |psn| {
        let op = Op::Atomic { remote_addr: remote.start, rkey: Rkey(remote.key), op: AtomicOp::FetchAdd { add: 1 } };
        message(psn, 1, 8, op)
    };
    let found = Found::default();
    assert_eq!(b.driver.device.receive(&fetch_add(psn), &found), Answer::Ack);
    let mut next = psn.advance(1);
    let around = (1 << 24) - 1;
    for packets in [1 << 22, 1 << 22, 1 << 22, around - 3 * (1 << 22)] {
        let write = Op::Write { remote_addr: remote.start + 512, rkey: Rkey(remote.key), imm: None };
        assert_eq!(b.driver.device.receive(&message(next, packets, 0, write), &found), Answer::Ack);
        next = next.advance(packets);
    }
    assert_eq!(next, psn, "all the way round");
    assert_eq!(b.driver.device.receive(&fetch_add(psn), &found), Answer::Ack);
    assert_eq!(b.driver.device.receive(&fetch_add(psn), &found), Answer::Ack, "a duplicate");
    assert_eq!(*found.0.lock().unwrap(), [0, 1, 1]);
    assert_eq!(word(&remote, 0), 2, "done twice, not three times");
}
