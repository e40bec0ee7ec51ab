//! Eventfds of a client, raised without ever waiting for it.
//!
//! `connection.rs` makes one of each descriptor that comes with SET_IRQS, `irq.rs` raises it, from the thread of
//! whatever guest caused the interrupt. A write(2) to an eventfd waits while its counter is full, unless O_NONBLOCK is
//! set; counter and flag are the client's as much as ours, so no check before the write helps. The kernel's own way to
//! raise one adds to the counter as far as there is room and never waits. A program gets at it by asynchronous I/O
//! (io_submit(2)): a request may name an eventfd that is raised when it is done. Ours is a read of no bytes from
//! /dev/null, which is done at once.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::OnceLock;

/// An eventfd of a client.
#[derive(Debug)]
pub struct EventFd(OwnedFd);

impl EventFd {
    /// Takes `fd`, if it is an eventfd.
    pub fn new(fd: OwnedFd) -> io::Result<EventFd> {
        match raiser()?.is_eventfd(&fd) {
            true => Ok(EventFd(fd)),
            false => Err(io::Error::new(io::ErrorKind::InvalidInput, "a file that is no eventfd")),
        }
    }

    /// Adds one to its counter, or nothing if that is full: who waits for it is awake then.
    pub fn raise(&self) {
        if let Ok(raiser) = raiser() {
            raiser.raise(&self.0);
        }
    }
}

/// Sees to it that eventfds can be raised.
pub fn prepare() -> io::Result<()> {
    raiser().map(drop)
}

/// What raises them, for the whole process and as long as it lives.
fn raiser() -> io::Result<&'static Raiser> {
    static RAISER: OnceLock<Raiser> = OnceLock::new();
    if let Some(raiser) = RAISER.get() {
        return Ok(raiser);
    }
    // Two threads that come here at once make two, and one of them goes again.
    let raiser = Raiser::new()?;
    Ok(RAISER.get_or_init(|| raiser))
}

/// Requests that may be done and not yet forgotten; the kernel makes it more.
const REQUESTS: libc::c_long = 64;

/// A context of asynchronous I/O.
#[derive(Debug)]
struct Raiser {
    context: libc::c_ulong,
    readable: File,
    /// The same, where a read fails.
    writable: File,
}

/// `struct iocb` of `<linux/aio_abi.h>`, little endian.
#[repr(C)]
#[derive(Default)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: u32,
    /// 0: IOCB_CMD_PREAD.
    lio_opcode: u16,
    reqprio: i16,
    fildes: u32,
    buf: u64,
    nbytes: u64,
    offset: i64,
    reserved2: u64,
    flags: u32,
    resfd: u32,
}

/// `resfd` is an eventfd to raise.
const IOCB_FLAG_RESFD: u32 = 1;

/// `struct io_event` of `<linux/aio_abi.h>`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct IoEvent([u64; 4]);

