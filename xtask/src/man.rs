//! `cargo xtask man`: manual pages and shell completion as files, below `target/pages/share`.
//!
//! `pvrdma` itself prints them, and `packaging/install.sh` knows the names that man(1) and the shells look for.

use std::process::Command;

use anyhow::Result;

use crate::shell;

/// Writes all of them, and lists them.
pub fn main() -> Result<()> {
    let target = shell::target();
    shell::output(
        Command::new(shell::workspace().join("packaging/install.sh"))
            .args(["--pages-only", "--prefix", "/pages", "--root"])
            .arg(&target)
            .arg("--from")
            .arg(pvrdma_tests::artifacts()),
    )?;
    shell::run(Command::new("find").arg(target.join("pages")).args(["-type", "f"]))
}
