//! The connections to all other hosts: sockets, who is let in, and what goes over them.
//!
//! Nothing here blocks. Two threads use it in turns: one that waits for the sockets, and one that waits for the guests.
//! Each carries on with whatever can be done.

use crate::adapters::{self, Adapters, Carrier};
use crate::bearer::Bearer;
use crate::log::Log;
use crate::near::Near;
use crate::socket::WireReport;
use anyhow::Context;
use mio::net::{TcpListener, TcpStream};
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use pvrdma_hca::{self as hca, Choice};
use pvrdma_net::connection::{End, Me, Stats};
use pvrdma_net::fabric::FabricHost;
use pvrdma_net::folder;
use pvrdma_net::frame::{Card, Refusal, Way};
use pvrdma_net::hosts::{BearerId, HostEvent, Hosts, Why};
use pvrdma_net::identity::{self, Identity};
use pvrdma_net::limits::{Limits, Patience};
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// How a host takes part in its fabric.
pub struct Settings {
    /// Who it is and who the others are. Without certificates, only this machine is talked to. `None`: there are no
    /// others.
    pub fabric: Option<folder::Settings>,
    /// Where it listens; the address of the list if not given.
    pub listen: Option<SocketAddr>,
    /// Where a renewed certificate will be.
    pub folder: Option<PathBuf>,
    /// The adapter that carries frames to hosts which have one too. What it carries is not encrypted.
    pub hca: Choice,
}

/// How a host's links fare.
pub struct Report {
    /// Its host.
    pub number: u16,
    /// Whether links have TLS.
    pub encrypted: bool,
    /// When its certificate ends, if there is one.
    pub certificate_ends: Option<SystemTime>,
    /// Requests of this host's guests without an answer.
    pub asked: usize,
    /// Pieces of others' requests that guests have.
    pub serving: usize,
    /// All other hosts.
    pub hosts: Vec<HostReport>,
    /// What it has for those who speak RoCE.
    pub wire: Option<WireReport>,
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
    /// What carries its frames.
    pub carrier: Carrier,
}

struct Tls {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    identity: Identity,
}

impl Tls {
    fn new(identity: Identity) -> Result<Tls, identity::Refused> {
        Ok(Tls { client: identity.client()?.into(), server: identity.server()?.into(), identity })
    }

    /// What the folder holds now, if other hosts would believe it as they believe this one.
    fn renewed(&self, folder: &Path) -> Result<Tls, identity::Refused> {
        let new = Identity::load(folder)?;
        if new.number() != self.identity.number() || !new.has_the_authority_of(&self.identity) {
            return Err(identity::Refused::Authority);
        }
        match new.check(SystemTime::now()) {
            // A clock that is wrong now may be right when somebody connects.
            Ok(()) | Err(identity::Refused::Early(_)) => Tls::new(new),
            Err(refused) => Err(refused),
        }
    }
}

/// By what a file is told from the one that takes its place.
#[derive(PartialEq, Eq)]
struct Stamp(u64, i64, i64);

impl Stamp {
    fn of(path: &Path) -> Option<Stamp> {
        let found = std::fs::metadata(path).ok()?;
        Some(Stamp(found.ino(), found.mtime(), found.mtime_nsec()))
    }
}

/// What a socket is good for by now.
enum Stage {
    /// This host is being dialed, until then.
    Dialing(u16, Duration),
    /// Somebody has connected and has not said who it is.
    Called(BearerId),
    /// Frames go over it.
    Open(BearerId),
}

struct Place {
    bearer: Bearer,
    stage: Stage,
    /// It is being tried whether the adapter gets there.
    proving: bool,
    /// The host to which frames go over the adapter.
    carried: Option<u16>,
}

/// The listener's token; sockets count from 0.
const LISTENER: Token = Token(usize::MAX);
/// For the waker of whoever owns the poll.
pub const WAKER: Token = Token(usize::MAX - 1);
/// In the tokens of an adapter's descriptors, beside the number of its socket.
const ADAPTER: usize = 1 << (usize::BITS - 2);
/// Frames are made until this much waits for a socket.
const UNTIL: usize = 256 * 1024;
/// How much is read from one socket before the others have their turn.
const TURN: usize = 512 * 1024;
/// How many who connect are let in before other things are done.
const CALLS: usize = 32;
/// How long a host may take to answer and to show its certificate.
const DIAL: Duration = Duration::from_secs(2);

