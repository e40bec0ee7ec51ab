//! This process as a process of a guest: its device, its region of the fabric, its side thread.
//!
//! Made at the first open of the device, so that the many programs which only inherit the preload library cost nothing.

use crate::kernel::events::Events;
use crate::kernel::uverbs::Driver;
use crate::kernel::uverbs::device::ifindex;
use crate::kernel::{fd, trap, uar, ucma};
use crate::support::fresh::{self, OWN};
use crate::support::{capture, hooks, raw, thread, trace};
use pvrdma_capture::tap::{self, Capture};
use pvrdma_capture::writer::Settings;
use pvrdma_device::command::Command;
use pvrdma_device::device::{Config, Device};
use pvrdma_device::doorbell::Doorbell;
use pvrdma_device::guest::{Guest, Roce, WIRE_GID, Wire};
use pvrdma_device::handle::{CtxHandle, Gid};
use pvrdma_device::transport::fault::Faults;
use pvrdma_device::transport::path::Paths;
use pvrdma_fabric::memory::ProcessMemory;
use pvrdma_fabric::say::say;
use pvrdma_fabric::segment::Segment;
use pvrdma_fabric::transport::HostTransport;
use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, IntoRawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// See the module text.
pub struct Process {
    /// The device of this process's guest, as far as it lives here.
    driver: Driver,
    transport: Arc<HostTransport>,
    /// The run directory.
    directory: PathBuf,
    pid: i32,
    /// Has the side thread begun? From then on peers know when this program is no more.
    begun: AtomicBool,
    /// `Bell::placed_count` as of the last poll.
    placed: AtomicU32,
}

/// Doorbell pages of a context table; the kernel's page 0 is not used here.
const MAX_UAR: u32 = 1024;

/// Path MTU of a port whose guest only reaches guests.
const MTU: u32 = 4096;
/// How long an empty poll looks for work. Not at all would be slower: the next POLL is a trap away, and a message that
/// comes meanwhile waits for it.
const SPIN: Duration = Duration::from_micros(10);
/// Who gave its core away for longer than this has not met programs that spin and give it back, as it does itself, but
/// work, or very many of them. The longer they all only give way to each other, the less gets done.
const SHORT: Duration = Duration::from_micros(50);
/// How long an empty poll then sleeps at most.
const NAP: Duration = Duration::from_micros(200);

/// How long a process that exits waits for its last datagrams to be taken in.
const LINGER: Duration = Duration::from_secs(1);

/// The driver of this process's device, made on first use, with the whole process. The error is an errno.
pub fn driver() -> Result<&'static Driver, i32> {
    if existing().is_none() {
        let _joining = OWN.joining.lock();
        if existing().is_none() {
            // Never freed: others use its parts at any time, until the last moment.
            let process = Box::into_raw(Box::new(Process::join()?));
            fresh::keep(process);
            OWN.process.store(process.cast(), Ordering::Release);
            start_side_thread().inspect_err(|_| {
                leave();
                OWN.process.store(std::ptr::null_mut(), Ordering::Release);
            })?;
            while existing().is_some_and(|process| !process.begun.load(Ordering::Acquire)) {
                std::thread::sleep(Duration::from_micros(20));
            }
        }
    }
    uar::serve(doorbell);
    trap::install();
    existing().map(|process| &process.driver).ok_or(libc::ENODEV)
}

/// The same as the connection manager needs it.
pub fn machine() -> Result<&'static dyn ucma::Machine, i32> {
    driver()?;
    existing().map(|process| process as &dyn ucma::Machine).ok_or(libc::ENODEV)
}

/// The process if it was made. A child of fork has none until it opens the device itself.
pub fn existing() -> Option<&'static Process> {
    // SAFETY: null or a leaked box.
    unsafe { OWN.process.load(Ordering::Acquire).cast::<Process>().as_ref() }
}

/// At exit: gives the region back.
extern "C" fn leave() {
    // A child of vfork that ends by exit(3) instead of _exit(2) comes here in its parent's memory.
    if let Some(process) = existing().filter(|process| process.pid == raw::getpid()) {
        process.transport.linger(LINGER);
        process.transport.segment().leave();
    }
}

/// Keeps the run directory and the guest for as long as this process lives: a daemon has closed what it inherited from
/// `pvrdma run`, which may have ended long ago.
fn hold(dir: &Path, guest: Guest) -> io::Result<()> {
    for lock in [dir.join("lock"), dir.join(format!("guests/{}/lock", guest.index()))] {
        let file = File::open(lock)?;
        // SAFETY: no pointers; the descriptor is open.
        if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_SH) } != 0 {
            return Err(io::Error::last_os_error());
        }
        fd::hide(file.into_raw_fd());
    }
    Ok(())
}

fn leave_at_exit() {
    // Children of fork inherit the list of what is done at exit.
    static REGISTERED: AtomicBool = AtomicBool::new(false);
    if !REGISTERED.swap(true, Ordering::Relaxed) {
        // SAFETY: a plain function without state of its own.
        unsafe { libc::atexit(leave) };
    }
}

