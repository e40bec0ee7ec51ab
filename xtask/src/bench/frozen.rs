//! The tables of time of each hot verb on a device that stands still.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use pvrdma_perftest::frozen::Plan;
use pvrdma_perftest::{Situation, chart, report};
use pvrdma_tests::{Provider, Stand};

const USAGE: &str = "\
usage: cargo xtask bench frozen [OPTIONS]

  --provider ours|system|PATH   measure this one; may be given again (default: ours)
  --base ours|system|PATH       compare with this one (default: system, the C provider)
  --runs N                      rounds, each with all providers (default: 51)
  --json FILE                   write all figures to FILE
  --svg FILE                    draw the first provider's ratios into FILE
  --date TEXT                   the date to write into both files
";

/// What was asked for.
pub struct Options {
    plan: Plan,
    json: Option<PathBuf>,
    svg: Option<PathBuf>,
    date: Option<String>,
}

/// Rounds, unless told otherwise: a process takes a tenth of a second.
const RUNS: usize = 51;

/// Batches of each operation in a process.
const BATCHES: usize = 1000;

/// `None`: only the help text was wanted.
pub fn parse(arguments: &[String]) -> Result<Option<Options>> {
    let plan = Plan { base: Provider::System, providers: Vec::new(), runs: RUNS, batches: BATCHES };
    let mut options = Options { plan, json: None, svg: None, date: None };
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        if word == "--help" || word == "-h" {
            print!("{USAGE}");
            return Ok(None);
        }
        let value = || words.clone().next().with_context(|| format!("{word} needs a value\n{USAGE}"));
        match word.as_str() {
            "--provider" => options.plan.providers.push(provider(value()?)?),
            "--base" => options.plan.base = provider(value()?)?,
            "--runs" => {
                options.plan.runs = value()?.parse()?;
                ensure!(options.plan.runs > 0, "no runs, no figures");
            }
            "--json" => options.json = Some(value()?.into()),
            "--svg" => options.svg = Some(value()?.into()),
            "--date" => options.date = Some(value()?.clone()),
            other => bail!("unexpected argument {other}\n{USAGE}"),
        }
        words.next();
    }
    if options.plan.providers.is_empty() {
        options.plan.providers.push(Provider::Ours);
    }
    Ok(Some(options))
}

/// By the words of `pvrdma run --provider`. The path is made one that holds in every folder.
fn provider(word: &str) -> Result<Provider> {
    Ok(match word {
        "ours" => Provider::Ours,
        "system" => Provider::System,
        path => Provider::Path(Path::new(path).canonicalize().with_context(|| format!("no provider {path}"))?),
    })
}

/// Measures, prints, writes the files.
pub fn print(stand: &Stand, options: &Options) -> Result<()> {
    let Options { plan, json, svg, date } = options;
    let rows = plan.measure(stand, |situation, run| {
        eprint!("\r{}, round {} of {}   ", situation.title(), run + 1, plan.runs);
    });
    eprintln!();
    println!(
        "Time per request or completion, device frozen; median of {} runs, ratios within a run (quartiles)\n",
        plan.runs
    );
    print!("{}", report::legend(plan));
    for situation in Situation::ALL {
        println!("{}", report::table(plan, &rows, situation));
    }
    let (machine, date) = (report::machine(), date.as_deref());
    if let Some(file) = json {
        let text = format!("{:#}\n", report::json(plan, &rows, &machine, date));
        fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    if let Some(file) = svg {
        let text = chart::svg(plan, &rows, 0, &machine, date);
        fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shell::owned;

    #[test]
    fn ours_beside_the_c_provider_unless_told_otherwise() {
        let options = parse(&[]).expect("no error").expect("a plan");
        assert_eq!((options.plan.base, options.plan.providers), (Provider::System, vec![Provider::Ours]));
        let words = ["--provider", "system", "--provider", "/", "--base", "ours", "--runs", "3", "--json", "a b"];
        let options = parse(&owned(&words)).expect("no error").expect("a plan");
        assert_eq!(options.plan.providers, [Provider::System, Provider::Path("/".into())]);
        assert_eq!((options.plan.base, options.plan.runs), (Provider::Ours, 3));
        assert_eq!(options.json, Some("a b".into()));
    }

    #[test]
    fn mistakes_are_told() {
        for words in
            [&["--provider"][..], &["--provider", "/no/such/file"], &["--runs", "0"], &["--runs", "x"], &["fast"]]
        {
            assert!(parse(&owned(words)).is_err(), "{words:?}");
        }
    }
}
