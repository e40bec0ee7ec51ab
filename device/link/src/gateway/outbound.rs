//! From guests of this host to other hosts.

use crate::convert;
use pvrdma_device::transport::segment::Segment as Piece;
use pvrdma_device::transport::{Answer, Far, Request, Token};
use pvrdma_fabric::copy::span_of_mut;
use pvrdma_fabric::gateway::NotCopied;
use pvrdma_fabric::memory::ProcessMemory;
use pvrdma_fabric::taken::Taken;
use pvrdma_fabric::transport::{Deferred, HostTransport, Inbound};
use pvrdma_net::event::{Submitted, Token as Asked};
use pvrdma_net::frame::{self, DATAGRAM, Ends};
use pvrdma_net::hosts::Hosts;
use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// What was found in the inbox.
#[derive(Default)]
pub struct Inbox {
    answers: RefCell<Vec<(Token, Answer)>>,
    requests: RefCell<Vec<Taken>>,
    datagrams: RefCell<Vec<(Request, Vec<u8>)>>,
}

impl Inbox {
    /// Answers of guests to what other hosts have asked.
    pub fn answers(&self) -> Vec<(Token, Answer)> {
        self.answers.take()
    }
}

impl Inbound for Inbox {
    /// Only datagrams come this way: the rest is taken over.
    fn receive(&self, request: &Request, far: &dyn Far) -> Answer {
        let mut bytes = vec![0; request.len.min(DATAGRAM as u64) as usize];
        if far.pull(&ProcessMemory, &[span_of_mut(&mut bytes)]).is_ok() {
            self.datagrams.borrow_mut().push((*request, bytes));
        }
        Answer::Ack
    }

    /// No guest sends pieces.
    fn receive_segment(&self, _segment: &Piece, _far: &dyn Far) -> Answer {
        Answer::Silence
    }

    fn answered(&self, token: Token, answer: Answer) {
        self.answers.borrow_mut().push((token, answer));
    }

    fn deferred(&self) -> Option<&dyn Deferred> {
        Some(self)
    }
}

impl Deferred for Inbox {
    fn take(&self, taken: Taken) {
        self.requests.borrow_mut().push(taken);
    }
}

/// See the module text.
pub struct Outbound {
    transport: Arc<HostTransport>,
    /// On their way.
    asked: HashMap<Asked, Taken>,
    /// There was no room for them.
    waiting: HashMap<Ends, VecDeque<Taken>>,
}

impl Outbound {
    pub fn new(transport: Arc<HostTransport>) -> Outbound {
        Outbound { transport, asked: HashMap::new(), waiting: HashMap::new() }
    }

    pub fn len(&self) -> usize {
        self.asked.len()
    }

    pub fn is_idle(&self) -> bool {
        self.asked.is_empty() && self.waiting.is_empty()
    }

    /// Guests want this.
    pub fn take(&mut self, hosts: &mut Hosts, now: Duration, inbox: Inbox) {
        for taken in inbox.requests.into_inner() {
            let ends = convert::ends(&taken.request);
            match self.waiting.get_mut(&ends) {
                // In order.
                Some(queue) => queue.push_back(taken),
                None => {
                    if let Some(busy) = self.submit(hosts, now, &ends, taken) {
                        self.waiting.entry(ends).or_default().push_back(busy);
                    }
                }
            }
        }
        for (request, bytes) in inbox.datagrams.into_inner() {
            if let Some(datagram) = convert::datagram(&request) {
                // One that finds no room is lost, as at a switch.
                hosts.send_datagram(&datagram, &bytes);
            }
        }
    }

    /// The request, if there is no room for it.
    fn submit(&mut self, hosts: &mut Hosts, now: Duration, ends: &Ends, taken: Taken) -> Option<Taken> {
        let submitted = match convert::message(&taken.request) {
            Some(message) => hosts.submit(now, ends, &message),
            None => Submitted::Silence,
        };
        match submitted {
            Submitted::Pending(token) => drop(self.asked.insert(token, taken)),
            Submitted::Busy => return Some(taken),
            Submitted::Silence => self.transport.give(&taken, Answer::Silence),
        }
        None
    }

    /// There is room again for requests of these QPs.
    pub fn room(&mut self, hosts: &mut Hosts, now: Duration, ends: &Ends) {
        let Some(mut queue) = self.waiting.remove(ends) else { return };
        while let Some(taken) = queue.pop_front() {
            if !self.transport.is_wanted(&taken) {
                continue;
            }
            if let Some(busy) = self.submit(hosts, now, ends, taken) {
                queue.push_front(busy);
                self.waiting.insert(*ends, queue);
                return;
            }
        }
    }

    pub fn room_for_all(&mut self, hosts: &mut Hosts, now: Duration) {
        let all: Vec<Ends> = self.waiting.keys().copied().collect();
        all.iter().for_each(|ends| self.room(hosts, now, ends));
    }

    pub fn payload(&mut self, token: Asked, offset: u64, into: &mut [u8]) -> bool {
        self.asked.get(&token).is_some_and(|taken| self.transport.fetch(taken, offset, into).is_ok())
    }

    /// What was read.
    pub fn data(&mut self, hosts: &mut Hosts, now: Duration, token: Asked, offset: u64, bytes: &[u8]) {
        let Some(taken) = self.asked.get(&token) else { return };
        if let Err(why) = self.transport.store(taken, offset, bytes) {
            if why == NotCopied::Fault {
                self.transport.give(taken, Answer::RequesterFault);
            }
            self.asked.remove(&token);
            hosts.cancel(now, token);
        }
    }

    pub fn answered(&mut self, token: Asked, answer: frame::Answer) {
        if let Some(taken) = self.asked.remove(&token) {
            self.transport.give(&taken, convert::answered(answer));
        }
    }

    /// Forgets what nobody waits for any more.
    pub fn look(&mut self, hosts: &mut Hosts, now: Duration) {
        let transport = &self.transport;
        self.asked.retain(|token, taken| {
            let wanted = transport.is_wanted(taken);
            if !wanted {
                hosts.cancel(now, *token);
            }
            wanted
        });
        // Whoever is busy for good is given room by an event; who is gone, and all of whose queue, is not.
        self.waiting.retain(|_, queue| {
            queue.retain(|taken| transport.is_wanted(taken));
            !queue.is_empty()
        });
    }
}
