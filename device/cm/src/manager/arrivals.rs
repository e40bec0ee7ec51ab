//! What a message that arrives makes of a connection, or of none.

use super::*;

impl Manager {
    /// A datagram that came from the management QP of `from` to the one of `at`.
    pub fn receive(&mut self, now: Instant, from: Gid, at: Gid, bytes: &[u8], services: &mut dyn Services) {
        let Some(message) = Message::parse(bytes) else { return };
        let tid = tid_of(bytes);
        match message {
            Message::Req(req) => self.on_req(now, from, at, tid, req, services),
            Message::Mra(mra) => self.on_mra(now, from, &mra),
            Message::Rej(rej) => self.on_rej(now, from, &rej),
            Message::Rep(rep) => self.on_rep(from, rep),
            Message::Rtu(rtu) => self.on_rtu(from, &rtu),
            Message::Dreq(dreq) => self.on_dreq(now, from, at, tid, &dreq),
            Message::Drep(drep) => self.on_drep(now, from, &drep),
            Message::SidrReq(req) => self.on_sidr_req(from, at, tid, req, services),
            Message::SidrRep(rep) => self.on_sidr_rep(from, rep),
        }
    }

    fn on_req(&mut self, now: Instant, from: Gid, at: Gid, tid: u64, req: Box<Req>, services: &mut dyn Services) {
        if req.local_comm_id == 0 {
            return;
        }
        if let Some(&comm) = self.by_remote.get(&(from, req.local_comm_id)) {
            return self.on_req_again(from, at, comm, &req);
        }
        let refuse = |manager: &mut Manager, reason| {
            let rej = Rej { remote_comm_id: req.local_comm_id, reason, ..Default::default() };
            let mad = Message::Rej(Box::new(rej)).to_mad(tid);
            manager.out.push_back(Outgoing { from: at, to: from, mad, question: None });
        };
        // The device has RC alone.
        let is_rc = req.transport_service_type == 0 && req.extended_transport_type == 0;
        let listener = match services.find(req.service_id, &req.private_data, false) {
            Verdict::Listener(listener) if is_rc => listener,
            Verdict::Listener(_) => return refuse(self, reason::INVALID_TRANSPORT),
            Verdict::Nobody => return refuse(self, reason::INVALID_SERVICE_ID),
            Verdict::NotNow => return,
        };
        // A QP that asks for a connection has no other: what we still have for it ended without a word.
        if let Some(&comm) = self.by_qp.get(&(from, req.local_qpn))
            && self.state(comm) == State::Established
        {
            self.peer_gone(now, comm);
        }
        let Some(comm) = self.fresh() else { return };
        let path = Path {
            local_gid: at,
            remote_gid: from,
            mtu: req.path_mtu,
            rate: req.packet_rate,
            sl: req.sl,
            traffic_class: req.traffic_class,
            flow_label: req.flow_label,
            hop_limit: req.hop_limit,
            ack_timeout: req.local_ack_timeout,
        };
        let mut connection = Connection::new(State::ReqRcvd, path, tid);
        connection.remote_id = req.local_comm_id;
        connection.service_id = req.service_id;
        connection.remote = Parameters {
            qpn: req.local_qpn,
            psn: req.starting_psn,
            qkey: req.local_qkey,
            responder_resources: req.responder_resources,
            initiator_depth: req.initiator_depth,
            flow_control: req.flow_control,
            retry_count: req.retry_count,
            rnr_retry_count: req.rnr_retry_count,
            srq: req.srq,
        };
        // A program moves its QP to RTR before it accepts, so what that expects first is settled here. Any number will
        // do; this one has both ends begin with the same.
        connection.local.psn = req.starting_psn;
        connection.responder_resources = req.initiator_depth;
        connection.initiator_depth = req.responder_resources;
        self.connections.insert(comm, Box::new(connection));
        self.name(comm);
        self.events.push_back(Event::ReqReceived { listener, comm, req });
    }

