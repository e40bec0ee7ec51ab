//! The table of errors (device/ERRORS.md), row by row (tests/c/errors.c), and that table and tests name each other.

mod cases;

use cases::Program;
use pvrdma_tests::{Provider, User, Uverbs};

const ERRORS: Program = Program { source: "tests/c/errors.c", cases: 19, ours_only: &[] };

#[test]
fn our_provider() {
    for uverbs in Uverbs::ALL {
        ERRORS.run(User::Me, &Provider::Ours, uverbs);
    }
}

#[test]
fn systems_provider() {
    ERRORS.run(User::Me, &Provider::System, Uverbs::Ioctl);
}

#[test]
fn under_address_sanitizer() {
    ERRORS.run_sanitized();
}
