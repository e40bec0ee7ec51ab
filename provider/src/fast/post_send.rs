//! `ibv_post_send`.
//!
//! [`post_send`] is the way nearly every request takes: to a reliable connection. Queues of another kind have
//! hot loops of their own behind it.

use crate::fast::post::{Obstacle, failed, post, post_rest, wait_for};
use crate::fast::wqe::{fill_extras, fill_inline_fast, fill_rc, fill_rc_fast, fill_ud, fill_ud_fast};
use crate::ring::work_queue::{Kind, WorkQueue};
use crate::support::lock::SpinLock;
use crate::verbs::qp::Qp;
use core::ffi::c_int;
use core::ptr;
use pvrdma_ffi::verbs::*;

#[inline(always)]
unsafe fn sq_of(qp: *mut ibv_qp) -> *const SpinLock<WorkQueue> {
    // SAFETY: `qp` is a live QP of ours: the ibv_qp is at its front.
    unsafe { &raw const (*qp.cast::<Qp>()).sq }
}

/// `post_send`. On failure the request that failed comes back; those before it are posted.
///
/// # Safety
/// `qp` must be a live QP of ours, `wr` NULL or a list of valid work requests, each with the SGL it says
/// it has and, on a UD QP, NULL or a live AH of ours; `bad_wr` must be valid for a write.
pub unsafe extern "C" fn post_send(qp: *mut ibv_qp, wr: *mut ibv_send_wr, bad_wr: *mut *mut ibv_send_wr) -> c_int {
    // SAFETY: promise of the caller; the kind of a queue never changes.
    unsafe {
        let sq = sq_of(qp);
        if (*(*sq).unlocked()).kind != Kind::Rc {
            return post_send_other(qp, wr, bad_wr);
        }
        match post(sq, wr, |slot, queue, wr| fill_rc_fast(slot, queue, wr)) {
            Ok(()) => 0,
            Err(Obstacle::AtStart) => post_send_slowly(qp, wr, bad_wr),
            Err(Obstacle::At(wr, tail)) => post_send_rest(qp, wr, bad_wr, tail),
        }
    }
}

/// [`post_send`] to a queue of another kind. A function of its own, so that theirs may save registers.
#[inline(never)]
unsafe extern "C" fn post_send_other(qp: *mut ibv_qp, wr: *mut ibv_send_wr, bad_wr: *mut *mut ibv_send_wr) -> c_int {
    // SAFETY: as in `post_send`.
    unsafe {
        // One comparison after the other, with memory: a match would load the kind first.
        let queue = (*sq_of(qp)).unlocked();
        if (*queue).kind == Kind::Inline {
            return post_send_inline(qp, wr, bad_wr);
        }
        if (*queue).kind == Kind::Ud {
            return post_send_ud(qp, wr, bad_wr);
        }
        post_send_extras(qp, wr, bad_wr)
    }
}

/// [`post_send`] of datagrams.
#[inline(never)]
unsafe extern "C" fn post_send_ud(qp: *mut ibv_qp, wr: *mut ibv_send_wr, bad_wr: *mut *mut ibv_send_wr) -> c_int {
    // SAFETY: as in `post_send`.
    unsafe {
        let sq = sq_of(qp);
        match post(sq, wr, |slot, queue, wr| fill_ud_fast(slot, queue, wr)) {
            Ok(()) => 0,
            Err(Obstacle::AtStart) => post_send_slowly(qp, wr, bad_wr),
            Err(Obstacle::At(wr, tail)) => post_send_rest(qp, wr, bad_wr, tail),
        }
    }
}

/// [`post_send`] to a reliable connection with room for inline data.
#[inline(never)]
unsafe extern "C" fn post_send_inline(qp: *mut ibv_qp, wr: *mut ibv_send_wr, bad_wr: *mut *mut ibv_send_wr) -> c_int {
    // SAFETY: as in `post_send`.
    unsafe {
        let sq = sq_of(qp);
        // Such a queue has it: `Qp::new` made it of that kind for it.
        let inline = (*qp.cast::<Qp>()).extras.inline.as_ref().unwrap_unchecked();
        match post(sq, wr, |slot, queue, wr| fill_inline_fast(slot, queue, wr, inline)) {
            Ok(()) => 0,
            Err(Obstacle::AtStart) => post_send_slowly(qp, wr, bad_wr),
            Err(Obstacle::At(wr, tail)) => post_send_rest(qp, wr, bad_wr, tail),
        }
    }
}

