//! Which way a device has to a peer, and which ways it may use.

use std::fmt::{self, Display, Formatter};
use std::str::FromStr;

/// A way to a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Path {
    /// There is none, or none that may be used.
    #[default]
    None,
    /// The peer's device is of this host: bytes are copied.
    Memory,
    /// It is of another host, to which there is a link over TCP.
    Tcp {
        /// The host's number.
        host: u16,
    },
    /// The same, and adapters of both hosts carry what the link carries.
    Hca {
        /// The host's number.
        host: u16,
    },
    /// It is no device of ours, or not known to be one: RoCE packets go to its address.
    Roce,
}

impl Path {
    /// Its number, in a `vendor_err` for instance.
    pub fn code(self) -> u8 {
        match self {
            Path::None => 0,
            Path::Memory => 1,
            Path::Tcp { .. } => 2,
            Path::Hca { .. } => 3,
            Path::Roce => 4,
        }
    }

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Path::None => "none",
            Path::Memory => "memory",
            Path::Tcp { .. } => "tcp",
            Path::Hca { .. } => "hca",
            Path::Roce => "roce",
        }
    }
}

/// As a trace has it: `memory`, `tcp host=2`.
impl Display for Path {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match self {
            Path::Tcp { host } | Path::Hca { host } => write!(f, " host={host}"),
            Path::None | Path::Memory | Path::Roce => Ok(()),
        }
    }
}

/// The paths that may be used: all, unless somebody says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paths(u32);

/// A list that names no paths.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("path {0:?}: there are memory, tcp and roce")]
pub struct BadPaths(String);

impl Default for Paths {
    fn default() -> Paths {
        Paths(Paths::MEMORY | Paths::TCP | Paths::ROCE)
    }
}

impl Paths {
    const MEMORY: u32 = 1 << 1;
    const TCP: u32 = 1 << 2;
    const ROCE: u32 = 1 << 4;

    /// Whether guests of the same host may be reached.
    pub fn memory(self) -> bool {
        self.0 & Paths::MEMORY != 0
    }

    /// Whether those of other hosts may: by the link to their host, over TCP or by adapters.
    pub fn tcp(self) -> bool {
        self.0 & Paths::TCP != 0
    }

    /// Whether adapters may, and whoever else speaks RoCE.
    pub fn roce(self) -> bool {
        self.0 & Paths::ROCE != 0
    }

    /// The same without that.
    pub fn without_roce(self) -> Paths {
        Paths(self.0 & !Paths::ROCE)
    }

    /// As a word, for others to see: bit n is path number n.
    pub fn bits(self) -> u32 {
        self.0
    }

    /// What such a word says. Bits that stand for no path are left out.
    pub fn from_bits(bits: u32) -> Paths {
        Paths(bits & Paths::default().0)
    }

    /// Those that are in both.
    pub fn and(self, other: Paths) -> Paths {
        Paths(self.0 & other.0)
    }
}

/// `PATH[,PATH...]`.
impl FromStr for Paths {
    type Err = BadPaths;

    fn from_str(list: &str) -> Result<Paths, BadPaths> {
        list.split(',').try_fold(Paths(0), |paths, name| match name {
            "memory" => Ok(Paths(paths.0 | Paths::MEMORY)),
            "tcp" => Ok(Paths(paths.0 | Paths::TCP)),
            "roce" => Ok(Paths(paths.0 | Paths::ROCE)),
            _ => Err(BadPaths(name.to_owned())),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_understood_or_refused() {
        let parsed = |list: &str| list.parse::<Paths>().map(|paths| (paths.memory(), paths.tcp(), paths.roce()));
        assert_eq!(parsed("memory,tcp"), Ok((true, true, false)));
        assert_eq!(parsed("roce,tcp"), Ok((false, true, true)));
        assert_eq!(parsed("memory,memory"), Ok((true, false, false)));
        for list in ["", "memory,", "hca", "Memory", "memory tcp"] {
            assert!(parsed(list).unwrap_err().to_string().contains("memory, tcp and roce"), "{list}");
        }
        let paths: Paths = "tcp".parse().unwrap();
        assert_eq!(Paths::default().without_roce(), "memory,tcp".parse().unwrap());
        assert_eq!(Paths::from_bits(paths.bits() | !0x17), paths);
        assert_eq!(paths.and("memory".parse().unwrap()), Paths::from_bits(0));
    }

    #[test]
    fn names_and_numbers() {
        let paths = [Path::None, Path::Memory, Path::Tcp { host: 2 }, Path::Hca { host: 2 }, Path::Roce];
        let texts = paths.map(|path| format!("{} {path}", path.code()));
        assert_eq!(texts, ["0 none", "1 memory", "2 tcp host=2", "3 hca host=2", "4 roce"]);
    }
}
