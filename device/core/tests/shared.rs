//! Shared receive queues: many QPs take from one ring, its owner is told when it runs low, and a QP that ends leaves
//! the others theirs.

use pvrdma_device::command::{Command, Response};
use pvrdma_device::handle::CtxHandle;
use pvrdma_device::interrupt::AsyncEvent;
use pvrdma_device::memory::DmaAddr;
use pvrdma_device::testing::driver::{Driver, LAYOUTS, Layout, PAGE, Region};
use pvrdma_device::testing::end::{End, Path, connect, pump};
use pvrdma_device::testing::queue::{QpSize, RecvWr, SendWr, SrqRing, sge};
use pvrdma_device::transport::fabric::Fabric;
use pvrdma_ffi::dev_api::*;
use pvrdma_ffi::uapi::vmw_pvrdma::*;
use std::sync::Arc;

const FLUSH: u32 = PVRDMA_WC_WR_FLUSH_ERR;

/// Senders on one guest, each connected to a receiver on the other; the receivers share `srq`.
struct Bench {
    from: Vec<End>,
    to: Vec<End>,
    srq: Arc<SrqRing>,
    inbox: Region,
}

fn bench(layout: Layout, depth: u32, limit: u32) -> Bench {
    let fabric = Fabric::new();
    let [a, b] = [0, 1].map(|index| Arc::new(Driver::new(&fabric, index, layout)));
    let ctx = b.context();
    let pd = b.pd(ctx);
    let srq = b.srq(ctx, pd, (depth, 3), limit);
    let from: Vec<_> = (0..3).map(|_| End::new(&a, QpSize::wr(16))).collect();
    let to: Vec<_> =
        (0..3).map(|_| End::with_srq(&b, pd, (b.cq(ctx, 64), b.cq(ctx, 64)), &srq, QpSize::wr(8))).collect();
    let path = Path { rnr_retry: 0, ..Path::default() };
    from.iter().zip(&to).for_each(|(from, to)| connect(from, to, &path));
    Bench { from, to, srq, inbox: b.region(pd, 16384) }
}

impl Bench {
    fn driver(&self) -> &Driver {
        &self.to[0].driver
    }

    fn pump(&self) {
        pump(&[&self.from[0].driver, self.driver()]);
    }

