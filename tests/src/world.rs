//! The axes of a run: which provider, which user, which way into the kernel; and the folder a run lives in.

use std::ffi::{OsStr, OsString};
use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tempfile::TempDir;

use crate::build::FILES;
use crate::{Job, artifacts};

/// Which provider libibverbs loads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Provider {
    /// `libvmw_pvrdma.so` of this workspace.
    Ours,
    /// The C provider of the machine's rdma-core package.
    System,
    /// A provider file by its path.
    Path(PathBuf),
}

impl Provider {
    /// The two that every story runs on.
    pub const BOTH: [Provider; 2] = [Provider::Ours, Provider::System];

    pub(crate) fn argument(&self) -> OsString {
        match self {
            Provider::Ours => "ours".into(),
            Provider::System => "system".into(),
            Provider::Path(path) => path.into(),
        }
    }
}

/// How libibverbs reaches the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Uverbs {
    /// ioctl with one method per verb, as kernels since 5.x answer.
    Ioctl,
    /// ioctl, but only as an envelope of the write commands.
    Invoke,
    /// write(2), as old kernels do.
    Write,
}

impl Uverbs {
    /// All three.
    pub const ALL: [Uverbs; 3] = [Uverbs::Ioctl, Uverbs::Invoke, Uverbs::Write];

    /// The value of the environment variable `PVRDMA_UVERBS`.
    pub fn name(self) -> &'static str {
        match self {
            Uverbs::Ioctl => "ioctl",
            Uverbs::Invoke => "invoke",
            Uverbs::Write => "write",
        }
    }
}

/// How doorbells reach the device of `pvrdma run`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doorbells {
    /// By the sites that a provider declares (ours does), and by the trap without.
    Usual,
    /// `--trap`: by the trap, all of them.
    Trapped,
}

impl Doorbells {
    /// What stories about doorbells run on.
    pub const EACH: [(Provider, Doorbells); 3] = [
        (Provider::Ours, Doorbells::Usual),
        (Provider::Ours, Doorbells::Trapped),
        (Provider::System, Doorbells::Usual),
    ];
}

/// Who runs the programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum User {
    /// Whoever runs the tests.
    Me,
    /// `nobody`: no privilege, no home.
    Nobody,
}

impl User {
    /// Root and an ordinary user. Whoever runs the tests without being root stands for the ordinary user.
    pub fn both() -> Vec<User> {
        if is_root() {
            return vec![User::Me, User::Nobody];
        }
        cannot_run("as root", "the tests were started by an ordinary user");
        vec![User::Me]
    }
}

fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions.
    unsafe { libc::geteuid() == 0 }
}

/// Says loudly that `what` was not run, and why. Under CI (the variable `CI` is set) it is a failure.
pub fn cannot_run(what: &str, why: &str) {
    assert!(std::env::var_os("CI").is_none(), "NOT RUN: {what}: {why}. On CI everything must run.");
    // Written past the test harness, which keeps what a passing test prints to itself.
    let _ = writeln!(std::io::stderr(), "NOT RUN: {what}: {why}");
    if let Some(path) = std::env::var_os("PVRDMA_NOT_RUN") {
        let mut list = fs::OpenOptions::new().append(true).create(true).open(path).expect("PVRDMA_NOT_RUN is a file");
        writeln!(list, "{what}: {why}").expect("PVRDMA_NOT_RUN can be written");
    }
}

/// Holds the machine for one story at a time within a test binary.
///
/// Programs that poll need the cores they are given: side by side the stories would only measure each other.
pub fn machine() -> MutexGuard<'static, ()> {
    static MACHINE: Mutex<()> = Mutex::new(());
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A folder with a copy of our files that `user` can read, and a place for what a run writes.
pub struct Stand {
    /// Programs and libraries.
    folder: TempDir,
    /// What a run writes. In memory, as a user's runtime folder is.
    run: TempDir,
    user: User,
    /// A process whose namespaces the programs run in.
    space: Option<u32>,
}

impl Stand {
    /// Copies the built files.
    pub fn new(user: User) -> Stand {
        let stand = Stand {
            folder: temporary(&std::env::temp_dir()),
            run: temporary(Path::new("/dev/shm")),
            user,
            space: None,
        };
        for name in FILES {
            stand.copy(&artifacts().join(name));
        }
        if user == User::Nobody {
            chown(stand.run.path(), Some(NOBODY), Some(NOBODY)).expect("root may give a folder away");
        }
        stand
    }

    /// Copies a program into the folder, where the stand's user can run it.
    pub fn copy(&self, program: &Path) -> PathBuf {
        let place = self.path(program.file_name().expect("a program has a name"));
        fs::copy(program, &place).unwrap_or_else(|error| panic!("cannot copy {}: {error}", program.display()));
        open_to_all(&place);
        place
    }

    /// Copies a folder with all it holds into the folder, where the stand's user can read it.
    pub fn copy_tree(&self, tree: &Path) -> PathBuf {
        let place = self.path(tree.file_name().expect("a folder has a name"));
        let status = Command::new("cp").arg("-a").args([tree, &place]).status().expect("cp starts");
        assert!(status.success(), "cannot copy {}", tree.display());
        place
    }

    /// A program to run as a process of a guest: a name looked up in PATH, or a path.
    pub fn job(&self, program: impl AsRef<OsStr>) -> Job<'_> {
        Job::new(self, program.as_ref())
    }

    /// A program in no guest, such as a launcher that starts programs in guests.
    pub fn plain(&self, program: impl AsRef<OsStr>) -> Job<'_> {
        Job::plain(self, program.as_ref())
    }

    /// `pvrdma` with exactly these arguments.
    pub fn pvrdma(&self, arguments: &[&str]) -> Job<'_> {
        Job::exact(self, arguments)
    }

    /// What lies in the run folder, which must be nothing when no program runs.
    pub fn leftovers(&self) -> Vec<PathBuf> {
        fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
            for entry in fs::read_dir(folder).expect("the run folder can be read") {
                let path = entry.expect("an entry").path();
                if path.is_dir() && !path.is_symlink() {
                    walk(&path, found);
                }
                found.push(path);
            }
        }
        let mut found = Vec::new();
        walk(&self.run_folder(), &mut found);
        found
    }

    /// Where programs keep what lasts as long as they run (TMPDIR and XDG_RUNTIME_DIR).
    pub fn run_folder(&self) -> PathBuf {
        self.run.path().to_owned()
    }

    /// Has the programs run in the user and network namespaces of a process.
    pub(crate) fn within(self, pid: u32) -> Stand {
        Stand { space: Some(pid), ..self }
    }

    pub(crate) fn space(&self) -> Option<u32> {
        self.space
    }

    pub(crate) fn user(&self) -> User {
        self.user
    }

    /// Where a file copied here lies.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.folder.path().join(name)
    }
}

pub(crate) const NOBODY: u32 = 65534;

fn temporary(parent: &Path) -> TempDir {
    let folder = tempfile::Builder::new().prefix("pvrdma-test-").tempdir_in(parent).expect("a temporary folder");
    open_to_all(folder.path());
    folder
}

fn open_to_all(path: &Path) {
    fs::set_permissions(path, Permissions::from_mode(0o755)).expect("own files can be opened to all");
}
