//! The hot verbs keep nothing on the stack and call nobody: what is not the common case is a function of its own, and
//! jumped to at the very end. A register saved, or a call, is what makes a short function twice as long.

use std::process::Command;

use pvrdma_perftest::assembly::{Function, functions};
use pvrdma_tests::{artifacts, cannot_run};

/// What libibverbs calls, by their names in the plugin.
const HOT: [&str; 4] = [
    "vmw_pvrdma::ops::post_send",
    "vmw_pvrdma::ops::post_recv",
    "vmw_pvrdma::ops::post_srq_recv",
    "vmw_pvrdma::ops::poll_cq",
];

/// Those of a name: none is a mistake of the list, not a function without faults.
fn find<'a>(all: &'a [Function], name: &str) -> Vec<&'a Function> {
    let found: Vec<_> = all.iter().filter(|function| function.name == name).collect();
    assert!(!found.is_empty(), "the plugin has no function {name}");
    found
}

#[test]
fn hot_verbs_save_nothing_and_call_nobody() {
    if Command::new("objdump").arg("--version").output().is_err() {
        return cannot_run("reading the machine code of the hot verbs", "objdump is not installed");
    }
    let all = functions(&artifacts().join("libvmw_pvrdma.so"));
    let hot = HOT.iter().flat_map(|name| find(&all, name));
    let heavy: Vec<_> = hot.filter(|function| !function.saves.is_empty() || !function.calls.is_empty()).collect();
    assert!(heavy.is_empty(), "{heavy:#?}");
}
