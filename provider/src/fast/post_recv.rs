//! `ibv_post_recv` and `ibv_post_srq_recv`: one queue's way, under two names. As in
//! [`crate::fast::post_send`] the hot loop leaves what is in its way.

use crate::fast::post::{Obstacle, failed, post, post_rest, wait_for};
use crate::fast::wqe::{fill_recv, fill_recv_fast};
use crate::ring::work_queue::WorkQueue;
use crate::support::lock::SpinLock;
use crate::verbs::qp::Qp;
use crate::verbs::srq::Srq;
use core::ffi::c_int;
use core::ptr;
use pvrdma_ffi::verbs::*;

/// As [`post`] from its beginning on, whatever is in the way.
///
/// # Safety
/// As [`post`]; `bad_wr` must be valid for a write.
#[inline(always)]
unsafe fn post_slowly(lock: &SpinLock<WorkQueue>, wr: *mut ibv_recv_wr, bad_wr: *mut *mut ibv_recv_wr) -> c_int {
    // SAFETY: promise of the caller.
    unsafe {
        if wr.is_null() {
            return failed(bad_wr, ptr::null_mut(), libc::EINVAL);
        }
        rest(lock, wr, bad_wr, wait_for(lock))
    }
}

/// As [`post`] from `wr` on.
///
/// # Safety
/// As [`post_rest`].
#[inline(always)]
unsafe fn rest(lock: &SpinLock<WorkQueue>, wr: *mut ibv_recv_wr, bad_wr: *mut *mut ibv_recv_wr, tail: u32) -> c_int {
    // SAFETY: promise of the caller; the slot has room for `max_sge` entries.
    unsafe { post_rest(lock, wr, bad_wr, tail, |slot, queue, wr| fill_recv(slot, wr, queue.max_sge)) }
}

/// The verb and what it leaves to others, for one kind of queue.
macro_rules! verb {
    ($(#[$doc:meta])* $verb:ident($object:ty) = $of:expr, $slowly:ident, $rest:ident) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// `queue` must be a live one of ours, `wr` NULL or a list of valid work requests, each with the SGL
        /// it says it has; `bad_wr` must be valid for a write.
        pub unsafe extern "C" fn $verb(
            queue: *mut $object,
            wr: *mut ibv_recv_wr,
            bad_wr: *mut *mut ibv_recv_wr,
        ) -> c_int {
            // SAFETY: promise of the caller.
            unsafe {
                match post($of(queue), wr, |slot, queue, wr| fill_recv_fast(slot, queue, wr)) {
                    Ok(()) => 0,
                    Err(Obstacle::AtStart) => $slowly(queue, wr, bad_wr),
                    Err(Obstacle::At(wr, tail)) => $rest(queue, wr, bad_wr, tail),
                }
            }
        }

        #[cold]
        #[inline(never)]
        unsafe extern "C" fn $slowly(
            queue: *mut $object,
            wr: *mut ibv_recv_wr,
            bad_wr: *mut *mut ibv_recv_wr,
        ) -> c_int {
            // SAFETY: promise of the caller.
            unsafe { post_slowly(&*$of(queue), wr, bad_wr) }
        }

        #[inline(never)]
        unsafe extern "C" fn $rest(
            queue: *mut $object,
            wr: *mut ibv_recv_wr,
            bad_wr: *mut *mut ibv_recv_wr,
            tail: u32,
        ) -> c_int {
            // SAFETY: promise of the caller.
            unsafe { rest(&*$of(queue), wr, bad_wr, tail) }
        }
    };
}

verb! {
    /// `post_recv`. On failure the request that failed comes back; those before it are posted.
    post_recv(ibv_qp) = |qp: *mut ibv_qp| &raw const (*qp.cast::<Qp>()).rq, post_recv_slowly, post_recv_rest
}

verb! {
    /// `post_srq_recv`: the same for a shared receive queue, which is always open.
    post_srq_recv(ibv_srq) =
        |srq: *mut ibv_srq| &raw const (*srq.cast::<Srq>()).queue, post_srq_recv_slowly, post_srq_recv_rest
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::support::error::Errno;
    use crate::testing::mock::{Mock, post_recv, post_srq_recv};
    use pvrdma_ffi::uapi::vmw_pvrdma::*;

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
    fn an_sgl_of_any_length_up_to_the_longest_arrives_whole() {
        let mock = Mock::new(8, 7, 8);
        let mut sges: Vec<_> =
            (1..=8).map(|n| ibv_sge { addr: n, length: 10 * n as u32, lkey: 100 + n as u32 }).collect();
        for count in 0..=8usize {
            let first = sges.as_mut_ptr();
            let mut last = ibv_recv_wr { wr_id: 2, next: ptr::null_mut(), sg_list: first, num_sge: 1 };
            let mut middle = ibv_recv_wr { wr_id: 1, next: &mut last, sg_list: first, num_sge: count as i32 };
            let mut head = ibv_recv_wr { wr_id: 0, next: &mut middle, sg_list: first, num_sge: 1 };
            let expected = if count > 7 { Err((Errno::EINVAL, &raw mut middle)) } else { Ok(()) };
            assert_eq!(post(&mock, &mut head), expected, "{count} entries");
            assert_eq!(mock.take_recv().unwrap().sges.len(), 1);
            if count <= 7 {
                let wqe = mock.take_recv().unwrap();
                let seen: Vec<_> = wqe.sges.iter().map(|sge| (sge.addr, sge.length, sge.lkey)).collect();
                let posted: Vec<_> = sges.iter().take(count).map(|sge| (sge.addr, sge.length, sge.lkey)).collect();
                assert_eq!(seen, posted);
                assert_eq!(mock.take_recv().unwrap().hdr.wr_id, 2);
            }
            assert!(mock.take_recv().is_none());
        }
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
