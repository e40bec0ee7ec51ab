//! The gateway of a host: what guests of the stand-in have for other hosts, and what comes for them.
//!
//! It is a process of the host's fabric. What it takes over from guests stands in `asked` until the other host has
//! answered. What other hosts ask for goes through one queue for each pair of QPs, so that it reaches its target in
//! order, and stands in `flying` while the target has it.

mod inbound;
mod outbound;

use crate::links::{Links, Settings};
use crate::near::Near;
use anyhow::Context;
use inbound::Inbound;
use outbound::Outbound;
use pvrdma_device::guest::{Guest, MAX_GUESTS, Roce};
use pvrdma_fabric::segment::{GATEWAY, Segment};
use pvrdma_fabric::transport::HostTransport;
use pvrdma_net::connection::Stats;
use pvrdma_net::event::{Arrival, ReplyKey, Source, Token};
use pvrdma_net::fabric::FabricHost;
use pvrdma_net::frame::Answer;
use pvrdma_net::hosts::{HostEvent, Hosts};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How often it is looked whether who asked still waits, and whether who was asked is still there.
const LOOK: Duration = Duration::from_millis(50);
/// A target that had no room is tried again after this time, if nothing else happens.
const AGAIN: Duration = Duration::from_micros(500);

/// The guests of this host.
struct Guests {
    transport: Arc<HostTransport>,
    outbound: Outbound,
    inbound: Inbound,
    looked: Duration,
}

impl Guests {
    fn new(transport: Arc<HostTransport>) -> Guests {
        Guests {
            outbound: Outbound::new(transport.clone()),
            inbound: Inbound::new(transport.clone()),
            transport,
            looked: Duration::ZERO,
        }
    }

    /// Takes in what guests have sent and answered.
    fn pump(&mut self, hosts: &mut Hosts, now: Duration) -> bool {
        let inbox = outbound::Inbox::default();
        if !self.transport.pump_for(&inbox) {
            return false;
        }
        for (token, answer) in inbox.answers() {
            self.inbound.answered(hosts, now, token, answer);
        }
        self.outbound.take(hosts, now, inbox);
        true
    }

    fn look(&mut self, hosts: &mut Hosts, now: Duration) {
        if now >= self.looked + LOOK {
            self.looked = now;
            self.outbound.look(hosts, now);
            self.inbound.look(hosts, now);
        }
        self.inbound.try_again(hosts, now);
    }

    /// How long it may sleep.
    fn patience(&self) -> Option<Duration> {
        match () {
            () if self.inbound.is_stuck() => Some(AGAIN),
            () if !self.outbound.is_idle() || !self.inbound.is_idle() => Some(LOOK),
            () => None,
        }
    }
}

impl Source for Guests {
    fn payload(&mut self, token: Token, offset: u64, into: &mut [u8]) -> bool {
        self.outbound.payload(token, offset, into)
    }

    fn reply(&mut self, key: ReplyKey, offset: u64, into: &mut [u8]) -> Result<bool, Answer> {
        self.inbound.reply(key, offset, into)
    }
}

impl Near for Guests {
    fn arrived(&mut self, hosts: &mut Hosts, now: Duration, arrival: Arrival<'_>) {
        match arrival {
            Arrival::Segment { ends, segment, payload, receipt } => {
                self.inbound.segment(hosts, now, &ends, &segment, payload, receipt);
            }
            Arrival::Datagram { datagram, payload, hold } => {
                let request = crate::convert::from_datagram(&datagram, payload.len());
                self.transport.submit_datagram(&request, payload);
                hosts.release(hold);
            }
            Arrival::Data { token, offset, payload, hold } => {
                self.outbound.data(hosts, now, token, offset, payload);
                hosts.release(hold);
            }
        }
    }

    fn happened(&mut self, hosts: &mut Hosts, now: Duration, event: HostEvent) {
        match event {
            HostEvent::Answered(token, answer) => self.outbound.answered(token, answer),
            HostEvent::Room(ends) => self.outbound.room(hosts, now, &ends),
            HostEvent::RoomForAll(_) => self.outbound.room_for_all(hosts, now),
            HostEvent::ReplyEnded(key) => self.inbound.reply_ended(hosts, now, key),
            _ => {}
        }
    }

    fn settle(&mut self, hosts: &mut Hosts, now: Duration) {
        self.inbound.go_on(hosts, now);
    }
}

struct Shared {
    links: Links,
    guests: Guests,
    /// Until when the thread that waits for the guests sleeps.
    asleep_until: Option<Instant>,
}

