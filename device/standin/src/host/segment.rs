//! The shared file: its layout, how a process takes a region of it, how it tells whether another one lives.

use super::bell::Bell;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

/// Regions of a fabric: one for each process. A QP number carries the region in its top 9 bits, counted from 1.
pub const MAX_PROCESSES: usize = 511;
/// Requests that one process may have on their way to one other.
pub const CHANNEL_LEN: usize = 256;
/// Requests that one process may have on their way in all.
pub const SLOTS: usize = 1024;
/// Memory regions of a process that others can use directly; those of further keys go through its inbox.
pub const PUBLISHED_MRS: usize = 16384;
/// QPs of a process.
pub const PUBLISHED_QPS: usize = 32768;
/// Direct copies that one process may have running at once; a further one goes through the inbox.
pub const HAZARDS: usize = 8;
/// Payload that travels inside a slot.
pub const SLOT_SPANS: usize = super::copy::MAX_SPANS;

/// State of a slot, the low bits of its word.
pub mod slot_state {
    /// Its owner may fill it.
    pub const FREE: u64 = 0;
    /// Published in a channel; target and owner race for it by compare-and-swap.
    pub const QUEUED: u64 = 1;
    /// The target works on it.
    pub const TAKEN: u64 = 2;
    /// Answered: bits 4..16 hold the answer.
    pub const DONE: u64 = 3;
}

/// A request on its way, owned by the requester's process. All plain fields are written before the word says QUEUED
/// and not again before it says FREE.
#[repr(C, align(64))]
pub struct Slot {
    /// Bits 0..4 the state, 4..16 the answer, 16..64 the sequence number that no other request of the host has.
    pub word: AtomicU64,
    /// The request, encoded (`transport::encode`).
    pub words: [AtomicU64; 18],
    /// Number of spans.
    pub span_cnt: AtomicU64,
    /// Address and length of each span of payload.
    pub spans: [[AtomicU64; 2]; SLOT_SPANS],
}

/// Requests from the region's owner to one other process, oldest first. A cell is `sequence << 16 | slot`.
#[repr(C)]
pub struct Channel {
    /// Incarnation of the target that the cells are meant for.
    pub target: AtomicU32,
    /// Count of cells ever published.
    pub tail: AtomicU32,
    /// The cells.
    pub cells: [AtomicU64; CHANNEL_LEN],
}

/// What others may know of a memory region. Valid while `key` is not 0.
#[repr(C)]
pub struct PublishedMr {
    /// Written last when added, cleared first when removed.
    pub key: AtomicU32,
    /// PD handle.
    pub pd: AtomicU32,
    /// Access flags.
    pub access: AtomicU64,
    /// First byte.
    pub start: AtomicU64,
    /// Bytes.
    pub length: AtomicU64,
}

/// What others may know of a QP. `version` is odd while it changes.
#[repr(C)]
pub struct PublishedQp {
    /// Counts changes.
    pub version: AtomicU32,
    /// 1: see `QpView::placeable`.
    pub placeable: AtomicU32,
    /// The responder's next expected PSN; advanced by whoever carried a request out.
    pub expected_psn: AtomicU32,
    /// QP number, to tell a reused handle.
    pub qpn: AtomicU32,
    /// PD handle.
    pub pd: AtomicU32,
    /// `qp_access_flags`.
    pub access: AtomicU32,
    /// QP number of its peer.
    pub peer_qpn: AtomicU32,
    reserved: u32,
    /// GID of its peer.
    pub peer_gid: [AtomicU64; 2],
}

/// One process.
#[repr(C)]
pub struct Region {
    /// `incarnation << 32 | pid`; 0 while free.
    pub owner: AtomicU64,
    /// Start time of the process (proc(5): stat, field 22), to tell a reused pid.
    pub started: AtomicU64,
    /// Guest index.
    pub guest: AtomicU32,
    /// 1 when everything is set up.
    pub ready: AtomicU32,
    /// Who sleeps.
    pub bell: Bell,
    /// Bit n: region n has published requests for this process.
    pub inbox: [AtomicU64; 8],
    /// How far this process has read the channel of region n: `incarnation of n << 32 | count`.
    pub heads: [AtomicU64; MAX_PROCESSES],
    /// A copy into or out of the memory of the process with this incarnation is running (0: none).
    pub hazards: [AtomicU64; HAZARDS],
    /// Requests for others.
    pub channels: [Channel; MAX_PROCESSES],
    /// Their bodies.
    pub slots: [Slot; SLOTS],
    /// Memory regions by index (`key >> 8`).
    pub mrs: [PublishedMr; PUBLISHED_MRS],
    /// QPs by handle.
    pub qps: [PublishedQp; PUBLISHED_QPS],
}

