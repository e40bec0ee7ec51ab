//! How a requester reaches a responder: requests and answers, nothing shared.
//!
//! The engine hands a [`Request`] and the requester's memory to [`Transport::submit`]. A transport may answer at
//! once (both ends in reach of this thread), later (`Requester::answered`), or find nobody there. At the other end
//! it calls `Responder::receive` with a [`Far`], through which the responder pulls or pushes the payload in one copy.
//!
//! A transport whose ends are not within each other's reach carries payload by value and in pieces (`segment`): it
//! asks the requester's device for a part of it (`Requester::payload`), hands it to the responder's
//! (`Responder::receive_segment`), and what comes back to the requester's again (`Requester::arrived`).

pub mod fabric;
pub mod fault;
pub mod figures;
pub mod layer;
pub mod path;
pub mod segment;

use crate::handle::{Gid, PdHandle, Psn, QpHandle, Qpn, Rkey};
use crate::memory::{Memory, Span};
use crate::rings::wqe::{AtomicOp, Ext, Grh, QpKind};
pub use figures::Figures;
pub use path::Path;
use pvrdma_ffi::uapi::vmw_pvrdma as abi;
use std::sync::atomic::AtomicU32;

/// One end of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Port address.
    pub gid: Gid,
    /// QP number.
    pub qpn: Qpn,
}

/// Names a request within its requester's device, for the answer that comes later.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Token {
    /// Local QP.
    pub qp: QpHandle,
    /// Numbers the submissions of that QP: a request that was taken back and submitted again has a new one, so that
    /// an answer to the first, already in some thread's hands, is not taken for one to the second.
    pub epoch: u32,
    /// Its first packet.
    pub psn: Psn,
}

/// What the responder is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "fields carry the names of the IBA headers")]
pub enum Op {
    Send {
        ext: Ext,
    },
    Write {
        remote_addr: u64,
        rkey: Rkey,
        imm: Option<u32>,
    },
    Read {
        remote_addr: u64,
        rkey: Rkey,
    },
    Atomic {
        remote_addr: u64,
        rkey: Rkey,
        op: AtomicOp,
    },
    /// Unreliable: carried out or not, it is answered at once, or the transport is `Busy`.
    Datagram {
        qkey: u32,
        imm: Option<u32>,
        grh: Grh,
    },
}

impl Op {
    /// Whether carrying it out spends a receive WQE of a connected QP: it may find none (RNR).
    pub fn takes_receive(&self) -> bool {
        matches!(self, Op::Send { .. } | Op::Write { imm: Some(_), .. })
    }

    /// Whether data comes back.
    pub fn reads(&self) -> bool {
        matches!(self, Op::Read { .. } | Op::Atomic { .. })
    }
}

/// A message from a requester.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Whose it is.
    pub token: Token,
    /// Requester.
    pub source: Endpoint,
    /// Responder.
    pub dest: Endpoint,
    /// First packet sequence number; the message takes `packets` of them (for READ: those of the response).
    pub psn: Psn,
    /// See `psn`.
    pub packets: u32,
    /// What to do.
    pub op: Op,
    /// Payload bytes.
    pub len: u64,
    /// Solicited event wanted.
    pub solicited: bool,
    /// Nothing else of this QP is on its way.
    pub alone: bool,
}

/// Why a responder refuses (IBA vol. 1, 9.7.5.2.8: NAK codes).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nak {
    /// PSN ahead of the expected one: something before it is missing.
    SequenceError,
    /// Length or opcode that the responder cannot accept.
    InvalidRequest,
    /// rkey, range or right is wrong.
    RemoteAccess,
    /// The responder cannot complete it for reasons of its own.
    RemoteOperational,
}

/// A responder's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Done.
    Ack,
    /// No receive WQE: try again after the time of this code (IBA vol. 1, table 45).
    RnrNak(u8),
    /// Refused.
    Nak(Nak),
    /// The requester's own memory could not be read or written; the responder's side is unchanged.
    RequesterFault,
    /// Nobody answers: no such QP, wrong state, wrong sender. The requester's timer will tell.
    Silence,
}

/// The other end of a transport: a device.
pub trait Responder: Send + Sync {
    /// Carries out `request` on one of its QPs, with the requester's payload within reach. Called by transports, from
    /// any thread.
    fn receive(&self, request: &Request, far: &dyn Far) -> Answer;

