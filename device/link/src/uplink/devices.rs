//! The devices of a process, as the links to other hosts see them.
//!
//! It has no thread and no socket: whoever owns the links has it read the devices' notes, and hands it what happens.

use super::from_device::FromDevice;
use super::inbound::Inbound;
use super::queue::{Note, Queue};
use crate::links::Report;
use crate::log::Log;
use crate::near::Near;
use crate::outbound::{self, Outbound};
use pvrdma_device::transport::fabric::Fabric;
use pvrdma_device::transport::path::Paths;
use pvrdma_net::event::{Arrival, ReplyKey, Source, Token as Asked};
use pvrdma_net::frame::{Answer, Gid};
use pvrdma_net::gids;
use pvrdma_net::hosts::{HostEvent, Hosts};
use std::collections::HashSet;
use std::fmt::Arguments;
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// See the module text.
pub struct Devices {
    pub(super) number: u16,
    pub(super) queue: Arc<Queue>,
    fabric: Arc<Fabric>,
    pub(super) outbound: Outbound<FromDevice>,
    pub(super) inbound: Inbound,
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

impl Devices {
    /// None yet, on host `number`; they use those `paths`. `wake` is called, by any thread, when there is a note for
    /// whoever owns the links and sleeps.
    pub fn new(number: u16, paths: Paths, wake: impl Fn() + Send + Sync + 'static) -> Devices {
        let queue = Arc::new(Queue::new(wake));
        let fabric = Fabric::of(paths, Some(queue.clone()));
        let inbound = Inbound::new(fabric.clone());
        Devices { number, queue, fabric, outbound: Outbound::default(), inbound, log: Log::default() }
    }

    /// Where devices join.
    pub fn fabric(&self) -> &Arc<Fabric> {
        &self.fabric
    }

    /// Whether nobody waits for anything, here or on another host.
    pub fn is_idle(&self) -> bool {
        self.outbound.is_empty() && self.inbound.is_empty() && self.queue.is_empty()
    }

    /// Tells devices that there is room where there was none.
    pub fn tell_of_room(&self) {
        self.queue.tell_of_room();
    }

    pub(super) fn complain(&self, text: Arguments<'_>) {
        self.log.line(text);
    }

    /// Devices see by which host an address can be reached, if that has changed.
    pub fn set_routes(&self, hosts: &mut Hosts) {
        if let Some(routes) = hosts.take_routes() {
            self.queue.set_routes(routes);
        }
    }

    /// Reads what devices have left, in its order: a request comes after its address was bound. Returns who wants to
    /// know how the links fare.
    pub fn take_notes(&mut self, hosts: &mut Hosts, now: Duration) -> Vec<mpsc::Sender<Report>> {
        let mut askers = Vec::new();
        // A QP takes back all that it has before it asks again; those of others may wait for the end.
        let (mut taken_back, mut of) = (HashSet::new(), HashSet::new());
        for note in self.queue.take() {
            match note {
                Note::Asked { id, origin, request } => {
                    if of.contains(&(origin.port, request.token.qp)) {
                        self.forget(hosts, now, &mut taken_back);
                        of.clear();
                    }
                    let queue = self.queue.clone();
                    self.outbound.ask(hosts, now, FromDevice { queue, origin, request, id });
                }
                Note::TakenBack { id, port, qp } => {
                    taken_back.insert(id);
                    of.insert((port, qp));
                }
                Note::Datagram { port, request, payload } => {
                    outbound::send_datagram(hosts, &request, &payload);
                    self.queue.datagram_left(port);
                }
                Note::Bound(gid, bound) => self.bound(hosts, &gid, bound),
                Note::Tell(asker) => askers.push(asker),
            }
        }
        self.forget(hosts, now, &mut taken_back);
        askers
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
            HostEvent::Down(host) => self.queue.set_by_adapter(host, false),
            HostEvent::Moved { gid, to } => self.fabric.set_elsewhere(&gid, to != self.number),
            _ => {}
        }
    }

    fn carried(&mut self, host: u16) {
        self.queue.set_by_adapter(host, true);
    }

    /// Nothing was put off.
    fn settle(&mut self, _hosts: &mut Hosts, _now: Duration) {}
}
