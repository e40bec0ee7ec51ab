//! Guests of several hosts, and what is between them breaks: whoever carries requests is killed or stopped, a peer is,
//! the connection is cut, held or slow, strangers call. Who is given the time by its QP's timers never notices; who is
//! not is told. Afterwards everything works again, and no process or file is left (tests/c/apart.c).
//!
//! Each test says how long what took. The long form does more of it, in random order.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use pvrdma_tests::{
    Chance, Hosts, Provider, Running, Trust, amount, c_program, free_address, free_port, machine, pair,
    wait_for_listener,
};

/// What apart.c says when nobody has answered in time.
const NOBODY_ANSWERS: i32 = 3;
/// Timers that outlast anything here: 4.096 us x 2^20, eight times, is 34 s. A lost answer costs the first of them.
const PATIENT: &str = "20";
/// The same, where answers are lost and the first is waited for: 1.1 s, eight times.
const USUAL: &str = "18";
/// For who is to be told soon, and yet not by a busy machine: two seconds.
const HASTY: &str = "16";

fn ms(number: u64) -> Duration {
    Duration::from_millis(number)
}

/// Two programs, on host 1 and on host 2, that give each other work and check what they get.
struct Load {
    sides: [Running; 2],
}

impl Load {
    fn start(hosts: &Hosts, provider: &Provider, timeout: &str) -> Load {
        hosts.copy(&c_program("tests/c/apart.c", &[]));
        let until = hosts.host(1).stand().path("until");
        let _ = std::fs::remove_file(&until);
        let (until, port) = (until.to_str().expect("a path"), free_port());
        let number = port.to_string();
        let line = ["apart", "load", "-u", until, "-t", timeout, "-p", &number];
        let [server, client] = hosts.both(provider, &line).map(|job| job.time_out(Duration::from_secs(6000)));
        let mut server = server.spawn();
        wait_for_listener(&mut server, port);
        let mut load = Load { sides: [server, client.args(["127.0.0.1"]).spawn()] };
        for side in &mut load.sides {
            side.wait_for_text("running");
        }
        load
    }

    fn done(&self) -> [usize; 2] {
        [0, 1].map(|side| self.sides[side].stdout().matches("running").count())
    }

    /// Until both have done more than they had. How long that took.
    fn goes_on(&mut self, hosts: &Hosts) -> Duration {
        let (before, begin) = (self.done(), Instant::now());
        loop {
            let now = self.done();
            if now[0] > before[0] + 1 && now[1] > before[1] + 1 {
                return begin.elapsed();
            }
            for side in &mut self.sides {
                assert!(!side.has_ended(), "{}\n{hosts}", side.logs());
                assert!(begin.elapsed() < Duration::from_secs(120), "it stands still: {}\n{hosts}", side.logs());
            }
            thread::sleep(ms(5));
        }
    }

    /// Both end well: every byte was right, and each request was done once.
    fn stop(self, hosts: &Hosts) {
        std::fs::write(hosts.host(1).stand().path("until"), "").expect("the stand's folder can be written");
        for mut side in self.sides {
            side.hurry(Duration::from_secs(120));
            let output = side.wait();
            assert!(output.status.success(), "{output}\n{hosts}");
        }
    }

    /// Both are told, whatever they wait for. What they have said.
    fn expect_told(self, hosts: &Hosts) -> [String; 2] {
        self.sides.map(|mut side| {
            side.hurry(Duration::from_secs(120));
            let output = side.wait();
            assert_eq!(output.status.code(), Some(NOBODY_ANSWERS), "{output}\n{hosts}");
            output.stdout
        })
    }
}

/// Both hosts work.
fn works(hosts: &Hosts) {
    hosts.wait_until_linked();
    let [server, client] = hosts.both(&Provider::Ours, &["ibv_rc_pingpong", "-c", "-g", "1", "-n", "50"]);
    let (server, client) = pair(server, client);
    server.ok();
    client.ok();
}

