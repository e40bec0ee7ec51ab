//! Keys that work requests make and take back: FAST_REG_MR, LOCAL_INV, SEND_WITH_INV. FAST_REG_MR names pages by their
//! addresses in the guest, so it is the kernel's alone.

use pvrdma_device::command::{Command, MrKind, Response};
use pvrdma_device::handle::{CtxHandle, KERNEL, MrHandle};
use pvrdma_device::interrupt::AsyncEvent;
use pvrdma_device::memory::DmaAddr;
use pvrdma_device::testing::driver::{ALL_ACCESS, Driver, Layout, PAGE, Region};
use pvrdma_device::testing::end::{End, Path, connect, pump};
use pvrdma_device::testing::queue::{QpSize, RecvWr, SendWr, sge};
use pvrdma_device::transport::fabric::Fabric;
use pvrdma_ffi::dev_api::*;
use pvrdma_ffi::uapi::vmw_pvrdma::*;
use std::sync::Arc;

const IOVA: u64 = 0x1234_5678_9000;
const BAD: u32 = PVRDMA_WC_MW_BIND_ERR;

/// A kernel QP with a fast-register region, and a user's QP that it is connected to.
struct Bench {
    kernel: End,
    user: End,
    mr: MrHandle,
    key: u32,
    pages: Vec<DmaAddr>,
    list: DmaAddr,
    data: Region,
}

fn end_of(driver: &Arc<Driver>, ctx: CtxHandle) -> End {
    let (send_cq, recv_cq) = (driver.cq(ctx, 64), driver.cq(ctx, 64));
    End::with(driver, driver.pd(ctx), send_cq, recv_cq, QpSize::wr(16))
}

fn frmr(end: &End, max_pages: u32) -> (MrHandle, u32) {
    let create =
        Command::CreateMr { pd: end.pd, start: 0, length: 0, access_flags: 0, kind: MrKind::FastReg { max_pages } };
    match end.driver.command(create) {
        Ok(Response::CreateMr { mr, lkey, rkey }) => {
            assert_eq!(lkey.0, rkey.0, "consumers rewrite the low byte of both and use either");
            (mr, rkey.0)
        }
        other => panic!("{other:?}"),
    }
}

fn bench() -> Bench {
    let fabric = Fabric::new();
    let [a, b] = [0, 1].map(|index| Arc::new(Driver::new(&fabric, index, Layout::Pdir)));
    let (kernel, user) = (end_of(&a, KERNEL), end_of(&b, b.context()));
    connect(&kernel, &user, &Path::default());
    let (mr, key) = frmr(&kernel, 4);
    let pages: Vec<_> = (0..4).map(|_| a.alloc(2)).collect();
    let list = a.pdir(&pages);
    let data = user.region(16384);
    Bench { kernel, user, mr, key, pages, list, data }
}

impl Bench {
    /// FAST_REG_MR of `len` bytes from 100 bytes into the first page on.
    fn reg(&self, key: u32, len: u32) -> SendWr {
        SendWr::fast_reg(1, key, IOVA + 100, len, (self.list, 4), ALL_ACCESS)
    }

    fn kernel_does(&self, wr: SendWr) -> u32 {
        self.kernel.send(&wr);
        pump(&[&self.kernel.driver, &self.user.driver]);
        let ends = self.kernel.send_cq.ends();
        let [(1, status)] = ends[..] else { panic!("{ends:?}") };
        status
    }

    /// A READ of `len` bytes by the user's QP.
    fn read(&self, addr: u64, key: u32, len: u32) -> u32 {
        self.user.send(&SendWr::read(1, &[sge(&self.data, 0, len)], &self.data, 0).at(addr, key));
        pump(&[&self.kernel.driver, &self.user.driver]);
        let ends = self.user.send_cq.ends();
        let [(1, status)] = ends[..] else { panic!("{ends:?}") };
        status
    }

    fn revive(&self) {
        self.kernel.reset();
        self.user.reset();
        connect(&self.kernel, &self.user, &Path::default());
    }
}

