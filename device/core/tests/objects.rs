//! Objects and their owners: what may be made of what, what is in use, what goes when a context goes, and that
//! handles keep the rules which Linux and providers impose without saying so.

use pvrdma_device::command::{Command, CommandError, CreateQp, MrKind, Response};
use pvrdma_device::handle::*;
use pvrdma_device::memory::{Buffer, DmaAddr, Span};
use pvrdma_device::testing::driver::{ALL_ACCESS, Driver, GID_TYPE, LAYOUTS, Layout};
use pvrdma_device::testing::end::{End, Path, connect, pump};
use pvrdma_device::testing::queue::{QpSize, RecvWr, SendWr, sge};
use pvrdma_device::transport::fabric::Fabric;
use pvrdma_ffi::dev_api::*;
use pvrdma_ffi::uapi::vmw_pvrdma::*;
use std::collections::HashSet;
use std::sync::Arc;

fn guest(layout: Layout) -> Arc<Driver> {
    Arc::new(Driver::new(&Fabric::new(), 0, layout))
}

/// A CREATE_QP that would be accepted, for a test to spoil.
fn create_qp(driver: &Driver, pd: PdHandle, cq: CqHandle, size: QpSize) -> CreateQp {
    let (Command::CreateQp(create), _) = driver.qp_command(pd, cq, cq, size) else { panic!("not a CREATE_QP") };
    *create
}

#[test]
fn objects_of_two_contexts_do_not_mix() {
    for layout in LAYOUTS {
        let driver = guest(layout);
        let (mine, other) = (driver.context(), driver.context());
        let (pd, cq, foreign_cq) = (driver.pd(mine), driver.cq(mine, 16), driver.cq(other, 16));
        let good = create_qp(&driver, pd, cq.handle, QpSize::default());
        let bad = [
            CreateQp { send_cq: foreign_cq.handle, ..good.clone() },
            CreateQp { recv_cq: foreign_cq.handle, ..good.clone() },
            CreateQp { pd: driver.pd(other), ..good.clone() },
            CreateQp { pd: PdHandle(0), ..good.clone() },
            CreateQp { pd: PdHandle(u32::MAX), ..good.clone() },
            CreateQp { send_cq: CqHandle(u32::MAX), ..good.clone() },
            CreateQp { recv_cq: CqHandle(0x00ff_ffff), ..good.clone() },
        ];
        for create in bad {
            let result = driver.command(Command::CreateQp(Box::new(create.clone())));
            assert!(matches!(result, Err(CommandError::NoSuch(_))), "{create:?}: {result:?}");
        }
        driver.command(Command::CreateQp(Box::new(good))).unwrap();
        for ctx in [CtxHandle(99), CtxHandle(u32::MAX)] {
            assert!(driver.command(Command::CreatePd { ctx }).is_err());
            let buffer = driver.block(&[2]).buffer;
            assert!(driver.command(Command::CreateCq { ctx, cqe: 16, buffer }).is_err());
        }
    }
}

#[test]
fn what_is_in_use_stays() {
    let driver = guest(Layout::Pdir);
    let ctx = driver.context();
    let (pd, send_cq, recv_cq) = (driver.pd(ctx), driver.cq(ctx, 16), driver.cq(ctx, 16));
    let region = driver.region(pd, 64);
    let qp = driver.qp(pd, &send_cq, &recv_cq, QpSize::default());
    let destroy_pd = || driver.command(Command::DestroyPd { pd }).map(|_| ());
    let destroy_cq = |cq: CqHandle| driver.command(Command::DestroyCq { cq }).map(|_| ());
    assert_eq!(destroy_pd().unwrap_err().errno(), 16);
    assert_eq!(destroy_cq(send_cq.handle).unwrap_err().errno(), 16);
    assert_eq!(destroy_cq(recv_cq.handle).unwrap_err().errno(), 16);
    driver.command(Command::DestroyQp { qp: qp.handle }).unwrap();
    assert_eq!(destroy_cq(send_cq.handle), Ok(()));
    assert_eq!(destroy_cq(recv_cq.handle), Ok(()));
    assert_eq!(destroy_pd(), Err(CommandError::Busy("PD")), "the region holds it");
    driver.dereg(&region);
    assert_eq!(destroy_pd(), Ok(()));
    for result in [destroy_pd(), destroy_cq(send_cq.handle)] {
        assert_eq!(result.unwrap_err().errno(), 22, "gone");
    }
    assert!(driver.command(Command::DestroyMr { mr: region.mr }).is_err());
    assert!(driver.command(Command::DestroyMr { mr: MrHandle(u32::MAX) }).is_err());
    assert!(driver.command(Command::DestroyQp { qp: QpHandle(u32::MAX) }).is_err());
}

