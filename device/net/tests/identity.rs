//! Who gets through the handshake and who does not, with both ends in this process.

use pvrdma_net::identity::*;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConnection, ServerConnection};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Certificates know no less.
const EVEN: Duration = Duration::from_secs(1);

struct Fabric(Pair);

impl Fabric {
    fn new() -> Fabric {
        Fabric(new_fabric(SystemTime::now()).expect("an authority"))
    }

    fn host(&self, number: u16) -> Identity {
        self.host_made(number, SystemTime::now())
    }

    /// A host whose certificate was made then.
    fn host_made(&self, number: u16, then: SystemTime) -> Identity {
        let pair = new_host(&self.0.key, number, then, Duration::from_secs(3600)).expect("a host");
        self.identity(&pair)
    }

    fn identity(&self, pair: &Pair) -> Identity {
        let certificate = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).expect("a certificate");
        let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).expect("a key");
        Identity::new(certificate(&self.0.certificate), certificate(&pair.certificate), key).expect("an identity")
    }
}

/// `client` dials a host by its number and finds `server`: what each end says of it, and whom the server has seen.
fn handshake(client: ClientConnection, server: &Identity) -> Result<Option<u16>, String> {
    let mut client = client;
    let mut server = ServerConnection::new(Arc::new(server.server().expect("a configuration"))).expect("a server");
    for _ in 0..10 {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).expect("a vector takes all");
        }
        let mut rest = &wire[..];
        while !rest.is_empty() {
            server.read_tls(&mut rest).expect("a slice gives all");
            server.process_new_packets().map_err(|error| format!("server: {error}"))?;
        }
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).expect("a vector takes all");
        }
        let mut rest = &wire[..];
        while !rest.is_empty() {
            client.read_tls(&mut rest).expect("a slice gives all");
            client.process_new_packets().map_err(|error| format!("client: {error}"))?;
        }
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    Ok(server.peer_certificates().and_then(|chain| number_of(chain.first()?)))
}

fn dial(from: &Identity, number: u16, to: &Identity) -> Result<Option<u16>, String> {
    let config = Arc::new(from.client().expect("a configuration"));
    handshake(ClientConnection::new(config, server_name(number)).expect("a client"), to)
}

#[test]
fn hosts_of_a_fabric_know_each_other_by_their_numbers() {
    let fabric = Fabric::new();
    let (one, two) = (fabric.host(1), fabric.host(254));
    assert_eq!((one.number(), two.number()), (1, 254));
    assert_eq!(dial(&one, 254, &two), Ok(Some(1)));
    assert_eq!(dial(&two, 1, &one), Ok(Some(254)));
}

#[test]
fn another_number_than_the_one_dialed_is_refused() {
    let fabric = Fabric::new();
    let error = dial(&fabric.host(1), 2, &fabric.host(3)).unwrap_err();
    assert!(error.starts_with("client: ") && error.contains("certificate"), "{error}");
}

#[test]
fn another_fabric_is_refused_by_both_ends() {
    let (ours, theirs) = (Fabric::new(), Fabric::new());
    let error = dial(&ours.host(1), 2, &theirs.host(2)).unwrap_err();
    assert!(error.starts_with("client: "), "{error}");
    // One that believes anybody of ours, and shows what it has.
    let pair = new_host(&theirs.0.key, 1, SystemTime::now(), Duration::from_secs(3600)).expect("a host");
    let error = dial(&ours.identity(&pair), 2, &ours.host(2)).unwrap_err();
    assert!(error.starts_with("server: "), "{error}");
}

#[test]
fn a_stranger_without_a_certificate_is_refused() {
    let fabric = Fabric::new();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(fabric.0.certificate.as_bytes()).expect("PEM")).expect("a root");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stranger = ClientConnection::new(Arc::new(config), server_name(2)).expect("a client");
    let error = handshake(stranger, &fabric.host(2)).unwrap_err();
    assert!(error.starts_with("server: "), "{error}");
}

#[test]
fn what_has_expired_is_refused() {
    let fabric = Fabric::new();
    let long_ago = SystemTime::now() - Duration::from_secs(7200);
    let error = dial(&fabric.host(1), 2, &fabric.host_made(2, long_ago)).unwrap_err();
    assert!(error.starts_with("client: ") && error.to_lowercase().contains("expired"), "{error}");
    let error = dial(&fabric.host_made(1, long_ago), 2, &fabric.host(2)).unwrap_err();
    assert!(error.starts_with("server: ") && error.to_lowercase().contains("expired"), "{error}");
}

/// A host that gets a new certificate is who it was, and the old one is good until its end.
#[test]
fn a_renewed_host_is_known_by_either_certificate() {
    let fabric = Fabric::new();
    let (old, new, other) = (fabric.host(2), fabric.host(2), fabric.host(1));
    for host in [&old, &new] {
        assert_eq!(dial(&other, 2, host), Ok(Some(1)));
        assert_eq!(dial(host, 1, &other), Ok(Some(2)));
    }
}

