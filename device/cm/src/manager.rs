//! Connections and their states (IBA vol. 1, 12.9: states of active and passive side; states have the names that Linux
//! gives them).
//!
//! The caller owns the clock and the wire: it calls, hands in what arrived and lets time pass ([`Manager::poll`]), and
//! takes out [`Outgoing`] datagrams and [`Event`]s. A connection is known by its local communication id. It outlives
//! its owner's interest (`release`) for as long as a late message may still name it.
//!
//! A message that wants an answer is sent again until the answer comes, soon at first and more and more seldom: a lost
//! one costs little, and a slow peer has the whole of the time. Who has the message and no answer yet says so (MRA)
//! when it comes again.

mod arrivals;

use crate::connection::*;
use crate::message::*;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, VecDeque};
use std::time::{Duration, Instant};

/// How often a message is sent again.
pub const MAX_CM_RETRIES: u8 = 15;
/// First wait for an answer.
const FIRST_WAIT: Duration = Duration::from_millis(67);
/// Longest wait, and what REQ says of it: 4.096 us * 2^19.
const LONGEST_WAIT: Duration = Duration::from_micros(2_147_484);
const RESPONSE_TIMEOUT: u8 = 19;
/// What an MRA asks for, as Linux does: 4.096 us * 2^24.
const SERVICE_TIMEOUT: u8 = 24;
/// How long the answer to a datagram question is kept, should the question come again.
const SIDR_MEMORY: Duration = Duration::from_secs(5);

/// A message that is sent until it is answered.
struct Resend {
    mad: Mad,
    round: u8,
}

struct Connection {
    state: State,
    path: Path,
    /// The peer's name for it; 0 while it is not known.
    remote_id: u32,
    tid: u64,
    local: Parameters,
    remote: Parameters,
    /// After both have spoken.
    responder_resources: u8,
    initiator_depth: u8,
    resend: Option<Resend>,
    /// When something is due: the next sending, or the end of TIME_WAIT.
    due: Option<Instant>,
    /// Somebody still wants to hear of it.
    owned: bool,
    /// The answer, should the question come again.
    answer: Option<Mad>,
    service_id: u64,
    watched: Watched,
}

/// Who is at the other end of a connection; see `watch`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Watched {
    No,
    /// The caller was not asked yet.
    Unknown,
    /// By the caller's number for it.
    Process(u64),
}

/// All connections of one address. See the module text.
pub struct Manager {
    guid: u64,
    /// Communication ids are this plus a number below `ids`.
    base: u32,
    ids: u32,
    next: u32,
    tid: u64,
    /// Boxed: the table keeps the room that it once needed.
    connections: HashMap<CommId, Box<Connection>>,
    by_remote: HashMap<(Gid, u32), CommId>,
    /// The last connection with a QP, by its address and number.
    by_qp: HashMap<(Gid, u32), CommId>,
    /// Whose other end is not known yet, and those of each process.
    unknown: BTreeSet<CommId>,
    by_process: BTreeMap<u64, BTreeSet<CommId>>,
    timers: BinaryHeap<Reverse<(Instant, CommId)>>,
    out: VecDeque<Outgoing>,
    events: VecDeque<Event>,
    refused: VecDeque<CommId>,
}

fn code_time(code: u8) -> Duration {
    Duration::from_nanos(4096 << (code & 31))
}

fn wait_of(round: u8) -> Duration {
    FIRST_WAIT.saturating_mul(1 << round.min(15)).min(LONGEST_WAIT)
}

impl Connection {
    fn connected(&self) -> bool {
        !matches!(self.state, State::SidrReqSent | State::SidrReqRcvd | State::SidrDone)
    }
}

impl Manager {
    /// A manager of the node `guid` whose communication ids begin with the bits of `base` above `id_bits`. `seed` is
    /// where it begins to count, so that ids of a former manager with the same base do not come back at once.
    pub fn new(guid: u64, base: u32, id_bits: u32, seed: u64) -> Manager {
        let ids = 1 << id_bits;
        Manager {
            guid,
            base,
            ids,
            next: (seed % u64::from(ids)) as u32,
            tid: seed,
            connections: HashMap::new(),
            by_remote: HashMap::new(),
            by_qp: HashMap::new(),
            unknown: BTreeSet::new(),
            by_process: BTreeMap::new(),
            timers: BinaryHeap::new(),
            out: VecDeque::new(),
            events: VecDeque::new(),
            refused: VecDeque::new(),
        }
    }

    // ---- what the owner does -------------------------------------------------------------------

