//! Datagrams: their payload travels in the slot, so that nobody waits for anybody, and one that finds no room is lost.

use super::{Body, Flying, HostTransport, Outbox};
use crate::segment::{GSI, Process, Route, slot_state};
use crate::sync::Ordering;
use crate::words::encode;
use pvrdma_device::handle::Gid;
use pvrdma_device::memory::{Memory, Span};
use pvrdma_device::transport::{Answer, DATAGRAM_MAX, Payload, Request, Submitted};
use std::time::{Duration, Instant};

impl HostTransport {
    /// Sends a datagram: its payload travels in the slot, so that nobody waits for the target.
    pub(super) fn send_datagram(&self, request: &Request, memory: &dyn Memory, local: &[Span]) -> Submitted {
        let mut buffer = [0u8; DATAGRAM_MAX as usize];
        let payload = usize::try_from(request.len).ok().and_then(|len| buffer.get_mut(..len));
        let Some(payload) = payload else { return Submitted::Answered(Answer::RequesterFault) };
        if memory.gather(local, payload).is_err() {
            return Submitted::Answered(Answer::RequesterFault);
        }
        self.deliver_datagram(request, payload)
    }

    /// Sends a datagram with this payload.
    pub(crate) fn deliver_datagram(&self, request: &Request, payload: &[u8]) -> Submitted {
        let route = self.segment.route(&request.dest.gid);
        if request.dest.qpn.0 == GSI && route == Route::Here {
            return self.send_to_managers(request, payload);
        }
        let target = match route {
            Route::Here => self.target(&request.dest),
            route => self.segment.carrier(route),
        };
        let Some(target) = target else {
            return Submitted::Answered(Answer::Silence);
        };
        if target.index == self.segment.index() {
            let answer = self.receive_here(request, &Payload(payload));
            return Submitted::Answered(answer);
        }
        match self.send(request.token, &encode(request), target, Body::Bytes(payload)) {
            Submitted::Busy => {
                self.reclaim_datagrams();
                Submitted::Busy
            }
            _ => Submitted::Answered(Answer::Ack),
        }
    }

    /// Sends a management datagram. One that finds no room is lost, as at a switch: its sender repeats what matters.
    fn send_to_managers(&self, request: &Request, payload: &[u8]) -> Submitted {
        for target in self.managers(&request.dest.gid) {
            if target.index == self.segment.index() {
                self.receive_here(request, &Payload(payload));
            } else if self.send(request.token, &encode(request), target, Body::Bytes(payload)) == Submitted::Busy {
                self.reclaim_datagrams();
            }
        }
        Submitted::Answered(Answer::Ack)
    }

    /// Waits until the datagrams that were sent have been taken in, at most `patience`: they lie in this process's
    /// region, and what was sent does not vanish when its sender leaves.
    pub fn linger(&self, patience: Duration) {
        let begin = Instant::now();
        let own = self.segment.own();
        let waiting = |flight: &Flying| {
            let word = own.slots[usize::from(flight.slot)].word.load(Ordering::Acquire);
            flight.datagram && word == flight.sequence << 16 | slot_state::QUEUED && self.segment.alive(flight.target)
        };
        // A thread of this process may have died with the lock held; then there is nothing to wait for.
        while self.out.try_lock().is_ok_and(|out| out.flying.iter().any(waiting)) && begin.elapsed() < patience {
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Takes back the slots of datagrams whose target died.
    fn reclaim_datagrams(&self) {
        let mut out = self.outbox();
        let own = self.segment.own();
        let Outbox { free, flying, .. } = &mut *out;
        // Asked once for each of few targets, and now and then: this comes with each datagram for which there is no
        // room, when there is least time for it.
        let mut targets: Vec<(Process, bool)> = Vec::new();
        let mut runs = |target: Process| match targets.iter().find(|(known, _)| *known == target) {
            Some((_, runs)) => *runs,
            None => {
                let runs = self.segment.has_its_pid(target);
                targets.push((target, runs));
                runs
            }
        };
        flying.retain(|flight| {
            let slot = &own.slots[usize::from(flight.slot)];
            let gone = flight.datagram && !runs(flight.target);
            if gone {
                slot.word.store(slot_state::FREE, Ordering::Release);
                free.push(flight.slot);
            }
            !gone
        });
    }

    /// The first of them, by region.
    pub fn first_manager(&self, gid: &Gid) -> Option<usize> {
        self.managers(gid).next().map(|process| process.index)
    }

    /// The processes of the guest with this address that have a management QP. Each plays the guest's kernel for its
    /// own programs, so each gets every management datagram, and knows which are for it.
    fn managers<'a>(&'a self, gid: &'a Gid) -> impl Iterator<Item = Process> + 'a {
        self.segment.used().filter_map(move |index| {
            let process = self.segment.process(index).filter(|process| self.segment.reaches(*process, gid))?;
            let qp = self.segment.region(index)?.qps.get(GSI as usize)?;
            let has_one = qp.qpn.load(Ordering::Relaxed) == GSI && self.segment.has_its_pid(process);
            has_one.then_some(process)
        })
    }
}
