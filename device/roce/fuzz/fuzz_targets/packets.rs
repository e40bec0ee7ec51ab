//! Bytes of a stranger: see `run` in `device/roce/src/testing.rs`, which says what they mean and what must hold.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    pvrdma_roce::testing::run(bytes);
});
