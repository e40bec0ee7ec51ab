//! RoCE on the wire: guests of this host and whoever speaks RoCE, over one socket: v2 by UDP, or v1 on Ethernet.
//!
//! All guests are known there by one address, this host's; the QP number tells whose a packet is. What of a QP has to
//! be known for that lies in the fabric, published by its process, and is looked up for each packet and each request:
//! nothing is kept of a QP but what the two halves of its connection remember (`pvrdma_roce::rc`), and they may forget.
//!
//! | file | |
//! |---|---|
//! | `wire/port.rs` | the socket, and what its network carries |
//! | `wire/asking.rs` | requests of guests, until they are answered |
//! | `wire/serving.rs` | what peers ask of guests |
//! | `wire/datagrams.rs` | datagrams for guests |

mod asking;
mod datagrams;
mod port;
mod serving;

use super::inbox::FromGuest;
use crate::outbound::Requested;
use crate::socket::{Socket, WireReport};
use asking::Asking;
use datagrams::Datagrams;
pub use port::{Opened, Port, interface_of, open};
use pvrdma_capture::recorder::Recorder;
use pvrdma_device::guest::{self, Roce};
use pvrdma_device::handle::{Gid, Qpn, address_of, gid_of, is_of_one_host};
use pvrdma_device::rings::wqe::QpKind;
use pvrdma_device::transport::{Answer, Endpoint, Request, Token};
use pvrdma_fabric::segment::Route;
use pvrdma_fabric::transport::HostTransport;
use pvrdma_roce::message;
use pvrdma_roce::packet::{DEFAULT_PKEY, Packet};
use serving::Serving;
use std::collections::{HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// How often one turn reads the socket before other things are done. Each time brings 64 KiB at most.
const READS: usize = 16;
/// Turns of QPs to send, each of some 64 KiB, before other things are done.
const SENDS: usize = 16;
/// Bytes that a responder sends in its turn.
const TURN: usize = 64 << 10;
/// A partition key without the bit that says who is a full member.
const PARTITION: u16 = 0x7fff;
/// Who wants to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Side {
    Asks(Qpn),
    Serves(Qpn),
}

/// QPs that want to send, in turns.
#[derive(Default)]
struct Turns {
    queue: VecDeque<Side>,
    queued: HashSet<Side>,
}

impl Turns {
    fn add(&mut self, side: Side) {
        if self.queued.insert(side) {
            self.queue.push_back(side);
        }
    }

    fn next(&mut self) -> Option<Side> {
        let side = self.queue.pop_front()?;
        self.queued.remove(&side);
        Some(side)
    }
}

/// See the module text.
pub struct Wire {
    transport: Arc<HostTransport>,
    recorder: Option<Arc<Recorder>>,
    socket: Socket,
    roce: Roce,
    gid: Gid,
    mtu: u32,
    /// The socket may have something.
    readable: bool,
    asking: Asking,
    serving: Serving,
    datagrams: Datagrams,
    turns: Turns,
}

impl Wire {
    /// One that has carried nothing.
    pub fn new(opened: Opened, transport: Arc<HostTransport>, recorder: Option<Arc<Recorder>>) -> Wire {
        let Opened { socket, mtu } = opened;
        let gid = gid_of(socket.local());
        let roce = if matches!(socket, Socket::V1(_)) { Roce::V1 } else { Roce::V2 };
        Wire {
            asking: Asking::new(transport.clone()),
            serving: Serving::new(transport.clone()),
            datagrams: Datagrams::new(transport.clone()),
            transport,
            recorder,
            socket,
            roce,
            gid,
            mtu,
            readable: true,
            turns: Turns::default(),
        }
    }

    /// What guests have to know of it.
    pub fn known(&self) -> guest::Wire {
        guest::Wire { roce: self.roce, gid: self.gid, mtu: self.mtu }
    }

    pub fn report(&self) -> WireReport {
        WireReport { roce: self.roce, address: self.socket.local(), mtu: self.mtu, packets: self.socket.stats() }
    }

    /// Requests of guests that have no answer.
    pub fn asked(&self) -> usize {
        self.asking.len()
    }

    /// Pieces that guests have.
    pub fn serves(&self) -> usize {
        self.serving.len()
    }

    /// The poll says that something has come.
    pub fn is_ready(&mut self) {
        self.readable = true;
    }

    // ---- from guests ---------------------------------------------------------------------------

    /// A guest wants this.
    pub fn ask(&mut self, requested: FromGuest) {
        let qpn = requested.taken.request.source.qpn;
        let Request { source, dest, .. } = requested.taken.request;
        // Nobody there could answer to a guest's own address, and many would to one that is many hosts'.
        if source.gid != self.gid || !is_of_one_host(address_of(&dest.gid)) {
            return requested.answer(Answer::Silence);
        }
        self.asking.ask(requested);
        self.turns.add(Side::Asks(qpn));
    }

