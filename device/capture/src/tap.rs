//! The tap: between a device and its transport, it sees each request as it leaves and each answer as it comes, and
//! writes both down. It changes neither.
//!
//! A device's requests pass `Tap::submit` on their way to the transport. Answers come with its return, or later by
//! `Requester::answered`: so the transport is given the tap in the place of the device. What a device is asked by
//! others passes unseen, since their own taps write it.
//!
//! Whether a request is on its way is known when `submit` returns: one for which there was no room is none. So its
//! frames are written then, with the time before. The answer may be quicker; then whoever brings it writes both.
//!
//! Faults on purpose (`device/core/src/transport/fault.rs`) are the network's: the tap stands between the device and
//! them, and sees what was sent, whether it arrives or not. Duplicates are made behind it, where `Tap::behind` stands.

use crate::frames::{self, Part, Progress, Source, Style};
use crate::writer::{Settings, Writer, now};
use pvrdma_device::handle::QpHandle;
use pvrdma_device::memory::{Memory, Span};
use pvrdma_device::rings::wqe::{Grh, QpKind};
use pvrdma_device::transport::fault::{Faults, Faulty};
use pvrdma_device::transport::layer::Layer;
use pvrdma_device::transport::segment::Segment;
use pvrdma_device::transport::{
    Answer, Far, Nak, Op, QpView, Request, Requester, Responder, Station, Submitted, Token, Transport,
};
use pvrdma_ffi::dev_api::PVRDMA_QPS_RESET;
use pvrdma_roce::frame::Frame;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

/// A request whose answer is still to come.
struct Flying {
    request: Request,
    /// Its payload, or where its data comes.
    spans: Vec<Span>,
    /// When it was sent.
    at: Duration,
    written: bool,
    /// Made by the network.
    copy: bool,
}

/// What is known of a QP.
#[derive(Clone, Copy, Default)]
struct Known {
    /// Messages that its responder has completed.
    msn: u32,
    /// What its packets say of their way, if it is a connected one.
    grh: Option<Grh>,
}

struct State {
    flying: HashMap<Token, Flying>,
    qps: HashMap<QpHandle, Known>,
    writer: Writer,
}

/// What the tap, and what stands behind it, write in.
struct Book {
    v1: bool,
    memory: Arc<dyn Memory>,
    state: Mutex<State>,
}

impl Book {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The frames of a request. Payload that cannot be read any more ends them: its owner has given it back too early.
    fn sent(&self, state: &mut State, flying: &mut Flying) {
        if std::mem::replace(&mut flying.written, true) {
            return;
        }
        let mut source = Source::new(&*self.memory, &flying.spans);
        let at = flying.at;
        let (request, writer) = (&flying.request, &mut state.writer);
        let style = Style { v1: self.v1, grh: state.qps.get(&request.token.qp).and_then(|known| known.grh) };
        let mut put = |frame: &Frame<'_>| writer.add(at, frame);
        let _ = frames::request(request, Part::all(request), style, &mut source, &mut put);
    }

    /// The frames of an answer, and before them those of its request.
    fn answered(&self, state: &mut State, mut flying: Flying, answer: Answer) {
        self.sent(state, &mut flying);
        let request = &flying.request;
        let qp = request.token.qp;
        let known = state.qps.entry(qp).or_default();
        if answer == Answer::Ack && !flying.copy {
            known.msn = known.msn.wrapping_add(1);
        }
        let Known { msn, grh } = *known;
        let style = Style { v1: self.v1, grh };
        let mut expected = request.psn;
        if answer == Answer::Nak(Nak::SequenceError) {
            // The oldest that nobody has answered is what the responder waits for.
            let of_qp = state.flying.values().filter(|other| other.request.token.qp == qp && !other.copy);
            expected = of_qp
                .map(|other| other.request.psn)
                .fold(expected, |oldest, psn| if oldest.ahead_of(psn) { psn } else { oldest });
        }
        let progress = Progress { msn, expected };
        let mut source = Source::new(&*self.memory, &flying.spans);
        let at = now();
        let mut put = |frame: &Frame<'_>| state.writer.add(at, frame);
        let _ = frames::answer(request, answer, progress, style, &mut source, &mut put);
    }

    /// An answer that came later.
    fn late(&self, token: Token, answer: Answer) {
        let mut state = self.lock();
        if let Some(flying) = state.flying.remove(&token) {
            self.answered(&mut state, flying, answer);
            state.writer.append();
        }
    }

    fn begin(&self, request: &Request, local: &[Span], copy: bool) {
        let flying = Flying { request: *request, spans: local.to_vec(), at: now(), written: false, copy };
        self.lock().flying.insert(request.token, flying);
    }

    /// What became of it.
    fn submitted(&self, request: &Request, submitted: Submitted) {
        let mut state = self.lock();
        // Not there: answered and written by now.
        let Some(mut flying) = state.flying.remove(&request.token) else { return };
        let datagram = matches!(request.op, Op::Datagram { .. });
        match submitted {
            Submitted::Busy | Submitted::Full | Submitted::WhenAlone => {}
            // Nothing could be sent; a READ's data could come and not be written.
            Submitted::Answered(Answer::RequesterFault) if !request.op.reads() => {}
            Submitted::Answered(answer) => self.answered(&mut state, flying, answer),
            Submitted::Pending => {
                self.sent(&mut state, &mut flying);
                if !datagram {
                    state.flying.insert(request.token, flying);
                }
            }
        }
        state.writer.append();
    }

    fn forget(&self, token: Token) {
        self.lock().flying.remove(&token);
    }
}

