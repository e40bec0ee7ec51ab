//! `pvrdma run --fault`: what a bad network does to a program that checks every byte, and to one whose peer falls
//! silent.

use pvrdma_tests::{Provider, Stand, User, machine, pair};

#[test]
fn data_survives_what_retries_can_mend() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    // Probabilities at which some request of the 1000 meets the fault; the seed is the default one.
    for faults in ["drop=0.005", "drop-ack=0.005", "reorder=0.005", "duplicate=0.5", "rnr=0.2", "delay=100us"] {
        for provider in Provider::BOTH {
            let job = |guest| {
                let job = stand.job("ibv_rc_pingpong").option("--fault", faults).guest(guest).provider(&provider);
                job.args(["-c", "-g", "1"])
            };
            let (server, client) = pair(job("a"), job("b"));
            for output in [server, client] {
                let text = output.ok();
                assert!(text.contains("iters in"), "{faults}: {text}");
            }
        }
    }
}

#[test]
fn writes_and_atomics_survive_too() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    for program in ["ib_write_bw", "ib_read_bw", "ib_atomic_bw"] {
        let job = |guest| {
            let job =
                stand.job(program).guest(guest).option("--fault", "drop=0.002,drop-ack=0.002,duplicate=0.2,seed=3");
            job.args(["-n", "1000"])
        };
        let (server, client) = pair(job("a"), job("b"));
        server.ok();
        client.ok();
    }
}

/// Behind a lost answer others come, and more would be asked than the peer remembers, if only those without an answer
/// were counted.
#[test]
fn the_peer_remembers_what_it_answered_until_that_is_heard() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    for program in ["ib_read_bw", "ib_atomic_bw"] {
        for provider in Provider::BOTH {
            let job = |guest| {
                let job = stand.job(program).guest(guest).provider(&provider);
                job.option("--fault", "drop-ack=0.01").args(["-n", "1000"])
            };
            let (server, client) = pair(job("a"), job("b"));
            server.ok();
            client.ok();
        }
    }
}

/// The client sends into the void: RETRY_EXC_ERR, whose text stock programs print.
#[test]
fn a_dead_peer_is_told_by_the_retry_counter() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let port = pvrdma_tests::free_port().to_string();
    let job = |guest| stand.job("ibv_rc_pingpong").guest(guest).args(["-g", "1", "-p", &port]);
    let mut server = job("a").spawn();
    pvrdma_tests::wait_for_listener(&mut server, port.parse().expect("a number"));
    let client = job("b").option("--fault", "dead=100").args(["127.0.0.1"]).output();
    assert!(!client.status.success(), "{client}");
    assert!(client.to_string().contains("transport retry counter exceeded"), "{client}");
}

#[test]
fn a_list_that_makes_no_sense_is_refused() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    for (list, why) in [("drop=2", "probability"), ("lose=1", "there are drop"), ("delay=1", "time")] {
        let output = stand.job("true").option("--fault", list).output();
        assert_eq!(output.status.code(), Some(2), "{output}");
        assert!(output.to_string().contains(why), "{output}");
    }
}
