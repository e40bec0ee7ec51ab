//! The linker of a release: `zig cc`, which has the symbol lists of every glibc, so that a file can be linked for an
//! older one than the machine has.
//!
//! Zig comes from PyPI, as `ziglang`, into `target/tools`; version and checksum are pinned, since the linker decides
//! about the bytes that come out.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::shell;

/// What pip is given: a name, a version, the checksum of the one file that is taken.
const WHEEL: &str = "ziglang==0.17.1 --hash=sha256:ea6cc5d87b033cf0aedfbc8f9549a908cae6c50ac31f1698188fa48a74524b54\n";

/// The oldest glibc a release runs with: that of RHEL 7, older than any distribution with rdma-core 28.
pub const GLIBC: (u32, u32) = (2, 17);

/// Writes the linker to `place`, a script that calls zig.
///
/// Zig would link an unwinder of its own in the place of libgcc_s. There must be one in a process only: the unwinder
/// of a thread that is cancelled calls the personality routine of our frames, which asks its unwinder about them. So
/// libgcc_s is linked by its file; what that file needs of the machine's newer glibc is not our need.
pub fn linker(place: &Path) -> Result<()> {
    let zig = zig()?;
    let (major, minor) = GLIBC;
    let script = format!(
        "#!/bin/sh\n\
         for argument do\n\
         \x20   shift\n\
         \x20   case $argument in\n\
         \x20   -lgcc_s) argument=$(cc -print-file-name=libgcc_s.so.1) ;;\n\
         \x20   esac\n\
         \x20   set -- \"$@\" \"$argument\"\n\
         done\n\
         exec '{}' cc -target x86_64-linux-gnu.{major}.{minor} -Wl,--allow-shlib-undefined \"$@\"\n",
        zig.display()
    );
    fs::write(place, script)?;
    fs::set_permissions(place, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// Fetches it, where it is not there yet.
pub fn fetch() -> Result<()> {
    zig().map(drop)
}

/// The program, fetched the first time.
fn zig() -> Result<PathBuf> {
    let tools = shell::workspace().join("target/tools/zig");
    let done = tools.join("wheel.txt");
    if fs::read_to_string(&done).ok().as_deref() != Some(WHEEL) {
        if tools.exists() {
            fs::remove_dir_all(&tools)?;
        }
        println!("# ziglang from PyPI, below target/tools: 100 MB, once");
        shell::output(Command::new("python3").args(["-m", "venv"]).arg(&tools))
            .context("python3 makes no environment (Debian: package python3-venv)")?;
        let wanted = tools.join("wanted.txt");
        fs::write(&wanted, WHEEL)?;
        shell::output(
            Command::new(tools.join("bin/pip"))
                .args(["install", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"])
                .args(["--require-hashes", "-r"])
                .arg(&wanted),
        )?;
        fs::rename(wanted, done)?;
    }
    let lib = fs::read_dir(tools.join("lib"))?.next().context("an environment has a lib folder")??.path();
    let zig = lib.join("site-packages/ziglang/zig");
    ensure!(zig.is_file(), "no zig in {}", tools.display());
    Ok(zig)
}
