//! A transport with faults: what a bad network does by accident, done by a seed, so that retries and error paths can be
//! provoked from a shell.
//!
//! It stands between the engine and any other transport. A request that is lost is `Pending` for ever and `lost` when
//! the engine asks, so that those behind it go on and meet a responder that misses one.

use super::layer::Layer;
use super::{Answer, Op, QpView, Request, Submitted, Token, Transport};
use crate::handle::QpHandle;
use crate::memory::{Memory, Span};
use pvrdma_ffi::dev_api::{PVRDMA_QPS_ERR, PVRDMA_QPS_RESET};
use std::collections::{HashMap, HashSet};
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// RNR timer code of a storm: 0.64 ms (IBA vol. 1, table 45).
const STORM_RNR: u8 = 12;

/// Marks the epoch of a duplicate, so that its answer is nobody's.
const DUPLICATE: u32 = 1 << 31;

/// Which faults, and how often. Probabilities are of each request; 0 is never.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Faults {
    /// The request never arrives.
    pub drop: f64,
    /// The request is carried out, its answer never arrives.
    pub drop_ack: f64,
    /// The request arrives after the next one of its QP.
    pub reorder: f64,
    /// The request arrives twice.
    pub duplicate: f64,
    /// A request that needs a receive WQE is told that there is none.
    pub rnr: f64,
    /// Every request is late by a time up to this.
    pub delay: Duration,
    /// After so many requests nobody answers any more.
    pub dead: Option<u64>,
    /// Start of the random numbers.
    pub seed: u64,
}

/// Why a list of faults was not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadFaults(String);

impl FromStr for Faults {
    type Err = BadFaults;

    /// `NAME=VALUE[,NAME=VALUE...]`: `drop`, `drop-ack`, `reorder`, `duplicate`, `rnr` with a probability of 0 to 1,
    /// `delay` with a time (`50us`, `2ms`), `dead` with a number of requests, `seed` with a number.
    fn from_str(list: &str) -> Result<Faults, BadFaults> {
        let mut faults = Faults { seed: 1, ..Default::default() };
        for item in list.split(',').filter(|item| !item.is_empty()) {
            let bad = |what: &str| BadFaults(format!("fault \"{item}\": {what}"));
            let (name, value) = item.split_once('=').ok_or_else(|| bad("NAME=VALUE is expected"))?;
            let number = || value.parse().map_err(|_| bad("not a number"));
            let probability = match name {
                "drop" => &mut faults.drop,
                "drop-ack" => &mut faults.drop_ack,
                "reorder" => &mut faults.reorder,
                "duplicate" => &mut faults.duplicate,
                "rnr" => &mut faults.rnr,
                "delay" => {
                    faults.delay = parse_time(value).ok_or_else(|| bad("not a time such as 50us or 2ms"))?;
                    continue;
                }
                "dead" => {
                    faults.dead = Some(number()?);
                    continue;
                }
                "seed" => {
                    faults.seed = number()?;
                    continue;
                }
                _ => {
                    return Err(bad("there are drop, drop-ack, reorder, duplicate, rnr, delay, dead and seed"));
                }
            };
            let chance = value.parse().ok().filter(|chance| (0.0..=1.0).contains(chance));
            *probability = chance.ok_or_else(|| bad("not a probability of 0 to 1"))?;
        }
        Ok(faults)
    }
}

fn parse_time(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number = number.parse().ok()?;
    match unit {
        "us" => Some(Duration::from_micros(number)),
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        _ => None,
    }
}

/// A transport behind which another one misbehaves.
pub struct Faulty {
    inner: Arc<dyn Transport>,
    faults: Faults,
    state: Mutex<State>,
}

struct State {
    random: u64,
    /// Requests seen so far.
    requests: u64,
    /// Requests that are lost, or held until the next of their QP has passed them.
    lost: HashSet<Token>,
    held: HashMap<QpHandle, (Request, Vec<Span>)>,
    /// When the request that a QP submits now arrives.
    due: HashMap<QpHandle, (Token, Instant)>,
    /// Duplicates that are on their way.
    duplicates: HashMap<QpHandle, Vec<Token>>,
}

