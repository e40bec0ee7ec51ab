//! `cargo xtask package`: a release, below `target/package`.
//!
//! First the source tarball, with every crate it takes ([`source`]); then, from that tarball and without a network,
//! the three files that users have, linked for an old glibc ([`build`], [`zig`]); then what carries them ([`deb`],
//! [`rpm`], a tarball with `packaging/install.sh`). So a release is what anybody gets from its source. The same source
//! gives the same bytes, wherever and whenever it is built: `--twice` builds again and compares. `--trial` installs and
//! removes every package in root folders of several Debian releases ([`trial`]).

mod build;
mod deb;
mod root;
mod rpm;
mod source;
mod trial;
mod zig;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use crate::vm::apt::Mirror;
use crate::{packages, shell};
use build::{Built, What};

const USAGE: &str = "\
usage: cargo xtask package [--twice] [--trial] [--check] [--all]

  Writes source and binary tarballs, .deb and .rpm below target/package/out.

  --twice   build the provider a second time in another folder, and compare all packages; check the source's provider
            with the oldest Rust
  --trial   install, upgrade and remove them in root folders of Debian 11 and forky; takes root
  --check   both
  --all     both, of all that is built, in Debian 11 to forky, and `cargo xtask demo` in bare Debian 12 and 13; takes
            half an hour
";

/// One release that is being made.
pub struct Release {
    version: String,
    /// Date of the source in seconds since 1970. Everything in a package bears it.
    date: u64,
    /// What is packed, by its name in git.
    commit: String,
    /// Where the packages go.
    out: PathBuf,
    /// A folder for everything on the way.
    work: PathBuf,
}

pub fn main(arguments: &[String]) -> Result<()> {
    let (mut twice, mut trial, mut all) = (false, false, false);
    for argument in arguments {
        match argument.as_str() {
            "--twice" => twice = true,
            "--trial" => trial = true,
            "--check" => (twice, trial) = (true, true),
            "--all" => (twice, trial, all) = (true, true, true),
            _ => bail!("unexpected argument {argument}\n{USAGE}"),
        }
    }
    packages::install(packages::PACKAGE)?;
    zig::fetch()?;
    let commit = source::commit()?;
    let place = shell::target().join("package");
    // Builds leave a core idle at times, and roots come from the network: side by side they take less.
    let again = if all { What::All } else { What::Provider };
    let (first, second, roots) = thread::scope(|scope| {
        let second = twice.then(|| {
            scope.spawn(|| {
                let work = place.join("another/folder/for/work");
                Made::new(&commit, place.join("second/out"), work, again, " again")
            })
        });
        let roots = trial.then(|| scope.spawn(|| timed("roots", || trial::roots(all))));
        let first = Made::new(&commit, place.join("out"), place.join("work"), What::All, "");
        let end = "a thread of ours does not panic";
        (first, second.map(|thread| thread.join().expect(end)), roots.map(|thread| thread.join().expect(end)))
    });
    let Made { release, source, built } = first?;
    timed("packages", || write_all(&release, &built))?;
    if let Some(mut second) = second.transpose()? {
        second.built.take_the_rest(&built)?;
        timed("packages again", || write_all(&second.release, &second.built))?;
        same(&release.out, &second.release.out)?;
        fs::remove_dir_all(&second.release.work)?;
        fs::remove_dir_all(&second.release.out)?;
        timed("oldest Rust", || build::with_the_oldest_rust(&release, &source, again))?;
    }
    if let Some(roots) = roots.transpose()? {
        trial::main(&release, &built, &roots, all)?;
    }
    if all {
        for suite in DEMO_SUITES {
            demo_in(suite)?;
        }
    }
    for name in names(&release.out)? {
        let size = fs::metadata(release.out.join(&name))?.len();
        println!("{:>9} kB  {}", size / 1024, release.out.join(name).display());
    }
    Ok(())
}

