//! Doorbells at declared sites (tests/c/site.c): without a trap they do what they do with one, and where a site cannot
//! be had they trap. And what the plugin's notes tell others about its sites.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use pvrdma_tests::{Doorbells, Job, Provider, Stand, User, artifacts, c_program, cannot_run, debug_provider, machine};

/// The program and its libraries, where it finds them.
fn program(stand: &Stand) -> Job<'_> {
    let library = |source, sites| {
        stand.copy(&c_program(&format!("tests/c/{source}.c"), &["-shared", "-fPIC", &format!("-DSITES={sites}")]))
    };
    stand
        .job(stand.copy(&c_program("tests/c/site.c", &[])))
        .env("PVRDMA_HOOKS", "1")
        .env("OWN_LIBRARY", library("site_own", 0))
        .env("SITE_LIBRARY", library("site_lib", 7))
        .env("OTHER_LIBRARY", library("site_lib", 3))
        .env("MANY_LIBRARY", library("site_lib", 70))
}

fn cases_on(provider: &Provider, doorbells: Doorbells, names: &[&str]) {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    for name in names {
        let text = program(&stand).provider(provider).doorbells(doorbells).args([name]).ok();
        let text = match text.strip_prefix("NOT RUN: ") {
            Some(rest) => {
                let (why, rest) = rest.split_once('\n').expect("a line");
                cannot_run(name, why);
                rest
            }
            None => &text,
        };
        assert_eq!(text, format!("ok {name}\n"), "{provider:?} {doorbells:?}");
    }
}

fn cases(names: &[&str]) {
    cases_on(&Provider::Ours, Doorbells::Usual, names);
}

#[test]
fn our_provider_rings_without_a_trap() {
    cases(&["provider_by_site"]);
    cases_on(&Provider::Path(debug_provider()), Doorbells::Usual, &["provider_by_site"]);
}

#[test]
fn on_demand_everything_traps() {
    cases_on(&Provider::Ours, Doorbells::Trapped, &["provider_by_trap", "registers_trapped"]);
}

#[test]
fn the_c_provider_traps() {
    cases_on(&Provider::System, Doorbells::Usual, &["provider_by_trap"]);
}

#[test]
fn the_processor_is_as_it_was() {
    cases(&["registers", "undeclared_vectors", "masks_stay"]);
}

#[test]
fn inside_the_device() {
    for doorbells in [Doorbells::Usual, Doorbells::Trapped] {
        cases_on(&Provider::Ours, doorbells, &["backtrace_leads_out", "rounding_inside"]);
    }
}

#[test]
fn no_memory_for_a_stack() {
    for doorbells in [Doorbells::Usual, Doorbells::Trapped] {
        cases_on(&Provider::Ours, doorbells, &["no_memory", "no_memory_small_signal_stack"]);
    }
}

#[test]
fn what_is_no_doorbell_page_is_stored_to() {
    cases(&["plain_memory", "out_of_reach"]);
}

#[test]
fn text_that_must_not_become_writable() {
    cases(&["denied_write_and_execute", "denied_execute", "denied_by_prctl"]);
}

#[test]
fn bytes_of_others_stay() {
    cases(&["breakpoint_before", "breakpoint_after"]);
}

#[test]
fn objects_come_and_go() {
    cases(&["reloaded", "several_libraries", "too_many"]);
}

#[test]
fn taken_while_threads_ring() {
    cases(&["taken_under_way"]);
}

#[test]
fn handlers_that_ring() {
    cases(&["handler_before", "handler_after", "handler_raw"]);
}

#[test]
fn children() {
    cases(&["forked"]);
}

/// valgrind keeps translations of code, and must not have it changed.
#[test]
fn under_valgrind_nothing_is_changed() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let site = stand.copy(&c_program("tests/c/site.c", &[]));
    let own = stand.copy(&c_program("tests/c/site_own.c", &["-shared", "-fPIC", "-DSITES=0"]));
    let job = stand.job("valgrind").time_out(Duration::from_secs(300)).env("PVRDMA_HOOKS", "1").env("OWN_LIBRARY", own);
    let output =
        job.args(["-q".as_ref(), "--tool=none".as_ref(), site.as_os_str(), "provider_by_trap".as_ref()]).output();
    assert!(output.stderr.is_empty(), "{output}");
    assert_eq!(output.ok(), "ok provider_by_trap\n");
}

/// All cases are run by some test above.
#[test]
fn no_case_is_forgotten() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let listed = program(&stand).ok();
    let source = include_str!("site.rs");
    for name in listed.lines() {
        assert!(source.contains(&format!("\"{name}\"")), "nobody runs {name}");
    }
}

/// The trace says what became of the sites.
#[test]
fn the_trace_counts_sites() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let sites = notes(&artifacts().join("libvmw_pvrdma.so")).len();
    let said = |doorbells: Doorbells, provider: &Provider| {
        let file = stand.run_folder().join("trace");
        let job = stand.job("ibv_devinfo").provider(provider).doorbells(doorbells);
        job.option("--trace", &file).ok();
        let text = std::fs::read_to_string(&file).expect("a trace");
        std::fs::remove_file(&file).expect("own file");
        text.lines().filter_map(|line| Some(line.split_once(" SITES ")?.1.to_owned())).collect::<Vec<_>>()
    };
    assert_eq!(said(Doorbells::Usual, &Provider::Ours), [format!("{sites} taken")]);
    assert_eq!(said(Doorbells::Trapped, &Provider::Ours), ["not wanted"]);
    assert_eq!(said(Doorbells::Usual, &Provider::System), ["none"]);
}

// ---- what the file says ------------------------------------------------------------------------

/// A note of the doorbell as SystemTap has it, and as the stand-in has it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Note {
    nop: u64,
    arguments: String,
}

