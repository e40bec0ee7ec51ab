//! Datagrams: what arrives and with what in front of it, what is dropped without a word, and how a send that fails
//! stops the sends of its QP and nothing else. GSI QPs behave as UD QPs with another number.

use pvrdma_device::command::Response;
use pvrdma_device::handle::{CtxHandle, KERNEL, PdHandle, Qpn};
use pvrdma_device::interrupt::AsyncEvent;
use pvrdma_device::testing::driver::{Driver, GSI, Layout, Region};
use pvrdma_device::testing::end::{End, Path, pump};
use pvrdma_device::testing::queue::{QpSize, RecvWr, SendWr, To, sge};
use pvrdma_device::transport::fabric::Fabric;
use pvrdma_ffi::dev_api::*;
use pvrdma_ffi::uapi::vmw_pvrdma::*;
use std::sync::Arc;

const QKEY: u32 = 0x1122;
const GRH: u32 = 40;

struct Bench {
    a: End,
    b: End,
    local: Region,
    inbox: Region,
}

fn end(driver: &Arc<Driver>, ctx: CtxHandle, pd: PdHandle) -> End {
    let (send_cq, recv_cq) = (driver.cq(ctx, 64), driver.cq(ctx, 64));
    End::ud(driver, pd, (send_cq, recv_cq), None, QpSize::wr(16), QKEY)
}

fn bench() -> Bench {
    let fabric = Fabric::new();
    let [a, b] = [0, 1].map(|index| {
        let driver = Arc::new(Driver::new(&fabric, index, Layout::Pdir));
        let ctx = driver.context();
        end(&driver, ctx, driver.pd(ctx))
    });
    let (local, inbox) = (a.region(16384), b.region(16384));
    local.set(0, &(0..16384u32).map(|n| ((n * 7) >> 3) as u8).collect::<Vec<_>>());
    Bench { a, b, local, inbox }
}

impl Bench {
    fn to(&self) -> To {
        self.a.av(&self.b, QKEY)
    }

    /// The datagram is sent and nobody hears of it; a receive that waits goes on waiting.
    fn dropped(&self, what: &str, wr: SendWr) {
        let waiting = self.b.qp.recvs_out();
        self.a.send(&wr);
        pump(&[&self.a.driver, &self.b.driver]);
        assert_eq!(self.a.send_cq.ends(), [(wr.wr_id, 0)], "{what}: sent is done");
        assert_eq!(self.b.recv_cq.ends(), [], "{what}");
        assert_eq!(self.b.qp.recvs_out(), waiting, "{what}: no receive was spent");
        assert_eq!(self.b.driver.bell.events(), [], "{what}");
        assert_eq!(self.b.query().qp_state, PVRDMA_QPS_RTS, "{what}");
    }
}

#[test]
fn a_datagram_arrives_behind_forty_bytes() {
    let bench = bench();
    for (n, len) in [0, 1, 8, 63, 4055, 4056, 4096].into_iter().enumerate() {
        bench.inbox.set(0, &[0xee; 8192]);
        // In two pieces that the header ends in the middle of.
        let pieces = [sge(&bench.inbox, 0, 50), sge(&bench.inbox, 100, 6000)];
        bench.b.recv(&RecvWr::new(70, &pieces));
        let wr = SendWr::datagram(n as u64, &[sge(&bench.local, 3, len)], &bench.to());
        let (wr, imm) = if n % 2 == 0 { (wr, None) } else { (wr.imm(0xabcd), Some(0xabcd)) };
        bench.a.send(&wr);
        assert_eq!(bench.a.send_cq.ends(), [(n as u64, 0)]);
        let wc = bench.b.recv_cq.poll().expect("a datagram");
        assert_eq!((wc.wr_id, wc.status, wc.opcode, wc.byte_len), (70, 0, PVRDMA_WC_RECV, len + GRH));
        assert_eq!((wc.src_qp, wc.qp), (bench.a.qp.qpn.0, u64::from(bench.b.qp.handle.0)));
        let flags =
            PVRDMA_WC_GRH | PVRDMA_WC_WITH_NETWORK_HDR_TYPE | if imm.is_some() { PVRDMA_WC_WITH_IMM } else { 0 };
        assert_eq!((wc.wc_flags, wc.imm_data), (flags, imm.unwrap_or(0)));
        assert_eq!(wc.network_hdr_type, PVRDMA_NETWORK_IPV6);
        let mut got = bench.inbox.get(0, 50);
        got.extend(bench.inbox.get(100, 6000));
        assert_eq!(got[0] >> 4, 6, "an IPv6 header");
        assert_eq!((&got[8..24], &got[24..40]), (&bench.a.driver.gid[..], &bench.b.driver.gid[..]));
        assert!(got[40..40 + len as usize] == bench.local.get(3, len as usize), "{len} bytes");
        assert!(got[40 + len as usize..].iter().all(|byte| *byte == 0xee), "not one byte more than {len}");
    }
}