/// Version of this layout, so that two builds do not meet in one file.
const LAYOUT: u64 = 0x7076_7264_6d61_0001;

#[repr(C, align(4096))]
struct Fabric {
    /// `LAYOUT` plus the size, set by the first process.
    layout: AtomicU64,
    /// Next incarnation to give out.
    incarnation: AtomicU32,
    regions: [Region; MAX_PROCESSES],
}

/// The mapped fabric and this process's region in it.
pub struct Segment {
    fabric: &'static Fabric,
    own: usize,
    incarnation: u32,
}

/// A process as seen now; it may be gone the next moment, and then its words no longer match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Region.
    pub index: usize,
    /// See `Region::owner`.
    pub incarnation: u32,
    /// Process id.
    pub pid: libc::pid_t,
}

fn split(owner: u64) -> (u32, libc::pid_t) {
    ((owner >> 32) as u32, owner as u32 as libc::pid_t)
}

impl Segment {
    /// Maps the fabric below `dir`, making it if need be, and takes a free region for `guest`.
    pub fn join(dir: &Path, guest: u32) -> io::Result<Segment> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_CLOEXEC)
            .open(dir.join("fabric"))?;
        // Sparse: only pages that somebody touched take memory.
        if file.metadata()?.len() < size_of::<Fabric>() as u64 {
            file.set_len(size_of::<Fabric>() as u64)?;
        }
        // SAFETY: a new mapping, placed by the kernel, of a file that is as long as `Fabric`. It is never unmapped.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size_of::<Fabric>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_NORESERVE,
                file.as_raw_fd(),
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the mapping just made. A child of fork has no business in the fabric.
        unsafe { libc::madvise(at, size_of::<Fabric>(), libc::MADV_DONTFORK) };
        // SAFETY: page-aligned, long enough, mapped for the rest of the process's life, and made of atomics only (an
        // all-zero file is a valid value), so that writes by other processes are no data races.
        let fabric: &'static Fabric = unsafe { &*at.cast::<Fabric>() };
        let layout = LAYOUT ^ (size_of::<Fabric>() as u64) << 8;
        let found = fabric.layout.compare_exchange(0, layout, Ordering::AcqRel, Ordering::Acquire);
        if found.is_err_and(|found| found != layout) {
            return Err(io::Error::other("the fabric of this host was made by another version"));
        }
        let incarnation = fabric.incarnation.fetch_add(1, Ordering::Relaxed).wrapping_add(1).max(1);
        let own = claim(fabric, incarnation)?;
        // The former owner's words are of no use to anyone: give their pages back, which zeroes them.
        let header = std::mem::offset_of!(Region, inbox);
        let start = &raw const fabric.regions[own] as usize - at as usize;
        zero(&file, fabric, own, start + header, start + size_of::<Region>());
        let region = &fabric.regions[own];
        region.bell.reset();
        region.started.store(started(own_pid()).unwrap_or(0), Ordering::Relaxed);
        region.guest.store(guest, Ordering::Relaxed);
        region.ready.store(1, Ordering::SeqCst);
        Ok(Segment { fabric, own, incarnation })
    }

    /// This process's region.
    pub fn own(&self) -> &'static Region {
        &self.fabric.regions[self.own]
    }

    /// Its number.
    pub fn index(&self) -> usize {
        self.own
    }

    /// This process's incarnation.
    pub fn incarnation(&self) -> u32 {
        self.incarnation
    }

    /// Region `index`, whoever owns it.
    pub fn region(&self, index: usize) -> Option<&'static Region> {
        self.fabric.regions.get(index)
    }

    /// Who owns region `index` now.
    pub fn process(&self, index: usize) -> Option<Process> {
        let region = self.region(index)?;
        if region.ready.load(Ordering::SeqCst) == 0 {
            return None;
        }
        let (incarnation, pid) = split(region.owner.load(Ordering::SeqCst));
        (incarnation != 0).then_some(Process { index, incarnation, pid })
    }

    /// Whether `process` still owns its region and runs.
    pub fn alive(&self, process: Process) -> bool {
        let Some(region) = self.region(process.index) else { return false };
        self.process(process.index) == Some(process) && runs(process.pid, region.started.load(Ordering::Relaxed))
    }

    /// Waits until no other process copies directly to or from this one's memory on the grounds of what it saw
    /// before this call. What must no longer be used has to be unpublished before.
    pub fn wait_for_hazards(&self) {
        // SeqCst, against `Hazard::new`: either the copier sees what was unpublished, or we see its hazard.
        fence(Ordering::SeqCst);
        for index in 0..MAX_PROCESSES {
            let Some(process) = self.process(index).filter(|_| index != self.own) else { continue };
            for hazard in &self.fabric.regions[index].hazards {
                let mut spins = 0u32;
                while hazard.load(Ordering::SeqCst) == u64::from(self.incarnation) {
                    spins += 1;
                    // SAFETY: no preconditions.
                    unsafe { libc::sched_yield() };
                    // A killed copier does not copy; asking is dear, so not at once.
                    if spins.is_multiple_of(4096) && !self.alive(process) {
                        break;
                    }
                }
            }
        }
    }

    /// Gives the region back.
    pub fn leave(&self) {
        let region = self.own();
        region.ready.store(0, Ordering::SeqCst);
        region.owner.store(0, Ordering::SeqCst);
    }
}

