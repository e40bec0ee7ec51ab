//! The server: a thread for each socket, one for each client, one fabric for all, which may be linked to others.
//!
//! `pvrdma serve` calls [`serve`]. A socket has one client at a time, and each client a fresh function. One client's
//! trouble, a panic included, is not the others': its function goes and the next may come.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pvrdma_capture::file::CaptureFile;
use pvrdma_device::guest::Roce;
use pvrdma_device::transport::fabric::Fabric;
use pvrdma_device::transport::fault::Faults;
use zerocopy::IntoBytes;

use crate::channel::{Broken, Channel, Patience};
use crate::complaints::Complaints;
use crate::connection::Connection;
use crate::error::Error;
use crate::function::{Function, Plan};
use crate::listener::{Access, Listener};
use crate::protocol::{ERROR, Header, TYPE_REPLY};
use crate::shown::Watch;
use crate::trace::TraceFile;
use crate::{eventfd, session};

/// What all guests of a server have in common.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Who may open the sockets.
    pub access: Access,
    /// The RoCE version of the devices.
    pub roce: Roce,
    /// What is to go wrong on the way from guest to guest.
    pub faults: Option<Faults>,
    /// Who is told of everything.
    pub trace: Option<TraceFile>,
    /// Where what guests send to each other goes, as frames.
    pub capture: Option<CaptureFile>,
}

/// How long a server waits for its clients' last answers when it ends. An answer takes milliseconds.
const LAST_ANSWERS: Duration = Duration::from_secs(5);

/// How long one whose socket is taken may take to say what it wants, to be told.
const REFUSAL: Duration = Duration::from_secs(1);

/// Serves every socket until SIGTERM or SIGINT. Guests reach all devices of `fabric`. `ready` is called once QEMU may
/// connect, with what there is to be seen of the devices.
///
/// Call it from the main thread before any other thread exists that does not block both signals: it blocks them for all
/// that follow. On return what clients had asked for is answered, and the socket files are gone.
pub fn serve(
    paths: &[PathBuf],
    settings: &Settings,
    fabric: &Arc<Fabric>,
    ready: impl FnOnce(Watch),
) -> Result<(), Error> {
    let signals = Signals::block()?;
    let server = start(paths, settings, fabric)?;
    ready(server.watch());
    signals.wait()?;
    server.stop();
    Ok(())
}

/// Starts the threads of every socket and returns. They serve as long as the server is kept.
pub fn start(paths: &[PathBuf], settings: &Settings, fabric: &Arc<Fabric>) -> Result<Server, Error> {
    eventfd::prepare().map_err(Error::Interrupts)?;
    let listeners = paths.iter().map(|path| Listener::bind(path, settings.access)).collect::<Result<Vec<_>, _>>()?;
    let mut server = Server { sockets: Vec::new() };
    for (index, listener) in listeners.into_iter().enumerate() {
        let socket = Arc::new(Socket {
            plan: Plan {
                config: session::config(guid_of(listener.path()), index as u32, settings.roce),
                faults: settings.faults,
                trace: settings.trace.clone().map(|file| (file, listener.path().display().to_string())),
                capture: settings.capture.clone(),
                shown: Arc::default(),
            },
            complaints: Arc::new(Complaints::new(format!("pvrdma serve: {}", listener.path().display()))),
            fabric: fabric.clone(),
            stopping: AtomicBool::new(false),
            index,
            listener,
        });
        let own = socket.clone();
        let name = format!("pvrdma-socket{index}");
        let thread = std::thread::Builder::new().name(name).spawn(move || own.run())?;
        server.sockets.push((socket, thread));
    }
    Ok(server)
}

/// A server that runs; it stops on drop.
pub struct Server {
    sockets: Vec<(Arc<Socket>, JoinHandle<()>)>,
}

impl Server {
    /// What there is to be seen of it.
    pub fn watch(&self) -> Watch {
        let shown = |(socket, _): &(Arc<Socket>, _)| (socket.listener.path().to_owned(), socket.plan.shown.clone());
        Watch(self.sockets.iter().map(shown).collect())
    }

