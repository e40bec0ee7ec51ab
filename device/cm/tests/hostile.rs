//! A hostile peer, by random bytes and by those that a fuzzer kept.

mod wild;

use pvrdma_ffi::rng::{Rng, replay};

#[test]
fn no_datagrams_and_no_calls_break_it() {
    let mut rng = Rng::from_env(1);
    let (mut messages, mut calls, mut events) = (0, 0, 0);
    for _ in 0..2_000 {
        let one = wild::run(&rng.bytes(1500));
        messages += one.messages;
        calls += one.calls;
        events += one.events;
    }
    // Bytes must reach something, or nothing is shown.
    assert!(messages > 40_000 && calls > 15_000 && events > 10_000, "{messages} {calls} {events}");
}

#[test]
fn inputs_that_a_fuzzer_kept_break_nothing() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/manager");
    replay(folder, 20, |bytes| {
        wild::run(bytes);
        true
    });
}
