//! RoCE: what stands on a wire between two RDMA adapters, and what they must say to what.
//!
//! | file | |
//! |---|---|
//! | `packet.rs` | a packet: base header, extension headers by its opcode, payload |
//! | `headers.rs` | what is in front of it: GRH (RoCE v1) or IP and UDP (RoCE v2), and Ethernet |
//! | `icrc.rs` | the checksum over both |
//! | `frame.rs` | all of it, as an Ethernet frame |
//! | `message.rs` | requests of a device as packets, and how its answers are said |
//! | `rc.rs` | reliable connections: requests and answers of a device as packets, and back |
//!
//! Nothing here sends, waits, reads a clock or allocates by what a stranger says: bytes in, values out, and back. The
//! sources are IBA vol. 1 chapter 9 for packets, annex A16 for RoCE v1 and annex A17 for RoCE v2.

#![forbid(unsafe_code)]

pub mod frame;
pub mod headers;
pub mod icrc;
pub mod message;
pub mod packet;
pub mod rc;
#[cfg(any(test, feature = "test-utils"))]
pub mod testing;
