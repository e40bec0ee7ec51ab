//! `pvrdma link add`, `remove` and `join --update`: which hosts there are.
//!
//! Each reads, judges and writes while it holds the folder, and all that can be refused comes first. `add` writes the
//! number it gives, then the new host's file, then the hosts: if it is killed, the number is lost and nothing else.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, bail};
use pvrdma_net::fabric::{self, FabricHost};
use pvrdma_net::folder::{FABRIC, Settings};
use pvrdma_net::identity::{self, CA, CA_KEY, GOOD_FOR, Identity, Pair};
use pvrdma_net::issued::{ISSUED, Issued};
use pvrdma_net::join::Join;

use super::issued::{self, free_number};
use super::make::{entry, on_loopback};
use super::options::Add;
use super::place::{Held, write_private};
use super::say;
use crate::Usage;

/// A host more, and the file by which it joins.
pub fn add(folder: &Path, add: Add) -> anyhow::Result<()> {
    let held = Held::take(folder)?;
    let settings = Settings::load(folder)?;
    let mut given = may_change(folder, &settings)?;
    let file = PathBuf::from(format!("{}.join", add.name));
    if file.symlink_metadata().is_ok() {
        bail!("{} is there already; use it, or move it away", file.display());
    }
    let number = add.number.map_or_else(|| free_number(&settings, given.as_ref()), Ok)?;
    let address = add.address.or_else(|| given.is_none().then(|| on_loopback(number)));
    let address =
        address.ok_or_else(|| Usage("add wants --address IP:PORT, where the others reach that host".into()))?;
    let host = FabricHost { number, name: add.name, address };
    let hosts = with(&settings, &host)?;
    let had = given.as_ref().and_then(|issued| issued.last(number)).cloned();

    let now = SystemTime::now();
    let certificates = match &mut given {
        None => None,
        Some(given) => Some(certificate(folder, &held, given, &host, now)?),
    };
    let is_secret = certificates.is_some();
    write_private(&file, &Join { number, certificates, hosts: hosts.clone() }.text())?;
    if let Err(error) = held.replace(FABRIC, &fabric::text(&hosts), 0o644) {
        // Not a host of this fabric, so nobody shall join with it.
        let _ = fs::remove_file(&file);
        return Err(error);
    }

    let file = file.display();
    let secret = if is_secret { " by a way that nobody else can read, as it holds that host's key" } else { "" };
    say(&format!(
        "{file} is for host {number} ({}): take it there{secret}, run `pvrdma link join {file}` there, and delete it",
        host.name
    ));
    if let Some(had) = had {
        say(&format!(
            "number {number} was that of {}: who has its certificate can be this host until {}",
            had.name, had.ends
        ));
    }
    tell_others(folder, &hosts, &[settings.number, number]);
    Ok(())
}

/// A certificate for a host, which is written down before anybody has it; and the authority's.
pub fn certificate(
    folder: &Path,
    held: &Held,
    given: &mut Issued,
    host: &FabricHost,
    now: SystemTime,
) -> anyhow::Result<(String, Pair)> {
    let ca = identity::read(&folder.join(CA), false)?;
    let pair = identity::new_host(&identity::read(&folder.join(CA_KEY), true)?, host.number, now, GOOD_FOR)?;
    // The two files may be of different fabrics.
    Identity::from_pem(&ca, &pair)?.check(now).with_context(|| format!("{CA_KEY} is not the key of {CA}"))?;
    given.0.push(entry(host, now));
    held.replace(ISSUED, &given.text(), 0o600)?;
    Ok((ca, pair))
}

/// The hosts with one more, where it may be.
fn with(settings: &Settings, host: &FabricHost) -> anyhow::Result<Vec<FabricHost>> {
    let mut hosts = settings.hosts.clone();
    hosts.push(host.clone());
    // Who reads it judges it.
    let hosts = fabric::parse(&fabric::text(&hosts))
        .map_err(|error| anyhow::anyhow!("{error}; `pvrdma link list` shows the hosts"))?;
    match (&settings.identity, host.address.ip().is_loopback(), settings.this().address.ip().is_loopback()) {
        (None, false, _) => bail!(
            "this fabric is one of loopback, without certificates, and {} is no such address; \
             `pvrdma link init --address` makes one of several machines",
            host.address
        ),
        (Some(_), false, true) => {
            bail!("the hosts of this fabric have loopback addresses, which a host at {} cannot reach", host.address)
        }
        (Some(_), true, false) => bail!("{} is each machine itself; no other host reaches it there", host.address),
        _ => Ok(hosts),
    }
}

