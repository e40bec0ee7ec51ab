//! The table of errors: what the requester hears, what the responder hears, in which state either ends, and that the
//! work behind the failed request is flushed in order.

use pvrdma_device::command::Command;
use pvrdma_device::interrupt::AsyncEvent;
use pvrdma_device::testing::cut::Cut;
use pvrdma_device::testing::driver::{ALL_ACCESS, Driver, LAYOUTS, Layout, Region};
use pvrdma_device::testing::end::{End, Path, connect, pump};
use pvrdma_device::testing::queue::{QpSize, RecvWr, SendWr, sge};
use pvrdma_device::transport::fabric::Fabric;
use pvrdma_ffi::dev_api::*;
use pvrdma_ffi::uapi::vmw_pvrdma::*;
use std::sync::Arc;

const FLUSH: u32 = PVRDMA_WC_WR_FLUSH_ERR;

struct Bench {
    a: End,
    b: End,
    local: Region,
    remote: Region,
}

fn bench_with(layout: Layout, path: &Path) -> Bench {
    let fabric = Fabric::new();
    let [a, b] = [0, 1].map(|index| {
        let size = QpSize { send_sge: 3, recv_sge: 3, ..QpSize::default() };
        End::new(&Arc::new(Driver::new(&fabric, index, layout)), size)
    });
    connect(&a, &b, path);
    let (local, remote) = (a.region(8192), b.region(8192));
    Bench { a, b, local, remote }
}

fn bench() -> Bench {
    bench_with(Layout::Pdir, &Path::default())
}

/// Cookie and status of each completion, in order.
type Ended = Vec<(u64, u32)>;

impl Bench {
    /// Posts one good request, then `bad`, then three more; rings once. Two receives wait at the requester too.
    fn fail(&self, bad: SendWr) -> (Ended, Ended) {
        for n in [50, 51] {
            self.a.qp.post_recv(&RecvWr::new(n, &[]));
        }
        let fine = |n| SendWr::write(n, &[sge(&self.local, 0, 8)], &self.remote, 0);
        for wr in [fine(1), SendWr { wr_id: 2, ..bad }, fine(3), fine(4).flags(0), SendWr::send(5, &[])] {
            assert!(self.a.qp.post_send(&wr));
        }
        self.a.qp.ring_send();
        pump(&[&*self.a.driver, &*self.b.driver]);
        (self.a.send_cq.ends(), self.a.recv_cq.ends())
    }

    fn states(&self) -> (u32, u32) {
        (self.a.query().qp_state, self.b.query().qp_state)
    }

    /// `bad` fails with `status` at the requester; the responder stays as it was.
    fn requester_fails(&self, bad: SendWr, status: u32) {
        let text = format!("{bad:?}");
        let (sends, recvs) = self.fail(bad);
        assert_eq!(sends, [(1, 0), (2, status), (3, FLUSH), (4, FLUSH), (5, FLUSH)], "{text}");
        assert_eq!(recvs, [(50, FLUSH), (51, FLUSH)], "{text}");
        assert_eq!(self.states(), (PVRDMA_QPS_ERR, PVRDMA_QPS_RTS), "{text}");
        assert_eq!(self.b.recv_cq.ends(), [], "{text}");
        assert_eq!(self.b.driver.bell.events(), [], "{text}");
    }

    /// `bad` fails with `status` at the requester and ends the responder's QP.
    fn both_fail(&self, bad: SendWr, status: u32, receive: &[(u64, u32)], events: &[AsyncEvent]) {
        let text = format!("{bad:?}");
        let (sends, recvs) = self.fail(bad);
        assert_eq!(sends, [(1, 0), (2, status), (3, FLUSH), (4, FLUSH), (5, FLUSH)], "{text}");
        assert_eq!(recvs, [(50, FLUSH), (51, FLUSH)], "{text}");
        assert_eq!(self.states(), (PVRDMA_QPS_ERR, PVRDMA_QPS_ERR), "{text}");
        assert_eq!(self.b.recv_cq.ends(), receive, "{text}");
        assert_eq!(self.b.driver.bell.events(), events, "{text}");
    }
}