/// A release from its source to what is built.
struct Made {
    release: Release,
    source: PathBuf,
    built: Built,
}

impl Made {
    fn new(commit: &str, out: PathBuf, work: PathBuf, what: What, word: &str) -> Result<Made> {
        let release = Release::new(commit, out, work)?;
        let source = timed(&format!("source tarball{word}"), || source::tarball(&release))?;
        let built = timed(&format!("build{word}"), || build::from_source(&release, &source, what))?;
        Ok(Made { release, source, built })
    }
}

/// Debian 12 and 13.
const DEMO_SUITES: [&str; 2] = ["bookworm", "trixie"];

/// `cargo xtask demo --in SUITE`: the demo, from the source tarball, in a Debian that has nothing but apt and gcc,
/// without which no Rust program is linked. The Rust is this machine's; the demo installs what else it wants.
pub fn demo_in(suite: &str) -> Result<()> {
    let suite = DEMO_SUITES.into_iter().find(|known| *known == suite);
    let suite = suite.with_context(|| format!("the demo is tried in {}", DEMO_SUITES.join(" and ")))?;
    packages::install(packages::PACKAGE)?;
    if !root::possible("the demo in a bare Debian")? {
        return Ok(());
    }
    let place = shell::target().join("package/demo");
    let release = Release::new(&source::commit()?, place.join("out"), place.join("work"))?;
    let source = source::tarball(&release)?;
    let bare = root::Kind { name: "bare", packages: &["gcc", "libc6-dev"], again: &[] };
    let packed = root::tarball(&Mirror::of_this_machine()?, suite, bare)?;
    let root = root::Root::new(&packed, suite, release.scratch("root")?)?;
    shell::output(Command::new("tar").arg("-xf").arg(source).arg("-C").arg(&root.folder))?;
    fs::copy("/etc/resolv.conf", root.folder.join("etc/resolv.conf")).context("how names are resolved")?;
    let rust = shell::output(Command::new("rustc").args(["--print", "sysroot"]).current_dir(shell::workspace()))?;
    println!("# cargo xtask demo, in a bare Debian {suite}");
    let mut command = root.command(
        &format!(
            "mkdir \"$0/rust\" && mount --bind '{}' \"$0/rust\" && mount -t tmpfs tmpfs \"$0/dev/shm\" &&",
            rust.trim()
        ),
        &format!("export PATH=/rust/bin:$PATH; cd /{}; cargo xtask demo", release.folder()),
    );
    let said = timed("demo", || shell::output(&mut command))?;
    print!("{said}");
    ensure!(said.contains("PORT_ACTIVE"), "the demo in Debian {suite} has no device");
    for program in ["ib_write_bw", "ib_send_lat"] {
        ensure!(has_figures(&said, program), "the demo in Debian {suite} has no figures of {program}");
    }
    fs::remove_dir_all(place)?;
    Ok(())
}

/// Ends the row of a program in the demo's table with two figures, ours and the C provider's?
fn has_figures(table: &str, program: &str) -> bool {
    let row = table.lines().find(|line| line.starts_with(program)).unwrap_or_default();
    row.split_whitespace().rev().take(2).filter(|word| word.parse().is_ok_and(|figure: f64| figure > 0.0)).count() == 2
}

/// The check of that name of `cargo xtask test`.
pub fn check() -> Result<()> {
    main(&["--check".to_owned()])
}

/// Says how long a step took: of all checks this one has the most that is no test.
fn timed<T>(step: &str, run: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    let result = run();
    println!("# {step}: {} s", start.elapsed().as_secs());
    result
}

fn write_all(release: &Release, built: &Built) -> Result<()> {
    built.install()?;
    binary_tarball(release, built)?;
    debug_tarball(release, built)?;
    for package in deb::PACKAGES {
        package.write(release, built, &release.version, &release.out)?;
    }
    rpm::write(release, built, &release.version, &release.out)?;
    let mut sums = String::new();
    for name in names(&release.out)? {
        if name != SUMS {
            sums.push_str(&shell::output(Command::new("sha256sum").arg(&name).current_dir(&release.out))?);
        }
    }
    fs::write(release.out.join(SUMS), sums)?;
    Ok(())
}

