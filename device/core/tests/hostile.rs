//! A guest that lies: counters that are none, directories that lead nowhere or to themselves, numbers chosen to
//! overflow. The answer is an error to that guest alone; the device neither panics nor hangs, and its other users
//! go on.

use pvrdma_device::command::{Command, MrKind, Response};
use pvrdma_device::doorbell::Doorbell;
use pvrdma_device::interrupt::AsyncEvent;
use pvrdma_device::memory::{Buffer, DmaAddr, Memory};
use pvrdma_device::testing::driver::{ALL_ACCESS, Driver, Layout, PAGE};
use pvrdma_device::testing::end::{End, Path, connect, pump};
use pvrdma_device::testing::queue::{QpSize, RecvWr, SendWr, sge};
use pvrdma_device::transport::fabric::Fabric;
use pvrdma_ffi::dev_api::*;
use pvrdma_ffi::uapi::vmw_pvrdma::*;
use std::sync::Arc;

const FLUSH: u32 = PVRDMA_WC_WR_FLUSH_ERR;

/// A liar, its peer, and two honest ends on the same two devices.
struct Bench {
    liar: End,
    peer: End,
    honest: [End; 2],
}

fn bench() -> Bench {
    let fabric = Fabric::new();
    let drivers = [0, 1].map(|index| Arc::new(Driver::new(&fabric, index, Layout::Pdir)));
    let [liar, peer] = [0, 1].map(|n| End::new(&drivers[n], QpSize::wr(8)));
    let honest = [0, 1].map(|n| End::new(&drivers[n], QpSize::wr(8)));
    connect(&liar, &peer, &Path::default());
    connect(&honest[0], &honest[1], &Path::default());
    Bench { liar, peer, honest }
}

impl Bench {
    fn pump(&self) {
        pump(&[&*self.liar.driver, &*self.peer.driver]);
    }

    /// The others go on, and the liar's guest can still make new objects.
    fn others_go_on(&self) {
        let [a, b] = &self.honest;
        b.recv(&RecvWr::new(1, &[]));
        a.send(&SendWr::send(2, &[]));
        assert_eq!((a.send_cq.ends(), b.recv_cq.ends()), (vec![(2, 0)], vec![(1, 0)]));
        let fresh = End::new(&self.liar.driver, QpSize::wr(1));
        fresh.bring_up(fresh.endpoint(), &Path::default());
        fresh.recv(&RecvWr::new(3, &[]));
        fresh.send(&SendWr::send(4, &[]));
        assert_eq!((fresh.recv_cq.ends(), fresh.send_cq.ends()), (vec![(3, 0)], vec![(4, 0)]));
    }
}

/// Counters that a ring of 8 cannot have, or that claim more entries than there are.
const WILD: [u32; 8] = [9, 15, 16, 17, 255, 0x7fff_ffff, 0x8000_0000, u32::MAX];

#[test]
fn a_wild_send_counter_is_fatal_to_its_qp() {
    for wild in WILD {
        let bench = bench();
        let liar = &bench.liar;
        liar.qp.post_recv(&RecvWr::new(5, &[]));
        liar.qp.force_send_tail(wild);
        for _ in 0..3 {
            liar.qp.ring_send();
        }
        bench.pump();
        assert_eq!(liar.query().qp_state, PVRDMA_QPS_ERR, "{wild:#x}");
        assert_eq!(liar.driver.bell.events(), [AsyncEvent::QpFatal(liar.qp.handle)], "once");
        assert_eq!(liar.recv_cq.ends(), [(5, FLUSH)]);
        bench.others_go_on();
        // A new life heals it.
        liar.reset();
        bench.peer.reset();
        connect(liar, &bench.peer, &Path::default());
        bench.peer.recv(&RecvWr::new(1, &[]));
        liar.send(&SendWr::send(1, &[]));
        assert_eq!(liar.send_cq.ends(), [(1, 0)]);
    }
}

