//! [`crate::fast::poll_cq`] and [`crate::fast::cq_ex`]: every completion is delivered once. [`crate::verbs::cq`]: who
//! arms, polls and sleeps is woken.

use super::device::{self, Device, Ring};
use super::{both, fails, holds, poll, shadow};
use crate::verbs::cq::{Cq, req_notify_cq};
use ::loom::sync::Mutex;
use pvrdma_ffi::uapi::vmw_pvrdma::*;
use pvrdma_ffi::verbs::*;
use std::rc::Rc;

const HANDLE: u16 = 5;
const QPN: u32 = 50;

/// A CQ of two entries where a QP completes, and the device's side of it.
fn cq(device: &Device, single_threaded: bool) -> (*mut ibv_cq, Ring) {
    let cq = device.create_cq(2, single_threaded);
    // SAFETY: a live CQ.
    unsafe { Cq::of(cq) }.qp_nums.claim(HANDLE, QPN).unwrap();
    (cq, device::kernel(|state| state.cqs[&1]))
}

fn end(cq: *mut ibv_cq) {
    // SAFETY: a live CQ that nobody uses any more.
    unsafe { crate::verbs::cq::destroy_cq(cq) }.unwrap();
}

// ---- two pollers -------------------------------------------------------------------------------

pub fn two_poll_one_cq() {
    two_poll(false, |cq| [poll(cq, 1), poll(cq, 2)].concat());
}

pub fn two_poll_one_cq_in_both_ways() {
    two_poll(false, poll_ex);
}

/// Two threads use what was promised to be used by one.
fn two_poll_the_cq_of_one() {
    two_poll(true, |cq| poll(cq, 1));
}

fn two_poll(single_threaded: bool, other: fn(*mut ibv_cq) -> Vec<(u32, u64)>) {
    let device = Device::new();
    let (cq, ring) = cq(&device, single_threaded);
    assert!(ring.put(HANDLE.into(), 0));
    // Two fit; a third does once a poller has given a place back.
    let putter = ::loom::thread::spawn(move || (1..3).take_while(|wr_id| ring.put(HANDLE.into(), *wr_id)).count());
    let (mut heard, more) = both(move || other(cq), || poll(cq, 2));
    let put = 1 + putter.join().unwrap();
    for thread in [&heard, &more] {
        assert!(thread.is_sorted(), "{thread:?}");
    }
    heard.extend(more);
    heard.extend(poll(cq, 4));
    heard.sort_unstable();
    let expected: Vec<_> = (0..put as u64).map(|wr_id| (QPN, wr_id)).collect();
    assert_eq!(heard, expected);
    end(cq);
}

/// Up to two completions by `start_poll`, `next_poll`, `end_poll`.
fn poll_ex(cq: *mut ibv_cq) -> Vec<(u32, u64)> {
    let cq: *mut ibv_cq_ex = cq.cast();
    let mut attr = ibv_poll_cq_attr { comp_mask: 0 };
    let mut heard = Vec::new();
    // SAFETY: an extended CQ of ours; ended if it was started.
    unsafe {
        let read = || ((*cq).read_qp_num.unwrap()(cq), (*cq).wr_id);
        if (*cq).start_poll.unwrap()(cq, &mut attr) == 0 {
            heard.push(read());
            if (*cq).next_poll.unwrap()(cq) == 0 {
                heard.push(read());
            }
            (*cq).end_poll.unwrap()(cq);
        }
    }
    heard
}

// ---- wake-ups ----------------------------------------------------------------------------------

/// A device that holds completions back until asked, unless the CQ is armed when they come.
struct Slow {
    ring: Ring,
    late: bool,
    bells: Vec<u32>,
    armed: bool,
    held: bool,
    told: bool,
}

impl Slow {
    fn put(&mut self) {
        assert!(self.ring.put(HANDLE.into(), 1));
        self.told |= self.armed;
        self.armed = false;
    }

    /// Do what doorbells ask for, in their order.
    fn hear(&mut self) {
        for bell in core::mem::take(&mut self.bells) {
            match bell & !PVRDMA_UAR_HANDLE_MASK {
                PVRDMA_UAR_CQ_POLL => {
                    if core::mem::take(&mut self.held) {
                        self.put();
                    }
                }
                // What an earlier POLL brought has come after the provider's last look, perhaps.
                PVRDMA_UAR_CQ_ARM if self.late && !self.ring.is_empty() => self.told = true,
                PVRDMA_UAR_CQ_ARM => self.armed = true,
                _ => unreachable!("{bell:#x}"),
            }
        }
    }

