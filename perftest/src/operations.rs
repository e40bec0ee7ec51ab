//! The hot verbs, each called a known way, and how dear they may be beside the C provider's.
//!
//! One table for all that is said of them: counting ([`crate::instructions()`]), timing ([`crate::frozen`]), the test
//! that pins the counts, and the README. The calls themselves are in `c/frozen.c`.

use std::collections::HashMap;

/// A figure for each operation that a provider has, by its name in `c/frozen.c`.
pub type Figures = HashMap<String, f64>;

/// One of the calls of `c/frozen.c`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Operation {
    /// Its name there.
    pub name: &'static str,
    /// What it is, in words. Times are those of one request or completion, counts those of the whole.
    pub title: &'static str,
    /// What a program does instead where the provider does not have it.
    pub instead: Option<&'static str>,
    /// The most it may take.
    pub at_most: AtMost,
}

/// Ratios to the C provider; `None`: shown and not judged.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AtMost {
    /// Instructions.
    pub instructions: Option<f64>,
    /// Time in a program with one thread.
    pub one: Option<f64>,
    /// Time in a program with another thread.
    pub two: Option<f64>,
}

const fn operation(name: &'static str, title: &'static str, at_most: AtMost) -> Operation {
    Operation { name, title, instead: None, at_most }
}

const fn instead(of: &'static str, operation: Operation) -> Operation {
    Operation { instead: Some(of), ..operation }
}

const fn at_most(instructions: f64, one: f64, two: f64) -> AtMost {
    AtMost { instructions: Some(instructions), one: Some(one), two: Some(two) }
}

const fn count(instructions: f64) -> AtMost {
    AtMost { instructions: Some(instructions), one: None, two: None }
}

const SHOWN: AtMost = AtMost { instructions: None, one: None, two: None };

/// All of them, in the order they are shown.
pub const OPERATIONS: [Operation; 22] = [
    operation("post_send_1", "post_send, one WRITE", at_most(0.42, 0.45, 0.90)),
    operation("post_send_fresh", "post_send, one, just written", SHOWN),
    operation("post_send_16", "post_send, a list of 16", at_most(0.42, 0.80, 0.80)),
    operation("post_send_sge_2", "post_send, 2 SGEs", count(0.55)),
    operation("post_send_sge_4", "post_send, 4 SGEs", count(0.55)),
    operation("post_send_ud", "post_send, one datagram", count(0.55)),
    instead("post_send_1", operation("post_send_inline", "post_send, 64 bytes inline", count(0.80))),
    operation("post_recv_1", "post_recv, one", at_most(0.30, 0.45, 0.80)),
    operation("post_recv_16", "post_recv, a list of 16", at_most(0.30, 0.80, 0.80)),
    operation("post_srq_recv_1", "post_srq_recv, one", count(0.40)),
    operation("post_srq_recv_16", "post_srq_recv, a list of 16", count(0.35)),
    operation("poll_cq_1", "poll_cq, one asked for, one there", at_most(0.47, 0.45, 0.50)),
    operation("poll_cq_of_many", "poll_cq, one asked for, many there", count(0.52)),
    operation("poll_cq_16", "poll_cq, 16 completions", at_most(0.46, 0.20, 0.20)),
    operation("poll_cq_rung", "poll_cq, empty after a completion", at_most(0.50, 0.60, 0.95)),
    operation("poll_cq_rationed", "poll_cq, empty many times", count(0.55)),
    instead("post_send_1", operation("wr_1", "ibv_wr_*, one WRITE", count(0.42))),
    instead("post_send_16", operation("wr_16", "ibv_wr_*, a batch of 16", count(0.40))),
    instead("poll_cq_16", operation("cq_ex_16", "ibv_start_poll to end_poll, 16", count(0.45))),
    instead("post_send_1", operation("direct_1", "direct verbs, one WRITE", SHOWN)),
    instead("post_send_16", operation("direct_16", "direct verbs, 16 at once", SHOWN)),
    instead("poll_cq_16", operation("direct_poll_16", "direct verbs, 16 completions", SHOWN)),
];

impl Operation {
    /// The figure of one provider, and what it is compared with of another: the same operation, or what is done
    /// instead.
    pub fn pair(&self, own: &Figures, base: &Figures) -> Option<(f64, f64)> {
        let base = base.get(self.name).or_else(|| base.get(self.instead?))?;
        Some((*own.get(self.name)?, *base))
    }
}

/// What the process that calls them is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Situation {
    /// It has one thread.
    One,
    /// It has another one, which sleeps.
    Two,
    /// It has another one, and all queues are of a thread domain, where the provider has such.
    Domain,
}

impl Situation {
    /// All three.
    pub const ALL: [Situation; 3] = [Situation::One, Situation::Two, Situation::Domain];

    /// What `c/frozen.c` calls it.
    pub fn name(self) -> &'static str {
        match self {
            Situation::One => "one",
            Situation::Two => "two",
            Situation::Domain => "domain",
        }
    }

    /// In words.
    pub fn title(self) -> &'static str {
        match self {
            Situation::One => "one thread",
            Situation::Two => "a second thread sleeps",
            Situation::Domain => "thread domain",
        }
    }

    /// The most an operation may take of the C provider's time.
    pub fn at_most(self, operation: &Operation) -> Option<f64> {
        match self {
            // A thread domain is never slower than a program that has no other thread.
            Situation::One | Situation::Domain => operation.at_most.one,
            Situation::Two => operation.at_most.two,
        }
    }
}

/// Reads what `c/frozen.c` prints: names and numbers.
pub(crate) fn figures(text: &str) -> Figures {
    text.lines()
        .map(|line| {
            let number = line.split_once(' ').and_then(|(name, number)| Some((name, number.parse().ok()?)));
            let (name, number) = number.unwrap_or_else(|| panic!("{line:?} is no name and number"));
            (name.to_owned(), number)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_provider_does_not_have_is_compared_with_what_is_done_instead() {
        let ours = figures("post_send_1 10\nwr_1 12.5\n");
        let system = figures("post_send_1 20\n");
        let wr = OPERATIONS.iter().find(|operation| operation.name == "wr_1").expect("it is there");
        assert_eq!(OPERATIONS[0].pair(&ours, &system), Some((10.0, 20.0)));
        assert_eq!(wr.pair(&ours, &system), Some((12.5, 20.0)));
        assert_eq!(wr.pair(&ours, &ours), Some((12.5, 12.5)));
        assert_eq!(wr.pair(&system, &ours), None);
    }

    #[test]
    #[should_panic(expected = "is no name and number")]
    fn words_are_no_figures() {
        figures("post_send_1 soon");
    }
}
