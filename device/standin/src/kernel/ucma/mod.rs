//! `/dev/infiniband/rdma_cm`: what `rdma_ucm` and `rdma_cm` are in the kernel.
//!
//! | file | |
//! |---|---|
//! | here | an opened device: commands, and the queue of events behind it |
//! | `commands.rs` | what each command does |
//! | `state.rs` | all ids of this process, and what becomes of them when messages come and time passes |
//! | `id.rs` | an id: states, addresses, what programs ask of it |
//! | `address.rs`, `port.rs` | whose an address is, and who has which port |
//!
//! The protocol is the crate `pvrdma-cm`'s, the way out the management QP's (`gsi.rs`). Nothing here knows of `uverbs`:
//! what a program asks for its QPs it tells them itself, as with a kernel.
//!
//! One lock holds all of it. Nobody waits with it held, neither for a peer nor for a program.

mod address;
mod commands;
mod id;
mod port;
mod state;

use crate::kernel::fd;
use crate::support::fresh::{self, OWN};
use crate::support::raw::{self, syscall};
use crate::support::trace::{self, Note};
use pvrdma_device::device::Device;
use pvrdma_device::guest::Guest;
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
use zerocopy::{FromBytes, IntoBytes};

/// An errno is the error.
type Result<T> = std::result::Result<T, i32>;

/// This process, as the connection manager needs it.
pub trait Machine: Sync {
    /// Its device.
    fn device(&self) -> &Arc<Device>;
    /// Whose process it is.
    fn guest(&self) -> Guest;
    /// Its number on the host, below 511.
    fn number(&self) -> u32;
    /// A number that no other process of the host has, nor had of late.
    fn seed(&self) -> u64;
    /// The run directory.
    fn directory(&self) -> &Path;
    /// Whether somebody takes management datagrams at an address.
    fn has_manager(&self, gid: &Gid) -> bool;
    /// The process with that number, if it is one of the guest with that address.
    fn process(&self, gid: &Gid, number: u32) -> Option<u64>;
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
    existing().and_then(|ucma| catch_unwind(AssertUnwindSafe(|| ucma.state().run(Instant::now()))).unwrap_or(None))
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

// ---- a command ---------------------------------------------------------------------------------

/// Longest body: the header counts its bytes in 16 bits.
const MAX_BODY: usize = u16::MAX as usize;

/// A command as it was written.
struct Call {
    command: u32,
    body: Vec<u8>,
    /// Room for the answer.
    room: usize,
}

impl Call {
    /// Reads a command of `len` bytes at `from`.
    fn read(from: u64, len: usize) -> Result<Call> {
        let mut header = [0u8; size_of::<rdma_ucm_cmd_hdr>()];
        if len < header.len() {
            return Err(libc::EINVAL);
        }
        raw::copy_in(from, &mut header)?;
        let hdr = rdma_ucm_cmd_hdr::read_from_bytes(&header).map_err(|_| libc::EINVAL)?;
        if hdr.cmd > RDMA_USER_CM_CMD_JOIN_MCAST || usize::from(hdr.len_in) + header.len() > len {
            return Err(libc::EINVAL);
        }
        let mut body = vec![0; usize::from(hdr.len_in).min(MAX_BODY)];
        raw::copy_in(from + header.len() as u64, &mut body)?;
        Ok(Call { command: hdr.cmd, body, room: hdr.len_out.into() })
    }

    /// The body, all of it.
    fn body<T: FromBytes>(&self) -> Result<T> {
        T::read_from_prefix(&self.body).map(|(body, _)| body).map_err(|_| libc::EINVAL)
    }

    /// The body of a struct that has grown: `least` bytes of it must be there, the rest is 0.
    fn grown_body<T: FromBytes>(&self, least: usize) -> Result<T> {
        if self.body.len() < least {
            return Err(libc::EINVAL);
        }
        let mut bytes = self.body.clone();
        bytes.resize(bytes.len().max(size_of::<T>()), 0);
        T::read_from_prefix(&bytes).map(|(body, _)| body).map_err(|_| libc::EINVAL)
    }

