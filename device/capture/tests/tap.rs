//! What a tap writes while two devices talk: each message once, as the frames it would be, and the answers to it.

use pvrdma_capture::file::{RECORD, Sink};
use pvrdma_capture::tap::{self, Capture};
use pvrdma_capture::writer::Settings;
use pvrdma_device::memory::{DmaAddr, Fault, Memory};
use pvrdma_device::testing::Ram;
use pvrdma_device::testing::driver::{Driver, Layout};
use pvrdma_device::testing::end::{End, Path, connect, pump_until};
use pvrdma_device::testing::queue::QpSize;
use pvrdma_device::testing::wr::{RecvWr, SendWr, sge};
use pvrdma_device::transport::fabric::{Fabric, Port};
use pvrdma_ffi::dev_api::PVRDMA_QPS_RESET;
use pvrdma_ffi::uapi::vmw_pvrdma::{PVRDMA_SEND_SIGNALED, PVRDMA_SEND_SOLICITED};
use pvrdma_roce::frame::Frame;
use pvrdma_roce::headers::Network;
use pvrdma_roce::packet::{Opcode, Packet, Syndrome, nak};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

/// Longer than anything here may take.
const LIMIT: Duration = Duration::from_secs(20);
/// PSN of the first request.
const FIRST: u32 = 0x00ff_fffa;

/// A file in memory, which is full at some length.
#[derive(Clone)]
struct File {
    bytes: Arc<Mutex<Vec<u8>>>,
    room: usize,
}

impl Sink for File {
    fn append(&self, records: &[u8]) -> bool {
        let mut bytes = self.bytes.lock().unwrap();
        assert!(bytes.len() < self.room, "it was told that the file is full");
        bytes.extend(records);
        bytes.len() < self.room
    }
}

/// The memory of a guest that is made later.
#[derive(Default)]
struct Later(OnceLock<Arc<Ram>>);

impl Memory for Later {
    fn read(&self, from: DmaAddr, into: &mut [u8]) -> Result<(), Fault> {
        self.0.get().ok_or(Fault)?.read(from, into)
    }

    fn write(&self, _to: DmaAddr, _from: &[u8]) -> Result<(), Fault> {
        panic!("a tap writes nothing")
    }

    fn load(&self, _at: DmaAddr) -> Result<u32, Fault> {
        panic!("nor does it look at words")
    }

    fn store(&self, _at: DmaAddr, _value: u32) -> Result<(), Fault> {
        panic!("a tap writes nothing")
    }

    fn update(&self, _at: DmaAddr, _update: &mut dyn FnMut(u64) -> u64) -> Result<u64, Fault> {
        panic!("a tap writes nothing")
    }
}

/// Two guests; what the first one sends is written.
struct Bench {
    a: End,
    b: End,
    file: File,
}

struct How {
    faults: &'static str,
    v1: bool,
    room: usize,
}

const PLAIN: How = How { faults: "", v1: false, room: usize::MAX };

impl Bench {
    fn new(how: &How) -> Bench {
        let (fabric, file) = (Fabric::new(), File { bytes: Arc::default(), room: how.room });
        let (port, memory) = (Port::new(&fabric), Arc::new(Later::default()));
        let settings = Settings { sink: Box::new(file.clone()), v1: how.v1 };
        let capture = Capture::new(settings, memory.clone());
        let faults = (!how.faults.is_empty()).then(|| how.faults.parse().unwrap());
        let mut tapped = None;
        let (_, station) = tap::plug(port.clone(), faults, Some(capture), |network| {
            tapped.insert(Driver::on(0, Layout::Pdir, 16 << 20, network)).device.clone()
        });
        let tapped = tapped.expect("it was made");
        memory.0.set(tapped.ram.clone()).ok().unwrap();
        port.attach(station);
        tapped.bind();
        let [a, b] =
            [tapped, Driver::new(&fabric, 1, Layout::Pdir)].map(|driver| End::new(&Arc::new(driver), QpSize::wr(16)));
        connect(&a, &b, &Path { timeout: 8, retry_cnt: 7, rnr_retry: 7, ..Path::default() });
        Bench { a, b, file }
    }

    fn wait(&self, sends: u32) {
        let done = || self.a.send_cq.waiting() == sends;
        assert!(pump_until(&[&self.a.driver, &self.b.driver], LIMIT, done));
        let good = self.a.send_cq.ends().iter().filter(|(_, status)| *status == 0).count();
        assert_eq!(good, sends as usize);
    }

