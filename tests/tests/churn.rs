//! 10,000 rounds of create and destroy of every object leave nothing: tests/c/churn.c.
//!
//! The long form makes more of each than the device has room for: a handle that is not given back is missed then.

use std::time::Duration;

use pvrdma_tests::{Provider, Stand, User, Uverbs, amount, c_program, machine};

fn churn(stand: &Stand, provider: &Provider, uverbs: Uverbs) {
    let program = stand.copy(&c_program("tests/c/churn.c", &[]));
    let kinds: Vec<String> = stand.job(&program).ok().lines().map(str::to_owned).collect();
    for kind in ["pd", "mr", "cq", "channel", "rc_qp", "ud_qp", "srq", "ah", "pair", "context"] {
        assert!(kinds.iter().any(|listed| listed == kind), "{kind} is not among {kinds:?}");
    }
    for kind in kinds {
        let job = stand.job(&program).provider(provider).uverbs(uverbs).time_out(Duration::from_secs(900));
        let said = job.args([amount("10000", "all"), &kind]).ok();
        assert!(said.starts_with(&format!("ok {kind} ")), "{said}");
    }
}

#[test]
fn our_provider() {
    let _machine = machine();
    churn(&Stand::new(User::Me), &Provider::Ours, Uverbs::Ioctl);
}

#[test]
fn systems_provider_by_write() {
    let _machine = machine();
    churn(&Stand::new(User::Me), &Provider::System, Uverbs::Write);
}
