//! Two devices, the halves of their QPs between them, and a wire that loses, repeats and overtakes by a seed: every
//! operation, both ways at once, byte for byte, and each request ends once. The wire has a clock that is a number.
//!
//! `PVRDMA_SEED` repeats a run, `PVRDMA_STEPS` makes it longer.

use pvrdma_device::handle::{Psn, QpHandle, Qpn};
use pvrdma_device::interrupt::AsyncEvent;
use pvrdma_device::memory::{Memory, Span};
use pvrdma_device::testing::cut::ByValue;
use pvrdma_device::testing::driver::{ALL_ACCESS, Driver, Layout, Region};
use pvrdma_device::testing::end::{End, Path, connect, pump};
use pvrdma_device::testing::queue::{QpSize, RecvWr, SendWr, Wc, sge};
use pvrdma_device::testing::rng::{Rng, seed, steps};
use pvrdma_device::transport::segment::Carried;
use pvrdma_device::transport::{Answer, QpView, Request, Requester as _, Responder as _, Submitted, Token, Transport};
use pvrdma_ffi::dev_api::*;
use pvrdma_ffi::uapi::vmw_pvrdma::*;
use pvrdma_roce::packet::{Bth, Opcode, Packet};
use pvrdma_roce::rc::Connection;
use pvrdma_roce::rc::requester::Requester;
use pvrdma_roce::rc::responder::{Piece, Responder};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Payload of a full packet.
const MTU: u32 = 256;
/// Bytes of a place that a request uses.
const PLACE: u64 = 48 << 10;
/// Places of each kind, and requests of one QP at a time.
const PLACES: u64 = 12;
const LIMIT: Duration = Duration::from_secs(60);

const PATH: Path = Path {
    access: ALL_ACCESS,
    mtu: PVRDMA_MTU_256,
    // The numbers begin again soon.
    psn: 0x00ff_ffe0,
    timeout: 8,
    retry_cnt: 7,
    rnr_retry: 7,
    min_rnr_timer: 1,
    max_rd_atomic: 4,
};

/// What a device says to its transport.
enum Said {
    Submit(Request),
    Cancel(Token),
    Changed(QpView),
}

/// The transport of a device: it writes down what is said.
#[derive(Default)]
struct Port(Mutex<VecDeque<Said>>);

impl Port {
    fn say(&self, said: Said) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push_back(said);
    }

    fn next(&self) -> Option<Said> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }
}

impl Transport for Port {
    fn submit(&self, request: &Request, _memory: &dyn Memory, _local: &[Span]) -> Submitted {
        self.say(Said::Submit(*request));
        Submitted::Pending
    }

    fn cancel(&self, token: Token) {
        self.say(Said::Cancel(token));
    }

    fn lost(&self, _token: Token) -> bool {
        false
    }

    fn qp_changed(&self, view: &QpView) {
        self.say(Said::Changed(*view));
    }
}

/// What was asked for, by the QP that is asked: first packet and packets.
type Asks = BTreeMap<Qpn, Vec<(Psn, u32)>>;

/// A host: a device, and the halves of its QPs.
struct Host {
    driver: Arc<Driver>,
    port: Arc<Port>,
    views: BTreeMap<QpHandle, QpView>,
    requesters: BTreeMap<QpHandle, Requester>,
    responders: BTreeMap<Qpn, Responder>,
    /// With the device, which takes its time.
    pieces: VecDeque<(Qpn, Piece)>,
    /// Answered by it, and not told yet.
    answers: Vec<(Qpn, u64, Answer, Vec<u8>)>,
    /// READs that were asked for.
    asks: Rc<RefCell<Asks>>,
    /// Requests that wait for an answer, by their tokens.
    owed: Vec<Token>,
}

impl Host {
    fn new(index: u8) -> Host {
        let port = Arc::new(Port::default());
        let driver = Arc::new(Driver::on(index, Layout::Ranges, 16 << 20, port.clone()));
        driver.bind();
        Host {
            driver,
            port,
            views: BTreeMap::new(),
            requesters: BTreeMap::new(),
            responders: BTreeMap::new(),
            pieces: VecDeque::new(),
            answers: Vec::new(),
            asks: Rc::default(),
            owed: Vec::new(),
        }
    }

