//! [`crate::verbs::qp`]: the order in which a QP leaves, against another that gets its handle; the order in
//! which one starts over, against posts. [`crate::fast::post_send`]: slots and inline places are filled
//! when they are free.

use super::device::{self, Device};
use super::{both, fails, holds, poll, shadow};
use crate::support::error::Errno;
use crate::support::loaded::libibverbs;
use crate::support::qp_nums::LEAVING;
use crate::testing::mock::post_send;
use crate::verbs::cq::Cq;
use crate::verbs::qp::{self, Qp};
use core::ffi::c_int;
use pvrdma_ffi::verbs::*;

fn number(qp: *mut ibv_qp) -> (u32, u32) {
    // SAFETY: a live QP.
    unsafe { ((*qp).handle, (*qp).qp_num) }
}

/// What request `n` of a QP is called: completions given to another are found out.
fn wr_id(qp_num: u32, n: u64) -> u64 {
    u64::from(qp_num) << 32 | n
}

fn post(qp: *mut ibv_qp, wr_id: u64, flags: u32) -> Result<(), Errno> {
    let payload = [0u8; 8];
    let mut sge = ibv_sge { addr: payload.as_ptr() as u64, length: 8, lkey: 3 };
    // SAFETY: all-zero integers and pointers are valid; a live QP, a valid request.
    unsafe {
        let mut wr: ibv_send_wr = core::mem::zeroed();
        (wr.wr_id, wr.opcode, wr.send_flags) = (wr_id, IBV_WR_SEND, IBV_SEND_SIGNALED | flags);
        (wr.sg_list, wr.num_sge) = (&mut sge, 1);
        let qp = Qp::of(qp);
        post_send(qp, &mut wr).map_err(|(errno, _)| errno)
    }
}

fn move_to(qp: *mut ibv_qp, state: u32) {
    let mut attr = ibv_qp_attr { qp_state: state, ..Default::default() };
    // SAFETY: a live QP.
    unsafe { qp::modify_qp(qp, &mut attr, IBV_QP_STATE as c_int) }.unwrap();
}

fn end(cq: *mut ibv_cq, qp: *mut ibv_qp) {
    // SAFETY: live objects that nobody uses any more.
    unsafe {
        qp::destroy_qp(qp).unwrap();
        crate::verbs::cq::destroy_cq(cq).unwrap();
    }
}

// ---- destroy -----------------------------------------------------------------------------------

pub fn destroy_against_create_and_poll() {
    destroyed_by(|qp, _| {
        // SAFETY: a live QP that nobody else uses.
        unsafe { qp::destroy_qp(qp) }.unwrap();
    });
}

/// A QP with inline data goes while its completion is polled: what is heard is what was posted, or nothing.
pub fn destroy_inline_against_poll() {
    let device = Device::new();
    let cq = device.create_cq(2, false);
    let qp = device.create_qp(cq, 1, 64);
    let (handle, qp_num) = number(qp);
    move_to(qp, IBV_QPS_RTS);
    post(qp, wr_id(qp_num, 1), IBV_SEND_INLINE).unwrap();
    device::work(handle);
    // SAFETY: a live QP that nobody else uses.
    let ((), heard) = both(move || unsafe { qp::destroy_qp(qp) }.unwrap(), || poll(cq, 1));
    assert!(heard.is_empty() || heard == [(qp_num, wr_id(qp_num, 1))], "{heard:?}");
    // SAFETY: a live CQ that nobody uses any more.
    unsafe { crate::verbs::cq::destroy_cq(cq) }.unwrap();
}

/// The handle counts as free before the last completion by it is removed.
fn destroy_forgets_too_early() {
    destroyed_by(|qp, cq| {
        let handle = number(qp).0 as u16;
        cq.qp_nums.set(handle, LEAVING);
        destroy_in_kernel(qp);
        cq.qp_nums.set(handle, 0);
        cq.remove_completions_of(handle);
        free(qp);
    });
}

/// The handle is not marked before the kernel may give it to another.
fn destroy_withdraws_too_late() {
    destroyed_by(|qp, cq| {
        let handle = number(qp).0 as u16;
        destroy_in_kernel(qp);
        cq.qp_nums.set(handle, LEAVING);
        cq.remove_completions_of(handle);
        cq.qp_nums.set(handle, 0);
        free(qp);
    });
}

/// Completions stay, for whoever has the handle next.
fn destroy_removes_nothing() {
    destroyed_by(|qp, cq| {
        let handle = number(qp).0 as u16;
        cq.qp_nums.set(handle, LEAVING);
        destroy_in_kernel(qp);
        cq.qp_nums.set(handle, 0);
        free(qp);
    });
}

fn destroy_in_kernel(qp: *mut ibv_qp) {
    // SAFETY: a live QP.
    assert_eq!(unsafe { (libibverbs().unwrap().destroy_qp)(qp) }, 0);
}

fn free(qp: *mut ibv_qp) {
    // SAFETY: `create_qp` made it so; nobody else has it.
    drop(unsafe { Box::from_raw(qp.cast::<Qp>()) });
}