    fn limit(&self) -> u32 {
        match self.driver().command(Command::QuerySrq { srq: self.srq.handle }) {
            Ok(Response::QuerySrq { srq_limit, .. }) => srq_limit,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn receives_go_to_whoever_needs_one_in_order() {
    for layout in LAYOUTS {
        for depth in [1, 2, 8, 64] {
            let bench = bench(layout, depth, 0);
            let messages: Vec<_> = bench.from.iter().map(|end| end.region(64)).collect();
            for n in 0..200u64 {
                let which = (n % 3) as usize;
                let place = n % 16 * 1024;
                assert!(
                    bench
                        .srq
                        .post_recv(&RecvWr::new(n, &[sge(&bench.inbox, place, 8), sge(&bench.inbox, place + 500, 8)]))
                );
                let message = &messages[which];
                message.set(0, &n.to_le_bytes());
                message.set(8, &(!n).to_le_bytes());
                bench.from[which].send(&SendWr::send(n, &[sge(message, 0, 16)]));
                assert_eq!(bench.from[which].send_cq.ends(), [(n, 0)]);
                let wc = bench.to[which].recv_cq.poll().expect("a receive");
                assert_eq!((wc.wr_id, wc.status, wc.byte_len), (n, 0, 16), "{layout:?}, {depth}");
                assert_eq!(wc.qp, u64::from(bench.to[which].qp.handle.0), "the QP that it came by");
                assert_eq!(bench.inbox.get(place, 8), n.to_le_bytes());
                assert_eq!(bench.inbox.get(place + 500, 8), (!n).to_le_bytes());
                assert_eq!(bench.srq.recvs_out(), 0);
            }
        }
    }
}

#[test]
fn an_empty_srq_is_not_ready() {
    let bench = bench(Layout::Pdir, 4, 0);
    bench.from[0].send(&SendWr::send(1, &[]));
    bench.pump();
    assert_eq!(bench.from[0].send_cq.ends(), [(1, PVRDMA_WC_RNR_RETRY_EXC_ERR)]);
    assert_eq!(bench.to[0].query().qp_state, PVRDMA_QPS_RTS);
}

#[test]
fn a_write_with_immediate_data_spends_a_receive_and_a_plain_one_does_not() {
    let bench = bench(Layout::Pdir, 4, 0);
    bench.srq.post_recv(&RecvWr::new(7, &[]));
    bench.from[1].send(&SendWr::write(1, &[], &bench.inbox, 0));
    assert_eq!(bench.srq.recvs_out(), 1);
    bench.from[1].send(&SendWr::write(2, &[], &bench.inbox, 0).imm(9));
    let wc = bench.to[1].recv_cq.poll().expect("a receive");
    assert_eq!((wc.wr_id, wc.opcode, wc.imm_data), (7, PVRDMA_WC_RECV_RDMA_WITH_IMM, 9));
    assert_eq!(bench.srq.recvs_out(), 0);
}

#[test]
fn the_limit_is_told_once_each_time_it_is_set() {
    let bench = bench(Layout::Pdir, 8, 3);
    let reached = AsyncEvent::SrqLimitReached(bench.srq.handle);
    let mut expected = Vec::new();
    for round in 0..3 {
        (0..6).for_each(|n| assert!(bench.srq.post_recv(&RecvWr::new(n, &[]))));
        for n in 0..6 {
            bench.from[0].send(&SendWr::send(n, &[]));
            // Five, four, three are left, then two: fewer than three.
            if n == 3 && round != 1 {
                expected.push(reached);
            }
            assert_eq!(bench.driver().bell.events(), expected, "round {round}, message {n}");
            assert_eq!(bench.limit(), if round == 1 || n >= 3 { 0 } else { 3 });
        }
        if round == 1 {
            let set = Command::ModifySrq { srq: bench.srq.handle, attr_mask: PVRDMA_SRQ_LIMIT, srq_limit: 3 };
            bench.driver().command(set).unwrap();
        }
        bench.from[0].send_cq.drain();
        bench.to[0].recv_cq.drain();
    }
}

#[test]
fn a_qp_that_ends_leaves_the_others_their_receives() {
    let bench = bench(Layout::Pdir, 8, 0);
    (0..4).for_each(|n| assert!(bench.srq.post_recv(&RecvWr::new(n, &[]))));
    bench.to[0].modify_state(PVRDMA_QPS_ERR).unwrap();
    bench.pump();
    assert_eq!(bench.driver().bell.events(), [AsyncEvent::QpLastWqeReached(bench.to[0].qp.handle)]);
    assert_eq!((bench.to[0].recv_cq.ends(), bench.srq.recvs_out()), (vec![], 4), "nothing is flushed");
    // Once in a life, however often it is looked at.
    bench.to[0].qp.ring_recv();
    bench.to[0].modify_state(PVRDMA_QPS_ERR).unwrap();
    bench.pump();
    assert_eq!(bench.driver().bell.events().len(), 1);
    bench.from[1].send(&SendWr::send(1, &[]));
    assert_eq!(bench.to[1].recv_cq.ends(), [(0, 0)]);
    bench.to[0].destroy();
    bench.from[2].send(&SendWr::send(1, &[]));
    assert_eq!(bench.to[2].recv_cq.ends(), [(1, 0)]);
}

#[test]
fn a_receive_that_fails_ends_only_the_qp_it_met() {
    let bench = bench(Layout::Pdir, 8, 0);
    bench.srq.post_recv(&RecvWr::new(0, &[(1, 8, 1)]));
    bench.srq.post_recv(&RecvWr::new(1, &[sge(&bench.inbox, 0, 4)]));
    bench.srq.post_recv(&RecvWr::new(2, &[]).num_sge(4));
    bench.srq.post_recv(&RecvWr::new(3, &[]));
    let message = [0, 1, 2].map(|n: usize| bench.from[n].region(64));
    for (n, sender, receiver) in [
        (0, PVRDMA_WC_REM_OP_ERR, PVRDMA_WC_LOC_PROT_ERR),
        (1, PVRDMA_WC_REM_INV_REQ_ERR, PVRDMA_WC_LOC_LEN_ERR),
        (2, PVRDMA_WC_REM_OP_ERR, PVRDMA_WC_LOC_QP_OP_ERR),
    ] {
        bench.from[n].send(&SendWr::send(9, &[sge(&message[n], 0, 8)]));
        bench.pump();
        assert_eq!(bench.from[n].send_cq.ends(), [(9, sender)], "receive {n}");
        assert_eq!(bench.to[n].recv_cq.ends(), [(n as u64, receiver)]);
        assert_eq!(bench.to[n].query().qp_state, PVRDMA_QPS_ERR);
        assert!(bench.to[n + 1..].iter().all(|end| end.query().qp_state == PVRDMA_QPS_RTS));
    }
    assert_eq!(bench.srq.recvs_out(), 1);
    let told = bench.to.iter().map(|end| AsyncEvent::QpLastWqeReached(end.qp.handle)).collect::<Vec<_>>();
    assert_eq!(bench.driver().bell.events(), told);
}

#[test]
fn a_wild_srq_counter_is_told_once_and_ends_the_qps_that_meet_it() {
    for wild in [17, 255, 0x8000_0000, u32::MAX] {
        let bench = bench(Layout::Pdir, 8, 0);
        bench.srq.force_tail(wild);
        for n in 0..2 {
            bench.from[n].send(&SendWr::send(1, &[]));
        }
        bench.pump();
        let events = bench.driver().bell.events();
        let srq_errors = events.iter().filter(|event| **event == AsyncEvent::SrqErr(bench.srq.handle)).count();
        assert_eq!(srq_errors, 1, "{events:?}");
        for n in 0..2 {
            assert_eq!(bench.from[n].send_cq.ends(), [(1, PVRDMA_WC_REM_OP_ERR)]);
            assert_eq!(bench.to[n].query().qp_state, PVRDMA_QPS_ERR);
        }
        assert_eq!(bench.to[2].query().qp_state, PVRDMA_QPS_RTS, "who did not look is not told");
        bench.from[2].send(&SendWr::write(1, &[], &bench.inbox, 0));
        assert_eq!(bench.from[2].send_cq.ends(), [(1, 0)]);
    }
    // Memory that is gone is as bad.
    for page in 0..2 {
        let bench = bench(Layout::Pdir, 64, 0);
        bench.srq.post_recv(&RecvWr::new(1, &[]));
        bench.driver().ram.unmap(bench.srq.block.pages[page], PAGE);
        bench.from[0].send(&SendWr::send(1, &[]));
        bench.pump();
        assert_eq!(bench.from[0].send_cq.ends(), [(1, PVRDMA_WC_REM_OP_ERR)], "page {page}");
        assert!(bench.driver().bell.events().contains(&AsyncEvent::SrqErr(bench.srq.handle)));
    }
}

#[test]
fn an_srq_belongs_to_its_context_and_is_in_use() {
    let bench = bench(Layout::Pdir, 8, 0);
    let driver = bench.driver();
    assert_eq!(driver.command(Command::DestroySrq { srq: bench.srq.handle }).unwrap_err().errno(), 16);
    let other = driver.context();
    let (pd, cq) = (driver.pd(other), driver.cq(other, 16));
    let (create, _) = driver.qp_command(pd, cq.handle, cq.handle, QpSize::wr(4));
    let Command::CreateQp(mut create) = create else { unreachable!() };
    create.srq = Some(bench.srq.handle);
    assert_eq!(driver.command(Command::CreateQp(create)).unwrap_err().errno(), 22, "another context's");
    bench.to.iter().for_each(End::destroy);
    driver.ram.watch(DmaAddr(bench.srq.block.pages[0].0), PAGE);
    driver.command(Command::DestroySrq { srq: bench.srq.handle }).unwrap();
    bench.from[0].send(&SendWr::send(1, &[]));
    bench.pump();
    assert_eq!(driver.ram.touched(), 0);
    // One that is left behind goes with its context.
    let ctx = driver.context();
    let left = driver.srq(ctx, driver.pd(ctx), (8, 1), 0);
    driver.command(Command::DestroyUc { ctx: CtxHandle(ctx.0) }).unwrap();
    assert_eq!(driver.command(Command::QuerySrq { srq: left.handle }).unwrap_err().errno(), 22);
}

#[test]
fn reset_gives_a_qp_a_new_life_on_the_same_srq() {
    let bench = bench(Layout::Pdir, 8, 0);
    for n in 0..5 {
        bench.to[0].modify_state(PVRDMA_QPS_ERR).unwrap();
        bench.pump();
        assert_eq!(bench.driver().bell.events().len(), n + 1, "told in each life");
        bench.to[0].reset();
        bench.from[0].reset();
        connect(&bench.from[0], &bench.to[0], &Path::default());
        bench.srq.post_recv(&RecvWr::new(n as u64, &[]));
        bench.from[0].send(&SendWr::send(1, &[]));
        assert_eq!((bench.from[0].send_cq.ends(), bench.to[0].recv_cq.ends()), (vec![(1, 0)], vec![(n as u64, 0)]));
    }
    bench.srq.post_recv(&RecvWr::new(5, &[sge(&bench.inbox, 0, 1)]));
    bench.to[0].modify_state(PVRDMA_QPS_ERR).unwrap();
    assert_eq!(bench.to[0].recv_cq.ends(), [], "{FLUSH} is for receives of one's own");
}

#[test]
fn a_receive_that_was_taken_for_nothing_is_not_lost() {
    // A message whose payload turns out to be gone at the sender has found its receive before that is known.
    for destroy in [false, true] {
        let bench = bench(Layout::Pdir, 8, 0);
        (0..3).for_each(|n| assert!(bench.srq.post_recv(&RecvWr::new(n, &[sge(&bench.inbox, 0, 64)]))));
        let gone = bench.from[0].region(4096);
        bench.from[0].driver.ram.unmap(gone.page_of(0), PAGE);
        bench.from[0].send(&SendWr::send(1, &[sge(&gone, 0, 8)]));
        bench.pump();
        assert_eq!(bench.from[0].send_cq.ends(), [(1, PVRDMA_WC_LOC_PROT_ERR)]);
        assert_eq!(bench.to[0].query().qp_state, PVRDMA_QPS_RTS, "not the receiver's fault");
        match destroy {
            true => bench.to[0].destroy(),
            false => bench.to[0].reset(),
        }
        let mut seen = Vec::new();
        for n in [1, 2, 1] {
            bench.from[n].send(&SendWr::send(1, &[]));
            seen.extend(bench.to[n].recv_cq.ends());
        }
        seen.sort_unstable();
        assert_eq!(seen, [(0, 0), (1, 0), (2, 0)], "destroyed: {destroy}");
    }
}
