//! A request of a device of this process.

use super::queue::Queue;
use crate::outbound::Requested;
use pvrdma_device::transport::fabric::Origin;
use pvrdma_device::transport::{Answer, Request};
use std::sync::Arc;

/// See the module text.
pub struct FromDevice {
    pub queue: Arc<Queue>,
    pub origin: Origin,
    pub request: Request,
    /// Its number in notes.
    pub id: u64,
}

impl Requested for FromDevice {
    fn request(&self) -> &Request {
        &self.request
    }

    /// A note says so.
    fn is_forgotten(&self) -> bool {
        false
    }

    fn payload(&self, offset: u64, into: &mut [u8]) -> bool {
        self.origin.device.upgrade().is_some_and(|device| device.payload(self.request.token, offset, into))
    }

    fn arrived(&self, offset: u64, bytes: &[u8]) -> bool {
        self.origin.device.upgrade().is_some_and(|device| device.arrived(self.request.token, offset, bytes))
    }

    fn answer(&self, answer: Answer) {
        if let Some(device) = self.origin.device.upgrade() {
            device.answered(self.request.token, answer);
        }
    }
}

impl Drop for FromDevice {
    /// Not before its answer was told: until then it is not lost.
    fn drop(&mut self) {
        self.queue.request_left(self.origin.port, self.request.token, self.id);
    }
}