    fn on_req_again(&mut self, from: Gid, at: Gid, comm: CommId, req: &Req) {
        let Some(connection) = self.connections.get_mut(&comm) else { return };
        match connection.state {
            State::ReqRcvd | State::MraReqSent => {
                connection.state = State::MraReqSent;
                self.ask_for_time(comm, 0, SERVICE_TIMEOUT);
            }
            State::TimeWait => {
                let rej = Rej {
                    local_comm_id: 0,
                    remote_comm_id: req.local_comm_id,
                    reason: reason::STALE_CONNECTION,
                    ..Default::default()
                };
                let mad = Message::Rej(Box::new(rej)).to_mad(connection.tid);
                self.out.push_back(Outgoing { from: at, to: from, mad, question: None });
            }
            // The answer is on its way, and comes again by itself.
            _ => {}
        }
    }

    /// The other end's message (0: its REQ, 1: its REP) has come, and the answer will take its time.
    fn ask_for_time(&mut self, comm: CommId, message_mraed: u8, service_timeout: u8) {
        let Some(connection) = self.connections.get(&comm) else { return };
        let (local_comm_id, remote_comm_id) = (comm.0, connection.remote_id);
        let mra = Mra { local_comm_id, remote_comm_id, message_mraed, service_timeout };
        let mad = Message::Mra(mra).to_mad(connection.tid);
        self.send(comm, mad);
    }

    fn on_mra(&mut self, now: Instant, from: Gid, mra: &Mra) {
        // 0 is nobody's name.
        if mra.local_comm_id == 0 {
            return;
        }
        let Some((comm, connection)) = self.named(from, mra.remote_comm_id, mra.local_comm_id) else { return };
        let wait = code_time(mra.service_timeout) + LONGEST_WAIT;
        match (connection.state, mra.message_mraed) {
            (State::ReqSent | State::MraReqRcvd, 0) => connection.state = State::MraReqRcvd,
            (State::RepSent | State::MraRepRcvd, 1) => connection.state = State::MraRepRcvd,
            _ => return,
        }
        if connection.remote_id == 0 {
            connection.remote_id = mra.local_comm_id;
            self.name(comm);
        }
        self.wait_until(comm, now + wait);
    }

    fn on_rej(&mut self, now: Instant, from: Gid, rej: &Rej) {
        // Who refuses a question has no name for it; who asks and goes away names nothing of ours.
        let comm = match self.named(from, rej.remote_comm_id, rej.local_comm_id) {
            Some((comm, _)) => comm,
            None if rej.remote_comm_id == 0 => match self.by_remote.get(&(from, rej.local_comm_id)) {
                Some(comm) => *comm,
                None => return,
            },
            None => return,
        };
        if rej.local_comm_id == 0 && rej.reason == reason::INVALID_SERVICE_ID {
            // Who says so knows nothing of the request. To anything but a question it is news from before.
            if self.state(comm) == State::ReqSent {
                self.refused.push_back(comm);
            }
            return;
        }
        self.rejected(now, comm, rej.reason, Box::new(rej.private_data));
    }

    fn on_rep(&mut self, from: Gid, rep: Box<Rep>) {
        if rep.local_comm_id == 0 {
            return;
        }
        let Some((comm, connection)) = self.named(from, rep.remote_comm_id, rep.local_comm_id) else { return };
        match connection.state {
            State::ReqSent | State::MraReqRcvd => {}
            // It has not heard that we are ready.
            State::Established => {
                if let Some(mad) = connection.answer {
                    self.send(comm, mad);
                }
                return;
            }
            State::RepRcvd | State::MraRepSent => {
                connection.state = State::MraRepSent;
                // Not long: if our RTU is lost, it is this message, sent again, that we hear of it by.
                return self.ask_for_time(comm, 1, RESPONSE_TIMEOUT);
            }
            _ => return,
        }
        connection.state = State::RepRcvd;
        connection.settle();
        connection.remote_id = rep.local_comm_id;
        connection.remote = Parameters {
            qpn: rep.local_qpn,
            psn: rep.starting_psn,
            qkey: rep.local_qkey,
            responder_resources: rep.responder_resources,
            initiator_depth: rep.initiator_depth,
            flow_control: rep.flow_control,
            retry_count: connection.local.retry_count.min(7),
            rnr_retry_count: rep.rnr_retry_count,
            srq: rep.srq,
        };
        connection.initiator_depth = rep.responder_resources;
        connection.responder_resources = rep.initiator_depth;
        self.name(comm);
        self.tell(comm, Event::RepReceived { comm, rep });
    }

