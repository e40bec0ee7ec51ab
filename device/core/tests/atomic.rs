//! Atomic operations: what they do and return, what they are refused for, and that one whose answer was lost is not
//! done twice.

use pvrdma_device::interrupt::AsyncEvent;
use pvrdma_device::testing::driver::{ALL_ACCESS, Driver, LAYOUTS, Layout, Region};
use pvrdma_device::testing::end::{End, Path, connect, pump};
use pvrdma_device::testing::queue::{QpSize, SendWr, sge};
use pvrdma_device::testing::wire::{Net, Wire};
use pvrdma_device::transport::Answer;
use pvrdma_device::transport::fabric::Fabric;
use pvrdma_ffi::dev_api::*;
use pvrdma_ffi::uapi::vmw_pvrdma::*;
use std::sync::Arc;

struct Bench {
    a: End,
    b: End,
    local: Region,
    remote: Region,
}

fn bench_with(layout: Layout, path: &Path) -> Bench {
    let fabric = Fabric::new();
    let [a, b] = [0, 1].map(|index| End::new(&Arc::new(Driver::new(&fabric, index, layout)), QpSize::wr(64)));
    connect(&a, &b, path);
    let (local, remote) = (a.region(8192), b.region(8192));
    Bench { a, b, local, remote }
}

fn word(region: &Region, offset: u64) -> u64 {
    u64::from_le_bytes(region.get(offset, 8).try_into().unwrap())
}

fn set(region: &Region, offset: u64, value: u64) {
    region.set(offset, &value.to_le_bytes());
}

#[test]
fn compare_and_swap_swaps_what_is_equal_and_returns_what_was_there() {
    for layout in LAYOUTS {
        let bench = bench_with(layout, &Path::default());
        for (n, offset) in [0, 8, 4088, 4096, 8184].into_iter().enumerate() {
            for (old, compare, swap, after) in [
                (5, 5, 9, 9),
                (5, 6, 9, 5),
                (u64::MAX, u64::MAX, 0, 0),
                (0x0123_4567_89ab_cdef, 0x0123_4567_89ab_cdee, 1, 0x0123_4567_89ab_cdef),
            ] {
                set(&bench.remote, offset, old);
                bench.local.set(16, &[0xee; 32]);
                bench.a.send(&SendWr::cas(n as u64, sge(&bench.local, 24, 8), &bench.remote, offset, compare, swap));
                let wc = bench.a.send_cq.poll().expect("a completion");
                assert_eq!((wc.wr_id, wc.status, wc.opcode, wc.byte_len), (n as u64, 0, PVRDMA_WC_COMP_SWAP, 8));
                assert_eq!(word(&bench.remote, offset), after);
                assert_eq!(word(&bench.local, 24), old);
                assert_eq!((bench.local.get(16, 8), bench.local.get(32, 8)), (vec![0xee; 8], vec![0xee; 8]));
            }
        }
    }
}

#[test]
fn fetch_and_add_wraps_and_adds_up() {
    let bench = bench_with(Layout::Pdir, &Path::default());
    set(&bench.remote, 64, u64::MAX - 2);
    let mut before = u64::MAX - 2;
    for add in [1, 1, 1, 5, u64::MAX, 1 << 63] {
        bench.a.send(&SendWr::fetch_add(1, sge(&bench.local, 0, 8), &bench.remote, 64, add));
        let wc = bench.a.send_cq.poll().expect("a completion");
        assert_eq!((wc.status, wc.opcode), (0, PVRDMA_WC_FETCH_ADD));
        assert_eq!(word(&bench.local, 0), before);
        before = before.wrapping_add(add);
        assert_eq!(word(&bench.remote, 64), before);
    }
}

