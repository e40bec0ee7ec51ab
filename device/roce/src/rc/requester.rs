//! The requester half of one QP on a wire: its device's requests go out as packets, and what comes back is told the
//! device as answers, one for each request.
//!
//! The device numbers packets, repeats requests that were not answered, and counts its tries; what this half adds is
//! what a packet needs: a window, and a way back to the first packet that was not acknowledged (`go_back`), sooner than
//! the device's own timer would.

use super::Connection;
use super::window::Window;
use crate::message;
use crate::packet::{Opcode, Packet, Syndrome, nak};
use pvrdma_device::handle::{Psn, Rkey};
use pvrdma_device::transport::{self, Answer, Nak, Op, Request, Token};
use std::collections::VecDeque;
use std::time::Duration;

/// How long to wait for something to come back; each time that nothing does twice as long.
const PATIENCE: Duration = Duration::from_millis(8);
/// So often it is sent again before the device hears that nobody answers. All of it takes less time than the timer of a
/// QP with `timeout` 14, which programs have, so that such a QP has as many tries of its own as it asks for.
const TRIES: u32 = 2;
/// So many packets that are done are known as such, at most: no QP has more on their way (IBA vol. 1, 9.7.2).
const KNOWN: u32 = 1 << 22;
/// Bytes of a READ that are asked for at a time, at most.
const READ: u64 = 64 << 10;
/// Bytes that a packet counts for at least, in the window and in a turn: without payload it is not nothing, and a peer
/// that misses one packet after the other would have as many sent again as there are.
const LEAST: u64 = 64;
/// Bytes that go out in one turn.
const TURN: usize = 64 << 10;

/// The requester's memory, by the names of its requests. A device has it; `transport::Requester` says what that may
/// lock.
pub trait Local {
    /// Copies a part of the payload of a request into `into`, from its byte `offset` on. False: the request is over,
    /// and its device knows.
    fn payload(&mut self, token: Token, offset: u64, into: &mut [u8]) -> bool;

    /// Takes in a part of what a request reads. False: as above.
    fn arrived(&mut self, token: Token, offset: u64, bytes: &[u8]) -> bool;
}

impl<D: transport::Requester + ?Sized> Local for &D {
    fn payload(&mut self, token: Token, offset: u64, into: &mut [u8]) -> bool {
        D::payload(self, token, offset, into)
    }

    fn arrived(&mut self, token: Token, offset: u64, bytes: &[u8]) -> bool {
        D::arrived(self, token, offset, bytes)
    }
}

/// A request of the device's.
#[derive(Debug)]
struct Asked {
    request: Request,
    /// Its first packets, which are acknowledged; of a READ those that have come.
    done: u32,
    /// Packets that have been sent since the last way back; of a READ those that have been asked for.
    sent: u32,
}

impl Asked {
    /// The first packet that is not done.
    fn next(&self) -> Psn {
        self.request.psn.advance(self.done)
    }

    fn end(&self) -> Psn {
        self.request.psn.advance(self.request.packets)
    }

    /// Data comes back: an ACK of something behind it says nothing of it.
    fn reads(&self) -> bool {
        self.request.op.reads()
    }

    /// Bytes of `packets` of its packets that the window counts.
    fn bytes(&self, packets: u32, mtu: u32) -> u64 {
        let each = if self.request.packets == 1 { self.request.len.max(LEAST) } else { u64::from(mtu) };
        u64::from(packets) * each
    }
}

/// See the module text.
#[derive(Debug)]
pub struct Requester {
    connection: Connection,
    /// Without an answer. PSNs go on from one to the next.
    asked: VecDeque<Asked>,
    /// Everything from here on has gone through this half: what was before it is not known.
    begin: Psn,
    /// Everything before it, from `begin` on, is acknowledged.
    done: Psn,
    /// Nothing from here on has ever been sent.
    fresh: Psn,
    /// A request has been seen, so these are known.
    begun: bool,
    /// The responder has answered to something that this half has sent since `begin`.
    heard: bool,
    window: Window,
    /// Sent or asked for since an acknowledgement was last wanted.
    unasked: u64,
    /// When something should have come back.
    deadline: Option<Duration>,
    tries: u32,
    /// Where it went back to last. It is gone back to once: who lacks a packet says so once for each that comes behind.
    went_back: Option<Psn>,
    answers: VecDeque<(Token, Answer)>,
    /// Payload on its way out.
    payload: Vec<u8>,
}

