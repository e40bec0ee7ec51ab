//! Two connected QPs, and a model that knows what may become of what they ask for.
//!
//! What each side is told must be what the model says: every work request ends once and in order; what succeeded was
//! done, once; what did not was done once or not at all; SENDs come in order, each into its own receive. An owner uses
//! its memory again as soon as it may: a place that was written or read into gets a mark, and whatever comes there
//! later is found out.

use crate::guest::{Guest, Place};
use pvrdma_device::testing::driver::Region;
use pvrdma_device::testing::end::{End, Path, connect};
use pvrdma_device::testing::queue::{QpSize, RecvWr, SendWr, Wc, sge};
use pvrdma_device::testing::rng::Rng;
use pvrdma_ffi::dev_api::PVRDMA_QPS_ERR;
use pvrdma_ffi::uapi::vmw_pvrdma::*;
use std::collections::VecDeque;
use std::time::Duration;

const SUCCESS: u32 = PVRDMA_WC_SUCCESS;
const FLUSH: u32 = PVRDMA_WC_WR_FLUSH_ERR;
/// Makes a mark of the content of the same message.
const MARK: u64 = 1 << 63;

/// What a message does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// With immediate data or without.
    Send(bool),
    /// With immediate data it takes a receive.
    Write(bool),
    /// From this offset on.
    Read(u64),
    FetchAdd(u64),
    CompareSwap(u64),
    /// A WRITE with a key that is none.
    Refused,
}

/// A work request that has not ended, or of which nobody knows whether it was carried out.
#[derive(Clone, Copy, Debug)]
struct Posted {
    n: u64,
    kind: Kind,
    len: u64,
    signaled: bool,
    /// It is known to have been carried out, and its place was marked.
    landed: bool,
}

/// A message of the peer that takes a receive.
#[derive(Clone, Copy, Debug)]
struct Coming {
    n: u64,
    kind: Kind,
    len: u64,
}

/// What the first bytes of a place in memory are.
type Content = Option<(u64, u64)>;

/// Where things are in the memory of a side: places for `depth` messages of up to `slot` bytes, five times over.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub depth: u64,
    pub slot: u64,
}

impl Shape {
    fn at(&self, which: u64, n: u64) -> u64 {
        (which * self.depth + n % self.depth) * self.slot
    }

    /// What is sent.
    fn source(&self, n: u64) -> u64 {
        self.at(0, n)
    }

    /// Where what was read is put.
    fn landing(&self, n: u64) -> u64 {
        self.at(1, n)
    }

    fn receive(&self, n: u64) -> u64 {
        self.at(2, n)
    }

    /// Where the peer writes.
    fn target(&self, n: u64) -> u64 {
        self.at(3, n)
    }

    /// What the peer reads.
    fn library(&self) -> u64 {
        self.at(4, 0)
    }

    /// Two numbers, one that is added to, one that is swapped.
    fn word(&self, which: u64) -> u64 {
        self.library() + self.slot + 8 * which
    }

    /// How much memory a side needs.
    pub fn len(&self) -> u64 {
        self.word(2)
    }
}

/// A QP and its memory.
struct Alive {
    end: End,
    region: Region,
    /// What its memory holds for the peer to read.
    library: Vec<u8>,
    /// Places that were read into, and written to by the peer.
    landed: Vec<Content>,
    written: Vec<Content>,
    /// What the two numbers are.
    words: [u64; 2],
}

struct Side {
    guest: usize,
    /// `None`: its host is not the one any more that it was made on.
    alive: Option<Alive>,
    posted: VecDeque<Posted>,
    /// Ended, and not well.
    unsure: Vec<Posted>,
    /// All messages ever posted, and those that succeeded.
    next: u64,
    done: u64,
    /// What the next compare-and-swap finds, if all before it are carried out.
    swapped: u64,
    receives: VecDeque<u64>,
    next_receive: u64,
    coming: VecDeque<Coming>,
    /// How its first work request ended that did not succeed.
    failed: Option<u32>,
    /// A receive was flushed.
    flushed: bool,
    /// It was told to fail, or asked for what it had to refuse.
    is_to_fail: bool,
}

