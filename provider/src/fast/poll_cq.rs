//! `ibv_poll_cq`.
//!
//! [`poll_cq`] itself takes the one completion that is there, or sees that there is none; [`poll_run`] takes
//! several. Both copy, and leave what must be translated, is of no plain QP, or wraps, to [`poll_rest`]: by
//! tail calls, with the lock held and nothing given back yet.

use crate::boundary;
use crate::ring::counters::Words;
use crate::ring::cq_ring::{CqRing, look};
use crate::ring::cqe::{Cqe, Raw};
use crate::support::lock::SpinLock;
use crate::support::qp_nums::{self, LOGGED, QpNumTable};
use crate::support::sync::own_slot;
use crate::verbs::cq::Cq;
use core::ffi::c_int;
use pvrdma_ffi::verbs::*;

/// The device's counter is impossible: an error, not an empty queue.
const BROKEN: c_int = -libc::EIO;

/// The first look of a call, after which the device may be asked, and the one after that.
const FIRST: bool = true;
const AFTER_ASKING: bool = false;

/// `poll_cq`: take up to `num_entries` completions. Returns how many, or a negative errno. Fewer than asked
/// for means that the CQ is empty (or that there is more than a ring full of completions of QPs that are gone).
///
/// # Safety
/// `cq` must be a live CQ of ours, `wc` valid for writes of `num_entries` completions.
pub unsafe extern "C" fn poll_cq(cq: *mut ibv_cq, num_entries: c_int, wc: *mut ibv_wc) -> c_int {
    // SAFETY: promise of the caller; the ring's fields are ours while the lock is held.
    unsafe {
        if num_entries != 1 {
            return poll_several(cq, num_entries, wc);
        }
        let own = cq.cast::<Cq>();
        let lock = &raw const (*own).ring;
        if !(*lock).enter() {
            return poll_wait(cq, num_entries, wc);
        }
        let ring = (*lock).data();
        let (words, head) = ((*ring).words(), (*ring).head());
        let next = (*ring).after(head);
        let tail = look(words);
        if tail == next {
            // One: that is a counter, whatever the device thinks, and one entry fits.
            if let Some(left) = take_one(cq, ring, head, num_entries, wc) {
                return left;
            }
            (*ring).see(next);
        } else if tail == head {
            return ask_for_one(cq, head, wc, words);
        } else {
            rare();
            // More are there: one judgement is enough for all of them.
            if (*ring).seen() == head && (*ring).judge(tail).is_none() {
                return poll_rest::<FIRST>(cq, num_entries, wc);
            }
            if let Some(left) = take_one(cq, ring, head, num_entries, wc) {
                return left;
            }
        }
        (*ring).release_to(words, next);
        (*lock).leave();
        1
    }
}

/// Says to the compiler that the branch which calls this is the rare one.
#[cold]
#[inline(always)]
fn rare() {}

/// [`ask`] for [`poll_cq`] of one: its arguments are in the registers where they lie already.
#[inline(never)]
unsafe extern "C" fn ask_for_one(cq: *mut ibv_cq, head: u32, wc: *mut ibv_wc, words: Words) -> c_int {
    // SAFETY: promise of the caller.
    unsafe { ask(cq, 1, wc, words, head) }
}

/// [`poll_cq`] for another number than one.
#[inline(never)]
unsafe extern "C" fn poll_several(cq: *mut ibv_cq, num_entries: c_int, wc: *mut ibv_wc) -> c_int {
    // SAFETY: as in `poll_cq`.
    unsafe {
        if num_entries <= 0 {
            return 0;
        }
        let lock = lock_of(cq);
        if !(*lock).enter() {
            return poll_wait(cq, num_entries, wc);
        }
        let ring = (*lock).data();
        let (words, head) = ((*ring).words(), (*ring).head());
        if look(words) == head {
            return ask(cq, num_entries, wc, words, head);
        }
        poll_run::<FIRST>(cq, num_entries, wc)
    }
}

