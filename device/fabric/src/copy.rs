//! One copy between two processes, without a fault: `process_vm_readv` and `process_vm_writev`.
//!
//! The kernel checks every page at both ends, so memory that is gone becomes an error. It serves copies within
//! this process too.

use crate::hazard::Hazard;
use crate::say::say;
use crate::section;
use crate::segment::SLOT_SPANS;
use crate::sync::own;
use pvrdma_device::memory::{DmaAddr, Memory, Span, part_of, total};
use pvrdma_device::transport::{CopyFault, Far};
use std::sync::atomic::{AtomicBool, Ordering};

/// Most spans of one side.
const MAX_SPANS: usize = SLOT_SPANS;

/// Memory of a requester, here or in another process.
pub struct RemoteFar<'a> {
    /// Its process.
    pub pid: libc::pid_t,
    /// Its payload.
    pub spans: &'a [Span],
    /// Asked before each copy, for a hazard to show while it is made; `Err`: the requester does not want it any more.
    /// None for memory of this process.
    pub leave: Option<&'a dyn Fn() -> Result<Hazard, Gone>>,
}

/// The requester has taken its request back.
pub struct Gone;

/// Which way bytes go, seen from the calling process.
#[derive(Clone, Copy)]
pub enum Direction {
    /// From the other process to here.
    Read,
    /// From here to the other process.
    Write,
}

/// Our own bytes as a span.
pub fn span_of(bytes: &[u8]) -> Span {
    Span { addr: DmaAddr(bytes.as_ptr() as u64), len: bytes.len() as u64 }
}

/// The same, to be written to.
pub fn span_of_mut(bytes: &mut [u8]) -> Span {
    Span { addr: DmaAddr(bytes.as_mut_ptr() as u64), len: bytes.len() as u64 }
}

fn to_iovecs(spans: &[Span], into: &mut [libc::iovec; MAX_SPANS]) -> Option<usize> {
    for (iovec, span) in into.get_mut(..spans.len())?.iter_mut().zip(spans) {
        *iovec = libc::iovec { iov_base: span.addr.0 as *mut libc::c_void, iov_len: span.len as usize };
    }
    Some(spans.len())
}

/// How a copy between processes ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copied {
    /// Well.
    All,
    /// Some page was not there, or may not be touched.
    Fault,
    /// The other process took the hazard away: it may all be there, or a part.
    Revoked,
}

/// A copy under a hazard is made in such pieces, so that whoever waits for its end waits for one of them.
const PIECE: usize = 1 << 20;

/// Copies `local` from or to `remote`, all of it in this process. `false`: some page was not there, or may not be
/// touched.
pub fn copy(pid: libc::pid_t, direction: Direction, local: &[Span], remote: &[Span]) -> bool {
    copy_under(None, pid, direction, local, remote) == Copied::All
}

/// Copies `local` from or to `remote` of process `pid`, as long as it leaves us the hazard.
pub fn copy_under(
    hazard: Option<&Hazard>,
    pid: libc::pid_t,
    direction: Direction,
    local: &[Span],
    remote: &[Span],
) -> Copied {
    let none = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
    let (mut here, mut there) = ([none; MAX_SPANS], [none; MAX_SPANS]);
    let (Some(here_cnt), Some(there_cnt)) = (to_iovecs(local, &mut here), to_iovecs(remote, &mut there)) else {
        return Copied::Fault;
    };
    let number = match direction {
        Direction::Read => libc::SYS_process_vm_readv,
        Direction::Write => libc::SYS_process_vm_writev,
    };
    let mut left = total(local);
    let (mut here, mut there) = (&mut here[..here_cnt], &mut there[..there_cnt]);
    // A call moves at most MAX_RW_COUNT (2 GiB) and may stop early; go on where it stopped.
    while left > 0 {
        let (piece, cut) = first(here, if hazard.is_some() { PIECE } else { usize::MAX });
        let (h, t) = (here.as_ptr() as usize, there.as_ptr() as usize);
        let arguments = [pid as usize, h, piece, t, there.len(), 0];
        let touched = || local.iter().chain(remote).for_each(|span| own(span.addr.0));
        // The iovec arrays are ours and outlive the call. The ranges they name are checked by the kernel page by page
        // at both ends; a bad one is EFAULT. That the bytes may be written is what the memory region allows.
        let moved = match hazard {
            Some(hazard) => hazard.call(number, arguments, touched),
            None => {
                touched();
                Some(section::call(number, arguments))
            }
        };
        if let Some(last) = here.get_mut(piece.saturating_sub(1)) {
            last.iov_len += cut;
        }
        match moved {
            None => return Copied::Revoked,
            Some(moved @ 1..) => {
                left = left.saturating_sub(moved as u64);
                here = skip(here, moved as usize);
                there = skip(there, moved as usize);
            }
            Some(failed) => {
                hint_if_forbidden(failed);
                return Copied::Fault;
            }
        }
    }
    Copied::All
}

