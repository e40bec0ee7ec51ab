//! What is run inside the guest, in this order.
//!
//! Called by `mod.rs`. The scripts see the host's programs, `tests/qemu/lib.sh`, and a guest whose init has
//! loaded the driver; a line `note: ...` ends up in the table.

use std::time::Duration;

use super::case::Step;
use super::suite;

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
        // The host's files are this guest's, so what they say of the host's limits is the guest's too.
        step(
            "pvrdma doctor: self-test",
            "$own/pvrdma doctor | tee /tmp/doctor; grep -q 'every byte compared' /tmp/doctor || fail 'no proof'",
        ),
        step(
            "ibv_devinfo -v",
            "ibv_devinfo -v -d $device | tee /tmp/info
             grep -q 'PORT_ACTIVE' /tmp/info && grep -q 'GID\\[  1\\]' /tmp/info || fail 'incomplete'",
        ),
        step("ibv_rc_pingpong -c", "pair 18515 ibv_rc_pingpong -d $device -g 1 -c -n 300; pingpong_note"),
        step("ibv_rc_pingpong -c -e", "pair 18515 ibv_rc_pingpong -d $device -g 1 -c -e -n 300; pingpong_note"),
        step("ibv_ud_pingpong -c", "pair 18515 ibv_ud_pingpong -d $device -g 1 -c -n 200; pingpong_note"),
        step("ibv_srq_pingpong -c -e", "pair 18515 ibv_srq_pingpong -d $device -g 1 -c -e -q 4 -n 50; pingpong_note"),
        step(
            "every RC operation, atomics too, byte for byte",
            "$own/data -k short -s 1 | tee /tmp/data; note /tmp/data",
        ),
        step("async events: SRQ limit, last WQE", "$own/srq_loop limit last_wqe"),
        step(
            "rdma_cm (GSI): rping",
            "serve rping -s -a $address -C 5
             client rping -c -a $address -C 5
             served",
        ),
    ];
    if full {
        steps.extend([
            // The kernel pins what is registered, so memory that a program unmaps is still there.
            step("rc_loop, but for `unmapped`", "$own/rc_loop $($own/rc_loop | grep -vx unmapped)"),
            step("ibv_ud_pingpong -c -e", "pair 18515 ibv_ud_pingpong -d $device -g 1 -c -e -n 200; pingpong_note"),
            step("ib_send_lat -c UD", "perftest ib_send_lat -c UD -s 8 -n 300"),
            step("ib_send_bw --use-srq -q 4", "perftest ib_send_bw --use-srq -q 4 -s 4096 -n 400"),
            step("ib_atomic_lat, fetch and add", "perftest ib_atomic_lat -A FETCH_AND_ADD -n 300"),
            step("ib_atomic_bw, compare and swap", "perftest ib_atomic_bw -A CMP_AND_SWAP -n 500"),
            step(
                "rdma_cm: ucmatose, 10 connections",
                "serve ucmatose -b $address -c 10
                 client ucmatose -s $address -c 10
                 served",
            ),
            step(
                "rdma_cm: udaddy, datagrams",
                "serve udaddy -b $address
                 client udaddy -s $address
                 served",
            ),
            step(
                "rdma_cm: ib_send_lat -R",
                "serve ib_send_lat -R -F -s 8 -n 300
                 client ib_send_lat -R -F -s 8 -n 300 $address
                 served",
            ),
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
            Step {
                limit: Duration::from_secs(240),
                ..step("real devices beside the stand-in's, ordinary user, ptrace_scope 1", BESIDE_REAL_DEVICES)
            },
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
    if !full {
        steps.push(suite::rdma_cm());
    }
    steps.push(step(
        "kernel log has no complaint",
        "dmesg | grep -E 'vmw_pvrdma.*([Ff]ail|[Ee]rror|timed out|[Ii]nvalid)|WARNING:|BUG:|Oops:|Call Trace:' && fail 'see above'
         true",
    ));
    if full {
        // After that look at the log: the suite asks for what cannot be, and the driver complains.
        steps.push(suite::whole());
    }
    steps
}

/// `pvrdma run` on a machine with RDMA devices: this guest's own PVRDMA and two of software RoCE, one under a name that
/// does not tell its driver.
const BESIDE_REAL_DEVICES: &str = r#"
    load software_roce
    rdma link add rxe0 type rxe netdev eth0 && rdma link add soft type rxe netdev lo || fail 'no software RoCE'
    echo 1 >/proc/sys/kernel/yama/ptrace_scope || fail 'no yama'
    chmod 1777 /dev/shm /tmp
    as_nobody() { setpriv --reuid=65534 --regid=65534 --clear-groups "$@"; }
    run() { as_nobody /run/job/bin/pvrdma run "$@"; }

    before=$(as_nobody ibv_devices | awk 'NR > 2 { print $1 }' | sort | tr '
' ' ')
    [ "$before" = 'rxe0 soft vmw_pvrdma0 ' ] || fail "real devices: $before"
    inside=$(run ibv_devices | awk 'NR > 2 { print $1 }' | sort | tr '
' ' ')
    [ "$inside" = 'rxe0 soft vmw_pvrdma0 vmw_pvrdma1 ' ] || fail "devices inside: $inside"
    inside=$(run ls /sys/class/infiniband | tr '
' ' ')
    [ "$inside" = 'rxe0 soft vmw_pvrdma0 vmw_pvrdma1 ' ] || fail "listed inside: $inside"
    run rdma link | grep -q '^link rxe0/1 state ACTIVE' || fail 'rdma link'
    for attribute in node_guid node_type ports/1/gids/0 ports/1/gid_attrs/types/0 ports/1/state; do
        for real in rxe0 soft vmw_pvrdma0; do
            inside=$(run cat /sys/class/infiniband/$real/$attribute)
            [ "$inside" = "$(cat /sys/class/infiniband/$real/$attribute)" ] || fail "$real/$attribute: $inside"
        done
    done
    [ "$(run cat /sys/class/infiniband_verbs/uverbs3/ibdev)" = vmw_pvrdma1 ] || fail 'uverbs3 is not ours'
    run stat -c '%F %t %T' /dev/infiniband/uverbs3 | grep -q 'character special file e7 c3' || fail 'node of ours'

    between() {
        one=$1 two=$2 name=$3
        shift 3
        run --guest $one ibv_rc_pingpong -d $name -g 1 "$@" >/tmp/first.log 2>&1 &
        first=$!
        wait_listen 18515
        run --guest $two ibv_rc_pingpong -d $name -g 1 "$@" 127.0.0.1 || fail "$name: client"
        wait $first || { cat /tmp/first.log; fail "$name: server"; }
        echo "good: $name"
    }
    between red red rxe0 -n 200
    between red red vmw_pvrdma0 -n 200 -c
    between red red vmw_pvrdma1 -n 200 -c
    between red blue vmw_pvrdma1 -n 200 -c -e

    # They come and go while a guest lives.
    run --guest red sh -c 'sleep 8; ls /sys/class/infiniband' >/tmp/listed &
    sleep 3
    rdma link delete soft && rdma link add new0 type rxe netdev lo || fail 'cannot change the links'
    inside=$(run --guest red ibv_devices | awk 'NR > 2 { print $1 }' | sort | tr '
' ' ')
    [ "$inside" = 'new0 rxe0 vmw_pvrdma0 vmw_pvrdma1 ' ] || fail "devices after a change: $inside"
    wait $!
    grep -q new0 /tmp/listed && ! grep -q soft /tmp/listed || fail "listed after a change: $(cat /tmp/listed)"

    [ "$(as_nobody ibv_devices | awk 'NR > 2' | wc -l)" = 3 ] || fail 'outside it changed'
    [ -z "$(ls /dev/shm)" ] || fail "left: $(ls /dev/shm)"
    rdma link delete new0 && rdma link delete rxe0 && /run/busybox rmmod rdma_rxe"#;

/// For two guests on one server: the first is the server of each program, the second its client.
pub fn two_guests() -> [Vec<Step>; 2] {
    let by_address = [
        ("ibv_rc_pingpong -c", "ibv_rc_pingpong -d $device -g 1 -c -n 300"),
        ("ibv_rc_pingpong -c -e", "ibv_rc_pingpong -d $device -g 1 -c -e -n 300"),
        ("ibv_ud_pingpong -c", "ibv_ud_pingpong -d $device -g 1 -c -n 200"),
        ("ibv_srq_pingpong -c", "ibv_srq_pingpong -d $device -g 1 -c -q 4 -n 50"),
        ("every RC operation, byte for byte", "$own/data -k short -s 1 -p 18515"),
        ("ib_write_bw 64 KiB", "ib_write_bw -d $device -x 1 -F -s 65536 -n 500"),
        ("ib_send_lat 8 B", "ib_send_lat -d $device -x 1 -F -s 8 -n 300"),
        ("ib_atomic_lat", "ib_atomic_lat -d $device -x 1 -F -n 300"),
    ];
    let by_rdma_cm = [
        ("rdma_cm: rping", "rping -s -a $first -C 5", "rping -c -a $first -C 5"),
        ("rdma_cm: udaddy", "udaddy -b $first", "udaddy -s $first"),
        ("rdma_cm: ib_send_lat -R", "ib_send_lat -R -F -s 8 -n 300", "ib_send_lat -R -F -s 8 -n 300 $first"),
    ];
    let mut sides =
        ["server", "client"].map(|side| vec![step(&format!("{side}: port is active, GID 1 bound"), "wait_gid")]);
    let mut both = |what: &str, scripts: [String; 2]| {
        for ((side, steps), script) in ["server", "client"].iter().zip(&mut sides).zip(scripts) {
            steps.push(step(&format!("{side}: {what}"), &script));
        }
    };
    for (what, command) in by_address {
        both(what, [command.to_owned(), format!("connect {command}")]);
    }
    for (what, server, client) in by_rdma_cm {
        both(what, [format!("serve {server}; served"), format!("client {client}")]);
    }
    both("NVMe over RDMA, 64 MiB", [DISK.to_owned(), INITIATOR.to_owned()]);
    sides
}

/// A disk in memory that the other guest's kernel writes and reads over RDMA: fast registration, remote invalidation
/// and kernel QPs, which no user program has.
const DISK: &str = r#"
    load nvme_of
    truncate -s 96M /dev/shm/disk
    mount -t configfs config /sys/kernel/config
    cd /sys/kernel/config/nvmet
    mkdir subsystems/disk subsystems/disk/namespaces/1 ports/1
    echo 1 >subsystems/disk/attr_allow_any_host
    echo 1 >subsystems/disk/namespaces/1/buffered_io
    printf /dev/shm/disk >subsystems/disk/namespaces/1/device_path
    echo 1 >subsystems/disk/namespaces/1/enable || fail 'no namespace'
    echo rdma >ports/1/addr_trtype
    echo ipv4 >ports/1/addr_adrfam
    echo $first >ports/1/addr_traddr
    echo 4420 >ports/1/addr_trsvcid
    ln -s /sys/kernel/config/nvmet/subsystems/disk ports/1/subsystems/disk || { dmesg | tail; fail 'no port'; }
    : >/run/job/listens.$STEP
    until [ -e /run/jobs/guest2/sum.$STEP ]; do sleep 0.1; done
    rm ports/1/subsystems/disk
    rmdir ports/1 subsystems/disk/namespaces/1 subsystems/disk
    [ "$(head -c 67108864 /dev/shm/disk | md5sum)" = "$(cat /run/jobs/guest2/sum.$STEP)" ] || fail 'another disk'
    rm /dev/shm/disk"#;

/// Its other end.
const INITIATOR: &str = r#"
    load nvme_of
    host=11111111-1111-1111-1111-111111111111
    target="transport=rdma,traddr=$first,trsvcid=4420,nqn=disk"
    target="$target,hostnqn=nqn.2014-08.org.nvmexpress:uuid:$host,hostid=$host,nr_io_queues=1,queue_size=32"
    connect_disk() { echo "$target" >/dev/nvme-fabrics; }
    client connect_disk
    for _ in $(seq 100); do [ -b /dev/nvme0n1 ] && break; sleep 0.1; done
    [ -b /dev/nvme0n1 ] || { dmesg | tail; fail 'no disk'; }
    head -c 67108864 /dev/urandom >/dev/shm/source
    dd if=/dev/shm/source of=/dev/nvme0n1 bs=1M oflag=direct 2>&1 | sed -n 's/.*, /wrote /p' >/tmp/rate
    dd if=/dev/nvme0n1 bs=1M count=64 iflag=direct 2>/tmp/dd | cmp - /dev/shm/source || fail 'other bytes'
    sed -n 's/.*, /read /p' /tmp/dd >>/tmp/rate
    md5sum </dev/shm/source >/run/job/sum.$STEP
    echo 1 >/sys/class/nvme/nvme0/delete_controller
    rm /dev/shm/source
    echo "note: $(paste -sd ' ' /tmp/rate)""#;

/// rdma-core's own tests and nothing else.
pub fn pyverbs() -> Vec<Step> {
    vec![suite::whole()]
}

/// A script of the user's own.
pub fn own(script: String) -> Vec<Step> {
    vec![Step { name: "your script".to_owned(), script, limit: Duration::from_secs(300), judge: None }]
}

fn step(name: &str, script: &str) -> Step {
    Step { name: name.to_owned(), script: script.to_owned(), limit: STEP, judge: None }
}
