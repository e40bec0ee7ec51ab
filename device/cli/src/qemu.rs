//! What `pvrdma serve --print-qemu` prints: how QEMU and libvirt are told of the sockets, whole lines to take over.
//!
//! `serve.rs` calls it instead of serving. The options are those that `cargo xtask vm` boots its guests with.

use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Slot of the function and of the vmxnet3 beside it.
const SLOT: u32 = 0x10;

/// A QEMU line for each socket, and then a domain of libvirt's for each.
pub fn text(sockets: &[PathBuf]) -> std::io::Result<String> {
    let mut text = String::new();
    for (index, socket) in sockets.iter().enumerate() {
        let (guest, mac) = (index + 1, mac(index));
        write!(
            text,
            "\
# Guest {guest}, on {socket}: QEMU 10.1 or newer, with any disk that has the driver vmw_pvrdma.
qemu-system-x86_64 -machine pc,accel=kvm:tcg,memory-backend=ram0 -cpu max -smp 2 -m 1G \\
    -object memory-backend-memfd,id=ram0,size=1G,share=on \\
    -drive file=guest{guest}.qcow2,if=virtio \\
    -netdev user,id=n0 -device vmxnet3,netdev=n0,addr={SLOT:#x}.0,multifunction=on,mac={mac} \\
    -device {}

",
            shell(&device(socket)?),
            socket = socket.display(),
        )
        .expect("a string grows");
    }
    for (index, socket) in sockets.iter().enumerate() {
        text.push_str(&libvirt(index, &device(socket)?));
    }
    Ok(text)
}

/// GIDs follow from the MAC, so no two guests may have the same.
fn mac(index: usize) -> String {
    let number = index + 1;
    format!("00:50:56:00:{:02x}:{:02x}", number >> 8 & 0xff, number & 0xff)
}

/// The value of `-device`. QEMU takes a socket in JSON only.
fn device(socket: &Path) -> std::io::Result<String> {
    // QEMU may be started elsewhere.
    let path = std::path::absolute(socket)?;
    let path = path.display().to_string().replace('\\', "\\\\").replace('"', "\\\"");
    Ok(format!(
        r#"{{"driver":"vfio-user-pci","addr":"{SLOT:x}.1","x-no-posted-writes":true,"socket":{{"type":"unix","path":"{path}"}}}}"#
    ))
}

/// A whole domain, as `virsh define` takes it. There is no element for vfio-user, so the device is given as to QEMU.
fn libvirt(index: usize, device: &str) -> String {
    let (guest, mac) = (index + 1, mac(index));
    format!(
        "\
# Guest {guest} for libvirt. Of a domain that exists already it takes memoryBacking, the interface and qemu:commandline.
<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>guest{guest}</name>
  <memory unit='GiB'>1</memory>
  <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>
  <vcpu>2</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <features><acpi/></features>
  <cpu mode='host-passthrough'/>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='/var/lib/libvirt/images/guest{guest}.qcow2'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <interface type='network'>
      <source network='default'/>
      <mac address='{mac}'/>
      <model type='vmxnet3'/>
      <address type='pci' domain='0x0000' bus='0x00' slot='{SLOT:#x}' function='0x0' multifunction='on'/>
    </interface>
  </devices>
  <qemu:commandline>
    <qemu:arg value='-device'/>
    <qemu:arg value='{}'/>
  </qemu:commandline>
</domain>

",
        xml(device)
    )
}

/// One word of a shell.
fn shell(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// The value of an attribute in single quotes.
fn xml(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('\'', "&apos;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn the_shell_gives_qemu_what_was_meant() {
        let text = text(&["/tmp/a b's.sock".into(), "/tmp/c\\\"d".into()]).unwrap();
        let (lines, _) = text.split_once("# Guest 1 for libvirt").unwrap();
        // Each word of the lines on a line of its own.
        let lines = lines.replace("qemu-system-x86_64", "words");
        let script = format!("words() {{ printf '%s\\n' \"$@\"; }}\n{lines}");
        let output = Command::new("sh").args(["-c", &script]).output().unwrap();
        let words = String::from_utf8(output.stdout).unwrap();
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        let has = |word: &str| assert!(words.lines().any(|line| line.contains(word)), "{word}:\n{words}");
        has(r#""socket":{"type":"unix","path":"/tmp/a b's.sock"}}"#);
        has(r#""path":"/tmp/c\\\"d"}}"#);
        has("addr=0x10.0,multifunction=on,mac=00:50:56:00:00:02");
        has("share=on");
        assert_eq!(words.lines().filter(|line| *line == "-device").count(), 4, "{words}");
    }

    #[test]
    fn the_snippet_of_libvirt_is_xml() {
        let text = text(&["/tmp/a&b's.sock".into()]).unwrap();
        assert!(text.contains("path\":\"/tmp/a&amp;b&apos;s.sock\"}}'/>"), "{text}");
        assert!(text.contains("slot='0x10' function='0x0' multifunction='on'"), "{text}");
    }

    #[test]
    fn a_path_is_made_absolute() {
        let text = text(&["x.sock".into()]).unwrap();
        let path = std::env::current_dir().unwrap().join("x.sock");
        assert!(text.contains(&format!("\"path\":\"{}\"", path.display())), "{text}");
    }
}
