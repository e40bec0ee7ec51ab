//! Where a host's settings are, and how they are written: whatever happens, what is there is whole.
//!
//! A new folder is filled under another name and renamed, which never replaces one with something in it. A file is
//! replaced by renaming. Whoever works on a folder holds a lock on it, which goes with its holder; so what a killed one
//! has left is known for that, and cleared away by the next.

use std::env;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use pvrdma_net::folder::{FABRIC, NUMBER};
use pvrdma_net::identity::{CA_KEY, write_new};

use crate::lock;

/// The folder of this host's settings; `named` is the one of the command line.
pub fn settings(named: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    let found = find(named, |name| env::var_os(name).filter(|value| !value.is_empty()));
    let found = found.context("there is no $HOME to keep settings in; name a folder with --folder")?;
    let found = std::path::absolute(&found).with_context(|| format!("{}", found.display()))?;
    match found.file_name() {
        Some(_) => Ok(found),
        None => bail!("{} can be no folder of settings; name one in it", found.display()),
    }
}

fn find(named: Option<PathBuf>, variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let own = named.or_else(|| variable("PVRDMA_LINK").map(PathBuf::from));
    // A relative one is to be ignored, says the XDG Base Directory Specification.
    let xdg = || variable("XDG_CONFIG_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || variable("HOME").map(|home| PathBuf::from(home).join(".config"));
    own.or_else(|| Some(xdg().or_else(home)?.join("pvrdma/link")))
}

/// Settings that are about to be.
pub struct New {
    path: PathBuf,
    /// Where they are until then; gone when they are in place.
    temporary: Option<PathBuf>,
    _lock: File,
}

impl New {
    /// Begins settings at `path`, where there may be none.
    pub fn begin(path: &Path) -> anyhow::Result<New> {
        is_free(path)?;
        let (folder, name) = path.parent().zip(path.file_name()).context("a folder has a name")?;
        DirBuilder::new().recursive(true).mode(0o700).create(folder).with_context(|| at(folder))?;
        let temporary = folder.join(format!(".{}.new", name.to_string_lossy()));
        loop {
            match DirBuilder::new().mode(0o700).create(&temporary) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                other => other.with_context(|| at(&temporary))?,
            }
            match clear(&temporary) {
                // Its owner has just put it in place, or given up.
                Err(error) if is_not_found(&error) => continue,
                Err(error) => return Err(error),
                Ok(None) => continue,
                Ok(Some(lock)) => {
                    let new = New { path: path.into(), temporary: Some(temporary), _lock: lock };
                    // Another one may have put its own there since we looked.
                    is_free(path)?;
                    return Ok(new);
                }
            }
        }
    }

    /// A file in it.
    pub fn write(&self, name: &str, text: &str, mode: u32) -> anyhow::Result<()> {
        let folder = self.temporary.as_ref().expect("it is not in place yet");
        Ok(write_new(&folder.join(name), text, mode)?)
    }

    /// Puts it in place.
    pub fn finish(mut self) -> anyhow::Result<()> {
        let temporary = self.temporary.as_ref().expect("it is not in place yet");
        sync(temporary)?;
        match fs::rename(temporary, &self.path) {
            Err(error) if matches!(error.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists) => {
                return Err(taken(&self.path));
            }
            Err(error) if error.kind() == ErrorKind::ResourceBusy => {
                let path = self.path.display();
                bail!("{path} is a mount point; name a folder in it, as --folder {path}/link");
            }
            other => other.with_context(|| at(&self.path))?,
        }
        self.temporary = None;
        sync(self.path.parent().expect("it was made in one"))
    }
}

impl Drop for New {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // If it stays, the next one clears it away.
            let _ = fs::remove_dir_all(temporary);
        }
    }
}

/// Settings that are there, with nobody else at work on them.
pub struct Held {
    path: PathBuf,
    _lock: File,
}

impl Held {
    /// Waits until others are done.
    pub fn take(path: &Path) -> anyhow::Result<Held> {
        let file = match File::open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(pvrdma_net::folder::BadFolder::None(path.into()).into());
            }
            other => other.with_context(|| at(path))?,
        };
        lock::exclusive(&file).with_context(|| at(path))?;
        Ok(Held { path: path.into(), _lock: file })
    }

    /// Replaces a file, or makes it. Afterwards it is on the disk.
    pub fn replace(&self, name: &str, text: &str, mode: u32) -> anyhow::Result<()> {
        let (temporary, path) = (self.path.join(format!(".{name}.new")), self.path.join(name));
        remove_if_there(&temporary)?;
        write_new(&temporary, text, mode)?;
        fs::rename(&temporary, &path).with_context(|| at(&path))?;
        sync(&self.path)
    }
}

