//! `ibv_post_send`.

use crate::barrier::to_device;
use crate::error::Errno;
use crate::qp::Qp;
use crate::ring::{Batch, Slots};
use crate::wqe::fill_send;
use core::ptr;
use pvrdma_ffi::verbs::ibv_send_wr;

/// Post a list of work requests. On failure the request that failed comes back; those before it
/// are posted.
///
/// # Safety
/// `first` must be NULL or a list of valid work requests, each with the SGL it says it has.
#[inline(always)]
pub unsafe fn post_send(qp: &Qp, first: *mut ibv_send_wr) -> Result<(), (Errno, *mut ibv_send_wr)> {
    if first.is_null() {
        return Err((Errno::EINVAL, ptr::null_mut()));
    }
    let mut sq = qp.sq.lock();
    if !sq.open {
        return Err((Errno::EINVAL, first));
    }
    let (slots, max_sge) = (sq.slots, u32::from(sq.max_sge));
    let mut batch = sq.producer.batch();
    let mut wr = first;
    let result = loop {
        // SAFETY: a valid request of the caller's list.
        let request = unsafe { &*wr };
        // SAFETY: as above.
        if let Err(errno) = unsafe { push(&mut batch, slots, request, max_sge) } {
            break Err((errno, wr));
        }
        wr = request.next;
        if wr.is_null() {
            break Ok(());
        }
    };
    if batch.publish() {
        to_device();
        sq.uar.ring_send(sq.qp_handle.into());
    }
    result
}

/// # Safety
/// `wr.sg_list` must hold `wr.num_sge` entries; `slots` must be those of the batch's ring, with
/// room for `max_sge` entries each.
#[inline(always)]
unsafe fn push(batch: &mut Batch<'_>, slots: Slots, wr: &ibv_send_wr, max_sge: u32) -> Result<(), Errno> {
    let Some(slot) = batch.reserve().map_err(|_| Errno::EINVAL)? else {
        return Err(Errno::ENOMEM);
    };
    // SAFETY: the slot is reserved; the rest is the caller's promise.
    unsafe { fill_send(slots.at(slot), wr, max_sge) }?;
    batch.commit();
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::mock::Mock;
    use pvrdma_ffi::uapi::vmw_pvrdma::*;
    use pvrdma_ffi::verbs::*;

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
        unsafe { post_send(&mock.qp, first) }.map_err(|(errno, wr)| {
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
    fn too_many_sges_are_refused() {
        let mock = Mock::new(8, 2, 8);
        let mut sge = ibv_sge::default();
        let mut wrs = list(1, &mut sge);
        wrs[0].num_sge = 3;
        assert_eq!(post(&mock, &mut wrs), Err((Errno::EINVAL, 0)));
        assert_eq!(mock.rung(PVRDMA_UAR_QP_OFFSET), 0);
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