    fn on_rtu(&mut self, from: Gid, rtu: &Rtu) {
        let Some((comm, connection)) = self.named(from, rtu.remote_comm_id, rtu.local_comm_id) else { return };
        if matches!(connection.state, State::RepSent | State::MraRepRcvd) {
            connection.state = State::Established;
            connection.settle();
            self.tell(comm, Event::RtuReceived { comm });
        }
    }

    fn on_dreq(&mut self, now: Instant, from: Gid, at: Gid, tid: u64, dreq: &Dreq) {
        let found = self.named(from, dreq.remote_comm_id, dreq.local_comm_id);
        let Some((comm, connection)) = found.filter(|(_, one)| one.local.qpn == dreq.remote_qpn) else {
            // Ended and forgotten here, perhaps: the other one need not wait. Another manager of this address that
            // knows it says nothing else. A connection of somebody else's is not ours to end.
            if self.is_ours(dreq.remote_comm_id) {
                let drep = Drep { local_comm_id: dreq.remote_comm_id, remote_comm_id: dreq.local_comm_id };
                let mad = Message::Drep(drep).to_mad(tid);
                self.out.push_back(Outgoing { from: at, to: from, mad, question: None });
            }
            return;
        };
        match connection.state {
            State::RepSent | State::MraRepRcvd | State::DreqSent | State::Established => {
                connection.state = State::DreqRcvd;
                connection.settle();
                connection.tid = tid;
                if connection.owned {
                    self.tell(comm, Event::DreqReceived { comm });
                } else {
                    // Both ended it at once, and ours has gone: nobody else will agree.
                    self.send_drep(comm);
                    self.enter_timewait(now, comm);
                }
            }
            State::TimeWait => {
                connection.tid = tid;
                self.send_drep(comm);
            }
            // The program has not said yet that it agrees.
            _ => {}
        }
    }

    fn on_drep(&mut self, now: Instant, from: Gid, drep: &Drep) {
        let Some((comm, connection)) = self.named(from, drep.remote_comm_id, drep.local_comm_id) else { return };
        if matches!(connection.state, State::DreqSent | State::DreqRcvd) {
            self.enter_timewait(now, comm);
            self.tell(comm, Event::DrepReceived { comm });
        }
    }

    fn on_sidr_req(&mut self, from: Gid, at: Gid, tid: u64, req: Box<SidrReq>, services: &mut dyn Services) {
        if let Some(&comm) = self.by_remote.get(&(from, req.request_id)) {
            if let Some(mad) = self.connections.get(&comm).and_then(|connection| connection.answer) {
                self.send(comm, mad);
            }
            return;
        }
        let listener = match services.find(req.service_id, &req.private_data, true) {
            Verdict::Listener(listener) => listener,
            Verdict::NotNow => return,
            Verdict::Nobody => {
                let status = sidr_status::UNSUPPORTED;
                let rep =
                    SidrRep { request_id: req.request_id, status, service_id: req.service_id, ..Default::default() };
                let mad = Message::SidrRep(Box::new(rep)).to_mad(tid);
                self.out.push_back(Outgoing { from: at, to: from, mad, question: None });
                return;
            }
        };
        let Some(comm) = self.fresh() else { return };
        let path = Path { local_gid: at, remote_gid: from, ..Default::default() };
        let mut connection = Connection::new(State::SidrReqRcvd, path, tid);
        connection.remote_id = req.request_id;
        connection.service_id = req.service_id;
        self.connections.insert(comm, Box::new(connection));
        self.name(comm);
        self.events.push_back(Event::SidrReqReceived { listener, comm, req, from });
    }

    fn on_sidr_rep(&mut self, from: Gid, rep: Box<SidrRep>) {
        let comm = CommId(rep.request_id);
        let asked = self.connections.get(&comm);
        if asked.is_some_and(|one| one.state == State::SidrReqSent && one.path.remote_gid == from) {
            if rep.status == sidr_status::UNSUPPORTED {
                return self.refused.push_back(comm);
            }
            self.reset(comm);
            self.tell(comm, Event::SidrRepReceived { comm, rep });
        }
    }
}
