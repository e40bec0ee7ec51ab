//! The sysfs tree of a guest: what libibverbs and its users look up about the device, as plain files.
//!
//! libibverbs takes the tree's root from `SYSFS_PATH`. It identifies a device by the modification time of its
//! directory, so our device's part is written once, before the first program starts, and never touched again.
//!
//! RDMA devices that the machine really has stand beside ours, as links into the real sysfs: programs in the guest see
//! and use them as ever. `guests.rs` keeps those links up to date as guests are joined.

use pvrdma_device::guest::{DEVICE_STEM, GID_TBL_LEN, Guest, NETDEV, WIRE_GID};
use pvrdma_device::handle::Gid;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

/// The machine's own files.
pub const MACHINE: &str = "/";
/// Where nodes of RDMA devices are, and where they are listed in the tree: device plugins and transfer engines look.
const NODES: &str = "dev/infiniband";
/// What tells one machine from another.
const BOOT_ID: &str = "proc/sys/kernel/random/boot_id";
/// Gives another number at each reading.
const UUID: &str = "proc/sys/kernel/random/uuid";
/// Where devices are listed, by their names and by those of their nodes.
const CLASSES: [&str; 2] = ["infiniband", "infiniband_verbs"];
/// The class of the connection manager's device, and its name there and among the nodes.
const MISC: &str = "misc";
const CM: &str = "rdma_cm";

/// Place of the PCI function in the tree. Programs that want to know how far a NIC is from a GPU take the real
/// path of `device`, so it looks like one.
const PCI_SLOT: &str = "devices/pci0000:00/0000:00:0b.1";
/// What libibverbs matches a provider by; the provider's table names vendor 15ad, device 0820.
const MODALIAS: &str = "pci:v000015ADd00000820sv000015ADsd00000820bc02sc80i00";

/// What a guest's device is called: by numbers that no device of the machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Names {
    device: u32,
    uverbs: u32,
}

impl Names {
    /// The first free ones on the machine.
    pub fn free(machine: &Path) -> Names {
        let first = |class: &str, stem: &str| {
            let taken = |number: &u32| machine.join(format!("sys/class/{class}/{stem}{number}")).exists();
            (0..).find(|number| !taken(number)).expect("a machine has few devices")
        };
        Names { device: first("infiniband", DEVICE_STEM), uverbs: first("infiniband_verbs", "uverbs") }
    }

    /// Those of the tree below `root`.
    pub fn read(root: &Path) -> Option<Names> {
        let mut numbers = fs::read_to_string(root.join("names")).ok()?;
        numbers.truncate(numbers.trim_end().len());
        let (device, uverbs) = numbers.split_once(' ')?;
        Some(Names { device: device.parse().ok()?, uverbs: uverbs.parse().ok()? })
    }

    /// `vmw_pvrdma0`, in general.
    pub fn device(self) -> String {
        format!("{DEVICE_STEM}{}", self.device)
    }

    /// `uverbs0`, in general.
    pub fn uverbs(self) -> String {
        format!("uverbs{}", self.uverbs)
    }

    /// Major and minor number of the node, as the kernel numbers the first 32.
    fn dev(self) -> String {
        format!("231:{}", 192 + self.uverbs)
    }
}

/// Brings the links to the machine's devices up to date. They come and go; one that has taken a name of ours since
/// stays out of sight.
pub fn refresh(root: &Path, machine: &Path) -> io::Result<()> {
    for class in CLASSES {
        let folder = root.join("class").join(class);
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_symlink() && !path.exists() {
                fs::remove_file(path)?;
            } else if path.join(LINKED).is_symlink() && !path.join(LINKED).exists() {
                fs::remove_dir_all(path)?;
            }
        }
        for entry in fs::read_dir(machine.join("sys/class").join(class)).into_iter().flatten() {
            let (place, name) = entry.map(|entry| (entry.path(), entry.file_name()))?;
            let link = folder.join(&name);
            if !place.is_dir() || link.exists() {
                continue;
            }
            match software(&place, &name.to_string_lossy()) {
                Some(driver) if class == "infiniband" => link_software(&place, &link, driver)?,
                _ => symlink(place, link)?,
            }
        }
    }
    refresh_nodes(root, machine)
}

