//! How the device reaches bytes: the `Memory` trait that a front supplies, addresses, spans and page tables.
//!
//! A `DmaAddr` means what the front says it means: a guest-physical address behind vfio-user, a virtual address
//! of the process in the stand-in. Nothing here trusts an address; `Memory` answers `Fault` for one that leads nowhere.

use pvrdma_ffi::uapi::vmw_pvrdma::PVRDMA_PAGE_SIZE as PAGE_SIZE;

/// An address as the guest (or process) gave it. Never a host pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct DmaAddr(pub u64);

impl DmaAddr {
    /// `self + offset`, or a fault if the sum leaves the address space.
    pub fn offset(self, offset: u64) -> Result<DmaAddr, Fault> {
        self.0.checked_add(offset).map(DmaAddr).ok_or(Fault)
    }
}

/// The address range was not (or is no longer) reachable. Nothing, or a prefix, was copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("address not mapped")]
pub struct Fault;

/// A contiguous piece of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Span {
    /// First byte.
    pub addr: DmaAddr,
    /// Length in bytes.
    pub len: u64,
}

/// The bytes of one guest (vfio-user) or one process (stand-in).
///
/// All accesses are to memory that the other side writes at any time: implementations copy with raw or
/// volatile accesses, never form references, and never fault the device's own process.
pub trait Memory: Send + Sync {
    /// Copies `into.len()` bytes out.
    fn read(&self, from: DmaAddr, into: &mut [u8]) -> Result<(), Fault>;
    /// Copies `from.len()` bytes in.
    fn write(&self, to: DmaAddr, from: &[u8]) -> Result<(), Fault>;
    /// Loads an aligned word with Acquire order: what its writer published before it is seen after it.
    fn load(&self, at: DmaAddr) -> Result<u32, Fault>;
    /// Stores an aligned word with Release order: what was written before it is seen by who reads it.
    fn store(&self, at: DmaAddr, value: u32) -> Result<(), Fault>;
    /// Replaces an aligned 64-bit word by `update(old)` in one atomic step and returns the old value.
    fn update(&self, at: DmaAddr, update: &mut dyn FnMut(u64) -> u64) -> Result<u64, Fault>;

    /// Writes `from` to `spans`, which hold as many bytes: payload, whose memory may go away at any time.
    fn scatter(&self, spans: &[Span], from: &[u8]) -> Result<(), Fault> {
        let mut rest = from;
        for span in spans {
            let (now, later) = rest.split_at_checked(span.len as usize).ok_or(Fault)?;
            self.write(span.addr, now)?;
            rest = later;
        }
        Ok(())
    }

    /// Reads `spans` into `into`, which has room for them: payload, as for `scatter`.
    fn gather(&self, spans: &[Span], into: &mut [u8]) -> Result<(), Fault> {
        let mut rest = into;
        for span in spans {
            let (now, later) = rest.split_at_mut_checked(span.len as usize).ok_or(Fault)?;
            self.read(span.addr, now)?;
            rest = later;
        }
        Ok(())
    }
}

/// Bytes `[from, from + len)` of what `spans` hold, or as many of them as there are.
pub fn part_of(spans: &[Span], from: u64, len: u64) -> Vec<Span> {
    let (mut skip, mut left) = (from, len);
    let mut part = Vec::new();
    for span in spans {
        let lead = skip.min(span.len);
        skip -= lead;
        let here = left.min(span.len - lead);
        left -= here;
        if here > 0 {
            part.push(Span { addr: DmaAddr(span.addr.0.wrapping_add(lead)), len: here });
        }
    }
    part
}

/// Bytes that `spans` hold.
pub fn total(spans: &[Span]) -> u64 {
    spans.iter().fold(0, |sum, span| sum.saturating_add(span.len))
}

/// Where the pages of an object are, as a command names them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Buffer {
    /// Two-level page directory in guest memory (vmw_pvrdma's `pdir_dma`), covering `nchunks` pages.
    Pdir {
        /// Address of the directory page.
        pdir: DmaAddr,
        /// Number of 4 KiB data pages.
        nchunks: u32,
    },
    /// Contiguous ranges, one after the other. Starts must be page-aligned except for memory regions.
    Ranges(Vec<Span>),
}

impl Buffer {
    /// Number of addresses that its [`PageTable`] keeps: what it costs the device.
    pub fn page_entries(&self) -> u64 {
        match self {
            Buffer::Pdir { nchunks, .. } => u64::from(*nchunks),
            Buffer::Ranges(ranges) if ranges.len() == 1 => 0,
            Buffer::Ranges(ranges) => {
                let pages = ranges.iter().map(|range| range.len.div_ceil(PAGE_SIZE as u64));
                pages.fold(0, u64::saturating_add)
            }
        }
    }
}

/// Largest number of pages one directory can name: 512 tables of 512 entries.
pub const MAX_PDIR_PAGES: u32 = 512 * 512;

/// Resolved pages of an object: turns an offset into an address, bounds checked.
#[derive(Debug)]
pub enum PageTable {
    /// One contiguous range.
    Flat(Span),
    /// One address for each 4 KiB page.
    Pages(Box<[DmaAddr]>),
}

