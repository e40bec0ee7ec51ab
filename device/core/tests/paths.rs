//! Which way a QP goes, what is told of it, and what is counted on the way.

use pvrdma_device::handle::Gid;
use pvrdma_device::memory::{Memory, Span};
use pvrdma_device::testing::driver::{Driver, Layout};
use pvrdma_device::testing::end::{End, Path as Attributes, connect, nowhere, pump_until};
use pvrdma_device::testing::queue::{QpSize, RecvWr, SendWr, sge};
use pvrdma_device::transport::fabric::{Fabric, Origin, Uplink};
use pvrdma_device::transport::figures::{Counted, QpReport};
use pvrdma_device::transport::{Endpoint, Path, Request, Submitted, Token};
use pvrdma_ffi::dev_api::*;
use pvrdma_ffi::uapi::vmw_pvrdma::*;
use std::sync::Arc;
use std::time::Duration;

/// Longer than anything here may take.
const LIMIT: Duration = Duration::from_secs(20);

fn guests_of(fabric: &Arc<Fabric>) -> [End; 2] {
    [0, 1].map(|index| End::new(&Arc::new(Driver::new(fabric, index, Layout::Ranges)), QpSize::default()))
}

fn guests() -> [End; 2] {
    guests_of(&Fabric::new())
}

/// What the next send of `a` ends with: status and `vendor_err`.
fn send(a: &End, others: &[&Driver]) -> (u32, u32) {
    a.send(&SendWr::send(1, &[]));
    let drivers: Vec<&Driver> = others.iter().copied().chain([&*a.driver]).collect();
    assert!(pump_until(&drivers, LIMIT, || a.send_cq.waiting() > 0));
    let completion = a.send_cq.poll().expect("a completion");
    (completion.status, completion.vendor_err)
}

fn hasty() -> Attributes {
    Attributes { timeout: 8, retry_cnt: 1, rnr_retry: 1, ..Attributes::default() }
}

/// The only QP of an end.
fn report(end: &End) -> QpReport {
    let reports = end.driver.device.report();
    assert_eq!(reports.len(), 1);
    reports[0]
}

#[test]
fn who_gives_up_is_told_which_path_has_died() {
    // It was there.
    let [a, b] = guests();
    connect(&a, &b, &hasty());
    b.recv(&RecvWr::new(1, &[]));
    assert_eq!(send(&a, &[&b.driver]), (PVRDMA_WC_SUCCESS, 0));
    assert_eq!((report(&a).path, a.driver.device.path(a.qp.handle)), (Path::Memory, Path::Memory));
    drop(b);
    assert_eq!(report(&a).path, Path::None);
    assert_eq!(send(&a, &[]), (PVRDMA_WC_RETRY_EXC_ERR, 0x81));

    // It never was.
    let [a, _] = guests();
    a.bring_up(nowhere(), &hasty());
    assert_eq!(report(&a).path, Path::None);
    assert_eq!(send(&a, &[]), (PVRDMA_WC_RETRY_EXC_ERR, 0x80));

    // Another peer had one.
    let [a, b] = guests();
    connect(&a, &b, &hasty());
    b.recv(&RecvWr::new(1, &[]));
    assert_eq!(send(&a, &[&b.driver]), (PVRDMA_WC_SUCCESS, 0));
    a.modify_state(PVRDMA_QPS_SQD).expect("SQD");
    let (mask, mut attrs) = hasty().rtr(nowhere());
    attrs.qp_state = PVRDMA_QPS_SQD;
    a.modify((mask & (PVRDMA_QP_STATE | PVRDMA_QP_AV), attrs)).expect("another address");
    a.modify_state(PVRDMA_QPS_RTS).expect("RTS");
    assert_eq!(send(&a, &[&b.driver]), (PVRDMA_WC_RETRY_EXC_ERR, 0x80));

    // It is there, and nobody answers.
    let [a, b] = guests();
    a.bring_up(Endpoint { qpn: nowhere().qpn, ..b.endpoint() }, &hasty());
    assert_eq!(send(&a, &[&b.driver]), (PVRDMA_WC_RETRY_EXC_ERR, 0));
}

#[test]
fn behind_a_path_that_is_left_out_nobody_answers() {
    let [a, b] = guests_of(&Fabric::of("tcp".parse().unwrap(), None));
    connect(&a, &b, &hasty());
    assert_eq!(report(&a).path, Path::None);
    assert_eq!(send(&a, &[&b.driver]), (PVRDMA_WC_RETRY_EXC_ERR, 0x80));
    assert_eq!(report(&b).received, Counted::default());
}

/// The way to host 9, which nobody goes.
struct Uphill;

impl Uplink for Uphill {
    fn submit(&self, _from: &Origin, _request: &Request, _memory: &dyn Memory, _local: &[Span]) -> Submitted {
        Submitted::Pending
    }
    fn cancel(&self, _port: u64, _token: Token) {}
    fn lost(&self, _port: u64, _token: Token) -> bool {
        false
    }
    fn bound(&self, _gid: Gid, _bound: bool) {}
    fn path(&self, _gid: &Gid) -> Path {
        Path::Tcp { host: 9 }
    }
}

