//! `cargo xtask bench`: the figures of perftest/README.md.

use anyhow::Result;
use pvrdma_perftest::{Line, bare_copy, instructions};
use pvrdma_tests::{Provider, Stand, User};

use crate::{no_arguments, packages, shell};

/// Each figure is the median of this many runs, the providers taking turns.
const RUNS: usize = 5;

const LATENCIES: &[Line] = &[
    Line { tool: "ib_send_lat", size: 8, iterations: 20_000, list: 1 },
    Line { tool: "ib_write_lat", size: 8, iterations: 20_000, list: 1 },
    Line { tool: "ib_read_lat", size: 8, iterations: 20_000, list: 1 },
];

const BANDWIDTHS: &[Line] = &[
    Line { tool: "ib_write_bw", size: 65536, iterations: 20_000, list: 1 },
    Line { tool: "ib_write_bw", size: 65536, iterations: 19_200, list: 16 },
    Line { tool: "ib_write_bw", size: 1 << 20, iterations: 2_000, list: 1 },
];

/// Measures and prints.
pub fn main(arguments: &[String]) -> Result<()> {
    no_arguments(arguments)?;
    packages::install(packages::BENCH)?;
    shell::build_release()?;
    let stand = Stand::new(User::Me);
    let cores = std::thread::available_parallelism()?;
    println!("{cores} cores; two guests on the stand-in; median of {RUNS} runs\n");

    println!("{:<58}{:>14}{:>14}", "", "our provider", "system's (C)");
    for line in LATENCIES {
        let mut runs = [Vec::new(), Vec::new()];
        for _ in 0..RUNS {
            for (runs, provider) in runs.iter_mut().zip(&Provider::BOTH) {
                runs.push(line.measure(&stand, provider));
            }
        }
        let [ours, system] = runs.map(|runs| line.show(median(runs)));
        println!("{:<58}{ours:>14}{system:>14}", line.title());
    }
    for line in BANDWIDTHS {
        bandwidth(line, &stand);
    }

    println!("\nInstructions per call, callgrind\n");
    println!("{:<58}{:>14}{:>14}", "", "our provider", "system's (C)");
    let [ours, system] = Provider::BOTH.map(|provider| instructions(&stand, &provider));
    for ((name, ours), (_, system)) in ours.iter().zip(&system) {
        println!("{name:<58}{ours:>14.1}{system:>14.1}");
    }
    Ok(())
}

/// The copy is measured beside each run: the machine is not equally fast all the time.
fn bandwidth(line: &Line, stand: &Stand) {
    let (mut copies, mut rates, mut ratios) = (Vec::new(), [Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for _ in 0..RUNS {
        for (at, provider) in Provider::BOTH.iter().enumerate() {
            let copy = bare_copy(line.size as usize, line.iterations);
            let rate = line.measure(stand, provider);
            copies.push(copy);
            rates[at].push(rate);
            ratios[at].push(rate / copy);
        }
    }
    let [ours, system] = rates.map(|runs| line.show(median(runs)));
    println!("{:<58}{ours:>14}{system:>14}", line.title());
    let [ours, system] = ratios.map(median);
    let copy = median(copies);
    println!("{:<58}{ours:>14.2}{system:>14.2}", format!("  ratio to a bare copy ({copy:.0} MiB/s)"));
}

fn median(mut runs: Vec<f64>) -> f64 {
    runs.sort_by(f64::total_cmp);
    runs[runs.len() / 2]
}
