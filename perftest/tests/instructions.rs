//! The hot verbs take no more instructions than those of rdma-core's C provider. Counts are exact, so this is no
//! matter of luck or of the machine's load.

use std::process::Command;

use pvrdma_perftest::instructions;
use pvrdma_tests::{Provider, Stand, User, cannot_run, machine};

#[test]
fn no_hot_verb_takes_more_than_the_c_providers() {
    let _machine = machine();
    if Command::new("valgrind").arg("--version").output().is_err() {
        return cannot_run("counting instructions", "valgrind is not installed");
    }
    let stand = Stand::new(User::Me);
    let [ours, system] = Provider::BOTH.map(|provider| instructions(&stand, &provider));
    let worse: Vec<_> = ours.iter().zip(&system).filter(|((_, ours), (_, system))| ours > system).collect();
    assert!(worse.is_empty(), "ours beside the C provider's: {worse:?}");
}
