//! Devices of two hosts, linked over TCP on loopback, in this process: real devices, sockets and TLS.
//!
//! Time decides nothing here but when to give up. A host may be dialed through a `Cable`, which can be cut.

mod cable;

use cable::Cable;
use pvrdma_device::handle::Gid;
use pvrdma_device::testing::driver::{Driver, Layout};
use pvrdma_device::testing::end::{End, Path, connect, pump_until};
use pvrdma_device::testing::queue::{QpSize, RecvWr, SendWr, sge};
use pvrdma_device::testing::rng::Rng;
use pvrdma_device::transport::Path as Way;
use pvrdma_device::transport::path::Paths;
use pvrdma_ffi::dev_api::*;
use pvrdma_ffi::uapi::vmw_pvrdma::*;
use pvrdma_link::{Choice, Settings, Uplink};
use pvrdma_net::fabric::FabricHost;
use pvrdma_net::folder;
use pvrdma_net::identity::{Identity, new_fabric, new_host};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// Longer than anything here may take.
const LIMIT: Duration = Duration::from_secs(10);
const FLUSH: u32 = PVRDMA_WC_WR_FLUSH_ERR;
const QKEY: u32 = 0x1111;

/// Patient enough for a machine that is busy: 67 ms, eight times; receivers that are late are waited for.
fn patient() -> Path {
    Path { timeout: 14, retry_cnt: 7, rnr_retry: 7, ..Path::default() }
}

/// Two hosts. The first dials the second.
struct Hosts {
    uplinks: [Uplink; 2],
    cable: Cable,
}

impl Hosts {
    fn new(encrypted: bool) -> Hosts {
        let authority = encrypted.then(|| new_fabric(SystemTime::now()).expect("an authority"));
        let free = || -> SocketAddr { TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap() };
        let (one, two) = (free(), free());
        let cable = Cable::to(two);
        let list = |two| {
            let host = |number, name: &str, address| FabricHost { number, name: name.to_owned(), address };
            vec![host(1, "red", one), host(2, "blue", two)]
        };
        let start = |number, hosts, listen| {
            let identity = authority.as_ref().map(|authority| {
                let hour = Duration::from_secs(3600);
                let pair = new_host(&authority.key, number, SystemTime::now(), hour).expect("a host");
                Identity::from_pem(&authority.certificate, &pair).expect("an identity")
            });
            let fabric = folder::Settings::new(number, hosts, identity).expect("settings");
            let settings = Settings { fabric: Some(fabric), listen: Some(listen), folder: None, hca: Choice::None };
            Uplink::start(settings, Paths::default()).expect("an uplink")
        };
        Hosts { uplinks: [start(1, list(cable.address()), one), start(2, list(two), two)], cable }
    }

    /// A guest of host 0 or 1.
    fn guest(&self, host: usize, index: u8) -> Arc<Driver> {
        Arc::new(Driver::new(self.uplinks[host].fabric(), index, Layout::Ranges))
    }

    /// A guest of each host, who reach each other.
    fn guests(&self) -> [Arc<Driver>; 2] {
        let guests = [self.guest(0, 0), self.guest(1, 1)];
        meet(&guests[0], &guests[1]);
        guests
    }
}

/// Sends datagrams until one has come, in both directions: links take their time, and addresses theirs.
fn meet(a: &Arc<Driver>, b: &Arc<Driver>) {
    let ends = [a, b].map(|driver| {
        let ctx = driver.context();
        let cqs = (driver.cq(ctx, 64), driver.cq(ctx, 64));
        End::ud(driver, driver.pd(ctx), cqs, None, QpSize::default(), QKEY)
    });
    for (from, to) in [(&ends[0], &ends[1]), (&ends[1], &ends[0])] {
        let (source, target) = (from.region(8), to.region(64));
        to.recv(&RecvWr::new(7, &[sge(&target, 0, 64)]));
        let av = from.av(to, QKEY);
        let met = pump_until(&[a, b], LIMIT, || {
            from.send_cq.drain();
            if from.qp.sends_out() == 0 {
                from.send(&SendWr::datagram(1, &[sge(&source, 0, 8)], &av));
            }
            to.recv_cq.waiting() > 0
        });
        assert!(met, "nothing has come from {:x?} to {:x?}", from.driver.gid, to.driver.gid);
    }
    ends.iter().for_each(End::destroy);
}

