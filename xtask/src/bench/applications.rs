//! The table of UCX's own benchmark: our provider without traps and the C provider by `rc_v`, beside shared memory.

use pvrdma_perftest::median;
use pvrdma_perftest::ucx::{Figure, Ucx, Way};
use pvrdma_tests::{Provider, Stand};

/// Each figure is the median of this many runs, the three taking turns.
const RUNS: usize = 7;

/// Tests, and what the first figure is wanted to be, where something was said.
const TESTS: &[(Ucx, &str)] = &[
    (Ucx { test: "tag_lat", size: 8, count: 50_000, figure: Figure::Latency }, "< 5"),
    (Ucx { test: "ucp_put_lat", size: 4096, count: 50_000, figure: Figure::Latency }, "< 8"),
    (Ucx { test: "ucp_get", size: 4096, count: 50_000, figure: Figure::Latency }, ""),
    (Ucx { test: "tag_bw", size: 65536, count: 20_000, figure: Figure::Bandwidth }, ""),
    (Ucx { test: "tag_bw", size: 1 << 20, count: 5_000, figure: Figure::Bandwidth }, "half of it"),
    (Ucx { test: "ucp_put_bw", size: 1 << 20, count: 5_000, figure: Figure::Bandwidth }, ""),
];

/// Measures and prints.
pub fn print(stand: &Stand) {
    println!("ucx_perftest between two guests on the stand-in, and between two processes; median of {RUNS} runs\n");
    println!("{:<30}{:>12}{:>12}{:>12}{:>14}", "", "rc_v, ours", "rc_v, C", "posix,cma", "wanted of ours");
    let ways = [Way::Rc(&Provider::Ours), Way::Rc(&Provider::System), Way::SharedMemory];
    for (test, wanted) in TESTS {
        let mut runs = [const { Vec::new() }; 3];
        for _ in 0..RUNS {
            for (runs, way) in runs.iter_mut().zip(&ways) {
                runs.push(test.measure(stand, way));
            }
        }
        let digits = if test.figure == Figure::Latency { 2 } else { 0 };
        let [ours, system, shared] = runs.map(|runs| format!("{:.digits$}", median(runs)));
        println!("{:<30}{ours:>12}{system:>12}{shared:>12}{wanted:>14}", test.title());
    }
    println!();
}
