//! A hostile peer of a manager, and a careless owner. Bytes say what both do: datagrams of any form, calls in any
//! order, time that passes. Beside them is an honest peer with a connection of its own.
//!
//! Called by `tests/hostile.rs` with random bytes and by the fuzz target (`device/cm/fuzz`) with bytes that a fuzzer
//! grew. Whatever the bytes: nothing panics, no datagram brings more than a few others, every event is of a connection
//! that has an owner, the honest connection stays and ends as it should, and when all owners have gone nothing is left.

use pvrdma_cm::connection::*;
use pvrdma_cm::manager::*;
use pvrdma_cm::message::*;
use pvrdma_ffi::rng::Input;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// The manager that is tried; its honest peer; where hostile datagrams come from.
const TRIED: Gid = [1; 16];
const HONEST: Gid = [2; 16];
const HOSTILE: [Gid; 2] = [[3; 16], [4; 16]];
const SERVICE: u64 = 0x0106_1c40;
/// Few, so that they run out.
const ID_BITS: u32 = 6;
const BASE: u32 = 5 << ID_BITS;
/// Steps of one run; bytes behind them are not looked at.
const STEPS: u32 = 400;
/// Datagrams and events that a datagram may bring.
const ECHOES: usize = 4;

/// What came of a run, so that a test can tell whether its bytes reach anything.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    pub messages: u32,
    pub calls: u32,
    pub events: u32,
}

/// The next four bytes.
fn word(input: &mut Input<'_>) -> u32 {
    u32::from_be_bytes(std::array::from_fn(|_| input.byte()))
}

struct Answer(Verdict);

impl Services for Answer {
    fn find(&mut self, _service_id: u64, _private_data: &[u8], _datagrams: bool) -> Verdict {
        self.0
    }
}

struct Wild {
    now: Instant,
    tried: Manager,
    honest: Manager,
    /// Names that messages have had, ours and the peer's.
    names: Vec<u32>,
    owned: BTreeSet<CommId>,
    heard: Vec<Event>,
    summary: Summary,
}

impl Wild {
    /// Both managers, with a connection between them.
    fn new() -> (Wild, CommId, CommId) {
        let mut wild = Wild {
            now: Instant::now(),
            tried: Manager::new(1, BASE, ID_BITS, 9),
            honest: Manager::new(2, 9 << ID_BITS, ID_BITS, 9),
            names: Vec::new(),
            owned: BTreeSet::new(),
            heard: Vec::new(),
            summary: Summary::default(),
        };
        let path = Path { local_gid: HONEST, remote_gid: TRIED, ack_timeout: 17, ..Default::default() };
        let local = Parameters { qpn: 0x111, psn: 5, ..Default::default() };
        let there = wild.honest.connect(wild.now, SERVICE, &path, &local, &[0; private_len::REQ]).expect("an id");
        wild.carry();
        let Some(Event::ReqReceived { comm, .. }) = wild.heard.pop() else { panic!("no request") };
        wild.tried.accept(wild.now, comm, &local, &[0; private_len::REP]).expect("it was asked for");
        wild.carry();
        wild.honest.ready(there).expect("it was answered");
        wild.carry();
        assert_eq!((wild.tried.state(comm), wild.honest.state(there)), (State::Established, State::Established));
        wild.heard.clear();
        (wild, comm, there)
    }

    /// Carries what is for the honest peer and what it says; says how many datagrams and events there were.
    fn carry(&mut self) -> usize {
        let mut count = 0;
        loop {
            if let Some(out) = self.tried.next_out() {
                assert_eq!(out.from, TRIED);
                self.note(&out.mad);
                count += 1;
                if out.to == HONEST {
                    self.honest.receive(self.now, TRIED, HONEST, &out.mad, &mut Answer(Verdict::Nobody));
                }
            } else if let Some(out) = self.honest.next_out() {
                let mut listening = Answer(Verdict::Listener(1));
                self.tried.receive(self.now, HONEST, TRIED, &out.mad, &mut listening);
            } else if let Some(comm) = self.tried.next_refused() {
                // Half of them are true.
                if comm.0 & 1 == 0 {
                    self.tried.nobody(self.now, comm);
                }
            } else if let Some(event) = self.tried.next_event() {
                self.summary.events += 1;
                count += 1;
                self.hear(event);
            } else {
                return count;
            }
        }
    }

    fn note(&mut self, mad: &[u8]) {
        for at in [24, 28] {
            let name = mad.get(at..at + 4).and_then(|name| name.try_into().ok()).map_or(0, u32::from_be_bytes);
            if self.names.len() < 256 && !self.names.contains(&name) {
                self.names.push(name);
            }
        }
    }

    fn hear(&mut self, event: Event) {
        match &event {
            Event::ReqReceived { comm, .. } | Event::SidrReqReceived { comm, .. } => {
                assert!(self.owned.insert(*comm), "{comm:?} is there already");
            }
            _ => assert!(self.owned.contains(&event.comm()), "{event:?} is for nobody"),
        }
        self.heard.push(event);
    }

