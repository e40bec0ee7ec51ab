//! Random work, legal and illegal, on several QPs, against a model that knows what may come of each request: how it
//! ends, that it ends once and in order, and which bytes it moves. On the fabric that answers at once, on one with
//! faults, and on a wire that reorders, delays and loses; with whole messages and in pieces of every length.
//!
//! Four connections between two guests: two plain ones, one whose ends take their receives from SRQs, and one of the
//! guests' kernels, which registers memory by work requests. Beside them datagrams (`datagrams.rs`).
//!
//! `PVRDMA_SEED` repeats a run, `PVRDMA_STEPS` makes it longer.

mod datagrams;

use datagrams::Datagrams;
use pvrdma_device::command::{Command, MrKind, Response};
use pvrdma_device::handle::{CtxHandle, KERNEL, MrHandle, PdHandle};
use pvrdma_device::interrupt::AsyncEvent;
use pvrdma_device::memory::DmaAddr;
use pvrdma_device::testing::cut::{CUTS, Cut, Scissors};
use pvrdma_device::testing::driver::{Driver, Layout, Region};
use pvrdma_device::testing::end::{End, Path, connect, pump, pump_until};
use pvrdma_device::testing::queue::{CqRing, QpSize, RawSge, RecvWr, SendWr, SrqRing, Wc, sge};
use pvrdma_device::testing::rng::Rng;
use pvrdma_device::testing::wire::{Net, Wire};
use pvrdma_device::transport::Transport;
use pvrdma_device::transport::fabric::{Fabric, Port};
use pvrdma_device::transport::fault::{Faults, Faulty};
use pvrdma_ffi::dev_api::*;
use pvrdma_ffi::uapi::vmw_pvrdma::*;
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

const FLUSH: u32 = PVRDMA_WC_WR_FLUSH_ERR;
/// Bytes of a receive buffer, and of a place that WRITE and READ use.
const PLACE: u64 = 600;
const PLACES: u64 = 64;
const PAIRS: usize = 4;
/// The connection whose ends have an SRQ.
const SHARED: usize = 2;
/// The connection of the kernels.
const KERNELS: usize = 3;
/// Words of an end that its peer works on with atomic operations.
const WORDS: usize = 4;

/// What the model expects of one request.
#[derive(Debug)]
struct Expect {
    wr_id: u64,
    signaled: bool,
    may_succeed: bool,
    /// How it may end otherwise. A flush and an unreachable peer are possible for all.
    errors: Vec<u32>,
    moved: Moved,
}

/// What a request has moved when it succeeded.
#[derive(Debug, Clone)]
enum Moved {
    Nothing,
    /// These bytes, to this place of the peer.
    Write(u64, Vec<u8>),
    /// These bytes, to this place of its own region.
    Read(u64, Vec<u8>),
    /// What was in the word, to this place of its own region.
    Atomic(u64, Atomic),
}

#[derive(Debug, Clone, Copy)]
struct Atomic {
    word: usize,
    /// Swap if equal to this, or add.
    compare: Option<u64>,
    operand: u64,
}

impl Atomic {
    fn apply(self, words: &mut [u64; WORDS]) -> u64 {
        let old = words[self.word];
        words[self.word] = match self.compare {
            Some(compare) if compare != old => old,
            Some(_) => self.operand,
            None => old.wrapping_add(self.operand),
        };
        old
    }
}

/// An SRQ of one guest.
struct Shared {
    ring: Arc<SrqRing>,
    inbox: Region,
    /// Receives without an end.
    posted: BTreeSet<u64>,
    next_id: u64,
}

/// A region that work requests make and take back. It covers the memory of `Side::local`.
struct Fast {
    mr: MrHandle,
    key: u32,
    list: (DmaAddr, u32),
}

/// A message that takes a receive.
struct Message {
    bytes: Vec<u8>,
    imm: Option<u32>,
    write: bool,
    too_long: bool,
}

/// One end and what the model knows of it.
struct Side {
    end: End,
    local: Region,
    /// Where the peer writes and reads.
    remote: Region,
    inbox: Region,
    words: Region,
    /// What the words hold after everything that has ended.
    truth: [u64; WORDS],
    /// Atomic operations of this life on the peer's words which may have been carried out or not: a prefix of them was.
    unsure: Vec<Atomic>,
    fast: Option<Fast>,
    shared: bool,
    sends: VecDeque<Expect>,
    receives: VecDeque<u64>,
    /// Messages sent in this life that should arrive at the peer, oldest first.
    messages: VecDeque<Message>,
    next_id: u64,
    /// An error completion was seen: from here on only flushes.
    failed: bool,
    recv_failed: bool,
    completions: u64,
}