#[test]
fn a_context_takes_everything_with_it() {
    for layout in LAYOUTS {
        let fabric = Fabric::new();
        let [driver, peer] = [0, 1].map(|index| Arc::new(Driver::new(&fabric, index, layout)));
        let bystander = End::new(&driver, QpSize::default());
        let far = End::new(&peer, QpSize::default());
        connect(&bystander, &far, &Path::default());
        let far_region = far.region(64);
        for round in 0..5 {
            let end = End::new(&driver, QpSize::default());
            let second = End::new(&peer, QpSize::default());
            connect(&end, &second, &Path { rnr_retry: 7, min_rnr_timer: 0, ..Path::default() });
            let region = end.region(4096);
            end.send(&SendWr::send(1, &[]));
            end.recv(&RecvWr::new(1, &[sge(&region, 0, 64)]));
            driver.command(Command::DestroyUc { ctx: end.ctx }).unwrap();
            for page in end.qp.block.pages.iter().chain([&region.page_of(0)]) {
                driver.ram.watch(*page, 4096);
            }
            end.qp.ring_send();
            second.send(&SendWr::send(1, &[]));
            second.send(&SendWr::write(2, &[], &region, 0));
            pump(&[&*driver, &*peer]);
            assert_eq!(driver.ram.touched(), 0, "round {round}");
            assert_eq!((end.send_cq.ends(), end.recv_cq.ends()), (vec![], vec![]));
            for command in [
                Command::DestroyQp { qp: end.qp.handle },
                Command::DestroyCq { cq: end.send_cq.handle },
                Command::DestroyMr { mr: region.mr },
                Command::DestroyPd { pd: end.pd },
                Command::DestroyUc { ctx: end.ctx },
                Command::CreatePd { ctx: end.ctx },
            ] {
                assert!(driver.command(command.clone()).is_err(), "{command:?} found something");
            }
        }
        bystander.send(&SendWr::write(9, &[], &far_region, 0));
        assert_eq!(bystander.send_cq.ends(), [(9, 0)], "another context saw nothing of it");
    }
}

#[test]
fn the_kernels_context_cannot_be_destroyed() {
    let driver = guest(Layout::Ranges);
    assert!(driver.command(Command::DestroyUc { ctx: KERNEL }).is_err());
    driver.pd(KERNEL);
}

#[test]
fn contexts_run_out_and_come_back() {
    let driver = guest(Layout::Ranges);
    // 16 pages, page 0 is the kernel's.
    let all: Vec<_> = (0..15).map(|_| driver.context()).collect();
    assert_eq!(all.iter().map(|ctx| ctx.0).collect::<HashSet<_>>(), (1..16).collect());
    assert_eq!(driver.command(Command::CreateUc { pfn: 1 }).unwrap_err().errno(), 12);
    driver.command(Command::DestroyUc { ctx: all[7] }).unwrap();
    assert_eq!(driver.context(), all[7]);
}

