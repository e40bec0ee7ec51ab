//! The end of work that is not done: what ERR flushes, what RESET forgets, and that DESTROY is final.

use pvrdma_device::command::Command;
use pvrdma_device::testing::driver::{Driver, LAYOUTS, Layout};
use pvrdma_device::testing::end::{End, Path, connect, pump};
use pvrdma_device::testing::queue::{QpSize, RecvWr, SendWr, sge};
use pvrdma_device::transport::fabric::Fabric;
use pvrdma_ffi::dev_api::*;
use pvrdma_ffi::uapi::vmw_pvrdma::*;
use std::sync::Arc;

const FLUSH: u32 = PVRDMA_WC_WR_FLUSH_ERR;

fn pair(layout: Layout) -> (End, End) {
    let fabric = Fabric::new();
    let size = QpSize { send_wr: 16, recv_wr: 32, ..QpSize::default() };
    let ends = [0, 1].map(|index| End::new(&Arc::new(Driver::new(&fabric, index, layout)), size));
    // RNR waits without end: what is sent without a receive stays on its way.
    connect(&ends[0], &ends[1], &Path { rnr_retry: 7, min_rnr_timer: 0, ..Path::default() });
    ends.into()
}

fn flushed(ids: std::ops::Range<u64>) -> Vec<(u64, u32)> {
    ids.map(|n| (n, FLUSH)).collect()
}

#[test]
fn err_flushes_both_rings_whole_and_in_order() {
    for layout in LAYOUTS {
        let (a, _b) = pair(layout);
        for n in 0..32 {
            assert!(a.qp.post_recv(&RecvWr::new(100 + n, &[])));
        }
        for n in 0..16 {
            // Signaled or not, good or bad: all of it is flushed, nothing is judged.
            let wr = SendWr::send(n, &[]).flags(0).opcode(if n == 9 { 77 } else { PVRDMA_WR_SEND });
            assert!(a.qp.post_send(&wr));
        }
        a.modify_state(PVRDMA_QPS_ERR).unwrap();
        assert_eq!(a.send_cq.ends(), flushed(0..16));
        assert_eq!(a.recv_cq.ends(), flushed(100..132));
        assert_eq!((a.qp.sends_out(), a.qp.recvs_out()), (0, 0));
        for wc in [a.send_cq.poll(), a.recv_cq.poll()] {
            assert_eq!(wc, None);
        }
    }
}

#[test]
fn a_flush_completion_names_its_qp_and_kind() {
    let (a, _b) = pair(Layout::Ranges);
    a.qp.post_send(&SendWr::send(1, &[]));
    a.qp.post_recv(&RecvWr::new(2, &[]));
    a.modify_state(PVRDMA_QPS_ERR).unwrap();
    let (send, recv) = (a.send_cq.poll().unwrap(), a.recv_cq.poll().unwrap());
    assert_eq!((send.qp, recv.qp), (u64::from(a.qp.handle.0), u64::from(a.qp.handle.0)));
    assert_eq!(recv.opcode & PVRDMA_WC_RECV, PVRDMA_WC_RECV);
    assert_eq!(send.opcode & PVRDMA_WC_RECV, 0);
}

#[test]
fn work_on_its_way_is_flushed_before_work_in_the_ring() {
    let (a, b) = pair(Layout::Pdir);
    b.recv(&RecvWr::new(1, &[]));
    for n in 0..5 {
        a.send(&SendWr::send(n, &[]));
    }
    assert_eq!(a.send_cq.ends(), [(0, 0)], "the second waits for a receive");
    a.modify_state(PVRDMA_QPS_ERR).unwrap();
    assert_eq!(a.send_cq.ends(), flushed(1..5));
    b.recv(&RecvWr::new(2, &[]));
    pump(&[&*a.driver, &*b.driver]);
    assert_eq!(b.recv_cq.ends(), [(1, 0)], "what was flushed is not sent any more");
}

#[test]
fn posts_in_err_are_flushed_too() {
    let (a, _b) = pair(Layout::Ranges);
    a.modify_state(PVRDMA_QPS_ERR).unwrap();
    for n in 0..40 {
        a.send(&SendWr::send(n, &[(1, 1, 1)]));
        a.recv(&RecvWr::new(n, &[]));
        assert_eq!(a.send_cq.ends(), [(n, FLUSH)]);
        assert_eq!(a.recv_cq.ends(), [(n, FLUSH)]);
    }
    // ERR again is no change.
    a.modify_state(PVRDMA_QPS_ERR).unwrap();
    assert_eq!((a.send_cq.ends(), a.recv_cq.ends()), (vec![], vec![]));
}

#[test]
fn err_from_every_state_flushes_receives() {
    let path = Path::default();
    for state in [PVRDMA_QPS_INIT, PVRDMA_QPS_RTR, PVRDMA_QPS_RTS, PVRDMA_QPS_SQD] {
        let (a, b) = pair(Layout::Ranges);
        a.reset();
        a.modify(path.init()).unwrap();
        if state != PVRDMA_QPS_INIT {
            a.modify(path.rtr(b.endpoint())).unwrap();
        }
        if state == PVRDMA_QPS_RTS || state == PVRDMA_QPS_SQD {
            a.modify(path.rts()).unwrap();
        }
        if state == PVRDMA_QPS_SQD {
            a.modify_state(PVRDMA_QPS_SQD).unwrap();
        }
        a.recv(&RecvWr::new(5, &[]));
        a.qp.post_send(&SendWr::send(6, &[]));
        assert_eq!((a.recv_cq.ends(), a.send_cq.ends()), (vec![], vec![]), "state {state}");
        if state == PVRDMA_QPS_RTS {
            // An unpublished doorbell: the send is still in the ring.
            assert_eq!(a.qp.sends_out(), 1);
        }
        a.modify_state(PVRDMA_QPS_ERR).unwrap();
        assert_eq!(a.recv_cq.ends(), [(5, FLUSH)], "state {state}");
        assert_eq!(a.send_cq.ends(), [(6, FLUSH)], "state {state}");
    }
}

