//! Extended QPs: `ibv_create_qp_ex` and the `ibv_wr_*` functions.
//!
//! `wr_start` takes the lock of the send queue, `wr_complete` and `wr_abort` open it. What comes
//! between fills slots that the device does not see until `wr_complete`, which publishes all of them
//! or, if anything was wrong, none.

use crate::boundary;
use crate::fast::wqe::{self, Form, SendHeader};
use crate::ring::barrier::to_device;
use crate::support::error::Errno;
use crate::support::loaded::Loaded;
use crate::support::log::refuse;
use crate::support::send_log::Logged;
use crate::support::switches::Switches;
use crate::verbs::qp::{self, At, Building, Qp, SendQueue};
use core::ffi::{c_int, c_void};
use core::mem::offset_of;
use core::ptr;
use core::slice;
use pvrdma_ffi::pabi::VERBS_QP_EX;
use pvrdma_ffi::uapi::vmw_pvrdma::*;
use pvrdma_ffi::verbs::*;

/// `create_qp_ex`. What is asked for in `attr.cap` is written back on success only.
///
/// # Safety
/// `context` must be an open context of ours, `attr` valid for what its `comp_mask` says.
pub unsafe fn create_qp_ex(context: *mut ibv_context, attr: *mut ibv_qp_init_attr_ex) -> Result<*mut ibv_qp, Errno> {
    // SAFETY: promise of the caller.
    let ex = unsafe { attr.read() };
    const KNOWN: u32 = IBV_QP_INIT_ATTR_PD | IBV_QP_INIT_ATTR_CREATE_FLAGS | IBV_QP_INIT_ATTR_SEND_OPS_FLAGS;
    if ex.comp_mask & !KNOWN != 0 {
        return Err(refuse(Errno::EOPNOTSUPP, format_args!("create_qp_ex: comp_mask {:#x}", ex.comp_mask)));
    }
    if ex.comp_mask & IBV_QP_INIT_ATTR_PD == 0 || ex.pd.is_null() {
        return Err(refuse(Errno::EINVAL, format_args!("create_qp_ex: needs a PD")));
    }
    if ex.comp_mask & IBV_QP_INIT_ATTR_CREATE_FLAGS != 0 && ex.create_flags != 0 {
        return Err(refuse(Errno::EOPNOTSUPP, format_args!("create_qp_ex: create_flags {:#x}", ex.create_flags)));
    }
    let mut init = ibv_qp_init_attr {
        qp_context: ex.qp_context,
        send_cq: ex.send_cq,
        recv_cq: ex.recv_cq,
        srq: ex.srq,
        cap: ex.cap,
        qp_type: ex.qp_type,
        sq_sig_all: ex.sq_sig_all,
    };
    let ops = (ex.comp_mask & IBV_QP_INIT_ATTR_SEND_OPS_FLAGS != 0).then_some(ex.send_ops_flags);
    // SAFETY: an open context.
    let switches = unsafe { crate::verbs::context::Context::of(context) }?.switches;
    let possible = possible_ops(ex.qp_type, switches);
    if let Some(ops) = ops
        && ops & !possible != 0
    {
        let why = format_args!("create_qp_ex: send_ops_flags {ops:#x}: a QP of this type can {possible:#x}");
        return Err(refuse(Errno::EOPNOTSUPP, why));
    }
    // SAFETY: promise of the caller.
    let qp = unsafe { qp::create(ex.pd, &mut init) }?;
    // SAFETY: a QP of ours, with room for all of it, that nobody else has yet; `attr` as above.
    unsafe {
        // The oldest releases fill this for plain creation only.
        if (*qp).context.is_null() {
            (*qp).context = context;
            (*qp).qp_context = init.qp_context;
            (*qp).pd = ex.pd;
            (*qp).send_cq = init.send_cq;
            (*qp).recv_cq = init.recv_cq;
            (*qp).srq = init.srq;
            (*qp).qp_type = init.qp_type;
        }
        if let Some(ops) = ops {
            install(qp.cast(), ops, Loaded::get()?.libibverbs.qp_comp_mask);
        }
        (*attr).cap = init.cap;
    }
    Ok(qp)
}

