//! What documents and comments say about the tree is there: files that they name, links, headings, tests that hold
//! rules. And a line of a document is at most 120 columns long.
//!
//! A file is named by its path from the top of the tree, or by the end of its path; a comment means a file of its own
//! crate, a document one at its side or below. So a file that moves takes its mentions with it, or this fails.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use pvrdma_tests::workspace;

/// Folders of what is built, fetched or grown.
const NOT_OURS: &[&str] = &[".git", "target", "seeds", "corpus"];

/// What a word must end with to be a file's name; a path, with a slash in it, may have others.
const NAMES: &[&str] = &[".rs", ".md"];
const PATHS: &[&str] = &[".rs", ".md", ".c", ".txt", ".toml", ".py", ".sh"];

const COLUMNS: usize = 120;

/// The files of the tree, by their paths from the top.
struct Tree(BTreeSet<String>);

impl Tree {
    fn new() -> Self {
        let mut files = BTreeSet::new();
        collect(&workspace(), "", &mut files);
        Self(files)
    }

    fn files(&self, suffix: &str) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str).filter(move |file| file.ends_with(suffix))
    }

    /// Is there a file or folder `path`, from the top?
    fn has(&self, path: &str) -> bool {
        let below = format!("{path}/");
        self.0.contains(path) || self.0.range(below.clone()..).next().is_some_and(|file| file.starts_with(&below))
    }

    /// The folder whose files `file` may name by the ends of their paths: of the crate, or of the document.
    fn home<'a>(&self, file: &'a str) -> &'a str {
        let mut folder = parent(file);
        while file.ends_with(".rs") && !folder.is_empty() && !self.0.contains(&format!("{folder}/Cargo.toml")) {
            folder = parent(folder);
        }
        folder
    }

    /// Is there what `file` names?
    fn knows(&self, file: &str, name: &str) -> bool {
        let name = name.trim_end_matches('/');
        let climbed = name.trim_start_matches("../");
        if climbed != name {
            return self.has(&joined(parent(file), name));
        }
        let (home, end) = (self.home(file), format!("/{name}"));
        let is_near = |path: &str| home.is_empty() || path.starts_with(home) && path[home.len()..].starts_with('/');
        self.has(name) || self.0.iter().any(|path| is_near(path) && path.ends_with(&end))
    }

    /// Is `word` the name of a file, or of a folder from the top?
    fn is_name(&self, word: &str) -> bool {
        if let Some((first, rest)) = word.split_once('/')
            && !rest.trim_matches('/').is_empty()
        {
            let ours = self.0.range(format!("{first}/")..).next().is_some_and(|f| f.starts_with(&format!("{first}/")));
            return ours && !first.starts_with('.') || PATHS.iter().any(|end| word.ends_with(end));
        }
        NAMES.iter().any(|end| word.len() > end.len() && word.ends_with(end))
    }

    /// Names in `text` that nothing has.
    fn unknown<'a>(&self, file: &str, text: &'a str) -> Vec<&'a str> {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && !"_-./*{}<>:$~".contains(c));
        words
            // A pattern, a place on some machine, an address on the net.
            .filter(|word| !word.contains(['*', '{', '<', '$', '~']) && !word.contains("//") && !word.starts_with('/'))
            .map(|word| word.split_once(':').map_or(word, |(before, _)| before))
            .map(|word| word.trim_start_matches("./").trim_end_matches('.'))
            .filter(|word| self.is_name(word) && !self.knows(file, word))
            .collect()
    }
}

fn collect(folder: &Path, path: &str, files: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let entry = entry.expect("an entry");
        let name = entry.file_name().into_string().expect("a name in UTF-8");
        let path = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
        if !entry.file_type().expect("a type").is_dir() {
            files.insert(path);
        } else if !NOT_OURS.contains(&name.as_str()) {
            collect(&entry.path(), &path, files);
        }
    }
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// `path`, which may climb, from `folder`.
fn joined(folder: &str, path: &str) -> String {
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in path.split('/') {
        match part {
            ".." => drop(parts.pop()),
            "." | "" => {}
            _ => parts.push(part),
        }
    }
    parts.join("/")
}

