//! After a run there is neither a file nor a process, however it ended.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use pvrdma_tests::{Provider, Running, Stand, User, c_program, free_port, machine, pair, wait_for_listener};

/// Everything anywhere that has our name: run folders in shared memory, in /tmp, in /run.
fn ours_everywhere() -> Vec<PathBuf> {
    ["/dev/shm", "/tmp", "/run", "/var/tmp"]
        .iter()
        .filter_map(|folder| std::fs::read_dir(folder).ok())
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.contains("pvrdma") && !name.starts_with("pvrdma-test-")
        })
        .collect()
}

fn expect_clean(stand: &Stand) {
    assert_eq!(stand.leftovers(), Vec::<PathBuf>::new());
}

#[test]
fn after_a_good_end() {
    let _machine = machine();
    for user in User::both() {
        let stand = Stand::new(user);
        let before = ours_everywhere();
        for provider in Provider::BOTH {
            stand.job("ibv_devinfo").provider(&provider).ok();
            expect_clean(&stand);
            let job = |guest| stand.job("ibv_rc_pingpong").guest(guest).provider(&provider).args(["-g", "1"]);
            let (server, client) = pair(job("a"), job("b"));
            server.ok();
            client.ok();
            expect_clean(&stand);
        }
        // Others may run and end meanwhile, so what is gone says nothing.
        let new: Vec<_> = ours_everywhere().into_iter().filter(|path| !before.contains(path)).collect();
        assert_eq!(new, Vec::<PathBuf>::new());
    }
}

#[test]
fn after_a_bad_end() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    assert_eq!(stand.job("false").output().status.code(), Some(1));
    expect_clean(&stand);
    let output = stand.job("sh").args(["-c", "kill -SEGV $$"]).output();
    assert_eq!(output.signal(), Some(libc::SIGSEGV));
    expect_clean(&stand);
}

/// A program that has a device open and goes on until it is stopped.
fn sitting(stand: &Stand) -> (Running, Running) {
    let program = stand.copy(&c_program("tests/c/peer.c", &[]));
    let port = free_port().to_string();
    let job = |guest, mode| stand.job(&program).guest(guest).args([mode, "-p", &port]);
    let mut server = job("a", "sit").spawn();
    wait_for_listener(&mut server, port.parse().expect("a number"));
    let mut client = job("b", "sit").args(["127.0.0.1"]).spawn();
    server.wait_for_text("ready");
    client.wait_for_text("ready");
    (server, client)
}

/// Signals that end a program, sent to `pvrdma` as a terminal or a service manager would.
#[test]
fn after_a_signal_to_pvrdma() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        let (server, client) = sitting(&stand);
        let inner = [server.program_pid("peer"), client.program_pid("peer")];
        for program in [&server, &client] {
            program.signal(program.pid(), signal);
        }
        for program in [server, client] {
            let output = program.wait();
            assert_eq!(output.signal(), Some(signal), "{output}");
        }
        expect_gone(&inner);
        expect_clean(&stand);
    }
}

#[test]
fn after_sigkill_of_the_program() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let (server, client) = sitting(&stand);
    for program in [&server, &client] {
        program.signal(program.program_pid("peer"), libc::SIGKILL);
    }
    for program in [server, client] {
        let output = program.wait();
        assert_eq!(output.signal(), Some(libc::SIGKILL), "{output}");
    }
    expect_clean(&stand);
}

/// SIGKILL of everything leaves files, for nobody is there to remove them; the next run does.
#[test]
fn after_sigkill_of_everything_the_next_run_cleans_up() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let (server, client) = sitting(&stand);
    let inner = [server.program_pid("peer"), client.program_pid("peer")];
    // Dropping kills the whole process group.
    drop((server, client));
    expect_gone(&inner);
    stand.job("ibv_devinfo").ok();
    expect_clean(&stand);
}

/// SIGKILL of `pvrdma` alone takes the program with it, or leaves it working; in no case a stray that spins.
#[test]
fn after_sigkill_of_pvrdma() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let (server, client) = sitting(&stand);
    let inner = [server.program_pid("peer"), client.program_pid("peer")];
    for program in [&server, &client] {
        program.signal(program.pid(), libc::SIGKILL);
    }
    expect_gone(&inner);
    drop((server, client));
    stand.job("ibv_devinfo").ok();
    expect_clean(&stand);
}

fn expect_gone(pids: &[u32]) {
    let end = Instant::now() + Duration::from_secs(30);
    for pid in pids {
        while is_alive(*pid) {
            assert!(Instant::now() < end, "process {pid} is still there");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Alive and not merely waiting to be collected by its parent.
fn is_alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| stat.rsplit(')').next().map(|rest| !rest.trim_start().starts_with('Z')))
        .unwrap_or(false)
}