fn ends(drivers: &[Arc<Driver>; 2], path: &Path) -> [End; 2] {
    let ends = [0, 1].map(|index: usize| End::new(&drivers[index], QpSize::default()));
    connect(&ends[0], &ends[1], path);
    ends
}

/// Polls both until `a` has `count` send completions, and returns them.
fn wait(a: &End, b: &End, count: u32) -> Vec<(u64, u32)> {
    let done = pump_until(&[&a.driver, &b.driver], LIMIT, || a.send_cq.waiting() >= count);
    assert!(done, "{} of {count} completions", a.send_cq.waiting());
    a.send_cq.ends()
}

fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Rng::new(seed);
    random.bytes(len)
}

fn everything(encrypted: bool) {
    let hosts = Hosts::new(encrypted);
    let [a, b] = ends(&hosts.guests(), &patient());
    for (n, len) in [8usize, 64 << 10, (1 << 20) + 1].into_iter().enumerate() {
        let (source, target) = (a.region(len as u64), b.region(len as u64));
        let data = |what: u64| bytes(n as u64 * 10 + what, len);

        source.set(0, &data(1));
        b.recv(&RecvWr::new(5, &[sge(&target, 0, len as u32)]));
        a.send(&SendWr::send(1, &[sge(&source, 0, len as u32)]).imm(0x0102_0304));
        assert_eq!(wait(&a, &b, 1), [(1, 0)]);
        let received = b.recv_cq.poll().expect("a receive");
        assert_eq!((received.wr_id, received.status), (5, 0));
        assert_eq!((received.byte_len as usize, received.imm_data), (len, 0x0102_0304));
        assert!(target.get(0, len) == data(1), "SEND of {len}");

        source.set(0, &data(2));
        b.recv(&RecvWr::new(6, &[]));
        a.send(&SendWr::write(2, &[sge(&source, 0, len as u32)], &target, 0).imm(9));
        assert_eq!(wait(&a, &b, 1), [(2, 0)]);
        assert_eq!(b.recv_cq.ends(), [(6, 0)]);
        assert!(target.get(0, len) == data(2), "WRITE of {len}");

        target.set(0, &data(3));
        a.send(&SendWr::read(3, &[sge(&source, 0, len as u32)], &target, 0));
        assert_eq!(wait(&a, &b, 1), [(3, 0)]);
        assert!(source.get(0, len) == data(3), "READ of {len}");
    }

    let (found, word) = (a.region(16), b.region(8));
    word.set(0, &5u64.to_le_bytes());
    a.send(&SendWr::fetch_add(1, sge(&found, 0, 8), &word, 0, 37));
    a.send(&SendWr::cas(2, sge(&found, 8, 8), &word, 0, 42, 1 << 40));
    assert_eq!(wait(&a, &b, 2), [(1, 0), (2, 0)]);
    assert_eq!(found.get(0, 16), [5u64.to_le_bytes(), 42u64.to_le_bytes()].concat());
    assert_eq!(word.get(0, 8), (1u64 << 40).to_le_bytes());
}

#[test]
fn every_operation_reaches_a_guest_of_another_host() {
    everything(false);
}

#[test]
fn every_operation_reaches_a_guest_of_another_host_through_tls() {
    everything(true);
}

