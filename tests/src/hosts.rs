//! Several hosts on one machine: a stand each, joined by `pvrdma link`.
//!
//! By default they are on addresses of the loopback device. [`Spaces`] gives each a network namespace of its own.

use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::{Job, Provider, Running, Spaces, Stand, User};

/// Longer than any test: whoever carries requests is not to end by itself.
const FOR_EVER: Duration = Duration::from_secs(6 * 3600);
/// Long enough for anything that must happen, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the status of a host says of a link that adapters carry.
pub const BY_ADAPTER: &str = "\"over\": \"hca\", \"hca\": \"vmw_pvrdma0\"";

/// How hosts know each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// `pvrdma link init --loopback`: they believe what is said to them.
    Plain,
    /// By certificates.
    Certificates,
}

/// A host: its guests, its settings, and the process that carries requests, if it runs.
pub struct Host {
    /// Its number in the fabric.
    pub number: usize,
    stand: Stand,
    /// Where it waits for others.
    address: SocketAddr,
    /// Where it speaks RoCE, if it is to.
    wire: IpAddr,
    gateway: Option<Running>,
}

impl Host {
    /// A program of a guest of this host: one that was copied there, or one of the machine's.
    pub fn job(&self, program: &str) -> Job<'_> {
        let copied = self.stand.path(program);
        if copied.exists() { self.stand.job(copied) } else { self.stand.job(program) }
    }

    /// A command of `pvrdma link`, which must go well, and what it says.
    pub fn link(&self, words: &[&str]) -> String {
        self.stand.pvrdma(&[&["link"], words].concat()).ok()
    }

    /// Its files.
    pub fn stand(&self) -> &Stand {
        &self.stand
    }

    /// Where it waits for others.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// An address of its first guest, for the connection manager.
    pub fn first_guest(&self) -> String {
        format!("127.{}.82.1", self.number)
    }

    /// Where it speaks RoCE when it was started so.
    pub fn wire(&self) -> IpAddr {
        self.wire
    }

    /// The process that carries requests.
    pub fn gateway(&self) -> &Running {
        self.gateway.as_ref().expect("it runs")
    }

    /// Starts it, and comes back when guests and other hosts can reach it.
    pub fn start(&mut self) {
        self.start_with(&[]);
    }

    /// The same with more options.
    pub fn start_with(&mut self, options: &[&str]) {
        let address = self.address.to_string();
        self.start_as(&[&["--listen", &address], options].concat());
    }

    /// Starts it with what it has for those who speak RoCE, and more options. It needs no settings.
    pub fn start_on_wire(&mut self, options: &[&str]) {
        let address = self.wire.to_string();
        self.start_as(&[&["--roce-wire", &address], options].concat());
    }

    fn start_as(&mut self, options: &[&str]) {
        let job = self.stand.pvrdma(&[&["link", "run"], options].concat());
        let mut gateway = job.time_out(FOR_EVER).spawn();
        gateway.wait_for_text("pvrdma link: ");
        self.gateway = Some(gateway);
    }

    /// Starts it as a guest of `outer`, whose device is its RDMA adapter, with options of `pvrdma run`.
    pub fn start_on(&mut self, outer: &Stand, options: &[(&str, &str)]) {
        let job = outer.job("env").time_out(FOR_EVER);
        let job = options.iter().fold(job, |job, (name, value)| job.option(name, value));
        // Its own guests are not those of `outer`.
        let folders = [("XDG_RUNTIME_DIR", self.stand.run_folder()), ("PVRDMA_LINK", self.stand.path("link"))];
        let job = job.args(folders.map(|(name, folder)| format!("{name}={}", folder.display())));
        let address = self.address.to_string();
        let job = job.args([self.stand.path("pvrdma")]).args(["link", "run", "--listen", &address, "--hca", "auto"]);
        let mut gateway = job.spawn();
        gateway.wait_for_text("pvrdma link: host");
        self.gateway = Some(gateway);
    }

    /// Ends it as a user does, and gives what it has said.
    pub fn stop(&mut self) -> String {
        let mut gateway = self.gateway.take().expect("it runs");
        gateway.signal(gateway.pid(), libc::SIGTERM);
        gateway.hurry(PATIENCE);
        let output = gateway.wait();
        assert!(output.status.success(), "{output}");
        output.stderr
    }

    /// Ends it as a crash does.
    pub fn kill(&mut self) {
        let mut gateway = self.gateway.take().expect("it runs");
        gateway.signal(gateway.pid(), libc::SIGKILL);
        gateway.hurry(PATIENCE);
        gateway.wait();
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: i32) {
        self.gateway().signal(self.gateway().pid(), signal);
    }

    /// `pvrdma link status --json`.
    pub fn status(&self) -> String {
        self.link(&["status", "--json"])
    }

    /// Replaces where this host looks for another one, as an editor of its `fabric.toml` would.
    pub fn redirect(&self, other: &Host, to: SocketAddr) {
        let path = self.stand.path("link/fabric.toml");
        let text = fs::read_to_string(&path).expect("settings");
        let edited = text.replace(&other.address.to_string(), &to.to_string());
        assert_ne!(text, edited, "{} is in the list", other.address);
        fs::write(&path, edited).expect("settings can be written");
    }

    /// Processes that run a file of this host.
    fn programs(&self) -> Vec<PathBuf> {
        let folder = self.stand.path("");
        let processes = fs::read_dir("/proc").expect("/proc is there").flatten();
        let programs = processes.filter_map(|process| fs::read_link(process.path().join("exe")).ok());
        programs.filter(|program| program.starts_with(&folder)).collect()
    }
}

