//! What the other end asks of this one: its streams, and requests that it has no answer to yet.

use crate::event::{Event, Receipt, ReplyKey, Source};
use crate::frame::{Answer, Bad, Ends, Frame, Message, SEGMENT, Segment, begin_data};
use crate::lanes::{Intake, Lane, Ring, Turn};
use crate::limits::Limits;
use std::collections::{HashMap, VecDeque};

struct Stream {
    ends: Ends,
    incarnation: u32,
    /// How many streams were opened before, by this end's count.
    opened: u64,
    intake: Intake,
    /// The message whose last segment has not come.
    current: Option<u32>,
    /// Requests in the table.
    requests: u32,
    /// Requests whose data is being sent, in order.
    replies: VecDeque<u32>,
    /// Of that data.
    lane: Lane,
    in_ring: bool,
    in_reports: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answered {
    No,
    /// It waits for its turn.
    Waits(Answer),
    /// It has gone out.
    Gone,
}

struct Request {
    serial: u64,
    stream: u16,
    message: Message,
    /// Where the next segment begins.
    next: u64,
    /// No more segments come.
    ended: bool,
    /// Segments in the caller's hands.
    held: u32,
    /// The last of them was carried out.
    done: bool,
    answered: Answered,
    /// Bytes that have gone back, of a reply.
    reply: Option<u64>,
}

/// Bytes that are kept of a request at most, and of a stream: entries of tables that have just grown, and queues.
#[cfg(test)]
pub const OF_A_REQUEST: usize = size_of::<(u32, Request)>() * 16 / 7 + 4 * size_of::<u32>();
#[cfg(test)]
pub const OF_A_STREAM: usize = 2 * size_of::<Option<Stream>>() + 2 * size_of::<u16>();

pub struct Incoming {
    epoch: u64,
    limits: Limits,
    /// By the number that the other end gives them; looked up, never counted on.
    streams: Vec<Option<Stream>>,
    requests: HashMap<u32, Request>,
    next_serial: u64,
    opened: u64,
    answers: VecDeque<u32>,
    reports: VecDeque<u16>,
}

impl Incoming {
    /// `limits` are those that this end has stated, but the lane is the smaller of both ends'.
    pub fn new(epoch: u64, limits: Limits) -> Incoming {
        Incoming {
            epoch,
            limits,
            streams: Vec::new(),
            requests: HashMap::new(),
            next_serial: 0,
            opened: 0,
            answers: VecDeque::new(),
            reports: VecDeque::new(),
        }
    }

    // ---- what arrives --------------------------------------------------------------------------------------------

    pub fn open(&mut self, index: u16, incarnation: u32, ends: &Ends) -> Result<(), Bad> {
        if index >= self.limits.streams {
            return Err(Bad::TooMany);
        }
        let at = usize::from(index);
        if self.streams.len() <= at {
            self.streams.resize_with(at + 1, || None);
        }
        let before = self.streams[at].as_ref();
        if before.is_some_and(|stream| stream.requests > 0) {
            return Err(Bad::Stream(index));
        }
        let (in_ring, in_reports) = before.map_or((false, false), |stream| (stream.in_ring, stream.in_reports));
        self.opened += 1;
        self.streams[at] = Some(Stream {
            ends: *ends,
            incarnation,
            opened: self.opened,
            intake: Intake::default(),
            current: None,
            requests: 0,
            replies: VecDeque::new(),
            lane: Lane::default(),
            in_ring,
            in_reports,
        });
        Ok(())
    }

    /// A segment: whose it is, and its receipt; `None` in place of that if it is of a request that has ended.
    pub fn segment(
        &mut self,
        index: u16,
        token: u32,
        segment: &Segment,
        frame: u64,
    ) -> Result<(Ends, Receipt, bool), Bad> {
        let stream = self.streams.get_mut(usize::from(index)).and_then(Option::as_mut).ok_or(Bad::Stream(index))?;
        let payload = u64::from(segment.len);
        stream.intake.get(payload, self.limits.lane)?;
        if segment.first() {
            // A message that is broken off is cancelled first.
            if stream.current.is_some() {
                return Err(Bad::Order);
            }
            if self.requests.contains_key(&token) {
                return Err(Bad::Token(token));
            }
            if self.requests.len() >= self.limits.requests as usize {
                return Err(Bad::TooMany);
            }
            let request = Request {
                serial: self.next_serial,
                stream: index,
                message: segment.message,
                next: 0,
                ended: false,
                held: 0,
                done: false,
                answered: Answered::No,
                reply: None,
            };
            self.next_serial += 1;
            self.requests.insert(token, request);
            stream.requests += 1;
            stream.current = Some(token);
        } else if stream.current != Some(token) {
            return Err(Bad::Order);
        }
        let request = self.requests.get_mut(&token).ok_or(Bad::Token(token))?;
        if request.message != segment.message || request.next != segment.offset {
            return Err(Bad::Order);
        }
        request.next += payload;
        if segment.last() {
            request.ended = true;
            stream.current = None;
        }
        let receipt = Receipt {
            key: ReplyKey { epoch: self.epoch, serial: request.serial, token },
            token,
            stream: index,
            opened: stream.opened,
            frame,
            payload,
            last: segment.last(),
        };
        let ends = stream.ends;
        request.held += 1;
        let wanted = request.answered == Answered::No;
        Ok((ends, receipt, wanted))
    }

