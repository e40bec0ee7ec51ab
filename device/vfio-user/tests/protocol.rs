//! The whole server over its socket, with a guest by hand: life of a driver, traffic between guests, guests that
//! unmap, leave or write rubbish.

mod by_hand;

use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use by_hand::{Guest, RAM, hdr, joined, servers, servers_with};
use pvrdma_capture::file::{CaptureFile, Records};
use pvrdma_device::transport::Path;
use pvrdma_ffi::dev_api::*;
use pvrdma_ffi::uapi::vmw_pvrdma::*;
use pvrdma_vfio_user::{Settings, TraceFile};

#[test]
fn driver_life() {
    let servers = servers(1);
    let mut guest = Guest::connect(&servers.paths[0]);
    assert_eq!(guest.get(PVRDMA_REG_VERSION), 20);
    assert_eq!(guest.get(PVRDMA_REG_ERR), 0xffff);
    assert_ne!(guest.set_and_err(PVRDMA_REG_CTL, PVRDMA_DEVICE_CTL_ACTIVATE), 0, "no shared region yet");
    assert_ne!(guest.set_and_err(PVRDMA_REG_REQUEST, 0), 0, "no shared region yet");

    guest.write_dsr();
    let caps = guest.caps();
    assert_eq!((caps.mode, caps.gid_types, caps.phys_port_cnt), (0, 2, 1));
    assert!(caps.max_uar.is_power_of_two() && caps.max_qp > 0 && caps.max_cq > 0);
    assert_eq!(guest.set_and_err(PVRDMA_REG_CTL, PVRDMA_DEVICE_CTL_ACTIVATE), 0);

    let query = pvrdma_cmd_query_port { hdr: hdr(PVRDMA_CMD_QUERY_PORT), port_num: 1, ..Default::default() };
    let port: pvrdma_cmd_query_port_resp = guest.ask(&query);
    assert_eq!((port.hdr.response, port.hdr.ack), (0xfeed, 0x8000_0000));
    assert_eq!(port.attrs.state, PVRDMA_PORT_ACTIVE);
    assert!(port.attrs.gid_tbl_len <= caps.gid_tbl_len, "Linux indexes one table by the other's length");

    assert_eq!(guest.set_and_err(PVRDMA_REG_CTL, PVRDMA_DEVICE_CTL_RESET), 0);
    assert_ne!(guest.command(&query), 0, "the shared region is forgotten");
    guest.write_dsr();
    assert_eq!(guest.set_and_err(PVRDMA_REG_CTL, PVRDMA_DEVICE_CTL_ACTIVATE), 0);
    let _: pvrdma_cmd_query_port_resp = guest.ask(&query);
}

#[test]
fn write_reaches_the_other_guest_and_wakes_the_writer() {
    let servers = servers(2);
    let [mut a, b] = joined(&servers, 10_000);
    let message = b"from one guest's memory to the other's";
    // Across a page border, and pages lie in descending order.
    a.0.ram.write_all_at(&message[..6], Guest::place(&a.2, 4090)).unwrap();
    a.0.ram.write_all_at(&message[6..], Guest::place(&a.2, 4096)).unwrap();
    let mut from = a.2;
    from.addr += 4090;

    a.0.arm(&a.1);
    a.0.post_write(&mut a.1, 5, &from, &b.2, message.len() as u32);
    a.0.ring_send(&a.1);

    assert_eq!(a.0.wait(&a.1), (5, PVRDMA_WC_SUCCESS));
    let mut arrived = vec![0; message.len()];
    b.0.ram.read_exact_at(&mut arrived, Guest::place(&b.2, 0)).unwrap();
    assert_eq!(arrived, message);
    assert_eq!(a.0.fired(2), 1);
    assert_eq!(a.0.notified(), [a.1.cq]);
    assert!(b.0.notified().is_empty(), "a WRITE is silent at its target");
}

