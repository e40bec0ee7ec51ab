//! Random bytes drive a hostile guest (`testing/wild.rs`); what must hold whatever it does is checked there. And the
//! inputs that a fuzzer found worth keeping, again.
//!
//! `PVRDMA_SEED` repeats a run, `PVRDMA_STEPS` makes it longer.

use pvrdma_device::testing::rng::{Rng, replay, steps};
use pvrdma_device::testing::wild::{Summary, run};

#[test]
fn random_bytes_harm_nobody() {
    let mut rng = Rng::from_env(1);
    let runs = steps(1000);
    let mut all = Summary::default();
    for n in 0..runs {
        let len = 1 + rng.below(4000) as usize;
        let seed = rng.word();
        println!("run {n}: {len} bytes of seed {seed}");
        let one = run(&Rng::new(seed).bytes(len));
        all.commands += one.commands;
        all.refused += one.refused;
        all.completions += one.completions;
        all.pieces += one.pieces;
        all.pieces_refused += one.pieces_refused;
    }
    println!("{runs} runs: {all:?}");
    // It must do something that the device takes for sense, and something that it does not.
    let runs = runs as u32;
    let enough = runs * 5;
    assert!(all.commands > enough && all.refused > enough && all.completions > runs, "{all:?} in {runs} runs");
    assert!(all.pieces > runs && all.pieces_refused > runs / 2, "{all:?} in {runs} runs");
}

#[test]
fn inputs_that_a_fuzzer_kept_harm_nobody() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/guest");
    replay(folder, 100, |bytes| {
        run(bytes);
        true
    });
}
