//! perftest's tools: each operation, bandwidth and latency, four sizes, both providers, everywhere.

use pvrdma_tests::{Provider, Stand, User, figures, machine, pair};

const SIZES: [&str; 4] = ["8", "4096", "65536", "1048576"];
const PLACES: [(&str, &str); 2] = [("a", "a"), ("a", "b")];

/// Runs one tool over all sizes, users, providers and places. The figures must be there and not zero; how good
/// they are is perftest/README.md's business.
fn tool(name: &str) {
    let _machine = machine();
    let column = if name.ends_with("_bw") { "BW average" } else { "t_typical" };
    for user in User::both() {
        let stand = Stand::new(user);
        for provider in Provider::BOTH {
            for (server, client) in PLACES {
                for size in SIZES {
                    let job =
                        |guest| stand.job(name).guest(guest).provider(&provider).args(["-F", "-n", "100", "-s", size]);
                    let (server, client) = pair(job(server), job(client));
                    server.ok();
                    // On a busy machine perftest sometimes fails to measure the CPU's clock; it says so and prints 0.
                    let no_clock = client.stderr.contains("Correlation coefficient");
                    let text = client.ok();
                    let figure = figures(&text).and_then(|figures| figures.get(column));
                    assert!(
                        figure.is_some_and(|figure| figure > 0.0 || no_clock),
                        "{provider:?}, {size} bytes:\n{text}"
                    );
                }
            }
        }
    }
}

#[test]
fn ib_write_bw() {
    tool("ib_write_bw");
}

#[test]
fn ib_write_lat() {
    tool("ib_write_lat");
}

#[test]
fn ib_read_bw() {
    tool("ib_read_bw");
}

#[test]
fn ib_read_lat() {
    tool("ib_read_lat");
}

#[test]
fn ib_send_bw() {
    tool("ib_send_bw");
}

#[test]
fn ib_send_lat() {
    tool("ib_send_lat");
}

/// Both directions at once, several QPs, asleep between completions, lists of work requests.
#[test]
fn other_ways_to_drive_them() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    for provider in Provider::BOTH {
        for (name, arguments) in [
            ("ib_write_bw", &["-b"][..]),
            ("ib_send_bw", &["-b"]),
            ("ib_write_bw", &["-q", "8"]),
            ("ib_send_bw", &["-e"]),
            ("ib_send_lat", &["-e"]),
            ("ib_write_bw", &["-l", "16"]),
            ("ib_read_bw", &["-o", "1"]),
        ] {
            let job = |guest| {
                let job = stand.job(name).guest(guest).provider(&provider);
                // A multiple of the list length and of perftest's CQ moderation (100): it counts every completion for
                // 100 messages, and with several QPs and a rest it stops polling before all are sent.
                job.args(["-F", "-n", "1600", "-s", "4096"]).args(arguments)
            };
            let (server, client) = pair(job("a"), job("b"));
            server.ok();
            let text = client.ok();
            assert!(figures(&text).is_some(), "{name} {arguments:?} with {provider:?}:\n{text}");
        }
    }
}
