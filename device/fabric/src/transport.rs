//! The core's `Transport` over the fabric: requests into the target's inbox, or, for one-sided operations, the
//! initiator's own copy.

mod datagram;

use crate::bell::Bell;
use crate::copy::{Copied, Direction, Gone, RemoteFar, copy_under};
use crate::hazard::{self, Hazard};
use crate::say::say;
use crate::segment::*;
use crate::sync::{AtomicBool, AtomicU64, Mutex, MutexGuard, Ordering, fence};
use crate::taken::Taken;
use crate::words::{REQUEST_WORDS, decode, decode_answer, encode, encode_answer, to_words, what};
use pvrdma_device::guest::{Guest, WIRE_GID};
use pvrdma_device::handle::{Gid, PdHandle, QpHandle, address_of};
use pvrdma_device::memory::{DmaAddr, Memory, Span};
use pvrdma_device::transport::segment::{Carried, Segment as Piece};
use pvrdma_device::transport::*;
use pvrdma_ffi::dev_api::{PVRDMA_QPS_RESET, PVRDMA_QPS_RTR};
use pvrdma_ffi::uapi::vmw_pvrdma::{PVRDMA_ACCESS_REMOTE_READ, PVRDMA_ACCESS_REMOTE_WRITE};
use std::collections::HashMap;
use std::sync::{Arc, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

/// How long the gateway may stand still: as long as a host may be silent to another one.
pub(crate) const GATEWAY_PATIENCE: Duration = Duration::from_secs(1);

/// Bits of a sequence number.
const SEQUENCE_MASK: u64 = (1 << 48) - 1;

/// See the module text.
pub struct HostTransport {
    pub(crate) segment: Segment,
    device: OnceLock<Weak<dyn Station>>,
    out: Mutex<Outbox>,
    /// One thread empties the inbox at a time; what it remembers of the channels it reads.
    pump: Mutex<HashMap<usize, Reader>>,
    /// Somebody wants the inbox looked at.
    pump_asked: AtomicBool,
    /// Whose bells are to be rung (`gateway.rs`), by region.
    pub(crate) to_ring: [AtomicU64; MAX_PROCESSES.div_ceil(64)],
}

/// Requests of this process that are on their way.
struct Outbox {
    free: Vec<u16>,
    sequence: u64,
    flying: Vec<Flying>,
    /// How far the gateway was when it was late, and since when it has been no further.
    gateway_late: Option<(u64, Instant)>,
}

#[derive(Clone, Copy)]
struct Flying {
    slot: u16,
    sequence: u64,
    token: Token,
    target: Process,
    /// Its requester waits for no answer.
    datagram: bool,
}

/// Whom the inbox is emptied for: the device.
pub trait Inbound {
    /// Carries out a request.
    fn receive(&self, request: &Request, far: &dyn Far) -> Answer;
    /// Carries out a piece of one.
    fn receive_segment(&self, segment: &Piece, far: &dyn Far) -> Answer;
    /// Takes in an answer.
    fn answered(&self, token: Token, answer: Answer);
    /// Takes over a request, to answer it later; `None` by who answers at once.
    fn deferred(&self) -> Option<&dyn Deferred> {
        None
    }
}

/// Who answers requests later.
pub trait Deferred {
    /// Takes one over.
    fn take(&self, taken: Taken);
    /// Takes a datagram over, with its payload. Its slot is its sender's again when it is answered, whatever with.
    fn take_datagram(&self, taken: Taken, payload: &[u8]);
}

impl Inbound for Arc<dyn Station> {
    fn receive(&self, request: &Request, far: &dyn Far) -> Answer {
        Responder::receive(&**self, request, far)
    }

    fn receive_segment(&self, segment: &Piece, far: &dyn Far) -> Answer {
        Responder::receive_segment(&**self, segment, far)
    }

    fn answered(&self, token: Token, answer: Answer) {
        Requester::answered(&**self, token, answer);
    }
}

/// The payload of a request.
pub(crate) enum Body<'a> {
    /// Where it is in the requester's memory.
    Spans(&'a [Span]),
    /// Itself.
    Bytes(&'a [u8]),
}

/// Where this process stands in the channel of another.
struct Reader {
    incarnation: u32,
    count: u32,
}

impl HostTransport {
    /// A transport without a device; see `attach`.
    pub fn new(segment: Segment) -> Arc<HostTransport> {
        let free = (0..SLOTS as u16).rev().collect();
        // Unique on the host for as long as it matters: the incarnation in the top bits.
        let sequence = u64::from(segment.incarnation()) << 24 & SEQUENCE_MASK;
        Arc::new(HostTransport {
            segment,
            device: OnceLock::new(),
            out: Mutex::new(Outbox { free, sequence, flying: Vec::new(), gateway_late: None }),
            pump: Mutex::new(HashMap::new()),
            pump_asked: AtomicBool::new(false),
            to_ring: Default::default(),
        })
    }

    /// Names the device that this transport serves, or what stands in front of it.
    pub fn attach(&self, device: Arc<dyn Station>) {
        let _ = self.device.set(Arc::downgrade(&device));
    }

    /// QP numbers of this process are this plus the handle.
    pub fn qpn_base(&self) -> u32 {
        (self.segment.index() as u32 + 1) << HANDLE_BITS
    }

    /// The shared file.
    pub fn segment(&self) -> &Segment {
        &self.segment
    }

    fn device(&self) -> Option<Arc<dyn Station>> {
        self.device.get()?.upgrade()
    }

    fn outbox(&self) -> MutexGuard<'_, Outbox> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a request's target is the gateway, and that has done nothing for a second, as if it was stopped. A slow
    /// responder is no lost one, but the gateway is none: it is the way to one, and here the way is cut.
    fn gateway_stands_still(&self, out: &mut Outbox, target: Process) -> bool {
        if self.segment.gateway() != Some(target) {
            return false;
        }
        let (rounds, now) = (self.segment.gateway_rounds(), Instant::now());
        match out.gateway_late {
            Some((before, since)) if before == rounds => now >= since + GATEWAY_PATIENCE,
            _ => {
                out.gateway_late = Some((rounds, now));
                false
            }
        }
    }

    /// The process that a request is for: its QP number names the region, its GID must be that guest's. `None` if it
    /// may not be reached this way.
    pub(crate) fn target(&self, dest: &Endpoint) -> Option<Process> {
        let process = self.segment.process(region_of(dest)?)?;
        self.segment.reaches(process, &dest.gid).then_some(process)
    }

    /// Who is not to reach a part of the others, and tries, is told once why nobody answers.
    fn say_what_is_left_out(&self, route: Route) {
        static SAID: [std::sync::atomic::AtomicBool; 2] = [const { std::sync::atomic::AtomicBool::new(false) }; 2];
        let paths = self.segment.paths();
        let (whom, path, may, said) = match route {
            Route::Here => ("this host", "memory", paths.memory(), &SAID[0]),
            Route::Host(_) => ("other hosts", "tcp", paths.tcp(), &SAID[1]),
            // A guest that may not use it has no address there, and is told so when it tries to have one.
            Route::Wire => return,
        };
        if !may && !said.swap(true, Ordering::Relaxed) {
            say(format_args!("guests of {whom} are reached by {path}, which --paths leaves out; nobody there answers"));
        }
    }

    /// A QP is its own peer. It may be meant so; or a program has exchanged an address with one of another host, which
    /// has the same address as long as hosts have no number.
    fn say_who_is_met(&self, peer: &Endpoint) {
        static SAID: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);
        let is_own = self.target(peer).is_some_and(|target| target.index == self.segment.index());
        if let Some(wire) =
            self.segment.wire().filter(|wire| is_own && wire.gid != peer.gid && self.segment.host() == 0)
            && !SAID.swap(true, Ordering::Relaxed)
        {
            let address = wire.address();
            say(format_args!("a QP is its own peer; guests of other hosts know this one as {address}, GID {WIRE_GID}"));
        }
    }

    /// Who uses an address by which the peer cannot answer is told so once.
    fn say_what_is_of_no_use(&self, source: &Gid, peer: &Gid) {
        static SAID: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);
        if Guest::of(peer).is_some() || SAID.load(Ordering::Relaxed) {
            return;
        }
        let (own, to, wire) = (address_of(source), address_of(peer), self.segment.wire());
        match wire {
            Some(wire) if wire.gid == *source => return,
            Some(wire) => {
                let here = wire.address();
                say(format_args!(
                    "{to} cannot answer to {own}: this host speaks RoCE at {here}, GID {WIRE_GID} of guests that start now"
                ));
            }
            None => say(format_args!("{to} is no guest's, and no `pvrdma link run --roce-wire` has a way to it")),
        }
        SAID.store(true, Ordering::Relaxed);
    }

    // ---- the initiator copies ------------------------------------------------------------------

    /// Carries a one-sided request out on the target's behalf if its published view says that it may be done.
    /// `None`: let the target judge. `rest`: bytes from its beginning to the end of its message, of which it may be a
    /// piece; all of them must be allowed.
    pub(crate) fn place(&self, request: &Request, target: Process, local: &[Span], rest: u64) -> Option<Answer> {
        let (addr, rkey, purpose, right) = match request.op {
            Op::Write { remote_addr, rkey, imm: None } => {
                (remote_addr, rkey, Use::RemoteWrite, PVRDMA_ACCESS_REMOTE_WRITE)
            }
            Op::Read { remote_addr, rkey } => (remote_addr, rkey, Use::RemoteRead, PVRDMA_ACCESS_REMOTE_READ),
            _ => return None,
        };
        // In order behind what is on its way: only when nothing is.
        if !request.alone {
            return None;
        }
        let region = self.segment.region(target.index)?;
        let hazard = Hazard::new(&self.segment, target)?;
        // From here to the end of the copy the target waits before it takes anything back, or we see that it has, or it
        // takes the hazard away. If it was killed, its pid may by now be a stranger's.
        if !self.segment.has_its_pid(target) {
            return None;
        }
        let qp = region.qps.get((request.dest.qpn.0 & ((1 << HANDLE_BITS) - 1)) as usize)?;
        if !region.has(qp) {
            return None;
        }
        let version = qp.version.load(Ordering::SeqCst);
        let peer_gid = to_words(&request.source.gid);
        let ready = version.is_multiple_of(2)
            && qp.qpn.load(Ordering::Relaxed) == request.dest.qpn.0
            && qp.placeable.load(Ordering::Relaxed) != 0
            && qp.access.load(Ordering::Relaxed) & right != 0
            && qp.peer_qpn.load(Ordering::Relaxed) == request.source.qpn.0
            && qp.peer_gid[0].load(Ordering::Relaxed) == peer_gid[0]
            && qp.peer_gid[1].load(Ordering::Relaxed) == peer_gid[1]
            && qp.expected_psn.load(Ordering::Acquire) == request.psn.get();
        let pd = PdHandle(qp.pd.load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        if !ready || qp.version.load(Ordering::SeqCst) != version {
            return None;
        }
        if request.len > 0 {
            let mr = region.mrs.get((rkey.0 >> 8) as usize).filter(|mr| region.has(*mr))?;
            if mr.key.load(Ordering::SeqCst) != rkey.0 || rkey.0 == 0 {
                return None;
            }
            let bounds = Bounds {
                pd: PdHandle(mr.pd.load(Ordering::Relaxed)),
                access: mr.access.load(Ordering::Relaxed) as u32,
                start: mr.start.load(Ordering::Relaxed),
                length: mr.length.load(Ordering::Relaxed),
            };
            fence(Ordering::Acquire);
            if mr.key.load(Ordering::SeqCst) != rkey.0 {
                return None;
            }
            bounds.check(pd, addr, rest.max(request.len), purpose)?;
            let remote = [Span { addr: DmaAddr(addr), len: request.len }];
            let direction = if purpose == Use::RemoteWrite { Direction::Write } else { Direction::Read };
            // A page that is gone: the target finds out whose, and says so.
            if copy_under(Some(&hazard), self.segment.reach(target), direction, local, &remote) != Copied::All {
                return None;
            }
        }
        // By now the QP may be another one's if the target did not wait for us.
        if !hazard.store(&qp.expected_psn, request.psn.advance(request.packets).get()) {
            return None;
        }
        // In the line of the PSN. The target counts nothing meanwhile: it would have to have had a request of this QP.
        qp.received.count(request.len, rest <= request.len);
        drop(hazard);
        if purpose == Use::RemoteWrite {
            region.bell.placed();
        }
        Some(Answer::Ack)
    }

    // ---- the target copies ---------------------------------------------------------------------

    /// Carries out a request to this very process.
    fn receive_here(&self, request: &Request, far: &dyn Far) -> Answer {
        self.device().map_or(Answer::Silence, |device| Responder::receive(&*device, request, far))
    }

    /// Puts a request into the inbox of `target`, and tells it.
    fn send(&self, token: Token, words: &[u64; REQUEST_WORDS], target: Process, body: Body<'_>) -> Submitted {
        let sent = self.post(token, words, target, body);
        if sent == Submitted::Pending
            && let Some(region) = self.segment.region(target.index)
        {
            region.bell.ring();
        }
        sent
    }

    /// Puts a request into the inbox of `target`, which looks for it when its bell is rung.
    pub(crate) fn post(
        &self,
        token: Token,
        words: &[u64; REQUEST_WORDS],
        target: Process,
        body: Body<'_>,
    ) -> Submitted {
        let Some(region) = self.segment.region(target.index) else { return Submitted::Busy };
        let own = self.segment.own();
        let mut out = self.outbox();
        let channel = &own.channels[target.index];
        // Nothing gets through then, and the requester's timer will tell its program.
        const NO_MEMORY: Submitted = Submitted::Answered(Answer::Silence);
        if !self.segment.reserve(channel) {
            return NO_MEMORY;
        }
        if channel.target.load(Ordering::Relaxed) != target.incarnation {
            channel.tail.store(0, Ordering::SeqCst);
            channel.target.store(target.incarnation, Ordering::SeqCst);
        }
        let head = region.heads[self.segment.index()].load(Ordering::Acquire);
        let head = if (head >> 32) as u32 == self.segment.incarnation() { head as u32 } else { 0 };
        let tail = channel.tail.load(Ordering::Relaxed);
        let fits = !matches!(body, Body::Spans(spans) if spans.len() > SLOT_SPANS);
        if tail.wrapping_sub(head) as usize >= CHANNEL_LEN || !fits {
            return Submitted::Busy;
        }
        // The slot of a datagram lasts as long as its target is stopped, so requests keep a part for themselves.
        if matches!(body, Body::Bytes(_)) && out.free.len() <= SLOTS / 4 {
            return Submitted::Busy;
        }
        let Some(slot_index) = out.free.pop() else { return Submitted::Busy };
        let slot = &own.slots[usize::from(slot_index)];
        let payload = &own.payloads[usize::from(slot_index)];
        if !self.segment.reserve(slot) || matches!(body, Body::Bytes(_)) && !self.segment.reserve(payload) {
            out.free.push(slot_index);
            // One that has memory comes free when an answer comes.
            return if out.flying.is_empty() { NO_MEMORY } else { Submitted::Busy };
        }
        out.sequence = out.sequence.wrapping_add(1) & SEQUENCE_MASK;
        let sequence = out.sequence;
        // A target that still looks at the former request finds that it is over if it finds a word of this one.
        fence(Ordering::Release);
        for (word, value) in slot.words.iter().zip(words) {
            word.store(*value, Ordering::Relaxed);
        }
        let datagram = match body {
            Body::Spans(spans) => {
                slot.span_cnt.store(spans.len() as u64, Ordering::Relaxed);
                for (at, span) in slot.spans.iter().zip(spans) {
                    at[0].store(span.addr.0, Ordering::Relaxed);
                    at[1].store(span.len, Ordering::Relaxed);
                }
                false
            }
            Body::Bytes(bytes) => {
                for (word, chunk) in payload.iter().zip(bytes.chunks(8)) {
                    let mut eight = [0; 8];
                    eight[..chunk.len()].copy_from_slice(chunk);
                    word.store(u64::from_ne_bytes(eight), Ordering::Relaxed);
                }
                true
            }
        };
        slot.word.store(sequence << 16 | slot_state::QUEUED, Ordering::Release);
        let cell = &channel.cells[tail as usize % CHANNEL_LEN];
        cell.store(sequence << 16 | u64::from(slot_index), Ordering::Relaxed);
        out.flying.push(Flying { slot: slot_index, sequence, token, target, datagram });
        // Release: cell and slot are written before the tail that shows them.
        channel.tail.store(tail.wrapping_add(1), Ordering::Release);
        drop(out);
        let own_index = self.segment.index();
        region.inbox[own_index / 64].fetch_or(1 << (own_index % 64), Ordering::SeqCst);
        Submitted::Pending
    }

    /// Carries out what is in the inbox and takes in what was answered. `false`: nothing was there, or another thread
    /// is at it, and will look once more for us.
    pub fn pump(&self) -> bool {
        self.device().is_some_and(|device| self.pump_for(&device))
    }

    /// The same for all that was sent by now, even if another thread is at it: it waits for that.
    pub fn take_in(&self) {
        let Some(device) = self.device() else { return };
        let Ok(mut readers) = self.pump.lock() else { return };
        self.pump_once(&device, &mut readers);
        drop(readers);
        // For those who found it taken meanwhile.
        self.pump();
    }

    /// [`HostTransport::pump`] for somebody.
    pub fn pump_for(&self, device: &dyn Inbound) -> bool {
        let mut moved = false;
        loop {
            // Asked before the lock is tried, cleared before its owner looks, looked at after it was given back:
            // whoever does not get the lock has either asked before that look, or is seen after it.
            //
            // Swaps, not stores: who clears it has seen what those published who had asked. The fences: either the lock
            // is found open, or its owner finds that somebody has asked.
            self.pump_asked.swap(true, Ordering::AcqRel);
            fence(Ordering::SeqCst);
            let Ok(mut readers) = self.pump.try_lock() else { return moved };
            self.pump_asked.swap(false, Ordering::AcqRel);
            moved |= self.pump_once(device, &mut readers);
            drop(readers);
            fence(Ordering::SeqCst);
            if !self.pump_asked.load(Ordering::Relaxed) {
                return moved;
            }
        }
    }

    fn pump_once(&self, device: &dyn Inbound, readers: &mut HashMap<usize, Reader>) -> bool {
        let own = self.segment.own();
        // First who has sent and how much, then what was answered, then those requests and no later ones: a request
        // may be the other program's reply to a message of ours, and the answer to that message was there before it.
        let mut senders = Vec::new();
        for (index, word) in own.inbox.iter().enumerate() {
            if word.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let mut bits = word.swap(0, Ordering::SeqCst);
            while bits != 0 {
                let sender = index * 64 + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                if let Some(process) = self.segment.last_process(sender)
                    && let Some(tail) = self.published(process)
                {
                    senders.push((process, tail));
                }
            }
        }
        let mut moved = false;
        for (token, answer) in self.collect() {
            moved = true;
            device.answered(token, answer);
        }
        for (process, tail) in senders {
            moved |= self.serve(device, readers, process, tail);
        }
        moved
    }

    /// How many cells `sender` has ever published for this process. `None`: its channel is for a former owner of our
    /// region, or its region has another owner by now. Who has something for us rings again.
    fn published(&self, sender: Process) -> Option<u32> {
        let channel = &self.segment.region(sender.index)?.channels[self.segment.index()];
        // In this order: a sender counts from 0 again before it says that the channel is for us, and a new owner of
        // the region says who it is before it clears the words of the former one.
        let ours = channel.target.load(Ordering::SeqCst) == self.segment.incarnation();
        let tail = channel.tail.load(Ordering::SeqCst);
        (ours && self.segment.last_process(sender.index) == Some(sender)).then_some(tail)
    }

    /// Carries out the requests of one process up to `tail`.
    fn serve(&self, device: &dyn Inbound, readers: &mut HashMap<usize, Reader>, process: Process, tail: u32) -> bool {
        let runs = self.segment.has_its_pid(process);
        let sender = process.index;
        let Some(region) = self.segment.region(sender) else { return false };
        let channel = &region.channels[self.segment.index()];
        let reader = readers.entry(sender).or_insert(Reader { incarnation: 0, count: 0 });
        if reader.incarnation != process.incarnation {
            *reader = Reader { incarnation: process.incarnation, count: 0 };
        }
        let mut moved = false;
        while channel.target.load(Ordering::SeqCst) == self.segment.incarnation()
            && (tail.wrapping_sub(reader.count) as i32) > 0
        {
            let cell = channel.cells[reader.count as usize % CHANNEL_LEN].load(Ordering::Relaxed);
            reader.count = reader.count.wrapping_add(1);
            let head = u64::from(process.incarnation) << 32 | u64::from(reader.count);
            self.segment.own().heads[sender].store(head, Ordering::Release);
            let (sequence, slot) = (cell >> 16, region.slots.get((cell & 0xffff) as usize));
            let Some(slot) = slot else { continue };
            let payload = &region.payloads[(cell & 0xffff) as usize];
            // Whoever takes a dead one's region over gives its pages back.
            if !(runs || region.has(slot) && region.has(payload)) {
                continue;
            }
            let queued = sequence << 16 | slot_state::QUEUED;
            let taken = sequence << 16 | slot_state::TAKEN;
            // Fails if its owner took it back.
            if slot.word.compare_exchange(queued, taken, Ordering::AcqRel, Ordering::Relaxed).is_err() {
                continue;
            }
            moved = true;
            if let Some(later) = device.deferred()
                && let Some(request) = self.take(process, (cell & 0xffff) as u16, taken)
            {
                let mut buffer = [0u8; DATAGRAM_MAX as usize];
                match datagram(&request.request, payload, &mut buffer) {
                    _ if !matches!(request.request.op, Op::Datagram { .. }) => later.take(request),
                    Some(bytes) => later.take_datagram(request, bytes),
                    None => self.give(&request, Answer::Silence),
                }
                continue;
            }
            let reply = Reply { word: &slot.word, taken, bell: &region.bell };
            let answer = self.carry_out(device, slot, payload, (process, runs), &reply);
            reply.give(answer);
        }
        moved
    }

    fn carry_out(
        &self,
        device: &dyn Inbound,
        slot: &Slot,
        payload: &SlotPayload,
        (process, runs): (Process, bool),
        reply: &Reply<'_>,
    ) -> Answer {
        let Some((carried, spans, count)) = read(slot, reply.taken) else { return Answer::Silence };
        if let Carried::Whole(request) = &carried
            && let Op::Datagram { .. } = request.op
        {
            let mut buffer = [0u8; DATAGRAM_MAX as usize];
            let Some(bytes) = datagram(request, payload, &mut buffer) else { return Answer::Silence };
            // The slot is free before the receiver can answer: a sender's slots last as long as its target is behind.
            if !reply.give(Answer::Ack) {
                return Answer::Silence;
            }
            return device.receive(request, &Payload(bytes));
        }
        // A datagram that was sent is on the wire, whatever became of its sender. What else a killed process still
        // wanted is left undone: its memory is gone, and its pid may be a stranger's.
        if !runs {
            return Answer::Silence;
        }
        let spans = &spans[..count];
        // In this order: whoever takes the request back either sees the hazard, or we see that it has.
        let leave = || {
            let hazard = Hazard::of_inbox(&self.segment, process);
            if slot.word.load(Ordering::SeqCst) == reply.taken { Ok(hazard) } else { Err(Gone) }
        };
        let memory = RemoteFar { pid: self.segment.reach(process), spans, leave: Some(&leave) };
        let far = Served { memory, reply };
        match &carried {
            Carried::Whole(request) => device.receive(request, &far),
            Carried::Segment(segment) => device.receive_segment(segment, &far),
        }
    }

    /// Takes the answered requests out of the flying ones.
    fn collect(&self) -> Vec<(Token, Answer)> {
        let mut out = self.outbox();
        let own = self.segment.own();
        let mut answers = Vec::new();
        let Outbox { free, flying, .. } = &mut *out;
        flying.retain(|flight| {
            let slot = &own.slots[usize::from(flight.slot)];
            let word = slot.word.load(Ordering::Acquire);
            if word >> 16 != flight.sequence || word & 15 != slot_state::DONE {
                return true;
            }
            if !flight.datagram {
                answers.push((flight.token, decode_answer(word >> 4 & 0xfff)));
            }
            slot.word.store(slot_state::FREE, Ordering::Relaxed);
            free.push(flight.slot);
            false
        });
        answers
    }
}

/// What a taken slot asks for, and the first so many of the spans, which hold as many bytes as it says.
pub(crate) fn read(slot: &Slot, taken: u64) -> Option<(Carried, [Span; SLOT_SPANS], usize)> {
    let words = std::array::from_fn(|n| slot.words[n].load(Ordering::Relaxed));
    let count = slot.span_cnt.load(Ordering::Relaxed) as usize;
    let mut spans = [Span::default(); SLOT_SPANS];
    for (span, [addr, len]) in spans.iter_mut().zip(&slot.spans).take(count) {
        *span = Span { addr: DmaAddr(addr.load(Ordering::Relaxed)), len: len.load(Ordering::Relaxed) };
    }
    fence(Ordering::Acquire);
    // Else it was taken back, and this is a mixture of it and the next one.
    if slot.word.load(Ordering::Relaxed) != taken {
        return None;
    }
    let carried = decode(&words)?;
    let len = match &carried {
        // Its payload lies in the slot.
        Carried::Whole(Request { op: Op::Datagram { .. }, .. }) => return Some((carried, spans, 0)),
        Carried::Whole(request) => request.len,
        Carried::Segment(segment) => segment.len,
    };
    let held = spans.get(..count)?.iter().try_fold(0u64, |sum, span| sum.checked_add(span.len));
    (held == Some(len)).then_some((carried, spans, count))
}

/// The payload of a datagram, out of its slot. What its sender says of its length may be anything.
fn datagram<'a>(request: &Request, payload: &SlotPayload, into: &'a mut [u8]) -> Option<&'a [u8]> {
    let bytes = usize::try_from(request.len).ok().and_then(|len| into.get_mut(..len))?;
    for (chunk, word) in bytes.chunks_mut(8).zip(payload) {
        chunk.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes()[..chunk.len()]);
    }
    // In this order: what is answered next fails if these bytes are those of a new owner of the region.
    fence(Ordering::Acquire);
    Some(bytes)
}

