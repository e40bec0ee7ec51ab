//! All ids of this process, their events, and what becomes of them when messages come and time passes.

use super::address::{Address, Place};
use super::id::{Id, Phase, QPT_UD, address_handle};
use super::lookup::{
    ID_BITS, IP_HEADER, Listeners, Lookup, directory_of, is_alike, is_here, is_same, is_stranger, links,
    parse_ip_header, spaces_of, whose,
};
use super::port::{self, Ports};
use super::{Machine, Queue, Queued, Result};
use crate::kernel::gsi::{self, Gsi};
use crate::support::trace;
use pvrdma_cm::connection::{CommId, Event, Outgoing, Parameters, Path};
use pvrdma_cm::manager::Manager;
use pvrdma_cm::message::{Message, Rep, Req, SidrRep, SidrReq, private_len, sidr_status};
use pvrdma_device::guest::{Guest, MAX_GUESTS, WIRE_GID};
use pvrdma_device::handle::{Gid, address_of, is_of_one_host};
use pvrdma_ffi::uapi::rdma_user_cm::*;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ffi::c_int;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use zerocopy::{FromZeros, IntoBytes};

/// rdma_cm.h: `rdma_cm_event_type`.
pub mod event {
    pub const ADDR_RESOLVED: u32 = 0;
    pub const ADDR_ERROR: u32 = 1;
    pub const ROUTE_RESOLVED: u32 = 2;
    pub const CONNECT_REQUEST: u32 = 4;
    pub const CONNECT_RESPONSE: u32 = 5;
    pub const UNREACHABLE: u32 = 7;
    pub const REJECTED: u32 = 8;
    pub const ESTABLISHED: u32 = 9;
    pub const DISCONNECTED: u32 = 10;
    pub const TIMEWAIT_EXIT: u32 = 15;
    pub const USER: u32 = 18;
    pub const INTERNAL: u32 = 19;
}

/// How often it is asked whether the processes at the other ends still run, and whether a guest is there by now.
const TICK: Duration = Duration::from_millis(100);
/// How long a request to a listener that has just gone, or is about to come, is ignored and not refused, so that it
/// comes again: by its process and by all others of the guest. perftest ends its listener after the first of two
/// connections, sleeps for a second and makes a new one, qperf tells its client of a port and then listens there, and
/// their clients do not wait; with Linux the client's address resolution takes longer than a listener.
const RENEWAL: Duration = Duration::from_millis(2500);
/// Datagrams that are taken in before others have their turn.
const BURST: u32 = 64;

/// What RoCE paths are like here: 100 Gb/s, ACKs within 4.096 us * 2^17.
const PATH_RATE: u8 = 16;
const HOP_LIMIT: u8 = 64;
const ACK_TIMEOUT: u8 = 17;

/// What an event says of its connection.
pub enum Param {
    None,
    Connection(Box<rdma_ucm_conn_param>),
    Datagram(Box<rdma_ucm_ud_param>),
    /// A number of the program's own.
    Own([u8; 8]),
}

/// See the module text.
pub struct State {
    machine: &'static dyn Machine,
    pub node_guid: [u8; 8],
    gsi: Gsi,
    pub cm: Manager,
    pub ports: Ports,
    ids: BTreeMap<u32, Id>,
    /// Numbers that were somebody's and are nobody's.
    free: BTreeSet<u32>,
    /// The ids that listen, by service id.
    listeners: Listeners,
    /// The ids that wait for an address.
    resolving: BTreeSet<u32>,
    queues: HashMap<u64, Queue>,
    by_comm: HashMap<CommId, u32>,
    /// Questions that nobody seems to be there for.
    doubtful: Vec<CommId>,
    next_tick: Option<Instant>,
    /// When the side thread believes that it is wanted next.
    told: Option<Instant>,
    random: u64,
}

