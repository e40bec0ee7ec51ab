//! Certificates that end soon or have ended: what is said of them, and the cure. For `list`, `run` and `doctor`.

use std::path::Path;
use std::time::SystemTime;

use pvrdma_net::folder::{FABRIC, Settings};
use pvrdma_net::identity::{CA_KEY, Refused, SOON, date};

use super::issued;
use super::place;

/// A certificate that has to be renewed.
#[derive(Debug, PartialEq, Eq)]
pub struct Notice {
    /// It is this host's own.
    pub is_own: bool,
    pub has_ended: bool,
    pub what: String,
    pub cure: String,
}

impl Notice {
    /// In one line.
    pub fn line(&self) -> String {
        format!("{}; {}", self.what, self.cure)
    }

    fn new(host: (u16, &str), is_own: bool, has_ended: bool, ends: &str, cure: String) -> Notice {
        let how = if has_ended { "ended on" } else { "ends on" };
        let (number, name) = host;
        let links = match has_ended {
            true => ", and without one no new link is made",
            false => "",
        };
        Notice {
            is_own,
            has_ended,
            what: format!("the certificate of host {number} ({name}) {how} {ends}{links}"),
            cure,
        }
    }
}

/// Of this host's own certificate, and where certificates are made of those of the others.
pub fn notices(folder: &Path, settings: &Settings, now: SystemTime) -> Vec<Notice> {
    let Some(identity) = &settings.identity else { return Vec::new() };
    let this = settings.this();
    let is_made_here = folder.join(CA_KEY).exists();
    let own = identity.ends_soon(now).map(|ends| {
        let cure = match is_made_here {
            true => format!("run `pvrdma link renew {}`", this.name),
            false => format!(
                "run `pvrdma link renew {0}` where the fabric was made, and `pvrdma link join {0}.join` here",
                this.name
            ),
        };
        Notice::new((this.number, &this.name), true, ends < now, &date(ends), cure)
    });
    // What is wrong with the list of them is said by the commands that need it.
    let issued = is_made_here.then(|| issued::load(folder).ok()).flatten().unwrap_or_default();
    // Days as text: they sort as they come.
    let (today, soon) = (date(now), date(now + SOON));
    let others = settings.hosts.iter().filter(|host| host.number != settings.number).filter_map(|host| {
        let ends = &issued.last(host.number)?.ends;
        let cure = format!("run `pvrdma link renew {0}` here, and `pvrdma link join {0}.join` there", host.name);
        (*ends <= soon).then(|| Notice::new((host.number, &host.name), false, *ends < today, ends, cure))
    });
    own.into_iter().chain(others).collect()
}

/// Of the settings that a host has by default, for `doctor`: when its certificate ends, and what is to be said.
pub fn of_default_settings() -> anyhow::Result<Option<(String, Vec<Notice>)>> {
    let Ok(folder) = place::settings(None) else { return Ok(None) };
    // A number alone is no fabric.
    if !folder.join(FABRIC).try_exists()? {
        return Ok(None);
    }
    let settings = Settings::load(&folder)?;
    let Some(identity) = &settings.identity else { return Ok(None) };
    let now = SystemTime::now();
    identity.check(now).or_else(|refused| match refused {
        // It is among the notices, with more words.
        Refused::Ended(_) => Ok(()),
        refused => Err(refused),
    })?;
    let ends = identity.ends().map(date).unwrap_or_default();
    let good = format!("host {} ({}), good until {ends}", settings.number, settings.this().name);
    Ok(Some((good, notices(&folder, &settings, now))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use pvrdma_net::fabric::FabricHost;
    use pvrdma_net::identity::{Identity, new_fabric, new_host};
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    #[test]
    fn a_certificate_is_spoken_of_from_thirty_days_before_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let fabric = new_fabric(now).unwrap();
        let pair = new_host(&fabric.key, 2, now, 100 * DAY).unwrap();
        let host = |number, name: &str| FabricHost {
            number,
            name: name.into(),
            address: format!("192.0.2.{number}:1").parse().unwrap(),
        };
        let hosts = vec![host(1, "red"), host(2, "blue")];
        let identity = Identity::from_pem(&fabric.certificate, &pair).unwrap();
        let settings = Settings::new(2, hosts, Some(identity)).unwrap();
        let at = |days: u32| notices(folder.path(), &settings, now + days * DAY);
        assert_eq!(at(69), []);
        let [soon] = &at(71)[..] else { panic!("one") };
        assert!(soon.is_own && !soon.has_ended && soon.what.contains("host 2 (blue) ends on 2"), "{soon:?}");
        assert!(soon.cure.contains("renew blue` where the fabric was made, and `pvrdma link join blue.join` here"));
        let [ended] = &at(101)[..] else { panic!("one") };
        assert!(ended.has_ended && ended.line().contains("ended on") && ended.line().contains("no new link"));

        // Where certificates are made, the others' are known too.
        fs::write(folder.path().join(CA_KEY), "").unwrap();
        let issued = folder.path().join(pvrdma_net::issued::ISSUED);
        let text = |days: u32| format!("1 2000-01-01 old\n1 {} red\n", date(now + days * DAY));
        for (days, of) in [(200, 0), (31, 0), (30, 1), (1, 1), (0, 1)] {
            fs::write(&issued, text(days)).unwrap();
            fs::set_permissions(&issued, fs::Permissions::from_mode(0o600)).unwrap();
            let said = at(0);
            assert_eq!(said.len(), of, "{days}: {said:?}");
            assert!(said.iter().all(|notice| !notice.is_own && !notice.has_ended), "{said:?}");
        }
        let [own, red] = &at(101)[..] else { panic!("two") };
        assert_eq!(own.cure, "run `pvrdma link renew blue`");
        assert!(
            red.has_ended && red.cure.contains("renew red` here, and `pvrdma link join red.join` there"),
            "{red:?}"
        );
    }
}
