//! What a path means to us: the device node, a place in the guest's sysfs tree, or nothing.
//!
//! `preload.rs` and `library.rs` ask before every call that takes a path. Such calls can be made in any state of the
//! program, so a path that is replaced lives on the stack.

use crate::support::config;
use crate::support::raw::syscall;
use std::ffi::{CStr, c_char};

/// What a path means to us.
#[expect(clippy::large_enum_variant, reason = "open is allowed in signal handlers, the heap is not")]
pub enum Target {
    /// Nothing: it goes to the kernel as it is.
    Theirs,
    /// The device node.
    Node,
    /// The node of the connection manager.
    Cm,
    /// A path in the guest's sysfs tree, complete.
    Tree(TreePath),
}

/// A terminated path on the stack.
pub struct TreePath([u8; 2048]);

impl TreePath {
    /// For system calls.
    pub fn as_ptr(&self) -> *const c_char {
        self.0.as_ptr().cast()
    }
}

/// Judges a path. Relative ones are the program's own business.
///
/// # Safety
/// `path` is null or a terminated string.
pub unsafe fn target(path: *const c_char) -> Target {
    let Some(config) = config::get().filter(|_| is_mapped(path)) else { return Target::Theirs };
    // SAFETY: by the contract.
    let path = unsafe { CStr::from_ptr(path) };
    if path.to_bytes() == config.node.as_bytes() {
        return Target::Node;
    }
    if path.to_bytes() == CM_NODE {
        return Target::Cm;
    }
    in_tree(path.to_bytes(), config.sysfs.as_bytes()).map_or(Target::Theirs, Target::Tree)
}

/// Whether there is memory at an address. What leads nowhere is the kernel's to refuse, with EFAULT.
fn is_mapped(path: *const c_char) -> bool {
    let page = path as usize & !4095;
    let mut resident = 0u8;
    // SAFETY: the kernel judges the address, and writes one byte to `resident`.
    page != 0 && unsafe { syscall!(SYS_mincore, page, 1, &raw mut resident) } == 0
}

/// The connection manager's: a guest has one of its own, whatever the machine has.
const CM_NODE: &[u8] = b"/dev/infiniband/rdma_cm";

/// What tells machines apart, to UCX and NCCL: whether a peer can be reached by shared memory. A guest is a machine.
const BOOT_ID: &[u8] = b"/proc/sys/kernel/random/boot_id";

/// The connection manager's in sysfs.
const CM_CLASS: &[u8] = b"/sys/class/misc/rdma_cm";

/// `/sys/class/infiniband` and `/sys/class/infiniband_verbs`, and what is below them, moved to `root`. So are the
/// connection manager's files, which programs take for a sign that it is there, and the list of nodes,
/// `/dev/infiniband`, but not what is in it: nodes of other devices are opened where they are. And the guest has a boot
/// id of its own.
fn in_tree(path: &[u8], root: &[u8]) -> Option<TreePath> {
    let rest = match path {
        b"/dev/infiniband" | b"/dev/infiniband/" | b"/dev/infiniband/." | b"/dev/infiniband/.." | BOOT_ID => path,
        _ => {
            let of_devices = || {
                let below = path.strip_prefix(b"/sys/class/infiniband")?;
                Some(below.strip_prefix(b"_verbs").unwrap_or(below))
            };
            let below = path.strip_prefix(CM_CLASS).or_else(of_devices)?;
            if !matches!(below.first(), None | Some(b'/')) {
                return None;
            }
            &path[b"/sys".len()..]
        }
    };
    let mut moved = TreePath([0; 2048]);
    // Shorter than the room: the last byte stays the terminator.
    let room = moved.0.get_mut(..root.len() + rest.len()).filter(|room| room.len() < 2048)?;
    room[..root.len()].copy_from_slice(root);
    room[root.len()..].copy_from_slice(rest);
    Some(moved)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moved_to(path: &[u8]) -> Option<String> {
        let moved = in_tree(path, b"/run/x/sys")?;
        Some(CStr::from_bytes_until_nul(&moved.0).unwrap().to_str().unwrap().to_owned())
    }

    #[test]
    fn only_what_a_guest_has_of_its_own_is_moved() {
        assert_eq!(moved_to(b"/sys/class/infiniband").unwrap(), "/run/x/sys/class/infiniband");
        assert_eq!(moved_to(b"/sys/class/infiniband/a/b").unwrap(), "/run/x/sys/class/infiniband/a/b");
        assert_eq!(moved_to(b"/sys/class/infiniband_verbs/").unwrap(), "/run/x/sys/class/infiniband_verbs/");
        let version = "/sys/class/misc/rdma_cm/abi_version";
        assert_eq!(moved_to(version.as_bytes()).unwrap(), format!("/run/x{version}"));
        assert_eq!(moved_to(b"/dev/infiniband").unwrap(), "/run/x/sys/dev/infiniband");
        let boot_id = "/proc/sys/kernel/random/boot_id";
        assert_eq!(moved_to(boot_id.as_bytes()).unwrap(), format!("/run/x/sys{boot_id}"));
        for theirs in [
            "/proc/sys/kernel/random/uuid",
            "/sys/class/infiniband_mad",
            "/sys/class/infinibandx",
            "/sys/class/misc",
            "/sys/class/misc/rdma_cmx",
            "/sys/class/net",
            "/sys",
            "",
            "sys/class",
            "/dev",
            "/dev/infiniband/uverbs7",
            "/dev/infinibandx",
        ] {
            assert!(moved_to(theirs.as_bytes()).is_none(), "{theirs}");
        }
        let long = [&b"/sys/class/infiniband/"[..], &[b'a'; 2048]].concat();
        assert!(moved_to(&long).is_none());
    }
}
