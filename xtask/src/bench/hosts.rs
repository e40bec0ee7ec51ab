//! The table of guests on two hosts, beside a bare socket. The hosts are on one machine's loopback device.

use std::fs;

use pvrdma_perftest::socket::{Waiting, half_trip, stream};
use pvrdma_perftest::{Line, median};
use pvrdma_tests::{Host, Hosts, Provider, Stand, Trust, User};

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

/// A way between two hosts.
struct Way {
    name: &'static str,
    hosts: Hosts,
    /// What programs need to go it.
    options: &'static [&'static str],
    /// Those who carry requests are guests of one more `pvrdma run`, whose devices are the adapters.
    nested: bool,
}

impl Way {
    /// Where two programs spin in their memory, all others get a core when the scheduler takes one away from them, and
    /// then the figure is that of its slices.
    fn says_something(&self, line: &Line) -> bool {
        !self.nested || line.tool.ends_with("_bw") || line.tool == "ib_send_lat"
    }

    fn measure(&self, line: &Line) -> f64 {
        line.measure_between([self.hosts.host(1), self.hosts.host(2)], &Provider::Ours, self.options)
    }
}

/// Measures and prints.
pub fn print() {
    let network = Stand::new(User::Me);
    let by_adapters = Hosts::by_adapters(Trust::Plain, &network, &[]);
    let ways = [
        Way { name: "plain", hosts: Hosts::linked(2, Trust::Plain), options: &[], nested: false },
        Way { name: "TLS 1.3", hosts: Hosts::linked(2, Trust::Certificates), options: &[], nested: false },
        Way { name: "RoCE, 4096", hosts: Hosts::on_wire(2, None), options: &["-x", "2"], nested: false },
        Way { name: "RoCE, 1024", hosts: Hosts::on_wire(2, None), options: &["-x", "2", "-m", "1024"], nested: false },
        Way { name: "adapters", hosts: by_adapters, options: &[], nested: true },
    ];
    println!("Two guests on two hosts of one machine; RoCE by its path MTU; median of {RUNS} runs\n");
    print!("{:<58}", "");
    ways.iter().for_each(|way| print!("{:>12}", way.name));
    println!("{:>14}{:>16}", "bare socket", "ratio, plain");
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
    for way in ways.iter().filter(|way| !way.nested) {
        let spent = processor_time(way);
        println!("{}: {:.2} and {:.2} s of processor for each GiB that was written", way.name, spent[0], spent[1]);
    }
    println!();
    ways.into_iter().for_each(|way| way.hosts.end());
}

fn row(line: &Line, ways: &[Way], bare: impl Fn() -> f64) {
    let mut runs: Vec<Vec<f64>> = ways.iter().map(|_| Vec::new()).collect();
    let (mut bares, mut ratios) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let yardstick = bare();
        for (runs, way) in runs.iter_mut().zip(ways) {
            runs.extend(way.says_something(line).then(|| way.measure(line)));
        }
        bares.push(yardstick);
        ratios.push(runs[0].last().copied().unwrap_or(f64::NAN) / yardstick);
    }
    print!("{:<58}", line.title());
    for runs in runs {
        let shown = if runs.is_empty() { String::new() } else { line.show(median(runs)) };
        print!("{shown:>12}");
    }
    match bares.iter().any(|bare| bare.is_nan()) {
        true => println!(),
        false => println!("{:>14}{:>16.2}", line.show(median(bares)), median(ratios)),
    }
}

/// What both gateways spend on a GiB in messages of 1 MiB.
fn processor_time(way: &Way) -> [f64; 2] {
    let line = Line::bandwidth("ib_write_bw", &[], 1 << 20, 2_048);
    let both = [way.hosts.host(1), way.hosts.host(2)];
    let before = both.map(spent);
    way.measure(&line);
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
