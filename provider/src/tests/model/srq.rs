//! Receives: into a QP's own queue and into shared ones; and shared receive queues themselves.

use super::{Answer, Lane, made, said};
use crate::ops::OPS;
use crate::testing::mock::Mock;
use core::ffi::c_int;
use core::ptr;
use pvrdma_ffi::uapi::vmw_pvrdma::*;
use pvrdma_ffi::verbs::*;
use std::collections::VecDeque;

const MOST: usize = 3;

/// A receive that was posted.
#[derive(Clone, Debug)]
pub struct Recv {
    pub wr_id: u64,
    pub sges: Vec<ibv_sge>,
}

impl Recv {
    /// Is it what the device sees?
    pub fn check(&self, wqe: &crate::testing::mock::RecvWqe) {
        assert_eq!((wqe.hdr.wr_id, wqe.hdr.total_len), (self.wr_id, 0));
        assert!(same(&wqe.sges, &self.sges), "{wqe:?} for {self:?}");
    }
}

/// Is an SGL the one that was posted?
pub fn same(device: &[pvrdma_sge], posted: &[ibv_sge]) -> bool {
    let device = device.iter().map(|sge| (sge.addr, sge.length, sge.lkey));
    device.eq(posted.iter().map(|sge| (sge.addr, sge.length, sge.lkey)))
}

#[derive(Debug)]
pub struct SrqModel {
    pub srq: *mut ibv_srq,
    cap: (u32, u32),
    pub limit: u32,
    pub users: u32,
    pd: u32,
    /// Belongs to all threads.
    pub pinned: bool,
    /// What is in it, if it does not. (If it does, see [`super::Shared::receives`].)
    pub ring: VecDeque<Recv>,
}

impl SrqModel {
    pub fn shared(srq: *mut ibv_srq, cap: (u32, u32)) -> Self {
        Self { srq, cap, limit: 0, users: 0, pd: 0, pinned: true, ring: VecDeque::new() }
    }
}

