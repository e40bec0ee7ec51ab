//! Messages over the socket: whole ones, with the files that came with them, or none.
//!
//! `connection.rs` takes messages out of here and puts replies in. The other end may be anybody who could open the
//! socket: it may send any bytes, in any pieces, with any files, and stop at any place. What it can have this end do is
//! bounded: one buffer, a handful of files, and a wait with an end once a message has begun.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use zerocopy::{FromZeros, IntoBytes};

use crate::protocol::{Header, MAX_BODY, MAX_FDS, TYPE_COMMAND, TYPE_MASK};

/// How long the other end may take for what it should do at once.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Until its first message begins: a client that says nothing keeps others from the socket.
    pub greeting: Duration,
    /// For the rest of a message that has begun, and to take a reply.
    pub message: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        // A client on a busy machine gets far more time than it needs.
        Patience { greeting: Duration::from_secs(10), message: Duration::from_secs(10) }
    }
}

/// Why there are no more messages.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// It went away where it may.
    #[error("the client is gone")]
    Closed,
    /// It went away where it may not.
    #[error("the client left in the middle of a message")]
    Half,
    /// It stopped where it may not.
    #[error("the client did not go on with {0}")]
    Stuck(&'static str),
    /// Where the next message begins cannot be known.
    #[error("not the protocol: {0}")]
    Nonsense(&'static str),
    /// Its memory is not there any more.
    #[error("the guest's memory is gone: its file was truncated, or has no room for its pages")]
    MemoryLost,
    /// The socket itself.
    #[error("{0}")]
    Socket(#[from] io::Error),
}

/// What came in.
#[derive(Debug)]
pub struct Message<'a> {
    /// Its type is that of a command and its size is right.
    pub header: Header,
    /// What followed.
    pub body: &'a [u8],
    /// Files that came with any byte of it, in order.
    pub fds: Vec<OwnedFd>,
}

/// One end of a connection.
pub struct Channel {
    stream: Arc<UnixStream>,
    patience: Patience,
    greeted: bool,
    body: Box<[u8; MAX_BODY]>,
}

impl Channel {
    /// A channel over a connected socket.
    pub fn new(stream: Arc<UnixStream>, patience: Patience) -> io::Result<Channel> {
        stream.set_write_timeout(Some(patience.message))?;
        Ok(Channel { stream, patience, greeted: false, body: Box::new([0; MAX_BODY]) })
    }

    /// Waits for the next message.
    pub fn receive(&mut self) -> Result<Message<'_>, Broken> {
        let mut fds = Vec::new();
        let mut header = Header::new_zeroed();
        let mut reader = Reader { stream: &self.stream, fds: &mut fds, patience: self.patience.message, limit: None };
        if !self.greeted {
            reader.wait(self.patience.greeting, "its first message")?;
            self.greeted = true;
        }
        reader.begin(header.as_mut_bytes())?;
        let size = header.message_size as usize;
        let Some(len) = size.checked_sub(size_of::<Header>()).filter(|len| *len <= MAX_BODY) else {
            return Err(Broken::Nonsense("a message of an impossible size"));
        };
        if header.flags & TYPE_MASK != TYPE_COMMAND {
            return Err(Broken::Nonsense("a message that is no command"));
        }
        let body = &mut self.body[..len];
        reader.finish(body)?;
        Ok(Message { header, body, fds })
    }

    /// Whether `receive` would find something, if only the end.
    #[cfg(any(test, feature = "test-utils"))]
    pub fn has_input(&self) -> bool {
        let mut fds = Vec::new();
        let reader = Reader { stream: &self.stream, fds: &mut fds, patience: Duration::ZERO, limit: None };
        reader.wait(Duration::ZERO, "").is_ok()
    }

    /// Sends a reply.
    pub fn send(&self, mut bytes: &[u8]) -> Result<(), Broken> {
        while !bytes.is_empty() {
            // SAFETY: `bytes` is readable for its length during the call.
            let sent =
                unsafe { libc::send(self.stream.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL) };
            match usize::try_from(sent) {
                Ok(sent) => bytes = bytes.get(sent..).unwrap_or_default(),
                Err(_) => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error if error.kind() == io::ErrorKind::WouldBlock => {
                        return Err(Broken::Stuck("taking its replies"));
                    }
                    error => return Err(error.into()),
                },
            }
        }
        Ok(())
    }
}

