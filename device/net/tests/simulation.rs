//! Hosts in one process, on a clock that is only a number, by a seed: requests between their QPs over bearers that
//! delay, break up, hold back and cut, while hosts stop, read slowly and start anew and addresses move. Each QP does
//! what a requester does (it goes back to the request that was not acknowledged), so in the end all of it must have
//! been done, in order, once, and no byte be another one.
//!
//! `PVRDMA_SEED` repeats a run. The large form, which takes minutes:
//!
//!     PVRDMA_HOSTS=100 PVRDMA_QPS=10000 PVRDMA_MESSAGES=1000000 \
//!         cargo test --release -p pvrdma-net --test simulation large -- --nocapture

use pvrdma_net::connection::{End, Me};
use pvrdma_net::event::{Arrival, Hold, Receipt, ReplyKey, Source, Submitted, Token};
use pvrdma_net::frame::{Answer, Bad, Card, Datagram, Ends, Ext, FRAME, Gid, Message, Op, Refusal, Segment, Way};
use pvrdma_net::hosts::{BearerId, HostEvent, Hosts, Why};
use pvrdma_net::limits::{Limits, Patience};
use pvrdma_net::testing::wires::{Lane, Received, Wires};
use pvrdma_net::testing::{Rng, size};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::Duration;

const STEP: Duration = Duration::from_millis(1);
/// Addresses that move.
const FLOATING: u16 = 3;
/// More than what a stream takes at once, so that some are busy.
const WINDOW: usize = 36;

#[derive(Clone, Copy, Default)]
struct Plan {
    hosts: u16,
    pairs: u32,
    messages: u32,
    /// How long things go wrong.
    trouble: Duration,
    /// Chance of trouble in a step, of 1000.
    often: u64,
    /// READs, and messages of more than one segment.
    long: bool,
}

fn gid_of(host: u16) -> Gid {
    let mut gid = [0; 16];
    gid[10..].copy_from_slice(&[0xff, 0xff, 127, host as u8, 82, 1]);
    gid
}

fn floating(n: u16) -> Gid {
    let mut gid = [0; 16];
    gid[10..].copy_from_slice(&[0xff, 0xff, 10, 0, 0, n as u8 + 1]);
    gid
}

/// A requester and its responder.
struct Pair {
    from: u16,
    to: u16,
    /// How often it was made.
    generation: u32,
    /// Next message to submit; all before `done` are done.
    next: u32,
    done: u32,
    outstanding: VecDeque<(u32, Token, bool)>,
    busy: bool,
    retry: Duration,
    /// Responder: what is expected, and how much of it has come.
    expected: u32,
    partial: u64,
    /// Requester: bytes of each READ that have come.
    arrived: HashMap<Token, u64>,
}

/// Message and name of a request.
type Name = (u32, u32, u32);

struct Host {
    hosts: Hosts,
    tokens: HashMap<Token, Name>,
    replies: HashMap<ReplyKey, Name>,
    /// What was asked for was not there yet.
    late: Vec<ReplyKey>,
    /// Cancelled while events were taken out: an answer that is among them already is told all the same.
    forgotten: HashSet<Token>,
    /// Given back later.
    receipts: VecDeque<(Duration, Receipt, Option<Answer>)>,
    holds: VecDeque<(Duration, Hold)>,
    /// Neither runs nor reads before.
    stopped: Duration,
    slow: Duration,
}

struct Payloads<'a> {
    tokens: &'a HashMap<Token, Name>,
    replies: &'a HashMap<ReplyKey, Name>,
    late: &'a mut Vec<ReplyKey>,
    faults: bool,
    rng: &'a mut Rng,
}

fn pattern(name: Name, offset: u64) -> u8 {
    let (pair, generation, n) = name;
    (u64::from(pair) * 7 + u64::from(generation) * 13 + u64::from(n) * 31 + offset + (offset >> 8) * 3) as u8
}

