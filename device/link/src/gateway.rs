//! The gateway of a host: what guests of the stand-in have for other hosts, and what comes for them.
//!
//! It is a process of the host's fabric. What it takes over from guests stands in `outbound` until the other host has
//! answered. What other hosts ask for goes through one queue for each pair of QPs, so that it reaches its target in
//! order, and stands in `flying` while the target has it. What goes to an address that is no guest's leaves as RoCE
//! packets (`wire.rs`), and the same comes back.

mod datagrams;
mod inbound;
mod inbox;
mod wire;

use crate::links::{Links, Report, Settings, WAKER};
use crate::near::Near;
use crate::outbound::{Outbound, Requested};
use crate::tell;
use anyhow::Context;
use datagrams::Datagrams;
use inbound::Inbound;
use inbox::{FromGuest, Inbox};
use nix::sys::signal::{SigSet, Signal};
use pvrdma_capture::recorder::Recorder;
use pvrdma_device::guest::{Guest, MAX_GUESTS, Roce};
use pvrdma_device::transport::path::Paths;
use pvrdma_fabric::segment::{GATEWAY, Route, Segment};
use pvrdma_fabric::transport::HostTransport;
use pvrdma_net::event::{Arrival, ReplyKey, Source, Token};
use pvrdma_net::frame::Answer;
use pvrdma_net::hosts::{HostEvent, Hosts};
use std::io::{self, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use wire::{Opened, Wire};
pub use wire::{Port, interface_of};

/// How often it is looked whether who asked still waits, and whether who was asked is still there.
const LOOK: Duration = Duration::from_millis(50);
/// A target that had no room is tried again after this time, if nothing else happens.
const AGAIN: Duration = Duration::from_micros(500);
/// The socket of RoCE, in the poll.
const WIRE: mio::Token = mio::Token(usize::MAX - 2);

/// The guests of this host.
struct Guests {
    transport: Arc<HostTransport>,
    outbound: Outbound<FromGuest>,
    inbound: Inbound,
    datagrams: Datagrams,
    wire: Option<Wire>,
    looked: Duration,
    /// Writes down what the guests of this host ask of other hosts.
    recorder: Option<Arc<Recorder>>,
}

impl Guests {
    fn new(transport: Arc<HostTransport>, recorder: Option<Arc<Recorder>>, wire: Option<Opened>) -> Guests {
        Guests {
            wire: wire.map(|socket| Wire::new(socket, transport.clone(), recorder.clone())),
            outbound: Outbound::default(),
            inbound: Inbound::new(transport.clone()),
            datagrams: Datagrams::new(transport.clone()),
            transport,
            looked: Duration::ZERO,
            recorder,
        }
    }

    /// Takes in what guests have sent and answered.
    fn pump(&mut self, hosts: &mut Hosts, now: Duration) {
        let inbox = Inbox::default();
        if !self.transport.pump_for(&inbox) {
            return;
        }
        for (token, answer) in inbox.answers.into_inner() {
            if self.wire.as_mut().is_some_and(|wire| wire.answered(token, answer)) {
                continue;
            }
            self.inbound.answered(hosts, now, token, answer);
        }
        for taken in inbox.requests.into_inner() {
            if self.transport.segment().route(&taken.request.dest.gid) == Route::Wire {
                let requested = FromGuest { transport: self.transport.clone(), taken, recorder: None };
                match &mut self.wire {
                    Some(wire) => wire.ask(requested),
                    None => requested.answer(pvrdma_device::transport::Answer::Silence),
                }
                continue;
            }
            if let Some(recorder) = &self.recorder {
                recorder.asked(&taken.request);
            }
            let (transport, recorder) = (self.transport.clone(), self.recorder.clone());
            self.outbound.ask(hosts, now, FromGuest { transport, taken, recorder });
        }
        for (taken, bytes) in inbox.datagrams.into_inner() {
            if self.transport.segment().route(&taken.request.dest.gid) == Route::Wire {
                if let Some(wire) = &mut self.wire {
                    wire.send_datagram(&taken.request, &bytes);
                }
                self.transport.give(&taken, pvrdma_device::transport::Answer::Ack);
                continue;
            }
            if let Some(recorder) = &self.recorder {
                recorder.datagram(&taken.request, &bytes);
            }
            self.datagrams.leave(hosts, now, taken, bytes);
        }
    }

    fn look(&mut self, hosts: &mut Hosts, now: Duration) {
        self.transport.segment().gateway_goes_round();
        if now >= self.looked + LOOK {
            self.looked = now;
            self.outbound.forget(hosts, now, FromGuest::is_forgotten);
            self.inbound.look(hosts, now);
            if let Some(wire) = &mut self.wire {
                wire.look(now);
            }
        }
        self.inbound.try_again(hosts, now);
        self.datagrams.try_again(hosts, now);
    }

    /// Guests see where they can go.
    fn linked(&self, host: u16, linked: bool) {
        if let Ok(host) = u8::try_from(host) {
            self.transport.segment().set_linked(host, linked);
        }
    }

    /// How long it may sleep.
    fn patience(&self) -> Option<Duration> {
        let wire = |is: fn(&Wire) -> bool| self.wire.as_ref().is_some_and(is);
        match () {
            () if self.inbound.is_stuck() || !self.datagrams.is_empty() || wire(Wire::is_stuck) => Some(AGAIN),
            () if !self.outbound.is_empty() || !self.inbound.is_idle() || wire(|wire| !wire.is_idle()) => Some(LOOK),
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
                self.datagrams.arrived(hosts, now, request, payload, hold);
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
            HostEvent::Up { host, .. } => self.linked(host, true),
            HostEvent::Down(host) => self.linked(host, false),
            _ => {}
        }
    }

    fn carried(&mut self, host: u16) {
        if let Ok(host) = u8::try_from(host) {
            self.transport.segment().set_by_adapter(host);
        }
    }

    fn settle(&mut self, hosts: &mut Hosts, now: Duration) {
        self.inbound.go_on(hosts, now);
        self.transport.ring_all();
    }
}

struct Shared {
    links: Links,
    guests: Guests,
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
        let more = more | self.guests.wire.as_mut().is_some_and(|wire| wire.turn(now));
        self.guests.transport.ring_all();
        if more {
            return Some(Duration::ZERO);
        }
        let now = self.links.now();
        let links = self.links.deadline().map(|deadline| deadline.saturating_sub(now));
        let wire = self.guests.wire.as_ref().and_then(Wire::deadline).map(|deadline| deadline.saturating_sub(now));
        [links, wire, self.guests.patience()].into_iter().flatten().min()
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes a report readable: as JSON, or as text.
pub type Show = fn(&Report, json: bool) -> String;

/// Carries requests between the guests below `dir` and other hosts, and, by an address of this host, whoever speaks
/// RoCE, until SIGTERM, SIGINT or SIGHUP. `ready` is called when guests and hosts can reach it. Whoever connects to
/// `socket` is told how it fares, in the words of `show`.
pub fn run(
    dir: &Path,
    socket: &Path,
    settings: Settings,
    wire: Option<Port>,
    recorder: Option<Recorder>,
    show: Show,
    ready: impl FnOnce(),
) -> anyhow::Result<()> {
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]);
    signals.thread_block()?;
    let number = settings.fabric.as_ref().map_or(0, |fabric| fabric.number);
    let host = u8::try_from(number).context("a host's number is 1 to 254")?;
    let mut poll = mio::Poll::new()?;
    let links = Links::new(settings, poll.registry().try_clone()?)?;
    let wire = wire.map(|port| wire::open(&port, poll.registry(), WIRE)).transpose()?;
    let segment = Segment::join(dir, host, GATEWAY, Paths::default(), |file| file)
        .with_context(|| dir.join("fabric").display().to_string())?;
    // Guests copy from and to this process's memory; where yama restricts that to parents, they need its leave.
    // SAFETY: no pointers.
    unsafe { libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY) };
    let transport = HostTransport::new(segment);
    let mut shared = Shared { links, guests: Guests::new(transport.clone(), recorder.map(Arc::new), wire) };
    transport.segment().set_wire(shared.guests.wire.as_ref().map(Wire::known));
    for index in 0..MAX_GUESTS {
        for (_, gid) in Guest::new(host, index, Roce::V2).into_iter().flat_map(Guest::gids) {
            shared.links.hosts().bind(&gid);
        }
    }
    let waker = mio::Waker::new(poll.registry(), WAKER)?;
    let gateway = Arc::new(Gateway {
        shared: Mutex::new(shared),
        transport,
        waker,
        turn: Turn::default(),
        begin: Instant::now(),
        cores: thread::available_parallelism().map_or(1, usize::from),
        barred: AtomicU64::new(0),
    });
    let guests = gateway.clone();
    thread::Builder::new().name("guests".into()).spawn(move || {
        let _whole = Whole;
        guests.wait_for_guests();
    })?;
    gateway.transport.segment().become_gateway();
    let hosts = gateway.clone();
    thread::Builder::new().name("hosts".into()).spawn(move || {
        let _whole = Whole;
        if let Err(error) = hosts.wait_for_hosts(&mut poll) {
            let _ = writeln!(io::stderr(), "pvrdma link: {error}");
            std::process::exit(1);
        }
    })?;
    // What is there was left by one that was killed: its lock is ours.
    let _ = std::fs::remove_file(socket);
    let listener = UnixListener::bind(socket).with_context(|| format!("cannot listen on {}", socket.display()))?;
    let asked = gateway.clone();
    thread::Builder::new().name("status".into()).spawn(move || tell(&asked.shared, host.into(), &listener, show))?;
    ready();
    signals.wait()?;
    let _ = std::fs::remove_file(socket);
    let mut locked = lock(&gateway.shared);
    let Shared { links, guests } = &mut *locked;
    links.stop(guests);
    // Its region is given back by its end: until then the threads may still touch it, though they do no more.
    gateway.transport.segment().resign_gateway();
    std::mem::forget(locked);
    Ok(())
}

