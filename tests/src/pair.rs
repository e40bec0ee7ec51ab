//! A server and a client that find each other: by TCP, as perftest and `ibv_rc_pingpong` do, or by the connection
//! manager.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::{Job, Output, Running};

/// A TCP port nobody listens on.
pub fn free_port() -> u16 {
    // The port is free again when the listener is gone. The kernel hands them out in a wide circle, so the next
    // one to ask gets another.
    TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr()).expect("a free port").port()
}

/// Runs `server` and `client` with `-p PORT`, the client with the address 127.0.0.1 as its last argument. Panics when
/// the client fails or one of them does not end.
pub fn pair(server: Job, client: Job) -> (Output, Output) {
    try_pair(server, client).unwrap_or_else(|failure| panic!("{failure}"))
}

/// The same with the failure, and what both wrote, as a value.
pub fn try_pair(server: Job, client: Job) -> Result<(Output, Output), String> {
    try_pair_at("127.0.0.1", server, client)
}

/// The same with the server at another address.
pub fn try_pair_at(address: &str, server: Job, client: Job) -> Result<(Output, Output), String> {
    let port = free_port();
    let mut server = server.args(["-p", &port.to_string()]).spawn();
    wait_until_listening(&mut server, port)?;
    let mut client = client.args(["-p", &port.to_string(), address]).spawn();
    while !client.has_ended() && !client.is_late() {
        if server.has_failed() {
            // Often the client waits for ever then; if not, its own words help.
            client.hurry(GRACE);
        }
        std::thread::sleep(PAUSE);
    }
    // Said now: without its client the server would only run into its time-out.
    let until_then = |server: &Running| format!("=== server until then\n{}", server.logs());
    let client = client.try_wait().map_err(|late| format!("{late}{}", until_then(&server)))?;
    if !client.status.success() {
        return Err(format!("the client failed\n{client}\n{}", until_then(&server)));
    }
    let server = server.try_wait().map_err(|late| format!("{late}=== client\n{client}"))?;
    Ok((server, client))
}

/// Starts a server, and comes back when it listens by the connection manager.
pub fn listening(server: Job<'_>) -> Running {
    let trace = tempfile::NamedTempFile::new().expect("a temporary file");
    let server = server.option("--trace", trace.path()).spawn();
    wait_for_trace(trace.path(), "cm listen", 1);
    server
}

/// Runs a server, and a client as soon as the server listens by the connection manager. Panics when one of them fails.
pub fn pair_by_address(server: Job<'_>, client: Job<'_>) -> (Output, Output) {
    let server = listening(server);
    let client = client.output();
    assert!(ended_well(&client), "{client}\n{}", server.logs());
    let server = server.wait();
    assert!(ended_well(&server), "{server}\n{client}");
    (server, client)
}

/// Whether a program of librdmacm did all its work. rping closes its event channel at its end while another thread of
/// its may still ask it for events, which then ends the program with a failure: that is no fault of ours, where it has
/// nothing else to complain of.
pub fn ended_well(output: &Output) -> bool {
    const RACE: &str = "rdma_get_cm_event: Bad file descriptor";
    // Its server waits for the next round, and finds that it is disconnected (state 10).
    const ENDS: [&str; 2] = [RACE, "wait for RDMA_READ_ADV state 10"];
    // libibverbs looks for all drivers that there are, and has the one.
    let is_of_the_end = |line: &str| {
        ENDS.contains(&line)
            || line.ends_with(" DISCONNECT EVENT...")
            || line.starts_with("libibverbs: Warning: couldn't load driver")
    };
    let is_race = output.status.code() == Some(255) && output.stderr.contains(RACE);
    output.status.success() || is_race && output.stderr.lines().all(is_of_the_end)
}

/// Waits until the traced program has done `what` so often.
pub fn wait_for_trace(trace: &Path, what: &str, count: usize) {
    let end = Instant::now() + Duration::from_secs(60);
    while fs::read_to_string(trace).unwrap_or_default().matches(what).count() < count {
        assert!(Instant::now() < end, "never {what}: {}", fs::read_to_string(trace).unwrap_or_default());
        std::thread::sleep(PAUSE);
    }
}

/// What a client gets when its server has failed.
const GRACE: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(5);

/// Waits until somebody listens on `port`, without connecting to it: the server would take that for its client.
pub fn wait_for_listener(server: &mut Running, port: u16) {
    wait_until_listening(server, port).unwrap_or_else(|failure| panic!("{failure}"));
}

fn wait_until_listening(server: &mut Running, port: u16) -> Result<(), String> {
    let end = Instant::now() + Duration::from_secs(60);
    while !listens(server.pid(), port) {
        if server.has_ended() {
            return Err(format!("the server ended early\n{}", server.logs()));
        }
        if Instant::now() > end {
            return Err(format!("the server does not listen on port {port}\n{}", server.logs()));
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// Whether somebody listens there in the network namespace of that process.
fn listens(pid: u32, port: u16) -> bool {
    /// TCP_LISTEN of the kernel's tcp_states.h.
    const LISTEN: &str = "0A";
    let tables = ["tcp", "tcp6"].map(|name| format!("/proc/{pid}/net/{name}"));
    tables.iter().filter_map(|path| fs::read_to_string(path).ok()).any(|table| {
        table.lines().skip(1).any(|line| {
            let mut fields = line.split_whitespace().skip(1);
            let local = fields.next().unwrap_or_default();
            let state = fields.nth(1).unwrap_or_default();
            state == LISTEN && local.ends_with(&format!(":{port:04X}"))
        })
    })
}
