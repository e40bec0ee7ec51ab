//! The shared file: its layout, how a process takes a region of it, how it tells whether another one lives. What there
//! is to be seen of others is in `segment/view.rs`.

pub mod view;

use crate::bell::Bell;
use crate::guard::Guard;
use crate::say::say;
use crate::section;
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::words::REQUEST_WORDS;
use pvrdma_device::guest::{Guest, Roce};
use pvrdma_device::handle::Gid;
use pvrdma_device::transport::figures::{Sent, Tally};
use pvrdma_device::transport::path::Paths;
use pvrdma_device::transport::{Endpoint, Path as Way};
use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::io;
use std::mem::offset_of;
use std::os::fd::{AsRawFd, IntoRawFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicPtr};

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
/// Most spans of a payload: a WQE has at most 16 SGEs and each is one span in a process.
pub const SLOT_SPANS: usize = 16;

/// Low bits of a QP number: the handle. The rest is the region, counted from 1.
pub(crate) const HANDLE_BITS: u32 = 15;

/// In place of a guest's index: the process that carries requests to other hosts (`gateway.rs`).
pub const GATEWAY: u32 = u32::MAX;

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
    /// The request, encoded (`words.rs`).
    pub words: [AtomicU64; REQUEST_WORDS],
    /// Number of spans.
    pub span_cnt: AtomicU64,
    /// Address and length of each span of payload.
    pub spans: [[AtomicU64; 2]; SLOT_SPANS],
}

/// Room for the payload of a datagram.
pub type SlotPayload = [AtomicU64; 512];

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

/// What others may know of a QP. `version` is odd while it changes. It is one line of the cache: who carries a request
/// out for it looks here, and writes what it counts where it writes the PSN.
#[repr(C, align(64))]
pub struct PublishedQp {
    /// Counts changes.
    pub version: AtomicU32,
    /// 1: see `QpView::placeable`.
    pub placeable: AtomicU32,
    /// The responder's next expected PSN; advanced by whoever carried a request out.
    pub expected_psn: std::sync::atomic::AtomicU32,
    /// QP number, to tell a reused handle.
    pub qpn: AtomicU32,
    /// PD handle.
    pub pd: AtomicU32,
    /// `qp_access_flags`.
    pub access: AtomicU32,
    /// QP number of its peer.
    pub peer_qpn: AtomicU32,
    /// For who watches: service type (bits 8..) and state.
    pub what: AtomicU32,
    /// GID of its peer.
    pub peer_gid: [AtomicU64; 2],
    /// Requests of its peer; counted by whoever carried them out.
    pub received: Tally,
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<PublishedQp>() == 64 && size_of::<Sent>() == 64);

/// What everybody looks at of every process.
#[repr(C, align(64))]
struct Seat {
    /// Whose it is: an `Owner`, or 0 while it is free.
    owner: AtomicU64,
    /// Guest index.
    guest: AtomicU32,
    /// Number of the guest's host, the same in all seats. Others look at it only once the owner is ready.
    host: AtomicU32,
    /// The paths by which it may be reached: `Paths::bits`.
    paths: AtomicU32,
    /// Held by the owner's side thread.
    guard: Guard,
    /// Copies into or out of the memory of other processes that are running (`hazard.rs`; 0: none). The last is that of
    /// whoever empties the inbox.
    hazards: [AtomicU64; HAZARDS + 1],
}

/// Pages of a region, in words of bits; more than there are.
const PAGE_WORDS: usize = 48;
const PAGE: usize = 4096;

/// One process: what those look at who have to do with it.
#[repr(C, align(4096))]
pub struct Region {
    /// Who sleeps.
    pub bell: Bell,
    /// Bit n: region n has published requests for this process.
    pub inbox: [AtomicU64; 8],
    /// Bit n: page n of the region has memory. It is a file: who touches a page for which there is none is killed.
    pages: [AtomicU64; PAGE_WORDS],
    /// How far this process has read the channel of region n: `incarnation of n << 32 | count`.
    pub heads: [AtomicU64; MAX_PROCESSES],
    /// Requests for others.
    pub channels: [Channel; MAX_PROCESSES],
    /// Their bodies.
    pub slots: [Slot; SLOTS],
    /// Payloads of datagrams, by slot.
    pub payloads: [SlotPayload; SLOTS],
    /// Memory regions by index (`key >> 8`).
    pub mrs: [PublishedMr; PUBLISHED_MRS],
    /// QPs by handle.
    pub qps: [PublishedQp; PUBLISHED_QPS],
    /// What they have asked for, for who watches.
    pub sent: [Sent; PUBLISHED_QPS],
}

