//! The trace file: one line for every command, doorbell, completion and event of every guest, each with its socket.
//! `device/README.md` shows them.
//!
//! `session.rs` and `worker.rs` write them, in the words of the core's `trace`. A line is one write to a file that is
//! appended to, so lines of several threads and programs do not mix.

use std::fmt::{self, Display, Formatter};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use pvrdma_device::command::{Command, CommandError, MrKind, Response};
use pvrdma_device::doorbell::Doorbell;
use pvrdma_device::handle::{CqHandle, Gid, QpHandle};
use pvrdma_device::interrupt::AsyncEvent;
use pvrdma_device::rings::cqe::Completion;
use pvrdma_device::trace::{CompletionText, DoorbellText, EventText, FiredText, PathText};
use pvrdma_device::transport::Path as Way;
use pvrdma_ffi::dev_api::{PVRDMA_QP_AV, PVRDMA_QPS_RTR};

/// A file that gets the lines of all guests of a server.
#[derive(Clone, Debug)]
pub struct TraceFile(Arc<File>);

impl TraceFile {
    /// Appends to the file at `path`, which is made if it is not there.
    pub fn open(path: &Path) -> io::Result<TraceFile> {
        OpenOptions::new().append(true).create(true).open(path).map(|file| TraceFile(Arc::new(file)))
    }
}

/// It is said once what the file lacks.
static SAID: AtomicBool = AtomicBool::new(false);

/// The trace of one client.
pub struct Trace {
    file: TraceFile,
    /// What its lines begin with.
    name: String,
    /// A program that spins polls a million times: the CQ of POLLs in a row, and how many were not written.
    polls: Mutex<Option<(CqHandle, u64)>>,
}

impl Trace {
    /// A trace whose lines begin with `name`.
    pub fn new(file: TraceFile, name: String) -> Trace {
        Trace { file, name, polls: Mutex::default() }
    }

    /// A command, how it ended, and if it has given a QP a peer, the way there.
    pub fn command(&self, command: &Command, result: &Result<Response, CommandError>, path: impl Fn(QpHandle) -> Way) {
        match (command, result) {
            (Command::ModifyQp { qp, attr_mask, attrs }, Ok(_))
                if attr_mask & PVRDMA_QP_AV != 0 && attrs.qp_state == PVRDMA_QPS_RTR =>
            {
                let dest = attrs.dest_qp_num;
                self.line(format_args!("{} dest_qpn={dest:#x} path={} -> ok", CommandText(command), path(*qp)));
            }
            (_, Ok(response)) => self.line(format_args!("{}{} -> ok", CommandText(command), ResponseText(response))),
            (_, Err(error)) => self.line(format_args!("{} -> errno {}", CommandText(command), error.errno())),
        }
    }

    /// The way from a QP to a peer.
    pub fn path(&self, qp: QpHandle, peer: &Gid, path: Way) {
        self.line(format_args!("{}", PathText(qp, peer, path)));
    }

    /// A doorbell. Of POLLs in a row for one CQ the first is written, and then how many followed.
    pub fn doorbell(&self, doorbell: Doorbell) {
        let Doorbell::Cq { cq, arm: None, .. } = doorbell else {
            return self.line(format_args!("{}", DoorbellText(doorbell)));
        };
        {
            let mut polls = self.polls.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((_, more)) = polls.as_mut().filter(|(polled, _)| *polled == cq) {
                *more += 1;
                return;
            }
        }
        self.line(format_args!("{}", DoorbellText(doorbell)));
        *self.polls.lock().unwrap_or_else(PoisonError::into_inner) = Some((cq, 0));
    }

    /// A completion.
    pub fn completed(&self, cq: CqHandle, completion: &Completion) {
        self.line(format_args!("{}", CompletionText(cq, completion)));
    }

    /// An armed CQ fired.
    pub fn fired(&self, cq: CqHandle) {
        self.line(format_args!("{}", FiredText(cq)));
    }

    /// An asynchronous event.
    pub fn event(&self, event: AsyncEvent) {
        self.line(format_args!("{}", EventText(event)));
    }

    fn line(&self, text: fmt::Arguments<'_>) {
        let polls = self.polls.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((cq, more @ 1..)) = polls {
            self.append(format_args!("CQ {} POLL, {more} more", cq.0));
        }
        self.append(text);
    }