/// A host less.
pub fn remove(folder: &Path, name: &str) -> anyhow::Result<()> {
    let held = Held::take(folder)?;
    let settings = Settings::load(folder)?;
    let given = may_change(folder, &settings)?;
    let Some(host) = settings.hosts.iter().find(|host| host.name == name) else {
        bail!("there is no host {name}; `pvrdma link list` shows the hosts");
    };
    if host.number == settings.number {
        bail!("{name} is this host; to end the fabric, remove {} here and on each other host", folder.display());
    }
    let hosts: Vec<FabricHost> = settings.hosts.iter().filter(|other| *other != host).cloned().collect();
    held.replace(FABRIC, &fabric::text(&hosts), 0o644)?;

    let until = given.as_ref().and_then(|issued| issued.last(host.number)).map(|entry| &entry.ends);
    let until = until.map_or_else(String::new, |ends| {
        format!("; its certificate is good until {ends}, so if its key is in wrong hands, make a new fabric")
    });
    say(&format!("host {} ({name}) is no host of this fabric any more{until}", host.number));
    tell_others(folder, &hosts, &[settings.number]);
    Ok(())
}

/// Hosts are added, renewed and removed where the authority's key is; of a fabric without certificates anywhere. The
/// numbers that were given, if there are certificates.
pub fn may_change(folder: &Path, settings: &Settings) -> anyhow::Result<Option<Issued>> {
    match (&settings.identity, folder.join(CA_KEY).exists()) {
        (None, _) => Ok(None),
        (Some(_), true) => issued::load(folder).map(Some),
        (Some(_), false) => {
            bail!(
                "hosts are added, renewed and removed where the fabric was made: {} is not here",
                folder.join(CA_KEY).display()
            )
        }
    }
}

/// Hosts but these have the old list.
fn tell_others(folder: &Path, hosts: &[FabricHost], know: &[u16]) {
    let others: Vec<&str> =
        hosts.iter().filter(|host| !know.contains(&host.number)).map(|host| host.name.as_str()).collect();
    if !others.is_empty() {
        let file = folder.join(FABRIC);
        say(&format!(
            "copy {} to {} and run `pvrdma link join --update {FABRIC}` there",
            file.display(),
            others.join(", ")
        ));
    }
}

/// The hosts anew, from a copy of `fabric.toml`.
pub fn update(folder: &Path, file: &Path) -> anyhow::Result<()> {
    let held = Held::take(folder)?;
    let settings = Settings::load(folder)?;
    if folder.join(CA_KEY).exists() {
        bail!("the fabric was made here, and other hosts take the list from here; change it with add and remove");
    }
    let hosts = hosts_of(file, settings.number)?;
    let this = settings.this();
    match hosts.iter().find(|host| host.number == this.number) {
        Some(there) if there.name != this.name => bail!(
            "{}: host {} is {} there and {} here; is it of another fabric?",
            file.display(),
            this.number,
            there.name,
            this.name
        ),
        Some(_) => {}
        None => bail!("{}: host {} ({}), which this is, is not in it", file.display(), this.number, this.name),
    }
    let before = settings.hosts;
    let settings = Settings::new(settings.number, hosts, settings.identity);
    let settings = settings.with_context(|| file.display().to_string())?;
    held.replace(FABRIC, &fabric::text(&settings.hosts), 0o644)?;
    say(&changes(&before, &settings.hosts));
    Ok(())
}

/// The hosts of a `fabric.toml`, or of the file by which this host joined.
fn hosts_of(file: &Path, number: u16) -> anyhow::Result<Vec<FabricHost>> {
    let context = || file.display().to_string();
    let text = identity::read(file, false)?;
    if !Join::is_meant(&text) {
        return fabric::parse(&text).with_context(context);
    }
    let join = Join::parse(&text).with_context(context)?;
    if join.number != number {
        bail!("{} holds the key of host {}, and belongs there alone; take a {FABRIC}", file.display(), join.number);
    }
    Ok(join.hosts)
}

/// What is other than before, in one line.
fn changes(before: &[FabricHost], after: &[FabricHost]) -> String {
    let find = |hosts: &[FabricHost], number| hosts.iter().find(|host| host.number == number).cloned();
    let mut parts = Vec::new();
    for host in after {
        match find(before, host.number) {
            None => parts.push(format!("host {} ({}) is new", host.number, host.name)),
            Some(old) => {
                if old.name != host.name {
                    parts.push(format!("host {} is {}, no longer {}", host.number, host.name, old.name));
                }
                if old.address != host.address {
                    parts.push(format!("host {} ({}) is at {}", host.number, host.name, host.address));
                }
            }
        }
    }
    for host in before.iter().filter(|host| find(after, host.number).is_none()) {
        parts.push(format!("host {} ({}) is gone", host.number, host.name));
    }
    match parts.is_empty() {
        true => "the hosts are the same as before".into(),
        false => parts.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_told() {
        let host = |number, name: &str, address: &str| FabricHost {
            number,
            name: name.into(),
            address: address.parse().unwrap(),
        };
        let before = [host(1, "red", "192.0.2.1:1"), host(2, "blue", "192.0.2.2:1"), host(3, "green", "192.0.2.3:1")];
        assert_eq!(changes(&before, &before), "the hosts are the same as before");
        let after = [host(1, "red", "192.0.2.9:1"), host(3, "grey", "192.0.2.3:1"), host(4, "black", "192.0.2.4:1")];
        assert_eq!(
            changes(&before, &after),
            "host 1 (red) is at 192.0.2.9:1, host 3 is grey, no longer green, host 4 (black) is new, host 2 (blue) is gone"
        );
    }
}
