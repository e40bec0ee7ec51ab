//! The yardsticks for what goes between hosts: TCP over loopback and nothing else.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::median;

/// How the ends of a socket wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// They sleep in read(2).
    Asleep,
    /// They look for 50 us, giving their core away in between, and then sleep: as those do that carry requests.
    Awake,
}

/// How long who waits awake does so.
const SPIN: Duration = Duration::from_micros(50);

fn connected() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let here = TcpStream::connect(listener.local_addr().expect("it has one")).expect("it listens");
    let there = listener.accept().expect("somebody has connected").0;
    for socket in [&here, &there] {
        socket.set_nodelay(true).expect("a TCP socket");
    }
    (here, there)
}

/// Half of the round trip of `size` bytes, in us: the median of `count`.
pub fn half_trip(size: usize, count: usize, waiting: Waiting) -> f64 {
    let (mut here, mut there) = connected();
    let echo = thread::spawn(move || {
        let mut bytes = vec![0; size];
        while receive(&mut there, &mut bytes, waiting) {
            there.write_all(&bytes).expect("the other end reads");
        }
    });
    let mut bytes = vec![0; size];
    let mut trips = Vec::with_capacity(count);
    for _ in 0..count {
        let begin = Instant::now();
        here.write_all(&bytes).expect("the other end reads");
        assert!(receive(&mut here, &mut bytes, waiting), "the other end answers");
        trips.push(begin.elapsed().as_secs_f64() * 1e6 / 2.0);
    }
    drop(here);
    echo.join().expect("it ends well");
    median(trips)
}

/// Fills `into`; false: nothing more comes.
fn receive(socket: &mut TcpStream, into: &mut [u8], waiting: Waiting) -> bool {
    let mut filled = 0;
    while filled < into.len() {
        let read = match waiting {
            Waiting::Asleep => socket.read(&mut into[filled..]),
            Waiting::Awake => look(socket, &mut into[filled..]),
        };
        match read {
            Ok(0) => return false,
            Ok(bytes) => filled += bytes,
            Err(error) => panic!("a socket on loopback: {error}"),
        }
    }
    true
}

fn look(socket: &mut TcpStream, into: &mut [u8]) -> std::io::Result<usize> {
    let begin = Instant::now();
    socket.set_nonblocking(true)?;
    loop {
        match socket.read(into) {
            Err(error) if error.kind() == ErrorKind::WouldBlock && begin.elapsed() < SPIN => thread::yield_now(),
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            read => {
                socket.set_nonblocking(false)?;
                return read;
            }
        }
    }
    socket.set_nonblocking(false)?;
    socket.read(into)
}

/// MiB/s of `count` writes of `size` bytes to who reads them.
pub fn stream(size: usize, count: usize) -> f64 {
    let (mut here, mut there) = connected();
    let begin = Instant::now();
    let reader = thread::spawn(move || {
        let mut bytes = vec![0; 256 * 1024];
        while there.read(&mut bytes).expect("a socket on loopback") > 0 {}
        Instant::now()
    });
    let bytes = vec![1; size];
    for _ in 0..count {
        here.write_all(&bytes).expect("the other end reads");
    }
    drop(here);
    let end = reader.join().expect("it ends well");
    (size * count) as f64 / f64::from(1 << 20) / (end - begin).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_go_there_and_back() {
        for waiting in [Waiting::Asleep, Waiting::Awake] {
            let trip = half_trip(8, 20, waiting);
            assert!(trip > 0.0 && trip.is_finite(), "{trip} us");
        }
        let rate = stream(65536, 20);
        assert!(rate > 0.0 && rate.is_finite(), "{rate} MiB/s");
    }
}
