//! Debian packages a task needs: install what is missing, or say how to.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::shell;

/// To run stock RDMA programs.
pub const DEMO: &[&str] = &["gcc", "libc6-dev", "ibverbs-providers", "ibverbs-utils", "perftest"];

/// To run them and our own C programs, with this release and with the next one's packages, which are fetched.
pub const MATRIX: &[&str] =
    &["debian-archive-keyring", "gcc", "ibverbs-providers", "ibverbs-utils", "libc6-dev", "libibverbs-dev", "perftest"];

/// To count instructions as well.
pub const BENCH: &[&str] =
    &["gcc", "libc6-dev", "ibverbs-providers", "ibverbs-utils", "libibverbs-dev", "perftest", "ucx-utils", "valgrind"];

/// To run every test. The JDK runs a JVM beside the doorbell trap; pyverbs brings rdma-core's own tests; UCX,
/// the programs of librdmacm, qperf, fio, libfabric, Open MPI and MPICH are applications; man, the shells, systemd and
/// libvirt's schema read what is made for them; tshark reads captures.
pub const TEST: &[&str] = &[
    "binutils",
    "cmake",
    "default-jdk-headless",
    "fio",
    "fish",
    "gcc",
    "ibverbs-providers",
    "ibverbs-utils",
    "iproute2",
    "libc6-dev",
    "libfabric-bin",
    "libibverbs-dev",
    "libmpich-dev",
    "libopenmpi-dev",
    "librdmacm-dev",
    "libvirt0",
    "libxml2-utils",
    "man-db",
    "mpich",
    "netcat-traditional",
    "openmpi-bin",
    "perftest",
    "pkg-config",
    "python3-pyverbs",
    "qperf",
    "rdmacm-utils",
    "systemd",
    "tshark",
    "ucx-utils",
    "valgrind",
    "zsh",
];

/// To make packages, and to try them in root folders of Debian releases.
pub const PACKAGE: &[&str] =
    &["binutils", "debian-archive-keyring", "gcc", "libc6-dev", "mmdebstrap", "python3-venv", "rpm", "xz-utils"];

/// To build libFuzzer, which the crate libfuzzer-sys carries as C++.
pub const FUZZ: &[&str] = &["g++"];

/// To boot a QEMU guest. The kernel, QEMU and the tools to build the driver are fetched, not installed.
pub const VM: &[&str] = &[
    "binutils",
    "debian-archive-keyring",
    "gcc",
    "ibverbs-providers",
    "ibverbs-utils",
    "iproute2",
    "libc6-dev",
    "libibverbs-dev",
    "perftest",
    "python3-pyverbs",
    "rdmacm-utils",
];

/// Installs the packages of the list that are missing. Without root it names the command and stops.
pub fn install(wanted: &[&str]) -> Result<()> {
    let missing: Vec<&str> = wanted.iter().copied().filter(|package| !is_installed(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if Command::new("apt-get").arg("--version").output().is_err() {
        bail!("these Debian packages are needed, by whatever name this system has them: {}", missing.join(" "));
    }
    let install = format!("apt-get install -y --no-install-recommends {}", missing.join(" "));
    // SAFETY: geteuid has no preconditions.
    if unsafe { libc::geteuid() } != 0 {
        bail!("packages are missing. Install them and run this again:\n\n    sudo {install}\n");
    }
    println!("# {install}");
    // The lists of a fresh machine are empty or old, so a first failure only means: fetch them.
    if apt_get(&install).is_err() {
        apt_get("apt-get update -q")?;
        apt_get(&install)?;
    }
    Ok(())
}

fn apt_get(line: &str) -> Result<()> {
    let mut words = line.split(' ');
    let program = words.next().context("a command has a name")?;
    shell::output(Command::new(program).args(words).env("DEBIAN_FRONTEND", "noninteractive"))?;
    Ok(())
}

fn is_installed(package: &str) -> bool {
    Command::new("dpkg-query")
        .args(["-W", "-f=${db:Status-Status}", package])
        .output()
        .is_ok_and(|output| output.status.success() && output.stdout.starts_with(b"installed"))
}