/// See the module text.
pub struct Links {
    begin: Instant,
    registry: Registry,
    /// Others dial it, if there are any.
    listener: Option<TcpListener>,
    /// Somebody may have connected.
    called: bool,
    others: BTreeMap<u16, FabricHost>,
    tls: Option<Tls>,
    folder: Option<PathBuf>,
    /// The key's file, as it was when it was read last.
    seen: Option<Stamp>,
    hosts: Hosts,
    /// In the order in which they have come: of two connections of one host the later one counts.
    places: BTreeMap<usize, Place>,
    /// The socket of each bearer that `hosts` knows.
    by_bearer: HashMap<BearerId, usize>,
    next: usize,
    adapters: Adapters,
    /// This host.
    me: u16,
    log: Log,
}

impl Links {
    /// Listens; dials when it is given its turn.
    pub fn new(settings: Settings, registry: Registry) -> anyhow::Result<Links> {
        let Settings { fabric, listen, folder, hca } = settings;
        let mut boot = [0; 16];
        getrandom(&mut boot)?;
        let me = |host| Me { host, boot, limits: Limits::default(), patience: Patience::default() };
        let Some(fabric) = fabric else {
            return Ok(Links {
                begin: Instant::now(),
                registry,
                listener: None,
                called: false,
                tls: None,
                folder: None,
                seen: None,
                hosts: Hosts::new(&me(0), Duration::ZERO, []),
                others: BTreeMap::new(),
                places: BTreeMap::new(),
                by_bearer: HashMap::new(),
                next: 0,
                adapters: Adapters::default(),
                me: 0,
                log: Log::default(),
            });
        };
        let address = listen.unwrap_or(fabric.this().address);
        if fabric.identity.is_none() && !identity::may_be_plain(address.ip()) {
            anyhow::bail!("{address} is not this machine alone, and there are no certificates");
        }
        let tls = fabric.identity.map(Tls::new).transpose()?;
        let mut listener = TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
        registry.register(&mut listener, LISTENER, Interest::READABLE)?;
        let me = me(fabric.number);
        let others = fabric.hosts.into_iter().filter(|host| host.number != fabric.number);
        let others: BTreeMap<u16, FabricHost> = others.map(|host| (host.number, host)).collect();
        Ok(Links {
            begin: Instant::now(),
            registry,
            listener: Some(listener),
            called: true,
            tls,
            folder,
            // It may have been renewed since the settings were read.
            seen: None,
            hosts: Hosts::new(&me, Duration::ZERO, others.keys().copied()),
            others,
            places: BTreeMap::new(),
            by_bearer: HashMap::new(),
            next: 0,
            adapters: Adapters::new(hca),
            me: me.host,
            log: Log::default(),
        })
    }

    /// Time, as the links count it.
    pub fn now(&self) -> Duration {
        self.begin.elapsed()
    }

    fn is_encrypted(&self) -> bool {
        self.tls.is_some()
    }

    /// When this host's certificate ends.
    fn certificate_ends(&self) -> Option<SystemTime> {
        self.tls.as_ref()?.identity.ends()
    }

    /// Takes a certificate that was put into the folder since, for connections from now on. One look at a file, for
    /// each connection, instead of somebody who would have to tell every process.
    pub fn look_for_renewal(&mut self) {
        let (Some(tls), Some(folder)) = (&mut self.tls, &self.folder) else { return };
        let there = Stamp::of(&folder.join(identity::HOST_KEY));
        if there == self.seen {
            return;
        }
        self.seen = there;
        let ends = tls.identity.ends();
        match tls.renewed(folder) {
            Ok(new) => {
                if new.identity.ends() != ends {
                    let until = new.identity.ends().map(identity::date).unwrap_or_default();
                    self.log.line(format_args!("this host has a new certificate, good until {until}"));
                }
                *tls = new;
            }
            // Of one that has ended it was said before.
            Err(identity::Refused::Ended(end)) if Some(end) == ends => {}
            Err(refused) => self.log.once("renewal", format_args!("the new certificate is not used: {refused}")),
        }
    }

