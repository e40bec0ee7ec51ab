//! Two processes of the fabric in one, without a device: what becomes of requests.

use crate::copy::{span_of, span_of_mut};
use crate::gateway::NotCopied;
use crate::memory::ProcessMemory;
use crate::segment::view::{self, Seen};
use crate::segment::{Segment, by_hand};
use crate::taken::Taken;
use crate::transport::{Deferred, GATEWAY_PATIENCE, HostTransport, Inbound};
use pvrdma_device::guest::{Guest, Roce};
use pvrdma_device::handle::{PdHandle, Psn, QpHandle, Qpn, Rkey};
use pvrdma_device::memory::{DmaAddr, Span};
use pvrdma_device::rings::wqe::{Ext, Grh, QpKind};
use pvrdma_device::transport::figures::{Counted, QpReport};
use pvrdma_device::transport::path::Paths;
use pvrdma_device::transport::segment::{Carried, Part, Segment as Piece};
use pvrdma_device::transport::*;
use pvrdma_ffi::dev_api::{PVRDMA_QPS_RESET, PVRDMA_QPS_RTS};
use pvrdma_ffi::uapi::vmw_pvrdma::{PVRDMA_ACCESS_REMOTE_READ, PVRDMA_ACCESS_REMOTE_WRITE};
use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// Two processes of guest 1, over memory of their own.
fn processes() -> [Arc<HostTransport>; 2] {
    let (fabric, regions) = by_hand::file();
    [0, 1].map(|index| HostTransport::new(by_hand::join(fabric, &regions, index)))
}

/// QP 3 of a process.
fn endpoint(process: u32) -> Endpoint {
    let gid = Guest::new(0, 1, Roce::V2).unwrap().gids().next().unwrap().1;
    Endpoint { gid, qpn: Qpn((process + 1) << 15 | 3) }
}

/// A message from the first process to the second.
fn message(psn: u32) -> Request {
    Request {
        token: Token { qp: QpHandle(3), epoch: psn, psn: Psn::new(psn) },
        source: endpoint(0),
        dest: endpoint(1),
        psn: Psn::new(psn),
        packets: 1,
        op: Op::Send { ext: Ext::None },
        len: 0,
        solicited: false,
        alone: true,
    }
}

/// In the device's place: does something while a request or an answer is in its hands.
struct While<F: Fn(Token)>(F, RefCell<Vec<Answer>>);

impl<F: Fn(Token)> Inbound for While<F> {
    fn receive(&self, request: &Request, _far: &dyn Far) -> Answer {
        (self.0)(request.token);
        Answer::Ack
    }

    fn receive_segment(&self, _segment: &Piece, _far: &dyn Far) -> Answer {
        Answer::Silence
    }

    fn answered(&self, token: Token, answer: Answer) {
        (self.0)(token);
        self.1.borrow_mut().push(answer);
    }
}

#[test]
fn a_request_whose_answer_is_being_delivered_is_not_lost() {
    let [here, there] = processes();
    let still_there = While(|token| assert!(!here.lost(token)), RefCell::default());
    assert_eq!(here.submit(&message(1), &ProcessMemory, &[]), Submitted::Pending);
    assert!(!here.lost(message(1).token), "nobody has looked at it");
    assert!(there.pump_for(&still_there), "it is carried out");
    assert!(!here.lost(message(1).token), "answered, and nobody has looked");
    assert!(here.pump_for(&still_there), "the answer is in somebody's hands");
    assert_eq!(*still_there.1.borrow(), [Answer::Ack]);
}

/// A QP of process 1 that process 0 may write to and read from by itself.
fn writable() -> QpView {
    QpView {
        handle: QpHandle(3),
        kind: QpKind::Rc,
        state: PVRDMA_QPS_RTS,
        placeable: true,
        pd: PdHandle(1),
        access: PVRDMA_ACCESS_REMOTE_WRITE | PVRDMA_ACCESS_REMOTE_READ,
        peer: endpoint(0),
        grh: Grh::default(),
        qpn: endpoint(1).qpn,
        mtu: 1024,
    }
}

