//! The provider installed by `packaging/install.sh`, by hand and through CMake: one file, a link per private ABI, one
//! `driver` line, and all of it undone. Packages are tried by `cargo xtask package --trial`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use pvrdma_tests::{Job, Provider, Stand, User, cannot_run, machine, pair, workspace};

/// Where rdma-core's packages have their line for this device, below a folder in the place of /.
const CONFIG: &str = "etc/libibverbs.d/vmw_pvrdma.driver";
/// That line.
const STOCK: &str = "driver vmw_pvrdma\n";

/// Runs a program with `/etc/libibverbs.d` replaced by `folder`, in a mount namespace of its own, so that the
/// machine's file is not touched. The stand-in itself chooses no provider: libibverbs finds one by its configuration.
fn job<'a>(stand: &'a Stand, folder: &str, program: &[&str]) -> Job<'a> {
    let script = format!("mount --bind {folder} /etc/libibverbs.d && exec \"$@\"");
    // An ordinary user becomes root of a user namespace for the mount.
    let namespaces: &[&str] = if is_root() { &["--mount"] } else { &["--user", "--map-root-user", "--mount"] };
    stand
        .job("unshare")
        .provider(&Provider::System)
        .args(namespaces)
        .args(["sh", "-c", &script, "sh"])
        .args(program)
        .env("LD_DEBUG", "libs")
}

fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions.
    unsafe { libc::geteuid() == 0 }
}

/// `install.sh` for a stand's files.
fn install(stand: &Stand, prefix: &Path, arguments: &[&str]) -> Output {
    Command::new(workspace().join("packaging/install.sh"))
        .arg("--from")
        .arg(stand.path(""))
        .arg("--prefix")
        .arg(prefix)
        .args(arguments)
        .output()
        .expect("sh starts")
}

fn installed(output: &Output) {
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

/// Every file and link below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() && !path.is_symlink() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

#[test]
fn one_driver_line_makes_it_the_machines_provider() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let prefix = stand.run_folder().join("prefix");
    let etc = stand.run_folder().join("etc");
    installed(&install(&stand, &prefix, &["--sysconfdir", etc.to_str().expect("a plain path")]));

    let folder = etc.join("libibverbs.d");
    let folder = folder.to_str().expect("a plain path");
    let output = job(&stand, folder, &["ibv_devinfo"]).output();
    let loaded: Vec<&str> = output.stderr.lines().filter(|line| line.contains("calling init:")).collect();
    let ours: Vec<_> = loaded.iter().filter(|line| line.contains("libvmw_pvrdma")).collect();
    assert_eq!(ours.len(), 1, "{ours:#?}");
    assert!(ours[0].contains(prefix.to_str().expect("a plain path")), "{}", ours[0]);
    assert!(output.ok().contains("PORT_ACTIVE"));

    let ping = ["ibv_rc_pingpong", "-c", "-g", "1"];
    let (server, client) = pair(job(&stand, folder, &ping), job(&stand, folder, &ping));
    server.ok();
    client.ok();
    // The command that was installed beside it finds both libraries.
    let program = prefix.join("bin/pvrdma");
    let words = stand.plain(program).args(["run", "--", "ibv_devinfo"]).ok();
    assert!(words.contains("PORT_ACTIVE"), "{words}");
}

/// Direct verbs as a program's build finds them, by pkg-config, and as the loader does. They are the very file that
/// serves.
#[test]
fn a_program_that_uses_direct_verbs_is_built_and_runs() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let prefix = stand.run_folder().join("prefix");
    let etc = stand.run_folder().join("etc");
    installed(&install(&stand, &prefix, &["--sysconfdir", etc.to_str().expect("a plain path")]));
    let lib = prefix.join("lib");
    let served = fs::canonicalize(lib.join("pvrdma/libvmw_pvrdma.so")).expect("the provider");
    for name in ["libpvrdmadv.so", "libpvrdmadv.so.1"] {
        assert_eq!(fs::canonicalize(lib.join(name)).expect("a link"), served);
    }
    let config = |arguments: &[&str]| {
        let path = lib.join("pkgconfig");
        let output = Command::new("pkg-config").args(arguments).arg("pvrdmadv").env("PKG_CONFIG_PATH", path).output();
        let output = output.expect("pkg-config is installed");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("text").trim().to_owned()
    };
    assert_eq!(config(&["--modversion"]), env!("CARGO_PKG_VERSION"));
    let program = stand.path("direct");
    let output = Command::new("cc")
        .args(["-std=gnu11", "-pthread", "-o"])
        .arg(&program)
        .arg(workspace().join("tests/c/direct.c"))
        .args(config(&["--cflags", "--libs"]).split(' '))
        .arg("-libverbs")
        .output()
        .expect("a C compiler");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let folder = etc.join("libibverbs.d");
    let program = [program.to_str().expect("a plain path"), "loaded_once", "laps"];
    let output = job(&stand, folder.to_str().expect("a plain path"), &program).env("LD_LIBRARY_PATH", &lib).output();
    let loaded = output.stderr.lines().filter(|line| line.contains("calling init:") && line.contains("pvrdma"));
    let ours = loaded.filter(|line| !line.contains("standin")).count();
    assert_eq!(ours, 1, "{}", output.stderr);
    assert_eq!(output.ok(), "ok loaded_once\nok laps\n");
    let page = Command::new("man").arg("-w").arg("-M").arg(prefix.join("share/man")).arg("pvrdmadv_query_cq").output();
    assert!(page.expect("man is installed").status.success());
}