    fn append(&self, text: fmt::Arguments<'_>) {
        let line = format!("{} {text}\n", self.name);
        // A disk that is full is no reason to stop. Whoever started it may not listen.
        if let Err(error) = (&*self.file.0).write_all(line.as_bytes())
            && !SAID.swap(true, Ordering::Relaxed)
        {
            let _ = writeln!(io::stderr(), "pvrdma: the trace has gaps from here on: {error}");
        }
    }
}

/// What a command asks for.
struct CommandText<'a>(&'a Command);

impl Display for CommandText<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            Command::QueryPort { port_num } => write!(f, "query_port port={port_num}"),
            Command::QueryPkey { index, .. } => write!(f, "query_pkey index={index}"),
            Command::CreatePd { ctx } => write!(f, "create_pd ctx={}", ctx.0),
            Command::DestroyPd { pd } => write!(f, "destroy_pd pd={}", pd.0),
            Command::CreateMr { pd, start, length, access_flags, kind } => {
                let kind = match kind {
                    MrKind::User(_) => "user",
                    MrKind::Dma => "dma",
                    MrKind::FastReg { .. } => "fast_reg",
                };
                write!(f, "create_mr {kind} pd={} start={start:#x} len={length} access={access_flags:#x}", pd.0)
            }
            Command::DestroyMr { mr } => write!(f, "destroy_mr mr={}", mr.0),
            Command::CreateCq { ctx, cqe, .. } => write!(f, "create_cq ctx={} cqe={cqe}", ctx.0),
            Command::DestroyCq { cq } => write!(f, "destroy_cq cq={}", cq.0),
            Command::CreateQp(qp) => write!(
                f,
                "create_qp type={} pd={} cq={},{} wr={},{} sge={},{}",
                qp.qp_type,
                qp.pd.0,
                qp.send_cq.0,
                qp.recv_cq.0,
                qp.max_send_wr,
                qp.max_recv_wr,
                qp.max_send_sge,
                qp.max_recv_sge
            ),
            Command::ModifyQp { qp, attr_mask, attrs } => {
                write!(f, "modify_qp qp={} mask={attr_mask:#x} state={}", qp.0, attrs.qp_state)
            }
            Command::QueryQp { qp, .. } => write!(f, "query_qp qp={}", qp.0),
            Command::DestroyQp { qp } => write!(f, "destroy_qp qp={}", qp.0),
            Command::CreateUc { pfn } => write!(f, "create_uc pfn={pfn:#x}"),
            Command::DestroyUc { ctx } => write!(f, "destroy_uc ctx={}", ctx.0),
            Command::CreateBind { index, gid, .. } => {
                write!(f, "create_bind index={index} gid={}", std::net::Ipv6Addr::from(*gid))
            }
            Command::DestroyBind { index, .. } => write!(f, "destroy_bind index={index}"),
            Command::CreateSrq { pd, max_wr, max_sge, .. } => {
                write!(f, "create_srq pd={} wr={max_wr} sge={max_sge}", pd.0)
            }
            Command::ModifySrq { srq, attr_mask, srq_limit } => {
                write!(f, "modify_srq srqn={} mask={attr_mask:#x} limit={srq_limit}", srq.0)
            }
            Command::QuerySrq { srq } => write!(f, "query_srq srqn={}", srq.0),
            Command::DestroySrq { srq } => write!(f, "destroy_srq srqn={}", srq.0),
        }
    }
}

/// What a command made.
struct ResponseText<'a>(&'a Response);

impl Display for ResponseText<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            Response::CreatePd { pd } => write!(f, " pd={}", pd.0),
            Response::CreateMr { mr, lkey, rkey } => write!(f, " mr={} lkey={:#x} rkey={:#x}", mr.0, lkey.0, rkey.0),
            Response::CreateCq { cq, cqe } => write!(f, " cqn={} entries={cqe}", cq.0),
            Response::CreateQp { qpn, qp } => write!(f, " qpn={:#x} handle={}", qpn.0, qp.0),
            Response::CreateUc { ctx } => write!(f, " ctx={}", ctx.0),
            Response::CreateSrq { srq } => write!(f, " srqn={}", srq.0),
            Response::QuerySrq { max_wr, max_sge, srq_limit } => {
                write!(f, " wr={max_wr} sge={max_sge} limit={srq_limit}")
            }
            Response::Done | Response::QueryPort(_) | Response::QueryPkey { .. } | Response::QueryQp(_) => Ok(()),
        }
    }
}
