//! The file of `pvrdma run --pcap`, as a program appends to it. `pvrdma run` has made it.

use crate::support::{config, raw};
use pvrdma_capture::file::Sink;
use pvrdma_fabric::say::say;
use std::ffi::c_int;

/// A descriptor of the file, out of the program's reach.
struct File {
    fd: c_int,
    /// Bytes that the program may make a file long: one more, and a signal would end it.
    limit: Option<i64>,
}

/// The file, if there is to be one. `hide` keeps the descriptor out of the program's reach. Where it cannot be opened
/// the device is there all the same.
pub fn open(hide: fn(c_int) -> c_int) -> Option<Box<dyn Sink>> {
    let path = config::get()?.capture.as_ref()?;
    let Some(fd) = raw::open_append(path.as_c_str()).map(hide) else {
        say(format_args!("the capture cannot be written: {}", std::io::Error::last_os_error()));
        return None;
    };
    Some(Box::new(File { fd, limit: limit() }))
}

fn limit() -> Option<i64> {
    let mut limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: `limit` is there for the kernel to fill.
    unsafe { libc::getrlimit(libc::RLIMIT_FSIZE, &mut limit) };
    (limit.rlim_cur != libc::RLIM_INFINITY).then(|| i64::try_from(limit.rlim_cur).unwrap_or(i64::MAX))
}

impl Sink for File {
    fn append(&self, records: &[u8]) -> bool {
        let fits = |limit: i64| {
            let size = raw::fstat(self.fd).map_or(i64::MAX, |stat| stat.st_size);
            size.saturating_add(records.len() as i64) <= limit
        };
        if !self.limit.is_none_or(fits) {
            say(format_args!("the capture ends here: files of this program may not be longer"));
            return false;
        }
        let written = raw::write(self.fd, records);
        let whole = written == records.len() as i64;
        if !whole {
            // Less than all: the disk is full by now.
            let code = if written < 0 { raw::errno() } else { libc::ENOSPC };
            say(format_args!("the capture ends here: {}", std::io::Error::from_raw_os_error(code)));
        }
        whole
    }
}
