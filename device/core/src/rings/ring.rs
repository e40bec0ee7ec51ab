//! The device's side of rings: counters, slots and where they lie (pvrdma_ring.h: `pvrdma_idx_*`).
//!
//! A ring has S slots, S a power of two. A counter runs modulo 2S, so that "full" and "empty" differ in its
//! top bit. The counters live in the first page of the object and belong, one each, to the two sides; the
//! device keeps its own in private memory and never believes that word again.

use crate::memory::{Fault, Memory, PageTable};

/// Byte offsets of the counters in the ring state page (pvrdma_ring.h: `pvrdma_ring_state`).
pub mod state {
    /// `tx.prod_tail`
    pub const TX_PROD_TAIL: u64 = 0;
    /// `tx.cons_head`
    pub const TX_CONS_HEAD: u64 = 4;
    /// `rx.prod_tail`
    pub const RX_PROD_TAIL: u64 = 8;
    /// `rx.cons_head`
    pub const RX_CONS_HEAD: u64 = 12;
}

/// The counter in shared memory is no counter of this ring, or its page is gone: nothing in the ring can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("ring broken")]
pub struct BrokenRing;

impl From<Fault> for BrokenRing {
    fn from(_: Fault) -> Self {
        BrokenRing
    }
}

/// Place and size of a ring within the pages of its object.
#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    /// Number of slots, a power of two.
    pub slots: u32,
    /// Bytes from one slot to the next, a power of two.
    pub stride: u32,
    /// Offset of slot 0 in the object's pages.
    pub base: u64,
    /// Offset of the producer's counter.
    pub tail_at: u64,
    /// Offset of the consumer's counter.
    pub head_at: u64,
}

impl Geometry {
    /// Bytes of all slots.
    pub fn bytes(&self) -> u64 {
        u64::from(self.slots) * u64::from(self.stride)
    }

    /// Whether `counter` can be a counter of this ring.
    pub fn valid(&self, counter: u32) -> bool {
        counter < 2 * self.slots
    }

    /// The counter after `counter`.
    pub fn advance(&self, counter: u32) -> u32 {
        (counter + 1) & (2 * self.slots - 1)
    }

    /// Entries between the two counters; `None` if more than there are slots.
    pub fn pending(&self, tail: u32, head: u32) -> Option<u32> {
        let count = tail.wrapping_sub(head) & (2 * self.slots - 1);
        (count <= self.slots).then_some(count)
    }

    /// Offset of the slot that `counter` names.
    pub fn slot_at(&self, counter: u32) -> u64 {
        self.base + u64::from(counter & (self.slots - 1)) * u64::from(self.stride)
    }
}

/// The consuming side: send and receive queues.
#[derive(Debug)]
pub struct Consumer {
    geometry: Geometry,
    /// Next entry to take.
    next: u32,
    /// Entries before this one are the producer's again (`cons_head`).
    released: u32,
}

impl Consumer {
    /// A ring that has just been zeroed by its owner.
    pub fn new(geometry: Geometry) -> Consumer {
        Consumer { geometry, next: 0, released: 0 }
    }

    /// Back to the start; the driver zeroes the shared counters after RESET.
    pub fn reset(&mut self) {
        self.next = 0;
        self.released = 0;
    }

    /// The slot to read next, or `None` if the producer has published no more.
    pub fn peek(&self, pages: &PageTable, memory: &dyn Memory) -> Result<Option<u64>, BrokenRing> {
        // Acquire, by `Memory::load`: the WQE was written before the tail that shows it.
        let tail = memory.load(pages.at(self.geometry.tail_at)?)?;
        if !self.geometry.valid(tail) {
            return Err(BrokenRing);
        }
        // Counted from the last released entry: the producer owns nothing between that and the tail.
        let posted = self.geometry.pending(tail, self.released).ok_or(BrokenRing)?;
        let taken = self.geometry.pending(self.next, self.released).ok_or(BrokenRing)?;
        if taken > posted {
            return Err(BrokenRing);
        }
        Ok((taken < posted).then(|| self.geometry.slot_at(self.next)))
    }

    /// Entries that are published and not taken.
    pub fn posted(&self, pages: &PageTable, memory: &dyn Memory) -> Result<u32, BrokenRing> {
        let tail = memory.load(pages.at(self.geometry.tail_at)?)?;
        if !self.geometry.valid(tail) {
            return Err(BrokenRing);
        }
        self.geometry.pending(tail, self.next).ok_or(BrokenRing)
    }

    /// Takes the entry that `peek` showed. Its slot stays the device's until `release`.
    pub fn take(&mut self) {
        self.next = self.geometry.advance(self.next);
    }