#[test]
fn handles_keep_the_rules() {
    let driver = guest(Layout::Ranges);
    let caps = driver.device.caps();
    let ctx = driver.context();
    let (pd, cq) = (driver.pd(ctx), driver.cq(ctx, 16));
    assert!(pd.0 < 1 << 24 && cq.handle.0 < caps.max_cq);
    let mut seen = HashSet::new();
    for _ in 0..200 {
        let qp = driver.qp(pd, &cq, &cq, QpSize::wr(1));
        assert!((2..caps.max_qp).contains(&qp.handle.0), "0 reads as none, 1 is the GSI QP");
        assert!(qp.qpn.0 < 1 << 24 && qp.qpn.0 > 1);
        assert!(seen.insert(qp.handle), "handle given out again although others are free");
        if seen.len().is_multiple_of(2) {
            driver.command(Command::DestroyQp { qp: qp.handle }).unwrap();
        }
    }
    let mut keys = HashSet::new();
    for _ in 0..600 {
        let region = driver.try_region(pd, 1, 0, 0).unwrap();
        assert!(region.key >> 8 != 0, "the low byte is the consumer's");
        assert!(keys.insert(region.key));
        driver.dereg(&region);
    }
}

#[test]
fn queues_of_impossible_size_are_refused() {
    for layout in LAYOUTS {
        let driver = guest(layout);
        let ctx = driver.context();
        let (pd, cq) = (driver.pd(ctx), driver.cq(ctx, 16));
        let good = create_qp(&driver, pd, cq.handle, QpSize::default());
        type Spoil = fn(&mut CreateQp);
        let spoils: [Spoil; 17] = [
            |create| create.max_send_wr = 0,
            |create| create.max_recv_wr = 0,
            |create| create.max_send_wr = 63,
            |create| create.max_recv_wr = 3,
            |create| create.max_send_wr = 32768,
            |create| create.max_recv_wr = 0x8000_0000,
            |create| create.max_send_wr = u32::MAX,
            |create| create.max_send_sge = 17,
            |create| create.max_recv_sge = u32::MAX,
            |create| create.max_send_sge = 0x1000_0000,
            |create| create.send_chunks = 0,
            |create| create.send_chunks = 3,
            |create| create.send_chunks = u32::MAX,
            |create| create.max_send_wr = 16384,
            |create| create.max_recv_wr = 16384,
            |create| create.srq = Some(SrqHandle(1)),
            |create| create.qp_type = 3,
        ];
        for (n, spoil) in spoils.into_iter().enumerate() {
            let mut create = good.clone();
            spoil(&mut create);
            let result = driver.command(Command::CreateQp(Box::new(create)));
            assert!(result.is_err(), "{layout:?}: spoil {n} was accepted");
        }
        // GSI is the kernel's.
        for qp_type in (0..=255).filter(|qp_type| ![2, 4].contains(qp_type)) {
            let create = CreateQp { qp_type, ..good.clone() };
            assert!(driver.command(Command::CreateQp(Box::new(create))).is_err(), "type {qp_type}");
        }
        driver.command(Command::CreateQp(Box::new(good))).unwrap();

        for cqe in [0, 3, 17, 65, 524_288, 0x4000_0001, 0x8000_0000, u32::MAX] {
            let buffer = driver.block(&[2]).buffer;
            assert!(driver.command(Command::CreateCq { ctx, cqe, buffer }).is_err(), "cqe {cqe}");
        }
        // 64 entries are a page, so 128 do not fit; neither do 64 if the state page is all there is.
        for (cqe, pages) in [(128, 2), (64, 1), (1, 1), (65536, 1024)] {
            let buffer = driver.block(&[pages]).buffer;
            assert!(driver.command(Command::CreateCq { ctx, cqe, buffer }).is_err(), "{cqe} in {pages} pages");
        }
        assert!(driver.command(Command::CreateCq { ctx, cqe: 1, buffer: Buffer::Ranges(vec![]) }).is_err());
    }
}

