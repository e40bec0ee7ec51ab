//! The table, printed cell by cell while it is made.

use std::io::Write;
use std::time::Duration;

use super::column::Column;
use super::rows::Row;

/// So many columns side by side; the next ones come below.
pub const BAND: usize = 12;
const CELL: usize = 11;

/// What a cell shows; of several cases the last in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    Pass,
    /// It failed and the list says so.
    ExpectedFailure,
    /// It passed and the list says it fails.
    UnexpectedPass,
    Fail,
}

impl Verdict {
    pub fn new(passed: bool, expected_to_fail: bool) -> Verdict {
        match (passed, expected_to_fail) {
            (true, false) => Verdict::Pass,
            (false, false) => Verdict::Fail,
            (false, true) => Verdict::ExpectedFailure,
            (true, true) => Verdict::UnexpectedPass,
        }
    }

    /// Whether the run as a whole fails by it.
    pub fn is_bad(self) -> bool {
        matches!(self, Verdict::Fail | Verdict::UnexpectedPass)
    }

    fn word(self) -> &'static str {
        match self {
            Verdict::Pass => "ok",
            Verdict::Fail => "FAIL",
            Verdict::ExpectedFailure => "xfail",
            Verdict::UnexpectedPass => "XPASS",
        }
    }
}

/// Says what the columns of a band are; `first` is the number of its first column.
pub fn header(columns: &[Column], first: usize, width: usize) {
    println!();
    for (place, column) in columns.iter().enumerate() {
        println!("{:>5}  {}", first + place + 1, column.words().join(" "));
    }
    print!("\n{:width$}", "program, seconds");
    for place in 0..columns.len() {
        print!("{:>CELL$}", first + place + 1);
    }
    println!();
}

/// Begins a row.
pub fn row(row: &Row, width: usize) {
    print!("{:width$}", row.line);
    flush();
}

/// A cell; `None` was not run.
pub fn cell(outcome: Option<(Verdict, Duration)>) {
    match outcome {
        Some((verdict, time)) => print!("{:>CELL$}", format!("{} {:.1}", verdict.word(), time.as_secs_f64())),
        None => print!("{:>CELL$}", "-"),
    }
    flush();
}

/// Ends a row.
pub fn row_end() {
    println!();
}

/// Whoever watches sees each cell when it is done. That nobody watches is no reason to stop.
fn flush() {
    let _ = std::io::stdout().flush();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_fails_by_surprises_of_both_kinds() {
        let bad = |passed, listed| Verdict::new(passed, listed).is_bad();
        assert_eq!(
            [bad(true, false), bad(false, true), bad(false, false), bad(true, true)],
            [false, false, true, true]
        );
    }
}
