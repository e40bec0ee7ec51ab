//! A transport that a test holds in its hands: requests lie on the wire until the test delivers, loses or answers
//! them. What a transport over a network does by accident, this one does on purpose.
//!
//! Where it cuts messages (`cut.rs`) it carries them by value: it has a place in nobody's memory, and asks the devices
//! for each piece.

use super::Ram;
use super::cut::{ByValue, Cut, Scissors};
use super::driver::{Driver, Layout};
use crate::device::Device;
use crate::handle::{Gid, Psn, QpHandle};
use crate::memory::{DmaAddr, Memory, Span, part_of, total};
use crate::transport::segment::{Carried, Cutter, Part};
use crate::transport::{
    Answer, CopyFault, Far, Op, QpView, Request, Requester, Responder, Submitted, Token, Transport,
};
use pvrdma_ffi::dev_api::PVRDMA_QPS_RESET;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

/// Devices on wires, by GID.
#[derive(Clone)]
pub struct Net {
    devices: Arc<Mutex<HashMap<Gid, Weak<Device>>>>,
    scissors: Arc<Scissors>,
}

impl Default for Net {
    /// One that cuts as `PVRDMA_CUT` asks for.
    fn default() -> Net {
        Net::cutting(Cut::from_env())
    }
}

impl Net {
    /// One that cuts messages so.
    pub fn cutting(cut: Cut) -> Net {
        Net { devices: Arc::default(), scissors: Scissors::new(cut) }
    }

    fn device(&self, gid: &Gid) -> Option<Arc<Device>> {
        self.devices.lock().unwrap_or_else(PoisonError::into_inner).get(gid).and_then(Weak::upgrade)
    }
}

/// A request between submission and answer.
#[derive(Clone)]
struct Flight {
    request: Request,
    local: Vec<Span>,
    /// The responder's answer, once it was delivered.
    answer: Option<Answer>,
}

/// What the requester may have to ask again, and the responder to answer again.
struct Outstanding {
    psn: Psn,
    /// The submission whose answer is still heard.
    token: Option<Token>,
    /// A READ or an atomic.
    reads: bool,
    acknowledged: bool,
}

#[derive(Default)]
struct State {
    /// In the order of submission.
    flights: VecDeque<Flight>,
    /// So many submissions meet a wire without room.
    busy: u32,
    /// All of them do, until the device hears of room.
    full: bool,
    /// So many met that.
    refused: u32,
    /// Takes one request of a QP at a time.
    one_by_one: bool,
    /// Of each QP the requests from the oldest that is not acknowledged on, in the order of their PSNs.
    outstanding: HashMap<QpHandle, VecDeque<Outstanding>>,
    submitted: Vec<Request>,
    cancelled: Vec<Token>,
    /// Requests that were lost: the wire knows, `lost` says so.
    lost: Vec<Token>,
    views: Vec<QpView>,
}

impl State {
    fn submit(&mut self, request: &Request) {
        let list = self.outstanding.entry(request.token.qp).or_default();
        match list.iter_mut().find(|known| known.psn == request.psn) {
            Some(known) => known.token = Some(request.token),
            None => list.push_back(Outstanding {
                psn: request.psn,
                token: Some(request.token),
                reads: request.op.reads(),
                acknowledged: false,
            }),
        }
        self.submitted.push(*request);
    }

    fn acknowledge(&mut self, token: Token) {
        let Some(list) = self.outstanding.get_mut(&token.qp) else { return };
        if let Some(known) = list.iter_mut().find(|known| known.token == Some(token)) {
            known.acknowledged = true;
        }
        while list.front().is_some_and(|oldest| oldest.acknowledged) {
            list.pop_front();
        }
    }
}

/// The transport of one device.
pub struct Wire {
    net: Net,
    device: OnceLock<Weak<Device>>,
    /// The requester's memory: a submitted request outlives the call that brought it.
    ram: OnceLock<Arc<Ram>>,
    state: Mutex<State>,
}