/// `IBV_QP_EX_WITH_*` that a QP of a type can have.
fn possible_ops(qp_type: u32, switches: Switches) -> u64 {
    let sends = IBV_QP_EX_WITH_SEND | IBV_QP_EX_WITH_SEND_WITH_IMM;
    let mut ops = sends;
    if qp_type == IBV_QPT_RC {
        ops |= IBV_QP_EX_WITH_RDMA_WRITE
            | IBV_QP_EX_WITH_RDMA_WRITE_WITH_IMM
            | IBV_QP_EX_WITH_RDMA_READ
            | IBV_QP_EX_WITH_ATOMIC_CMP_AND_SWP
            | IBV_QP_EX_WITH_ATOMIC_FETCH_AND_ADD;
        if switches.has(Switches::SEND_WITH_INV) {
            ops |= IBV_QP_EX_WITH_SEND_WITH_INV;
        }
        if switches.has(Switches::LOCAL_INV) {
            ops |= IBV_QP_EX_WITH_LOCAL_INV;
        }
    }
    ops.into()
}

/// Fill the `ibv_qp_ex` part. Operations that were not asked for are there too, and fail.
///
/// # Safety
/// `qp` must be a QP of ours that nobody else has yet; `comp_mask_at` must be where this libibverbs
/// has `verbs_qp.comp_mask`.
unsafe fn install(qp: *mut ibv_qp_ex, ops: u64, comp_mask_at: usize) {
    let has = |op: u32| ops & u64::from(op) != 0;
    macro_rules! op {
        ($flag:expr, $function:ident, $not:expr) => {
            Some(if has($flag) { $function } else { $not })
        };
    }
    // SAFETY: promise of the caller.
    unsafe {
        (*qp).wr_rdma_write = op!(IBV_QP_EX_WITH_RDMA_WRITE, wr_rdma_write, not_rdma);
        (*qp).wr_rdma_write_imm = op!(IBV_QP_EX_WITH_RDMA_WRITE_WITH_IMM, wr_rdma_write_imm, not_rdma_imm);
        (*qp).wr_send = op!(IBV_QP_EX_WITH_SEND, wr_send, not_offered);
        (*qp).wr_send_imm = op!(IBV_QP_EX_WITH_SEND_WITH_IMM, wr_send_imm, not_word);
        (*qp).wr_rdma_read = op!(IBV_QP_EX_WITH_RDMA_READ, wr_rdma_read, not_rdma);
        (*qp).wr_atomic_cmp_swp = op!(IBV_QP_EX_WITH_ATOMIC_CMP_AND_SWP, wr_atomic_cmp_swp, not_cmp_swp);
        (*qp).wr_atomic_fetch_add = op!(IBV_QP_EX_WITH_ATOMIC_FETCH_AND_ADD, wr_atomic_fetch_add, not_fetch_add);
        (*qp).wr_send_inv = op!(IBV_QP_EX_WITH_SEND_WITH_INV, wr_send_inv, not_word);
        (*qp).wr_local_inv = op!(IBV_QP_EX_WITH_LOCAL_INV, wr_local_inv, not_word);
        (*qp).wr_bind_mw = Some(not_bind_mw);
        (*qp).wr_send_tso = Some(not_tso);
        (*qp).wr_set_xrc_srqn = Some(not_word);
        (*qp).wr_set_ud_addr = Some(wr_set_ud_addr);
        (*qp).wr_set_inline_data = Some(wr_set_inline_data);
        (*qp).wr_set_inline_data_list = Some(wr_set_inline_data_list);
        (*qp).wr_set_sge = Some(wr_set_sge);
        (*qp).wr_set_sge_list = Some(wr_set_sge_list);
        (*qp).wr_start = Some(wr_start);
        (*qp).wr_complete = Some(wr_complete);
        (*qp).wr_abort = Some(wr_abort);
        // What later releases put behind these stays NULL: nobody may call what was not asked for,
        // and asking is refused.
        qp.byte_add(comp_mask_at).cast::<u32>().write(VERBS_QP_EX);
    }
}

