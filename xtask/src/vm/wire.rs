//! Linux's software RoCE as the judge of ours: two guests on one Ethernet, neither with a PVRDMA of the kernel.
//!
//! Called by `mod.rs`. One guest plays a machine with an adapter (`rdma_rxe`), the other one runs its programs in
//! guests of `pvrdma run`, whose gateway owns the wire. First both have software RoCE: what fails there is not for us
//! to mend.

use anyhow::Result;

use super::pairs::{Choice, Row, Side, Table, Ways, chosen, pingpongs};
use super::{House, Provider};

/// How the names of rows end in which software RoCE is only asked.
const ASKED: &str = "READ, atomics";

/// What Linux's software RoCE does in its own way, with itself too. The rows allow for it.
const DIFFERS: &str = "\
Of software RoCE, whoever its peer is:
  - As requester of READs and atomics it does not get over a lost packet: it sends nothing any more, and its QP does not
    fail. So those rows are not run with the stand-in as server.
  - A READ of 0 bytes and one that comes again, near each other, end its QP (REM_ACCESS_ERR, then silence). So on a bad
    wire no READ is without length.
  - A message that is longer than the receive is an operation error to both sides (REM_OP_ERR, LOC_QP_OP_ERR), not
    REM_INV_REQ_ERR and LOC_LEN_ERR.
  - No asynchronous event tells of a request that was refused, and receives may stay where they are.
  - An atomic that is not aligned cannot be posted.
  - Regions of a process that ends go before its QPs, so it may be REM_ACCESS_ERR that tells of its end.
Of perftest: it asks for as many READs in flight as the other device can have (128), so it has `-o 16` here.
";

/// Runs it, prints the tables and gives the number of rows that failed. The short list has no base line.
pub fn run(house: &House, provider: &Provider, choice: &Choice) -> Result<usize> {
    let mut failed = 0;
    if !choice.short {
        failed += table([Side::SoftwareRoce; 2], choice).run(house, provider, "wire-base")?;
    }
    let folder = format!("wire-{}", provider.name());
    failed += table([Side::StandIn, Side::SoftwareRoce], choice).run(house, provider, &folder)?;
    print!("{DIFFERS}");
    Ok(failed)
}

/// What passes the gateway is written down if rows are named: somebody looks for something.
fn table(sides: [Side; 2], choice: &Choice) -> Table {
    let gateway_options = choice.named.as_ref().map_or("", |_| "--pcap /tmp/wire.pcap").to_owned();
    Table { sides, rows: chosen(rows(), choice), gateway_options }
}

