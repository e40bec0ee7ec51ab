//! Rings of every size wrap, fill and empty; a silent work request gives its slot back too; every work request ends
//! exactly once and in order.

use pvrdma_device::doorbell::Doorbell;
use pvrdma_device::handle::KERNEL;
use pvrdma_device::testing::driver::{Driver, LAYOUTS, Layout};
use pvrdma_device::testing::end::{End, Path, connect};
use pvrdma_device::testing::queue::{QpSize, RecvWr, SendWr, sge};
use pvrdma_device::transport::fabric::Fabric;
use pvrdma_ffi::uapi::vmw_pvrdma::*;
use std::sync::Arc;

fn pair(layout: Layout, size: QpSize) -> (End, End) {
    let fabric = Fabric::new();
    let ends = [0, 1].map(|index| End::new(&Arc::new(Driver::new(&fabric, index, layout)), size));
    connect(&ends[0], &ends[1], &Path::default());
    ends.into()
}

#[test]
fn every_ring_size_wraps() {
    for layout in LAYOUTS {
        for wr in [1, 2, 4, 8, 64, 512] {
            let (a, b) = pair(layout, QpSize::wr(wr));
            let (source, target) = (a.region(4096), b.region(4096));
            let mut next = 0u64;
            // Twice around the counters (2S), which is four times around the slots, in batches that do not divide S.
            while next < 4 * u64::from(wr) + 3 {
                let batch = (wr / 2 + 1).min(wr);
                for n in 0..u64::from(batch) {
                    source.set(n % 64 * 8, &(next + n).to_le_bytes());
                    assert!(b.qp.post_recv(&RecvWr::new(next + n, &[sge(&target, n % 64 * 8, 8)])));
                    assert!(a.qp.post_send(&SendWr::send(next + n, &[sge(&source, n % 64 * 8, 8)])));
                }
                b.qp.ring_recv();
                a.qp.ring_send();
                let expected: Vec<_> = (next..next + u64::from(batch)).map(|n| (n, 0)).collect();
                assert_eq!(a.send_cq.ends(), expected, "ring of {wr}");
                assert_eq!(b.recv_cq.ends(), expected, "ring of {wr}");
                let last = u64::from(batch) - 1;
                assert_eq!(target.get(last % 64 * 8, 8), (next + last).to_le_bytes());
                next += u64::from(batch);
                assert_eq!((a.qp.sends_out(), b.qp.recvs_out()), (0, 0), "the device gave every slot back");
            }
        }
    }
}

#[test]
fn a_full_ring_is_taken_whole() {
    let (a, b) = pair(Layout::Pdir, QpSize::wr(16));
    let target = b.region(64);
    for round in 0..3 {
        for n in 0..16 {
            assert!(a.qp.post_send(&SendWr::write(round * 16 + n, &[], &target, 0)));
        }
        assert!(!a.qp.post_send(&SendWr::send(99, &[])), "full");
        a.qp.ring_send();
        let expected: Vec<_> = (round * 16..round * 16 + 16).map(|n| (n, 0)).collect();
        assert_eq!(a.send_cq.ends(), expected);
    }
}

#[test]
fn the_largest_rings_work() {
    let size = QpSize { send_wr: 16384, recv_wr: 16384, send_sge: 16, recv_sge: 16, sig_all: false };
    let (a, b) = pair(Layout::Pdir, size);
    let target = b.region(64);
    for round in 0..3u64 {
        for n in 0..16384 {
            // One in 64 speaks: the CQ has room for 1024.
            let flags = if n % 64 == 63 { PVRDMA_SEND_SIGNALED } else { 0 };
            assert!(a.qp.post_send(&SendWr::write(round << 32 | n, &[], &target, 0).flags(flags)));
        }
        a.qp.ring_send();
        pvrdma_device::testing::end::pump(&[&*a.driver]);
        let ends = a.send_cq.ends();
        assert_eq!(ends.len(), 256);
        assert!(ends.iter().zip(0..).all(|(end, n)| *end == (round << 32 | (n * 64 + 63), 0)));
        assert_eq!(a.qp.sends_out(), 0);
    }
}

