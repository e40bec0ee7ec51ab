//! A host on a wire of RoCE: a device, the halves of its QPs, and a socket.

use pvrdma_device::handle::{Psn, QpHandle, Qpn, address_of, gid_of};
use pvrdma_device::memory::{Memory, Span};
use pvrdma_device::testing::cut::ByValue;
use pvrdma_device::testing::driver::{ALL_ACCESS, Driver, Layout};
use pvrdma_device::testing::end::{End, Path, connect, pump};
use pvrdma_device::testing::queue::{QpSize, RecvWr, SendWr, sge};
use pvrdma_device::testing::rng::Rng;
use pvrdma_device::transport::segment::Carried;
use pvrdma_device::transport::{
    Endpoint, QpView, Request, Requester as _, Responder as _, Submitted, Token, Transport,
};
use pvrdma_ffi::dev_api::*;
use pvrdma_ffi::uapi::vmw_pvrdma::PVRDMA_WC_SUCCESS;
use pvrdma_link::socket::Socket;

use pvrdma_roce::rc::Connection;
use pvrdma_roce::rc::requester::Requester;
use pvrdma_roce::rc::responder::Responder;
use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Nothing takes so long.
pub const LIMIT: Duration = Duration::from_secs(60);
const LEN: u64 = 1 << 20;

const PATH: Path = Path {
    access: ALL_ACCESS,
    mtu: PVRDMA_MTU_1024,
    psn: 0x00ff_ff00,
    timeout: 14,
    retry_cnt: 7,
    rnr_retry: 7,
    min_rnr_timer: 1,
    max_rd_atomic: 4,
};

/// What a device says to its transport.
enum Said {
    Submit(Request),
    Cancel(Token),
    Changed(QpView),
}

/// The transport of a device: it writes down what is said.
#[derive(Default)]
struct Port(Mutex<VecDeque<Said>>);

impl Port {
    fn say(&self, said: Said) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push_back(said);
    }

    fn next(&self) -> Option<Said> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }
}

impl Transport for Port {
    fn submit(&self, request: &Request, _memory: &dyn Memory, _local: &[Span]) -> Submitted {
        self.say(Said::Submit(*request));
        Submitted::Pending
    }

    fn cancel(&self, token: Token) {
        self.say(Said::Cancel(token));
    }

    fn lost(&self, _token: Token) -> bool {
        false
    }

    fn qp_changed(&self, view: &QpView) {
        self.say(Said::Changed(*view));
    }
}

/// See the module text.
pub struct Host {
    pub driver: Arc<Driver>,
    pub socket: Socket,
    /// Payload of a full packet.
    pub mtu: u32,
    /// The first PSN that its QPs expect.
    pub rq_psn: u32,
    /// One packet in so many is lost, in each direction; 0: none.
    pub lose: u64,
    port: Arc<Port>,
    views: BTreeMap<QpHandle, QpView>,
    requesters: BTreeMap<QpHandle, Requester>,
    responders: BTreeMap<Qpn, Responder>,
    rng: Rng,
    begin: Instant,
}

impl Host {
    /// The device at the address of a socket.
    pub fn new(index: u8, socket: Socket) -> Host {
        let port = Arc::new(Port::default());
        let mut driver = Driver::on(index, Layout::Ranges, 32 << 20, port.clone());
        driver.gid = gid_of(socket.local());
        driver.bind();
        Host {
            driver: Arc::new(driver),
            socket,
            mtu: 1024,
            rq_psn: 0,
            lose: 0,
            port,
            views: BTreeMap::new(),
            requesters: BTreeMap::new(),
            responders: BTreeMap::new(),
            rng: Rng::new(index.into()),
            begin: Instant::now(),
        }
    }

    fn listen(&mut self) -> bool {
        let mut any = false;
        while let Some(said) = self.port.next() {
            any = true;
            match said {
                Said::Submit(request) => {
                    let connection = Connection { local: request.source, peer: request.dest, mtu: self.mtu };
                    let half = self.requesters.entry(request.token.qp).or_insert_with(|| Requester::new(connection));
                    half.submit(&request);
                }
                Said::Cancel(token) => {
                    if let Some(half) = self.requesters.get_mut(&token.qp) {
                        half.cancel(token);
                    }
                }
                Said::Changed(view) => {
                    self.views.insert(view.handle, view);
                    if matches!(view.state, PVRDMA_QPS_RTR | PVRDMA_QPS_RTS) {
                        let local = Endpoint { gid: self.driver.gid, qpn: view.qpn };
                        let connection = Connection { local, peer: view.peer, mtu: self.mtu };
                        let expected = Psn::new(self.rq_psn);
                        self.responders.entry(view.qpn).or_insert_with(|| Responder::new(connection, expected));
                    }
                }
            }
        }
        any
    }

