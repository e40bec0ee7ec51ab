//! UD and address handles, case by case, between QPs of one process (tests/c/ud_loop.c).

mod cases;

use cases::Program;
use pvrdma_tests::{Provider, User, Uverbs};

const UD_LOOP: Program = Program { source: "tests/c/ud_loop.c", cases: 14 };

#[test]
fn our_provider() {
    for uverbs in Uverbs::ALL {
        UD_LOOP.run(User::Me, &Provider::Ours, uverbs);
    }
}

#[test]
fn our_provider_as_an_ordinary_user() {
    let ordinary = User::both().pop().expect("somebody runs the tests");
    UD_LOOP.run(ordinary, &Provider::Ours, Uverbs::Ioctl);
}

#[test]
fn systems_provider() {
    UD_LOOP.run(User::Me, &Provider::System, Uverbs::Ioctl);
    UD_LOOP.c_provider_still_fails();
}

#[test]
fn under_address_sanitizer() {
    UD_LOOP.run_sanitized();
}
