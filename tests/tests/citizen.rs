//! Any program: those that look into /sys/class/infiniband by themselves, that load libibverbs late, that use it in
//! many threads, and tools that know nothing of RDMA.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use pvrdma_tests::{Provider, Stand, User, c_program, cannot_run, machine};

/// Runs all cases of a C program, with both providers.
fn all_cases(stand: &Stand, program: &Path) {
    let program = stand.copy(program);
    let cases = stand.job(&program).ok();
    assert!(!cases.is_empty());
    for provider in Provider::BOTH {
        let text = stand.job(&program).provider(&provider).args(cases.lines()).ok();
        assert_eq!(text.lines().count(), cases.lines().count(), "{provider:?}: {text}");
    }
}

/// Every function of the C library that takes a path, under the names that the compiler's options give it.
#[test]
fn paths() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let variants: [&[&str]; 3] = [&[], &["-O2", "-D_FORTIFY_SOURCE=2"], &["-D_FILE_OFFSET_BITS=64"]];
    for flags in variants {
        all_cases(&stand, &c_program("tests/c/paths.c", flags));
    }
    // Where nothing stands in for the kernel there is no such device.
    let program = c_program("tests/c/paths.c", &[]);
    for case in ["streams", "links"] {
        let output = Command::new(&program).arg(case).output().expect("it starts");
        assert!(!output.status.success() || Path::new("/sys/class/infiniband/vmw_pvrdma0").exists());
    }
}

/// Tools that have no idea, as an administrator uses them.
#[test]
fn ordinary_tools() {
    let _machine = machine();
    for user in User::both() {
        let stand = Stand::new(user);
        let shell = |script: &str| {
            let output = stand.job("sh").args(["-c", script]).output();
            assert_eq!(output.stderr, "", "{output}");
            output.ok()
        };
        let device = "/sys/class/infiniband/vmw_pvrdma0";
        assert_eq!(shell("ls /sys/class/infiniband"), "vmw_pvrdma0\n");
        assert_eq!(shell("ls /sys/class/infiniband_verbs"), "abi_version\nuverbs0\n");
        assert_eq!(shell("echo /sys/class/infiniband/*/ports/*"), format!("{device}/ports/1\n"));
        assert_eq!(shell("cd /sys/class/infiniband && cat */ports/1/link_layer"), "Ethernet\n");
        assert_eq!(shell(&format!("cat {device}/device/vendor")), "0x15ad\n");
        assert_eq!(shell(&format!("test -d {device} && test ! -e {device}x && echo yes")), "yes\n");
        assert_eq!(shell(&format!("find {device}/ports -name state")), format!("{device}/ports/1/state\n"));
        assert_eq!(shell(&format!("grep -rl ACTIVE {device}/ports/1/state")), format!("{device}/ports/1/state\n"));
        let files = shell(&format!("ls -lR {device} | grep -c ^-"));
        assert!(files.trim_end().parse::<u32>().is_ok_and(|count| count > 50), "{files}");
        let slot = shell(&format!("readlink -f {device}/device"));
        assert!(slot.ends_with("/devices/pci0000:00/0000:00:0b.1\n"), "{slot}");
        assert_eq!(shell(&format!("realpath {device}/device")), slot);
        assert_eq!(shell("stat -c '%F %t:%T' /dev/infiniband/uverbs0"), "character special file e7:c0\n");
        assert!(shell("ls -l /dev/infiniband/uverbs0").starts_with("crw-rw-rw-"));
        assert_eq!(stand.leftovers(), Vec::<PathBuf>::new());
    }
}

/// Python has ways of its own to list, and closes what it does not know when it starts programs.
#[test]
fn python() {
    let _machine = machine();
    if Command::new("python3").arg("--version").output().is_err() {
        return cannot_run("RDMA devices as seen by Python", "python3 is not installed");
    }
    let stand = Stand::new(User::Me);
    let text = stand.job("python3").args(["-c", PYTHON]).ok();
    assert_eq!(text, "good\n");
    assert_eq!(stand.leftovers(), Vec::<PathBuf>::new());
}

const PYTHON: &str = r#"
import glob, os, pathlib, subprocess
base = "/sys/class/infiniband"
device = base + "/vmw_pvrdma0"
assert os.listdir(base) == ["vmw_pvrdma0"]
assert [entry.name for entry in os.scandir(base)] == ["vmw_pvrdma0"]
assert [str(path) for path in pathlib.Path(base).iterdir()] == [device]
assert glob.glob(base + "/*/ports/*/gids/0") == [device + "/ports/1/gids/0"]
assert pathlib.Path(device, "node_type").read_text() == "1: CA\n"
assert open(os.path.realpath(device + "/device") + "/vendor").read() == "0x15ad\n"
assert sum(len(files) for _, _, files in os.walk(device)) > 50
assert os.stat("/dev/infiniband/uverbs0").st_rdev == os.makedev(231, 192)
for arguments in ({}, {"start_new_session": True}, {"preexec_fn": lambda: None}):
    text = subprocess.run(["ibv_devinfo"], capture_output=True, text=True, check=True, close_fds=True, **arguments).stdout
    assert "vmw_pvrdma0" in text