#[test]
fn a_wild_receive_counter_is_fatal_to_its_qp_and_told() {
    for wild in WILD {
        let bench = bench();
        let (liar, peer) = (&bench.liar, &bench.peer);
        liar.qp.force_recv_tail(wild);
        peer.send(&SendWr::send(1, &[]));
        bench.pump();
        assert_eq!(peer.send_cq.ends(), [(1, PVRDMA_WC_REM_OP_ERR)], "{wild:#x}");
        assert_eq!(liar.query().qp_state, PVRDMA_QPS_ERR);
        assert_eq!(liar.driver.bell.events(), [AsyncEvent::QpFatal(liar.qp.handle)]);
        assert_eq!(peer.driver.bell.events(), []);
        bench.others_go_on();
    }
}

#[test]
fn counters_that_change_after_they_were_read_do_no_harm() {
    let bench = bench();
    let (liar, peer) = (&bench.liar, &bench.peer);
    let target = peer.region(64);
    for n in 0..3 {
        liar.send(&SendWr::write(n, &[], &target, 0));
    }
    // Back to before what the device has taken and returned.
    liar.qp.force_send_tail(1);
    liar.qp.ring_send();
    bench.pump();
    assert_eq!(liar.send_cq.ends(), [(0, 0), (1, 0), (2, 0)], "nothing twice");
    assert_eq!(liar.query().qp_state, PVRDMA_QPS_ERR);
    bench.others_go_on();
}

#[test]
fn a_consumer_counter_in_the_drivers_hands_is_not_believed() {
    // `cons_head` of the send ring is the device's to write; what the driver writes there means nothing.
    let bench = bench();
    let target = bench.peer.region(64);
    for n in 0..40u32 {
        let word = bench.liar.qp.block.at(4);
        let saved = bench.liar.driver.ram.load(word).unwrap();
        bench.liar.qp.post_send(&SendWr::write(u64::from(n), &[], &target, 0));
        bench.liar.driver.ram.store(word, n.wrapping_mul(0x9e37_79b9)).unwrap();
        bench.liar.qp.ring_send();
        assert_eq!(bench.liar.send_cq.ends(), [(u64::from(n), 0)]);
        assert_eq!(bench.liar.driver.ram.load(word).unwrap(), (saved + 1) % 16, "the device wrote its own count");
    }
}

#[test]
fn a_ring_whose_memory_is_gone_is_fatal_to_its_qp() {
    for page in 0..2 {
        let bench = bench();
        let liar = &bench.liar;
        liar.qp.post_send(&SendWr::send(1, &[]));
        liar.driver.ram.unmap(liar.qp.block.pages[page], PAGE);
        liar.qp.ring_send();
        bench.pump();
        assert_eq!(liar.query().qp_state, PVRDMA_QPS_ERR, "page {page}");
        assert_eq!(liar.driver.bell.events(), [AsyncEvent::QpFatal(liar.qp.handle)]);
        liar.destroy();
        bench.others_go_on();
    }
    // The receive ring's.
    let bench = bench();
    let liar = &bench.liar;
    liar.qp.post_recv(&RecvWr::new(1, &[]));
    liar.driver.ram.unmap(*liar.qp.block.pages.last().unwrap(), PAGE);
    bench.peer.send(&SendWr::send(1, &[]));
    bench.pump();
    assert_eq!(bench.peer.send_cq.ends(), [(1, PVRDMA_WC_REM_OP_ERR)]);
    assert_eq!(liar.driver.bell.events(), [AsyncEvent::QpFatal(liar.qp.handle)]);
    bench.others_go_on();
    // A CQ's.
    for page in 0..2 {
        let bench = self::bench();
        let liar = &bench.liar;
        liar.driver.ram.unmap(liar.send_cq.block.pages[page], PAGE);
        let target = bench.peer.region(64);
        liar.send(&SendWr::write(1, &[], &target, 0));
        bench.pump();
        assert_eq!(liar.driver.bell.events(), [AsyncEvent::CqErr(liar.send_cq.handle)]);
        assert_eq!(liar.query().qp_state, PVRDMA_QPS_ERR);
        bench.others_go_on();
    }
}

