//! The memory that a guest and the device share: rings, the entries in them, and the headers that stand before a
//! datagram. What a guest wrote is checked here; above are values that nobody can change any more.

pub mod cqe;
pub mod grh;
pub mod ring;
pub mod wqe;
