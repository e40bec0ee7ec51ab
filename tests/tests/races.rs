//! Threads that destroy, reset, post and poll against each other, case by case (tests/c/races.c).
//!
//! `cargo xtask races` runs the same program under ThreadSanitizer.

use std::time::Duration;

use pvrdma_tests::{Doorbells, Output, Provider, Stand, User, amount, c_program, machine};

/// Cases that fail on the C provider, and why.
const OURS_ONLY: [(&str, &str); 5] = [
    ("heir_waits", "has no extended CQs"),
    ("two_pollers_ex", "has no extended CQs"),
    ("td", "has no thread domains"),
    ("wr_batches", "has no ibv_wr_*"),
    ("ah", "refuses an address handle to a link-local address"),
];

/// It looks at a QP's state before it takes the lock, so a request may slip in behind a RESET and be sent after the
/// next RTS. That takes some thousand rounds.
const FAILS_AT_TIMES: &str = "reset_post";

/// Runs each case in a process of its own, since the tickets of a case are counted from 0, and judges how it ended.
fn run_all(provider: &Provider, doorbells: Doorbells, steps: Option<&str>, judge: impl Fn(&str, Output)) {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let program = stand.copy(&c_program("tests/c/races.c", &[]));
    let cases = stand.job(&program).ok();
    assert!(cases.lines().count() >= 11, "the program lists its cases: {cases}");
    for (case, reason) in OURS_ONLY {
        assert!(cases.lines().any(|known| known == case), "{case} ({reason}) is no case");
    }
    for case in cases.lines() {
        let mut job = stand.job(&program).provider(provider).doorbells(doorbells).args([case]);
        job = job.time_out(Duration::from_secs(1800));
        if let Some(steps) = steps {
            job = job.env("PVRDMA_STEPS", steps);
        }
        judge(case, job.output());
    }
}

#[test]
fn our_provider() {
    let steps = amount(None, Some("50000"));
    for doorbells in [Doorbells::Usual, Doorbells::Trapped] {
        run_all(&Provider::Ours, doorbells, steps, |case, output| assert_eq!(output.ok(), format!("ok {case}\n")));
    }
}

/// Fewer rounds: with it each empty poll rings, and waits in the stand-in.
#[test]
fn systems_provider() {
    let steps = Some(amount("30", "1000"));
    run_all(&Provider::System, Doorbells::Usual, steps, |case, output| {
        match OURS_ONLY.iter().find(|(only, _)| *only == case) {
            Some((_, reason)) => assert!(!output.status.success(), "{case} works on the C provider: {reason}?"),
            None if case == FAILS_AT_TIMES => assert!(output.status.code().is_some_and(|code| code <= 1), "{output}"),
            None => assert_eq!(output.ok(), format!("ok {case}\n")),
        }
    });
}
