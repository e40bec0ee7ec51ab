//! Interrupts to the guest: the two event rings and the three MSI-X vectors.
//!
//! The device core calls [`Irq`] by way of `worker.rs`, from any thread, when a CQ fires or an event happens.
//! `session.rs` hands in the rings, `function.rs` tells it when the driver masks, activates or resets. Events wait
//! here while they may not be published (mask set, not active, bus master off) or while their ring is full.
//!
//! Ring indices follow the driver's own arithmetic, which is odd for these two rings; see [`RingSize`].

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pvrdma_device::handle::{CqHandle, QpHandle, SrqHandle};
use pvrdma_device::interrupt::AsyncEvent;
use pvrdma_device::memory::{DmaAddr, Fault, Memory, PageTable};
use pvrdma_ffi::dev_api::{
    PVRDMA_INTR_VECTOR_ASYNC, PVRDMA_INTR_VECTOR_CQ, PVRDMA_INTR_VECTOR_RESPONSE, PVRDMA_MAX_INTERRUPTS, pvrdma_cqne,
    pvrdma_eqe,
};
use zerocopy::IntoBytes;

use crate::dma::DmaMap;
use crate::eventfd::EventFd;

/// Async events that may wait for room; a guest that never looks loses the newer ones.
const MAX_PENDING_EVENTS: usize = 1024;

/// Place of the producer's and the consumer's index in the ring state page (`pvrdma_ring_state.rx`).
const PROD_TAIL: u64 = 8;
const CONS_HEAD: u64 = 12;

/// Index arithmetic of an event ring with `slots` places.
///
/// The driver masks with `slots - 1` and `2 * slots - 1` as if `slots` were a power of two, and with three data
/// pages it is not. What comes out is a ring of `period` entries, the largest power of two that divides `slots`:
/// indices run through `0..2 * period`, only the first `period` places are ever used, and the driver's own test
/// for "full" never says yes. Any other rule makes the driver stop or loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingSize {
    slots: u32,
}

impl RingSize {
    /// A ring of `data_pages` pages with entries of `entry_len` bytes; none if there is no place for an entry.
    pub fn new(data_pages: u32, entry_len: u32) -> Option<RingSize> {
        // Twice the slots must fit 32 bits; a real ring has three pages.
        (1..=1024).contains(&data_pages).then(|| RingSize { slots: data_pages * (4096 / entry_len) })
    }

    /// Entries that can wait at once.
    pub fn period(self) -> u32 {
        1 << self.slots.trailing_zeros()
    }

    fn valid(self, index: u32) -> bool {
        index & !(2 * self.slots - 1) == 0
    }

    fn slot(self, index: u32) -> u32 {
        index & (self.slots - 1)
    }

    fn advance(self, index: u32) -> u32 {
        (index + 1) & (2 * self.slots - 1)
    }

    fn full(self, tail: u32, head: u32) -> bool {
        tail ^ head == self.period()
    }
}

/// The device's end of one event ring.
pub struct Ring {
    size: RingSize,
    /// Our own count; the copy in guest memory is for the driver and never read back.
    tail: u32,
    state: DmaAddr,
    /// Page of each slot run; page 0 is the state page.
    pages: PageTable,
    entry_len: u32,
}

/// Whether an entry went in.
#[derive(Debug, PartialEq, Eq)]
enum Push {
    Done,
    Full,
}

impl Ring {
    /// The ring described by `pages` (state page first), with entries of `entry_len` bytes.
    pub fn new(pages: PageTable, entry_len: u32) -> Option<Ring> {
        let count = u32::try_from(pages.len() / 4096).ok()?;
        let size = RingSize::new(count.checked_sub(1)?, entry_len)?;
        let state = pages.at(0).ok()?;
        Some(Ring { size, tail: 0, state, pages, entry_len })
    }

