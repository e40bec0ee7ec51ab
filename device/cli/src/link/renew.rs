//! `pvrdma link renew`, and `join` on a host that is in the fabric already: it gets a new certificate, and nothing else
//! of it changes.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, bail};
use pvrdma_net::folder::{self, Settings};
use pvrdma_net::identity::{CA, HOST, HOST_KEY, Identity, Pair, date, read};
use pvrdma_net::join::Join;

use super::hosts::{certificate, may_change};
use super::place::{Held, write_private};
use super::say;

/// What a running process has to be told: nothing.
const RUNNING: &str = "`pvrdma link run` and `pvrdma serve --link` take it for new connections, if they run";

/// A new certificate: of another host as a file, of this one into its settings.
pub fn renew(folder: &Path, name: &str) -> anyhow::Result<()> {
    let held = Held::take(folder)?;
    let settings = Settings::load(folder)?;
    let Some(mut given) = may_change(folder, &settings)? else {
        bail!("this fabric is one of loopback, without certificates: there is nothing to renew");
    };
    let Some(host) = settings.hosts.iter().find(|host| host.name == name) else {
        bail!("there is no host {name}; `pvrdma link list` shows the hosts");
    };
    let number = host.number;
    let file = PathBuf::from(format!("{name}.join"));
    let is_own = number == settings.number;
    if !is_own && file.symlink_metadata().is_ok() {
        bail!("{} is there already; use it, or move it away", file.display());
    }
    let had = given.last(number).cloned();
    let (ca, pair) = certificate(folder, &held, &mut given, host, SystemTime::now())?;
    if is_own {
        let ends = put(&held, &ca, &pair)?;
        say(&format!("the certificate of this host, {number} ({name}), is good until {ends} now; {RUNNING}"));
        return Ok(());
    }
    write_private(&file, &Join { number, certificates: Some((ca, pair)), hosts: settings.hosts.clone() }.text())?;
    let file = file.display();
    let until = had.map_or_else(String::new, |had| format!("; its old certificate is good until {}", had.ends));
    say(&format!(
        "{file} is for host {number} ({name}): take it there by a way that nobody else can read, as it holds that \
         host's key, run `pvrdma link join {file}` there, and delete it{until}"
    ));
    Ok(())
}

/// Whether a file brings a new certificate to a host that there is.
pub fn is_for(folder: &Path, join: &Join) -> bool {
    join.certificates.is_some() && folder::number(folder).is_ok_and(|number| number == join.number)
}

/// Takes it into the settings.
pub fn take(folder: &Path, file: &Path, join: &Join) -> anyhow::Result<()> {
    let context = || file.display().to_string();
    let held = Held::take(folder)?;
    let settings = Settings::load(folder)?;
    let (Some((_, pair)), Some(identity)) = (&join.certificates, &settings.identity) else {
        bail!("this host is in a fabric already, which is one without certificates");
    };
    // Whom this host believes stays as it is.
    let ca = read(&folder.join(CA), false)?;
    let new = Identity::from_pem(&ca, pair).with_context(context)?;
    if new.number() != settings.number {
        bail!("{}: the certificate is of host {}, and this is host {}", file.display(), new.number(), settings.number);
    }
    new.check(SystemTime::now()).with_context(|| {
        format!("this host is in a fabric already, and {} has no new certificate for it", file.display())
    })?;
    if let (Some(until), true) = (identity.ends(), new.is_the_same(identity) || new.ends() < identity.ends()) {
        bail!(
            "this host is in a fabric already, and its certificate, good until {}, is not older than that of {}",
            date(until),
            file.display()
        );
    }
    let ends = put(&held, &ca, pair)?;
    let name = &settings.this().name;
    let file = file.display();
    say(&format!(
        "the certificate of this host, {} ({name}), is good until {ends} now; {RUNNING}; delete {file}, which holds \
         this host's key",
        settings.number
    ));
    if join.hosts != settings.hosts {
        say(&format!("the hosts are as before; `pvrdma link join --update {file}` takes those of {file}"));
    }
    Ok(())
}

/// Writes key and certificate, at once: a host is what it was, or what it is to be. The day of its end.
fn put(held: &Held, ca: &str, pair: &Pair) -> anyhow::Result<String> {
    let ends = Identity::from_pem(ca, pair)?.ends().map(date).unwrap_or_default();
    held.replace(HOST_KEY, &pair.as_key_file(), 0o600)?;
    // For people and their tools: it is in the other file too, which counts.
    held.replace(HOST, &pair.certificate, 0o644)?;
    Ok(ends)
}
