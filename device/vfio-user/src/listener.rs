//! Socket files: made with the rights they are to have, never taken from a server that lives, and removed only while
//! they are ours. Used by `server.rs`.

use std::ffi::CString;
use std::fs::{File, Permissions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::Error;

/// Who may open a socket.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    /// Permission bits of the file; umask(2) does not matter.
    pub mode: u32,
    /// Its group, if it is not to be that of the process.
    pub group: Option<u32>,
}

impl Default for Access {
    fn default() -> Self {
        Access { mode: 0o600, group: None }
    }
}

/// A socket that waits for clients; its file goes when this does.
#[derive(Debug)]
pub struct Listener {
    path: PathBuf,
    /// Device and inode of the file, which tell whether the one at `path` is still this one.
    file: (u64, u64),
    socket: UnixListener,
}

impl Listener {
    /// Makes the socket file. A file left by a server that is gone is replaced.
    pub fn bind(path: &Path, access: Access) -> Result<Listener, Error> {
        let failed = |error| Error::Bind(path.to_owned(), error);
        // Two servers may find the same dead one's file.
        let _alone = alone_in(path.parent().unwrap_or(Path::new("")));
        match std::fs::symlink_metadata(path) {
            Ok(metadata) if !metadata.file_type().is_socket() => return Err(Error::NotSocket(path.to_owned())),
            Ok(_) => match is_served(path) {
                Ok(false) => std::fs::remove_file(path).map_err(failed)?,
                Ok(true) => return Err(Error::InUse(path.to_owned())),
                Err(error) => return Err(failed(error)),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        let socket = bind(path).map_err(failed)?;
        let metadata = std::fs::symlink_metadata(path).map_err(failed)?;
        let listener = Listener { path: path.to_owned(), file: (metadata.dev(), metadata.ino()), socket };
        // Nobody can connect before listen(2), so there is no moment with other rights than these.
        if access.group.is_some() {
            std::os::unix::fs::lchown(path, None, access.group).map_err(failed)?;
        }
        std::fs::set_permissions(path, Permissions::from_mode(access.mode)).map_err(failed)?;
        // SAFETY: no memory is involved.
        match unsafe { libc::listen(listener.socket.as_raw_fd(), BACKLOG) } {
            0 => Ok(listener),
            _ => Err(failed(io::Error::last_os_error())),
        }
    }

    /// Where its file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for a client. An error once `close` was called.
    pub fn accept(&self) -> io::Result<UnixStream> {
        self.socket.accept().map(|(stream, _)| stream)
    }

    /// Wakes who waits for a client, for good, and removes the file.
    pub fn close(&self) {
        // SAFETY: no memory is involved.
        unsafe { libc::shutdown(self.socket.as_raw_fd(), libc::SHUT_RDWR) };
        // Nobody takes the place between the look and the removal.
        let _alone = alone_in(self.path.parent().unwrap_or(Path::new("")));
        let ours = std::fs::symlink_metadata(&self.path).is_ok_and(|now| (now.dev(), now.ino()) == self.file);
        if ours {
            // Somebody else may have removed it just now, which is what is wanted.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.close();
    }
}

/// Keeps other servers from looking at sockets in `folder`, or waiting for them, for as long as the result lives. Who
/// has it holds it for some microseconds; one that is stopped meanwhile is not waited for, nor is it asked for a folder
/// that may not be read.
fn alone_in(folder: &Path) -> Option<File> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let file = File::open(folder).ok()?;
    for _ in 0..100 {
        // SAFETY: no memory is involved.
        if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
            return Some(file);
        }
        match io::Error::last_os_error().kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => std::thread::sleep(Duration::from_millis(5)),
            // A file system without locks.
            _ => return None,
        }
    }
    None
}

/// Clients that may wait to be looked at.
const BACKLOG: libc::c_int = 16;

/// Whether somebody listens at `path`. Asked without waiting: a server that is stopped accepts nobody.
fn is_served(path: &Path) -> io::Result<bool> {
    let (socket, address) = (socket(libc::SOCK_NONBLOCK)?, address(path)?);
    // SAFETY: `address` is valid and as long as it is said to be.
    let connected = unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), ADDRESS_LEN) };
    match io::Error::last_os_error() {
        _ if connected == 0 => Ok(true),
        // Its queue is full.
        error if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
        error if error.kind() == io::ErrorKind::ConnectionRefused => Ok(false),
        error => Err(error),
    }
}