/// A datagram is one packet, so it is as long as those that the port carries.
#[test]
fn a_port_that_carries_less_takes_shorter_ones() {
    let fabric = Fabric::new();
    let [a, b] = [0, 1].map(|index| {
        let driver = Arc::new(Driver::narrow(&fabric, index, Layout::Pdir, 1024));
        let ctx = driver.context();
        end(&driver, ctx, driver.pd(ctx))
    });
    assert_eq!(a.driver.device.port().active_mtu, PVRDMA_MTU_1024);
    let (local, inbox) = (a.region(4096), b.region(4096));
    for (n, len, status) in [(1, 1024, 0), (2, 1025, PVRDMA_WC_LOC_LEN_ERR)] {
        b.recv(&RecvWr::new(70, &[sge(&inbox, 0, 4096)]));
        a.send(&SendWr::datagram(n, &[sge(&local, 0, len)], &a.av(&b, QKEY)));
        assert_eq!(a.send_cq.ends(), [(n, status)], "{len} bytes");
    }
    assert_eq!(b.recv_cq.ends(), [(70, 0)]);
}

#[test]
fn the_header_and_the_completion_tell_what_the_sender_chose() {
    let bench = bench();
    bench.b.recv(&RecvWr::new(70, &[sge(&bench.inbox, 0, 100)]));
    let to = To { sl_tclass_flowlabel: 5 << 28 | 0x9c << 20 | 0x000a_bcde, hop_limit: 3, ..bench.to() };
    bench.a.send(&SendWr::datagram(1, &[], &to).flags(PVRDMA_SEND_SIGNALED | PVRDMA_SEND_SOLICITED));
    let wc = bench.b.recv_cq.poll().expect("a datagram");
    // The service level is on no wire: in its place is the packet type.
    assert_eq!(wc.sl, 1);
    assert_eq!(bench.inbox.get(0, 4), [0x69, 0xca, 0xbc, 0xde], "version, traffic class, flow label");
    assert_eq!(bench.inbox.get(7, 1), [3], "hop limit");
}

#[test]
fn what_cannot_be_delivered_is_dropped() {
    let bench = bench();
    let one = [sge(&bench.local, 0, 10)];
    let to = bench.to();
    bench.dropped("no receive", SendWr::datagram(1, &one, &to));
    bench.b.recv(&RecvWr::new(70, &[sge(&bench.inbox, 0, GRH + 9)]));
    bench.dropped("a receive that is one byte short", SendWr::datagram(2, &one, &to));
    bench.dropped("another Q_Key", SendWr::datagram(3, &[], &To { qkey: QKEY + 1, ..to }));
    let violations = match bench.b.driver.command(pvrdma_device::command::Command::QueryPort { port_num: 1 }) {
        Ok(Response::QueryPort(port)) => port.qkey_viol_cntr,
        other => panic!("{other:?}"),
    };
    assert_eq!(violations, 1, "it is counted");
    bench.dropped("nobody's number", SendWr::datagram(4, &[], &To { qpn: Qpn(to.qpn.0 ^ 0x100), ..to }));
    bench.dropped("nobody's address", SendWr::datagram(5, &[], &To { dgid: [7; 16], ..to }));
    bench.dropped("a source that is no address", SendWr::datagram(6, &[], &To { gid_index: 9, ..to }));
    let stranger = End::new(&bench.b.driver, QpSize::wr(4));
    stranger.bring_up(bench.a.endpoint(), &Path::default());
    stranger.recv(&RecvWr::new(1, &[]));
    bench.dropped("a connected QP", SendWr::datagram(7, &[], &To { qpn: stranger.qp.qpn, ..to }));
    assert_eq!((stranger.recv_cq.ends(), stranger.query().qp_state), (vec![], PVRDMA_QPS_RTS));
    // The receive is still there, and good for what fits.
    bench.a.send(&SendWr::datagram(8, &[sge(&bench.local, 0, 9)], &to));
    assert_eq!(bench.b.recv_cq.ends(), [(70, 0)]);
}