fn readelf(options: &[&str], file: &Path) -> String {
    let output = Command::new("readelf").args(options).arg(file).output().expect("readelf is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn hex(text: &str) -> u64 {
    let digits = text.trim_end_matches(',');
    u64::from_str_radix(digits.strip_prefix("0x").unwrap_or(digits), 16)
        .unwrap_or_else(|_| panic!("{text} is no number"))
}

/// Address, file offset and length of a section, and its flags.
fn section(file: &Path, name: &str) -> (u64, u64, u64, String) {
    let text = readelf(&["-SW"], file);
    let line = text.lines().find(|line| line.split_whitespace().any(|word| word == name));
    let line = line.unwrap_or_else(|| panic!("no section {name}:\n{text}"));
    let mut words = line.split_whitespace().skip_while(|word| *word != name).skip(2);
    let mut number = || hex(words.next().expect("a number"));
    let (address, offset, len, _) = (number(), number(), number(), number());
    (address, offset, len, words.next().unwrap_or_default().to_owned())
}

/// The SystemTap notes, by address.
fn notes(file: &Path) -> Vec<Note> {
    let text = readelf(&["-n"], file);
    let (base, ..) = section(file, ".stapsdt.base");
    let mut found = Vec::new();
    let mut lines = text.lines().map(str::trim).skip_while(|line| !line.ends_with(".note.stapsdt"));
    while let Some(line) = lines.next() {
        if line != "Provider: pvrdma" {
            continue;
        }
        assert_eq!(lines.next(), Some("Name: doorbell"));
        let place: Vec<&str> = lines.next().expect("a place").split_whitespace().collect();
        // As all tools do: a file that was moved after it was made has moved by the difference.
        assert_eq!(hex(place[3]), base, "{text}");
        assert_eq!(hex(place[5]), 0, "a semaphore: {text}");
        let arguments = lines.next().expect("arguments").strip_prefix("Arguments: ").expect("arguments");
        found.push(Note { nop: hex(place[1]), arguments: arguments.to_owned() });
    }
    found.sort();
    found
}

/// The loaded notes: where they lead, by the bytes of the file.
fn loaded_notes(file: &Path) -> Vec<(Note, u64)> {
    let (address, offset, len, flags) = section(file, ".note.pvrdma");
    assert_eq!(flags, "A", "loaded, and not writable");
    let bytes = std::fs::read(file).expect("the plugin");
    let bytes = &bytes[offset as usize..(offset + len) as usize];
    let word = |at: usize| u32::from_le_bytes(*bytes[at..].first_chunk().expect("a word"));
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        assert_eq!((word(at), word(at + 8), &bytes[at + 12..at + 19]), (7, 0x101, &b"pvrdma\0"[..]));
        let (start, len) = (at + 20, word(at + 4) as usize);
        let place = |at: usize| (address + at as u64).wrapping_add_signed(i64::from(word(at).cast_signed()));
        let text = std::ffi::CStr::from_bytes_with_nul(&bytes[start + 8..start + len]).expect("a text to the end");
        let arguments = text.to_str().expect("ASCII").to_owned();
        found.push((Note { nop: place(start), arguments }, place(start + 4)));
        at = (start + len).next_multiple_of(4);
    }
    found.sort();
    found
}

/// Where an address of the loaded plugin is in its file.
fn file_offset(file: &Path, address: u64) -> u64 {
    let text = readelf(&["-lW"], file);
    let loads = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let inside = loads.filter(|words| words.first() == Some(&"LOAD")).find_map(|words| {
        let (offset, start, len) = (hex(words[1]), hex(words[2]), hex(words[4]));
        (start..start + len).contains(&address).then(|| address - start + offset)
    });
    inside.unwrap_or_else(|| panic!("{address:#x} is not loaded:\n{text}"))
}

/// Both notes of a site say the same, and at the place they name is a nop within an aligned word, and a store.
fn notes_are_right(file: &Path) {
    let (declared, loaded) = (notes(file), loaded_notes(file));
    assert!(declared.len() >= 5, "send, receive, shared receive, poll, arm: {declared:?}");
    assert_eq!(
        declared,
        loaded.iter().map(|(note, _)| Note { nop: note.nop, arguments: note.arguments.clone() }).collect::<Vec<_>>()
    );
    let bytes = std::fs::read(file).expect("the plugin");
    let (base, base_offset, _, flags) = section(file, ".stapsdt.base");
    assert!(flags.contains('A') && flags.contains('X'), "{flags}");
    for (note, behind) in loaded {
        let offset = file_offset(file, note.nop);
        assert_eq!(bytes[offset as usize..][..6], [0x48, 0x0f, 0x1f, 0x44, 0x00, 0x00], "{note:?}");
        assert!(note.nop % 8 <= 2, "{note:?}");
        assert!((8..=14).contains(&(behind - note.nop)), "{note:?}");
        // perf takes the distance between address and file offset from this section.
        assert_eq!(
            note.nop.wrapping_sub(base).wrapping_add(base_offset),
            offset,
            "perf would look elsewhere: {note:?}"
        );
    }
}

#[test]
fn both_notes_are_right() {
    notes_are_right(&artifacts().join("libvmw_pvrdma.so"));
    notes_are_right(&debug_provider());
}

#[test]
fn strip_keeps_both_notes() {
    let folder = tempfile::tempdir().expect("a folder");
    let (before, stripped) = (artifacts().join("libvmw_pvrdma.so"), folder.path().join("stripped.so"));
    let status = Command::new("strip").arg("-o").args([&stripped, &before]).status().expect("strip is installed");
    assert!(status.success());
    assert_eq!(notes(&before), notes(&stripped));
    notes_are_right(&stripped);
}
