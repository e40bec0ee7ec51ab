//! Connections by address that come and go without end (tests/c/connect.c): how many a second, what that leaves behind,
//! and who dies in the middle of it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use pvrdma_tests::{Chance, Running, Stand, User, amount, c_program, listening, machine};

const PORT: &str = "7471";
/// Until a program is taken for one that hangs.
const LONG: Duration = Duration::from_secs(600);

/// What the program has counted, in the order of its `struct counters`.
#[derive(Debug, Clone, Copy)]
struct Counters {
    established: u64,
    ended_otherwise: u64,
}

/// One end, with its counters.
struct End {
    running: Running,
    name: String,
    counters: File,
}

impl End {
    fn start(stand: &Stand, program: &Path, guest: &str, arguments: &[&str]) -> End {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let path = stand.path(format!("counters.{}", NEXT.fetch_add(1, Ordering::Relaxed)));
        let counters = File::options().read(true).write(true).create_new(true).open(&path).expect("a file of its own");
        counters.set_len(4096).expect("a page of memory");
        let job = stand.job(program).guest(guest).time_out(LONG);
        let (role, rest) = arguments.split_first().expect("a role");
        let running = job.args([*role, PORT]).args([&path]).args(rest).spawn();
        let name = program.file_name().expect("a program has a name").to_string_lossy().into_owned();
        End { running, name, counters }
    }

    fn server(stand: &Stand, program: &Path, guest: &str) -> End {
        End::start(stand, program, guest, &["server"])
    }

    fn client(stand: &Stand, program: &Path, guest: &str, count: Option<u64>) -> End {
        let count = count.map(|count| count.to_string());
        let arguments: Vec<&str> = ["client", "127.0.0.1"].into_iter().chain(count.as_deref()).collect();
        End::start(stand, program, guest, &arguments)
    }

    fn counters(&self) -> Counters {
        let number = |at: u64| {
            let mut bytes = [0; 8];
            self.counters.read_exact_at(&mut bytes, 8 * at).expect("a page of counters");
            u64::from_ne_bytes(bytes)
        };
        Counters { established: number(1), ended_otherwise: number(3) + number(4) }
    }

