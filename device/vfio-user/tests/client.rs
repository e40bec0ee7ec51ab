//! A client that is not QEMU, over the real socket: it breaks the protocol, gives files that make others wait, takes
//! back its memory, or says nothing. It can end itself only; guests of the same server go on beside it, and its socket
//! is there for the next client.

mod by_hand;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use by_hand::{Guest, Pair, RAM, Region, Servers, joined, memfd, servers};
use pvrdma_ffi::dev_api::*;
use pvrdma_ffi::uapi::vmw_pvrdma::*;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

const VERSION: u16 = 1;
const DMA_MAP: u16 = 2;
const DMA_UNMAP: u16 = 3;
const GET_REGION_IO_FDS: u16 = 6;
const SET_IRQS: u16 = 8;
const REGION_READ: u16 = 9;
const REGION_WRITE: u16 = 10;
const NO_REPLY: u32 = 0x10;
const REG: u32 = PVRDMA_PCI_RESOURCE_REG as u32;
const EINVAL: u32 = libc::EINVAL as u32;

/// A client that sends what it is told.
struct Raw {
    socket: UnixStream,
    id: u16,
}

/// What came back.
#[derive(Debug, PartialEq, Eq)]
enum Reply {
    /// What follows the header.
    Done(Vec<u8>),
    Refused(u32),
    /// The server has closed the connection.
    Ended,
}

/// A message with the size that it has.
fn message(id: u16, command: u16, flags: u32, body: &[u8]) -> Vec<u8> {
    with_size(id, command, flags, body, 16 + body.len() as u32)
}

fn with_size(id: u16, command: u16, flags: u32, body: &[u8], size: u32) -> Vec<u8> {
    let header = [&id.to_le_bytes()[..], &command.to_le_bytes(), &size.to_le_bytes(), &flags.to_le_bytes(), &[0; 4]];
    [&header.concat(), body].concat()
}

/// Words of a body, one after the other.
fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn map(address: u64, size: u64) -> Vec<u8> {
    [&words(&[32, 3])[..], &0u64.to_le_bytes(), &address.to_le_bytes(), &size.to_le_bytes()].concat()
}

fn access(offset: u64, region: u32, count: u32) -> Vec<u8> {
    [&offset.to_le_bytes()[..], &words(&[region, count])].concat()
}

fn greeting() -> Vec<u8> {
    message(1, VERSION, 0, b"\0\0\x01\0{\"capabilities\":{\"max_msg_fds\":8}}\0")
}

impl Raw {
    /// Connects, and says nothing.
    fn connect(path: &Path) -> Raw {
        Raw { socket: UnixStream::connect(path).unwrap(), id: 1 }
    }

    /// Connects and agrees on the version.
    fn greet(path: &Path) -> Raw {
        let mut client = Raw::connect(path);
        client.send(&greeting());
        assert!(matches!(client.reply(), Reply::Done(_)));
        client
    }

    fn send(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).unwrap();
    }

    /// Waits until the server has taken in all that was sent.
    fn wait_until_taken(&self) {
        let mut unread: libc::c_int = 1;
        while unread > 0 {
            std::thread::yield_now();
            // SAFETY: SIOCOUTQ (TIOCOUTQ by its other name) writes a number to `unread`.
            assert_eq!(unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::TIOCOUTQ, &mut unread) }, 0);
        }
    }

    fn ask_with(&mut self, command: u16, body: &[u8], fds: &[RawFd]) -> Reply {
        self.id += 1;
        let message = message(self.id, command, 0, body);
        assert_eq!(self.socket.send_with_fds(&[&message[..]], fds).unwrap(), message.len());
        self.reply()
    }

    fn ask(&mut self, command: u16, body: &[u8]) -> Reply {
        self.ask_with(command, body, &[])
    }

    /// Reads a reply to the last message.
    fn reply(&mut self) -> Reply {
        let mut header = [0; 16];
        if self.socket.read_exact(&mut header).is_err() {
            return Reply::Ended;
        }
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
        assert_eq!(u16::from_le_bytes([header[0], header[1]]), self.id, "the message that is answered");
        let mut body = vec![0; word(4) as usize - 16];
        self.socket.read_exact(&mut body).unwrap();
        match word(8) {
            0x1 => Reply::Done(body),
            0x21 => {
                assert!(body.is_empty(), "an error has a header only");
                Reply::Refused(word(12))
            }
            flags => panic!("flags of a reply: {flags:#x}"),
        }
    }

    /// A register that every device has.
    fn version_register(&mut self) -> Reply {
        self.ask(REGION_READ, &access(0, REG, 4))
    }
}

