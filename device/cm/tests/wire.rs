//! Two managers on a wire that the test holds: what a program hears of each step, what a bad wire cannot break, and
//! what no bytes can.

use pvrdma_cm::connection::*;
use pvrdma_cm::manager::*;
use pvrdma_cm::message::*;
use pvrdma_ffi::rng::Rng;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

const SERVICE: u64 = 0x0106_1c40;
const LISTENER: u64 = 77;

/// Somebody listens on one service, unless they are told otherwise.
struct Listening(Verdict);

impl Services for Listening {
    fn find(&mut self, service_id: u64, _private_data: &[u8], _datagrams: bool) -> Verdict {
        if service_id == SERVICE { self.0 } else { Verdict::Nobody }
    }
}

fn chance(random: &mut Rng, percent: u64) -> bool {
    random.below(100) < percent
}

/// The end that asks is 0, the other one 1.
struct Bench {
    now: Instant,
    ends: [Manager; 2],
    verdict: Verdict,
    wire: VecDeque<Outgoing>,
    random: Rng,
    /// Percent of datagrams that are lost, and that come twice; and whether they overtake each other.
    loses: u64,
    repeats: u64,
    overtakes: bool,
    /// Whether who is told that nobody listens has nobody else to ask.
    believes: bool,
    heard: [Vec<Event>; 2],
}

fn gid(end: usize) -> Gid {
    [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1 + end as u8]
}

impl Bench {
    fn new(seed: u64) -> Bench {
        let end = |n: u32| Manager::new(u64::from(n) + 1, (n + 1) << 23, 23, seed);
        Bench {
            now: Instant::now(),
            ends: [end(0), end(1)],
            verdict: Verdict::Listener(LISTENER),
            wire: VecDeque::new(),
            random: Rng::new(seed),
            loses: 0,
            repeats: 0,
            overtakes: false,
            believes: true,
            heard: [Vec::new(), Vec::new()],
        }
    }

    fn path(&self) -> Path {
        Path { local_gid: gid(0), remote_gid: gid(1), mtu: 5, ack_timeout: 17, ..Default::default() }
    }

    fn ask(&mut self) -> CommId {
        let local = Parameters {
            qpn: 0x111,
            psn: 0x1234,
            responder_resources: 3,
            initiator_depth: 2,
            retry_count: 6,
            rnr_retry_count: 5,
            ..Default::default()
        };
        let path = self.path();
        self.ends[0].connect(self.now, SERVICE, &path, &local, &[9; private_len::REQ]).expect("an id")
    }

    fn collect(&mut self) {
        for end in &mut self.ends {
            while let Some(out) = end.next_out() {
                self.wire.push_back(out);
            }
        }
        for (end, heard) in self.ends.iter_mut().zip(&mut self.heard) {
            if self.believes {
                while let Some(comm) = end.next_refused() {
                    end.nobody(self.now, comm);
                }
            }
            while let Some(event) = end.next_event() {
                heard.push(event);
            }
        }
    }

    /// Carries datagrams until none is left.
    fn carry(&mut self) {
        loop {
            self.collect();
            if self.wire.is_empty() {
                return;
            }
            let at = if self.overtakes { self.random.word() as usize % self.wire.len() } else { 0 };
            let out = self.wire.remove(at).expect("a datagram");
            if chance(&mut self.random, self.loses) {
                continue;
            }
            let to = usize::from(out.to == gid(1));
            let mut services = Listening(self.verdict);
            self.ends[to].receive(self.now, out.from, out.to, &out.mad, &mut services);
            if chance(&mut self.random, self.repeats) {
                self.wire.push_back(out);
            }
        }
    }

    /// Carries, and lets time pass until the next deadline. `false`: there is none.
    fn step(&mut self) -> bool {
        self.carry();
        let Some(at) = self.ends.iter_mut().filter_map(Manager::deadline).min() else { return false };
        self.now = self.now.max(at);
        for end in &mut self.ends {
            end.poll(self.now);
        }
        self.carry();
        true
    }

    /// Whether `end` has heard such an event; it is taken out.
    fn took(&mut self, end: usize, is: impl Fn(&Event) -> bool) -> Option<Event> {
        let at = self.heard[end].iter().position(is)?;
        Some(self.heard[end].remove(at))
    }