fn fill(name: Name, offset: u64, into: &mut [u8]) {
    for (at, byte) in into.iter_mut().enumerate() {
        *byte = pattern(name, offset + at as u64);
    }
}

impl Source for Payloads<'_> {
    fn payload(&mut self, token: Token, offset: u64, into: &mut [u8]) -> bool {
        let name = self.tokens[&token];
        fill(name, offset, into);
        !(self.faults && self.rng.one_in(2000))
    }

    fn reply(&mut self, key: ReplyKey, offset: u64, into: &mut [u8]) -> Result<bool, Answer> {
        let name = self.replies[&key];
        if self.rng.one_in(8) {
            self.late.push(key);
            return Ok(false);
        }
        fill(name, offset, into);
        if self.faults && self.rng.one_in(2000) { Err(Answer::Nak(4)) } else { Ok(true) }
    }
}

struct Sim {
    plan: Plan,
    seed: u64,
    rng: Rng,
    now: Duration,
    hosts: Vec<Host>,
    wires: Wires,
    pairs: Vec<Pair>,
    /// Who has each floating address.
    holders: Vec<u16>,
    boots: u64,
    trace: u64,
    answers: BTreeMap<&'static str, u64>,
    busy: u64,
    datagrams: u64,
    links: u64,
    /// To adapters.
    changes: u64,
    restarts: u64,
    refused: Vec<String>,
}

fn me(host: u16, boot: u64) -> Me {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&boot.to_le_bytes());
    Me { host, boot: bytes, limits: Limits::default(), patience: Patience::default() }
}

impl Sim {
    fn new(plan: Plan, seed: u64) -> Sim {
        let mut sim = Sim {
            plan,
            seed,
            rng: Rng::new(seed),
            now: Duration::from_secs(1),
            hosts: Vec::new(),
            wires: Wires::default(),
            pairs: Vec::new(),
            holders: vec![1; usize::from(FLOATING)],
            boots: 0,
            trace: 0,
            answers: BTreeMap::new(),
            busy: 0,
            datagrams: 0,
            links: 0,
            changes: 0,
            restarts: 0,
            refused: Vec::new(),
        };
        for host in 1..=plan.hosts {
            let made = sim.host(host);
            sim.hosts.push(made);
        }
        for _ in 0..plan.pairs {
            let from = 1 + sim.rng.below(u64::from(plan.hosts)) as u16;
            let to = 1 + (u64::from(from - 1) + 1 + sim.rng.below(u64::from(plan.hosts) - 1)) as u16 % plan.hosts;
            sim.pairs.push(Pair {
                from,
                to,
                generation: 0,
                next: 0,
                done: 0,
                outstanding: VecDeque::new(),
                busy: false,
                retry: Duration::ZERO,
                expected: 0,
                partial: 0,
                arrived: HashMap::new(),
            });
        }
        sim
    }

    fn host(&mut self, host: u16) -> Host {
        self.boots += 1;
        let mut hosts = Hosts::new(&me(host, self.boots), self.now, 1..=self.plan.hosts);
        hosts.bind(&gid_of(host));
        for n in 0..FLOATING {
            if self.holders[usize::from(n)] == host {
                hosts.bind(&floating(n));
            }
        }
        Host {
            hosts,
            tokens: HashMap::new(),
            replies: HashMap::new(),
            forgotten: HashSet::new(),
            late: Vec::new(),
            receipts: VecDeque::new(),
            holds: VecDeque::new(),
            stopped: Duration::ZERO,
            slow: Duration::ZERO,
        }
    }

    fn ends(&self, pair: u32) -> Ends {
        let of = &self.pairs[pair as usize];
        let qpn = pair << 8 | of.generation & 0xff;
        Ends { source_gid: gid_of(of.from), source_qpn: qpn, dest_gid: gid_of(of.to), dest_qpn: qpn }
    }

