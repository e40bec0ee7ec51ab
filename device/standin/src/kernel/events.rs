//! Completion channels and async event files, and the device's interrupts that end up in them.
//!
//! A channel is a SOCK_SEQPACKET pair: the program's end gives one event for each read, blocks or not as the program
//! wishes, and can be polled, with no call interposed. The device's end never blocks; what does not fit waits here.

use crate::kernel::fd;
use crate::support::raw::{self, syscall};
use crate::support::{thread, trace};
use pvrdma_device::handle::{CqHandle, Gid, QpHandle, SrqHandle};
use pvrdma_device::interrupt::{AsyncEvent, Interrupts};
use pvrdma_device::rings::cqe::Completion;
use pvrdma_device::transport::Path;
use pvrdma_ffi::uapi::ib_user_verbs::{ib_uverbs_async_event_desc, ib_uverbs_comp_event_desc};
use std::collections::{HashMap, VecDeque};
use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use zerocopy::{FromBytes, IntoBytes};

// ---- a channel ---------------------------------------------------------------------------------

/// The device's side of an event file.
pub struct Channel {
    /// Where events are written.
    tx: c_int,
    /// A second hold on the program's end, to see which events were not read yet.
    rx: c_int,
    waiting: Mutex<Waiting>,
    /// Cleared when the program closes its end.
    open: AtomicBool,
}

#[derive(Default)]
struct Waiting {
    records: VecDeque<Record>,
    /// A thread waits for room.
    flushing: bool,
}

/// One event, as the program reads it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Record {
    /// `ib_uverbs_comp_event_desc`.
    Completion { user_handle: u64 },
    /// `ib_uverbs_async_event_desc`.
    Async { user_handle: u64, event: u32 },
}

impl Record {
    fn with_bytes<R>(self, use_bytes: impl FnOnce(&[u8]) -> R) -> R {
        match self {
            Record::Completion { user_handle } => {
                use_bytes(ib_uverbs_comp_event_desc { cq_handle: user_handle }.as_bytes())
            }
            Record::Async { user_handle, event } => {
                let event = ib_uverbs_async_event_desc { element: user_handle, event_type: event, reserved: 0 };
                use_bytes(event.as_bytes())
            }
        }
    }

    fn parse(bytes: &[u8]) -> Option<Record> {
        if let Ok(event) = ib_uverbs_comp_event_desc::read_from_bytes(bytes) {
            return Some(Record::Completion { user_handle: event.cq_handle });
        }
        let event = ib_uverbs_async_event_desc::read_from_bytes(bytes).ok()?;
        Some(Record::Async { user_handle: event.element, event: event.event_type })
    }
}

impl Channel {
    /// A channel and the descriptor of the program's end.
    pub fn new() -> Result<(Arc<Channel>, c_int), i32> {
        let mut ends = [0; 2];
        let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
        // SAFETY: room for two descriptors.
        if unsafe { syscall!(SYS_socketpair, libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) } != 0 {
            return Err(raw::errno());
        }
        let [program, device] = ends;
        let Some(second) = raw::dup_above(program, 0) else {
            let errno = raw::errno();
            raw::close(program);
            raw::close(device);
            return Err(errno);
        };
        let channel = Channel {
            tx: fd::hide(device),
            rx: fd::hide(second),
            waiting: Mutex::default(),
            open: AtomicBool::new(true),
        };
        Ok((Arc::new(channel), program))
    }

    /// The program has closed its end: what comes now is for nobody.
    pub fn closed(&self) {
        self.open.store(false, Ordering::Relaxed);
    }

    /// Whether the event is on its way to a reader.
    fn send(self: &Arc<Channel>, record: Record) -> bool {
        if !self.open.load(Ordering::Relaxed) {
            return false;
        }
        let mut waiting = self.waiting();
        waiting.records.push_back(record);
        self.flush(&mut waiting);
        if !waiting.records.is_empty() && !waiting.flushing {
            let channel = Arc::into_raw(Arc::clone(self)).cast_mut();
            let started = thread::start(flush_thread, channel.cast());
            // Without a thread the next event, or the end of the object, finds them.
            waiting.flushing = started.is_ok();
            if started.is_err() {
                // SAFETY: from `into_raw` above; no thread has it.
                drop(unsafe { Arc::from_raw(channel) });
            }
        }
        true
    }

