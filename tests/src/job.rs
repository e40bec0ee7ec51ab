//! One program of one guest: described, started, watched, ended.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use crate::spaces;
use crate::world::{Doorbells, NOBODY, Provider, Stand, User, Uverbs};

/// Long enough for anything here on a busy machine, short enough to notice a hang.
const TIME_OUT: Duration = Duration::from_secs(60);

/// A program to run. Built by [`Stand::job`].
#[derive(Clone)]
pub struct Job<'a> {
    stand: &'a Stand,
    /// Does `pvrdma` start the program?
    by_pvrdma: bool,
    /// Arguments of `pvrdma` before the program.
    options: Vec<OsString>,
    program: Option<OsString>,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    time_out: Duration,
}

impl<'a> Job<'a> {
    pub(crate) fn new(stand: &'a Stand, program: &OsStr) -> Self {
        Job { program: Some(program.to_owned()), ..Job::exact(stand, &["run"]) }
    }

    pub(crate) fn plain(stand: &'a Stand, program: &OsStr) -> Self {
        Job { by_pvrdma: false, program: Some(program.to_owned()), ..Job::exact(stand, &[]) }
    }

    pub(crate) fn exact(stand: &'a Stand, options: &[&str]) -> Self {
        Job {
            stand,
            by_pvrdma: true,
            options: options.iter().map(Into::into).collect(),
            program: None,
            arguments: Vec::new(),
            environment: Vec::new(),
            time_out: TIME_OUT,
        }
    }

    /// An option of `pvrdma run` and its value.
    pub fn option(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.options.extend([name.into(), value.as_ref().to_owned()]);
        self
    }

    /// The guest the program belongs to.
    pub fn guest(self, name: &str) -> Self {
        self.option("--guest", name)
    }

    /// The provider libibverbs loads.
    pub fn provider(self, provider: &Provider) -> Self {
        self.option("--provider", provider.argument())
    }

    /// The way of its doorbells.
    pub fn doorbells(mut self, doorbells: Doorbells) -> Self {
        if doorbells == Doorbells::Trapped {
            self.options.push("--trap".into());
        }
        self
    }

    /// The way into the kernel.
    pub fn uverbs(self, uverbs: Uverbs) -> Self {
        self.env("PVRDMA_UVERBS", uverbs.name())
    }

    /// Adds arguments of the program.
    pub fn args<T: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = T>) -> Self {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// Adds an environment variable.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.into(), value.as_ref().to_owned()));
        self
    }

    /// Replaces the time after which the program is killed and the test fails.
    pub fn time_out(mut self, time_out: Duration) -> Self {
        self.time_out = time_out;
        self
    }

    /// Runs to the end, whatever the exit status.
    pub fn output(self) -> Output {
        self.spawn().wait()
    }

    /// Runs to the end, which must be exit status 0, and gives what the program wrote to its standard output.
    pub fn ok(self) -> String {
        self.output().ok()
    }

    /// Starts the program.
    pub fn spawn(self) -> Running {
        let stdout = self.log_file();
        let stderr = self.log_file();
        let mut command = self.command();
        let handle = |file: &File| file.try_clone().expect("a file handle can be doubled");
        let line = format!("{command:?}");
        // SAFETY: the closure runs between fork and exec, where signal(2) may be called.
        unsafe {
            command.pre_exec(|| {
                // Not what we happen to be started with: `nohup` and background jobs of a script ignore some.
                for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM] {
                    libc::signal(signal, libc::SIG_DFL);
                }
                Ok(())
            })
        };
        let child = command
            .stdin(std::process::Stdio::null())
            // Files and not pipes: a process that stays behind must not keep the reader waiting.
            .stdout(handle(&stdout))
            .stderr(handle(&stderr))
            // A group of its own, so that a program that hangs can be ended with all its children.
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {line}: {error}"));
        Running { child, line, stdout, stderr, ended: None, deadline: Instant::now() + self.time_out }
    }

    fn command(&self) -> Command {
        let first = match &self.program {
            Some(program) if !self.by_pvrdma => program.into(),
            _ => self.stand.path("pvrdma"),
        };
        let mut command = match self.stand.user() {
            User::Me => match self.stand.space() {
                None => Command::new(first),
                Some(pid) => {
                    let mut command = spaces::enter(pid);
                    command.arg(first);
                    command
                }
            },
            User::Nobody => {
                let mut command = Command::new("setpriv");
                command
                    .arg(format!("--reuid={NOBODY}"))
                    .arg(format!("--regid={NOBODY}"))
                    .args(["--clear-groups", "--"])
                    .arg(first);
                command
            }
        };
        if self.by_pvrdma {
            command.args(&self.options);
            if let Some(program) = &self.program {
                command.arg("--").arg(program);
            }
        }
        command.args(&self.arguments);
        command
            .current_dir(self.stand.run_folder())
            .env("TMPDIR", self.stand.run_folder())
            .env("XDG_RUNTIME_DIR", self.stand.run_folder())
            // Nothing is there: a host without a number, whatever this machine is otherwise.
            .env("PVRDMA_LINK", self.stand.path("link"))
            .env("LC_ALL", "C.UTF-8")
            .env_remove("PVRDMA_UVERBS")
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    fn log_file(&self) -> File {
        tempfile::tempfile().expect("a temporary file")
    }
}

/// A program that has been started. Dropping it kills its process group.
pub struct Running {
    child: Child,
    line: String,
    stdout: File,
    stderr: File,
    ended: Option<ExitStatus>,
    deadline: Instant,
}

