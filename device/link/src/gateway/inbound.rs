//! From other hosts to guests of this one.

use crate::convert::{self, PIECE};
use pvrdma_device::guest::Guest;
use pvrdma_device::handle::{Psn, QpHandle};
use pvrdma_device::transport::{Answer, Nak, Submitted, Token, Transport};
use pvrdma_fabric::copy::{span_of, span_of_mut};
use pvrdma_fabric::transport::HostTransport;
use pvrdma_net::event::{Receipt, ReplyKey};
use pvrdma_net::frame::{self, Ends, Message, Segment};
use pvrdma_net::hosts::Hosts;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// How long a guest may hold a piece of a message: one that is stopped would fill the window of its host. Its answer is
/// silence then, as if it had been lost.
const PATIENCE: Duration = Duration::from_millis(250);
/// How long it has had one before it is looked whether it still runs.
const LOOK: Duration = Duration::from_millis(50);
/// Pieces of a READ that are read ahead of what has left.
const AHEAD: usize = 4;
/// Bytes of all READs of a host that are.
const OF_A_HOST: u64 = 32 * PIECE;

/// What is to be done for a pair of QPs, in order.
enum Work {
    /// Bytes go to a guest.
    Segment { segment: Segment, payload: Box<[u8]>, receipt: Receipt, since: Duration },
    /// Bytes come from it: those before `asked` were asked for. If not `ahead`, they are read into the frame with which
    /// they leave.
    Read { key: ReplyKey, message: Message, asked: u64, ahead: bool },
}

#[derive(Default)]
struct Stream {
    work: VecDeque<Work>,
    /// Pieces that the guest has.
    flying: usize,
    /// It was Busy.
    stuck: bool,
    /// It is among those that wait to read.
    waiting: bool,
}

/// What a guest has.
struct Flying {
    ends: Ends,
    since: Duration,
    /// Its bytes, or the place for them: the guest copies them.
    bytes: Box<[u8]>,
    then: Then,
}

enum Then {
    Answer(Receipt),
    Reply(ReplyKey, u64),
}

/// A piece of what is read, or why there is none.
type Piecemeal = Result<Box<[u8]>, Answer>;

/// What another host reads.
struct Reply {
    ends: Ends,
    /// Read and not sent: where, and what.
    pieces: VecDeque<(u64, Piecemeal)>,
    flying: usize,
}

/// What is read for one host.
#[derive(Default)]
struct Reading {
    /// Bytes that guests fill, or that wait to leave.
    bytes: u64,
    /// Streams that wait for others' bytes to leave.
    waiting: VecDeque<Ends>,
}

/// See the module text.
pub struct Inbound {
    transport: Arc<HostTransport>,
    streams: HashMap<Ends, Stream>,
    flying: HashMap<u64, Flying>,
    replies: HashMap<ReplyKey, Reply>,
    /// By the number of the host.
    reading: HashMap<u8, Reading>,
    next: u64,
    /// Streams whose target was busy.
    stuck: Vec<Ends>,
    /// Replies that can go on, or streams that can: a piece has left.
    left: Vec<Ends>,
}

fn token(id: u64) -> Token {
    Token { qp: QpHandle((id >> 32) as u32), epoch: id as u32, psn: Psn::default() }
}

/// The host that asks.
fn host_of(ends: &Ends) -> u8 {
    Guest::of(&ends.source_gid).map_or(0, Guest::host)
}

fn id_of(token: Token) -> u64 {
    u64::from(token.qp.0) << 32 | u64::from(token.epoch)
}

impl Inbound {
    pub fn new(transport: Arc<HostTransport>) -> Inbound {
        Inbound {
            transport,
            streams: HashMap::new(),
            flying: HashMap::new(),
            replies: HashMap::new(),
            reading: HashMap::new(),
            next: 0,
            stuck: Vec::new(),
            left: Vec::new(),
        }
    }

