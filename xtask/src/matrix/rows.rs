//! What is run: the rows of the table.

use super::column::Column;

/// How a row is run and what shows that it went well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One process that prints the device.
    Devinfo,
    /// A server and a client; both say how long their rounds took.
    Pingpong,
    /// A server and a client; the client prints a line of figures for each size.
    Perftest,
    /// A server and a client of a program of `tests/c`; both say the same of the same data.
    Exchange,
    /// A program of `tests/c` that lists its cases when it gets no argument. Each is a process of its own, and
    /// `tests/matrix/expected.txt` may name `PROGRAM CASE`.
    Cases,
}

/// A program with its arguments.
#[derive(Debug)]
pub struct Row {
    /// As a user would type it, but for what `cell.rs` adds (port, address, and usual values of what is not said).
    /// Before perftest stands `known` where it has `tests/c/known_vendor.c` preloaded, and so uses inline data and
    /// `ibv_wr_*`.
    pub line: &'static str,
    /// How it is run.
    pub kind: Kind,
    /// It takes 5 to 20 s. The short form gives it one column, the full one a few that have each circumstance.
    pub long: bool,
    /// Only the newer perftest has the option.
    pub new: bool,
}

impl Row {
    pub fn words(&self) -> impl Iterator<Item = &'static str> {
        self.line.strip_prefix(KNOWN).unwrap_or(self.line).split_whitespace()
    }

    /// Whether perftest is made to know the device.
    pub fn is_known(&self) -> bool {
        self.line.starts_with(KNOWN)
    }

    pub fn program(&self) -> &'static str {
        self.words().next().expect("a row has a program")
    }

    /// Whether the program is one of `tests/c`.
    pub fn is_own(&self) -> bool {
        matches!(self.kind, Kind::Exchange | Kind::Cases)
    }

    pub fn arguments(&self) -> Vec<&'static str> {
        self.words().skip(1).collect()
    }

    /// Whether the row means something there: one process is in one guest.
    pub fn applies(&self, column: &Column) -> bool {
        let is_alone = matches!(self.kind, Kind::Devinfo | Kind::Cases);
        (!is_alone || column.has_one_guest()) && (!self.new || column.is_forky())
    }
}

const KNOWN: &str = "known ";

const fn row(kind: Kind, line: &'static str) -> Row {
    Row { line, kind, long: false, new: false }
}

const fn long(kind: Kind, line: &'static str) -> Row {
    Row { long: true, ..row(kind, line) }
}

const fn new(kind: Kind, line: &'static str) -> Row {
    Row { new: true, ..row(kind, line) }
}

use Kind::{Cases, Devinfo, Exchange, Perftest, Pingpong};

