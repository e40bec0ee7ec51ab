//! What README.md tells its readers to type works, as it stands there.
//!
//! Every block of it has a row in [`BLOCKS`]: how it is run, or where it is shown that it works. Those that are run
//! here are typed as a newcomer would, one after the other under their heading, in a folder that looks like a checkout.
//! Three words mean something else there: `cargo` finds what is built already, `sudo` is for a root whose `/usr/local`
//! and `/etc/libibverbs.d` are copies, and `sleep` waits until a server listens.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;

use pvrdma_tests::readme::{Block, blocks};
use pvrdma_tests::{Job, Stand, User, artifacts, machine, workspace};

/// How a block is shown to work.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// It is run here.
    Here,
    /// Not here: why, and what shows it.
    NotHere(&'static str),
}
use Way::{Here, NotHere};

/// What takes a machine with the provider installed and a device is run in a guest of the stand-in, in a bare Debian.
const TRIAL: &str = "it takes a guest with the package installed; `cargo xtask package --trial` types it in one";

/// The first line of each block, in the order of README.md.
const BLOCKS: &[(&str, Way)] = &[
    (
        "cargo xtask demo",
        NotHere("the second is all checks; `cargo xtask package --all` runs the first in a bare Debian"),
    ),
    ("sudo apt install gcc make", NotHere("it takes Debian's kernel; `cargo xtask vm` builds the module so")),
    (
        "sudo apt install rdma-core",
        NotHere("it changes the machine; `cargo xtask package --trial` takes the second line"),
    ),
    ("sudo dnf install rdma-core", NotHere("no Fedora; `cargo xtask package --trial` has `rpm --root`")),
    ("sudo modprobe vmw_pvrdma", NotHere(TRIAL)),
    ("LD_DEBUG=libs ibv_devinfo", NotHere(TRIAL)),
    ("sudo apt install gcc ibverbs-utils", NotHere("it changes the machine; `cargo xtask demo` installs the same")),
    ("cargo build --release -p pvrdma-cli", Here),
    ("pvrdma run -- ibv_devinfo", Here),
    (
        "red$ pvrdma link init",
        NotHere("it takes two machines; `tests/tests/hosts.rs` has two hosts with certificates on one"),
    ),
    (
        "there$ ib_write_bw",
        NotHere(
            "it takes two machines; `tests/tests/wire.rs` has two on one, `cargo xtask vm --wire` Linux's rdma_rxe",
        ),
    ),
    ("pvrdma serve --socket", Here),
    ("-netdev stream", NotHere("no command; `cargo xtask vm --full` joins its guests so")),
    ("cargo xtask package", NotHere("a check of its own")),
    ("cargo build --release -p pvrdma-cli", Here),
    ("pvrdma run --provider system", Here),
    ("cmake -S cmake", NotHere("it builds all of it once more; `tests/tests/install.rs` has CMake with what is built")),
];

#[test]
fn every_block_has_its_row() {
    let found: Vec<Block> = blocks();
    let names: Vec<&str> = found.iter().map(Block::name).collect();
    assert_eq!(names.len(), BLOCKS.len(), "{names:#?}");
    for (name, (beginning, way)) in names.iter().zip(BLOCKS) {
        assert!(name.starts_with(beginning), "{name} is not {beginning}");
        if let NotHere(why) = way {
            println!("not run here: {name}: {why}");
        }
    }
}

/// The blocks under a heading that are run here, as one script.
fn script(heading: &str) -> String {
    let found = blocks();
    let rows = found.iter().zip(BLOCKS).filter(|(block, (_, way))| block.heading == heading && *way == Here);
    let text: String = rows.map(|(block, _)| block.text.as_str()).collect();
    assert!(!text.is_empty(), "README.md has nothing to run under {heading:?}");
    text
}

/// What a newcomer sees: a checkout that is built, and a machine whose places for local programs are empty.
struct Newcomer<'a> {
    stand: &'a Stand,
}

