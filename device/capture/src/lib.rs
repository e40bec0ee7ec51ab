//! Captures: what devices say to each other, written down as the RoCE frames it would be on a wire, in a file that
//! Wireshark and tshark read (`--pcap FILE` of `pvrdma run`, `serve` and `link run`).
//!
//! | file | |
//! |---|---|
//! | `tap.rs` | sees what a device asks of others, and what they answer |
//! | `recorder.rs` | the same for a gateway, which is told of them in pieces |
//! | `frames.rs` | requests and answers as frames |
//! | `writer.rs` | frames as records |
//! | `file.rs` | the file: its header, its records, and who may append to it |
//!
//! A message is written by its requester, and by nobody else: so each is there once, whatever way it takes. Why it is
//! done so, and what a frame shows that is not quite a wire's, stands in `device/roce/DESIGN.md`.

#![deny(unsafe_code)]

pub mod file;
pub mod frames;
pub mod recorder;
pub mod tap;
pub mod writer;
