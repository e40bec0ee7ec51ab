//! What [`crate::frozen`] measured, as a table to read and as JSON to keep. The JSON is described in
//! perftest/README.md.

use std::fmt::Write;
use std::fs;

use pvrdma_tests::Provider;
use serde_json::{Value, json};

use crate::frozen::{Plan, Row};
use crate::operations::Situation;
use crate::spread::Spread;

/// A provider in a few letters, and for files their path.
pub fn name(provider: &Provider) -> String {
    match provider {
        Provider::Ours => "ours".to_owned(),
        Provider::System => "C".to_owned(),
        Provider::Path(path) => path.display().to_string(),
    }
}

/// The processor and how many of it there are.
pub fn machine() -> String {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("unknown processor", |(_, model)| model);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let plural = if cores == 1 { "core" } else { "cores" };
    format!("{model}, {cores} {plural}")
}

/// The table of one situation.
pub fn table(plan: &Plan, rows: &[Row], situation: Situation) -> String {
    let mut text = format!("{:<36}{:>9}{:>22}", situation.title(), name(&plan.base) + ", ns", "itself again");
    for nth in 0..plan.providers.len() {
        let _ = write!(text, "{:>9}{:>22}", heading(plan, nth) + ", ns", "ratio");
    }
    text += "   at most\n";
    for row in rows.iter().filter(|row| row.situation == situation) {
        let _ = write!(text, "{:<36}{:>9.1}{:>22}", row.operation.title, row.base, spread(&row.noise));
        for other in &row.others {
            let _ = match other {
                Some((ns, ratio)) => write!(text, "{ns:>9.1}{:>22}", spread(ratio)),
                None => write!(text, "{:>31}", "-"),
            };
        }
        let most = at_most(plan, row).map_or(String::new(), |most| format!("{most:>10.2}"));
        let _ = writeln!(text, "{most}");
    }
    text
}

/// What the operation may have. Beside another provider than the C one nothing was said.
fn at_most(plan: &Plan, row: &Row) -> Option<f64> {
    row.situation.at_most(row.operation).filter(|_| plan.base == Provider::System)
}

/// Files by their number: paths are too long for a column.
fn heading(plan: &Plan, nth: usize) -> String {
    match &plan.providers[nth] {
        Provider::Path(_) => format!("[{}]", nth + 1),
        other => name(other),
    }
}

/// The numbers that stand for paths.
pub fn legend(plan: &Plan) -> String {
    (0..plan.providers.len())
        .filter(|nth| matches!(plan.providers[*nth], Provider::Path(_)))
        .map(|nth| format!("[{}] {}\n", nth + 1, name(&plan.providers[nth])))
        .collect()
}

fn spread(spread: &Spread) -> String {
    format!("{:.2} ({:.2} to {:.2})", spread.median, spread.low, spread.high)
}

/// All that was measured.
pub fn json(plan: &Plan, rows: &[Row], machine: &str, date: Option<&str>) -> Value {
    let spread = |spread: &Spread| json!({"q1": spread.low, "median": spread.median, "q3": spread.high});
    let row = |row: &Row| {
        let others =
            row.others.iter().map(|other| other.as_ref().map(|(ns, ratio)| json!({"ns": ns, "ratio": spread(ratio)})));
        json!({
            "operation": row.operation.name,
            "title": row.operation.title,
            "situation": row.situation.name(),
            "at_most": at_most(plan, row),
            "base_ns": row.base,
            "base_again": spread(&row.noise),
            "providers": others.collect::<Vec<_>>(),
        })
    };
    json!({
        "schema": 1,
        "machine": machine,
        "date": date,
        "runs": plan.runs,
        "batches": plan.batches,
        "base": name(&plan.base),
        "providers": plan.providers.iter().map(name).collect::<Vec<_>>(),
        "rows": rows.iter().map(row).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::operations::OPERATIONS;

    pub fn plan() -> Plan {
        Plan { base: Provider::System, providers: vec![Provider::Ours], runs: 3, batches: 10 }
    }

    pub fn rows() -> Vec<Row> {
        let noise = Spread { low: 0.98, median: 1.0, high: 1.03 };
        let ratio = Spread { low: 0.4, median: 0.41, high: 0.45 };
        let row =
            |nth: usize, situation, others| Row { operation: &OPERATIONS[nth], situation, base: 11.0, noise, others };
        vec![
            row(0, Situation::One, vec![Some((4.5, ratio))]),
            row(0, Situation::Two, vec![Some((9.9, Spread { median: 0.9, ..ratio }))]),
            row(1, Situation::One, vec![None]),
        ]
    }

    #[test]
    fn the_table_has_the_rows_of_its_situation() {
        let text = table(&plan(), &rows(), Situation::One);
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(text.contains("0.41 (0.40 to 0.45)") && text.contains("0.45\n") && !text.contains("0.90"), "{text}");
    }

    #[test]
    fn what_may_be_is_said_beside_the_c_provider_only() {
        let plan = Plan { base: Provider::Ours, ..plan() };
        assert!(!table(&plan, &rows(), Situation::One).contains("0.45\n"));
        assert!(json(&plan, &rows(), "two cores", None)["rows"][0]["at_most"].is_null());
    }

    #[test]
    fn json_holds_what_was_measured() {
        let value = json(&plan(), &rows(), "two cores", None);
        assert_eq!(value["rows"][0]["providers"][0]["ratio"]["median"], 0.41);
        assert_eq!(value["rows"][0]["at_most"], 0.45);
        assert_eq!(value["rows"][1]["situation"], "two");
        assert!(value["rows"][2]["providers"][0].is_null() && value["date"].is_null());
    }
}
