//! Many threads at once, as processes and virtual CPUs are: nothing locks up, nothing is lost, and what was destroyed
//! is left alone. Each story runs for a moment; `PVRDMA_SOAK` (seconds) makes it longer.

use pvrdma_device::command::{Command, CreateQp, Response};
use pvrdma_device::doorbell::Doorbell;
use pvrdma_device::handle::{CqHandle, PdHandle};
use pvrdma_device::testing::driver::{Driver, Layout, Region};
use pvrdma_device::testing::end::{End, Path, bring_up, connect, modify_state};
use pvrdma_device::testing::queue::{QpSize, RecvWr, SendWr, sge};
use pvrdma_device::testing::rng::Rng;
use pvrdma_device::testing::wire::{Net, Wire};
use pvrdma_device::transport::Endpoint;
use pvrdma_device::transport::fabric::Fabric;
use pvrdma_ffi::dev_api::*;
use pvrdma_ffi::uapi::vmw_pvrdma::*;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

fn soak() -> Duration {
    let seconds = std::env::var("PVRDMA_SOAK").map_or(0.5, |seconds| seconds.parse().expect("PVRDMA_SOAK: seconds"));
    Duration::from_secs_f64(seconds)
}

/// Threads that run until told to stop, and a clock that says when they must have.
struct Crew {
    stop: Arc<AtomicBool>,
    threads: Vec<(&'static str, JoinHandle<()>)>,
}

impl Crew {
    fn new() -> Crew {
        Crew { stop: Arc::default(), threads: Vec::new() }
    }

    /// A thread that calls `step` until the end.
    fn add(&mut self, name: &'static str, mut step: impl FnMut() + Send + 'static) {
        let stop = self.stop.clone();
        let body = move || {
            while !stop.load(Ordering::Relaxed) {
                step();
            }
        };
        self.threads.push((name, std::thread::spawn(body)));
    }

    /// A thread that polls a device whenever it asks for it.
    fn add_worker(&mut self, driver: &Arc<Driver>) {
        let driver = driver.clone();
        self.add("worker", move || {
            if driver.device.poll().is_some() || driver.bell.take_wake() {
                std::thread::yield_now();
            } else {
                std::thread::sleep(Duration::from_micros(100));
            }
        });
    }

    /// Lets them run, stops them, and waits: a thread that does not come back is locked up.
    fn run(self) {
        self.run_until(|| true);
    }

    /// The same, and no shorter than until `enough`.
    fn run_until(self, mut enough: impl FnMut() -> bool) {
        std::thread::sleep(soak());
        let end = Instant::now() + Duration::from_secs(60);
        while !enough() && Instant::now() < end && self.threads.iter().all(|(_, thread)| !thread.is_finished()) {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.stop.store(true, Ordering::Relaxed);
        let (sender, receiver) = mpsc::channel();
        for (name, thread) in self.threads {
            let sender = sender.clone();
            std::thread::spawn(move || {
                let _ = sender.send((name, thread.join().is_ok()));
            });
        }
        drop(sender);
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            match receiver.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok((name, fine)) => assert!(fine, "{name} panicked"),
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
                Err(mpsc::RecvTimeoutError::Timeout) => panic!("locked up"),
            }
        }
    }
}

fn guests() -> [Arc<Driver>; 2] {
    let fabric = Fabric::new();
    [0, 1].map(|index| Arc::new(Driver::new(&fabric, index, Layout::Pdir)))
}

/// Sends numbered messages one way, receives them at the other end, checks every number.
struct Stream {
    from: Arc<End>,
    to: Arc<End>,
    source: Region,
    target: Region,
    posted: u64,
    sent: u64,
    received: u64,
}

const DEPTH: u64 = 16;

impl Stream {
    fn new(from: &Arc<End>, to: &Arc<End>) -> Stream {
        let (source, target) = (from.region(DEPTH * 8), to.region(DEPTH * 8));
        let stream = Stream { from: from.clone(), to: to.clone(), source, target, posted: 0, sent: 0, received: 0 };
        (0..DEPTH).for_each(|number| stream.post_receive(number));
        stream
    }

    fn post_receive(&self, number: u64) {
        self.to.recv(&RecvWr::new(number, &[sge(&self.target, number % DEPTH * 8, 8)]));
    }

    fn step(&mut self) {
        while self.posted < self.sent + DEPTH {
            let place = self.posted % DEPTH * 8;
            self.source.set(place, &self.posted.to_le_bytes());
            self.from.send(&SendWr::send(self.posted, &[sge(&self.source, place, 8)]));
            self.posted += 1;
        }
        for wc in self.from.send_cq.drain() {
            assert_eq!((wc.wr_id, wc.status), (self.sent, 0));
            self.sent += 1;
        }
        for wc in self.to.recv_cq.drain() {
            assert_eq!((wc.wr_id, wc.status), (self.received, 0));
            assert_eq!(self.target.get(self.received % DEPTH * 8, 8), self.received.to_le_bytes());
            self.post_receive(self.received + DEPTH);
            self.received += 1;
        }
    }
}

