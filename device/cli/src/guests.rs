//! The guest registry of a run directory: `guests/INDEX/` with the guest's name, RoCE version, number of its host, what
//! it has for those who speak RoCE, lock, sysfs tree and provider links.
//!
//! A guest lives while someone holds its lock shared. All changes happen under one exclusive lock, so a guest that
//! nobody holds can be removed by whoever notices first.

use crate::sysfs::Names;
use crate::{Usage, lock, sysfs};
use anyhow::{Context, bail};
use pvrdma_device::guest::{Guest, MAX_GUESTS, Roce, Wire};
use std::collections::BTreeSet;
use std::fmt::{self, Display};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

const LOCK: &str = "lock";
const NAME: &str = "name";
const ROCE: &str = "roce";
const HOST: &str = "host";
const WIRE: &str = "wire";
const SYSFS: &str = "sys";

/// What a guest has for those who speak RoCE, and the network interface for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnWire {
    pub wire: Wire,
    pub interface: String,
}

/// `VERSION ADDRESS MTU INTERFACE`.
impl Display for OnWire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.wire, self.interface)
    }
}

impl FromStr for OnWire {
    type Err = ();

    fn from_str(text: &str) -> Result<OnWire, ()> {
        let (wire, interface) = text.rsplit_once(' ').ok_or(())?;
        Ok(OnWire { wire: wire.parse()?, interface: interface.to_owned() })
    }
}

/// A place in a guest: it exists at least until [`Seat::leave`].
pub struct Seat {
    registry: PathBuf,
    dir: PathBuf,
    guest: Guest,
    wire: Option<OnWire>,
    names: Names,
    lock: File,
}

/// Refuses names that would not do as a word in messages and environment variables.
pub fn check_name(name: &str) -> Result<(), Usage> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > 32 || !name.chars().all(good) || name.starts_with(['-', '.']) {
        return Err(Usage(format!(
            "bad guest name {name:?}: use 1 to 32 letters, digits, '-', '_' and '.', not starting with '-' or '.'"
        )));
    }
    Ok(())
}

impl Seat {
    /// Takes a place in the guest called `name` of the host with this number; it is made if it does not exist. `roce`
    /// must agree with an existing guest, `None` agrees with any; the number must agree with all guests.
    pub fn take(
        run_dir: &Path,
        host: u8,
        name: &str,
        roce: Option<Roce>,
        wire: Option<OnWire>,
    ) -> anyhow::Result<Seat> {
        let registry = run_dir.join("registry");
        let guests = run_dir.join("guests");
        let lock = lock::open(&registry).context("cannot open the guest registry")?;
        lock::exclusive(&lock)?;
        fs::create_dir_all(&guests).context("cannot make the guest registry")?;

        let mut taken = BTreeSet::new();
        let mut wanted = None;
        for entry in fs::read_dir(&guests)? {
            let dir = entry?.path();
            let Some(live) = Live::look(&dir)? else { continue };
            live.check_host(host)?;
            taken.insert(live.guest.index());
            if live.name == name {
                wanted = Some((live, dir));
            }
        }
        if let Some((live, dir)) = wanted {
            return live.join(roce, &registry, dir);
        }
        let index = (0..MAX_GUESTS).find(|index| !taken.contains(index));
        let guest = index.and_then(|index| Guest::new(host, index, roce.unwrap_or_default()));
        let guest = guest.with_context(|| format!("all {MAX_GUESTS} guests of this host are in use"))?;
        let dir = guests.join(guest.index().to_string());
        // A guest of another version could not say what is spoken there.
        let wire = wire.filter(|on| guest.roce() == on.wire.roce);
        make(&dir, name, guest, wire.as_ref()).with_context(|| format!("cannot set up guest {name}"))?;
        Seat::sit(registry, dir, guest, wire)
    }