/// Lists the machine's nodes beside ours, which is no file but is opened as if it were.
fn refresh_nodes(root: &Path, machine: &Path) -> io::Result<()> {
    let folder = root.join(NODES);
    fs::create_dir_all(&folder)?;
    for entry in fs::read_dir(&folder)? {
        let path = entry?.path();
        if !path.exists() {
            fs::remove_file(path)?;
        }
    }
    for entry in fs::read_dir(machine.join(NODES)).into_iter().flatten() {
        let entry = entry?;
        let link = folder.join(entry.file_name());
        if !link.is_symlink() {
            symlink(entry.path(), link)?;
        }
    }
    Ok(())
}

/// A file that every RDMA device has.
const LINKED: &str = "node_type";

/// The driver of a software device whose name does not tell it. `None`: libibverbs finds the provider by PCI or by
/// name.
fn software(device: &Path, name: &str) -> Option<&'static str> {
    if device.join("device").exists() {
        return None;
    }
    let is_rnic = fs::read_to_string(device.join(LINKED)).is_ok_and(|kind| kind.starts_with('4'));
    let driver = if is_rnic { "siw" } else { "rxe" };
    (!name.starts_with(driver)).then_some(driver)
}

/// Without netlink libibverbs knows a software device by the driver's name at the beginning of its own. One that is
/// called otherwise gets what stands for that in a modalias.
fn link_software(device: &Path, link: &Path, driver: &str) -> io::Result<()> {
    fs::create_dir(link)?;
    for entry in fs::read_dir(device)? {
        let entry = entry?;
        symlink(entry.path(), link.join(entry.file_name()))?;
    }
    fs::create_dir(link.join("device"))?;
    fs::write(link.join("device/modalias"), format!("rdma_device:N{driver}\n"))
}

