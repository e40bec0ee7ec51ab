//! A hostile client: see `device/vfio-user/src/testing.rs`, which says what the bytes mean and what must hold.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    pvrdma_vfio_user::testing::run(bytes);
});
