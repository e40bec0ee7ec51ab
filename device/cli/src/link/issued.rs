//! The list of numbers that the authority has given, in its folder.

use std::path::Path;

use anyhow::Context;
use pvrdma_net::folder::Settings;
use pvrdma_net::gids::MAX_HOST;
use pvrdma_net::identity;
use pvrdma_net::issued::{ISSUED, Issued};

/// Of a folder.
pub fn load(folder: &Path) -> anyhow::Result<Issued> {
    let path = folder.join(ISSUED);
    Issued::parse(&identity::read(&path, true)?).with_context(|| path.display().to_string())
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
    fn a_number_is_given_once() {
        let host = |number: u16| FabricHost {
            number,
            name: format!("h{number}"),
            address: format!("127.0.0.1:{number}").parse().unwrap(),
        };
        let with =
            |numbers: &[u16]| Settings::new(numbers[0], numbers.iter().map(|n| host(*n)).collect(), None).unwrap();
        assert_eq!(free_number(&with(&[1, 2, 4]), None).unwrap(), 3);
        let issued = Issued::parse("1 2036-01-01 a\n2 2036-01-01 b\n3 2036-01-01 c\n").unwrap();
        assert_eq!(free_number(&with(&[1, 4]), Some(&issued)).unwrap(), 5);
        let all: Vec<u16> = (1..=MAX_HOST).collect();
        let error = free_number(&with(&all), None).unwrap_err().to_string();
        assert!(error.contains("--number"), "{error}");
    }
}