    /// Writes an entry and publishes it.
    fn push(&mut self, memory: &dyn Memory, entry: &[u8]) -> Result<Push, Fault> {
        let head = memory.load(self.state.offset(CONS_HEAD)?)?;
        // An index the driver itself calls invalid: it will not look at the ring again until it is reset.
        if !self.size.valid(head) {
            return Err(Fault);
        }
        if self.size.full(self.tail, head) {
            return Ok(Push::Full);
        }
        let slot = self.size.slot(self.tail);
        let place = self.pages.at(4096 + u64::from(slot) * u64::from(self.entry_len))?;
        memory.write(place, entry)?;
        self.tail = self.size.advance(self.tail);
        // Release: the driver that sees the new tail sees the entry.
        memory.store(self.state.offset(PROD_TAIL)?, self.tail)?;
        Ok(Push::Done)
    }
}

/// Both rings of a driver.
pub struct Rings {
    /// Async events.
    pub events: Ring,
    /// CQ notifications.
    pub cqs: Ring,
}

#[derive(Default)]
struct State {
    rings: Option<Rings>,
    active: bool,
    masked: bool,
    bus_master: bool,
    vectors: [Option<EventFd>; PVRDMA_MAX_INTERRUPTS as usize],
    /// Interrupt causes since the last read of ICR.
    causes: u32,
    events: VecDeque<AsyncEvent>,
    /// CQs that fired.
    cqs: BTreeSet<u32>,
}

/// Interrupts of one guest.
pub struct Irq {
    memory: Arc<DmaMap>,
    state: Mutex<State>,
    /// Whether anything waits to be published, readable without the lock.
    pending: AtomicBool,
}