#[test]
fn trace_tells_what_each_guest_asks_for_and_gets() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let servers =
        servers_with(2, &Settings { trace: Some(TraceFile::open(file.path()).unwrap()), ..Default::default() });
    let [mut a, b] = joined(&servers, 4096);
    a.0.arm(&a.1);
    a.0.post_write(&mut a.1, 5, &a.2, &b.2, 64);
    a.0.ring_send(&a.1);
    assert_eq!(a.0.wait(&a.1), (5, PVRDMA_WC_SUCCESS));
    (0..3).for_each(|_| a.0.ring_poll(&a.1));
    a.0.arm(&a.1);
    let trace = std::fs::read_to_string(file.path()).unwrap();
    let of = |index: usize| {
        let name = format!("{} ", servers.paths[index].display());
        trace.lines().filter_map(|line| line.strip_prefix(&name)).map(str::to_owned).collect::<Vec<_>>()
    };
    let (qp, cq) = (a.1.qp, a.1.cq);
    let connects = |line: &String| line.starts_with("modify_qp ") && line.ends_with(" path=memory -> ok");
    assert_eq!([0, 1].map(|index| of(index).iter().filter(|line| connects(line)).count()), [1, 1], "{trace}");
    let expected = [
        "create_uc pfn=0xfe001 ctx=".to_owned(),
        "create_qp type=2 pd=".to_owned(),
        format!("modify_qp qp={qp} mask="),
        format!("CQ {cq} ARM"),
        format!("QP {qp} SEND"),
        format!("CQE cq={cq} qp={qp} wr_id=0x5 RDMA_WRITE SUCCESS byte_len=0"),
        format!("EVENT COMPLETION cq={cq}"),
        format!("CQ {cq} POLL"),
        "more".to_owned(),
        format!("CQ {cq} ARM"),
    ];
    let lines = of(0);
    let mut rest = lines.iter();
    for expected in expected {
        assert!(rest.any(|line| line.contains(&expected)), "{expected:?} is not there, or not in its place:\n{trace}");
    }
    assert!(of(1).iter().any(|line| line.starts_with("create_qp ")), "{trace}");
}

#[test]
fn what_guests_send_is_captured_as_frames() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("capture");
    let capture = Some(CaptureFile::open(&path).unwrap());
    let servers = servers_with(2, &Settings { capture, ..Default::default() });
    let [mut a, b] = joined(&servers, 4096);
    a.0.post_write(&mut a.1, 5, &a.2, &b.2, 64);
    a.0.ring_send(&a.1);
    assert_eq!(a.0.wait(&a.1), (5, PVRDMA_WC_SUCCESS));
    let file = std::fs::read(&path).unwrap();
    let lengths: Vec<_> = Records::of(&file).unwrap().map(|(_, frame)| frame.len()).collect();
    // Ethernet, IPv4, UDP, BTH; RETH and payload, or AETH; ICRC.
    let [write, acknowledgement] = [14 + 28 + 12 + 16 + 64 + 4, 14 + 28 + 12 + 4 + 4];
    assert_eq!(lengths, [write, acknowledgement]);
}