#[test]
fn streams_in_all_directions_lose_nothing() {
    let drivers = guests();
    let mut crew = Crew::new();
    let (report, reports) = mpsc::channel();
    // Between two guests both ways at once, and within one: each takes the locks in another order.
    for (from, to) in [(0, 1), (1, 0), (0, 1), (0, 0)] {
        let (a, b) = (End::new(&drivers[from], QpSize::default()), End::new(&drivers[to], QpSize::default()));
        connect(&a, &b, &Path { rnr_retry: 7, min_rnr_timer: 1, ..Path::default() });
        let (a, b) = (Arc::new(a), Arc::new(b));
        for mut stream in [Stream::new(&a, &b), Stream::new(&b, &a)] {
            let report = report.clone();
            let mut last = 0;
            crew.add("stream", move || {
                stream.step();
                if stream.sent > last + 100 {
                    last = stream.sent;
                    let _ = report.send(100u64);
                }
            });
        }
    }
    for driver in &drivers {
        crew.add_worker(driver);
    }
    let mut moved = 0;
    crew.run_until(|| {
        moved += reports.try_iter().sum::<u64>();
        moved >= 800
    });
    assert!(moved >= 800, "the streams hardly moved");
}

#[test]
fn connections_come_and_go_under_traffic() {
    let drivers = guests();
    let mut crew = Crew::new();
    for n in 0..4u64 {
        let drivers = drivers.clone();
        let mut rng = Rng::new(n);
        // Each its own contexts; memory is taken once, since a `Driver` never gives any back.
        let ends: Vec<_> = (0..2).map(|side| End::new(&drivers[side ^ (n as usize & 1)], QpSize::wr(16))).collect();
        let regions: Vec<_> = ends.iter().map(|end| end.region(256)).collect();
        crew.add("life", move || {
            connect(&ends[0], &ends[1], &Path { timeout: 8, rnr_retry: 3, ..Path::default() });
            for wr_id in 0..rng.below(40) {
                for (end, other) in [(0, 1), (1, 0)] {
                    let local = [sge(&regions[end], 0, 64)];
                    ends[end].qp.post_recv(&RecvWr::new(wr_id, &local));
                    let wr = match rng.below(5) {
                        0 => SendWr::write(wr_id, &local, &regions[other], 128),
                        1 => SendWr::read(wr_id, &local, &regions[other], 128),
                        2 => SendWr::write(wr_id, &local, &regions[other], 250),
                        _ => SendWr::send(wr_id, &local),
                    };
                    ends[end].qp.post_send(&wr);
                    ends[end].qp.ring_send();
                }
            }
            for end in &ends {
                if rng.one_in(2) {
                    end.modify_state(PVRDMA_QPS_ERR).unwrap();
                }
                end.reset();
                // RESET forgets: nothing may come from the life before.
                for cq in [&end.send_cq, &end.recv_cq] {
                    cq.drain();
                    std::thread::yield_now();
                    assert_eq!(cq.waiting(), 0, "a completion after RESET");
                }
            }
        });
    }
    for driver in &drivers {
        crew.add_worker(driver);
    }
    crew.run();
}

/// A thread that makes whole contexts and takes them away again, in the middle of their work.
fn add_churn(crew: &mut Crew, driver: &Arc<Driver>, peer: Endpoint) {
    let driver = driver.clone();
    let cq_buffer = driver.block(&[2]).buffer;
    let (template, block) = driver.qp_command(PdHandle(0), CqHandle(0), CqHandle(0), QpSize::wr(8));
    let path = Path { timeout: 3, rnr_retry: 7, min_rnr_timer: 1, retry_cnt: 7, ..Path::default() };
    crew.add("churn", move || {
        let ctx = driver.context();
        let pd = driver.pd(ctx);
        let create = Command::CreateCq { ctx, cqe: 64, buffer: cq_buffer.clone() };
        let Ok(Response::CreateCq { cq, .. }) = driver.command(create) else { panic!("CREATE_CQ") };
        let Command::CreateQp(create) = &template else { panic!("not a CREATE_QP") };
        let create = CreateQp { pd, send_cq: cq, recv_cq: cq, ..(**create).clone() };
        let Ok(Response::CreateQp { qp, .. }) = driver.command(Command::CreateQp(Box::new(create))) else {
            panic!("CREATE_QP")
        };
        bring_up(&driver, qp, peer, &path);
        // The WQEs are whatever the page holds; the tail says that there are eight.
        block.set_word(0, 8);
        driver.device.doorbell(ctx, Doorbell::Qp { qp, send: true, recv: true });
        driver.command(Command::DestroyUc { ctx }).expect("DESTROY_UC");
        block.set_word(0, 0);
        block.set_word(4, 0);
    });
}