impl Irq {
    /// No rings, masked, as after power-on.
    pub fn new(memory: Arc<DmaMap>) -> Irq {
        Irq { memory, state: Mutex::default(), pending: AtomicBool::new(false) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the driver's rings, forgetting those before and all that waited for them.
    pub fn set_rings(&self, rings: Option<Rings>) {
        let mut state = self.state();
        state.rings = rings;
        state.active = false;
        state.causes = 0;
        state.events.clear();
        state.cqs.clear();
        self.pending.store(false, Ordering::Relaxed);
    }

    /// CTL = ACTIVATE: from here on events may be published.
    pub fn activate(&self) {
        self.state().active = true;
        self.flush();
    }

    /// IMR: any bit set holds everything back, as the driver only ever sets all or none.
    pub fn set_mask(&self, mask: u32) {
        self.state().masked = mask != 0;
        self.flush();
    }

    /// The bus master bit: without it the function may neither write memory nor interrupt.
    pub fn set_bus_master(&self, on: bool) {
        let mut state = self.state();
        let changed = std::mem::replace(&mut state.bus_master, on) != on;
        drop(state);
        if changed {
            self.flush();
        }
    }

    /// The eventfd that stands for a vector, or none.
    pub fn set_vector(&self, vector: usize, eventfd: Option<EventFd>) {
        if let Some(place) = self.state().vectors.get_mut(vector) {
            *place = eventfd;
        }
    }

    /// Tells the driver that a response is in its slot.
    pub fn response(&self) {
        let mut state = self.state();
        if state.bus_master && !state.masked {
            state.raise(PVRDMA_INTR_VECTOR_RESPONSE);
        }
    }

    /// Reads and clears the causes (ICR). Only a driver without MSI-X asks.
    pub fn take_causes(&self) -> u32 {
        std::mem::take(&mut self.state().causes)
    }

    /// A destroyed CQ is named in no later notification.
    pub fn forget_cq(&self, cq: CqHandle) {
        let mut state = self.state();
        state.cqs.remove(&cq.0);
        state.events.retain(|event| *event != AsyncEvent::CqErr(cq));
    }

    /// A destroyed QP is named in no later event.
    pub fn forget_qp(&self, qp: QpHandle) {
        self.state().events.retain(|event| match event {
            AsyncEvent::QpFatal(of)
            | AsyncEvent::QpReqErr(of)
            | AsyncEvent::QpAccessErr(of)
            | AsyncEvent::CommEst(of)
            | AsyncEvent::SqDrained(of)
            | AsyncEvent::QpLastWqeReached(of) => *of != qp,
            AsyncEvent::CqErr(_) | AsyncEvent::SrqLimitReached(_) | AsyncEvent::SrqErr(_) => true,
            AsyncEvent::PortActive | AsyncEvent::PortErr | AsyncEvent::DeviceFatal => true,
        });
    }

    /// A destroyed SRQ is named in no later event.
    pub fn forget_srq(&self, srq: SrqHandle) {
        let of = |event: &AsyncEvent| *event == AsyncEvent::SrqLimitReached(srq) || *event == AsyncEvent::SrqErr(srq);
        self.state().events.retain(|event| !of(event));
    }

    /// Publishes what waits, as far as there is room.
    pub fn flush(&self) {
        self.publish(&mut self.state());
    }

    /// As [`Irq::flush`], for callers on a hot path: costs one load when nothing waits.
    pub fn flush_pending(&self) {
        // Relaxed: whoever left something waiting flushes it again on its own next chance, too.
        if self.pending.load(Ordering::Relaxed) {
            self.flush();
        }
    }

    /// Whether something waits for room in a ring.
    pub fn is_pending(&self) -> bool {
        self.pending.load(Ordering::Relaxed)
    }

    /// A CQ fired. One notification makes the driver look at the whole CQ, so it waits at most once.
    pub fn completion(&self, cq: CqHandle) {
        let mut state = self.state();
        state.cqs.insert(cq.0);
        self.publish(&mut state);
    }

    /// Something happened that no completion tells.
    pub fn async_event(&self, event: AsyncEvent) {
        let mut state = self.state();
        if state.events.len() < MAX_PENDING_EVENTS {
            state.events.push_back(event);
        }
        self.publish(&mut state);
    }

    fn publish(&self, state: &mut State) {
        if state.may_publish() {
            state.publish_events(&*self.memory);
            state.publish_cqs(&*self.memory);
        }
        self.pending.store(!state.events.is_empty() || !state.cqs.is_empty(), Ordering::Relaxed);
    }
}

impl State {
    fn may_publish(&self) -> bool {
        self.active && self.bus_master && !self.masked
    }

    fn publish_events(&mut self, memory: &dyn Memory) {
        let Some(rings) = &mut self.rings else { return };
        let mut raised = false;
        while let Some(event) = self.events.front() {
            let (kind, info) = event.to_eqe();
            let entry = pvrdma_eqe { type_: kind, info };
            match rings.events.push(memory, entry.as_bytes()) {
                Ok(Push::Done) => raised = true,
                Ok(Push::Full) => break,
                // The driver broke its ring or took the memory away: there is nobody to tell.
                Err(Fault) => {}
            }
            self.events.pop_front();
        }
        if raised {
            self.raise(PVRDMA_INTR_VECTOR_ASYNC);
        }
    }

    fn publish_cqs(&mut self, memory: &dyn Memory) {
        let Some(rings) = &mut self.rings else { return };
        let mut raised = false;
        while let Some(cq) = self.cqs.first().copied() {
            match rings.cqs.push(memory, pvrdma_cqne { info: cq }.as_bytes()) {
                Ok(Push::Done) => raised = true,
                Ok(Push::Full) => break,
                Err(Fault) => {}
            }
            self.cqs.pop_first();
        }
        if raised {
            self.raise(PVRDMA_INTR_VECTOR_CQ);
        }
    }

    fn raise(&mut self, vector: u32) {
        self.causes |= 1 << vector;
        if let Some(Some(eventfd)) = self.vectors.get_mut(vector as usize) {
            eventfd.raise();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dma::tests::guest;
    use crate::eventfd::tests::eventfd;
    use pvrdma_device::memory::{Buffer, Span};
    use std::fs::File;
    use std::io::Read;

    const EVENTS: u64 = 0x0;
    const CQS: u64 = 0x4000;

    /// What the Linux driver does with an event ring (pvrdma_ring.h), by hand.
    struct Driver<'a> {
        memory: &'a DmaMap,
        base: u64,
        entry_len: u64,
        slots: u32,
    }

    impl Driver<'_> {
        fn cqs(memory: &DmaMap) -> Driver<'_> {
            Driver { memory, base: CQS, entry_len: 4, slots: 3072 }
        }

        fn events(memory: &DmaMap) -> Driver<'_> {
            Driver { memory, base: EVENTS, entry_len: 8, slots: 1536 }
        }

        fn word(&self, offset: u64) -> u32 {
            self.memory.load(DmaAddr(self.base + offset)).unwrap()
        }

        /// The first word of the next entry; `None` when the ring is empty. Panics where the driver would stop.
        fn take(&self) -> Option<u32> {
            let (tail, head) = (self.word(PROD_TAIL), self.word(CONS_HEAD));
            assert_eq!(tail & !(2 * self.slots - 1), 0, "tail {tail} is invalid to the driver");
            assert_eq!(head & !(2 * self.slots - 1), 0, "head {head} is invalid to the driver");
            if tail == head {
                return None;
            }
            let slot = u64::from(head & (self.slots - 1));
            let info = self.word(4096 + slot * self.entry_len);
            let next = (head + 1) & (2 * self.slots - 1);
            self.memory.store(DmaAddr(self.base + CONS_HEAD), next).unwrap();
            Some(info)
        }
    }