#[test]
fn who_polls_hears_of_bytes_that_were_written_beside_its_device() {
    let [here, there] = processes();
    let (mut byte, place) = (7u8, AtomicU64::new(0));
    let view = writable();
    let start = place.as_ptr() as u64;
    assert!(there.expected_psn(view.handle).is_some());
    there.mr_added(0x101, &Bounds { pd: view.pd, access: view.access, start, length: 8 });
    there.qp_changed(&view);
    let bell = &there.segment().own().bell;
    let before = bell.placed_count();
    for (psn, op, came) in [
        (0, Op::Read { remote_addr: start, rkey: Rkey(0x101) }, 0),
        (1, Op::Write { remote_addr: start, rkey: Rkey(0x101), imm: None }, 1),
    ] {
        let ticket = bell.ticket();
        let request = Request { op, len: 1, ..message(psn) };
        let payload = Span { addr: DmaAddr(&raw mut byte as u64), len: 1 };
        assert_eq!(here.submit(&request, &ProcessMemory, &[payload]), Submitted::Answered(Answer::Ack));
        assert_eq!(bell.placed_count() - before, came);
        assert_eq!(bell.rang_since(ticket), came > 0);
    }
}

/// A piece of a long WRITE is put in place as a whole one is, if all up to the message's end may be. The message counts
/// once, with its last piece.
#[test]
fn pieces_are_put_in_place_where_all_of_their_message_may_go() {
    let [here, there] = processes();
    let place = [const { AtomicU64::new(0) }; 2];
    let view = writable();
    let start = place.as_ptr() as u64;
    let figures = there.figures(view.handle).unwrap();
    assert!(there.expected_psn(view.handle).is_some());
    there.mr_added(0x101, &Bounds { pd: view.pd, access: view.access, start, length: 16 });
    there.qp_changed(&view);
    let piece = |psn, at: u64, rest| {
        let (bytes, write) = ([psn as u8 + 1; 8], Op::Write { remote_addr: start + at, rkey: Rkey(0x101), imm: None });
        here.place_alone(&Request { op: write, len: 8, ..message(psn) }, &[span_of(&bytes)], rest)
    };
    let counted = || figures.received.read();
    assert_eq!(piece(0, 0, 17), None, "its end is outside");
    assert_eq!(piece(0, 0, 16), Some(Answer::Ack));
    assert_eq!(counted(), Counted { messages: 0, bytes: 8 });
    assert_eq!(piece(0, 0, 16), None, "it was there before");
    assert_eq!(piece(1, 8, 8), Some(Answer::Ack));
    assert_eq!(counted(), Counted { messages: 1, bytes: 16 });
    let found = place.each_ref().map(|word| word.load(std::sync::atomic::Ordering::Relaxed).to_ne_bytes());
    assert_eq!(found, [[1; 8], [2; 8]]);
}

/// What was sent is on the wire; what was asked for has no memory to go to any more.
#[test]
fn datagrams_of_a_process_that_was_killed_are_taken_in_and_nothing_else_of_it() {
    let [here, there] = processes();
    let taken = RefCell::new(Vec::new());
    let device = While(|token| taken.borrow_mut().push(token.epoch), RefCell::default());
    let grh = Grh { sl: 0, traffic_class: 0, flow_label: 0, hop_limit: 64 };
    let datagram = |psn| Request { op: Op::Datagram { qkey: 1, imm: None, grh }, ..message(psn) };
    assert_eq!(here.submit(&datagram(1), &ProcessMemory, &[]), Submitted::Answered(Answer::Ack));
    assert_eq!(here.submit(&message(2), &ProcessMemory, &[]), Submitted::Pending);
    assert_eq!(here.submit(&datagram(3), &ProcessMemory, &[]), Submitted::Answered(Answer::Ack));
    by_hand::kill(here.segment());
    assert!(there.pump_for(&device));
    assert_eq!(*taken.borrow(), [1, 3]);
}