#[test]
fn a_bad_lkey_is_a_local_protection_error() {
    let other_pd = |bench: &Bench| bench.a.driver.region(bench.a.driver.pd(bench.a.ctx), 4096);
    let read_only = |bench: &Bench| bench.a.driver.try_region(bench.a.pd, 4096, 0, 0).unwrap();
    type Make = fn(&Bench) -> (u64, u32, u32);
    let cases: [(&str, Make); 8] = [
        ("no such key", |bench| (bench.local.start, 8, bench.local.key ^ 0x55)),
        ("stale count", |bench| (bench.local.start, 8, bench.local.key.wrapping_add(1))),
        ("key 0", |bench| (bench.local.start, 8, 0)),
        ("key of all ones", |bench| (bench.local.start, 8, u32::MAX)),
        ("one past the end", |bench| sge(&bench.local, 8192 - 7, 8)),
        ("one before the start", |bench| (bench.local.start - 1, 8, bench.local.key)),
        ("sum overflows", |bench| (u64::MAX - 3, 8, bench.local.key)),
        ("far past the end", |bench| (bench.local.start, 1 << 29, bench.local.key)),
    ];
    for (what, make) in cases {
        println!("{what}");
        let bench = bench();
        let bad = make(&bench);
        bench.requester_fails(SendWr::write(0, &[bad], &bench.remote, 0), PVRDMA_WC_LOC_PROT_ERR);
        let again = self::bench();
        let bad = make(&again);
        again.requester_fails(SendWr::send(0, &[sge(&again.local, 0, 1), bad]), PVRDMA_WC_LOC_PROT_ERR);
    }
    let bench = self::bench();
    let region = other_pd(&bench);
    bench.requester_fails(SendWr::send(0, &[sge(&region, 0, 8)]), PVRDMA_WC_LOC_PROT_ERR);
    let bench = self::bench();
    let region = read_only(&bench);
    bench.requester_fails(SendWr::read(0, &[sge(&region, 0, 8)], &bench.remote, 0), PVRDMA_WC_LOC_PROT_ERR);
    let bench = self::bench();
    let region = read_only(&bench);
    bench.a.send(&SendWr::write(9, &[sge(&region, 0, 8)], &bench.remote, 0));
    assert_eq!(bench.a.send_cq.ends(), [(9, 0)], "to read it is always allowed");
}

#[test]
fn a_deregistered_key_is_gone() {
    let bench = bench();
    let old = bench.a.region(64);
    bench.a.driver.dereg(&old);
    let new = bench.a.region(64);
    assert_ne!(old.key, new.key, "a new region does not get the key of an old one at once");
    bench.requester_fails(SendWr::write(0, &[sge(&old, 0, 8)], &bench.remote, 0), PVRDMA_WC_LOC_PROT_ERR);
}

#[test]
fn a_zero_length_sge_needs_no_key() {
    let bench = bench();
    bench.a.send(&SendWr::write(1, &[(1, 0, 2), sge(&bench.local, 0, 4)], &bench.remote, 0));
    assert_eq!(bench.a.send_cq.ends(), [(1, 0)]);
}

#[test]
fn a_bad_rkey_is_a_remote_access_error_and_an_event_at_the_target() {
    type Make = fn(&Bench) -> (u64, u32, u32);
    let cases: [(&str, Make); 9] = [
        ("no such key", |bench| (bench.remote.start, bench.remote.key ^ 0x100, 8)),
        ("stale count", |bench| (bench.remote.start, bench.remote.key.wrapping_add(1), 8)),
        ("key 0", |bench| (bench.remote.start, 0, 8)),
        ("one past the end", |bench| (bench.remote.start + 8192 - 7, bench.remote.key, 8)),
        ("one before the start", |bench| (bench.remote.start - 1, bench.remote.key, 8)),
        ("sum overflows", |bench| (u64::MAX - 3, bench.remote.key, 8)),
        ("the requester's own key", |bench| (bench.local.start, bench.local.key ^ 0xff, 8)),
        ("no right to write or read", |bench| {
            let region = bench.b.driver.try_region(bench.b.pd, 64, 0, PVRDMA_ACCESS_LOCAL_WRITE).unwrap();
            (region.start, region.key, 8)
        }),
        ("other PD", |bench| {
            let region = bench.b.driver.region(bench.b.driver.pd(bench.b.ctx), 64);
            (region.start, region.key, 8)
        }),
    ];
    for (what, make) in cases {
        for opcode in [PVRDMA_WR_RDMA_WRITE, PVRDMA_WR_RDMA_READ, PVRDMA_WR_RDMA_WRITE_WITH_IMM] {
            println!("{what}, opcode {opcode}");
            let bench = bench();
            bench.b.recv(&RecvWr::new(70, &[]));
            let (addr, rkey, len) = make(&bench);
            let bad = SendWr::write(0, &[sge(&bench.local, 0, len)], &bench.remote, 0).at(addr, rkey).opcode(opcode);
            let before = bench.remote.get(0, 8192);
            let event = [AsyncEvent::QpAccessErr(bench.b.qp.handle)];
            bench.both_fail(bad, PVRDMA_WC_REM_ACCESS_ERR, &[(70, FLUSH)], &event);
            assert_eq!(bench.remote.get(0, 8192), before, "no byte moved");
        }
    }
}

