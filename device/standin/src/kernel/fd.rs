//! Which file descriptors are ours, and what stands behind each.
//!
//! `preload.rs` asks for every write, ioctl, close and so on of the program, so the answer "not ours" is one look at a
//! bitmap, without a lock, also in signal handlers. Only for descriptors in the bitmap a lock is taken.
//!
//! Two more are hidden in every process: those that `pvrdma run` handed down to keep the run directory and the guest in
//! place. A program that closes all it does not know (a daemon, Python's subprocess) must not give them away.
//!
//! The table belongs to one process. A child of fork finds an empty one (`fresh.rs`), a child of vfork one with its
//! parent's pid: to both, their parent's descriptors are plain files. And since a descriptor can be closed behind our
//! back (fclose of an fdopen'ed one), an entry counts only while the descriptor still shows the file that it was made
//! for.

use crate::kernel::events::Channel;
use crate::kernel::uverbs;
use crate::support::config::{self, Hold};
use crate::support::fresh::{self, OWN};
use crate::support::raw::{self, file_of};
use std::collections::BTreeMap;
use std::ffi::{c_int, c_void};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The opened device of the connection manager (`ucma`), as its descriptors see it.
pub trait Commands: Send + Sync {
    /// write(2) on the program's descriptor: one command. Returns the length written; the error is an errno.
    fn write(&self, descriptor: c_int, from: *const c_void, len: usize) -> Result<usize, i32>;
    /// Tells opens apart.
    fn number(&self) -> u64;
}

/// What a descriptor of ours stands for.
#[derive(Clone)]
pub enum Object {
    /// The opened device node.
    Device(Arc<uverbs::File>),
    /// A completion channel or async event file, and the opened device that it belongs to.
    Events(Arc<Channel>, u64),
    /// The opened device of the connection manager.
    Ucma(Arc<dyn Commands>),
    /// Used by this library alone: the program cannot close it.
    Hidden,
}

struct Entry {
    object: Object,
    /// Device and inode of the file.
    file: (u64, u64),
}

/// The descriptors of one process.
struct Table {
    pid: i32,
    entries: Mutex<BTreeMap<c_int, Entry>>,
}

fn bit(fd: c_int) -> Option<(&'static AtomicU64, u64)> {
    let fd = usize::try_from(fd).ok()?;
    Some((OWN.fd_map.get(fd / 64)?, 1 << (fd % 64)))
}

fn is_marked(fd: c_int) -> bool {
    bit(fd).is_some_and(|(word, bit)| word.load(Ordering::Relaxed) & bit != 0)
}

fn mark(fd: c_int, ours: bool) {
    if let Some((word, bit)) = bit(fd) {
        match ours {
            true => word.fetch_or(bit, Ordering::Relaxed),
            false => word.fetch_and(!bit, Ordering::Relaxed),
        };
    }
}

/// The table, if this very process has one.
fn table() -> Option<&'static Table> {
    // SAFETY: null or a leaked box.
    let table = unsafe { OWN.fds.load(Ordering::Acquire).cast::<Table>().as_ref() }?;
    // A child of vfork runs in its parent's memory, with descriptors of its own.
    (table.pid == raw::getpid()).then_some(table)
}

/// The same, made if need be; `None` in a child of vfork.
fn table_or_new() -> Option<&'static Table> {
    if OWN.fds.load(Ordering::Acquire).is_null() {
        let new = Box::into_raw(Box::new(Table { pid: raw::getpid(), entries: Mutex::default() }));
        match OWN.fds.compare_exchange(std::ptr::null_mut(), new.cast(), Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => fresh::keep(new),
            Err(_) => {
                // SAFETY: `new` came from Box and lost the race.
                drop(unsafe { Box::from_raw(new) });
            }
        }
    }
    table()
}

