//! The life of a connection by MODIFY_QP: what each state does, what is refused, what is told.

use pvrdma_device::command::CommandError;
use pvrdma_device::interrupt::AsyncEvent;
use pvrdma_device::testing::driver::{ALL_ACCESS, Driver, Layout};
use pvrdma_device::testing::end::{End, Path, connect, pump};
use pvrdma_device::testing::queue::{QpSize, RecvWr, SendWr, sge};
use pvrdma_device::transport::fabric::Fabric;
use pvrdma_ffi::dev_api::*;
use pvrdma_ffi::uapi::vmw_pvrdma::*;
use std::sync::Arc;

fn guests() -> [End; 2] {
    let fabric = Fabric::new();
    [0, 1].map(|index| End::new(&Arc::new(Driver::new(&fabric, index, Layout::Ranges)), QpSize::default()))
}

fn to(state: u32) -> (u32, pvrdma_qp_attr) {
    (PVRDMA_QP_STATE, pvrdma_qp_attr { qp_state: state, ..Default::default() })
}

#[test]
fn a_refused_change_changes_nothing() {
    let [a, b] = guests();
    let path = Path::default();
    a.modify(path.init()).unwrap();
    let before = a.query();
    let (mask, attrs) = path.rtr(b.endpoint());
    let bad = |mask: u32, change: fn(&mut pvrdma_qp_attr)| {
        let mut attrs = attrs;
        change(&mut attrs);
        assert!(matches!(a.modify((mask, attrs)), Err(CommandError::Invalid(_))), "mask {mask:#x}");
        let now = a.query();
        assert_eq!(format!("{now:?}"), format!("{before:?}"));
    };
    for bit in (0..21).map(|n| 1 << n).filter(|bit| mask & bit != 0 && *bit != PVRDMA_QP_STATE) {
        bad(mask & !bit, |_| {});
    }
    bad(mask | PVRDMA_QP_QKEY, |_| {});
    bad(mask, |attrs| attrs.path_mtu = 0);
    bad(mask, |attrs| attrs.path_mtu = 6);
    bad(mask, |attrs| attrs.min_rnr_timer = 32);
    bad(mask, |attrs| attrs.dest_qp_num = 0x0100_0000);
    bad(mask, |attrs| attrs.ah_attr.grh.sgid_index = 1);
    bad(mask, |attrs| attrs.ah_attr.grh.sgid_index = 255);
    bad(mask, |attrs| attrs.qp_state = PVRDMA_QPS_RTS);
    bad(mask, |attrs| attrs.qp_state = u32::MAX);
    bad(mask | PVRDMA_QP_CUR_STATE, |attrs| attrs.cur_qp_state = PVRDMA_QPS_RTR);
    a.modify((mask, attrs)).unwrap();
    assert_eq!(a.query().qp_state, PVRDMA_QPS_RTR);
}

/// A connection's packets are no longer than those that the port carries.
#[test]
fn a_path_mtu_above_the_ports_is_refused() {
    let fabric = Fabric::new();
    let [a, b] =
        [0, 1].map(|index| End::new(&Arc::new(Driver::narrow(&fabric, index, Layout::Pdir, 1024)), QpSize::default()));
    let path = |mtu| Path { mtu, ..Path::default() };
    a.modify(path(PVRDMA_MTU_1024).init()).unwrap();
    let before = a.query();
    for mtu in [PVRDMA_MTU_2048, PVRDMA_MTU_4096] {
        assert!(matches!(a.modify(path(mtu).rtr(b.endpoint())), Err(CommandError::Invalid(_))), "{mtu}");
        assert_eq!(format!("{:?}", a.query()), format!("{before:?}"));
    }
    a.modify(path(PVRDMA_MTU_1024).rtr(b.endpoint())).unwrap();
}