impl Requester {
    /// One that has nothing to do.
    pub fn new(connection: Connection) -> Requester {
        Requester {
            connection: connection.sound(),
            asked: VecDeque::new(),
            begin: Psn::default(),
            done: Psn::default(),
            fresh: Psn::default(),
            begun: false,
            heard: false,
            window: Window::new(connection.mtu),
            unasked: 0,
            deadline: None,
            tries: 0,
            went_back: None,
            answers: VecDeque::new(),
            payload: Vec::new(),
        }
    }

    // ---- the device's side ---------------------------------------------------------------------

    /// Takes a request over. It is answered later (`answer`), unless it is taken back (`cancel`).
    ///
    /// One that was taken back may come again, with the same PSN. It goes on where it was: what was acknowledged is not
    /// sent again, and what was read is not read again.
    pub fn submit(&mut self, request: &Request) {
        let whole = request.len.div_ceil(u64::from(self.connection.mtu)).max(1);
        if whole != u64::from(request.packets) || matches!(request.op, Op::Datagram { .. }) {
            // No device asks for this.
            self.answers.push_back((request.token, Answer::Nak(Nak::InvalidRequest)));
            return;
        }
        if !self.begun {
            self.begun = true;
            (self.begin, self.done, self.fresh) = (request.psn, request.psn, request.psn);
        }
        if let Some(last) = self.asked.back() {
            if last.end() != request.psn {
                // What is between was taken back, and so will this be.
                self.answers.push_back((request.token, Answer::Silence));
                return;
            }
            self.asked.push_back(Asked { request: *request, done: 0, sent: 0 });
            return;
        }
        let mut done = 0;
        if request.psn.since(self.begin) <= self.done.since(self.begin) {
            done = self.done.since(request.psn).min(request.packets);
        } else {
            // Another half has had it before this one was made, or will have what is missing before it: this one knows
            // nothing of either, so it begins anew.
            (self.begin, self.done, self.heard) = (request.psn, request.psn, false);
        }
        if done == request.packets {
            self.answers.push_back((request.token, Answer::Ack));
            return;
        }
        if self.done.ahead_of(self.fresh) {
            self.fresh = self.done;
        }
        self.asked.push_back(Asked { request: *request, done, sent: done });
    }

    /// The device takes a request back. Those behind it, which the device takes back too, end by silence.
    pub fn cancel(&mut self, token: Token) {
        let Some(at) = self.asked.iter().position(|asked| asked.request.token == token) else { return };
        self.end(at, None);
    }

    /// The next answer to a request.
    pub fn answer(&mut self) -> Option<(Token, Answer)> {
        self.answers.pop_front()
    }

    /// Requests that wait for an answer.
    pub fn len(&self) -> usize {
        self.asked.len()
    }

    /// Nothing waits for an answer.
    pub fn is_empty(&self) -> bool {
        self.asked.is_empty()
    }

    /// Request `at` ends, with this answer if its device waits for one, and those behind it by silence: nothing behind
    /// it may be carried out.
    fn end(&mut self, at: usize, answer: Option<Answer>) {
        let mut behind = self.asked.split_off(at);
        let Some(first) = behind.pop_front() else { return };
        self.answers.extend(answer.map(|answer| (first.request.token, answer)));
        self.answers.extend(behind.into_iter().map(|asked| (asked.request.token, Answer::Silence)));
        if at == 0 {
            // Both were for the sake of what has ended. If it comes again it has all its tries.
            (self.tries, self.went_back) = (0, None);
        }
        self.set_timer(None);
    }

    // ---- what goes out -------------------------------------------------------------------------

    /// Bytes on their way.
    fn flying(&self) -> u64 {
        let flying = self.asked.iter().map(|asked| asked.bytes(asked.sent - asked.done, self.connection.mtu));
        flying.sum()
    }

    fn is_flying(&self) -> bool {
        self.asked.iter().any(|asked| asked.sent > asked.done)
    }