/// What lies between the guests.
#[derive(Clone, Copy, PartialEq)]
enum Between {
    Fabric,
    /// The same, which loses, repeats and overtakes by itself.
    Faults,
    /// A wire in the test's hands.
    Wire,
}

/// A guest on a fabric, behind faults if there are any, to whom messages come in this cut.
fn guest(fabric: &Arc<Fabric>, index: u8, layout: Layout, faults: Option<Faults>, cut: Cut) -> Driver {
    let port = Port::new(fabric);
    let transport: Arc<dyn Transport> = match faults {
        Some(faults) => Faulty::new(port.clone(), faults),
        None => port.clone(),
    };
    let mut driver = Driver::on(index, layout, 64 << 20, transport);
    driver.cut_by(&Scissors::new(cut));
    driver.plug(&port);
    driver
}

struct World {
    /// Requests may be lost.
    lossy: bool,
    rng: Rng,
    drivers: [Arc<Driver>; 2],
    wires: Option<[Arc<Wire>; 2]>,
    pairs: Vec<[Side; 2]>,
    cqs: [Vec<Arc<CqRing>>; 2],
    srqs: [Shared; 2],
    datagrams: Datagrams,
    lives: u64,
    /// Of the connection with SRQs.
    shared_lives: u64,
}

impl Side {
    fn new(driver: &Arc<Driver>, pd: PdHandle, cq: &Arc<CqRing>, srq: Option<&SrqRing>, size: QpSize) -> Side {
        let end = match srq {
            Some(srq) => End::with_srq(driver, pd, (cq.clone(), cq.clone()), srq, size),
            None => End::with(driver, pd, cq.clone(), cq.clone(), size),
        };
        let region = || end.driver.try_region(pd, PLACE * PLACES, 4000, 7).unwrap();
        let words = end.driver.try_region(pd, WORDS as u64 * 8, 4088, 15).unwrap();
        Side {
            local: region(),
            remote: region(),
            inbox: region(),
            words,
            truth: [0; WORDS],
            unsure: Vec::new(),
            fast: None,
            shared: srq.is_some(),
            end,
            sends: VecDeque::new(),
            receives: VecDeque::new(),
            messages: VecDeque::new(),
            next_id: 0,
            failed: false,
            recv_failed: false,
            completions: 0,
        }
    }

    fn in_error(&self) -> bool {
        self.end.query().qp_state == PVRDMA_QPS_ERR
    }

    /// A new fast-register region in the place of the old one, which may be valid or not.
    fn renew_fast(&mut self) {
        let driver = &self.end.driver;
        let pages = self.local.pages();
        let list = match self.fast.take() {
            Some(old) => {
                driver.command(Command::DestroyMr { mr: old.mr }).unwrap();
                old.list
            }
            None => (driver.pdir(pages), pages.len() as u32),
        };
        let (pd, kind) = (self.end.pd, MrKind::FastReg { max_pages: list.1 });
        match driver.command(Command::CreateMr { pd, start: 0, length: 0, access_flags: 0, kind }) {
            Ok(Response::CreateMr { mr, lkey, .. }) => self.fast = Some(Fast { mr, key: lkey.0, list }),
            other => panic!("CREATE_MR answered {other:?}"),
        }
    }

    fn read_words(&self) -> [u64; WORDS] {
        std::array::from_fn(|n| u64::from_le_bytes(self.words.get(n as u64 * 8, 8).try_into().unwrap()))
    }
}