/// Version of this layout, so that two builds do not meet in one file.
const LAYOUT: u64 = 0x7076_7264_6d61_000b;

/// The front of the shared file.
#[repr(C, align(4096))]
pub struct Fabric {
    /// `LAYOUT` plus the size, set by the first process.
    layout: AtomicU64,
    /// Next incarnation to give out.
    incarnation: AtomicU32,
    /// Regions from this one on were never used.
    used: AtomicU32,
    /// The PID namespace of all who own a region: the numbers of another one name other processes.
    pid_namespace: AtomicU64,
    /// Who carries requests to other hosts: region, counted from 1 (bits 32..), and incarnation. 0: nobody does.
    gateway: AtomicU64,
    /// How often it has looked after what guests have for other hosts. Nothing is ordered by it.
    rounds: std::sync::atomic::AtomicU64,
    /// Bit n: it has a link to host n. Nothing is ordered by it.
    linked: [std::sync::atomic::AtomicU64; 4],
    seats: [Seat; MAX_PROCESSES],
}

/// The regions follow in the file, one after the other.
const FILE_LEN: u64 = (size_of::<Fabric>() + MAX_PROCESSES * size_of::<Region>()) as u64;

/// Who owns a region, in one word, so that a region never seems to belong to a mixture of two processes, whatever
/// instruction one of them is killed in: pid (bits 0..22), whether all is set up (22), low bits of the start time, to
/// tell a reused pid (23..40), incarnation (40..64).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Owner(u64);

impl Owner {
    const READY: u64 = 1 << 22;

    fn new(incarnation: u32, pid: libc::pid_t, started: u64) -> Owner {
        Owner(u64::from(incarnation) << 40 | (started & 0x1_ffff) << 23 | pid as u64 & 0x3f_ffff)
    }

    fn ready(self) -> Owner {
        Owner(self.0 | Owner::READY)
    }

    fn is_ready(self) -> bool {
        self.0 & Owner::READY != 0
    }

    /// Below 2^22 (threads.h: PID_MAX_LIMIT).
    fn pid(self) -> libc::pid_t {
        (self.0 & 0x3f_ffff) as libc::pid_t
    }

    fn incarnation(self) -> u32 {
        (self.0 >> 40) as u32
    }

    /// Whether the process still runs. A zombie does not.
    fn runs(self) -> bool {
        match started(self.pid()) {
            Ok(started) => started.is_some_and(|started| self.0 >> 23 & 0x1_ffff == started & 0x1_ffff),
            // A program may have no descriptor left to look it up with: that somebody has the number must do.
            Err(_) => !is_nobody(self.pid()),
        }
    }
}

/// The fabric as far as it is mapped, and this process's region in it.
pub struct Segment {
    fabric: &'static Fabric,
    /// Hidden from the program.
    file: RawFd,
    /// Regions by index; null until somebody has to do with one. All of them are gigabytes of address space, which is
    /// much for a debugger or a core file, and some tools look at every page that is mapped.
    regions: Box<[AtomicPtr<Region>]>,
    own: usize,
    own_region: &'static Region,
    owner: Owner,
    host: u8,
    paths: Paths,
    /// By which path others of this host are reached from here: from other hosts, if this is the gateway.
    inwards: Paths,
    /// When a process was last seen alive, by region: incarnation in bits 40..64, milliseconds below.
    seen: Box<[AtomicU64]>,
}

/// A process as seen now; it may be gone the next moment, and then its words no longer match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Region.
    pub index: usize,
    /// Number of this process among all that ever joined the fabric; 24 bits.
    pub incarnation: u32,
    /// Process id.
    pub pid: libc::pid_t,
    owner: Owner,
}

/// A process that was seen alive so many milliseconds ago still has its pid: the kernel gives a number out again only
/// when it has come past all others, of which there are 300 at the very least.
const SURE: u64 = 20;