    pub fn len(&self) -> usize {
        self.flying.len()
    }

    pub fn is_idle(&self) -> bool {
        self.flying.is_empty() && self.stuck.is_empty() && self.reading.is_empty()
    }

    pub fn is_stuck(&self) -> bool {
        !self.stuck.is_empty()
    }

    /// A segment has come.
    pub fn segment(
        &mut self,
        hosts: &mut Hosts,
        now: Duration,
        ends: &Ends,
        segment: &Segment,
        payload: &[u8],
        receipt: Receipt,
    ) {
        let stream = self.streams.entry(*ends).or_default();
        if segment.message.op.reads() && segment.message.len > 0 {
            let key = receipt.key();
            self.replies.insert(key, Reply { ends: *ends, pieces: VecDeque::new(), flying: 0 });
            stream.work.push_back(Work::Read { key, message: segment.message, asked: 0, ahead: false });
            hosts.reply(now, receipt);
        } else {
            // The short way, from where the bytes are: nothing of this pair is on its way, and the guest need not know.
            if stream.work.is_empty()
                && stream.flying == 0
                && let Some(carried) = convert::carried_by(Token::default(), ends, segment)
                && let Some((request, rest)) = convert::on_its_own(&carried, &segment.message)
                && let Some(answer) = self.transport.place_alone(&request, &[span_of(payload)], rest)
            {
                hosts.answer(now, receipt, convert::answer(answer));
                return;
            }
            stream.work.push_back(Work::Segment { segment: *segment, payload: payload.into(), receipt, since: now });
        }
        self.work(hosts, now, ends);
    }

    /// Hands to the guest what is next for it, as much as it takes.
    fn work(&mut self, hosts: &mut Hosts, now: Duration, ends: &Ends) {
        while let Some(stream) = self.streams.get_mut(ends) {
            let (id, alone) = (self.next, stream.flying == 0);
            let (carried, message, mut bytes) = match stream.work.front_mut() {
                None => return,
                Some(Work::Segment { segment, payload, .. }) => {
                    (convert::carried_by(token(id), ends, segment), segment.message, std::mem::take(payload))
                }
                Some(Work::Read { key, message, asked, ahead }) => {
                    // One that nobody waits for any more is gone.
                    let Some(reply) = self.replies.get(key).filter(|_| *asked < message.len) else {
                        stream.work.pop_front();
                        continue;
                    };
                    *ahead |= !alone;
                    if !*ahead {
                        hosts.more(*key);
                        return;
                    }
                    if reply.flying + reply.pieces.len() >= AHEAD {
                        return;
                    }
                    let len = PIECE.min(message.len - *asked);
                    let reading = self.reading.entry(host_of(ends)).or_default();
                    if reading.bytes + len > OF_A_HOST {
                        if !std::mem::replace(&mut stream.waiting, true) {
                            reading.waiting.push_back(*ends);
                        }
                        return;
                    }
                    (convert::carried(token(id), ends, message, *asked, len), *message, vec![0; len as usize].into())
                }
            };
            let local = [span_of_mut(&mut bytes)];
            let submitted = match &carried {
                Some(carried) => {
                    // By itself if nothing else of the pair is on its way, so that the target need not wake.
                    let own = convert::on_its_own(carried, &message).filter(|_| alone);
                    let placed = own.and_then(|(request, rest)| self.transport.place_alone(&request, &local, rest));
                    placed.map_or_else(|| self.transport.hand_in(token(id), carried, &local), Submitted::Answered)
                }
                None => Submitted::Answered(Answer::Nak(Nak::InvalidRequest)),
            };
            if matches!(submitted, Submitted::Busy | Submitted::Full | Submitted::WhenAlone) {
                if let Some(Work::Segment { payload, .. }) = stream.work.front_mut() {
                    *payload = bytes;
                }
                if !std::mem::replace(&mut stream.stuck, true) {
                    self.stuck.push(*ends);
                }
                return;
            }
            self.next += 1;
            let then = match stream.work.pop_front() {
                None => return,
                Some(Work::Segment { receipt, .. }) => Then::Answer(receipt),
                Some(Work::Read { key, message, asked, ahead }) => {
                    stream.work.push_front(Work::Read { key, message, asked: asked + bytes.len() as u64, ahead });
                    if let Some(reply) = self.replies.get_mut(&key) {
                        reply.flying += 1;
                    }
                    self.reading.entry(host_of(ends)).or_default().bytes += bytes.len() as u64;
                    Then::Reply(key, asked)
                }
            };
            match submitted {
                Submitted::Answered(answer) => self.done(hosts, now, ends, then, bytes, answer),
                _ => {
                    stream.flying += 1;
                    self.flying.insert(id, Flying { ends: *ends, since: now, bytes, then });
                }
            }
        }
    }