impl World {
    fn new(seed: u64, between: Between, cut: Cut) -> World {
        let mut rng = Rng::from_env(seed);
        let layouts = [*rng.pick(&[Layout::Ranges, Layout::Pdir]), *rng.pick(&[Layout::Ranges, Layout::Pdir])];
        let lossy = between != Between::Fabric;
        let (drivers, wires) = if between == Between::Wire {
            let net = Net::cutting(cut);
            let [(da, wa), (db, wb)] = [0, 1].map(|index| Wire::guest(&net, index, layouts[usize::from(index)]));
            ([da, db], Some([wa, wb]))
        } else {
            let fabric = Fabric::new();
            let faults =
                Faults { drop: 0.01, drop_ack: 0.02, reorder: 0.02, duplicate: 0.1, seed, ..Faults::default() };
            let guest = |index| guest(&fabric, index, layouts[usize::from(index)], lossy.then_some(faults), cut);
            let drivers = [0, 1].map(|index| Arc::new(guest(index)));
            (drivers, None)
        };
        let contexts = [0, 1].map(|n| [drivers[n].context(), KERNEL]);
        let pds = [0, 1].map(|n| contexts[n].map(|ctx| drivers[n].pd(ctx)));
        // One CQ a guest, for all its queues; the kernel has its own.
        let cqs = [0, 1].map(|n| contexts[n].map(|ctx: CtxHandle| drivers[n].cq(ctx, 4096)).to_vec());
        let srqs = [0, 1].map(|n| {
            let (ctx, pd) = (contexts[n][0], pds[n][0]);
            let ring = drivers[n].srq(ctx, pd, (1 << rng.below(7), 1 + rng.below(16) as u32), 0);
            let inbox = drivers[n].try_region(pd, PLACE * PLACES, 4000, 7).unwrap();
            Shared { ring, inbox, posted: BTreeSet::new(), next_id: 0 }
        });
        let pairs = (0..PAIRS)
            .map(|pair| {
                let size = QpSize {
                    send_wr: 1 << rng.below(7),
                    recv_wr: 1 << rng.below(7),
                    send_sge: 1 + rng.below(16) as u32,
                    recv_sge: 1 + rng.below(16) as u32,
                    sig_all: rng.one_in(4),
                };
                let owner = usize::from(pair == KERNELS);
                [0, 1].map(|n| {
                    let srq = (pair == SHARED).then_some(&*srqs[n].ring);
                    let mut side = Side::new(&drivers[n], pds[n][owner], &cqs[n][owner], srq, size);
                    if pair == KERNELS {
                        side.renew_fast();
                    }
                    side
                })
            })
            .collect();
        let datagrams = if between == Between::Faults {
            // A datagram that comes twice would be one too many: these are guests of their own.
            let quiet = Fabric::new();
            let drivers = [0, 1].map(|index| Arc::new(Driver::new(&quiet, index, layouts[usize::from(index)])));
            let contexts = [0, 1].map(|n| drivers[n].context());
            Datagrams::new(&drivers, [0, 1].map(|n| (contexts[n], drivers[n].pd(contexts[n]))))
        } else {
            Datagrams::new(&drivers, [0, 1].map(|n| (contexts[n][0], pds[n][0])))
        };
        let mut world = World { lossy, rng, drivers, wires, pairs, cqs, srqs, datagrams, lives: 0, shared_lives: 0 };
        for pair in 0..PAIRS {
            world.connect(pair);
        }
        world
    }

    fn connect(&mut self, pair: usize) {
        let path = Path {
            mtu: 1 + self.rng.below(5) as u32,
            psn: self.rng.word() as u32 & 0x00ff_ffff,
            timeout: if self.lossy { 8 } else { 1 },
            retry_cnt: if self.lossy { 7 } else { 0 },
            rnr_retry: 7,
            min_rnr_timer: 1,
            max_rd_atomic: 1 + self.rng.below(8) as u8,
            ..Path::default()
        };
        let [a, b] = &self.pairs[pair];
        connect(&a.end, &b.end, &path);
        self.lives += 1;
    }

    // ---- posting -------------------------------------------------------------------------------

    /// Cuts a range into SGEs.
    fn cut(&mut self, region: &Region, offset: u64, len: u64, max: u32) -> Vec<RawSge> {
        let count = 1 + self.rng.below(u64::from(max));
        let mut cuts: Vec<u64> = (1..count).map(|_| self.rng.below(len + 1)).collect();
        cuts.sort_unstable();
        cuts.push(len);
        let mut from = 0;
        cuts.into_iter()
            .map(|to| {
                let piece = sge(region, offset + from, (to - from) as u32);
                from = to;
                piece
            })
            .collect()
    }

    fn post_receive(&mut self, pair: usize, side: usize) {
        if self.pairs[pair][side].shared {
            let Shared { ring, inbox, next_id, .. } = &self.srqs[side];
            let (ring, inbox, id) = (ring.clone(), inbox.clone(), *next_id);
            let sges = self.cut(&inbox, id % PLACES * PLACE, PLACE, ring.size.1);
            if ring.post_recv(&RecvWr::new(id, &sges)) {
                self.srqs[side].posted.insert(id);
                self.srqs[side].next_id += 1;
            }
            return;
        }
        let max_sge = self.pairs[pair][side].end.qp.size.recv_sge;
        let (id, inbox) = (self.pairs[pair][side].next_id, self.pairs[pair][side].inbox.clone());
        let sges = self.cut(&inbox, id % PLACES * PLACE, PLACE, max_sge);
        let this = &mut self.pairs[pair][side];
        if this.end.qp.post_recv(&RecvWr::new(id, &sges)) {
            this.receives.push_back(id);
            this.next_id += 1;
            if self.rng.one_in(2) {
                self.pairs[pair][side].end.qp.ring_recv();
            }
        }
    }

