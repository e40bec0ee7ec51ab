//! Who wants a CQ has it soon: beside threads that poll it in a loop, and beside another CQ that is empty
//! (tests/c/fair.c).
//!
//! The first only on our provider. On the C provider some thousand polls go by during one destroy, or it does not
//! return at all: as the scheduler wills, so its case is another one, `slow_poll` of `defects.rs`, in which the program
//! is the device.

use std::time::Duration;

use pvrdma_tests::{Provider, Stand, User, amount, c_program, machine};

fn case(name: &str, provider: &Provider, steps: &str) {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let program = stand.copy(&c_program("tests/c/fair.c", &[]));
    let job = stand.job(&program).provider(provider).time_out(Duration::from_secs(600));
    let output = job.env("PVRDMA_STEPS", steps).args([name]).output();
    println!("{name}: {}", output.stderr);
    assert_eq!(output.ok(), format!("ok {name}\n"));
}

#[test]
fn beside_poll_cq() {
    case("poll_cq", &Provider::Ours, amount("100", "2000"));
}

#[test]
fn beside_start_poll() {
    case("start_poll", &Provider::Ours, amount("100", "2000"));
}

#[test]
fn beside_one_that_holds_the_cq_for_long() {
    case("held", &Provider::Ours, amount("100", "2000"));
}

/// The stand-in lets an empty poll wait, but not while a completion lies in another CQ.
#[test]
fn two_cqs_polled_in_turn() {
    for provider in Provider::BOTH {
        case("two_cqs", &provider, amount("1000", "100000"));
    }
}
