//! The table of what a doorbell without a trap gives the stand-in: our provider, both ways, taking turns.

use pvrdma_perftest::{Figure, Line, Spread, frozen, median};
use pvrdma_tests::{Doorbells, Provider, Stand};

/// Pairs of runs.
const RUNS: usize = 11;

/// Programs whose time is mostly that of the doorbell, and the ratio that is at most, or for more is better at least,
/// to be.
const LINES: &[(Line, f64)] = &[
    (Line::latency("ib_send_lat", &[]), 0.60),
    (Line::latency("ib_write_lat", &[]), 0.60),
    (Line::rate("ib_write_bw", &[]), 1.60),
    (Line { figure: Figure::Peak, ..Line::bandwidth("ib_write_bw", &[], 65536, 20_000) }, 1.25),
];

/// Measures and prints.
pub fn print(stand: &Stand) {
    println!("A doorbell without a trap, our provider on the stand-in; median of {RUNS} pairs of runs\n");
    println!("{:<58}{:>10}{:>10}{:>22}{:>10}", "", "trap", "direct", "ratio", "wanted");
    row(
        "doorbell alone, device frozen, us",
        "<= 0.25",
        |us| format!("{us:.3}"),
        |doorbells| frozen::doorbell(stand, &Provider::Ours, doorbells) / 1000.0,
    );
    for (line, wanted) in LINES {
        let less = line.figure == Figure::Latency;
        let wanted = format!("{} {wanted:.2}", if less { "<=" } else { ">=" });
        row(
            &line.title(),
            &wanted,
            |figure| line.show(figure),
            |doorbells| line.measure(stand, &Provider::Ours, doorbells),
        );
    }
    println!();
}

fn row(title: &str, wanted: &str, show: impl Fn(f64) -> String, measure: impl Fn(Doorbells) -> f64) {
    let pair = |run: usize| {
        // Every other pair the other way round.
        if run.is_multiple_of(2) {
            let trapped = measure(Doorbells::Trapped);
            (trapped, measure(Doorbells::Usual))
        } else {
            let direct = measure(Doorbells::Usual);
            (measure(Doorbells::Trapped), direct)
        }
    };
    let pairs: Vec<(f64, f64)> = (0..RUNS).map(pair).collect();
    let ratio = Spread::of(pairs.iter().map(|(trapped, direct)| direct / trapped).collect()).expect("there was a run");
    let (trapped, direct) = pairs.into_iter().unzip();
    let [trapped, direct] = [trapped, direct].map(|figures: Vec<f64>| show(median(figures)));
    let ratio = format!("{:.2} ({:.2} to {:.2})", ratio.median, ratio.low, ratio.high);
    println!("{title:<58}{trapped:>10}{direct:>10}{ratio:>22}{wanted:>10}");
}