#[test]
fn directories_that_lead_nowhere_are_refused() {
    let driver = Driver::new(&Fabric::new(), 0, Layout::Pdir);
    let ctx = driver.context();
    let pd = driver.pd(ctx);
    let ram_end = driver.ram.len();
    let page = driver.alloc(1);
    let good_pages: Vec<_> = (0..4).map(|_| driver.alloc(2)).collect();
    let good = driver.pdir(&good_pages);
    let odd_entry = driver.pdir(&[DmaAddr(page.0 + 8), page]);
    let odd_table = driver.alloc(1);
    driver.ram.set(odd_table, &(ram_end - 4).to_le_bytes());
    let far_table = driver.alloc(1);
    driver.ram.set(far_table, &u64::MAX.to_le_bytes());
    let past_table = driver.alloc(1);
    driver.ram.set(past_table, &(!4095u64).to_le_bytes());
    let refused = [
        ("beyond memory", DmaAddr(ram_end), 2),
        ("last byte of the address space", DmaAddr(u64::MAX), 2),
        ("last page of the address space", DmaAddr(!4095), 2),
        ("not on a page", DmaAddr(good.0 + 8), 2),
        ("entry not on a page", odd_entry, 2),
        ("table over the end of memory", odd_table, 2),
        ("table at the end of the address space", far_table, 2),
        ("table in the last page of the address space", past_table, 513),
        ("no pages", good, 0),
        ("one page", good, 1),
        ("more than a directory holds", good, 262_145),
        ("many more", good, u32::MAX),
        ("a second table that is not there", good, 262_144),
    ];
    for (what, pdir, nchunks) in refused {
        let buffer = Buffer::Pdir { pdir, nchunks };
        let cq = driver.command(Command::CreateCq { ctx, cqe: 64, buffer: buffer.clone() });
        assert!(cq.is_err() || what.starts_with("a second"), "CQ, {what}: {cq:?}");
        let kind = MrKind::User(buffer);
        let create = Command::CreateMr { pd, start: 0, length: 5000, access_flags: ALL_ACCESS, kind };
        let mr = driver.command(create);
        assert!(mr.is_err() || what.starts_with("a second"), "MR, {what}: {mr:?}");
    }
    let buffer = Buffer::Pdir { pdir: good, nchunks: 2 };
    driver.command(Command::CreateCq { ctx, cqe: 64, buffer }).unwrap();
}

#[test]
fn a_directory_may_name_itself_and_anything_else() {
    // The device reads it once and takes the pages for what they are said to be; the guest harms itself alone.
    let bench = bench();
    let driver = &bench.liar.driver;
    let pdir = driver.alloc(1);
    let entries: Vec<u8> = (0..512).flat_map(|_| pdir.0.to_le_bytes()).collect();
    driver.ram.set(pdir, &entries);
    let buffer = Buffer::Pdir { pdir, nchunks: 262_144 };
    let kind = MrKind::User(buffer.clone());
    let length = driver.device.caps().max_mr_size;
    let create = Command::CreateMr { pd: bench.liar.pd, start: 0, length, access_flags: ALL_ACCESS, kind };
    let Ok(Response::CreateMr { lkey, rkey, .. }) = driver.command(create) else { panic!("CREATE_MR") };
    // The peer writes into the directory; the region is what it was when it was made.
    let source = bench.peer.region(4096);
    source.set(0, &[0xff; 4096]);
    let target = bench.peer.region(64);
    bench.peer.send(&SendWr::write(1, &[sge(&source, 0, 4096)], &target, 0).at(123 * 4096, rkey.0));
    bench.liar.send(&SendWr::write(2, &[(5 * 4096, 64, lkey.0)], &target, 0));
    assert_eq!((bench.peer.send_cq.ends(), bench.liar.send_cq.ends()), (vec![(1, 0)], vec![(2, 0)]));
    assert_eq!(target.get(0, 64), [0xff; 64]);
    // Rings on top of each other: state page, WQEs and directory are one page.
    driver.ram.set(pdir, &entries);
    let create = Command::CreateCq { ctx: bench.liar.ctx, cqe: 65536, buffer };
    driver.command(create).unwrap();
    bench.others_go_on();
}