    /// There must be room for an answer of `len` bytes.
    fn wants(&self, len: usize) -> Result<()> {
        if self.room < len { Err(libc::ENOSPC) } else { Ok(()) }
    }

    /// Writes an answer, cut to its room.
    fn answer_at(&self, at: u64, bytes: &[u8]) -> Result<()> {
        raw::copy_out(at, &bytes[..bytes.len().min(self.room)])
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

    fn written(bytes: &[u8], len: usize) -> Result<Call> {
        Call::read(bytes.as_ptr() as u64, len)
    }

    #[test]
    fn a_command_is_as_long_as_it_says_or_refused() {
        let header = |cmd: u32, len_in: u16| rdma_ucm_cmd_hdr { cmd, len_in, len_out: 4 }.as_bytes().to_vec();
        let listen = [header(RDMA_USER_CM_CMD_LISTEN, 8), vec![1, 0, 0, 0, 9, 0, 0, 0]].concat();
        let call = written(&listen, listen.len()).expect("a command");
        let body: rdma_ucm_listen = call.body().expect("a body");
        assert_eq!((call.command, call.room, body.id, body.backlog), (RDMA_USER_CM_CMD_LISTEN, 4, 1, 9));
        assert_eq!(call.body::<rdma_ucm_query>().err(), Some(libc::EINVAL), "a longer body");
        assert_eq!((call.wants(4), call.wants(5)), (Ok(()), Err(libc::ENOSPC)));
        for (what, bytes, len) in [
            ("no header", listen.clone(), 7),
            ("less than it says", listen.clone(), 15),
            ("no such command", header(RDMA_USER_CM_CMD_JOIN_MCAST + 1, 0), 8),
        ] {
            assert_eq!(written(&bytes, len).err(), Some(libc::EINVAL), "{what}");
        }
        assert_eq!(Call::read(8, 64).err(), Some(libc::EFAULT));
    }

    #[test]
    fn what_has_grown_may_be_short() {
        let mut param = rdma_ucm_connect::new_zeroed();
        param.id = 7;
        let least = core::mem::offset_of!(rdma_ucm_connect, ece);
        let call = |len: usize| Call { command: 0, body: param.as_bytes()[..len].to_vec(), room: 0 };
        assert_eq!(call(least).grown_body::<rdma_ucm_connect>(least).map(|body| body.id), Ok(7));
        assert!(call(size_of_val(&param)).grown_body::<rdma_ucm_connect>(least).is_ok());
        assert_eq!(call(least - 1).grown_body::<rdma_ucm_connect>(least).err(), Some(libc::EINVAL));
    }

    /// Random bytes as commands: each is refused or has a body of the length that was said, and nothing panics.
    #[test]
    fn no_bytes_break_the_decoder() {
        let mut seed = 1u64;
        let mut random = move || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as u32
        };
        let mut taken = 0;
        for _ in 0..100_000 {
            let len = random() as usize % 400;
            let mut bytes: Vec<u8> = (0..len).map(|_| random() as u8).collect();
            if len >= 8 && random() % 4 != 0 {
                bytes[..4].copy_from_slice(&(random() % 24).to_ne_bytes());
                bytes[4..6].copy_from_slice(&((random() % 400) as u16).to_ne_bytes());
            }
            let Ok(call) = written(&bytes, len) else { continue };
            taken += 1;
            assert!(call.body.len() + 8 <= len && call.command <= RDMA_USER_CM_CMD_JOIN_MCAST);
            if let Ok(body) = call.body::<rdma_ucm_resolve_addr>() {
                let _ = address::Address::parse(&body.src_addr);
            }
            for at in 0..call.body.len().min(40) {
                let _ = address::Address::parse(&call.body[at..]);
            }
        }
        assert!(taken > 10_000, "{taken}");
    }

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
