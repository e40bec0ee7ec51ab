//! Tables of two guests on one Ethernet, who bring what they have for RDMA themselves: one of them serves a row, and
//! the other one asks it.
//!
//! Called by `wire.rs` and `adapters.rs`, which have the rows. The shell functions are in `tests/qemu/wire.sh`.

use std::time::Duration;

use anyhow::Result;

use super::case::{self, Outcome, Servers, Step};
use super::{House, Provider};

/// What a guest has for RDMA.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// A machine with an adapter.
    SoftwareRoce,
    /// Guests of `pvrdma run`, and a gateway that owns the wire.
    StandIn,
    /// A host of a fabric: guests of `pvrdma run`, and a gateway with software RoCE as its adapter.
    Host,
}

impl Side {
    fn name(self) -> &'static str {
        match self {
            Side::SoftwareRoce => "rxe",
            Side::StandIn => "stand-in",
            Side::Host => "host",
        }
    }
}

/// Who is the server of a row.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Ways {
    /// Nobody: each side does this by itself.
    Alone,
    /// Each side once, if they differ.
    Each,
    /// Software RoCE only, and nobody where both have it.
    SoftwareRoce,
}

/// A row of a table: the same name on both sides.
pub struct Row {
    pub name: String,
    /// What its server runs.
    pub server: String,
    /// What the other side runs meanwhile.
    pub client: String,
    pub ways: Ways,
    /// Whether the short list has it.
    pub short: bool,
    /// How long it may take.
    pub limit: Duration,
}

/// Most rows of the short lists.
const SHORT: [&str; 4] =
    ["ibv_rc_pingpong -c", "ibv_ud_pingpong -c", "every operation, byte for byte", "rdma_cm: rping"];

impl Row {
    /// Time limit of most rows. A connection that nobody answers is given up before that.
    const LIMIT: Duration = Duration::from_secs(30);

    /// A row that one side serves.
    pub fn of(name: &str, server: &str, client: &str) -> Row {
        let short = SHORT.contains(&name);
        let [name, server, client] = [name, server, client].map(str::to_owned);
        Row { name, server, client, ways: Ways::Each, short, limit: Row::LIMIT }
    }

    /// One whose sides run the same, the client with the server's address behind it.
    pub fn connected(name: &str, command: &str) -> Row {
        Row::of(name, &format!("$run {command}"), &format!("connect $run {command}"))
    }

    /// A row that both sides do by themselves, whatever is chosen.
    pub fn alone(name: &str, script: &str) -> Row {
        Row { ways: Ways::Alone, ..Row::of(name, script, script) }
    }
}

/// What of the rows is run.
#[derive(Default)]
pub struct Choice {
    /// Those of the short list.
    pub short: bool,
    /// Those with this in their names.
    pub named: Option<String>,
}

impl Choice {
    fn has(&self, row: &Row) -> bool {
        let named = self.named.as_ref().is_none_or(|part| row.name.contains(part));
        row.ways == Ways::Alone || named && (row.short || !self.short)
    }
}

/// Rows that two guests run, and how the gateways in them are started.
pub struct Table {
    pub sides: [Side; 2],
    pub rows: Vec<Row>,
    /// Options of `pvrdma link run`.
    pub gateway_options: String,
}

impl Table {
    /// Runs it and prints it; gives the number of rows that failed. Logs go to `folder` of the results.
    pub fn run(&self, house: &House, provider: &Provider, folder: &str) -> Result<usize> {
        let results = house.dir.join("results").join(folder);
        let outcomes = case::run(house, provider, &results, Servers::None, &self.steps(provider))?;
        Ok(self.print(&outcomes))
    }

    /// The steps of both guests. Two of one kind serve each other in one direction only.
    pub fn steps(&self, provider: &Provider) -> [Vec<Step>; 2] {
        let mut guests = [Vec::new(), Vec::new()];
        let differ = self.sides[0] != self.sides[1];
        for row in &self.rows {
            let servers = match row.ways {
                Ways::Each if differ => 0..2,
                Ways::Each | Ways::Alone => 0..1,
                Ways::SoftwareRoce if differ => 1..2,
                Ways::SoftwareRoce => 0..0,
            };
            for server in servers {
                for (guest, steps) in guests.iter_mut().enumerate() {
                    let what = if guest == server { &row.server } else { &row.client };
                    let script = format!(
                        "side={} serving={} provider={} gateway_options='{}'\n. /run/job/wire.sh\n{what}",
                        self.sides[guest].name(),
                        server + 1,
                        provider.name(),
                        self.gateway_options
                    );
                    let name = if row.ways != Ways::Alone && differ {
                        format!("{}: {} serves", row.name, self.sides[server].name())
                    } else {
                        row.name.clone()
                    };
                    steps.push(Step { name, script, limit: row.limit, judge: None });
                }
            }
        }
        guests
    }

    /// A line for each row, with the verdict of both guests.
    fn print(&self, outcomes: &[Outcome]) -> usize {
        let names = self.sides.map(Side::name);
        let (first, second) = outcomes.split_at(outcomes.len() / 2);
        let width = first.iter().map(|outcome| outcome.name.chars().count()).max().unwrap_or(0);
        println!("\n{} and {} on one wire", names[0], names[1]);
        println!("  {:<8}  {:<8}", names[0], names[1]);
        let mut failed = 0;
        for rows in first.iter().zip(second) {
            let rows = [rows.0, rows.1];
            failed += usize::from(rows.iter().any(|row| !row.passed));
            let verdict = |row: &Outcome| if row.passed { "ok" } else { "FAIL" };
            println!(
                "  {:<8}  {:<8}  {:width$}  {:>5.1} s  {}",
                verdict(rows[0]),
                verdict(rows[1]),
                rows[0].name,
                rows[0].time.max(rows[1].time).as_secs_f64(),
                note(rows)
            );
            for row in rows.iter().filter(|row| !row.passed) {
                println!("{:>24}{}", "", row.note);
            }
        }
        failed
    }
}

/// The pingpongs, whatever is between the guests.
pub fn pingpongs() -> Vec<Row> {
    let connected = [
        ("ibv_rc_pingpong -c", "ibv_rc_pingpong -d $device -g $gid -c -n 200"),
        ("ibv_rc_pingpong -c -e, 64 KiB", "ibv_rc_pingpong -d $device -g $gid -c -e -s 65536 -n 50"),
        ("ibv_ud_pingpong -c", "ibv_ud_pingpong -d $device -g $gid -c -s 1000 -n 100"),
        ("ibv_srq_pingpong -c", "ibv_srq_pingpong -d $device -g $gid -c -q 4 -n 50"),
    ];
    let crowd = "crowd ibv_rc_pingpong -d $device -g $gid -c -s 5000 -n 50";
    let crowd = Row::of("four at a time: ibv_rc_pingpong -c", crowd, crowd);
    connected.map(|(name, command)| Row::connected(name, command)).into_iter().chain([crowd]).collect()
}

/// The rows that are chosen.
pub fn chosen(rows: Vec<Row>, choice: &Choice) -> Vec<Row> {
    rows.into_iter().filter(|row| choice.has(row)).collect()
}

/// The client tells of figures, the server rarely.
fn note(rows: [&Outcome; 2]) -> &str {
    rows.into_iter().filter(|row| row.passed).map(|row| row.note.as_str()).find(|note| !note.is_empty()).unwrap_or("")
}
