//! One connection between two hosts, from its greeting to its end: bytes in, bytes out, a clock that is handed in.
//!
//! The caller owns the bearer. It hands in what arrived ([`Connection::receive`]) before it lets time pass
//! ([`Connection::poll`]), takes out what is to be sent ([`Connection::transmit`]) and hears what happened
//! ([`Connection::next_event`]). An error ends the connection: the caller calls [`Connection::close`] and closes the
//! bearer. Time is what has passed since any moment of the caller's choice.
//!
//! **What a request may end with.** With one answer, always: the peer's, or silence, when the peer is silent or the
//! connection ends. Both ends count requests in the same way: one that nobody waits for any more keeps its place until
//! its answer comes.
//!
//! **What is held.** Nothing of a payload: it is read from the caller when its turn has come ([`Source`]), and handed
//! to the caller where it was received. What the caller has not given back fills the window of the connection, and the
//! lane of its stream, and both are bounded ([`Limits`]). Control frames are not queued as bytes, but as what there is
//! to say; so a peer that reads nothing does not make this end grow.

mod adapter;
mod incoming;
mod outgoing;

use crate::event::{Arrival, Event, Hold, Receipt, ReplyKey, Source, Submitted, Token};
use crate::frame::{self, Answer, Bad, Datagram, Ends, FRAME, Frame, Gid, HEAD, Hello, Message, Reason, VERSION, Way};
use crate::lanes::{Intake, Lane, Ring, Turn};
use crate::limits::{Limits, Patience};
use adapter::Adapter;
use incoming::Incoming;
use outgoing::Outgoing;
use std::collections::{HashSet, VecDeque};
use std::time::Duration;

/// This end.
#[derive(Clone, Copy, Debug)]
pub struct Me {
    /// Number of the host.
    pub host: u16,
    /// Another one after each start.
    pub boot: [u8; 16],
    /// What each connection may hold.
    pub limits: Limits,
    /// How long it waits.
    pub patience: Patience,
}

/// Why a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum End {
    /// The other end broke the protocol.
    #[error("{0}")]
    Bad(#[from] Bad),
    /// It said nothing for too long.
    #[error("silent for too long")]
    Silent,
}

/// Figures of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Stats {
    pub bytes_out: u64,
    pub bytes_in: u64,
    pub requests: u64,
    pub silences: u64,
    /// Of the last ping.
    pub round_trip: Option<Duration>,
    /// What this end sends goes over its adapter.
    pub adapter: bool,
}

/// See the module text.
pub struct Connection {
    me: Me,
    epoch: u64,
    /// Whom the other end has proved to be, if it has.
    proved: Option<u16>,
    born: Duration,
    /// A greeting is to be sent. Who was called says nothing before it was greeted.
    greet: bool,
    peer: Option<Hello>,
    out: Outgoing,
    incoming: Incoming,
    ring: Ring,
    window_out: Lane,
    window_in: Intake,
    credit: bool,
    datagrams: VecDeque<(Datagram, Vec<u8>)>,
    datagram_bytes: usize,
    datagrams_in_ring: bool,
    datagrams_wanted: bool,
    announcements: VecDeque<(Gid, bool)>,
    /// Addresses that the other end has said are its own.
    theirs: HashSet<Gid>,
    heard: Duration,
    awaiting_since: Option<Duration>,
    silent: bool,
    ping_wanted: bool,
    /// A ping that has no answer yet: when it was decided on.
    pinged: Option<Duration>,
    last_ping: Duration,
    pong: Option<u64>,
    bye: Option<Reason>,
    adapter: Adapter,
    events: VecDeque<Event>,
    stats: Stats,
}

impl Connection {
    /// A connection that this end has dialed.
    pub fn dialed(me: &Me, epoch: u64, now: Duration, host: u16) -> Connection {
        Connection { greet: true, adapter: Adapter::new(true), ..Connection::new(me, epoch, now, Some(host)) }
    }

    /// A connection that somebody else has dialed.
    pub fn accepted(me: &Me, epoch: u64, now: Duration) -> Connection {
        Connection::new(me, epoch, now, None)
    }