impl State {
    /// Nothing yet.
    pub fn new(machine: &'static dyn Machine) -> Result<State> {
        let guest = machine.guest();
        let seed = machine.seed();
        let directory = machine.directory().join(format!("guests/{}", guest.index()));
        let base = (machine.number() + 1) << ID_BITS;
        Ok(State {
            machine,
            node_guid: guest.node_guid(),
            gsi: Gsi::new(machine.device())?,
            cm: Manager::new(u64::from_be_bytes(guest.node_guid()), base, ID_BITS, seed),
            ports: Ports::open(&directory, seed)?,
            ids: BTreeMap::new(),
            free: BTreeSet::new(),
            listeners: HashMap::new(),
            resolving: BTreeSet::new(),
            queues: HashMap::new(),
            by_comm: HashMap::new(),
            doubtful: Vec::new(),
            next_tick: None,
            told: None,
            random: seed,
        })
    }

    /// A random number (splitmix64).
    pub fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let bits = (self.random ^ self.random >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ bits >> 31
    }

    // ---- opened devices and ids ----------------------------------------------------------------

    pub fn add_file(&mut self, file: u64, pipe: c_int) {
        self.queues.entry(file).or_insert_with(|| Queue { pipe, events: VecDeque::new() });
    }

    pub fn close_file(&mut self, file: u64) {
        let of_file: Vec<u32> = self.ids.iter().filter(|(_, id)| id.file == file).map(|(number, _)| *number).collect();
        for number in of_file {
            self.destroy(number);
        }
        self.queues.remove(&file);
    }

    /// A new id under the lowest free number: librdmacm keeps them in a table.
    pub fn create(&mut self, file: u64, uid: u64, ps: u16, qp_type: u8) -> u32 {
        let number = self.free.pop_first().unwrap_or(self.ids.len() as u32);
        let psn = self.random() as u32;
        self.ids.insert(number, Id::new(file, uid, ps, qp_type, psn));
        number
    }

    /// An id of an opened device.
    pub fn id(&mut self, file: u64, number: u32) -> Result<&mut Id> {
        match self.ids.get_mut(&number) {
            None => Err(libc::ENOENT),
            Some(id) if id.file != file => Err(libc::EINVAL),
            Some(id) => Ok(id),
        }
    }

    /// Ends an id; returns how many of its events were read.
    pub fn destroy(&mut self, number: u32) -> u32 {
        let Some(id) = self.ids.remove(&number) else { return 0 };
        self.free.insert(number);
        self.resolving.remove(&number);
        if let (Phase::Listen, Some(src)) = (id.phase, id.src) {
            let service = id.service(&src);
            if let Some(listeners) = self.listeners.get_mut(&service) {
                listeners.remove(&number);
                if listeners.is_empty() {
                    self.listeners.remove(&service);
                }
            }
        }
        let now = Instant::now();
        if let Some(comm) = id.comm {
            self.by_comm.remove(&comm);
            self.cm.release(now, comm);
        }
        if id.phase == Phase::Listen {
            self.ports.leave(number, now + RENEWAL);
        } else {
            self.ports.release(number);
        }
        if let Some(queue) = self.queues.get_mut(&id.file).filter(|_| id.queued > 0) {
            let gone = queue.take_of(number);
            for queued in gone {
                // A request that nobody has looked at: it comes again, to the next listener or to be refused.
                if let Some(brings) = queued.brings {
                    if let Some(comm) = self.ids.get(&brings).and_then(|id| id.comm) {
                        self.cm.forget(comm);
                    }
                    self.destroy(brings);
                }
            }
        }
        id.events_reported
    }

    /// Moves an id and what waits for it to another opened device.
    pub fn migrate(&mut self, number: u32, to: u64) {
        let Some(id) = self.ids.get_mut(&number) else { return };
        let from = std::mem::replace(&mut id.file, to);
        let Some(queue) = self.queues.get_mut(&from) else { return };
        let mut moved = queue.take_of(number);
        for brings in moved.iter().filter_map(|queued| queued.brings) {
            if let Some(id) = self.ids.get_mut(&brings) {
                id.file = to;
            }
        }
        if let Some(queue) = self.queues.get_mut(&to) {
            queue.events.append(&mut moved);
            queue.sync();
        }
    }