    /// What the n-th message of a pair is: both ends know it.
    fn message(&self, name: Name) -> Message {
        let (pair, generation, n) = name;
        let mut rng = Rng::new(u64::from(pair) << 32 ^ u64::from(n) << 8 ^ u64::from(generation));
        let (remote_addr, rkey, word) = (rng.word(), rng.word() as u32, rng.word() as u32);
        let op = match rng.below(if self.plan.long { 12 } else { 8 }) {
            0 => Op::Send { ext: Ext::Imm(word) },
            1 => Op::Send { ext: Ext::Invalidate(word) },
            2..4 => Op::Send { ext: Ext::None },
            4 => Op::Write { remote_addr, rkey, imm: Some(word) },
            5 => Op::Write { remote_addr, rkey, imm: None },
            6 => Op::CompareSwap { remote_addr, rkey, compare: 1, swap: 2 },
            7 => Op::FetchAdd { remote_addr, rkey, add: 3 },
            8..10 => Op::Read { remote_addr, rkey },
            _ => Op::Write { remote_addr, rkey, imm: None },
        };
        let long = self.plan.long && rng.one_in(40);
        let len = if op.atomic() { 8 } else { size(&mut rng, if long { 21 } else { 9 }) };
        Message { op, psn: n & 0xff_ffff, packets: 1 + (len / 4096) as u32, len, solicited: rng.one_in(2) }
    }

    fn note(&mut self, what: u64) {
        self.trace = (self.trace ^ what).wrapping_mul(0x100_0000_01b3).rotate_left(7);
    }

    // ---- requesters ----------------------------------------------------------------------------------------------

    fn submit_all(&mut self) {
        for n in 0..self.pairs.len() as u32 {
            let (from, retry) = (self.pairs[n as usize].from, self.pairs[n as usize].retry);
            let host = usize::from(from - 1);
            if retry > self.now || self.hosts[host].stopped > self.now || self.pairs[n as usize].busy {
                continue;
            }
            let ends = self.ends(n);
            loop {
                let pair = &self.pairs[n as usize];
                if pair.outstanding.len() >= WINDOW || pair.next >= self.plan.messages {
                    break;
                }
                let name = (n, pair.generation, pair.next);
                let message = self.message(name);
                let submitted = self.hosts[host].hosts.submit(self.now, &ends, &message);
                let now = self.now;
                let pair = &mut self.pairs[n as usize];
                match submitted {
                    Submitted::Pending(token) => {
                        assert!(self.hosts[host].tokens.insert(token, name).is_none(), "a token was given twice");
                        pair.outstanding.push_back((pair.next, token, false));
                        pair.next += 1;
                    }
                    Submitted::Busy => {
                        pair.busy = true;
                        self.busy += 1;
                        break;
                    }
                    Submitted::Silence => {
                        pair.retry = now + Duration::from_millis(20);
                        break;
                    }
                }
            }
        }
    }

    fn answered(&mut self, host: u16, token: Token, answer: Answer) {
        let of = &mut self.hosts[usize::from(host - 1)];
        if of.forgotten.remove(&token) {
            return;
        }
        let name = of.tokens.remove(&token);
        let (n, generation, message) = name.expect("one answer to what waits for one");
        let kind = match answer {
            Answer::Ack => "ack",
            Answer::Rnr(_) => "rnr",
            Answer::Nak(0) => "sequence",
            Answer::Nak(_) => "nak",
            Answer::RequesterFault => "fault",
            Answer::Silence => "silence",
        };
        *self.answers.entry(kind).or_default() += 1;
        self.note(u64::from(n) << 32 | u64::from(message) << 8 | kind.len() as u64);
        let what = self.message((n, generation, message));
        let pair = &mut self.pairs[n as usize];
        assert_eq!(pair.generation, generation, "an answer for a QP that is gone");
        let arrived = pair.arrived.remove(&token).unwrap_or_default();
        let at = pair.outstanding.iter().position(|(_, of, _)| *of == token).expect("it is outstanding");
        if answer == Answer::Ack {
            assert!(!what.op.reads() || arrived == what.len, "{arrived} of {} bytes read", what.len);
            pair.outstanding[at].2 = true;
            while pair.outstanding.front().is_some_and(|(_, _, done)| *done) {
                pair.outstanding.pop_front();
                pair.done += 1;
            }
            return;
        }
        // Go back to it.
        let rest: Vec<_> = pair.outstanding.drain(at..).skip(1).collect();
        pair.next = message;
        pair.retry = self.now + Duration::from_millis(self.rng.below(20));
        for (_, later, done) in rest {
            if !done {
                self.forget(host, n, later);
            }
        }
    }