    fn new(me: &Me, epoch: u64, now: Duration, proved: Option<u16>) -> Connection {
        debug_assert!(me.limits.are_sound());
        Connection {
            me: *me,
            epoch,
            proved,
            born: now,
            greet: false,
            peer: None,
            // Both are made anew when the other end's limits are known.
            out: Outgoing::new(epoch, me.limits),
            incoming: Incoming::new(epoch, me.limits),
            ring: Ring::new(),
            window_out: Lane::default(),
            window_in: Intake::default(),
            credit: false,
            datagrams: VecDeque::new(),
            datagram_bytes: 0,
            datagrams_in_ring: false,
            datagrams_wanted: false,
            announcements: VecDeque::new(),
            theirs: HashSet::new(),
            heard: now,
            awaiting_since: None,
            silent: false,
            ping_wanted: false,
            pinged: None,
            last_ping: now,
            pong: None,
            bye: None,
            adapter: Adapter::new(false),
            events: VecDeque::new(),
            stats: Stats::default(),
        }
    }

    /// The other end's certificate was for this host. Said before the first of its bytes is handed in.
    pub fn prove(&mut self, host: u16) {
        self.proved = Some(host);
    }

    /// Its number; tokens and keys of another one mean nothing here.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The other end, once it has greeted.
    pub fn peer(&self) -> Option<&Hello> {
        self.peer.as_ref()
    }

    /// Figures.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Requests without an answer.
    pub fn unanswered(&self) -> usize {
        self.out.unanswered()
    }

    // ---- what the caller does ------------------------------------------------------------------------------------

    /// Takes a request. Its payload is asked for when its turn has come, and until it is answered.
    pub fn submit(&mut self, now: Duration, ends: &Ends, message: &Message) -> Submitted {
        if self.peer.is_none() || self.silent {
            return Submitted::Silence;
        }
        let awaiting = self.awaiting().is_some();
        let submitted = self.out.submit(ends, message, &mut self.ring);
        if matches!(submitted, Submitted::Pending(_)) {
            self.stats.requests += 1;
            if !awaiting {
                self.awaiting_since = Some(now);
            }
        }
        submitted
    }

    /// Nobody waits for the answer any more: no payload is asked for, and no answer is told that is not among the
    /// events already.
    pub fn cancel(&mut self, token: Token) {
        self.out.cancel(token, &mut self.events);
    }

    /// Takes a datagram, which is sent or lost. `false`: no room; [`Event::RoomForAll`] follows.
    pub fn send_datagram(&mut self, datagram: &Datagram, payload: &[u8]) -> bool {
        let known = self.out.mine.contains(&datagram.ends.source_gid);
        if self.peer.is_none() || self.silent || !known || payload.len() > frame::DATAGRAM {
            return true;
        }
        // Each takes the room of a whole one, so that empty ones are bounded too.
        if self.datagram_bytes + frame::DATAGRAM > self.me.limits.datagrams {
            self.datagrams_wanted = true;
            return false;
        }
        self.datagram_bytes += frame::DATAGRAM;
        self.datagrams.push_back((*datagram, payload.to_vec()));
        self.datagrams_to_ring();
        true
    }

    fn datagrams_to_ring(&mut self) {
        if !self.datagrams.is_empty() && !std::mem::replace(&mut self.datagrams_in_ring, true) {
            self.ring.push_back(Turn::Datagrams);
        }
    }

    /// A segment was carried out (`Ack`), or was not. The last one's answer is the message's; any other answer than
    /// `Ack` is, at any segment.
    pub fn answer(&mut self, receipt: Receipt, answer: Answer) {
        if receipt.key.epoch == self.epoch {
            self.give_back(receipt.frame);
            self.incoming.answer(&receipt, answer, &mut self.events);
        }
    }