impl Segment {
    /// Maps the fabric below `dir`, making it if need be, and takes a free region for `guest` of the host with number
    /// `host`, which uses `paths` and no others. `hide` takes the file's descriptor out of the program's reach and
    /// returns its new number.
    pub fn join(dir: &Path, host: u8, guest: u32, paths: Paths, hide: fn(RawFd) -> RawFd) -> io::Result<Segment> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_CLOEXEC)
            .open(dir.join("fabric"))?;
        // Sparse: only pages that somebody touched take memory.
        if file.metadata()?.len() < FILE_LEN {
            if file_size_limit() < FILE_LEN {
                return Err(io::Error::from_raw_os_error(libc::EFBIG));
            }
            file.set_len(FILE_LEN)?;
        }
        allocate(file.as_raw_fd(), 0, size_of::<Fabric>())?;
        // SAFETY: page-aligned, mapped for the rest of the process's life, and made of atomics only (an all-zero file
        // is a valid value), so that writes by other processes are no data races.
        let fabric: &'static Fabric = unsafe { &*map(file.as_raw_fd(), 0, size_of::<Fabric>())?.cast::<Fabric>() };
        let layout = LAYOUT ^ FILE_LEN << 8;
        let found = fabric.layout.compare_exchange(0, layout, Ordering::AcqRel, Ordering::Acquire);
        if found.is_err_and(|found| found != layout) {
            return Err(io::Error::other("the fabric of this host was made by another version"));
        }
        section::prepare();
        let started = started(own_pid())?.ok_or_else(|| io::Error::other("/proc does not show this process"))?;
        let incarnation = (fabric.incarnation.fetch_add(1, Ordering::Relaxed).wrapping_add(1) & 0xff_ffff).max(1);
        let owner = Owner::new(incarnation, own_pid(), started);
        let namespace = pid_namespace();
        fabric.enter(namespace)?;
        fabric.agree(host)?;
        let own = claim(fabric, owner)?;
        if fabric.pid_namespace.load(Ordering::SeqCst) != namespace {
            // Somebody else found it empty a moment ago.
            fabric.seats[own].owner.store(0, Ordering::SeqCst);
            return Err(other_namespace());
        }
        // The former owner's words are of no use to anyone: give their pages back, which zeroes them.
        let punched = punch(&file, offset_of_region(own), size_of::<Region>());
        let regions: Box<[AtomicPtr<Region>]> = (0..MAX_PROCESSES).map(|_| AtomicPtr::default()).collect();
        if let Err(error) = allocate(file.as_raw_fd(), offset_of_region(own), offset_of!(Region, channels)) {
            fabric.seats[own].owner.store(0, Ordering::SeqCst);
            return Err(error);
        }
        let file = hide(file.into_raw_fd());
        let own_region = region(&regions, file, own).ok_or_else(io::Error::last_os_error)?;
        if !punched {
            own_region.clear();
        }
        let seat = &fabric.seats[own];
        seat.hazards.iter().for_each(|hazard| hazard.store(0, Ordering::Relaxed));
        seat.guest.store(guest, Ordering::Relaxed);
        seat.host.store(host.into(), Ordering::Relaxed);
        seat.paths.store(paths.bits(), Ordering::Relaxed);
        seat.guard.clear();
        let owner = owner.ready();
        seat.owner.store(owner.0, Ordering::SeqCst);
        // Somebody else may have come since. Each of us looks when it can be seen itself, so not both stay.
        if let Err(error) = fabric.agree(host) {
            seat.owner.store(0, Ordering::SeqCst);
            return Err(error);
        }
        let seen = (0..MAX_PROCESSES).map(|_| AtomicU64::new(0)).collect();
        let inwards = inwards(guest);
        Ok(Segment { fabric, file, regions, own, own_region, owner, host, paths, inwards, seen })
    }

    /// This process's region.
    pub fn own(&self) -> &'static Region {
        self.own_region
    }

    /// Its number.
    pub fn index(&self) -> usize {
        self.own
    }

    /// This process's incarnation.
    pub fn incarnation(&self) -> u32 {
        self.owner.incarnation()
    }

    /// Region `index`, whoever owns it.
    pub fn region(&self, index: usize) -> Option<&'static Region> {
        region(&self.regions, self.file, index)
    }

    /// Has memory put behind a part of the own region, before it is touched. `false`: there is none left.
    pub fn reserve<T>(&self, part: &T) -> bool {
        if cfg!(all(loom, test)) {
            return true;
        }
        pages_of(self.own_region, part).all(|page| {
            let (word, bit) = (&self.own_region.pages[page / 64], 1 << (page % 64));
            if word.load(Ordering::Relaxed) & bit != 0 {
                return true;
            }
            let allocated = allocate(self.file, offset_of_region(self.own) + page * PAGE, PAGE);
            if let Err(error) = &allocated {
                say_once(error);
                return false;
            }
            // Release: others touch the page because they see it here.
            word.fetch_or(bit, Ordering::Release);
            true
        })
    }

    /// Who owns region `index` now.
    pub fn process(&self, index: usize) -> Option<Process> {
        self.fabric.process(index)
    }

    /// The same, or who owned it and has ended without giving it back, so that its words are still there.
    pub fn last_process(&self, index: usize) -> Option<Process> {
        self.fabric.last_process(index)
    }

    /// The calling thread ends with the process's memory, and not before: see `guard.rs`.
    pub fn guard(&self) {
        self.fabric.seats[self.own].guard.hold();
    }

    /// By which number the memory of `process` is reached: a thread's that has it.
    pub fn reach(&self, process: Process) -> libc::pid_t {
        self.fabric.seats[process.index].guard.thread().unwrap_or(process.pid)
    }

    /// Number of the host that all guests here belong to.
    pub fn host(&self) -> u8 {
        self.host
    }

    /// The guest that `process` belongs to; its encapsulation is not known here, and the default one is put in.
    pub fn guest(&self, process: Process) -> Option<Guest> {
        self.fabric.guest(process.index, self.host)
    }

    /// Whether `process` takes something in that comes this way, and this one may send it.
    pub fn may_reach(&self, process: Process) -> bool {
        let theirs = Paths::from_bits(self.fabric.seats[process.index].paths.load(Ordering::Relaxed));
        self.paths.and(theirs).and(self.inwards) == self.inwards
    }

    /// The paths that this process may use.
    pub fn paths(&self) -> Paths {
        self.paths
    }

    /// Regions that somebody owns or once owned.
    pub fn used(&self) -> std::ops::Range<usize> {
        self.fabric.used()
    }

    /// The guests that the processes of this host belong to, with repeats.
    pub fn guests(&self) -> impl Iterator<Item = Guest> + '_ {
        self.used().filter_map(|index| self.guest(self.process(index)?))
    }

    /// Whether an address is that of another host's guest.
    pub fn is_elsewhere(&self, gid: &Gid) -> bool {
        Guest::of(gid).is_some_and(|guest| guest.host() != self.host)
    }

    /// Whether `process` still owns its region and runs.
    pub fn alive(&self, process: Process) -> bool {
        self.fabric.alive(process)
    }

    /// Whether the pid of `process` is still its own, so that its memory may be touched: `alive`, really asked only now
    /// and then, because that is dear. A killed process leaves its region as it was, and its pid goes to a stranger.
    pub fn has_its_pid(&self, process: Process) -> bool {
        const TIME: u64 = (1 << 40) - 1;
        let Some(seen) = self.seen.get(process.index) else { return false };
        let now = crate::bell::now() / 1_000_000;
        let last = seen.load(Ordering::Relaxed);
        if last >> 40 == u64::from(process.incarnation) && now.wrapping_sub(last) & TIME <= SURE {
            return self.process(process.index) == Some(process);
        }
        let alive = self.alive(process);
        if alive {
            seen.store(u64::from(process.incarnation) << 40 | now & TIME, Ordering::Relaxed);
        }
        alive
    }

    /// The words of region `index` that say what copies its owner has running (`hazard.rs`).
    pub fn hazards(&self, index: usize) -> &'static [AtomicU64; HAZARDS + 1] {
        &self.fabric.seats[index].hazards
    }

    /// The calling thread, by its number in `/proc`.
    pub fn thread(&self) -> u32 {
        thread_local! {
            /// With its process: a child of fork inherits this.
            static KNOWN: Cell<(libc::pid_t, u32)> = const { Cell::new((0, 0)) };
        }
        let (pid, thread) = KNOWN.get();
        if pid == self.owner.pid() {
            return thread;
        }
        let thread = section::thread() as u32;
        KNOWN.set((self.owner.pid(), thread));
        thread
    }

    /// Who carries requests to other hosts.
    pub fn gateway(&self) -> Option<Process> {
        self.fabric.gateway()
    }

    /// The same, if this process may use it.
    pub(crate) fn way_out(&self) -> Option<Process> {
        if self.paths.tcp() { self.gateway() } else { None }
    }

    /// The gateway has a link to a host, or has it no longer.
    pub fn set_linked(&self, host: u8, linked: bool) {
        let (word, bit) = (&self.fabric.linked[usize::from(host / 64)], 1 << (host % 64));
        match linked {
            true => word.fetch_or(bit, Ordering::Relaxed),
            false => word.fetch_and(!bit, Ordering::Relaxed),
        };
    }

    /// From now on this process does. It has joined as [`GATEWAY`].
    pub fn become_gateway(&self) {
        // Those of one that was killed.
        self.fabric.linked.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        self.fabric.gateway.store((self.own as u64 + 1) << 32 | u64::from(self.incarnation()), Ordering::Release);
    }

    /// The process that carries requests to other hosts looks after them. It says so often while there are some.
    pub fn gateway_goes_round(&self) {
        self.fabric.rounds.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn gateway_rounds(&self) -> u64 {
        self.fabric.rounds.load(Ordering::Relaxed)
    }

    /// It does no longer.
    pub fn resign_gateway(&self) {
        let own = (self.own as u64 + 1) << 32 | u64::from(self.incarnation());
        let _ = self.fabric.gateway.compare_exchange(own, 0, Ordering::Release, Ordering::Relaxed);
    }

    /// Gives the region back.
    pub fn leave(&self) {
        self.fabric.seats[self.own].owner.store(0, Ordering::SeqCst);
    }
}

