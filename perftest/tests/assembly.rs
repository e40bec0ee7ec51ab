//! The hot verbs keep nothing on the stack and call nobody: what is not the common case is a function of its own, and
//! jumped to at the very end. A register saved, or a call, is what makes a short function twice as long.

use std::process::Command;

use pvrdma_perftest::assembly::{Function, functions};
use pvrdma_tests::{artifacts, cannot_run};

/// What libibverbs and applications call, and what that jumps to, by their names in the plugin. (Not all: inline data,
/// and several completions at once, want more registers than there are for free.)
const HOT: &[&str] = &[
    "vmw_pvrdma::fast::post_send::post_send",
    "vmw_pvrdma::fast::post_send::post_send_other",
    "vmw_pvrdma::fast::post_send::post_send_ud",
    "vmw_pvrdma::fast::post_recv::post_recv",
    "vmw_pvrdma::fast::post_recv::post_srq_recv",
    "vmw_pvrdma::fast::poll_cq::poll_cq",
    "vmw_pvrdma::fast::poll_cq::ask_for_one",
    "vmw_pvrdma::fast::cq_ex::next_poll",
    "vmw_pvrdma::fast::wr::plain::wr_start",
    "vmw_pvrdma::fast::wr::plain::wr_send",
    "vmw_pvrdma::fast::wr::plain::wr_send_imm",
    "vmw_pvrdma::fast::wr::plain::wr_rdma_write",
    "vmw_pvrdma::fast::wr::plain::wr_rdma_write_imm",
    "vmw_pvrdma::fast::wr::plain::wr_rdma_read",
    "vmw_pvrdma::fast::wr::plain::wr_set_sge",
    "vmw_pvrdma::fast::wr::plain::wr_complete",
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
