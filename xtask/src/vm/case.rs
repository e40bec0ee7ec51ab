//! One run: starts the server, or several, and the guests, hands each guest its steps, collects what came of them.
//!
//! Called by `mod.rs`. The steps travel in a folder shared with the guest; each leaves an exit code, a log and
//! its wall time there, so nothing is read out of the console.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::child::{Child, End};
use super::qemu::Guest;
use super::{House, Provider};

/// The Ethernet between two guests, below the run folder.
const WIRE: &str = "wire.sock";
/// The server is ready in a moment or never.
const SERVER_START: Duration = Duration::from_secs(5);
/// Time from power-on to the first step, on a slow machine without hardware virtualisation.
const BOOT_LIMIT: Duration = Duration::from_secs(60);

/// One thing to run in the guest.
pub struct Step {
    /// As the table shows it.
    pub name: String,
    /// Shell text; the functions of `tests/qemu/lib.sh` are there.
    pub script: String,
    /// How long it may take.
    pub limit: Duration,
    /// Looks at what it left in the folder shared with the guest, once it ended well; gives the note for the table.
    pub judge: Option<Judge>,
}

/// Reads the folder a guest shared; the provider is the one it had.
pub type Judge = fn(&Provider, &Path) -> Result<String>;

/// What came of a step.
pub struct Outcome {
    /// As the table shows it.
    pub name: String,
    /// Whether it did what it should.
    pub passed: bool,
    /// Wall time.
    pub time: Duration,
    /// One line for the table; for a failure where to read more.
    pub note: String,
}

/// Who serves the guests.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Servers {
    /// One server for all.
    One,
    /// A server for each, linked as hosts of a fabric, over TCP.
    Linked,
    /// The same by adapters: each server is a guest of one `pvrdma run`, whose device is its adapter.
    LinkedByAdapters,
    /// None: what the guests have for RDMA they bring themselves.
    None,
}

/// Boots a guest for each list of steps, with `provider` installed, and runs the steps in them. What they leave goes to
/// a folder for each guest below `results`.
pub fn run(
    house: &House,
    provider: &Provider,
    results: &Path,
    servers: Servers,
    guests: &[Vec<Step>],
) -> Result<Vec<Outcome>> {
    let run = house.dir.join("run");
    for folder in [results, &run] {
        match fs::remove_dir_all(folder) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
            _ => fs::create_dir_all(folder)?,
        }
    }
    let sockets: Vec<String> = (0..guests.len()).map(socket).collect();
    let mut running = match servers {
        Servers::One => {
            let command = Command::new(&house.server);
            vec![Server::start(command, &sockets, &[], &results.join("server.log"), &run)?]
        }
        Servers::Linked | Servers::LinkedByAdapters => {
            linked(house, &sockets, results, &run, servers == Servers::LinkedByAdapters)?
        }
        Servers::None => Vec::new(),
    };
    let started = Instant::now();
    let mut machines = Vec::new();
    for (index, steps) in guests.iter().enumerate() {
        let job = job_of(results, index);
        fs::create_dir_all(&job)?;
        write_job(house, provider, steps, &job)?;
        let guest = Guest {
            qemu: &house.dir.join("qemu"),
            kernel: &house.dir.join("kernel/vmlinuz"),
            initrd: &house.dir.join("initramfs"),
            socket: (servers != Servers::None).then_some(&sockets[index]),
            number: index as u8 + 1,
            wire: (guests.len() > 1).then_some(WIRE),
            job: &job,
            run: &run,
            // Together the guests get two processors: a program that polls needs one of its own.
            cpus: if guests.len() > 1 { 1 } else { 2 },
            limit: BOOT_LIMIT + steps.iter().map(|step| step.limit).sum::<Duration>(),
        };
        machines.push(guest.start()?);
    }

    let mut outcomes = Vec::new();
    for (index, (mut machine, steps)) in machines.into_iter().zip(guests).enumerate() {
        let job = job_of(results, index);
        let end = machine.wait()?;
        for (step_index, step) in steps.iter().enumerate() {
            outcomes.push(outcome(provider, &job, step_index, step)?);
        }
        let boot = read_time(&job.join("boot.ms")).unwrap_or_default();
        outcomes.push(Outcome {
            name: "guest boots and powers off".to_owned(),
            passed: end == End::Code(0),
            time: started.elapsed(),
            note: match end {
                End::Code(0) => format!("first step {:.1} s after the kernel's start", boot.as_secs_f64()),
                end => format!("{end:?}, see {}", job.join("console.log").display()),
            },
        });
    }
    if servers == Servers::LinkedByAdapters {
        for server in &running {
            outcomes.push(server.goes_by_adapter(house, &run)?);
        }
    }
    for server in &mut running {
        outcomes.push(server.stop(&run)?);
    }
    Ok(outcomes)
}

