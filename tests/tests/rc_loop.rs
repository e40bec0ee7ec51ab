//! RC semantics, case by case, between two QPs of one process (tests/c/rc_loop.c).
//!
//! A case runs on both providers unless it is in [`OURS_ONLY`], and through each way into the kernel.

use pvrdma_tests::{Provider, Stand, User, Uverbs, c_program, machine};

/// Cases on which the C provider of rdma-core is known to do something else, and what it does.
const OURS_ONLY: &[(&str, &str)] = &[];

fn cases(stand: &Stand, program: &std::path::Path) -> Vec<String> {
    stand.job(program).ok().lines().map(str::to_owned).collect()
}

/// Runs all cases, each in a process of its own, and names every one that fails.
fn run_all(user: User, provider: &Provider, uverbs: Uverbs) {
    let _machine = machine();
    let stand = Stand::new(user);
    let program = stand.copy(&c_program("tests/c/rc_loop.c", &[]));
    let all = cases(&stand, &program);
    assert!(all.len() > 30, "the program lists its cases: {all:?}");
    let mut failed = Vec::new();
    for case in all {
        if *provider == Provider::System && OURS_ONLY.iter().any(|(name, _)| *name == case) {
            continue;
        }
        let output = stand.job(&program).provider(provider).uverbs(uverbs).args([&case]).output();
        if !output.status.success() || output.stdout != format!("ok {case}\n") {
            failed.push(format!("{case}: {output}"));
        }
    }
    assert!(failed.is_empty(), "{} cases failed\n{}", failed.len(), failed.join("\n"));
}

#[test]
fn our_provider_by_ioctl() {
    run_all(User::Me, &Provider::Ours, Uverbs::Ioctl);
}

#[test]
fn our_provider_by_invoke() {
    run_all(User::Me, &Provider::Ours, Uverbs::Invoke);
}

#[test]
fn our_provider_by_write() {
    run_all(User::Me, &Provider::Ours, Uverbs::Write);
}

#[test]
fn systems_provider_by_ioctl() {
    run_all(User::Me, &Provider::System, Uverbs::Ioctl);
}

#[test]
fn systems_provider_by_invoke() {
    run_all(User::Me, &Provider::System, Uverbs::Invoke);
}

#[test]
fn systems_provider_by_write() {
    run_all(User::Me, &Provider::System, Uverbs::Write);
}

#[test]
fn our_provider_as_an_ordinary_user() {
    let ordinary = User::both().pop().expect("somebody runs the tests");
    run_all(ordinary, &Provider::Ours, Uverbs::Ioctl);
}

/// All cases one after the other in one process: nothing one leaves may trouble the next.
#[test]
fn one_process_for_all() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let program = stand.copy(&c_program("tests/c/rc_loop.c", &[]));
    let cases = cases(&stand, &program);
    stand.job(&program).args(&cases).ok();
}

/// The same under AddressSanitizer, which looks at our provider's use of the heap as well.
#[test]
fn under_address_sanitizer() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    // Its runtime inside the program: as a library it insists on being loaded before every preloaded one.
    let program = stand.copy(&c_program("tests/c/rc_loop.c", &["-fsanitize=address", "-static-libasan"]));
    let cases = cases(&stand, &program);
    for provider in Provider::BOTH {
        let skip = |case: &&String| provider == Provider::Ours || OURS_ONLY.iter().all(|(name, _)| name != case);
        let chosen: Vec<_> = cases.iter().filter(skip).collect();
        stand.job(&program).provider(&provider).args(chosen).ok();
    }
}