    /// A guest sends a datagram. One that cannot leave is lost.
    pub fn send_datagram(&mut self, request: &Request, payload: &[u8]) {
        let dest = address_of(&request.dest.gid);
        if request.source.gid == self.gid && payload.len() <= self.mtu as usize && is_of_one_host(dest) {
            let packet = message::packet(request, 0, payload);
            send(&mut self.socket, self.recorder.as_deref(), self.gid, dest, &packet);
        }
    }

    /// A guest has answered to what is asked of it. `false`: it was no such thing.
    pub fn answered(&mut self, token: Token, answer: Answer) -> bool {
        let Some(qpn) = self.serving.answered(token, answer) else { return serving::is_ours(token) };
        self.turns.add(Side::Serves(qpn));
        true
    }

    // ---- turns ---------------------------------------------------------------------------------

    /// Does what can be done. `true`: there is more to do at once.
    pub fn turn(&mut self, now: Duration) -> bool {
        let mut more = self.receive(now);
        for qpn in self.asking.expire(now) {
            self.turns.add(Side::Asks(qpn));
        }
        for qpn in self.serving.hand_over(now) {
            self.turns.add(Side::Serves(qpn));
        }
        more |= self.send(now);
        self.socket.flush();
        more
    }

    /// Takes packets in.
    fn receive(&mut self, now: Duration) -> bool {
        let Wire { transport, recorder, socket, gid, asking, serving, datagrams, turns, .. } = self;
        for _ in 0..READS {
            if !self.readable {
                return false;
            }
            let received = socket.receive(|source, packet| {
                let source = gid_of(source);
                if let Some(recorder) = recorder {
                    recorder.packet(&source, gid, packet);
                }
                if !is_heard(transport.segment().route(&source), packet.bth.pkey) {
                    return;
                }
                if packet.bth.opcode.is_datagram() {
                    return datagrams.arrived(now, (&source, gid), packet);
                }
                let qpn = Qpn(packet.bth.dest_qpn);
                let known = transport.segment().published(qpn);
                let Some(known) = known.filter(|known| known.kind == QpKind::Rc && known.peer.gid == source) else {
                    return;
                };
                if !packet.bth.opcode.is_response() {
                    serving.receive(Endpoint { gid: *gid, qpn }, &known, packet);
                } else if asking.receive(now, qpn, packet) {
                    turns.add(Side::Asks(qpn));
                }
            });
            // What a socket has to say that is no packet, RoCE finds out by itself.
            self.readable = received.unwrap_or(false);
        }
        self.readable
    }

    /// Sends for each who has something, in turns.
    fn send(&mut self, now: Duration) -> bool {
        let Wire { recorder, socket, gid, asking, serving, turns, .. } = self;
        for _ in 0..SENDS {
            let Some(side) = turns.next() else { return false };
            let mut out = |dest: &Gid, packet: &Packet<'_>| {
                send(socket, recorder.as_deref(), *gid, address_of(dest), packet);
            };
            let more = match side {
                Side::Asks(qpn) => asking.transmit(now, qpn, &mut out),
                Side::Serves(qpn) => serving.transmit(qpn, TURN, &mut out),
            };
            if more {
                turns.add(side);
            }
        }
        !turns.queue.is_empty()
    }

    /// Now and then: nobody waits for good.
    pub fn look(&mut self, now: Duration) {
        self.asking.forget();
        for qpn in self.serving.look(now) {
            self.turns.add(Side::Serves(qpn));
        }
    }

    /// When `turn` has something to do, at the latest.
    pub fn deadline(&self) -> Option<Duration> {
        self.asking.deadline()
    }

    /// Somebody had no room, and is to be asked again.
    pub fn is_stuck(&self) -> bool {
        self.serving.is_stuck()
    }

    /// Nobody waits for anything.
    pub fn is_idle(&self) -> bool {
        self.asking.len() == 0 && self.serving.len() == 0
    }
}

fn send(socket: &mut Socket, recorder: Option<&Recorder>, source: Gid, dest: IpAddr, packet: &Packet<'_>) {
    if let Some(recorder) = recorder {
        recorder.packet(&source, &gid_of(dest), packet);
    }
    socket.send(dest, packet);
}

/// Whether a packet of this partition is listened to that comes from where `route` leads. A guest's address, and this
/// host's, are no stranger's, though he can forge them: guests come by memory, or by links.
fn is_heard(route: Route, pkey: u16) -> bool {
    route == Route::Wire && pkey & PARTITION == DEFAULT_PKEY & PARTITION
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_no_stranger_is_not_heard_from_the_wire() {
        assert!(is_heard(Route::Wire, 0xffff) && is_heard(Route::Wire, 0x7fff));
        assert!(!is_heard(Route::Here, 0xffff) && !is_heard(Route::Host(2), 0xffff));
        assert!(!is_heard(Route::Wire, 0x8001));
    }
}