#[test]
fn the_way_is_seen_and_its_end_is_told() {
    let hosts = Hosts::new(false);
    let [a, b] = ends(&hosts.guests(), &Path { retry_cnt: 1, ..patient() });
    let way = || a.driver.device.path(a.qp.handle);
    assert_eq!((way(), b.driver.device.path(b.qp.handle)), (Way::Tcp { host: 2 }, Way::Tcp { host: 1 }));
    b.recv(&RecvWr::new(5, &[]));
    a.send(&SendWr::send(1, &[]));
    assert_eq!(wait(&a, &b, 1), [(1, 0)]);
    let links = || hosts.uplinks[0].reporter().report(LIMIT).expect("it says so");
    let report = links();
    assert_eq!((report.number, report.encrypted, report.asked, report.hosts.len()), (1, false, 0, 1));
    assert!(report.hosts[0].link.as_ref().is_some_and(|link| link.requests > 0));

    hosts.cable.cut();
    assert!(pump_until(&[&a.driver, &b.driver], LIMIT, || way() == Way::None));
    assert!(links().hosts[0].link.is_none());
    a.send(&SendWr::send(2, &[]));
    assert!(pump_until(&[&a.driver, &b.driver], LIMIT, || a.send_cq.waiting() > 0));
    let told = a.send_cq.poll().expect("a completion");
    assert_eq!((told.status, told.vendor_err), (PVRDMA_WC_RETRY_EXC_ERR, 0x82));
    assert!(a.driver.bell.paths().contains(&(a.qp.handle, b.driver.gid, Way::None)));
}

/// A responder takes things in order alone, and what is read leaves long after it was asked for.
#[test]
fn what_stands_behind_a_read_waits_for_it() {
    let hosts = Hosts::new(false);
    let [a, b] = ends(&hosts.guests(), &Path { max_rd_atomic: 2, ..patient() });
    let len = 700 << 10;
    let (into, target, words) = (a.region(3 * len), b.region(len), b.region(64));
    let data = bytes(3, len as usize);
    target.set(0, &data);
    for n in 0..3u64 {
        b.recv(&RecvWr::new(n, &[sge(&words, n * 8, 8)]));
        a.qp.post_send(&SendWr::read(10 + n, &[sge(&into, n * len, len as u32)], &target, 0));
        a.qp.post_send(&SendWr::send(20 + n, &[sge(&into, 0, 8)]));
        a.qp.post_send(&SendWr::fetch_add(30 + n, sge(&into, 2 * len, 8), &words, 32, 1));
        a.qp.post_send(&SendWr::read(40 + n, &[], &target, 0));
    }
    a.qp.ring_send();
    let all: Vec<_> = (0..3).flat_map(|n| [10, 20, 30, 40].map(|kind| (kind + n, 0))).collect();
    assert_eq!(wait(&a, &b, 12), all);
    assert_eq!(b.recv_cq.ends(), [(0, 0), (1, 0), (2, 0)]);
    assert!(into.get(0, len as usize) == data && into.get(len, len as usize) == data);
    assert_eq!(words.get(32, 8), 3u64.to_le_bytes(), "each once");
}

#[test]
fn a_datagram_has_the_address_it_came_from() {
    let hosts = Hosts::new(false);
    let drivers = hosts.guests();
    let [a, b] = [0, 1].map(|index: usize| {
        let ctx = drivers[index].context();
        let cqs = (drivers[index].cq(ctx, 64), drivers[index].cq(ctx, 64));
        End::ud(&drivers[index], drivers[index].pd(ctx), cqs, None, QpSize::default(), QKEY)
    });
    let (source, target) = (a.region(4096), b.region(2 * 4136));
    source.set(0, &bytes(1, 4096));
    for (n, len) in [0u32, 4096].into_iter().enumerate() {
        b.recv(&RecvWr::new(5, &[sge(&target, n as u64 * 4136, 4136)]));
        a.send(&SendWr::datagram(1, &[sge(&source, 0, len)], &a.av(&b, QKEY)));
        assert_eq!(wait(&a, &b, 1), [(1, 0)], "sent is done");
        assert!(pump_until(&[&a.driver, &b.driver], LIMIT, || b.recv_cq.waiting() > 0));
        let received = b.recv_cq.poll().unwrap();
        assert_eq!((received.status, received.byte_len, received.src_qp), (0, 40 + len, a.qp.qpn.0));
    }
    assert_eq!(target.get(4136 + 8, 16), a.driver.gid, "the GRH");
    assert!(target.get(4136 + 40, 4096) == source.get(0, 4096));
}

