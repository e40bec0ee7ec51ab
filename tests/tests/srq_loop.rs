//! Shared receive queues, case by case, between QPs of one process (tests/c/srq_loop.c).

mod cases;

use cases::Program;
use pvrdma_tests::{Provider, User, Uverbs};

const SRQ_LOOP: Program = Program {
    source: "tests/c/srq_loop.c",
    cases: 13,
    ours_only: &[
        ("negative_sge_count", "posts it"),
        ("no_own_queue", "does not say which request was refused"),
        ("modify_refused", "passes a resize on to the kernel, which says EINVAL"),
        ("limits", "changes the caller's attributes although it fails"),
    ],
};

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
