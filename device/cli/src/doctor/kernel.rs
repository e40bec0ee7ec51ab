//! The kernel's side: modules, device nodes and who may open them, memory that may be locked.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::MetadataExt;

use super::machine::Machine;
use super::report::Finding;
use super::{pci, port};

/// May lock memory whatever the limit.
const CAP_IPC_LOCK: u32 = 14;
/// Enough for anything: a program that runs into less is told to ask for more.
const MEMLOCK: u64 = 64 << 20;

pub fn check(machine: &Machine) -> Vec<Finding> {
    let functions = pci::functions(machine);
    let mut findings = Vec::new();
    if machine.is_guest_of_run() {
        findings.extend(nodes(machine));
        return findings;
    }
    if functions.is_empty() {
        return findings;
    }
    findings.extend(functions.iter().map(|function| driver(machine, function)));
    findings.push(uverbs(machine));
    findings.push(rdma_cm(machine));
    findings.extend(nodes(machine));
    findings.push(memlock(machine));
    findings
}

/// A cure that is the administrator's, and of the host's if this is a container.
fn load(machine: &Machine, module: &str, finding: Finding) -> Finding {
    match machine.is_container() {
        true => finding.cure(format!("load {module} on the host of this container: modprobe {module}")),
        false => finding
            .cure(format!("load {module}, now and at every boot"))
            .command(format!("sudo modprobe {module}"))
            .command(format!("echo {module} | sudo tee /etc/modules-load.d/{module}.conf")),
    }
}

fn driver(machine: &Machine, function: &str) -> Finding {
    const CHECK: &str = "driver";
    match pci::driver(machine, function).as_deref() {
        Some("vmw_pvrdma") => {
            let devices = pci::rdma_devices(machine, function);
            match devices.first() {
                Some(device) => Finding::ok(CHECK, format!("vmw_pvrdma made {device} of {function}")),
                None => Finding::fail(CHECK, format!("vmw_pvrdma drives {function}, but made no RDMA device of it"))
                    .cure("the kernel's log says why: dmesg | grep -i pvrdma"),
            }
        }
        Some(other) => Finding::fail(CHECK, format!("{other} drives {function}, not vmw_pvrdma"))
            .cure("give it back to the kernel's driver")
            .command(format!("echo {function} | sudo tee /sys/bus/pci/drivers/{other}/unbind"))
            .command(format!("echo {function} | sudo tee /sys/bus/pci/drivers/vmw_pvrdma/bind")),
        None if machine.exists("/sys/module/vmw_pvrdma") => {
            Finding::fail(CHECK, format!("vmw_pvrdma is loaded, but does not drive {function}"))
                .cure("the kernel's log says why: dmesg | grep -i pvrdma")
        }
        None => {
            let release = machine.text("/proc/sys/kernel/osrelease").unwrap_or_default();
            let missing = Finding::fail(CHECK, "the module vmw_pvrdma is not loaded");
            let modules = machine.bytes(&format!("/lib/modules/{release}/modules.dep"));
            match modules.map(|list| String::from_utf8_lossy(&list).contains("/vmw_pvrdma.ko")) {
                Some(false) => no_module(machine, &release),
                _ => load(machine, "vmw_pvrdma", missing),
            }
        }
    }
}

/// The kernel has no such module to load.
fn no_module(machine: &Machine, release: &str) -> Finding {
    let finding = Finding::fail("driver", format!("kernel {release} has no module vmw_pvrdma"));
    let system = machine.text("/etc/os-release").unwrap_or_default();
    let is = |name: &str| system.lines().any(|line| line.trim_matches('"') == format!("ID={name}"));
    match (is("ubuntu"), is("debian")) {
        (true, _) => finding
            .cure("install the rest of the kernel's modules")
            .command(format!("sudo apt-get install linux-modules-extra-{release}")),
        (_, true) => finding.cure(
            "Debian's kernels do not build it: build drivers/infiniband/hw/vmw_pvrdma of their source package, or take \
             another kernel",
        ),
        _ => finding.cure("install the rest of the kernel's modules (Fedora, RHEL: kernel-modules), or build it"),
    }
}

fn uverbs(machine: &Machine) -> Finding {
    match machine.exists(&format!("{}/class/infiniband_verbs/abi_version", machine.sysfs())) {
        true => Finding::ok("ib_uverbs", "loaded"),
        false => {
            load(machine, "ib_uverbs", Finding::fail("ib_uverbs", "not loaded: programs cannot reach any RDMA device"))
        }
    }
}