// ---- begin and end -----------------------------------------------------------------------------

/// # Safety
/// `qp` must be a live extended QP of ours.
unsafe extern "C" fn wr_start(qp: *mut ibv_qp_ex) {
    boundary::nothing(|| {
        // SAFETY: promise of the caller. The lock is opened by `wr_complete` or `wr_abort`, and
        // gives us `building`.
        unsafe {
            let own = Qp::of(qp.cast());
            own.sq.lock_on();
            let sq = own.sq.held();
            *own.building.get() = Building {
                pending: sq.producer.pend(),
                error: if sq.open { None } else { Some(Errno::EINVAL) },
                at: None,
                log_start: own.extras.inline.as_ref().map(|inline| inline.log.posted()),
            };
        }
    });
}

/// # Safety
/// As [`wr_start`], which the caller must have called.
unsafe extern "C" fn wr_complete(qp: *mut ibv_qp_ex) -> c_int {
    boundary::errno(|| {
        // SAFETY: promise of the caller; the lock is held.
        unsafe {
            let (own, mut sq, building) = parts(qp);
            if building.at.is_some_and(|at| at.lacks_address) {
                building.error.get_or_insert(Errno::EINVAL);
            }
            let result = building.error.map_or(Ok(()), Err);
            match result {
                Err(_) => rewind(own, building),
                Ok(()) => {
                    if sq.producer.publish_pending(building.pending) {
                        to_device();
                        sq.uar.ring_send(sq.qp_handle.into());
                    }
                }
            }
            own.sq.unlock();
            result
        }
    })
}

/// # Safety
/// As [`wr_complete`].
unsafe extern "C" fn wr_abort(qp: *mut ibv_qp_ex) {
    boundary::nothing(|| {
        // SAFETY: promise of the caller; the lock is held.
        unsafe {
            let (own, _, building) = parts(qp);
            rewind(own, building);
            own.sq.unlock();
        }
    });
}

/// # Safety
/// `qp` must be a live extended QP of ours whose lock `wr_start` has taken.
#[inline(always)]
unsafe fn parts<'a>(qp: *mut ibv_qp_ex) -> (&'a Qp, crate::support::lock::Held<'a, SendQueue>, &'a mut Building) {
    // SAFETY: promise of the caller; each function asks for the parts once.
    unsafe {
        let own = Qp::of(qp.cast());
        (own, own.sq.held(), &mut *own.building.get())
    }
}

/// Nothing of what was built happens. The slots were never published.
fn rewind(own: &Qp, building: &Building) {
    if let (Some(inline), Some(start)) = (&own.extras.inline, building.log_start) {
        inline.log.rewind(start);
    }
}

// ---- requests ----------------------------------------------------------------------------------

/// Take a slot and write the header: `opcode` is the device's, `ex` the immediate data or key.
///
/// # Safety
/// As [`parts`].
#[inline(always)]
unsafe fn request(qp: *mut ibv_qp_ex, opcode: u32, ex: u32, form: Form) {
    boundary::nothing(|| {
        // SAFETY: promise of the caller. `wr_id` and `wr_flags` are the application's to set and
        // ours to read.
        let ((own, sq, building), wr_id, flags) = unsafe { (parts(qp), (*qp).wr_id, (*qp).wr_flags) };
        if building.error.is_some() {
            return;
        }
        if let Err(errno) = begin(own, &sq, building, (wr_id, flags), opcode, ex, form) {
            building.error = Some(errno);
        }
    });
}