    pub fn cancel(&mut self, token: u32, events: &mut VecDeque<Event>) {
        // Its answer may have crossed this on the way.
        let Some(request) = self.requests.get_mut(&token) else { return };
        request.ended = true;
        if let Some(stream) = self.streams[usize::from(request.stream)].as_mut()
            && stream.current == Some(token)
        {
            stream.current = None;
        }
        self.end(token, Answer::Silence, events);
        self.remove_if_over(token);
    }

    /// The other end has taken in bytes of replies.
    pub fn taken(&mut self, index: u16, incarnation: u32, bytes: u64, ring: &mut Ring) -> Result<(), Bad> {
        let stream = self.streams.get_mut(usize::from(index)).and_then(Option::as_mut).ok_or(Bad::Stream(index))?;
        if stream.incarnation != incarnation {
            return Ok(());
        }
        stream.lane.took(bytes)?;
        if !stream.replies.is_empty() && !stream.in_ring {
            stream.in_ring = true;
            ring.push_back(Turn::Replies(index));
        }
        Ok(())
    }

    // ---- what the caller does ------------------------------------------------------------------------------------

    fn give_back(&mut self, receipt: &Receipt) {
        let stream = self.streams.get_mut(usize::from(receipt.stream)).and_then(Option::as_mut);
        if let Some(stream) = stream
            && stream.opened == receipt.opened
            && stream.intake.done(receipt.payload, self.limits.lane)
            && !stream.in_reports
        {
            stream.in_reports = true;
            self.reports.push_back(receipt.stream);
        }
    }

    /// A segment was carried out, or was not.
    pub fn answer(&mut self, receipt: &Receipt, answer: Answer, events: &mut VecDeque<Event>) {
        self.give_back(receipt);
        let Some(request) = self.requests.get_mut(&receipt.token) else { return };
        if request.serial != receipt.key.serial {
            return;
        }
        request.held -= 1;
        request.done |= receipt.last;
        // The other end would not believe that a READ is done whose data did not come.
        let reads = request.message.op.reads() && request.message.len > 0;
        let answer = if answer == Answer::Ack && reads { Answer::Silence } else { answer };
        let over = answer != Answer::Ack || request.done && request.held == 0;
        if over && request.reply.is_none() {
            self.end(receipt.token, answer, events);
        }
        // Its last segment may have come after its answer had left.
        self.remove_if_over(receipt.token);
    }

    /// What was asked for will be read from the caller.
    pub fn reply(&mut self, receipt: &Receipt, ring: &mut Ring, events: &mut VecDeque<Event>) {
        self.give_back(receipt);
        let request = self.requests.get_mut(&receipt.token).filter(|request| request.serial == receipt.key.serial);
        let wanted = request.filter(|request| request.answered == Answered::No && request.message.op.reads());
        let Some(request) = wanted else {
            events.push_back(Event::ReplyEnded(receipt.key));
            return;
        };
        request.held -= 1;
        request.reply = Some(0);
        let Some(stream) = self.streams[usize::from(request.stream)].as_mut() else { return };
        stream.replies.push_back(receipt.token);
        if !stream.in_ring {
            stream.in_ring = true;
            ring.push_back(Turn::Replies(receipt.stream));
        }
    }

    /// The reply can go on.
    pub fn more(&mut self, key: ReplyKey, ring: &mut Ring) {
        let request = self.requests.get(&key.token).filter(|request| request.serial == key.serial);
        let Some(index) = request.map(|request| request.stream) else { return };
        let Some(stream) = self.streams[usize::from(index)].as_mut() else { return };
        if !stream.replies.is_empty() && !stream.in_ring {
            stream.in_ring = true;
            ring.push_back(Turn::Replies(index));
        }
    }