/// Name of a guest's socket below the run folder.
fn socket(index: usize) -> String {
    format!("guest{}.sock", index + 1)
}

/// Folder shared with a guest.
pub fn job_of(results: &Path, index: usize) -> PathBuf {
    results.join(format!("guest{}", index + 1))
}

/// Writes the guest's `run.sh` and its steps.
fn write_job(house: &House, provider: &Provider, steps: &[Step], job: &Path) -> Result<()> {
    let scripts = house.root.join("tests/qemu");
    for name in ["run.sh", "lib.sh", "wire.sh", "adapters.sh"] {
        fs::copy(scripts.join(name), job.join(name))?;
    }
    fs::copy(house.root.join("tests/pyverbs/run.py"), job.join("run.py"))?;
    if let Provider::Ours(file) = provider {
        fs::copy(file, job.join("provider.so"))
            .with_context(|| format!("cannot read the provider {}", file.display()))?;
    }
    // `pvrdma run` works in the guest too; what it needs travels beside it.
    let built = house.server.parent().context("the server lies in a folder")?;
    fs::create_dir(job.join("bin"))?;
    for name in ["pvrdma", "libpvrdma_standin.so", "libvmw_pvrdma.so"] {
        fs::copy(built.join(name), job.join("bin").join(name)).with_context(|| format!("cannot read {name}"))?;
    }
    for program in ["apart", "data", "rc_loop", "srq_loop", "wire"] {
        let file = pvrdma_tests::c_program(&format!("tests/c/{program}.c"), &[]);
        fs::copy(file, job.join("bin").join(program)).with_context(|| format!("cannot read {program}"))?;
    }
    let mut list = String::new();
    for (index, step) in steps.iter().enumerate() {
        let text = format!(". /run/job/lib.sh\n{}\n", step.script);
        fs::write(job.join(format!("step{index}.sh")), text)?;
        list += &format!("{index} {}\n", step.limit.as_secs());
    }
    fs::write(job.join("steps"), list)?;
    Ok(())
}

/// A server that runs.
struct Server {
    child: Child,
    sockets: Vec<String>,
    log: PathBuf,
}

