//! `cargo xtask man`: manual pages and shell completion as files below `target`, for packages.
//!
//! `pvrdma` itself prints them; here they only get the names that man(1) and the shells look for.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::shell;

/// What `pvrdma` is asked for, and the file its answer becomes, below `target`.
const FILES: [([&str; 2], &str); 6] = [
    (["man", "run"], "man/pvrdma-run.1"),
    (["man", "serve"], "man/pvrdma-serve.1"),
    (["man", "doctor"], "man/pvrdma-doctor.1"),
    (["completion", "bash"], "completions/pvrdma.bash"),
    (["completion", "zsh"], "completions/_pvrdma"),
    (["completion", "fish"], "completions/pvrdma.fish"),
];

/// Writes all of them.
pub fn main() -> Result<()> {
    write(&pvrdma_tests::artifacts().join("pvrdma"), &shell::workspace().join("target"))
}

fn write(pvrdma: &Path, target: &Path) -> Result<()> {
    for (arguments, name) in FILES {
        let output = Command::new(pvrdma).args(arguments).output().context("cannot start pvrdma")?;
        ensure!(output.status.success(), "pvrdma {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
        let file = target.join(name);
        fs::create_dir_all(file.parent().context("it is below target")?)?;
        fs::write(&file, output.stdout).with_context(|| format!("cannot write {}", file.display()))?;
        println!("{}", file.display());
    }
    Ok(())
}