#[test]
fn who_carries_requests_is_killed_and_starts_again() {
    let _machine = machine();
    for trust in amount(vec![Trust::Plain], vec![Trust::Plain, Trust::Certificates]) {
        let mut hosts = Hosts::linked(2, trust);
        let mut load = Load::start(&hosts, &Provider::Ours, USUAL);
        for round in 0..amount(1, 10) {
            for number in [1, 2] {
                let begin = Instant::now();
                hosts.host_mut(number).kill();
                thread::sleep(ms(100 * round));
                hosts.host_mut(number).start();
                hosts.wait_until_linked();
                let linked = begin.elapsed();
                load.goes_on(&hosts);
                println!("host {number} killed ({trust:?}): linked after {linked:?}, on after {:?}", begin.elapsed());
            }
        }
        load.stop(&hosts);
        for number in amount(vec![2], vec![1, 2, 1, 2]) {
            let load = Load::start(&hosts, &Provider::Ours, HASTY);
            let begin = Instant::now();
            hosts.host_mut(number).kill();
            // The way is gone, and that it was TCP is said.
            for said in load.expect_told(&hosts) {
                assert!(said.contains("transport retry counter exceeded, vendor_err 0x82"), "{said}");
            }
            println!("host {number} killed for good: told after {:?}", begin.elapsed());
            hosts.host_mut(number).start();
            hosts.wait_until_linked();
        }
        works(&hosts);
        hosts.end();
    }
}

#[test]
fn who_carries_requests_is_stopped() {
    let _machine = machine();
    let hosts = Hosts::linked(2, Trust::Plain);
    let mut load = Load::start(&hosts, &Provider::Ours, USUAL);
    for time in amount(vec![1200], vec![100, 250, 350, 700, 1000, 1200, 2000, 3000]) {
        for number in amount(1..=1, 1..=2) {
            let begin = Instant::now();
            hosts.host(number).signal(libc::SIGSTOP);
            thread::sleep(ms(time));
            hosts.host(number).signal(libc::SIGCONT);
            load.goes_on(&hosts);
            println!("host {number} stopped for {time} ms: on after {:?}", begin.elapsed());
        }
    }
    load.stop(&hosts);
    // Whoever gives up gives its memory back, even if that is being copied.
    for round in 0..amount(1, 30) {
        let load = Load::start(&hosts, &Provider::BOTH[(round + 1) % 2], HASTY);
        thread::sleep(Duration::from_micros(round as u64 * 137));
        let begin = Instant::now();
        hosts.host(1 + round % 2).signal(libc::SIGSTOP);
        load.expect_told(&hosts);
        hosts.host(1 + round % 2).signal(libc::SIGCONT);
        println!("host {} stopped for good: told after {:?}", 1 + round % 2, begin.elapsed());
        hosts.wait_until_linked();
    }
    works(&hosts);
    hosts.end();
}

/// What a stopped program does not take in keeps no room that others need, however much there is for it.
#[test]
fn a_stopped_program_holds_up_nobody_else() {
    let _machine = machine();
    let hosts = Hosts::linked(2, Trust::Plain);
    let port = free_port();
    let number = port.to_string();
    let line = ["-F", "-q", "16", "-s", "65536", "-D", "60", "-p", &number];
    let job = |host: usize| hosts.host(host).job("ib_send_bw").guest("crowd").args(line);
    let mut server = job(1).spawn();
    wait_for_listener(&mut server, port);
    let client = job(2).args(["127.0.0.1"]).spawn();
    thread::sleep(ms(1500));
    let pid = server.program_pid("ib_send_bw");
    server.signal(pid, libc::SIGSTOP);
    // All QPs send again and again meanwhile.
    for _ in 0..3 {
        thread::sleep(ms(200));
        let begin = Instant::now();
        works(&hosts);
        println!("others take {:?} beside it", begin.elapsed());
    }
    server.signal(pid, libc::SIGKILL);
    server.wait();
    // It has been told by now, or is soon.
    client.wait();
    works(&hosts);
    hosts.end();
}

