//! Whoever carries requests out of this host: `pvrdma link run`, and whether it has what this guest has.

use std::path::Path;

use pvrdma_device::guest::Wire;
use pvrdma_fabric::segment::view::{self, View};

use super::machine::Machine;
use super::report::Finding;
use crate::guests::OnWire;

const CHECK: &str = "gateway";

pub fn check(machine: &Machine) -> Option<Finding> {
    let folder = machine.variable("PVRDMA_HOST_DIR")?;
    let own = machine.variable("PVRDMA_WIRE").and_then(|text| text.parse::<OnWire>().ok());
    match view::look(Path::new(&folder)) {
        Ok(view) => judge(view.as_ref(), own.map(|own| own.wire)),
        Err(why) => Some(Finding::fail(CHECK, format!("{folder}: {why}"))),
    }
}

/// What this guest knows for those who speak RoCE, and what is there.
fn judge(view: Option<&View>, own: Option<Wire>) -> Option<Finding> {
    let runs = view.and_then(|view| view.gateway);
    let there = view.filter(|_| runs.is_some()).and_then(|view| view.wire);
    let anew = "end all programs of this guest, and start them again";
    Some(match (runs, own, there) {
        (None, Some(own), _) => {
            let address = own.address();
            Finding::fail(CHECK, format!("nobody carries what this guest has for {address}, its GID 2"))
                .cure(format!("start `pvrdma link run --roce-wire {address}`"))
        }
        (None, None, _) => {
            Finding::note(CHECK, "no `pvrdma link run` runs: this guest reaches guests of this host, and nobody else")
        }
        (Some(_), Some(own), Some(there)) if own == there => {
            Finding::ok(CHECK, format!("RoCE at {}, GID 2 of this guest, path MTU {}", own.address(), own.mtu))
        }
        (Some(_), Some(own), Some(there)) => {
            let (own, there) = (own.to_string(), there.to_string());
            Finding::fail(CHECK, format!("GID 2 of this guest was made for RoCE {own} (version, address, MTU), and it is {there} now"))
                .cure(anew)
        }
        (Some(_), Some(own), None) => {
            Finding::fail(CHECK, format!("`pvrdma link run` does not speak RoCE, and GID 2 of this guest is {}", own.address()))
                .cure(format!("start it with --roce-wire {}", own.address()))
        }
        (Some(_), None, Some(there)) => Finding::warn(
            CHECK,
            format!("RoCE is spoken at {}, and this guest has no GID 2 for it: it was there before, or is of another RoCE version", there.address()),
        )
        .cure(anew),
        (Some(_), None, None) => Finding::ok(CHECK, "`pvrdma link run` runs; `pvrdma link status` says to which hosts there is a link"),
    })
}

#[cfg(test)]
mod tests {
    use super::super::report::Level;
    use super::*;

    #[test]
    fn what_a_guest_knows_is_compared_with_what_is_there() {
        let wire = |text: &str| Some(text.parse().unwrap());
        let (here, moved) = (wire("v2 192.0.2.1 1024"), wire("v2 192.0.2.2 1024"));
        let view = |gateway, wire| View { host: Some(0), gateway, wire, processes: Vec::new() };
        let level = |view: &View, own| judge(Some(view), own).unwrap().level;
        // One that is gone has left its address behind.
        let gone = view(None, here);
        assert_eq!((level(&gone, here), level(&gone, None)), (Level::Fail, Level::Note));
        let runs = view(Some(7), here);
        assert_eq!(
            [level(&runs, here), level(&runs, moved), level(&runs, None)],
            [Level::Ok, Level::Fail, Level::Warn]
        );
        let links = view(Some(7), None);
        assert_eq!([level(&links, here), level(&links, None)], [Level::Fail, Level::Ok]);
        assert_eq!(judge(None, None).unwrap().level, Level::Note);
    }
}