/// A socket with a name, which does not listen yet.
fn bind(path: &Path) -> io::Result<UnixListener> {
    let (socket, address) = (socket(0)?, address(path)?);
    // SAFETY: `address` is valid and as long as it is said to be.
    match unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), ADDRESS_LEN) } {
        0 => Ok(UnixListener::from(socket)),
        _ => Err(io::Error::last_os_error()),
    }
}

const ADDRESS_LEN: libc::socklen_t = size_of::<libc::sockaddr_un>() as libc::socklen_t;

fn socket(flags: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: no memory is involved; the result is checked below.
    let fd = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC | flags, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` is new and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn address(path: &Path) -> io::Result<libc::sockaddr_un> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: a sockaddr_un is plain data, for which zeroes are a value.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let name = name.as_bytes_with_nul();
    if name.len() > address.sun_path.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "longer than the name of a socket may be (107 bytes)"));
    }
    for (place, byte) in address.sun_path.iter_mut().zip(name) {
        *place = *byte as libc::c_char;
    }
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("pvrdma-test-server-{}-{name}", std::process::id()))
    }

    fn bind(path: &Path) -> Result<Listener, Error> {
        Listener::bind(path, Access::default())
    }

    #[test]
    fn socket_file_goes_with_its_listener() {
        let path = place("goes");
        let listener = bind(&path).unwrap();
        assert!(path.exists());
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn file_that_another_has_put_there_stays() {
        let path = place("replaced");
        let listener = bind(&path).unwrap();
        // Kept, so that the next file cannot have its number.
        let kept = place("replaced-kept");
        std::fs::rename(&path, &kept).unwrap();
        let other = bind(&path).unwrap();
        drop(listener);
        assert!(path.exists(), "the other server's");
        drop(other);
        assert!(!path.exists());
        std::fs::remove_file(kept).unwrap();
    }

    #[test]
    fn live_socket_is_not_taken_over() {
        let path = place("live");
        let _listener = bind(&path).unwrap();
        assert!(matches!(bind(&path), Err(Error::InUse(_))));
        assert!(path.exists());
    }

    #[test]
    fn nobody_waits_for_a_server_that_accepts_nobody() {
        let path = place("stopped");
        let _listener = bind(&path).unwrap();
        let mut waiting = Vec::new();
        // Its queue is full when a connection has to wait.
        loop {
            let (socket, address) = (socket(libc::SOCK_NONBLOCK).unwrap(), address(&path).unwrap());
            // SAFETY: `address` is valid and as long as it is said to be.
            if unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), ADDRESS_LEN) } != 0 {
                break;
            }
            waiting.push(socket);
        }
        assert!(!waiting.is_empty());
        assert!(matches!(bind(&path), Err(Error::InUse(_))));
    }

    #[test]
    fn socket_of_a_dead_server_is_replaced() {
        let path = place("dead");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "std leaves the file");
        let _listener = bind(&path).unwrap();
    }

    /// Of several servers that find it, one has the place in the end, and clients reach it.
    #[test]
    fn socket_of_a_dead_server_has_one_heir() {
        let path = place("heirs");
        for _ in 0..200 {
            drop(UnixListener::bind(&path).unwrap());
            let heirs: Vec<_> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..3).map(|_| scope.spawn(|| bind(&path))).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            let (won, lost): (Vec<_>, Vec<_>) = heirs.into_iter().partition(Result::is_ok);
            assert!(won.len() == 1 && lost.iter().all(|lost| matches!(lost, Err(Error::InUse(_)))), "{won:?} {lost:?}");
            assert!(is_served(&path).unwrap());
        }
    }

    #[test]
    fn other_files_are_left_alone() {
        let path = place("file");
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(bind(&path), Err(Error::NotSocket(_))));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn rights_are_those_asked_for_whatever_the_umask() {
        for mode in [0o600, 0o660, 0o666, 0o700] {
            let path = place(&format!("mode-{mode:o}"));
            let _listener = Listener::bind(&path, Access { mode, group: None }).unwrap();
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, mode);
        }
    }

    #[test]
    fn group_is_the_one_asked_for() {
        // SAFETY: asks for a number.
        let own = unsafe { libc::getgid() };
        let path = place("group");
        let _listener = Listener::bind(&path, Access { mode: 0o660, group: Some(own) }).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().gid(), own);
    }

    #[test]
    fn too_long_a_name_is_said_once() {
        let path = place(&"x".repeat(120));
        let error = anyhow_like(&bind(&path).unwrap_err());
        assert_eq!(error.matches("107 bytes").count(), 1, "{error}");
    }

    /// An error with its causes, as the command prints it.
    fn anyhow_like(error: &dyn std::error::Error) -> String {
        let causes = std::iter::successors(Some(error), |error| error.source());
        causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
    }
}
