//! What the device sees: counters and slots of the rings, the bytes of a completion, the doorbell page,
//! and the order of our stores and its looks.

pub mod barrier;
pub mod counters;
pub mod cq_ring;
pub mod cqe;
pub mod uar;
pub mod work_queue;
