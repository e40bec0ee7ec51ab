//! Every package installed, upgraded, removed and installed again, in root folders of Debian releases made for that
//! ([`Root`]): after each step it is seen which provider serves, and that nobody prints a warning.
//!
//! The releases have libibverbs 33, 44, 56 and 65, each with its own tools and libc. All of them run the same files,
//! which also run in stories of `tests/tests` first.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::build::Built;
use super::{Release, deb, rpm};
use crate::shell;
use crate::vm::apt::Mirror;

/// Debian 11 to 14.
const SUITES: &[&str] = &["bullseye", "bookworm", "trixie", "forky"];
/// What is tried beside `.deb` needs one of them only.
const ONE: &str = "bookworm";

/// A version before this one, to upgrade from.
const OLDER: &str = "0.0.1";

/// Who has the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Who {
    /// Our provider, by the file `/usr/lib/pvrdma/libvmw_pvrdma.so` or that of /usr/local.
    Ours,
    /// rdma-core's.
    Theirs,
}

pub fn all(release: &Release, built: &Built) -> Result<()> {
    super::timed("stories", || stories(built))?;
    // SAFETY: geteuid has no preconditions.
    if unsafe { libc::geteuid() } != 0 {
        ensure!(std::env::var_os("CI").is_none(), "packages are tried in root folders, for which it takes root");
        println!("NOT RUN: packages in root folders: it takes root");
        return Ok(());
    }
    let older = release.scratch("older")?;
    for package in deb::PACKAGES {
        package.write(release, built, OLDER, &older)?;
    }
    rpm::write(release, built, OLDER, &older)?;
    let mirror = Mirror::of_this_machine()?;
    for suite in SUITES {
        let root = super::timed(suite, || Root::new(release, &mirror, suite))?;
        root.bring(release, &older)?;
        root.is_served_by(Who::Theirs, "as it came")?;
        super::timed("deb", || deb(&root, release))?;
        if *suite == ONE {
            super::timed("tarball", || tarball(&root, release))?;
            super::timed("rpms", || rpms(&root, release, &older))?;
        }
        root.remove()?;
        println!("{suite}: ok");
    }
    Ok(())
}

/// The very files of the release in stories of `tests/tests`: a libibverbs of each release, the panic wall, every verb.
fn stories(built: &Built) -> Result<()> {
    let folder = built.file("pvrdma")?.stripped.parent().context("a file lies in a folder")?;
    shell::run(
        shell::cargo(&["test", "--quiet", "-p", "pvrdma-tests"])
            .args(["--test", "releases", "--test", "rc_loop", "--test", "ex_loop", "--test", "pingpong"])
            .env("PVRDMA_BUILT", folder),
    )
}

fn deb(root: &Root, release: &Release) -> Result<()> {
    let dpkg = |version: &str| {
        root.run(&format!("dpkg -i /trial/pvrdma-provider_{version}_amd64.deb /trial/pvrdma_{version}_amd64.deb"))
    };
    dpkg(OLDER)?;
    root.is_served_by(Who::Ours, "dpkg -i")?;
    dpkg(&release.version)?;
    root.is_served_by(Who::Ours, "dpkg -i of a newer version")?;
    root.run("pvrdma run -- ibv_devinfo | grep -q PORT_ACTIVE")?;
    root.has_a_desk("/usr")?;
    every_tool(root)?;
    root.run("dpkg -i /trial/ibverbs-providers_*.deb")?;
    root.is_served_by(Who::Ours, "dpkg -i of ibverbs-providers again")?;
    root.run("dpkg -r pvrdma pvrdma-provider")?;
    root.is_served_by(Who::Theirs, "dpkg -r")?;
    dpkg(&release.version)?;
    root.is_served_by(Who::Ours, "dpkg -i again")?;
    root.run("dpkg -P pvrdma pvrdma-provider")?;
    root.is_served_by(Who::Theirs, "dpkg -P")?;
    // Without a trace.
    root.run("test -z \"$(dpkg-divert --list '*pvrdma*')\" && test ! -e /usr/lib/pvrdma && dpkg --audit")?;
    root.run("test -z \"$(find /usr -name '*pvrdma*' ! -path '*/libibverbs/*')\"")?;
    root.run("dpkg --verify ibverbs-providers")
}

