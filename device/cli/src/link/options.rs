//! The command line of `pvrdma link`: which command, and that it was given what it takes and nothing else.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use lexopt::prelude::*;
use pvrdma_device::guest::Guest;
use pvrdma_device::handle::gid_of;
use pvrdma_link::Choice;
use pvrdma_link::gateway::Port;
use pvrdma_net::fabric;
use pvrdma_net::gids::MAX_HOST;

use crate::{Usage, options};

/// Where a host listens, unless it is said. On loopback the number of the host is added to the one before.
pub const PORT: u16 = 7471;

/// The commands, for completion.
pub const COMMANDS: &str = "init add join renew remove list run status";

#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    Init(Init),
    Add(Add),
    Join(PathBuf),
    Update(PathBuf),
    Renew(String),
    Remove(String),
    List { json: bool },
    Run(Run),
    Status { json: bool },
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Run {
    pub listen: Option<SocketAddr>,
    /// Where this host speaks RoCE.
    pub wire: Option<Port>,
    pub capture: Option<PathBuf>,
    /// What carries payload to other hosts.
    pub hca: Choice,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Init {
    /// `None`: the machine's.
    pub name: Option<String>,
    pub number: u16,
    /// Always there, but on loopback.
    pub address: Option<SocketAddr>,
    pub loopback: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Add {
    pub name: String,
    pub number: Option<u16>,
    pub address: Option<SocketAddr>,
}

/// All that can be on the line; what was there is taken out.
#[derive(Default)]
struct Given {
    words: Vec<OsString>,
    address: Option<SocketAddr>,
    listen: Option<SocketAddr>,
    wire: Option<Port>,
    capture: Option<PathBuf>,
    hca: Option<Choice>,
    name: Option<String>,
    number: Option<u16>,
    loopback: bool,
    update: bool,
    json: bool,
}

/// The command, and the folder that was named. `None`: only the help text was wanted.
pub fn parse(args: Vec<OsString>) -> anyhow::Result<Option<(Command, Option<PathBuf>)>> {
    let mut given = Given::default();
    let mut folder = None;
    let mut args = lexopt::Parser::from_args(args);
    while let Some(arg) = args.next()? {
        match arg {
            Long("address") => given.address = Some(address(&args.value()?.string()?)?),
            Long("listen") => given.listen = Some(listen(&args.value()?.string()?)?),
            Long("roce-wire") if given.wire.is_some() => {
                return Err(Usage("--roce-wire is given twice, and one gateway has one".into()).into());
            }
            Long("roce-wire") => given.wire = Some(wire(&args.value()?.string()?)?),
            Long("pcap") => given.capture = Some(options::file(&mut args, "--pcap")?),
            Long("hca") => given.hca = Some(hca(&args.value()?.string()?)?),
            Long("name") => given.name = Some(name(args.value()?)?),
            Long("number") => given.number = Some(number(&args.value()?.string()?)?),
            Long("loopback") => given.loopback = true,
            Long("update") => given.update = true,
            Long("json") => given.json = true,
            Long("folder") => folder = Some(args.value()?.into()),
            Short('h') | Long("help") => return Ok(None),
            Value(word) => given.words.push(word),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(Some((given.command()?, folder)))
}

impl Given {
    fn command(mut self) -> Result<Command, Usage> {
        if self.words.is_empty() {
            return Err(Usage("no command of link; try pvrdma link --help".into()));
        }
        let first = self.words.remove(0);
        let first = first.to_string_lossy();
        let command = match &*first {
            "init" => Command::Init(Init {
                name: self.name.take(),
                number: self.number.take().unwrap_or(1),
                address: self.address.take(),
                loopback: std::mem::take(&mut self.loopback),
            }),
            "add" => Command::Add(Add {
                name: name(self.word("add", "the new host's name")?)?,
                number: self.number.take(),
                address: self.address.take(),
            }),
            "join" if std::mem::take(&mut self.update) => {
                Command::Update(self.word("join --update", "a fabric.toml")?.into())
            }
            "join" => Command::Join(self.word("join", "the file that `pvrdma link add` has written")?.into()),
            "renew" => Command::Renew(name(self.word("renew", "a host's name")?)?),
            "remove" => Command::Remove(name(self.word("remove", "a host's name")?)?),
            "list" => Command::List { json: std::mem::take(&mut self.json) },
            "run" => Command::Run(Run {
                listen: self.listen.take(),
                wire: self.wire.take(),
                capture: self.capture.take(),
                hca: self.hca.take().unwrap_or_default(),
            }),
            "status" => Command::Status { json: std::mem::take(&mut self.json) },
            _ => return Err(Usage(format!("unknown command link {first}; try pvrdma link --help"))),
        };
        self.is_empty(&first)?;
        if let Command::Init(Init { address: None, loopback: false, .. }) = command {
            return Err(Usage("init wants --address IP:PORT, where the other hosts reach this one".into()));
        }
        Ok(command)
    }

    fn word(&mut self, command: &str, what: &str) -> Result<OsString, Usage> {
        match self.words.is_empty() {
            true => Err(Usage(format!("{command} wants {what}; try pvrdma link --help"))),
            false => Ok(self.words.remove(0)),
        }
    }

    /// Nothing was said that the command has no use for.
    fn is_empty(&self, command: &str) -> Result<(), Usage> {
        let word = self.words.first().map(|word| word.to_string_lossy().into_owned());
        let more = [
            ("--address", self.address.is_some()),
            ("--listen", self.listen.is_some()),
            ("--roce-wire", self.wire.is_some()),
            ("--pcap", self.capture.is_some()),
            ("--hca", self.hca.is_some()),
            ("--name", self.name.is_some()),
            ("--number", self.number.is_some()),
            ("--loopback", self.loopback),
            ("--update", self.update),
            ("--json", self.json),
        ];
        match word.or(more.into_iter().find(|(_, given)| *given).map(|(option, _)| option.into())) {
            Some(what) => Err(Usage(format!("link {command} takes no {what}; try pvrdma link --help"))),
            None => Ok(()),
        }
    }
}

fn name(text: OsString) -> Result<String, Usage> {
    let text = text.to_string_lossy().into_owned();
    match fabric::is_name(&text) {
        true => Ok(text),
        false => Err(Usage(format!(
            "{text:?} is no name of a host: 1 to 63 letters, digits, - and ., the first a letter or digit"
        ))),
    }
}

fn number(text: &str) -> Result<u16, Usage> {
    let number = text.parse().ok().filter(|number| (1..=MAX_HOST).contains(number));
    number.ok_or_else(|| Usage(format!("a host's number is 1 to {MAX_HOST}, not {text:?}")))
}

/// `IP:PORT`, or the port is left out.
fn address(text: &str) -> Result<SocketAddr, Usage> {
    let without_port = || text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    let address = text.parse().or_else(|_| without_port().map(|ip| SocketAddr::new(ip, PORT)));
    let address: SocketAddr = address.map_err(|_| {
        Usage(format!("--address is IP:PORT, as 192.0.2.1:{PORT} or [2001:db8::1]:{PORT}, not {text:?}"))
    })?;
    match fabric::unreachable(address) {
        Some(why) => Err(Usage(format!("--address {text}: {why}"))),
        None => Ok(SocketAddr::new(address.ip().to_canonical(), address.port())),
    }
}

/// Where to listen: it may be any of the machine's addresses.
pub fn listen(text: &str) -> Result<SocketAddr, Usage> {
    let without_port = || text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    let address = text.parse().or_else(|_| without_port().map(|ip| SocketAddr::new(ip, PORT)));
    address.map_err(|_| Usage(format!("--listen is IP:PORT, as 0.0.0.0:{PORT}, not {text:?}")))
}

/// An address of this host that others can reach, and that is no guest's; or what may be the name of a network device.
fn wire(text: &str) -> Result<Port, Usage> {
    let Ok(address) = text.parse::<IpAddr>() else {
        let is_name = (1..16).contains(&text.len()) && !text.contains(|c: char| c.is_whitespace() || "/:".contains(c));
        let not_one = || Usage(format!("--roce-wire is an IP address or a network device, not {text:?}"));
        return is_name.then(|| Port::Device(text.into())).ok_or_else(not_one);
    };
    let address = address.to_canonical();
    if Guest::of(&gid_of(address)).is_some() {
        return Err(Usage(format!("--roce-wire {text}: that is a guest's address, and has to be this machine's")));
    }
    match fabric::unreachable(SocketAddr::new(address, PORT)) {
        Some(why) => Err(Usage(format!("--roce-wire {text}: {why}"))),
        None => Ok(Port::Address(address)),
    }
}

/// The adapter that carries payload to other hosts.
pub fn hca(text: &str) -> Result<Choice, Usage> {
    match text.is_empty() || text.contains('/') {
        true => Err(Usage(format!("--hca is the name of an RDMA device, auto or none, not {text:?}"))),
        false => Ok(text.parse().unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &str) -> anyhow::Result<Option<(Command, Option<PathBuf>)>> {
        parse(words.split_whitespace().map(Into::into).collect())
    }

    fn command(words: &str) -> Command {
        parsed(words).unwrap().unwrap().0
    }

    fn at(text: &str) -> Option<SocketAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn commands_take_what_they_need() {
        let init = |name: Option<&str>, number, address, loopback| {
            Command::Init(Init { name: name.map(str::to_owned), number, address, loopback })
        };
        assert_eq!(command("init --address 192.0.2.1:1"), init(None, 1, at("192.0.2.1:1"), false));
        assert_eq!(command("init --loopback --number 7 --name red"), init(Some("red"), 7, None, true));
        let add = |number, address| Command::Add(Add { name: "blue".into(), number, address });
        assert_eq!(command("add blue --address [::1]:5"), add(None, at("[::1]:5")));
        assert_eq!(command("--number 9 add blue"), add(Some(9), None));
        assert_eq!(command("join a.join"), Command::Join("a.join".into()));
        assert_eq!(command("join --update fabric.toml"), Command::Update("fabric.toml".into()));
        assert_eq!(command("join fabric.toml --update"), Command::Update("fabric.toml".into()));
        assert_eq!(command("renew blue"), Command::Renew("blue".into()));
        assert_eq!(command("remove blue"), Command::Remove("blue".into()));
        assert_eq!(command("list --json"), Command::List { json: true });
        assert_eq!(parsed("list --folder x").unwrap().unwrap(), (Command::List { json: false }, Some("x".into())));
        let wire = |port| Command::Run(Run { wire: Some(port), ..Run::default() });
        let address = Port::Address("192.0.2.1".parse().unwrap());
        assert_eq!(command("run --roce-wire ::ffff:192.0.2.1"), wire(address));
        assert_eq!(command("run --roce-wire enp1s0.7"), wire(Port::Device("enp1s0.7".into())));
        let run = |hca| Command::Run(Run { hca, ..Run::default() });
        assert_eq!(command("run"), run(Choice::None));
        assert_eq!(command("run --hca none"), run(Choice::None));
        assert_eq!(command("run --hca auto"), run(Choice::Auto));
        assert_eq!(command("run --hca mlx5_0"), run(Choice::Named("mlx5_0".into())));
        assert!(parsed("run --hca /dev/x").is_err() && parsed("status --hca auto").is_err());
        assert!(parsed("add --help").unwrap().is_none());
    }

    #[test]
    fn an_address_needs_no_port_and_is_an_address() {
        for (text, is) in [
            ("192.0.2.1", "192.0.2.1:7471"),
            ("2001:db8::1", "[2001:db8::1]:7471"),
            ("[2001:db8::1]", "[2001:db8::1]:7471"),
            ("[2001:db8::1]:5", "[2001:db8::1]:5"),
            ("::ffff:192.0.2.1", "192.0.2.1:7471"),
        ] {
            assert_eq!(address(text).ok(), at(is), "{text}");
        }
        for text in ["", "red", "red:7471", "192.0.2.1:0", "192.0.2.1:65536", "0.0.0.0", "::", "224.0.0.1", "fe80::1"] {
            assert!(address(text).is_err(), "{text}");
        }
    }

    #[test]
    fn mistakes_are_refused() {
        for words in [
            "",
            "ini",
            "init",
            "init red --loopback",
            "init --loopback --number 0",
            "init --loopback --number 255",
            "init --loopback --name a_b",
            "init --loopback --json",
            "add",
            "add -x",
            "add ../x --address 192.0.2.1",
            "add blue green",
            "add blue --loopback",
            "add blue --name red",
            "join",
            "join --update",
            "join a b",
            "join a --number 3",
            "renew",
            "renew a --number 2",
            "remove",
            "remove a --update",
            "list a",
            "list --address 192.0.2.1",
            "list --folder",
            "list --pcap f",
            "run --pcap -",
            "run --roce-wire a/b",
            "run --roce-wire 192.0.2.1:4791",
            "run --roce-wire longer-than-names",
            "run --roce-wire 0.0.0.0",
            "run --roce-wire 224.0.0.1",
            "run --roce-wire 127.0.82.1",
            "run --roce-wire fe80::1",
            "status --roce-wire 192.0.2.1",
        ] {
            assert!(parsed(words).is_err(), "{words}");
        }
    }
}
