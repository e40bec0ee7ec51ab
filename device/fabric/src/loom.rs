//! Races on the fabric, searched for by loom: what this crate says of words that processes share.
//!
//!     RUSTFLAGS="--cfg loom" cargo test -p pvrdma-fabric --lib --release loom
//!
//! What runs is the product itself over ordinary memory, two processes as two [`HostTransport`]s; its atomics are
//! those of the provider's models (`provider/src/tests/loom/shadow.rs`, one file for both). In the place of the
//! device core stands [`Other`], which carries requests out by touching their payload: two sides that touch it at
//! once fail the model.
//!
//! Where two sides must each see the other (a hazard and what was unpublished), loom knows that of fences, and of
//! SeqCst accesses less than the language grants.

#[path = "../../../provider/src/tests/loom/shadow.rs"]
#[allow(dead_code, reason = "the provider needs more of it")]
pub mod shadow;

use crate::memory::ProcessMemory;
use crate::segment::{Fabric, Region, by_hand};
use crate::sync::own;
use crate::taken::Taken;
use crate::transport::{Deferred, HostTransport, Inbound};
use ::loom::sync::{Mutex, MutexGuard};
use ::loom::thread::spawn;
use pvrdma_device::guest::{Guest, Roce};
use pvrdma_device::handle::{PdHandle, Psn, QpHandle, Qpn, Rkey};
use pvrdma_device::memory::{DmaAddr, Span};
use pvrdma_device::rings::wqe::{Ext, Grh, QpKind};
use pvrdma_device::transport::segment::Segment;
use pvrdma_device::transport::*;
use pvrdma_ffi::dev_api::PVRDMA_QPS_RTS;
use pvrdma_ffi::uapi::vmw_pvrdma::PVRDMA_ACCESS_REMOTE_WRITE;
use shadow::Place;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// So many times in a run threads are taken off their cores where they did not wait.
const PREEMPTIONS: usize = 2;

const MODELS: &[fn()] = &[
    a_request_taken_back,
    a_request_taken_by_force,
    a_request_taken_over,
    a_second_request,
    an_inbox_of_two_threads,
    a_region_taken_back,
    a_region_taken_by_force,
    a_qp_that_changes,
];

fn explore(model: fn(), preemptions: usize) {
    let mut builder = ::loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(preemptions));
    builder.max_branches = 10_000;
    let runs = Arc::new(AtomicUsize::new(0));
    let (counted, begin) = (runs.clone(), std::time::Instant::now());
    builder.check(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        shadow::begin(192);
        IMPATIENT.set(false);
        model();
        shadow::end();
    });
    println!("{runs:?} runs, {:?}", begin.elapsed());
}

fn holds(model: fn()) {
    explore(model, PREEMPTIONS);
}

fn fails(model: fn()) -> bool {
    shadow::finds(|| holds(model))
}

thread_local! {
    /// The shared file, for all runs: what they write is in shadows.
    static FILE: (&'static Fabric, [&'static Region; 2]) = by_hand::file();
}

/// Two processes of guest 1.
fn processes() -> [Arc<HostTransport>; 2] {
    let (fabric, regions) = FILE.with(|file| *file);
    // One word has no shadow: the core, which knows none, uses it too.
    regions[1].qps[3].expected_psn.store(0, Ordering::Relaxed);
    [0, 1].map(|index| HostTransport::new(by_hand::join(fabric, &regions, index)))
}

::loom::lazy_static! {
    /// Held by whoever is between comparison and copy, and by who looks whether somebody is: who is there and is
    /// stopped will have to begin again, so for this purpose nobody is.
    static ref SECTION: Mutex<()> = Mutex::new(());
}

/// See `section.rs`.
pub fn section() -> MutexGuard<'static, ()> {
    SECTION.lock().unwrap()
}

thread_local! {
    static IMPATIENT: Cell<bool> = const { Cell::new(false) };
}

/// Whether hazards are taken away at once: time does not pass here.
pub fn impatient() -> bool {
    IMPATIENT.get()
}

/// Nobody waits for long.
pub fn pause(_waited: u64) {
    shadow::yield_core();
}

/// Runs a model in which nobody waits for a copier that might be stopped.
fn by_force(model: fn()) {
    IMPATIENT.set(true);
    model();
}