    /// The program has bound an id, perhaps to listen.
    pub fn expect_listener(&mut self, now: Instant, number: u32) {
        self.ports.expect_listener(number, now + RENEWAL);
    }

    /// An id with an address begins to listen.
    pub fn listen(&mut self, number: u32, backlog: u32) {
        let Some(id) = self.ids.get_mut(&number) else { return };
        id.backlog = backlog;
        id.phase = Phase::Listen;
        if let Some(src) = id.src {
            let service = id.service(&src);
            self.listeners.entry(service).or_default().insert(number);
        }
    }

    /// A connection of an id.
    pub fn connect(&mut self, number: u32, comm: CommId) {
        if let Some(id) = self.ids.get_mut(&number) {
            id.comm = Some(comm);
            self.by_comm.insert(comm, number);
        }
    }

    // ---- events --------------------------------------------------------------------------------

    /// Hands the next event over; it stays if that fails. `None`: there is none.
    pub fn take_event(
        &mut self,
        file: u64,
        deliver: impl FnOnce(&rdma_ucm_event_resp) -> Result<()>,
    ) -> Option<Result<rdma_ucm_event_resp>> {
        let queue = self.queues.get_mut(&file)?;
        let delivered = queue.events.front().map(|queued| deliver(&queued.event));
        let taken = match delivered {
            Some(Ok(())) => queue.events.pop_front().map(Ok),
            Some(Err(errno)) => Some(Err(errno)),
            None => None,
        };
        queue.sync();
        Some(taken?.map(|queued| {
            if let Some(id) = self.ids.get_mut(&queued.counted) {
                id.events_reported += 1;
                id.queued -= 1;
                id.backlog += u32::from(queued.brings.is_some());
            }
            *queued.event
        }))
    }

    /// Tells the owner of an id something. One that the program has no name for yet is not told: an accept will fail.
    pub fn tell(&mut self, number: u32, event: u32, status: i32, param: Param) {
        if self.ids.get(&number).is_some_and(|id| id.uid != 0) {
            self.put(number, event, status, param);
        }
    }

    /// The same, whether the program has a name for it or not.
    pub fn put(&mut self, number: u32, event: u32, status: i32, param: Param) {
        let Some(id) = self.ids.get(&number) else { return };
        let told = event_of(id.uid, number, event, status, &param);
        self.queue(id.file, Queued { counted: number, brings: None, event: told });
    }

    fn queue(&mut self, file: u64, queued: Queued) {
        if trace::enabled() {
            let event = &queued.event;
            trace::line(format_args!("CM EVENT id={} {} status={}", event.id, event.event, event.status as i32));
        }
        if let (Some(queue), Some(id)) = (self.queues.get_mut(&file), self.ids.get_mut(&queued.counted)) {
            id.queued += 1;
            queue.events.push_back(queued);
            queue.sync();
        }
    }

    // ---- addresses -----------------------------------------------------------------------------

    pub fn guest(&self) -> Guest {
        self.machine.guest()
    }

    /// Index of one of our own addresses.
    pub fn gid_index(&self, gid: &Gid) -> u8 {
        let wire = self.machine.wire().map(|wire| (WIRE_GID, wire.gid));
        self.guest().gids().chain(wire).find(|(_, own)| own == gid).map_or(0, |(index, _)| index as u8)
    }

    fn directory_of(&self, guest: u8) -> PathBuf {
        directory_of(self.machine.directory(), guest)
    }