#[test]
fn rings_must_begin_on_a_page() {
    let driver = guest(Layout::Ranges);
    let ctx = driver.context();
    let (pd, cq) = (driver.pd(ctx), driver.cq(ctx, 16));
    let at = driver.alloc(16);
    for shift in [1, 2, 4, 64, 2048] {
        let odd = |pages: u64| Span { addr: DmaAddr(at.0 + shift), len: pages * 4096 };
        let buffer = Buffer::Ranges(vec![odd(4)]);
        assert!(driver.command(Command::CreateCq { ctx, cqe: 16, buffer }).is_err(), "CQ {shift} bytes off");
        for buffer in [vec![odd(14)], vec![odd(6), odd(6)], vec![Span { addr: at, len: 3 * 4096 }, odd(6)]] {
            let mut create = create_qp(&driver, pd, cq.handle, QpSize::wr(8));
            create.buffer = Buffer::Ranges(buffer);
            let result = driver.command(Command::CreateQp(Box::new(create)));
            assert!(result.is_err(), "QP {shift} bytes off");
        }
    }
}

#[test]
fn regions_of_impossible_size_are_refused() {
    for layout in LAYOUTS {
        let driver = guest(layout);
        let pd = driver.pd(driver.context());
        let make = |start, length, pages| {
            let kind = MrKind::User(driver.block(&[pages]).buffer);
            driver.command(Command::CreateMr { pd, start, length, access_flags: ALL_ACCESS, kind }).map(|_| ())
        };
        assert_eq!(make(0x1000, 4096, 1), Ok(()));
        assert!(make(0x1000, 0, 1).is_err(), "empty");
        assert!(make(0x1000, 4097, 1).is_err(), "longer than its pages");
        assert!(make(0x1000, driver.device.caps().max_mr_size + 1, 4).is_err(), "longer than allowed");
        assert!(make(0x1000, u64::MAX, 1).is_err());
        assert!(make(u64::MAX - 100, 4096, 1).is_err(), "beyond the address space");
        if layout == Layout::Pdir {
            assert!(make(0x1fff, 2, 1).is_err(), "two bytes on two pages");
            assert_eq!(make(0x1fff, 2, 2), Ok(()));
            assert_eq!(make(0x1fff, 1, 1), Ok(()));
        }
        let kind = MrKind::User(driver.block(&[1]).buffer);
        let create =
            |pd, kind| driver.command(Command::CreateMr { pd, start: 0, length: 1, access_flags: 0, kind }).map(|_| ());
        assert!(create(PdHandle(77), kind).is_err(), "no such PD");
        assert!(create(pd, MrKind::Dma).is_err(), "all of memory is not for users");
        assert_eq!(create(pd, MrKind::FastReg { max_pages: 128 }), Ok(()));
        assert!(create(pd, MrKind::FastReg { max_pages: 129 }).is_err(), "more pages than the device says");
    }
}

#[test]
fn remote_rights_need_the_local_right_to_write() {
    let driver = guest(Layout::Ranges);
    let pd = driver.pd(driver.context());
    for (access, allowed) in [
        (0, true),
        (PVRDMA_ACCESS_REMOTE_READ, true),
        (PVRDMA_ACCESS_REMOTE_WRITE, false),
        (PVRDMA_ACCESS_REMOTE_ATOMIC, false),
        (ALL_ACCESS, true),
        // Hints that the kernel passes on unfiltered.
        (ALL_ACCESS | 1 << 7 | 1 << 20, true),
    ] {
        assert_eq!(driver.try_region(pd, 64, 0, access).is_ok(), allowed, "access {access:#x}");
    }
}

