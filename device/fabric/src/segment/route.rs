//! Where an address leads from this host, and who of this host has it.
//!
//! An address of ours says whose it is. All others are no device's that we know; they are reached by RoCE packets, if
//! the gateway has an address of this host for them, and their peers know all guests of this host by that one.

use super::{Fabric, GSI, HANDLE_BITS, Process, Segment, region_of};
use crate::sync::{Ordering, fence};
use crate::words::{to_gid, to_words, what_is};
use pvrdma_device::guest::{Guest, Roce, Wire};
use pvrdma_device::handle::{Gid, Psn, Qpn};
use pvrdma_device::rings::wqe::QpKind;
use pvrdma_device::transport::path::Paths;
use pvrdma_device::transport::{Endpoint, Path as Way};

/// Where an address leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// To a guest of this host, or to nobody.
    Here,
    /// To a guest of another host of ours.
    Host(u8),
    /// To whoever speaks RoCE.
    Wire,
}

/// What a process has published of one of its QPs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// Incarnation of its process, and how often it was changed: in its next life it has another one.
    pub version: (u32, u32),
    /// Service type.
    pub kind: QpKind,
    /// `PVRDMA_QPS_*`.
    pub state: u32,
    /// Path MTU, in bytes.
    pub mtu: u32,
    /// Its peer, if it is connected.
    pub peer: Endpoint,
    /// What it expects next.
    pub expected: Psn,
}

/// Beside the path MTU: it is RoCE v1 that is spoken.
const WIRE_V1: u32 = 1 << 31;

impl Fabric {
    pub(super) fn wire(&self) -> Option<Wire> {
        let word = self.wire_mtu.load(Ordering::Acquire);
        let gid = to_gid([0, 1].map(|half: usize| self.wire_gid[half].load(Ordering::Relaxed)));
        let roce = if word & WIRE_V1 != 0 { Roce::V1 } else { Roce::V2 };
        (word != 0).then_some(Wire { roce, gid, mtu: word & !WIRE_V1 })
    }

    /// Where an address leads from the host with this number.
    pub(super) fn route(&self, host: u8, gid: &Gid) -> Route {
        match Guest::of(gid) {
            Some(guest) if guest.host() == host => Route::Here,
            Some(guest) => Route::Host(guest.host()),
            None if self.wire().is_some_and(|wire| wire.gid != *gid) => Route::Wire,
            None => Route::Here,
        }
    }

    /// Whether `process` has an address: its guest's, or the host's for RoCE.
    pub(super) fn has(&self, process: Process, host: u8, gid: &Gid) -> bool {
        let Some(guest) = self.guest(process.index, host) else { return false };
        guest.has(gid) || self.wire().is_some_and(|wire| wire.gid == *gid) && self.paths_of(process.index).roce()
    }

    /// The paths by which the process in a seat may be reached.
    pub(super) fn paths_of(&self, seat: usize) -> Paths {
        self.seats
            .get(seat)
            .map_or(Paths::from_bits(0), |seat| Paths::from_bits(seat.paths.load(Ordering::Relaxed).into()))
    }
}

impl Segment {
    /// Where an address leads.
    pub fn route(&self, gid: &Gid) -> Route {
        self.fabric.route(self.host, gid)
    }

    /// Who carries what goes this way, if this process may use it.
    pub(crate) fn carrier(&self, route: Route) -> Option<Process> {
        let may = match route {
            Route::Here => false,
            Route::Host(_) => self.paths.tcp(),
            Route::Wire => self.paths.roce(),
        };
        if may { self.gateway() } else { None }
    }

    /// Whether `process` has this address and takes in what comes for it from here, and this one may send it.
    pub(crate) fn reaches(&self, process: Process, gid: &Gid) -> bool {
        let theirs = self.fabric.paths_of(process.index);
        // Nearly all who ask are no gateway, and ask for each request.
        let may = if !self.is_gateway {
            self.paths.and(theirs).memory()
        } else if Guest::of(gid).is_some() {
            theirs.tcp()
        } else {
            theirs.roce()
        };
        may && self.fabric.has(process, self.host, gid)
    }

