//! What `pvrdma run` needs: copies between processes, room in memory, one PID namespace, a sensible number of the host.

use std::path::Path;

use super::machine::Machine;
use super::pci;
use super::report::{Finding, Level};
use crate::link::{self, term::Notice};
use crate::provider::installed_library;
use crate::rundir::RunDir;

/// Room for a few processes.
const ROOM: u64 = 8 << 20;
/// Less than one process with little to do needs.
const TOO_LITTLE: u64 = 256 << 10;

pub fn check(machine: &Machine) -> Vec<Finding> {
    // A machine with a device has no need of it.
    if !machine.is_guest_of_run() && !pci::functions(machine).is_empty() {
        return Vec::new();
    }
    let mut findings = vec![ptrace(machine)];
    if machine.is_made_up() {
        return findings;
    }
    findings.push(copies(copy_to_self()));
    let folder = match machine.variable("PVRDMA_HOST_DIR") {
        Some(folder) => Ok(folder.into()),
        None => RunDir::default_path(),
    };
    match folder {
        Ok(folder) => findings.push(room(&folder)),
        Err(why) => findings.push(Finding::fail("run-directory", format!("{why:#}")).cure("set XDG_RUNTIME_DIR")),
    }
    if !machine.is_guest_of_run() {
        findings.push(match installed_library("libpvrdma_standin.so") {
            Ok(path) => Finding::ok("stand-in", path.display().to_string()),
            Err(why) => Finding::fail("stand-in", format!("{why:#}")).cure("install or build it beside pvrdma"),
        });
    }
    findings.extend(namespace(machine));
    let found = link::folder::host_number();
    if found.is_ok() {
        findings.extend(certificates(link::term::of_default_settings()));
    }
    findings.extend(number(found));
    findings
}

/// Of a host that is in a fabric with others: whether they will believe it tomorrow as well.
fn certificates(found: anyhow::Result<Option<(String, Vec<Notice>)>>) -> Vec<Finding> {
    const CHECK: &str = "certificate";
    let (good, notices) = match found {
        Ok(None) => return Vec::new(),
        Ok(Some(found)) => found,
        Err(why) => {
            return vec![
                Finding::fail(CHECK, format!("{why:#}")).cure("`pvrdma link list` says the same, mend it there"),
            ];
        }
    };
    let finding = |notice: Notice| {
        // That of another host is that one's to complain about; here it is only known.
        let level = if notice.is_own && notice.has_ended { Level::Fail } else { Level::Warn };
        Finding::new(level, CHECK, notice.what).cure(notice.cure)
    };
    let own = if notices.iter().any(|notice| notice.is_own) { None } else { Some(Finding::ok(CHECK, good)) };
    own.into_iter().chain(notices.into_iter().map(finding)).collect()
}

/// Yama asks for the same right as for a debugger.
fn ptrace(machine: &Machine) -> Finding {
    const CHECK: &str = "ptrace-scope";
    let scope = machine.text("/proc/sys/kernel/yama/ptrace_scope").and_then(|scope| scope.parse::<u32>().ok());
    const CAP_SYS_PTRACE: u32 = 19;
    match scope {
        None | Some(0 | 1) => Finding::ok(CHECK, "processes of one user may reach each other's memory"),
        Some(2) if machine.has_capability(CAP_SYS_PTRACE) => Finding::ok(CHECK, "2, and we may trace"),
        Some(scope) => {
            Finding::fail(CHECK, format!("ptrace_scope is {scope}: programs of `pvrdma run` cannot reach each other"))
                .cure("set it to 1 (3 can only be changed by a reboot)")
                .command("sudo sysctl kernel.yama.ptrace_scope=1")
        }
    }
}