#[test]
fn a_region_is_what_the_work_request_says_until_it_is_taken_back() {
    let bench = bench();
    let refused = PVRDMA_WC_REM_ACCESS_ERR;
    assert_eq!(bench.read(IOVA + 100, bench.key, 8), refused, "not valid yet");
    bench.revive();
    // The key as it came, and one with another low byte.
    for low in [0, 1, 0x7f] {
        let key = bench.key & !0xff | low;
        for (n, page) in bench.pages.iter().enumerate() {
            bench.kernel.driver.ram.set(*page, &[n as u8 + low as u8; PAGE as usize]);
        }
        assert_eq!(bench.kernel_does(bench.reg(key, 3 * PAGE as u32)), 0);
        assert_eq!(bench.read(IOVA + 100, key, 3 * PAGE as u32), 0);
        let got = bench.data.get(0, 3 * PAGE as usize);
        assert!(got[..3996].iter().all(|byte| *byte == low as u8), "the first byte is 100 bytes into page 0");
        assert!(got[3996..3996 + 4096].iter().all(|byte| *byte == low as u8 + 1));
        assert_eq!(got[3 * PAGE as usize - 1], low as u8 + 3);
        for (addr, other, len) in [
            (IOVA + 99, key, 1),
            (IOVA + 100 + 3 * PAGE, key, 1),
            (IOVA + 100, key ^ 1, 1),
            (IOVA + 100, key ^ 0x100, 1),
        ] {
            assert_eq!(bench.read(addr, other, len), refused, "{addr:#x} {other:#x}");
            bench.revive();
        }
        // Local use by the same key.
        let wr = SendWr::write(1, &[(IOVA + 100, 8, key)], &bench.data, 0);
        assert_eq!(bench.kernel_does(wr), 0);
        assert_eq!(bench.kernel_does(SendWr::local_inv(1, key)), 0);
        assert_eq!(bench.read(IOVA + 100, key, 8), refused, "taken back");
        bench.revive();
    }
}

#[test]
fn the_list_is_read_when_the_request_runs() {
    let bench = bench();
    let other = bench.kernel.driver.alloc(1);
    bench.kernel.driver.ram.set(other, &[0x77; 4096]);
    let table = u64::from_le_bytes(bench.kernel.driver.ram.get(bench.list, 8).try_into().unwrap());
    bench.kernel.driver.ram.set(DmaAddr(table), &other.0.to_le_bytes());
    assert_eq!(bench.kernel_does(bench.reg(bench.key, 100)), 0);
    // And not again afterwards.
    bench.kernel.driver.ram.set(DmaAddr(table), &u64::MAX.to_le_bytes());
    assert_eq!(bench.read(IOVA + 100, bench.key, 8), 0);
    assert_eq!(bench.data.get(0, 8), [0x77; 8]);
}

#[test]
fn what_cannot_be_registered_or_taken_back_is_an_error_of_the_request() {
    type Make = fn(&Bench) -> SendWr;
    let cases: [(&str, Make); 12] = [
        ("longer than its pages", |bench| bench.reg(bench.key, 4 * PAGE as u32 - 99)),
        ("more pages than the region has", |bench| {
            SendWr::fast_reg(1, bench.key, IOVA, 8, (bench.list, 5), ALL_ACCESS)
        }),
        ("as many pages as fit a word", |bench| {
            SendWr::fast_reg(1, bench.key, IOVA, 8, (bench.list, u32::MAX), ALL_ACCESS)
        }),
        ("no pages", |bench| SendWr::fast_reg(1, bench.key, IOVA, 8, (bench.list, 0), ALL_ACCESS)),
        ("a list that is not there", |bench| {
            SendWr::fast_reg(1, bench.key, IOVA, 8, (DmaAddr(1 << 40), 1), ALL_ACCESS)
        }),
        ("past the address space", |bench| {
            SendWr::fast_reg(1, bench.key, u64::MAX - 4095, 4096, (bench.list, 1), ALL_ACCESS)
        }),
        ("pages of another size", |bench| {
            let mut wr = bench.reg(bench.key, 8);
            wr.rest[8..12].copy_from_slice(&13u32.to_le_bytes());
            wr
        }),
        ("nobody's key", |bench| bench.reg(bench.key ^ 0x5500, 8)),
        ("an ordinary region", |bench| bench.reg(bench.kernel.region(4096).key, 8)),
        ("another PD's region", |bench| bench.reg(frmr(&end_of(&bench.kernel.driver, KERNEL), 4).1, 8)),
        ("LOCAL_INV of what is not valid", |bench| SendWr::local_inv(1, bench.key)),
        ("LOCAL_INV of an ordinary region", |bench| SendWr::local_inv(1, bench.kernel.region(4096).key)),
    ];
    for (what, make) in cases {
        let bench = bench();
        let wr = make(&bench);
        assert_eq!(bench.kernel_does(wr), BAD, "{what}");
        assert_eq!(bench.kernel.query().qp_state, PVRDMA_QPS_ERR, "{what}");
        assert_eq!(bench.user.query().qp_state, PVRDMA_QPS_RTS, "{what}");
        bench.revive();
        assert_eq!(bench.kernel_does(bench.reg(bench.key, 8)), 0, "{what}: nothing was changed by it");
        assert_eq!(bench.kernel_does(bench.reg(bench.key, 8)), BAD, "{what}: valid already");
    }
}