    fn sit(registry: PathBuf, dir: PathBuf, guest: Guest, wire: Option<OnWire>) -> anyhow::Result<Seat> {
        let lock = lock::open(&dir.join(LOCK))?;
        lock::shared(&lock)?;
        let names = Names::read(&dir.join(SYSFS)).with_context(|| format!("{} is damaged", dir.display()))?;
        Ok(Seat { registry, dir, guest, wire, names, lock })
    }

    /// Who the guest is.
    pub fn guest(&self) -> Guest {
        self.guest
    }

    /// What it has for those who speak RoCE.
    pub fn wire(&self) -> Option<&OnWire> {
        self.wire.as_ref()
    }

    /// What its device is called.
    pub fn names(&self) -> Names {
        self.names
    }

    /// Root of its sysfs tree.
    pub fn sysfs(&self) -> PathBuf {
        self.dir.join(SYSFS)
    }

    /// Where its provider links may be made.
    pub fn providers(&self) -> PathBuf {
        self.dir.join("providers")
    }

    /// A second hold, for a child to inherit.
    pub fn hold(&self) -> io::Result<File> {
        let file = lock::open(&self.dir.join(LOCK))?;
        lock::shared(&file)?;
        Ok(file)
    }

    /// Leaves the guest; the last one out removes it and frees its index.
    pub fn leave(self) -> io::Result<()> {
        let registry = lock::open(&self.registry)?;
        lock::exclusive(&registry)?;
        if lock::try_exclusive(&self.lock)? {
            fs::remove_dir_all(&self.dir)?;
        }
        Ok(())
    }
}

/// A guest that someone holds.
struct Live {
    name: String,
    guest: Guest,
    wire: Option<OnWire>,
}

impl Live {
    /// Looks at a guest's directory; one that nobody holds is removed. The caller holds the registry.
    fn look(dir: &Path) -> anyhow::Result<Option<Live>> {
        let lock = lock::open(&dir.join(LOCK)).with_context(|| format!("cannot look into {}", dir.display()))?;
        if lock::try_exclusive(&lock)? {
            fs::remove_dir_all(dir)?;
            return Ok(None);
        }
        let damaged = || format!("{} is damaged", dir.display());
        let name = fs::read_to_string(dir.join(NAME)).with_context(damaged)?;
        let roce = fs::read_to_string(dir.join(ROCE)).with_context(damaged)?.parse().ok();
        let host = fs::read_to_string(dir.join(HOST)).with_context(damaged)?.parse().ok();
        let index = dir.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
        let known = host.zip(index).zip(roce);
        let guest = known.and_then(|((host, index), roce)| Guest::new(host, index, roce)).with_context(damaged)?;
        let wire = match fs::read_to_string(dir.join(WIRE)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            text => Some(text?.parse().ok().with_context(damaged)?),
        };
        Ok(Some(Live { name, guest, wire }))
    }

    /// All guests of a run directory have addresses of one host.
    fn check_host(&self, host: u8) -> anyhow::Result<()> {
        let (name, is) = (&self.name, self.guest.host());
        if is != host {
            bail!("guest {name} has the addresses of host {is}, and this is host {host} now; end its programs first");
        }
        Ok(())
    }

    fn join(self, roce: Option<Roce>, registry: &Path, dir: PathBuf) -> anyhow::Result<Seat> {
        let (name, is) = (&self.name, self.guest.roce());
        if roce.is_some_and(|roce| roce != is) {
            bail!("guest {name} runs RoCE {}; end its programs first, or use another --guest", is.name());
        }
        sysfs::refresh(&dir.join(SYSFS), Path::new(sysfs::MACHINE))?;
        Seat::sit(registry.into(), dir, self.guest, self.wire)
    }
}