/// See the module text.
pub struct Tap {
    book: Arc<Book>,
    inner: Arc<dyn Transport>,
    device: OnceLock<Weak<dyn Station>>,
}

/// A capture that a device's transport is to be wrapped in.
pub struct Capture(Arc<Book>);

impl Capture {
    /// A capture of what the device sends whose bytes `memory` has.
    pub fn new(settings: Settings, memory: Arc<dyn Memory>) -> Capture {
        let v1 = settings.v1;
        let state = State { flying: HashMap::new(), qps: HashMap::new(), writer: Writer::new(settings) };
        Capture(Arc::new(Book { v1, memory, state: Mutex::new(state) }))
    }

    /// What stands between faults and the network: it sees what these faults have made twice.
    pub fn behind(&self, inner: Arc<dyn Transport>) -> Arc<dyn Transport> {
        Arc::new(Behind { book: self.0.clone(), inner })
    }

    /// What stands between the device and all else.
    pub fn tap(self, inner: Arc<dyn Transport>) -> Arc<Tap> {
        Arc::new(Tap { book: self.0, inner, device: OnceLock::new() })
    }
}

impl Tap {
    /// Names the device that it stands in front of. Later calls are ignored.
    pub fn attach(&self, device: Arc<dyn Station>) {
        let _ = self.device.set(Arc::downgrade(&device));
    }

    fn device(&self) -> Option<Arc<dyn Station>> {
        self.device.get()?.upgrade()
    }
}

impl Responder for Tap {
    fn receive(&self, request: &Request, far: &dyn Far) -> Answer {
        self.device().map_or(Answer::Silence, |device| device.receive(request, far))
    }

    fn receive_segment(&self, piece: &Segment, far: &dyn Far) -> Answer {
        self.device().map_or(Answer::Silence, |device| device.receive_segment(piece, far))
    }
}

impl Requester for Tap {
    fn payload(&self, token: Token, offset: u64, into: &mut [u8]) -> bool {
        self.device().is_some_and(|device| device.payload(token, offset, into))
    }

    fn arrived(&self, token: Token, offset: u64, bytes: &[u8]) -> bool {
        self.device().is_some_and(|device| device.arrived(token, offset, bytes))
    }

    fn answered(&self, token: Token, answer: Answer) {
        // Before the device hears of it: then what was sent and read is the program's again.
        self.book.late(token, answer);
        if let Some(device) = self.device() {
            device.answered(token, answer);
        }
    }

    fn room(&self) {
        if let Some(device) = self.device() {
            device.room();
        }
    }
}

impl Layer for Tap {
    fn inner(&self) -> &dyn Transport {
        &*self.inner
    }

    fn submit(&self, request: &Request, memory: &dyn Memory, local: &[Span]) -> Submitted {
        self.book.begin(request, local, false);
        let submitted = self.inner.submit(request, memory, local);
        self.book.submitted(request, submitted);
        submitted
    }

    fn cancel(&self, token: Token) {
        // First: from the return on nobody reads that memory.
        self.book.forget(token);
        self.inner.cancel(token);
    }

    fn qp_changed(&self, view: &QpView) {
        let mut state = self.book.lock();
        if view.state == PVRDMA_QPS_RESET {
            state.qps.remove(&view.handle);
        } else {
            state.qps.entry(view.handle).or_default().grh = (view.kind == QpKind::Rc).then_some(view.grh);
        }
        drop(state);
        self.inner.qp_changed(view);
    }
}

/// A device on `network`, with the faults and the capture that somebody asked for between the two; `make` makes it on
/// what it is given. Returns with it what the network is to take for the device.
pub fn plug<D: Station + 'static>(
    network: Arc<dyn Transport>,
    faults: Option<Faults>,
    capture: Option<Capture>,
    make: impl FnOnce(Arc<dyn Transport>) -> Arc<D>,
) -> (Arc<D>, Arc<dyn Station>) {
    let network = match (faults, &capture) {
        (Some(faults), Some(capture)) => Faulty::new(capture.behind(network), faults),
        (Some(faults), None) => Faulty::new(network, faults),
        (None, _) => network,
    };
    let Some(tap) = capture.map(|capture| capture.tap(network.clone())) else {
        let device = make(network);
        return (device.clone(), device);
    };
    let device = make(tap.clone());
    tap.attach(device.clone());
    (device, tap)
}

/// See [`Capture::behind`].
struct Behind {
    book: Arc<Book>,
    inner: Arc<dyn Transport>,
}

impl Layer for Behind {
    fn inner(&self) -> &dyn Transport {
        &*self.inner
    }

    fn submit(&self, request: &Request, memory: &dyn Memory, local: &[Span]) -> Submitted {
        {
            let mut state = self.book.lock();
            if state.flying.contains_key(&request.token) {
                drop(state);
                return self.inner.submit(request, memory, local);
            }
            // What it is a copy of comes first, and is on its way if it is copied.
            let original = state.flying.values().find(|flying| {
                flying.request.token.qp == request.token.qp && flying.request.psn == request.psn && !flying.written
            });
            if let Some(token) = original.map(|flying| flying.request.token)
                && let Some(mut flying) = state.flying.remove(&token)
            {
                self.book.sent(&mut state, &mut flying);
                state.flying.insert(token, flying);
            }
        }
        self.book.begin(request, local, true);
        let submitted = self.inner.submit(request, memory, local);
        self.book.submitted(request, submitted);
        submitted
    }

    fn cancel(&self, token: Token) {
        let mut state = self.book.lock();
        if state.flying.get(&token).is_some_and(|flying| flying.copy) {
            state.flying.remove(&token);
        }
        drop(state);
        self.inner.cancel(token);
    }
}