    /// Does all there is to do. True: there was something.
    pub fn turn(&mut self) -> bool {
        let now = self.begin.elapsed();
        pump(&[&self.driver]);
        let mut any = self.listen();
        let Host { socket, driver, views, requesters, responders, rng, lose, .. } = self;
        let lost = |rng: &mut Rng| *lose > 0 && rng.one_in(*lose);
        let mut peers: Vec<(Qpn, IpAddr)> = Vec::new();
        peers.extend(views.values().map(|view| (view.peer.qpn, address_of(&view.peer.gid))));
        while socket
            .receive(|from, packet| {
                let qpn = Qpn(packet.bth.dest_qpn);
                let Some(view) = views.values().find(|view| view.qpn == qpn) else { return };
                if address_of(&view.peer.gid) != from || lost(rng) {
                    return;
                }
                if !packet.bth.opcode.is_response() {
                    responders.get_mut(&qpn).into_iter().for_each(|half| half.receive(packet));
                } else if let Some(half) = requesters.get_mut(&view.handle) {
                    half.receive(now, packet, &mut &*driver.device);
                }
            })
            .expect("the socket works")
        {
            any = true;
        }
        for half in responders.values_mut() {
            while let Some(piece) = half.piece() {
                let far = ByValue { bytes: piece.bytes, back: Default::default() };
                let answer = match piece.carried {
                    Carried::Whole(request) => driver.device.receive(&request, &far),
                    Carried::Segment(segment) => driver.device.receive_segment(&segment, &far),
                };
                half.answered(piece.ticket, answer, far.back.into_inner());
            }
        }
        let mut send = |packet: &pvrdma_roce::packet::Packet<'_>| {
            any = true;
            let peer = peers.iter().find(|(qpn, _)| qpn.0 == packet.bth.dest_qpn);
            if !lost(rng) {
                socket.send(peer.expect("a peer").1, packet);
            }
        };
        for half in responders.values_mut() {
            half.transmit(64 << 10, &mut send);
        }
        let mut answers = Vec::new();
        for half in requesters.values_mut() {
            half.expire(now);
            half.transmit(now, &mut &*driver.device, &mut send);
            answers.extend(std::iter::from_fn(|| half.answer()));
        }
        socket.flush();
        for (token, answer) in answers {
            any = true;
            self.driver.device.answered(token, answer);
        }
        any
    }
}

/// SEND, WRITE, READ and an atomic operation, of 1 MiB where that may be. One packet in `lose` is lost.
pub fn everything([a, b]: [Socket; 2], lose: u64) {
    let (mut a, mut b) = (Host::new(0, a), Host::new(1, b));
    for host in [&mut a, &mut b] {
        (host.lose, host.rq_psn) = (lose, PATH.psn);
    }
    let ends = [&a, &b].map(|host| End::new(&host.driver, QpSize::default()));
    let [one, two] = &ends;
    connect(one, two, &PATH);
    let (local, remote, inbox) = (one.region(LEN), two.region(LEN), two.region(LEN));
    let bytes = Rng::new(1).bytes(LEN as usize);
    local.set(0, &bytes);
    let all = || sge(&local, 0, LEN as u32);
    two.recv(&RecvWr::new(9, &[sge(&inbox, 0, LEN as u32)]));
    one.send(&SendWr::write(1, &[all()], &remote, 0));
    one.send(&SendWr::send(2, &[all()]));
    let mut ends = Vec::new();
    assert!(run(&mut [&mut a, &mut b], LIMIT, || {
        ends.extend(one.send_cq.ends());
        ends.len() == 2
    }));
    assert!(remote.get(0, LEN as usize) == bytes && inbox.get(0, LEN as usize) == bytes);
    local.set(0, &vec![0; LEN as usize]);
    one.send(&SendWr::read(3, &[all()], &remote, 0));
    assert!(run(&mut [&mut a, &mut b], LIMIT, || {
        ends.extend(one.send_cq.ends());
        ends.len() == 3
    }));
    assert!(local.get(0, LEN as usize) == bytes);
    one.send(&SendWr::fetch_add(4, sge(&local, 0, 8), &remote, 0, 1));
    assert!(run(&mut [&mut a, &mut b], LIMIT, || {
        ends.extend(one.send_cq.ends());
        ends.len() == 4
    }));
    assert_eq!(ends, [1, 2, 3, 4].map(|id| (id, PVRDMA_WC_SUCCESS)));
    assert_eq!(two.recv_cq.ends(), [(9, PVRDMA_WC_SUCCESS)]);
    println!("{:?} {:?}", a.socket.stats(), b.socket.stats());
    assert_eq!((a.socket.stats().damaged, b.socket.stats().damaged), (0, 0));
}

/// Has these hosts work until `done` or for `limit`. True: it is done.
fn run(hosts: &mut [&mut Host], limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    while !done() {
        let any = hosts.iter_mut().fold(false, |any, host| host.turn() | any);
        if Instant::now() > end {
            return false;
        }
        if !any {
            std::thread::sleep(Duration::from_micros(100));
        }
    }
    true
}