    /// Links by host.
    pub fn hosts(&mut self) -> &mut Hosts {
        &mut self.hosts
    }

    /// How they fare, with what their owner knows.
    pub fn report(&self, number: u16, asked: usize, serving: usize) -> Report {
        let host = |host: &FabricHost| HostReport {
            number: host.number,
            name: host.name.clone(),
            address: host.address,
            link: self.hosts.stats(host.number),
            carrier: self.adapters.carrier(host.number),
        };
        let hosts = self.others.values().map(host).collect();
        let (encrypted, certificate_ends) = (self.is_encrypted(), self.certificate_ends());
        Report { number, encrypted, certificate_ends, asked, serving, hosts, wire: None }
    }

    /// The poll says so of a socket.
    pub fn is_ready(&mut self, event: &mio::event::Event) {
        self.called |= event.token() == LISTENER;
        if let Some(place) = self.places.get_mut(&(event.token().0 ^ ADAPTER)) {
            place.bearer.adapter_is_ready();
        }
        if let Some(place) = self.places.get_mut(&event.token().0) {
            let ending = event.is_error() || event.is_read_closed() || event.is_write_closed();
            place.bearer.is_ready(event.is_readable(), event.is_writable(), ending);
        }
    }

    /// Does all that can be done now. `true`: there is more to do at once.
    pub fn turn(&mut self, near: &mut dyn Near) -> bool {
        let mut more = self.accept();
        let now = self.now();
        // What has come is taken in before time passes, even if the poll has not told of it yet: this process may have
        // been stopped, and that is no silence of the others.
        if self.hosts.deadline().is_some_and(|deadline| deadline <= now) {
            self.places.values_mut().for_each(|place| place.bearer.is_ready(true, false, false));
        }
        self.look_for_adapters(now);
        self.offer_adapters(now);
        for key in self.keys() {
            self.look_whether_proved(key, now);
            more |= self.read(key, near);
            // Answers do not wait until all others were read.
            self.write(key, near);
        }
        self.hosts.poll(now);
        self.give_up_dialing(now);
        self.flush(near);
        more
    }

    /// Sends what there is.
    pub fn flush(&mut self, near: &mut dyn Near) {
        self.pass_on(near);
        // What has happened while frames were made may make more of them.
        loop {
            for key in self.keys() {
                self.write(key, near);
            }
            if !self.pass_on(near) {
                return;
            }
        }
    }

    /// When `turn` has something to do, at the latest.
    pub fn deadline(&self) -> Option<Duration> {
        let dialing = self.places.values().filter_map(|place| match place.stage {
            Stage::Dialing(_, until) => Some(until),
            _ => None,
        });
        let looking = self.places.values().any(|place| place.bearer.has_adapter()).then(|| self.adapters.next_look());
        dialing.chain(self.hosts.deadline()).chain(self.adapters.deadline()).chain(looking).min()
    }

    /// Says good-bye.
    pub fn stop(&mut self, near: &mut dyn Near) {
        self.hosts.stop();
        self.flush(near);
    }

    fn keys(&self) -> Vec<usize> {
        self.places.keys().copied().collect()
    }

    // ---- who comes -----------------------------------------------------------------------------------------------

    fn add(&mut self, mut socket: TcpStream, tls: Option<rustls::Connection>, stage: Stage) -> io::Result<usize> {
        let key = self.next;
        self.registry.register(&mut socket, Token(key), Interest::READABLE | Interest::WRITABLE)?;
        self.next += 1;
        self.places.insert(key, Place { bearer: Bearer::new(socket, tls), stage, proving: false, carried: None });
        Ok(key)
    }