/// Puts an answer where its requester finds it. `false`: it was there already, or its requester has given up.
pub(crate) fn answer_slot(word: &AtomicU64, taken: u64, answer: Answer) -> bool {
    let done = taken & !0xffff | encode_answer(answer) << 4 | slot_state::DONE;
    word.compare_exchange(taken, done, Ordering::AcqRel, Ordering::Relaxed).is_ok()
}

/// Where the answer to a taken request goes, once.
struct Reply<'a> {
    word: &'a AtomicU64,
    taken: u64,
    bell: &'a Bell,
}

impl Reply<'_> {
    /// Answers, unless that was done; `false`: it was, or the owner of the slot has given up on us.
    fn give(&self, answer: Answer) -> bool {
        let given = answer_slot(self.word, self.taken, answer);
        if given {
            self.bell.ring();
        }
        given
    }
}

/// The requester of a request that is being carried out.
struct Served<'a> {
    memory: RemoteFar<'a>,
    reply: &'a Reply<'a>,
}

impl Far for Served<'_> {
    fn pull(&self, memory: &dyn Memory, into: &[Span]) -> Result<(), CopyFault> {
        self.memory.pull(memory, into)
    }

    fn pull_from(&self, skip: u64, memory: &dyn Memory, into: &[Span]) -> Result<(), CopyFault> {
        self.memory.pull_from(skip, memory, into)
    }

    fn push(&self, memory: &dyn Memory, from: &[Span]) -> Result<(), CopyFault> {
        self.memory.push(memory, from)
    }

    fn put(&self, bytes: &[u8]) -> Result<(), CopyFault> {
        self.memory.put(bytes)
    }

    fn acknowledge(&self) {
        self.reply.give(Answer::Ack);
    }
}