/// Whatever was in the configuration before, it is what it was, and nothing else is left.
#[test]
fn undoing_leaves_what_was_there() {
    let _machine = machine();
    for before in [None, Some(STOCK), Some("# changed by hand\ndriver  vmw_pvrdma\n")] {
        for times in [1, 2] {
            let stand = Stand::new(User::Me);
            let root = stand.run_folder().join("root");
            let config = root.join(CONFIG);
            fs::create_dir_all(config.parent().expect("a folder")).expect("a new folder");
            if let Some(text) = before {
                fs::write(&config, text).expect("a file");
            }
            let arguments = ["--root", root.to_str().expect("a plain path")];
            for _ in 0..times {
                installed(&install(&stand, Path::new("/usr/local"), &arguments));
                let line = fs::read_to_string(&config).expect("a line");
                assert_eq!(line, "driver /usr/local/lib/pvrdma/libvmw_pvrdma\n");
                // libibverbs reads every file there.
                assert_eq!(files(config.parent().expect("a folder")).len(), 1);
            }
            assert!(root.join("usr/local/bin/pvrdma").exists());
            installed(&install(&stand, Path::new("/usr/local"), &[&arguments[..], &["--undo"]].concat()));
            assert_eq!(fs::read_to_string(&config).ok().as_deref(), before);
            assert_eq!(files(&root).len(), usize::from(before.is_some()), "{:?}", files(&root));
        }
    }
}

/// Manual pages, completion and the systemd unit lie where their readers look, and the readers take them.
#[test]
fn man_the_shells_and_systemd_find_their_files() {
    let stand = Stand::new(User::Me);
    let prefix = stand.run_folder().join("prefix");
    let etc = stand.run_folder().join("etc");
    installed(&install(&stand, &prefix, &["--sysconfdir", etc.to_str().expect("a plain path")]));
    let share = prefix.join("share");
    let share = share.to_str().expect("a plain path");
    let unit = prefix.join("lib/systemd/system/pvrdma-serve.service");
    let unit_text = fs::read_to_string(&unit).expect("the unit");
    assert!(unit_text.contains(&format!("\nExecStart={}/bin/pvrdma serve $", prefix.display())), "{unit_text}");

    // Each asks one reader, by a shell script that gets `share`, the unit and `bin`, and says what it must answer.
    let readers = [
        (
            "man",
            "for page in run serve link status doctor; do man -M \"$1/man\" -w pvrdma-$page | sed 's,.*/,,'; done",
            "pvrdma-run.1\npvrdma-serve.1\npvrdma-link.1\npvrdma-status.1\npvrdma-doctor.1\n",
        ),
        // groff's warnings are about the page.
        (
            "man",
            "for page in \"$1\"/man/man1/*; do LC_ALL=C.UTF-8 man --warnings -l \"$page\" 2>&1 >/dev/null; done",
            "",
        ),
        (
            "bash",
            "bash --norc -ec '. \"$0\"/bash-completion/completions/pvrdma; complete -p pvrdma' \"$1\"",
            "complete -F _pvrdma pvrdma\n",
        ),
        (
            "zsh",
            "zsh -fc 'fpath=($0/zsh/site-functions $fpath); autoload -Uz compinit; compinit -uD; \
            echo $_comps[pvrdma]; autoload +X _pvrdma' \"$1\"",
            "_pvrdma\n",
        ),
        (
            "fish",
            "XDG_DATA_DIRS=$1 PATH=$3:$PATH fish --no-config -c '\
            source $argv[1]/fish/vendor_completions.d/pvrdma.fish; complete -C \"pvrdma run --gu\"' \"$1\" | cut -f 1",
            "--guest\n",
        ),
        ("systemd-analyze", "systemd-analyze --man=no verify \"$2\" 2>&1", ""),
    ];
    let bin = prefix.join("bin");
    for (reader, script, answer) in readers {
        if Command::new("sh")
            .args(["-c", "command -v \"$0\"", reader])
            .output()
            .is_ok_and(|found| !found.status.success())
        {
            cannot_run("man_the_shells_and_systemd_find_their_files", &format!("no {reader}"));
            continue;
        }
        let output = Command::new("sh")
            .args(["-c", script, "sh", share])
            .args([&unit, &bin])
            .env("HOME", stand.run_folder())
            .output()
            .expect("sh starts");
        let said = String::from_utf8(output.stdout).expect("text");
        let complaints = String::from_utf8(output.stderr).expect("text");
        assert_eq!((said.as_str(), complaints.as_str()), (answer, ""), "{reader}: {script}");
    }
}