impl Wire {
    /// A guest on its own wire.
    pub fn guest(net: &Net, index: u8, layout: Layout) -> (Arc<Driver>, Arc<Wire>) {
        let wire =
            Arc::new(Wire { net: net.clone(), device: OnceLock::new(), ram: OnceLock::new(), state: Mutex::default() });
        let driver = Driver::on(index, layout, 16 << 20, wire.clone());
        let _ = wire.device.set(Arc::downgrade(&driver.device));
        let _ = wire.ram.set(driver.ram.clone());
        driver.bind();
        (Arc::new(driver), wire)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number of requests on the wire.
    pub fn flights(&self) -> usize {
        self.lock().flights.len()
    }

    /// PSN of request `index`.
    pub fn psn(&self, index: usize) -> Psn {
        self.lock().flights[index].request.psn
    }

    /// Every request ever submitted.
    pub fn submitted(&self) -> Vec<Request> {
        self.lock().submitted.clone()
    }

    /// Every token ever cancelled.
    pub fn cancelled(&self) -> Vec<Token> {
        self.lock().cancelled.clone()
    }

    /// Every view that was announced.
    pub fn views(&self) -> Vec<QpView> {
        self.lock().views.clone()
    }

    /// The next `count` submissions find no room.
    pub fn set_busy(&self, count: u32) {
        self.lock().busy = count;
    }

    /// From now on submissions find no room.
    pub fn fill(&self) {
        self.lock().full = true;
    }

    /// How many submissions were told that there is no room.
    pub fn refused(&self) -> u32 {
        self.lock().refused
    }

    /// There is room again, and nobody is told.
    pub fn empty(&self) {
        self.lock().full = false;
    }

    /// There is room again, and the device is told.
    pub fn make_room(&self) {
        self.empty();
        if let Some(device) = self.device.get().and_then(Weak::upgrade) {
            device.room();
        }
    }

    /// Whether a request that is not alone is told to wait until it is.
    pub fn set_one_by_one(&self, on: bool) {
        self.lock().one_by_one = on;
    }

    /// Has request `index` carried out at the other end. The answer stays on the wire.
    ///
    /// The wire's lock is held, so that `cancel` waits for the end of the copy, unless payload goes by value.
    pub fn deliver(&self, index: usize) -> Answer {
        if !self.net.scissors.cut_anything() {
            return self.deliver_in(&mut self.lock(), index);
        }
        let request = self.lock().flights[index].request;
        let answer = self.deliver_by_value(&request);
        let mut state = self.lock();
        if let Some(flight) = state.flights.iter_mut().find(|flight| flight.request.token == request.token) {
            flight.answer = Some(answer);
        }
        answer
    }

    /// The same in one step with `take`, for threads that race for requests. `None`: there is no such request.
    pub fn deliver_and_take(&self, index: usize) -> Option<(Token, Answer)> {
        let mut state = self.lock();
        if index >= state.flights.len() {
            return None;
        }
        if self.net.scissors.cut_anything() {
            let flight = state.flights.remove(index)?;
            drop(state);
            return Some((flight.request.token, self.deliver_by_value(&flight.request)));
        }
        let answer = self.deliver_in(&mut state, index);
        let flight = state.flights.remove(index)?;
        Some((flight.request.token, answer))
    }

    fn deliver_in(&self, state: &mut State, index: usize) -> Answer {
        let flight = &mut state.flights[index];
        let peer = self.net.device(&flight.request.dest.gid);
        let far = WireFar { ram: self.ram.get().expect("a guest"), spans: &flight.local };
        let answer = peer.map_or(Answer::Silence, |device| device.receive(&flight.request, &far));
        flight.answer = Some(answer);
        answer
    }

    /// Carries a request to the other end piece by piece, and what it brings back.
    fn deliver_by_value(&self, request: &Request) -> Answer {
        // Nobody waits any more, whatever is answered.
        const TAKEN_BACK: Answer = Answer::Silence;
        let token = request.token;
        let Some(own) = self.device.get().and_then(Weak::upgrade) else { return TAKEN_BACK };
        let mut cutter = Cutter::new(request);
        while let Some((offset, carried)) = self.net.scissors.next(&mut cutter) {
            let Some(peer) = self.net.device(&request.dest.gid) else { return Answer::Silence };
            let len = match carried {
                Carried::Segment(segment) if !matches!(segment.part, Part::Read { .. }) => segment.len,
                Carried::Whole(request) if !request.op.reads() => request.len,
                _ => 0,
            };
            let mut bytes = vec![0; len as usize];
            if len > 0 && !own.payload(token, offset, &mut bytes) {
                return TAKEN_BACK;
            }
            let far = ByValue { bytes, back: Default::default() };
            let answer = match carried {
                Carried::Whole(request) => peer.receive(&request, &far),
                Carried::Segment(segment) => peer.receive_segment(&segment, &far),
            };
            if answer != Answer::Ack {
                return answer;
            }
            let back = far.back.into_inner();
            if !back.is_empty() && !own.arrived(token, offset, &back) {
                return TAKEN_BACK;
            }
        }
        Answer::Ack
    }

    /// Answers request `index` with what the other end said, or with `Silence` if it was not delivered.
    pub fn answer(&self, index: usize) {
        let (token, answer) = self.take(index);
        self.answer_late(token, answer);
    }

    /// Answers request `index` with an answer of the test's choice.
    pub fn answer_with(&self, index: usize, answer: Answer) {
        let (token, _) = self.take(index);
        self.answer_late(token, answer);
    }

    /// Takes request `index` off the wire, as a thread does that is about to answer it.
    pub fn take(&self, index: usize) -> (Token, Answer) {
        let flight = self.lock().flights.remove(index).expect("a flight");
        (flight.request.token, flight.answer.unwrap_or(Answer::Silence))
    }

    /// READs and atomics of `qp` that its responder has to remember: those from its oldest request on that is not
    /// acknowledged, whatever became of them.
    pub fn outstanding_reads(&self, qp: QpHandle) -> usize {
        let state = self.lock();
        state.outstanding.get(&qp).map_or(0, |list| list.iter().filter(|request| request.reads).count())
    }

    /// Hands the requester an answer that was taken before.
    pub fn answer_late(&self, token: Token, answer: Answer) {
        if answer == Answer::Ack {
            self.lock().acknowledge(token);
        }
        if let Some(device) = self.device.get().and_then(Weak::upgrade) {
            device.answered(token, answer);
        }
    }

    /// Delivers and answers everything, in order, until nothing is left.
    pub fn run(&self) {
        while self.flights() > 0 {
            self.deliver(0);
            self.answer(0);
        }
    }

    /// Loses request `index`, and knows it.
    pub fn lose(&self, index: usize) {
        let mut state = self.lock();
        let flight = state.flights.remove(index).expect("a flight");
        state.lost.push(flight.request.token);
    }
}

impl Transport for Wire {
    fn submit(&self, request: &Request, _memory: &dyn Memory, local: &[Span]) -> Submitted {
        if let Op::Datagram { .. } = request.op {
            if self.lock().full {
                return Submitted::Full;
            }
            // There is no answer to wait for.
            let peer = self.net.device(&request.dest.gid);
            let far = WireFar { ram: self.ram.get().expect("a guest"), spans: local };
            return Submitted::Answered(peer.map_or(Answer::Silence, |device| device.receive(request, &far)));
        }
        let mut state = self.lock();
        if state.full {
            state.refused += 1;
            return Submitted::Full;
        }
        if state.busy > 0 {
            state.busy -= 1;
            return Submitted::Busy;
        }
        if state.one_by_one && !request.alone {
            return Submitted::WhenAlone;
        }
        assert_eq!(total(local), request.len, "the spans hold the payload, no more and no less");
        assert!(
            state.flights.iter().all(|flight| flight.request.token != request.token),
            "two requests on the wire have one name"
        );
        state.submit(request);
        state.flights.push_back(Flight { request: *request, local: local.to_vec(), answer: None });
        Submitted::Pending
    }

