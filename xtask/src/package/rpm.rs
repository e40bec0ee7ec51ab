//! The two `.rpm`s, by rpmbuild and `packaging/pvrdma.spec`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::build::Built;
use super::{Release, deb, desk, direct_verbs, put};
use crate::shell;

/// Writes them under a version, which is the release's except in a trial.
pub fn write(release: &Release, built: &Built, version: &str, out: &Path) -> Result<()> {
    let stage = release.scratch("rpm-stage")?;
    for file in &built.files {
        let place = if file.is_program { "usr/bin" } else { "usr/lib/pvrdma" };
        // rpmbuild looks for dependencies in files that can be run.
        put(&file.stripped, &stage.join(place).join(file.name), 0o755)?;
    }
    desk(built, &stage)?;
    direct_verbs(built, &stage, "lib64")?;
    let lib = stage.join("usr/lib/pvrdma");
    for abi in super::abis(&built.source)? {
        symlink("libvmw_pvrdma.so", lib.join(format!("libvmw_pvrdma-rdmav{abi}.so")))?;
    }
    put(&built.source.join("packaging/install.sh"), &lib.join("install.sh"), 0o755)?;
    for name in ["LICENSE-MIT", "LICENSE-APACHE", "CHANGELOG.md"] {
        put(&built.source.join(name), &stage.join("usr/share/doc/pvrdma").join(name), 0o644)?;
    }
    fs::write(lib.join("vmw_pvrdma.driver.before"), "")?;
    deb::settle(release, &stage)?;

    let top = release.scratch("rpm")?;
    let text = |path: &Path| path.display().to_string();
    let definitions = [
        ("_topdir", text(&top)),
        ("_rpmdir", text(&top.join("made"))),
        ("_rpmfilename", "%%{NAME}-%%{VERSION}-%%{RELEASE}.%%{ARCH}.rpm".to_owned()),
        ("release_version", version.to_owned()),
        ("stage", text(&stage)),
        // Nothing of this machine, of today, or of the machine's own settings for packages.
        ("_buildhost", "localhost".to_owned()),
        ("use_source_date_epoch_as_buildtime", "1".to_owned()),
        ("clamp_mtime_to_source_date_epoch", "1".to_owned()),
        ("source_date_epoch_from_changelog", "0".to_owned()),
        ("_binary_payload", "w6.xzdio".to_owned()),
        ("_build_id_links", "none".to_owned()),
        ("__os_install_post", "%{nil}".to_owned()),
        ("debug_package", "%{nil}".to_owned()),
    ];
    let mut rpmbuild = Command::new("rpmbuild");
    rpmbuild.args(["-bb", "--quiet", "--target", "x86_64-linux"]);
    for (name, value) in definitions {
        rpmbuild.arg("--define").arg(format!("{name} {value}"));
    }
    shell::output(
        rpmbuild.arg(built.source.join("packaging/pvrdma.spec")).env("SOURCE_DATE_EPOCH", release.date.to_string()),
    )?;
    for entry in fs::read_dir(top.join("made"))? {
        let made = entry?;
        fs::copy(made.path(), out.join(made.file_name()))?;
    }
    Ok(())
}