fn inwards(guest: u32) -> Paths {
    Paths::from_bits(match guest {
        GATEWAY => 1 << Way::Tcp { host: 0 }.code(),
        _ => 1 << Way::Memory.code(),
    })
}

fn own_pid() -> libc::pid_t {
    // SAFETY: no preconditions.
    unsafe { libc::getpid() }
}

/// Takes a region that is free or whose owner is dead (or was this very process before an exec).
fn claim(fabric: &Fabric, owner: Owner) -> io::Result<usize> {
    // Whether a process that has this pid is still the same one is a dearer question, and asked only when it must be.
    for thorough in [false, true] {
        for (index, seat) in fabric.seats.iter().enumerate() {
            let found = Owner(seat.owner.load(Ordering::SeqCst));
            let free = found.0 == 0
                || found.pid() == owner.pid()
                || is_nobody(found.pid())
                || thorough && is_over(seat, found);
            if !free {
                continue;
            }
            // Before the region can be seen to be ours: see `hazard::wait_for_all`.
            fabric.used.fetch_max(index as u32 + 1, Ordering::SeqCst);
            if seat.owner.compare_exchange(found.0, owner.0, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
                return Ok(index);
            }
        }
    }
    Err(io::Error::from_raw_os_error(libc::EUSERS))
}

