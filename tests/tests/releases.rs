//! One provider file under a libibverbs of every release from 28 to 65: made from the recorded facts of that release
//! (`ffi/tests/data/pabi.txt`), by `tests/c/other_libibverbs.c`. Every op must lie where the release reads it, and a
//! libibverbs that differs from what its symbols say must be refused, in silence but for one line.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use pvrdma_tests::{artifacts, c_program, workspace};

const DATA: &str = include_str!("../../ffi/tests/data/pabi.txt");

/// Functions that every release has and the provider calls.
const ALWAYS: &[&str] = &[
    "ibv_cmd_alloc_pd",
    "ibv_cmd_create_cq",
    "ibv_cmd_create_qp",
    "ibv_cmd_create_srq",
    "ibv_cmd_dealloc_pd",
    "ibv_cmd_dereg_mr",
    "ibv_cmd_destroy_cq",
    "ibv_cmd_destroy_qp",
    "ibv_cmd_destroy_srq",
    "ibv_cmd_modify_qp",
    "ibv_cmd_modify_srq",
    "ibv_cmd_query_port",
    "ibv_cmd_query_qp",
    "ibv_cmd_query_srq",
    "ibv_cmd_reg_mr",
    "ibv_dofork_range",
    "ibv_dontfork_range",
    "ibv_resolve_eth_l2_from_gid",
    "verbs_uninit_context",
];
/// As above, which the C file has bodies for.
const WITH_BODY: &[&str] =
    &["_verbs_init_and_alloc_context", "ibv_cmd_get_context", "ibv_qp_to_qp_ex", "verbs_set_ops"];

fn rows(kind: &str) -> impl Iterator<Item = Vec<&'static str>> {
    DATA.lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .filter(move |words| words[0] == kind)
        .map(|words| words[1..].to_vec())
}

/// `v44.0` -> 44.
fn number(name: &str) -> u32 {
    name.trim_start_matches('v').trim_end_matches(".0").parse().expect("a release")
}

/// A release, as the record has it.
struct Release {
    name: &'static str,
    table: &'static str,
    pabi: &'static str,
    /// Ops in the order of the table, with their places in front of or in `ibv_context`.
    ops: Vec<(&'static str, Option<i64>)>,
    library: PathBuf,
}

impl Release {
    fn all(folder: &Path) -> Vec<Release> {
        let slots: BTreeMap<&str, i64> = rows("slot").map(|row| (row[0], row[1].parse().expect("a number"))).collect();
        rows("release")
            .map(|row| {
                let [name, pabi, table, context_size, comp_mask, _] = row[..] else { panic!("{row:?}") };
                let ops = rows("ops").find(|row| row[0] == table).expect("its table")[1..].to_vec();
                let ops = ops.into_iter().map(|op| (op, slots.get(op).copied())).collect();
                let library = folder.join(name).join("libibverbs.so.1");
                let release = Release { name, table, pabi, ops, library };
                release.compile(context_size.parse().expect("a number"), comp_mask);
                release
            })
            .collect()
    }

    /// One of each table of ops, the last that has it.
    fn one_of_each_table(folder: &Path) -> Vec<Release> {
        let mut last = BTreeMap::new();
        for release in Release::all(folder) {
            last.insert(release.table, release);
        }
        last.into_values().collect()
    }

