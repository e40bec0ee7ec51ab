//! Every package installed, upgraded, removed and installed again, in root folders of Debian releases made for that
//! ([`Root`]): after each step it is seen which provider serves, and that nobody prints a warning.
//!
//! The releases have libibverbs 33, 44, 56 and 65, each with its own tools and libc. All of them run the same files,
//! which also run in stories of `tests/tests` first. What README.md has a user of a package type is typed here.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use pvrdma_tests::readme;

use super::build::Built;
use super::root::{self, Kind, Root, TRIAL};
use super::{Release, deb, rpm, timed};
use crate::shell;
use crate::vm::apt::Mirror;

/// Debian 11 to 14.
const SUITES: [&str; 4] = ["bullseye", "bookworm", "trixie", "forky"];

/// Has what RDMA programs want.
const RDMA: Kind =
    Kind { name: "rdma", packages: &["ibverbs-utils", "ibverbs-providers", "perftest"], again: &["ibverbs-providers"] };

/// A version before this one, to upgrade from.
const OLDER: &str = "0.0.1";

/// Which releases packages are tried in: all, or the oldest and the newest.
fn suites(all: bool) -> Vec<&'static str> {
    if all { SUITES.to_vec() } else { vec![SUITES[0], SUITES[SUITES.len() - 1]] }
}

/// Who has the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Who {
    /// Our provider, by the file `/usr/lib/pvrdma/libvmw_pvrdma.so` or that of /usr/local.
    Ours,
    /// rdma-core's.
    Theirs,
}

/// The tarballs of the roots, made while something else is built. None where there can be no roots.
pub fn roots(all: bool) -> Result<Vec<(&'static str, PathBuf)>> {
    if !root::possible("packages in root folders")? {
        return Ok(Vec::new());
    }
    let mirror = Mirror::of_this_machine()?;
    suites(all).into_iter().map(|suite| Ok((suite, root::tarball(&mirror, suite, RDMA)?))).collect()
}

