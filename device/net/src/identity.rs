//! Who a host is: a certificate of its fabric with the host's number in its name, and what TLS makes of it.
//!
//! A fabric has an authority of its own, and nobody else's counts. Both ends show a certificate; the one that dials
//! wants the number that it has dialed, and the one that was called learns the number from the certificate, which the
//! greeting must repeat (`Hosts::prove`). A session is never resumed and nothing is said before the handshake's end, so
//! nothing of one connection can be used in another.
//!
//! Private keys are for their owner alone: a file that others can read is refused.
//!
//! A certificate that is renewed has a new key. Both come into the host's folder as one file, so that they change at
//! once: a key's file may hold the key's certificate, and that one counts for more than `host.pem`.

use crate::gids::MAX_HOST;
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{CertificateError, ClientConfig, RootCertStore, ServerConfig};
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use thiserror::Error;
use time::OffsetDateTime;

/// How long certificates are good for.
pub const GOOD_FOR: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// A certificate that ends within this time is to be renewed.
pub const SOON: Duration = Duration::from_secs(30 * 24 * 3600);
/// Clocks of hosts differ: a certificate is good a day before it was made.
const EARLIER: Duration = Duration::from_secs(24 * 3600);

/// The authority's certificate; every host has it.
pub const CA: &str = "ca.pem";
/// The authority's key; it stays where the fabric was made.
pub const CA_KEY: &str = "ca.key";
/// A host's certificate.
pub const HOST: &str = "host.pem";
/// A host's key.
pub const HOST_KEY: &str = "host.key";

/// No file here is longer.
pub const LONGEST: u64 = 512 * 1024;
/// The last second of the year 9999, beyond any certificate's end.
const END_OF_TIME: Duration = Duration::from_secs(253_402_300_799);

/// Why there is no identity.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Refused {
    #[error("{path}: {error}", path = .path.display())]
    File { path: PathBuf, error: io::Error },
    #[error("{path} can be read by others (mode {mode:o}); make it 600, or better a new key", path = .path.display())]
    Readable { path: PathBuf, mode: u32 },
    #[error("{path} belongs to user {owner}; run this as that user, or give the file to who runs it", path = .path.display())]
    NotOurs { path: PathBuf, owner: u32 },
    #[error("{path} is longer than {LONGEST} bytes", path = .path.display())]
    TooLong { path: PathBuf },
    #[error("{path} holds no key or certificate", path = .path.display())]
    Pem { path: PathBuf },
    #[error("a host's number is 1 to {MAX_HOST}, not {0}")]
    Number(u16),
    #[error("no certificate could be made: {0}")]
    Make(#[from] rcgen::Error),
    #[error("the certificate is for no host of a fabric")]
    NoHost,
    #[error("the certificate was not made by this fabric's authority")]
    Authority,
    #[error("the certificate ended on {}; `pvrdma link renew`, where the fabric was made, makes a new one", date(*.0))]
    Ended(SystemTime),
    #[error("the certificate begins on {} only: is this machine's clock right?", date(*.0))]
    Early(SystemTime),
    #[error("the key is not that of the certificate")]
    OtherKey,
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    #[error("TLS: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// A certificate and its key, as text.
pub struct Pair {
    /// PEM.
    pub certificate: String,
    /// PEM.
    pub key: String,
}

impl Pair {
    /// Both as the text of a key's file, which takes the place of an older one at once.
    pub fn as_key_file(&self) -> String {
        format!("{}{}", self.key, self.certificate)
    }
}

fn name_of(number: u16) -> String {
    format!("host-{number}.pvrdma")
}

/// What the one who dials a host wants to see in its certificate.
pub fn server_name(number: u16) -> ServerName<'static> {
    ServerName::try_from(name_of(number)).expect("it is a name of letters, digits, dash and dot")
}

