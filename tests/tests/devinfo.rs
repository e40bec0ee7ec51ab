//! What `ibv_devices` and `ibv_devinfo -v` say, compared field by field between the two providers.

use std::collections::BTreeMap;

use pvrdma_tests::{Provider, Stand, User, Uverbs, machine};

#[test]
fn the_device_is_listed() {
    let _machine = machine();
    for user in User::both() {
        let stand = Stand::new(user);
        for provider in Provider::BOTH {
            let text = stand.job("ibv_devices").provider(&provider).ok();
            let devices: Vec<&str> = text.lines().skip(2).filter_map(|line| line.split_whitespace().next()).collect();
            assert_eq!(devices, ["vmw_pvrdma0"], "{provider:?} as {user:?}:\n{text}");
        }
    }
}

#[test]
fn both_providers_describe_the_same_device() {
    let _machine = machine();
    for user in User::both() {
        let stand = Stand::new(user);
        for uverbs in Uverbs::ALL {
            let [ours, system] = Provider::BOTH.map(|provider| {
                let job = stand.job("ibv_devinfo").args(["-v"]).guest("a").provider(&provider).uverbs(uverbs);
                // Ours hides one capability, see provider/README.md, unless it is switched on.
                fields(&job.env("PVRDMA_ENABLE", "send_with_inv").ok())
            });
            assert_eq!(ours, system, "as {user:?} by {uverbs:?}");
            expect_pvrdma(&ours);
        }
    }
}

#[test]
fn every_way_into_the_kernel_describes_the_same_device() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    for provider in Provider::BOTH {
        let [ioctl, invoke, write] = Uverbs::ALL.map(|uverbs| {
            fields(&stand.job("ibv_devinfo").args(["-v"]).guest("a").provider(&provider).uverbs(uverbs).ok())
        });
        assert_eq!(ioctl, invoke, "{provider:?}");
        assert_eq!(ioctl, write, "{provider:?}");
    }
}

#[test]
fn guests_differ_in_what_tells_them_apart() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    // The first guest must still be there when the second one comes, else it would get the first one's place.
    let keeper = stand.job("sleep").args(["30"]).guest("a").spawn();
    let [a, b] = ["a", "b"].map(|guest| fields(&stand.job("ibv_devinfo").args(["-v"]).guest(guest).ok()));
    drop(keeper);
    for field in ["node_guid", "GID[  0]", "GID[  1]"] {
        assert_ne!(a[field], b[field], "{field}");
    }
}

#[test]
fn both_roce_versions_can_be_had() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    for (version, gid_type) in [("v1", "RoCE v1"), ("v2", "RoCE v2")] {
        for provider in Provider::BOTH {
            let job = stand.job("ibv_devinfo").args(["-v"]).guest(version).provider(&provider);
            let fields = fields(&job.option("--roce", version).ok());
            let gid = &fields["GID[  1]"];
            assert!(gid.contains(gid_type), "--roce {version} with {provider:?}: {gid}");
        }
    }
}

/// The lines `name: value` in a map. A name that comes twice would hide a difference, so that is refused.
fn fields(text: &str) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let Some((name, value)) = line.split_once(':') else {
            assert!(
                line.trim().is_empty() || line.trim().chars().all(|c| c.is_ascii_uppercase() || c == '_'),
                "{line}"
            );
            continue;
        };
        // Flags follow their value as indented words of their own lines.
        let mut value = value.trim().to_owned();
        while let Some(flag) = lines.next_if(|line| !line.contains(':') && !line.trim().is_empty()) {
            value.push(' ');
            value.push_str(flag.trim());
        }
        let before = fields.insert(name.trim().to_owned(), value);
        assert!(before.is_none(), "two lines are called {name:?}:\n{text}");
    }
    fields
}

/// What must be there whatever the limits are.
fn expect_pvrdma(fields: &BTreeMap<String, String>) {
    for (name, value) in [
        ("hca_id", "vmw_pvrdma0"),
        ("transport", "InfiniBand (0)"),
        ("vendor_id", "0x15ad"),
        ("vendor_part_id", "2080"),
        ("phys_port_cnt", "1"),
        ("state", "PORT_ACTIVE (4)"),
        ("link_layer", "Ethernet"),
    ] {
        assert_eq!(fields.get(name).map(String::as_str), Some(value), "{name}");
    }
}
