//! What peers that speak RoCE ask of guests.

use pvrdma_device::handle::{Gid, Psn, QpHandle, Qpn};
use pvrdma_device::memory::Span;
use pvrdma_device::transport::segment::{Carried, Part, Segment};
use pvrdma_device::transport::{Answer, Endpoint, Op, Request, Submitted, Token, Transport};
use pvrdma_fabric::copy::span_of_mut;
use pvrdma_fabric::segment::Published;
use pvrdma_fabric::transport::HostTransport;
use pvrdma_ffi::dev_api::{PVRDMA_QPS_RTR, PVRDMA_QPS_RTS, PVRDMA_QPS_SQD};
use pvrdma_roce::packet::Packet;
use pvrdma_roce::rc::Connection;
use pvrdma_roce::rc::responder::{Piece, Responder};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// How long a guest may hold a piece, or have no room for it. Its answer is silence then, as if it had been lost.
const PATIENCE: Duration = Duration::from_millis(250);
/// How long it has had one before it is looked whether it still runs.
const LOOK: Duration = Duration::from_millis(50);
/// In the names of pieces: they are those of this module. Links count from 0.
const OURS: u32 = 1 << 31;

/// A QP that is asked.
struct Half {
    /// Of the QP, when something came for it last.
    version: (u32, u32),
    /// Tells this from a former half of the same QP.
    life: u64,
    connection: Connection,
    half: Responder,
    /// Its guest had no room for this, since then.
    stuck: Option<(Piece, Duration)>,
    /// Pieces that its guest has.
    flying: usize,
}

/// What a guest has: the bytes of a piece, or the place for them.
struct Flying {
    qpn: Qpn,
    life: u64,
    ticket: u64,
    bytes: Vec<u8>,
    reads: bool,
    since: Duration,
}

/// See the module text.
pub struct Serving {
    transport: Arc<HostTransport>,
    halves: HashMap<Qpn, Half>,
    flying: HashMap<u64, Flying>,
    /// Names given so far.
    named: u64,
    lives: u64,
    /// Something has come for them, or there may be room again.
    touched: HashSet<Qpn>,
    /// A guest had no room.
    is_stuck: bool,
}

fn token(name: u64) -> Token {
    Token { qp: QpHandle(OURS | (name >> 32) as u32), epoch: name as u32, psn: Psn::default() }
}

fn name_of(token: Token) -> u64 {
    u64::from(token.qp.0 & !OURS) << 32 | u64::from(token.epoch)
}

/// Whether a piece was named here.
pub fn is_ours(token: Token) -> bool {
    token.qp.0 & OURS != 0
}

/// Whether data comes back, and how much.
fn comes_back(carried: &Carried) -> Option<usize> {
    match carried {
        Carried::Whole(request) => request.op.reads().then_some(request.len as usize),
        Carried::Segment(piece) => matches!(piece.part, Part::Read { .. }).then_some(piece.len as usize),
    }
}

impl Serving {
    pub fn new(transport: Arc<HostTransport>) -> Serving {
        Serving {
            transport,
            halves: HashMap::new(),
            flying: HashMap::new(),
            named: 0,
            lives: 0,
            touched: HashSet::new(),
            is_stuck: false,
        }
    }

    /// Pieces that guests have.
    pub fn len(&self) -> usize {
        self.flying.len()
    }

    pub fn is_stuck(&self) -> bool {
        self.is_stuck
    }

    /// Takes in a packet of a request from the peer of a QP.
    pub fn receive(&mut self, local: Endpoint, known: &Published, packet: &Packet<'_>) {
        if !matches!(known.state, PVRDMA_QPS_RTR | PVRDMA_QPS_RTS | PVRDMA_QPS_SQD) {
            return;
        }
        let connection = Connection { local, peer: known.peer, mtu: known.mtu };
        let half = self.halves.get(&local.qpn).filter(|half| {
            // It was changed, but not in what matters here: the QP has come as far as this half thinks it has.
            let goes_on = || half.connection == connection && half.half.is_at(known.expected);
            half.version == known.version || goes_on()
        });
        if half.is_none() {
            self.lives += 1;
            let half = Responder::new(connection, known.expected);
            let version = known.version;
            let half = Half { version, life: self.lives, connection, half, stuck: None, flying: 0 };
            self.halves.insert(local.qpn, half);
        }
        if let Some(half) = self.halves.get_mut(&local.qpn) {
            half.version = known.version;
            half.half.receive(packet);
            self.touched.insert(local.qpn);
        }
    }

    /// Hands to guests what there is for them. Whose turn to send it is then.
    pub fn hand_over(&mut self, now: Duration) -> Vec<Qpn> {
        if self.is_stuck {
            self.is_stuck = false;
            self.touched.extend(self.halves.iter().filter(|(_, half)| half.stuck.is_some()).map(|(qpn, _)| *qpn));
        }
        let touched: Vec<Qpn> = self.touched.drain().collect();
        touched.iter().for_each(|qpn| self.hand(now, *qpn));
        let has_reply = |qpn: &Qpn| self.halves.get(qpn).is_some_and(|half| half.half.has_reply());
        touched.into_iter().filter(has_reply).collect()
    }