#[test]
fn one_qp_is_pulled_at_from_all_sides() {
    // Posts, doorbells, state changes, queries, destroys and a peer that sends, with no manners at all.
    let drivers = guests();
    let mut crew = Crew::new();
    let (a, b) = (Arc::new(End::new(&drivers[0], QpSize::wr(8))), Arc::new(End::new(&drivers[1], QpSize::wr(8))));
    let (ra, rb) = (a.region(64), b.region(64));
    let path = Path { timeout: 5, rnr_retry: 1, retry_cnt: 1, ..Path::default() };
    for (end, own, other) in [(&a, &ra, &rb), (&b, &rb, &ra)] {
        let (poster, own, other) = (end.clone(), own.clone(), other.clone());
        let mut n = 0;
        crew.add("poster", move || {
            n += 1;
            poster.qp.post_send(&SendWr::send(n, &[sge(&own, 0, 32)]));
            poster.qp.post_send(&SendWr::write(n, &[sge(&own, 0, 32)], &other, 32));
            poster.qp.post_recv(&RecvWr::new(n, &[sge(&own, 0, 32)]));
            poster.qp.ring_send();
            poster.send_cq.drain();
            poster.recv_cq.drain();
        });
        let liar = end.clone();
        let mut rng = Rng::new(3);
        crew.add("liar", move || {
            liar.qp.force_send_tail(rng.below(20) as u32);
            liar.qp.force_recv_tail(rng.below(20) as u32);
            liar.qp.ring_recv();
            std::thread::yield_now();
        });
    }
    for (end, peer) in [(&a, &b), (&b, &a)] {
        add_churn(&mut crew, &end.driver, peer.endpoint());
        let (end, peer) = (end.clone(), peer.endpoint());
        let mut rng = Rng::new(4);
        crew.add("changer", move || match rng.below(8) {
            0 => drop(end.modify_state(PVRDMA_QPS_RESET)),
            1 => drop(end.modify_state(PVRDMA_QPS_ERR)),
            2 => drop(end.modify_state(PVRDMA_QPS_SQD)),
            3 => drop(end.modify_state(PVRDMA_QPS_RTS)),
            4 => drop(end.query()),
            _ => {
                let _ = end.modify(path.init());
                let _ = end.modify(path.rtr(peer));
                let _ = end.modify(path.rts());
            }
        });
    }
    for driver in &drivers {
        crew.add_worker(driver);
    }
    crew.run();
}