    /// A piece has come to its end.
    fn done(&mut self, hosts: &mut Hosts, now: Duration, ends: &Ends, then: Then, bytes: Box<[u8]>, answer: Answer) {
        match then {
            Then::Answer(receipt) => hosts.answer(now, receipt, convert::answer(answer)),
            Then::Reply(key, asked) => {
                // It does not lie here if nothing was read, or nobody waits for it any more.
                if answer != Answer::Ack || !self.replies.contains_key(&key) {
                    self.has_left(ends, bytes.len() as u64);
                }
                let Some(reply) = self.replies.get_mut(&key) else { return };
                reply.flying -= 1;
                let read = if answer == Answer::Ack { Ok(bytes) } else { Err(answer) };
                // They are answered in order, but for those that were given up.
                let at = reply.pieces.partition_point(|(before, _)| *before < asked);
                reply.pieces.insert(at, (asked, read));
                hosts.more(key);
            }
        }
    }

    /// A guest has answered.
    pub fn answered(&mut self, hosts: &mut Hosts, now: Duration, token: Token, answer: Answer) {
        let Some(flying) = self.flying.remove(&id_of(token)) else { return };
        let Flying { ends, bytes, then, .. } = flying;
        if let Some(stream) = self.streams.get_mut(&ends) {
            stream.flying -= 1;
        }
        self.done(hosts, now, &ends, then, bytes, answer);
        self.work(hosts, now, &ends);
    }

    /// What another host reads, for the next frame.
    pub fn reply(&mut self, key: ReplyKey, offset: u64, into: &mut [u8]) -> Result<bool, frame::Answer> {
        if self.read_now(key, offset, into) {
            return Ok(true);
        }
        let Some(reply) = self.replies.get_mut(&key) else { return Err(frame::Answer::Silence) };
        match reply.pieces.front() {
            Some((at, read)) if *at == offset => match read {
                Ok(bytes) if bytes.len() == into.len() => into.copy_from_slice(bytes),
                Ok(_) => return Err(frame::Answer::Silence),
                Err(answer) => return Err(convert::answer(*answer)),
            },
            _ => return Ok(false),
        }
        reply.pieces.pop_front();
        let ends = reply.ends;
        self.left.push(ends);
        self.has_left(&ends, into.len() as u64);
        Ok(true)
    }

    /// The short way, into the frame itself: nothing of this pair is on its way, and the guest need not know.
    fn read_now(&mut self, key: ReplyKey, offset: u64, into: &mut [u8]) -> bool {
        let Some(ends) = self.replies.get(&key).map(|reply| reply.ends) else { return false };
        let Some(work) = self.streams.get_mut(&ends).map(|stream| &mut stream.work) else { return false };
        let Some(Work::Read { key: first, message, asked, ahead }) = work.front_mut() else { return false };
        if *first != key || *asked != offset || *ahead {
            return false;
        }
        let carried = convert::carried(Token::default(), &ends, message, offset, into.len() as u64);
        let own = carried.and_then(|carried| convert::on_its_own(&carried, message));
        let read = own.and_then(|(request, rest)| self.transport.place_alone(&request, &[span_of_mut(into)], rest));
        if read == Some(Answer::Ack) {
            *asked += into.len() as u64;
            if *asked == message.len {
                work.pop_front();
            }
        } else {
            // Its guest is to judge it, and may take its time: there is something to read ahead for.
            *ahead = true;
        }
        self.left.push(ends);
        read == Some(Answer::Ack)
    }

