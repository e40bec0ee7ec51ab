//! What everything else stands on: what threads share, memory, errors, the libibverbs that was found.
//! Nothing here knows a verb.

pub mod buf;
pub mod devices;
#[cfg(not(all(loom, test)))]
pub mod doorbell;
pub mod error;
pub mod loaded;
pub mod lock;
pub mod log;
pub mod qp_nums;
pub mod send_log;
pub mod switches;
pub mod sync;
pub mod threads;
