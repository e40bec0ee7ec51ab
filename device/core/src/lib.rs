//! The PVRDMA device: objects, rings and engine. It knows no ioctl, no PCI and no socket of any front.
//!
//! The seam is five names. [`Command`](command::Command) and [`Doorbell`](doorbell::Doorbell) go into
//! [`Device`](device::Device); [`Memory`](memory::Memory) and [`Interrupts`](interrupt::Interrupts) are what a front
//! supplies. [`Transport`](transport::Transport) is the same idea on the far side.
//!
//! Each folder imports those below it and none above:
//!
//! | folder | what it does |
//! |---|---|
//! | `device` | the way in: commands make and change objects, doorbells say that there is work |
//! | `engine` | the work: the requester and responder halves of QPs, and who runs when |
//! | `objects` | QPs with their queues, CQs, SRQs, MRs: state and its rules |
//! | `transport` | the way to other devices: requests, answers, and what lies between |
//! | `rings` | what lies in the guest's memory: rings, WQEs, CQEs |
//!
//! The files beside them are the seam's own words and what all speak of: handles, memory, time, the budget.

#![deny(unsafe_code)]

pub mod budget;
pub mod clock;
pub mod command;
pub mod device;
pub mod doorbell;
mod engine;
pub mod guest;
pub mod handle;
pub mod interrupt;
pub mod memory;
mod objects;
pub mod rings;
#[cfg(any(test, feature = "test-utils"))]
pub mod testing;
pub mod trace;
pub mod transport;