    /// Takes in what the device has said. True: there was something.
    fn listen(&mut self) -> bool {
        let mut any = false;
        while let Some(said) = self.port.next() {
            any = true;
            match said {
                Said::Submit(request) => {
                    let connection = Connection { local: request.source, peer: request.dest, mtu: MTU };
                    let half = self.requesters.entry(request.token.qp).or_insert_with(|| Requester::new(connection));
                    half.submit(&request);
                    self.owed.push(request.token);
                }
                Said::Cancel(token) => {
                    if let Some(half) = self.requesters.get_mut(&token.qp) {
                        half.cancel(token);
                    }
                    self.owed.retain(|owed| *owed != token);
                }
                Said::Changed(view) => self.changed(&view),
            }
        }
        any
    }

    fn changed(&mut self, view: &QpView) {
        self.views.insert(view.handle, *view);
        match view.state {
            PVRDMA_QPS_RESET => {
                self.requesters.remove(&view.handle);
                self.responders.remove(&view.qpn);
                self.asks.borrow_mut().clear();
            }
            PVRDMA_QPS_RTR | PVRDMA_QPS_RTS => {
                let local = pvrdma_device::transport::Endpoint { gid: self.driver.gid, qpn: view.qpn };
                let connection = Connection { local, peer: view.peer, mtu: MTU };
                let expected = Psn::new(PATH.psn);
                self.responders.entry(view.qpn).or_insert_with(|| Responder::new(connection, expected));
            }
            _ => {}
        }
    }

    /// Takes in packets that came together.
    fn receive(&mut self, now: Duration, bytes: &[u8]) {
        let packet = Packet::parse(bytes).expect("one of ours");
        let qpn = Qpn(packet.bth.dest_qpn);
        if !packet.bth.opcode.is_response() {
            if let Some(half) = self.responders.get_mut(&qpn) {
                half.receive(&packet);
            }
            return;
        }
        let handle = self.views.values().find(|view| view.qpn == qpn).map(|view| view.handle);
        if let Some(half) = handle.and_then(|handle| self.requesters.get_mut(&handle)) {
            half.receive(now, &packet, &mut &*self.driver.device);
        }
    }

    /// Does all there is to do. What goes out goes to `out`. True: there was something.
    fn work(&mut self, now: Duration, rng: &mut Rng, slow: bool, out: &mut Vec<Vec<u8>>) -> bool {
        let before = out.len();
        let asks = self.asks.clone();
        let mut write = |packet: &Packet<'_>| {
            assert!(packet.is_sound(), "{packet:?}");
            if packet.bth.opcode == Opcode::ReadRequest {
                record(&mut asks.borrow_mut(), packet);
            }
            let mut bytes = Vec::new();
            packet.write(&mut bytes);
            out.push(bytes);
        };
        pump(&[&self.driver]);
        let mut any = self.listen();
        for half in self.requesters.values_mut() {
            half.expire(now);
            while half.transmit(now, &mut &*self.driver.device, &mut write) {}
        }
        let answers: Vec<_> = self
            .requesters
            .values_mut()
            .flat_map(|half| std::iter::from_fn(|| half.answer()).collect::<Vec<_>>())
            .collect();
        for (token, answer) in answers {
            any = true;
            // Those behind one that ended badly are taken back by the device, if it comes to that first.
            let owed = self.owed.len();
            self.owed.retain(|owed| *owed != token);
            assert!(owed == self.owed.len() + 1 || answer == Answer::Silence, "{token:?} ended twice: {answer:?}");
            self.driver.device.answered(token, answer);
            any |= self.listen();
        }
        for (qpn, half) in &mut self.responders {
            while let Some(piece) = half.piece() {
                self.pieces.push_back((*qpn, piece));
            }
        }
        while !(self.pieces.is_empty() || slow && rng.one_in(3)) {
            let Some((qpn, piece)) = self.pieces.pop_front() else { break };
            any = true;
            let far = ByValue { bytes: piece.bytes, back: Default::default() };
            let answer = match piece.carried {
                Carried::Whole(request) => self.driver.device.receive(&request, &far),
                Carried::Segment(segment) => self.driver.device.receive_segment(&segment, &far),
            };
            self.answers.push((qpn, piece.ticket, answer, far.back.into_inner()));
        }
        while !(self.answers.is_empty() || slow && rng.one_in(3)) {
            any = true;
            // They may be told in any order.
            let at = if slow { rng.below(self.answers.len() as u64) as usize } else { 0 };
            let (qpn, ticket, answer, back) = self.answers.remove(at);
            if let Some(half) = self.responders.get_mut(&qpn) {
                half.answered(ticket, answer, back);
            }
        }
        for half in self.responders.values_mut() {
            while half.transmit(16 << 10, &mut write) {}
        }
        any || out.len() > before || !self.pieces.is_empty() || !self.answers.is_empty()
    }

    fn deadline(&self) -> Option<Duration> {
        self.requesters.values().filter_map(Requester::deadline).min()
    }
}