    fn request(&mut self) -> (CommId, Box<Req>) {
        match self.took(1, |event| matches!(event, Event::ReqReceived { .. })) {
            Some(Event::ReqReceived { listener: LISTENER, comm, req }) => (comm, req),
            other => panic!("{other:?}"),
        }
    }

    fn accept(&mut self, comm: CommId) {
        let local = Parameters {
            qpn: 0x222,
            responder_resources: 2,
            initiator_depth: 1,
            rnr_retry_count: 4,
            ..Default::default()
        };
        self.ends[1].accept(self.now, comm, &local, &[8; private_len::REP]).expect("accept");
    }

    /// Both ends of a connection.
    fn connected() -> (Bench, CommId, CommId) {
        let mut bench = Bench::new(1);
        let here = bench.ask();
        bench.carry();
        let (there, _) = bench.request();
        bench.accept(there);
        bench.carry();
        bench.took(0, |event| matches!(event, Event::RepReceived { .. })).expect("REP");
        bench.ends[0].ready(here).expect("RTU");
        bench.carry();
        bench.took(1, |event| matches!(event, Event::RtuReceived { .. })).expect("RTU");
        (bench, here, there)
    }

    fn nothing_is_left(&mut self) {
        for _ in 0..200 {
            if !self.step() {
                break;
            }
        }
        assert_eq!(self.ends.each_ref().map(Manager::len), [0, 0]);
    }
}

/// Ours takes the number of whoever asks; others, Linux among them, have one of their own.
#[test]
fn each_end_sends_from_where_the_other_one_expects_it() {
    let mut bench = Bench::new(1);
    let here = bench.ask();
    bench.carry();
    let (there, _) = bench.request();
    let answers = bench.ends[1].attributes(there, true).unwrap();
    assert_eq!(answers.sq_psn, 0x1234, "what the request says");
    bench.accept(there);
    bench.collect();
    let rep = bench.wire.front_mut().expect("REP");
    let Some(Message::Rep(mut said)) = Message::parse(&rep.mad) else { panic!("REP") };
    assert_eq!(said.starting_psn, answers.rq_psn);
    said.starting_psn = 0x7654;
    rep.mad = Message::Rep(said).to_mad(tid_of(&rep.mad));
    bench.carry();
    let asks = bench.ends[0].attributes(here, true).unwrap();
    assert_eq!((asks.rq_psn, asks.sq_psn), (0x1234, 0x7654));
}

#[test]
fn a_connection_is_made_and_ended() {
    let (mut bench, here, there) = Bench::connected();
    let of = |bench: &Bench, end: usize, comm| bench.ends[end].attributes(comm, true).unwrap();
    let (asked, answered) = (of(&bench, 0, here), of(&bench, 1, there));
    assert_eq!((asked.dest_qp_num, answered.dest_qp_num), (0x222, 0x111));
    assert_eq!((asked.rq_psn, asked.sq_psn), (answered.sq_psn, answered.rq_psn));
    assert_eq!((asked.initiator_depth, asked.responder_resources), (2, 1));
    assert_eq!((answered.initiator_depth, answered.responder_resources), (1, 2));
    assert_eq!((asked.retry_count, answered.retry_count), (6, 6));
    assert_eq!((asked.rnr_retry_count, answered.rnr_retry_count), (4, 5));
    assert_eq!(answered.path.remote_gid, gid(0));

    let now = bench.now;
    bench.ends[0].disconnect(now, here).unwrap();
    bench.carry();
    bench.took(1, |event| matches!(event, Event::DreqReceived { .. })).expect("DREQ");
    assert!(bench.took(0, |event| matches!(event, Event::DrepReceived { .. })).is_none(), "the other has to agree");
    bench.ends[1].disconnect(now, there).unwrap();
    bench.carry();
    bench.took(0, |event| matches!(event, Event::DrepReceived { .. })).expect("DREP");
    assert_eq!((bench.ends[0].state(here), bench.ends[1].state(there)), (State::TimeWait, State::TimeWait));
    bench.step();
    bench.took(0, |event| matches!(event, Event::TimewaitExit { .. })).expect("the end of TIME_WAIT");
    bench.ends[0].release(now, here);
    bench.ends[1].release(now, there);
    bench.nothing_is_left();
}

