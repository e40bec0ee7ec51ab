//! The two `.deb`s, by dpkg-deb.
//!
//! `pvrdma-provider` has its links in libibverbs's own folder, under the names of rdma-core's provider, which dpkg
//! diverts (`packaging/debian/preinst`). So the `driver` line of Debian's own `ibverbs-providers` finds ours and only
//! ours, an upgrade of that package changes nothing, and removal brings its file back. `pvrdma` has the command.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::build::Built;
use super::{Release, desk, direct_verbs, put};
use crate::shell;

pub struct Package {
    name: &'static str,
    files: &'static [&'static str],
    depends: &'static str,
    short: &'static str,
    long: &'static str,
    /// Takes the place of rdma-core's provider?
    diverts: bool,
}

pub const PACKAGES: &[Package] = &[
    Package {
        name: "pvrdma-provider",
        files: &["libvmw_pvrdma.so"],
        depends: "libc6 (>= 2.17), libgcc-s1, ibverbs-providers (>= 28)",
        short: "libibverbs provider for VMware PVRDMA, in Rust",
        long: " Takes the place of the provider for this device in ibverbs-providers, which\n \
               steps aside (dpkg-divert) and comes back when this package is removed.\n",
        diverts: true,
    },
    Package {
        name: "pvrdma",
        files: &["libpvrdma_standin.so", "pvrdma"],
        depends: "libc6 (>= 2.17), libgcc-s1, pvrdma-provider (= VERSION)",
        short: "PVRDMA device in software, to run RDMA programs without hardware",
        long: " pvrdma run starts a program as a process of a guest that has a PVRDMA\n \
               device; pvrdma serve is that device for QEMU's vfio-user-pci.\n",
        diverts: false,
    },
];

/// libibverbs's folder, from /.
const PROVIDERS: &str = "usr/lib/x86_64-linux-gnu/libibverbs";

impl Package {
    /// Writes the package under a version, which is the release's except in a trial.
    pub fn write(&self, release: &Release, built: &Built, version: &str, out: &Path) -> Result<()> {
        let tree = release.scratch(&format!("deb-{}", self.name))?;
        for name in self.files {
            let file = built.file(name)?;
            let place = if file.is_program { "usr/bin" } else { "usr/lib/pvrdma" };
            put(&file.stripped, &tree.join(place).join(name), file.mode())?;
        }
        if !self.diverts {
            desk(built, &tree)?;
            // Where Debian's zsh looks.
            let zsh = tree.join("usr/share/zsh");
            fs::rename(zsh.join("site-functions"), zsh.join("vendor-completions"))?;
        }
        let doc = tree.join("usr/share/doc").join(self.name);
        put(&built.source.join("LICENSE-MIT"), &doc.join("copyright"), 0o644)?;
        put(&built.source.join("CHANGELOG.md"), &doc.join("changelog"), 0o644)?;
        let abis = super::abis(&built.source)?;
        let control = tree.join("DEBIAN");
        fs::create_dir(&control)?;
        if self.diverts {
            direct_verbs(built, &tree, "lib/x86_64-linux-gnu")?;
            fs::write(control.join("triggers"), "activate-noawait ldconfig\n")?;
            fs::set_permissions(control.join("triggers"), fs::Permissions::from_mode(0o644))?;
            fs::create_dir_all(tree.join(PROVIDERS))?;
            for abi in &abis {
                let link = tree.join(PROVIDERS).join(format!("libvmw_pvrdma-rdmav{abi}.so"));
                symlink("../../pvrdma/libvmw_pvrdma.so", link)?;
            }
            for script in ["preinst", "postrm"] {
                let text = fs::read_to_string(built.source.join("packaging/debian").join(script))?;
                let place = control.join(script);
                fs::write(&place, text.replace("@ABIS@", &abis.join(" ")))?;
                fs::set_permissions(place, fs::Permissions::from_mode(0o755))?;
            }
        }
        let size = shell::output(Command::new("du").args(["-sk", "--apparent-size"]).arg(tree.join("usr")))?;
        let size = size.split_whitespace().next().context("du prints a size")?;
        fs::write(
            control.join("control"),
            format!(
                "Package: {}\nVersion: {version}\nArchitecture: amd64\n\
                 Maintainer: The pvrdma authors <pvrdma@localhost>\nInstalled-Size: {size}\n\
                 Depends: {}\nSection: net\nPriority: optional\nDescription: {}\n{}",
                self.name,
                self.depends.replace("VERSION", version),
                self.short,
                self.long
            ),
        )?;
        fs::set_permissions(control.join("control"), fs::Permissions::from_mode(0o644))?;
        settle(release, &tree)?;
        let file = out.join(format!("{}_{version}_amd64.deb", self.name));
        shell::output(
            Command::new("dpkg-deb")
                .args(["--root-owner-group", "-Zxz", "--build"])
                .arg(&tree)
                .arg(file)
                .env("SOURCE_DATE_EPOCH", release.date.to_string())
                // One thread: what more of them write depends on their number.
                .env("DPKG_DEB_THREADS_MAX", "1"),
        )?;
        Ok(())
    }
}

/// Folders that everybody may read, and one date for all.
pub fn settle(release: &Release, tree: &Path) -> Result<()> {
    shell::output(Command::new("find").arg(tree).args(["-type", "d", "-exec", "chmod", "755", "{}", "+"]))?;
    let date = format!("@{}", release.date);
    shell::output(Command::new("find").arg(tree).args(["-exec", "touch", "-h", "-d", &date, "{}", "+"]))?;
    Ok(())
}
