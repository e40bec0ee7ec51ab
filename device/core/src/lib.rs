//! The PVRDMA device: objects, rings and engine. It knows no ioctl, no PCI and no socket of any front.
//!
//! The seam is five names. [`Command`](command::Command) and [`Doorbell`](doorbell::Doorbell) go into
//! [`Device`](device::Device); [`Memory`](memory::Memory) and [`Interrupts`](interrupt::Interrupts) are what a front
//! supplies. [`Transport`](transport::Transport) is the same idea on the far side.

#![deny(unsafe_code)]

pub mod budget;
pub mod command;
pub mod cq;
pub mod cqe;
pub mod device;
pub mod doorbell;
pub mod engine;
pub mod grh;
pub mod guest;
pub mod handle;
pub mod interrupt;
pub mod memory;
#[cfg(any(test, feature = "test-utils"))]
pub mod mock;
pub mod mr;
pub mod qp;
pub mod ring;
pub mod srq;
pub mod table;
pub mod transport;
pub mod wqe;
