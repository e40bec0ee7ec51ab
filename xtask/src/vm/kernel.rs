//! The guest's kernel: Debian's 6.12 image, and the unmodified `vmw_pvrdma` driver built against it.
//!
//! Called by `mod.rs` once; afterwards `target/vm/kernel` holds `vmlinuz`, the modules the guest loads, their order
//! (`order` at boot, a list for each group of [`ON_DEMAND`]), and `busybox`. Debian builds the driver in none of its
//! kernels, so it is compiled out of tree from Debian's own source package. The build tools (make, xz, libelf) come as
//! packages too and run from a folder.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::apt::{Apt, Mirror, Suite};
use super::run;

/// Modules the guest needs; what they depend on is found and loaded first.
const MODULES: [&str; 6] = ["vmxnet3", "rdma_ucm", "virtio_pci", "9pnet_virtio", "9p", "overlay"];

/// Modules that a step loads if it needs them, by the name of the group, with what they depend on: software RoCE and
/// the checksum that it asks for by name; disks over RDMA, both ends; an Ethernet that loses, doubles and delays.
pub const ON_DEMAND: [(&str, &[&str]); 3] = [
    ("software_roce", &["crc32_generic", "rdma_rxe"]),
    ("nvme_of", &["nvmet_rdma", "nvme_rdma"]),
    ("bad_wire", &["sch_netem"]),
];

/// The driver's folder in the kernel source.
const DRIVER: &str = "drivers/infiniband/hw/vmw_pvrdma";

/// Fetches, builds and collects everything into `dir`, which must not exist yet.
pub fn build(mirror: &Mirror, work: &Path, dir: &Path) -> Result<()> {
    let apt = Apt::new(work.join("apt-bookworm"), mirror, Suite::Bookworm)?;
    let release = newest(&apt)?;
    let flavour = format!("{}-amd64", release.name);
    eprintln!("vm: kernel {flavour}: downloading about 280 MB");

    let root = work.join("kernel-root");
    let _ = fs::remove_dir_all(&root);
    let source = format!("linux-source-6.12={}", release.version);
    let mut packages: Vec<String> = ["busybox-static", "make", "xz-utils", "libelf1"].map(str::to_owned).into();
    packages.extend([
        format!("linux-image-{flavour}"),
        format!("linux-headers-{flavour}"),
        format!("linux-headers-{}-common", release.name),
        release.kbuild,
        source,
    ]);
    apt.unpack(&packages, &root)?;

    let driver = build_driver(&root, &release.name)?;

    let part = dir.with_extension("part");
    let _ = fs::remove_dir_all(&part);
    fs::create_dir_all(part.join("modules"))?;
    fs::copy(root.join("boot").join(format!("vmlinuz-{flavour}")), part.join("vmlinuz"))?;
    fs::copy(root.join("bin/busybox"), part.join("busybox"))?;
    collect_modules(&root, &flavour, &driver, &part)?;
    fs::write(part.join("version"), format!("{flavour} {}\n", release.version))?;
    fs::rename(&part, dir)?;
    // The unpacked packages are 1 GB that nothing needs again.
    fs::remove_dir_all(&root)?;
    Ok(())
}

/// A kernel whose image, headers and source all exist.
struct Release {
    /// As packages spell it, such as `6.12.117+deb12`.
    name: String,
    /// The package version of the image.
    version: String,
    /// Package of the build helpers.
    kbuild: String,
}

fn newest(apt: &Apt) -> Result<Release> {
    let prefix = "linux-image-6.12.";
    let mut found: Vec<(u32, String)> = apt
        .names(prefix)?
        .iter()
        .filter_map(|package| {
            let name = package.strip_prefix("linux-image-")?.strip_suffix("-amd64")?;
            Some((patch_level(name)?, name.to_owned()))
        })
        .collect();
    found.sort();
    let (_, name) = found.pop().context("the Debian security archive of bookworm has no kernel 6.12")?;
    let version = apt.field(&format!("linux-image-{name}-amd64"), "Version")?;
    let depends = apt.field(&format!("linux-headers-{name}-amd64"), "Depends")?;
    let kbuild = depends
        .split([',', '|', ' '])
        .find(|word| word.starts_with("linux-kbuild-"))
        .context("the kernel's headers name no linux-kbuild package")?
        .to_owned();
    Ok(Release { name, version, kbuild })
}

/// `6.12.117+deb12` gives 117; other flavours (`-rt`, `-cloud`) give nothing.
fn patch_level(name: &str) -> Option<u32> {
    name.strip_prefix("6.12.")?.strip_suffix("+deb12")?.parse().ok()
}

