//! Sends: what they are, what is wrong with them, and lists of them. One call after the other is in
//! [`super::wr`].

use super::qp::{OPS_OF, QpModel};
use super::srq::{chain, same, taken};
use super::{Answer, Lane, said};
use crate::ops::OPS;
use crate::testing::mock::SendWqe;
use core::ffi::c_int;
use core::ptr;
use pvrdma_ffi::uapi::vmw_pvrdma::*;
use pvrdma_ffi::verbs::*;
use zerocopy::IntoBytes;

/// What the device is told of the flags.
const FLAGS: u32 = IBV_SEND_FENCE | IBV_SEND_SIGNALED | IBV_SEND_SOLICITED | IBV_SEND_IP_CSUM;
/// Most requests of a list.
const LIST: u64 = 6;

/// A send that was posted, as the device must see it.
#[derive(Clone, Debug)]
pub struct Posted {
    pub wr_id: u64,
    /// How many sends of the QP came before it.
    pub position: u64,
    pub opcode: u32,
    pub flags: u32,
    ex: u32,
    /// The union of the header.
    pub form: [u64; 6],
    pub payload: Payload,
}

#[derive(Clone, Debug)]
pub enum Payload {
    Sges(Vec<ibv_sge>),
    Inline(Vec<u8>),
}

/// A send that the application thinks of, in either interface.
#[derive(Clone, Debug)]
pub struct Wish {
    pub wr_id: u64,
    pub opcode: u32,
    pub flags: u32,
    pub imm: u32,
    /// Remote address or what else the opcode wants.
    pub words: [u64; 3],
    pub key: u32,
    /// Where a datagram goes, if anywhere.
    pub ah: Option<usize>,
    pub num_sge: c_int,
    pub sges: Vec<ibv_sge>,
    /// The payload of an inline send.
    pub pieces: Vec<Vec<u8>>,
}

impl Wish {
    pub fn wants_inline(&self) -> bool {
        self.flags & IBV_SEND_INLINE != 0
    }

    pub fn inline_len(&self) -> usize {
        self.pieces.iter().map(Vec::len).sum()
    }
}

pub fn takes_inline(opcode: u32) -> bool {
    matches!(opcode, IBV_WR_SEND | IBV_WR_SEND_WITH_IMM | IBV_WR_RDMA_WRITE | IBV_WR_RDMA_WRITE_WITH_IMM)
}

pub fn has_immediate(opcode: u32) -> bool {
    matches!(opcode, IBV_WR_SEND_WITH_IMM | IBV_WR_RDMA_WRITE_WITH_IMM)
}

impl Posted {
    pub fn signaled(&self) -> bool {
        self.flags & IBV_SEND_SIGNALED != 0
    }

    /// Is it what the device sees? Returns inline data and where it lies.
    pub fn check(&self, wqe: &SendWqe, inline: bool) -> Option<(u64, Vec<u8>)> {
        let hdr = &wqe.hdr;
        // With inline data the device has another number for it.
        assert!(inline || hdr.wr_id == self.wr_id);
        assert_eq!((hdr.opcode, hdr.send_flags, hdr.ex), (self.opcode, self.flags, self.ex), "{self:?}");
        assert_eq!((hdr.total_len, hdr.reserved), (0, 0));
        assert_eq!(hdr.wr, self.form.as_bytes(), "{self:?}");
        match &self.payload {
            Payload::Sges(sges) => assert!(same(&wqe.sges, sges), "{wqe:?} for {self:?}"),
            Payload::Inline(bytes) if bytes.is_empty() => assert!(wqe.sges.is_empty()),
            Payload::Inline(bytes) => {
                assert_eq!((wqe.sges.len(), wqe.sges[0].length as usize), (1, bytes.len()));
                return Some((wqe.sges[0].addr, bytes.clone()));
            }
        }
        None
    }
}

impl QpModel {
    /// What an accepted wish becomes.
    pub fn posted(&self, wish: &Wish, ex: u32, form: [u64; 6]) -> Posted {
        let always = if self.all { IBV_SEND_SIGNALED } else { 0 };
        Posted {
            wr_id: wish.wr_id,
            position: self.posted,
            opcode: wish.opcode,
            flags: wish.flags & FLAGS | always,
            ex,
            form,
            payload: match wish.wants_inline() {
                true => Payload::Inline(wish.pieces.concat()),
                false => Payload::Sges(wish.sges.clone()),
            },
        }
    }

    /// Are the inline places taken by `more` requests on top of those that are on their way? `None`: that
    /// depends on what others have polled.
    pub fn places_full(&self, more: u64, shared_cq: bool) -> Option<bool> {
        let slots = u64::from(self.cap.max_send_wr);
        match self.cap.max_inline_data {
            0 => Some(false),
            _ if self.posted + more - self.done < slots => Some(false),
            _ if !shared_cq || self.posted + more - self.put >= slots => Some(true),
            _ => None,
        }
    }
}

