//! A host on a wire of RoCE: a device, the halves of its QPs, and a UDP socket.

use pvrdma_device::handle::{Psn, QpHandle, Qpn};
use pvrdma_device::memory::{Memory, Span};
use pvrdma_device::testing::cut::ByValue;
use pvrdma_device::testing::driver::{Driver, Layout};
use pvrdma_device::testing::end::pump;
use pvrdma_device::testing::rng::Rng;
use pvrdma_device::transport::segment::Carried;
use pvrdma_device::transport::{
    Endpoint, QpView, Request, Requester as _, Responder as _, Submitted, Token, Transport,
};
use pvrdma_ffi::dev_api::*;
use pvrdma_link::udp::{self, Udp};
use pvrdma_roce::rc::Connection;
use pvrdma_roce::rc::requester::Requester;
use pvrdma_roce::rc::responder::Responder;
use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

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
    pub udp: Udp,
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
    /// The device at an address of this host.
    pub fn new(index: u8, address: IpAddr) -> std::io::Result<Host> {
        let udp = Udp::bind(address)?;
        let port = Arc::new(Port::default());
        let mut driver = Driver::on(index, Layout::Ranges, 32 << 20, port.clone());
        driver.gid = udp::gid(address);
        driver.bind();
        Ok(Host {
            driver: Arc::new(driver),
            udp,
            mtu: 1024,
            rq_psn: 0,
            lose: 0,
            port,
            views: BTreeMap::new(),
            requesters: BTreeMap::new(),
            responders: BTreeMap::new(),
            rng: Rng::new(index.into()),
            begin: Instant::now(),
        })
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
        let Host { udp, driver, views, requesters, responders, rng, lose, .. } = self;
        let lost = |rng: &mut Rng| *lose > 0 && rng.one_in(*lose);
        let mut peers: Vec<(Qpn, IpAddr)> = Vec::new();
        peers.extend(views.values().map(|view| (view.peer.qpn, udp::address(view.peer.gid))));
        while udp
            .receive(|from, packet| {
                let qpn = Qpn(packet.bth.dest_qpn);
                let Some(view) = views.values().find(|view| view.qpn == qpn) else { return };
                if udp::address(view.peer.gid) != from || lost(rng) {
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
                udp.send(peer.expect("a peer").1, packet);
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
        udp.flush();
        for (token, answer) in answers {
            any = true;
            self.driver.device.answered(token, answer);
        }
        any
    }
}

/// Has these hosts work until `done` or for `limit`. True: it is done.
pub fn run(hosts: &mut [&mut Host], limit: Duration, mut done: impl FnMut() -> bool) -> bool {
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
