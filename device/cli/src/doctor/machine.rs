//! The machine as the checks see it: files below a root folder, the environment, who asks.
//!
//! Everything but the self-test is read through here, so that a folder with made-up files stands for a machine; tests
//! make such folders, and an administrator may look at an image with `--root`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Where a loader without a cache looks for libraries of x86-64.
const LIBRARY_FOLDERS: [&str; 8] = [
    "/usr/local/lib/x86_64-linux-gnu",
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/local/lib",
    "/lib64",
    "/usr/lib64",
    "/lib",
    "/usr/lib",
];

/// What kind of place this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    Vmware,
    Qemu,
    Other,
}

pub struct Machine {
    root: PathBuf,
    /// Not the machine that this program runs on.
    made_up: bool,
    environment: BTreeMap<String, String>,
}

impl Machine {
    /// This one.
    pub fn this() -> Machine {
        let text = |value: std::ffi::OsString| value.to_string_lossy().into_owned();
        let environment = std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect();
        Machine { root: "/".into(), made_up: false, environment }
    }

    /// The one whose files lie below `root`; its environment is that of `/proc/self/environ` there.
    pub fn below(root: &Path) -> Machine {
        let mut machine = Machine { root: root.into(), made_up: true, environment: BTreeMap::new() };
        let environment = machine.bytes("/proc/self/environ").unwrap_or_default();
        machine.environment = String::from_utf8_lossy(&environment)
            .split('\0')
            .filter_map(|entry| entry.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        machine
    }

    pub fn is_made_up(&self) -> bool {
        self.made_up
    }

    /// Where `path` of the machine is for us.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    pub fn exists(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    pub fn bytes(&self, path: &str) -> Option<Vec<u8>> {
        fs::read(self.path(path)).ok()
    }

    /// The text of a file, without blanks around it.
    pub fn text(&self, path: &str) -> Option<String> {
        Some(String::from_utf8_lossy(&self.bytes(path)?).trim().to_owned())
    }

    /// The names in a folder, sorted.
    pub fn names(&self, folder: &str) -> Vec<String> {
        let mut names = self.names_as_read(folder);
        names.sort();
        names
    }

    /// The names in a folder, in the order in which readdir(3) gives them.
    pub fn names_as_read(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(folder)).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    /// The last part of what a link points to.
    pub fn link(&self, path: &str) -> Option<String> {
        let target = fs::read_link(self.path(path)).ok()?;
        Some(target.file_name()?.to_string_lossy().into_owned())
    }

    pub fn variable(&self, name: &str) -> Option<&str> {
        self.environment.get(name).map(String::as_str)
    }

    /// The folder that libibverbs takes for `/sys`.
    pub fn sysfs(&self) -> &str {
        self.variable("SYSFS_PATH").filter(|path| !path.is_empty()).unwrap_or("/sys").trim_end_matches('/')
    }

    /// Are we a program of `pvrdma run`?
    pub fn is_guest_of_run(&self) -> bool {
        self.variable("PVRDMA_NODE").is_some()
    }

    pub fn is_container(&self) -> bool {
        let marks = ["/.dockerenv", "/run/.containerenv"];
        let variables = ["container", "KUBERNETES_SERVICE_HOST"];
        marks.iter().any(|mark| self.exists(mark)) || variables.iter().any(|name| self.variable(name).is_some())
    }

    pub fn host(&self) -> Host {
        match self.text("/sys/class/dmi/id/sys_vendor").unwrap_or_default() {
            vendor if vendor.starts_with("VMware") => Host::Vmware,
            vendor if vendor.starts_with("QEMU") => Host::Qemu,
            _ => Host::Other,
        }
    }

    /// The value of a line `NAME: VALUE` of `/proc/self/status`.
    fn status(&self, name: &str) -> Option<String> {
        let status = self.text("/proc/self/status")?;
        let mut lines = status.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(key, _)| *key == name).map(|(_, value)| value.trim().to_owned())
    }

    /// The effective user and all groups.
    pub fn user(&self) -> Option<(u32, Vec<u32>)> {
        let numbers = |name| -> Option<Vec<u32>> {
            self.status(name)?.split_whitespace().map(|number| number.parse().ok()).collect()
        };
        let user = *numbers("Uid")?.get(1)?;
        let mut groups = numbers("Groups").unwrap_or_default();
        groups.extend(numbers("Gid")?.get(1));
        Some((user, groups))
    }

    pub fn has_capability(&self, number: u32) -> bool {
        let mask = self.status("CapEff").and_then(|mask| u64::from_str_radix(&mask, 16).ok());
        mask.is_some_and(|mask| mask & 1 << number != 0)
    }

    /// A library that the loader would find, by its path on the machine.
    pub fn library(&self, name: &str) -> Option<String> {
        let variable = self.variable("LD_LIBRARY_PATH").unwrap_or_default();
        let before = variable.split([':', ';']).filter(|folder| !folder.is_empty());
        let cache = self.bytes("/etc/ld.so.cache").unwrap_or_default();
        let ending = format!("/{name}");
        let cached = cache.split(|&byte| byte == 0).filter(|entry| entry.ends_with(ending.as_bytes()));
        before
            .map(|folder| format!("{folder}{ending}"))
            .chain(cached.map(|entry| String::from_utf8_lossy(entry).into_owned()))
            .chain(LIBRARY_FOLDERS.iter().map(|folder| format!("{folder}{ending}")))
            .find(|path| path.starts_with('/') && self.is_library(path))
    }

    /// A shared library for x86-64?
    fn is_library(&self, path: &str) -> bool {
        use std::io::Read;
        let mut head = [0; 20];
        let read = fs::File::open(self.path(path)).and_then(|mut file| file.read_exact(&mut head));
        read.is_ok() && head.starts_with(b"\x7fELF\x02\x01") && head[18] == libc::EM_X86_64 as u8
    }
}