fn begin(
    own: &Qp,
    sq: &SendQueue,
    building: &mut Building,
    (wr_id, flags): (u64, u32),
    opcode: u32,
    ex: u32,
    form: Form,
) -> Result<(), Errno> {
    if building.at.is_some_and(|at| at.lacks_address) {
        return Err(Errno::EINVAL);
    }
    let flags = flags & wqe::FLAGS | u32::from(sq.always);
    let position = match &own.extras.inline {
        None => None,
        Some(inline) => Some((inline, inline.log.next().ok_or(Errno::ENOMEM)?)),
    };
    let slot = sq.producer.reserve_in(&mut building.pending).map_err(|_| Errno::EIO)?.ok_or(Errno::ENOMEM)?;
    let wr_id = position.map_or(wr_id, |(inline, position)| {
        inline.log.note(position, Logged { wr_id, signaled: flags & IBV_SEND_SIGNALED != 0 })
    });
    let [w4, w5, w6, w7, w8, w9] = form;
    let header: SendHeader = [wr_id, 0, u64::from(opcode) | u64::from(flags) << 32, ex.into(), w4, w5, w6, w7, w8, w9];
    let slot = sq.slots.at(slot);
    // SAFETY: a slot just reserved, 8-aligned and longer than a header.
    unsafe { slot.cast::<SendHeader>().write(header) };
    let position = position.map(|(_, position)| position);
    building.at = Some(At { slot, opcode, position, lacks_address: own.extras.ud });
    Ok(())
}

macro_rules! requests {
    ($($name:ident($($arg:ident: $ty:ty),*) = $opcode:ident, $ex:expr, $form:expr;)*) => {
        $(
            /// # Safety
            /// As [`parts`].
            unsafe extern "C" fn $name(qp: *mut ibv_qp_ex $(, $arg: $ty)*) {
                // SAFETY: promise of the caller.
                unsafe { request(qp, $opcode, $ex, $form) }
            }
        )*
    };
}

requests! {
    wr_send() = PVRDMA_WR_SEND, 0, [0; 6];
    wr_send_imm(imm_data: u32) = PVRDMA_WR_SEND_WITH_IMM, imm_data, [0; 6];
    wr_send_inv(rkey: u32) = PVRDMA_WR_SEND_WITH_INV, rkey, [0; 6];
    wr_local_inv(rkey: u32) = PVRDMA_WR_LOCAL_INV, rkey, [0; 6];
    wr_rdma_write(rkey: u32, remote_addr: u64) = PVRDMA_WR_RDMA_WRITE, 0, wqe::rdma_form(remote_addr, rkey);
    wr_rdma_write_imm(rkey: u32, remote_addr: u64, imm_data: u32) =
        PVRDMA_WR_RDMA_WRITE_WITH_IMM, imm_data, wqe::rdma_form(remote_addr, rkey);
    wr_rdma_read(rkey: u32, remote_addr: u64) = PVRDMA_WR_RDMA_READ, 0, wqe::rdma_form(remote_addr, rkey);
    wr_atomic_cmp_swp(rkey: u32, remote_addr: u64, compare: u64, swap: u64) =
        PVRDMA_WR_ATOMIC_CMP_AND_SWP, 0, wqe::atomic_form(remote_addr, rkey, compare, swap);
    wr_atomic_fetch_add(rkey: u32, remote_addr: u64, add: u64) =
        PVRDMA_WR_ATOMIC_FETCH_AND_ADD, 0, wqe::atomic_form(remote_addr, rkey, add, 0);
}

/// An operation that was not asked for at creation, or that the device does not have.
///
/// # Safety
/// As [`parts`].
unsafe extern "C" fn not_offered(qp: *mut ibv_qp_ex) {
    boundary::nothing(|| {
        // SAFETY: promise of the caller.
        let (_, _, building) = unsafe { parts(qp) };
        building.error.get_or_insert(Errno::EOPNOTSUPP);
    });
}

macro_rules! not_offered {
    ($($name:ident($($ty:ty),*);)*) => {
        $(
            /// # Safety
            /// As [`parts`].
            unsafe extern "C" fn $name(qp: *mut ibv_qp_ex $(, _: $ty)*) {
                // SAFETY: promise of the caller.
                unsafe { not_offered(qp) }
            }
        )*
    };
}

not_offered! {
    not_word(u32);
    not_rdma(u32, u64);
    not_rdma_imm(u32, u64, u32);
    not_cmp_swp(u32, u64, u64, u64);
    not_fetch_add(u32, u64, u64);
    not_bind_mw(*mut c_void, u32, *const c_void);
    not_tso(*mut c_void, u16, u16);
}