/// Tells whoever asks.
fn tell(shared: &Mutex<Shared>, number: u16, listener: &UnixListener, show: Show) {
    tell::tell_all(
        || listener.accept().map(|(asker, _)| asker),
        |json| {
            let mut shared = lock(shared);
            shared.links.look_for_renewal();
            let Shared { links, guests } = &*shared;
            let of_wire = |count: fn(&Wire) -> usize| guests.wire.as_ref().map_or(0, count);
            let asked = guests.outbound.len() + of_wire(Wire::asked);
            let serving = guests.inbound.len() + of_wire(Wire::serves);
            let report = links.report(number, asked, serving);
            let report = Report { wire: guests.wire.as_ref().map(Wire::report), ..report };
            drop(shared);
            show(&report, json)
        },
    )
}

/// Held by each thread without which the others are of no use: a gateway that is half dead would keep its place.
struct Whole;

impl Drop for Whole {
    fn drop(&mut self) {
        if thread::panicking() {
            std::process::abort();
        }
    }
}

/// What the threads of a gateway share. Waking is what a request between hosts costs most, so there are two of them:
/// one sleeps at the sockets, one at the inbox of the guests, and whoever is woken does what there is. For a moment
/// after that the first one stays awake and looks at both, if a core is free; the second one rests until it goes to
/// sleep.
struct Gateway {
    shared: Mutex<Shared>,
    transport: Arc<HostTransport>,
    /// Gets the first thread up.
    waker: mio::Waker,
    turn: Turn,
    begin: Instant,
    cores: usize,
    /// Until then, in nanoseconds from `begin`, no core is free.
    barred: AtomicU64,
}

