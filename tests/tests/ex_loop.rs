//! The extended verbs, inline data and domains, case by case, between QPs of one process (tests/c/ex_loop.c).
//!
//! On our provider only: the C provider has none of these.

mod cases;

use cases::Program;
use pvrdma_tests::{Provider, User, Uverbs};

const EX_LOOP: Program = Program { source: "tests/c/ex_loop.c", cases: 16, ours_only: &[] };

#[test]
fn our_provider() {
    for uverbs in Uverbs::ALL {
        EX_LOOP.run(User::Me, &Provider::Ours, uverbs);
    }
}

#[test]
fn under_address_sanitizer() {
    EX_LOOP.run_sanitized();
}