#[test]
fn every_transition_is_legal_or_refused_as_the_table_says() {
    use PVRDMA_QPS_ERR as ERR;
    use PVRDMA_QPS_INIT as INIT;
    use PVRDMA_QPS_RESET as RESET;
    use PVRDMA_QPS_RTR as RTR;
    use PVRDMA_QPS_RTS as RTS;
    use PVRDMA_QPS_SQD as SQD;
    let legal = [(RESET, INIT), (INIT, INIT), (INIT, RTR), (RTR, RTS), (RTS, RTS), (RTS, SQD), (SQD, RTS), (SQD, SQD)];
    let [a, b] = guests();
    let path = Path::default();
    let reach = |state: u32| {
        a.reset();
        let steps = [path.init(), path.rtr(b.endpoint()), path.rts(), to(SQD)];
        let count = match state {
            RESET => 0,
            INIT | ERR => 1,
            RTR => 2,
            RTS => 3,
            _ => 4,
        };
        for step in &steps[..count] {
            a.modify(*step).unwrap();
        }
        if state == ERR {
            a.modify_state(ERR).unwrap();
        }
        assert_eq!(a.query().qp_state, state);
    };
    for from in [RESET, INIT, RTR, RTS, SQD, ERR] {
        for target in 0..=8 {
            reach(from);
            let change = match (from, target) {
                (RESET, INIT) => path.init(),
                (INIT, RTR) => path.rtr(b.endpoint()),
                (RTR, RTS) => path.rts(),
                _ => to(target),
            };
            let expected = legal.contains(&(from, target)) || target == RESET || target == ERR && from != RESET;
            assert_eq!(a.modify(change).is_ok(), expected, "{from} -> {target}");
            assert_eq!(a.query().qp_state, if expected { target } else { from });
        }
    }
}

#[test]
fn err_and_reset_take_no_other_attribute() {
    let [a, b] = guests();
    connect(&a, &b, &Path::default());
    for state in [PVRDMA_QPS_ERR, PVRDMA_QPS_RESET] {
        for bit in [PVRDMA_QP_ACCESS_FLAGS, PVRDMA_QP_AV, PVRDMA_QP_SQ_PSN, PVRDMA_QP_TIMEOUT] {
            let (mask, attrs) = to(state);
            assert!(a.modify((mask | bit, attrs)).is_err());
        }
    }
    assert_eq!(a.query().qp_state, PVRDMA_QPS_RTS);
}

#[test]
fn query_returns_what_modify_set() {
    let [a, b] = guests();
    let path = Path { access: 5, mtu: 2, psn: 0x1234, timeout: 9, retry_cnt: 3, rnr_retry: 4, ..Path::default() };
    a.bring_up(b.endpoint(), &path);
    let attrs = a.query();
    assert_eq!((attrs.qp_state, attrs.cur_qp_state), (PVRDMA_QPS_RTS, PVRDMA_QPS_RTS));
    assert_eq!((attrs.qp_access_flags, attrs.path_mtu, attrs.sq_psn, attrs.rq_psn), (5, 2, 0x1234, 0x1234));
    assert_eq!((attrs.timeout, attrs.retry_cnt, attrs.rnr_retry), (9, 3, 4));
    assert_eq!((attrs.min_rnr_timer, attrs.max_rd_atomic, attrs.max_dest_rd_atomic), (1, 4, 4));
    assert_eq!((attrs.dest_qp_num, attrs.ah_attr.grh.dgid), (b.qp.qpn.0, b.driver.gid));
    assert_eq!((attrs.cap.max_send_wr, attrs.cap.max_recv_wr), (64, 64));
    assert_eq!((attrs.cap.max_send_sge, attrs.cap.max_recv_sge, attrs.cap.max_inline_data), (4, 4, 0));
}

#[test]
fn comm_est_once_in_rtr() {
    let [a, b] = guests();
    let path = Path::default();
    a.bring_up(b.endpoint(), &path);
    b.modify(path.init()).unwrap();
    b.modify(path.rtr(a.endpoint())).unwrap();
    for n in 0..3 {
        b.recv(&RecvWr::new(n, &[]));
        a.send(&SendWr::send(n, &[]));
    }
    assert_eq!(b.driver.bell.events(), [AsyncEvent::CommEst(b.qp.handle)]);
    assert_eq!(b.recv_cq.ends(), [(0, 0), (1, 0), (2, 0)], "RTR receives");
    b.modify(path.rts()).unwrap();
    b.recv(&RecvWr::new(3, &[]));
    a.send(&SendWr::send(3, &[]));
    assert_eq!(b.driver.bell.events().len(), 1, "not again in RTS");
    // A QP that was in RTS before the first message has nothing to tell.
    assert_eq!(a.driver.bell.events(), []);
    a.recv(&RecvWr::new(4, &[]));
    b.send(&SendWr::send(4, &[]));
    assert_eq!(a.driver.bell.events(), []);
    // A new life tells again.
    a.reset();
    b.reset();
    a.bring_up(b.endpoint(), &path);
    b.modify(path.init()).unwrap();
    b.modify(path.rtr(a.endpoint())).unwrap();
    a.send(&SendWr::send(5, &[]).flags(0));
    assert_eq!(b.driver.bell.events().len(), 2);
}

