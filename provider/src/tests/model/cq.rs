//! Completion queues: create, destroy, arm, poll in both ways.
//!
//! What is in the CQ of one thread is known exactly. In a CQ of all threads only a QP's own thread
//! knows what it is owed; whoever polls it passes on what is not his ([`super::Shared::mail`]).

use super::{Answer, Lane, made, said};
use crate::ops::OPS;
use crate::testing::mock::Mock;
use core::ffi::c_int;
use core::ptr;
use pvrdma_ffi::uapi::vmw_pvrdma::*;
use pvrdma_ffi::verbs::*;
use std::collections::VecDeque;

const MOST: usize = 6;
/// Completions asked for at most.
const WANTED: usize = 12;

/// A completion that the device has put.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// What the application is to get.
    pub wc: ibv_wc,
    /// Is it to get it at all?
    pub visible: bool,
    /// Of a send: how many sends of the QP came before it.
    pub position: Option<u64>,
}

#[derive(Debug)]
pub struct CqModel {
    pub cq: *mut ibv_cq_ex,
    extended: bool,
    pub users: u32,
    pd: Option<u32>,
    /// Belongs to all threads.
    pub pinned: bool,
    /// What is in it, if it does not.
    pub queue: VecDeque<Entry>,
    /// Was it armed since the last poll that found nothing? Then the next such poll must ask the device:
    /// completions may have been on their way.
    armed: bool,
}

/// What counts in a completion. Of a failed one the opcode means nothing.
fn seen(wc: &ibv_wc) -> [u64; 8] {
    let opcode = if wc.status == 0 { wc.opcode } else { 0 };
    let rest = [wc.qp_num, wc.status, opcode, wc.byte_len, wc.imm_data, wc.src_qp, wc.wc_flags].map(u64::from);
    core::array::from_fn(|n| if n == 0 { wc.wr_id } else { rest[n - 1] })
}

impl CqModel {
    pub fn shared(cq: *mut ibv_cq_ex) -> Self {
        Self { cq, extended: true, users: 0, pd: None, pinned: true, queue: VecDeque::new(), armed: false }
    }
}

