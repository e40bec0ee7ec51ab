//! A connection as its owner sees it: what is asked for and agreed, what is told of it, and whom the manager asks.

use crate::message::{Gid, Mad, Rep, Req, SidrRep, SidrReq, private_len};

/// Local communication id: names a connection or a datagram question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CommId(pub u32);

/// See the module text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "Linux's names: ib_cm_state")]
pub enum State {
    Idle,
    ReqSent,
    ReqRcvd,
    MraReqSent,
    MraReqRcvd,
    RepSent,
    RepRcvd,
    MraRepSent,
    MraRepRcvd,
    Established,
    DreqRcvd,
    DreqSent,
    TimeWait,
    SidrReqSent,
    SidrReqRcvd,
    SidrDone,
}

/// Between which addresses, and how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "fields carry the names of the path record")]
pub struct Path {
    pub local_gid: Gid,
    pub remote_gid: Gid,
    pub mtu: u8,
    pub rate: u8,
    pub sl: u8,
    pub traffic_class: u8,
    pub flow_label: u32,
    pub hop_limit: u8,
    pub ack_timeout: u8,
}

/// What a connection is asked with, or answered with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "fields carry the names of rdma_conn_param")]
pub struct Parameters {
    pub qpn: u32,
    /// What this end expects first.
    pub psn: u32,
    pub qkey: u32,
    pub responder_resources: u8,
    pub initiator_depth: u8,
    pub flow_control: u8,
    pub retry_count: u8,
    pub rnr_retry_count: u8,
    pub srq: u8,
}

/// What a QP needs to know of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "fields carry the names of ibv_qp_attr")]
pub struct Attributes {
    pub path: Path,
    pub dest_qp_num: u32,
    pub rq_psn: u32,
    pub sq_psn: u32,
    pub responder_resources: u8,
    pub initiator_depth: u8,
    pub retry_count: u8,
    pub rnr_retry_count: u8,
}

/// Who serves a service id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A listener of the caller's, by a number that stands in the event.
    Listener(u64),
    /// Nobody: the question is refused.
    Nobody,
    /// Somebody who has no room at the moment, or another manager at the same address: it is ignored.
    NotNow,
}

/// Whom the manager asks.
pub trait Services {
    /// Who serves `service_id`, for who sent that private data and wants a QP of that kind (datagrams or connected).
    fn find(&mut self, service_id: u64, private_data: &[u8], datagrams: bool) -> Verdict;
}

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// A process, by a number that no other one ever has.
    Process(u64),
    /// Nobody: it has ended.
    Gone,
    /// Somebody that the caller cannot ask about.
    Stranger,
}

/// A datagram for the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// From which address.
    pub from: Gid,
    /// Whose management QP it is for.
    pub to: Gid,
    /// Itself.
    pub mad: Mad,
    /// A question, to an address where perhaps nobody listens: `nobody` may be told of it.
    pub question: Option<CommId>,
}

/// What the owner of a connection hears.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "Linux's names: ib_cm_event_type")]
pub enum Event {
    ReqReceived { listener: u64, comm: CommId, req: Box<Req> },
    RepReceived { comm: CommId, rep: Box<Rep> },
    RtuReceived { comm: CommId },
    RejReceived { comm: CommId, reason: u16, private_data: Box<[u8; private_len::REJ]> },
    ReqError { comm: CommId },
    RepError { comm: CommId },
    DreqReceived { comm: CommId },
    DrepReceived { comm: CommId },
    DreqError { comm: CommId },
    TimewaitExit { comm: CommId },
    SidrReqReceived { listener: u64, comm: CommId, req: Box<SidrReq>, from: Gid },
    SidrRepReceived { comm: CommId, rep: Box<SidrRep> },
    SidrReqError { comm: CommId },
}

impl Event {
    /// The connection that it is about.
    pub fn comm(&self) -> CommId {
        match self {
            Event::ReqReceived { comm, .. }
            | Event::RepReceived { comm, .. }
            | Event::RtuReceived { comm }
            | Event::RejReceived { comm, .. }
            | Event::ReqError { comm }
            | Event::RepError { comm }
            | Event::DreqReceived { comm }
            | Event::DrepReceived { comm }
            | Event::DreqError { comm }
            | Event::TimewaitExit { comm }
            | Event::SidrReqReceived { comm, .. }
            | Event::SidrRepReceived { comm, .. }
            | Event::SidrReqError { comm } => *comm,
        }
    }
}

/// Why a call came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallError {
    /// Not in this state.
    State,
    /// It is established already.
    Established,
}
