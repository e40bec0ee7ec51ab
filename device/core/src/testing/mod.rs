//! The other side by hand, for tests: memory that is an array, interrupts that are counted, a driver that posts
//! WQEs and reads CQEs, a wire that a test holds in its hands. Behind the feature `test-utils`, so that other crates
//! can drive the same fake.
//!
//! Nothing here uses the device's own ring, WQE or page directory code: what both sides must agree on is written a
//! second time, from the description of the format, so that one can catch the other. A mistake of a test panics.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a mistake of a test ends the test")]

pub mod cut;
pub mod driver;
pub mod end;
pub mod queue;
pub mod wild;
pub mod wire;
pub mod wr;

use crate::handle::{CqHandle, Gid, QpHandle};
use crate::interrupt::{AsyncEvent, Interrupts};
use crate::memory::{DmaAddr, Fault, Memory, Span};
use crate::transport::Path;
pub use pvrdma_ffi::rng;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Guest memory: addresses from 0 to its length.
pub struct Ram {
    inner: Mutex<Inner>,
}

struct Inner {
    bytes: Vec<u8>,
    /// Ranges that are not mapped (any more).
    holes: Vec<Span>,
    /// Ranges of which every access is counted.
    watched: Vec<Span>,
    touched: usize,
    tamper: Option<Tamper>,
}

/// Changes bytes that the device has just read.
pub type Tamper = Box<dyn FnMut(DmaAddr, &mut [u8]) + Send>;

fn meets(list: &[Span], start: u64, len: u64) -> bool {
    list.iter().any(|span| start < span.addr.0 + span.len && span.addr.0 < start + len)
}

impl Ram {
    /// `len` zero bytes.
    pub fn new(len: usize) -> Ram {
        let (holes, watched) = (Vec::new(), Vec::new());
        Ram { inner: Mutex::new(Inner { bytes: vec![0; len], holes, watched, touched: 0, tamper: None }) }
    }

    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        self.lock().bytes.len() as u64
    }

    /// Whether it has no byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// From now on every access to `[at, at + len)` faults.
    pub fn unmap(&self, at: DmaAddr, len: u64) {
        self.lock().holes.push(Span { addr: at, len });
    }

    /// From now on accesses to `[at, at + len)` are counted.
    pub fn watch(&self, at: DmaAddr, len: u64) {
        self.lock().watched.push(Span { addr: at, len });
    }

    /// Ends all `watch`.
    pub fn unwatch(&self) {
        self.lock().watched.clear();
    }

    /// Number of accesses to watched ranges.
    pub fn touched(&self) -> usize {
        self.lock().touched
    }

    /// From now on `tamper` sees what the device has read, and may change it before the device reads it again: memory
    /// that its owner writes at the same time.
    pub fn tamper(&self, tamper: Option<Tamper>) {
        self.lock().tamper = tamper;
    }

    /// All that was unmapped is there again.
    pub fn map_again(&self) {
        self.lock().holes.clear();
    }

    // What follows is the guest's own access, which no `unmap` keeps from its memory and no `watch` counts.

    /// Copies `len` bytes out.
    pub fn get(&self, at: DmaAddr, len: usize) -> Vec<u8> {
        self.lock().bytes[at.0 as usize..][..len].to_vec()
    }

    /// The word at `at`.
    pub fn word(&self, at: DmaAddr) -> u32 {
        u32::from_le_bytes(self.lock().bytes[at.0 as usize..][..4].try_into().unwrap())
    }

    /// Copies `bytes` in.
    pub fn set(&self, at: DmaAddr, bytes: &[u8]) {
        self.lock().bytes[at.0 as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slice<R>(&self, at: DmaAddr, len: usize, f: impl FnOnce(&mut [u8]) -> R) -> Result<R, Fault> {
        let mut inner = self.lock();
        let start = usize::try_from(at.0).map_err(|_| Fault)?;
        let end = start.checked_add(len).filter(|end| *end <= inner.bytes.len()).ok_or(Fault)?;
        if meets(&inner.holes, at.0, len as u64) {
            return Err(Fault);
        }
        if meets(&inner.watched, at.0, len as u64) {
            inner.touched += 1;
        }
        Ok(f(&mut inner.bytes[start..end]))
    }
}

impl Memory for Ram {
    fn read(&self, from: DmaAddr, into: &mut [u8]) -> Result<(), Fault> {
        self.slice(from, into.len(), |bytes| into.copy_from_slice(bytes))?;
        let mut inner = self.lock();
        if let Some(mut tamper) = inner.tamper.take() {
            tamper(from, &mut inner.bytes[from.0 as usize..][..into.len()]);
            inner.tamper = Some(tamper);
        }
        Ok(())
    }

    fn write(&self, to: DmaAddr, from: &[u8]) -> Result<(), Fault> {
        self.slice(to, from.len(), |bytes| bytes.copy_from_slice(from))
    }

    fn load(&self, at: DmaAddr) -> Result<u32, Fault> {
        assert!(at.0.is_multiple_of(4), "the device loaded a word at an odd address {at:?}");
        let mut word = [0; 4];
        self.read(at, &mut word)?;
        Ok(u32::from_le_bytes(word))
    }

    fn store(&self, at: DmaAddr, value: u32) -> Result<(), Fault> {
        assert!(at.0.is_multiple_of(4), "the device stored a word at an odd address {at:?}");
        self.write(at, &value.to_le_bytes())
    }

    fn update(&self, at: DmaAddr, update: &mut dyn FnMut(u64) -> u64) -> Result<u64, Fault> {
        self.slice(at, 8, |bytes| {
            let mut word = [0; 8];
            word.copy_from_slice(bytes);
            let old = u64::from_le_bytes(word);
            bytes.copy_from_slice(&update(old).to_le_bytes());
            old
        })
    }
}

/// Interrupts, written down.
#[derive(Default)]
pub struct Bell {
    log: Mutex<(Vec<CqHandle>, Vec<AsyncEvent>)>,
    paths: Mutex<Vec<(QpHandle, Gid, Path)>>,
    woken: AtomicBool,
}

impl Bell {
    fn log(&self) -> MutexGuard<'_, (Vec<CqHandle>, Vec<AsyncEvent>)> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number of completion notifications so far.
    pub fn completions(&self) -> usize {
        self.log().0.len()
    }

    /// Number of completion notifications of one CQ so far.
    pub fn completions_of(&self, cq: CqHandle) -> usize {
        self.log().0.iter().filter(|fired| **fired == cq).count()
    }

    /// Events so far.
    pub fn events(&self) -> Vec<AsyncEvent> {
        self.log().1.clone()
    }

    /// Paths it was told of.
    pub fn paths(&self) -> Vec<(QpHandle, Gid, Path)> {
        self.paths.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether the device asked for `Device::poll` since the last call.
    pub fn take_wake(&self) -> bool {
        self.woken.swap(false, Ordering::AcqRel)
    }
}

impl Interrupts for Bell {
    fn completion(&self, cq: CqHandle) {
        self.log().0.push(cq);
    }

    fn async_event(&self, event: AsyncEvent) {
        self.log().1.push(event);
    }

    fn path(&self, qp: QpHandle, peer: &Gid, path: Path) {
        self.paths.lock().unwrap_or_else(PoisonError::into_inner).push((qp, *peer, path));
    }

    fn wants_paths(&self) -> bool {
        true
    }

    fn wake(&self) {
        self.woken.store(true, Ordering::Release);
    }
}
