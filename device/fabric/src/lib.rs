//! The fabric of one host: how processes of its guests reach each other without a daemon.
//!
//! Each process owns one *region* of a shared file: its inbox, the requests it has on their way, and what others
//! may know of its QPs and memory regions. Every word has one writer, or is changed by compare-and-swap from a value
//! that names the incarnation and sequence it belongs to. No lock is shared: a process that gets SIGKILL in any
//! instruction leaves nothing that another would wait for.
//!
//! SEND and WRITE_WITH_IMM go as requests through the inbox of the target, which carries them out on its own rings.
//! WRITE and READ are carried out by the initiator itself when the target's published view allows it (`transport`),
//! because a target that spins on its memory rings no doorbell and may have no core left for a helper thread.
//!
//! | file | |
//! |---|---|
//! | `segment.rs` | the shared file: regions, who owns them and whether they live |
//! | `segment/view.rs` | which way there is to a peer, and for who only watches, all that goes on |
//! | `hazard.rs` | a copy is running; who waits for it, and how long |
//! | `section.rs` | what is done only while a word holds |
//! | `transport.rs` | the core's `Transport`: slots and inboxes, or the initiator's own copy |
//! | `transport/datagram.rs` | datagrams |
//! | `gateway.rs` | requests to and from other hosts |
//! | `taken.rs` | a request that is answered later |
//! | `words.rs` | requests and answers as words of a slot |
//! | `copy.rs` | one copy between two processes |
//! | `bell.rs` | who sleeps and how to wake them |
//! | `guard.rs` | whether the memory of a process is still there |
//! | `say.rs` | a line on standard error |
//! | `memory.rs` | the core's `Memory` over this process, in which an address is a virtual address |
//! | `sync.rs` | atomics, locks and waiting, which loom replaces in tests |
//! | `loom.rs`, `tests.rs` | the races that loom searches; what becomes of requests |
//!
//! The stand-in is a process of this fabric (`device/standin/src/process.rs`), and a host's gateway is one. A peer's
//! words are untrusted: what they name is looked up, and what they hold is judged after it was read. Payload is named
//! by virtual addresses and copied by the kernel, so a bad address is an error and never a fault. A request whose GID
//! is another host's goes to the gateway, which carries it there.

pub mod bell;
pub mod copy;
pub mod gateway;
mod guard;
mod hazard;
#[cfg(all(loom, test))]
mod loom;
pub mod memory;
pub mod say;
mod section;
pub mod segment;
mod sync;
pub mod taken;
#[cfg(all(test, not(loom)))]
mod tests;
pub mod transport;
mod words;