    /// Hands each frame that was written to `look`, and what its times say.
    fn frames(&self, mut look: impl FnMut(&Frame<'_>)) {
        let bytes = self.file.bytes.lock().unwrap();
        let mut rest = &bytes[..];
        while let Some((head, after)) = rest.split_first_chunk::<RECORD>() {
            let len = |n: usize| u32::from_ne_bytes(head[n..n + 4].try_into().unwrap()) as usize;
            assert_eq!(len(8), len(12), "frames are whole");
            look(&Frame::parse(&after[..len(8)]).unwrap());
            rest = &after[len(8)..];
        }
    }

    /// Opcode and PSN, counted from the first request's, of each frame.
    fn shape(&self) -> Vec<(Opcode, u32)> {
        let mut shape = Vec::new();
        self.frames(|frame| {
            let bth = &frame.packet.bth;
            let (to, from) = if bth.opcode.is_response() { (&self.a, &self.b) } else { (&self.b, &self.a) };
            assert_eq!(bth.dest_qpn, to.qp.qpn.0);
            assert_eq!(frame.envelope.gids(), (from.driver.gid, to.driver.gid));
            assert!(matches!(frame.envelope.network, Network::V6 { .. }));
            shape.push((bth.opcode, bth.psn.wrapping_sub(FIRST) & 0xff_ffff));
        });
        shape
    }

    /// One property of each packet that has it.
    fn all<T>(&self, of: impl Fn(&Packet<'_>) -> Option<T>) -> Vec<T> {
        let mut all = Vec::new();
        self.frames(|frame| all.extend(of(&frame.packet)));
        all
    }
}

#[test]
fn each_operation_is_the_packets_that_a_wire_would_have() {
    let bench = Bench::new(&PLAIN);
    let (a, b) = (&bench.a, &bench.b);
    let (local, remote) = (a.region(8192), b.region(8192));
    let data: Vec<u8> = (0..4096).map(|n| (n * 7) as u8).collect();
    local.set(0, &data);
    remote.set(4096, &data);
    remote.set(0, &41u64.to_ne_bytes());
    for n in 0..3 {
        b.recv(&RecvWr::new(n, &[sge(&remote, 0, 8)]));
    }
    b.recv(&RecvWr::new(4, &[sge(&remote, 1024, 4096)]));
    let all = |len| sge(&local, 0, len);
    let solicited = PVRDMA_SEND_SIGNALED | PVRDMA_SEND_SOLICITED;
    a.send(&SendWr::send(0, &[all(5)]).flags(solicited));
    a.send(&SendWr::send(1, &[all(0)]).imm(0x0403_0201));
    a.send(&SendWr::write(2, &[all(6)], &remote, 100).imm(0x0807_0605));
    a.send(&SendWr::write(3, &[sge(&local, 0, 1000), sge(&local, 1000, 1049)], &remote, 2000));
    a.send(&SendWr::read(4, &[sge(&local, 4096, 2048)], &remote, 4096));
    a.send(&SendWr::read(5, &[sge(&local, 4096, 3)], &remote, 4096));
    remote.set(0, &41u64.to_ne_bytes());
    a.send(&SendWr::cas(6, sge(&local, 4096, 8), &remote, 0, 41, 7));
    a.send(&SendWr::fetch_add(7, sge(&local, 4096, 8), &remote, 0, 3));
    bench.wait(8);
    a.send(&SendWr::send(8, &[all(2049)]));
    bench.wait(1);
    use Opcode::*;
    let expected = [
        (SendOnly, 0),
        (Acknowledge, 0),
        (SendOnlyImm, 1),
        (Acknowledge, 1),
        (WriteOnlyImm, 2),
        (Acknowledge, 2),
        (WriteFirst, 3),
        (WriteMiddle, 4),
        (WriteLast, 5),
        (Acknowledge, 5),
        (ReadRequest, 6),
        (ReadFirst, 6),
        (ReadLast, 7),
        (ReadRequest, 8),
        (ReadOnly, 8),
        (CompareSwap, 9),
        (AtomicAcknowledge, 9),
        (FetchAdd, 10),
        (AtomicAcknowledge, 10),
        (SendFirst, 11),
        (SendMiddle, 12),
        (SendLast, 13),
        (Acknowledge, 13),
    ];
    assert_eq!(bench.shape(), expected);
    assert_eq!(bench.all(|packet| packet.imm), [0x0102_0304, 0x0506_0708], "as its bytes were");
    assert_eq!(
        bench.all(|packet| packet.reth.map(|reth| (reth.addr - remote.start, reth.len))),
        [(100, 6), (2000, 2049), (4096, 2048), (4096, 3)]
    );
    let key = bench.all(|packet| packet.reth.map(|reth| reth.rkey).or(packet.atomic.map(|atomic| atomic.rkey)));
    assert_eq!(key, [remote.key; 6]);
    let atomic = bench.all(|packet| packet.atomic.map(|atomic| (atomic.compare, atomic.swap_or_add)));
    assert_eq!(atomic, [(41, 7), (0, 3)]);
    assert_eq!(bench.all(|packet| packet.atomic_ack), [41, 7]);
    assert_eq!(bench.all(|packet| packet.bth.solicited.then_some(packet.bth.opcode)), [SendOnly]);
    let messages: Vec<u32> = bench.all(|packet| packet.aeth.map(|aeth| aeth.msn));
    assert_eq!(messages, [1, 2, 3, 4, 5, 5, 6, 7, 8, 9], "both ends of a READ say the same");
    // Every byte that moved.
    let payload = |wanted: fn(Opcode) -> bool| -> Vec<u8> {
        let part = |packet: &Packet<'_>| wanted(packet.bth.opcode).then(|| packet.payload.to_vec());
        bench.all(part).concat()
    };
    assert_eq!(payload(|opcode| matches!(opcode, WriteFirst | WriteMiddle | WriteLast)), data[..2049]);
    assert_eq!(payload(|opcode| matches!(opcode, ReadFirst | ReadLast)), data[..2048]);
    assert_eq!(payload(|opcode| opcode == SendOnly), data[..5]);
}

#[test]
fn datagrams_have_no_answer() {
    let bench = Bench::new(&PLAIN);
    let [a, b] = [&bench.a, &bench.b].map(|end| {
        let cqs = (end.send_cq.clone(), end.recv_cq.clone());
        End::ud(&end.driver, end.pd, cqs, None, QpSize::wr(16), 0x1111)
    });
    let (local, remote) = (a.region(4096), b.region(4096));
    b.recv(&RecvWr::new(0, &[sge(&remote, 0, 4096)]));
    local.set(0, b"hello");
    let to = pvrdma_device::testing::wr::To { sl_tclass_flowlabel: 3 << 20 | 0x12345, ..a.av(&b, 0x1111) };
    a.send(&SendWr::datagram(1, &[sge(&local, 0, 5)], &to));
    a.send(&SendWr::datagram(2, &[], &to).imm(1));
    a.send(&SendWr::datagram(3, &[sge(&local, 0, 4096)], &to));
    a.send(&SendWr::datagram(4, &[], &to));
    bench.wait(4);
    let (mut seen, mut psns) = (Vec::new(), Vec::new());
    bench.frames(|frame| {
        let deth = frame.packet.deth.unwrap();
        assert_eq!((deth.qkey, deth.source_qpn, frame.packet.bth.dest_qpn), (0x1111, a.qp.qpn.0, b.qp.qpn.0));
        assert_eq!((frame.envelope.traffic_class, frame.envelope.flow_label), (3, 0x12345));
        seen.push((frame.packet.bth.opcode, frame.packet.payload.len()));
        psns.push(frame.packet.bth.psn);
    });
    use Opcode::{Datagram, DatagramImm};
    assert_eq!(seen, [(Datagram, 5), (DatagramImm, 0), (Datagram, 4096), (Datagram, 0)]);
    let first = psns[0];
    assert_eq!(psns, [first, first + 1, first + 2, first + 3], "each is one packet, however long");
}

/// On their way, connected QPs' packets are treated as their address vector asks for.
#[test]
fn packets_of_a_connection_say_what_its_address_vector_does() {
    for v1 in [false, true] {
        let bench = Bench::new(&How { v1, ..PLAIN });
        let (a, b) = (&bench.a, &bench.b);
        let path = Path { timeout: 8, ..Path::default() };
        a.modify_state(PVRDMA_QPS_RESET).unwrap();
        a.modify(path.init()).unwrap();
        let (mask, mut rtr) = path.rtr(b.endpoint());
        let grh = &mut rtr.ah_attr.grh;
        (grh.traffic_class, grh.flow_label, grh.hop_limit) = (96, 0x12345, 9);
        a.modify((mask, rtr)).unwrap();
        a.modify(path.rts()).unwrap();
        let (local, remote) = (a.region(4096), b.region(4096));
        a.send(&SendWr::write(0, &[sge(&local, 0, 2048)], &remote, 0));
        a.send(&SendWr::read(1, &[sge(&local, 0, 2048)], &remote, 0));
        bench.wait(2);
        let mut count = 0;
        bench.frames(|frame| {
            let envelope = &frame.envelope;
            assert_eq!((envelope.traffic_class, envelope.flow_label, envelope.hop_limit), (96, 0x12345, 9));
            count += 1;
        });
        assert_eq!(count, 6, "two packets and their ACK; a request and two packets");
    }
}

#[test]
fn refusals_are_what_was_answered() {
    let bench = Bench::new(&PLAIN);
    let (a, b) = (&bench.a, &bench.b);
    let (local, remote) = (a.region(4096), b.region(4096));
    a.send(&SendWr::send(0, &[sge(&local, 0, 8)]));
    // No receive is there for a while.
    let refused = || bench.all(|packet| packet.aeth).len() >= 2;
    assert!(pump_until(&[&a.driver, &b.driver], LIMIT, refused));
    b.recv(&RecvWr::new(0, &[sge(&remote, 0, 8)]));
    bench.wait(1);
    let mut bad = SendWr::write(1, &[sge(&local, 0, 8)], &remote, 0);
    bad.rkey ^= 1;
    a.send(&bad);
    assert!(pump_until(&[&a.driver, &b.driver], LIMIT, || a.send_cq.waiting() == 1));
    let syndromes = bench.all(|packet| packet.aeth.map(|aeth| aeth.syndrome));
    let (last, before) = syndromes.split_last().unwrap();
    assert_eq!(*last, Syndrome::Nak(nak::REMOTE_ACCESS));
    assert!(matches!(before, [Syndrome::Rnr(1), .., Syndrome::Ack(_)]), "{before:?}");
    let sends = bench.shape().iter().filter(|(opcode, _)| *opcode == Opcode::SendOnly).count();
    assert_eq!(sends, before.len(), "each was sent again");
}

#[test]
fn a_bad_network_is_seen_as_it_was() {
    let seen = |faults, sends: u32| {
        let bench = Bench::new(&How { faults, ..PLAIN });
        let (local, remote) = (bench.a.region(4096), bench.b.region(4096));
        for n in 0..sends {
            bench.b.recv(&RecvWr::new(n.into(), &[sge(&remote, 0, 8)]));
        }
        for n in 0..sends {
            bench.a.send(&SendWr::send(n.into(), &[sge(&local, 0, 8)]));
        }
        bench.wait(sends);
        let shape = bench.shape();
        let count = |opcode, psn| shape.iter().filter(|frame| **frame == (opcode, psn)).count();
        let sent: usize = (0..sends).map(|psn| count(Opcode::SendOnly, psn)).sum();
        let answers = bench.all(|packet| packet.aeth.map(|aeth| (aeth.syndrome, packet.bth.psn)));
        assert_eq!(shape.len(), sent + answers.len());
        (sent as u32, answers)
    };
    let (sent, answers) = seen("", 8);
    assert_eq!((sent, answers.len()), (8, 8));
    let (sent, answers) = seen("duplicate=1", 8);
    assert_eq!((sent, answers.len()), (16, 16), "each twice, and each answered");
    let (sent, answers) = seen("drop=0.4,seed=3", 8);
    assert!(sent > 8 && answers.len() < sent as usize, "{sent} {answers:?}");
    let missed = answers.iter().filter(|(syndrome, _)| *syndrome == Syndrome::Nak(nak::SEQUENCE_ERROR)).count();
    assert!(missed > 0, "{answers:?}");
    let (sent, answers) = seen("rnr=0.5,seed=3", 8);
    let refused = answers.iter().filter(|(syndrome, _)| *syndrome == Syndrome::Rnr(12)).count();
    assert!(refused > 0 && sent as usize == answers.len(), "{sent} {answers:?}");
    let (sent, answers) = seen("drop-ack=0.4,seed=3", 8);
    assert!(sent > 8 && answers.len() < sent as usize, "{sent} {answers:?}");
}

#[test]
fn frames_of_v1_have_a_global_route_header() {
    let bench = Bench::new(&How { v1: true, ..PLAIN });
    let local = bench.a.region(4096);
    bench.a.send(&SendWr::write(0, &[sge(&local, 0, 8)], &bench.b.region(4096), 0));
    bench.wait(1);
    let mut count = 0;
    bench.frames(|frame| {
        assert!(matches!(frame.envelope.network, Network::V1 { .. }));
        count += 1;
    });
    assert_eq!(count, 2);
}

#[test]
fn a_full_disk_ends_the_capture_and_nothing_else() {
    let bench = Bench::new(&How { room: 100, ..PLAIN });
    let (local, remote) = (bench.a.region(4096), bench.b.region(4096));
    for n in 0..4 {
        bench.a.send(&SendWr::write(n, &[sge(&local, 0, 8)], &remote, 0));
        bench.wait(1);
    }
    assert_eq!(bench.shape(), [(Opcode::WriteOnly, 0), (Opcode::Acknowledge, 0)]);
}

/// What a message of this length takes is not read again and again.
#[test]
fn a_message_in_many_pieces_of_memory_is_read_once() {
    let bench = Bench::new(&PLAIN);
    let (local, remote) = (bench.a.region(2 << 20), bench.b.region(2 << 20));
    let data: Vec<u8> = (0..2 << 20).map(|n: u32| (n / 4).wrapping_mul(0x9e37_79b9) as u8).collect();
    local.set(0, &data);
    bench.a.send(&SendWr::write(0, &[sge(&local, 0, 2 << 20)], &remote, 0));
    bench.wait(1);
    assert_eq!(bench.all(|packet| Some(packet.payload.to_vec())).concat(), data);
}