impl Transport for HostTransport {
    fn submit(&self, request: &Request, memory: &dyn Memory, local: &[Span]) -> Submitted {
        if let Op::Datagram { .. } = request.op {
            return self.send_datagram(request, memory, local);
        }
        let route = self.segment.route(&request.dest.gid);
        if route != Route::Here {
            // It answers when the other host has.
            return self.segment.carrier(route).map_or(Submitted::Answered(Answer::Silence), |gateway| {
                self.send(request.token, &encode(request), gateway, Body::Spans(local))
            });
        }
        let Some(target) = self.target(&request.dest) else {
            return Submitted::Answered(Answer::Silence);
        };
        if target.index == self.segment.index() {
            let far = RemoteFar { pid: self.segment.reach(target), spans: local, leave: None };
            let answer = self.receive_here(request, &far);
            return Submitted::Answered(answer);
        }
        match self.place(request, target, local, request.len) {
            Some(answer) => Submitted::Answered(answer),
            // Behind others it could only go the long way, and keep those after it from the short one.
            None if one_sided(&request.op) && !request.alone => Submitted::WhenAlone,
            None => self.send(request.token, &encode(request), target, Body::Spans(local)),
        }
    }

    fn cancel(&self, token: Token) {
        let mut out = self.outbox();
        let Some(at) = out.flying.iter().position(|flight| !flight.datagram && flight.token == token) else { return };
        let flight = out.flying.swap_remove(at);
        drop(out);
        let slot = &self.segment.own().slots[usize::from(flight.slot)];
        let queued = flight.sequence << 16 | slot_state::QUEUED;
        let taken = flight.sequence << 16 | slot_state::TAKEN;
        let back = flight.sequence << 16 | slot_state::FREE;
        if slot.word.compare_exchange(queued, back, Ordering::AcqRel, Ordering::Acquire).is_err()
            && slot.word.compare_exchange(taken, back, Ordering::SeqCst, Ordering::Acquire).is_ok()
        {
            // The target is at it: from here on it begins no copy for it.
            hazard::wait_for_inbox(&self.segment, flight.target);
        }
        self.outbox().free.push(flight.slot);
    }

