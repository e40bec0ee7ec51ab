//! The settings folder of a host: what makes it one of several that reach each other.
//!
//! | file | |
//! |---|---|
//! | `number` | the host's number, 1 to 254, in a line of text; it is in the addresses of all its guests |
//!
//! Without the folder, or without the file, the host has number 0 and is linked to none.

use anyhow::{Context, bail};
use pvrdma_device::guest::MAX_HOST;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

const NUMBER: &str = "number";

/// The folder's path, whether it exists or not. `None`: the environment names neither it nor a home.
pub fn path() -> Option<PathBuf> {
    path_by(|name| std::env::var_os(name))
}

fn path_by(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    // What is relative there is to be ignored, says the specification of these folders.
    let absolute = |name: &str| set(name).filter(|path| path.is_absolute());
    set("PVRDMA_LINK").or_else(|| {
        let config = absolute("XDG_CONFIG_HOME").or_else(|| absolute("HOME").map(|home| home.join(".config")));
        config.map(|config| config.join("pvrdma/link"))
    })
}

/// The number of this host; 0: it has none.
pub fn host_number() -> anyhow::Result<u8> {
    path().map_or(Ok(0), |folder| number_in(&folder))
}

fn number_in(folder: &Path) -> anyhow::Result<u8> {
    let file = folder.join(NUMBER);
    let text = match std::fs::read_to_string(&file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        text => text.with_context(|| format!("cannot read {}", file.display()))?,
    };
    let text = text.trim();
    match text.parse() {
        Ok(number) if (1..=MAX_HOST).contains(&number) && text.bytes().all(|b| b.is_ascii_digit()) => Ok(number),
        _ => bail!("{}: {text:?} is no number of a host; write one from 1 to {MAX_HOST}", file.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pvrdma_device::guest::{Guest, Roce};

    #[test]
    fn the_folder_is_where_the_environment_says() {
        let path = |variables: &[(&str, &str)]| {
            path_by(|name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into()))
        };
        let (home, config) = (("HOME", "/home/me"), ("XDG_CONFIG_HOME", "/my/config"));
        assert_eq!(path(&[home]), Some("/home/me/.config/pvrdma/link".into()));
        assert_eq!(path(&[home, config]), Some("/my/config/pvrdma/link".into()));
        assert_eq!(path(&[home, ("XDG_CONFIG_HOME", "config")]), path(&[home]));
        assert_eq!(path(&[home, config, ("PVRDMA_LINK", "seven")]), Some("seven".into()));
        assert_eq!(path(&[home, ("PVRDMA_LINK", "")]), path(&[home]));
        assert_eq!(path(&[]), None);
    }

    #[test]
    fn a_host_has_the_number_in_its_folder_or_none() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(number_in(&folder.path().join("nowhere")).unwrap(), 0);
        assert_eq!(number_in(folder.path()).unwrap(), 0);
        let file = folder.path().join(NUMBER);
        for (text, number) in [("7\n", 7), ("254", 254), (" 1 \r\n", 1)] {
            std::fs::write(&file, text).unwrap();
            assert_eq!(number_in(folder.path()).unwrap(), number);
        }
        assert!(number_in(&file).is_err(), "a file in the folder's place");
        for nonsense in ["", "0", "255", "-1", "+7", "7 8", "7.0", "seven"] {
            std::fs::write(&file, nonsense).unwrap();
            let error = format!("{:#}", number_in(folder.path()).unwrap_err());
            assert!(error.contains(file.to_str().unwrap()) && error.contains("1 to 254"), "{error}");
        }
        std::fs::write(&file, [0xff]).unwrap();
        assert!(number_in(folder.path()).is_err());
    }

    /// Addresses are made by the device, and by their numbers it is judged between hosts whose they may be.
    #[test]
    fn links_and_guests_agree_on_whose_an_address_is() {
        use pvrdma_net::gids;
        assert_eq!(gids::MAX_HOST, u16::from(MAX_HOST));
        for (host, index) in (0..=MAX_HOST).flat_map(|host| [0, 100, 253].map(|index| (host, index))) {
            for (_, gid) in Guest::new(host, index, Roce::V2).unwrap().gids() {
                let may_have: Vec<u16> = (0..=gids::MAX_HOST).filter(|host| gids::may_have(*host, &gid)).collect();
                assert_eq!(may_have, [u16::from(host)], "{gid:x?}");
            }
        }
    }
}
