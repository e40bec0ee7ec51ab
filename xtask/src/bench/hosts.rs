//! The table of guests on two hosts, beside a bare socket. The hosts are on one machine's loopback device.

use std::fs;

use pvrdma_perftest::socket::{Waiting, half_trip, stream};
use pvrdma_perftest::{Line, median};
use pvrdma_tests::{Host, Hosts, Provider, Trust};

use super::programs::LATENCIES;

/// Each figure is the median of this many runs, all that stands in a row taking turns.
const RUNS: usize = 5;

const RATES: &[Line] = &[Line::rate("ib_send_bw", &[]), Line::rate("ib_write_bw", &[])];

const BANDWIDTHS: &[Line] = &[
    Line::bandwidth("ib_send_bw", &[], 65536, 10_000),
    Line::bandwidth("ib_write_bw", &[], 65536, 10_000),
    Line::bandwidth("ib_write_bw", &[], 1 << 20, 1_000),
    Line::bandwidth("ib_read_bw", &[], 1 << 20, 1_000),
];

/// Measures and prints.
pub fn print() {
    let ways = [Trust::Plain, Trust::Certificates].map(|trust| Hosts::linked(2, trust));
    println!("Two guests on two hosts of one machine; median of {RUNS} runs\n");
    println!("{:<58}{:>12}{:>12}{:>14}{:>16}", "", "plain", "TLS 1.3", "bare socket", "ratio, plain");
    for line in LATENCIES {
        row(line, &ways, || half_trip(8, 20_000, Waiting::Awake));
    }
    for line in RATES {
        row(line, &ways, || f64::NAN);
    }
    for line in BANDWIDTHS {
        let (size, count) = (line.size as usize, line.iterations as usize);
        row(line, &ways, || stream(size, count));
    }
    let asleep = median((0..RUNS).map(|_| half_trip(8, 5_000, Waiting::Asleep)).collect());
    println!("\nhalf a round trip of 8 bytes whose ends sleep: {asleep:.1} us");
    for (of, hosts) in ["plain", "TLS 1.3"].iter().zip(&ways) {
        let spent = processor_time(hosts);
        println!("{of}: {:.2} and {:.2} s of processor for each GiB that was written", spent[0], spent[1]);
    }
    println!();
    ways.into_iter().for_each(Hosts::end);
}

fn row(line: &Line, ways: &[Hosts; 2], bare: impl Fn() -> f64) {
    let (mut runs, mut bares, mut ratios) = ([Vec::new(), Vec::new()], Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let yardstick = bare();
        for (runs, hosts) in runs.iter_mut().zip(ways) {
            runs.push(line.measure_between([hosts.host(1), hosts.host(2)], &Provider::Ours));
        }
        bares.push(yardstick);
        ratios.push(runs[0].last().copied().unwrap_or(f64::NAN) / yardstick);
    }
    let [plain, tls] = runs.map(|runs| line.show(median(runs)));
    if bares.iter().any(|bare| bare.is_nan()) {
        println!("{:<58}{plain:>12}{tls:>12}", line.title());
        return;
    }
    let (bare, ratio) = (line.show(median(bares)), median(ratios));
    println!("{:<58}{plain:>12}{tls:>12}{bare:>14}{ratio:>16.2}", line.title());
}

/// What both gateways spend on a GiB in messages of 1 MiB.
fn processor_time(hosts: &Hosts) -> [f64; 2] {
    let line = Line::bandwidth("ib_write_bw", &[], 1 << 20, 2_048);
    let both = [hosts.host(1), hosts.host(2)];
    let before = both.map(spent);
    line.measure_between(both, &Provider::Ours);
    let after = both.map(spent);
    [0, 1].map(|host| (after[host] - before[host]) / 2.0)
}

/// Seconds that the gateway of a host has run (proc(5): stat, fields 14 and 15).
fn spent(host: &Host) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", host.gateway().pid())).expect("it runs");
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    // USER_HZ is 100 on every x86-64 Linux.
    fields.filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}
