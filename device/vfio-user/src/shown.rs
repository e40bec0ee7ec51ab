//! What there is to be seen of a server: the devices of its guests.
//!
//! `session.rs` shows its device; `pvrdma serve` looks, from a thread of its own. Who looks holds up no guest: nothing
//! is locked but what a command locks for a moment.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use pvrdma_device::device::Device;
use pvrdma_device::handle::Gid;
use pvrdma_device::transport::figures::QpReport;

/// The place of a socket's device.
#[derive(Default)]
pub struct Shown(Mutex<Weak<Device>>);

impl Shown {
    /// This is the device now.
    pub fn set(&self, device: &Arc<Device>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(device);
    }

    fn device(&self) -> Option<Arc<Device>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).upgrade()
    }
}

/// The devices of a server.
pub struct Watch(pub(crate) Vec<(PathBuf, Arc<Shown>)>);

/// A socket, and what its guest has.
#[derive(Debug)]
pub struct SocketReport {
    /// The socket.
    pub socket: PathBuf,
    /// Addresses and QPs. `None`: no driver is there.
    pub device: Option<(Vec<Gid>, Vec<QpReport>)>,
}

impl Watch {
    /// Looks at all of them.
    pub fn look(&self) -> Vec<SocketReport> {
        let look = |(socket, shown): &(PathBuf, Arc<Shown>)| SocketReport {
            socket: socket.clone(),
            device: shown.device().map(|device| (device.gids(), device.report())),
        };
        self.0.iter().map(look).collect()
    }
}
