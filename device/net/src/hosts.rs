//! This host and all others: one link to each, who dials, and which request goes where.
//!
//! Of two hosts the one with the lower number dials, so there is one connection for each pair; it dials again, soon and
//! then more and more seldom, when the connection has ended. A newer connection of the same host takes the older one's
//! place: that one is half open, and this end has not noticed.
//!
//! The caller owns bearers and dials them when it is asked to ([`HostEvent::Dial`]). A bearer has the number that
//! [`Hosts::accept`] or [`Hosts::dialed`] gave it; after [`HostEvent::Close`] it is closed, and the number means
//! nothing any more.

use crate::connection::{Connection, End, Me, Stats};
use crate::event::{Arrival, Event, Hold, Receipt, ReplyKey, Source, Submitted, Token};
use crate::frame::{Answer, Bad, Datagram, Ends, Gid, Message, Reason, Way};
use crate::gids::{Gids, MAX_HOST, may_have};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

/// Connections of others that have not greeted yet: so many more than there are hosts that dial this one. When a host
/// comes back all of those may dial it at once, and who is turned away dials more and more seldom.
pub const HALF_OPEN: usize = 16;

/// Number of a bearer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BearerId(u64);

/// Why a bearer is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// See [`End`].
    #[error("{0}")]
    End(#[from] End),
    /// It ended by itself.
    #[error("the connection ended")]
    Ended,
    /// The other host goes, or says that this one broke the protocol.
    #[error("the other host says good-bye ({0:?})")]
    Bye(Reason),
    /// A newer one of the same host has come.
    #[error("a newer connection of the same host")]
    Newer,
    /// It says that it is a host which is not in the list, or should have been called by this one.
    #[error("host {0} has no business here")]
    NoSuchHost(u16),
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostEvent {
    /// Dial this host: [`Hosts::dialed`] or [`Hosts::dial_failed`] follows.
    Dial(u16),
    /// Close this bearer.
    Close(BearerId, Why),
    /// The link to a host is there; `restarted`: it is not the one that was there before, and knows nothing of its QPs.
    Up {
        /// Which.
        host: u16,
        /// Its memory is gone.
        restarted: bool,
    },
    /// The link to a host is gone.
    Down(u16),
    /// See [`Event::Answered`].
    Answered(Token, Answer),
    /// See [`Event::Room`].
    Room(Ends),
    /// Whoever was busy on the way to this host may try again.
    RoomForAll(u16),
    /// See [`Event::ReplyEnded`].
    ReplyEnded(ReplyKey),
    /// The host of this bearer has an adapter, or none. See [`Event::Adapter`].
    Adapter(BearerId, Way),
    /// An address is another host's now.
    Moved {
        /// Which.
        gid: Gid,
        /// Whose.
        to: u16,
    },
    /// Two hosts have the same address; the first keeps it.
    Conflict {
        /// Which.
        gid: Gid,
        /// Who keeps it.
        owner: u16,
        /// Who has it too.
        other: u16,
    },
}

enum Dial {
    /// The other one dials.
    Never,
    At(Duration),
    Asked,
    Done,
}

struct Link {
    connection: Option<Connection>,
    dial: Dial,
    backoff: Duration,
    boot: Option<[u8; 16]>,
    up: bool,
}

/// See the module text.
pub struct Hosts {
    me: Me,
    links: BTreeMap<u16, Link>,
    /// The host of each bearer that has one.
    bearers: HashMap<u64, u16>,
    /// Those that were accepted and have not greeted, and how many may be.
    half_open: BTreeMap<u64, Connection>,
    places: usize,
    next_epoch: u64,
    gids: Gids,
    mine: BTreeSet<Gid>,
    events: VecDeque<HostEvent>,
    /// An address may lead elsewhere than when `take_routes` was last asked.
    routes_changed: bool,
}

impl Hosts {
    /// This host and the numbers of the others.
    pub fn new(me: &Me, now: Duration, others: impl IntoIterator<Item = u16>) -> Hosts {
        let link = |host: u16| Link {
            connection: None,
            dial: if me.host < host { Dial::At(now) } else { Dial::Never },
            backoff: me.patience.redial,
            boot: None,
            up: false,
        };
        let others = others.into_iter().filter(|host| *host != me.host && (1..=MAX_HOST).contains(host));
        let links: BTreeMap<u16, Link> = others.map(|host| (host, link(host))).collect();
        Hosts {
            me: *me,
            places: HALF_OPEN + links.range(..me.host).count(),
            links,
            bearers: HashMap::new(),
            half_open: BTreeMap::new(),
            next_epoch: 1,
            gids: Gids::default(),
            mine: BTreeSet::new(),
            events: VecDeque::new(),
            routes_changed: false,
        }
    }

    fn fresh(&mut self) -> u64 {
        self.next_epoch += 1;
        self.next_epoch
    }

    /// What happened.
    pub fn next_event(&mut self) -> Option<HostEvent> {
        self.events.pop_front()
    }

    // ---- bearers -------------------------------------------------------------------------------------------------

    /// Somebody has connected. `None`: there are too many already that have not said who they are; close it.
    pub fn accept(&mut self, now: Duration) -> Option<BearerId> {
        if self.half_open.len() >= self.places {
            return None;
        }
        let epoch = self.fresh();
        self.half_open.insert(epoch, Connection::accepted(&self.me, epoch, now));
        Some(BearerId(epoch))
    }

    /// Who has connected has shown the certificate of `host`.
    pub fn prove(&mut self, bearer: BearerId, host: u16) {
        if let Some(connection) = self.half_open.get_mut(&bearer.0) {
            connection.prove(host);
        }
    }

    /// A host that was to be dialed has been, and has shown its certificate if that is asked for.
    pub fn dialed(&mut self, now: Duration, host: u16) -> BearerId {
        let epoch = self.fresh();
        let mut connection = Connection::dialed(&self.me, epoch, now, host);
        for gid in &self.mine {
            connection.announce(gid, true);
        }
        if let Some(link) = self.links.get_mut(&host) {
            link.connection = Some(connection);
            link.dial = Dial::Done;
            self.bearers.insert(epoch, host);
        }
        BearerId(epoch)
    }

    /// It could not be.
    pub fn dial_failed(&mut self, now: Duration, host: u16) {
        self.redial(now, host);
    }

    fn redial(&mut self, now: Duration, host: u16) {
        let Some(link) = self.links.get_mut(&host).filter(|link| !matches!(link.dial, Dial::Never)) else { return };
        link.dial = Dial::At(now + link.backoff);
        link.backoff = (link.backoff * 2).min(self.me.patience.redial_at_most);
    }

    /// A bearer has ended by itself.
    pub fn closed(&mut self, now: Duration, bearer: BearerId) {
        self.close(now, bearer.0, Why::Ended);
    }

    fn close(&mut self, now: Duration, epoch: u64, why: Why) {
        if self.half_open.remove(&epoch).is_some() {
            self.events.push_back(HostEvent::Close(BearerId(epoch), why));
            return;
        }
        let Some(host) = self.bearers.remove(&epoch) else { return };
        self.events.push_back(HostEvent::Close(BearerId(epoch), why));
        let Some(link) = self.links.get_mut(&host) else { return };
        let Some(mut connection) = link.connection.take() else { return };
        connection.close();
        let was_up = std::mem::take(&mut link.up);
        while let Some(event) = connection.next_event() {
            // What it has said of itself counts no more.
            if !matches!(event, Event::Up(_) | Event::Gid(..) | Event::Bye(_) | Event::Adapter(_)) {
                self.forward(host, event);
            }
        }
        if was_up {
            self.routes_changed = true;
            self.events.push_back(HostEvent::Down(host));
            for (gid, to) in self.gids.lost(host) {
                self.events.push_back(HostEvent::Moved { gid, to });
            }
        }
        self.redial(now, host);
    }

    fn connection(&mut self, epoch: u64) -> Option<&mut Connection> {
        let host = self.bearers.get(&epoch)?;
        self.links.get_mut(host)?.connection.as_mut()
    }

    // ---- bytes ---------------------------------------------------------------------------------------------------

    /// Takes bytes of a bearer; see [`Connection::receive`]. When it is closed over them, all of them are taken.
    pub fn receive<'a>(&mut self, now: Duration, bearer: BearerId, bytes: &'a [u8]) -> (usize, Option<Arrival<'a>>) {
        let mut at = 0;
        loop {
            let epoch = bearer.0;
            let half_open = self.half_open.contains_key(&epoch);
            let found = match half_open {
                true => self.half_open.get_mut(&epoch),
                false => self.connection(epoch),
            };
            let Some(connection) = found else { return (bytes.len(), None) };
            let result = connection.receive(now, &bytes[at..]);
            // A peer that was not greeted back yet sends nothing behind its greeting, so nothing has arrived with it.
            if half_open && connection.peer().is_some() {
                self.greeted(now, epoch);
            }
            match result {
                Ok((len, arrival)) => {
                    at += len;
                    if !self.drain(now, epoch) {
                        return (bytes.len(), None);
                    }
                    let Some(arrival) = arrival else { return (at, None) };
                    if let Some(arrival) = self.routed(epoch, arrival) {
                        return (at, Some(arrival));
                    }
                }
                Err(bad) => {
                    self.close(now, epoch, End::Bad(bad).into());
                    return (bytes.len(), None);
                }
            }
        }
    }

    /// What comes from an address that is another host's, or goes to one that is not here, goes nowhere.
    fn routed<'a>(&mut self, epoch: u64, arrival: Arrival<'a>) -> Option<Arrival<'a>> {
        let ends = match &arrival {
            Arrival::Segment { ends, .. } => *ends,
            Arrival::Datagram { datagram, .. } => datagram.ends,
            Arrival::Data { .. } => return Some(arrival),
        };
        let from = self.bearers.get(&epoch).copied();
        if self.gids.owner(&ends.source_gid) == from && self.gids.owner(&ends.dest_gid) == Some(self.me.host) {
            return Some(arrival);
        }
        let connection = self.connection(epoch)?;
        match arrival {
            Arrival::Segment { receipt, .. } => connection.answer(receipt, Answer::Silence),
            Arrival::Datagram { hold, .. } | Arrival::Data { hold, .. } => connection.release(hold),
        }
        None
    }

    /// A connection that was accepted has said whose it is.
    fn greeted(&mut self, now: Duration, epoch: u64) {
        let Some(connection) = self.half_open.get(&epoch) else { return };
        let Some(host) = connection.peer().map(|hello| hello.host) else { return };
        if !self.links.contains_key(&host) || host > self.me.host {
            self.close(now, epoch, Why::NoSuchHost(host));
            return;
        }
        let older = self.links[&host].connection.as_ref().map(Connection::epoch);
        if let Some(older) = older {
            self.close(now, older, Why::Newer);
        }
        let Some(mut connection) = self.half_open.remove(&epoch) else { return };
        for gid in &self.mine {
            connection.announce(gid, true);
        }
        self.bearers.insert(epoch, host);
        if let Some(link) = self.links.get_mut(&host) {
            link.connection = Some(connection);
        }
    }

    /// Passes on what a connection tells. `false`: it was closed over it.
    fn drain(&mut self, now: Duration, epoch: u64) -> bool {
        loop {
            let Some(host) = self.bearers.get(&epoch).copied() else { return self.half_open.contains_key(&epoch) };
            let Some(event) = self.connection(epoch).and_then(Connection::next_event) else { return true };
            match event {
                Event::Gid(gid, true) if !may_have(host, &gid) => {
                    self.close(now, epoch, End::Bad(Bad::NotItsGid).into());
                    return false;
                }
                Event::Bye(reason) => {
                    self.close(now, epoch, Why::Bye(reason));
                    return false;
                }
                Event::Adapter(way) => self.events.push_back(HostEvent::Adapter(BearerId(epoch), way)),
                event => self.forward(host, event),
            }
        }
    }

    fn forward(&mut self, host: u16, event: Event) {
        match event {
            Event::Up(hello) => {
                let Some(link) = self.links.get_mut(&host) else { return };
                let restarted = link.boot.replace(hello.boot).is_some_and(|boot| boot != hello.boot);
                (link.up, link.backoff) = (true, self.me.patience.redial);
                self.routes_changed = true;
                self.events.push_back(HostEvent::Up { host, restarted });
                for (gid, to) in self.gids.forget(host) {
                    self.events.push_back(HostEvent::Moved { gid, to });
                }
            }
            Event::Answered(token, answer) => self.events.push_back(HostEvent::Answered(token, answer)),
            Event::Room(ends) => self.events.push_back(HostEvent::Room(ends)),
            Event::RoomForAll => self.events.push_back(HostEvent::RoomForAll(host)),
            Event::ReplyEnded(key) => self.events.push_back(HostEvent::ReplyEnded(key)),
            Event::Gid(gid, true) => {
                self.routes_changed = true;
                if let Some(owner) = self.gids.claim(host, &gid) {
                    self.events.push_back(HostEvent::Conflict { gid, owner, other: host });
                }
            }
            Event::Gid(gid, false) => {
                self.routes_changed = true;
                if let Some(to) = self.gids.give_up(host, &gid) {
                    self.events.push_back(HostEvent::Moved { gid, to });
                }
            }
            // `drain` has seen to them.
            Event::Bye(_) | Event::Adapter(_) => {}
        }
    }

    /// What is to be sent on a bearer; see [`Connection::transmit`].
    pub fn transmit(
        &mut self,
        now: Duration,
        bearer: BearerId,
        out: &mut Vec<u8>,
        until: usize,
        source: &mut dyn Source,
    ) {
        if let Some(connection) = self.connection(bearer.0) {
            connection.transmit(out, until, source);
            self.drain(now, bearer.0);
        }
    }

    // ---- adapters ------------------------------------------------------------------------------------------------

    /// The bearer of the link to a host, if this end may offer its adapter there; see [`Connection::may_offer`].
    pub fn may_offer(&self, host: u16) -> Option<BearerId> {
        let connection = self.links.get(&host)?.connection.as_ref().filter(|connection| connection.may_offer())?;
        Some(BearerId(connection.epoch()))
    }

    /// See [`Connection::say_of_adapter`].
    pub fn say_of_adapter(&mut self, bearer: BearerId, way: Way) -> bool {
        self.connection(bearer.0).is_some_and(|connection| connection.say_of_adapter(way))
    }

    /// See [`Connection::over_adapter`].
    pub fn over_adapter(&mut self, bearer: BearerId) -> (bool, bool) {
        self.connection(bearer.0).map_or((false, false), |connection| connection.over_adapter())
    }

    /// The host of a bearer, once it is known.
    pub fn host_of(&self, bearer: BearerId) -> Option<u16> {
        self.bearers.get(&bearer.0).copied()
    }

    /// A bearer does not keep to what was agreed on: it is closed.
    pub fn broken(&mut self, now: Duration, bearer: BearerId) {
        self.close(now, bearer.0, End::Bad(Bad::Adapter).into());
    }

    // ---- time ----------------------------------------------------------------------------------------------------

    /// Lets time pass. What has arrived by then was handed in before.
    pub fn poll(&mut self, now: Duration) {
        let mut over: Vec<(u64, End)> = Vec::new();
        let open = self.links.values_mut().filter_map(|link| link.connection.as_mut());
        for connection in open.chain(self.half_open.values_mut()) {
            if let Err(end) = connection.poll(now) {
                over.push((connection.epoch(), end));
            }
        }
        for (epoch, end) in over {
            self.close(now, epoch, end.into());
        }
        let mut open: Vec<u64> = self.bearers.keys().copied().collect();
        open.sort_unstable();
        for epoch in open {
            self.drain(now, epoch);
        }
        for (host, link) in &mut self.links {
            if matches!(link.dial, Dial::At(at) if at <= now) {
                link.dial = Dial::Asked;
                self.events.push_back(HostEvent::Dial(*host));
            }
        }
    }

    /// When [`Hosts::poll`] has something to do, at the latest.
    pub fn deadline(&self) -> Option<Duration> {
        let links = self.links.values().filter_map(|link| match (&link.connection, &link.dial) {
            (Some(connection), _) => Some(connection.deadline()),
            (None, Dial::At(at)) => Some(*at),
            _ => None,
        });
        links.chain(self.half_open.values().map(Connection::deadline)).min()
    }

    // ---- what the caller does ------------------------------------------------------------------------------------

    /// This host has an address. Who has it already, if anybody.
    pub fn bind(&mut self, gid: &Gid) -> Option<u16> {
        self.mine.insert(*gid);
        for connection in self.links.values_mut().filter_map(|link| link.connection.as_mut()) {
            connection.announce(gid, true);
        }
        self.routes_changed = true;
        self.gids.claim(self.me.host, gid)
    }

    /// This host has it no longer.
    pub fn unbind(&mut self, gid: &Gid) {
        self.mine.remove(gid);
        self.routes_changed = true;
        for connection in self.links.values_mut().filter_map(|link| link.connection.as_mut()) {
            connection.announce(gid, false);
            // One that there was no room for may have some now.
            self.mine.iter().for_each(|mine| connection.announce(mine, true));
        }
        if let Some(to) = self.gids.give_up(self.me.host, gid) {
            self.events.push_back(HostEvent::Moved { gid: *gid, to });
        }
    }

    /// Who has an address.
    pub fn owner(&self, gid: &Gid) -> Option<u16> {
        self.gids.owner(gid)
    }

    /// The host of each address of another host to which there is a link; `None`: they are what they were when this was
    /// asked before. For those who must not wait for whoever has the links.
    pub fn take_routes(&mut self) -> Option<HashMap<Gid, u16>> {
        if !std::mem::take(&mut self.routes_changed) {
            return None;
        }
        let up = |host: &u16| self.links.get(host).is_some_and(|link| link.up);
        Some(self.gids.owners().filter(|(_, host)| up(host)).collect())
    }

    /// Takes a request to where its destination is; see [`Connection::submit`].
    pub fn submit(&mut self, now: Duration, ends: &Ends, message: &Message) -> Submitted {
        match self.way(&ends.dest_gid) {
            Some(connection) => connection.submit(now, ends, message),
            None => Submitted::Silence,
        }
    }

    /// See [`Connection::send_datagram`].
    pub fn send_datagram(&mut self, datagram: &Datagram, payload: &[u8]) -> bool {
        self.way(&datagram.ends.dest_gid).is_none_or(|connection| connection.send_datagram(datagram, payload))
    }

    fn way(&mut self, gid: &Gid) -> Option<&mut Connection> {
        let host = self.gids.owner(gid)?;
        self.links.get_mut(&host)?.connection.as_mut()
    }

    /// See [`Connection::cancel`].
    pub fn cancel(&mut self, now: Duration, token: Token) {
        if let Some(connection) = self.connection(token.epoch) {
            connection.cancel(token);
            self.drain(now, token.epoch);
        }
    }

    /// See [`Connection::answer`].
    pub fn answer(&mut self, now: Duration, receipt: Receipt, answer: Answer) {
        let epoch = receipt.key.epoch;
        if let Some(connection) = self.connection(epoch) {
            connection.answer(receipt, answer);
            self.drain(now, epoch);
        }
    }

    /// See [`Connection::reply`].
    pub fn reply(&mut self, now: Duration, receipt: Receipt) {
        let epoch = receipt.key.epoch;
        match self.connection(epoch) {
            Some(connection) => {
                connection.reply(receipt);
                self.drain(now, epoch);
            }
            None => self.events.push_back(HostEvent::ReplyEnded(receipt.key)),
        }
    }

    /// See [`Connection::more`].
    pub fn more(&mut self, key: ReplyKey) {
        if let Some(connection) = self.connection(key.epoch) {
            connection.more(key);
        }
    }

    /// See [`Connection::release`].
    pub fn release(&mut self, hold: Hold) {
        if let Some(connection) = self.connection(hold.epoch) {
            connection.release(hold);
        }
    }

    /// Says good-bye to all.
    pub fn stop(&mut self) {
        for connection in self.links.values_mut().filter_map(|link| link.connection.as_mut()) {
            connection.say_bye(Reason::Stopping);
        }
    }

    /// Requests that other hosts have not answered, with those that nobody waits for any more.
    pub fn unanswered(&self) -> usize {
        self.links.values().filter_map(|link| link.connection.as_ref()).map(Connection::unanswered).sum()
    }

    /// Figures of the link to a host; `None` while there is none.
    pub fn stats(&self, host: u16) -> Option<Stats> {
        let link = self.links.get(&host).filter(|link| link.up)?;
        Some(link.connection.as_ref()?.stats())
    }
}