/// Hosts of one fabric.
pub struct Hosts {
    hosts: Vec<Host>,
    // Ends after the hosts: their processes are in there.
    spaces: Option<Spaces>,
}

impl Hosts {
    /// So many hosts, with their settings, of which none runs yet.
    pub fn apart(count: usize, trust: Trust, spaces: Option<Spaces>) -> Hosts {
        let place = Place::new();
        let mut hosts: Vec<Host> = Vec::new();
        for number in 1..=count {
            let (stand, address) = match &spaces {
                None => (Stand::new(User::Me), place.free()),
                Some(spaces) => (Stand::new(User::Me).within(spaces.of(number)), spaces.address(number)),
            };
            let (at, name) = (address.to_string(), format!("host{number}"));
            let wire = spaces.as_ref().map_or_else(|| Place::new().0.into(), |_| address.ip());
            let host = Host { number, stand, address, wire, gateway: None };
            match hosts.first() {
                None => {
                    let init = ["init", "--name", &name, "--address", &at, "--loopback"];
                    host.link(&init[..if trust == Trust::Plain { 6 } else { 5 }]);
                }
                Some(first) => {
                    first.link(&["add", &name, "--address", &at]);
                    let file = first.stand.run_folder().join(format!("{name}.join"));
                    host.link(&["join", file.to_str().expect("a name")]);
                    fs::remove_file(&file).expect("it was written");
                }
            }
            hosts.push(host);
        }
        // Those that joined first do not know the later ones.
        let list = hosts[0].stand.path("link/fabric.toml");
        for host in &hosts[1..] {
            host.link(&["join", "--update", list.to_str().expect("a name")]);
        }
        Hosts { hosts, spaces }
    }

    /// So many hosts that know nothing of each other, and speak RoCE.
    pub fn on_wire(count: usize, spaces: Option<Spaces>) -> Hosts {
        let mut hosts = Vec::new();
        for number in 1..=count {
            let (stand, wire) = match &spaces {
                None => (Stand::new(User::Me), Place::new().0.into()),
                Some(spaces) => (Stand::new(User::Me).within(spaces.of(number)), spaces.address(number).ip()),
            };
            let mut host = Host { number, stand, address: SocketAddr::new(wire, 0), wire, gateway: None };
            host.start_on_wire(&[]);
            hosts.push(host);
        }
        Hosts { hosts, spaces }
    }

    /// Two hosts, running, whose link is carried by their adapters: those who carry requests are guests of `network`.
    /// The second one has more options of `pvrdma run`.
    pub fn by_adapters(trust: Trust, network: &Stand, options: &[(&str, &str)]) -> Hosts {
        let mut hosts = Hosts::apart(2, trust, None);
        hosts.host_mut(1).start_on(network, &[("--guest", "first")]);
        hosts.host_mut(2).start_on(network, &[&[("--guest", "second")], options].concat());
        hosts.wait_for_status(1, BY_ADAPTER);
        hosts.wait_for_status(2, BY_ADAPTER);
        hosts
    }