#[test]
fn who_is_refused_hears_why() {
    for (verdict, expected) in
        [(Verdict::Nobody, reason::INVALID_SERVICE_ID), (Verdict::Listener(LISTENER), reason::CONSUMER)]
    {
        let mut bench = Bench::new(2);
        bench.verdict = verdict;
        let here = bench.ask();
        bench.carry();
        if verdict != Verdict::Nobody {
            let (there, _) = bench.request();
            let now = bench.now;
            bench.ends[1].reject(now, there, reason::CONSUMER, &[5; private_len::REJ]).unwrap();
            bench.carry();
            bench.ends[1].release(now, there);
        }
        match bench.took(0, |event| matches!(event, Event::RejReceived { .. })) {
            Some(Event::RejReceived { comm, reason, private_data }) => {
                assert_eq!((comm, reason), (here, expected));
                assert_eq!(private_data[0], if verdict == Verdict::Nobody { 0 } else { 5 });
            }
            other => panic!("{other:?}"),
        }
        let now = bench.now;
        bench.ends[0].release(now, here);
        bench.nothing_is_left();
    }
}

/// At one address there may be several managers, and one that knows nothing of the request may speak late.
#[test]
fn who_says_that_nobody_listens_is_not_believed_unheard() {
    let stranger = |bench: &mut Bench, here: CommId| {
        let rej = Rej { remote_comm_id: here.0, reason: reason::INVALID_SERVICE_ID, ..Default::default() };
        let mad = Message::Rej(Box::new(rej)).to_mad(1);
        bench.ends[0].receive(bench.now, gid(1), gid(0), &mad, &mut Listening(Verdict::Nobody));
        bench.carry();
    };
    let mut bench = Bench::new(9);
    bench.believes = false;
    let here = bench.ask();
    stranger(&mut bench, here);
    assert_eq!(bench.ends[0].next_refused(), Some(here));
    assert_eq!((bench.ends[0].state(here), &bench.heard[0][..]), (State::ReqSent, &[][..]));
    // The answer was on its way.
    let (there, _) = bench.request();
    bench.accept(there);
    bench.carry();
    let now = bench.now;
    bench.ends[0].nobody(now, here);
    stranger(&mut bench, here);
    bench.took(0, |event| matches!(event, Event::RepReceived { .. })).expect("REP");
    bench.ends[0].ready(here).expect("RTU");
    bench.carry();
    stranger(&mut bench, here);
    assert_eq!((bench.ends[0].state(here), bench.ends[0].next_refused()), (State::Established, None));
    assert_eq!(bench.heard[0], []);

    let path = bench.path();
    let asked = bench.ends[0].resolve(now, SERVICE + 1, &path, &[7; private_len::SIDR_REQ]).unwrap();
    bench.carry();
    assert_eq!((bench.ends[0].state(asked), bench.ends[0].next_refused()), (State::SidrReqSent, Some(asked)));
    bench.ends[0].nobody(now, asked);
    bench.carry();
    assert!(bench.took(0, |event| matches!(event, Event::SidrRepReceived { .. })).is_some());
}

/// Whoever goes away while it asks says so, whether anybody listens any more or not: that is no question.
#[test]
fn only_a_question_is_told_as_one() {
    let mut bench = Bench::new(10);
    let here = bench.ask();
    assert_eq!(bench.ends[0].next_out().expect("REQ").question, Some(here));
    let now = bench.now;
    bench.ends[0].release(now, here);
    assert_eq!(bench.ends[0].next_out().expect("REJ").question, None);
}

#[test]
fn without_any_answer_there_is_an_end() {
    let mut bench = Bench::new(3);
    bench.loses = 100;
    let (begin, here) = (bench.now, bench.ask());
    while bench.step() {}
    bench.took(0, |event| matches!(event, Event::ReqError { .. })).expect("an error");
    let took = bench.now - begin;
    assert!(took > Duration::from_secs(10) && took < Duration::from_secs(60), "{took:?}");
    let now = bench.now;
    bench.ends[0].release(now, here);
    bench.nothing_is_left();
}

