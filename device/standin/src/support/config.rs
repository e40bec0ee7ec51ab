//! Settings from the environment, read once, before the program can change it: `load.rs` asks first.
//!
//! | variable | set by | meaning |
//! |---|---|---|
//! | `PVRDMA_HOST_DIR` | `pvrdma run` | the run directory; without it the library changes nothing |
//! | `SYSFS_PATH` | `pvrdma run` | root of the guest's sysfs tree; libibverbs reads it too |
//! | `PVRDMA_NODE` | `pvrdma run` | path of the device node, `/dev/infiniband/uverbsN` |
//! | `PVRDMA_TRACE` | `pvrdma run --trace` | file that gets a line for every command |
//! | `PVRDMA_PCAP` | `pvrdma run --pcap` | file that gets the frames |
//! | `PVRDMA_TRAP` | `pvrdma run --trap` | `1`: no doorbell comes by a declared site |
//! | `PVRDMA_HOLDS` | `pvrdma run` | descriptors whose locks keep the run directory and the guest in place |
//! | `PVRDMA_HOOKS` | tests | `1`: the program may use the functions of `hooks.rs` |
//! | `PVRDMA_UVERBS` | tests | `ioctl` (default), `invoke` or `write`: how new a kernel to be |
//!
//! `process.rs` reads the rest when the device is opened: `PVRDMA_HOST_NUMBER`, `PVRDMA_GUEST_INDEX`,
//! `PVRDMA_ROCE`, `PVRDMA_WIRE` (address, MTU and interface for RoCE, if the gateway has one) and, set by
//! `pvrdma run --fault` and `--paths`, `PVRDMA_FAULT` and `PVRDMA_PATHS`.

use crate::support::raw;
use std::ffi::CStr;
use std::sync::OnceLock;

/// Which forms of uverbs commands are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// write(2) only, as before Linux 4.16.
    Write,
    /// ioctls that carry write-form commands, no native ones.
    Invoke,
    /// Native ioctls too.
    Ioctl,
}

/// What the environment says.
pub struct Config {
    /// Root of the guest's sysfs tree.
    pub sysfs: Path,
    /// The device node.
    pub node: Path,
    /// Its number: the minor number counts from 192.
    pub number: u32,
    /// Where trace lines go.
    pub trace: Option<Path>,
    /// Where frames go.
    pub capture: Option<Path>,
    /// Shall all doorbells be trapped, those of declared sites too?
    pub trap: bool,
    /// Forms of commands.
    pub level: Level,
    /// What keeps the run directory and the guest from being removed.
    pub holds: [Option<Hold>; 2],
    /// May the program use the functions of `hooks.rs`?
    pub hooks: bool,
}

/// A descriptor that the program inherited without knowing it, with device and inode of its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    pub fd: i32,
    pub file: (u64, u64),
}

/// A path kept in place: no allocation while a program is still starting, and none that it could free.
pub struct Path {
    bytes: [u8; Path::MAX],
    len: usize,
}

impl Path {
    const MAX: usize = 1024;

    fn new(path: &CStr) -> Option<Path> {
        let path = path.to_bytes();
        let mut bytes = [0; Path::MAX];
        // One byte stays 0: the terminator.
        bytes.get_mut(..path.len()).filter(|_| path.len() < Path::MAX)?.copy_from_slice(path);
        Some(Path { bytes, len: path.len() })
    }

    /// Without the terminator.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// For system calls.
    pub fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.bytes).unwrap_or_default()
    }
}

/// The settings; `None` if the program was not started by `pvrdma run`.
pub fn get() -> Option<&'static Config> {
    static CONFIG: OnceLock<Option<Config>> = OnceLock::new();
    // A sanitizer's runtime inside the program calls us before the C library has its environment. Whatever we are
    // asked then passes through, and is no answer for later.
    if CONFIG.get().is_none() && !has_environment() {
        return None;
    }
    CONFIG.get_or_init(read).as_ref()
}

fn read() -> Option<Config> {
    variable(c"PVRDMA_HOST_DIR")?;
    let node = variable(c"PVRDMA_NODE")?;
    Some(Config {
        node: Path::new(node)?,
        number: node.to_str().ok()?.strip_prefix("/dev/infiniband/uverbs")?.parse().ok()?,
        sysfs: variable(c"SYSFS_PATH").and_then(Path::new)?,
        trace: variable(c"PVRDMA_TRACE").filter(|path| !path.is_empty()).and_then(Path::new),
        capture: variable(c"PVRDMA_PCAP").filter(|path| !path.is_empty()).and_then(Path::new),
        trap: variable(c"PVRDMA_TRAP").is_some_and(|value| value.to_bytes() == b"1"),
        level: match variable(c"PVRDMA_UVERBS").map(CStr::to_bytes) {
            Some(b"write") => Level::Write,
            Some(b"invoke") => Level::Invoke,
            _ => Level::Ioctl,
        },
        holds: variable(c"PVRDMA_HOLDS").map_or([None; 2], holds),
        hooks: variable(c"PVRDMA_HOOKS").is_some_and(|value| value.to_bytes() == b"1"),
    })
}

/// `FD,FD`; one that is not open any more is left out.
fn holds(list: &CStr) -> [Option<Hold>; 2] {
    let mut numbers = list.to_str().unwrap_or_default().split(',');
    [(); 2].map(|()| {
        let fd = numbers.next()?.parse().ok()?;
        Some(Hold { fd, file: raw::file_of(fd)? })
    })
}

fn has_environment() -> bool {
    unsafe extern "C" {
        static environ: *const *const libc::c_char;
    }
    // SAFETY: only the C library writes it this early, and it does so before any thread exists.
    unsafe { !environ.is_null() }
}

fn variable(name: &CStr) -> Option<&'static CStr> {
    // SAFETY: `name` is terminated. The value is copied before anyone else runs who could change the environment.
    let value = unsafe { libc::getenv(name.as_ptr()) };
    // SAFETY: getenv returns null or a terminated string of the environment.
    (!value.is_null()).then(|| unsafe { CStr::from_ptr(value) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_are_open_descriptors() {
        assert_eq!(holds(c""), [None; 2]);
        let [first, second] = holds(c"2,1000000");
        assert_eq!((first.map(|hold| hold.fd), second), (Some(2), None));
    }

    #[test]
    fn a_path_keeps_its_terminator() {
        let path = Path::new(c"/a/b").unwrap();
        assert_eq!((path.as_bytes(), path.as_c_str()), (&b"/a/b"[..], c"/a/b"));
        let long = std::ffi::CString::new(vec![b'a'; Path::MAX]).unwrap();
        assert!(Path::new(&long).is_none());
        let longest = std::ffi::CString::new(vec![b'a'; Path::MAX - 1]).unwrap();
        assert_eq!(Path::new(&longest).unwrap().as_c_str(), &*longest);
    }
}