impl Lane<'_> {
    pub fn cq_step(&mut self) {
        match self.rng.below(8) {
            0 => self.create_cq(),
            1 => self.destroy_cq(),
            2 => {
                let Some(number) = self.any_key(|lane| &lane.cqs) else { return };
                if self.rng.one_in(2) {
                    // Just asked: that must not keep the poll after arming from asking.
                    self.poll_cq(number, 1);
                }
                self.arm(number);
                self.poll_cq(number, 1);
            }
            3 => {
                if let Some(number) = self.any_key(|lane| &lane.cqs) {
                    self.arm(number);
                }
            }
            _ => self.poll(),
        }
    }

    fn create_cq(&mut self) {
        // Where there are CQs of all threads, these are to be the ones that are used.
        if self.cqs.len() >= if self.single_threaded() { MOST } else { 2 * self.shared.cqs.len() } {
            return;
        }
        let (extended, lie) = (self.rng.one_in(2), self.lie());
        let channel: *mut ibv_comp_channel = ptr::without_provenance_mut(64 * self.rng.below(2) as usize);
        let (mut cqe, mut expected) = (1 + self.rng.below(8) as c_int, lie.map_or(Ok(()), Err));
        if self.rng.one_in(8) {
            cqe = *self.rng.pick(&[0, -1, c_int::MIN, Mock::LIMITS.max_cqe as c_int + 1, c_int::MAX]);
            expected = Err(libc::EINVAL);
        }
        let (got, pd): (Answer<*mut ibv_cq_ex>, _) = match extended {
            // SAFETY: an open context.
            false => (made(|| unsafe { OPS.create_cq.unwrap()(self.world().context, cqe, channel, 0) }.cast()), None),
            true => {
                // SAFETY: integers and pointers only.
                let mut attr: ibv_cq_init_attr_ex = unsafe { core::mem::zeroed() };
                (attr.cqe, attr.channel, attr.wc_flags) = (cqe as u32, channel, self.rng.below(0x80));
                attr.comp_mask = IBV_CQ_INIT_ATTR_MASK_FLAGS;
                attr.flags = self.rng.below(2) as u32;
                let pd = self.rng.one_in(2).then(|| self.any_parent());
                if let Some((_, pd)) = pd {
                    attr.comp_mask |= IBV_CQ_INIT_ATTR_MASK_PD;
                    attr.parent_domain = pd;
                }
                let fault = self.rng.below(20);
                // A length that cannot be comes last.
                expected =
                    match fault {
                        0..5 => Err([libc::EINVAL, libc::EOPNOTSUPP, libc::EOPNOTSUPP, libc::EINVAL, libc::EINVAL]
                            [fault as usize]),
                        _ => expected,
                    };
                match fault {
                    0 => attr.comp_mask |= 1 << 5,
                    1 => attr.wc_flags |= 1 << 9,
                    2 => attr.flags |= 1 << 1,
                    3 => (attr.comp_mask, attr.parent_domain) = (IBV_CQ_INIT_ATTR_MASK_PD, ptr::null_mut()),
                    4 => (attr.comp_mask, attr.parent_domain) = (IBV_CQ_INIT_ATTR_MASK_PD, self.world().real_pd),
                    _ => {}
                }
                // SAFETY: an open context, a valid attribute.
                (made(|| unsafe { OPS.create_cq_ex.unwrap()(self.world().context, &mut attr) }), pd.map(|(id, _)| id))
            }
        };
        self.honest();
        if let Some(cq) = self.judge("create_cq", got, expected) {
            // SAFETY: just made.
            let (number, entries) = unsafe { ((*cq.cast::<ibv_cq>()).handle, (*cq.cast::<ibv_cq>()).cqe) };
            assert_eq!(entries as u32, (cqe as u32).next_power_of_two());
            assert_eq!(self.world().state().cqs[&number].channel, channel.addr());
            pd.iter().for_each(|pd| self.hold(*pd, false, 1));
            let (queue, armed) = (VecDeque::new(), false);
            self.cqs.insert(number, CqModel { cq, extended, users: 0, pd, pinned: false, queue, armed });
        }
    }

    fn destroy_cq(&mut self) {
        let Some(number) = self.any_key(|lane| &lane.cqs) else { return };
        let model = &self.cqs[&number];
        if model.pinned && model.users == 0 {
            return;
        }
        let busy = model.users > 0;
        self.end_cq(number, if busy { Err(libc::EBUSY) } else { Ok(()) });
    }

    fn end_cq(&mut self, number: u32, expected: Answer<()>) {
        // SAFETY: a live CQ, not used any more if this succeeds.
        let got = said(unsafe { OPS.destroy_cq.unwrap()(self.cqs[&number].cq.cast()) });
        if self.judge("destroy_cq", got, expected).is_some() {
            let gone = self.cqs.remove(&number).unwrap();
            gone.pd.iter().for_each(|pd| self.hold(*pd, false, -1));
        }
    }

    /// All of them go.
    pub fn end_cqs(&mut self) {
        for number in self.cqs.keys().copied().collect::<Vec<_>>() {
            assert_eq!(self.cqs[&number].users, 0);
            if !self.cqs[&number].pinned {
                self.end_cq(number, Ok(()));
            }
        }
    }

    fn arm(&mut self, number: u32) {
        let solicited = self.rng.below(2) as c_int;
        // SAFETY: a live CQ.
        let got = said(unsafe { OPS.req_notify_cq.unwrap()(self.cqs[&number].cq.cast(), solicited) });
        self.judge("req_notify_cq", got, Ok(()));
        let kind = if solicited == 0 { PVRDMA_UAR_CQ_ARM } else { PVRDMA_UAR_CQ_ARM_SOL };
        self.rung(PVRDMA_UAR_CQ_OFFSET, kind | number);
        self.cqs.get_mut(&number).unwrap().armed = true;
    }

    fn poll(&mut self) {
        if let Some(number) = self.any_key(|lane| &lane.cqs) {
            let wanted = 1 + self.rng.below(WANTED as u64) as usize;
            self.poll_cq(number, wanted);
        }
    }

    /// Take what is there, `wanted` at most. Returns whether anything came.
    pub fn poll_cq(&mut self, number: u32, wanted: usize) -> bool {
        if self.rng.one_in(20) {
            let none = *self.rng.pick(&[0, -1, c_int::MIN]);
            // SAFETY: a live CQ; nothing is wanted.
            let taken = unsafe { OPS.poll_cq.unwrap()(self.cqs[&number].cq.cast(), none, ptr::null_mut()) };
            assert_eq!(taken, 0);
        }
        let model = self.cqs.get_mut(&number).unwrap();
        let (cq, pinned) = (model.cq, model.pinned);
        let (mut expected, mut done) = (Vec::new(), Vec::new());
        while expected.len() < wanted
            && let Some(entry) = model.queue.pop_front()
        {
            expected.extend(entry.visible.then_some(entry.wc));
            done.extend(entry.position.map(|position| (entry.wc.qp_num, position + 1)));
        }
        let plainly = !model.extended || self.rng.one_in(2);
        let got = if plainly { poll_plainly(cq, wanted) } else { poll_extended(cq, wanted) };
        self.tally.add("completions", 0, got.len() as u64);
        for wc in got.iter().filter(|wc| wc.status != 0) {
            self.tally.add("failed completions", wc.status as c_int, 1);
        }
        if pinned {
            got.iter().for_each(|wc| self.heard(wc));
            self.in_order(&got);
            return !got.is_empty();
        }
        let list = |wcs: &[ibv_wc]| wcs.iter().map(seen).collect::<Vec<_>>();
        assert_eq!(list(&got), list(&expected), "CQ {number}, {wanted} wanted, plainly: {plainly}");
        for (qpn, done) in done {
            let qp = self.qps.get_mut(&qpn).unwrap();
            assert!(done > qp.done);
            qp.done = done;
        }
        self.asked(number, expected.is_empty(), expected.len() < wanted);
        !got.is_empty()
    }

    /// Who polls and finds nothing asks the device: now and then, and always if the CQ was armed since. Who finds
    /// fewer than were wanted does so in the second case.
    fn asked(&mut self, number: u32, nothing: bool, fewer: bool) {
        if !self.single_threaded() {
            return;
        }
        let rung = self.world().rung(PVRDMA_UAR_CQ_OFFSET);
        let model = self.cqs.get_mut(&number).unwrap();
        match (nothing || fewer && model.armed, rung) {
            (false, rung) => assert_eq!(rung, 0, "who finds something need not ask"),
            (true, 0) => assert!(!model.armed, "the poll after arming asks"),
            (true, rung) => {
                assert_eq!(rung, PVRDMA_UAR_CQ_POLL | number);
                model.armed = false;
            }
        }
    }

    /// Sends of a QP complete in order, whoever polls.
    fn in_order(&self, wcs: &[ibv_wc]) {
        for (n, wc) in wcs.iter().enumerate() {
            let next = wcs[n + 1..].iter().find(|next| next.qp_num == wc.qp_num && is_send(next.wr_id));
            assert!(!is_send(wc.wr_id) || next.is_none_or(|next| wc.wr_id < next.wr_id), "{wcs:?}");
        }
    }

    /// A completion from a CQ of all threads.
    fn heard(&mut self, wc: &ibv_wc) {
        let owner = self.shared.owners.lock().unwrap()[&wc.qp_num];
        if owner != self.number {
            self.shared.mail[owner].lock().unwrap().push(*wc);
            return;
        }
        assert!(self.owed(wc).is_some(), "nobody is owed {wc:?}");
    }

    /// A completion for a QP of this thread. `None`: there is nothing of the kind.
    fn owed(&mut self, wc: &ibv_wc) -> Option<()> {
        let qp = self.qps.get_mut(&wc.qp_num)?;
        let index = qp.owed.iter().position(|entry| entry.wc.wr_id == wc.wr_id)?;
        let entry = qp.owed.remove(index);
        assert_eq!(seen(wc), seen(&entry.wc));
        qp.done = qp.done.max(entry.position.map_or(0, |position| position + 1));
        Some(())
    }

    /// What other threads took out of CQs of all threads. It may be of a QP that was destroyed or reset
    /// meanwhile: then it was taken before that.
    pub fn read_mail(&mut self) {
        if self.single_threaded() {
            return;
        }
        let mail = std::mem::take(&mut *self.shared.mail[self.number].lock().unwrap());
        for wc in mail {
            if self.owed(&wc).is_none() {
                assert!(self.purged.remove(&wc.wr_id), "nobody is owed {wc:?}");
            }
        }
    }
}