/// A READ is asked for. Linux answers a second time only what lies within one READ that it knows, and what it was asked
/// for since: so all that meet have one end, and none begins before the one before it.
fn record(asks: &mut Asks, packet: &Packet<'_>) {
    let (psn, len) = (Psn::new(packet.bth.psn), packet.reth.expect("a RETH").len);
    let packets = len.div_ceil(MTU).max(1);
    let known = asks.entry(Qpn(packet.bth.dest_qpn)).or_default();
    for (first, count) in known.iter().copied() {
        let meets = psn.since(first) < count || first.since(psn) < packets;
        let same = psn.advance(packets) == first.advance(count) && !first.ahead_of(psn);
        assert!(!meets || same, "{count} from {first:?} on, and then {packets} from {psn:?} on");
    }
    known.push((psn, packets));
    if known.len() > 64 {
        known.remove(0);
    }
}

/// What the wire does, each one time in so many; 0 never.
#[derive(Clone, Copy, Default)]
struct Trouble {
    lose: u64,
    repeat: u64,
    overtake: u64,
    /// Devices take their time.
    slow: bool,
}

struct World {
    rng: Rng,
    trouble: Trouble,
    now: Duration,
    hosts: [Host; 2],
    /// By the time they arrive, and a number.
    wire: BTreeMap<(Duration, u64), (usize, Vec<u8>)>,
    count: u64,
    lost: u64,
}

impl World {
    fn new(rng: Rng, trouble: Trouble) -> World {
        let hosts = [Host::new(0), Host::new(1)];
        World { rng, trouble, now: Duration::ZERO, hosts, wire: BTreeMap::new(), count: 0, lost: 0 }
    }

    fn ends(&self) -> [End; 2] {
        [0, 1].map(|host| End::new(&self.hosts[host].driver, QpSize::default()))
    }

    fn connect(&mut self) -> [End; 2] {
        let [a, b] = self.ends();
        connect(&a, &b, &PATH);
        [a, b]
    }

    fn happens(&mut self, one_in: u64) -> bool {
        one_in > 0 && self.rng.one_in(one_in)
    }

    fn send(&mut self, to: usize, bytes: Vec<u8>) {
        if self.happens(self.trouble.lose) {
            self.lost += 1;
            return;
        }
        let copies = 1 + u32::from(self.happens(self.trouble.repeat));
        for _ in 0..copies {
            let more = if self.happens(self.trouble.overtake) { self.rng.below(300) } else { 0 };
            self.count += 1;
            self.wire.insert((self.now + Duration::from_micros(20 + more), self.count), (to, bytes.clone()));
        }
    }

    /// Does all that can be done now. False: there was nothing.
    fn turn(&mut self) -> bool {
        let mut any = false;
        for host in 0..2 {
            let mut out = Vec::new();
            any |= self.hosts[host].work(self.now, &mut self.rng, self.trouble.slow, &mut out);
            for bytes in out {
                self.send(1 - host, bytes);
            }
        }
        // Not always all of those that could be taken together.
        let batch = 1 + self.rng.below(40);
        for _ in 0..batch {
            let Some(entry) = self.wire.first_entry().filter(|entry| entry.key().0 <= self.now) else { break };
            let (host, bytes) = entry.remove();
            self.hosts[host].receive(self.now, &bytes);
            any = true;
        }
        any
    }