    /// A message of some form, with names that mean something at times, and whatever else the bytes are.
    fn datagram(&mut self, input: &mut Input<'_>) {
        let mut mad: Mad = [0; MAD_LEN];
        mad[..4].copy_from_slice(&[1, 7, 2, 3]);
        mad[17] = 0x10 + input.byte() % 9;
        mad[24 + 8..24 + 16].copy_from_slice(&SERVICE.to_be_bytes());
        for at in [24, 28] {
            let name = self.names.get(usize::from(input.byte())).copied().unwrap_or_else(|| word(input));
            mad[at..at + 4].copy_from_slice(&name.to_be_bytes());
        }
        let from = HOSTILE[usize::from(input.byte() % 2)];
        let verdict = match input.byte() % 4 {
            0 => Verdict::Nobody,
            1 => Verdict::NotNow,
            _ => Verdict::Listener(1),
        };
        for _ in 0..input.byte() % 8 {
            let at = usize::from(input.byte());
            mad[at] = input.byte();
        }
        let len = if input.byte() == 1 { usize::from(input.byte()) } else { MAD_LEN };
        self.summary.messages += u32::from(Message::parse(&mad[..len]).is_some());
        self.note(&mad);
        self.tried.receive(self.now, from, TRIED, &mad[..len], &mut Answer(verdict));
        let echoes = self.carry();
        assert!(echoes <= ECHOES, "{echoes} for one datagram");
    }

    fn call(&mut self, input: &mut Input<'_>) {
        let owned: Vec<CommId> = self.owned.iter().copied().collect();
        // Any other name, but never that of the honest connection, whose bits above are these.
        let (now, comm) = (self.now, input.pick(&owned).unwrap_or(CommId(word(input) & 0xff)));
        let path = Path {
            local_gid: TRIED,
            remote_gid: HOSTILE[usize::from(input.byte() % 2)],
            ack_timeout: input.byte() % 20,
            ..Default::default()
        };
        let local = Parameters { qpn: word(input) & 0xff_ffff, psn: 3, ..Default::default() };
        let worked = match input.byte() % 14 {
            0 | 1 => {
                let comm = self.tried.connect(now, SERVICE, &path, &local, &[0; private_len::REQ]);
                self.owned.extend(comm);
                comm.is_some()
            }
            2 => {
                let comm = self.tried.resolve(now, SERVICE, &path, &[0; private_len::SIDR_REQ]);
                self.owned.extend(comm);
                comm.is_some()
            }
            3 | 4 => self.tried.accept(now, comm, &local, &[0; private_len::REP]).is_ok(),
            5 => self.tried.ready(comm).is_ok(),
            6 => self.tried.established(comm).is_ok(),
            7 => self.tried.reject(now, comm, 28, &[0; private_len::REJ]).is_ok(),
            8 => self.tried.answer(now, comm, 0, 1, 2, &[0; private_len::SIDR_REP]).is_ok(),
            9 => self.tried.disconnect(now, comm).is_ok(),
            10 => {
                self.tried.release(now, comm);
                self.owned.remove(&comm)
            }
            11 => {
                // The owner of a request that nobody has looked at.
                let waits = matches!(self.tried.state(comm), State::ReqRcvd | State::SidrReqRcvd);
                if waits {
                    self.tried.forget(comm);
                    self.owned.remove(&comm);
                }
                waits
            }
            12 => {
                self.tried.nobody(now, comm);
                self.tried.attributes(comm, input.byte() & 1 == 0).is_ok()
            }
            _ => {
                let (whose, runs) = (input.byte(), input.byte());
                let whose = |gid: &Gid, name: u32| match whose.wrapping_add(name as u8) % 4 {
                    _ if *gid == HONEST => Whose::Process(0),
                    0 => Whose::Stranger,
                    1 => Whose::Gone,
                    other => Whose::Process(other.into()),
                };
                self.tried.watch(now, whose, |process| process == 0 || runs & 1 << process != 0);
                true
            }
        };
        self.summary.calls += u32::from(worked);
        self.carry();
    }

    fn time_passes(&mut self, span: Duration) {
        self.now += span;
        for manager in [&mut self.tried, &mut self.honest] {
            manager.poll(self.now);
            assert!(manager.deadline().is_none_or(|at| at > self.now), "it was due");
        }
        self.carry();
    }
}

/// One input.
pub fn run(bytes: &[u8]) -> Summary {
    let mut input = Input(bytes);
    let (mut wild, honest, there) = Wild::new();
    // Not for the careless owner.
    wild.owned.remove(&honest);
    let mut steps = 0;
    while !input.is_empty() && steps < STEPS {
        steps += 1;
        match input.byte() % 8 {
            0..4 => wild.datagram(&mut input),
            4..7 => wild.call(&mut input),
            _ => wild.time_passes(Duration::from_millis(u64::from(input.byte()).pow(2))),
        }
        wild.heard.clear();
    }

    assert_eq!((wild.tried.state(honest), wild.honest.state(there)), (State::Established, State::Established));
    wild.owned.insert(honest);
    wild.honest.disconnect(wild.now, there).expect("it is established");
    wild.carry();
    assert!(wild.heard.contains(&Event::DreqReceived { comm: honest }));
    for comm in wild.owned.clone() {
        wild.tried.release(wild.now, comm);
    }
    wild.owned.clear();
    // Each message is sent again so often, and waits so long at most.
    for _ in 0..10_000 {
        let Some(at) = wild.tried.deadline().into_iter().chain(wild.honest.deadline()).min() else { break };
        wild.time_passes(at.saturating_duration_since(wild.now));
    }
    assert!(wild.tried.is_empty() && !wild.tried.has_peers(), "{} connections stay", wild.tried.len());
    assert_eq!(wild.honest.state(there), State::Idle);
    wild.summary
}
