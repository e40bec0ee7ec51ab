//! `ibv_poll_cq`.

use crate::ring::counters::BadCounter;
use crate::ring::cqe::{Cqe, CqeHandle};
use crate::support::qp_nums::{self, LOGGED, QpNumTable};
use crate::support::send_log::{Logged, SendLog};
use crate::verbs::cq::{Cq, CqRing};
use core::ffi::c_int;
use pvrdma_ffi::verbs::ibv_wc;
use std::sync::Arc;

/// Take up to `num_entries` completions. Returns how many, or a negative errno. Fewer than asked
/// for means that the CQ is empty.
///
/// # Safety
/// `wc` must be valid for writes of `num_entries` completions.
#[inline(always)]
pub unsafe fn poll_cq(cq: &Cq, num_entries: c_int, wc: *mut ibv_wc) -> c_int {
    let Ok(wanted @ 1..) = u32::try_from(num_entries) else {
        return 0;
    };
    let mut ring = cq.ring.lock();
    let ready = match ring.consumer.ready() {
        // The device may hold completions back until asked.
        Ok(0) => {
            // Most often nothing came of it: that is one comparison.
            if !cq.ring_poll(&mut ring) || ring.consumer.is_unchanged() {
                return 0;
            }
            match ring.consumer.ready() {
                Ok(ready) => ready,
                Err(BadCounter) => return BROKEN,
            }
        }
        Ok(ready) => ready,
        Err(BadCounter) => return BROKEN,
    };
    let qp_nums = cq.qp_nums.table();
    let count = wanted.min(ready);
    // SAFETY: `count` are ready, and `wc` has room for them (promise of the caller).
    let (strays, rest) = unsafe { take(&mut ring, qp_nums, count, wc) };
    if strays == 0 {
        return count as c_int;
    }
    // SAFETY: `strays` of the caller's places are still free, from `rest` on.
    let more = unsafe { fill_up(&mut ring, qp_nums, strays, rest) };
    (count - strays + more) as c_int
}

/// Translate the first `count` entries and give them back. Returns how many were strays, for which
/// nothing was written, and the place after the last completion written.
///
/// # Safety
/// `count` entries must be ready and `wc` valid for writes of as many completions.
#[inline(always)]
unsafe fn take(ring: &mut CqRing, qp_nums: &QpNumTable, count: u32, mut wc: *mut ibv_wc) -> (u32, *mut ibv_wc) {
    // A copy, so that it stays in a register across the stores to `wc`.
    let entries = ring.entries;
    let mut strays = 0;
    for slot in ring.consumer.slots(count) {
        // SAFETY: ready and not yet released.
        let cqe = unsafe { Cqe::new(entries.at(slot)) };
        let qp_num = qp_nums::qp_num(qp_nums, cqe.handle());
        // 1..LOGGED in one comparison: a plain QP.
        if qp_num.wrapping_sub(1) < LOGGED - 1 {
            // SAFETY: no more than `count` are written (promise of the caller).
            unsafe {
                cqe.write_to(wc, qp_num);
                wc = wc.add(1);
            }
        } else {
            // SAFETY: as above.
            match unsafe { take_logged(&ring.logs, cqe, qp_num, wc) } {
                // SAFETY: as above.
                true => wc = unsafe { wc.add(1) },
                false => strays += 1,
            }
        }
    }
    ring.release(count);
    (strays, wc)
}

/// Translate an entry of a QP with a log, or of none. False: nothing was written.
///
/// # Safety
/// `wc` must be valid for a write, `cqe` ready and not yet released.
#[cold]
#[inline(never)]
unsafe fn take_logged(logs: &[(CqeHandle, Arc<SendLog>)], cqe: Cqe, qp_num: u32, wc: *mut ibv_wc) -> bool {
    let Some((qp_num, wr_id)) = judge(logs, cqe, qp_num) else {
        return false;
    };
    // SAFETY: promise of the caller.
    unsafe {
        cqe.write_to(wc, qp_num);
        (*wc).wr_id = wr_id;
    }
    true
}

/// Number of the QP and `wr_id` of an entry, `qp_num` being what the table has for it. `None`: it is
/// not for the application. An entry without a QP is that of one being destroyed, or the device
/// erred: skipping it costs nobody anything, stopping at it would block every QP of this CQ for
/// ever.
#[inline(always)]
pub fn judge(logs: &[(CqeHandle, Arc<SendLog>)], cqe: Cqe, qp_num: u32) -> Option<(u32, u64)> {
    // Not in use, or [`qp_nums::LEAVING`].
    if qp_num & !LOGGED == 0 {
        return None;
    }
    let wr_id = cqe.wr_id();
    if qp_num & LOGGED == 0 || cqe.is_receive() {
        return Some((qp_num & !LOGGED, wr_id));
    }
    // No log: a receive that failed, whose opcode need not be set, in a CQ other than that of the
    // sends. No such request on its way: the same in one CQ.
    let logged = logs.iter().find(|(handle, _)| *handle == cqe.handle()).and_then(|(_, log)| log.completed(wr_id));
    match logged {
        None => Some((qp_num & !LOGGED, wr_id)),
        // Some devices complete what nobody asked to hear of.
        Some(Logged { signaled: false, .. }) if cqe.is_success() => None,
        Some(Logged { wr_id, .. }) => Some((qp_num & !LOGGED, wr_id)),
    }
}

