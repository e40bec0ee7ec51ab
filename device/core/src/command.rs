//! The control path, typed: what every front decodes into. One variant for each device command
//! (pvrdma_dev_api.h: `PVRDMA_CMD_*`); sizes and counts are the guest's words and are judged in `Device::command`.

use crate::handle::{CqHandle, CtxHandle, Gid, Lkey, MrHandle, PdHandle, QpHandle, Qpn, Rkey, SrqHandle};
use crate::memory::Buffer;
use pvrdma_ffi::dev_api::{pvrdma_port_attr, pvrdma_qp_attr};

/// What a memory region is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MrKind {
    /// Pages of a user (`nchunks` pages that hold `[start, start + length)`).
    User(Buffer),
    /// All of guest memory, addressed as is (`PVRDMA_MR_FLAG_DMA`).
    Dma,
    /// Filled later by a FAST_REG work request (`PVRDMA_MR_FLAG_FRMR`).
    FastReg {
        /// Longest page list it can take.
        max_pages: u32,
    },
}

/// Parameters of CREATE_QP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateQp {
    /// Protection domain; its context owns the QP.
    pub pd: PdHandle,
    /// CQ of send completions.
    pub send_cq: CqHandle,
    /// CQ of receive completions.
    pub recv_cq: CqHandle,
    /// SRQ, if receives come from one.
    pub srq: Option<SrqHandle>,
    /// Send WQEs; a power of two.
    pub max_send_wr: u32,
    /// Receive WQEs; a power of two.
    pub max_recv_wr: u32,
    /// SGEs of a send WQE.
    pub max_send_sge: u32,
    /// SGEs of a receive WQE.
    pub max_recv_sge: u32,
    /// Every send WR makes a CQE, signaled or not.
    pub sq_sig_all: bool,
    /// Raw QP type (`enum pvrdma_qp_type`).
    pub qp_type: u8,
    /// State page and SQ pages, then RQ pages.
    pub buffer: Buffer,
    /// Number of SQ pages, without the state page (`send_chunks`).
    pub send_chunks: u32,
}

/// A command of the driver.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "fields carry the names of pvrdma_dev_api.h")]
pub enum Command {
    /// Attributes of a port.
    QueryPort { port_num: u8 },
    /// One P_Key.
    QueryPkey { port_num: u8, index: u8 },
    /// New PD of a context.
    CreatePd { ctx: CtxHandle },
    /// Ends a PD.
    DestroyPd { pd: PdHandle },
    /// Registers memory.
    CreateMr { pd: PdHandle, start: u64, length: u64, access_flags: u32, kind: MrKind },
    /// Ends a registration; waits for copies in flight.
    DestroyMr { mr: MrHandle },
    /// New CQ with `cqe` entries (a power of two); page 0 of the buffer is the ring state.
    CreateCq { ctx: CtxHandle, cqe: u32, buffer: Buffer },
    /// Ends a CQ.
    DestroyCq { cq: CqHandle },
    /// New QP.
    CreateQp(Box<CreateQp>),
    /// Changes the attributes named by `attr_mask`.
    ModifyQp { qp: QpHandle, attr_mask: u32, attrs: Box<pvrdma_qp_attr> },
    /// Reads all attributes.
    QueryQp { qp: QpHandle, attr_mask: u32 },
    /// Ends a QP; afterwards no CQE and no event names it.
    DestroyQp { qp: QpHandle },
    /// New user context with a UAR page.
    CreateUc { pfn: u64 },
    /// Ends a context; objects it still owns are ended with it.
    DestroyUc { ctx: CtxHandle },
    /// Binds a GID to an index.
    CreateBind { index: u32, gid: Gid, gid_type: u8, vlan: u32, mtu: u32 },
    /// Empties a GID index.
    DestroyBind { index: u32, gid: Gid },
    /// New SRQ.
    CreateSrq { pd: PdHandle, max_wr: u32, max_sge: u32, srq_limit: u32, srq_type: u8, buffer: Buffer },
    /// Changes an SRQ.
    ModifySrq { srq: SrqHandle, attr_mask: u32, srq_limit: u32 },
    /// Reads an SRQ.
    QuerySrq { srq: SrqHandle },
    /// Ends an SRQ.
    DestroySrq { srq: SrqHandle },
}

/// The answer to a [`Command`] that went well.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "fields carry the names of pvrdma_dev_api.h")]
pub enum Response {
    /// Nothing to say.
    Done,
    QueryPort(Box<pvrdma_port_attr>),
    QueryPkey {
        pkey: u16,
    },
    CreatePd {
        pd: PdHandle,
    },
    CreateMr {
        mr: MrHandle,
        lkey: Lkey,
        rkey: Rkey,
    },
    CreateCq {
        cq: CqHandle,
        cqe: u32,
    },
    CreateQp {
        qpn: Qpn,
        qp: QpHandle,
    },
    QueryQp(Box<pvrdma_qp_attr>),
    CreateUc {
        ctx: CtxHandle,
    },
    CreateSrq {
        srq: SrqHandle,
    },
    QuerySrq {
        max_wr: u32,
        max_sge: u32,
        srq_limit: u32,
    },
}

/// Why a command was refused. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// A value out of range, or a combination the verbs forbid.
    #[error("invalid argument: {0}")]
    Invalid(&'static str),
    /// A handle that names nothing, or nothing of this context.
    #[error("no such {0}")]
    NoSuch(&'static str),
    /// A limit of the device (`max_*`) is reached.
    #[error("no room for another {0}")]
    Full(&'static str),
    /// The object is still in use by others.
    #[error("{0} is in use")]
    Busy(&'static str),
    /// An address of the command leads nowhere.
    #[error("address not mapped")]
    Fault,
    /// The device has no such thing.
    #[error("not supported: {0}")]
    NotSupported(&'static str),
}

impl CommandError {
    /// The errno (positive) that the manual pages give for it.
    pub fn errno(self) -> i32 {
        match self {
            CommandError::Invalid(_) | CommandError::NoSuch(_) => 22, // EINVAL
            CommandError::Full(_) => 12,                              // ENOMEM
            CommandError::Busy(_) => 16,                              // EBUSY
            CommandError::Fault => 14,                                // EFAULT
            CommandError::NotSupported(_) => 95,                      // EOPNOTSUPP
        }
    }
}

impl From<crate::memory::Fault> for CommandError {
    fn from(_: crate::memory::Fault) -> Self {
        CommandError::Fault
    }
}