#[test]
fn a_qp_made_of_one_page_repeated_does_not_hang_the_device() {
    let bench = bench();
    let liar = &bench.liar;
    let driver = &liar.driver;
    let page = driver.alloc(1);
    let (mut create, _) = driver.qp_command(liar.pd, liar.send_cq.handle, liar.recv_cq.handle, QpSize::wr(64));
    if let Command::CreateQp(create) = &mut create {
        create.buffer = Buffer::Pdir { pdir: driver.pdir(&[page; 64]), nchunks: 64 };
    }
    let Ok(Response::CreateQp { qpn, qp }) = driver.command(create) else { panic!("CREATE_QP") };
    let peer = pvrdma_device::transport::Endpoint { gid: driver.gid, qpn };
    pvrdma_device::testing::end::bring_up(driver, qp, peer, &Path::default());
    for fill in [0u8, 1, 0x40, 0xff] {
        driver.ram.set(page, &[fill; 4096]);
        driver.ram.store(page, 64).unwrap();
        driver.device.doorbell(liar.ctx, Doorbell::Qp { qp, send: true, recv: true });
        pump(&[&**driver]);
        liar.send_cq.drain();
        liar.recv_cq.drain();
    }
    driver.command(Command::DestroyQp { qp }).unwrap();
    bench.others_go_on();
}

#[test]
fn every_doorbell_value_is_survived() {
    let bench = bench();
    let driver = &bench.liar.driver;
    for offset in (0..64).chain([0xffc, 0x1000, usize::MAX]) {
        for value in [0, 1, 0x00ff_ffff, 0x4000_0000, 0x8000_0000, 0xe000_0000, u32::MAX, bench.liar.qp.handle.0] {
            for action in [0, PVRDMA_UAR_QP_SEND, PVRDMA_UAR_QP_RECV, 1 << 29] {
                if let Some(doorbell) = Doorbell::decode(offset, value | action) {
                    driver.device.doorbell(bench.liar.ctx, doorbell);
                    driver.device.doorbell(pvrdma_device::handle::KERNEL, doorbell);
                }
            }
        }
    }
    bench.others_go_on();
}

#[test]
fn addresses_and_lengths_that_overflow_are_errors() {
    let words = [0, 1, 0x0fff, 0x1000, 0x7fff_ffff, 0x8000_0000, 0xffff_f000, u32::MAX];
    let addrs = [0, 1, 0xfff, 0x7fff_ffff_ffff_ffff, 0x8000_0000_0000_0000, u64::MAX - 4095, u64::MAX];
    for addr in addrs {
        for len in words {
            let bench = bench();
            let (liar, peer) = (&bench.liar, &bench.peer);
            let (mine, theirs) = (liar.region(4096), peer.region(4096));
            // As local address, as remote address, as an address to receive at.
            let wrs = [
                SendWr::send(1, &[(addr, len, mine.key)]),
                SendWr::write(1, &[sge(&mine, 0, 1)], &theirs, 0).at(addr, theirs.key),
                SendWr::read(1, &[(addr, len, mine.key)], &theirs, 0),
            ];
            for wr in wrs {
                liar.reset();
                peer.reset();
                connect(liar, peer, &Path { rnr_retry: 0, ..Path::default() });
                peer.recv(&RecvWr::new(1, &[(addr, len, theirs.key)]));
                liar.send(&wr);
                bench.pump();
                assert_eq!(liar.send_cq.drain().len(), 1, "{wr:?}");
                peer.recv_cq.drain();
            }
            bench.others_go_on();
        }
    }
}

