//! From the source tarball to the files a user has: built without a network, linked for an old glibc, stripped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::{Release, zig};
use crate::{checks, shell};

/// What was built.
pub struct Built {
    /// The unpacked source.
    pub source: PathBuf,
    /// The folder of the stripped files.
    pub stripped: PathBuf,
    pub files: Vec<File>,
    /// What `packaging/install.sh` makes of it, with the prefix /usr; no driver line.
    pub installed: PathBuf,
}

/// A program or library of a release.
#[derive(Clone)]
pub struct File {
    pub name: &'static str,
    pub is_program: bool,
    pub stripped: PathBuf,
    /// What was taken out.
    pub debug: PathBuf,
    /// Where debuggers look for that, below /usr.
    pub debug_path: String,
}

impl File {
    pub fn mode(&self) -> u32 {
        if self.is_program { 0o755 } else { 0o644 }
    }
}

impl Built {
    pub fn file(&self, name: &str) -> Result<&File> {
        self.files.iter().find(|file| file.name == name).with_context(|| format!("no {name} was built"))
    }

    /// Takes from another build what was not built here.
    pub fn take_the_rest(&mut self, other: &Built) -> Result<()> {
        for file in &other.files {
            if self.files.iter().all(|own| own.name != file.name) {
                let stripped = self.stripped.join(file.name);
                fs::copy(&file.stripped, &stripped)?;
                self.files.push(File { stripped, ..file.clone() });
            }
        }
        Ok(())
    }

    /// With all files there: what they export, and where `packaging/install.sh` puts them.
    pub fn install(&self) -> Result<()> {
        checks::exports_of(&self.stripped)?;
        shell::output(
            Command::new(self.source.join("packaging/install.sh"))
                .args(["--files-only", "--prefix", "/usr", "--from"])
                .arg(&self.stripped)
                .arg("--root")
                .arg(&self.installed),
        )?;
        Ok(())
    }
}

/// Package, its file in cargo's folder, and whether that is a program.
static FILES: [(&str, &str, bool); 3] = [
    ("vmw_pvrdma", "libvmw_pvrdma.so", false),
    ("pvrdma-standin", "libpvrdma_standin.so", false),
    ("pvrdma-cli", "pvrdma", true),
];

/// What is built of them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum What {
    All,
    /// The first.
    Provider,
}

impl What {
    fn taken(self) -> &'static [(&'static str, &'static str, bool)] {
        if self == What::All { &FILES } else { &FILES[..1] }
    }
}

const TARGET: &str = "x86_64-unknown-linux-gnu";

pub fn from_source(release: &Release, tarball: &Path, what: What) -> Result<Built> {
    let taken = what.taken();
    let folder = release.scratch("build")?;
    shell::output(Command::new("tar").arg("-xf").arg(tarball).arg("-C").arg(&folder))?;
    let source = folder.join(release.folder());
    let linker = folder.join("linker");
    zig::linker(&linker)?;
    let target = folder.join("target");
    // An empty home: whatever cargo needs is in the tarball, or this fails.
    let home = folder.join("cargo-home");
    fs::create_dir(&home)?;
    let elsewhere = format!("{}=/usr/src/{}", source.display(), release.folder());
    let flags = [format!("--remap-path-prefix={elsewhere}"), "-Clink-arg=-Wl,--build-id=sha1".to_owned()];
    println!("# cargo build, offline, from {}", tarball.display());
    // One after the other: built beside others, a package gets the features that they ask of its dependencies, and
    // would not be the one that a packager builds by itself.
    for (package, ..) in taken {
        shell::run(
            shell::cargo(&[
                "build",
                "--quiet",
                "--release",
                "--offline",
                "--locked",
                "--target",
                TARGET,
                "-p",
                package,
            ])
            .current_dir(&source)
            .env("CARGO_HOME", &home)
            .env("CARGO_TARGET_DIR", &target)
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
            .env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER", &linker)
            // The same for the C of crates, whose debug information is part of the build id.
            .env("CFLAGS", format!("-ffile-prefix-map={elsewhere}"))
            .env("SOURCE_DATE_EPOCH", release.date.to_string())
            .env("CARGO_INCREMENTAL", "0"),
        )?;
    }
    let made = target.join(TARGET).join("release");
    let stripped = release.scratch("stripped")?;
    let files = taken.iter().map(|&(_, name, is_program)| strip(&made.join(name), &stripped, name, is_program));
    let files: Vec<File> = files.collect::<Result<_>>()?;
    for file in &files {
        check(&file.stripped)?;
    }
    // A gigabyte that nobody reads again.
    fs::remove_dir_all(target)?;
    Ok(Built { source, stripped, files, installed: release.scratch("installed")? })
}

