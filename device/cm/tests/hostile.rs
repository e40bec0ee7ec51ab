//! A hostile peer, by random bytes and by those that a fuzzer kept.

mod wild;

/// Random bytes (splitmix64).
fn bytes(seed: &mut u64, len: usize) -> Vec<u8> {
    let byte = |_| {
        *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let bits = (*seed ^ *seed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb) >> 56) as u8
    };
    (0..len).map(byte).collect()
}

#[test]
fn no_datagrams_and_no_calls_break_it() {
    let mut seed = 1;
    let (mut messages, mut calls, mut events) = (0, 0, 0);
    for _ in 0..2_000 {
        let one = wild::run(&bytes(&mut seed, 1500));
        messages += one.messages;
        calls += one.calls;
        events += one.events;
    }
    // Bytes must reach something, or nothing is shown.
    assert!(messages > 40_000 && calls > 15_000 && events > 10_000, "{messages} {calls} {events}");
}

#[test]
fn inputs_that_a_fuzzer_kept_break_nothing() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/manager");
    let mut count = 0;
    for entry in std::fs::read_dir(&folder).expect("the seeds of the fuzz target") {
        wild::run(&std::fs::read(entry.expect("an entry").path()).expect("a seed"));
        count += 1;
    }
    assert!(count > 20, "{count} seeds");
}
