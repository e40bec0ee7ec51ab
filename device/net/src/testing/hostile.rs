//! A hostile peer, driven by bytes. Whatever it sends, and whatever this end's caller does meanwhile: nothing panics,
//! each request ends exactly once, each reply ends once, what is held stays within the limits, and frames that leave
//! can be read.
//!
//! The first byte says how the rest is meant: as raw bytes of a bearer, or as a list of acts, each with a few bytes of
//! its own. In most acts the peer is honest, so that it gets far; in one of sixteen it is not.

use crate::connection::{Connection, Me};
use crate::event::{Arrival, Event, Hold, Receipt, ReplyKey, Source, Submitted, Token};
use crate::frame::*;
use crate::limits::{Limits, Patience};
use pvrdma_ffi::rng::Input;
use std::collections::HashSet;
use std::time::Duration;

/// What a run came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Summary {
    pub connections: u32,
    pub refused: u32,
    pub arrivals: u32,
    pub answers: u32,
    pub frames_out: u32,
}

fn number(script: &mut Input<'_>) -> u64 {
    u64::from(script.byte())
}

/// Small mostly, and sometimes at an edge.
fn any(script: &mut Input<'_>) -> u64 {
    match number(script) {
        byte @ 0..200 => byte % 9,
        200..220 => SEGMENT as u64 + number(script) - 2,
        220..235 => MESSAGE - number(script),
        235..245 => u64::MAX - number(script),
        _ => number(script) << (number(script) % 57),
    }
}

/// Small, so that it is soon full.
fn limits() -> Limits {
    let frames = 2 * FRAME as u64;
    let datagrams = 4 * DATAGRAM;
    Limits { window: frames, lane: frames, per_stream: 4, requests: 8, streams: 4, gids: 4, datagrams }
}

fn gid(n: u64) -> Gid {
    [n as u8 % 6; 16]
}

struct Memory {
    replies: HashSet<ReplyKey>,
    waiting: HashSet<Token>,
    good: bool,
}

impl Source for Memory {
    fn payload(&mut self, token: Token, _offset: u64, into: &mut [u8]) -> bool {
        assert!(self.waiting.contains(&token), "payload of what has ended");
        into.fill(1);
        self.good
    }

    fn reply(&mut self, key: ReplyKey, _offset: u64, into: &mut [u8]) -> Result<bool, Answer> {
        assert!(self.replies.contains(&key), "a reply that has ended");
        into.fill(2);
        if self.good { Ok(true) } else { Err(Answer::Nak(2)) }
    }
}

struct Victim {
    connection: Connection,
    now: Duration,
    memory: Memory,
    receipts: Vec<(Receipt, bool)>,
    holds: Vec<Hold>,
    in_hand: u64,
    summary: Summary,
}

impl Victim {
    fn new() -> Victim {
        let me = Me { host: 2, boot: [2; 16], limits: limits(), patience: Patience::default() };
        let mut connection = Connection::accepted(&me, 1, Duration::ZERO);
        connection.announce(&gid(5), true);
        Victim {
            connection,
            now: Duration::ZERO,
            memory: Memory { replies: HashSet::new(), waiting: HashSet::new(), good: true },
            receipts: Vec::new(),
            holds: Vec::new(),
            in_hand: 0,
            summary: Summary { connections: 1, ..Summary::default() },
        }
    }

    /// Hands bytes in. `None`: the connection is over.
    fn hear(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        loop {
            match self.connection.receive(self.now, &bytes[at..]) {
                Ok((len, arrival)) => {
                    at += len;
                    self.events();
                    let Some(arrival) = arrival else { return Some(at) };
                    self.summary.arrivals += 1;
                    match arrival {
                        Arrival::Segment { segment, payload, receipt, .. } => {
                            assert_eq!(payload.len(), segment.len as usize);
                            self.in_hand += receipt.frame;
                            self.receipts.push((receipt, segment.message.op.reads()));
                        }
                        Arrival::Datagram { hold, .. } => {
                            self.in_hand += hold.frame;
                            self.holds.push(hold);
                        }
                        Arrival::Data { token, hold, .. } => {
                            assert!(self.memory.waiting.contains(&token));
                            self.in_hand += hold.frame;
                            self.holds.push(hold);
                        }
                    }
                    assert!(self.in_hand <= limits().window, "more in hand than the window");
                }
                Err(_) => {
                    self.summary.refused += 1;
                    return None;
                }
            }
        }
    }

    fn events(&mut self) {
        while let Some(event) = self.connection.next_event() {
            match event {
                Event::Answered(token, _) => {
                    self.summary.answers += 1;
                    assert!(self.memory.waiting.remove(&token), "an answer to what waits for none");
                }
                Event::ReplyEnded(key) => assert!(self.memory.replies.remove(&key), "a reply ends once"),
                _ => {}
            }
        }
        assert!(self.connection.unanswered() <= limits().requests as usize);
    }

