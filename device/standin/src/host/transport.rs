//! The core's `Transport` over the fabric: requests into the target's inbox, or, for one-sided operations, the
//! initiator's own copy.

use super::bell::Bell;
use super::copy::{Direction, RemoteFar, copy};
use super::segment::*;
use pvrdma_device::device::Device;
use pvrdma_device::guest::{Guest, Roce};
use pvrdma_device::handle::{Gid, PdHandle, Psn, QpHandle, Qpn, Rkey};
use pvrdma_device::memory::{DmaAddr, Memory, Span};
use pvrdma_device::mr::{Bounds, Use};
use pvrdma_device::transport::*;
use pvrdma_ffi::dev_api::PVRDMA_QPS_RESET;
use pvrdma_ffi::uapi::vmw_pvrdma::{PVRDMA_ACCESS_REMOTE_READ, PVRDMA_ACCESS_REMOTE_WRITE};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

/// Low bits of a QP number: the handle. The rest is the region, counted from 1.
const HANDLE_BITS: u32 = 15;

/// See the module text.
pub struct HostTransport {
    segment: Segment,
    device: OnceLock<Weak<Device>>,
    out: Mutex<Outbox>,
    /// One thread empties the inbox at a time; what it remembers of the channels it reads.
    pump: Mutex<HashMap<usize, Reader>>,
}

/// Requests of this process that are on their way.
struct Outbox {
    free: Vec<u16>,
    sequence: u64,
    flying: Vec<Flying>,
}

