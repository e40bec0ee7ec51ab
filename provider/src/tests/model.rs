//! Random verbs, legal and illegal, on small rings, against a model that knows what each must answer:
//! which errno, which request of a list is refused, which completions a poll gives in which order, what
//! the device sees of each request, and what is there afterwards. The verbs are called as libibverbs
//! calls them; the kernel is [`super::kernel`], and the device is honest.
//!
//! A [`Lane`] is one thread's objects and what the model knows of them. One lane alone is known
//! exactly, doorbells and refusals of the kernel included. Several lanes are threads that have their own
//! objects, known exactly too, and some of all: a PD, CQs and an SRQ. Of these each thread knows what it
//! is owed, and at the end the sums must be right: what was posted has ended once or was purged.
//!
//! `PVRDMA_SEED` repeats a run (threads: as far as they allow), `PVRDMA_STEPS` makes it longer:
//! `PVRDMA_STEPS=1000000 cargo test --release -p vmw_pvrdma --lib model -- --nocapture`.

mod cq;
mod device;
mod domain;
mod qp;
mod send;
mod srq;
mod tally;
mod wr;

use self::cq::CqModel;
use self::domain::{AhModel, MrModel, PdModel, TdModel};
use self::qp::QpModel;
use self::srq::{Recv, SrqModel};
use self::tally::{Ledger, Tally, enough_answers, enough_ends};
use crate::ops::OPS;
use crate::support::error::Errno;
use crate::testing::kernel::{Lie, World};
use crate::testing::mock::rng::{self, Rng, steps};
use core::ffi::c_int;
use pvrdma_ffi::verbs::*;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::Write;
use std::sync::{Barrier, Mutex};

/// What a verb answers: a positive errno, if not what was asked for.
type Answer<T> = Result<T, c_int>;

/// In the `wr_id` of a send. Above it the number of the lane, below it a count.
const SEND: u64 = 1 << 47;

/// The answer of a verb that returns an object, or NULL with errno set.
fn made<T>(verb: impl FnOnce() -> *mut T) -> Answer<*mut T> {
    Errno::clear();
    let object = verb();
    if object.is_null() { Err(Errno::last().0) } else { Ok(object) }
}

/// The answer of a verb that returns 0 or an errno.
fn said(ret: c_int) -> Answer<()> {
    if ret == 0 { Ok(()) } else { Err(ret) }
}

/// What all lanes share.
struct Shared {
    world: Box<World>,
    /// For whoever wants to see a failure again.
    again: String,
    /// CQs of all threads: number and CQ.
    cqs: Vec<(u32, *mut ibv_cq_ex)>,
    /// An SRQ of all threads: number, SRQ, length, SGEs.
    srq: Option<(u32, *mut ibv_srq, (u32, u32))>,
    /// What is in it, or about to be.
    receives: Mutex<HashMap<u64, Recv>>,
    /// Which lane a QP is of. (Not who posted a receive: those in the SRQ are for all.)
    owners: Mutex<HashMap<u32, usize>>,
    /// Completions for a lane that another one has polled.
    mail: Vec<Mutex<Vec<ibv_wc>>>,
}

// SAFETY: verbs objects may be used from any thread.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    fn new(lanes: usize, again: String) -> Self {
        let world = World::new();
        (world.state().strict, world.state().prompt) = (true, lanes == 1);
        let (mut cqs, mut srq) = (Vec::new(), None);
        if lanes > 1 {
            for cqe in [8, 16] {
                // SAFETY: integers and pointers only; an open context; just made.
                unsafe {
                    let mut attr: ibv_cq_init_attr_ex = core::mem::zeroed();
                    (attr.cqe, attr.comp_mask, attr.parent_domain) = (cqe, IBV_CQ_INIT_ATTR_MASK_PD, world.pd);
                    let cq = made(|| OPS.create_cq_ex.unwrap()(world.context, &mut attr)).unwrap();
                    cqs.push(((*cq.cast::<ibv_cq>()).handle, cq));
                }
            }
            let cap = (4, 2);
            let attr = ibv_srq_attr { max_wr: cap.0, max_sge: cap.1, srq_limit: 0 };
            let mut attr = ibv_srq_init_attr { srq_context: core::ptr::null_mut(), attr, padding: 0 };
            // SAFETY: a live PD, a valid attribute; just made.
            srq = unsafe {
                let made = made(|| OPS.create_srq.unwrap()(world.pd, &mut attr)).unwrap();
                Some(((*made).handle, made, cap))
            };
        }
        let mail = (0..lanes).map(|_| Mutex::default()).collect();
        Self { world, again, cqs, srq, receives: Mutex::default(), owners: Mutex::default(), mail }
    }

    /// Close it; nothing must be left. Returns how many receives were never taken.
    fn close(self) -> u64 {
        let left = self.receives.lock().unwrap().len();
        // SAFETY: nobody uses them any more.
        unsafe {
            self.cqs.iter().for_each(|(_, cq)| said(OPS.destroy_cq.unwrap()(cq.cast())).unwrap());
            if let Some((number, srq, _)) = self.srq {
                let ring = self.world.state().srqs[&number].ring;
                let mut receives = self.receives.lock().unwrap();
                assert_eq!(ring.used() as usize, left);
                while let Some(wqe) = ring.take_recv() {
                    receives.remove(&wqe.hdr.wr_id).unwrap().check(&wqe);
                }
                said(OPS.destroy_srq.unwrap()(srq)).unwrap();
            }
        }
        self.world.close();
        left as u64
    }
}