/// Checksums of all packages.
const SUMS: &str = "SHA256SUMS";

/// Programs, libraries, licences and `install.sh`, which needs no package manager.
fn binary_tarball(release: &Release, built: &Built) -> Result<()> {
    let folder = release.scratch("binary")?;
    let name = format!("{}-x86_64-linux", release.folder());
    let tree = folder.join(&name);
    for file in &built.files {
        // Where `pvrdma` looks, so that it runs from the unpacked folder too.
        let place = if file.is_program { "bin" } else { "lib/pvrdma" };
        put(&file.stripped, &tree.join(place).join(file.name), file.mode())?;
    }
    put(&built.source.join("packaging/install.sh"), &tree.join("install.sh"), 0o755)?;
    put(&built.installed.join("usr").join(UNIT), &tree.join(UNIT), 0o644)?;
    for name in ["README.md", "CHANGELOG.md", "LICENSE-MIT", "LICENSE-APACHE"] {
        put(&built.source.join(name), &tree.join(name), 0o644)?;
    }
    // What install.sh takes for direct verbs, as in a source tree.
    for name in ["packaging/pvrdmadv.sh", "packaging/pvrdmadv.pc"] {
        let from = built.source.join(name);
        put(&from, &tree.join(from.file_name().context("a name")?), if name.ends_with("sh") { 0o755 } else { 0o644 })?;
    }
    for name in ["include/pvrdma.h", "include/infiniband/pvrdmadv.h"] {
        put(&built.source.join(name), &tree.join(name), 0o644)?;
    }
    let pages = "docs/man";
    for name in names(&built.source.join(pages))? {
        put(&built.source.join(pages).join(&name), &tree.join(pages).join(&name), 0o644)?;
    }
    tar(release, &folder, &name, &release.out.join(format!("{name}.tar.xz")))
}

/// The systemd unit, below a prefix.
const UNIT: &str = "lib/systemd/system/pvrdma-serve.service";

/// What belongs to the command `pvrdma` beside its files: manual pages, which packages compress, completion, the unit.
fn desk(built: &Built, tree: &Path) -> Result<()> {
    let (from, to) = (built.installed.join("usr"), tree.join("usr"));
    put(&from.join(UNIT), &to.join(UNIT), 0o644)?;
    shell::output(Command::new("cp").arg("-r").arg(from.join("share")).arg(&to))?;
    // Those of direct verbs are the provider's.
    for section in ["man3", "man7"] {
        fs::remove_dir_all(to.join("share/man").join(section))?;
    }
    compress(&to.join("share/man/man1"))
}

/// Compresses manual pages.
fn compress(folder: &Path) -> Result<()> {
    for page in names(folder)? {
        // No name and no date in it.
        shell::output(Command::new("gzip").args(["-9", "-n"]).arg(folder.join(page)))?;
    }
    Ok(())
}

/// What was stripped: gdb finds it by the build id below /usr/lib/debug.
fn debug_tarball(release: &Release, built: &Built) -> Result<()> {
    let folder = release.scratch("debug")?;
    for file in &built.files {
        put(&file.debug, &folder.join("usr").join(&file.debug_path), 0o644)?;
    }
    let name = format!("{}-x86_64-linux-debug.tar.xz", release.folder());
    tar(release, &folder, "usr", &release.out.join(name))
}

impl Release {
    fn new(commit: &str, out: PathBuf, work: PathBuf) -> Result<Release> {
        for folder in [&out, &work] {
            if folder.exists() {
                fs::remove_dir_all(folder)?;
            }
            fs::create_dir_all(folder)?;
        }
        Ok(Release {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            date: date_of_the_source()?,
            commit: commit.to_owned(),
            out,
            work,
        })
    }

