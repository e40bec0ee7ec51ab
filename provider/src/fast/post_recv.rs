//! `ibv_post_recv` and `ibv_post_srq_recv`.

use crate::fast::wqe::fill_recv;
use crate::ring::barrier::to_device;
use crate::ring::counters::{Batch, Producer, Slots};
use crate::support::error::Errno;
use crate::verbs::qp::Qp;
use crate::verbs::srq::Srq;
use core::ptr;
use pvrdma_ffi::verbs::ibv_recv_wr;

/// A failed request of a list, and why.
type Bad = (Errno, *mut ibv_recv_wr);

/// Post a list of work requests. On failure the request that failed comes back; those before it
/// are posted.
///
/// # Safety
/// `first` must be NULL or a list of valid work requests, each with the SGL it says it has.
#[inline(always)]
pub unsafe fn post_recv(qp: &Qp, first: *mut ibv_recv_wr) -> Result<(), Bad> {
    if first.is_null() {
        return Err((Errno::EINVAL, ptr::null_mut()));
    }
    let mut rq = qp.rq.lock();
    if !rq.open {
        return Err((Errno::EINVAL, first));
    }
    let (slots, max_sge) = (rq.slots, rq.max_sge);
    // SAFETY: slots and ring belong together; the rest is the caller's promise.
    let (posted, result) = unsafe { post_list(&mut rq.producer, slots, max_sge, first) };
    if posted {
        to_device();
        rq.uar.ring_recv(rq.qp_handle.into());
    }
    result
}

/// The same for a shared receive queue, which is always open.
///
/// # Safety
/// As [`post_recv`].
#[inline(always)]
pub unsafe fn post_srq_recv(srq: &Srq, first: *mut ibv_recv_wr) -> Result<(), Bad> {
    if first.is_null() {
        return Err((Errno::EINVAL, ptr::null_mut()));
    }
    let mut queue = srq.queue.lock();
    let (slots, max_sge) = (queue.slots, queue.max_sge);
    // SAFETY: slots and ring belong together; the rest is the caller's promise.
    let (posted, result) = unsafe { post_list(&mut queue.producer, slots, max_sge, first) };
    if posted {
        to_device();
        queue.uar.ring_srq(queue.srqn);
    }
    result
}

/// Fill and publish. The first of the results says whether there is anything to ring for.
///
/// # Safety
/// `slots` must be those of the producer's ring, with room for `max_sge` entries each; `first`
/// must be a list of valid work requests.
#[inline(always)]
unsafe fn post_list(
    producer: &mut Producer,
    slots: Slots,
    max_sge: u8,
    first: *mut ibv_recv_wr,
) -> (bool, Result<(), Bad>) {
    let mut batch = producer.batch();
    let mut wr = first;
    let result = loop {
        // SAFETY: a valid request of the caller's list.
        let request = unsafe { &*wr };
        // SAFETY: as above.
        if let Err(errno) = unsafe { push(&mut batch, slots, request, max_sge.into()) } {
            break Err((errno, wr));
        }
        wr = request.next;
        if wr.is_null() {
            break Ok(());
        }
    };
    (batch.publish(), result)
}