#[test]
fn sends_wait_for_rts() {
    let [a, b] = guests();
    let path = Path::default();
    b.bring_up(a.endpoint(), &path);
    b.recv(&RecvWr::new(1, &[]));
    a.modify(path.init()).unwrap();
    a.send(&SendWr::send(1, &[]));
    a.modify(path.rtr(b.endpoint())).unwrap();
    a.qp.ring_send();
    assert_eq!(a.send_cq.ends(), []);
    a.modify(path.rts()).unwrap();
    assert_eq!(a.send_cq.ends(), [(1, 0)], "it needs no further doorbell");
}

#[test]
fn sqd_begins_nothing_and_rts_goes_on() {
    let [a, b] = guests();
    connect(&a, &b, &Path { rnr_retry: 7, min_rnr_timer: 1, ..Path::default() });
    a.modify_state(PVRDMA_QPS_SQD).unwrap();
    b.recv(&RecvWr::new(1, &[]));
    a.send(&SendWr::send(1, &[]));
    pump(&[&*a.driver, &*b.driver]);
    assert_eq!(a.send_cq.ends(), []);
    assert_eq!(a.query().sq_draining, 0);
    // The responder half goes on as before.
    a.recv(&RecvWr::new(2, &[]));
    b.send(&SendWr::send(2, &[]));
    assert_eq!(a.recv_cq.ends(), [(2, 0)]);
    a.modify_state(PVRDMA_QPS_RTS).unwrap();
    assert_eq!(a.send_cq.ends(), [(1, 0)]);
}

#[test]
fn sq_drained_is_told_when_asked_for_and_when_it_is_true() {
    let ask = |end: &End| {
        let (mask, mut attrs) = to(PVRDMA_QPS_SQD);
        attrs.en_sqd_async_notify = 1;
        end.modify((mask | PVRDMA_QP_EN_SQD_ASYNC_NOTIFY, attrs)).unwrap();
    };
    let [a, b] = guests();
    connect(&a, &b, &Path { rnr_retry: 7, min_rnr_timer: 1, ..Path::default() });
    a.modify_state(PVRDMA_QPS_SQD).unwrap();
    assert_eq!(a.driver.bell.events(), [], "nobody asked");
    a.modify_state(PVRDMA_QPS_RTS).unwrap();
    ask(&a);
    let drained = AsyncEvent::SqDrained(a.qp.handle);
    assert_eq!(a.driver.bell.events(), [drained], "nothing was on its way");
    a.modify_state(PVRDMA_QPS_RTS).unwrap();

    a.send(&SendWr::send(1, &[]));
    ask(&a);
    assert_eq!(a.driver.bell.events(), [drained], "it waits for a receive");
    assert_eq!(a.query().sq_draining, 1);
    b.recv(&RecvWr::new(1, &[]));
    let limit = std::time::Duration::from_secs(5);
    let drivers = [&*a.driver, &*b.driver];
    assert!(pvrdma_device::testing::end::pump_until(&drivers, limit, || a.send_cq.waiting() == 1));
    assert_eq!(a.driver.bell.events(), [drained, drained]);
    assert_eq!(a.query().sq_draining, 0);
    a.qp.ring_send();
    assert_eq!(a.driver.bell.events().len(), 2, "once");
    a.modify_state(PVRDMA_QPS_RTS).unwrap();
    a.modify_state(PVRDMA_QPS_SQD).unwrap();
    assert_eq!(a.driver.bell.events().len(), 2, "asked for each time");
}

