//! SIGKILL at random moments: while a process opens the device, makes objects, connects, moves data, closes; one side,
//! the other side, both, or `pvrdma run` itself.
//!
//! Whoever stays must be told and end in time, with no wrong byte until then. A pair of bystanders in two of the guests
//! moves checked data all the while. At the end nothing is left behind, and the fabric still has room for everybody.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pvrdma_tests::{
    Chance, Job, Provider, Running, Stand, User, amount, c_program, free_port, machine, pair, wait_for_listener,
};

/// Pairs that are killed at the same time.
const LANES: u64 = 3;
/// What data.c says when the other side has died.
const OTHER_SIDE_GONE: i32 = 3;
const GUESTS: [[&str; 2]; 4] = [["a", "a"], ["a", "b"], ["c", "d"], ["b", "c"]];

fn mortal<'a>(stand: &'a Stand, program: &Path, guest: &str, provider: &Provider, port: u16) -> Job<'a> {
    let job = stand.job(program).guest(guest).provider(provider).time_out(Duration::from_secs(60));
    job.args(["-m", "-k", "on", "-p", &port.to_string()])
}

/// Kills a job: its program, `pvrdma run` above it, or both at once. A program that has not begun is not there yet;
/// then it is `pvrdma run` that dies, in the middle of its preparations.
///
/// Whether that is what it died of.
fn kill(chance: &mut Chance, running: Running) -> bool {
    let whom = match chance.below(4) {
        0 => Some(running.pid()),
        1 => None,
        _ => running.programs().into_iter().find(|(_, name)| name == "data").map(|(pid, _)| pid),
    };
    // The group, with whatever is in it, is killed when the job is dropped.
    let Some(pid) = whom else { return true };
    running.signal(pid, libc::SIGKILL);
    running.wait().signal() == Some(libc::SIGKILL)
}

fn expect_told(survivor: Running) {
    let output = survivor.wait();
    // By chance it may not even have come to its beginning.
    assert_eq!(output.status.code(), Some(OTHER_SIDE_GONE), "{output}");
}

fn one_killing(stand: &Stand, program: &Path, chance: &mut Chance) {
    let provider = if chance.below(4) == 0 { Provider::System } else { Provider::Ours };
    let guests = GUESTS[chance.below(4) as usize];
    let port = free_port();
    let mut server = mortal(stand, program, guests[0], &provider, port).spawn();
    if chance.below(8) == 0 {
        std::thread::sleep(Duration::from_micros(chance.below(60_000)));
        assert!(kill(chance, server));
        return;
    }
    wait_for_listener(&mut server, port);
    let client = mortal(stand, program, guests[1], &provider, port).args(["127.0.0.1"]).spawn();
    std::thread::sleep(Duration::from_micros(chance.below(250_000)));
    match chance.below(5) {
        0 | 1 => {
            assert!(kill(chance, server));
            expect_told(client);
        }
        2 | 3 => {
            assert!(kill(chance, client));
            expect_told(server);
        }
        _ => {
            assert!(kill(chance, server));
            // It may have been told by now, and be gone; if not, this kills it.
            drop(client);
        }
    }
}

/// Two programs with checked data that nobody kills.
struct Bystanders {
    until: PathBuf,
    pair: [Running; 2],
}

impl Bystanders {
    fn start(stand: &Stand, program: &Path) -> Bystanders {
        let until = stand.path("until");
        let port = free_port();
        let job = |guest| {
            let job = stand.job(program).guest(guest).time_out(Duration::from_secs(3600));
            job.args(["-k", "on", "-u"]).args([&until]).args(["-p", &port.to_string()])
        };
        let mut server = job("a").spawn();
        wait_for_listener(&mut server, port);
        let mut pair = [server, job("b").args(["127.0.0.1"]).spawn()];
        for side in &mut pair {
            side.wait_for_text("running");
        }
        Bystanders { until, pair }
    }

    /// Both must end well, and have done something.
    fn stop(self) {
        fs::write(&self.until, "").expect("the stand's folder can be written");
        for side in self.pair {
            let text = side.wait().ok();
            assert!(text.contains("MiB exact"), "{text}");
        }
    }
}

#[test]
fn nobody_hangs_and_nothing_is_left() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let program = stand.copy(&c_program("tests/c/data.c", &[]));
    let mut chance = Chance::from_environment();
    let bystanders = Bystanders::start(&stand, &program);
    std::thread::scope(|scope| {
        for _ in 0..LANES {
            let mut chance = Chance::new(chance.any());
            let (stand, program) = (&stand, &program);
            scope.spawn(move || {
                for _ in 0..amount(36, 501) / LANES {
                    one_killing(stand, program, &mut chance);
                }
            });
        }
    });
    // More have come and gone, in the long form, than the fabric has room for at once.
    for provider in Provider::BOTH {
        let job = |guest| stand.job("ibv_rc_pingpong").guest(guest).provider(&provider).args(["-c", "-g", "1"]);
        let (server, client) = pair(job("a"), job("c"));
        server.ok();
        client.ok();
    }
    bystanders.stop();
    expect_nothing_left(&stand);
}

/// Processes of killed `pvrdma run`s may still be on their way out, and then it is they who hold the run directory,
/// which the next run wipes.
fn expect_nothing_left(stand: &Stand) {
    let end = Instant::now() + Duration::from_secs(30);
    while !programs_of(stand).is_empty() {
        assert!(Instant::now() < end, "still there: {:?}", programs_of(stand));
        std::thread::sleep(Duration::from_millis(10));
    }
    stand.job("ibv_devinfo").ok();
    assert_eq!(stand.leftovers(), Vec::<PathBuf>::new());
}

/// Processes that run a file of the stand.
fn programs_of(stand: &Stand) -> Vec<PathBuf> {
    let folder = stand.path("");
    let processes = fs::read_dir("/proc").expect("/proc is there").flatten();
    let programs = processes.filter_map(|process| fs::read_link(process.path().join("exe")).ok());
    programs.filter(|program| program.starts_with(&folder)).collect()
}
