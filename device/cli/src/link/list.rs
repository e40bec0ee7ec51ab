//! `pvrdma link list`: the hosts, which of them this is, and whether others would believe it.

use std::fmt::Write;
use std::path::Path;
use std::time::SystemTime;

use pvrdma_net::fabric::FabricHost;
use pvrdma_net::folder::Settings;
use pvrdma_net::identity::{CA_KEY, date};

use super::say;
use super::term::{Notice, notices};
use crate::json::{self, quoted};

pub fn list(folder: &Path, json: bool) -> anyhow::Result<()> {
    let settings = Settings::load(folder)?;
    let now = SystemTime::now();
    let notices = notices(folder, &settings, now);
    // Of a certificate that has ended there is more to say.
    let ended = notices.iter().find(|notice| notice.is_own && notice.has_ended).map(Notice::line);
    let problem = settings.identity.as_ref().and_then(|identity| identity.check(now).err());
    let problem = problem.map(|problem| ended.unwrap_or_else(|| problem.to_string()));
    let warnings: Vec<String> =
        notices.iter().filter(|notice| !(notice.is_own && notice.has_ended)).map(Notice::line).collect();
    let adds = settings.identity.is_none() || folder.join(CA_KEY).exists();
    let ends = settings.identity.as_ref().and_then(|identity| identity.ends()).map(date);
    match json {
        true => say(&object(folder, &settings, adds, ends.as_deref(), problem.as_deref(), &warnings)),
        false => say(&text(&settings, adds, ends.as_deref(), &warnings)),
    }
    problem.map_or(Ok(()), |problem| Err(anyhow::anyhow!(problem)))
}

fn text(settings: &Settings, adds: bool, ends: Option<&str>, warnings: &[String]) -> String {
    let width = settings.hosts.iter().map(|host| host.name.len()).max().unwrap_or_default();
    let mut text = String::new();
    for host in &settings.hosts {
        let this = if host.number == settings.number { "  this host" } else { "" };
        writeln!(text, "{:>3}  {:<width$}  {}{this}", host.number, host.name, host.address).expect("a string grows");
    }
    match ends {
        Some(ends) => write!(text, "certificate good until {ends}"),
        None => write!(text, "no certificates: a fabric of this machine alone"),
    }
    .expect("a string grows");
    text.push_str(if adds { "; hosts can be added here" } else { "" });
    for warning in warnings {
        write!(text, "\nwarning: {warning}").expect("a string grows");
    }
    text
}

fn object(
    folder: &Path,
    settings: &Settings,
    adds: bool,
    ends: Option<&str>,
    problem: Option<&str>,
    warnings: &[String],
) -> String {
    let or_null = |text: Option<&str>| text.map_or("null".to_owned(), quoted);
    let members = |host: &FabricHost| json::host(host.number, &host.name, host.address);
    let hosts: Vec<String> = settings.hosts.iter().map(|host| format!("    {{{}}}", members(host))).collect();
    format!(
        "{{\n  \"folder\": {},\n  \"number\": {},\n  \"adds_hosts\": {adds},\n  \"certificate_ends\": {},\n  \
         \"problem\": {},\n  \"warnings\": [{}],\n  \"hosts\": [\n{}\n  ]\n}}",
        quoted(&folder.to_string_lossy()),
        settings.number,
        or_null(ends),
        or_null(problem),
        warnings.iter().map(|warning| quoted(warning)).collect::<Vec<_>>().join(", "),
        hosts.join(",\n")
    )
}
