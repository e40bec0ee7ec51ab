//! What PVRDMA asks of the virtual machine, as far as a guest can see it.

use super::machine::{Host, Machine};
use super::pci;
use super::report::Finding;

pub fn check(machine: &Machine) -> Vec<Finding> {
    if machine.is_guest_of_run() || pci::functions(machine).is_empty() {
        return Vec::new();
    }
    match machine.host() {
        Host::Vmware => vec![hardware(machine), memory()],
        Host::Qemu => {
            vec![Finding::note("host", "QEMU; its memory has to be shared (share=on), which a guest cannot see")]
        }
        Host::Other => Vec::new(),
    }
}

/// A guest is not told its version. New ones stand in the product's name, and that there is a function tells of 13.
fn hardware(machine: &Machine) -> Finding {
    let product = machine.text("/sys/class/dmi/id/product_name").unwrap_or_default();
    let version = product.strip_prefix("VMware").and_then(|rest| rest.split_once(','));
    match version.and_then(|(version, _)| version.parse::<u32>().ok()).filter(|version| *version >= 20) {
        Some(version) => Finding::ok("virtual-hardware", format!("version {version} or newer, by the name {product}")),
        None => Finding::note(
            "virtual-hardware",
            "13 or newer, since there is a function; a guest cannot see more: 14 brings SRQs, 18 native endpoints",
        ),
    }
}

fn memory() -> Finding {
    Finding::note(
        "reserved-memory",
        "all of the VM's memory has to be reserved, which no file tells: `vmware-toolbox-cmd stat memres` says how much is",
    )
}
