//! A hostile client. Bytes say what it does: messages whole and in pieces, right and wrong, with files that block, are
//! no memory or are truncated; what it has its driver write; how often it comes and goes. Beside it lives an honest
//! guest of the same server.
//!
//! Called by tests below, with random bytes and with what a fuzzer kept, and by the fuzz target (`fuzz/`). Whatever the
//! bytes: nothing panics, nothing waits for the client, and the honest guest's traffic goes on. Behind the feature
//! `test-utils`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a mistake of a test ends the test")]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use pvrdma_device::guest::Roce;
use pvrdma_device::testing::driver::{Driver, Layout};
use pvrdma_device::testing::end::{End, Path, connect, pump};
use pvrdma_device::testing::queue::{QpSize, SendWr, sge};
use pvrdma_device::transport::fabric::Fabric;
use pvrdma_ffi::dev_api::*;
use pvrdma_ffi::rng::Input;
use zerocopy::IntoBytes;

use crate::channel::{Channel, Patience};
use crate::complaints::Complaints;
use crate::connection::Connection;
use crate::function::{Function, Plan};
use crate::protocol::*;
use crate::session;

const PAGE: u64 = 4096;
/// Pages of the guest: shared region, two slots, two rings of four pages, their directories, and some to play with.
const PAGES: u64 = 32;
const DSR: u64 = 1;
const REQUEST: u64 = 2;
const RESPONSE: u64 = 3;
const RINGS: [u64; 2] = [4, 8];
const DIRECTORIES: [u64; 2] = [12, 14];
/// Pages of objects that commands make, and a directory of them.
const OBJECTS: u64 = 18;
const OBJECT_DIRECTORY: u64 = 16;

/// Steps of one run; bytes behind them are not looked at.
const STEPS: u32 = 300;

/// What came of a run, so that a test can tell whether its bytes reach anything.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    /// Messages that were carried out.
    pub done: u32,
    /// Messages that were refused.
    pub refused: u32,
    /// Connections that the server ended.
    pub ended: u32,
    /// Shared regions that were taken.
    pub sessions: u32,
    /// Times that memory was found missing.
    pub lost: u32,
}

/// Runs the client that `bytes` describe.
pub fn run(bytes: &[u8]) -> Summary {
    let mut input = Input(bytes);
    let fabric = Fabric::new();
    let honest = Honest::new(&fabric);
    let mut client = Client::new(fabric);
    let mut steps = 0;
    while !input.is_empty() && steps < STEPS {
        client.step(&mut input);
        steps += 1;
    }
    let summary = client.summary;
    honest.goes_on();
    drop(client);
    honest.goes_on();
    summary
}

/// A guest that talks to itself.
struct Honest {
    ends: [End; 2],
}

impl Honest {
    fn new(fabric: &Arc<Fabric>) -> Honest {
        let driver = Arc::new(Driver::limited(fabric, 1, Layout::Ranges, 1 << 20, 8 << 20));
        let ends = [(); 2].map(|()| End::new(&driver, QpSize::wr(8)));
        connect(&ends[0], &ends[1], &Path::default());
        Honest { ends }
    }

    fn goes_on(&self) {
        let [a, b] = &self.ends;
        let (from, to) = (a.region(64), b.region(64));
        from.set(0, b"what it sends");
        a.send(&SendWr::write(1, &[sge(&from, 0, 13)], &to, 0));
        pump(&[&*a.driver]);
        assert_eq!(a.send_cq.ends(), [(1, 0)]);
        assert_eq!(to.get(0, 13), b"what it sends");
        a.driver.dereg(&from);
        a.driver.dereg(&to);
    }
}

/// The server's end of a connection.
struct Server {
    channel: Channel,
    connection: Connection,
    lost: Arc<crate::dma::DmaMap>,
}

struct Client {
    fabric: Arc<Fabric>,
    plan: Plan,
    /// Its end, as long as the server keeps the other.
    link: Option<(UnixStream, Server)>,
    ram: File,
    files: Vec<File>,
    /// Bytes of a message that are still to be sent.
    unsent: Vec<u8>,
    reply: Vec<u8>,
    summary: Summary,
}