    /// Registers, uses and takes back a region, in three requests that follow each other; or does one of it at the
    /// wrong time.
    fn post_fast(&mut self, side: usize, bad: bool) {
        let this = &self.pairs[KERNELS][side];
        let Some(fast) = &this.fast else { return };
        let size = this.end.qp.size;
        if size.send_wr - this.end.qp.sends_out() < 3 {
            return;
        }
        let id = this.next_id;
        let key = fast.key & !0xff | self.rng.word() as u32 & 0xff;
        let (local, list) = (this.local.clone(), fast.list);
        let length = (PLACE * PLACES) as u32;
        let reg = SendWr::fast_reg(id, key, local.start, length, list, PVRDMA_ACCESS_LOCAL_WRITE);
        let (place, len) = (id % PLACES * PLACE, 1 + self.rng.below(PLACE));
        let bytes = self.rng.bytes(len as usize);
        let remote = self.pairs[KERNELS][1 - side].remote.clone();
        let write = SendWr::write(id + 1, &[(local.start + place, len as u32, key)], &remote, place);
        let works: Vec<(SendWr, Moved, Option<u32>)> = match bad {
            false => vec![
                (reg, Moved::Nothing, None),
                (write, Moved::Write(place, bytes.clone()), None),
                (SendWr::local_inv(id + 2, key), Moved::Nothing, None),
            ],
            true => match self.rng.below(3) {
                0 => vec![(SendWr::local_inv(id, key), Moved::Nothing, Some(PVRDMA_WC_MW_BIND_ERR))],
                1 => {
                    let reg = SendWr::fast_reg(id, key, local.start, length + 4096, list, 1);
                    vec![(reg, Moved::Nothing, Some(PVRDMA_WC_MW_BIND_ERR))]
                }
                _ => vec![(SendWr { wr_id: id, ..write }, Moved::Nothing, Some(PVRDMA_WC_LOC_PROT_ERR))],
            },
        };
        if !bad {
            local.set(place, &bytes);
        }
        for (wr, moved, error) in works {
            let signaled = self.rng.one_in(2);
            let this = &mut self.pairs[KERNELS][side];
            assert!(this.end.qp.post_send(&wr.clone().flags(u32::from(signaled) << 1)));
            this.next_id += 1;
            this.sends.push_back(Expect {
                wr_id: wr.wr_id,
                signaled: signaled || size.sig_all,
                may_succeed: error.is_none(),
                errors: error.into_iter().collect(),
                moved,
            });
        }
        self.pairs[KERNELS][side].end.qp.ring_send();
    }

