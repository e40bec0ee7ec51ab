//! Mistakes of the user: one clear line, an exit status that is not zero, and nothing left behind.

use std::path::{Path, PathBuf};
use std::process::Command;

use pvrdma_tests::{Job, Stand, User, c_program, machine};

/// Runs `job`, which must fail with one line on standard error that has all `words`. Returns its exit status.
fn refused(stand: &Stand, job: Job, words: &[&str]) -> Option<i32> {
    let output = job.output();
    assert!(!output.status.success(), "{output}");
    assert_eq!(output.stdout, "", "{output}");
    assert_eq!(output.stderr.lines().count(), 1, "one line: {output}");
    for word in words {
        assert!(output.stderr.contains(word), "it must say {word:?}: {output}");
    }
    assert_eq!(stand.leftovers(), Vec::<PathBuf>::new());
    output.status.code()
}

#[test]
fn unknown_subcommands_and_options() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    refused(&stand, stand.pvrdma(&["fly"]), &["fly"]);
    refused(&stand, stand.pvrdma(&["--fly"]), &["--fly"]);
    refused(&stand, stand.pvrdma(&["run", "--fly", "--", "true"]), &["--fly"]);
    refused(&stand, stand.pvrdma(&["run", "--roce", "v3", "--", "true"]), &["--roce", "v3"]);
    refused(&stand, stand.pvrdma(&["run", "--guest"]), &["--guest"]);
    refused(&stand, stand.pvrdma(&["run", "--guest", "../../etc", "--", "true"]), &["../../etc"]);
    refused(&stand, stand.pvrdma(&["run", "--guest", "", "--", "true"]), &["guest"]);
    refused(&stand, stand.pvrdma(&["run"]), &["program"]);
    refused(&stand, stand.pvrdma(&["run", "--"]), &["program"]);
    refused(&stand, stand.pvrdma(&["serve", "--fly"]), &["--fly"]);
    refused(&stand, stand.pvrdma(&["serve"]), &["--socket"]);
}

#[test]
fn help_is_no_mistake() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    for arguments in [&["--help"][..], &["run", "--help"], &["serve", "--help"]] {
        let text = stand.pvrdma(arguments).ok();
        assert!(text.to_lowercase().contains("usage"), "{text}");
    }
    assert!(stand.pvrdma(&["--version"]).ok().contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn providers_that_are_none() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    for path in ["/no/such/provider.so", "ourz", "/etc/passwd", "/", "/bin"] {
        refused(&stand, stand.job("true").option("--provider", path), &[path]);
    }
}

/// Exit status 127 for what is not there and 126 for what cannot be run, as in a shell.
#[test]
fn programs_that_are_none() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    for (program, status) in [("no-such-program", 127), ("/no/such/program", 127), ("/etc/passwd", 126), ("/etc", 126)]
    {
        assert_eq!(refused(&stand, stand.job(program), &[program]), Some(status), "{program}");
    }
}

/// A preload library cannot reach a static program; without a word it would run and find no device.
#[test]
fn static_programs() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let place = stand.run_folder().join("hello");
    compile_static(&place);
    let program = stand.copy(&place);
    std::fs::remove_file(place).expect("own file");
    refused(&stand, stand.job(&program), &["hello", "static"]);
}

fn compile_static(place: &Path) {
    let mut compiler = Command::new("cc")
        .args(["-static", "-x", "c", "-", "-o"])
        .arg(place)
        .stdin(std::process::Stdio::piped())
        .spawn()
        .expect("a C compiler called cc is installed");
    let mut source = compiler.stdin.take().expect("a pipe");
    std::io::Write::write_all(&mut source, b"int main(void) { return 0; }").expect("the compiler reads");
    drop(source);
    assert!(compiler.wait().expect("own child").success());
}

#[test]
fn trace_files_that_cannot_be_written() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    refused(&stand, stand.job("true").option("--trace", "/no/such/folder/trace"), &["/no/such/folder/trace"]);
}

/// What processes share is a file of some gigabytes, nearly all of it holes. To make it longer than one may is a signal
/// that kills.
#[test]
fn a_limit_on_the_size_of_files() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let output = stand.job("sh").args(["-c", "ulimit -f 100; ibv_devinfo; echo $?"]).output();
    assert!(output.stdout.ends_with("\n1\n") || output.stdout == "1\n", "{output}");
    assert!(output.stderr.starts_with("pvrdma: ") && output.stderr.contains("File too large"), "{output}");
    // Where the file is there already, no limit keeps anybody from it.
    let script = "ibv_devinfo >one; (ulimit -f 100; ibv_devinfo >two); cmp one two && rm one two";
    assert_eq!(stand.job("sh").args(["-c", script]).ok(), "");
}

/// What the program does with its exit status is not changed on the way.
#[test]
fn exit_status_is_the_programs() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    for status in [0, 1, 42, 255] {
        let output = stand.job("sh").args(["-c", &format!("exit {status}")]).output();
        assert_eq!(output.status.code(), Some(status), "{output}");
        assert_eq!(output.stderr, "", "{output}");
    }
    for signal in [libc::SIGKILL, libc::SIGTERM, libc::SIGINT] {
        let output = stand.job("sh").args(["-c", &format!("kill -{signal} $$")]).output();
        assert_eq!(output.status.code(), Some(128 + signal), "{output}");
    }
}

/// Options of the program are the program's, with or without `--` before it.
#[test]
fn arguments_reach_the_program() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let text = stand.job("printf").args(["%s|", "--guest", "x y", "", "--"]).ok();
    assert_eq!(text, "--guest|x y||--|");
    assert_eq!(stand.pvrdma(&["run", "printf", "%s|", "--help"]).ok(), "--help|");
}

/// Without its thread the device could serve no program that waits for others: it does not open.
#[test]
fn no_room_for_a_thread() {
    let _machine = machine();
    // To root the limit does not apply.
    let user = User::both().pop().expect("there is one");
    let stand = Stand::new(user);
    let program = stand.copy(&c_program("tests/c/rc_loop.c", &[]));
    let run = |threads: u32| {
        stand.job("prlimit").args([format!("--nproc={threads}")]).args([&program]).args(["send"]).output()
    };
    run(1000).ok();
    let output = run(1);
    assert!(!output.status.success(), "{output}");
    assert!(output.stderr.contains("cannot have its thread"), "{output}");
    assert_eq!(stand.leftovers(), Vec::<PathBuf>::new());
}