#[test]
fn who_takes_long_to_answer_is_waited_for() {
    let mut bench = Bench::new(4);
    let here = bench.ask();
    bench.carry();
    let (there, _) = bench.request();
    let begin = bench.now;
    // The REQ comes again, and is told to wait: far longer than a message without an answer is repeated.
    while bench.now - begin < Duration::from_secs(65) {
        assert!(bench.step());
    }
    assert_eq!((bench.ends[0].state(here), bench.ends[1].state(there)), (State::MraReqRcvd, State::MraReqSent));
    bench.accept(there);
    bench.carry();
    bench.took(0, |event| matches!(event, Event::RepReceived { .. })).expect("REP");
}

#[test]
fn a_bad_wire_loses_no_connection() {
    for seed in 0..300 {
        let mut bench = Bench::new(seed);
        (bench.loses, bench.repeats, bench.overtakes) = (20, 20, true);
        let here = bench.ask();
        let (mut there, mut established, mut ready) = (None, false, false);
        for _ in 0..100 {
            bench.step();
            if there.is_none() && bench.heard[1].iter().any(|event| matches!(event, Event::ReqReceived { .. })) {
                let (comm, _) = bench.request();
                bench.accept(comm);
                there = Some(comm);
            }
            if bench.took(0, |event| matches!(event, Event::RepReceived { .. })).is_some() {
                assert!(!ready, "seed {seed}: one REP is heard of");
                bench.ends[0].ready(here).unwrap();
                ready = true;
            }
            established |= bench.took(1, |event| matches!(event, Event::RtuReceived { .. })).is_some();
            if established {
                break;
            }
        }
        assert!(established && ready, "seed {seed}");
        assert_eq!(bench.heard, [vec![], vec![]], "seed {seed}: nothing else is heard of");
        let (now, there) = (bench.now, there.unwrap());
        bench.ends[0].release(now, here);
        bench.carry();
        bench.ends[1].release(now, there);
        bench.nothing_is_left();
    }
}

#[test]
fn both_may_end_it_at_once() {
    let (mut bench, here, there) = Bench::connected();
    let now = bench.now;
    bench.ends[0].release(now, here);
    bench.ends[1].release(now, there);
    bench.nothing_is_left();
}

#[test]
fn a_process_that_is_gone_is_answered_for() {
    let (mut bench, here, there) = Bench::connected();
    let now = bench.now;
    assert!(bench.ends[0].has_peers());
    bench.ends[0].watch(
        now,
        |at, name| {
            assert_eq!((*at, name), (gid(1), there.0));
            Whose::Process(7)
        },
        |_| true,
    );
    bench.carry();
    assert_eq!(bench.heard[0], []);
    bench.ends[0].watch(now, |_, _| panic!("it was asked"), |process| process != 7);
    bench.collect();
    assert_eq!(bench.heard[0], [Event::DreqReceived { comm: here }]);
    assert!(!bench.ends[0].has_peers());

    // In the middle of a handshake: as a program that has said no.
    let mut bench = Bench::new(5);
    bench.ask();
    bench.carry();
    let (there, _) = bench.request();
    bench.accept(there);
    let now = bench.now;
    bench.ends[1].watch(now, |_, _| Whose::Gone, |_| true);
    bench.collect();
    assert!(bench.took(1, |event| matches!(event, Event::RejReceived { .. })).is_some());
}

