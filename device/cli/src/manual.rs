//! Manual pages and shell completion, made from the help texts, so that there is one description of each option.
//!
//! `pvrdma man COMMAND` and `pvrdma completion SHELL` print them; `packaging/install.sh`, by which packages are made
//! too, puts them where man(1) and the shells look.

use std::fmt::Write;

use crate::{Usage, doctor, link, run, serve, status};

/// A help text in parts.
struct Help {
    command: &'static str,
    /// What it is for, one sentence.
    summary: String,
    usage: String,
    options: Vec<Opt>,
    /// Paragraphs behind the options.
    rest: Vec<String>,
}

struct Opt {
    /// `-h, --help` or `--guest NAME`.
    spelled: String,
    text: String,
}

impl Opt {
    /// The long form, without dashes.
    fn long(&self) -> &str {
        let long = self.spelled.split_once("--").map_or("", |(_, long)| long);
        long.split([' ', '=']).next().unwrap_or_default()
    }

    /// What stands for its value.
    fn value(&self) -> Option<&str> {
        self.spelled.split_once("--")?.1.split_once(' ').map(|(_, value)| value)
    }
}

/// Commands that have a help text.
const HELPS: [(&str, &str); 5] = [
    ("run", run::HELP),
    ("serve", serve::HELP),
    ("link", link::HELP),
    ("status", status::HELP),
    ("doctor", doctor::HELP),
];

fn helps() -> [Help; HELPS.len()] {
    HELPS.map(|(command, text)| parse(command, text))
}

/// The names of those commands.
fn pages() -> String {
    HELPS.map(|(command, _)| command).join(" ")
}

/// The house style of a help text: a summary, `Usage:`, `Options:` with one or more blanks before the explanation, and
/// paragraphs.
fn parse(command: &'static str, text: &str) -> Help {
    let (summary, after) = text.split_once("\n\nUsage: ").expect("a help text has its usage");
    let (usage, after) = after.split_once("\n\nOptions:\n").expect("a help text has options");
    let (block, rest) = after.split_once("\n\n").expect("a help text ends with prose");
    let mut options: Vec<Opt> = Vec::new();
    for line in block.lines() {
        match (line.trim_start().starts_with('-'), line.trim().split_once("  ")) {
            (true, Some((spelled, text))) => {
                options.push(Opt { spelled: spelled.to_owned(), text: text.trim().to_owned() });
            }
            _ => {
                let option = options.last_mut().expect("an option comes before its text");
                option.text.push(' ');
                option.text.push_str(line.trim());
            }
        }
    }
    Help {
        command,
        summary: summary.to_owned(),
        usage: usage.to_owned(),
        options,
        rest: rest.trim_end().split("\n\n").map(str::to_owned).collect(),
    }
}

/// `pvrdma man COMMAND`: a page for man(1).
pub fn man(command: &str) -> Result<String, Usage> {
    let helps = helps();
    let help = helps.iter().find(|help| help.command == command);
    let help = help.ok_or_else(|| Usage(format!("there is no page for {command:?}, only for {}", pages())))?;
    let mut page = format!(".TH PVRDMA-{} 1 \"\" \"pvrdma {}\"\n", command.to_uppercase(), env!("CARGO_PKG_VERSION"));
    let mut put = |text: &str| writeln!(page, "{text}").expect("a string grows");
    put(".SH NAME");
    put(&format!(
        "pvrdma\\-{command} \\- {}",
        roff(help.summary.lines().next().unwrap_or_default().trim_end_matches('.'))
    ));
    put(".SH SYNOPSIS");
    put(&format!("\\fB{}\\fR", roff(&help.usage)));
    put(".SH DESCRIPTION");
    put(&roff(&help.summary));
    for paragraph in &help.rest {
        put(".PP");
        // What is set in, such as a command, stays as it is.
        match paragraph.lines().any(|line| line.starts_with("  ")) {
            true => put(&format!(".nf\n{}\n.fi", roff(paragraph))),
            false => put(&roff(paragraph)),
        }
    }
    put(".SH OPTIONS");
    for option in &help.options {
        put(&format!(".TP\n\\fB{}\\fR\n{}", roff(&option.spelled), roff(&option.text)));
    }
    put(".SH SEE ALSO");
    let others = helps.iter().filter(|help| help.command != command);
    put(&others.map(|help| format!("\\fBpvrdma\\-{}\\fR(1)", help.command)).collect::<Vec<_>>().join(", "));
    Ok(page)
}

