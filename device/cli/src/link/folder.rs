//! The number of this host, for those who only want that: it is in the addresses of all its guests.

use pvrdma_device::guest::MAX_HOST;
use pvrdma_net::folder::{self, NUMBER};
use std::path::Path;

use super::place;

/// The number of this host; 0: there are no settings of one, and it is linked to none.
pub fn host_number() -> anyhow::Result<u8> {
    // Without a home there are no settings.
    place::settings(None).map_or(Ok(0), |folder| number_in(&folder))
}

fn number_in(folder: &Path) -> anyhow::Result<u8> {
    if !folder.join(NUMBER).try_exists()? {
        return Ok(0);
    }
    Ok(u8::try_from(folder::number(folder)?).unwrap_or(MAX_HOST))
}

#[cfg(test)]
mod tests {
    use super::*;
    use pvrdma_device::guest::{Guest, Roce};

    #[test]
    fn a_host_has_the_number_in_its_folder_or_none() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(number_in(&folder.path().join("nowhere")).unwrap(), 0);
        assert_eq!(number_in(folder.path()).unwrap(), 0);
        let file = folder.path().join(NUMBER);
        for (text, number) in [("7\n", 7), ("254", 254)] {
            std::fs::write(&file, text).unwrap();
            assert_eq!(number_in(folder.path()).unwrap(), number);
        }
        assert!(number_in(&file).is_err(), "a file in the folder's place");
        for nonsense in ["", "0", "255", "-1", "7 8", "7.0", "seven"] {
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