/// See the module text.
pub struct Pair {
    number: usize,
    sides: [Side; 2],
    shape: Shape,
    path: Path,
    generation: u32,
    /// The program makes both QPs anew then.
    pub remake_at: Option<Duration>,
}

/// What a side has found out.
pub enum News {
    Nothing,
    /// It has given up a request, for `tries` times `every`.
    GaveUp {
        every: Duration,
        tries: u32,
    },
}

fn name(place: Place, n: u64) -> u64 {
    ((place.0 as u64) << 33 | (place.1 as u64) << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ n << 1
}

fn content(seed: u64, len: u64) -> Vec<u8> {
    let mut random = Rng::new(seed);
    let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| random.word().to_le_bytes()).collect();
    bytes.truncate(len as usize);
    bytes
}

/// Looks whether `place` holds what it should.
fn check(region: &Region, at: u64, is: Content, what: &str) {
    if let Some((seed, len)) = is {
        assert!(
            region.get(at, len as usize) == content(seed, len),
            "{what}: {len} bytes at {at} are not what they were"
        );
    }
}

fn number(region: &Region, at: u64) -> u64 {
    u64::from_le_bytes(region.get(at, 8).try_into().expect("8 bytes"))
}

impl Alive {
    fn new(place: Place, guest: &Guest, shape: Shape) -> Alive {
        let region = guest.driver.region(guest.pd, shape.len());
        let library = content(name(place, guest.life) ^ MARK >> 1, shape.slot);
        region.set(shape.library(), &library);
        let places = vec![None; shape.depth as usize];
        let end = Alive::end(guest, shape);
        Alive { end, region, library, landed: places.clone(), written: places, words: [0; 2] }
    }

    fn end(guest: &Guest, shape: Shape) -> End {
        let size = QpSize { send_sge: 1, recv_sge: 1, ..QpSize::wr(shape.depth as u32) };
        End::with(&guest.driver, guest.pd, guest.cqs[0].clone(), guest.cqs[1].clone(), size)
    }

    /// From now on `place` is its owner's again: whatever comes there late is found out.
    fn mark(&mut self, own: bool, shape: Shape, seed: u64, posted: &Posted) {
        let (at, list) = match own {
            true => (shape.landing(posted.n), &mut self.landed),
            false => (shape.target(posted.n), &mut self.written),
        };
        let seed = seed ^ MARK;
        self.region.set(at, &content(seed, posted.len));
        list[(posted.n % shape.depth) as usize] = Some((seed, posted.len));
    }

    fn check_all(&self, shape: Shape) {
        for n in 0..shape.depth {
            check(&self.region, shape.landing(n), self.landed[n as usize], "a place that was read into");
            check(&self.region, shape.target(n), self.written[n as usize], "a place that was written to");
        }
        assert!(self.region.get(shape.library(), shape.slot as usize) == self.library, "what is only read was written");
        for which in 0..2 {
            let is = number(&self.region, shape.word(which));
            assert_eq!(is, self.words[which as usize], "number {which}");
        }
    }
}

impl Pair {
    pub fn new(number: usize, guests: [usize; 2], shape: Shape, path: Path) -> Pair {
        let side = |guest| Side {
            guest,
            alive: None,
            posted: VecDeque::new(),
            unsure: Vec::new(),
            next: 0,
            done: 0,
            swapped: 0,
            receives: VecDeque::new(),
            next_receive: 0,
            coming: VecDeque::new(),
            failed: None,
            flushed: false,
            is_to_fail: false,
        };
        let remake_at = Some(Duration::ZERO);
        Pair { number, sides: guests.map(side), shape, path, generation: 0, remake_at }
    }

    pub fn shape(&self) -> Shape {
        self.shape
    }

    pub fn guests(&self) -> [usize; 2] {
        [self.sides[0].guest, self.sides[1].guest]
    }

    /// Messages that succeeded, in the direction where fewer did.
    pub fn done(&self) -> u64 {
        self.sides[0].done.min(self.sides[1].done)
    }

    /// The host of a side is gone, and its memory with it.
    pub fn lost(&mut self, guest: usize) {
        for side in self.sides.iter_mut().filter(|side| side.guest == guest) {
            side.alive = None;
        }
    }