/// A program that is killed answers no more; one that is stopped does, as soon as it can.
#[test]
fn a_peer_is_killed_or_stopped() {
    let _machine = machine();
    let hosts = Hosts::linked(2, Trust::Plain);
    let mut load = Load::start(&hosts, &Provider::Ours, USUAL);
    for time in amount(vec![600], vec![100, 250, 300, 1000, 3000]) {
        let side = &load.sides[1];
        let pid = side.program_pid("apart");
        side.signal(pid, libc::SIGSTOP);
        thread::sleep(ms(time));
        side.signal(pid, libc::SIGCONT);
        println!("a program stopped for {time} ms: on after {:?}", load.goes_on(&hosts));
    }
    load.stop(&hosts);
    hosts.copy(&c_program("tests/c/peer.c", &[]));
    for provider in &Provider::BOTH[..amount(1, 2)] {
        for mode in amount(vec!["write"], vec!["write", "read", "sleep"]) {
            let port = free_port();
            let number = port.to_string();
            let job = |host: usize, mode| hosts.host(host).job("peer").provider(provider).args([mode, "-p", &number]);
            let mut victim = job(1, "sit").spawn();
            wait_for_listener(&mut victim, port);
            let mut survivor = job(2, mode).args(["127.0.0.1"]).spawn();
            victim.wait_for_text("ready");
            survivor.wait_for_text("running");
            victim.signal(victim.program_pid("peer"), libc::SIGKILL);
            let text = survivor.wait().ok();
            let line = text.lines().find(|line| line.starts_with("retries exceeded")).expect("told");
            println!("a program killed, {mode}: {line}");
            let times: Vec<f64> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
            assert!(times[0] >= times[1], "too early: {line}");
        }
    }
    works(&hosts);
    hosts.end();
}

#[test]
fn nobody_carries_requests() {
    let _machine = machine();
    let mut hosts = Hosts::apart(2, Trust::Plain, None);
    hosts.copy(&c_program("tests/c/apart.c", &[]));
    let nobody_answers = |hosts: &Hosts, host: usize| {
        for provider in Provider::BOTH {
            let port = free_port();
            let number = port.to_string();
            let [mut server, client] = hosts.both(&provider, &["apart", "load", "-t", "12", "-p", &number]).map(Some);
            let mut server = server.take().expect("a job").spawn();
            wait_for_listener(&mut server, port);
            let client = client.expect("a job").args(["127.0.0.1"]).spawn();
            for side in [server, client] {
                let output = side.wait();
                assert_eq!(output.status.code(), Some(NOBODY_ANSWERS), "{output}\n{hosts}");
            }
        }
        let status = hosts.host(host).stand().pvrdma(&["link", "status"]).output();
        assert!(!status.status.success() && status.stderr.contains("start one with `pvrdma link run`"), "{status}");
    };
    nobody_answers(&hosts, 1);
    hosts.host_mut(1).start();
    nobody_answers(&hosts, 2);
    hosts.host_mut(2).start();
    works(&hosts);
    // There is one for each user and host.
    let second = hosts.host(1).stand().pvrdma(&["link", "run", "--listen", "127.0.0.1:0"]).output();
    assert!(!second.status.success() && second.stderr.contains("pvrdma link runs already"), "{second}");
    hosts.end();
}

// ---- the connection ---------------------------------------------------------------------------------------------

/// What goes over a connection.
#[derive(Default)]
struct Valve {
    /// From who has dialed, and to it: nothing is read.
    shut: [AtomicBool; 2],
    /// Bytes a second; 0: all there is.
    rate: AtomicU64,
    sockets: Mutex<Vec<[TcpStream; 2]>>,
    closed: AtomicBool,
}

/// Stands between two hosts.
struct Wire {
    valve: Arc<Valve>,
    address: SocketAddr,
}

impl Wire {
    fn to(host: SocketAddr) -> Wire {
        let address = free_address();
        let listener = TcpListener::bind(address).expect("a free address");
        let valve = Arc::new(Valve::default());
        let shared = valve.clone();
        thread::spawn(move || {
            for near in listener.incoming() {
                let near = near.expect("a connection");
                if shared.closed.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(far) = TcpStream::connect(host) else { continue };
                let double = |socket: &TcpStream| socket.try_clone().expect("a socket can be doubled");
                shared.sockets.lock().unwrap_or_else(PoisonError::into_inner).push([double(&near), double(&far)]);
                for (way, from, to) in [(0, double(&near), double(&far)), (1, far, near)] {
                    let valve = shared.clone();
                    thread::spawn(move || carry(&valve, way, from, to));
                }
            }
        });
        Wire { valve, address }
    }

    fn shut(&self, ways: [bool; 2]) {
        for (shut, is) in self.valve.shut.iter().zip(ways) {
            shut.store(is, Ordering::Relaxed);
        }
    }