fn read(file: &str) -> String {
    fs::read_to_string(workspace().join(file)).expect("a text")
}

/// Comments of a Rust source: lines that are nothing else.
fn comments(text: &str) -> impl Iterator<Item = (usize, &str)> {
    lines(text).filter_map(|(number, line)| Some((number, line.trim_start().strip_prefix("//")?)))
}

fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(at, line)| (at + 1, line))
}

/// Lines of a document that are prose: neither table, nor code.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fenced = false;
    lines(text).filter(move |(_, line)| {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        !fenced && !line.starts_with('|') && !line.starts_with("    ")
    })
}

/// What a heading is called in links.
fn anchor(heading: &str) -> String {
    let kept = heading.trim_start_matches('#').trim().to_lowercase();
    kept.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// Targets of the links in a document that lead into the tree.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let ends = text.split("](").skip(1);
    ends.filter_map(|rest| rest.split_once(')')).map(|(target, _)| target).filter(|target| !target.contains("://"))
}

#[test]
fn files_that_comments_name_are_there() {
    let tree = Tree::new();
    let mut missing = String::new();
    for file in tree.files(".rs") {
        for (number, comment) in comments(&read(file)) {
            for name in tree.unknown(file, comment) {
                writeln!(missing, "{file}:{number}: {name}").expect("a string grows");
            }
        }
    }
    assert!(missing.is_empty(), "no such file:\n{missing}");
}

#[test]
fn files_that_documents_name_are_there() {
    let tree = Tree::new();
    let mut missing = String::new();
    for file in tree.files(".md") {
        for (number, line) in lines(&read(file)) {
            for name in tree.unknown(file, line) {
                writeln!(missing, "{file}:{number}: {name}").expect("a string grows");
            }
        }
    }
    assert!(missing.is_empty(), "no such file:\n{missing}");
}