    /// The request is answered, unless it is already.
    fn end(&mut self, token: u32, answer: Answer, events: &mut VecDeque<Event>) {
        let Some(request) = self.requests.get_mut(&token) else { return };
        if request.answered != Answered::No {
            return;
        }
        request.answered = Answered::Waits(answer);
        self.answers.push_back(token);
        if request.reply.take().is_some() {
            events.push_back(Event::ReplyEnded(ReplyKey { epoch: self.epoch, serial: request.serial, token }));
            if let Some(stream) = self.streams[usize::from(request.stream)].as_mut() {
                stream.replies.retain(|reply| *reply != token);
            }
        }
    }

    fn remove_if_over(&mut self, token: u32) {
        let over = self.requests.get(&token).filter(|request| request.ended && request.answered == Answered::Gone);
        if let Some(index) = over.map(|request| usize::from(request.stream)) {
            self.requests.remove(&token);
            if let Some(stream) = self.streams[index].as_mut() {
                stream.requests -= 1;
            }
        }
    }

    /// Nothing more goes out.
    pub fn close(&mut self, events: &mut VecDeque<Event>) {
        let epoch = self.epoch;
        let replies = self.requests.iter().filter(|(_, request)| request.reply.is_some());
        let mut ended: Vec<ReplyKey> =
            replies.map(|(token, request)| ReplyKey { epoch, serial: request.serial, token: *token }).collect();
        ended.sort_unstable();
        events.extend(ended.into_iter().map(Event::ReplyEnded));
        self.requests.clear();
        self.streams.clear();
    }

    // ---- what leaves ---------------------------------------------------------------------------------------------

    /// Small frames that go before all others.
    pub fn control(&mut self, out: &mut Vec<u8>, until: usize) {
        while out.len() < until
            && let Some(token) = self.answers.pop_front()
        {
            let Some(request) = self.requests.get_mut(&token) else { continue };
            let Answered::Waits(answer) = request.answered else { continue };
            request.answered = Answered::Gone;
            Frame::Answer { token, answer }.encode(out);
            self.remove_if_over(token);
        }
        while out.len() < until
            && let Some(index) = self.reports.pop_front()
        {
            let Some(stream) = self.streams[usize::from(index)].as_mut() else { continue };
            stream.in_reports = false;
            let (incarnation, bytes) = (stream.incarnation, stream.intake.report());
            Frame::Taken { stream: index, incarnation, back: false, bytes }.encode(out);
        }
    }

    /// The next piece of a reply on a stream. Bytes of its frame; 0 if there is none.
    pub fn data(
        &mut self,
        index: u16,
        out: &mut Vec<u8>,
        source: &mut dyn Source,
        ring: &mut Ring,
        events: &mut VecDeque<Event>,
    ) -> u64 {
        let Some(stream) = self.streams.get_mut(usize::from(index)).and_then(Option::as_mut) else { return 0 };
        stream.in_ring = false;
        let Some(token) = stream.replies.front().copied() else { return 0 };
        let Some(request) = self.requests.get_mut(&token) else { return 0 };
        let offset = request.reply.unwrap_or_default();
        let len = (request.message.len - offset).min(SEGMENT as u64);
        if !stream.lane.has_room(len, self.limits.lane) {
            return 0;
        }
        let start = out.len();
        let mut outcome = Ok(true);
        if len > 0 {
            begin_data(out, token, offset, len as usize);
            let at = out.len();
            out.resize(at + len as usize, 0);
            let key = ReplyKey { epoch: self.epoch, serial: request.serial, token };
            outcome = source.reply(key, offset, &mut out[at..]);
        }
        match outcome {
            // `more` puts it into the ring again.
            Ok(false) => {
                out.truncate(start);
                return 0;
            }
            Ok(true) => {
                stream.lane.send(len);
                request.reply = Some(offset + len);
                if offset + len == request.message.len {
                    self.end(token, Answer::Ack, events);
                }
            }
            Err(answer) => {
                out.truncate(start);
                // An answer that says "done" would not be true.
                let answer = if answer == Answer::Ack { Answer::Silence } else { answer };
                self.end(token, answer, events);
            }
        }
        if let Some(stream) = self.streams[usize::from(index)].as_mut()
            && !stream.replies.is_empty()
        {
            stream.in_ring = true;
            ring.push_back(Turn::Replies(index));
        }
        (out.len() - start) as u64
    }
}
