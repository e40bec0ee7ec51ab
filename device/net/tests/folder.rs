//! A host's settings: which folders are believed.

use pvrdma_net::fabric::{self, FabricHost};
use pvrdma_net::folder::*;
use pvrdma_net::identity::{CA, CA_KEY, HOST, HOST_KEY, Identity, Refused, new_fabric, new_host, write_new};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

fn hosts(addresses: [&str; 2]) -> Vec<FabricHost> {
    let host = |(at, address): (usize, &str)| FabricHost {
        number: at as u16 + 1,
        name: ["red", "blue"][at].into(),
        address: address.parse().expect("an address"),
    };
    addresses.into_iter().enumerate().map(host).collect()
}

/// Settings of a host `number` with a certificate of `certified`.
fn folder(number: u16, certified: Option<u16>, addresses: [&str; 2]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let put = |name: &str, text: &str, mode| write_new(&folder.path().join(name), text, mode).expect("written");
    put(NUMBER, &format!("{number}\n"), 0o644);
    put(FABRIC, &fabric::text(&hosts(addresses)), 0o644);
    if let Some(certified) = certified {
        let fabric = new_fabric(SystemTime::now()).expect("an authority");
        let host = new_host(&fabric.key, certified, SystemTime::now(), Duration::from_secs(3600)).expect("a host");
        put(CA, &fabric.certificate, 0o644);
        put(CA_KEY, &fabric.key, 0o600);
        put(HOST, &host.certificate, 0o644);
        put(HOST_KEY, &host.key, 0o600);
    }
    folder
}

const FAR: [&str; 2] = ["192.0.2.1:7471", "192.0.2.2:7471"];
const NEAR: [&str; 2] = ["127.0.0.1:7471", "127.0.0.1:7472"];

fn refused(folder: &Path) -> BadFolder {
    Settings::load(folder).err().expect("refused")
}

#[test]
fn a_folder_is_read() {
    for (certified, addresses) in [(Some(2), FAR), (Some(2), NEAR), (None, NEAR)] {
        let folder = folder(2, certified, addresses);
        let settings = Settings::load(folder.path()).expect("settings");
        assert_eq!((settings.number, settings.hosts.clone()), (2, hosts(addresses)));
        assert_eq!((settings.this().name.as_str(), settings.identity.is_some()), ("blue", certified.is_some()));
        assert_eq!(number(folder.path()).expect("a number"), 2);
    }
}

#[test]
fn parts_that_do_not_belong_together_are_refused() {
    assert!(matches!(refused(folder(3, None, NEAR).path()), BadFolder::Host(BadHost::NotThere(3))));
    let error = refused(folder(2, Some(1), FAR).path());
    assert!(matches!(error, BadFolder::Host(BadHost::OtherNumber { certificate: 1, number: 2 })), "{error}");
    let error = refused(folder(2, None, [NEAR[0], FAR[1]]).path());
    assert!(matches!(error, BadFolder::Host(BadHost::Plain { ref name, .. }) if name == "blue"), "{error}");
}

/// A host whose key was lost, or kept from it, does not go on without one.
#[test]
fn a_part_of_a_certificate_is_not_no_certificate() {
    for name in [CA, HOST, HOST_KEY] {
        let folder = folder(1, Some(1), NEAR);
        fs::remove_file(folder.path().join(name)).expect("it was there");
        let error = refused(folder.path());
        assert!(matches!(error, BadFolder::Missing { ref path } if path.ends_with(name)), "{error}");
    }
}

#[test]
fn a_folder_that_others_can_change_is_refused() {
    let folder = folder(1, Some(1), FAR);
    for (mode, fine) in [(0o700, true), (0o755, true), (0o720, false), (0o702, false), (0o777, false)] {
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(mode)).expect("our folder");
        assert_eq!(Settings::load(folder.path()).is_ok(), fine, "{mode:o}");
        assert_eq!(number(folder.path()).is_ok(), fine, "{mode:o}");
    }
}

#[test]
fn what_is_missing_or_no_number_is_named() {
    let empty = tempfile::tempdir().expect("a folder");
    assert!(matches!(refused(empty.path()), BadFolder::None(_)));
    assert!(matches!(refused(&empty.path().join("none")), BadFolder::None(_)));
    let folder = folder(1, None, NEAR);
    for text in ["", "0", "255", "-1", "1 2", "one", "1\n2\n"] {
        fs::write(folder.path().join(NUMBER), text).expect("written");
        assert!(matches!(refused(folder.path()), BadFolder::Number { .. }), "{text:?}");
    }
    fs::write(folder.path().join(NUMBER), "1").expect("written");
    fs::write(folder.path().join(FABRIC), "host = [").expect("written");
    let error = refused(folder.path());
    assert!(error.to_string().contains("fabric.toml: line 1: "), "{error}");
    let error = refused(&folder.path().join(NUMBER));
    assert!(matches!(error, BadFolder::Refused(Refused::File { .. })), "{error}");
}

/// Key and certificate change at once: wherever the one who writes them is killed, they are of one another.
#[test]
fn a_renewed_certificate_is_that_of_the_keys_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let put = |name: &str, text: &str, mode| write_new(&folder.path().join(name), text, mode).expect("written");
    let now = SystemTime::now();
    let fabric = new_fabric(now).expect("an authority");
    let days = |days: u64| new_host(&fabric.key, 2, now, Duration::from_secs(days * 24 * 3600)).expect("a host");
    let (old, new) = (days(10), days(20));
    put(CA, &fabric.certificate, 0o644);
    put(HOST, &old.certificate, 0o644);
    put(HOST_KEY, &old.key, 0o600);
    let ends = || {
        let identity = Identity::load(folder.path()).expect("an identity");
        identity.check(now).expect("believed");
        identity.ends().expect("an end")
    };
    let before = ends();
    // Killed between its two files.
    fs::remove_file(folder.path().join(HOST_KEY)).expect("it was there");
    put(HOST_KEY, &new.as_key_file(), 0o600);
    assert_eq!(ends().duration_since(before).expect("later").as_secs(), 10 * 24 * 3600);
    fs::write(folder.path().join(HOST), &new.certificate).expect("written");
    assert_eq!(ends().duration_since(before).expect("later").as_secs(), 10 * 24 * 3600);
}