    /// The path from here to a guest, between addresses like `address`.
    fn path(&self, guest: Guest, address: &Address) -> Option<Path> {
        let like = |place| !address.is_v4() && matches!(place, Place::Guest(_)) && address.to_gid()[0] == 0xfe;
        let index = if like(address.place()) { 0 } else { 1 };
        let remote = guest.gid(index)?;
        Some(Path { remote_gid: remote, ..self.local_path(index)? })
    }

    /// The path from here to somebody who is no guest.
    fn path_to_stranger(&self, id: &Id, to: &Address) -> Option<Path> {
        let (wire, remote) = (self.machine.wire()?, to.to_gid());
        // From another address of ours he would not know the way back.
        let bound = id.src.is_none_or(|src| src.place() == Place::Any || src.to_gid() == wire.gid);
        let is_way = bound && is_of_one_host(address_of(&remote)) && is_alike(&remote, &wire.gid);
        let local = self.local_path(WIRE_GID).filter(|_| is_way)?;
        Some(Path { remote_gid: remote, ..local })
    }

    /// Where an id wants to go. `None`: there is no way, for now or for ever.
    fn find_path(&self, id: &Id, dst: &Address) -> Option<Path> {
        match dst.place() {
            Place::Elsewhere => self.path_to_stranger(id, dst),
            _ => self.path(self.find_guest(id, dst)?, dst),
        }
    }

    fn local_path(&self, index: u32) -> Option<Path> {
        let wire = self.machine.wire().filter(|_| index == WIRE_GID).map(|wire| wire.gid);
        Some(Path {
            local_gid: wire.or_else(|| self.guest().gid(index))?,
            mtu: self.machine.device().port().active_mtu as u8,
            rate: PATH_RATE,
            hop_limit: HOP_LIMIT,
            ack_timeout: ACK_TIMEOUT,
            ..Default::default()
        })
    }

    /// What an id that is bound to `address` has of a path: its own end; `Ok(None)` for nobody's in particular.
    pub fn bound_path(&self, address: &Address) -> Result<Option<Path>> {
        match address.place() {
            Place::Any => Ok(None),
            Place::Guest(guest) if is_same(guest, self.guest()) => {
                let index = u32::from(self.gid_index(&address.to_gid()));
                self.local_path(index).map(Some).ok_or(libc::ENODEV)
            }
            Place::Machine => {
                let is_wire = self.machine.wire().is_some_and(|wire| wire.gid == address.to_gid());
                self.local_path(if is_wire { WIRE_GID } else { 1 }).map(Some).ok_or(libc::ENODEV)
            }
            Place::Guest(_) | Place::Elsewhere => Err(libc::EADDRNOTAVAIL),
        }
    }

    /// Our own address in the family of `like`, for a way to that.
    pub fn own_address(&self, like: &Address, port: u16) -> Address {
        let wire = self.machine.wire().filter(|_| like.place() == Place::Elsewhere);
        let gid = |index| wire.map_or_else(|| self.guest().gid(index).unwrap_or_default(), |wire| wire.gid);
        match like {
            Address::V4 { .. } => {
                let gid = gid(1);
                Address::V4 { addr: [gid[12], gid[13], gid[14], gid[15]], port }
            }
            Address::V6 { scope, .. } => Address::V6 { addr: gid(0), port, scope: *scope },
            Address::Ib { .. } => Address::Ib { gid: gid(1), sid: 0, mask: 0 }.with_port(port),
        }
    }

    /// The guest that an address means to this id. `None`: none, for now or for ever.
    fn find_guest(&self, id: &Id, dst: &Address) -> Option<Guest> {
        let own = self.guest();
        match dst.place() {
            Place::Any => Some(own),
            Place::Guest(guest) if guest.host() != own.host() => links(own, guest).then_some(guest),
            Place::Guest(guest) => {
                (is_same(guest, own) || self.directory_of(guest.index()).join("lock").exists()).then_some(guest)
            }
            // Whoever listens there: this guest before others.
            Place::Machine => {
                let service = id.service(dst);
                let here = self.listeners.contains_key(&service) || self.ports.is_expected(id.ps, dst);
                if here || self.ports.is_held_elsewhere(id.ps, dst) {
                    return Some(own);
                }
                let others = (0..MAX_GUESTS).filter(|index| *index != own.index());
                let found = others.into_iter().find(|index| port::is_held_in(&self.directory_of(*index), id.ps, dst));
                found.map_or(Some(own), |index| Guest::new(own.host(), index, own.roce()))
            }
            Place::Elsewhere => None,
        }
    }

