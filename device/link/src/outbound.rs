//! What those near have for other hosts, from the request to its answer.
//!
//! A gateway and an uplink differ in what they hold of a request and where its payload is: see [`Requested`].

use crate::convert;
use pvrdma_device::transport::{Answer, Request};
use pvrdma_net::event::{Hold, Submitted, Token};
use pvrdma_net::frame::Ends;
use pvrdma_net::hosts::{HostEvent, Hosts};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

/// A request of somebody near, whose answer is still to come.
pub trait Requested {
    /// What it asks for.
    fn request(&self) -> &Request;
    /// Whether its requester is known to wait for the answer no more.
    fn is_forgotten(&self) -> bool;
    /// Fills `into` with its payload, from byte `offset` on. False: that cannot be read, or nobody waits any more.
    fn payload(&self, offset: u64, into: &mut [u8]) -> bool;
    /// Takes in what was read for it. False: it is over, and its requester knows.
    fn arrived(&self, offset: u64, bytes: &[u8]) -> bool;
    /// Tells its requester.
    fn answer(&self, answer: Answer);
}

/// See the module text.
pub struct Outbound<R> {
    /// On their way.
    asked: HashMap<Token, R>,
    /// There was no room for them. In order.
    waiting: BTreeMap<Ends, VecDeque<R>>,
}

impl<R> Default for Outbound<R> {
    fn default() -> Outbound<R> {
        Outbound { asked: HashMap::new(), waiting: BTreeMap::new() }
    }
}

impl<R: Requested> Outbound<R> {
    /// Requests that are on their way.
    pub fn len(&self) -> usize {
        self.asked.len()
    }

    /// Whether there is nothing to wait for.
    pub fn is_empty(&self) -> bool {
        self.asked.is_empty() && self.waiting.is_empty()
    }

    /// Somebody wants this.
    pub fn ask(&mut self, hosts: &mut Hosts, now: Duration, requested: R) {
        let ends = convert::ends(requested.request());
        if let Some(before) = self.waiting.get_mut(&ends) {
            before.push_back(requested);
        } else if let Some(busy) = self.submit(hosts, now, &ends, requested) {
            self.waiting.entry(ends).or_default().push_back(busy);
        }
    }

    /// The request, if there is no room for it.
    fn submit(&mut self, hosts: &mut Hosts, now: Duration, ends: &Ends, requested: R) -> Option<R> {
        let submitted = match convert::message(requested.request()) {
            Some(message) => hosts.submit(now, ends, &message),
            None => Submitted::Silence,
        };
        match submitted {
            Submitted::Pending(token) => drop(self.asked.insert(token, requested)),
            Submitted::Busy => return Some(requested),
            Submitted::Silence => requested.answer(Answer::Silence),
        }
        None
    }

    /// There is room again for requests of these QPs.
    fn room(&mut self, hosts: &mut Hosts, now: Duration, ends: &Ends) {
        let Some(mut queue) = self.waiting.remove(ends) else { return };
        while let Some(requested) = queue.pop_front() {
            if requested.is_forgotten() {
                continue;
            }
            if let Some(busy) = self.submit(hosts, now, ends, requested) {
                queue.push_front(busy);
                self.waiting.insert(*ends, queue);
                return;
            }
        }
    }

    /// Takes in what has happened, if it is about requests of this host. `false`: it is not.
    pub fn happened(&mut self, hosts: &mut Hosts, now: Duration, event: &HostEvent) -> bool {
        match event {
            HostEvent::Answered(token, answer) => {
                if let Some(requested) = self.asked.remove(token) {
                    requested.answer(convert::answered(*answer));
                }
            }
            HostEvent::Room(ends) => self.room(hosts, now, ends),
            HostEvent::RoomForAll(_) => {
                let all: Vec<Ends> = self.waiting.keys().copied().collect();
                all.iter().for_each(|ends| self.room(hosts, now, ends));
            }
            _ => return false,
        }
        true
    }

    /// Payload of a request, whose turn to leave has come.
    pub fn payload(&self, token: Token, offset: u64, into: &mut [u8]) -> bool {
        self.asked.get(&token).is_some_and(|requested| requested.payload(offset, into))
    }

    /// What was read for one.
    pub fn data(&mut self, hosts: &mut Hosts, now: Duration, token: Token, offset: u64, bytes: &[u8], hold: Hold) {
        if self.asked.get(&token).is_some_and(|requested| !requested.arrived(offset, bytes)) {
            self.asked.remove(&token);
            hosts.cancel(now, token);
        }
        hosts.release(hold);
    }

    /// Forgets those that nobody waits for any more.
    pub fn forget(&mut self, hosts: &mut Hosts, now: Duration, is_forgotten: impl Fn(&R) -> bool) {
        let forgotten = self.asked.extract_if(|_, requested| is_forgotten(requested));
        let mut forgotten: Vec<Token> = forgotten.map(|(token, _)| token).collect();
        // In their order, so that what happens in a simulation is its seed's doing alone.
        forgotten.sort_unstable();
        forgotten.into_iter().for_each(|token| hosts.cancel(now, token));
        // Whoever is busy for good is given room by an event; who is gone, and all of whose queue, is not.
        self.waiting.retain(|_, queue| {
            queue.retain(|requested| !is_forgotten(requested));
            !queue.is_empty()
        });
    }

    /// No answer comes any more.
    pub fn give_up(&mut self) {
        let waiting = std::mem::take(&mut self.waiting).into_values().flatten();
        for requested in self.asked.drain().map(|(_, requested)| requested).chain(waiting) {
            requested.answer(Answer::Silence);
        }
    }
}

/// Sends a datagram, or loses it. `false`: there is no room for it now.
pub fn send_datagram(hosts: &mut Hosts, request: &Request, payload: &[u8]) -> bool {
    convert::datagram(request).is_none_or(|datagram| hosts.send_datagram(&datagram, payload))
}
