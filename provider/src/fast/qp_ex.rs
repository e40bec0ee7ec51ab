//! `ibv_create_qp_ex`: which of the functions of [`crate::fast::wr`] a QP gets.

use crate::fast::wr::{any, not_offered, plain};
use crate::ring::work_queue::Kind;
use crate::support::error::Errno;
use crate::support::loaded::Loaded;
use crate::support::log::refuse;
use crate::support::switches::Switches;
use crate::verbs::qp::{self, Qp};
use pvrdma_ffi::pabi::VERBS_QP_EX;
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
        padding: 0,
    };
    let ops = (ex.comp_mask & IBV_QP_INIT_ATTR_SEND_OPS_FLAGS != 0).then_some(ex.send_ops_flags);
    // SAFETY: an open context.
    let switches = unsafe { crate::verbs::context::Context::of(context) }?.switches;
    let possible = possible_ops(ex.qp_type, switches);
    if let Some(ops) = ops
        && ops & !possible != 0
    {
        return Err(refuse(
            Errno::EOPNOTSUPP,
            format_args!("create_qp_ex: send_ops_flags {ops:#x}: a QP of this type can {possible:#x}"),
        ));
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

/// Fill the `ibv_qp_ex` part. Operations that were not asked for are there too, and fail. A plain reliable
/// connection has functions of its own, which do without what only other QPs need.
///
/// # Safety
/// `qp` must be a QP of ours that nobody else has yet; `comp_mask_at` must be where this libibverbs
/// has `verbs_qp.comp_mask`.
unsafe fn install(qp: *mut ibv_qp_ex, ops: u64, comp_mask_at: usize) {
    // SAFETY: promise of the caller.
    let is_plain = unsafe { Qp::of(qp.cast()) }.kind() == Kind::Rc;
    macro_rules! op {
        ($function:ident) => {
            Some(if is_plain { plain::$function } else { any::$function })
        };
        ($flag:expr, $function:ident) => {
            match ops & u64::from($flag) {
                0 => Some(not_offered::$function),
                _ => op!($function),
            }
        };
    }
    // SAFETY: promise of the caller.
    unsafe {
        (*qp).wr_rdma_write = op!(IBV_QP_EX_WITH_RDMA_WRITE, wr_rdma_write);
        (*qp).wr_rdma_write_imm = op!(IBV_QP_EX_WITH_RDMA_WRITE_WITH_IMM, wr_rdma_write_imm);
        (*qp).wr_send = op!(IBV_QP_EX_WITH_SEND, wr_send);
        (*qp).wr_send_imm = op!(IBV_QP_EX_WITH_SEND_WITH_IMM, wr_send_imm);
        (*qp).wr_rdma_read = op!(IBV_QP_EX_WITH_RDMA_READ, wr_rdma_read);
        (*qp).wr_atomic_cmp_swp = op!(IBV_QP_EX_WITH_ATOMIC_CMP_AND_SWP, wr_atomic_cmp_swp);
        (*qp).wr_atomic_fetch_add = op!(IBV_QP_EX_WITH_ATOMIC_FETCH_AND_ADD, wr_atomic_fetch_add);
        (*qp).wr_send_inv = op!(IBV_QP_EX_WITH_SEND_WITH_INV, wr_send_inv);
        (*qp).wr_local_inv = op!(IBV_QP_EX_WITH_LOCAL_INV, wr_local_inv);
        (*qp).wr_bind_mw = Some(not_offered::wr_bind_mw);
        (*qp).wr_send_tso = Some(not_offered::wr_send_tso);
        (*qp).wr_set_xrc_srqn = Some(not_offered::wr_set_xrc_srqn);
        (*qp).wr_set_ud_addr = Some(any::wr_set_ud_addr);
        (*qp).wr_set_inline_data = Some(any::wr_set_inline_data);
        (*qp).wr_set_inline_data_list = Some(any::wr_set_inline_data_list);
        (*qp).wr_set_sge = Some(plain::wr_set_sge);
        (*qp).wr_set_sge_list = Some(plain::wr_set_sge_list);
        (*qp).wr_start = op!(wr_start);
        (*qp).wr_complete = op!(wr_complete);
        (*qp).wr_abort = Some(any::wr_abort);
        // What later releases put behind these stays NULL: nobody may call what was not asked for,
        // and asking is refused.
        qp.byte_add(comp_mask_at).cast::<u32>().write(VERBS_QP_EX);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::testing::mock::{Mock, send_cqe};
    use crate::verbs::ah::{Ah, destroy_ah};
    use crate::verbs::pd::DomainRef;
    use core::ffi::{c_int, c_void};
    use core::ptr;
    use pvrdma_ffi::uapi::vmw_pvrdma::*;
    use zerocopy::FromBytes;

    /// What an application calls: the functions that the QP has.
    macro_rules! of_the_qp {
        ($($name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)?;)*) => {
            $(
                unsafe fn $name(qp: *mut ibv_qp_ex $(, $arg: $ty)*) $(-> $ret)? {
                    // SAFETY: promise of the caller.
                    unsafe { (*qp).$name.unwrap()(qp $(, $arg)*) }
                }
            )*
        };
    }

    of_the_qp! {
        wr_start();
        wr_complete() -> c_int;
        wr_abort();
        wr_send();
        wr_send_imm(imm_data: u32);
        wr_rdma_write(rkey: u32, remote_addr: u64);
        wr_atomic_cmp_swp(rkey: u32, remote_addr: u64, compare: u64, swap: u64);
        wr_set_sge(lkey: u32, addr: u64, length: u32);
        wr_set_sge_list(num_sge: usize, sg_list: *const ibv_sge);
        wr_set_inline_data(addr: *mut c_void, length: usize);
        wr_set_inline_data_list(num_buf: usize, buf_list: *const ibv_data_buf);
        wr_set_ud_addr(ah: *mut ibv_ah, remote_qpn: u32, remote_qkey: u32);
    }

    const ALL: u64 = 0x27f;
    const SEND: u32 = PVRDMA_UAR_QP_SEND | Mock::HANDLE as u32;

    /// The mock's QP as an extended one with operations `ops`.
    fn extended(mock: &mut Mock, ops: u64) -> *mut ibv_qp_ex {
        let qp = core::ptr::from_mut(&mut *mock.qp).cast();
        // SAFETY: a QP of ours; 360 is where one release has it, inside the QP's room.
        unsafe { install(qp, ops, 360) };
        qp
    }

    /// What no lock keeps a thread from doing to itself must not lead out of the ring.
    #[test]
    fn what_takes_the_lock_in_the_middle_of_a_batch_moves_nothing_out_of_the_ring() {
        let in_between: [fn(&Mock); 2] = [
            |mock| mock.qp.set_state(IBV_QPS_RTS),
            |mock| {
                let mut sge = ibv_sge::default();
                // SAFETY: all-zero integers and pointers are valid; a valid request.
                unsafe {
                    let mut wr: ibv_send_wr = core::mem::zeroed();
                    (wr.opcode, wr.sg_list, wr.num_sge) = (IBV_WR_SEND, &mut sge, 1);
                    for _ in 0..4 {
                        _ = crate::testing::mock::post_send(&mock.qp, &mut wr);
                    }
                }
            },
        ];
        for (what, start) in in_between.iter().flat_map(|what| (0..9).map(move |start| (what, start))) {
            let mut mock = Mock::single_threaded(8, 8);
            let qp = extended(&mut mock, ALL);
            // SAFETY: a live QP.
            unsafe {
                for _ in 0..start {
                    wr_start(qp);
                    wr_send(qp);
                    assert_eq!(wr_complete(qp), 0);
                    mock.take_send().unwrap();
                }
                wr_start(qp);
                wr_send(qp);
                what(&mock);
                let slots = mock.sq_ring.slots.addr()..mock.sq_ring.slots.addr() + 8 * mock.sq_ring.stride;
                for _ in 0..40 {
                    wr_send(qp);
                    let slot = (*mock.qp.building.get()).slot;
                    assert!(slot.is_null() || slots.contains(&slot.addr()), "{start} before");
                }
                assert_eq!(wr_complete(qp), libc::ENOMEM);
            }
        }
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
            assert_eq!(unsafe { crate::testing::mock::poll_cq(&mock.cq, 1, &mut wc) }, 1);
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
