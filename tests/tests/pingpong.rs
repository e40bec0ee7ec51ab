//! `ibv_rc_pingpong -c`: every byte checked, polling and asleep, in one guest and between two.

use pvrdma_tests::{Provider, Stand, User, Uverbs, machine, pair};

/// Guest of the server, guest of the client.
const PLACES: [(&str, &str); 2] = [("a", "a"), ("a", "b")];

fn ping(stand: &Stand, provider: &Provider, (server, client): (&str, &str), uverbs: Uverbs, arguments: &[&str]) {
    let job = |guest| {
        stand.job("ibv_rc_pingpong").guest(guest).provider(provider).uverbs(uverbs).args(["-c"]).args(arguments)
    };
    let (server, client) = pair(job(server), job(client));
    for output in [server, client] {
        let text = output.ok();
        assert!(text.contains("iters in"), "{text}");
    }
}

#[test]
fn polling() {
    let _machine = machine();
    for user in User::both() {
        let stand = Stand::new(user);
        for provider in Provider::BOTH {
            for place in PLACES {
                ping(&stand, &provider, place, Uverbs::Ioctl, &["-g", "1"]);
            }
        }
    }
}

#[test]
fn asleep_until_the_event() {
    let _machine = machine();
    for user in User::both() {
        let stand = Stand::new(user);
        for provider in Provider::BOTH {
            for place in PLACES {
                ping(&stand, &provider, place, Uverbs::Ioctl, &["-g", "1", "-e"]);
            }
        }
    }
}

#[test]
fn by_every_way_into_the_kernel() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    for provider in Provider::BOTH {
        for uverbs in Uverbs::ALL {
            ping(&stand, &provider, ("a", "b"), uverbs, &["-g", "1", "-n", "200"]);
            ping(&stand, &provider, ("a", "b"), uverbs, &["-g", "1", "-n", "200", "-e"]);
        }
    }
}

#[test]
fn by_both_gids_and_odd_sizes() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    for provider in Provider::BOTH {
        for gid in ["0", "1"] {
            for size in ["1", "4095", "4097", "1048576"] {
                ping(&stand, &provider, ("a", "b"), Uverbs::Ioctl, &["-g", gid, "-s", size, "-n", "50"]);
            }
        }
    }
}

#[test]
fn the_two_providers_talk_to_each_other() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let job = |guest, provider| stand.job("ibv_rc_pingpong").guest(guest).provider(provider).args(["-c", "-g", "1"]);
    let (server, client) = pair(job("a", &Provider::Ours), job("b", &Provider::System));
    server.ok();
    client.ok();
}