    /// Whether nothing has happened to it: both QPs work, as far as they know.
    pub fn is_well(&self) -> bool {
        let well = |side: &Side| side.alive.is_some() && side.failed.is_none() && !side.flushed && !side.is_to_fail;
        self.sides.iter().all(well)
    }

    /// Whether a peer that gets no answer from this side need not wonder.
    fn answers(&self, side: usize) -> bool {
        let of = &self.sides[side];
        of.alive.is_some() && of.failed.is_none() && !of.flushed && !of.is_to_fail
    }

    // ---- the programs --------------------------------------------------------------------------------------------

    /// A side posts receives and sends, if it likes. `wrong`: also what has to be refused.
    pub fn post(&mut self, side: usize, messages: u64, pace: u64, wrong: bool, rng: &mut Rng) {
        if self.remake_at.is_some() || self.sides.iter().any(|side| side.alive.is_none()) {
            return;
        }
        if rng.one_in(4) {
            self.post_receives(side);
        }
        let depth = self.shape.depth as usize;
        let mut any = false;
        let mut burst = if rng.one_in(pace) { rng.below(self.shape.depth + 1) } else { 0 };
        while burst > 0
            && self.sides[side].posted.len() < depth
            && self.sides[side].done + (self.sides[side].posted.len() as u64) < messages
        {
            burst -= 1;
            any = true;
            let last = self.sides[side].done + self.sides[side].posted.len() as u64 + 1 == messages;
            self.post_send(side, last, wrong, rng);
        }
        if any {
            self.sides[side].alive.as_ref().expect("it lives").end.qp.ring_send();
        }
    }

    fn post_receives(&mut self, side: usize) {
        let (shape, of) = (self.shape, &mut self.sides[side]);
        let Some(Alive { end, region, .. }) = &of.alive else { return };
        if of.failed.is_some() || of.flushed {
            return;
        }
        let before = of.receives.len();
        while of.receives.len() < shape.depth as usize {
            let n = of.next_receive;
            let sges = [sge(region, shape.receive(n), shape.slot as u32)];
            assert!(end.qp.post_recv(&RecvWr::new(n, &sges)), "there is room for as many as there are places");
            of.receives.push_back(n);
            of.next_receive += 1;
        }
        if of.receives.len() > before {
            end.qp.ring_recv();
        }
    }

    fn post_send(&mut self, side: usize, last: bool, wrong: bool, rng: &mut Rng) {
        let (shape, place) = (self.shape, (self.number, side));
        let [of, peer] = self.both(side);
        let (Some(alive), Some(far)) = (&mut of.alive, &mut peer.alive) else { return };
        let n = of.next;
        let slot_bits = 63 - shape.slot.leading_zeros();
        let bits = rng.below(u64::from(slot_bits) + 1) as u32;
        let mut len = rng.word() & ((1 << bits) - 1);
        let kind = match rng.below(12) {
            // Of an empty one nobody asks where it goes.
            _ if wrong && len > 0 && rng.one_in(400) => Kind::Refused,
            0..3 => Kind::Send(rng.one_in(2)),
            3..6 => Kind::Write(false),
            6 => Kind::Write(true),
            7..10 => Kind::Read(rng.below(shape.slot - len + 1)),
            10 => Kind::FetchAdd(rng.below(1000)),
            _ => Kind::CompareSwap(rng.word()),
        };
        let source = sge(&alive.region, shape.source(n), len as u32);
        let landing = |len: u64| sge(&alive.region, shape.landing(n), len as u32);
        let wr = match kind {
            Kind::Send(true) => SendWr::send(n, &[source]).imm(n as u32),
            Kind::Send(false) => SendWr::send(n, &[source]),
            Kind::Write(false) => SendWr::write(n, &[source], &far.region, shape.target(n)),
            Kind::Write(true) => SendWr::write(n, &[source], &far.region, shape.target(n)).imm(n as u32),
            Kind::Read(from) => SendWr::read(n, &[landing(len)], &far.region, shape.library() + from),
            Kind::FetchAdd(add) => {
                len = 8;
                SendWr::fetch_add(n, landing(8), &far.region, shape.word(0), add)
            }
            Kind::CompareSwap(new) => {
                len = 8;
                SendWr::cas(n, landing(8), &far.region, shape.word(1), of.swapped, new)
            }
            Kind::Refused => {
                let wr = SendWr::write(n, &[source], &far.region, shape.target(n));
                wr.at(far.region.start, far.region.key ^ 0xff)
            }
        };
        match kind {
            Kind::Send(_) | Kind::Write(_) => {
                alive.region.set(shape.source(n), &content(name(place, n), len));
                let at = (n % shape.depth) as usize;
                check(&far.region, shape.target(n), far.written[at], "a place that was written to");
            }
            Kind::CompareSwap(new) => of.swapped = new,
            _ => {}
        }
        let at = (n % shape.depth) as usize;
        check(&alive.region, shape.landing(n), alive.landed[at], "a place that was read into");
        // The last of a window and the last of all would not be heard of otherwise.
        let full = of.posted.len() + 1 >= shape.depth as usize;
        let signaled = rng.one_in(2) || kind == Kind::Refused || last || full;
        let wr = if signaled { wr } else { wr.flags(0) };
        assert!(alive.end.qp.post_send(&wr), "there is room for as many as there are places");
        if kind == Kind::Refused {
            peer.is_to_fail = true;
        }
        if matches!(kind, Kind::Send(_) | Kind::Write(true) | Kind::Refused) {
            peer.coming.push_back(Coming { n, kind, len });
        }
        of.posted.push_back(Posted { n, kind, len, signaled, landed: false });
        of.next += 1;
    }

