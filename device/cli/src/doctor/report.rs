//! What the floors find, and how it is told: lines of text, JSON, or the commands of the cures.

use std::fmt::Write;

use crate::json::quoted;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// As it should be.
    Ok,
    /// Nothing to judge: a fact, or what cannot be seen from here.
    Note,
    /// RDMA works, but not for everybody or not as well.
    Warn,
    /// RDMA does not work.
    Fail,
    /// Not found out, though it decides.
    Unknown,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Level::Ok => "ok",
            Level::Note => "note",
            Level::Warn => "warn",
            Level::Fail => "fail",
            Level::Unknown => "unknown",
        }
    }
}

/// The outcome of one check.
#[derive(Clone, Debug)]
pub struct Finding {
    /// What was asked, a name that stays from release to release.
    pub check: &'static str,
    pub level: Level,
    /// What was found.
    pub what: String,
    /// What to do about it, for people.
    pub cure: Option<String>,
    /// The same as shell commands, where it can be said so.
    pub commands: Vec<String>,
}

impl Finding {
    pub fn new(level: Level, check: &'static str, what: impl Into<String>) -> Self {
        Finding { check, level, what: what.into(), cure: None, commands: Vec::new() }
    }

    pub fn ok(check: &'static str, what: impl Into<String>) -> Self {
        Self::new(Level::Ok, check, what)
    }

    pub fn note(check: &'static str, what: impl Into<String>) -> Self {
        Self::new(Level::Note, check, what)
    }

    pub fn warn(check: &'static str, what: impl Into<String>) -> Self {
        Self::new(Level::Warn, check, what)
    }

    pub fn fail(check: &'static str, what: impl Into<String>) -> Self {
        Self::new(Level::Fail, check, what)
    }

    pub fn cure(mut self, cure: impl Into<String>) -> Self {
        self.cure = Some(cure.into());
        self
    }

    pub fn command(mut self, command: impl Into<String>) -> Self {
        self.commands.push(command.into());
        self
    }
}

/// The exit status: 0 well, 1 something is wrong, 2 cannot tell.
pub fn status(findings: &[Finding]) -> u8 {
    let any = |level| findings.iter().any(|finding| finding.level == level);
    match (any(Level::Fail), any(Level::Unknown)) {
        (true, _) => 1,
        (false, true) => 2,
        (false, false) => 0,
    }
}

/// A line for each finding, and one that sums up.
pub fn text(findings: &[Finding]) -> String {
    let mut text = String::new();
    for Finding { check, level, what, cure, .. } in findings {
        write!(text, "{:<7} {check}: {what}", level.name()).expect("a string grows");
        if let Some(cure) = cure {
            write!(text, " -- {cure}").expect("a string grows");
        }
        text.push('\n');
    }
    text + verdict(findings) + "\n"
}

fn verdict(findings: &[Finding]) -> &'static str {
    match status(findings) {
        0 => "RDMA works here.",
        1 => "RDMA does not work here; the lines with `fail` say why.",
        _ => "Nothing is wrong as far as can be seen, but that it works was not shown.",
    }
}

/// One object; `findings` holds the lines of [`text`].
pub fn json(findings: &[Finding]) -> String {
    let lines: Vec<String> = findings
        .iter()
        .map(|finding| {
            let commands: Vec<String> = finding.commands.iter().map(|command| quoted(command)).collect();
            format!(
                "    {{\"check\": {}, \"level\": {}, \"what\": {}, \"cure\": {}, \"commands\": [{}]}}",
                quoted(finding.check),
                quoted(finding.level.name()),
                quoted(&finding.what),
                finding.cure.as_deref().map_or("null".to_owned(), quoted),
                commands.join(", ")
            )
        })
        .collect();
    format!(
        "{{\n  \"version\": {},\n  \"status\": {},\n  \"findings\": [\n{}\n  ]\n}}\n",
        quoted(env!("CARGO_PKG_VERSION")),
        status(findings),
        lines.join(",\n")
    )
}

/// What `--fix` prints: a script to read, and to run if one agrees.
pub fn commands(findings: &[Finding]) -> String {
    let mut text = String::new();
    for Finding { check, what, cure, commands, .. } in findings {
        let Some(cure) = cure else { continue };
        writeln!(text, "# {check}: {what}").expect("a string grows");
        match commands.is_empty() {
            true => writeln!(text, "#   {cure}").expect("a string grows"),
            false => commands.iter().for_each(|command| writeln!(text, "{command}").expect("a string grows")),
        }
    }
    match text.is_empty() {
        true => "# nothing to do\n".to_owned(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings() -> Vec<Finding> {
        vec![Finding::ok("a", "well"), Finding::warn("b", "say \"x\"\n\\").cure("do").command("make it so")]
    }

    #[test]
    fn the_worst_decides() {
        let unknown = Finding::new(Level::Unknown, "c", "not run");
        assert_eq!(status(&findings()), 0);
        assert_eq!(status(&[findings(), vec![unknown.clone()]].concat()), 2);
        assert_eq!(status(&[unknown, Finding::fail("d", "broken")]), 1);
    }

    #[test]
    fn a_check_is_a_line() {
        assert_eq!(text(&findings()[..1]), "ok      a: well\nRDMA works here.\n");
        assert!(text(&findings()[1..]).contains("\\ -- do\n"));
    }

    #[test]
    fn json_escapes_what_it_must() {
        let json = json(&findings());
        assert!(json.contains(r#""what": "say \"x\"\u000a\\", "cure": "do", "commands": ["make it so"]"#), "{json}");
        assert!(json.contains(r#""cure": null, "commands": []"#), "{json}");
    }

    #[test]
    fn a_fix_is_the_commands_and_why() {
        assert!(commands(&findings()).ends_with("\nmake it so\n"));
        assert_eq!(commands(&findings()[..1]), "# nothing to do\n");
    }
}
