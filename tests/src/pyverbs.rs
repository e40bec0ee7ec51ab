//! rdma-core's own test suite (Debian's python3-pyverbs): how each test must end, how it did, and both in one table.
//!
//! Used by `tests/tests/pyverbs.rs`, which runs it on the stand-in, and by `cargo xtask vm`, which runs it in a QEMU
//! guest with the kernel's driver. What each prints comes from `tests/pyverbs/run.py`.

use std::collections::BTreeMap;
use std::process::Command;

use crate::workspace;

/// Where the package has the suite; some of its files are packed.
pub const SUITE: &str = "/usr/share/doc/rdma-core/tests";
/// The only release the lists are for.
const RELEASE: &str = "44.0";

/// Why the suite cannot run on this machine, if it cannot.
pub fn missing() -> Option<String> {
    let version = Command::new("dpkg-query").args(["-W", "-f", "${Version}", "python3-pyverbs"]).output();
    let version = version.map_or_else(|_| String::new(), |out| String::from_utf8_lossy(&out.stdout).into_owned());
    (!version.starts_with(RELEASE)).then(|| format!("python3-pyverbs {RELEASE} of Debian 12 is not installed"))
}

/// How tests ended, by name.
pub type Found = BTreeMap<String, Ended>;

/// How a test ended, and why in the suite's own words.
pub struct Ended {
    how: String,
    why: String,
}

/// Reads what `run.py` printed.
pub fn found(text: &str) -> Found {
    text.lines()
        .map(|line| {
            let [name, how, why] = line.splitn(3, '\t').collect::<Vec<_>>()[..] else { panic!("{line}") };
            let name = name.strip_prefix("tests.").unwrap_or(name);
            (name.to_owned(), Ended { how: how.to_lowercase(), why: why.to_owned() })
        })
        .collect()
}

/// `78 pass, 198 skip, 0 fail`
pub fn totals(found: &Found) -> String {
    let count = |how: &str| found.values().filter(|ended| ended.how == how).count();
    format!("{} pass, {} skip, {} fail", count("pass"), count("skip"), count("fail"))
}

/// How each test must end at one place.
pub struct List(BTreeMap<String, Line>);

struct Line {
    /// With our provider and with the C provider.
    ends: [String; 2],
    /// Why ours skips it.
    reason: String,
}

impl List {
    /// On the stand-in.
    pub fn of_stand_in() -> List {
        List(lines("tests.txt"))
    }

    /// In a QEMU guest: the same but for the tests that `vm.txt` names.
    pub fn of_vm() -> List {
        let mut all = lines("tests.txt");
        for (name, line) in lines("vm.txt") {
            assert!(all.insert(name.clone(), line).is_some(), "{name} of vm.txt is in tests.txt");
        }
        List(all)
    }

    /// Only the tests of one file of the suite.
    pub fn only(self, file: &str) -> List {
        List(self.0.into_iter().filter(|(name, _)| name.split('.').next() == Some(file)).collect())
    }

    /// What was not as it must be, a line for each test; `column` is 0 for our provider, 1 for the C provider.
    pub fn wrong(&self, column: usize, found: &Found) -> Vec<String> {
        let mut wrong = Vec::new();
        for (name, Ended { how, why }) in found {
            match self.0.get(name).map(|line| line.ends[column].as_str()) {
                Some("machine" | "chance") if how != "fail" => {}
                Some(wanted) if wanted == how => {}
                Some(wanted) => wrong.push(format!("{name}: {how} instead of {wanted}: {why}")),
                None => wrong.push(format!("{name} is not in the list: {how}: {why}")),
            }
        }
        wrong.extend(self.0.keys().filter(|name| !found.contains_key(*name)).map(|name| format!("{name} was not run")));
        wrong
    }

    /// A line for each test: our provider, the C provider, why one of them skips it or fails.
    pub fn table(&self, ours: &Found, system: &Found) -> String {
        let width = ours.keys().map(String::len).max().unwrap_or(0);
        let mut table = format!("{:<width$}  ours  C provider\n", "test");
        for (name, here) in ours {
            let there = system.get(name);
            let reason = match (&*here.how, self.0.get(name)) {
                ("pass", _) => there.map_or("", |there| &there.why),
                (_, Some(line)) => &line.reason,
                (_, None) => &here.why,
            };
            let reason = tail(reason, 100);
            let line =
                format!("{name:<width$}  {:<4}  {:<4}  {reason}", here.how, there.map_or("", |there| &there.how));
            table += line.trim_end();
            table.push('\n');
        }
        table + &format!("\nours:       {}\nC provider: {}\n", totals(ours), totals(system))
    }
}

/// What is to the point in a Python message stands at its end.
fn tail(text: &str, length: usize) -> String {
    let skipped = text.chars().count().saturating_sub(length);
    let dots = if skipped > 0 { "..." } else { "" };
    dots.chars().chain(text.chars().skip(skipped)).collect()
}

/// `NAME OURS SYSTEM`, and `  # REASON` where ours does not pass.
fn lines(file: &str) -> BTreeMap<String, Line> {
    let path = workspace().join("tests/pyverbs").join(file);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (line, reason) = line.split_once("  # ").unwrap_or((line, ""));
            let [name, ours, system] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{file}: {line}") };
            assert_eq!(ours == "pass", reason.is_empty(), "{name}: what is skipped has a reason, and nothing else");
            (name.to_owned(), Line { ends: [ours.to_owned(), system.to_owned()], reason: reason.to_owned() })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(name: &str, ours: &str, reason: &str) -> List {
        let line = Line { ends: [ours.to_owned(), "skip".to_owned()], reason: reason.to_owned() };
        List(BTreeMap::from([(name.to_owned(), line)]))
    }

    #[test]
    fn the_lists_in_the_tree_can_be_read() {
        let (stand_in, vm) = (List::of_stand_in(), List::of_vm());
        assert_eq!(stand_in.0.len(), vm.0.len());
        assert_eq!(vm.only("test_rdmacm").0.len(), 10);
    }

    #[test]
    fn every_difference_is_wrong() {
        let list = list("test_a.T.b", "pass", "");
        assert!(list.wrong(0, &found("tests.test_a.T.b\tpass\t\n")).is_empty());
        assert_eq!(list.wrong(0, &found("tests.test_a.T.b\tFAIL\tx\n")), ["test_a.T.b: fail instead of pass: x"]);
        assert_eq!(list.wrong(1, &found("")), ["test_a.T.b was not run"]);
        assert_eq!(list.wrong(0, &found("tests.test_a.T.b\tpass\t\ntests.new\tskip\ty\n")).len(), 1);
    }

    #[test]
    fn a_skip_has_its_reason_in_the_table() {
        let ours = found("tests.a.b\tskip\tin python's words\n");
        let table = list("a.b", "skip", "in ours").table(&ours, &ours);
        assert!(table.contains("a.b  skip  skip  in ours\n") && table.contains("C provider: 0 pass, 1 skip, 0 fail"));
    }
}