    /// Nobody waits for it: no answer may come.
    fn forget(&mut self, host: u16, pair: u32, token: Token) {
        let host = &mut self.hosts[usize::from(host - 1)];
        host.tokens.remove(&token).expect("it waits");
        host.forgotten.insert(token);
        host.hosts.cancel(self.now, token);
        self.pairs[pair as usize].arrived.remove(&token);
    }

    /// Both ends of a pair are made anew, as programs do that lost their peer.
    fn remake(&mut self, n: u32, dead: u16) {
        let pair = &mut self.pairs[n as usize];
        let waiting = std::mem::take(&mut pair.outstanding);
        let from = pair.from;
        (pair.generation, pair.expected, pair.partial) = (pair.generation + 1, 0, 0);
        (pair.next, pair.done, pair.busy) = (0, 0, false);
        pair.retry = self.now + Duration::from_millis(50);
        if from != dead {
            for (_, token, done) in waiting {
                if !done {
                    self.forget(from, n, token);
                }
            }
        }
        self.pairs[n as usize].arrived.clear();
    }

    // ---- responders ----------------------------------------------------------------------------------------------

    fn arrived(&mut self, host: u16, arrival: Arrival<'_>) {
        let later = self.now + Duration::from_millis(if self.rng.one_in(10) { self.rng.below(30) } else { 0 });
        match arrival {
            Arrival::Segment { ends, segment, payload, receipt } => {
                let answer = self.carry_out(host, &ends, &segment, payload);
                let answer = match answer {
                    Ok(name) => {
                        assert!(self.hosts[usize::from(host - 1)].replies.insert(receipt.key(), name).is_none());
                        None
                    }
                    Err(answer) => Some(answer),
                };
                self.hosts[usize::from(host - 1)].receipts.push_back((later, receipt, answer));
            }
            Arrival::Datagram { datagram, payload, hold } => {
                assert_eq!(payload, &datagram.grh[..payload.len().min(40)]);
                self.datagrams += 1;
                self.hosts[usize::from(host - 1)].holds.push_back((later, hold));
            }
            Arrival::Data { token, offset, payload, hold } => {
                let host = &mut self.hosts[usize::from(host - 1)];
                let name = *host.tokens.get(&token).expect("data for what waits");
                let before = self.pairs[name.0 as usize].arrived.entry(token).or_default();
                assert_eq!(*before, offset, "data in order");
                *before += payload.len() as u64;
                check(name, offset, payload);
                host.holds.push_back((later, hold));
            }
        }
    }

    /// `Ok`: what it reads will be read.
    fn carry_out(&mut self, host: u16, ends: &Ends, segment: &Segment, payload: &[u8]) -> Result<Name, Answer> {
        let n = ends.dest_qpn >> 8;
        let pair = self.pairs.get(n as usize).expect("a pair");
        let name = (n, pair.generation, segment.message.psn);
        if *ends != self.ends(n) {
            return Err(Answer::Silence);
        }
        assert_eq!((ends.dest_gid, pair.to), (gid_of(host), host), "to whom it belongs");
        assert_eq!(self.message(name), segment.message, "all of it as it was sent");
        check(name, segment.offset, payload);
        let reads = segment.message.op.reads();
        let done = if reads { Ok(name) } else { Err(Answer::Ack) };
        let rnr = segment.first() && !reads && self.rng.one_in(200);
        let pair = &mut self.pairs[n as usize];
        match segment.message.psn.cmp(&pair.expected) {
            std::cmp::Ordering::Less => done,
            std::cmp::Ordering::Greater => Err(Answer::Nak(0)),
            std::cmp::Ordering::Equal if rnr => Err(Answer::Rnr(1)),
            std::cmp::Ordering::Equal => {
                if segment.first() {
                    pair.partial = 0;
                }
                if pair.partial != segment.offset {
                    return Err(Answer::Nak(0));
                }
                pair.partial += u64::from(segment.len);
                if segment.last() {
                    (pair.expected, pair.partial) = (pair.expected + 1, 0);
                }
                done
            }
        }
    }

