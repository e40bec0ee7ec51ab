//! From other hosts to devices of this process.
//!
//! A piece of a message is carried out when it comes. What is read is read when its turn to leave has come, and what
//! the same pair of QPs has behind it waits for that: a responder takes things in their order alone.

use crate::convert;
use pvrdma_device::memory::{Memory, Span, total};
use pvrdma_device::transport::fabric::Fabric;
use pvrdma_device::transport::segment::Carried;
use pvrdma_device::transport::{Answer, CopyFault, Far, Nak, Payload, Station, Token};
use pvrdma_net::event::{Receipt, ReplyKey};
use pvrdma_net::frame::{self, Datagram, Ends, Message, Segment};
use pvrdma_net::hosts::Hosts;
use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// What is to be done for a pair of QPs.
enum Work {
    /// Bytes go to a device.
    Segment { segment: Segment, payload: Box<[u8]>, receipt: Receipt },
    /// They come from it.
    Read(ReplyKey),
}

/// See the module text.
pub struct Inbound {
    fabric: Arc<Fabric>,
    /// The first is a READ, by which the others are held up.
    streams: HashMap<Ends, VecDeque<Work>>,
    /// What other hosts read.
    replies: HashMap<ReplyKey, (Ends, Message)>,
}

impl Inbound {
    pub fn new(fabric: Arc<Fabric>) -> Inbound {
        Inbound { fabric, streams: HashMap::new(), replies: HashMap::new() }
    }

    /// Whether nothing is left to do.
    pub fn is_empty(&self) -> bool {
        self.streams.is_empty() && self.replies.is_empty()
    }

    /// Pieces of requests that are not carried out yet.
    pub fn len(&self) -> usize {
        self.streams.values().map(VecDeque::len).sum()
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
        if segment.message.op.reads() && segment.message.len > 0 {
            let key = receipt.key();
            self.replies.insert(key, (*ends, segment.message));
            self.streams.entry(*ends).or_default().push_back(Work::Read(key));
            hosts.reply(now, receipt);
            return;
        }
        match self.streams.get_mut(ends) {
            Some(held_up) => {
                held_up.push_back(Work::Segment { segment: *segment, payload: payload.into(), receipt });
            }
            None => hosts.answer(now, receipt, convert::answer(self.execute(ends, segment, payload))),
        }
    }

    fn execute(&self, ends: &Ends, segment: &Segment, payload: &[u8]) -> Answer {
        // A device of this host counts packets so that it can be cut anywhere between them.
        let Some(carried) = convert::carried_by(Token::default(), ends, segment) else {
            return Answer::Nak(Nak::InvalidRequest);
        };
        let Some(device) = self.fabric.station(&ends.dest_gid) else { return Answer::Silence };
        carry_out(&*device, &carried, &Payload(payload))
    }

    /// A datagram has come.
    pub fn datagram(&self, datagram: &Datagram, payload: &[u8]) {
        let request = convert::from_datagram(datagram, payload.len());
        if let Some(device) = self.fabric.station(&request.dest.gid) {
            device.receive(&request, &Payload(payload));
        }
    }

    /// What another host reads, for the next frame.
    pub fn reply(&mut self, key: ReplyKey, offset: u64, into: &mut [u8]) -> Result<bool, frame::Answer> {
        let Some((ends, message)) = self.replies.get(&key) else { return Err(frame::Answer::Silence) };
        let next = self.streams.get(ends).and_then(VecDeque::front);
        if !matches!(next, Some(Work::Read(first)) if *first == key) {
            return Ok(false);
        }
        let Some(carried) = convert::carried(Token::default(), ends, message, offset, into.len() as u64) else {
            return Err(convert::answer(Answer::Nak(Nak::InvalidRequest)));
        };
        let Some(device) = self.fabric.station(&ends.dest_gid) else { return Err(frame::Answer::Silence) };
        let back = Back(RefCell::new(Some(into)));
        match carry_out(&*device, &carried, &back) {
            // It may say so and have brought nothing, if it was asked for more than there is.
            Answer::Ack if back.0.borrow().is_some() => Err(frame::Answer::Silence),
            Answer::Ack => Ok(true),
            answer => Err(convert::answer(answer)),
        }
    }

    /// Nothing more is read for it.
    pub fn reply_ended(&mut self, hosts: &mut Hosts, now: Duration, key: ReplyKey) {
        let Some((ends, _)) = self.replies.remove(&key) else { return };
        let Some(mut work) = self.streams.remove(&ends) else { return };
        let is_it = |work: &Work| matches!(work, Work::Read(other) if *other == key);
        if !work.front().is_some_and(is_it) {
            // Given up before its turn had come.
            work.retain(|work| !is_it(work));
            self.streams.insert(ends, work);
            return;
        }
        work.pop_front();
        loop {
            match work.pop_front() {
                None => return,
                Some(Work::Read(next)) => {
                    work.push_front(Work::Read(next));
                    self.streams.insert(ends, work);
                    return hosts.more(next);
                }
                Some(Work::Segment { segment, payload, receipt }) => {
                    let answer = self.execute(&ends, &segment, &payload);
                    hosts.answer(now, receipt, convert::answer(answer));
                }
            }
        }
    }
}

fn carry_out(device: &dyn Station, carried: &Carried, far: &dyn Far) -> Answer {
    match carried {
        Carried::Whole(request) => device.receive(request, far),
        Carried::Segment(piece) => device.receive_segment(piece, far),
    }
}

/// Where what is read is put, until it has been.
struct Back<'a>(RefCell<Option<&'a mut [u8]>>);

impl Back<'_> {
    fn fill(&self, len: u64, fill: impl FnOnce(&mut [u8]) -> Result<(), CopyFault>) -> Result<(), CopyFault> {
        let into = self.0.take().filter(|into| into.len() as u64 == len).ok_or(CopyFault::Far)?;
        fill(into)
    }
}

impl Far for Back<'_> {
    fn pull_from(&self, _skip: u64, _memory: &dyn Memory, _into: &[Span]) -> Result<(), CopyFault> {
        Err(CopyFault::Far)
    }

    fn push(&self, memory: &dyn Memory, from: &[Span]) -> Result<(), CopyFault> {
        self.fill(total(from), |into| memory.gather(from, into).map_err(|_| CopyFault::Near))
    }

    fn put(&self, bytes: &[u8]) -> Result<(), CopyFault> {
        self.fill(bytes.len() as u64, |into| {
            into.copy_from_slice(bytes);
            Ok(())
        })
    }
}