#[test]
fn who_left_has_lost_what_it_did_not_answer_and_nothing_else() {
    let [here, there] = processes();
    let nothing = While(|_| {}, RefCell::default());
    assert_eq!(here.submit(&message(1), &ProcessMemory, &[]), Submitted::Pending);
    there.pump_for(&nothing);
    assert_eq!(here.submit(&message(2), &ProcessMemory, &[]), Submitted::Pending);
    there.segment().leave();
    assert!(!here.lost(message(1).token));
    assert!(here.lost(message(2).token));
    here.pump_for(&nothing);
    assert_eq!(*nothing.1.borrow(), [Answer::Ack]);
}

/// In the gateway's place: takes over what there is.
#[derive(Default)]
struct TakesOver(RefCell<Vec<Taken>>);

impl Inbound for TakesOver {
    fn receive(&self, _request: &Request, _far: &dyn Far) -> Answer {
        Answer::Ack
    }

    fn receive_segment(&self, _segment: &Piece, _far: &dyn Far) -> Answer {
        Answer::Silence
    }

    fn answered(&self, _token: Token, _answer: Answer) {}

    fn deferred(&self) -> Option<&dyn Deferred> {
        Some(self)
    }
}

impl Deferred for TakesOver {
    fn take(&self, taken: Taken) {
        self.0.borrow_mut().push(taken);
    }

    fn take_datagram(&self, taken: Taken, payload: &[u8]) {
        assert_eq!(payload, b"datagram");
        self.take(taken);
    }
}

/// A message of the first process for a guest of another host.
fn outward(psn: u32, len: u64) -> Request {
    let gid = Guest::new(7, 1, Roce::V2).unwrap().gids().next().unwrap().1;
    Request { dest: Endpoint { gid, qpn: Qpn(0x8003) }, len, ..message(psn) }
}

#[test]
fn what_is_for_another_host_is_answered_when_the_gateway_says_so() {
    let [near, gateway] = processes();
    let submit = |psn: u32, spans: &[Span]| near.submit(&outward(psn, 5), &ProcessMemory, spans);
    let mut payload = *b"hello";
    let spans = [span_of(&payload[..2]), span_of(&payload[2..])];
    // Nobody carries it.
    assert_eq!(submit(1, &spans), Submitted::Answered(Answer::Silence));
    gateway.segment().become_gateway();
    assert_eq!(submit(1, &spans), Submitted::Pending);
    assert_eq!(submit(2, &spans), Submitted::Pending);
    let taken = TakesOver::default();
    gateway.pump_for(&taken);
    let taken = taken.0.take();
    assert_eq!(taken.iter().map(|taken| taken.request).collect::<Vec<_>>(), [outward(1, 5), outward(2, 5)]);
    // From it, and back to it, in pieces; and not beyond its ends.
    let mut piece = [0; 3];
    assert_eq!(gateway.fetch(&taken[0], 1, &mut piece), Ok(()));
    assert_eq!(&piece, b"ell");
    assert_eq!(gateway.fetch(&taken[0], 3, &mut piece), Err(NotCopied::Fault));
    assert_eq!(gateway.store(&taken[0], 1, b"u"), Ok(()));
    assert_eq!(std::hint::black_box(&mut payload), b"hullo");
    let done = While(|_| {}, RefCell::default());
    near.pump_for(&done);
    assert_eq!(done.1.take(), [], "nothing is answered yet");
    gateway.give(&taken[1], Answer::RnrNak(3));
    gateway.give(&taken[0], Answer::Ack);
    gateway.give(&taken[0], Answer::Silence);
    near.pump_for(&done);
    assert_eq!(done.1.take(), [Answer::Ack, Answer::RnrNak(3)]);
}