/// Whether the owner of a seat has ended, with all its threads.
fn is_over(seat: &Seat, found: Owner) -> bool {
    !found.runs() && seat.guard.thread().is_none()
}

/// Whether no process has this pid, not even a zombie.
fn is_nobody(pid: libc::pid_t) -> bool {
    // SAFETY: signal 0 is none; only the existence is asked for.
    let found = unsafe { libc::kill(pid, 0) } == 0;
    !found && io::Error::last_os_error().raw_os_error() == Some(libc::ESRCH)
}

/// The region that a QP number names.
pub(crate) fn region_of(peer: &Endpoint) -> Option<usize> {
    (peer.qpn.0 >> HANDLE_BITS).checked_sub(1).map(|index| index as usize)
}

fn offset_of_region(index: usize) -> usize {
    size_of::<Fabric>() + index * size_of::<Region>()
}

/// Region `index`, mapped if it was not yet.
fn region(regions: &[AtomicPtr<Region>], file: RawFd, index: usize) -> Option<&'static Region> {
    let place = regions.get(index)?;
    let mut at = place.load(Ordering::Acquire);
    if at.is_null() {
        at = map(file, offset_of_region(index), size_of::<Region>()).ok()?.cast();
        if let Err(first) = place.compare_exchange(std::ptr::null_mut(), at, Ordering::AcqRel, Ordering::Acquire) {
            // SAFETY: the mapping just made, which nobody else knows.
            unsafe { libc::munmap(at.cast(), size_of::<Region>()) };
            at = first;
        }
    }
    // SAFETY: page-aligned, mapped for the rest of the process's life, and made of atomics only, as `Fabric`.
    Some(unsafe { &*at })
}

/// Maps `len` bytes of the file, for good.
fn map(file: RawFd, offset: usize, len: usize) -> io::Result<*mut libc::c_void> {
    let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_NORESERVE);
    // SAFETY: a new mapping, placed by the kernel.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, file, offset as libc::off_t) };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the mapping just made. A child of fork has no business in the fabric.
    unsafe { libc::madvise(at, len, libc::MADV_DONTFORK) };
    Ok(at)
}

/// Gives pages of the file back; they read as zeros then, through every mapping. `false`: this file system cannot.
fn punch(file: &File, offset: usize, len: usize) -> bool {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: no pointers; our file.
    unsafe { libc::fallocate(file.as_raw_fd(), mode, offset as libc::off_t, len as libc::off_t) == 0 }
}

/// Has memory put behind a part of the file. File systems that cannot tell beforehand are believed to have some.
fn allocate(file: RawFd, offset: usize, len: usize) -> io::Result<()> {
    // SAFETY: no pointers; our file.
    let failed =
        unsafe { libc::fallocate(file, libc::FALLOC_FL_KEEP_SIZE, offset as libc::off_t, len as libc::off_t) != 0 };
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG | libc::ENOMEM) if failed => Err(error),
        _ => Ok(()),
    }
}

