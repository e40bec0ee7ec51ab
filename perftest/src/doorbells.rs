//! How doorbells reach the device of the stand-in in what is measured: here and nowhere else is it said to `pvrdma
//! run`.

use std::sync::OnceLock;

use pvrdma_tests::{Job, Stand};

/// The option of `pvrdma run` that has every doorbell trapped.
const TRAP: &str = "--trap";

/// The way of a doorbell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doorbells {
    /// Each is trapped, whoever stores it. So whatever compares providers does not compare ways to the device.
    Trapped,
    /// As a user has it: without a trap where the provider declares its doorbells.
    Direct,
}

impl Doorbells {
    /// A job with its doorbells this way.
    pub fn set<'a>(self, stand: &Stand, job: Job<'a>) -> Job<'a> {
        // A `pvrdma` that does not have the option traps them all.
        if self == Doorbells::Trapped && can_be_direct(stand) { job.flag(TRAP) } else { job }
    }
}

/// Whether `pvrdma run` has another way than the trap.
pub fn can_be_direct(stand: &Stand) -> bool {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    *KNOWN.get_or_init(|| stand.pvrdma(&["run", "--help"]).ok().contains(TRAP))
}
