//! Runs a row in a column and judges what came of it.

use std::path::Path;
use std::time::Duration;

use pvrdma_tests::{Figures, Job, Newer, Output, Stand, all_figures, c_program, try_pair_at};

use super::column::{self, Column};
use super::rows::{Kind, ROWS, Row};

/// What went wrong, with all that was written.
pub type Failure = String;

/// The two users' folders, with forky's programs in each.
pub struct Ground {
    root: bool,
    forky: std::path::PathBuf,
    stands: [Stand; 2],
}

impl Ground {
    /// Copies what the programs need; `forky` is the folder of `cargo xtask debs`.
    pub fn new(root: bool, forky: &Path) -> Ground {
        let stands = [false, true].map(|ordinary| Stand::new(column::user(ordinary, root)));
        for stand in &stands {
            Newer::new(stand, forky);
            for program in ROWS.iter().filter(|row| row.is_own()).map(Row::program) {
                stand.copy(&c_program(&format!("tests/c/{program}.c"), &[]));
            }
            stand.copy(&known_vendor());
        }
        Ground { root, forky: forky.to_owned(), stands }
    }

    /// Runs the row once. What came of it goes by the row's line, or by `PROGRAM CASE` for each case.
    pub fn run(&self, row: &Row, column: &Column) -> Vec<(String, Result<(), Failure>)> {
        let stand = self.stand(column);
        // A failed cell before this one may have left something.
        let before = stand.leftovers();
        let mut results = match row.kind {
            Kind::Cases => self.cases(row, column),
            _ => vec![(row.line.to_owned(), self.whole(row, column))],
        };
        let left: Vec<_> = stand.leftovers().into_iter().filter(|path| !before.contains(path)).collect();
        if !left.is_empty() && results.iter().all(|(_, result)| result.is_ok()) {
            results.push((row.line.to_owned(), Err(format!("files stay behind: {left:?}"))));
        }
        results
    }

    fn whole(&self, row: &Row, column: &Column) -> Result<(), Failure> {
        let [here, there] = column.guests();
        let job = |guest| self.job(row, column, guest);
        if row.kind == Kind::Devinfo {
            let output = job(here).args(row.arguments()).spawn().try_wait()?;
            said(&output, "PORT_ACTIVE")?;
            return said(&output, &format!("RoCE {}", column.roce()));
        }
        run_pair(row, job(here), job(there), "127.0.0.1", column.is_forky())
    }

    fn cases(&self, row: &Row, column: &Column) -> Vec<(String, Result<(), Failure>)> {
        let job = || self.job(row, column, column.guests()[0]);
        let list = job().spawn().try_wait().and_then(|output| ended_well(&output).map(|()| output.stdout));
        let list = match list {
            Ok(list) if !list.is_empty() => list,
            Ok(_) => return vec![(row.line.to_owned(), Err("it lists no cases".to_owned()))],
            Err(failure) => return vec![(row.line.to_owned(), Err(failure))],
        };
        let run = |case: &str| said(&job().args([case]).spawn().try_wait()?, &format!("ok {case}\n"));
        list.lines().map(|case| (format!("{} {case}", row.line), run(case))).collect()
    }

    /// The program without arguments.
    fn job(&self, row: &Row, column: &Column, guest: &str) -> Job<'_> {
        let stand = self.stand(column);
        let program = if row.is_own() { stand.path(row.program()) } else { row.program().into() };
        let (job, provider) = if column.is_forky() {
            let forky = Newer::new(stand, &self.forky);
            let provider = if column.is_ours() { column.provider() } else { forky.c_provider() };
            (forky.job(program), provider)
        } else {
            (stand.job(program), column.provider())
        };
        let job = match row.is_known() {
            true => job.env("LD_PRELOAD", stand.path(known_vendor().file_name().expect("a library has a name"))),
            false => job,
        };
        job.guest(guest)
            .option("--roce", column.roce())
            .provider(&provider)
            .doorbells(column.doorbells())
            .uverbs(column.uverbs())
            .time_out(Duration::from_secs(if row.long { 180 } else { 60 }))
    }

    fn stand(&self, column: &Column) -> &Stand {
        &self.stands[usize::from(column.is_ordinary() && self.root)]
    }
}

/// Runs the server and the client of a row, given as the program without arguments, and judges what came of it.
pub fn run_pair<'a>(row: &Row, server: Job<'a>, client: Job<'a>, address: &str, is_forky: bool) -> Result<(), Failure> {
    let [server, client] = [server, client].map(|job| job.args(row.arguments()).args(usual(row, is_forky)));
    let (server, client) = try_pair_at(address, server, client)?;
    match row.kind {
        Kind::Pingpong => [server, client].iter().try_for_each(|output| said(output, "iters in")),
        Kind::Perftest => {
            ended_well(&server)?;
            ended_well(&client)?;
            has_figures(row, &client)?;
            uses_what_it_knows(row, &client)
        }
        Kind::Exchange => {
            said(&server, "exact")?;
            if server.stdout == client.stdout { Ok(()) } else { Err(format!("they differ\n{server}{client}")) }
        }
        Kind::Devinfo | Kind::Cases => unreachable!("no pair"),
    }
}