    /// Goes on until `done`. False: it is not, and nothing happens any more.
    fn run(&mut self, mut done: impl FnMut(&mut World) -> bool) -> bool {
        let end = Instant::now() + LIMIT;
        let mut idle = 0;
        loop {
            if self.turn() {
                idle = 0;
                if done(self) {
                    return true;
                }
                continue;
            }
            if done(self) {
                return true;
            }
            let deadlines = self.hosts.iter().filter_map(Host::deadline);
            let arrival = self.wire.keys().next().map(|(when, _)| *when);
            match deadlines.chain(arrival).min() {
                Some(next) => self.now = next.max(self.now),
                // The devices' own timers are of this world.
                None => {
                    let waits = self.hosts.iter().filter_map(|host| host.driver.device.poll()).min();
                    idle += u32::from(waits.is_none());
                    // `done` may think of something.
                    if idle == 100 || Instant::now() > end {
                        return false;
                    }
                    if waits.is_some() {
                        std::thread::sleep(Duration::from_micros(200));
                    }
                }
            }
        }
    }
}

// ---- random work -------------------------------------------------------------------------------

/// What a request must have done when it has ended.
enum Expect {
    Nothing,
    Written(u64, Vec<u8>),
    Read(u64, Vec<u8>),
    Old(u64, u64),
}

/// A message that must be received, with the completion's opcode and immediate data.
struct Message {
    bytes: Option<Vec<u8>>,
    len: u32,
    imm: Option<u32>,
}

/// One end, and what must come of what it has asked for.
struct Side {
    end: End,
    local: Region,
    /// Where the peer writes, by places, then where it reads, then its words.
    remote: Region,
    inbox: Region,
    words: [u64; 2],
    asked: VecDeque<(u64, Expect)>,
    /// Messages that are to come from the peer.
    messages: VecDeque<Message>,
    receives: VecDeque<u64>,
    next: u64,
    next_receive: u64,
}

const READABLE: u64 = PLACES * PLACE;
const WORDS: u64 = 2 * PLACES * PLACE;

impl Side {
    fn new(end: End, rng: &mut Rng) -> Side {
        let (local, inbox) = (end.region(PLACES * PLACE), end.region(PLACES * PLACE));
        let remote = end.region(WORDS + 16);
        remote.set(READABLE, &rng.bytes((PLACES * PLACE) as usize));
        Side {
            end,
            local,
            remote,
            inbox,
            words: [0; 2],
            asked: VecDeque::new(),
            messages: VecDeque::new(),
            receives: VecDeque::new(),
            next: 0,
            next_receive: 0,
        }
    }
}

/// A length: short, about some packets, or long.
fn length(rng: &mut Rng) -> u64 {
    match rng.below(4) {
        0 => rng.below(64),
        1 => (rng.below(6) * u64::from(MTU) + rng.below(3)).saturating_sub(1),
        2 => rng.below(4000),
        _ => rng.below(PLACE),
    }
}

