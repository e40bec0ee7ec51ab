//! The PVRDMA device as a PCI function of a virtual machine: a vfio-user server that QEMU connects to.
//!
//! `pvrdma serve` calls [`serve`]. From the socket inwards: `server` (sockets, threads) -> `function` (routes requests)
//! -> `pci` (configuration space), `regs` (BAR 1) and `session` (one life of the driver: shared region, command slot
//! through `slot`, doorbells through `uar`). `dma` is the core's `Memory`, `irq` with `worker` its `Interrupts`.
//!
//! The guest is not trusted: everything it writes is copied once and then judged. QEMU, at the other end of the
//! socket, is: it holds the guest's memory and could do to the guest whatever it likes.

mod complaints;
mod dma;
mod function;
mod irq;
mod pci;
mod regs;
mod server;
mod session;
mod slot;
mod uar;
mod worker;

pub use server::{Error, Listener, serve, start};