#[test]
fn the_result_must_have_a_place_of_eight_bytes() {
    for (sges, status) in [
        (vec![], PVRDMA_WC_LOC_LEN_ERR),
        (vec![7], PVRDMA_WC_LOC_LEN_ERR),
        (vec![16], PVRDMA_WC_LOC_LEN_ERR),
        (vec![4, 4], PVRDMA_WC_SUCCESS),
    ] {
        let bench = bench_with(Layout::Pdir, &Path::default());
        set(&bench.remote, 0, 0x1122_3344_5566_7788);
        let mut wr = SendWr::fetch_add(1, sge(&bench.local, 0, 8), &bench.remote, 0, 1);
        wr.sges = sges.iter().enumerate().map(|(n, len)| sge(&bench.local, n as u64 * 100, *len)).collect();
        bench.a.send(&wr);
        assert_eq!(bench.a.send_cq.ends(), [(1, status)], "{sges:?}");
        if status == 0 {
            assert_eq!(
                (bench.local.get(0, 4), bench.local.get(100, 4)),
                (vec![0x88, 0x77, 0x66, 0x55], vec![0x44, 0x33, 0x22, 0x11])
            );
        }
        assert_eq!(word(&bench.remote, 0), 0x1122_3344_5566_7788 + u64::from(status == 0), "{sges:?}");
    }
}

#[test]
fn what_is_not_aligned_or_not_allowed_is_refused_and_nothing_changes() {
    type Spoil = fn(&Bench) -> SendWr;
    let good = |bench: &Bench| SendWr::fetch_add(1, sge(&bench.local, 0, 8), &bench.remote, 64, 1);
    let invalid = (PVRDMA_WC_REM_INV_REQ_ERR, PVRDMA_EVENT_QP_REQ_ERR);
    let access = (PVRDMA_WC_REM_ACCESS_ERR, PVRDMA_EVENT_QP_ACCESS_ERR);
    let cases: [(&str, (u32, u32), Spoil); 6] = [
        ("4 bytes off", invalid, |bench| SendWr::fetch_add(1, sge(&bench.local, 0, 8), &bench.remote, 68, 1)),
        ("1 byte off", invalid, |bench| {
            SendWr::cas(1, sge(&bench.local, 0, 8), &bench.remote, 65, 0x5555_5555_5555_5555, 1)
        }),
        ("no such key", access, |bench| {
            let wr = SendWr::fetch_add(1, sge(&bench.local, 0, 8), &bench.remote, 64, 1);
            wr.at(bench.remote.start + 64, bench.remote.key ^ 1)
        }),
        ("past the end", access, |bench| SendWr::fetch_add(1, sge(&bench.local, 0, 8), &bench.remote, 8192, 1)),
        ("a region without the right", access, |bench| {
            let rights = ALL_ACCESS & !PVRDMA_ACCESS_REMOTE_ATOMIC;
            let region = bench.b.driver.try_region(bench.b.pd, 4096, 0, rights).unwrap();
            SendWr::fetch_add(1, sge(&bench.local, 0, 8), &region, 64, 1)
        }),
        ("address 0", access, |bench| {
            SendWr::fetch_add(1, sge(&bench.local, 0, 8), &bench.remote, 64, 1).at(0, bench.remote.key)
        }),
    ];
    for (what, (status, event), spoil) in cases {
        let bench = bench_with(Layout::Pdir, &Path::default());
        bench.remote.set(0, &[0x55; 8192]);
        bench.a.send(&good(&bench));
        assert_eq!(bench.a.send_cq.ends(), [(1, 0)]);
        let before = bench.remote.get(0, 8192);
        bench.a.send(&SendWr { wr_id: 2, ..spoil(&bench) });
        pump(&[&bench.a.driver, &bench.b.driver]);
        assert_eq!(bench.a.send_cq.ends(), [(2, status)], "{what}");
        let events: Vec<_> = bench.b.driver.bell.events().into_iter().map(AsyncEvent::to_eqe).collect();
        assert_eq!(events, [(event, bench.b.qp.handle.0)], "{what}");
        assert!(bench.remote.get(0, 8192) == before, "{what}");
        assert_eq!(bench.b.query().qp_state, PVRDMA_QPS_ERR, "{what}");
    }
    // The QP's own right.
    let path = Path { access: ALL_ACCESS & !PVRDMA_ACCESS_REMOTE_ATOMIC, ..Path::default() };
    let bench = bench_with(Layout::Pdir, &path);
    bench.a.send(&good(&bench));
    assert_eq!(bench.a.send_cq.ends(), [(1, PVRDMA_WC_REM_ACCESS_ERR)]);
}