/// Two guests that write to each other, and a third socket for somebody else.
struct World {
    servers: Servers,
    others: [(Guest, Pair, Region); 2],
    writes: u64,
}

impl World {
    fn new() -> World {
        let servers = servers(3);
        let others = joined(&servers, 4096);
        World { servers, others, writes: 0 }
    }

    fn third(&self) -> &Path {
        &self.servers.paths[2]
    }

    /// The other guests' traffic goes on.
    fn goes_on(&mut self) {
        self.writes += 1;
        let word = self.writes.to_le_bytes();
        let [a, b] = &mut self.others;
        a.0.ram.write_all_at(&word, Guest::place(&a.2, 0)).unwrap();
        a.0.post_write(&mut a.1, self.writes, &a.2, &b.2, 8);
        a.0.ring_send(&a.1);
        assert_eq!(a.0.wait(&a.1), (self.writes, PVRDMA_WC_SUCCESS));
        let mut arrived = [0; 8];
        b.0.ram.read_exact_at(&mut arrived, Guest::place(&b.2, 0)).unwrap();
        assert_eq!(arrived, word);
    }

    /// The third socket takes a guest, once the client before has gone.
    fn third_serves(&self) {
        let _ = Guest::boot(self.third(), 3).pair(1);
    }
}

#[test]
fn read_of_four_gigabytes_is_refused_and_costs_nothing() {
    let mut world = World::new();
    let mut client = Raw::greet(world.third());
    for count in [4097, 1 << 20, 0x7fff_ffff, 0xffff_ffbf, u32::MAX] {
        for region in 0..9 {
            assert_eq!(client.ask(REGION_READ, &access(0, region, count)), Reply::Refused(EINVAL), "{count:#x}");
        }
    }
    assert_eq!(client.ask(REGION_READ, &access(0, 9, 4)), Reply::Refused(EINVAL), "a region that is not there");
    // All that may be asked for at once, far from any register.
    let Reply::Done(read) = client.ask(REGION_READ, &access(u64::MAX - 10, REG, 4096)) else { panic!() };
    assert!(read.len() == 16 + 4096 && read[16..].iter().all(|byte| *byte == 0xff));
    world.goes_on();
}

#[test]
fn sizes_that_lie_are_refused() {
    let mut world = World::new();
    let mut client = Raw::greet(world.third());
    for (command, least) in
        [(DMA_MAP, 32), (DMA_UNMAP, 24), (4, 16), (5, 32), (7, 16), (SET_IRQS, 20), (REGION_READ, 16)]
    {
        assert_eq!(client.ask(command, &vec![0; least - 1]), Reply::Refused(EINVAL), "command {command}");
    }
    // A write whose data is shorter or longer than it says.
    for (count, data) in [(4, &b"abc"[..]), (2, b"abc"), (u32::MAX, b""), (0, b"abc")] {
        let body = [&access(0, REG, count)[..], data].concat();
        assert_eq!(client.ask(REGION_WRITE, &body), Reply::Refused(EINVAL), "{count}");
    }
    assert!(matches!(client.version_register(), Reply::Done(_)), "it may go on");
    drop(client);
    // Where the next message would begin is not known after these.
    for size in [0, 1, 15, 16 + 16 + 4096 + 1, 0x7fff_ffff, u32::MAX] {
        let mut client = Raw::greet(world.third());
        client.send(&with_size(2, REGION_READ, 0, &access(0, REG, 4), size));
        client.id = 2;
        assert_eq!(client.reply(), Reply::Ended, "size {size:#x}");
    }
    world.goes_on();
    world.third_serves();
}