/// Says to the target that a copy is running, until dropped.
pub struct Hazard(&'static AtomicU64);

impl Hazard {
    /// `None`: all are taken.
    pub fn new(own: &'static Region, target: Process) -> Option<Hazard> {
        let free = own.hazards.iter().find(|hazard| {
            hazard.compare_exchange(0, u64::from(target.incarnation), Ordering::SeqCst, Ordering::Relaxed).is_ok()
        })?;
        fence(Ordering::SeqCst);
        Some(Hazard(free))
    }
}

impl Drop for Hazard {
    fn drop(&mut self) {
        // Release: the copy is over before the target sees the hazard gone.
        self.0.store(0, Ordering::Release);
    }
}

fn own_pid() -> libc::pid_t {
    // SAFETY: no preconditions.
    unsafe { libc::getpid() }
}

/// Takes a region that is free or whose owner is dead (or was this very process before an exec).
fn claim(fabric: &Fabric, incarnation: u32) -> io::Result<usize> {
    let pid = own_pid();
    let mine = u64::from(incarnation) << 32 | pid as u32 as u64;
    for dead_too in [false, true] {
        for (index, region) in fabric.regions.iter().enumerate() {
            let owner = region.owner.load(Ordering::SeqCst);
            let former = split(owner).1;
            let free = owner == 0 || former == pid || dead_too && !runs(former, region.started.load(Ordering::Relaxed));
            if free && region.owner.compare_exchange(owner, mine, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
                region.ready.store(0, Ordering::SeqCst);
                return Ok(index);
            }
        }
    }
    Err(io::Error::from_raw_os_error(libc::EUSERS))
}

/// Zeroes `[start, end)` of the file: whole pages by a hole, the edges by hand.
fn zero(file: &std::fs::File, fabric: &Fabric, own: usize, start: usize, end: usize) {
    let base = std::ptr::from_ref(fabric) as usize;
    let (first, last) = (start.next_multiple_of(4096), end & !4095);
    let words = |from: usize, to: usize| {
        for at in (from..to).step_by(8) {
            // SAFETY: within region `own` of the fabric, which this process owns; 8-aligned, as all members of a
            // region from `inbox` on are; atomics, so that a late reader of the former owner's words is no data race.
            unsafe { AtomicU64::from_ptr((base + at) as *mut u64) }.store(0, Ordering::Relaxed);
        }
    };
    debug_assert!(own < MAX_PROCESSES && start.is_multiple_of(8) && end.is_multiple_of(8));
    words(start, first.min(end));
    words(last.max(start), end);
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: our file; a hole reads as zeros through every mapping.
    let punched = unsafe {
        libc::fallocate(file.as_raw_fd(), mode, first as libc::off_t, last.saturating_sub(first) as libc::off_t)
    };
    if punched != 0 {
        // A file system without holes (not tmpfs).
        words(first, last);
    }
}

/// Whether process `pid` that started at `started` still runs. A zombie does not.
fn runs(pid: libc::pid_t, started_at: u64) -> bool {
    // Not known yet: the process is about to write it.
    started_at == 0 && pid != 0 && std::fs::exists(format!("/proc/{pid}")).unwrap_or(false)
        || started_at != 0 && started(pid) == Some(started_at)
}

/// Start time of a process that is neither gone nor a zombie (proc(5): stat, fields 3 and 22).
fn started(pid: libc::pid_t) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses and may hold anything.
    let mut fields = stat.get(stat.rfind(')')? + 2..)?.split(' ');
    let state = fields.next()?;
    if matches!(state, "Z" | "X" | "x") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zombie_does_not_run() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id() as libc::pid_t;
        let at = started(pid).expect("it runs");
        assert!(runs(pid, at));
        assert!(!runs(pid, at + 1), "another process with a reused pid");
        child.kill().unwrap();
        while started(pid).is_some() {
            std::thread::yield_now();
        }
        assert!(!runs(pid, at), "killed, not reaped");
        child.wait().unwrap();
        assert!(!runs(pid, at));
    }

    #[test]
    fn every_member_is_aligned_for_zeroing() {
        assert_eq!(std::mem::offset_of!(Region, inbox) % 8, 0);
        assert_eq!(size_of::<Region>() % 8, 0);
    }
}
