//! How the plugin is linked: its soname, and the versions of the names that it exports.
//!
//! The soname is what programs ask for that link to direct verbs. rustc brings a list of names to be exported, as an
//! anonymous version, and GNU ld takes no other one beside it: there the names stay without a version, which programs
//! can be linked to just as well. lld takes both. It is rustc's own linker on this target since 1.90, and comes with
//! rustup before that; so does the linker of `cargo xtask package`.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const MAP: &str = "pvrdmadv.map";

fn main() {
    println!("cargo::rerun-if-changed={MAP}");
    println!("cargo::rustc-check-cfg=cfg(versioned)");
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libpvrdmadv.so.1");
    let map = PathBuf::from(variable("CARGO_MANIFEST_DIR")).join(MAP);
    let Some(arguments) = [Vec::new(), lld()].into_iter().find(|arguments| takes_both(arguments, &map)) else {
        return;
    };
    println!("cargo::rustc-cfg=versioned");
    for argument in arguments {
        println!("cargo::rustc-cdylib-link-arg={argument}");
    }
    println!("cargo::rustc-cdylib-link-arg=-Wl,--version-script={}", map.display());
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}

/// Has the compiler driver use the lld that comes with rustc.
fn lld() -> Vec<String> {
    let sysroot = Command::new(variable("RUSTC")).args(["--print", "sysroot"]).output();
    let sysroot = sysroot.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    let folder = format!("{sysroot}/lib/rustlib/{}/bin/gcc-ld", variable("HOST"));
    vec!["-fuse-ld=lld".to_owned(), format!("-B{folder}")]
}

/// Does the linker make a library of nothing by two version scripts?
fn takes_both(arguments: &[String], map: &Path) -> bool {
    let out = PathBuf::from(variable("OUT_DIR"));
    let anonymous = out.join("anonymous.map");
    fs::write(&anonymous, "{ local: *; };\n").unwrap_or_else(|error| panic!("OUT_DIR: {error}"));
    let script = |path: &Path| format!("-Wl,--version-script={}", path.display());
    Command::new(env::var("RUSTC_LINKER").unwrap_or_else(|_| "cc".to_owned()))
        .args(arguments)
        .args(["-shared", "-nostdlib", "-xassembler", "/dev/null", "-o"])
        .arg(out.join("nothing.so"))
        .args([script(&anonymous), script(map), "-Wl,--undefined-version".to_owned()])
        .output()
        .is_ok_and(|output| output.status.success())
}
