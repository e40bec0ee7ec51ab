//! Which provider libibverbs would load for the device, and which one wins.
//!
//! libibverbs loads what `RDMAV_DRIVERS` names, or without that `IBV_DRIVERS`, and then what the `driver` lines of its
//! configuration name, the last line it read first. Files come in readdir(3)'s order, by no name. Whoever registers
//! first and matches gets the device.

use super::library::{Library, glibc};
use super::machine::Machine;
use super::report::Finding;
use super::{pci, port};

/// A name of a provider, and where it was read.
struct Name {
    name: String,
    source: String,
}

/// A provider that was found.
struct Provider {
    path: String,
    source: String,
    is_ours: bool,
    /// glibc 2.N that it needs.
    glibc: Option<u32>,
}

/// All names in the order in which libibverbs loads them.
fn names(machine: &Machine, library: &Library) -> Vec<Name> {
    let variable = ["RDMAV_DRIVERS", "IBV_DRIVERS"].into_iter().find_map(|name| Some((name, machine.variable(name)?)));
    let mut names: Vec<Name> = variable
        .into_iter()
        .flat_map(|(source, list)| list.split([':', ';']).map(move |name| (name, source)))
        .filter(|(name, _)| !name.is_empty())
        .map(|(name, source)| Name { name: name.to_owned(), source: source.to_owned() })
        .collect();
    let mut configured = Vec::new();
    for file in machine.names_as_read(&library.configuration) {
        let source = format!("{}/{file}", library.configuration);
        for line in machine.text(&source).unwrap_or_default().lines() {
            let mut words = line.split_whitespace();
            if let (Some("driver"), Some(name)) = (words.next(), words.next()) {
                configured.push(Name { name: name.to_owned(), source: source.clone() });
            }
        }
    }
    configured.reverse();
    names.append(&mut configured);
    names
}

/// The file that libibverbs takes for a name.
fn file(machine: &Machine, library: &Library, name: &str) -> Result<String, String> {
    let suffix = library.suffix();
    if name.starts_with('/') {
        let path = format!("{name}{suffix}");
        return if machine.exists(&path) { Ok(path) } else { Err(path) };
    }
    let file = format!("lib{name}{suffix}");
    let first = library.providers.as_ref().map(|folder| format!("{folder}/{file}"));
    match first.filter(|path| machine.exists(path)) {
        Some(path) => Ok(path),
        None => machine.library(&file).ok_or(file),
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

pub fn check(machine: &Machine, library: &Library) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !machine.exists(&library.configuration) && machine.variable("IBV_DRIVERS").is_none() {
        findings.push(
            Finding::fail(
                "driver-files",
                format!("{} is missing: libibverbs loads no provider", library.configuration),
            )
            .cure("install the providers (Debian, Ubuntu: ibverbs-providers; Fedora, RHEL: libibverbs)"),
        );
    }
    let (mut found, mut stale): (Vec<Provider>, Vec<Finding>) = Default::default();
    for Name { name, source } in names(machine, library) {
        match file(machine, library, &name) {
            Err(missing) => stale.push(
                Finding::warn("driver-files", format!("{source} names {name}, but there is no {missing}"))
                    .cure(format!("remove that line, or install the provider for private ABI {}", library.abi)),
            ),
            Ok(path) => {
                let place = machine.path(&path).canonicalize();
                let is_twice = found
                    .iter()
                    .any(|other| machine.path(&other.path).canonicalize().ok() == place.as_ref().ok().cloned());
                let bytes = machine.bytes(&path).unwrap_or_default();
                if contains(&bytes, b"pvrdma") && !is_twice {
                    // Where a provider declares its doorbells; only ours does.
                    let is_ours = contains(&bytes, b".note.pvrdma");
                    found.push(Provider { path, source, is_ours, glibc: glibc(&bytes) });
                }
            }
        }
    }
    if stale.is_empty() && findings.is_empty() {
        findings.push(Finding::ok("driver-files", format!("all that {} names is there", library.configuration)));
    }
    findings.extend(stale);
    findings.extend(winner(machine, library, &found));
    findings
}

/// The first that can be loaded has the device.
fn winner(machine: &Machine, library: &Library, found: &[Provider]) -> Vec<Finding> {
    const CHECK: &str = "provider";
    let has = machine.library("libc.so.6").and_then(|path| glibc(&machine.bytes(&path)?));
    let too_new = |provider: &&Provider| matches!((provider.glibc, has), (Some(wants), Some(has)) if wants > has);
    let mut findings: Vec<Finding> = found
        .iter()
        .filter(too_new)
        .map(|Provider { path, glibc, .. }| {
            let (wants, has) = (glibc.unwrap_or(0), has.unwrap_or(0));
            Finding::fail("provider-glibc", format!("{path} needs glibc 2.{wants}, the machine has 2.{has}"))
                .cure("install the build for old releases, or build it here")
        })
        .collect();
    let mut able = found.iter().filter(|provider| !too_new(provider));
    let rest: Vec<&Provider> = able.clone().skip(1).collect();
    findings.push(match able.next() {
        None if pci::functions(machine).is_empty() && port::devices(machine).is_empty() => {
            Finding::note(CHECK, "none is configured; without a device none is needed")
        }
        None => Finding::fail(CHECK, format!("no provider for the device under private ABI {}", library.abi))
            .cure("install one (Debian, Ubuntu: ibverbs-providers; or ours, by README.md)"),
        Some(Provider { path, source, is_ours: true, .. }) => Finding::ok(CHECK, format!("ours, {path}, by {source}")),
        Some(Provider { path, source, .. }) => match rest.iter().find(|provider| provider.is_ours) {
            None => Finding::note(CHECK, format!("the C provider, {path}, by {source}")),
            Some(ours) => {
                let what = format!(
                    "the C provider wins: {path}, by {source}, comes before ours, {}, by {}",
                    ours.path, ours.source
                );
                let finding = Finding::warn(CHECK, what);
                let cure = format!("leave one name for the device: take the C provider out of {source}");
                match source.starts_with('/') && *source != ours.source {
                    true => finding.cure(cure).command(format!("sudo sed -i '/pvrdma/s/^/#/' {source}")),
                    false => finding.cure(cure),
                }
            }
        },
    });
    findings
}
