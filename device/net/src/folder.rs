//! A host's settings, as a folder: its number, the hosts of its fabric, its certificate.
//!
//! | file | |
//! |---|---|
//! | `number` | the host's number, one line |
//! | `fabric.toml` | the hosts that belong together, the same file on each |
//! | `ca.pem`, `host.pem`, `host.key` | [`identity`]; none of them: a fabric on loopback, for trials |
//! | `ca.key`, `issued` | where hosts are added: the authority's key, and the numbers that it has given |
//!
//! Whoever may change a file in it decides whom this host believes, so the folder is its owner's alone. Nothing is
//! written here: `pvrdma link` does that.

use crate::fabric::{self, BadFabric, FabricHost};
use crate::gids::MAX_HOST;
use crate::identity::{self, CA, CA_KEY, HOST, HOST_KEY, Identity, Refused};
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// The host's number.
pub const NUMBER: &str = "number";
/// The hosts; see [`fabric`].
pub const FABRIC: &str = "fabric.toml";

/// What is wrong with a folder.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum BadFolder {
    #[error(
        "there is no fabric in {}: `pvrdma link init` makes one, `pvrdma link join` takes this host into one",
        .0.display()
    )]
    None(PathBuf),
    #[error("{path} can be changed by others (mode {mode:o}); make it 700", path = .path.display())]
    Open { path: PathBuf, mode: u32 },
    #[error("{path} holds no number of a host, 1 to {MAX_HOST}", path = .path.display())]
    Number { path: PathBuf },
    #[error("{path}: {error}", path = .path.display())]
    Fabric { path: PathBuf, error: BadFabric },
    #[error("{path} is missing, though other files of a certificate are there", path = .path.display())]
    Missing { path: PathBuf },
    #[error(transparent)]
    Host(#[from] BadHost),
    #[error(transparent)]
    Refused(#[from] Refused),
}

/// Why number, hosts and certificate do not belong together.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum BadHost {
    #[error("host {0} is not among the hosts of the fabric")]
    NotThere(u16),
    #[error("the certificate is of host {certificate}, and this is host {number}")]
    OtherNumber { certificate: u16, number: u16 },
    #[error("{name} has the address {address}, and without certificates hosts have loopback addresses only")]
    Plain { name: String, address: SocketAddr },
}

/// What the folder holds.
pub struct Settings {
    /// This host's number.
    pub number: u16,
    /// All hosts by their numbers, this one among them.
    pub hosts: Vec<FabricHost>,
    /// Its certificate; without one the fabric is on loopback.
    pub identity: Option<Identity>,
}

impl Settings {
    /// Settings whose parts belong together. Whether the certificate is good at this time is not asked.
    pub fn new(number: u16, hosts: Vec<FabricHost>, identity: Option<Identity>) -> Result<Settings, BadHost> {
        if hosts.iter().all(|host| host.number != number) {
            return Err(BadHost::NotThere(number));
        }
        match &identity {
            Some(identity) if identity.number() != number => {
                return Err(BadHost::OtherNumber { certificate: identity.number(), number });
            }
            Some(_) => {}
            None => {
                if let Some(far) = hosts.iter().find(|host| !identity::may_be_plain(host.address.ip())) {
                    return Err(BadHost::Plain { name: far.name.clone(), address: far.address });
                }
            }
        }
        Ok(Settings { number, hosts, identity })
    }

    /// Reads a folder.
    pub fn load(folder: &Path) -> Result<Settings, BadFolder> {
        let number = number(folder)?;
        let path = folder.join(FABRIC);
        let hosts = fabric::parse(&identity::read(&path, false)?);
        let hosts = hosts.map_err(|error| BadFolder::Fabric { path, error })?;
        // A host that has lost a part of its certificate is not one that never had any.
        let identity = match [CA, HOST, HOST_KEY, CA_KEY].iter().any(|name| folder.join(name).exists()) {
            false => None,
            true => match [CA, HOST, HOST_KEY].map(|name| folder.join(name)).into_iter().find(|path| !path.exists()) {
                Some(path) => return Err(BadFolder::Missing { path }),
                None => Some(Identity::load(folder)?),
            },
        };
        Ok(Settings::new(number, hosts, identity)?)
    }

    /// The line of this host.
    pub fn this(&self) -> &FabricHost {
        self.hosts.iter().find(|host| host.number == self.number).expect("`new` has found it")
    }
}

/// The number of the host whose settings are in a folder.
pub fn number(folder: &Path) -> Result<u16, BadFolder> {
    check(folder)?;
    let path = folder.join(NUMBER);
    if !path.exists() {
        return Err(BadFolder::None(folder.into()));
    }
    number_of(&identity::read(&path, false)?).ok_or(BadFolder::Number { path })
}

/// The number that a file holds.
pub fn number_of(text: &str) -> Option<u16> {
    text.trim_end().parse().ok().filter(|n| (1..=MAX_HOST).contains(n))
}

/// A folder that others may write to is nobody's.
fn check(folder: &Path) -> Result<(), BadFolder> {
    let broken = |error| Refused::File { path: folder.into(), error };
    let found = match fs::metadata(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(BadFolder::None(folder.into())),
        found => found.map_err(broken)?,
    };
    if !found.is_dir() {
        return Err(broken(io::ErrorKind::NotADirectory.into()).into());
    }
    if found.uid() != identity::whose_we_are().map_err(broken)? {
        return Err(Refused::NotOurs { path: folder.into(), owner: found.uid() }.into());
    }
    match found.mode() & 0o022 {
        0 => Ok(()),
        _ => Err(BadFolder::Open { path: folder.into(), mode: found.mode() & 0o777 }),
    }
}
