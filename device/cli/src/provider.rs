//! Which libibverbs provider drives the device: ours, the distribution's, or any file.
//!
//! libibverbs appends a suffix with its private ABI number to what `IBV_DRIVERS` names, so a file is offered under
//! every suffix that a release has used.

use anyhow::{Context, bail};
use std::ffi::OsString;
use std::fs;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// `IBVERBS_PABI_VERSION` of the releases since the private ABI became stable.
pub const PRIVATE_ABIS: [u32; 7] = [25, 33, 34, 57, 59, 64, 65];
/// File name of a provider, before the suffix.
const STEM: &str = "libvmw_pvrdma";

/// The `--provider` option.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Provider {
    /// The one built with this program.
    #[default]
    Ours,
    /// The one libibverbs finds by itself.
    System,
    /// A file.
    File(PathBuf),
}

impl From<OsString> for Provider {
    fn from(value: OsString) -> Provider {
        match value.to_str() {
            Some("ours") => Provider::Ours,
            Some("system") => Provider::System,
            _ => Provider::File(value.into()),
        }
    }
}

impl Provider {
    /// Makes the provider available below `links`. Returns the value of `IBV_DRIVERS`, `None` for the system's own.
    pub fn install(&self, links: &Path) -> anyhow::Result<Option<PathBuf>> {
        match self {
            Provider::Ours => offer(&installed_library("libvmw_pvrdma.so")?, links).map(Some),
            Provider::System => system().map(|()| None),
            Provider::File(path) => offer(path, links).map(Some),
        }
    }
}

/// A library that was built or installed together with this program: beside it, or in `../lib/pvrdma`.
pub fn installed_library(name: &str) -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe().context("cannot find my own path")?;
    let dir = program.parent().context("my own path has no directory")?;
    let places = [dir.join(name), dir.join("../lib/pvrdma").join(name)];
    match places.iter().find(|place| place.is_file()) {
        Some(found) => found.canonicalize().with_context(|| format!("cannot use {}", found.display())),
        None => bail!("{name} is missing: neither {} nor {} exists", places[0].display(), places[1].display()),
    }
}

/// Links `file` below `links` under each suffix; returns the name that stands for all.
fn offer(file: &Path, links: &Path) -> anyhow::Result<PathBuf> {
    let file = file.canonicalize().with_context(|| format!("provider {}", file.display()))?;
    check_is_library(&file)?;
    // One folder for each file, so that programs of a guest can use different ones.
    let dir = links.join(format!("{:016x}", name_of(file.as_os_str().as_bytes())));
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    for abi in PRIVATE_ABIS {
        match symlink(&file, dir.join(format!("{STEM}-rdmav{abi}.so"))) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error.into()),
            _ => {}
        }
    }
    Ok(dir.join(STEM))
}

fn check_is_library(file: &Path) -> anyhow::Result<()> {
    let mut head = [0; 20];
    let read = fs::File::open(file).and_then(|mut file| file.read_exact(&mut head));
    if let Err(error) = &read
        && error.kind() != io::ErrorKind::UnexpectedEof
    {
        bail!("provider {}: {error}", file.display());
    }
    let machine = u16::from_le_bytes([head[18], head[19]]);
    if read.is_err() || !head.starts_with(b"\x7fELF\x02\x01") || machine != libc::EM_X86_64 {
        bail!("provider {} is not a shared library for x86-64", file.display());
    }
    Ok(())
}

/// FNV-1a: enough to tell paths apart, and the same in every process.
fn name_of(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Whether the distribution has a provider of its own.
fn system() -> anyhow::Result<()> {
    let dirs = ["/usr/lib/x86_64-linux-gnu/libibverbs", "/usr/lib64/libibverbs", "/usr/lib/libibverbs"];
    let found = dirs.iter().filter_map(|dir| fs::read_dir(dir).ok()).flatten().flatten().any(|entry| {
        let name = entry.file_name();
        name.to_str().is_some_and(|name| name.starts_with("libvmw_pvrdma-rdmav") && name.ends_with(".so"))
    });
    if !found {
        bail!(
            "the system has no vmw_pvrdma provider (Debian: package ibverbs-providers); looked in {}",
            dirs.join(", ")
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_offered_under_every_suffix() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("libother.so");
        let mut elf = b"\x7fELF\x02\x01".to_vec();
        elf.resize(64, 0);
        elf[18] = libc::EM_X86_64 as u8;
        fs::write(&file, elf).unwrap();
        let links = dir.path().join("links");
        let provider = Provider::from(file.clone().into_os_string());
        let name = provider.install(&links).unwrap().unwrap();
        assert_eq!(provider.install(&links).unwrap().unwrap(), name);
        for abi in [25, 34, 65] {
            let link = PathBuf::from(format!("{}-rdmav{abi}.so", name.display()));
            assert_eq!(link.canonicalize().unwrap(), file.canonicalize().unwrap());
        }
    }

    #[test]
    fn what_is_no_library_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let text = dir.path().join("text.so");
        fs::write(&text, b"hello").unwrap();
        let error = Provider::File(text).install(dir.path()).unwrap_err();
        assert!(format!("{error:#}").contains("not a shared library"), "{error:#}");
        let error = Provider::File(dir.path().join("none.so")).install(dir.path()).unwrap_err();
        assert!(format!("{error:#}").contains("none.so"), "{error:#}");
    }

    #[test]
    fn the_two_words_are_not_files() {
        assert_eq!(Provider::from(OsString::from("ours")), Provider::Ours);
        assert_eq!(Provider::from(OsString::from("system")), Provider::System);
        assert_eq!(Provider::from(OsString::from("./ours")), Provider::File("./ours".into()));
    }
}
