//! `pvrdma doctor` where it is run: in a guest of `pvrdma run`, over both providers, and outside. What it makes of
//! machines that are otherwise is in `device/cli/tests/doctor.rs`.

use pvrdma_tests::{Job, Provider, Stand, User, Uverbs, machine};

fn doctor<'a>(stand: &'a Stand, provider: &Provider) -> Job<'a> {
    stand.job(stand.path("pvrdma")).provider(provider).args(["doctor"])
}

fn line<'a>(report: &'a str, beginning: &str) -> &'a str {
    report.lines().find(|line| line.starts_with(beginning)).unwrap_or_else(|| panic!("no {beginning}:\n{report}"))
}

#[test]
fn a_guest_is_well_whoever_asks_and_whatever_provider_it_has() {
    let _machine = machine();
    for user in User::both() {
        let stand = Stand::new(user);
        for (provider, whose) in [(Provider::Ours, "ours"), (Provider::System, "the C provider")] {
            for uverbs in Uverbs::ALL {
                let output = doctor(&stand, &provider).uverbs(uverbs).output();
                let report = &output.ok();
                assert!(line(report, "ok      self-test").contains("every byte compared"), "{report}");
                assert!(report.contains(&format!(" provider: {whose}, ")), "{provider:?}:\n{report}");
                // What was foreseen is what serves.
                let path = line(report, "ok      provider-in-use").rsplit(' ').next().expect("a path");
                assert!(report.lines().any(|line| line.contains(" provider: ") && line.contains(path)), "{report}");
                assert!(line(report, "ok      gids").contains("127.0.82.1"), "{report}");
            }
        }
        assert_eq!(stand.leftovers(), Vec::<std::path::PathBuf>::new());
    }
}

/// A device that looks well and moves nothing.
#[test]
fn a_network_that_is_dead_fails_the_self_test() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let output = doctor(&stand, &Provider::Ours).option("--fault", "dead=0").output();
    let report = &output.stdout;
    assert!(line(report, "fail    self-test").contains("vmw_pvrdma0: SEND: "), "{report}");
    assert!(line(report, "ok      link").contains("active"), "{report}");
    assert_eq!(output.status.code(), Some(1), "{report}");
}

#[test]
fn a_machine_without_a_device_is_told_how_to_go_without() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let output = stand.pvrdma(&["doctor"]).output();
    if output.stdout.contains("15ad:0820 at ") {
        return pvrdma_tests::cannot_run("doctor on a machine without a device", "this one has a device");
    }
    assert!(line(&output.stdout, "fail    pci-function").contains("pvrdma run"), "{}", output.stdout);
    assert!(output.stdout.contains("\nunknown self-test: not run"), "{}", output.stdout);
    assert_eq!(output.status.code(), Some(1));
}