#[test]
fn users_can_neither_register_fast_nor_have_their_regions_invalidated() {
    let bench = bench();
    let (_, key) = frmr(&bench.user, 4);
    bench.user.send(&SendWr::fast_reg(1, key, IOVA, 8, (bench.list, 1), ALL_ACCESS));
    assert_eq!(bench.user.send_cq.ends(), [(1, PVRDMA_WC_LOC_QP_OP_ERR)]);
    bench.revive();
    bench.user.send(&SendWr::local_inv(1, bench.data.key));
    assert_eq!(bench.user.send_cq.ends(), [(1, BAD)]);
    bench.revive();
    bench.user.recv(&RecvWr::new(70, &[]));
    assert_eq!(bench.kernel_does(SendWr::send(1, &[]).inv(bench.data.key)), PVRDMA_WC_REM_ACCESS_ERR);
    assert_eq!(bench.user.driver.bell.events(), [AsyncEvent::QpAccessErr(bench.user.qp.handle)]);
    assert_eq!(bench.user.recv_cq.ends(), [(70, PVRDMA_WC_WR_FLUSH_ERR)]);
    bench.revive();
    assert_eq!(bench.kernel_does(SendWr::write(1, &[], &bench.data, 0)), 0, "the region is still there");
}

#[test]
fn a_send_takes_back_a_key_at_the_other_end() {
    let bench = bench();
    assert_eq!(bench.kernel_does(bench.reg(bench.key, 4096)), 0);
    bench.kernel.recv(&RecvWr::new(70, &[]));
    bench.user.send(&SendWr::send(1, &[]).inv(bench.key));
    assert_eq!(bench.user.send_cq.ends(), [(1, 0)]);
    let wc = bench.kernel.recv_cq.poll().expect("a message");
    assert_eq!((wc.wr_id, wc.status, wc.imm_data), (70, 0, bench.key));
    assert_eq!(wc.wc_flags, PVRDMA_WC_WITH_INVALIDATE);
    assert_eq!(bench.read(IOVA + 100, bench.key, 8), PVRDMA_WC_REM_ACCESS_ERR);
    bench.revive();
    assert_eq!(bench.kernel_does(bench.reg(bench.key, 4096)), 0, "it can be used again");
    assert_eq!(bench.read(IOVA + 100, bench.key, 8), 0);
}

#[test]
fn requests_of_one_list_take_effect_in_order() {
    let bench = bench();
    bench.kernel.driver.ram.set(DmaAddr(bench.pages[0].0 + 100), &[0x42; 8]);
    for wr in [
        bench.reg(bench.key, 8).flags(0),
        SendWr::write(2, &[(IOVA + 100, 8, bench.key)], &bench.data, 0).flags(0),
        SendWr::local_inv(3, bench.key).flags(0),
        bench.reg(bench.key + 1, 8).flags(0),
        SendWr::write(5, &[(IOVA + 100, 8, bench.key + 1)], &bench.data, 8).flags(0),
        SendWr::write(6, &[(IOVA + 100, 8, bench.key)], &bench.data, 16),
        SendWr::send(7, &[]),
    ] {
        assert!(bench.kernel.qp.post_send(&wr));
    }
    bench.kernel.qp.ring_send();
    assert_eq!(bench.kernel.send_cq.ends(), [(6, PVRDMA_WC_LOC_PROT_ERR), (7, PVRDMA_WC_WR_FLUSH_ERR)]);
    assert_eq!(bench.data.get(0, 24), [[0x42; 8], [0x42; 8], [0; 8]].concat());
}

#[test]
fn a_destroyed_region_cannot_be_registered() {
    let bench = bench();
    bench.kernel.driver.command(Command::DestroyMr { mr: bench.mr }).unwrap();
    assert_eq!(bench.kernel_does(bench.reg(bench.key, 8)), BAD);
}
