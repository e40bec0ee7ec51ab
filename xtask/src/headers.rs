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

/// One header.
struct Header {
    /// What is made.
    name: &'static str,
    /// cbindgen's settings.
    config: &'static str,
    /// What it is made of. The rest of `ffi/` has C headers already.
    sources: &'static [&'static str],
}

const HEADERS: &[Header] = &[
    Header {
        name: "include/pvrdma.h",
        config: "ffi/pvrdma.toml",
        sources: &["ffi/src/uapi/vmw_pvrdma.rs", "ffi/src/dev_api.rs"],
    },
    Header {
        name: "include/infiniband/pvrdmadv.h",
        config: "ffi/pvrdmadv.toml",
        sources: &["ffi/src/pvrdmadv.rs", "provider/src/direct.rs"],
    },
];

fn write() -> Result<()> {
    HEADERS.iter().try_for_each(|header| {
        fs::write(shell::workspace().join(header.name), header.generate()?)
            .with_context(|| format!("cannot write {}", header.name))
    })
}

/// Fails with the first line that differs.
pub fn check() -> Result<()> {
    HEADERS.iter().try_for_each(Header::check)
}

impl Header {
    fn check(&self) -> Result<()> {
        let (name, fresh) = (self.name, self.generate()?);
        let path = shell::workspace().join(name);
        let kept = fs::read_to_string(&path).with_context(|| format!("cannot read {name}"))?;
        if fresh == kept {
            return Ok(());
        }
        let differs = fresh.lines().zip(kept.lines()).position(|(fresh, kept)| fresh != kept);
        let line = differs.unwrap_or_else(|| fresh.lines().count().min(kept.lines().count())) + 1;
        bail!("{name} is not what its Rust sources say, from line {line} on: run `cargo xtask headers`")
    }

    fn generate(&self) -> Result<String> {
        let mut config = cbindgen::Config::from_file(shell::workspace().join(self.config))
            .map_err(|error| anyhow::anyhow!("{}: {error}", self.config))?;
        let mut builder = cbindgen::Builder::new();
        for source in self.sources {
            let path = shell::workspace().join(source);
            let text = fs::read_to_string(&path).with_context(|| format!("cannot read {source}"))?;
            config.export.include.extend(types(&text));
            builder = builder.with_src(path);
        }
        let bindings = builder.with_config(config).generate().context("cbindgen cannot read the sources")?;
        let mut text = Vec::new();
        bindings.write(&mut text);
        let text = String::from_utf8(text)?;
        // Rust's are unsigned, and in C a bit 31 that is signed spoils 64-bit words. What Rust calls safety are terms
        // like any others in C. And C of 1989 has one kind of comments.
        let text = text.replace("(1 << ", "(1u << ").replace("\n\n # Safety\n", "\n");
        Ok(text.replace("// __cplusplus", "/* __cplusplus */").replace("// extern \"C\"", "/* extern \"C\" */"))
    }
}

/// Names of the public structs and unions of a source file. cbindgen leaves out what no function uses, and there are
/// no functions here.
fn types(source: &str) -> impl Iterator<Item = String> {
    source.lines().filter_map(|line| {
        let rest = line.strip_prefix("pub struct ").or_else(|| line.strip_prefix("pub union "))?;
        rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().map(str::to_owned)
    })
}
