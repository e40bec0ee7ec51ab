//! A storm: processes in six guests move checked data in pairs, while they are stopped, continued and killed at random.
//!
//! Whose other side was killed must be told; everybody else must end well, with no wrong byte, however long it or its
//! other side was stopped. And a connection that forgives nothing loses nothing to a slow peer (tests/c/strict.c).

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pvrdma_tests::{Chance, Provider, Running, Stand, User, amount, c_program, free_port, machine, wait_for_listener};

const GUESTS: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
/// What data.c says when the other side has died.
const OTHER_SIDE_GONE: i32 = 3;

/// One process of a pair, and until when it is stopped.
struct Side {
    running: Running,
    pid: u32,
    stopped: Option<Instant>,
}

impl Side {
    fn new(mut running: Running) -> Side {
        running.wait_for_text("running");
        let pid = running.program_pid("data");
        Side { running, pid, stopped: None }
    }

    fn stop(&mut self, time: Duration) {
        self.running.signal(self.pid, libc::SIGSTOP);
        self.stopped = Some(Instant::now() + time);
    }

    fn go_on(&mut self) {
        if self.stopped.take().is_some() {
            self.running.signal(self.pid, libc::SIGCONT);
        }
    }
}

fn start(stand: &Stand, program: &Path, until: &Path, chance: &mut Chance) -> [Side; 2] {
    let port = free_port();
    let job = |chance: &mut Chance| {
        let job = stand.job(program).guest(GUESTS[chance.below(6) as usize]).time_out(Duration::from_secs(3600));
        let job = job.args(["-m", "-k", "on", "-p", &port.to_string(), "-u"]).args([until]);
        job.provider(if chance.below(4) == 0 { &Provider::System } else { &Provider::Ours })
    };
    let mut server = job(chance).spawn();
    wait_for_listener(&mut server, port);
    let client = job(chance).args(["127.0.0.1"]).spawn();
    [server, client].map(Side::new)
}

#[test]
fn who_is_stopped_disturbs_nobody() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let program = stand.copy(&c_program("tests/c/data.c", &[]));
    let until = stand.path("until");
    let mut chance = Chance::from_environment();
    let mut pairs: Vec<_> = (0..amount(8, 30)).map(|_| start(&stand, &program, &until, &mut chance)).collect();
    let (mut told, mut killed) = (Vec::new(), 0);
    let end = Instant::now() + Duration::from_secs(amount(8, 1200));
    while Instant::now() < end {
        std::thread::sleep(Duration::from_millis(chance.below(30)));
        for side in pairs.iter_mut().flatten() {
            if side.stopped.is_some_and(|until| Instant::now() > until) {
                side.go_on();
            }
        }
        let which = chance.below(pairs.len() as u64) as usize;
        let side = chance.below(2) as usize;
        match chance.below(12) {
            0 => {
                let [server, client] = pairs.swap_remove(which);
                let (victim, mut other) = if side == 0 { (server, client) } else { (client, server) };
                victim.running.signal(victim.pid, libc::SIGKILL);
                other.go_on();
                // Its end is waited for by the death of the whole job.
                victim.running.wait();
                told.push(other.running);
                killed += 1;
                pairs.push(start(&stand, &program, &until, &mut chance));
            }
            _ if pairs[which][side].stopped.is_none() => {
                pairs[which][side].stop(Duration::from_millis(chance.below(400)));
            }
            _ => {}
        }
    }
    assert!(killed > 0, "somebody was killed");
    for other in told {
        let output = other.wait();
        assert_eq!(output.status.code(), Some(OTHER_SIDE_GONE), "{output}");
    }
    std::fs::write(&until, "").expect("the stand's folder can be written");
    for side in pairs.iter_mut().flatten() {
        side.go_on();
    }
    for side in pairs.into_iter().flatten() {
        let text = side.running.wait().ok();
        assert!(text.contains("MiB exact"), "{text}");
    }
    stand.job("ibv_devinfo").ok();
    assert_eq!(stand.leftovers(), Vec::<PathBuf>::new());
}

/// Beside others that keep the machine busy, so that answers are late.
#[test]
fn no_answer_is_lost_for_being_late() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let program = stand.copy(&c_program("tests/c/strict.c", &[]));
    for provider in Provider::BOTH {
        let job = |timeout| {
            let job = stand.job(&program).provider(&provider).time_out(Duration::from_secs(180));
            job.args([timeout, amount("1500", "60000")]).spawn()
        };
        for running in ["1", "14", "14"].map(job) {
            assert_eq!(running.wait().ok(), "nothing was lost\n");
        }
    }
}