/// Asks the kernel for a copy from this process to itself, which is always allowed unless nobody may.
fn copy_to_self() -> std::io::Result<()> {
    let (from, mut to) = ([7u8; 8], [0u8; 8]);
    let local = libc::iovec { iov_base: to.as_mut_ptr().cast(), iov_len: to.len() };
    let remote = libc::iovec { iov_base: from.as_ptr().cast_mut().cast(), iov_len: from.len() };
    // SAFETY: both describe arrays of this function, which are not touched meanwhile; only `to` is written.
    let copied = unsafe { libc::process_vm_readv(libc::getpid(), &raw const local, 1, &raw const remote, 1, 0) };
    match copied {
        8 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

fn copies(outcome: std::io::Result<()>) -> Finding {
    match outcome {
        Ok(()) => Finding::ok("process-vm", "process_vm_readv is there"),
        Err(why) => Finding::fail("process-vm", format!("process_vm_readv: {why}; this sandbox forbids it"))
            .cure("a container needs --cap-add=SYS_PTRACE or a seccomp profile that allows it; gVisor has it not"),
    }
}

fn room(folder: &Path) -> Finding {
    const CHECK: &str = "run-directory";
    // Before the first program has started it is not there; what matters is where it will be.
    let place = folder.ancestors().find(|place| place.exists()).unwrap_or(Path::new("/"));
    let place_name = folder.display();
    match nix::sys::statvfs::statvfs(place) {
        Err(why) => Finding::fail(CHECK, format!("{place_name}: {why}")).cure("set XDG_RUNTIME_DIR"),
        Ok(found) => judge_room(&place_name.to_string(), found.blocks_available() * found.fragment_size()),
    }
}

fn judge_room(place: &str, free: u64) -> Finding {
    let what = format!("{place} has room for {} MiB", free >> 20);
    let cure = "make room (containers: --shm-size=1g), or name another place with XDG_RUNTIME_DIR";
    match free {
        0..TOO_LITTLE => Finding::fail("run-directory", what).cure(cure),
        TOO_LITTLE..ROOM => Finding::warn("run-directory", what).cure(cure),
        _ => Finding::ok("run-directory", what),
    }
}

/// Programs of one run directory name each other by PIDs, so those have to mean the same.
fn namespace(machine: &Machine) -> Option<Finding> {
    let namespace = machine.path("/proc/self/ns/pid").read_link().ok()?;
    let what = format!("{}; all programs of one run directory have to be in it", namespace.display());
    Some(Finding::note("pid-namespace", what))
}

/// Most hosts have none, and nothing is to be said of it.
fn number(found: anyhow::Result<u8>) -> Option<Finding> {
    const CHECK: &str = "host-number";
    match found {
        Ok(0) => None,
        Ok(number) => {
            Some(Finding::ok(CHECK, format!("{number}: guests of this host are 127.{number}.82.1 and so on")))
        }
        Err(why) => {
            let cure = "write a number that no other of your hosts has, or remove the file";
            Some(Finding::fail(CHECK, format!("{why:#}")).cure(cure))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_sandbox_forbids_is_named() {
        assert_eq!(copies(copy_to_self()).level, Level::Ok);
        let refused = copies(Err(std::io::Error::from_raw_os_error(libc::EPERM)));
        assert!(refused.level == Level::Fail && refused.cure.unwrap().contains("SYS_PTRACE"));
    }

    #[test]
    fn a_number_that_is_none_is_named() {
        assert!(number(Ok(0)).is_none());
        let seven = number(Ok(7)).unwrap();
        assert!(seven.level == Level::Ok && seven.what.contains("127.7.82.1"));
        assert_eq!(number(Err(anyhow::anyhow!("300"))).unwrap().level, Level::Fail);
    }

    #[test]
    fn a_certificate_that_ends_is_named() {
        let notice = |is_own, has_ended| Notice { is_own, has_ended, what: "of blue".into(), cure: "renew".into() };
        let levels = |notices: Vec<Notice>| -> Vec<Level> {
            certificates(Ok(Some(("host 1 (red)".into(), notices)))).iter().map(|finding| finding.level).collect()
        };
        assert_eq!(levels(vec![]), [Level::Ok]);
        assert_eq!(levels(vec![notice(true, false)]), [Level::Warn]);
        assert_eq!(levels(vec![notice(true, true)]), [Level::Fail]);
        assert_eq!(levels(vec![notice(false, true)]), [Level::Ok, Level::Warn]);
        assert!(certificates(Ok(None)).is_empty());
        assert_eq!(certificates(Err(anyhow::anyhow!("no key")))[0].level, Level::Fail);
    }

    #[test]
    fn a_full_file_system_is_named() {
        let levels: Vec<Level> = [0, 1 << 20, 1 << 30].map(|free| judge_room("/x", free).level).into();
        assert_eq!(levels, [Level::Fail, Level::Warn, Level::Ok]);
    }
}
