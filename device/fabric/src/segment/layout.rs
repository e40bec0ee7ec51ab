//! The layout of the shared file: atomics only, all zero at first, so that every process may look at every word.

use crate::bell::Bell;
use crate::guard::Guard;
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::words::REQUEST_WORDS;
use pvrdma_device::transport::figures::{Sent, Tally};

/// Regions of a fabric: one for each process. A QP number carries the region in its top 9 bits, counted from 1.
pub const MAX_PROCESSES: usize = 511;
/// Requests that one process may have on their way to one other.
pub const CHANNEL_LEN: usize = 256;
/// Requests that one process may have on their way in all.
pub const SLOTS: usize = 1024;
/// Memory regions of a process that others can use directly; those of further keys go through its inbox.
pub const PUBLISHED_MRS: usize = 16384;
/// QPs of a process.
pub const PUBLISHED_QPS: usize = 32768;
/// Direct copies that one process may have running at once; a further one goes through the inbox.
pub const HAZARDS: usize = 8;
/// Most spans of a payload: a WQE has at most 16 SGEs and each is one span in a process.
pub const SLOT_SPANS: usize = 16;

/// Low bits of a QP number: the handle. The rest is the region, counted from 1.
pub(crate) const HANDLE_BITS: u32 = 15;

/// Number of the management QP, at every address, and its handle (IBA vol. 1, 3.5.3).
pub const GSI: u32 = 1;

/// In place of a guest's index: the process that carries requests to other hosts (`gateway.rs`).
pub const GATEWAY: u32 = u32::MAX;

/// State of a slot, the low bits of its word.
pub mod slot_state {
    /// Its owner may fill it.
    pub const FREE: u64 = 0;
    /// Published in a channel; target and owner race for it by compare-and-swap.
    pub const QUEUED: u64 = 1;
    /// The target works on it.
    pub const TAKEN: u64 = 2;
    /// Answered: bits 4..16 hold the answer.
    pub const DONE: u64 = 3;
}

/// A request on its way, owned by the requester's process. All plain fields are written before the word says QUEUED
/// and not again before it says FREE.
#[repr(C, align(64))]
pub struct Slot {
    /// Bits 0..4 the state, 4..16 the answer, 16..64 the sequence number that no other request of the host has.
    pub word: AtomicU64,
    /// The request, encoded (`words.rs`).
    pub words: [AtomicU64; REQUEST_WORDS],
    /// Number of spans.
    pub span_cnt: AtomicU64,
    /// Address and length of each span of payload.
    pub spans: [[AtomicU64; 2]; SLOT_SPANS],
}

/// Room for the payload of a datagram.
pub type SlotPayload = [AtomicU64; 512];

/// Requests from the region's owner to one other process, oldest first. A cell is `sequence << 16 | slot`.
#[repr(C)]
pub struct Channel {
    /// Incarnation of the target that the cells are meant for.
    pub target: AtomicU32,
    /// Count of cells ever published.
    pub tail: AtomicU32,
    /// The cells.
    pub cells: [AtomicU64; CHANNEL_LEN],
}

/// What others may know of a memory region. Valid while `key` is not 0.
#[repr(C)]
pub struct PublishedMr {
    /// Written last when added, cleared first when removed.
    pub key: AtomicU32,
    /// PD handle.
    pub pd: AtomicU32,
    /// Access flags.
    pub access: AtomicU64,
    /// First byte.
    pub start: AtomicU64,
    /// Bytes.
    pub length: AtomicU64,
}

/// What others may know of a QP. `version` is odd while it changes. It is one line of the cache: who carries a request
/// out for it looks here, and writes what it counts where it writes the PSN.
#[repr(C, align(64))]
pub struct PublishedQp {
    /// Counts changes.
    pub version: AtomicU32,
    /// 1: see `QpView::placeable`.
    pub placeable: AtomicU32,
    /// The responder's next expected PSN; advanced by whoever carried a request out.
    pub expected_psn: std::sync::atomic::AtomicU32,
    /// QP number, to tell a reused handle.
    pub qpn: AtomicU32,
    /// PD handle.
    pub pd: AtomicU32,
    /// `qp_access_flags`.
    pub access: AtomicU32,
    /// QP number of its peer.
    pub peer_qpn: AtomicU32,
    /// For who watches, and for who cuts its messages: path MTU (bits 16..), service type (bits 8..) and state.
    pub what: AtomicU32,
    /// GID of its peer.
    pub peer_gid: [AtomicU64; 2],
    /// Requests of its peer; counted by whoever carried them out.
    pub received: Tally,
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<PublishedQp>() == 64 && size_of::<Sent>() == 64);