#[test]
fn refusals_come_back() {
    let hosts = Hosts::new(false);
    let drivers = hosts.guests();
    for len in [8u32, (1 << 20) + 1] {
        // A key that is none; the first piece says so and the others are not sent for nothing.
        let [a, b] = ends(&drivers, &patient());
        let (source, target) = (a.region(len.into()), b.region(len.into()));
        a.qp.post_send(&SendWr::write(1, &[sge(&source, 0, len)], &target, 0).at(target.start, target.key ^ 0xff));
        a.qp.post_send(&SendWr::send(2, &[]));
        a.qp.ring_send();
        assert_eq!(wait(&a, &b, 2), [(1, PVRDMA_WC_REM_ACCESS_ERR), (2, FLUSH)], "{len}");
        let [a, b] = ends(&drivers, &patient());
        let source = a.region(len.into());
        a.send(&SendWr::read(1, &[sge(&source, 0, len)], &target, 8));
        assert_eq!(wait(&a, &b, 1), [(1, PVRDMA_WC_REM_ACCESS_ERR)], "READ, {len}: another PD, and past its end");

        // The requester's own memory.
        let [a, b] = ends(&drivers, &patient());
        let (source, target) = (a.region(len.into()), b.region(len.into()));
        let (last, rest) = (u64::from(len - 8), len - 8);
        a.driver.ram.unmap(source.page_of(last), 4096);
        a.qp.post_send(&SendWr::write(1, &[sge(&source, 0, rest), sge(&source, last, 8)], &target, 0));
        a.qp.ring_send();
        assert_eq!(wait(&a, &b, 1), [(1, PVRDMA_WC_LOC_PROT_ERR)], "{len}");
        a.driver.ram.map_again();

        // No receive: once asked and once more.
        let [a, b] = ends(&drivers, &Path { rnr_retry: 1, ..patient() });
        let source = a.region(len.into());
        a.send(&SendWr::send(1, &[sge(&source, 0, len)]));
        assert_eq!(wait(&a, &b, 1), [(1, PVRDMA_WC_RNR_RETRY_EXC_ERR)], "{len}");
        assert_eq!(b.query().qp_state, PVRDMA_QPS_RTS);

        // One that comes late.
        let [a, b] = ends(&drivers, &patient());
        let (source, target) = (a.region(len.into()), b.region(len.into()));
        source.set(0, &bytes(2, len as usize));
        a.send(&SendWr::send(1, &[sge(&source, 0, len)]));
        assert!(!pump_until(&[&a.driver, &b.driver], Duration::from_millis(20), || a.send_cq.waiting() > 0));
        b.recv(&RecvWr::new(1, &[sge(&target, 0, len)]));
        assert_eq!(wait(&a, &b, 1), [(1, 0)], "{len}");
        assert!(target.get(0, len as usize) == source.get(0, len as usize));
    }
    // Nobody: not the address, and not the QP.
    let [a, b] = ends(&drivers, &patient());
    for peer in [
        pvrdma_device::testing::end::nowhere(),
        pvrdma_device::transport::Endpoint { qpn: pvrdma_device::handle::Qpn(0x00ab_cdef), ..b.endpoint() },
    ] {
        a.reset();
        a.bring_up(peer, &Path { timeout: 8, retry_cnt: 2, ..Path::default() });
        a.send(&SendWr::send(1, &[]));
        assert_eq!(wait(&a, &b, 1), [(1, PVRDMA_WC_RETRY_EXC_ERR)]);
    }
}

