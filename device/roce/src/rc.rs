//! Reliable connections on a wire (IBA vol. 1, 9.7): between the whole requests of a device and the packets of its
//! peer, which are lost, repeated and overtaken.
//!
//! | file | |
//! |---|---|
//! | `rc/requester.rs` | requests of one QP become packets, what comes back becomes their answers |
//! | `rc/responder.rs` | packets for one QP become pieces for its device, its answers become packets |
//! | `rc/window.rs` | how much of one QP may be on its way |
//!
//! One of each for each QP. Nothing here sends, waits, locks or reads a clock: the caller hands in packets and the
//! time, and takes out packets, pieces and answers. He has seen to it that a packet is of this connection: the checksum
//! is good, the partition is right, and the addresses it came from and goes to are those of both ends. Why it is made
//! so: `device/roce/CONNECTIONS.md`.

pub mod requester;
pub mod responder;
mod window;

use crate::packet::MTU_MAX;
use pvrdma_device::transport::Endpoint;

/// What does not change as long as a connection lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The QP here.
    pub local: Endpoint,
    /// Its peer.
    pub peer: Endpoint,
    /// Payload of a full packet: the path MTU of the QP here.
    pub mtu: u32,
}

impl Connection {
    /// With a path MTU that there is.
    fn sound(self) -> Connection {
        Connection { mtu: self.mtu.clamp(256, MTU_MAX as u32), ..self }
    }
}
