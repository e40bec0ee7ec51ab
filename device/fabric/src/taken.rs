//! A request that somebody has taken over, to answer it later.

use crate::segment::Process;
use pvrdma_device::memory::Span;
use pvrdma_device::transport::Request;

/// A request of a process of this host that is to be answered: once, by `HostTransport::give`.
#[must_use = "its requester waits for an answer"]
pub struct Taken {
    pub(crate) requester: Process,
    /// Its number in the requester's region, and its word while it is taken.
    pub(crate) slot: u16,
    pub(crate) word: u64,
    pub(crate) spans: Vec<Span>,
    /// What it asks for.
    pub request: Request,
}
