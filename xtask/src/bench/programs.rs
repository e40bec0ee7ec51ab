//! The tables of stock perftest between two guests, ours beside the C provider.

use pvrdma_perftest::{Line, bare_copy, median};
use pvrdma_tests::{Doorbells, Provider, Stand};

/// Each figure is the median of this many runs, the providers taking turns.
const RUNS: usize = 11;

/// One of each operation, at 8 bytes.
pub const LATENCIES: &[Line] = &[
    Line::latency("ib_send_lat", &[]),
    Line::latency("ib_send_lat", &["-c", "UD"]),
    Line::latency("ib_write_lat", &[]),
    Line::latency("ib_read_lat", &[]),
    Line::latency("ib_atomic_lat", &["-A", "FETCH_AND_ADD"]),
    Line::latency("ib_atomic_lat", &["-A", "CMP_AND_SWAP"]),
];

const RATES: &[Line] = &[
    Line::rate("ib_send_bw", &[]),
    // A receive for each: a datagram that finds none is lost, and perftest waits for it.
    Line { iterations: 14_400, ..Line::rate("ib_send_bw", &["-c", "UD", "-r", "15000"]) },
    Line::rate("ib_send_bw", &["--use-srq"]),
    Line::rate("ib_write_bw", &[]),
    Line::rate("ib_write_bw", &["-l", "16"]),
    Line::rate("ib_read_bw", &[]),
    Line::rate("ib_atomic_bw", &["-A", "FETCH_AND_ADD"]),
];

const BANDWIDTHS: &[Line] = &[
    Line::bandwidth("ib_send_bw", &[], 65536, 20_000),
    Line::bandwidth("ib_write_bw", &[], 65536, 20_000),
    Line::bandwidth("ib_write_bw", &["-l", "16"], 65536, 19_200),
    Line::bandwidth("ib_write_bw", &[], 1 << 20, 2_000),
    Line::bandwidth("ib_read_bw", &[], 65536, 20_000),
];

/// Measures and prints.
pub fn print(stand: &Stand) {
    println!("Two guests on the stand-in, every doorbell trapped; median of {RUNS} runs\n");
    println!("{:<58}{:>14}{:>14}", "", "our provider", "system's (C)");
    for line in LATENCIES.iter().chain(RATES) {
        let mut runs = [Vec::new(), Vec::new()];
        for _ in 0..RUNS {
            for (runs, provider) in runs.iter_mut().zip(&Provider::BOTH) {
                runs.push(line.measure(stand, provider, Doorbells::Trapped));
            }
        }
        let [ours, system] = runs.map(|runs| line.show(median(runs)));
        println!("{:<58}{ours:>14}{system:>14}", line.title());
    }
    for line in BANDWIDTHS {
        bandwidth(line, stand);
    }
    println!();
}

/// The copy is measured beside each run: the machine is not equally fast all the time.
fn bandwidth(line: &Line, stand: &Stand) {
    let (mut copies, mut rates, mut ratios) = (Vec::new(), [Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for _ in 0..RUNS {
        for (at, provider) in Provider::BOTH.iter().enumerate() {
            let copy = bare_copy(line.size as usize, line.iterations);
            let rate = line.measure(stand, provider, Doorbells::Trapped);
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
