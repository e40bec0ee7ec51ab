//! Options that `run` and `serve` share, each with its line of help.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};

use anyhow::Context;
use lexopt::{Parser, ValueExt};
use pvrdma_capture::file::Target;
use pvrdma_device::guest::Roce;
use pvrdma_device::transport::fault::Faults;

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

/// The value of `--pcap`.
pub fn capture(parser: &mut Parser) -> anyhow::Result<Target> {
    let value = parser.value()?;
    let target = Target::parse(&value).filter(|target| !target.path.as_os_str().is_empty());
    let least = pvrdma_capture::file::SNAP_MIN;
    target.ok_or_else(|| Usage(format!("--pcap is FILE or FILE,snap=N with N of {least} or more")).into())
}

/// The file of `--pcap`, made with its header if it is not there. As for `trace_file`.
pub fn capture_file(target: &Target) -> anyhow::Result<PathBuf> {
    let context = || format!("capture {}", target.path.display());
    target.prepare().with_context(context)?;
    target.path.canonicalize().with_context(context)
}

/// The file of `--trace`, made if it is not there. It must be possible to write to it now; the path is made absolute,
/// since a program writes to it from wherever it goes.
pub fn trace_file(path: &Path) -> anyhow::Result<PathBuf> {
    let context = || format!("trace file {}", path.display());
    OpenOptions::new().append(true).create(true).open(path).with_context(context)?;
    path.canonicalize().with_context(context)
}
