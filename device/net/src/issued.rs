//! Which numbers the authority has given, to whom, and how long their certificates are good: `issued`, beside its key.
//!
//! A host that was removed still has its certificate. If another one got its number, the former could be the latter; so
//! numbers are remembered, and given again only when somebody asks for that.

use crate::fabric::is_name;
use crate::gids::MAX_HOST;
use std::fmt::Write;
use thiserror::Error;

/// The file's name.
pub const ISSUED: &str = "issued";

/// A certificate that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Whose.
    pub number: u16,
    /// The day of its end.
    pub ends: String,
    /// Of the host, as it was called then.
    pub name: String,
}

/// Days are compared as text, and printed.
fn is_day(text: &str) -> bool {
    text.len() == 10 && text.chars().all(|c| c.is_ascii_digit() || c == '-')
}

/// All that were made, the newest last.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Issued(pub Vec<Entry>);

/// A line, counted from 1, that is none.
#[derive(Debug, PartialEq, Eq, Error)]
#[error("line {0}: no number, day and name")]
pub struct BadLine(pub usize);

impl Issued {
    /// What a file says.
    pub fn parse(text: &str) -> Result<Issued, BadLine> {
        let entry = |line: &str| {
            let mut words = line.split(' ').map(str::to_owned);
            let number = words.next()?.parse().ok().filter(|number| (1..=MAX_HOST).contains(number))?;
            let (ends, name, None) = (words.next()?, words.next()?, words.next()) else { return None };
            (is_day(&ends) && is_name(&name)).then_some(Entry { number, ends, name })
        };
        let entries = text.lines().enumerate();
        let entries = entries.map(|(at, line)| entry(line).ok_or(BadLine(at + 1)));
        Ok(Issued(entries.collect::<Result<_, _>>()?))
    }

    /// The file.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read() {
        let entry = |number, name: &str| Entry { number, ends: "2036-11-25".into(), name: name.into() };
        let issued = Issued(vec![entry(1, "red"), entry(3, "blue"), entry(3, "green")]);
        assert_eq!(issued.text(), "1 2036-11-25 red\n3 2036-11-25 blue\n3 2036-11-25 green\n");
        assert_eq!(Issued::parse(&issued.text()).unwrap(), issued);
        assert_eq!((issued.last(3), issued.last(2)), (Some(&entry(3, "green")), None));
        for text in ["1 DAY", "0 DAY b", "255 DAY b", "1 DAY b c", "\n", "1 a b", "1 DAY b\r", "1 DAY \u{1b}"] {
            let text = text.replace("DAY", "2036-11-25");
            assert!(Issued::parse(&text).is_err(), "{text:?}");
        }
    }
}