#[test]
fn neither_side_does_what_its_limit_forbids() {
    let bench = bench_with(Layout::Pdir, &Path { max_rd_atomic: 0, ..Path::default() });
    bench.a.send(&SendWr::fetch_add(1, sge(&bench.local, 0, 8), &bench.remote, 0, 1));
    assert_eq!(bench.a.send_cq.ends(), [(1, PVRDMA_WC_LOC_QP_OP_ERR)]);
    // Only the responder says 0.
    let fabric = Fabric::new();
    let [a, b] = [0, 1].map(|index| End::new(&Arc::new(Driver::new(&fabric, index, Layout::Pdir)), QpSize::wr(4)));
    a.bring_up(b.endpoint(), &Path::default());
    b.bring_up(a.endpoint(), &Path { max_rd_atomic: 0, ..Path::default() });
    let (local, remote) = (a.region(64), b.region(64));
    a.send(&SendWr::read(1, &[sge(&local, 0, 8)], &remote, 0));
    pump(&[&a.driver, &b.driver]);
    assert_eq!(a.send_cq.ends(), [(1, PVRDMA_WC_REM_INV_REQ_ERR)]);
    assert_eq!(b.driver.bell.events(), [AsyncEvent::QpReqErr(b.qp.handle)]);
}

#[test]
fn an_atomic_whose_answer_was_lost_is_answered_again_and_not_done_again() {
    let net = Net::default();
    let [(da, wire), (db, _)] = [0, 1].map(|index| Wire::guest(&net, index, Layout::Pdir));
    let [a, b] = [&da, &db].map(|driver| End::new(driver, QpSize::wr(64)));
    connect(&a, &b, &Path { timeout: 8, retry_cnt: 7, max_rd_atomic: 16, ..Path::default() });
    let (local, remote) = (a.region(4096), b.region(4096));
    for n in 0..20 {
        a.send(&SendWr::fetch_add(n, sge(&local, n * 8, 8), &remote, 0, 1));
    }
    assert_eq!(wire.flights(), 16, "no more than max_rd_atomic at a time");
    // All are done at the other end; every answer is lost.
    for n in 0..16 {
        assert_eq!(wire.deliver(n), Answer::Ack);
    }
    (0..16).for_each(|_| wire.lose(0));
    let driver = [&*da];
    let again = || wire.flights() > 0;
    assert!(pvrdma_device::testing::end::pump_until(&driver, std::time::Duration::from_secs(20), again));
    wire.run();
    pump(&[&da, &db]);
    wire.run();
    assert_eq!(a.send_cq.ends(), (0..20).map(|n| (n, 0)).collect::<Vec<_>>());
    assert_eq!(word(&remote, 0), 20, "each was done once");
    let answers: Vec<_> = (0..20).map(|n| word(&local, n * 8)).collect();
    assert_eq!(answers, (0..20).collect::<Vec<_>>(), "and each got what it found");
}

#[test]
fn many_who_add_to_one_word_lose_nothing() {
    let fabric = Fabric::new();
    let target = Arc::new(Driver::new(&fabric, 0, Layout::Pdir));
    let ctx = target.context();
    let pd = target.pd(ctx);
    let remote = target.region(pd, 4096);
    std::thread::scope(|scope| {
        for index in 1..5 {
            let (fabric, target, remote) = (&fabric, &target, &remote);
            scope.spawn(move || {
                let a = End::new(&Arc::new(Driver::new(fabric, index, Layout::Pdir)), QpSize::wr(4));
                let cq = target.cq(ctx, 16);
                let b = End::with(target, pd, cq.clone(), cq, QpSize::wr(4));
                connect(&a, &b, &Path::default());
                let local = a.region(64);
                let mut last = None;
                for n in 0..2000 {
                    a.send(&SendWr::fetch_add(n, sge(&local, 0, 8), remote, 8, 1));
                    assert_eq!(a.send_cq.ends(), [(n, 0)]);
                    let found = word(&local, 0);
                    assert!(last < Some(found), "{found} after {last:?}");
                    last = Some(found);
                }
            });
        }
    });
    assert_eq!(word(&remote, 8), 4 * 2000);
}
