//! The PVRDMA device as a PCI function of a virtual machine: a vfio-user server that QEMU connects to.
//!
//! `pvrdma serve` calls [`serve`]. From the socket inwards: `listener` (socket files) -> `server` (threads) ->
//! `channel` (whole messages) -> `connection` (what they ask for, by the layouts of `protocol`) -> `function` (routes
//! accesses) -> `pci` (configuration space), `regs` (BAR 1) and `session` (one life of the driver: shared region,
//! command slot through `slot`, doorbells through `uar`). `dma` with `guard` is the core's `Memory`, `irq` with
//! `eventfd` and `worker` its `Interrupts`. `shown` is for who watches.
//!
//! Nobody is trusted. A guest's driver may write anything anywhere: it is copied once and then judged. A client may
//! send anything, with any files, and take back what it gave: it can end itself, and nobody else.

mod channel;
mod complaints;
mod connection;
mod dma;
mod error;
mod eventfd;
mod function;
mod guard;
mod irq;
mod listener;
mod pci;
mod protocol;
mod regs;
mod server;
mod session;
mod shown;
mod slot;
#[cfg(any(test, feature = "test-utils"))]
pub mod testing;
mod trace;
mod uar;
mod worker;

pub use error::Error;
pub use listener::{Access, Listener};
pub use server::{Server, Settings, serve, start};
pub use shown::{SocketReport, Watch};
pub use trace::TraceFile;
