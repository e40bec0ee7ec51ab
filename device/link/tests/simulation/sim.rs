//! Hosts with their devices, the wires between them, and the clock that all of them have.
//!
//! A host is what a server of virtual machines is: devices on a fabric that is linked, what the links see of them, and
//! the links. Only threads and sockets are missing: each step each host does what its thread would.

use crate::Plan;
use crate::datagrams::Post;
use crate::guest::Guest;
use crate::pair::{News, Pair, Shape};
use crate::weather::Weather;
use pvrdma_device::clock::Clock;
use pvrdma_device::handle::Gid;
use pvrdma_device::testing::end::Path;
use pvrdma_device::transport::path::Paths;
use pvrdma_link::near::Near;
use pvrdma_link::uplink::devices::Devices;
use pvrdma_net::connection::{End, Me};
use pvrdma_net::frame::{Bad, FRAME};
use pvrdma_net::hosts::{HostEvent, Hosts, Why};
use pvrdma_net::limits::{Limits, Patience};
use pvrdma_net::testing::Rng;
use pvrdma_net::testing::wires::Wires;
use std::collections::BTreeMap;
use std::time::Duration;

const STEP: Duration = Duration::from_millis(1);
/// Addresses that move.
const FLOATING: u32 = 3;
/// How long a host that nobody answers is dialed.
const DIAL: Duration = Duration::from_secs(2);

struct Host {
    hosts: Hosts,
    devices: Devices,
    /// Neither runs nor reads before.
    stopped: Duration,
    slow: Duration,
}

/// See the module text.
pub struct Sim {
    plan: Plan,
    seed: u64,
    rng: Rng,
    pub now: Duration,
    clock: Clock,
    hosts: Vec<Host>,
    /// Those of the first host, then those of the second.
    guests: Vec<Guest>,
    pub pairs: Vec<Pair>,
    pub wires: Wires,
    weather: Weather,
    /// Hosts with a lower number and the others do not reach each other before.
    parted: (u16, Duration),
    /// Who dials whom in vain, until when.
    dialing: Vec<(Duration, u16, u16)>,
    /// The guest that has each floating address.
    holders: Vec<usize>,
    boots: u64,
    pub trace: u64,
    /// How many work requests ended how.
    pub ends: BTreeMap<u32, u64>,
    pub post: Post,
    pub links: u64,
    pub restarts: u64,
    pub remakes: u64,
    /// When all links were there for the first time.
    pub met: Duration,
    /// Bytes that hosts had said to each other by then.
    said: u64,
    /// Programs have ended.
    over: bool,
}

fn floating(n: u32) -> Gid {
    let mut gid = [0; 16];
    gid[10..].copy_from_slice(&[0xff, 0xff, 10, 0, 0, n as u8 + 1]);
    gid
}

impl Sim {
    pub fn new(plan: Plan, seed: u64) -> Sim {
        let mut sim = Sim {
            plan,
            seed,
            rng: Rng::new(seed),
            now: Duration::from_secs(1),
            clock: Clock::by_hand(),
            hosts: Vec::new(),
            guests: Vec::new(),
            pairs: Vec::new(),
            wires: Wires::default(),
            weather: Weather::new(plan.hosts),
            parted: (0, Duration::ZERO),
            dialing: Vec::new(),
            holders: Vec::new(),
            boots: 0,
            trace: 0,
            ends: BTreeMap::new(),
            post: Post::default(),
            links: 0,
            restarts: 0,
            remakes: 0,
            met: Duration::ZERO,
            said: 0,
            over: false,
        };
        sim.clock.set(sim.now);
        let all = u64::from(plan.hosts * plan.guests);
        for number in 0..plan.pairs as usize {
            let one = sim.rng.below(all);
            let two = (one + 1 + sim.rng.below(all - 1)) % all;
            let ms = [14, 12, 17][number % 3];
            let path = Path {
                timeout: ms,
                retry_cnt: [7, 3, 7][number % 3],
                rnr_retry: 7,
                min_rnr_timer: 12,
                ..Path::default()
            };
            let shape = match number % 4 {
                0 if plan.long => Shape { depth: 4, slot: 400 << 10 },
                1 if plan.long => Shape { depth: 32, slot: 4096 },
                _ => Shape { depth: plan.depth, slot: 256 },
            };
            sim.pairs.push(Pair::new(number, [one as usize, two as usize], shape, path));
        }
        for host in 1..=plan.hosts {
            let made = sim.host(host);
            sim.hosts.push(made);
            let guests: Vec<Guest> = sim.guests_of(host).map(|guest| sim.guest(guest)).collect();
            sim.guests.extend(guests);
        }
        for n in 0..FLOATING {
            let holder = sim.rng.below(all) as usize;
            sim.holders.push(holder);
            sim.guests[holder].bind(n, floating(n), true);
        }
        sim
    }

