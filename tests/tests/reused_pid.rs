//! A killed process's id goes to a stranger: nobody who was connected to it writes into the stranger's memory.

use pvrdma_tests::{Provider, Stand, User, c_program, cannot_run, machine};

#[test]
fn the_strangers_memory_is_left_alone() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let program = stand.copy(&c_program("tests/c/reused_pid.c", &[]));
    for provider in Provider::BOTH {
        let output = stand.job(&program).provider(&provider).output();
        if output.status.code() == Some(77) {
            cannot_run("a pid that is used again", "this user may not write /proc/sys/kernel/ns_last_pid");
            return;
        }
        output.ok();
    }
}
