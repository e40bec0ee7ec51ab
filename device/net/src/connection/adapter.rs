//! Whether frames go over the hosts' adapters, and what both ends say about it.
//!
//! Who has dialed offers, or says why not; the other end replies with an offer of its own, or says why not. It can be
//! written to from then on. The first one finds out whether it gets there, and says that all that it sends from now on
//! goes over its adapter; the other end follows. There is no way back: whose adapter fails then ends the connection.
//! Until then each round may end with a refusal, and who has dialed may begin another one.

use crate::frame::{Bad, Way};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nothing is on its way, and nobody is waited for.
    Rest,
    /// The one that dialed has offered, and waits for a reply.
    Offered,
    /// The other one's caller has been told of an offer, and has not replied.
    Asked,
    /// Both have offered: it is the turn of the one that dialed.
    Agreed,
    /// All goes over the adapter.
    Switched,
}

/// See the module text.
#[derive(Debug)]
pub struct Adapter {
    dialed: bool,
    stage: Stage,
    /// To be said. A reply that has not left is awaited by the other end, so there is no other one.
    say: Option<Way>,
    /// The other end sends by its adapter, and this one does.
    reads: bool,
    sends: bool,
}

impl Adapter {
    pub fn new(dialed: bool) -> Adapter {
        Adapter { dialed, stage: Stage::Rest, say: None, reads: false, sends: false }
    }

    /// Whether this end may begin a round.
    pub fn may_begin(&self) -> bool {
        self.dialed && self.stage == Stage::Rest && self.say.is_none()
    }

    /// What comes next is to be read from the adapter; what is made next goes over it.
    pub fn over(&self) -> (bool, bool) {
        (self.reads, self.sends)
    }

    /// The caller says something. `false`: it is not its turn, and nothing is said.
    pub fn say(&mut self, way: Way) -> bool {
        let next = match (way, self.stage) {
            (Way::Offer(_), Stage::Rest) if self.may_begin() => Stage::Offered,
            (Way::Offer(_), Stage::Asked) => Stage::Agreed,
            (Way::Refuse(_), Stage::Rest) if self.may_begin() => Stage::Rest,
            (Way::Refuse(_), Stage::Asked) => Stage::Rest,
            (Way::Refuse(_), Stage::Agreed) if self.dialed => Stage::Rest,
            (Way::Switch, Stage::Agreed) if self.dialed => Stage::Switched,
            _ => return false,
        };
        self.stage = next;
        self.say = Some(way);
        true
    }

    /// The other end says something. What the caller is to hear.
    pub fn heard(&mut self, way: Way) -> Result<Option<Way>, Bad> {
        // Whoever waits for a reply says nothing before it has come.
        let waits = !self.dialed && self.say.is_some();
        self.stage = match (way, self.stage) {
            _ if waits => return Err(Bad::Adapter),
            (Way::Offer(_), Stage::Rest) if !self.dialed => Stage::Asked,
            (Way::Refuse(_), Stage::Rest) if !self.dialed => Stage::Rest,
            (Way::Offer(_), Stage::Offered) => Stage::Agreed,
            (Way::Refuse(_), Stage::Offered) => Stage::Rest,
            (Way::Refuse(_), Stage::Agreed) if !self.dialed => Stage::Rest,
            (Way::Switch, Stage::Agreed) if !self.dialed => {
                self.reads = true;
                self.say = Some(Way::Switch);
                Stage::Switched
            }
            (Way::Switch, Stage::Switched) if self.dialed && !self.reads => {
                self.reads = true;
                Stage::Switched
            }
            _ => return Err(Bad::Adapter),
        };
        Ok(Some(way).filter(|way| *way != Way::Switch))
    }

    /// What is to be sent. Behind [`Way::Switch`] nothing is, in the same call.
    pub fn next(&mut self) -> Option<Way> {
        let way = self.say.take()?;
        self.sends |= way == Way::Switch;
        Some(way)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Card, Refusal};

    const CARD: Card = Card { link: 3, mtu: 3, lid: 0, gid: [1; 16], qpn: 1, psn: 2, rkey: 3, len: 1 << 20, addr: 4 };
    const OFFER: Way = Way::Offer(CARD);
    const NO: Way = Way::Refuse(Refusal::Missing);

    /// Takes what one end says to the other.
    fn carry(from: &mut Adapter, to: &mut Adapter) -> Result<Option<Way>, Bad> {
        to.heard(from.next().expect("it says something"))
    }

    fn agreed() -> [Adapter; 2] {
        let [mut a, mut b] = [true, false].map(Adapter::new);
        assert!(a.may_begin() && !b.may_begin());
        assert!(a.say(OFFER) && !a.say(OFFER) && !a.say(Way::Switch));
        assert_eq!(carry(&mut a, &mut b), Ok(Some(OFFER)));
        assert!(!b.say(Way::Switch) && b.say(OFFER));
        assert_eq!(carry(&mut b, &mut a), Ok(Some(OFFER)));
        [a, b]
    }

    #[test]
    fn both_ends_change_over_in_order() {
        let [mut a, mut b] = agreed();
        assert!(!b.say(Way::Switch) && a.say(Way::Switch));
        assert_eq!((a.over(), b.over()), ((false, false), (false, false)));
        let switch = a.next().unwrap();
        assert_eq!(a.over(), (false, true));
        assert_eq!(b.heard(switch), Ok(None));
        assert_eq!(b.over(), (true, false));
        assert_eq!(carry(&mut b, &mut a), Ok(None));
        assert_eq!((a.over(), b.over()), ((true, true), (true, true)));
        for end in [&mut a, &mut b] {
            assert!(!end.may_begin() && !end.say(OFFER) && !end.say(NO));
            assert!([OFFER, NO, Way::Switch].iter().all(|way| end.heard(*way) == Err(Bad::Adapter)));
        }
    }

    #[test]
    fn a_round_that_is_refused_is_followed_by_another() {
        let [mut a, mut b] = [true, false].map(Adapter::new);
        for _ in 0..3 {
            // By the one that begins, at once; by the other; and by the one that began, at last.
            assert!(a.say(NO));
            assert_eq!(carry(&mut a, &mut b), Ok(Some(NO)));
            assert!(a.say(OFFER));
            assert_eq!(carry(&mut a, &mut b), Ok(Some(OFFER)));
            assert!(b.say(NO));
            assert_eq!(carry(&mut b, &mut a), Ok(Some(NO)));
            [a, b] = agreed();
            assert!(!b.say(NO) && a.say(NO));
            assert_eq!(carry(&mut a, &mut b), Ok(Some(NO)));
            assert!(a.may_begin());
        }
    }

    #[test]
    fn what_is_said_out_of_turn_is_refused() {
        let [mut a, mut b] = [true, false].map(Adapter::new);
        assert_eq!(b.heard(Way::Switch), Err(Bad::Adapter), "nobody has offered");
        assert!([OFFER, NO, Way::Switch].iter().all(|way| a.heard(*way) == Err(Bad::Adapter)), "it was not asked");
        b.heard(OFFER).unwrap();
        assert!([OFFER, NO, Way::Switch].iter().all(|way| b.heard(*way) == Err(Bad::Adapter)), "before the reply");
        b.say(OFFER);
        assert!([OFFER, NO, Way::Switch].iter().all(|way| b.heard(*way) == Err(Bad::Adapter)), "which has not left");
        b.next();
        assert_eq!(b.heard(OFFER), Err(Bad::Adapter), "twice");
        a.say(OFFER);
        assert_eq!(a.heard(Way::Switch), Err(Bad::Adapter), "no reply");
    }
}