#[test]
fn create_commands_full_of_rubbish_are_refused_and_cost_nothing() {
    // Every field of CREATE_QP, CREATE_CQ and CREATE_MR from a list of ugly numbers, thousands of combinations.
    let bench = bench();
    let driver = &bench.liar.driver;
    let mut rng = pvrdma_device::testing::rng::Rng::from_env(7);
    let ugly = [0, 1, 2, 3, 15, 16, 17, 64, 4095, 4096, 16384, 16385, 65536, 1 << 20, 1 << 31, (1 << 31) + 1, u32::MAX];
    let good_dir = driver.pdir(&vec![DmaAddr(driver.alloc(1).0); 700]);
    for _ in 0..5000 {
        let pdir = *rng.pick(&[good_dir, DmaAddr(0), DmaAddr(u64::MAX), DmaAddr(4096 + 16), DmaAddr(driver.ram.len())]);
        let buffer = Buffer::Pdir { pdir, nchunks: (*rng.pick(&ugly)).min(1 << 20) };
        let mut ugly = || *rng.pick(&ugly);
        let pd = bench.liar.pd;
        let (send_cq, recv_cq) = (bench.liar.send_cq.handle, bench.liar.recv_cq.handle);
        let commands = [
            Command::CreateQp(Box::new(pvrdma_device::command::CreateQp {
                pd,
                send_cq,
                recv_cq,
                srq: None,
                max_send_wr: ugly(),
                max_recv_wr: ugly(),
                max_send_sge: ugly(),
                max_recv_sge: ugly(),
                sq_sig_all: false,
                qp_type: 2,
                buffer: buffer.clone(),
                send_chunks: ugly(),
            })),
            Command::CreateCq { ctx: bench.liar.ctx, cqe: ugly(), buffer: buffer.clone() },
            Command::CreateMr {
                pd,
                start: u64::from(ugly()) << 33 | u64::from(ugly()),
                length: u64::from(ugly()) << (ugly() % 33),
                access_flags: ugly() | 1,
                kind: MrKind::User(buffer),
            },
        ];
        for command in commands {
            match driver.command(command) {
                Ok(Response::CreateQp { qp, .. }) => {
                    driver.command(Command::DestroyQp { qp }).unwrap();
                }
                Ok(Response::CreateCq { cq, .. }) => {
                    driver.command(Command::DestroyCq { cq }).unwrap();
                }
                Ok(Response::CreateMr { mr, .. }) => {
                    driver.command(Command::DestroyMr { mr }).unwrap();
                }
                Ok(other) => panic!("{other:?}"),
                Err(_) => {}
            }
        }
    }
    bench.others_go_on();
}

#[test]
fn modify_with_rubbish_is_refused_or_survived() {
    let bench = bench();
    let mut rng = pvrdma_device::testing::rng::Rng::from_env(8);
    let liar = &bench.liar;
    for _ in 0..5000 {
        let mut attrs = pvrdma_qp_attr {
            qp_state: rng.below(8) as u32,
            cur_qp_state: rng.below(8) as u32,
            path_mtu: rng.word() as u32 % 8,
            rq_psn: rng.word() as u32,
            sq_psn: rng.word() as u32,
            dest_qp_num: rng.word() as u32 >> rng.below(32),
            qp_access_flags: rng.word() as u32,
            max_rd_atomic: rng.word() as u8,
            max_dest_rd_atomic: rng.word() as u8,
            min_rnr_timer: rng.word() as u8 % 40,
            port_num: rng.below(3) as u8,
            timeout: rng.word() as u8 % 40,
            retry_cnt: rng.below(9) as u8,
            rnr_retry: rng.below(9) as u8,
            en_sqd_async_notify: rng.word() as u8,
            ..Default::default()
        };
        attrs.ah_attr.grh.sgid_index = if rng.one_in(2) { 0 } else { rng.word() as u8 };
        attrs.ah_attr.grh.dgid = if rng.one_in(2) { liar.driver.gid } else { [rng.word() as u8; 16] };
        let mut mask = rng.word() as u32 & rng.word() as u32 & 0x001f_ffff | PVRDMA_QP_STATE;
        let path = Path::default();
        let table = [path.init().0, path.rtr(liar.endpoint()).0, path.rts().0];
        if rng.one_in(2) {
            mask = *rng.pick(&table);
        }
        let _ = liar.modify((mask, attrs));
        liar.qp.post_send(&SendWr::send(1, &[]));
        liar.qp.post_recv(&RecvWr::new(1, &[]));
        liar.qp.ring_send();
        liar.send_cq.drain();
        liar.recv_cq.drain();
        if liar.query().qp_state == PVRDMA_QPS_RESET {
            liar.qp.zero_rings();
        }
    }
    liar.destroy();
    bench.others_go_on();
}