#[derive(Clone, Copy)]
struct Flying {
    slot: u16,
    sequence: u64,
    token: Token,
    target: Process,
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
            out: Mutex::new(Outbox { free, sequence, flying: Vec::new() }),
            pump: Mutex::default(),
        })
    }

    /// Names the device that this transport serves.
    pub fn attach(&self, device: &Arc<Device>) {
        let _ = self.device.set(Arc::downgrade(device));
    }

    /// QP numbers of this process are this plus the handle.
    pub fn qpn_base(&self) -> u32 {
        (self.segment.index() as u32 + 1) << HANDLE_BITS
    }

    /// The shared file.
    pub fn segment(&self) -> &Segment {
        &self.segment
    }

    fn device(&self) -> Option<Arc<Device>> {
        self.device.get()?.upgrade()
    }

    fn outbox(&self) -> MutexGuard<'_, Outbox> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The process that a request is for: its QP number names the region, its GID must be that guest's.
    fn target(&self, dest: &Endpoint) -> Option<Process> {
        let index = (dest.qpn.0 >> HANDLE_BITS).checked_sub(1)? as usize;
        let process = self.segment.process(index)?;
        let guest = self.segment.region(index)?.guest.load(Ordering::Relaxed);
        let guest = Guest::new(u8::try_from(guest).ok()?, Roce::V2)?;
        guest.gids().any(|(_, gid)| gid == dest.gid).then_some(process)
    }

    // ---- the initiator copies ------------------------------------------------------------------

    /// Carries a one-sided request out on the target's behalf if its published view says that it may be done.
    /// `None`: let the target judge.
    fn place(&self, request: &Request, target: Process, local: &[Span]) -> Option<Answer> {
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
        let _hazard = Hazard::new(self.segment.own(), target)?;
        // From here to the end of the copy the target waits before it takes anything back, or we see that it has.
        if self.segment.process(target.index) != Some(target) {
            return None;
        }
        let qp = region.qps.get((request.dest.qpn.0 & ((1 << HANDLE_BITS) - 1)) as usize)?;
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
            let mr = region.mrs.get((rkey.0 >> 8) as usize)?;
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
            bounds.check(pd, addr, request.len, purpose)?;
            let remote = [Span { addr: DmaAddr(addr), len: request.len }];
            let direction = if purpose == Use::RemoteWrite { Direction::Write } else { Direction::Read };
            // A page that is gone: the target finds out whose, and says so.
            if !copy(target.pid, direction, local, &remote) {
                return None;
            }
        }
        qp.expected_psn.store(request.psn.advance(request.packets).get(), Ordering::Release);
        Some(Answer::Ack)
    }

    // ---- the target copies ---------------------------------------------------------------------

    /// Puts a request into the inbox of `target`.
    fn send(&self, request: &Request, target: Process, local: &[Span]) -> Submitted {
        let Some(region) = self.segment.region(target.index) else { return Submitted::Busy };
        let own = self.segment.own();
        let mut out = self.outbox();
        let channel = &own.channels[target.index];
        if channel.target.load(Ordering::Relaxed) != target.incarnation {
            channel.tail.store(0, Ordering::SeqCst);
            channel.target.store(target.incarnation, Ordering::SeqCst);
        }
        let head = region.heads[self.segment.index()].load(Ordering::Acquire);
        let head = if (head >> 32) as u32 == self.segment.incarnation() { head as u32 } else { 0 };
        let tail = channel.tail.load(Ordering::Relaxed);
        if tail.wrapping_sub(head) as usize >= CHANNEL_LEN || local.len() > SLOT_SPANS {
            return Submitted::Busy;
        }
        let Some(slot_index) = out.free.pop() else { return Submitted::Busy };
        out.sequence = out.sequence.wrapping_add(1) & SEQUENCE_MASK;
        let sequence = out.sequence;
        let slot = &own.slots[usize::from(slot_index)];
        for (word, value) in slot.words.iter().zip(encode(request)) {
            word.store(value, Ordering::Relaxed);
        }
        slot.span_cnt.store(local.len() as u64, Ordering::Relaxed);
        for (at, span) in slot.spans.iter().zip(local) {
            at[0].store(span.addr.0, Ordering::Relaxed);
            at[1].store(span.len, Ordering::Relaxed);
        }
        slot.word.store(sequence << 16 | slot_state::QUEUED, Ordering::Release);
        let cell = &channel.cells[tail as usize % CHANNEL_LEN];
        cell.store(sequence << 16 | u64::from(slot_index), Ordering::Relaxed);
        out.flying.push(Flying { slot: slot_index, sequence, token: request.token, target });
        // Release: cell and slot are written before the tail that shows them.
        channel.tail.store(tail.wrapping_add(1), Ordering::Release);
        drop(out);
        let own_index = self.segment.index();
        region.inbox[own_index / 64].fetch_or(1 << (own_index % 64), Ordering::SeqCst);
        region.bell.ring();
        Submitted::Pending
    }

    /// Carries out what is in the inbox and takes in what was answered. `false`: nothing was there, or another thread
    /// is at it.
    pub fn pump(&self) -> bool {
        let Ok(mut readers) = self.pump.try_lock() else { return false };
        let Some(device) = self.device() else { return false };
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
                if let Some(region) = self.segment.region(sender) {
                    senders.push((sender, region.channels[self.segment.index()].tail.load(Ordering::Acquire)));
                }
            }
        }
        let mut moved = false;
        for (token, answer) in self.collect() {
            moved = true;
            device.answered(token, answer);
        }
        for (sender, tail) in senders {
            moved |= self.serve(&device, &mut readers, sender, tail);
        }
        moved
    }

    /// Carries out the requests of one process up to `tail`.
    fn serve(&self, device: &Device, readers: &mut HashMap<usize, Reader>, sender: usize, tail: u32) -> bool {
        let Some(process) = self.segment.process(sender) else { return false };
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
            let queued = sequence << 16 | slot_state::QUEUED;
            let taken = sequence << 16 | slot_state::TAKEN;
            // Fails if its owner took it back.
            if slot.word.compare_exchange(queued, taken, Ordering::AcqRel, Ordering::Relaxed).is_err() {
                continue;
            }
            moved = true;
            let reply = Reply { word: &slot.word, taken, bell: &region.bell };
            let answer = self.carry_out(device, slot, process, &reply);
            reply.give(answer);
        }
        moved
    }

    fn carry_out(&self, device: &Device, slot: &Slot, process: Process, reply: &Reply<'_>) -> Answer {
        let words = std::array::from_fn(|n| slot.words[n].load(Ordering::Relaxed));
        let Some(request) = decode(&words) else { return Answer::Silence };
        let mut spans = [Span::default(); SLOT_SPANS];
        let count = slot.span_cnt.load(Ordering::Relaxed) as usize;
        let Some(spans) = spans.get_mut(..count) else { return Answer::Silence };
        for (span, at) in spans.iter_mut().zip(&slot.spans) {
            *span = Span { addr: DmaAddr(at[0].load(Ordering::Relaxed)), len: at[1].load(Ordering::Relaxed) };
        }
        if spans.iter().try_fold(0u64, |sum, span| sum.checked_add(span.len)) != Some(request.len) {
            return Answer::Silence;
        }
        device.receive(&request, &Served { memory: RemoteFar { pid: process.pid, spans }, reply })
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
            answers.push((flight.token, decode_answer(word >> 4 & 0xfff)));
            slot.word.store(slot_state::FREE, Ordering::Relaxed);
            free.push(flight.slot);
            false
        });
        answers
    }
}

/// Where the answer to a taken request goes, once.
struct Reply<'a> {
    word: &'a AtomicU64,
    taken: u64,
    bell: &'a Bell,
}

impl Reply<'_> {
    /// Answers, unless that was done; the owner of the slot may have given up on us.
    fn give(&self, answer: Answer) {
        let done = self.taken & !0xffff | encode_answer(answer) << 4 | slot_state::DONE;
        if self.word.compare_exchange(self.taken, done, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            self.bell.ring();
        }
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

    fn push(&self, memory: &dyn Memory, from: &[Span]) -> Result<(), CopyFault> {
        self.memory.push(memory, from)
    }

    fn acknowledge(&self) {
        self.reply.give(Answer::Ack);
    }
}