#[test]
fn nothing_is_touched_after_destroy_and_dereg_return() {
    // A peer writes and sends as fast as it can while the target's QP and regions are taken away.
    let drivers = guests();
    for round in 0..20 {
        let (a, b) = (Arc::new(End::new(&drivers[0], QpSize::default())), End::new(&drivers[1], QpSize::default()));
        let target = b.region(65536);
        let source = a.region(65536);
        connect(&a, &b, &Path { timeout: 5, rnr_retry: 7, min_rnr_timer: 1, ..Path::default() });
        for n in 0..64 {
            b.recv(&RecvWr::new(n, &[sge(&target, 0, 65536)]));
        }
        let stop = Arc::new(AtomicBool::new(false));
        let (flag, sender, from, aim) = (stop.clone(), a.clone(), source.clone(), target.clone());
        let thread = std::thread::spawn(move || {
            while !flag.load(Ordering::Relaxed) {
                sender.qp.post_send(&SendWr::write(1, &[sge(&from, 0, 65536)], &aim, 0));
                sender.qp.post_send(&SendWr::send(2, &[sge(&from, 0, 65536)]));
                sender.qp.ring_send();
                sender.send_cq.drain();
            }
        });
        std::thread::sleep(Duration::from_millis(2));
        if round % 2 == 0 {
            b.destroy();
            for page in &b.qp.block.pages {
                drivers[1].ram.watch(*page, 4096);
            }
        }
        let mut regions = [(&drivers[1], &target), (&drivers[0], &source)];
        regions.rotate_left(round / 2 % 2);
        for (driver, region) in regions {
            driver.dereg(region);
            for page in 0..16 {
                driver.ram.watch(region.page_of(page * 4096), 4096);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        stop.store(true, Ordering::Relaxed);
        thread.join().unwrap();
        assert_eq!((drivers[0].ram.touched(), drivers[1].ram.touched()), (0, 0), "round {round}");
        drivers[0].command(Command::DestroyUc { ctx: a.ctx }).unwrap();
        if round % 2 == 0 {
            drivers[1].command(Command::DestroyUc { ctx: b.ctx }).unwrap();
        } else {
            // Receives of the destroyed region end in an error; that is not the region being touched.
            modify_state(&drivers[1], b.qp.handle, PVRDMA_QPS_ERR).unwrap();
            drivers[1].command(Command::DestroyUc { ctx: b.ctx }).unwrap();
        }
    }
}

#[test]
fn late_answers_meet_posts_changes_and_deregistration() {
    // Threads that carry the wire against threads that post, take regions away and end lives.
    let net = Net::default();
    let [(da, wa), (db, wb)] = [0, 1].map(|index| Wire::guest(&net, index, Layout::Ranges));
    let mut crew = Crew::new();
    let path = Path { timeout: 8, retry_cnt: 7, rnr_retry: 7, min_rnr_timer: 1, ..Path::default() };
    let (a, b) = (Arc::new(End::new(&da, QpSize::default())), Arc::new(End::new(&db, QpSize::default())));
    connect(&a, &b, &path);
    for mut stream in [Stream::new(&a, &b), Stream::new(&b, &a)] {
        crew.add("stream", move || stream.step());
    }
    let (c, d) = (Arc::new(End::new(&da, QpSize::wr(16))), Arc::new(End::new(&db, QpSize::wr(16))));
    let (memory, remote) = (c.region(64), d.region(4096));
    let mut rng = Rng::new(5);
    crew.add("life", move || {
        connect(&c, &d, &path);
        let local = c.driver.register_again(c.pd, &memory);
        for n in 0..16 {
            c.send(&SendWr::read(n, &[sge(&local, 0, 64)], &remote, 0));
        }
        if rng.one_in(2) {
            std::thread::yield_now();
        }
        match rng.below(3) {
            0 => c.driver.dereg(&local),
            1 => c.modify_state(PVRDMA_QPS_ERR).unwrap(),
            _ => {}
        }
        c.reset();
        d.reset();
        c.send_cq.drain();
        std::thread::yield_now();
        assert_eq!(c.send_cq.waiting(), 0, "a completion after RESET");
        // What was reset or deregistered is not written any more.
        c.driver.ram.watch(local.page_of(0), 64);
        std::thread::yield_now();
        assert_eq!(c.driver.ram.touched(), 0);
        c.driver.ram.unwatch();
        let _ = c.driver.command(Command::DestroyMr { mr: local.mr });
    });
    for wire in [wa, wb] {
        for _ in 0..2 {
            let wire = wire.clone();
            let mut rng = Rng::new(6);
            crew.add("wire", move || {
                if let Some((token, answer)) = wire.deliver_and_take(rng.below(3) as usize) {
                    if rng.one_in(4) {
                        std::thread::yield_now();
                    }
                    wire.answer_late(token, answer);
                } else {
                    std::thread::yield_now();
                }
            });
        }
    }
    for driver in [&da, &db] {
        crew.add_worker(driver);
    }
    crew.run();
}

#[test]
fn an_armed_cq_never_sleeps_through_a_completion() {
    // Arm, look once more, then sleep: whoever does that must be woken. No timer helps out.
    let drivers = guests();
    let (a, b) = (End::new(&drivers[0], QpSize::default()), End::new(&drivers[1], QpSize::default()));
    connect(&a, &b, &Path::default());
    let rounds = 20_000u64;
    let (ping, pings) = mpsc::channel();
    let sender = std::thread::spawn(move || {
        for () in pings.iter() {
            a.send(&SendWr::send(1, &[]));
            a.send_cq.drain();
        }
    });
    let mut slept = 0;
    // As many rounds as fit: where both threads share a core, each costs whole scheduler slices.
    let end = Instant::now() + Duration::from_secs(4);
    for n in 0..rounds {
        if Instant::now() > end && slept > 0 {
            break;
        }
        b.recv(&RecvWr::new(n, &[]));
        ping.send(()).unwrap();
        let mut before = drivers[1].bell.completions_of(b.recv_cq.handle);
        b.recv_cq.ring(PVRDMA_UAR_CQ_ARM);
        if b.recv_cq.poll().is_some() {
            continue;
        }
        slept += 1;
        let limit = Instant::now() + Duration::from_secs(20);
        loop {
            let fired = drivers[1].bell.completions_of(b.recv_cq.handle);
            // The notification of the entry before this one may come late and find nothing; the arm still stands.
            if std::mem::replace(&mut before, fired) != fired && b.recv_cq.poll().is_some() {
                break;
            }
            assert!(Instant::now() < limit, "round {n}: {} entries wait and nobody was told", b.recv_cq.waiting());
            std::thread::yield_now();
        }
    }
    drop(ping);
    sender.join().unwrap();
    assert!(slept > 0, "never slept: the race was not run");
}