    fn speak(&mut self, until: usize) {
        let mut out = Vec::new();
        self.connection.transmit(&mut out, until, &mut self.memory);
        assert!(out.len() <= until.saturating_add(FRAME + 320), "{} bytes", out.len());
        let mut at = 0;
        while at < out.len() {
            let (_, len) = decode(&out[at..]).expect("what leaves is sound").expect("and whole");
            at += len;
            self.summary.frames_out += 1;
        }
        self.events();
    }

    fn give_back(&mut self, which: u64, answer: Answer) {
        if !self.receipts.is_empty() {
            let (receipt, reads) = self.receipts.swap_remove(which as usize % self.receipts.len());
            self.in_hand -= receipt.frame;
            if reads && answer == Answer::Ack {
                self.memory.replies.insert(receipt.key());
                self.connection.reply(receipt);
            } else {
                self.connection.answer(receipt, answer);
            }
        } else if let Some(hold) = self.holds.pop() {
            self.in_hand -= hold.frame;
            self.connection.release(hold);
        }
        self.events();
    }

    fn over(mut self) -> Summary {
        self.connection.close();
        self.events();
        for (receipt, _) in std::mem::take(&mut self.receipts) {
            self.connection.answer(receipt, Answer::Ack);
        }
        for hold in std::mem::take(&mut self.holds) {
            self.connection.release(hold);
        }
        self.events();
        assert!(self.memory.waiting.is_empty(), "each request has ended");
        assert!(self.memory.replies.is_empty(), "each reply has ended");
        self.summary
    }
}

/// Does what `bytes` say. See the module text.
pub fn run(bytes: &[u8]) -> Summary {
    let mut script = Input(bytes);
    let mut victim = Victim::new();
    match number(&mut script) % 4 {
        0 => raw(victim, script.0),
        // The same behind a greeting.
        1 => {
            victim.hear(&greeting());
            raw(victim, script.0)
        }
        _ => acts(victim, &mut script),
    }
}

fn greeting() -> Vec<u8> {
    let Limits { window, lane, requests, streams, gids, .. } = limits();
    let mut out = Vec::new();
    let hello =
        Hello { versions: (1, 1), host: 1, boot: [1; 16], window, lane, requests, streams, gids, adapters: true };
    Frame::Hello(hello).encode(&mut out);
    for n in 0..3 {
        Frame::Gid { gid: gid(n), bound: true }.encode(&mut out);
    }
    out
}

/// As a bearer brings them: in pieces.
fn raw(mut victim: Victim, bytes: &[u8]) -> Summary {
    let mut input: Vec<u8> = Vec::new();
    for piece in bytes.chunks(97) {
        input.extend_from_slice(piece);
        let Some(taken) = victim.hear(&input) else { break };
        input.drain(..taken);
        victim.speak(4096);
        victim.give_back(0, Answer::Ack);
    }
    victim.over()
}

fn message(script: &mut Input<'_>, len: u64) -> Message {
    let (remote_addr, rkey) = (number(script), 7);
    let op = match number(script) % 5 {
        0 => Op::Send { ext: Ext::None },
        1 => Op::Write { remote_addr, rkey, imm: Some(3) },
        2 => Op::Read { remote_addr, rkey },
        3 => Op::FetchAdd { remote_addr, rkey, add: 1 },
        _ => Op::Write { remote_addr, rkey, imm: None },
    };
    let len = if op.atomic() { 8 } else { len };
    Message { op, psn: number(script) as u32, packets: 1, len, solicited: false }
}

fn answer(script: &mut Input<'_>) -> Answer {
    match number(script) % 8 {
        0 => Answer::Rnr(3),
        1 => Answer::Nak(1),
        2 => Answer::Silence,
        _ => Answer::Ack,
    }
}

/// The peer's side: what it has begun, and what it would say next if it were honest.
#[derive(Default)]
struct Peer {
    next_token: u32,
    /// The message of each stream that has not gone out wholly: its token, and where it goes on.
    begun: [Option<(u32, Message, u64)>; 4],
}