#[test]
fn the_kernels_dma_region_reaches_everything_and_is_nobody_elses() {
    let driver = guest(Layout::Pdir);
    let pd = driver.pd(KERNEL);
    let create =
        Command::CreateMr { pd, start: 0, length: 0, access_flags: PVRDMA_ACCESS_LOCAL_WRITE, kind: MrKind::Dma };
    let Ok(Response::CreateMr { lkey, .. }) = driver.command(create) else { panic!("DMA region") };
    let cq = driver.cq(KERNEL, 16);
    let ends = [0, 1].map(|_| End::with(&driver, pd, cq.clone(), cq.clone(), QpSize::default()));
    connect(&ends[0], &ends[1], &Path::default());
    let (from, into) = (driver.alloc(1), driver.alloc(1));
    driver.ram.set(from, b"kernel");
    ends[1].recv(&RecvWr::new(1, &[(into.0, 6, lkey.0)]));
    ends[0].send(&SendWr::send(2, &[(from.0, 6, lkey.0)]));
    assert_eq!(cq.drain().len(), 2);
    assert_eq!(driver.ram.get(into, 6), b"kernel");
    // Its end is the end of memory, not of the address space: an error, no more.
    ends[1].recv(&RecvWr::new(9, &[(into.0, 6, lkey.0)]));
    ends[0].send(&SendWr::send(3, &[(u64::MAX - 2, 2, lkey.0)]));
    let wc = cq.drain();
    assert_eq!((wc[0].wr_id, wc[0].status), (3, PVRDMA_WC_LOC_PROT_ERR));

    let user = End::new(&driver, QpSize::default());
    user.bring_up(user.endpoint(), &Path::default());
    user.recv(&RecvWr::new(9, &[]));
    user.send(&SendWr::send(4, &[(from.0, 6, lkey.0)]));
    assert_eq!(user.send_cq.ends(), [(4, PVRDMA_WC_LOC_PROT_ERR)], "another PD");
}

#[test]
fn the_gsi_qp_is_the_kernels_and_number_1() {
    let driver = guest(Layout::Ranges);
    let (ctx, pd) = (driver.context(), driver.pd(KERNEL));
    let (cq, user_cq) = (driver.cq(KERNEL, 16), driver.cq(ctx, 16));
    let user = create_qp(&driver, driver.pd(ctx), user_cq.handle, QpSize::default());
    assert!(driver.command(Command::CreateQp(Box::new(CreateQp { qp_type: 1, ..user }))).is_err());
    for _ in 0..2 {
        let gsi = CreateQp { qp_type: 1, ..create_qp(&driver, pd, cq.handle, QpSize::default()) };
        let made = driver.command(Command::CreateQp(Box::new(gsi.clone())));
        assert!(matches!(made, Ok(Response::CreateQp { qpn: Qpn(1), qp: QpHandle(1) })), "{made:?}");
        assert!(driver.command(Command::CreateQp(Box::new(gsi))).is_err(), "there is one");
        driver.command(Command::DestroyQp { qp: QpHandle(1) }).unwrap();
    }
}

#[test]
fn gids_can_be_bound_and_bound_again() {
    let driver = guest(Layout::Ranges);
    let bind = |index, gid, gid_type| {
        driver.command(Command::CreateBind { index, gid, gid_type, vlan: 0xfff, mtu: 1024 }).map(|_| ())
    };
    let (one, two) = ([1; 16], [2; 16]);
    assert_eq!(bind(5, one, GID_TYPE), Ok(()));
    assert_eq!(bind(5, two, GID_TYPE), Ok(()), "an index may be bound anew");
    assert_eq!(driver.device.gid(5), Some(two));
    assert!(bind(16, one, GID_TYPE).is_err());
    assert!(bind(u32::MAX, one, GID_TYPE).is_err());
    assert!(bind(6, one, 3 - GID_TYPE).is_err(), "one GID type per device");
    let unbind = |index| driver.command(Command::DestroyBind { index, gid: [0; 16] }).map(|_| ());
    assert_eq!((unbind(5), unbind(5), unbind(15)), (Ok(()), Ok(()), Ok(())), "an empty index is empty already");
    assert!(unbind(16).is_err());
    assert_eq!(driver.device.gid(5), None);
}

