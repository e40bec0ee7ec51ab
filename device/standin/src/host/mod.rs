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

pub mod bell;
pub mod copy;
pub mod segment;
pub mod transport;