#[test]
fn the_top_bit_of_a_qkey_means_the_qps_own() {
    let bench = bench();
    bench.b.recv(&RecvWr::new(70, &[sge(&bench.inbox, 0, 100)]));
    bench.a.send(&SendWr::datagram(1, &[], &To { qkey: 0x8000_0005, ..bench.to() }));
    assert_eq!(bench.b.recv_cq.ends(), [(70, 0)]);
}

#[test]
fn a_connected_qp_does_not_reach_a_datagram_qp() {
    let bench = bench();
    let connected = End::new(&bench.a.driver, QpSize::wr(4));
    let path = Path { timeout: 1, retry_cnt: 0, ..Path::default() };
    connected.bring_up(bench.b.endpoint(), &path);
    bench.b.recv(&RecvWr::new(70, &[sge(&bench.inbox, 0, 100)]));
    connected.send(&SendWr::send(1, &[]));
    let drivers = [&*bench.a.driver, &*bench.b.driver];
    let told = || connected.send_cq.waiting() > 0;
    assert!(pvrdma_device::testing::end::pump_until(&drivers, std::time::Duration::from_secs(20), told));
    assert_eq!(connected.send_cq.ends(), [(1, PVRDMA_WC_RETRY_EXC_ERR)]);
    assert_eq!((bench.b.recv_cq.ends(), bench.b.qp.recvs_out()), (vec![], 1));
}

#[test]
fn a_send_that_fails_stops_the_sends_only() {
    type Spoil = fn(&Bench) -> SendWr;
    let cases: [(&str, u32, Spoil); 8] = [
        ("too long", PVRDMA_WC_LOC_LEN_ERR, |bench| SendWr::datagram(2, &[sge(&bench.local, 0, 4097)], &bench.to())),
        ("bad lkey", PVRDMA_WC_LOC_PROT_ERR, |bench| {
            SendWr::datagram(2, &[(bench.local.start, 8, bench.local.key ^ 1)], &bench.to())
        }),
        ("another PD's address", PVRDMA_WC_LOC_QP_OP_ERR, |bench| {
            SendWr::datagram(2, &[], &To { pd: PdHandle(bench.a.pd.0 + 1), ..bench.to() })
        }),
        ("another port", PVRDMA_WC_LOC_QP_OP_ERR, |bench| SendWr::datagram(2, &[], &To { port_num: 2, ..bench.to() })),
        ("WRITE", PVRDMA_WC_LOC_QP_OP_ERR, |bench| SendWr::datagram(2, &[], &bench.to()).opcode(0)),
        ("atomic", PVRDMA_WC_LOC_QP_OP_ERR, |bench| SendWr::datagram(2, &[], &bench.to()).opcode(6)),
        ("SEND_WITH_INV", PVRDMA_WC_LOC_QP_OP_ERR, |bench| SendWr::datagram(2, &[], &bench.to()).opcode(8)),
        ("too many pieces", PVRDMA_WC_LOC_QP_OP_ERR, |bench| SendWr::datagram(2, &[], &bench.to()).num_sge(5)),
    ];
    for (what, status, spoil) in cases {
        let bench = bench();
        let own = bench.a.region(4096);
        bench.a.recv(&RecvWr::new(60, &[sge(&own, 0, 100)]));
        for n in 0..2 {
            bench.b.recv(&RecvWr::new(70 + n, &[sge(&bench.inbox, 0, 100)]));
        }
        let good = |n| SendWr::datagram(n, &[], &bench.to());
        for wr in [good(1), SendWr { wr_id: 2, ..spoil(&bench) }, good(3).flags(0)] {
            assert!(bench.a.qp.post_send(&wr));
        }
        bench.a.qp.ring_send();
        pump(&[&bench.a.driver, &bench.b.driver]);
        assert_eq!(bench.a.send_cq.ends(), [(1, 0), (2, status), (3, PVRDMA_WC_WR_FLUSH_ERR)], "{what}");
        assert_eq!(bench.a.query().qp_state, PVRDMA_QPS_SQE, "{what}");
        assert_eq!(bench.b.recv_cq.ends(), [(70, 0)], "{what}");
        // It still receives, and is sent back to work by RTS.
        bench.b.send(&SendWr::datagram(1, &[], &bench.b.av(&bench.a, QKEY)));
        assert_eq!(bench.a.recv_cq.ends(), [(60, 0)], "{what}: it receives in SQE");
        bench.a.send(&good(4));
        assert_eq!(bench.a.send_cq.ends(), [(4, PVRDMA_WC_WR_FLUSH_ERR)], "{what}: but sends nothing");
        bench.a.modify_state(PVRDMA_QPS_RTS).unwrap();
        bench.a.send(&good(5));
        assert_eq!((bench.a.send_cq.ends(), bench.b.recv_cq.ends()), (vec![(5, 0)], vec![(71, 0)]), "{what}");
        assert_eq!(bench.a.driver.bell.events(), [], "{what}");
    }
}