/// The authority's certificate, but for its key. It is the same for all fabrics: the key tells them apart.
fn authority(now: SystemTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "pvrdma fabric");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = OffsetDateTime::from(now - EARLIER);
    params.not_after = OffsetDateTime::from(now + GOOD_FOR);
    params
}

/// The authority of a new fabric.
pub fn new_fabric(now: SystemTime) -> Result<Pair, Refused> {
    let key = KeyPair::generate()?;
    let certificate = authority(now).self_signed(&key)?;
    Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
}

/// A host of the fabric whose authority has `ca_key`.
pub fn new_host(ca_key: &str, number: u16, now: SystemTime, good_for: Duration) -> Result<Pair, Refused> {
    if !(1..=MAX_HOST).contains(&number) {
        return Err(Refused::Number(number));
    }
    let issuer = Issuer::new(authority(now), KeyPair::from_pem(ca_key)?);
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(vec![name_of(number)])?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name_of(number));
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.not_before = OffsetDateTime::from(now - EARLIER);
    params.not_after = OffsetDateTime::from(now + good_for);
    let certificate = params.signed_by(&key, &issuer)?;
    Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
}

/// The day of a time, as `2036-11-25`.
pub fn date(time: SystemTime) -> String {
    OffsetDateTime::from(time).date().to_string()
}

/// Writes a file that was not there, with these permission bits whatever the umask. It is on the disk afterwards.
pub fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), Refused> {
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(|error| Refused::File { path: path.into(), error })
}

/// Text of a file. A private one is its owner's alone; what is checked is the file that is then read.
pub fn read(path: &Path, private: bool) -> Result<String, Refused> {
    let broken = |error| Refused::File { path: path.into(), error };
    let file = fs::File::open(path).map_err(broken)?;
    let found = file.metadata().map_err(broken)?;
    if private {
        if found.uid() != whose_we_are().map_err(broken)? {
            return Err(Refused::NotOurs { path: path.into(), owner: found.uid() });
        }
        if found.mode() & 0o077 != 0 {
            return Err(Refused::Readable { path: path.into(), mode: found.mode() & 0o777 });
        }
    }
    let mut text = String::new();
    let len = file.take(LONGEST + 1).read_to_string(&mut text).map_err(broken)?;
    // Half of a file may well be a file.
    match len as u64 > LONGEST {
        true => Err(Refused::TooLong { path: path.into() }),
        false => Ok(text),
    }
}

/// Our user. No call for it is in std, so a file of our own tells.
pub(crate) fn whose_we_are() -> io::Result<u32> {
    Ok(fs::metadata("/proc/self")?.uid())
}

/// Whether a connection from or to this address may be without certificates.
pub fn may_be_plain(address: IpAddr) -> bool {
    address.is_loopback()
}

/// Whose certificate this is, once TLS has found that it is of the fabric.
pub fn number_of(certificate: &CertificateDer<'_>) -> Option<u16> {
    let parsed = ParsedCertificate::try_from(certificate).ok()?;
    (1..=MAX_HOST).find(|number| rustls::client::verify_server_name(&parsed, &server_name(*number)).is_ok())
}

/// What a host shows, and whom it believes.
pub struct Identity {
    number: u16,
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl Identity {
    /// Reads the files of a host.
    pub fn load(folder: &Path) -> Result<Identity, Refused> {
        let (ca, host, key) = (folder.join(CA), folder.join(HOST), folder.join(HOST_KEY));
        let mut pair = Pair { certificate: read(&host, false)?, key: read(&key, true)? };
        if CertificateDer::from_pem_slice(pair.key.as_bytes()).is_ok() {
            // A renewed one. Whoever renewed it may have been killed before `host.pem` was replaced as well.
            pair.certificate.clone_from(&pair.key);
        }
        Identity::from_pem(&read(&ca, false)?, &pair).map_err(|refused| match refused {
            Refused::Pem { path } => Refused::Pem { path: folder.join(path) },
            other => other,
        })
    }

    /// From the text of a host's files.
    pub fn from_pem(ca: &str, host: &Pair) -> Result<Identity, Refused> {
        let certificate = |pem: &str, name: &str| {
            CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| Refused::Pem { path: name.into() })
        };
        let key = PrivateKeyDer::from_pem_slice(host.key.as_bytes());
        let key = key.map_err(|_| Refused::Pem { path: HOST_KEY.into() })?;
        Identity::new(certificate(ca, CA)?, certificate(&host.certificate, HOST)?, key)
    }

