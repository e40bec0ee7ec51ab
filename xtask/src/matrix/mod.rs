//! `cargo xtask matrix`: stock programs over providers, places, users, RoCE versions, ways into the kernel and
//! releases of libibverbs, in one table.
//!
//! `rows.rs` says what runs, `column.rs` where, `plan.rs` which of all these cells, `cell.rs` how, and
//! `tests/matrix/expected.txt` what is known to fail.

pub mod cell;
mod column;
mod expected;
mod pairwise;
mod plan;
pub mod rows;
mod table;

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::{debs, packages, shell};
use cell::Ground;
use column::Column;
use expected::Expected;
use plan::Plan;
use rows::{ROWS, Row};
use table::{BAND, Verdict};

const USAGE: &str = "\
usage: cargo xtask matrix [--full] [--rows TEXT] [--columns WORDS] [--list]

Runs stock RDMA programs on the stand-in, two processes each, and prints one table.

  --full           every combination (40 minutes); without it, columns that have each pair of circumstances
  --rows TEXT      only rows that contain the text, or the one that is exactly it
  --columns WORDS  every column that all these words describe, such as 'c two v1'
  --list           print the rows and columns instead

A cell is ok, FAIL, xfail (it fails, and tests/matrix/expected.txt says why) or XPASS (listed there, and it passes).
";

#[derive(Default)]
struct Options {
    full: bool,
    list: bool,
    rows: Option<String>,
    columns: Option<Vec<String>>,
}

/// What spoils the run: a cell, or a case of one.
struct Bad {
    what: String,
    line: &'static str,
    column: Column,
    text: String,
}

/// Entry of the subcommand. Fails when a cell is FAIL or XPASS.
pub fn main(arguments: &[String]) -> Result<()> {
    let Some(options) = parse(arguments)? else {
        print!("{USAGE}");
        return Ok(());
    };
    // SAFETY: geteuid has no preconditions.
    let root = unsafe { libc::geteuid() == 0 };
    let rows = chosen_rows(&options)?;
    let plan = plan(&options, &rows, root)?;
    if options.list {
        list(&rows, &plan);
        return Ok(());
    }
    let expected = fs::read_to_string(shell::workspace().join(expected::FILE)).context(expected::FILE)?;
    let expected = expected::parse(&expected, ROWS, &Column::all(true))?;

    packages::install(packages::MATRIX)?;
    shell::build_release()?;
    if !root {
        pvrdma_tests::cannot_run("the matrix as root", "it was started by an ordinary user");
    }
    let ground = Ground::new(root, &debs::forky()?);
    let start = Instant::now();
    let mut tally = Tally::default();
    let width = rows.iter().map(|row| row.line.len()).max().unwrap_or(0) + 2;
    for (band, columns) in plan.columns.chunks(BAND).enumerate() {
        table::header(columns, band * BAND, width);
        for (number, row) in rows.iter().enumerate() {
            let is_run: Vec<_> = (0..columns.len()).map(|place| plan.has(number, band * BAND + place)).collect();
            if !is_run.contains(&true) {
                continue;
            }
            table::row(row, width);
            for (column, is_run) in columns.iter().zip(is_run) {
                table::cell(is_run.then(|| tally.run(&ground, &expected, row, column)));
            }
            table::row_end();
        }
    }
    tally.report(plan.len(), start.elapsed())
}

/// Why a row is known to fail between two guests, if it is.
pub fn known(row: &Row, is_ours: bool) -> Result<Option<String>> {
    let columns = Column::all(true);
    let list = fs::read_to_string(shell::workspace().join(expected::FILE)).context(expected::FILE)?;
    let expected = expected::parse(&list, ROWS, &columns)?;
    let words = column::words(if is_ours { "ours two" } else { "c two" })?;
    let mut columns = columns.iter().filter(|column| column.is(&words) && !column.is_forky());
    Ok(columns.find_map(|column| expected::find(&expected, row.line, column)).map(|known| known.reason.clone()))
}

/// Counts, reasons that were met, and cells that spoil the run.
#[derive(Default)]
struct Tally {
    passed: usize,
    reasons: std::collections::BTreeMap<String, usize>,
    bad: Vec<Bad>,
}