#[test]
fn a_receive_that_cannot_be_written_ends_its_qp() {
    for num_sge in [None, Some(5), Some(u32::MAX)] {
        let bench = bench();
        let mut wr = RecvWr::new(70, &[(bench.inbox.start, 100, bench.inbox.key ^ u32::from(num_sge.is_none()))]);
        wr.num_sge = num_sge;
        bench.b.recv(&wr);
        bench.b.recv(&RecvWr::new(71, &[]));
        bench.a.send(&SendWr::datagram(1, &[], &bench.to()));
        pump(&[&bench.a.driver, &bench.b.driver]);
        assert_eq!(bench.a.send_cq.ends(), [(1, 0)], "the sender never hears of it");
        let status = if num_sge.is_none() { PVRDMA_WC_LOC_PROT_ERR } else { PVRDMA_WC_LOC_QP_OP_ERR };
        assert_eq!(bench.b.recv_cq.ends(), [(70, status), (71, PVRDMA_WC_WR_FLUSH_ERR)]);
        assert_eq!(bench.b.query().qp_state, PVRDMA_QPS_ERR);
    }
}

#[test]
fn a_port_that_is_down_sends_and_receives_nothing() {
    let bench = bench();
    bench.b.recv(&RecvWr::new(70, &[sge(&bench.inbox, 0, 100)]));
    for side in [&bench.a, &bench.b] {
        side.driver.device.set_port(false);
        side.driver.device.set_port(false);
        bench.a.send(&SendWr::datagram(1, &[], &bench.to()));
        assert_eq!((bench.a.send_cq.ends(), bench.b.recv_cq.ends()), (vec![(1, 0)], vec![]));
        let Ok(Response::QueryPort(port)) =
            side.driver.command(pvrdma_device::command::Command::QueryPort { port_num: 1 })
        else {
            panic!("QUERY_PORT")
        };
        assert_eq!(port.state, PVRDMA_PORT_DOWN);
        side.driver.device.set_port(true);
        side.driver.device.set_port(true);
        assert_eq!(side.driver.bell.events(), [AsyncEvent::PortErr, AsyncEvent::PortActive], "told when it changes");
    }
    bench.a.send(&SendWr::datagram(2, &[], &bench.to()));
    assert_eq!(bench.b.recv_cq.ends(), [(70, 0)]);
}

#[test]
fn the_gsi_qps_of_two_guests_meet_under_number_1() {
    let fabric = Fabric::new();
    let ends = [0, 1].map(|index| {
        let driver = Arc::new(Driver::new(&fabric, index, Layout::Pdir));
        let pd = driver.pd(KERNEL);
        let (send_cq, recv_cq) = (driver.cq(KERNEL, 16), driver.cq(KERNEL, 16));
        let qp = driver.qp_of(GSI, None, pd, (&send_cq, &recv_cq), QpSize::wr(4));
        assert_eq!(qp.qpn, Qpn(1));
        let end = End { driver: driver.clone(), ctx: KERNEL, pd, send_cq, recv_cq, qp };
        let mask = PVRDMA_QP_STATE | PVRDMA_QP_PKEY_INDEX | PVRDMA_QP_QKEY;
        end.modify((mask, pvrdma_qp_attr { qp_state: PVRDMA_QPS_INIT, qkey: 0x8001_0000, ..Default::default() }))
            .unwrap();
        end.modify_state(PVRDMA_QPS_RTR).unwrap();
        let rts = pvrdma_qp_attr { qp_state: PVRDMA_QPS_RTS, ..Default::default() };
        end.modify((PVRDMA_QP_STATE | PVRDMA_QP_SQ_PSN, rts)).unwrap();
        end
    });
    let [a, b] = &ends;
    let (mad, inbox) = (a.region(256), b.region(296));
    mad.set(0, &[0x5c; 256]);
    b.recv(&RecvWr::new(70, &[sge(&inbox, 0, 296)]));
    a.send(&SendWr::datagram(1, &[sge(&mad, 0, 256)], &a.av(b, 0x8001_0000)));
    let wc = b.recv_cq.poll().expect("a datagram");
    assert_eq!((wc.status, wc.byte_len, wc.src_qp), (0, 296, 1));
    assert_eq!(inbox.get(40, 256), [0x5c; 256]);
}
