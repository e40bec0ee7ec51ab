//! Who may import whom. The table is the architecture; a new edge is a decision, so it fails here first.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use pvrdma_tests::workspace;
use serde_json::Value;

/// Crate and the crates of this workspace it may depend on, for building as for its own tests.
///
/// The provider knows the layouts and nothing else. The device core knows no front. Fronts do not know each other:
/// the stand-in takes the place of libc functions and must never be linked into anything.
const EDGES: &[(&str, &[&str])] = &[
    ("pvrdma-ffi", &[]),
    ("vmw_pvrdma", &["pvrdma-ffi"]),
    // Random numbers, for their tests alone.
    ("pvrdma-cm", &["pvrdma-ffi"]),
    ("pvrdma-device", &["pvrdma-ffi"]),
    ("pvrdma-net", &["pvrdma-ffi"]),
    ("pvrdma-roce", &["pvrdma-device", "pvrdma-ffi"]),
    ("pvrdma-capture", &["pvrdma-device", "pvrdma-ffi", "pvrdma-roce"]),
    ("pvrdma-fabric", &["pvrdma-device", "pvrdma-ffi"]),
    ("pvrdma-hca", &["pvrdma-ffi"]),
    (
        "pvrdma-link",
        &["pvrdma-capture", "pvrdma-device", "pvrdma-fabric", "pvrdma-ffi", "pvrdma-hca", "pvrdma-net", "pvrdma-roce"],
    ),
    ("pvrdma-standin", &["pvrdma-capture", "pvrdma-cm", "pvrdma-device", "pvrdma-fabric", "pvrdma-ffi"]),
    ("pvrdma-vfio-user", &["pvrdma-capture", "pvrdma-device", "pvrdma-ffi"]),
    (
        "pvrdma-cli",
        &[
            "pvrdma-capture",
            "pvrdma-device",
            "pvrdma-fabric",
            "pvrdma-ffi",
            "pvrdma-hca",
            "pvrdma-link",
            "pvrdma-net",
            "pvrdma-vfio-user",
        ],
    ),
    // These three drive what a user has, by its command line, as everybody else would.
    ("pvrdma-tests", &[]),
    ("pvrdma-perftest", &["pvrdma-tests"]),
    ("xtask", &["pvrdma-perftest", "pvrdma-tests"]),
];

fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(workspace())
        .output()
        .expect("cargo starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON")
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("{key} is missing in {value}"))
}

fn packages(metadata: &Value) -> Vec<&Value> {
    metadata["packages"].as_array().expect("packages").iter().collect()
}

#[test]
fn crates_import_only_what_they_may() {
    let metadata = metadata();
    let packages = packages(&metadata);
    let ours: BTreeSet<&str> = packages.iter().map(|package| text(package, "name")).collect();
    let allowed: BTreeMap<&str, &[&str]> = EDGES.iter().copied().collect();
    assert_eq!(ours, allowed.keys().copied().collect(), "every crate of the workspace has its line in EDGES");
    for package in packages {
        let name = text(package, "name");
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            let dependency = text(dependency, "name");
            // A crate may name itself, to have its own test helpers in its own tests.
            assert!(
                dependency == name || !ours.contains(dependency) || allowed[name].contains(&dependency),
                "{name} must not depend on {dependency}"
            );
        }
    }
}

/// What may be loaded into a foreign process brings few strangers with it.
#[test]
fn the_provider_depends_on_little() {
    let allowed = ["libc", "pvrdma-ffi", "zerocopy"];
    let metadata = metadata();
    let provider = packages(&metadata).into_iter().find(|package| text(package, "name") == "vmw_pvrdma");
    let provider = provider.expect("the provider's crate");
    for dependency in provider["dependencies"].as_array().expect("dependencies") {
        // A null kind is an ordinary dependency; "dev" and "build" are not loaded.
        if dependency["kind"].is_null() {
            let name = text(dependency, "name");
            assert!(allowed.contains(&name), "the provider must not depend on {name}");
        }
    }
}

/// Libraries that are loaded into foreign programs are no library crates that could be linked by accident.
#[test]
fn the_stand_in_is_a_preload_library_and_nothing_else() {
    let metadata = metadata();
    let standin = packages(&metadata).into_iter().find(|package| text(package, "name") == "pvrdma-standin");
    let targets = standin.expect("the stand-in's crate")["targets"].as_array().expect("targets");
    let kinds: Vec<&str> = targets
        .iter()
        .flat_map(|target| target["crate_types"].as_array().expect("types"))
        .filter_map(Value::as_str)
        .collect();
    assert!(kinds.contains(&"cdylib"), "{kinds:?}");
    assert!(!kinds.contains(&"rlib") && !kinds.contains(&"lib"), "{kinds:?}");
}

#[test]
fn every_crate_takes_the_workspaces_lints_and_licence() {
    for package in packages(&metadata()) {
        let manifest = std::fs::read_to_string(text(package, "manifest_path")).expect("a manifest");
        assert!(manifest.contains("[lints]\nworkspace = true"), "{}", text(package, "name"));
        assert_eq!(text(package, "license"), "MIT OR Apache-2.0");
    }
}
