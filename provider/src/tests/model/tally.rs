//! What is counted in a run.

use core::ffi::c_int;
use pvrdma_ffi::uapi::vmw_pvrdma::PVRDMA_WC_WR_FLUSH_ERR;
use pvrdma_ffi::verbs::*;
use std::collections::BTreeMap;

/// Asked for by `query_qp`.
pub const STATES: &str = "QPs queried, by state";

/// How often what was answered, by verb and errno; and other things worth counting.
#[derive(Debug, Default)]
pub struct Tally(pub BTreeMap<(&'static str, c_int), u64>);

impl Tally {
    pub fn add(&mut self, what: &'static str, errno: c_int, count: u64) {
        *self.0.entry((what, errno)).or_default() += count;
    }

    pub fn of(&self, what: &'static str, errno: c_int) -> u64 {
        self.0.get(&(what, errno)).copied().unwrap_or(0)
    }
}

impl core::fmt::Display for Tally {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let mut last = "";
        for ((what, number), count) in &self.0 {
            if *what != last {
                write!(f, "\n  {what}:")?;
            }
            let separator = if *what == last { "," } else { "" };
            match number {
                0 => write!(f, "{separator} {count}")?,
                number if what.ends_with("state") => write!(f, "{separator} {count} in {number}")?,
                number if what.ends_with("completions") => write!(f, "{separator} {count} of status {number}")?,
                number => {
                    let name = std::io::Error::from_raw_os_error(*number).to_string();
                    write!(f, "{separator} {count} {}", name.split(" (").next().unwrap_or_default())?;
                }
            }
            last = what;
        }
        Ok(())
    }
}

/// What became of requests.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ledger {
    pub posted: u64,
    pub completed: u64,
    /// Successful sends that were not signaled.
    pub silent: u64,
    pub failed: u64,
    pub flushed: u64,
    pub purged: u64,
}

impl Ledger {
    pub fn end(&mut self, status: u32, visible: bool) {
        match status {
            0 if visible => self.completed += 1,
            0 => self.silent += 1,
            PVRDMA_WC_WR_FLUSH_ERR => self.flushed += 1,
            _ => self.failed += 1,
        }
    }

    /// That of another lane too.
    pub fn add(&mut self, other: Self) {
        self.posted += other.posted;
        self.completed += other.completed;
        self.silent += other.silent;
        self.failed += other.failed;
        self.flushed += other.flushed;
        self.purged += other.purged;
    }

    /// How many came to an end.
    pub fn ended(&self) -> u64 {
        self.completed + self.silent + self.failed + self.flushed + self.purged
    }
}

/// A run that reaches nothing shows nothing: requests must have come to each kind of end.
pub fn enough_ends(steps: u64, ledger: Ledger) {
    let least = steps / 50_000;
    let Ledger { posted, completed, silent, failed, flushed, purged } = ledger;
    let ends = [posted, completed, silent, failed, flushed, purged];
    assert!(ends.into_iter().all(|count| count >= 50 * least), "{ledger:?}");
}

/// And in one thread, whose run is a function of its seed, each answer and state must have been met.
pub fn enough_answers(steps: u64, tally: &Tally) {
    let least = steps / 50_000;
    let (busy, full, wrong, never) = (libc::EBUSY, libc::ENOMEM, libc::EINVAL, libc::EOPNOTSUPP);
    let answers = [
        ("dealloc_pd", busy),
        ("dealloc_td", busy),
        ("destroy_cq", busy),
        ("destroy_srq", busy),
        ("create_cq", never),
        ("create_qp", never),
        ("create_qp", wrong),
        ("create_srq", wrong),
        ("reg_mr", never),
        ("modify_qp", wrong),
        ("modify_srq", wrong),
        ("modify_srq", never),
        ("post_send", full),
        ("post_send", wrong),
        ("wr_complete", full),
        ("wr_complete", wrong),
        ("wr_complete", never),
        ("post_recv", full),
        ("post_recv", wrong),
        ("post_srq_recv", full),
        ("post_srq_recv", wrong),
        ("SRQ limit events", 0),
    ];
    let states = (IBV_QPS_RESET..=IBV_QPS_ERR).map(|state| (STATES, state as c_int));
    for (what, number) in answers.into_iter().chain(states) {
        assert!(tally.of(what, number) >= least, "{what} {number}: {}", tally.of(what, number));
    }
}
