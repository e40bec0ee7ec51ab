//! Linux's software RoCE as the adapters of two hosts: a guest plays each, and its programs run in guests of
//! `pvrdma run`, whose gateways reach each other by `rdma_rxe`.
//!
//! Called by `mod.rs`. The settings are made in the guests, with the commands of README.md. More shell functions are
//! in `tests/qemu/adapters.sh`.

use std::time::Duration;

use anyhow::Result;

use super::pairs::{Choice, Row, Side, Table, chosen, pingpongs};
use super::{House, Provider};

/// Runs it, prints the table and gives the number of rows that failed.
pub fn run(house: &House, provider: &Provider, choice: &Choice) -> Result<usize> {
    let table = Table { sides: [Side::Host; 2], rows: chosen(rows(), choice), gateway_options: String::new() };
    table.run(house, provider, &format!("adapters-{}", provider.name()))
}

fn rows() -> Vec<Row> {
    let mut rows = vec![Row::alone("two hosts are linked by their adapters", "begin_hosts")];
    rows.extend(pingpongs());
    rows.push(Row::connected("every operation, byte for byte", "$own/data -k few -s 1 -g $gid -p 18515"));
    rows.push(Row::connected("every error, at both ends", "$own/apart all -g $gid -p 18515"));
    let mut both = |name: &str, server: &str, client: &str| rows.push(Row::of(name, server, client));
    for program in ["ib_send", "ib_write", "ib_read"] {
        let bw = format!("perftest_at 4096 100 {program}_bw -b -q 4");
        both(&format!("{program}_bw -b -q 4, 4 KiB"), &bw, &bw);
        let bw = format!("perftest_at 8 200 {program}_bw");
        both(&format!("{program}_bw 8 B"), &bw, &bw);
    }
    for line in ["ib_atomic_lat -A FETCH_AND_ADD", "ib_atomic_bw -A CMP_AND_SWAP", "ib_send_lat -c UD"] {
        let script = format!("perftest_at 8 100 {line}");
        both(line, &script, &script);
    }
    let by_rdma_cm = [
        ("rping", "rping -s -a $guest -C 5 -V -S 4000", "rping -c -a $first_guest -C 5 -V -S 4000"),
        ("ucmatose, 3 connections", "ucmatose -b $guest -c 3", "ucmatose -s $first_guest -c 3"),
        ("udaddy", "udaddy -b $guest", "udaddy -s $first_guest"),
    ];
    for (name, server, client) in by_rdma_cm {
        both(&format!("rdma_cm: {name}"), &format!("serve {server}; served"), &format!("client $run {client}"));
    }
    let data = "$own/data -k connected -s 2 -g $gid -p 18515";
    both(
        "1 % loss between the adapters: every operation of RC",
        &format!("bad_wire loss 1%; $run {data} || fail \"exit code $?\"; good_wire"),
        &format!("bad_wire loss 1%; connect $run {data}; good_wire"),
    );
    rows.extend(figures("by adapters", ""));
    rows.push(Row::alone("all of that went by adapters", "went_by_adapter"));
    rows.extend(figures("rxe by itself", "by_itself; "));
    let rstream = "rstream -S 65536 -C 400";
    rows.push(Row::of(
        "rxe by itself: rsockets, 64 KiB",
        &format!("by_itself; serve {rstream} -b $address; served"),
        &format!("client true; {rstream} -s $first >/tmp/rstream || fail rstream; cat /tmp/rstream; note /tmp/rstream"),
    ));
    let longer = |seconds: u64, row: Row| Row { short: true, limit: Duration::from_secs(seconds), ..row };
    rows.push(longer(
        60,
        Row::of(
            "an adapter goes under load: QPs go on over TCP",
            "lose_under_load",
            "connect $run $own/apart $load_options",
        ),
    ));
    rows.push(Row::alone("without it", "[ $number = 2 ] || remove_adapter; goes_over tcp"));
    rows.extend(figures("over TCP", ""));
    // Who has lost one tries again after ten seconds, and then more and more seldom.
    rows.push(longer(90, Row::alone("back again by adapters", "add_adapter; goes_over hca 80")));
    let stream = "$run ib_write_bw -d $device -x $gid -F -s 4096 -n 40000 -u 18";
    rows.push(longer(
        120,
        Row::of(
            "an adapter goes at the target of a stream",
            &format!("lose_as_target {stream}"),
            &format!("client true; connect {stream}"),
        ),
    ));
    rows.push(Row::alone("the hosts go away", "end_hosts"));
    rows
}

/// The same programs each way, behind `before`.
fn figures(way: &str, before: &str) -> Vec<Row> {
    let lines = [
        ("ib_send_lat, 8 B", "perftest_at 8 500 ib_send_lat"),
        ("ib_write_bw, 64 KiB", "perftest_at 65536 400 ib_write_bw"),
        ("ib_write_bw, 1 MiB", "perftest_at 1048576 25 ib_write_bw"),
    ];
    lines
        .map(|(name, line)| {
            let script = format!("{before}{line}");
            Row::of(&format!("{way}: {name}"), &script, &script)
        })
        .into()
}
