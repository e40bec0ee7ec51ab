//! From devices of this process to other hosts.

use super::queue::Queue;
use crate::convert;
use pvrdma_device::transport::fabric::Origin;
use pvrdma_device::transport::{Answer, Request};
use pvrdma_net::event::{Submitted, Token as Asked};
use pvrdma_net::frame::{self, Ends};
use pvrdma_net::hosts::Hosts;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// A request without an answer.
struct Flight {
    origin: Origin,
    request: Request,
    /// As the links know it. `None`: there was no room for it.
    asked: Option<Asked>,
}

/// See the module text.
pub struct Outbound {
    queue: Arc<Queue>,
    /// By the number in their notes.
    flights: HashMap<u64, Flight>,
    by_asked: HashMap<Asked, u64>,
    /// Those that wait for room, in order.
    waiting: HashMap<Ends, VecDeque<u64>>,
}

impl Outbound {
    pub fn new(queue: Arc<Queue>) -> Outbound {
        Outbound { queue, flights: HashMap::new(), by_asked: HashMap::new(), waiting: HashMap::new() }
    }

    /// A device wants this.
    pub fn ask(&mut self, hosts: &mut Hosts, now: Duration, id: u64, origin: Origin, request: Request) {
        let ends = convert::ends(&request);
        self.flights.insert(id, Flight { origin, request, asked: None });
        let in_order = self.waiting.get(&ends).is_none_or(VecDeque::is_empty);
        if !in_order || !self.submit(hosts, now, id) {
            self.waiting.entry(ends).or_default().push_back(id);
        }
    }

    /// `false`: there is no room for it.
    fn submit(&mut self, hosts: &mut Hosts, now: Duration, id: u64) -> bool {
        // One that was taken back takes no room.
        let Some(flight) = self.flights.get_mut(&id) else { return true };
        let submitted = match convert::message(&flight.request) {
            Some(message) => hosts.submit(now, &convert::ends(&flight.request), &message),
            None => Submitted::Silence,
        };
        match submitted {
            Submitted::Pending(asked) => {
                flight.asked = Some(asked);
                self.by_asked.insert(asked, id);
            }
            Submitted::Busy => return false,
            Submitted::Silence => self.end(id, Answer::Silence),
        }
        true
    }

    /// There is room again for requests of these QPs.
    pub fn room(&mut self, hosts: &mut Hosts, now: Duration, ends: &Ends) {
        let Some(mut waiting) = self.waiting.remove(ends) else { return };
        while let Some(id) = waiting.front().copied() {
            if !self.submit(hosts, now, id) {
                self.waiting.insert(*ends, waiting);
                return;
            }
            waiting.pop_front();
        }
    }

    pub fn room_for_all(&mut self, hosts: &mut Hosts, now: Duration) {
        let all: Vec<Ends> = self.waiting.keys().copied().collect();
        all.iter().for_each(|ends| self.room(hosts, now, ends));
    }

    /// Nobody waits for it any more.
    pub fn take_back(&mut self, hosts: &mut Hosts, now: Duration, id: u64) {
        let Some(flight) = self.forget(id) else { return };
        match flight.asked {
            Some(asked) => hosts.cancel(now, asked),
            None => {
                let ends = convert::ends(&flight.request);
                if let Some(waiting) = self.waiting.get_mut(&ends) {
                    waiting.retain(|other| *other != id);
                    if waiting.is_empty() {
                        self.waiting.remove(&ends);
                    }
                }
            }
        }
        self.queue.request_left(flight.origin.port, flight.request.token, id);
    }

    fn forget(&mut self, id: u64) -> Option<Flight> {
        let flight = self.flights.remove(&id)?;
        if let Some(asked) = flight.asked {
            self.by_asked.remove(&asked);
        }
        Some(flight)
    }

    fn end(&mut self, id: u64, answer: Answer) {
        let Some(Flight { origin, request, .. }) = self.forget(id) else { return };
        if let Some(device) = origin.device.upgrade() {
            device.answered(request.token, answer);
        }
        // Not before: until it has its answer it is not lost.
        self.queue.request_left(origin.port, request.token, id);
    }

    /// An answer has come.
    pub fn answered(&mut self, asked: Asked, answer: frame::Answer) {
        if let Some(id) = self.by_asked.get(&asked) {
            self.end(*id, convert::answered(answer));
        }
    }

    fn flight(&self, asked: Asked) -> Option<&Flight> {
        self.flights.get(self.by_asked.get(&asked)?)
    }

    pub fn payload(&mut self, asked: Asked, offset: u64, into: &mut [u8]) -> bool {
        let Some(Flight { origin, request, .. }) = self.flight(asked) else { return false };
        origin.device.upgrade().is_some_and(|device| device.payload(request.token, offset, into))
    }

    /// What was read.
    pub fn data(&mut self, hosts: &mut Hosts, now: Duration, asked: Asked, offset: u64, bytes: &[u8]) {
        let Some(Flight { origin, request, .. }) = self.flight(asked) else { return };
        let taken = origin.device.upgrade().is_some_and(|device| device.arrived(request.token, offset, bytes));
        if !taken && let Some(id) = self.by_asked.get(&asked).copied() {
            self.take_back(hosts, now, id);
        }
    }

    /// No answer comes any more.
    pub fn give_up(&mut self) {
        let all: Vec<u64> = self.flights.keys().copied().collect();
        all.into_iter().for_each(|id| self.end(id, Answer::Silence));
    }
}