#[test]
fn a_question_to_nobody_is_answered_like_one_to_a_node_without_listeners() {
    let mut bench = Bench::new(6);
    let here = bench.ask();
    let out = bench.ends[0].next_out().expect("REQ");
    assert_eq!(out.question, Some(here));
    let now = bench.now;
    bench.ends[0].nobody(now, here);
    bench.collect();
    match &bench.heard[0][..] {
        [Event::RejReceived { reason: reason::INVALID_SERVICE_ID, .. }] => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_datagram_qp_is_found_also_on_a_bad_wire() {
    for seed in 0..100 {
        let mut bench = Bench::new(seed);
        (bench.loses, bench.repeats, bench.overtakes) = (20, 20, true);
        let (now, path) = (bench.now, bench.path());
        let here = bench.ends[0].resolve(now, SERVICE, &path, &[7; private_len::SIDR_REQ]).unwrap();
        let mut found = None;
        for _ in 0..100 {
            bench.step();
            let asked = bench.took(1, |event| matches!(event, Event::SidrReqReceived { .. }));
            if let Some(Event::SidrReqReceived { comm, req, from, .. }) = asked {
                assert_eq!((req.private_data[0], from), (7, gid(0)));
                let now = bench.now;
                let answer = [6; private_len::SIDR_REP];
                bench.ends[1].answer(now, comm, sidr_status::VALID, 0x333, 0x44, &answer).unwrap();
                bench.ends[1].release(now, comm);
            }
            if let Some(Event::SidrRepReceived { comm, rep }) = bench.heard[0].pop() {
                assert_eq!((comm, rep.status, rep.qpn, rep.qkey), (here, sidr_status::VALID, 0x333, 0x44));
                found = Some(comm);
                break;
            }
        }
        assert_eq!(found, Some(here), "seed {seed}");
        let now = bench.now;
        bench.ends[0].release(now, here);
        bench.nothing_is_left();
    }
}

/// Calls in states that they are not for change nothing.
#[test]
fn what_is_not_its_time_is_refused() {
    let mut bench = Bench::new(7);
    let now = bench.now;
    let here = bench.ask();
    let wrong = Err(CallError::State);
    assert_eq!(bench.ends[0].accept(now, here, &Parameters::default(), &[0; private_len::REP]), wrong);
    assert_eq!(bench.ends[0].ready(here), wrong);
    assert_eq!(bench.ends[0].established(here), wrong);
    assert_eq!(bench.ends[0].disconnect(now, here), wrong);
    assert_eq!(bench.ends[0].attributes(here, true), Err(CallError::State));
    assert!(bench.ends[0].attributes(here, false).is_ok());
    assert_eq!(bench.ends[0].reject(now, CommId(1), reason::CONSUMER, &[0; private_len::REJ]), wrong);
    bench.carry();
    let (there, _) = bench.request();
    assert_eq!(bench.ends[1].ready(there), wrong);
    assert_eq!(bench.ends[1].disconnect(now, there), wrong);
    assert_eq!(bench.ends[1].answer(now, there, 0, 0, 0, &[0; private_len::SIDR_REP]), wrong);
    bench.accept(there);
    assert_eq!(bench.ends[1].accept(now, there, &Parameters::default(), &[0; private_len::REP]), wrong);
    bench.ends[1].established(there).unwrap();
    assert_eq!(bench.ends[1].established(there), Err(CallError::Established));
    assert_eq!(bench.ends[1].reject(now, there, reason::CONSUMER, &[0; private_len::REJ]), wrong);
}

/// Bytes of a stranger, and messages with a few bytes changed: nothing panics, and what was there can still be ended.
#[test]
fn no_bytes_break_a_manager() {
    let (mut bench, here, there) = Bench::connected();
    let mut random = Rng::new(8);
    let mut known = Vec::new();
    for step in 0..50_000u32 {
        let mut mad: Mad = std::array::from_fn(|_| random.word() as u8);
        mad[..4].copy_from_slice(&[1, 7, 2, 3]);
        mad[16..18].copy_from_slice(&(0x10 + (random.word() % 9) as u16).to_be_bytes());
        for at in [24, 28] {
            // Names that mean something, often enough.
            let name = [here.0, there.0, 0, random.word() as u32][random.word() as usize % 4];
            mad[at..at + 4].copy_from_slice(&name.to_be_bytes());
        }
        if chance(&mut random, 50) {
            mad[32..40].copy_from_slice(&SERVICE.to_be_bytes());
        }
        let end = random.word() as usize % 2;
        let len = if chance(&mut random, 5) { random.word() as usize % 256 } else { 256 };
        let mut services = Listening(bench.verdict);
        bench.ends[end].receive(bench.now, gid(1 - end), gid(end), &mad[..len], &mut services);
        bench.collect();
        bench.wire.clear();
        for (end, heard) in bench.heard.iter_mut().enumerate() {
            for event in heard.drain(..) {
                if let Event::ReqReceived { comm, .. } | Event::SidrReqReceived { comm, .. } = event {
                    known.push((end, comm));
                }
            }
        }
        if step % 64 == 0 {
            bench.now += Duration::from_millis(500);
            bench.ends.iter_mut().for_each(|end| end.poll(bench.now));
            for (end, comm) in known.drain(..) {
                bench.ends[end].release(bench.now, comm);
            }
        }
    }
    let now = bench.now;
    bench.ends[0].release(now, here);
    bench.ends[1].release(now, there);
    bench.nothing_is_left();
}