#[test]
fn what_guests_do_can_be_watched() {
    let servers = servers(2);
    let watch = servers.server.as_ref().unwrap().watch();
    let qps = || watch.look().into_iter().map(|seen| seen.device).collect::<Vec<_>>();
    assert_eq!(qps(), [None, None], "no driver is there");
    let [mut a, b] = joined(&servers, 4096);
    a.0.post_write(&mut a.1, 5, &a.2, &b.2, 64);
    a.0.ring_send(&a.1);
    assert_eq!(a.0.wait(&a.1), (5, PVRDMA_WC_SUCCESS));
    let seen: Vec<_> = qps().into_iter().map(|device| device.expect("a driver")).collect();
    let of = |index: usize| {
        let (gids, qps) = &seen[index];
        assert_eq!((gids.len(), qps.len()), (1, 1));
        let peer = qps[0].peer.expect("it is connected");
        (gids[0], qps[0].qpn.0, peer.gid, peer.qpn.0, qps[0].path, qps[0].sent.bytes, qps[0].received.bytes)
    };
    let [(a_gid, a_qpn, ..), (b_gid, b_qpn, ..)] = [of(0), of(1)];
    assert_eq!((a_qpn, b_qpn), (a.1.qpn, b.1.qpn));
    assert_eq!(of(0), (a_gid, a_qpn, b_gid, b_qpn, Path::Memory, 64, 0));
    assert_eq!(of(1), (b_gid, b_qpn, a_gid, a_qpn, Path::Memory, 0, 64));
    drop(b);
    let end = Instant::now() + Duration::from_secs(20);
    while qps()[1].is_some() {
        assert!(Instant::now() < end, "its guest has left");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(qps()[0].as_ref().map(|(_, qps)| qps[0].path), Some(Path::None));
}

#[test]
fn faults_come_between_guests() {
    let faults = Some("drop=1".parse().unwrap());
    let servers = servers_with(2, &Settings { faults, ..Default::default() });
    let [mut a, b] = joined(&servers, 4096);
    a.0.post_write(&mut a.1, 5, &a.2, &b.2, 64);
    a.0.ring_send(&a.1);
    assert_eq!(a.0.wait(&a.1), (5, PVRDMA_WC_RETRY_EXC_ERR));
}

#[test]
fn devices_speak_the_roce_version_that_is_asked_for() {
    let servers = servers_with(1, &Settings { roce: "v1".parse().unwrap(), ..Default::default() });
    let mut guest = Guest::connect(&servers.paths[0]);
    guest.write_dsr();
    assert_eq!(guest.caps().gid_types, PVRDMA_GID_TYPE_FLAG_ROCE_V1);
}

#[test]
fn doorbell_of_another_context_is_ignored() {
    let servers = servers(2);
    let [mut a, b] = joined(&servers, 4096);
    let _other = a.0.pair(2);
    a.0.post_write(&mut a.1, 1, &a.2.clone(), &b.2, 64);
    a.0.ring(2, PVRDMA_UAR_QP_OFFSET, a.1.qp | PVRDMA_UAR_QP_SEND);
    a.0.ring(3, PVRDMA_UAR_QP_OFFSET, a.1.qp | PVRDMA_UAR_QP_SEND);
    assert_eq!(a.0.poll(&a.1), None);
    a.0.ring_send(&a.1);
    assert_eq!(a.0.wait(&a.1), (1, PVRDMA_WC_SUCCESS));
}

#[test]
fn unmap_during_copies_gives_errors_and_no_crash() {
    const LEN: u64 = 1 << 20;
    let servers = servers(2);
    let [mut a, mut b] = joined(&servers, LEN);
    let (whole, mut worst) = (AtomicU32::new(0), Duration::ZERO);
    for round in 0..10 {
        if round > 0 {
            // The error ended both QPs.
            (a.1, b.1) = (a.0.another(&a.1), b.0.another(&b.1));
            a.0.join(&a.1, 2, b.1.qpn);
            b.0.join(&b.1, 1, a.1.qpn);
        }
        let before = whole.load(Ordering::Relaxed);
        let noticed = AtomicBool::new(false);
        let status = std::thread::scope(|scope| {
            let (target, noticed, whole) = (&mut b.0, &noticed, &whole);
            let unmapper = scope.spawn(move || {
                // Between two writes or anywhere in one, but not before the first has come through.
                while whole.load(Ordering::Relaxed) == before {
                    std::thread::yield_now();
                }
                std::thread::sleep(Duration::from_micros(50 * round));
                let start = Instant::now();
                target.client.dma_unmap(0, RAM).unwrap();
                let took = start.elapsed();
                while !noticed.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(1));
                }
                target.client.dma_map(0, 0, RAM, target.ram.as_raw_fd()).unwrap();
                took
            });
            // An unmap that waits for more than the copies that run does not end before this.
            let deadline = Instant::now() + Duration::from_secs(20);
            let status = loop {
                a.0.post_write(&mut a.1, 1, &a.2, &b.2, LEN as u32);
                a.0.ring_send(&a.1);
                match a.0.wait(&a.1) {
                    (_, PVRDMA_WC_SUCCESS) if Instant::now() < deadline => whole.fetch_add(1, Ordering::Relaxed),
                    (_, status) => break status,
                };
            };
            noticed.store(true, Ordering::Relaxed);
            worst = worst.max(unmapper.join().unwrap());
            status
        });
        assert_eq!(status, PVRDMA_WC_REM_ACCESS_ERR);
    }
    println!("{} writes of 1 MiB, 10 unmaps during them, the slowest took {worst:?}", whole.into_inner());
}