    fn post_send(&mut self, pair: usize, side: usize, bad: bool) {
        let rng = &mut self.rng;
        let id = self.pairs[pair][side].next_id;
        let place = id % PLACES * PLACE;
        let len = match rng.below(4) {
            0 => 0,
            1 => 1 + rng.below(8),
            _ => rng.below(PLACE + 1),
        };
        let kind = rng.below(7);
        let signaled = rng.one_in(2);
        let solicited = rng.one_in(4);
        let fence = rng.one_in(8);
        let bytes = rng.bytes(len as usize);
        let imm = rng.word() as u32;
        let trouble = if bad { 1 + rng.below(9) } else { 0 };
        let atomic = Atomic {
            word: rng.below(WORDS as u64) as usize,
            // A guess at what is there: sometimes right.
            compare: (kind == 5).then(|| rng.below(3)),
            operand: rng.below(3),
        };

        let (local, remote) = (self.pairs[pair][side].local.clone(), self.pairs[pair][1 - side].remote.clone());
        let size = self.pairs[pair][side].end.qp.size;
        let len = if kind >= 5 { 8 } else { len };
        let sges = self.cut(&local, place, len, size.send_sge);
        let mut message = None;
        let mut moved = Moved::Nothing;
        let mut wr = match kind {
            0 | 1 => {
                message = Some(Message { bytes: bytes.clone(), imm: None, write: false, too_long: false });
                let wr = SendWr::send(id, &sges);
                if kind == 1 { wr.imm(imm) } else { wr }
            }
            2 | 3 => {
                moved = Moved::Write(place, bytes.clone());
                let wr = SendWr::write(id, &sges, &remote, place);
                if kind == 3 {
                    message = Some(Message { bytes: bytes.clone(), imm: None, write: true, too_long: false });
                    wr.imm(imm)
                } else {
                    wr
                }
            }
            4 => {
                moved = Moved::Read(place, bytes.clone());
                SendWr::read(id, &sges, &remote, place)
            }
            _ => {
                moved = Moved::Atomic(place, atomic);
                let words = &self.pairs[pair][1 - side].words;
                let (one, at) = (sge(&local, place, 8), atomic.word as u64 * 8);
                let wr = match atomic.compare {
                    Some(compare) => SendWr::cas(id, one, words, at, compare, atomic.operand),
                    None => SendWr::fetch_add(id, one, words, at, atomic.operand),
                };
                SendWr { sges: sges.clone(), ..wr }
            }
        };
        if let Some(message) = &mut message {
            message.imm = (kind == 1 || kind == 3).then_some(imm);
        }
        wr.send_flags = u32::from(fence) | u32::from(signaled) << 1 | u32::from(solicited) << 2;

        let mut errors = Vec::new();
        let one_sided = kind >= 2;
        match trouble {
            0 => {}
            1 => {
                wr.opcode = *self.rng.pick(&[7, 9, 12, 13, 14, 15, 16, 24, u32::MAX]);
                errors.push(PVRDMA_WC_LOC_QP_OP_ERR);
            }
            2 => {
                wr.num_sge = Some(size.send_sge + 1 + imm % 1000);
                errors.push(PVRDMA_WC_LOC_QP_OP_ERR);
            }
            3 => {
                wr.send_flags |= PVRDMA_SEND_INLINE;
                errors.push(PVRDMA_WC_LOC_QP_OP_ERR);
            }
            4 | 5 => {
                let len = if kind >= 5 { 8 } else { 2 };
                wr.sges = vec![(local.start + PLACE * PLACES - 1, len, local.key ^ u32::from(trouble == 5))];
                errors.push(PVRDMA_WC_LOC_PROT_ERR);
            }
            6 if one_sided => {
                wr.rkey ^= 0x40;
                wr.sges = vec![sge(&local, 0, if kind >= 5 { 8 } else { 1 })];
                errors.push(PVRDMA_WC_REM_ACCESS_ERR);
            }
            7 if kind >= 5 => {
                wr.remote_addr += 4;
                errors.push(PVRDMA_WC_REM_INV_REQ_ERR);
            }
            8 if kind >= 5 => {
                wr.sges = vec![sge(&local, 0, 7)];
                errors.push(PVRDMA_WC_LOC_LEN_ERR);
            }
            7 if one_sided => {
                wr.remote_addr = remote.start + PLACE * PLACES;
                wr.sges = vec![sge(&local, 0, 1)];
                errors.push(PVRDMA_WC_REM_ACCESS_ERR);
            }
            9 if !one_sided => {
                // An ordinary region is not for others to invalidate.
                wr = wr.inv(self.pairs[pair][1 - side].inbox.key);
                errors.push(PVRDMA_WC_REM_ACCESS_ERR);
            }
            _ if !one_sided => {
                wr.sges = vec![sge(&local, 0, PLACE as u32 + 1)];
                errors.push(PVRDMA_WC_REM_INV_REQ_ERR);
                message.as_mut().unwrap().too_long = true;
            }
            _ => {
                wr.num_sge = Some(u32::MAX);
                errors.push(PVRDMA_WC_LOC_QP_OP_ERR);
            }
        }
        let may_succeed = errors.is_empty();
        // The bytes must be in place before the WQE is visible, but only if it will be.
        let this = &mut self.pairs[pair][side];
        if this.end.qp.sends_out() == size.send_wr {
            return;
        }
        match (&moved, may_succeed) {
            (Moved::Read(place, bytes), true) => remote.set(*place, bytes),
            (Moved::Atomic(..), _) | (_, false) => {}
            (_, true) => local.set(place, &bytes),
        }
        assert!(this.end.qp.post_send(&wr));
        this.next_id += 1;
        if let Some(message) = message.filter(|message| may_succeed || message.too_long) {
            this.messages.push_back(message);
        }
        let signaled = signaled || size.sig_all;
        let moved = if may_succeed { moved } else { Moved::Nothing };
        this.sends.push_back(Expect { wr_id: id, signaled, may_succeed, errors, moved });
        if self.rng.one_in(2) {
            self.pairs[pair][side].end.qp.ring_send();
        }
    }

    // ---- checking ------------------------------------------------------------------------------

    fn check_completions(&mut self) {
        // Sends first: a receive's message must have been posted, a send's receive may not have been polled yet.
        for guest in 0..2 {
            for wc in self.cqs[guest].iter().flat_map(|cq| cq.drain()).collect::<Vec<_>>() {
                let pair = self
                    .pairs
                    .iter()
                    .position(|pair| u64::from(pair[guest].end.qp.handle.0) == wc.qp)
                    .expect("a CQE names a QP of its guest");
                self.pairs[pair][guest].completions += 1;
                if wc.opcode & PVRDMA_WC_RECV != 0 {
                    self.check_receive(pair, guest, &wc);
                } else {
                    self.check_send(pair, guest, &wc);
                }
            }
        }
    }

