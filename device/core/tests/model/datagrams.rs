//! Datagrams of the model: two UD QPs, each of which sends to both. What arrives was sent so and not twice, what is
//! sent has ended, and a send that fails stops the sends until RTS.

use pvrdma_device::handle::{CtxHandle, PdHandle};
use pvrdma_device::testing::driver::{Driver, Region};
use pvrdma_device::testing::end::End;
use pvrdma_device::testing::queue::{QpSize, RecvWr, SendWr, To, sge};
use pvrdma_device::testing::rng::Rng;
use pvrdma_ffi::dev_api::*;
use pvrdma_ffi::uapi::vmw_pvrdma::*;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

const QKEY: u32 = 0x77;
const GRH: u64 = 40;
/// Bytes of a buffer; a datagram is never longer.
const PLACE: u64 = 400;
const PLACES: u64 = 64;

struct Sender {
    end: End,
    local: Region,
    inbox: Region,
    /// Cookie, whether it speaks when it succeeds, how it ends.
    sends: VecDeque<(u64, bool, u32)>,
    receives: VecDeque<u64>,
    next_id: u64,
    /// A send failed; flushed until RTS.
    stopped: bool,
}

/// Both QPs, and what is on its way between them.
pub struct Datagrams {
    sides: [Sender; 2],
    /// What was sent and may arrive: sender, immediate data and payload by number.
    sent: HashMap<u64, (usize, Option<u32>, Vec<u8>)>,
    number: u64,
    arrived: u64,
}

impl Datagrams {
    /// One QP for each guest, of this context and PD.
    pub fn new(drivers: &[Arc<Driver>; 2], owners: [(CtxHandle, PdHandle); 2]) -> Datagrams {
        let sides = [0, 1].map(|n| {
            let (driver, (ctx, pd)) = (&drivers[n], owners[n]);
            let cqs = (driver.cq(ctx, 64), driver.cq(ctx, 64));
            let end = End::ud(driver, pd, cqs, None, QpSize::wr(32), QKEY);
            let (local, inbox) = (end.region(PLACE * PLACES), end.region(PLACE * PLACES));
            let (sends, receives) = (VecDeque::new(), VecDeque::new());
            Sender { end, local, inbox, sends, receives, next_id: 0, stopped: false }
        });
        Datagrams { sides, sent: HashMap::new(), number: 0, arrived: 0 }
    }

    /// Does something with one of them.
    pub fn step(&mut self, rng: &mut Rng) {
        let side = rng.below(2) as usize;
        match rng.below(20) {
            0..8 => self.receive(rng, side),
            8..17 => self.send(rng, side),
            17 => {
                let this = &mut self.sides[side];
                // Out of SQE, or from RTS to RTS.
                this.end.modify_state(PVRDMA_QPS_RTS).unwrap();
                this.stopped = false;
            }
            18 if rng.one_in(4) => self.begin_again(side),
            _ => {}
        }
        self.check();
    }

    fn receive(&mut self, rng: &mut Rng, side: usize) {
        let this = &mut self.sides[side];
        let at = this.next_id % PLACES * PLACE;
        let cut = rng.below(PLACE);
        let len = if rng.one_in(8) { rng.below(100) } else { PLACE - cut };
        let pieces = [sge(&this.inbox, at, cut as u32), sge(&this.inbox, at + cut, len as u32)];
        if this.end.qp.post_recv(&RecvWr::new(this.next_id, &pieces)) {
            this.receives.push_back(this.next_id);
            this.next_id += 1;
        }
        this.end.qp.ring_recv();
    }

