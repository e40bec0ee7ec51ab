//! The host's own RDMA adapter, as a bearer of bytes between two hosts.
//!
//! | file | |
//! |---|---|
//! | `verbs.rs` | libibverbs, loaded when somebody asks for an adapter |
//! | `adapter.rs` | a QP of it, and a ring that the other host writes into |
//! | `port.rs` | which device, port and address |
//! | `flow.rs` | how much may be written into a ring, and what has come |
//! | `card.rs` | what the other end must know |
//!
//! Unsafe code is in `verbs.rs` and `adapter.rs` alone. What comes from the other host is judged in `flow.rs`.

pub mod adapter;
pub mod card;
mod flow;
mod port;
pub mod verbs;

pub use adapter::Adapter;
pub use card::{Card, Link};
pub use port::Choice;

/// Why there is no adapter to be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// No libibverbs, or none with what is asked of it.
    #[error("libibverbs cannot be loaded: {0}")]
    Library(String),
    /// None at all, or none of that name.
    #[error("no such device")]
    NoDevice,
    /// There are devices, and no port of theirs is up and has an address.
    #[error("no port is active")]
    Inactive,
    /// A verb says no.
    #[error("{0}")]
    Verb(String),
    /// The other end's adapter is of another kind.
    #[error("the other host's adapter is on another kind of network")]
    Kind,
}
