//! Bytes drive a hostile peer: see `device/roce/src/testing/hostile.rs`, which says what they mean and what must hold.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    pvrdma_roce::testing::hostile::run(bytes);
});