/// Takes in one message.
struct Reader<'a> {
    stream: &'a UnixStream,
    fds: &'a mut Vec<OwnedFd>,
    patience: Duration,
    /// When the message must be here; set when it was waited for in its middle for the first time.
    limit: Option<Instant>,
}

impl Reader<'_> {
    /// Waits, for ever if need be, for the first byte of a message and then fills `into`.
    fn begin(&mut self, into: &mut [u8]) -> Result<(), Broken> {
        let begun = loop {
            match self.take(into, 0) {
                Ok(0) => return Err(Broken::Closed),
                Ok(taken) => break taken,
                Err(Broken::Socket(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        };
        self.finish(&mut into[begun..])
    }

    /// Fills `into` with more of the message.
    fn finish(&mut self, mut into: &mut [u8]) -> Result<(), Broken> {
        while !into.is_empty() {
            match self.take(into, libc::MSG_DONTWAIT) {
                Ok(0) => return Err(Broken::Half),
                Ok(taken) => into = &mut into[taken..],
                Err(Broken::Socket(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    let limit = *self.limit.get_or_insert_with(|| Instant::now() + self.patience);
                    self.wait(limit.saturating_duration_since(Instant::now()), "its message")?;
                }
                Err(Broken::Socket(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Waits until there is something to take, or the other end is gone.
    fn wait(&self, patience: Duration, what: &'static str) -> Result<(), Broken> {
        let limit = Instant::now() + patience;
        loop {
            let left = limit.saturating_duration_since(Instant::now());
            let left = left.as_nanos().div_ceil(1_000_000).try_into().unwrap_or(libc::c_int::MAX);
            let mut poll = libc::pollfd { fd: self.stream.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one pollfd, live during the call.
            match unsafe { libc::poll(&mut poll, 1, left) } {
                0 => return Err(Broken::Stuck(what)),
                1 => return Ok(()),
                _ => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error => return Err(error.into()),
                },
            }
        }
    }

    /// One recvmsg(2): some bytes, and the files that came with them.
    fn take(&mut self, into: &mut [u8], flags: libc::c_int) -> Result<usize, Broken> {
        #[repr(C, align(8))]
        struct Control([u8; CONTROL]);
        // SAFETY: arithmetic on a length.
        const CONTROL: usize = unsafe { libc::CMSG_SPACE((MAX_FDS * size_of::<libc::c_int>()) as u32) } as usize;
        let mut control = Control([0; CONTROL]);
        let mut iov = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
        // SAFETY: a msghdr is plain data, for which zeroes are a value.
        let mut msg: libc::msghdr = unsafe { std::mem::zeroed() };
        msg.msg_iov = &mut iov;
        msg.msg_iovlen = 1;
        msg.msg_control = control.0.as_mut_ptr().cast();
        msg.msg_controllen = CONTROL as _;
        // SAFETY: `msg` names `into` and `control`, writable for the lengths it says and live during the call.
        let taken = unsafe { libc::recvmsg(self.stream.as_raw_fd(), &mut msg, flags | libc::MSG_CMSG_CLOEXEC) };
        let Ok(taken) = usize::try_from(taken) else { return Err(io::Error::last_os_error().into()) };
        // SAFETY: the kernel has filled `control` and said in `msg` how far; the walk stays in it.
        let mut next = unsafe { libc::CMSG_FIRSTHDR(&msg) };
        while !next.is_null() {
            // SAFETY: `next` is in `control`, which holds a whole header there.
            let cmsg = unsafe { next.read_unaligned() };
            if (cmsg.cmsg_level, cmsg.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
                // SAFETY: as above; data begins behind the header.
                let data = unsafe { libc::CMSG_DATA(next) };
                // SAFETY: arithmetic on a length.
                let len = (cmsg.cmsg_len as usize).saturating_sub(unsafe { libc::CMSG_LEN(0) } as usize);
                for index in 0..len / size_of::<libc::c_int>() {
                    // SAFETY: the kernel says that so many descriptors lie there.
                    let fd = unsafe { data.cast::<libc::c_int>().add(index).read_unaligned() };
                    // SAFETY: it was made for us by this call and belongs to nobody else.
                    self.fds.push(unsafe { OwnedFd::from_raw_fd(fd) });
                }
            }
            // SAFETY: as for the first.
            next = unsafe { libc::CMSG_NXTHDR(&msg, next) };
        }
        if msg.msg_flags & libc::MSG_CTRUNC != 0 || self.fds.len() > MAX_FDS {
            return Err(Broken::Nonsense("more files than a message may have"));
        }
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn pair() -> (UnixStream, Channel) {
        let (client, server) = UnixStream::pair().unwrap();
        let soon = Duration::from_millis(20);
        (client, Channel::new(Arc::new(server), Patience { greeting: soon, message: soon }).unwrap())
    }

    fn message(body: &[u8], size: u32) -> Vec<u8> {
        let header = Header { message_id: 7, command: 13, message_size: size, ..Default::default() };
        [header.as_bytes(), body].concat()
    }

    #[test]
    fn message_in_any_two_pieces_is_one() {
        let whole = message(b"body", 20);
        for cut in 1..whole.len() {
            let (mut client, server) = UnixStream::pair().unwrap();
            let mut channel = Channel::new(Arc::new(server), Patience::default()).unwrap();
            let (head, tail) = whole.split_at(cut);
            client.write_all(head).unwrap();
            std::thread::scope(|scope| {
                let received = scope.spawn(|| {
                    let message = channel.receive().unwrap();
                    (message.header.message_id, message.body.to_vec())
                });
                client.write_all(tail).unwrap();
                assert_eq!(received.join().unwrap(), (7, b"body".to_vec()), "cut at {cut}");
            });
        }
    }

    #[test]
    fn half_a_message_is_not_waited_for_for_ever() {
        for cut in [1, 15, 16, 17] {
            let (mut client, mut channel) = pair();
            client.write_all(&message(b"body", 20)[..cut]).unwrap();
            assert!(matches!(channel.receive(), Err(Broken::Stuck(_))), "cut at {cut}");
        }
    }

    #[test]
    fn client_that_says_nothing_is_not_waited_for_for_ever() {
        let (_client, mut channel) = pair();
        assert!(matches!(channel.receive(), Err(Broken::Stuck(_))));
    }

    #[test]
    fn leaving_is_told_from_leaving_in_the_middle() {
        let (client, mut channel) = pair();
        drop(client);
        assert!(matches!(channel.receive(), Err(Broken::Closed)));
        let (mut client, mut channel) = pair();
        client.write_all(&message(b"", 20)).unwrap();
        drop(client);
        assert!(matches!(channel.receive(), Err(Broken::Half)));
    }

    #[test]
    fn impossible_sizes_end_it() {
        for size in [0, 1, 15, (16 + MAX_BODY + 1) as u32, 0x7fff_ffff, u32::MAX] {
            let (mut client, mut channel) = pair();
            client.write_all(&message(b"", size)).unwrap();
            assert!(matches!(channel.receive(), Err(Broken::Nonsense(_))), "{size}");
        }
    }

    #[test]
    fn replies_that_nobody_takes_end_it() {
        let (_client, channel) = pair();
        let sent = (0..10_000).find_map(|_| channel.send(&[0; 4096]).err());
        assert!(matches!(sent, Some(Broken::Stuck(_))), "{sent:?}");
    }
}