    /// Writes what fits.
    fn flush(&self, waiting: &mut Waiting) {
        while let Some(record) = waiting.records.front() {
            let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
            let sent = record.with_bytes(|bytes| {
                let none = std::ptr::null::<libc::sockaddr>();
                // SAFETY: `bytes` is readable for its length; no address.
                unsafe { syscall!(SYS_sendto, self.tx, bytes.as_ptr(), bytes.len(), flags, none, 0) }
            });
            if sent < 0 {
                return;
            }
            waiting.records.pop_front();
        }
    }

    /// Writes the rest as the program reads. A few hundred events fit into the socket, so this is rare.
    fn flush_all(&self) {
        loop {
            let mut poll = libc::pollfd { fd: self.tx, events: libc::POLLOUT, revents: 0 };
            // SAFETY: one pollfd of ours.
            unsafe { libc::poll(&mut poll, 1, 1000) };
            let mut waiting = self.waiting();
            self.flush(&mut waiting);
            if waiting.records.is_empty() || !self.open.load(Ordering::Relaxed) {
                waiting.flushing = false;
                return;
            }
        }
    }

    /// Takes back the events for which `mine` holds and returns how many there were; the others stay, in order.
    fn take_back(&self, mine: impl Fn(&Record) -> bool) -> u32 {
        let mut waiting = self.waiting();
        let mut all = VecDeque::new();
        let mut bytes = [0u8; 16];
        loop {
            // SAFETY: `bytes` has room.
            let received = unsafe {
                let none = std::ptr::null_mut::<libc::sockaddr>();
                let room = bytes.as_mut_ptr();
                syscall!(SYS_recvfrom, self.rx, room, bytes.len(), libc::MSG_DONTWAIT, none, none)
            };
            let Ok(received @ 1..) = usize::try_from(received) else { break };
            all.extend(bytes.get(..received).and_then(Record::parse));
        }
        all.append(&mut waiting.records);
        let before = all.len();
        all.retain(|record| !mine(record));
        let taken = before - all.len();
        waiting.records = all;
        self.flush(&mut waiting);
        taken as u32
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        fd::close_hidden(self.tx);
        fd::close_hidden(self.rx);
    }
}

extern "C" fn flush_thread(channel: *mut c_void) -> *mut c_void {
    thread::name(c"pvrdma-events");
    // SAFETY: `Channel::send` gave this thread its own count of the channel, made by `into_raw`.
    let channel = unsafe { Arc::from_raw(channel.cast::<Channel>()) };
    channel.flush_all();
    std::ptr::null_mut()
}

// ---- who hears of what -------------------------------------------------------------------------

/// A CQ's way to the program.
struct CqSink {
    user_handle: u64,
    completions: Option<Arc<Channel>>,
    async_events: Arc<Channel>,
    completions_sent: u32,
    async_sent: u32,
}

/// A QP's or SRQ's way to the program.
struct Sink {
    user_handle: u64,
    async_events: Arc<Channel>,
    async_sent: u32,
}

#[derive(Default)]
struct Sinks {
    cqs: HashMap<CqHandle, CqSink>,
    qps: HashMap<QpHandle, Sink>,
    srqs: HashMap<SrqHandle, Sink>,
    contexts: Vec<Weak<Channel>>,
}

/// All ways of a process. An object is entered after the device has made it and removed after the device has ended
/// it; events in between the two steps have no one to go to.
pub struct Events {
    sinks: Mutex<Sinks>,
    wake: fn(),
}

impl Events {
    /// No ways yet. `wake` gets the process's side thread up.
    pub fn new(wake: fn()) -> Arc<Events> {
        Arc::new(Events { sinks: Mutex::default(), wake })
    }

    fn sinks(&self) -> MutexGuard<'_, Sinks> {
        self.sinks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A context was opened whose async events go to `channel`.
    pub fn add_context(&self, channel: &Arc<Channel>) {
        let mut sinks = self.sinks();
        sinks.contexts.retain(|known| known.strong_count() > 0);
        sinks.contexts.push(Arc::downgrade(channel));
    }

    /// A CQ was made.
    pub fn add_cq(
        &self,
        cq: CqHandle,
        user_handle: u64,
        completions: Option<Arc<Channel>>,
        async_events: Arc<Channel>,
    ) {
        let sink = CqSink { user_handle, completions, async_events, completions_sent: 0, async_sent: 0 };
        self.sinks().cqs.insert(cq, sink);
    }