impl Server {
    /// Serves `sockets`, which are below `run`, by the command `pvrdma`, or what starts it, with more `options`.
    fn start(mut command: Command, sockets: &[String], options: &[String], log: &Path, run: &Path) -> Result<Server> {
        let file = fs::File::create(log)?;
        command.arg("serve").args(options);
        for socket in sockets {
            command.args(["--socket", socket]);
        }
        command.current_dir(run).stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let mut child = Child::start(command, Duration::from_secs(3600))?;
        let deadline = Instant::now() + SERVER_START;
        while !sockets.iter().all(|socket| run.join(socket).exists()) {
            ensure!(
                !child.ended()? && Instant::now() < deadline,
                "pvrdma serve made no socket: {}",
                fs::read_to_string(log)?.trim()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(Server { child, sockets: sockets.to_vec(), log: log.to_owned() })
    }

    /// What it sends to the other host goes by its adapter, and the link was never lost.
    fn goes_by_adapter(&self, house: &House, run: &Path) -> Result<Outcome> {
        let mut command = Command::new(&house.server);
        command.args(["status", "--json", "--server", &self.sockets[0]]).current_dir(run);
        let status = String::from_utf8_lossy(&command.output()?.stdout).into_owned();
        let log = fs::read_to_string(&self.log)?;
        let passed = status.contains("\"over\": \"hca\"") && !log.contains("is gone");
        Ok(Outcome {
            name: "the link goes by adapters".to_owned(),
            passed,
            time: Duration::ZERO,
            note: if passed { String::new() } else { format!("{}\n{status}", self.log.display()) },
        })
    }

    fn stop(&mut self, run: &Path) -> Result<Outcome> {
        let started = Instant::now();
        let end = self.child.terminate(Duration::from_secs(5))?;
        let left = self.sockets.iter().any(|socket| run.join(socket).exists());
        let passed = end == End::Code(0) && !left;
        let sockets = if left { "left" } else { "removed" };
        Ok(Outcome {
            name: "server ends on SIGTERM, no socket left".to_owned(),
            passed,
            time: started.elapsed(),
            note: match passed {
                true => String::new(),
                false => format!("{end:?}, sockets {sockets}, see {}", self.log.display()),
            },
        })
    }
}

/// A host for each guest, all of one fabric, on loopback.
fn linked(house: &House, sockets: &[String], results: &Path, run: &Path, by_adapters: bool) -> Result<Vec<Server>> {
    let link = |host: usize, words: &[&str]| -> Result<()> {
        let mut command = Command::new(&house.server);
        command.arg("link").args(words).args(["--folder", &folder(host)]).current_dir(run);
        super::run(&mut command)
    };
    link(0, &["init", "--loopback", "--name", "host1", "--address", &free_address()?])?;
    for host in 1..sockets.len() {
        let name = folder(host);
        link(0, &["add", &name, "--address", &free_address()?])?;
        link(host, &["join", &format!("{name}.join")])?;
    }
    for host in 1..sockets.len() - 1 {
        link(host, &["join", "--update", &format!("{}/fabric.toml", folder(0))])?;
    }
    let start = |(host, socket): (usize, &String)| {
        let mut options = vec!["--link".to_owned(), "--folder".to_owned(), folder(host)];
        let log = results.join(format!("server{}.log", host + 1));
        let mut pvrdma = Command::new(&house.server);
        if by_adapters {
            options.extend(["--hca".to_owned(), "auto".to_owned()]);
            pvrdma.args(["run", "--guest", &folder(host), "--"]).arg(&house.server);
            pvrdma.env("XDG_RUNTIME_DIR", run);
        }
        Server::start(pvrdma, std::slice::from_ref(socket), &options, &log, run)
    };
    sockets.iter().enumerate().map(start).collect()
}

/// The settings of a host below the run folder, which has its name.
fn folder(host: usize) -> String {
    format!("host{}", host + 1)
}

/// An address of this machine that nobody listens on at this moment.
fn free_address() -> Result<String> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

/// Where a guest writes what its first step prints.
pub fn first_log(results: &Path, guest: usize) -> PathBuf {
    log_of(&job_of(results, guest), 0)
}

fn log_of(job: &Path, index: usize) -> PathBuf {
    job.join(format!("step{index}.log"))
}

fn outcome(provider: &Provider, job: &Path, index: usize, step: &Step) -> Result<Outcome> {
    let file = |suffix: &str| job.join(format!("step{index}.{suffix}"));
    let log = log_of(job, index);
    let code = fs::read_to_string(file("code")).ok().and_then(|text| text.trim().parse::<i32>().ok());
    let (passed, note) = match (code, step.judge) {
        (Some(0), None) => (true, note_in(&fs::read_to_string(&log).unwrap_or_default())),
        (Some(0), Some(judge)) => match judge(provider, job) {
            Ok(note) => (true, note),
            Err(wrong) => (false, format!("{wrong:#}")),
        },
        (Some(124 | 137), _) => (false, format!("timed out after {} s, see {}", step.limit.as_secs(), log.display())),
        (Some(code), _) => (false, format!("exit {code}, see {}", log.display())),
        (None, _) => (false, format!("the guest ended before it, see {}", job.join("console.log").display())),
    };
    Ok(Outcome { name: step.name.clone(), passed, time: read_time(&file("ms")).unwrap_or_default(), note })
}

/// A step tells the table something with a line `note: ...`.
fn note_in(log: &str) -> String {
    log.lines().filter_map(|line| line.strip_prefix("note: ")).next_back().unwrap_or_default().to_owned()
}

fn read_time(path: &Path) -> Option<Duration> {
    Some(Duration::from_millis(fs::read_to_string(path).ok()?.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_note_of_a_log_is_shown() {
        assert_eq!(note_in("a\nnote: first\nb\nnote: second\n"), "second");
        assert_eq!(note_in("nothing\n"), "");
    }
}