/// Who sends more datagrams than leave the host is held up: their slots are theirs again when they have left. Requests
/// have slots of their own.
#[test]
fn datagrams_that_have_not_left_hold_their_sender_up() {
    let [near, gateway] = processes();
    gateway.segment().become_gateway();
    let op = Op::Datagram { qkey: 1, imm: None, grh: Grh::default() };
    let send = |psn: u32| {
        let payload = [span_of(b"datagram")];
        near.submit(&Request { op, ..outward(psn, 8) }, &ProcessMemory, &payload)
    };
    let taken = TakesOver::default();
    let mut sent = 0;
    while sent < 2000 && send(sent) == Submitted::Answered(Answer::Ack) {
        gateway.pump_for(&taken);
        sent += 1;
    }
    assert!((100..2000).contains(&sent), "{sent} are on their way");
    let taken = taken.0.take();
    assert_eq!(taken.len(), sent as usize);
    assert_eq!(near.submit(&outward(1, 0), &ProcessMemory, &[]), Submitted::Pending, "a request");
    // The request has taken one of those that datagrams leave to it.
    taken[..2].iter().for_each(|taken| gateway.give(taken, Answer::Ack));
    near.pump_for(&While(|_| panic!("nobody waits for the answer"), RefCell::default()));
    assert_eq!([send(0), send(1)], [Submitted::Answered(Answer::Ack), Submitted::Busy], "two have left");
    taken[2..].iter().for_each(|taken| gateway.give(taken, Answer::Ack));
}

#[test]
fn what_the_gateway_has_is_taken_back_without_it() {
    let [near, gateway] = processes();
    gateway.segment().become_gateway();
    let payload = [7; 8];
    assert_eq!(near.submit(&outward(1, 8), &ProcessMemory, &[span_of(&payload)]), Submitted::Pending);
    let taken = TakesOver::default();
    gateway.pump_for(&taken);
    let taken = taken.0.take().pop().unwrap();
    assert!(gateway.is_wanted(&taken));
    // The gateway does nothing meanwhile.
    near.cancel(outward(1, 8).token);
    assert!(!gateway.is_wanted(&taken));
    let mut piece = [0; 8];
    assert_eq!(gateway.fetch(&taken, 0, &mut piece), Err(NotCopied::Gone));
    assert_eq!(gateway.store(&taken, 0, &[9; 8]), Err(NotCopied::Gone));
    assert_eq!((piece, std::hint::black_box(payload)), ([0; 8], [7; 8]));
    // Its slot is another request's now, and is not answered by mistake.
    assert_eq!(near.submit(&outward(2, 0), &ProcessMemory, &[]), Submitted::Pending);
    gateway.give(&taken, Answer::Ack);
    let done = While(|_| {}, RefCell::default());
    near.pump_for(&done);
    assert_eq!(done.1.take(), []);
}

/// A responder may be as slow as it likes; the gateway is the way to one, and may not.
#[test]
fn what_a_gateway_has_that_stands_still_is_lost() {
    let [near, gateway] = processes();
    gateway.segment().become_gateway();
    assert_eq!(near.submit(&outward(1, 0), &ProcessMemory, &[]), Submitted::Pending);
    let token = outward(1, 0).token;
    assert!(!near.lost(token), "it may just have been asked");
    std::thread::sleep(GATEWAY_PATIENCE);
    assert!(near.lost(token));
    gateway.segment().gateway_goes_round();
    assert!(!near.lost(token));
}