/// Links in `into` to all that is in a folder of the machine's, but for these names.
fn link_all(folder: &Path, into: &Path, but: &[&str]) -> io::Result<()> {
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let entry = entry?;
        if !but.iter().any(|name| entry.file_name() == *name) {
            symlink(entry.path(), into.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// An address that is none of the guest's own, and the network interface that has it.
type Outside<'a> = (Gid, &'a str);

/// Writes the tree of `guest` below `root`, which must not exist.
pub fn write(root: &Path, guest: Guest, wire: Option<Outside<'_>>, names: Names, machine: &Path) -> io::Result<()> {
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
    let uverbs = format!("class/infiniband_verbs/{}", names.uverbs());
    file(&format!("{uverbs}/abi_version"), "3")?;
    file(&format!("{uverbs}/ibdev"), &names.device())?;
    file(&format!("{uverbs}/dev"), &names.dev())?;

    let ib = format!("class/infiniband/{}", names.device());
    let guid = groups(&guest.node_guid());
    for (name, content) in [
        ("node_type", "1: CA"),
        ("node_guid", guid.as_str()),
        ("sys_image_guid", guid.as_str()),
        ("node_desc", names.device().as_str()),
        ("board_id", "1"),
        ("hca_type", "VMW_PVRDMA-1.0.1.0-k"),
        ("hw_rev", "1"),
        ("fw_ver", "1.0.000"),
    ] {
        file(&format!("{ib}/{name}"), content)?;
    }
    for device in [&uverbs, &ib] {
        // Absolute: programs that follow links by hand would take a relative one to lead into /sys.
        symlink(root.join(PCI_SLOT), root.join(device).join("device"))?;
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
        let own = || (guest.gid(index).unwrap_or_default(), NETDEV);
        let (gid, interface) = wire.filter(|_| index == WIRE_GID).unwrap_or_else(own);
        file(&format!("{port}/gids/{index}"), &groups(&gid))?;
        file(&format!("{port}/gid_attrs/types/{index}"), guest.roce().sysfs_name())?;
        file(&format!("{port}/gid_attrs/ndevs/{index}"), interface)?;
    }

    // The function lists its RDMA device, as the kernel's does.
    for (class, name) in CLASSES.iter().zip([names.device(), names.uverbs()]) {
        let folder = root.join(PCI_SLOT).join(class);
        fs::create_dir(&folder)?;
        symlink(root.join("class").join(class).join(&name), folder.join(&name))?;
    }
    fs::create_dir_all(root.join(NODES))?;
    // A character device for who follows it.
    for node in [&names.uverbs(), CM] {
        symlink("/dev/null", root.join(NODES).join(node))?;
    }

    // Whatever the machine has, the guest has a connection manager of its own.
    file(&format!("class/{MISC}/{CM}/abi_version"), "4")?;
    file(&format!("class/{MISC}/{CM}/dev"), "10:122")?;
    link_all(&machine.join("sys/class").join(MISC), &root.join("class").join(MISC), &[CM])?;

    // Each guest is a machine of its own: UCX and NCCL must not take shared memory to reach another.
    if let Ok(uuid) = fs::read_to_string(machine.join(UUID)) {
        file(BOOT_ID, uuid.trim_end())?;
    }

    // Others look for their own classes below the same root.
    link_all(&machine.join("sys/class"), &root.join("class"), &[CLASSES[0], CLASSES[1], MISC])?;
    refresh(root, machine)?;
    file("names", &format!("{} {}", names.device, names.uverbs))
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
        let (root, machine) = (dir.path().join("sys"), dir.path().join("machine"));
        write(&root, Guest::new(7, 2, Roce::V1).unwrap(), None, Names::free(&machine), &machine).unwrap();
        let read = |path: &str| fs::read_to_string(root.join(path)).unwrap();
        assert_eq!(read("class/infiniband_verbs/uverbs0/ibdev"), "vmw_pvrdma0\n");
        assert_eq!(read("class/infiniband/vmw_pvrdma0/device/modalias"), format!("{MODALIAS}\n"));
        assert_eq!(read("class/infiniband/vmw_pvrdma0/node_guid"), "00c9:00ff:fe00:0703\n");
        let port = "class/infiniband/vmw_pvrdma0/ports/1";
        assert_eq!(read(&format!("{port}/gids/0")), "fe80:0000:0000:0000:00c9:00ff:fe00:0703\n");
        assert_eq!(read(&format!("{port}/gids/1")), "0000:0000:0000:0000:0000:ffff:7f07:5203\n");
        assert_eq!(read(&format!("{port}/gids/15")), "0000:0000:0000:0000:0000:0000:0000:0000\n");
        assert_eq!(read(&format!("{port}/gid_attrs/types/15")), "IB/RoCE v1\n");
    }

    /// A machine's sysfs with these RDMA devices, each with its node.
    fn machine(devices: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (device, uverbs) in devices {
            let place = dir.path().join("devices").join(device);
            fs::create_dir_all(place.join("verbs")).unwrap();
            fs::write(place.join(LINKED), "1: CA\n").unwrap();
            for (class, name) in CLASSES.iter().zip([device, uverbs]) {
                let class = dir.path().join("sys/class").join(class);
                fs::create_dir_all(&class).unwrap();
                symlink(&place, class.join(name)).unwrap();
            }
        }
        for device in ["fuse", "rdma_cm"] {
            fs::create_dir_all(dir.path().join("sys/class/misc").join(device)).unwrap();
        }
        fs::create_dir_all(dir.path().join(NODES)).unwrap();
        for node in devices.iter().map(|(_, uverbs)| *uverbs).chain(["rdma_cm"]) {
            fs::write(dir.path().join(NODES).join(node), "").unwrap();
        }
        dir
    }

    fn listed(root: &Path, class: &str) -> Vec<String> {
        names_in(&root.join("class").join(class))
    }

    fn names_in(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn real_devices_stay_and_ours_takes_free_names() {
        let machine = machine(&[("mlx5_0", "uverbs0"), ("vmw_pvrdma0", "uverbs1")]);
        fs::create_dir(machine.path().join("devices/mlx5_0/device")).unwrap();
        let names = Names::free(machine.path());
        assert_eq!((names.device().as_str(), names.uverbs().as_str()), ("vmw_pvrdma1", "uverbs2"));
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("sys");
        write(&root, Guest::new(0, 0, Roce::V2).unwrap(), None, names, machine.path()).unwrap();
        assert_eq!(Names::read(&root), Some(names));
        assert_eq!(listed(&root, "infiniband"), ["mlx5_0", "vmw_pvrdma0", "vmw_pvrdma1"]);
        assert_eq!(listed(&root, "infiniband_verbs"), ["abi_version", "uverbs0", "uverbs1", "uverbs2"]);
        let read = |path: &str| fs::read_to_string(root.join(path)).unwrap();
        assert_eq!(read("class/infiniband_verbs/uverbs2/dev"), "231:194\n");
        assert_eq!(read("class/infiniband_verbs/uverbs2/ibdev"), "vmw_pvrdma1\n");
        assert_eq!(read("class/infiniband/mlx5_0/node_type"), "1: CA\n");
        assert_eq!(read("class/misc/rdma_cm/abi_version"), "4\n");
        assert_eq!(listed(&root, "misc"), ["fuse", "rdma_cm"]);
        assert_eq!(read("class/infiniband/vmw_pvrdma1/device/infiniband/vmw_pvrdma1/node_type"), "1: CA\n");
        assert_eq!(names_in(&root.join(NODES)), ["rdma_cm", "uverbs0", "uverbs1", "uverbs2"]);
        fs::remove_file(machine.path().join(NODES).join("uverbs0")).unwrap();
        refresh(&root, machine.path()).unwrap();
        assert_eq!(names_in(&root.join(NODES)), ["rdma_cm", "uverbs1", "uverbs2"]);
    }

    #[test]
    fn links_follow_the_machine_and_ours_is_not_touched() {
        let machine = machine(&[("rxe0", "uverbs0")]);
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("sys");
        write(&root, Guest::new(0, 0, Roce::V2).unwrap(), None, Names::free(machine.path()), machine.path()).unwrap();
        let ours = root.join("class/infiniband/vmw_pvrdma0");
        let before = fs::metadata(&ours).unwrap().modified().unwrap();
        let class = |name: &str| machine.path().join("sys/class").join(name);
        fs::remove_dir_all(machine.path().join("devices/rxe0")).unwrap();
        fs::create_dir_all(class("infiniband/siw0")).unwrap();
        // Ours has this one already.
        fs::create_dir_all(class("infiniband_verbs/uverbs1")).unwrap();
        refresh(&root, machine.path()).unwrap();
        assert_eq!(listed(&root, "infiniband"), ["siw0", "vmw_pvrdma0"]);
        assert_eq!(listed(&root, "infiniband_verbs"), ["abi_version", "uverbs1"]);
        assert_eq!(fs::read_to_string(root.join("class/infiniband_verbs/uverbs1/ibdev")).unwrap(), "vmw_pvrdma0\n");
        assert_eq!(fs::metadata(&ours).unwrap().modified().unwrap(), before);
    }

    #[test]
    fn a_software_device_with_a_name_of_its_own_is_known_by_its_driver() {
        let machine = machine(&[("rxe0", "uverbs0"), ("soft", "uverbs1"), ("iron", "uverbs2")]);
        fs::write(machine.path().join("devices/iron").join(LINKED), "4: RNIC\n").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("sys");
        write(&root, Guest::new(0, 0, Roce::V2).unwrap(), None, Names::free(machine.path()), machine.path()).unwrap();
        let ib = root.join("class/infiniband");
        let modalias = |name: &str| fs::read_to_string(ib.join(name).join("device/modalias"));
        assert_eq!(modalias("soft").unwrap(), "rdma_device:Nrxe\n");
        assert_eq!(modalias("iron").unwrap(), "rdma_device:Nsiw\n");
        assert!(modalias("rxe0").is_err());
        assert!(ib.join("soft/verbs").is_dir() && ib.join("rxe0").is_symlink());
        fs::remove_dir_all(machine.path().join("devices/soft")).unwrap();
        refresh(&root, machine.path()).unwrap();
        assert_eq!(listed(&root, "infiniband"), ["iron", "rxe0", "vmw_pvrdma0"]);
    }
}