#[test]
fn a_qp_is_reset_with_messages_on_their_way() {
    let hosts = Hosts::new(false);
    let [a, b] = ends(&hosts.guests(), &patient());
    let len = 600 << 10;
    let (source, target, back) = (a.region(len), b.region(len), a.region(len));
    for round in 0..20u64 {
        // Of long ones in both directions, some have been done, one is in the middle, and some have not begun.
        for n in 0..6 {
            let wr = match n % 2 {
                0 => SendWr::write(n, &[sge(&source, 0, len as u32)], &target, 0),
                _ => SendWr::read(n, &[sge(&back, 0, len as u32)], &target, 0),
            };
            a.qp.post_send(&wr);
        }
        a.qp.ring_send();
        let some = (round % 4) as u32;
        assert!(pump_until(&[&a.driver, &b.driver], LIMIT, || a.send_cq.waiting() >= some));
        a.reset();
        b.reset();
        a.send_cq.drain();
        // From here on nobody writes there any more.
        let mark = bytes(round, len as usize);
        back.set(0, &mark);
        connect(&a, &b, &Path { psn: round as u32 * 1000, ..patient() });
        source.set(0, &bytes(round + 100, 8));
        a.send(&SendWr::write(99, &[sge(&source, 0, 8)], &target, 0));
        assert_eq!(wait(&a, &b, 1), [(99, 0)]);
        assert_eq!(target.get(0, 8), bytes(round + 100, 8));
        assert!(back.get(0, len as usize) == mark, "what was read for a QP of before has come");
    }
}

#[test]
fn a_link_that_comes_back_in_time_is_only_a_delay() {
    for encrypted in [false, true] {
        let hosts = Hosts::new(encrypted);
        // 4.3 s, eight times.
        let [a, b] = ends(&hosts.guests(), &Path { timeout: 17, ..patient() });
        let len = 300 << 10;
        let (source, target) = (a.region(len), b.region(32 * len));
        source.set(0, &bytes(4, len as usize));
        for n in 0..32 {
            a.qp.post_send(&SendWr::write(n, &[sge(&source, 0, len as u32)], &target, n * len));
        }
        a.qp.ring_send();
        assert!(pump_until(&[&a.driver, &b.driver], LIMIT, || a.send_cq.waiting() >= 1));
        let before = a.send_cq.ends();
        hosts.cable.cut();
        pump_until(&[&a.driver, &b.driver], Duration::from_millis(50), || false);
        hosts.cable.mend();
        let after = wait(&a, &b, 32 - before.len() as u32);
        let all: Vec<_> = (0..32).map(|n| (n, 0)).collect();
        assert_eq!([before, after].concat(), all);
        for n in 0..32 {
            assert!(target.get(n * len, len as usize) == source.get(0, len as usize), "{n}");
        }
    }
}

#[test]
fn a_link_that_is_gone_is_told_of() {
    // Closed, or only silent, so that nothing tells but time.
    for silent in [false, true] {
        let hosts = Hosts::new(false);
        let [a, b] = ends(&hosts.guests(), &Path { timeout: 12, ..patient() });
        match silent {
            true => hosts.cable.freeze(),
            false => hosts.cable.cut(),
        }
        for n in 0..3 {
            a.qp.post_send(&SendWr::send(n, &[]));
        }
        a.qp.ring_send();
        assert_eq!(wait(&a, &b, 3), [(0, PVRDMA_WC_RETRY_EXC_ERR), (1, FLUSH), (2, FLUSH)], "silent: {silent}");
        // And then it is there again.
        hosts.cable.cut();
        hosts.cable.mend();
        meet(&a.driver, &b.driver);
        a.reset();
        b.reset();
        connect(&a, &b, &patient());
        b.recv(&RecvWr::new(1, &[]));
        a.send(&SendWr::send(9, &[]));
        assert_eq!(wait(&a, &b, 1), [(9, 0)]);
    }
}

