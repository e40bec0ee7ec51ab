//! Advisory locks on files (`flock`), as the run directory and the guests use them.
//!
//! A lock belongs to an open file description: a child that inherits the descriptor holds it too, and it goes
//! when the last copy is closed, however its holders died. That is why nothing here unlocks explicitly, and why
//! `std::fs::File` alone is not enough: each description here is opened for one purpose.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Opens (or makes) the lock file at `path`, with no lock on it. Closed on exec.
pub fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Takes the lock with others that share it; waits for an exclusive holder.
pub fn shared(file: &File) -> io::Result<()> {
    flock(file, libc::LOCK_SH)
}

/// Takes the lock alone; waits for all others.
pub fn exclusive(file: &File) -> io::Result<()> {
    flock(file, libc::LOCK_EX)
}

/// Takes the lock alone if nobody else holds it. A shared lock that this description held may be lost either way.
pub fn try_exclusive(file: &File) -> io::Result<bool> {
    match flock(file, libc::LOCK_EX | libc::LOCK_NB) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether `path` still names this file. Whoever removes a lock file holds it exclusively, so an answer given
/// while holding the lock stays true.
pub fn still_linked(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::symlink_metadata(path)) {
        (Ok(ours), Ok(there)) => ours.dev() == there.dev() && ours.ino() == there.ino(),
        _ => false,
    }
}

fn flock(file: &File, operation: i32) -> io::Result<()> {
    loop {
        // SAFETY: flock takes no pointers; the descriptor is open, `file` owns it.
        if unsafe { libc::flock(file.as_raw_fd(), operation) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_holders_keep_an_exclusive_one_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let (a, b, c) = (open(&path).unwrap(), open(&path).unwrap(), open(&path).unwrap());
        shared(&a).unwrap();
        shared(&b).unwrap();
        assert!(!try_exclusive(&c).unwrap());
        drop(a);
        assert!(!try_exclusive(&c).unwrap());
        drop(b);
        assert!(try_exclusive(&c).unwrap());
    }

    #[test]
    fn an_inherited_copy_keeps_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let (held, probe) = (open(&path).unwrap(), open(&path).unwrap());
        shared(&held).unwrap();
        let inherited = held.try_clone().unwrap();
        drop(held);
        assert!(!try_exclusive(&probe).unwrap());
        drop(inherited);
        assert!(try_exclusive(&probe).unwrap());
    }

    #[test]
    fn a_replaced_file_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let file = open(&path).unwrap();
        assert!(still_linked(&file, &path));
        std::fs::remove_file(&path).unwrap();
        assert!(!still_linked(&file, &path));
        open(&path).unwrap();
        assert!(!still_linked(&file, &path));
    }
}