#[inline(always)]
fn lock_of(cq: *mut ibv_cq) -> *const SpinLock<CqRing> {
    // The ibv_cq is at the front of the Cq.
    cq.cast::<u8>().wrapping_add(core::mem::offset_of!(Cq, ring)).cast()
}

/// Number of the QP an entry is for, if it is a plain one.
#[inline(always)]
fn plain_qp(table: &QpNumTable, entry: Cqe) -> Option<u32> {
    own_slot(entry.at());
    let qp_num = qp_nums::qp_num(table, entry.handle());
    // 1..LOGGED in one comparison.
    (qp_num.wrapping_sub(1) < LOGGED - 1).then_some(qp_num)
}

/// Copy the entry at `head`, unless it is of no plain QP or must be translated: what others then return.
///
/// # Safety
/// It must be there, `wc` valid for a write; the rest as [`poll_run`].
#[inline(always)]
unsafe fn take_one(
    cq: *mut ibv_cq,
    ring: *const CqRing,
    head: u32,
    num_entries: c_int,
    wc: *mut ibv_wc,
) -> Option<c_int> {
    // SAFETY: promise of the caller.
    unsafe {
        let entry = (*ring).entry(head);
        let Some(qp_num) = plain_qp((*ring).qp_nums(), entry) else {
            return Some(poll_rest::<FIRST>(cq, num_entries, wc));
        };
        if !entry.raw().has_same_opcodes() {
            return Some(poll_rest::<FIRST>(cq, num_entries, wc));
        }
        if !entry.raw().has_same_flags() {
            return Some(poll_flagged(cq, num_entries, wc));
        }
        entry.copy_raw(wc, qp_num);
    }
    None
}

/// [`poll_cq`] for any number, the lock held. Where the entries wrap it leaves them.
#[inline(never)]
unsafe extern "C" fn poll_run<const IS_FIRST: bool>(cq: *mut ibv_cq, num_entries: c_int, wc: *mut ibv_wc) -> c_int {
    // SAFETY: promise of the caller.
    unsafe {
        let lock = lock_of(cq);
        let ring = (*lock).data();
        let Some(ready) = (*ring).some_ready() else {
            return poll_rest::<IS_FIRST>(cq, num_entries, wc);
        };
        let count = ready.min(num_entries as u32);
        if count > (*ring).run() {
            return poll_rest::<IS_FIRST>(cq, num_entries, wc);
        }
        let table = (*ring).qp_nums();
        let (mut entry, mut to) = ((*ring).entry((*ring).head()), wc);
        let end = wc.wrapping_add(count as usize);
        let mut all = Raw::default();
        if count & 1 != 0 {
            let Some(qp_num) = plain_qp(table, entry) else {
                return poll_rest::<IS_FIRST>(cq, num_entries, wc);
            };
            all = entry.raw();
            entry.copy_raw(to, qp_num);
            (entry, to) = (entry.next(), to.add(1));
        }
        // Two at a time: the loop itself is a tenth of one.
        while to != end {
            let Some(qp_num) = plain_qp(table, entry) else {
                return poll_rest::<IS_FIRST>(cq, num_entries, wc);
            };
            all = all.with(entry.raw());
            entry.copy_raw(to, qp_num);
            let Some(qp_num) = plain_qp(table, entry.next()) else {
                return poll_rest::<IS_FIRST>(cq, num_entries, wc);
            };
            all = all.with(entry.next().raw());
            entry.next().copy_raw(to.add(1), qp_num);
            (entry, to) = (entry.next().next(), to.add(2));
        }
        if !all.has_same_opcodes() || !all.has_same_flags() {
            return poll_rest::<IS_FIRST>(cq, num_entries, wc);
        }
        (*ring).release(count);
        (*lock).leave();
        if IS_FIRST && (count as c_int) < num_entries && (*cq.cast::<Cq>()).is_armed() {
            return ask_for_more(cq, num_entries, wc, count as c_int);
        }
        count as c_int
    }
}