/// Writes a private file that was not there, whole or not at all. Nobody else may be about to write it.
pub fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    let path = std::path::absolute(path).with_context(|| at(path))?;
    let (folder, name) = path.parent().zip(path.file_name()).context("a file has a name")?;
    let temporary = folder.join(format!(".{}.new", name.to_string_lossy()));
    remove_if_there(&temporary)?;
    write_new(&temporary, text, 0o600)?;
    // Unlike a rename, a link replaces nothing.
    let linked = fs::hard_link(&temporary, &path);
    let removed = remove_if_there(&temporary);
    linked.with_context(|| at(&path))?;
    removed?;
    sync(folder)
}

fn is_free(path: &Path) -> anyhow::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| at(path)),
        Ok(found) if !found.is_dir() => bail!("{} is in the way: it is no folder", path.display()),
        Ok(_) => match fs::read_dir(path).with_context(|| at(path))?.next() {
            None => Ok(()),
            Some(_) => Err(taken(path)),
        },
    }
}

fn taken(path: &Path) -> anyhow::Error {
    let path_ = path.display();
    match [NUMBER, FABRIC].iter().any(|name| path.join(name).exists()) {
        // Without it nobody could be let in any more, and no certificate be renewed.
        true if path.join(CA_KEY).exists() => anyhow::anyhow!(
            "this host is in a fabric already, which was made here: `pvrdma link list` shows it; {path_} has the only \
             key that lets hosts in"
        ),
        true => anyhow::anyhow!(
            "this host is in a fabric already: `pvrdma link list` shows it; to leave it, remove {path_}"
        ),
        false => anyhow::anyhow!("{path_} is in the way: there is something else in it"),
    }
}

/// The folder is ours alone and we are its only user: its lock, after what another one has left there is removed.
/// `None`: it is not there any more.
fn clear(folder: &Path) -> anyhow::Result<Option<File>> {
    let found = fs::symlink_metadata(folder).with_context(|| at(folder))?;
    if !found.is_dir() || found.uid() != nix::unistd::geteuid().as_raw() || found.mode() & 0o077 != 0 {
        bail!("{} is in the way: it is no folder of ours alone; remove it", folder.display());
    }
    // Whatever the umask was.
    fs::set_permissions(folder, Permissions::from_mode(0o700)).with_context(|| at(folder))?;
    let lock = File::open(folder).with_context(|| at(folder))?;
    if !lock::try_exclusive(&lock).with_context(|| at(folder))? {
        bail!("another `pvrdma link` is at work there; try again");
    }
    if !lock::still_linked(&lock, folder) {
        return Ok(None);
    }
    for entry in fs::read_dir(folder).with_context(|| at(folder))? {
        let path = entry.with_context(|| at(folder))?.path();
        fs::remove_file(&path).with_context(|| at(&path))?;
    }
    Ok(Some(lock))
}

fn sync(folder: &Path) -> anyhow::Result<()> {
    File::open(folder).and_then(|folder| folder.sync_all()).with_context(|| at(folder))
}

fn remove_if_there(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other.with_context(|| at(path)),
    }
}

fn is_not_found(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::NotFound)
}