#[test]
fn greeting_of_a_wrong_size_is_no_defect() {
    let mut world = World::new();
    for size in [0, 1, 15, 16, 17, 19, 4200, 0x7fff_ffff, u32::MAX] {
        let mut client = Raw::connect(world.third());
        client.send(&with_size(1, VERSION, 0, &[], size));
        // Those that announce more than comes are still waited for.
        client.socket.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(matches!(client.reply(), Reply::Refused(EINVAL) | Reply::Ended), "size {size:#x}");
        drop(client);
        world.goes_on();
    }
    // Text that is none, and no text.
    for text in [&b"\xff\xfe{{{{"[..], b""] {
        let mut client = Raw::connect(world.third());
        client.send(&message(1, VERSION, 0, &[b"\0\0\0\0", text].concat()));
        assert!(matches!(client.reply(), Reply::Done(_)), "nothing in it is of interest");
    }
    world.third_serves();
}

#[test]
fn the_version_comes_first_and_once() {
    let world = World::new();
    let mut client = Raw::connect(world.third());
    assert_eq!(client.version_register(), Reply::Refused(EINVAL), "before the version");
    assert_eq!(client.reply(), Reply::Ended);

    let mut client = Raw::connect(world.third());
    client.send(&message(1, VERSION, 0, b"\x01\0\0\0"));
    assert_eq!(client.reply(), Reply::Refused(EINVAL), "another major version");
    assert_eq!(client.reply(), Reply::Ended);

    let mut client = Raw::greet(world.third());
    client.send(&greeting());
    client.id = 1;
    assert_eq!(client.reply(), Reply::Refused(EINVAL), "a second time");
    assert_eq!(client.reply(), Reply::Ended);
    world.third_serves();
}

#[test]
fn message_in_two_pieces_is_one_message() {
    let world = World::new();
    let whole = greeting();
    for cut in 1..whole.len() {
        let mut client = Raw::connect(world.third());
        client.send(&whole[..cut]);
        client.wait_until_taken();
        client.send(&whole[cut..]);
        assert!(matches!(client.reply(), Reply::Done(_)), "cut at {cut}");
    }
    // Many in one piece are many.
    let mut client = Raw::greet(world.third());
    let read = message(1, REGION_READ, 0, &access(0, REG, 4));
    client.send(&read.repeat(100));
    client.id = 1;
    for _ in 0..100 {
        assert!(matches!(client.reply(), Reply::Done(_)));
    }
}

#[test]
fn silence_in_the_middle_of_a_message_is_the_clients_own() {
    let mut world = World::new();
    for cut in [1, 15, 16, 20] {
        let mut client = Raw::connect(world.third());
        client.send(&greeting()[..cut]);
        client.wait_until_taken();
        world.goes_on();
        drop(client);
        world.third_serves();
    }
}

#[test]
fn commands_that_are_not_there_are_refused() {
    let world = World::new();
    let mut client = Raw::greet(world.third());
    for command in [0, GET_REGION_IO_FDS, 11, 12, 14, 15, 16, 17, 18, 999, u16::MAX] {
        assert_eq!(client.ask(command, &[0; 64]), Reply::Refused(libc::EOPNOTSUPP as u32), "command {command}");
    }
    // Nor does this end ask anything that could be answered.
    client.send(&message(9, REGION_READ, 1, &access(0, REG, 4)));
    assert_eq!(client.reply(), Reply::Ended);
}

#[test]
fn who_wants_no_reply_gets_none() {
    let world = World::new();
    let mut client = Raw::greet(world.third());
    client.send(&message(50, REGION_READ, NO_REPLY, &access(0, REG, 4)));
    client.send(&message(51, 999, NO_REPLY, &[]));
    assert!(matches!(client.version_register(), Reply::Done(_)), "the only one that is answered");
}

#[test]
fn second_client_is_sent_away_at_once() {
    let mut world = World::new();
    let mut client = Raw::greet(world.third());
    for _ in 0..3 {
        let mut second = Raw::connect(world.third());
        second.send(&greeting());
        assert_eq!(second.reply(), Reply::Refused(libc::EBUSY as u32));
        assert_eq!(second.reply(), Reply::Ended);
    }
    // One that leaves before it has said anything is no trouble either.
    drop(Raw::connect(world.third()));
    assert!(matches!(client.version_register(), Reply::Done(_)), "the first notices nothing");
    drop(client);
    world.third_serves();
    world.goes_on();
}