fn memfd(len: u64) -> File {
    // SAFETY: the name is a C string; the result is checked below.
    let fd = unsafe { libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0);
    // SAFETY: `fd` is new and belongs to nobody else.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(len).unwrap();
    file
}

fn eventfd(value: u64) -> File {
    // SAFETY: no memory is involved; the result is checked below.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    assert!(fd >= 0);
    // SAFETY: `fd` is new and belongs to nobody else.
    let mut file = unsafe { File::from_raw_fd(fd) };
    file.write_all(&value.to_ne_bytes()).unwrap();
    file
}

impl Client {
    fn new(fabric: Arc<Fabric>) -> Client {
        let (reader, writer) = std::io::pipe().unwrap();
        let (reader, writer): (std::os::fd::OwnedFd, std::os::fd::OwnedFd) = (reader.into(), writer.into());
        let files = vec![
            // More memory, what raises interrupts, and what makes others wait or is neither.
            memfd(2 * PAGE),
            eventfd(0),
            eventfd(u64::MAX - 1),
            reader.into(),
            writer.into(),
            File::options().read(true).write(true).open("/dev/null").unwrap(),
        ];
        let plan = Plan {
            config: session::config([2; 8], 0, Roce::V2),
            faults: None,
            trace: None,
            capture: None,
            shown: Arc::default(),
        };
        let ram = memfd(PAGES * PAGE);
        let client =
            Client { fabric, plan, link: None, ram, files, unsent: vec![], reply: vec![], summary: Summary::default() };
        client.write_dsr();
        client
    }

    /// The shared region and its rings, as a driver has them.
    fn write_dsr(&self) {
        self.ram.set_len(PAGES * PAGE).unwrap();
        let entries =
            |pages: std::ops::Range<u64>| pages.flat_map(|page| (page * PAGE).to_le_bytes()).collect::<Vec<_>>();
        for (ring, directory) in RINGS.into_iter().zip(DIRECTORIES) {
            self.put(directory * PAGE, &((directory + 1) * PAGE).to_le_bytes());
            self.put((directory + 1) * PAGE, &entries(ring..ring + 4));
        }
        self.put(OBJECT_DIRECTORY * PAGE, &((OBJECT_DIRECTORY + 1) * PAGE).to_le_bytes());
        self.put((OBJECT_DIRECTORY + 1) * PAGE, &entries(OBJECTS..PAGES));
        let [events, cqs] = DIRECTORIES.map(|directory| pvrdma_ring_page_info {
            num_pages: 4,
            reserved: 0,
            pdir_dma: directory * PAGE,
        });
        let region = pvrdma_device_shared_region {
            driver_version: PVRDMA_VERSION,
            cmd_slot_dma: REQUEST * PAGE,
            resp_slot_dma: RESPONSE * PAGE,
            async_ring_pages: events,
            cq_ring_pages: cqs,
            uar_pfn64: 0xfe000,
            ..Default::default()
        };
        self.put(DSR * PAGE, region.as_bytes());
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.ram.write_all_at(bytes, at).unwrap();
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.below(24) {
            0 => self.link = None,
            1 | 2 => self.greet(),
            // All that a good client does, up to a driver that is at work.
            3 | 4 => self.boot(),
            5 => self.dma_map(input),
            6 => {
                let flags = input.known(&[0, UNMAP_ALL, UNMAP_GET_DIRTY]);
                let unmap = DmaUnmap { argsz: 24, flags, address: self.address(input), size: self.address(input) };
                self.send(command::DMA_UNMAP, unmap.as_bytes(), &[]);
            }
            7 | 8 => self.set_irqs(input),
            9 => {
                let info = input.pick(&[4, 5, 7]).unwrap_or(4);
                let body = [32, 0, input.number(), 0, 0, 0, 0, 0];
                self.send(info, body.as_bytes(), &[]);
            }
            10 => {
                let access =
                    RegionAccess { offset: self.offset(input), region: self.region(input), count: input.number() };
                self.send(command::REGION_READ, access.as_bytes(), &[]);
            }
            11..=13 => {
                let count = input.pick(&[4, 4, 4, 1, 2, 8]).unwrap_or(4);
                let (region, offset) = (self.region(input), self.offset(input));
                let data: Vec<u8> = (0..count).map(|_| input.byte()).collect();
                self.region_write(region, offset, &data);
            }
            14 => self.send(command::DEVICE_RESET, &[], &[]),
            15..=17 => self.command(input),
            18 => {
                // Its memory shrinks; what is written there later makes it grow again.
                let pages = input.pick(&[0, 1, DSR + 1, REQUEST, 4, 9, 13, OBJECTS, PAGES, PAGES]).unwrap_or(PAGES);
                self.ram.set_len(pages * PAGE).unwrap();
                if input.flag() {
                    self.region_write(1, PVRDMA_REG_REQUEST.into(), &[0; 4]);
                }
            }
            19 => self.write_dsr(),
            20 => {
                let at = u64::from(input.number()) % (PAGES * PAGE - 4);
                self.put(at, &input.number().to_le_bytes());
            }
            21 => self.lie(input),
            22 => {
                // Half of a message now; the rest may follow, or another message.
                let cut = input.below(16 + 32);
                let access = RegionAccess { offset: 0, region: 1, count: 4 };
                let message = whole(command::REGION_READ, 0, access.as_bytes(), None);
                let cut = cut.min(message.len());
                self.unsent = message[cut..].to_vec();
                self.transmit(&message[..cut], &[]);
            }
            _ => {
                let rest = std::mem::take(&mut self.unsent);
                self.transmit(&rest, &[]);
            }
        }
    }