/// Compiles the driver as Debian's source has it and gives the path of the module.
fn build_driver(root: &Path, release: &str) -> Result<PathBuf> {
    let src = root.join("usr/src");
    let headers = src.join(format!("linux-headers-{release}-amd64"));
    // The packaged Makefile names its installed place.
    fs::write(
        headers.join("Makefile"),
        format!("include {}/linux-headers-{release}-common/Makefile\n", src.display()),
    )?;
    let libraries = format!("{0}/usr/lib/x86_64-linux-gnu:{0}/lib/x86_64-linux-gnu", root.display());
    let tools = format!("{}/usr/bin:{}", root.display(), std::env::var("PATH").unwrap_or_default());

    run(Command::new("tar")
        .arg("-xf")
        .arg(src.join("linux-source-6.12.tar.xz"))
        .arg("-C")
        .arg(&src)
        .arg("--use-compress-program=xz -T0")
        .arg(format!("linux-source-6.12/{DRIVER}"))
        .env("PATH", &tools))
    .context("cannot unpack the driver's source")?;
    let driver = src.join("linux-source-6.12").join(DRIVER);
    run(Command::new("make")
        .arg("-C")
        .arg(&headers)
        .arg(format!("M={}", driver.display()))
        .arg("CONFIG_INFINIBAND_VMWARE_PVRDMA=m")
        // Type information would need `pahole` and the guest has no use for it.
        .arg("CONFIG_DEBUG_INFO_BTF_MODULES=")
        .arg(format!("-j{}", std::thread::available_parallelism().map_or(1, usize::from)))
        .arg("modules")
        .env("PATH", &tools)
        // objtool wants libelf, which a small machine lacks.
        .env("LD_LIBRARY_PATH", &libraries))
    .context("cannot build vmw_pvrdma (it needs gcc 12 as `gcc-12` and binutils: apt-get install gcc)")?;
    let module = driver.join("vmw_pvrdma.ko");
    ensure!(module.exists(), "the kernel build ended well but made no vmw_pvrdma.ko");
    Ok(module)
}

/// Copies the modules the guest loads into `part/modules` and writes their order to `part/order`.
fn collect_modules(root: &Path, flavour: &str, driver: &Path, part: &Path) -> Result<()> {
    let tree = root.join("lib/modules").join(flavour);
    let tree = if tree.exists() { tree } else { root.join("usr/lib/modules").join(flavour) };
    let mut paths = HashMap::new();
    find_modules(&tree, &mut paths)?;
    let builtin = fs::read_to_string(tree.join("modules.builtin"))?;
    let builtin: Vec<String> = builtin.lines().map(|line| module_name(Path::new(line))).collect();

    let mut loader = Loader { paths, builtin, part, xz_path: root.join("usr/bin/xz"), order: Vec::new() };
    for module in MODULES {
        loader.add(module)?;
    }
    let bytes = fs::read(driver)?;
    for needed in depends(&bytes) {
        loader.add(&needed)?;
    }
    let target = part.join("modules/vmw_pvrdma.ko");
    fs::copy(driver, &target)?;
    strip(&target)?;
    fs::write(part.join("order"), loader.order.join("\n") + "\n")?;
    let at_boot = loader.order.len();
    for (group, modules) in ON_DEMAND {
        // Each has all that it needs, whether another one was loaded or not.
        loader.order.truncate(at_boot);
        for module in modules {
            loader.add(module)?;
        }
        fs::write(part.join(group), loader.order[at_boot..].join("\n") + "\n")?;
    }
    Ok(())
}

struct Loader<'a> {
    paths: HashMap<String, PathBuf>,
    builtin: Vec<String>,
    part: &'a Path,
    xz_path: PathBuf,
    order: Vec<String>,
}

impl Loader<'_> {
    /// Adds a module after everything it depends on.
    fn add(&mut self, name: &str) -> Result<()> {
        let name = name.replace('-', "_");
        if self.order.contains(&name) || self.builtin.contains(&name) {
            return Ok(());
        }
        let Some(packed) = self.paths.get(&name).cloned() else {
            bail!("the kernel package has no module {name}");
        };
        let bytes = if packed.extension().is_some_and(|ext| ext == "xz") {
            let output = Command::new(&self.xz_path).arg("-dc").arg(&packed).output()?;
            ensure!(output.status.success(), "cannot unpack {}", packed.display());
            output.stdout
        } else {
            fs::read(&packed)?
        };
        for needed in depends(&bytes) {
            self.add(&needed)?;
        }
        let target = self.part.join("modules").join(format!("{name}.ko"));
        fs::write(&target, bytes)?;
        strip(&target)?;
        self.order.push(name);
        Ok(())
    }
}

fn strip(module: &Path) -> Result<()> {
    run(Command::new("strip").arg("--strip-debug").arg(module)).context("binutils is needed (apt-get install gcc)")
}

fn find_modules(folder: &Path, paths: &mut HashMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            find_modules(&entry.path(), paths)?;
        } else if entry.file_name().to_string_lossy().contains(".ko") {
            paths.insert(module_name(&entry.path()), entry.path());
        }
    }
    Ok(())
}

/// `a/b/nls-x.ko.xz` gives `nls_x`.
fn module_name(path: &Path) -> String {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    file.split(".ko").next().unwrap_or_default().replace('-', "_")
}

/// The `depends=` line of a module's `.modinfo`, where each entry ends with a zero byte.
fn depends(module: &[u8]) -> Vec<String> {
    let key = b"\0depends=";
    let Some(at) = module.windows(key.len()).position(|window| window == key) else {
        return Vec::new();
    };
    let value = module[at + key.len()..].split(|&byte| byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(value).split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_plain_flavour_counts() {
        assert_eq!(patch_level("6.12.117+deb12"), Some(117));
        assert_eq!(patch_level("6.12.117+deb12-cloud"), None);
        assert_eq!(patch_level("6.1.117+deb12"), None);
    }

    #[test]
    fn module_names_are_normalised() {
        assert_eq!(module_name(Path::new("kernel/a/nls-x.ko.xz")), "nls_x");
        assert_eq!(module_name(Path::new("vmxnet3.ko")), "vmxnet3");
    }

    #[test]
    fn dependencies_are_read_from_modinfo() {
        assert_eq!(depends(b"x\0license=GPL\0depends=ib_core,ib_uverbs\0intree=Y\0"), ["ib_core", "ib_uverbs"]);
        assert!(depends(b"x\0depends=\0").is_empty());
        assert!(depends(b"nothing here").is_empty());
    }
}