/// Side `from` asks for something.
fn ask(sides: &mut [Side; 2], from: usize, rng: &mut Rng) {
    let (a, b) = sides.split_at_mut(1);
    let (me, peer) = if from == 0 { (&mut a[0], &mut b[0]) } else { (&mut b[0], &mut a[0]) };
    if me.asked.len() as u64 == PLACES {
        return;
    }
    let (id, place) = (me.next, me.next % PLACES * PLACE);
    let len = length(rng);
    let bytes = rng.bytes(len as usize);
    let sges = match len {
        // In two parts, one of them perhaps empty.
        _ if rng.one_in(3) => {
            let cut = rng.below(len + 1);
            vec![sge(&me.local, place, cut as u32), sge(&me.local, place + cut, (len - cut) as u32)]
        }
        _ => vec![sge(&me.local, place, len as u32)],
    };
    let imm = rng.one_in(2).then(|| rng.word() as u32);
    let (wr, expect) = match rng.below(6) {
        0 | 1 => {
            me.local.set(place, &bytes);
            let wr = SendWr::send(id, &sges);
            peer.messages.push_back(Message { bytes: Some(bytes), len: len as u32, imm });
            (imm.map_or(wr.clone(), |imm| wr.imm(imm)), Expect::Nothing)
        }
        2 | 3 => {
            me.local.set(place, &bytes);
            let wr = SendWr::write(id, &sges, &peer.remote, place);
            if imm.is_some() {
                peer.messages.push_back(Message { bytes: None, len: len as u32, imm });
            }
            (imm.map_or(wr.clone(), |imm| wr.imm(imm)), Expect::Written(place, bytes))
        }
        4 => {
            let at = READABLE + rng.below(PLACES) * PLACE;
            let expected = peer.remote.get(at, len as usize);
            (SendWr::read(id, &sges, &peer.remote, at), Expect::Read(place, expected))
        }
        _ => {
            let word = rng.below(2) as usize;
            let at = WORDS + 8 * word as u64;
            let old = peer.words[word];
            let result = sge(&me.local, place, 8);
            let wr = if rng.one_in(2) {
                let add = rng.word();
                peer.words[word] = old.wrapping_add(add);
                SendWr::fetch_add(id, result, &peer.remote, at, add)
            } else {
                let (compare, swap) = (if rng.one_in(3) { !old } else { old }, rng.word());
                if compare == old {
                    peer.words[word] = swap;
                }
                SendWr::cas(id, result, &peer.remote, at, compare, swap)
            };
            (wr, Expect::Old(place, old))
        }
    };
    me.next += 1;
    me.asked.push_back((id, expect));
    me.end.send(&wr);
}

/// Judges what has ended. Returns how much.
fn judge(sides: &mut [Side; 2]) -> u64 {
    let mut ended = 0;
    for from in 0..2 {
        while let Some(wc) = sides[from].end.send_cq.poll() {
            ended += 1;
            let (id, expect) = sides[from].asked.pop_front().expect("nothing ends that was not asked for");
            assert_eq!((wc.wr_id, wc.status), (id, PVRDMA_WC_SUCCESS), "of side {from}");
            match expect {
                Expect::Nothing => {}
                Expect::Written(place, bytes) => {
                    assert!(sides[1 - from].remote.get(place, bytes.len()) == bytes, "WRITE {id} of side {from}");
                }
                Expect::Read(place, bytes) => {
                    assert!(sides[from].local.get(place, bytes.len()) == bytes, "READ {id} of side {from}");
                }
                Expect::Old(place, old) => {
                    let got = u64::from_ne_bytes(sides[from].local.get(place, 8).try_into().expect("8 bytes"));
                    assert_eq!(got, old, "atomic {id} of side {from}");
                }
            }
        }
        let side = &mut sides[from];
        while let Some(wc) = side.end.recv_cq.poll() {
            let id = side.receives.pop_front().expect("a receive");
            let message = side.messages.pop_front().expect("nothing comes that was not sent");
            assert_eq!((wc.wr_id, wc.status, wc.byte_len), (id, PVRDMA_WC_SUCCESS, message.len));
            let has_imm = wc.wc_flags & PVRDMA_WC_WITH_IMM != 0;
            assert_eq!(has_imm.then_some(wc.imm_data), message.imm);
            if let Some(bytes) = message.bytes {
                assert_eq!(wc.opcode, PVRDMA_WC_RECV);
                assert!(side.inbox.get(id % PLACES * PLACE, bytes.len()) == bytes, "message {id}");
            }
        }
    }
    ended
}