#[test]
fn links_between_documents_lead_somewhere() {
    let tree = Tree::new();
    let mut missing = String::new();
    for file in tree.files(".md") {
        let text = read(file);
        for link in links(&text) {
            let (path, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() { file.to_owned() } else { joined(parent(file), path) };
            let leads = tree.has(&target)
                && (heading.is_empty()
                    || read(&target).lines().any(|line| line.starts_with('#') && anchor(line) == heading));
            if !leads {
                writeln!(missing, "{file}: {link}").expect("a string grows");
            }
        }
    }
    assert!(missing.is_empty(), "links to nothing:\n{missing}");
}

#[test]
fn lines_of_documents_and_comments_have_at_most_120_columns() {
    let tree = Tree::new();
    let mut long = String::new();
    for file in tree.files(".md") {
        for (number, line) in prose(&read(file)) {
            let columns = line.chars().count();
            if columns > COLUMNS {
                writeln!(long, "{file}:{number}: {columns} columns").expect("a string grows");
            }
        }
    }
    // Of comments too, which rustfmt leaves alone. Not of tables, whose rows are lines.
    for file in tree.files(".rs") {
        for (at, line) in read(file).lines().enumerate() {
            let text = line.trim_start();
            let columns = line.chars().count();
            if columns > COLUMNS && text.starts_with("//") && !text.contains("| ") {
                writeln!(long, "{file}:{}: {columns} columns", at + 1).expect("a string grows");
            }
        }
    }
    assert!(long.is_empty(), "too long:\n{long}");
}

/// The tests that a line of a table names: `FILE: NAME, NAME`.
fn named_tests(line: &str) -> impl Iterator<Item = (&str, &str)> {
    let quoted = line.split('`').skip(1).step_by(2).filter(|quoted| quoted.contains(".rs: "));
    let files = quoted.filter_map(|quoted| quoted.split_once(": "));
    files.flat_map(|(file, names)| names.split(", ").map(move |name| (file, name)))
}

fn has_test(text: &str, name: &str) -> bool {
    let begin = format!("fn {name}(");
    text.match_indices(&begin).any(|(at, _)| text[..at].trim_end().ends_with("#[test]"))
}

/// Each rule in the table of what is kept of those for RoCE has a test, or says where it is told of.
#[test]
fn the_tests_that_hold_the_rules_for_roce_are_there() {
    let text = read("device/roce/CONFORMANCE.md");
    let (kept, _) = text.split_once("## What is not done").expect("a table of what is not done");
    let mut bad = String::new();
    let mut count = 0;
    for (number, line) in lines(kept).filter(|(_, line)| line.starts_with("| ")) {
        let tests: Vec<_> = named_tests(line).collect();
        let is_head = line.ends_with("| test |");
        if tests.is_empty() && !is_head && !line.contains("| see [") {
            writeln!(bad, "line {number} names no test").expect("a string grows");
        }
        for (file, name) in &tests {
            if !fs::read_to_string(workspace().join(file)).is_ok_and(|text| has_test(&text, name)) {
                writeln!(bad, "line {number}: {file} has no test {name}").expect("a string grows");
            }
        }
        count += tests.len();
    }
    assert!(bad.is_empty(), "{bad}");
    assert!(count > 100, "{count} tests are named");
}

#[test]
fn a_test_that_is_gone_is_noticed() {
    let text = "    #[test]\n    fn one() {}\nfn two() {}\n#[test]\nfn three_four() {}";
    assert_eq!(["one", "two", "three_four", "three"].map(|name| has_test(text, name)), [true, false, true, false]);
    let named = named_tests("| a `word`, b.rs: c | kept | `a/b.rs: one, two`; `c.rs: three` |");
    assert_eq!(named.collect::<Vec<_>>(), [("a/b.rs", "one"), ("a/b.rs", "two"), ("c.rs", "three")]);
}

#[test]
fn a_file_that_is_gone_is_noticed() {
    let files = ["DESIGN.md", "a/README.md", "a/Cargo.toml", "a/src/lib.rs", "a/src/ring/cq.rs", "b/Cargo.toml"];
    let tree = Tree(files.into_iter().chain(["b/src/only_here.rs"]).map(String::from).collect());
    let unknown = |file, text| tree.unknown(file, text);
    let none: [&str; 0] = [];
    // By the whole path, by its end, by a climb, with a line number, at the end of a sentence; folders too.
    let named = "See `a/src/lib.rs`, ring/cq.rs:17 and cq.rs. In a/src/ring, a/src/.";
    assert_eq!(unknown("DESIGN.md", named), none);
    assert_eq!(unknown("a/src/lib.rs", "`cq.rs`, `../Cargo.toml`, DESIGN.md, `b/src/only_here.rs`"), none);
    // No file of ours: patterns, other places, words.
    assert_eq!(unknown("DESIGN.md", "a/*.rs /etc/a.rs $HOME/a.md https://x.y/z.md and/or 0.5 e.g. ring/cq"), none);
    assert_eq!(
        unknown("DESIGN.md", "`cq_gone.rs`, a/src/gone/, ring/lib.rs"),
        ["cq_gone.rs", "a/src/gone/", "ring/lib.rs"]
    );
    // What is another crate's is named by its whole path.
    assert_eq!(unknown("a/src/lib.rs", "`only_here.rs`, `../gone.rs`"), ["only_here.rs", "../gone.rs"]);
}

#[test]
fn tables_and_code_may_be_wide_and_prose_may_not() {
    let text = "one\n| two |\n    three\n```\nfour\n```\nfive";
    let numbers: Vec<usize> = prose(text).map(|(number, _)| number).collect();
    assert_eq!(numbers, [1, 6, 7]);
    assert_eq!(anchor("## What Linux's driver does not do"), "what-linuxs-driver-does-not-do");
    assert_eq!(links("[a](b.md#c) [d](https://e) [f](#g)").collect::<Vec<_>>(), ["b.md#c", "#g"]);
}