    /// Takes no more clients and no more messages, answers those that have come, and lets go of all clients. Their ends
    /// learn it when they write next, or from the end of what they read; none is left waiting for an answer.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        for (socket, _) in &self.sockets {
            socket.stopping.store(true, Ordering::Relaxed);
            socket.listener.close();
        }
        let limit = Instant::now() + 2 * LAST_ANSWERS;
        for (socket, thread) in self.sockets.drain(..) {
            if !ended(&thread, limit.saturating_duration_since(Instant::now())) {
                socket.complaints.add(format_args!("a client is left without its answer"));
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

/// A socket and what its clients get.
struct Socket {
    listener: Listener,
    fabric: Arc<Fabric>,
    plan: Plan,
    complaints: Arc<Complaints>,
    stopping: AtomicBool,
    index: usize,
}

/// A client that was let in.
struct Client {
    /// Its connection, as long as its thread has it.
    stream: Weak<UnixStream>,
    thread: JoinHandle<()>,
}

impl Socket {
    /// Lets in one client after the other, and sends away those that come while one is there.
    fn run(self: &Arc<Socket>) {
        let mut client: Option<Client> = None;
        loop {
            let accepted = self.listener.accept();
            if self.stopping.load(Ordering::Relaxed) {
                break;
            }
            match accepted {
                Ok(stream) if client.as_ref().is_some_and(|client| !client.is_over()) => self.refuse(stream),
                Ok(stream) => client = self.let_in(stream),
                Err(error) => {
                    self.complaints.add(format_args!("cannot let a client in: {error}"));
                    // No descriptor is free, as a rule; there is nothing to wait for.
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        }
        if let Some(client) = client {
            client.finish();
        }
    }

    fn let_in(self: &Arc<Socket>, stream: UnixStream) -> Option<Client> {
        let stream = Arc::new(stream);
        let weak = Arc::downgrade(&stream);
        let socket = self.clone();
        let thread = std::thread::Builder::new().name(format!("pvrdma-guest{}", self.index)).spawn(move || {
            let served = std::panic::catch_unwind(AssertUnwindSafe(|| socket.serve(&stream)));
            match served {
                Ok(Ok(()) | Err(Broken::Closed)) => {}
                Ok(Err(error)) => socket.complaints.add(format_args!("connection ended: {error}")),
                Err(_) => socket
                    .complaints
                    .add(format_args!("a defect ended this guest's device; please report the message above")),
            }
        });
        match thread {
            Ok(thread) => Some(Client { stream: weak, thread }),
            Err(error) => {
                self.complaints.add(format_args!("cannot let a client in: {error}"));
                None
            }
        }
    }

    /// Serves a client until it goes away.
    fn serve(&self, stream: &Arc<UnixStream>) -> Result<(), Broken> {
        let function = Function::new(self.fabric.clone(), &self.plan, self.complaints.clone());
        let memory = function.memory().clone();
        let weak = Arc::downgrade(stream);
        memory.on_loss(move || {
            if let Some(stream) = weak.upgrade() {
                // It fails for one that is gone already.
                let _ = stream.shutdown(std::net::Shutdown::Both);
            }
        });
        let mut channel = Channel::new(stream.clone(), Patience::default())?;
        let mut connection = Connection::new(function);
        let mut reply = Vec::new();
        let ended = loop {
            let message = match channel.receive() {
                Ok(message) => message,
                Err(error) => break error,
            };
            let agreed = connection.answer(message, &mut reply);
            if let Err(error) = channel.send(&reply) {
                break error;
            }
            if !agreed {
                break Broken::Nonsense("no version in common");
            }
        };
        match memory.is_lost() {
            true => Err(Broken::MemoryLost),
            false => Err(ended),
        }
    }

    /// Answers the first message of a client that comes too early: it hears at once that the socket is taken, and not
    /// by a time limit of its own.
    fn refuse(&self, stream: UnixStream) {
        let patience = Patience { greeting: REFUSAL, message: REFUSAL };
        let Ok(mut channel) = Channel::new(Arc::new(stream), patience) else { return };
        let Ok(message) = channel.receive() else { return };
        let answer = Header {
            message_size: size_of::<Header>() as u32,
            flags: TYPE_REPLY | ERROR,
            error: libc::EBUSY.unsigned_abs(),
            ..message.header
        };
        // It may be gone.
        let _ = channel.send(answer.as_bytes());
        self.complaints.add(format_args!("a client was sent away: this socket has one"));
    }
}

impl Client {
    /// Whether it is gone, with all that it had. If it is just going, this waits.
    fn is_over(&self) -> bool {
        self.thread.is_finished()
            || self.stream.upgrade().is_none_or(|stream| left(&stream)) && ended(&self.thread, LAST_ANSWERS)
    }

    /// Has its last messages answered.
    fn finish(&self) {
        if let Some(stream) = self.stream.upgrade() {
            // From here on its writes fail. What it wrote before is still read, and then its end.
            let _ = stream.shutdown(std::net::Shutdown::Read);
        }
        ended(&self.thread, LAST_ANSWERS);
    }
}

/// Whether the other end of a connection has been closed.
fn left(stream: &UnixStream) -> bool {
    let mut poll = libc::pollfd { fd: stream.as_raw_fd(), events: 0, revents: 0 };
    // SAFETY: one pollfd, live during the call.
    unsafe { libc::poll(&mut poll, 1, 0) == 1 }
}

/// Whether a thread ends within a time.
fn ended(thread: &JoinHandle<()>, within: Duration) -> bool {
    let limit = Instant::now() + within;
    while !thread.is_finished() {
        if Instant::now() >= limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    true
}
/// A GUID that stays the same for a socket and differs between sockets: the path, hashed (FNV-1a).
fn guid_of(path: &Path) -> [u8; 8] {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let hash =
        path.as_os_str().as_encoded_bytes().iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
    let mut guid = hash.to_be_bytes();
    // An EUI-64 of the locally administered kind.
    guid[0] = 0x02;
    guid
}

/// SIGTERM and SIGINT, blocked so that they can be waited for.
struct Signals {
    set: libc::sigset_t,
}

impl Signals {
    fn block() -> io::Result<Signals> {
        // SAFETY: a sigset_t is plain data; zero is a value that sigemptyset then replaces.
        let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: `set` is valid for the three calls and the old mask is not asked for.
        let rc = unsafe {
            libc::sigemptyset(&mut set);
            libc::sigaddset(&mut set, libc::SIGTERM);
            libc::sigaddset(&mut set, libc::SIGINT);
            libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut())
        };
        if rc == 0 { Ok(Signals { set }) } else { Err(io::Error::from_raw_os_error(rc)) }
    }

    fn wait(&self) -> io::Result<()> {
        let mut signal = 0;
        // SAFETY: both pointers are to live values of the right type.
        match unsafe { libc::sigwait(&self.set, &mut signal) } {
            0 => Ok(()),
            rc => Err(io::Error::from_raw_os_error(rc)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_have_guids_of_their_own() {
        assert_eq!(guid_of(Path::new("/run/a")), guid_of(Path::new("/run/a")));
        assert_ne!(guid_of(Path::new("/run/a")), guid_of(Path::new("/run/b")));
    }
}