    fn rings(memory: &DmaMap) -> Rings {
        let ring = |base, entry_len| {
            let buffer = Buffer::Ranges(vec![Span { addr: DmaAddr(base), len: 0x4000 }]);
            Ring::new(PageTable::resolve(&buffer, memory).unwrap(), entry_len).unwrap()
        };
        Rings { events: ring(EVENTS, 8), cqs: ring(CQS, 4) }
    }

    fn irq() -> (Arc<DmaMap>, Irq) {
        let memory = guest(0, 0x8000);
        let irq = Irq::new(memory.clone());
        irq.set_rings(Some(rings(&memory)));
        irq.set_bus_master(true);
        irq.activate();
        (memory, irq)
    }

    fn count(eventfd: &mut File) -> u64 {
        let mut count = [0; 8];
        match eventfd.read_exact(&mut count) {
            Ok(()) => u64::from_ne_bytes(count),
            Err(_) => 0,
        }
    }

    #[test]
    fn ring_sizes_of_the_driver() {
        let events = RingSize::new(3, 8).unwrap();
        let cqs = RingSize::new(3, 4).unwrap();
        assert_eq!((events.slots, events.period()), (1536, 512));
        assert_eq!((cqs.slots, cqs.period()), (3072, 1024));
    }

    #[test]
    fn indices_wrap_where_the_driver_wraps() {
        for (entry_len, wrap) in [(8, 1024), (4, 2048)] {
            let size = RingSize::new(3, entry_len).unwrap();
            let mut index = 0;
            for step in 1..=3 * wrap {
                index = size.advance(index);
                assert_eq!(index, step % wrap);
                assert!(size.valid(index) && size.slot(index) < size.period());
            }
            assert!(!size.valid(wrap), "the driver would call {wrap} invalid");
        }
    }

    #[test]
    fn power_of_two_rings_use_every_slot() {
        let size = RingSize::new(4, 8).unwrap();
        assert_eq!(size.period(), size.slots);
        assert!(size.full(size.slots, 0) && !size.full(0, 0));
    }

    #[test]
    fn impossible_rings_are_refused() {
        for pages in [0, 1025, u32::MAX] {
            assert_eq!(RingSize::new(pages, 4), None);
        }
    }

    #[test]
    fn driver_gets_every_notification_over_many_wraps() {
        let (memory, irq) = irq();
        let driver = Driver::cqs(&memory);
        for cq in 0..10_000 {
            irq.completion(CqHandle(cq));
            assert_eq!(driver.take(), Some(cq));
        }
        assert_eq!(driver.take(), None);
    }

    #[test]
    fn full_ring_keeps_notifications_until_there_is_room() {
        let (memory, irq) = irq();
        for cq in 0..1500 {
            irq.completion(CqHandle(cq));
        }
        assert!(irq.is_pending());
        let driver = Driver::cqs(&memory);
        let mut seen: Vec<u32> = std::iter::from_fn(|| driver.take()).collect();
        assert_eq!(seen.len(), 1024, "no more than the driver can see");
        irq.flush_pending();
        seen.extend(std::iter::from_fn(|| driver.take()));
        assert_eq!(seen, (0..1500).collect::<Vec<u32>>());
        assert!(!irq.is_pending());
    }