    /// Asks for a connection.
    pub fn connect(
        &mut self,
        now: Instant,
        service_id: u64,
        path: &Path,
        local: &Parameters,
        private_data: &[u8; private_len::REQ],
    ) -> Option<CommId> {
        let comm = self.fresh()?;
        let tid = self.fresh_tid();
        let req = Req {
            local_comm_id: comm.0,
            service_id,
            local_ca_guid: self.guid,
            local_qkey: local.qkey,
            local_qpn: local.qpn,
            responder_resources: local.responder_resources,
            initiator_depth: local.initiator_depth,
            remote_cm_response_timeout: RESPONSE_TIMEOUT,
            flow_control: local.flow_control,
            starting_psn: local.psn,
            local_cm_response_timeout: RESPONSE_TIMEOUT,
            retry_count: local.retry_count.min(7),
            partition_key: 0xffff,
            path_mtu: path.mtu,
            rnr_retry_count: local.rnr_retry_count.min(7),
            max_cm_retries: MAX_CM_RETRIES,
            srq: local.srq & 1,
            flow_label: path.flow_label,
            packet_rate: path.rate,
            traffic_class: path.traffic_class,
            hop_limit: path.hop_limit,
            sl: path.sl,
            local_ack_timeout: path.ack_timeout,
            local_gid: path.local_gid,
            remote_gid: path.remote_gid,
            private_data: *private_data,
            ..Default::default()
        };
        let mut connection = Connection::new(State::ReqSent, *path, tid);
        connection.local = *local;
        connection.service_id = service_id;
        Some(self.ask(now, comm, connection, &Message::Req(Box::new(req))))
    }

    /// Asks for a datagram QP.
    pub fn resolve(
        &mut self,
        now: Instant,
        service_id: u64,
        path: &Path,
        private_data: &[u8; private_len::SIDR_REQ],
    ) -> Option<CommId> {
        let comm = self.fresh()?;
        let tid = self.fresh_tid();
        let req = SidrReq { request_id: comm.0, partition_key: 0xffff, service_id, private_data: *private_data };
        let mut connection = Connection::new(State::SidrReqSent, *path, tid);
        connection.service_id = service_id;
        Some(self.ask(now, comm, connection, &Message::SidrReq(Box::new(req))))
    }

    /// Agrees to a connection that was asked for. `psn` is not asked of the caller: see `attributes`.
    pub fn accept(
        &mut self,
        now: Instant,
        comm: CommId,
        local: &Parameters,
        private_data: &[u8; private_len::REP],
    ) -> Result<(), CallError> {
        let guid = self.guid;
        let connection = self.connection(comm, &[State::ReqRcvd, State::MraReqSent])?;
        let psn = connection.local.psn;
        connection.local = Parameters { psn, ..*local };
        connection.responder_resources = local.responder_resources;
        connection.initiator_depth = local.initiator_depth;
        connection.state = State::RepSent;
        let rep = Rep {
            local_comm_id: comm.0,
            remote_comm_id: connection.remote_id,
            local_qkey: local.qkey,
            local_qpn: local.qpn,
            starting_psn: psn,
            responder_resources: local.responder_resources,
            initiator_depth: local.initiator_depth,
            failover_accepted: 1,
            flow_control: local.flow_control,
            rnr_retry_count: local.rnr_retry_count.min(7),
            srq: local.srq & 1,
            local_ca_guid: guid,
            private_data: *private_data,
            ..Default::default()
        };
        let mad = Message::Rep(Box::new(rep)).to_mad(connection.tid);
        self.send_until_answered(now, comm, mad);
        Ok(())
    }

    /// The one who asked is ready too.
    pub fn ready(&mut self, comm: CommId) -> Result<(), CallError> {
        let connection = self.connection(comm, &[State::RepRcvd, State::MraRepSent])?;
        connection.state = State::Established;
        let rtu = Rtu { local_comm_id: comm.0, remote_comm_id: connection.remote_id };
        let mad = Message::Rtu(rtu).to_mad(connection.tid);
        connection.answer = Some(mad);
        self.send(comm, mad);
        Ok(())
    }

    /// The QP has received a message, so its peer must be ready, whatever became of its RTU.
    pub fn established(&mut self, comm: CommId) -> Result<(), CallError> {
        match self.connections.get_mut(&comm) {
            Some(connection) if connection.state == State::Established => Err(CallError::Established),
            Some(connection) if matches!(connection.state, State::RepSent | State::MraRepRcvd) => {
                connection.state = State::Established;
                connection.settle();
                self.events.push_back(Event::RtuReceived { comm });
                Ok(())
            }
            _ => Err(CallError::State),
        }
    }

