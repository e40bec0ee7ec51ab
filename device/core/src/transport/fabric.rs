//! The transport between devices of one process: every request is answered by the calling thread, unless its
//! destination is no device's here and the fabric has an [`Uplink`].

use super::path::Paths;
use super::{Answer, CopyFault, Endpoint, Far, Path, Request, Station, Submitted, Token, Transport};
use crate::handle::Gid;
use crate::memory::{DmaAddr, Memory, Span, part_of, total};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

/// Devices of this process, by GID. One for each group of devices that can reach each other.
#[derive(Default)]
pub struct Fabric {
    ports: RwLock<HashMap<Gid, Owner>>,
    uplink: Option<Arc<dyn Uplink>>,
    /// Those that are left out are as if nobody were there.
    paths: Paths,
    next_port: AtomicU64,
}

/// Whose a GID is.
struct Owner {
    device: Weak<dyn Station>,
    /// A device of another fabric had it first: this one neither speaks under it nor is found by it.
    elsewhere: bool,
}

/// Who has handed a request to an uplink.
#[derive(Clone)]
pub struct Origin {
    /// Number of its port, never given twice. Tokens are of a port.
    pub port: u64,
    /// Its device.
    pub device: Weak<dyn Station>,
}

/// The way to the devices of other fabrics.
///
/// `submit`, `cancel` and `lost` are called with a send queue locked, `bound` with a table of GIDs: none of them may
/// call a device, nor wait for a thread that does.
pub trait Uplink: Send + Sync {
    /// Takes over a request whose destination is no device's of this fabric; `from` has its source GID. Payload of a
    /// connected QP is asked for later (`Requester::payload`), that of a datagram is read now or never.
    fn submit(&self, from: &Origin, request: &Request, memory: &dyn Memory, local: &[Span]) -> Submitted;

    /// See [`Transport::cancel`]. The request may be none of the uplink's.
    fn cancel(&self, port: u64, token: Token);

    /// See [`Transport::lost`]. What is none of the uplink's is lost.
    fn lost(&self, port: u64, token: Token) -> bool;

    /// A device of this fabric has a GID that no other one here has, or has it no longer.
    fn bound(&self, gid: Gid, bound: bool);

    /// The way to who has `gid` on another fabric. Called with a send queue locked, as `submit`.
    fn path(&self, gid: &Gid) -> Path;
}

/// Where a request goes.
enum Way {
    Here(Arc<dyn Station>),
    Up,
    Nowhere,
}

impl Fabric {
    /// A fabric without devices, and without a way to others.
    pub fn new() -> Arc<Fabric> {
        Arc::new(Fabric::default())
    }

    /// A fabric without devices, of which some paths may be used, and perhaps one to others.
    pub fn of(paths: Paths, uplink: Option<Arc<dyn Uplink>>) -> Arc<Fabric> {
        Arc::new(Fabric { uplink, paths, ..Fabric::default() })
    }

    /// The device that has `gid`, for a request from another fabric.
    pub fn station(&self, gid: &Gid) -> Option<Arc<dyn Station>> {
        if !self.paths.tcp() {
            return None;
        }
        self.read().get(gid).filter(|owner| !owner.elsewhere)?.device.upgrade()
    }

    /// Whether a device of another fabric has `gid`, though one here has bound it.
    pub fn set_elsewhere(&self, gid: &Gid, elsewhere: bool) {
        if let Some(owner) = self.write().get_mut(gid) {
            owner.elsewhere = elsewhere;
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, HashMap<Gid, Owner>> {
        self.ports.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<Gid, Owner>> {
        self.ports.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The way to `dest`, if `source` really belongs to `device`: a guest may write any GID into its own table, but it
    /// does not speak under another's.
    fn route(&self, device: &Weak<dyn Station>, source: &Gid, dest: &Gid) -> Way {
        let ports = self.read();
        if ports.get(source).is_none_or(|owner| owner.elsewhere || !owner.device.ptr_eq(device)) {
            return Way::Nowhere;
        }
        match ports.get(dest).filter(|owner| !owner.elsewhere) {
            Some(owner) if self.paths.memory() => owner.device.upgrade().map_or(Way::Nowhere, Way::Here),
            None if self.uplink.is_some() && self.paths.tcp() => Way::Up,
            Some(_) | None => Way::Nowhere,
        }
    }
}

/// One device's plug into a [`Fabric`].
pub struct Port {
    fabric: Arc<Fabric>,
    number: u64,
    device: OnceLock<Origin>,
}

impl Port {
    /// A plug without a device; see [`Port::attach`].
    pub fn new(fabric: &Arc<Fabric>) -> Arc<Port> {
        let number = fabric.next_port.fetch_add(1, Ordering::Relaxed);
        Arc::new(Port { fabric: fabric.clone(), number, device: OnceLock::new() })
    }

    /// Names the device that this plug serves. Later calls are ignored.
    pub fn attach(&self, device: Arc<dyn Station>) {
        let _ = self.device.set(Origin { port: self.number, device: Arc::downgrade(&device) });
    }
}

impl Transport for Port {
    fn submit(&self, request: &Request, memory: &dyn Memory, local: &[Span]) -> Submitted {
        let Some(origin) = self.device.get() else { return Submitted::Answered(Answer::Silence) };
        match (self.fabric.route(&origin.device, &request.source.gid, &request.dest.gid), &self.fabric.uplink) {
            (Way::Here(to), _) => Submitted::Answered(to.receive(request, &InProcess { memory, spans: local })),
            (Way::Up, Some(uplink)) => uplink.submit(origin, request, memory, local),
            _ => Submitted::Answered(Answer::Silence),
        }
    }

    fn cancel(&self, token: Token) {
        if let Some(uplink) = &self.fabric.uplink {
            uplink.cancel(self.number, token);
        }
    }

    fn lost(&self, token: Token) -> bool {
        self.fabric.uplink.as_ref().is_none_or(|uplink| uplink.lost(self.number, token))
    }

    fn path(&self, source: &Gid, peer: &Endpoint) -> Path {
        let Some(origin) = self.device.get() else { return Path::None };
        match (self.fabric.route(&origin.device, source, &peer.gid), &self.fabric.uplink) {
            (Way::Here(_), _) => Path::Memory,
            (Way::Up, Some(uplink)) => uplink.path(&peer.gid),
            _ => Path::None,
        }
    }

    fn gid_bound(&self, gid: Gid, bound: bool) {
        let Some(Origin { device, .. }) = self.device.get() else { return };
        let mut ports = self.fabric.write();
        if bound {
            // The first owner keeps a GID: a guest cannot take another's traffic by binding its address.
            if ports.get(&gid).is_some_and(|owner| owner.device.strong_count() > 0) {
                return;
            }
            ports.insert(gid, Owner { device: device.clone(), elsewhere: false });
        } else if ports.get(&gid).is_some_and(|owner| owner.device.ptr_eq(device)) {
            ports.remove(&gid);
        } else {
            return;
        }
        // With the table locked, so that the uplink hears in the order in which it happened.
        if let Some(uplink) = &self.fabric.uplink {
            uplink.bound(gid, bound);
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
