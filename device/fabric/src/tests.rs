//! Two processes of the fabric in one, without a device: what becomes of requests.

use crate::memory::ProcessMemory;
use crate::segment::by_hand;
use crate::transport::{HostTransport, Inbound};
use pvrdma_device::guest::{Guest, Roce};
use pvrdma_device::handle::{PdHandle, Psn, QpHandle, Qpn, Rkey};
use pvrdma_device::memory::{DmaAddr, Span};
use pvrdma_device::rings::wqe::Ext;
use pvrdma_device::transport::*;
use pvrdma_ffi::dev_api::PVRDMA_QPS_RTS;
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

#[test]
fn who_polls_hears_of_bytes_that_were_written_beside_its_device() {
    let [here, there] = processes();
    let (mut byte, place) = (7u8, AtomicU64::new(0));
    let view = QpView {
        handle: QpHandle(3),
        state: PVRDMA_QPS_RTS,
        placeable: true,
        pd: PdHandle(1),
        access: PVRDMA_ACCESS_REMOTE_WRITE | PVRDMA_ACCESS_REMOTE_READ,
        peer: endpoint(0),
        qpn: endpoint(1).qpn,
    };
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