#[test]
fn access_can_be_taken_away_in_rts() {
    let [a, b] = guests();
    connect(&a, &b, &Path::default());
    let (local, remote) = (a.region(64), b.region(64));
    let write = |n| SendWr::write(n, &[sge(&local, 0, 8)], &remote, 0);
    a.send(&write(1));
    // With the state named or not: both mean "stay in RTS".
    let (mask, mut attrs) = to(PVRDMA_QPS_RTS);
    attrs.qp_access_flags = PVRDMA_ACCESS_REMOTE_WRITE;
    b.modify((mask | PVRDMA_QP_ACCESS_FLAGS, attrs)).unwrap();
    attrs.qp_access_flags = PVRDMA_ACCESS_REMOTE_READ;
    b.modify((PVRDMA_QP_ACCESS_FLAGS, attrs)).unwrap();
    a.send(&SendWr::read(2, &[sge(&local, 0, 8)], &remote, 0));
    a.send(&write(3));
    assert_eq!(a.send_cq.ends(), [(1, 0), (2, 0), (3, PVRDMA_WC_REM_ACCESS_ERR)]);
}

#[test]
fn a_qp_may_be_connected_to_itself() {
    let [a, _] = guests();
    a.bring_up(a.endpoint(), &Path::default());
    let (from, into) = (a.region(64), a.region(64));
    from.set(0, b"to myself");
    a.recv(&RecvWr::new(1, &[sge(&into, 0, 64)]));
    a.send(&SendWr::send(2, &[sge(&from, 0, 9)]));
    a.send(&SendWr::write(3, &[sge(&from, 0, 9)], &into, 32));
    assert_eq!((a.recv_cq.ends(), a.send_cq.ends()), (vec![(1, 0)], vec![(2, 0), (3, 0)]));
    assert_eq!((into.get(0, 9), into.get(32, 9)), (b"to myself".to_vec(), b"to myself".to_vec()));
    // And may fail itself: both halves end, each once.
    a.recv(&RecvWr::new(4, &[]));
    a.send(&SendWr::write(5, &[sge(&from, 0, 9)], &into, 60));
    pump(&[&*a.driver]);
    assert_eq!(a.send_cq.ends(), [(5, PVRDMA_WC_REM_ACCESS_ERR)]);
    assert_eq!(a.recv_cq.ends(), [(4, PVRDMA_WC_WR_FLUSH_ERR)]);
}

#[test]
fn a_guest_cannot_speak_or_listen_under_anothers_address() {
    // Three guests; c binds b's GID too and tries to be b towards a.
    let fabric = Fabric::new();
    let [a, b, c] =
        [0, 1, 2].map(|index| End::new(&Arc::new(Driver::new(&fabric, index, Layout::Ranges)), QpSize::default()));
    let bind = pvrdma_device::command::Command::CreateBind {
        index: 3,
        gid: b.driver.gid,
        gid_type: pvrdma_device::testing::driver::GID_TYPE,
        vlan: 0xfff,
        mtu: 1024,
    };
    c.driver.command(bind).unwrap();
    let path = Path::default();
    connect(&a, &b, &path);
    // To listen: b's traffic still reaches b.
    b.recv(&RecvWr::new(1, &[]));
    a.send(&SendWr::send(1, &[]));
    assert_eq!(b.recv_cq.ends(), [(1, 0)]);
    // To speak: a listens to b's GID with c's QP number, so that only the address tells them apart.
    a.reset();
    a.bring_up(pvrdma_device::transport::Endpoint { gid: b.driver.gid, qpn: c.qp.qpn }, &path);
    c.modify(path.init()).unwrap();
    let (mask, mut attrs) = path.rtr(a.endpoint());
    attrs.ah_attr.grh.sgid_index = 3;
    c.modify((mask, attrs)).unwrap();
    c.modify(path.rts()).unwrap();
    let target = a.driver.try_region(a.pd, 64, 0, ALL_ACCESS).unwrap();
    let source = c.region(64);
    source.set(0, &[0xee; 8]);
    c.send(&SendWr::write(1, &[sge(&source, 0, 8)], &target, 0));
    assert_eq!(target.get(0, 8), [0; 8], "nothing was written in b's name");
}
