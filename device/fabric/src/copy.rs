//! One copy between two processes, without a fault: `process_vm_readv` and `process_vm_writev`.
//!
//! The kernel checks every page at both ends, so memory that is gone becomes an error. It serves copies within
//! this process too.

use crate::sync::own;
use pvrdma_device::memory::{DmaAddr, Memory, Span};
use pvrdma_device::transport::{CopyFault, Far};
use std::sync::atomic::{AtomicBool, Ordering};

/// Most spans of one side: a WQE has at most 16 SGEs and each is one span in a process.
pub const MAX_SPANS: usize = 16;

/// Memory of a requester, here or in another process.
pub struct RemoteFar<'a> {
    /// Its process.
    pub pid: libc::pid_t,
    /// Its payload.
    pub spans: &'a [Span],
}

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

fn to_iovecs(spans: &[Span], into: &mut [libc::iovec; MAX_SPANS]) -> Option<usize> {
    for (iovec, span) in into.get_mut(..spans.len())?.iter_mut().zip(spans) {
        *iovec = libc::iovec { iov_base: span.addr.0 as *mut libc::c_void, iov_len: span.len as usize };
    }
    Some(spans.len())
}

/// Copies `local` from or to `remote` of process `pid`. `false`: some page was not there, or may not be touched.
pub fn copy(pid: libc::pid_t, direction: Direction, local: &[Span], remote: &[Span]) -> bool {
    local.iter().chain(remote).for_each(|span| own(span.addr.0));
    let none = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
    let (mut here, mut there) = ([none; MAX_SPANS], [none; MAX_SPANS]);
    let (Some(here_cnt), Some(there_cnt)) = (to_iovecs(local, &mut here), to_iovecs(remote, &mut there)) else {
        return false;
    };
    let mut left: u64 = local.iter().map(|span| span.len).sum();
    let (mut here, mut there) = (&mut here[..here_cnt], &mut there[..there_cnt]);
    // A call moves at most MAX_RW_COUNT (2 GiB) and may stop early; go on where it stopped.
    while left > 0 {
        let (h, t) = (here.len() as libc::c_ulong, there.len() as libc::c_ulong);
        // SAFETY: the iovec arrays are ours and outlive the call. The ranges they name are checked by the kernel page
        // by page at both ends; a bad one is EFAULT. That the bytes may be written is what the memory region allows.
        let moved = unsafe {
            match direction {
                Direction::Read => libc::process_vm_readv(pid, here.as_ptr(), h, there.as_ptr(), t, 0),
                Direction::Write => libc::process_vm_writev(pid, here.as_ptr(), h, there.as_ptr(), t, 0),
            }
        };
        if moved <= 0 {
            hint_if_forbidden();
            return false;
        }
        left = left.saturating_sub(moved as u64);
        here = skip(here, moved as usize);
        there = skip(there, moved as usize);
    }
    true
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
fn hint_if_forbidden() {
    static SAID: AtomicBool = AtomicBool::new(false);
    let forbidden = std::io::Error::last_os_error().raw_os_error() == Some(libc::EPERM);
    if forbidden && !SAID.swap(true, Ordering::Relaxed) {
        eprintln!("pvrdma: copying between processes is forbidden here (seccomp, or yama ptrace_scope above 1)");
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
    fn blame(&self) -> CopyFault {
        if reachable(self.pid, self.spans) { CopyFault::Near } else { CopyFault::Far }
    }
}

impl Far for RemoteFar<'_> {
    fn pull(&self, _memory: &dyn Memory, into: &[Span]) -> Result<(), CopyFault> {
        if copy(self.pid, Direction::Read, into, self.spans) { Ok(()) } else { Err(self.blame()) }
    }

    fn push(&self, _memory: &dyn Memory, from: &[Span]) -> Result<(), CopyFault> {
        if copy(self.pid, Direction::Write, from, self.spans) {
            return Ok(());
        }
        // Our own side only had to be read: if it can be, the fault is at the other end.
        // SAFETY: getpid has no preconditions.
        let own = unsafe { libc::getpid() };
        Err(if reachable(own, from) { CopyFault::Far } else { CopyFault::Near })
    }

    fn put(&self, bytes: &[u8]) -> Result<(), CopyFault> {
        let local = [span_of(bytes)];
        if copy(self.pid, Direction::Write, &local, self.spans) { Ok(()) } else { Err(CopyFault::Far) }
    }
}