    /// An id with an address wants to go somewhere; `until`: how long that may take.
    pub fn begin_to_resolve(&mut self, now: Instant, number: u32, dst: Address, until: Instant) {
        let Some(id) = self.ids.get_mut(&number) else { return };
        id.dst = Some(dst);
        id.phase = Phase::AddrQuery;
        id.resolving = Some(until);
        self.resolving.insert(number);
        // One that was bound connects, and does not listen.
        self.ports.unexpect(number);
        self.resolve(now, number);
    }

    /// Tries to find out where `number` wants to go, and tells it.
    fn resolve(&mut self, now: Instant, number: u32) {
        let Some(id) = self.ids.get(&number).filter(|id| id.phase == Phase::AddrQuery) else { return };
        let Some(dst) = id.dst else { return };
        let path = self.find_path(id, &dst);
        let late = id.resolving.is_none_or(|until| until <= now);
        let never = dst.place() == Place::Elsewhere;
        let own = self.own_address(&dst, id.src.map_or(0, |src| src.port()));
        let Some(id) = self.ids.get_mut(&number) else { return };
        match path {
            Some(path) => {
                let ack_timeout = id.ack_timeout.unwrap_or(path.ack_timeout);
                id.path = Some(Path { ack_timeout, traffic_class: id.tos, ..path });
                if id.src.is_none_or(|src| src.place() == Place::Any) {
                    id.src = Some(own);
                }
                id.phase = Phase::AddrResolved;
                id.resolving = None;
                self.resolving.remove(&number);
                self.tell(number, event::ADDR_RESOLVED, 0, Param::None);
            }
            None if late || never => {
                id.phase = Phase::AddrBound;
                id.resolving = None;
                self.resolving.remove(&number);
                // As where the route leads out by an interface without an RDMA device, or to a silent host.
                let errno = if never { libc::ENODEV } else { libc::ETIMEDOUT };
                self.tell(number, event::ADDR_ERROR, -errno, Param::None);
            }
            None => {}
        }
    }

    // ---- messages and time ---------------------------------------------------------------------

    /// The questions that nobody seems to be there for, and where to take in what was said before that. Somebody may
    /// have answered, and gone: so only after that `run` may be told that there is nobody.
    pub fn doubts(&mut self) -> Option<(&'static dyn Machine, Vec<CommId>)> {
        (!self.doubtful.is_empty()).then(|| (self.machine, std::mem::take(&mut self.doubtful)))
    }

    /// Takes in what came and does what is due; returns when to call again at the latest. `nobody`: questions that are
    /// refused if none of it is an answer to them.
    pub fn run(&mut self, now: Instant, nobody: &[CommId]) -> Option<Instant> {
        let mut left = if nobody.is_empty() { BURST } else { gsi::ENTRIES };
        while left > 0
            && let Some(datagram) = self.gsi.receive()
        {
            left -= 1;
            if trace::enabled()
                && let Some(message) = Message::parse(&datagram.bytes)
            {
                trace::line(format_args!("CM {} received", message.name()));
            }
            let from = datagram.from;
            let own = self.guest();
            let (directory, ids, listeners) = (self.machine.directory(), &self.ids, &self.listeners);
            let speaks_for_all = is_stranger(&from) && self.machine.speaks_for_all(&datagram.to);
            let ports = &self.ports;
            let mut lookup = Lookup { own, from, ids, listeners, ports, directory, speaks_for_all };
            self.cm.receive(now, from, datagram.to, &datagram.bytes, &mut lookup);
            self.carry_out();
        }
        for comm in nobody {
            self.cm.nobody(now, *comm);
        }
        self.cm.poll(now);
        if self.next_tick.is_some_and(|at| at <= now) {
            self.next_tick = None;
            self.tick(now);
        }
        self.carry_out();
        self.told = if left == 0 { Some(now) } else { self.deadline(now) };
        self.told
    }

