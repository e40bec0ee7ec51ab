//! Any bytes in the place of a host's settings, or of the file by which it joins: for tests, and for libFuzzer.
//!
//! The first byte picks the text, the others are it. Whatever they are, nothing panics; what was taken for sense is the
//! same when it is written and read again; and what is wrong is said in one line of a sensible length, in which nothing
//! is that a terminal or a log would obey.

use crate::fabric::{self, FabricHost};
use crate::folder;
use crate::identity::{self, Identity, Pair};
use crate::issued::Issued;
use crate::join::Join;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::fmt::Display;
use std::time::{Duration, SystemTime};

/// Any time.
const NOW: Duration = Duration::from_secs(1_700_000_000);

/// Whether anything was taken for sense.
pub fn run(bytes: &[u8]) -> bool {
    let Some((kind, bytes)) = bytes.split_first() else { return false };
    if *kind == b'c' {
        return certificate(bytes);
    }
    let text = String::from_utf8_lossy(bytes);
    match kind {
        b'f' => judged(fabric::parse(&text), |hosts| {
            assert_eq!(fabric::parse(&fabric::text(&hosts)), Ok(hosts));
        }),
        b'j' => judged(Join::parse(&text), |read| {
            let again = Join::parse(&read.text()).unwrap_or_else(|error| panic!("{error}\n{}", read.text()));
            assert_eq!(parts(&again), parts(&read));
            if let Some((ca, pair)) = &read.certificates {
                judged(Identity::from_pem(ca, pair), |identity| believed(&identity));
            }
        }),
        b'i' => judged(Issued::parse(&text), |issued| assert_eq!(Issued::parse(&issued.text()), Ok(issued))),
        b'n' => folder::number_of(&text).is_some_and(|number| folder::number_of(&number.to_string()) == Some(number)),
        _ => false,
    }
}

fn judged<T, E: Display>(read: Result<T, E>, then: impl FnOnce(T)) -> bool {
    match read {
        Ok(read) => {
            then(read);
            true
        }
        Err(error) => {
            let error = error.to_string();
            assert!(!error.contains(char::is_control) && error.len() < 500, "{error:?}");
            false
        }
    }
}

fn parts(join: &Join) -> (u16, Option<[&str; 3]>, &[FabricHost]) {
    let certificates = join.certificates.as_ref();
    let texts = certificates.map(|(ca, host)| [ca.as_str(), host.certificate.as_str(), host.key.as_str()]);
    (join.number, texts, &join.hosts)
}

fn believed(identity: &Identity) {
    let now = SystemTime::UNIX_EPOCH + NOW;
    judged(identity.check(now), drop);
    if let Some(end) = identity.ends() {
        assert!(!identity::date(end).is_empty());
    }
    identity.ends_soon(now);
}

/// A certificate as it comes, of a host and of an authority.
fn certificate(bytes: &[u8]) -> bool {
    let certificate = || CertificateDer::from(bytes.to_vec());
    let number = identity::number_of(&certificate());
    let key = || PrivateKeyDer::from(PrivatePkcs8KeyDer::from(Vec::new()));
    judged(Identity::new(certificate(), certificate(), key()), |identity| {
        assert_eq!(Some(identity.number()), number);
        believed(&identity);
    });
    number.is_some()
}

fn pem(what: &str) -> String {
    format!("-----BEGIN {what}-----\nMAA=\n-----END {what}-----\n")
}

/// Texts that are as they should be, for a start.
pub fn samples() -> Vec<Vec<u8>> {
    let host = |number, name: &str, address: &str| FabricHost {
        number,
        name: name.into(),
        address: address.parse().expect("an address"),
    };
    let hosts = vec![host(1, "red", "127.0.0.1:7471"), host(254, "blue.example", "[::1]:7472")];
    let pair = Pair { certificate: pem("CERTIFICATE"), key: pem("PRIVATE KEY") };
    let join = |certificates| Join { number: 1, certificates, hosts: hosts.clone() }.text();
    [
        ("f", fabric::text(&hosts)),
        ("j", join(None)),
        ("j", join(Some((pem("CERTIFICATE"), pair)))),
        ("i", "1 2036-11-25 red\n254 2036-11-26 blue.example\n".to_owned()),
        ("n", "254\n".to_owned()),
    ]
    .map(|(kind, text)| [kind, &text].concat().into_bytes())
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Rng, replay};

    #[test]
    fn random_changes_harm_nobody() {
        let mut rng = Rng::new(1);
        let samples = samples();
        assert!(samples.iter().all(|sample| run(sample)));
        let (mut taken, mut refused) = (0, 0);
        for n in 0..4_000 {
            let mut bytes = samples[n % samples.len()].clone();
            for _ in 0..=rng.below(3) {
                let at = 1 + rng.below(bytes.len() as u64 - 1) as usize;
                match rng.below(3) {
                    0 => bytes[at] = rng.word() as u8,
                    1 => bytes.insert(at, b"'\"\\\n\r[]={}#\x1b0"[rng.below(13) as usize]),
                    _ if bytes.len() > 3 => drop(bytes.remove(at)),
                    _ => {}
                }
            }
            let is_taken = run(&bytes);
            (taken, refused) = (taken + u32::from(is_taken), refused + u32::from(!is_taken));
        }
        assert!(taken > 100 && refused > 100, "{taken} {refused}");
    }

    /// A file may be anybody's: what is printed of it is letters, not orders to a terminal, and not all of it.
    #[test]
    fn what_is_said_of_a_file_is_one_line_that_nobody_obeys() {
        for text in [
            "\"a\\nb\" = 1",
            "\"\\u001b[2J\" = 1",
            &format!("{} = 1", "a".repeat(5000)),
            &format!("\"{}\" = 1", "é".repeat(500)),
        ] {
            for kind in ["f", "jversion = 1\n"] {
                assert!(!run(format!("{kind}{text}").as_bytes()), "{text}");
            }
            assert!(!run(format!("f[[host]]\n{text}").as_bytes()), "{text}");
        }
    }

    /// What is in a certificate's place is text that a file can have there.
    #[test]
    fn a_text_that_would_not_be_read_again_is_refused() {
        let samples = samples();
        let good = std::str::from_utf8(&samples[2]).unwrap();
        for bad in ["\\u0000", "'''", "\\u001b", "\\r", "é"] {
            let bad = good.replacen(&format!("ca = '''\n{}'''", pem("CERTIFICATE")), &format!("ca = \"{bad}\""), 1);
            assert_ne!(bad, good);
            assert!(!run(bad.as_bytes()), "{bad}");
        }
    }

    #[test]
    fn inputs_that_a_fuzzer_kept_harm_nobody() {
        replay(concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/settings"), 4, run);
    }
}