impl Tally {
    fn run(
        &mut self,
        ground: &Ground,
        expected: &[Expected],
        row: &'static Row,
        column: &Column,
    ) -> (Verdict, Duration) {
        let start = Instant::now();
        let results = ground.run(row, column);
        let time = start.elapsed();
        let mut verdict = Verdict::Pass;
        let mut spoilt = |what: String, text| self.bad.push(Bad { what, line: row.line, column: *column, text });
        let names: Vec<&str> = results.iter().map(|(what, _)| &**what).collect();
        for what in expected::stale(expected, row, &names) {
            verdict = verdict.max(Verdict::Fail);
            spoilt(what.to_owned(), format!("there is no such case; take it out of {}", expected::FILE));
        }
        for (what, result) in results {
            let known = expected::find(expected, &what, column);
            let its = Verdict::new(result.is_ok(), known.is_some());
            verdict = verdict.max(its);
            if its.is_bad() {
                let text = result.err().unwrap_or_else(|| format!("it passes; take it out of {}", expected::FILE));
                spoilt(what, text);
            } else if let Some(known) = known {
                *self.reasons.entry(format!("{what}: {}", known.reason)).or_default() += 1;
            }
        }
        self.passed += usize::from(verdict == Verdict::Pass);
        (verdict, time)
    }

    fn report(self, cells: usize, time: Duration) -> Result<()> {
        println!("\n{cells} cells in {} s: {} ok", time.as_secs(), self.passed);
        for (reason, count) in &self.reasons {
            println!("{count} xfail  {reason}");
        }
        for bad in &self.bad {
            println!("\n=== {} | {}", bad.what, bad.column.words().join(" "));
            // The machine's list of providers is for its own libibverbs; forky's complains about each.
            let noise = |line: &&str| line.starts_with("libibverbs: Warning: couldn't load driver 'lib");
            bad.text.lines().filter(|line| !noise(line)).for_each(|line| println!("{line}"));
        }
        if self.bad.is_empty() {
            return Ok(());
        }
        println!("\nAgain, one at a time:");
        let mut again: Vec<_> = self.bad.iter().map(|bad| (bad.line, bad.column)).collect();
        again.dedup();
        for (line, column) in &again {
            println!("  cargo xtask matrix --rows '{line}' --columns '{}'", column.words().join(" "));
        }
        bail!("{} of {cells} cells failed", again.len())
    }
}

fn plan(options: &Options, rows: &[&Row], root: bool) -> Result<Plan> {
    let all = Column::all(root);
    let plan = match &options.columns {
        Some(words) => Plan::every(rows, all.into_iter().filter(|column| column.is(words)).collect()),
        None if options.full => Plan::full(rows, &all),
        None => Plan::short(rows, &all),
    };
    ensure!(plan.len() > 0, "there is no such cell");
    Ok(plan)
}

fn chosen_rows(options: &Options) -> Result<Vec<&'static Row>> {
    let Some(text) = &options.rows else { return Ok(ROWS.iter().collect()) };
    let exact: Vec<_> = ROWS.iter().filter(|row| row.line == *text).collect();
    let rows = if exact.is_empty() { ROWS.iter().filter(|row| row.line.contains(text)).collect() } else { exact };
    ensure!(!rows.is_empty(), "no row contains {text:?}");
    Ok(rows)
}

fn list(rows: &[&Row], plan: &Plan) {
    for row in rows {
        println!("{}", row.line);
    }
    println!();
    for column in &plan.columns {
        println!("{}", column.words().join(" "));
    }
    println!("\n{} cells", plan.len());
}

fn parse(arguments: &[String]) -> Result<Option<Options>> {
    let mut options = Options::default();
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} needs a value\n{USAGE}"));
        match argument.as_str() {
            "--full" => options.full = true,
            "--list" => options.list = true,
            "--rows" => options.rows = Some(value()?.clone()),
            "--columns" => options.columns = Some(column::words(value()?)?),
            "--help" | "-h" => return Ok(None),
            other => bail!("unexpected argument {other}\n{USAGE}"),
        }
    }
    Ok(Some(options))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(words: &[&str]) -> Result<Option<Options>> {
        parse(&shell::owned(words))
    }

    #[test]
    fn rows_are_chosen_by_text_or_name() {
        let count = |text: &str| chosen_rows(&options(&["--rows", text]).unwrap().unwrap()).map(|rows| rows.len());
        assert_eq!(count("ib_send_bw -b").unwrap(), 1);
        assert!(count("ib_send").unwrap() > 10);
        assert!(count("ib_sned").is_err());
    }

    #[test]
    fn columns_that_are_named_are_all_run() {
        let chosen = options(&["--columns", "c two v1 root ioctl"]).unwrap().unwrap();
        assert_eq!(plan(&chosen, &[&ROWS[1]], true).unwrap().len(), 2);
        let none = options(&["--columns", "c ours"]).unwrap().unwrap();
        assert!(plan(&none, &[&ROWS[1]], true).is_err());
    }

    #[test]
    fn mistakes_are_refused() {
        assert!(options(&["--fast"]).is_err());
        assert!(options(&["--rows"]).is_err());
        assert!(options(&["--columns", "mine"]).is_err());
        assert!(options(&["--help"]).unwrap().is_none());
    }
}