    /// What the gateway of this host has for those who speak RoCE, or had when it ran last.
    pub fn wire(&self) -> Option<Wire> {
        self.fabric.wire()
    }

    /// The gateway has this from now on.
    pub fn set_wire(&self, wire: Option<Wire>) {
        let fabric = self.fabric;
        // Nobody takes one half for the whole.
        fabric.wire_mtu.store(0, Ordering::SeqCst);
        let Some(Wire { roce, gid, mtu }) = wire else { return };
        for (word, half) in fabric.wire_gid.iter().zip(to_words(&gid)) {
            word.store(half, Ordering::Relaxed);
        }
        let v1 = if roce == Roce::V1 { WIRE_V1 } else { 0 };
        fabric.wire_mtu.store(mtu | v1, Ordering::Release);
    }

    /// What is known of a QP that those who speak RoCE may have to do with. `None`: there is none, or it changes now.
    pub fn published(&self, qpn: Qpn) -> Option<Published> {
        let process = self.process(region_of(&Endpoint { qpn, ..Endpoint::default() })?)?;
        let region = self.region(process.index).filter(|_| self.fabric.paths_of(process.index).roce())?;
        let qp = region.qps.get((qpn.0 & ((1 << HANDLE_BITS) - 1)) as usize).filter(|qp| region.has(*qp))?;
        let version = qp.version.load(Ordering::SeqCst);
        let found = qp.qpn.load(Ordering::Relaxed);
        let what = qp.what.load(Ordering::Relaxed);
        let peer = Endpoint {
            gid: to_gid([0, 1].map(|half: usize| qp.peer_gid[half].load(Ordering::Relaxed))),
            qpn: Qpn(qp.peer_qpn.load(Ordering::Relaxed)),
        };
        let expected = Psn::new(qp.expected_psn.load(Ordering::Acquire));
        fence(Ordering::Acquire);
        let whole = version.is_multiple_of(2) && qp.version.load(Ordering::SeqCst) == version;
        let (kind, state, mtu) = what_is(what).filter(|_| whole && found == qpn.0)?;
        let still_there = self.process(process.index) == Some(process);
        still_there.then_some(Published { version: (process.incarnation, version), kind, state, mtu, peer, expected })
    }
}

impl Segment {
    /// The way to a peer as things are now. A dear question.
    pub fn path(&self, peer: &Endpoint) -> Way {
        self.fabric.path(self.own, peer)
    }
}

impl Fabric {
    /// The way from the process in seat `from` to a peer.
    pub(super) fn path(&self, from: usize, peer: &Endpoint) -> Way {
        let Some(seat) = self.seats.get(from) else { return Way::None };
        let (own, here) = (self.paths_of(from), seat.host.load(Ordering::Relaxed) as u8);
        let gateway = || self.gateway().filter(|gateway| self.alive(*gateway));
        match self.route(here, &peer.gid) {
            Route::Host(host) => {
                let has = |words: &[std::sync::atomic::AtomicU64; 4]| {
                    words[usize::from(host / 64)].load(Ordering::Relaxed) & 1 << (host % 64) != 0
                };
                let way = match has(&self.by_adapter) {
                    true => Way::Hca { host: host.into() },
                    false => Way::Tcp { host: host.into() },
                };
                gateway().filter(|_| own.tcp() && has(&self.linked)).map_or(Way::None, |_| way)
            }
            Route::Wire => gateway().filter(|_| own.roce()).map_or(Way::None, |_| Way::Roce),
            Route::Here => {
                let has_it = |process: &Process| {
                    let may = own.and(self.paths_of(process.index)).memory();
                    may && self.has(*process, here, &peer.gid) && self.alive(*process)
                };
                let is_there = match peer.qpn.0 {
                    // The manager of a guest is whichever of its processes it is for.
                    GSI => self.used().filter_map(|index| self.process(index)).any(|process| has_it(&process)),
                    _ => region_of(peer).and_then(|index| self.process(index)).is_some_and(|process| has_it(&process)),
                };
                if is_there { Way::Memory } else { Way::None }
            }
        }
    }
}
