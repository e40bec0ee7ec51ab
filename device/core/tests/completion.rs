//! Completion queues: notification is exact, overrun is final and told, and both end where they must.

use pvrdma_device::interrupt::AsyncEvent;
use pvrdma_device::testing::driver::{Driver, LAYOUTS, Layout};
use pvrdma_device::testing::end::{End, Path, connect, pump};
use pvrdma_device::testing::queue::{QpSize, RecvWr, SendWr, sge};
use pvrdma_device::transport::fabric::Fabric;
use pvrdma_ffi::dev_api::*;
use pvrdma_ffi::uapi::vmw_pvrdma::*;
use std::sync::Arc;

const ARM: u32 = PVRDMA_UAR_CQ_ARM;
const ARM_SOL: u32 = PVRDMA_UAR_CQ_ARM_SOL;
const PLAIN: u32 = PVRDMA_SEND_SIGNALED;
const SOLICITED: u32 = PVRDMA_SEND_SIGNALED | PVRDMA_SEND_SOLICITED;

fn guests(layout: Layout) -> [Arc<Driver>; 2] {
    let fabric = Fabric::new();
    [0, 1].map(|index| Arc::new(Driver::new(&fabric, index, layout)))
}

fn pair() -> [End; 2] {
    let [a, b] = guests(Layout::Ranges).map(|driver| End::new(&driver, QpSize::default()));
    connect(&a, &b, &Path::default());
    [a, b]
}

/// One message; notifications of the receiver's CQ so far.
fn message(a: &End, b: &End, flags: u32) -> usize {
    b.recv(&RecvWr::new(1, &[]));
    a.send(&SendWr::send(1, &[]).flags(flags));
    b.driver.bell.completions_of(b.recv_cq.handle)
}

#[test]
fn one_arm_one_notification() {
    let [a, b] = pair();
    assert_eq!(message(&a, &b, SOLICITED), 0, "not armed");
    b.recv_cq.ring(ARM);
    assert_eq!(b.driver.bell.completions(), 0, "what is in the ring does not fire");
    assert_eq!(message(&a, &b, PLAIN), 1);
    assert_eq!(message(&a, &b, SOLICITED), 1, "once");
    for n in 2..10 {
        b.recv_cq.ring(ARM);
        assert_eq!(message(&a, &b, PLAIN), n);
    }
    assert_eq!(b.driver.bell.completions(), 9, "no other CQ fired");
    assert_eq!(a.driver.bell.completions(), 0);
}

#[test]
fn solicited_means_a_solicited_receive_or_an_error() {
    let [a, b] = pair();
    b.recv_cq.ring(ARM_SOL);
    assert_eq!(message(&a, &b, PLAIN), 0);
    assert_eq!(message(&a, &b, SOLICITED), 1);
    // A send that asks for a solicited event at the other end is no reason to wake its own.
    a.send_cq.ring(ARM_SOL);
    message(&a, &b, SOLICITED);
    assert_eq!(a.driver.bell.completions(), 0);
    a.send(&SendWr::send(1, &[]).opcode(99));
    assert_eq!(a.driver.bell.completions(), 1, "an error wakes");
    b.recv_cq.ring(ARM_SOL);
    b.recv(&RecvWr::new(2, &[]));
    b.modify_state(PVRDMA_QPS_ERR).unwrap();
    assert_eq!(b.driver.bell.completions(), 2, "a flush is an error");
}

#[test]
fn solicited_write_with_imm_wakes_and_plain_write_does_not() {
    let [a, b] = pair();
    let target = b.region(64);
    b.recv_cq.ring(ARM_SOL);
    a.send(&SendWr::write(1, &[], &target, 0).flags(SOLICITED));
    assert_eq!(b.driver.bell.completions(), 0);
    b.recv(&RecvWr::new(1, &[]));
    a.send(&SendWr::write(1, &[], &target, 0).imm(1).flags(SOLICITED));
    assert_eq!(b.driver.bell.completions(), 1);
}