    /// What a READ or an atomic operation reads is to be had from [`Source::reply`], under the receipt's key, until
    /// [`Event::ReplyEnded`].
    pub fn reply(&mut self, receipt: Receipt) {
        if receipt.key.epoch == self.epoch {
            self.give_back(receipt.frame);
            self.incoming.reply(&receipt, &mut self.ring, &mut self.events);
        } else {
            self.events.push_back(Event::ReplyEnded(receipt.key));
        }
    }

    /// What was not there yet when it was asked for ([`Source::reply`]) is there now.
    pub fn more(&mut self, key: ReplyKey) {
        if key.epoch == self.epoch {
            self.incoming.more(key, &mut self.ring);
        }
    }

    /// Bytes that nobody answers are out of the way.
    pub fn release(&mut self, hold: Hold) {
        if hold.epoch == self.epoch {
            self.give_back(hold.frame);
            if let Some(stream) = hold.stream {
                self.out.release(stream, hold.payload);
            }
        }
    }

    fn give_back(&mut self, frame: u64) {
        self.credit |= self.window_in.done(frame, self.me.limits.window);
    }

    /// Says that this host has an address, or has it no longer.
    pub fn announce(&mut self, gid: &Gid, bound: bool) {
        let room = self.peer.is_none_or(|peer| self.out.mine.len() < usize::from(peer.gids));
        if self.out.mine.contains(gid) == bound || bound && !room {
            return;
        }
        if bound {
            self.out.mine.insert(*gid);
        } else {
            self.out.mine.remove(gid);
        }
        // What was not said yet and is no longer so is not said at all. What is gone is always said, and in its order:
        // the other end counts.
        let unsaid = self.announcements.iter().position(|waiting| !bound && *waiting == (*gid, true));
        match unsaid {
            Some(at) => drop(self.announcements.remove(at)),
            None => self.announcements.push_back((*gid, bound)),
        }
    }

    /// Whether this end may offer its adapter, or say why it does not.
    pub fn may_offer(&self) -> bool {
        self.peer.is_some_and(|peer| peer.adapters) && self.adapter.may_begin()
    }

    /// Offers this host's adapter, refuses, or has all that is made from now on go over it. `false`: it is not this
    /// end's turn, and nothing is said.
    pub fn say_of_adapter(&mut self, way: Way) -> bool {
        self.peer.is_some_and(|peer| peer.adapters) && self.adapter.say(way)
    }

    /// Whether the bytes that are received next come over the adapter, and whether those that [`Connection::transmit`]
    /// makes next go over it. Said anew after each call of it, and of [`Connection::receive`].
    pub fn over_adapter(&self) -> (bool, bool) {
        self.adapter.over()
    }

    /// Ends the connection in order: the other end takes in what has left by now, and nothing of what waits.
    pub fn say_bye(&mut self, reason: Reason) {
        self.bye.get_or_insert(reason);
    }

    /// The connection has ended: what waits is answered by silence, and who waits for room need not.
    pub fn close(&mut self) {
        if self.out.close(&mut self.events) || self.datagrams_wanted {
            self.events.push_back(Event::RoomForAll);
        }
        self.incoming.close(&mut self.events);
        self.ring.clear();
        self.datagrams.clear();
        self.peer = None;
        self.greet = false;
    }

    /// What happened.
    pub fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    // ---- time ----------------------------------------------------------------------------------------------------

    fn awaiting(&self) -> Option<Duration> {
        let asked = self.pinged.is_some() || self.out.unanswered() > 0;
        self.awaiting_since.filter(|_| asked).map(|since| since.max(self.heard))
    }

    /// Since when the other end's silence counts, when it has been awaited since `since`: not before it was asked. This
    /// host may have been stopped, and a peer that nobody asked has no reason to speak.
    fn asked(&self, since: Duration) -> Option<Duration> {
        self.pinged.map(|at| since.max(at.saturating_sub(self.me.patience.ping)))
    }

