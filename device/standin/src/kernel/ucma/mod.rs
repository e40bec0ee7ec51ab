//! `/dev/infiniband/rdma_cm`: what `rdma_ucm` and `rdma_cm` are in the kernel.
//!
//! | file | |
//! |---|---|
//! | here | an opened device: commands, and the queue of events behind it |
//! | `call.rs` | a command as it is written: header, body, room for the answer |
//! | `commands.rs` | what each command does |
//! | `state.rs` | all ids of this process, and what becomes of them when messages come and time passes |
//! | `id.rs` | an id: states, addresses, what programs ask of it |
//! | `address.rs`, `port.rs` | whose an address is, and who has which port |
//! | `lookup.rs` | who is meant by a message, and who listens |
//!
//! The protocol is the crate `pvrdma-cm`'s, the way out the management QP's (`gsi.rs`). Nothing here knows of `uverbs`:
//! what a program asks for its QPs it tells them itself, as with a kernel.
//!
//! One lock holds all of it. Nobody waits with it held, neither for a peer nor for a program.

mod address;
mod call;
mod commands;
mod id;
mod lookup;
mod port;
mod state;
#[cfg(test)]
mod wild;

use crate::kernel::fd;
use crate::support::fresh::{self, OWN};
use crate::support::raw::{self, syscall};
use crate::support::trace::{self, Note};
use call::{Call, Result};
use pvrdma_device::device::Device;
use pvrdma_device::guest::{Guest, Wire};
use pvrdma_device::handle::Gid;
use pvrdma_ffi::uapi::rdma_user_cm::*;
use state::State;
use std::collections::VecDeque;
use std::ffi::{CString, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use zerocopy::IntoBytes;

/// This process, as the connection manager needs it.
pub trait Machine: Sync {
    /// Its device.
    fn device(&self) -> &Arc<Device>;
    /// Whose process it is.
    fn guest(&self) -> Guest;
    /// What it has for those who speak RoCE and are no guests.
    fn wire(&self) -> Option<Wire>;
    /// Its number on the host, below 511.
    fn number(&self) -> u32;
    /// A number that no other process of the host has, nor had of late.
    fn seed(&self) -> u64;
    /// The run directory.
    fn directory(&self) -> &Path;
    /// Takes in all that others have sent by now. Not with the lock held.
    fn take_in(&self);
    /// The process with that number, if it is one of the guest with that address.
    fn process(&self, gid: &Gid, number: u32) -> Option<u64>;
    /// Whether it speaks for its host to those who know all guests of the host by this address: one process does.
    fn speaks_for_all(&self, gid: &Gid) -> bool;
    /// Whether that process still runs.
    fn runs(&self, process: u64) -> bool;
    /// Gets the side thread up.
    fn wake(&self);
}

/// Finds the machine at the first command of a process. The error is an errno.
pub type Probe = fn() -> Result<&'static dyn Machine>;

/// An opened device.
///
/// The program's descriptor is the reading end of a pipe that holds a byte for each event of the queue: so it can be
/// polled, is blocking or not, and may be interrupted, with nothing interposed. Nobody can write to it: what inherits
/// it and writes a command gets EBADF.
pub struct File {
    number: u64,
    probe: Probe,
    /// Both ends of the pipe in one, hidden and never blocking.
    pipe: c_int,
}

/// All that belongs to this process.
struct Ucma(Mutex<State>);

impl Ucma {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) -> Option<Instant> {
        let mut state = self.state();
        let next = state.run(Instant::now(), &[]);
        let Some((machine, doubts)) = state.doubts() else { return next };
        drop(state);
        machine.take_in();
        self.state().run(Instant::now(), &doubts)
    }
}

/// If this process has used the connection manager.
fn existing() -> Option<&'static Ucma> {
    // SAFETY: null or a leaked box.
    unsafe { OWN.ucma.load(Ordering::Acquire).cast::<Ucma>().as_ref() }
}

fn ucma(probe: Probe) -> Result<&'static Ucma> {
    if existing().is_none() {
        let machine = probe()?;
        let _joining = OWN.joining.lock();
        if existing().is_none() {
            // Never freed: the side thread looks at it until the last moment.
            let ucma = Box::into_raw(Box::new(Ucma(Mutex::new(State::new(machine)?))));
            fresh::keep(ucma);
            OWN.ucma.store(ucma.cast(), Ordering::Release);
        }
    }
    existing().ok_or(libc::ENODEV)
}

/// Takes in what came and does what is due. Returns when to call again at the latest. For the side thread.
pub fn run() -> Option<Instant> {
    existing().and_then(|ucma| catch_unwind(AssertUnwindSafe(|| ucma.run())).unwrap_or(None))
}

/// Opens the device; returns what open(2) does.
pub fn open(probe: Probe, flags: c_int) -> c_int {
    let mut ends = [0 as c_int; 2];
    let kept = flags & (libc::O_CLOEXEC | libc::O_NONBLOCK);
    // SAFETY: room for two descriptors.
    if unsafe { syscall!(SYS_pipe2, ends.as_mut_ptr(), kept) } < 0 {
        return -1;
    }
    let [program, other] = ends;
    // A description of its own, so that it never blocks whatever the program's does, and there is always a reader.
    let both = CString::new(format!("/proc/self/fd/{program}")).unwrap_or_default();
    let flags = libc::O_RDWR | libc::O_NONBLOCK | libc::O_CLOEXEC;
    // SAFETY: a terminated string.
    let pipe = unsafe { syscall!(SYS_openat, libc::AT_FDCWD, both.as_ptr(), flags) } as c_int;
    let errno = raw::errno();
    raw::close(other);
    if pipe < 0 {
        raw::close(program);
        return raw::fail(errno);
    }
    trace::open(fd::hide, fd::close_hidden);
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let file = Arc::new(File { number, probe, pipe: fd::hide(pipe) });
    fd::insert(program, fd::Object::Ucma(file));
    program
}