    /// The same for a piece of a message that a transport carries in several, in their order. Its payload is exactly as
    /// long as the segment says. The message is answered with what its last piece is answered with, or the first that
    /// is not answered with ACK.
    fn receive_segment(&self, piece: &segment::Segment, far: &dyn Far) -> Answer;
}

/// The device that a request came from, for a transport that answers it later. Called by it, from any thread.
pub trait Requester: Send + Sync {
    /// Copies a part of the payload of a pending request into `into`: from its byte `offset` on. False: nobody waits
    /// for its answer any more. For transports that carry payload by value; under no lock that `submit` or `cancel`
    /// takes.
    fn payload(&self, token: Token, offset: u64, into: &mut [u8]) -> bool;

    /// Takes in a part of the data that a READ or an atomic operation asked for, before its answer. False, and where it
    /// may be called, as for `payload`.
    fn arrived(&self, token: Token, offset: u64, bytes: &[u8]) -> bool;

    /// An answer that came later than `Transport::submit` returned.
    fn answered(&self, token: Token, answer: Answer);

    /// There is room at a transport that has answered `Full`.
    fn room(&self);
}

/// Both halves of a device.
pub trait Station: Responder + Requester {}

impl<D: Responder + Requester> Station for D {}

/// What became of a submitted request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Submitted {
    /// Answered already.
    Answered(Answer),
    /// On its way; `Requester::answered` follows, or [`Transport::lost`] says that it will not.
    Pending,
    /// No room right now; submit again when the device is polled next.
    Busy,
    /// No room right now, and `Requester::room` will be called when there is.
    Full,
    /// Submit again when nothing else of the QP is on its way (never said to a request that is `alone`): the transport
    /// has a shorter way then.
    WhenAlone,
}

/// Whose memory a copy stumbled over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyFault {
    /// The responder's.
    Near,
    /// The requester's.
    Far,
}

/// The requester's end of a payload, as the responder sees it. Spans hold exactly `Request::len` bytes.
pub trait Far {
    /// Copies the payload into the responder's memory.
    fn pull(&self, memory: &dyn Memory, into: &[Span]) -> Result<(), CopyFault> {
        self.pull_from(0, memory, into)
    }
    /// The same without the first `skip` bytes, which were carried before, and as far as `into` has room.
    fn pull_from(&self, skip: u64, memory: &dyn Memory, into: &[Span]) -> Result<(), CopyFault>;
    /// Copies from the responder's memory to the requester.
    fn push(&self, memory: &dyn Memory, from: &[Span]) -> Result<(), CopyFault>;
    /// Writes `bytes`, as many as the spans hold, to the requester: the former value of an atomic operation.
    fn put(&self, bytes: &[u8]) -> Result<(), CopyFault>;
    /// The request is carried out and `Answer::Ack` will follow. Called before its receive completion can be seen: on
    /// a wire the ACK leaves before the program can answer the message, and programs (perftest with one channel for
    /// both CQs) count on their send completion coming before the other end's reply.
    fn acknowledge(&self) {}
}

/// Longest payload of a datagram: one packet of the port's MTU.
pub const DATAGRAM_MAX: u64 = 4096;
/// Longest message: 1 GiB.
pub const MAX_MSG_SZ: u32 = 1 << 30;

/// What a transport carried by value: the payload of a datagram, or of a piece of a message.
pub struct Payload<'a>(pub &'a [u8]);

impl Far for Payload<'_> {
    fn pull_from(&self, skip: u64, memory: &dyn Memory, into: &[Span]) -> Result<(), CopyFault> {
        let rest = usize::try_from(skip).ok().and_then(|skip| self.0.get(skip..)).ok_or(CopyFault::Far)?;
        memory.scatter(into, rest).map_err(|_| CopyFault::Near)
    }

    fn push(&self, _memory: &dyn Memory, _from: &[Span]) -> Result<(), CopyFault> {
        Err(CopyFault::Far)
    }

    fn put(&self, _bytes: &[u8]) -> Result<(), CopyFault> {
        Err(CopyFault::Far)
    }
}

