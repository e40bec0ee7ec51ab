//! The sysfs tree of a guest: what libibverbs and its users look up about the device, as plain files.
//!
//! libibverbs takes the tree's root from `SYSFS_PATH`. It identifies a device by the modification time of its
//! directory, so a tree is written once, before the first program starts, and never touched again.

use pvrdma_device::guest::{DEVICE_NAME, GID_TBL_LEN, Guest, NETDEV};
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

/// Place of the PCI function in the tree. Programs that want to know how far a NIC is from a GPU take the real
/// path of `device`, so it looks like one.
const PCI_SLOT: &str = "devices/pci0000:00/0000:00:0b.1";
/// What libibverbs matches a provider by; the provider's table names vendor 15ad, device 0820.
const MODALIAS: &str = "pci:v000015ADd00000820sv000015ADsd00000820bc02sc80i00";

/// Writes the tree of `guest` below `root`, which must not exist.
pub fn write(root: &Path, guest: Guest) -> io::Result<()> {
    let file = |path: &str, content: &str| -> io::Result<()> {
        let path = root.join(path);
        fs::create_dir_all(path.parent().expect("joined to root"))?;
        fs::write(path, format!("{content}\n"))
    };

    for (name, content) in [
        ("modalias", MODALIAS),
        ("vendor", "0x15ad"),
        ("device", "0x0820"),
        ("subsystem_vendor", "0x15ad"),
        ("subsystem_device", "0x0820"),
        ("class", "0x028000"),
        ("numa_node", "-1"),
    ] {
        file(&format!("{PCI_SLOT}/{name}"), content)?;
    }

    file("class/infiniband_verbs/abi_version", "6")?;
    let uverbs = "class/infiniband_verbs/uverbs0";
    file(&format!("{uverbs}/abi_version"), "3")?;
    file(&format!("{uverbs}/ibdev"), DEVICE_NAME)?;
    file(&format!("{uverbs}/dev"), "231:192")?;

    let ib = format!("class/infiniband/{DEVICE_NAME}");
    let guid = groups(&guest.node_guid());
    for (name, content) in [
        ("node_type", "1: CA"),
        ("node_guid", guid.as_str()),
        ("sys_image_guid", guid.as_str()),
        ("node_desc", DEVICE_NAME),
        ("board_id", "1"),
        ("hca_type", "VMW_PVRDMA-1.0.1.0-k"),
        ("hw_rev", "1"),
        ("fw_ver", "1.0.000"),
    ] {
        file(&format!("{ib}/{name}"), content)?;
    }
    for device in [uverbs, &ib] {
        symlink(Path::new("../../..").join(PCI_SLOT), root.join(device).join("device"))?;
    }

    let port = format!("{ib}/ports/1");
    for (name, content) in [
        ("state", "4: ACTIVE"),
        ("phys_state", "5: LinkUp"),
        ("link_layer", "Ethernet"),
        ("rate", "100 Gb/sec (4X EDR)"),
        ("lid", "0x0"),
        ("sm_lid", "0x0"),
        ("sm_sl", "0"),
        ("lid_mask_count", "0"),
        ("cap_mask", "0x04010000"),
        ("pkeys/0", "0xffff"),
    ] {
        file(&format!("{port}/{name}"), content)?;
    }
    // Empty entries get files too: the kernel answers EINVAL when they are read, which callers step over, but a
    // missing file ends the whole table for them.
    for index in 0..GID_TBL_LEN {
        let gid = guest.gid(index).unwrap_or_default();
        file(&format!("{port}/gids/{index}"), &groups(&gid))?;
        file(&format!("{port}/gid_attrs/types/{index}"), guest.roce().sysfs_name())?;
        file(&format!("{port}/gid_attrs/ndevs/{index}"), NETDEV)?;
    }
    Ok(())
}

/// Pairs of bytes as four hex digits, joined by colons.
fn groups(bytes: &[u8]) -> String {
    let groups: Vec<String> = bytes.chunks(2).map(|pair| pair.iter().map(|b| format!("{b:02x}")).collect()).collect();
    groups.join(":")
}

#[cfg(test)]
mod tests {
    use super::*;
    use pvrdma_device::guest::Roce;

    #[test]
    fn the_tree_says_what_discovery_asks() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("sys");
        write(&root, Guest::new(2, Roce::V1).unwrap()).unwrap();
        let read = |path: &str| fs::read_to_string(root.join(path)).unwrap();
        assert_eq!(read("class/infiniband_verbs/uverbs0/ibdev"), "vmw_pvrdma0\n");
        assert_eq!(read("class/infiniband/vmw_pvrdma0/device/modalias"), format!("{MODALIAS}\n"));
        assert_eq!(read("class/infiniband/vmw_pvrdma0/node_guid"), "00c9:00ff:fe00:0003\n");
        let port = "class/infiniband/vmw_pvrdma0/ports/1";
        assert_eq!(read(&format!("{port}/gids/0")), "fe80:0000:0000:0000:00c9:00ff:fe00:0003\n");
        assert_eq!(read(&format!("{port}/gids/1")), "0000:0000:0000:0000:0000:ffff:7f00:5203\n");
        assert_eq!(read(&format!("{port}/gids/15")), "0000:0000:0000:0000:0000:0000:0000:0000\n");
        assert_eq!(read(&format!("{port}/gid_attrs/types/15")), "IB/RoCE v1\n");
    }
}