    fn wait_until(&mut self, what: &str, is: impl Fn(Counters) -> bool) {
        let end = Instant::now() + Duration::from_secs(60);
        while !is(self.counters()) {
            assert!(!self.running.has_ended(), "ended before {what}: {}", self.running.logs());
            assert!(Instant::now() < end, "never {what}: {:?}\n{}", self.counters(), self.running.logs());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Until so many more connections have been made.
    fn goes_on(&mut self, count: u64) {
        let before = self.counters().established;
        self.wait_until("it went on", |now| now.established >= before + count);
    }

    fn kill(self) {
        self.running.signal(self.running.program_pid(&self.name), libc::SIGKILL);
        self.running.wait();
    }

    /// Tells it to end, which it does well if nothing of what it did has stayed.
    fn stop(self) -> String {
        self.running.signal(self.running.program_pid(&self.name), libc::SIGTERM);
        self.running.wait().ok()
    }
}

fn stand_with_program() -> (Stand, PathBuf) {
    let stand = Stand::new(User::Me);
    let program = stand.copy(&c_program("tests/c/connect.c", &["-lrdmacm"]));
    (stand, program)
}

fn expect_nothing_left(stand: &Stand) {
    // The last processes may still be on their way out.
    let end = Instant::now() + Duration::from_secs(60);
    while !stand.leftovers().is_empty() {
        assert!(Instant::now() < end, "{:?}", stand.leftovers());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The long form is a minute of a thousand and more a second.
#[test]
fn many_connections_leave_nothing_behind() {
    let _machine = machine();
    let (stand, program) = stand_with_program();
    for guests in [["a", "a"], ["a", "b"]] {
        let mut server = End::server(&stand, &program, guests[0]);
        server.running.wait_for_text("listening");
        let client = End::client(&stand, &program, guests[1], Some(amount(300, 100_000)));
        print!("{guests:?}: {}", client.running.wait().ok());
        let counters = server.counters();
        assert!(counters.established >= amount(290, 99_900), "{counters:?}");
        server.stop();
    }
    expect_nothing_left(&stand);
}

/// How much of the machine a process has: descriptors, and KiB of memory.
fn holds(running: &Running, program: &str) -> (usize, u64) {
    let folder = PathBuf::from(format!("/proc/{}", running.program_pid(program)));
    let descriptors = std::fs::read_dir(folder.join("fd")).expect("it runs").count();
    let status = std::fs::read_to_string(folder.join("status")).expect("it runs");
    let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it has memory");
    (descriptors, memory.trim().trim_end_matches(" kB").parse().expect("a number"))
}

/// cmtime for a minute in the long form, a thousand connections and more a second. Neither its server grows, nor one
/// who only hears what is said to its guest.
#[test]
fn cmtime_leaves_nothing_behind() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    // Long enough for what a process keeps for its next connections to have its size.
    let (count, warm) = amount(("500", 1), ("1000", 30));
    for guests in [["a", "a"], ["a", "b"]] {
        let server = listening(stand.job("cmtime").guest(guests[0]).args(["-c", count]).time_out(LONG));
        let bystander = listening(stand.job("rping").guest(guests[1]).args(["-s", "-p", "7999"]).time_out(LONG));
        let (start, mut first, mut rounds) = (Instant::now(), None, 0);
        let held = || (holds(&server, "cmtime"), holds(&bystander, "rping"));
        while rounds < 2 * warm || amount(false, start.elapsed() < Duration::from_secs(60)) {
            stand.job("cmtime").guest(guests[1]).args(["-c", count, "-s", "127.0.0.1"]).ok();
            rounds += 1;
            if rounds == warm {
                first = Some(held());
            }
        }
        let (first, last) = (first.expect("a round"), held());
        println!("{guests:?}: {rounds} times {count} connections, {:?}; {first:?} {last:?}", start.elapsed());
        for (first, last) in [(first.0, last.0), (first.1, last.1)] {
            assert!(last.0 <= first.0 && last.1 <= first.1 + 4096, "descriptors, KiB: {first:?}, then {last:?}");
        }
        for (running, program) in [(server, "cmtime"), (bystander, "rping")] {
            running.signal(running.program_pid(program), libc::SIGTERM);
            running.wait();
        }
    }
    expect_nothing_left(&stand);
}

/// Whoever stays is told of each connection how it ended (the program gives up if not), the port is free at once, and
/// connections are made again. The survivor holds nothing of the dead.
#[test]
fn a_process_may_be_killed_at_any_step_of_a_handshake() {
    let _machine = machine();
    let (stand, program) = stand_with_program();
    let mut chance = Chance::from_environment();
    let guest = |chance: &mut Chance| ["a", "b"][chance.below(2) as usize];
    let kill = |chance: &mut Chance, end: End| {
        std::thread::sleep(Duration::from_micros(chance.below(60_000)));
        end.kill();
    };
    let deaths = amount(13, 250);

    let mut client = End::client(&stand, &program, "a", None);
    for _ in 0..deaths {
        let mut server = End::server(&stand, &program, guest(&mut chance));
        // Some die before anybody has reached them.
        if chance.below(4) > 0 {
            // The port is free: it says so only if it has it.
            server.running.wait_for_text("listening");
            client.goes_on(1);
        }
        kill(&mut chance, server);
    }
    let mut server = End::server(&stand, &program, guest(&mut chance));
    client.goes_on(100);
    assert!(client.counters().ended_otherwise > 0, "{:?}", client.counters());
    client.stop();

    for _ in 0..deaths {
        let mut client = End::client(&stand, &program, guest(&mut chance), None);
        if chance.below(4) > 0 {
            client.goes_on(1);
        }
        kill(&mut chance, client);
    }
    End::client(&stand, &program, guest(&mut chance), Some(100)).running.wait().ok();
    server.goes_on(0);
    server.stop();
    expect_nothing_left(&stand);
}