/// What stands for the device of a process: it touches the payload of a request and acknowledges it.
#[derive(Default)]
struct Other {
    received: RefCell<Vec<u32>>,
    answered: RefCell<Vec<u32>>,
}

impl Inbound for Rc<Other> {
    fn receive(&self, request: &Request, far: &dyn Far) -> Answer {
        assert_eq!(*request, send(&endpoint(0), &endpoint(1), request.psn.get()), "a mixture of two requests");
        let mut byte = 0;
        let into = [Span { addr: DmaAddr(&raw mut byte as u64), len: 1 }];
        if far.pull(&ProcessMemory, &into).is_err() {
            return Answer::RequesterFault;
        }
        self.received.borrow_mut().push(request.psn.get());
        Answer::Ack
    }

    fn receive_segment(&self, _segment: &Segment, _far: &dyn Far) -> Answer {
        unreachable!("nobody sends pieces here")
    }

    fn answered(&self, token: Token, answer: Answer) {
        assert_eq!(answer, Answer::Ack);
        self.answered.borrow_mut().push(token.psn.get());
    }
}

/// QP 3 of a process.
fn endpoint(process: usize) -> Endpoint {
    let gid = Guest::new(0, 1, Roce::V2).unwrap().gids().next().unwrap().1;
    Endpoint { gid, qpn: Qpn((process as u32 + 1) << 15 | 3) }
}

fn send(source: &Endpoint, dest: &Endpoint, psn: u32) -> Request {
    Request {
        token: Token { qp: QpHandle(3), epoch: psn, psn: Psn::new(psn) },
        source: *source,
        dest: *dest,
        psn: Psn::new(psn),
        packets: 1,
        op: Op::Send { ext: Ext::Imm(psn) },
        len: 1,
        solicited: false,
        alone: true,
    }
}

/// Payload of requests, by PSN; the last is memory of the target. Atomic to be writable: the kernel copies.
static PAYLOAD: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];

fn payload(psn: u32) -> Span {
    Span { addr: DmaAddr(PAYLOAD[psn as usize].as_ptr() as u64), len: 1 }
}

fn submit(from: &HostTransport, psn: u32) {
    let request = send(&endpoint(0), &endpoint(1), psn);
    assert_eq!(from.submit(&request, &ProcessMemory, &[payload(psn)]), Submitted::Pending);
}

/// The requester takes one back while the target may be at it, and uses its memory for something else.
fn a_request_taken_back() {
    let [here, there] = processes();
    let others = Rc::new(Other::default());
    submit(&here, 1);
    let device = others.clone();
    let target = spawn(move || there.pump_for(&device));
    here.cancel(send(&endpoint(0), &endpoint(1), 1).token);
    own(payload(1).addr.0);
    target.join().unwrap();
    assert!(others.received.borrow().len() <= 1);
}

/// What stands for the gateway: it takes requests over.
#[derive(Default)]
struct Gateway(RefCell<Vec<Taken>>);

impl Inbound for Gateway {
    fn receive(&self, _request: &Request, _far: &dyn Far) -> Answer {
        unreachable!("it takes over what there is")
    }

    fn receive_segment(&self, _segment: &Segment, _far: &dyn Far) -> Answer {
        unreachable!("nobody sends pieces here")
    }

    fn answered(&self, _token: Token, _answer: Answer) {}

    fn deferred(&self) -> Option<&dyn Deferred> {
        Some(self)
    }
}

impl Deferred for Gateway {
    fn take(&self, taken: Taken) {
        self.0.borrow_mut().push(taken);
    }

    fn take_datagram(&self, _taken: Taken, _payload: &[u8]) {
        unreachable!("nobody sends datagrams here")
    }
}

/// The requester takes one back that the gateway has, uses its memory for something else, and sends another in the
/// same slot: the first is neither copied any more nor answered in the place of the second.
fn a_request_taken_over() {
    let [here, there] = processes();
    let mine = Rc::new(Other::default());
    submit(&here, 1);
    let gateway = Gateway::default();
    there.pump_for(&gateway);
    let taken = gateway.0.take().pop().expect("taken over");
    let carries = spawn(move || {
        let mut byte = [0];
        let _ = there.fetch(&taken, 0, &mut byte);
        there.give(&taken, Answer::Ack);
    });
    here.cancel(send(&endpoint(0), &endpoint(1), 1).token);
    own(payload(1).addr.0);
    submit(&here, 2);
    carries.join().unwrap();
    here.pump_for(&mine);
    assert_eq!(*mine.answered.borrow(), []);
}