#[test]
fn reset_forgets_everything() {
    let (a, b) = pair(Layout::Pdir);
    for n in 0..8 {
        a.send(&SendWr::send(n, &[]));
        a.recv(&RecvWr::new(n, &[]));
    }
    a.reset();
    pump(&[&*a.driver, &*b.driver]);
    assert_eq!((a.send_cq.ends(), a.recv_cq.ends()), (vec![], vec![]));
    // Doorbells in RESET and INIT do nothing; receives may be posted in INIT.
    a.qp.ring_send();
    a.modify(Path::default().init()).unwrap();
    a.recv(&RecvWr::new(50, &[]));
    a.qp.ring_send();
    assert_eq!((a.send_cq.ends(), a.recv_cq.ends()), (vec![], vec![]));
    // And the second life knows nothing of the first: counters, PSNs and receives begin anew.
    a.reset();
    b.reset();
    connect(&a, &b, &Path { psn: 77, ..Path::default() });
    let (source, target) = (a.region(64), b.region(64));
    for n in 0..40u64 {
        source.set(0, &n.to_le_bytes());
        b.recv(&RecvWr::new(n, &[sge(&target, 0, 64)]));
        a.send(&SendWr::send(n, &[sge(&source, 0, 8)]));
        assert_eq!((a.send_cq.ends(), b.recv_cq.ends()), (vec![(n, 0)], vec![(n, 0)]));
        assert_eq!(target.get(0, 8), n.to_le_bytes());
    }
}

#[test]
fn reset_out_of_err_begins_a_new_life() {
    let (a, b) = pair(Layout::Ranges);
    for _ in 0..5 {
        a.send(&SendWr::send(1, &[(1, 1, 1)]));
        assert_eq!(a.send_cq.ends(), [(1, PVRDMA_WC_LOC_PROT_ERR)]);
        assert_eq!(a.query().qp_state, PVRDMA_QPS_ERR);
        a.reset();
        b.reset();
        assert_eq!(a.query().qp_state, PVRDMA_QPS_RESET);
        connect(&a, &b, &Path::default());
        b.recv(&RecvWr::new(2, &[]));
        a.send(&SendWr::send(2, &[]));
        assert_eq!((a.send_cq.ends(), b.recv_cq.ends()), (vec![(2, 0)], vec![(2, 0)]));
    }
}

#[test]
fn destroy_leaves_no_completion_behind() {
    for err_first in [false, true] {
        let (a, b) = pair(Layout::Pdir);
        for n in 0..8 {
            a.send(&SendWr::send(n, &[]));
            a.recv(&RecvWr::new(n, &[]));
        }
        if err_first {
            a.modify_state(PVRDMA_QPS_ERR).unwrap();
            assert_eq!(a.send_cq.drain().len() + a.recv_cq.drain().len(), 16);
        }
        a.destroy();
        let before = (a.qp.sends_out(), a.qp.recvs_out());
        // Later posts and doorbells, a peer that sends, timers that fire: nothing reaches the CQ or the rings.
        a.qp.post_send(&SendWr::send(20, &[]));
        a.qp.post_recv(&RecvWr::new(20, &[]));
        a.qp.ring_send();
        a.qp.ring_recv();
        b.send(&SendWr::send(21, &[]));
        pump(&[&*a.driver, &*b.driver]);
        assert_eq!((a.send_cq.ends(), a.recv_cq.ends()), (vec![], vec![]));
        assert_eq!((a.qp.sends_out(), a.qp.recvs_out()), (before.0 + 1, before.1 + 1));
        assert_eq!(a.driver.bell.events(), []);
        assert!(a.driver.command(Command::DestroyQp { qp: a.qp.handle }).is_err(), "once");
    }
}

#[test]
fn destroy_lets_go_of_all_memory() {
    let (a, b) = pair(Layout::Pdir);
    let target = a.region(4096);
    for n in 0..4 {
        a.send(&SendWr::send(n, &[]));
        a.recv(&RecvWr::new(n, &[sge(&target, 0, 64)]));
    }
    a.destroy();
    a.driver.dereg(&target);
    for cq in [&a.send_cq, &a.recv_cq] {
        a.driver.command(Command::DestroyCq { cq: cq.handle }).unwrap();
    }
    let blocks = [&a.qp.block, &a.send_cq.block, &a.recv_cq.block];
    for page in blocks.into_iter().flat_map(|block| &block.pages).chain([&target.page_of(0)]) {
        a.driver.ram.watch(*page, 4096);
    }
    a.qp.ring_send();
    a.qp.ring_recv();
    a.send_cq.ring(PVRDMA_UAR_CQ_ARM | PVRDMA_UAR_CQ_POLL);
    b.send(&SendWr::send(1, &[]));
    b.send(&SendWr::write(2, &[], &target, 0));
    pump(&[&*a.driver, &*b.driver]);
    assert_eq!(a.driver.ram.touched(), 0);
}

#[test]
fn a_peers_error_does_not_reach_across() {
    let (a, b) = pair(Layout::Ranges);
    for n in 0..3 {
        b.recv(&RecvWr::new(n, &[]));
    }
    a.modify_state(PVRDMA_QPS_ERR).unwrap();
    pump(&[&*a.driver, &*b.driver]);
    assert_eq!(b.query().qp_state, PVRDMA_QPS_RTS);
    assert_eq!(b.recv_cq.ends(), [], "it waits; nobody told it");
}
