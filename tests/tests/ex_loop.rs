//! The extended verbs, inline data and domains, case by case, between QPs of one process (tests/c/ex_loop.c).
//!
//! On our provider only: the C provider has none of these.

mod cases;

use cases::Program;
use pvrdma_tests::{Provider, Stand, User, Uverbs, c_program, machine};

const EX_LOOP: Program = Program { source: "tests/c/ex_loop.c", cases: 18 };

#[test]
fn our_provider() {
    for uverbs in Uverbs::ALL {
        EX_LOOP.run(User::Me, &Provider::Ours, uverbs);
    }
}

#[test]
fn under_address_sanitizer() {
    EX_LOOP.run_sanitized();
}

/// Why a create was refused stands in libibverbs's log for those who ask for it, and nowhere for all others.
#[test]
fn refusals_are_explained_on_request() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let program = stand.copy(&c_program("tests/c/ex_loop.c", &[]));
    let refused = || stand.job(&program).args(["qp_refused", "cq_refused", "mr_refused", "domains_refused"]);
    let quiet = refused().output();
    assert!(quiet.status.success() && quiet.stderr.is_empty(), "{quiet}");
    let log = stand.path("verbs.log");
    refused().env("VERBS_LOG_LEVEL", "2").env("VERBS_LOG_FILE", &log).env("PVRDMA_ENABLE", "flying").ok();
    let text = std::fs::read_to_string(&log).expect("libibverbs wrote its log");
    let reasons = [
        "create_qp: 16385 sends of 1 SGEs",
        "create_qp_ex: create_flags 0x2",
        "create_cq: 262145 entries: 1 to 262144",
        "create_cq_ex: wc_flags 0x80",
        "reg_mr: 1073745920 bytes, access 0x1: errno 22, at most 1 GiB",
        "at iova 0x1000: the kernel driver drops the iova",
        "alloc_parent_domain: the PD is a parent domain itself",
        "there is no switch \"flying\"",
    ];
    for reason in reasons {
        assert!(text.contains(reason), "{reason:?} is not in\n{text}");
    }
}
