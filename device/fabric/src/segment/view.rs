//! What there is to be seen of the fabric, for who only watches: all of it.
//!
//! Who watches owns no region, and nothing is asked of anybody: what a process counts lies in the file, so one that is
//! stopped is seen like all others. The front of the file is mapped, to read. Of a region only those pages are read
//! that have memory, by read(2): to touch another one would give it some, or kill where there is none left.

use super::{
    FILE_LEN, Fabric, GATEWAY, LAYOUT, PAGE, PAGE_WORDS, PUBLISHED_QPS, PublishedQp, Region, offset_of_region,
    other_namespace, pid_namespace,
};
use crate::sync::Ordering;
use crate::words::{to_gid, what_is};
use pvrdma_device::guest::{Guest, Wire};
use pvrdma_device::handle::Qpn;
use pvrdma_device::rings::wqe::QpKind;
use pvrdma_device::transport::figures::{Counted, QpReport, Sent};
use pvrdma_device::transport::path::Paths;
use pvrdma_device::transport::{Endpoint, Path as Way};
use pvrdma_ffi::dev_api::{PVRDMA_QPS_INIT, PVRDMA_QPS_RESET};
use std::fs::File;
use std::io;
use std::mem::offset_of;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// All that runs on a fabric.
#[derive(Debug)]
pub struct View {
    /// Number of its host, if somebody lives there who says it.
    pub host: Option<u8>,
    /// The process that carries requests to other hosts.
    pub gateway: Option<libc::pid_t>,
    /// What it has for those who speak RoCE.
    pub wire: Option<Wire>,
    /// The processes of guests.
    pub processes: Vec<Seen>,
}

/// A process of a guest.
#[derive(Debug)]
pub struct Seen {
    /// The guest.
    pub guest: Guest,
    /// The process.
    pub pid: libc::pid_t,
    /// What it may use.
    pub paths: Paths,
    /// Its QPs, but for those in RESET. An error: what it has published cannot be read.
    pub qps: io::Result<Vec<QpReport>>,
}

/// Looks at the fabric below `dir`. `None`: there is none.
pub fn look(dir: &Path) -> io::Result<Option<View>> {
    let file = match File::open(dir.join("fabric")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    // It is being made.
    if file.metadata()?.len() < FILE_LEN {
        return Ok(None);
    }
    let fabric = front(&file)?;
    match fabric.layout.load(Ordering::Acquire) {
        0 => return Ok(None),
        layout if layout != LAYOUT ^ FILE_LEN << 8 => {
            return Err(io::Error::other("the fabric of this host was made by another version"));
        }
        _ => {}
    }
    let namespace = fabric.pid_namespace.load(Ordering::SeqCst);
    if namespace != 0 && namespace != pid_namespace() {
        return Err(other_namespace());
    }
    let mut view = View { host: None, gateway: None, wire: None, processes: Vec::new() };
    for index in fabric.used() {
        let Some(process) = fabric.process(index).filter(|process| fabric.alive(*process)) else { continue };
        let seat = &fabric.seats[index];
        let host = seat.host.load(Ordering::Relaxed) as u8;
        view.host = Some(host);
        if seat.guest.load(Ordering::Relaxed) == GATEWAY {
            view.gateway = Some(process.pid);
            view.wire = fabric.wire();
        } else if let Some(guest) = fabric.guest(index, host) {
            let paths = fabric.paths_of(index);
            let qps = qps(fabric, &file, index);
            // What was read is of no use if somebody else has the region since.
            if fabric.process(index) == Some(process) {
                view.processes.push(Seen { guest, pid: process.pid, paths, qps });
            }
        }
    }
    Ok(Some(view))
}

/// Maps what stands before the regions.
fn front(file: &File) -> io::Result<&'static Fabric> {
    // SAFETY: a new mapping, placed by the kernel.
    let at = unsafe {
        let (null, len) = (std::ptr::null_mut(), size_of::<Fabric>());
        libc::mmap(null, len, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0)
    };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: page-aligned, within the file and never unmapped; made of atomics only, of which this module only loads.
    // Its memory is there: whoever made the file has seen to that before it wrote the layout, and a file without a
    // layout is not used.
    Ok(unsafe { &*at.cast::<Fabric>() })
}

