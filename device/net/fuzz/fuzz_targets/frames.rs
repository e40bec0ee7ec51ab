//! A hostile host: see `device/net/src/testing/hostile.rs`, which says what the bytes mean and what must hold.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    pvrdma_net::testing::hostile::run(bytes);
});
