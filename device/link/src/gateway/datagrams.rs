//! Datagrams that there is no room for yet.
//!
//! Those of other hosts wait for their targets. They fill the window of their host meanwhile, but not all of it
//! ([`Limits::of_datagrams`]). What a QP whose program is stopped does not take is lost, as at a switch: the first ones
//! after a while, and those behind them at once, so that they disturb nobody.
//!
//! Those of this host wait for their link, in the slots of their senders, so that who sends faster than the other host
//! takes is held up and loses nothing.

use crate::outbound::send_datagram;
use pvrdma_device::guest::Guest;
use pvrdma_device::transport::{Answer, Request};
use pvrdma_fabric::segment::region_of;
use pvrdma_fabric::taken::Taken;
use pvrdma_fabric::transport::HostTransport;
use pvrdma_net::event::Hold;
use pvrdma_net::frame::DATAGRAM_HEAD;
use pvrdma_net::hosts::Hosts;
use pvrdma_net::limits::{Limits, WINDOW};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// How long one waits at most.
const PATIENCE: Duration = Duration::from_millis(100);
/// Bytes of frames that wait for targets: as many as another host sends.
const ALL: u64 = Limits::of_datagrams(WINDOW);

struct Waiting {
    request: Request,
    payload: Box<[u8]>,
    hold: Hold,
    since: Duration,
}

/// One of this host, for another.
struct Leaving {
    taken: Taken,
    payload: Vec<u8>,
    since: Duration,
}

/// See the module text.
pub struct Datagrams {
    transport: Arc<HostTransport>,
    /// What waits for a process, by its region, in order.
    queues: HashMap<Option<usize>, VecDeque<Waiting>>,
    /// Of all of them.
    bytes: u64,
    /// Processes that have let some wait for too long, and have taken none since.
    deaf: HashSet<Option<usize>>,
    /// For another host, in order.
    leaving: BTreeMap<Option<u8>, VecDeque<Leaving>>,
}

impl Datagrams {
    pub fn new(transport: Arc<HostTransport>) -> Datagrams {
        Datagrams { transport, queues: HashMap::new(), bytes: 0, deaf: HashSet::new(), leaving: BTreeMap::new() }
    }

    pub fn is_empty(&self) -> bool {
        self.queues.is_empty() && self.leaving.is_empty()
    }

    /// A guest has sent one.
    pub fn leave(&mut self, hosts: &mut Hosts, now: Duration, taken: Taken, payload: Vec<u8>) {
        let host = Guest::of(&taken.request.dest.gid).map(Guest::host);
        if !self.leaving.contains_key(&host) && send_datagram(hosts, &taken.request, &payload) {
            return self.transport.give(&taken, Answer::Ack);
        }
        self.leaving.entry(host).or_default().push_back(Leaving { taken, payload, since: now });
    }

    pub fn arrived(&mut self, hosts: &mut Hosts, now: Duration, request: Request, payload: &[u8], hold: Hold) {
        let bytes = (DATAGRAM_HEAD + payload.len()) as u64;
        let target = region_of(&request.dest);
        let is_done = !self.queues.contains_key(&target) && self.transport.submit_datagram(&request, payload);
        if is_done {
            self.deaf.remove(&target);
        }
        if is_done || self.deaf.contains(&target) || self.bytes + bytes > ALL {
            return hosts.release(hold);
        }
        self.queues.entry(target).or_default().push_back(Waiting {
            request,
            payload: payload.into(),
            hold,
            since: now,
        });
        self.bytes += bytes;
    }

    /// Hands on what there is room for by now, and gives up what has waited for too long.
    pub fn try_again(&mut self, hosts: &mut Hosts, now: Duration) {
        self.queues.retain(|target, queue| {
            while let Some(first) = queue.front() {
                if !self.transport.submit_datagram(&first.request, &first.payload) {
                    if now < first.since + PATIENCE {
                        break;
                    }
                    self.deaf.insert(*target);
                }
                if let Some(done) = queue.pop_front() {
                    self.bytes -= (DATAGRAM_HEAD + done.payload.len()) as u64;
                    hosts.release(done.hold);
                }
            }
            !queue.is_empty()
        });
        self.leaving.retain(|_, queue| {
            while let Some(first) = queue.front() {
                let has_left = send_datagram(hosts, &first.taken.request, &first.payload);
                if !has_left && now < first.since + PATIENCE {
                    break;
                }
                if let Some(gone) = queue.pop_front() {
                    self.transport.give(&gone.taken, Answer::Ack);
                }
            }
            !queue.is_empty()
        });
    }
}