    fn check_send(&mut self, pair: usize, side: usize, wc: &Wc) {
        let peer_in_error = self.pairs[pair][1 - side].in_error();
        loop {
            let Some(expect) = self.pairs[pair][side].sends.pop_front() else { panic!("nobody posted {wc:?}") };
            let this = &self.pairs[pair][side];
            let success = wc.wr_id != expect.wr_id || wc.status == 0;
            if success {
                assert!(expect.may_succeed && !this.failed, "{expect:?} succeeded, says {wc:?}");
                self.check_moved(pair, side, &expect.moved);
            } else if let Moved::Atomic(_, atomic) = expect.moved {
                self.pairs[pair][side].unsure.push(atomic);
            }
            let this = &self.pairs[pair][side];
            if wc.wr_id != expect.wr_id {
                assert!(!expect.signaled, "{expect:?} was passed over by {wc:?}");
                continue;
            }
            assert!(expect.signaled || wc.status != 0, "{expect:?} was to be silent: {wc:?}");
            match wc.status {
                0 => return,
                FLUSH => assert!(this.failed || this.in_error(), "{wc:?} before any error"),
                // A wire that loses something now and then is no excuse: nothing is lost eight times.
                PVRDMA_WC_RETRY_EXC_ERR => assert!(!this.failed && peer_in_error, "{wc:?}"),
                status => {
                    assert!(!this.failed, "{wc:?} after an error");
                    assert!(expect.errors.contains(&status), "{wc:?}, expected {expect:?}");
                }
            }
            self.pairs[pair][side].failed = true;
            return;
        }
    }

    fn check_moved(&mut self, pair: usize, side: usize, moved: &Moved) {
        match moved {
            Moved::Nothing => {}
            Moved::Write(place, bytes) => {
                let there = self.pairs[pair][1 - side].remote.get(*place, bytes.len());
                assert!(there == *bytes, "WRITE to {place}: {} bytes differ", bytes.len());
            }
            Moved::Read(place, bytes) => {
                let here = self.pairs[pair][side].local.get(*place, bytes.len());
                assert!(here == *bytes, "READ to {place}: {} bytes differ", bytes.len());
            }
            Moved::Atomic(place, atomic) => {
                let old = atomic.apply(&mut self.pairs[pair][1 - side].truth);
                let here = self.pairs[pair][side].local.get(*place, 8);
                assert_eq!(here, old.to_le_bytes(), "{atomic:?} found {old}");
            }
        }
    }

    fn check_receive(&mut self, pair: usize, side: usize, wc: &Wc) {
        let [this, peer] = self.pairs[pair].get_disjoint_mut([side, 1 - side]).unwrap();
        let id = wc.wr_id;
        let inbox = if this.shared {
            // Their order is that in which messages came, whatever QP they came by.
            assert!(self.srqs[side].posted.remove(&id), "nobody posted {wc:?}");
            &self.srqs[side].inbox
        } else {
            assert_eq!(this.receives.pop_front(), Some(id), "receives end in order: {wc:?}");
            &this.inbox
        };
        match wc.status {
            0 => {
                assert!(!this.recv_failed, "{wc:?} after an error");
                let message = peer.messages.pop_front().unwrap_or_else(|| panic!("nobody sent {wc:?}"));
                assert!(!message.too_long, "{wc:?} did not fit");
                assert_eq!(wc.byte_len as usize, message.bytes.len());
                assert_eq!(wc.wc_flags & PVRDMA_WC_WITH_IMM != 0, message.imm.is_some());
                assert_eq!(wc.imm_data, message.imm.unwrap_or(0));
                assert_eq!(wc.opcode == PVRDMA_WC_RECV_RDMA_WITH_IMM, message.write);
                if !message.write {
                    let place = id % PLACES * PLACE;
                    assert!(inbox.get(place, message.bytes.len()) == message.bytes, "message of {wc:?} differs");
                }
            }
            FLUSH => {
                assert!(this.in_error(), "{wc:?} out of nothing");
                this.recv_failed = true;
            }
            PVRDMA_WC_LOC_LEN_ERR => {
                assert!(!this.recv_failed);
                assert!(peer.messages.front().is_some_and(|message| message.too_long), "{wc:?} would have fitted");
                this.recv_failed = true;
            }
            _ => panic!("{wc:?}"),
        }
    }