    /// Ends the connection: for who has dialed, and for who was called. The other end of one that has ended for one
    /// only is left as it is, and hears nothing any more.
    fn end(&self, dialer: bool, called: bool) {
        for [near, far] in self.valve.sockets.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            for (socket, is) in [(near, dialer), (far, called)] {
                if is {
                    let _ = socket.shutdown(Shutdown::Both);
                }
            }
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.valve.closed.store(true, Ordering::Relaxed);
        self.shut([false; 2]);
        self.end(true, true);
        // It waits for one more.
        let _ = TcpStream::connect(self.address);
    }
}

fn carry(valve: &Valve, way: usize, mut from: TcpStream, mut to: TcpStream) {
    let mut bytes = vec![0; 64 * 1024];
    loop {
        while valve.shut[way].load(Ordering::Relaxed) {
            thread::sleep(ms(1));
        }
        let rate = valve.rate.load(Ordering::Relaxed);
        let most = if rate == 0 { bytes.len() } else { bytes.len().min(rate as usize / 500) };
        // What comes to an end on one side is not passed on: that is for the test to say.
        let Ok(len @ 1..) = from.read(&mut bytes[..most]) else { return };
        if to.write_all(&bytes[..len]).is_err() {
            return;
        }
        if rate > 0 {
            thread::sleep(ms(2));
        }
    }
}

#[test]
fn the_connection_is_held_cut_or_slow() {
    let _machine = machine();
    for trust in amount(vec![Trust::Certificates], vec![Trust::Plain, Trust::Certificates]) {
        let mut hosts = Hosts::apart(2, trust, None);
        let wire = Wire::to(hosts.host(2).address());
        hosts.host(1).redirect(hosts.host(2), wire.address);
        hosts.start();
        let mut load = Load::start(&hosts, &Provider::Ours, USUAL);
        for time in amount(vec![400], vec![100, 250, 350, 500, 900, 1100, 2000, 3000]) {
            for ways in amount(vec![[true, true]], vec![[true, true], [true, false], [false, true]]) {
                let begin = Instant::now();
                wire.shut(ways);
                thread::sleep(ms(time));
                wire.shut([false; 2]);
                load.goes_on(&hosts);
                println!("held for {time} ms, {ways:?}: on after {:?}", begin.elapsed());
            }
        }
        let halves = amount(vec![(true, false)], vec![(true, true), (true, false), (false, true)]);
        for (dialer, called) in halves {
            let begin = Instant::now();
            wire.end(dialer, called);
            load.goes_on(&hosts);
            println!("ended for the dialer: {dialer}, the called: {called}: on after {:?}", begin.elapsed());
            // The half that was left open is no concern of what comes later.
            wire.end(true, true);
            load.goes_on(&hosts);
        }
        // Sockets are full all the time, and nobody is taken for silent.
        for rate in amount(vec![20_000_000], vec![20_000_000, 10_000_000, 5_000_000]) {
            wire.valve.rate.store(rate, Ordering::Relaxed);
            println!("{rate} bytes a second: on after {:?}", load.goes_on(&hosts));
        }
        wire.valve.rate.store(0, Ordering::Relaxed);
        load.stop(&hosts);
        works(&hosts);
        hosts.end();
    }
}

// ---- strangers --------------------------------------------------------------------------------------------------

/// Who is refused is cut off: nothing more comes, however long it waits.
fn is_cut_off(mut socket: TcpStream) {
    socket.set_read_timeout(Some(Duration::from_secs(60))).expect("a time");
    let mut bytes = [0; 1024];
    loop {
        match socket.read(&mut bytes) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return,
            Err(error) => panic!("not cut off: {error}"),
        }
    }
}

#[test]
fn strangers_change_nothing() {
    let _machine = machine();
    for trust in amount(vec![Trust::Certificates], vec![Trust::Plain, Trust::Certificates]) {
        let hosts = Hosts::linked(2, trust);
        let mut load = Load::start(&hosts, &Provider::Ours, PATIENT);
        let call = || TcpStream::connect(hosts.host(2).address()).expect("somebody listens");
        // More than there is room for.
        let silent: Vec<TcpStream> = (0..40).map(|_| call()).collect();
        load.goes_on(&hosts);
        let begin = Instant::now();
        silent.into_iter().for_each(is_cut_off);
        println!("{trust:?}: forty strangers were cut off after {:?}", begin.elapsed());
        let mut chance = Chance::from_environment();
        let garbage: Vec<u8> = (0..100_000).map(|_| chance.any() as u8).collect();
        let four_gib = [&[0xff; 4][..], &[3, 0, 0, 0], &[0; 8]].concat();
        let web = b"GET / HTTP/1.1\r\nHost: host2\r\n\r\n".to_vec();
        for bytes in [garbage, four_gib, web] {
            let mut socket = call();
            // It may be cut off before all of it is told.
            let _ = socket.write_all(&bytes);
            is_cut_off(socket);
        }
        load.goes_on(&hosts);
        load.stop(&hosts);
        works(&hosts);
        hosts.end();
    }
}