    /// A fresh connection, with the version agreed on.
    fn greet(&mut self) {
        self.connect();
        let version = Version { major: 0, minor: 1 };
        self.send(command::VERSION, &[version.as_bytes(), b"{}\0"].concat(), &[]);
    }

    fn connect(&mut self) {
        self.link = None;
        let (own, other) = UnixStream::pair().unwrap();
        own.set_nonblocking(true).unwrap();
        let function = Function::new(self.fabric.clone(), &self.plan, Arc::new(Complaints::mute()));
        let lost = function.memory().clone();
        let now = Patience { greeting: Duration::ZERO, message: Duration::from_millis(1) };
        let channel = Channel::new(Arc::new(other), now).unwrap();
        self.link = Some((own, Server { channel, connection: Connection::new(function), lost }));
    }

    fn boot(&mut self) {
        self.greet();
        self.write_dsr();
        let map = DmaMap { argsz: 32, flags: 3, offset: 0, address: 0, size: PAGES * PAGE };
        self.send(command::DMA_MAP, map.as_bytes(), &[self.ram.as_raw_fd()]);
        self.region_write(CONFIG_REGION, 4, &6u16.to_le_bytes());
        let registers = [
            (PVRDMA_REG_DSRLOW, (DSR * PAGE) as u32),
            (PVRDMA_REG_DSRHIGH, 0),
            (PVRDMA_REG_IMR, 0),
            (PVRDMA_REG_CTL, PVRDMA_DEVICE_CTL_ACTIVATE),
        ];
        for (register, value) in registers {
            self.region_write(1, register.into(), &value.to_le_bytes());
        }
        self.summary.sessions += u32::from(self.link.is_some());
    }

    fn dma_map(&mut self, input: &mut Input<'_>) {
        let fds: Vec<RawFd> = (0..input.pick(&[1, 1, 1, 0, 2]).unwrap_or(1)).map(|_| self.file(input)).collect();
        let offset = self.address(input);
        let map = DmaMap {
            argsz: 32,
            flags: input.number(),
            offset,
            address: self.address(input),
            size: self.address(input),
        };
        self.send(command::DMA_MAP, map.as_bytes(), &fds);
    }