impl Lane<'_> {
    pub fn srq_step(&mut self) {
        match self.rng.below(8) {
            0 | 1 => self.create_srq(),
            2 => self.destroy_srq(),
            3..6 => self.modify_srq(),
            _ => self.query_srq(),
        }
    }

    fn create_srq(&mut self) {
        if self.srqs.len() >= MOST {
            return;
        }
        let ((pd, pd_ptr), lie) = (self.any_pd(), self.lie());
        let (mut max_wr, mut max_sge, limits) = (self.rng.below(6) as u32, self.rng.below(4) as u32, Mock::LIMITS);
        let mut expected = lie.map_or(Ok(()), Err);
        match self.rng.below(12) {
            0 => (max_wr, expected) = (limits.max_srq_wr + 1, Err(libc::EINVAL)),
            1 => (max_sge, expected) = (limits.max_srq_sge + 1, Err(libc::EINVAL)),
            2 => (max_wr, expected) = (u32::MAX, Err(libc::EINVAL)),
            _ => {}
        }
        let attr = ibv_srq_attr { max_wr, max_sge, srq_limit: 0 };
        let mut attr = ibv_srq_init_attr { srq_context: ptr::null_mut(), attr, padding: u32::MAX };
        // SAFETY: a live PD, a valid attribute.
        let got = made(|| unsafe { OPS.create_srq.unwrap()(pd_ptr, &mut attr) });
        self.honest();
        let Some(srq) = self.judge("create_srq", got, expected) else {
            assert_eq!((attr.attr.max_wr, attr.attr.max_sge), (max_wr, max_sge), "written on failure");
            return;
        };
        let cap = (max_wr.max(1).next_power_of_two(), max_sge.max(1));
        assert_eq!((attr.attr.max_wr, attr.attr.max_sge), cap);
        self.hold(pd, true, 1);
        // SAFETY: just made.
        let number = unsafe { (*srq).handle };
        let ring = VecDeque::new();
        self.srqs.insert(number, SrqModel { srq, cap, limit: 0, users: 0, pd, pinned: false, ring });
    }

    fn destroy_srq(&mut self) {
        let Some(number) = self.any_key(|lane| &lane.srqs) else { return };
        let model = &self.srqs[&number];
        if !model.pinned || model.users > 0 {
            let busy = model.users > 0;
            self.end_srq(number, if busy { Err(libc::EBUSY) } else { Ok(()) });
        }
    }

    fn end_srq(&mut self, number: u32, expected: Answer<()>) {
        // SAFETY: a live SRQ, not used any more if this succeeds.
        let got = said(unsafe { OPS.destroy_srq.unwrap()(self.srqs[&number].srq) });
        if self.judge("destroy_srq", got, expected).is_some() {
            let gone = self.srqs.remove(&number).unwrap();
            self.tally.add("requests purged", 0, gone.ring.len() as u64);
            self.ledger.purged += gone.ring.len() as u64;
            self.hold(gone.pd, true, -1);
        }
    }

    /// All of them go. What is in them is what the model says.
    pub fn end_srqs(&mut self) {
        for number in self.srqs.keys().copied().collect::<Vec<_>>() {
            let model = self.srqs.get_mut(&number).unwrap();
            assert_eq!(model.users, 0);
            if model.pinned {
                continue;
            }
            let (ring, posted) = (self.shared.world.state().srqs[&number].ring, std::mem::take(&mut model.ring));
            posted.iter().for_each(|recv| recv.check(&ring.take_recv().unwrap()));
            assert!(ring.take_recv().is_none());
            self.ledger.purged += posted.len() as u64;
            self.end_srq(number, Ok(()));
        }
    }

    fn modify_srq(&mut self) {
        let Some(number) = self.any_key(|lane| &lane.srqs) else { return };
        let model = &self.srqs[&number];
        let limit = self.rng.below(u64::from(model.cap.0) + 3) as u32;
        let mask = *self.rng.pick(&[IBV_SRQ_LIMIT, IBV_SRQ_LIMIT, 0, IBV_SRQ_MAX_WR, 3, 4, 5, !0]);
        if model.pinned && mask == IBV_SRQ_LIMIT && limit <= model.cap.0 {
            return;
        }
        let lie = if mask == IBV_SRQ_LIMIT && limit <= model.cap.0 { self.lie() } else { None };
        let model = &self.srqs[&number];
        let expected = match mask {
            0 => Ok(()),
            IBV_SRQ_LIMIT if limit > model.cap.0 => Err(libc::EINVAL),
            IBV_SRQ_LIMIT => lie.map_or(Ok(()), Err),
            mask if mask & !(IBV_SRQ_LIMIT | IBV_SRQ_MAX_WR) != 0 => Err(libc::EINVAL),
            // Its length is for good.
            _ => Err(libc::EOPNOTSUPP),
        };
        let mut attr = ibv_srq_attr { max_wr: 1, max_sge: 1, srq_limit: limit };
        // SAFETY: a live SRQ, a valid attribute.
        let got = said(unsafe { OPS.modify_srq.unwrap()(model.srq, &mut attr, mask as c_int) });
        self.honest();
        if self.judge("modify_srq", got, expected).is_some() && mask == IBV_SRQ_LIMIT {
            self.srqs.get_mut(&number).unwrap().limit = limit;
        }
    }

    fn query_srq(&mut self) {
        let Some(number) = self.any_key(|lane| &lane.srqs) else { return };
        let (mut attr, lie) = (ibv_srq_attr { max_wr: 9, max_sge: 9, srq_limit: 9 }, self.lie());
        let model = &self.srqs[&number];
        let (cap, limit) = (model.cap, model.limit);
        // SAFETY: a live SRQ, a valid output.
        let got = said(unsafe { OPS.query_srq.unwrap()(model.srq, &mut attr) });
        self.honest();
        let said = match self.judge("query_srq", got, lie.map_or(Ok(()), Err)) {
            Some(()) => (cap.0, cap.1, limit),
            None => (9, 9, 9),
        };
        assert_eq!((attr.max_wr, attr.max_sge, attr.srq_limit), said);
    }

    /// Post receives to a QP or an SRQ.
    pub fn recv_step(&mut self) {
        match self.rng.one_in(3) {
            true => {
                let number = self.any_key(|lane| &lane.srqs);
                self.post_recv(None, number);
            }
            false => {
                let qpn = self.any_key(|lane| &lane.qps);
                self.post_recv(qpn, None);
            }
        }
    }

    /// All threads post to the SRQ of all and poll their CQs at the same time, and the device takes what it
    /// gets. (A QP may have taken it and been destroyed.)
    pub fn crowd(&mut self) {
        let Some((number, ..)) = self.shared.srq else { return };
        for _ in 0..100 {
            self.post_recv(None, Some(number));
            let nth = self.rng.below(self.shared.cqs.len() as u64) as usize;
            self.poll_cq(self.shared.cqs[nth].0, 1);
            let state = self.shared.world.state();
            let Some(wqe) = state.srqs[&number].ring.take_recv() else { continue };
            self.shared.receives.lock().unwrap().remove(&wqe.hdr.wr_id).unwrap().check(&wqe);
            self.ledger.purged += 1;
        }
    }

    fn post_recv(&mut self, qpn: Option<u32>, number: Option<u32>) {
        // Whether it takes any, how many it has room for (nobody knows if others post too), its longest SGL.
        let (open, room, max_sge) = match (qpn, number) {
            (Some(qpn), _) => {
                let qp = &self.qps[&qpn];
                let room = qp.cap.max_recv_wr as usize - qp.recvs.len();
                (qp.open.1, Some(room), qp.cap.max_recv_sge)
            }
            (None, Some(number)) => {
                let srq = &self.srqs[&number];
                let room = srq.cap.0 as usize - srq.ring.len();
                (true, (!srq.pinned).then_some(room), srq.cap.1)
            }
            (None, None) => return,
        };
        let mut list: Vec<(Recv, c_int)> = (0..self.rng.below(4)).map(|_| self.some_recv(max_sge)).collect();
        let mut wrs: Vec<ibv_recv_wr> = list
            .iter_mut()
            .map(|(recv, num_sge)| ibv_recv_wr {
                wr_id: recv.wr_id,
                next: ptr::null_mut(),
                sg_list: recv.sges.as_mut_ptr(),
                num_sge: *num_sge,
            })
            .collect();
        let first = chain(&mut wrs, |wr, next| wr.next = next);
        let fits = |num_sge: c_int| u32::try_from(num_sge).is_ok_and(|count| count <= max_sge);
        // Others may take it before the verb returns.
        let ledger = number.filter(|number| self.srqs[number].pinned).map(|_| &self.shared.receives);
        ledger.iter().for_each(|ledger| {
            ledger.lock().unwrap().extend(list.iter().map(|(recv, _)| (recv.wr_id, recv.clone())));
        });
        let mut bad = ptr::null_mut();
        // SAFETY: live objects, NULL or a valid list.
        let got = said(unsafe {
            match (qpn, number) {
                (Some(qpn), _) => OPS.post_recv.unwrap()(self.qps[&qpn].qp, first, &mut bad),
                (_, number) => OPS.post_srq_recv.unwrap()(self.srqs[&number.unwrap()].srq, first, &mut bad),
            }
        });
        let accepted = taken(&wrs, bad, got);
        let (mut expected, mut posted) = (if list.is_empty() || !open { Err(libc::EINVAL) } else { Ok(()) }, 0);
        while expected.is_ok() && posted < list.len() {
            let full = room.map_or(posted == accepted && got == Err(libc::ENOMEM), |room| posted == room);
            expected = match list[posted].1 {
                _ if full => Err(libc::ENOMEM),
                num_sge if !fits(num_sge) => Err(libc::EINVAL),
                _ => {
                    posted += 1;
                    Ok(())
                }
            };
        }
        let verb = if number.is_some() { "post_srq_recv" } else { "post_recv" };
        self.judge(verb, got, expected);
        assert_eq!(accepted, posted, "bad_wr of {verb}");
        let kind = if number.is_some() { "receives posted, to an SRQ" } else { "receives posted, to a QP" };
        self.tally.add(kind, 0, posted as u64);
        self.ledger.posted += posted as u64;
        let refused = list.split_off(posted);
        ledger.iter().for_each(|ledger| {
            refused.iter().for_each(|(recv, _)| assert!(ledger.lock().unwrap().remove(&recv.wr_id).is_some()));
        });
        let posted = list.into_iter().map(|(recv, _)| recv);
        let any = posted.len() > 0;
        match (qpn, number) {
            (Some(qpn), _) => {
                let qp = self.qps.get_mut(&qpn).unwrap();
                let bell = PVRDMA_UAR_QP_RECV | qp.handle;
                qp.recvs.extend(posted);
                self.rung(PVRDMA_UAR_QP_OFFSET, if any { bell } else { 0 });
            }
            (_, number) => {
                let number = number.unwrap();
                if ledger.is_none() {
                    self.srqs.get_mut(&number).unwrap().ring.extend(posted);
                }
                self.rung(PVRDMA_UAR_SRQ_OFFSET, if any { PVRDMA_UAR_SRQ_RECV | number } else { 0 });
            }
        }
    }

    /// A receive with as many SGEs as are there, and how many it says it has.
    fn some_recv(&mut self, max_sge: u32) -> (Recv, c_int) {
        let (num_sge, sges) = self.some_sges(max_sge);
        (Recv { wr_id: self.wr_id(false), sges }, num_sge)
    }

    /// An SGL, most often one that fits, and its length.
    pub fn some_sges(&mut self, max_sge: u32) -> (c_int, Vec<ibv_sge>) {
        let mut num_sge = self.rng.below(u64::from(max_sge) + 1) as c_int;
        if self.rng.one_in(60) {
            num_sge = *self.rng.pick(&[max_sge as c_int + 1, -1, c_int::MIN, c_int::MAX]);
        }
        // Too long a list is refused unread.
        let there = num_sge.clamp(0, max_sge as c_int + 1);
        let sges = (0..there).map(|_| {
            let word = self.rng.word();
            ibv_sge { addr: word, length: word as u32 ^ 0xffff, lkey: (word >> 40) as u32 }
        });
        (num_sge, sges.collect())
    }
}

/// Make a list of requests; the first, or NULL.
pub fn chain<W>(wrs: &mut [W], set_next: impl Fn(&mut W, *mut W)) -> *mut W {
    let first = wrs.as_mut_ptr();
    if wrs.is_empty() {
        return ptr::null_mut();
    }
    for n in 1..wrs.len() {
        // SAFETY: inside the slice, and another element than the one that is written.
        unsafe { set_next(&mut *first.add(n - 1), first.add(n)) };
    }
    first
}

/// How many requests of a list were taken: all, or those before `bad_wr`.
pub fn taken<W>(wrs: &[W], bad: *mut W, answer: Answer<()>) -> usize {
    assert_eq!(bad.is_null(), answer.is_ok() || wrs.is_empty(), "bad_wr");
    match bad.is_null() {
        true => wrs.len(),
        false => wrs.iter().position(|wr| ptr::eq(wr, bad)).unwrap(),
    }
}
