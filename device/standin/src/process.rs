//! This process as a process of a guest: its device, its region of the fabric, its side thread.
//!
//! Made at the first open of the device, so that the many programs which only inherit the preload library cost nothing.

use crate::events::Events;
use crate::host::segment::Segment;
use crate::host::transport::HostTransport;
use crate::memory::ProcessMemory;
use crate::{signals, uar};
use pvrdma_device::command::Command;
use pvrdma_device::device::{Config, Device};
use pvrdma_device::doorbell::Doorbell;
use pvrdma_device::guest::Guest;
use pvrdma_device::handle::CtxHandle;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// See the module text.
pub struct Process {
    /// The device of this process's guest, as far as it lives here.
    pub device: Arc<Device>,
    /// Where its interrupts go.
    pub events: Arc<Events>,
    /// Who we are.
    pub guest: Guest,
    transport: Arc<HostTransport>,
    /// Polls in a row that found nothing.
    empty_polls: AtomicU32,
}

static PROCESS: OnceLock<Process> = OnceLock::new();
/// Set in a child of fork: it has no side thread and no doorbell page, and the region is its parent's.
static CHILD: AtomicBool = AtomicBool::new(false);

/// Doorbell pages of a context table; the kernel's page 0 is not used here.
const MAX_UAR: u32 = 1024;

/// Polls in a row that return soon when they find nothing: a loop over several CQs is not held up by one.
const EAGER_POLLS: u32 = 8;
/// How long such a poll looks for work. Not at all would be slower: the next POLL is a trap away, and a message that
/// comes meanwhile waits for it.
const EAGER_SPIN: Duration = Duration::from_micros(10);
/// How long later ones look for work before they sleep.
const SPIN: Duration = Duration::from_micros(30);
/// How long an empty poll sleeps at most. Programs that spin on two cores would otherwise use up whole scheduler
/// slices while the one they wait for has no core.
const NAP: Duration = Duration::from_micros(200);

/// The process, made on first use. The error is an errno.
pub fn process() -> Result<&'static Process, i32> {
    static MAKING: Mutex<()> = Mutex::new(());
    if CHILD.load(Ordering::Relaxed) {
        return Err(libc::ENODEV);
    }
    if PROCESS.get().is_none() {
        let _making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
        if PROCESS.get().is_none() {
            let process = Process::join()?;
            let _ = PROCESS.set(process);
            start_side_thread();
        }
    }
    uar::install();
    PROCESS.get().ok_or(libc::ENODEV)
}

/// The process if it was made.
pub fn existing() -> Option<&'static Process> {
    if is_child() { None } else { PROCESS.get() }
}

/// Whether this is a forked child, in which the library stands still.
pub fn is_child() -> bool {
    CHILD.load(Ordering::Relaxed)
}

extern "C" fn forked() {
    CHILD.store(true, Ordering::Relaxed);
}

extern "C" fn leave() {
    if let Some(process) = existing() {
        process.transport.segment().leave();
    }
}