    fn both(&mut self, side: usize) -> [&mut Side; 2] {
        let [a, b] = &mut self.sides;
        if side == 0 { [a, b] } else { [b, a] }
    }

    /// A program ends the work of its QP.
    pub fn stop(&mut self, side: usize) {
        let of = &mut self.sides[side];
        if let Some(alive) = &of.alive {
            alive.end.modify_state(PVRDMA_QPS_ERR).expect("ERR");
            of.is_to_fail = true;
        }
    }

    /// The program notices what has become of its QPs, later.
    pub fn notice(&mut self, now: Duration, rng: &mut Rng) {
        if self.remake_at.is_none() && !self.is_well() {
            self.remake_at = Some(now + Duration::from_millis(rng.below(150)));
        }
    }

    // ---- what has come -------------------------------------------------------------------------------------------

    /// A receive has ended.
    pub fn received(&mut self, side: usize, wc: &Wc) {
        let (shape, from) = (self.shape, (self.number, 1 - side));
        let [of, peer] = self.both(side);
        let n = of.receives.pop_front().expect("a receive that ended was posted");
        assert_eq!(wc.wr_id, n, "receives end in order");
        if wc.status != SUCCESS {
            assert_eq!(wc.status, FLUSH, "how a receive may end");
            of.flushed = true;
            return;
        }
        assert!(!of.flushed, "something has come behind what was flushed");
        let alive = of.alive.as_mut().expect("a completion of a QP that is there");
        let message = of.coming.pop_front().expect("what has come was sent");
        assert_eq!(u64::from(wc.byte_len), message.len, "{message:?}");
        let imm = (wc.wc_flags & PVRDMA_WC_WITH_IMM != 0).then_some(wc.imm_data);
        match message.kind {
            Kind::Send(has) => {
                check(&alive.region, shape.receive(n), Some((name(from, message.n), message.len)), "a receive");
                assert_eq!(imm, has.then_some(message.n as u32), "{message:?}");
            }
            Kind::Write(true) => assert_eq!(imm, Some(message.n as u32), "{message:?}"),
            kind => panic!("{kind:?} takes no receive"),
        }
        // All that was sent before it was carried out, and is not carried out again.
        let writes = |posted: &&mut Posted| matches!(posted.kind, Kind::Write(_)) && !posted.landed;
        for posted in peer.posted.iter_mut().take_while(|posted| posted.n <= message.n).filter(writes) {
            check(&alive.region, shape.target(posted.n), Some((name(from, posted.n), posted.len)), "what was written");
            alive.mark(false, shape, name(from, posted.n), posted);
            posted.landed = true;
        }
    }