    /// Refuses.
    pub fn reject(
        &mut self,
        now: Instant,
        comm: CommId,
        reason: u16,
        private_data: &[u8; private_len::REJ],
    ) -> Result<(), CallError> {
        use State::*;
        let connection = self
            .connection(comm, &[ReqSent, MraReqRcvd, ReqRcvd, MraReqSent, RepRcvd, MraRepSent, RepSent, MraRepRcvd])?;
        let message_rejected = match connection.state {
            ReqRcvd | MraReqSent => 0,
            RepRcvd | MraRepSent => 1,
            _ => 2,
        };
        let rej = Rej {
            local_comm_id: comm.0,
            remote_comm_id: connection.remote_id,
            message_rejected,
            reason,
            private_data: *private_data,
        };
        let mad = Message::Rej(Box::new(rej)).to_mad(connection.tid);
        let sent_rep = matches!(connection.state, RepSent | MraRepRcvd);
        self.send(comm, mad);
        if sent_rep {
            self.enter_timewait(now, comm)
        } else {
            self.reset(comm)
        }
        Ok(())
    }

    /// Answers a question for a datagram QP.
    pub fn answer(
        &mut self,
        now: Instant,
        comm: CommId,
        status: u8,
        qpn: u32,
        qkey: u32,
        private_data: &[u8; private_len::SIDR_REP],
    ) -> Result<(), CallError> {
        let connection = self.connection(comm, &[State::SidrReqRcvd])?;
        connection.state = State::SidrDone;
        let rep = SidrRep {
            request_id: connection.remote_id,
            status,
            qpn,
            service_id: connection.service_id,
            qkey,
            private_data: *private_data,
        };
        let mad = Message::SidrRep(Box::new(rep)).to_mad(connection.tid);
        connection.answer = Some(mad);
        self.send(comm, mad);
        self.wait_until(comm, now + SIDR_MEMORY);
        Ok(())
    }

    /// Ends the connection, or agrees to its end.
    pub fn disconnect(&mut self, now: Instant, comm: CommId) -> Result<(), CallError> {
        if self.connections.get(&comm).is_some_and(|connection| connection.state == State::DreqRcvd) {
            self.send_drep(comm);
            self.enter_timewait(now, comm);
            return Ok(());
        }
        let connection = self.connection(comm, &[State::Established])?;
        connection.state = State::DreqSent;
        let dreq =
            Dreq { local_comm_id: comm.0, remote_comm_id: connection.remote_id, remote_qpn: connection.remote.qpn };
        connection.tid = connection.tid.wrapping_add(1 << 32);
        let mad = Message::Dreq(dreq).to_mad(connection.tid);
        self.send_until_answered(now, comm, mad);
        Ok(())
    }

    /// Nobody wants to hear of it any more. The peer is told what it must know, and the rest is done alone.
    pub fn release(&mut self, now: Instant, comm: CommId) {
        use State::*;
        let Some(connection) = self.connections.get_mut(&comm) else { return };
        connection.owned = false;
        match connection.state {
            ReqSent | MraReqRcvd => self.refuse(now, comm, reason::TIMEOUT),
            ReqRcvd | MraReqSent | RepRcvd | MraRepSent | RepSent | MraRepRcvd => {
                self.refuse(now, comm, reason::CONSUMER);
            }
            Established | DreqRcvd => {
                // Of these states it cannot fail.
                let _ = self.disconnect(now, comm);
            }
            SidrReqRcvd => {
                let _ = self.answer(now, comm, sidr_status::REJECTED, 0, 0, &[0; private_len::SIDR_REP]);
            }
            DreqSent | TimeWait | SidrDone => {}
            Idle | SidrReqSent => self.reset(comm),
        }
    }

    fn refuse(&mut self, now: Instant, comm: CommId, reason: u16) {
        // Called in the states in which it cannot fail.
        let _ = self.reject(now, comm, reason, &[0; private_len::REJ]);
    }

    /// Forgets a question that came, without a word: whoever asks may ask again.
    pub fn forget(&mut self, comm: CommId) {
        self.unname(comm);
        self.connections.remove(&comm);
    }

    // ---- what the owner may ask ----------------------------------------------------------------

    /// The state of a connection.
    pub fn state(&self, comm: CommId) -> State {
        self.connections.get(&comm).map_or(State::Idle, |connection| connection.state)
    }

