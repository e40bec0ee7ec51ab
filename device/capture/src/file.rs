//! The file: pcap with nanoseconds, one record for each frame.
//!
//! Several processes append to it at once. So its header is written once, by who makes it (`prepare`), and records are
//! appended whole, some at a time, with one write each: with O_APPEND nothing comes between two halves of a write.
//! Whoever cannot write, because the disk is full, ends its part of the capture, and its device goes on. A write that
//! a full disk has cut leaves half a record, and no reader finds what was behind it: so such a file is not gone on
//! with.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
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

/// Why a capture ends before anything was written.
pub const LIMIT: &str = "files of this program may not be longer (ulimit -f)";
/// Why it ends when not all was written.
pub const CUT: &str = "only a part could be written: the disk is full, or files of this program may not be longer";

/// Somebody else's lock, or another program's record, is waited for so often and so long.
const TRIES: u32 = 50;
const TRY: Duration = Duration::from_millis(20);

/// Where records go.
pub trait Sink: Send + Sync {
    /// Appends whole records, in one piece. `false`: not all of it could be written, so nothing more shall be.
    fn append(&self, records: &[u8]) -> bool;
}

/// Opens the file to append to it, and makes it with its header if it is not there or empty. One that is something
/// else than a capture of ours is refused, and so is one that ends in half a record, and one that is no file: who
/// reads a pipe slowly would hold up programs.
pub fn prepare(path: &Path) -> io::Result<File> {
    let open = OpenOptions::new().read(true).append(true).create(true).custom_flags(libc::O_NONBLOCK).open(path);
    let file = open?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    // Where it is there nobody needs to be kept away, and whose lock it has is no matter.
    if beginning(&file)? != header() {
        begin(&file)?;
    }
    check_end(&file)?;
    Ok(file)
}

/// The first bytes of the file, as many as a header has if there are so many.
fn beginning(mut file: &File) -> io::Result<Vec<u8>> {
    let mut found = Vec::new();
    file.rewind()?;
    file.take(HEADER as u64).read_to_end(&mut found)?;
    Ok(found)
}

/// Writes the header to an empty file.
fn begin(mut file: &File) -> io::Result<()> {
    // Two that come together do not both find it empty. The lock goes with the descriptor, at the latest.
    lock(file)?;
    let found = beginning(file)?;
    if found.is_empty() {
        if !fits(0, HEADER) {
            return Err(io::Error::from_raw_os_error(libc::EFBIG));
        }
        file.write_all(&header())?;
    } else if found != header() {
        let text = "it is there, and no capture that could be gone on with: remove it, or name another file";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
    }
    flock(file, libc::LOCK_UN)
}

fn lock(file: &File) -> io::Result<()> {
    for _ in 0..TRIES {
        match flock(file, libc::LOCK_EX | libc::LOCK_NB) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(TRY),
            done => return done,
        }
    }
    let text = "it is empty, and somebody else has locked it (flock): name another file";
    Err(io::Error::new(io::ErrorKind::WouldBlock, text))
}

#[expect(unsafe_code, reason = "std has no lock in the oldest version that this is built with")]
fn flock(file: &File, how: i32) -> io::Result<()> {
    // SAFETY: no pointers; the descriptor is open for as long as `file` is.
    if unsafe { libc::flock(file.as_raw_fd(), how) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether the last record is all there. Looks at the heads of all.
fn check_end(file: &File) -> io::Result<()> {
    let mut at = HEADER as u64;
    let (mut before, mut tries) = (at, 0);
    // What comes meanwhile is others' business.
    let end = file.metadata()?.len();
    loop {
        at = whole_until(file, at)?;
        if at >= end {
            return Ok(());
        }
        // Or another program is in the middle of writing it.
        tries = if before == at { tries + 1 } else { 0 };
        if tries == TRIES {
            let text = "it does not end with a whole record (a full disk may have cut it), so that what is appended \
                        could not be read: name another file";
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        before = at;
        std::thread::sleep(TRY);
    }
}

/// Where whole records end, from one that begins at `at` on.
fn whole_until(mut file: &File, mut at: u64) -> io::Result<u64> {
    let end = file.metadata()?.len();
    file.seek(SeekFrom::Start(at))?;
    let mut heads = BufReader::with_capacity(64 * 1024, file);
    let mut head = [0; RECORD];
    while at + RECORD as u64 <= end {
        heads.read_exact(&mut head)?;
        let len = u32::from_ne_bytes([head[8], head[9], head[10], head[11]]);
        let next = at + RECORD as u64 + u64::from(len);
        if len > LONGEST || next > end {
            break;
        }
        heads.seek_relative(len.into())?;
        at = next;
    }
    Ok(at)
}

/// Whether `more` bytes may be written behind the first `len` of a file. One more than the limit says (RLIMIT_FSIZE,
/// which may change at any time), and a signal ends the process.
#[expect(unsafe_code, reason = "std does not tell the limit")]
pub fn fits(len: u64, more: usize) -> bool {
    let mut limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: `limit` is there for the kernel to fill.
    unsafe { libc::getrlimit(libc::RLIMIT_FSIZE, &mut limit) };
    len.saturating_add(more as u64) <= limit.rlim_cur
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
        let len = self.0.metadata().map_or(0, |metadata| metadata.len());
        let reason = if fits(len, records.len()) {
            match (&*self.0).write(records) {
                Ok(written) if written == records.len() => return true,
                Ok(_) => CUT.to_owned(),
                Err(error) => error.to_string(),
            }
        } else {
            LIMIT.to_owned()
        };
        // Whoever started it may not listen.
        let _ = writeln!(io::stderr(), "pvrdma: the capture ends here: {reason}");
        false
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

    #[test]
    fn a_lock_of_somebody_else_holds_up_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.pcap");
        std::fs::write(&path, "").unwrap();
        let other = File::open(&path).unwrap();
        flock(&other, libc::LOCK_EX).unwrap();
        assert_eq!(prepare(&path).unwrap_err().kind(), io::ErrorKind::WouldBlock, "two could write the header");
        flock(&other, libc::LOCK_UN).unwrap();
        prepare(&path).unwrap();
        flock(&other, libc::LOCK_EX).unwrap();
        prepare(&path).unwrap();
    }

    #[test]
    fn a_file_that_was_cut_is_not_gone_on_with() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.pcap");
        let one = [&record(Duration::ZERO, 5)[..], b"first"].concat();
        // Longer than what is read at once.
        let long = [&record(Duration::ZERO, 200_000)[..], &[0; 200_000]].concat();
        let whole = [&header()[..], &one, &long, &one].concat();
        std::fs::write(&path, &whole).unwrap();
        prepare(&path).unwrap();
        for cut in [1, one.len() + 1] {
            std::fs::write(&path, &whole[..whole.len() - cut]).unwrap();
            assert_eq!(prepare(&path).unwrap_err().kind(), io::ErrorKind::InvalidData, "{cut} bytes less");
        }
        // What says that it is so long is no record.
        std::fs::write(&path, [&whole[..], &record(Duration::ZERO, usize::MAX), &[0; 64]].concat()).unwrap();
        assert_eq!(prepare(&path).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_record_that_is_being_written_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.pcap");
        let whole = [&header()[..], &record(Duration::ZERO, 5), b"first"].concat();
        std::fs::write(&path, &whole[..whole.len() - 2]).unwrap();
        let mut writer = OpenOptions::new().append(true).open(&path).unwrap();
        let reader = std::thread::spawn(move || prepare(&path).map(drop));
        writer.write_all(&whole[whole.len() - 2..]).unwrap();
        reader.join().unwrap().unwrap();
    }
}