    /// A send has ended.
    pub fn sent(&mut self, side: usize, wc: &Wc) -> News {
        loop {
            let posted = self.sides[side].posted.pop_front().expect("a send that ended was posted");
            let is_it = posted.n == wc.wr_id;
            assert!(is_it || !posted.signaled && self.sides[side].failed.is_none(), "sends end in order: {posted:?}");
            if !is_it || wc.status == SUCCESS {
                self.succeeded(side, &posted);
                if !is_it {
                    continue;
                }
                return News::Nothing;
            }
            let of = &mut self.sides[side];
            of.unsure.push(posted);
            if of.failed.is_some() {
                assert_eq!(wc.status, FLUSH, "nothing happens behind a failure: {posted:?}");
                return News::Nothing;
            }
            of.failed = Some(wc.status);
            let tries = u32::from(self.path.retry_cnt) + 1;
            match wc.status {
                FLUSH => assert!(of.is_to_fail, "flushed for no reason: {posted:?}"),
                PVRDMA_WC_REM_ACCESS_ERR => assert_eq!(posted.kind, Kind::Refused),
                PVRDMA_WC_RETRY_EXC_ERR if !self.answers(1 - side) => {}
                PVRDMA_WC_RETRY_EXC_ERR => return News::GaveUp { every: self.path.ack_timeout(), tries },
                status => panic!("{posted:?} ended with {status}"),
            }
            return News::Nothing;
        }
    }

    fn succeeded(&mut self, side: usize, posted: &Posted) {
        let (shape, place) = (self.shape, (self.number, side));
        let [of, peer] = self.both(side);
        assert!(of.failed.is_none(), "a success behind a failure: {posted:?}");
        of.done += 1;
        let own = of.alive.as_mut().expect("a completion of a QP that is there");
        // Who was asked may be gone since.
        let far = peer.alive.as_mut();
        let seed = name(place, posted.n);
        let found = number(&own.region, shape.landing(posted.n));
        match posted.kind {
            Kind::Send(_) => {}
            Kind::Write(_) => {
                if let Some(far) = far.filter(|_| !posted.landed) {
                    check(&far.region, shape.target(posted.n), Some((seed, posted.len)), "what was written");
                    far.mark(false, shape, seed, posted);
                }
            }
            Kind::Read(from) => {
                if let Some(far) = far {
                    let read = own.region.get(shape.landing(posted.n), posted.len as usize);
                    assert!(read == far.library[from as usize..][..posted.len as usize], "what was read: {posted:?}");
                }
                own.mark(true, shape, seed, posted);
            }
            Kind::FetchAdd(_) | Kind::CompareSwap(_) => {
                if let Some(far) = far {
                    let (which, new) = match posted.kind {
                        Kind::FetchAdd(add) => (0, far.words[0] + add),
                        Kind::CompareSwap(new) => (1, new),
                        _ => unreachable!("an atomic operation"),
                    };
                    assert_eq!(found, far.words[which], "what was there before: {posted:?}");
                    far.words[which] = new;
                }
                own.mark(true, shape, seed, posted);
            }
            Kind::Refused => panic!("{posted:?} succeeded"),
        }
        if matches!(posted.kind, Kind::Send(_) | Kind::Write(true)) && peer.alive.is_some() {
            assert!(
                peer.coming.front().is_none_or(|next| next.n > posted.n),
                "acknowledged, and not received: {posted:?}"
            );
        }
    }

    // ---- the end of a generation ---------------------------------------------------------------------------------