/// Limits of perftest 4.5, so that nobody is surprised: `-t` and `-r` end at 15000, `-Q` at 1024 and at `-t`; `-l`
/// must divide `-n`; with several QPs and an `-n` that `-Q` does not divide it waits for ever; there is no `-e` for
/// write. A datagram that finds no receive is lost, as it must be, and the server waits for it: `-r` has one for each.
pub const ROWS: &[Row] = &[
    row(Devinfo, "ibv_devinfo -v"),
    row(Pingpong, "ibv_rc_pingpong -c"),
    row(Pingpong, "ibv_rc_pingpong -c -e"),
    row(Pingpong, "ibv_rc_pingpong -c -N"),
    row(Pingpong, "ibv_ud_pingpong -c"),
    row(Pingpong, "ibv_ud_pingpong -c -e"),
    row(Pingpong, "ibv_srq_pingpong -c"),
    row(Pingpong, "ibv_srq_pingpong -c -e"),
    row(Perftest, "ib_write_bw"),
    long(Perftest, "ib_write_bw -a"),
    row(Perftest, "ib_write_bw -b"),
    row(Perftest, "ib_write_bw -q 8"),
    row(Perftest, "ib_write_bw -l 16"),
    row(Perftest, "ib_write_bw -t 1"),
    row(Perftest, "ib_write_bw -t 15000 -Q 1024 -n 30720"),
    new(Perftest, "ib_write_bw --write_with_imm"),
    new(Perftest, "ib_write_bw --no_lock"),
    row(Perftest, "ib_write_lat"),
    long(Perftest, "ib_write_lat -a"),
    row(Perftest, "ib_read_bw"),
    long(Perftest, "ib_read_bw -a"),
    row(Perftest, "ib_read_bw -b"),
    row(Perftest, "ib_read_bw -e"),
    row(Perftest, "ib_read_bw -q 8"),
    row(Perftest, "ib_read_bw -o 1"),
    row(Perftest, "ib_read_bw -t 1"),
    row(Perftest, "ib_read_bw -t 15000 -Q 1024 -n 30720"),
    row(Perftest, "ib_read_lat"),
    long(Perftest, "ib_read_lat -a"),
    row(Perftest, "ib_read_lat -e"),
    row(Perftest, "ib_send_bw"),
    long(Perftest, "ib_send_bw -a"),
    row(Perftest, "ib_send_bw -b"),
    row(Perftest, "ib_send_bw -e"),
    row(Perftest, "ib_send_bw -b -e"),
    row(Perftest, "ib_send_bw -q 8"),
    row(Perftest, "ib_send_bw -t 1 -r 1"),
    row(Perftest, "ib_send_bw -t 15000 -r 15000 -Q 1"),
    row(Perftest, "ib_send_bw -t 15000 -r 15000 -Q 1024 -n 30720"),
    row(Perftest, "ib_send_bw --use-srq"),
    row(Perftest, "ib_send_bw --use-srq -q 8"),
    row(Perftest, "ib_send_bw --use-srq -e"),
    new(Perftest, "ib_send_bw --no_lock"),
    row(Perftest, "ib_send_bw -c UD -r 800"),
    row(Perftest, "ib_send_bw -c UD -b -r 800"),
    row(Perftest, "ib_send_bw -c UD -e -r 800"),
    row(Perftest, "ib_send_bw -c UD -q 8 -r 800"),
    long(Perftest, "ib_send_bw -c UD -a"),
    row(Perftest, "ib_send_lat"),
    long(Perftest, "ib_send_lat -a"),
    row(Perftest, "ib_send_lat -e"),
    row(Perftest, "ib_send_lat --use-srq"),
    row(Perftest, "ib_send_lat -c UD"),
    row(Perftest, "ib_send_lat -c UD -e"),
    row(Perftest, "ib_atomic_bw -A FETCH_AND_ADD"),
    row(Perftest, "ib_atomic_bw -A CMP_AND_SWAP"),
    row(Perftest, "ib_atomic_bw -b"),
    row(Perftest, "ib_atomic_bw -e"),
    row(Perftest, "ib_atomic_bw -q 8"),
    row(Perftest, "ib_atomic_bw -o 1"),
    row(Perftest, "ib_atomic_bw -t 15000 -Q 1024 -n 30720"),
    row(Perftest, "ib_atomic_lat -A FETCH_AND_ADD"),
    row(Perftest, "ib_atomic_lat -A CMP_AND_SWAP"),
    row(Perftest, "ib_atomic_lat -e"),
    row(Perftest, "known ib_send_lat -I 200 -s 150"),
    row(Perftest, "known ib_send_lat -I 200 -s 150 --use_old_post_send"),
    row(Perftest, "known ib_send_lat -c UD -I 100 -s 64"),
    row(Perftest, "known ib_write_lat -I 200 -s 150"),
    row(Perftest, "known ib_send_bw -I 64 -s 64 -l 16"),
    row(Perftest, "known ib_write_bw -q 8"),
    row(Perftest, "known ib_read_bw -b"),
    row(Perftest, "known ib_atomic_bw -A CMP_AND_SWAP"),
    row(Exchange, "data -k short -s 1"),
    row(Cases, "rc_loop"),
    row(Cases, "ud_loop"),
    row(Cases, "srq_loop"),
    row(Cases, "inv_loop"),
    row(Cases, "errors"),
    row(Cases, "habits"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_line_stands_once() {
        let lines: BTreeSet<_> = ROWS.iter().map(|row| row.line).collect();
        assert_eq!(lines.len(), ROWS.len());
    }

    #[test]
    fn a_line_has_single_blanks() {
        for row in ROWS {
            assert_eq!(row.line.split_whitespace().collect::<Vec<_>>().join(" "), row.line);
        }
    }

    #[test]
    fn only_perftest_is_made_to_know_the_device() {
        for row in ROWS.iter().filter(|row| row.is_known()) {
            assert!(row.kind == Perftest && row.program().starts_with("ib_"), "{}", row.line);
        }
    }
}