/// Arguments a row does not show.
fn usual(row: &Row, is_forky: bool) -> Vec<&'static str> {
    let has = |option| row.words().any(|word| word == option);
    match row.kind {
        Kind::Pingpong => vec!["-g", "1"],
        Kind::Perftest => {
            // No warning about the CPU's clock.
            let mut more = vec!["-F"];
            if !has("-n") {
                // A multiple of perftest's CQ moderation (100) and of list lengths.
                more.extend(["-n", if row.long { "100" } else { "800" }]);
            }
            if !has("-a") && !has("-s") && !row.program().starts_with("ib_atomic") {
                more.extend(["-s", "4096"]);
            }
            if row.is_known() && is_forky {
                // Or the newer perftest asks the library of Mellanox's devices whether this one places data out of
                // order.
                more.push("--no_ddp");
            }
            more
        }
        Kind::Devinfo | Kind::Exchange | Kind::Cases => Vec::new(),
    }
}

fn ended_well(output: &Output) -> Result<(), Failure> {
    if output.status.success() { Ok(()) } else { Err(output.to_string()) }
}

fn said(output: &Output, text: &str) -> Result<(), Failure> {
    ended_well(output)?;
    if output.stdout.contains(text) { Ok(()) } else { Err(format!("no {text:?}\n{output}")) }
}

/// The figures are there and are not zero. How good they are is perftest/README.md's business.
fn has_figures(row: &Row, client: &Output) -> Result<(), Failure> {
    let column = if row.program().ends_with("_bw") { "BW average" } else { "t_typical" };
    // Of a few bytes at a time the bandwidth is rounded to nothing on a slow way; the rate has more digits.
    let figure = |line: &Figures| Some(line.get(column)?.max(line.get("MsgRate").unwrap_or(0.0)));
    let figures: Vec<f64> = all_figures(&client.stdout).iter().filter_map(figure).collect();
    // On a busy machine perftest sometimes fails to measure the CPU's clock; it says so and prints 0.
    let no_clock = client.stderr.contains("Correlation coefficient");
    if figures.len() != sizes(row) || !figures.iter().all(|figure| *figure > 0.0 || no_clock) {
        return Err(format!("{} results, {} wanted, none of them 0\n{client}", figures.len(), sizes(row)));
    }
    Ok(())
}

/// Perftest that knows the device posts by `ibv_wr_*` unless told otherwise, and has the inline data that was asked
/// for.
fn uses_what_it_knows(row: &Row, client: &Output) -> Result<(), Failure> {
    if !row.is_known() {
        return Ok(());
    }
    let has = |option| row.words().any(|word| word == option);
    said(client, if has("--use_old_post_send") { "ibv_wr* API     : OFF" } else { "ibv_wr* API     : ON" })?;
    match row.words().skip_while(|word| *word != "-I").nth(1) {
        Some(inline) => said(client, &format!("Max inline data : {inline}[B]")),
        None => Ok(()),
    }
}

/// The library that makes perftest know the device.
pub fn known_vendor() -> std::path::PathBuf {
    c_program("tests/c/known_vendor.c", &["-shared", "-fPIC", "-Wl,--as-needed"])
}

/// How many message sizes a row runs over: with `-a` the powers of two up to 8 MiB, for UD those up to the MTU.
fn sizes(row: &Row) -> usize {
    let has = |option| row.words().any(|word| word == option);
    match (has("-a"), has("UD")) {
        (false, _) => 1,
        (true, false) => 23,
        (true, true) => 12,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(line: &str) -> &'static Row {
        ROWS.iter().find(|row| row.line == line).expect("a row")
    }

    #[test]
    fn usual_arguments_stay_out_of_the_rows_own() {
        assert_eq!(usual(row("ib_send_bw -e"), false), ["-F", "-n", "800", "-s", "4096"]);
        assert_eq!(usual(row("ib_send_bw -a"), false), ["-F", "-n", "100"]);
        assert_eq!(usual(row("known ib_write_lat -I 200 -s 150"), false), ["-F", "-n", "800"]);
        assert!(usual(row("known ib_write_lat -I 200 -s 150"), true).contains(&"--no_ddp"));
        assert_eq!(usual(row("ib_atomic_bw -e"), false), ["-F", "-n", "800"]);
        assert_eq!(usual(row("ib_read_bw -t 15000 -Q 1024 -n 30720"), false), ["-F", "-s", "4096"]);
    }

    #[test]
    fn results_wanted() {
        assert_eq!(["ib_send_bw", "ib_send_bw -a", "ib_send_bw -c UD -a"].map(|line| sizes(row(line))), [1, 23, 12]);
    }
}