/// One thread's objects, by number or id, and what the model knows of them.
struct Lane<'a> {
    number: usize,
    shared: &'a Shared,
    rng: Rng,
    pds: BTreeMap<u32, PdModel>,
    tds: BTreeMap<u32, TdModel>,
    ahs: Vec<AhModel>,
    mrs: Vec<MrModel>,
    cqs: BTreeMap<u32, CqModel>,
    srqs: BTreeMap<u32, SrqModel>,
    qps: BTreeMap<u32, QpModel>,
    last_id: u32,
    last_wr_id: u64,
    /// Completions in CQs of all threads that went with their QP, if nobody took them before that.
    purged: HashSet<u64>,
    steps: u64,
    tally: Tally,
    ledger: Ledger,
}

// SAFETY: verbs objects may be used from any thread.
unsafe impl Send for Lane<'_> {}

impl<'a> Lane<'a> {
    fn new(number: usize, shared: &'a Shared, seed: u64) -> Self {
        let mut lane = Self {
            number,
            shared,
            rng: Rng::new(seed ^ (number as u64) << 32),
            pds: BTreeMap::new(),
            tds: BTreeMap::new(),
            ahs: Vec::new(),
            mrs: Vec::new(),
            cqs: shared.cqs.iter().map(|(number, cq)| (*number, CqModel::shared(*cq))).collect(),
            srqs: shared.srq.iter().map(|(number, srq, cap)| (*number, SrqModel::shared(*srq, *cap))).collect(),
            qps: BTreeMap::new(),
            last_id: 0,
            last_wr_id: 0,
            purged: HashSet::new(),
            steps: 0,
            tally: Tally::default(),
            ledger: Ledger::default(),
        };
        lane.common_domains();
        lane
    }

