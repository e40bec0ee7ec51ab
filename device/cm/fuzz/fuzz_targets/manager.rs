//! A hostile peer: see `device/cm/tests/wild/mod.rs`, which says what the bytes mean and what must hold.
#![no_main]

#[path = "../../tests/wild/mod.rs"]
mod wild;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    wild::run(bytes);
});