pub fn main(release: &Release, built: &Built, roots: &[(&'static str, PathBuf)], all: bool) -> Result<()> {
    timed("stories", || stories(built, all))?;
    let older = release.scratch("older")?;
    for package in deb::PACKAGES {
        package.write(release, built, OLDER, &older)?;
    }
    rpm::write(release, built, OLDER, &older)?;
    let newest = SUITES.last();
    for (suite, packed) in roots {
        timed(suite, || {
            let root = Root::new(packed, suite, release.scratch(&format!("root-{suite}"))?)?;
            bring(&root, release, &older)?;
            is_served_by(&root, Who::Theirs, "as it came")?;
            deb(&root, release)?;
            // What is tried beside `.deb` needs one of them only.
            if Some(suite) == newest {
                tarball(&root, release)?;
                rpms(&root, release, &older)?;
            }
            root.remove()
        })?;
    }
    Ok(())
}

/// The very files of the release in stories of `tests/tests`: a libibverbs of each release, the panic wall, every verb.
/// With `all` also over the C provider, as other users and asleep, of which the roots have a part anyway.
fn stories(built: &Built, all: bool) -> Result<()> {
    let mut tests = shell::cargo(&["test", "--quiet", "-p", "pvrdma-tests"]);
    tests.args(["--test", "releases", "--test", "rc_loop", "--test", "ex_loop"]);
    if all {
        tests.args(["--test", "pingpong"]);
    } else {
        tests.args(["--", "--skip", "systems_provider", "--skip", "under_address_sanitizer"]);
    }
    shell::run(tests.env("PVRDMA_BUILT", &built.stripped))
}

fn deb(root: &Root, release: &Release) -> Result<()> {
    let dpkg = |version: &str| {
        root.run(&format!("cd {TRIAL}; dpkg -i pvrdma-provider_{version}_amd64.deb pvrdma_{version}_amd64.deb"))
    };
    dpkg(OLDER)?;
    is_served_by(root, Who::Ours, "dpkg -i")?;
    // As README.md has it. An apt that is root in a folder of root's needs no other user to read it.
    let line = readme::line("sudo apt install ./pvrdma-provider")
        .replace("sudo apt", "apt-get -qy -o APT::Sandbox::User=root");
    ensure!(line.contains(&release.version), "README.md installs another version: {line}");
    root.run(&format!("cd {TRIAL}; {line}"))?;
    is_served_by(root, Who::Ours, "apt install of a newer version")?;
    as_readme_says(root)?;
    has_a_desk(root, "/usr")?;
    every_tool(root)?;
    root.run(&format!("dpkg -i {TRIAL}/ibverbs-providers_*.deb"))?;
    is_served_by(root, Who::Ours, "dpkg -i of ibverbs-providers again")?;
    root.run("dpkg -r pvrdma pvrdma-provider")?;
    is_served_by(root, Who::Theirs, "dpkg -r")?;
    dpkg(&release.version)?;
    is_served_by(root, Who::Ours, "dpkg -i again")?;
    root.run("dpkg -P pvrdma pvrdma-provider")?;
    is_served_by(root, Who::Theirs, "dpkg -P")?;
    // Without a trace.
    root.run("test -z \"$(dpkg-divert --list '*pvrdma*')\" && test ! -e /usr/lib/pvrdma && dpkg --audit")?;
    root.run("test -z \"$(find /usr -name '*pvrdma*' ! -path '*/libibverbs/*')\"")?;
    root.run("dpkg --verify ibverbs-providers")
}

/// The blocks of README.md that take a guest with a device and the package, typed in one of the stand-in.
fn as_readme_says(root: &Root) -> Result<()> {
    let blocks = readme::blocks();
    let block = |beginning: &str| {
        let found = blocks.iter().find(|block| block.text.starts_with(beginning));
        found.map(|block| block.text.as_str()).with_context(|| format!("README.md has no {beginning}"))
    };
    let script = format!(
        "sudo() {{ \"$@\"; }}\nmodprobe() {{ :; }}\n{}{}",
        block("sudo modprobe vmw_pvrdma")?,
        block("LD_DEBUG=libs ibv_devinfo")?
    );
    fs::write(root.folder.join(&TRIAL[1..]).join("readme.sh"), script)?;
    let said = root.run_for_output(&format!("pvrdma run --provider system -- bash -e {TRIAL}/readme.sh"))?;
    ensure!(said.contains("ok      self-test"), "pvrdma doctor:\n{said}");
    ensure!(said.matches("PORT_ACTIVE").count() == 2, "ibv_devinfo, twice:\n{said}");
    let loaded: Vec<&str> = said.lines().filter(|line| line.contains("calling init")).collect();
    ensure!(loaded.len() == 1, "one provider is loaded: {loaded:?}");
    Ok(())
}

fn tarball(root: &Root, release: &Release) -> Result<()> {
    let unpacked = format!("/trial/{}-x86_64-linux", release.folder());
    let before = root.run_for_output("cat /etc/libibverbs.d/vmw_pvrdma.driver")?;
    for step in ["install.sh", "install.sh again"] {
        root.run(&format!("{unpacked}/install.sh"))?;
        is_served_by(root, Who::Ours, step)?;
    }
    root.run("/usr/local/bin/pvrdma run -- ibv_devinfo | grep -q PORT_ACTIVE")?;
    has_a_desk(root, "/usr/local")?;
    root.run(&format!("{unpacked}/install.sh --undo"))?;
    is_served_by(root, Who::Theirs, "install.sh --undo")?;
    ensure!(root.run_for_output("cat /etc/libibverbs.d/vmw_pvrdma.driver")? == before, "install.sh leaves a line");
    root.run("test -z \"$(find /usr/local /etc -name '*pvrdma*' ! -name vmw_pvrdma.driver)\"")
}

/// By the machine's rpm: what it installs into a root folder it records there, and runs its scripts there. What the
/// packages depend on is Debian's, of which it knows nothing.
fn rpms(root: &Root, release: &Release, older: &Path) -> Result<()> {
    let rpm = |arguments: &[&str], folder: &Path, version: &str| {
        let mut command = Command::new("rpm");
        command.arg("--root").arg(&root.folder).args(arguments);
        for name in ["pvrdma-provider", "pvrdma"] {
            if version.is_empty() {
                command.arg(name);
            } else {
                command.arg(folder.join(format!("{name}-{version}-1.x86_64.rpm")));
            }
        }
        shell::output(&mut command).map(drop)
    };
    rpm(&["--nodeps", "-i"], older, OLDER)?;
    is_served_by(root, Who::Ours, "rpm -i")?;
    rpm(&["--nodeps", "-U"], &release.out, &release.version)?;
    is_served_by(root, Who::Ours, "rpm -U")?;
    root.run("pvrdma run -- ibv_devinfo | grep -q PORT_ACTIVE")?;
    has_a_desk(root, "/usr")?;
    rpm(&["-e"], older, "")?;
    is_served_by(root, Who::Theirs, "rpm -e")?;
    root.run("test ! -e /usr/lib/pvrdma && test ! -e /usr/bin/pvrdma")?;
    rpm(&["--nodeps", "-i"], &release.out, &release.version)?;
    is_served_by(root, Who::Ours, "rpm -i again")?;
    rpm(&["-e"], older, "")?;
    is_served_by(root, Who::Theirs, "rpm -e again")
}

/// The release's own programs over our provider.
fn every_tool(root: &Root) -> Result<()> {
    const PAIRS: &[&str] = &[
        "ibv_rc_pingpong -g 1 -c -e",
        "ibv_rc_pingpong -g 1 -c -N",
        "ibv_ud_pingpong -g 1",
        "ibv_srq_pingpong -g 1 -c",
        "ib_send_bw -n 200",
        "ib_send_bw -n 200 -c UD -r 400",
        "ib_write_lat -n 100",
        "ib_read_bw -n 200",
        "ib_atomic_bw -n 200",
        "ib_send_lat -n 100 -e",
    ];
    for program in PAIRS {
        pair(root, program, Who::Ours)?;
    }
    Ok(())
}

/// Puts packages into the root's [`TRIAL`], and `pvrdma` unpacked, to run programs by.
fn bring(root: &Root, release: &Release, older: &Path) -> Result<()> {
    let trial = root.folder.join(&TRIAL[1..]);
    for folder in [&release.out, older] {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                fs::copy(&path, trial.join(path.file_name().context("a file has a name")?))?;
            }
        }
    }
    let tarball = release.out.join(format!("{}-x86_64-linux.tar.xz", release.folder()));
    shell::output(Command::new("tar").arg("-xf").arg(tarball).arg("-C").arg(&trial))?;
    fs::rename(trial.join(format!("{}-x86_64-linux", release.folder())), trial.join("tool"))?;
    shell::output(
        Command::new("cp")
            .arg("-a")
            .arg(trial.join("tool"))
            .arg(trial.join(format!("{}-x86_64-linux", release.folder()))),
    )?;
    Ok(())
}