fn everything(trouble: Trouble, otherwise: u64, requests: u64) {
    let mut rng = Rng::new(seed(otherwise));
    let requests = steps(requests);
    let mut world = World::new(Rng::new(rng.word()), trouble);
    let mut sides = world.connect().map(|end| Side::new(end, &mut rng));
    let mut ended = 0;
    let done = world.run(|_| {
        ended += judge(&mut sides);
        for from in 0..2 {
            // Receives come late now and then: RNR.
            while (sides[from].receives.len() as u64) < PLACES && !rng.one_in(8) {
                let side = &mut sides[from];
                let id = side.next_receive;
                side.next_receive += 1;
                side.receives.push_back(id);
                side.end.recv(&RecvWr::new(id, &[sge(&side.inbox, id % PLACES * PLACE, PLACE as u32)]));
            }
            if sides[from].next < requests && rng.one_in(2) {
                ask(&mut sides, from, &mut rng);
            }
        }
        ended == 2 * requests
    });
    assert!(done, "{ended} of {} requests ended; the wire is idle", 2 * requests);
    // Answers that nobody waits for are no harm.
    world.run(|_| false);
    assert_eq!(judge(&mut sides), 0);
    for side in &sides {
        assert!(side.asked.is_empty() && side.messages.is_empty());
        let words = side.remote.get(WORDS, 16);
        assert_eq!(words, side.words.map(u64::to_ne_bytes).concat());
        assert_eq!(side.end.driver.bell.events(), []);
    }
    assert!(world.hosts.iter().all(|host| host.owed.is_empty()));
    println!("{} packets, {} lost", world.count, world.lost);
    assert!(trouble.lose == 0 || world.lost > 0);
}

#[test]
fn everything_arrives_on_a_good_wire() {
    everything(Trouble::default(), 1, 300);
}

#[test]
fn everything_arrives_on_a_wire_that_loses() {
    everything(Trouble { lose: 20, ..Trouble::default() }, 2, 200);
}

#[test]
fn everything_arrives_on_a_wire_that_repeats_and_overtakes() {
    everything(Trouble { repeat: 10, overtake: 10, ..Trouble::default() }, 3, 200);
}

#[test]
fn everything_arrives_with_all_trouble_at_once_and_devices_that_take_their_time() {
    everything(Trouble { lose: 12, repeat: 20, overtake: 20, slow: true }, 4, 200);
}

/// Longer than the window, than a piece, and than what a responder reads ahead.
#[test]
fn long_messages_arrive() {
    const LONG: u64 = 1 << 20;
    let mut world = World::new(Rng::new(seed(5)), Trouble { lose: 300, ..Trouble::default() });
    let [a, b] = world.connect();
    let (local, remote, inbox) = (a.region(LONG), b.region(LONG), b.region(LONG));
    let bytes = Rng::new(5).bytes(LONG as usize);
    local.set(0, &bytes);
    b.recv(&RecvWr::new(9, &[sge(&inbox, 0, LONG as u32)]));
    a.send(&SendWr::write(1, &[sge(&local, 0, LONG as u32)], &remote, 0));
    a.send(&SendWr::send(2, &[sge(&local, 0, LONG as u32)]));
    let mut ends = Vec::new();
    assert!(world.run(|_| {
        ends.extend(a.send_cq.ends());
        ends.len() == 2
    }));
    assert_eq!(ends, [(1, PVRDMA_WC_SUCCESS), (2, PVRDMA_WC_SUCCESS)]);
    assert_eq!(b.recv_cq.ends(), [(9, PVRDMA_WC_SUCCESS)]);
    assert!(remote.get(0, LONG as usize) == bytes && inbox.get(0, LONG as usize) == bytes);
    local.set(0, &vec![0; LONG as usize]);
    a.send(&SendWr::read(3, &[sge(&local, 0, LONG as u32)], &remote, 0));
    assert!(world.run(|_| {
        ends.extend(a.send_cq.ends());
        ends.len() == 3
    }));
    assert_eq!(ends[2], (3, PVRDMA_WC_SUCCESS));
    assert!(local.get(0, LONG as usize) == bytes);
}

// ---- what does not end well --------------------------------------------------------------------

