//! What moves work: the requester half of a QP (`requester`), its responder half (`responder`), what work requests make
//! of memory regions (`fast_reg`) and who runs them when (`schedule`).
//!
//! Lock order: `sq` of a QP, then `rq` of a QP, then a CQ. A responder that fails its QP never takes a send
//! queue lock; it schedules the flush.

pub mod fast_reg;
pub mod requester;
pub mod responder;
pub mod schedule;

use crate::memory::Span;
use std::time::Duration;

/// Time of an RNR timer code in units of 10 us (IBA vol. 1, table 45).
const RNR_10US: [u32; 32] = [
    65536, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096,
    6144, 8192, 12288, 16384, 24576, 32768, 49152,
];

/// How long a requester waits after an RNR NAK with this code.
pub fn rnr_time(code: u8) -> Duration {
    Duration::from_micros(u64::from(RNR_10US[usize::from(code & 31)]) * 10)
}

/// Local ACK timeout: 4.096 us * 2^code; 0 means for ever (IBA vol. 1, 9.7.6.1.3).
pub fn ack_timeout(code: u8) -> Option<Duration> {
    (code != 0).then(|| Duration::from_nanos(4096 << (code & 31)))
}

/// Empties a scratch list that a long message made long: a guest chooses how many pieces its messages have, and there
/// are many QPs.
fn give_back_scratch(spans: &mut Vec<Span>) {
    spans.clear();
    spans.shrink_to(64);
}