impl Lane<'_> {
    /// Post something to a QP.
    pub fn send_step(&mut self) {
        let Some(mut qpn) = self.any_key(|lane| &lane.qps) else { return };
        if !self.qps[&qpn].open.0 && !self.rng.one_in(4) {
            // Rather one that takes something.
            qpn = self.qps.values().find(|qp| qp.open.0).map_or(qpn, |qp| qp.qpn);
        }
        let count = if self.rng.one_in(2) { 1 } else { self.rng.below(LIST) };
        let wishes: Vec<_> = (0..count).map(|_| self.wish(qpn)).collect();
        let before = self.qps[&qpn].posted;
        match self.qps[&qpn].ops {
            Some(ops) if self.rng.one_in(2) => self.build(qpn, ops, wishes),
            _ => self.post_send(qpn, wishes),
        }
        let qp = &self.qps[&qpn];
        let (posted, bell) = (qp.posted - before, PVRDMA_UAR_QP_SEND | qp.handle);
        self.rung(PVRDMA_UAR_QP_OFFSET, if posted > 0 { bell } else { 0 });
        let kind = match (qp.ud, qp.cap.max_inline_data > 0) {
            (false, false) => "sends posted, RC",
            (false, true) => "sends posted, RC with inline data",
            (true, false) => "sends posted, UD",
            (true, true) => "sends posted, UD with inline data",
        };
        self.tally.add(kind, 0, posted);
        self.ledger.posted += posted;
        self.inline_is_intact(qpn);
    }

    /// Any request, most often a legal one.
    fn wish(&mut self, qpn: u32) -> Wish {
        let qp = &self.qps[&qpn];
        let (ud, most, max_sge) = (qp.ud, qp.cap.max_inline_data as usize, qp.cap.max_send_sge);
        let legal: Vec<u32> = OPS_OF.iter().filter(|(.., on_ud)| *on_ud || !ud).map(|(opcode, ..)| *opcode).collect();
        let mut opcode = *self.rng.pick(&legal);
        if self.rng.one_in(60) {
            opcode = *self.rng.pick(&[IBV_WR_RDMA_READ, IBV_WR_LOCAL_INV, IBV_WR_SEND_WITH_INV, IBV_WR_TSO, 99, !0]);
        }
        let mut flags = self.rng.word() as u32 & (FLAGS & !IBV_SEND_SIGNALED);
        if !self.rng.one_in(3) {
            flags |= IBV_SEND_SIGNALED;
        }
        if self.rng.one_in(30) {
            // Bits that mean nothing.
            flags |= 0xffff_ff00;
        }
        let inline = if most > 0 && takes_inline(opcode) { self.rng.one_in(2) } else { self.rng.one_in(100) };
        let (mut num_sge, mut sges) = self.some_sges(max_sge);
        let mut pieces = Vec::new();
        if inline {
            flags |= IBV_SEND_INLINE;
            num_sge = num_sge.clamp(0, max_sge as c_int);
            let mut left = if self.rng.one_in(40) { most + 1 } else { self.rng.below(most as u64 + 1) as usize };
            for n in 0..num_sge {
                let last = n + 1 == num_sge;
                let len = if last { left } else { self.rng.below(left as u64 + 1) as usize };
                left -= len;
                pieces.push(self.rng.bytes(len));
            }
            sges = pieces
                .iter()
                .map(|piece| ibv_sge { addr: piece.as_ptr() as u64, length: piece.len() as u32, lkey: 0xdead })
                .collect();
        }
        let ah = (!self.ahs.is_empty() && !self.rng.one_in(60)).then(|| self.rng.below(self.ahs.len() as u64) as usize);
        Wish {
            wr_id: self.wr_id(true),
            opcode,
            flags,
            imm: self.rng.word() as u32,
            words: [0; 3].map(|_| self.rng.word()),
            key: self.rng.word() as u32,
            ah,
            num_sge,
            sges,
            pieces,
        }
    }

    /// The union of the header.
    pub fn form(&self, ud: bool, wish: &Wish) -> [u64; 6] {
        let mut form = [0; 6];
        let [a, b, c] = wish.words;
        match wish.opcode {
            IBV_WR_SEND | IBV_WR_SEND_WITH_IMM if ud => {
                let (qpn, qkey) = (a as u32, b as u32);
                let av = wish.ah.map_or(pvrdma_av::default(), |ah| self.ahs[ah].av);
                let wr = pvrdma_wr_ud { remote_qpn: qpn, remote_qkey: qkey, av };
                form.as_mut_bytes()[..size_of_val(&wr)].copy_from_slice(wr.as_bytes());
            }
            IBV_WR_RDMA_WRITE | IBV_WR_RDMA_WRITE_WITH_IMM | IBV_WR_RDMA_READ => {
                form[..2].copy_from_slice(&[a, wish.key.into()]);
            }
            IBV_WR_ATOMIC_CMP_AND_SWP | IBV_WR_ATOMIC_FETCH_AND_ADD => {
                form[..4].copy_from_slice(&[a, b, c, wish.key.into()]);
            }
            _ => {}
        }
        form
    }

    /// What is wrong with a request whatever else is on its way.
    fn judge_form(&self, qp: &QpModel, wish: &Wish) -> Answer<()> {
        let op = OPS_OF.iter().find(|(opcode, ..)| *opcode == wish.opcode);
        let fits = u32::try_from(wish.num_sge).is_ok_and(|count| count <= qp.cap.max_send_sge);
        let known = op.is_some_and(|(.., on_ud)| *on_ud || !qp.ud);
        if !fits || !known || (qp.ud && wish.ah.is_none()) {
            return Err(libc::EINVAL);
        }
        Ok(())
    }

    /// What is wrong with its inline data.
    fn judge_inline(&self, qp: &QpModel, wish: &Wish) -> Answer<()> {
        let most = qp.cap.max_inline_data as usize;
        if wish.wants_inline() && (most == 0 || !takes_inline(wish.opcode) || wish.inline_len() > most) {
            return Err(libc::EINVAL);
        }
        Ok(())
    }

    fn post_send(&mut self, qpn: u32, mut wishes: Vec<Wish>) {
        let mut wrs: Vec<_> = wishes.iter_mut().map(|wish| self.request(self.qps[&qpn].ud, wish)).collect();
        let first = chain(&mut wrs, |wr, next| wr.next = next);
        let mut bad = ptr::null_mut();
        // SAFETY: a live QP, NULL or a valid list.
        let got = said(unsafe { OPS.post_send.unwrap()(self.qps[&qpn].qp, first, &mut bad) });
        let accepted = taken(&wrs, bad, got);
        let mut posted = 0;
        let open = self.qps[&qpn].open.0;
        let mut expected = if wishes.is_empty() || !open { Err(libc::EINVAL) } else { Ok(()) };
        while expected.is_ok() && posted < wishes.len() {
            // Where only others know, the answer is believed.
            let believed = posted == accepted && got == Err(libc::ENOMEM);
            expected = self.accept(qpn, &wishes[posted], believed);
            posted += usize::from(expected.is_ok());
        }
        self.judge("post_send", got, expected);
        assert_eq!(accepted, posted, "bad_wr of post_send, {:?}", self.qps[&qpn]);
        // What was inline is the application's again.
        wishes.iter_mut().flat_map(|wish| &mut wish.pieces).for_each(|piece| piece.fill(0));
    }

    /// The answer to one request of a list, which is then on the ring.
    fn accept(&mut self, qpn: u32, wish: &Wish, believed: bool) -> Answer<()> {
        let qp = &self.qps[&qpn];
        if qp.sends.len() as u32 == qp.cap.max_send_wr {
            return Err(libc::ENOMEM);
        }
        self.judge_form(qp, wish)?;
        if qp.places_full(0, self.cqs[&qp.send_cq].pinned).unwrap_or(believed) {
            return Err(libc::ENOMEM);
        }
        self.judge_inline(qp, wish)?;
        let posted = qp.posted(wish, wish.imm, self.form(qp.ud, wish));
        let qp = self.qps.get_mut(&qpn).unwrap();
        qp.sends.push_back(posted);
        qp.posted += 1;
        Ok(())
    }

    fn request(&self, ud: bool, wish: &mut Wish) -> ibv_send_wr {
        // SAFETY: integers and pointers only.
        let mut wr: ibv_send_wr = unsafe { core::mem::zeroed() };
        let [a, b, c] = wish.words;
        (wr.wr_id, wr.opcode, wr.send_flags, wr.imm_data) = (wish.wr_id, wish.opcode, wish.flags, wish.imm);
        (wr.sg_list, wr.num_sge) = (wish.sges.as_mut_ptr(), wish.num_sge);
        match wish.opcode {
            _ if ud => {
                let ah = wish.ah.map_or(ptr::null_mut(), |ah| self.ahs[ah].ah);
                wr.wr.ud = ibv_send_wr_ud { ah, remote_qpn: a as u32, remote_qkey: b as u32 };
            }
            IBV_WR_ATOMIC_CMP_AND_SWP | IBV_WR_ATOMIC_FETCH_AND_ADD => {
                wr.wr.atomic = ibv_send_wr_atomic { remote_addr: a, compare_add: b, swap: c, rkey: wish.key };
            }
            _ => wr.wr.rdma = ibv_send_wr_rdma { remote_addr: a, rkey: wish.key },
        }
        wr
    }
}
