//! The file: pcap with nanoseconds, one record for each frame.
//!
//! Several processes append to it at once. So its header is written once, by who makes it (`prepare`), and records are
//! appended whole, some at a time, with one write each: with O_APPEND nothing comes between two halves of a write.
//! Whoever cannot write, because the disk is full, ends its part of the capture, and its device goes on.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Pcap with nanoseconds, in the order of bytes of who wrote it.
const MAGIC: u32 = 0xa1b2_3c4d;
/// What records are: Ethernet frames.
const ETHERNET: u32 = 1;
/// Longest frame that a reader must be ready for.
const LONGEST: u32 = 0x4_0000;
/// Bytes of the header.
const HEADER: usize = 24;
/// Bytes in front of each frame.
pub const RECORD: usize = 16;

/// Where records go.
pub trait Sink: Send + Sync {
    /// Appends whole records, in one piece. `false`: not all of it could be written, so nothing more shall be.
    fn append(&self, records: &[u8]) -> bool;
}

/// Opens the file to append to it, and makes it with its header if it is not there or empty. One that is something
/// else than a capture of ours is refused, and so is one that is no file: who reads a pipe slowly would hold up
/// programs.
pub fn prepare(path: &Path) -> io::Result<File> {
    let open = OpenOptions::new().read(true).append(true).create(true).custom_flags(libc::O_NONBLOCK).open(path);
    let mut file = open?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    // Two that come together do not both find it empty. The lock goes with the descriptor, at the latest.
    lock(&file, libc::LOCK_EX)?;
    let mut found = Vec::new();
    (&mut file).take(HEADER as u64).read_to_end(&mut found)?;
    if found.is_empty() {
        file.write_all(&header())?;
    } else if found != header() {
        let text = "it is there, and no capture that could be gone on with: remove it, or name another file";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
    }
    lock(&file, libc::LOCK_UN)?;
    Ok(file)
}

#[expect(unsafe_code, reason = "std has no lock in the oldest version that this is built with")]
fn lock(file: &File, how: i32) -> io::Result<()> {
    // SAFETY: no pointers; the descriptor is open for as long as `file` is.
    if unsafe { libc::flock(file.as_raw_fd(), how) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn header() -> [u8; HEADER] {
    let mut header = [0; HEADER];
    let (major, minor) = (2u16, 4u16);
    header[..4].copy_from_slice(&MAGIC.to_ne_bytes());
    header[4..6].copy_from_slice(&major.to_ne_bytes());
    header[6..8].copy_from_slice(&minor.to_ne_bytes());
    // Between: offset and accuracy of the clock, which are 0 as everywhere.
    header[16..20].copy_from_slice(&LONGEST.to_ne_bytes());
    header[20..].copy_from_slice(&ETHERNET.to_ne_bytes());
    header
}

/// What is in front of a frame of `len` bytes, seen at `time` since 1970.
pub fn record(time: Duration, len: usize) -> [u8; RECORD] {
    let mut record = [0; RECORD];
    // No frame is that long, and the format's seconds end in 2106.
    let words = [time.as_secs() as u32, time.subsec_nanos(), len as u32, len as u32];
    for (field, word) in record.chunks_exact_mut(4).zip(words) {
        field.copy_from_slice(&word.to_ne_bytes());
    }
    record
}

/// A file that a process appends to with nothing in between: `pvrdma serve`, `pvrdma link run`.
#[derive(Clone, Debug)]
pub struct CaptureFile(Arc<File>);

impl CaptureFile {
    /// Opens it, as [`prepare`] says.
    pub fn open(path: &Path) -> io::Result<CaptureFile> {
        prepare(path).map(|file| CaptureFile(Arc::new(file)))
    }
}

impl Sink for CaptureFile {
    fn append(&self, records: &[u8]) -> bool {
        let written = (&*self.0).write(records);
        let whole = written.as_ref().is_ok_and(|written| *written == records.len());
        if !whole {
            let reason = written.err().map_or_else(|| "the disk is full".to_owned(), |error| error.to_string());
            // Whoever started it may not listen.
            let _ = writeln!(io::stderr(), "pvrdma: the capture ends here: {reason}");
        }
        whole
    }
}

/// A file's frames with their times; for tests. `None` at the end, for what is no capture, or for a
/// record that is not all there.
pub struct Records<'a>(&'a [u8]);

impl<'a> Records<'a> {
    /// The records of a whole file.
    pub fn of(file: &'a [u8]) -> Option<Records<'a>> {
        file.strip_prefix(&header()).map(Records)
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = (Duration, &'a [u8]);

    fn next(&mut self) -> Option<(Duration, &'a [u8])> {
        let (head, rest) = self.0.split_first_chunk::<RECORD>()?;
        let word = |n: usize| u32::from_ne_bytes([head[n], head[n + 1], head[n + 2], head[n + 3]]);
        let (frame, rest) = rest.split_at_checked(word(8) as usize)?;
        self.0 = rest;
        Some((Duration::new(word(0).into(), word(4)), frame))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_gets_one_header_and_strangers_files_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.pcap");
        for _ in 0..2 {
            let file = CaptureFile::open(&path).unwrap();
            assert!(file.append(&[&record(Duration::new(3, 7), 2)[..], b"ab"].concat()));
        }
        let written = std::fs::read(&path).unwrap();
        let records: Vec<_> = Records::of(&written).unwrap().collect();
        assert_eq!(records, [(Duration::new(3, 7), &b"ab"[..]); 2]);

        std::fs::write(&path, "somebody's").unwrap();
        assert_eq!(prepare(&path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).unwrap(), b"somebody's");
        assert!(prepare(Path::new("/dev/null")).is_err());
        assert!(prepare(folder.path()).is_err());
    }
}