    /// After a command: sends what it made, and gets the side thread up if that has to come sooner than it thinks.
    pub fn settle(&mut self, now: Instant) {
        self.carry_out();
        let deadline = self.deadline(now);
        if deadline.is_some_and(|at| self.told.is_none_or(|told| at < told)) {
            self.told = deadline;
            self.machine.wake();
        }
    }

    fn deadline(&mut self, now: Instant) -> Option<Instant> {
        let watching = self.cm.has_peers() || !self.resolving.is_empty();
        if !watching {
            self.next_tick = None;
        } else if self.next_tick.is_none() {
            self.next_tick = Some(now + TICK);
        }
        let doubts = (!self.doubtful.is_empty()).then_some(now);
        [self.cm.deadline(), self.next_tick, self.ports.forget_left(now), doubts].into_iter().flatten().min()
    }

    fn tick(&mut self, now: Instant) {
        let machine = self.machine;
        self.cm.watch(now, |gid, remote_id| whose(machine, gid, remote_id), |process| machine.runs(process));
        for number in self.resolving.clone() {
            self.resolve(now, number);
        }
    }

    fn carry_out(&mut self) {
        loop {
            if let Some(out) = self.cm.next_out() {
                self.send(&out);
            } else if let Some(comm) = self.cm.next_refused() {
                self.doubtful.push(comm);
            } else if let Some(event) = self.cm.next_event() {
                self.hear(event);
            } else {
                return;
            }
        }
    }

    /// Whether somebody may answer a question: who has the port, at some address.
    fn may_be_served(&self, comm: CommId, to: &Gid) -> bool {
        let number = self.by_comm.get(&comm);
        let Some((id, dst)) = number.and_then(|number| self.ids.get(number)).and_then(|id| Some((id, id.dst?))) else {
            return true;
        };
        // Of others than the guests of this host nobody can see it from here.
        let Some(guest) = Guest::of(to).filter(|_| is_here(self.guest(), to)) else { return true };
        let is_own = is_same(guest, self.guest());
        let service = id.service(&dst);
        spaces_of(service).into_iter().any(|ps| {
            let port = service as u16;
            if is_own {
                self.ports.is_used(ps, port)
            } else {
                port::is_used_in(&self.directory_of(guest.index()), ps, port)
            }
        })
    }

    fn send(&mut self, out: &Outgoing) {
        if let Some(comm) = out.question
            && !self.may_be_served(comm, &out.to)
        {
            return self.doubtful.push(comm);
        }
        if trace::enabled()
            && let Some(message) = Message::parse(&out.mad)
        {
            trace::line(format_args!("CM {} sent", message.name()));
        }
        let index = self.gid_index(&out.from);
        self.gsi.send(index, &out.to, &out.mad);
    }