    // ---- hosts and bearers ---------------------------------------------------------------------------------------

    fn events(&mut self, host: u16) {
        while let Some(event) = self.hosts[usize::from(host - 1)].hosts.next_event() {
            match event {
                HostEvent::Dial(to) => self.dial(host, to),
                HostEvent::Close(bearer, why) => {
                    // A greeting may be held up for longer than it has; nothing else that breaks the protocol may be.
                    if matches!(why, Why::End(End::Bad(bad)) if bad != Bad::TooSlow) {
                        self.refused.push(format!("host {host}: {why}"));
                    }
                    self.wires.hang_up(host, bearer);
                }
                HostEvent::Answered(token, answer) => self.answered(host, token, answer),
                HostEvent::Room(ends) => {
                    let pair = &mut self.pairs[(ends.dest_qpn >> 8) as usize];
                    pair.busy = false;
                }
                HostEvent::RoomForAll(to) => {
                    for pair in self.pairs.iter_mut().filter(|pair| (pair.from, pair.to) == (host, to)) {
                        pair.busy = false;
                    }
                }
                HostEvent::ReplyEnded(key) => {
                    self.hosts[usize::from(host - 1)].replies.remove(&key).expect("a reply ends once");
                }
                HostEvent::Up { .. } => self.links += 1,
                HostEvent::Adapter(bearer, way) => self.heard_of_adapter(host, bearer, way),
                HostEvent::Down(_) | HostEvent::Moved { .. } | HostEvent::Conflict { .. } => {}
            }
        }
        self.hosts[usize::from(host - 1)].forgotten.clear();
    }

    fn dial(&mut self, from: u16, to: u16) {
        if self.rng.one_in(10) && self.now < self.plan.trouble {
            self.hosts[usize::from(from - 1)].hosts.dial_failed(self.now, to);
            return;
        }
        let bearer = self.hosts[usize::from(from - 1)].hosts.dialed(self.now, to);
        let Some(called) = self.hosts[usize::from(to - 1)].hosts.accept(self.now) else {
            self.hosts[usize::from(from - 1)].hosts.closed(self.now, bearer);
            return;
        };
        let capacity = 1 << (14 + self.rng.below(6));
        self.wires.connect([(from, bearer), (to, called)], capacity);
    }

    fn carry(&mut self) {
        for id in self.wires.ids() {
            for side in 0..2 {
                self.write(id, side);
                self.read(id, side);
            }
        }
    }

    /// The end `side` sends.
    fn write(&mut self, id: u64, side: usize) {
        let Some((host, bearer)) = self.wires.end(id, side) else { return };
        let now = self.now;
        let of = &mut self.hosts[usize::from(host - 1)];
        if of.stopped > now {
            return;
        }
        let lane = match of.hosts.over_adapter(bearer) {
            (_, false) => Lane::Connection,
            (_, true) => Lane::Adapter,
        };
        if let Some(out) = self.wires.out_on(id, side, lane) {
            let faults = now < self.plan.trouble;
            let (tokens, replies, late) = (&of.tokens, &of.replies, &mut of.late);
            let mut source = Payloads { tokens, replies, late, faults, rng: &mut self.rng };
            of.hosts.transmit(now, bearer, out, 1 << 16, &mut source);
            assert!(out.len() <= (1 << 16) + FRAME + 256);
        }
        for lane in [Lane::Connection, Lane::Adapter] {
            self.wires.send_on(id, side, lane, now, STEP, &mut self.rng);
        }
        self.events(host);
    }