#[test]
fn the_qp_itself_must_allow_remote_access() {
    for (access, opcode, status) in [
        (PVRDMA_ACCESS_REMOTE_READ, PVRDMA_WR_RDMA_WRITE, PVRDMA_WC_REM_ACCESS_ERR),
        (PVRDMA_ACCESS_REMOTE_WRITE, PVRDMA_WR_RDMA_READ, PVRDMA_WC_REM_ACCESS_ERR),
        (PVRDMA_ACCESS_REMOTE_WRITE, PVRDMA_WR_RDMA_WRITE, PVRDMA_WC_SUCCESS),
        (PVRDMA_ACCESS_REMOTE_READ, PVRDMA_WR_RDMA_READ, PVRDMA_WC_SUCCESS),
        (0, PVRDMA_WR_RDMA_READ, PVRDMA_WC_REM_ACCESS_ERR),
    ] {
        let bench = bench_with(Layout::Ranges, &Path { access, ..Path::default() });
        let wr = SendWr::write(1, &[sge(&bench.local, 0, 8)], &bench.remote, 0).opcode(opcode);
        bench.a.send(&wr);
        pump(&[&*bench.a.driver, &*bench.b.driver]);
        assert_eq!(bench.a.send_cq.ends(), [(1, status)], "access {access:#x}, opcode {opcode}");
    }
}

#[test]
fn a_missing_receive_does_not_hide_a_bad_rkey() {
    let bench = bench();
    let bad = SendWr::write(0, &[sge(&bench.local, 0, 8)], &bench.remote, 9000).imm(1);
    let event = [AsyncEvent::QpAccessErr(bench.b.qp.handle)];
    bench.both_fail(bad, PVRDMA_WC_REM_ACCESS_ERR, &[], &event);
}

#[test]
fn a_zero_length_write_or_read_needs_no_rkey() {
    let bench = bench();
    bench.a.send(&SendWr::write(1, &[], &bench.remote, 0).at(0, 0));
    bench.a.send(&SendWr::read(2, &[], &bench.remote, 0).at(u64::MAX, 3));
    assert_eq!(bench.a.send_cq.ends(), [(1, 0), (2, 0)]);
}

#[test]
fn a_message_longer_than_its_receive_fails_on_both_sides() {
    for (receive, len) in [(0, 1), (7, 8), (4095, 4096), (0, 8192)] {
        let bench = bench();
        bench.b.recv(&RecvWr::new(70, &[sge(&bench.remote, 0, receive)]));
        bench.b.recv(&RecvWr::new(71, &[sge(&bench.remote, 0, 8192)]));
        bench.local.set(0, &[1; 8192]);
        bench.remote.set(0, &[2; 8192]);
        let bad = SendWr::send(0, &[sge(&bench.local, 0, len)]);
        let receives = [(70, PVRDMA_WC_LOC_LEN_ERR), (71, FLUSH)];
        bench.both_fail(bad, PVRDMA_WC_REM_INV_REQ_ERR, &receives, &[]);
        // `both_fail` writes 8 bytes before the message that does not fit.
        assert_eq!(bench.remote.get(0, 8), [1; 8]);
        // Nobody knows how long a message in pieces is before its last one: those that fit have moved.
        let may_move = if Cut::from_env() == Cut::Whole { 8 } else { u64::from(receive).max(8) };
        let rest = bench.remote.get(may_move, (8192 - may_move) as usize);
        assert!(rest.iter().all(|byte| *byte == 2), "no byte of the message moved");
    }
}