    /// Lets in who has connected. `true`: there may be more of them.
    fn accept(&mut self) -> bool {
        for _ in 0..CALLS {
            if !self.called {
                return false;
            }
            let Some(listener) = &self.listener else { return false };
            let (socket, address) = match listener.accept() {
                Ok(accepted) => accepted,
                Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted) => {
                    continue;
                }
                // Nobody; or not now, as no descriptor is left, say: the next turn asks again.
                Err(error) => {
                    self.called = error.kind() != io::ErrorKind::WouldBlock;
                    return false;
                }
            };
            self.look_for_renewal();
            let now = self.now();
            let tls = match &self.tls {
                None if !identity::may_be_plain(address.ip()) => {
                    self.log.once(
                        "stranger",
                        format_args!("{} is not this machine, and there are no certificates", address.ip()),
                    );
                    continue;
                }
                None => None,
                Some(tls) => match ServerConnection::new(tls.server.clone()) {
                    Ok(tls) => Some(tls.into()),
                    Err(_) => continue,
                },
            };
            let Some(id) = self.hosts.accept(now) else {
                self.log.once(
                    "crowd",
                    format_args!("too many have connected and not said who they are; the last from {}", address.ip()),
                );
                continue;
            };
            match self.add(socket, tls, Stage::Called(id)) {
                Ok(key) => drop(self.by_bearer.insert(id, key)),
                Err(_) => self.hosts.closed(now, id),
            }
        }
        self.called
    }

    fn dial(&mut self, host: u16) {
        self.look_for_renewal();
        let now = self.now();
        let dialed = || -> io::Result<(TcpStream, Option<rustls::Connection>)> {
            let other = self.others.get(&host).ok_or(io::ErrorKind::NotFound)?;
            let tls = match &self.tls {
                None => None,
                Some(tls) => {
                    let tls = ClientConnection::new(tls.client.clone(), identity::server_name(host));
                    Some(tls.map_err(io::Error::other)?.into())
                }
            };
            Ok((TcpStream::connect(other.address)?, tls))
        };
        let added = dialed().and_then(|(socket, tls)| self.add(socket, tls, Stage::Dialing(host, now + DIAL)));
        if added.is_err() {
            self.hosts.dial_failed(now, host);
        }
    }

    fn give_up_dialing(&mut self, now: Duration) {
        let late = |place: &Place| matches!(place.stage, Stage::Dialing(_, until) if until <= now);
        let late: Vec<usize> = self.places.iter().filter(|(_, place)| late(place)).map(|(key, _)| *key).collect();
        for key in late {
            self.ended(key, &io::ErrorKind::TimedOut.into());
        }
    }

    /// TLS has come to its end, or there is none: whose the socket is, is known.
    fn proceed(&mut self, key: usize) {
        let is_new = |place: &&mut Place| !matches!(place.stage, Stage::Open(_)) && place.bearer.is_open();
        let Some(place) = self.places.get_mut(&key).filter(is_new) else { return };
        let now = self.begin.elapsed();
        match place.stage {
            Stage::Open(_) => {}
            Stage::Called(id) => {
                if let Some(certificate) = place.bearer.certificate() {
                    // TLS lets nobody through without one of this fabric.
                    match identity::number_of(certificate) {
                        Some(number) => self.hosts.prove(id, number),
                        None => return self.ended(key, &io::ErrorKind::PermissionDenied.into()),
                    }
                }
                place.stage = Stage::Open(id);
            }
            Stage::Dialing(host, _) => {
                // A socket without TLS says by its first write whether it is connected.
                match (place.bearer.socket().peer_addr(), place.bearer.socket().take_error()) {
                    (Ok(_), Ok(None)) => {
                        let id = self.hosts.dialed(now, host);
                        place.stage = Stage::Open(id);
                        self.by_bearer.insert(id, key);
                    }
                    (Err(error), Ok(None)) if error.kind() == io::ErrorKind::NotConnected => {}
                    (Err(error), Ok(None)) | (_, Ok(Some(error)) | Err(error)) => self.ended(key, &error),
                }
            }
        }
    }

    /// A socket has ended by itself.
    fn ended(&mut self, key: usize, why: &io::Error) {
        let now = self.now();
        let Some(place) = self.places.remove(&key) else { return };
        match place.stage {
            Stage::Open(id) if place.bearer.uses_adapter() => {
                // The socket's own errors have numbers.
                if let Some(host) = self.hosts.host_of(id)
                    && why.raw_os_error().is_none()
                    && why.kind() != io::ErrorKind::UnexpectedEof
                {
                    self.lose_adapter(host, now, why);
                }
                self.by_bearer.remove(&id);
                self.hosts.closed(now, id);
            }
            Stage::Dialing(host, _) => {
                if why.kind() == io::ErrorKind::InvalidData {
                    let name = self.name(host);
                    self.log.once("refused", format_args!("{name}: {why}{}", cure(why)));
                }
                self.hosts.dial_failed(now, host);
            }
            Stage::Called(id) | Stage::Open(id) => {
                if why.kind() == io::ErrorKind::InvalidData {
                    self.log.once("refused", format_args!("somebody who connected: {why}{}", cure(why)));
                }
                self.by_bearer.remove(&id);
                self.hosts.closed(now, id);
            }
        }
    }

    fn name(&self, host: u16) -> String {
        let name = self.others.get(&host).map_or("nobody", |host| &host.name);
        format!("host {host} ({name})")
    }

    // ---- adapters ------------------------------------------------------------------------------------------------

    /// Begins rounds that are due.
    fn offer_adapters(&mut self, now: Duration) {
        for host in self.adapters.due(now) {
            let Some(id) = self.hosts.may_offer(host) else { continue };
            let way = match self.open_adapter(host, id, now) {
                Ok(card) => Way::Offer(card),
                Err(refusal) => {
                    if refusal != Refusal::Unwanted {
                        self.adapters.again(host, now);
                    }
                    Way::Refuse(refusal)
                }
            };
            self.hosts.say_of_adapter(id, way);
        }
    }

    /// An adapter that is being removed is given back: the connection ends, whether it was used already or not. The
    /// poll does not tell of that, and a connection that is busy comes to no deadline.
    fn look_for_adapters(&mut self, now: Duration) {
        if !self.adapters.are_looked_at(now) {
            return;
        }
        for key in self.keys() {
            let gone = |place: &mut Place| place.bearer.adapter().as_ref()?.is_there().err();
            if let Some(why) = self.places.get_mut(&key).and_then(gone) {
                self.ended(key, &why);
            }
        }
    }

    /// Opens this host's adapter for a connection; what the other end must know of it.
    fn open_adapter(&mut self, host: u16, id: BearerId, now: Duration) -> Result<Card, Refusal> {
        let adapter = self.adapters.open(host, now)?;
        let place = self.by_bearer.get(&id).and_then(|key| Some((*key, self.places.get_mut(key)?)));
        let Some((key, place)) = place else { return Err(Refusal::Failed) };
        for descriptor in adapter.descriptors() {
            let token = Token(key | ADAPTER);
            // It leaves the poll when it is closed.
            if let Err(why) = self.registry.register(&mut SourceFd(&descriptor), token, Interest::READABLE) {
                let why = hca::Unusable::Verb(why.to_string());
                return Err(self.adapters.refuses(host, Refusal::Failed, Some(why)));
            }
        }
        let card = adapters::said(&adapter.card());
        *place.bearer.adapter() = Some(adapter);
        Ok(card)
    }

    /// The other end has offered its adapter, or does not.
    fn heard_of_adapter(&mut self, id: BearerId, way: Way, now: Duration) {
        let Some(host) = self.hosts.host_of(id) else { return };
        let began =
            self.by_bearer.get(&id).and_then(|key| self.places.get_mut(key)).map(|place| place.bearer.adapter());
        let began = began.is_some_and(|adapter| adapter.is_some());
        let reply = match way {
            Way::Switch => return,
            Way::Refuse(refusal) => {
                self.adapters.is_refused(host, refusal);
                if host > self.me && refusal != Refusal::Unwanted {
                    self.adapters.again(host, now);
                }
                return self.drop_adapter(id);
            }
            Way::Offer(card) => {
                let opened = if began { Ok(None) } else { self.open_adapter(host, id, now).map(Some) };
                opened.and_then(|mine| self.connect_adapter(host, id, &card, began).map(|()| mine.map(Way::Offer)))
            }
        };
        let reply = reply.unwrap_or_else(|refusal| {
            self.drop_adapter(id);
            if began {
                self.adapters.again(host, now);
            }
            Some(Way::Refuse(refusal))
        });
        if let Some(way) = reply {
            self.hosts.say_of_adapter(id, way);
        }
    }

    /// Connects this host's adapter to the other one. Who has begun tries whether it gets there.
    fn connect_adapter(&mut self, host: u16, id: BearerId, card: &Card, began: bool) -> Result<(), Refusal> {
        let Some(place) = self.by_bearer.get(&id).and_then(|key| self.places.get_mut(key)) else { return Ok(()) };
        let Some(adapter) = place.bearer.adapter() else { return Ok(()) };
        let connected = adapter.connect(&adapters::heard(card));
        let proving = connected.and_then(|()| match began {
            true => adapter.prove().map_err(|why| hca::Unusable::Verb(why.to_string())),
            false => Ok(()),
        });
        place.proving = began;
        proving.map_err(|why| self.adapters.refuses(host, adapters::refusal(&why), Some(why)))
    }

    /// What was sent to try the way has arrived, or never will.
    fn look_whether_proved(&mut self, key: usize, now: Duration) {
        let Some(place) = self.places.get_mut(&key).filter(|place| place.proving) else { return };
        let (Stage::Open(id), Some(adapter)) = (&place.stage, place.bearer.adapter()) else { return };
        let (id, proved) = (*id, adapter.is_proved());
        place.proving = matches!(proved, Ok(false));
        match proved {
            Ok(false) => {}
            Ok(true) => drop(self.hosts.say_of_adapter(id, Way::Switch)),
            Err(why) => {
                self.drop_adapter(id);
                self.hosts.say_of_adapter(id, Way::Refuse(Refusal::Unreachable));
                if let Some(host) = self.hosts.host_of(id) {
                    let why = hca::Unusable::Verb(why.to_string());
                    self.adapters.refuses(host, Refusal::Unreachable, Some(why));
                    self.adapters.again(host, now);
                }
            }
        }
    }

    fn drop_adapter(&mut self, id: BearerId) {
        if let Some(place) = self.by_bearer.get(&id).and_then(|key| self.places.get_mut(key)) {
            *place.bearer.adapter() = None;
            place.proving = false;
        }
    }

    /// All that this end sends goes over its adapter.
    fn goes_over_adapter(&mut self, key: usize, id: BearerId, near: &mut dyn Near) {
        let (Some(host), Some(place)) = (self.hosts.host_of(id), self.places.get_mut(&key)) else { return };
        place.carried = Some(host);
        near.carried(host);
        let device = place.bearer.adapter().as_ref().map_or(String::new(), |adapter| adapter.name().to_owned());
        self.adapters.carries(host, &device);
        let name = self.name(host);
        let open = if self.tls.is_some() { ", not encrypted" } else { "" };
        self.log.line(format_args!("{name} is reached by the adapter {device}{open}"));
    }

    /// It was used, and is of no use any more. The connection ends; the next one begins over TCP.
    fn lose_adapter(&mut self, host: u16, now: Duration, why: &dyn std::fmt::Display) {
        self.adapters.lost(host, now);
        let name = self.name(host);
        self.log.once("adapter", format_args!("{name} is not reached by the adapter any more: {why}"));
    }

    // ---- what comes and goes -------------------------------------------------------------------------------------

    /// Reads from a socket, and takes in what has come. `true`: there may be more.
    fn read(&mut self, key: usize, near: &mut dyn Near) -> bool {
        let mut read = 0;
        loop {
            self.proceed(key);
            let Some(place) = self.places.get_mut(&key).filter(|place| place.bearer.may_read()) else { return false };
            if matches!(place.stage, Stage::Dialing(..)) && place.bearer.is_open() {
                // Not connected yet.
                return false;
            }
            let before = place.bearer.input().len();
            match place.bearer.read() {
                Ok(true) => {}
                Ok(false) => return false,
                Err(error) => {
                    self.ended(key, &error);
                    return false;
                }
            }
            read += place.bearer.input().len() - before;
            self.proceed(key);
            self.take_in(key, near);
            if read >= TURN {
                return true;
            }
        }
    }

    fn take_in(&mut self, key: usize, near: &mut dyn Near) {
        let now = self.now();
        let Some(Place { bearer, stage: Stage::Open(id), .. }) = self.places.get_mut(&key) else { return };
        let mut at = 0;
        loop {
            let (len, arrival) = self.hosts.receive(now, *id, &bearer.input()[at..]);
            at += len;
            let Some(arrival) = arrival else { break };
            near.arrived(&mut self.hosts, now, arrival);
        }
        bearer.take(at);
        if self.hosts.over_adapter(*id).0 && !bearer.read_adapter() {
            self.hosts.broken(now, *id);
        }
        self.pass_on(near);
    }

    fn write(&mut self, key: usize, near: &mut dyn Near) {
        loop {
            self.proceed(key);
            let now = self.now();
            let Some(place) = self.places.get_mut(&key) else { return };
            let mut made = false;
            if let Stage::Open(id) = place.stage {
                let over_adapter = self.hosts.over_adapter(id).1;
                if let Some(out) = place.bearer.out(over_adapter) {
                    self.hosts.transmit(now, id, out, UNTIL, near);
                    made = !out.is_empty();
                }
                if !over_adapter && self.hosts.over_adapter(id).1 {
                    self.goes_over_adapter(key, id, near);
                }
            }
            near.settle(&mut self.hosts, now);
            let Some(place) = self.places.get_mut(&key) else { return };
            match place.bearer.flush() {
                Ok(true) if made => {}
                Ok(_) => return,
                Err(error) => return self.ended(key, &error),
            }
        }
    }

    /// Hands on what has happened, until nothing more does. Whether anything has.
    fn pass_on(&mut self, near: &mut dyn Near) -> bool {
        let now = self.now();
        let mut any = false;
        loop {
            let event = self.hosts.next_event();
            let first = !std::mem::replace(&mut any, true);
            match event {
                None => return !first,
                Some(HostEvent::Dial(host)) => self.dial(host),
                Some(HostEvent::Close(id, why)) => self.close(id, why, now),
                Some(HostEvent::Adapter(id, way)) => self.heard_of_adapter(id, way, now),
                Some(event) => {
                    match event {
                        HostEvent::Up { host, .. } => {
                            let name = self.name(host);
                            self.log.line(format_args!("{name} is there"));
                            self.adapters.up(host, now);
                        }
                        HostEvent::Down(host) => {
                            let name = self.name(host);
                            self.log.line(format_args!("{name} is gone"));
                            self.adapters.down(host);
                        }
                        HostEvent::Conflict { owner, other, .. } => {
                            self.log.once(
                                "conflict",
                                format_args!("hosts {owner} and {other} say they have the same address"),
                            );
                        }
                        _ => {}
                    }
                    near.happened(&mut self.hosts, now, event);
                }
            }
        }
    }

    fn close(&mut self, id: BearerId, why: Why, now: Duration) {
        if let Why::End(end) = why {
            // Neither hides the other one.
            let kind = if end == End::Silent { "silent" } else { "end" };
            self.log.once(kind, format_args!("a connection was ended: {end}"));
        }
        let Some(key) = self.by_bearer.remove(&id) else { return };
        let Some(mut place) = self.places.remove(&key) else { return };
        if let (Some(host), Why::End(end)) = (place.carried, why) {
            self.lose_adapter(host, now, &end);
        }
        // What is said last, as far as the socket takes it.
        let _ = place.bearer.flush();
    }
}

/// What to do about a handshake that failed, where that is known.
fn cure(why: &io::Error) -> &'static str {
    use rustls::{AlertDescription, CertificateError, Error};
    match why.get_ref().and_then(|error| error.downcast_ref()) {
        Some(Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. })) => {
            "; `pvrdma link renew`, where the fabric was made, makes that host a new one"
        }
        Some(Error::AlertReceived(AlertDescription::CertificateExpired)) => {
            "; it is this host's certificate that has ended: `pvrdma link list` says what to do"
        }
        _ => "",
    }
}

/// Sixteen bytes that nobody guesses.
fn getrandom(into: &mut [u8; 16]) -> io::Result<()> {
    use std::io::Read;
    std::fs::File::open("/dev/urandom")?.read_exact(into)
}
