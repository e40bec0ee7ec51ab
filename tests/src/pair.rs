//! A server and a client that find each other by TCP, as perftest and `ibv_rc_pingpong` do.

use std::fs;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use crate::{Job, Output, Running};

/// A TCP port nobody listens on.
pub fn free_port() -> u16 {
    // The port is free again when the listener is gone. The kernel hands them out in a wide circle, so the next
    // one to ask gets another.
    TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr()).expect("a free port").port()
}

/// Runs `server` and `client` with `-p PORT`, the client with the address 127.0.0.1 as its last argument.
pub fn pair(server: Job, client: Job) -> (Output, Output) {
    let port = free_port();
    let mut server = server.args(["-p", &port.to_string()]).spawn();
    wait_for_listener(&mut server, port);
    let client = client.args(["-p", &port.to_string(), "127.0.0.1"]).spawn();
    let client = client.wait();
    if !client.status.success() {
        // Said now: without its client the server would only run into its time-out.
        panic!("the client failed\n{client}\n=== server until then\n{}", server.logs());
    }
    (server.wait(), client)
}

/// Waits until somebody listens on `port`, without connecting to it: the server would take that for its client.
pub fn wait_for_listener(server: &mut Running, port: u16) {
    let end = Instant::now() + Duration::from_secs(20);
    while !listens(port) {
        assert!(!server.has_ended(), "the server ended early\n{}", server.logs());
        assert!(Instant::now() < end, "the server does not listen on port {port}\n{}", server.logs());
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn listens(port: u16) -> bool {
    /// TCP_LISTEN of the kernel's tcp_states.h.
    const LISTEN: &str = "0A";
    ["/proc/net/tcp", "/proc/net/tcp6"].into_iter().filter_map(|path| fs::read_to_string(path).ok()).any(|table| {
        table.lines().skip(1).any(|line| {
            let mut fields = line.split_whitespace().skip(1);
            let local = fields.next().unwrap_or_default();
            let state = fields.nth(1).unwrap_or_default();
            state == LISTEN && local.ends_with(&format!(":{port:04X}"))
        })
    })
}