// ---- setters -----------------------------------------------------------------------------------

/// Do `set` for the request that is being filled, if all is well so far.
///
/// # Safety
/// As [`parts`].
#[inline(always)]
unsafe fn setter(qp: *mut ibv_qp_ex, set: impl FnOnce(&Qp, &SendQueue, &mut At) -> Result<(), Errno>) {
    boundary::nothing(|| {
        // SAFETY: promise of the caller.
        let (own, sq, building) = unsafe { parts(qp) };
        if building.error.is_some() {
            return;
        }
        // No request yet: nothing this could be for.
        let result = building.at.as_mut().map_or(Err(Errno::EINVAL), |at| set(own, &sq, at));
        building.error = result.err();
    });
}

/// Write the SGL of a request.
///
/// # Safety
/// `at` must be a slot of `sq` that is being filled.
#[inline(always)]
unsafe fn set_sges(sq: &SendQueue, at: &At, sges: &[ibv_sge]) -> Result<(), Errno> {
    if sges.len() > sq.max_sge.into() {
        return Err(Errno::EINVAL);
    }
    // SAFETY: the slot has room for a header and `max_sge` entries, which there are no more of.
    unsafe {
        let count_at = at.slot.add(offset_of!(pvrdma_sq_wqe_hdr, num_sge)).cast::<u32>();
        count_at.write(sges.len() as u32);
        wqe::copy_sges(at.slot.add(size_of::<SendHeader>()), sges.as_ptr(), sges.len() as u32);
    }
    Ok(())
}

/// # Safety
/// As [`parts`].
unsafe extern "C" fn wr_set_sge(qp: *mut ibv_qp_ex, lkey: u32, addr: u64, length: u32) {
    // SAFETY: promise of the caller.
    unsafe { setter(qp, |_, sq, at| set_sges(sq, at, &[ibv_sge { addr, length, lkey }])) }
}

/// # Safety
/// As [`parts`]; `sg_list` must hold `num_sge` entries.
unsafe extern "C" fn wr_set_sge_list(qp: *mut ibv_qp_ex, num_sge: usize, sg_list: *const ibv_sge) {
    // SAFETY: promise of the caller.
    unsafe { setter(qp, |_, sq, at| set_sges(sq, at, list(sg_list, num_sge))) }
}

/// # Safety
/// As [`parts`]; `addr` must be readable for `length` bytes.
unsafe extern "C" fn wr_set_inline_data(qp: *mut ibv_qp_ex, addr: *mut c_void, length: usize) {
    // SAFETY: promise of the caller.
    unsafe { setter(qp, |own, sq, at| set_inline(own, sq, at, &[ibv_data_buf { addr, length }])) }
}

/// # Safety
/// As [`parts`]; `buf_list` must hold `num_buf` entries, each readable.
unsafe extern "C" fn wr_set_inline_data_list(qp: *mut ibv_qp_ex, num_buf: usize, buf_list: *const ibv_data_buf) {
    // SAFETY: promise of the caller.
    unsafe { setter(qp, |own, sq, at| set_inline(own, sq, at, list(buf_list, num_buf))) }
}

/// # Safety
/// `first` must hold `count` entries.
unsafe fn list<'a, T>(first: *const T, count: usize) -> &'a [T] {
    if count == 0 || first.is_null() {
        return &[];
    }
    // SAFETY: promise of the caller.
    unsafe { slice::from_raw_parts(first, count) }
}

/// # Safety
/// `at` must be a slot of `sq`, the send queue of `own`, that is being filled; `bufs` must be
/// readable.
unsafe fn set_inline(own: &Qp, sq: &SendQueue, at: &At, bufs: &[ibv_data_buf]) -> Result<(), Errno> {
    if !wqe::takes_inline(at.opcode) {
        return Err(Errno::EINVAL);
    }
    let (Some(inline), Some(position)) = (&own.extras.inline, at.position) else {
        // No inline memory, but nothing to put there either?
        if bufs.iter().any(|buf| buf.length != 0) {
            return Err(Errno::EINVAL);
        }
        // SAFETY: promise of the caller.
        return unsafe { set_sges(sq, at, &[]) };
    };
    let pieces = bufs.iter().map(|buf| (buf.addr.cast_const().cast(), buf.length));
    // SAFETY: the position is that of this request, which the device does not see yet; the rest is
    // the caller's promise.
    unsafe {
        let sge = inline.gather(position, pieces)?;
        set_sges(sq, at, if sge.length == 0 { &[] } else { slice::from_ref(&sge) })
    }
}

