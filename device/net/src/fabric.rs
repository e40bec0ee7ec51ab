//! `fabric.toml`: the hosts that belong together, the same file on each.
//!
//! ```toml
//! [[host]]
//! number = 1
//! name = "red"
//! address = "192.0.2.1:7471"
//! ```

use crate::gids::MAX_HOST;
use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use thiserror::Error;

/// Longest file that is read: far more than what all hosts take.
pub const LONGEST: usize = 256 * 1024;

/// A host of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FabricHost {
    /// Its number, from 1 to 254: a byte of the addresses of its guests.
    pub number: u16,
    /// What people call it.
    pub name: String,
    /// Where it listens.
    pub address: SocketAddr,
}

/// What is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum BadFabric {
    #[error("it is longer than {LONGEST} bytes")]
    TooLong,
    #[error("{0}")]
    Toml(String),
    #[error("{key} is no key of a fabric file, only [[host]] with number, name and address", key = shown(.0))]
    Key(String),
    #[error("host {0}: {1} is missing or wrong")]
    Field(usize, &'static str),
    #[error("{0}: {1}")]
    Address(SocketAddr, &'static str),
    #[error("two hosts have {0}")]
    Twice(String),
}

/// The hosts of a file, by their numbers.
pub fn parse(text: &str) -> Result<Vec<FabricHost>, BadFabric> {
    if text.len() > LONGEST {
        return Err(BadFabric::TooLong);
    }
    let table: toml::Table = text.parse().map_err(|error| BadFabric::Toml(mistake(text, &error)))?;
    if let Some(key) = table.keys().find(|key| *key != "host") {
        return Err(BadFabric::Key(key.clone()));
    }
    let none = Vec::new();
    let entries = match table.get("host") {
        Some(toml::Value::Array(entries)) => entries,
        Some(_) => return Err(BadFabric::Key("host without double brackets".into())),
        None => &none,
    };
    let mut hosts = Vec::new();
    let mut seen = HashSet::new();
    for (at, entry) in entries.iter().enumerate() {
        let place = at + 1;
        let entry = entry.as_table().ok_or(BadFabric::Field(place, "its table"))?;
        if let Some(key) = entry.keys().find(|key| !["number", "name", "address"].contains(&key.as_str())) {
            return Err(BadFabric::Key(key.clone()));
        }
        let number = entry.get("number").and_then(toml::Value::as_integer);
        let number = number.and_then(|number| u16::try_from(number).ok()).filter(|n| (1..=MAX_HOST).contains(n));
        let number = number.ok_or(BadFabric::Field(place, "number (1 to 254)"))?;
        let name = entry.get("name").and_then(toml::Value::as_str).filter(|name| is_name(name));
        let name = name.ok_or(BadFabric::Field(place, NAMES))?.to_owned();
        let address = entry.get("address").and_then(toml::Value::as_str).and_then(|text| text.parse().ok());
        let address: SocketAddr = address.ok_or(BadFabric::Field(place, "address (IP:PORT)"))?;
        // One address has one spelling here: an IPv4 one in IPv6's clothes is the same place.
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        if let Some(why) = unreachable(address) {
            return Err(BadFabric::Address(address, why));
        }
        for what in [format!("number {number}"), format!("name {name}"), format!("address {address}")] {
            if !seen.insert(what.clone()) {
                return Err(BadFabric::Twice(what));
            }
        }
        hosts.push(FabricHost { number, name, address });
    }
    hosts.sort_by_key(|host| host.number);
    Ok(hosts)
}

/// What [`is_name`] takes.
const NAMES: &str = "name (letters, digits, - and ., the first a letter or digit)";

/// Whether a host may have this name. It goes into names of files, into command lines and into lines of logs.
pub fn is_name(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "-.".contains(c))
}

/// Why other hosts cannot dial an address, whoever has it.
pub fn unreachable(address: SocketAddr) -> Option<&'static str> {
    match address.ip().to_canonical() {
        _ if address.port() == 0 => Some("port 0 is no port"),
        ip if ip.is_unspecified() => Some("no other host can dial it; name the address that they reach this host by"),
        ip if ip.is_multicast() => Some("it is a group's address"),
        IpAddr::V4(ip) if ip.is_broadcast() => Some("it is everybody's address"),
        IpAddr::V6(ip) if ip.is_unicast_link_local() => Some("a link-local address means nothing on another host"),
        _ => None,
    }
}

