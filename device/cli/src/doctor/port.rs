//! The RDMA device's port: link, MTU, and which address gives which GID.

use std::net::Ipv6Addr;

use super::machine::Machine;
use super::pci;
use super::report::Finding;

/// PVRDMA devices that libibverbs would see.
pub fn devices(machine: &Machine) -> Vec<String> {
    let class = format!("{}/class/infiniband", machine.sysfs());
    let has = |device: &str, name: &str, id: &str| {
        machine.text(&format!("{class}/{device}/device/{name}")).is_some_and(|text| text == id)
    };
    let names = machine.names(&class).into_iter();
    names.filter(|device| has(device, "vendor", "0x15ad") && has(device, "device", "0x0820")).collect()
}

/// The name of the device's node.
pub fn uverbs(machine: &Machine, device: &str) -> Option<String> {
    let class = format!("{}/class/infiniband_verbs", machine.sysfs());
    let is_its = |name: &String| machine.text(&format!("{class}/{name}/ibdev")).is_some_and(|ibdev| ibdev == device);
    machine.names(&class).into_iter().find(is_its)
}

/// A row of the GID table that is in use.
pub struct Gid {
    pub index: usize,
    pub address: Ipv6Addr,
    roce: String,
    interface: String,
}

impl Gid {
    pub fn is_ipv4(&self) -> bool {
        self.address.to_ipv4_mapped().is_some()
    }
}

impl std::fmt::Display for Gid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Gid { index, address, roce, interface } = self;
        match address.to_ipv4_mapped() {
            Some(address) => write!(f, "GID {index} is {address} of {interface}, {roce}"),
            None if address.is_unicast_link_local() => write!(f, "GID {index} is link-local, {roce}"),
            None => write!(f, "GID {index} is {address} of {interface}, {roce}"),
        }
    }
}

/// The GIDs of port 1.
pub fn gids(machine: &Machine, device: &str) -> Vec<Gid> {
    let port = format!("{}/class/infiniband/{device}/ports/1", machine.sysfs());
    let mut indexes: Vec<usize> =
        machine.names(&format!("{port}/gids")).iter().filter_map(|index| index.parse().ok()).collect();
    indexes.sort_unstable();
    let read = |index: usize| -> Option<Gid> {
        let address: Ipv6Addr = machine.text(&format!("{port}/gids/{index}"))?.parse().ok()?;
        let attribute = |name: &str| machine.text(&format!("{port}/gid_attrs/{name}/{index}")).unwrap_or_default();
        let roce = match attribute("types").as_str() {
            "IB/RoCE v1" => "RoCE v1".to_owned(),
            other => other.to_owned(),
        };
        (!address.is_unspecified()).then(|| Gid { index, address, roce, interface: attribute("ndevs") })
    };
    indexes.into_iter().filter_map(read).collect()
}

pub fn check(machine: &Machine) -> Vec<Finding> {
    devices(machine).iter().flat_map(|device| check_device(machine, device)).collect()
}

fn check_device(machine: &Machine, device: &str) -> Vec<Finding> {
    // That of the vmxnet3 beside it; a device of `pvrdma run` names one that is nowhere.
    let function = machine.link(&format!("{}/class/infiniband/{device}/device", machine.sysfs()));
    let interface = function.and_then(|function| pci::interface(machine, &function));
    let mut findings = vec![link(machine, device, interface.as_deref())];
    findings.extend(interface.as_deref().and_then(|interface| mtu(machine, interface)));
    findings.push(addresses(machine, device, interface.as_deref()));
    findings
}

fn link(machine: &Machine, device: &str, interface: Option<&str>) -> Finding {
    let state = machine.text(&format!("{}/class/infiniband/{device}/ports/1/state", machine.sysfs()));
    let state = state.unwrap_or_else(|| "unknown".to_owned());
    if state.ends_with("ACTIVE") {
        return Finding::ok("link", format!("{device} port 1 is active"));
    }
    let finding = Finding::fail("link", format!("{device} port 1 is not active ({state})"));
    match interface {
        Some(interface) => finding
            .cure(format!("bring {interface} up; if it is, connect the adapter in the VM's settings"))
            .command(format!("sudo ip link set {interface} up")),
        None => finding.cure("bring up the vmxnet3 beside it"),
    }
}

fn mtu(machine: &Machine, interface: &str) -> Option<Finding> {
    let mtu: u32 = machine.text(&format!("/sys/class/net/{interface}/mtu"))?.parse().ok()?;
    let what = format!("{interface} has MTU {mtu}");
    Some(match mtu {
        0..1500 => Finding::warn("mtu", what + ": packets of 1024 bytes and their headers do not fit")
            .cure("set 1500 or, if switches and peers have it too, 9000")
            .command(format!("sudo ip link set {interface} mtu 1500")),
        1500..4500 => Finding::ok(
            "mtu",
            what + ", which fits a path MTU of 1024; 9000 fits 4096, if peers and switches have it too",
        ),
        _ => Finding::ok("mtu", what + ", which fits a path MTU of 4096, if peers and switches have it too"),
    })
}

fn addresses(machine: &Machine, device: &str, interface: Option<&str>) -> Finding {
    let gids = gids(machine, device);
    let interface = interface.unwrap_or("its interface");
    let add = |finding: Finding| {
        finding
            .cure(format!("give {interface} an IPv4 address"))
            .command(format!("sudo ip address add ADDRESS/PREFIX dev {interface}"))
    };
    let all = gids.iter().map(Gid::to_string).collect::<Vec<_>>().join("; ");
    if gids.is_empty() {
        return add(Finding::fail("gids", format!("{device} has no GID: {interface} has no address")));
    }
    match gids.iter().any(Gid::is_ipv4) {
        true => Finding::ok("gids", all),
        false => add(Finding::warn("gids", format!("{all}; none is IPv4, which most programs want"))),
    }
}
