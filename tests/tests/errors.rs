//! The table of errors (device/ERRORS.md), row by row (tests/c/errors.c), and that table and tests name each other.

mod cases;

use cases::Program;
use pvrdma_tests::{Provider, Stand, User, Uverbs, c_program, machine, pair};
use std::fs;
use std::path::Path;

const ERRORS: Program = Program { source: "tests/c/errors.c", cases: 19 };

#[test]
fn our_provider() {
    for uverbs in Uverbs::ALL {
        ERRORS.run(User::Me, &Provider::Ours, uverbs);
    }
}

#[test]
fn systems_provider() {
    ERRORS.run(User::Me, &Provider::System, Uverbs::Ioctl);
}

#[test]
fn under_address_sanitizer() {
    ERRORS.run_sanitized();
}

/// What software RoCE of Linux is asked on a wire (`cargo xtask vm --wire`), here with the stand-in on both sides.
#[test]
fn between_two_guests() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let program = stand.copy(&c_program("tests/c/wire.c", &[]));
    for provider in Provider::BOTH {
        let job = |guest| stand.job(&program).guest(guest).provider(&provider).args(["-g", "1"]);
        let (server, client) = pair(job("red"), job("blue"));
        assert_eq!(server.ok(), client.ok(), "both sides do the same cases");
    }
}

/// The names in the last column of the tables: what stands between backquotes.
fn named_tests(table: &str) -> Vec<&str> {
    let rows = table.lines().filter(|line| line.starts_with("| ") || line.starts_with("|  "));
    let last = rows.filter_map(|line| line.trim_end_matches(" |").rsplit(" | ").next());
    last.filter_map(|cell| cell.trim().strip_prefix('`')?.strip_suffix('`')).collect()
}

#[test]
fn table_and_tests_name_each_other() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let read = |path: &Path| fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let table = read(&workspace.join("device/ERRORS.md"));
    let named = named_tests(&table);
    assert!(named.len() >= 30, "the table was read: {named:?}");
    let program = read(&workspace.join(ERRORS.source));
    let cases: Vec<&str> =
        program.lines().filter_map(|line| line.trim().strip_prefix("{\"")?.split('"').next()).collect();
    assert_eq!(cases.len(), ERRORS.cases, "{cases:?}");
    let core: String = fs::read_dir(workspace.join("device/core/tests"))
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .map(|path| read(&path))
        .collect();
    for name in &named {
        let there = cases.contains(name) || core.contains(&format!("#[test]\nfn {name}()"));
        assert!(there, "ERRORS.md names `{name}`, which is no test");
    }
    for case in cases {
        assert!(named.contains(&case), "`{case}` is in no row of ERRORS.md");
    }
}
