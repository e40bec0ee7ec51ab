//! valgrind's memcheck finds nothing wrong, and no memory that is definitely lost: stock programs and the C programs of
//! this folder, RC and UD, through our provider on the stand-in. No suppressions.

use std::path::Path;
use std::time::Duration;

use pvrdma_tests::{Job, Provider, Stand, User, c_program, machine, pair};

/// What memcheck ends with when it has found something.
const FOUND: &str = "--error-exitcode=99";

fn under_memcheck<'a>(stand: &'a Stand, program: impl AsRef<Path>) -> Job<'a> {
    let job = stand.job("valgrind").time_out(Duration::from_secs(600));
    let leaks = ["--leak-check=full", "--show-leak-kinds=definite", "--errors-for-leak-kinds=definite"];
    // Names of inlined functions take longer to read than the programs run.
    job.args(["-q", FOUND, "--read-inline-info=no"]).args(leaks).args([program.as_ref()])
}

/// A stock program pair of rdma-core, both sides under memcheck.
fn stock_pair(name: &str, arguments: &[&str]) {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let program = which(name);
    let job = |guest| under_memcheck(&stand, &program).guest(guest).args(["-g", "1", "-n", "100"]).args(arguments);
    let (server, client) = pair(job("a"), job("b"));
    for output in [server, client] {
        assert!(output.status.success() && output.stderr.is_empty(), "{output}");
    }
}

fn which(name: &str) -> std::path::PathBuf {
    let path = std::env::var_os("PATH").expect("PATH is set");
    let found = std::env::split_paths(&path).map(|folder| folder.join(name)).find(|program| program.is_file());
    found.unwrap_or_else(|| panic!("{name} is not installed"))
}

#[test]
fn rc_pingpong() {
    stock_pair("ibv_rc_pingpong", &["-c"]);
}

#[test]
fn rc_pingpong_with_events() {
    stock_pair("ibv_rc_pingpong", &["-c", "-e"]);
}

#[test]
fn ud_pingpong() {
    stock_pair("ibv_ud_pingpong", &["-c"]);
}

#[test]
fn srq_pingpong() {
    stock_pair("ibv_srq_pingpong", &["-c", "-e"]);
}

/// A C program of ours, alone.
fn own(source: &str, arguments: &[&str]) -> String {
    let stand = Stand::new(User::Me);
    let program = stand.copy(&c_program(source, &[]));
    let output = under_memcheck(&stand, &program).args(arguments).output();
    assert!(output.stderr.is_empty(), "{output}");
    output.ok()
}

#[test]
fn every_case_of_rc_loop() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let cases = stand.job(stand.copy(&c_program("tests/c/rc_loop.c", &[]))).ok();
    // One gives the device memory that is not there any more, which is for memcheck to find.
    own("tests/c/rc_loop.c", &cases.lines().filter(|case| *case != "unmapped").collect::<Vec<_>>());
}

#[test]
fn objects_that_come_and_go() {
    let _machine = machine();
    own("tests/c/churn.c", &["20", "pd", "mr", "cq", "channel", "rc_qp", "ud_qp", "srq", "ah", "pair", "context"]);
}

#[test]
fn every_opcode() {
    let _machine = machine();
    let said = own("tests/c/data.c", &["-k", "few"]);
    assert!(said.contains("FADD") && said.contains("READ"), "{said}");
}

/// The check itself: what memcheck finds is seen.
#[test]
fn a_program_that_loses_memory_is_found() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let program = stand.copy(&c_program("tests/c/churn.c", &["-DLOSE_MEMORY"]));
    let output = under_memcheck(&stand, &program).args(["20", "pd"]).provider(&Provider::Ours).output();
    assert_eq!(output.status.code(), Some(99), "{output}");
}