impl State {
    /// A random number below 1 (splitmix64).
    fn random(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.random;
        bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (bits ^ bits >> 31 >> 11) as f64 / 2f64.powi(64)
    }

    fn chance(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.random() < probability
    }
}

/// What becomes of a request.
enum Fate {
    Pass,
    Twice,
    Answer(Answer),
    Wait,
    Lose,
    LoseAnswer,
    Hold,
}

impl Faulty {
    /// `inner` with `faults`.
    pub fn new(inner: Arc<dyn Transport>, faults: Faults) -> Arc<Faulty> {
        let state = State {
            random: faults.seed,
            requests: 0,
            lost: HashSet::new(),
            held: HashMap::new(),
            due: HashMap::new(),
            duplicates: HashMap::new(),
        };
        Arc::new(Faulty { inner, faults, state: Mutex::new(state) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fate(&self, request: &Request) -> Fate {
        let mut state = self.lock();
        if !self.faults.delay.is_zero() {
            // The engine asks again and again, with a new token each time; PSN and QP stay.
            let now = Instant::now();
            match state.due.get(&request.token.qp) {
                Some((token, due)) if token.psn == request.token.psn => {
                    if now < *due {
                        return Fate::Wait;
                    }
                    state.due.remove(&request.token.qp);
                }
                _ => {
                    let late = self.faults.delay.mul_f64(state.random());
                    state.due.insert(request.token.qp, (request.token, now + late));
                    return Fate::Wait;
                }
            }
        }
        state.requests += 1;
        if self.faults.dead.is_some_and(|limit| state.requests > limit) || state.chance(self.faults.drop) {
            return Fate::Lose;
        }
        if request.op.takes_receive() && state.chance(self.faults.rnr) {
            return Fate::Answer(Answer::RnrNak(STORM_RNR));
        }
        if state.chance(self.faults.drop_ack) {
            return Fate::LoseAnswer;
        }
        if !state.held.contains_key(&request.token.qp) && state.chance(self.faults.reorder) {
            return Fate::Hold;
        }
        if state.chance(self.faults.duplicate) { Fate::Twice } else { Fate::Pass }
    }

    /// Ends the duplicates of `qp` that `which` names: the memory they were sent from is about to be its owner's again.
    fn cancel_duplicates(&self, qp: QpHandle, which: impl Fn(&Token) -> bool) {
        let mut gone = Vec::new();
        if let Some(list) = self.lock().duplicates.get_mut(&qp) {
            gone = list.extract_if(.., |token| which(token)).collect();
        }
        for token in gone {
            self.inner.cancel(token);
        }
    }

    fn submit_twice(&self, request: &Request, memory: &dyn Memory, local: &[Span]) -> Submitted {
        let first = self.inner.submit(request, memory, local);
        // A second READ or atomic could bring its data after its owner has been told that the first one did.
        if request.op.reads() {
            return first;
        }
        let mut token = request.token;
        token.epoch ^= DUPLICATE;
        let again = Request { token, ..*request };
        let arrives = matches!(first, Submitted::Pending | Submitted::Answered(Answer::Ack));
        if arrives && self.inner.submit(&again, memory, local) == Submitted::Pending {
            if first == Submitted::Pending {
                self.lock().duplicates.entry(token.qp).or_default().push(token);
            } else {
                self.inner.cancel(token);
            }
        }
        first
    }
}

impl Layer for Faulty {
    fn inner(&self) -> &dyn Transport {
        &*self.inner
    }

    fn submit(&self, request: &Request, memory: &dyn Memory, local: &[Span]) -> Submitted {
        let qp = request.token.qp;
        let datagram = matches!(request.op, Op::Datagram { .. });
        self.cancel_duplicates(qp, |token| token.psn == request.token.psn);
        // A request that cannot be taken in yet has no fate yet.
        let fate = self.fate(request);
        let overtaken = self.lock().held.remove(&qp).filter(|(held, _)| held.token != request.token);
        let submitted = match fate {
            Fate::Pass => self.inner.submit(request, memory, local),
            Fate::Twice => self.submit_twice(request, memory, local),
            Fate::Answer(answer) => Submitted::Answered(answer),
            Fate::Wait => Submitted::Busy,
            Fate::Lose if datagram => Submitted::Answered(Answer::Ack),
            Fate::Lose => {
                self.lock().lost.insert(request.token);
                Submitted::Pending
            }
            Fate::LoseAnswer => match self.inner.submit(request, memory, local) {
                Submitted::Answered(_) if !datagram => {
                    self.lock().lost.insert(request.token);
                    Submitted::Pending
                }
                Submitted::Pending => {
                    self.inner.cancel(request.token);
                    self.lock().lost.insert(request.token);
                    Submitted::Pending
                }
                other => other,
            },
            // A datagram is not there any more when the next one comes: its sender has been told that it is sent.
            Fate::Hold if datagram => Submitted::Answered(Answer::Ack),
            Fate::Hold => {
                let mut state = self.lock();
                state.lost.insert(request.token);
                state.held.insert(qp, (*request, local.to_vec()));
                Submitted::Pending
            }
        };
        if let Some((held, spans)) = overtaken {
            if matches!(submitted, Submitted::Busy | Submitted::Full) {
                self.lock().held.insert(qp, (held, spans));
            } else if self.inner.submit(&held, memory, &spans) == Submitted::Pending {
                // Its answer comes by itself.
                self.lock().lost.remove(&held.token);
            }
        }
        submitted
    }

    fn cancel(&self, token: Token) {
        {
            let mut state = self.lock();
            if state.held.get(&token.qp).is_some_and(|(held, _)| held.token == token) {
                state.held.remove(&token.qp);
            }
            if state.lost.remove(&token) {
                return;
            }
        }
        self.cancel_duplicates(token.qp, |duplicate| duplicate.psn == token.psn);
        self.inner.cancel(token);
    }

    fn lost(&self, token: Token) -> bool {
        self.lock().lost.contains(&token) || self.inner.lost(token)
    }

    fn qp_changed(&self, view: &QpView) {
        if matches!(view.state, PVRDMA_QPS_ERR | PVRDMA_QPS_RESET) {
            self.cancel_duplicates(view.handle, |_| true);
        }
        self.inner.qp_changed(view);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_understood_or_refused_with_its_reason() {
        let faults: Faults = "drop=0.01,delay=50us,rnr=1,dead=7,seed=42".parse().unwrap();
        let expected = Faults {
            drop: 0.01,
            delay: Duration::from_micros(50),
            rnr: 1.0,
            dead: Some(7),
            seed: 42,
            ..Default::default()
        };
        assert_eq!(faults, expected);
        for (list, why) in [
            ("drop", "NAME=VALUE"),
            ("drop=2", "probability"),
            ("drop=-0.1", "probability"),
            ("drop=nan", "probability"),
            ("delay=5", "time"),
            ("delay=5h", "time"),
            ("dead=x", "number"),
            ("lose=1", "there are drop"),
        ] {
            let error = list.parse::<Faults>().unwrap_err().to_string();
            assert!(error.contains(why) && error.contains(list), "{error}");
        }
    }

    #[test]
    fn chances_are_what_they_say() {
        let mut state =
            Faulty::new(super::super::fabric::Port::new(&super::super::fabric::Fabric::new()), Faults::default());
        let state = Arc::get_mut(&mut state).unwrap().state.get_mut().unwrap();
        let hits = (0..100_000).filter(|_| state.chance(0.25)).count();
        assert!((24_000..26_000).contains(&hits), "{hits}");
        assert!((0..1000).all(|_| !state.chance(0.0)) && (0..1000).all(|_| state.chance(1.0)));
    }
}