print("good")
"#;

#[test]
fn cxx_filesystem() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let place = stand.run_folder().join("filesystem");
    let mut compiler = Command::new("c++")
        .args(["-std=c++17", "-x", "c++", "-", "-o"])
        .arg(&place)
        .stdin(Stdio::piped())
        .spawn()
        .expect("a C++ compiler called c++ is installed");
    compiler.stdin.take().expect("a pipe").write_all(CXX.as_bytes()).expect("the compiler reads");
    assert!(compiler.wait().expect("own child").success());
    let program = stand.copy(&place);
    std::fs::remove_file(place).expect("own file");
    assert_eq!(stand.job(&program).ok(), "vmw_pvrdma0 16 0000:00:0b.1 RoCE v2\n");
}

const CXX: &str = r#"
#include <filesystem>
#include <fstream>
#include <iostream>
namespace fs = std::filesystem;
int main()
{
    fs::path base = "/sys/class/infiniband";
    if (!fs::is_directory(base) || fs::exists(base / "nobody"))
        return 1;
    for (auto &device : fs::directory_iterator(base)) {
        int gids = 0;
        for (auto &file : fs::recursive_directory_iterator(device / fs::path("ports")))
            gids += file.path().parent_path().filename() == "gids";
        std::string type;
        std::getline(std::ifstream(device / fs::path("ports/1/gid_attrs/types/1")), type);
        std::cout << device.path().filename().string() << " " << gids << " "
                  << fs::canonical(device / fs::path("device")).filename().string() << " " << type << "\n";
    }
}
"#;

/// NCCL's way to libibverbs.
#[test]
fn libibverbs_by_dlopen() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let program = stand.copy(&c_program("tests/c/dlopen.c", &["-Wl,--as-needed"]));
    for provider in Provider::BOTH {
        assert_eq!(stand.job(&program).provider(&provider).ok(), "ok\n");
    }
}

/// A Python wheel's way to libibverbs: a copy of its own, whose name and soname are its own too. The provider is loaded
/// by that copy and must not register with the machine's, which may be there beside it.
#[test]
fn libibverbs_of_another_name() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let program = stand.copy(&c_program("tests/c/renamed.c", &["-Wl,--as-needed"]));
    let own = machines_libibverbs();
    // Of the same length, so that it fits where the other stands.
    let (soname, other) = (b"libibverbs.so.1\0", b"libib-1de126.so\0");
    let mut bytes = std::fs::read(&own).expect("the machine's libibverbs");
    let places: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(soname)).collect();
    assert!(!places.is_empty(), "{} has its soname", own.display());
    places.iter().for_each(|at| bytes[*at..][..other.len()].copy_from_slice(other));
    let renamed = stand.run_folder().join("libib-1de126.so");
    std::fs::write(&renamed, bytes).expect("own folder");

    let own = Path::new("libibverbs.so.1");
    for libraries in [&[renamed.as_path()][..], &[own, &renamed], &[&renamed, own]] {
        let output = stand.job(&program).provider(&Provider::Ours).args(libraries).output();
        assert_eq!(output.stdout, "vmw_pvrdma0\n", "{libraries:?}: {output}");
    }
}

fn machines_libibverbs() -> PathBuf {
    let output = Command::new("ldconfig").arg("-p").env("PATH", "/usr/sbin:/sbin").output().expect("ldconfig");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find(|line| line.trim_start().starts_with("libibverbs.so.1 "));
    let (_, path) = line.and_then(|line| line.split_once(" => ")).expect("libibverbs is installed");
    PathBuf::from(path)
}

#[test]
fn threads() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    all_cases(&stand, &c_program("tests/c/threads.c", &[]));
}

/// The dynamic loader as the program: it looks static and is not.
#[test]
fn the_loader_as_the_program() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let tool =
        String::from_utf8(Command::new("sh").args(["-c", "command -v ibv_devinfo"]).output().expect("sh").stdout)
            .expect("a path");
    let text = stand.job("/lib64/ld-linux-x86-64.so.2").args([tool.trim_end()]).ok();
    assert!(text.contains("vmw_pvrdma0"), "{text}");
}