    fn cancel(&self, token: Token) {
        let mut state = self.lock();
        state.flights.retain(|flight| flight.request.token != token);
        state.lost.retain(|lost| *lost != token);
        if let Some(list) = state.outstanding.get_mut(&token.qp) {
            list.iter_mut().filter(|known| known.token == Some(token)).for_each(|known| known.token = None);
        }
        state.cancelled.push(token);
    }

    fn lost(&self, token: Token) -> bool {
        self.lock().lost.contains(&token)
    }

    fn qp_changed(&self, view: &QpView) {
        let mut state = self.lock();
        if view.state == PVRDMA_QPS_RESET {
            state.outstanding.remove(&view.handle);
        }
        state.views.push(*view);
    }

    fn gid_bound(&self, gid: Gid, bound: bool) {
        let mut devices = self.net.devices.lock().unwrap_or_else(PoisonError::into_inner);
        match (bound, self.device.get()) {
            (true, Some(device)) => drop(devices.insert(gid, device.clone())),
            _ => drop(devices.remove(&gid)),
        }
    }
}

/// The payload of a request on the wire, in the requester's memory.
struct WireFar<'a> {
    ram: &'a Ram,
    spans: &'a [Span],
}

fn gather(memory: &dyn Memory, spans: &[Span], fault: CopyFault) -> Result<Vec<u8>, CopyFault> {
    let mut bytes = Vec::new();
    for span in spans {
        let start = bytes.len();
        bytes.resize(start + span.len as usize, 0);
        memory.read(span.addr, &mut bytes[start..]).map_err(|_| fault)?;
    }
    Ok(bytes)
}

fn scatter(memory: &dyn Memory, spans: &[Span], bytes: &[u8], fault: CopyFault) -> Result<(), CopyFault> {
    let mut at = 0;
    for span in spans {
        let end = at + span.len as usize;
        memory.write(DmaAddr(span.addr.0), &bytes[at..end]).map_err(|_| fault)?;
        at = end;
    }
    Ok(())
}

impl Far for WireFar<'_> {
    fn pull(&self, memory: &dyn Memory, into: &[Span]) -> Result<(), CopyFault> {
        let bytes = gather(self.ram, self.spans, CopyFault::Far)?;
        scatter(memory, into, &bytes, CopyFault::Near)
    }

    fn pull_from(&self, skip: u64, memory: &dyn Memory, into: &[Span]) -> Result<(), CopyFault> {
        let bytes = gather(self.ram, &part_of(self.spans, skip, total(into)), CopyFault::Far)?;
        scatter(memory, into, &bytes, CopyFault::Near)
    }

    fn push(&self, memory: &dyn Memory, from: &[Span]) -> Result<(), CopyFault> {
        let bytes = gather(memory, from, CopyFault::Near)?;
        scatter(self.ram, self.spans, &bytes, CopyFault::Far)
    }

    fn put(&self, bytes: &[u8]) -> Result<(), CopyFault> {
        scatter(self.ram, self.spans, bytes, CopyFault::Far)
    }
}