#[test]
fn a_receive_with_a_bad_lkey_fails_on_both_sides() {
    let bench = bench();
    bench.b.recv(&RecvWr::new(70, &[(bench.remote.start, 64, bench.remote.key ^ 1)]));
    bench.b.recv(&RecvWr::new(71, &[]));
    let receives = [(70, PVRDMA_WC_LOC_PROT_ERR), (71, FLUSH)];
    bench.both_fail(SendWr::send(0, &[sge(&bench.local, 0, 8)]), PVRDMA_WC_REM_OP_ERR, &receives, &[]);

    let bench = self::bench();
    let read_only = bench.b.driver.try_region(bench.b.pd, 64, 0, 0).unwrap();
    bench.b.recv(&RecvWr::new(70, &[sge(&read_only, 0, 64)]));
    let receives = [(70, PVRDMA_WC_LOC_PROT_ERR)];
    bench.both_fail(SendWr::send(0, &[sge(&bench.local, 0, 8)]), PVRDMA_WC_REM_OP_ERR, &receives, &[]);
}

#[test]
fn a_receive_with_too_many_sges_fails_on_both_sides() {
    for num_sge in [4, 17, 0x8000_0000, u32::MAX] {
        let bench = bench();
        bench.b.recv(&RecvWr::new(70, &[sge(&bench.remote, 0, 64)]).num_sge(num_sge));
        let receives = [(70, PVRDMA_WC_LOC_QP_OP_ERR)];
        bench.both_fail(SendWr::send(0, &[sge(&bench.local, 0, 8)]), PVRDMA_WC_REM_OP_ERR, &receives, &[]);
    }
}

#[test]
fn what_the_device_cannot_do_is_a_local_operation_error() {
    let bad = PVRDMA_WC_LOC_QP_OP_ERR;
    // LSO, RDMA_READ_WITH_INV, FAST_REG_MR (of a user), masked atomics, BIND_MW, REG_SIG_MR and what is none.
    for opcode in [7, 9, 11, 12, 13, 14, 15, 16, 17, 0x8000_0002, u32::MAX] {
        let bench = bench();
        bench.requester_fails(SendWr::write(0, &[sge(&bench.local, 0, 8)], &bench.remote, 0).opcode(opcode), bad);
    }
    for num_sge in [4, 16, 17, 0x1000_0000, 0x8000_0000, u32::MAX] {
        let bench = bench();
        bench.requester_fails(SendWr::send(0, &[sge(&bench.local, 0, 8); 3]).num_sge(num_sge), bad);
    }
    let bench = self::bench();
    let flags = PVRDMA_SEND_SIGNALED | PVRDMA_SEND_INLINE;
    bench.requester_fails(SendWr::send(0, &[sge(&bench.local, 0, 8)]).flags(flags), bad);
    let bench = bench_with(Layout::Ranges, &Path { max_rd_atomic: 0, ..Path::default() });
    bench.requester_fails(SendWr::read(0, &[sge(&bench.local, 0, 8)], &bench.remote, 0), bad);
}

#[test]
fn only_the_first_bad_request_keeps_its_own_status() {
    let bench = bench();
    for n in 0..4 {
        bench.a.qp.post_send(&SendWr::send(n, &[]).opcode(16));
    }
    bench.a.qp.post_send(&SendWr::write(4, &[(1, 1, 1)], &bench.remote, 0));
    bench.a.qp.ring_send();
    let expected = [(0, PVRDMA_WC_LOC_QP_OP_ERR), (1, FLUSH), (2, FLUSH), (3, FLUSH), (4, FLUSH)];
    assert_eq!(bench.a.send_cq.ends(), expected);
}

#[test]
fn a_message_longer_than_the_port_allows_is_a_local_length_error() {
    let bench = bench();
    // Two pieces of a region as large as the device takes; the sum is over the port's limit.
    let half = 1 << 29;
    let whole: Vec<_> = vec![(bench.local.start, half, bench.local.key); 2];
    let mut over = whole.clone();
    over.push((bench.local.start, 1, bench.local.key));
    bench.requester_fails(SendWr::write(0, &over, &bench.remote, 0), PVRDMA_WC_LOC_LEN_ERR);
    let bench = self::bench();
    bench.requester_fails(SendWr::send(0, &[(0, u32::MAX, 0); 3]), PVRDMA_WC_LOC_LEN_ERR);
}

