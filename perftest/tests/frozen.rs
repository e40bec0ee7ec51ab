//! The bench of the frozen device measures what it says, on any provider. How long something takes is not judged here.

use pvrdma_perftest::frozen::Plan;
use pvrdma_perftest::{OPERATIONS, Situation};
use pvrdma_tests::{Provider, Stand, User, artifacts, machine};

#[test]
fn every_operation_is_timed_in_every_situation() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let file = Provider::Path(artifacts().join("libvmw_pvrdma.so"));
    let providers = vec![Provider::Ours, Provider::System, file];
    let plan = Plan { base: Provider::System, providers, runs: 2, batches: 3 };
    let rows = plan.measure(&stand, |_, _| {});
    assert_eq!(rows.len(), OPERATIONS.len() * Situation::ALL.len());
    for row in rows {
        let [ours, system, file] = &row.others[..] else { panic!("{} providers", row.others.len()) };
        let what = (row.operation.name, row.situation);
        for figures in [ours, file] {
            let (ns, ratio) = figures.unwrap_or_else(|| panic!("{what:?} was not measured"));
            assert!(ns.is_finite() && ratio.median.is_finite(), "{what:?}: {ns} ns, {ratio:?}");
        }
        // What stands beside something else is what the C provider does not have.
        assert_eq!(system.is_none(), row.operation.instead.is_some(), "{what:?}");
    }
}
