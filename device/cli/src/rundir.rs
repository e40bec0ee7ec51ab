//! The run directory: what the guests of one user share on this host (fabric, guest registry), for as long as
//! one of them runs.
//!
//! It lives in memory-backed storage, private to the user. Everyone who uses it holds a shared lock on its `lock`
//! file; the last to leave removes it. Content whose owners were all killed is recognised by a free lock and
//! wiped by the next newcomer.

use crate::lock;
use anyhow::{Context, bail};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

const LOCK: &str = "lock";

/// Membership in the run directory.
pub struct RunDir {
    path: PathBuf,
    /// Our own hold.
    lock: File,
}

impl RunDir {
    /// Where the run directory of this user is: below `$XDG_RUNTIME_DIR`, `/dev/shm` or `/tmp`, the first writable
    /// where nobody else has taken its name.
    pub fn default_path() -> anyhow::Result<PathBuf> {
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let bases = runtime.into_iter().chain(["/dev/shm".into(), "/tmp".into()]);
        pick(bases, nix::unistd::geteuid().as_raw())
    }

    /// Joins the run directory at `path`, making it if need be.
    pub fn join(path: &Path) -> anyhow::Result<RunDir> {
        loop {
            match DirBuilder::new().mode(0o700).create(path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(error).with_context(|| format!("cannot create {}", path.display()));
                }
                _ => {}
            }
            match check_private(path) {
                // Its last user left between the two calls.
                Err(error) if is_not_found(&error) => continue,
                other => other?,
            }
            if let Some(dir) = RunDir::try_join(path)? {
                return Ok(dir);
            }
        }
    }

    /// One attempt; `None` if the directory went away meanwhile.
    fn try_join(path: &Path) -> anyhow::Result<Option<RunDir>> {
        let lock_path = path.join(LOCK);
        let file = match lock::open(&lock_path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("cannot open {}", lock_path.display())),
        };
        if lock::try_exclusive(&file)? {
            if !lock::still_linked(&file, &lock_path) {
                return Ok(None);
            }
            // Nobody is here: what lies around belongs to users that were killed.
            wipe(path).with_context(|| format!("cannot clean {}", path.display()))?;
        }
        // From alone to shared is not one step: the directory may be removed in between, hence the check after.
        lock::shared(&file)?;
        Ok(lock::still_linked(&file, &lock_path).then(|| RunDir { path: path.into(), lock: file }))
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A second hold, for a child to inherit: the directory stays while any descendant keeps it open.
    pub fn hold(&self) -> io::Result<File> {
        let file = lock::open(&self.path.join(LOCK))?;
        lock::shared(&file)?;
        Ok(file)
    }

    /// Leaves; the last one out removes the directory.
    pub fn leave(self) -> io::Result<()> {
        let lock_path = self.path.join(LOCK);
        if lock::try_exclusive(&self.lock)? && lock::still_linked(&self.lock, &lock_path) {
            wipe(&self.path)?;
            // Last of the content, so that a newcomer finds either our lock or an empty directory.
            fs::remove_file(&lock_path)?;
            match fs::remove_dir(&self.path) {
                // A newcomer has already put its own lock file there, or has come and gone.
                Err(error) if matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotFound) => {}
                other => other?,
            }
        }
        Ok(())
    }
}

/// The run directory of `user` below the first of `bases` that will do.
fn pick(bases: impl Iterator<Item = PathBuf>, user: u32) -> anyhow::Result<PathBuf> {
    let mut taken = None;
    for base in bases.filter(|base| base.is_absolute() && is_writable_dir(base)) {
        let path = base.join(format!("pvrdma-{user}"));
        match fs::symlink_metadata(&path) {
            Ok(found) if found.uid() != user => taken = Some((path, found.uid())),
            _ => return Ok(path),
        }
    }
    match taken {
        Some((path, owner)) => {
            let path = path.display();
            bail!("{path} belongs to user {owner}; set XDG_RUNTIME_DIR to a directory that only you can write to")
        }
        None => bail!("neither $XDG_RUNTIME_DIR nor /dev/shm nor /tmp is a directory to write to"),
    }
}

