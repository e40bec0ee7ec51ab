//! Debian packages without root: a private apt configuration per suite, below `target/vm`.
//!
//! Called by `kernel.rs` and `qemu.rs`. The mirror is the one the machine's own apt sources name, so a machine
//! behind a proxy or a local mirror needs no setting here. Nothing of the machine's apt state is written.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// Debian's archive keys, as every Debian machine has them.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Where this machine gets Debian from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// The main archive.
    main: String,
    /// The security archive.
    security: String,
}

impl Mirror {
    /// Asks apt which archives the machine's sources name.
    pub fn of_this_machine() -> Result<Mirror> {
        // An empty list folder makes apt print every index it would fetch, whether or not it has it already.
        let empty = tempdir_for("pvrdma-apt")?;
        let output = Command::new("apt-get")
            .arg("-o")
            .arg(format!("Dir::State::Lists={}", empty.display()))
            .args(["--print-uris", "update"])
            .output()
            .context("cannot run apt-get: a Debian machine is needed to fetch the guest's packages")?;
        // The folder is empty; that it stays behind in a failure hurts nobody.
        let _ = fs::remove_dir_all(&empty);
        ensure!(
            output.status.success(),
            "apt-get --print-uris update failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Mirror::parse(&String::from_utf8_lossy(&output.stdout))
    }

    /// The main archive, for tools that ask for it by themselves.
    pub fn main(&self) -> &str {
        &self.main
    }

    fn parse(uris: &str) -> Result<Mirror> {
        let releases: Vec<(&str, &str)> = uris
            .lines()
            .filter_map(|line| line.strip_prefix('\'')?.split('\'').next())
            .filter_map(|uri| uri.strip_suffix("/InRelease")?.split_once("/dists/"))
            .collect();
        let find = |wanted: &dyn Fn(&str) -> bool| {
            releases.iter().find(|(_, suite)| wanted(suite)).map(|(uri, _)| uri.to_string())
        };
        let security = find(&|suite| suite.ends_with("-security"));
        let main = find(&|suite| matches!(suite, "bookworm" | "trixie" | "forky" | "stable" | "testing" | "sid"));
        match (main, security) {
            (Some(main), Some(security)) => Ok(Mirror { main, security }),
            (Some(_), None) => bail!(
                "the machine's apt sources name no Debian security archive (bookworm-security), \
                 which has the guest's kernel"
            ),
            _ => bail!("the machine's apt sources name no Debian archive (bookworm)"),
        }
    }

    fn sources(&self, suite: Suite) -> String {
        let line = |uri: &str, suite: &str| format!("deb [signed-by={KEYRING} target=Packages] {uri} {suite} main\n");
        match suite {
            Suite::Bookworm => line(&self.main, "bookworm") + &line(&self.security, "bookworm-security"),
            Suite::Trixie => line(&self.main, "trixie"),
            Suite::Forky => line(&self.main, "forky"),
            Suite::Bullseye => line(&self.main, "bullseye"),
        }
    }
}

/// The releases packages are taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suite {
    /// Debian 12: the guest's kernel and build tools that match a Debian 12 compiler.
    Bookworm,
    /// Debian 13: its librdmacm.
    Trixie,
    /// The next Debian: its QEMU has vfio-user.
    Forky,
    /// Debian 11: an old libibverbs.
    Bullseye,
}

/// One suite's private apt.
pub struct Apt {
    dir: PathBuf,
}

impl Apt {
    /// Makes the configuration in `dir` and fetches the package lists.
    pub fn new(dir: PathBuf, mirror: &Mirror, suite: Suite) -> Result<Apt> {
        ensure!(Path::new(KEYRING).exists(), "{KEYRING} is missing: install the package debian-archive-keyring");
        for sub in ["state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(dir.join(sub))?;
        }
        // No package counts as installed, so dependencies come out as a complete set.
        fs::write(dir.join("state/status"), "")?;
        fs::write(dir.join("sources.list"), mirror.sources(suite))?;
        let root = dir.display();
        fs::write(
            dir.join("apt.conf"),
            format!(
                "Dir::Etc::SourceList \"{root}/sources.list\";\n\
                 Dir::Etc::SourceParts \"/dev/null\";\n\
                 Dir::Etc::Preferences \"/dev/null\";\n\
                 Dir::Etc::PreferencesParts \"/dev/null\";\n\
                 Dir::State \"{root}/state\";\n\
                 Dir::State::status \"{root}/state/status\";\n\
                 Dir::Cache \"{root}/cache\";\n\
                 Acquire::Check-Valid-Until \"false\";\n\
                 Acquire::Languages \"none\";\n\
                 APT::Sandbox::User \"\";\n\
                 APT::Install-Recommends \"false\";\n\
                 Debug::NoLocking \"true\";\n"
            ),
        )?;
        let apt = Apt { dir };
        apt.run("apt-get", &["update", "-q"])?;
        Ok(apt)
    }

