//! Links between hosts over TCP.
//!
//! | file | |
//! |---|---|
//! | `links.rs` | sockets, who is let in, and what goes over them: `pvrdma_net` with input and output |
//! | `bearer.rs` | one socket, with TLS or without, and the adapter that takes its place |
//! | `adapters.rs` | when the host's RDMA adapter is tried, and why it is not used |
//! | `near.rs` | the guests of this host, as the links see them |
//! | `gateway.rs` | the guests of the stand-in: a process of the host's fabric |
//! | `gateway/inbox.rs` | what they have sent and answered |
//! | `gateway/inbound.rs` | what other hosts have for them |
//! | `gateway/datagrams.rs` | datagrams that they have no room for yet |
//! | `uplink.rs` | the devices of a process: those of a server's virtual machines |
//! | `uplink/devices.rs` | the same without thread and sockets: their notes, and what happens |
//! | `uplink/queue.rs` | what their doorbells leave for the thread that owns the links |
//! | `uplink/from_device.rs`, `uplink/inbound.rs` | a request of theirs, and what other hosts have for them |
//! | `outbound.rs` | requests of those near, until they are answered |
//! | `convert.rs` | the device's words for requests, and the links' |
//! | `socket.rs` | packets of RoCE, of either version |
//! | `udp.rs` | RoCE v2: packets of an address of this host |
//! | `ethernet.rs` | RoCE v1: frames of a network device |
//! | `neighbours.rs` | the kernel's neighbour table |
//! | `log.rs` | lines on standard error |
//! | `tell.rs` | whoever asks how links and devices fare |
//!
//! What is said between hosts, and why, stands in `device/net`. Programs and their devices do not know of any of this:
//! to them a gateway is one more process, and an uplink the end of their fabric.

mod adapters;
pub mod bearer;
pub mod convert;
pub mod ethernet;
pub mod gateway;
pub mod links;
mod log;
pub mod near;
mod neighbours;
mod outbound;
pub mod socket;
pub mod tell;
pub mod udp;
pub mod uplink;

pub use adapters::Carrier;
pub use links::{Report, Settings};
pub use pvrdma_hca::Choice;
pub use uplink::Uplink;