/// What everybody looks at of every process.
#[repr(C, align(64))]
pub(super) struct Seat {
    /// Whose it is: an `Owner`, or 0 while it is free.
    pub(super) owner: AtomicU64,
    /// Guest index.
    pub(super) guest: AtomicU32,
    /// Number of the guest's host, the same in all seats. Others look at it only once the owner is ready.
    pub(super) host: std::sync::atomic::AtomicU16,
    /// The paths by which it may be reached: `Paths::bits`.
    pub(super) paths: std::sync::atomic::AtomicU16,
    /// Held by the owner's side thread.
    pub(super) guard: Guard,
    /// Copies into or out of the memory of other processes that are running (`hazard.rs`; 0: none). The last is that of
    /// whoever empties the inbox.
    pub(super) hazards: [AtomicU64; HAZARDS + 1],
}

/// Two lines of the cache: a third one for the hazard of the inbox would be one more for each message.
#[cfg(not(loom))]
const _: () = assert!(size_of::<Seat>() == 128);

/// Pages of a region, in words of bits; more than there are.
pub(super) const PAGE_WORDS: usize = 48;
pub(super) const PAGE: usize = 4096;

/// One process: what those look at who have to do with it.
#[repr(C, align(4096))]
pub struct Region {
    /// Who sleeps.
    pub bell: Bell,
    /// Bit n: region n has published requests for this process.
    pub inbox: [AtomicU64; 8],
    /// Bit n: page n of the region has memory. It is a file: who touches a page for which there is none is killed.
    pub(super) pages: [AtomicU64; PAGE_WORDS],
    /// How far this process has read the channel of region n: `incarnation of n << 32 | count`.
    pub heads: [AtomicU64; MAX_PROCESSES],
    /// Requests for others.
    pub channels: [Channel; MAX_PROCESSES],
    /// Their bodies.
    pub slots: [Slot; SLOTS],
    /// Payloads of datagrams, by slot.
    pub payloads: [SlotPayload; SLOTS],
    /// Memory regions by index (`key >> 8`).
    pub mrs: [PublishedMr; PUBLISHED_MRS],
    /// QPs by handle.
    pub qps: [PublishedQp; PUBLISHED_QPS],
    /// What they have asked for, for who watches.
    pub sent: [Sent; PUBLISHED_QPS],
}

/// Version of this layout, so that two builds do not meet in one file.
pub(super) const LAYOUT: u64 = 0x7076_7264_6d61_000e;

/// The front of the shared file.
#[repr(C, align(4096))]
pub struct Fabric {
    /// `LAYOUT` plus the size, set by the first process.
    pub(super) layout: AtomicU64,
    /// Next incarnation to give out.
    pub(super) incarnation: AtomicU32,
    /// Regions from this one on were never used.
    pub(super) used: AtomicU32,
    /// The PID namespace of all who own a region: the numbers of another one name other processes.
    pub(super) pid_namespace: AtomicU64,
    /// Who carries requests to other hosts: region, counted from 1 (bits 32..), and incarnation. 0: nobody does.
    pub(super) gateway: AtomicU64,
    /// How often it has looked after what guests have for other hosts. Nothing is ordered by it.
    pub(super) rounds: std::sync::atomic::AtomicU64,
    /// Bit n: it has a link to host n. Nothing is ordered by it.
    pub(super) linked: [std::sync::atomic::AtomicU64; 4],
    /// Bit n: adapters carry what goes over that link. The same.
    pub(super) by_adapter: [std::sync::atomic::AtomicU64; 4],
    /// Its address for those who speak RoCE, and the path MTU there; 0: it has none. Written last, and cleared first.
    pub(super) wire_gid: [std::sync::atomic::AtomicU64; 2],
    pub(super) wire_mtu: std::sync::atomic::AtomicU32,
    pub(super) seats: [Seat; MAX_PROCESSES],
}

/// The regions follow in the file, one after the other.
pub(super) const FILE_LEN: u64 = (size_of::<Fabric>() + MAX_PROCESSES * size_of::<Region>()) as u64;

pub(super) fn offset_of_region(index: usize) -> usize {
    size_of::<Fabric>() + index * size_of::<Region>()
}

/// Pages of `region` that a part of it lies in.
pub(super) fn pages_of<T>(region: &Region, part: &T) -> std::ops::RangeInclusive<usize> {
    let offset = std::ptr::from_ref(part) as usize - std::ptr::from_ref(region) as usize;
    offset / PAGE..=(offset + size_of::<T>() - 1) / PAGE
}

impl Region {
    /// Whether a part of it may be touched.
    pub fn has<T>(&self, part: &T) -> bool {
        cfg!(all(loom, test))
            || pages_of(self, part).all(|page| self.pages[page / 64].load(Ordering::Acquire) & 1 << (page % 64) != 0)
    }

    /// Zeroes it, where the file system cannot give its pages back.
    pub(super) fn clear(&self) {
        let words = std::ptr::from_ref(self).cast::<u64>().cast_mut();
        for n in 0..size_of::<Region>() / 8 {
            // SAFETY: within this region, aligned, and nothing but atomics, so that a late reader of the former owner's
            // words is no data race.
            unsafe { AtomicU64::from_ptr(words.add(n)) }.store(0, Ordering::Relaxed);
        }
    }
}