    fn hear(&mut self, event: Event) {
        let number = self.by_comm.get(&event.comm()).copied();
        let event = match event {
            Event::ReqReceived { listener, comm, req } => return self.on_req(listener as u32, comm, &req),
            Event::SidrReqReceived { listener, comm, req, from } => {
                return self.on_sidr_req(listener as u32, comm, &req, from);
            }
            event => event,
        };
        let Some(number) = number else { return };
        match event {
            Event::RepReceived { rep, .. } => {
                self.tell(number, event::CONNECT_RESPONSE, 0, Param::Connection(Box::new(of_rep(&rep))));
            }
            Event::RtuReceived { .. } => self.tell(number, event::ESTABLISHED, 0, Param::None),
            Event::RejReceived { reason, private_data, .. } => {
                let param = conn_param(&private_data[..]);
                self.tell(number, event::REJECTED, reason.into(), Param::Connection(Box::new(param)));
            }
            Event::ReqError { .. } | Event::RepError { .. } | Event::SidrReqError { .. } => {
                self.tell(number, event::UNREACHABLE, -libc::ETIMEDOUT, Param::None);
            }
            Event::DreqReceived { .. } | Event::DrepReceived { .. } => self.disconnected(number, 0),
            Event::DreqError { .. } => self.disconnected(number, -libc::ETIMEDOUT),
            Event::TimewaitExit { .. } => self.tell(number, event::TIMEWAIT_EXIT, 0, Param::None),
            Event::SidrRepReceived { rep, .. } => self.on_sidr_rep(number, &rep),
            Event::ReqReceived { .. } | Event::SidrReqReceived { .. } => {}
        }
    }

    /// Tells it once.
    fn disconnected(&mut self, number: u32, status: i32) {
        let Some(id) = self.ids.get_mut(&number).filter(|id| id.phase == Phase::Connect) else { return };
        id.phase = Phase::Disconnect;
        self.tell(number, event::DISCONNECTED, status, Param::None);
    }

    /// A new id for somebody who wants to connect.
    fn new_connection(
        &mut self,
        listener: u32,
        comm: CommId,
        path: Path,
        addresses: Option<(Address, Address)>,
    ) -> Option<u32> {
        let listening = self.ids.get_mut(&listener).filter(|id| id.phase == Phase::Listen && id.backlog > 0);
        let Some(listening) = listening else {
            self.cm.forget(comm);
            return None;
        };
        listening.backlog -= 1;
        let (file, ps, qp_type, bound) = (listening.file, listening.ps, listening.qp_type, listening.src);
        let number = self.create(file, 0, ps, qp_type);
        let id = self.ids.get_mut(&number)?;
        id.phase = Phase::Connect;
        (id.src, id.dst) = match addresses {
            Some((from, at)) => (Some(at), Some(from)),
            None => (bound, Some(Address::Ib { gid: path.remote_gid, sid: 0, mask: 0 })),
        };
        id.path = Some(path);
        id.has_route = true;
        self.connect(number, comm);
        Some(number)
    }

    fn bring(&mut self, listener: u32, number: u32, param: &Param) {
        let Some(id) = self.ids.get(&listener) else { return };
        let event = event_of(id.uid, number, event::CONNECT_REQUEST, 0, param);
        self.queue(id.file, Queued { counted: listener, brings: Some(number), event });
    }

    fn on_req(&mut self, listener: u32, comm: CommId, req: &Req) {
        let Ok(attributes) = self.cm.attributes(comm, true) else { return };
        let addresses = parse_ip_header(&req.private_data, req.service_id);
        let by_ib = self.ids.get(&listener).and_then(|id| id.src).is_some_and(|src| src.is_ib());
        let offset = if addresses.is_some() && !by_ib { IP_HEADER } else { 0 };
        let Some(number) = self.new_connection(listener, comm, attributes.path, addresses) else { return };
        let mut param = conn_param(&req.private_data[offset..]);
        param.qp_num = req.local_qpn;
        param.srq = req.srq;
        // What the one who asks wants to have is what the one who answers must give.
        param.responder_resources = req.initiator_depth;
        param.initiator_depth = req.responder_resources;
        param.flow_control = req.flow_control;
        param.retry_count = req.retry_count;
        param.rnr_retry_count = req.rnr_retry_count;
        self.bring(listener, number, &Param::Connection(Box::new(param)));
    }

