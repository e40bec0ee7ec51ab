//! What this end asks of the other one: streams, and requests without an answer.
//!
//! A request that nobody waits for any more keeps its place until it is answered: so both ends count the same.

use crate::event::{Event, Hold, Source, Submitted, Token};
use crate::frame::{Answer, Bad, Ends, Frame, Gid, HEAD, Message, SEGMENT, Segment, begin_segment};
use crate::lanes::{Intake, Lane, Ring, Turn};
use crate::limits::Limits;
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};

struct Stream {
    ends: Ends,
    incarnation: u32,
    /// The other end knows it.
    open: bool,
    /// Requests that have not gone out wholly, in order.
    unsent: VecDeque<u32>,
    /// All requests without an answer.
    unanswered: u32,
    lane: Lane,
    /// Of the data that comes back.
    back: Intake,
    in_ring: bool,
    in_reports: bool,
    /// Somebody was told that it is busy.
    wanted: bool,
    /// When it was last used, as a count.
    used: u64,
}

struct Request {
    stream: u16,
    message: Message,
    /// Bytes that have gone out.
    offset: u64,
    /// Something has gone out; all has.
    begun: bool,
    sent: bool,
    /// Bytes that have come back.
    arrived: u64,
    /// Its owner has had an answer.
    given_up: bool,
}

/// Bytes that are kept of a request at most, and of a stream: entries of tables that have just grown, and queues.
#[cfg(test)]
pub const OF_A_REQUEST: usize = size_of::<(u32, Request)>() * 16 / 7 + 4 * size_of::<u32>();
#[cfg(test)]
pub const OF_A_STREAM: usize =
    2 * size_of::<Stream>() + size_of::<(Ends, u16)>() * 16 / 7 + 4 * size_of::<(u64, u16)>();

pub struct Outgoing {
    epoch: u64,
    limits: Limits,
    streams: Vec<Stream>,
    by_ends: HashMap<Ends, u16>,
    /// Streams without requests, the one that was used longest ago first.
    idle: BTreeSet<(u64, u16)>,
    clock: u64,
    requests: HashMap<u32, Request>,
    next_token: u32,
    cancels: VecDeque<u32>,
    /// Streams whose `back` the other end should hear of.
    reports: VecDeque<u16>,
    /// Somebody was told that there is no room at all.
    wanted: bool,
    /// Addresses that the other end knows to be of this one.
    pub mine: HashSet<Gid>,
}

impl Outgoing {
    /// `limits` are the smaller ones of both ends.
    pub fn new(epoch: u64, limits: Limits) -> Outgoing {
        Outgoing {
            epoch,
            limits,
            streams: Vec::new(),
            by_ends: HashMap::new(),
            idle: BTreeSet::new(),
            clock: 0,
            requests: HashMap::new(),
            next_token: 0,
            cancels: VecDeque::new(),
            reports: VecDeque::new(),
            wanted: false,
            mine: HashSet::new(),
        }
    }

    /// Requests without an answer.
    pub fn unanswered(&self) -> usize {
        self.requests.len()
    }

    fn token(&self, number: u32) -> Token {
        Token { epoch: self.epoch, number }
    }

    // ---- what the caller does ------------------------------------------------------------------------------------

    pub fn submit(&mut self, ends: &Ends, message: &Message, ring: &mut Ring) -> Submitted {
        if !message.is_sound() || !self.mine.contains(&ends.source_gid) {
            return Submitted::Silence;
        }
        if self.requests.len() >= self.limits.requests as usize {
            self.wanted = true;
            return Submitted::Busy;
        }
        let Some(index) = self.stream(ends) else {
            self.wanted = true;
            return Submitted::Busy;
        };
        let stream = &mut self.streams[usize::from(index)];
        if stream.unanswered >= self.limits.per_stream {
            stream.wanted = true;
            return Submitted::Busy;
        }
        while self.requests.contains_key(&self.next_token) {
            self.next_token = self.next_token.wrapping_add(1);
        }
        let number = self.next_token;
        self.next_token = self.next_token.wrapping_add(1);
        self.idle.remove(&(stream.used, index));
        stream.unanswered += 1;
        stream.unsent.push_back(number);
        if !stream.in_ring {
            stream.in_ring = true;
            ring.push_back(Turn::Requests(index));
        }
        let request = Request {
            stream: index,
            message: *message,
            offset: 0,
            begun: false,
            sent: false,
            arrived: 0,
            given_up: false,
        };
        self.requests.insert(number, request);
        Submitted::Pending(self.token(number))
    }