    fn lost(&self, token: Token) -> bool {
        let mut out = self.outbox();
        let flight = out.flying.iter().find(|flight| !flight.datagram && flight.token == token).copied();
        let stands_still = flight.is_some_and(|flight| self.gateway_stands_still(&mut out, flight.target));
        drop(out);
        // No longer on its way: a thread has its answer in hands, and waits for the queue that our caller has locked.
        let Some(flight) = flight else { return false };
        // In this order: whoever is gone may have answered before, and nobody has taken that in yet.
        let slot = &self.segment.own().slots[usize::from(flight.slot)];
        let gone = stands_still || !self.segment.alive(flight.target);
        gone && slot.word.load(Ordering::Acquire) & 15 != slot_state::DONE
    }

    fn path(&self, source: &Gid, peer: &Endpoint) -> Path {
        self.say_what_is_of_no_use(source, &peer.gid);
        let path = self.segment.path(peer);
        self.say_what_is_left_out(self.segment.route(&peer.gid));
        // The gateway is there and does nothing.
        let late = || self.outbox().gateway_late.filter(|(rounds, _)| *rounds == self.segment.gateway_rounds());
        match path {
            Path::Tcp { .. } | Path::Hca { .. } | Path::Roce
                if late().is_some_and(|(_, since)| since.elapsed() >= GATEWAY_PATIENCE) =>
            {
                Path::None
            }
            path => path,
        }
    }