impl Transport for HostTransport {
    fn submit(&self, request: &Request, _memory: &dyn Memory, local: &[Span]) -> Submitted {
        let Some(target) = self.target(&request.dest) else {
            return Submitted::Answered(Answer::Silence);
        };
        if target.index == self.segment.index() {
            let far = RemoteFar { pid: target.pid, spans: local };
            let answer = self.device().map_or(Answer::Silence, |device| device.receive(request, &far));
            return Submitted::Answered(answer);
        }
        match self.place(request, target, local) {
            Some(answer) => Submitted::Answered(answer),
            // Behind others it could only go the long way, and keep those after it from the short one.
            None if one_sided(&request.op) && !request.alone => Submitted::WhenAlone,
            None => self.send(request, target, local),
        }
    }

    fn cancel(&self, token: Token) {
        let mut out = self.outbox();
        let Some(at) = out.flying.iter().position(|flight| flight.token == token) else { return };
        let flight = out.flying.swap_remove(at);
        drop(out);
        let slot = &self.segment.own().slots[usize::from(flight.slot)];
        let queued = flight.sequence << 16 | slot_state::QUEUED;
        let taken = flight.sequence << 16 | slot_state::TAKEN;
        if slot.word.compare_exchange(queued, slot_state::FREE, Ordering::AcqRel, Ordering::Acquire).is_err() {
            // The target is at it: wait for the end of the copy.
            let mut spins = 0u32;
            while slot.word.load(Ordering::Acquire) == taken {
                spins += 1;
                // SAFETY: no preconditions.
                unsafe { libc::sched_yield() };
                if spins.is_multiple_of(4096) && !self.segment.alive(flight.target) {
                    break;
                }
            }
            slot.word.store(slot_state::FREE, Ordering::Release);
        }
        self.outbox().free.push(flight.slot);
    }

    fn lost(&self, token: Token) -> bool {
        let flight = self.outbox().flying.iter().find(|flight| flight.token == token).copied();
        flight.is_none_or(|flight| !self.segment.alive(flight.target))
    }

    fn expected_psn(&self, qp: QpHandle) -> Option<&'static AtomicU32> {
        Some(&self.segment.own().qps.get(qp.0 as usize)?.expected_psn)
    }

    fn qp_changed(&self, view: &QpView) {
        let Some(qp) = self.segment.own().qps.get(view.handle.0 as usize) else { return };
        // Odd while it changes: `place` turns away.
        qp.version.fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        qp.placeable.store(u32::from(view.placeable), Ordering::Relaxed);
        qp.qpn.store(if view.state == PVRDMA_QPS_RESET { 0 } else { view.qpn.0 }, Ordering::Relaxed);
        qp.pd.store(view.pd.0, Ordering::Relaxed);
        qp.access.store(view.access, Ordering::Relaxed);
        qp.peer_qpn.store(view.peer.qpn.0, Ordering::Relaxed);
        for (word, value) in qp.peer_gid.iter().zip(to_words(&view.peer.gid)) {
            word.store(value, Ordering::Relaxed);
        }
        qp.version.fetch_add(1, Ordering::SeqCst);
        self.segment.wait_for_hazards();
    }

    fn mr_added(&self, key: u32, bounds: &Bounds) {
        let Some(mr) = self.segment.own().mrs.get((key >> 8) as usize) else { return };
        mr.pd.store(bounds.pd.0, Ordering::Relaxed);
        mr.access.store(u64::from(bounds.access), Ordering::Relaxed);
        mr.start.store(bounds.start, Ordering::Relaxed);
        mr.length.store(bounds.length, Ordering::Relaxed);
        mr.key.store(key, Ordering::SeqCst);
    }

    fn mr_removed(&self, key: u32) {
        let Some(mr) = self.segment.own().mrs.get((key >> 8) as usize) else { return };
        mr.key.store(0, Ordering::SeqCst);
        self.segment.wait_for_hazards();
    }
}

/// Whether the initiator could carry it out by itself.
fn one_sided(op: &Op) -> bool {
    matches!(op, Op::Write { imm: None, .. } | Op::Read { .. })
}

// ---- requests as words -------------------------------------------------------------------------

const SEQUENCE_MASK: u64 = (1 << 48) - 1;

fn to_words(gid: &Gid) -> [u64; 2] {
    let (high, low) = (gid.first_chunk::<8>(), gid.last_chunk::<8>());
    [high, low].map(|half| half.map_or(0, |half| u64::from_ne_bytes(*half)))
}