/// Is this the `wr_id` of a send? See [`Lane::wr_id`].
fn is_send(wr_id: u64) -> bool {
    wr_id & super::SEND != 0
}

fn poll_plainly(cq: *mut ibv_cq_ex, wanted: usize) -> Vec<ibv_wc> {
    let untouched = ibv_wc { wr_id: 0x5a5a, ..Default::default() };
    let mut wcs = [untouched; WANTED + 1];
    // SAFETY: a live CQ; no more than that are wanted.
    let taken = unsafe { OPS.poll_cq.unwrap()(cq.cast(), wanted as c_int, wcs.as_mut_ptr()) };
    let taken = usize::try_from(taken).unwrap();
    assert!(taken <= wanted && wcs[wanted..].iter().all(|wc| wc.wr_id == untouched.wr_id));
    wcs[..taken].to_vec()
}

fn poll_extended(cq: *mut ibv_cq_ex, wanted: usize) -> Vec<ibv_wc> {
    let mut taken = Vec::new();
    let mut attr = ibv_poll_cq_attr { comp_mask: 0 };
    // SAFETY: a live CQ; ended if it was started.
    unsafe {
        let mut result = (*cq).start_poll.unwrap()(cq, &mut attr);
        if result == 0 {
            while result == 0 {
                taken.push(ibv_wc {
                    wr_id: (*cq).wr_id,
                    status: (*cq).status,
                    opcode: (*cq).read_opcode.unwrap()(cq),
                    byte_len: (*cq).read_byte_len.unwrap()(cq),
                    imm_data: (*cq).read_imm_data.unwrap()(cq),
                    qp_num: (*cq).read_qp_num.unwrap()(cq),
                    src_qp: (*cq).read_src_qp.unwrap()(cq),
                    wc_flags: (*cq).read_wc_flags.unwrap()(cq),
                    ..Default::default()
                });
                if taken.len() == wanted {
                    break;
                }
                result = (*cq).next_poll.unwrap()(cq);
            }
            (*cq).end_poll.unwrap()(cq);
        }
        assert!([0, libc::ENOENT].contains(&result), "poll: {result}");
    }
    taken
}
