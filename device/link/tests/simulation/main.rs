//! Hosts with real devices in one process, on a clock that is only a number, by a seed: work requests between their QPs
//! over bearers that delay, break up, hold back and cut, while hosts stop, read slowly and start anew, are parted, and
//! addresses move. A model knows what each work request may end with, and what is in whose memory.
//!
//! `PVRDMA_SEED` repeats a run. The large form, which takes minutes:
//!
//!     PVRDMA_HOSTS=100 PVRDMA_QPS=10000 PVRDMA_MESSAGES=1000000 \
//!         cargo test --release -p pvrdma-link --test simulation large -- --nocapture

mod datagrams;
mod guest;
mod pair;
mod sim;
mod weather;

use pvrdma_ffi::uapi::vmw_pvrdma::*;
use sim::Sim;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// What is to happen.
#[derive(Clone, Copy)]
pub struct Plan {
    hosts: u16,
    /// Of each host.
    guests: u16,
    pairs: u32,
    /// In each direction of a pair.
    messages: u64,
    /// A program posts once in so many steps.
    pace: u64,
    /// Requests that a QP may have at once, unless it has long ones.
    depth: u64,
    /// How long things go wrong.
    trouble: Duration,
    /// Chance of trouble in a step, of 1000.
    often: u64,
    /// Some messages are longer than a segment.
    long: bool,
}

const QUIET: Plan = Plan {
    hosts: 3,
    guests: 2,
    pairs: 12,
    messages: 60,
    pace: 1,
    depth: 16,
    trouble: Duration::ZERO,
    often: 0,
    long: true,
};
const TROUBLED: Plan = Plan {
    hosts: 5,
    guests: 1,
    pairs: 24,
    messages: 100,
    pace: 25,
    trouble: Duration::from_secs(4),
    often: 12,
    ..QUIET
};

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |value| value.parse().expect("a number"))
}

#[test]
fn without_trouble_every_work_request_succeeds() {
    let sim = Sim::new(QUIET, number("PVRDMA_SEED", 1)).run();
    sim.report();
    assert_eq!(sim.ends.keys().copied().collect::<Vec<_>>(), [PVRDMA_WC_SUCCESS]);
    assert!(sim.post.came > 50 && sim.links == 6, "{} {}", sim.post.came, sim.links);
}

#[test]
fn whatever_happens_each_work_request_ends_once_as_the_model_says() {
    let first = number("PVRDMA_SEED", 1);
    let mut all: BTreeMap<u32, u64> = BTreeMap::new();
    for seed in first..first + number("PVRDMA_STEPS", 2) {
        println!("seed {seed}");
        let sim = Sim::new(TROUBLED, seed).run();
        sim.report();
        for (status, count) in sim.ends {
            *all.entry(status).or_default() += count;
        }
    }
    for status in [PVRDMA_WC_SUCCESS, PVRDMA_WC_RETRY_EXC_ERR, PVRDMA_WC_WR_FLUSH_ERR, PVRDMA_WC_REM_ACCESS_ERR] {
        assert!(all.contains_key(&status), "{all:?}");
    }
}

#[test]
fn a_seed_replays_exactly() {
    let plan = Plan { trouble: Duration::from_secs(2), messages: 40, pace: 50, often: 12, long: false, ..TROUBLED };
    let runs = [77, 77, 78].map(|seed| {
        let sim = Sim::new(plan, seed).run();
        (sim.trace, sim.now, sim.ends)
    });
    assert_eq!(runs[0], runs[1]);
    assert_ne!(runs[0].0, runs[2].0);
}

/// As large as asked for; by default as small as the others.
#[test]
fn large() {
    let (hosts, qps) = (number("PVRDMA_HOSTS", 6), number("PVRDMA_QPS", 60));
    let messages = number("PVRDMA_MESSAGES", 1200);
    let plan = Plan {
        hosts: hosts as u16,
        guests: number("PVRDMA_GUESTS", 2) as u16,
        pairs: (qps / 2) as u32,
        messages: messages / qps,
        pace: number("PVRDMA_PACE", 4),
        depth: 8,
        trouble: Duration::from_secs(number("PVRDMA_TROUBLE", 2)),
        often: number("PVRDMA_OFTEN", 20),
        long: false,
    };
    let begin = Instant::now();
    let sim = Sim::new(plan, number("PVRDMA_SEED", 1)).run();
    sim.report();
    println!("{hosts} hosts, {} connections, {:?}", sim.wires.len(), begin.elapsed());
}
