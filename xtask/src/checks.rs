//! Checks of what the build made that are no tests: exported names, licences, where dependencies come from.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{fuzz, shell};

/// The provider exports its direct verbs, with their version, and asks libibverbs for nothing at link time; the
/// stand-in exports libc names, and its hooks for tests.
///
/// A name too many in the provider could shadow one of the application. A libibverbs symbol the provider needs at
/// load would tie the file to one release of rdma-core.
pub fn exports() -> Result<()> {
    exports_of(&shell::build_release()?)
}

/// The same of the files in a folder.
pub fn exports_of(built: &Path) -> Result<()> {
    let provider = built.join("libvmw_pvrdma.so");
    let exported =
        shell::output(Command::new("nm").args(["-D", "--defined-only", "--format=just-symbols"]).arg(&provider))?;
    let exported: BTreeSet<&str> = exported.lines().collect();
    let direct = direct_verbs()?;
    let direct: BTreeSet<&str> = direct.iter().map(String::as_str).collect();
    ensure!(
        exported == direct,
        "the provider exports {exported:?} and not the names of {MAP} (linked by an lld, see provider/build.rs)"
    );
    let soname = shell::output(Command::new("readelf").arg("-dW").arg(&provider))?;
    ensure!(soname.contains("soname: [libpvrdmadv.so.1]"), "the provider has another soname");
    let needed = names(Command::new("nm").args(["-D", "--undefined-only"]).arg(&provider))?;
    let of_verbs: Vec<_> = needed.iter().filter(|name| name.contains("ibv") || name.contains("verbs")).collect();
    ensure!(of_verbs.is_empty(), "the provider links to {of_verbs:?}");

    let standin = names(Command::new("nm").args(["-D", "--defined-only"]).arg(built.join("libpvrdma_standin.so")))?;
    let listed: Vec<_> = INTERPOSED.lines().collect();
    let extra: Vec<_> = standin.iter().filter(|name| !listed.contains(&name.as_str())).collect();
    let missing: Vec<_> = listed.iter().filter(|name| !standin.iter().any(|found| found == *name)).collect();
    ensure!(
        extra.is_empty() && missing.is_empty(),
        "the stand-in's exports differ from device/standin/exports.txt: {extra:?} are not listed, {missing:?} are missing"
    );
    println!("provider: {} names exported, stand-in: {} names", exported.len(), standin.len());
    Ok(())
}

/// The versions of the provider's names, as the linker is told.
const MAP: &str = "provider/pvrdmadv.map";

/// The names of the map, with their version.
fn direct_verbs() -> Result<Vec<String>> {
    let map = std::fs::read_to_string(shell::workspace().join(MAP))?;
    let mut version = "";
    let mut names = Vec::new();
    for line in map.lines().map(str::trim) {
        if let Some(name) = line.strip_suffix(" {") {
            version = name;
        } else if let Some(name) = line.strip_suffix(';').filter(|name| name.starts_with("pvrdmadv_")) {
            names.push(format!("{name}@@{version}"));
        }
    }
    Ok(names)
}

/// The libc functions the stand-in takes the place of, and its hooks, one in each line.
const INTERPOSED: &str = include_str!("../../device/standin/exports.txt");

/// The names `nm` prints, without their versions.
fn names(nm: &mut Command) -> Result<Vec<String>> {
    let text = shell::output(nm)?;
    text.lines()
        .map(|line| {
            let name = line.split_whitespace().next_back().context("nm printed an empty line")?;
            Ok(name.split('@').next().unwrap_or(name).to_owned())
        })
        .collect()
}

/// Licences, bans and sources of the dependencies. The advisories need a database from elsewhere: not part of this.
pub fn deny() -> Result<()> {
    let cargo_deny = cargo_deny()?;
    let workspaces = std::iter::once(shell::workspace().to_owned()).chain(fuzz::crates());
    for workspace in workspaces {
        shell::run(
            Command::new(&cargo_deny)
                .arg("--config")
                .arg(shell::workspace().join("deny.toml"))
                .args(["--log-level", "error", "check", "licenses", "bans", "sources"])
                .current_dir(workspace),
        )?;
    }
    Ok(())
}

/// `cargo-deny` of the machine, or one built below `target/tools`.
pub fn cargo_deny() -> Result<std::path::PathBuf> {
    if Command::new("cargo-deny").arg("--version").output().is_ok() {
        return Ok("cargo-deny".into());
    }
    let tools = shell::workspace().join("target/tools");
    let program = tools.join("bin/cargo-deny");
    if !program.exists() {
        println!("# cargo install cargo-deny, below target/tools: takes a few minutes, once");
        // It runs for a second, so what counts is how long it takes to build.
        shell::run(
            shell::cargo(&["install", "--quiet", "--locked", "cargo-deny", "--root"])
                .arg(&tools)
                .env("CARGO_TARGET_DIR", tools.join("build"))
                .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0")
                .env("CARGO_PROFILE_RELEASE_LTO", "off")
                .env("CARGO_PROFILE_RELEASE_DEBUG", "false")
                .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"),
        )?;
        std::fs::remove_dir_all(tools.join("build"))?;
    }
    Ok(program)
}

/// All of it compiles with the Rust that `Cargo.toml` promises: later ones take more.
pub fn rust_version() -> Result<()> {
    let version = env!("CARGO_PKG_RUST_VERSION");
    if !has_rust(version)? {
        return Ok(());
    }
    shell::run(
        Command::new("rustup")
            .args(["run", version, "cargo", "check", "--locked", "--workspace", "--all-targets", "--all-features"])
            .arg("--target-dir")
            .arg(shell::target().join("rust-version"))
            .current_dir(shell::workspace()),
    )
}

/// Has rustup bring a version. Without rustup there is none, which is a failure under CI.
pub fn has_rust(version: &str) -> Result<bool> {
    if Command::new("rustup").arg("--version").output().is_err() {
        ensure!(std::env::var_os("CI").is_none(), "no rustup, so no Rust {version}");
        println!("NOT RUN: no rustup, so no Rust {version}");
        return Ok(false);
    }
    shell::run(Command::new("rustup").args([
        "toolchain",
        "install",
        version,
        "--profile",
        "minimal",
        "--no-self-update",
    ]))?;
    Ok(true)
}
