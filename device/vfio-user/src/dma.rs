//! Guest memory: the ranges QEMU has shared, and the core's `Memory` over them.
//!
//! `function.rs` calls [`DmaMap::map`] and [`DmaMap::unmap`] for DMA_MAP and DMA_UNMAP; the device core, `session.rs`
//! and `irq.rs` reach bytes through `Memory`. An address is what the guest calls a DMA address: guest-physical.
//!
//! Every access holds the read lock for as long as it touches a mapping and DMA_UNMAP takes the write lock before
//! it unmaps, so an unmap waits for running copies, and a later access finds no range and gets a `Fault`.
//!
//! Threads of other guests copy here too, so no access may end the process or wait for the client: files whose pages
//! are somebody's promise are refused, and pages that are not there end the client (`guard.rs`).

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use pvrdma_device::memory::{DmaAddr, Fault, Memory};

use crate::guard::{self, Gone};
use crate::protocol::MAX_RANGES;

/// Most bytes of all ranges of a guest: files may be longer than memory, and all guests share one address space.
const MAX_BYTES: u64 = 1 << 40;

/// The memory of one guest.
#[derive(Default)]
pub struct DmaMap {
    /// By first address; ranges do not overlap.
    ranges: RwLock<BTreeMap<u64, Range>>,
    /// An access found pages missing: nothing of it can be relied on any more.
    lost: AtomicBool,
    /// Called when that happens.
    on_loss: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

/// One announced range.
struct Range {
    len: u64,
    /// Nothing for a range that came without a file (ROM, a mapped BAR): known, not reachable.
    mapping: Option<Mapping>,
}

impl DmaMap {
    /// Takes up the range `[address, address + len)`, whose bytes are at `offset` in `file`.
    pub fn map(&self, address: u64, len: u64, file: Option<(&File, u64)>, writable: bool) -> io::Result<()> {
        let last = len.checked_sub(1).and_then(|len| address.checked_add(len));
        let last = last.ok_or_else(|| invalid("empty range, or past the end of the address space"))?;
        // Before the lock is taken: whatever the file makes this thread wait for, others do not.
        let mapping = file.map(|(file, offset)| Mapping::new(file, offset, len, writable)).transpose()?;
        let mut ranges = self.write_lock();
        if ranges.len() >= MAX_RANGES {
            return Err(invalid("too many ranges"));
        }
        let mapped = ranges.values().filter(|range| range.mapping.is_some()).map(|range| range.len);
        if mapping.is_some() && mapped.chain([len]).fold(0, u64::saturating_add) > MAX_BYTES {
            return Err(invalid("more than 1 TiB"));
        }
        let before = ranges.range(..=last).next_back();
        if before.is_some_and(|(start, range)| start + (range.len - 1) >= address) {
            return Err(io::Error::from_raw_os_error(libc::EEXIST));
        }
        ranges.insert(address, Range { len, mapping });
        Ok(())
    }

    /// Gives up every range inside `[address, address + len)`, after the accesses to it that run.
    pub fn unmap(&self, address: u64, len: u64) -> io::Result<()> {
        let end = address.checked_add(len).ok_or_else(|| invalid("past the end of the address space"))?;
        let mut ranges = self.write_lock();
        let inside: Vec<u64> = ranges.range(address..end).map(|(start, _)| *start).collect();
        let before = ranges.range(..address).next_back();
        let reaches_in = before.is_some_and(|(start, range)| len > 0 && start + (range.len - 1) >= address);
        if reaches_in || inside.iter().any(|start| start + (ranges[start].len - 1) >= end) {
            return Err(invalid("part of a range"));
        }
        for start in inside {
            ranges.remove(&start);
        }
        Ok(())
    }

    /// Gives up everything.
    pub fn clear(&self) {
        self.write_lock().clear();
    }

    /// Has `told` called, once or more often, when memory is found missing. The first one counts.
    pub fn on_loss(&self, told: impl Fn() + Send + Sync + 'static) {
        let _ = self.on_loss.set(Box::new(told));
    }

    /// Whether memory was found missing: the file was truncated, or had no room for its pages.
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    #[cold]
    fn lose(&self) -> Fault {
        self.lost.store(true, Ordering::Relaxed);
        if let Some(told) = self.on_loss.get() {
            told();
        }
        Fault
    }