/// Some entries were strays: fill their places with later ones, as long as there are any. Returns
/// how many. Not for ever: a device that puts strays faster than we take them must not hold the
/// application in here.
///
/// # Safety
/// `wc` must be valid for writes of `wanted` completions.
#[cold]
#[inline(never)]
unsafe fn fill_up(ring: &mut CqRing, qp_nums: &QpNumTable, wanted: u32, mut wc: *mut ibv_wc) -> u32 {
    let mut missing = wanted;
    let mut patience = ring.consumer.size().get();
    while missing > 0
        && patience > 0
        && let Ok(ready @ 1..) = ring.consumer.ready()
    {
        let count = missing.min(ready).min(patience);
        patience -= count;
        // SAFETY: from `wc` on, `missing` places are free.
        let (strays, rest) = unsafe { take(ring, qp_nums, count, wc) };
        missing -= count - strays;
        wc = rest;
    }
    wanted - missing
}

/// The device's counter is impossible: an error, not an empty queue.
const BROKEN: c_int = -libc::EIO;

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::testing::mock::{Mock, send_cqe};
    use pvrdma_ffi::uapi::vmw_pvrdma::*;

    fn poll(mock: &Mock, num_entries: c_int) -> Result<Vec<u64>, c_int> {
        let mut wc = [ibv_wc::default(); 16];
        // SAFETY: no test asks for more than 16.
        let polled = unsafe { poll_cq(&mock.cq, num_entries, wc.as_mut_ptr()) };
        let polled = wc.iter().take(usize::try_from(polled).map_err(|_| polled)?);
        Ok(polled
            .map(|wc| {
                assert_eq!(wc.qp_num, Mock::QPN);
                wc.wr_id
            })
            .collect())
    }

    const POLL: u32 = PVRDMA_UAR_CQ_POLL | Mock::CQN;

    #[test]
    fn completions_come_in_order_and_no_more_than_asked_for() {
        let mock = Mock::new(4, 1, 4);
        (0..4).for_each(|i| mock.put(send_cqe(i)));
        assert_eq!(poll(&mock, 3), Ok(vec![0, 1, 2]));
        mock.put(send_cqe(4));
        assert_eq!(poll(&mock, 16), Ok(vec![3, 4]));
        assert_eq!(mock.rung(PVRDMA_UAR_CQ_OFFSET), 0);
    }

    #[test]
    fn an_empty_poll_rings_and_looks_again() {
        let mock = Mock::new(4, 1, 4);
        assert_eq!(poll(&mock, 1), Ok(vec![]));
        assert_eq!(mock.rung(PVRDMA_UAR_CQ_OFFSET), POLL);
    }

    #[test]
    fn most_of_many_empty_polls_ring_nothing() {
        const POLLS: u32 = 100_000;
        let mock = Mock::new(4, 1, 4);
        let rung = (0..POLLS).filter(|_| {
            assert_eq!(poll(&mock, 1), Ok(vec![]));
            mock.rung(PVRDMA_UAR_CQ_OFFSET) == POLL
        });
        assert!((1..POLLS as usize).contains(&rung.count()));
    }

    #[test]
    fn the_poll_after_arming_rings() {
        let mock = Mock::new(4, 1, 4);
        for _ in 0..100 {
            assert_eq!(poll(&mock, 1), Ok(vec![]));
            crate::verbs::cq::req_notify_cq(&mock.cq, false);
            mock.rung(PVRDMA_UAR_CQ_OFFSET);
            assert_eq!(poll(&mock, 1), Ok(vec![]));
            assert_eq!(mock.rung(PVRDMA_UAR_CQ_OFFSET), POLL);
        }
    }

    #[test]
    fn asking_for_nothing_gives_nothing() {
        let mock = Mock::new(4, 1, 4);
        mock.put(send_cqe(1));
        assert_eq!(poll(&mock, 0), Ok(vec![]));
        assert_eq!(poll(&mock, -1), Ok(vec![]));
        assert_eq!(poll(&mock, 1), Ok(vec![1]));
    }

    #[test]
    fn entries_of_an_unknown_qp_are_skipped_and_do_not_block() {
        let mock = Mock::new(4, 1, 8);
        for (handle, wr_id) in [(9, 0), (Mock::HANDLE.into(), 1), (9, 2), (Mock::HANDLE.into(), 3)] {
            mock.put(pvrdma_cqe { qp: handle, ..send_cqe(wr_id) });
        }
        // Two are asked for and two are there: strays do not count.
        assert_eq!(poll(&mock, 2), Ok(vec![1, 3]));
        mock.put(pvrdma_cqe { qp: 9, ..send_cqe(4) });
        assert_eq!(poll(&mock, 2), Ok(vec![]));
        mock.put(send_cqe(5));
        assert_eq!(poll(&mock, 2), Ok(vec![5]));
    }

    #[test]
    fn a_broken_ring_is_an_error_and_not_an_empty_queue() {
        let mock = Mock::new(4, 1, 4);
        for bad in [5, 8, u32::MAX] {
            mock.set_cq_tail(bad);
            assert_eq!(poll(&mock, 1), Err(-libc::EIO), "prod_tail {bad}");
        }
    }

    #[test]
    fn the_ring_wraps_for_ever() {
        let mock = Mock::new(4, 1, 2);
        for round in 0..20 {
            mock.put(send_cqe(round));
            assert_eq!(poll(&mock, 4), Ok(vec![round]));
        }
    }
}