    /// The number of a stream with these ends. One that has nothing to do gives its number to another.
    fn stream(&mut self, ends: &Ends) -> Option<u16> {
        if let Some(index) = self.by_ends.get(ends) {
            return Some(*index);
        }
        let fresh = |incarnation, used| Stream {
            ends: *ends,
            incarnation,
            open: false,
            unsent: VecDeque::new(),
            unanswered: 0,
            lane: Lane::default(),
            back: Intake::default(),
            in_ring: false,
            in_reports: false,
            wanted: false,
            used,
        };
        let index = if self.streams.len() < usize::from(self.limits.streams) {
            self.streams.push(fresh(0, 0));
            (self.streams.len() - 1) as u16
        } else {
            let (_, index) = self.idle.pop_first()?;
            let stream = &mut self.streams[usize::from(index)];
            self.by_ends.remove(&stream.ends);
            // It may still stand in the ring and among the reports, where nothing is found for it.
            let (in_ring, in_reports) = (stream.in_ring, stream.in_reports);
            *stream = fresh(stream.incarnation.wrapping_add(1), self.clock);
            (stream.in_ring, stream.in_reports) = (in_ring, in_reports);
            index
        };
        self.by_ends.insert(*ends, index);
        Some(index)
    }

    /// Nobody waits for the answer any more.
    pub fn cancel(&mut self, token: Token, events: &mut VecDeque<Event>) {
        if token.epoch == self.epoch {
            self.give_up(token.number, events);
        }
    }

    /// Each request that somebody waits for is answered so.
    pub fn give_up_all(&mut self, answer: Answer, events: &mut VecDeque<Event>) {
        let mut waiting: Vec<u32> =
            self.requests.iter().filter(|(_, request)| !request.given_up).map(|(number, _)| *number).collect();
        // In the order in which they were submitted, but for where the numbers begin anew.
        waiting.sort_unstable();
        for number in waiting {
            events.push_back(Event::Answered(self.token(number), answer));
            self.give_up(number, events);
        }
    }

    /// Whether anybody was told that there is no room, and waits to hear more.
    pub fn close(&mut self, events: &mut VecDeque<Event>) -> bool {
        self.give_up_all(Answer::Silence, events);
        self.wanted || self.streams.iter().any(|stream| stream.wanted)
    }

    fn give_up(&mut self, number: u32, events: &mut VecDeque<Event>) {
        let Some(request) = self.requests.get_mut(&number) else { return };
        if request.given_up {
            return;
        }
        request.given_up = true;
        match (request.begun, request.sent) {
            (true, true) => self.cancels.push_back(number),
            (true, false) => self.break_off(number),
            (false, _) => {
                self.break_off(number);
                self.remove(number, events);
            }
        }
    }

    /// Sends no more of a message that has not gone out wholly.
    fn break_off(&mut self, number: u32) {
        let Some(request) = self.requests.get(&number).filter(|request| !request.sent) else { return };
        self.streams[usize::from(request.stream)].unsent.retain(|unsent| *unsent != number);
        if request.begun {
            self.cancels.push_back(number);
        }
    }

    fn remove(&mut self, number: u32, events: &mut VecDeque<Event>) {
        let Some(request) = self.requests.remove(&number) else { return };
        let stream = &mut self.streams[usize::from(request.stream)];
        stream.unanswered -= 1;
        if std::mem::take(&mut stream.wanted) {
            events.push_back(Event::Room(stream.ends));
        }
        if stream.unanswered == 0 {
            self.clock += 1;
            stream.used = self.clock;
            self.idle.insert((stream.used, request.stream));
        }
        if std::mem::take(&mut self.wanted) {
            events.push_back(Event::RoomForAll);
        }
    }

    // ---- what arrives --------------------------------------------------------------------------------------------

    pub fn answered(&mut self, number: u32, answer: Answer, events: &mut VecDeque<Event>) -> Result<(), Bad> {
        let request = self.requests.get(&number).ok_or(Bad::Token(number))?;
        let whole = !request.message.op.reads() || request.arrived == request.message.len;
        // What has not gone out is not answered, and nothing is done before all of it was there.
        if !request.begun || answer == Answer::Ack && !request.given_up && !(request.sent && whole) {
            return Err(Bad::Token(number));
        }
        if !request.given_up {
            events.push_back(Event::Answered(self.token(number), answer));
            self.break_off(number);
        }
        self.remove(number, events);
        Ok(())
    }

