//! The hot verbs take no more than their part of the instructions that rdma-core's C provider takes, as the table in
//! `src/operations.rs` has it. Counts are exact, so this is no matter of luck or of the machine's load.

use std::process::Command;

use pvrdma_perftest::{OPERATIONS, Situation, instructions};
use pvrdma_tests::{Provider, Stand, User, cannot_run, machine};

#[test]
fn no_hot_verb_takes_more_than_it_may() {
    let _machine = machine();
    if Command::new("valgrind").arg("--version").output().is_err() {
        return cannot_run("counting instructions", "valgrind is not installed");
    }
    let stand = Stand::new(User::Me);
    let [ours, system] = Provider::BOTH.map(|provider| instructions(&stand, &provider, Situation::One));
    let mut worse = Vec::new();
    for operation in &OPERATIONS {
        let (own, base) = operation.pair(&ours, &system).unwrap_or_else(|| panic!("{} is not there", operation.name));
        if let Some(most) = operation.at_most.instructions
            && own > most * base
        {
            worse.push(format!(
                "{}: {own:.1} beside {base:.1}, {:.2} instead of {most:.2}",
                operation.title,
                own / base
            ));
        }
    }
    assert!(worse.is_empty(), "{worse:#?}");
}