/// A host of another fabric, which has the same numbers, and one that is another host than was dialed.
#[test]
fn hosts_of_another_fabric_and_wrong_ones_are_refused() {
    let _machine = machine();
    let hosts = Hosts::linked(2, Trust::Certificates);
    let mut load = Load::start(&hosts, &Provider::Ours, PATIENT);
    let mut others = Hosts::apart(3, Trust::Certificates, None);
    others.host(1).redirect(others.host(2), hosts.host(2).address());
    // By another address: a list has each once.
    let wire = Wire::to(others.host(1).address());
    others.host(2).redirect(others.host(3), wire.address);
    for number in [1, 2] {
        others.host_mut(number).start();
    }
    let says = |hosts: &Hosts, number: usize, text: &str| {
        let end = Instant::now() + Duration::from_secs(60);
        while !hosts.host(number).gateway().logs().contains(text) {
            assert!(Instant::now() < end, "never said {text:?}\n{hosts}");
            thread::sleep(ms(10));
        }
    };
    says(&others, 1, "host 2 (host2): ");
    says(&hosts, 2, "somebody who connected: ");
    says(&others, 2, "host 3 (host3): ");
    load.goes_on(&hosts);
    load.stop(&hosts);
    assert!(!others.host(1).status().contains("\"link\": {"), "{}", others.host(1).status());
    for hosts in [hosts, others] {
        hosts.end();
    }
}

// ---- at random --------------------------------------------------------------------------------------------------

/// Whoever carries requests, and programs, are killed and stopped in the middle of their work, two hundred times in the
/// long form. Nobody hangs, nobody gets a wrong byte, and nothing is left.
#[test]
fn anything_at_any_time() {
    let _machine = machine();
    let mut chance = Chance::from_environment();
    let mut hosts = Hosts::linked(2, Trust::Plain);
    let mut load: Option<Load> = None;
    for round in 0..amount(3, 200) {
        let begin = Instant::now();
        let provider = &Provider::BOTH[chance.below(2) as usize];
        let running = load.take().unwrap_or_else(|| Load::start(&hosts, provider, USUAL));
        thread::sleep(Duration::from_micros(chance.below(50_000)));
        let (number, side) = (1 + chance.below(2) as usize, chance.below(2) as usize);
        let pid = running.sides[side].program_pid("apart");
        let pause = Duration::from_micros(chance.below(amount(400_000, 1_500_000)));
        // To be told of a dead program takes nine seconds here.
        let what = chance.below(amount(3, 4));
        match what {
            0 => {
                hosts.host_mut(number).kill();
                thread::sleep(pause / 8);
                hosts.host_mut(number).start();
            }
            1 => {
                hosts.host(number).signal(libc::SIGSTOP);
                thread::sleep(pause);
                hosts.host(number).signal(libc::SIGCONT);
            }
            2 => {
                running.sides[side].signal(pid, libc::SIGSTOP);
                thread::sleep(pause);
                running.sides[side].signal(pid, libc::SIGCONT);
            }
            _ => {
                running.sides[side].signal(pid, libc::SIGKILL);
                let [server, client] = running.sides;
                let (victim, other) = if side == 0 { (server, client) } else { (client, server) };
                victim.wait();
                let output = other.wait();
                assert_eq!(output.status.code(), Some(NOBODY_ANSWERS), "{output}\n{hosts}");
                println!("round {round}: a program killed, the other told after {:?}", begin.elapsed());
                continue;
            }
        }
        let what = ["killed", "stopped", "a program stopped"][what as usize];
        let mut running = running;
        running.goes_on(&hosts);
        println!("round {round}: host {number} {what}, on after {:?}", begin.elapsed());
        // Some are ended while they are still at it.
        if chance.below(4) == 0 {
            running.stop(&hosts);
        } else {
            load = Some(running);
        }
    }
    if let Some(load) = load {
        load.stop(&hosts);
    }
    works(&hosts);
    hosts.end();
}