    fn world(&self) -> &'a World {
        &self.shared.world
    }

    /// Is this the only lane? Then doorbells are its own, and so are commands.
    fn single_threaded(&self) -> bool {
        self.shared.mail.len() == 1
    }

    fn id(&mut self) -> u32 {
        self.last_id += 1;
        self.last_id
    }

    fn wr_id(&mut self, send: bool) -> u64 {
        self.last_wr_id += 1;
        (self.number as u64) << 48 | if send { SEND } else { 0 } | self.last_wr_id
    }

    /// Any object of a kind.
    fn any_key<T>(&mut self, of: impl Fn(&Self) -> &BTreeMap<u32, T>) -> Option<u32> {
        let count = of(self).len() as u64;
        let nth = if count == 0 { return None } else { self.rng.below(count) };
        of(self).keys().nth(nth as usize).copied()
    }

    /// Have the kernel refuse the next command, once in a while. Returns with which errno.
    fn lie(&mut self) -> Option<c_int> {
        if !self.single_threaded() || !self.rng.one_in(30) {
            return None;
        }
        let errno = *self.rng.pick(&[libc::ENOMEM, libc::EIO, libc::EINTR]);
        self.world().state().lie = Some(Lie::Refuse(errno));
        Some(errno)
    }

    /// No more of that, if the verb never came to the kernel.
    fn honest(&self) {
        if self.single_threaded() {
            self.world().state().lie = None;
        }
    }

    /// A verb must answer what the model says.
    fn judge<T>(&mut self, verb: &'static str, got: Answer<T>, expected: Answer<()>) -> Option<T> {
        let (answer, value) = match got {
            Ok(value) => (Ok(()), Some(value)),
            Err(errno) => (Err(errno), None),
        };
        assert_eq!(answer, expected, "{verb} in step {}", self.steps);
        self.tally.add(verb, answer.err().unwrap_or(0), 1);
        value
    }

    /// The doorbell at `offset` was rung with `value`, 0: not at all.
    fn rung(&self, offset: usize, value: u32) {
        if self.single_threaded() {
            assert_eq!(self.world().rung(offset), value, "doorbell in step {}", self.steps);
        }
    }

    /// One verb, or some work of the device.
    fn step(&mut self) {
        self.steps += 1;
        self.read_mail();
        match self.rng.below(100) {
            0..5 => self.domain_step(),
            5..25 => self.cq_step(),
            25..28 => self.srq_step(),
            28..38 => self.qp_step(),
            38..55 => self.send_step(),
            55..65 => self.recv_step(),
            65 if self.rng.one_in(4) => self.crowd(),
            _ => self.device_step(),
        }
        if self.single_threaded() {
            assert_eq!(self.world().state().complaints, [""; 0]);
        }
    }

    /// Everything that is on its way ends. (All threads have stopped.)
    fn quiesce(&mut self) {
        self.read_mail();
        self.drain();
    }

    /// Nothing is owed any more; everything goes.
    fn end(mut self) -> (Tally, Ledger) {
        self.read_mail();
        for qp in self.qps.values() {
            assert!(qp.owed.is_empty(), "lost: {:?}", qp.owed);
            let (pending, state) = (qp.on_the_way(), self.world().state().qps[&qp.handle].state);
            assert!(pending == 0 || state < IBV_QPS_RTR, "{qp:?}");
        }
        for qpn in self.qps.keys().copied().collect::<Vec<_>>() {
            // Once more, through the locks of both queues.
            self.modify_to(qpn, ibv_qp_attr::default(), IBV_QP_STATE);
            self.honest();
            self.end_qp(qpn, Ok(()));
        }
        self.end_srqs();
        self.end_cqs();
        self.end_domains();
        let (tally, ledger) = (std::mem::take(&mut self.tally), self.ledger);
        (tally, ledger)
    }
}

impl Drop for Lane<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Past the harness, which keeps what is printed until the end.
            let (lane, steps, again) = (self.number, self.steps, &self.shared.again);
            let _ = writeln!(std::io::stderr(), "lane {lane}, step {steps}. Again: {again}");
        }
    }
}

/// A run of `steps` in `lanes` threads.
fn run(lanes: usize, steps: u64) -> (Tally, Ledger) {
    let seed = rng::seed(1);
    let again = format!("PVRDMA_SEED={seed} PVRDMA_STEPS={steps} cargo test --release -p vmw_pvrdma --lib model");
    let shared = Shared::new(lanes, again);
    let mut all: Vec<_> = (0..lanes).map(|number| Lane::new(number, &shared, seed)).collect();
    // A thread takes no longer to run than to start, and they shall meet.
    let start = Barrier::new(lanes);
    std::thread::scope(|scope| {
        for lane in &mut all {
            let start = &start;
            scope.spawn(move || {
                start.wait();
                (0..steps / lanes as u64).for_each(|_| lane.step());
            });
        }
    });
    // One after the other: what is for another is in its mail before that ends.
    all.iter_mut().for_each(Lane::quiesce);
    let (mut tally, mut sum) = (Tally::default(), Ledger::default());
    for lane in all {
        let (one, ledger) = lane.end();
        one.0.into_iter().for_each(|((what, errno), count)| tally.add(what, errno, count));
        sum.add(ledger);
    }
    sum.purged += shared.close();
    println!("{steps} steps in {lanes} threads: {sum:?}{tally}");
    assert_eq!(sum.posted, sum.ended(), "every request ends once: {sum:?}");
    (tally, sum)
}

#[test]
fn random_verbs_end_as_the_model_says() {
    let steps = steps(200_000);
    let (tally, ledger) = run(1, steps);
    enough_ends(steps, ledger);
    enough_answers(steps, &tally);
}

#[test]
fn threads_end_as_the_model_says() {
    let steps = steps(200_000);
    // Which answers they meet is the scheduler's choice; that requests came to each kind of end is not.
    let (_, ledger) = run(4, steps);
    enough_ends(steps, ledger);
}