    /// The same, running and linked, on loopback.
    pub fn linked(count: usize, trust: Trust) -> Hosts {
        let mut hosts = Hosts::apart(count, trust, None);
        hosts.start();
        hosts
    }

    /// Starts all of them.
    pub fn start(&mut self) {
        self.hosts.iter_mut().for_each(Host::start);
        self.wait_until_linked();
    }

    /// Host `number`; the first is 1.
    pub fn host(&self, number: usize) -> &Host {
        &self.hosts[number - 1]
    }

    /// The same, to start and stop it.
    pub fn host_mut(&mut self, number: usize) -> &mut Host {
        &mut self.hosts[number - 1]
    }

    /// Namespaces, if they have some.
    pub fn spaces(&self) -> Option<&Spaces> {
        self.spaces.as_ref()
    }

    /// Puts a program on each host.
    pub fn copy(&self, program: &Path) -> String {
        for host in &self.hosts {
            host.stand.copy(program);
        }
        program.file_name().expect("a program has a name").to_string_lossy().into_owned()
    }

    /// A program of host 1 and one of host 2, with the same arguments.
    pub fn both<'a>(&'a self, provider: &Provider, line: &[&str]) -> [Job<'a>; 2] {
        [1, 2].map(|number| self.host(number).job(line[0]).provider(provider).args(&line[1..]))
    }

    /// Until each host that runs has a link to each other one that does.
    pub fn wait_until_linked(&self) {
        let running: Vec<&Host> = self.hosts.iter().filter(|host| host.gateway.is_some()).collect();
        let end = Instant::now() + PATIENCE;
        for host in &running {
            loop {
                let status = host.status();
                let links = status.matches("\"link\": {").count();
                if links + 1 == running.len() {
                    break;
                }
                assert!(Instant::now() < end, "{links} links\n{status}\n{self}");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }

    /// Until a host knows that another one is gone, or hears of it again.
    pub fn wait_for_link(&self, of: usize, is: bool) {
        let end = Instant::now() + PATIENCE;
        while self.host(of).status().contains("\"link\": {") != is {
            assert!(Instant::now() < end, "the link did not become {is}\n{self}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Until `pvrdma link status --json` of a host says so.
    pub fn wait_for_status(&self, of: usize, text: &str) {
        let end = Instant::now() + PATIENCE;
        while !self.host(of).status().contains(text) {
            assert!(Instant::now() < end, "no {text} in {}\n{self}", self.host(of).status());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends all hosts that run. No process and no file is left of any host.
    pub fn end(mut self) {
        for host in self.hosts.iter_mut().filter(|host| host.gateway.is_some()) {
            // One that is stopped does not hear that it is to end.
            host.signal(libc::SIGCONT);
            host.stop();
        }
        let end = Instant::now() + PATIENCE;
        for host in &self.hosts {
            while !host.programs().is_empty() {
                assert!(Instant::now() < end, "still there: {:?}", host.programs());
                std::thread::sleep(Duration::from_millis(10));
            }
            // Who was killed has left something, which the next one removes.
            host.job("true").ok();
            assert_eq!(host.stand.leftovers(), Vec::<PathBuf>::new(), "of host {}", host.number);
        }
    }
}

/// What those that carry requests have said.
impl fmt::Display for Hosts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for host in &self.hosts {
            let logs = host.gateway.as_ref().map_or("does not run\n".into(), Running::logs);
            writeln!(f, "=== host {}\n{logs}", host.number)?;
        }
        Ok(())
    }
}

/// An address of the loopback device that is this fabric's alone: a port of it that is free stays so while its host is
/// away.
struct Place(Ipv4Addr);

impl Place {
    fn new() -> Place {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let [_, high, middle, low] =
            std::process::id().wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed) << 16).to_be_bytes();
        // Guests have 127.N.82.N, and 127.0 and what ends with 0 or 255 are for others.
        Place(Ipv4Addr::new(127, 128 | high, middle, low.clamp(1, 254)))
    }

    fn free(&self) -> SocketAddr {
        TcpListener::bind((self.0, 0)).and_then(|listener| listener.local_addr()).expect("a free port")
    }
}

/// A free port of loopback for something between two hosts.
pub fn free_address() -> SocketAddr {
    Place::new().free()
}
