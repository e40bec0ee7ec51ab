//! libibverbs of other Debian releases, unpacked from packages without root.
//!
//! Forky's comes with its tools, its C provider and its libc. The test `tests/tests/forky.rs` and the matrix run them
//! by their own dynamic loader, to show that one provider file serves two private ABIs of libibverbs. Of bullseye it is
//! the libraries alone, which the machine's own libc runs, for `tests/tests/bullseye.rs`; trixie's are with their libc,
//! for `tests/tests/forky.rs`. Cached: once unpacked, nothing is fetched again.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::shell;
use crate::vm::apt::{Apt, Mirror, Suite};

/// What is taken of a release.
struct Taken {
    /// Its name, and that of its folder.
    name: &'static str,
    suite: Suite,
    packages: &'static [&'static str],
    /// All they depend on too, libibverbs and libc among it?
    with_depends: bool,
}

const FORKY: Taken = Taken {
    name: "forky",
    suite: Suite::Forky,
    packages: &["ibverbs-utils", "ibverbs-providers", "perftest"],
    with_depends: true,
};

/// The test suite that comes with forky's rdma-core, and forky's Python, which it is for.
const PYVERBS: Taken =
    Taken { name: "pyverbs", suite: Suite::Forky, packages: &["python3-pyverbs"], with_depends: true };

const TRIXIE: Taken =
    Taken { name: "trixie", suite: Suite::Trixie, packages: &["libibverbs1", "librdmacm1"], with_depends: true };

const BULLSEYE: Taken =
    Taken { name: "bullseye", suite: Suite::Bullseye, packages: &["libibverbs1", "librdmacm1"], with_depends: false };

/// Prints the folder of a release, forky unless another is named. It looks like the root of a Debian system.
pub fn main(arguments: &[String]) -> Result<()> {
    let folder = match arguments {
        [] => forky()?,
        [name] if name == FORKY.name => forky()?,
        [name] if name == BULLSEYE.name => bullseye()?,
        [name] if name == TRIXIE.name => trixie()?,
        [name] if name == PYVERBS.name => pyverbs()?,
        _ => bail!("usage: cargo xtask debs [forky|pyverbs|trixie|bullseye]"),
    };
    println!("{}", folder.display());
    Ok(())
}

/// The folder of forky, see [`Taken::folder`].
pub fn forky() -> Result<PathBuf> {
    FORKY.folder()
}

/// The folder of forky's Python and rdma-core's test suite.
pub fn pyverbs() -> Result<PathBuf> {
    PYVERBS.folder()
}

/// The folder of trixie's libraries.
pub fn trixie() -> Result<PathBuf> {
    TRIXIE.folder()
}

/// The folder of bullseye.
pub fn bullseye() -> Result<PathBuf> {
    BULLSEYE.folder()
}

impl Taken {
    /// The folder, filled first if it is not there, or if it was filled from another list.
    fn folder(&self) -> Result<PathBuf> {
        let folder = shell::workspace().join("target/debs");
        let root = folder.join(self.name);
        let list = folder.join(format!("{}.packages", self.name));
        let wanted = self.packages.join("\n");
        if !root.exists() || fs::read_to_string(&list).ok().as_ref() != Some(&wanted) {
            self.fetch(&folder, &root).with_context(|| format!("cannot fetch Debian {}'s rdma-core", self.name))?;
            fs::write(&list, wanted)?;
        }
        Ok(root)
    }

    fn fetch(&self, folder: &Path, root: &Path) -> Result<()> {
        let partial = folder.join(format!("{}.partial", self.name));
        if partial.exists() {
            fs::remove_dir_all(&partial)?;
        }
        let place = folder.join(format!("apt-{}", self.name));
        let apt = Apt::new(place.clone(), &Mirror::of_this_machine()?, self.suite)?;
        if self.with_depends {
            apt.unpack_with_depends(self.packages, &partial)?;
        } else {
            let packages: Vec<String> = self.packages.iter().map(|&name| name.to_owned()).collect();
            apt.unpack(&packages, &partial)?;
        }
        if root.exists() {
            fs::remove_dir_all(root)?;
        }
        fs::rename(&partial, root)?;
        fs::remove_dir_all(place)?;
        Ok(())
    }
}
