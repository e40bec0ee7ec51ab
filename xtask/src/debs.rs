//! Debian forky's libibverbs with its tools and its libc, unpacked from packages without root.
//!
//! The test `forky.rs` runs them by their own dynamic loader, to show that one provider file serves two private
//! ABIs of libibverbs. Cached: once unpacked, nothing is fetched again.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::vm::apt::{Apt, Mirror, Suite};
use crate::{no_arguments, shell};

/// Prints the folder, which looks like the root of a Debian system.
pub fn main(arguments: &[String]) -> Result<()> {
    no_arguments(arguments)?;
    println!("{}", forky()?.display());
    Ok(())
}

/// The folder, filled first if it is not there.
pub fn forky() -> Result<PathBuf> {
    let folder = shell::workspace().join("target/debs");
    let root = folder.join("forky");
    if !root.exists() {
        fetch(&folder, &root).context("cannot fetch Debian forky's libibverbs")?;
    }
    Ok(root)
}

fn fetch(folder: &Path, root: &Path) -> Result<()> {
    let partial = folder.join("forky.partial");
    if partial.exists() {
        fs::remove_dir_all(&partial)?;
    }
    let apt = Apt::new(folder.join("apt"), &Mirror::of_this_machine()?, Suite::Forky)?;
    // ibverbs-utils brings libibverbs1 and libc6; no provider of forky's own is wanted in the room.
    apt.unpack_with_depends("ibverbs-utils", &partial)?;
    fs::rename(&partial, root)?;
    fs::remove_dir_all(folder.join("apt"))?;
    Ok(())
}