    fn host_of(&self, guest: usize) -> u16 {
        guest as u16 / self.plan.guests + 1
    }

    fn guests_of(&self, host: u16) -> std::ops::Range<usize> {
        let each = usize::from(self.plan.guests);
        usize::from(host - 1) * each..usize::from(host) * each
    }

    fn at(&mut self, host: u16) -> &mut Host {
        &mut self.hosts[usize::from(host - 1)]
    }

    fn runs(&self, host: u16) -> bool {
        self.hosts[usize::from(host - 1)].stopped <= self.now
    }

    fn host(&mut self, host: u16) -> Host {
        self.boots += 1;
        let mut boot = [0; 16];
        boot[..8].copy_from_slice(&self.boots.to_le_bytes());
        let me = Me { host, boot, limits: Limits::default(), patience: Patience::default() };
        Host {
            hosts: Hosts::new(&me, self.now, 1..=self.plan.hosts),
            devices: Devices::new(host, Paths::default(), || ()),
            stopped: Duration::ZERO,
            slow: Duration::ZERO,
        }
    }

    fn guest(&self, index: usize) -> Guest {
        let fabric = self.hosts[usize::from(self.host_of(index)) - 1].devices.fabric();
        let own = || self.pairs.iter().filter(|pair| pair.guests().contains(&index));
        let depth = own().map(|pair| pair.shape().depth).max().unwrap_or(1);
        let memory = own().map(|pair| pair.shape().len() + 8192).sum();
        Guest::new(fabric, index, self.boots, &self.clock, own().count() as u64 + 1, depth, memory)
    }

    fn note(&mut self, what: u64) {
        self.trace = (self.trace ^ what).wrapping_mul(0x100_0000_01b3).rotate_left(7);
    }

    // ---- programs ------------------------------------------------------------------------------------------------

    fn programs(&mut self) {
        let wrong = self.is_troubled();
        for n in 0..self.pairs.len() {
            let guests = self.pairs[n].guests();
            let run = guests.map(|guest| self.runs(self.host_of(guest)));
            if run == [true; 2] && self.pairs[n].remake_at.is_some_and(|at| at <= self.now) {
                self.remakes += 1;
                for guest in guests {
                    self.guests[guest].driver.device.poll();
                }
                self.completions();
                self.pairs[n].remake(&mut self.guests, &mut self.rng);
            }
            for (side, runs) in run.into_iter().enumerate() {
                if runs {
                    let (messages, pace) = (self.plan.messages, if wrong { self.plan.pace } else { 1 });
                    self.pairs[n].post(side, messages, pace, wrong, &mut self.rng);
                }
            }
        }
        // Some datagrams, a few of them to an address that moves.
        for _ in 0..self.rng.below(2) {
            let from = self.rng.below(self.guests.len() as u64) as usize;
            let moving = self.rng.one_in(4).then(|| self.rng.below(u64::from(FLOATING)) as u32);
            let to = match moving {
                Some(n) => self.holders[n as usize],
                None => self.rng.below(self.guests.len() as u64) as usize,
            };
            if from == to || !self.runs(self.host_of(from)) {
                continue;
            }
            let mut av = self.guests[to].datagrams.av(&self.guests[from].datagrams);
            if let Some(n) = moving {
                av.dgid = floating(n);
            }
            self.guests[from].datagrams.send(&mut self.post, to, &av, &mut self.rng);
        }
    }

