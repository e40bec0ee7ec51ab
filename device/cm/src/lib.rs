//! The InfiniBand communication manager (IBA vol. 1, chapter 12): how two programs that know each other by a service id
//! get two connected QPs, and part again.
//!
//! | file | |
//! |---|---|
//! | `message.rs` | the messages, as bytes of a management datagram |
//! | `connection.rs` | a connection as its owner sees it |
//! | `manager.rs` | connections and their states: what a call or the clock makes of each |
//! | `manager/arrivals.rs` | what a message makes of each |
//!
//! Nothing here sends, waits or reads a clock: the caller hands in datagrams and the time, and takes out datagrams and
//! events. It knows neither ports nor programs; who listens is asked of the caller.

#![forbid(unsafe_code)]

pub mod connection;
pub mod manager;
pub mod message;
