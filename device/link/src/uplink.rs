//! The way from the devices of this process to those of other hosts, for a server of virtual machines.
//!
//! Whoever rings a doorbell only leaves a note here (`Queue`), and goes on. One thread owns the links: it reads the
//! notes, asks devices for payload when its turn to leave has come, and hands in what other hosts have for them.
//!
//! **Locks.** Notes are left with a send queue, or a table of GIDs, locked; so the queue's lock comes after all of a
//! device's, and nobody who holds it calls anything. The links have no lock: they are the thread's own. When it calls a
//! device it holds nothing at all, so it may wait there for a doorbell, and no doorbell ever waits for it.

pub mod devices;
mod from_device;
mod inbound;
mod queue;

use crate::links::{Links, Report, Settings, WAKER};
use anyhow::Context;
use devices::Devices;
use mio::{Events, Poll, Waker};
use pvrdma_device::transport::fabric::Fabric;
use pvrdma_device::transport::path::Paths;
use queue::Queue;
use std::io::ErrorKind;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// A fabric of this process that is linked to other hosts, as long as it is kept.
pub struct Uplink {
    queue: Arc<Queue>,
    fabric: Arc<Fabric>,
    thread: Option<JoinHandle<()>>,
}

impl Uplink {
    /// Listens and dials, from a thread of its own. Devices may join the fabric at once, and use those paths.
    pub fn start(settings: Settings, paths: Paths) -> anyhow::Result<Uplink> {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKER)?;
        let number = settings.fabric.as_ref().map_or(0, |fabric| fabric.number);
        let links = Links::new(settings, poll.registry().try_clone()?)?;
        // It fails for a descriptor that is none, and then the thread has ended.
        let devices = Devices::new(number, paths, move || drop(waker.wake()));
        let (queue, fabric) = (devices.queue.clone(), devices.fabric().clone());
        let thread = thread::Builder::new().name("pvrdma-uplink".into()).spawn(move || run(poll, links, devices));
        Ok(Uplink { queue, fabric, thread: Some(thread.context("cannot start a thread")?) })
    }

    /// For whoever wants to know how the links fare.
    pub fn reporter(&self) -> Reporter {
        Reporter(self.queue.clone())
    }

    /// Where devices join.
    pub fn fabric(&self) -> &Arc<Fabric> {
        &self.fabric
    }
}

/// Asks how the links of an [`Uplink`] fare, from whatever thread.
#[derive(Clone)]
pub struct Reporter(Arc<Queue>);

impl Reporter {
    /// `None`: whoever has them does not say so in time, or has ended.
    pub fn report(&self, patience: Duration) -> Option<Report> {
        let (tell, told) = mpsc::channel();
        self.0.ask(tell);
        told.recv_timeout(patience).ok()
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

fn run(mut poll: Poll, mut links: Links, mut devices: Devices) {
    let mut events = Events::with_capacity(64);
    let mut limit = Some(Duration::ZERO);
    loop {
        if let Err(error) = poll.poll(&mut events, limit)
            && error.kind() != ErrorKind::Interrupted
        {
            devices.complain(format_args!("this host's links end: {error}"));
            return;
        }
        for event in &events {
            links.is_ready(event);
        }
        let now = links.now();
        for asker in devices.take_notes(links.hosts(), now) {
            links.look_for_renewal();
            // It may have given up.
            let _ = asker.send(links.report(devices.number, devices.outbound.len(), devices.inbound.len()));
        }
        let more = links.turn(&mut devices);
        devices.set_routes(links.hosts());
        devices.tell_of_room();
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