fn to_gid(words: [u64; 2]) -> Gid {
    let mut gid = [0; 16];
    gid[..8].copy_from_slice(&words[0].to_ne_bytes());
    gid[8..].copy_from_slice(&words[1].to_ne_bytes());
    gid
}

fn encode(request: &Request) -> [u64; 18] {
    let (kind, addr, rkey, imm) = match request.op {
        Op::Send { imm } => (0, 0, 0, imm),
        Op::Write { remote_addr, rkey, imm } => (1, remote_addr, rkey.0, imm),
        Op::Read { remote_addr, rkey } => (2, remote_addr, rkey.0, None),
    };
    let [source_high, source_low] = to_words(&request.source.gid);
    let [dest_high, dest_low] = to_words(&request.dest.gid);
    [
        u64::from(request.token.qp.0),
        u64::from(request.token.epoch),
        u64::from(request.token.psn.get()),
        source_high,
        source_low,
        u64::from(request.source.qpn.0),
        dest_high,
        dest_low,
        u64::from(request.dest.qpn.0),
        u64::from(request.psn.get()),
        u64::from(request.packets),
        kind,
        addr,
        u64::from(rkey),
        u64::from(imm.is_some()) << 32 | u64::from(imm.unwrap_or(0)),
        request.len,
        u64::from(request.solicited),
        u64::from(request.alone),
    ]
}

fn decode(words: &[u64; 18]) -> Option<Request> {
    let imm = (words[14] >> 32 != 0).then_some(words[14] as u32);
    let (remote_addr, rkey) = (words[12], Rkey(words[13] as u32));
    let op = match words[11] {
        0 => Op::Send { imm },
        1 => Op::Write { remote_addr, rkey, imm },
        2 => Op::Read { remote_addr, rkey },
        _ => return None,
    };
    Some(Request {
        token: Token { qp: QpHandle(words[0] as u32), epoch: words[1] as u32, psn: Psn::new(words[2] as u32) },
        source: Endpoint { gid: to_gid([words[3], words[4]]), qpn: Qpn(words[5] as u32) },
        dest: Endpoint { gid: to_gid([words[6], words[7]]), qpn: Qpn(words[8] as u32) },
        psn: Psn::new(words[9] as u32),
        packets: words[10] as u32,
        op,
        len: words[15],
        solicited: words[16] != 0,
        alone: words[17] != 0,
    })
}

fn encode_answer(answer: Answer) -> u64 {
    match answer {
        Answer::Ack => 1,
        Answer::RnrNak(code) => 0x100 | u64::from(code & 31),
        Answer::Nak(Nak::SequenceError) => 2,
        Answer::Nak(Nak::InvalidRequest) => 3,
        Answer::Nak(Nak::RemoteAccess) => 4,
        Answer::Nak(Nak::RemoteOperational) => 5,
        Answer::RequesterFault => 6,
        Answer::Silence => 0,
    }
}

fn decode_answer(word: u64) -> Answer {
    match word {
        1 => Answer::Ack,
        2 => Answer::Nak(Nak::SequenceError),
        3 => Answer::Nak(Nak::InvalidRequest),
        4 => Answer::Nak(Nak::RemoteAccess),
        5 => Answer::Nak(Nak::RemoteOperational),
        6 => Answer::RequesterFault,
        rnr if rnr & 0x100 != 0 => Answer::RnrNak(rnr as u8 & 31),
        _ => Answer::Silence,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_answers_survive_the_trip() {
        for op in [
            Op::Send { imm: None },
            Op::Send { imm: Some(u32::MAX) },
            Op::Write { remote_addr: u64::MAX, rkey: Rkey(0x1234_5601), imm: Some(0) },
            Op::Read { remote_addr: 7, rkey: Rkey(u32::MAX) },
        ] {
            let request = Request {
                token: Token { qp: QpHandle(5), epoch: 9, psn: Psn::new(0x00ff_ffff) },
                source: Endpoint { gid: std::array::from_fn(|n| n as u8), qpn: Qpn(0x8002) },
                dest: Endpoint { gid: [0xfe; 16], qpn: Qpn(0x00ff_8003) },
                psn: Psn::new(77),
                packets: 3,
                op,
                len: 1 << 30,
                solicited: true,
                alone: false,
            };
            assert_eq!(decode(&encode(&request)), Some(request));
        }
        for answer in [
            Answer::Ack,
            Answer::RnrNak(31),
            Answer::RnrNak(0),
            Answer::Nak(Nak::SequenceError),
            Answer::Nak(Nak::InvalidRequest),
            Answer::Nak(Nak::RemoteAccess),
            Answer::Nak(Nak::RemoteOperational),
            Answer::RequesterFault,
            Answer::Silence,
        ] {
            assert_eq!(decode_answer(encode_answer(answer)), answer);
        }
    }
}
