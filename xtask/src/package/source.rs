//! The source tarball: what git has, and every crate it takes, so that it builds without a network.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{Release, tar};
use crate::shell;

/// Writes the tarball and gives its path.
pub fn tarball(release: &Release) -> Result<PathBuf> {
    let folder = release.scratch("source")?;
    let tree = folder.join(release.folder());
    fs::create_dir(&tree)?;
    unpack(&release.commit, &tree)?;
    vendor(&tree)?;
    let file = release.out.join(format!("{}.tar.xz", release.folder()));
    tar(release, &folder, &release.folder(), &file)?;
    Ok(file)
}

/// What is committed, and what was changed in files git knows: of a clean tree, the commit.
pub fn commit() -> Result<String> {
    let stash = shell::output(Command::new("git").args(["stash", "create"]).current_dir(shell::workspace()))?;
    match stash.trim() {
        // A name that stays the same when somebody commits meanwhile.
        "" => {
            let head = shell::output(Command::new("git").args(["rev-parse", "HEAD"]).current_dir(shell::workspace()))?;
            Ok(head.trim().to_owned())
        }
        changed => {
            println!("# the tree has changes that are not committed; they go into the package");
            Ok(changed.to_owned())
        }
    }
}

fn unpack(commit: &str, tree: &Path) -> Result<()> {
    let archive = tree.with_extension("tar");
    shell::output(
        Command::new("git")
            .args(["archive", "--format=tar", "-o"])
            .arg(&archive)
            .arg(commit)
            .current_dir(shell::workspace()),
    )?;
    shell::output(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(tree))?;
    fs::remove_file(archive)?;
    Ok(())
}

/// The crates of `Cargo.lock`, in `vendor/`, and the setting that makes cargo look there.
fn vendor(tree: &Path) -> Result<()> {
    let setting = shell::output(shell::cargo(&["vendor", "--locked", "--versioned-dirs", "vendor"]).current_dir(tree))?;
    ensure!(setting.contains("directory = \"vendor\""), "cargo vendor says {setting}");
    let config = tree.join(".cargo/config.toml");
    let before = fs::read_to_string(&config)?;
    fs::write(config, format!("{before}\n{setting}"))?;
    empty_the_unused(tree)
}

/// Crates for other systems are half of what there is. Cargo wants to see that they exist, and no more.
fn empty_the_unused(tree: &Path) -> Result<()> {
    let used = shell::output(
        shell::cargo(&["tree", "--offline", "--locked", "--workspace", "--all-features", "--prefix=none"])
            .args(["--edges=normal,build,dev", "--target=x86_64-unknown-linux-gnu", "--format={p}"])
            .current_dir(tree),
    )?;
    let used: BTreeSet<String> = used
        .lines()
        .filter_map(|line| line.split_once(" v"))
        .map(|(name, rest)| format!("{name}-{}", rest.split(' ').next().unwrap_or(rest)))
        .collect();
    for entry in fs::read_dir(tree.join("vendor"))? {
        let entry = entry?;
        let name = entry.file_name().into_string().ok().context("a crate has a plain name")?;
        if used.contains(&name) {
            continue;
        }
        let folder = entry.path();
        let manifest = fs::read(folder.join("Cargo.toml"))?;
        let sums = fs::read_to_string(folder.join(".cargo-checksum.json"))?;
        let package = sums.rsplit_once("\"package\":").context("a checksum of the package")?.1;
        fs::remove_dir_all(&folder)?;
        fs::create_dir_all(folder.join("src"))?;
        fs::write(folder.join("Cargo.toml"), without_targets(&String::from_utf8(manifest)?))?;
        fs::write(folder.join("src/lib.rs"), "")?;
        fs::write(folder.join(".cargo-checksum.json"), format!("{{\"files\":{{}},\"package\":{package}"))?;
    }
    Ok(())
}

/// A manifest without its `[lib]`, `[[test]]` and the like, whose files are gone.
fn without_targets(manifest: &str) -> String {
    let mut kept = String::new();
    let mut keep = true;
    for line in manifest.lines() {
        if line.starts_with('[') {
            keep = !["[lib]", "[[test]]", "[[bench]]", "[[bin]]", "[[example]]"].contains(&line.trim());
        }
        if keep && !line.starts_with("build = ") && !line.starts_with("auto") {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_manifest_keeps_what_cargo_resolves_by() {
        let manifest =
            "[package]\nname = \"a\"\nbuild = \"build.rs\"\n[lib]\npath = \"x\"\n[dependencies.b]\nversion = \"1\"\n";
        assert_eq!(super::without_targets(manifest), "[package]\nname = \"a\"\n[dependencies.b]\nversion = \"1\"\n");
    }
}