/// Cuts `iovecs` to `limit` bytes: how many there are then, and how much shorter the last of them has become.
fn first(iovecs: &mut [libc::iovec], limit: usize) -> (usize, usize) {
    let mut left = limit;
    for (n, iovec) in iovecs.iter_mut().enumerate() {
        if iovec.iov_len >= left {
            let cut = iovec.iov_len - left;
            iovec.iov_len = left;
            return (n + 1, cut);
        }
        left -= iovec.iov_len;
    }
    (iovecs.len(), 0)
}

fn skip(mut iovecs: &mut [libc::iovec], mut bytes: usize) -> &mut [libc::iovec] {
    while let Some(first) = iovecs.first_mut() {
        if bytes < first.iov_len {
            first.iov_base = first.iov_base.wrapping_byte_add(bytes);
            first.iov_len -= bytes;
            break;
        }
        bytes -= first.iov_len;
        iovecs = &mut iovecs[1..];
    }
    iovecs
}

/// Says once why nothing will ever arrive, where the system forbids what the transport is made of.
fn hint_if_forbidden(result: isize) {
    static SAID: AtomicBool = AtomicBool::new(false);
    let forbidden = result == -(libc::EPERM as isize);
    if forbidden && !SAID.swap(true, Ordering::Relaxed) {
        say(format_args!("copying between processes is forbidden here (seccomp, or yama ptrace_scope above 1)"));
    }
}

/// Whether every page of `spans` of process `pid` can be read.
fn reachable(pid: libc::pid_t, spans: &[Span]) -> bool {
    const PAGE: u64 = 4096;
    spans.iter().filter(|span| span.len > 0).all(|span| {
        let (first, last) = (span.addr.0 / PAGE, (span.addr.0 + span.len - 1) / PAGE);
        (first..=last).all(|page| {
            let at = (page * PAGE).max(span.addr.0);
            let mut byte = 0u8;
            let local = [Span { addr: DmaAddr(&raw mut byte as u64), len: 1 }];
            let remote = [Span { addr: DmaAddr(at), len: 1 }];
            copy(pid, Direction::Read, &local, &remote)
        })
    })
}

impl RemoteFar<'_> {
    /// `Ok(false)`: the requester does not want it any more.
    pub(crate) fn copy(&self, direction: Direction, here: &[Span], there: &[Span]) -> Result<bool, ()> {
        loop {
            let hazard = match self.leave.map(|leave| leave()) {
                None => None,
                Some(Ok(hazard)) => Some(hazard),
                Some(Err(Gone)) => return Ok(false),
            };
            match copy_under(hazard.as_ref(), self.pid, direction, here, there) {
                Copied::All => return Ok(true),
                Copied::Fault => return Err(()),
                // Perhaps for the sake of an earlier request: ask again.
                Copied::Revoked => {}
            }
        }
    }

    fn fetch(&self, into: &[Span], there: &[Span]) -> Result<(), CopyFault> {
        match self.copy(Direction::Read, into, there) {
            Ok(true) => Ok(()),
            // Not done, then, and nobody waits for this answer.
            Ok(false) => Err(CopyFault::Far),
            Err(()) => Err(self.blame()),
        }
    }

    fn blame(&self) -> CopyFault {
        if reachable(self.pid, self.spans) { CopyFault::Near } else { CopyFault::Far }
    }
}

impl Far for RemoteFar<'_> {
    fn pull(&self, _memory: &dyn Memory, into: &[Span]) -> Result<(), CopyFault> {
        self.fetch(into, self.spans)
    }

    fn pull_from(&self, skip: u64, _memory: &dyn Memory, into: &[Span]) -> Result<(), CopyFault> {
        self.fetch(into, &part_of(self.spans, skip, total(into)))
    }

    fn push(&self, _memory: &dyn Memory, from: &[Span]) -> Result<(), CopyFault> {
        // Where nobody wants it any more, it is as if the answer was lost.
        self.copy(Direction::Write, from, self.spans).map(|_| ()).map_err(|()| {
            // Our own side only had to be read: if it can be, the fault is at the other end.
            // Not the process's number: its first thread may have ended.
            let own = section::thread();
            if reachable(own, from) { CopyFault::Far } else { CopyFault::Near }
        })
    }

    fn put(&self, bytes: &[u8]) -> Result<(), CopyFault> {
        self.copy(Direction::Write, &[span_of(bytes)], self.spans).map(|_| ()).map_err(|()| CopyFault::Far)
    }
}
