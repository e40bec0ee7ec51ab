//! The PCI function, and the vmxnet3 that the kernel's driver insists on as function 0 of its slot.

use super::machine::{Host, Machine};
use super::report::Finding;

const DEVICES: &str = "/sys/bus/pci/devices";

/// PVRDMA functions by their addresses, `0000:0b:00.1`.
pub fn functions(machine: &Machine) -> Vec<String> {
    let is_ours = |address: &String| id(machine, address).as_deref() == Some("15ad:0820");
    machine.names(DEVICES).into_iter().filter(is_ours).collect()
}

/// Function 0 of the slot of `function`.
pub fn partner(function: &str) -> String {
    format!("{}.0", function.rsplit_once('.').map_or(function, |(slot, _)| slot))
}

/// The network interface of the vmxnet3 beside `function`.
pub fn interface(machine: &Machine, function: &str) -> Option<String> {
    machine.names(&format!("{DEVICES}/{}/net", partner(function))).into_iter().next()
}

/// Who drives `function`.
pub fn driver(machine: &Machine, function: &str) -> Option<String> {
    machine.link(&format!("{DEVICES}/{function}/driver"))
}

/// RDMA devices that the kernel made of `function`.
pub fn rdma_devices(machine: &Machine, function: &str) -> Vec<String> {
    machine.names(&format!("{DEVICES}/{function}/infiniband"))
}

/// Vendor and device.
fn id(machine: &Machine, address: &str) -> Option<String> {
    let number = |name: &str| -> Option<String> {
        let text = machine.text(&format!("{DEVICES}/{address}/{name}"))?;
        Some(text.trim_start_matches("0x").to_owned())
    };
    Some(format!("{}:{}", number("vendor")?, number("device")?))
}

pub fn check(machine: &Machine) -> Vec<Finding> {
    if machine.is_guest_of_run() {
        return vec![Finding::note("pci-function", "none needed: this is a program of `pvrdma run`")];
    }
    let functions = functions(machine);
    if functions.is_empty() {
        let cure = match machine.host() {
            Host::Vmware => {
                "power the VM off, upgrade it to virtual hardware 13 or newer, and add a network adapter of type PVRDMA \
                 on a distributed switch"
            }
            Host::Qemu => "give the guest one: `pvrdma serve --print-qemu` on the host prints how",
            Host::Other => "to go without: `pvrdma run -- PROGRAM` has a device in software",
        };
        return vec![Finding::fail("pci-function", "no PVRDMA function (PCI 15ad:0820)").cure(cure)];
    }
    functions.iter().flat_map(|function| check_function(machine, function)).collect()
}

fn check_function(machine: &Machine, function: &str) -> [Finding; 2] {
    let partner = partner(function);
    let found = Finding::ok("pci-function", format!("15ad:0820 at {function}"));
    let other = id(machine, &partner);
    if other.as_deref() != Some("15ad:07b0") {
        let other = other.unwrap_or_else(|| "missing".to_owned());
        let what =
            format!("{partner} is {other}, but the driver wants a vmxnet3 (15ad:07b0) as function 0 of its slot");
        let cure = match machine.host() {
            Host::Qemu => "QEMU: `-device vmxnet3,addr=SLOT.0,multifunction=on` with the SLOT of the PVRDMA function",
            _ => "power the VM off, remove the PVRDMA adapter and add it again: both functions come together",
        };
        return [found, Finding::fail("vmxnet3", what).cure(cure)];
    }
    let partner = match interface(machine, function) {
        Some(interface) => Finding::ok("vmxnet3", format!("{partner} is {interface}")),
        None => Finding::fail("vmxnet3", format!("{partner} has no network interface: vmxnet3 does not drive it"))
            .cure("load the driver vmxnet3")
            .command("sudo modprobe vmxnet3"),
    };
    [found, partner]
}
