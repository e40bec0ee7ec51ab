//! A host's settings and the file that it joins with: see `device/net/src/testing/settings.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    pvrdma_net::testing::settings::run(bytes);
});