    /// Takes what guests were told: receives first, as nobody hears that something was sent before it has come.
    fn completions(&mut self) {
        let guests: Vec<usize> = (0..self.guests.len()).filter(|guest| self.runs(self.host_of(*guest))).collect();
        for guest in &guests {
            for wc in self.guests[*guest].cqs[1].drain() {
                let (n, side) = self.guests[*guest].by_qp[&wc.qp];
                self.note(wc.wr_id << 8 | u64::from(wc.status) | (n as u64) << 32);
                self.pairs[n].received(side, &wc);
                self.pairs[n].notice(self.now, &mut self.rng);
            }
        }
        for guest in &guests {
            for wc in self.guests[*guest].cqs[0].drain() {
                let (n, side) = self.guests[*guest].by_qp[&wc.qp];
                self.note(wc.wr_id << 8 | u64::from(wc.status) | (n as u64) << 32 | 1 << 63);
                *self.ends.entry(wc.status).or_default() += 1;
                if let News::GaveUp { every, tries } = self.pairs[n].sent(side, &wc) {
                    let [a, b] = self.pairs[n].guests().map(|guest| self.host_of(guest));
                    let bad = a != b && self.weather.was_bad(a, b, self.now, every, tries);
                    assert!(bad, "pair {n}, of hosts {a} and {b}, gave up a request while its link was fine");
                }
                self.pairs[n].notice(self.now, &mut self.rng);
            }
            self.guests[*guest].datagrams.take(&mut self.post);
        }
    }

    // ---- hosts and bearers ---------------------------------------------------------------------------------------

    fn events(&mut self, host: u16) {
        loop {
            let now = self.now;
            let of = self.at(host);
            let Some(event) = of.hosts.next_event() else { return };
            match event {
                HostEvent::Dial(to) => self.dial(host, to),
                HostEvent::Close(bearer, why) => {
                    // A greeting may be held up for longer than it has; nothing else that breaks the protocol may be.
                    let broken = matches!(why, Why::End(End::Bad(bad)) if bad != Bad::TooSlow);
                    assert!(!broken, "host {host}: {why}");
                    self.wires.hang_up(host, bearer);
                }
                event => {
                    of.devices.happened(&mut of.hosts, now, event);
                    match event {
                        HostEvent::Up { host: other, .. } => {
                            self.links += 1;
                            self.weather.is_up(host, other, true);
                        }
                        HostEvent::Down(other) => {
                            self.weather.is_up(host, other, false);
                            let may = self.weather.may_go_down(host, other, now);
                            assert!(may, "the link of {host} to {other} has ended for no reason");
                        }
                        _ => {}
                    }
                }
            }
        }
    }

    fn are_parted(&self, a: u16, b: u16) -> bool {
        let (first, until) = self.parted;
        self.now < until && (a < first) != (b < first)
    }

    fn dial(&mut self, from: u16, to: u16) {
        let now = self.now;
        if self.are_parted(from, to) {
            return self.dialing.push((now + DIAL, from, to));
        }
        if self.is_troubled() && self.rng.one_in(10) {
            return self.at(from).hosts.dial_failed(now, to);
        }
        let bearer = self.at(from).hosts.dialed(now, to);
        let Some(called) = self.at(to).hosts.accept(now) else {
            return self.at(from).hosts.closed(now, bearer);
        };
        let capacity = 1 << (14 + self.rng.below(6));
        self.wires.connect([(from, bearer), (to, called)], capacity);
    }

    fn carry(&mut self) {
        for id in self.wires.ids() {
            for side in 0..2 {
                self.read(id, side);
                self.write(id, side);
            }
        }
    }

    fn write(&mut self, id: u64, side: usize) {
        let Some((host, bearer)) = self.wires.end(id, side).filter(|(host, _)| self.runs(*host)) else { return };
        let now = self.now;
        if let Some(out) = self.wires.out(id, side) {
            let Host { hosts, devices, .. } = &mut self.hosts[usize::from(host - 1)];
            hosts.transmit(now, bearer, out, 1 << 16, devices);
        }
        self.wires.send(id, side, now, STEP, &mut self.rng);
        self.events(host);
    }

    fn read(&mut self, id: u64, side: usize) {
        let Some((host, bearer)) = self.wires.end(id, side).filter(|(host, _)| self.runs(*host)) else { return };
        let now = self.now;
        let most = if self.at(host).slow > now { 2000 } else { usize::MAX };
        let Some(received) = self.wires.receive(id, side, now, most) else { return };
        let input = received.input;
        let mut at = 0;
        while received.news && at < input.len() {
            let Host { hosts, devices, .. } = self.at(host);
            let (len, arrival) = hosts.receive(now, bearer, &input[at..]);
            at += len;
            let Some(arrival) = arrival else { break };
            devices.arrived(hosts, now, arrival);
            self.events(host);
        }
        self.events(host);
        assert!(input.len() - at <= FRAME);
        self.wires.keep(id, side, &input[at..]);
        if received.ended {
            self.at(host).hosts.closed(now, bearer);
            self.events(host);
        }
    }