impl Raiser {
    fn new() -> io::Result<Raiser> {
        let open = |options: &mut OpenOptions| options.open("/dev/null");
        let readable = open(OpenOptions::new().read(true))?;
        let writable = open(OpenOptions::new().write(true))?;
        let mut context: libc::c_ulong = 0;
        // SAFETY: the kernel writes a number to `context`, which must hold 0 before.
        match unsafe { libc::syscall(libc::SYS_io_setup, REQUESTS, &mut context) } {
            0 => Ok(Raiser { context, readable, writable }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Reads no bytes from `file` and has `eventfd` raised for it.
    fn submit(&self, file: &File, eventfd: &OwnedFd) -> io::Result<()> {
        let mut request = Iocb {
            fildes: file.as_raw_fd().unsigned_abs(),
            flags: IOCB_FLAG_RESFD,
            resfd: eventfd.as_raw_fd().unsigned_abs(),
            ..Default::default()
        };
        let requests = [&raw mut request];
        loop {
            // SAFETY: one request, live during the call; the kernel keeps no address of it. Its read has no bytes.
            match unsafe { libc::syscall(libc::SYS_io_submit, self.context, 1 as libc::c_long, requests.as_ptr()) } {
                1 => return Ok(()),
                _ => match io::Error::last_os_error() {
                    // No room: requests that are done wait to be fetched. Whoever gets in between has fetched some too.
                    error if error.raw_os_error() == Some(libc::EAGAIN) => self.forget_done(),
                    error => return Err(error),
                },
            }
        }
    }

    /// The kernel looks at the eventfd before it looks at what is to be read: where reading is not possible, the error
    /// tells how far it came, and nothing is raised.
    fn is_eventfd(&self, fd: &OwnedFd) -> bool {
        self.submit(&self.writable, fd).is_err_and(|error| error.raw_os_error() == Some(libc::EBADF))
    }

    fn raise(&self, eventfd: &OwnedFd) {
        // Of an eventfd and a file that can be read there is nothing to complain of.
        let _ = self.submit(&self.readable, eventfd);
    }

    fn forget_done(&self) {
        let mut events = [IoEvent::default(); 64];
        let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the kernel writes at most so many events as there is room for; all of it is live during the call.
        unsafe {
            libc::syscall(
                libc::SYS_io_getevents,
                self.context,
                0 as libc::c_long,
                events.len() as libc::c_long,
                events.as_mut_ptr(),
                &now,
            )
        };
    }
}

impl Drop for Raiser {
    fn drop(&mut self) {
        // SAFETY: the context is ours, and no request is on its way: each was done when its call returned.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.context) };
    }
}

const _: () = assert!(size_of::<Iocb>() == 64 && size_of::<IoEvent>() == 32);

#[cfg(test)]
pub mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::fd::FromRawFd;

    /// An eventfd, without O_NONBLOCK unless `flags` says so.
    pub fn eventfd(flags: libc::c_int) -> File {
        // SAFETY: no memory is involved; the result is checked below.
        let fd = unsafe { libc::eventfd(0, flags | libc::EFD_CLOEXEC) };
        assert!(fd >= 0);
        // SAFETY: `fd` is new and belongs to nobody else.
        unsafe { File::from_raw_fd(fd) }
    }

    fn of(file: &File) -> OwnedFd {
        file.try_clone().unwrap().into()
    }

    fn count(mut eventfd: &File) -> u64 {
        let mut count = [0; 8];
        eventfd.read_exact(&mut count).unwrap();
        u64::from_ne_bytes(count)
    }

    #[test]
    fn each_raise_counts() {
        let counter = eventfd(0);
        let raised = EventFd::new(of(&counter)).unwrap();
        // More than the kernel keeps of what is done.
        for _ in 0..5000 {
            raised.raise();
        }
        assert_eq!(count(&counter), 5000, "and looking at it is no raise");
    }

    #[test]
    fn full_counter_is_not_waited_for() {
        let counter = eventfd(0);
        (&counter).write_all(&(u64::MAX - 1).to_ne_bytes()).unwrap();
        let raised = EventFd::new(of(&counter)).unwrap();
        for _ in 0..5 {
            raised.raise();
        }
        assert_eq!(count(&counter), u64::MAX);
    }

    #[test]
    fn what_is_no_eventfd_is_refused() {
        let (reader, writer) = std::io::pipe().unwrap();
        let others: [OwnedFd; 3] = [reader.into(), writer.into(), File::open("/dev/null").unwrap().into()];
        for other in others {
            assert!(EventFd::new(other).is_err());
        }
    }

    #[test]
    fn many_threads_get_in_each_others_way_without_harm() {
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let counter = eventfd(0);
                    for n in 1..2000 {
                        EventFd::new(of(&counter)).expect("an eventfd").raise();
                        assert!(n % 100 > 0 || count(&counter) == 100);
                    }
                });
            }
        });
    }
}
