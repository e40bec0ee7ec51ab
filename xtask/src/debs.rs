//! Debian forky's libibverbs with its tools, its C provider and its libc, unpacked from packages without root.
//!
//! The test `tests/tests/forky.rs` and the matrix run them by their own dynamic loader, to show that one provider file
//! serves two private ABIs of libibverbs. Cached: once unpacked, nothing is fetched again.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::vm::apt::{Apt, Mirror, Suite};
use crate::{no_arguments, shell};

/// With all they depend on, libibverbs and libc among it.
const PACKAGES: &[&str] = &["ibverbs-utils", "ibverbs-providers", "perftest"];

/// Prints the folder, which looks like the root of a Debian system.
pub fn main(arguments: &[String]) -> Result<()> {
    no_arguments(arguments)?;
    println!("{}", forky()?.display());
    Ok(())
}

/// The folder, filled first if it is not there, or if it was filled from a shorter list.
pub fn forky() -> Result<PathBuf> {
    let folder = shell::workspace().join("target/debs");
    let root = folder.join("forky");
    let list = folder.join("forky.packages");
    let wanted = PACKAGES.join("\n");
    if !root.exists() || fs::read_to_string(&list).ok().as_ref() != Some(&wanted) {
        fetch(&folder, &root).context("cannot fetch Debian forky's libibverbs")?;
        fs::write(&list, wanted)?;
    }
    Ok(root)
}

fn fetch(folder: &Path, root: &Path) -> Result<()> {
    let partial = folder.join("forky.partial");
    if partial.exists() {
        fs::remove_dir_all(&partial)?;
    }
    let apt = Apt::new(folder.join("apt"), &Mirror::of_this_machine()?, Suite::Forky)?;
    apt.unpack_with_depends(PACKAGES, &partial)?;
    if root.exists() {
        fs::remove_dir_all(root)?;
    }
    fs::rename(&partial, root)?;
    fs::remove_dir_all(folder.join("apt"))?;
    Ok(())
}