/// Pages of `region` that a part of it lies in.
fn pages_of<T>(region: &Region, part: &T) -> std::ops::RangeInclusive<usize> {
    let offset = std::ptr::from_ref(part) as usize - std::ptr::from_ref(region) as usize;
    offset / PAGE..=(offset + size_of::<T>() - 1) / PAGE
}

fn say_once(error: &io::Error) {
    static SAID: AtomicBool = AtomicBool::new(false);
    if !SAID.swap(true, Ordering::Relaxed) {
        say(format_args!("the run directory's file system: {error}"));
    }
}

/// Beyond it a file may not grow: the attempt costs the program its life (SIGXFSZ).
fn file_size_limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is ours.
    match unsafe { libc::getrlimit(libc::RLIMIT_FSIZE, &mut limit) } {
        0 => limit.rlim_cur,
        _ => u64::MAX,
    }
}

/// Names the PID namespace of this process; 0: nobody knows.
fn pid_namespace() -> u64 {
    std::fs::metadata("/proc/self/ns/pid").map_or(0, |namespace| namespace.ino())
}

fn other_namespace() -> io::Error {
    io::Error::other(
        "processes of another PID namespace use it, perhaps a container's; give each namespace its XDG_RUNTIME_DIR",
    )
}

fn other_host(number: u32) -> io::Error {
    let theirs = match number {
        0 => "without a number".to_owned(),
        number => format!("with number {number}"),
    };
    io::Error::other(format!("processes of a host {theirs} use it; end them first"))
}

impl Fabric {
    /// See [`Segment::process`].
    fn process(&self, index: usize) -> Option<Process> {
        self.last_process(index).filter(|process| !self.seats[process.index].guard.has_died())
    }

    /// See [`Segment::last_process`].
    fn last_process(&self, index: usize) -> Option<Process> {
        let owner = Owner(self.seats.get(index)?.owner.load(Ordering::SeqCst));
        let process = Process { index, incarnation: owner.incarnation(), pid: owner.pid(), owner };
        owner.is_ready().then_some(process)
    }

    /// See [`Segment::guest`].
    fn guest(&self, index: usize, host: u8) -> Option<Guest> {
        let index = self.seats.get(index)?.guest.load(Ordering::Relaxed);
        Guest::new(host, u8::try_from(index).ok()?, Roce::default())
    }

    /// See [`Segment::used`].
    fn used(&self) -> std::ops::Range<usize> {
        0..(self.used.load(Ordering::SeqCst) as usize).min(MAX_PROCESSES)
    }

    /// See [`Segment::alive`].
    fn alive(&self, process: Process) -> bool {
        // A first thread that has ended is a zombie, and others may go on.
        let goes_on = || {
            let thread = self.seats[process.index].guard.thread();
            // SAFETY: signal 0 is none; only the existence is asked for.
            thread.is_some_and(|thread| unsafe { libc::syscall(libc::SYS_tgkill, process.pid, thread, 0) } == 0)
        };
        self.process(process.index) == Some(process) && (process.owner.runs() || goes_on())
    }

    /// See [`Segment::gateway`].
    fn gateway(&self) -> Option<Process> {
        let word = self.gateway.load(Ordering::Acquire);
        let process = self.process((word >> 32).checked_sub(1)? as usize)?;
        (process.incarnation == word as u32).then_some(process)
    }

    /// Makes sure that no process of a host with another number owns a region and is there to use it. One that is not
    /// ready yet will ask this itself.
    fn agree(&self, host: u8) -> io::Result<()> {
        let others = |seat: &Seat| {
            let found = Owner(seat.owner.load(Ordering::SeqCst));
            let number = seat.host.load(Ordering::Relaxed);
            let differs = found.is_ready() && number != u32::from(host);
            let lives = differs && !seat.guard.has_died() && !is_over(seat, found);
            (lives && seat.owner.load(Ordering::SeqCst) == found.0).then_some(number)
        };
        self.seats.iter().find_map(others).map_or(Ok(()), |number| Err(other_host(number)))
    }

    /// Makes sure that all who own regions see the same PIDs.
    fn enter(&self, namespace: u64) -> io::Result<()> {
        let owners =
            || self.seats.iter().map(|seat| Owner(seat.owner.load(Ordering::SeqCst))).filter(|owner| owner.0 != 0);
        let mut found = self.pid_namespace.load(Ordering::SeqCst);
        while found != namespace {
            if found != 0 && owners().next().is_some() {
                // Or it is one of ours, who came in just now: that changed the name before there was an owner.
                let now = self.pid_namespace.load(Ordering::SeqCst);
                if now == found {
                    return Err(other_namespace());
                }
                found = now;
                continue;
            }
            let named = self.pid_namespace.compare_exchange(found, namespace, Ordering::SeqCst, Ordering::SeqCst);
            match named {
                Err(now) => found = now,
                // Somebody of the namespace that was there may have come in just before. To us he does not run; those
                // of ours who come in just after do.
                Ok(_) if found != 0 && owners().any(|owner| !owner.runs()) => {
                    let _ = self.pid_namespace.compare_exchange(namespace, found, Ordering::SeqCst, Ordering::SeqCst);
                    return Err(other_namespace());
                }
                Ok(_) => return Ok(()),
            }
        }
        Ok(())
    }
}

