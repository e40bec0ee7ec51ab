//! What a doorbell costs over the vfio-user socket, idle and while 1 MiB writes run, and what DMA_UNMAP waits for.
//!
//! `cargo bench -p pvrdma-vfio-user`. Two guests by hand on one server; no QEMU, so the figures are the server's own.

#[path = "../tests/by_hand/mod.rs"]
mod by_hand;

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use by_hand::{Guest, Pair, RAM, Region, joined, servers};

const MIB: u64 = 1 << 20;
const ROUNDS: usize = 5000;

fn main() {
    // `cargo test --benches` leaves the argument out: a short look that it works.
    let rounds = if std::env::args().any(|arg| arg == "--bench") { ROUNDS } else { 20 };
    let servers = servers(2);
    let [mut a, mut b] = joined(&servers, MIB);

    print("POLL doorbell, idle", times(rounds, || a.0.ring_poll(&a.1)));
    print("ARM doorbell, idle", times(rounds, || a.0.arm(&a.1)));
    print("register read (ERR), idle", times(rounds, || _ = a.0.get(0x14)));
    print(
        "SEND doorbell, copies 8 bytes",
        times(rounds, || {
            write(&mut a, &b.2, 8);
        }),
    );
    print(
        "SEND doorbell, copies 1 MiB",
        times(rounds.div_ceil(10), || {
            write(&mut a, &b.2, MIB as u32);
        }),
    );
    // The doorbell is answered when its copies are done: this is what the guest's other doorbells wait for.
    let queue = (0..rounds.div_ceil(100)).map(|_| {
        let (guest, pair, region) = &mut a;
        for wr_id in 0..32 {
            guest.post_write(pair, wr_id, region, &b.2, MIB as u32);
        }
        let start = Instant::now();
        guest.ring_send(pair);
        let took = start.elapsed();
        for wr_id in 0..32 {
            assert_eq!(guest.wait(pair), (wr_id, 0));
        }
        took
    });
    print("SEND doorbell, copies 32 messages of 1 MiB", queue.collect());
    let mut busy = Vec::new();
    let start = Instant::now();
    let written = while_writing(&mut b, &a.2, || busy = times(rounds, || a.0.ring_poll(&a.1)));
    let rate = (written * MIB) as f64 / start.elapsed().as_secs_f64() / 1e9;
    print("POLL doorbell, the other guest writes 1 MiB messages here", busy);
    println!("{:58} {rate:.1} GB/s", "  what it writes meanwhile");

    let remap = |guest: &mut Guest| {
        let start = Instant::now();
        guest.client.dma_unmap(0, RAM).unwrap();
        let took = start.elapsed();
        guest.client.dma_map(0, 0, RAM, guest.ram.as_raw_fd()).unwrap();
        took
    };
    print("DMA_UNMAP, idle", (0..rounds.div_ceil(10)).map(|_| remap(&mut a.0)).collect());
    // An unmap under a write ends the QP, so each round has a fresh pair.
    let mut under_copy = Vec::new();
    for _ in 0..rounds.div_ceil(100) {
        (a.1, b.1) = (a.0.another(&a.1), b.0.another(&b.1));
        a.0.join(&a.1, 2, b.1.qpn);
        b.0.join(&b.1, 1, a.1.qpn);
        let guest = &mut a.0;
        while_writing(&mut b, &a.2, || {
            std::thread::sleep(Duration::from_millis(2));
            under_copy.push(remap(guest));
        });
    }
    print("DMA_UNMAP, the other guest writes 1 MiB messages here", under_copy);
}

/// Posts a write, rings, and takes its completion; gives its status.
fn write(from: &mut (Guest, Pair, Region), to: &Region, len: u32) -> u32 {
    let (guest, pair, region) = from;
    guest.post_write(pair, 1, region, to, len);
    guest.ring_send(pair);
    guest.wait(pair).1
}

/// Runs `work` while `from` writes 1 MiB messages to `to`, and gives their number.
fn while_writing(from: &mut (Guest, Pair, Region), to: &Region, work: impl FnOnce()) -> u64 {
    let (stop, written) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) && write(from, to, MIB as u32) == 0 {
                written.fetch_add(1, Ordering::Relaxed);
            }
        });
        work();
        stop.store(true, Ordering::Relaxed);
    });
    written.into_inner()
}

fn times(rounds: usize, mut work: impl FnMut()) -> Vec<Duration> {
    (0..rounds)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed()
        })
        .collect()
}

fn print(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e6;
    println!("{what:58} median {:8.1} us   99 % {:8.1} us   max {:8.1} us", at(0.5), at(0.99), at(1.0));
}
