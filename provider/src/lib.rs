//! libibverbs provider for VMware's paravirtual RDMA device (PCI 15ad:0820).
//!
//! libibverbs loads this object because of a `driver` line, `IBV_DRIVERS` or `LD_PRELOAD`. Its one
//! constructor ([`register`]) looks at the libibverbs that is loaded and registers with it; from
//! then on libibverbs and applications call the functions of [`ops`]. Start reading there.
//!
//! The objects and their slow verbs are in [`context`], [`port`], [`pd`], [`domain`], [`mr`], [`ah`], [`cq`],
//! [`qp`] and [`srq`], the hot verbs in [`post_send`], [`post_recv`] and [`poll_cq`], their extended
//! forms in [`qp_ex`] (`ibv_wr_*`) and [`cq_ex`] (`ibv_start_poll`). Below them: [`wqe`] and [`cqe`]
//! know the bytes of a slot, [`ring`] the counters, [`uar`] the doorbells, [`barrier`] what orders
//! them, [`sync`] what threads share; [`inline`] and [`send_log`] are inline data, which the device
//! does not have. [`switches`] is what the environment can turn on, [`log`] tells why something was
//! refused.
//!
//! What callers may rely on (NULL, ownership, panics, output parameters, threads, fork) is the
//! "Contract" section of `provider/README.md`.
#![warn(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

pub mod ah;
pub mod barrier;
pub mod boundary;
pub mod buf;
pub mod context;
pub mod cq;
pub mod cq_ex;
pub mod cqe;
pub mod domain;
pub mod error;
pub mod inline;
pub mod lock;
pub mod log;
#[cfg(all(loom, test))]
mod loom;
#[cfg(any(test, feature = "test-utils"))]
pub mod mock;
pub mod mr;
pub mod ops;
pub mod pd;
pub mod poll_cq;
pub mod port;
pub mod post_recv;
pub mod post_send;
pub mod qp;
pub mod qp_ex;
pub mod register;
pub mod ring;
pub mod send_log;
pub mod srq;
pub mod switches;
pub mod sync;
pub mod uar;
pub mod wqe;