    // ---- adapters ------------------------------------------------------------------------------------------------

    /// Those that have dialed offer an adapter now and then, or say that there is none.
    fn offer_adapters(&mut self) {
        let [from, to] = [0, 1].map(|_| 1 + self.rng.below(u64::from(self.plan.hosts)) as u16);
        let of = &self.hosts[usize::from(from - 1)];
        let bearer = of.hosts.may_offer(to).filter(|_| of.stopped <= self.now);
        if let Some(bearer) = bearer {
            let way = self.any_way();
            assert!(self.hosts[usize::from(from - 1)].hosts.say_of_adapter(bearer, way));
        }
    }

    fn any_way(&mut self) -> Way {
        let card = Card { link: 1, mtu: 1, lid: 0, gid: [1; 16], qpn: 1, psn: 1, rkey: 1, len: 1 << 20, addr: 0 };
        if self.rng.one_in(3) { Way::Refuse(Refusal::Soon) } else { Way::Offer(card) }
    }

    /// The one that was asked replies; the other one finds out whether it gets there.
    fn heard_of_adapter(&mut self, host: u16, bearer: BearerId, way: Way) {
        let Way::Offer(_) = way else { return };
        // The connection may have ended over something that came with it.
        let Some(other) = self.hosts[usize::from(host - 1)].hosts.host_of(bearer) else { return };
        let reply = match other < host {
            true => self.any_way(),
            false if self.rng.one_in(3) => Way::Refuse(Refusal::Unreachable),
            false => {
                self.changes += 1;
                Way::Switch
            }
        };
        assert!(self.hosts[usize::from(host - 1)].hosts.say_of_adapter(bearer, reply));
    }

    /// The end `side` receives.
    fn read(&mut self, id: u64, side: usize) {
        self.read_on(id, side, Lane::Connection);
        self.read_on(id, side, Lane::Adapter);
    }

    fn read_on(&mut self, id: u64, side: usize, lane: Lane) {
        let Some((host, bearer)) = self.wires.end(id, side) else { return };
        // What has come by adapter waits for the change.
        if lane == Lane::Adapter && !self.hosts[usize::from(host - 1)].hosts.over_adapter(bearer).0 {
            return;
        }
        let of = &self.hosts[usize::from(host - 1)];
        if of.stopped > self.now {
            return;
        }
        let most = if of.slow > self.now { 2000 } else { usize::MAX };
        let Some(Received { bearer, input, news, ended, .. }) = self.wires.receive_on(id, side, lane, self.now, most)
        else {
            return;
        };
        let mut at = 0;
        while news && at < input.len() {
            let (len, arrival) = self.hosts[usize::from(host - 1)].hosts.receive(self.now, bearer, &input[at..]);
            at += len;
            let brought = arrival.is_some();
            if let Some(arrival) = arrival {
                self.arrived(host, arrival);
            }
            self.events(host);
            if !brought {
                break;
            }
        }
        assert!(input.len() - at <= FRAME);
        self.wires.keep_on(id, side, lane, &input[at..]);
        if ended {
            self.hosts[usize::from(host - 1)].hosts.closed(self.now, bearer);
            self.events(host);
        }
    }

    fn give_back(&mut self, host: u16) {
        let now = self.now;
        let of = &mut self.hosts[usize::from(host - 1)];
        of.late.drain(..).for_each(|key| of.hosts.more(key));
        for _ in 0..of.receipts.len() {
            let (at, receipt, answer) = of.receipts.pop_front().expect("counted");
            match answer {
                _ if at > now => of.receipts.push_back((at, receipt, answer)),
                Some(answer) => of.hosts.answer(now, receipt, answer),
                None => of.hosts.reply(now, receipt),
            }
        }
        for _ in 0..of.holds.len() {
            let (at, hold) = of.holds.pop_front().expect("counted");
            match at > now {
                true => of.holds.push_back((at, hold)),
                false => of.hosts.release(hold),
            }
        }
    }