/// One QP goes, another comes, perhaps with the same handle, and a third thread polls. Each has one
/// completion.
fn destroyed_by(destroy: fn(*mut ibv_qp, &Cq)) {
    let device = Device::new();
    let cq = device.create_cq(4, false);
    let first = device.create_qp(cq, 1, 0);
    let ring = device::kernel(|state| state.cqs[&1]);
    assert!(ring.put(number(first).0, wr_id(number(first).1, 0)));
    let creator = ::loom::thread::spawn(move || {
        let second = device.create_qp(cq, 1, 0);
        let (handle, qp_num) = number(second);
        assert!(ring.put(handle, wr_id(qp_num, 0)));
        (second, qp_num)
    });
    // SAFETY: a live CQ.
    let (mut heard, ()) = both(move || poll(cq, 2), || destroy(first, unsafe { Cq::of(cq) }));
    let (second, qp_num) = creator.join().unwrap();
    heard.extend(poll(cq, 4));
    for (qp_num, wr_id) in &heard {
        assert_eq!(u64::from(*qp_num), wr_id >> 32, "a completion of another QP");
    }
    assert_eq!(heard.iter().filter(|(of, _)| *of == qp_num).count(), 1, "of the new QP: {heard:?}");
    end(cq, second);
}

// ---- RESET -------------------------------------------------------------------------------------

pub fn reset_against_post() {
    reset_by(|qp| move_to(qp, IBV_QPS_RESET));
}

/// The device forgets while the queue is still open.
fn reset_closes_too_late() {
    reset_by(|qp| {
        device::kernel(|mut state| state.qps.get_mut(&number(qp).0).unwrap().state = IBV_QPS_RESET);
        move_to(qp, IBV_QPS_RESET);
    });
}

/// The ring is emptied and the queue stays open.
fn reset_does_not_close() {
    reset_by(|qp| {
        // SAFETY: a live QP.
        unsafe { Qp::of(qp) }.sq.lock().reset();
    });
}

/// A QP starts over while another thread posts to it. What that one got in is done, or forgotten,
/// but nothing is left over.
fn reset_by(reset: fn(*mut ibv_qp)) {
    let device = Device::new();
    let cq = device.create_cq(4, false);
    let qp = device.create_qp(cq, 2, 0);
    let (handle, qp_num) = number(qp);
    move_to(qp, IBV_QPS_RTS);
    shadow::rings(move |_, _| {
        // Not under the kernel's lock: others go on with it.
        let state = device::kernel(|state| state.qps[&handle].state);
        assert!(state >= IBV_QPS_RTS, "a doorbell of a QP in RESET");
    });
    let (posted, ()) = both(
        move || post(qp, wr_id(qp_num, 1), 0),
        || {
            reset(qp);
            let sq = device::kernel(|state| state.qps[&handle].sq);
            assert_eq!(sq.counters(), (0, 0));
            move_to(qp, IBV_QPS_RTS);
        },
    );
    assert!(matches!(posted, Ok(()) | Err(Errno::EINVAL)));
    assert_eq!(post(qp, wr_id(qp_num, 2), 0), Ok(()));
    device::work(handle);
    let heard: Vec<u64> = poll(cq, 4).iter().map(|(_, wr_id)| wr_id & 0xff).collect();
    assert!(heard == [2] || heard == [1, 2] && posted.is_ok(), "{heard:?} {posted:?}");
    end(cq, qp);
}

// ---- posting and polling -----------------------------------------------------------------------

pub fn post_against_poll() {
    posted_with(0);
}

pub fn post_inline_against_poll() {
    posted_with(IBV_SEND_INLINE);
}

/// One posts into the only slot, the device takes and completes, another polls.
fn posted_with(flags: u32) {
    let device = Device::new();
    let cq = device.create_cq(4, false);
    let qp = device.create_qp(cq, 1, if flags & IBV_SEND_INLINE != 0 { 64 } else { 0 });
    let (handle, qp_num) = number(qp);
    move_to(qp, IBV_QPS_RTS);
    assert_eq!(post(qp, wr_id(qp_num, 0), flags), Ok(()));
    let working = ::loom::thread::spawn(move || device::work(handle));
    let (posted, mut heard) = both(
        move || (1..3).filter(|n| post(qp, wr_id(qp_num, *n), flags).is_ok()).collect::<Vec<_>>(),
        || [poll(cq, 2), poll(cq, 1)].concat(),
    );
    working.join().unwrap();
    device::work(handle);
    heard.extend(poll(cq, 4));
    let expected: Vec<_> = [0].iter().chain(&posted).map(|n| (qp_num, wr_id(qp_num, *n))).collect();
    assert_eq!(heard, expected);
    end(cq, qp);
}

#[test]
fn a_handle_used_again_mixes_up_nothing() {
    holds(destroy_against_create_and_poll);
    holds(destroy_inline_against_poll);
}

#[test]
fn another_order_of_destroying_would_be_found() {
    assert!(fails(destroy_forgets_too_early));
    assert!(fails(destroy_withdraws_too_late));
    assert!(fails(destroy_removes_nothing));
}

#[test]
fn a_reset_leaves_the_ring_whole() {
    holds(reset_against_post);
}

#[test]
fn another_order_of_resetting_would_be_found() {
    assert!(fails(reset_closes_too_late));
    assert!(fails(reset_does_not_close));
}

#[test]
fn slots_and_inline_places_are_filled_when_they_are_free() {
    holds(post_against_poll);
    holds(post_inline_against_poll);
}