/// # Safety
/// `wr.sg_list` must hold `wr.num_sge` entries; `slots` must be those of the batch's ring, with
/// room for `max_sge` entries each.
#[inline(always)]
unsafe fn push(batch: &mut Batch<'_>, slots: Slots, wr: &ibv_recv_wr, max_sge: u32) -> Result<(), Errno> {
    let Some(slot) = batch.reserve().map_err(|_| Errno::EIO)? else {
        return Err(Errno::ENOMEM);
    };
    // SAFETY: the slot is reserved; the rest is the caller's promise.
    unsafe { fill_recv(slots.at(slot), wr, max_sge) }?;
    batch.commit();
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::testing::mock::Mock;
    use pvrdma_ffi::uapi::vmw_pvrdma::*;
    use pvrdma_ffi::verbs::*;

    fn wr(wr_id: u64, sge: &mut ibv_sge) -> ibv_recv_wr {
        ibv_recv_wr { wr_id, next: ptr::null_mut(), sg_list: sge, num_sge: 1 }
    }

    fn post(mock: &Mock, wr: *mut ibv_recv_wr) -> Result<(), (Errno, *mut ibv_recv_wr)> {
        // SAFETY: NULL or a valid request.
        unsafe { post_recv(&mock.qp, wr) }
    }

    #[test]
    fn a_list_is_published_in_order_and_rung_once() {
        let mock = Mock::new(8, 2, 8);
        let (mut a, mut b) = (ibv_sge { addr: 1, length: 2, lkey: 3 }, ibv_sge::default());
        let mut second = wr(11, &mut b);
        let mut first = wr(10, &mut a);
        first.next = &mut second;
        assert_eq!(post(&mock, &mut first), Ok(()));
        let bell = mock.rung(PVRDMA_UAR_QP_OFFSET);
        assert_eq!(bell, PVRDMA_UAR_QP_RECV | u32::from(Mock::HANDLE));
        let wqe = mock.take_recv().unwrap();
        assert_eq!((wqe.hdr.wr_id, wqe.hdr.num_sge, wqe.hdr.total_len), (10, 1, 0));
        assert_eq!(wqe.sges.first().map(|s| (s.addr, s.length, s.lkey)), Some((1, 2, 3)));
        assert_eq!(mock.take_recv().unwrap().hdr.wr_id, 11);
        assert!(mock.take_recv().is_none());
    }

    #[test]
    fn receives_are_refused_in_reset_only() {
        let mock = Mock::new(8, 2, 8);
        let mut sge = ibv_sge::default();
        let mut wr = wr(0, &mut sge);
        mock.qp.set_state(IBV_QPS_RESET);
        assert_eq!(post(&mock, &mut wr), Err((Errno::EINVAL, &raw mut wr)));
        for state in [IBV_QPS_INIT, IBV_QPS_RTR, IBV_QPS_RTS, IBV_QPS_ERR] {
            mock.qp.set_state(state);
            assert_eq!(post(&mock, &mut wr), Ok(()), "state {state}");
        }
    }

    #[test]
    fn a_shared_queue_takes_a_list_and_rings_its_own_bell() {
        let mock = Mock::new(8, 2, 8);
        let (mut a, mut b) = (ibv_sge { addr: 1, length: 2, lkey: 3 }, ibv_sge::default());
        let mut second = wr(11, &mut b);
        let mut first = wr(10, &mut a);
        first.next = &mut second;
        // SAFETY: valid requests.
        assert_eq!(unsafe { post_srq_recv(&mock.srq, &mut first) }, Ok(()));
        assert_eq!(mock.rung(PVRDMA_UAR_SRQ_OFFSET), PVRDMA_UAR_SRQ_RECV | Mock::SRQN);
        assert_eq!(mock.rung(PVRDMA_UAR_QP_OFFSET), 0);
        let wqe = mock.take_srq_recv().unwrap();
        assert_eq!((wqe.hdr.wr_id, wqe.hdr.num_sge, wqe.hdr.total_len), (10, 1, 0));
        assert_eq!(wqe.sges.first().map(|s| (s.addr, s.length, s.lkey)), Some((1, 2, 3)));
        assert_eq!(mock.take_srq_recv().unwrap().hdr.wr_id, 11);
        assert!(mock.take_srq_recv().is_none());
    }

    #[test]
    fn a_shared_queue_refuses_what_does_not_fit() {
        let mock = Mock::new(8, 2, 8);
        let mut sge = ibv_sge::default();
        let mut request = wr(0, &mut sge);
        let post = |wr| {
            // SAFETY: NULL or a valid request.
            unsafe { post_srq_recv(&mock.srq, wr) }
        };
        for _ in 0..Mock::SRQ_WR {
            assert_eq!(post(&mut request), Ok(()));
        }
        assert_eq!(mock.rung(PVRDMA_UAR_SRQ_OFFSET), PVRDMA_UAR_SRQ_RECV | Mock::SRQN);
        assert_eq!(post(&mut request), Err((Errno::ENOMEM, &raw mut request)));
        // Nothing was posted, so nothing is rung.
        assert_eq!(mock.rung(PVRDMA_UAR_SRQ_OFFSET), 0);
        mock.take_srq_recv().unwrap();
        request.num_sge = -1;
        assert_eq!(post(&mut request), Err((Errno::EINVAL, &raw mut request)));
        assert_eq!(post(ptr::null_mut()), Err((Errno::EINVAL, ptr::null_mut())));
    }

    #[test]
    fn a_qp_with_a_shared_queue_takes_no_receives() {
        let mock = Mock::with_srq(8, 2, 8);
        let mut sge = ibv_sge::default();
        let mut wr = wr(0, &mut sge);
        for state in [IBV_QPS_RESET, IBV_QPS_INIT, IBV_QPS_RTR, IBV_QPS_RTS, IBV_QPS_ERR] {
            mock.qp.set_state(state);
            assert_eq!(post(&mock, &mut wr), Err((Errno::EINVAL, &raw mut wr)), "state {state}");
        }
    }

    #[test]
    fn a_full_queue_gives_enomem_and_no_list_einval() {
        let mock = Mock::new(1, 1, 8);
        let mut sge = ibv_sge::default();
        let mut wr = wr(0, &mut sge);
        assert_eq!(post(&mock, &mut wr), Ok(()));
        assert_eq!(post(&mock, &mut wr), Err((Errno::ENOMEM, &raw mut wr)));
        assert_eq!(post(&mock, ptr::null_mut()), Err((Errno::EINVAL, ptr::null_mut())));
    }
}