    /// A QP was made.
    pub fn add_qp(&self, qp: QpHandle, user_handle: u64, async_events: Arc<Channel>) {
        self.sinks().qps.insert(qp, Sink { user_handle, async_events, async_sent: 0 });
    }

    /// An SRQ was made.
    pub fn add_srq(&self, srq: SrqHandle, user_handle: u64, async_events: Arc<Channel>) {
        self.sinks().srqs.insert(srq, Sink { user_handle, async_events, async_sent: 0 });
    }

    /// A CQ has ended. Returns how many completion and async events of it the program has read: libibverbs waits until
    /// so many were acknowledged. Those not read yet are taken back.
    pub fn remove_cq(&self, cq: CqHandle) -> (u32, u32) {
        let Some(sink) = self.sinks().cqs.remove(&cq) else { return (0, 0) };
        let own = Record::Completion { user_handle: sink.user_handle };
        let unread = sink.completions.map_or(0, |channel| channel.take_back(|record| *record == own));
        let unread_async = take_back_async(&sink.async_events, sink.user_handle);
        (sink.completions_sent.saturating_sub(unread), sink.async_sent.saturating_sub(unread_async))
    }

    /// A QP has ended; as `remove_cq`.
    pub fn remove_qp(&self, qp: QpHandle) -> u32 {
        let sink = self.sinks().qps.remove(&qp);
        sink.map_or(0, Sink::end)
    }

    /// An SRQ has ended; as `remove_cq`.
    pub fn remove_srq(&self, srq: SrqHandle) -> u32 {
        let sink = self.sinks().srqs.remove(&srq);
        sink.map_or(0, Sink::end)
    }
}

impl Sink {
    fn send(&mut self, event: u32) {
        self.async_sent += u32::from(self.async_events.send(Record::Async { user_handle: self.user_handle, event }));
    }

    fn end(self) -> u32 {
        self.async_sent.saturating_sub(take_back_async(&self.async_events, self.user_handle))
    }
}

fn take_back_async(channel: &Channel, own: u64) -> u32 {
    channel.take_back(|record| matches!(record, Record::Async { user_handle, .. } if *user_handle == own))
}

impl Interrupts for Events {
    fn completed(&self, cq: CqHandle, completion: &Completion) {
        if trace::enabled() {
            trace::completed(cq, completion);
        }
    }

    fn completion(&self, cq: CqHandle) {
        if trace::enabled() {
            trace::fired(cq);
        }
        let mut sinks = self.sinks();
        let Some(sink) = sinks.cqs.get_mut(&cq) else {
            // The kernel's own, of the management QP: the side thread takes care of it.
            drop(sinks);
            return (self.wake)();
        };
        if let Some(channel) = &sink.completions {
            sink.completions_sent += u32::from(channel.send(Record::Completion { user_handle: sink.user_handle }));
        }
    }

    fn path(&self, qp: QpHandle, peer: &Gid, path: Path) {
        if trace::enabled() {
            trace::path(qp, peer, path);
        }
    }

    fn wants_paths(&self) -> bool {
        trace::enabled()
    }

    fn async_event(&self, event: AsyncEvent) {
        if trace::enabled() {
            trace::async_event(event);
        }
        let (number, _) = event.to_eqe();
        let mut sinks = self.sinks();
        let sink = match event {
            AsyncEvent::CqErr(cq) => {
                if let Some(sink) = sinks.cqs.get_mut(&cq) {
                    let record = Record::Async { user_handle: sink.user_handle, event: number };
                    sink.async_sent += u32::from(sink.async_events.send(record));
                }
                return;
            }
            AsyncEvent::QpFatal(qp)
            | AsyncEvent::QpReqErr(qp)
            | AsyncEvent::QpAccessErr(qp)
            | AsyncEvent::CommEst(qp)
            | AsyncEvent::SqDrained(qp)
            | AsyncEvent::QpLastWqeReached(qp) => sinks.qps.get_mut(&qp),
            AsyncEvent::SrqLimitReached(srq) | AsyncEvent::SrqErr(srq) => sinks.srqs.get_mut(&srq),
            // Every context hears of its device and port; what stands for the object is the port's number.
            AsyncEvent::PortActive | AsyncEvent::PortErr | AsyncEvent::DeviceFatal => {
                let record = Record::Async { user_handle: 1, event: number };
                for channel in sinks.contexts.iter().filter_map(Weak::upgrade) {
                    channel.send(record);
                }
                return;
            }
        };
        if let Some(sink) = sink {
            sink.send(number);
        }
    }

