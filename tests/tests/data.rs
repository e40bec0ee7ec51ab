//! Data exact, byte for byte, through stock libibverbs: tests/c/data.c, in one process, one guest, two guests.
//!
//! Each run of the short form has a seed of its own. The long form adds every ring size, every message size from 0 to
//! 9,000, the powers of two up to 16 MiB, and many more seeds.

use std::time::Duration;

use pvrdma_tests::{Chance, Job, Provider, Stand, User, amount, c_program, machine, pair};

/// Kinds of work of data.c, and how often each is done with another seed.
fn kinds() -> Vec<(&'static str, u32)> {
    amount(vec![("short", 1)], vec![("short", 40), ("rings", 1), ("sizes", 2), ("powers", 1)])
}

fn work<'a>(job: Job<'a>, provider: &Provider, kind: &str, seed: u64) -> Job<'a> {
    let job = job.provider(provider).time_out(amount(Duration::from_secs(120), Duration::from_secs(900)));
    job.args(["-k", kind, "-s", &seed.to_string()])
}

/// What the program says it has done must have every opcode in it: none may be left out unnoticed.
fn expect_all_opcodes(text: &str) {
    for name in ["SEND ", "SEND_IMM ", "WRITE ", "WRITE_IMM ", "READ ", "CAS ", "FADD ", "datagrams"] {
        assert!(text.contains(name), "no {name}: {text}");
    }
    assert!(text.contains("MiB exact"), "{text}");
}

fn for_all_kinds(mut run: impl FnMut(&Provider, &str, u64) -> String) {
    let mut chance = Chance::from_environment();
    for provider in Provider::BOTH {
        for (kind, times) in kinds() {
            for _ in 0..times {
                let text = run(&provider, kind, chance.any());
                if kind == "short" {
                    expect_all_opcodes(&text);
                }
            }
        }
    }
}

#[test]
fn within_a_process() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let program = stand.copy(&c_program("tests/c/data.c", &[]));
    for_all_kinds(|provider, kind, seed| work(stand.job(&program), provider, kind, seed).ok());
}

fn between(user: User, guests: [&str; 2]) {
    let _machine = machine();
    let stand = Stand::new(user);
    let program = stand.copy(&c_program("tests/c/data.c", &[]));
    for_all_kinds(|provider, kind, seed| {
        let job = |guest| work(stand.job(&program).guest(guest), provider, kind, seed);
        let (server, client) = pair(job(guests[0]), job(guests[1]));
        let said = server.ok();
        assert_eq!(said, client.ok(), "both sides make the same plan");
        said
    });
}

#[test]
fn within_a_guest() {
    between(User::Me, ["a", "a"]);
}

#[test]
fn between_guests() {
    between(User::Me, ["a", "b"]);
}

#[test]
fn between_guests_as_an_ordinary_user() {
    between(User::both().pop().expect("somebody runs the tests"), ["a", "b"]);
}

/// The check itself: a byte that changes behind the program's back is found.
#[test]
fn one_wrong_byte_is_seen() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let program = stand.copy(&c_program("tests/c/data.c", &[]));
    let output = stand.job(&program).args(["-k", "wrong"]).output();
    assert!(!output.status.success() && output.stderr.contains("1 bytes are wrong"), "{output}");
}
