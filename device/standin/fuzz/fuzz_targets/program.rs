//! A hostile program: see `device/standin/src/kernel/uverbs/wild.rs` and `device/standin/src/kernel/ucma/wild.rs`,
//! which say what the bytes mean and what must hold. The files are those of the stand-in, under the names they have
//! there.
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
    pub mod ucma {
        mod address;
        mod call;
        pub mod wild;
    }
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
    use kernel::{ucma, uverbs};
    match bytes.strip_prefix(&[ucma::wild::MARK]) {
        Some(bytes) => drop(ucma::wild::run(bytes)),
        None => drop(uverbs::wild::run(bytes)),
    }
});