    /// From the moment when all know each other, for as long as the plan says.
    fn is_troubled(&self) -> bool {
        self.met > Duration::ZERO && self.now < self.met.saturating_add(self.plan.trouble)
    }

    // ---- trouble -------------------------------------------------------------------------------------------------

    fn trouble(&mut self) {
        let now = self.now;
        let failed = self
            .dialing
            .extract_if(.., |(until, from, _)| *until <= now && self.hosts[usize::from(*from - 1)].stopped <= now);
        for (_, from, to) in failed.collect::<Vec<_>>() {
            self.at(from).hosts.dial_failed(now, to);
        }
        if !self.is_troubled() || self.rng.below(1000) >= self.plan.often {
            return;
        }
        // Most of it is over before anybody gives up, so that work is in its way.
        let longest = if self.rng.one_in(3) { 2500 } else { 150 };
        let until = now + Duration::from_millis(self.rng.below(longest));
        let host = 1 + self.rng.below(u64::from(self.plan.hosts)) as u16;
        let wires = self.wires.ids();
        let wire = wires.get(self.rng.below(wires.len().max(1) as u64) as usize).copied();
        let pair = self.rng.below(self.pairs.len() as u64) as usize;
        match self.rng.below(13) {
            // Nothing gets through, and then all of it.
            0..3 => {
                if let Some((id, [a, b])) = wire.and_then(|id| Some((id, self.wires.hosts(id)?))) {
                    self.wires.cut(id, until);
                    self.weather.trouble(a, b, until);
                }
            }
            // It ends; one end may hear of it later than the other.
            3 | 4 => {
                if let Some((id, [a, b])) = wire.and_then(|id| Some((id, self.wires.hosts(id)?)))
                    && let Some((host, bearer)) = self.wires.end(id, self.rng.below(2) as usize)
                {
                    self.weather.trouble(a, b, now);
                    self.at(host).hosts.closed(now, bearer);
                    self.events(host);
                }
            }
            5 => {
                self.at(host).slow = until;
                self.weather.trouble_at(host, until);
            }
            6 => {
                self.at(host).stopped = until;
                self.weather.trouble_at(host, until);
            }
            7 => self.restart(host),
            8 => self.part(host, until),
            9 => {
                // A program makes its QPs anew, whatever they are doing.
                let pair = &mut self.pairs[pair];
                pair.remake_at = pair.remake_at.or(Some(now));
            }
            10 => {
                let side = self.rng.below(2) as usize;
                if self.runs(self.host_of(self.pairs[pair].guests()[side])) {
                    self.pairs[pair].stop(side);
                    self.pairs[pair].notice(now, &mut self.rng);
                }
            }
            _ => {
                let n = self.rng.below(u64::from(FLOATING)) as u32;
                let to = self.rng.below(self.guests.len() as u64) as usize;
                let from = self.holders[n as usize];
                if self.runs(self.host_of(from)) && self.runs(self.host_of(to)) {
                    self.guests[from].bind(n, floating(n), false);
                    self.guests[to].bind(n, floating(n), true);
                    self.holders[n as usize] = to;
                }
            }
        }
    }

    /// Hosts below `first` and the others do not reach each other.
    fn part(&mut self, first: u16, until: Duration) {
        self.parted = (first, until);
        for low in 1..first {
            for high in first..=self.plan.hosts {
                self.weather.trouble(low, high, until);
            }
        }
        for id in self.wires.ids() {
            if self.wires.hosts(id).is_some_and(|[a, b]| self.are_parted(a, b)) {
                self.wires.cut(id, until);
            }
        }
    }