/// The QPs that the owner of a region has published.
fn qps(fabric: &Fabric, file: &File, index: usize) -> io::Result<Vec<QpReport>> {
    let mut present = [0; PAGE_WORDS * 8];
    file.read_exact_at(&mut present, (offset_of_region(index) + offset_of!(Region, pages)) as u64)?;
    let page = |at: usize| -> io::Result<Option<[u8; PAGE]>> {
        let number = at / PAGE;
        if word(&present, number / 64 * 8) & 1 << (number % 64) == 0 {
            return Ok(None);
        }
        let mut bytes = [0; PAGE];
        file.read_exact_at(&mut bytes, (offset_of_region(index) + at) as u64)?;
        Ok(Some(bytes))
    };
    // Both are as long, and begin in the same place of a page. (Loom's atomics are longer than real ones.)
    const LIKE: bool = size_of::<PublishedQp>() == size_of::<Sent>()
        && offset_of!(Region, qps) % PAGE == offset_of!(Region, sent) % PAGE;
    const { assert!(LIKE || cfg!(all(loom, test))) };
    let begin = offset_of!(Region, qps);
    let end = begin + size_of::<[PublishedQp; PUBLISHED_QPS]>();
    let mut found = Vec::new();
    for at in (begin / PAGE * PAGE..end).step_by(PAGE) {
        let Some(first) = page(at)? else { continue };
        // A QP that changes just now has another version when it is read again.
        let again = page(at)?.unwrap_or(first);
        let sent = page(at + offset_of!(Region, sent) - begin)?.unwrap_or([0; PAGE]);
        for entry in (0..PAGE).step_by(size_of::<PublishedQp>()) {
            if !(begin..end).contains(&(at + entry)) {
                continue;
            }
            let (first, again, sent) = (&first[entry..], &again[entry..], &sent[entry..]);
            let version = |bytes: &[u8]| word(bytes, offset_of!(PublishedQp, version)) as u32;
            let whole = version(first) == version(again) && version(first) % 2 == 0;
            found.extend(report(if whole { first } else { again }, sent, |peer| fabric.path(index, peer)));
        }
    }
    Ok(found)
}

/// Eight bytes as a word. Those of a shorter one beside it are cut off by who asks.
fn word(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|eight| eight.try_into().ok()).map_or(0, u64::from_ne_bytes)
}

/// What was published of a QP, if there is one.
fn report(qp: &[u8], sent: &[u8], path: impl Fn(&Endpoint) -> Way) -> Option<QpReport> {
    let short = |at: usize| word(qp, at) as u32;
    let qpn = Qpn(short(offset_of!(PublishedQp, qpn)));
    let (kind, state, _) = what_is(short(offset_of!(PublishedQp, what))).filter(|_| qpn.0 != 0)?;
    let gid = offset_of!(PublishedQp, peer_gid);
    let peer = Endpoint {
        gid: to_gid([word(qp, gid), word(qp, gid + 8)]),
        qpn: Qpn(short(offset_of!(PublishedQp, peer_qpn))),
    };
    let connected = kind == QpKind::Rc && !matches!(state, PVRDMA_QPS_RESET | PVRDMA_QPS_INIT);
    let tally = |bytes: &[u8], at: usize| Counted { messages: word(bytes, at), bytes: word(bytes, at + 8) };
    Some(QpReport {
        qpn,
        kind,
        state,
        peer: connected.then_some(peer),
        path: if connected { path(&peer) } else { Way::None },
        sent: tally(sent, offset_of!(Sent, done)),
        received: tally(qp, offset_of!(PublishedQp, received)),
        resent: word(sent, offset_of!(Sent, resent)),
        rnr: word(sent, offset_of!(Sent, rnr)),
    })
}