    fn set_irqs(&mut self, input: &mut Input<'_>) {
        let count = input.known(&[0, 1, 3]);
        let fds: Vec<RawFd> = match input.rarely() {
            false => (0..count.min(3)).map(|_| self.files[1 + input.below(2)].as_raw_fd()).collect(),
            true => (0..input.below(12)).map(|_| self.file(input)).collect(),
        };
        let flags = input.known(&[0x24, 0x21]);
        let set = IrqSet { argsz: 20, flags, index: input.known(&[2]), start: input.known(&[0, 0, 1]), count };
        self.send(command::DEVICE_SET_IRQS, set.as_bytes(), &fds);
    }

    /// A command of the driver, mostly one that makes sense of some pages.
    fn command(&mut self, input: &mut Input<'_>) {
        let mut request = [0u8; PVRDMA_CMD_REQ_LEN];
        let cmd = input.known(&(0..21).collect::<Vec<u32>>());
        for word in request.as_chunks_mut::<4>().0.iter_mut().skip(4).take(18) {
            *word = input.number().to_le_bytes();
        }
        request[8..12].copy_from_slice(&cmd.to_le_bytes());
        if input.flag() {
            let at = if cmd == PVRDMA_CMD_CREATE_MR { 32 } else { 16 };
            request[at..at + 8].copy_from_slice(&(OBJECT_DIRECTORY * PAGE).to_le_bytes());
        }
        self.put(REQUEST * PAGE, &request);
        self.region_write(1, PVRDMA_REG_REQUEST.into(), &[0; 4]);
    }

    /// A message that is not what it says.
    fn lie(&mut self, input: &mut Input<'_>) {
        let len = input.below(80);
        let body: Vec<u8> = (0..len).map(|_| input.byte()).collect();
        let size = input.known(&[16, 20, 16 + len as u32, 15, 0, u32::MAX]);
        let flags = input.known(&[TYPE_COMMAND, NO_REPLY, TYPE_REPLY, TYPE_COMMAND]);
        let fds: Vec<RawFd> = (0..input.pick(&[0, 0, 1, 9]).unwrap_or(0)).map(|_| self.file(input)).collect();
        let message = whole(input.number() as u16, flags, &body, Some(size));
        self.transmit(&message, &fds);
    }

    fn file(&self, input: &mut Input<'_>) -> RawFd {
        match input.byte() {
            0..96 => self.ram.as_raw_fd(),
            n => self.files[usize::from(n) % self.files.len()].as_raw_fd(),
        }
    }

    fn address(&self, input: &mut Input<'_>) -> u64 {
        match input.below(4) {
            0 => 0,
            1 => u64::from(input.byte()) % (PAGES + 1) * PAGE,
            2 => u64::from(input.number()),
            _ => u64::from(input.number()) << 32 | u64::from(input.number()),
        }
    }

    fn region(&self, input: &mut Input<'_>) -> u32 {
        input.known(&[1, 2, CONFIG_REGION, 1, 0])
    }

    fn offset(&self, input: &mut Input<'_>) -> u64 {
        match input.below(4) {
            0 | 1 => u64::from(input.byte() & 0x3c),
            2 => u64::from(input.byte() & 3) * PAGE + u64::from(input.byte() & 12),
            _ => u64::from(input.number()),
        }
    }

    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) {
        let access = RegionAccess { offset, region, count: data.len() as u32 };
        self.send(command::REGION_WRITE, &[access.as_bytes(), data].concat(), &[]);
    }

    fn send(&mut self, asked: u16, body: &[u8], fds: &[RawFd]) {
        self.transmit(&whole(asked, 0, body, None), fds);
    }

    /// Sends bytes and has the server do all that it can with them.
    fn transmit(&mut self, bytes: &[u8], fds: &[RawFd]) {
        if self.link.is_none() {
            self.connect();
        }
        let Some((own, server)) = &mut self.link else { return };
        if send_with(own, bytes, fds) {
            while server.has_input() {
                if !server.turn(&mut self.reply) {
                    self.summary.ended += 1;
                    self.summary.lost += u32::from(server.lost.is_lost());
                    self.link = None;
                    return;
                }
                // Each reply is one packet of the header at least, unless none was wanted.
                let mut reply = [0; MAX_BODY + 16];
                if let Ok(read @ 16..) = own.read(&mut reply) {
                    match reply[8] {
                        0x1 => self.summary.done += 1,
                        0x21 => self.summary.refused += 1,
                        flags => panic!("a reply of {read} bytes has the flags {flags:#x}"),
                    }
                }
            }
            if server.lost.is_lost() {
                // `server.rs` hangs up, from whatever thread noticed it.
                self.summary.lost += 1;
                self.link = None;
            }
        }
    }
}

