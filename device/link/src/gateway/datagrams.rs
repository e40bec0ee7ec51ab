//! Datagrams of other hosts that their targets have no room for yet. They fill the window of their host meanwhile, but
//! not all of it: what a QP whose program is stopped does not take is lost, as at a switch, and disturbs nobody.

use pvrdma_device::transport::{Endpoint, Request};
use pvrdma_fabric::transport::HostTransport;
use pvrdma_net::event::Hold;
use pvrdma_net::hosts::Hosts;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// How long one waits at most.
const PATIENCE: Duration = Duration::from_millis(100);
/// Bytes that wait for one target, and for all.
const LANE: usize = 2 << 20;
const ALL: usize = 3 << 20;
/// What one takes beside its payload, or a little more.
const HEAD: usize = 128;

struct Waiting {
    request: Request,
    payload: Box<[u8]>,
    hold: Hold,
    since: Duration,
}

/// What waits for one target, in order.
#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    bytes: usize,
}

/// See the module text.
pub struct Datagrams {
    transport: Arc<HostTransport>,
    queues: HashMap<Endpoint, Queue>,
    bytes: usize,
}

impl Datagrams {
    pub fn new(transport: Arc<HostTransport>) -> Datagrams {
        Datagrams { transport, queues: HashMap::new(), bytes: 0 }
    }

    pub fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }

    pub fn arrived(&mut self, hosts: &mut Hosts, now: Duration, request: Request, payload: &[u8], hold: Hold) {
        let bytes = HEAD + payload.len();
        let before = self.queues.get(&request.dest).map(|queue| queue.bytes);
        let is_done = before.is_none() && self.transport.submit_datagram(&request, payload);
        if is_done || self.bytes + bytes > ALL || before.unwrap_or(0) + bytes > LANE {
            return hosts.release(hold);
        }
        let queue = self.queues.entry(request.dest).or_default();
        queue.waiting.push_back(Waiting { request, payload: payload.into(), hold, since: now });
        queue.bytes += bytes;
        self.bytes += bytes;
    }

    /// Hands on what there is room for by now, and gives up what has waited for too long.
    pub fn try_again(&mut self, hosts: &mut Hosts, now: Duration) {
        self.queues.retain(|_, queue| {
            while let Some(first) = queue.waiting.front() {
                if !self.transport.submit_datagram(&first.request, &first.payload) && now < first.since + PATIENCE {
                    break;
                }
                if let Some(done) = queue.waiting.pop_front() {
                    queue.bytes -= HEAD + done.payload.len();
                    self.bytes -= HEAD + done.payload.len();
                    hosts.release(done.hold);
                }
            }
            !queue.waiting.is_empty()
        });
    }
}
