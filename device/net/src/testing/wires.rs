//! Bearers between hosts of a simulation, on a clock that is a number: they delay, break up, hold back and cut, by the
//! seed of whoever holds them. Each is a pair of lanes, the connection and the adapters, which know nothing of each
//! other.

use super::Rng;
use crate::hosts::BearerId;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

/// A direction of a bearer.
#[derive(Default)]
struct Way {
    /// With the times when they arrive.
    flight: VecDeque<(Duration, Vec<u8>)>,
    in_flight: usize,
    /// Made, and not sent.
    unsent: Vec<u8>,
    /// Received, and not taken in.
    input: Vec<u8>,
}

/// A bearer: ends and directions are those of the host that dialed, and of the other.
struct Wire {
    ends: [(u16, BearerId); 2],
    open: [bool; 2],
    /// By lane, and by end.
    ways: [[Way; 2]; 2],
    capacity: usize,
    /// Nothing gets through before.
    cut: Duration,
}

/// What an end of a bearer has received.
pub struct Received {
    /// Whose end it is.
    pub host: u16,
    /// Which bearer, by its own count.
    pub bearer: BearerId,
    /// All that was not taken in yet.
    pub input: Vec<u8>,
    /// There is more than last time.
    pub news: bool,
    /// The other end has closed, and all that it sent has come.
    pub ended: bool,
}

/// What an end sends and receives on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// The connection, which alone ends.
    Connection,
    /// The hosts' adapters.
    Adapter,
}

/// All bearers.
#[derive(Default)]
pub struct Wires {
    wires: BTreeMap<u64, Wire>,
    next: u64,
    by_bearer: HashMap<(u16, BearerId), (u64, usize)>,
}

impl Wires {
    /// A bearer between two hosts, the first of which has dialed. `capacity` is how many bytes may be on their way.
    pub fn connect(&mut self, ends: [(u16, BearerId); 2], capacity: usize) {
        let id = self.next;
        self.next += 1;
        for (side, end) in ends.into_iter().enumerate() {
            self.by_bearer.insert(end, (id, side));
        }
        let ways = [(); 2].map(|()| [(); 2].map(|()| Way::default()));
        self.wires.insert(id, Wire { ends, open: [true; 2], ways, capacity, cut: Duration::ZERO });
    }

    /// A host closes its end, if it has not.
    pub fn hang_up(&mut self, host: u16, bearer: BearerId) {
        let Some((id, side)) = self.by_bearer.remove(&(host, bearer)) else { return };
        let wire = self.wires.get_mut(&id).expect("a wire");
        wire.open[side] = false;
        if wire.open == [false; 2] {
            self.wires.remove(&id);
        }
    }

    /// A host closes all of its ends.
    pub fn hang_up_all(&mut self, host: u16) {
        let bearers: Vec<BearerId> =
            self.by_bearer.keys().filter(|(of, _)| *of == host).map(|(_, bearer)| *bearer).collect();
        bearers.into_iter().for_each(|bearer| self.hang_up(host, bearer));
    }

    /// Numbers of all that have an end which is open.
    pub fn ids(&self) -> Vec<u64> {
        self.wires.keys().copied().collect()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.wires.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.wires.is_empty()
    }

    /// Whose an end is, while it is open.
    pub fn end(&self, id: u64, side: usize) -> Option<(u16, BearerId)> {
        self.wires.get(&id).filter(|wire| wire.open[side]).map(|wire| wire.ends[side])
    }

    /// The hosts at both ends.
    pub fn hosts(&self, id: u64) -> Option<[u16; 2]> {
        self.wires.get(&id).map(|wire| wire.ends.map(|(host, _)| host))
    }

    /// Where what the end `side` sends next is put, if all that it made before has left.
    pub fn out(&mut self, id: u64, side: usize) -> Option<&mut Vec<u8>> {
        self.out_on(id, side, Lane::Connection)
    }

    /// The same on a lane; what was made for another one may be on its way still.
    pub fn out_on(&mut self, id: u64, side: usize, lane: Lane) -> Option<&mut Vec<u8>> {
        let way = self.wires.get_mut(&id).map(|wire| &mut wire.ways[lane as usize][side]);
        way.map(|way| &mut way.unsent).filter(|unsent| unsent.is_empty())
    }

    /// The end `side` sends as much as there is room for, or less; it arrives within two of `step`.
    pub fn send(&mut self, id: u64, side: usize, now: Duration, step: Duration, rng: &mut Rng) {
        self.send_on(id, side, Lane::Connection, now, step, rng);
    }

    /// The same on a lane.
    pub fn send_on(&mut self, id: u64, side: usize, lane: Lane, now: Duration, step: Duration, rng: &mut Rng) {
        let Some(wire) = self.wires.get_mut(&id) else { return };
        let way = &mut wire.ways[lane as usize][side];
        let room = wire.capacity.saturating_sub(way.in_flight).min(way.unsent.len());
        let part = if rng.one_in(4) { rng.below(room as u64 + 1) as usize } else { room };
        if part > 0 {
            let mut arrives = (now + step * rng.below(3) as u32).max(wire.cut);
            arrives = way.flight.back().map_or(arrives, |(before, _)| arrives.max(*before));
            way.flight.push_back((arrives, way.unsent.drain(..part).collect()));
            way.in_flight += part;
        }
    }

    /// The end `side` receives no more than `most` bytes. What is not taken in is put back (`keep`).
    pub fn receive(&mut self, id: u64, side: usize, now: Duration, most: usize) -> Option<Received> {
        self.receive_on(id, side, Lane::Connection, now, most)
    }

    /// The same on a lane.
    pub fn receive_on(&mut self, id: u64, side: usize, lane: Lane, now: Duration, most: usize) -> Option<Received> {
        let wire = self.wires.get_mut(&id).filter(|wire| wire.open[side])?;
        let (host, bearer) = wire.ends[side];
        let way = &mut wire.ways[lane as usize][1 - side];
        let mut taken = 0;
        while taken < most
            && let Some((arrives, bytes)) = way.flight.front_mut()
            && *arrives <= now
        {
            let part = bytes.len().min(most - taken);
            way.input.extend(bytes.drain(..part));
            if bytes.is_empty() {
                way.flight.pop_front();
            }
            taken += part;
        }
        way.in_flight -= taken;
        let ended = lane == Lane::Connection && !wire.open[1 - side] && way.flight.is_empty() && wire.cut <= now;
        Some(Received { host, bearer, input: std::mem::take(&mut way.input), news: taken > 0, ended })
    }

    /// What the end `side` has received and not taken in.
    pub fn keep(&mut self, id: u64, side: usize, rest: &[u8]) {
        self.keep_on(id, side, Lane::Connection, rest);
    }

    /// The same on a lane.
    pub fn keep_on(&mut self, id: u64, side: usize, lane: Lane, rest: &[u8]) {
        if let Some(wire) = self.wires.get_mut(&id) {
            wire.ways[lane as usize][1 - side].input = rest.to_vec();
        }
    }

    /// Nothing gets through before `until`, and then all of it.
    pub fn cut(&mut self, id: u64, until: Duration) {
        let Some(wire) = self.wires.get_mut(&id) else { return };
        wire.cut = until;
        for way in wire.ways.iter_mut().flatten() {
            for (arrives, _) in &mut way.flight {
                *arrives = (*arrives).max(until);
            }
        }
    }
}