impl Running {
    /// What the program has written to its standard output until now.
    pub fn stdout(&self) -> String {
        read_all(&self.stdout)
    }

    /// Waits until the program has written `text`. Panics when it ends first or takes too long.
    pub fn wait_for_text(&mut self, text: &str) {
        while !self.stdout().contains(text) {
            self.panic_if_late(&format!("did not say {text:?}"));
            if self.has_ended() && !self.stdout().contains(text) {
                panic!("{} ended without saying {text:?}: {:?}\n{}", self.line, self.ended, self.logs());
            }
            pause();
        }
    }

    /// Waits until the program ends by itself. Panics when it takes too long.
    pub fn wait(self) -> Output {
        self.try_wait().unwrap_or_else(|late| panic!("{late}"))
    }

    /// Waits until the program ends by itself. When it takes too long it is killed and the error says what it wrote.
    pub fn try_wait(mut self) -> Result<Output, String> {
        while !self.has_ended() {
            if self.is_late() {
                return Err(format!("{} did not end in time\n{}", self.line, self.logs()));
            }
            pause();
        }
        Ok(Output {
            line: self.line.clone(),
            status: self.ended.expect("the program has ended"),
            stdout: read_all(&self.stdout),
            stderr: read_all(&self.stderr),
        })
    }

    /// Whether the program has ended, and not well.
    pub(crate) fn has_failed(&mut self) -> bool {
        self.has_ended() && self.ended.is_some_and(|status| !status.success())
    }

    /// Leaves the program no more than `time` from now.
    pub fn hurry(&mut self, time: Duration) {
        self.deadline = self.deadline.min(Instant::now() + time);
    }

    pub(crate) fn is_late(&self) -> bool {
        Instant::now() > self.deadline
    }

    /// Whether the program has ended.
    pub fn has_ended(&mut self) -> bool {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("own children can be waited for");
        }
        self.ended.is_some()
    }

    /// The process that was started: `pvrdma`, or what it turned itself into.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The process of the program proper: the started process or, below it, the one whose name begins with `name`.
    pub fn program_pid(&self, name: &str) -> u32 {
        // The kernel keeps 15 bytes of a name.
        let wanted = &name[..name.len().min(15)];
        let end = Instant::now() + TIME_OUT;
        loop {
            let family = descendants(self.pid());
            let found = family.iter().find(|pid| {
                fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim_end() == wanted)
            });
            match found {
                Some(pid) => return *pid,
                None if Instant::now() > end => panic!("{}: no process is called {wanted}", self.line),
                None => pause(),
            }
        }
    }

    /// The processes of this job that are alive now, `pvrdma` first, with their names (15 bytes at most).
    pub fn programs(&self) -> Vec<(u32, String)> {
        let name =
            |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_owned();
        descendants(self.pid()).into_iter().map(|pid| (pid, name(&pid))).collect()
    }

    /// Sends a signal to a process of this job.
    pub fn signal(&self, pid: u32, signal: i32) {
        assert!(descendants(self.pid()).contains(&pid), "process {pid} does not belong to {}", self.line);
        // SAFETY: kill takes plain numbers; the process is this job's own.
        let result = unsafe { libc::kill(pid.cast_signed(), signal) };
        assert_eq!(result, 0, "cannot signal process {pid}");
    }

    fn panic_if_late(&self, what: &str) {
        if self.is_late() {
            panic!("{} {what} in time\n{}", self.line, self.logs());
        }
    }

    /// Both outputs until now, for a message.
    pub fn logs(&self) -> String {
        format!("--- stdout\n{}--- stderr\n{}", read_all(&self.stdout), read_all(&self.stderr))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // The group outlives its first process when something stays behind; then this ends it. An empty group
        // gives an error that means nothing here.
        // SAFETY: kill takes plain numbers; the group is the one this job was started with.
        unsafe { libc::kill(-self.child.id().cast_signed(), libc::SIGKILL) };
        if !self.has_ended() {
            let _ = self.child.wait();
        }
    }
}

/// What a program left when it ended.
#[derive(Debug)]
pub struct Output {
    line: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Output {
    /// Asserts exit status 0 and gives the standard output.
    #[track_caller]
    pub fn ok(self) -> String {
        assert!(self.status.success(), "{self}");
        self.stdout
    }

    /// The signal that ended the program, also when `pvrdma` passes it on as 128 + signal.
    pub fn signal(&self) -> Option<i32> {
        self.status.signal().or(self.status.code().filter(|code| *code > 128).map(|code| code - 128))
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{}: {}", self.line, self.status)?;
        write!(f, "--- stdout\n{}--- stderr\n{}", self.stdout, self.stderr)
    }
}

/// A process and all processes below it that are alive now.
pub(crate) fn descendants(pid: u32) -> Vec<u32> {
    let mut family = vec![pid];
    let mut next = 0;
    while let Some(parent) = family.get(next) {
        next += 1;
        let tasks = fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten();
        let children: Vec<u32> = tasks
            .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
            .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
            .collect();
        family.extend(children);
    }
    family
}

fn read_all(file: &File) -> String {
    // The handle shares its position with the writer's, so read through a description of its own.
    let mut bytes = Vec::new();
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file));
    let mut own = File::open(path).expect("an open file can be opened again");
    own.read_to_end(&mut bytes).expect("a file can be read");
    String::from_utf8_lossy(&bytes).into_owned()
}

fn pause() {
    std::thread::sleep(Duration::from_millis(5));
}