impl Process {
    fn join() -> Result<Process, i32> {
        let dir = PathBuf::from(std::env::var_os("PVRDMA_HOST_DIR").ok_or(libc::ENODEV)?);
        let number = std::env::var("PVRDMA_GUEST_INDEX").ok().and_then(|index| index.parse().ok());
        let roce = std::env::var("PVRDMA_ROCE").ok().and_then(|roce| roce.parse().ok()).unwrap_or_default();
        let guest = number.and_then(|index| Guest::new(index, roce)).ok_or(libc::ENODEV)?;
        let segment = Segment::join(&dir, u32::from(guest.index())).map_err(|error| {
            eprintln!("pvrdma: {}: {error}", dir.join("fabric").display());
            error.raw_os_error().unwrap_or(libc::EIO)
        })?;
        // Others copy from and to our memory; where yama restricts that to parents, they need our leave.
        // SAFETY: no pointers.
        unsafe { libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY) };
        let transport = HostTransport::new(segment);
        let events = Events::new();
        let config = Config {
            node_guid: guest.node_guid(),
            gid_type: roce.gid_type(),
            qpn_base: transport.qpn_base(),
            max_uar: MAX_UAR,
        };
        let device = Device::new(config, Arc::new(ProcessMemory), events.clone(), transport.clone());
        transport.attach(&device);
        for (index, gid) in guest.gids() {
            let bind = Command::CreateBind { index, gid, gid_type: roce.gid_type(), vlan: 0xfff, mtu: 1024 };
            device.command(&bind).map_err(|error| error.errno())?;
        }
        // SAFETY: plain functions without state of their own.
        unsafe {
            libc::pthread_atfork(None, None, Some(forked));
            libc::atexit(leave);
        }
        Ok(Process { device, events, guest, transport, empty_polls: AtomicU32::new(0) })
    }

    /// Carries out what others sent and what has come due.
    fn pump(&self) -> bool {
        let moved = self.transport.pump();
        if moved {
            self.device.poll();
        }
        moved
    }

    /// A poll found its CQ empty: take in what arrived, and if that is nothing, wait a little for it.
    fn empty_poll(&self, empty: impl Fn() -> bool) {
        let bell = &self.transport.segment().own().bell;
        bell.polled();
        let begin = Instant::now();
        let patient = self.empty_polls.fetch_add(1, Ordering::Relaxed) >= EAGER_POLLS;
        let spin = if patient { SPIN } else { EAGER_SPIN };
        loop {
            let ticket = bell.ticket();
            // Whatever came, even for another CQ, is worth a look by the caller.
            if self.pump() || !empty() {
                self.empty_polls.store(0, Ordering::Relaxed);
                return;
            }
            if begin.elapsed() > spin {
                if patient {
                    bell.wait(ticket, NAP);
                    self.pump();
                    bell.polled();
                }
                return;
            }
            for _ in 0..64 {
                if bell.rang_since(ticket) {
                    break;
                }
                std::hint::spin_loop();
            }
            // Let others run if there are any: the one we wait for may be among them.
            // SAFETY: no preconditions.
            unsafe { libc::sched_yield() };
        }
    }
}

/// A store to the doorbell page of `ctx`.
pub fn doorbell(ctx: CtxHandle, doorbell: Doorbell) {
    let Some(process) = existing() else { return };
    process.device.doorbell(ctx, doorbell);
    match doorbell {
        Doorbell::Cq { cq, poll: true, .. } if process.device.cq_polled(ctx, cq) => {
            process.empty_poll(|| process.device.cq_is_empty(ctx, cq));
        }
        // A poll that found something, only less than it had room for, ends with POLL too. It does not count as
        // polling: its caller may go to sleep on an event next, and then the side thread has to be woken for it.
        Doorbell::Cq { poll: true, .. } => {
            process.empty_polls.store(0, Ordering::Relaxed);
            process.pump();
        }
        Doorbell::Cq { .. } => {}
        // A completion may have come of it that another thread waits for.
        Doorbell::Qp { .. } | Doorbell::Srq { .. } => process.transport.segment().own().bell.ring_pollers(),
    }
}

/// Gets the side thread up: there is work, or an earlier deadline.
pub fn wake() {
    if let Some(process) = existing() {
        process.transport.segment().own().bell.wake_side();
    }
}

/// Starts the thread that serves a program which rings no doorbell: it waits in read(2), or spins on its memory.
fn start_side_thread() {
    let started = signals::quiet_thread("pvrdma", side_thread);
    if let Err(error) = started {
        eprintln!("pvrdma: no thread for one-sided traffic: {error}");
    }
}

fn side_thread() {
    let Some(process) = existing() else { return };
    let bell = &process.transport.segment().own().bell;
    loop {
        let ticket = bell.side_ticket();
        while process.transport.pump() {
            bell.ring_pollers();
        }
        let deadline = process.device.poll();
        let limit = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if limit != Some(Duration::ZERO) {
            bell.wait_side(ticket, limit);
        }
    }
}
