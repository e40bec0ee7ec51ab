//! The way from the devices of this process to those of other hosts, for a server of virtual machines.
//!
//! Whoever rings a doorbell only leaves a note here (`Queue`), and goes on. One thread owns the links: it reads the
//! notes, asks devices for payload when its turn to leave has come, and hands in what other hosts have for them.
//!
//! **Locks.** Notes are left with a send queue, or a table of GIDs, locked; so the queue's lock comes after all of a
//! device's, and nobody who holds it calls anything. The links have no lock: they are the thread's own. When it calls a
//! device it holds nothing at all, so it may wait there for a doorbell, and no doorbell ever waits for it.

mod from_device;
mod inbound;
mod queue;

use crate::links::{Links, Settings, WAKER};
use crate::log::Log;
use crate::near::Near;
use crate::outbound::{self, Outbound};
use anyhow::Context;
use from_device::FromDevice;
use inbound::Inbound;
use mio::{Events, Poll, Waker};
use pvrdma_device::transport::fabric::Fabric;
use pvrdma_net::event::{Arrival, ReplyKey, Source, Token as Asked};
use pvrdma_net::frame::{Answer, Gid};
use pvrdma_net::gids;
use pvrdma_net::hosts::{HostEvent, Hosts};
use queue::{Note, Queue};
use std::collections::HashSet;
use std::io::ErrorKind;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// A fabric of this process that is linked to other hosts, as long as it is kept.
pub struct Uplink {
    queue: Arc<Queue>,
    fabric: Arc<Fabric>,
    thread: Option<JoinHandle<()>>,
}

impl Uplink {
    /// Listens and dials, from a thread of its own. Devices may join the fabric at once.
    pub fn start(settings: Settings) -> anyhow::Result<Uplink> {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKER)?;
        let number = settings.fabric.number;
        let links = Links::new(settings, poll.registry().try_clone()?)?;
        let queue = Arc::new(Queue::new(waker));
        let fabric = Fabric::linked(queue.clone());
        let devices = Devices {
            number,
            queue: queue.clone(),
            fabric: fabric.clone(),
            outbound: Outbound::default(),
            inbound: Inbound::new(fabric.clone()),
            log: Log::default(),
        };
        let thread = thread::Builder::new().name("pvrdma-uplink".into()).spawn(move || run(poll, links, devices));
        Ok(Uplink { queue, fabric, thread: Some(thread.context("cannot start a thread")?) })
    }

    /// Where devices join.
    pub fn fabric(&self) -> &Arc<Fabric> {
        &self.fabric
    }
}

impl Drop for Uplink {
    /// Says good-bye to the other hosts. What devices still ask for is answered by silence.
    fn drop(&mut self) {
        self.queue.stop();
        if let Some(thread) = self.thread.take() {
            // One that panicked has ended too, and its message has been printed.
            let _ = thread.join();
        }
    }
}

/// The devices of this process, as the links see them.
struct Devices {
    number: u16,
    queue: Arc<Queue>,
    fabric: Arc<Fabric>,
    outbound: Outbound<FromDevice>,
    inbound: Inbound,
    log: Log,
}

impl Drop for Devices {
    /// However the thread ends, nobody waits for it any more.
    fn drop(&mut self) {
        self.queue.close();
        self.outbound.give_up();
        self.queue.tell_of_room();
    }
}

fn run(mut poll: Poll, mut links: Links, mut devices: Devices) {
    let mut events = Events::with_capacity(64);
    let mut limit = Some(Duration::ZERO);
    loop {
        if let Err(error) = poll.poll(&mut events, limit)
            && error.kind() != ErrorKind::Interrupted
        {
            devices.log.line(format_args!("this host's links end: {error}"));
            return;
        }
        for event in &events {
            links.is_ready(event);
        }
        let now = links.now();
        devices.take_notes(links.hosts(), now);
        let more = links.turn(&mut devices);
        devices.queue.tell_of_room();
        if devices.queue.is_stopped() {
            links.stop(&mut devices);
            return;
        }
        limit = match more || !devices.queue.fall_asleep() {
            true => Some(Duration::ZERO),
            false => links.deadline().map(|deadline| deadline.saturating_sub(links.now())),
        };
    }
}

impl Devices {
    /// Reads what devices have left, in its order: a request comes after its address was bound.
    fn take_notes(&mut self, hosts: &mut Hosts, now: Duration) {
        // A QP takes back all that it has before it asks again.
        let mut taken_back = HashSet::new();
        for note in self.queue.take() {
            match note {
                Note::Asked { id, origin, request } => {
                    self.forget(hosts, now, &mut taken_back);
                    let queue = self.queue.clone();
                    self.outbound.ask(hosts, now, FromDevice { queue, origin, request, id });
                }
                Note::TakenBack(id) => drop(taken_back.insert(id)),
                Note::Datagram { port, request, payload } => {
                    outbound::send_datagram(hosts, &request, &payload);
                    self.queue.datagram_left(port);
                }
                Note::Bound(gid, bound) => self.bound(hosts, &gid, bound),
            }
        }
        self.forget(hosts, now, &mut taken_back);
    }

    fn forget(&mut self, hosts: &mut Hosts, now: Duration, taken_back: &mut HashSet<u64>) {
        if !taken_back.is_empty() {
            self.outbound.forget(hosts, now, |requested| taken_back.contains(&requested.id));
            taken_back.clear();
        }
    }

    fn bound(&mut self, hosts: &mut Hosts, gid: &Gid, bound: bool) {
        if !gids::may_have(self.number, gid) {
            // Another host would end the connection over it, and a guest may bind what it likes.
            if bound {
                self.log.once("address", format_args!("a guest has an address that no guest of this host may have"));
            }
            return;
        }
        if !bound {
            return hosts.unbind(gid);
        }
        let owner = hosts.bind(gid).filter(|owner| *owner != self.number);
        if let Some(owner) = owner {
            self.log.once("taken", format_args!("a guest has an address that host {owner} has; host {owner} keeps it"));
        }
        self.fabric.set_elsewhere(gid, owner.is_some());
    }
}

impl Source for Devices {
    fn payload(&mut self, token: Asked, offset: u64, into: &mut [u8]) -> bool {
        self.outbound.payload(token, offset, into)
    }

    fn reply(&mut self, key: ReplyKey, offset: u64, into: &mut [u8]) -> Result<bool, Answer> {
        self.inbound.reply(key, offset, into)
    }
}

impl Near for Devices {
    fn arrived(&mut self, hosts: &mut Hosts, now: Duration, arrival: Arrival<'_>) {
        match arrival {
            Arrival::Segment { ends, segment, payload, receipt } => {
                self.inbound.segment(hosts, now, &ends, &segment, payload, receipt);
            }
            Arrival::Datagram { datagram, payload, hold } => {
                self.inbound.datagram(&datagram, payload);
                hosts.release(hold);
            }
            Arrival::Data { token, offset, payload, hold } => {
                self.outbound.data(hosts, now, token, offset, payload, hold);
            }
        }
    }

    fn happened(&mut self, hosts: &mut Hosts, now: Duration, event: HostEvent) {
        match event {
            _ if self.outbound.happened(hosts, now, &event) => {}
            HostEvent::ReplyEnded(key) => self.inbound.reply_ended(hosts, now, key),
            HostEvent::Moved { gid, to } => self.fabric.set_elsewhere(&gid, to != self.number),
            _ => {}
        }
    }

    /// Nothing was put off.
    fn settle(&mut self, _hosts: &mut Hosts, _now: Duration) {}
}