/// The requester takes one back, and sends another in the same slot while the target may still be at the first.
fn a_slot_used_again() {
    let [here, there] = processes();
    let (mine, others) = (Rc::new(Other::default()), Rc::new(Other::default()));
    submit(&here, 1);
    let (target, device) = (there.clone(), others.clone());
    let target = spawn(move || target.pump_for(&device));
    here.cancel(send(&endpoint(0), &endpoint(1), 1).token);
    submit(&here, 2);
    target.join().unwrap();
    there.pump_for(&others);
    here.pump_for(&mine);
    let received = others.received.borrow();
    assert!(*received == [2] || *received == [1, 2], "{received:?}");
    assert_eq!(*mine.answered.borrow(), [2]);
}

/// One is published while the target is at another.
fn a_second_request() {
    let [here, there] = processes();
    let others = Rc::new(Other::default());
    submit(&here, 1);
    let (target, device) = (there.clone(), others.clone());
    let target = spawn(move || target.pump_for(&device));
    submit(&here, 2);
    target.join().unwrap();
    there.pump_for(&others);
    assert_eq!(*others.received.borrow(), [1, 2]);
}

fn a_request_taken_by_force() {
    by_force(a_request_taken_back);
}

/// Two threads of the target empty its inbox, the second because it was told of a message.
fn an_inbox_of_two_threads() {
    let [here, there] = processes();
    let others = Rc::new(Other::default());
    let (target, device) = (there.clone(), others.clone());
    let first = spawn(move || target.pump_for(&device));
    submit(&here, 1);
    there.pump_for(&others);
    first.join().unwrap();
    assert_eq!(*others.received.borrow(), [1], "it lies there for ever");
}

const KEY: u32 = 0x101;

fn view(peer: usize, access: u32, state: u32) -> QpView {
    let own = endpoint(1);
    let placeable = state == PVRDMA_QPS_RTS;
    let (handle, kind, peer) = (QpHandle(3), QpKind::Rc, endpoint(peer));
    QpView {
        handle,
        kind,
        state,
        placeable,
        pd: PdHandle(1),
        access,
        peer,
        grh: Grh::default(),
        qpn: own.qpn,
        mtu: 1024,
    }
}

/// The initiator writes to the target's memory by itself. Did it?
fn write(from: &HostTransport) -> bool {
    let op = Op::Write { remote_addr: payload(3).addr.0, rkey: Rkey(KEY), imm: None };
    let request = Request { op, ..send(&endpoint(0), &endpoint(1), 0) };
    // Read as well as written, which is all the same here: no byte changes.
    matches!(from.submit(&request, &ProcessMemory, &[payload(0)]), Submitted::Answered(Answer::Ack))
}

fn register(there: &HostTransport) {
    let bounds = Bounds { pd: PdHandle(1), access: PVRDMA_ACCESS_REMOTE_WRITE, start: payload(3).addr.0, length: 1 };
    there.mr_added(KEY, &bounds);
}

thread_local! {
    /// Did the initiator write in any run?
    static WROTE: Cell<bool> = const { Cell::new(false) };
}

/// DESTROY_MR against a copy: when it returns nobody copies there.
fn a_region_taken_back() {
    let [here, there] = processes();
    register(&there);
    there.qp_changed(&view(0, PVRDMA_ACCESS_REMOTE_WRITE, PVRDMA_QPS_RTS));
    let initiator = spawn(move || write(&here));
    there.mr_removed(KEY);
    own(payload(3).addr.0);
    let wrote = initiator.join().unwrap();
    WROTE.with(|any| any.set(any.get() | wrote));
}

fn a_region_taken_by_force() {
    by_force(a_region_taken_back);
}

/// MODIFY_QP against a copy: the former state forbids it, and so does the next; a mixture would not.
fn a_qp_that_changes() {
    let [here, there] = processes();
    register(&there);
    there.qp_changed(&view(0, 0, PVRDMA_QPS_RTS));
    let initiator = spawn(move || write(&here));
    there.qp_changed(&view(1, PVRDMA_ACCESS_REMOTE_WRITE, PVRDMA_QPS_RTS));
    assert!(!initiator.join().unwrap(), "nobody allowed that");
}

#[test]
fn what_was_taken_back_is_not_touched() {
    holds(a_request_taken_back);
}