    /// Gives the oldest taken entry back to the producer.
    pub fn release(&mut self, pages: &PageTable, memory: &dyn Memory) -> Result<(), BrokenRing> {
        self.released = self.geometry.advance(self.released);
        // Release, by `Memory::store`: our reads of the slot come before its owner sees it free.
        memory.store(pages.at(self.geometry.head_at)?, self.released)?;
        Ok(())
    }
}

/// The producing side: completion queues.
#[derive(Debug)]
pub struct Producer {
    geometry: Geometry,
    tail: u32,
}

/// Why nothing could be put into a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutError {
    /// Every slot holds an entry that the consumer has not taken.
    Full,
    /// See [`BrokenRing`].
    Broken,
}

impl From<Fault> for PutError {
    fn from(_: Fault) -> Self {
        PutError::Broken
    }
}

impl Producer {
    /// A ring that has just been zeroed by its owner.
    pub fn new(geometry: Geometry) -> Producer {
        Producer { geometry, tail: 0 }
    }

    /// Writes `entry` into the next slot and publishes it.
    pub fn put(&mut self, pages: &PageTable, memory: &dyn Memory, entry: &[u8]) -> Result<(), PutError> {
        let head = memory.load(pages.at(self.geometry.head_at)?)?;
        if !self.geometry.valid(head) {
            return Err(PutError::Broken);
        }
        match self.geometry.pending(self.tail, head) {
            None => return Err(PutError::Broken),
            Some(count) if count == self.geometry.slots => return Err(PutError::Full),
            Some(_) => {}
        }
        memory.write(pages.at(self.geometry.slot_at(self.tail))?, entry)?;
        let tail = self.geometry.advance(self.tail);
        // Release, by `Memory::store`: who sees the new tail sees the entry.
        memory.store(pages.at(self.geometry.tail_at)?, tail)?;
        self.tail = tail;
        Ok(())
    }

    /// Whether the consumer has taken everything.
    pub fn is_empty(&self, pages: &PageTable, memory: &dyn Memory) -> bool {
        pages.at(self.geometry.head_at).and_then(|at| memory.load(at)) == Ok(self.tail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{DmaAddr, Span};
    use crate::testing::Ram;

    fn ring(slots: u32) -> (Ram, PageTable, Geometry) {
        let ram = Ram::new(3 * 4096);
        let pages = PageTable::Flat(Span { addr: DmaAddr(0), len: 3 * 4096 });
        let geometry =
            Geometry { slots, stride: 64, base: 4096, tail_at: state::RX_PROD_TAIL, head_at: state::RX_CONS_HEAD };
        (ram, pages, geometry)
    }

    #[test]
    fn every_size_wraps_and_fills() {
        for slots in [1, 2, 4, 64] {
            let (ram, pages, geometry) = ring(slots);
            let mut producer = Producer::new(geometry);
            let mut consumer = Consumer::new(geometry);
            for round in 0..5u8 {
                for n in 0..slots {
                    producer.put(&pages, &ram, &[round ^ n as u8; 64]).unwrap();
                }
                assert_eq!(producer.put(&pages, &ram, &[0; 64]), Err(PutError::Full));
                for n in 0..slots {
                    let at = consumer.peek(&pages, &ram).unwrap().expect("an entry");
                    let mut entry = [0; 64];
                    ram.read(pages.at(at).unwrap(), &mut entry).unwrap();
                    assert_eq!(entry, [round ^ n as u8; 64]);
                    consumer.take();
                    consumer.release(&pages, &ram).unwrap();
                }
                assert_eq!(consumer.peek(&pages, &ram), Ok(None));
            }
        }
    }

    #[test]
    fn wild_counters_are_refused() {
        let (ram, pages, geometry) = ring(4);
        let mut producer = Producer::new(geometry);
        let consumer = Consumer::new(geometry);
        for wild in [8, 5, u32::MAX] {
            ram.store(DmaAddr(state::RX_PROD_TAIL), wild).unwrap();
            assert_eq!(consumer.peek(&pages, &ram), Err(BrokenRing), "tail {wild}");
        }
        for wild in [8, 1, u32::MAX] {
            ram.store(DmaAddr(state::RX_CONS_HEAD), wild).unwrap();
            assert_eq!(producer.put(&pages, &ram, &[0; 64]), Err(PutError::Broken), "head {wild}");
        }
    }

    #[test]
    fn a_slot_taken_but_not_released_is_not_the_producers() {
        let (ram, pages, geometry) = ring(2);
        let mut producer = Producer::new(geometry);
        let mut consumer = Consumer::new(geometry);
        producer.put(&pages, &ram, &[1; 64]).unwrap();
        producer.put(&pages, &ram, &[2; 64]).unwrap();
        consumer.take();
        assert_eq!(producer.put(&pages, &ram, &[3; 64]), Err(PutError::Full));
        consumer.release(&pages, &ram).unwrap();
        producer.put(&pages, &ram, &[3; 64]).unwrap();
    }
}
