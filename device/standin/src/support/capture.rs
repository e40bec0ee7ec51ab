//! The file of `pvrdma run --pcap`, as a program appends to it. `pvrdma run` has made it.

use crate::support::{config, raw};
use pvrdma_capture::file::{CUT, LIMIT, Sink, fits};
use pvrdma_fabric::say::say;
use std::ffi::c_int;

/// A descriptor of the file, out of the program's reach.
struct File(c_int);

/// The file, if there is to be one. `hide` keeps the descriptor out of the program's reach. Where it cannot be opened
/// the device is there all the same.
pub fn open(hide: fn(c_int) -> c_int) -> Option<Box<dyn Sink>> {
    let path = config::get()?.capture.as_ref()?;
    let Some(fd) = raw::open_append(path.as_c_str()).map(hide) else {
        say(format_args!("the capture cannot be written: {}", std::io::Error::last_os_error()));
        return None;
    };
    Some(Box::new(File(fd)))
}

impl Sink for File {
    fn append(&self, records: &[u8]) -> bool {
        // A write that meets the limit on its way would leave half a record.
        let len = raw::fstat(self.0).map_or(u64::MAX, |stat| stat.st_size as u64);
        if !fits(len, records.len()) {
            say(format_args!("the capture ends here: {LIMIT}"));
            return false;
        }
        let written = raw::append(self.0, records);
        if written < 0 {
            say(format_args!("the capture ends here: {}", std::io::Error::last_os_error()));
        } else if written != records.len() as i64 {
            say(format_args!("the capture ends here: {CUT}"));
        }
        written == records.len() as i64
    }
}
