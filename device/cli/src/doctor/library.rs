//! The libibverbs that programs load, and what is built into it.

use super::machine::Machine;
use super::report::Finding;
use crate::provider::PRIVATE_ABIS;

/// What a libibverbs says of itself.
pub struct Library {
    pub path: String,
    /// Its private ABI, which is in the names of providers: `-rdmav34.so`.
    pub abi: u32,
    /// Where it looks for providers first.
    pub providers: Option<String>,
    /// Where its `.driver` files are.
    pub configuration: String,
}

impl Library {
    pub fn find(machine: &Machine) -> Option<Library> {
        let path = machine.library("libibverbs.so.1")?;
        let bytes = machine.bytes(&path)?;
        // What printf(3) is given for a provider's file name, with the folder before it if it has one.
        let names = strings(&bytes, b"lib%s-rdmav");
        let providers = names.iter().find_map(|name| name.strip_suffix_from("/lib%s-rdmav"));
        let configuration = strings(&bytes, b"/libibverbs.d").first().map(|text| text.0.clone());
        Some(Library {
            abi: number_after(&bytes, b"IBVERBS_PRIVATE_")?,
            providers,
            configuration: configuration.unwrap_or_else(|| "/etc/libibverbs.d".to_owned()),
            path,
        })
    }

    /// What it appends to a provider's name.
    pub fn suffix(&self) -> String {
        format!("-rdmav{}.so", self.abi)
    }
}

/// A string of a binary.
struct Text(String);

impl Text {
    fn strip_suffix_from(&self, from: &str) -> Option<String> {
        self.0.split_once(from).map(|(before, _)| before.to_owned())
    }
}

/// Strings of C that contain `part`.
fn strings(bytes: &[u8], part: &[u8]) -> Vec<Text> {
    let contains = |text: &&[u8]| text.len() < 4096 && text.windows(part.len()).any(|window| window == part);
    let texts = bytes.split(|&byte| byte == 0).filter(contains);
    texts.map(|text| Text(String::from_utf8_lossy(text).into_owned())).collect()
}

/// The number that follows `part`.
fn number_after(bytes: &[u8], part: &[u8]) -> Option<u32> {
    let at = bytes.windows(part.len()).position(|window| window == part)? + part.len();
    let digits: String = bytes[at..].iter().map(|&byte| char::from(byte)).take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// The newest `GLIBC_2.N` that a binary mentions: what it wants, or for libc itself what it has.
pub fn glibc(bytes: &[u8]) -> Option<u32> {
    let part = b"GLIBC_2.";
    let places = bytes.windows(part.len()).enumerate().filter(|(_, window)| window == part);
    places.filter_map(|(at, _)| number_after(&bytes[at..], part)).max()
}

pub fn check(machine: &Machine, library: Option<&Library>) -> Vec<Finding> {
    let Some(library) = library else {
        let finding = Finding::fail("libibverbs", "no libibverbs.so.1 of x86-64 that the loader would find");
        let cure = "install it (Debian, Ubuntu: libibverbs1; Fedora, RHEL: libibverbs)";
        return vec![match machine.exists("/etc/debian_version") {
            true => finding.cure(cure).command("sudo apt-get install libibverbs1 ibverbs-providers"),
            false => finding.cure(cure),
        }];
    };
    let Library { path, abi, .. } = library;
    let what = format!("{path}{}, private ABI {abi}", release(machine, path));
    vec![match PRIVATE_ABIS.contains(abi) {
        true => Finding::ok("libibverbs", what),
        false => Finding::warn("libibverbs", what + ", which our provider does not know")
            .cure("take a newer release of this provider; until then the C provider of the machine serves"),
    }]
}

/// rdma-core's release, which the file's whole name ends with.
fn release(machine: &Machine, path: &str) -> String {
    let file = machine.path(path).canonicalize().unwrap_or_default();
    let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let numbers = name.strip_prefix("libibverbs.so.").unwrap_or_default().split('.').collect::<Vec<_>>();
    match numbers[..] {
        [_, _, major, minor] => format!(" (rdma-core {major}.{minor})"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binary_tells_what_is_built_in() {
        let bytes = b"\0IBVERBS_PRIVATE_34\0lib%s-rdmav34.so\0/x/libibverbs/lib%s-rdmav34.so\0GLIBC_2.34\0GLIBC_2.4\0";
        assert_eq!(number_after(bytes, b"IBVERBS_PRIVATE_"), Some(34));
        let names = strings(bytes, b"lib%s-rdmav");
        let folder = names.iter().find_map(|name| name.strip_suffix_from("/lib%s-rdmav"));
        assert_eq!(folder.as_deref(), Some("/x/libibverbs"));
        assert_eq!(glibc(bytes), Some(34));
        assert_eq!(glibc(b"nothing"), None);
    }
}
