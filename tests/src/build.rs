//! What the tests run: the release build of our files, and the C programs of `tests/c`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};

/// The files a run needs, by the names cargo gives them.
pub(crate) const FILES: [&str; 3] = ["pvrdma", "libpvrdma_standin.so", "libvmw_pvrdma.so"];

/// The folder of the workspace.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the workspace").to_owned()
}

/// The folder with the release build, which is brought up to date first.
///
/// Whoever has just built (as `cargo xtask test` has) names the folder in `PVRDMA_BUILT` and saves the check.
pub fn artifacts() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        if let Some(folder) = std::env::var_os("PVRDMA_BUILT") {
            return folder.into();
        }
        let status = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--release", "-p", "pvrdma-cli", "-p", "pvrdma-standin", "-p", "vmw_pvrdma"])
            .current_dir(workspace())
            .status()
            .expect("cargo starts");
        assert!(status.success(), "the release build failed");
        target().join("release")
    })
}

/// The provider without optimisation: other machine code for the same stores, and all of Rust's checks.
pub fn debug_provider() -> PathBuf {
    let status = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "-p", "vmw_pvrdma"])
        .current_dir(workspace())
        .status()
        .expect("cargo starts");
    assert!(status.success(), "the debug build failed");
    target().join("debug/libvmw_pvrdma.so")
}

/// An example of a crate: a program that needs another place to run in than `cargo test` is.
pub fn example(package: &str, name: &str) -> PathBuf {
    let status = Command::new(env!("CARGO"))
        .args(["build", "-p", package, "--example", name])
        .current_dir(workspace())
        .status()
        .expect("cargo starts");
    assert!(status.success(), "{name} of {package} was not built");
    target().join("debug/examples").join(name)
}

/// Cargo's target folder.
fn target() -> PathBuf {
    if let Some(folder) = std::env::var_os("CARGO_TARGET_DIR") {
        return workspace().join(folder);
    }
    workspace().join("target")
}

/// Compiles the C file `source` of the workspace with the machine's C compiler against the installed libibverbs.
///
/// `flags` tell variants apart (`-fsanitize=address`); each variant is a file of its own. The program is compiled
/// every time a test binary asks for it first: it takes less than a second and is never stale.
pub fn c_program(source: &str, flags: &[&str]) -> PathBuf {
    compiled("cc", source, flags)
}

/// The same for an MPI program, with the compiler of an MPI library.
pub fn mpi_program(compiler: &str, source: &str) -> PathBuf {
    compiled(compiler, source, &[])
}

fn compiled(compiler: &str, source: &str, flags: &[&str]) -> PathBuf {
    static DONE: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    let source = workspace().join(source);
    let name = source.file_stem().expect("a C file has a name").display();
    let folder = target().join("c-programs");
    let library = if compiler == "cc" { "" } else { compiler };
    let variant: String = library.chars().chain(flags.concat().chars()).filter(char::is_ascii_alphanumeric).collect();
    let program = folder.join(format!("{name}{variant}"));
    let mut done = DONE.lock().unwrap_or_else(PoisonError::into_inner);
    if !done.insert(program.clone()) {
        return program;
    }
    std::fs::create_dir_all(&folder).expect("the target folder can be written");
    // Test binaries may run side by side: each compiles to a name of its own and renames.
    let partial = folder.join(format!("{name}{variant}.{}", std::process::id()));
    let output = Command::new(compiler)
        .args(["-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread", "-o"])
        .arg(&partial)
        .arg(&source)
        .args(flags)
        .args(["-libverbs", "-ldl"])
        .output()
        .unwrap_or_else(|error| panic!("no C compiler {compiler}: {error}"));
    assert!(output.status.success(), "{name}.c does not compile:\n{}", String::from_utf8_lossy(&output.stderr));
    std::fs::rename(&partial, &program).expect("the program can be put in place");
    program
}