#[test]
fn rings_that_fill_themselves_come_to_rest() {
    // One page is the counters of a QP and of the CQ it completes to: each completion that the device counts there is
    // one more receive to flush, and it was already taken.
    let bench = bench();
    let driver = &bench.liar.driver;
    let (page, ring) = (driver.alloc(1), driver.alloc(1));
    let ctx = bench.liar.ctx;
    let buffer = Buffer::Pdir { pdir: driver.pdir(&[page, ring]), nchunks: 2 };
    let Ok(Response::CreateCq { cq, .. }) = driver.command(Command::CreateCq { ctx, cqe: 64, buffer }) else {
        panic!("CREATE_CQ")
    };
    let size = QpSize { recv_sge: 1, ..QpSize::wr(64) };
    let (create, _) = driver.qp_command(bench.liar.pd, cq, cq, QpSize { send_wr: 1, send_sge: 1, ..size });
    let Command::CreateQp(mut create) = create else { unreachable!() };
    create.buffer = Buffer::Pdir { pdir: driver.pdir(&[page, ring, ring]), nchunks: 3 };
    let Ok(Response::CreateQp { qp, qpn }) = driver.command(Command::CreateQp(create)) else { panic!("CREATE_QP") };
    let peer = pvrdma_device::transport::Endpoint { gid: driver.gid, qpn };
    pvrdma_device::testing::end::bring_up(driver, qp, peer, &Path::default());
    driver.ram.set(DmaAddr(page.0 + 8), &1u32.to_le_bytes());
    pvrdma_device::testing::end::modify_state(driver, qp, PVRDMA_QPS_ERR).unwrap();
    driver.bell.take_wake();
    let turns = (0..1000)
        .take_while(|_| {
            driver.device.poll();
            driver.bell.take_wake()
        })
        .count();
    assert!(turns < 10, "the device is busy with itself, turn after turn");
    bench.others_go_on();

    // An atomic operation on the counter of one's own send ring: each request posts the next. It comes as far as a ring
    // full, for which the doorbell was good.
    let liar = &bench.liar;
    let before = driver.bell.events().len();
    let own = driver.register_pages(liar.pd, &liar.qp.block.pages[..1]);
    let source = liar.region(4096);
    liar.reset();
    liar.bring_up(liar.endpoint(), &Path::default());
    for slot in 0..8 {
        liar.qp.post_send(&SendWr::fetch_add(slot, sge(&source, 0, 8), &own, 0, 1).flags(0));
    }
    liar.qp.force_send_tail(1);
    for done in [8, 16] {
        liar.qp.ring_send();
        pump(&[&**driver]);
        if done == 8 {
            assert_eq!(driver.ram.word(liar.qp.block.at(0)), 1 + done);
            assert_eq!((liar.query().qp_state, driver.bell.events().len()), (PVRDMA_QPS_RTS, before));
        }
    }
    // The second time it runs past the last value that a counter has.
    assert_eq!(driver.bell.events()[before..], [AsyncEvent::QpFatal(liar.qp.handle)]);
    bench.others_go_on();
}