fn rdma_cm(machine: &Machine) -> Finding {
    if !machine.exists("/sys/class/misc/rdma_cm") {
        let what = "rdma_ucm is not loaded: programs that connect by librdmacm will not work";
        return load(machine, "rdma_ucm", Finding::warn("rdma_ucm", what));
    }
    match access(machine, "/dev/infiniband/rdma_cm") {
        Ok(()) => Finding::ok("rdma_ucm", "loaded, /dev/infiniband/rdma_cm can be opened"),
        Err(why) => denied(machine, Finding::warn("rdma_ucm", why), "/dev/infiniband/rdma_cm"),
    }
}

/// The node of each PVRDMA device.
fn nodes(machine: &Machine) -> Vec<Finding> {
    let check = |node: String| match access(machine, &node) {
        Ok(()) => Finding::ok("device-node", format!("{node} can be opened")),
        Err(why) => denied(machine, Finding::fail("device-node", why), &node),
    };
    port::devices(machine)
        .iter()
        .filter_map(|device| port::uverbs(machine, device))
        .map(|uverbs| check(format!("/dev/infiniband/{uverbs}")))
        .collect()
}

/// May we open `node` for reading and writing? If not, why.
fn access(machine: &Machine, node: &str) -> Result<(), String> {
    let path = machine.path(node);
    if machine.is_guest_of_run() {
        return OpenOptions::new().read(true).write(true).open(path).map(drop).map_err(|why| format!("{node}: {why}"));
    }
    let found = fs::metadata(&path).map_err(|_| format!("{node} is missing"))?;
    let Some((user, groups)) = machine.user() else { return Err(format!("{node}: cannot tell who asks")) };
    let shift = match (found.uid() == user, groups.contains(&found.gid())) {
        (true, _) => 6,
        (false, true) => 3,
        (false, false) => 0,
    };
    if user != 0 && found.mode() >> shift & 0o6 != 0o6 {
        return Err(format!("{node} has mode {:o}: user {user} may not open it", found.mode() & 0o777));
    }
    // Rules that no mode tells: a container's list of devices, a security module.
    let opened = OpenOptions::new().read(true).write(true).open(path);
    opened.map(drop).map_err(|why| format!("{node} cannot be opened: {why}"))
}

fn denied(machine: &Machine, finding: Finding, node: &str) -> Finding {
    if machine.is_container() {
        return finding.cure(format!("give it to the container: --device={node} (Kubernetes: an RDMA device plugin)"));
    }
    if finding.what.ends_with("is missing") {
        return finding
            .cure("have udev make it: install rdma-core and let it look again")
            .command("sudo udevadm trigger --subsystem-match=infiniband_verbs --subsystem-match=misc");
    }
    let rule = r#"KERNEL=="uverbs*|rdma_cm", SUBSYSTEM=="infiniband_verbs|misc", MODE="0666""#;
    finding
        .cure("let ordinary users in, as rdma-core's udev rules do")
        .command(format!("echo '{rule}' | sudo tee /etc/udev/rules.d/90-pvrdma.rules"))
        .command(format!("sudo chmod 666 {node}"))
}

/// Memory that is registered is locked.
fn memlock(machine: &Machine) -> Finding {
    const CHECK: &str = "memlock";
    if machine.has_capability(CAP_IPC_LOCK) {
        return Finding::ok(CHECK, "no limit (CAP_IPC_LOCK)");
    }
    let limits = machine.text("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory")).unwrap_or_default();
    match line.split_whitespace().next() {
        None => Finding::note(CHECK, "the limit is not known"),
        Some("unlimited") => Finding::ok(CHECK, "no limit"),
        Some(limit) => {
            let limit: u64 = limit.parse().unwrap_or(0);
            let what = format!("a user may lock {} KiB, and all registered memory is locked", limit >> 10);
            // 64 KiB do not even do for the queues that stock programs ask for.
            let finding = match limit {
                0..=0x1_0000 => Finding::fail(CHECK, what),
                0x1_0001..MEMLOCK => Finding::warn(CHECK, what),
                _ => return Finding::ok(CHECK, what),
            };
            match machine.is_container() {
                true => finding.cure("start the container with --ulimit memlock=-1"),
                false => finding
                    .cure("lift the limit, and log in again (systemd services: LimitMEMLOCK=infinity)")
                    .command("echo '* - memlock unlimited' | sudo tee /etc/security/limits.d/rdma.conf"),
            }
        }
    }
}
