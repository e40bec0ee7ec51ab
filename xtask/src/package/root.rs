//! A Debian release in a folder, made by mmdebstrap, to run what a clean machine would. It takes root.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::shell;
use crate::vm::apt::Mirror;

/// What a root has beside dpkg and apt.
#[derive(Clone, Copy)]
pub struct Kind {
    /// Part of a file's name.
    pub name: &'static str,
    pub packages: &'static [&'static str],
    /// Packages whose files are left in [`TRIAL`], to install them again.
    pub again: &'static [&'static str],
}

/// Where files are brought to.
pub const TRIAL: &str = "/trial";

/// A root that is there.
pub struct Root {
    pub suite: &'static str,
    pub folder: PathBuf,
}

/// May roots be made and entered here? Under CI it is an error if not.
pub fn possible(what: &str) -> Result<bool> {
    // SAFETY: geteuid has no preconditions.
    if unsafe { libc::geteuid() } != 0 {
        ensure!(std::env::var_os("CI").is_none(), "{what}: it takes root");
        println!("NOT RUN: {what}: it takes root");
        return Ok(false);
    }
    let namespaces = Command::new("unshare").args(["--mount", "--pid", "--fork", "true"]).output();
    let why = match namespaces {
        Ok(output) if output.status.success() => return Ok(true),
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    ensure!(std::env::var_os("CI").is_none(), "{what}: no namespaces of its own: {why}");
    println!("NOT RUN: {what}: no namespaces of its own: {why}");
    Ok(false)
}

/// The tarball that roots of a suite are unpacked from, made the first time.
pub fn tarball(mirror: &Mirror, suite: &str, kind: Kind) -> Result<PathBuf> {
    let cache = shell::target().join("package/roots");
    let tarball = cache.join(format!("{suite}-{}.tar", kind.name));
    let list = tarball.with_extension("packages");
    let wanted = [kind.packages, kind.again].map(|names| names.join(" ")).join("\n");
    if tarball.exists() && fs::read_to_string(&list).ok().as_ref() == Some(&wanted) {
        return Ok(tarball);
    }
    println!("# Debian {suite}, {}, by mmdebstrap, once", kind.name);
    fs::create_dir_all(&cache)?;
    let partial = cache.join(format!("{suite}-{}.partial.tar", kind.name));
    let mut mmdebstrap = Command::new("mmdebstrap");
    mmdebstrap
        .args(["--quiet", "--variant=apt"])
        .args(["--aptopt=Acquire::Check-Valid-Until \"false\"", "--aptopt=Acquire::Languages \"none\""])
        .arg(format!("--customize-hook=mkdir \"$1{TRIAL}\""));
    if !kind.packages.is_empty() {
        mmdebstrap.arg(format!("--include={}", kind.packages.join(",")));
    }
    for package in kind.again {
        mmdebstrap.arg(format!("--customize-hook=chroot \"$1\" sh -c 'cd {TRIAL} && apt-get download {package}'"));
    }
    shell::output(mmdebstrap.args([Path::new(suite), &partial, Path::new(mirror.main())]))?;
    fs::rename(partial, &tarball)?;
    fs::write(list, wanted)?;
    Ok(tarball)
}

impl Root {
    /// Unpacks it into an empty folder.
    pub fn new(tarball: &Path, suite: &'static str, folder: PathBuf) -> Result<Root> {
        shell::output(Command::new("tar").arg("-xf").arg(tarball).arg("-C").arg(&folder))?;
        Ok(Root { suite, folder })
    }

    /// A shell, as root of the folder, with `/proc` and `/dev`; its processes end with it. `mounts` are more mounts, in
    /// shell; `$0` is the folder.
    pub fn command(&self, mounts: &str, script: &str) -> Command {
        let inside = format!(
            "mount -t proc proc \"$0/proc\" && mount --rbind /dev \"$0/dev\" && {mounts} exec chroot \"$0\" /bin/sh -ec \"$1\""
        );
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-ec", &inside])
            .arg(&self.folder)
            .arg(script)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", "/root")
            .env("DEBIAN_FRONTEND", "noninteractive");
        command
    }

    pub fn run_for_output(&self, script: &str) -> Result<String> {
        shell::output(&mut self.command("", script)).with_context(|| format!("in Debian {}", self.suite))
    }

    pub fn run(&self, script: &str) -> Result<()> {
        self.run_for_output(script).map(drop)
    }

    pub fn remove(self) -> Result<()> {
        fs::remove_dir_all(&self.folder)?;
        Ok(())
    }
}
