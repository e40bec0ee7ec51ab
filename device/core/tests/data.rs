//! Every byte arrives where it should and no other byte changes: SEND, WRITE and READ, with and without immediate
//! data, over sizes and SGE counts around every boundary, with both kinds of buffer, between two guests and within one.

use pvrdma_device::testing::driver::{ALL_ACCESS, Driver, LAYOUTS, Layout, Region};
use pvrdma_device::testing::end::{End, Path, connect};
use pvrdma_device::testing::queue::{QpSize, RawSge, RecvWr, SendWr, Wc, sge};
use pvrdma_device::testing::rng::Rng;
use pvrdma_device::transport::fabric::Fabric;
use pvrdma_ffi::dev_api::{PVRDMA_MTU_256, PVRDMA_MTU_4096};
use pvrdma_ffi::uapi::vmw_pvrdma::*;
use std::sync::Arc;

const SIZES: [u32; 13] = [0, 1, 2, 255, 256, 257, 4095, 4096, 4097, 65535, 65536, 65537, 1 << 20];

/// Room before and after the bytes that move, to see that it stays as it was.
const MARGIN: u64 = 64;

struct Bench {
    a: End,
    b: End,
    source: Region,
    target: Region,
}

/// Two connected ends with a region each that does not begin on a page boundary.
fn bench(layout: Layout, loopback: bool, mtu: u32) -> Bench {
    let fabric = Fabric::new();
    let first = Arc::new(Driver::new(&fabric, 0, layout));
    let second = if loopback { first.clone() } else { Arc::new(Driver::new(&fabric, 1, layout)) };
    let size = QpSize { send_wr: 8, recv_wr: 8, send_sge: 16, recv_sge: 16, sig_all: false };
    let (a, b) = (End::new(&first, size), End::new(&second, size));
    connect(&a, &b, &Path { mtu, ..Path::default() });
    let region = |end: &End, lead| end.driver.try_region(end.pd, (1 << 20) + 3 * MARGIN, lead, ALL_ACCESS).unwrap();
    let (source, target) = (region(&a, 1234), region(&b, 4095));
    Bench { a, b, source, target }
}

fn for_each_bench(mut test: impl FnMut(&Bench)) {
    for layout in LAYOUTS {
        for (loopback, mtu) in [(false, PVRDMA_MTU_256), (true, PVRDMA_MTU_4096)] {
            test(&bench(layout, loopback, mtu));
        }
    }
}

/// Cuts `[offset, offset + len)` into `count` pieces of random length; some may be empty.
fn pieces(rng: &mut Rng, region: &Region, offset: u64, len: u32, count: usize) -> Vec<RawSge> {
    let mut cuts: Vec<u32> = (1..count).map(|_| rng.below(u64::from(len) + 1) as u32).collect();
    cuts.sort_unstable();
    cuts.push(len);
    let mut from = 0;
    cuts.into_iter()
        .map(|to| {
            let piece = sge(region, offset + u64::from(from), to - from);
            from = to;
            piece
        })
        .collect()
}

impl Bench {
    /// Fills both regions anew and returns what they hold.
    fn fill(&self, rng: &mut Rng, len: u32) -> (Vec<u8>, Vec<u8>) {
        let len = len as usize + 3 * MARGIN as usize;
        let (source, target) = (rng.bytes(len), rng.bytes(len));
        self.source.set(0, &source);
        self.target.set(0, &target);
        (source, target)
    }

    fn one(&self, end: &End, cq: fn(&End) -> &pvrdma_device::testing::queue::CqRing) -> Wc {
        let wcs = cq(end).drain();
        assert_eq!(wcs.len(), 1, "{wcs:?}");
        wcs[0]
    }

    fn sent(&self) -> Wc {
        self.one(&self.a, |end| &end.send_cq)
    }

    fn received(&self) -> Wc {
        self.one(&self.b, |end| &end.recv_cq)
    }
}

/// `target` with `len` bytes of `source` from `MARGIN` copied to `2 * MARGIN`.
fn moved(source: &[u8], mut target: Vec<u8>, len: u32) -> Vec<u8> {
    let (from, to, len) = (MARGIN as usize, 2 * MARGIN as usize, len as usize);
    target[to..to + len].copy_from_slice(&source[from..from + len]);
    target
}

#[test]
fn send_puts_every_byte_in_its_place() {
    let mut rng = Rng::new(1);
    for_each_bench(|bench| {
        for (round, len) in SIZES.into_iter().enumerate() {
            let count = 1 + round % 16;
            let (source, target) = bench.fill(&mut rng, len);
            // The receive is longer than the message: what lies behind it stays.
            let into = pieces(&mut rng, &bench.target, 2 * MARGIN, len + 7, 16 - round);
            let from = pieces(&mut rng, &bench.source, MARGIN, len, count);
            let imm = (round % 2 == 1).then_some(0x8000_0001u32.to_be());
            bench.b.recv(&RecvWr::new(70 + round as u64, &into));
            let wr = SendWr::send(round as u64, &from);
            bench.a.send(&imm.map_or(wr.clone(), |imm| wr.imm(imm)));

            let (sent, received) = (bench.sent(), bench.received());
            assert_eq!((sent.wr_id, sent.status, sent.opcode), (round as u64, 0, PVRDMA_WC_SEND));
            assert_eq!(sent.qp, u64::from(bench.a.qp.handle.0), "a CQE names the QP by its handle");
            assert_eq!((received.wr_id, received.status), (70 + round as u64, 0));
            assert_eq!((received.opcode, received.byte_len), (PVRDMA_WC_RECV, len));
            assert_eq!(received.qp, u64::from(bench.b.qp.handle.0));
            assert_eq!(received.wc_flags, if imm.is_some() { PVRDMA_WC_WITH_IMM } else { 0 });
            assert_eq!(received.imm_data, imm.unwrap_or(0), "immediate data crosses untouched");
            assert_eq!(bench.source.get(0, source.len()), source, "{len}");
            assert!(bench.target.get(0, target.len()) == moved(&source, target, len), "{len} bytes, {count} SGEs");
        }
    });
}