fn at(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_settings_are_where_they_were_said_to_be() {
        let all = [("PVRDMA_LINK", "/own"), ("XDG_CONFIG_HOME", "/xdg"), ("HOME", "/home/me")];
        let with = |named: Option<&str>, variables: &[(&str, &str)]| {
            find(named.map(PathBuf::from), |name| {
                variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into())
            })
        };
        assert_eq!(with(Some("/named"), &all), Some("/named".into()));
        assert_eq!(with(None, &all), Some("/own".into()));
        assert_eq!(with(None, &all[1..]), Some("/xdg/pvrdma/link".into()));
        assert_eq!(with(None, &all[2..]), Some("/home/me/.config/pvrdma/link".into()));
        assert_eq!(with(None, &[("XDG_CONFIG_HOME", "xdg"), all[2]]), Some("/home/me/.config/pvrdma/link".into()));
        assert_eq!(with(None, &[]), None);
        assert!(settings(Some("/".into())).is_err() && settings(Some("a/..".into())).is_err());
        assert!(settings(Some("a/".into())).unwrap().is_absolute());
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_folder_is_there_when_it_is_finished() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("a/link");
        let new = New::begin(&path).unwrap();
        new.write(NUMBER, "1\n", 0o644).unwrap();
        assert!(!path.exists());
        drop(new);
        assert_eq!(names(&base.path().join("a")), Vec::<String>::new());
        // An empty one is no obstacle.
        fs::create_dir(&path).unwrap();
        let new = New::begin(&path).unwrap();
        new.write(NUMBER, "1\n", 0o644).unwrap();
        new.finish().unwrap();
        assert_eq!(names(&base.path().join("a")), ["link"]);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        let error = New::begin(&path).err().unwrap().to_string();
        assert!(error.contains("already"), "{error}");
    }

    #[test]
    fn what_a_killed_one_left_is_cleared_away() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("link");
        let mut new = New::begin(&path).unwrap();
        new.write("host.key", "secret", 0o600).unwrap();
        // As if it had been killed: the lock goes, and the files stay.
        let left = new.temporary.take().unwrap();
        drop(new);
        assert_eq!(names(&left), ["host.key"]);
        let new = New::begin(&path).unwrap();
        assert_eq!(names(&left), Vec::<String>::new());
        new.finish().unwrap();
        assert_eq!(names(base.path()), ["link"]);
    }

    #[test]
    fn of_two_at_once_one_is_refused() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("link");
        let first = New::begin(&path).unwrap();
        let error = New::begin(&path).err().unwrap().to_string();
        assert!(error.contains("at work"), "{error}");
        first.write(NUMBER, "1\n", 0o644).unwrap();
        // Somebody who asks nobody.
        fs::create_dir(&path).unwrap();
        fs::write(path.join(NUMBER), "2\n").unwrap();
        let error = first.finish().unwrap_err().to_string();
        assert!(error.contains("already"), "{error}");
        assert_eq!(fs::read_to_string(path.join(NUMBER)).unwrap(), "2\n");
        assert_eq!(names(base.path()), ["link"]);
    }

    #[test]
    fn what_is_not_ours_is_left_alone() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("link");
        let others = base.path().join(".link.new");
        for make in [
            (|path: &Path| fs::write(path, "x").unwrap()) as fn(&Path),
            |path| std::os::unix::fs::symlink("/tmp", path).unwrap(),
            |path| DirBuilder::new().mode(0o755).create(path).unwrap(),
        ] {
            make(&others);
            let error = New::begin(&path).err().unwrap().to_string();
            assert!(error.contains("in the way"), "{error}");
            match fs::symlink_metadata(&others).unwrap().is_dir() {
                true => fs::remove_dir(&others).unwrap(),
                false => fs::remove_file(&others).unwrap(),
            }
        }
        fs::create_dir(&path).unwrap();
        fs::write(path.join("x"), "x").unwrap();
        let error = New::begin(&path).err().unwrap().to_string();
        assert!(error.contains("something else"), "{error}");
        fs::remove_dir_all(&path).unwrap();
        std::os::unix::fs::symlink("/tmp", &path).unwrap();
        assert!(New::begin(&path).is_err());
    }

    #[test]
    fn a_private_file_replaces_nothing() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("blue.join");
        // What a killed one left, for others to read.
        fs::write(base.path().join(".blue.join.new"), "half").unwrap();
        write_private(&path, "secret").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(write_private(&path, "other").is_err());
        assert_eq!((fs::read_to_string(&path).unwrap().as_str(), names(base.path()).len()), ("secret", 1));
    }

    #[test]
    fn a_file_is_replaced_whole() {
        let base = tempfile::tempdir().unwrap();
        let held = Held::take(base.path()).unwrap();
        for text in ["one", "two"] {
            fs::write(base.path().join(".fabric.toml.new"), "half").unwrap();
            held.replace(FABRIC, text, 0o644).unwrap();
            assert_eq!(fs::read_to_string(base.path().join(FABRIC)).unwrap(), text);
        }
        assert_eq!(names(base.path()), [FABRIC]);
        assert!(Held::take(&base.path().join("none")).is_err());
    }
}
