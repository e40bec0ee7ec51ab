//! Frames as records, some at a time, until they can no longer be written.

use crate::file::{RECORD, Sink, record};
use pvrdma_roce::frame::Frame;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Records are appended so many bytes at a time, or a little more.
const BATCH: usize = 64 * 1024;

/// What a capture is to be like.
pub struct Settings {
    /// Where it goes.
    pub sink: Box<dyn Sink>,
    /// Frames are those of RoCE v1.
    pub v1: bool,
}

/// Time since 1970.
pub fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// See the module text.
pub struct Writer {
    settings: Settings,
    /// Records that are not appended yet.
    records: Vec<u8>,
    ended: bool,
}

impl Writer {
    /// One that has written nothing.
    pub fn new(settings: Settings) -> Writer {
        Writer { settings, records: Vec::new(), ended: false }
    }

    /// Adds a frame that was seen at `at`. `false`: the capture has ended.
    pub fn add(&mut self, at: Duration, frame: &Frame<'_>) -> bool {
        if self.ended {
            return false;
        }
        let start = self.records.len();
        self.records.resize(start + RECORD, 0);
        frame.write(&mut self.records);
        let len = self.records.len() - start - RECORD;
        self.records[start..start + RECORD].copy_from_slice(&record(at, len));
        if self.records.len() >= BATCH {
            self.append();
        }
        !self.ended
    }

    /// Appends what was added.
    pub fn append(&mut self) {
        if !self.records.is_empty() && !self.ended {
            self.ended = !self.settings.sink.append(&self.records);
        }
        self.records.clear();
    }
}
