//! The guest's initramfs: busybox, the kernel modules in load order, and `tests/qemu/init.sh`.
//!
//! Called by `mod.rs` before each boot; it takes a moment, so a changed script is never missed.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::cpio::Archive;
use super::kernel::ON_DEMAND;

/// Programs of busybox that `init.sh` uses.
const APPLETS: [&str; 12] =
    ["sh", "mount", "mkdir", "insmod", "cat", "chroot", "poweroff", "echo", "ip", "sleep", "sync", "umount"];

/// Writes the initramfs to `target`, from `kernel` (see `kernel.rs`) and the script.
pub fn write_initramfs(kernel: &Path, init: &Path, target: &Path) -> Result<()> {
    let mut archive = Archive::new(Vec::new());
    for folder in ["bin", "modules", "proc", "sys", "dev", "host", "cover", "newroot"] {
        archive.folder(folder)?;
    }
    archive.file("bin/busybox", &fs::read(kernel.join("busybox"))?)?;
    for applet in APPLETS {
        archive.link(&format!("bin/{applet}"), "busybox")?;
    }
    let init_script = fs::read(init).with_context(|| format!("cannot read {}", init.display()))?;
    archive.file("init", &init_script)?;
    let mut modules = BTreeSet::from(["vmw_pvrdma".to_owned()]);
    for list in ON_DEMAND.iter().map(|(group, _)| *group).chain(["order"]) {
        let text = fs::read_to_string(kernel.join(list))?;
        archive.file(&format!("modules/{list}"), text.as_bytes())?;
        modules.extend(text.lines().map(str::to_owned));
    }
    for module in modules {
        let name = format!("modules/{module}.ko");
        archive.file(&name, &fs::read(kernel.join(&name))?)?;
    }
    fs::write(target, archive.finish()?)?;
    Ok(())
}