/// [`poll_cq`] when `taken` were there, fewer than were asked for, the CQ was armed, and the lock is open: whoever
/// armed takes that for an empty CQ and goes to sleep, so the device must be asked for what it holds back.
#[cold]
#[inline(never)]
unsafe extern "C" fn ask_for_more(cq: *mut ibv_cq, num_entries: c_int, wc: *mut ibv_wc, taken: c_int) -> c_int {
    // SAFETY: promise of the caller; what is taken is written.
    unsafe {
        (*cq.cast::<Cq>()).ring_poll();
        // An error is found again by the next poll.
        taken + poll_again(cq, num_entries - taken, wc.add(taken as usize)).max(0)
    }
}

/// [`poll_cq`] when the CQ is empty, the lock held: the device may hold completions back until asked. Most
/// often nothing comes of it. `words` and `head` are those of the ring.
#[inline(always)]
unsafe fn ask(cq: *mut ibv_cq, num_entries: c_int, wc: *mut ibv_wc, words: Words, head: u32) -> c_int {
    // SAFETY: promise of the caller. After the lock is open the ring is looked at once more, but only at a word
    // that is the device's.
    unsafe {
        let own = cq.cast::<Cq>();
        let lock = &raw const (*own).ring;
        let ring = (*lock).data();
        let is_time = (*ring).is_time_to_ask(head) || (*own).is_armed();
        (*lock).leave();
        if !is_time {
            return 0;
        }
        (*own).ring_poll();
        if look(words) == head {
            return 0;
        }
        poll_again(cq, num_entries, wc)
    }
}

/// [`poll_cq`] when the lock is taken.
#[cold]
#[inline(never)]
unsafe extern "C" fn poll_wait(cq: *mut ibv_cq, num_entries: c_int, wc: *mut ibv_wc) -> c_int {
    // SAFETY: promise of the caller; the lock is held from `wait` on.
    unsafe {
        let lock = lock_of(cq);
        (*lock).wait();
        let ring = (*lock).data();
        match (*ring).ready() {
            Ok(0) => ask(cq, num_entries, wc, (*ring).words(), (*ring).head()),
            _ => poll_rest::<FIRST>(cq, num_entries, wc),
        }
    }
}

/// [`poll_cq`] after the device was asked.
#[inline(never)]
unsafe extern "C" fn poll_again(cq: *mut ibv_cq, num_entries: c_int, wc: *mut ibv_wc) -> c_int {
    // SAFETY: promise of the caller.
    unsafe {
        let lock = lock_of(cq);
        if !(*lock).enter() {
            (*lock).wait();
        }
        poll_run::<AFTER_ASKING>(cq, num_entries, wc)
    }
}

/// [`poll_cq`] of whatever is there, the lock held: opcodes and flags are translated, entries of QPs with
/// a log found there, those of no QP skipped. If nothing is left, the device is asked.
#[inline(never)]
unsafe extern "C" fn poll_rest<const IS_FIRST: bool>(cq: *mut ibv_cq, num_entries: c_int, wc: *mut ibv_wc) -> c_int {
    // SAFETY: promise of the caller.
    unsafe {
        let own = Cq::of(cq);
        let taken = boundary::count(|| take_any(own, &mut *own.ring.data(), num_entries as u32, wc));
        if taken == 0 && IS_FIRST {
            let ring = own.ring.data();
            return ask(cq, num_entries, wc, (*ring).words(), (*ring).head());
        }
        own.ring.leave();
        if IS_FIRST && (1..num_entries).contains(&taken) && own.is_armed() {
            return ask_for_more(cq, num_entries, wc, taken);
        }
        taken
    }
}

