//! Which numbers the authority has given, to whom, and how long their certificates are good: `issued`, beside its key.
//!
//! A host that was removed still has its certificate. If another one got its number, the former could be the latter; so
//! numbers are remembered, and given again only when somebody asks for that.

use std::fmt::Write;
use std::path::Path;

use anyhow::Context;
use pvrdma_net::folder::Settings;
use pvrdma_net::gids::MAX_HOST;
use pvrdma_net::identity;

/// The file's name.
pub const ISSUED: &str = "issued";

/// A certificate that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub number: u16,
    /// The day of its end.
    pub ends: String,
    /// Of the host, as it was called then.
    pub name: String,
}

/// All that were made, the newest last.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Issued(pub Vec<Entry>);

impl Issued {
    pub fn load(folder: &Path) -> anyhow::Result<Issued> {
        let path = folder.join(ISSUED);
        Issued::parse(&identity::read(&path, true)?).with_context(|| path.display().to_string())
    }

    fn parse(text: &str) -> anyhow::Result<Issued> {
        let entry = |line: &str| {
            let mut words = line.split(' ').map(str::to_owned);
            let number = words.next()?.parse().ok().filter(|number| (1..=MAX_HOST).contains(number))?;
            let (ends, name, None) = (words.next()?, words.next()?, words.next()) else { return None };
            Some(Entry { number, ends, name })
        };
        let entries = text.lines().enumerate();
        let entries =
            entries.map(|(at, line)| entry(line).with_context(|| format!("line {}: no number, day and name", at + 1)));
        Ok(Issued(entries.collect::<anyhow::Result<_>>()?))
    }

    pub fn text(&self) -> String {
        let mut text = String::new();
        for Entry { number, ends, name } in &self.0 {
            writeln!(text, "{number} {ends} {name}").expect("a string grows");
        }
        text
    }

    /// Who had a number last.
    pub fn last(&self, number: u16) -> Option<&Entry> {
        self.0.iter().rfind(|entry| entry.number == number)
    }
}

/// The lowest number that no host has or, as far as it is known, had.
pub fn free_number(settings: &Settings, issued: Option<&Issued>) -> anyhow::Result<u16> {
    let has = |number: u16| settings.hosts.iter().any(|host| host.number == number);
    let had = |number: u16| issued.is_some_and(|issued| issued.last(number).is_some());
    (1..=MAX_HOST).find(|number| !has(*number) && !had(*number)).with_context(|| {
        format!(
            "all numbers up to {MAX_HOST} are or were some host's; --number gives one of a host that was removed again"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use pvrdma_net::fabric::FabricHost;

    #[test]
    fn what_was_written_is_read() {
        let entry = |number, name: &str| Entry { number, ends: "2036-11-25".into(), name: name.into() };
        let issued = Issued(vec![entry(1, "red"), entry(3, "blue"), entry(3, "green")]);
        assert_eq!(issued.text(), "1 2036-11-25 red\n3 2036-11-25 blue\n3 2036-11-25 green\n");
        assert_eq!(Issued::parse(&issued.text()).unwrap(), issued);
        assert_eq!((issued.last(3), issued.last(2)), (Some(&entry(3, "green")), None));
        for text in ["1", "1 a", "0 a b", "255 a b", "1 a b c", "\n"] {
            assert!(Issued::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_number_is_given_once() {
        let host = |number: u16| FabricHost {
            number,
            name: format!("h{number}"),
            address: format!("127.0.0.1:{number}").parse().unwrap(),
        };
        let with =
            |numbers: &[u16]| Settings::new(numbers[0], numbers.iter().map(|n| host(*n)).collect(), None).unwrap();
        assert_eq!(free_number(&with(&[1, 2, 4]), None).unwrap(), 3);
        let issued = Issued::parse("1 d a\n2 d b\n3 d c\n").unwrap();
        assert_eq!(free_number(&with(&[1, 4]), Some(&issued)).unwrap(), 5);
        let all: Vec<u16> = (1..=MAX_HOST).collect();
        let error = free_number(&with(&all), None).unwrap_err().to_string();
        assert!(error.contains("--number"), "{error}");
    }
}
