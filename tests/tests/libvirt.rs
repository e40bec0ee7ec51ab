//! What `pvrdma serve --print-qemu` prints for libvirt is a domain that libvirt's own schema takes.

use std::fs;
use std::path::Path;
use std::process::Command;

use pvrdma_tests::{Stand, User, cannot_run};

/// Where Debian's libvirt0 has it.
const SCHEMA: &str = "/usr/share/libvirt/schemas/domain.rng";

#[test]
fn libvirts_schema_takes_every_domain() {
    const TEST: &str = "libvirts_schema_takes_every_domain";
    if Command::new("xmllint").arg("--version").output().is_err() || !Path::new(SCHEMA).exists() {
        return cannot_run(TEST, "no xmllint or no schema of libvirt (Debian: libxml2-utils, libvirt0)");
    }
    let stand = Stand::new(User::Me);
    let text = stand.pvrdma(&["serve", "--print-qemu", "--socket", "/run/red's & co", "--socket", "/run/blue"]).ok();
    let domains: Vec<&str> = text.split("<domain ").skip(1).collect();
    assert_eq!(domains.len(), 2, "{text}");
    for domain in domains {
        let (domain, _) = domain.split_once("</domain>").expect("its end");
        let judge = |domain: &str| {
            let file = stand.run_folder().join("domain.xml");
            fs::write(&file, format!("<domain {domain}</domain>\n")).expect("a file");
            Command::new("xmllint").args(["--noout", "--relaxng", SCHEMA]).arg(file).output().expect("xmllint starts")
        };
        let output = judge(domain);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        // It does look.
        assert!(!judge(&domain.replace("<vcpu>", "<vcpu colour='red'>")).status.success());
    }
}