    #[test]
    fn events_carry_type_and_handle() {
        let (memory, irq) = irq();
        irq.async_event(AsyncEvent::QpFatal(QpHandle(77)));
        assert_eq!(memory.load(DmaAddr(EVENTS + 4096 + 4)), Ok(77));
        assert_eq!(Driver::events(&memory).take(), Some(1));
    }

    #[test]
    fn events_of_a_driver_that_never_looks_are_bounded() {
        let (_memory, irq) = irq();
        for _ in 0..10_000 {
            irq.async_event(AsyncEvent::QpFatal(QpHandle(1)));
        }
        assert_eq!(irq.state().events.len(), MAX_PENDING_EVENTS);
    }

    #[test]
    fn nothing_is_published_before_activate_or_while_masked_or_without_bus_master() {
        let (memory, irq) = irq();
        let driver = Driver::cqs(&memory);
        irq.set_mask(u32::MAX);
        irq.completion(CqHandle(5));
        assert_eq!(driver.take(), None);
        irq.set_mask(0);
        assert_eq!(driver.take(), Some(5));

        irq.set_bus_master(false);
        irq.completion(CqHandle(6));
        assert_eq!(driver.take(), None);
        irq.set_bus_master(true);
        assert_eq!(driver.take(), Some(6));

        irq.set_rings(Some(rings(&memory)));
        irq.completion(CqHandle(7));
        assert_ne!(memory.load(DmaAddr(CQS + 4096)), Ok(7), "not active");
    }

    #[test]
    fn vector_follows_the_entry() {
        let (_memory, irq) = irq();
        let mut vectors = [(); 3].map(|()| eventfd(libc::EFD_NONBLOCK));
        for (index, vector) in vectors.iter().enumerate() {
            irq.set_vector(index, Some(EventFd::new(vector.try_clone().unwrap().into()).unwrap()));
        }
        irq.completion(CqHandle(1));
        irq.response();
        assert_eq!(vectors.each_mut().map(count), [1, 0, 1]);
        irq.async_event(AsyncEvent::QpFatal(QpHandle(1)));
        assert_eq!(vectors.each_mut().map(count), [0, 1, 0]);
        assert_eq!(irq.take_causes(), 0b111);
        assert_eq!(irq.take_causes(), 0, "reading clears");
    }

    #[test]
    fn destroyed_cq_is_not_named_later() {
        let (memory, irq) = irq();
        irq.set_mask(1);
        irq.completion(CqHandle(1));
        irq.completion(CqHandle(2));
        irq.forget_cq(CqHandle(1));
        irq.set_mask(0);
        let driver = Driver::cqs(&memory);
        assert_eq!(driver.take(), Some(2));
        assert_eq!(driver.take(), None);
    }

    #[test]
    fn destroyed_qp_is_not_named_later() {
        let (memory, irq) = irq();
        irq.set_mask(1);
        irq.async_event(AsyncEvent::QpFatal(QpHandle(2)));
        irq.async_event(AsyncEvent::QpFatal(QpHandle(3)));
        irq.forget_qp(QpHandle(2));
        irq.set_mask(0);
        assert_eq!(Driver::events(&memory).take(), Some(1));
        assert_eq!(memory.load(DmaAddr(EVENTS + 4096 + 4)), Ok(3));
        assert_eq!(Driver::events(&memory).take(), None);
    }

    #[test]
    fn broken_ring_swallows_events_and_hurts_nobody() {
        let (memory, irq) = irq();
        memory.store(DmaAddr(CQS + CONS_HEAD), 0xffff_ffff).unwrap();
        irq.completion(CqHandle(1));
        assert!(!irq.is_pending());
        memory.clear();
        irq.completion(CqHandle(2));
        irq.async_event(AsyncEvent::QpFatal(QpHandle(1)));
        assert!(!irq.is_pending());
    }
}
