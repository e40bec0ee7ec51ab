//! Sends by `ibv_wr_start`, one call after the other, and `ibv_wr_complete`: all or nothing.

use super::qp::OPS_OF;
use super::send::{Payload, Posted, Wish, has_immediate, takes_inline};
use super::{Answer, Lane, said};
use core::ptr;
use pvrdma_ffi::verbs::*;

impl Lane<'_> {
    /// All or nothing: the first thing that is wrong is what `wr_complete` says.
    pub fn build(&mut self, qpn: u32, ops: u64, wishes: Vec<Wish>) {
        let model = &self.qps[&qpn];
        let (qp, ud, shared_cq): (*mut ibv_qp_ex, _, _) = (model.qp.cast(), model.ud, self.cqs[&model.send_cq].pinned);
        let mut wrong = if model.open.0 { None } else { Some(libc::EINVAL) };
        let (mut unsure, mut drafts) = (false, Vec::<Posted>::new());
        // A datagram that was not told yet where to go, and is not the last.
        let mut lost = false;
        // SAFETY: a live extended QP, whose functions are there.
        unsafe { (*qp).wr_start.unwrap()(qp) };
        if self.rng.one_in(30) {
            // For no request at all.
            // SAFETY: as above; the lock is held until the end.
            unsafe { (*qp).wr_set_sge.unwrap()(qp, 1, 2, 3) };
            wrong.get_or_insert(libc::EINVAL);
        }
        for mut wish in wishes {
            let model = &self.qps[&qpn];
            let Some((_, flag, _)) = OPS_OF.iter().find(|(opcode, ..)| *opcode == wish.opcode) else {
                // What the device does not have.
                // SAFETY: as above.
                unsafe { (*qp).wr_send_tso.unwrap()(qp, ptr::null_mut(), 1, 2) };
                wrong.get_or_insert(libc::EOPNOTSUPP);
                continue;
            };
            // SAFETY: as above.
            unsafe { self.begin(qp, &wish) };
            let pending = drafts.len() as u64;
            let full = model.sends.len() as u64 + pending == u64::from(model.cap.max_send_wr);
            let places = model.places_full(pending, shared_cq);
            match places {
                _ if wrong.is_some() => {}
                _ if ops & u64::from(*flag) == 0 => wrong = Some(libc::EOPNOTSUPP),
                _ if lost => wrong = Some(libc::EINVAL),
                Some(true) => wrong = Some(libc::ENOMEM),
                _ if full => wrong = Some(libc::ENOMEM),
                Some(false) => {}
                None => unsure = true,
            }
            if wrong.is_none() {
                lost = ud;
                // No payload was told yet.
                let ex = if has_immediate(wish.opcode) { wish.imm } else { 0 };
                let mut draft = model.posted(&wish, ex, [0; 6]);
                draft.form = if ud { [0; 6] } else { self.form(ud, &wish) };
                if wish.opcode == IBV_WR_ATOMIC_FETCH_AND_ADD {
                    draft.form[2] = 0;
                }
                draft.position += pending;
                draft.payload = Payload::Sges(Vec::new());
                drafts.push(draft);
            }
            for setter in self.setters() {
                // SAFETY: as above.
                let said = unsafe { self.set(qpn, setter, &mut wish) };
                match (wrong, said, drafts.last_mut()) {
                    (Some(_), ..) => {}
                    (None, Err(errno), _) => wrong = Some(errno),
                    (None, Ok(()), Some(draft)) => match setter {
                        Setter::Address if !ud => {}
                        Setter::Address => (draft.form, lost) = (self.form(ud, &wish), false),
                        Setter::Sges => draft.payload = Payload::Sges(wish.sges.clone()),
                        Setter::Inline if wish.pieces.is_empty() => draft.payload = Payload::Sges(Vec::new()),
                        Setter::Inline => draft.payload = Payload::Inline(wish.pieces.concat()),
                    },
                    (None, Ok(()), None) => wrong = Some(libc::EINVAL),
                }
            }
            wish.pieces.iter_mut().for_each(|piece| piece.fill(0));
        }
        if self.rng.one_in(8) {
            // SAFETY: as above; the lock is open afterwards.
            unsafe { (*qp).wr_abort.unwrap()(qp) };
            self.judge("wr_abort", Ok(()), Ok(()));
            return;
        }
        if lost {
            wrong.get_or_insert(libc::EINVAL);
        }
        // SAFETY: as above.
        let got = said(unsafe { (*qp).wr_complete.unwrap()(qp) });
        if unsure && got == Err(libc::ENOMEM) {
            wrong = Some(libc::ENOMEM);
        }
        self.judge("wr_complete", got, wrong.map_or(Ok(()), Err));
        if got.is_ok() {
            let qp = self.qps.get_mut(&qpn).unwrap();
            qp.posted += drafts.len() as u64;
            qp.sends.extend(drafts);
        }
    }

    /// Call the function of the opcode.
    ///
    /// # Safety
    /// `qp` must be a live extended QP between `wr_start` and its end.
    unsafe fn begin(&self, qp: *mut ibv_qp_ex, wish: &Wish) {
        let ([a, b, c], key, imm) = (wish.words, wish.key, wish.imm);
        // SAFETY: promise of the caller.
        unsafe {
            ((*qp).wr_id, (*qp).wr_flags) = (wish.wr_id, wish.flags);
            match wish.opcode {
                IBV_WR_SEND => (*qp).wr_send.unwrap()(qp),
                IBV_WR_SEND_WITH_IMM => (*qp).wr_send_imm.unwrap()(qp, imm),
                IBV_WR_RDMA_WRITE => (*qp).wr_rdma_write.unwrap()(qp, key, a),
                IBV_WR_RDMA_WRITE_WITH_IMM => (*qp).wr_rdma_write_imm.unwrap()(qp, key, a, imm),
                IBV_WR_RDMA_READ => (*qp).wr_rdma_read.unwrap()(qp, key, a),
                IBV_WR_ATOMIC_CMP_AND_SWP => (*qp).wr_atomic_cmp_swp.unwrap()(qp, key, a, b, c),
                _ => (*qp).wr_atomic_fetch_add.unwrap()(qp, key, a, b),
            }
        }
    }

    /// Which setters are called for a request, most often those that should be.
    fn setters(&mut self) -> Vec<Setter> {
        let all = [Setter::Address, Setter::Sges, Setter::Inline];
        match self.rng.below(60) {
            0 => vec![],
            1 => (0..self.rng.below(4)).map(|_| *self.rng.pick(&all)).collect(),
            n if n % 2 == 0 => vec![Setter::Address, Setter::Sges],
            _ => vec![Setter::Inline, Setter::Address],
        }
    }

    /// Call one, with what it must say.
    ///
    /// # Safety
    /// As [`Lane::begin`], with the QP of that number.
    unsafe fn set(&self, qpn: u32, setter: Setter, wish: &mut Wish) -> Answer<()> {
        let model = &self.qps[&qpn];
        let qp: *mut ibv_qp_ex = model.qp.cast();
        let [a, b, _] = wish.words;
        match setter {
            // A QP that is connected is not told: it would be a mistake, made seldom enough elsewhere.
            Setter::Address if !model.ud && !wish.key.is_multiple_of(64) => Ok(()),
            Setter::Address => {
                let ah = wish.ah.map_or(ptr::null_mut(), |ah| self.ahs[ah].ah);
                // SAFETY: promise of the caller.
                unsafe { (*qp).wr_set_ud_addr.unwrap()(qp, ah, a as u32, b as u32) };
                if model.ud && !ah.is_null() { Ok(()) } else { Err(libc::EINVAL) }
            }
            Setter::Sges => {
                // SAFETY: promise of the caller; there are as many as are given.
                unsafe {
                    match wish.sges.as_slice() {
                        [one] => (*qp).wr_set_sge.unwrap()(qp, one.lkey, one.addr, one.length),
                        more => (*qp).wr_set_sge_list.unwrap()(qp, more.len(), more.as_ptr()),
                    }
                }
                if wish.sges.len() > model.cap.max_send_sge as usize { Err(libc::EINVAL) } else { Ok(()) }
            }
            Setter::Inline => {
                let most = model.cap.max_inline_data as usize;
                let bufs: Vec<_> = wish
                    .pieces
                    .iter_mut()
                    .map(|piece| ibv_data_buf { addr: piece.as_mut_ptr().cast(), length: piece.len() })
                    .collect();
                // SAFETY: promise of the caller; the pieces are there.
                unsafe {
                    match bufs.as_slice() {
                        [one] => (*qp).wr_set_inline_data.unwrap()(qp, one.addr, one.length),
                        more => (*qp).wr_set_inline_data_list.unwrap()(qp, more.len(), more.as_ptr()),
                    }
                }
                let fits = takes_inline(wish.opcode) && wish.inline_len() <= most;
                if fits { Ok(()) } else { Err(libc::EINVAL) }
            }
        }
    }
}

/// What a request of `ibv_wr_*` is told after it was begun.
#[derive(Clone, Copy, Debug)]
enum Setter {
    Address,
    Sges,
    Inline,
}
