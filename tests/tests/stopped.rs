//! A peer is stopped in the middle of a copy: no verb of the other side waits for it, and no byte comes late
//! (tests/c/stopped.c).

use std::path::PathBuf;
use std::time::Duration;

use pvrdma_tests::{Chance, Provider, Stand, User, amount, c_program, machine};

fn all_cases(provider: &Provider, rounds: &str) {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let program = stand.copy(&c_program("tests/c/stopped.c", &[]));
    let cases = stand.job(&program).ok();
    assert_eq!(cases.lines().count(), 16, "{cases}");
    let mut chance = Chance::from_environment();
    for case in cases.lines() {
        let job = stand.job(&program).provider(provider).time_out(Duration::from_secs(3600)).args([case]);
        let job = job.env("PVRDMA_ROUNDS", rounds).env("PVRDMA_SEED", chance.below(1 << 31).to_string());
        assert_eq!(job.output().ok(), format!("ok {case}\n"));
    }
    assert_eq!(stand.leftovers(), Vec::<PathBuf>::new());
}

#[test]
fn nobody_waits_on_our_provider() {
    all_cases(&Provider::Ours, amount("6", "500"));
}

#[test]
fn nobody_waits_on_the_c_provider() {
    all_cases(&Provider::System, amount("3", "100"));
}
