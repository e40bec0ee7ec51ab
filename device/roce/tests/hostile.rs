//! Packets of a peer that does as it likes, and a device that answers as it likes: nobody is harmed, each request ends
//! once, and what is kept and what is sent is bounded. The bytes that say what happens are random ones, and those that
//! the fuzz target begins with.
//!
//! `PVRDMA_SEED` repeats a run, `PVRDMA_STEPS` makes it longer.

use pvrdma_device::testing::rng::{Rng, replay, seed, steps};
use pvrdma_roce::testing::hostile::{Summary, run};

/// Runs of random bytes against one of the halves.
fn runs(half: u8) -> Summary {
    let mut rng = Rng::new(seed(1 + u64::from(half)));
    let mut all = Summary::default();
    for n in 0..steps(200) {
        let seed = rng.word();
        let len = 1 + rng.below(6000) as usize;
        let mut bytes = Rng::new(seed).bytes(len);
        bytes[0] = bytes[0] & !1 | half;
        // So that a run that fails can be told from the others.
        println!("{n}: {seed}, {len} bytes");
        let summary = run(&bytes);
        all.came += summary.came;
        all.sent += summary.sent;
        all.again += summary.again;
        all.ended += summary.ended;
        all.pieces += summary.pieces;
    }
    println!("{all:?}");
    all
}

#[test]
fn a_hostile_responder_harms_no_requester() {
    let all = runs(0);
    assert!(all.came > 1000 && all.sent > 1000 && all.again > 100 && all.ended > 1000, "{all:?}");
}

#[test]
fn a_hostile_requester_and_a_strange_device_harm_no_responder() {
    let all = runs(1);
    assert!(all.came > 1000 && all.sent > 1000 && all.pieces > 1000, "{all:?}");
}

#[test]
fn inputs_that_a_fuzzer_kept_harm_nobody() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/peer");
    replay(folder, 20, |bytes| run(bytes).came > 0);
}