impl Shared {
    /// Does all that can be done. When there is something to do again, at the latest.
    fn turn(&mut self, all: bool) -> Option<Duration> {
        let now = self.links.now();
        self.guests.pump(self.links.hosts(), now);
        self.guests.look(self.links.hosts(), now);
        let more = match all || self.links.deadline().is_some_and(|deadline| deadline <= now) {
            true => self.links.turn(&mut self.guests),
            false => {
                self.links.flush(&mut self.guests);
                false
            }
        };
        if more {
            return Some(Duration::ZERO);
        }
        let now = self.links.now();
        let links = self.links.deadline().map(|deadline| deadline.saturating_sub(now));
        [links, self.guests.patience()].into_iter().flatten().min()
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How the gateway fares.
pub struct Report {
    /// Its host.
    pub number: u16,
    /// Whether links have TLS.
    pub encrypted: bool,
    /// Requests of this host's guests without an answer.
    pub asked: usize,
    /// Pieces of others' requests that guests have.
    pub serving: usize,
    /// All other hosts.
    pub hosts: Vec<HostReport>,
}

/// Another host.
pub struct HostReport {
    /// Its number.
    pub number: u16,
    /// Its name.
    pub name: String,
    /// Where it is dialed.
    pub address: SocketAddr,
    /// If there is one.
    pub link: Option<Stats>,
}

/// Makes a report readable: as JSON, or as text.
pub type Show = fn(&Report, json: bool) -> String;

/// Carries requests between the guests below `dir` and other hosts, until SIGTERM or SIGINT. `ready` is called when
/// guests and hosts can reach it. Who connects to `socket` is told how it fares, in the words of `show`.
pub fn run(dir: &Path, socket: &Path, settings: Settings, show: Show, ready: impl FnOnce()) -> anyhow::Result<()> {
    let signals = nix::sys::signal::SigSet::from_iter([nix::sys::signal::SIGTERM, nix::sys::signal::SIGINT]);
    signals.thread_block()?;
    let host = u8::try_from(settings.fabric.number).context("a host's number is 1 to 254")?;
    let mut poll = mio::Poll::new()?;
    let links = Links::new(settings, poll.registry().try_clone()?)?;
    let segment =
        Segment::join(dir, host, GATEWAY, |file| file).with_context(|| dir.join("fabric").display().to_string())?;
    // Guests copy from and to this process's memory; where yama restricts that to parents, they need its leave.
    // SAFETY: no pointers.
    unsafe { libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY) };
    let transport = HostTransport::new(segment);
    let mut shared = Shared { links, guests: Guests::new(transport.clone()), asleep_until: None };
    for index in 0..MAX_GUESTS {
        for (_, gid) in Guest::new(host, index, Roce::V2).into_iter().flat_map(Guest::gids) {
            shared.links.hosts().bind(&gid);
        }
    }
    let shared = Arc::new(Mutex::new(shared));
    let (of_guests, other) = (shared.clone(), transport.clone());
    thread::Builder::new().name("guests".into()).spawn(move || wait_for_guests(&of_guests, &other))?;
    transport.segment().become_gateway();
    let (of_hosts, other) = (shared.clone(), transport.clone());
    thread::Builder::new().name("hosts".into()).spawn(move || {
        let mut events = mio::Events::with_capacity(64);
        let mut limit = None;
        loop {
            if let Err(error) = poll.poll(&mut events, limit)
                && error.kind() != std::io::ErrorKind::Interrupted
            {
                eprintln!("pvrdma link: {error}");
                std::process::exit(1);
            }
            limit = hosts_turn(&of_hosts, &other, &events);
        }
    })?;
    // What is there was left by one that was killed: its lock is ours.
    let _ = std::fs::remove_file(socket);
    let listener = UnixListener::bind(socket).with_context(|| format!("cannot listen on {}", socket.display()))?;
    let asked = shared.clone();
    thread::Builder::new().name("status".into()).spawn(move || tell(&asked, host.into(), &listener, show))?;
    ready();
    signals.wait()?;
    let _ = std::fs::remove_file(socket);
    let mut shared = lock(&shared);
    let Shared { links, guests, .. } = &mut *shared;
    links.stop(guests);
    transport.segment().leave();
    Ok(())
}

/// Tells whoever asks.
fn tell(shared: &Mutex<Shared>, number: u16, listener: &UnixListener, show: Show) {
    for asker in listener.incoming() {
        let Ok(mut asker) = asker else {
            thread::sleep(LOOK);
            continue;
        };
        // It need not say anything, and need not listen.
        let _ = asker.set_read_timeout(Some(LOOK));
        let _ = asker.set_write_timeout(Some(LOOK));
        let mut word = [0; 5];
        let json = asker.read_exact(&mut word).is_ok() && word == *b"json\n";
        let report = {
            let shared = lock(shared);
            let host = |(host, link): (&FabricHost, Option<Stats>)| HostReport {
                number: host.number,
                name: host.name.clone(),
                address: host.address,
                link,
            };
            Report {
                number,
                encrypted: shared.links.is_encrypted(),
                asked: shared.guests.outbound.len(),
                serving: shared.guests.inbound.len(),
                hosts: shared.links.others().map(host).collect(),
            }
        };
        let _ = asker.write_all(show(&report, json).as_bytes());
    }
}

/// Sockets have something. How long to wait for more: the other thread keeps the time.
fn hosts_turn(shared: &Mutex<Shared>, transport: &HostTransport, events: &mio::Events) -> Option<Duration> {
    let mut shared = lock(shared);
    for event in events {
        shared.links.is_ready(event);
    }
    let limit = shared.turn(true);
    let until = limit.map(|limit| Instant::now() + limit);
    let earlier = until.is_some_and(|until| shared.asleep_until.is_none_or(|asleep| until < asleep));
    drop(shared);
    if limit == Some(Duration::ZERO) {
        return limit;
    }
    if earlier {
        transport.segment().own().bell.wake_side();
    }
    None
}

/// Guests have something, or time has passed.
fn wait_for_guests(shared: &Mutex<Shared>, transport: &HostTransport) {
    // As long as this thread there is the memory that guests may reach.
    transport.segment().guard();
    let bell = &transport.segment().own().bell;
    loop {
        let ticket = bell.side_ticket();
        let limit = {
            let mut shared = lock(shared);
            let limit = shared.turn(false);
            shared.asleep_until = limit.map(|limit| Instant::now() + limit);
            limit
        };
        if limit != Some(Duration::ZERO) {
            bell.wait_side(ticket, limit);
        }
    }
}
