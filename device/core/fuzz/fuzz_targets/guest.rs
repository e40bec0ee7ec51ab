//! A hostile guest: see `device/core/src/testing/wild.rs`, which says what the bytes mean and what must hold.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    pvrdma_device::testing::wild::run(bytes);
});