fn make(dir: &Path, name: &str, guest: Guest, wire: Option<&OnWire>) -> anyhow::Result<()> {
    fs::create_dir(dir)?;
    fs::write(dir.join(NAME), name)?;
    fs::write(dir.join(ROCE), guest.roce().name())?;
    fs::write(dir.join(HOST), guest.host().to_string())?;
    if let Some(wire) = wire {
        fs::write(dir.join(WIRE), wire.to_string())?;
    }
    let machine = Path::new(sysfs::MACHINE);
    let wire = wire.map(|on| (on.wire.gid, on.interface.as_str()));
    sysfs::write(&dir.join(SYSFS), guest, wire, Names::free(machine), machine)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_of_one_guest_share_it_and_others_get_the_next_index() {
        let dir = tempfile::tempdir().unwrap();
        let a = Seat::take(dir.path(), 0, "a", None, None).unwrap();
        let again = Seat::take(dir.path(), 0, "a", None, None).unwrap();
        let b = Seat::take(dir.path(), 0, "b", Some(Roce::V1), None).unwrap();
        assert_eq!((a.guest().index(), again.guest().index(), b.guest().index()), (0, 0, 1));
        assert_eq!((a.guest().roce(), b.guest().roce()), (Roce::V2, Roce::V1));
    }

    #[test]
    fn an_index_is_free_again_when_its_last_program_left() {
        let dir = tempfile::tempdir().unwrap();
        let a = Seat::take(dir.path(), 0, "a", None, None).unwrap();
        let again = Seat::take(dir.path(), 0, "a", None, None).unwrap();
        a.leave().unwrap();
        assert!(dir.path().join("guests/0").exists());
        again.leave().unwrap();
        assert!(!dir.path().join("guests/0").exists());
        assert_eq!(Seat::take(dir.path(), 0, "b", None, None).unwrap().guest().index(), 0);
    }

    #[test]
    fn a_guest_whose_programs_were_killed_makes_room() {
        let dir = tempfile::tempdir().unwrap();
        drop(Seat::take(dir.path(), 0, "a", Some(Roce::V1), None).unwrap());
        let b = Seat::take(dir.path(), 0, "a", Some(Roce::V2), None).unwrap();
        assert_eq!((b.guest().index(), b.guest().roce()), (0, Roce::V2));
    }

    #[test]
    fn a_guest_outlives_its_seat_while_a_descendant_holds_it() {
        let dir = tempfile::tempdir().unwrap();
        let a = Seat::take(dir.path(), 0, "a", None, None).unwrap();
        let inherited = a.hold().unwrap();
        a.leave().unwrap();
        assert_eq!(Seat::take(dir.path(), 0, "b", None, None).unwrap().guest().index(), 1);
        drop(inherited);
        assert_eq!(Seat::take(dir.path(), 0, "c", None, None).unwrap().guest().index(), 0);
    }

    #[test]
    fn two_roce_versions_in_one_guest_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let _a = Seat::take(dir.path(), 0, "a", Some(Roce::V1), None).unwrap();
        assert_eq!(Seat::take(dir.path(), 0, "a", None, None).unwrap().guest().roce(), Roce::V1);
        let error = Seat::take(dir.path(), 0, "a", Some(Roce::V2), None).err().unwrap().to_string();
        assert!(error.contains("runs RoCE v1"), "{error}");
    }

    #[test]
    fn another_number_of_the_host_is_refused_until_the_guests_have_ended() {
        let dir = tempfile::tempdir().unwrap();
        let a = Seat::take(dir.path(), 7, "a", None, None).unwrap();
        assert_eq!(a.guest().host(), 7);
        for name in ["a", "b"] {
            let error = Seat::take(dir.path(), 0, name, None, None).err().unwrap().to_string();
            assert!(error.contains("guest a has the addresses of host 7") && error.contains("host 0 now"), "{error}");
        }
        assert_eq!(Seat::take(dir.path(), 7, "b", None, None).unwrap().guest().index(), 1);
        a.leave().unwrap();
        assert_eq!(Seat::take(dir.path(), 0, "a", None, None).unwrap().guest().host(), 0);
    }

    #[test]
    fn names_are_plain_words() {
        for good in ["a", "vm-1", "A_b.c", "0123456789abcdef0123456789abcdef"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", ".a", "a b", "a/b", "ä", "0123456789abcdef0123456789abcdef0"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