#[test]
fn arm_widens_and_is_not_narrowed() {
    let [a, b] = pair();
    b.recv_cq.ring(ARM_SOL);
    b.recv_cq.ring(ARM);
    assert_eq!(message(&a, &b, PLAIN), 1, "ARM after ARM_SOL");
    b.recv_cq.ring(ARM);
    b.recv_cq.ring(ARM_SOL);
    assert_eq!(message(&a, &b, PLAIN), 2, "ARM_SOL after ARM");
    b.recv_cq.ring(ARM_SOL);
    b.recv_cq.ring(ARM_SOL);
    assert_eq!(message(&a, &b, SOLICITED), 3);
    assert_eq!(message(&a, &b, SOLICITED), 3, "armed twice fires once");
    b.recv_cq.ring(ARM | ARM_SOL);
    assert_eq!(message(&a, &b, PLAIN), 4, "both bits are ARM");
    b.recv_cq.ring(PVRDMA_UAR_CQ_POLL);
    assert_eq!(message(&a, &b, SOLICITED), 4, "POLL arms nothing");
}

#[test]
fn a_cq_of_both_directions_fires_for_either() {
    let [da, db] = guests(Layout::Pdir);
    let end = |driver: &Arc<Driver>| {
        let ctx = driver.context();
        let cq = driver.cq(ctx, 16);
        End::with(driver, driver.pd(ctx), cq.clone(), cq, QpSize::default())
    };
    let (a, b) = (end(&da), end(&db));
    connect(&a, &b, &Path::default());
    a.send_cq.ring(ARM);
    message(&a, &b, PLAIN);
    assert_eq!(da.bell.completions(), 1, "own send");
    a.send_cq.ring(ARM);
    message(&b, &a, PLAIN);
    assert_eq!(da.bell.completions(), 2, "received");
}

#[test]
fn a_cq_doorbell_from_another_context_is_ignored() {
    let [a, b] = pair();
    let stranger = b.driver.context();
    let other = b.driver.cq(stranger, 16);
    let arm = |ctx, cq: &pvrdma_device::testing::queue::CqRing| {
        let doorbell = pvrdma_device::doorbell::Doorbell::decode(4, cq.handle.0 | ARM).unwrap();
        b.driver.device.doorbell(ctx, doorbell);
    };
    arm(stranger, &b.recv_cq);
    assert_eq!(message(&a, &b, PLAIN), 0);
    arm(b.ctx, &other);
    arm(pvrdma_device::handle::KERNEL, &b.recv_cq);
    assert_eq!(message(&a, &b, PLAIN), 1, "the kernel's page may name everything");
    assert!(b.driver.device.cq_is_empty(stranger, b.recv_cq.handle), "nothing is told to a stranger");
    assert!(!b.driver.device.cq_is_empty(b.ctx, b.recv_cq.handle));
    b.recv_cq.drain();
    assert!(b.driver.device.cq_is_empty(b.ctx, b.recv_cq.handle));
}

#[test]
fn cqs_of_every_size_fill_to_the_last_entry_and_wrap() {
    for layout in LAYOUTS {
        for cqe in [1, 2, 64, 256] {
            let [da, db] = guests(layout);
            let (ctx, peer) = (da.context(), End::new(&db, QpSize::default()));
            let (send_cq, recv_cq) = (da.cq(ctx, cqe), da.cq(ctx, cqe));
            let a = End::with(&da, da.pd(ctx), send_cq, recv_cq, QpSize::wr(256));
            connect(&a, &peer, &Path::default());
            let target = peer.region(8);
            for round in 0..5u64 {
                for n in 0..u64::from(cqe) {
                    a.qp.post_send(&SendWr::write(round << 32 | n, &[], &target, 0));
                }
                a.qp.ring_send();
                pump(&[&*da]);
                assert_eq!(a.send_cq.waiting(), cqe);
                let expected: Vec<_> = (0..u64::from(cqe)).map(|n| (round << 32 | n, 0)).collect();
                assert_eq!(a.send_cq.ends(), expected);
            }
            assert_eq!(da.bell.events(), []);
        }
    }
}

