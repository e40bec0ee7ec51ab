//! UD and address handles, case by case, between QPs of one process (tests/c/ud_loop.c).

mod cases;

use cases::Program;
use pvrdma_tests::{Provider, User, Uverbs};

const UD_LOOP: Program = Program {
    source: "tests/c/ud_loop.c",
    cases: 13,
    ours_only: &[
        ("send", "passes the device's flags on, one of which reads as a tag matching flag"),
        ("send_imm", "the same"),
        ("no_ah", "crashes on a NULL address handle"),
        ("other_opcodes", "posts any opcode to a UD queue"),
        ("bad_ah", "refuses address handles without setting errno"),
    ],
};

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
