//! The table of instructions of each hot verb, ours beside the C provider.

use pvrdma_perftest::{OPERATIONS, Situation, instructions};
use pvrdma_tests::{Provider, Stand};

/// Counts and prints.
pub fn print(stand: &Stand) {
    for situation in Situation::ALL {
        let [ours, system] = Provider::BOTH.map(|provider| instructions(stand, &provider, situation));
        println!("Instructions per call, callgrind, {}\n", situation.title());
        println!("{:<36}{:>14}{:>16}{:>8}{:>10}", "", "our provider", "system's (C)", "ratio", "at most");
        for operation in &OPERATIONS {
            if let Some((own, base)) = operation.pair(&ours, &system) {
                let most = operation.at_most.instructions.map_or(String::new(), |most| format!("{most:.2}"));
                println!("{:<36}{own:>14.1}{base:>16.1}{:>8.2}{most:>10}", operation.title, own / base);
            }
        }
        println!();
    }
}