#[test]
fn memory_that_is_gone_under_a_region_fails_the_side_it_belongs_to() {
    for layout in LAYOUTS {
        // The requester's, read by a WRITE and a SEND, written by a READ.
        for opcode in [PVRDMA_WR_RDMA_WRITE, PVRDMA_WR_RDMA_READ] {
            let bench = bench_with(layout, &Path::default());
            let gone = bench.a.region(12288);
            bench.a.driver.ram.unmap(gone.page_of(4096), 4096);
            let wr = SendWr::write(0, &[sge(&gone, 4000, 200)], &bench.remote, 0).opcode(opcode);
            bench.requester_fails(wr, PVRDMA_WC_LOC_PROT_ERR);
        }
        let bench = bench_with(layout, &Path::default());
        let gone = bench.a.region(12288);
        bench.a.driver.ram.unmap(gone.page_of(4096), 4096);
        bench.b.recv(&RecvWr::new(70, &[sge(&bench.remote, 0, 8192)]));
        bench.requester_fails(SendWr::send(0, &[sge(&gone, 4000, 200)]), PVRDMA_WC_LOC_PROT_ERR);
        assert_eq!(bench.b.qp.recvs_out(), 1, "the receive was not spent");

        // The responder's.
        for opcode in [PVRDMA_WR_RDMA_WRITE, PVRDMA_WR_RDMA_READ] {
            let bench = bench_with(layout, &Path::default());
            let gone = bench.b.region(12288);
            bench.b.driver.ram.unmap(gone.page_of(4096), 4096);
            let wr = SendWr::write(0, &[sge(&bench.local, 0, 200)], &gone, 4000).opcode(opcode);
            let event = [AsyncEvent::QpAccessErr(bench.b.qp.handle)];
            bench.both_fail(wr, PVRDMA_WC_REM_ACCESS_ERR, &[], &event);
        }
        let bench = bench_with(layout, &Path::default());
        let gone = bench.b.region(12288);
        bench.b.driver.ram.unmap(gone.page_of(4096), 4096);
        bench.b.recv(&RecvWr::new(70, &[sge(&gone, 4000, 200)]));
        let receives = [(70, PVRDMA_WC_LOC_PROT_ERR)];
        bench.both_fail(SendWr::send(0, &[sge(&bench.local, 0, 200)]), PVRDMA_WC_REM_OP_ERR, &receives, &[]);
    }
}

#[test]
fn an_address_is_judged_when_the_request_runs_not_when_it_is_registered() {
    // The stand-in registers what `munmap` takes away later; a directory may name pages that never were.
    let bench = bench_with(Layout::Ranges, &Path::default());
    let beyond = bench.a.driver.ram.len();
    let buffer = pvrdma_device::memory::Buffer::Ranges(vec![pvrdma_device::memory::Span {
        addr: pvrdma_device::memory::DmaAddr(beyond),
        len: 4096,
    }]);
    let kind = pvrdma_device::command::MrKind::User(buffer);
    let pd = bench.a.pd;
    let create = Command::CreateMr { pd, start: 0x1000, length: 4096, access_flags: ALL_ACCESS, kind };
    let Ok(pvrdma_device::command::Response::CreateMr { lkey, .. }) = bench.a.driver.command(create) else {
        panic!("CREATE_MR")
    };
    let wr = SendWr::write(0, &[(0x1000, 8, lkey.0)], &bench.remote, 0);
    bench.requester_fails(wr, PVRDMA_WC_LOC_PROT_ERR);
}

#[test]
fn an_error_on_one_qp_leaves_its_neighbour_alone() {
    let bench = bench();
    let driver = &bench.a.driver;
    let neighbour = End::with(driver, bench.a.pd, bench.a.send_cq.clone(), bench.a.recv_cq.clone(), QpSize::default());
    let peer =
        End::with(&bench.b.driver, bench.b.pd, bench.b.send_cq.clone(), bench.b.recv_cq.clone(), QpSize::default());
    connect(&neighbour, &peer, &Path::default());
    bench.a.send(&SendWr::send(1, &[(1, 1, 1)]));
    neighbour.send(&SendWr::write(2, &[sge(&bench.local, 0, 8)], &bench.remote, 0));
    assert_eq!(bench.a.send_cq.ends(), [(1, PVRDMA_WC_LOC_PROT_ERR), (2, 0)]);
}