/// Whether the first thread is awake, and with it the second one's turn to rest.
#[derive(Default)]
struct Turn {
    awake: Mutex<bool>,
    changed: Condvar,
}

impl Turn {
    fn set(&self, awake: bool) {
        *self.awake.lock().unwrap_or_else(PoisonError::into_inner) = awake;
        self.changed.notify_one();
    }

    fn rest(&self) {
        let awake = self.awake.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.changed.wait_while(awake, |awake| *awake));
    }
}

/// How long a thread stays awake after it had something to do.
const SPIN: Duration = Duration::from_micros(50);
/// Who gave its core away for longer than this has met somebody who works: cores are short.
const SHORT: Duration = Duration::from_micros(50);
/// For how long nobody stays awake then.
const BARRED: Duration = Duration::from_millis(10);

impl Gateway {
    fn ticket(&self) -> u32 {
        self.transport.segment().own().bell.side_ticket()
    }

    /// The first thread.
    fn wait_for_hosts(&self, poll: &mut mio::Poll) -> io::Result<()> {
        let mut events = mio::Events::with_capacity(64);
        // The other thread may sleep by an older limit.
        let mut limit = None;
        loop {
            sleep(poll, &mut events, limit)?;
            if events.is_empty() {
                limit = self.look(&events);
                continue;
            }
            self.turn.set(true);
            let mut ticket = self.ticket();
            limit = self.look(&events);
            let mut last = Instant::now();
            while limit == Some(Duration::ZERO) || self.may_spin(last) && last.elapsed() < SPIN {
                sleep(poll, &mut events, Some(Duration::ZERO))?;
                let due = limit.is_some_and(|limit| last.elapsed() >= limit);
                if !events.is_empty() || self.ticket() != ticket || due {
                    ticket = self.ticket();
                    limit = self.look(&events);
                    last = Instant::now();
                    continue;
                }
                let away = Instant::now();
                thread::yield_now();
                if away.elapsed() > SHORT {
                    self.bar();
                }
            }
            // It looks once more before it sleeps, and keeps the time.
            self.turn.set(false);
        }
    }