#[test]
fn what_was_taken_by_force_is_not_touched() {
    holds(a_request_taken_by_force);
}

#[test]
fn what_the_gateway_has_is_taken_back() {
    holds(a_request_taken_over);
}

#[test]
fn messages_come_in_order_and_once() {
    holds(a_second_request);
}

/// With one preemption: of each of twenty words the target may see the former or the next, and those are too many ways.
#[test]
fn what_follows_in_the_same_slot_is_answered() {
    explore(a_slot_used_again, 1);
}

#[test]
fn no_message_lies_in_the_inbox_for_ever() {
    holds(an_inbox_of_two_threads);
}

#[test]
fn nobody_copies_into_a_region_that_was_destroyed() {
    holds(a_region_taken_back);
    assert!(WROTE.get(), "and before that somebody did");
}

#[test]
fn nobody_copies_into_a_region_taken_by_force() {
    holds(a_region_taken_by_force);
    assert!(WROTE.get(), "and before that somebody did");
}

#[test]
fn nobody_copies_by_half_a_view_of_a_qp() {
    holds(a_qp_that_changes);
}

/// The requester does not take it back.
fn a_request_left_there() {
    let [here, there] = processes();
    let others = Rc::new(Other::default());
    submit(&here, 1);
    let target = spawn(move || there.pump_for(&others));
    own(payload(1).addr.0);
    target.join().unwrap();
}

#[test]
fn memory_used_too_early_would_be_found() {
    assert!(fails(a_request_left_there));
}

/// Each ordering is made Relaxed, and each fence left out, in turn: those of [`MISSED`] are missed. The others are
/// there twice over, as loom counts, or for processes that come and go, of which there is no model.
#[test]
fn orderings_are_missed() {
    let mut models_of: BTreeMap<Place, Vec<fn()>> = BTreeMap::new();
    for model in MODELS {
        shadow::places();
        explore(*model, 1);
        shadow::places().into_iter().for_each(|place| models_of.entry(place).or_default().push(*model));
    }
    let mut missed: Vec<String> = models_of
        .iter()
        .filter(|(place, models)| {
            shadow::weaken(Some(**place));
            let missed = models.iter().any(|model| fails(*model));
            shadow::weaken(None);
            missed
        })
        .map(|(place, _)| text(*place))
        .collect();
    missed.sort_unstable();
    assert_eq!(missed, MISSED);
}

/// What stands at a place in the source.
fn text((file, line, _): Place) -> String {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let source = std::fs::read_to_string(root.join(file)).unwrap();
    let line = source.lines().nth(line as usize - 1).unwrap().trim();
    format!("{}: {line}", file.rsplit('/').next().unwrap())
}

const MISSED: &[&str] = &[
    // A hazard against what is unpublished or taken back, both ways; the end of the copy against whoever waits for it.
    "hazard.rs: fence(Ordering::SeqCst);",
    "hazard.rs: fence(Ordering::SeqCst);",
    "hazard.rs: fence(Ordering::SeqCst);",
    "hazard.rs: fence(Ordering::SeqCst);",
    "hazard.rs: let seen = word.load(Ordering::SeqCst);",
    "hazard.rs: self.word.store(0, Ordering::Release);",
    // A published request.
    "transport.rs: channel.tail.store(tail.wrapping_add(1), Ordering::Release);",
    // Two threads and one inbox.
    "transport.rs: fence(Ordering::SeqCst);",
    "transport.rs: fence(Ordering::SeqCst);",
    // A published request, as its target sees it.
    "transport.rs: let mut bits = word.swap(0, Ordering::SeqCst);",
    // The view of a QP: all of it or none.
    "transport.rs: let version = qp.version.load(Ordering::SeqCst);",
    "transport.rs: qp.version.fetch_add(1, Ordering::SeqCst);",
    // A published request.
    "transport.rs: region.inbox[own_index / 64].fetch_or(1 << (own_index % 64), Ordering::SeqCst);",
    // Two threads and one inbox again.
    "transport.rs: self.pump_asked.swap(false, Ordering::AcqRel);",
    "transport.rs: self.pump_asked.swap(true, Ordering::AcqRel);",
    // An answer, against whoever takes its request back.
    "transport.rs: word.compare_exchange(taken, done, Ordering::AcqRel, Ordering::Relaxed).is_ok()",
];