/// [`post_send`] to a queue that has more than the plain things.
#[inline(never)]
unsafe extern "C" fn post_send_extras(qp: *mut ibv_qp, wr: *mut ibv_send_wr, bad_wr: *mut *mut ibv_send_wr) -> c_int {
    // SAFETY: as in `post_send`.
    unsafe {
        let sq = sq_of(qp);
        if wr.is_null() || !(*sq).enter() {
            return post_send_slowly(qp, wr, bad_wr);
        }
        post_send_rest(qp, wr, bad_wr, (*(*sq).data()).tail())
    }
}

/// [`post_send`] from its beginning on, when there is no list or the lock is taken.
#[cold]
#[inline(never)]
unsafe extern "C" fn post_send_slowly(qp: *mut ibv_qp, wr: *mut ibv_send_wr, bad_wr: *mut *mut ibv_send_wr) -> c_int {
    // SAFETY: promise of the caller.
    unsafe {
        if wr.is_null() {
            return failed(bad_wr, ptr::null_mut(), libc::EINVAL);
        }
        let tail = wait_for(&*sq_of(qp));
        post_send_rest(qp, wr, bad_wr, tail)
    }
}

/// [`post_send`] from `wr` on, whatever is in the way. The lock is held, and requests before it are filled
/// up to the counter `tail`.
#[inline(never)]
unsafe extern "C" fn post_send_rest(
    qp: *mut ibv_qp,
    wr: *mut ibv_send_wr,
    bad_wr: *mut *mut ibv_send_wr,
    tail: u32,
) -> c_int {
    // SAFETY: promise of the caller.
    unsafe {
        let own = Qp::of(qp);
        match own.kind() {
            Kind::Rc => {
                post_rest(&own.sq, wr, bad_wr, tail, |slot, queue, wr| fill_rc(slot, wr, queue.max_sge, queue.always))
            }
            Kind::Ud => {
                post_rest(&own.sq, wr, bad_wr, tail, |slot, queue, wr| fill_ud(slot, wr, queue.max_sge, queue.always))
            }
            Kind::Inline | Kind::Extras => post_rest(&own.sq, wr, bad_wr, tail, |slot, queue, wr| {
                fill_extras(slot, wr, queue.max_sge, queue.always, &own.extras)
            }),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::support::error::Errno;
    use crate::support::switches::Switches;
    use crate::testing::mock::{Mock, post_send, send_cqe};
    use crate::verbs::ah::Ah;
    use crate::verbs::pd::DomainRef;
    use pvrdma_ffi::uapi::vmw_pvrdma::*;
    use zerocopy::FromBytes;

    /// A list of SEND requests with `wr_id` 0, 1, ... and one SGE each.
    fn list(count: usize, sge: &mut ibv_sge) -> Vec<ibv_send_wr> {
        // SAFETY: all-zero integers and pointers are valid.
        let mut wrs = vec![unsafe { core::mem::zeroed::<ibv_send_wr>() }; count];
        for i in 0..count {
            wrs[i].wr_id = i as u64;
            wrs[i].opcode = IBV_WR_SEND;
            wrs[i].sg_list = sge;
            wrs[i].num_sge = 1;
            if i > 0 {
                wrs[i - 1].next = &raw mut wrs[i];
            }
        }
        wrs
    }

    fn post(mock: &Mock, wrs: &mut [ibv_send_wr]) -> Result<(), (Errno, u64)> {
        let first = wrs.first_mut().map_or(ptr::null_mut(), ptr::from_mut);
        // SAFETY: a valid list, see `list`.
        let result = unsafe { post_send(&mock.qp, first) };
        result.map_err(|(errno, wr)| {
            // SAFETY: the failed request is one of the list.
            (errno, if wr.is_null() { u64::MAX } else { unsafe { (*wr).wr_id } })
        })
    }

    const SEND: u32 = PVRDMA_UAR_QP_SEND | Mock::HANDLE as u32;

    #[test]
    fn a_list_is_published_in_order_and_rung_once() {
        let mock = Mock::new(8, 2, 8);
        let mut sge = ibv_sge { addr: 1, length: 2, lkey: 3 };
        assert_eq!(post(&mock, &mut list(3, &mut sge)), Ok(()));
        assert_eq!(mock.rung(PVRDMA_UAR_QP_OFFSET), SEND);
        assert_eq!(mock.rung(PVRDMA_UAR_CQ_OFFSET), 0);
        for wr_id in 0..3 {
            let wqe = mock.take_send().unwrap();
            assert_eq!((wqe.hdr.wr_id, wqe.hdr.opcode), (wr_id, PVRDMA_WR_SEND));
            assert_eq!((wqe.sges[0].addr, wqe.sges[0].length, wqe.sges[0].lkey), (1, 2, 3));
        }
        assert!(mock.take_send().is_none());
    }

    #[test]
    fn a_full_queue_gives_enomem_and_keeps_what_fitted() {
        let mock = Mock::new(4, 1, 8);
        let mut sge = ibv_sge::default();
        let mut wrs = list(6, &mut sge);
        assert_eq!(post(&mock, &mut wrs), Err((Errno::ENOMEM, 4)));
        assert_eq!(mock.rung(PVRDMA_UAR_QP_OFFSET), SEND);
        // Nothing more fits, and the device is not bothered with that.
        assert_eq!(post(&mock, &mut wrs), Err((Errno::ENOMEM, 0)));
        assert_eq!(mock.rung(PVRDMA_UAR_QP_OFFSET), 0);
        mock.drain();
        assert_eq!(post(&mock, &mut list(4, &mut sge)), Ok(()));
    }

    #[test]
    fn a_bad_request_stops_the_list_after_those_before_it() {
        let mock = Mock::new(8, 2, 8);
        let mut sge = ibv_sge::default();
        let mut wrs = list(3, &mut sge);
        wrs[1].opcode = IBV_WR_LOCAL_INV;
        assert_eq!(post(&mock, &mut wrs), Err((Errno::EINVAL, 1)));
        assert_eq!(mock.rung(PVRDMA_UAR_QP_OFFSET), SEND);
        assert_eq!(mock.take_send().unwrap().hdr.wr_id, 0);
        assert!(mock.take_send().is_none());
    }

    #[test]
    fn an_sgl_of_any_length_up_to_the_longest_arrives_whole() {
        for ud in [false, true] {
            let mock = if ud { Mock::ud(8, 7, 8) } else { Mock::new(8, 7, 8) };
            let ah = ah();
            let mut sges: Vec<_> =
                (1..=8).map(|n| ibv_sge { addr: n, length: 10 * n as u32, lkey: 100 + n as u32 }).collect();
            // A list of three, the middle one with `count` entries: what comes behind a rare form is right too.
            for count in 0..=8usize {
                let mut wrs = list(3, sges.first_mut().unwrap());
                wrs[1].num_sge = count as c_int;
                for wr in &mut wrs {
                    wr.wr.ud = ibv_send_wr_ud { ah, remote_qpn: 1, remote_qkey: 2 };
                }
                let expected = if count > 7 { Err((Errno::EINVAL, 1)) } else { Ok(()) };
                assert_eq!(post(&mock, &mut wrs), expected, "{count} entries");
                assert_eq!(mock.take_send().unwrap().sges.len(), 1);
                if count <= 7 {
                    let wqe = mock.take_send().unwrap();
                    let seen: Vec<_> = wqe.sges.iter().map(|sge| (sge.addr, sge.length, sge.lkey)).collect();
                    let posted: Vec<_> = sges[..count].iter().map(|sge| (sge.addr, sge.length, sge.lkey)).collect();
                    assert_eq!((seen, wqe.hdr.num_sge as usize), (posted, count));
                    assert_eq!(mock.take_send().unwrap().sges.len(), 1);
                }
                assert!(mock.take_send().is_none());
            }
            // SAFETY: made above.
            unsafe { crate::verbs::ah::destroy_ah(ah) };
        }
    }

    #[test]
    fn every_opcode_of_a_connection_goes_out_alone_and_behind_others() {
        let mock = Mock::new(8, 2, 8);
        let mut sge = ibv_sge { addr: 1, length: 8, lkey: 3 };
        for opcode in IBV_WR_RDMA_WRITE..=IBV_WR_ATOMIC_FETCH_AND_ADD {
            let mut wrs = list(3, &mut sge);
            wrs[1].opcode = opcode;
            wrs[1].wr.atomic = ibv_send_wr_atomic { remote_addr: 4, compare_add: 5, swap: 6, rkey: 7 };
            if opcode <= IBV_WR_RDMA_READ {
                wrs[1].wr.rdma = ibv_send_wr_rdma { remote_addr: 4, rkey: 7 };
            }
            assert_eq!(post(&mock, &mut wrs), Ok(()));
            let opcodes: Vec<_> = (0..3).map(|_| mock.take_send().unwrap()).collect();
            let words = |wqe: &crate::testing::mock::SendWqe| {
                let words = wqe.hdr.wr.chunks(8).map(|word| u64::from_le_bytes(word.try_into().unwrap()));
                words.collect::<Vec<_>>()
            };
            let expected: &[u64] = match opcode {
                IBV_WR_SEND | IBV_WR_SEND_WITH_IMM => &[0; 6],
                IBV_WR_RDMA_WRITE | IBV_WR_RDMA_WRITE_WITH_IMM | IBV_WR_RDMA_READ => &[4, 7, 0, 0, 0, 0],
                _ => &[4, 5, 6, 7, 0, 0],
            };
            assert_eq!((opcodes[1].hdr.opcode, words(&opcodes[1]).as_slice()), (opcode, expected));
            // Nothing of it is left for the next one in the same slot.
            assert_eq!((opcodes[0].hdr.opcode, words(&opcodes[0])), (IBV_WR_SEND, vec![0; 6]));
            assert_eq!((opcodes[2].hdr.opcode, words(&opcodes[2])), (IBV_WR_SEND, vec![0; 6]));
        }
    }

    #[test]
    fn too_many_sges_are_refused() {
        let mock = Mock::new(8, 2, 8);
        let mut sge = ibv_sge::default();
        let mut wrs = list(1, &mut sge);
        wrs[0].num_sge = 3;
        assert_eq!(post(&mock, &mut wrs), Err((Errno::EINVAL, 0)));
        assert_eq!(mock.rung(PVRDMA_UAR_QP_OFFSET), 0);
    }

    /// A datagram to an AH.
    fn datagram(ah: *mut ibv_ah, sge: &mut ibv_sge) -> ibv_send_wr {
        let mut wr = list(1, sge).remove(0);
        wr.wr.ud = ibv_send_wr_ud { ah, remote_qpn: 0x11, remote_qkey: 0x8001_0000 };
        wr
    }

    fn ah() -> *mut ibv_ah {
        let av = pvrdma_av { port_pd: 0x0100_0007, hop_limit: 9, dmac: [1, 2, 3, 4, 5, 6], ..Default::default() };
        Ah::new(av, DomainRef::NONE).into_verbs()
    }

    #[test]
    fn a_datagram_carries_its_address() {
        let mock = Mock::ud(8, 2, 8);
        let mut sge = ibv_sge { addr: 1, length: 2, lkey: 3 };
        let ah = ah();
        for (opcode, device) in [(IBV_WR_SEND, PVRDMA_WR_SEND), (IBV_WR_SEND_WITH_IMM, PVRDMA_WR_SEND_WITH_IMM)] {
            let wr = ibv_send_wr { opcode, imm_data: 5, ..datagram(ah, &mut sge) };
            assert_eq!(post(&mock, &mut [wr]), Ok(()));
            assert_eq!(mock.rung(PVRDMA_UAR_QP_OFFSET), SEND);
            let wqe = mock.take_send().unwrap();
            assert_eq!((wqe.hdr.opcode, wqe.hdr.ex, wqe.hdr.num_sge), (device, 5, 1));
            assert_eq!((wqe.sges[0].addr, wqe.sges[0].length, wqe.sges[0].lkey), (1, 2, 3));
            let ud = pvrdma_wr_ud::read_from_bytes(&wqe.hdr.wr).unwrap();
            assert_eq!((ud.remote_qpn, ud.remote_qkey), (0x11, 0x8001_0000));
            assert_eq!((ud.av.port_pd, ud.av.hop_limit, ud.av.dmac), (0x0100_0007, 9, [1, 2, 3, 4, 5, 6]));
        }
        // SAFETY: made above.
        unsafe { crate::verbs::ah::destroy_ah(ah) };
    }

    #[test]
    fn a_datagram_without_address_or_with_a_connections_opcode_is_refused() {
        let mock = Mock::ud(8, 2, 8);
        let mut sge = ibv_sge::default();
        assert_eq!(post(&mock, &mut [datagram(ptr::null_mut(), &mut sge)]), Err((Errno::EINVAL, 0)));
        let ah = ah();
        for opcode in (0..20).filter(|opcode| ![IBV_WR_SEND, IBV_WR_SEND_WITH_IMM].contains(opcode)) {
            let wr = ibv_send_wr { opcode, ..datagram(ah, &mut sge) };
            assert_eq!(post(&mock, &mut [wr]), Err((Errno::EINVAL, 0)), "opcode {opcode}");
        }
        let inline = ibv_send_wr { send_flags: IBV_SEND_INLINE, ..datagram(ah, &mut sge) };
        assert_eq!(post(&mock, &mut [inline]), Err((Errno::EINVAL, 0)));
        assert_eq!(mock.rung(PVRDMA_UAR_QP_OFFSET), 0);
        // SAFETY: made above.
        unsafe { crate::verbs::ah::destroy_ah(ah) };
    }

    #[test]
    fn invalidating_requests_go_out_only_when_switched_on() {
        let mut sge = ibv_sge::default();
        let pairs = [
            (IBV_WR_SEND_WITH_INV, PVRDMA_WR_SEND_WITH_INV, Switches::SEND_WITH_INV),
            (IBV_WR_LOCAL_INV, PVRDMA_WR_LOCAL_INV, Switches::LOCAL_INV),
        ];
        for (opcode, device, switch) in pairs {
            let mut wrs = list(1, &mut sge);
            wrs[0].opcode = opcode;
            wrs[0].imm_data = 0x99;
            for (_, _, other) in pairs.iter().filter(|(_, _, other)| *other != switch) {
                assert_eq!(post(&Mock::switched(*other), &mut wrs), Err((Errno::EINVAL, 0)));
            }
            assert_eq!(post(&Mock::new(8, 1, 8), &mut wrs), Err((Errno::EINVAL, 0)));
            let mock = Mock::switched(switch);
            assert_eq!(post(&mock, &mut wrs), Ok(()));
            let wqe = mock.take_send().unwrap();
            assert_eq!((wqe.hdr.opcode, wqe.hdr.ex, wqe.hdr.wr), (device, 0x99, [0; 48]));
            // Everything else works as before.
            assert_eq!(post(&mock, &mut list(1, &mut sge)), Ok(()));
            assert_eq!(mock.take_send().unwrap().hdr.opcode, PVRDMA_WR_SEND);
        }
    }

    #[test]
    fn a_qp_that_signals_all_says_so_in_each_request() {
        let mock = Mock::signaling_all();
        let mut sge = ibv_sge::default();
        assert_eq!(post(&mock, &mut list(2, &mut sge)), Ok(()));
        for _ in 0..2 {
            assert_eq!(mock.take_send().unwrap().hdr.send_flags, PVRDMA_SEND_SIGNALED);
        }
    }

    fn bytes(sge: &pvrdma_sge) -> Vec<u8> {
        // SAFETY: inline memory of the mock.
        unsafe { core::slice::from_raw_parts(sge.addr as *const u8, sge.length as usize) }.to_vec()
    }

    fn sge_of(data: &[u8]) -> ibv_sge {
        // A key nobody has: inline data needs none.
        ibv_sge { addr: data.as_ptr() as u64, length: data.len() as u32, lkey: 0xdead }
    }

    #[test]
    fn inline_data_is_copied_and_the_source_is_free_at_once() {
        for mock in [Mock::inline(4, 64), Mock::inline_ud(4, 64)] {
            let mut data = *b"0123456789";
            let mut sges = [sge_of(&data[..4]), sge_of(&data[4..])];
            let ah = ah();
            let mut wr = ibv_send_wr { num_sge: 2, send_flags: IBV_SEND_INLINE, ..list(1, &mut sges[0])[0] };
            if mock.qp.extras.ud {
                wr.wr.ud = ibv_send_wr_ud { ah, remote_qpn: 1, remote_qkey: 2 };
            }
            assert_eq!(post(&mock, &mut [wr]), Ok(()));
            data.fill(0);
            let wqe = mock.take_send().unwrap();
            assert_eq!((wqe.hdr.num_sge, wqe.hdr.send_flags), (1, 0));
            assert_eq!(wqe.sges[0].lkey, Mock::INLINE_LKEY);
            assert_eq!(bytes(&wqe.sges[0]), b"0123456789");
            // SAFETY: made above.
            unsafe { crate::verbs::ah::destroy_ah(ah) };
        }
    }

    #[test]
    fn inline_places_are_free_when_the_send_has_completed_and_not_before() {
        let mock = Mock::inline(2, 64);
        let data = [7; 64];
        let mut sge = sge_of(&data);
        let mut one = |wr_id, signaled: bool| {
            let send_flags = IBV_SEND_INLINE | (u32::from(signaled) * IBV_SEND_SIGNALED);
            post(&mock, &mut [ibv_send_wr { wr_id, send_flags, ..list(1, &mut sge)[0] }])
        };
        assert_eq!(one(10, false), Ok(()));
        assert_eq!(one(11, true), Ok(()));
        let cookies = [mock.take_send().unwrap().hdr.wr_id, mock.take_send().unwrap().hdr.wr_id];
        // The ring has room, the inline memory has not.
        assert_eq!(one(12, true), Err((Errno::ENOMEM, 12)));
        mock.put(send_cqe(cookies[1]));
        assert_eq!(one(12, true), Err((Errno::ENOMEM, 12)));
        assert_eq!(poll(&mock), [11]);
        // Both, although only the second was signaled.
        assert_eq!(one(12, true), Ok(()));
        assert_eq!(one(13, true), Ok(()));
        assert_eq!(one(14, true), Err((Errno::ENOMEM, 14)));
    }

    #[test]
    fn a_device_that_completes_what_was_not_signaled_frees_places_and_tells_nobody() {
        let mock = Mock::inline(2, 64);
        let mut sge = sge_of(&[1; 8]);
        for round in 0..10 {
            let mut wrs = list(2, &mut sge);
            wrs[0].send_flags = IBV_SEND_INLINE;
            wrs[1].send_flags = IBV_SEND_INLINE | IBV_SEND_SIGNALED;
            wrs[1].wr_id = round;
            assert_eq!(post(&mock, &mut wrs), Ok(()));
            for _ in 0..2 {
                mock.put(send_cqe(mock.take_send().unwrap().hdr.wr_id));
            }
            assert_eq!(poll(&mock), [round]);
        }
    }

    #[test]
    fn a_failed_send_completes_whether_signaled_or_not() {
        let mock = Mock::inline(2, 64);
        let mut sge = sge_of(&[1; 8]);
        assert_eq!(post(&mock, &mut list(1, &mut sge)), Ok(()));
        let cookie = mock.take_send().unwrap().hdr.wr_id;
        mock.put(pvrdma_cqe { status: PVRDMA_WC_WR_FLUSH_ERR, ..send_cqe(cookie) });
        assert_eq!(poll(&mock), [0]);
    }

    #[test]
    fn receives_of_such_a_qp_keep_their_wr_id() {
        let mock = Mock::inline(2, 64);
        mock.put(pvrdma_cqe { opcode: PVRDMA_WC_RECV, ..send_cqe(5) });
        // A failed one need not have its opcode set.
        mock.put(pvrdma_cqe { status: PVRDMA_WC_WR_FLUSH_ERR, ..send_cqe(u64::MAX) });
        assert_eq!(poll(&mock), [5, u64::MAX]);
    }

    #[test]
    fn inline_data_that_does_not_fit_or_cannot_be_is_refused() {
        let mock = Mock::inline(4, 64);
        let data = [1; 65];
        let mut sge = sge_of(&data);
        let mut wrs = list(1, &mut sge);
        wrs[0].send_flags = IBV_SEND_INLINE;
        assert_eq!(post(&mock, &mut wrs), Err((Errno::EINVAL, 0)));
        wrs[0].opcode = IBV_WR_RDMA_READ;
        let mut short = sge_of(&data[..8]);
        wrs[0].sg_list = &mut short;
        assert_eq!(post(&mock, &mut wrs), Err((Errno::EINVAL, 0)));
        wrs[0].opcode = IBV_WR_RDMA_WRITE;
        assert_eq!(post(&mock, &mut wrs), Ok(()));
        // Nothing at all is fine too.
        wrs[0].num_sge = 0;
        assert_eq!(post(&mock, &mut wrs), Ok(()));
        mock.take_send().unwrap();
        assert_eq!(mock.take_send().unwrap().hdr.num_sge, 0);
    }

    fn poll(mock: &Mock) -> Vec<u64> {
        let mut wc = [ibv_wc::default(); 8];
        // SAFETY: room for eight.
        let polled = unsafe { crate::testing::mock::poll_cq(&mock.cq, 8, wc.as_mut_ptr()) };
        assert!(polled >= 0 && wc[..polled as usize].iter().all(|wc| wc.qp_num == Mock::QPN), "{polled} {wc:?}");
        wc[..polled as usize].iter().map(|wc| wc.wr_id).collect()
    }

    #[test]
    fn no_list_is_refused() {
        let mock = Mock::new(8, 2, 8);
        assert_eq!(post(&mock, &mut []), Err((Errno::EINVAL, u64::MAX)));
    }

    #[test]
    fn sends_are_refused_below_rts_and_accepted_from_there_on() {
        let mock = Mock::new(8, 2, 8);
        let mut sge = ibv_sge::default();
        for state in [IBV_QPS_RESET, IBV_QPS_INIT, IBV_QPS_RTR] {
            mock.qp.set_state(state);
            assert_eq!(post(&mock, &mut list(1, &mut sge)), Err((Errno::EINVAL, 0)), "{state}");
        }
        for state in [IBV_QPS_RTS, IBV_QPS_SQD, IBV_QPS_SQE, IBV_QPS_ERR] {
            mock.qp.set_state(state);
            assert_eq!(post(&mock, &mut list(1, &mut sge)), Ok(()), "{state}");
        }
    }

    #[test]
    fn threads_do_not_lose_each_others_requests() {
        let mock = Mock::new(4096, 1, 8);
        // Posting takes `&Qp` from any thread, as C does.
        struct Shared(*const Mock);
        // SAFETY: the queues are behind their locks.
        unsafe impl Sync for Shared {}
        let shared = Shared(&mock);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let shared = &shared;
                scope.spawn(move || {
                    for _ in 0..1000 {
                        let mut sge = ibv_sge::default();
                        // SAFETY: the mock outlives the scope.
                        assert_eq!(post(unsafe { &*shared.0 }, &mut list(1, &mut sge)), Ok(()));
                    }
                });
            }
        });
        assert_eq!(std::iter::from_fn(|| mock.take_send()).count(), 4000);
    }
}
