//! One side is killed: the other one is told in time, and the next run works.

use std::path::Path;
use std::time::Duration;

use pvrdma_tests::{Provider, Stand, User, c_program, free_port, machine, pair, wait_for_listener};

/// `retries exceeded after 290 ms of 268 ms`: what peer.c says in the end.
fn times(text: &str) -> (f64, f64) {
    let line = text.lines().find(|line| line.starts_with("retries exceeded")).unwrap_or_else(|| panic!("{text}"));
    let numbers: Vec<f64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    (numbers[0], numbers[1])
}

/// A peer is killed while `mode` runs towards it.
///
/// A busy machine may bring the news late, so it has several tries at bringing them in time; too early is never right.
fn survivor_is_told(stand: &Stand, provider: &Provider, guests: (&str, &str), mode: &str) {
    let program = stand.copy(&c_program("tests/c/peer.c", &[]));
    let mut late = Vec::new();
    while late.len() < 5 {
        let port = free_port().to_string();
        let job = |guest, mode| stand.job(&program).guest(guest).provider(provider).args([mode, "-p", &port]);
        let mut victim = job(guests.0, "sit").spawn();
        wait_for_listener(&mut victim, port.parse().expect("a number"));
        let mut survivor = job(guests.1, mode).args(["127.0.0.1"]).spawn();
        victim.wait_for_text("ready");
        survivor.wait_for_text("running");
        victim.signal(victim.program_pid("peer"), libc::SIGKILL);
        let (took, patience) = times(&survivor.wait().ok());
        let what = format!("{mode} with {provider:?} in {guests:?}: timeout x (retry_cnt + 1) is {patience} ms");
        assert!(took >= patience, "{what}, told after {took} ms");
        if took <= 4.0 * patience {
            return;
        }
        late.push(format!("{what}, told after {took} ms"));
    }
    panic!("never in time: {late:#?}");
}

#[test]
fn the_other_side_gets_retry_exceeded_in_time() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    for provider in Provider::BOTH {
        for guests in [("a", "a"), ("a", "b")] {
            for mode in ["write", "read", "sleep"] {
                survivor_is_told(&stand, &provider, guests, mode);
                next_run_works(&stand, &provider);
            }
        }
    }
}

fn next_run_works(stand: &Stand, provider: &Provider) {
    let job = |guest| {
        let job = stand.job("ibv_rc_pingpong").guest(guest).provider(provider);
        job.args(["-c", "-g", "1", "-n", "100"])
    };
    let (server, client) = pair(job("a"), job("b"));
    server.ok();
    client.ok();
}

/// Killed in the middle of the traffic, where a lock may be held: thirty times, at thirty different moments.
#[test]
fn killed_in_full_flight() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let program = stand.copy(&c_program("tests/c/peer.c", &[]));
    // A bystander with traffic of its own in the same two guests must not notice.
    for round in 0..30u64 {
        let port = free_port().to_string();
        let job = |guest| stand.job(&program).guest(guest).args(["write", "-p", &port]);
        let mut victim = job("a").spawn();
        wait_for_listener(&mut victim, port.parse().expect("a number"));
        let mut survivor = job(if round % 2 == 0 { "a" } else { "b" }).args(["127.0.0.1"]).spawn();
        victim.wait_for_text("running");
        survivor.wait_for_text("running");
        std::thread::sleep(Duration::from_micros(round * 137));
        victim.signal(victim.program_pid("peer"), libc::SIGKILL);
        times(&survivor.wait().ok());
        next_run_works(&stand, &Provider::Ours);
    }
    assert_eq!(stand.leftovers(), Vec::<std::path::PathBuf>::new());
}

/// A neighbour in the same guest goes on when a process of that guest is killed.
#[test]
fn neighbours_do_not_notice() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let program = stand.copy(&c_program("tests/c/peer.c", &[]));
    // Until the neighbours take long enough for somebody to be killed meanwhile.
    let killed = (0..5).map(|n| kill_beside_a_pair(&stand, &program, 20_000 << n)).find(|killed| *killed > 0);
    assert!(killed.is_some(), "the pair was always done before anybody was killed");
}

/// Kills up to ten processes beside a pair that exchanges `messages`. Returns how many.
fn kill_beside_a_pair(stand: &Stand, program: &Path, messages: u32) -> u32 {
    let port = free_port();
    let job = |guest| {
        let job = stand.job("ibv_rc_pingpong").guest(guest).args(["-c", "-g", "1", "-e"]);
        job.args(["-n", &messages.to_string(), "-p", &port.to_string()])
    };
    let mut server = job("a").spawn();
    wait_for_listener(&mut server, port);
    let mut client = job("b").args(["127.0.0.1"]).spawn();
    let mut killed = 0;
    while !client.has_ended() && killed < 10 {
        let port = free_port().to_string();
        let job = |guest, mode| stand.job(program).guest(guest).args([mode, "-p", &port]);
        let mut victim = job("a", "sit").spawn();
        wait_for_listener(&mut victim, port.parse().expect("a number"));
        let mut survivor = job("b", "write").args(["127.0.0.1"]).spawn();
        survivor.wait_for_text("running");
        victim.signal(victim.program_pid("peer"), libc::SIGKILL);
        times(&survivor.wait().ok());
        killed += 1;
    }
    client.wait().ok();
    server.wait().ok();
    killed
}