    // A panic under the lock leaves the map whole (insert and remove are single steps), so poison says nothing.
    fn read_lock(&self) -> RwLockReadGuard<'_, BTreeMap<u64, Range>> {
        self.ranges.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_lock(&self) -> RwLockWriteGuard<'_, BTreeMap<u64, Range>> {
        self.ranges.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `step` for each contiguous piece of `[at, at + len)` with its host address, its place in the access
    /// and its length. Fails before the first call if any byte is missing, so a copy is all or nothing.
    fn pieces(
        &self,
        at: DmaAddr,
        len: usize,
        write: bool,
        mut step: impl FnMut(*mut u8, usize, usize),
    ) -> Result<(), Fault> {
        let ranges = self.read_lock();
        if self.is_lost() {
            return Err(Fault);
        }
        let mut done = 0;
        while done < len {
            done += find(&ranges, at.offset(done as u64)?, write)?.room().min(len - done);
        }
        done = 0;
        while done < len {
            let place = find(&ranges, at.offset(done as u64)?, write)?;
            let piece = place.room().min(len - done);
            place.access(&self.lost, |host| step(host, done, piece)).map_err(|Gone| self.lose())?;
            done += piece;
        }
        Ok(())
    }

    /// Calls `with` on the host address of an aligned word of `len` bytes.
    fn word<T>(&self, at: DmaAddr, len: usize, write: bool, with: impl FnOnce(*mut u8) -> T) -> Result<T, Fault> {
        if !at.0.is_multiple_of(len as u64) {
            return Err(Fault);
        }
        let ranges = self.read_lock();
        let place = find(&ranges, at, write)?;
        // A range may begin anywhere in its file; an odd one has no aligned words.
        if self.is_lost() || place.room() < len || place.host().align_offset(len) != 0 {
            return Err(Fault);
        }
        place.access(&self.lost, with).map_err(|Gone| self.lose())
    }
}

/// A byte of a mapping.
struct Place<'a> {
    mapping: &'a Mapping,
    /// Less than its length.
    offset: usize,
}

impl Place<'_> {
    fn host(&self) -> *mut u8 {
        self.mapping.at(self.offset)
    }

    /// How many bytes there are from here on.
    fn room(&self) -> usize {
        self.mapping.len.get() - self.offset
    }

    /// Has `access` touch bytes of the mapping. They may be missing.
    fn access<T>(&self, lost: &AtomicBool, access: impl FnOnce(*mut u8) -> T) -> Result<T, Gone> {
        let (start, len) = self.mapping.whole();
        guard::access(start, len, lost, || access(self.host()))
    }
}

/// Where `at` is mapped.
fn find(ranges: &BTreeMap<u64, Range>, at: DmaAddr, write: bool) -> Result<Place<'_>, Fault> {
    let (start, range) = ranges.range(..=at.0).next_back().ok_or(Fault)?;
    let offset = at.0 - start;
    let mapping = range.mapping.as_ref().ok_or(Fault)?;
    if offset >= range.len || (write && !mapping.writable) {
        return Err(Fault);
    }
    let offset = usize::try_from(offset).map_err(|_| Fault)?;
    Ok(Place { mapping, offset })
}

impl Memory for DmaMap {
    fn read(&self, from: DmaAddr, into: &mut [u8]) -> Result<(), Fault> {
        let target = into.as_mut_ptr();
        self.pieces(from, into.len(), false, |host, done, len| {
            // SAFETY: `pieces` gives `len` mapped bytes at `host` and keeps them mapped during the call;
            // `done + len <= into.len()`. The guest may write meanwhile: bytes may be mixed, nothing else.
            unsafe { host.cast_const().copy_to_nonoverlapping(target.add(done), len) }
        })
    }

    fn write(&self, to: DmaAddr, from: &[u8]) -> Result<(), Fault> {
        let source = from.as_ptr();
        self.pieces(to, from.len(), true, |host, done, len| {
            // SAFETY: as in `read`, with a mapping that is writable.
            unsafe { source.add(done).copy_to_nonoverlapping(host, len) }
        })
    }

    fn load(&self, at: DmaAddr) -> Result<u32, Fault> {
        self.word(at, 4, false, |host| {
            // SAFETY: `word` gives four mapped, aligned bytes and keeps them mapped during the call; a load
            // needs no write permission.
            unsafe { AtomicU32::from_ptr(host.cast()) }.load(Ordering::Acquire)
        })
    }

    fn store(&self, at: DmaAddr, value: u32) -> Result<(), Fault> {
        self.word(at, 4, true, |host| {
            // SAFETY: as in `load`, with a mapping that is writable.
            unsafe { AtomicU32::from_ptr(host.cast()) }.store(value, Ordering::Release);
        })
    }