#[test]
fn guests_take_pieces_from_the_gateway_and_answer_it() {
    let [target, gateway] = processes();
    gateway.segment().become_gateway();
    let from = outward(0, 0).dest;
    let bytes = vec![5; 4096];
    let segment = Piece {
        source: from,
        dest: endpoint(0),
        psn: Psn::new(1),
        packets: 4,
        len: 4096,
        part: Part::WriteFirst { remote_addr: 0x1000, rkey: Rkey(3), total: 8192 },
    };
    let token = |epoch| Token { qp: QpHandle(0), epoch, psn: Psn::default() };
    assert_eq!(gateway.hand_in(token(1), &Carried::Segment(segment), &[span_of(&bytes)]), Submitted::Pending);
    // Not its length: nobody sends so.
    let odd = Piece { len: 4095, ..segment };
    assert_eq!(gateway.hand_in(token(2), &Carried::Segment(odd), &[span_of(&bytes)]), Submitted::Pending);
    struct Takes(RefCell<Vec<(Piece, Vec<u8>)>>);
    impl Inbound for Takes {
        fn receive(&self, _request: &Request, _far: &dyn Far) -> Answer {
            Answer::Silence
        }
        fn receive_segment(&self, segment: &Piece, far: &dyn Far) -> Answer {
            let mut into = vec![0; segment.len as usize];
            far.pull(&ProcessMemory, &[span_of_mut(&mut into)]).unwrap();
            self.0.borrow_mut().push((*segment, into));
            Answer::Ack
        }
        fn answered(&self, _token: Token, _answer: Answer) {}
    }
    let takes = Takes(RefCell::default());
    target.pump_for(&takes);
    assert_eq!(takes.0.take(), [(segment, bytes)]);
    let done = While(|_| {}, RefCell::default());
    gateway.pump_for(&done);
    assert_eq!(done.1.take(), [Answer::Ack, Answer::Silence]);
    // What is for another host does not come back to the gateway.
    let stray = Piece { dest: from, ..segment };
    assert_eq!(gateway.hand_in(token(3), &Carried::Segment(stray), &[]), Submitted::Answered(Answer::Silence));
}

/// Whoever leaves a path out neither sends nor takes anything by it, and the other path stays.
#[test]
fn behind_a_path_that_is_left_out_is_nobody() {
    let [all, memory, tcp] = ["memory,tcp", "memory", "tcp"].map(|list| list.parse::<Paths>().unwrap());
    let grh = Grh { sl: 0, traffic_class: 0, flow_label: 0, hop_limit: 64 };
    let datagram = |request| Request { op: Op::Datagram { qkey: 1, imm: None, grh }, ..request };
    for (here, there, reached) in [(all, all, true), (memory, memory, true), (tcp, all, false), (all, tcp, false)] {
        let (fabric, regions) = by_hand::file();
        let [here, there] = [(0, here), (1, there)].map(|(index, paths)| {
            let mut segment = by_hand::join(fabric, &regions, index);
            by_hand::leave(&mut segment, paths);
            HostTransport::new(segment)
        });
        let (path, submitted, sent) = match reached {
            true => (Path::Memory, Submitted::Pending, Answer::Ack),
            false => (Path::None, Submitted::Answered(Answer::Silence), Answer::Silence),
        };
        assert_eq!(here.path(&endpoint(0).gid, &endpoint(1)), path);
        // A manager has no region in its number: it is that of any process of the guest, this one too.
        let manager = Endpoint { qpn: Qpn(1), ..endpoint(1) };
        let path = if here.segment().paths().memory() { Path::Memory } else { path };
        assert_eq!(here.path(&endpoint(0).gid, &manager), path);
        assert_eq!(here.submit(&message(1), &ProcessMemory, &[]), submitted);
        assert_eq!(here.submit(&datagram(message(2)), &ProcessMemory, &[]), Submitted::Answered(sent));
        assert_eq!(there.pump_for(&While(|_| {}, RefCell::default())), reached);
    }
    for (paths, reached) in [(all, true), (tcp, true), (memory, false)] {
        let (fabric, regions) = by_hand::file();
        let [mut near, mut gateway] = [0, 1].map(|index| by_hand::join(fabric, &regions, index));
        by_hand::leave(&mut near, paths);
        by_hand::make_gateway(&mut gateway);
        let [near, gateway] = [near, gateway].map(HostTransport::new);
        let (out, back) = (outward(1, 0), Request { dest: endpoint(0), ..message(1) });
        assert_eq!(near.path(&endpoint(0).gid, &out.dest), Path::None, "there is no link");
        gateway.segment().set_linked(7, true);
        let path = if reached { Path::Tcp { host: 7 } } else { Path::None };
        assert_eq!(near.path(&endpoint(0).gid, &out.dest), path);
        gateway.segment().set_by_adapter(7);
        let path = if reached { Path::Hca { host: 7 } } else { Path::None };
        assert_eq!(near.path(&endpoint(0).gid, &out.dest), path);
        gateway.segment().set_linked(7, false);
        assert_eq!(near.path(&endpoint(0).gid, &out.dest), Path::None);
        let submitted = if reached { Submitted::Pending } else { Submitted::Answered(Answer::Silence) };
        assert_eq!(near.submit(&out, &ProcessMemory, &[]), submitted);
        assert_eq!(gateway.hand_in(back.token, &Carried::Whole(back), &[]), submitted);
        assert_eq!(near.pump_for(&While(|_| {}, RefCell::default())), reached);
    }
}