#[test]
fn guest_that_leaves_is_a_timeout_for_the_other_and_may_come_back() {
    let servers = servers(2);
    let [mut a, b] = joined(&servers, 4096);
    let gone = b.2;
    drop(b);
    // The server notices on its own thread.
    let deadline = Instant::now() + Duration::from_secs(20);
    let status = loop {
        a.0.post_write(&mut a.1, 1, &a.2, &gone, 64);
        a.0.ring_send(&a.1);
        match a.0.wait(&a.1) {
            (_, PVRDMA_WC_SUCCESS) => assert!(Instant::now() < deadline, "the guest is still there"),
            (_, status) => break status,
        }
    };
    assert_eq!(status, PVRDMA_WC_RETRY_EXC_ERR);

    let mut back = Guest::boot(&servers.paths[1], 2);
    let (pair, pd) = back.pair(1);
    let region = back.register(pd, 4096);
    a.1 = a.0.another(&a.1);
    a.0.join(&a.1, 2, pair.qpn);
    back.join(&pair, 1, a.1.qpn);
    a.0.post_write(&mut a.1, 2, &a.2, &region, 64);
    a.0.ring_send(&a.1);
    assert_eq!(a.0.wait(&a.1), (2, PVRDMA_WC_SUCCESS));
}

/// Random numbers with a seed, so that a failure can be repeated (xorshift64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

#[test]
fn rubbish_hurts_nobody_else() {
    let servers = servers(2);
    let mut hostile = Guest::boot(&servers.paths[0], 1);
    let (pair, _) = hostile.pair(1);
    let mut random = Random(0x5eed_0001);
    for round in 0..20_000 {
        let region = [0, 1, 1, 2, 2, 2, 7, 8][(random.next() % 8) as usize];
        let offset = match random.next() % 4 {
            0 => random.next(),
            1 => random.next() % 0x40,
            2 => u64::from(pair.qp) * 4096 + random.next() % 16,
            _ => random.next() % 0x20_0000,
        };
        let value = random.next().to_le_bytes();
        let len = [1, 2, 4, 4, 4, 8][(random.next() % 6) as usize];
        if random.next().is_multiple_of(3) {
            hostile.client.region_read(region, offset, &mut [0; 8][..len]).unwrap();
        } else {
            hostile.client.region_write(region, offset, &value[..len]).unwrap();
        }
        if round % 100 == 0 {
            // A live session again, for the next hundred to break.
            hostile.write_dsr_again();
            hostile.set_and_err(PVRDMA_REG_CTL, PVRDMA_DEVICE_CTL_ACTIVATE);
        }
        // Commands with random numbers in all fields.
        let mut command = [0u8; PVRDMA_CMD_REQ_LEN];
        for bytes in command.chunks_mut(8) {
            bytes.copy_from_slice(&(random.next() % [3, 5000, u64::MAX][(random.next() % 3) as usize]).to_le_bytes());
        }
        command[8..12].copy_from_slice(&((random.next() % 24) as u32).to_le_bytes());
        hostile.command(&command);
    }
    assert_eq!(hostile.get(PVRDMA_REG_VERSION), 20, "its own server still answers");
    let mut other = Guest::boot(&servers.paths[1], 2);
    let _ = other.pair(1);
}

#[test]
fn wild_shared_regions_are_refused() {
    let servers = servers(1);
    let mut guest = Guest::connect(&servers.paths[0]);
    for at in [0xffff_ffff_ffff_f000, RAM, RAM - 8, u64::MAX] {
        guest.set(PVRDMA_REG_DSRLOW, at as u32);
        guest.set(PVRDMA_REG_DSRHIGH, (at >> 32) as u32);
        assert_ne!(guest.set_and_err(PVRDMA_REG_CTL, PVRDMA_DEVICE_CTL_ACTIVATE), 0, "{at:#x}");
    }
    // All zeroes: no rings.
    let zeroes = guest.pages(1);
    guest.set(PVRDMA_REG_DSRLOW, zeroes as u32);
    guest.set(PVRDMA_REG_DSRHIGH, 0);
    assert_ne!(guest.set_and_err(PVRDMA_REG_CTL, PVRDMA_DEVICE_CTL_ACTIVATE), 0);
    guest.write_dsr();
    assert_eq!(guest.set_and_err(PVRDMA_REG_CTL, PVRDMA_DEVICE_CTL_ACTIVATE), 0);
}
