//! For who carries payload by value, and in pieces: a gateway between hosts. It tells of each request when its turn
//! comes to be asked for, of each piece as it passes, and of the answer.

use crate::frames::{self, Part, Progress, Source, Style};
use crate::writer::{Settings, Writer, now};
use pvrdma_device::handle::Gid;
use pvrdma_device::transport::{Answer, Op, Request};
use pvrdma_roce::frame::Frame;
use pvrdma_roce::packet::Packet;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// See the module text.
pub struct Recorder {
    style: Style,
    writer: Mutex<Writer>,
}

impl Recorder {
    /// One that has written nothing.
    pub fn new(settings: Settings) -> Recorder {
        // What QPs were told of their way stays with their devices.
        let style = Style { v1: settings.v1, grh: None };
        Recorder { style, writer: Mutex::new(Writer::new(settings)) }
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn part(&self, request: &Request, part: Part, bytes: &[u8]) {
        let mut writer = self.writer();
        let at = now();
        let mut put = |frame: &Frame<'_>| writer.add(at, frame);
        let _ = frames::request(request, part, self.style, &mut Source::Bytes(bytes), &mut put);
        writer.append();
    }

    /// A packet passes, as it is.
    pub fn packet(&self, source: &Gid, dest: &Gid, packet: &Packet<'_>) {
        let mut writer = self.writer();
        writer.add(now(), &frames::passing(source, dest, packet));
        writer.append();
    }

    /// A request of a connected QP is to be carried.
    pub fn asked(&self, request: &Request) {
        // All others are written as their payload passes.
        if request.op.reads() || request.len == 0 {
            self.part(request, Part::all(request), &[]);
        }
    }

    /// Its payload from `offset` on was fetched.
    pub fn payload(&self, request: &Request, offset: u64, bytes: &[u8]) {
        self.part(request, Part { offset, len: bytes.len() as u64 }, bytes);
    }

    /// A datagram is carried.
    pub fn datagram(&self, request: &Request, payload: &[u8]) {
        self.part(request, Part::all(request), payload);
    }

    /// What was read from `offset` on came back.
    pub fn arrived(&self, request: &Request, offset: u64, bytes: &[u8]) {
        if let Op::Atomic { .. } = request.op {
            return self.answer(request, Answer::Ack, bytes);
        }
        let mut writer = self.writer();
        let at = now();
        let mut put = |frame: &Frame<'_>| writer.add(at, frame);
        let part = Part { offset, len: bytes.len() as u64 };
        let _ = frames::read(request, part, 0, self.style, &mut Source::Bytes(bytes), &mut put);
        writer.append();
    }

    /// It was answered.
    pub fn answered(&self, request: &Request, answer: Answer) {
        // The data that came was the answer.
        if !(answer == Answer::Ack && request.op.reads() && request.len > 0) {
            self.answer(request, answer, &[]);
        }
    }

    fn answer(&self, request: &Request, answer: Answer, bytes: &[u8]) {
        let mut writer = self.writer();
        let at = now();
        let mut put = |frame: &Frame<'_>| writer.add(at, frame);
        // Nobody here has counted what the responder has completed.
        let progress = Progress { msn: 0, expected: request.psn };
        let _ = frames::answer(request, answer, progress, self.style, &mut Source::Bytes(bytes), &mut put);
        writer.append();
    }
}
