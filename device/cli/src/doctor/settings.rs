//! Settings of UCX, NCCL, Open MPI and libfabric by which a program leaves RDMA alone, in the environment and in the
//! files that these libraries read.

use std::collections::BTreeMap;

use super::machine::Machine;
use super::port;
use super::report::Finding;

/// Files with lines NAME=VALUE, and what stands before a name in the environment.
const FILES: [(&str, &str); 3] =
    [("/etc/nccl.conf", ""), ("/etc/ucx/ucx.conf", ""), ("/etc/openmpi/openmpi-mca-params.conf", "OMPI_MCA_")];
/// Transports of UCX that this device serves.
const UCX: [&str; 9] = ["all", "ib", "rc", "rc_v", "rc_verbs", "rc_x", "ud", "ud_v", "ud_verbs"];

/// A setting and where it was made.
struct Setting {
    value: String,
    source: String,
}

/// The environment counts for more than files.
fn settings(machine: &Machine) -> BTreeMap<String, Setting> {
    let mut settings = BTreeMap::new();
    for (source, before) in FILES {
        for line in machine.text(source).unwrap_or_default().lines() {
            let line = line.split('#').next().unwrap_or_default();
            if let Some((name, value)) = line.split_once('=') {
                let value = value.trim().trim_matches('"').to_owned();
                settings.insert(format!("{before}{}", name.trim()), Setting { value, source: source.to_owned() });
            }
        }
    }
    for name in NAMES {
        if let Some(value) = machine.variable(name) {
            settings.insert(name.to_owned(), Setting { value: value.to_owned(), source: "the environment".to_owned() });
        }
    }
    settings
}

/// What is looked at.
const NAMES: [&str; 10] = [
    "UCX_TLS",
    "UCX_NET_DEVICES",
    "UCX_IB_GID_INDEX",
    "NCCL_IB_DISABLE",
    "NCCL_NET",
    "NCCL_IB_HCA",
    "NCCL_IB_GID_INDEX",
    "OMPI_MCA_pml",
    "FI_PROVIDER",
    "SYSFS_PATH",
];

/// A list with `^` in front excludes, one without includes.
fn allows(list: &str, wanted: impl Fn(&str) -> bool) -> bool {
    match list.strip_prefix('^') {
        Some(excluded) => !excluded.split(',').any(|word| wanted(word.trim())),
        None => list.split(',').any(|word| wanted(word.trim())),
    }
}

/// Why `value` of `name` keeps programs from the device.
fn against(machine: &Machine, devices: &[String], name: &str, value: &str) -> Option<String> {
    let is_device = |word: &str| {
        let word = word.trim_start_matches('=').split(':').next().unwrap_or_default();
        devices.iter().any(|device| device.starts_with(word) && !word.is_empty())
    };
    let no_such_gid = || {
        let index: usize = value.parse().ok()?;
        let known = devices.iter().any(|device| port::gids(machine, device).iter().any(|gid| gid.index == index));
        (!devices.is_empty() && !known).then(|| format!("GID {index} is empty"))
    };
    let reason = |kept: bool, why: &str| (!kept).then(|| why.to_owned());
    match name {
        "UCX_TLS" => {
            reason(allows(value, |word| UCX.contains(&word.trim_start_matches('\\'))), "UCX uses no RDMA transport")
        }
        "UCX_NET_DEVICES" => reason(
            devices.is_empty() || allows(value, |word| word == "all" || is_device(word)),
            "UCX leaves the device out",
        ),
        "NCCL_IB_DISABLE" => reason(matches!(value, "" | "0"), "NCCL uses sockets"),
        "NCCL_NET" => reason(value.eq_ignore_ascii_case("ib"), "NCCL uses another network"),
        "NCCL_IB_HCA" => {
            reason(devices.is_empty() || value.is_empty() || allows(value, is_device), "NCCL leaves the device out")
        }
        "UCX_IB_GID_INDEX" | "NCCL_IB_GID_INDEX" => no_such_gid(),
        "OMPI_MCA_pml" => reason(
            allows(value, |word| matches!(word, "ucx" | "cm")),
            "Open MPI reaches the device by UCX (pml ucx) only",
        ),
        "FI_PROVIDER" => {
            let verbs = |word: &str| word.split(';').any(|part| part == "verbs");
            reason(allows(value, verbs), "libfabric leaves the verbs provider out")
        }
        "SYSFS_PATH" if !machine.is_guest_of_run() => {
            reason(matches!(value, "" | "/sys" | "/sys/"), "libibverbs looks for devices there instead of in /sys")
        }
        _ => None,
    }
}

