//! `--trace FILE`: a line for every command, doorbell, completion and event, each whole and with its process.

use std::collections::BTreeSet;
use std::path::PathBuf;

use pvrdma_tests::{Provider, Stand, User, c_program, machine, pair};

/// Runs one case of rc_loop.c and gives the lines of its trace without process and thread.
fn traced(case: &str, provider: &Provider) -> Vec<String> {
    let stand = Stand::new(User::Me);
    let program = stand.copy(&c_program("tests/c/rc_loop.c", &[]));
    let file = tempfile::NamedTempFile::new().expect("a file");
    stand.job(&program).provider(provider).option("--trace", file.path()).args([case]).ok();
    let text = std::fs::read_to_string(file.path()).expect("own file");
    text.lines().map(|line| parts(line).1.to_owned()).collect()
}

/// `PID/TID rest`
fn parts(line: &str) -> ((u32, u32), &str) {
    let parsed = line.split_once(' ').and_then(|(ids, rest)| {
        let (process, thread) = ids.split_once('/')?;
        Some(((process.parse().ok()?, thread.parse().ok()?), rest))
    });
    parsed.unwrap_or_else(|| panic!("not PID/TID and text: {line:?}"))
}

/// Value of `key=` in the first line that begins with `name`.
fn field<'a>(lines: &'a [String], name: &str, key: &str) -> &'a str {
    let line = lines.iter().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in {lines:#?}"));
    let word = line.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
    word.unwrap_or_else(|| panic!("no {key} in {line}"))
}

/// The lines stand there in this order, others between them.
fn expect_in_order(lines: &[String], wanted: &[String]) {
    let mut rest = lines.iter();
    for line in wanted {
        assert!(rest.any(|found| found == line), "{line:?} is missing, or not after those before it: {lines:#?}");
    }
}

#[test]
fn a_story_can_be_read_from_it() {
    let _machine = machine();
    for provider in Provider::BOTH {
        let lines = traced("bad_rkey", &provider);
        let (qp, cq) = (field(&lines, "create_qp", "handle"), field(&lines, "create_cq", "cqn"));
        let wanted = [
            format!("QP {qp} SEND"),
            format!("CQE cq={cq} qp={qp} wr_id=0x1 RDMA_WRITE REM_ACCESS_ERR byte_len=0 vendor_err=0x62"),
            format!("CQE cq={cq} qp={qp} wr_id=0x2 RDMA_WRITE WR_FLUSH_ERR byte_len=0"),
            "close -> ok".to_owned(),
        ];
        expect_in_order(&lines, &wanted);
        assert!(lines.iter().any(|line| line.starts_with("EVENT QP_ACCESS_ERR qp=")), "{lines:#?}");
        assert!(lines[0].starts_with("get_context"), "{}", lines[0]);
    }
}

#[test]
fn arming_and_events() {
    let _machine = machine();
    for provider in Provider::BOTH {
        let lines = traced("arm", &provider);
        let arm = lines.iter().find(|line| line.ends_with(" ARM")).expect("an ARM");
        let cq = arm.split(' ').nth(1).expect("CQ N ARM");
        expect_in_order(&lines, &[arm.clone(), format!("EVENT COMPLETION cq={cq}")]);
        let lines = traced("arm_solicited", &provider);
        assert!(lines.iter().any(|line| line.ends_with(" ARM_SOL")), "{lines:#?}");
    }
}

/// A program that waits by polling does not fill the disk.
#[test]
fn polls_in_a_row_are_counted() {
    let _machine = machine();
    let lines = traced("receiver_late", &Provider::Ours);
    let is_poll = |line: &String| line.starts_with("CQ ") && line.ends_with(" POLL");
    assert!(lines.iter().any(is_poll), "{lines:#?}");
    assert!(lines.iter().any(|line| line.starts_with("CQ ") && line.ends_with(" more")), "{lines:#?}");
    let repeated = lines.windows(2).filter(|two| is_poll(&two[0]) && two[0] == two[1]).count();
    assert_eq!(repeated, 0, "{lines:#?}");
}

/// Two programs may write into one file: no line is torn, and each process says its own.
#[test]
fn two_programs_share_a_file() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let file = tempfile::NamedTempFile::new().expect("a file");
    let job = |guest| {
        let job = stand.job("ibv_rc_pingpong").guest(guest).option("--trace", file.path());
        job.args(["-c", "-e", "-g", "1", "-n", "200"])
    };
    let (server, client) = pair(job("a"), job("b"));
    server.ok();
    client.ok();
    let text = std::fs::read_to_string(file.path()).expect("own file");
    assert!(text.ends_with('\n'));
    let first = ["QP ", "CQ ", "SRQ ", "CQE ", "EVENT ", "SITES ", "PATH "];
    let mut processes = BTreeSet::new();
    for line in text.lines() {
        let ((process, _), rest) = parts(line);
        processes.insert(process);
        let whole = first.iter().any(|word| rest.starts_with(word)) || rest.contains(" -> ");
        assert!(whole, "{line:?}");
    }
    assert_eq!(processes.len(), 2);
    let success = text.lines().filter(|line| line.contains(" CQE ") && line.contains(" SUCCESS ")).count();
    assert_eq!(success, 800, "200 round trips, each with two sends and two receives");
    assert_eq!(stand.leftovers(), Vec::<PathBuf>::new());
}

/// A child that closes all descriptors and opens others in their place does not get the trace into them.
#[test]
fn a_child_has_a_trace_descriptor_of_its_own() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let program = stand.copy(&c_program("tests/c/fork.c", &[]));
    let file = tempfile::NamedTempFile::new().expect("a file");
    stand.job(&program).option("--trace", file.path()).args(["closed_by_child", "child_opens"]).ok();
    let text = std::fs::read_to_string(file.path()).expect("own file");
    let opened: BTreeSet<u32> =
        text.lines().filter(|line| line.contains(" get_context ")).map(|line| parts(line).0.0).collect();
    // The parent, the child that closed everything first, and five children that did not.
    assert_eq!(opened.len(), 7, "{text}");
}