fn tarball(root: &Root, release: &Release) -> Result<()> {
    let unpacked = format!("/trial/{}-x86_64-linux", release.folder());
    let before = root.run_for_output("cat /etc/libibverbs.d/vmw_pvrdma.driver")?;
    for step in ["install.sh", "install.sh again"] {
        root.run(&format!("{unpacked}/install.sh"))?;
        root.is_served_by(Who::Ours, step)?;
    }
    root.run("/usr/local/bin/pvrdma run -- ibv_devinfo | grep -q PORT_ACTIVE")?;
    root.has_a_desk("/usr/local")?;
    root.run(&format!("{unpacked}/install.sh --undo"))?;
    root.is_served_by(Who::Theirs, "install.sh --undo")?;
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
    root.is_served_by(Who::Ours, "rpm -i")?;
    rpm(&["--nodeps", "-U"], &release.out, &release.version)?;
    root.is_served_by(Who::Ours, "rpm -U")?;
    root.run("pvrdma run -- ibv_devinfo | grep -q PORT_ACTIVE")?;
    root.has_a_desk("/usr")?;
    rpm(&["-e"], older, "")?;
    root.is_served_by(Who::Theirs, "rpm -e")?;
    root.run("test ! -e /usr/lib/pvrdma && test ! -e /usr/bin/pvrdma")?;
    rpm(&["--nodeps", "-i"], &release.out, &release.version)?;
    root.is_served_by(Who::Ours, "rpm -i again")?;
    rpm(&["-e"], older, "")?;
    root.is_served_by(Who::Theirs, "rpm -e again")
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
    for pair in PAIRS {
        root.pair(pair, Who::Ours)?;
    }
    Ok(())
}

/// A Debian release in a folder.
struct Root {
    suite: &'static str,
    folder: PathBuf,
}

impl Root {
    /// Makes it, from a tarball that is fetched the first time.
    fn new(release: &Release, mirror: &Mirror, suite: &'static str) -> Result<Root> {
        let cache = shell::target().join("package/roots");
        let tarball = cache.join(format!("{suite}.tar"));
        if !tarball.exists() {
            println!("# Debian {suite}, by mmdebstrap, once");
            fs::create_dir_all(&cache)?;
            let partial = cache.join(format!("{suite}.partial.tar"));
            shell::output(
                Command::new("mmdebstrap")
                    .args(["--quiet", "--variant=apt", "--include=ibverbs-utils,ibverbs-providers,perftest"])
                    .args(["--aptopt=Acquire::Check-Valid-Until \"false\"", "--aptopt=Acquire::Languages \"none\""])
                    // To install it again beside ours.
                    .arg("--customize-hook=mkdir \"$1/trial\"")
                    .arg("--customize-hook=chroot \"$1\" sh -c 'cd /trial && apt-get download ibverbs-providers'")
                    .args([Path::new(suite), &partial, Path::new(mirror.main())]),
            )?;
            fs::rename(partial, &tarball)?;
        }
        let folder = release.scratch(&format!("root-{suite}"))?;
        shell::output(Command::new("tar").arg("-xf").arg(tarball).arg("-C").arg(&folder))?;
        Ok(Root { suite, folder })
    }

