//! The server: a socket for each guest, a thread for each socket, one fabric for all.
//!
//! `pvrdma serve` calls [`serve`]. The crate `vfio_user` speaks the protocol; its server takes one connection and
//! returns when that ends, so each thread serves one guest after the other, each with a fresh function.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pvrdma_device::device::Config;
use pvrdma_device::transport::fabric::Fabric;
use pvrdma_ffi::dev_api::PVRDMA_MAX_INTERRUPTS;
use vfio_bindings::bindings::vfio::*;
use vfio_user::{IrqInfo, Server, ServerRegion};

use crate::complaints::Complaints;
use crate::function::Function;
use crate::pci;
use crate::session;

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody serves it already.
    #[error("{0}: another process serves this socket")]
    InUse(PathBuf),
    /// Something that is not a socket has that name.
    #[error("{0}: exists and is not a socket")]
    NotSocket(PathBuf),
    /// The socket cannot be made.
    #[error("{0}: {1}")]
    Bind(PathBuf, #[source] io::Error),
    /// Signals or threads.
    #[error("{0}")]
    System(#[from] io::Error),
}

/// A socket that waits for QEMU; its file goes when this does.
#[derive(Debug)]
pub struct Listener {
    path: PathBuf,
    socket: UnixListener,
}

impl Listener {
    /// Makes the socket file. A file left by a server that is gone is replaced.
    pub fn bind(path: &Path) -> Result<Listener, Error> {
        let failed = |error| Error::Bind(path.to_owned(), error);
        match std::fs::symlink_metadata(path) {
            Ok(metadata) if !metadata.file_type().is_socket() => return Err(Error::NotSocket(path.to_owned())),
            Ok(_) => match UnixStream::connect(path) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    std::fs::remove_file(path).map_err(failed)?;
                }
                Err(error) => return Err(failed(error)),
                Ok(_) => return Err(Error::InUse(path.to_owned())),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        let socket = UnixListener::bind(path).map_err(failed)?;
        Ok(Listener { path: path.to_owned(), socket })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Somebody else may have removed it, which is what is wanted.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Serves every socket until SIGTERM or SIGINT. Guests of one call reach each other.
///
/// Call it from the main thread before any other thread exists: it blocks both signals for all of them. On return
/// the socket files are gone; the threads end with the process.
pub fn serve(paths: &[PathBuf]) -> Result<(), Error> {
    let signals = Signals::block()?;
    let _listeners = start(paths)?;
    signals.wait()?;
    Ok(())
}

/// Starts a thread for each socket and returns. A socket's file is there as long as its listener is kept; its thread
/// serves until the process ends.
pub fn start(paths: &[PathBuf]) -> Result<Vec<Listener>, Error> {
    let listeners = paths.iter().map(|path| Listener::bind(path)).collect::<Result<Vec<_>, _>>()?;
    let fabric = Fabric::new();
    for (index, listener) in listeners.iter().enumerate() {
        let socket = listener.socket.try_clone()?;
        let name = format!("pvrdma serve: {}", listener.path.display());
        let config = session::config(guid_of(&listener.path), index as u32);
        let fabric = fabric.clone();
        std::thread::Builder::new()
            .name(format!("pvrdma-guest{index}"))
            .spawn(move || serve_socket(socket, &fabric, config, &name))?;
    }
    Ok(listeners)
}

/// Serves one guest after the other on a socket, for ever.
fn serve_socket(socket: UnixListener, fabric: &Arc<Fabric>, config: Config, name: &str) {
    loop {
        let listener = match socket.try_clone() {
            Ok(listener) => listener,
            Err(error) => {
                eprintln!("{name}: cannot wait for a guest: {error}");
                return;
            }
        };
        // One guest's trouble, a panic included, is not the others': its device goes and the next may come.
        let served = std::panic::catch_unwind(AssertUnwindSafe(|| serve_one(listener.into(), fabric, config, name)));
        match served {
            Ok(Ok(())) => {}
            Ok(Err(error)) => eprintln!("{name}: connection ended: {error}"),
            Err(_) => eprintln!("{name}: a defect ended this guest's device; please report the message above"),
        }
    }
}

/// Waits for a guest and serves it until it goes away.
fn serve_one(listener: OwnedFd, fabric: &Arc<Fabric>, config: Config, name: &str) -> Result<(), vfio_user::Error> {
    let mut function = Function::new(fabric.clone(), config, Complaints::new(name.to_owned()));
    Server::from_owned_fd(listener, true, irqs(), regions()).run(&mut function)
}

/// The interrupts QEMU is told about: MSI-X only.
fn irqs() -> Vec<IrqInfo> {
    (0..VFIO_PCI_NUM_IRQS)
        .map(|index| {
            let msix = index == VFIO_PCI_MSIX_IRQ_INDEX;
            IrqInfo {
                index,
                flags: if msix { VFIO_IRQ_INFO_EVENTFD | VFIO_IRQ_INFO_NORESIZE } else { 0 },
                count: if msix { PVRDMA_MAX_INTERRUPTS } else { 0 },
            }
        })
        .collect()
}

/// The regions QEMU is told about. None can be mapped: a doorbell is an edge, and memory would lose it.
fn regions() -> Vec<ServerRegion> {
    (0..VFIO_PCI_NUM_REGIONS)
        .map(|index| {
            let size = match index {
                VFIO_PCI_CONFIG_REGION_INDEX => pci::CONFIG_LEN as u64,
                _ => pci::BAR_LEN.get(index as usize).copied().unwrap_or(0),
            };
            let flags = if size > 0 { VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE } else { 0 };
            ServerRegion {
                region_info: vfio_region_info {
                    argsz: size_of::<vfio_region_info>() as u32,
                    flags,
                    index,
                    cap_offset: 0,
                    size,
                    offset: 0,
                },
                sparse_areas: Vec::new(),
                mmap_fd: None,
            }
        })
        .collect()
}

/// A GUID that stays the same for a socket and differs between sockets: the path, hashed (FNV-1a).
fn guid_of(path: &Path) -> [u8; 8] {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let hash =
        path.as_os_str().as_encoded_bytes().iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
    let mut guid = hash.to_be_bytes();
    // An EUI-64 of the locally administered kind.
    guid[0] = 0x02;
    guid
}

/// SIGTERM and SIGINT, blocked so that they can be waited for.
struct Signals {
    set: libc::sigset_t,
}

impl Signals {
    fn block() -> io::Result<Signals> {
        // SAFETY: a sigset_t is plain data; zero is a value that sigemptyset then replaces.
        let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: `set` is valid for the three calls and the old mask is not asked for.
        let rc = unsafe {
            libc::sigemptyset(&mut set);
            libc::sigaddset(&mut set, libc::SIGTERM);
            libc::sigaddset(&mut set, libc::SIGINT);
            libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut())
        };
        if rc == 0 { Ok(Signals { set }) } else { Err(io::Error::from_raw_os_error(rc)) }
    }

    fn wait(&self) -> io::Result<()> {
        let mut signal = 0;
        // SAFETY: both pointers are to live values of the right type.
        match unsafe { libc::sigwait(&self.set, &mut signal) } {
            0 => Ok(()),
            rc => Err(io::Error::from_raw_os_error(rc)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("pvrdma-server-test-{}-{name}", std::process::id()))
    }

    #[test]
    fn socket_file_goes_with_its_listener() {
        let path = place("goes");
        let listener = Listener::bind(&path).unwrap();
        assert!(path.exists());
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn live_socket_is_not_taken_over() {
        let path = place("live");
        let _listener = Listener::bind(&path).unwrap();
        assert!(matches!(Listener::bind(&path), Err(Error::InUse(_))));
        assert!(path.exists());
    }

    #[test]
    fn socket_of_a_dead_server_is_replaced() {
        let path = place("dead");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "std leaves the file");
        let _listener = Listener::bind(&path).unwrap();
    }

    #[test]
    fn other_files_are_left_alone() {
        let path = place("file");
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(Listener::bind(&path), Err(Error::NotSocket(_))));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn sockets_have_guids_of_their_own() {
        assert_eq!(guid_of(Path::new("/run/a")), guid_of(Path::new("/run/a")));
        assert_ne!(guid_of(Path::new("/run/a")), guid_of(Path::new("/run/b")));
    }
}