impl Region {
    /// Whether a part of it may be touched.
    pub fn has<T>(&self, part: &T) -> bool {
        cfg!(all(loom, test))
            || pages_of(self, part).all(|page| self.pages[page / 64].load(Ordering::Acquire) & 1 << (page % 64) != 0)
    }

    /// The same by hand.
    fn clear(&self) {
        let words = std::ptr::from_ref(self).cast::<u64>().cast_mut();
        for n in 0..size_of::<Region>() / 8 {
            // SAFETY: within this region, aligned, and nothing but atomics, so that a late reader of the former owner's
            // words is no data race.
            unsafe { AtomicU64::from_ptr(words.add(n)) }.store(0, Ordering::Relaxed);
        }
    }
}

/// Start time of a process (proc(5): stat, fields 3 and 22); `None` if it is gone or a zombie.
fn started(pid: libc::pid_t) -> io::Result<Option<u64>> {
    let stat = match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        // It went between open and read.
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
        stat => stat?,
    };
    // The second field is the program's name in parentheses and may hold anything.
    let mut fields = stat.rsplit(')').next().unwrap_or_default().trim_start().split(' ');
    if matches!(fields.next(), None | Some("" | "Z" | "X" | "x")) {
        return Ok(None);
    }
    Ok(fields.nth(18).and_then(|field| field.parse().ok()))
}

/// Several processes in one, over memory of their own, for tests and models. They all have this process's pid.
#[cfg(test)]
pub mod by_hand {
    use super::*;

