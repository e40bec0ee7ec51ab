//! Races, searched for and not waited for: loom runs the provider through the interleavings of a few
//! threads, and through what weak memory may show them.
//!
//!     RUSTFLAGS="--cfg loom" cargo test -p vmw_pvrdma --lib --release loom
//!
//! What runs is the provider itself: verbs, locks, rings, with the atomics of [`shadow`] in the place
//! of core's (see [`crate::support::sync`]); [`device`] is a kernel and a device beside it. What is left out:
//! a doorbell comes after the stores before it, as on x86-64 (see [`crate::ring::barrier`]); no load sees
//! what is stored only later; threads are preempted at most [`PREEMPTIONS`] times in a run, unless
//! `LOOM_MAX_PREEMPTIONS` says otherwise; and no model polls so often that POLL is rung by its ration: an
//! empty poll rings after a completion, or when the CQ was armed.
//!
//! A model is only worth what it can find. Beside each stands a negative model, which must fail; and
//! [`every_ordering_is_needed`] makes each Acquire and Release of the provider Relaxed in turn and wants some
//! model to fail.

mod cq;
mod device;
mod lock;
mod qp;
mod send_log;
pub mod shadow;

use core::ffi::c_int;
use core::sync::atomic::AtomicUsize;
use core::sync::atomic::Ordering::Relaxed;
use pvrdma_ffi::verbs::*;
use shadow::Place;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

/// So many times in a run threads are preempted where they did not wait.
const PREEMPTIONS: usize = 2;

/// All stories, told right.
const MODELS: &[fn()] = &[
    lock::two_take_a_lock,
    lock::two_take_a_lock_and_keep_it,
    lock::one_takes_a_lock_again_and_again,
    send_log::a_completion_finds_what_was_noted,
    qp::post_against_poll,
    qp::post_inline_against_poll,
    qp::reset_against_post,
    qp::destroy_against_create_and_poll,
    qp::destroy_inline_against_poll,
    cq::arm_and_poll,
    cq::arm_and_poll_a_late_device,
    cq::two_poll_one_cq,
    cq::two_poll_one_cq_in_both_ways,
];

/// Run `model` through all interleavings.
fn holds(model: fn()) {
    explore(model, PREEMPTIONS);
}

/// Does some interleaving make it panic?
fn fails(model: fn()) -> bool {
    shadow::finds(|| holds(model))
}

fn explore(model: fn(), preemptions: usize) {
    let mut builder = ::loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(preemptions));
    builder.max_branches = 5_000;
    let runs = Arc::new(AtomicUsize::new(0));
    let (counted, begin) = (runs.clone(), Instant::now());
    builder.check(move || {
        counted.fetch_add(1, Relaxed);
        shadow::begin(64);
        model();
        shadow::end();
    });
    println!("{} runs, {:?}", runs.load(Relaxed), begin.elapsed());
}

/// Run both at once. Returns what they return.
fn both<A: 'static, B>(other: impl FnOnce() -> A + 'static, this: impl FnOnce() -> B) -> (A, B) {
    let other = ::loom::thread::spawn(other);
    let this = this();
    (other.join().unwrap(), this)
}

/// Number of the QP and `wr_id` of up to `most` completions.
fn poll(cq: *mut ibv_cq, most: usize) -> Vec<(u32, u64)> {
    let mut wcs = [ibv_wc::default(); 4];
    assert!(most <= wcs.len());
    // SAFETY: a live CQ of ours, and room.
    let taken = unsafe { crate::testing::mock::poll_cq(crate::verbs::cq::Cq::of(cq), most as c_int, wcs.as_mut_ptr()) };
    let taken = usize::try_from(taken).unwrap();
    wcs[..taken].iter().map(|wc| (wc.qp_num, wc.wr_id)).collect()
}

/// Each is made Relaxed in turn.
#[test]
fn every_ordering_is_needed() {
    let mut models_of: BTreeMap<Place, Vec<fn()>> = BTreeMap::new();
    for model in MODELS {
        shadow::places();
        // Once off its core a thread has been everywhere.
        explore(*model, 1);
        shadow::places().into_iter().for_each(|place| models_of.entry(place).or_default().push(*model));
    }
    models_of.retain(|(file, ..), _| !file.contains("loom"));
    assert!(models_of.len() > 10, "{models_of:?}");
    let is_missed = |place: &Place| {
        shadow::weaken(Some(*place));
        let missed = models_of[place].iter().any(|model| fails(*model));
        shadow::weaken(None);
        missed
    };
    let not_missed: Vec<_> = models_of.keys().filter(|place| !is_missed(place)).map(|(file, ..)| *file).collect();
    // `QpNums::set` and `claim`: what a QP's destroy reads must not be read after the handle is seen
    // to be free. A load that sees what is stored only later is nothing loom can show; a destroy that
    // frees the handle too early is the same seen from outside, and is found.
    assert_eq!(not_missed, ["provider/src/support/qp_nums.rs"; 2]);
}
