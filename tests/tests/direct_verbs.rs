//! Direct verbs: programs that post and poll by themselves (tests/c/direct.c), linked as a user links them; found while
//! a program runs (tests/c/direct_late.c); and the manual pages.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use pvrdma_tests::{Doorbells, Job, Provider, Stand, User, Uverbs, artifacts, c_program, machine, workspace};

/// A C program that can include the header; `linked`: to the library, whose soname is what the loader looks for then.
fn compiled(source: &str, linked: bool) -> PathBuf {
    let include = format!("-I{}", workspace().join("include").display());
    let folder = format!("-L{}", artifacts().display());
    let link: &[&str] = if linked { &[&include, &folder, "-l:libvmw_pvrdma.so"] } else { &[&include] };
    c_program(source, link)
}

/// The program with the library where the loader finds it, by the name that an installation has.
fn job<'a>(stand: &'a Stand, program: &Path) -> Job<'a> {
    let folder = stand.path("lib");
    if !folder.exists() {
        fs::create_dir(&folder).expect("a folder");
        symlink("../libvmw_pvrdma.so", folder.join("libpvrdmadv.so.1")).expect("a link");
    }
    stand.job(program).env("LD_LIBRARY_PATH", folder)
}

fn cases_on(user: User, doorbells: Doorbells, uverbs: Uverbs) {
    let _machine = machine();
    let stand = Stand::new(user);
    let program = stand.copy(&compiled("tests/c/direct.c", true));
    let listed = job(&stand, &program).ok();
    assert!(listed.lines().count() >= 15, "the program lists its cases: {listed}");
    let mut failed = Vec::new();
    for case in listed.lines() {
        let output = job(&stand, &program).doorbells(doorbells).uverbs(uverbs).args([case]).output();
        if !output.status.success() || output.stdout != format!("ok {case}\n") || !output.stderr.is_empty() {
            failed.push(format!("{case}: {output}"));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn a_program_posts_and_polls_by_itself() {
    cases_on(User::Me, Doorbells::Usual, Uverbs::Ioctl);
}

#[test]
fn so_does_an_ordinary_user_whose_doorbells_all_trap() {
    let user = User::both().pop().expect("a user");
    cases_on(user, Doorbells::Trapped, Uverbs::Write);
}

/// The soname makes it one library, by whatever name it was loaded; a second file is another provider.
#[test]
fn a_program_that_is_not_linked_finds_the_provider_that_serves() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let program = stand.copy(&compiled("tests/c/direct_late.c", false));
    assert_eq!(stand.job(&program).ok(), "ok\n");
    let copy = stand.path("copy.so");
    fs::copy(stand.path("libvmw_pvrdma.so"), &copy).expect("a copy");
    for provider in Provider::BOTH {
        assert_eq!(stand.job(&program).provider(&provider).args([&copy]).ok(), "ok\n", "{provider:?}");
    }
}

/// A program that is linked to it has the provider before libibverbs looks for one; it is the one that serves.
#[test]
fn the_file_is_loaded_once_by_all_its_names() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let program = stand.copy(&compiled("tests/c/direct.c", true));
    let output = job(&stand, &program).env("LD_DEBUG", "files").args(["shapes"]).output();
    assert!(output.status.success(), "{output}");
    let constructors = output.stderr.lines().filter(|line| line.contains("calling init: ") && is_provider(line));
    assert_eq!(constructors.count(), 1, "{}", output.stderr);
}

fn is_provider(line: &str) -> bool {
    ["libpvrdmadv.so", "libvmw_pvrdma"].iter().any(|name| line.contains(name))
}

/// And each function has one.
#[test]
fn manual_pages_have_no_fault_and_their_program_compiles() {
    let folder = workspace().join("docs/man");
    let mut pages: Vec<PathBuf> =
        fs::read_dir(&folder).expect("docs/man").map(|entry| entry.expect("an entry").path()).collect();
    pages.sort();
    assert!(pages.len() >= 7, "{pages:?}");
    for page in &pages {
        let text = fs::read_to_string(page).expect("a page");
        let output = Command::new("man")
            .args(["--warnings=w", "-E", "UTF-8", "-l", "-Tutf8", "-Z"])
            .arg(page)
            .current_dir(&folder)
            .output()
            .expect("man is installed");
        let complaints = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && complaints.is_empty(), "{}: {complaints}", page.display());
        assert!(text.lines().all(|line| line.chars().count() <= 120), "{}: a long line", page.display());
    }
    // The header's functions, each with a page of its name.
    let header = fs::read_to_string(workspace().join("include/infiniband/pvrdmadv.h")).expect("the header");
    let names: Vec<&str> = header.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    for name in names.iter().filter(|name| name.starts_with("pvrdmadv_query_") || **name == "pvrdmadv_is_supported") {
        assert!(folder.join(format!("{name}.3")).is_file(), "{name} has no manual page");
    }
    let page = fs::read_to_string(folder.join("pvrdmadv.7")).expect("the page");
    let program: String = page
        .split(".EX\n")
        .skip(1)
        .map(|block| block.split(".EE").next().expect("an end").replace("\\e", "\\").replace("\\-", "-"))
        .collect();
    let folder = tempfile::tempdir().expect("a folder");
    let source = folder.path().join("example.c");
    fs::write(&source, program).expect("a file");
    let include = format!("-I{}", workspace().join("include").display());
    let output = Command::new("cc")
        .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", &include])
        .arg(&source)
        .output()
        .expect("a C compiler");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