    /// Whether a core is free, as far as is known.
    fn may_spin(&self, now: Instant) -> bool {
        let barred = Duration::from_nanos(self.barred.load(Ordering::Relaxed));
        self.cores > 1 && now.duration_since(self.begin) >= barred
    }

    fn bar(&self) {
        let until = self.begin.elapsed() + BARRED;
        self.barred.store(until.as_nanos() as u64, Ordering::Relaxed);
    }

    fn look(&self, events: &mio::Events) -> Option<Duration> {
        let mut shared = lock(&self.shared);
        for event in events {
            match &mut shared.guests.wire {
                Some(wire) if event.token() == WIRE => wire.is_ready(),
                _ => shared.links.is_ready(event),
            }
        }
        shared.turn(true)
    }

    /// The second thread.
    fn wait_for_guests(&self) {
        // As long as this thread there is the memory that guests may reach.
        self.transport.segment().guard();
        let bell = &self.transport.segment().own().bell;
        loop {
            self.turn.rest();
            let ticket = bell.side_ticket();
            let limit = lock(&self.shared).turn(false);
            // There may be more in a moment, and then it is all one turn.
            thread::yield_now();
            if limit != Some(Duration::ZERO) && bell.side_ticket() == ticket {
                bell.wait_side(ticket, limit);
            }
            if bell.side_ticket() != ticket && self.may_spin(Instant::now()) {
                lock(&self.shared).turn(false);
                // The other one stays awake for both.
                self.turn.set(true);
                if self.waker.wake().is_err() {
                    self.turn.set(false);
                }
            }
        }
    }
}

fn sleep(poll: &mut mio::Poll, events: &mut mio::Events, limit: Option<Duration>) -> io::Result<()> {
    match poll.poll(events, limit) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => {
            events.clear();
            Ok(())
        }
        polled => polled,
    }
}
