//! What is known to fail and why: `tests/matrix/expected.txt`.

use anyhow::{Context, Result, ensure};

use super::column::{self, Column};
use super::rows::{Kind, Row};

/// The file below the workspace.
pub const FILE: &str = "tests/matrix/expected.txt";

/// A line of the file.
#[derive(Debug)]
pub struct Expected {
    words: Vec<String>,
    /// A row's line, or `PROGRAM CASE`.
    what: String,
    /// Why it fails.
    pub reason: String,
}

/// Reads the list. A line that speaks of no row or of no column is a mistake.
pub fn parse(text: &str, rows: &[Row], columns: &[Column]) -> Result<Vec<Expected>> {
    let mut all = Vec::new();
    for line in text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
        let entry = entry(line).with_context(|| format!("{FILE}: {line}"))?;
        ensure!(rows.iter().any(|row| entry.is_in(row)), "{FILE}: no row is called {:?}", entry.what);
        ensure!(columns.iter().any(|column| column.is(&entry.words)), "{FILE}: no column is {:?}", entry.words);
        all.push(entry);
    }
    Ok(all)
}

/// `COLUMN WORDS | ROW | REASON`
fn entry(line: &str) -> Result<Expected> {
    let mut fields = line.split('|').map(str::trim);
    let mut next = || fields.next().filter(|field| !field.is_empty()).context("three fields, separated by |");
    Ok(Expected { words: column::words(next()?)?, what: next()?.to_owned(), reason: next()?.to_owned() })
}

impl Expected {
    fn is_in(&self, row: &Row) -> bool {
        match row.kind {
            Kind::Cases => self.what.strip_prefix(row.line).is_some_and(|rest| rest.starts_with(' ')),
            _ => self.what == row.line,
        }
    }
}

/// The entry for a row's line or a case.
pub fn find<'a>(all: &'a [Expected], what: &str, column: &Column) -> Option<&'a Expected> {
    all.iter().find(|entry| entry.what == what && column.is(&entry.words))
}

/// Entries for a row that speak of cases that it does not have.
pub fn stale<'a>(all: &'a [Expected], row: &Row, cases: &[&str]) -> Vec<&'a str> {
    all.iter().filter(|entry| entry.is_in(row)).map(|entry| &*entry.what).filter(|what| !cases.contains(what)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::rows::ROWS;
    use super::*;

    #[test]
    fn the_list_in_the_tree_can_be_read() {
        let text = std::fs::read_to_string(crate::shell::workspace().join(FILE)).expect("the list is checked in");
        parse(&text, ROWS, &Column::all(true)).expect("every line is well formed");
    }

    #[test]
    fn an_entry_is_for_its_row_and_columns_only() {
        let columns = Column::all(true);
        let all = parse("# why\n\nc v1 | ib_send_bw -b | because\n", ROWS, &columns).expect("a good list");
        let hits = |what| columns.iter().filter(|column| find(&all, what, column).is_some()).count();
        assert_eq!((hits("ib_send_bw -b"), hits("ib_send_bw")), (24, 0));
        assert_eq!(all[0].reason, "because");
    }

    #[test]
    fn an_entry_for_a_case_that_is_gone_is_seen() {
        let all =
            parse("c | rc_loop flush | x\nc | rc_loop wash | y\n", ROWS, &Column::all(true)).expect("a good list");
        let row = ROWS.iter().find(|row| row.line == "rc_loop").expect("a row");
        assert_eq!(stale(&all, row, &["rc_loop flush", "rc_loop send"]), ["rc_loop wash"]);
    }

    #[test]
    fn mistakes_are_refused() {
        let columns = Column::all(true);
        for text in [
            "c | ib_send_bw",
            "c | ib_send_bw |",
            "d | ib_send_bw | x",
            "c | ib_sned_bw | x",
            "c | rc_loop | x",
            "c ours | ib_send_bw | x",
        ] {
            assert!(parse(text, ROWS, &columns).is_err(), "{text}");
        }
    }
}
