//! What a guest can make the device hold. The allocator of this program counts, so that it is the bytes themselves that
//! are compared with the limit, and not the device's own account of them.

use pvrdma_device::command::{Command, CommandError, MrKind, Response};
use pvrdma_device::doorbell::Doorbell;
use pvrdma_device::handle::{CtxHandle, MrHandle, QpHandle, SrqHandle};
use pvrdma_device::memory::{Buffer, DmaAddr};
use pvrdma_device::testing::driver::{ALL_ACCESS, Driver, Layout, PAGE};
use pvrdma_device::testing::end::{End, Path, connect, nowhere, pump};
use pvrdma_device::testing::queue::{QpSize, RecvWr, SendWr};
use pvrdma_device::transport::fabric::Fabric;
use std::alloc::{GlobalAlloc, Layout as Shape, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, and what is out.
struct Counting;

impl Counting {
    fn add(len: usize) {
        let live = LIVE.fetch_add(len, Ordering::Relaxed) + len;
        PEAK.fetch_max(live, Ordering::Relaxed);
    }
}

// SAFETY: every call is handed to the system's allocator as it came; the counts are beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, shape: Shape) -> *mut u8 {
        Counting::add(shape.size());
        // SAFETY: our caller's promise about `shape` is the one that is asked for.
        unsafe { System.alloc(shape) }
    }

    unsafe fn dealloc(&self, at: *mut u8, shape: Shape) {
        LIVE.fetch_sub(shape.size(), Ordering::Relaxed);
        // SAFETY: as above; the pointer came from `alloc`, so from the system's allocator.
        unsafe { System.dealloc(at, shape) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The limit of the greedy guest.
const LIMIT: usize = 16 << 20;
/// What is not charged: tables that grew by one place at a time, lists that are as long as a table while they are made.
const SLACK: usize = 2 << 20;

/// The counts are of the whole program: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn live() -> usize {
    LIVE.load(Ordering::Relaxed)
}

/// A guest that asks for too much, and a pair on the same fabric that asks for little.
struct Bench {
    greedy: Arc<Driver>,
    modest: [End; 2],
    before: usize,
    left: u64,
}

impl Bench {
    fn new() -> Bench {
        let fabric = Fabric::new();
        let greedy = Arc::new(Driver::limited(&fabric, 0, Layout::Pdir, 64 << 20, LIMIT as u64));
        let modest = [1, 2].map(|index| {
            let driver = Arc::new(Driver::limited(&fabric, index, Layout::Pdir, 64 << 20, LIMIT as u64));
            End::new(&driver, QpSize::wr(8))
        });
        connect(&modest[0], &modest[1], &Path::default());
        let left = greedy.device.budget_left();
        PEAK.store(live(), Ordering::Relaxed);
        Bench { greedy, modest, before: live(), left }
    }

    /// Bytes held since the beginning, now and at most.
    fn held(&self) -> (usize, usize) {
        (live().saturating_sub(self.before), PEAK.load(Ordering::Relaxed).saturating_sub(self.before))
    }

    /// Has `make` make objects until it is told that there is no more room, and compares what the device holds with
    /// what it may. Returns how many there were.
    fn fill(&self, what: &str, mut make: impl FnMut(&Driver) -> Result<Response, CommandError>) -> usize {
        let mut count = 0;
        let error = loop {
            match make(&self.greedy) {
                Ok(_) => count += 1,
                Err(error) => break error,
            }
        };
        let (held, peak) = self.held();
        println!("{what}: {count} made, {held} bytes held, {peak} at most, {} left", self.greedy.device.budget_left());
        assert!(matches!(error, CommandError::Full(_)) && error.errno() == 12, "{what}: {error}");
        assert!(peak <= LIMIT + SLACK, "{what}: {peak} bytes were held at one time");
        assert!(count > 1, "{what}: nothing could be made");
        let [a, b] = &self.modest;
        b.recv(&RecvWr::new(1, &[]));
        a.send(&SendWr::send(2, &[]));
        assert_eq!((a.send_cq.ends(), b.recv_cq.ends()), (vec![(2, 0)], vec![(1, 0)]), "{what}: others go on");
        count
    }

    /// The context ends with all that was made in it: nothing is held and everything can be had again.
    fn close(&self, ctx: CtxHandle, what: &str) {
        self.greedy.command(Command::DestroyUc { ctx }).unwrap();
        assert_eq!(self.greedy.device.budget_left(), self.left, "{what}: given back");
        let (held, _) = self.held();
        assert!(held < SLACK, "{what}: {held} bytes are held for nothing");
    }
}

/// A directory that names the same page everywhere: the largest object for the smallest effort.
fn widest(driver: &Driver) -> DmaAddr {
    let (pdir, table, page) = (driver.alloc(1), driver.alloc(1), driver.alloc(1));
    driver.ram.set(pdir, &table.0.to_le_bytes().repeat(512));
    driver.ram.set(table, &page.0.to_le_bytes().repeat(512));
    pdir
}

#[test]
fn regions_stop_at_the_limit() {
    let _alone = alone();
    let bench = Bench::new();
    let ctx = bench.greedy.context();
    let pd = bench.greedy.pd(ctx);
    let pdir = widest(&bench.greedy);
    let create = |driver: &Driver| {
        let kind = MrKind::User(Buffer::Pdir { pdir, nchunks: 262_144 });
        driver.command(Command::CreateMr { pd, start: 0, length: 4096, access_flags: ALL_ACCESS, kind })
    };
    // A list of 262144 pages is 2 MiB, and something beside it.
    assert_eq!(bench.fill("regions of 1 GiB", create), LIMIT / (2 << 20) - 1);
    // One goes, one more can come, and only one.
    bench.greedy.command(Command::DestroyMr { mr: MrHandle(1) }).unwrap();
    create(&bench.greedy).unwrap();
    create(&bench.greedy).unwrap_err();
    bench.close(ctx, "regions of 1 GiB");

    let ctx = bench.greedy.context();
    let pd = bench.greedy.pd(ctx);
    let create = |driver: &Driver| {
        let kind = MrKind::User(Buffer::Pdir { pdir, nchunks: 1 });
        driver.command(Command::CreateMr { pd, start: 0, length: 1, access_flags: ALL_ACCESS, kind })
    };
    let count = bench.fill("regions of one byte", create);
    assert!(count > LIMIT / 512, "an ordinary region is cheap: {count}");
    bench.close(ctx, "regions of one byte");
}

#[test]
fn queues_stop_at_the_limit() {
    let _alone = alone();
    let bench = Bench::new();
    let pdir = widest(&bench.greedy);
    let ctx = bench.greedy.context();
    let wide = |driver: &Driver| {
        driver.command(Command::CreateCq { ctx, cqe: 1, buffer: Buffer::Pdir { pdir, nchunks: 262_144 } })
    };
    bench.fill("CQs of one entry and 262144 pages", wide);
    bench.close(ctx, "wide CQs");

    let ctx = bench.greedy.context();
    let pd = bench.greedy.pd(ctx);
    for nchunks in [2, 262_144] {
        let small = |driver: &Driver| {
            let buffer = Buffer::Pdir { pdir, nchunks };
            driver.command(Command::CreateSrq { pd, max_wr: 1, max_sge: 1, srq_limit: 0, srq_type: 0, buffer })
        };
        bench.fill("SRQs", small);
        (1..20_000).for_each(|srq| drop(bench.greedy.command(Command::DestroySrq { srq: SrqHandle(srq) })));
    }
    let fast = |driver: &Driver| {
        let kind = MrKind::FastReg { max_pages: 128 };
        driver.command(Command::CreateMr { pd, start: 0, length: 0, access_flags: 0, kind })
    };
    bench.fill("fast-register regions", fast);
    bench.close(ctx, "SRQs and fast-register regions");

    let ctx = bench.greedy.context();
    let small =
        |driver: &Driver| driver.command(Command::CreateCq { ctx, cqe: 1, buffer: Buffer::Pdir { pdir, nchunks: 2 } });
    bench.fill("CQs of one entry", small);
    bench.close(ctx, "small CQs");

    for nchunks in [3, 65_535] {
        let end = End::new(&bench.greedy, QpSize::wr(1));
        let (create, _) = bench.greedy.qp_command(end.pd, end.send_cq.handle, end.recv_cq.handle, QpSize::wr(1));
        let Command::CreateQp(mut create) = create else { unreachable!() };
        create.buffer = Buffer::Pdir { pdir, nchunks };
        bench.fill("QPs", |driver| driver.command(Command::CreateQp(create.clone())));
        bench.close(end.ctx, "QPs");
    }
}

#[test]
fn what_hangs_on_a_busy_qp_is_paid_for() {
    // Each QP has as much work taken as it may, of as many pieces as there can be, and is left waiting for nobody.
    let _alone = alone();
    let bench = Bench::new();
    let greedy = &bench.greedy;
    let ctx = greedy.context();
    let (pd, cq) = (greedy.pd(ctx), greedy.cq(ctx, 1));
    let size = QpSize { send_wr: 64, recv_wr: 1, send_sge: 16, recv_sge: 16, sig_all: false };
    let region = greedy.region(pd, 64 * PAGE);
    // Every other page, so that no two pieces join.
    let pieces: Vec<_> = (0..15).map(|n| (region.start + n * 3 * PAGE + 4000, 8192 + 96, region.key)).collect();
    let (create, block) = greedy.qp_command(pd, cq.handle, cq.handle, size);
    let path = Path { timeout: 0, ..Path::default() };
    bench.fill("busy QPs", |driver| {
        let answer = driver.command(create.clone());
        if let Ok(Response::CreateQp { qp, .. }) = &answer {
            // All QPs share one ring's memory; it is filled anew for each.
            pvrdma_device::testing::end::bring_up(driver, *qp, nowhere(), &path);
            let wqe = SendWr::write(1, &pieces, &region, 0).to_bytes();
            (0..64).for_each(|slot| block.set(PAGE + slot * u64::from(size.send_stride()), &wqe));
            block.set_word(0, 64);
            driver.device.doorbell(ctx, Doorbell::Qp { qp: *qp, send: true, recv: false });
        }
        answer
    });
    bench.close(ctx, "busy QPs");
}

#[test]
fn a_long_message_leaves_no_long_list_behind() {
    // The pieces of a message are as many as its pages: a list of megabytes, which every QP might keep.
    let _alone = alone();
    let bench = Bench::new();
    let greedy = &bench.greedy;
    let ctx = greedy.context();
    let pd = greedy.pd(ctx);
    let kind = MrKind::User(Buffer::Pdir { pdir: widest(greedy), nchunks: 262_144 });
    let create = Command::CreateMr { pd, start: 0, length: 1 << 29, access_flags: ALL_ACCESS, kind };
    let Ok(Response::CreateMr { lkey, rkey, .. }) = greedy.command(create) else { panic!("CREATE_MR") };
    let ends: Vec<_> = (0..8)
        .map(|_| {
            let cq = greedy.cq(ctx, 16);
            let end = End::with(greedy, pd, cq.clone(), cq, QpSize { send_sge: 2, ..QpSize::wr(4) });
            end.bring_up(end.endpoint(), &Path { timeout: 1, retry_cnt: 0, ..Path::default() });
            end
        })
        .collect();
    let before = live();
    let whole = (0, 32 << 20, lkey.0);
    let target = (0, rkey.0);
    for (what, sges, (addr, key)) in [
        ("a bad piece behind a good one", vec![whole, (0, 1, lkey.0 ^ 1)], target),
        ("a bad target", vec![whole], (1 << 40, rkey.0)),
        ("a message that arrives", vec![whole], target),
        ("a message for nobody", vec![whole], target),
    ] {
        for end in &ends {
            end.reset();
            let peer = if what.ends_with("nobody") { nowhere() } else { end.endpoint() };
            end.bring_up(peer, &Path { timeout: 0, ..Path::default() });
            end.recv(&RecvWr::new(1, &[]));
            let mut wr = SendWr::send(1, &sges);
            wr.opcode = 0;
            end.send(&wr.at(addr, key));
            pump(&[greedy]);
            let status: Vec<_> = end.send_cq.ends();
            assert_eq!(status.is_empty(), what.ends_with("nobody"), "{what}: {status:?}");
        }
        let kept = live().saturating_sub(before);
        assert!(kept < ends.len() * (8 << 10), "{what}: {kept} bytes are kept by {} QPs", ends.len());
    }
}

#[test]
fn what_comes_and_goes_leaves_nothing() {
    // PVRDMA_STEPS=2000000 goes more than once round every table.
    let _alone = alone();
    let bench = Bench::new();
    let greedy = &bench.greedy;
    let ctx = greedy.context();
    let pd = greedy.pd(ctx);
    let pdir = widest(greedy);
    let buffer = |nchunks| Buffer::Pdir { pdir, nchunks };
    let left = greedy.device.budget_left();
    let rounds = pvrdma_device::testing::rng::steps(60_000) as u32;
    for n in 0..rounds {
        let kind = MrKind::User(buffer(1));
        let create = Command::CreateMr { pd, start: 0, length: 1, access_flags: ALL_ACCESS, kind };
        let Ok(Response::CreateMr { mr, .. }) = greedy.command(create) else { panic!("CREATE_MR, round {n}") };
        greedy.command(Command::DestroyMr { mr }).unwrap();
    }
    let (held, _) = bench.held();
    println!("{rounds} regions came and went: {held} bytes are held");
    assert_eq!(greedy.device.budget_left(), left);
    // A byte and a share of a table's leaf pointer for every handle there is.
    let tables = 2 * greedy.device.caps().max_mr as usize;
    assert!(held < tables, "{held} bytes");

    let before = live();
    for n in 0..rounds / 4 {
        let Ok(Response::CreateCq { cq, .. }) = greedy.command(Command::CreateCq { ctx, cqe: 1, buffer: buffer(2) })
        else {
            panic!("CREATE_CQ, round {n}")
        };
        greedy.command(Command::DestroyCq { cq }).unwrap();
    }
    let cq = greedy.cq(ctx, 1);
    let (create, _) = greedy.qp_command(pd, cq.handle, cq.handle, QpSize::wr(1));
    for n in 0..rounds / 4 {
        let Ok(Response::CreateQp { qp, .. }) = greedy.command(create.clone()) else { panic!("CREATE_QP, round {n}") };
        // A doorbell for work in a state without work, and for a QP that is gone.
        let ring = |qp: QpHandle| greedy.device.doorbell(ctx, Doorbell::Qp { qp, send: true, recv: true });
        ring(qp);
        greedy.command(Command::DestroyQp { qp }).unwrap();
        ring(qp);
    }
    for n in 0..rounds / 4 {
        let Ok(Response::CreatePd { pd }) = greedy.command(Command::CreatePd { ctx }) else {
            panic!("CREATE_PD, round {n}")
        };
        greedy.command(Command::DestroyPd { pd }).unwrap();
    }
    for n in 0..rounds / 4 {
        let mut gid = [0xfe; 16];
        gid[..4].copy_from_slice(&n.to_le_bytes());
        let gid_type = pvrdma_device::testing::driver::GID_TYPE;
        greedy.command(Command::CreateBind { index: n % 16, gid, gid_type, vlan: 0xfff, mtu: 1024 }).unwrap();
    }
    let held = live().saturating_sub(before);
    println!("CQs, QPs, PDs and addresses came and went: {held} bytes are held");
    assert!(held < 64 << 10, "{held} bytes");
}

#[test]
fn a_refused_command_costs_nothing() {
    let _alone = alone();
    let bench = Bench::new();
    let greedy = &bench.greedy;
    let ctx = greedy.context();
    let pd = greedy.pd(ctx);
    let pdir = widest(greedy);
    let (left, before) = (greedy.device.budget_left(), live());
    for nchunks in [0, 1, 2, 300, 262_144, 262_145, u32::MAX] {
        for pdir in [pdir, DmaAddr(1), DmaAddr(u64::MAX), DmaAddr(1 << 40)] {
            let buffer = Buffer::Pdir { pdir, nchunks };
            for cqe in [0, 3, 1 << 19, 1 << 31] {
                greedy.command(Command::CreateCq { ctx, cqe, buffer: buffer.clone() }).unwrap_err();
            }
            let kind = MrKind::User(buffer);
            let create = Command::CreateMr { pd, start: 5, length: u64::MAX, access_flags: ALL_ACCESS, kind };
            greedy.command(create).unwrap_err();
        }
    }
    assert_eq!(greedy.device.budget_left(), left);
    assert!(live().saturating_sub(before) < 4096);
}