    /// What the folder in a tarball is called.
    fn folder(&self) -> String {
        format!("pvrdma-{}", self.version)
    }

    /// An empty folder.
    fn scratch(&self, name: &str) -> Result<PathBuf> {
        let folder = self.work.join(name);
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&folder)?;
        Ok(folder)
    }
}

/// `SOURCE_DATE_EPOCH`, or the date of the last commit.
fn date_of_the_source() -> Result<u64> {
    let text = match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text,
        Err(_) => {
            shell::output(Command::new("git").args(["log", "-1", "--format=%ct"]).current_dir(shell::workspace()))
                .context("not a git tree: set SOURCE_DATE_EPOCH")?
        }
    };
    Ok(text.trim().parse()?)
}

/// Copies a file to a place with a mode, whatever the umask.
fn put(from: &Path, to: &Path, mode: u32) -> Result<()> {
    let folder = to.parent().context("a file lies in a folder")?;
    fs::create_dir_all(folder)?;
    fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(mode))?;
    Ok(())
}

/// Packs `name` of `folder`, with nothing in it that tells of this machine or of today.
fn tar(release: &Release, folder: &Path, name: &str, file: &Path) -> Result<()> {
    let plain = file.with_extension("");
    shell::output(
        Command::new("tar")
            .args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--format=gnu"])
            .args(["--mode=u+rw,go=rX"])
            .arg(format!("--mtime=@{}", release.date))
            .arg("-cf")
            .arg(&plain)
            .arg("-C")
            .arg(folder)
            .arg(name),
    )?;
    // One thread: what more of them write depends on their number.
    shell::output(Command::new("xz").args(["-T1", "-2", "-f"]).arg(&plain))?;
    Ok(())
}

/// Direct verbs below a tree's /usr: headers, the library's names in `lib`, manual pages, the file of pkg-config.
fn direct_verbs(built: &Built, tree: &Path, lib: &str) -> Result<()> {
    let script = built.source.join("packaging/pvrdmadv.sh");
    shell::output(Command::new(script).arg("install").arg(tree).args(["/usr", lib]))?;
    ["man3", "man7"].iter().try_for_each(|section| compress(&tree.join("usr/share/man").join(section)))
}

/// The private ABIs of libibverbs that a release has links for: the list of `packaging/install.sh`.
fn abis(source: &Path) -> Result<Vec<String>> {
    let script = fs::read_to_string(source.join("packaging/install.sh"))?;
    let list = script.lines().find_map(|line| line.strip_prefix("abis=\"")?.strip_suffix('"'));
    Ok(list.context("install.sh has no list of private ABIs")?.split(' ').map(str::to_owned).collect())
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        names.push(entry?.file_name().into_string().ok().context("a package has a plain name")?);
    }
    names.sort();
    Ok(names)
}

/// Every package of two folders is the same, byte by byte. They have all that was built, so that is the same too.
fn same(first: &Path, second: &Path) -> Result<()> {
    let list = names(first)?;
    ensure!(list == names(second)?, "the second build has other packages: {list:?}");
    let different: Vec<&String> =
        list.iter().filter(|name| fs::read(first.join(name)).ok() != fs::read(second.join(name)).ok()).collect();
    ensure!(different.is_empty(), "the second build differs in {different:?}, see {}", second.display());
    println!("reproducible: {} packages, made twice, are the same", list.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_row_without_both_figures_is_noticed() {
        let table = "ib_write_bw, 65536 bytes, MiB/s    6784   11846\nib_send_lat, 8 bytes, us   7.00  -\n";
        assert!(super::has_figures(table, "ib_write_bw"));
        assert!(!super::has_figures(table, "ib_send_lat") && !super::has_figures(table, "ib_read_bw"));
    }
}