    pub fn reply_ended(&mut self, hosts: &mut Hosts, now: Duration, key: ReplyKey) {
        if let Some(reply) = self.replies.remove(&key) {
            let read = reply.pieces.iter().filter_map(|(_, read)| read.as_ref().ok());
            self.has_left(&reply.ends, read.map(|bytes| bytes.len() as u64).sum());
            self.work(hosts, now, &reply.ends);
        }
    }

    /// Bytes of these QPs are read no more: others of that host have their turn.
    fn has_left(&mut self, ends: &Ends, bytes: u64) {
        let Some(reading) = self.reading.get_mut(&host_of(ends)) else { return };
        reading.bytes -= bytes;
        let mut room = OF_A_HOST.saturating_sub(reading.bytes);
        while room >= PIECE
            && let Some(next) = reading.waiting.pop_front()
        {
            room -= PIECE;
            self.left.push(next);
        }
        if reading.bytes == 0 && reading.waiting.is_empty() {
            self.reading.remove(&host_of(ends));
        }
    }

    /// Pieces have left, and there is room for more.
    pub fn go_on(&mut self, hosts: &mut Hosts, now: Duration) {
        for ends in std::mem::take(&mut self.left) {
            if let Some(stream) = self.streams.get_mut(&ends) {
                stream.waiting = false;
            }
            self.work(hosts, now, &ends);
        }
    }

    /// Tries again where there was no room.
    pub fn try_again(&mut self, hosts: &mut Hosts, now: Duration) {
        for ends in std::mem::take(&mut self.stuck) {
            if let Some(stream) = self.streams.get_mut(&ends) {
                stream.stuck = false;
                self.work(hosts, now, &ends);
            }
        }
    }

    /// Takes back what a guest has had for too long, or will never answer.
    pub fn look(&mut self, hosts: &mut Hosts, now: Duration) {
        // Whether its guest still runs is a dear question.
        let late = |id: u64, flying: &Flying| {
            now >= flying.since + PATIENCE || now >= flying.since + LOOK && self.transport.lost(token(id))
        };
        let mut late: Vec<u64> = self.flying.iter().filter(|(id, of)| late(**id, of)).map(|(id, _)| *id).collect();
        late.sort_unstable();
        for id in late {
            self.transport.cancel(token(id));
            self.answered(hosts, now, token(id), Answer::Silence);
        }
        // What has no room at its target is held as long, or a stopped guest would fill the window of the other host.
        for stream in self.streams.values_mut().filter(|stream| stream.stuck) {
            for work in std::mem::take(&mut stream.work) {
                match work {
                    Work::Segment { receipt, since, .. } if now >= since + PATIENCE => {
                        hosts.answer(now, receipt, frame::Answer::Silence);
                    }
                    work => stream.work.push_back(work),
                }
            }
        }
        self.streams.retain(|_, stream| !stream.work.is_empty() || stream.flying > 0 || stream.stuck);
        // Those that wait to read and were taken back since would keep their places for ever.
        for reading in self.reading.values_mut() {
            let streams = &self.streams;
            let waits = |ends: &Ends| streams.get(ends).is_some_and(|stream| stream.waiting && !stream.work.is_empty());
            reading.waiting.retain(waits);
            if reading.bytes == 0 {
                self.left.extend(reading.waiting.drain(..));
            }
        }
        self.reading.retain(|_, reading| reading.bytes > 0 || !reading.waiting.is_empty());
        self.go_on(hosts, now);
    }
}