/// What `pvrdma run --fault` asks for.
fn faults() -> Result<Option<Faults>, i32> {
    let Some(list) = std::env::var_os("PVRDMA_FAULT") else { return Ok(None) };
    let faults = list.to_str().and_then(|list| list.parse().ok());
    faults.map(Some).ok_or(libc::EINVAL)
}

/// What `pvrdma run --paths` leaves.
fn paths() -> Result<Paths, i32> {
    let Some(list) = std::env::var_os("PVRDMA_PATHS") else { return Ok(Paths::default()) };
    list.to_str().and_then(|list| list.parse().ok()).ok_or(libc::EINVAL)
}

/// What `pvrdma run` says that the gateway has for those who speak RoCE.
fn wire() -> Result<Option<(Wire, u32)>, i32> {
    let Some(text) = std::env::var_os("PVRDMA_WIRE") else { return Ok(None) };
    let (wire, interface) = text.to_str().and_then(|text| text.rsplit_once(' ')).ok_or(libc::EINVAL)?;
    Ok(Some((wire.parse().map_err(|()| libc::EINVAL)?, ifindex(interface))))
}

impl Process {
    fn join() -> Result<Process, i32> {
        let dir = PathBuf::from(std::env::var_os("PVRDMA_HOST_DIR").ok_or(libc::ENODEV)?);
        let number = |name: &str| std::env::var(name).ok().and_then(|number| number.parse().ok());
        let numbers = number("PVRDMA_HOST_NUMBER").zip(number("PVRDMA_GUEST_INDEX"));
        let roce = std::env::var("PVRDMA_ROCE").ok().and_then(|roce| roce.parse().ok()).unwrap_or_default();
        let guest = numbers.and_then(|(host, index)| Guest::new(host, index, roce)).ok_or(libc::ENODEV)?;
        let wire = wire()?;
        // Without an address for it nobody there could answer.
        let paths = paths().map(|paths| if wire.is_some() { paths } else { paths.without_roce() })?;
        let wire = wire.filter(|_| paths.roce());
        hold(&dir, guest).map_err(|error| error.raw_os_error().unwrap_or(libc::EIO))?;
        let segment = Segment::join(&dir, guest.host(), guest.index().into(), paths, fd::hide).map_err(|error| {
            say(format_args!("{}: {error}", dir.join("fabric").display()));
            error.raw_os_error().unwrap_or(libc::EIO)
        })?;
        // Others copy from and to our memory; where yama restricts that to parents, they need our leave.
        // SAFETY: no pointers.
        unsafe { libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY) };
        let transport = HostTransport::new(segment);
        let events = Events::new(wake);
        let config = Config {
            node_guid: guest.node_guid(),
            gid_type: roce.gid_type(),
            qpn_base: transport.qpn_base(),
            max_uar: MAX_UAR,
            memory_limit: pvrdma_device::budget::DEFAULT_MEMORY_LIMIT,
            mtu: wire.map_or(MTU, |(wire, _)| wire.mtu),
        };
        let capture = capture::open(fd::hide).map(|sink| {
            let v1 = roce == Roce::V1;
            Capture::new(Settings { sink, v1 }, Arc::new(ProcessMemory))
        });
        let (device, station) = tap::plug(transport.clone(), faults()?, capture, |network| {
            Device::new(config, Arc::new(ProcessMemory), events.clone(), network)
        });
        transport.attach(station);
        let outside = wire.map(|(wire, _)| (WIRE_GID, wire.gid));
        for (index, gid) in guest.gids().chain(outside) {
            let bind = Command::CreateBind { index, gid, gid_type: roce.gid_type(), vlan: 0xfff, mtu: 1024 };
            device.command(&bind).map_err(|error| error.errno())?;
        }
        leave_at_exit();
        let driver = Driver { device, events, guest, wire };
        let (begun, placed) = (AtomicBool::new(false), AtomicU32::new(0));
        Ok(Process { pid: raw::getpid(), driver, transport, directory: dir, begun, placed })
    }

    /// What the guest has for those who speak RoCE.
    pub fn wire(&self) -> Option<Wire> {
        self.driver.wire.map(|(wire, _)| wire)
    }

    /// The guests that have a process on this host, with repeats.
    pub fn guests_on_host(&self) -> impl Iterator<Item = Guest> + '_ {
        self.transport.segment().guests()
    }

    /// Carries out what others sent and what has come due.
    fn pump(&self) -> bool {
        let moved = self.transport.pump();
        if moved {
            self.driver.device.poll();
        }
        moved
    }

    /// A poll found its CQ empty: take in what arrived, and if that is nothing, look for it a little longer. `news`
    /// tells of completions, for whatever CQ.
    ///
    /// It sleeps only where cores are short. A program may have more to look at than its CQs (shared memory, sockets),
    /// and what comes there rings no bell of ours.
    fn empty_poll(&self, news: impl Fn() -> bool) {
        let bell = &self.transport.segment().own().bell;
        bell.polled();
        let begin = Instant::now();
        // The program may look at its memory between two polls, and something may have been written there since.
        let placed = self.placed.load(Ordering::Relaxed);
        loop {
            let ticket = bell.ticket();
            // Whatever came, even for another CQ, is worth a look by the caller.
            if self.pump() || news() || bell.placed_count() != placed {
                self.placed.store(bell.placed_count(), Ordering::Relaxed);
                return;
            }
            if begin.elapsed() > SPIN {
                return;
            }
            if !(0..64).any(|_| {
                std::hint::spin_loop();
                bell.rang_since(ticket)
            }) {
                // Let others run if there are any: the one we wait for may be among them.
                let away = Instant::now();
                // SAFETY: no preconditions.
                unsafe { libc::sched_yield() };
                if away.elapsed() > SHORT {
                    bell.wait(ticket, NAP);
                    self.pump();
                    bell.polled();
                    return;
                }
            }
        }
    }
}

