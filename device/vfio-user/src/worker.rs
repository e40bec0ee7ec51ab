//! The thread that runs what no doorbell runs: retries, timers, work for QPs that another guest woke.
//!
//! `session.rs` starts one for each device. The core asks for it with `Interrupts::wake`, which only leaves a note:
//! it may be called under the core's locks.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pvrdma_device::device::Device;
use pvrdma_device::handle::{CqHandle, Gid, QpHandle};
use pvrdma_device::interrupt::{AsyncEvent, Interrupts};
use pvrdma_device::rings::cqe::Completion;
use pvrdma_device::transport::Path;

use crate::irq::Irq;
use crate::trace::Trace;

/// How soon a full event ring is tried again. The guest empties it in its interrupt handler.
const RING_RETRY: Duration = Duration::from_millis(1);

/// The core's way to its front: interrupts for the guest, wake-ups for the worker.
pub struct Line {
    irq: Arc<Irq>,
    trace: Option<Arc<Trace>>,
    note: Mutex<Note>,
    changed: Condvar,
}

#[derive(Default)]
struct Note {
    wanted: bool,
    ended: bool,
}

impl Line {
    /// A line to the guest's interrupts.
    pub fn new(irq: Arc<Irq>, trace: Option<Arc<Trace>>) -> Arc<Line> {
        Arc::new(Line { irq, trace, note: Mutex::default(), changed: Condvar::new() })
    }

    fn note(&self) -> MutexGuard<'_, Note> {
        self.note.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the worker is wanted or `limit` has passed. False: it is to end.
    fn wait(&self, limit: Option<Duration>) -> bool {
        let asleep = |note: &mut Note| !note.wanted && !note.ended;
        let mut note = match limit {
            Some(limit) => {
                let waited = self.changed.wait_timeout_while(self.note(), limit, asleep);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
            None => self.changed.wait_while(self.note(), asleep).unwrap_or_else(PoisonError::into_inner),
        };
        note.wanted = false;
        !note.ended
    }

    fn end(&self) {
        self.note().ended = true;
        self.changed.notify_one();
    }
}

impl Interrupts for Line {
    fn completed(&self, cq: CqHandle, completion: &Completion) {
        if let Some(trace) = &self.trace {
            trace.completed(cq, completion);
        }
    }

    fn completion(&self, cq: CqHandle) {
        if let Some(trace) = &self.trace {
            trace.fired(cq);
        }
        self.irq.completion(cq);
    }

    fn path(&self, qp: QpHandle, peer: &Gid, path: Path) {
        if let Some(trace) = &self.trace {
            trace.path(qp, peer, path);
        }
    }

    fn wants_paths(&self) -> bool {
        self.trace.is_some()
    }

    fn async_event(&self, event: AsyncEvent) {
        if let Some(trace) = &self.trace {
            trace.event(event);
        }
        self.irq.async_event(event);
    }

    fn wake(&self) {
        let mut note = self.note();
        if !std::mem::replace(&mut note.wanted, true) {
            self.changed.notify_one();
        }
    }
}

/// A running worker; it ends on drop.
pub struct Worker {
    line: Arc<Line>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts the worker of `device`.
    pub fn start(device: Arc<Device>, line: Arc<Line>) -> std::io::Result<Worker> {
        let own = line.clone();
        let thread = std::thread::Builder::new().name("pvrdma-worker".to_owned()).spawn(move || run(&device, &own))?;
        Ok(Worker { line, thread: Some(thread) })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.line.end();
        if let Some(thread) = self.thread.take() {
            // A worker that panicked has ended too, and its message has been printed.
            let _ = thread.join();
        }
    }
}

fn run(device: &Device, line: &Line) {
    loop {
        let deadline = device.poll();
        line.irq.flush_pending();
        let mut limit = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if line.irq.is_pending() {
            limit = Some(limit.map_or(RING_RETRY, |limit| limit.min(RING_RETRY)));
        }
        if !line.wait(limit) {
            return;
        }
    }
}
