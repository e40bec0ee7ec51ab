//! Options that `run` and `serve` share, each with its line of help.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};

use anyhow::Context;
use lexopt::{Parser, ValueExt};
use pvrdma_device::guest::Roce;
use pvrdma_device::transport::fault::Faults;
use pvrdma_device::transport::path::Paths;

use crate::Usage;

/// The value of `--roce`.
pub fn roce(parser: &mut Parser) -> anyhow::Result<Roce> {
    let value = parser.value()?.string()?;
    value.parse().map_err(|()| Usage(format!("--roce is v1 or v2, not {value:?}")).into())
}

/// The value of `--fault`: the list, and what it means.
pub fn faults(parser: &mut Parser) -> anyhow::Result<(String, Faults)> {
    let list = parser.value()?.string()?;
    let faults = list.parse().map_err(|error: pvrdma_device::transport::fault::BadFaults| Usage(error.to_string()))?;
    Ok((list, faults))
}

/// The file of `--pcap`, made with its header if it is not there. As for `trace_file`.
pub fn capture_file(path: &Path) -> anyhow::Result<PathBuf> {
    let context = || format!("capture {}", path.display());
    pvrdma_capture::file::prepare(path).with_context(context)?;
    path.canonicalize().with_context(context)
}

/// A name of a file: none, and `-` for a stream, which no other program could append to, is none.
pub fn file(parser: &mut Parser, option: &str) -> anyhow::Result<PathBuf> {
    let value = parser.value()?;
    if value.is_empty() || value == "-" {
        return Err(Usage(format!("{option} takes the name of a file, not {value:?}")).into());
    }
    Ok(value.into())
}

/// For who serves for long: a file that may not be longer (RLIMIT_FSIZE) ends a capture or a trace, and nothing else.
pub fn outlive_limits() {
    // SAFETY: no handler is installed; a write is told by its error then.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// The value of `--paths`: the list, and what it means.
pub fn paths(parser: &mut Parser) -> anyhow::Result<(String, Paths)> {
    let list = parser.value()?.string()?;
    let paths = list.parse().map_err(|error: pvrdma_device::transport::path::BadPaths| Usage(error.to_string()))?;
    Ok((list, paths))
}

/// The file of `--trace`, made if it is not there. It must be possible to write to it now; the path is made absolute,
/// since a program writes to it from wherever it goes.
pub fn trace_file(path: &Path) -> anyhow::Result<PathBuf> {
    let context = || format!("trace file {}", path.display());
    OpenOptions::new().append(true).create(true).open(path).with_context(context)?;
    path.canonicalize().with_context(context)
}
