//! The core's `Memory` over this very process: an address is a virtual address.
//!
//! The core reads and writes rings through it. Rings lie in memory that the provider made for the device and keeps
//! until DESTROY, as a driver keeps pinned pages, so plain volatile copies serve; payload, which the program may
//! unmap at any time, moves by `copy.rs` and ends as a status instead of a fault.

use crate::copy::{Direction, copy, span_of, span_of_mut};
use crate::section;
use pvrdma_device::memory::{DmaAddr, Fault, Memory, Span, total};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The memory of this process.
pub struct ProcessMemory;

/// Checks what can be checked of a ring address without a system call.
fn pointer<T>(at: DmaAddr, len: usize) -> Result<*mut T, Fault> {
    let start = usize::try_from(at.0).map_err(|_| Fault)?;
    let end = start.checked_add(len).ok_or(Fault)?;
    // The first 64 KiB are never mapped (vm.mmap_min_addr), the upper half belongs to the kernel.
    let user = start >= 0x1_0000 && end < 1 << 47;
    if user && start.is_multiple_of(align_of::<T>()) { Ok(start as *mut T) } else { Err(Fault) }
}

impl Memory for ProcessMemory {
    fn read(&self, from: DmaAddr, into: &mut [u8]) -> Result<(), Fault> {
        let source = pointer::<u8>(from, into.len())?;
        // SAFETY: ring memory of an object that exists: the provider keeps it mapped until DESTROY returns. The other
        // side may write at the same time; bytes are all we make of it, and they are judged after the copy.
        unsafe { std::ptr::copy_nonoverlapping(source, into.as_mut_ptr(), into.len()) };
        Ok(())
    }

    fn write(&self, to: DmaAddr, from: &[u8]) -> Result<(), Fault> {
        let target = pointer::<u8>(to, from.len())?;
        // SAFETY: as in `read`; a CQ slot that is not published is the device's to write.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), target, from.len()) };
        Ok(())
    }

    fn load(&self, at: DmaAddr) -> Result<u32, Fault> {
        let word = pointer::<AtomicU32>(at, 4)?;
        // SAFETY: an aligned word in ring memory, mapped as in `read`; both sides treat it as atomic.
        Ok(unsafe { AtomicU32::from_ptr(word.cast()) }.load(Ordering::Acquire))
    }

    fn store(&self, at: DmaAddr, value: u32) -> Result<(), Fault> {
        let word = pointer::<AtomicU32>(at, 4)?;
        // SAFETY: as in `load`.
        unsafe { AtomicU32::from_ptr(word.cast()) }.store(value, Ordering::Release);
        Ok(())
    }

    fn update(&self, at: DmaAddr, update: &mut dyn FnMut(u64) -> u64) -> Result<u64, Fault> {
        let word = pointer::<AtomicU64>(at, 8)?;
        // The word is payload: its owner may have unmapped or protected it. A real device has it pinned.
        if !writable(at) {
            return Err(Fault);
        }
        // SAFETY: an aligned 64-bit word of a page that was there, and writable, just now. A program that unmaps a
        // registered word while a peer's atomic operation on it is under way can still fault here.
        let word = unsafe { AtomicU64::from_ptr(word.cast()) };
        Ok(word.fetch_update(Ordering::AcqRel, Ordering::Acquire, |old| Some(update(old))).unwrap_or_else(|old| old))
    }

    fn scatter(&self, spans: &[Span], from: &[u8]) -> Result<(), Fault> {
        let own = section::thread();
        if copy(own, Direction::Write, &[span_of(from)], spans) { Ok(()) } else { Err(Fault) }
    }

    fn gather(&self, spans: &[Span], into: &mut [u8]) -> Result<(), Fault> {
        let own = section::thread();
        let len = total(spans);
        let room = usize::try_from(len).ok().and_then(|len| into.get_mut(..len)).ok_or(Fault)?;
        let local = [span_of_mut(room)];
        if copy(own, Direction::Read, &local, spans) { Ok(()) } else { Err(Fault) }
    }
}

/// Whether the page of `at` is mapped and can be written, found out without touching it.
fn writable(at: DmaAddr) -> bool {
    const PAGE: usize = 4096;
    let page = at.0 as usize & !(PAGE - 1);
    // SAFETY: makes the page present as a write would, and changes no byte; a bad address is an error.
    let populated = unsafe { libc::madvise(page as *mut libc::c_void, PAGE, libc::MADV_POPULATE_WRITE) } == 0;
    // Before Linux 5.14 there is no such advice; that the page can be read is the best that can be known.
    populated || std::io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL) && readable(at)
}

fn readable(at: DmaAddr) -> bool {
    let mut byte = [0u8];
    let local = [Span { addr: DmaAddr(byte.as_mut_ptr() as u64), len: 1 }];
    let own = section::thread();
    copy(own, Direction::Read, &local, &[Span { addr: at, len: 1 }])
}