impl<'a> Newcomer<'a> {
    fn new(stand: &'a Stand) -> Self {
        let here = stand.run_folder();
        let checkout = here.join("pvrdma");
        fs::create_dir_all(checkout.join("target")).expect("a folder");
        // What install.sh takes beside what is built.
        let taken = ["packaging", "include", "docs"].map(|folder| workspace().join(folder));
        let copied = Command::new("cp").arg("-r").args(taken).arg(&checkout).status();
        assert!(copied.expect("cp starts").success());
        symlink(fs::canonicalize(artifacts()).expect("it is built"), checkout.join("target/release")).expect("a link");
        let tool = |name: &str, script: &str| {
            let file = here.join("bin").join(name);
            fs::create_dir_all(here.join("bin")).expect("a folder");
            fs::write(&file, format!("#!/bin/sh\n{script}\n")).expect("a file");
            fs::set_permissions(file, fs::Permissions::from_mode(0o755)).expect("its mode");
        };
        tool("cargo", "[ \"$1\" = build ] || { echo \"no cargo $1 here\" >&2; exit 1; }");
        tool("sudo", "exec \"$@\"");
        // The machine's list of libraries is no copy.
        tool("ldconfig", ":");
        // A second is enough on a machine that has nothing else to do. State 0A is LISTEN.
        tool("sleep", "until grep -q ' 0A ' /proc/net/tcp /proc/net/tcp6; do /bin/sleep 0.05; done");
        Newcomer { stand }
    }

    /// The script, after which whatever it left in the background has to end well.
    fn types(&self, script: &str) -> Job<'a> {
        let here = self.stand.run_folder();
        let inside = "ip link set lo up\n\
                      mount -t tmpfs tmpfs /usr/local\n\
                      cp -r /etc/libibverbs.d \"$0/conf\"\n\
                      mount --bind \"$0/conf\" /etc/libibverbs.d\n\
                      PATH=$0/bin:$PATH\n\
                      cd \"$0/pvrdma\"\n\
                      exec bash -ec \"$1\"";
        let script = format!("{script}for job in $(jobs -p); do wait $job; done\n");
        // An ordinary user becomes root of a user namespace for the mounts.
        // SAFETY: geteuid has no preconditions.
        let is_root = unsafe { libc::geteuid() } == 0;
        let namespaces: &[&str] = if is_root { &[] } else { &["--user", "--map-root-user"] };
        self.stand
            .plain("unshare")
            .args(namespaces)
            .args(["--mount", "--net", "sh", "-ec", inside])
            .args([here.to_str().expect("a plain path"), &script])
    }
}

#[test]
fn without_hardware() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let script = script("I develop or test, without hardware");
    let said = Newcomer::new(&stand).types(&script).ok();
    assert!(said.contains("PORT_ACTIVE"), "{said}");
    assert_eq!(said.matches(" 65536      5000 ").count(), 2, "both ends of ib_write_bw:\n{said}");
}

#[test]
fn for_qemu() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let script = script("I run QEMU");
    // The sockets are in this test's folder, and a server goes on until it is told to end.
    let folder = stand.run_folder();
    let script = format!(
        "PATH=$PWD/target/release:$PATH\n\
         {}\
         until [ -S {1}/blue.sock ]; do /bin/sleep 0.05; done\n\
         kill %1\n",
        script.replace("/tmp/", &format!("{}/", folder.display())),
        folder.display(),
    );
    let said = Newcomer::new(&stand).types(&script).ok();
    assert_eq!(said.matches("qemu-system-x86_64 ").count(), 2, "{said}");
    assert_eq!(said.matches("<domain ").count(), 2, "{said}");
}

#[test]
fn from_source() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let script = format!(
        "{}LD_DEBUG=libs pvrdma run --provider system -- ibv_devinfo 2>&1 | grep 'calling init: /.*libvmw_pvrdma'\n\
         sudo packaging/install.sh --undo\n\
         find /usr/local -type f\n",
        script("I package")
    );
    let said = Newcomer::new(&stand).types(&script).ok();
    let (devices, after) = said.split_once("calling init: /usr/local/lib/pvrdma/libvmw_pvrdma").expect("it serves");
    assert!(devices.contains("PORT_ACTIVE"), "{said}");
    assert_eq!(after.lines().count(), 1, "nothing else is loaded, and nothing is left:\n{said}");
}