    /// A host is killed with all of its guests, and starts again.
    fn restart(&mut self, host: u16) {
        self.restarts += 1;
        self.wires.hang_up_all(host);
        self.dialing.retain(|(_, from, _)| *from != host);
        self.weather.trouble_at(host, self.now);
        for other in (1..=self.plan.hosts).filter(|other| *other != host) {
            self.weather.is_up(host, other, false);
        }
        let made = self.host(host);
        *self.at(host) = made;
        for guest in self.guests_of(host) {
            self.guests[guest] = self.guest(guest);
            for n in (0..FLOATING).filter(|n| self.holders[*n as usize] == guest) {
                self.guests[guest].bind(n, floating(n), true);
            }
        }
        for pair in &mut self.pairs {
            for guest in pair.guests() {
                if guest as u16 / self.plan.guests + 1 == host {
                    pair.lost(guest);
                }
            }
            pair.notice(self.now, &mut self.rng);
        }
    }

    // ---- all of it -----------------------------------------------------------------------------------------------

    fn step(&mut self) {
        self.trouble();
        if self.met == Duration::ZERO && self.weather.is_fine() {
            self.met = self.now;
            let all = 1..=self.plan.hosts;
            let stats = self.hosts.iter().flat_map(|of| all.clone().filter_map(|other| of.hosts.stats(other)));
            self.said = stats.map(|stats| stats.bytes_out).sum();
        }
        // Addresses are told after the greetings.
        if !self.over && self.met > Duration::ZERO && self.now > self.met + 50 * STEP {
            self.programs();
        }
        for host in 1..=self.plan.hosts {
            let now = self.now;
            let Host { hosts, devices, stopped, .. } = self.at(host);
            if *stopped <= now {
                devices.take_notes(hosts, now);
                self.events(host);
            }
        }
        self.carry();
        for host in 1..=self.plan.hosts {
            if self.runs(host) {
                let now = self.now;
                self.at(host).hosts.poll(now);
                self.events(host);
                self.at(host).devices.tell_of_room();
                let guests: Vec<usize> = self.guests_of(host).collect();
                for guest in &guests {
                    self.guests[*guest].driver.device.poll();
                }
            }
        }
        self.completions();
        self.weather.observe(self.now);
        self.now += STEP;
        self.clock.set(self.now);
    }

    fn settled(&self) -> bool {
        let messages = self.plan.messages;
        self.met > Duration::ZERO
            && !self.is_troubled()
            && self.pairs.iter().all(|pair| pair.done() >= messages && pair.remake_at.is_none())
    }

    /// Runs until all that was to be done is done, and nothing is left of it.
    pub fn run(mut self) -> Sim {
        let end = self.now + self.plan.trouble + Duration::from_secs(60);
        while !self.settled() {
            self.step();
            let late = self.pairs.iter().filter(|pair| pair.done() < self.plan.messages).count();
            assert!(self.now < end, "{late} pairs never end");
        }
        // What was given up is over too, links are there again, and what is said of addresses is known.
        while self.now < self.weather.clears() || !self.weather.is_fine() {
            self.step();
            assert!(self.weather.may_be_down(self.now), "links that are not there again: {:?}", self.weather.down());
        }
        for _ in 0..2500 {
            self.step();
        }
        self.completions();
        self.pairs.iter_mut().for_each(Pair::end);
        self.over = true;
        for _ in 0..100 {
            self.step();
        }
        assert!(self.weather.is_fine(), "links that are not there any more: {:?}", self.weather.down());
        for guest in &self.guests {
            assert_eq!(guest.driver.device.budget_left(), guest.budget, "what a device holds when all was given back");
        }
        for host in 1..=self.plan.hosts {
            for n in 0..FLOATING {
                let holder = self.host_of(self.holders[n as usize]);
                assert_eq!(self.at(host).hosts.owner(&floating(n)), Some(holder), "address {n}, as host {host} knows");
            }
            assert!(self.at(host).devices.is_idle(), "host {host} has something left");
            assert_eq!(self.at(host).hosts.unanswered(), 0, "requests of host {host} that have no answer");
        }
        self
    }

    pub fn report(&self) {
        println!(
            "seed {}: {:?} of virtual time, all links after {:?} and {} bytes, ends {:?}, {} of {} datagrams, {} links, {} restarts, \
             {} QPs made anew, trace {:016x}",
            self.seed,
            self.now,
            self.met - Duration::from_secs(1),
            self.said,
            self.ends,
            self.post.came,
            self.post.count,
            self.links,
            self.restarts,
            2 * self.remakes,
            self.trace
        );
    }
}