#[test]
fn a_gid_bound_twice_stays_while_one_is_left() {
    let fabric = Fabric::new();
    let [a, b] =
        [0, 1].map(|index| End::new(&Arc::new(Driver::new(&fabric, index, Layout::Ranges)), QpSize::default()));
    let gid = b.driver.gid;
    b.driver.command(Command::CreateBind { index: 4, gid, gid_type: GID_TYPE, vlan: 0, mtu: 0 }).unwrap();
    b.driver.command(Command::DestroyBind { index: 0, gid }).unwrap();
    a.bring_up(b.endpoint(), &Path::default());
    let path = Path::default();
    b.modify(path.init()).unwrap();
    let (mask, mut attrs) = path.rtr(a.endpoint());
    assert!(b.modify((mask, attrs)).is_err(), "index 0 is empty");
    attrs.ah_attr.grh.sgid_index = 4;
    b.modify((mask, attrs)).unwrap();
    b.recv(&RecvWr::new(1, &[]));
    a.send(&SendWr::send(1, &[]));
    assert_eq!(a.send_cq.ends(), [(1, 0)]);
}

#[test]
fn srqs_of_impossible_size_are_refused() {
    for layout in LAYOUTS {
        let driver = guest(layout);
        let pd = driver.pd(driver.context());
        let caps = driver.device.caps();
        let make = |max_wr, max_sge, srq_limit, srq_type, pages| {
            let buffer = driver.block(&[pages]).buffer;
            let create = Command::CreateSrq { pd, max_wr, max_sge, srq_limit, srq_type, buffer };
            driver.command(create).map_err(|error| error.errno())
        };
        // 128 WQEs of one SGE are a page.
        let Ok(Response::CreateSrq { srq }) = make(128, 1, 128, 0, 2) else { panic!("CREATE_SRQ") };
        make(caps.max_srq_wr, 1, 0, 0, 200).unwrap();
        make(128, 1, 0, 0, 4).expect("the C provider gives twice what is needed");
        for (max_wr, max_sge, limit, srq_type, pages, errno) in [
            (0, 1, 0, 0, 2, 22),
            (127, 1, 0, 0, 2, 22),
            (2 * caps.max_srq_wr, 1, 0, 0, 400, 22),
            (0x8000_0000, 1, 0, 0, 2, 22),
            (u32::MAX, 1, 0, 0, 2, 22),
            (128, caps.max_srq_sge + 1, 0, 0, 40, 22),
            (128, u32::MAX, 0, 0, 40, 22),
            (128, 1, 129, 0, 2, 22),
            (128, 1, 0, 0, 1, 22),
            (256, 1, 0, 0, 2, 22),
            (128, 1, 0, 1, 2, 95),
        ] {
            let made = make(max_wr, max_sge, limit, srq_type, pages);
            assert_eq!(made.map(|_| ()), Err(errno), "{max_wr} of {max_sge}, limit {limit}, type {srq_type}, {pages}");
        }
        let query = |srq| match driver.command(Command::QuerySrq { srq }) {
            Ok(Response::QuerySrq { max_wr, max_sge, srq_limit }) => Ok((max_wr, max_sge, srq_limit)),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.errno()),
        };
        let modify = |attr_mask, srq_limit| {
            driver.command(Command::ModifySrq { srq, attr_mask, srq_limit }).map(|_| ()).map_err(|error| error.errno())
        };
        assert_eq!(query(srq), Ok((128, 1, 128)));
        assert_eq!(modify(PVRDMA_SRQ_LIMIT, 129), Err(22));
        assert_eq!(modify(PVRDMA_SRQ_MAX_WR, 5), Err(22), "it cannot grow");
        assert_eq!(modify(0, 5), Err(22));
        assert_eq!(query(srq), Ok((128, 1, 128)), "unchanged by what was refused");
        assert_eq!(modify(PVRDMA_SRQ_LIMIT, 0), Ok(()));
        assert_eq!(modify(PVRDMA_SRQ_LIMIT | PVRDMA_SRQ_MAX_WR, 7), Ok(()));
        assert_eq!(query(srq), Ok((128, 1, 7)));
        driver.command(Command::DestroySrq { srq }).unwrap();
        assert_eq!(query(srq), Err(22));
        assert_eq!(driver.command(Command::DestroySrq { srq }).unwrap_err().errno(), 22);
        assert_eq!(modify(PVRDMA_SRQ_LIMIT, 0), Err(22));
    }
}