    fn wake(&self) {
        (self.wake)();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(fd: c_int) -> Option<Record> {
        let mut bytes = [0u8; 64];
        // SAFETY: `bytes` has room.
        let got = unsafe { libc::recv(fd, bytes.as_mut_ptr().cast(), bytes.len(), libc::MSG_DONTWAIT) };
        usize::try_from(got).ok().and_then(|got| Record::parse(&bytes[..got]))
    }

    struct Setup {
        events: Arc<Events>,
        completions: c_int,
        async_events: c_int,
    }

    fn two_cqs() -> Setup {
        let events = Events::new(|| {});
        let (completions, completions_fd) = Channel::new().unwrap();
        let (async_events, async_fd) = Channel::new().unwrap();
        for cq in [1, 2] {
            let completions = Some(completions.clone());
            events.add_cq(CqHandle(cq), 100 + u64::from(cq), completions, async_events.clone());
        }
        Setup { events, completions: completions_fd, async_events: async_fd }
    }

    impl Drop for Setup {
        fn drop(&mut self) {
            raw::close(self.completions);
            raw::close(self.async_events);
        }
    }

    #[test]
    fn one_read_gives_one_event() {
        let setup = two_cqs();
        setup.events.completion(CqHandle(1));
        setup.events.completion(CqHandle(2));
        setup.events.async_event(AsyncEvent::CqErr(CqHandle(2)));
        assert_eq!(read(setup.completions), Some(Record::Completion { user_handle: 101 }));
        assert_eq!(read(setup.completions), Some(Record::Completion { user_handle: 102 }));
        assert_eq!(read(setup.completions), None);
        assert_eq!(read(setup.async_events), Some(Record::Async { user_handle: 102, event: 0 }));
    }

    #[test]
    fn only_events_that_were_read_are_reported_at_the_end() {
        let setup = two_cqs();
        for cq in [1, 2, 1, 2, 1] {
            setup.events.completion(CqHandle(cq));
        }
        setup.events.async_event(AsyncEvent::CqErr(CqHandle(1)));
        assert_eq!(read(setup.completions), Some(Record::Completion { user_handle: 101 }));
        assert_eq!(setup.events.remove_cq(CqHandle(1)), (1, 0));
        assert_eq!(read(setup.async_events), None);
        // The other CQ's events are still there, and nothing else.
        assert_eq!(read(setup.completions), Some(Record::Completion { user_handle: 102 }));
        assert_eq!(read(setup.completions), Some(Record::Completion { user_handle: 102 }));
        assert_eq!(read(setup.completions), None);
        assert_eq!(setup.events.remove_cq(CqHandle(2)), (2, 0));
    }

    #[test]
    fn qp_events_carry_their_qp() {
        let setup = two_cqs();
        let (channel, fd) = Channel::new().unwrap();
        setup.events.add_qp(QpHandle(7), 77, channel);
        setup.events.async_event(AsyncEvent::CommEst(QpHandle(7)));
        setup.events.async_event(AsyncEvent::QpFatal(QpHandle(8)));
        assert_eq!(read(fd), Some(Record::Async { user_handle: 77, event: 4 }));
        assert_eq!(read(fd), None);
        assert_eq!(setup.events.remove_qp(QpHandle(7)), 1);
        raw::close(fd);
    }

    #[test]
    fn more_events_than_the_socket_holds_all_arrive() {
        const MANY: usize = 2000;
        let setup = two_cqs();
        for _ in 0..MANY {
            setup.events.completion(CqHandle(1));
        }
        let mut got = 0;
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while got < MANY && std::time::Instant::now() < deadline {
            match read(setup.completions) {
                Some(_) => got += 1,
                None => std::thread::yield_now(),
            }
        }
        assert_eq!(got, MANY);
        assert_eq!(setup.events.remove_cq(CqHandle(1)), (MANY as u32, 0));
    }

    #[test]
    fn a_cq_without_a_channel_is_silent() {
        let setup = two_cqs();
        let (async_events, fd) = Channel::new().unwrap();
        setup.events.add_cq(CqHandle(3), 103, None, async_events);
        setup.events.completion(CqHandle(3));
        assert_eq!(setup.events.remove_cq(CqHandle(3)), (0, 0));
        raw::close(fd);
    }
}
