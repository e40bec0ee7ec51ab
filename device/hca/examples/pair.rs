//! Two adapters of this process, written from one into the other: each check in its turn, and a line for each that
//! holds.
//!
//! It takes a device, so it is a program and no test: `tests/tests/hca.rs` runs it in a guest of `pvrdma run`, with
//! both providers.

use pvrdma_hca::{Adapter, Choice, Unusable};
use std::io::ErrorKind;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

fn pair() -> [Adapter; 2] {
    let mut ends = [0, 1].map(|_| Adapter::open(&Choice::Auto).expect("a device"));
    let cards = [ends[0].card(), ends[1].card()];
    ends[1].connect(&cards[0]).unwrap();
    ends[0].connect(&cards[1]).unwrap();
    ends
}

/// Waits as a poll does.
fn wait(adapter: &mut Adapter) -> std::io::Result<()> {
    let mut polled = adapter.descriptors().map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
    // SAFETY: there are two of them.
    let told = unsafe { libc::poll(polled.as_mut_ptr(), 2, PATIENCE.as_millis() as i32) };
    assert!(told > 0, "nothing comes");
    adapter.is_ready()
}

fn bytes_pass_in_both_directions() {
    let mut ends = pair();
    ends[0].prove().unwrap();
    let begin = Instant::now();
    while !ends[0].is_proved().unwrap() {
        assert!(begin.elapsed() < PATIENCE);
    }
    let [near, far] = ends;
    let threads = [(near, 1u8), (far, 2)].map(|(mut adapter, mine)| {
        std::thread::spawn(move || {
            const ALL: usize = 8 << 20;
            let byte =
                |at: usize, whose: u8| (at as u32).wrapping_mul(0x9e37_79b9 + 2 * u32::from(whose)).to_le_bytes()[3];
            let (mut sent, mut got) = (0, 0);
            let mut buffer = vec![0; 300_000];
            while sent < ALL || got < ALL {
                let mut idle = true;
                // Small ones as well as large ones.
                let len = if sent % 5 == 0 { 200_000 } else { 77 }.min(ALL - sent);
                let bytes: Vec<u8> = (sent..sent + len).map(|at| byte(at, mine)).collect();
                if len > 0 {
                    match adapter.write(&bytes) {
                        Ok(len) => (sent, idle) = (sent + len, false),
                        Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
                    }
                }
                match adapter.read(&mut buffer) {
                    Ok(len) => {
                        let other = 3 - mine;
                        assert!(buffer[..len].iter().enumerate().all(|(at, is)| *is == byte(got + at, other)));
                        (got, idle) = (got + len, false);
                    }
                    Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
                }
                if idle {
                    wait(&mut adapter).unwrap();
                }
            }
            // Not before the other one has all of it: with this end its QP goes.
            adapter
        })
    });
    let _both = threads.map(|thread| thread.join().unwrap());
}

fn an_end_that_goes_is_noticed() {
    let [mut near, far] = pair();
    near.prove().unwrap();
    drop(far);
    near.write(&[1; 100]).unwrap();
    // Its receives come back.
    let mut buffer = [0; 100];
    loop {
        match near.read(&mut buffer) {
            Ok(_) => panic!("nobody has sent anything"),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => break,
        }
        if wait(&mut near).is_err() {
            break;
        }
    }
}

fn an_adapter_is_not_connected_to_itself() {
    let mut adapter = Adapter::open(&Choice::Auto).expect("a device");
    let card = adapter.card();
    assert!(matches!(adapter.connect(&card), Err(Unusable::Verb(_))));
}

fn one_that_does_not_exist_is_not_opened() {
    let none = Adapter::open(&Choice::Named("of-this-name".into()));
    assert_eq!(none.err(), Some(Unusable::NoDevice));
}

fn main() {
    let checks: [(&str, fn()); 4] = [
        ("bytes_pass_in_both_directions", bytes_pass_in_both_directions),
        ("an_end_that_goes_is_noticed", an_end_that_goes_is_noticed),
        ("an_adapter_is_not_connected_to_itself", an_adapter_is_not_connected_to_itself),
        ("one_that_does_not_exist_is_not_opened", one_that_does_not_exist_is_not_opened),
    ];
    for (name, check) in checks {
        check();
        println!("ok {name}");
    }
}