/// Text that roff takes for nothing else.
fn roff(text: &str) -> String {
    let lines = text.lines().map(|line| {
        let line = line.replace('\\', "\\e").replace('-', "\\-");
        match line.starts_with(['.', '\'']) {
            true => format!("\\&{line}"),
            false => line,
        }
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// What can follow an option that wants a value.
fn values(option: &Opt) -> (&'static str, bool) {
    match (option.long(), option.value()) {
        ("roce", _) => ("v1 v2", false),
        ("provider", _) => ("ours system", true),
        ("paths", _) => ("memory tcp memory,tcp", false),
        (_, Some("PATH" | "FILE" | "FOLDER")) => ("", true),
        _ => ("", false),
    }
}

fn long_options(help: &Help) -> String {
    help.options.iter().map(|option| format!("--{}", option.long())).collect::<Vec<_>>().join(" ")
}

fn commands() -> String {
    format!("{} man completion --help --version", pages())
}

/// What follows a command, but for its options: words, by what bash and zsh call it. A word of `link` may be a file's.
fn words(command: &str) -> (&'static str, Files) {
    match command {
        // What `run` starts is a program.
        "run" => ("", Files::Programs),
        "link" => (link::COMMANDS, Files::Any),
        _ => ("", Files::None),
    }
}

enum Files {
    None,
    Any,
    Programs,
}

/// `pvrdma completion SHELL`: a script for that shell.
pub fn completion(shell: &str) -> Result<String, Usage> {
    match shell {
        "bash" => Ok(bash()),
        "zsh" => Ok(zsh()),
        "fish" => Ok(fish()),
        _ => Err(Usage(format!("no completion for {shell:?}; bash, zsh and fish have one"))),
    }
}

/// Options with values, each once, with the words and whether files may follow.
fn with_values() -> Vec<(String, &'static str, bool)> {
    let mut found: Vec<(String, &'static str, bool)> = Vec::new();
    for option in helps().iter().flat_map(|help| &help.options).filter(|option| option.value().is_some()) {
        let (words, files) = values(option);
        if !found.iter().any(|(name, ..)| name == option.long()) {
            found.push((option.long().to_owned(), words, files));
        }
    }
    found
}

fn bash() -> String {
    let mut text =
        "# Completion of pvrdma for bash.\n_pvrdma() {\n    local cur=${COMP_WORDS[COMP_CWORD]}\n".to_owned();
    let mut put = |line: &str| writeln!(text, "{line}").expect("a string grows");
    put("    COMPREPLY=()");
    put("    if [ \"$COMP_CWORD\" = 1 ]; then");
    put(&format!("        COMPREPLY=($(compgen -W '{}' -- \"$cur\"))", commands()));
    put("        return");
    put("    fi");
    put("    case ${COMP_WORDS[COMP_CWORD-1]} in");
    for (name, words, files) in with_values() {
        let files = if files { " $(compgen -f -- \"$cur\")" } else { "" };
        put(&format!("    --{name}) COMPREPLY=($(compgen -W '{words}' -- \"$cur\"){files}); return ;;"));
    }
    put("    esac");
    put("    case ${COMP_WORDS[1]} in");
    for help in helps() {
        let (words, files) = words(help.command);
        let files = match files {
            Files::None => "",
            Files::Any => " $(compgen -f -- \"$cur\")",
            Files::Programs => " $(compgen -c -- \"$cur\")",
        };
        // The first word is one of those, and later ones are files or programs.
        let first = if words.is_empty() { files.to_owned() } else { format!(" $(compgen -W '{words}' -- \"$cur\")") };
        let options = long_options(&help);
        put(&format!("    {})", help.command));
        put(&format!("        if [[ $cur == -* ]]; then COMPREPLY=($(compgen -W '{options}' -- \"$cur\"))"));
        put(&format!("        elif [ \"$COMP_CWORD\" = 2 ]; then COMPREPLY=({first} )"));
        put(&format!("        else COMPREPLY=({files} ); fi ;;"));
    }
    put(&format!("    man) COMPREPLY=($(compgen -W '{}' -- \"$cur\")) ;;", pages()));
    put("    completion) COMPREPLY=($(compgen -W 'bash zsh fish' -- \"$cur\")) ;;");
    put("    esac");
    put("}");
    put("complete -F _pvrdma pvrdma");
    text
}

fn zsh() -> String {
    let mut text = "#compdef pvrdma\n# Completion of pvrdma for zsh.\n".to_owned();
    let mut put = |line: &str| writeln!(text, "{line}").expect("a string grows");
    put(&format!("if (( CURRENT == 2 )); then compadd -- {}; return; fi", commands()));
    put("case $words[CURRENT-1] in");
    for (name, words, files) in with_values() {
        let words = if words.is_empty() { String::new() } else { format!("compadd -- {words}; ") };
        let files = if files { "_files; " } else { "" };
        put(&format!("(--{name}) {words}{files}return ;;"));
    }
    put("esac");
    put("case $words[2] in");
    for help in helps() {
        let (words, files) = words(help.command);
        let files = match files {
            Files::None => ":",
            Files::Any => "_files",
            Files::Programs => "_command_names -e",
        };
        let first = if words.is_empty() { files.to_owned() } else { format!("compadd -- {words}") };
        put(&format!("({}) if [[ $PREFIX == -* ]]; then compadd -- {}", help.command, long_options(&help)));
        put(&format!("elif (( CURRENT == 3 )); then {first}; else {files}; fi ;;"));
    }
    put(&format!("(man) compadd -- {} ;;", pages()));
    put("(completion) compadd -- bash zsh fish ;;");
    put("esac");
    text
}

fn fish() -> String {
    let mut text = "# Completion of pvrdma for fish.\ncomplete -c pvrdma -f\n".to_owned();
    let mut put = |line: &str| writeln!(text, "{line}").expect("a string grows");
    let quoted = |text: &str| format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"));
    for help in helps() {
        let Help { command, summary, .. } = &help;
        put(&format!("complete -c pvrdma -n __fish_use_subcommand -a {command} -d {}", quoted(summary)));
        for option in &help.options {
            let (words, files) = values(option);
            let mut line =
                format!("complete -c pvrdma -n '__fish_seen_subcommand_from {command}' -l {}", option.long());
            if option.value().is_some() {
                line.push_str(if files { " -r -F" } else { " -x" });
            }
            if !words.is_empty() {
                line.push_str(&format!(" -a {}", quoted(words)));
            }
            put(&format!("{line} -d {}", quoted(&option.text)));
        }
    }
    let link = link::COMMANDS;
    put(&format!("complete -c pvrdma -n '__fish_prev_arg_in link' -a '{link}'"));
    put("complete -c pvrdma -n '__fish_seen_subcommand_from join' -F");
    put(&format!("complete -c pvrdma -n '__fish_seen_subcommand_from man' -a '{}'", pages()));
    put("complete -c pvrdma -n '__fish_seen_subcommand_from completion' -a 'bash zsh fish'");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn every_option_has_its_place_in_the_page() {
        let page = man("run").unwrap();
        for part in [
            ".TH PVRDMA-RUN 1",
            "\\fB\\-\\-guest NAME\\fR\nthe guest to run in; programs of one guest share its device, different guests",
            "\\fB\\-\\-provider ours|system|PATH\\fR",
            "Exit status:",
        ] {
            assert!(page.contains(part), "{part}:\n{page}");
        }
        for (command, _) in HELPS {
            let page = man(command).unwrap();
            let help = helps().into_iter().find(|help| help.command == command).unwrap();
            assert!(help.options.len() > 2 && help.options.iter().all(|option| !option.long().is_empty()));
            assert_eq!(page.matches(".TP\n").count(), help.options.len(), "{page}");
        }
        assert!(man("runn").is_err() && completion("tcsh").is_err());
    }

    #[test]
    fn bash_completes() {
        let complete = |words: &[&str]| -> Vec<String> {
            let script = format!(
                "{}COMP_WORDS=(pvrdma {}); COMP_CWORD={}; _pvrdma; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
                bash(),
                words.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" "),
                words.len()
            );
            let output = Command::new("bash").args(["--norc", "-c", &script]).output().unwrap();
            assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap().split_whitespace().map(str::to_owned).collect()
        };
        assert_eq!(complete(&["d"]), ["doctor"]);
        assert_eq!(complete(&["run", "--gu"]), ["--guest"]);
        assert_eq!(complete(&["run", "--roce", ""]), ["v1", "v2"]);
        assert_eq!(complete(&["doctor", "--j"]), ["--json"]);
        assert_eq!(complete(&["serve", "--so"]), ["--socket"]);
        assert_eq!(complete(&["li"]), ["link"]);
        assert_eq!(complete(&["link", "a"]), ["add"]);
        assert_eq!(complete(&["link", "init", "--lo"]), ["--loopback"]);
        assert_eq!(complete(&["link", "join", "Cargo.t"]), ["Cargo.toml"]);
        assert_eq!(complete(&["man", "l"]), ["link"]);
        assert_eq!(complete(&["status", "--s"]), ["--server"]);
        assert_eq!(complete(&["run", "--paths", "t"]), ["tcp"]);
        assert!(complete(&["run", "bas"]).contains(&"bash".to_owned()));
    }

    #[test]
    fn other_shells_know_every_option() {
        for option in helps().iter().flat_map(|help| &help.options) {
            assert!(fish().contains(&format!(" -l {}", option.long())), "{}", option.long());
            assert!(zsh().contains(&format!("--{}", option.long())), "{}", option.long());
        }
    }
}
