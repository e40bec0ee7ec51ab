//! Ports of a guest: who has which, among all its processes.
//!
//! A port is a few bytes of a file that the guest's processes share, and who has it has a lock on them (fcntl(2)): one
//! byte for each kind of local address, all of them for an address of nobody in particular. The kernel takes the locks
//! of a process away when it ends, however it ends. A lock that others may share is that of an address to be reused.
//!
//! A second part of the file is of the same form: a lock there says that a process is likely to listen on the port in a
//! moment: it has just bound it, or listened until now and may do so again. It is in nobody's way who wants the port.
//!
//! Such locks belong to a process, not to a descriptor, so this process's own ports stand in a table beside it.

use crate::kernel::fd;
use crate::kernel::ucma::address::{Address, Place};
use crate::support::raw::{self, syscall};
use pvrdma_ffi::uapi::rdma_user_cm::{RDMA_PS_IB, RDMA_PS_IPOIB, RDMA_PS_UDP};
use std::collections::{HashMap, VecDeque};
use std::ffi::{CString, c_int};
use std::ops::Range;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::time::Instant;

/// Bytes of a port.
const KINDS: u64 = 4;
/// Bytes of a port space.
const SPACE: u64 = 65536 * KINDS;
/// Port spaces.
const SPACES: u64 = 4;
/// Where the second part of the file begins.
const LEFT_AT: u64 = SPACES * SPACE;
/// Ports that are given to who asks for any.
const EPHEMERAL: Range<u16> = 32768..61000;

struct Taken {
    bytes: Range<u64>,
    exclusive: bool,
}

/// See the module text.
pub struct Ports {
    file: c_int,
    /// By owner.
    taken: HashMap<u32, Taken>,
    /// The owners of each port, by where its bytes begin.
    owners: HashMap<u64, Vec<u32>>,
    /// What somebody here is likely to listen on, and until when that counts; the oldest first.
    left: VecDeque<(Option<u32>, Range<u64>, Instant)>,
    next: u16,
}

/// The bytes of a port, whatever the address.
fn all_of(ps: u16, port: u16) -> Range<u64> {
    let space = match ps {
        RDMA_PS_UDP => 1,
        RDMA_PS_IB => 2,
        RDMA_PS_IPOIB => 3,
        _ => 0,
    };
    let first = space * SPACE + u64::from(port) * KINDS;
    first..first + KINDS
}

/// The bytes that an address covers. `v6_only`: nobody in particular of IPv6 does not mean IPv4 too.
fn bytes_of(ps: u16, address: &Address, v6_only: bool) -> Range<u64> {
    let port = all_of(ps, address.port()).start;
    let kinds = match (address.is_v4(), address.place()) {
        (true, Place::Any) => 0..2,
        (true, Place::Guest(_)) => 0..1,
        (true, _) => 1..2,
        (false, Place::Any) if v6_only => 2..4,
        (false, Place::Any) => 0..4,
        (false, Place::Guest(_)) => 2..3,
        (false, _) => 3..4,
    };
    port + kinds.start..port + kinds.end
}

/// Where the bytes of the port begin that these belong to.
fn port_of(bytes: &Range<u64>) -> u64 {
    bytes.start - bytes.start % KINDS
}