fn bind(driver: &Driver, index: u32, gid: Gid) {
    let command = pvrdma_device::command::Command::CreateBind {
        index,
        gid,
        gid_type: pvrdma_device::testing::driver::GID_TYPE,
        vlan: 0xfff,
        mtu: 1024,
    };
    driver.command(command).expect("CREATE_BIND");
}

fn unbind(driver: &Driver, index: u32, gid: Gid) {
    driver.command(pvrdma_device::command::Command::DestroyBind { index, gid }).expect("DESTROY_BIND");
}

#[test]
fn the_first_owner_keeps_an_address_until_it_gives_it_up() {
    let hosts = Hosts::new(false);
    let [near, far] = hosts.guests();
    let second = hosts.guest(0, 2);
    meet(&second, &far);
    let shared: Gid = [0xfd; 16];
    let ends = [&near, &far, &second].map(|driver| {
        let ctx = driver.context();
        let cqs = (driver.cq(ctx, 64), driver.cq(ctx, 64));
        End::ud(driver, driver.pd(ctx), cqs, None, QpSize::default(), QKEY)
    });
    let [from, away, here] = &ends;
    let (source, target) = (from.region(8), [away.region(64), here.region(64)]);
    for (end, target) in [away, here].into_iter().zip(&target) {
        for n in 0..60 {
            end.recv(&RecvWr::new(n, &[sge(target, 0, 64)]));
        }
    }
    // Who gets what is sent to the shared address, as QP of its own.
    let reached = |end: &End, other: &End| {
        let to = pvrdma_device::testing::queue::To { dgid: shared, ..from.av(end, QKEY) };
        let drivers: [&Driver; 3] = [&near, &far, &second];
        let comes = || {
            pump_until(&drivers, LIMIT, || {
                from.send_cq.drain();
                if from.qp.sends_out() == 0 {
                    from.send(&SendWr::datagram(1, &[sge(&source, 0, 8)], &to));
                }
                end.recv_cq.waiting() > 0
            })
        };
        assert!(comes());
        // What was sent before the address moved may come to its former owner yet; of what is sent from now on nothing
        // does.
        pump_until(&drivers, Duration::from_millis(50), || false);
        end.recv_cq.drain();
        other.recv_cq.drain();
        assert!(comes() && other.recv_cq.waiting() == 0);
        pump_until(&drivers, Duration::from_millis(50), || false);
        end.recv_cq.drain();
        end.recv(&RecvWr::new(9, &[sge(&target[0], 0, 0)]));
    };
    bind(&far, 1, shared);
    reached(away, here);
    // The other host had it first.
    bind(&second, 1, shared);
    reached(away, here);
    assert!(hosts.uplinks[0].fabric().station(&shared).is_none());
    // It moves, and moves back.
    unbind(&far, 1, shared);
    reached(here, away);
    unbind(&second, 1, shared);
    bind(&far, 1, shared);
    reached(away, here);
    // One that only guests of a host 9 may have is told to nobody, and the link lives on.
    bind(&near, 2, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 9, 82, 1]);
    meet(&near, &far);
}

/// Doorbells, commands and the links meet in all orders: whoever waits for another one that waits for it hangs.
#[test]
fn doorbells_commands_and_links_do_not_wait_for_each_other() {
    let hosts = Hosts::new(false);
    let drivers = [hosts.guest(0, 0), hosts.guest(1, 1), hosts.guest(0, 2), hosts.guest(1, 3)];
    for (a, b) in [(0, 1), (2, 3), (1, 2)] {
        meet(&drivers[a], &drivers[b]);
    }
    let over = AtomicBool::new(false);
    let until = Instant::now() + Duration::from_millis(1500);
    std::thread::scope(|scope| {
        for driver in &drivers {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    driver.device.poll();
                    std::thread::sleep(Duration::from_micros(200));
                }
            });
        }
        let mut workers = Vec::new();
        for (n, (a, b)) in [(0, 1), (1, 0), (0, 3), (2, 1), (3, 2), (0, 2)].into_iter().enumerate() {
            let pair = [drivers[a].clone(), drivers[b].clone()];
            workers.push(scope.spawn(move || worker(&pair, n as u64, until)));
        }
        let rounds: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        over.store(true, Ordering::Relaxed);
        let rounds: Vec<u32> = rounds.into_iter().map(|rounds| rounds.expect("a worker")).collect();
        assert!(rounds.iter().all(|rounds| *rounds > 0), "{rounds:?}");
    });
}