impl Table {
    fn entries(&self) -> MutexGuard<'_, BTreeMap<c_int, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Enters `fd`, which is open. What stood there before was closed behind our back.
pub fn insert(fd: c_int, object: Object) {
    let (Some(file), Some(table)) = (file_of(fd), table_or_new()) else { return };
    let stale = table.entries().insert(fd, Entry { object, file });
    mark(fd, true);
    // Outside the lock: it may end a context.
    drop(stale);
}

fn holds() -> impl Iterator<Item = Hold> {
    config::get().into_iter().flat_map(|config| config.holds).flatten()
}

fn is_held(fd: c_int) -> bool {
    holds().any(|hold| hold.fd == fd && file_of(fd) == Some(hold.file))
}

/// What stands behind `fd`; `None` if it is not ours.
pub fn get(fd: c_int) -> Option<Object> {
    if is_held(fd) {
        return Some(Object::Hidden);
    }
    if !is_marked(fd) {
        return None;
    }
    let table = table()?;
    let found = table.entries().get(&fd).map(|entry| (entry.object.clone(), entry.file));
    let (object, file) = found?;
    if file_of(fd) == Some(file) {
        return Some(object);
    }
    forget_stale(table, fd, file);
    None
}

/// Removes the entry that was made for `file`, and no newer one: another thread may have got the number meanwhile.
fn forget_stale(table: &Table, fd: c_int, file: (u64, u64)) {
    let mut entries = table.entries();
    let stale = match entries.get(&fd) {
        Some(entry) if entry.file == file => {
            mark(fd, false);
            entries.remove(&fd)
        }
        _ => None,
    };
    drop(entries);
    // Outside the lock: it may end a context.
    drop(stale);
}

/// Forgets `fd`. The object is returned so that it goes, if this was the last descriptor, outside of any lock.
pub fn remove(fd: c_int) -> Option<Object> {
    if !is_marked(fd) {
        return None;
    }
    let table = table()?;
    mark(fd, false);
    table.entries().remove(&fd).map(|entry| entry.object)
}

/// Whether any descriptor of the program shows this event file.
pub fn shows(channel: &Arc<Channel>) -> bool {
    table().is_some_and(|table| {
        let shown = |entry: &Entry| matches!(&entry.object, Object::Events(other, _) if Arc::ptr_eq(other, channel));
        table.entries().values().any(shown)
    })
}

/// Our descriptors in a range, in order, and whether each is hidden.
pub fn in_range(range: RangeInclusive<c_int>) -> Vec<(c_int, bool)> {
    let mut found = BTreeMap::new();
    found.extend(holds().map(|hold| hold.fd).filter(|fd| range.contains(fd) && is_held(*fd)).map(|fd| (fd, true)));
    if let Some(table) = table() {
        let entries = table.entries();
        found.extend(entries.range(range).map(|(fd, entry)| (*fd, matches!(entry.object, Object::Hidden))));
    }
    found.into_iter().collect()
}

/// Takes a descriptor of the library's own out of the program's reach: to a high number, where programs do not dup2 to,
/// and marked so that close has no effect. Returns the number.
pub fn hide(fd: c_int) -> c_int {
    const HIGH: c_int = 700;
    let fd = match raw::dup_above(fd, HIGH) {
        Some(copy) => {
            raw::close(fd);
            copy
        }
        // The limit on descriptors is below that: it stays where it is.
        None => fd,
    };
    insert(fd, Object::Hidden);
    fd
}

/// Closes a descriptor that `hide` returned.
pub fn close_hidden(fd: c_int) {
    remove(fd);
    raw::close(fd);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any_fd() -> c_int {
        raw::dup_above(2, 0).unwrap()
    }

    #[test]
    fn a_hidden_descriptor_is_known_until_it_is_closed() {
        let fd = hide(any_fd());
        assert!(matches!(get(fd), Some(Object::Hidden)));
        assert!(in_range(0..=c_int::MAX).contains(&(fd, true)));
        close_hidden(fd);
        assert!(get(fd).is_none());
    }

    #[test]
    fn a_number_that_shows_another_file_is_not_ours() {
        let fd = hide(any_fd());
        let mut pipe = [0; 2];
        // SAFETY: room for two numbers.
        assert_eq!(unsafe { libc::pipe(pipe.as_mut_ptr()) }, 0);
        // SAFETY: no pointers; the target is ours to replace.
        assert_eq!(unsafe { raw::syscall!(SYS_dup2, pipe[0], fd) } as c_int, fd);
        assert!(get(fd).is_none());
        assert!(!is_marked(fd));
        for fd in [fd, pipe[0], pipe[1]] {
            raw::close(fd);
        }
    }

    #[test]
    fn a_forked_child_owns_nothing() {
        let fd = hide(any_fd());
        // SAFETY: the child only makes system calls and exits.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let nothing = get(fd).is_none();
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(i32::from(!nothing)) };
        }
        let mut status = -1;
        // SAFETY: `status` has room.
        unsafe { libc::waitpid(child, &mut status, 0) };
        assert_eq!(status, 0);
        close_hidden(fd);
    }
}
