//! Programs of a newer Debian (forky, trixie), run by its own loader with its libibverbs and libc.

use std::path::{Path, PathBuf};

use crate::{Job, Provider, Stand};

/// A copy of what `cargo xtask debs` unpacked, where the stand's user can read it.
pub struct Newer<'a> {
    stand: &'a Stand,
    root: PathBuf,
}

impl<'a> Newer<'a> {
    /// Copies the folder that `cargo xtask debs` prints, unless the stand has a copy.
    pub fn new(stand: &'a Stand, debs: &Path) -> Newer<'a> {
        let root = stand.path(debs.file_name().expect("a folder has a name"));
        if !root.exists() {
            stand.copy_tree(debs);
        }
        Newer { stand, root }
    }

    /// A program of that Debian's, by name, or any program, by path.
    pub fn job(&self, program: impl AsRef<Path>) -> Job<'a> {
        // `sh` stands between because the loader itself is a program without an interpreter.
        self.stand.job("sh").args(["-c", "exec \"$0\" \"$@\""]).args([
            self.root.join("usr/lib64/ld-linux-x86-64.so.2"),
            "--library-path".into(),
            self.root.join("usr/lib/x86_64-linux-gnu"),
            self.root.join("usr/bin").join(program),
        ])
    }

    /// The C provider of rdma-core 65, which is forky's.
    pub fn c_provider(&self) -> Provider {
        Provider::Path(self.root.join("usr/lib/x86_64-linux-gnu/libibverbs/libvmw_pvrdma-rdmav65.so"))
    }
}