/// rdma-core's package was removed, or somebody chose another provider: that stays.
#[test]
fn undoing_touches_no_line_of_others() {
    let stand = Stand::new(User::Me);
    let root = stand.run_folder().join("root");
    let config = root.join(CONFIG);
    let arguments = ["--root", root.to_str().expect("a plain path")];
    for after in [None, Some("driver /opt/other/libvmw_pvrdma\n")] {
        fs::create_dir_all(config.parent().expect("a folder")).expect("a folder");
        fs::write(&config, STOCK).expect("a file");
        installed(&install(&stand, Path::new("/usr/local"), &arguments));
        match after {
            None => fs::remove_file(&config).expect("it is there"),
            Some(text) => fs::write(&config, text).expect("a file"),
        }
        installed(&install(&stand, Path::new("/usr/local"), &[&arguments[..], &["--undo"]].concat()));
        assert_eq!(fs::read_to_string(&config).ok().as_deref(), after);
    }
}

/// rpm lays the file of a package that comes later beside ours, where libibverbs would read it.
#[test]
fn the_file_of_a_later_package_is_put_aside() {
    let stand = Stand::new(User::Me);
    let root = stand.run_folder().join("root");
    let config = root.join(CONFIG);
    let arguments = ["--root", root.to_str().expect("a plain path")];
    installed(&install(&stand, Path::new("/usr"), &arguments));
    fs::write(config.with_extension("driver.rpmnew"), STOCK).expect("a file");
    let line = [&arguments[..], &["--line-only"]].concat();
    installed(&install(&stand, Path::new("/usr"), &line));
    assert_eq!(files(config.parent().expect("a folder")), std::slice::from_ref(&config));
    installed(&install(&stand, Path::new("/usr"), &[&line[..], &["--undo"]].concat()));
    assert_eq!(fs::read_to_string(&config).expect("theirs"), STOCK);
}

#[test]
fn folders_that_no_driver_line_can_name_are_refused() {
    let stand = Stand::new(User::Me);
    let root = stand.run_folder().join("root");
    for prefix in ["relative", "/with blank"] {
        let output = install(&stand, Path::new(prefix), &["--root", root.to_str().expect("a plain path")]);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(!output.stderr.is_empty() && !root.exists());
    }
}

/// A configured tree of CMake's, with a `cargo` that copies what is there already.
struct CMake<'a> {
    stand: &'a Stand,
    tree: PathBuf,
    dest: PathBuf,
}

impl<'a> CMake<'a> {
    fn new(stand: &'a Stand) -> Self {
        let cargo = stand.run_folder().join("cargo");
        let script = format!(
            "#!/bin/sh\n\
             while [ $# -gt 1 ]; do [ \"$1\" = --target-dir ] && folder=$2; shift; done\n\
             folder=$folder/${{CARGO_BUILD_TARGET:-}}/release\n\
             mkdir -p \"$folder\" && cp '{0}/libvmw_pvrdma.so' '{0}/libpvrdma_standin.so' '{0}/pvrdma' \"$folder\"\n",
            stand.path("").display()
        );
        fs::write(&cargo, script).expect("a file");
        assert!(Command::new("chmod").arg("+x").arg(&cargo).status().expect("chmod starts").success());
        CMake { stand, tree: stand.run_folder().join("tree"), dest: stand.run_folder().join("dest") }
    }

    fn run(&self, target: &str, arguments: &[&str]) {
        let output = Command::new("cmake")
            .args(arguments)
            .env("DESTDIR", &self.dest)
            .env("CARGO_BUILD_TARGET", target)
            .output()
            .expect("cmake starts");
        assert!(output.status.success(), "{output:?}");
    }