    fn on_sidr_req(&mut self, listener: u32, comm: CommId, req: &SidrReq, from: Gid) {
        let addresses = parse_ip_header(&req.private_data, req.service_id);
        let offset = if addresses.is_some() { IP_HEADER } else { 0 };
        let index = if is_stranger(&from) { WIRE_GID } else { u32::from(from[0] != 0xfe) };
        let path = self.local_path(index).map(|path| Path { remote_gid: from, ..path });
        let Some(number) = self.new_connection(listener, comm, path.unwrap_or_default(), addresses) else { return };
        let mut param = ud_param(&req.private_data[offset..]);
        param.qkey = 0;
        self.bring(listener, number, &Param::Datagram(Box::new(param)));
    }

    fn on_sidr_rep(&mut self, number: u32, rep: &SidrRep) {
        if rep.status != sidr_status::VALID {
            return self.tell(number, event::UNREACHABLE, rep.status.into(), Param::None);
        }
        let Some(path) = self.ids.get(&number).and_then(|id| id.path) else { return };
        let mut param = ud_param(&rep.private_data);
        param.qp_num = rep.qpn;
        param.qkey = rep.qkey;
        param.ah_attr = address_handle(&path, self.gid_index(&path.local_gid));
        self.tell(number, event::ESTABLISHED, 0, Param::Datagram(Box::new(param)));
    }
}

fn conn_param(private_data: &[u8]) -> rdma_ucm_conn_param {
    let mut param = rdma_ucm_conn_param::new_zeroed();
    param.private_data[..private_data.len()].copy_from_slice(private_data);
    param.private_data_len = private_data.len() as u8;
    param
}

fn ud_param(private_data: &[u8]) -> rdma_ucm_ud_param {
    let mut param = rdma_ucm_ud_param::new_zeroed();
    param.private_data[..private_data.len()].copy_from_slice(private_data);
    param.private_data_len = private_data.len() as u8;
    param
}

fn of_rep(rep: &Rep) -> rdma_ucm_conn_param {
    const { assert!(private_len::REP <= 255) };
    rdma_ucm_conn_param {
        qp_num: rep.local_qpn,
        srq: rep.srq,
        responder_resources: rep.initiator_depth,
        initiator_depth: rep.responder_resources,
        flow_control: rep.flow_control,
        rnr_retry_count: rep.rnr_retry_count,
        ..conn_param(&rep.private_data)
    }
}

fn event_of(uid: u64, id: u32, event: u32, status: i32, param: &Param) -> Box<rdma_ucm_event_resp> {
    let mut told = Box::new(rdma_ucm_event_resp::new_zeroed());
    (told.uid, told.id, told.event, told.status) = (uid, id, event, status as u32);
    match param {
        Param::None => {}
        Param::Connection(param) => told.param[..size_of_val(&**param)].copy_from_slice(param.as_bytes()),
        Param::Datagram(param) => told.param[..size_of_val(&**param)].copy_from_slice(param.as_bytes()),
        Param::Own(number) => told.param[..number.len()].copy_from_slice(number),
    }
    told
}

/// What `rdma_ucm_conn_param` says to the protocol.
pub fn parameters(param: &rdma_ucm_conn_param, psn: u32, qkey: u32) -> Parameters {
    Parameters {
        qpn: param.qp_num & 0x00ff_ffff,
        psn,
        qkey,
        responder_resources: param.responder_resources,
        initiator_depth: param.initiator_depth,
        flow_control: u8::from(param.flow_control != 0),
        retry_count: param.retry_count,
        rnr_retry_count: param.rnr_retry_count,
        srq: u8::from(param.srq != 0),
    }
}

/// The QP type of a port space; `None`: there is no such.
pub fn qp_type_of(ps: u16, asked: u8) -> Option<u8> {
    match ps {
        RDMA_PS_TCP => Some(super::id::QPT_RC),
        RDMA_PS_UDP | RDMA_PS_IPOIB => Some(QPT_UD),
        RDMA_PS_IB => Some(asked),
        _ => None,
    }
}