/// What TOML says is wrong, in one line.
pub(crate) fn mistake(text: &str, error: &toml::de::Error) -> String {
    let line = error.span().and_then(|span| text.get(..span.start)).map(|before| before.matches('\n').count() + 1);
    let line = line.map_or_else(String::new, |line| format!("line {line}: "));
    format!("{line}{}", shown(&error.message().replace('\n', ", ")))
}

/// What may be anybody's, to be printed: the beginning of it, with nothing in it that a terminal or a log would obey.
pub(crate) fn shown(text: &str) -> String {
    const ENOUGH: usize = 200;
    let mut shown = String::new();
    for c in text.chars() {
        if shown.len() >= ENOUGH {
            shown.push_str("...");
            break;
        }
        match c == ' ' || c.is_ascii_graphic() {
            true => shown.push(c),
            false => shown.extend(c.escape_unicode()),
        }
    }
    shown
}

/// The file with these hosts.
pub fn text(hosts: &[FabricHost]) -> String {
    let host = |host: &FabricHost| {
        format!("[[host]]\nnumber = {}\nname = \"{}\"\naddress = \"{}\"\n", host.number, host.name, host.address)
    };
    hosts.iter().map(host).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(number: u16, name: &str, address: &str) -> FabricHost {
        FabricHost { number, name: name.into(), address: address.parse().unwrap() }
    }

    #[test]
    fn what_was_written_is_read_in_the_order_of_the_numbers() {
        let hosts = [host(7, "blue", "[2001:db8::1]:7471"), host(2, "red.example", "192.0.2.1:7471")];
        let read = parse(&text(&hosts)).unwrap();
        assert_eq!(read, [hosts[1].clone(), hosts[0].clone()]);
        assert_eq!(parse(""), Ok(vec![]));
    }

    #[test]
    fn mistakes_are_named() {
        let good = text(&[host(2, "red", "192.0.2.1:7471")]);
        let field = |what| Err(BadFabric::Field(1, what));
        assert_eq!(parse(&good.replace("= 2", "= 0")), field("number (1 to 254)"));
        assert_eq!(parse(&good.replace("= 2", "= 255")), field("number (1 to 254)"));
        for name in ["../red", ".red", "-red", "", "red_1", &"r".repeat(64)] {
            assert_eq!(parse(&good.replace("red", name)), field(NAMES), "{name}");
        }
        assert_eq!(parse(&good.replace(":7471", "")), field("address (IP:PORT)"));
        assert_eq!(parse(&good.replace("name", "nane")), Err(BadFabric::Key("nane".into())));
        assert_eq!(
            parse(&good.replace("[[host]]", "[host]")),
            Err(BadFabric::Key("host without double brackets".into()))
        );
        let twice = format!("{good}\n{}", good.replace("red", "blue").replace("7471", "7472"));
        assert_eq!(parse(&twice), Err(BadFabric::Twice("number 2".into())));
        for broken in ["host = [", "\n\n[[host]", "a = 'x\n"] {
            let error = parse(broken).unwrap_err().to_string();
            assert!(error.starts_with("line ") && !error.contains('\n'), "{error}");
        }
        assert_eq!(parse(&" ".repeat(LONGEST + 1)), Err(BadFabric::TooLong));
    }

    #[test]
    fn an_address_is_one_that_others_can_dial_and_has_one_spelling() {
        for address in
            ["0.0.0.0:1", "[::]:1", "192.0.2.1:0", "224.0.0.1:1", "[ff02::1]:1", "[fe80::1]:1", "255.255.255.255:1"]
        {
            let error = parse(&text(&[host(1, "red", address)])).unwrap_err();
            assert!(matches!(error, BadFabric::Address(..)), "{address}: {error}");
        }
        let twice = text(&[host(1, "red", "192.0.2.1:7471"), host(2, "blue", "[::ffff:192.0.2.1]:7471")]);
        assert_eq!(parse(&twice), Err(BadFabric::Twice("address 192.0.2.1:7471".into())));
    }
}
