//! Requests between hosts: what two hosts say to each other, and what each makes of it.
//!
//! | file | |
//! |---|---|
//! | `frame.rs` | frames, as bytes |
//! | `limits.rs` | how much a connection holds, how long it waits |
//! | `event.rs` | what a connection tells its caller, and asks of it |
//! | `lanes.rs` | windows by bytes, and whose turn it is |
//! | `connection.rs` | one connection, from its greeting to its end |
//! | `connection/outgoing.rs` | what this end asks of the other one |
//! | `connection/incoming.rs` | what the other end asks of this one |
//! | `gids.rs` | which host has which address |
//! | `hosts.rs` | this host and all others: links, and which request goes where |
//! | `identity.rs` | who a host is: certificates, and what TLS makes of them |
//! | `fabric.rs` | the list of hosts, as a file |
//! | `folder.rs` | a host's settings, as a folder |
//! | `issued.rs` | the numbers that an authority has given, as a file |
//! | `join.rs` | what a host joins a fabric with, as a file |
//!
//! Nothing here sends, waits or reads a clock: the caller hands in bytes and the time, and takes out bytes and events.
//! It knows no device and no guest; what a request does is the caller's. Only `identity` and `folder` read files.

#![forbid(unsafe_code)]

pub mod connection;
pub mod event;
#[cfg(feature = "identity")]
pub mod fabric;
#[cfg(feature = "identity")]
pub mod folder;
pub mod frame;
pub mod gids;
pub mod hosts;
#[cfg(feature = "identity")]
pub mod identity;
#[cfg(feature = "identity")]
pub mod issued;
#[cfg(feature = "identity")]
pub mod join;
mod lanes;
pub mod limits;
#[cfg(any(test, feature = "test-utils"))]
pub mod testing;