    /// Lets time pass. What has arrived by then was handed in before.
    pub fn poll(&mut self, now: Duration) -> Result<(), End> {
        let patience = self.me.patience;
        if self.peer.is_none() {
            return if now >= self.born + patience.greeting { Err(Bad::TooSlow.into()) } else { Ok(()) };
        }
        // Addresses that come and go, and a peer that does not want to hear of it.
        let untold = self.announcements.len() > 2 * usize::from(self.me.limits.gids);
        if untold || self.pinged.is_some_and(|at| now >= at + patience.pong) {
            return Err(End::Silent);
        }
        match self.awaiting() {
            Some(since) => {
                let due = self.last_ping.max(self.awaiting_since.unwrap_or(since)) + patience.ping;
                if self.pinged.is_none() && now >= due {
                    self.ping(now);
                }
                let asked = self.asked(since).unwrap_or(now);
                if now >= asked + patience.close {
                    return Err(End::Silent);
                }
                if now >= asked + patience.silence && !self.silent {
                    self.silent = true;
                    self.stats.silences += 1;
                    self.out.give_up_all(Answer::Silence, &mut self.events);
                }
            }
            None => {
                self.awaiting_since = None;
                if now >= self.heard + patience.idle {
                    self.awaiting_since = Some(now);
                    self.ping(now);
                }
            }
        }
        Ok(())
    }

    fn ping(&mut self, now: Duration) {
        self.ping_wanted = true;
        self.pinged = Some(now);
        self.last_ping = now;
    }

    /// When [`Connection::poll`] has something to do, at the latest.
    pub fn deadline(&self) -> Duration {
        let patience = &self.me.patience;
        if self.peer.is_none() {
            return self.born + patience.greeting;
        }
        let pong = self.pinged.map(|at| at + patience.pong);
        let next = match self.awaiting() {
            Some(since) => {
                let ping = self.last_ping.max(self.awaiting_since.unwrap_or(since)) + patience.ping;
                let patience = if self.silent { patience.close } else { patience.silence };
                self.asked(since).map_or(ping, |asked| asked + patience)
            }
            None => self.heard + patience.idle,
        };
        pong.map_or(next, |pong| pong.min(next))
    }

    // ---- what arrives --------------------------------------------------------------------------------------------