    fn hand(&mut self, now: Duration, qpn: Qpn) {
        let Some(half) = self.halves.get_mut(&qpn) else { return };
        while let Some((mut piece, since)) = half.stuck.take().or_else(|| Some((half.half.piece()?, now))) {
            let back = comes_back(&piece.carried);
            if let Some(len) = back {
                piece.bytes.resize(len, 0);
            }
            let name = self.named;
            let (token, local) = (token(name), [span_of_mut(&mut piece.bytes)]);
            match submit(&self.transport, token, &piece.carried, &local, half.flying == 0) {
                Submitted::Busy | Submitted::Full | Submitted::WhenAlone => {
                    half.stuck = Some((piece, since));
                    self.is_stuck = true;
                    return;
                }
                Submitted::Answered(answer) => {
                    half.half.answered(piece.ticket, answer, given_back(back.is_some(), piece.bytes));
                }
                Submitted::Pending => {
                    self.named += 1;
                    half.flying += 1;
                    let Piece { ticket, bytes, .. } = piece;
                    let (life, reads) = (half.life, back.is_some());
                    self.flying.insert(name, Flying { qpn, life, ticket, bytes, reads, since: now });
                }
            }
        }
    }

    /// A guest has answered to a piece: that of this QP.
    pub fn answered(&mut self, token: Token, answer: Answer) -> Option<Qpn> {
        let name = is_ours(token).then(|| name_of(token))?;
        let Flying { qpn, life, ticket, bytes, reads, .. } = self.flying.remove(&name)?;
        let half = self.halves.get_mut(&qpn).filter(|half| half.life == life)?;
        half.flying -= 1;
        half.half.answered(ticket, answer, given_back(reads, bytes));
        // There is room for more.
        self.touched.insert(qpn);
        Some(qpn)
    }

    /// Sends what a QP has to say, some `turn` bytes at most. True: there is more.
    pub fn transmit(&mut self, qpn: Qpn, turn: usize, out: &mut dyn FnMut(&Gid, &Packet<'_>)) -> bool {
        let Some(half) = self.halves.get_mut(&qpn) else { return false };
        let peer = half.connection.peer.gid;
        let more = half.half.transmit(turn, &mut |packet| out(&peer, packet));
        // Data of a READ has left, and there is room for more.
        if half.half.has_piece() && half.stuck.is_none() {
            self.touched.insert(qpn);
            return true;
        }
        more
    }

    /// Takes back what a guest has had for too long, or will never answer, and forgets QPs that are gone. Whose turn to
    /// send it is then.
    pub fn look(&mut self, now: Duration) -> Vec<Qpn> {
        // Whether its guest still runs is a dear question.
        let is_late = |name: u64, flying: &Flying| {
            now >= flying.since + PATIENCE || now >= flying.since + LOOK && self.transport.lost(token(name))
        };
        let late = self.flying.iter().filter(|(name, flying)| is_late(**name, flying)).map(|(name, _)| *name);
        let late: Vec<u64> = late.collect();
        let mut turns = Vec::new();
        for name in late {
            self.transport.cancel(token(name));
            turns.extend(self.answered(token(name), Answer::Silence));
        }
        // A stopped guest would fill this process's memory, and be told later what its peers gave up long ago.
        for (qpn, half) in &mut self.halves {
            if let Some((piece, _)) = half.stuck.take_if(|(_, since)| now >= *since + PATIENCE) {
                half.half.answered(piece.ticket, Answer::Silence, Vec::new());
                turns.push(*qpn);
            }
        }
        let segment = self.transport.segment();
        self.halves.retain(|qpn, half| half.flying > 0 || segment.published(*qpn).is_some());
        turns
    }
}

/// Hands a piece to its target: by itself if nothing else of the QP is on its way, so that the target need not wake.
fn submit(transport: &HostTransport, token: Token, carried: &Carried, local: &[Span], alone: bool) -> Submitted {
    let short = match *carried {
        _ if !alone => None,
        Carried::Whole(request) => transport.place_alone(&request, local, request.len),
        // Each piece of a READ stands for itself. Those of a WRITE do not: its last packet may have immediate data, of
        // which the target tells with the length of all.
        Carried::Segment(Segment { source, dest, psn, packets, len, part: Part::Read { remote_addr, rkey, rest } }) => {
            let op = Op::Read { remote_addr, rkey };
            let request = Request { token, source, dest, psn, packets, op, len, solicited: false, alone };
            transport.place_alone(&request, local, rest)
        }
        Carried::Segment(_) => None,
    };
    short.map_or_else(|| transport.hand_in(token, carried, local), Submitted::Answered)
}

/// What a piece brings back.
fn given_back(reads: bool, bytes: Vec<u8>) -> Vec<u8> {
    if reads { bytes } else { Vec::new() }
}
