//! Threads that poll a CQ in a loop keep nobody from it (tests/c/fair.c).
//!
//! On the C provider some thousand polls go by during one destroy, or it does not return at all: as the scheduler wills,
//! so its case is another one, `slow_poll` of `defects.rs`, in which the program is the device.

use std::time::Duration;

use pvrdma_tests::{Provider, Stand, User, amount, c_program, machine};

fn case(name: &str) {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let program = stand.copy(&c_program("tests/c/fair.c", &[]));
    // Where the lock is unfair it may not end.
    let job = stand.job(&program).provider(&Provider::Ours).time_out(Duration::from_secs(600));
    let output = job.env("PVRDMA_STEPS", amount("100", "2000")).args([name]).output();
    println!("{name}: {}", output.stderr);
    assert_eq!(output.ok(), format!("ok {name}\n"));
}

#[test]
fn beside_poll_cq() {
    case("poll_cq");
}

#[test]
fn beside_start_poll() {
    case("start_poll");
}

#[test]
fn beside_one_that_holds_the_cq_for_long() {
    case("held");
}