impl Server {
    fn has_input(&self) -> bool {
        self.channel.has_input()
    }

    /// One message. False: the connection is over.
    fn turn(&mut self, reply: &mut Vec<u8>) -> bool {
        let Ok(message) = self.channel.receive() else { return false };
        let agreed = self.connection.answer(message, reply);
        self.channel.send(reply).is_ok() && agreed
    }
}

/// A message, with the size that it has or another.
fn whole(asked: u16, flags: u32, body: &[u8], size: Option<u32>) -> Vec<u8> {
    let message_size = size.unwrap_or(16 + body.len() as u32);
    let header = Header { message_id: 1, command: asked, message_size, flags, error: 0 };
    [header.as_bytes(), body].concat()
}

/// sendmsg(2) with files.
fn send_with(socket: &UnixStream, bytes: &[u8], fds: &[RawFd]) -> bool {
    #[repr(C, align(8))]
    struct Control([u8; 128]);
    let mut control = Control([0; 128]);
    let mut iov = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: a msghdr is plain data, for which zeroes are a value.
    let mut msg: libc::msghdr = unsafe { std::mem::zeroed() };
    msg.msg_iov = &mut iov;
    msg.msg_iovlen = 1;
    if !fds.is_empty() {
        let len = size_of_val(fds) as u32;
        msg.msg_control = control.0.as_mut_ptr().cast();
        // SAFETY: arithmetic on a length; 12 descriptors, the most there are, fit.
        msg.msg_controllen = unsafe { libc::CMSG_SPACE(len) } as _;
        // SAFETY: `control` has room for a header, and for the descriptors behind it.
        unsafe {
            let cmsg = libc::CMSG_FIRSTHDR(&msg);
            (*cmsg).cmsg_level = libc::SOL_SOCKET;
            (*cmsg).cmsg_type = libc::SCM_RIGHTS;
            (*cmsg).cmsg_len = libc::CMSG_LEN(len) as _;
            libc::CMSG_DATA(cmsg).cast::<RawFd>().copy_from_nonoverlapping(fds.as_ptr(), fds.len());
        }
    }
    // SAFETY: `msg` names `bytes` and `control`, live during the call.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &msg, libc::MSG_NOSIGNAL) };
    usize::try_from(sent) == Ok(bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use pvrdma_ffi::rng::{Rng, replay, steps};

    #[test]
    fn random_bytes_harm_nobody() {
        let mut rng = Rng::from_env(1);
        let runs = steps(300);
        let mut all = Summary::default();
        for n in 0..runs {
            let len = 1 + rng.below(3000) as usize;
            let seed = rng.word();
            println!("run {n}: {len} bytes of seed {seed}");
            let one = run(&Rng::new(seed).bytes(len));
            all.done += one.done;
            all.refused += one.refused;
            all.ended += one.ended;
            all.sessions += one.sessions;
            all.lost += one.lost;
        }
        println!("{runs} runs: {all:?}");
        // It must get everywhere.
        let runs = runs as u32;
        assert!(all.done > runs * 5 && all.refused > runs && all.ended > runs / 2, "{all:?} in {runs} runs");
        assert!(all.sessions > runs / 2 && all.lost > runs / 20, "{all:?} in {runs} runs");
    }

    #[test]
    fn inputs_that_a_fuzzer_kept_harm_nobody() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/client");
        replay(folder, 50, |bytes| {
            run(bytes);
            true
        });
    }
}