    /// A responder remembers no more READs and atomics than were agreed on.
    fn check_windows(&self) {
        let Some(wires) = &self.wires else { return };
        for end in self.pairs.iter().flatten().map(|side| &side.end) {
            let wire = wires.iter().zip(&self.drivers).find(|(_, driver)| Arc::ptr_eq(driver, &end.driver));
            let outstanding = wire.expect("a guest").0.outstanding_reads(end.qp.handle);
            let max = end.query().max_rd_atomic;
            assert!(outstanding <= usize::from(max), "{outstanding} READs and atomics outstanding, {max} agreed on");
        }
    }

    // ---- lives ---------------------------------------------------------------------------------

    /// Lets the wire do something, if there is one.
    fn turn(&mut self) {
        let Some(wires) = &self.wires else { return };
        for wire in wires {
            for _ in 0..self.rng.below(6) {
                let flights = wire.flights() as u64;
                if flights == 0 {
                    break;
                }
                // Mostly the oldest, now and then another; mostly once, now and then twice or with the answer lost.
                let index = if self.rng.one_in(6) { self.rng.below(flights) as usize } else { 0 };
                match self.rng.below(40) {
                    0 => wire.lose(index),
                    1 => {
                        wire.deliver(index);
                        wire.lose(index);
                    }
                    2 => drop(wire.deliver(index)),
                    3 => wire.set_busy(self.rng.below(4) as u32),
                    4 => wire.set_one_by_one(self.rng.one_in(3)),
                    _ => {
                        wire.deliver(index);
                        wire.answer(index);
                    }
                }
            }
        }
    }

    /// Ends the life of a pair in one of the ways there are, checks that nothing is owed, and begins the next.
    fn end_life(&mut self, pair: usize) {
        self.shared_lives += u64::from(pair == SHARED);
        let order = if self.rng.one_in(2) { [0, 1] } else { [1, 0] };
        // RESET without ERR before it: nothing more is said of what was posted. (A receive that a QP has taken from its
        // SRQ is lost then, and the model could not tell which.)
        let forget = pair != SHARED && self.rng.one_in(4);
        if forget {
            self.check_completions();
        }
        for side in order {
            let state = if forget { PVRDMA_QPS_RESET } else { PVRDMA_QPS_ERR };
            self.pairs[pair][side].end.modify_state(state).unwrap();
        }
        pump(&[&self.drivers[0], &self.drivers[1]]);
        self.check_completions();
        for side in 0..2 {
            let this = &mut self.pairs[pair][side];
            let left = std::mem::take(&mut this.sends);
            if forget {
                let atomics = left.iter().filter_map(|expect| match expect.moved {
                    Moved::Atomic(_, atomic) => Some(atomic),
                    _ => None,
                });
                this.unsure.extend(atomics);
                this.receives.clear();
            } else {
                let kept = if this.shared { 0 } else { this.end.qp.recvs_out() };
                assert_eq!((this.end.qp.sends_out(), kept), (0, 0), "slots were kept");
                assert!(this.receives.is_empty(), "receives without an end: {:?}", this.receives);
                // What is left was silent and successful, and nothing failed before it.
                let silent = left.iter().all(|expect| !expect.signaled && expect.may_succeed);
                assert!(left.is_empty() || silent && !this.failed, "sends without an end: {left:?}");
                for expect in left {
                    self.check_moved(pair, side, &expect.moved);
                }
            }
            self.check_words(pair, side);
            let this = &mut self.pairs[pair][side];
            (this.failed, this.recv_failed) = (false, false);
            this.messages.clear();
            this.end.reset();
            if pair == KERNELS {
                this.renew_fast();
            }
        }
        self.connect(pair);
    }

    /// The words that `side` worked on: what has ended well, then a part of what has not, in order and once.
    fn check_words(&mut self, pair: usize, side: usize) {
        let unsure = std::mem::take(&mut self.pairs[pair][side].unsure);
        let peer = &mut self.pairs[pair][1 - side];
        let words = peer.read_words();
        let mut model = peer.truth;
        let mut rest = unsure.iter();
        while model != words {
            let next = rest.next().unwrap_or_else(|| panic!("{words:?} after {:?} and {unsure:?}", peer.truth));
            next.apply(&mut model);
        }
        peer.truth = words;
    }