#[test]
fn an_overrun_is_told_once_and_ends_the_qps() {
    let [da, db] = guests(Layout::Pdir);
    let ctx = da.context();
    let (small, recv_cq, pd) = (da.cq(ctx, 4), da.cq(ctx, 16), da.pd(ctx));
    let ends = [0, 1].map(|_| End::with(&da, pd, small.clone(), recv_cq.clone(), QpSize::default()));
    let peers = [0, 1].map(|_| End::new(&db, QpSize::default()));
    let target = peers[0].region(64);
    connect(&ends[0], &peers[0], &Path::default());
    connect(&ends[1], &peers[1], &Path::default());
    for end in &ends {
        end.recv(&RecvWr::new(100, &[]));
    }
    for n in 0..4 {
        ends[0].send(&SendWr::write(n, &[], &target, 0));
    }
    assert_eq!(ends[0].query().qp_state, PVRDMA_QPS_RTS, "full is not too full");
    for n in 4..8 {
        ends[0].send(&SendWr::write(n, &[], &target, 0));
    }
    pump(&[&*da]);
    assert_eq!(da.bell.events(), [AsyncEvent::CqErr(small.handle)]);
    assert_eq!(ends[0].query().qp_state, PVRDMA_QPS_ERR);
    assert_eq!(small.ends(), [(0, 0), (1, 0), (2, 0), (3, 0)], "what was there stays readable");
    // The CQ is dead for good, also for its other QP, which did nothing.
    assert_eq!(ends[1].query().qp_state, PVRDMA_QPS_ERR);
    assert_eq!(recv_cq.ends(), [(100, PVRDMA_WC_WR_FLUSH_ERR); 2], "the healthy CQ gets its flushes");
    ends[1].send(&SendWr::write(9, &[], &target, 0));
    pump(&[&*da]);
    assert_eq!(small.ends(), []);
    assert_eq!(da.bell.events(), [AsyncEvent::CqErr(small.handle)]);
    assert_eq!(ends[0].qp.sends_out() + ends[1].qp.sends_out(), 0, "the rings were emptied all the same");
    for end in &ends {
        end.destroy();
    }
    da.command(pvrdma_device::command::Command::DestroyCq { cq: small.handle }).unwrap();
}

#[test]
fn an_overrun_at_the_receiver_ends_both_qps() {
    let [da, db] = guests(Layout::Ranges);
    let a = End::new(&da, QpSize::default());
    let ctx = db.context();
    let (send_cq, recv_cq) = (db.cq(ctx, 4), db.cq(ctx, 2));
    let b = End::with(&db, db.pd(ctx), send_cq, recv_cq, QpSize::default());
    connect(&a, &b, &Path::default());
    for n in 0..4 {
        b.recv(&RecvWr::new(n, &[]));
    }
    for n in 0..4 {
        a.send(&SendWr::send(n, &[]));
    }
    pump(&[&*da, &*db]);
    let expected = [(0, 0), (1, 0), (2, PVRDMA_WC_REM_OP_ERR), (3, PVRDMA_WC_WR_FLUSH_ERR)];
    assert_eq!(a.send_cq.ends(), expected);
    assert_eq!(b.recv_cq.ends(), [(0, 0), (1, 0)]);
    assert_eq!(db.bell.events(), [AsyncEvent::CqErr(b.recv_cq.handle)]);
    assert_eq!(b.query().qp_state, PVRDMA_QPS_ERR);
}

#[test]
fn a_wild_consumer_counter_kills_the_cq_and_nothing_else() {
    for wild in [9, 8, 0x8000_0000, u32::MAX] {
        let [da, db] = guests(Layout::Ranges);
        let ctx = da.context();
        let (bad, good, pd) = (da.cq(ctx, 4), da.cq(ctx, 4), da.pd(ctx));
        let end = End::with(&da, pd, bad.clone(), good.clone(), QpSize::default());
        let healthy = End::with(&da, pd, good.clone(), good.clone(), QpSize::default());
        let peers = [0, 1].map(|_| End::new(&db, QpSize::default()));
        connect(&end, &peers[0], &Path::default());
        connect(&healthy, &peers[1], &Path::default());
        let (source, target) = (da.region(pd, 64), peers[1].region(64));
        bad.force_head(wild);
        end.send(&SendWr::write(1, &[], &target, 0));
        pump(&[&*da]);
        assert_eq!(da.bell.events(), [AsyncEvent::CqErr(bad.handle)], "{wild:#x}");
        assert_eq!(end.query().qp_state, PVRDMA_QPS_ERR);
        healthy.send(&SendWr::write(2, &[sge(&source, 0, 8)], &target, 0));
        assert_eq!(good.ends(), [(2, 0)]);
    }
}