/// An act is a byte, and one that says whether the peer is honest in it; what follows depends on both.
fn acts(mut victim: Victim, script: &mut Input<'_>) -> Summary {
    let ends = |n: u64| Ends { source_gid: gid(n), dest_gid: gid(5), source_qpn: n as u32 & 3, dest_qpn: 4 };
    let payload = vec![9; SEGMENT];
    let mut peer = Peer::default();
    let mut out = greeting();
    for stream in 0..4 {
        let ends = ends(u64::from(stream) % 3);
        Frame::Stream { stream, incarnation: 0, ends }.encode(&mut out);
    }
    victim.hear(&out);
    victim.speak(4096);
    while !script.is_empty() {
        let act = script.byte();
        out.clear();
        let odd = number(script) % 16 == 15;
        let stream = number(script) as u16 % if odd { 6 } else { 4 };
        let small = if odd { number(script) as u32 % 6 } else { 0 };
        match act % 16 {
            0 if odd => Frame::Stream { stream, incarnation: small, ends: ends(number(script)) }.encode(&mut out),
            0..4 if odd => {
                let len = any(script);
                let message = message(script, len);
                let offset = if message.op.reads() { 0 } else { any(script) };
                let most = message.len.saturating_sub(offset).min(SEGMENT as u64);
                let len = if message.op.reads() { 0 } else { most };
                let segment = Segment { message, offset, len: len as u32 };
                Frame::Segment { stream, token: small, segment, payload: &payload[..len as usize] }.encode(&mut out);
            }
            0..4 => {
                while victim.receipts.len() + victim.holds.len() > 1 {
                    victim.give_back(0, Answer::Ack);
                }
                victim.speak(usize::MAX);
                let begun = &mut peer.begun[usize::from(stream)];
                let (token, message, offset) = begun.take().unwrap_or_else(|| {
                    peer.next_token += 1;
                    let len = number(script) + if number(script) % 8 == 7 { SEGMENT as u64 } else { 0 };
                    (peer.next_token, message(script, len), 0)
                });
                let len = if message.op.reads() { 0 } else { (message.len - offset).min(SEGMENT as u64) };
                let segment = Segment { message, offset, len: len as u32 };
                if !segment.last() {
                    *begun = Some((token, message, offset + len));
                }
                Frame::Segment { stream, token, segment, payload: &payload[..len as usize] }.encode(&mut out);
            }
            4 | 5 => {
                // The numbers that this end gives are no secret.
                victim.speak(usize::MAX);
                let first = victim.memory.waiting.iter().min().map_or(small, |token| token.number);
                let token = if odd { small } else { first };
                if act % 16 == 5 {
                    let len = if odd { (any(script) as usize).clamp(1, SEGMENT) } else { 8 };
                    let offset = if odd { any(script) } else { 0 };
                    Frame::Data { token, offset, payload: &payload[..len] }.encode(&mut out);
                }
                Frame::Answer { token, answer: answer(script) }.encode(&mut out);
            }
            6 => {
                let token = if odd { small } else { peer.next_token };
                for begun in peer.begun.iter_mut().filter(|begun| begun.is_some_and(|(of, ..)| of == token)) {
                    *begun = None;
                }
                Frame::Cancel { token }.encode(&mut out);
            }
            7 if odd => {
                let back = number(script) & 1 == 0;
                Frame::Taken { stream, incarnation: small, back, bytes: any(script) }.encode(&mut out);
            }
            8 if odd => Frame::Credit { bytes: any(script) }.encode(&mut out),
            8 => {
                // Whatever comes, it is replied to in turn, or the connection ends.
                let card =
                    Card { link: 3, mtu: 1, lid: 0, gid: gid(1), qpn: 1, psn: 1, rkey: 1, len: 1 << 20, addr: 0 };
                let way = |number: u64| match number % 4 {
                    0 => Way::Switch,
                    1 => Way::Refuse(Refusal::Missing),
                    _ => Way::Offer(card),
                };
                let _ = victim.connection.say_of_adapter(way(number(script)));
                Frame::Adapter(way(number(script))).encode(&mut out);
            }
            9 => {
                let bound = number(script) & 1 == 0;
                Frame::Gid { gid: gid(number(script)), bound }.encode(&mut out);
            }
            10 => Frame::Ping { stamp: any(script) }.encode(&mut out),
            7 | 11 => {
                let ends = Ends { source_gid: gid(5), dest_gid: gid(1), source_qpn: u32::from(stream), dest_qpn: 1 };
                let len = if odd { any(script) } else { 8 };
                let message = message(script, len);
                if let Submitted::Pending(token) = victim.connection.submit(victim.now, &ends, &message) {
                    assert!(victim.memory.waiting.insert(token), "a token was given twice");
                }
            }
            12 => {
                let first = victim.memory.waiting.iter().min().copied();
                if let Some(token) = first {
                    victim.memory.waiting.remove(&token);
                    victim.connection.cancel(token);
                    victim.events();
                }
            }
            13 => victim.give_back(number(script), answer(script)),
            14 => {
                victim.memory.good = number(script) & 7 > 0;
                victim.speak(1 + number(script) as usize * 64);
            }
            _ => {
                victim.now += Duration::from_millis(number(script) / if odd { 1 } else { 8 });
                let over = victim.connection.poll(victim.now).is_err();
                victim.events();
                if over {
                    break;
                }
                assert!(victim.connection.deadline() > victim.now, "it wants to be polled again at once");
            }
        }
        if !out.is_empty() && victim.hear(&out).is_none() {
            break;
        }
    }
    victim.over()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Rng, replay};

    #[test]
    fn random_bytes_harm_nobody() {
        let mut rng = Rng::new(1);
        let mut all = Summary::default();
        for n in 0..6_000 {
            let len = 1 + rng.below(400) as usize;
            let mut bytes = rng.bytes(len);
            bytes[0] = n as u8;
            let one = run(&bytes);
            all.refused += one.refused;
            all.arrivals += one.arrivals;
            all.answers += one.answers;
            all.frames_out += one.frames_out;
        }
        println!("{all:?}");
        // It must do something that is taken for sense, and something that is not.
        assert!(all.refused > 100 && all.arrivals > 100 && all.answers > 100, "{all:?}");
    }

    #[test]
    fn inputs_that_a_fuzzer_kept_harm_nobody() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/frames");
        replay(folder, 20, |bytes| {
            run(bytes);
            true
        });
    }
}