#[test]
fn who_watches_sees_qps_and_what_they_have_done() {
    let dir = std::env::temp_dir().join(format!("pvrdma-test-view-{}", std::process::id()));
    std::fs::create_dir(&dir).unwrap();
    assert!(view::look(&dir).unwrap().is_none());
    let transport = HostTransport::new(Segment::join(&dir, 3, 1, Paths::default(), |file| file).unwrap());
    let seen = || -> Vec<QpReport> {
        let view = view::look(&dir).unwrap().unwrap();
        assert_eq!((view.host, view.gateway), (Some(3), None));
        let [Seen { guest, pid, paths, qps: Ok(qps) }] = &view.processes[..] else { panic!("{view:?}") };
        assert_eq!((guest.host(), guest.index(), *pid), (3, 1, std::process::id() as i32));
        assert_eq!(*paths, Paths::default());
        qps.clone()
    };
    assert_eq!(seen(), []);
    // The first, one on another page, and the last.
    for handle in [1, 300, 32767].map(QpHandle) {
        let (qpn, state) = (Qpn(transport.qpn_base() | handle.0), PVRDMA_QPS_RTS);
        let gid = |host| Guest::new(host, 1, Roce::V2).unwrap().gid(1).unwrap();
        let peer = Endpoint { gid: gid(3), qpn };
        assert!(transport.expected_psn(handle).is_some());
        let figures = transport.figures(handle).unwrap();
        let (kind, pd) = (QpKind::Rc, PdHandle(1));
        let grh = Grh::default();
        let view = QpView { handle, kind, state, placeable: false, pd, access: 0, peer, grh, qpn, mtu: 4096 };
        transport.qp_changed(&view);
        figures.sent.done.count(5, true);
        figures.received.count(7, false);
        let mut report = QpReport {
            qpn,
            kind,
            state,
            peer: Some(peer),
            path: Path::Memory,
            sent: Counted { messages: 1, bytes: 5 },
            received: Counted { messages: 0, bytes: 7 },
            resent: 0,
            rnr: 0,
        };
        assert_eq!(seen(), [report]);
        let peer = Endpoint { gid: gid(4), qpn };
        transport.qp_changed(&QpView { peer, ..view });
        (report.peer, report.path) = (Some(peer), Path::None);
        assert_eq!(seen(), [report], "nobody carries anything to other hosts");
        // Another QP with its handle begins at zero.
        transport.figures(handle);
        (report.sent, report.received) = Default::default();
        assert_eq!(seen(), [report]);
        transport.qp_changed(&QpView { state: PVRDMA_QPS_RESET, ..view });
        assert_eq!(seen(), []);
    }
    transport.segment().leave();
    assert_eq!(view::look(&dir).unwrap().unwrap().processes.len(), 0);
    std::fs::remove_dir_all(&dir).unwrap();
}