/// What a transport may need to know about the responder side of a QP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QpView {
    /// Handle.
    pub handle: QpHandle,
    /// Service type.
    pub kind: QpKind,
    /// `PVRDMA_QPS_*`.
    pub state: u32,
    /// A transport may carry out one-sided requests on its behalf.
    pub placeable: bool,
    /// PD its keys must belong to.
    pub pd: PdHandle,
    /// `PVRDMA_ACCESS_*` for peers.
    pub access: u32,
    /// Who may talk to it.
    pub peer: Endpoint,
    /// What a connected QP's packets say of their way: its address vector. Each datagram has its own.
    pub grh: Grh,
    /// Its own number.
    pub qpn: Qpn,
    /// Bytes of a full packet's payload: its path MTU.
    pub mtu: u32,
}

/// What a key is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Gather: the device reads local memory.
    LocalRead,
    /// Scatter: the device writes local memory.
    LocalWrite,
    /// A peer writes.
    RemoteWrite,
    /// A peer reads.
    RemoteRead,
    /// A peer does an atomic operation.
    RemoteAtomic,
}

impl Use {
    /// The right it takes, of the region (and for a peer's use, of the QP): `PVRDMA_ACCESS_*`.
    pub fn needs(self) -> u32 {
        match self {
            Use::LocalRead => 0,
            Use::LocalWrite => abi::PVRDMA_ACCESS_LOCAL_WRITE,
            Use::RemoteWrite => abi::PVRDMA_ACCESS_REMOTE_WRITE,
            Use::RemoteRead => abi::PVRDMA_ACCESS_REMOTE_READ,
            Use::RemoteAtomic => abi::PVRDMA_ACCESS_REMOTE_ATOMIC,
        }
    }
}

/// The rules for a range within a region, apart from where its bytes are, so that a transport which knows a peer's
/// regions judges them in the same words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Protection domain of the region.
    pub pd: PdHandle,
    /// `PVRDMA_ACCESS_*`.
    pub access: u32,
    /// Address of the first byte.
    pub start: u64,
    /// Length in bytes.
    pub length: u64,
}

impl Bounds {
    /// Offset of `addr` in the region if `[addr, addr + len)` may be used for `purpose` within `pd`.
    pub fn check(&self, pd: PdHandle, addr: u64, len: u64, purpose: Use) -> Option<u64> {
        let offset = addr.checked_sub(self.start)?;
        let end = offset.checked_add(len)?;
        let needs = purpose.needs();
        (self.pd == pd && self.access & needs == needs && end <= self.length).then_some(offset)
    }
}

/// The way to other QPs. All methods may be called from any thread.
///
/// The observers (`qp_changed`, `mr_added`, `mr_removed`, ...) have empty defaults; a transport that places data by
/// itself (shared memory, a real HCA) needs them.
pub trait Transport: Send + Sync {
    /// Carries `request` to its destination. `local` is the payload (or the place for READ data), all of it within
    /// memory regions the requester checked; it stays valid until the answer, or until `cancel` returns.
    fn submit(&self, request: &Request, memory: &dyn Memory, local: &[Span]) -> Submitted;

    /// Makes sure that nobody touches the requester's memory for `token` any more. An answer that comes all the same is
    /// ignored. Called with the send queue locked: it must not wait for a call of `Requester::answered`.
    fn cancel(&self, token: Token);

    /// Whether a pending request will never be answered because its responder is gone.
    fn lost(&self, token: Token) -> bool;

    /// The way from `source`, an address of this device, to `peer` as things are now. Not for the data path, unless
    /// there is a trace.
    fn path(&self, _source: &Gid, _peer: &Endpoint) -> Path {
        Path::Memory
    }

    /// Where the figures of a new QP are kept, from zero, if others are to see them.
    fn figures(&self, _qp: QpHandle) -> Option<Figures> {
        None
    }

    /// Where the responder's next expected PSN of a QP lives, if others advance it too.
    fn expected_psn(&self, _qp: QpHandle) -> Option<&'static AtomicU32> {
        None
    }

    /// A QP was created, changed or destroyed (`state` RESET). On return nobody acts on the former view.
    fn qp_changed(&self, _view: &QpView) {}

    /// A region peers may name by `key` exists.
    fn mr_added(&self, _key: u32, _bounds: &Bounds) {}

    /// The region of `key` is going away. On return nobody touches its memory.
    fn mr_removed(&self, _key: u32) {}

    /// The device answers to `gid` (or no longer).
    fn gid_bound(&self, _gid: Gid, _bound: bool) {}
}
