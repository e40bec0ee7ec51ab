//! Network namespaces as hosts, made without privilege where the kernel allows that.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Network namespaces, one for each host, joined by a bridge. They end when this is dropped.
pub struct Spaces {
    hosts: Vec<Child>,
    root: Child,
}

impl Spaces {
    /// So many of them; an error says why this machine has none for us.
    pub fn new(count: usize) -> Result<Spaces, String> {
        let mut unshare = Command::new("unshare");
        let root = holder(unshare.args(["--user", "--map-root-user", "--net", "--"]))?;
        let mut spaces = Spaces { hosts: Vec::new(), root };
        let mut script = "ip link add bridge type bridge; ip link set bridge up;".to_owned();
        for number in 1..=count {
            let mut unshare = enter(spaces.root.id());
            let host = holder(unshare.args(["unshare", "--net", "--"]))?;
            let (pid, port) = (host.id(), format!("host{number}"));
            script += &format!("ip link add {port} type veth peer name eth0 netns {pid};");
            script += &format!("ip link set {port} master bridge up;");
            spaces.hosts.push(host);
        }
        shell(&mut enter(spaces.root.id()), &script)?;
        for number in 1..=count {
            let address = spaces.address(number).ip();
            let script = format!("ip link set lo up; ip address add {address}/24 dev eth0; ip link set eth0 up");
            shell(&mut enter(spaces.of(number)), &script)?;
        }
        Ok(spaces)
    }

    /// A process in the namespace of host `number`.
    pub fn of(&self, number: usize) -> u32 {
        self.hosts[number - 1].id()
    }

    /// Where that host is.
    pub fn address(&self, number: usize) -> SocketAddr {
        (IpAddr::from([10, 82, 0, number as u8]), 7471).into()
    }
}

impl Drop for Spaces {
    fn drop(&mut self) {
        for holder in self.hosts.iter_mut().chain([&mut self.root]) {
            let _ = holder.kill();
            let _ = holder.wait();
        }
    }
}

/// What is to be run in the namespaces of a process.
pub(crate) fn enter(pid: u32) -> Command {
    let mut command = Command::new("nsenter");
    command.args(["--target", &pid.to_string(), "--user", "--net", "--preserve-credentials", "--"]);
    command
}

/// A process that does nothing in the namespaces that `command` makes.
fn holder(command: &mut Command) -> Result<Child, String> {
    let started = command.args(["sleep", "infinity"]).stdin(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut child = started.map_err(|error| format!("{command:?}: {error}"))?;
    let comm = format!("/proc/{}/comm", child.id());
    // It is there when all that came before has turned itself into it.
    while fs::read_to_string(&comm).is_ok_and(|name| name.trim_end() != "sleep") {
        if child.try_wait().is_ok_and(|ended| ended.is_some()) {
            let output = child.wait_with_output().map_err(|error| error.to_string())?;
            return Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim()));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(child)
}

fn shell(command: &mut Command, script: &str) -> Result<(), String> {
    let output = command.args(["sh", "-euc", script]).output().map_err(|error| format!("{command:?}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{script}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}