    /// Sends what the window has room for, some 64 KiB at most. True: there is more.
    ///
    /// `local` is asked for payload.
    pub fn transmit(&mut self, now: Duration, local: &mut dyn Local, out: &mut dyn FnMut(&Packet<'_>)) -> bool {
        let mut turn = TURN;
        while turn > 0 {
            let Some(at) = self.asked.iter().position(|asked| asked.sent < asked.request.packets) else { break };
            let Some(packets) = self.room(at, turn) else { break };
            let last = at + 1 == self.asked.len();
            let asked = &mut self.asked[at];
            let sent = asked.sent;
            asked.sent += packets;
            let end = asked.request.psn.advance(asked.sent);
            if end.ahead_of(self.fresh) {
                self.fresh = end;
            }
            let bytes = asked.bytes(packets, self.connection.mtu) as usize;
            turn = turn.saturating_sub(bytes.max(LEAST as usize));
            let request = asked.request;
            match request.op {
                Op::Read { remote_addr, rkey } => {
                    let part = self.part_of_read(&request, (remote_addr, rkey), sent, packets);
                    out(&message::packet(&part, 0, &[]));
                }
                Op::Atomic { .. } => out(&message::packet(&request, 0, &[])),
                _ if !self.send_packets(at, (sent, packets), last, local, out) => {
                    self.cancel(request.token);
                    break;
                }
                _ => {}
            }
            if self.deadline.is_none() {
                self.set_timer(Some(now));
            }
        }
        turn == 0
    }

    /// How many packets of request `at` there is room for. `None`: for no more.
    fn room(&self, at: usize, turn: usize) -> Option<u32> {
        let asked = self.asked.get(at)?;
        let mtu = u64::from(self.connection.mtu);
        let left = asked.request.packets - asked.sent;
        let (flying, size) = (self.flying(), self.window.size());
        let idle = !self.is_flying();
        let fits = |bytes: u64| u32::try_from(bytes / mtu).unwrap_or(u32::MAX);
        let is_read = matches!(asked.request.op, Op::Read { .. });
        // A responder remembers as many READs as the QP may have on their way, so of each there is one piece at a time.
        if is_read && asked.sent > asked.done {
            return None;
        }
        let free = size.saturating_sub(flying);
        let packets = if asked.request.packets == 1 && asked.bytes(1, self.connection.mtu) <= free {
            1
        } else {
            fits(free).min(left)
        };
        if is_read {
            // What was asked for before, and may have been heard, is asked for again to the same end: Linux answers
            // only what lies within one READ that it knows.
            let next = asked.request.psn.advance(asked.sent);
            if self.fresh.ahead_of(next) {
                let again = self.fresh.since(next).min(left);
                return (idle || packets >= again).then_some(again);
            }
            // Nothing holds up a responder that answers, so it is asked for no more than may fly. A short piece costs a
            // round trip as a long one does.
            let packets = packets.min(fits(READ).max(1));
            return (packets > 0 && (idle || packets == left || packets >= fits(size / 4))).then_some(packets);
        }
        if packets == 0 {
            return idle.then_some(1);
        }
        Some(packets.min(fits(turn as u64).max(1)))
    }

    /// Some packets of a READ, as a READ of its own.
    fn part_of_read(&self, request: &Request, (remote_addr, rkey): (u64, Rkey), first: u32, packets: u32) -> Request {
        let mtu = u64::from(self.connection.mtu);
        let from = u64::from(first) * mtu;
        // Without length no key is looked at. Linux takes it for 0 then, and does not know a READ again that names one.
        let rkey = if request.len == 0 { Rkey(0) } else { rkey };
        Request {
            psn: request.psn.advance(first),
            packets,
            op: Op::Read { remote_addr: remote_addr.wrapping_add(from), rkey },
            len: (request.len - from).min(u64::from(packets) * mtu),
            ..*request
        }
    }

    /// Sends packets of a SEND or WRITE. False: its payload cannot be had, or nobody waits for it any more.
    fn send_packets(
        &mut self,
        at: usize,
        (first, count): (u32, u32),
        last: bool,
        local: &mut dyn Local,
        out: &mut dyn FnMut(&Packet<'_>),
    ) -> bool {
        let Some(Asked { request, .. }) = self.asked.get(at) else { return false };
        let (request, mtu) = (*request, u64::from(self.connection.mtu));
        let from = u64::from(first) * mtu;
        let len = (request.len - from).min(u64::from(count) * mtu);
        let mut payload = std::mem::take(&mut self.payload);
        payload.resize(len as usize, 0);
        let there = len == 0 || local.payload(request.token, from, &mut payload);
        if there {
            // Whoever has more to say than the window lets him needs to hear of some of it in between.
            let (quarter, closes) = (self.window.size() / 4, self.flying() + mtu > self.window.size());
            for n in 0..count {
                let begin = (u64::from(n) * mtu).min(len);
                let bytes = payload.get(begin as usize..(begin + mtu).min(len) as usize).unwrap_or_default();
                self.unasked += bytes.len() as u64;
                let mut packet = message::packet(&request, first + n, bytes);
                packet.bth.ack_req |= self.unasked >= quarter || n + 1 == count && (closes || last);
                if packet.bth.ack_req {
                    self.unasked = 0;
                }
                out(&packet);
            }
        }
        self.payload = payload;
        there
    }

    // ---- what comes back -----------------------------------------------------------------------

    /// Takes in a response. What was read goes to `local`.
    pub fn receive(&mut self, now: Duration, packet: &Packet<'_>, local: &mut dyn Local) {
        let psn = Psn::new(packet.bth.psn);
        // Of nothing that is on its way: late, or nonsense. But what this half has not sent yet, another one may have
        // sent before it, and the responder says how far it has come: to who has asked twice and heard nothing else.
        let Some(last) = self.asked.back() else { return };
        let is_heard = psn.since(self.done) < self.fresh.since(self.done);
        let is_before = || {
            let asks = !self.heard && self.tries > 0 && packet.bth.opcode == Opcode::Acknowledge;
            asks && psn.since(self.done) < last.end().since(self.done)
        };
        if !is_heard && !is_before() {
            return;
        }
        self.heard |= is_heard;
        match (packet.bth.opcode, packet.aeth.map(|aeth| aeth.syndrome)) {
            (Opcode::Acknowledge, Some(Syndrome::Ack(_))) => {
                let heard = self.acknowledge(now, psn.advance(1));
                if !heard {
                    self.go_back(now);
                }
            }
            (Opcode::Acknowledge, Some(Syndrome::Nak(nak::SEQUENCE_ERROR))) => {
                self.acknowledge(now, psn);
                self.go_back(now);
            }
            (Opcode::Acknowledge, Some(Syndrome::Rnr(code))) => self.refused(now, psn, Answer::RnrNak(code)),
            (Opcode::Acknowledge, Some(Syndrome::Nak(code))) => self.refused(now, psn, Answer::Nak(reason(code))),
            (Opcode::ReadFirst | Opcode::ReadMiddle | Opcode::ReadLast | Opcode::ReadOnly, _) => {
                self.read_data(now, psn, packet.payload, local);
            }
            (Opcode::AtomicAcknowledge, _) => {
                let Some(value) = packet.atomic_ack else { return };
                let is_atomic = |request: &Request| matches!(request.op, Op::Atomic { .. });
                if self.comes_next(now, psn, is_atomic) {
                    self.data(now, &value.to_ne_bytes(), local);
                }
            }
            _ => {}
        }
    }

    /// Everything before `end` is acknowledged. False: among it is what data should have come for, and did not.
    fn acknowledge(&mut self, now: Duration, end: Psn) -> bool {
        while let Some(oldest) = self.asked.front_mut() {
            if !end.ahead_of(oldest.next()) {
                break;
            }
            if oldest.reads() {
                return false;
            }
            let done = end.since(oldest.request.psn).min(oldest.request.packets);
            let more = done - std::mem::replace(&mut oldest.done, done);
            oldest.sent = oldest.sent.max(done);
            self.progress(now, more);
        }
        true
    }

    /// `packets` more of the oldest request are done. It ends if they are all.
    fn progress(&mut self, now: Duration, packets: u32) {
        let Some(oldest) = self.asked.front() else { return };
        self.done = oldest.next();
        if self.done.ahead_of(self.fresh) {
            self.fresh = self.done;
        }
        if self.done.since(self.begin) > KNOWN {
            self.begin = Psn::new(self.done.get().wrapping_sub(KNOWN));
        }
        self.window.acknowledged(oldest.bytes(packets, self.connection.mtu));
        if oldest.done == oldest.request.packets {
            self.answers.push_back((oldest.request.token, Answer::Ack));
            self.asked.pop_front();
        }
        self.tries = 0;
        self.set_timer(Some(now));
    }

    /// Whether `psn` is the packet of data that comes next, for a request of this kind. What is missing before it is
    /// asked for again.
    fn comes_next(&mut self, now: Duration, psn: Psn, kind: impl Fn(&Request) -> bool) -> bool {
        let holds = |asked: &&Asked| psn.since(asked.request.psn) < asked.request.packets;
        let Some(request) = self.asked.iter().find(holds).map(|asked| asked.request) else { return false };
        if !kind(&request) {
            return false;
        }
        // It was carried out behind everything before it.
        let next = self.acknowledge(now, request.psn) && self.asked.front().is_some_and(|oldest| oldest.next() == psn);
        if !next && psn.ahead_of(self.done) {
            self.go_back(now);
        }
        next
    }

    fn read_data(&mut self, now: Duration, psn: Psn, bytes: &[u8], local: &mut dyn Local) {
        if !self.comes_next(now, psn, |request| matches!(request.op, Op::Read { .. })) {
            return;
        }
        let Some(oldest) = self.asked.front() else { return };
        let mtu = u64::from(self.connection.mtu);
        let rest = oldest.request.len - u64::from(oldest.done) * mtu;
        if bytes.len() as u64 == rest.min(mtu) {
            self.data(now, bytes, local);
        }
    }

    /// The next packet of data for the oldest request.
    fn data(&mut self, now: Duration, bytes: &[u8], local: &mut dyn Local) {
        let Some(oldest) = self.asked.front_mut() else { return };
        let at = u64::from(oldest.done) * u64::from(self.connection.mtu);
        let token = oldest.request.token;
        if !bytes.is_empty() && !local.arrived(token, at, bytes) {
            self.cancel(token);
            return;
        }
        oldest.done += 1;
        oldest.sent = oldest.sent.max(oldest.done);
        self.progress(now, 1);
    }

    /// The request that `psn` is a packet of is answered so.
    fn refused(&mut self, now: Duration, psn: Psn, answer: Answer) {
        if self.acknowledge(now, psn) {
            self.end(0, Some(answer));
        } else {
            // First of all what data did not come for; then it is asked again.
            self.go_back(now);
        }
    }

    /// All that is not done is to be sent again.
    fn go_back(&mut self, now: Duration) {
        if self.went_back == Some(self.done) {
            return;
        }
        self.window.lost();
        self.rewind(now);
    }

    fn rewind(&mut self, now: Duration) {
        self.went_back = Some(self.done);
        self.asked.iter_mut().for_each(|asked| asked.sent = asked.done);
        self.unasked = 0;
        self.set_timer(Some(now));
    }

    // ---- time ----------------------------------------------------------------------------------

    /// When to call `expire`, if nothing happens before.
    pub fn deadline(&self) -> Option<Duration> {
        self.deadline
    }

    fn set_timer(&mut self, now: Option<Duration>) {
        let waits = self.is_flying();
        match now {
            Some(now) if waits => self.deadline = Some(now + PATIENCE * (1 << self.tries)),
            None if waits => {}
            _ => self.deadline = None,
        }
    }

    /// Sends again, or gives up, if nothing has come back in time.
    pub fn expire(&mut self, now: Duration) {
        if self.deadline.is_none_or(|deadline| now < deadline) {
            return;
        }
        self.deadline = None;
        if self.tries == TRIES {
            self.end(0, Some(Answer::Silence));
            return;
        }
        self.tries += 1;
        self.window.silent();
        self.rewind(now);
    }
}

/// Why a responder refuses, by the code of its NAK.
fn reason(code: u8) -> Nak {
    match code {
        nak::INVALID_REQUEST => Nak::InvalidRequest,
        nak::REMOTE_ACCESS => Nak::RemoteAccess,
        // The others are of services that there are none of here.
        _ => Nak::RemoteOperational,
    }
}
