//! Time per operation on a device that stands still: `c/frozen.c` run with two providers and more, taking turns.
//!
//! A process gives the median of many batches, each between two reads of the processor's counter. What one process
//! says is good to a per cent or two, but the next one lies elsewhere in memory, and the machine has other things to
//! do: so each round runs all providers one after the other, ratios are those of a round, and what is shown is their
//! median. The base comes twice in each round: what it seems to differ from itself is the noise.

use std::path::PathBuf;

use pvrdma_tests::{Doorbells, Job, Provider, Stand, c_program, workspace};

use crate::operations::{Figures, OPERATIONS, Operation, Situation, figures};
use crate::spread::{Spread, median};

/// What is measured and how long.
pub struct Plan {
    /// What the others are compared with.
    pub base: Provider,
    /// The others.
    pub providers: Vec<Provider>,
    /// Rounds, each with all providers.
    pub runs: usize,
    /// Batches of each operation in a process.
    pub batches: usize,
}

/// One operation in one situation.
pub struct Row {
    /// What is done.
    pub operation: &'static Operation,
    /// In what process.
    pub situation: Situation,
    /// Nanoseconds of the base, for the operation or for what is done instead.
    pub base: f64,
    /// The base beside itself.
    pub noise: Spread,
    /// Of each provider, where it has the operation: nanoseconds, and the ratio to the base.
    pub others: Vec<Option<(f64, Spread)>>,
}

impl Plan {
    /// Measures it all. `tell` hears of each round before it starts.
    pub fn measure(&self, stand: &Stand, tell: impl Fn(Situation, usize)) -> Vec<Row> {
        let mut rows = Vec::new();
        for situation in Situation::ALL {
            let rounds: Vec<Round> = (0..self.runs)
                .map(|run| {
                    tell(situation, run);
                    self.round(stand, situation, run % 2 == 1)
                })
                .collect();
            rows.extend(OPERATIONS.iter().filter_map(|operation| self.row(operation, situation, &rounds)));
        }
        rows
    }

    /// All providers once. Every other round goes backwards, so that what grows or fades with time harms nobody.
    fn round(&self, stand: &Stand, situation: Situation, backwards: bool) -> Round {
        let all: Vec<&Provider> = [&self.base].into_iter().chain(&self.providers).chain([&self.base]).collect();
        let run = |provider: &&Provider| time(stand, provider, situation, self.batches);
        let mut figures: Vec<Figures> =
            if backwards { all.iter().rev().map(run).collect() } else { all.iter().map(run).collect() };
        if backwards {
            figures.reverse();
        }
        Round(figures)
    }

    fn row(&self, operation: &'static Operation, situation: Situation, rounds: &[Round]) -> Option<Row> {
        let pairs = |nth: usize| -> Vec<(f64, f64)> {
            rounds.iter().filter_map(|Round(figures)| operation.pair(&figures[nth], &figures[0])).collect()
        };
        let ratios = |pairs: &[(f64, f64)]| Spread::of(pairs.iter().map(|(own, base)| own / base).collect());
        let others: Vec<_> = (1..=self.providers.len())
            .map(|nth| {
                let pairs = pairs(nth);
                Some((Spread::of(pairs.iter().map(|(own, _)| *own).collect())?.median, ratios(&pairs)?))
            })
            .collect();
        // What is done instead is the same on both sides of the comparison of the base with itself.
        let again = |Round(figures): &Round| {
            let find = |of: &Figures| of.get(operation.name).or_else(|| of.get(operation.instead?)).copied();
            Some((find(figures.last()?)?, find(&figures[0])?))
        };
        let again: Vec<(f64, f64)> = rounds.iter().filter_map(again).collect();
        let noise = ratios(&again)?;
        let base = median(again.iter().map(|(_, base)| *base).collect());
        Some(Row { operation, situation, base, noise, others })
    }
}

/// What one round gave: the base, the others, the base again.
struct Round(Vec<Figures>);

/// Nanoseconds of each operation, from one process.
fn time(stand: &Stand, provider: &Provider, situation: Situation, batches: usize) -> Figures {
    let program = program(stand);
    figures(&job(stand, program, provider).args(["time", situation.name(), &batches.to_string()]).ok())
}

/// Nanoseconds of a doorbell that the device does not hear: the way to it alone.
pub fn doorbell(stand: &Stand, provider: &Provider, doorbells: Doorbells) -> f64 {
    let program = program(stand);
    let job = stand.job(program).provider(provider).doorbells(doorbells).env("PVRDMA_HOOKS", "1");
    let figures = figures(&job.args(["doorbell", "1000"]).ok());
    *figures.get("doorbell").expect("the program says what it measured")
}

/// The compiled program, in the stand's folder.
pub(crate) fn program(stand: &Stand) -> PathBuf {
    let include = format!("-I{}", workspace().join("include").display());
    stand.copy(&c_program("perftest/c/frozen.c", &[&include]))
}

/// A program that may play the device. Its doorbells are to go nowhere, and so they are not to know a way of their own.
pub(crate) fn job<'a>(stand: &'a Stand, program: impl AsRef<std::ffi::OsStr>, provider: &Provider) -> Job<'a> {
    stand.job(program).provider(provider).doorbells(Doorbells::Trapped).env("PVRDMA_HOOKS", "1")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(text: [&str; 3]) -> Round {
        Round(text.iter().map(|text| figures(text)).collect())
    }

    fn row(name: &str, rounds: &[Round]) -> Option<Row> {
        let plan = Plan { base: Provider::System, providers: vec![Provider::Ours], runs: rounds.len(), batches: 1 };
        let operation = OPERATIONS.iter().find(|operation| operation.name == name).expect("an operation");
        plan.row(operation, Situation::One, rounds)
    }

    #[test]
    fn ratios_are_those_of_a_round() {
        // The machine is ten times slower in the second round, and twice in the third.
        let rounds = [
            round(["post_send_1 10", "post_send_1 5", "post_send_1 11"]),
            round(["post_send_1 100", "post_send_1 50", "post_send_1 100"]),
            round(["post_send_1 20", "post_send_1 10", "post_send_1 18"]),
        ];
        let row = row("post_send_1", &rounds).expect("a row");
        assert_eq!((row.base, row.noise.median), (20.0, 1.0));
        let (ns, ratio) = row.others[0].expect("ours");
        assert_eq!((ns, ratio), (10.0, Spread { low: 0.5, median: 0.5, high: 0.5 }));
    }

    #[test]
    fn what_only_one_has_is_beside_what_the_base_does_instead() {
        let rounds = [round(["post_send_1 10", "wr_1 4\npost_send_1 5", "post_send_1 12"])];
        let row = row("wr_1", &rounds).expect("a row");
        assert_eq!((row.base, row.noise.median), (10.0, 1.2));
        assert_eq!(row.others[0].map(|(ns, ratio)| (ns, ratio.median)), Some((4.0, 0.4)));
    }

    #[test]
    fn what_a_provider_lacks_has_no_figure() {
        let rounds = [round(["post_send_inline 10", "post_send_1 5", "post_send_inline 10"])];
        assert_eq!(row("post_send_inline", &rounds).expect("a row").others, [None]);
        assert!(row("poll_cq_1", &rounds).is_none());
    }
}
