//! What devices leave for the thread that owns the links.
//!
//! Nobody who holds the lock calls anything; `uplink.rs` says why. What a device may leave is bounded, so that a guest
//! which asks faster than the links carry fills its own part and no more.

use crate::links::Report;
use pvrdma_device::handle::{Gid, QpHandle};
use pvrdma_device::memory::{Memory, Span};
use pvrdma_device::transport::fabric::{Origin, Uplink};
use pvrdma_device::transport::{Answer, DATAGRAM_MAX, Op, Path, Request, Station, Submitted, Token};
use std::collections::{HashMap, HashSet};
use std::mem;
use std::sync::{Mutex, MutexGuard, PoisonError, Weak, mpsc};
use std::time::{Duration, Instant};

/// Requests of one device without an answer: 32 of each of 512 QPs. A link takes 65,536 in all.
const REQUESTS: usize = 16_384;
/// Datagrams of one device that were not handed to a link.
const DATAGRAMS: usize = 64;

/// What has waited for the thread for so long is lost: the thread stands still, or gets no processor.
const PATIENCE: Duration = Duration::from_secs(1);

/// One of them.
pub enum Note {
    /// A request of a connected QP, with a number that is never given twice.
    Asked { id: u64, origin: Origin, request: Request },
    /// Nobody waits for the answer to it any more.
    TakenBack { id: u64, port: u64, qp: QpHandle },
    /// A datagram.
    Datagram { port: u64, request: Request, payload: Vec<u8> },
    /// A device has an address, or has it no longer.
    Bound(Gid, bool),
    /// Somebody wants to know how the links fare.
    Tell(mpsc::Sender<Report>),
}

/// What the thread has of one device.
#[derive(Default)]
struct Held {
    requests: usize,
    datagrams: usize,
    /// It was told that there is no room.
    waits: Option<Weak<dyn Station>>,
}

impl Held {
    fn is_nothing(&self) -> bool {
        self.requests == 0 && self.datagrams == 0 && self.waits.is_none()
    }
}

#[derive(Default)]
struct Inner {
    notes: Vec<Note>,
    /// Since when the first of them waits.
    since: Option<Instant>,
    /// The number of each request that somebody waits for.
    asked: HashMap<(u64, Token), u64>,
    next: u64,
    /// The host of each address that there is a link to.
    routes: HashMap<Gid, u16>,
    /// Hosts whose link adapters carry.
    by_adapter: HashSet<u16>,
    /// By port; those of which there is nothing have none.
    held: HashMap<u64, Held>,
    /// The thread is to be woken.
    asleep: bool,
    stopped: bool,
    /// There is no thread any more.
    closed: bool,
}

/// See the module text.
pub struct Queue {
    inner: Mutex<Inner>,
    wake: Box<dyn Fn() + Send + Sync>,
}

