//! What guests ask of peers that speak RoCE, until it is answered.

use crate::gateway::inbox::FromGuest;
use crate::outbound::Requested;
use pvrdma_device::handle::{Gid, Qpn};
use pvrdma_device::rings::wqe::QpKind;
use pvrdma_device::transport::{Answer, Token};
use pvrdma_fabric::transport::HostTransport;
use pvrdma_ffi::dev_api::{PVRDMA_QPS_RTS, PVRDMA_QPS_SQD};
use pvrdma_roce::packet::Packet;
use pvrdma_roce::rc::Connection;
use pvrdma_roce::rc::requester::{Local, Requester};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// Requests by their names. Those that were answered are not among them.
type Asked = HashMap<Token, FromGuest>;

/// A QP that asks.
struct Half {
    /// Of the QP, when it asked last.
    version: (u32, u32),
    peer: Gid,
    half: Requester,
    asked: Asked,
}

/// See the module text.
pub struct Asking {
    transport: Arc<HostTransport>,
    halves: HashMap<Qpn, Half>,
    /// QPs that wait for an answer, or did when they were looked at last: few of all.
    waiting: HashSet<Qpn>,
}

/// The memory of those who ask.
struct Memory<'a>(&'a Asked);

impl Local for Memory<'_> {
    fn payload(&mut self, token: Token, offset: u64, into: &mut [u8]) -> bool {
        self.0.get(&token).is_some_and(|requested| requested.payload(offset, into))
    }

    fn arrived(&mut self, token: Token, offset: u64, bytes: &[u8]) -> bool {
        self.0.get(&token).is_some_and(|requested| requested.arrived(offset, bytes))
    }
}

impl Half {
    /// Tells guests what they have to know.
    fn settle(&mut self) {
        while let Some((token, answer)) = self.half.answer() {
            if let Some(requested) = self.asked.remove(&token) {
                requested.answer(answer);
            }
        }
    }

    /// Forgets requests that nobody waits for any more.
    fn forget(&mut self) {
        let forgotten = self.asked.extract_if(|_, requested| requested.is_forgotten());
        let forgotten: Vec<Token> = forgotten.map(|(token, _)| token).collect();
        forgotten.into_iter().for_each(|token| self.half.cancel(token));
        self.settle();
    }
}

impl Asking {
    pub fn new(transport: Arc<HostTransport>) -> Asking {
        Asking { transport, halves: HashMap::new(), waiting: HashSet::new() }
    }

    /// Requests without an answer.
    pub fn len(&self) -> usize {
        self.waiting().map(|half| half.asked.len()).sum()
    }

    fn waiting(&self) -> impl Iterator<Item = &Half> {
        self.waiting.iter().filter_map(|qpn| self.halves.get(qpn))
    }

    /// Takes a request over.
    pub fn ask(&mut self, requested: FromGuest) {
        let request = *requested.request();
        let known = self.transport.segment().published(request.source.qpn).filter(|known| {
            let sends = matches!(known.state, PVRDMA_QPS_RTS | PVRDMA_QPS_SQD);
            known.kind == QpKind::Rc && sends && known.peer == request.dest
        });
        // In this order: a request of the QP's former life was taken back before the QP could send in this one.
        let Some(known) = known.filter(|_| !requested.is_forgotten()) else {
            return requested.answer(Answer::Silence);
        };
        let connection = Connection { local: request.source, peer: request.dest, mtu: known.mtu };
        let new = || Half {
            version: known.version,
            peer: request.dest.gid,
            half: Requester::new(connection),
            asked: HashMap::new(),
        };
        let half = self.halves.entry(request.source.qpn).or_insert_with(new);
        if half.version != known.version {
            // If it still waits for one it was changed in the middle of its life.
            half.forget();
            if half.asked.is_empty() {
                *half = new();
            }
            half.version = known.version;
        }
        self.waiting.insert(request.source.qpn);
        half.asked.insert(request.token, requested);
        half.half.submit(&request);
        half.settle();
    }

    /// Takes a response in. `false`: nobody waits for one.
    pub fn receive(&mut self, now: Duration, qpn: Qpn, packet: &Packet<'_>) -> bool {
        let Some(half) = self.halves.get_mut(&qpn) else { return false };
        half.half.receive(now, packet, &mut Memory(&half.asked));
        half.settle();
        true
    }

    /// Sends again, or gives up, where nothing has come back in time. Whose turn it is then.
    pub fn expire(&mut self, now: Duration) -> Vec<Qpn> {
        let mut late = Vec::new();
        self.waiting.retain(|qpn| {
            let Some(half) = self.halves.get_mut(qpn) else { return false };
            if half.half.deadline().is_some_and(|at| at <= now) {
                half.half.expire(now);
                half.settle();
                late.push(*qpn);
            }
            !half.asked.is_empty()
        });
        late
    }

    /// Sends what a QP's window has room for, some 64 KiB at most. True: there is more.
    pub fn transmit(&mut self, now: Duration, qpn: Qpn, out: &mut dyn FnMut(&Gid, &Packet<'_>)) -> bool {
        let Some(half) = self.halves.get_mut(&qpn) else { return false };
        let Half { peer, half: requester, asked, .. } = half;
        let more = requester.transmit(now, &mut Memory(asked), &mut |packet| out(peer, packet));
        half.settle();
        more
    }

    /// Forgets requests that nobody waits for any more, and QPs that have none and are gone.
    pub fn forget(&mut self) {
        let segment = self.transport.segment();
        self.halves.retain(|qpn, half| {
            half.forget();
            !half.asked.is_empty() || segment.published(*qpn).is_some()
        });
    }

    /// When somebody has to be woken.
    pub fn deadline(&self) -> Option<Duration> {
        self.waiting().filter_map(|half| half.half.deadline()).min()
    }
}