    fn step(&mut self) {
        let pair = self.rng.below(PAIRS as u64) as usize;
        let side = self.rng.below(2) as usize;
        match self.rng.below(100) {
            0..45 => self.post_receive(pair, side),
            45..85 => self.post_send(pair, side, false),
            85..87 => self.post_send(pair, side, true),
            87 => self.post_fast(side, false),
            88 if self.rng.one_in(4) => self.post_fast(side, true),
            89 | 90 => (0..8).for_each(|_| self.datagrams.step(&mut self.rng)),
            91 | 92 => self.pairs[pair][side].end.qp.ring_send(),
            93 if self.rng.one_in(4) => self.end_life(pair),
            94 => {
                // Somebody else's region goes: what is on its way is not disturbed.
                let end = &self.pairs[pair][side].end;
                let spare = end.driver.register_again(end.pd, &self.pairs[pair][side].inbox);
                end.driver.dereg(&spare);
            }
            95 if self.rng.one_in(2) => {
                let end = &self.pairs[pair][side].end;
                // What is on its way may fail in between; then there is no way back.
                if end.modify_state(PVRDMA_QPS_SQD).is_ok() && end.modify_state(PVRDMA_QPS_RTS).is_err() {
                    assert!(self.pairs[pair][side].in_error());
                }
            }
            _ => {}
        }
        self.turn();
        self.check_windows();
        if self.rng.one_in(8) {
            for driver in &self.drivers {
                driver.device.poll();
            }
            self.check_completions();
            let dead = |pair: &[Side; 2]| pair.iter().any(|side| side.failed || side.recv_failed);
            if let Some(pair) = self.pairs.iter().position(dead)
                && self.rng.one_in(3)
            {
                self.end_life(pair);
            }
        }
    }

    /// Everything that can still succeed does: receives for all, time for all.
    fn finish(&mut self) {
        for _ in 0..200 {
            for pair in 0..PAIRS {
                for side in 0..2 {
                    let waiting = |world: &World| match world.pairs[pair][side].shared {
                        true => world.srqs[side].posted.len(),
                        false => world.pairs[pair][side].receives.len(),
                    };
                    // One more than messages are to come: a request that must fail may need a receive for it.
                    while waiting(self) <= self.pairs[pair][1 - side].messages.len() {
                        let before = waiting(self);
                        self.post_receive(pair, side);
                        if waiting(self) == before {
                            break;
                        }
                    }
                    self.pairs[pair][side].end.qp.ring_send();
                }
            }
            let drivers = [&*self.drivers[0], &*self.drivers[1]];
            pump_until(&drivers, Duration::from_micros(500), || false);
            if let Some(wires) = &self.wires {
                wires.iter().for_each(|wire| wire.run());
            }
            self.check_completions();
        }
        for pair in 0..PAIRS {
            let healthy = self.pairs[pair].iter().all(|side| !side.in_error());
            for side in &self.pairs[pair] {
                if healthy {
                    assert_eq!(side.end.qp.sends_out(), 0, "a healthy QP with receives at its peer finishes its work");
                    assert!(side.messages.is_empty(), "{} messages did not arrive", side.messages.len());
                }
            }
            self.end_life(pair);
        }
        for srq in &self.srqs {
            assert_eq!(srq.posted.len(), srq.ring.recvs_out() as usize, "each receive has ended or is still there");
        }
        self.datagrams.finish();
    }
}

fn run(seed: u64, between: Between, cut: Cut, steps: u64) {
    let steps = pvrdma_device::testing::rng::steps(steps);
    println!("seed {seed}, {cut:?}");
    let mut world = World::new(seed, between, cut);
    for _ in 0..steps {
        world.step();
    }
    world.finish();
    let completions: u64 = world.pairs.iter().flatten().map(|side| side.completions).sum();
    println!("{steps} steps, {} lives, {completions} completions", world.lives);
    assert!(completions > steps / 8, "hardly anything happened: {completions} completions in {steps} steps");
    assert!(world.lives > PAIRS as u64 * 2, "no life ended");
    for (side, driver) in world.drivers.iter().enumerate() {
        let events = driver.bell.events();
        let shared = world.pairs[SHARED][side].end.qp.handle;
        let last = events.iter().filter(|event| **event == AsyncEvent::QpLastWqeReached(shared)).count() as u64;
        assert_eq!(last, world.shared_lives, "once in each life");
        let expected = |event: &AsyncEvent| {
            matches!(event, AsyncEvent::QpAccessErr(_) | AsyncEvent::QpReqErr(_) | AsyncEvent::QpLastWqeReached(_))
        };
        assert!(events.iter().all(expected), "{events:?}");
    }
}

#[test]
fn random_work_on_the_fabric() {
    for seed in 1..=6 {
        run(seed, Between::Fabric, CUTS[seed as usize % CUTS.len()], 3000);
    }
}

#[test]
fn random_work_on_a_fabric_with_faults() {
    for seed in 21..=25 {
        run(seed, Between::Faults, CUTS[seed as usize % CUTS.len()], 1000);
    }
}

#[test]
fn random_work_on_a_lossy_wire() {
    for seed in 11..=15 {
        run(seed, Between::Wire, CUTS[seed as usize % CUTS.len()], 2000);
    }
}