    /// What a QP needs for its next state: for INIT as soon as there is a connection, for RTR and RTS once the peer has
    /// told of its own QP.
    pub fn attributes(&self, comm: CommId, of_peer: bool) -> Result<Attributes, CallError> {
        use State::*;
        let connection = self.connections.get(&comm).ok_or(CallError::State)?;
        match connection.state {
            ReqSent | MraReqRcvd if of_peer => return Err(CallError::State),
            ReqSent | MraReqRcvd | ReqRcvd | MraReqSent | RepRcvd | MraRepSent | RepSent | MraRepRcvd | Established => {
            }
            _ => return Err(CallError::State),
        }
        Ok(Attributes {
            path: connection.path,
            dest_qp_num: connection.remote.qpn,
            // Each end says which packet it expects first, so the other one begins with that.
            rq_psn: connection.local.psn,
            sq_psn: connection.remote.psn,
            responder_resources: connection.responder_resources,
            initiator_depth: connection.initiator_depth,
            retry_count: connection.remote.retry_count,
            rnr_retry_count: connection.remote.rnr_retry_count,
        })
    }

    /// How many connections and questions there are, those included that nobody wants to hear of.
    pub fn len(&self) -> usize {
        self.connections.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }

    /// Takes a datagram out.
    pub fn next_out(&mut self) -> Option<Outgoing> {
        self.out.pop_front()
    }

    /// Takes an event out.
    pub fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Takes a question out to which somebody has said that nobody listens. Who says so knows nothing of the question.
    /// It is not believed yet: the caller finds out whether an answer may be on its way, and calls `nobody` if not.
    pub fn next_refused(&mut self) -> Option<CommId> {
        self.refused.pop_front()
    }

    // ---- what time brings, and what the caller finds out ---------------------------------------

    /// When `poll` has something to do.
    pub fn deadline(&mut self) -> Option<Instant> {
        // What was answered meanwhile is still in the heap.
        while let Some(Reverse((at, comm))) = self.timers.peek() {
            if self.connections.get(comm).is_some_and(|one| one.due == Some(*at)) {
                return Some(*at);
            }
            self.timers.pop();
        }
        None
    }

    /// Does what is due.
    pub fn poll(&mut self, now: Instant) {
        while let Some(Reverse((at, comm))) = self.timers.peek().copied().filter(|Reverse((at, _))| *at <= now) {
            self.timers.pop();
            let Some(connection) = self.connections.get_mut(&comm).filter(|one| one.due == Some(at)) else { continue };
            connection.due = None;
            match &mut connection.resend {
                Some(resend) if resend.round < MAX_CM_RETRIES => {
                    resend.round += 1;
                    let (mad, wait) = (resend.mad, wait_of(resend.round));
                    self.demand(comm, mad);
                    self.wait_until(comm, now + wait);
                }
                Some(_) => self.unanswered(now, comm),
                None => self.waited(comm),
            }
        }
    }

    /// Nobody listens where a question went to, and no answer is on its way: as a node without a listener refuses it.
    pub fn nobody(&mut self, now: Instant, comm: CommId) {
        let Some(connection) = self.connections.get(&comm) else { return };
        match connection.state {
            State::ReqSent => {
                let reason = reason::INVALID_SERVICE_ID;
                self.rejected(now, comm, reason, Box::new([0; private_len::REJ]));
            }
            State::SidrReqSent => {
                let rep = SidrRep { request_id: comm.0, status: sidr_status::UNSUPPORTED, ..Default::default() };
                self.reset(comm);
                self.tell(comm, Event::SidrRepReceived { comm, rep: Box::new(rep) });
            }
            _ => {}
        }
    }

    /// Asks of the process at the other end of each connection whether it is gone, and does for it what its kernel
    /// would have: a process that was killed says no word itself. `whose` is asked once for each connection, with the
    /// address and the peer's name for it; `runs` for each process that was named.
    pub fn watch(
        &mut self,
        now: Instant,
        mut whose: impl FnMut(&Gid, u32) -> Whose,
        mut runs: impl FnMut(u64) -> bool,
    ) {
        let mut lost = Vec::new();
        for comm in std::mem::take(&mut self.unknown) {
            let Some(connection) = self.connections.get_mut(&comm) else { continue };
            connection.watched = match whose(&connection.path.remote_gid, connection.remote_id) {
                Whose::Process(process) => {
                    self.by_process.entry(process).or_default().insert(comm);
                    Watched::Process(process)
                }
                Whose::Stranger => Watched::No,
                Whose::Gone => {
                    lost.push(comm);
                    Watched::No
                }
            };
        }
        for (process, comms) in &self.by_process {
            if !runs(*process) {
                lost.extend(comms);
            }
        }
        for comm in lost {
            self.peer_gone(now, comm);
        }
    }