#[test]
fn write_puts_every_byte_in_its_place() {
    let mut rng = Rng::new(2);
    for_each_bench(|bench| {
        for (round, len) in SIZES.into_iter().enumerate() {
            let count = 1 + round % 16;
            let (source, target) = bench.fill(&mut rng, len);
            let from = pieces(&mut rng, &bench.source, MARGIN, len, count);
            let wr = SendWr::write(round as u64, &from, &bench.target, 2 * MARGIN);
            if round % 2 == 1 {
                bench.b.recv(&RecvWr::new(90, &[]));
                bench.a.send(&wr.imm(77));
                let received = bench.received();
                assert_eq!((received.wr_id, received.status), (90, 0));
                assert_eq!((received.opcode, received.byte_len), (PVRDMA_WC_RECV_RDMA_WITH_IMM, len));
                assert_eq!((received.imm_data, received.wc_flags), (77, PVRDMA_WC_WITH_IMM));
            } else {
                bench.a.send(&wr);
                assert_eq!(bench.b.recv_cq.poll(), None, "a plain WRITE is silent at the target");
            }
            let sent = bench.sent();
            assert_eq!((sent.wr_id, sent.status, sent.opcode), (round as u64, 0, PVRDMA_WC_RDMA_WRITE));
            assert!(bench.target.get(0, target.len()) == moved(&source, target, len), "{len} bytes, {count} SGEs");
        }
    });
}

#[test]
fn read_fetches_every_byte_to_its_place() {
    let mut rng = Rng::new(3);
    for_each_bench(|bench| {
        for (round, len) in SIZES.into_iter().enumerate() {
            let count = 1 + round % 16;
            let (local, remote) = bench.fill(&mut rng, len);
            let into = pieces(&mut rng, &bench.source, 2 * MARGIN, len, count);
            bench.a.send(&SendWr::read(round as u64, &into, &bench.target, MARGIN));
            let wc = bench.sent();
            assert_eq!((wc.wr_id, wc.status, wc.opcode), (round as u64, 0, PVRDMA_WC_RDMA_READ));
            assert_eq!(wc.byte_len, len);
            assert_eq!(bench.target.get(0, remote.len()), remote, "{len}");
            assert!(bench.source.get(0, local.len()) == moved(&remote, local, len), "{len} bytes, {count} SGEs");
        }
    });
}

#[test]
fn sges_may_come_from_many_regions_and_overlap() {
    let bench = bench(Layout::Pdir, false, PVRDMA_MTU_4096);
    let regions: Vec<_> = (0..16u8)
        .map(|n| {
            let region = bench.a.driver.try_region(bench.a.pd, 300, 4000 + u64::from(n), ALL_ACCESS).unwrap();
            region.set(0, &[n + 1; 300]);
            region
        })
        .collect();
    let from: Vec<_> = regions.iter().map(|region| sge(region, 3, 290)).collect();
    bench.a.send(&SendWr::write(1, &from, &bench.target, 10));
    assert_eq!(bench.sent().status, 0);
    let expected: Vec<u8> = (1..=16).flat_map(|n| [n; 290]).collect();
    assert_eq!(bench.target.get(10, 16 * 290), expected);

    // The same bytes twice in one list.
    bench.a.send(&SendWr::write(2, &[sge(&regions[4], 0, 5), sge(&regions[4], 0, 5)], &bench.target, 0));
    assert_eq!(bench.sent().status, 0);
    assert_eq!(bench.target.get(0, 10), [5; 10]);
}

#[test]
fn a_region_reaches_from_its_first_byte_to_its_last() {
    for layout in LAYOUTS {
        let bench = bench(layout, false, PVRDMA_MTU_4096);
        // One byte before a page boundary, one after: two pages for two bytes.
        let small = bench.b.driver.try_region(bench.b.pd, 2, 4095, ALL_ACCESS).unwrap();
        bench.source.set(0, &[0xab, 0xcd]);
        bench.a.send(&SendWr::write(1, &[sge(&bench.source, 0, 2)], &small, 0));
        assert_eq!(bench.sent().status, 0);
        assert_eq!(small.get(0, 2), [0xab, 0xcd]);
    }
}

#[test]
fn messages_arrive_in_order_and_the_psn_wraps() {
    let bench = bench(Layout::Ranges, false, PVRDMA_MTU_256);
    // `Path::default` begins six packets before the wrap.
    for n in 0..40u64 {
        bench.source.set(0, &[n as u8; 700]);
        bench.b.recv(&RecvWr::new(n, &[sge(&bench.target, 0, 1024)]));
        bench.a.send(&SendWr::send(n, &[sge(&bench.source, 0, 700)]));
        assert_eq!((bench.sent().wr_id, bench.received().wr_id), (n, n));
        assert_eq!(bench.target.get(0, 700), [n as u8; 700]);
    }
}