impl Queue {
    /// `wake` wakes the thread.
    pub fn new(wake: impl Fn() + Send + Sync + 'static) -> Queue {
        Queue { inner: Mutex::default(), wake: Box::new(wake) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leave(&self, mut inner: MutexGuard<'_, Inner>, note: Note) {
        inner.notes.push(note);
        inner.since.get_or_insert_with(Instant::now);
        self.wake(inner);
    }

    fn wake(&self, mut inner: MutexGuard<'_, Inner>) {
        let asleep = mem::take(&mut inner.asleep);
        drop(inner);
        if asleep {
            (self.wake)();
        }
    }

    /// The thread is to end.
    pub fn stop(&self) {
        let mut inner = self.lock();
        inner.stopped = true;
        self.wake(inner);
    }

    // ---- for the thread ------------------------------------------------------------------------------------------

    /// All that was left.
    pub fn take(&self) -> Vec<Note> {
        let mut inner = self.lock();
        inner.since = None;
        mem::take(&mut inner.notes)
    }

    /// The thread sleeps from now on, if there is nothing for it.
    pub fn fall_asleep(&self) -> bool {
        let mut inner = self.lock();
        inner.asleep = inner.notes.is_empty() && !inner.stopped;
        inner.asleep
    }

    pub fn is_stopped(&self) -> bool {
        self.lock().stopped
    }

    /// Whether there is no note, and nothing of any device.
    pub fn is_empty(&self) -> bool {
        let inner = self.lock();
        inner.notes.is_empty() && inner.asked.is_empty() && inner.held.is_empty()
    }

    /// Addresses lead to other hosts than before.
    pub fn set_routes(&self, routes: HashMap<Gid, u16>) {
        // Doorbells take this lock: the former ones are dropped without it.
        drop(mem::replace(&mut self.lock().routes, routes));
    }

    /// Adapters carry the link to a host, or do so no longer.
    pub fn set_by_adapter(&self, host: u16, is: bool) {
        let mut inner = self.lock();
        match is {
            true => inner.by_adapter.insert(host),
            false => inner.by_adapter.remove(&host),
        };
    }

    /// Somebody asks how the links fare.
    pub fn ask(&self, to: mpsc::Sender<Report>) {
        let inner = self.lock();
        if !inner.closed {
            self.leave(inner, Note::Tell(to));
        }
    }

    /// Nothing is taken any more.
    pub fn close(&self) {
        let mut inner = self.lock();
        inner.closed = true;
        inner.notes.clear();
        inner.asked.clear();
        inner.routes.clear();
    }

    /// A request has its answer, or was taken back.
    pub fn request_left(&self, port: u64, token: Token, id: u64) {
        let mut inner = self.lock();
        if inner.asked.get(&(port, token)) == Some(&id) {
            inner.asked.remove(&(port, token));
        }
        inner.left(port, |held| held.requests -= 1);
    }

    /// A datagram is a link's affair now, or lost.
    pub fn datagram_left(&self, port: u64) {
        self.lock().left(port, |held| held.datagrams -= 1);
    }

    /// Tells devices that there is room where there was none; or that nothing is taken any more.
    pub fn tell_of_room(&self) {
        let found: Vec<_> = {
            let mut inner = self.lock();
            let closed = inner.closed;
            let roomy = |held: &&mut Held| closed || held.requests < REQUESTS && held.datagrams < DATAGRAMS;
            let found = inner.held.values_mut().filter(roomy).filter_map(|held| held.waits.take()).collect();
            inner.held.retain(|_, held| !held.is_nothing());
            found
        };
        found.iter().filter_map(Weak::upgrade).for_each(|device| device.room());
    }
}

impl Inner {
    fn left(&mut self, port: u64, less: impl FnOnce(&mut Held)) {
        let Some(held) = self.held.get_mut(&port) else { return };
        less(held);
        if held.is_nothing() {
            self.held.remove(&port);
        }
    }
}

impl Uplink for Queue {
    fn submit(&self, from: &Origin, request: &Request, memory: &dyn Memory, local: &[Span]) -> Submitted {
        let datagram = matches!(request.op, Op::Datagram { .. });
        let mut payload = Vec::new();
        if datagram {
            payload.resize(request.len.min(DATAGRAM_MAX) as usize, 0);
            if memory.gather(local, &mut payload).is_err() {
                return Submitted::Answered(Answer::RequesterFault);
            }
        }
        let mut inner = self.lock();
        if inner.closed {
            return Submitted::Answered(Answer::Silence);
        }
        let held = inner.held.entry(from.port).or_default();
        let (count, most) = match datagram {
            true => (&mut held.datagrams, DATAGRAMS),
            false => (&mut held.requests, REQUESTS),
        };
        if *count >= most {
            held.waits = Some(from.device.clone());
            return Submitted::Full;
        }
        *count += 1;
        if datagram {
            self.leave(inner, Note::Datagram { port: from.port, request: *request, payload });
            // Sent is done, whoever listens.
            return Submitted::Answered(Answer::Ack);
        }
        let id = inner.next;
        inner.next += 1;
        inner.asked.insert((from.port, request.token), id);
        self.leave(inner, Note::Asked { id, origin: from.clone(), request: *request });
        Submitted::Pending
    }

    fn cancel(&self, port: u64, token: Token) {
        let mut inner = self.lock();
        if let Some(id) = inner.asked.remove(&(port, token)) {
            self.leave(inner, Note::TakenBack { id, port, qp: token.qp });
        }
    }

    fn lost(&self, port: u64, token: Token) -> bool {
        let inner = self.lock();
        // The thread is no responder, who may be as slow as he likes: it is the way to one.
        let stands_still = inner.since.is_some_and(|since| since.elapsed() >= PATIENCE);
        stands_still || !inner.asked.contains_key(&(port, token))
    }

    fn bound(&self, gid: Gid, bound: bool) {
        let inner = self.lock();
        if !inner.closed {
            self.leave(inner, Note::Bound(gid, bound));
        }
    }

    fn path(&self, gid: &Gid) -> Path {
        let inner = self.lock();
        match inner.routes.get(gid).copied() {
            None => Path::None,
            Some(host) if inner.by_adapter.contains(&host) => Path::Hca { host },
            Some(host) => Path::Tcp { host },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pvrdma_device::handle::{Psn, QpHandle};
    use pvrdma_device::rings::wqe::{Ext, Grh};
    use pvrdma_device::testing::Ram;
    use pvrdma_device::transport::segment::Segment;
    use pvrdma_device::transport::{Endpoint, Far, Requester, Responder};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Counts how often it was told of room.
    #[derive(Default)]
    struct Waits(AtomicUsize);

    impl Responder for Waits {
        fn receive(&self, _request: &Request, _far: &dyn Far) -> Answer {
            Answer::Silence
        }
        fn receive_segment(&self, _segment: &Segment, _far: &dyn Far) -> Answer {
            Answer::Silence
        }
    }

    impl Requester for Waits {
        fn payload(&self, _token: Token, _offset: u64, _into: &mut [u8]) -> bool {
            false
        }
        fn arrived(&self, _token: Token, _offset: u64, _bytes: &[u8]) -> bool {
            false
        }
        fn answered(&self, _token: Token, _answer: Answer) {}
        fn room(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn queue() -> Queue {
        Queue::new(|| ())
    }

    fn request(number: usize, op: Op) -> Request {
        let token = Token { qp: QpHandle(2), epoch: number as u32, psn: Psn::default() };
        let (source, dest) = (Endpoint::default(), Endpoint::default());
        Request { token, source, dest, psn: Psn::default(), packets: 1, op, len: 0, solicited: false, alone: false }
    }

    fn origin(device: &Arc<Waits>, port: u64) -> Origin {
        let device: Weak<Waits> = Arc::downgrade(device);
        Origin { port, device }
    }

    #[test]
    fn a_device_fills_its_own_part_and_hears_when_there_is_room() {
        let queue = queue();
        let (greedy, modest) = (Arc::new(Waits::default()), Arc::new(Waits::default()));
        let datagram = Op::Datagram { qkey: 0, imm: None, grh: Grh::default() };
        for (op, most, first) in [(Op::Send { ext: Ext::None }, REQUESTS, 0), (datagram, DATAGRAMS, 1 << 20)] {
            let submit = |device, port, number| {
                queue.submit(&origin(device, port), &request(first + number, op), &Ram::new(0), &[])
            };
            let told = greedy.0.load(Ordering::Relaxed);
            for number in 0..most {
                assert_ne!(submit(&greedy, 1, number), Submitted::Full, "{number}");
            }
            assert_eq!(submit(&greedy, 1, most), Submitted::Full);
            assert_ne!(submit(&modest, 2, 0), Submitted::Full);
            queue.tell_of_room();
            assert_eq!(greedy.0.load(Ordering::Relaxed), told);
            for note in queue.take() {
                match note {
                    Note::Asked { id, origin, request } => queue.request_left(origin.port, request.token, id),
                    Note::Datagram { port, .. } => queue.datagram_left(port),
                    Note::TakenBack { .. } | Note::Bound(..) | Note::Tell(_) => {}
                }
            }
            queue.tell_of_room();
            queue.tell_of_room();
            assert_eq!(greedy.0.load(Ordering::Relaxed), told + 1);
            assert!(queue.lock().held.is_empty() && queue.lock().asked.is_empty());
        }
        assert_eq!(modest.0.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_is_taken_back_keeps_its_place_until_the_thread_knows() {
        let queue = queue();
        let device = Arc::new(Waits::default());
        let asked = request(0, Op::Send { ext: Ext::None });
        assert_eq!(queue.submit(&origin(&device, 1), &asked, &Ram::new(0), &[]), Submitted::Pending);
        assert!(!queue.lost(1, asked.token) && queue.lost(2, asked.token));
        queue.cancel(2, asked.token);
        queue.cancel(1, asked.token);
        queue.cancel(1, asked.token);
        assert!(queue.lost(1, asked.token));
        let notes = queue.take();
        let [Note::Asked { id, .. }, Note::TakenBack { id: back, .. }] = &notes[..] else {
            panic!("{} notes", notes.len())
        };
        assert_eq!((id, queue.lock().held[&1].requests), (back, 1));
        queue.request_left(1, asked.token, *id);
        assert!(queue.lock().held.is_empty());
    }

    #[test]
    fn what_waits_for_a_thread_that_stands_still_is_lost() {
        let queue = queue();
        let device = Arc::new(Waits::default());
        let asked = request(0, Op::Send { ext: Ext::None });
        let submit = || queue.submit(&origin(&device, 1), &asked, &Ram::new(0), &[]);
        submit();
        assert!(!queue.lost(1, asked.token));
        std::thread::sleep(PATIENCE);
        assert!(queue.lost(1, asked.token));
        // With what it has taken it may take its time.
        queue.take();
        assert!(!queue.lost(1, asked.token));
        submit();
        assert!(!queue.lost(1, asked.token), "what waits now does so since now");
    }

    #[test]
    fn nobody_waits_for_a_thread_that_has_ended() {
        let queue = queue();
        let device = Arc::new(Waits::default());
        let asked = request(0, Op::Send { ext: Ext::None });
        queue.submit(&origin(&device, 1), &asked, &Ram::new(0), &[]);
        queue.close();
        assert!(queue.lost(1, asked.token));
        let submitted = queue.submit(&origin(&device, 1), &asked, &Ram::new(0), &[]);
        assert_eq!(submitted, Submitted::Answered(Answer::Silence));
        queue.bound([1; 16], true);
        assert!(queue.take().is_empty());
    }
}