/// # Safety
/// As [`parts`]; `ah` must be NULL or a live AH of ours.
unsafe extern "C" fn wr_set_ud_addr(qp: *mut ibv_qp_ex, ah: *mut ibv_ah, remote_qpn: u32, remote_qkey: u32) {
    // SAFETY: promise of the caller. The form has its place in every slot.
    unsafe {
        setter(qp, |own, _, at| {
            if !own.extras.ud || ah.is_null() {
                return Err(Errno::EINVAL);
            }
            let form_at = at.slot.add(offset_of!(pvrdma_sq_wqe_hdr, wr)).cast::<Form>();
            ptr::write(form_at.as_ptr(), wqe::datagram_form(ah, remote_qpn, remote_qkey));
            at.lacks_address = false;
            Ok(())
        });
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::testing::mock::{Mock, send_cqe};
    use crate::verbs::ah::{Ah, destroy_ah};
    use crate::verbs::pd::DomainRef;
    use zerocopy::FromBytes;

    const ALL: u64 = 0x27f;
    const SEND: u32 = PVRDMA_UAR_QP_SEND | Mock::HANDLE as u32;

    /// The mock's QP as an extended one with operations `ops`.
    fn extended(mock: &mut Mock, ops: u64) -> *mut ibv_qp_ex {
        let qp = core::ptr::from_mut(&mut *mock.qp).cast();
        // SAFETY: a QP of ours; 360 is where one release has it, inside the QP's room.
        unsafe { install(qp, ops, 360) };
        qp
    }

    #[test]
    fn a_batch_is_published_in_order_and_rung_once() {
        let mut mock = Mock::new(8, 2, 8);
        let qp = extended(&mut mock, ALL);
        // SAFETY: a live QP, called in the order the manual page has.
        unsafe {
            wr_start(qp);
            (*qp).wr_id = 1;
            (*qp).wr_flags = IBV_SEND_SIGNALED;
            wr_send_imm(qp, 0xaa);
            wr_set_sge(qp, 3, 1, 2);
            (*qp).wr_id = 2;
            (*qp).wr_flags = 0;
            wr_rdma_write(qp, 7, 0x4242);
            let sges = [ibv_sge { addr: 10, length: 20, lkey: 30 }, ibv_sge { addr: 11, length: 21, lkey: 31 }];
            wr_set_sge_list(qp, 2, sges.as_ptr());
            wr_atomic_cmp_swp(qp, 4, 1, 2, 3);
            wr_set_sge(qp, 3, 1, 8);
            assert_eq!(mock.rung(PVRDMA_UAR_QP_OFFSET), 0);
            assert!(mock.take_send().is_none());
            assert_eq!(wr_complete(qp), 0);
        }
        assert_eq!(mock.rung(PVRDMA_UAR_QP_OFFSET), SEND);
        let wqe = mock.take_send().unwrap();
        assert_eq!((wqe.hdr.wr_id, wqe.hdr.opcode, wqe.hdr.ex), (1, PVRDMA_WR_SEND_WITH_IMM, 0xaa));
        assert_eq!((wqe.hdr.send_flags, wqe.sges[0].addr, wqe.sges[0].length), (PVRDMA_SEND_SIGNALED, 1, 2));
        let wqe = mock.take_send().unwrap();
        assert_eq!((wqe.hdr.wr_id, wqe.hdr.opcode, wqe.hdr.num_sge), (2, PVRDMA_WR_RDMA_WRITE, 2));
        assert_eq!((wqe.sges[1].addr, wqe.sges[1].length, wqe.sges[1].lkey), (11, 21, 31));
        let rdma = pvrdma_wr_rdma::read_from_prefix(&wqe.hdr.wr).unwrap().0;
        assert_eq!((rdma.remote_addr, rdma.rkey), (0x4242, 7));
        let wqe = mock.take_send().unwrap();
        let atomic = pvrdma_wr_atomic::read_from_prefix(&wqe.hdr.wr).unwrap().0;
        assert_eq!((atomic.remote_addr, atomic.compare_add, atomic.swap, atomic.rkey), (1, 2, 3, 4));
        assert!(mock.take_send().is_none());
    }

    #[test]
    fn an_aborted_batch_never_was() {
        for mut mock in [Mock::new(2, 1, 8), Mock::inline(2, 64)] {
            let qp = extended(&mut mock, ALL);
            for _ in 0..5 {
                // SAFETY: as above.
                unsafe {
                    wr_start(qp);
                    wr_send(qp);
                    wr_send(qp);
                    wr_abort(qp);
                }
            }
            assert_eq!((mock.counters()[0], mock.rung(PVRDMA_UAR_QP_OFFSET)), (0, 0));
            drop(mock.qp.sq.lock());
        }
    }

    #[test]
    fn one_bad_request_undoes_all_and_the_lock_is_open() {
        type Misuse = fn(*mut ibv_qp_ex);
        let bad: [(Misuse, c_int); 6] = [
            // SAFETY: as above, for all of them.
            (|qp| unsafe { wr_set_sge_list(qp, 3, [ibv_sge::default(); 3].as_ptr()) }, libc::EINVAL),
            // SAFETY: see the first.
            (|qp| unsafe { wr_set_inline_data(qp, ptr::null_mut(), 65) }, libc::EINVAL),
            // SAFETY: see the first.
            (|qp| unsafe { wr_set_ud_addr(qp, ptr::null_mut(), 1, 2) }, libc::EINVAL),
            // SAFETY: see the first.
            (|qp| unsafe { ((*qp).wr_local_inv.unwrap())(qp, 1) }, libc::EOPNOTSUPP),
            // SAFETY: see the first.
            (|qp| unsafe { ((*qp).wr_bind_mw.unwrap())(qp, ptr::null_mut(), 1, ptr::null()) }, libc::EOPNOTSUPP),
            // SAFETY: see the first.
            (|qp| unsafe { (0..9).for_each(|_| wr_send(qp)) }, libc::ENOMEM),
        ];
        for (bad, errno) in bad {
            let mut mock = Mock::inline(8, 64);
            let qp = extended(&mut mock, IBV_QP_EX_WITH_SEND.into());
            // SAFETY: as above.
            unsafe {
                wr_start(qp);
                wr_send(qp);
                bad(qp);
                // Too late to make it good.
                wr_send(qp);
                assert_eq!(wr_complete(qp), errno);
                assert_eq!((mock.counters()[0], mock.rung(PVRDMA_UAR_QP_OFFSET)), (0, 0));
                // The next batch is not tainted.
                wr_start(qp);
                wr_send(qp);
                assert_eq!(wr_complete(qp), 0);
            }
            assert!(mock.take_send().is_some() && mock.take_send().is_none());
        }
    }

    #[test]
    fn a_setter_before_any_request_and_a_queue_below_rts_are_refused() {
        let mut mock = Mock::new(2, 1, 8);
        let qp = extended(&mut mock, ALL);
        // SAFETY: as above.
        unsafe {
            wr_start(qp);
            wr_set_sge(qp, 1, 2, 3);
            assert_eq!(wr_complete(qp), libc::EINVAL);
            mock.qp.set_state(IBV_QPS_RTR);
            wr_start(qp);
            wr_send(qp);
            assert_eq!(wr_complete(qp), libc::EINVAL);
        }
        drop(mock.qp.sq.lock());
    }

    #[test]
    fn a_datagram_needs_an_address() {
        let mut mock = Mock::ud(8, 1, 8);
        let qp = extended(&mut mock, IBV_QP_EX_WITH_SEND.into());
        let ah = Ah::new(pvrdma_av { hop_limit: 9, ..Default::default() }, DomainRef::NONE).into_verbs();
        // SAFETY: as above; the AH lives.
        unsafe {
            for sends in 1..3 {
                wr_start(qp);
                (0..sends).for_each(|_| wr_send(qp));
                assert_eq!(wr_complete(qp), libc::EINVAL);
            }
            wr_start(qp);
            wr_send(qp);
            wr_set_ud_addr(qp, ah, 0x11, 0x22);
            wr_set_sge(qp, 1, 2, 3);
            assert_eq!(wr_complete(qp), 0);
            destroy_ah(ah);
        }
        let wqe = mock.take_send().unwrap();
        let ud = pvrdma_wr_ud::read_from_bytes(&wqe.hdr.wr).unwrap();
        assert_eq!((ud.remote_qpn, ud.remote_qkey, ud.av.hop_limit), (0x11, 0x22, 9));
        assert_eq!((wqe.sges[0].lkey, wqe.sges[0].addr, wqe.sges[0].length), (1, 2, 3));
    }

    #[test]
    fn the_last_payload_counts_even_if_it_is_nothing() {
        let mut mock = Mock::new(8, 2, 8);
        let qp = extended(&mut mock, ALL);
        // SAFETY: a live QP, called in the order the manual page has.
        unsafe {
            wr_start(qp);
            wr_send(qp);
            wr_set_sge(qp, 3, 1, 2);
            wr_set_inline_data(qp, ptr::null_mut(), 0);
            assert_eq!(wr_complete(qp), 0);
        }
        assert_eq!(mock.take_send().unwrap().hdr.num_sge, 0);
    }

    #[test]
    fn inline_data_is_copied_and_its_place_is_free_when_completed() {
        let mut mock = Mock::inline(2, 64);
        let qp = extended(&mut mock, ALL);
        for round in 0..10 {
            let (mut a, mut b) = ([round; 3], [round + 1; 4]);
            // SAFETY: as above.
            unsafe {
                wr_start(qp);
                (*qp).wr_flags = 0;
                (*qp).wr_id = 7;
                wr_send(qp);
                wr_set_inline_data(qp, a.as_mut_ptr().cast(), a.len());
                (*qp).wr_flags = IBV_SEND_SIGNALED;
                (*qp).wr_id = u64::from(round);
                wr_rdma_write(qp, 1, 2);
                let bufs = [(&mut a[..]), (&mut b[..])]
                    .map(|buf| ibv_data_buf { addr: buf.as_mut_ptr().cast(), length: buf.len() });
                wr_set_inline_data_list(qp, 2, bufs.as_ptr());
                assert_eq!(wr_complete(qp), 0);
                wr_start(qp);
                wr_send(qp);
                assert_eq!(wr_complete(qp), libc::ENOMEM);
            }
            let first = mock.take_send().unwrap();
            assert_eq!((first.sges[0].length, first.sges[0].lkey), (3, Mock::INLINE_LKEY));
            let second = mock.take_send().unwrap();
            assert_eq!(second.sges[0].length, 7);
            // SAFETY: inline memory of the mock.
            let bytes = unsafe { core::slice::from_raw_parts(second.sges[0].addr as *const u8, 7) };
            assert_eq!(bytes, [&a[..], &b[..]].concat());
            mock.put(send_cqe(second.hdr.wr_id));
            let mut wc = ibv_wc::default();
            // SAFETY: room for one.
            assert_eq!(unsafe { crate::fast::poll_cq::poll_cq(&mock.cq, 1, &mut wc) }, 1);
            assert_eq!(wc.wr_id, u64::from(round));
        }
    }

    #[test]
    fn what_a_type_cannot_do_is_not_possible() {
        let none = Switches::default();
        assert_eq!(possible_ops(IBV_QPT_UD, none), 0b1100);
        assert_eq!(possible_ops(IBV_QPT_RC, none), 0b111_1111);
        assert_eq!(possible_ops(IBV_QPT_RC, Switches::SEND_WITH_INV), 0b10_0111_1111);
        assert_eq!(possible_ops(IBV_QPT_RC, Switches::LOCAL_INV), 0b1111_1111);
    }
}
