//! A hostile program: see `device/standin/src/kernel/uverbs/wild.rs`, which says what the bytes mean and what must
//! hold. The files are those of the stand-in, under the names they have there.
#![no_main]
#![allow(dead_code, unused_imports, reason = "the files have more in them than is run here")]

#[path = "../../src/support"]
mod support {
    pub mod memcheck;
    pub mod raw;
}

#[path = "../../src/kernel"]
mod kernel {
    pub mod store;
    pub mod uverbs {
        mod attrs;
        mod call;
        mod errno;
        mod room;
        pub mod wild;

        use errno::*;
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    kernel::uverbs::wild::run(bytes);
});