/// [`poll_rest`] where flags are the reason, among them those of every datagram. By another name, since the compiler
/// would make one test of two that lead to the same place, and a longer one.
#[inline(never)]
unsafe extern "C" fn poll_flagged(cq: *mut ibv_cq, num_entries: c_int, wc: *mut ibv_wc) -> c_int {
    // SAFETY: promise of the caller.
    unsafe { poll_rest::<FIRST>(cq, num_entries, wc) }
}

/// Take up to `wanted` completions.
///
/// # Safety
/// `ring` must be that of `own`, `wc` valid for writes of `wanted` completions.
unsafe fn take_any(own: &Cq, ring: &mut CqRing, wanted: u32, wc: *mut ibv_wc) -> c_int {
    let mut taken = 0;
    // Places of strays are filled with later entries. Not for ever: a device that puts strays faster
    // than we take them must not hold the application in here.
    let mut patience = ring.size().get();
    loop {
        let ready = match ring.ready() {
            Ok(ready) => ready,
            Err(_) if taken == 0 => return BROKEN,
            Err(_) => break,
        };
        let count = ready.min(wanted - taken).min(patience);
        patience -= count;
        let before = taken;
        for nth in 0..count {
            let entry = ring.entry(ring.head().wrapping_add(nth));
            let qp_num = qp_nums::qp_num(own.qp_nums.table(), entry.handle());
            if let Some((qp_num, wr_id)) = own.whose(entry, qp_num) {
                // SAFETY: no more are written than were wanted.
                unsafe {
                    let wc = wc.add(taken as usize);
                    entry.write_to(wc, qp_num);
                    (*wc).wr_id = wr_id;
                }
                taken += 1;
            }
        }
        if count > 0 {
            ring.release(count);
        }
        if taken - before == count {
            break;
        }
    }
    taken as c_int
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::testing::mock::{Mock, poll_cq, send_cqe};
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

    use crate::ring::cq_ring::{EAGER, RATION};

    const POLL: u32 = PVRDMA_UAR_CQ_POLL | Mock::CQN;

    #[test]
    fn completions_come_in_order_and_no_more_than_asked_for() {
        let mock = Mock::new(4, 1, 4);
        // A new CQ counts as one that something came to.
        assert_eq!(poll(&mock, 1), Ok(vec![]));
        assert_eq!(mock.rung(PVRDMA_UAR_CQ_OFFSET), POLL);
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
    fn what_a_device_holds_back_until_asked_waits_for_a_known_number_of_polls() {
        let mock = Mock::new(4, 1, 4);
        let mut worst = 0;
        // It holds one back after so many empty polls, and puts it when POLL is rung.
        for quiet in 0..200 {
            for _ in 0..quiet {
                assert_eq!(poll(&mock, 1), Ok(vec![]));
            }
            mock.rung(PVRDMA_UAR_CQ_OFFSET);
            let mut polls = 0;
            while mock.rung(PVRDMA_UAR_CQ_OFFSET) != POLL {
                assert_eq!(poll(&mock, 1), Ok(vec![]));
                polls += 1;
            }
            worst = worst.max(polls);
            mock.put(send_cqe(quiet));
            assert_eq!(poll(&mock, 1), Ok(vec![quiet]));
        }
        assert_eq!(worst, RATION);
    }

    #[test]
    fn after_a_completion_every_poll_asks_for_a_while() {
        let mock = Mock::new(4, 1, 4);
        for round in 0..3 {
            mock.put(send_cqe(round));
            assert_eq!(poll(&mock, 1), Ok(vec![round]));
            for _ in 0..EAGER {
                assert_eq!(poll(&mock, 1), Ok(vec![]));
                assert_eq!(mock.rung(PVRDMA_UAR_CQ_OFFSET), POLL);
            }
            assert_eq!(poll(&mock, 1), Ok(vec![]));
            assert_eq!(mock.rung(PVRDMA_UAR_CQ_OFFSET), 0);
        }
    }

    #[test]
    fn who_finds_strays_only_asks_as_if_nothing_was_there() {
        let mock = Mock::new(4, 1, 4);
        for _ in 0..100 {
            assert_eq!(poll(&mock, 1), Ok(vec![]));
        }
        crate::verbs::cq::req_notify_cq(&mock.cq, false);
        mock.rung(PVRDMA_UAR_CQ_OFFSET);
        mock.put(pvrdma_cqe { qp: 9, ..send_cqe(0) });
        // Who armed goes to sleep after this one.
        assert_eq!(poll(&mock, 1), Ok(vec![]));
        assert_eq!(mock.rung(PVRDMA_UAR_CQ_OFFSET), POLL);
    }

    #[test]
    fn who_armed_and_gets_fewer_than_asked_for_has_asked_the_device() {
        for opcode in [PVRDMA_WC_SEND, PVRDMA_WC_FETCH_ADD] {
            let mock = Mock::new(4, 1, 8);
            for (put, wanted, bell) in [(1, 2, POLL), (3, 16, POLL), (2, 2, 0), (1, 1, 0), (4, 3, 0)] {
                crate::verbs::cq::req_notify_cq(&mock.cq, false);
                (0..put).for_each(|i| mock.put(pvrdma_cqe { opcode, ..send_cqe(i) }));
                mock.rung(PVRDMA_UAR_CQ_OFFSET);
                let expected = (0..put.min(wanted)).collect::<Vec<_>>();
                assert_eq!(poll(&mock, wanted as c_int), Ok(expected));
                assert_eq!(mock.rung(PVRDMA_UAR_CQ_OFFSET), bell, "{put} there, {wanted} wanted");
                // Once is enough, and none is left over.
                let rest = (put.min(wanted)..put).collect::<Vec<_>>();
                assert_eq!(poll(&mock, 2), Ok(rest));
            }
        }
    }

    #[test]
    fn opcodes_and_flags_of_other_numbers_are_translated_beside_those_of_the_same() {
        let of = |opcode, wc_flags, wr_id| pvrdma_cqe { opcode, wc_flags, ..send_cqe(wr_id) };
        let cases = [
            (of(PVRDMA_WC_FETCH_ADD, 0, 0), (IBV_WC_FETCH_ADD, 0)),
            (of(PVRDMA_WC_RECV, PVRDMA_WC_WITH_INVALIDATE, 1), (IBV_WC_RECV, IBV_WC_WITH_INV)),
            (of(PVRDMA_WC_RDMA_READ, PVRDMA_WC_WITH_VLAN, 2), (IBV_WC_RDMA_READ, 0)),
            (of(PVRDMA_WC_RECV, PVRDMA_WC_GRH, 3), (IBV_WC_RECV, IBV_WC_GRH)),
            (of(0x55, u32::MAX, 4), (IBV_WC_DRIVER1, 0xf)),
        ];
        // One at a time where one is there, one at a time where more are, and all at once.
        for (put, wanted) in [(1, 1), (5, 1), (5, 16), (3, 2), (4, 4)] {
            let mock = Mock::new(4, 1, 8);
            for group in cases.chunks(put) {
                group.iter().for_each(|(cqe, _)| mock.put(*cqe));
                let mut left = group;
                while !left.is_empty() {
                    let mut wc = [ibv_wc::default(); 16];
                    // SAFETY: room for 16.
                    let polled = unsafe { poll_cq(&mock.cq, wanted, wc.as_mut_ptr()) };
                    assert_eq!(polled, wanted.min(left.len() as c_int));
                    let (now, rest) = left.split_at(polled as usize);
                    for (wc, (cqe, expected)) in wc.iter().zip(now) {
                        assert_eq!(
                            (wc.wr_id, (wc.opcode, wc.wc_flags)),
                            (cqe.wr_id, *expected),
                            "{put} put, {wanted} wanted"
                        );
                    }
                    left = rest;
                }
            }
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
