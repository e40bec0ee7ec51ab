//! `pvrdma link init` and `join`: a host gets its settings.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::SystemTime;

use anyhow::Context;
use pvrdma_net::fabric::{self, FabricHost};
use pvrdma_net::folder::{FABRIC, NUMBER, Settings};
use pvrdma_net::identity::{self, CA, CA_KEY, GOOD_FOR, HOST, HOST_KEY, Identity};
use pvrdma_net::issued::{Entry, ISSUED, Issued};
use pvrdma_net::join::Join;

use super::options::{Init, PORT};
use super::place::New;
use super::renew;
use super::say;
use crate::Usage;

/// A fabric, with this host in it.
pub fn init(folder: &Path, init: Init) -> anyhow::Result<()> {
    let name = init.name.map_or_else(machine_name, Ok)?;
    let address = init.address.unwrap_or_else(|| on_loopback(init.number));
    let host = FabricHost { number: init.number, name, address };
    let hosts = vec![host.clone()];
    let now = SystemTime::now();
    let mut join = Join { number: init.number, certificates: None, hosts };
    let mut authority = None;
    if !init.loopback {
        let made = identity::new_fabric(now)?;
        let certificate = identity::new_host(&made.key, init.number, now, GOOD_FOR)?;
        join.certificates = Some((made.certificate, certificate));
        authority = Some(made.key);
    }
    judge(&join, now)?;
    let new = New::begin(folder)?;
    put(&new, &join)?;
    if let Some(key) = authority {
        new.write(CA_KEY, &key, 0o600)?;
        new.write(ISSUED, &Issued(vec![entry(&host, now)]).text(), 0o600)?;
    }
    new.finish()?;
    let how = if init.loopback { "" } else { " --address IP:PORT" };
    say(&format!(
        "a new fabric: host {} ({}) at {address}, settings in {}; `pvrdma link add NAME{how}` adds another host",
        host.number,
        host.name,
        folder.display()
    ));
    Ok(())
}

/// This host becomes one of a fabric that there is.
pub fn join(folder: &Path, file: &Path) -> anyhow::Result<()> {
    let context = || file.display().to_string();
    let text = identity::read(file, true)?;
    let join = match Join::parse(&text) {
        Err(_) if fabric::parse(&text).is_ok_and(|hosts| !hosts.is_empty()) => {
            return Err(Usage(format!(
                "{} is the hosts of a fabric; a new host joins with the file that `pvrdma link add` has written",
                file.display()
            ))
            .into());
        }
        join => join.with_context(context)?,
    };
    judge(&join, SystemTime::now()).with_context(context)?;
    if renew::is_for(folder, &join) {
        return renew::take(folder, file, &join);
    }
    let new = New::begin(folder)?;
    put(&new, &join)?;
    new.finish()?;
    let this = join.hosts.iter().find(|host| host.number == join.number).expect("it was checked");
    let delete = match join.certificates {
        Some(_) => format!("; delete {}, which holds this host's key", file.display()),
        None => String::new(),
    };
    say(&format!(
        "this is host {} ({}) at {} now, of {} in the fabric, settings in {}{delete}",
        this.number,
        this.name,
        this.address,
        join.hosts.len(),
        folder.display()
    ));
    Ok(())
}

/// Whether it belongs together, and others would believe this host.
fn judge(join: &Join, now: SystemTime) -> anyhow::Result<()> {
    let certificates = join.certificates.as_ref();
    let identity = certificates.map(|(ca, host)| Identity::from_pem(ca, host)).transpose()?;
    let settings = Settings::new(join.number, join.hosts.clone(), identity)?;
    Ok(settings.identity.map_or(Ok(()), |identity| identity.check(now))?)
}

/// What the settings of every host hold.
fn put(new: &New, join: &Join) -> anyhow::Result<()> {
    new.write(NUMBER, &format!("{}\n", join.number), 0o644)?;
    new.write(FABRIC, &fabric::text(&join.hosts), 0o644)?;
    if let Some((ca, host)) = &join.certificates {
        new.write(CA, ca, 0o644)?;
        new.write(HOST, &host.certificate, 0o644)?;
        new.write(HOST_KEY, &host.key, 0o600)?;
    }
    Ok(())
}

/// What is remembered of a certificate that is made now.
pub fn entry(host: &FabricHost, now: SystemTime) -> Entry {
    Entry { number: host.number, ends: identity::date(now + GOOD_FOR), name: host.name.clone() }
}

/// Where a host of a fabric on loopback listens, unless it is said: each has a port of its own.
pub fn on_loopback(number: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, PORT - 1 + number).into()
}

fn machine_name() -> anyhow::Result<String> {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim_end();
    match fabric::is_name(name) {
        true => Ok(name.into()),
        false => {
            Err(Usage(format!("the machine's name, {name:?}, cannot be a host's here; give it one with --name")).into())
        }
    }
}