/// The source tarball also builds with the oldest Rust that is promised, which rustup brings: checked, not linked. The
/// provider, and with `all` the rest; all of the tree is checked with it by the check `rust` of `cargo xtask test`.
pub fn with_the_oldest_rust(release: &Release, tarball: &Path, what: What) -> Result<()> {
    let version = env!("CARGO_PKG_RUST_VERSION");
    if !checks::has_rust(version)? {
        return Ok(());
    }
    let folder = release.scratch("oldest")?;
    shell::output(Command::new("tar").arg("-xf").arg(tarball).arg("-C").arg(&folder))?;
    let home = folder.join("cargo-home");
    fs::create_dir(&home)?;
    let packages = what.taken().iter().flat_map(|(package, ..)| ["-p", *package]);
    shell::run(
        Command::new("rustup")
            .args(["run", version, "cargo", "check", "--quiet", "--release", "--offline", "--locked"])
            .args(packages)
            .current_dir(folder.join(release.folder()))
            .env("CARGO_HOME", &home)
            .env("CARGO_TARGET_DIR", folder.join("target")),
    )?;
    println!("the source tarball builds offline with Rust {version}");
    fs::remove_dir_all(folder)?;
    Ok(())
}

fn strip(made: &Path, folder: &Path, name: &'static str, is_program: bool) -> Result<File> {
    let stripped = folder.join(name);
    let debug = folder.join(format!("{name}.debug"));
    let objcopy =
        |arguments: &[&str]| shell::output(Command::new("objcopy").args(arguments).current_dir(folder)).map(drop);
    let from = made.to_str().context("a plain path")?;
    objcopy(&["--only-keep-debug", "--compress-debug-sections", from, &format!("{name}.debug")])?;
    objcopy(&["--strip-unneeded", from, name])?;
    let notes = shell::output(Command::new("readelf").arg("-nW").arg(&stripped))?;
    let id = notes.split("Build ID: ").nth(1).and_then(|rest| rest.split_whitespace().next());
    let (first, rest) = id.context("no build id")?.split_at(2);
    let debug_path = format!("lib/debug/.build-id/{first}/{rest}.debug");
    Ok(File { name, is_program, stripped, debug, debug_path })
}

/// What only the file itself can tell: the glibc it wants, the libraries it loads, that no path of this machine is in.
fn check(file: &Path) -> Result<()> {
    let text = shell::output(Command::new("readelf").args(["-VdW"]).arg(file))?;
    let floor = glibc(&text)?;
    ensure!(floor <= zig::GLIBC, "{} wants glibc {}.{}", file.display(), floor.0, floor.1);
    let needed: Vec<&str> =
        text.lines().filter_map(|line| line.split_once("Shared library: [")?.1.strip_suffix(']')).collect();
    ensure!(needed.contains(&"libgcc_s.so.1"), "{} has an unwinder of its own: {needed:?}", file.display());
    let known = ["libgcc_s.so.1", "libc.so.6", "libpthread.so.0", "libdl.so.2", "libm.so.6", "ld-linux-x86-64.so.2"];
    let foreign: Vec<_> = needed.iter().filter(|name| !known.contains(name)).collect();
    ensure!(foreign.is_empty(), "{} needs {foreign:?}", file.display());
    let bytes = fs::read(file)?;
    let here = shell::workspace().to_str().context("a plain path")?.as_bytes();
    ensure!(!bytes.windows(here.len()).any(|part| part == here), "{} tells where it was built", file.display());
    let size = bytes.len() / 1024;
    println!("{}: {size} kB, glibc {}.{}, {}", file.display(), floor.0, floor.1, needed.join(" "));
    Ok(())
}

/// The newest glibc among the versions a file asks for, as `readelf -V` prints them.
fn glibc(versions: &str) -> Result<(u32, u32)> {
    let mut newest = None;
    for word in versions.split(|c: char| !c.is_ascii_alphanumeric() && c != '.' && c != '_') {
        if let Some(version) = word.strip_prefix("GLIBC_") {
            let mut parts = version.split('.').map(str::parse);
            match (parts.next(), parts.next()) {
                (Some(Ok(major)), Some(Ok(minor))) => newest = newest.max(Some((major, minor))),
                // GLIBC_PRIVATE, GLIBC_ABI_DT_RELR: what no release promises, and what came with 2.36.
                _ => bail!("the symbol version {word} is not a number"),
            }
        }
    }
    newest.context("no glibc version at all")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_counts() {
        let text = "Name: GLIBC_2.3.4  Flags: none\n Name: GLIBC_2.17 \n Name: GCC_4.2.0\n Name: GLIBC_2.2.5\n";
        assert_eq!(glibc(text).expect("a version"), (2, 17));
        assert!(glibc("GCC_3.0").is_err());
        assert!(glibc("GLIBC_2.17 GLIBC_ABI_DT_RELR").is_err());
    }
}