/// What `a` sends ends so, on a wire that loses; what is behind it is flushed. The peer hears `event`.
fn ends_with(
    status: u32,
    syndrome: u32,
    event: Option<fn(QpHandle) -> AsyncEvent>,
    wr: impl Fn(&Region, &Region) -> SendWr,
) {
    let trouble = Trouble { lose: 10, repeat: 10, ..Trouble::default() };
    let mut world = World::new(Rng::new(seed(6)), trouble);
    let [a, b] = world.connect();
    let (local, remote) = (a.region(PLACE), b.region(PLACE));
    for id in 0..4 {
        b.recv(&RecvWr::new(id, &[sge(&remote, 0, 1000)]));
    }
    a.send(&SendWr::write(1, &[sge(&local, 0, 3000)], &remote, 0));
    a.send(&wr(&local, &remote));
    a.send(&SendWr::send(3, &[sge(&local, 0, 3)]));
    let mut ends: Vec<Wc> = Vec::new();
    assert!(world.run(|_| {
        ends.extend(a.send_cq.drain());
        ends.len() == 3
    }));
    let all: Vec<_> = ends.iter().map(|wc| (wc.wr_id, wc.status, wc.vendor_err)).collect();
    // Where the refusal itself is lost nobody is left to say it again, as on any wire.
    let refused = [(2, status, syndrome), (2, PVRDMA_WC_RETRY_EXC_ERR, 0)];
    assert!(refused.contains(&all[1]), "{all:?}");
    assert_eq!((all[0], all[2]), ((1, PVRDMA_WC_SUCCESS, 0), (3, PVRDMA_WC_WR_FLUSH_ERR, 0)));
    let handle = b.qp.handle;
    assert_eq!(b.driver.bell.events(), event.map(|event| event(handle)).into_iter().collect::<Vec<_>>());
}

#[test]
fn a_wrong_key_is_refused() {
    ends_with(PVRDMA_WC_REM_ACCESS_ERR, 0x62, Some(AsyncEvent::QpAccessErr), |local, remote| {
        SendWr::write(2, &[sge(local, 0, 3000)], remote, 0).at(remote.start, remote.key + 1)
    });
    ends_with(PVRDMA_WC_REM_ACCESS_ERR, 0x62, Some(AsyncEvent::QpAccessErr), |local, remote| {
        SendWr::read(2, &[sge(local, 0, 3000)], remote, PLACE - 2999)
    });
}

#[test]
fn a_message_that_is_too_long_is_refused() {
    ends_with(PVRDMA_WC_REM_INV_REQ_ERR, 0x61, None, |local, _| SendWr::send(2, &[sge(local, 0, 1001)]));
}

#[test]
fn who_has_no_receive_is_asked_as_often_as_agreed() {
    let mut world = World::new(Rng::new(seed(7)), Trouble { lose: 20, ..Trouble::default() });
    let [a, b] = world.ends();
    connect(&a, &b, &Path { rnr_retry: 2, ..PATH });
    let local = a.region(PLACE);
    a.send(&SendWr::send(1, &[sge(&local, 0, 3000)]));
    let mut ends = Vec::new();
    assert!(world.run(|_| {
        ends.extend(a.send_cq.ends());
        !ends.is_empty()
    }));
    assert_eq!(ends, [(1, PVRDMA_WC_RNR_RETRY_EXC_ERR)]);
}

#[test]
fn where_nobody_answers_the_devices_retries_end_it() {
    let mut world = World::new(Rng::new(seed(8)), Trouble { lose: 1, ..Trouble::default() });
    let [a, b] = world.ends();
    connect(&a, &b, &Path { retry_cnt: 2, ..PATH });
    let local = a.region(PLACE);
    a.send(&SendWr::send(1, &[sge(&local, 0, 3000)]));
    a.send(&SendWr::send(2, &[sge(&local, 0, 3000)]));
    let mut ends = Vec::new();
    assert!(world.run(|_| {
        ends.extend(a.send_cq.ends());
        ends.len() == 2
    }));
    assert_eq!(ends, [(1, PVRDMA_WC_RETRY_EXC_ERR), (2, PVRDMA_WC_WR_FLUSH_ERR)]);
}

