//! What is run inside the guest, in this order.
//!
//! Called by `mod.rs`. The scripts see the host's programs, `tests/qemu/lib.sh`, and a guest whose init has
//! loaded the driver; a line `note: ...` ends up in the table.

use std::time::Duration;

use super::case::Step;

/// Time limit of a step, generous because the guest runs without hardware help.
const STEP: Duration = Duration::from_secs(60);

/// For one guest: the short list, and with `full` the long one.
pub fn one_guest(full: bool) -> Vec<Step> {
    let mut steps = vec![
        step(
            "driver probes, port is active, GID 1 bound",
            "[ -d $port_dir ] || { dmesg | tail -30; fail 'no RDMA device'; }
             wait_gid
             grep -q ACTIVE $port_dir/state || fail \"port state $(cat $port_dir/state)\"
             dmesg | grep -i pvrdma
             grep -c pvrdma /proc/interrupts | grep -qx 3 || fail 'not three interrupt vectors'",
        ),
        step("provider is the one to test", "check_provider"),
        step(
            "ibv_devinfo -v",
            "ibv_devinfo -v -d $device | tee /tmp/info
             grep -q 'PORT_ACTIVE' /tmp/info && grep -q 'GID\\[  1\\]' /tmp/info || fail 'incomplete'",
        ),
        step("ibv_rc_pingpong -c", "pair 18515 ibv_rc_pingpong -d $device -g 1 -c -n 300; pingpong_note"),
        step("ibv_rc_pingpong -c -e", "pair 18515 ibv_rc_pingpong -d $device -g 1 -c -e -n 300; pingpong_note"),
    ];
    if full {
        steps.extend([
            step(
                "ibv_rc_pingpong -c, 64 KiB messages",
                "pair 18515 ibv_rc_pingpong -d $device -g 1 -c -s 65536 -n 200; pingpong_note",
            ),
            step("ib_write_bw 64 KiB", "perftest ib_write_bw -s 65536 -n 500"),
            step("ib_read_bw 64 KiB", "perftest ib_read_bw -s 65536 -n 500"),
            step("ib_send_bw 64 KiB", "perftest ib_send_bw -s 65536 -n 500"),
            step("ib_write_lat 8 B", "perftest ib_write_lat -s 8 -n 500"),
            step("ib_send_lat 8 B", "perftest ib_send_lat -s 8 -n 500"),
            step("ib_write_bw 1 MiB", "perftest ib_write_bw -s 1048576 -n 100"),
            step(
                "driver unbinds and binds again",
                "address=$(basename $(readlink -f /sys/class/infiniband/$device/device))
                 for _ in 1 2 3; do
                     echo $address >/sys/bus/pci/drivers/vmw_pvrdma/unbind || fail unbind
                     echo $address >/sys/bus/pci/drivers/vmw_pvrdma/bind || fail bind
                 done
                 wait_gid
                 pair 18515 ibv_rc_pingpong -d $device -g 1 -c",
            ),
        ]);
    }
    steps.push(step(
        "kernel log has no complaint",
        "dmesg | grep -E 'vmw_pvrdma.*([Ff]ail|[Ee]rror|timed out|[Ii]nvalid)|WARNING:|BUG:|Oops:|Call Trace:' && fail 'see above'
         true",
    ));
    steps
}

/// For two guests on one server: the first is the server of each program, the second its client.
pub fn two_guests() -> [Vec<Step>; 2] {
    let programs = [
        ("ibv_rc_pingpong -c", "ibv_rc_pingpong -d $device -g 1 -c -n 300"),
        ("ibv_rc_pingpong -c -e", "ibv_rc_pingpong -d $device -g 1 -c -e -n 300"),
        ("ib_write_bw 64 KiB", "ib_write_bw -d $device -x 1 -F -s 65536 -n 500"),
        ("ib_send_lat 8 B", "ib_send_lat -d $device -x 1 -F -s 8 -n 300"),
    ];
    let ready = || step("port is active, GID 1 bound", "wait_gid");
    let side = |name: &str, wrap: &dyn Fn(&str) -> String| {
        let steps = programs.iter().map(|(what, command)| step(&format!("{name}: {what}"), &wrap(command)));
        std::iter::once(ready()).chain(steps).collect()
    };
    [side("server", &|command| command.to_owned()), side("client", &|command| format!("connect {command}"))]
}

/// A script of the user's own.
pub fn own(script: String) -> Vec<Step> {
    vec![Step { name: "your script".to_owned(), script, limit: Duration::from_secs(300) }]
}

fn step(name: &str, script: &str) -> Step {
    Step { name: name.to_owned(), script: script.to_owned(), limit: STEP }
}
