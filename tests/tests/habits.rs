//! What programs do and take for granted, case by case, between QPs of one process (tests/c/habits.c).

mod cases;

use cases::Program;
use pvrdma_tests::{Provider, User, Uverbs};

const HABITS: Program = Program { source: "tests/c/habits.c", cases: 23 };

#[test]
fn our_provider() {
    for uverbs in Uverbs::ALL {
        HABITS.run(User::Me, &Provider::Ours, uverbs);
    }
}

#[test]
fn systems_provider() {
    HABITS.run(User::Me, &Provider::System, Uverbs::Ioctl);
    HABITS.c_provider_still_fails();
}

#[test]
fn under_address_sanitizer() {
    HABITS.run_sanitized();
}