/// A QP that is reset and connected again has other halves, and old packets are none of its.
#[test]
fn a_connection_is_made_again() {
    let trouble = Trouble { lose: 10, overtake: 10, ..Trouble::default() };
    let mut world = World::new(Rng::new(seed(9)), trouble);
    let [a, b] = world.connect();
    let (local, remote) = (a.region(PLACE), b.region(PLACE));
    for life in 0..5u8 {
        local.set(0, &vec![life + 1; 40_000]);
        a.send(&SendWr::write(1, &[sge(&local, 0, 40_000)], &remote, 0));
        if life % 2 == 0 {
            for _ in 0..5 {
                world.turn();
            }
        } else {
            let mut ends = Vec::new();
            assert!(world.run(|_| {
                ends.extend(a.send_cq.ends());
                !ends.is_empty()
            }));
            assert_eq!(ends, [(1, PVRDMA_WC_SUCCESS)]);
            assert!(remote.get(0, 40_000) == vec![life + 1; 40_000]);
        }
        a.reset();
        b.reset();
        // What is on its way has the numbers of the connection to come.
        world.wire.clear();
        connect(&a, &b, &PATH);
        a.send_cq.drain();
    }
}

/// A region goes away under a READ whose data is on its way.
#[test]
fn a_region_that_goes_away_ends_what_uses_it() {
    let mut world = World::new(Rng::new(seed(10)), Trouble::default());
    let [a, b] = world.connect();
    let (local, remote) = (a.region(PLACE), b.region(PLACE));
    a.send(&SendWr::read(1, &[sge(&local, 0, PLACE as u32)], &remote, 0));
    a.send(&SendWr::send(2, &[sge(&local, 0, 4)]));
    let mut turns = 0;
    assert!(world.run(|_| {
        turns += 1;
        turns == 4
    }));
    a.driver.dereg(&local);
    let mut ends = Vec::new();
    assert!(world.run(|_| {
        ends.extend(a.send_cq.ends());
        ends.len() == 2
    }));
    assert_eq!(ends, [(1, PVRDMA_WC_LOC_PROT_ERR), (2, PVRDMA_WC_WR_FLUSH_ERR)]);
}

/// Packets that no requester sends, to a device: the QP fails and its owner hears of it.
#[test]
fn what_is_no_message_fails_the_qp() {
    let packet = |opcode, len: usize| {
        let bytes = vec![7; len];
        (opcode, bytes)
    };
    let cases = [
        ("a middle that nobody began", packet(Opcode::SendMiddle, 256)),
        ("a last that nobody began", packet(Opcode::WriteLast, 4)),
        ("a first that is not full", packet(Opcode::SendFirst, 100)),
        ("a WRITE of another length than it says", packet(Opcode::WriteOnly, 8)),
        ("a READ that is too long", packet(Opcode::ReadRequest, 0)),
    ];
    for (what, (opcode, bytes)) in cases {
        let mut world = World::new(Rng::new(1), Trouble::default());
        let [a, b] = world.connect();
        let remote = b.region(PLACE);
        b.recv(&RecvWr::new(1, &[sge(&remote, 0, 4096)]));
        while world.turn() {}
        let mut packet = Packet::new(Bth::new(opcode, b.qp.qpn.0, PATH.psn), &bytes);
        packet.reth = opcode.has_reth().then_some(pvrdma_roce::packet::Reth {
            addr: remote.start,
            rkey: remote.key,
            len: if opcode == Opcode::ReadRequest { u32::MAX } else { 9 },
        });
        let mut raw = Vec::new();
        packet.write(&mut raw);
        world.hosts[1].receive(Duration::ZERO, &raw);
        // Its requester hears of it, and forgets it: nothing of his is on its way.
        let mut heard = Vec::new();
        world.hosts[1].work(Duration::ZERO, &mut Rng::new(1), false, &mut heard);
        let answer = Packet::parse(&heard[0]).expect("an answer");
        assert_eq!((answer.bth.opcode, answer.bth.psn), (Opcode::Acknowledge, PATH.psn), "{what}");
        assert_eq!(answer.aeth.map(|aeth| aeth.syndrome.byte()), Some(0x61), "{what}");
        world.hosts[0].receive(Duration::ZERO, &heard[0]);
        while world.turn() {}
        assert_eq!((b.query().qp_state, a.query().qp_state), (PVRDMA_QPS_ERR, PVRDMA_QPS_RTS), "{what}");
        assert_eq!(b.driver.bell.events(), [AsyncEvent::QpReqErr(b.qp.handle)], "{what}");
    }
}