#[test]
fn an_uplink_that_is_left_out_is_used_in_neither_direction() {
    for (paths, path, found) in [("memory,tcp", Path::Tcp { host: 9 }, true), ("memory", Path::None, false)] {
        let fabric = Fabric::of(paths.parse().unwrap(), Some(Arc::new(Uphill)));
        let [a, b] = guests_of(&fabric);
        a.bring_up(nowhere(), &hasty());
        assert_eq!(report(&a).path, path);
        assert_eq!(fabric.station(&b.driver.gid).is_some(), found);
        b.bring_up(a.endpoint(), &hasty());
        assert_eq!(report(&b).path, Path::Memory);
        if !found {
            assert_eq!(send(&a, &[&b.driver]), (PVRDMA_WC_RETRY_EXC_ERR, 0x80));
        }
    }
}

#[test]
fn requests_are_counted_at_both_ends() {
    let [a, b] = guests();
    connect(&a, &b, &Attributes::default());
    let (source, target) = (a.region(1 << 16), b.region(1 << 16));
    let both = [&*a.driver, &*b.driver];
    for n in 0..3 {
        b.recv(&RecvWr::new(n, &[sge(&target, 0, 5000)]));
    }
    // Signaled or not, in one packet or in many.
    a.send(&SendWr::send(1, &[sge(&source, 0, 5000)]));
    a.send(&SendWr::write(2, &[sge(&source, 0, 1 << 16)], &target, 0).flags(0));
    a.send(&SendWr::write(3, &[sge(&source, 0, 10)], &target, 0).imm(7));
    a.send(&SendWr::read(4, &[sge(&source, 0, 4097)], &target, 0));
    a.send(&SendWr::fetch_add(5, sge(&source, 0, 8), &target, 0, 1));
    a.send(&SendWr::send(6, &[]));
    assert!(pump_until(&both, LIMIT, || a.send_cq.waiting() >= 5));
    let counted = Counted { messages: 6, bytes: 5000 + (1 << 16) + 10 + 4097 + 8 };
    let [one, other] = [report(&a), report(&b)];
    assert_eq!((one.sent, one.received), (counted, Counted::default()));
    assert_eq!((other.sent, other.received), (Counted::default(), counted));
    assert_eq!((one.resent, one.rnr, one.peer), (0, 0, Some(b.endpoint())));

    // What fails is not done, and tries are told.
    a.send(&SendWr::send(7, &[]));
    b.recv(&RecvWr::new(9, &[]));
    assert!(pump_until(&both, LIMIT, || a.send_cq.waiting() >= 6));
    let one = report(&a);
    assert_eq!((one.sent.messages, one.rnr), (7, 1));
    b.destroy();
    assert!(b.driver.device.report().is_empty());
    a.send(&SendWr::send(8, &[]));
    assert!(pump_until(&both, LIMIT, || a.send_cq.waiting() >= 7));
    let one = report(&a);
    assert_eq!((one.sent.messages, one.resent), (7, u64::from(Attributes::default().retry_cnt)));
}

#[test]
fn a_path_that_changes_is_told() {
    let [a, b] = guests();
    connect(&a, &b, &hasty());
    b.recv(&RecvWr::new(1, &[]));
    send(&a, &[&b.driver]);
    assert_eq!(a.driver.bell.paths(), [], "who gave the command has heard of it");
    let gid = b.driver.gid;
    drop(b);
    send(&a, &[]);
    assert_eq!(a.driver.bell.paths(), [(a.qp.handle, gid, Path::None)]);
}

#[test]
fn the_path_of_datagrams_is_told_for_each_address_once() {
    const QKEY: u32 = 0x1111;
    let fabric = Fabric::new();
    let [a, b, c] = [0, 1, 2].map(|index| {
        let driver = Arc::new(Driver::new(&fabric, index, Layout::Ranges));
        let ctx = driver.context();
        let cqs = (driver.cq(ctx, 64), driver.cq(ctx, 64));
        End::ud(&driver, driver.pd(ctx), cqs, None, QpSize::default(), QKEY)
    });
    let to = |end: &End| a.send(&SendWr::datagram(1, &[], &a.av(end, QKEY)));
    [&b, &c, &b, &b, &c].into_iter().for_each(to);
    let told = |end: &End, path| (a.qp.handle, end.driver.gid, path);
    assert_eq!(a.driver.bell.paths(), [told(&b, Path::Memory), told(&c, Path::Memory)]);
    c.driver.device.reset();
    to(&c);
    to(&b);
    to(&c);
    assert_eq!(a.driver.bell.paths()[2..], [told(&c, Path::None)]);
    let report = report(&a);
    assert_eq!((report.sent.messages, report.peer, report.path), (8, None, Path::None));
}