    /// Whether `watch` has anything to ask.
    pub fn has_peers(&self) -> bool {
        !self.unknown.is_empty() || !self.by_process.is_empty()
    }

    /// The peer's name is known from here on, and so is who to ask about.
    fn name(&mut self, comm: CommId) {
        let Some(connection) = self.connections.get_mut(&comm) else { return };
        let gid = connection.path.remote_gid;
        self.by_remote.insert((gid, connection.remote_id), comm);
        if connection.connected() && connection.watched == Watched::No {
            connection.watched = Watched::Unknown;
            self.unknown.insert(comm);
        }
        if connection.remote.qpn != 0 {
            self.by_qp.insert((gid, connection.remote.qpn), comm);
        }
    }

    /// Nobody has to be asked about any more.
    fn unwatch(&mut self, comm: CommId) {
        let Some(connection) = self.connections.get_mut(&comm) else { return };
        match std::mem::replace(&mut connection.watched, Watched::No) {
            Watched::No => {}
            Watched::Unknown => {
                self.unknown.remove(&comm);
            }
            Watched::Process(process) => {
                if let Some(comms) = self.by_process.get_mut(&process) {
                    comms.remove(&comm);
                    if comms.is_empty() {
                        self.by_process.remove(&process);
                    }
                }
            }
        }
    }

    /// Its names mean nothing any more.
    fn unname(&mut self, comm: CommId) {
        self.unwatch(comm);
        let Some(connection) = self.connections.get(&comm) else { return };
        let gid = connection.path.remote_gid;
        for (names, name) in [(&mut self.by_remote, connection.remote_id), (&mut self.by_qp, connection.remote.qpn)] {
            if names.get(&(gid, name)) == Some(&comm) {
                names.remove(&(gid, name));
            }
        }
    }

    fn peer_gone(&mut self, now: Instant, comm: CommId) {
        use State::*;
        match self.state(comm) {
            DreqSent => {
                self.enter_timewait(now, comm);
                self.tell(comm, Event::DrepReceived { comm });
            }
            Established | DreqRcvd => {
                self.enter_timewait(now, comm);
                self.tell(comm, Event::DreqReceived { comm });
            }
            Idle | TimeWait => {}
            _ => self.rejected(now, comm, reason::CONSUMER, Box::new([0; private_len::REJ])),
        }
    }

    // ---- what they are made of -----------------------------------------------------------------

    fn rejected(&mut self, now: Instant, comm: CommId, reason: u16, private_data: Box<[u8; private_len::REJ]>) {
        use State::*;
        match self.state(comm) {
            ReqSent | MraReqRcvd | RepSent | MraRepRcvd | ReqRcvd | MraReqSent => {
                if reason == reason::STALE_CONNECTION {
                    self.enter_timewait(now, comm);
                } else {
                    self.reset(comm);
                }
            }
            DreqSent | RepRcvd | MraRepSent | Established => self.enter_timewait(now, comm),
            _ => return,
        }
        self.tell(comm, Event::RejReceived { comm, reason, private_data });
    }

    /// The connection that a message from `from` names: ours by `local`, and by `remote` if the peer's name is known.
    fn named(&mut self, from: Gid, local: u32, remote: u32) -> Option<(CommId, &mut Connection)> {
        let comm = CommId(local);
        let connection = &mut **self.connections.get_mut(&comm)?;
        let known = connection.remote_id == 0 || connection.remote_id == remote || remote == 0;
        (known && connection.connected() && connection.path.remote_gid == from).then_some((comm, connection))
    }

    fn is_ours(&self, id: u32) -> bool {
        id & !(self.ids - 1) == self.base
    }

    fn connection(&mut self, comm: CommId, states: &[State]) -> Result<&mut Connection, CallError> {
        let connection = self.connections.get_mut(&comm).filter(|one| states.contains(&one.state));
        connection.map(|one| &mut **one).ok_or(CallError::State)
    }

    fn fresh(&mut self) -> Option<CommId> {
        for _ in 0..self.ids {
            let comm = CommId(self.base | self.next);
            self.next = (self.next + 1) & (self.ids - 1);
            // 0 is nobody's name.
            if comm.0 != 0 && !self.connections.contains_key(&comm) {
                return Some(comm);
            }
        }
        None
    }