/// The bytes that say who is likely to listen on a port. They are the same for TCP and UDP: perftest's `-c UD -R`
/// listens on the same number in the one space first and in the other then.
fn left_of(bytes: &Range<u64>) -> Range<u64> {
    let bytes =
        if (SPACE..2 * SPACE).contains(&bytes.start) { bytes.start - SPACE..bytes.end - SPACE } else { bytes.clone() };
    bytes.start + LEFT_AT..bytes.end + LEFT_AT
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

/// Opens the file of the guest whose directory this is; made if `make`.
fn open(directory: &Path, make: bool) -> Result<c_int, i32> {
    let path = directory.join("ports").into_os_string().into_vec();
    let path = CString::new(path).map_err(|_| libc::EINVAL)?;
    let flags = if make { libc::O_RDWR | libc::O_CREAT } else { libc::O_RDONLY } | libc::O_CLOEXEC;
    // SAFETY: a terminated string.
    let file = unsafe { syscall!(SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags, 0o600) } as c_int;
    if file < 0 { Err(raw::errno()) } else { Ok(file) }
}

/// fcntl(2) about a lock on `bytes`; returns what the kernel made of the request.
fn lock(file: c_int, command: c_int, kind: c_int, bytes: &Range<u64>) -> Result<c_int, i32> {
    // SAFETY: integers, for which zero is a value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as i16;
    lock.l_whence = libc::SEEK_SET as i16;
    lock.l_start = bytes.start as i64;
    lock.l_len = (bytes.end - bytes.start) as i64;
    // SAFETY: a struct of the kernel's layout, which on x86-64 is the C library's.
    let done = unsafe { syscall!(SYS_fcntl, file, command, &raw mut lock) };
    if done < 0 { Err(raw::errno()) } else { Ok(c_int::from(lock.l_type)) }
}

/// Whether a process other than this one has those bytes for itself, or had them to listen until a moment ago.
fn is_held(file: c_int, bytes: &Range<u64>) -> bool {
    // Shared ones are in nobody's way who would only share.
    let held = || lock(file, libc::F_GETLK, libc::F_RDLCK, bytes).is_ok_and(|kind| kind != libc::F_UNLCK);
    let left = || lock(file, libc::F_GETLK, libc::F_WRLCK, &left_of(bytes)).is_ok_and(|kind| kind != libc::F_UNLCK);
    // Who leaves says so before the port is free, and who is back may take that back: so it is asked for once more.
    held() || left() || held()
}

/// Whether a process of another guest, whose directory this is, has the port for itself or left it just now.
pub fn is_held_in(directory: &Path, ps: u16, address: &Address) -> bool {
    asks(directory, &bytes_of(ps, address, false))
}

/// The same, of the port at any address.
pub fn is_used_in(directory: &Path, ps: u16, port: u16) -> bool {
    asks(directory, &all_of(ps, port))
}

fn asks(directory: &Path, bytes: &Range<u64>) -> bool {
    let Ok(file) = open(directory, false) else { return false };
    let held = is_held(file, bytes);
    raw::close(file);
    held
}

impl Ports {
    /// The ports of the guest whose directory this is. `seed`: where to begin with ports for who asks for any.
    pub fn open(directory: &Path, seed: u64) -> Result<Ports, i32> {
        let file = fd::hide(open(directory, true)?);
        let count = u64::from(EPHEMERAL.end - EPHEMERAL.start);
        let next = EPHEMERAL.start + (seed % count) as u16;
        Ok(Ports { file, taken: HashMap::new(), owners: HashMap::new(), left: VecDeque::new(), next })
    }

    /// Takes the port of `address`, or any free one if that is 0, for `owner`.
    pub fn take(&mut self, owner: u32, ps: u16, address: Address, v6_only: bool, reuse: bool) -> Result<Address, i32> {
        if address.port() != 0 {
            self.take_bytes(owner, bytes_of(ps, &address, v6_only), !reuse)?;
            return Ok(address);
        }
        for _ in EPHEMERAL {
            let port = self.next;
            self.next = if port + 1 < EPHEMERAL.end { port + 1 } else { EPHEMERAL.start };
            let address = address.with_port(port);
            match self.take_bytes(owner, bytes_of(ps, &address, v6_only), true) {
                Ok(()) => return Ok(address),
                Err(libc::EADDRINUSE) => {}
                Err(errno) => return Err(errno),
            }
        }
        Err(libc::EADDRNOTAVAIL)
    }

    /// Those of the same port that others than `owner` have here.
    fn others(&self, owner: u32, bytes: &Range<u64>) -> impl Iterator<Item = &Taken> {
        let owners = self.owners.get(&port_of(bytes)).into_iter().flatten();
        owners.filter(move |other| **other != owner).filter_map(|other| self.taken.get(other))
    }

    fn take_bytes(&mut self, owner: u32, bytes: Range<u64>, exclusive: bool) -> Result<(), i32> {
        let conflicts = |taken: &Taken| overlap(&taken.bytes, &bytes) && (taken.exclusive || exclusive);
        if self.others(owner, &bytes).any(conflicts) {
            return Err(libc::EADDRINUSE);
        }
        let kind = if exclusive { libc::F_WRLCK } else { libc::F_RDLCK };
        match lock(self.file, libc::F_SETLK, kind, &bytes) {
            Ok(_) => {}
            Err(libc::EACCES | libc::EAGAIN) => return Err(libc::EADDRINUSE),
            Err(errno) => return Err(errno),
        }
        let owners = self.owners.entry(port_of(&bytes)).or_default();
        owners.retain(|other| *other != owner);
        owners.push(owner);
        self.taken.insert(owner, Taken { bytes, exclusive });
        Ok(())
    }

    /// Takes what `owner` has for itself alone: it listens.
    pub fn take_alone(&mut self, owner: u32) -> Result<(), i32> {
        match self.taken.get(&owner) {
            Some(taken) if !taken.exclusive => {
                let bytes = taken.bytes.clone();
                self.take_bytes(owner, bytes, true)
            }
            _ => Ok(()),
        }
    }

    /// Gives back what `owner` has.
    pub fn release(&mut self, owner: u32) {
        let Some(Taken { bytes, .. }) = self.taken.remove(&owner) else { return };
        let port = port_of(&bytes);
        if let Some(owners) = self.owners.get_mut(&port) {
            owners.retain(|other| *other != owner);
            if owners.is_empty() {
                self.owners.remove(&port);
            }
        }
        let kept: Vec<Range<u64>> = self.others(owner, &bytes).map(|taken| taken.bytes.clone()).collect();
        self.unlock(bytes, &kept);
    }

    /// Says until `until` that somebody is likely to listen on what `owner` has. These times come in order.
    pub fn expect_listener(&mut self, owner: u32, until: Instant) {
        self.expect(owner, Some(owner), until);
    }

    fn expect(&mut self, owner: u32, who: Option<u32>, until: Instant) {
        if let Some(taken) = self.taken.get(&owner) {
            let bytes = left_of(&taken.bytes);
            // Shared: others may say so too. Nobody asks for it otherwise, so nobody can be in the way.
            let _ = lock(self.file, libc::F_SETLK, libc::F_RDLCK, &bytes);
            self.left.push_back((who, bytes, until));
        }
    }

    /// It is not `owner` who will listen.
    pub fn unexpect(&mut self, owner: u32) {
        let is_its = |who: Option<u32>| who == Some(owner);
        let gone: Vec<Range<u64>> =
            self.left.iter().filter(|(who, ..)| is_its(*who)).map(|(_, bytes, _)| bytes.clone()).collect();
        self.left.retain(|(who, ..)| !is_its(*who));
        for bytes in gone {
            self.unlock_left(bytes);
        }
    }

    /// The same, and gives back what `owner` has.
    pub fn leave(&mut self, owner: u32, until: Instant) {
        self.expect(owner, None, until);
        self.release(owner);
    }

    /// Takes back what has been said long enough; returns when there is more of it.
    pub fn forget_left(&mut self, now: Instant) -> Option<Instant> {
        while self.left.front().is_some_and(|(.., until)| *until <= now)
            && let Some((_, bytes, _)) = self.left.pop_front()
        {
            self.unlock_left(bytes);
        }
        self.left.front().map(|(.., until)| *until)
    }

    /// Unlocks what one said, but for what others still say.
    fn unlock_left(&self, bytes: Range<u64>) {
        let kept: Vec<Range<u64>> =
            self.left.iter().map(|(_, left, _)| left.clone()).filter(|left| overlap(left, &bytes)).collect();
        self.unlock(bytes, &kept);
    }

    /// Unlocks bytes but for those that are kept.
    fn unlock(&self, bytes: Range<u64>, kept: &[Range<u64>]) {
        if kept.is_empty() {
            let _ = lock(self.file, libc::F_SETLK, libc::F_UNLCK, &bytes);
            return;
        }
        for byte in bytes {
            let byte = byte..byte + 1;
            if !kept.iter().any(|kept| overlap(kept, &byte)) {
                let _ = lock(self.file, libc::F_SETLK, libc::F_UNLCK, &byte);
            }
        }
    }

    /// Whether another process of this guest has the port for itself, or left it just now.
    pub fn is_held_elsewhere(&self, ps: u16, address: &Address) -> bool {
        is_held(self.file, &bytes_of(ps, address, false))
    }

    /// Whether this process has the port at some address.
    pub fn has(&self, ps: u16, port: u16) -> bool {
        self.owners.contains_key(&all_of(ps, port).start)
    }

    /// Whether anybody in this guest has the port at some address, or is likely to listen on it in a moment.
    pub fn is_used(&self, ps: u16, port: u16) -> bool {
        let bytes = all_of(ps, port);
        let soon = left_of(&bytes);
        self.has(ps, port) || self.left.iter().any(|(_, left, _)| overlap(left, &soon)) || is_held(self.file, &bytes)
    }

    /// Whether somebody in this process is likely to listen on the port in a moment.
    pub fn is_expected(&self, ps: u16, address: &Address) -> bool {
        let bytes = left_of(&bytes_of(ps, address, false));
        self.left.iter().any(|(_, left, _)| overlap(left, &bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pvrdma_ffi::uapi::rdma_user_cm::RDMA_PS_TCP;

    fn v4(addr: [u8; 4], port: u16) -> Address {
        Address::V4 { addr, port }
    }

    const ANY: [u8; 4] = [0; 4];
    const OWN: [u8; 4] = [127, 0, 82, 1];
    const MACHINE: [u8; 4] = [127, 0, 0, 1];

    /// A folder that is removed at the end.
    struct Folder(std::path::PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let folder = std::env::temp_dir().join(format!("pvrdma-test-ports-{}-{name}", raw::getpid()));
            std::fs::create_dir_all(&folder).unwrap();
            Folder(folder)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    /// What another process says: the number of the case that holds there.
    fn other_process(folder: &Path, ask: impl FnOnce(&mut Ports) -> bool) -> bool {
        // SAFETY: the child opens a file, asks about locks and exits.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let yes = Ports::open(folder, 0).is_ok_and(|mut ports| ask(&mut ports));
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(i32::from(yes)) };
        }
        let mut status = 0;
        // SAFETY: `status` has room.
        unsafe { libc::waitpid(child, &mut status, 0) };
        libc::WEXITSTATUS(status) == 1
    }

    #[test]
    fn a_port_is_taken_once_for_each_address() {
        let folder = Folder::new("once");
        let mut ports = Ports::open(&folder.0, 3).unwrap();
        let mut take = |owner, addr| ports.take(owner, RDMA_PS_TCP, v4(addr, 7), false, false).map(drop);
        assert_eq!(take(1, OWN), Ok(()));
        assert_eq!(take(2, OWN), Err(libc::EADDRINUSE));
        assert_eq!(take(2, MACHINE), Ok(()));
        assert_eq!(take(3, ANY), Err(libc::EADDRINUSE));
        ports.release(1);
        ports.release(2);
        assert!(ports.take(3, RDMA_PS_TCP, v4(ANY, 7), false, false).is_ok());
        assert!(ports.take(4, RDMA_PS_UDP, v4(ANY, 7), false, false).is_ok(), "another port space");
        let first = ports.take(5, RDMA_PS_TCP, v4(OWN, 0), false, false).unwrap();
        let second = ports.take(6, RDMA_PS_TCP, v4(OWN, 0), false, false).unwrap();
        assert!(first.port() != second.port() && EPHEMERAL.contains(&first.port()));
    }

    #[test]
    fn other_processes_are_turned_away_until_it_is_given_back() {
        let folder = Folder::new("others");
        let mut ports = Ports::open(&folder.0, 3).unwrap();
        ports.take(1, RDMA_PS_TCP, v4(ANY, 9), false, false).unwrap();
        let taken = |ports: &mut Ports| ports.take(1, RDMA_PS_TCP, v4(OWN, 9), false, false) == Err(libc::EADDRINUSE);
        let held = |ports: &mut Ports| ports.is_held_elsewhere(RDMA_PS_TCP, &v4(MACHINE, 9));
        assert!(other_process(&folder.0, taken) && other_process(&folder.0, held));
        assert!(!ports.is_held_elsewhere(RDMA_PS_TCP, &v4(MACHINE, 9)), "one's own is nobody else's");
        ports.release(1);
        assert!(!other_process(&folder.0, taken) && !other_process(&folder.0, held));
    }

    #[test]
    fn an_address_to_be_reused_is_shared_until_somebody_listens() {
        let folder = Folder::new("reuse");
        let mut ports = Ports::open(&folder.0, 3).unwrap();
        ports.take(1, RDMA_PS_TCP, v4(OWN, 11), false, true).unwrap();
        let shares = |ports: &mut Ports| ports.take(1, RDMA_PS_TCP, v4(OWN, 11), false, true).is_ok();
        assert!(other_process(&folder.0, shares));
        ports.take(2, RDMA_PS_TCP, v4(OWN, 11), false, true).unwrap();
        assert_eq!(ports.take_alone(1), Err(libc::EADDRINUSE));
        ports.release(2);
        assert_eq!(ports.take_alone(1), Ok(()));
        assert!(!other_process(&folder.0, shares));
    }

    /// Who has bound a port may be about to listen, though it had it for something else: it is known for that moment.
    #[test]
    fn who_has_bound_a_port_is_expected_to_listen_for_a_moment() {
        let folder = Folder::new("expected");
        let mut ports = Ports::open(&folder.0, 3).unwrap();
        let now = Instant::now();
        let soon = now + std::time::Duration::from_millis(400);
        let bound = ports.take(1, RDMA_PS_TCP, v4(ANY, 0), false, false).unwrap();
        assert!(!ports.is_expected(RDMA_PS_TCP, &bound));
        ports.expect_listener(1, soon);
        assert!(ports.is_expected(RDMA_PS_TCP, &bound));
        assert_eq!(ports.forget_left(soon), None);
        assert!(!ports.is_expected(RDMA_PS_TCP, &bound));
        // One that turns out to connect.
        ports.expect_listener(1, soon);
        ports.unexpect(2);
        assert!(ports.is_expected(RDMA_PS_TCP, &bound));
        ports.unexpect(1);
        assert!(!ports.is_expected(RDMA_PS_TCP, &bound));
        let held = |ports: &mut Ports| ports.is_held_elsewhere(RDMA_PS_TCP, &bound);
        assert!(other_process(&folder.0, held), "it has it all the same");
    }

    /// For a moment, and not in the way of who wants the port: the one who comes back, or another.
    #[test]
    fn who_left_a_port_is_known_to_others_until_it_is_forgotten() {
        let folder = Folder::new("left");
        let mut ports = Ports::open(&folder.0, 3).unwrap();
        let now = Instant::now();
        let soon = now + std::time::Duration::from_millis(400);
        let address = v4(MACHINE, 13);
        let held = |ports: &mut Ports| ports.is_held_elsewhere(RDMA_PS_TCP, &v4(MACHINE, 13));
        let takes = |ports: &mut Ports| ports.take(1, RDMA_PS_TCP, v4(ANY, 13), false, false).is_ok();
        for owner in [1, 2] {
            ports.take(owner, RDMA_PS_TCP, v4(ANY, 13), false, false).unwrap();
            ports.leave(owner, soon + std::time::Duration::from_millis(owner.into()));
        }
        for (ps, is_expected) in [(RDMA_PS_TCP, true), (RDMA_PS_UDP, true), (RDMA_PS_IB, false)] {
            assert_eq!(ports.is_expected(ps, &address), is_expected, "port space {ps:#x}");
        }
        assert!(other_process(&folder.0, held) && other_process(&folder.0, takes));
        let last = soon + std::time::Duration::from_millis(2);
        assert_eq!(ports.forget_left(last - std::time::Duration::from_micros(1)), Some(last));
        assert!(other_process(&folder.0, held), "the second one");
        assert_eq!(ports.forget_left(last), None);
        assert!(!ports.is_expected(RDMA_PS_TCP, &address));
        assert!(!other_process(&folder.0, held));
    }
}