    fn compile(&self, context_size: u64, comp_mask: &str) {
        let has = |row: &[&str]| (number(row[1])..=number(row[2])).contains(&number(self.name));
        let bodies = ["ibv_cmd_query_device", "ibv_cmd_query_device_any", "__verbs_log"];
        let symbols = rows("symbol").filter(|row| has(row) && !bodies.contains(&row[0])).map(|row| row[0]);
        let mut text = String::from("#define OPS(X)");
        for (op, slot) in &self.ops {
            let slot = slot.map_or("NO_SLOT".to_owned(), |slot| slot.to_string());
            write!(text, " X({op}, {slot})").expect("a string grows");
        }
        text.push_str("\n#define SYMBOLS(X)");
        for symbol in symbols.chain(ALWAYS.iter().copied()) {
            write!(text, " X({symbol})").expect("a string grows");
        }
        let log = u32::from(number(self.name) >= 37);
        // The word before ibv_context is no op's in any release.
        let private = context_size - 328 - 8;
        writeln!(
            text,
            "\n#define REGISTER verbs_register_driver_{pabi}\n#define PABI {pabi}\n#define CONTEXT_SIZE {context_size}\n\
             #define PRIV {private}\n#define COMP_MASK {comp_mask}\n#define HAS_LOG {log}",
            pabi = self.pabi
        )
        .expect("a string grows");
        let folder = self.library.parent().expect("a folder");
        fs::create_dir_all(folder).expect("a new folder");
        fs::write(folder.join("other_libibverbs.h"), text).expect("a new file");
        let output = Command::new("cc")
            .args([
                "-std=gnu11",
                "-Wall",
                "-Wextra",
                "-Werror",
                "-shared",
                "-fPIC",
                "-Wl,-soname,libibverbs.so.1",
                "-I",
            ])
            .arg(folder)
            .arg("-o")
            .arg(&self.library)
            .arg(workspace().join("tests/c/other_libibverbs.c"))
            .arg("-ldl")
            .output()
            .expect("cc starts");
        assert!(output.status.success(), "{}: {}", self.name, String::from_utf8_lossy(&output.stderr));
    }
}

/// The provider on a libibverbs, which may lie.
fn on(library: &Path, lies: &[(&str, usize)], stderr: Stdio) -> Output {
    Command::new(c_program("tests/c/other_release.c", &["-rdynamic"]))
        .arg(library)
        .arg(artifacts().join("libvmw_pvrdma.so"))
        .envs(lies.iter().map(|(name, value)| (name, value.to_string())))
        .stdout(Stdio::piped())
        .stderr(stderr)
        .spawn()
        .and_then(std::process::Child::wait_with_output)
        .expect("it starts")
}

/// Nothing was registered, one line says why, the program goes on.
fn refused(library: &Path, lies: &[(&str, usize)]) {
    let output = on(library, lies, Stdio::piped());
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{} {lies:?}: {output:?}", library.display());
    assert_eq!(String::from_utf8_lossy(&output.stdout), "refused\npanics 0\n", "{} {lies:?}", library.display());
    assert!(words.lines().count() == 1 && words.starts_with("vmw_pvrdma: not registering"), "{words}");
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// Names of functions in the provider, by address, if it was not stripped.
fn symbols() -> BTreeMap<u64, Vec<String>> {
    let output = Command::new("nm").arg(artifacts().join("libvmw_pvrdma.so")).output().expect("nm starts");
    let mut found = BTreeMap::<u64, Vec<String>>::new();
    for line in String::from_utf8(output.stdout).expect("text").lines() {
        let words: Vec<_> = line.split(' ').collect();
        if let [address, "t" | "T", name] = words[..] {
            found.entry(u64::from_str_radix(address, 16).expect("hex")).or_default().push(name.to_owned());
        }
    }
    found
}

/// The ops that the provider's own table has.
fn served() -> BTreeSet<String> {
    let source = fs::read_to_string(workspace().join("provider/src/ops.rs")).expect("a file");
    let rows = source.lines().filter_map(|line| line.strip_prefix("    ")?.split_once(": Some("));
    rows.map(|(name, _)| name.to_owned()).collect()
}

#[test]
fn every_op_lies_where_each_release_reads_it() {
    let folder = folder();
    let (symbols, served) = (symbols(), served());
    assert!(served.len() > 25, "{served:?}");
    let mut first = BTreeMap::new();
    let releases = Release::all(folder.path());
    assert_eq!(releases.len(), 38);
    for release in &releases {
        let output = on(&release.library, &[], Stdio::piped());
        assert!(output.status.success() && output.stderr.is_empty(), "{}: {output:?}", release.name);
        let text = String::from_utf8(output.stdout).expect("text");
        let mut lines = text.lines();
        for (op, _) in &release.ops {
            let line = lines.next().expect("a line for each op");
            let (name, at) = line.split_once(' ').expect("name and address");
            assert_eq!(name, *op);
            assert_eq!(at != "-", served.contains(name), "{}: {line}", release.name);
            if at == "-" {
                continue;
            }
            let at = u64::from_str_radix(at, 16).expect("hex");
            // The same function in all of them, and of that name.
            assert_eq!(*first.entry(name.to_owned()).or_insert(at), at, "{}: {name}", release.name);
            if !symbols.is_empty() {
                let part = format!("{}{name}17h", name.len());
                let names = symbols.get(&at).unwrap_or_else(|| panic!("{name}: no function at {at:x}"));
                assert!(names.iter().any(|symbol| symbol.contains(&part)), "{}: {name} is {names:?}", release.name);
            }
        }
        assert_eq!(lines.next(), Some("panics 0"));
    }
    assert_eq!(first.keys().cloned().collect::<BTreeSet<_>>(), served);
}

/// An op that moved, is missing, is new; a context that grew; a QP whose extension is nowhere.
///
/// Two ops that change places, both of which no release copies in front of its `ibv_context`, cannot be told from
/// outside: where a private table has them only calling them would show. All other pairs are seen.
#[test]
fn a_release_that_differs_from_its_symbols_is_refused() {
    let folder = folder();
    for release in Release::one_of_each_table(folder.path()) {
        let library = &release.library;
        for (place, pair) in release.ops.windows(2).enumerate() {
            if pair[0].1.is_some() || pair[1].1.is_some() {
                refused(library, &[("SWAPPED", place)]);
            }
        }
        for place in 0..release.ops.len() {
            refused(library, &[("DROPPED", place)]);
            // One is gone and another came: the number is right.
            let others = release.ops[place..].iter().any(|(_, slot)| slot.is_some());
            if others {
                refused(library, &[("DROPPED", place), ("ADDED", 1)]);
            }
        }
        refused(library, &[("ADDED", 1)]);
        refused(library, &[("GROWN", 8)]);
        refused(library, &[("GROWN", 64)]);
        for nowhere in [0, 600, 1016] {
            refused(library, &[("COMP_MASK_AT", nowhere)]);
        }
    }
}

/// Each function that the provider calls, taken away from one release.
#[test]
fn a_release_without_one_of_its_functions_is_refused() {
    let folder = folder();
    for release in Release::one_of_each_table(folder.path()) {
        let bytes = fs::read(&release.library).expect("the library");
        let query = if number(release.name) < 33 { "ibv_cmd_query_device_ex" } else { "ibv_cmd_query_device_any" };
        for name in ALWAYS.iter().chain(WITH_BODY).chain([&query]) {
            // In the table of names, so that the library has another one in its place.
            let wanted = [b"\0", name.as_bytes(), b"\0"].concat();
            let mut changed = bytes.clone();
            let places: Vec<_> =
                (0..bytes.len() - wanted.len()).filter(|&at| bytes[at..].starts_with(&wanted)).collect();
            assert!(!places.is_empty(), "{name}");
            for at in places {
                changed[at + 1] = b'X';
            }
            let library = release.library.with_file_name("without.so");
            fs::write(&library, changed).expect("a file");
            refused(&library, &[]);
        }
    }
}

/// The line that says why cannot be written: std panics, and the wall is all that stands between that and the
/// program. The unwinder that finds it is the process's own.
#[test]
fn a_panic_while_it_is_loaded_ends_at_the_wall() {
    let folder = folder();
    let full = OpenOptions::new().write(true).open("/dev/full").expect("every Linux has it");
    for release in Release::one_of_each_table(folder.path()) {
        let stderr = full.try_clone().expect("a second descriptor");
        let output = on(&release.library, &[("ADDED", 1)], stderr.into());
        assert!(output.status.success(), "{}: {output:?}", release.name);
        assert_eq!(String::from_utf8_lossy(&output.stdout), "refused\npanics 1\n", "{}", release.name);
    }
}