    // ---- trouble -------------------------------------------------------------------------------------------------

    fn trouble(&mut self) {
        if self.now >= self.plan.trouble || self.rng.below(1000) >= self.plan.often {
            return;
        }
        let until = self.now + Duration::from_millis(self.rng.below(2500));
        let host = 1 + self.rng.below(u64::from(self.plan.hosts)) as u16;
        let wires = self.wires.ids();
        let wire = wires.get(self.rng.below(wires.len().max(1) as u64) as usize).copied();
        match self.rng.below(8) {
            // Nothing gets through, and then all of it.
            0..2 => {
                if let Some(id) = wire {
                    self.wires.cut(id, until);
                }
            }
            // It ends; one end may hear of it later than the other.
            2 => {
                if let Some(id) = wire
                    && let Some((host, bearer)) = self.wires.end(id, self.rng.below(2) as usize)
                {
                    self.hosts[usize::from(host - 1)].hosts.closed(self.now, bearer);
                    self.events(host);
                }
            }
            3 => self.hosts[usize::from(host - 1)].slow = until,
            4 => self.hosts[usize::from(host - 1)].stopped = until,
            5 => self.restart(host),
            _ => {
                let n = self.rng.below(u64::from(FLOATING)) as u16;
                let before = std::mem::replace(&mut self.holders[usize::from(n)], host);
                self.hosts[usize::from(before - 1)].hosts.unbind(&floating(n));
                self.hosts[usize::from(host - 1)].hosts.bind(&floating(n));
            }
        }
    }

    fn restart(&mut self, host: u16) {
        self.restarts += 1;
        self.wires.hang_up_all(host);
        self.hosts[usize::from(host - 1)] = self.host(host);
        for n in 0..self.pairs.len() as u32 {
            let pair = &self.pairs[n as usize];
            if pair.from == host || pair.to == host {
                self.remake(n, host);
            }
        }
    }

    // ---- all of it -----------------------------------------------------------------------------------------------

    fn datagram(&mut self) {
        let n = self.rng.below(self.pairs.len() as u64) as u32;
        let ends = self.ends(n);
        let mut grh = [0; 40];
        grh.fill_with(|| self.rng.word() as u8);
        let datagram = Datagram { ends, qkey: 1, imm: None, solicited: false, grh };
        let host = usize::from(self.pairs[n as usize].from - 1);
        if self.hosts[host].stopped <= self.now {
            self.hosts[host].hosts.send_datagram(&datagram, &grh[..self.rng.below(41) as usize]);
        }
    }

    fn step(&mut self) {
        self.trouble();
        self.submit_all();
        self.offer_adapters();
        self.datagram();
        self.carry();
        for host in 1..=self.plan.hosts {
            if self.hosts[usize::from(host - 1)].stopped <= self.now {
                self.give_back(host);
                self.hosts[usize::from(host - 1)].hosts.poll(self.now);
                self.events(host);
            }
        }
        self.now += STEP;
    }

    fn settled(&self) -> bool {
        self.now >= self.plan.trouble && self.pairs.iter().all(|pair| pair.done >= self.plan.messages)
    }

    fn run(mut self) -> Sim {
        let end = self.plan.trouble + Duration::from_secs(60);
        while !self.settled() {
            self.step();
            let late: Vec<usize> = (0..self.pairs.len()).filter(|n| self.pairs[*n].done < self.plan.messages).collect();
            assert!(self.now < end, "seed {}: {} pairs never end, the first {:?}", self.seed, late.len(), late.first());
        }
        // What was given up is over too, and what is said of addresses is known.
        for _ in 0..3000 {
            self.step();
        }
        assert!(self.refused.is_empty(), "seed {}: {:?}", self.seed, self.refused);
        for host in 1..=self.plan.hosts {
            let of = &self.hosts[usize::from(host - 1)];
            assert!(of.tokens.is_empty() && of.replies.is_empty() && of.receipts.is_empty(), "seed {}", self.seed);
            for n in 0..FLOATING {
                let holder = self.holders[usize::from(n)];
                assert_eq!(of.hosts.owner(&floating(n)), Some(holder), "seed {}, host {host}", self.seed);
            }
        }
        self
    }