/// Hosts know the authority by its key: its certificate may be older than it is good for.
#[test]
fn a_fabric_outlives_the_certificate_of_its_authority() {
    let long_ago = SystemTime::now() - GOOD_FOR - 2 * SOON;
    let fabric = Fabric(new_fabric(long_ago).expect("an authority"));
    let (one, two) = (fabric.host(1), fabric.host(2));
    assert_eq!(dial(&one, 2, &two), Ok(Some(1)));
    assert!(one.has_the_authority_of(&two) && !one.has_the_authority_of(&Fabric::new().host(1)));
    one.check(SystemTime::now()).expect("believed");
}

/// A host's own certificate is no authority: what it signs is nothing.
#[test]
fn a_host_makes_no_hosts() {
    let fabric = Fabric::new();
    let pair = new_host(&fabric.0.key, 1, SystemTime::now(), Duration::from_secs(3600)).expect("a host");
    let forged = new_host(&pair.key, 3, SystemTime::now(), Duration::from_secs(3600)).expect("a host");
    let error = dial(&fabric.identity(&forged), 2, &fabric.host(2)).unwrap_err();
    assert!(error.starts_with("server: "), "{error}");
}

/// What a host can see of itself before it meets another one, and when it will be too late.
#[test]
fn a_host_knows_whether_others_would_believe_it() {
    let (fabric, other) = (Fabric::new(), Fabric::new());
    let now = SystemTime::now();
    let pair = new_host(&fabric.0.key, 3, now, Duration::from_secs(3600)).expect("a host");
    let host = fabric.identity(&pair);
    host.check(now).expect("believed");
    let end = host.ends().expect("an end");
    let left = end.duration_since(now).expect("it is to come").as_secs();
    assert!((3598..=3600).contains(&left), "{left}");
    // A month before its end it is time for a new one.
    assert_eq!((host.ends_soon(end - SOON - EVEN), host.ends_soon(end - SOON + EVEN)), (None, Some(end)));
    assert_eq!(host.ends_soon(end + SOON), Some(end));
    // At its end, and days before it was made.
    assert!(matches!(host.check(end + Duration::from_secs(2)), Err(Refused::Ended(seen)) if seen == end));
    assert!(matches!(host.check(now - Duration::from_secs(48 * 3600)), Err(Refused::Early(_))));
    // Of another authority, and with another's key.
    let strange = Identity::from_pem(&other.0.certificate, &pair).expect("three texts");
    assert!(matches!(strange.check(now), Err(Refused::Authority)));
    let key = new_host(&fabric.0.key, 3, now, Duration::from_secs(3600)).expect("a host").key;
    let mixed = Identity::from_pem(&fabric.0.certificate, &Pair { certificate: pair.certificate, key });
    assert!(matches!(mixed.expect("three texts").check(now), Err(Refused::OtherKey)));
    assert_eq!(date(SystemTime::UNIX_EPOCH + Duration::from_secs(951_782_400)), "2000-02-29");
}

#[test]
fn a_file_is_read_whole_or_not_at_all() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("file");
    for (len, whole) in [(LONGEST, true), (LONGEST + 1, false)] {
        fs::write(&path, "#".repeat(len as usize)).expect("written");
        assert_eq!(read(&path, false).is_ok_and(|text| text.len() as u64 == len), whole, "{len}");
    }
    assert!(matches!(read("/dev/zero".as_ref(), false), Err(Refused::TooLong { .. })));
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let fabric = Fabric::new();
    let pair = new_host(&fabric.0.key, 9, SystemTime::now(), Duration::from_secs(3600)).expect("a host");
    let path = |name: &str| folder.path().join(name);
    write_new(&path(CA), &fabric.0.certificate, 0o644).expect("written");
    write_new(&path(HOST), &pair.certificate, 0o644).expect("written");
    write_new(&path(HOST_KEY), &pair.key, 0o600).expect("written");
    assert_eq!(Identity::load(folder.path()).expect("an identity").number(), 9);
    for mode in [0o640, 0o604, 0o660, 0o610] {
        fs::set_permissions(path(HOST_KEY), fs::Permissions::from_mode(mode)).expect("our file");
        let error = Identity::load(folder.path()).err().expect("refused");
        assert!(matches!(error, Refused::Readable { mode: seen, .. } if seen == mode), "{error}");
    }
    // Nothing is written over.
    assert!(matches!(write_new(&path(HOST_KEY), "", 0o600), Err(Refused::File { .. })));
}

#[test]
fn without_certificates_there_is_only_loopback() {
    for (address, plain) in [("127.0.0.1", true), ("127.9.9.9", true), ("::1", true), ("192.0.2.1", false)] {
        assert_eq!(may_be_plain(address.parse().expect("an address")), plain, "{address}");
    }
    assert!(!may_be_plain("::ffff:192.0.2.1".parse().expect("an address")));
    assert!(!may_be_plain("0.0.0.0".parse().expect("an address")));
}

#[test]
fn a_number_that_no_host_can_have_gets_no_certificate() {
    let fabric = Fabric::new();
    for number in [0, 255, 1000] {
        let made = new_host(&fabric.0.key, number, SystemTime::now(), Duration::from_secs(1));
        assert!(matches!(made, Err(Refused::Number(of)) if of == number));
    }
}
