//! Many at once and many in a row: all finish, nothing leaks.

use std::time::Duration;

use pvrdma_tests::{Provider, Stand, User, c_program, free_port, machine, pair, wait_for_listener};

#[test]
fn sixteen_pairs_at_once_finish() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    for provider in Provider::BOTH {
        let mut running = Vec::new();
        for number in 0..16 {
            let port = free_port();
            // Half of them within one guest, half between two; eight guests in all.
            let (server, client) = (format!("g{}", number % 8), format!("g{}", (number + number / 8) % 8));
            let job = |guest: &str| {
                let job = stand.job("ibv_rc_pingpong").guest(guest).provider(&provider);
                job.time_out(Duration::from_secs(120)).args(["-c", "-g", "1", "-n", "200", "-p", &port.to_string()])
            };
            let mut server = job(&server).spawn();
            wait_for_listener(&mut server, port);
            running.push(job(&client).args(["127.0.0.1"]).spawn());
            running.push(server);
        }
        for program in running {
            program.wait().ok();
        }
        assert_eq!(stand.leftovers(), Vec::<std::path::PathBuf>::new());
    }
}

/// Two processes that meet, write to each other, part, and are gone.
#[test]
fn two_hundred_meetings_leave_nothing() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let program = stand.copy(&c_program("tests/c/peer.c", &[]));
    // One process stays for the whole time, so that whatever leaks has a place to pile up in.
    let keeper = stand.job("sleep").args(["600"]).guest("a").spawn();
    let mut before = Vec::new();
    for round in 0..200 {
        let job = |guest| stand.job(&program).guest(guest).args(["once"]);
        let (server, client) = pair(job("a"), job(if round % 2 == 0 { "a" } else { "b" }));
        server.ok();
        client.ok();
        match round {
            3 => before = stand.leftovers(),
            199 => assert_eq!(stand.leftovers(), before, "files pile up while a guest lives"),
            _ => {}
        }
    }
    drop(keeper);
}