    /// From an authority's certificate, and a host's with its key.
    pub fn new(
        ca: CertificateDer<'static>,
        certificate: CertificateDer<'static>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Identity, Refused> {
        let mut roots = RootCertStore::empty();
        roots.add(ca)?;
        let number = number_of(&certificate).ok_or(Refused::NoHost)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        Ok(Identity { number, certificate, key, roots: Arc::new(roots), provider })
    }

    /// Its number.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// Whether other hosts would believe it now.
    pub fn check(&self, now: SystemTime) -> Result<(), Refused> {
        self.judge(now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())?;
        // It compares key and certificate.
        match self.server() {
            Err(Refused::Tls(rustls::Error::InconsistentKeys(_))) => Err(Refused::OtherKey),
            other => other.map(drop),
        }
    }

    /// Whether both have one certificate.
    pub fn is_the_same(&self, other: &Identity) -> bool {
        self.certificate == other.certificate
    }

    /// Whether both believe the hosts of one fabric.
    pub fn has_the_authority_of(&self, other: &Identity) -> bool {
        self.roots.roots == other.roots.roots
    }

    /// When its certificate ends.
    pub fn ends(&self) -> Option<SystemTime> {
        // A certificate is judged by its times first, and the judge says which they are.
        match self.judge(END_OF_TIME) {
            Err(Refused::Ended(end)) => Some(end),
            _ => None,
        }
    }

    /// When its certificate ends, if that is past or soon.
    pub fn ends_soon(&self, now: SystemTime) -> Option<SystemTime> {
        self.ends().filter(|end| *end <= now + SOON)
    }

    /// What others say of its certificate at this time, since 1970.
    fn judge(&self, time: Duration) -> Result<(), Refused> {
        let since_1970 = |time: UnixTime| SystemTime::UNIX_EPOCH + Duration::from_secs(time.as_secs());
        let judged =
            self.verifier()?.verify_client_cert(&self.certificate, &[], UnixTime::since_unix_epoch(time)).map(drop);
        judged.map_err(|error| match error {
            rustls::Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. }) => {
                Refused::Ended(since_1970(not_after))
            }
            rustls::Error::InvalidCertificate(CertificateError::NotValidYetContext { not_before, .. }) => {
                Refused::Early(since_1970(not_before))
            }
            rustls::Error::InvalidCertificate(CertificateError::BadSignature | CertificateError::UnknownIssuer) => {
                Refused::Authority
            }
            other => Refused::Tls(other),
        })
    }

    fn verifier(&self) -> Result<Arc<dyn ClientCertVerifier>, Refused> {
        Ok(WebPkiClientVerifier::builder_with_provider(self.roots.clone(), self.provider.clone()).build()?)
    }

    /// For the end that dials; it wants [`server_name`] of the host.
    pub fn client(&self) -> Result<ClientConfig, Refused> {
        let builder = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(self.roots.clone());
        let mut config = builder.with_client_auth_cert(vec![self.certificate.clone()], self.key.clone_key())?;
        config.resumption = Resumption::disabled();
        Ok(config)
    }

    /// For the end that is called; it asks [`number_of`] the certificate whose it is.
    pub fn server(&self) -> Result<ServerConfig, Refused> {
        let builder = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(self.verifier()?);
        let mut config = builder.with_single_cert(vec![self.certificate.clone()], self.key.clone_key())?;
        config.send_tls13_tickets = 0;
        Ok(config)
    }
}