#[test]
fn more_files_than_a_message_may_have_end_it() {
    let mut world = World::new();
    let ram = memfd(RAM);
    let fd = ram.as_raw_fd();
    let mut client = Raw::greet(world.third());
    assert_eq!(client.ask_with(DMA_MAP, &map(0, 4096), &[fd; 2]), Reply::Refused(EINVAL), "two for one range");
    assert!(matches!(client.ask_with(REGION_READ, &access(0, REG, 4), &[fd; 8]), Reply::Done(_)), "no use for them");
    assert_eq!(client.ask_with(REGION_READ, &access(0, REG, 4), &[fd; 9]), Reply::Ended);
    world.goes_on();
    world.third_serves();
}

#[test]
fn memory_is_taken_only_from_files_that_cannot_wait() {
    let mut world = World::new();
    let mut client = Raw::greet(world.third());
    let (reader, _writer) = std::io::pipe().unwrap();
    let others: [&dyn AsRawFd; 4] =
        [&reader, &File::open("/dev/zero").unwrap(), &File::open("/proc/version").unwrap(), &EventFd::new(0).unwrap()];
    for other in others {
        assert_eq!(client.ask_with(DMA_MAP, &map(0, 4096), &[other.as_raw_fd()]), Reply::Refused(EINVAL));
    }
    let ram = memfd(RAM);
    assert_eq!(client.ask_with(DMA_MAP, &map(0, RAM + 1), &[ram.as_raw_fd()]), Reply::Refused(EINVAL), "past its end");
    assert_eq!(client.ask_with(DMA_MAP, &map(0, RAM), &[ram.as_raw_fd()]), Reply::Done(vec![]));
    world.goes_on();
}

#[test]
fn memory_of_a_guest_has_bounds() {
    let mut world = World::new();
    let mut client = Raw::greet(world.third());
    let huge = memfd(2 << 40);
    let fd = huge.as_raw_fd();
    assert_eq!(client.ask_with(DMA_MAP, &map(0, 2 << 40), &[fd]), Reply::Refused(EINVAL));
    assert_eq!(client.ask_with(DMA_MAP, &map(0, 1 << 40), &[fd]), Reply::Done(vec![]));
    assert_eq!(client.ask_with(DMA_MAP, &map(1 << 40, 4096), &[fd]), Reply::Refused(EINVAL));
    // Everything, by the flag for it.
    let unmap = [&words(&[24, 2])[..], &[0; 16]].concat();
    assert_eq!(client.ask(DMA_UNMAP, &unmap), Reply::Done(unmap));
    for range in 0..512 {
        assert_eq!(client.ask_with(DMA_MAP, &map(range << 20, 4096), &[fd]), Reply::Done(vec![]), "range {range}");
    }
    assert_eq!(client.ask_with(DMA_MAP, &map(512 << 20, 4096), &[fd]), Reply::Refused(EINVAL));
    assert_eq!(client.ask(DMA_MAP, &map(512 << 20, 4096)), Reply::Refused(EINVAL), "nor one without a file");
    world.goes_on();
}

#[test]
fn guest_that_truncates_its_memory_ends_itself() {
    let mut world = World::new();
    let mut guest = Guest::boot(world.third(), 3);
    guest.ram.set_len(0).unwrap();
    // The device looks for the command in memory that is not there any more.
    let _ = guest.client.region_write(REG, u64::from(PVRDMA_REG_REQUEST), &[0; 4]);
    assert!(guest.client.region_read(REG, 0, &mut [0; 4]).is_err(), "it is not served any more");
    world.goes_on();
    world.third_serves();
}