impl PageTable {
    /// Resolves `buffer`, reading the page directory if there is one.
    ///
    /// The directory is read once: the driver keeps it alive until DESTROY, and a snapshot cannot change
    /// under a running copy.
    pub fn resolve(buffer: &Buffer, memory: &dyn Memory) -> Result<PageTable, Fault> {
        match buffer {
            Buffer::Ranges(ranges) => match ranges.as_slice() {
                [one] => {
                    one.addr.offset(one.len)?;
                    Ok(PageTable::Flat(*one))
                }
                many => {
                    let mut pages = Vec::new();
                    for range in many {
                        if !range.addr.0.is_multiple_of(PAGE_SIZE as u64) {
                            return Err(Fault);
                        }
                        range.addr.offset(range.len)?;
                        for page in 0..range.len.div_ceil(PAGE_SIZE as u64) {
                            pages.push(range.addr.offset(page * PAGE_SIZE as u64)?);
                        }
                    }
                    Ok(PageTable::Pages(pages.into()))
                }
            },
            Buffer::Pdir { pdir, nchunks } => Ok(PageTable::Pages(walk(*pdir, *nchunks, memory)?)),
        }
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        match self {
            PageTable::Flat(span) => span.len,
            PageTable::Pages(pages) => pages.len() as u64 * PAGE_SIZE as u64,
        }
    }

    /// Whether there is no byte at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Address of byte `offset`; the bytes up to the end of its 4 KiB page (or range) follow contiguously.
    pub fn at(&self, offset: u64) -> Result<DmaAddr, Fault> {
        match self {
            PageTable::Flat(span) if offset < span.len => span.addr.offset(offset),
            PageTable::Flat(_) => Err(Fault),
            PageTable::Pages(pages) => {
                let page = usize::try_from(offset / PAGE_SIZE as u64).map_err(|_| Fault)?;
                pages.get(page).ok_or(Fault)?.offset(offset % PAGE_SIZE as u64)
            }
        }
    }

    /// Appends the spans that make up `[offset, offset + len)` to `spans`, joining neighbours.
    pub fn spans(&self, offset: u64, len: u64, spans: &mut Vec<Span>) -> Result<(), Fault> {
        let end = offset.checked_add(len).ok_or(Fault)?;
        if end > self.len() {
            return Err(Fault);
        }
        match self {
            PageTable::Flat(span) => push(spans, Span { addr: span.addr.offset(offset)?, len }),
            PageTable::Pages(_) => {
                let mut at = offset;
                while at < end {
                    let step = (PAGE_SIZE as u64 - at % PAGE_SIZE as u64).min(end - at);
                    push(spans, Span { addr: self.at(at)?, len: step });
                    at += step;
                }
            }
        }
        Ok(())
    }
}

fn push(spans: &mut Vec<Span>, span: Span) {
    if let Some(last) = spans.last_mut()
        && last.addr.0.checked_add(last.len) == Some(span.addr.0)
    {
        last.len += span.len;
    } else if span.len > 0 {
        spans.push(span);
    }
}

/// Reads a two-level page directory (vmw_pvrdma's `pvrdma_page_dir`): entry `n` is in table `n >> 9`, slot `n & 511`.
fn walk(pdir: DmaAddr, nchunks: u32, memory: &dyn Memory) -> Result<Box<[DmaAddr]>, Fault> {
    if nchunks > MAX_PDIR_PAGES || !pdir.0.is_multiple_of(PAGE_SIZE as u64) {
        return Err(Fault);
    }
    let mut pages = Vec::with_capacity(nchunks as usize);
    let mut table = [0u8; PAGE_SIZE];
    for first in (0..nchunks).step_by(512) {
        let mut entry = [0u8; 8];
        memory.read(pdir.offset(u64::from(first / 512) * 8)?, &mut entry)?;
        let count = (nchunks - first).min(512) as usize;
        memory.read(DmaAddr(u64::from_le_bytes(entry)), &mut table[..count * 8])?;
        for entry in table[..count * 8].as_chunks::<8>().0 {
            let page = u64::from_le_bytes(*entry);
            if !page.is_multiple_of(PAGE_SIZE as u64) {
                return Err(Fault);
            }
            pages.push(DmaAddr(page));
        }
    }
    Ok(pages.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_begins_and_ends_where_it_says() {
        let spans = [(100, 10), (200, 0), (300, 5)].map(|(addr, len)| Span { addr: DmaAddr(addr), len });
        let part =
            |from, len| part_of(&spans, from, len).into_iter().map(|span| (span.addr.0, span.len)).collect::<Vec<_>>();
        assert_eq!(total(&spans), 15);
        assert_eq!(part(0, 15), [(100, 10), (300, 5)]);
        assert_eq!(part(3, 4), [(103, 4)]);
        assert_eq!(part(9, 3), [(109, 1), (300, 2)]);
        assert_eq!(part(10, 100), [(300, 5)]);
        assert_eq!(part(15, 1), []);
        assert_eq!(part(u64::MAX, u64::MAX), []);
    }
}