    /// Runs an apt tool under this configuration and gives its output.
    fn run(&self, tool: &str, args: &[&str]) -> Result<String> {
        let output = Command::new(tool)
            .args(args)
            .env("APT_CONFIG", self.dir.join("apt.conf"))
            .env("LC_ALL", "C.UTF-8")
            .output()
            .with_context(|| format!("cannot run {tool}"))?;
        ensure!(
            output.status.success(),
            "{tool} {} failed:\n{}{}",
            args.join(" "),
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Names of all packages that begin with `prefix`.
    pub fn names(&self, prefix: &str) -> Result<Vec<String>> {
        Ok(self.run("apt-cache", &["pkgnames", prefix])?.lines().map(str::to_owned).collect())
    }

    /// One field of a package's newest version.
    pub fn field(&self, package: &str, field: &str) -> Result<String> {
        let text = self.run("apt-cache", &["show", "--no-all-versions", package])?;
        text.lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(": "))
            .map(str::to_owned)
            .with_context(|| format!("package {package} has no field {field}"))
    }

    /// Downloads exactly `packages` (`name` or `name=version`) and unpacks them into `root`.
    pub fn unpack(&self, packages: &[String], root: &Path) -> Result<()> {
        let place = self.dir.join("debs");
        fs::create_dir_all(&place)?;
        let status = Command::new("apt-get")
            .args(["download", "-q"])
            .args(packages)
            .env("APT_CONFIG", self.dir.join("apt.conf"))
            .current_dir(&place)
            .output()?;
        ensure!(
            status.status.success(),
            "apt-get download {} failed:\n{}",
            packages.join(" "),
            String::from_utf8_lossy(&status.stderr)
        );
        unpack_all(&place, root)
    }

    /// Downloads `packages` with everything they depend on and unpacks all of it into `root`.
    pub fn unpack_with_depends(&self, packages: &[&str], root: &Path) -> Result<()> {
        self.run("apt-get", &[&["install", "-q", "-y", "--download-only"], packages].concat())?;
        unpack_all(&self.dir.join("cache/archives"), root)
    }
}

/// Unpacks every package file of a folder into `root` and removes it, to keep the cache small.
fn unpack_all(folder: &Path, root: &Path) -> Result<()> {
    fs::create_dir_all(root)?;
    for entry in fs::read_dir(folder)? {
        let deb = entry?.path();
        if deb.extension().is_none_or(|ext| ext != "deb") {
            continue;
        }
        super::run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(root))?;
        fs::remove_file(&deb)?;
    }
    Ok(())
}

fn tempdir_for(name: &str) -> Result<PathBuf> {
    let dir = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
    fs::create_dir_all(dir.join("partial"))?;
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirror_is_read_from_the_index_list() {
        let uris = "'http://m.example/debian/dists/bookworm/InRelease' m_InRelease 0 \n\
                    'http://m.example/sec/dists/bookworm-security/InRelease' s_InRelease 0 \n\
                    'http://m.example/debian/dists/bookworm/main/binary-amd64/Packages.xz' p 0 \n";
        let mirror = Mirror::parse(uris).expect("both archives are named");
        assert_eq!(mirror.main, "http://m.example/debian");
        assert_eq!(mirror.security, "http://m.example/sec");
        assert!(mirror.sources(Suite::Forky).contains("http://m.example/debian forky main"));
    }

    #[test]
    fn missing_security_archive_is_named() {
        let uris = "'http://m.example/debian/dists/bookworm/InRelease' m_InRelease 0 \n";
        let error = Mirror::parse(uris).expect_err("no security archive");
        assert!(error.to_string().contains("security"));
    }

    #[test]
    fn other_distributions_are_refused() {
        let uris = "'http://m.example/ubuntu/dists/noble/InRelease' m_InRelease 0 \n";
        assert!(Mirror::parse(uris).is_err());
    }
}