    fn update(&self, at: DmaAddr, update: &mut dyn FnMut(u64) -> u64) -> Result<u64, Fault> {
        self.word(at, 8, true, |host| {
            // SAFETY: as in `load`, with eight bytes and a mapping that is writable.
            let word = unsafe { AtomicU64::from_ptr(host.cast()) };
            let mut old = word.load(Ordering::Acquire);
            while let Err(now) = word.compare_exchange_weak(old, update(old), Ordering::AcqRel, Ordering::Acquire) {
                old = now;
            }
            old
        })
    }
}

/// A shared mapping of a part of a file; unmapped on drop.
struct Mapping {
    /// First byte of the range.
    start: NonNull<u8>,
    /// Length of the range.
    len: NonZeroUsize,
    /// Bytes of the mapping before the range: mappings begin at a page, ranges need not.
    lead: usize,
    /// Length of the mapping.
    whole: usize,
    writable: bool,
}

// SAFETY: the mapping is a plain piece of shared memory that any thread may access; all accesses are raw or atomic.
unsafe impl Send for Mapping {}
// SAFETY: as above; nothing in `Mapping` changes after it is made.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(file: &File, offset: u64, len: u64, writable: bool) -> io::Result<Mapping> {
        // Only memory has seals. The pages of any other file may be for somebody to bring, such as a file system in
        // user space, and a copy would wait for them; not even its length may be asked for before this is known.
        // SAFETY: asks for a number.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) } < 0 {
            return Err(invalid("not memory (a memfd, or a file in tmpfs or hugetlbfs)"));
        }
        guard::prepare()?;
        // What is not there yet is a mistake of the client; what is not there any more is found by the access.
        let end = offset.checked_add(len).ok_or_else(|| invalid("past the end of the file"))?;
        let metadata = file.metadata()?;
        if end > metadata.len() {
            return Err(invalid("past the end of the file"));
        }
        // Pages of hugetlbfs are longer, and begin and end where a mapping may; ranges of QEMU do not.
        let page = metadata.blksize().max(4096);
        let lead = offset % page;
        let too_long = |_| invalid("too long to map");
        let whole = (lead + len).checked_next_multiple_of(page).ok_or_else(|| invalid("too long to map"))?;
        let whole = usize::try_from(whole).map_err(too_long)?;
        let file_offset = libc::off_t::try_from(offset - lead).map_err(too_long)?;
        let lead = lead as usize;
        let len = usize::try_from(len).map_err(too_long)?;
        let len = NonZeroUsize::new(len).ok_or_else(|| invalid("empty range"))?;
        let access = if writable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing of ours.
        let mapped =
            unsafe { libc::mmap(std::ptr::null_mut(), whole, access, libc::MAP_SHARED, file.as_raw_fd(), file_offset) };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `lead` is below the length of the mapping that mmap has just made.
        let start = unsafe { mapped.cast::<u8>().add(lead) };
        let start = NonNull::new(start).ok_or_else(|| invalid("mapped at zero"))?;
        Ok(Mapping { start, len, lead, whole, writable })
    }

    /// Host address of byte `offset`, which must be inside.
    fn at(&self, offset: usize) -> *mut u8 {
        debug_assert!(offset < self.len.get());
        self.start.as_ptr().wrapping_add(offset)
    }

    /// First byte and length of what mmap made.
    fn whole(&self) -> (NonNull<u8>, usize) {
        // SAFETY: `lead` bytes before `start` belong to the same mapping.
        (unsafe { self.start.sub(self.lead) }, self.whole)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let (start, len) = self.whole();
        // SAFETY: this is the mapping made in `new`, whole. `DmaMap` drops it under its write lock (or when nobody
        // has the map any more), so no access runs.
        unsafe { libc::munmap(start.as_ptr().cast(), len) };
    }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use std::os::fd::FromRawFd;
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;
    use std::time::{Duration, Instant};

    /// A memfd, as QEMU shares it.
    pub fn memfd(len: u64) -> File {
        // SAFETY: the name is a C string; the result is checked below.
        let fd = unsafe { libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC) };
        assert!(fd >= 0);
        // SAFETY: `fd` is new and belongs to nobody else.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(len).unwrap();
        file
    }

    /// A guest with RAM at `[base, base + len)`.
    pub fn guest(base: u64, len: u64) -> Arc<DmaMap> {
        let map = DmaMap::default();
        map.map(base, len, Some((&memfd(len), 0)), true).unwrap();
        Arc::new(map)
    }

    #[test]
    fn bytes_come_back_through_a_second_range_of_the_same_file() {
        let file = memfd(0x4000);
        let map = DmaMap::default();
        map.map(0x10_0000, 0x2000, Some((&file, 0x1000)), true).unwrap();
        map.map(0x80_0000, 0x4000, Some((&file, 0)), false).unwrap();

        map.write(DmaAddr(0x10_0ff0), b"across two pages, in one range").unwrap();

        let mut back = [0; 30];
        map.read(DmaAddr(0x80_1ff0), &mut back).unwrap();
        assert_eq!(&back, b"across two pages, in one range");
    }

    #[test]
    fn access_runs_over_neighbouring_ranges() {
        let map = DmaMap::default();
        map.map(0, 0x1000, Some((&memfd(0x1000), 0)), true).unwrap();
        map.map(0x1000, 0x1000, Some((&memfd(0x1000), 0)), true).unwrap();
        map.write(DmaAddr(0xff8), &[7; 16]).unwrap();
        let mut back = [0; 16];
        map.read(DmaAddr(0xff8), &mut back).unwrap();
        assert_eq!(back, [7; 16]);
    }

    #[test]
    fn nothing_is_copied_when_a_part_is_missing() {
        let map = guest(0, 0x1000);
        assert_eq!(map.write(DmaAddr(0xff8), &[7; 16]), Err(Fault));
        let mut back = [1; 8];
        map.read(DmaAddr(0xff8), &mut back).unwrap();
        assert_eq!(back, [0; 8]);
    }

    #[test]
    fn wild_addresses_fault() {
        let map = guest(0x1000, 0x1000);
        let mut buffer = [0; 8];
        for address in [0, 0xfff, 0x1ff9, 0x2000, u64::MAX, u64::MAX - 4] {
            assert_eq!(map.read(DmaAddr(address), &mut buffer), Err(Fault), "{address:#x}");
        }
        assert_eq!(map.load(DmaAddr(0x1002)), Err(Fault), "not aligned");
        assert_eq!(map.update(DmaAddr(0x1004), &mut |old| old), Err(Fault), "not aligned");
    }

    #[test]
    fn ranges_without_a_file_are_known_but_fault() {
        let map = DmaMap::default();
        map.map(0x1000, 0x1000, None, true).unwrap();
        assert_eq!(map.load(DmaAddr(0x1000)), Err(Fault));
        assert!(map.map(0x1800, 0x1000, None, true).is_err(), "overlap");
        map.unmap(0x1000, 0x1000).unwrap();
        map.map(0x1800, 0x1000, None, true).unwrap();
    }

    #[test]
    fn read_only_ranges_refuse_writes() {
        let map = DmaMap::default();
        map.map(0, 0x1000, Some((&memfd(0x1000), 0)), false).unwrap();
        assert_eq!(map.load(DmaAddr(0)), Ok(0));
        assert_eq!(map.store(DmaAddr(0), 1), Err(Fault));
        assert_eq!(map.write(DmaAddr(0), &[1]), Err(Fault));
        assert_eq!(map.update(DmaAddr(0), &mut |old| old), Err(Fault));
    }

    #[test]
    fn odd_ranges_are_refused() {
        let map = DmaMap::default();
        let file = memfd(0x1000);
        assert!(map.map(0, 0, Some((&file, 0)), true).is_err(), "empty");
        assert!(map.map(u64::MAX, 2, Some((&file, 0)), true).is_err(), "wraps");
        assert!(map.map(0, 0x1001, Some((&file, 0)), true).is_err(), "longer than the file");
        assert!(map.map(0, 0x1000, Some((&file, u64::MAX)), true).is_err(), "offset wraps");
        map.map(0, 0x1000, Some((&file, 0)), true).unwrap();
        assert!(map.unmap(0, 0x800).is_err(), "its first part");
        assert!(map.unmap(0x800, 0x800).is_err(), "its last part");
        assert!(map.unmap(0x800, 0x100).is_err(), "a part within");
        map.unmap(0x1000, 0x1000).unwrap();
        map.unmap(0x800, 0).unwrap();
        assert!(map.map(0xfff, 1, None, true).is_err(), "overlaps the last byte");
    }

    #[test]
    fn update_is_one_step() {
        let map = guest(0, 0x1000);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        map.update(DmaAddr(64), &mut |old| old + 1).unwrap();
                    }
                });
            }
        });
        assert_eq!(map.update(DmaAddr(64), &mut |old| old), Ok(4000));
    }

    #[test]
    fn memory_that_is_gone_is_a_fault_and_told_of() {
        for (access, len) in [(0, 0), (1, 0x1000), (2, 0x1000), (3, 0)] {
            let file = memfd(0x4000);
            let map = DmaMap::default();
            let told = Arc::new(AtomicU32::new(0));
            let counter = told.clone();
            map.on_loss(move || _ = counter.fetch_add(1, Ordering::Relaxed));
            // A range that begins in the middle of a page, and one beside it.
            map.map(0x10_0800, 0x2000, Some((&file, 0x800)), true).unwrap();
            map.map(0x20_0000, 0x1000, Some((&memfd(0x1000), 0)), true).unwrap();
            assert_eq!(map.load(DmaAddr(0x10_2000)), Ok(0));
            file.set_len(len).unwrap();
            let result = match access {
                0 => map.read(DmaAddr(0x10_0ff0), &mut [0; 32]),
                1 => map.write(DmaAddr(0x10_0ff0), &[7; 32]),
                2 => map.load(DmaAddr(0x10_2000)).map(drop),
                _ => map.update(DmaAddr(0x10_1000), &mut |old| old + 1).map(drop),
            };
            assert_eq!((result, told.load(Ordering::Relaxed)), (Err(Fault), 1), "access {access}");
            assert!(map.is_lost());
            assert_eq!(map.load(DmaAddr(0x20_0000)), Err(Fault), "nothing of it is used any more");
            map.unmap(0x10_0800, 0x2000).unwrap();
        }
    }

    /// Threads that read what is about to go: what the others have found missing is not taken for zeroes.
    #[test]
    fn nobody_reads_what_took_the_place_of_memory() {
        const LEN: usize = 1 << 20;
        for _ in 0..30 {
            let file = memfd(LEN as u64);
            let map = DmaMap::default();
            map.map(0, LEN as u64, Some((&file, 0)), true).unwrap();
            map.write(DmaAddr(0), &[0x5a; LEN]).unwrap();
            std::thread::scope(|scope| {
                for _ in 0..3 {
                    scope.spawn(|| {
                        let mut bytes = vec![0; LEN];
                        while map.read(DmaAddr(0), &mut bytes).is_ok() {
                            assert!(bytes.iter().all(|byte| *byte == 0x5a), "zeroes that nobody wrote");
                        }
                    });
                }
                std::thread::sleep(Duration::from_millis(2));
                file.set_len(0).unwrap();
            });
        }
    }

    /// Copies run in two threads while a third unmaps and maps: no crash, and each copy is whole or a fault.
    #[test]
    fn unmap_waits_for_running_copies() {
        const LEN: usize = 1 << 20;
        let map = guest(0, LEN as u64);
        let file = memfd(LEN as u64);
        let (stop, whole, faults) = (AtomicBool::new(false), AtomicU32::new(0), AtomicU32::new(0));
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let bytes = vec![0x5a; LEN];
                while !stop.load(Ordering::Relaxed) {
                    let _: Result<(), Fault> = map.write(DmaAddr(0), &bytes);
                }
            });
            let unmapper = scope.spawn(|| {
                // How often a copy gets through is the scheduler's choice: it goes on until both ends were met.
                let deadline = Instant::now() + Duration::from_secs(60);
                let met = || whole.load(Ordering::Relaxed) > 0 && faults.load(Ordering::Relaxed) > 0;
                let mut rounds = 0;
                while rounds < 500 || !met() && Instant::now() < deadline {
                    map.unmap(0, LEN as u64).unwrap();
                    std::thread::yield_now();
                    map.map(0, LEN as u64, Some((&file, 0)), true).unwrap();
                    std::thread::sleep(Duration::from_micros(500));
                    rounds += 1;
                }
                stop.store(true, Ordering::Relaxed);
            });
            let mut bytes = vec![0; LEN];
            while !stop.load(Ordering::Relaxed) {
                let end = if map.read(DmaAddr(0), &mut bytes).is_ok() { &whole } else { &faults };
                end.fetch_add(1, Ordering::Relaxed);
            }
            writer.join().unwrap();
            unmapper.join().unwrap();
        });
        let (whole, faults) = (whole.into_inner(), faults.into_inner());
        assert!(whole > 0 && faults > 0, "{whole} copies were whole, {faults} met a fault");
        map.unmap(0, LEN as u64).unwrap();
        assert_eq!(map.load(DmaAddr(0)), Err(Fault));
    }
}