    /// A file for two.
    pub fn file() -> (&'static Fabric, [&'static Region; 2]) {
        (zeroed(), [zeroed(), zeroed()])
    }

    /// Memory of a `T` that is made of atomics.
    fn zeroed<T>() -> &'static T {
        // SAFETY: fresh pages; zeros are a `T`.
        unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            let prot = libc::PROT_READ | libc::PROT_WRITE;
            let at = libc::mmap(std::ptr::null_mut(), size_of::<T>(), prot, flags, -1, 0);
            assert!(at != libc::MAP_FAILED);
            &*at.cast()
        }
    }

    /// The process has ended without a word, and left its region as it was.
    pub fn kill(segment: &Segment) {
        segment.fabric.seats[segment.own].guard.mark();
    }

    /// The process uses these paths and no others.
    pub fn leave(segment: &mut Segment, paths: Paths) {
        segment.paths = paths;
        segment.fabric.seats[segment.own].paths.store(paths.bits(), Ordering::Relaxed);
    }

    /// The process carries requests of other hosts.
    pub fn make_gateway(segment: &mut Segment) {
        segment.inwards = inwards(GATEWAY);
        segment.fabric.seats[segment.own].guest.store(GATEWAY, Ordering::Relaxed);
        segment.become_gateway();
    }

    /// Process `own` of them.
    pub fn join(fabric: &'static Fabric, regions: &[&'static Region], own: usize) -> Segment {
        let pid = own_pid();
        let owner = Owner::new(own as u32 + 1, pid, started(pid).unwrap().unwrap()).ready();
        let seat = &fabric.seats[own];
        seat.guest.store(1, Ordering::Relaxed);
        seat.paths.store(Paths::default().bits(), Ordering::Relaxed);
        seat.owner.store(owner.0, Ordering::SeqCst);
        fabric.used.fetch_max(own as u32 + 1, Ordering::SeqCst);
        Segment {
            fabric,
            file: -1,
            own_region: regions[own],
            regions: regions.iter().map(|region| AtomicPtr::new(std::ptr::from_ref(*region).cast_mut())).collect(),
            own,
            owner,
            host: 0,
            paths: Paths::default(),
            inwards: inwards(1),
            seen: regions.iter().map(|_| AtomicU64::new(0)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zombie_does_not_run() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id() as libc::pid_t;
        let at = started(pid).unwrap().expect("it runs");
        let owner = Owner::new(1, pid, at);
        assert_eq!((owner.pid(), owner.incarnation()), (pid, 1));
        assert!(owner.runs() && owner.ready().runs());
        assert!(!Owner::new(1, pid, at + 1).runs(), "another process with a reused pid");
        child.kill().unwrap();
        while started(pid).unwrap().is_some() {
            std::thread::yield_now();
        }
        assert!(!owner.runs(), "killed, not reaped");
        assert!(!is_nobody(pid));
        child.wait().unwrap();
        assert!(!owner.runs());
        assert!(is_nobody(pid));
    }

    fn join(dir: &Path) -> io::Result<Segment> {
        join_host(dir, 0)
    }

    fn join_host(dir: &Path, host: u8) -> io::Result<Segment> {
        Segment::join(dir, host, 1, Paths::default(), |file| file)
    }

    #[test]
    fn another_host_is_told_so_while_somebody_is_there() {
        let dir = std::env::temp_dir().join(format!("pvrdma-test-hosts-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let first = join_host(&dir, 7).unwrap();
        let refused = |host: u8| join_host(&dir, host).err().unwrap().to_string();
        assert!(refused(0).contains("a host with number 7"), "{}", refused(0));
        assert_eq!((first.host(), first.guests().map(Guest::host).collect()), (7, vec![7]));
        first.leave();
        let second = join_host(&dir, 0).unwrap();
        assert!(refused(7).contains("a host without a number"), "{}", refused(7));
        // One that was killed has nothing to say any more.
        let owner = Owner::new(1, own_pid(), second.owner.0 >> 23 ^ 1).ready();
        second.fabric.seats[second.own].owner.store(owner.0, Ordering::SeqCst);
        join_host(&dir, 7).unwrap().leave();
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn of_two_hosts_that_come_together_not_both_stay() {
        let (fabric, _) = by_hand::file();
        let owner = |seat: u32| Owner::new(seat + 1, own_pid(), started(own_pid()).unwrap().unwrap());
        let owners = [owner(0), owner(1)];
        for _ in 0..2000 {
            let stays = |seat: usize| {
                fabric.seats[seat].host.store(seat as u32, Ordering::Relaxed);
                fabric.seats[seat].owner.store(owners[seat].ready().0, Ordering::SeqCst);
                fabric.agree(seat as u8).is_ok()
            };
            let stay = std::thread::scope(|scope| {
                let there = scope.spawn(|| stays(1));
                [stays(0), there.join().unwrap()]
            });
            assert_ne!(stay, [true, true]);
            fabric.seats.iter().for_each(|seat| seat.owner.store(0, Ordering::SeqCst));
        }
    }

    #[test]
    fn another_pid_namespace_is_told_so() {
        let dir = std::env::temp_dir().join(format!("pvrdma-test-fabric-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let first = join(&dir).unwrap();
        assert_eq!(first.fabric.pid_namespace.swap(1, Ordering::SeqCst), pid_namespace());
        let error = join(&dir).err().unwrap().to_string();
        assert!(error.contains("PID namespace") && error.contains("XDG_RUNTIME_DIR"), "{error}");
        first.leave();
        // Nobody is there any more.
        let second = join(&dir).unwrap();
        assert_eq!(second.fabric.pid_namespace.load(Ordering::SeqCst), pid_namespace());
        // What was never asked for has no memory, and is not looked at.
        let (near, far) = (&second.own().slots[0], &second.own().slots[SLOTS - 1]);
        assert!(!second.own().has(near) && second.reserve(near) && second.own().has(near));
        assert!(!second.own().has(far));
        second.leave();
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn those_who_come_together_find_the_same_namespace() {
        let dir = std::env::temp_dir().join(format!("pvrdma-test-together-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let segment = join(&dir).unwrap();
        let (fabric, own) = (segment.fabric, segment.own);
        let owner = fabric.seats[own].owner.load(Ordering::SeqCst);
        for found in [0, 1] {
            for _ in 0..2000 {
                fabric.pid_namespace.store(found, Ordering::SeqCst);
                fabric.seats.iter().for_each(|seat| seat.owner.store(0, Ordering::SeqCst));
                let enter = |seat: usize| {
                    let entered = fabric.enter(pid_namespace());
                    fabric.seats[seat].owner.store(owner, Ordering::SeqCst);
                    entered
                };
                let (here, there) = std::thread::scope(|scope| {
                    let there = scope.spawn(|| enter(1));
                    (enter(2), there.join().unwrap())
                });
                assert!(here.is_ok() && there.is_ok(), "{here:?} {there:?}");
            }
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn pages_of_a_region_are_its_own() {
        assert!(size_of::<Region>() / PAGE <= PAGE_WORDS * 64);
        assert_eq!(size_of::<Fabric>() % 4096, 0);
        assert_eq!(size_of::<Region>() % 4096, 0);
    }
}