    /// Puts packages into its `/trial`, and `pvrdma` unpacked, to run programs by.
    fn bring(&self, release: &Release, older: &Path) -> Result<()> {
        let trial = self.folder.join("trial");
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

    /// A shell script as root of the folder, with `/proc` and `/dev`; its processes end with it.
    fn run_for_output(&self, script: &str) -> Result<String> {
        const INSIDE: &str = "mount -t proc proc \"$0/proc\" && mount --rbind /dev \"$0/dev\" && \
                              exec chroot \"$0\" /bin/sh -ec \"$1\"";
        shell::output(
            Command::new("unshare")
                .args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-c", INSIDE])
                .arg(&self.folder)
                .arg(script)
                .env_clear()
                .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
                .env("DEBIAN_FRONTEND", "noninteractive"),
        )
        .with_context(|| format!("in Debian {}", self.suite))
    }

    fn run(&self, script: &str) -> Result<()> {
        self.run_for_output(script).map(drop)
    }

    /// `pvrdma` has its manual pages, its completion, which bash takes, and its unit, each where it is looked for.
    fn has_a_desk(&self, prefix: &str) -> Result<()> {
        self.run(&format!(
            "cd {prefix}\n\
             for page in run serve doctor; do zcat -f share/man/man1/pvrdma-$page.1* | grep -q '^.SH SYNOPSIS'; done\n\
             bash --norc -ec '. share/bash-completion/completions/pvrdma; complete -p pvrdma'\n\
             grep -q '^#compdef pvrdma' share/zsh/*/_pvrdma\n\
             grep -q 'complete -c pvrdma' share/fish/vendor_completions.d/pvrdma.fish\n\
             grep -q '^ExecStart={prefix}/bin/pvrdma serve ' lib/systemd/system/pvrdma-serve.service"
        ))
    }

    /// libibverbs, left to itself, loads one provider for the device, this one, and prints nothing; and it works.
    fn is_served_by(&self, who: Who, after: &str) -> Result<()> {
        let loaded = self.run_for_output(
            "export LD_DEBUG=libs\n\
             /trial/tool/bin/pvrdma run --provider system -- ibv_devinfo 2>&1 |\n\
             sed -n 's/.*calling init: \\(.*libvmw_pvrdma.*\\)/\\1/p' | sort -u | xargs -r -n 1 readlink -f",
        )?;
        let found = match loaded.lines().collect::<Vec<_>>()[..] {
            [file] if file.ends_with("/lib/pvrdma/libvmw_pvrdma.so") => Who::Ours,
            [file] if file.contains("/libibverbs/libvmw_pvrdma-rdmav") => Who::Theirs,
            _ => bail!("{}, after {after}: these providers are loaded: {loaded:?}", self.suite),
        };
        ensure!(found == who, "{}, after {after}: {loaded:?} serves", self.suite);
        let words = self.run_for_output(
            "/trial/tool/bin/pvrdma run --provider system -- ibv_devinfo 2>&1 >/tmp/out; grep -q PORT_ACTIVE /tmp/out",
        )?;
        ensure!(words.is_empty(), "{}, after {after}: {words}", self.suite);
        self.pair("ibv_rc_pingpong -g 1 -c", who)
    }

    /// A server and a client in two guests. The client comes again until the server listens.
    fn pair(&self, program: &str, who: Who) -> Result<()> {
        let port = pvrdma_tests::free_port();
        let run = "/trial/tool/bin/pvrdma run --provider system --guest";
        let words = self.run_for_output(&format!(
            "{run} a -- {program} -p {port} >/tmp/server 2>&1 &\n\
             server=$!\n\
             until {run} b -- {program} -p {port} 127.0.0.1 >/tmp/client 2>&1; do\n\
                 kill -0 $server 2>/dev/null || {{ cat /tmp/server /tmp/client >&2; exit 1; }}\n\
                 sleep 0.2\n\
             done\n\
             wait $server || {{ cat /tmp/server >&2; exit 1; }}\n\
             cat /tmp/server /tmp/client"
        ))?;
        ensure!(!words.contains("libibverbs: Warning"), "{}, {program}, {who:?}: {words}", self.suite);
        Ok(())
    }

    fn remove(self) -> Result<()> {
        fs::remove_dir_all(&self.folder)?;
        Ok(())
    }
}