    fn fresh_tid(&mut self) -> u64 {
        self.tid = self.tid.wrapping_add(1);
        self.tid
    }

    /// The first message of a connection.
    fn ask(&mut self, now: Instant, comm: CommId, connection: Connection, question: &Message) -> CommId {
        let mad = question.to_mad(connection.tid);
        self.connections.insert(comm, Box::new(connection));
        self.send_until_answered(now, comm, mad);
        comm
    }

    fn send(&mut self, comm: CommId, mad: Mad) {
        let Some(connection) = self.connections.get(&comm) else { return };
        let (from, to) = (connection.path.local_gid, connection.path.remote_gid);
        self.out.push_back(Outgoing { from, to, mad, question: None });
    }

    /// Sends a message that wants an answer.
    fn demand(&mut self, comm: CommId, mad: Mad) {
        let Some(connection) = self.connections.get(&comm) else { return };
        let question = matches!(connection.state, State::ReqSent | State::SidrReqSent).then_some(comm);
        let (from, to) = (connection.path.local_gid, connection.path.remote_gid);
        self.out.push_back(Outgoing { from, to, mad, question });
    }

    fn send_until_answered(&mut self, now: Instant, comm: CommId, mad: Mad) {
        if let Some(connection) = self.connections.get_mut(&comm) {
            connection.resend = Some(Resend { mad, round: 0 });
        }
        self.demand(comm, mad);
        self.wait_until(comm, now + wait_of(0));
    }

    fn send_drep(&mut self, comm: CommId) {
        let Some(connection) = self.connections.get(&comm) else { return };
        let drep = Drep { local_comm_id: comm.0, remote_comm_id: connection.remote_id };
        let mad = Message::Drep(drep).to_mad(connection.tid);
        self.send(comm, mad);
    }

    fn wait_until(&mut self, comm: CommId, at: Instant) {
        if let Some(connection) = self.connections.get_mut(&comm) {
            connection.due = Some(at);
            self.timers.push(Reverse((at, comm)));
        }
    }

    fn tell(&mut self, comm: CommId, event: Event) {
        if self.connections.get(&comm).is_some_and(|connection| connection.owned) {
            self.events.push_back(event);
        }
    }

    /// Back to the start.
    fn reset(&mut self, comm: CommId) {
        self.unname(comm);
        let Some(connection) = self.connections.get_mut(&comm) else { return };
        connection.state = State::Idle;
        connection.settle();
        if !connection.owned {
            self.connections.remove(&comm);
        }
    }

    fn enter_timewait(&mut self, now: Instant, comm: CommId) {
        self.unwatch(comm);
        let Some(connection) = self.connections.get_mut(&comm) else { return };
        connection.state = State::TimeWait;
        connection.settle();
        let wait = code_time(connection.path.ack_timeout);
        self.wait_until(comm, now + wait);
    }

    /// The last sending was not answered in time.
    fn unanswered(&mut self, now: Instant, comm: CommId) {
        use State::*;
        match self.state(comm) {
            ReqSent | MraReqRcvd => {
                self.reset(comm);
                self.tell(comm, Event::ReqError { comm });
            }
            RepSent | MraRepRcvd => {
                self.reset(comm);
                self.tell(comm, Event::RepError { comm });
            }
            DreqSent => {
                self.enter_timewait(now, comm);
                self.tell(comm, Event::DreqError { comm });
            }
            SidrReqSent => {
                self.reset(comm);
                self.tell(comm, Event::SidrReqError { comm });
            }
            _ => {}
        }
    }

    /// What waited without a message has waited long enough.
    fn waited(&mut self, comm: CommId) {
        let state = self.state(comm);
        if matches!(state, State::TimeWait | State::SidrDone) {
            self.reset(comm);
        }
        if state == State::TimeWait {
            self.tell(comm, Event::TimewaitExit { comm });
        }
    }
}

impl Connection {
    fn new(state: State, path: Path, tid: u64) -> Connection {
        Connection {
            state,
            path,
            remote_id: 0,
            tid,
            local: Parameters::default(),
            remote: Parameters::default(),
            responder_resources: 0,
            initiator_depth: 0,
            resend: None,
            due: None,
            owned: true,
            answer: None,
            service_id: 0,
            watched: Watched::No,
        }
    }

    /// What was sent is answered; nothing is due.
    fn settle(&mut self) {
        self.resend = None;
        self.due = None;
    }
}