    fn configure(&self, settings: &[&str]) {
        let source = workspace().join("cmake");
        let cargo = format!("-DCARGO={}", self.stand.run_folder().join("cargo").display());
        let (source, tree) = (source.to_str().expect("a plain path"), self.tree());
        self.run("", &[&["-S", source, "-B", tree, &cargo], settings].concat());
    }

    fn tree(&self) -> &str {
        self.tree.to_str().expect("a plain path")
    }

    fn install(&self, target: &str) {
        self.run(target, &["--build", self.tree()]);
        self.run(target, &["--install", self.tree()]);
    }

    fn uninstall(&self) {
        self.run("", &["--build", self.tree(), "--target", "uninstall"]);
        let left = files(&self.dest);
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn cmake_does_what_the_script_does() {
    if Command::new("cmake").arg("--version").output().is_err() {
        return cannot_run("cmake_does_what_the_script_does", "no cmake");
    }
    let stand = Stand::new(User::Me);
    let cmake = CMake::new(&stand);
    let line = || fs::read_to_string(cmake.dest.join(CONFIG)).expect("a driver line");

    // By itself: a place that libibverbs reads.
    cmake.configure(&[]);
    cmake.install("");
    assert_eq!(line(), "driver /usr/local/lib/pvrdma/libvmw_pvrdma\n");
    let all = files(&cmake.dest);
    cmake.uninstall();
    let by_script = |arguments: &[&str]| {
        let root = ["--root", cmake.dest.to_str().expect("a plain path")];
        installed(&install(&stand, Path::new("/usr/local"), &[arguments, &root].concat()));
        let all = files(&cmake.dest);
        fs::remove_dir_all(&cmake.dest).expect("it is there");
        all
    };
    assert_eq!(all, by_script(&[]));
    cmake.configure(&["-DPVRDMA_COMMAND=OFF"]);
    cmake.install("");
    let all = files(&cmake.dest);
    cmake.uninstall();
    assert_eq!(all, by_script(&["--provider-only"]));
    cmake.configure(&["-DPVRDMA_COMMAND=ON"]);

    // Settings of a configured tree change, as does the target that cargo builds for.
    cmake.configure(&["-DCMAKE_INSTALL_PREFIX=/usr"]);
    cmake.install("x86_64-unknown-linux-gnu");
    assert_eq!(line(), "driver /usr/lib/pvrdma/libvmw_pvrdma\n");
    cmake.uninstall();
    cmake.configure(&["-DPVRDMA_REPLACE_STOCK=ON", "-DCMAKE_INSTALL_LIBDIR=lib64"]);
    cmake.install("");
    assert!(cmake.dest.join("usr/lib64/libibverbs/libvmw_pvrdma-rdmav34.so").is_symlink());
    assert!(cmake.dest.join("usr/lib64/libibverbs/libvmw_pvrdma.so").is_file());
    assert_eq!(files(&cmake.dest).len(), 1 + abis().len());
    cmake.uninstall();
    cmake.configure(&["-DPVRDMA_REPLACE_STOCK=OFF"]);
    cmake.install("");
    assert_eq!(line(), "driver /usr/lib/pvrdma/libvmw_pvrdma\n");
    cmake.uninstall();
}

/// The suffixes that the script links are those that exist, and those that `pvrdma run` offers.
#[test]
fn every_private_abi_has_a_link() {
    let found = Command::new("sh")
        .args(["-c", "ls /usr/lib/*/libibverbs/ | sed -n 's/.*-rdmav\\([0-9]*\\)\\.so/\\1/p' | sort -u"])
        .output()
        .expect("sh starts");
    let found = String::from_utf8(found.stdout).expect("text");
    assert!(!found.trim().is_empty(), "the machine has rdma-core's providers");
    let linked = abis();
    for abi in found.split_whitespace() {
        assert!(linked.iter().any(|linked| linked == abi), "{abi} is not among {linked:?}");
    }
    let program = fs::read_to_string(workspace().join("device/cli/src/provider.rs")).expect("a file");
    let offered =
        program.split_once("PRIVATE_ABIS: [u32; 7] = [").expect("the list").1.split_once(']').expect("its end");
    assert_eq!(offered.0.split(", ").collect::<Vec<_>>(), linked);
}

fn abis() -> Vec<String> {
    let script = fs::read_to_string(workspace().join("packaging/install.sh")).expect("a file");
    let list = script.lines().find_map(|line| line.strip_prefix("abis=\"")?.strip_suffix('"')).expect("the list");
    list.split(' ').map(str::to_owned).collect()
}