    /// Both programs give up what they have, and all of their memory must be what the model says: what was asked for
    /// and did not end well was carried out once, or not at all. Completions were taken before.
    fn settle(&mut self) {
        for side in 0..2 {
            let of = &mut self.sides[side];
            if of.alive.is_none() || of.failed.is_none() && !of.flushed {
                continue;
            }
            assert!(of.failed.is_some() || of.is_to_fail, "flushed for no reason");
            assert!(of.receives.is_empty(), "a QP in ERR has flushed all receives");
            // What was not flushed has succeeded, and nobody had asked to hear of it.
            let silent = std::mem::take(&mut of.posted);
            assert!(of.failed.is_none() || silent.is_empty(), "a QP in ERR has flushed all sends: {silent:?}");
            for posted in silent {
                assert!(!posted.signaled, "a QP in ERR has flushed all sends: {posted:?}");
                self.succeeded(side, &posted);
            }
        }
        let shape = self.shape;
        for side in 0..2 {
            let place = (self.number, side);
            let [of, peer] = self.both(side);
            let mut unsure = std::mem::take(&mut of.unsure);
            unsure.extend(of.posted.drain(..));
            for posted in &unsure {
                let seed = name(place, posted.n);
                if let (Kind::Write(_), Some(far), false) = (posted.kind, &mut peer.alive, posted.landed) {
                    let at = shape.target(posted.n);
                    let (is, new) = (far.region.get(at, posted.len as usize), content(seed, posted.len));
                    let before = far.written[(posted.n % shape.depth) as usize];
                    let old = before.map_or(Vec::new(), |(seed, len)| content(seed, len));
                    for (n, byte) in is.iter().enumerate() {
                        let expected = *byte == new[n] || old.get(n).is_none_or(|old| byte == old);
                        assert!(expected, "byte {n} is neither what was there nor what was sent: {posted:?}");
                    }
                    far.mark(false, shape, seed, posted);
                }
                if let (Kind::Read(_) | Kind::FetchAdd(_) | Kind::CompareSwap(_), Some(own)) =
                    (posted.kind, &mut of.alive)
                {
                    own.mark(true, shape, seed, posted);
                }
            }
            if let Some(far) = &mut peer.alive {
                for which in 0..2 {
                    // The first of them were carried out, or none.
                    let is = number(&far.region, shape.word(which as u64));
                    let mut may_be = far.words[which];
                    for posted in &unsure {
                        match posted.kind {
                            _ if is == may_be => break,
                            Kind::FetchAdd(add) if which == 0 => may_be += add,
                            Kind::CompareSwap(new) if which == 1 => may_be = new,
                            _ => {}
                        }
                    }
                    assert_eq!(is, may_be, "number {which}, {unsure:?}");
                    far.words[which] = is;
                }
                of.swapped = far.words[1];
            }
        }
        for side in &mut self.sides {
            side.receives.clear();
            side.coming.clear();
            (side.failed, side.flushed, side.is_to_fail) = (None, false, false);
            if let Some(alive) = &side.alive {
                alive.check_all(shape);
            }
        }
    }

    /// Both programs make their QPs anew and connect them. The completions of the old ones were taken.
    pub fn remake(&mut self, guests: &mut [Guest], rng: &mut Rng) {
        let number = self.number;
        for side in &self.sides {
            let Some(alive) = &side.alive else { continue };
            guests[side.guest].by_qp.remove(&u64::from(alive.end.qp.handle.0));
        }
        // First both stop, then they look: until both have, one may reach the memory of the other.
        for side in &mut self.sides {
            let Some(alive) = &mut side.alive else { continue };
            match rng.one_in(3) {
                true => {
                    alive.end.destroy();
                    alive.end = Alive::end(&guests[side.guest], self.shape);
                }
                false => alive.end.reset(),
            }
        }
        self.settle();
        for (n, side) in self.sides.iter_mut().enumerate() {
            let guest = &mut guests[side.guest];
            if side.alive.is_none() {
                side.alive = Some(Alive::new((number, n), guest, self.shape));
            }
            let alive = side.alive.as_ref().expect("it was made");
            guest.by_qp.insert(u64::from(alive.end.qp.handle.0), (number, n));
        }
        let [a, b] = &mut self.sides;
        let (Some(one), Some(two)) = (&a.alive, &b.alive) else { unreachable!("both were made") };
        (a.swapped, b.swapped) = (two.words[1], one.words[1]);
        // Far from all that may still be on its way.
        self.generation += 1;
        let psn = (self.generation.wrapping_mul(0x1f_3d5b) + number as u32 * 77) & 0x00ff_ffff;
        connect(&one.end, &two.end, &Path { psn, ..self.path });
        self.remake_at = None;
    }

    /// All is over: what it had is given back. Completions were taken before.
    pub fn end(&mut self) {
        for side in &self.sides {
            if let Some(alive) = &side.alive {
                alive.end.destroy();
            }
        }
        self.settle();
        for side in &mut self.sides {
            if let Some(alive) = side.alive.take() {
                alive.end.driver.dereg(&alive.region);
            }
        }
    }
}
