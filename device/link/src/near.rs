//! What is near: the guests of this host, as the links see them.

use pvrdma_net::event::{Arrival, Source};
use pvrdma_net::hosts::{HostEvent, Hosts};
use std::time::Duration;

/// Who takes in what comes from other hosts, and has the payload of what goes there.
pub trait Near: Source {
    /// A frame has brought this. What is to be given back is given back to `hosts`, now or later.
    fn arrived(&mut self, hosts: &mut Hosts, now: Duration, arrival: Arrival<'_>);

    /// This has happened. `Dial` and `Close` are the links' own affair and do not come here.
    fn happened(&mut self, hosts: &mut Hosts, now: Duration, event: HostEvent);

    /// From now on adapters carry the frames of the link to a host, until it is down.
    fn carried(&mut self, host: u16);

    /// What was asked for while frames were made can be had, or done, now.
    fn settle(&mut self, hosts: &mut Hosts, now: Duration);
}