    /// Data of a request: the bytes for the caller, if somebody waits for them.
    pub fn data(&mut self, number: u32, offset: u64, frame: u64, payload: u64) -> Result<(Hold, bool), Bad> {
        let request = self.requests.get_mut(&number).ok_or(Bad::Token(number))?;
        if !request.message.op.reads() || !request.sent {
            return Err(Bad::Token(number));
        }
        if offset != request.arrived || payload > request.message.len - offset {
            return Err(Bad::Order);
        }
        request.arrived += payload;
        let stream = &mut self.streams[usize::from(request.stream)];
        stream.back.get(payload, self.limits.lane)?;
        let hold = Hold { epoch: self.epoch, stream: Some((request.stream, stream.incarnation)), frame, payload };
        Ok((hold, !request.given_up))
    }

    /// Data is out of the way.
    pub fn release(&mut self, stream: (u16, u32), payload: u64) {
        let (index, incarnation) = stream;
        let Some(stream) = self.streams.get_mut(usize::from(index)) else { return };
        if stream.incarnation == incarnation && stream.back.done(payload, self.limits.lane) && !stream.in_reports {
            stream.in_reports = true;
            self.reports.push_back(index);
        }
    }

    /// The other end has taken in bytes of a stream.
    pub fn taken(&mut self, index: u16, incarnation: u32, bytes: u64, ring: &mut Ring) -> Result<(), Bad> {
        let stream = self.streams.get_mut(usize::from(index)).ok_or(Bad::Stream(index))?;
        if stream.incarnation != incarnation {
            return Ok(());
        }
        stream.lane.took(bytes)?;
        if !stream.unsent.is_empty() && !stream.in_ring {
            stream.in_ring = true;
            ring.push_back(Turn::Requests(index));
        }
        Ok(())
    }

    // ---- what leaves ---------------------------------------------------------------------------------------------

    /// Small frames that go before all others.
    pub fn control(&mut self, out: &mut Vec<u8>, until: usize) {
        while out.len() < until
            && let Some(token) = self.cancels.pop_front()
        {
            Frame::Cancel { token }.encode(out);
        }
        while out.len() < until
            && let Some(index) = self.reports.pop_front()
        {
            let stream = &mut self.streams[usize::from(index)];
            stream.in_reports = false;
            let (incarnation, bytes) = (stream.incarnation, stream.back.report());
            // One that has a new name by now is not known by it yet.
            if stream.open {
                Frame::Taken { stream: index, incarnation, back: true, bytes }.encode(out);
            }
        }
    }

    /// The next segment of a stream. Bytes of its frame; 0 if there is none.
    pub fn segment(
        &mut self,
        index: u16,
        out: &mut Vec<u8>,
        source: &mut dyn Source,
        ring: &mut Ring,
        events: &mut VecDeque<Event>,
    ) -> u64 {
        let epoch = self.epoch;
        let stream = &mut self.streams[usize::from(index)];
        stream.in_ring = false;
        let Some(number) = stream.unsent.front().copied() else { return 0 };
        if !stream.open && !self.mine.contains(&stream.ends.source_gid) {
            // The address was given away between submission and now: nobody speaks for it here.
            for number in std::mem::take(&mut stream.unsent) {
                events.push_back(Event::Answered(Token { epoch, number }, Answer::Silence));
                self.give_up(number, events);
            }
            return 0;
        }
        let request = self.requests.get_mut(&number).expect("what is unsent is not answered");
        let message = request.message;
        let len = if message.op.reads() { 0 } else { (message.len - request.offset).min(SEGMENT as u64) };
        if !stream.lane.has_room(len, self.limits.lane) {
            // `taken` puts it into the ring again.
            return 0;
        }
        if !stream.open {
            stream.open = true;
            Frame::Stream { stream: index, incarnation: stream.incarnation, ends: stream.ends }.encode(out);
        }
        let segment = Segment { message, offset: request.offset, len: len as u32 };
        let start = out.len();
        begin_segment(out, index, number, &segment);
        let at = out.len();
        out.resize(at + len as usize, 0);
        let mut frame = 0;
        if len > 0 && !source.payload(Token { epoch, number }, segment.offset, &mut out[at..]) {
            out.truncate(start);
            events.push_back(Event::Answered(Token { epoch, number }, Answer::RequesterFault));
            self.give_up(number, events);
        } else {
            request.begun = true;
            request.offset += len;
            stream.lane.send(len);
            if segment.last() {
                request.sent = true;
                stream.unsent.pop_front();
            }
            frame = (out.len() - start) as u64;
            debug_assert!(frame >= HEAD as u64);
        }
        let stream = &mut self.streams[usize::from(index)];
        if !stream.unsent.is_empty() {
            stream.in_ring = true;
            ring.push_back(Turn::Requests(index));
        }
        frame
    }
}