fn rows() -> Vec<Row> {
    let mut rows = vec![Row::alone("the wire is there", "begin_wire")];
    rows.extend(pingpongs());
    rows.push(Row::connected("every operation, byte for byte", "$own/data -k few -a -s 1 -g $gid -p 18515"));
    let mut both = |name: &str, server: &str, client: &str| {
        let ways = if name.ends_with(ASKED) { Ways::SoftwareRoce } else { Ways::Each };
        rows.push(Row { ways, ..Row::of(name, server, client) });
    };
    // The other side's number of READs in flight is taken unseen; 16 is what both devices can do.
    for program in ["ib_send", "ib_write", "ib_read -o 16"] {
        let (program, options) = program.split_once(' ').unwrap_or((program, ""));
        let lat = format!("perftest_at 8 100 {program}_lat {options}");
        both(&format!("{program}_lat 8 B"), &lat, &lat);
        let bw = format!("perftest_at 4096 100 {program}_bw -b -q 4 {options}");
        both(&format!("{program}_bw -b -q 4, 4 KiB"), &bw, &bw);
        for (size, bytes, count) in [("8 B", 8, 200), ("64 KiB", 65536, 50), ("1 MiB", 1 << 20, 10)] {
            let bw = format!("perftest_at {bytes} {count} {program}_bw {options}");
            both(&format!("{program}_bw {size}"), &bw, &bw);
        }
    }
    for line in ["ib_atomic_lat -o 16 -A FETCH_AND_ADD", "ib_atomic_bw -o 16 -A CMP_AND_SWAP", "ib_send_lat -c UD"] {
        let script = match line.contains("UD") {
            true => format!("perftest_at 1000 100 {line}"),
            // These know no size but their own.
            false => format!("perftest_at 8 100 {line}"),
        };
        both(line, &script, &script);
    }
    let by_rdma_cm = [
        ("rping", "rping -s -a $address -C 5 -V -S 4000", "rping -c -a $first -C 5 -V -S 4000"),
        ("rstream", "rstream -b $address -T v -C 20 -S 20000", "rstream -s $first -T v -C 20 -S 20000"),
        ("ucmatose, 3 connections", "ucmatose -b $address -c 3", "ucmatose -s $first -c 3"),
        ("udaddy", "udaddy -b $address", "udaddy -s $first"),
        ("ib_send_bw -R", "ib_send_bw -R -F -s 65536 -n 50", "ib_send_bw -R -F -s 65536 -n 50 $first"),
    ];
    for (name, server, client) in by_rdma_cm {
        both(&format!("rdma_cm: {name}"), &format!("serve {server}; served"), &format!("client $run {client}"));
    }
    both("rdma_cm: nobody listens on that port", "serve rping -s -a $address -p 7175; until_asked", "is_rejected 7176");
    let refused = [
        ("wrong_key", "a wrong key"),
        ("no_right", "a key without the right"),
        ("beyond_region", "beyond the end of a region"),
        ("unaligned_atomic", "an atomic that is not aligned"),
        ("long_message", "longer than the receive"),
        ("late_receive", "a receive that comes late (RNR)"),
        ("no_receive", "a receive that never comes"),
        ("no_peer", "a peer in RESET"),
        ("killed", "a peer that is killed"),
        ("datagram", "datagrams: Q_Key, network header"),
    ];
    for (case, name) in refused {
        let command = format!("$run $own/wire $kind -g $gid -p 18515 -c {case}");
        both(name, &command, &format!("connect {command}"));
    }
    let bad = [("1 % loss", "loss 1%"), ("doubled and overtaken", "delay 1ms duplicate 2% reorder 10%")];
    for (name, netem) in bad {
        let programs = [
            ("SEND, WRITE", "$own/data -k connected -o SEND,SEND_IMM,WRITE,WRITE_IMM -s 2 -g $gid -p 18515"),
            ("READ, atomics", "$own/data -k connected -a -z -o READ,CAS,FADD -s 2 -g $gid -p 18515"),
            ("ibv_rc_pingpong -c, 20 KiB", "ibv_rc_pingpong -d $device -g $gid -c -s 20000 -n 100"),
        ];
        for (what, command) in programs {
            both(
                &format!("{name}: {what}"),
                &format!("bad_wire {netem}; $run {command} || fail \"exit code $?\"; good_wire"),
                &format!("bad_wire {netem}; connect $run {command}; good_wire"),
            );
        }
    }
    rows.push(Row::alone("the wire goes away", "end_wire"));
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(sides: [Side; 2], short: bool) -> [Vec<String>; 2] {
        table(sides, &Choice { short, named: None })
            .steps(&Provider::System)
            .map(|steps| steps.into_iter().map(|step| step.name).collect())
    }

    #[test]
    fn both_guests_have_the_same_rows() {
        for short in [false, true] {
            let [first, second] = names([Side::StandIn, Side::SoftwareRoce], short);
            assert_eq!(first, second);
            assert!(first.len() > 8);
        }
    }

    #[test]
    fn each_side_serves_once() {
        let [mixed, _] = names([Side::StandIn, Side::SoftwareRoce], false);
        let [base, _] = names([Side::SoftwareRoce; 2], false);
        let asked = mixed.iter().filter(|name| name.contains(ASKED)).count();
        assert_eq!(mixed.len() - 2 - asked, 2 * (base.len() - 2));
        let served = |who: &str| mixed.iter().filter(|name| name.ends_with(&format!("{who} serves"))).count();
        assert_eq!(served("rxe"), served("stand-in") + asked);
    }
}