#[test]
fn limits_are_powers_of_two_and_ports_answer() {
    let driver = guest(Layout::Ranges);
    let caps = driver.device.caps();
    for value in [caps.max_qp, caps.max_qp_wr, caps.max_sge, caps.max_cq, caps.max_cqe, caps.max_uar] {
        assert!(value.is_power_of_two(), "rounding up must not lead beyond the limit: {value}");
    }
    assert!(caps.max_qp < 65536, "providers size a table with the low 16 bits");
    let Ok(Response::QueryPort(port)) = driver.command(Command::QueryPort { port_num: 1 }) else { panic!("port 1") };
    assert!(port.gid_tbl_len <= caps.gid_tbl_len);
    assert_eq!(u32::from(port.pkey_tbl_len), u32::from(caps.max_pkeys));
    for port_num in [0, 2, 255] {
        assert!(driver.command(Command::QueryPort { port_num }).is_err());
        assert!(driver.command(Command::QueryPkey { port_num, index: 0 }).is_err());
    }
    assert!(driver.command(Command::QueryPkey { port_num: 1, index: 1 }).is_err());
    let pkey = driver.command(Command::QueryPkey { port_num: 1, index: 0 });
    assert!(matches!(pkey, Ok(Response::QueryPkey { pkey: 0xffff })));
}

#[test]
fn a_doorbell_on_another_contexts_page_is_ignored() {
    let fabric = Fabric::new();
    let [a, b] =
        [0, 1].map(|index| End::new(&Arc::new(Driver::new(&fabric, index, Layout::Ranges)), QpSize::default()));
    connect(&a, &b, &Path::default());
    let stranger = a.driver.context();
    let target = b.region(64);
    a.qp.post_send(&SendWr::write(1, &[], &target, 0));
    for ctx in [stranger, CtxHandle(99), CtxHandle(u32::MAX)] {
        a.qp.ring_send_as(ctx);
        assert_eq!(a.send_cq.ends(), [], "context {ctx:?}");
    }
    a.qp.ring_send_as(KERNEL);
    assert_eq!(a.send_cq.ends(), [(1, 0)]);
}

#[test]
fn reset_leaves_nothing() {
    let fabric = Fabric::new();
    let [driver, peer] = [0, 1].map(|index| Arc::new(Driver::new(&fabric, index, Layout::Pdir)));
    for _ in 0..3 {
        let (a, b) = (End::new(&driver, QpSize::default()), End::new(&peer, QpSize::default()));
        connect(&a, &b, &Path { rnr_retry: 7, min_rnr_timer: 0, ..Path::default() });
        let region = a.region(64);
        a.send(&SendWr::send(1, &[]));
        driver.device.reset();
        for page in a.qp.block.pages.iter().chain(&a.send_cq.block.pages).chain([&region.page_of(0)]) {
            driver.ram.watch(*page, 4096);
        }
        b.send(&SendWr::write(1, &[], &region, 0));
        a.qp.ring_send();
        a.send_cq.ring(PVRDMA_UAR_CQ_ARM);
        pump(&[&*driver, &*peer]);
        assert_eq!(driver.ram.touched(), 0);
        assert_eq!(driver.device.gid(0), None);
        assert_eq!(driver.device.poll(), None);
        driver.bind();
    }
}