#[test]
fn unsignaled_work_is_silent_when_it_succeeds() {
    let (a, b) = pair(Layout::Ranges, QpSize::wr(4));
    let (source, target) = (a.region(64), b.region(64));
    for n in 0..100u64 {
        source.set(0, &n.to_le_bytes());
        let flags = if n % 10 == 9 { PVRDMA_SEND_SIGNALED } else { 0 };
        a.send(&SendWr::write(n, &[sge(&source, 0, 8)], &target, 0).flags(flags));
        assert_eq!(target.get(0, 8), n.to_le_bytes(), "done, whether or not anybody hears of it");
    }
    let expected: Vec<_> = (0..10).map(|n| (n * 10 + 9, 0)).collect();
    assert_eq!(a.send_cq.ends(), expected);
}

#[test]
fn sq_sig_all_makes_every_send_speak() {
    let (a, b) = pair(Layout::Ranges, QpSize { sig_all: true, ..QpSize::wr(4) });
    let target = b.region(64);
    for n in 0..8 {
        a.send(&SendWr::write(n, &[], &target, 0).flags(0));
    }
    assert_eq!(a.send_cq.ends(), (0..8).map(|n| (n, 0)).collect::<Vec<_>>());
}

#[test]
fn unsignaled_work_that_fails_speaks() {
    let (a, b) = pair(Layout::Ranges, QpSize::wr(8));
    let target = b.region(64);
    for n in 0..3 {
        a.qp.post_send(&SendWr::write(n, &[], &target, 0).flags(0));
    }
    a.qp.post_send(&SendWr::write(3, &[(0x1000, 8, 0xdead_0000)], &target, 0).flags(0));
    a.qp.post_send(&SendWr::write(4, &[], &target, 0).flags(0));
    a.qp.ring_send();
    assert_eq!(a.send_cq.ends(), [(3, PVRDMA_WC_LOC_PROT_ERR), (4, PVRDMA_WC_WR_FLUSH_ERR)]);
}

#[test]
fn any_doorbell_of_the_kernel_is_enough_for_both_rings() {
    let (a, b) = pair(Layout::Ranges, QpSize::default());
    let target = b.region(64);
    a.qp.post_send(&SendWr::write(1, &[], &target, 0));
    // Linux publishes good work requests before a bad one and does not ring for them.
    let recv = Doorbell::Qp { qp: a.qp.handle, send: false, recv: true };
    a.driver.device.doorbell(KERNEL, recv);
    assert_eq!(a.send_cq.ends(), [(1, 0)]);
}

#[test]
fn one_cq_can_serve_both_directions_of_many_qps() {
    let fabric = Fabric::new();
    let driver = Arc::new(Driver::new(&fabric, 0, Layout::Ranges));
    let ctx = driver.context();
    let (pd, cq) = (driver.pd(ctx), driver.cq(ctx, 64));
    let ends: Vec<_> = (0..6).map(|_| End::with(&driver, pd, cq.clone(), cq.clone(), QpSize::default())).collect();
    for pair in ends.chunks(2) {
        connect(&pair[0], &pair[1], &Path::default());
    }
    for (n, pair) in (0u64..).zip(ends.chunks(2)) {
        pair[1].recv(&RecvWr::new(100 + n, &[]));
        pair[0].send(&SendWr::send(n, &[]));
    }
    let wcs = cq.drain();
    assert_eq!(wcs.len(), 6);
    for (n, pair) in (0u64..).zip(ends.chunks(2)) {
        let of = |end: &End| wcs.iter().filter(|wc| wc.qp == u64::from(end.qp.handle.0)).collect::<Vec<_>>();
        assert_eq!(of(&pair[0]).iter().map(|wc| (wc.wr_id, wc.opcode)).collect::<Vec<_>>(), [(n, PVRDMA_WC_SEND)]);
        let received: Vec<_> = of(&pair[1]).iter().map(|wc| (wc.wr_id, wc.opcode)).collect();
        assert_eq!(received, [(100 + n, PVRDMA_WC_RECV)]);
    }
}