fn is_writable_dir(path: &Path) -> bool {
    path.is_dir() && nix::unistd::access(path, nix::unistd::AccessFlags::W_OK | nix::unistd::AccessFlags::X_OK).is_ok()
}

fn is_not_found(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// Others must not be able to put files into our fabric.
fn check_private(path: &Path) -> anyhow::Result<()> {
    let found = fs::symlink_metadata(path)?;
    if !found.is_dir() {
        bail!("{} is in the way: it is not a directory", path.display());
    }
    let ours = nix::unistd::geteuid().as_raw();
    if found.uid() != ours {
        bail!("{} belongs to user {}, not to user {ours}", path.display(), found.uid());
    }
    if found.mode() & 0o077 != 0 {
        bail!("{} is open to other users (mode {:o}); remove it", path.display(), found.mode() & 0o777);
    }
    Ok(())
}

/// Removes all but the lock file.
fn wipe(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_name() == LOCK {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn the_last_one_out_removes_it() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("run");
        let first = RunDir::join(&path).unwrap();
        fs::write(path.join("fabric"), b"x").unwrap();
        let second = RunDir::join(&path).unwrap();
        assert!(path.join("fabric").exists());
        first.leave().unwrap();
        assert!(path.join("fabric").exists());
        second.leave().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_descendant_keeps_it() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("run");
        let dir = RunDir::join(&path).unwrap();
        let inherited = dir.hold().unwrap();
        dir.leave().unwrap();
        assert!(path.exists());
        drop(inherited);
        RunDir::join(&path).unwrap().leave().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn what_the_dead_left_is_wiped() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("run");
        drop(RunDir::join(&path).unwrap());
        fs::create_dir(path.join("guests")).unwrap();
        fs::write(path.join("guests/stale"), b"x").unwrap();
        // A child of another test has what we have open until it is a program of its own.
        let end = Instant::now() + Duration::from_secs(60);
        let dir = loop {
            let dir = RunDir::join(&path).unwrap();
            if !path.join("guests").exists() {
                break dir;
            }
            assert!(Instant::now() < end);
            drop(dir);
            std::thread::sleep(Duration::from_millis(1));
        };
        dir.leave().unwrap();
    }

    #[test]
    fn a_name_that_somebody_else_took_is_passed_by() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let bases = || [first.path(), second.path()].map(Path::to_owned).into_iter();
        let ours = nix::unistd::geteuid().as_raw();
        let user = ours + 1;
        let path = |base: &tempfile::TempDir| base.path().join(format!("pvrdma-{user}"));
        assert_eq!(pick(bases(), user).unwrap(), path(&first));
        fs::create_dir(path(&first)).unwrap();
        assert_eq!(pick(bases(), user).unwrap(), path(&second));
        fs::create_dir(path(&second)).unwrap();
        let error = pick(bases(), user).unwrap_err().to_string();
        assert!(error.contains(&format!("belongs to user {ours}")) && error.contains("XDG_RUNTIME_DIR"), "{error}");
        let error = pick([PathBuf::from("/no/such"), "relative".into()].into_iter(), user).unwrap_err().to_string();
        assert!(error.contains("to write to"), "{error}");
    }

    #[test]
    fn a_directory_open_to_others_is_refused() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("run");
        DirBuilder::new().mode(0o755).create(&path).unwrap();
        let error = RunDir::join(&path).err().unwrap().to_string();
        assert!(error.contains("open to other users"), "{error}");
    }

    #[test]
    fn joining_and_leaving_at_once_always_ends_clean() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("run");
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let path = &path;
                scope.spawn(move || {
                    for round in 0..50 {
                        let dir = RunDir::join(path).unwrap();
                        let mine = path.join(format!("{thread}-{round}"));
                        fs::write(&mine, b"x").unwrap();
                        assert!(mine.exists());
                        dir.leave().unwrap();
                    }
                });
            }
        });
        assert!(!path.exists());
    }
}