impl fd::Commands for File {
    fn write(&self, descriptor: c_int, from: *const c_void, len: usize) -> Result<usize> {
        catch_unwind(AssertUnwindSafe(|| self.command(descriptor, from as u64, len))).unwrap_or(Err(libc::EIO))
    }

    fn number(&self) -> u64 {
        self.number
    }
}

impl File {
    fn command(&self, descriptor: c_int, from: u64, len: usize) -> Result<usize> {
        let call = Call::read(from, len)?;
        let ucma = ucma(self.probe)?;
        let mut note = Note::new();
        let done = match call.command {
            RDMA_USER_CM_CMD_GET_EVENT => self.get_event(ucma, descriptor, &call, &mut note),
            _ => {
                let mut state = ucma.state();
                state.add_file(self.number, self.pipe);
                let done = commands::run(&mut state, self.number, &call, &mut note);
                state.settle(Instant::now());
                done
            }
        };
        if trace::enabled() {
            trace::command(format_args!("cm {}", commands::name(call.command)), &note, done);
        }
        done.map(|()| len)
    }

    /// Waits for an event, as the descriptor says, and hands it over.
    fn get_event(&self, ucma: &Ucma, descriptor: c_int, call: &Call, note: &mut Note) -> Result<()> {
        let get: rdma_ucm_get_event = call.body()?;
        // Before `reserved` there was no more.
        call.wants(core::mem::offset_of!(rdma_ucm_event_resp, reserved))?;
        ucma.state().add_file(self.number, self.pipe);
        loop {
            let mut byte = 0u8;
            // SAFETY: room for a byte. Blocks if the program's descriptor does, outside of any lock.
            match unsafe { syscall!(SYS_read, descriptor, &raw mut byte, 1) } {
                1 => {}
                0 => return Err(libc::EIO),
                _ => return Err(raw::errno()),
            }
            let mut state = ucma.state();
            let taken = state.take_event(self.number, |event| call.answer_at(get.response, event.as_bytes()));
            if let Some(done) = taken {
                if let Ok(event) = &done {
                    let _ = std::fmt::Write::write_fmt(note, format_args!("id={} {}", event.id, event.event));
                }
                return done.map(drop);
            }
            // It was taken back, or another thread has it.
        }
    }
}

/// Ends what was made through it, as the kernel does when the last descriptor is closed.
impl Drop for File {
    fn drop(&mut self) {
        if let Some(ucma) = existing() {
            let mut state = ucma.state();
            state.close_file(self.number);
            state.settle(Instant::now());
        }
        fd::close_hidden(self.pipe);
    }
}

// ---- a queue -----------------------------------------------------------------------------------

/// An event that waits.
struct Queued {
    /// The id that it is counted for.
    counted: u32,
    /// The new id that it brings.
    brings: Option<u32>,
    event: Box<rdma_ucm_event_resp>,
}

/// The events of an opened device.
struct Queue {
    pipe: c_int,
    events: VecDeque<Queued>,
}

impl Queue {
    /// Takes out the events that are counted for an id; the others stay, in order.
    fn take_of(&mut self, id: u32) -> VecDeque<Queued> {
        let (taken, kept) = self.events.drain(..).partition(|queued| queued.counted == id);
        self.events = kept;
        self.sync();
        taken
    }

    /// As many bytes in the pipe as there are events, or as many as it holds.
    fn sync(&self) {
        let mut bytes: c_int = 0;
        // SAFETY: room for a number.
        unsafe { syscall!(SYS_ioctl, self.pipe, libc::FIONREAD, &raw mut bytes) };
        let mut byte = 0u8;
        while (bytes as usize) < self.events.len() {
            // SAFETY: a readable byte; the descriptor never blocks.
            if unsafe { syscall!(SYS_write, self.pipe, &raw const byte, 1) } != 1 {
                return;
            }
            bytes += 1;
        }
        while bytes as usize > self.events.len() {
            // SAFETY: room for a byte; as above.
            if unsafe { syscall!(SYS_read, self.pipe, &raw mut byte, 1) } != 1 {
                return;
            }
            bytes -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    #[test]
    fn the_pipe_holds_a_byte_for_each_event() {
        let mut ends = [0; 2];
        // SAFETY: room for two descriptors.
        assert_eq!(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_NONBLOCK) }, 0);
        let path = CString::new(format!("/proc/self/fd/{}", ends[0])).unwrap();
        // SAFETY: a terminated string.
        let pipe = unsafe { libc::open(path.as_ptr(), libc::O_RDWR | libc::O_NONBLOCK) };
        let waiting = || {
            let mut bytes: c_int = 0;
            // SAFETY: room for a number.
            unsafe { libc::ioctl(ends[0], libc::FIONREAD, &raw mut bytes) };
            bytes
        };
        let queued = |counted| Queued { counted, brings: None, event: Box::new(rdma_ucm_event_resp::new_zeroed()) };
        let mut queue = Queue { pipe, events: (0..5).map(|n| queued(n % 2)).collect() };
        queue.sync();
        assert_eq!(waiting(), 5);
        assert_eq!(queue.take_of(0).len(), 3);
        assert_eq!((waiting(), queue.events.len()), (2, 2));
        assert_eq!(queue.take_of(1).len(), 2);
        assert_eq!(waiting(), 0);
        for fd in [ends[0], ends[1], pipe] {
            raw::close(fd);
        }
    }
}