pub fn check(machine: &Machine) -> Vec<Finding> {
    let devices = port::devices(machine);
    let findings: Vec<Finding> = settings(machine)
        .iter()
        .filter_map(|(name, Setting { value, source })| {
            let why = against(machine, &devices, name, value)?;
            let finding = Finding::warn("settings", format!("{name}={value} in {source}: {why}"));
            Some(match source.starts_with('/') {
                // Some distributions ship it so.
                true if name == "OMPI_MCA_pml" => finding.cure("start with `mpirun --mca pml ucx`, or remove it there"),
                true => finding.cure(format!("remove it from {source}")),
                false => finding.cure("unset it").command(format!("unset {name}")),
            })
        })
        .collect();
    match findings.is_empty() {
        true => vec![Finding::ok("settings", "none of UCX, NCCL, Open MPI or libfabric that switches RDMA off")],
        false => findings,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(environment: &str, gid: &str) -> (tempfile::TempDir, Machine) {
        let dir = tempfile::tempdir().unwrap();
        let file = |path: &str, text: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        file("proc/self/environ", environment);
        file("sys/class/infiniband/vmw_pvrdma0/device/vendor", "0x15ad\n");
        file("sys/class/infiniband/vmw_pvrdma0/device/device", "0x0820\n");
        file("sys/class/infiniband/vmw_pvrdma0/ports/1/gids/1", gid);
        let machine = Machine::below(dir.path());
        (dir, machine)
    }

    fn complaints(environment: &str) -> usize {
        let (_dir, machine) = machine(environment, "::ffff:10.0.0.1\n");
        check(&machine).iter().filter(|finding| finding.cure.is_some()).count()
    }

    #[test]
    fn what_switches_rdma_off_is_named() {
        for setting in [
            "UCX_TLS=tcp,self",
            "UCX_TLS=^rc,ud",
            "UCX_NET_DEVICES=eth0",
            "UCX_IB_GID_INDEX=3",
            "NCCL_IB_DISABLE=1",
            "NCCL_NET=Socket",
            "NCCL_IB_HCA=mlx5",
            "NCCL_IB_HCA=^vmw_pvrdma0",
            "NCCL_IB_GID_INDEX=7",
            "OMPI_MCA_pml=ob1",
            "OMPI_MCA_pml=^ucx",
            "FI_PROVIDER=tcp",
            "SYSFS_PATH=/other",
        ] {
            // With another sysfs the device itself is out of sight.
            assert_eq!(complaints(setting), 1, "{setting}");
        }
    }

    #[test]
    fn what_leaves_it_on_is_not() {
        for setting in [
            "UCX_TLS=rc_v,self",
            "UCX_TLS=^tcp",
            "UCX_TLS=all",
            "UCX_NET_DEVICES=vmw_pvrdma0:1",
            "UCX_NET_DEVICES=all",
            "NCCL_IB_DISABLE=0",
            "NCCL_IB_HCA==vmw_pvrdma0:1",
            "NCCL_IB_HCA=^mlx5",
            "NCCL_IB_GID_INDEX=1",
            "OMPI_MCA_pml=ucx",
            "FI_PROVIDER=verbs;ofi_rxm",
            "HOME=/root",
        ] {
            assert_eq!(complaints(setting), 0, "{setting}");
        }
    }

    #[test]
    fn files_count_and_the_environment_counts_for_more() {
        let (dir, machine) = machine("NCCL_NET=IB", "::ffff:10.0.0.1\n");
        std::fs::create_dir_all(dir.path().join("etc/openmpi")).unwrap();
        std::fs::write(dir.path().join("etc/nccl.conf"), "# x\nNCCL_IB_DISABLE=1\nNCCL_NET=Socket\n").unwrap();
        std::fs::write(dir.path().join("etc/openmpi/openmpi-mca-params.conf"), "pml = ob1\n").unwrap();
        let text = crate::doctor::report::text(&check(&machine));
        assert!(text.contains("NCCL_IB_DISABLE=1 in /etc/nccl.conf") && text.contains("OMPI_MCA_pml=ob1"), "{text}");
        assert!(!text.contains("NCCL_NET"), "{text}");
    }
}