    /// Takes frames from the front of `bytes`, up to the first that brings something, and says how many bytes those
    /// were. Nothing was brought: there is no whole frame more, and the caller calls again when more bytes have come.
    /// It needs room for [`FRAME`] bytes.
    pub fn receive<'a>(&mut self, now: Duration, bytes: &'a [u8]) -> Result<(usize, Option<Arrival<'a>>), Bad> {
        let mut at = 0;
        if !bytes.is_empty() && self.peer.is_some() {
            self.heard = now;
            self.silent = false;
        }
        loop {
            // Before a greeting nothing else is even waited for.
            if self.peer.is_none() && bytes[at..].len() >= HEAD && bytes[at + 4] != 1 {
                return Err(Bad::Greeting);
            }
            let Some((frame, len)) = frame::decode(&bytes[at..])? else { return Ok((at, None)) };
            at += len;
            self.stats.bytes_in += len as u64;
            let changed = matches!(frame, Frame::Adapter(Way::Switch));
            if let Some(arrival) = self.take_in(now, frame, len as u64)? {
                return Ok((at, Some(arrival)));
            }
            // What is behind the change has come another way.
            if changed && at < bytes.len() {
                return Err(Bad::Adapter);
            }
        }
    }

    fn take_in<'a>(&mut self, now: Duration, frame: Frame<'a>, len: u64) -> Result<Option<Arrival<'a>>, Bad> {
        if let Frame::Hello(hello) = frame {
            return self.greeted(now, hello).map(|()| None);
        }
        if self.peer.is_none() {
            return Err(Bad::Greeting);
        }
        match frame {
            Frame::Hello(_) => {}
            Frame::Stream { stream, incarnation, ends } => {
                if !self.theirs.contains(&ends.source_gid) {
                    return Err(Bad::NotItsGid);
                }
                self.incoming.open(stream, incarnation, &ends)?;
            }
            Frame::Segment { stream, token, segment, payload } => {
                self.window_in.get(len, self.me.limits.window)?;
                let (ends, receipt, wanted) = self.incoming.segment(stream, token, &segment, len)?;
                if wanted {
                    return Ok(Some(Arrival::Segment { ends, segment, payload, receipt }));
                }
                self.answer(receipt, Answer::Silence);
            }
            Frame::Datagram { datagram, payload } => {
                self.window_in.get(len, self.me.limits.window)?;
                if !self.theirs.contains(&datagram.ends.source_gid) {
                    return Err(Bad::NotItsGid);
                }
                let hold = Hold { epoch: self.epoch, stream: None, frame: len, payload: 0 };
                return Ok(Some(Arrival::Datagram { datagram, payload, hold }));
            }
            Frame::Answer { token, answer } => self.out.answered(token, answer, &mut self.events)?,
            Frame::Data { token, offset, payload } => {
                self.window_in.get(len, self.me.limits.window)?;
                let (hold, wanted) = self.out.data(token, offset, len, payload.len() as u64)?;
                if wanted {
                    let token = Token { epoch: self.epoch, number: token };
                    return Ok(Some(Arrival::Data { token, offset, payload, hold }));
                }
                self.release(hold);
            }
            Frame::Cancel { token } => self.incoming.cancel(token, &mut self.events),
            Frame::Taken { stream, incarnation, back, bytes } => match back {
                true => self.incoming.taken(stream, incarnation, bytes, &mut self.ring)?,
                false => self.out.taken(stream, incarnation, bytes, &mut self.ring)?,
            },
            Frame::Credit { bytes } => {
                self.window_out.took(bytes)?;
                self.datagrams_to_ring();
            }
            Frame::Ping { stamp } => self.pong = Some(stamp),
            Frame::Pong { stamp } => {
                // One that was not asked for proves nothing, and harms nobody.
                if self.pinged.is_some_and(|at| at.as_nanos() as u64 == stamp) {
                    self.stats.round_trip = self.pinged.take().map(|at| now.saturating_sub(at));
                }
            }
            Frame::Gid { gid, bound } => {
                if bound && self.theirs.len() >= usize::from(self.me.limits.gids) {
                    return Err(Bad::TooMany);
                }
                let news = if bound { self.theirs.insert(gid) } else { self.theirs.remove(&gid) };
                if news {
                    self.events.push_back(Event::Gid(gid, bound));
                }
            }
            Frame::Bye(reason) => self.events.push_back(Event::Bye(reason)),
            Frame::Adapter(way) => self.events.extend(self.adapter.heard(way)?.map(Event::Adapter)),
        }
        Ok(None)
    }

    fn greeted(&mut self, now: Duration, hello: Hello) -> Result<(), Bad> {
        if self.peer.is_some() {
            return Err(Bad::Greeting);
        }
        if let Some(is) = self.proved.filter(|is| *is != hello.host) {
            return Err(Bad::Host { says: hello.host, is });
        }
        let ours = &self.me.limits;
        let both = Limits {
            lane: ours.lane.min(hello.lane),
            requests: ours.requests.min(hello.requests),
            streams: ours.streams.min(hello.streams),
            ..*ours
        };
        // Those whose number this end gives are bounded by both; what comes back is let in by what this end has said.
        let mine = std::mem::take(&mut self.out.mine);
        self.out = Outgoing::new(self.epoch, both);
        self.out.mine = mine;
        self.incoming = Incoming::new(self.epoch, Limits { lane: both.lane, ..*ours });
        let room = usize::from(hello.gids);
        if self.announcements.len() > room {
            for (gid, _) in self.announcements.drain(room..) {
                self.out.mine.remove(&gid);
            }
        }
        self.peer = Some(hello);
        // Who was called greets back.
        self.greet |= self.stats.bytes_out == 0;
        (self.heard, self.last_ping) = (now, now);
        self.events.push_back(Event::Up(hello));
        Ok(())
    }

    // ---- what leaves ---------------------------------------------------------------------------------------------

    /// Appends frames to `out` until it has `until` bytes or more, or there is nothing to send. It has at most one
    /// frame more than that. The bytes are sent, all of them and in order, before the next call's.
    pub fn transmit(&mut self, out: &mut Vec<u8>, until: usize, source: &mut dyn Source) {
        let before = out.len();
        self.fill(out, until, source);
        self.stats.bytes_out += (out.len() - before) as u64;
    }

    fn fill(&mut self, out: &mut Vec<u8>, until: usize, source: &mut dyn Source) {
        if std::mem::take(&mut self.greet) {
            let limits = &self.me.limits;
            let hello = Hello {
                versions: (VERSION, VERSION),
                host: self.me.host,
                boot: self.me.boot,
                window: limits.window,
                lane: limits.lane,
                requests: limits.requests,
                streams: limits.streams,
                gids: limits.gids,
                adapters: true,
            };
            Frame::Hello(hello).encode(out);
        }
        let Some(peer) = self.peer else { return };
        if let Some(way) = self.adapter.next() {
            Frame::Adapter(way).encode(out);
            if way == Way::Switch {
                self.stats.adapter = true;
                return;
            }
        }
        self.control(out, until);
        // A frame of any length must fit: which one comes next is the ring's choice.
        while out.len() < until && self.window_out.has_room(FRAME as u64, peer.window) {
            let Some(turn) = self.ring.pop_front() else { break };
            let bytes = match turn {
                // Credit puts it into the ring again.
                Turn::Datagrams if !self.window_out.has_room(FRAME as u64, Limits::of_datagrams(peer.window)) => {
                    self.datagrams_in_ring = false;
                    0
                }
                Turn::Requests(stream) => self.out.segment(stream, out, source, &mut self.ring, &mut self.events),
                Turn::Replies(stream) => self.incoming.data(stream, out, source, &mut self.ring, &mut self.events),
                Turn::Datagrams => self.datagram(out),
            };
            self.window_out.send(bytes);
            // Answers and cancellations of what was sent just now.
            self.control(out, until);
        }
    }

    fn control(&mut self, out: &mut Vec<u8>, until: usize) {
        if let Some(stamp) = self.pong.take() {
            Frame::Pong { stamp }.encode(out);
        }
        if std::mem::take(&mut self.ping_wanted)
            && let Some(at) = self.pinged
        {
            Frame::Ping { stamp: at.as_nanos() as u64 }.encode(out);
        }
        if std::mem::take(&mut self.credit) {
            Frame::Credit { bytes: self.window_in.report() }.encode(out);
        }
        while out.len() < until
            && let Some((gid, bound)) = self.announcements.pop_front()
        {
            Frame::Gid { gid, bound }.encode(out);
        }
        self.out.control(out, until);
        self.incoming.control(out, until);
        if out.len() < until
            && let Some(reason) = self.bye.take()
        {
            Frame::Bye(reason).encode(out);
        }
    }

    fn datagram(&mut self, out: &mut Vec<u8>) -> u64 {
        self.datagrams_in_ring = false;
        let Some((datagram, payload)) = self.datagrams.pop_front() else { return 0 };
        self.datagram_bytes -= frame::DATAGRAM;
        if std::mem::take(&mut self.datagrams_wanted) {
            self.events.push_back(Event::RoomForAll);
        }
        let start = out.len();
        // Its address may have been given away since.
        if self.out.mine.contains(&datagram.ends.source_gid) {
            Frame::Datagram { datagram, payload: &payload }.encode(out);
        }
        self.datagrams_to_ring();
        (out.len() - start) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_of_each_is_within_the_budget() {
        for of_a_request in [outgoing::OF_A_REQUEST, incoming::OF_A_REQUEST] {
            assert!(of_a_request <= Limits::OF_A_REQUEST, "{of_a_request}");
        }
        for of_a_stream in [outgoing::OF_A_STREAM, incoming::OF_A_STREAM] {
            assert!(of_a_stream <= Limits::OF_A_STREAM, "{of_a_stream}");
        }
        assert!(Limits::default().budget() < 88 << 20);
    }
}