    fn report(&self) {
        println!(
            "seed {}: {:?} of virtual time, {:?}, {} busy, {} datagrams, {} links, {} to adapters, {} restarts, \
             trace {:016x}",
            self.seed,
            self.now,
            self.answers,
            self.busy,
            self.datagrams,
            self.links,
            self.changes,
            self.restarts,
            self.trace
        );
    }
}

fn check(name: Name, offset: u64, payload: &[u8]) {
    // All of it would be most of the time that this takes.
    for at in (0..payload.len()).step_by(61).chain(payload.len().checked_sub(1)) {
        assert_eq!(payload[at], pattern(name, offset + at as u64), "byte {at} behind {offset} of {name:?}");
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |value| value.parse().expect("a number"))
}

const QUIET: Plan = Plan { hosts: 3, pairs: 12, messages: 150, trouble: Duration::ZERO, often: 0, long: true };
const TROUBLED: Plan = Plan { messages: 200, trouble: Duration::from_secs(8), often: 12, ..QUIET };

#[test]
fn without_trouble_all_is_done_at_the_first_try() {
    let sim = Sim::new(QUIET, number("PVRDMA_SEED", 1)).run();
    sim.report();
    // A receiver may be not ready; what was sent behind such a request finds another one awaited.
    for (answer, count) in &sim.answers {
        assert!(["ack", "rnr", "sequence"].contains(answer), "{count} {answer}");
    }
    assert!(sim.busy > 10 && sim.datagrams > 50, "{} {}", sim.busy, sim.datagrams);
    assert_eq!((sim.links, sim.changes), (6, 3));
}

#[test]
fn whatever_happens_each_request_ends_once_and_all_are_done_in_order() {
    let first = number("PVRDMA_SEED", 1);
    let mut all: BTreeMap<&str, u64> = BTreeMap::new();
    for seed in first..first + number("PVRDMA_STEPS", 6) {
        println!("seed {seed}");
        let sim = Sim::new(TROUBLED, seed).run();
        sim.report();
        for (answer, count) in sim.answers {
            *all.entry(answer).or_default() += count;
        }
    }
    for answer in ["ack", "rnr", "sequence", "silence"] {
        assert!(all.get(answer).is_some_and(|count| *count > 10), "{all:?}");
    }
}

#[test]
fn a_seed_replays_exactly() {
    let plan = Plan { trouble: Duration::from_secs(3), messages: 60, ..TROUBLED };
    let one = Sim::new(plan, 77).run();
    let two = Sim::new(plan, 77).run();
    assert_eq!((one.trace, one.now, one.answers), (two.trace, two.now, two.answers));
    assert_ne!(one.trace, Sim::new(plan, 78).run().trace);
}

/// As large as asked for; by default as small as the others.
#[test]
fn large() {
    let (hosts, qps) = (number("PVRDMA_HOSTS", 8), number("PVRDMA_QPS", 40));
    let messages = number("PVRDMA_MESSAGES", 800);
    let plan = Plan {
        hosts: hosts as u16,
        pairs: (qps / 2) as u32,
        messages: (messages / (qps / 2)) as u32,
        trouble: Duration::from_secs(number("PVRDMA_TROUBLE", 2)),
        often: 20,
        long: false,
    };
    let sim = Sim::new(plan, number("PVRDMA_SEED", 1)).run();
    sim.report();
    println!("{hosts} hosts, {} connections", sim.wires.len());
}
