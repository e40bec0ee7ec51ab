//! Shared receive queues, case by case, between QPs of one process (tests/c/srq_loop.c).

mod cases;

use cases::Program;
use pvrdma_tests::{Provider, User, Uverbs};

const SRQ_LOOP: Program = Program { source: "tests/c/srq_loop.c", cases: 13 };

#[test]
fn our_provider() {
    for uverbs in Uverbs::ALL {
        SRQ_LOOP.run(User::Me, &Provider::Ours, uverbs);
    }
}

#[test]
fn systems_provider() {
    for uverbs in Uverbs::ALL {
        SRQ_LOOP.run(User::Me, &Provider::System, uverbs);
    }
    SRQ_LOOP.c_provider_still_fails();
}

#[test]
fn under_address_sanitizer() {
    SRQ_LOOP.run_sanitized();
}
