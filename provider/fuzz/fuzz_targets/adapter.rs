//! A hostile device: see `provider/src/testing/wild.rs`, which says what the bytes mean and what must hold.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    vmw_pvrdma::testing::wild::run(bytes);
});
