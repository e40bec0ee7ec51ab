//! What a host joins a fabric with, as one file: its number, its certificate, and the hosts.
//!
//! ```toml
//! version = 1
//! number = 3
//! ca = '''
//! -----BEGIN CERTIFICATE-----
//! ...
//! '''
//! certificate = '''...'''
//! key = '''...'''
//! fabric = '''...'''
//! ```
//!
//! A fabric on loopback has no `ca`, `certificate` and `key`. `fabric`, which is `fabric.toml`, comes last and ends
//! with its quotes, so a file that was cut off anywhere is none.

use crate::fabric::{self, BadFabric, FabricHost, mistake, shown};
use crate::identity::Pair;
use std::fmt::Write;
use thiserror::Error;

/// Longest file that is read.
pub const LONGEST: usize = fabric::LONGEST + 64 * 1024;
/// Another number is another form.
const VERSION: i64 = 1;

/// See the module text.
pub struct Join {
    /// The new host's number.
    pub number: u16,
    /// The authority's certificate, and the new host's.
    pub certificates: Option<(String, Pair)>,
    /// All hosts, the new one among them.
    pub hosts: Vec<FabricHost>,
}

/// What is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum BadJoin {
    #[error("it is longer than {LONGEST} bytes")]
    TooLong,
    #[error("it is not whole, or not what `pvrdma link add` has written ({0})")]
    Toml(String),
    #[error("it was written by another release (version {0}, not {VERSION})")]
    Version(i64),
    #[error("it is not whole, or not what `pvrdma link add` has written ({0} is missing or wrong)")]
    Field(&'static str),
    #[error("{key} is no key of such a file", key = shown(.0))]
    Key(String),
    #[error("its hosts: {0}")]
    Fabric(#[from] BadFabric),
}

impl Join {
    /// The file.
    pub fn text(&self) -> String {
        let name = self.hosts.iter().find(|host| host.number == self.number).map_or("", |host| &host.name);
        let mut text =
            format!("# Host {} ({name}) joins its fabric with this: `pvrdma link join FILE`.\n", self.number);
        if self.certificates.is_some() {
            text.push_str("# It holds the host's key: for nobody else to read, and to delete when it has joined.\n");
        }
        writeln!(text, "version = {VERSION}\nnumber = {}", self.number).expect("a string grows");
        let mut put = |key: &str, value: &str| writeln!(text, "{key} = '''\n{value}'''").expect("a string grows");
        if let Some((ca, host)) = &self.certificates {
            put("ca", ca);
            put("certificate", &host.certificate);
            put("key", &host.key);
        }
        put("fabric", &fabric::text(&self.hosts));
        text
    }

    /// Whether a text is meant to be such a file, and not a `fabric.toml`.
    pub fn is_meant(text: &str) -> bool {
        text.lines().any(|line| line.starts_with("version = "))
    }

    /// What a file says.
    pub fn parse(text: &str) -> Result<Join, BadJoin> {
        if text.len() > LONGEST {
            return Err(BadJoin::TooLong);
        }
        // Mail ends lines so, and what is in quotes would keep it.
        let text = &text.replace("\r\n", "\n");
        let table: toml::Table = text.parse().map_err(|error| BadJoin::Toml(mistake(text, &error)))?;
        match table.get("version").and_then(toml::Value::as_integer) {
            Some(VERSION) => {}
            Some(other) => return Err(BadJoin::Version(other)),
            None => return Err(BadJoin::Field("version")),
        }
        if let Some(key) = table
            .keys()
            .find(|key| !["version", "number", "ca", "certificate", "key", "fabric"].contains(&key.as_str()))
        {
            return Err(BadJoin::Key(key.clone()));
        }
        let number = table.get("number").and_then(toml::Value::as_integer).and_then(|n| u16::try_from(n).ok());
        let number = number.ok_or(BadJoin::Field("number"))?;
        let text_of = |key: &'static str| {
            table.get(key).and_then(toml::Value::as_str).ok_or(BadJoin::Field(key)).map(str::to_owned)
        };
        // What `text` would write so that it is read again.
        let pem_of = |key: &'static str| {
            let may_be = |c: char| c == '\n' || c == ' ' || c.is_ascii_graphic() && c != '\'';
            text_of(key).and_then(|text| if text.chars().all(may_be) { Ok(text) } else { Err(BadJoin::Field(key)) })
        };
        let is_plain = ["ca", "certificate", "key"].iter().all(|key| !table.contains_key(*key));
        let certificates = match is_plain {
            true => None,
            false => Some((pem_of("ca")?, Pair { certificate: pem_of("certificate")?, key: pem_of("key")? })),
        };
        let hosts = fabric::parse(&text_of("fabric")?)?;
        // Cut off behind two of three quotes, it has an empty text.
        if hosts.is_empty() {
            return Err(BadJoin::Field("fabric"));
        }
        Ok(Join { number, certificates, hosts })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn join(certificates: bool) -> Join {
        let host = |number, name: &str, address: &str| FabricHost {
            number,
            name: name.into(),
            address: address.parse().unwrap(),
        };
        Join {
            number: 3,
            certificates: certificates.then(|| {
                let pem = |what: &str| format!("-----BEGIN {what}-----\nAAAA\n-----END {what}-----\n");
                (pem("CA"), Pair { certificate: pem("CERTIFICATE"), key: pem("PRIVATE KEY") })
            }),
            hosts: vec![host(1, "red", "127.0.0.1:7471"), host(3, "blue", "127.0.0.1:7473")],
        }
    }

    fn parts(join: &Join) -> (u16, Option<[&str; 3]>, &[FabricHost]) {
        let certificates = join.certificates.as_ref();
        let texts = certificates.map(|(ca, host)| [ca.as_str(), host.certificate.as_str(), host.key.as_str()]);
        (join.number, texts, &join.hosts)
    }

    #[test]
    fn what_was_written_is_read() {
        for certificates in [true, false] {
            let join = join(certificates);
            let text = join.text();
            assert!(Join::is_meant(&text) && !Join::is_meant(&fabric::text(&join.hosts)));
            assert_eq!(parts(&Join::parse(&text).unwrap()), parts(&join));
            // As mail leaves it.
            assert_eq!(parts(&Join::parse(&text.replace('\n', "\r\n")).unwrap()), parts(&join));
        }
    }

    #[test]
    fn a_file_that_was_cut_off_is_none() {
        let text = join(true).text();
        for end in 0..text.trim_end().len() {
            assert!(Join::parse(&text[..end]).is_err(), "{}", &text[..end]);
        }
    }

    #[test]
    fn mistakes_are_named() {
        let text = join(true).text();
        let error = |text: &str| Join::parse(text).err().unwrap();
        assert_eq!(error(&text.replace("version = 1", "version = 2")), BadJoin::Version(2));
        assert_eq!(error(&text.replace("number = 3\nca", "number = -3\nca")), BadJoin::Field("number"));
        assert_eq!(error(&text.replace("key = '''", "kye = '''")), BadJoin::Key("kye".into()));
        assert_eq!(error(&text.replace("certificate = '''", "number2 = '''")), BadJoin::Key("number2".into()));
        assert_eq!(error(&text.replace("ca = '''", "#'''")).to_string().matches('\n').count(), 0);
        assert!(matches!(error(&text.replace("\"blue\"", "\"red\"")), BadJoin::Fabric(BadFabric::Twice(_))));
        assert_eq!(error(&"#".repeat(LONGEST + 1)), BadJoin::TooLong);
        // One certificate of three is a mistake, not a fabric without any.
        let plain = join(false).text();
        assert_eq!(error(&plain.replace("fabric =", "ca = ''\nfabric =")), BadJoin::Field("certificate"));
    }
}
