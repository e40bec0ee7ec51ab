//! `cargo xtask headers`: C headers of `ffi/`, for C programs and debuggers that look at the same memory.
//!
//! The headers are checked in below `include/`, never edited, and `cargo xtask test` proves them fresh.

use std::fs;

use anyhow::{Context, Result, bail};

use crate::shell;

/// Writes the headers; with `--check` only compares them.
pub fn main(arguments: &[String]) -> Result<()> {
    match arguments {
        [] => write(),
        [one] if one == "--check" => check(),
        _ => bail!("usage: cargo xtask headers [--check]"),
    }
}

/// The header's name below `include/`.
const HEADER: &str = "include/pvrdma.h";

fn write() -> Result<()> {
    fs::write(shell::workspace().join(HEADER), generate()?).with_context(|| format!("cannot write {HEADER}"))
}

/// Fails with the first line that differs.
pub fn check() -> Result<()> {
    let fresh = generate()?;
    let path = shell::workspace().join(HEADER);
    let kept = fs::read_to_string(&path).with_context(|| format!("cannot read {HEADER}"))?;
    if fresh == kept {
        return Ok(());
    }
    let differs = fresh.lines().zip(kept.lines()).position(|(fresh, kept)| fresh != kept);
    let line = differs.unwrap_or_else(|| fresh.lines().count().min(kept.lines().count())) + 1;
    bail!("{HEADER} is not what ffi/ says, from line {line} on: run `cargo xtask headers`")
}

/// The files of `ffi/` that describe the device. The rest of `ffi/` has C headers already.
const SOURCES: [&str; 2] = ["ffi/src/uapi/vmw_pvrdma.rs", "ffi/src/dev_api.rs"];

fn generate() -> Result<String> {
    let mut config = cbindgen::Config::from_file(shell::workspace().join("ffi/cbindgen.toml"))
        .map_err(|error| anyhow::anyhow!("ffi/cbindgen.toml: {error}"))?;
    let mut builder = cbindgen::Builder::new();
    for source in SOURCES {
        let path = shell::workspace().join(source);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {source}"))?;
        config.export.include.extend(types(&text));
        builder = builder.with_src(path);
    }
    let bindings = builder.with_config(config).generate().context("cbindgen cannot read ffi/")?;
    let mut text = Vec::new();
    bindings.write(&mut text);
    // Rust's are unsigned, and in C a bit 31 that is signed spoils 64-bit words.
    Ok(String::from_utf8(text)?.replace("(1 << ", "(1u << "))
}

/// Names of the public structs and unions of a source file. cbindgen leaves out what no function uses, and there are
/// no functions here.
fn types(source: &str) -> impl Iterator<Item = String> {
    source.lines().filter_map(|line| {
        let rest = line.strip_prefix("pub struct ").or_else(|| line.strip_prefix("pub union "))?;
        rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().map(str::to_owned)
    })
}