#[test]
fn who_writes_into_truncated_memory_hears_of_it() {
    for all in [true, false] {
        let mut world = World::new();
        let [a, b] = &mut world.others;
        // All of it, or the payload and what lies behind it.
        b.0.ram.set_len(if all { 0 } else { Guest::place(&b.2, 0) }).unwrap();
        a.0.post_write(&mut a.1, 1, &a.2, &b.2, 4096);
        a.0.ring_send(&a.1);
        assert_eq!(a.0.wait(&a.1), (1, PVRDMA_WC_REM_ACCESS_ERR));
        assert_eq!(a.0.get(PVRDMA_REG_VERSION), 20, "the writer is served");
        assert!(b.0.client.region_read(REG, 0, &mut [0; 4]).is_err(), "the other is not");
        world.third_serves();
    }
}

#[test]
fn only_eventfds_are_taken_for_interrupts() {
    let mut world = World::new();
    let mut client = Raw::greet(world.third());
    let (_reader, writer) = std::io::pipe().unwrap();
    let others: [&dyn AsRawFd; 3] = [&writer, &File::options().write(true).open("/dev/null").unwrap(), &memfd(8)];
    for other in others {
        let set = words(&[20, 1 << 2 | 1 << 5, 2, 0, 1]);
        assert_eq!(client.ask_with(SET_IRQS, &set, &[other.as_raw_fd()]), Reply::Refused(EINVAL));
    }
    let eventfd = EventFd::new(EFD_NONBLOCK).unwrap();
    let three = [eventfd.as_raw_fd(); 3];
    for (index, start, count, fds, fits) in [
        (2, 0, 3, &three[..], true),
        (2, 0, 3, &[], true),
        (2, 0, 3, &three[..2], false),
        (2, 1, 3, &three, false),
        (2, u32::MAX, 2, &three[..2], false),
        (2, 0, u32::MAX, &three, false),
        (1, 0, 1, &three[..1], false),
        (5, 0, 0, &[], false),
        (u32::MAX, 0, 0, &[], false),
    ] {
        let reply = client.ask_with(SET_IRQS, &words(&[20, 1 << 2 | 1 << 5, index, start, count]), fds);
        assert_eq!(reply == Reply::Done(vec![]), fits, "{index} {start} {count} {fds:?}: {reply:?}");
    }
    world.goes_on();
}

#[test]
fn interrupt_that_cannot_be_raised_is_waited_for_by_nobody() {
    let mut world = World::new();
    let full = EventFd::new(0).unwrap();
    full.write(u64::MAX - 1).unwrap();
    let [a, b] = &mut world.others;
    for vector in 0..3 {
        b.0.client.set_irqs(2, 1 << 2 | 1 << 5, vector, 1, &[full.as_raw_fd()]).unwrap();
    }
    // A key that is not there is an event for the guest that was to be written to.
    let mut bad = b.2;
    bad.key ^= 0x5500;
    a.0.post_write(&mut a.1, 7, &a.2, &bad, 64);
    a.0.ring_send(&a.1);
    assert_eq!(a.0.wait(&a.1), (7, PVRDMA_WC_REM_ACCESS_ERR));
    assert_eq!(a.0.get(PVRDMA_REG_VERSION), 20);
    // Its own commands raise one each.
    let query = pvrdma_cmd_query_port { hdr: by_hand::hdr(PVRDMA_CMD_QUERY_PORT), port_num: 1, ..Default::default() };
    for _ in 0..10 {
        assert_eq!(b.0.command(&query), 0);
    }
}

#[test]
fn server_that_stops_leaves_nobody_without_an_answer() {
    let Servers { paths, server, .. } = &mut servers(2);
    let mut clients = [0, 1].map(|index: usize| Raw::greet(&paths[index]));
    let read = message(1, REGION_READ, 0, &access(0, REG, 4));
    for client in &mut clients {
        client.send(&read.repeat(100));
        client.id = 1;
    }
    server.take().unwrap().stop();
    for client in &mut clients {
        for answered in 0..100 {
            assert!(matches!(client.reply(), Reply::Done(_)), "after {answered} answers");
        }
        assert_eq!(client.reply(), Reply::Ended);
        assert!(client.socket.write_all(&read).is_err(), "what comes later is not taken at all");
    }
    assert!(paths.iter().all(|path| !path.exists()));
}