    /// Something completes.
    fn complete(&mut self) {
        match self.armed {
            true => self.put(),
            false => self.held = true,
        }
    }
}

/// `sleeper` gets nothing and goes to sleep, or gets something; `other` polls once.
///
/// Doorbells are traps: the device has heard one when the store ends. One that is `late` must look
/// into the ring when it is armed, or even a single thread could sleep for ever, whatever its
/// provider does.
fn sleep(late: bool, sleeper: fn(*mut ibv_cq) -> Vec<(u32, u64)>) {
    let device = Device::new();
    let (cq, ring) = cq(&device, false);
    let slow = Slow { ring, late, bells: Vec::new(), armed: false, held: false, told: false };
    let slow = Rc::new(Mutex::new(slow));
    let (bell, wire) = (slow.clone(), slow.clone());
    shadow::rings(move |offset, value| {
        assert_eq!(offset, PVRDMA_UAR_CQ_OFFSET);
        let mut slow = bell.lock().unwrap();
        slow.bells.push(value);
        if !late {
            slow.hear();
        }
    });
    let arrival = ::loom::thread::spawn(move || {
        wire.lock().unwrap().hear();
        wire.lock().unwrap().complete();
        wire.lock().unwrap().hear();
    });
    let (other, mine) = both(move || poll(cq, 1), || sleeper(cq));
    arrival.join().unwrap();
    slow.lock().unwrap().hear();
    assert!(!other.is_empty() || !mine.is_empty() || slow.lock().unwrap().told, "it sleeps for ever");
    end(cq);
}

fn arm(cq: *mut ibv_cq) {
    // SAFETY: a live CQ.
    req_notify_cq(unsafe { Cq::of(cq) }, false);
}

pub fn arm_and_poll() {
    sleep(false, |cq| {
        arm(cq);
        poll(cq, 1)
    });
}

pub fn arm_and_poll_a_late_device() {
    sleep(true, |cq| {
        arm(cq);
        poll(cq, 1)
    });
}

/// One completion is there when the CQ is armed, and another comes: `sleeper` hears of the first alone and goes to
/// sleep, or hears of both.
fn sleep_with_one(sleeper: fn(*mut ibv_cq) -> Vec<(u32, u64)>) {
    let device = Device::new();
    let (cq, ring) = cq(&device, false);
    assert!(ring.put(HANDLE.into(), 0));
    let slow = Slow { ring, late: false, bells: Vec::new(), armed: false, held: false, told: false };
    let slow = Rc::new(Mutex::new(slow));
    let (bell, wire) = (slow.clone(), slow.clone());
    shadow::rings(move |_, value| {
        let mut slow = bell.lock().unwrap();
        slow.bells.push(value);
        slow.hear();
    });
    let (_, heard) = both(
        move || wire.lock().unwrap().complete(),
        || {
            arm(cq);
            sleeper(cq)
        },
    );
    assert!(heard.len() == 2 || slow.lock().unwrap().told, "it sleeps for ever: {heard:?}");
    end(cq);
}

pub fn arm_and_poll_more_than_is_there() {
    sleep_with_one(|cq| poll(cq, 2));
}

pub fn arm_and_walk_to_the_end() {
    sleep_with_one(poll_ex);
}

/// The first alone is asked for, and taken for all.
fn arm_and_poll_one() {
    sleep_with_one(|cq| poll(cq, 1));
}

/// The classic mistake.
fn poll_and_arm() {
    sleep(false, |cq| {
        let heard = poll(cq, 1);
        arm(cq);
        heard
    });
}

#[test]
fn two_pollers_get_every_completion_once() {
    holds(two_poll_one_cq);
    holds(two_poll_one_cq_in_both_ways);
}

#[test]
fn two_pollers_without_a_lock_would_be_found() {
    assert!(fails(two_poll_the_cq_of_one));
}

#[test]
fn who_arms_and_polls_is_told() {
    holds(arm_and_poll);
    holds(arm_and_poll_a_late_device);
    holds(arm_and_poll_more_than_is_there);
    holds(arm_and_walk_to_the_end);
}

#[test]
fn a_lost_wake_up_would_be_found() {
    assert!(fails(poll_and_arm));
    assert!(fails(arm_and_poll_one));
}