    fn figures(&self, qp: QpHandle) -> Option<Figures> {
        let own = self.segment.own();
        let (published, sent) = own.qps.get(qp.0 as usize).zip(own.sent.get(qp.0 as usize))?;
        if !self.segment.reserve(published) || !self.segment.reserve(sent) {
            return None;
        }
        published.received.clear();
        sent.clear();
        Some(Figures { sent, received: &published.received })
    }

    fn expected_psn(&self, qp: QpHandle) -> Option<&'static std::sync::atomic::AtomicU32> {
        let published = self.segment.own().qps.get(qp.0 as usize)?;
        self.segment.reserve(published).then_some(&published.expected_psn)
    }

    fn qp_changed(&self, view: &QpView) {
        if view.state == PVRDMA_QPS_RTR && view.peer.qpn == view.qpn {
            self.say_who_is_met(&view.peer);
        }
        let Some(qp) = self.segment.own().qps.get(view.handle.0 as usize) else { return };
        // Then its PSN is not here either, and nobody but us acts for it.
        if !self.segment.own().has(qp) {
            return;
        }
        // Odd while it changes: `place` turns away.
        qp.version.fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        qp.placeable.store(u32::from(view.placeable), Ordering::Relaxed);
        qp.qpn.store(if view.state == PVRDMA_QPS_RESET { 0 } else { view.qpn.0 }, Ordering::Relaxed);
        qp.what.store(what(view.kind, view.state, view.mtu), Ordering::Relaxed);
        qp.pd.store(view.pd.0, Ordering::Relaxed);
        qp.access.store(view.access, Ordering::Relaxed);
        qp.peer_qpn.store(view.peer.qpn.0, Ordering::Relaxed);
        for (word, value) in qp.peer_gid.iter().zip(to_words(&view.peer.gid)) {
            word.store(value, Ordering::Relaxed);
        }
        qp.version.fetch_add(1, Ordering::SeqCst);
        hazard::wait_for_all(&self.segment);
    }

    fn mr_added(&self, key: u32, bounds: &Bounds) {
        let Some(mr) = self.segment.own().mrs.get((key >> 8) as usize) else { return };
        if !self.segment.reserve(mr) {
            return;
        }
        mr.pd.store(bounds.pd.0, Ordering::Relaxed);
        mr.access.store(u64::from(bounds.access), Ordering::Relaxed);
        mr.start.store(bounds.start, Ordering::Relaxed);
        mr.length.store(bounds.length, Ordering::Relaxed);
        mr.key.store(key, Ordering::SeqCst);
    }

    fn mr_removed(&self, key: u32) {
        let Some(mr) = self.segment.own().mrs.get((key >> 8) as usize) else { return };
        if !self.segment.own().has(mr) {
            return;
        }
        mr.key.store(0, Ordering::SeqCst);
        hazard::wait_for_all(&self.segment);
    }
}

/// Whether the initiator could carry it out by itself.
fn one_sided(op: &Op) -> bool {
    matches!(op, Op::Write { imm: None, .. } | Op::Read { .. })
}
