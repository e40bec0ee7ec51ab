//! The transport between devices of one process: every request is answered by the calling thread.

use super::{Answer, CopyFault, Far, Request, Responder, Submitted, Token, Transport};
use crate::handle::Gid;
use crate::memory::{DmaAddr, Memory, Span, part_of, total};
use std::collections::HashMap;
use std::sync::{Arc, OnceLock, PoisonError, RwLock, Weak};

/// Devices of this process, by GID. One for each group of devices that can reach each other.
#[derive(Default)]
pub struct Fabric {
    ports: RwLock<HashMap<Gid, Weak<dyn Responder>>>,
}

impl Fabric {
    /// A fabric without devices.
    pub fn new() -> Arc<Fabric> {
        Arc::new(Fabric::default())
    }

    /// The device that `dest` belongs to, if `source` really belongs to `device`: a guest may write any GID into its
    /// own table, but it does not speak under another's.
    fn route(&self, device: &Weak<dyn Responder>, source: &Gid, dest: &Gid) -> Option<Arc<dyn Responder>> {
        let ports = self.ports.read().unwrap_or_else(PoisonError::into_inner);
        ports.get(source).filter(|owner| owner.ptr_eq(device))?;
        ports.get(dest)?.upgrade()
    }
}

/// One device's plug into a [`Fabric`].
pub struct Port {
    fabric: Arc<Fabric>,
    device: OnceLock<Weak<dyn Responder>>,
}

impl Port {
    /// A plug without a device; see [`Port::attach`].
    pub fn new(fabric: &Arc<Fabric>) -> Arc<Port> {
        Arc::new(Port { fabric: fabric.clone(), device: OnceLock::new() })
    }

    /// Names the device that this plug serves. Later calls are ignored.
    pub fn attach<D: Responder + 'static>(&self, device: &Arc<D>) {
        let device: Weak<D> = Arc::downgrade(device);
        let _ = self.device.set(device);
    }
}

impl Transport for Port {
    fn submit(&self, request: &Request, memory: &dyn Memory, local: &[Span]) -> Submitted {
        let from = self.device.get();
        let to = from.and_then(|from| self.fabric.route(from, &request.source.gid, &request.dest.gid));
        Submitted::Answered(match to {
            Some(device) => device.receive(request, &InProcess { memory, spans: local }),
            None => Answer::Silence,
        })
    }

    fn cancel(&self, _token: Token) {}

    fn lost(&self, _token: Token) -> bool {
        true
    }

    fn gid_bound(&self, gid: Gid, bound: bool) {
        let Some(device) = self.device.get() else { return };
        let mut ports = self.fabric.ports.write().unwrap_or_else(PoisonError::into_inner);
        if bound {
            // The first owner keeps a GID: a guest cannot take another's traffic by binding its address.
            let taken = ports.get(&gid).is_some_and(|owner| owner.strong_count() > 0);
            if !taken {
                ports.insert(gid, device.clone());
            }
        } else if ports.get(&gid).is_some_and(|owner| owner.ptr_eq(device)) {
            ports.remove(&gid);
        }
    }
}

/// Payload in another guest's memory, reached through its `Memory`. The bounce buffer stays in the cache.
struct InProcess<'a> {
    memory: &'a dyn Memory,
    spans: &'a [Span],
}

const BOUNCE: usize = 16 * 1024;

impl Far for InProcess<'_> {
    fn pull(&self, memory: &dyn Memory, into: &[Span]) -> Result<(), CopyFault> {
        copy((self.memory, self.spans, CopyFault::Far), (memory, into, CopyFault::Near))
    }

    fn pull_from(&self, skip: u64, memory: &dyn Memory, into: &[Span]) -> Result<(), CopyFault> {
        let rest = part_of(self.spans, skip, total(into));
        copy((self.memory, &rest, CopyFault::Far), (memory, into, CopyFault::Near))
    }

    fn push(&self, memory: &dyn Memory, from: &[Span]) -> Result<(), CopyFault> {
        copy((memory, from, CopyFault::Near), (self.memory, self.spans, CopyFault::Far))
    }

    fn put(&self, bytes: &[u8]) -> Result<(), CopyFault> {
        self.memory.scatter(self.spans, bytes).map_err(|_| CopyFault::Far)
    }
}

/// Copies between two guests. Both lists hold the same number of bytes; the shorter ends the copy.
fn copy(from: (&dyn Memory, &[Span], CopyFault), to: (&dyn Memory, &[Span], CopyFault)) -> Result<(), CopyFault> {
    let mut buffer = [0u8; BOUNCE];
    let mut sources = Cursor::new(from.1);
    let mut targets = Cursor::new(to.1);
    while let Some(source) = sources.next(BOUNCE as u64) {
        let bytes = &mut buffer[..source.len as usize];
        from.0.read(source.addr, bytes).map_err(|_| from.2)?;
        let mut rest: &[u8] = bytes;
        while !rest.is_empty() {
            let Some(target) = targets.next(rest.len() as u64) else { return Ok(()) };
            let (now, later) = rest.split_at(target.len as usize);
            to.0.write(target.addr, now).map_err(|_| to.2)?;
            rest = later;
        }
    }
    Ok(())
}

/// Walks a span list in steps.
struct Cursor<'a> {
    spans: std::slice::Iter<'a, Span>,
    now: Span,
}

impl<'a> Cursor<'a> {
    fn new(spans: &'a [Span]) -> Cursor<'a> {
        Cursor { spans: spans.iter(), now: Span::default() }
    }

    /// The next piece, at most `limit` bytes long.
    fn next(&mut self, limit: u64) -> Option<Span> {
        while self.now.len == 0 {
            self.now = *self.spans.next()?;
        }
        let len = self.now.len.min(limit);
        let piece = Span { addr: self.now.addr, len };
        self.now = Span { addr: DmaAddr(self.now.addr.0.wrapping_add(len)), len: self.now.len - len };
        Some(piece)
    }
}