    fn send(&mut self, rng: &mut Rng, side: usize) {
        let target = rng.below(2) as usize;
        let to = self.sides[side].end.av(&self.sides[target].end, QKEY);
        let this = &mut self.sides[side];
        let id = this.next_id;
        let at = id % PLACES * PLACE;
        let mut payload = self.number.to_le_bytes().to_vec();
        payload.extend(rng.bytes(rng.clone().below(PLACE - GRH - 8) as usize));
        let (mut sges, mut to) = (vec![sge(&this.local, at, payload.len() as u32)], to);
        let imm = rng.one_in(3).then(|| rng.word() as u32);
        let (mut arrives, mut status) = (true, PVRDMA_WC_SUCCESS);
        match rng.below(24) {
            0 => (sges, status) = (vec![(this.local.start, 8, this.local.key ^ 1)], PVRDMA_WC_LOC_PROT_ERR),
            1 => (sges, status) = (vec![sge(&this.local, 0, 4097)], PVRDMA_WC_LOC_LEN_ERR),
            2 => (to, status) = (To { port_num: 0, ..to }, PVRDMA_WC_LOC_QP_OP_ERR),
            3 => (to, arrives) = (To { qkey: QKEY + 1, ..to }, false),
            4 => (to, arrives) = (To { dgid: [3; 16], ..to }, false),
            _ => {}
        }
        if this.end.qp.sends_out() == this.end.qp.size.send_wr {
            return;
        }
        if status == PVRDMA_WC_SUCCESS {
            this.local.set(at, &payload);
        }
        let signaled = rng.one_in(2);
        let wr = SendWr::datagram(id, &sges, &to);
        let wr = imm.map_or(wr.clone(), |imm| wr.imm(imm));
        assert!(this.end.qp.post_send(&wr.flags(u32::from(signaled) << 1)));
        this.next_id += 1;
        let status = if this.stopped { PVRDMA_WC_WR_FLUSH_ERR } else { status };
        this.stopped |= status != PVRDMA_WC_SUCCESS;
        this.sends.push_back((id, signaled, status));
        if status == PVRDMA_WC_SUCCESS && arrives {
            self.sent.insert(self.number, (side, imm, payload));
            self.number += 1;
        }
        this.end.qp.ring_send();
    }

    /// ERR flushes what is left; then a new life.
    fn begin_again(&mut self, side: usize) {
        self.sides[side].end.modify_state(PVRDMA_QPS_ERR).unwrap();
        self.check();
        let this = &mut self.sides[side];
        assert!(this.receives.is_empty(), "receives without an end: {:?}", this.receives);
        this.end.reset();
        this.end.bring_up_ud(QKEY);
        this.stopped = false;
    }

    fn check(&mut self) {
        for side in 0..2 {
            let this = &mut self.sides[side];
            // Nobody keeps a datagram waiting: what was posted has ended when its doorbell returns.
            for wc in this.end.send_cq.drain() {
                let speaks = this.sends.iter().position(|(_, signaled, status)| *signaled || *status != 0);
                let (id, _, status) = this.sends.drain(..=speaks.expect("nobody posted it")).next_back().unwrap();
                assert_eq!((wc.wr_id, wc.status), (id, status), "{wc:?}");
            }
            assert!(this.sends.iter().all(|(_, signaled, status)| !signaled && *status == 0), "{:?}", this.sends);
            assert_eq!(this.end.qp.sends_out(), 0);
            let state = this.end.query().qp_state;
            assert_eq!(state == PVRDMA_QPS_SQE, this.stopped && state != PVRDMA_QPS_ERR, "state {state}");
            for wc in this.end.recv_cq.drain() {
                assert_eq!(this.receives.pop_front(), Some(wc.wr_id), "receives end in order");
                if wc.status == PVRDMA_WC_WR_FLUSH_ERR {
                    assert_eq!(state, PVRDMA_QPS_ERR);
                    continue;
                }
                assert_eq!(wc.status, 0, "{wc:?}");
                let at = wc.wr_id % PLACES * PLACE + GRH;
                let got = this.inbox.get(at, wc.byte_len as usize - GRH as usize);
                let number = u64::from_le_bytes(got[..8].try_into().unwrap());
                let (from, imm, payload) = self.sent.remove(&number).expect("sent, and not arrived yet");
                assert!(got == payload, "datagram {number} differs");
                assert_eq!((wc.wc_flags & PVRDMA_WC_WITH_IMM != 0).then_some(wc.imm_data), imm);
                assert_eq!(wc.opcode, PVRDMA_WC_RECV);
                self.arrived += 1;
                let _ = from;
            }
        }
    }

    /// Nothing is owed, and something has arrived.
    pub fn finish(&mut self) {
        self.begin_again(0);
        self.begin_again(1);
        println!("{} datagrams arrived, {} did not", self.arrived, self.sent.len());
        assert!(self.arrived > 0);
    }
}