impl ucma::Machine for Process {
    fn device(&self) -> &Arc<Device> {
        &self.driver.device
    }

    fn guest(&self) -> Guest {
        self.driver.guest
    }

    fn wire(&self) -> Option<Wire> {
        Process::wire(self)
    }

    fn number(&self) -> u32 {
        self.transport.segment().index() as u32
    }

    fn seed(&self) -> u64 {
        let incarnation = u64::from(self.transport.segment().incarnation());
        incarnation.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(self.pid as u32) << 20
    }

    fn directory(&self) -> &Path {
        &self.directory
    }

    fn take_in(&self) {
        self.transport.take_in();
        self.driver.device.poll();
    }

    fn process(&self, gid: &Gid, number: u32) -> Option<u64> {
        let segment = self.transport.segment();
        let process = segment.process(number as usize)?;
        segment.guest(process)?.has(gid).then_some(u64::from(process.incarnation) << 32 | u64::from(number))
    }

    fn speaks_for_all(&self, gid: &Gid) -> bool {
        self.transport.first_manager(gid) == Some(self.transport.segment().index())
    }

    fn runs(&self, process: u64) -> bool {
        let segment = self.transport.segment();
        let found = segment.process(process as u32 as usize);
        found.is_some_and(|found| u64::from(found.incarnation) == process >> 32 && segment.alive(found))
    }

    fn wake(&self) {
        self.transport.segment().own().bell.wake_side();
    }
}

/// A store to the doorbell page of `ctx`.
fn doorbell(ctx: CtxHandle, doorbell: Doorbell) {
    let Some(process) = existing() else { return };
    if trace::enabled() {
        trace::doorbell(doorbell);
    }
    if hooks::doorbell(doorbell) {
        return;
    }
    let device = &process.driver.device;
    device.doorbell(ctx, doorbell);
    // Before the CQ is asked: what comes after that is news.
    let puts = device.completions();
    match doorbell {
        Doorbell::Cq { cq, poll: true, .. } if device.cq_polled(ctx, cq) => {
            // It may hold something already, if another thread is about to take it.
            if device.cq_is_empty(ctx, cq) {
                process.empty_poll(|| device.completions() != puts);
            }
            // The return tells the caller of what has come meanwhile.
            device.cq_polled(ctx, cq);
        }
        // A poll that found something, only less than it had room for, ends with POLL too, and what comes may lie in
        // another CQ. That does not count as polling: the caller may go to sleep on an event next, and then the side
        // thread has to be woken for it.
        Doorbell::Cq { poll: true, .. } => {
            process.pump();
        }
        Doorbell::Cq { .. } => {}
        // A completion may have come of it that another thread waits for.
        Doorbell::Qp { .. } | Doorbell::Srq { .. } => process.transport.segment().own().bell.ring_pollers(),
    }
}

/// Gets the side thread up: there is work, or an earlier deadline.
fn wake() {
    if let Some(process) = existing() {
        process.transport.segment().own().bell.wake_side();
    }
}

/// Starts the thread that serves a program which rings no doorbell: it waits in read(2), or spins on its memory.
/// Without it such a program would wait for ever. The error is an errno.
fn start_side_thread() -> Result<(), i32> {
    thread::start(side_thread, std::ptr::null_mut()).map_err(|error| {
        say(format_args!("the device cannot have its thread in this process: {error}"));
        error.raw_os_error().unwrap_or(libc::EAGAIN)
    })
}

extern "C" fn side_thread(_: *mut c_void) -> *mut c_void {
    thread::name(c"pvrdma");
    let Some(process) = existing() else { return std::ptr::null_mut() };
    // As long as this thread there is the memory that peers may reach.
    process.transport.segment().guard();
    process.begun.store(true, Ordering::Release);
    let bell = &process.transport.segment().own().bell;
    loop {
        let ticket = bell.side_ticket();
        while process.transport.pump() {
            bell.ring_pollers();
        }
        let connections = ucma::run();
        let deadline = [process.driver.device.poll(), connections].into_iter().flatten().min();
        let limit = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if limit != Some(Duration::ZERO) {
            bell.wait_side(ticket, limit);
        }
    }
}