/// Sends, reads, resets, destroys what is being sent. Others poll.
fn worker(pair: &[Arc<Driver>; 2], seed: u64, until: Instant) -> u32 {
    let mut random = Rng::new(seed);
    let [a, b] = ends(pair, &patient());
    let len = 80 << 10;
    let target = b.region(len);
    let mut lasting = a.region(len);
    let mut rounds = 0;
    while Instant::now() < until || rounds == 0 {
        let count = 1 + random.below(6);
        for n in 0..count {
            let sges = [sge(&lasting, 0, random.below(len) as u32)];
            a.qp.post_send(&match random.below(3) {
                0 => SendWr::read(n, &sges, &target, 0),
                _ => SendWr::write(n, &sges, &target, 0),
            });
        }
        a.qp.ring_send();
        let begin = Instant::now();
        let (reset, destroyed) = (random.one_in(2), random.one_in(2));
        if reset {
            if destroyed {
                // In the middle of it, the region that it is sent from or read into.
                a.driver.dereg(&lasting);
                lasting = a.driver.register_again(a.pd, &lasting);
            }
            a.reset();
            b.reset();
            // What is still on its way is not taken for something new.
            connect(&a, &b, &Path { psn: random.below(1 << 24) as u32, ..patient() });
        } else {
            while u64::from(a.send_cq.waiting()) < count {
                assert!(begin.elapsed() < LIMIT, "{} of {count}", a.send_cq.waiting());
                std::thread::sleep(Duration::from_micros(100));
            }
            let ends = a.send_cq.ends();
            assert!(ends.iter().all(|(_, status)| *status == 0), "{ends:?}");
        }
        a.send_cq.drain();
        rounds += 1;
    }
    rounds
}

/// Receives come late and few at a time: the requester goes back to what was not taken again and again, and what it had
/// sent behind that comes for nothing. None of it is lost, and no timer is needed for it.
#[test]
fn receives_that_come_late_cost_no_timeout() {
    let hosts = Hosts::new(false);
    // Whoever waited for a timer would wait for ever.
    let [a, b] = ends(&hosts.guests(), &Path { timeout: 0, ..patient() });
    let (source, target) = (a.region(4096), b.region(4096));
    let mut random = Rng::new(1);
    let (mut posted, mut sent, mut received, mut done) = (0, 0, 0, 0);
    let all = 2000;
    let finished = pump_until(&[&a.driver, &b.driver], LIMIT, || {
        while sent < all && a.qp.sends_out() < 60 {
            let sges = [sge(&source, 0, random.below(100) as u32)];
            a.qp.post_send(&match random.below(8) {
                0 => SendWr::read(sent, &sges, &target, 0),
                _ => SendWr::send(sent, &sges),
            });
            sent += 1;
        }
        a.qp.ring_send();
        for _ in 0..random.below(8) {
            if posted < all && posted - received < 60 {
                b.recv(&RecvWr::new(posted, &[sge(&target, 0, 4096)]));
                posted += 1;
            }
        }
        for (wr_id, status) in a.send_cq.ends() {
            assert_eq!((wr_id, status), (done, 0));
            done += 1;
        }
        received += b.recv_cq.ends().len() as u64;
        done == all
    });
    assert!(finished, "{done} of {sent} sent, {received} of {posted} received");
}