/// `pvrdma` has its manual pages, its completion, which bash takes, and its unit, each where it is looked for.
fn has_a_desk(root: &Root, prefix: &str) -> Result<()> {
    root.run(&format!(
        "cd {prefix}\n\
         for page in run serve link status doctor; do zcat -f share/man/man1/pvrdma-$page.1* | grep -q '^.SH SYNOPSIS'; done\n\
         bash --norc -ec '. share/bash-completion/completions/pvrdma; complete -p pvrdma'\n\
         grep -q '^#compdef pvrdma' share/zsh/*/_pvrdma\n\
         grep -q 'complete -c pvrdma' share/fish/vendor_completions.d/pvrdma.fish\n\
         grep -q '^ExecStart={prefix}/bin/pvrdma serve ' lib/systemd/system/pvrdma-serve.service"
    ))
}

/// libibverbs, left to itself, loads one provider for the device, this one, and prints nothing; and it works.
fn is_served_by(root: &Root, who: Who, after: &str) -> Result<()> {
    let loaded = root.run_for_output(
        "export LD_DEBUG=libs\n\
         /trial/tool/bin/pvrdma run --provider system -- ibv_devinfo 2>&1 |\n\
         sed -n 's/.*calling init: \\(.*libvmw_pvrdma.*\\)/\\1/p' | sort -u | xargs -r -n 1 readlink -f",
    )?;
    let found = match loaded.lines().collect::<Vec<_>>()[..] {
        [file] if file.ends_with("/lib/pvrdma/libvmw_pvrdma.so") => Who::Ours,
        [file] if file.contains("/libibverbs/libvmw_pvrdma-rdmav") => Who::Theirs,
        _ => bail!("{}, after {after}: these providers are loaded: {loaded:?}", root.suite),
    };
    ensure!(found == who, "{}, after {after}: {loaded:?} serves", root.suite);
    let words = root.run_for_output(
        "/trial/tool/bin/pvrdma run --provider system -- ibv_devinfo 2>&1 >/tmp/out; grep -q PORT_ACTIVE /tmp/out",
    )?;
    ensure!(words.is_empty(), "{}, after {after}: {words}", root.suite);
    pair(root, "ibv_rc_pingpong -g 1 -c", who)
}

/// A server and a client in two guests. The client comes again until the server listens.
fn pair(root: &Root, program: &str, who: Who) -> Result<()> {
    let port = pvrdma_tests::free_port();
    let run = "/trial/tool/bin/pvrdma run --provider system --guest";
    let words = root.run_for_output(&format!(
        "{run} a -- {program} -p {port} >/tmp/server 2>&1 &\n\
         server=$!\n\
         until {run} b -- {program} -p {port} 127.0.0.1 >/tmp/client 2>&1; do\n\
             kill -0 $server 2>/dev/null || {{ cat /tmp/server /tmp/client >&2; exit 1; }}\n\
             sleep 0.2\n\
         done\n\
         wait $server || {{ cat /tmp/server >&2; exit 1; }}\n\
         cat /tmp/server /tmp/client"
    ))?;
    ensure!(!words.contains("libibverbs: Warning"), "{}, {program}, {who:?}: {words}", root.suite);
    Ok(())
}
