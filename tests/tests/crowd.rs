//! 200 processes in eight guests at once, each connected to eight others: tests/c/crowd.c.

use std::path::PathBuf;
use std::time::Duration;

use pvrdma_tests::{Provider, Stand, User, amount, c_program, free_port, machine};

const GUESTS: usize = 8;

fn crowd(stand: &Stand, provider: &Provider, count: usize) {
    let program = stand.copy(&c_program("tests/c/crowd.c", &[]));
    let port = free_port().to_string();
    let start = |rank: usize| {
        let job = stand.job(&program).guest(&format!("g{}", rank % GUESTS)).provider(provider);
        let job = job.time_out(Duration::from_secs(300));
        job.args(["-p", &port, "-n", &count.to_string(), "-r", &rank.to_string()]).spawn()
    };
    let ranks: Vec<_> = (0..count).map(start).collect();
    for (rank, running) in ranks.into_iter().enumerate() {
        assert_eq!(running.wait().ok(), format!("rank {rank} is done\n"));
    }
    assert_eq!(stand.leftovers(), Vec::<PathBuf>::new());
}

#[test]
fn two_hundred_processes_end_well() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    for provider in Provider::BOTH {
        for _ in 0..amount(1, 10) {
            crowd(&stand, &provider, 200);
        }
    }
}

/// Small enough to come and go often.
#[test]
fn forty_again_and_again() {
    let _machine = machine();
    let stand = Stand::new(User::both().pop().expect("somebody runs the tests"));
    for _ in 0..amount(5, 100) {
        crowd(&stand, &Provider::Ours, 40);
    }
}
