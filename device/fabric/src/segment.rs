//! The shared file, as a process sees it that has a region there.
//!
//! | file | |
//! |---|---|
//! | `segment/layout.rs` | what stands in it |
//! | `segment/owner.rs` | who owns a region, and whether he lives |
//! | `segment/backing.rs` | the file behind the memory |
//! | `segment/route.rs` | where an address leads, and who has it |
//! | `segment/view.rs` | what there is to be seen of others |

mod backing;
mod layout;
mod owner;
mod route;
pub mod view;

use crate::section;
use crate::sync::{AtomicU64, Ordering};
use backing::{allocate, file_size_limit, map, punch, region, say_once};
pub use layout::*;
use owner::{Owner, claim, is_over, own_pid, pid_namespace, started};
use pvrdma_device::guest::{Guest, Roce};
use pvrdma_device::transport::Endpoint;
use pvrdma_device::transport::path::Paths;
pub use route::{Published, Route};
use std::cell::Cell;
use std::fs::OpenOptions;
use std::io;
use std::mem::offset_of;
use std::os::fd::{AsRawFd, IntoRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::AtomicPtr;

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
    /// What it sends comes from other hosts.
    is_gateway: bool,
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
        seat.paths.store(paths.bits() as u16, Ordering::Relaxed);
        seat.guard.clear();
        let owner = owner.ready();
        seat.owner.store(owner.0, Ordering::SeqCst);
        // Somebody else may have come since. Each of us looks when it can be seen itself, so not both stay.
        if let Err(error) = fabric.agree(host) {
            seat.owner.store(0, Ordering::SeqCst);
            return Err(error);
        }
        let seen = (0..MAX_PROCESSES).map(|_| AtomicU64::new(0)).collect();
        let is_gateway = guest == GATEWAY;
        Ok(Segment { fabric, file, regions, own, own_region, owner, host, paths, is_gateway, seen })
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

    /// The gateway has a link to a host, or has it no longer.
    pub fn set_linked(&self, host: u8, linked: bool) {
        let (word, bit) = (usize::from(host / 64), 1 << (host % 64));
        self.fabric.by_adapter[word].fetch_and(!bit, Ordering::Relaxed);
        match linked {
            true => self.fabric.linked[word].fetch_or(bit, Ordering::Relaxed),
            false => self.fabric.linked[word].fetch_and(!bit, Ordering::Relaxed),
        };
    }

    /// Adapters carry what goes over that link, until it is gone.
    pub fn set_by_adapter(&self, host: u8) {
        self.fabric.by_adapter[usize::from(host / 64)].fetch_or(1 << (host % 64), Ordering::Relaxed);
    }

    /// From now on this process does. It has joined as [`GATEWAY`].
    pub fn become_gateway(&self) {
        // Those of one that was killed.
        let words = self.fabric.linked.iter().chain(&self.fabric.by_adapter);
        words.for_each(|word| word.store(0, Ordering::Relaxed));
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

/// The region that a QP number names.
pub fn region_of(peer: &Endpoint) -> Option<usize> {
    (peer.qpn.0 >> HANDLE_BITS).checked_sub(1).map(|index| index as usize)
}

fn other_namespace() -> io::Error {
    io::Error::other(
        "processes of another PID namespace use it, perhaps a container's; give each namespace its XDG_RUNTIME_DIR",
    )
}

/// Of a host with another number, and the process if it is the gateway.
fn other_host(number: u16, gateway: Option<libc::pid_t>) -> io::Error {
    let theirs = match number {
        0 => "without a number".to_owned(),
        number => format!("with number {number}"),
    };
    io::Error::other(match gateway {
        Some(pid) => format!("`pvrdma link run` (process {pid}) of a host {theirs} uses it; start it anew"),
        None => format!("processes of a host {theirs} use it; end them first"),
    })
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
            let differs = found.is_ready() && number != u16::from(host);
            let lives = differs && !seat.guard.has_died() && !is_over(seat, found);
            let gateway = (seat.guest.load(Ordering::Relaxed) == GATEWAY).then(|| found.pid());
            (lives && seat.owner.load(Ordering::SeqCst) == found.0).then_some((number, gateway))
        };
        self.seats.iter().find_map(others).map_or(Ok(()), |(number, gateway)| Err(other_host(number, gateway)))
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
        segment.fabric.seats[segment.own].paths.store(paths.bits() as u16, Ordering::Relaxed);
    }

    /// The process carries requests of other hosts.
    pub fn make_gateway(segment: &mut Segment) {
        segment.is_gateway = true;
        segment.fabric.seats[segment.own].guest.store(GATEWAY, Ordering::Relaxed);
        segment.become_gateway();
    }

    /// Process `own` of them.
    pub fn join(fabric: &'static Fabric, regions: &[&'static Region], own: usize) -> Segment {
        let pid = own_pid();
        let owner = Owner::new(own as u32 + 1, pid, started(pid).unwrap().unwrap()).ready();
        let seat = &fabric.seats[own];
        seat.guest.store(1, Ordering::Relaxed);
        seat.paths.store(Paths::default().bits() as u16, Ordering::Relaxed);
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
            is_gateway: false,
            seen: regions.iter().map(|_| AtomicU64::new(0)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::owner::is_nobody;
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
                fabric.seats[seat].host.store(seat as u16, Ordering::Relaxed);
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
